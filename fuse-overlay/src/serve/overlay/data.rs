//! File data: reading, writing, copy-up, attributes that touch data, syncing.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, Flock, copy_file_range, fallocate};
use nix::sys::stat::{FileStat, fstat, futimens};
use nix::sys::time::TimeSpec;

use super::change::{Change, Content, Data, Meta, Stored};
use super::fault::{Point, point};
use super::journal::Need;
use super::lower::seek_file;
use super::objects::disk_bytes;
use super::{INLINE_BYTES, INLINE_TOTAL_BYTES, Overlay, is_counted, lock, now};
use crate::index::Timestamp;
use crate::serve::backend::{Answer, At, SetAttr, SetTime};
use crate::serve::buffer;
use crate::serve::directory::read_full;
use crate::serve::fuse::pass;

/// The most that one copy request moves, so that it does not hold a thread for long.
const COPY_LIMIT: u64 = 64 << 20;

/// The unit in which space is counted near a quota's limit.
const BLOCK: u64 = 4096;

/// How long a quota waits for removed files to be let go of: usually under a millisecond, longer on
/// a busy machine; what lasts longer than this in all is open somewhere.
const RELEASE_TRIES: usize = 50;
const RELEASE_WAIT: Duration = Duration::from_millis(2);

/// Reading or writing this much takes long enough for another thread to be woken meanwhile.
const LONG_BYTES: usize = 128 << 10;

/// Removed by the kernel's rule when a file is written to.
const CAPABILITY: &[u8] = b"security.capability";

impl Overlay {
    pub(super) fn read_data<R>(&self, at: At, size: u32, then: impl FnOnce(&[u8]) -> R) -> Answer<R> {
        match self.data_of(at.ino)? {
            Data::Empty => Ok(then(&[])),
            Data::Lower => self.lower.read(at, size, then),
            Data::Inline => {
                let Some((stored, file)) = self.stored(at.ino)? else {
                    // It has just grown out of the journal, or was emptied.
                    return self.read_data(at, size, then);
                };
                let length = u64::from(stored.length).saturating_sub(at.offset).min(size.into());
                buffer::with(length as usize, |buffer| {
                    let place = stored.place + at.offset;
                    file.read_exact_at(buffer, place).map_err(|error| errno_of(&error))?;
                    Ok(then(buffer))
                })
            }
            Data::Object => {
                let file = self.upper()?.objects.file(at.ino)?;
                if size as usize >= LONG_BYTES {
                    pass();
                }
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
            Data::Inline => {
                let Some((stored, _)) = self.stored(at.ino)? else { return self.seek_data(at, whence) };
                let length = u64::from(stored.length);
                match whence {
                    _ if at.offset >= length => Err(Errno::ENXIO),
                    libc::SEEK_DATA => Ok(at.offset),
                    libc::SEEK_HOLE => Ok(length),
                    _ => Err(Errno::EINVAL),
                }
            }
            Data::Object => seek_file(&*self.upper()?.objects.file(at.ino)?, at.offset, whence),
        }
    }

    pub(super) fn write_data(&self, at: At, data: &[u8], kill_privileges: bool) -> Answer<u32> {
        let end = at.offset.checked_add(data.len() as u64).ok_or(Errno::EFBIG)?;
        let place = at.offset as usize..end as usize;
        let patch = |content: &mut Vec<u8>| {
            content.resize(content.len().max(place.end), 0);
            content[place].copy_from_slice(data);
        };
        if self.edit_small(at.ino, end, patch)? {
            self.strip_privileges(at.ino, kill_privileges)?;
            return Ok(data.len() as u32);
        }
        let file = self.object(at.ino)?;
        if data.len() >= LONG_BYTES {
            pass();
        }
        let account = &self.upper()?.account;
        let length = if !account.limits_bytes() {
            file.write_all_at(data, at.offset).map_err(|error| errno_of(&error))?;
            data.len()
        } else if let Ok(reserved) = account.reserve_range(at.offset, data.len() as u64) {
            let written = file.write_all_at(data, at.offset).map_err(|error| errno_of(&error));
            self.settle(at.ino, &file, reserved)?;
            written.map(|()| data.len())?
        } else {
            self.patiently(|| self.write_near_limit(at, &file, data))?
        };
        self.strip_privileges(at.ino, kill_privileges)?;
        // A request is at most MAX_REQUEST_BYTES long.
        Ok(length as u32)
    }

    /// Changes the data of a file that is small, and stays so up to `end`; false where it is not.
    fn edit_small(&self, ino: u64, end: u64, edit: impl FnOnce(&mut Vec<u8>)) -> Answer<bool> {
        if end > INLINE_BYTES || self.data_of(ino)? == Data::Object {
            return Ok(false);
        }
        let _guard = self.stripe(ino);
        let base = self.meta(ino)?;
        let Some(mut content) = self.small_content(ino, &base)? else { return Ok(false) };
        edit(&mut content);
        let account = &self.upper()?.account;
        let length = if account.limits_bytes() { content.len() as u64 } else { 0 };
        let is_first = !is_counted(ino, base.data);
        if is_first {
            self.patiently(|| account.add_inode())?;
        }
        let changed = self.patiently(|| account.add_bytes(length)).and_then(|()| {
            let changed = self.commit(Need::Space, |changes| {
                changes.inode(ino, base, |meta| {
                    meta.data = Data::Inline;
                    meta.mtime = now();
                    meta.ctime = meta.mtime;
                });
                changes.push(Change::Content(ino, Content::Bytes(content.into())));
                Ok(())
            });
            match changed {
                Ok(()) if account.limits_bytes() => account.settle(ino, length, length),
                Ok(()) => {}
                Err(_) => account.remove_bytes(length),
            }
            changed
        });
        if changed.is_err() && is_first {
            account.remove_inode();
        }
        changed.map(|()| true)
    }

    /// The data of a small file, wherever it is; None where it is not small, or there is too much
    /// of the kind. The caller holds the file's stripe.
    fn small_content(&self, ino: u64, base: &Meta) -> Answer<Option<Vec<u8>>> {
        if !base.is_file() || self.read_state().inline_bytes() > INLINE_TOTAL_BYTES {
            return Ok(None);
        }
        match base.data {
            Data::Object => Ok(None),
            Data::Empty => Ok(Some(Vec::new())),
            Data::Inline => self.stored_content(ino).map(Some),
            Data::Lower => {
                let size = self.lower.attr(ino)?.size;
                if size > INLINE_BYTES {
                    return Ok(None);
                }
                self.lower.read(At { ino, offset: 0 }, size as u32, |data| Some(data.to_vec()))
            }
        }
    }

    fn stored_content(&self, ino: u64) -> Answer<Vec<u8>> {
        let (stored, file) = self.stored(ino)?.ok_or(Errno::EIO)?;
        let mut content = vec![0; stored.length as usize];
        file.read_exact_at(&mut content, stored.place).map_err(|error| errno_of(&error))?;
        Ok(content)
    }

    /// Where a small file's data lies, in a file that stays as it is even if the journal is
    /// rewritten meanwhile; None where it is there no longer.
    fn stored(&self, ino: u64) -> Answer<Option<(Stored, Arc<Flock<File>>)>> {
        let upper = self.upper()?;
        let state = self.read_state();
        let stored = state.get(ino).and_then(|inode| inode.stored);
        Ok(stored.map(|stored| (stored, lock(&upper.journal).reader())))
    }

    /// Writes block by block until one takes up more than the quota has left: which blocks of a
    /// file are there already, only the filesystem below knows. What went too far is taken back.
    fn write_near_limit(&self, at: At, file: &File, data: &[u8]) -> Answer<usize> {
        let account = &self.upper()?.account;
        let _guard = self.stripe(at.ino);
        let mut done = 0;
        while done < data.len() {
            let offset = at.offset + done as u64;
            let step = (BLOCK - offset % BLOCK).min((data.len() - done) as u64) as usize;
            let before = fstat(file)?;
            let written = file.write_all_at(&data[done..done + step], offset);
            let grown = disk_bytes(&fstat(file)?).saturating_sub(disk_bytes(&before));
            let allowed = account.has_left(grown);
            if !allowed {
                give_back(file, &before, offset, step as u64)?;
            }
            self.settle(at.ino, file, 0)?;
            match written {
                Ok(()) if allowed => done += step,
                Err(error) if done == 0 => return Err(errno_of(&error)),
                _ => break,
            }
        }
        if done == 0 && !data.is_empty() { Err(Errno::ENOSPC) } else { Ok(done) }
    }

    fn settle(&self, ino: u64, file: &File, reserved: u64) -> Answer<()> {
        let account = &self.upper()?.account;
        if account.limits_bytes() {
            account.settle(ino, disk_bytes(&fstat(file)?), reserved);
        }
        Ok(())
    }

    /// Tries again for a moment where a quota is reached while removed files are still being let
    /// go of: the kernel says so only after the removal has been answered.
    pub(super) fn patiently<T>(&self, mut attempt: impl FnMut() -> Answer<T>) -> Answer<T> {
        for _ in 0..RELEASE_TRIES {
            match attempt() {
                Err(Errno::ENOSPC) if self.read_state().has_removed() => {
                    // Another thread has to hear of it.
                    pass();
                    std::thread::sleep(RELEASE_WAIT);
                }
                outcome => return outcome,
            }
        }
        attempt()
    }

    pub(super) fn allocate_range(&self, at: At, length: u64, mode: i32) -> Answer<()> {
        let file = self.object(at.ino)?;
        let flags = FallocateFlags::from_bits(mode).ok_or(Errno::EOPNOTSUPP)?;
        let offset = i64::try_from(at.offset).map_err(|_| Errno::EFBIG)?;
        let signed_length = i64::try_from(length).map_err(|_| Errno::EFBIG)?;
        let account = &self.upper()?.account;
        let takes_up = !flags
            .intersects(FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_COLLAPSE_RANGE);
        let reserved = if takes_up && account.limits_bytes() {
            self.patiently(|| account.reserve_range(at.offset, length))?
        } else {
            0
        };
        let done = fallocate(&*file, flags, offset, signed_length);
        self.settle(at.ino, &file, reserved)?;
        done?;
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
        let length = length.min(COPY_LIMIT);
        let account = &self.upper()?.account;
        let reserved = if account.limits_bytes() {
            // Near the limit the kernel reads and writes itself, which is counted block by block.
            account.reserve_range(to.offset, length).map_err(|_| Errno::EOPNOTSUPP)?
        } else {
            0
        };
        let length = usize::try_from(length).unwrap_or(0);
        let done = copy_file_range(&*source, Some(&mut from_offset), &*target, Some(&mut to_offset), length);
        self.settle(to.ino, &target, reserved)?;
        self.strip_privileges(to.ino, true)?;
        done.map(|done| done as u64)
    }

    pub(super) fn sync(&self, ino: u64, data_only: bool) -> Answer<()> {
        let upper = self.upper()?;
        if upper.volatile {
            return Ok(());
        }
        pass();
        let data = self.read_state().get(ino).map(|inode| inode.meta.data);
        if data == Some(Data::Object) {
            let file = upper.objects.file(ino)?;
            if data_only { file.sync_data() } else { file.sync_all() }.map_err(|error| errno_of(&error))?;
            upper.objects.sync_names()?;
        }
        if data == Some(Data::Inline) {
            self.write_state().set_synced(ino, true);
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
            self.strip_privileges(ino, set.kill_privileges)?;
        }
        let time = now();
        let [atime, mtime] = [set.atime, set.mtime].map(|set| match set {
            None => None,
            Some(SetTime::Now) => Some(time),
            Some(SetTime::At(at)) => Some(at),
        });
        let owner_changes = set.uid.is_some() || set.gid.is_some();
        let drops_capability = owner_changes && self.has_capability(ino);
        let acl = set.mode.map_or(Ok(None), |mode| self.acl_after_chmod(ino, mode))?;
        let changes_xattrs = drops_capability || acl.is_some();
        let own_xattrs = changes_xattrs.then(|| self.own_xattrs(ino)).transpose()?;
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
                meta.ctime = set.ctime.unwrap_or(time);
            });
            edit.extend(own_xattrs.unwrap_or_default());
            edit.extend(acl.into_iter().collect());
            if drops_capability {
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
        if size > 0 && self.edit_small(ino, size, |content| content.resize(size as usize, 0))? {
            return Ok(());
        }
        let guard = self.stripe(ino);
        let base = self.meta(ino)?;
        match (base.data, size) {
            (Data::Empty, 0) => self.mark_modified(ino, base),
            // Nothing of the data is wanted.
            (Data::Lower | Data::Inline, 0) => {
                self.commit(Need::Release, |edit| {
                    edit.inode(ino, base, |meta| {
                        meta.data = Data::Empty;
                        meta.mtime = now();
                        meta.ctime = meta.mtime;
                    });
                    Ok(())
                })?;
                let account = &self.upper()?.account;
                account.remove_object(ino);
                if is_counted(ino, base.data) && !is_counted(ino, Data::Empty) {
                    account.remove_inode();
                }
                Ok(())
            }
            (Data::Object, _) => {
                drop(guard);
                let file = self.upper()?.objects.file(ino)?;
                file.set_len(size).map_err(|error| errno_of(&error))?;
                self.settle(ino, &file, 0)
            }
            _ => {
                let file = self.copy_up(ino, base, size)?;
                file.set_len(size).map_err(|error| errno_of(&error))?;
                self.settle(ino, &file, 0)?;
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
        let reserved = self.charge_object(ino, &base, limit)?;
        let file = match upper.objects.create(ino) {
            Ok(file) => file,
            Err(errno) => {
                self.discharge_object(ino, &base, reserved)?;
                return Err(errno);
            }
        };
        point(Point::ObjectCreated);
        let filled = match base.data {
            Data::Lower => self.fill(ino, &file, &base, limit),
            Data::Inline => self.fill_from_journal(ino, &file, &base),
            Data::Empty | Data::Object => Ok(()),
        };
        point(Point::ObjectFilled);
        let committed = filled.and_then(|()| {
            self.commit(Need::Space, |edit| {
                edit.inode(ino, base, |meta| meta.data = Data::Object);
                Ok(())
            })
        });
        point(Point::ObjectCommitted);
        if committed.is_err() {
            // What cannot be removed now is removed when the upper is opened next.
            let _ = upper.objects.remove(ino);
            self.discharge_object(ino, &base, reserved)?;
        } else {
            self.settle(ino, &file, reserved)?;
        }
        committed.map(|()| file)
    }

    /// Sets aside what the object of a file will take up: an inode where the file is the lower
    /// layer's, and space for a copy of its data.
    fn charge_object(&self, ino: u64, base: &Meta, limit: u64) -> Answer<u64> {
        let account = &self.upper()?.account;
        let is_first = !is_counted(ino, base.data);
        if is_first {
            self.patiently(|| account.add_inode())?;
        }
        if base.data != Data::Lower || !account.limits_bytes() {
            return Ok(0);
        }
        let bytes = self.lower.attr(ino)?.blocks.saturating_mul(512).min(limit);
        match self.patiently(|| account.reserve_range(0, bytes)) {
            Err(errno) if is_first => {
                account.remove_inode();
                Err(errno)
            }
            outcome => outcome,
        }
    }

    fn discharge_object(&self, ino: u64, base: &Meta, reserved: u64) -> Answer<()> {
        let account = &self.upper()?.account;
        account.remove_bytes(reserved);
        if !is_counted(ino, base.data) {
            account.remove_inode();
        }
        Ok(())
    }

    /// Copies a lower file's data. It must be durable before the journal can be, or a crash could
    /// leave neither the old data nor the new.
    fn fill(&self, ino: u64, file: &File, base: &Meta, limit: u64) -> Answer<()> {
        let upper = self.upper()?;
        pass();
        self.lower.copy_data(ino, file, limit)?;
        set_times(file, Some(base.atime), Some(base.mtime))?;
        if !upper.volatile {
            file.sync_data().map_err(|error| errno_of(&error))?;
            upper.objects.sync_names()?;
        }
        Ok(())
    }

    /// Moves a small file's data out of the journal. Where it was synced it must stay so.
    fn fill_from_journal(&self, ino: u64, file: &File, base: &Meta) -> Answer<()> {
        let upper = self.upper()?;
        file.write_all_at(&self.stored_content(ino)?, 0).map_err(|error| errno_of(&error))?;
        set_times(file, Some(base.atime), Some(base.mtime))?;
        let synced = self.read_state().get(ino).is_some_and(|inode| inode.synced);
        if synced && !upper.volatile {
            pass();
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

/// Takes back a write that has made a file grow too much: what was written there was a hole.
fn give_back(file: &File, before: &FileStat, offset: u64, length: u64) -> Answer<()> {
    if fstat(file)?.st_size > before.st_size {
        nix::unistd::ftruncate(file, before.st_size)?;
    }
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let (offset, length) = (offset.cast_signed(), length.cast_signed());
    match fallocate(file, punch, offset, length) {
        // It stays, counted; the next write finds the quota used up all the more.
        Err(Errno::EOPNOTSUPP) => Ok(()),
        outcome => outcome,
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
