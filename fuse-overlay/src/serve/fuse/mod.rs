//! The FUSE protocol: turns requests into calls of a [`Backend`] and answers into replies.
//!
//! Written here and not taken from a library, because the write side needs what the libraries do
//! not pass on: O_TMPFILE, who may keep set-id bits, which ACLs take them away. What is only read is
//! served by `super::reader`. What is not known
//! here is answered with ENOSYS, which the kernel takes as "never ask again" and does itself or
//! without: FLUSH, ACCESS, locks, STATX, IOCTL, POLL.

mod session;
mod wire;

use std::io;
use std::os::fd::OwnedFd;

use nix::errno::Errno;

pub(super) use self::session::pass;
use self::session::{Handler, Reply};
use self::wire::{Body, Header, Listing, capability, opcode};
use super::Options;
use super::attr::{Entry, NO_ATTR};
use super::backend::{Answer, At, Backend, Caller, New, Place, RenameKind, Traits, XattrFlags};

/// Answers requests on a mounted connection until it ends.
pub(super) fn serve<B: Backend>(backend: B, device: OwnedFd, options: Options) -> io::Result<()> {
    let mut traits = backend.traits();
    traits.writeback &= options.writeback && options.threads.get() > 1;
    session::run(Adapter { backend, traits }, device, options.threads.get())
}

pub(super) struct Adapter<B> {
    backend: B,
    traits: Traits,
}

#[cfg(any(test, fuzzing))]
impl<B: Backend> Adapter<B> {
    pub(super) fn new(backend: B) -> Self {
        let traits = backend.traits();
        Self { backend, traits }
    }

    pub(super) fn backend(&self) -> &B {
        &self.backend
    }

    /// Answers a request whose arguments begin with `other`'s number where they begin with one.
    pub(super) fn answer(
        &self,
        opcode: u32,
        ino: u64,
        other: u64,
        body: &[u8],
        device: std::os::fd::BorrowedFd<'_>,
    ) {
        let mut request = Vec::with_capacity(body.len() + 48);
        request.extend_from_slice(&0_u32.to_ne_bytes());
        request.extend_from_slice(&opcode.to_ne_bytes());
        request.extend_from_slice(&1_u64.to_ne_bytes());
        request.extend_from_slice(&ino.to_ne_bytes());
        request.extend_from_slice(&[0; 16]);
        if matches!(opcode, opcode::RENAME | opcode::RENAME2 | opcode::LINK) {
            request.extend_from_slice(&other.to_ne_bytes());
        }
        request.extend_from_slice(body);
        if let Ok((header, body)) = Header::read(&request) {
            self.handle(header, body, Reply::new(device, header.unique));
        }
    }
}

impl<B: Backend> Handler for Adapter<B> {
    fn capabilities(&self, _offered: u64) -> u64 {
        let mut wanted = capability::ASYNC_READ
            | capability::BIG_WRITES
            | capability::MAX_PAGES
            | capability::INIT_EXT
            | capability::DO_READDIRPLUS
            | capability::READDIRPLUS_AUTO
            | capability::PARALLEL_DIROPS
            | capability::ASYNC_DIO;
        if self.traits.stateless {
            wanted |= capability::NO_OPEN_SUPPORT | capability::NO_OPENDIR_SUPPORT;
        }
        if self.traits.changes_underneath {
            wanted |= capability::AUTO_INVAL_DATA;
        } else {
            wanted |= capability::EXPLICIT_INVAL_DATA | capability::CACHE_SYMLINKS;
        }
        if self.traits.writable {
            // The server clears setuid bits and capabilities: it saves the kernel a question
            // before every write. It applies the umask, which a default ACL overrides.
            wanted |= capability::HANDLE_KILLPRIV_V2
                | capability::SETXATTR_EXT
                | capability::POSIX_ACL
                | capability::DONT_MASK;
        } else if self.traits.stateless {
            wanted |= capability::EXPORT_SUPPORT;
        }
        if self.traits.writeback {
            wanted |= capability::WRITEBACK_CACHE;
        }
        // An older kernel lacks some; each only saves requests.
        wanted
    }

    fn may_hang(&self) -> bool {
        self.traits.changes_underneath
    }

    fn handle(&self, header: Header, body: Body<'_>, reply: Reply<'_>) {
        match header.opcode {
            opcode::LOOKUP => self.lookup(header, body, reply),
            opcode::FORGET | opcode::BATCH_FORGET => self.forget(header, body),
            opcode::GETATTR => {
                reply.with(self.backend.getattr(header.ino), |(attr, ttl)| wire::attr_bytes(attr, *ttl));
            }
            opcode::SETATTR => self.setattr(header, body, reply),
            opcode::READLINK => self.hand_over(reply, |then| self.backend.readlink(header.ino, then)),
            opcode::MKNOD | opcode::MKDIR | opcode::SYMLINK | opcode::CREATE | opcode::TMPFILE => {
                self.make(header, body, reply);
            }
            opcode::UNLINK => reply.empty(place(header, body).and_then(|place| self.backend.unlink(place))),
            opcode::RMDIR => reply.empty(place(header, body).and_then(|place| self.backend.rmdir(place))),
            opcode::RENAME | opcode::RENAME2 => reply.empty(self.rename(header, body)),
            opcode::LINK => reply.with(self.link(header, body), wire::entry_bytes),
            opcode::OPEN => self.open(header, body, reply),
            opcode::OPENDIR => self.opendir(header, reply),
            // Without OPEN the kernel does not send it once it knows; the first few are in flight.
            opcode::RELEASE => reply.ok(),
            opcode::RELEASEDIR => self.releasedir(body, reply),
            opcode::READ => self.read(header, body, reply),
            opcode::WRITE => self.write(header, body, reply),
            opcode::STATFS => reply.with(self.backend.statfs(), wire::statfs_bytes),
            opcode::FSYNC | opcode::FSYNCDIR => reply.empty(self.fsync(header, body)),
            opcode::SETXATTR => reply.empty(self.setxattr(header, body)),
            opcode::GETXATTR => self.getxattr(header, body, reply),
            opcode::LISTXATTR => self.listxattr(header, body, reply),
            opcode::REMOVEXATTR => {
                reply.empty(body_name(body).and_then(|name| self.backend.removexattr(header.ino, name)));
            }
            opcode::READDIR | opcode::READDIRPLUS => self.readdir(header, body, reply),
            opcode::FALLOCATE => reply.empty(self.fallocate(header, body)),
            opcode::LSEEK => {
                let found = self.lseek(header, body, &reply);
                reply.with(found, |found| found.to_ne_bytes());
            }
            opcode::COPY_FILE_RANGE => reply.with(self.copy_file_range(header, body), |done| {
                wire::count_bytes(u32::try_from(*done).unwrap_or(u32::MAX))
            }),
            opcode::COPY_FILE_RANGE_64 => {
                reply.with(self.copy_file_range(header, body), |done| done.to_ne_bytes());
            }
            _ => reply.error(Errno::ENOSYS),
        }
    }
}

impl<B: Backend> Adapter<B> {
    fn lookup(&self, header: Header, body: Body<'_>, reply: Reply<'_>) {
        let answer = place(header, body).and_then(|place| self.backend.lookup(place.parent, place.name));
        match answer {
            Err(Errno::ENOENT) if !self.traits.negative_ttl.is_zero() => {
                let ttl = self.traits.negative_ttl;
                let negative = Entry { attr: NO_ATTR, generation: 0, entry_ttl: ttl, attr_ttl: ttl };
                reply.data(&wire::entry_bytes(&negative));
            }
            answer => reply.with(answer, wire::entry_bytes),
        }
    }

    /// The one request that has no answer.
    fn forget(&self, header: Header, mut body: Body<'_>) {
        let forgotten: Answer<()> = (|| {
            if header.opcode == opcode::FORGET {
                self.backend.forget(header.ino, body.u64()?);
                return Ok(());
            }
            let count = body.u32()?;
            body.skip(4)?;
            for _ in 0..count {
                let (ino, references) = (body.u64()?, body.u64()?);
                self.backend.forget(ino, references);
            }
            Ok(())
        })();
        // A list that is shorter than it says leaves inodes remembered, nothing worse.
        let _ = forgotten;
    }

    fn setattr(&self, header: Header, mut body: Body<'_>, reply: Reply<'_>) {
        let answer = body.set_attr().and_then(|set| self.backend.setattr(header.ino, set));
        reply.with(answer, |(attr, ttl)| wire::attr_bytes(attr, *ttl));
    }

    fn make(&self, header: Header, mut body: Body<'_>, reply: Reply<'_>) {
        // Without CREATE the kernel makes a node and opens it, which needs no request: so it
        // takes one request instead of two.
        if header.opcode == opcode::CREATE && self.traits.stateless {
            return reply.error(Errno::ENOSYS);
        }
        let regular = |mode: u32| New::Node { mode: mode & 0o7777 | libc::S_IFREG, rdev: 0 };
        let made: Answer<Entry> = (|| {
            let (new, umask, name);
            match header.opcode {
                opcode::MKNOD => {
                    let (mode, rdev) = (body.u32()?, body.u32()?);
                    umask = body.u32()?;
                    body.skip(4)?;
                    name = body.name()?;
                    // Directories and symlinks have requests of their own; the kernel asks for none here
                    // (mknod(2)).
                    if !matches!(
                        mode & libc::S_IFMT,
                        libc::S_IFREG | libc::S_IFCHR | libc::S_IFBLK | libc::S_IFIFO | libc::S_IFSOCK
                    ) {
                        return Err(Errno::EINVAL);
                    }
                    new = New::Node { mode, rdev };
                }
                opcode::MKDIR => {
                    let mode = body.u32()?;
                    umask = body.u32()?;
                    name = body.name()?;
                    new = New::Directory { mode };
                }
                opcode::SYMLINK => {
                    (umask, name) = (0, body.name()?);
                    new = New::Symlink { target: body.text()? };
                }
                _ => {
                    let _flags = body.u32()?;
                    new = regular(body.u32()?);
                    umask = body.u32()?;
                    body.skip(4)?;
                    name = if header.opcode == opcode::TMPFILE { &[] } else { body.name()? };
                }
            }
            let caller = Caller { uid: header.uid, gid: header.gid, umask };
            let place = Place { parent: header.ino, name };
            if header.opcode == opcode::TMPFILE {
                self.backend.make_unnamed(header.ino, new, caller)
            } else {
                self.backend.make(place, new, caller)
            }
        })();
        match header.opcode {
            opcode::CREATE | opcode::TMPFILE => reply.with(made, wire::created_bytes),
            _ => reply.with(made, wire::entry_bytes),
        }
    }

    fn rename(&self, header: Header, mut body: Body<'_>) -> Answer<()> {
        let new_parent = body.u64()?;
        let flags = if header.opcode == opcode::RENAME2 {
            let flags = body.u32()?;
            body.skip(4)?;
            flags
        } else {
            0
        };
        let kind = match flags {
            0 => RenameKind::Replace,
            libc::RENAME_NOREPLACE => RenameKind::NoReplace,
            libc::RENAME_EXCHANGE => RenameKind::Exchange,
            WHITEOUT => RenameKind::Whiteout,
            WHITEOUT_NO_REPLACE => RenameKind::WhiteoutNoReplace,
            _ => return Err(Errno::EINVAL),
        };
        let from = Place { parent: header.ino, name: body.name()? };
        let to = Place { parent: new_parent, name: body.name()? };
        self.backend.rename(from, to, kind)
    }

    fn link(&self, header: Header, mut body: Body<'_>) -> Answer<Entry> {
        let ino = body.u64()?;
        self.backend.link(ino, place(header, body)?)
    }

    fn open(&self, header: Header, mut body: Body<'_>, reply: Reply<'_>) {
        if self.traits.stateless {
            return reply.error(Errno::ENOSYS);
        }
        let opened = body.u32().and_then(|flags| self.backend.open(header.ino, flags.cast_signed()));
        reply.with(opened, |()| wire::opened_bytes(0, wire::FOPEN_KEEP_CACHE));
    }

    fn opendir(&self, header: Header, reply: Reply<'_>) {
        if self.traits.stateless {
            return reply.error(Errno::ENOSYS);
        }
        reply.with(self.backend.opendir(header.ino), |handle| wire::opened_bytes(*handle, 0));
    }

    fn releasedir(&self, mut body: Body<'_>, reply: Reply<'_>) {
        if let Ok(handle) = body.u64() {
            self.backend.releasedir(handle);
        }
        reply.ok();
    }

    fn read(&self, header: Header, mut body: Body<'_>, reply: Reply<'_>) {
        let asked: Answer<_> = (|| {
            let _handle = body.u64()?;
            Ok((body.u64()?, body.u32()?))
        })();
        self.hand_over(reply, |then| {
            let (offset, size) = asked?;
            self.backend.read(At { ino: header.ino, offset }, size, then)
        });
    }

    fn write(&self, header: Header, mut body: Body<'_>, reply: Reply<'_>) {
        let written: Answer<u32> = (|| {
            let _handle = body.u64()?;
            let (offset, size, flags) = (body.u64()?, body.u32()?, body.u32()?);
            body.skip(16)?;
            let data = body.bytes(size)?;
            let kill = flags & wire::WRITE_KILL_SUIDGID != 0;
            self.backend.write(At { ino: header.ino, offset }, data, kill)
        })();
        reply.with(written, |count| wire::count_bytes(*count));
    }

    /// Answers with what `ask` hands to its function, straight from where it lies.
    fn hand_over(&self, reply: Reply<'_>, ask: impl FnOnce(&mut dyn FnMut(&[u8])) -> Answer<()>) {
        // The reply is consumed inside or, on an error, afterwards: never both.
        let mut reply = Some(reply);
        let outcome = ask(&mut |data| {
            if let Some(reply) = reply.take() {
                reply.data(data);
            }
        });
        if let (Err(errno), Some(reply)) = (outcome, reply) {
            reply.error(errno);
        }
    }

    fn fsync(&self, header: Header, mut body: Body<'_>) -> Answer<()> {
        let _handle = body.u64()?;
        let flags = body.u32()?;
        self.backend.fsync(header.ino, flags & wire::FSYNC_FDATASYNC != 0)
    }

    fn setxattr(&self, header: Header, mut body: Body<'_>) -> Answer<()> {
        let (size, flags, more) = (body.u32()?, body.u32()?, body.u32()?);
        body.skip(4)?;
        let name = body.text()?;
        let value = body.bytes(size)?;
        let clear_setgid = more & wire::SETXATTR_ACL_KILL_SGID != 0;
        self.backend.setxattr(
            header.ino,
            name,
            value,
            XattrFlags { flags: flags.cast_signed(), clear_setgid },
        )
    }

    fn getxattr(&self, header: Header, mut body: Body<'_>, reply: Reply<'_>) {
        if self.traits.no_xattrs {
            return reply.error(Errno::ENOSYS);
        }
        let asked: Answer<_> = (|| {
            let size = body.u32()?;
            body.skip(4)?;
            Ok((size, body.text()?))
        })();
        let mut reply = Some(reply);
        let outcome = asked.and_then(|(size, name)| {
            self.backend.getxattr(header.ino, name, |value| {
                if let Some(reply) = reply.take() {
                    xattr_reply(reply, value, size);
                }
            })
        });
        if let (Err(errno), Some(reply)) = (outcome, reply) {
            reply.error(errno);
        }
    }

    fn listxattr(&self, header: Header, mut body: Body<'_>, reply: Reply<'_>) {
        // Never ENOSYS: programs that copy a file with its attributes take an empty list for
        // what it is, but complain of a filesystem that has none.
        let answer = body.u32().and_then(|size| Ok((size, self.backend.listxattr(header.ino)?)));
        match answer {
            Ok((size, names)) => xattr_reply(reply, &names, size),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdir(&self, header: Header, mut body: Body<'_>, reply: Reply<'_>) {
        let listed: Answer<Listing> = (|| {
            let (handle, offset, size) = (body.u64()?, body.u64()?, body.u32()?);
            let at = At { ino: header.ino, offset };
            let mut listing = Listing::new(size);
            if header.opcode == opcode::READDIR {
                self.backend.readdir(at, handle, |listed| listing.add(&listed, None))?;
            } else {
                self.backend.readdirplus(at, handle, |listed, entry| listing.add(&listed, Some(entry)))?;
            }
            Ok(listing)
        })();
        match listed {
            Ok(listing) => reply.data(listing.bytes()),
            Err(errno) => reply.error(errno),
        }
    }

    fn fallocate(&self, header: Header, mut body: Body<'_>) -> Answer<()> {
        let _handle = body.u64()?;
        let (offset, length, mode) = (body.u64()?, body.u64()?, body.u32()?);
        self.backend.fallocate(At { ino: header.ino, offset }, length, mode.cast_signed())
    }

    fn lseek(&self, header: Header, mut body: Body<'_>, reply: &Reply<'_>) -> Answer<u64> {
        // The kernel may have data that it has not sent, and asks all the same. Where it cannot be
        // had now the kernel answers itself, from now on, and takes all of a file for data.
        if self.traits.writeback && !reply.write_back(header.ino) {
            return Err(Errno::ENOSYS);
        }
        let _handle = body.u64()?;
        let (offset, whence) = (body.u64()?, body.u32()?);
        if i64::try_from(offset).is_err() {
            return Err(Errno::ENXIO);
        }
        self.backend.seek(At { ino: header.ino, offset }, whence.cast_signed())
    }

    fn copy_file_range(&self, header: Header, mut body: Body<'_>) -> Answer<u64> {
        let _handle = body.u64()?;
        let from = At { ino: header.ino, offset: body.u64()? };
        let to_ino = body.u64()?;
        let _handle = body.u64()?;
        let to = At { ino: to_ino, offset: body.u64()? };
        let length = body.u64()?;
        self.backend.copy_range(from, to, length)
    }
}

/// A rename that leaves a whiteout, as an overlay does that has its upper here.
const WHITEOUT: u32 = libc::RENAME_WHITEOUT;
const WHITEOUT_NO_REPLACE: u32 = libc::RENAME_WHITEOUT | libc::RENAME_NOREPLACE;

fn place<'a>(header: Header, body: Body<'a>) -> Answer<Place<'a>> {
    Ok(Place { parent: header.ino, name: body_name(body)? })
}

fn body_name(mut body: Body<'_>) -> Answer<&[u8]> {
    body.name()
}

/// Size 0 asks how large the value is.
fn xattr_reply(reply: Reply<'_>, value: &[u8], size: u32) {
    match u32::try_from(value.len()) {
        Ok(length) if size == 0 => reply.data(&wire::count_bytes(length)),
        Ok(length) if length <= size => reply.data(value),
        _ => reply.error(Errno::ERANGE),
    }
}
