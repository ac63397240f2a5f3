//! What a filesystem must answer. One implementation is chosen when serving starts; the FUSE
//! side (`super::fuse`) is compiled for each.

use std::time::Duration;

use nix::errno::Errno;

use super::attr::{Attr, Entry, Statfs};

pub(super) type Answer<T> = Result<T, Errno>;

/// What of the protocol a filesystem makes use of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Traits {
    /// Reading needs no OPEN and no OPENDIR.
    pub stateless: bool,
    /// No file has extended attributes, nor can one get any.
    pub no_xattrs: bool,
    /// How long a name may be taken not to exist.
    pub negative_ttl: Duration,
}

/// One name of a directory listing.
#[derive(Debug)]
pub(super) struct Listed<'a> {
    pub name: &'a [u8],
    /// Where the listing goes on after this name.
    pub next: u64,
    pub ino: u64,
    /// Type bits of a mode.
    pub file_type: u32,
}

pub(super) trait Backend: Send + Sync + 'static {
    fn traits(&self) -> Traits;

    fn lookup(&self, parent: u64, name: &[u8]) -> Answer<Entry>;

    /// The kernel has dropped `count` references to an inode.
    fn forget(&self, ino: u64, count: u64);

    fn getattr(&self, ino: u64) -> Answer<(Attr, Duration)>;

    /// Hands the target to `then`.
    fn readlink<R>(&self, ino: u64, then: impl FnOnce(&[u8]) -> R) -> Answer<R>;

    /// Hands up to `size` bytes from `offset` on to `then`; fewer only at the end of the file.
    fn read<R>(&self, ino: u64, offset: u64, size: u32, then: impl FnOnce(&[u8]) -> R) -> Answer<R>;

    /// Lists a directory from the place `offset` on until `sink` returns false.
    fn readdir(&self, ino: u64, offset: u64, sink: impl FnMut(Listed<'_>) -> bool) -> Answer<()>;

    /// As `readdir`, with attributes; counts a reference for every name taken by the sink, save
    /// `.` and `..`.
    fn readdirplus(&self, ino: u64, offset: u64, sink: impl FnMut(Listed<'_>, &Entry) -> bool) -> Answer<()>;

    fn getxattr<R>(&self, ino: u64, name: &[u8], then: impl FnOnce(&[u8]) -> R) -> Answer<R>;

    /// The names, each ended by a NUL.
    fn listxattr(&self, ino: u64) -> Answer<Vec<u8>>;

    fn statfs(&self) -> Answer<Statfs>;
}
