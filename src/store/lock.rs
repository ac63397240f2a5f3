//! The store's locks: flock(2) on empty files, so that the kernel lets go of them whatever happens
//! to their holder. Linux carries flock over NFS, so a shared home works too.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::{Result, Store, StoreError};

/// The right to rely on blobs, layers and merged indexes, or (exclusive) to take them away.
#[derive(Debug)]
#[must_use = "a lock is released when it is dropped"]
pub struct ContentLock {
    _file: Flock<File>,
}

/// The right to rely on volumes, or (exclusive) to take them away.
#[derive(Debug)]
#[must_use = "a lock is released when it is dropped"]
pub struct VolumesLock {
    _file: Flock<File>,
}

/// The right to replace images.json.
#[derive(Debug)]
pub(super) struct CatalogLock {
    _file: Flock<File>,
}

impl Store {
    /// Keeps collections away while the caller adds content, or between finding an image and
    /// writing the record that refers to it. Waits for a collection that is under way. A process
    /// may hold several.
    ///
    /// # Errors
    /// The lock's file cannot be opened.
    pub fn lock_content(&self) -> Result<ContentLock> {
        Ok(ContentLock { _file: wait(&self.path("lock"), FlockArg::LockShared)? })
    }

    /// The right to collect, if nobody holds the content lock at the moment, the caller included.
    pub(super) fn try_lock_content_exclusive(&self) -> Result<Option<ContentLock>> {
        let path = self.path("lock");
        match Flock::lock(open(&path)?, FlockArg::LockExclusiveNonblock) {
            Ok(file) => Ok(Some(ContentLock { _file: file })),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(StoreError::io("lock", &path)(errno.into())),
        }
    }

    /// Keeps volumes from being removed between their making and the record that refers to them.
    ///
    /// # Errors
    /// The lock's file cannot be opened.
    pub fn lock_volumes(&self) -> Result<VolumesLock> {
        Ok(VolumesLock { _file: wait(&self.path("volumes/.lock"), FlockArg::LockShared)? })
    }

    pub(super) fn lock_volumes_exclusive(&self) -> Result<VolumesLock> {
        Ok(VolumesLock { _file: wait(&self.path("volumes/.lock"), FlockArg::LockExclusive)? })
    }

    pub(super) fn lock_catalog(&self) -> Result<CatalogLock> {
        Ok(CatalogLock { _file: wait(&self.path("images.lock"), FlockArg::LockExclusive)? })
    }
}

fn open(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.open(path).map_err(StoreError::io("open", path))
}

fn wait(path: &Path, kind: FlockArg) -> Result<Flock<File>> {
    let mut file = open(path)?;
    loop {
        match Flock::lock(file, kind) {
            Ok(lock) => return Ok(lock),
            Err((again, Errno::EINTR)) => file = again,
            Err((_, errno)) => return Err(StoreError::io("lock", path)(io::Error::from(errno))),
        }
    }
}
