//! A directory of the machine as a lower layer.
//!
//! It may change underneath, so the kernel keeps nothing of it for longer than [`TTL`]. Nothing
//! is held open but a few files being read: a node is a path, walked afresh from the root each
//! time with `openat2`, which lets no symlink or magic link lead outside. Mount points are
//! crossed, except into filesystems that are windows into the kernel or mount things when looked
//! at; those are shown as empty directories.
//!
//! No lock is held over a system call on the directory, so a stat that hangs (a dead NFS server)
//! holds up one thread, not the others.

mod rules;

use std::collections::{HashMap, HashSet};
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::statfs::fstatfs;

use self::rules::{Rules, Sight};
use super::attr::Attr;
use super::backend::{Answer, At, Listed};
use super::{DirectoryLower, Ids, buffer};
use crate::index::Timestamp;
use crate::sys::{self, FileStatus};

/// How long the kernel may take what it saw for what is.
pub(super) const TTL: Duration = Duration::from_secs(1);

const ROOT: u64 = 1;

/// Numbers of the root's own filesystem are shown as they are, up to here (the overlay's own
/// begin here).
const PLAIN_LIMIT: u64 = 1 << 40;
/// Other filesystems' numbers carry the filesystem's place in the upper bits.
const DEVICE_SHIFT: u32 = 48;
const DEVICE_LIMIT: u64 = 0x7ffe;
/// Numbers that fit neither way are counted from here.
const EXCEPTIONS: u64 = 0x7fff << DEVICE_SHIFT;

/// Names in one directory listing: a listing is held in memory while its directory is open.
const LISTING_LIMIT: usize = 4_000_000;

/// Directories open at a time: each holds a descriptor and its listing.
const HANDLE_LIMIT: usize = 4096;

/// Files kept open between reads.
const OPEN_LIMIT: usize = 128;

/// Filesystems that are not crossed into: the kernel's own, which show this process's view and
/// not the container's, and automounters. From linux/magic.h.
const NOT_CROSSED: [u32; 15] = [
    0x9fa0,      // proc
    0x6265_6572, // sysfs
    0x0187,      // autofs
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x7363_6673, // securityfs
    0x0027_e0eb, // cgroup
    0x6367_7270, // cgroup2
    0xcafe_4a11, // bpf
    0x6265_6570, // configfs
    0x6165_676c, // pstore
    0xde5e_81e4, // efivarfs
    0xf97c_ff8c, // selinuxfs
    0x1cd1,      // devpts
    0x1980_0202, // mqueue
];

#[derive(Debug)]
pub(super) struct Directory {
    root: OwnedFd,
    rules: Rules,
    ids: Ids,
    nodes: RwLock<HashMap<u64, Arc<Node>>>,
    numbers: Mutex<Numbers>,
    handles: Mutex<Handles>,
    files: Mutex<HashMap<u64, Arc<File>>>,
}

/// A file or directory that the kernel, or the overlay, knows.
#[derive(Debug)]
struct Node {
    /// Names joined by slashes; of several hard links the one used last.
    path: Mutex<Arc<[u8]>>,
    device: u64,
    /// Shown as an empty directory.
    sealed: bool,
    lookups: AtomicU64,
    /// The overlay refers to it.
    pinned: AtomicU64,
}

#[derive(Debug, Default)]
struct Numbers {
    /// Filesystems in the order in which they were met; the root's is the first.
    devices: Vec<u64>,
    /// Numbers that do not follow from device and inode.
    given: HashMap<(u64, u64), u64>,
    /// Numbers that an earlier session gave: no other file may come to have one.
    taken: HashSet<u64>,
    /// How many numbers have been counted from [`EXCEPTIONS`] on.
    counted: u64,
}

#[derive(Debug, Default)]
struct Handles {
    open: HashMap<u64, Arc<Listing>>,
    next: u64,
}

/// A directory as it was when it was opened.
#[derive(Debug)]
struct Listing {
    directory: Option<OwnedFd>,
    names: Vec<ListedName>,
}

#[derive(Debug)]
struct ListedName {
    name: Box<[u8]>,
    ino: u64,
    file_type: u32,
}

impl Directory {
    pub(super) fn new(lower: DirectoryLower, ids: Ids) -> Answer<Self> {
        let status = sys::status(lower.root.as_fd(), c"")?;
        let numbers = Numbers { devices: vec![status.device], ..Numbers::default() };
        let root = Node::new(b"", status.device, false);
        root.pinned.store(1, Ordering::Relaxed);
        Ok(Self {
            root: lower.root,
            rules: Rules::new(&lower.rules),
            ids,
            nodes: RwLock::new(HashMap::from([(ROOT, Arc::new(root))])),
            numbers: Mutex::new(numbers),
            handles: Mutex::default(),
            files: Mutex::default(),
        })
    }

    /// Looks a name up: attributes and generation.
    pub(super) fn child(&self, parent: u64, name: &[u8]) -> Answer<Option<(Attr, u64)>> {
        let node = self.node(parent)?;
        if node.sealed {
            return Ok(None);
        }
        let directory = self.open_path(&node.path(), OFlag::O_PATH | OFlag::O_DIRECTORY)?;
        self.child_at(&node, directory.as_fd(), name)
    }

    fn child_at(&self, parent: &Node, at: BorrowedFd<'_>, name: &[u8]) -> Answer<Option<(Attr, u64)>> {
        let path = join(&parent.path(), name);
        let sight = self.rules.sight(&path);
        if sight == Sight::Hidden {
            return Ok(None);
        }
        let c_name = CString::new(name).map_err(|_| Errno::ENOENT)?;
        let status = match sys::status(at, &c_name) {
            Ok(status) => status,
            Err(Errno::ENOENT | Errno::ENAMETOOLONG) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        let is_directory = status.mode & libc::S_IFMT == libc::S_IFDIR;
        if sight != Sight::Shown && !is_directory {
            return Ok(None);
        }
        let sealed = sight == Sight::Empty
            || is_directory && (status.automount || status.device != parent.device && not_crossed(at, name));
        let ino = self.learn(&status, path, sealed);
        Ok(Some((self.attr_of(ino, &status, sealed), generation(&status))))
    }

    /// Makes a node known and returns its number.
    fn learn(&self, status: &FileStatus, path: Vec<u8>, sealed: bool) -> u64 {
        let ino = self.numbers().number(status.device, status.inode);
        {
            let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(node) = nodes.get(&ino) {
                let mut known = node.path.lock().unwrap_or_else(PoisonError::into_inner);
                if **known != *path {
                    *known = path.into();
                }
                return ino;
            }
        }
        let node = Arc::new(Node::new(&path, status.device, sealed));
        let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
        nodes.entry(ino).or_insert(node);
        ino
    }

    pub(super) fn attr(&self, ino: u64) -> Answer<Attr> {
        let node = self.node(ino)?;
        let file = self.open_path(&node.path(), OFlag::O_PATH)?;
        let status = sys::status(file.as_fd(), c"")?;
        // Another file may have taken the path.
        if ino != ROOT && self.numbers().number(status.device, status.inode) != ino {
            return Err(Errno::ESTALE);
        }
        Ok(self.attr_of(ino, &status, node.sealed))
    }

    fn attr_of(&self, ino: u64, status: &FileStatus, sealed: bool) -> Attr {
        let id =
            |host: u32, range: super::IdRange| if host == range.caller { range.inside } else { range.rest };
        Attr {
            ino,
            mode: status.mode,
            nlink: if sealed { 2 } else { status.nlink },
            uid: id(status.uid, self.ids.uids),
            gid: id(status.gid, self.ids.gids),
            rdev: status.rdev,
            size: status.size,
            blocks: status.blocks,
            atime: status.atime,
            mtime: status.mtime,
            ctime: status.ctime,
        }
    }

    /// The number of the directory that a directory is in.
    pub(super) fn parent(&self, ino: u64) -> Answer<u64> {
        let path = self.node(ino)?.path();
        let Some(slash) = path.iter().rposition(|byte| *byte == b'/') else { return Ok(ROOT) };
        let file = self.open_path(&path[..slash], OFlag::O_PATH | OFlag::O_DIRECTORY)?;
        let status = sys::status(file.as_fd(), c"")?;
        Ok(self.numbers().number(status.device, status.inode))
    }

    pub(super) fn readlink(&self, ino: u64) -> Answer<Vec<u8>> {
        let file = self.open_path(&self.node(ino)?.path(), OFlag::O_PATH)?;
        let target = nix::fcntl::readlinkat(&file, c"")?;
        Ok(target.as_bytes().to_vec())
    }

    /// A regular file, open for reading.
    pub(super) fn file(&self, ino: u64) -> Answer<Arc<File>> {
        if let Some(file) = self.files().get(&ino) {
            return Ok(Arc::clone(file));
        }
        // The kernel asks for the data of regular files only, so this was one when it was looked
        // at. Should something else have taken its place, these flags keep opening it harmless.
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let file = self.open_path(&self.node(ino)?.path(), flags)?;
        let status = sys::status(file.as_fd(), c"")?;
        let is_file = status.mode & libc::S_IFMT == libc::S_IFREG;
        if !is_file || self.numbers().number(status.device, status.inode) != ino {
            return Err(Errno::ESTALE);
        }
        let file = Arc::new(File::from(file));
        let mut files = self.files();
        if files.len() >= OPEN_LIMIT {
            files.clear();
        }
        files.insert(ino, Arc::clone(&file));
        Ok(file)
    }

    pub(super) fn read<R>(&self, at: At, size: u32, then: impl FnOnce(&[u8]) -> R) -> Answer<R> {
        let file = self.file(at.ino)?;
        buffer::with(size as usize, |buffer| {
            let count = read_full(&file, buffer, at.offset)?;
            Ok(then(&buffer[..count]))
        })
    }

    pub(super) fn opendir(&self, ino: u64) -> Answer<u64> {
        let listing = Arc::new(self.listing(ino)?);
        let mut handles = self.handles();
        if handles.open.len() >= HANDLE_LIMIT {
            return Err(Errno::ENFILE);
        }
        handles.next += 1;
        let handle = handles.next;
        handles.open.insert(handle, listing);
        Ok(handle)
    }

    pub(super) fn releasedir(&self, handle: u64) {
        self.handles().open.remove(&handle);
    }

    /// Walks the names of an opened directory; places begin at 2.
    pub(super) fn names(
        &self,
        at: At,
        handle: u64,
        mut sink: impl FnMut(Listed<'_>) -> Answer<bool>,
    ) -> Answer<()> {
        let listing = self.listing_of(at, handle)?;
        let skip = usize::try_from(at.offset.saturating_sub(2)).map_err(|_| Errno::EINVAL)?;
        for (place, listed) in listing.names.iter().enumerate().skip(skip) {
            let ListedName { name, ino, file_type } = listed;
            let next = place as u64 + 3;
            if !sink(Listed { name, next, ino: *ino, file_type: *file_type })? {
                break;
            }
        }
        Ok(())
    }

    /// As [`Self::child`], for a name from an opened directory's listing.
    pub(super) fn listed_child(&self, ino: u64, handle: u64, name: &[u8]) -> Answer<Option<(Attr, u64)>> {
        let listing = self.handles().open.get(&handle).map(Arc::clone);
        match listing.as_deref().and_then(|listing| listing.directory.as_ref()) {
            Some(directory) => self.child_at(&*self.node(ino)?, directory.as_fd(), name),
            None => self.child(ino, name),
        }
    }

    /// The listing of a handle. One that starts over is read anew, as rewinddir(3) demands.
    fn listing_of(&self, at: At, handle: u64) -> Answer<Arc<Listing>> {
        let known = self.handles().open.get(&handle).map(Arc::clone);
        match known {
            Some(listing) if at.offset > 2 => Ok(listing),
            _ => {
                let listing = Arc::new(self.listing(at.ino)?);
                if let Some(slot) = self.handles().open.get_mut(&handle) {
                    *slot = Arc::clone(&listing);
                }
                Ok(listing)
            }
        }
    }

    fn listing(&self, ino: u64) -> Answer<Listing> {
        let node = self.node(ino)?;
        if node.sealed {
            return Ok(Listing { directory: None, names: Vec::new() });
        }
        let path = node.path();
        let directory = self.open_path(&path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
        let mut stream = Dir::from_fd(directory.try_clone().map_err(|_| Errno::EMFILE)?)?;
        let mut names = Vec::new();
        for entry in stream.iter() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            let file_type = match entry.file_type() {
                Some(kind) => type_bits(kind),
                // Some filesystems do not tell.
                None => sys::status(directory.as_fd(), entry.file_name())?.mode & libc::S_IFMT,
            };
            let seen = match self.rules.sight(&join(&path, name)) {
                Sight::Shown => true,
                Sight::Hidden => false,
                Sight::Empty | Sight::Passage => file_type == libc::S_IFDIR,
            };
            if !seen {
                continue;
            }
            if names.len() >= LISTING_LIMIT {
                return Err(Errno::EOVERFLOW);
            }
            let ino = self.numbers().number(node.device, entry.ino());
            names.push(ListedName { name: name.into(), ino, file_type });
        }
        Ok(Listing { directory: Some(directory), names })
    }

    /// An xattr of a file or directory. Only those of users are shown: the others describe the
    /// machine's own policy.
    pub(super) fn xattr(&self, ino: u64, name: &[u8]) -> Answer<Vec<u8>> {
        if !name.starts_with(b"user.") {
            return Err(Errno::ENODATA);
        }
        let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
        match self.open_for_xattrs(ino)? {
            Some(file) => sys::get_xattr(file.as_fd(), &name),
            None => Err(Errno::ENODATA),
        }
    }

    /// The names of all xattrs that are shown.
    pub(super) fn xattr_names(&self, ino: u64) -> Answer<Vec<Vec<u8>>> {
        let Some(file) = self.open_for_xattrs(ino)? else { return Ok(Vec::new()) };
        let names = match sys::list_xattrs(file.as_fd()) {
            Ok(names) => names,
            Err(Errno::EOPNOTSUPP | Errno::EACCES) => return Ok(Vec::new()),
            Err(errno) => return Err(errno),
        };
        let names = names.split(|byte| *byte == 0).filter(|name| name.starts_with(b"user."));
        Ok(names.map(<[u8]>::to_vec).collect())
    }

    fn open_for_xattrs(&self, ino: u64) -> Answer<Option<OwnedFd>> {
        let node = self.node(ino)?;
        let attr = self.attr(ino)?;
        if !matches!(attr.mode & libc::S_IFMT, libc::S_IFREG | libc::S_IFDIR) {
            return Ok(None);
        }
        match self.open_path(&node.path(), OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY) {
            Ok(file) => Ok(Some(file)),
            Err(Errno::EACCES | Errno::EPERM) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// The path by which a node can be found again.
    pub(super) fn origin(&self, ino: u64) -> Answer<Box<[u8]>> {
        Ok((*self.node(ino)?.path()).into())
    }

    /// Finds a node again that the overlay knows from an earlier session, and gives it the number
    /// it had; false where it is gone. The number is not given to anything else either way.
    pub(super) fn adopt(&self, ino: u64, path: &[u8]) -> bool {
        self.numbers().taken.insert(ino);
        if ino == ROOT {
            return true;
        }
        let Ok(file) = self.open_path(path, OFlag::O_PATH) else { return false };
        let Ok(status) = sys::status(file.as_fd(), c"") else { return false };
        self.numbers().given.insert((status.device, status.inode), ino);
        let node = Arc::new(Node::new(path, status.device, false));
        node.pinned.store(1, Ordering::Relaxed);
        self.nodes.write().unwrap_or_else(PoisonError::into_inner).insert(ino, node);
        true
    }

    /// Keeps a node known even when the kernel forgets it.
    pub(super) fn pin(&self, ino: u64) {
        if let Ok(node) = self.node(ino) {
            node.pinned.store(1, Ordering::Relaxed);
        }
    }

    pub(super) fn count(&self, ino: u64) {
        if let Ok(node) = self.node(ino) {
            node.lookups.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Takes references away; true when none is left.
    pub(super) fn forget(&self, ino: u64, count: u64) -> bool {
        let Ok(node) = self.node(ino) else { return true };
        let before = node.lookups.fetch_sub(count, Ordering::Relaxed);
        if before > count {
            return false;
        }
        if node.pinned.load(Ordering::Relaxed) == 0 {
            let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
            // It may have been looked up again meanwhile.
            if nodes.get(&ino).is_some_and(|node| node.lookups.load(Ordering::Relaxed) == 0) {
                nodes.remove(&ino);
            }
            drop(nodes);
            self.files().remove(&ino);
        }
        true
    }

    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    fn node(&self, ino: u64) -> Answer<Arc<Node>> {
        let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
        nodes.get(&ino).map(Arc::clone).ok_or(Errno::ESTALE)
    }

    fn open_path(&self, path: &[u8], flags: OFlag) -> Answer<OwnedFd> {
        let path = if path.is_empty() { b"." } else { path };
        let how = OpenHow::new().flags(flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).resolve(
            ResolveFlag::RESOLVE_BENEATH
                | ResolveFlag::RESOLVE_NO_MAGICLINKS
                | ResolveFlag::RESOLVE_NO_SYMLINKS,
        );
        match openat2(&self.root, Path::new(OsStr::from_bytes(path)), how) {
            // Somebody has put something else in the path's place.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EXDEV) => Err(Errno::ESTALE),
            opened => opened,
        }
    }

    fn numbers(&self) -> MutexGuard<'_, Numbers> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handles(&self) -> MutexGuard<'_, Handles> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn files(&self) -> MutexGuard<'_, HashMap<u64, Arc<File>>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Node {
    fn new(path: &[u8], device: u64, sealed: bool) -> Self {
        Self {
            path: Mutex::new(path.into()),
            device,
            sealed,
            lookups: AtomicU64::new(0),
            pinned: AtomicU64::new(0),
        }
    }

    fn path(&self) -> Arc<[u8]> {
        Arc::clone(&self.path.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Numbers {
    /// The number under which an inode of some filesystem is shown.
    fn number(&mut self, device: u64, inode: u64) -> u64 {
        if let Some(number) = self.given.get(&(device, inode)) {
            return *number;
        }
        let index = self.devices.iter().position(|known| *known == device).unwrap_or_else(|| {
            self.devices.push(device);
            self.devices.len() - 1
        }) as u64;
        let natural = match index {
            0 if inode > ROOT && inode < PLAIN_LIMIT => Some(inode),
            1..DEVICE_LIMIT if inode < 1 << DEVICE_SHIFT => Some(index << DEVICE_SHIFT | inode),
            _ => None,
        };
        if let Some(number) = natural.filter(|number| !self.taken.contains(number)) {
            return number;
        }
        loop {
            let number = EXCEPTIONS + self.counted;
            self.counted += 1;
            if !self.taken.contains(&number) {
                self.given.insert((device, inode), number);
                return number;
            }
        }
    }
}

fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() { name.to_vec() } else { [parent, b"/", name].concat() }
}

/// Whether a mount point must not be crossed, or cannot.
fn not_crossed(at: BorrowedFd<'_>, name: &[u8]) -> bool {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let kind = openat2(at, Path::new(OsStr::from_bytes(name)), how).and_then(fstatfs);
    // The numbers have 32 bits; the C library's type for them differs between systems.
    kind.map_or(true, |kind| NOT_CROSSED.contains(&(kind.filesystem_type().0 as u32)))
}

/// Tells files apart that came to have the same number one after the other.
fn generation(status: &FileStatus) -> u64 {
    let Timestamp { seconds, nanoseconds } = status.btime;
    seconds.cast_unsigned() << 30 ^ u64::from(nanoseconds)
}

fn type_bits(kind: Type) -> u32 {
    match kind {
        Type::Fifo => libc::S_IFIFO,
        Type::CharacterDevice => libc::S_IFCHR,
        Type::Directory => libc::S_IFDIR,
        Type::BlockDevice => libc::S_IFBLK,
        Type::File => libc::S_IFREG,
        Type::Symlink => libc::S_IFLNK,
        Type::Socket => libc::S_IFSOCK,
    }
}

/// Reads until the buffer is full or the file ends.
pub(super) fn read_full(file: &File, buffer: &mut [u8], offset: u64) -> Answer<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)),
        }
    }
    Ok(filled)
}
