//! Writing tar archives: ustar headers, with PAX records for what does not fit them.
//!
//! The same entries give the same bytes: nothing of the time or of the machine gets in. Every value
//! survives: names of any length and bytes, nanoseconds, large ids and sizes, extended attributes
//! (`SCHILY.xattr.`, as GNU tar, libarchive and Go write and read them). A file with large holes is
//! stored as GNU's sparse format 1.0, which the same programs read; so a sparse terabyte costs what
//! it holds.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use crate::index::Timestamp;

const BLOCK: usize = 512;

/// Bytes read at once.
const COPY_BYTES: usize = 1 << 18;

/// Holes of less than this in all are written out: a map and a reader that knows it cost more.
const SPARSE_FROM_BYTES: u64 = 1 << 20;

/// Runs of data of one sparse file; beyond, holes are written out. The reader of this crate takes
/// as many.
const MAX_RUNS: usize = 1 << 20;

/// What is written of a file besides its content.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Names joined by slashes, without one in front or behind; empty for the root, as `./`.
    pub path: &'a [u8],
    /// What it is.
    pub kind: Kind<'a>,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification.
    pub mtime: Timestamp,
    /// Extended attributes, sorted by name.
    pub xattrs: &'a [(Vec<u8>, Vec<u8>)],
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind<'a> {
    /// A directory.
    Directory,
    /// A regular file; [`Writer::file`] writes it.
    File,
    /// Another name of the file at this path of the archive.
    Link(&'a [u8]),
    /// A symbolic link to this.
    Symlink(&'a [u8]),
    /// A character device: major and minor number.
    CharDevice(u32, u32),
    /// A block device.
    BlockDevice(u32, u32),
    /// A named pipe.
    Fifo,
}

/// A regular file's data.
pub trait Content {
    /// Reads at an offset; fewer bytes than asked for only at the end.
    ///
    /// # Errors
    /// As pread(2).
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// The first run of data at `offset` or after it, as start and end; None where only a hole follows.
    ///
    /// # Errors
    /// As lseek(2).
    fn next_run(&self, offset: u64) -> io::Result<Option<(u64, u64)>>;
}

impl Content for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match FileExt::read_at(self, &mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn next_run(&self, offset: u64) -> io::Result<Option<(u64, u64)>> {
        let at = i64::try_from(offset).map_err(|_| Errno::EFBIG)?;
        let start = match lseek(self, at, Whence::SeekData) {
            Ok(start) => start,
            Err(Errno::ENXIO) => return Ok(None),
            // A filesystem that cannot tell: all is data.
            Err(_) => return Ok(Some((offset, u64::MAX))),
        };
        let end = lseek(self, start, Whence::SeekHole)?;
        Ok(Some((start.cast_unsigned(), end.cast_unsigned())))
    }
}

/// Writes one archive.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    buffer: Vec<u8>,
}

impl<W: Write> Writer<W> {
    /// Begins an archive.
    pub fn new(out: W) -> Self {
        Self { out, buffer: Vec::new() }
    }

    /// Writes an entry without data.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn entry(&mut self, entry: &Entry<'_>) -> io::Result<()> {
        self.header(entry, 0, Vec::new(), None)
    }

    /// Writes a regular file of `size` bytes. Where its content has fewer by now, zeros take their place.
    ///
    /// # Errors
    /// Those of the writer and of the content.
    pub fn file(&mut self, entry: &Entry<'_>, size: u64, content: &dyn Content) -> io::Result<()> {
        match runs(size, content)? {
            Some(runs) => self.sparse(entry, size, &runs, content),
            None => {
                self.header(entry, size, Vec::new(), None)?;
                self.data(content, (0, size))?;
                self.pad(size)
            }
        }
    }

    /// GNU's sparse format 1.0: the map, in decimal lines, comes before the data of the runs.
    fn sparse(
        &mut self,
        entry: &Entry<'_>,
        size: u64,
        runs: &[(u64, u64)],
        content: &dyn Content,
    ) -> io::Result<()> {
        let mut map = format!("{}\n", runs.len());
        for (start, end) in runs {
            map.push_str(&format!("{start}\n{}\n", end - start));
        }
        let map_bytes = map.len().next_multiple_of(BLOCK);
        let data: u64 = runs.iter().map(|(start, end)| end - start).sum();
        let mut records = Vec::new();
        record(&mut records, b"GNU.sparse.major", b"1");
        record(&mut records, b"GNU.sparse.minor", b"0");
        record(&mut records, b"GNU.sparse.name", entry.path);
        record(&mut records, b"GNU.sparse.realsize", size.to_string().as_bytes());
        // The name that a program sees that does not know the format.
        let (directory, name) = match entry.path.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&entry.path[..=slash], &entry.path[slash + 1..]),
            None => (&b""[..], entry.path),
        };
        let shown = [directory, b"GNUSparseFile.0/", name].concat();
        self.header(entry, map_bytes as u64 + data, records, Some(&shown))?;
        self.out.write_all(map.as_bytes())?;
        self.pad(map.len() as u64)?;
        for run in runs {
            self.data(content, *run)?;
        }
        self.pad(data)
    }

    fn data(&mut self, content: &dyn Content, (start, end): (u64, u64)) -> io::Result<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(COPY_BYTES, 0);
        let mut at = start;
        while at < end {
            let want = usize::try_from(end - at).unwrap_or(COPY_BYTES).min(COPY_BYTES);
            let got = content.read_at(&mut buffer[..want], at)?;
            buffer[got..want].fill(0);
            self.out.write_all(&buffer[..want])?;
            at += want as u64;
        }
        self.buffer = buffer;
        Ok(())
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let rest = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        self.out.write_all(&[0; BLOCK][..rest as usize])
    }

    fn header(
        &mut self,
        entry: &Entry<'_>,
        size: u64,
        mut records: Vec<u8>,
        shown: Option<&[u8]>,
    ) -> io::Result<()> {
        let mut path = shown.unwrap_or(entry.path).to_vec();
        if path.is_empty() {
            path.extend_from_slice(b"./");
        } else if entry.kind == Kind::Directory {
            path.push(b'/');
        }
        let link = match entry.kind {
            Kind::Link(target) | Kind::Symlink(target) => target,
            _ => b"",
        };
        let mut header = Header::new();
        if !header.set_path(&path) && shown.is_none() {
            record(&mut records, b"path", &path);
        }
        if !header.set_text(157, 100, link) {
            record(&mut records, b"linkpath", link);
        }
        for (at, digits, value, key) in [
            (108, 7, u64::from(entry.uid), &b"uid"[..]),
            (116, 7, u64::from(entry.gid), b"gid"),
            (124, 11, size, b"size"),
        ] {
            if !header.set_number(at, digits, value) {
                record(&mut records, key, value.to_string().as_bytes());
            }
        }
        let Timestamp { seconds, nanoseconds } = entry.mtime;
        let whole = u64::try_from(seconds).ok();
        let fits = header.set_number(136, 11, whole.unwrap_or(0)) && whole.is_some();
        if !fits || nanoseconds != 0 {
            record(&mut records, b"mtime", time(entry.mtime).as_bytes());
        }
        for (name, value) in entry.xattrs {
            record(&mut records, &[b"SCHILY.xattr.", &name[..]].concat(), value);
        }
        header.set_number(100, 7, u64::from(entry.mode & 0o7777));
        header.bytes[156] = match entry.kind {
            Kind::File => b'0',
            Kind::Link(_) => b'1',
            Kind::Symlink(_) => b'2',
            Kind::CharDevice(..) => b'3',
            Kind::BlockDevice(..) => b'4',
            Kind::Directory => b'5',
            Kind::Fifo => b'6',
        };
        if let Kind::CharDevice(major, minor) | Kind::BlockDevice(major, minor) = entry.kind {
            header.set_number(329, 7, major.into());
            header.set_number(337, 7, minor.into());
        }
        if !records.is_empty() {
            self.records(&records, &path)?;
        }
        self.out.write_all(&header.finish())
    }

    /// The extended header before an entry.
    fn records(&mut self, records: &[u8], path: &[u8]) -> io::Result<()> {
        let mut header = Header::new();
        let shown = [b"PaxHeaders/", &path[..path.len().min(80)]].concat();
        header.set_text(0, 100, shown.strip_suffix(b"/").unwrap_or(&shown));
        header.set_number(100, 7, 0o644);
        header.set_number(124, 11, records.len() as u64);
        header.bytes[156] = b'x';
        self.out.write_all(&header.finish())?;
        self.out.write_all(records)?;
        self.pad(records.len() as u64)
    }

    /// Ends the archive and gives the writer back.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.flush()?;
        Ok(self.out)
    }
}

/// The runs of data of a file that is worth storing as sparse, the last one ending at its size.
fn runs(size: u64, content: &dyn Content) -> io::Result<Option<Vec<(u64, u64)>>> {
    if size < SPARSE_FROM_BYTES {
        return Ok(None);
    }
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let (mut at, mut data) = (0, 0);
    while at < size {
        let Some((start, end)) = content.next_run(at)? else { break };
        let (start, end) = (start.min(size), end.min(size));
        if start < end {
            runs.push((start, end));
            data += end - start;
        }
        if runs.len() > MAX_RUNS {
            return Ok(None);
        }
        at = end.max(at + 1);
    }
    if size - data < SPARSE_FROM_BYTES {
        return Ok(None);
    }
    if runs.last().is_none_or(|(_, end)| *end < size) {
        runs.push((size, size));
    }
    Ok(Some(runs))
}

/// A PAX record, whose length counts itself.
fn record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    out.extend_from_slice(length.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// A time as PAX writes it; before 1970 the fraction counts backwards.
fn time(time: Timestamp) -> String {
    let Timestamp { seconds, nanoseconds } = time;
    let (sign, whole, fraction) = if seconds < 0 && nanoseconds > 0 {
        ("-", (seconds + 1).unsigned_abs(), 1_000_000_000 - nanoseconds)
    } else {
        (if seconds < 0 { "-" } else { "" }, seconds.unsigned_abs(), nanoseconds)
    };
    if fraction == 0 {
        return format!("{sign}{whole}");
    }
    format!("{sign}{whole}.{fraction:09}").trim_end_matches('0').to_owned()
}

struct Header {
    bytes: [u8; BLOCK],
}

impl Header {
    fn new() -> Self {
        let mut header = Self { bytes: [0; BLOCK] };
        header.bytes[257..265].copy_from_slice(b"ustar\x0000");
        for (at, digits) in [(100, 7), (108, 7), (116, 7), (124, 11), (136, 11), (329, 7), (337, 7)] {
            header.set_number(at, digits, 0);
        }
        header
    }

    /// Sets the name, split over two fields where that helps; false where it does not fit and is cut.
    fn set_path(&mut self, path: &[u8]) -> bool {
        if self.set_text(0, 100, path) {
            return path.is_ascii();
        }
        let split = (1..path.len().min(156)).rev().find(|at| path[*at] == b'/' && path.len() - at - 1 <= 100);
        let Some(slash) = split.filter(|at| *at < path.len() - 1) else { return false };
        self.bytes[..100].fill(0);
        self.set_text(0, 100, &path[slash + 1..]);
        self.set_text(345, 155, &path[..slash]);
        path.is_ascii()
    }

    /// False where the text is cut, or is none that every reader takes for the same.
    fn set_text(&mut self, at: usize, size: usize, text: &[u8]) -> bool {
        let length = text.len().min(size);
        self.bytes[at..at + length].copy_from_slice(&text[..length]);
        length == text.len() && (at == 0 || at == 345 || text.is_ascii())
    }

    /// False, and zero, where the number has too many digits.
    fn set_number(&mut self, at: usize, digits: usize, value: u64) -> bool {
        let fits = value >> (3 * digits) == 0;
        let mut rest = if fits { value } else { 0 };
        for digit in self.bytes[at..at + digits].iter_mut().rev() {
            *digit = b'0' + (rest & 7) as u8;
            rest >>= 3;
        }
        fits
    }

    fn finish(mut self) -> [u8; BLOCK] {
        self.bytes[148..156].fill(b' ');
        let sum: u32 = self.bytes.iter().map(|byte| u32::from(*byte)).sum();
        self.set_number(148, 6, sum.into());
        self.bytes[154] = 0;
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use crate::pack::{Limits, index_tar};

    fn plain<'a>(path: &'a [u8], kind: Kind<'a>) -> Entry<'a> {
        let mtime = Timestamp { seconds: 1_000_000_000, nanoseconds: 0 };
        Entry { path, kind, mode: 0o755, uid: 0, gid: 0, mtime, xattrs: &[] }
    }

    #[test]
    fn times_are_written_as_pax_reads_them() {
        let table = [
            ((0, 0), "0"),
            ((5, 0), "5"),
            ((5, 120_000_000), "5.12"),
            ((5, 1), "5.000000001"),
            ((-1, 0), "-1"),
            ((-1, 500_000_000), "-0.5"),
            ((-2, 250_000_000), "-1.75"),
        ];
        for ((seconds, nanoseconds), text) in table {
            assert_eq!(time(Timestamp { seconds, nanoseconds }), text);
        }
    }

    #[test]
    fn a_records_length_counts_itself() {
        for (value, expected) in
            [("", "6 k=\n\0"), ("v", "6 k=v\n"), ("123", "8 k=123\n"), ("1234", "9 k=1234\n")]
        {
            let mut out = Vec::new();
            record(&mut out, b"k", value.as_bytes());
            let length: usize =
                String::from_utf8(out.clone()).unwrap().split(' ').next().unwrap().parse().unwrap();
            assert_eq!(length, out.len(), "{expected}");
        }
        for size in 90..110 {
            let mut out = Vec::new();
            record(&mut out, b"k", &vec![b'v'; size]);
            let length: usize =
                String::from_utf8(out.clone()).unwrap().split(' ').next().unwrap().parse().unwrap();
            assert_eq!(length, out.len());
        }
    }

    #[test]
    fn every_value_survives_into_an_index() {
        let deep = [b"d/".repeat(120), b"name".to_vec()].concat();
        let long = vec![b'n'; 255];
        let xattrs =
            [(b"security.capability".to_vec(), vec![0, 1, 2, b'\n', 255]), (b"user.a".to_vec(), vec![])];
        let mut writer = Writer::new(Vec::new());
        let early = Timestamp { seconds: -7, nanoseconds: 250_000_000 };
        let target = [b"t/".repeat(80), b"x".to_vec()].concat();
        let entries = [
            Entry { mode: 0o1777, ..plain(b"", Kind::Directory) },
            Entry { uid: 4_000_000_000, gid: 3_000_000, ..plain(&deep, Kind::Directory) },
            Entry { mtime: early, xattrs: &xattrs, ..plain(&long, Kind::Fifo) },
            plain(b"null", Kind::CharDevice(1, 3)),
            plain("\u{e9}\u{ff}".as_bytes(), Kind::Symlink(&target)),
        ];
        for entry in &entries {
            writer.entry(entry).unwrap();
        }
        let mut content = tempfile::tempfile().unwrap();
        content.write_all(b"hello").unwrap();
        writer.file(&Entry { mode: 0o4755, ..plain(b"file", Kind::File) }, 7, &content).unwrap();
        writer.entry(&plain(b"again", Kind::Link(b"file"))).unwrap();
        content.set_len(1 << 40).unwrap();
        writer.file(&plain(b"sparse", Kind::File), 1 << 40, &content).unwrap();
        let bytes = writer.finish().unwrap();
        assert!(bytes.len() < 1 << 20, "holes were written out");
        let index = index_tar(&bytes[..], &Limits::default()).unwrap();
        let image = index.image();
        let root = image.node(1).unwrap();
        assert_eq!(root.mode & 0o7777, 0o1777);
        let find = |name: &[u8]| image.node(image.lookup(&root, name).unwrap().unwrap()).unwrap();
        let fifo = find(&long);
        assert_eq!((fifo.mode, fifo.mtime, fifo.xattr_count), (libc::S_IFIFO | 0o755, early, 2));
        assert_eq!(image.xattr(&fifo, 0).unwrap(), (&xattrs[0].0[..], &xattrs[0].1[..]));
        assert_eq!(image.xattr(&fifo, 1).unwrap(), (&xattrs[1].0[..], &xattrs[1].1[..]));
        assert_eq!(find(b"null").rdev, 1 << 8 | 3);
        assert_eq!(image.link_target(&find("\u{e9}\u{ff}".as_bytes())).unwrap(), target);
        let file = find(b"file");
        assert_eq!((file.mode & 0o7777, file.nlink, file.size), (0o4755, 2, 7));
        let sparse = find(b"sparse");
        assert_eq!(sparse.size, 1 << 40);
        let mut node = root;
        for name in deep.split(|byte| *byte == b'/') {
            node = image.node(image.lookup(&node, name).unwrap().unwrap()).unwrap();
        }
        assert_eq!((node.uid, node.gid), (4_000_000_000, 3_000_000));
    }
}
