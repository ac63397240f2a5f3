//! Reading an image without a mount: paths with symlinks resolved inside the image.

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::format::{Image, NodeRecord, ROOT_ID};
use super::{Corrupt, MergedIndex, Timestamp};

/// As many symlinks as Linux follows in one path (`MAXSYMLINKS`).
const SYMLINK_LIMIT: u32 = 40;

/// As many names as a path and the symlinks in it may have in all: 40 of 4096 bytes have at most
/// half as many names as bytes.
const NAME_LIMIT: usize = 41 * 2048;

/// What is known of a file in an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// The inode number a container sees.
    pub inode: u64,
    /// Type and permission bits, as `st_mode`.
    pub mode: u32,
    /// Owner, as in the image.
    pub uid: u32,
    /// Group, as in the image.
    pub gid: u32,
    /// Names of this file; for a directory two and its subdirectories.
    pub nlink: u32,
    /// Size in bytes.
    pub size: u64,
    /// Last modification.
    pub mtime: Timestamp,
}

/// Why a file of an image cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// No such file or directory.
    #[error("{path:?} is not in the image")]
    NotFound {
        /// The path asked for.
        path: PathBuf,
    },
    /// Symlinks lead in circles.
    #[error("{path:?} leads through too many symbolic links")]
    SymlinkLoop {
        /// The path asked for.
        path: PathBuf,
    },
    /// It is a directory or a special file.
    #[error("{path:?} is not a regular file")]
    NotAFile {
        /// The path asked for.
        path: PathBuf,
    },
    /// It is larger than the caller is willing to read.
    #[error("{path:?} has {size} bytes, more than the {limit} allowed here")]
    TooLarge {
        /// The path asked for.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// The caller's limit in bytes.
        limit: u64,
    },
    /// The index does not hold together.
    #[error("the index is damaged at {path:?}: rebuild it")]
    Damaged {
        /// The path asked for.
        path: PathBuf,
    },
    /// A layer's file cannot be read, or is shorter than the index says.
    #[error("cannot read {path:?} from layer {layer}")]
    Layer {
        /// The path asked for.
        path: PathBuf,
        /// Which layer, counted from the bottom.
        layer: u32,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl MergedIndex {
    /// Looks a path up as a process in the container would: symlinks are followed, all within
    /// the image, and `..` stops at its root.
    ///
    /// # Errors
    /// [`ReadError::NotFound`], [`ReadError::SymlinkLoop`], [`ReadError::Damaged`].
    pub fn lookup(&self, path: &Path) -> Result<Metadata, ReadError> {
        let (id, node) = self.resolve(path)?;
        let NodeRecord { mode, uid, gid, nlink, size, mtime, .. } = node;
        Ok(Metadata { inode: u64::from(id), mode, uid, gid, nlink, size, mtime })
    }

    /// Reads a whole regular file of at most `max_bytes`. `layers` are the uncompressed tars,
    /// bottom first.
    ///
    /// # Errors
    /// [`ReadError`], also where it is no regular file or too large.
    pub fn read_file(&self, path: &Path, layers: &[File], max_bytes: u64) -> Result<Vec<u8>, ReadError> {
        let (_, node) = self.resolve(path)?;
        if node.file_type() != libc::S_IFREG {
            return Err(ReadError::NotAFile { path: path.into() });
        }
        if node.size > max_bytes {
            return Err(ReadError::TooLarge { path: path.into(), size: node.size, limit: max_bytes });
        }
        let damaged = |_| ReadError::Damaged { path: path.into() };
        let mut data = vec![0; usize::try_from(node.size).map_err(|_| damaged(Corrupt))?];
        for index in 0..node.count {
            let extent = self.image.extent(&node, index).map_err(damaged)?;
            let start = usize::try_from(extent.logical).map_err(|_| damaged(Corrupt))?;
            let part = usize::try_from(extent.length)
                .ok()
                .and_then(|length| data.get_mut(start..start.checked_add(length)?))
                .ok_or_else(|| damaged(Corrupt))?;
            let layer = layers.get(extent.layer as usize).ok_or_else(|| damaged(Corrupt))?;
            layer.read_exact_at(part, extent.offset).map_err(|source| ReadError::Layer {
                path: path.into(),
                layer: extent.layer,
                source,
            })?;
        }
        Ok(data)
    }

    /// Whether any file has extended attributes.
    pub fn has_xattrs(&self) -> bool {
        self.image.counts().xattrs > 0
    }

    fn resolve(&self, path: &Path) -> Result<(u32, NodeRecord), ReadError> {
        let outcome = walk(&self.image, path.as_os_str().as_bytes());
        outcome.map_err(|error| match error {
            WalkError::NotFound => ReadError::NotFound { path: path.into() },
            WalkError::Loop => ReadError::SymlinkLoop { path: path.into() },
            WalkError::Corrupt => ReadError::Damaged { path: path.into() },
        })
    }
}

enum WalkError {
    NotFound,
    Loop,
    Corrupt,
}

impl From<Corrupt> for WalkError {
    fn from(_: Corrupt) -> Self {
        Self::Corrupt
    }
}

fn walk(image: &Image, path: &[u8]) -> Result<(u32, NodeRecord), WalkError> {
    // Names still to follow, the next one last.
    let mut names: Vec<&[u8]> = split_reversed(path).collect();
    let mut symlinks = 0;
    let mut steps = 0;
    let mut id = ROOT_ID;
    let mut node = image.node(id)?;
    while let Some(name) = names.pop() {
        steps += 1;
        if steps > NAME_LIMIT {
            return Err(WalkError::Loop);
        }
        if !node.is_directory() {
            return Err(WalkError::NotFound);
        }
        let next = match name {
            b"." => id,
            b".." => node.parent,
            name => image.lookup(&node, name)?.ok_or(WalkError::NotFound)?,
        };
        let found = image.node(next)?;
        if found.file_type() != libc::S_IFLNK {
            (id, node) = (next, found);
            continue;
        }
        symlinks += 1;
        if symlinks > SYMLINK_LIMIT {
            return Err(WalkError::Loop);
        }
        let target = image.link_target(&found)?;
        if target.first() == Some(&b'/') {
            id = ROOT_ID;
            node = image.node(id)?;
        }
        names.extend(split_reversed(target));
    }
    Ok((id, node))
}

fn split_reversed(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.rsplit(|byte| *byte == b'/').filter(|name| !name.is_empty())
}
