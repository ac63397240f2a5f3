//! GNU sparse files, in the four ways they have been written: old GNU headers, and PAX versions
//! 0.0 (a record per run), 0.1 (one record) and 1.0 (a map before the data).
//!
//! Source: the GNU tar manual, appendix "Storing Sparse Files".

use tar::{GnuExtSparseHeader, Header};

use super::header::{BLOCK, number};
use super::pax::decimal;
use crate::index::Extent;

/// Where a file's stored data lies: runs of the file, in the order of their data.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Map {
    /// Size of the file, holes included.
    pub size: u64,
    /// Bytes of data that follow in the archive.
    pub stored: u64,
    runs: Vec<(u64, u64)>,
}

impl Map {
    /// A file without holes.
    pub(super) fn whole(size: u64) -> Self {
        Self { size, stored: size, runs: vec![(0, size)] }
    }

    /// The runs as extents, where the data begins at `offset` of the archive.
    pub(super) fn extents(&self, offset: u64) -> Vec<Extent> {
        let mut offset = offset;
        let mut extents = Vec::with_capacity(self.runs.len());
        for &(logical, length) in self.runs.iter().filter(|(_, length)| *length > 0) {
            extents.push(Extent { logical, offset, length, layer: 0 });
            offset += length;
        }
        extents
    }
}

/// What PAX records say about a sparse file.
#[derive(Clone, Debug, Default)]
pub(super) struct Pax {
    pub name: Option<Vec<u8>>,
    major: Option<u64>,
    minor: Option<u64>,
    size: Option<u64>,
    runs: Vec<(u64, u64)>,
    open_run: Option<u64>,
}

impl Pax {
    pub(super) fn set(&mut self, key: &[u8], value: &[u8], limit: usize) -> Result<(), &'static str> {
        let number = || decimal(value).ok_or("sparse map");
        match key {
            b"name" => self.name = Some(value.to_vec()),
            b"major" => self.major = Some(number()?),
            b"minor" => self.minor = Some(number()?),
            b"size" | b"realsize" => self.size = Some(number()?),
            b"offset" => self.open_run = Some(number()?),
            b"numbytes" => {
                let offset = self.open_run.take().ok_or("sparse map")?;
                self.runs.push((offset, number()?));
            }
            b"map" => {
                self.runs.clear();
                let mut numbers = value.split(|byte| *byte == b',').map(decimal);
                while let Some(offset) = numbers.next() {
                    let run = offset.zip(numbers.next().flatten()).ok_or("sparse map")?;
                    self.runs.push(run);
                    if self.runs.len() > limit {
                        break;
                    }
                }
            }
            _ => {}
        }
        if self.runs.len() > limit { Err("number of sparse runs") } else { Ok(()) }
    }

    pub(super) fn is_version_1(&self) -> bool {
        self.major == Some(1) && self.minor == Some(0)
    }

    pub(super) fn is_sparse(&self) -> bool {
        self.size.is_some() || !self.runs.is_empty()
    }
}

/// Collects a sparse map from wherever it is written. Every step gives None for a bad map.
pub(super) struct Reader {
    limit: usize,
    /// Data bytes left of what the header announced.
    stored: u64,
    size: u64,
    runs: Vec<(u64, u64)>,
    /// Version 1.0: numbers still to come (None until the first, the count, is known), and the
    /// digits of one that a block cut in two.
    wanted: Option<u64>,
    digits: Vec<u8>,
    offset: Option<u64>,
}

impl Reader {
    pub(super) fn new(stored: u64, limit: usize) -> Self {
        Self { limit, stored, size: 0, runs: Vec::new(), wanted: None, digits: Vec::new(), offset: None }
    }

    /// An old GNU header; true where an extension block follows.
    pub(super) fn old_gnu(&mut self, block: &[u8; BLOCK]) -> Option<bool> {
        let header = Header::from_byte_slice(block).as_gnu()?;
        self.size = u64::try_from(number(&header.realsize)?).ok()?;
        for run in &header.sparse {
            self.gnu_run(&run.offset, &run.numbytes)?;
        }
        Some(header.isextended[0] == 1)
    }

    /// An extension block of an old GNU header; true where another follows.
    pub(super) fn old_gnu_extension(&mut self, block: &[u8; BLOCK]) -> Option<bool> {
        let mut extension = GnuExtSparseHeader::new();
        extension.as_mut_bytes().copy_from_slice(block);
        for run in extension.sparse() {
            self.gnu_run(&run.offset, &run.numbytes)?;
        }
        Some(extension.is_extended())
    }

    fn gnu_run(&mut self, offset: &[u8], length: &[u8]) -> Option<()> {
        if offset[0] == 0 || length[0] == 0 {
            return Some(());
        }
        let offset = u64::try_from(number(offset)?).ok()?;
        self.push(offset, u64::try_from(number(length)?).ok()?)
    }

    pub(super) fn version_0(&mut self, pax: &Pax) -> Option<()> {
        self.size = pax.size?;
        pax.runs.iter().try_for_each(|&(offset, length)| self.push(offset, length))
    }

    pub(super) fn version_1_wants_block(&self) -> bool {
        self.wanted != Some(0)
    }

    /// A block of a version 1.0 map: decimal numbers, a line each, zero-padded to the block.
    pub(super) fn version_1_block(&mut self, block: &[u8; BLOCK]) -> Option<()> {
        /// Digits of the largest 64-bit number.
        const MAX_DIGITS: usize = 20;
        self.stored = self.stored.checked_sub(BLOCK as u64)?;
        for byte in block {
            if self.wanted == Some(0) {
                break;
            }
            if *byte != b'\n' {
                self.digits.push(*byte);
                if self.digits.len() > MAX_DIGITS {
                    return None;
                }
                continue;
            }
            let value = decimal(&std::mem::take(&mut self.digits))?;
            match (&mut self.wanted, self.offset.take()) {
                (wanted @ None, _) => {
                    if value > self.limit as u64 {
                        return None;
                    }
                    *wanted = Some(value * 2);
                    continue;
                }
                (Some(_), None) => self.offset = Some(value),
                (Some(_), Some(offset)) => self.push(offset, value)?,
            }
            self.wanted = self.wanted.map(|wanted| wanted - 1);
        }
        Some(())
    }

    pub(super) fn version_1_end(&mut self, pax: &Pax) -> Option<()> {
        self.size = pax.size?;
        Some(())
    }

    /// Runs must lie in order, apart and within the file.
    fn push(&mut self, offset: u64, length: u64) -> Option<()> {
        let (last_offset, last_length) = self.runs.last().copied().unwrap_or_default();
        offset.checked_add(length)?;
        if offset < last_offset + last_length || self.runs.len() >= self.limit {
            return None;
        }
        self.runs.push((offset, length));
        Some(())
    }

    pub(super) fn finish(self) -> Option<Map> {
        let end = self.runs.last().map_or(0, |(offset, length)| offset + length);
        let data = self.runs.iter().try_fold(0u64, |sum, (_, length)| sum.checked_add(*length))?;
        if end > self.size || data > self.stored {
            return None;
        }
        Some(Map { size: self.size, stored: self.stored, runs: self.runs })
    }
}
