//! The upper directory of a kernel overlayfs (Documentation/filesystems/overlayfs.rst), mounted with
//! `userxattr`: whiteouts are character devices 0/0 or empty files with an xattr, opaque directories
//! have an xattr. Also a directory that is a copy of all that lies below, without such marks.
//!
//! Paths are walked below the directory's descriptor, following nothing (openat2(2)): the container
//! may be at work in it. Reading what it closed to everybody, or gave to its other users, needs the
//! rights of the user namespace that it was written in.

use std::ffi::CStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2, readlinkat};

use super::{Listing, View, kept_xattrs};
use crate::index::tree::Name;
use crate::serve::overlay::{Facts, ROOT};
use crate::sys::{self, Xattrs};

const OPAQUE: &CStr = c"user.overlay.opaque";
const WHITEOUT: &CStr = c"user.overlay.whiteout";
/// Says that a file is there with its attributes alone.
pub(super) const METACOPY: &CStr = c"user.overlay.metacopy";

#[derive(Debug)]
pub(super) struct Tree {
    root: OwnedFd,
    /// Not an upper but all of the tree, without any marks.
    is_whole: bool,
}

impl Tree {
    pub(super) fn new(root: OwnedFd) -> Self {
        Self { root, is_whole: false }
    }

    /// A copy of the whole lower layer.
    pub(super) fn copy(root: OwnedFd) -> Self {
        Self { root, is_whole: true }
    }

    fn open_with(&self, path: &[u8], flags: OFlag) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b"." } else { path };
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        loop {
            match openat2(&self.root, std::ffi::OsStr::from_bytes(path), how) {
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                other => return other,
            }
        }
    }

    /// A regular file for reading.
    pub(super) fn open(&self, path: &[u8]) -> Result<File, Errno> {
        // Should a pipe have taken the file's place, opening it must not wait for a writer.
        let file = self.open_with(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)?;
        let status = sys::status(file.as_fd(), c"")?;
        if status.mode & libc::S_IFMT != libc::S_IFREG {
            return Err(Errno::ESTALE);
        }
        Ok(file.into())
    }

    pub(super) fn target(&self, path: &[u8]) -> Result<Vec<u8>, Errno> {
        let link = self.open_with(path, OFlag::O_PATH)?;
        Ok(readlinkat(&link, c"")?.as_bytes().to_vec())
    }

    fn status(&self, path: &[u8]) -> Result<sys::FileStatus, Errno> {
        let node = self.open_with(path, OFlag::O_PATH)?;
        sys::status(node.as_fd(), c"")
    }

    fn is_whiteout(&self, path: &[u8], status: &sys::FileStatus, by_xattr: bool) -> Result<bool, Errno> {
        match status.mode & libc::S_IFMT {
            libc::S_IFCHR => Ok(status.rdev == 0),
            libc::S_IFREG if by_xattr && status.size == 0 => {
                let file = self.open(path)?;
                Ok(sys::get_xattr(file.as_fd(), WHITEOUT).is_ok())
            }
            _ => Ok(false),
        }
    }
}

impl View for Tree {
    fn list(&self, _node: u64, path: &[u8], below: Option<u64>, cut: bool) -> Result<Listing, Errno> {
        let directory = self.open_with(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
        let mark = match sys::get_xattr(directory.as_fd(), OPAQUE) {
            Ok(mark) => mark,
            Err(Errno::ENODATA | Errno::EOPNOTSUPP) => Vec::new(),
            Err(errno) => return Err(errno),
        };
        // "x" says that whiteouts by xattr are in it (overlayfs.rst, "Nesting overlayfs mounts").
        let by_xattr = mark == b"x";
        // Inside an opaque directory no other need be marked.
        let replaces = below.is_some() && !self.is_whole && (cut || mark == b"y" && !path.is_empty());
        let mut names: Vec<(Name, Option<u64>)> = Vec::new();
        let mut listing = Dir::from_fd(directory)?;
        for entry in listing.iter() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let at = if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() };
            let hidden = match entry.file_type() {
                _ if self.is_whole => false,
                Some(nix::dir::Type::Directory | nix::dir::Type::Symlink | nix::dir::Type::Fifo) => false,
                Some(nix::dir::Type::File) if !by_xattr => false,
                _ => match self.status(&at).and_then(|status| self.is_whiteout(&at, &status, by_xattr)) {
                    Ok(hidden) => hidden,
                    Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ESTALE) => continue,
                    Err(errno) => return Err(errno),
                },
            };
            names.push((name.into(), (!hidden).then_some(ROOT)));
        }
        names.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(Listing { names, replaces, complete: self.is_whole })
    }

    fn facts(&self, _node: u64, path: &[u8]) -> Result<Facts, Errno> {
        let status = self.status(path)?;
        Ok(Facts {
            identity: (status.device, status.inode),
            mode: status.mode,
            uid: status.uid,
            gid: status.gid,
            rdev: status.rdev,
            nlink: status.nlink,
            size: status.size,
            mtime: status.mtime,
        })
    }

    fn xattrs(&self, _node: u64, path: &[u8]) -> Result<Xattrs, Errno> {
        Ok(kept_xattrs(sys::all_xattrs(self.open_with(path, OFlag::O_PATH)?.as_fd())?))
    }

    fn is_lower(&self, _node: u64, _below: u64) -> bool {
        false
    }

    /// What could not be written without privilege when the copy was made ([`crate::unpack`]).
    fn may_lack(&self, below: &Facts) -> bool {
        self.is_whole && matches!(below.mode & libc::S_IFMT, libc::S_IFCHR | libc::S_IFBLK)
    }

    fn may_lack_xattr(&self, name: &[u8]) -> bool {
        self.is_whole && !name.starts_with(b"user.")
    }
}
