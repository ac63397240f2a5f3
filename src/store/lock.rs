//! The store's locks: flock(2) on empty files, so that the kernel lets go of them whatever happens
//! to their holder. Linux carries flock over NFS, so a shared home works too; where the server does
//! not play along, the lock is on a file of the same name on a local filesystem, which keeps the
//! user's commands on one machine apart, not those of several machines.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

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
        Ok(ContentLock { _file: self.wait("lock", FlockArg::LockShared)? })
    }

    /// The right to collect, if nobody holds the content lock at the moment, the caller included.
    pub(super) fn try_lock_content_exclusive(&self) -> Result<Option<ContentLock>> {
        let path = self.path("lock");
        let mut result = Flock::lock(open(&path)?, FlockArg::LockExclusiveNonblock);
        if let Err((_, errno)) = &result
            && is_unsupported(*errno)
        {
            result = Flock::lock(open(&self.local_lock("lock")?)?, FlockArg::LockExclusiveNonblock);
        }
        match result {
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
        Ok(VolumesLock { _file: self.wait("volumes/.lock", FlockArg::LockShared)? })
    }

    pub(super) fn lock_volumes_exclusive(&self) -> Result<VolumesLock> {
        Ok(VolumesLock { _file: self.wait("volumes/.lock", FlockArg::LockExclusive)? })
    }

    fn wait(&self, name: &str, kind: FlockArg) -> Result<Flock<File>> {
        let path = self.path(name);
        let failed = |errno: Errno| StoreError::io("lock", &path)(io::Error::from(errno));
        match take(&path, kind)? {
            Ok(lock) => Ok(lock),
            Err(errno) if is_unsupported(errno) => take(&self.local_lock(name)?, kind)?.map_err(failed),
            Err(errno) => Err(failed(errno)),
        }
    }

    fn local_lock(&self, name: &str) -> Result<PathBuf> {
        let directory =
            super::local::instead(&self.root).map_err(StoreError::io("lock", &self.path(name)))?;
        Ok(directory.join(name.replace("/.", ".")))
    }

    pub(super) fn lock_catalog(&self) -> Result<CatalogLock> {
        Ok(CatalogLock { _file: self.wait("images.lock", FlockArg::LockExclusive)? })
    }
}

fn open(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.open(path).map_err(StoreError::io("open", path))
}

/// Whether a filesystem has no locks, as opposed to one that is taken.
fn is_unsupported(errno: Errno) -> bool {
    matches!(errno, Errno::ENOLCK | Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL | Errno::EREMOTEIO)
}

/// Takes a lock, waiting for it.
fn take(path: &Path, kind: FlockArg) -> Result<Result<Flock<File>, Errno>> {
    let mut file = open(path)?;
    loop {
        match Flock::lock(file, kind) {
            Ok(lock) => return Ok(Ok(lock)),
            Err((again, Errno::EINTR)) => file = again,
            Err((_, errno)) => return Ok(Err(errno)),
        }
    }
}
