//! The read side's FUSE protocol, by way of the `fuser` crate: the one file that knows it.
//!
//! An image's packed layers are never written to, so a third of the protocol is enough, and all of
//! that is in `fuser`. The write side ([`super::fuse`]) needs what `fuser` 0.18 does not pass on and
//! speaks the protocol itself. Requests that change something do not come: the mount is read-only.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    Config, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEntry, ReplyLseek,
    ReplyOpen, ReplyStatfs, ReplyXattr, Request, Session, SessionACL,
};
use nix::errno::Errno;

use super::MAX_BACKGROUND;
use super::attr::{Attr, Entry, NO_ATTR};
use super::backend::{At, Backend};
use crate::index::Timestamp;
use crate::mount::MAX_REQUEST_BYTES;

/// What `fuser` names the block size of a file: 4 KiB as on every local filesystem, so that
/// programs that size their buffers by it behave as usual.
const BLOCK_SIZE: u32 = 4096;

/// Bytes in a name.
const NAME_MAX: u32 = 255;

/// Answers requests on a mounted connection until it ends. Files and directories of `backend` need
/// no OPEN and never change.
pub(super) fn serve<B: Backend>(backend: B, device: OwnedFd, threads: usize) -> io::Result<()> {
    let mut config = Config::default();
    config.n_threads = Some(threads);
    let no_xattrs = backend.traits().no_xattrs;
    let negative_ttl = backend.traits().negative_ttl;
    // The kernel checks who may enter (allow_other, default_permissions).
    Session::from_fd(Reader { backend, no_xattrs, negative_ttl }, device, SessionACL::All, config)?.run()
}

struct Reader<B> {
    backend: B,
    no_xattrs: bool,
    negative_ttl: Duration,
}

impl<B: Backend> Filesystem for Reader<B> {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_NO_OPEN_SUPPORT
            | InitFlags::FUSE_NO_OPENDIR_SUPPORT
            | InitFlags::FUSE_EXPLICIT_INVAL_DATA
            | InitFlags::FUSE_CACHE_SYMLINKS
            | InitFlags::FUSE_EXPORT_SUPPORT;
        // An older kernel lacks some; each only saves requests.
        let _ = config.add_capabilities(wanted & config.capabilities());
        // Both fail only above fuser's and the kernel's own limits, and then keep what was set.
        let _ = config.set_max_write(MAX_REQUEST_BYTES);
        let _ = config.set_max_background(MAX_BACKGROUND);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.backend.lookup(parent.0, name.as_bytes()) {
            Ok(entry) => reply.entry_with_ttls(
                &entry.attr_ttl,
                &entry.entry_ttl,
                &file_attr(&entry.attr),
                Generation(entry.generation),
            ),
            Err(Errno::ENOENT) if !self.negative_ttl.is_zero() => {
                // Inode 0 is how FUSE says that a name does not exist and may be remembered as such.
                reply.entry(&self.negative_ttl, &file_attr(&NO_ATTR), Generation(0));
            }
            Err(errno) => reply.error(errno_of(errno)),
        }
    }

    fn forget(&self, _request: &Request, ino: INodeNo, count: u64) {
        self.backend.forget(ino.0, count);
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        match self.backend.getattr(ino.0) {
            Ok((attr, ttl)) => reply.attr(&ttl, &file_attr(&attr)),
            Err(errno) => reply.error(errno_of(errno)),
        }
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        // The reply is consumed inside or, on an error, afterwards: never both.
        let mut reply = Some(reply);
        let outcome = self.backend.readlink(ino.0, |target| {
            if let Some(reply) = reply.take() {
                reply.data(target);
            }
        });
        if let (Err(errno), Some(reply)) = (outcome, reply) {
            reply.error(errno_of(errno));
        }
    }

    fn open(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn opendir(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn read(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut reply = Some(reply);
        let outcome = self.backend.read(At { ino: ino.0, offset }, size, |data| {
            if let Some(reply) = reply.take() {
                reply.data(data);
            }
        });
        if let (Err(errno), Some(reply)) = (outcome, reply) {
            reply.error(errno_of(errno));
        }
    }

    fn readdir(
        &self,
        _request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let at = At { ino: ino.0, offset };
        let outcome = self.backend.readdir(at, handle.0, |listed| {
            let name = OsStr::from_bytes(listed.name);
            !reply.add(INodeNo(listed.ino), listed.next, file_type(listed.file_type), name)
        });
        match outcome {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno_of(errno)),
        }
    }

    fn readdirplus(
        &self,
        _request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let at = At { ino: ino.0, offset };
        let outcome = self.backend.readdirplus(at, handle.0, |listed, entry: &Entry| {
            let name = OsStr::from_bytes(listed.name);
            let attr = file_attr(&entry.attr);
            let generation = Generation(entry.generation);
            !reply.add(INodeNo(listed.ino), listed.next, name, &entry.entry_ttl, &attr, generation)
        });
        match outcome {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno_of(errno)),
        }
    }

    fn lseek(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let Ok(offset) = u64::try_from(offset) else { return reply.error(fuser::Errno::ENXIO) };
        match self.backend.seek(At { ino: ino.0, offset }, whence) {
            Ok(found) => reply.offset(found.cast_signed()),
            Err(errno) => reply.error(errno_of(errno)),
        }
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        match self.backend.statfs() {
            Ok(statfs) => reply.statfs(
                statfs.blocks,
                statfs.blocks_free,
                statfs.blocks_available,
                statfs.files,
                statfs.files_free,
                statfs.block_size,
                NAME_MAX,
                statfs.block_size,
            ),
            Err(errno) => reply.error(errno_of(errno)),
        }
    }

    fn getxattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        if self.no_xattrs {
            return reply.error(fuser::Errno::ENOSYS);
        }
        let mut reply = Some(reply);
        let outcome = self.backend.getxattr(ino.0, name.as_bytes(), |value| {
            if let Some(reply) = reply.take() {
                xattr_reply(reply, value, size);
            }
        });
        if let (Err(errno), Some(reply)) = (outcome, reply) {
            reply.error(errno_of(errno));
        }
    }

    fn listxattr(&self, _request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        // Never ENOSYS: programs that copy a file with its attributes take an empty list for
        // what it is, but complain of a filesystem that has none.
        match self.backend.listxattr(ino.0) {
            Ok(names) => xattr_reply(reply, &names, size),
            Err(errno) => reply.error(errno_of(errno)),
        }
    }
}

/// Size 0 asks how large the value is.
fn xattr_reply(reply: ReplyXattr, value: &[u8], size: u32) {
    match u32::try_from(value.len()) {
        Ok(length) if size == 0 => reply.size(length),
        Ok(length) if length <= size => reply.data(value),
        _ => reply.error(fuser::Errno::ERANGE),
    }
}

fn errno_of(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno as i32)
}

fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: UNIX_EPOCH,
        kind: file_type(attr.mode),
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

fn file_type(mode: u32) -> FileType {
    match mode & libc::S_IFMT {
        libc::S_IFDIR => FileType::Directory,
        libc::S_IFLNK => FileType::Symlink,
        libc::S_IFCHR => FileType::CharDevice,
        libc::S_IFBLK => FileType::BlockDevice,
        libc::S_IFIFO => FileType::NamedPipe,
        libc::S_IFSOCK => FileType::Socket,
        _ => FileType::RegularFile,
    }
}

fn system_time(time: Timestamp) -> SystemTime {
    let nanoseconds = Duration::from_nanos(u64::from(time.nanoseconds));
    let seconds = Duration::from_secs(time.seconds.unsigned_abs());
    let whole =
        if time.seconds < 0 { UNIX_EPOCH.checked_sub(seconds) } else { UNIX_EPOCH.checked_add(seconds) };
    whole.and_then(|whole| whole.checked_add(nanoseconds)).unwrap_or(UNIX_EPOCH)
}
