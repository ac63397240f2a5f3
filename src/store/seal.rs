//! Seals: whether a merged index is still the file that was verified.
//!
//! Opening an index checks its header only, so that a start costs the same for any image. Its body
//! is covered by a checksum, whose check reads all of it. So a seal beside the index
//! (`merged/<hex>.seal`) says which file passed that check: inode, size and the time of its last
//! change, which the kernel sets and no program can set back. A file that was written to, cut,
//! restored or replaced has another one: then it is checked whole, and sealed again or made again
//! from the layers. What a seal cannot see is a disk that gives other bytes than were written: that
//! is `image verify`'s part, and until then every reader checks what it reads.

use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::{Result, Store, read_limited};

/// A seal is one short line.
const MAX_SEAL_BYTES: u64 = 256;

pub(super) const SUFFIX: &str = ".seal";

fn place(sealed: &Path) -> PathBuf {
    let mut name = sealed.as_os_str().to_owned();
    name.push(SUFFIX);
    name.into()
}

fn text(file: &Metadata) -> String {
    format!("1 {} {} {}.{:09}\n", file.ino(), file.len(), file.ctime(), file.ctime_nsec())
}

impl Store {
    /// Whether `file`, open at `path`, is as it was when it was sealed.
    pub(super) fn is_sealed(&self, path: &Path, file: &File) -> bool {
        let expected = file.metadata().map(|file| text(&file));
        let found = read_limited(&place(path), MAX_SEAL_BYTES);
        matches!((expected, found), (Ok(expected), Ok(Some(found))) if expected.as_bytes() == found)
    }

    /// Seals a file that has been verified, in its place.
    ///
    /// # Errors
    /// The seal cannot be written.
    pub(super) fn seal(&self, path: &Path, file: &File) -> Result<()> {
        let metadata = file.metadata().map_err(super::StoreError::io("look at", path))?;
        self.write(&place(path), text(&metadata).as_bytes())
    }
}
