//! Writing an image's files out, all or some, as a plain directory tree.
//!
//! Two uses: *native files*, a few hot or large ones in a tree of their own that the kernel's
//! overlayfs puts above the FUSE mount, so that they are read without a request; and a
//! *materialised* image, all of it, for machines where no FUSE mount can be made.
//!
//! What must stay true: nothing outside the target is touched, whatever the index says (names are
//! checked, every step goes by descriptor, no symlink is followed), and what a tree cannot hold
//! without privilege is counted, not an error: device nodes, and owners where there is one id.
//! The index keeps both. Making the tree durable and putting it in its place is the caller's part.

use std::collections::{HashMap, HashSet};
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, copy_file_range, openat};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, fchmod, futimens, mkdirat, mknodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat, linkat, symlinkat};

use crate::index::{Corrupt, Image, MergedIndex, NodeRecord, ROOT_ID, Timestamp, is_overlay_xattr};
use crate::serve::Ids;
use crate::sys;

/// How deep directories lie in each other: a path has at most 4096 bytes. Each level holds a
/// descriptor open.
const DEPTH_LIMIT: usize = 2048;

/// Bytes copied at once where the kernel cannot copy from file to file.
const COPY_BYTES: usize = 1 << 20;

/// Why a tree cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The index does not hold together.
    #[error("the index is damaged: rebuild it")]
    Index,
    /// A layer's file cannot be read, or is shorter than the index says.
    #[error("cannot read layer {layer}")]
    Layer {
        /// Which, counted from the bottom.
        layer: u32,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Something in the target cannot be made.
    #[error("cannot write {path:?}")]
    Write {
        /// The path in the image.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Which files are written.
#[derive(Clone, Copy, Debug)]
pub enum Select<'a> {
    /// Everything.
    All,
    /// Regular files with these inode numbers, under all their names, and the directories that
    /// lead to them. Those that the caller's plain files cannot stand for are passed over: see
    /// [`MergedIndex::native_candidates`].
    Files(&'a HashSet<u64>),
}

/// To whom the files are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owners {
    /// They stay the caller's.
    Caller,
    /// As the image says, in ids of the caller's user namespace, where it is root.
    Image(Ids),
}

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Regular files, hard links counted once.
    pub files: u64,
    /// Bytes of their data.
    pub bytes: u64,
    /// Device nodes, which nobody without privilege can make.
    pub left_out: u64,
}

/// A regular file that may be kept as a plain file of the caller's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its inode number in the image.
    pub inode: u64,
    /// Its size in bytes.
    pub size: u64,
}

impl MergedIndex {
    /// The files that may be taken out of the image and kept as plain files of the caller's: they
    /// and all directories above all their names belong to root, who may change the directories,
    /// and nothing about them (xattrs, set-id bits, holes) needs more than a plain file has. Looks
    /// at the whole index.
    ///
    /// # Errors
    /// [`UnpackError::Index`].
    pub fn native_candidates(&self) -> Result<Vec<Candidate>, UnpackError> {
        let image = self.image();
        let counts = image.counts();
        // Directories are numbered before what is in them: one pass decides for all.
        let mut plain = vec![false; usize::try_from(counts.nodes).unwrap_or(0) + 1];
        let mut names = HashMap::<u32, u32>::new();
        for id in ROOT_ID..=u32::try_from(counts.nodes).unwrap_or(u32::MAX) {
            let node = image.node(id)?;
            if !node.is_directory() {
                continue;
            }
            let above = id == ROOT_ID || plain.get(node.parent as usize).copied().unwrap_or(false);
            // The root is the container's own, whoever it belongs to in the image.
            let fits = above && (id == ROOT_ID || (belongs_to_root(&node) && node.mode & 0o700 == 0o700));
            plain[id as usize] = fits;
            for index in image.entries_of(&node)?.filter(|_| fits) {
                let (entry, _) = image.entry(index)?;
                if u32::from(entry.kind) << 12 == libc::S_IFREG {
                    *names.entry(entry.node).or_default() += 1;
                }
            }
        }
        let mut found = Vec::new();
        for (id, count) in names {
            let node = image.node(id)?;
            let whole = node.count == 1 && image.extent(&node, 0)?.length == node.size;
            if node.nlink == count && whole && belongs_to_root(&node) && node.mode & 0o6000 == 0 {
                found.push(Candidate { inode: id.into(), size: node.size });
            }
        }
        found.sort_unstable_by_key(|candidate| candidate.inode);
        Ok(found)
    }
}

fn belongs_to_root(node: &NodeRecord) -> bool {
    node.uid == 0 && node.gid == 0 && node.xattr_count == 0
}

impl From<Corrupt> for UnpackError {
    fn from(_: Corrupt) -> Self {
        Self::Index
    }
}

/// Writes files of an image into `target`, an empty directory. `layers` are the uncompressed
/// tars, bottom first. Data is shared with the layers where the filesystem can (reflink).
///
/// # Errors
/// [`UnpackError`]; the target is then incomplete.
pub fn unpack(
    index: &MergedIndex,
    layers: &[File],
    target: BorrowedFd<'_>,
    select: Select<'_>,
    owners: Owners,
) -> Result<Unpacked, UnpackError> {
    let image = index.image();
    let needed = match select {
        Select::All => None,
        Select::Files(inodes) => Some(needed(image, inodes)?),
    };
    let root = open_directory(target, c".").map_err(|errno| write_error(&[], errno))?;
    let top = open_directory(target, c".").map_err(|errno| write_error(&[], errno))?;
    let mut work = Work {
        image,
        layers,
        root,
        owners,
        needed,
        path: Vec::new(),
        linked: HashMap::new(),
        done: Unpacked::default(),
        steps: 0,
    };
    work.tree(top)?;
    Ok(work.done)
}

/// The first file of a tree written with [`Select::Files`] and [`Owners::Caller`] that does not have
/// the image's content, mode or time, as a path of the image. Reads all files there are; those that
/// are missing are none of this function's business.
///
/// # Errors
/// [`UnpackError`], also where the tree cannot be read.
pub fn find_difference(
    index: &MergedIndex,
    layers: &[File],
    tree: BorrowedFd<'_>,
) -> Result<Option<PathBuf>, UnpackError> {
    let image = index.image();
    let top = open_directory(tree, c".").map_err(|errno| write_error(&[], errno))?;
    let mut pending = vec![(top, ROOT_ID, Vec::new())];
    while let Some((fd, id, path)) = pending.pop() {
        let node = image.node(id)?;
        for entry in image.entries_of(&node)? {
            let (entry, name) = image.entry(entry)?;
            let path = [&path, &b"/"[..], name].concat();
            let name = CString::new(name).map_err(|_| UnpackError::Index)?;
            let found = match sys::status(fd.as_fd(), &name) {
                Err(Errno::ENOENT) => continue,
                found => found.map_err(|errno| write_error(&path, errno))?,
            };
            let node = image.node(entry.node)?;
            let same = found.mode == node.mode && found.mtime == node.mtime;
            if node.is_directory() && same && pending.len() < DEPTH_LIMIT {
                let below = open_directory(fd.as_fd(), &name).map_err(|errno| write_error(&path, errno))?;
                pending.push((below, entry.node, path));
            } else if !same || !has_content(image, layers, &node, fd.as_fd(), &name, &path)? {
                return Ok(Some(display(&path)));
            }
        }
    }
    Ok(None)
}

/// Whether a regular file of a tree holds what the image says.
fn has_content(
    image: &Image,
    layers: &[File],
    node: &NodeRecord,
    parent: BorrowedFd<'_>,
    name: &std::ffi::CStr,
    path: &[u8],
) -> Result<bool, UnpackError> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let opened = openat(parent, name, flags, Mode::empty()).map_err(|errno| write_error(path, errno))?;
    let file = File::from(opened);
    let unreadable = |source| UnpackError::Write { path: display(path), source };
    if file.metadata().map_err(unreadable)?.len() != node.size {
        return Ok(false);
    }
    let (mut ours, mut theirs) = (vec![0; COPY_BYTES], vec![0; COPY_BYTES]);
    for index in 0..node.count {
        let extent = image.extent(node, index)?;
        let layer = layers.get(extent.layer as usize).ok_or(UnpackError::Index)?;
        let mut done = 0;
        while done < extent.length {
            let length = usize::try_from(extent.length - done).unwrap_or(usize::MAX).min(COPY_BYTES);
            let (ours, theirs) = (&mut ours[..length], &mut theirs[..length]);
            file.read_exact_at(ours, extent.logical.saturating_add(done)).map_err(unreadable)?;
            layer
                .read_exact_at(theirs, extent.offset.saturating_add(done))
                .map_err(|source| UnpackError::Layer { layer: extent.layer, source })?;
            if ours != theirs {
                return Ok(false);
            }
            done += length as u64;
        }
    }
    Ok(true)
}

/// The wanted files, and the directories on the way to all their names.
fn needed(image: &Image, inodes: &HashSet<u64>) -> Result<HashSet<u32>, UnpackError> {
    let mut needed = HashSet::from([ROOT_ID]);
    for id in ROOT_ID..=u32::try_from(image.counts().nodes).unwrap_or(u32::MAX) {
        let node = image.node(id)?;
        if !node.is_directory() {
            continue;
        }
        let mut any = false;
        for index in image.entries_of(&node)? {
            let (entry, _) = image.entry(index)?;
            if inodes.contains(&entry.node.into()) && !image.node(entry.node)?.is_directory() {
                needed.insert(entry.node);
                any = true;
            }
        }
        let mut above = id;
        while any && needed.insert(above) {
            above = image.node(above)?.parent;
        }
    }
    Ok(needed)
}

/// A directory being filled.
struct Level {
    fd: OwnedFd,
    node: NodeRecord,
    next: u32,
    end: u32,
    /// Length of the path without this directory's name.
    above: usize,
}

struct Work<'a> {
    image: &'a Image,
    layers: &'a [File],
    root: OwnedFd,
    owners: Owners,
    /// None: everything.
    needed: Option<HashSet<u32>>,
    /// The path of what is being made, for messages and hard links.
    path: Vec<u8>,
    /// First names of files that have more than one.
    linked: HashMap<u32, Vec<u8>>,
    done: Unpacked,
    /// Entries looked at: a damaged index could lead in circles.
    steps: u64,
}

impl Work<'_> {
    fn tree(&mut self, top: OwnedFd) -> Result<(), UnpackError> {
        let root = self.image.node(ROOT_ID)?;
        let mut levels = vec![self.level(top, root, 0)?];
        while let Some(level) = levels.last_mut() {
            if level.next == level.end {
                let Some(level) = levels.pop() else { break };
                self.finish(&level)?;
                self.path.truncate(level.above);
                continue;
            }
            let index = level.next;
            level.next += 1;
            let (entry, name) = self.image.entry(index)?;
            if self.needed.as_ref().is_some_and(|needed| !needed.contains(&entry.node)) {
                continue;
            }
            self.steps += 1;
            let bad = matches!(name, b"" | b"." | b"..") || name.contains(&b'/');
            if bad || self.steps > self.image.counts().entries || levels.len() > DEPTH_LIMIT {
                return Err(UnpackError::Index);
            }
            let name = CString::new(name).map_err(|_| UnpackError::Index)?;
            let node = self.image.node(entry.node)?;
            let above = self.path.len();
            self.path.push(b'/');
            self.path.extend_from_slice(name.as_bytes());
            // The stack is not empty: it was looked at above.
            let Some(level) = levels.last() else { break };
            if node.is_directory() {
                let made = mkdirat(&level.fd, name.as_c_str(), Mode::S_IRWXU)
                    .and_then(|()| open_directory(level.fd.as_fd(), &name));
                let fd = made.map_err(|errno| write_error(&self.path, errno))?;
                let level = self.level(fd, node, above)?;
                levels.push(level);
            } else {
                self.leaf(level.fd.as_fd(), &name, entry.node, &node)?;
                self.path.truncate(above);
            }
        }
        Ok(())
    }

    fn level(&self, fd: OwnedFd, node: NodeRecord, above: usize) -> Result<Level, UnpackError> {
        let entries = self.image.entries_of(&node)?;
        Ok(Level { fd, node, next: entries.start, end: entries.end, above })
    }

    fn finish(&self, level: &Level) -> Result<(), UnpackError> {
        self.give(level.fd.as_fd(), &level.node)
    }

    fn leaf(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &CString,
        id: u32,
        node: &NodeRecord,
    ) -> Result<(), UnpackError> {
        if node.nlink > 1 {
            if let Some(first) = self.linked.get(&id)
                && self.link(first, parent, name).is_ok()
            {
                return Ok(());
            }
            // The first name, or one more than the filesystem takes: then a file of its own.
            self.linked.insert(id, self.path.clone());
        }
        let mode = Mode::from_bits_truncate(node.mode & 0o7777);
        let failed = |path: &[u8]| {
            let path = path.to_vec();
            move |errno| write_error(&path, errno)
        };
        match node.file_type() {
            libc::S_IFREG => self.file(parent, name, node),
            libc::S_IFLNK => {
                let target = OsStr::from_bytes(self.image.link_target(node)?);
                symlinkat(target, parent, name.as_c_str()).map_err(failed(&self.path))?;
                self.give_name(parent, name, node)
            }
            libc::S_IFIFO => {
                mknodat(parent, name.as_c_str(), SFlag::S_IFIFO, mode, 0).map_err(failed(&self.path))?;
                self.give_name(parent, name, node)
            }
            libc::S_IFCHR | libc::S_IFBLK => {
                self.done.left_out += 1;
                Ok(())
            }
            _ => Err(UnpackError::Index),
        }
    }

    /// Names a file once more. Its first path has no symlinks in it: all of it is our own making.
    fn link(&self, first: &[u8], parent: BorrowedFd<'_>, name: &CString) -> Result<(), Errno> {
        let first = CString::new(first.get(1..).unwrap_or_default()).map_err(|_| Errno::EINVAL)?;
        linkat(&self.root, first.as_c_str(), parent, name.as_c_str(), AtFlags::empty())
    }

    fn file(&mut self, parent: BorrowedFd<'_>, name: &CString, node: &NodeRecord) -> Result<(), UnpackError> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let made = openat(parent, name.as_c_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR);
        let file = File::from(made.map_err(|errno| write_error(&self.path, errno))?);
        for index in 0..node.count {
            let extent = self.image.extent(node, index)?;
            let layer = self.layers.get(extent.layer as usize).ok_or(UnpackError::Index)?;
            copy(layer, extent.offset, &file, extent.logical, extent.length).map_err(
                |error| match error {
                    Copying::From(source) => UnpackError::Layer { layer: extent.layer, source },
                    Copying::To(source) => UnpackError::Write { path: display(&self.path), source },
                },
            )?;
            self.done.bytes += extent.length;
        }
        // A file that ends in a hole.
        file.set_len(node.size).map_err(|source| UnpackError::Write { path: display(&self.path), source })?;
        self.done.files += 1;
        self.give(file.as_fd(), node)
    }

    /// Owner, mode, attributes and times of an open file or directory.
    fn give(&self, file: BorrowedFd<'_>, node: &NodeRecord) -> Result<(), UnpackError> {
        let given = || {
            if let Owners::Image(ids) = self.owners {
                self.own(file, c"", node, ids)?;
            }
            fchmod(file, Mode::from_bits_truncate(node.mode & 0o7777))?;
            let time = time(node.mtime);
            futimens(file, &time, &time)
        };
        for index in 0..node.xattr_count {
            let (name, value) = self.image.xattr(node, index)?;
            let Ok(name) = CString::new(name) else { continue };
            if !is_overlay_xattr(name.as_bytes()) {
                // Some filesystems take none, and some names need privilege: the index keeps them.
                let _ = sys::set_xattr(file, &name, value);
            }
        }
        given().map_err(|errno| write_error(&self.path, errno))
    }

    /// Owner and times of a symlink or fifo.
    fn give_name(
        &self,
        parent: BorrowedFd<'_>,
        name: &CString,
        node: &NodeRecord,
    ) -> Result<(), UnpackError> {
        let given = || {
            if let Owners::Image(ids) = self.owners {
                self.own(parent, name, node, ids)?;
            }
            let time = time(node.mtime);
            utimensat(parent, name.as_c_str(), &time, &time, UtimensatFlags::NoFollowSymlink)
        };
        given().map_err(|errno| write_error(&self.path, errno))
    }

    fn own(
        &self,
        at: BorrowedFd<'_>,
        name: &std::ffi::CStr,
        node: &NodeRecord,
        ids: Ids,
    ) -> Result<(), Errno> {
        let (uid, gid) = (ids.uids.of_image(node.uid), ids.gids.of_image(node.gid));
        let flags = AtFlags::AT_EMPTY_PATH | AtFlags::AT_SYMLINK_NOFOLLOW;
        fchownat(at, name, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), flags)
    }
}

enum Copying {
    From(io::Error),
    To(io::Error),
}

/// Copies a run of bytes, in the kernel where it can.
fn copy(from: &File, mut offset: u64, to: &File, mut place: u64, mut length: u64) -> Result<(), Copying> {
    while length > 0 {
        let (mut source, mut target) = (offset.cast_signed(), place.cast_signed());
        let chunk = usize::try_from(length).unwrap_or(usize::MAX).min(1 << 30);
        match copy_file_range(from, Some(&mut source), to, Some(&mut target), chunk) {
            Ok(0) => break,
            Ok(done) => {
                (offset, place, length) = (offset + done as u64, place + done as u64, length - done as u64);
            }
            Err(Errno::EINTR) => {}
            Err(errno @ (Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG)) => {
                return Err(Copying::To(errno.into()));
            }
            // Not between these two filesystems, or not on this kernel.
            Err(_) => break,
        }
    }
    let mut buffer = vec![0; usize::try_from(length).unwrap_or(usize::MAX).min(COPY_BYTES)];
    while length > 0 {
        let chunk = usize::try_from(length).unwrap_or(usize::MAX).min(COPY_BYTES);
        let part = &mut buffer[..chunk];
        from.read_exact_at(part, offset).map_err(Copying::From)?;
        to.write_all_at(part, place).map_err(Copying::To)?;
        (offset, place, length) = (offset + chunk as u64, place + chunk as u64, length - chunk as u64);
    }
    Ok(())
}

fn open_directory(at: BorrowedFd<'_>, name: &std::ffi::CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(at, name, flags, Mode::empty())
}

fn time(time: Timestamp) -> TimeSpec {
    TimeSpec::new(time.seconds, i64::from(time.nanoseconds))
}

fn display(path: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(if path.is_empty() { b"/" } else { path }))
}

fn write_error(path: &[u8], errno: Errno) -> UnpackError {
    UnpackError::Write { path: display(path), source: errno.into() }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::fs;
    use std::io::{Seek as _, Write as _};
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    use std::path::Path;

    use super::*;
    use crate::index::merge;
    use crate::pack::{Limits, index_tar};

    /// Path, kind, mode, owner, and content or link target.
    type Item = (&'static str, tar::EntryType, u32, u64, &'static str);

    fn layer(items: &[Item]) -> File {
        let mut builder = tar::Builder::new(tempfile::tempfile().unwrap());
        for (path, kind, mode, owner, content) in items {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(*mode);
            header.set_uid(*owner);
            header.set_gid(*owner);
            header.set_mtime(1_000_000_000);
            if matches!(kind, tar::EntryType::Symlink | tar::EntryType::Link) {
                header.set_size(0);
                builder.append_link(&mut header, path, content).unwrap();
            } else {
                header.set_size(content.len() as u64);
                builder.append_data(&mut header, path, content.as_bytes()).unwrap();
            }
        }
        let mut file = builder.into_inner().unwrap();
        file.flush().unwrap();
        file.rewind().unwrap();
        file
    }

    fn sample() -> (MergedIndex, Vec<File>) {
        use tar::EntryType::{Block, Char, Directory, Fifo, Link, Regular, Symlink};
        let file = layer(&[
            ("bin", Directory, 0o755, 0, ""),
            ("bin/sh", Regular, 0o755, 0, "shell"),
            ("bin/ash", Link, 0o755, 0, "bin/sh"),
            ("bin/su", Regular, 0o4755, 0, "set-user-id"),
            ("home", Directory, 0o750, 1000, ""),
            ("home/sh", Regular, 0o644, 0, "below another's directory"),
            ("home/two", Regular, 0o644, 0, "one name is not root's"),
            ("bin/two", Link, 0o644, 0, "home/two"),
            ("bin/other", Regular, 0o644, 1000, "another's"),
            ("link", Symlink, 0o777, 0, "/bin"),
            ("pipe", Fifo, 0o640, 0, ""),
            ("null", Char, 0o666, 0, ""),
            ("disk", Block, 0o660, 0, ""),
            ("closed", Directory, 0o500, 0, ""),
            ("closed/file", Regular, 0o400, 0, "x"),
        ]);
        let index = index_tar(io::BufReader::new(&file), &Limits::default()).unwrap();
        (merge(&[index]).unwrap().into_index().unwrap(), vec![file])
    }

    #[test]
    fn a_whole_image_is_written_out() {
        let (index, layers) = sample();
        let target = tempfile::tempdir().unwrap();
        let fd = File::open(target.path()).unwrap();
        let done = unpack(&index, &layers, fd.as_fd(), Select::All, Owners::Caller).unwrap();
        assert_eq!((done.files, done.left_out), (6, 2));
        let at = |path: &str| target.path().join(path);
        assert_eq!(fs::read_to_string(at("bin/ash")).unwrap(), "shell");
        let [sh, ash] = ["bin/sh", "bin/ash"].map(|path| fs::metadata(at(path)).unwrap());
        assert_eq!((sh.ino(), sh.nlink(), sh.mtime()), (ash.ino(), 2, 1_000_000_000));
        let modes =
            [("bin/su", 0o4755), ("home", 0o750), ("pipe", 0o640), ("closed", 0o500), ("closed/file", 0o400)];
        for (path, mode) in modes {
            let found = fs::symlink_metadata(at(path)).unwrap();
            assert_eq!((found.permissions().mode() & 0o7777, found.mtime()), (mode, 1_000_000_000), "{path}");
        }
        assert_eq!(fs::read_link(at("link")).unwrap(), Path::new("/bin"));
        assert!(!at("null").exists());
        fs::set_permissions(at("closed"), fs::Permissions::from_mode(0o700)).unwrap();
    }

    #[test]
    fn only_what_a_plain_file_can_stand_for_is_a_candidate() {
        let (index, layers) = sample();
        let candidates = index.native_candidates().unwrap();
        let inode = |path: &str| index.lookup(Path::new(path)).unwrap().inode;
        let expected = HashSet::from(["/bin/sh"].map(inode));
        assert_eq!(candidates.iter().map(|candidate| candidate.inode).collect::<HashSet<_>>(), expected);

        let target = tempfile::tempdir().unwrap();
        let fd = File::open(target.path()).unwrap();
        let wanted = HashSet::from([inode("/bin/sh")]);
        let done = unpack(&index, &layers, fd.as_fd(), Select::Files(&wanted), Owners::Caller).unwrap();
        assert_eq!(done, Unpacked { files: 1, bytes: 5, left_out: 0 });
        let names = |path: &Path| {
            let mut names: Vec<_> = fs::read_dir(path)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        assert_eq!(names(target.path()), ["bin"]);
        assert_eq!(names(&target.path().join("bin")), ["ash", "sh"]);
    }

    #[test]
    fn a_layer_cut_short_is_named() {
        let (index, layers) = sample();
        layers[0].set_len(600).unwrap();
        let target = tempfile::tempdir().unwrap();
        let fd = File::open(target.path()).unwrap();
        let error = unpack(&index, &layers, fd.as_fd(), Select::All, Owners::Caller).unwrap_err();
        assert!(matches!(error, UnpackError::Layer { layer: 0, .. }), "{error}");
    }
}
