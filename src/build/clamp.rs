//! `rewrite-timestamp=true`: a layer's stream with no time later than SOURCE_DATE_EPOCH.
//!
//! Works on the tar that this engine wrote itself: ustar headers, and PAX records for a time's fraction,
//! which is cut, so that the same files give the same bytes.

use std::io::{self, Read};

const BLOCK: usize = 512;
/// Extension records of one entry: far more than this engine writes.
const MAX_RECORDS_BYTES: u64 = 64 << 20;

/// A tar whose times are clamped as it is read.
pub(super) struct Clamped<R> {
    inner: R,
    clamp_s: i64,
    /// What is ready to be read.
    ready: Vec<u8>,
    at: usize,
    /// Bytes of data to pass through.
    data: u64,
    ended: bool,
}

impl<R: Read> Clamped<R> {
    pub(super) fn new(inner: R, clamp_s: i64) -> Self {
        Self { inner, clamp_s, ready: Vec::new(), at: 0, data: 0, ended: false }
    }

    fn next_header(&mut self) -> io::Result<()> {
        self.ready.clear();
        self.at = 0;
        let mut records: Option<([u8; BLOCK], Vec<u8>)> = None;
        loop {
            let mut block = [0; BLOCK];
            match self.inner.read(&mut block)? {
                0 => {
                    self.ended = true;
                    return Ok(());
                }
                count => self.inner.read_exact(&mut block[count..])?,
            }
            if block.iter().all(|byte| *byte == 0) {
                self.ready.extend_from_slice(&block);
                return Ok(());
            }
            let size = number(&block[124..136]);
            if block[156] == b'x' {
                if size > MAX_RECORDS_BYTES {
                    return Err(io::Error::other("the layer's extension records are too large"));
                }
                let mut bytes = vec![0; usize::try_from(size).unwrap_or(0).next_multiple_of(BLOCK)];
                self.inner.read_exact(&mut bytes)?;
                bytes.truncate(usize::try_from(size).unwrap_or(0));
                records = Some((block, bytes));
                continue;
            }
            let mut size = size;
            if let Some((header, bytes)) = records.take() {
                let (kept, time, long_size) = without_time(&bytes);
                size = long_size.unwrap_or(size);
                let time = time.unwrap_or_else(|| number(&block[136..148]).cast_signed());
                set_time(&mut block, time.min(self.clamp_s));
                if !kept.is_empty() {
                    let mut header = header;
                    let text = format!("{:011o}", kept.len());
                    header[124..135].copy_from_slice(text.as_bytes());
                    seal(&mut header);
                    self.ready.extend_from_slice(&header);
                    self.ready.extend_from_slice(&kept);
                    self.ready.resize(self.ready.len().next_multiple_of(BLOCK), 0);
                }
            } else {
                let time = number(&block[136..148]).cast_signed();
                set_time(&mut block, time.min(self.clamp_s));
            }
            self.ready.extend_from_slice(&block);
            let has_data = matches!(block[156], b'0' | 0 | b'7');
            self.data = if has_data { size.next_multiple_of(BLOCK as u64) } else { 0 };
            return Ok(());
        }
    }
}

impl<R: Read> Read for Clamped<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.at < self.ready.len() {
                let count = (self.ready.len() - self.at).min(buffer.len());
                buffer[..count].copy_from_slice(&self.ready[self.at..self.at + count]);
                self.at += count;
                return Ok(count);
            }
            if self.ended || buffer.is_empty() {
                return Ok(0);
            }
            if self.data > 0 {
                let want = usize::try_from(self.data).unwrap_or(usize::MAX).min(buffer.len());
                let count = self.inner.read(&mut buffer[..want])?;
                if count == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                self.data -= count as u64;
                return Ok(count);
            }
            self.next_header()?;
        }
    }
}

fn number(field: &[u8]) -> u64 {
    let text: String = field.iter().map(|byte| char::from(*byte)).collect();
    u64::from_str_radix(text.trim_matches(['\0', ' ']), 8).unwrap_or(0)
}

fn set_time(block: &mut [u8; BLOCK], seconds: i64) {
    let text = format!("{:011o}", seconds.clamp(0, 0o77_777_777_777));
    block[136..147].copy_from_slice(text.as_bytes());
    seal(block);
}

fn seal(block: &mut [u8; BLOCK]) {
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// The records without that of the time, its whole seconds, and the size where a record has it.
fn without_time(records: &[u8]) -> (Vec<u8>, Option<i64>, Option<u64>) {
    let (mut kept, mut time, mut size) = (Vec::new(), None, None);
    let mut rest = records;
    while let Some(space) = rest.iter().position(|byte| *byte == b' ') {
        let length: usize = String::from_utf8_lossy(&rest[..space]).parse().unwrap_or(0);
        if length <= space || length > rest.len() {
            break;
        }
        let (record, after) = rest.split_at(length);
        rest = after;
        let body = &record[space + 1..length - 1];
        let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        if let Some(value) = body.strip_prefix(b"mtime=") {
            let value = text(value);
            time = value.split('.').next().and_then(|whole| whole.parse().ok());
            continue;
        }
        if let Some(value) = body.strip_prefix(b"size=") {
            size = text(value).parse().ok();
        }
        kept.extend_from_slice(record);
    }
    (kept, time, size)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use fuse_overlay::archive::{Entry, Kind, Writer};
    use fuse_overlay::index::Timestamp;

    use super::*;
    use crate::build::copy::InMemory;

    fn archive(times: [(i64, u32); 3]) -> Vec<u8> {
        let xattrs = [(b"user.a".to_vec(), b"b".to_vec())];
        let mut writer = Writer::new(Vec::new());
        for (number, (seconds, nanoseconds)) in times.into_iter().enumerate() {
            let path = format!("{}{number}", "d/".repeat(80 * number));
            let entry = Entry {
                path: path.as_bytes(),
                kind: Kind::File,
                mode: 0o644,
                uid: 0,
                gid: 0,
                mtime: Timestamp { seconds, nanoseconds },
                xattrs: if number == 1 { &xattrs } else { &[] },
            };
            writer.file(&entry, 700, &InMemory(&[7; 700])).unwrap();
        }
        writer.finish().unwrap()
    }

    #[test]
    fn times_are_clamped_and_nothing_else_changes() {
        let clamped = |bytes: Vec<u8>| {
            let mut out = Vec::new();
            Clamped::new(&bytes[..], 1000).read_to_end(&mut out).unwrap();
            out
        };
        let found = clamped(archive([(2000, 5), (5000, 0), (500, 7)]));
        assert_eq!(found, archive([(1000, 0), (1000, 0), (500, 0)]));
        assert_eq!(clamped(found.clone()), found);
    }
}
