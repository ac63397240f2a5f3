//! The write side: a full overlay of its own, over packed layers or a directory.
//!
//! # Theory
//!
//! The upper is not a mirror of the tree. It is a journal of changes and a directory of objects:
//!
//! ```text
//! journal            what differs from the lower layer: attributes, names, xattrs (see journal)
//! objects/<inode>    the data of each changed regular file, mode 0600, the caller's own
//! ```
//!
//! The data of a small file is in the journal too: making, syncing and removing one is then one
//! append, which takes effect as a whole, and no file of the filesystem below.
//!
//! An inode keeps its number whatever happens to it: a lower file that is changed keeps the lower
//! node's, so hard links stay together over a copy-up, an open file and `st_ino` never notice
//! one, and renaming a directory of any size moves one name. Owners, modes, device numbers and
//! xattrs are journal entries: they need no privilege and no filesystem that can hold them.
//!
//! A request first writes one journal record, then changes memory ([`state`]), then is answered.
//! Data goes straight to the object. A copied-up file is durable before the journal says that it
//! replaces the lower one; everything else is durable when it is synced, as on any filesystem.
//! Killing the server loses nothing that was answered.
//!
//! Lock order: a stripe (copy-up and truncation of a file), then the state. No lock is held over
//! reading or writing file data, nor over system calls on a directory lower.

mod acl;
mod change;
mod data;
mod fault;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod journal;
mod lower;
mod names;
mod objects;
mod quota;
mod snapshot;
mod state;
mod xattr;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::sys::statvfs::fstatvfs;

use self::change::{Change, Data, Meta};
use self::fault::Point;
use self::journal::{Journal, Need};
use self::lower::Child;
pub(super) use self::lower::LowerFs;
use self::objects::Objects;
use self::quota::Account;
pub(crate) use self::snapshot::{Facts, Named, ROOT, Snapshot, Source};
#[cfg(any(test, fuzzing))]
pub(super) use self::state::FIRST_OWN;
use self::state::{Content, Edit, Known, State};
use super::Quota;
use super::attr::{Attr, Entry, FOREVER, Statfs};
use super::backend::{
    Answer, At, Backend, Caller, Listed, New, Place, RenameKind, SetAttr, Traits, XattrFlags,
};
use crate::index::Timestamp;

/// Files that can be copied up at the same time without waiting for each other by chance.
const STRIPES: usize = 64;

/// Where listings of added names begin: above every place in a lower directory.
const ADDED_PLACES: u64 = 1 << 40;

/// A journal is rewritten when it is larger than this and mostly made of what no longer holds.
const REWRITE_BYTES: u64 = if cfg!(feature = "fault-points") { 64 << 10 } else { 16 << 20 };

/// The largest file whose data is kept in the journal. A write to one writes all of it again.
const INLINE_BYTES: u64 = 16 << 10;

/// Data of small files in all. What is more goes to objects, so that a journal is quickly read
/// and rewritten.
const INLINE_TOTAL_BYTES: u64 = 64 << 20;

/// Bytes of journal for one inode with its name, roughly.
const BYTES_PER_INODE: u64 = 256;

/// How many times what holds a journal may have before it is rewritten: each rewrite then costs
/// a fraction of what was written since the last.
const REWRITE_FACTOR: u64 = 4;

/// Why an upper cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UpperError {
    /// The directory holds something else.
    #[error("its journal is not one of this program: the directory holds something else, or is damaged")]
    NotAnUpper,
    /// Written by another version.
    #[error("its journal was written by another version of this program")]
    Version,
    /// It belongs to other layers.
    #[error("it was written over other layers than the ones given")]
    OtherLower,
    /// Another server has it open.
    #[error("another server is using it")]
    InUse,
    /// The journal cannot be read or written.
    #[error("cannot use its journal")]
    Journal(#[source] io::Error),
    /// The objects cannot be reached.
    #[error("cannot use its directory of objects")]
    Objects(#[source] io::Error),
}

#[derive(Debug)]
pub(super) struct Overlay {
    lower: LowerFs,
    upper: Option<Upper>,
    state: RwLock<State>,
    stripes: [Mutex<()>; STRIPES],
}

#[derive(Debug)]
struct Upper {
    directory: OwnedFd,
    objects: Objects,
    journal: Mutex<Journal>,
    account: Account,
    volatile: bool,
}

impl Overlay {
    /// As [`super::packed::Packed::rest`].
    pub(super) fn rest(&self) -> Option<super::rest::Rest> {
        match &self.lower {
            LowerFs::Packed(packed, _) => Some(packed.rest()),
            LowerFs::Directory(_) => None,
        }
    }

    /// A lower layer by itself, read-only.
    pub(super) fn read_only(lower: LowerFs) -> Self {
        Self::assemble(lower, None, State::new())
    }

    pub(super) fn open(
        lower: LowerFs,
        upper: OwnedFd,
        volatile: bool,
        quota: Quota,
    ) -> Result<Self, UpperError> {
        let mut state = State::new();
        let fingerprint = lower.fingerprint();
        let journal = Journal::open(upper.as_fd(), fingerprint, |change| state.apply(change))?;
        let objects = Objects::open(upper.as_fd())?;
        let account = Account::new(quota);
        let upper = Upper { directory: upper, objects, journal: Mutex::new(journal), account, volatile };
        let overlay = Self::assemble(lower, Some(upper), state);
        overlay.recover()?;
        Ok(overlay)
    }

    fn assemble(lower: LowerFs, upper: Option<Upper>, state: State) -> Self {
        let stripes = [const { Mutex::new(()) }; STRIPES];
        Self { lower, upper, state: RwLock::new(state), stripes }
    }

    /// Puts right what the end of the last session, however it came, left behind.
    fn recover(&self) -> Result<(), UpperError> {
        let Some(upper) = &self.upper else { return Ok(()) };
        let mut state = self.write_state();
        let gone: Vec<u64> =
            state.inodes().filter(|(_, inode)| inode.meta.nlink == 0).map(|(ino, _)| ino).collect();
        for ino in gone {
            state.remove(ino);
        }
        let mut lost = Vec::new();
        let present: std::collections::HashSet<u64> = upper.objects.list()?.into_iter().collect();
        for (ino, inode) in state.inodes() {
            if inode.meta.data == Data::Object && !present.contains(&ino) {
                // A new file of which the disk kept the name only: it was never synced.
                lost.push((ino, Meta { data: Data::Empty, ..inode.meta }));
            }
        }
        for (ino, meta) in lost {
            state.apply(Change::Inode(ino, meta));
        }
        for ino in &present {
            if state.get(*ino).is_none_or(|inode| inode.meta.data != Data::Object) {
                upper.objects.remove(*ino).map_err(|errno| UpperError::Objects(errno.into()))?;
            }
        }
        self.adopt(&mut state);
        state.set_live();
        take_stock(upper, &state).map_err(|errno| UpperError::Objects(errno.into()))?;
        let mut journal = lock(&upper.journal);
        if journal.is_old() || journal.length() > self.rewrite_at(&state) {
            for (ino, stored) in journal.rewrite(upper.directory.as_fd(), state.snapshot())? {
                state.set_stored(ino, Some(stored));
            }
        }
        Ok(())
    }

    /// Finds the nodes of a directory lower again by their paths. They keep their numbers.
    fn adopt(&self, state: &mut State) {
        let origins: Vec<(u64, Box<[u8]>)> =
            state.inodes().filter_map(|(ino, inode)| inode.origin.clone().map(|path| (ino, path))).collect();
        for (ino, path) in origins {
            if !self.lower.adopt(ino, &path) {
                self.orphan(state, ino);
            }
        }
    }

    /// A lower file that was changed here has vanished from the machine. What is here of it
    /// stays: data, names, attributes; what was only there is gone.
    fn orphan(&self, state: &mut State, ino: u64) {
        let Some(inode) = state.get(ino) else { return };
        let data = if inode.meta.data == Data::Lower { Data::Empty } else { inode.meta.data };
        let meta = Meta { lower: false, data, ..inode.meta };
        state.apply(Change::Inode(ino, meta));
    }

    fn read_state(&self) -> RwLockReadGuard<'_, State> {
        // Requests do not panic; if one does, the state is still what the journal says.
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_state(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn stripe(&self, ino: u64) -> MutexGuard<'_, ()> {
        lock(&self.stripes[(ino % STRIPES as u64) as usize])
    }

    fn upper(&self) -> Answer<&Upper> {
        self.upper.as_ref().ok_or(Errno::EROFS)
    }

    /// Makes changes: collected under the lock, written down, then made so.
    fn commit(&self, need: Need, collect: impl FnOnce(&mut Edit<'_>) -> Answer<()>) -> Answer<()> {
        let upper = self.upper()?;
        let mut state = self.write_state();
        let mut edit = Edit::new(&state);
        collect(&mut edit)?;
        let mut changes = edit.into_changes();
        if self.lower.changes_underneath() {
            self.add_origins(&state, &mut changes);
        }
        let mut journal = lock(&upper.journal);
        journal.append(&mut changes, need)?;
        for change in changes {
            state.apply(change);
        }
        if journal.length() > self.rewrite_at(&state) {
            // If it fails, the journal goes on as it is.
            let moved = journal.rewrite(upper.directory.as_fd(), state.snapshot()).unwrap_or_default();
            for (ino, stored) in moved {
                state.set_stored(ino, Some(stored));
            }
        }
        Ok(())
    }

    /// Says where lower nodes lie that are changed for the first time.
    fn add_origins(&self, state: &State, changes: &mut Vec<Change>) {
        let first_seen = changes.iter().filter_map(|change| match change {
            Change::Inode(ino, meta) if meta.lower && state.get(*ino).is_none() => Some(*ino),
            _ => None,
        });
        let origins: Vec<Change> = first_seen
            .filter_map(|ino| self.lower.origin(ino).map(|path| Change::Origin(ino, path)))
            .collect();
        changes.extend(origins);
    }

    /// The length at which rewriting the journal pays.
    fn rewrite_at(&self, state: &State) -> u64 {
        let held = BYTES_PER_INODE * state.len() as u64 + state.inline_bytes() / 2;
        REWRITE_BYTES.max(REWRITE_FACTOR * held)
    }

    /// An inode's attributes as the overlay would keep them: its own, or made from the lower
    /// node's.
    fn meta(&self, ino: u64) -> Answer<Meta> {
        if let Some(inode) = self.read_state().get(ino) {
            return Ok(inode.meta);
        }
        Ok(meta_of(&self.lower.attr(ino)?))
    }

    fn attr(&self, ino: u64) -> Answer<Attr> {
        let (meta, size) = {
            let state = self.read_state();
            match state.get(ino) {
                Some(inode) => (inode.meta, inode.known_size()),
                None => {
                    drop(state);
                    return self.lower.attr(ino);
                }
            }
        };
        self.attr_with(ino, &meta, size)
    }

    /// Attributes of an inode that the overlay keeps.
    fn attr_with(&self, ino: u64, meta: &Meta, size: Option<u64>) -> Answer<Attr> {
        let mut attr = Attr {
            ino,
            mode: meta.mode,
            nlink: meta.nlink,
            uid: meta.uid,
            gid: meta.gid,
            rdev: meta.rdev,
            size: size.unwrap_or(0),
            blocks: 0,
            atime: meta.atime,
            mtime: meta.mtime,
            ctime: meta.ctime,
        };
        match meta.data {
            Data::Object => {
                let status = self.upper()?.objects.stat(ino)?;
                attr.size = status.st_size.cast_unsigned();
                attr.blocks = status.st_blocks.cast_unsigned();
                attr.atime = stamp(status.st_atime, status.st_atime_nsec);
                attr.mtime = stamp(status.st_mtime, status.st_mtime_nsec);
                attr.ctime = meta.ctime.max(stamp(status.st_ctime, status.st_ctime_nsec));
            }
            Data::Lower if meta.is_directory() => attr.size = 4096,
            Data::Inline => attr.blocks = attr.size.div_ceil(512),
            Data::Lower if meta.lower && size.is_none() => {
                let lower = self.lower.attr(ino)?;
                (attr.size, attr.blocks) = (lower.size, lower.blocks);
            }
            Data::Lower | Data::Empty => {}
        }
        Ok(attr)
    }

    fn attr_ttl(&self, meta: &Meta) -> Duration {
        let fixed = !meta.lower || meta.data != Data::Lower;
        if fixed { FOREVER } else { self.lower.ttl() }
    }

    /// The answer that names `ino`; counts the kernel's new reference.
    fn entry(&self, ino: u64, entry_ttl: Duration) -> Answer<Entry> {
        let (meta, size) = {
            let state = self.read_state();
            let inode = state.get(ino).ok_or(Errno::ESTALE)?;
            (inode.meta, inode.known_size())
        };
        let attr = self.attr_with(ino, &meta, size)?;
        Ok(Entry { attr, generation: 0, entry_ttl, attr_ttl: self.attr_ttl(&meta) })
    }

    /// The answer that names a lower child, which the overlay may have changed.
    fn lower_entry(&self, child: Child) -> Answer<Entry> {
        let Child { attr, generation } = child;
        let entry_ttl = self.lower.ttl();
        let known = self.read_state().get(attr.ino).map(|inode| (inode.meta, inode.known_size()));
        match known {
            Some((meta, size)) => {
                let attr = self.attr_with(attr.ino, &meta, size)?;
                Ok(Entry { attr, generation, entry_ttl, attr_ttl: self.attr_ttl(&meta) })
            }
            None => Ok(Entry { attr, generation, entry_ttl, attr_ttl: self.lower.ttl() }),
        }
    }

    /// What a directory says about a name, and whether lower names show in it.
    fn known(&self, parent: u64, name: &[u8]) -> Answer<(Known, bool)> {
        let state = self.read_state();
        match state.get(parent) {
            None => Ok((Known::Nothing, true)),
            Some(inode) => match &inode.content {
                Content::Directory(directory) => Ok((directory.get(name), inode.meta.lower)),
                _ => Err(Errno::ENOTDIR),
            },
        }
    }

    fn find(&self, parent: u64, name: &[u8]) -> Answer<Option<Entry>> {
        match self.known(parent, name)? {
            (Known::Whiteout, _) | (Known::Nothing, false) => Ok(None),
            (Known::Node(ino), _) => self.entry(ino, FOREVER).map(Some),
            (Known::Nothing, true) => match self.lower.child(parent, name)? {
                Some(child) => self.lower_entry(child).map(Some),
                None => Ok(None),
            },
        }
    }

    /// Counts a reference the kernel is about to get.
    fn count(&self, ino: u64) {
        if !state::is_own(ino) {
            return self.lower.count(ino);
        }
        if let Some(inode) = self.read_state().get(ino) {
            inode.lookups.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn uncount(&self, ino: u64, count: u64) -> bool {
        if !state::is_own(ino) {
            return self.lower.forget(ino, count);
        }
        let state = self.read_state();
        state.get(ino).is_some_and(|inode| inode.lookups.fetch_sub(count, Ordering::Relaxed) <= count)
    }

    fn parent_of(&self, ino: u64) -> Answer<u64> {
        let own = self.read_state().directory(ino).and_then(|directory| directory.parent);
        match own {
            Some(parent) => Ok(parent),
            None => self.lower.parent(ino),
        }
    }

    /// Walks a directory's names; the flag tells the sink that a name comes from below.
    fn walk(
        &self,
        at: At,
        handle: u64,
        mut sink: impl FnMut(Listed<'_>, Origin) -> Answer<bool>,
    ) -> Answer<()> {
        let (kept, shows_lower, has_added) = match self.read_state().get(at.ino) {
            None => (false, true, false),
            Some(inode) => match &inode.content {
                Content::Directory(directory) => (true, inode.meta.lower, directory.has_added()),
                _ => return Err(Errno::ENOTDIR),
            },
        };
        if at.offset < 2 {
            let parent = self.parent_of(at.ino)?;
            for (place, name, ino) in [(0, &b"."[..], at.ino), (1, b"..", parent)] {
                let listed = Listed { name, next: place + 1, ino, file_type: libc::S_IFDIR };
                if at.offset <= place && !sink(listed, Origin::Dots)? {
                    return Ok(());
                }
            }
        }
        let mut full = false;
        if shows_lower && at.offset < ADDED_PLACES {
            let from = At { offset: at.offset.max(2), ..at };
            self.lower.names(from, handle, |listed| {
                let hidden = kept && self.known(at.ino, listed.name)?.0 != Known::Nothing;
                full = !hidden && !sink(listed, Origin::Lower)?;
                Ok(!full)
            })?;
        }
        if full || !has_added {
            return Ok(());
        }
        self.walk_added(at, &mut sink)
    }

    fn walk_added(&self, at: At, sink: &mut impl FnMut(Listed<'_>, Origin) -> Answer<bool>) -> Answer<()> {
        let mut place = at.offset.saturating_sub(ADDED_PLACES);
        loop {
            let (name, ino, file_type) = {
                let state = self.read_state();
                let found = state.directory(at.ino).and_then(|directory| directory.added_from(place));
                let Some((found, name, ino)) = found else { return Ok(()) };
                place = found + 1;
                let file_type = state.get(ino).map_or(0, |inode| inode.meta.mode & libc::S_IFMT);
                (name.clone(), ino, file_type)
            };
            let listed = Listed { name: &name, next: ADDED_PLACES + place, ino, file_type };
            if !sink(listed, Origin::Added)? {
                return Ok(());
            }
        }
    }

    /// Lets go of an inode without names that the kernel has let go of.
    fn drop_if_gone(&self, ino: u64) {
        let gone = self.read_state().get(ino).is_some_and(|inode| inode.meta.nlink == 0);
        if !gone {
            return;
        }
        let mut state = self.write_state();
        let Some(inode) = state.remove(ino) else { return };
        drop(state);
        let Some(upper) = &self.upper else { return };
        fault::point(Point::InodeDropped);
        if inode.meta.data == Data::Object {
            // One that cannot be removed now is removed when the upper is opened next.
            let _ = upper.objects.remove(ino);
        }
        upper.account.remove_object(ino);
        if is_counted(ino, inode.meta.data) {
            upper.account.remove_inode();
        }
        upper.account.remove_bytes(inode.extra_bytes());
    }
}

/// Whether an inode counts as one of the upper: it was made here, or its data is.
fn is_counted(ino: u64, data: Data) -> bool {
    state::is_own(ino) || matches!(data, Data::Object | Data::Inline)
}

/// Counts what an upper takes up already.
fn take_stock(upper: &Upper, state: &State) -> Answer<()> {
    let counted = state.inodes().filter(|(ino, inode)| is_counted(*ino, inode.meta.data));
    upper.account.count_inodes(counted.count() as u64);
    upper.account.count_bytes(state.inodes().map(|(_, inode)| inode.extra_bytes()).sum());
    if upper.account.limits_bytes() {
        for (ino, inode) in state.inodes() {
            match (inode.meta.data, inode.stored) {
                (Data::Object, _) => upper.account.settle(ino, upper.objects.bytes(ino)?, 0),
                (_, Some(stored)) => upper.account.settle(ino, stored.length.into(), 0),
                _ => {}
            }
        }
    }
    Ok(())
}

/// Where a listed name comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Dots,
    Lower,
    Added,
}

impl Backend for Overlay {
    fn traits(&self) -> Traits {
        Traits {
            stateless: !self.lower.changes_underneath(),
            changes_underneath: self.lower.changes_underneath(),
            no_xattrs: self.upper.is_none() && !self.lower.has_xattrs(),
            writable: self.upper.is_some(),
            writeback: !self.lower.changes_underneath()
                && self.upper.as_ref().is_some_and(|upper| !upper.account.limits_bytes()),
            negative_ttl: self.lower.ttl(),
        }
    }

    fn lookup(&self, parent: u64, name: &[u8]) -> Answer<Entry> {
        let entry = self.find(parent, name)?.ok_or(Errno::ENOENT)?;
        self.count(entry.attr.ino);
        Ok(entry)
    }

    fn forget(&self, ino: u64, count: u64) {
        if self.uncount(ino, count) {
            self.drop_if_gone(ino);
        }
    }

    fn getattr(&self, ino: u64) -> Answer<(Attr, Duration)> {
        let attr = self.attr(ino)?;
        let meta = self.read_state().get(ino).map(|inode| inode.meta);
        Ok((attr, meta.map_or(self.lower.ttl(), |meta| self.attr_ttl(&meta))))
    }

    fn readlink<R>(&self, ino: u64, then: impl FnOnce(&[u8]) -> R) -> Answer<R> {
        let own = match self.read_state().get(ino).map(|inode| &inode.content) {
            Some(Content::Symlink(target)) => Some(target.clone()),
            _ => None,
        };
        match own {
            Some(target) => Ok(then(&target)),
            None => Ok(then(&self.lower.readlink(ino)?)),
        }
    }

    fn open(&self, ino: u64, _flags: i32) -> Answer<()> {
        let own = self.read_state().get(ino).is_some_and(|inode| inode.meta.data != Data::Lower);
        if own { Ok(()) } else { self.lower.check_readable(ino) }
    }

    fn read<R>(&self, at: At, size: u32, then: impl FnOnce(&[u8]) -> R) -> Answer<R> {
        self.read_data(at, size, then)
    }

    fn opendir(&self, ino: u64) -> Answer<u64> {
        let shows_lower = self.read_state().get(ino).is_none_or(|inode| inode.meta.lower);
        if shows_lower { self.lower.opendir(ino) } else { Ok(0) }
    }

    fn releasedir(&self, handle: u64) {
        self.lower.releasedir(handle);
    }

    fn readdir(&self, at: At, handle: u64, mut sink: impl FnMut(Listed<'_>) -> bool) -> Answer<()> {
        self.walk(at, handle, |listed, _| Ok(sink(listed)))
    }

    fn readdirplus(
        &self,
        at: At,
        handle: u64,
        mut sink: impl FnMut(Listed<'_>, &Entry) -> bool,
    ) -> Answer<()> {
        self.walk(at, handle, |listed, origin| {
            let entry = match origin {
                // The kernel takes number and type from these and no reference.
                Origin::Dots => return Ok(sink(listed, &dots_entry(listed.ino))),
                Origin::Added => self.entry(listed.ino, FOREVER)?,
                Origin::Lower => match self.lower.listed_child(&listed, at, handle) {
                    Ok(Some(child)) => self.lower_entry(child)?,
                    // It has vanished since the listing was made, or cannot be looked at.
                    _ => return Ok(true),
                },
            };
            let ino = entry.attr.ino;
            // Counted first: once the reply is out, the kernel may forget it again.
            self.count(ino);
            let taken = sink(listed, &entry);
            if !taken {
                self.uncount(ino, 1);
            }
            Ok(taken)
        })
    }

    fn getxattr<R>(&self, ino: u64, name: &[u8], then: impl FnOnce(&[u8]) -> R) -> Answer<R> {
        Ok(then(&self.xattr(ino, name)?))
    }

    fn listxattr(&self, ino: u64) -> Answer<Vec<u8>> {
        self.xattr_list(ino)
    }

    fn statfs(&self) -> Answer<Statfs> {
        let status = match (&self.upper, &self.lower) {
            (Some(upper), _) => fstatvfs(upper.objects.directory())?,
            (None, LowerFs::Directory(directory)) => fstatvfs(directory.root())?,
            (None, LowerFs::Packed(packed, _)) => return packed.statfs(),
        };
        let disk = Statfs {
            blocks: status.blocks(),
            blocks_free: status.blocks_free(),
            blocks_available: status.blocks_available(),
            files: status.files(),
            files_free: status.files_free(),
            block_size: u32::try_from(status.fragment_size()).unwrap_or(4096),
        };
        Ok(self.upper.as_ref().map_or(disk, |upper| upper.account.narrow(disk)))
    }

    fn seek(&self, at: At, whence: i32) -> Answer<u64> {
        self.seek_data(at, whence)
    }

    fn make(&self, place: Place<'_>, new: New<'_>, caller: Caller) -> Answer<Entry> {
        self.make_node(place, new, caller)
    }

    fn make_unnamed(&self, parent: u64, new: New<'_>, caller: Caller) -> Answer<Entry> {
        self.make_unnamed_node(parent, new, caller)
    }

    fn link(&self, ino: u64, place: Place<'_>) -> Answer<Entry> {
        self.link_node(ino, place)
    }

    fn unlink(&self, place: Place<'_>) -> Answer<()> {
        self.remove_file(place)
    }

    fn rmdir(&self, place: Place<'_>) -> Answer<()> {
        self.remove_directory(place)
    }

    fn rename(&self, from: Place<'_>, to: Place<'_>, kind: RenameKind) -> Answer<()> {
        self.rename_node(from, to, kind)
    }

    fn setattr(&self, ino: u64, set: SetAttr) -> Answer<(Attr, Duration)> {
        self.set_attributes(ino, set)?;
        self.getattr(ino)
    }

    fn write(&self, at: At, data: &[u8], kill_privileges: bool) -> Answer<u32> {
        self.write_data(at, data, kill_privileges)
    }

    fn fallocate(&self, at: At, length: u64, mode: i32) -> Answer<()> {
        self.allocate_range(at, length, mode)
    }

    fn copy_range(&self, from: At, to: At, length: u64) -> Answer<u64> {
        self.copy_between(from, to, length)
    }

    fn fsync(&self, ino: u64, data_only: bool) -> Answer<()> {
        self.sync(ino, data_only)
    }

    fn setxattr(&self, ino: u64, name: &[u8], value: &[u8], flags: XattrFlags) -> Answer<()> {
        self.set_xattr(ino, name, value, flags)
    }

    fn removexattr(&self, ino: u64, name: &[u8]) -> Answer<()> {
        self.remove_xattr(ino, name)
    }
}

/// A lower node's attributes, as the overlay keeps them from its first change on.
fn meta_of(attr: &Attr) -> Meta {
    Meta {
        mode: attr.mode,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        nlink: attr.nlink,
        atime: attr.atime,
        mtime: attr.mtime,
        ctime: attr.ctime,
        data: Data::Lower,
        lower: true,
    }
}

fn dots_entry(ino: u64) -> Entry {
    let time = Timestamp::default();
    let attr = Attr {
        ino,
        mode: libc::S_IFDIR,
        nlink: 2,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 0,
        blocks: 0,
        atime: time,
        mtime: time,
        ctime: time,
    };
    Entry { attr, generation: 0, entry_ttl: Duration::ZERO, attr_ttl: Duration::ZERO }
}

fn stamp(seconds: i64, nanoseconds: i64) -> Timestamp {
    Timestamp { seconds, nanoseconds: u32::try_from(nanoseconds).unwrap_or(0) }
}

fn now() -> Timestamp {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => Timestamp {
            seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanoseconds: since.subsec_nanos(),
        },
        // A clock before 1970 is set wrong; any time will do.
        Err(_) => Timestamp::default(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
