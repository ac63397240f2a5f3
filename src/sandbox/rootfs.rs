//! The container's root directory, seen from outside of it.
//!
//! Everything an image controls is reached through [`Root`], whose look-ups treat the directory as
//! "/" (openat2(2)): a symlink to `/etc` in an image means the image's /etc, and `..` ends there.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat};
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};

use crate::sys::fd::open_in_root;

/// How many dangling symlinks are followed while a mount point is made.
const MAX_LINKS: usize = 16;

/// A container's root directory.
#[derive(Debug)]
pub struct Root {
    directory: OwnedFd,
    kept: Option<(u32, u32)>,
}

/// Does `work`, which reaches for the machine's files, as the user: where the user is not the container's
/// root, that one is a stranger to them, and its capabilities reach no file of a group that is not in the map.
/// Only file access changes, and no capability is lost.
pub fn as_kept<T>(kept: Option<(u32, u32)>, work: impl FnOnce() -> T) -> T {
    let Some((uid, gid)) = kept else { return work() };
    file_access_as(uid, gid);
    let done = work();
    file_access_as(0, 0);
    done
}

/// setfsuid(2), which drops the capabilities over files from the effective set, but not from the permitted one.
/// A change that fails leaves an access that is refused: that is told then.
fn file_access_as(uid: u32, gid: u32) {
    let _ = setfsgid(Gid::from_raw(gid)); // the group before
    let _ = setfsuid(Uid::from_raw(uid));
    if let Ok(permitted) = caps::read(None, caps::CapSet::Permitted) {
        let _ = caps::set(None, caps::CapSet::Effective, &permitted);
    }
}

/// What a mount point has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A directory.
    Directory,
    /// Anything else: a file is made when nothing is there.
    File,
}

impl Root {
    /// From an open directory.
    #[must_use]
    pub fn new(directory: OwnedFd) -> Self {
        Self { directory, kept: None }
    }

    /// The same for a container in which the user has these ids, where that is not root.
    #[must_use]
    pub fn kept(self, kept: Option<(u32, u32)>) -> Self {
        Self { kept, ..self }
    }

    /// See [`as_kept`].
    pub fn as_kept<T>(&self, work: impl FnOnce() -> T) -> T {
        as_kept(self.kept, work)
    }

    /// Opens a path inside.
    ///
    /// # Errors
    /// As openat2(2).
    pub fn open(&self, path: &Path, flags: libc::c_int) -> Result<OwnedFd, Errno> {
        open_in_root(self.directory.as_fd(), relative(path), flags, 0)
    }

    /// Whether something is there, symlinks followed.
    #[must_use]
    pub fn exists(&self, path: &Path) -> bool {
        self.open(path, libc::O_PATH).is_ok()
    }

    /// Reads a regular file of at most `limit` bytes; what lies beyond is cut off.
    ///
    /// # Errors
    /// As open(2) and read(2); EINVAL for anything but a regular file (a FIFO would block for ever).
    pub fn read(&self, path: &Path, limit: u64) -> Result<Vec<u8>, Errno> {
        let fd = self.open(path, libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY)?;
        if SFlag::from_bits_truncate(fstat(&fd)?.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
            return Err(Errno::EINVAL);
        }
        let mut content = Vec::new();
        File::from(fd)
            .take(limit)
            .read_to_end(&mut content)
            .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
        Ok(content)
    }

    /// The place where something is to be mounted: what is there already, or made now with every
    /// directory above it. The result is an O_PATH descriptor, so that nothing can be swapped in
    /// between finding it and mounting on it.
    ///
    /// # Errors
    /// ENOTDIR or EISDIR when something of another kind is there, ELOOP, or what the filesystem says.
    pub fn mount_point(&self, path: &Path, target: Target) -> Result<OwnedFd, Errno> {
        let mut path = PathBuf::from(relative(path));
        let mut links = 0;
        loop {
            match self.open(&path, libc::O_PATH) {
                Ok(fd) => {
                    let is_dir =
                        SFlag::from_bits_truncate(fstat(&fd)?.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR;
                    return match (target, is_dir) {
                        (Target::Directory, false) => Err(Errno::ENOTDIR),
                        (Target::File, true) => Err(Errno::EISDIR),
                        _ => Ok(fd),
                    };
                }
                Err(Errno::ENOENT) => {}
                Err(error) => return Err(error),
            }
            let (parent, rest) = self.deepest_existing(&path)?;
            let mut missing = rest.components();
            let Some(Component::Normal(name)) = missing.next() else { return Err(Errno::EINVAL) };
            if let Some(link) = self.read_link(parent.as_fd(), name)? {
                // A symlink that leads nowhere yet: go on at its target, as Docker does.
                let base = path.components().count() - rest.components().count();
                let base: PathBuf = path.components().take(base).collect();
                path = relative(&base.join(link)).to_owned();
                // Joining an empty path would leave a slash at the end, which asks for a directory.
                if !missing.as_path().as_os_str().is_empty() {
                    path.push(missing.as_path());
                }
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::ELOOP);
                }
                continue;
            }
            if missing.as_path().as_os_str().is_empty() && target == Target::File {
                make_file(parent.as_fd(), name)?;
            } else {
                match mkdirat(parent.as_fd(), name, Mode::from_bits_truncate(0o755)) {
                    Ok(()) | Err(Errno::EEXIST) => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }

    /// A directory right below the root that no symlink leads to, made when nothing is there: where the kernel's
    /// own filesystems go, whose parts are hidden by name later.
    ///
    /// # Errors
    /// ENOTDIR for a symlink and anything else that is no directory.
    pub fn ordinary_directory(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let path = relative(path);
        match mkdirat(&self.directory, path, Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno),
        }
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        loop {
            match openat2(&self.directory, path, how) {
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(Errno::ELOOP) => return Err(Errno::ENOTDIR),
                other => return other,
            }
        }
    }

    /// The deepest directory of the path that exists, and what is missing below it.
    fn deepest_existing(&self, path: &Path) -> Result<(OwnedFd, PathBuf), Errno> {
        let mut existing = path.to_owned();
        let mut missing: Vec<CString> = Vec::new();
        loop {
            let Some(name) = existing.file_name() else { return Err(Errno::EINVAL) };
            missing.push(CString::new(name.as_bytes()).map_err(|_| Errno::EINVAL)?);
            existing.pop();
            match self.open(&existing, libc::O_PATH | libc::O_DIRECTORY) {
                Ok(fd) => {
                    let rest = missing.iter().rev().map(|name| OsStr::from_bytes(name.as_bytes())).collect();
                    return Ok((fd, rest));
                }
                Err(Errno::ENOENT) if existing.parent().is_some() => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn read_link(&self, parent: BorrowedFd<'_>, name: &OsStr) -> Result<Option<PathBuf>, Errno> {
        match nix::fcntl::readlinkat(parent, name) {
            Ok(target) => Ok(Some(PathBuf::from(target))),
            Err(Errno::ENOENT | Errno::EINVAL) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

fn make_file(parent: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
    use nix::fcntl::openat;
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    match openat(parent, name, flags, Mode::from_bits_truncate(0o644)) {
        Ok(_) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(error),
    }
}

/// A path below the root: without its leading slash; `.` for the root itself.
fn relative(path: &Path) -> &Path {
    let relative = path.strip_prefix("/").unwrap_or(path);
    if relative.as_os_str().is_empty() { Path::new(".") } else { relative }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn root(dir: &Path) -> Root {
        Root::new(File::open(dir).expect("a directory").into())
    }

    #[test]
    fn mount_points_are_made_below_the_root_whatever_links_say() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path();
        fs::create_dir(path.join("etc")).expect("mkdir");
        std::os::unix::fs::symlink("/run/x/resolv.conf", path.join("etc/resolv.conf")).expect("symlink");
        std::os::unix::fs::symlink("../../../../outside", path.join("etc/up")).expect("symlink");
        let root = root(path);
        for (point, target, made) in [
            ("/a/b/c", Target::Directory, "a/b/c"),
            ("/etc/resolv.conf", Target::File, "run/x/resolv.conf"),
            ("/etc/up/in", Target::Directory, "outside/in"),
            (
                "/deep/1/2/3/4/5/6/7/8/9/10/11/12/13/14/15/16/17/18",
                Target::File,
                "deep/1/2/3/4/5/6/7/8/9/10/11/12/13/14/15/16/17/18",
            ),
        ] {
            let result = root.mount_point(Path::new(point), target).map(drop);
            assert_eq!(result, Ok(()), "{point}");
            let made = fs::symlink_metadata(path.join(made)).expect(point);
            assert_eq!(made.is_dir(), target == Target::Directory, "{point}");
        }
        let wrong = root.mount_point(Path::new("/a/b"), Target::File).expect_err("a directory is there");
        assert_eq!(wrong, Errno::EISDIR);
    }

    #[test]
    fn only_regular_files_are_read_and_only_so_far() {
        let dir = tempfile::tempdir().expect("tempdir");
        fs::write(dir.path().join("file"), "0123456789").expect("write");
        nix::unistd::mkfifo(&dir.path().join("fifo"), Mode::S_IRWXU).expect("mkfifo");
        let root = root(dir.path());
        assert_eq!(root.read(Path::new("/file"), 4), Ok(b"0123".to_vec()));
        assert_eq!(root.read(Path::new("/fifo"), 4), Err(Errno::EINVAL));
        assert_eq!(root.read(Path::new("/none"), 4), Err(Errno::ENOENT));
    }
}
