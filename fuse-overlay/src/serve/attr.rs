//! File attributes as requests are answered with them.

use std::time::Duration;

use crate::index::Timestamp;

/// How long the kernel may keep what cannot change behind its back. FUSE has no "forever";
/// half of a century serves.
pub(super) const FOREVER: Duration = Duration::from_secs(50 * 365 * 24 * 3600);

/// What `stat` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attr {
    pub ino: u64,
    /// Type and permission bits, as `st_mode`.
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    pub size: u64,
    /// Units of 512 bytes.
    pub blocks: u64,
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
}

/// An answer to a lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub attr: Attr,
    pub generation: u64,
    /// How long the name may be kept.
    pub entry_ttl: Duration,
    /// How long the attributes may be kept.
    pub attr_ttl: Duration,
}

/// What a filesystem holds, for `statfs`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Statfs {
    /// In units of `block_size`.
    pub blocks: u64,
    pub blocks_free: u64,
    pub blocks_available: u64,
    pub files: u64,
    pub files_free: u64,
    pub block_size: u32,
}

/// Inode 0 is how FUSE says that a name does not exist and may be remembered as such.
pub(super) const NO_ATTR: Attr = Attr {
    ino: 0,
    mode: libc::S_IFREG,
    nlink: 0,
    uid: 0,
    gid: 0,
    rdev: 0,
    size: 0,
    blocks: 0,
    atime: Timestamp { seconds: 0, nanoseconds: 0 },
    mtime: Timestamp { seconds: 0, nanoseconds: 0 },
    ctime: Timestamp { seconds: 0, nanoseconds: 0 },
};
