//! Large files written once, from their begin to their end: past the page cache after a while.

use std::fs::File;
use std::io::{self, Write as _};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// What of a file is written through the page cache; the rest goes past it.
///
/// Most of a large layer is not read soon, and the cache's pages cost more than the disk: the
/// 403 MB layer of the benchmark's Debian image took 1.0 s buffered and 0.3 s direct.
pub(super) const CACHED_BYTES: u64 = 32 << 20;

/// Offset, length and address of a direct write are multiples of this: the largest logical block
/// that Linux file systems have on usual disks (open(2), O_DIRECT).
pub(crate) const DIRECT_ALIGNMENT: usize = 4096;

/// How the next bytes go to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WriteMode {
    /// Through the page cache; direct writes not tried yet.
    Cached,
    /// Past the page cache.
    Direct,
    /// Through the page cache to the end: direct writes are not to be had, or the last bytes came.
    CachedToTheEnd,
}

/// A file being written; its place is at its end.
#[derive(Debug)]
pub(super) struct LargeFile {
    file: File,
    written: u64,
    mode: WriteMode,
}

impl LargeFile {
    /// Goes on with a file that has this many bytes and is at its end.
    pub(super) fn new(file: File, written: u64) -> Self {
        Self { file, written, mode: WriteMode::Cached }
    }

    /// A new file of which everything goes through the page cache: nobody waits for the disk.
    pub(super) fn cached(file: File) -> Self {
        Self { file, written: 0, mode: WriteMode::CachedToTheEnd }
    }

    /// Appends. Chunks whose address and length are multiples of 4096 are written the fastest.
    pub(super) fn write(&mut self, chunk: &[u8]) -> io::Result<()> {
        crate::sys::fault::io("store")?;
        let aligned = chunk.as_ptr().align_offset(DIRECT_ALIGNMENT) == 0
            && chunk.len().is_multiple_of(DIRECT_ALIGNMENT)
            && self.written.is_multiple_of(DIRECT_ALIGNMENT as u64);
        match self.mode {
            WriteMode::Cached if aligned && self.written >= CACHED_BYTES => {
                self.mode =
                    if self.set_direct(true).is_ok() { WriteMode::Direct } else { WriteMode::CachedToTheEnd };
            }
            WriteMode::Direct if !aligned => self.stop_direct()?,
            _ => {}
        }
        let result = match (self.mode, self.file.write_all(chunk)) {
            // A file system that accepts the flag and not the write: nothing has been written.
            (WriteMode::Direct, Err(error)) if error.raw_os_error() == Some(libc::EINVAL) => {
                self.stop_direct()?;
                self.file.write_all(chunk)
            }
            (_, result) => result,
        };
        self.written += chunk.len() as u64;
        result
    }

    pub(super) fn written(&self) -> u64 {
        self.written
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        crate::sys::fault::io("store")?;
        self.file.sync_all()
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    fn stop_direct(&mut self) -> io::Result<()> {
        self.mode = WriteMode::CachedToTheEnd;
        Ok(self.set_direct(false)?)
    }

    fn set_direct(&self, on: bool) -> Result<(), Errno> {
        let mut flags = OFlag::from_bits_retain(fcntl(&self.file, FcntlArg::F_GETFL)?);
        flags.set(OFlag::O_DIRECT, on);
        fcntl(&self.file, FcntlArg::F_SETFL(flags)).map(drop)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn large_files_arrive_whole_past_the_cache() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let chunk_bytes = 1 << 20;
        let buffer = vec![7_u8; chunk_bytes + DIRECT_ALIGNMENT];
        let start = buffer.as_ptr().align_offset(DIRECT_ALIGNMENT);
        let mut writer = LargeFile::new(File::create(&path).unwrap(), 0);
        for _ in 0..(CACHED_BYTES as usize / chunk_bytes + 4) {
            writer.write(&buffer[start..start + chunk_bytes]).unwrap();
        }
        writer.write(&buffer[..1000]).unwrap();
        let written = std::fs::read(&path).unwrap();
        assert_eq!(written.len() as u64, CACHED_BYTES + 4 * chunk_bytes as u64 + 1000);
        assert!(written.iter().all(|byte| *byte == 7));
    }
}
