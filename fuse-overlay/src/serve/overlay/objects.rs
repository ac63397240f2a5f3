//! The data of changed files: one object a file, named by its inode number, owned by the user
//! and readable by nobody else, whatever the file's own mode is.

use std::collections::HashMap;
use std::fmt::Write;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::UpperError;
use crate::serve::backend::Answer;

pub(super) const DIRECTORY: &str = "objects";

/// Files kept open, so that reading or writing one in many requests opens it once. Well below
/// the limit on descriptors that systems set (1024 at the least, of which others need some).
const OPEN_LIMIT: usize = 512;

#[derive(Debug)]
pub(super) struct Objects {
    directory: OwnedFd,
    open: Mutex<Cache>,
}

#[derive(Debug, Default)]
struct Cache {
    files: HashMap<u64, (Arc<File>, u64)>,
    clock: u64,
}

impl Objects {
    pub(super) fn open(upper: BorrowedFd<'_>) -> Result<Self, UpperError> {
        let failed = |errno: Errno| UpperError::Objects(errno.into());
        match mkdirat(upper, DIRECTORY, Mode::S_IRWXU) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(failed(errno)),
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let directory = openat(upper, DIRECTORY, flags, Mode::empty()).map_err(failed)?;
        Ok(Self { directory, open: Mutex::default() })
    }

    /// Makes an empty object. One of that name can only be left over from a request that died,
    /// and is emptied.
    pub(super) fn create(&self, ino: u64) -> Answer<Arc<File>> {
        let file = self.open_file(ino, OFlag::O_CREAT | OFlag::O_TRUNC)?;
        Ok(self.keep(ino, file))
    }

    /// The object's file, open for reading and writing.
    pub(super) fn file(&self, ino: u64) -> Answer<Arc<File>> {
        {
            let mut cache = self.cache();
            cache.clock += 1;
            let clock = cache.clock;
            if let Some((file, used)) = cache.files.get_mut(&ino) {
                *used = clock;
                return Ok(Arc::clone(file));
            }
        }
        let file = self.open_file(ino, OFlag::empty())?;
        Ok(self.keep(ino, file))
    }

    pub(super) fn stat(&self, ino: u64) -> Answer<FileStat> {
        let open = self.cache().files.get(&ino).map(|(file, _)| Arc::clone(file));
        match open {
            Some(file) => fstat(&*file),
            None => fstatat(&self.directory, &*name(ino), AtFlags::AT_SYMLINK_NOFOLLOW),
        }
    }

    /// What an object takes up on disk.
    pub(super) fn bytes(&self, ino: u64) -> Answer<u64> {
        self.stat(ino).map(|status| disk_bytes(&status))
    }

    pub(super) fn remove(&self, ino: u64) -> Answer<()> {
        self.cache().files.remove(&ino);
        unlinkat(&self.directory, &*name(ino), UnlinkatFlags::NoRemoveDir)
    }

    /// Makes the names of new objects durable.
    pub(super) fn sync_names(&self) -> Answer<()> {
        nix::unistd::fsync(&self.directory)
    }

    pub(super) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// The numbers of all objects; what is not one is not this crate's and stays.
    pub(super) fn list(&self) -> Result<Vec<u64>, UpperError> {
        let failed = |errno: Errno| UpperError::Objects(errno.into());
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut directory = Dir::openat(&self.directory, ".", flags, Mode::empty()).map_err(failed)?;
        let mut found = Vec::new();
        for entry in directory.iter() {
            let entry = entry.map_err(failed)?;
            let number = entry.file_name().to_str().ok().filter(|text| text.len() == 16);
            found.extend(number.and_then(|text| u64::from_str_radix(text, 16).ok()));
        }
        Ok(found)
    }

    fn open_file(&self, ino: u64, more: OFlag) -> Answer<File> {
        let flags = OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | more;
        openat(&self.directory, &*name(ino), flags, Mode::S_IRUSR | Mode::S_IWUSR).map(File::from)
    }

    fn keep(&self, ino: u64, file: File) -> Arc<File> {
        let file = Arc::new(file);
        let mut cache = self.cache();
        if cache.files.len() >= OPEN_LIMIT {
            cache.evict();
        }
        cache.clock += 1;
        let clock = cache.clock;
        cache.files.insert(ino, (Arc::clone(&file), clock));
        file
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        // A panic elsewhere leaves a cache that is at worst incomplete.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cache {
    /// Closes the quarter used longest ago, so that evicting costs little on the average.
    fn evict(&mut self) {
        let mut ticks: Vec<u64> = self.files.values().map(|(_, used)| *used).collect();
        ticks.sort_unstable();
        let limit = ticks.get(ticks.len() / 4).copied().unwrap_or(0);
        self.files.retain(|_, (_, used)| *used > limit);
    }
}

/// What a file takes up on disk.
pub(super) fn disk_bytes(status: &FileStat) -> u64 {
    status.st_blocks.cast_unsigned().saturating_mul(512)
}

pub(super) fn name(ino: u64) -> String {
    let mut name = String::with_capacity(16);
    // Writing to a String cannot fail.
    let _ = write!(name, "{ino:016x}");
    name
}
