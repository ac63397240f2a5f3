//! The overlay as it is at one moment, read beside a server that may be at work on it.
//!
//! Nothing is locked, recovered or written: the journal's whole records are read as they stand, and
//! what they say about objects that are not there is taken back in memory only.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, fstatat};

use super::change::{Data, EntryState};
use super::journal::Journal;
use super::lower::{LowerFs, seek_file};
use super::objects;
use super::state::{Content, State};
use super::{UpperError, stamp};
use crate::index::Timestamp;
use crate::index::tree::Name;
use crate::serve::attr::Attr;
use crate::serve::backend::{Answer, At};
use crate::serve::directory::read_full;
use crate::sys::Xattrs;

/// What is compared and written of a node, its content aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Tells hard links: of one view, the same number is the same file.
    pub(crate) identity: (u64, u64),
    /// Type and permission bits, as `st_mode`.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// As the kernel's `new_encode_dev`.
    pub(crate) rdev: u32,
    pub(crate) nlink: u32,
    pub(crate) size: u64,
    pub(crate) mtime: Timestamp,
}

impl Facts {
    pub(crate) fn file_type(&self) -> u32 {
        self.mode & libc::S_IFMT
    }

    pub(crate) fn is_directory(&self) -> bool {
        self.file_type() == libc::S_IFDIR
    }
}

impl From<&Attr> for Facts {
    fn from(attr: &Attr) -> Self {
        let Attr { ino, mode, uid, gid, rdev, nlink, size, mtime, .. } = *attr;
        Self { identity: (0, ino), mode, uid, gid, rdev, nlink, size, mtime }
    }
}

/// A name of a changed directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Named {
    /// A lower name is hidden.
    Whiteout,
    /// The name is this inode's.
    Node(u64),
}

/// The lower layer, and what an upper of this crate's own says on top of it.
#[derive(Debug)]
pub(crate) struct Snapshot {
    lower: LowerFs,
    state: State,
    objects: Option<OwnedFd>,
    /// Data of small files lies in it.
    journal: Option<File>,
}

/// Where the data of a regular file is.
#[derive(Debug)]
pub(crate) enum Source<'a> {
    Empty,
    Object(File),
    Bytes(Vec<u8>),
    Lower(&'a Snapshot, u64),
}

impl Snapshot {
    /// The lower layer alone.
    pub(in crate::serve) fn lower_only(lower: LowerFs) -> Self {
        Self { lower, state: State::new(), objects: None, journal: None }
    }

    /// Reads an upper; one that was never written to is as good as an empty one.
    pub(in crate::serve) fn open(lower: LowerFs, upper: BorrowedFd<'_>) -> Result<Self, UpperError> {
        let mut state = State::new();
        let journal = Journal::read(upper, lower.fingerprint(), |change| state.apply(change))?;
        if journal.is_none() {
            return Ok(Self::lower_only(lower));
        }
        let nameless: Vec<u64> =
            state.inodes().filter(|(_, inode)| inode.meta.nlink == 0).map(|(ino, _)| ino).collect();
        for ino in nameless {
            state.remove(ino);
        }
        let origins: Vec<(u64, Box<[u8]>)> =
            state.inodes().filter_map(|(ino, inode)| Some((ino, inode.origin.clone()?))).collect();
        for (ino, path) in origins {
            // One that has vanished from the machine keeps what is here of it.
            lower.adopt(ino, &path);
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let objects = openat(upper, objects::DIRECTORY, flags, Mode::empty()).ok();
        Ok(Self { lower, state, objects, journal })
    }

    pub(crate) fn lower_facts(&self, ino: u64) -> Answer<Facts> {
        self.lower.attr(ino).map(|attr| Facts::from(&attr))
    }

    pub(crate) fn lower_child(&self, parent: u64, name: &[u8]) -> Answer<Option<u64>> {
        Ok(self.lower.child(parent, name)?.map(|child| child.attr.ino))
    }

    pub(crate) fn lower_names(&self, ino: u64) -> Answer<Vec<Name>> {
        let mut names = Vec::new();
        let handle = self.lower.opendir(ino)?;
        let walked = self.lower.names(At { ino, offset: 2 }, handle, |listed| {
            names.push(listed.name.into());
            Ok(true)
        });
        self.lower.releasedir(handle);
        walked.map(|()| names)
    }

    pub(crate) fn lower_xattrs(&self, ino: u64) -> Answer<Xattrs> {
        let names = match self.lower.xattr_names(ino) {
            Err(Errno::EOPNOTSUPP) => return Ok(Vec::new()),
            names => names?,
        };
        let mut xattrs = Vec::with_capacity(names.len());
        for name in names {
            match self.lower.xattr(ino, &name) {
                Ok(value) => xattrs.push((name.to_vec(), value)),
                Err(Errno::ENODATA) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(xattrs)
    }

    /// Owner and group as the image has them, before they were fitted into the id map.
    pub(crate) fn recorded_ids(&self, ino: u64) -> Option<(u32, u32)> {
        match &self.lower {
            LowerFs::Packed(packed, _) => packed.node(ino).ok().map(|(_, node)| (node.uid, node.gid)),
            LowerFs::Directory(_) => None,
        }
    }

    /// What the overlay says about the names of a directory, and whether lower names show in it.
    pub(crate) fn entries(&self, ino: u64) -> (Vec<(Name, Named)>, bool) {
        let Some(inode) = self.state.get(ino) else { return (Vec::new(), true) };
        let Content::Directory(directory) = &inode.content else { return (Vec::new(), false) };
        let listed = directory.entries().filter_map(|(name, state)| match state {
            EntryState::Absent => None,
            EntryState::Whiteout => Some((name.clone(), Named::Whiteout)),
            EntryState::Node(ino) => Some((name.clone(), Named::Node(ino))),
        });
        (listed.collect(), inode.meta.lower)
    }

    /// Whether the overlay keeps anything of an inode.
    pub(crate) fn is_changed(&self, ino: u64) -> bool {
        self.state.get(ino).is_some()
    }

    pub(crate) fn facts(&self, ino: u64) -> Answer<Facts> {
        let Some(inode) = self.state.get(ino) else { return self.lower_facts(ino) };
        let meta = &inode.meta;
        let mut facts = Facts {
            identity: (0, ino),
            mode: meta.mode,
            uid: meta.uid,
            gid: meta.gid,
            rdev: meta.rdev,
            nlink: meta.nlink,
            size: 0,
            mtime: meta.mtime,
        };
        match (&inode.content, meta.data) {
            (Content::Symlink(target), _) => facts.size = target.len() as u64,
            (_, Data::Object) => {
                // One that the disk lost was never synced: the file is empty then.
                if let Ok(status) = self.object_status(ino) {
                    facts.size = status.st_size.cast_unsigned();
                    facts.mtime = stamp(status.st_mtime, status.st_mtime_nsec);
                }
            }
            (_, Data::Inline) => facts.size = inode.known_size().unwrap_or(0),
            (_, Data::Lower) if meta.lower && !meta.is_directory() => {
                facts.size = self.lower.attr(ino)?.size;
            }
            _ => {}
        }
        Ok(facts)
    }

    fn object_status(&self, ino: u64) -> Answer<nix::sys::stat::FileStat> {
        let directory = self.objects.as_ref().ok_or(Errno::ENOENT)?;
        fstatat(directory, &*objects::name(ino), AtFlags::AT_SYMLINK_NOFOLLOW)
    }

    pub(crate) fn target(&self, ino: u64) -> Answer<Vec<u8>> {
        match self.state.get(ino).map(|inode| &inode.content) {
            Some(Content::Symlink(target)) => Ok(target.to_vec()),
            _ => self.lower.readlink(ino),
        }
    }

    pub(crate) fn xattrs(&self, ino: u64) -> Answer<Xattrs> {
        match self.state.get(ino) {
            Some(inode) => match &inode.xattrs {
                Some(own) => Ok(own.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect()),
                None if inode.meta.lower => self.lower_xattrs(ino),
                None => Ok(Vec::new()),
            },
            None => self.lower_xattrs(ino),
        }
    }

    pub(crate) fn source(&self, ino: u64) -> Answer<Source<'_>> {
        match self.state.get(ino).map_or(Data::Lower, |inode| inode.meta.data) {
            Data::Empty => Ok(Source::Empty),
            Data::Lower => Ok(Source::Lower(self, ino)),
            Data::Inline => {
                let stored = self.state.get(ino).and_then(|inode| inode.stored).ok_or(Errno::EIO)?;
                let mut data = vec![0; stored.length as usize];
                let journal = self.journal.as_ref().ok_or(Errno::EIO)?;
                journal.read_exact_at(&mut data, stored.place).map_err(|_| Errno::EIO)?;
                Ok(Source::Bytes(data))
            }
            Data::Object => {
                let Some(directory) = &self.objects else { return Ok(Source::Empty) };
                let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                match openat(directory, &*objects::name(ino), flags, Mode::empty()) {
                    Ok(object) => Ok(Source::Object(object.into())),
                    Err(Errno::ENOENT) => Ok(Source::Empty),
                    Err(errno) => Err(errno),
                }
            }
        }
    }

    pub(crate) fn lower_source(&self, ino: u64) -> Source<'_> {
        Source::Lower(self, ino)
    }

    /// For each lower directory the lower names at or below which something is changed: the way to
    /// files and directories that were changed where they are, about which no directory says anything.
    pub(crate) fn touched(&self) -> Answer<HashMap<u64, BTreeSet<Name>>> {
        let mut touched: HashMap<u64, BTreeSet<Name>> = HashMap::new();
        let changed = self.state.inodes().filter(|(_, inode)| inode.meta.lower);
        match &self.lower {
            LowerFs::Packed(packed, _) => {
                let changed: HashSet<u32> = changed.filter_map(|(ino, _)| u32::try_from(ino).ok()).collect();
                for (parent, name) in packed.image().names_of(&changed)? {
                    touched.entry(parent.into()).or_default().insert(name);
                }
            }
            LowerFs::Directory(_) => {
                for path in changed.filter_map(|(_, inode)| inode.origin.as_deref()) {
                    let mut at = ROOT;
                    for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
                        touched.entry(at).or_default().insert(name.into());
                        match self.lower.child(at, name) {
                            Ok(Some(child)) => at = child.attr.ino,
                            // Gone from the machine: nothing is below.
                            _ => break,
                        }
                    }
                }
            }
        }
        Ok(touched)
    }
}

/// The root's number, of every lower.
pub(crate) const ROOT: u64 = 1;

impl crate::archive::Content for Source<'_> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
        match self {
            Source::Empty => Ok(0),
            Source::Object(file) => Ok(read_full(file, buffer, offset)?),
            Source::Bytes(data) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX).min(data.len());
                let length = buffer.len().min(data.len() - start);
                buffer[..length].copy_from_slice(&data[start..start + length]);
                Ok(length)
            }
            Source::Lower(snapshot, ino) => {
                let size = u32::try_from(buffer.len()).unwrap_or(u32::MAX);
                let copy = |data: &[u8]| {
                    buffer[..data.len()].copy_from_slice(data);
                    data.len()
                };
                Ok(snapshot.lower.read(At { ino: *ino, offset }, size, copy)?)
            }
        }
    }

    fn next_run(&self, offset: u64) -> std::io::Result<Option<(u64, u64)>> {
        let seek = |offset, whence| match self {
            Source::Empty => Err(Errno::ENXIO),
            Source::Object(file) => seek_file(file.as_fd(), offset, whence),
            Source::Bytes(data) if offset >= data.len() as u64 => Err(Errno::ENXIO),
            Source::Bytes(_) if whence == libc::SEEK_DATA => Ok(offset),
            Source::Bytes(data) => Ok(data.len() as u64),
            Source::Lower(snapshot, ino) => snapshot.lower.seek(At { ino: *ino, offset }, whence),
        };
        match seek(offset, libc::SEEK_DATA) {
            Ok(start) => Ok(Some((start, seek(start, libc::SEEK_HOLE).unwrap_or(u64::MAX)))),
            Err(Errno::ENXIO) => Ok(None),
            Err(_) => Ok(Some((offset, u64::MAX))),
        }
    }
}
