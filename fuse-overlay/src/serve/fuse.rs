//! The FUSE protocol: the one file that knows the `fuser` crate.
//!
//! It turns requests into calls of a [`Backend`] and answers into replies. What `fuser` 0.18
//! lacks is answered by it with ENOSYS, which the kernel takes as "never ask again": O_TMPFILE,
//! STATX, SYNCFS.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, Config, CopyFileRangeFlags, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, Session, SessionACL, TimeOrNow, WriteFlags,
};
use nix::errno::Errno;

use super::attr::{Attr, Entry};
use super::backend::{Answer, At, Backend, Caller, New, Place, RenameKind, SetAttr, SetTime, Traits};
use crate::index::Timestamp;
use crate::mount::MAX_REQUEST_BYTES;

/// Requests that the kernel may have waiting in the background (read-ahead, mostly): enough to
/// keep a disk busy, few enough that the kernel's memory for them stays small.
const MAX_BACKGROUND: u16 = 64;

/// Bytes in a name.
const NAME_MAX: usize = 255;

/// What `fuser` names the block size of a file: 4 KiB as on every local filesystem, so that
/// programs that size their buffers by it behave as usual.
const BLOCK_SIZE: u32 = 4096;

/// Answers requests on a mounted connection until it ends.
pub(super) fn serve<B: Backend>(backend: B, device: OwnedFd, threads: usize) -> io::Result<()> {
    let mut config = Config::default();
    config.n_threads = Some(threads);
    // The kernel checks who may enter (allow_other, default_permissions).
    let traits = backend.traits();
    Session::from_fd(Adapter { backend, traits }, device, SessionACL::All, config)?.run()
}

struct Adapter<B> {
    backend: B,
    traits: Traits,
}

impl<B: Backend> Adapter<B> {
    fn make(&self, request: &Request, parent: INodeNo, name: &OsStr, new: New<'_>, reply: ReplyEntry) {
        let made = place(parent, name).and_then(|place| self.backend.make(place, new, caller(request)));
        entry_reply(reply, made);
    }

    fn negative(&self) -> FileAttr {
        // Inode 0 is how FUSE says that a name does not exist and may be remembered as such.
        FileAttr { ino: INodeNo(0), ..file_attr(&NO_ATTR) }
    }
}

const NO_ATTR: Attr = Attr {
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

impl<B: Backend> Filesystem for Adapter<B> {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let mut wanted = InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_ASYNC_DIO;
        if self.traits.stateless {
            wanted |= InitFlags::FUSE_NO_OPEN_SUPPORT | InitFlags::FUSE_NO_OPENDIR_SUPPORT;
        }
        if self.traits.changes_underneath {
            wanted |= InitFlags::FUSE_AUTO_INVAL_DATA;
        } else {
            wanted |= InitFlags::FUSE_EXPLICIT_INVAL_DATA | InitFlags::FUSE_CACHE_SYMLINKS;
        }
        if self.traits.writable {
            // The server clears setuid bits and capabilities: it saves the kernel a question
            // before every write.
            wanted |= InitFlags::FUSE_HANDLE_KILLPRIV_V2;
        } else if self.traits.stateless {
            wanted |= InitFlags::FUSE_EXPORT_SUPPORT;
        }
        // An older kernel lacks some; each only saves requests.
        let _ = config.add_capabilities(wanted & config.capabilities());
        // Both fail only above fuser's and the kernel's own limits, and then keep what was set.
        let _ = config.set_max_write(MAX_REQUEST_BYTES);
        let _ = config.set_max_background(MAX_BACKGROUND);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let answer = place(parent, name).and_then(|place| self.backend.lookup(place.parent, place.name));
        match answer {
            Err(Errno::ENOENT) if !self.traits.negative_ttl.is_zero() => {
                reply.entry(&self.traits.negative_ttl, &self.negative(), Generation(0));
            }
            answer => entry_reply(reply, answer),
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

    fn open(&self, _request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if self.traits.stateless {
            return reply.error(fuser::Errno::ENOSYS);
        }
        match self.backend.open(ino.0, flags.0) {
            Ok(()) => reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE),
            Err(errno) => reply.error(errno_of(errno)),
        }
    }

    fn opendir(&self, _request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if self.traits.stateless {
            return reply.error(fuser::Errno::ENOSYS);
        }
        match self.backend.opendir(ino.0) {
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::empty()),
            Err(errno) => reply.error(errno_of(errno)),
        }
    }

    fn releasedir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.backend.releasedir(handle.0);
        reply.ok();
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

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        self.make(request, parent, name, New::Node { mode, rdev }, reply);
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        self.make(request, parent, name, New::Directory { mode }, reply);
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let target = target.as_os_str().as_bytes();
        self.make(request, parent, name, New::Symlink { target }, reply);
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        // Without CREATE the kernel makes a node and opens it, which needs no request: so it
        // takes one request instead of two.
        if self.traits.stateless {
            return reply.error(fuser::Errno::ENOSYS);
        }
        let new = New::Node { mode: mode & 0o7777 | libc::S_IFREG, rdev: 0 };
        match place(parent, name).and_then(|place| self.backend.make(place, new, caller(request))) {
            Ok(entry) => reply.created(
                &entry.attr_ttl,
                &file_attr(&entry.attr),
                Generation(entry.generation),
                FileHandle(0),
                FopenFlags::FOPEN_KEEP_CACHE,
            ),
            Err(errno) => reply.error(errno_of(errno)),
        }
    }

    fn link(&self, _request: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        entry_reply(reply, place(parent, name).and_then(|place| self.backend.link(ino.0, place)));
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty_reply(reply, place(parent, name).and_then(|place| self.backend.unlink(place)));
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty_reply(reply, place(parent, name).and_then(|place| self.backend.rmdir(place)));
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let kind = if flags.is_empty() {
            RenameKind::Replace
        } else if flags == RenameFlags::RENAME_NOREPLACE {
            RenameKind::NoReplace
        } else if flags == RenameFlags::RENAME_EXCHANGE {
            RenameKind::Exchange
        } else {
            return reply.error(fuser::Errno::EINVAL);
        };
        let renamed = place(parent, name)
            .and_then(|from| place(new_parent, new_name).map(|to| (from, to)))
            .and_then(|(from, to)| self.backend.rename(from, to, kind));
        empty_reply(reply, renamed);
    }

    fn setattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = SetAttr { mode, uid, gid, size, atime: atime.map(set_time), mtime: mtime.map(set_time) };
        match self.backend.setattr(ino.0, set) {
            Ok((attr, ttl)) => reply.attr(&ttl, &file_attr(&attr)),
            Err(errno) => reply.error(errno_of(errno)),
        }
    }

    fn write(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let kill = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        match self.backend.write(At { ino: ino.0, offset }, data, kill) {
            // A request is at most MAX_REQUEST_BYTES long.
            Ok(()) => reply.written(data.len() as u32),
            Err(errno) => reply.error(errno_of(errno)),
        }
    }

    fn fallocate(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        empty_reply(reply, self.backend.fallocate(At { ino: ino.0, offset }, length, mode));
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

    fn copy_file_range(
        &self,
        _request: &Request,
        from: INodeNo,
        _from_handle: FileHandle,
        from_offset: u64,
        to: INodeNo,
        _to_handle: FileHandle,
        to_offset: u64,
        length: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let from = At { ino: from.0, offset: from_offset };
        let to = At { ino: to.0, offset: to_offset };
        match self.backend.copy_range(from, to, length) {
            Ok(done) => reply.written(u32::try_from(done).unwrap_or(u32::MAX)),
            Err(errno) => reply.error(errno_of(errno)),
        }
    }

    fn fsync(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        data_only: bool,
        reply: ReplyEmpty,
    ) {
        empty_reply(reply, self.backend.fsync(ino.0, data_only));
    }

    fn fsyncdir(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        data_only: bool,
        reply: ReplyEmpty,
    ) {
        empty_reply(reply, self.backend.fsync(ino.0, data_only));
    }

    fn setxattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        empty_reply(reply, self.backend.setxattr(ino.0, name.as_bytes(), value, flags));
    }

    fn removexattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty_reply(reply, self.backend.removexattr(ino.0, name.as_bytes()));
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
                NAME_MAX as u32,
                statfs.block_size,
            ),
            Err(errno) => reply.error(errno_of(errno)),
        }
    }

    fn getxattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        if self.traits.no_xattrs {
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

fn entry_reply(reply: ReplyEntry, answer: Answer<Entry>) {
    match answer {
        Ok(entry) => reply.entry_with_ttls(
            &entry.attr_ttl,
            &entry.entry_ttl,
            &file_attr(&entry.attr),
            Generation(entry.generation),
        ),
        Err(errno) => reply.error(errno_of(errno)),
    }
}

fn empty_reply(reply: ReplyEmpty, answer: Answer<()>) {
    match answer {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno_of(errno)),
    }
}

/// FUSE itself takes names of up to a path's length; Linux filesystems do not.
fn place(parent: INodeNo, name: &OsStr) -> Answer<Place<'_>> {
    let name = name.as_bytes();
    if name.len() > NAME_MAX { Err(Errno::ENAMETOOLONG) } else { Ok(Place { parent: parent.0, name }) }
}

fn caller(request: &Request) -> Caller {
    Caller { uid: request.uid(), gid: request.gid() }
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

fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(timestamp(time)),
    }
}

/// Undoes what `fuser` 0.18 makes of the kernel's seconds and nanoseconds: before 1970 it takes
/// the nanoseconds off where they should be put on (its `system_time_from_time`), which loses
/// nothing, so that it can be turned back. To be simplified when it is mended there.
fn timestamp(time: SystemTime) -> Timestamp {
    let (negative, distance) = match time.duration_since(UNIX_EPOCH) {
        Ok(since) => (false, since),
        Err(before) => (true, before.duration()),
    };
    let seconds = i64::try_from(distance.as_secs()).unwrap_or(i64::MAX);
    Timestamp { seconds: if negative { -seconds } else { seconds }, nanoseconds: distance.subsec_nanos() }
}
