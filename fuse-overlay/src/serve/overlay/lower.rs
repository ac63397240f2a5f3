//! The lower layer as the overlay sees it: packed layers or a directory.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::copy_file_range;
use nix::unistd::{Whence, lseek};

use crate::index::tree::Name;
use crate::serve::attr::{Attr, FOREVER};
use crate::serve::backend::{Answer, At, Backend, Listed};
use crate::serve::buffer;
use crate::serve::directory::{self, Directory};
use crate::serve::packed::Packed;
use crate::sys;

/// Bytes copied at once where the kernel cannot copy by itself.
const COPY_BYTES: usize = 1 << 18;

#[derive(Debug)]
pub(in crate::serve) enum LowerFs {
    /// The counters hold the kernel's references to each node.
    Packed(Packed, Box<[AtomicU64]>),
    Directory(Box<Directory>),
}

/// A child found in the lower layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Child {
    pub attr: Attr,
    pub generation: u64,
}

impl LowerFs {
    pub(in crate::serve) fn packed(packed: Packed) -> Self {
        let nodes = usize::try_from(packed.image().counts().nodes).unwrap_or(0);
        // Node ids begin at 1.
        Self::Packed(packed, sys::counters(nodes.saturating_add(1)))
    }

    /// Identifies what the layer holds, as far as it cannot change.
    pub(super) fn fingerprint(&self) -> u64 {
        match self {
            Self::Packed(packed, _) => packed.image().fingerprint(),
            Self::Directory(_) => 0,
        }
    }

    pub(super) fn changes_underneath(&self) -> bool {
        matches!(self, Self::Directory(_))
    }

    pub(super) fn ttl(&self) -> Duration {
        match self {
            Self::Packed(..) => FOREVER,
            Self::Directory(_) => directory::TTL,
        }
    }

    pub(super) fn has_xattrs(&self) -> bool {
        match self {
            Self::Packed(packed, _) => !packed.traits().no_xattrs,
            Self::Directory(_) => true,
        }
    }

    pub(super) fn attr(&self, ino: u64) -> Answer<Attr> {
        match self {
            Self::Packed(packed, _) => {
                let (id, node) = packed.node(ino)?;
                Ok(packed.attr(id, &node))
            }
            Self::Directory(directory) => directory.attr(ino),
        }
    }

    pub(super) fn child(&self, parent: u64, name: &[u8]) -> Answer<Option<Child>> {
        match self {
            Self::Packed(packed, _) => {
                let Some(id) = packed.child(parent, name)? else { return Ok(None) };
                let attr = packed.attr(id, &packed.image().node(id)?);
                Ok(Some(Child { attr, generation: 0 }))
            }
            Self::Directory(directory) => {
                let found = directory.child(parent, name)?;
                Ok(found.map(|(attr, generation)| Child { attr, generation }))
            }
        }
    }

    /// As `child`, for a name from a listing.
    pub(super) fn listed_child(&self, listed: &Listed<'_>, at: At, handle: u64) -> Answer<Option<Child>> {
        match self {
            Self::Packed(packed, _) => {
                let (id, node) = packed.node(listed.ino)?;
                Ok(Some(Child { attr: packed.attr(id, &node), generation: 0 }))
            }
            Self::Directory(directory) => {
                let found = directory.listed_child(at.ino, handle, listed.name)?;
                Ok(found.map(|(attr, generation)| Child { attr, generation }))
            }
        }
    }

    pub(super) fn parent(&self, ino: u64) -> Answer<u64> {
        match self {
            Self::Packed(packed, _) => Ok(packed.node(ino)?.1.parent.into()),
            Self::Directory(directory) => directory.parent(ino),
        }
    }

    pub(super) fn opendir(&self, ino: u64) -> Answer<u64> {
        match self {
            Self::Packed(..) => Ok(0),
            Self::Directory(directory) => directory.opendir(ino),
        }
    }

    pub(super) fn releasedir(&self, handle: u64) {
        if let Self::Directory(directory) = self {
            directory.releasedir(handle);
        }
    }

    /// Walks a directory's names; places begin at 2.
    pub(super) fn names(
        &self,
        at: At,
        handle: u64,
        sink: impl FnMut(Listed<'_>) -> Answer<bool>,
    ) -> Answer<()> {
        match self {
            Self::Packed(packed, _) => packed.names(at, sink),
            Self::Directory(directory) => directory.names(at, handle, sink),
        }
    }

    pub(super) fn readlink(&self, ino: u64) -> Answer<Vec<u8>> {
        match self {
            Self::Packed(packed, _) => packed.readlink(ino, <[u8]>::to_vec),
            Self::Directory(directory) => directory.readlink(ino),
        }
    }

    /// Whether a regular file can be read.
    pub(super) fn check_readable(&self, ino: u64) -> Answer<()> {
        match self {
            Self::Packed(..) => Ok(()),
            Self::Directory(directory) => directory.file(ino).map(drop),
        }
    }

    pub(super) fn read<R>(&self, at: At, size: u32, then: impl FnOnce(&[u8]) -> R) -> Answer<R> {
        match self {
            Self::Packed(packed, _) => packed.read(at, size, then),
            Self::Directory(directory) => directory.read(at, size, then),
        }
    }

    pub(super) fn seek(&self, at: At, whence: i32) -> Answer<u64> {
        match self {
            Self::Packed(packed, _) => packed.seek(at, whence),
            Self::Directory(directory) => seek_file(&*directory.file(at.ino)?, at.offset, whence),
        }
    }

    pub(super) fn xattr(&self, ino: u64, name: &[u8]) -> Answer<Vec<u8>> {
        match self {
            Self::Packed(packed, _) => packed.getxattr(ino, name, <[u8]>::to_vec),
            Self::Directory(directory) => directory.xattr(ino, name),
        }
    }

    pub(super) fn xattr_names(&self, ino: u64) -> Answer<Vec<Name>> {
        match self {
            Self::Packed(packed, _) => {
                Ok(packed.xattrs(ino)?.into_iter().map(|(name, _)| name.into()).collect())
            }
            Self::Directory(directory) => {
                Ok(directory.xattr_names(ino)?.into_iter().map(Vec::into_boxed_slice).collect())
            }
        }
    }

    /// Copies the first `limit` bytes of a file's data; holes stay holes where possible.
    pub(super) fn copy_data(&self, ino: u64, to: &File, limit: u64) -> Answer<()> {
        let size = match self {
            Self::Packed(packed, _) => {
                let (_, node) = packed.node(ino)?;
                let size = node.size.min(limit);
                for run in packed.runs(&node) {
                    let (file, extent) = run?;
                    let length = extent.length.min(size.saturating_sub(extent.logical));
                    copy(file, extent.offset, to, extent.logical, length)?;
                }
                size
            }
            Self::Directory(directory) => {
                let file = directory.file(ino)?;
                let size = file.metadata().map_err(|_| Errno::EIO)?.len();
                if limit < size || sys::clone_file(file.as_fd(), to.as_fd()).is_err() {
                    copy_sparse(&file, to, size.min(limit))?;
                }
                size.min(limit)
            }
        };
        to.set_len(size).map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
    }

    /// The path that identifies a node, where its number does not.
    pub(super) fn origin(&self, ino: u64) -> Option<Box<[u8]>> {
        match self {
            Self::Packed(..) => None,
            Self::Directory(directory) => {
                directory.pin(ino);
                directory.origin(ino).ok()
            }
        }
    }

    /// Gives the node at a path of an earlier session its number again; false where it is gone.
    pub(super) fn adopt(&self, ino: u64, path: &[u8]) -> bool {
        match self {
            Self::Packed(..) => true,
            Self::Directory(directory) => directory.adopt(ino, path),
        }
    }

    pub(super) fn count(&self, ino: u64) {
        match self {
            Self::Packed(_, counters) => {
                if let Some(counter) = usize::try_from(ino).ok().and_then(|ino| counters.get(ino)) {
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            }
            Self::Directory(directory) => directory.count(ino),
        }
    }

    /// Takes references away; true when none is left.
    pub(super) fn forget(&self, ino: u64, count: u64) -> bool {
        match self {
            Self::Packed(_, counters) => usize::try_from(ino)
                .ok()
                .and_then(|ino| counters.get(ino))
                .is_some_and(|counter| counter.fetch_sub(count, Ordering::Relaxed) <= count),
            Self::Directory(directory) => directory.forget(ino, count),
        }
    }
}

/// Finds data or a hole in a file.
pub(super) fn seek_file(file: impl AsFd, offset: u64, whence: i32) -> Answer<u64> {
    let whence = match whence {
        libc::SEEK_DATA => Whence::SeekData,
        libc::SEEK_HOLE => Whence::SeekHole,
        _ => return Err(Errno::EINVAL),
    };
    let offset = i64::try_from(offset).map_err(|_| Errno::EINVAL)?;
    lseek(file, offset, whence).map(i64::cast_unsigned)
}

/// Copies the data of the first `size` bytes, skipping holes.
fn copy_sparse(from: &File, to: &File, size: u64) -> Answer<()> {
    let mut at = 0;
    while at < size {
        let data = match seek_file(from, at, libc::SEEK_DATA) {
            Ok(data) => data,
            Err(Errno::ENXIO) => return Ok(()),
            Err(_) => return copy(from, at, to, at, size - at),
        };
        let hole = seek_file(from, data, libc::SEEK_HOLE).unwrap_or(size).min(size);
        copy(from, data, to, data, hole.saturating_sub(data))?;
        at = hole.max(data + 1);
    }
    Ok(())
}

/// Copies a run of bytes, inside the kernel where it can.
pub(super) fn copy(from: &File, offset: u64, to: &File, target: u64, length: u64) -> Answer<()> {
    let mut done = 0;
    while done < length {
        let mut from_offset = i64::try_from(offset + done).map_err(|_| Errno::EFBIG)?;
        let mut to_offset = i64::try_from(target + done).map_err(|_| Errno::EFBIG)?;
        let want = usize::try_from(length - done).unwrap_or(usize::MAX).min(1 << 30);
        match copy_file_range(from, Some(&mut from_offset), to, Some(&mut to_offset), want) {
            // The source is shorter than it was said to be.
            Ok(0) => return Err(Errno::EIO),
            Ok(count) => done += count as u64,
            Err(Errno::EINTR) => {}
            Err(Errno::EXDEV | Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EBADF) => {
                return copy_by_hand(from, offset + done, to, target + done, length - done);
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn copy_by_hand(from: &File, offset: u64, to: &File, target: u64, length: u64) -> Answer<()> {
    let errno = |error: std::io::Error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
    buffer::with(COPY_BYTES, |buffer| {
        let mut done = 0;
        while done < length {
            let want = usize::try_from(length - done).unwrap_or(COPY_BYTES).min(COPY_BYTES);
            from.read_exact_at(&mut buffer[..want], offset + done).map_err(errno)?;
            to.write_all_at(&buffer[..want], target + done).map_err(errno)?;
            done += want as u64;
        }
        Ok(())
    })
}
