//! Seals: whether a merged index is still the file that was verified.
//!
//! Opening an index checks its header only, so that a start costs the same for any image. Its body
//! is covered by a checksum, whose check reads all of it. So a seal beside the index
//! (`merged/<hex>.seal`) says which file passed that check: inode, size and the time of its last
//! change, which the kernel sets and no program can set back. A file that was written to, cut,
//! restored or replaced has another one: then it is checked whole, and sealed again or made again
//! from the layers. An index that has just been made need not wait for the disk, as its layers are
//! there: its seal names the boot (proc(5), boot_id) that it holds for, after which the index is
//! checked whole once, and sealed for good. What a seal cannot see is a disk that gives other bytes than were written: that
//! is `image verify`'s part, and until then every reader checks what it reads.

use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::{Result, Store, StoreError, containers, read_limited};

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

fn text_of_this_boot(file: &Metadata) -> String {
    format!("{} boot {}\n", text(file).trim_end(), containers::boot_id())
}

/// Whether `file`, open at `path`, is as it was when it was sealed.
#[must_use]
pub fn is_sealed(path: &Path, file: &File) -> bool {
    let Ok(metadata) = file.metadata() else { return false };
    match read_limited(&place(path), MAX_SEAL_BYTES) {
        Ok(Some(found)) => {
            found == text(&metadata).as_bytes() || found == text_of_this_boot(&metadata).as_bytes()
        }
        _ => false,
    }
}

impl Store {
    /// Seals a file that has been verified, in its place.
    ///
    /// # Errors
    /// The file cannot be synced, the seal not be written.
    pub(super) fn seal(&self, path: &Path, file: &File) -> Result<()> {
        file.sync_all().map_err(StoreError::io("sync", path))?;
        let metadata = file.metadata().map_err(StoreError::io("look at", path))?;
        self.write(&place(path), text(&metadata).as_bytes())
    }

    /// Seals a file that has just been written, and that need not be on the disk yet.
    ///
    /// # Errors
    /// The seal cannot be written.
    pub(super) fn seal_for_this_boot(&self, path: &Path, file: &File) -> Result<()> {
        let metadata = file.metadata().map_err(StoreError::io("look at", path))?;
        self.write_unsynced(&place(path), text_of_this_boot(&metadata).as_bytes())
    }
}
