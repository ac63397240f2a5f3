//! File data: reading, writing, copy-up, attributes that touch data, syncing.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, copy_file_range, fallocate};
use nix::sys::stat::futimens;
use nix::sys::time::TimeSpec;

use super::change::{Change, Data, Meta};
use super::journal::Need;
use super::lower::seek_file;
use super::{Overlay, lock, now};
use crate::index::Timestamp;
use crate::serve::backend::{Answer, At, SetAttr, SetTime};
use crate::serve::buffer;
use crate::serve::directory::read_full;

/// The most that one copy request moves, so that it does not hold a thread for long.
const COPY_LIMIT: u64 = 64 << 20;

/// Removed by the kernel's rule when a file is written to.
const CAPABILITY: &[u8] = b"security.capability";

impl Overlay {
    pub(super) fn read_data<R>(&self, at: At, size: u32, then: impl FnOnce(&[u8]) -> R) -> Answer<R> {
        match self.data_of(at.ino)? {
            Data::Empty => Ok(then(&[])),
            Data::Lower => self.lower.read(at, size, then),
            Data::Object => {
                let file = self.upper()?.objects.file(at.ino)?;
                buffer::with(size as usize, |buffer| {
                    let count = read_full(&file, buffer, at.offset)?;
                    Ok(then(&buffer[..count]))
                })
            }
        }
    }

    pub(super) fn seek_data(&self, at: At, whence: i32) -> Answer<u64> {
        match self.data_of(at.ino)? {
            Data::Empty => Err(Errno::ENXIO),
            Data::Lower => self.lower.seek(at, whence),
            Data::Object => seek_file(&*self.upper()?.objects.file(at.ino)?, at.offset, whence),
        }
    }

    pub(super) fn write_data(&self, at: At, data: &[u8], kill_privileges: bool) -> Answer<()> {
        let file = self.object(at.ino)?;
        file.write_all_at(data, at.offset).map_err(|error| errno_of(&error))?;
        self.strip_privileges(at.ino, kill_privileges)
    }

    pub(super) fn allocate(&self, at: At, length: u64, mode: i32) -> Answer<()> {
        let file = self.object(at.ino)?;
        let flags = FallocateFlags::from_bits(mode).ok_or(Errno::EOPNOTSUPP)?;
        let offset = i64::try_from(at.offset).map_err(|_| Errno::EFBIG)?;
        let length = i64::try_from(length).map_err(|_| Errno::EFBIG)?;
        fallocate(&*file, flags, offset, length)?;
        self.strip_privileges(at.ino, true)
    }

    pub(super) fn copy_between(&self, from: At, to: At, length: u64) -> Answer<u64> {
        // From a lower file the kernel copies as well as we could: through its page cache.
        if self.data_of(from.ino)? != Data::Object {
            return Err(Errno::EOPNOTSUPP);
        }
        let source = self.upper()?.objects.file(from.ino)?;
        let target = self.object(to.ino)?;
        let mut from_offset = i64::try_from(from.offset).map_err(|_| Errno::EFBIG)?;
        let mut to_offset = i64::try_from(to.offset).map_err(|_| Errno::EFBIG)?;
        let length = usize::try_from(length.min(COPY_LIMIT)).unwrap_or(0);
        let done = copy_file_range(&*source, Some(&mut from_offset), &*target, Some(&mut to_offset), length)?;
        self.strip_privileges(to.ino, true)?;
        Ok(done as u64)
    }

    pub(super) fn sync(&self, ino: u64, data_only: bool) -> Answer<()> {
        let upper = self.upper()?;
        if upper.volatile {
            return Ok(());
        }
        let data = self.read_state().get(ino).map(|inode| inode.meta.data);
        if data == Some(Data::Object) {
            let file = upper.objects.file(ino)?;
            if data_only { file.sync_data() } else { file.sync_all() }.map_err(|error| errno_of(&error))?;
            upper.objects.sync_names()?;
        }
        let syncer = lock(&upper.journal).syncer();
        syncer.sync()
    }

    pub(super) fn set_attributes(&self, ino: u64, set: SetAttr) -> Answer<()> {
        let base = self.meta(ino)?;
        if let Some(size) = set.size {
            if !base.is_file() {
                return Err(if base.is_directory() { Errno::EISDIR } else { Errno::EINVAL });
            }
            self.truncate(ino, size)?;
            // Only the machine's own root could keep setuid bits over this, and fuser does not pass
            // on whether it is that one who asks.
            self.strip_privileges(ino, true)?;
        }
        let time = now();
        let [atime, mtime] = [set.atime, set.mtime].map(|set| match set {
            None => None,
            Some(SetTime::Now) => Some(time),
            Some(SetTime::At(at)) => Some(at),
        });
        let owner_changes = set.uid.is_some() || set.gid.is_some();
        let drops_capability = owner_changes && self.has_capability(ino);
        let own_xattrs = drops_capability.then(|| self.own_xattrs(ino)).transpose()?;
        let mut object = false;
        self.commit(Need::Space, |edit| {
            object = edit.current(ino, base).data == Data::Object;
            edit.inode(ino, base, |meta| {
                if owner_changes {
                    meta.uid = set.uid.unwrap_or(meta.uid);
                    meta.gid = set.gid.unwrap_or(meta.gid);
                    meta.drop_privileges();
                }
                if let Some(mode) = set.mode {
                    meta.mode = meta.mode & libc::S_IFMT | mode & 0o7777;
                }
                if !object {
                    meta.atime = atime.unwrap_or(meta.atime);
                    meta.mtime = mtime.unwrap_or(meta.mtime);
                }
                meta.ctime = time;
            });
            if let Some(own) = own_xattrs {
                edit.extend(own);
                edit.push(Change::Xattr(ino, CAPABILITY.into(), None));
            }
            Ok(())
        })?;
        if object && (atime.is_some() || mtime.is_some()) {
            let file = self.upper()?.objects.file(ino)?;
            set_times(&file, atime, mtime)?;
        }
        Ok(())
    }

    fn truncate(&self, ino: u64, size: u64) -> Answer<()> {
        let guard = self.stripe(ino);
        let base = self.meta(ino)?;
        match (base.data, size) {
            (Data::Empty, 0) => self.mark_modified(ino, base),
            // Nothing of the lower data is wanted.
            (Data::Lower, 0) => self.commit(Need::Release, |edit| {
                edit.inode(ino, base, |meta| {
                    meta.data = Data::Empty;
                    meta.mtime = now();
                    meta.ctime = meta.mtime;
                });
                Ok(())
            }),
            (Data::Object, _) => {
                drop(guard);
                self.upper()?.objects.file(ino)?.set_len(size).map_err(|error| errno_of(&error))
            }
            _ => {
                let file = self.copy_up(ino, base, size)?;
                file.set_len(size).map_err(|error| errno_of(&error))?;
                // Even where the size stays the same, a truncation is a modification.
                set_times(&file, None, Some(now()))
            }
        }
    }

    fn mark_modified(&self, ino: u64, base: Meta) -> Answer<()> {
        self.commit(Need::Release, |edit| {
            edit.inode(ino, base, |meta| {
                meta.mtime = now();
                meta.ctime = meta.mtime;
            });
            Ok(())
        })
    }

    fn data_of(&self, ino: u64) -> Answer<Data> {
        let state = self.read_state();
        Ok(state.get(ino).map_or(Data::Lower, |inode| inode.meta.data))
    }

    /// The file that holds an inode's data, after a copy-up if need be.
    fn object(&self, ino: u64) -> Answer<Arc<File>> {
        let upper = self.upper()?;
        if self.data_of(ino)? == Data::Object {
            return upper.objects.file(ino);
        }
        let _guard = self.stripe(ino);
        let base = self.meta(ino)?;
        if base.data == Data::Object {
            return upper.objects.file(ino);
        }
        self.copy_up(ino, base, u64::MAX)
    }

    /// Makes the object of a file that has none; the caller holds its stripe. Of a lower file's
    /// data, the first `limit` bytes are kept.
    fn copy_up(&self, ino: u64, base: Meta, limit: u64) -> Answer<Arc<File>> {
        if !base.is_file() {
            return Err(Errno::EINVAL);
        }
        let upper = self.upper()?;
        let file = upper.objects.create(ino)?;
        let filled = match base.data {
            Data::Lower => self.fill(ino, &file, &base, limit),
            _ => Ok(()),
        };
        let committed = filled.and_then(|()| {
            self.commit(Need::Space, |edit| {
                edit.inode(ino, base, |meta| meta.data = Data::Object);
                Ok(())
            })
        });
        if committed.is_err() {
            // What cannot be removed now is removed when the upper is opened next.
            let _ = upper.objects.remove(ino);
        }
        committed.map(|()| file)
    }

    /// Copies a lower file's data. It must be durable before the journal can be, or a crash could
    /// leave neither the old data nor the new.
    fn fill(&self, ino: u64, file: &File, base: &Meta, limit: u64) -> Answer<()> {
        let upper = self.upper()?;
        self.lower.copy_data(ino, file, limit)?;
        set_times(file, Some(base.atime), Some(base.mtime))?;
        if !upper.volatile {
            file.sync_data().map_err(|error| errno_of(&error))?;
            upper.objects.sync_names()?;
        }
        Ok(())
    }

    /// What a write takes away: a file's capabilities, and, where the writer may not keep them,
    /// its setuid and setgid bits.
    fn strip_privileges(&self, ino: u64, kill: bool) -> Answer<()> {
        let (mode, own_capability, own_xattrs) = match self.read_state().get(ino) {
            Some(inode) => {
                let own = inode.xattrs.as_ref();
                (inode.meta.mode, own.is_some_and(|own| own.contains_key(CAPABILITY)), own.is_some())
            }
            None => return Ok(()),
        };
        let capability = own_capability || !own_xattrs && self.has_capability(ino);
        let bits = kill && mode & (libc::S_ISUID | libc::S_ISGID) != 0;
        if !capability && !bits {
            return Ok(());
        }
        let base = self.meta(ino)?;
        let own = if capability { self.own_xattrs(ino)? } else { Vec::new() };
        self.commit(Need::Release, |edit| {
            if bits {
                edit.inode(ino, base, Meta::drop_privileges);
            }
            if capability {
                edit.inode(ino, base, |_| {});
                edit.extend(own);
                edit.push(Change::Xattr(ino, CAPABILITY.into(), None));
            }
            Ok(())
        })
    }

    fn has_capability(&self, ino: u64) -> bool {
        self.xattr(ino, CAPABILITY).is_ok()
    }
}

impl Meta {
    /// The rule of chown(2) and write(2): setuid goes, setgid goes where the group may execute.
    /// On a directory the bits mean something else.
    fn drop_privileges(&mut self) {
        if self.is_directory() {
            return;
        }
        self.mode &= !libc::S_ISUID;
        if self.mode & libc::S_IXGRP != 0 {
            self.mode &= !libc::S_ISGID;
        }
    }
}

fn set_times(file: &File, atime: Option<Timestamp>, mtime: Option<Timestamp>) -> Answer<()> {
    let spec = |time: Option<Timestamp>| match time {
        Some(time) => TimeSpec::new(time.seconds, i64::from(time.nanoseconds)),
        None => TimeSpec::UTIME_OMIT,
    };
    futimens(file.as_fd(), &spec(atime), &spec(mtime))
}

fn errno_of(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
