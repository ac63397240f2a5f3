//! The words of the kernel's FUSE protocol, 7.x, as `linux/fuse.h` has them.
//!
//! Requests are read from bytes and replies written to bytes, in the machine's own byte order;
//! no structure is laid over memory. What a request lacks is an error, never a panic.

use nix::errno::Errno;

use crate::index::Timestamp;
use crate::serve::attr::{Attr, Entry, Statfs};
use crate::serve::backend::{Answer, SetAttr, SetTime};

/// The protocol's version that this file speaks. The kernel speaks an older one where asked to.
pub(super) const MAJOR: u32 = 7;
pub(super) const MINOR: u32 = 39;

/// Bytes before the body of a reply.
pub(super) const OUT_HEADER: usize = 16;

/// Bytes of a `fuse_entry_out`, and of a `fuse_dirent` without its name.
const ENTRY_BYTES: usize = 128;
const DIRENT_BYTES: usize = 24;

/// Bytes in a name. FUSE itself takes names of up to a path's length; Linux filesystems do not.
const NAME_MAX: usize = 255;

/// What the block size of a file is said to be: 4 KiB as on every local filesystem, so that
/// programs that size their buffers by it behave as usual.
const BLOCK_SIZE: u32 = 4096;

pub(super) mod opcode {
    pub(in crate::serve::fuse) const LOOKUP: u32 = 1;
    pub(in crate::serve::fuse) const FORGET: u32 = 2;
    pub(in crate::serve::fuse) const GETATTR: u32 = 3;
    pub(in crate::serve::fuse) const SETATTR: u32 = 4;
    pub(in crate::serve::fuse) const READLINK: u32 = 5;
    pub(in crate::serve::fuse) const SYMLINK: u32 = 6;
    pub(in crate::serve::fuse) const MKNOD: u32 = 8;
    pub(in crate::serve::fuse) const MKDIR: u32 = 9;
    pub(in crate::serve::fuse) const UNLINK: u32 = 10;
    pub(in crate::serve::fuse) const RMDIR: u32 = 11;
    pub(in crate::serve::fuse) const RENAME: u32 = 12;
    pub(in crate::serve::fuse) const LINK: u32 = 13;
    pub(in crate::serve::fuse) const OPEN: u32 = 14;
    pub(in crate::serve::fuse) const READ: u32 = 15;
    pub(in crate::serve::fuse) const WRITE: u32 = 16;
    pub(in crate::serve::fuse) const STATFS: u32 = 17;
    pub(in crate::serve::fuse) const RELEASE: u32 = 18;
    pub(in crate::serve::fuse) const FSYNC: u32 = 20;
    pub(in crate::serve::fuse) const SETXATTR: u32 = 21;
    pub(in crate::serve::fuse) const GETXATTR: u32 = 22;
    pub(in crate::serve::fuse) const LISTXATTR: u32 = 23;
    pub(in crate::serve::fuse) const REMOVEXATTR: u32 = 24;
    pub(in crate::serve::fuse) const INIT: u32 = 26;
    pub(in crate::serve::fuse) const OPENDIR: u32 = 27;
    pub(in crate::serve::fuse) const READDIR: u32 = 28;
    pub(in crate::serve::fuse) const RELEASEDIR: u32 = 29;
    pub(in crate::serve::fuse) const FSYNCDIR: u32 = 30;
    pub(in crate::serve::fuse) const CREATE: u32 = 35;
    pub(in crate::serve::fuse) const DESTROY: u32 = 38;
    pub(in crate::serve::fuse) const BATCH_FORGET: u32 = 42;
    pub(in crate::serve::fuse) const FALLOCATE: u32 = 43;
    pub(in crate::serve::fuse) const READDIRPLUS: u32 = 44;
    pub(in crate::serve::fuse) const RENAME2: u32 = 45;
    pub(in crate::serve::fuse) const LSEEK: u32 = 46;
    pub(in crate::serve::fuse) const COPY_FILE_RANGE: u32 = 47;
    pub(in crate::serve::fuse) const TMPFILE: u32 = 51;
    pub(in crate::serve::fuse) const COPY_FILE_RANGE_64: u32 = 53;
}

/// What both sides of a connection can do (`FUSE_*` of INIT).
pub(super) mod capability {
    pub(in crate::serve::fuse) const ASYNC_READ: u64 = 1 << 0;
    pub(in crate::serve::fuse) const EXPORT_SUPPORT: u64 = 1 << 4;
    pub(in crate::serve::fuse) const BIG_WRITES: u64 = 1 << 5;
    pub(in crate::serve::fuse) const DONT_MASK: u64 = 1 << 6;
    pub(in crate::serve::fuse) const AUTO_INVAL_DATA: u64 = 1 << 12;
    pub(in crate::serve::fuse) const DO_READDIRPLUS: u64 = 1 << 13;
    pub(in crate::serve::fuse) const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub(in crate::serve::fuse) const ASYNC_DIO: u64 = 1 << 15;
    pub(in crate::serve::fuse) const WRITEBACK_CACHE: u64 = 1 << 16;
    pub(in crate::serve::fuse) const NO_OPEN_SUPPORT: u64 = 1 << 17;
    pub(in crate::serve::fuse) const PARALLEL_DIROPS: u64 = 1 << 18;
    pub(in crate::serve::fuse) const POSIX_ACL: u64 = 1 << 20;
    pub(in crate::serve::fuse) const MAX_PAGES: u64 = 1 << 22;
    pub(in crate::serve::fuse) const CACHE_SYMLINKS: u64 = 1 << 23;
    pub(in crate::serve::fuse) const NO_OPENDIR_SUPPORT: u64 = 1 << 24;
    pub(in crate::serve::fuse) const EXPLICIT_INVAL_DATA: u64 = 1 << 25;
    pub(in crate::serve::fuse) const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    pub(in crate::serve::fuse) const SETXATTR_EXT: u64 = 1 << 29;
    pub(in crate::serve::fuse) const INIT_EXT: u64 = 1 << 30;
}

/// Which fields of a SETATTR count (`FATTR_*`).
mod attribute {
    pub(super) const MODE: u32 = 1 << 0;
    pub(super) const UID: u32 = 1 << 1;
    pub(super) const GID: u32 = 1 << 2;
    pub(super) const SIZE: u32 = 1 << 3;
    pub(super) const ATIME: u32 = 1 << 4;
    pub(super) const MTIME: u32 = 1 << 5;
    pub(super) const ATIME_NOW: u32 = 1 << 7;
    pub(super) const MTIME_NOW: u32 = 1 << 8;
    pub(super) const CTIME: u32 = 1 << 10;
    pub(super) const KILL_SUIDGID: u32 = 1 << 11;
}

/// The writer may not keep setuid and setgid bits (`FUSE_WRITE_KILL_SUIDGID`).
pub(super) const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// Only data, not attributes, must be durable (`FUSE_FSYNC_FDATASYNC`).
pub(super) const FSYNC_FDATASYNC: u32 = 1;
/// The ACL that is set takes the setgid bit away (`FUSE_SETXATTR_ACL_KILL_SGID`).
pub(super) const SETXATTR_ACL_KILL_SGID: u32 = 1;
/// The kernel's pages of a file stay valid over an open (`FOPEN_KEEP_CACHE`).
pub(super) const FOPEN_KEEP_CACHE: u32 = 1 << 1;

/// A message to the kernel: what it holds of a file is no longer good (`FUSE_NOTIFY_INVAL_INODE`).
pub(super) const NOTIFY_INVAL_INODE: i32 = 2;

/// The beginning of every request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub opcode: u32,
    pub unique: u64,
    pub ino: u64,
    pub uid: u32,
    pub gid: u32,
}

impl Header {
    /// Splits a request into header and body.
    pub(super) fn read(request: &[u8]) -> Answer<(Self, Body<'_>)> {
        let mut body = Body(request);
        let _length = body.u32()?;
        let opcode = body.u32()?;
        let (unique, ino) = (body.u64()?, body.u64()?);
        let (uid, gid) = (body.u32()?, body.u32()?);
        // The process, and the length of extensions, of which none is asked for.
        body.skip(8)?;
        Ok((Self { opcode, unique, ino, uid, gid }, body))
    }
}

/// What of a request has not been read yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Body<'a>(&'a [u8]);

impl<'a> Body<'a> {
    fn array<const N: usize>(&mut self) -> Answer<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk::<N>().ok_or(Errno::EIO)?;
        self.0 = rest;
        Ok(*array)
    }

    pub(super) fn u32(&mut self) -> Answer<u32> {
        self.array().map(u32::from_ne_bytes)
    }

    pub(super) fn u64(&mut self) -> Answer<u64> {
        self.array().map(u64::from_ne_bytes)
    }

    pub(super) fn skip(&mut self, bytes: usize) -> Answer<()> {
        self.0 = self.0.get(bytes..).ok_or(Errno::EIO)?;
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes up to a NUL.
    pub(super) fn text(&mut self) -> Answer<&'a [u8]> {
        let end = self.0.iter().position(|byte| *byte == 0).ok_or(Errno::EIO)?;
        let (text, rest) = self.0.split_at(end);
        self.0 = &rest[1..];
        Ok(text)
    }

    /// A name in a directory.
    pub(super) fn name(&mut self) -> Answer<&'a [u8]> {
        let name = self.text()?;
        if name.len() > NAME_MAX { Err(Errno::ENAMETOOLONG) } else { Ok(name) }
    }

    pub(super) fn bytes(&mut self, length: u32) -> Answer<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(length as usize).ok_or(Errno::EIO)?;
        self.0 = rest;
        Ok(bytes)
    }

    /// A `fuse_setattr_in`.
    pub(super) fn set_attr(&mut self) -> Answer<SetAttr> {
        let valid = self.u32()?;
        self.skip(4 + 8)?;
        let size = self.u64()?;
        self.skip(8)?;
        let seconds = [self.u64()?, self.u64()?, self.u64()?];
        let nanoseconds = [self.u32()?, self.u32()?, self.u32()?];
        let mode = self.u32()?;
        self.skip(4)?;
        let (uid, gid) = (self.u32()?, self.u32()?);
        let has = |field: u32| valid & field != 0;
        let time = |place: usize| Timestamp {
            seconds: seconds[place].cast_signed(),
            nanoseconds: nanoseconds[place].min(999_999_999),
        };
        let set_time = |field, now, place| {
            has(field).then(|| if has(now) { SetTime::Now } else { SetTime::At(time(place)) })
        };
        Ok(SetAttr {
            mode: has(attribute::MODE).then_some(mode),
            uid: has(attribute::UID).then_some(uid),
            gid: has(attribute::GID).then_some(gid),
            size: has(attribute::SIZE).then_some(size),
            atime: set_time(attribute::ATIME, attribute::ATIME_NOW, 0),
            mtime: set_time(attribute::MTIME, attribute::MTIME_NOW, 1),
            ctime: has(attribute::CTIME).then(|| time(2)),
            kill_privileges: has(attribute::KILL_SUIDGID),
        })
    }
}

/// The parts of an INIT request that matter.
#[derive(Clone, Copy, Debug)]
pub(super) struct Init {
    pub major: u32,
    pub minor: u32,
    pub max_readahead: u32,
    pub capabilities: u64,
}

impl Init {
    pub(super) fn read(mut body: Body<'_>) -> Answer<Self> {
        let (major, minor) = (body.u32()?, body.u32()?);
        let (max_readahead, low) = (body.u32()?, body.u32()?);
        let extended = u64::from(low) & capability::INIT_EXT != 0 && !body.is_empty();
        let high = if extended { body.u32()? } else { 0 };
        Ok(Self { major, minor, max_readahead, capabilities: u64::from(high) << 32 | u64::from(low) })
    }
}

/// A `fuse_init_out`.
pub(super) struct InitReply {
    pub max_readahead: u32,
    pub capabilities: u64,
    pub max_background: u16,
    pub max_write: u32,
}

impl InitReply {
    pub(super) fn bytes(&self) -> [u8; 64] {
        let mut out = [0; 64];
        let mut fill = Fill(&mut out);
        fill.u32(MAJOR);
        fill.u32(MINOR);
        fill.u32(self.max_readahead);
        fill.u32(self.capabilities as u32);
        fill.u16(self.max_background);
        // Where the kernel takes the device for congested: three quarters, as libfuse has it.
        fill.u16(self.max_background / 4 * 3);
        fill.u32(self.max_write);
        // Times have a granularity of one nanosecond.
        fill.u32(1);
        fill.u16(u16::try_from(self.max_write / 4096).unwrap_or(u16::MAX));
        fill.u16(0);
        fill.u32((self.capabilities >> 32) as u32);
        out
    }
}

/// Writes words into a reply of known size.
struct Fill<'a>(&'a mut [u8]);

impl Fill<'_> {
    fn bytes(&mut self, bytes: &[u8]) {
        let (head, rest) = std::mem::take(&mut self.0).split_at_mut(bytes.len());
        head.copy_from_slice(bytes);
        self.0 = rest;
    }

    fn u16(&mut self, word: u16) {
        self.bytes(&word.to_ne_bytes());
    }

    fn u32(&mut self, word: u32) {
        self.bytes(&word.to_ne_bytes());
    }

    fn u64(&mut self, word: u64) {
        self.bytes(&word.to_ne_bytes());
    }

    fn attr(&mut self, attr: &Attr) {
        for word in [attr.ino, attr.size, attr.blocks] {
            self.u64(word);
        }
        let times = [attr.atime, attr.mtime, attr.ctime];
        for time in times {
            self.u64(time.seconds.cast_unsigned());
        }
        for time in times {
            self.u32(time.nanoseconds);
        }
        for word in [attr.mode, attr.nlink, attr.uid, attr.gid, attr.rdev, BLOCK_SIZE, 0] {
            self.u32(word);
        }
    }

    fn entry(&mut self, entry: &Entry) {
        self.u64(entry.attr.ino);
        self.u64(entry.generation);
        self.u64(entry.entry_ttl.as_secs());
        self.u64(entry.attr_ttl.as_secs());
        self.u32(entry.entry_ttl.subsec_nanos());
        self.u32(entry.attr_ttl.subsec_nanos());
        self.attr(&entry.attr);
    }
}

pub(super) fn entry_bytes(entry: &Entry) -> [u8; ENTRY_BYTES] {
    let mut out = [0; ENTRY_BYTES];
    Fill(&mut out).entry(entry);
    out
}

/// An entry and an open file without a handle of its own: a `fuse_entry_out`, a `fuse_open_out`.
pub(super) fn created_bytes(entry: &Entry) -> [u8; ENTRY_BYTES + 16] {
    let mut out = [0; ENTRY_BYTES + 16];
    out[..ENTRY_BYTES].copy_from_slice(&entry_bytes(entry));
    out[ENTRY_BYTES..].copy_from_slice(&opened_bytes(0, FOPEN_KEEP_CACHE));
    out
}

pub(super) fn opened_bytes(handle: u64, flags: u32) -> [u8; 16] {
    let mut out = [0; 16];
    let mut fill = Fill(&mut out);
    fill.u64(handle);
    fill.u32(flags);
    out
}

pub(super) fn attr_bytes(attr: &Attr, ttl: std::time::Duration) -> [u8; 104] {
    let mut out = [0; 104];
    let mut fill = Fill(&mut out);
    fill.u64(ttl.as_secs());
    fill.u32(ttl.subsec_nanos());
    fill.u32(0);
    fill.attr(attr);
    out
}

pub(super) fn statfs_bytes(statfs: &Statfs) -> [u8; 80] {
    let mut out = [0; 80];
    let mut fill = Fill(&mut out);
    for word in [statfs.blocks, statfs.blocks_free, statfs.blocks_available, statfs.files, statfs.files_free]
    {
        fill.u64(word);
    }
    fill.u32(statfs.block_size);
    fill.u32(NAME_MAX as u32);
    fill.u32(statfs.block_size);
    out
}

/// A count of bytes: a `fuse_write_out`, a `fuse_getxattr_out`.
pub(super) fn count_bytes(count: u32) -> [u8; 8] {
    let mut out = [0; 8];
    Fill(&mut out).u32(count);
    out
}

/// A directory listing, up to the size that was asked for.
pub(super) struct Listing {
    bytes: Vec<u8>,
    limit: usize,
}

impl Listing {
    pub(super) fn new(limit: u32) -> Self {
        let limit = limit as usize;
        Self { bytes: Vec::with_capacity(limit.min(1 << 16)), limit }
    }

    /// Adds a name, with what a lookup of it would say where that is wanted; false when it does
    /// not fit any more.
    pub(super) fn add(&mut self, listed: &crate::serve::backend::Listed<'_>, entry: Option<&Entry>) -> bool {
        let head = if entry.is_some() { ENTRY_BYTES } else { 0 };
        let length = (head + DIRENT_BYTES + listed.name.len()).next_multiple_of(8);
        let start = self.bytes.len();
        if start + length > self.limit {
            return false;
        }
        self.bytes.resize(start + length, 0);
        let mut fill = Fill(&mut self.bytes[start..]);
        if let Some(entry) = entry {
            fill.entry(entry);
        }
        fill.u64(listed.ino);
        fill.u64(listed.next);
        fill.u32(listed.name.len() as u32);
        // As DT_* of readdir(3).
        fill.u32((listed.file_type & libc::S_IFMT) >> 12);
        fill.bytes(listed.name);
        true
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}
