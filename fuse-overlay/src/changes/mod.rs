//! What an upper changes of its lower layer, in time that follows from the changes alone.
//!
//! Three kinds of upper are read, each as it lies on the disk, without a mount and beside whatever is
//! writing to it: the kernel overlayfs's (a directory tree with whiteouts), this crate's own (a
//! journal and objects), and a copy of all that lies below (which is walked whole: the one that takes
//! longer than its changes). All give the same answer, because all are compared with the lower layer
//! name by name, the way Docker compares the trees of a container and its image:
//!
//! - a name that the lower layer lacks is *added*, one that only the lower layer has is *deleted*,
//!   and of a deleted directory nothing below is told;
//! - a file is *modified* whose kind, mode, owner, device number, size, time of modification or
//!   extended attributes differ, or which got another name, so that a layer keeps both together; one
//!   that was copied up and is as before is none;
//! - a directory is modified for its mode, owner or extended attributes, or for a change in it, but
//!   not for its time.
//!
//! [`Changes::write_layer`] writes them as a layer: an OCI image layer's tar, in the order of the
//! list, with whiteouts. The same changes give the same bytes.
//!
//! What must stay true: only directories that hold a change are looked into, in either layer; nothing
//! that a container made is followed (a symlink, a `..`) or opened before it is known to be a regular
//! file; and of what vanishes meanwhile nothing is told.

mod kernel;
mod own;

use std::collections::HashMap;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use nix::errno::Errno;

use self::kernel::Tree;
use self::own::Own;
use crate::archive::{Content, Entry, Kind, Writer};
use crate::index::tree::Name;
use crate::serve::overlay::{Facts, ROOT, Snapshot, Source};
use crate::serve::{self, Ids, Lower, ServeError};
use crate::sys::{self, Xattrs};

/// Bytes of a path from the root: `PATH_MAX` of Linux, and what an index takes.
const MAX_PATH_BYTES: usize = 4096;

/// Names that overlay filesystems keep for themselves, and labels that the machine gives by itself.
const NOT_KEPT: [&[u8]; 3] = [b"user.overlay.", b"trusted.overlay.", b"security.selinux"];

/// A whiteout's prefix in a layer (image-spec, layer.md).
const WHITEOUT: &[u8] = b".wh.";
/// The name that hides all of a directory's lower names.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Where changes were written to.
#[derive(Debug)]
pub enum Upper {
    /// The upper directory of a kernel overlayfs mounted with `userxattr`.
    Kernel(OwnedFd),
    /// The directory that [`serve::Mode::Overlay`] was given.
    Own(OwnedFd),
    /// A copy of the whole lower layer, as [`crate::unpack`] writes it, that was changed in place.
    Copy(OwnedFd),
}

/// Why changes cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum ChangesError {
    /// A layer cannot be opened.
    #[error(transparent)]
    Layer(#[from] ServeError),
    /// Something of a layer cannot be read.
    #[error("cannot read {path:?} of the container")]
    Read {
        /// Its path from the root.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The archive cannot be written.
    #[error("cannot write the layer")]
    Write(#[source] io::Error),
}

/// What became of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// It is other than in the lower layer.
    Modified,
    /// The lower layer does not have it.
    Added,
    /// Only the lower layer has it.
    Deleted,
}

/// One changed path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change<'a> {
    /// What became of it.
    pub kind: ChangeKind,
    /// From the root, without a slash in front.
    pub path: &'a [u8],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Told(ChangeKind),
    /// As in the lower layer, but in a directory that hides it there: part of a layer, no change.
    Kept,
}

#[derive(Clone, Debug)]
struct Found {
    path: Name,
    state: State,
    /// A number of the overlay's own, or 0.
    node: u64,
    /// The lower node at this path, or 0.
    below: u64,
    /// A directory that hides what the lower layer has in it.
    replaces: bool,
    /// A deletion that the directory's own mark already says.
    implied: bool,
    /// What the walk saw; none of a deletion.
    facts: Option<Facts>,
}

/// The changes, in the order of a walk with names sorted.
#[derive(Debug)]
pub struct Changes {
    layers: Layers,
    found: Vec<Found>,
}

#[derive(Debug)]
struct Layers {
    snapshot: Snapshot,
    tree: Option<Tree>,
}

/// Finds the changes.
///
/// `made` are paths that the caller made itself (mount points): an empty directory or file there
/// that the lower layer lacks is no change.
///
/// # Errors
/// [`ChangesError`]: what cannot be read, save what vanishes meanwhile.
pub fn find(lower: Lower, upper: Upper, ids: Ids, made: &[&[u8]]) -> Result<Changes, ChangesError> {
    let layers = match upper {
        Upper::Kernel(directory) => {
            Layers { snapshot: serve::snapshot(lower, None, ids)?, tree: Some(Tree::new(directory)) }
        }
        Upper::Copy(directory) => {
            Layers { snapshot: serve::snapshot(lower, None, ids)?, tree: Some(Tree::copy(directory)) }
        }
        Upper::Own(directory) => {
            Layers { snapshot: serve::snapshot(lower, Some(directory.as_fd()), ids)?, tree: None }
        }
    };
    let found = match &layers.tree {
        Some(tree) => Walk { upper: tree, snapshot: &layers.snapshot, made, found: Vec::new() }.run()?,
        None => {
            let own = Own::new(&layers.snapshot).map_err(|errno| unreadable(b"", errno))?;
            Walk { upper: &own, snapshot: &layers.snapshot, made, found: Vec::new() }.run()?
        }
    };
    Ok(Changes { layers, found })
}

/// A directory of an upper as far as it is changed.
struct Listing {
    /// Sorted by name; None hides the lower name.
    names: Vec<(Name, Option<u64>)>,
    /// Lower names that are not listed do not show.
    replaces: bool,
    /// All that shows is listed: a lower name that is not has been removed.
    complete: bool,
}

/// An upper as a walk sees it: nodes by number, or by path where the number is 0.
trait View {
    /// `below` is the lower node at the same path, if it is a directory. Of what is `cut` off from it
    /// by a directory above that replaces another, every name is wanted.
    fn list(&self, node: u64, path: &[u8], below: Option<u64>, cut: bool) -> Result<Listing, Errno>;

    fn facts(&self, node: u64, path: &[u8]) -> Result<Facts, Errno>;

    /// Sorted by name; without those that are not kept.
    fn xattrs(&self, node: u64, path: &[u8]) -> Result<Xattrs, Errno>;

    /// Whether this is the very node of the lower layer, unchanged.
    fn is_lower(&self, node: u64, below: u64) -> bool;

    /// Whether a lower node may be missing that nobody has removed.
    fn may_lack(&self, _below: &Facts) -> bool {
        false
    }

    /// Whether a lower node's xattr may be missing that nobody has removed.
    fn may_lack_xattr(&self, _name: &[u8]) -> bool {
        false
    }
}

struct Walk<'a, V> {
    upper: &'a V,
    snapshot: &'a Snapshot,
    made: &'a [&'a [u8]],
    found: Vec<Found>,
}

impl<V: View> Walk<'_, V> {
    fn run(mut self) -> Result<Vec<Found>, ChangesError> {
        self.directory(ROOT, b"", Some(ROOT), false)?;
        Ok(self.found)
    }

    /// Walks a directory: whether anything in it or below is a change, and whether it replaces what
    /// is below it.
    fn directory(
        &mut self,
        node: u64,
        path: &[u8],
        below: Option<u64>,
        cut: bool,
    ) -> Result<(bool, bool), ChangesError> {
        let listing = match self.upper.list(node, path, below, cut) {
            Ok(listing) => listing,
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ESTALE) => return Ok((false, false)),
            Err(errno) => return Err(unreadable(path, errno)),
        };
        let hidden = match below.filter(|_| listing.replaces || listing.complete) {
            Some(below) => self.snapshot.lower_names(below).map_err(|errno| unreadable(path, errno))?,
            None => Vec::new(),
        };
        let mut names: Vec<(Name, Option<u64>)> = listing.names;
        let listed = names.len();
        names.extend(hidden.into_iter().map(|name| (name, None)));
        // Stable: what the upper says of a name stands before what is only hidden by it.
        names.sort_by(|a, b| a.0.cmp(&b.0));
        if listed < names.len() {
            names.dedup_by(|later, earlier| later.0 == earlier.0);
        }
        let mut changed = false;
        for (name, child) in names {
            let mut at = Vec::with_capacity(path.len() + 1 + name.len());
            if !path.is_empty() {
                at.extend_from_slice(path);
                at.push(b'/');
            }
            at.extend_from_slice(&name);
            if at.len() > MAX_PATH_BYTES {
                return Err(unreadable(path, Errno::ENAMETOOLONG));
            }
            let under = match below {
                Some(below) => {
                    self.snapshot.lower_child(below, &name).map_err(|errno| unreadable(&at, errno))?
                }
                None => None,
            };
            changed |= match (child, under) {
                (Some(child), under) => self.node(child, &at, under, cut || listing.replaces)?,
                (None, Some(under)) if self.is_lacking(under).map_err(|errno| unreadable(&at, errno))? => {
                    false
                }
                (None, Some(_)) => {
                    self.found.push(Found {
                        path: at.into(),
                        state: State::Told(ChangeKind::Deleted),
                        node: 0,
                        below: 0,
                        replaces: false,
                        implied: cut || listing.replaces,
                        facts: None,
                    });
                    true
                }
                (None, None) => false,
            };
        }
        Ok((changed, listing.replaces))
    }

    fn node(&mut self, node: u64, path: &[u8], below: Option<u64>, cut: bool) -> Result<bool, ChangesError> {
        let failed = |errno| unreadable(path, errno);
        let facts = match self.upper.facts(node, path) {
            Ok(facts) => facts,
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ESTALE) => return Ok(false),
            Err(errno) => return Err(failed(errno)),
        };
        let same = match below {
            Some(below) if self.upper.is_lower(node, below) => Some(true),
            Some(below) => {
                let lower = self.snapshot.lower_facts(below).map_err(failed)?;
                Some(is_same(&facts, &lower) && self.same_xattrs(node, path, below).map_err(failed)?)
            }
            None => None,
        };
        let place = self.found.len();
        let kind = if below.is_some() { ChangeKind::Modified } else { ChangeKind::Added };
        self.found.push(Found {
            path: path.into(),
            state: if same == Some(true) { State::Kept } else { State::Told(kind) },
            node,
            below: below.unwrap_or(0),
            replaces: false,
            implied: false,
            facts: Some(facts),
        });
        let mut inside = false;
        if facts.is_directory() {
            let lower_directory = match below {
                Some(below) => {
                    let lower = self.snapshot.lower_facts(below).map_err(failed)?;
                    lower.is_directory().then_some(below)
                }
                None => None,
            };
            let replaces;
            (inside, replaces) = self.directory(node, path, lower_directory, cut)?;
            self.found[place].replaces = replaces && lower_directory.is_some() && !cut;
        }
        let is_made = same.is_none() && !inside && self.is_made(path, &facts);
        match same {
            Some(true) if inside => self.found[place].state = State::Told(ChangeKind::Modified),
            // What is in it is as below, and it shows there.
            Some(true) if !cut => self.found.truncate(place),
            _ if is_made => self.found.truncate(place),
            _ => {}
        }
        Ok(!is_made && (inside || same != Some(true)))
    }

    fn same_xattrs(&self, node: u64, path: &[u8], below: u64) -> Result<bool, Errno> {
        let upper = match self.upper.xattrs(node, path) {
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ESTALE) => return Ok(true),
            xattrs => xattrs?,
        };
        let mut lower = kept_xattrs(self.snapshot.lower_xattrs(below)?);
        lower.retain(|(name, _)| {
            !self.upper.may_lack_xattr(name) || upper.iter().any(|(known, _)| known == name)
        });
        Ok(upper == lower)
    }

    fn is_lacking(&self, below: u64) -> Result<bool, Errno> {
        Ok(self.upper.may_lack(&self.snapshot.lower_facts(below)?))
    }

    fn is_made(&self, path: &[u8], facts: &Facts) -> bool {
        let is_empty = facts.is_directory() || facts.file_type() == libc::S_IFREG && facts.size == 0;
        is_empty && self.made.contains(&path)
    }
}

fn is_same(upper: &Facts, lower: &Facts) -> bool {
    (upper.mode, upper.uid, upper.gid, upper.rdev) == (lower.mode, lower.uid, lower.gid, lower.rdev)
        && (upper.is_directory()
            || (upper.size, upper.mtime) == (lower.size, lower.mtime) && upper.nlink <= lower.nlink)
}

fn kept_xattrs(mut xattrs: Xattrs) -> Xattrs {
    xattrs.retain(|(name, _)| !NOT_KEPT.iter().any(|prefix| name.starts_with(prefix)));
    xattrs.sort();
    xattrs
}

fn unreadable(path: &[u8], errno: Errno) -> ChangesError {
    let path = PathBuf::from(std::ffi::OsString::from_vec([b"/", path].concat()));
    ChangesError::Read { path, source: errno.into() }
}

/// What a layer cannot hold, for the caller to tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Files whose names begin as whiteouts do: in a layer they would hide others.
    pub like_whiteouts: Vec<PathBuf>,
}

impl Changes {
    /// The changes, parents before what is in them.
    pub fn iter(&self) -> impl Iterator<Item = Change<'_>> {
        self.found.iter().filter_map(|found| match found.state {
            State::Told(kind) => Some(Change { kind, path: &found.path }),
            State::Kept => None,
        })
    }

    /// Writes the changes as a layer's tar. Sockets are left out, as everywhere.
    ///
    /// # Errors
    /// [`ChangesError::Read`], [`ChangesError::Write`].
    pub fn write_layer(&self, out: impl Write) -> Result<LeftOut, ChangesError> {
        let mut layer = Layer {
            layers: &self.layers,
            writer: Writer::new(out),
            links: HashMap::new(),
            left_out: LeftOut::default(),
        };
        for found in &self.found {
            layer.add(found)?;
        }
        layer.writer.finish().map_err(ChangesError::Write)?;
        Ok(layer.left_out)
    }
}

struct Layer<'a, W> {
    layers: &'a Layers,
    writer: Writer<W>,
    /// First paths of files with several names.
    links: HashMap<(u64, u64), &'a [u8]>,
    left_out: LeftOut,
}

impl<'a, W: Write> Layer<'a, W> {
    fn add(&mut self, found: &'a Found) -> Result<(), ChangesError> {
        let path = &*found.path;
        let name_at = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        if path.split(|byte| *byte == b'/').any(|name| name.starts_with(WHITEOUT)) {
            if found.state != State::Told(ChangeKind::Deleted) && path[name_at..].starts_with(WHITEOUT) {
                self.left_out.like_whiteouts.push(PathBuf::from(std::ffi::OsString::from_vec(path.to_vec())));
            }
            return Ok(());
        }
        if found.state == State::Told(ChangeKind::Deleted) {
            if found.implied {
                return Ok(());
            }
            return self.mark(&[&path[..name_at], WHITEOUT, &path[name_at..]].concat());
        }
        let failed = |errno| unreadable(path, errno);
        match self.node(found) {
            Ok(true) if found.replaces => self.mark(&[path, b"/", OPAQUE].concat()),
            Ok(_) => Ok(()),
            Err(Problem::Read(Errno::ENOENT | Errno::ENOTDIR | Errno::ESTALE)) => Ok(()),
            Err(Problem::Read(errno)) => Err(failed(errno)),
            Err(Problem::Write(error)) => Err(ChangesError::Write(error)),
        }
    }

    /// An empty file whose name says something.
    fn mark(&mut self, path: &[u8]) -> Result<(), ChangesError> {
        let entry = Entry {
            path,
            kind: Kind::File,
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: crate::index::Timestamp::default(),
            xattrs: &[],
        };
        self.writer.entry(&entry).map_err(ChangesError::Write)
    }

    /// Writes a node; false where it is of a kind that archives do not have.
    fn node(&mut self, found: &'a Found) -> Result<bool, Problem> {
        let Layers { snapshot, tree } = self.layers;
        let (node, path) = (found.node, &*found.path);
        // Of the kernel's upper, a file is looked at once and opened once.
        let facts = match (tree, found.facts) {
            (Some(_), Some(facts)) => facts,
            (Some(tree), None) => tree.facts(node, path)?,
            (None, _) => snapshot.facts(node)?,
        };
        let mut opened = None;
        let all_xattrs = match tree {
            Some(tree) if facts.file_type() == libc::S_IFREG => {
                let file = tree.open(path)?;
                let xattrs = sys::file_xattrs(file.as_fd())?;
                opened = Some(file);
                xattrs
            }
            Some(tree) => tree.xattrs(node, path)?,
            None => snapshot.xattrs(node)?,
        };
        let has_no_data = all_xattrs.iter().any(|(name, _)| name == kernel::METACOPY.to_bytes());
        let xattrs = kept_xattrs(all_xattrs);
        let (uid, gid) = self.recorded_ids(found, &facts)?;
        let target;
        let kind = match facts.file_type() {
            libc::S_IFDIR => Kind::Directory,
            libc::S_IFREG => Kind::File,
            libc::S_IFLNK => {
                target = match tree {
                    Some(tree) => tree.target(path)?,
                    None => snapshot.target(node)?,
                };
                Kind::Symlink(&target)
            }
            libc::S_IFCHR => Kind::CharDevice(major(facts.rdev), minor(facts.rdev)),
            libc::S_IFBLK => Kind::BlockDevice(major(facts.rdev), minor(facts.rdev)),
            libc::S_IFIFO => Kind::Fifo,
            _ => return Ok(false),
        };
        let first = if facts.nlink > 1 && !facts.is_directory() {
            self.links.get(&facts.identity).copied()
        } else {
            None
        };
        let kind = first.map_or(kind, Kind::Link);
        // Names after the first carry no attributes: they are the first's.
        let xattrs = if first.is_some() { &[][..] } else { &xattrs };
        let entry = Entry { path, kind, mode: facts.mode & 0o7777, uid, gid, mtime: facts.mtime, xattrs };
        if kind == Kind::File {
            let source = match opened {
                // One that has only its attributes in the upper has its data below.
                Some(_) if has_no_data && found.below != 0 => snapshot.lower_source(found.below),
                Some(file) => Source::Object(file),
                None => snapshot.source(node)?,
            };
            let content = Checked { source: &source, error: None.into() };
            let written = self.writer.file(&entry, facts.size, &content);
            content.outcome(written)?;
        } else {
            self.writer.entry(&entry).map_err(Problem::Write)?;
        }
        if facts.nlink > 1 && !facts.is_directory() {
            self.links.entry(facts.identity).or_insert(path);
        }
        Ok(true)
    }

    /// The owner as the image has it, where the id map only had no room for it.
    fn recorded_ids(&self, found: &Found, facts: &Facts) -> Result<(u32, u32), Errno> {
        let snapshot = &self.layers.snapshot;
        // A node of the lower layer that lies elsewhere by now is still itself.
        let below =
            if found.below == 0 && snapshot.lower_facts(found.node).is_ok() && self.layers.tree.is_none() {
                found.node
            } else {
                found.below
            };
        if below == 0 {
            return Ok((facts.uid, facts.gid));
        }
        let (lower, recorded) = (snapshot.lower_facts(below)?, snapshot.recorded_ids(below));
        let Some(recorded) = recorded else { return Ok((facts.uid, facts.gid)) };
        Ok((
            if facts.uid == lower.uid { recorded.0 } else { facts.uid },
            if facts.gid == lower.gid { recorded.1 } else { facts.gid },
        ))
    }
}

/// Which side failed.
enum Problem {
    Read(Errno),
    Write(io::Error),
}

impl From<Errno> for Problem {
    fn from(errno: Errno) -> Self {
        Self::Read(errno)
    }
}

/// Content that remembers its own failure, to tell it from the writer's.
struct Checked<'a> {
    source: &'a Source<'a>,
    error: std::cell::Cell<Option<Errno>>,
}

impl Checked<'_> {
    fn note<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &result {
            self.error.set(Some(error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)));
        }
        result
    }

    fn outcome(self, written: io::Result<()>) -> Result<(), Problem> {
        match (self.error.get(), written) {
            (Some(errno), Err(_)) => Err(Problem::Read(errno)),
            (None, Err(error)) => Err(Problem::Write(error)),
            (_, Ok(())) => Ok(()),
        }
    }
}

impl Content for Checked<'_> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.note(self.source.read_at(buffer, offset))
    }

    fn next_run(&self, offset: u64) -> io::Result<Option<(u64, u64)>> {
        self.note(self.source.next_run(offset))
    }
}

/// The major number in the kernel's `new_encode_dev`.
fn major(device: u32) -> u32 {
    device >> 8 & 0xfff
}

fn minor(device: u32) -> u32 {
    device & 0xff | device >> 12 & 0xf_ff00
}
