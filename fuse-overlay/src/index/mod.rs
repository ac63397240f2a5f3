//! The merged index of an image: all layers in one immutable, versioned, checksummed file that
//! is mapped, not loaded.
//!
//! [`merge()`] resolves whiteouts, opaque directories and hard links once, when an image arrives;
//! starting a container then costs the same for any number of layers and files. The file's form
//! is in the private `format` module. What must stay true: a node's id never changes once
//! written, since it is the inode number that containers see and that write layers record.

mod browse;
mod format;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod hash;
mod layout;
mod merge;
mod read;
#[cfg(test)]
mod tests;
pub(crate) mod tree;

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

pub use browse::{Damaged, ImageContent, ROOT_INODE, XattrList};
pub(crate) use format::{Corrupt, Image, Kind, NodeRecord, ROOT_ID};
pub(crate) use hash::xxh64;
pub(crate) use layout::render;
pub use read::{Metadata, ReadError};
pub use tree::{Extent, Timestamp};

use crate::pack::LayerIndex;

/// Why an index cannot be used. In every case but [`IndexError::Read`] it can be made again from
/// the layers.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The file has another form.
    #[error("this is not an index file")]
    NotAnIndex,
    /// A layer's index where a merged one belongs, or the reverse.
    #[error("this is an index of another kind")]
    OtherKind,
    /// Written by another version of this program.
    #[error("the index has format version {found}, this program reads {supported}: rebuild it")]
    Version {
        /// The file's version.
        found: u32,
        /// The version this program knows.
        supported: u32,
    },
    /// The file is shorter or longer than its header says.
    #[error("the index has been cut short: rebuild it")]
    Truncated,
    /// A checksum or an invariant does not hold.
    #[error("the {part} of the index is damaged: rebuild it")]
    Damaged {
        /// Which part.
        part: &'static str,
    },
    /// The file cannot be read or mapped.
    #[error("cannot read the index")]
    Read(#[source] io::Error),
}

/// Why layers cannot be merged.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// A hard link leads to nothing in its own layer or the layers below.
    #[error(
        "layer {layer}: the hard link {name:?} leads to {target:?}, which no layer has: the image is broken"
    )]
    LinkTarget {
        /// Which layer, counted from the bottom.
        layer: u32,
        /// The link's last name.
        name: PathBuf,
        /// The path it leads to.
        target: PathBuf,
    },
    /// A layer's index is damaged.
    #[error("the index of layer {layer} is damaged: make it again from the layer")]
    LayerIndex {
        /// Which layer, counted from the bottom.
        layer: u32,
    },
    /// More names or data runs than an index can count.
    #[error("the image has more names than an index can hold")]
    TooLarge,
}

/// Merges layers, bottom first, into one index.
///
/// # Errors
/// [`MergeError`] where a layer index is damaged or a hard link leads nowhere.
pub fn merge(layers: &[LayerIndex]) -> Result<Merged, MergeError> {
    let images: Vec<&Image> = layers.iter().map(LayerIndex::image).collect();
    let tree = merge::merge(&images)?;
    let layers = u32::try_from(layers.len()).map_err(|_| MergeError::TooLarge)?;
    Ok(Merged { bytes: render(&tree, Kind::Merged, layers)? })
}

/// An image's tree in memory, to lay more layers over: what [`merge()`] makes of all layers, without
/// the layers below.
#[derive(Debug)]
pub struct Base {
    tree: tree::Tree,
    layers: u32,
}

impl Base {
    /// Reads the tree of a merged index.
    ///
    /// # Errors
    /// [`IndexError::Damaged`].
    pub fn of(index: &MergedIndex) -> Result<Self, IndexError> {
        let tree = merge::tree_of(&index.image).map_err(|_| IndexError::Damaged { part: "tree" })?;
        Ok(Self { tree, layers: index.layer_count() })
    }

    /// Lays layers over it, lowest first.
    ///
    /// # Errors
    /// Those of [`merge()`].
    pub fn lay(mut self, layers: &[&LayerIndex]) -> Result<Merged, MergeError> {
        let images: Vec<&Image> = layers.iter().map(|layer| layer.image()).collect();
        merge::lay(&mut self.tree, self.layers, &images)?;
        let count = u32::try_from(layers.len()).map_err(|_| MergeError::TooLarge)?;
        let layers = self.layers.checked_add(count).ok_or(MergeError::TooLarge)?;
        Ok(Merged { bytes: render(&self.tree, Kind::Merged, layers)? })
    }
}

/// A merged index that is not on disk yet.
#[derive(Debug)]
pub struct Merged {
    bytes: Vec<u8>,
}

impl Merged {
    /// Writes the index file's bytes. To make it durable and visible at once (sync, rename) is
    /// the caller's part.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write_to(&self, mut file: impl Write) -> io::Result<()> {
        file.write_all(&self.bytes)
    }

    /// Uses the index from memory.
    ///
    /// # Errors
    /// None in practice: what was just laid out is well-formed.
    pub fn into_index(self) -> Result<MergedIndex, IndexError> {
        Ok(MergedIndex { image: Image::from_vec(self.bytes, Kind::Merged)? })
    }
}

/// A merged index, mapped.
#[derive(Debug)]
pub struct MergedIndex {
    image: Image,
}

impl MergedIndex {
    /// Maps an index file and checks its header. The cost does not depend on its size.
    ///
    /// # Errors
    /// [`IndexError`]; all but `Read` mean that the index should be made again from the layers.
    pub fn open(file: &File) -> Result<Self, IndexError> {
        Ok(Self { image: Image::map(file, Kind::Merged)? })
    }

    /// Checks the whole file against its checksum: reads all of it.
    ///
    /// # Errors
    /// [`IndexError::Damaged`].
    pub fn verify(&self) -> Result<(), IndexError> {
        self.image.verify()
    }

    /// Whether this is, byte for byte, what merging `layers` gives. Together with
    /// [`LayerIndex::describes`] for each layer it ties a mounted image to its tars. As costly as
    /// [`merge()`].
    ///
    /// # Errors
    /// Those of [`merge()`].
    pub fn is_made_of(&self, layers: &[LayerIndex]) -> Result<bool, MergeError> {
        Ok(merge(layers)?.bytes == self.image.bytes())
    }

    /// How many files, directories and other nodes the image has; hard links count once.
    pub fn entry_count(&self) -> u64 {
        self.image.counts().nodes
    }

    /// How many layers the index points into.
    pub fn layer_count(&self) -> u32 {
        self.image.summary().layers
    }

    /// The sum of the sizes of all regular files in bytes.
    pub fn total_size(&self) -> u64 {
        self.image.summary().total_size
    }

    pub(crate) fn image(&self) -> &Image {
        &self.image
    }

    /// A copy of an index that is in memory.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        let image = Image::from_vec(bytes.to_vec(), Kind::Merged);
        Self { image: image.unwrap_or_else(|error| unreachable!("{error}")) }
    }
}

/// Names that overlay filesystems keep for themselves. Were an image's own shown, the kernel's
/// overlayfs on top of it would obey them.
const OVERLAY_XATTRS: [&[u8]; 2] = [b"user.overlay.", b"trusted.overlay."];

/// Whether an xattr of an image must not be shown.
pub(crate) fn is_overlay_xattr(name: &[u8]) -> bool {
    OVERLAY_XATTRS.iter().any(|prefix| name.starts_with(prefix))
}

/// A path for messages.
pub(crate) fn display<B: AsRef<[u8]>>(names: &[B]) -> PathBuf {
    let joined = names.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(&b'/');
    PathBuf::from(OsString::from_vec(joined))
}
