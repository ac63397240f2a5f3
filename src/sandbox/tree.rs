//! Trees of files as tar streams: reading one below a directory, and making one below a directory.
//!
//! Used on both sides of a copy, so neither side is trusted. Reading follows no symlink and enters
//! nothing by name that was not looked at through its own descriptor. Making resolves each name below
//! the destination without following a symlink (openat2(2), RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS):
//! whatever a stream says, and however somebody swaps directories for symlinks meanwhile, nothing
//! outside is touched.

use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Component, Path, PathBuf};

use fuse_overlay::archive::{Entry, Kind, Writer};
use fuse_overlay::index::Timestamp;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::{
    FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstat, mkdirat, mknodat,
    utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, linkat, symlinkat, unlinkat};

use crate::sys;
use crate::sys::fd::Xattrs;

/// Names in one path: half of PATH_MAX, what a path of one-letter names can have.
const MAX_DEPTH: usize = 2048;
/// Bytes of a path in an archive: PATH_MAX.
const MAX_PATH_BYTES: usize = 4096;
/// Runs of data in one sparse file.
const MAX_RUNS: usize = 1 << 20;
/// Extended attributes that are part of a file and not of the machine that it lies on.
const KEPT_XATTRS: [&[u8]; 2] = [b"user.", b"security.capability"];
/// What overlay filesystems keep for themselves.
const OVERLAY_XATTRS: &[u8] = b"user.overlay.";

/// Why a tree cannot be read or made.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// A file cannot be read or made.
    #[error("cannot {action} {path}: {}", .errno.desc())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what, as the archive names it.
        path: PathBuf,
        /// Why not.
        errno: Errno,
    },
    /// Docker's words for the two ways in which kinds do not fit.
    #[error("cannot overwrite {there} {path:?} with {new} {path:?}")]
    OtherKind {
        /// Which path.
        path: PathBuf,
        /// What is there.
        there: &'static str,
        /// What was to come.
        new: &'static str,
    },
    /// A name that leads elsewhere.
    #[error("the archive holds {0:?}: {1}")]
    Name(PathBuf, &'static str),
    /// The stream fails, or is no archive.
    #[error("cannot read the archive")]
    Read(#[source] io::Error),
    /// The stream cannot be written.
    #[error("cannot write the archive")]
    Write(#[source] io::Error),
}

type Result<T> = std::result::Result<T, TreeError>;

fn file(action: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> TreeError {
    let path = PathBuf::from(OsString::from_vec(path.to_vec()));
    move |errno| TreeError::File { action, path, errno }
}

/// Translates owners for the archive.
pub type Owner<'a> = &'a dyn Fn(u32, u32) -> (u32, u32);

/// Writes trees into one archive.
pub struct Packer<'a, W> {
    writer: Writer<W>,
    owner: Owner<'a>,
    links: HashMap<(u64, u64), Vec<u8>>,
}

impl<'a, W: Write> Packer<'a, W> {
    /// Begins an archive.
    pub fn new(out: W, owner: Owner<'a>) -> Self {
        Self { writer: Writer::new(out), owner, links: HashMap::new() }
    }

    /// Ends it.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn finish(self) -> Result<W> {
        self.writer.finish().map_err(TreeError::Write)
    }

    /// Writes what has this name in a directory, and all below it, under another name.
    ///
    /// # Errors
    /// What cannot be read; the writer's own. What vanishes below meanwhile is passed over.
    pub fn add(&mut self, parent: BorrowedFd<'_>, name: &CStr, path: &[u8]) -> Result<()> {
        let node = open_node(parent, name).map_err(file("look at", path))?;
        self.node(parent, name, &node, path, 0)
    }

    /// Writes what is in a directory, without the directory itself.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub fn add_content(&mut self, directory: OwnedFd) -> Result<()> {
        self.content(directory, b"", 0)
    }

    /// Writes a regular file, or a directory with all below it, that is open for reading.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub fn add_opened(&mut self, opened: OwnedFd, path: &[u8]) -> Result<()> {
        let stat = fstat(&opened).map_err(file("look at", path))?;
        if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR {
            self.entry(path, Kind::Directory, &stat, &xattrs(opened.as_fd()))?;
            return self.content(opened, path, 1);
        }
        self.regular(opened, path)
    }

    fn regular(&mut self, opened: OwnedFd, path: &[u8]) -> Result<()> {
        let opened = File::from(opened);
        let stat = fstat(&opened).map_err(file("look at", path))?;
        if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
            return Err(file("open", path)(Errno::ESTALE));
        }
        let size = stat.st_size.cast_unsigned();
        let xattrs = xattrs(opened.as_fd());
        let owner = (self.owner)(stat.st_uid, stat.st_gid);
        let entry = entry_of(path, Kind::File, &stat, owner, &xattrs);
        self.writer.file(&entry, size, &opened).map_err(TreeError::Write)?;
        if stat.st_nlink > 1 {
            self.links.insert((stat.st_dev, stat.st_ino), path.to_vec());
        }
        Ok(())
    }

    fn node(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &CStr,
        node: &OwnedFd,
        path: &[u8],
        depth: usize,
    ) -> Result<()> {
        let stat = fstat(node).map_err(file("look at", path))?;
        match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
            SFlag::S_IFDIR => {
                let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
                let opened = openat(node, ".", flags, Mode::empty()).map_err(file("open", path))?;
                self.entry(path, Kind::Directory, &stat, &xattrs(opened.as_fd()))?;
                self.content(opened, path, depth + 1)
            }
            SFlag::S_IFREG => {
                if stat.st_nlink > 1
                    && let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)).cloned()
                {
                    return self.entry(path, Kind::Link(&first), &stat, &[]);
                }
                // Should a pipe take its place now, opening it must not wait for a writer.
                let flags = OFlag::O_RDONLY
                    | OFlag::O_NOFOLLOW
                    | OFlag::O_NONBLOCK
                    | OFlag::O_NOCTTY
                    | OFlag::O_CLOEXEC;
                let opened = openat(parent, name, flags, Mode::empty()).map_err(file("open", path))?;
                self.regular(opened, path)
            }
            SFlag::S_IFLNK => {
                let target = readlinkat(node, c"").map_err(file("read", path))?;
                self.entry(path, Kind::Symlink(target.as_bytes()), &stat, &[])
            }
            SFlag::S_IFIFO => self.entry(path, Kind::Fifo, &stat, &[]),
            kind @ (SFlag::S_IFCHR | SFlag::S_IFBLK) => {
                let part = |number: u64| u32::try_from(number).unwrap_or(0);
                let (major, minor) =
                    (part(nix::sys::stat::major(stat.st_rdev)), part(nix::sys::stat::minor(stat.st_rdev)));
                let kind = if kind == SFlag::S_IFCHR {
                    Kind::CharDevice(major, minor)
                } else {
                    Kind::BlockDevice(major, minor)
                };
                self.entry(path, kind, &stat, &[])
            }
            // Sockets mean nothing without their process.
            _ => Ok(()),
        }
    }

    fn content(&mut self, directory: OwnedFd, path: &[u8], depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(file("go below", path)(Errno::ENAMETOOLONG));
        }
        let mut dir = Dir::from_fd(directory).map_err(file("list", path))?;
        let mut names = Vec::new();
        for entry in dir.iter() {
            let name = entry.map_err(file("list", path))?.file_name().to_owned();
            if ![c".", c".."].contains(&name.as_c_str()) {
                names.push(name);
            }
        }
        names.sort();
        for name in &names {
            let at = if path.is_empty() {
                name.to_bytes().to_vec()
            } else {
                [path, b"/", name.to_bytes()].concat()
            };
            match open_node(dir.as_fd(), name) {
                Ok(node) => match self.node(dir.as_fd(), name, &node, &at, depth) {
                    Err(TreeError::File { errno: Errno::ENOENT | Errno::ESTALE | Errno::ELOOP, .. }) => {}
                    other => other?,
                },
                Err(Errno::ENOENT) => {}
                Err(errno) => return Err(file("look at", &at)(errno)),
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        path: &[u8],
        kind: Kind<'_>,
        stat: &FileStat,
        xattrs: &[(Vec<u8>, Vec<u8>)],
    ) -> Result<()> {
        let owner = (self.owner)(stat.st_uid, stat.st_gid);
        self.writer.entry(&entry_of(path, kind, stat, owner, xattrs)).map_err(TreeError::Write)
    }
}

fn entry_of<'a>(
    path: &'a [u8],
    kind: Kind<'a>,
    stat: &FileStat,
    (uid, gid): (u32, u32),
    xattrs: &'a [(Vec<u8>, Vec<u8>)],
) -> Entry<'a> {
    let mtime =
        Timestamp { seconds: stat.st_mtime, nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or(0) };
    Entry { path, kind, mode: stat.st_mode & 0o7777, uid, gid, mtime, xattrs }
}

fn open_node(parent: BorrowedFd<'_>, name: &CStr) -> std::result::Result<OwnedFd, Errno> {
    openat(parent, name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
}

/// Those that are kept and can be read; a filesystem without any has none.
fn xattrs(opened: BorrowedFd<'_>) -> Xattrs {
    let mut found = sys::fd::xattrs(opened).unwrap_or_default();
    found.retain(|(name, _)| {
        KEPT_XATTRS.iter().any(|kept| name.starts_with(kept)) && !name.starts_with(OVERLAY_XATTRS)
    });
    found.sort();
    found
}

/// What becomes of the first name of each path in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rename {
    /// Nothing.
    Keep,
    /// This takes its place.
    To(OsString),
    /// It is taken away, and with it the entry that has no other.
    Strip,
}

/// What of an archive's entries is kept.
#[derive(Clone, Copy)]
pub struct Unpack<'a> {
    /// The owner for each entry; none leaves the caller's.
    pub owner: Option<Owner<'a>>,
    /// Keep setuid and setgid bits, and extended attributes.
    pub privileged: bool,
    /// How names change.
    pub rename: &'a Rename,
}

/// Makes the files of an archive below a directory.
///
/// # Errors
/// The first entry that cannot be made; those before it stay.
pub fn unpack(input: impl Read, destination: BorrowedFd<'_>, options: &Unpack<'_>) -> Result<u64> {
    let mut maker = Maker { destination, options, directories: Vec::new(), bytes: 0 };
    let mut archive = tar::Archive::new(input);
    archive.set_ignore_zeros(false);
    for entry in archive.entries().map_err(TreeError::Read)? {
        maker.add(entry.map_err(TreeError::Read)?)?;
    }
    maker.finish()
}

struct Maker<'a, 'b> {
    destination: BorrowedFd<'a>,
    options: &'a Unpack<'b>,
    /// Modes and times of directories, set when nothing more comes into them.
    directories: Vec<(PathBuf, Mode, TimeSpec)>,
    bytes: u64,
}

/// What extension records say of an entry.
#[derive(Default)]
struct Extended {
    sparse_name: Option<Vec<u8>>,
    real_size: Option<u64>,
    mtime: Option<TimeSpec>,
    xattrs: Xattrs,
    is_sparse: bool,
}

impl Maker<'_, '_> {
    fn add<R: Read>(&mut self, mut entry: tar::Entry<'_, R>) -> Result<()> {
        let extended = extended(&mut entry)?;
        let raw = extended.sparse_name.clone().unwrap_or_else(|| entry.path_bytes().into_owned());
        let Some(path) = self.place(&raw)? else { return Ok(()) };
        let header = entry.header().clone();
        let kind = header.entry_type();
        let (parent, name) = self.parent(&path)?;
        let name = name.as_c_str();
        let shown = path.as_os_str().as_bytes();
        let is_directory = kind.is_dir();
        self.clear(parent.as_fd(), name, &path, is_directory)?;
        let mtime = extended
            .mtime
            .unwrap_or_else(|| TimeSpec::new(i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(0), 0));
        let mode = self.mode(header.mode().unwrap_or(0o644));
        if is_directory {
            match mkdirat(&parent, name, Mode::S_IRWXU) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(file("make", shown)(errno)),
            }
            self.own(parent.as_fd(), name, &header, shown)?;
            let made = openat(
                &parent,
                name,
                OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
                Mode::empty(),
            )
            .map_err(file("open", shown))?;
            self.set_xattrs(made.as_fd(), &extended);
            self.directories.push((path, mode, mtime));
            return Ok(());
        }
        if kind.is_file() || kind.is_contiguous() || kind.is_gnu_sparse() {
            let made = create(parent.as_fd(), name).map_err(file("make", shown))?;
            self.data(&mut entry, &made, &extended, shown)?;
            self.own(parent.as_fd(), name, &header, shown)?;
            fchmod(&made, mode).map_err(file("change the mode of", shown))?;
            self.set_xattrs(made.as_fd(), &extended);
        } else if kind.is_symlink() {
            let target = entry.link_name_bytes().unwrap_or_default();
            symlinkat(OsStr::from_bytes(&target), &parent, name).map_err(file("make", shown))?;
            self.own(parent.as_fd(), name, &header, shown)?;
        } else if kind.is_hard_link() {
            let target = entry.link_name_bytes().unwrap_or_default().into_owned();
            let target = self.place(&target)?.ok_or_else(|| bad_name(&target, "a hard link to nothing"))?;
            let (from, from_name) = self.parent(&target)?;
            linkat(&from, from_name.as_c_str(), &parent, name, AtFlags::empty())
                .map_err(file("link", shown))?;
            return Ok(());
        } else if kind.is_fifo() {
            mknodat(&parent, name, SFlag::S_IFIFO, Mode::S_IRUSR | Mode::S_IWUSR, 0)
                .map_err(file("make", shown))?;
            self.own(parent.as_fd(), name, &header, shown)?;
            fchmodat(&parent, name, mode, FchmodatFlags::FollowSymlink)
                .map_err(file("change the mode of", shown))?;
        } else {
            // Devices cannot be made without privilege; Docker passes them over in that case too.
            return Ok(());
        }
        utimensat(&parent, name, &mtime, &mtime, UtimensatFlags::NoFollowSymlink)
            .map_err(file("set the time of", shown))
    }

    /// The path that an entry gets; None for the destination itself.
    fn place(&self, raw: &[u8]) -> Result<Option<PathBuf>> {
        if raw.len() > MAX_PATH_BYTES || raw.contains(&0) {
            return Err(bad_name(&raw[..raw.len().min(64)], "such a name cannot be made"));
        }
        let mut path = PathBuf::new();
        let mut is_first = true;
        for component in Path::new(OsStr::from_bytes(raw)).components() {
            match component {
                Component::Normal(name) => {
                    match self.options.rename {
                        Rename::To(new) if is_first => path.push(new),
                        Rename::Strip if is_first => {}
                        _ => path.push(name),
                    }
                    is_first = false;
                }
                Component::ParentDir => return Err(bad_name(raw, "paths with \"..\" are refused")),
                Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            }
        }
        Ok(Some(path).filter(|path| !path.as_os_str().is_empty()))
    }

    /// The directory that a path is in, made where it is missing, and the last name.
    fn parent(&self, path: &Path) -> Result<(OwnedFd, CString)> {
        let shown = path.as_os_str().as_bytes();
        let name = path.file_name().unwrap_or_default();
        let name = CString::new(name.as_bytes()).map_err(|_| bad_name(shown, "a name with a NUL"))?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let mut at = self.destination.try_clone_to_owned().map_err(|_| file("open", b".")(Errno::EMFILE))?;
        let Some(parent) = parent else { return Ok((at, name)) };
        if let Ok(opened) = below(self.destination, parent) {
            return Ok((opened, name));
        }
        for component in parent.components() {
            let component = Path::new(component.as_os_str());
            at = match below(at.as_fd(), component) {
                Ok(opened) => opened,
                Err(Errno::ENOENT) => {
                    mkdirat(&at, component, Mode::from_bits_truncate(0o755)).map_err(file("make", shown))?;
                    below(at.as_fd(), component).map_err(file("open", shown))?
                }
                Err(Errno::ELOOP) => return Err(bad_name(shown, "it lies below a symbolic link")),
                Err(errno) => return Err(file("open", shown)(errno)),
            };
        }
        Ok((at, name))
    }

    /// Takes away what is in the way, of the same kind only.
    fn clear(&self, parent: BorrowedFd<'_>, name: &CStr, path: &Path, is_directory: bool) -> Result<()> {
        let stat = match nix::sys::stat::fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::ENOENT) => return Ok(()),
            Err(errno) => return Err(file("look at", path.as_os_str().as_bytes())(errno)),
        };
        let there = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR;
        let (directory, other) = ("directory", "non-directory");
        match (there, is_directory) {
            (true, true) => Ok(()),
            (true, false) => {
                Err(TreeError::OtherKind { path: path.to_owned(), there: directory, new: other })
            }
            (false, true) => {
                Err(TreeError::OtherKind { path: path.to_owned(), there: other, new: directory })
            }
            (false, false) => match unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) {
                // A mount point: its content is replaced.
                Ok(()) | Err(Errno::ENOENT | Errno::EBUSY) => Ok(()),
                Err(errno) => Err(file("replace", path.as_os_str().as_bytes())(errno)),
            },
        }
    }

    fn mode(&self, mode: u32) -> Mode {
        Mode::from_bits_truncate(mode & if self.options.privileged { 0o7777 } else { 0o1777 })
    }

    fn own(&self, parent: BorrowedFd<'_>, name: &CStr, header: &tar::Header, shown: &[u8]) -> Result<()> {
        let Some(owner) = self.options.owner else { return Ok(()) };
        let id = |id: io::Result<u64>| u32::try_from(id.unwrap_or(0)).unwrap_or(0);
        let (uid, gid) = owner(id(header.uid()), id(header.gid()));
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        match fchownat(parent, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW) {
            // An id that this container does not have: with one id everything belongs to it.
            Ok(()) | Err(Errno::EINVAL) => Ok(()),
            Err(errno) => Err(file("change the owner of", shown)(errno)),
        }
    }

    /// Best effort: not every filesystem takes every attribute.
    fn set_xattrs(&self, made: BorrowedFd<'_>, extended: &Extended) {
        if !self.options.privileged {
            return;
        }
        for (name, value) in &extended.xattrs {
            if KEPT_XATTRS.iter().any(|kept| name.starts_with(kept)) && !name.starts_with(OVERLAY_XATTRS) {
                let _ = sys::fd::set_xattr(made, name, value);
            }
        }
    }

    fn data(&mut self, entry: &mut impl Read, made: &File, extended: &Extended, shown: &[u8]) -> Result<()> {
        let failed = |error: io::Error| match error.raw_os_error() {
            Some(errno) => file("write", shown)(Errno::from_raw(errno)),
            None => TreeError::Read(error),
        };
        let mut out = io::BufWriter::with_capacity(1 << 18, made);
        if !extended.is_sparse {
            self.bytes += io::copy(entry, &mut out).map_err(failed)?;
            return out.flush().map_err(failed);
        }
        let runs = sparse_map(entry, extended, shown)?;
        drop(out);
        for (start, length) in runs {
            let mut to = made;
            io::Seek::seek(&mut to, io::SeekFrom::Start(start)).map_err(failed)?;
            let copied = io::copy(&mut entry.take(length), &mut to).map_err(failed)?;
            if copied < length {
                return Err(TreeError::Read(io::ErrorKind::UnexpectedEof.into()));
            }
            self.bytes += copied;
        }
        made.set_len(extended.real_size.unwrap_or(0)).map_err(failed)
    }

    fn finish(self) -> Result<u64> {
        for (path, mode, time) in self.directories.iter().rev() {
            let shown = path.as_os_str().as_bytes();
            let made = match below(self.destination, path) {
                // Somebody took it away.
                Err(Errno::ENOENT | Errno::ELOOP | Errno::ENOTDIR) => continue,
                made => made.map_err(file("open", shown))?,
            };
            fchmod(&made, *mode).map_err(file("change the mode of", shown))?;
            nix::sys::stat::futimens(&made, time, time).map_err(file("set the time of", shown))?;
        }
        Ok(self.bytes)
    }
}

fn bad_name(raw: &[u8], why: &'static str) -> TreeError {
    TreeError::Name(PathBuf::from(OsString::from_vec(raw.to_vec())), why)
}

/// A directory below another; no symlink is followed, and `..` leads nowhere.
fn below(at: BorrowedFd<'_>, path: &Path) -> std::result::Result<OwnedFd, Errno> {
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    loop {
        match openat2(at, path, how) {
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            other => return other,
        }
    }
}

/// A new file; where a mount could not be taken away, what is mounted, emptied.
fn create(parent: BorrowedFd<'_>, name: &CStr) -> std::result::Result<File, Errno> {
    let flags = OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let private = Mode::S_IRUSR | Mode::S_IWUSR;
    match openat(parent, name, flags | OFlag::O_CREAT | OFlag::O_EXCL, private) {
        Err(Errno::EEXIST) => {
            let file = openat(parent, name, flags | OFlag::O_TRUNC, private)?;
            if SFlag::from_bits_truncate(fstat(&file)?.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
                return Err(Errno::EEXIST);
            }
            Ok(file.into())
        }
        other => other.map(File::from),
    }
}

fn extended<R: Read>(entry: &mut tar::Entry<'_, R>) -> Result<Extended> {
    let mut extended = Extended::default();
    let Some(records) = entry.pax_extensions().map_err(TreeError::Read)? else { return Ok(extended) };
    for record in records {
        let record = record.map_err(TreeError::Read)?;
        let (key, value) = (record.key_bytes(), record.value_bytes());
        let number = || std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
        match key {
            b"GNU.sparse.major" => extended.is_sparse = value == b"1",
            b"GNU.sparse.name" => extended.sparse_name = Some(value.to_vec()),
            b"GNU.sparse.realsize" => extended.real_size = number(),
            b"mtime" => extended.mtime = pax_time(value),
            key => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    extended.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
    }
    Ok(extended)
}

fn pax_time(value: &[u8]) -> Option<TimeSpec> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: i64 = digits.parse().ok()?;
    if whole.starts_with('-') && nanoseconds > 0 {
        return Some(TimeSpec::new(seconds - 1, 1_000_000_000 - nanoseconds));
    }
    Some(TimeSpec::new(seconds, nanoseconds))
}

/// The map before the data of a file in GNU's sparse format 1.0, padded to a block.
fn sparse_map(entry: &mut impl Read, extended: &Extended, shown: &[u8]) -> Result<Vec<(u64, u64)>> {
    const BLOCK: usize = 512;
    let bad = || bad_name(shown, "its map of holes is damaged");
    let size = extended.real_size.ok_or_else(bad)?;
    let mut read = 0;
    let mut number = |entry: &mut dyn Read| -> Result<u64> {
        let mut value: u64 = 0;
        let mut byte = [0];
        loop {
            entry.read_exact(&mut byte).map_err(TreeError::Read)?;
            read += 1;
            match byte[0] {
                b'\n' => return Ok(value),
                digit @ b'0'..=b'9' => {
                    value = value
                        .checked_mul(10)
                        .and_then(|v| v.checked_add(u64::from(digit - b'0')))
                        .ok_or_else(bad)?;
                }
                _ => return Err(bad()),
            }
        }
    };
    let count = usize::try_from(number(entry)?).ok().filter(|count| *count <= MAX_RUNS).ok_or_else(bad)?;
    let mut runs = Vec::with_capacity(count);
    let mut end = 0;
    for _ in 0..count {
        let (start, length) = (number(entry)?, number(entry)?);
        if start < end || start.checked_add(length).is_none_or(|end| end > size) {
            return Err(bad());
        }
        end = start + length;
        runs.push((start, length));
    }
    let rest = (BLOCK - read % BLOCK) % BLOCK;
    io::copy(&mut entry.take(rest as u64), &mut io::sink()).map_err(TreeError::Read)?;
    Ok(runs)
}
