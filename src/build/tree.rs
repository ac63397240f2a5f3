//! What files are copied from: a directory of the machine, or an image of the store, seen alike.
//!
//! Neither is trusted. A directory is walked by descriptor and never through a symlink, so that nothing
//! outside of it is read whatever is in it, or put in it meanwhile; an image is its merged index, where
//! there is no outside. Paths are resolved here, in one place for both: `..` stops at the root, and a
//! symlink is read as if the root were `/`.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;
use std::sync::Arc;

use fuse_overlay::archive::Content;
use fuse_overlay::index::{MergedIndex, ROOT_INODE, Timestamp};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat};

use crate::id::Digest;
use crate::store::Store;

/// As many symlinks as Linux follows in one path (`MAXSYMLINKS`).
const MAX_SYMLINKS: u32 = 40;
/// Names that one path and its symlinks may have in all.
const MAX_NAMES: usize = 41 * 2048;

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File,
    Symlink,
    Fifo,
    Char,
    Block,
    Socket,
}

impl Kind {
    fn of(mode: u32) -> Self {
        match mode & libc::S_IFMT {
            libc::S_IFDIR => Self::Directory,
            libc::S_IFLNK => Self::Symlink,
            libc::S_IFIFO => Self::Fifo,
            libc::S_IFCHR => Self::Char,
            libc::S_IFBLK => Self::Block,
            libc::S_IFSOCK => Self::Socket,
            _ => Self::File,
        }
    }
}

/// What is known of a node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    pub(super) kind: Kind,
    /// The low twelve bits.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) size: u64,
    pub(super) mtime: Timestamp,
    /// Tells a file's content apart from an earlier one's: device, inode, time of change.
    pub(super) stamp: Option<Stamp>,
    /// More than one name; then `inode` says which.
    pub(super) links: u64,
    pub(super) inode: u64,
}

impl Facts {
    /// A regular file of which no more is known yet.
    const UNSEEN_FILE: Self = Self {
        kind: Kind::File,
        mode: 0,
        uid: 0,
        gid: 0,
        size: 0,
        mtime: Timestamp { seconds: 0, nanoseconds: 0 },
        stamp: None,
        links: 0,
        inode: 0,
    };

    /// Whether it was looked at: then it has a name at least.
    pub(super) fn is_seen(&self) -> bool {
        self.links > 0
    }
}

/// What [`Tree::children`] tells of regular files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Files {
    /// Everything.
    Seen,
    /// That they are files: whoever opens each anyway learns the rest from [`Tree::open`], and saves a stat(2) of it.
    /// Those of an image come whole, since they cost nothing.
    Unseen,
}

/// What changes whenever a file's content does (stat(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) device: u64,
    pub(super) inode: u64,
    pub(super) ctime_s: i64,
    pub(super) ctime_ns: i64,
}

/// A node of a tree.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) facts: Facts,
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    /// A name in an open directory.
    Name(Arc<OwnedFd>, Vec<u8>),
    Inode(u64),
}

/// Where something really is, without a slash in front, and what it is.
pub(super) type Found = (Vec<u8>, Node);

/// A tree.
#[derive(Debug)]
pub(super) enum Tree {
    Directory(Arc<OwnedFd>),
    Image { index: MergedIndex, layers: Vec<File> },
}

impl Tree {
    /// A directory of the machine.
    pub(super) fn directory(path: &Path) -> io::Result<Self> {
        let fd = open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        Ok(Self::Directory(Arc::new(fd)))
    }

    /// An image of these layers; the caller holds the content lock.
    pub(super) fn image(store: &Store, layers: &[Digest]) -> io::Result<Self> {
        let index = store.merged_index(layers).map_err(io::Error::other)?;
        let index = MergedIndex::open(&File::open(index)?).map_err(io::Error::other)?;
        let layers =
            layers.iter().map(|layer| File::open(store.layer_tar(layer))).collect::<io::Result<_>>()?;
        Ok(Self::Image { index, layers })
    }

    pub(super) fn root(&self) -> io::Result<Node> {
        match self {
            Self::Directory(fd) => named(fd.clone(), b".".to_vec()),
            Self::Image { index, .. } => inode(index, ROOT_INODE),
        }
    }

    /// What a directory has under a name; no symlink is followed.
    pub(super) fn child(&self, node: &Node, name: &[u8]) -> io::Result<Option<Node>> {
        match (self, &node.place) {
            (Self::Image { index, .. }, Place::Inode(number)) => {
                let found = index.child(*number, name).map_err(io::Error::other)?;
                found.map(|number| inode(index, number)).transpose()
            }
            (_, Place::Name(..)) => match open_directory(node, OFlag::O_PATH) {
                Ok(fd) => match named(Arc::new(fd), name.to_vec()) {
                    Ok(node) => Ok(Some(node)),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(error),
                },
                Err(Errno::ENOTDIR | Errno::ELOOP) => Ok(None),
                Err(errno) => Err(errno.into()),
            },
            (Self::Directory(_), Place::Inode(_)) => Ok(None),
        }
    }

    /// A directory's names and nodes, sorted by name.
    pub(super) fn children(&self, node: &Node, files: Files) -> io::Result<Vec<(Vec<u8>, Node)>> {
        match (self, &node.place) {
            (Self::Image { index, .. }, Place::Inode(number)) => index
                .children(*number)
                .map_err(io::Error::other)?
                .into_iter()
                .map(|(name, number)| Ok((name, inode(index, number)?)))
                .collect(),
            _ => {
                let fd = Arc::new(open_directory(node, OFlag::O_RDONLY)?);
                let mut names = Vec::new();
                for entry in std::fs::read_dir(format!("/proc/self/fd/{}", fd.as_raw_fd()))? {
                    let entry = entry?;
                    // What readdir(3) says of it; a filesystem that says nothing is asked in the end.
                    let is_file =
                        files == Files::Unseen && entry.file_type().is_ok_and(|kind| kind.is_file());
                    names.push((entry.file_name().into_vec(), is_file));
                }
                names.sort_unstable();
                let mut found = Vec::with_capacity(names.len());
                for (name, is_file) in names {
                    if is_file {
                        let node =
                            Node { facts: Facts::UNSEEN_FILE, place: Place::Name(fd.clone(), name.clone()) };
                        found.push((name, node));
                        continue;
                    }
                    match named(fd.clone(), name.clone()) {
                        Ok(node) => found.push((name, node)),
                        // It went away meanwhile.
                        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                        Err(error) => return Err(error),
                    }
                }
                Ok(found)
            }
        }
    }

    /// Where a symlink leads.
    pub(super) fn target(&self, node: &Node) -> io::Result<Vec<u8>> {
        match (self, &node.place) {
            (Self::Image { index, .. }, Place::Inode(number)) => {
                index.link_target(*number).map_err(io::Error::other)
            }
            (_, Place::Name(parent, name)) => Ok(readlinkat(parent, OsStr::from_bytes(name))?.into_vec()),
            (Self::Directory(_), Place::Inode(_)) => Err(Errno::ESTALE.into()),
        }
    }

    /// A device's numbers.
    pub(super) fn device(&self, node: &Node) -> io::Result<(u32, u32)> {
        match (self, &node.place) {
            (Self::Image { index, .. }, Place::Inode(number)) => {
                index.device(*number).map_err(io::Error::other)
            }
            // A user has none to copy.
            _ => Err(Errno::EPERM.into()),
        }
    }

    /// Extended attributes, sorted; of a directory of the machine none, as with BuildKit's transfer.
    pub(super) fn xattrs(&self, node: &Node) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        match (self, &node.place) {
            (Self::Image { index, .. }, Place::Inode(number)) if index.has_xattrs() => {
                index.xattrs(*number).map_err(io::Error::other)
            }
            _ => Ok(Vec::new()),
        }
    }

    /// A regular file's data.
    pub(super) fn content<'a>(&'a self, node: &Node) -> io::Result<Box<dyn Content + 'a>> {
        Ok(self.open(node)?.1)
    }

    /// A regular file's data, and what is known of the file that was opened.
    pub(super) fn open<'a>(&'a self, node: &Node) -> io::Result<(Facts, Box<dyn Content + 'a>)> {
        match (self, &node.place) {
            (Self::Image { index, layers }, Place::Inode(number)) => {
                Ok((node.facts, Box::new(index.content(*number, layers).map_err(io::Error::other)?)))
            }
            _ => {
                let (stat, file) = open_file(node)?;
                Ok((facts(&stat), Box::new(file)))
            }
        }
    }

    /// Follows a path from the root, symlinks too: where it really is, and what is there. `None` where
    /// nothing is.
    pub(super) fn find(&self, path: &[u8]) -> io::Result<Option<Found>> {
        let (found, rest) = self.walk(path)?;
        Ok(if rest.is_empty() { Some(found) } else { None })
    }

    /// As [`Self::find`], but as far as there is something: the last node that there is, and the names
    /// that are missing behind it.
    pub(super) fn walk(&self, path: &[u8]) -> io::Result<(Found, Vec<Vec<u8>>)> {
        let mut names: Vec<Vec<u8>> = split(path).rev().map(<[u8]>::to_vec).collect();
        let mut stack = vec![(Vec::new(), self.root()?)];
        let (mut links, mut steps) = (0, 0);
        let mut missing: Vec<Vec<u8>> = Vec::new();
        while let Some(name) = names.pop() {
            steps += 1;
            if steps > MAX_NAMES {
                return Err(Errno::ELOOP.into());
            }
            match name.as_slice() {
                b"." => continue,
                b".." => {
                    if missing.pop().is_none() && stack.len() > 1 {
                        stack.pop();
                    }
                    continue;
                }
                _ => {}
            }
            let Some((_, directory)) = stack.last() else { return Err(Errno::ENOENT.into()) };
            let found = if missing.is_empty() { self.child(directory, &name)? } else { None };
            match found {
                None => missing.push(name),
                Some(node) if node.facts.kind == Kind::Symlink => {
                    links += 1;
                    if links > MAX_SYMLINKS {
                        return Err(Errno::ELOOP.into());
                    }
                    let target = self.target(&node)?;
                    if target.first() == Some(&b'/') {
                        stack.truncate(1);
                    }
                    names.extend(split(&target).rev().map(<[u8]>::to_vec));
                }
                Some(node) => stack.push((name, node)),
            }
        }
        let path = stack.iter().skip(1).map(|(name, _)| name.as_slice()).collect::<Vec<_>>().join(&b'/');
        match stack.pop() {
            Some((_, node)) => Ok(((path, node), missing)),
            None => Err(Errno::ENOENT.into()),
        }
    }

    /// Reads a small file, for accounts.
    pub(super) fn read_small(&self, path: &[u8], limit: u64) -> io::Result<Vec<u8>> {
        let Some((_, node)) = self.find(path)? else { return Ok(Vec::new()) };
        if node.facts.kind != Kind::File {
            return Ok(Vec::new());
        }
        let mut bytes = vec![0; usize::try_from(node.facts.size.min(limit)).unwrap_or(0)];
        let count = self.content(&node)?.read_at(&mut bytes, 0)?;
        bytes.truncate(count);
        Ok(bytes)
    }
}

/// Names of a path, without empty ones.
pub(super) fn split(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|name| !name.is_empty())
}

fn named(parent: Arc<OwnedFd>, name: Vec<u8>) -> io::Result<Node> {
    let stat = fstatat(&parent, OsStr::from_bytes(&name), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    Ok(Node { facts: facts(&stat), place: Place::Name(parent, name) })
}

fn facts(stat: &FileStat) -> Facts {
    Facts {
        kind: Kind::of(stat.st_mode),
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: stat.st_size.cast_unsigned(),
        mtime: Timestamp {
            seconds: stat.st_mtime,
            nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
        },
        stamp: Some(Stamp {
            device: stat.st_dev,
            inode: stat.st_ino,
            ctime_s: stat.st_ctime,
            ctime_ns: stat.st_ctime_nsec,
        }),
        links: stat.st_nlink,
        inode: stat.st_ino,
    }
}

fn inode(index: &MergedIndex, number: u64) -> io::Result<Node> {
    let found = index.metadata(number).map_err(io::Error::other)?;
    let facts = Facts {
        kind: Kind::of(found.mode),
        mode: found.mode & 0o7777,
        uid: found.uid,
        gid: found.gid,
        size: found.size,
        mtime: found.mtime,
        stamp: None,
        links: found.nlink.into(),
        inode: number,
    };
    Ok(Node { facts, place: Place::Inode(number) })
}

fn open_directory(node: &Node, how: OFlag) -> Result<OwnedFd, Errno> {
    let Place::Name(parent, name) = &node.place else { return Err(Errno::ENOTDIR) };
    let flags = how | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(parent, OsStr::from_bytes(name), flags, Mode::empty())
}

/// Opens what was a regular file when it was looked at; what took its place is refused.
fn open_file(node: &Node) -> io::Result<(FileStat, File)> {
    let Place::Name(parent, name) = &node.place else { return Err(Errno::ESTALE.into()) };
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = File::from(openat(parent, OsStr::from_bytes(name), flags, Mode::empty())?);
    let stat = fstat(&file)?;
    if Kind::of(stat.st_mode) != Kind::File {
        return Err(Errno::ESTALE.into());
    }
    Ok((stat, file))
}
