//! The container's side of a copy: what is at a path, resolved with the container's root as "/".

use std::ffi::{CString, OsStr};
use std::io::Write;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use nix::fcntl::readlinkat;
use nix::sys::stat::{SFlag, fstat};

use super::rootfs::Root;
use super::tree::{Packer, TreeError};

/// As many symlinks as Linux follows in one path (MAXSYMLINKS).
const MAX_LINKS: usize = 40;

/// Something that is to be copied out.
#[derive(Debug)]
pub struct Source {
    parent: OwnedFd,
    name: CString,
    /// A regular file or directory, open.
    opened: Option<OwnedFd>,
    is_directory: bool,
}

impl Source {
    /// Finds a path; a symlink at its end is followed where that is asked for. None where nothing is.
    #[must_use]
    pub fn open(root: &Root, path: &Path, follow: bool) -> Option<Self> {
        let last = if follow { 0 } else { libc::O_NOFOLLOW };
        let parent =
            root.open(path.parent().unwrap_or(Path::new("/")), libc::O_PATH | libc::O_DIRECTORY).ok()?;
        let name = CString::new(path.file_name().unwrap_or(OsStr::new(".")).as_bytes()).ok()?;
        let node = root.open(path, libc::O_PATH | last).ok()?;
        let kind = kind(&node)?;
        let is_directory = kind == SFlag::S_IFDIR;
        let opened = if is_directory || kind == SFlag::S_IFREG {
            // Should a pipe take its place now, opening it must not wait for a writer.
            Some(root.open(path, libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY | last).ok()?)
        } else {
            None
        };
        Some(Self { parent, name, opened, is_directory })
    }

    /// Whether it is a directory.
    #[must_use]
    pub fn is_directory(&self) -> bool {
        self.is_directory
    }

    /// Writes it, and all below it, under a name.
    ///
    /// # Errors
    /// What cannot be read or written.
    pub fn pack<W: Write>(self, packer: &mut Packer<'_, W>, base: &[u8]) -> Result<(), TreeError> {
        match self.opened {
            Some(opened) => packer.add_opened(opened, base),
            None => packer.add(self.parent.as_fd(), &self.name, base),
        }
    }
}

/// What is at a place that is to be written to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Nothing is.
    pub is_missing: bool,
    /// A directory is.
    pub is_directory: bool,
    /// A regular file is.
    pub is_file: bool,
    /// The place, once symlinks at its end are followed.
    pub path: PathBuf,
}

/// Looks at a place; a symlink there means what it leads to, which may be missing.
#[must_use]
pub fn look(root: &Root, path: &Path) -> Found {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        let Ok(node) = root.open(&path, libc::O_PATH | libc::O_NOFOLLOW) else {
            return Found { is_missing: true, is_directory: false, is_file: false, path };
        };
        match kind(&node) {
            Some(SFlag::S_IFLNK) => {
                let Ok(target) = readlinkat(&node, c"") else { break };
                let parent = path.parent().unwrap_or(Path::new("/"));
                path = clean(&parent.join(target));
            }
            kind => {
                return Found {
                    is_missing: false,
                    is_directory: kind == Some(SFlag::S_IFDIR),
                    is_file: kind == Some(SFlag::S_IFREG),
                    path,
                };
            }
        }
    }
    Found { is_missing: false, is_directory: false, is_file: false, path }
}

fn kind(node: &OwnedFd) -> Option<SFlag> {
    fstat(node).ok().map(|stat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT)
}

/// Without `.` and `..`, as Docker joins a link's target to its place.
fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => drop(clean.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}
