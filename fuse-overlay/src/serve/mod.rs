//! Serving: answers the kernel's requests on one FUSE connection until it is unmounted.
//!
//! The server runs outside the namespaces, as the plain user, with nothing but file descriptors:
//! the packed layers and their index, or the root of a directory, and a private directory for
//! what is written. It never touches the mount it serves. Every request gets exactly one answer,
//! and none a panic.

mod attr;
mod backend;
mod buffer;
mod directory;
mod fuse;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
pub(crate) mod overlay;
mod packed;
mod reader;
mod rest;

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

pub use self::overlay::UpperError;

use self::directory::Directory;
use self::overlay::{LowerFs, Overlay, Snapshot};
use self::packed::Packed;
use crate::index::MergedIndex;

/// Requests that the kernel may have waiting in the background (read-ahead, mostly): enough to
/// keep a disk busy, few enough that the kernel's memory for them stays small.
const MAX_BACKGROUND: u16 = 64;

/// What lies below, unchanged by anything this server does.
#[derive(Debug)]
pub enum Lower {
    /// Packed layers and the merged index that says what is where in them.
    Packed {
        /// The merged index.
        index: MergedIndex,
        /// The uncompressed tars, bottom first, as many as the index counts.
        layers: Vec<File>,
    },
    /// A directory, which may change underneath.
    Directory(DirectoryLower),
}

/// A directory as a lower layer.
#[derive(Debug)]
pub struct DirectoryLower {
    /// The directory that becomes the root.
    pub root: OwnedFd,
    /// What of it is not shown.
    pub rules: Vec<PathRule>,
}

/// A rule on a path of a [`DirectoryLower`], absolute with the lower directory as its root. The
/// longest rule that fits a path decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathRule {
    /// A directory is shown empty; anything else is not shown.
    Hide(PathBuf),
    /// Shown even below a hidden directory; on the way to it, hidden directories show nothing
    /// but the next name.
    Expose(PathBuf),
}

/// What becomes of writes.
#[derive(Debug)]
pub enum Mode {
    /// They are refused; the mount should be read-only too.
    ReadOnly,
    /// They go to a directory of the caller's own.
    Overlay {
        /// A private, local directory, empty at first; what is in it is this crate's affair.
        upper: OwnedFd,
        /// Nothing will read the upper after this server ends: syncing is skipped.
        volatile: bool,
        /// How much it may take up.
        quota: Quota,
    },
}

/// Limits on what an upper takes up, counting what is in it already; none by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// Bytes on disk: the blocks of changed and new files, and a small charge for each inode.
    pub bytes: Option<u64>,
    /// New files, directories and links, and files of the lower layer whose data was changed.
    pub inodes: Option<u64>,
}

/// How ids are shown in the mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ids {
    /// Users.
    pub uids: IdRange,
    /// Groups.
    pub gids: IdRange,
}

/// One kind of ids: those that the namespace maps, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// How many ids the namespace maps, from 0 on: 1, or 65536 with subordinate ids.
    pub count: u32,
    /// What every id outside the range is shown as. The kernel refuses writes to files whose
    /// owner is not mapped, so this must lie within the range.
    pub rest: u32,
    /// Of a directory lower: the host's id that is shown as `inside`. All others are shown as `rest`.
    pub caller: u32,
    /// What the caller's own id is in the namespace: 0, but for a namespace that keeps ids.
    pub inside: u32,
}

impl IdRange {
    /// One mapped id, 0: everything belongs to it.
    pub fn single(caller: u32) -> Self {
        Self { count: 1, rest: 0, caller, inside: 0 }
    }

    /// `count` mapped ids; what lies outside belongs to nobody (65534), or to the last id of a
    /// shorter range.
    pub fn range(count: u32, caller: u32) -> Self {
        Self { count, rest: 65534.min(count.saturating_sub(1)), caller, inside: 0 }
    }

    /// An id of an image.
    pub(crate) fn of_image(&self, id: u32) -> u32 {
        if id < self.count { id } else { self.rest }
    }
}

/// Settings that have good defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Threads that answer requests. One at a time reads them; it passes that on before it waits
    /// for a disk, so more than two are of use only where several wait at once.
    pub threads: NonZeroUsize,
    /// The kernel may answer writes from its cache and send the data later, on a mount without a
    /// quota over packed layers. Small writes are several times as fast so, making a file takes a
    /// fifth longer, and errors come late: a full disk shows only when a file is closed or synced.
    /// Off by default for that reason. Needs two threads.
    pub writeback: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { threads: NonZeroUsize::MIN.saturating_add(2), writeback: false }
    }
}

/// Why a filesystem cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Fewer or more layer files than the index points into.
    #[error("the index describes {expected} layers, but {found} layer files were given")]
    LayerCount {
        /// What the index counts.
        expected: u32,
        /// What was given.
        found: usize,
    },
    /// A layer's file cannot be mapped.
    #[error("cannot map layer {layer}")]
    Layer {
        /// Which, counted from the bottom.
        layer: usize,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The lower directory cannot be looked at.
    #[error("cannot use the lower directory")]
    Directory(#[source] io::Error),
    /// The upper cannot be used.
    #[error("cannot use the directory for changes")]
    Upper(#[source] UpperError),
    /// The connection ended with an error.
    #[error("the FUSE connection failed")]
    Connection(#[source] io::Error),
}

/// A filesystem, ready to be served.
#[derive(Debug)]
pub struct Server {
    backend: Backend,
    options: Options,
}

#[derive(Debug)]
enum Backend {
    Packed(Box<Packed>),
    Overlay(Box<Overlay>),
}

impl Server {
    /// Prepares everything that can fail before the first request.
    ///
    /// # Errors
    /// [`ServeError`].
    pub fn new(lower: Lower, mode: Mode, ids: Ids, options: Options) -> Result<Self, ServeError> {
        raise_descriptor_limit();
        let lower = match lower {
            Lower::Packed { index, layers } if matches!(mode, Mode::ReadOnly) => {
                let packed = Packed::new(index, layers, ids)?;
                return Ok(Self { backend: Backend::Packed(Box::new(packed)), options });
            }
            lower => lower_fs(lower, ids)?,
        };
        let overlay = match mode {
            Mode::ReadOnly => Overlay::read_only(lower),
            Mode::Overlay { upper, volatile, quota } => {
                Overlay::open(lower, upper, volatile, quota).map_err(ServeError::Upper)?
            }
        };
        Ok(Self { backend: Backend::Overlay(Box::new(overlay)), options })
    }

    /// Answers requests until the filesystem is unmounted or the connection aborted. `device` is
    /// the descriptor of [`crate::mount::open_device`], mounted already.
    ///
    /// # Errors
    /// [`ServeError::Connection`].
    pub fn serve(self, device: OwnedFd) -> Result<(), ServeError> {
        self.serve_when(|| Some(device))
    }

    /// As [`Self::serve`], with a device that `mounted` waits for: the threads that need none are there by
    /// then, so that the first request is answered the sooner. `None` means that it never comes.
    ///
    /// # Errors
    /// [`ServeError::Connection`].
    pub fn serve_when(self, mounted: impl FnOnce() -> Option<OwnedFd>) -> Result<(), ServeError> {
        let _rest = match &self.backend {
            Backend::Packed(packed) => Some(packed.rest()),
            Backend::Overlay(overlay) => overlay.rest(),
        };
        let Some(device) = mounted() else { return Ok(()) };
        match self.backend {
            // Each thread waits for requests there, so more than two only cost switches.
            Backend::Packed(packed) => reader::serve(*packed, device, self.options.threads.get().min(2)),
            Backend::Overlay(overlay) => fuse::serve(*overlay, device, self.options),
        }
        .map_err(ServeError::Connection)
    }
}

fn lower_fs(lower: Lower, ids: Ids) -> Result<LowerFs, ServeError> {
    match lower {
        Lower::Packed { index, layers } => Ok(LowerFs::packed(Packed::new(index, layers, ids)?)),
        Lower::Directory(directory) => {
            let directory = Directory::new(directory, ids);
            let directory = directory.map_err(|errno| ServeError::Directory(errno.into()))?;
            Ok(LowerFs::Directory(Box::new(directory)))
        }
    }
}

/// A lower layer by itself, looked into rather than served, or with an upper of this crate's own as
/// it stands at this moment.
pub(crate) fn snapshot(
    lower: Lower,
    upper: Option<BorrowedFd<'_>>,
    ids: Ids,
) -> Result<Snapshot, ServeError> {
    let lower = lower_fs(lower, ids)?;
    match upper {
        Some(upper) => Snapshot::open(lower, upper).map_err(ServeError::Upper),
        None => Ok(Snapshot::lower_only(lower)),
    }
}

/// Objects, files and directories of a lower directory are kept open; the usual soft limit of
/// 1024 is meant for programs that use select(2).
fn raise_descriptor_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        // With the lower limit the caches do, only many open directories at a time do not.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
