//! Writes that are there whole or not at all.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use super::{Result, Store, StoreError};
use crate::sys::fault;

/// Part of the names under tmp/, so that one process never takes the same twice.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A file or directory under tmp/ that is not in its place yet. Dropped before, it goes away.
#[derive(Debug)]
pub(super) struct Staged {
    path: PathBuf,
    published: bool,
}

impl Staged {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Renames to `place` and makes the new name durable. What is staged must be synced already.
    /// Gives `false` where `place` exists as a directory that is not empty: whoever was first wins.
    pub(super) fn publish(self, place: &Path) -> Result<bool> {
        let is_first = self.publish_unsynced(place)?;
        if is_first && let Some(parent) = place.parent() {
            sync_directory(parent)?;
        }
        Ok(is_first)
    }

    /// Renames to `place`, for what is found out to be missing or torn, and made again then.
    pub(super) fn publish_unsynced(mut self, place: &Path) -> Result<bool> {
        if let Some(root) = self.path.parent().and_then(Path::parent) {
            super::shared::follow_root(root, &self.path, place);
        }
        match fault::io("store").and_then(|()| fs::rename(&self.path, place)) {
            Ok(()) => self.published = true,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty
                ) =>
            {
                return Ok(false);
            }
            Err(error) => return Err(StoreError::io("rename a finished file to", place)(error)),
        }
        Ok(true)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.published {
            // What cannot be removed now is swept by the next collection.
            let _ = fs::remove_dir_all(&self.path).or_else(|_| fs::remove_file(&self.path));
        }
    }
}

impl Store {
    /// A name under tmp/ that nobody else has; nothing is made.
    pub(super) fn stage(&self) -> Staged {
        let nanoseconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{nanoseconds:x}-{number}", std::process::id());
        Staged { path: self.path("tmp").join(name), published: false }
    }

    /// A new directory under tmp/.
    pub(super) fn stage_directory(&self) -> Result<Staged> {
        let staged = self.stage();
        DirBuilder::new()
            .mode(0o700)
            .create(staged.path())
            .map_err(StoreError::io("create", staged.path()))?;
        Ok(staged)
    }

    /// Replaces a file of the store that can be made again.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write_unsynced(&self, place: &Path, bytes: &[u8]) -> Result<()> {
        let staged = self.stage();
        create_file(staged.path())?.write_all(bytes).map_err(StoreError::io("write", staged.path()))?;
        staged.publish_unsynced(place).map(drop)
    }

    /// Replaces a file of the store, durably.
    pub(super) fn write(&self, place: &Path, bytes: &[u8]) -> Result<()> {
        let staged = self.stage();
        write_synced(staged.path(), bytes)?;
        staged.publish(place).map(drop)
    }
}

/// Makes a private directory and its parents; one that exists is left as it is.
pub(super) fn make_directory(path: &Path) -> Result<()> {
    DirBuilder::new().mode(0o700).recursive(true).create(path).map_err(StoreError::io("create", path))
}

/// A new private file.
pub(super) fn create_file(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600);
    fault::io("store").and_then(|()| options.open(path)).map_err(StoreError::io("create", path))
}

/// Writes a new file and waits until it is on the disk.
pub(super) fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = create_file(path)?;
    fault::io("store").and_then(|()| file.write_all(bytes)).map_err(StoreError::io("write", path))?;
    fault::io("store").and_then(|()| file.sync_all()).map_err(StoreError::io("sync", path))
}

/// Makes names in a directory durable.
pub(super) fn sync_directory(path: &Path) -> Result<()> {
    let directory = fault::io("store").and_then(|()| File::open(path));
    directory.and_then(|directory| directory.sync_all()).map_err(StoreError::io("sync", path))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn what_is_dropped_unpublished_goes_away() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let staged = store.stage_directory().unwrap();
        fs::write(staged.path().join("x"), "y").unwrap();
        drop(staged);
        assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
    }

    #[test]
    fn the_first_directory_in_place_wins() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let place = dir.path().join("layers/one");
        for (text, wins) in [("first", true), ("second", false)] {
            let staged = store.stage_directory().unwrap();
            write_synced(&staged.path().join("x"), text.as_bytes()).unwrap();
            assert_eq!(staged.publish(&place).unwrap(), wins);
        }
        assert_eq!(fs::read_to_string(place.join("x")).unwrap(), "first");
        assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
    }
}
