//! What a filesystem must answer. One implementation is chosen when serving starts; the FUSE
//! side (`super::fuse`) is compiled for each.

use std::time::Duration;

use nix::errno::Errno;

use super::attr::{Attr, Entry, Statfs};
use crate::index::Timestamp;

pub(super) type Answer<T> = Result<T, Errno>;

/// What of the protocol a filesystem makes use of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Traits {
    /// Files and directories need no OPEN.
    pub stateless: bool,
    /// The files may change behind the kernel's back: it should look at times and sizes.
    pub changes_underneath: bool,
    /// No file has extended attributes, nor can one get any.
    pub no_xattrs: bool,
    pub writable: bool,
    /// The kernel may answer writes from its cache and send the data later: nothing but it
    /// changes sizes and times, and none of the data can be refused for want of a quota.
    pub writeback: bool,
    /// How long a name may be taken not to exist.
    pub negative_ttl: Duration,
}

/// Who asks, in ids of the mount's user namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Caller {
    pub uid: u32,
    pub gid: u32,
    /// Permissions that a new file does not get, unless its directory has a default ACL.
    pub umask: u32,
}

/// One name of a directory listing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Listed<'a> {
    pub name: &'a [u8],
    /// Where the listing goes on after this name.
    pub next: u64,
    pub ino: u64,
    /// Type bits of a mode.
    pub file_type: u32,
}

/// A time to be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SetTime {
    Now,
    At(Timestamp),
}

/// Attributes to be set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SetAttr {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<SetTime>,
    pub mtime: Option<SetTime>,
    /// Given where the kernel keeps the time of the last change itself.
    pub ctime: Option<Timestamp>,
    /// Who truncates may not keep setuid and setgid bits alive.
    pub kill_privileges: bool,
}

/// How an xattr is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct XattrFlags {
    /// `XATTR_CREATE`, `XATTR_REPLACE`.
    pub flags: i32,
    /// Who sets an ACL may not keep the setgid bit alive.
    pub clear_setgid: bool,
}

/// A name in a directory, as a request gives it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub parent: u64,
    pub name: &'a [u8],
}

/// What a new node is to be.
#[derive(Clone, Copy, Debug)]
pub(super) enum New<'a> {
    /// A file, device, fifo or socket: type and permission bits, device number.
    Node { mode: u32, rdev: u32 },
    /// Permission bits.
    Directory { mode: u32 },
    /// Link target.
    Symlink { target: &'a [u8] },
}

/// What a rename does with a name that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RenameKind {
    Replace,
    NoReplace,
    Exchange,
    /// Leaves a whiteout, a character device 0/0, in the old place.
    Whiteout,
    /// That, and replaces nothing.
    WhiteoutNoReplace,
}

/// A file and a place in it.
#[derive(Clone, Copy, Debug)]
pub(super) struct At {
    pub ino: u64,
    pub offset: u64,
}

pub(super) trait Backend: Send + Sync + 'static {
    fn traits(&self) -> Traits;

    fn lookup(&self, parent: u64, name: &[u8]) -> Answer<Entry>;

    /// The kernel has dropped `count` references to an inode.
    fn forget(&self, ino: u64, count: u64);

    fn getattr(&self, ino: u64) -> Answer<(Attr, Duration)>;

    /// Hands the target to `then`.
    fn readlink<R>(&self, ino: u64, then: impl FnOnce(&[u8]) -> R) -> Answer<R>;

    /// Whether a file may be opened so; asked only where files need OPEN.
    fn open(&self, _ino: u64, _flags: i32) -> Answer<()> {
        Ok(())
    }

    /// Hands up to `size` bytes from `offset` on to `then`; fewer only at the end of the file.
    fn read<R>(&self, at: At, size: u32, then: impl FnOnce(&[u8]) -> R) -> Answer<R>;

    /// A handle for listing; asked for only where directories need OPEN.
    fn opendir(&self, _ino: u64) -> Answer<u64> {
        Ok(0)
    }

    fn releasedir(&self, _handle: u64) {}

    /// Lists a directory from the place `at` on until `sink` returns false.
    fn readdir(&self, at: At, handle: u64, sink: impl FnMut(Listed<'_>) -> bool) -> Answer<()>;

    /// As `readdir`, with attributes; counts a reference for every name taken by the sink, save
    /// `.` and `..`.
    fn readdirplus(&self, at: At, handle: u64, sink: impl FnMut(Listed<'_>, &Entry) -> bool) -> Answer<()>;

    fn getxattr<R>(&self, ino: u64, name: &[u8], then: impl FnOnce(&[u8]) -> R) -> Answer<R>;

    /// The names, each ended by a NUL.
    fn listxattr(&self, ino: u64) -> Answer<Vec<u8>>;

    fn statfs(&self) -> Answer<Statfs>;

    /// Finds data or a hole (`SEEK_DATA`, `SEEK_HOLE`).
    fn seek(&self, at: At, whence: i32) -> Answer<u64>;

    fn make(&self, _place: Place<'_>, _new: New<'_>, _caller: Caller) -> Answer<Entry> {
        Err(Errno::EROFS)
    }

    /// Makes a file that has no name yet and may be given one by `link` (`O_TMPFILE`).
    fn make_unnamed(&self, _parent: u64, _new: New<'_>, _caller: Caller) -> Answer<Entry> {
        Err(Errno::EROFS)
    }

    fn link(&self, _ino: u64, _place: Place<'_>) -> Answer<Entry> {
        Err(Errno::EROFS)
    }

    fn unlink(&self, _place: Place<'_>) -> Answer<()> {
        Err(Errno::EROFS)
    }

    fn rmdir(&self, _place: Place<'_>) -> Answer<()> {
        Err(Errno::EROFS)
    }

    fn rename(&self, _from: Place<'_>, _to: Place<'_>, _kind: RenameKind) -> Answer<()> {
        Err(Errno::EROFS)
    }

    fn setattr(&self, _ino: u64, _set: SetAttr) -> Answer<(Attr, Duration)> {
        Err(Errno::EROFS)
    }

    /// Writes, and says how many bytes: fewer than given only where a quota ends in between.
    /// `kill_privileges`: the writer may not keep setuid and setgid bits alive.
    fn write(&self, _at: At, _data: &[u8], _kill_privileges: bool) -> Answer<u32> {
        Err(Errno::EROFS)
    }

    fn fallocate(&self, _at: At, _length: u64, _mode: i32) -> Answer<()> {
        Err(Errno::EROFS)
    }

    fn copy_range(&self, _from: At, _to: At, _length: u64) -> Answer<u64> {
        Err(Errno::EROFS)
    }

    fn fsync(&self, _ino: u64, _data_only: bool) -> Answer<()> {
        Ok(())
    }

    fn setxattr(&self, _ino: u64, _name: &[u8], _value: &[u8], _flags: XattrFlags) -> Answer<()> {
        Err(Errno::EROFS)
    }

    fn removexattr(&self, _ino: u64, _name: &[u8]) -> Answer<()> {
        Err(Errno::EROFS)
    }
}
