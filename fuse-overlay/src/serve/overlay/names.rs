//! Making, removing and renaming names.
//!
//! The kernel holds the directories concerned while it asks, so which names there are cannot
//! change between looking and writing; attributes may, and are edited under the lock.

use nix::errno::Errno;

use super::change::{Change, Data, EntryState, Meta};
use super::journal::Need;
use super::state::{Directory, Edit, Known};
use super::xattr::Inherited;
use super::{Overlay, now};
use crate::serve::attr::{Entry, FOREVER};
use crate::serve::backend::{Answer, At, Caller, New, Place, RenameKind};

/// Hard links to one file: ext4's limit, so that programs meet what they know.
const LINK_LIMIT: u32 = 65_000;

/// An inode that a request found, with the attributes it had then.
#[derive(Clone, Copy)]
struct Found {
    ino: u64,
    meta: Meta,
}

impl Overlay {
    pub(super) fn make_node(&self, place: Place<'_>, new: New<'_>, caller: Caller) -> Answer<Entry> {
        let parent = self.directory(place.parent)?;
        if self.find(place.parent, place.name)?.is_some() {
            return Err(Errno::EEXIST);
        }
        let (meta, acls) = self.new_meta(parent, new, caller)?;
        let ino = self.allocate(new)?;
        let made = self.commit(Need::Space, |edit| {
            edit.push(Change::Inode(ino, meta));
            match new {
                New::Symlink { target } => edit.push(Change::Target(ino, target.into())),
                New::Directory { .. } => edit.push(Change::Parent(ino, place.parent)),
                New::Node { .. } => {}
            }
            push_acls(edit, ino, acls);
            edit.inode(parent.ino, parent.meta, |parent| {
                parent.touch();
                parent.nlink += u32::from(meta.is_directory());
            });
            edit.push(Change::Entry(place.parent, place.name.into(), EntryState::Node(ino)));
            Ok(())
        });
        self.made(ino, new, made)
    }

    /// A file without a name. It is of no directory, but takes after the one it is asked for in.
    pub(super) fn make_unnamed_node(&self, parent: u64, new: New<'_>, caller: Caller) -> Answer<Entry> {
        let parent = self.directory(parent)?;
        let (mut meta, acls) = self.new_meta(parent, new, caller)?;
        meta.nlink = 0;
        let ino = self.allocate(new)?;
        let made = self.commit(Need::Space, |edit| {
            edit.push(Change::Inode(ino, meta));
            push_acls(edit, ino, acls);
            Ok(())
        });
        self.write_state().set_unnamed(ino, true);
        self.made(ino, new, made)
    }

    /// Attributes of what is made in a directory, and the ACLs that it inherits.
    fn new_meta(&self, parent: Found, new: New<'_>, caller: Caller) -> Answer<(Meta, Inherited)> {
        let time = now();
        let (mut mode, rdev) = match new {
            New::Node { mode, rdev } => (mode, rdev),
            New::Directory { mode } => (mode & 0o7777 | libc::S_IFDIR, 0),
            New::Symlink { .. } => (libc::S_IFLNK | 0o777, 0),
        };
        let is_directory = matches!(new, New::Directory { .. });
        let mut inherited = Inherited::default();
        if !matches!(new, New::Symlink { .. }) {
            (mode, inherited) = self.inherit(parent.ino, mode, caller.umask)?;
        }
        let mut meta = Meta {
            mode,
            uid: caller.uid,
            gid: caller.gid,
            rdev,
            nlink: if is_directory { 2 } else { 1 },
            atime: time,
            mtime: time,
            ctime: time,
            data: if mode & libc::S_IFMT == libc::S_IFREG { Data::Empty } else { Data::Lower },
            lower: false,
        };
        // In a set-group-id directory, what is made has the directory's group.
        if parent.meta.mode & libc::S_ISGID != 0 {
            meta.gid = parent.meta.gid;
            if is_directory {
                meta.mode |= libc::S_ISGID;
            }
        }
        Ok((meta, inherited))
    }

    /// A number for a new inode, which the quota has room for.
    fn allocate(&self, new: New<'_>) -> Answer<u64> {
        let extra = match new {
            New::Symlink { target } => target.len() as u64,
            _ => 0,
        };
        let account = &self.upper()?.account;
        self.patiently(|| account.add_inode())?;
        if let Err(errno) = self.patiently(|| account.add_bytes(extra)) {
            account.remove_inode();
            return Err(errno);
        }
        Ok(self.read_state().allocate())
    }

    /// The answer to a request that made an inode, or gives back what was charged for it.
    fn made(&self, ino: u64, new: New<'_>, made: Answer<()>) -> Answer<Entry> {
        if let Err(errno) = made {
            let account = &self.upper()?.account;
            account.remove_inode();
            if let New::Symlink { target } = new {
                account.remove_bytes(target.len() as u64);
            }
            return Err(errno);
        }
        self.count(ino);
        self.entry(ino, FOREVER)
    }

    pub(super) fn link_node(&self, ino: u64, place: Place<'_>) -> Answer<Entry> {
        let parent = self.directory(place.parent)?;
        let file = self.found(ino)?;
        if file.meta.is_directory() {
            return Err(Errno::EPERM);
        }
        if self.find(place.parent, place.name)?.is_some() {
            return Err(Errno::EEXIST);
        }
        let unnamed = self.read_state().get(ino).is_some_and(|inode| inode.unnamed);
        self.commit(Need::Space, |edit| {
            let nlink = edit.current(file.ino, file.meta).nlink;
            if nlink == 0 && !unnamed {
                return Err(Errno::ENOENT);
            }
            if nlink >= LINK_LIMIT {
                return Err(Errno::EMLINK);
            }
            edit.inode(file.ino, file.meta, |meta| {
                meta.nlink += 1;
                meta.ctime = now();
            });
            edit.inode(parent.ino, parent.meta, Meta::touch);
            edit.push(Change::Entry(place.parent, place.name.into(), EntryState::Node(ino)));
            Ok(())
        })?;
        if unnamed {
            self.write_state().set_unnamed(ino, false);
        }
        self.count(ino);
        self.entry(ino, FOREVER)
    }

    pub(super) fn remove_file(&self, place: Place<'_>) -> Answer<()> {
        let file = self.child(place)?.ok_or(Errno::ENOENT)?;
        if file.meta.is_directory() {
            return Err(Errno::EISDIR);
        }
        let parent = self.directory(place.parent)?;
        let removed = self.removed(place)?;
        self.commit(Need::Release, |edit| {
            edit.inode(file.ino, file.meta, Meta::drop_link);
            edit.inode(parent.ino, parent.meta, Meta::touch);
            edit.push(removed);
            Ok(())
        })
    }

    pub(super) fn remove_directory(&self, place: Place<'_>) -> Answer<()> {
        let directory = self.child(place)?.ok_or(Errno::ENOENT)?;
        self.check_empty(directory)?;
        let parent = self.directory(place.parent)?;
        let removed = self.removed(place)?;
        self.commit(Need::Release, |edit| {
            edit.inode(directory.ino, directory.meta, Meta::drop_link);
            edit.inode(parent.ino, parent.meta, |meta| {
                meta.touch();
                meta.nlink = meta.nlink.saturating_sub(1);
            });
            edit.push(removed);
            Ok(())
        })
    }

    pub(super) fn rename_node(&self, from: Place<'_>, to: Place<'_>, kind: RenameKind) -> Answer<()> {
        let source = self.child(from)?.ok_or(Errno::ENOENT)?;
        match (kind, self.child(to)?) {
            (RenameKind::NoReplace | RenameKind::WhiteoutNoReplace, Some(_)) => Err(Errno::EEXIST),
            (RenameKind::Exchange, None) => Err(Errno::ENOENT),
            (_, Some(target)) if target.ino == source.ino => Ok(()),
            (RenameKind::Exchange, Some(target)) => self.exchange((from, source), (to, target)),
            (RenameKind::Whiteout | RenameKind::WhiteoutNoReplace, target) => {
                let caller = Caller { uid: source.meta.uid, gid: source.meta.gid, umask: 0 };
                let whiteout = New::Node { mode: libc::S_IFCHR, rdev: 0 };
                let (meta, _) = self.new_meta(self.directory(from.parent)?, whiteout, caller)?;
                let ino = self.allocate(whiteout)?;
                let left = Some((ino, Meta { mode: libc::S_IFCHR, ..meta }));
                let moved = self.replace((from, source), to, target, left);
                if moved.is_err() {
                    self.upper()?.account.remove_inode();
                }
                moved
            }
            (_, target) => self.replace((from, source), to, target, None),
        }
    }

    /// Renames; `left` is what takes the old place.
    fn replace(
        &self,
        (from, source): (Place<'_>, Found),
        to: Place<'_>,
        target: Option<Found>,
        left: Option<(u64, Meta)>,
    ) -> Answer<()> {
        let moves_directory = source.meta.is_directory();
        let (old_parent, new_parent) = (self.directory(from.parent)?, self.directory(to.parent)?);
        match target {
            Some(target) if moves_directory => self.check_empty(target)?,
            Some(target) if target.meta.is_directory() => return Err(Errno::EISDIR),
            _ => {}
        }
        let removed = self.removed(from)?;
        self.commit(Need::Release, |edit| {
            if let Some((ino, meta)) = left {
                edit.push(Change::Inode(ino, meta));
            }
            if let Some(target) = target {
                edit.inode(target.ino, target.meta, Meta::drop_link);
                edit.inode(new_parent.ino, new_parent.meta, |meta| {
                    meta.nlink = meta.nlink.saturating_sub(u32::from(moves_directory));
                });
            }
            edit.inode(source.ino, source.meta, |meta| meta.ctime = now());
            edit.inode(old_parent.ino, old_parent.meta, |meta| {
                meta.touch();
                meta.nlink = meta.nlink.saturating_sub(u32::from(moves_directory));
            });
            edit.inode(new_parent.ino, new_parent.meta, |meta| {
                meta.touch();
                meta.nlink += u32::from(moves_directory);
            });
            if moves_directory {
                edit.push(Change::Parent(source.ino, to.parent));
            }
            edit.push(match left {
                Some((ino, _)) => Change::Entry(from.parent, from.name.into(), EntryState::Node(ino)),
                None => removed,
            });
            edit.push(Change::Entry(to.parent, to.name.into(), EntryState::Node(source.ino)));
            Ok(())
        })
    }

    fn exchange(&self, first: (Place<'_>, Found), second: (Place<'_>, Found)) -> Answer<()> {
        let parents = [self.directory(first.0.parent)?, self.directory(second.0.parent)?];
        self.commit(Need::Space, |edit| {
            for ((_, moved), (place, _)) in [(first, second), (second, first)] {
                edit.inode(moved.ino, moved.meta, |meta| meta.ctime = now());
                if moved.meta.is_directory() {
                    edit.push(Change::Parent(moved.ino, place.parent));
                }
                edit.push(Change::Entry(place.parent, place.name.into(), EntryState::Node(moved.ino)));
            }
            let is_directory = |found: Found| u32::from(found.meta.is_directory());
            let moves = [(first.1, second.1), (second.1, first.1)];
            for (parent, (leaves, comes)) in parents.into_iter().zip(moves) {
                edit.inode(parent.ino, parent.meta, |meta| {
                    meta.touch();
                    meta.nlink = (meta.nlink + is_directory(comes)).saturating_sub(is_directory(leaves));
                });
            }
            Ok(())
        })
    }

    /// The change that takes a name away: a whiteout where a lower name would show again.
    fn removed(&self, place: Place<'_>) -> Answer<Change> {
        let shows_lower = self.known(place.parent, place.name)?.1;
        let below = shows_lower && self.lower.child(place.parent, place.name)?.is_some();
        let state = if below { EntryState::Whiteout } else { EntryState::Absent };
        Ok(Change::Entry(place.parent, place.name.into(), state))
    }

    fn check_empty(&self, directory: Found) -> Answer<()> {
        let Found { ino, meta } = directory;
        if !meta.is_directory() {
            return Err(Errno::ENOTDIR);
        }
        if self.read_state().directory(ino).is_some_and(Directory::has_added) {
            return Err(Errno::ENOTEMPTY);
        }
        if !meta.lower {
            return Ok(());
        }
        let mut empty = true;
        let handle = self.lower.opendir(ino)?;
        let walked = self.lower.names(At { ino, offset: 2 }, handle, |listed| {
            empty = self.known(ino, listed.name)?.0 != Known::Nothing;
            Ok(empty)
        });
        self.lower.releasedir(handle);
        walked?;
        if empty { Ok(()) } else { Err(Errno::ENOTEMPTY) }
    }

    fn child(&self, place: Place<'_>) -> Answer<Option<Found>> {
        match self.find(place.parent, place.name)? {
            Some(entry) => self.found(entry.attr.ino).map(Some),
            None => Ok(None),
        }
    }

    fn found(&self, ino: u64) -> Answer<Found> {
        Ok(Found { ino, meta: self.meta(ino)? })
    }

    /// A directory that still exists.
    fn directory(&self, ino: u64) -> Answer<Found> {
        let found = self.found(ino)?;
        match (found.meta.is_directory(), found.meta.nlink) {
            (false, _) => Err(Errno::ENOTDIR),
            (true, 0) => Err(Errno::ENOENT),
            (true, _) => Ok(found),
        }
    }
}

fn push_acls(edit: &mut Edit<'_>, ino: u64, inherited: Inherited) {
    if inherited.is_empty() {
        return;
    }
    edit.push(Change::OwnXattrs(ino));
    edit.extend(inherited.changes(ino));
}

impl Meta {
    /// Marks a directory whose names have changed.
    fn touch(&mut self) {
        self.mtime = now();
        self.ctime = self.mtime;
    }

    /// Takes a name away. A directory has only one.
    fn drop_link(&mut self) {
        self.nlink = if self.is_directory() { 0 } else { self.nlink.saturating_sub(1) };
        self.ctime = now();
    }
}
