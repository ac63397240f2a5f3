//! What a build that runs has on disk for itself: a directory with a lock, the containers of its steps,
//! files that steps need.
//!
//! Its containers are not among the store's, so `ps` does not show them. Whoever finds the directory
//! unlocked may remove it: [`sweep`] does, for builds that were killed, whose containers the kernel ended
//! with them.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use super::error::Problem;
use crate::sandbox::idmap::{Facts, Wanted, choose};
use crate::store::Store;
use crate::store::containers::Containers;
use crate::supervisor::remove;
use crate::sys;

/// A running build's directory; removed when it is dropped.
#[derive(Debug)]
pub(super) struct Scratch {
    path: PathBuf,
    lock: File,
    /// The process that made it: its children do not remove it.
    owner: u32,
}

impl Scratch {
    pub(super) fn new(store: &Store) -> Result<Self, Problem> {
        let parent = store.build_directory()?;
        let random = u64::from_ne_bytes(sys::process::random_bytes()?);
        let path = parent.join(format!("{random:016x}"));
        // The lock has to be there before the directory's name: made beside, renamed.
        let beside = parent.join(format!(".{random:016x}"));
        fs::DirBuilder::new().mode(0o700).create(&beside)?;
        let lock = File::create(beside.join("lock"))?;
        lock.try_lock().map_err(io::Error::from)?;
        fs::rename(&beside, &path)?;
        Ok(Self { path, lock, owner: std::process::id() })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A new directory in it.
    pub(super) fn directory(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.path.join(name);
        fs::DirBuilder::new().mode(0o700).recursive(true).create(&path)?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::process::id() == self.owner {
            clear(&self.path);
            let _ = self.lock.unlock(); // the directory is gone, or left to a sweep
        }
    }
}

/// Removes what killed builds left; best effort, the next command tries again.
pub fn sweep(store: &Store) {
    store.sweep_step_turns();
    let Ok(parent) = store.build_directory() else { return };
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(lock) = File::open(path.join("lock")) else { continue };
        if lock.try_lock().is_ok() {
            clear(&path);
        }
    }
}

/// Ends what runs in a build's directory, and removes it.
fn clear(path: &Path) {
    let containers = Containers::new(path);
    for id in containers.ids().unwrap_or_default() {
        // Asking for the status ends a container whose keeper was killed.
        let _ = containers.status(&id);
        remove::stale_socket(&id);
        if let (Ok(record), Ok(lock)) = (containers.record(&id), containers.lock(&id))
            && let Ok(grave) = containers.unlink(&record, &lock)
        {
            let _ = remove::tree(&grave, &choose(&Facts::gather(), Wanted::Usual)); // as above
        }
    }
    let _ = remove::tree(path, &choose(&Facts::gather(), Wanted::Usual)); // as above
}
