//! The index file: one format for a layer's index and for the merged index of an image.
//!
//! ```text
//! header   128 bytes
//! nodes    64 bytes each; node id n (from 1, the root) is record n-1; the children of a
//!          directory are numbered one after the other, directories breadth first
//! entries  16 bytes each; a directory's are contiguous and sorted by name bytes
//! extents  32 bytes each; a file's are contiguous and sorted by offset in the file
//! xattrs   16 bytes each; a node's are contiguous and sorted by name; equal sets are stored once
//! strings  names, link targets, xattr values; equal ones are stored once
//! ```
//!
//! All numbers are little-endian. A file is written once, renamed into place by its owner and
//! then never changed; readers need no lock. Opening checks the header (its own checksum, the
//! version, the sections against the file's length) and costs the same for any number of files;
//! [`Image::verify`] checks the rest. Every access is bounds-checked, so a damaged body gives
//! [`Corrupt`], never a panic.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::ops::Range;

use super::hash::xxh64;
use super::tree::Name;
use super::{Extent, IndexError, Timestamp};
use crate::sys::Mapping;

pub(crate) const MAGIC: [u8; 8] = *b"HOSTLIDX";
pub(crate) const VERSION: u32 = 1;
pub(crate) const HEADER_SIZE: usize = 128;
pub(crate) const NODE_SIZE: usize = 64;
pub(crate) const ENTRY_SIZE: usize = 16;
pub(crate) const EXTENT_SIZE: usize = 32;
pub(crate) const XATTR_SIZE: usize = 16;

/// The node id of the root directory; also FUSE's.
pub(crate) const ROOT_ID: u32 = 1;

/// Node flag: the directory hides what lower layers have in it (layer indexes only).
pub(crate) const FLAG_OPAQUE: u32 = 1;
/// Node flag: the directory was named only as part of other paths (layer indexes only).
pub(crate) const FLAG_IMPLICIT: u32 = 2;
/// Node flag: a hard link to a path of another layer, kept as the "symlink" target
/// (layer indexes only).
pub(crate) const FLAG_LINK: u32 = 4;

/// Entry type of a whiteout, which has no node (layer indexes only). The value is `DT_WHT`.
pub(crate) const ENTRY_WHITEOUT: u8 = 14;

/// What an index describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Layer = 1,
    Merged = 2,
}

/// The body does not keep what the format promises: damage that the header cannot show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Corrupt;

/// The header's fields that are not derived from sections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Summary {
    pub kind: Kind,
    /// How many layers the extents point into.
    pub layers: u32,
    /// The sum of the sizes of all regular files, each counted once.
    pub total_size: u64,
}

/// Section lengths in records, strings in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub nodes: u64,
    pub entries: u64,
    pub extents: u64,
    pub xattrs: u64,
    pub strings: u64,
}

/// A node's record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct NodeRecord {
    /// Type and permission bits, as `st_mode`.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub nlink: u32,
    pub mtime: Timestamp,
    /// As the kernel's `new_encode_dev`.
    pub rdev: u32,
    pub size: u64,
    /// First entry, first extent, or offset of the link target in strings.
    pub first: u32,
    /// Number of entries or extents, or length of the link target.
    pub count: u32,
    pub xattr_first: u32,
    pub xattr_count: u32,
    /// The directory of its (first) name; the root's is itself. 0 for other things than directories
    /// in indexes of before it was kept for them.
    pub parent: u32,
    pub flags: u32,
}

impl NodeRecord {
    pub(crate) fn encode(&self) -> [u8; NODE_SIZE] {
        let mut out = Encoder::<NODE_SIZE>::new();
        for word in [self.mode, self.uid, self.gid, self.nlink] {
            out.u32(word);
        }
        out.u64(self.mtime.seconds.cast_unsigned());
        out.u32(self.mtime.nanoseconds);
        out.u32(self.rdev);
        out.u64(self.size);
        for word in [self.first, self.count, self.xattr_first, self.xattr_count, self.parent, self.flags] {
            out.u32(word);
        }
        out.finish()
    }

    fn decode(bytes: &[u8; NODE_SIZE]) -> Self {
        Self {
            mode: u32_at(bytes, 0),
            uid: u32_at(bytes, 4),
            gid: u32_at(bytes, 8),
            nlink: u32_at(bytes, 12),
            mtime: Timestamp { seconds: u64_at(bytes, 16).cast_signed(), nanoseconds: u32_at(bytes, 24) },
            rdev: u32_at(bytes, 28),
            size: u64_at(bytes, 32),
            first: u32_at(bytes, 40),
            count: u32_at(bytes, 44),
            xattr_first: u32_at(bytes, 48),
            xattr_count: u32_at(bytes, 52),
            parent: u32_at(bytes, 56),
            flags: u32_at(bytes, 60),
        }
    }

    pub(crate) fn file_type(&self) -> u32 {
        self.mode & libc::S_IFMT
    }

    pub(crate) fn is_directory(&self) -> bool {
        self.file_type() == libc::S_IFDIR
    }
}

/// A directory entry's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EntryRecord {
    pub name_offset: u32,
    /// 0 for a whiteout.
    pub node: u32,
    pub name_length: u16,
    /// As `d_type`, or [`ENTRY_WHITEOUT`].
    pub kind: u8,
}

impl EntryRecord {
    /// `prefix` is the start of the name, so that most comparisons of a search need not touch
    /// the strings.
    pub(crate) fn encode(&self, prefix: u32) -> [u8; ENTRY_SIZE] {
        let mut out = Encoder::<ENTRY_SIZE>::new();
        out.u32(self.name_offset);
        out.u32(self.node);
        out.u32(u32::from(self.name_length) | u32::from(self.kind) << 16);
        out.u32(prefix);
        out.finish()
    }

    fn decode(bytes: &[u8; ENTRY_SIZE]) -> (Self, u32) {
        let packed = u32_at(bytes, 8);
        let record = Self {
            name_offset: u32_at(bytes, 0),
            node: u32_at(bytes, 4),
            name_length: packed as u16,
            kind: (packed >> 16) as u8,
        };
        (record, u32_at(bytes, 12))
    }
}

/// The first four bytes of a name, big-endian and zero-filled, so that comparing prefixes
/// compares names.
pub(crate) fn prefix_of(name: &[u8]) -> u32 {
    let mut first = [0u8; 4];
    let length = name.len().min(4);
    first[..length].copy_from_slice(&name[..length]);
    u32::from_be_bytes(first)
}

pub(crate) fn encode_extent(extent: &Extent) -> [u8; EXTENT_SIZE] {
    let mut out = Encoder::<EXTENT_SIZE>::new();
    out.u64(extent.logical);
    out.u64(extent.offset);
    out.u64(extent.length);
    out.u64(u64::from(extent.layer));
    out.finish()
}

/// An xattr's record: name and value as (offset, length) in strings.
pub(crate) fn encode_xattr(name: (u32, u32), value: (u32, u32)) -> [u8; XATTR_SIZE] {
    let mut out = Encoder::<XATTR_SIZE>::new();
    for word in [name.0, name.1, value.0, value.1] {
        out.u32(word);
    }
    out.finish()
}

/// Lays out the header, with its checksum, over `body` (all sections in order).
pub(crate) fn encode_header(summary: Summary, counts: Counts, body: &[u8]) -> [u8; HEADER_SIZE] {
    let mut out = Encoder::<HEADER_SIZE>::new();
    out.bytes(&MAGIC);
    out.u32(VERSION);
    out.u32(summary.kind as u32);
    out.u32(summary.layers);
    out.u32(0);
    out.u64(summary.total_size);
    for count in [counts.nodes, counts.entries, counts.extents, counts.xattrs, counts.strings] {
        out.u64(count);
    }
    out.u64(xxh64(body));
    let mut header = out.finish();
    let checksum = xxh64(&header[..HEADER_SIZE - 8]);
    header[HEADER_SIZE - 8..].copy_from_slice(&checksum.to_le_bytes());
    header
}

/// Where the bytes of an index are.
#[derive(Debug)]
enum Bytes {
    Owned(Vec<u8>),
    Mapped(Mapping),
}

/// An index, ready to be read: a mapped file, or bytes just laid out.
#[derive(Debug)]
pub(crate) struct Image {
    bytes: Bytes,
    summary: Summary,
    counts: Counts,
    nodes: Range<usize>,
    entries: Range<usize>,
    extents: Range<usize>,
    xattrs: Range<usize>,
    strings: Range<usize>,
    body_checksum: u64,
}

impl Image {
    pub(crate) fn map(file: &File, kind: Kind) -> Result<Self, IndexError> {
        let length = file.metadata().map_err(IndexError::Read)?.len();
        let length = usize::try_from(length).map_err(|_| IndexError::Truncated)?;
        let mapping = Mapping::new(file, length).map_err(IndexError::Read)?;
        Self::parse(Bytes::Mapped(mapping), kind)
    }

    pub(crate) fn from_vec(bytes: Vec<u8>, kind: Kind) -> Result<Self, IndexError> {
        Self::parse(Bytes::Owned(bytes), kind)
    }

    fn parse(bytes: Bytes, expected: Kind) -> Result<Self, IndexError> {
        let slice: &[u8] = match &bytes {
            Bytes::Owned(vec) => vec,
            Bytes::Mapped(mapping) => mapping,
        };
        if slice.len() >= 8 && slice[..8] != MAGIC {
            return Err(IndexError::NotAnIndex);
        }
        let header: &[u8; HEADER_SIZE] = slice.first_chunk().ok_or(IndexError::Truncated)?;
        let version = u32_at(header, 8);
        if version != VERSION {
            return Err(IndexError::Version { found: version, supported: VERSION });
        }
        if xxh64(&header[..HEADER_SIZE - 8]) != u64_at(header, HEADER_SIZE - 8) {
            return Err(IndexError::Damaged { part: "header" });
        }
        if u32_at(header, 12) != expected as u32 {
            return Err(IndexError::OtherKind);
        }
        let summary = Summary { kind: expected, layers: u32_at(header, 16), total_size: u64_at(header, 24) };
        let count = |n: usize| u64_at(header, 32 + 8 * n);
        let counts = Counts {
            nodes: count(0),
            entries: count(1),
            extents: count(2),
            xattrs: count(3),
            strings: count(4),
        };
        let body_checksum = count(5);
        let mut end = HEADER_SIZE;
        let mut section = |records: u64, size: usize| {
            let length = usize::try_from(records).ok().and_then(|n| n.checked_mul(size));
            let start = end;
            end = length.and_then(|length| start.checked_add(length)).ok_or(IndexError::Truncated)?;
            Ok::<_, IndexError>(start..end)
        };
        let nodes = section(counts.nodes, NODE_SIZE)?;
        let entries = section(counts.entries, ENTRY_SIZE)?;
        let extents = section(counts.extents, EXTENT_SIZE)?;
        let xattrs = section(counts.xattrs, XATTR_SIZE)?;
        let strings = section(counts.strings, 1)?;
        if end != slice.len() {
            return Err(IndexError::Truncated);
        }
        let image = Self { bytes, summary, counts, nodes, entries, extents, xattrs, strings, body_checksum };
        match image.node(ROOT_ID) {
            Ok(root) if root.is_directory() => Ok(image),
            _ => Err(IndexError::Damaged { part: "root" }),
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Owned(vec) => vec,
            Bytes::Mapped(mapping) => mapping,
        }
    }

    /// Lets go of a mapping's pages, which come back when they are read.
    pub(crate) fn release(&self) {
        if let Bytes::Mapped(mapping) = &self.bytes {
            mapping.release();
        }
    }

    pub(crate) fn summary(&self) -> Summary {
        self.summary
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// The body's checksum, which tells indexes apart.
    pub(crate) fn fingerprint(&self) -> u64 {
        self.body_checksum
    }

    /// Checks the body against the checksum in the header: reads the whole file.
    pub(crate) fn verify(&self) -> Result<(), IndexError> {
        if xxh64(&self.bytes()[HEADER_SIZE..]) == self.body_checksum {
            Ok(())
        } else {
            Err(IndexError::Damaged { part: "body" })
        }
    }

    fn record<const N: usize>(&self, section: &Range<usize>, index: usize) -> Result<&[u8; N], Corrupt> {
        let start =
            index.checked_mul(N).and_then(|offset| section.start.checked_add(offset)).ok_or(Corrupt)?;
        let end = start.checked_add(N).filter(|end| *end <= section.end).ok_or(Corrupt)?;
        self.bytes().get(start..end).and_then(|slice| slice.first_chunk()).ok_or(Corrupt)
    }

    pub(crate) fn node(&self, id: u32) -> Result<NodeRecord, Corrupt> {
        let index = id.checked_sub(1).ok_or(Corrupt)?;
        self.record(&self.nodes, index as usize).map(NodeRecord::decode)
    }

    /// Entry `index` of the whole table, with its name.
    pub(crate) fn entry(&self, index: u32) -> Result<(EntryRecord, &[u8]), Corrupt> {
        let (record, _) = EntryRecord::decode(self.record(&self.entries, index as usize)?);
        let name = self.string(record.name_offset, u32::from(record.name_length))?;
        Ok((record, name))
    }

    /// The entries of a directory, as indexes into the whole table.
    pub(crate) fn entries_of(&self, directory: &NodeRecord) -> Result<Range<u32>, Corrupt> {
        let end = directory.first.checked_add(directory.count).ok_or(Corrupt)?;
        if directory.is_directory() && u64::from(end) <= self.counts.entries {
            Ok(directory.first..end)
        } else {
            Err(Corrupt)
        }
    }

    /// Finds a name in a directory by binary search: its index in the entry table.
    pub(crate) fn search(&self, directory: &NodeRecord, name: &[u8]) -> Result<Option<u32>, Corrupt> {
        let Range { start: mut low, end: mut high } = self.entries_of(directory)?;
        let prefix = prefix_of(name);
        while low < high {
            let middle = low + (high - low) / 2;
            let (record, found) = EntryRecord::decode(self.record(&self.entries, middle as usize)?);
            let order = match found.cmp(&prefix) {
                std::cmp::Ordering::Equal => {
                    self.string(record.name_offset, u32::from(record.name_length))?.cmp(name)
                }
                order => order,
            };
            match order {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return Ok(Some(middle)),
            }
        }
        Ok(None)
    }

    /// Looks a name up in a directory: the node id.
    pub(crate) fn lookup(&self, directory: &NodeRecord, name: &[u8]) -> Result<Option<u32>, Corrupt> {
        let Some(index) = self.search(directory, name)? else { return Ok(None) };
        let (record, _) = EntryRecord::decode(self.record(&self.entries, index as usize)?);
        Ok(Some(record.node))
    }

    /// Every name of the given nodes and of the directories above them: the directory's id and the name.
    ///
    /// Costs as much as the directories concerned have names, unless a node has several names: the
    /// others are then looked for among all names, 16 bytes each, which are read from the front.
    pub(crate) fn names_of(&self, wanted: &HashSet<u32>) -> Result<Vec<(u32, Name)>, Corrupt> {
        let mut names = Vec::new();
        let mut seen: HashSet<u32> = HashSet::from([ROOT_ID]);
        let mut below: HashMap<u32, HashSet<u32>> = HashMap::new();
        let mut pending: Vec<u32> = wanted.iter().copied().collect();
        let mut many: HashSet<u32> = HashSet::new();
        while let Some(id) = pending.pop() {
            if !seen.insert(id) {
                continue;
            }
            let node = self.node(id)?;
            if !node.is_directory() && (node.nlink > 1 || node.parent == 0) {
                many.insert(id);
            } else {
                below.entry(node.parent).or_default().insert(id);
                pending.push(node.parent);
            }
        }
        if !many.is_empty() {
            let mut found: HashMap<u32, HashSet<u32>> = HashMap::new();
            for directory in 1..=u32::try_from(self.counts.nodes).map_err(|_| Corrupt)? {
                let node = self.node(directory)?;
                if !node.is_directory() {
                    continue;
                }
                for index in self.entries_of(&node)? {
                    let (entry, _) = EntryRecord::decode(self.record(&self.entries, index as usize)?);
                    if many.contains(&entry.node) {
                        found.entry(directory).or_default().insert(entry.node);
                    }
                }
            }
            for (directory, children) in found {
                let mut at = directory;
                below.entry(directory).or_default().extend(children);
                // The way up, as far as it is not known.
                while seen.insert(at) {
                    let node = self.node(at)?;
                    below.entry(node.parent).or_default().insert(at);
                    at = node.parent;
                }
            }
        }
        for (directory, children) in below {
            let record = self.node(directory)?;
            let mut left = children.len();
            for index in self.entries_of(&record)? {
                let (entry, _) = EntryRecord::decode(self.record(&self.entries, index as usize)?);
                if children.contains(&entry.node) {
                    names.push((directory, self.entry(index)?.1.into()));
                    // A node of one name is found once; of those with more, all names are wanted.
                    left = left.saturating_sub(usize::from(many.is_empty()));
                    if left == 0 && many.is_empty() {
                        break;
                    }
                }
            }
        }
        Ok(names)
    }

    pub(crate) fn extent(&self, node: &NodeRecord, index: u32) -> Result<Extent, Corrupt> {
        if index >= node.count {
            return Err(Corrupt);
        }
        let index = node.first.checked_add(index).ok_or(Corrupt)?;
        let bytes: &[u8; EXTENT_SIZE] = self.record(&self.extents, index as usize)?;
        Ok(Extent {
            logical: u64_at(bytes, 0),
            offset: u64_at(bytes, 8),
            length: u64_at(bytes, 16),
            layer: u32_at(bytes, 24),
        })
    }

    pub(crate) fn link_target(&self, node: &NodeRecord) -> Result<&[u8], Corrupt> {
        self.string(node.first, node.count)
    }

    /// Name and value of a node's xattr number `index`.
    pub(crate) fn xattr(&self, node: &NodeRecord, index: u32) -> Result<(&[u8], &[u8]), Corrupt> {
        if index >= node.xattr_count {
            return Err(Corrupt);
        }
        let index = node.xattr_first.checked_add(index).ok_or(Corrupt)?;
        let bytes: &[u8; XATTR_SIZE] = self.record(&self.xattrs, index as usize)?;
        let name = self.string(u32_at(bytes, 0), u32_at(bytes, 4))?;
        let value = self.string(u32_at(bytes, 8), u32_at(bytes, 12))?;
        Ok((name, value))
    }

    fn string(&self, offset: u32, length: u32) -> Result<&[u8], Corrupt> {
        let start = self.strings.start.checked_add(offset as usize).ok_or(Corrupt)?;
        let end = start.checked_add(length as usize).filter(|end| *end <= self.strings.end).ok_or(Corrupt)?;
        self.bytes().get(start..end).ok_or(Corrupt)
    }
}

impl From<Corrupt> for io::Error {
    fn from(_: Corrupt) -> Self {
        Self::from_raw_os_error(libc::EIO)
    }
}

fn u32_at<const N: usize>(bytes: &[u8; N], offset: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, offset))
}

fn u64_at<const N: usize>(bytes: &[u8; N], offset: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, offset))
}

/// Callers pass offsets that are constants within `N`.
fn array_at<const N: usize, const M: usize>(bytes: &[u8; N], offset: usize) -> [u8; M] {
    let mut out = [0; M];
    out.copy_from_slice(&bytes[offset..offset + M]);
    out
}

/// Fills a record of fixed size from the front; what is left stays zero.
struct Encoder<const N: usize> {
    bytes: [u8; N],
    used: usize,
}

impl<const N: usize> Encoder<N> {
    fn new() -> Self {
        Self { bytes: [0; N], used: 0 }
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.bytes[self.used..self.used + bytes.len()].copy_from_slice(bytes);
        self.used += bytes.len();
    }

    fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }

    fn finish(self) -> [u8; N] {
        self.bytes
    }
}
