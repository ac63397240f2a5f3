//! The read side: packed layers served from their merged index, without any state.
//!
//! Node ids are the index's, nothing here ever changes, so the kernel may keep everything for
//! ever and FORGET needs no answer in memory either. File data is handed over straight from the
//! mapped tar where it is in memory, and read with a read-ahead where it is not: a page fault
//! would fetch it in small pieces.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::attr::{Attr, Entry, FOREVER, Statfs};
use super::backend::{Answer, At, Backend, Listed, Traits};
use super::fuse::pass;
use super::rest::{Activity, Rest};
use super::{Ids, ServeError, buffer};
use crate::index::{Corrupt, Extent, Image, MergedIndex, NodeRecord, ROOT_ID, is_overlay_xattr};
use crate::sys::Mapping;

/// How far ahead a cold read asks the disk to go: small files lie side by side in a tar, and
/// who reads one usually reads the next.
const READ_AHEAD_BYTES: i64 = 1 << 20;

/// The packed layers of an image.
#[derive(Debug)]
pub(super) struct Packed {
    index: Arc<MergedIndex>,
    layers: Arc<[Layer]>,
    ids: Ids,
    activity: Arc<Activity>,
}

#[derive(Debug)]
struct Layer {
    file: File,
    data: Mapping,
}

impl From<Corrupt> for Errno {
    fn from(_: Corrupt) -> Self {
        Self::EIO
    }
}

impl Packed {
    pub(super) fn new(index: MergedIndex, layers: Vec<File>, ids: Ids) -> Result<Self, ServeError> {
        if layers.len() != index.layer_count() as usize {
            return Err(ServeError::LayerCount { expected: index.layer_count(), found: layers.len() });
        }
        let layers = layers.into_iter().enumerate().map(|(layer, file)| {
            let data = file
                .metadata()
                .and_then(|metadata| Mapping::new(&file, usize::try_from(metadata.len()).unwrap_or(0)));
            data.map(|data| Layer { file, data }).map_err(|source| ServeError::Layer { layer, source })
        });
        let layers = layers.collect::<Result<Arc<[Layer]>, _>>()?;
        Ok(Self { index: Arc::new(index), layers, ids, activity: Arc::default() })
    }

    /// Lets go of what is mapped while nothing is asked, until the answer is dropped.
    pub(super) fn rest(&self) -> Rest {
        let (index, layers) = (Arc::clone(&self.index), Arc::clone(&self.layers));
        Rest::begin(&self.activity, move || {
            index.image().release();
            layers.iter().for_each(|layer| layer.data.release());
        })
    }

    pub(super) fn image(&self) -> &Image {
        self.activity.note();
        self.index.image()
    }

    pub(super) fn node(&self, ino: u64) -> Answer<(u32, NodeRecord)> {
        let id = u32::try_from(ino).map_err(|_| Errno::ESTALE)?;
        self.image().node(id).map(|node| (id, node)).map_err(|_| Errno::ESTALE)
    }

    pub(super) fn attr(&self, id: u32, node: &NodeRecord) -> Attr {
        Attr {
            ino: u64::from(id),
            mode: node.mode,
            nlink: node.nlink,
            uid: self.ids.uids.of_image(node.uid),
            gid: self.ids.gids.of_image(node.gid),
            rdev: node.rdev,
            size: if node.is_directory() { 4096 } else { node.size },
            blocks: self.stored_bytes(node).div_ceil(512),
            atime: node.mtime,
            mtime: node.mtime,
            ctime: node.mtime,
        }
    }

    /// Bytes of data, holes not counted.
    fn stored_bytes(&self, node: &NodeRecord) -> u64 {
        if node.file_type() != libc::S_IFREG {
            return 0;
        }
        match self.image().extent(node, 0) {
            // The usual case, without a loop: all of it in one place.
            Ok(extent) if extent.length == node.size => node.size,
            // To the first that is not there: a damaged count must not be counted down to its end.
            _ => (0..node.count)
                .map_while(|index| self.image().extent(node, index).ok())
                .fold(0, |sum, extent| extent.length.saturating_add(sum)),
        }
    }

    fn entry(&self, id: u32, node: &NodeRecord) -> Entry {
        Entry { attr: self.attr(id, node), generation: 0, entry_ttl: FOREVER, attr_ttl: FOREVER }
    }

    /// Walks a directory's names from `offset` on: 0 is `.`, 1 is `..`, then the index's order.
    fn walk(&self, at: At, mut sink: impl FnMut(Listed<'_>, &NodeRecord) -> Answer<bool>) -> Answer<()> {
        let (id, node) = self.node(at.ino)?;
        for (place, name, target) in [(0, &b"."[..], id), (1, b"..", node.parent)] {
            let listed = Listed { name, next: place + 1, ino: target.into(), file_type: libc::S_IFDIR };
            if at.offset <= place && !sink(listed, &self.image().node(target)?)? {
                return Ok(());
            }
        }
        self.names(At { offset: at.offset.max(2), ..at }, |listed| {
            let node = self.node(listed.ino)?.1;
            sink(listed, &node)
        })
    }

    /// Walks a directory's names without the dots; their places begin at 2.
    pub(super) fn names(&self, at: At, mut sink: impl FnMut(Listed<'_>) -> Answer<bool>) -> Answer<()> {
        let (_, node) = self.node(at.ino)?;
        if !node.is_directory() {
            return Err(Errno::ENOTDIR);
        }
        let entries = self.image().entries_of(&node)?;
        let skip = u32::try_from(at.offset.saturating_sub(2)).map_err(|_| Errno::EINVAL)?;
        for index in entries.start.saturating_add(skip)..entries.end {
            let (entry, name) = self.image().entry(index)?;
            let next = u64::from(index - entries.start) + 3;
            let file_type = u32::from(entry.kind) << 12;
            if !sink(Listed { name, next, ino: entry.node.into(), file_type })? {
                break;
            }
        }
        Ok(())
    }

    /// Looks a name up: the node id. `.` and `..` are asked for by the kernel when it opens a
    /// file handle.
    pub(super) fn child(&self, parent: u64, name: &[u8]) -> Answer<Option<u32>> {
        let (id, node) = self.node(parent)?;
        match name {
            b"." => Ok(Some(id)),
            _ if !node.is_directory() => Err(Errno::ENOTDIR),
            b".." => Ok(Some(node.parent)),
            name => Ok(self.image().lookup(&node, name)?),
        }
    }

    /// A file's data: each run with the layer's file that holds it.
    pub(super) fn runs(&self, node: &NodeRecord) -> impl Iterator<Item = Answer<(&File, Extent)>> {
        let node = *node;
        (0..node.count).map(move |index| {
            let extent = self.image().extent(&node, index)?;
            let layer = self.layers.get(extent.layer as usize).ok_or(Errno::EIO)?;
            Ok((&layer.file, extent))
        })
    }

    /// All xattrs of a node that may be shown.
    pub(super) fn xattrs(&self, ino: u64) -> Answer<Vec<(&[u8], &[u8])>> {
        let (_, node) = self.node(ino)?;
        let all = (0..node.xattr_count).map(|index| self.image().xattr(&node, index));
        let mut found = all.collect::<Result<Vec<_>, Corrupt>>()?;
        found.retain(|(name, _)| !is_overlay_xattr(name));
        Ok(found)
    }

    /// Fills `buffer`, which starts at `offset` of the file, with what its extents hold.
    pub(super) fn read_into(&self, node: &NodeRecord, offset: u64, buffer: &mut [u8]) -> Answer<()> {
        buffer.fill(0);
        let end = offset + buffer.len() as u64;
        for index in self.first_extent(node, offset)?..node.count {
            let extent = self.image().extent(node, index)?;
            if extent.logical >= end {
                break;
            }
            let from = extent.logical.max(offset);
            let extent_end = extent.logical.checked_add(extent.length).ok_or(Errno::EIO)?;
            let until = extent_end.min(end);
            if from >= until {
                continue;
            }
            let layer = self.layers.get(extent.layer as usize).ok_or(Errno::EIO)?;
            let place = extent.offset.checked_add(from - extent.logical).ok_or(Errno::EIO)?;
            let part = &mut buffer[(from - offset) as usize..(until - offset) as usize];
            layer.file.read_exact_at(part, place).map_err(|_| Errno::EIO)?;
        }
        Ok(())
    }

    /// The first extent that ends after `offset`.
    fn first_extent(&self, node: &NodeRecord, offset: u64) -> Answer<u32> {
        let (mut low, mut high) = (0, node.count);
        while low < high {
            let middle = low + (high - low) / 2;
            let extent = self.image().extent(node, middle)?;
            if extent.logical.saturating_add(extent.length) <= offset {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }

    /// The bytes in the mapping, where one extent holds them all and they are in memory.
    fn mapped(&self, node: &NodeRecord, offset: u64, length: usize) -> Option<&[u8]> {
        let extent = self.image().extent(node, 0).ok()?;
        let layer = self.layers.get(extent.layer as usize)?;
        let whole = extent.logical == 0 && extent.length == node.size;
        let start = usize::try_from(extent.offset.checked_add(offset)?).ok()?;
        let range = start..start.checked_add(length)?;
        if !whole || range.end > layer.data.len() {
            return None;
        }
        if layer.data.resident(range.clone()) {
            return layer.data.get(range);
        }
        let (start, length) = (range.start as i64, READ_AHEAD_BYTES.max(length as i64));
        // Advice: what is wrong with it, the read itself will find.
        let _ = posix_fadvise(&layer.file, start, length, PosixFadviseAdvice::POSIX_FADV_WILLNEED);
        None
    }
}

impl Backend for Packed {
    fn traits(&self) -> Traits {
        Traits {
            stateless: true,
            changes_underneath: false,
            no_xattrs: !self.index.has_xattrs(),
            writable: false,
            writeback: false,
            negative_ttl: FOREVER,
        }
    }

    fn lookup(&self, parent: u64, name: &[u8]) -> Answer<Entry> {
        let found = self.child(parent, name)?.ok_or(Errno::ENOENT)?;
        Ok(self.entry(found, &self.image().node(found)?))
    }

    fn forget(&self, _ino: u64, _count: u64) {}

    fn getattr(&self, ino: u64) -> Answer<(Attr, Duration)> {
        let (id, node) = self.node(ino)?;
        Ok((self.attr(id, &node), FOREVER))
    }

    fn readlink<R>(&self, ino: u64, then: impl FnOnce(&[u8]) -> R) -> Answer<R> {
        let (_, node) = self.node(ino)?;
        if node.file_type() != libc::S_IFLNK {
            return Err(Errno::EINVAL);
        }
        Ok(then(self.image().link_target(&node)?))
    }

    fn read<R>(&self, at: At, size: u32, then: impl FnOnce(&[u8]) -> R) -> Answer<R> {
        let At { ino, offset } = at;
        let (_, node) = self.node(ino)?;
        if node.file_type() != libc::S_IFREG {
            return Err(Errno::EINVAL);
        }
        let length = node.size.saturating_sub(offset).min(u64::from(size)) as usize;
        if length == 0 {
            return Ok(then(&[]));
        }
        if let Some(data) = self.mapped(&node, offset, length) {
            return Ok(then(data));
        }
        // From a disk, perhaps.
        pass();
        buffer::with(length, |buffer| {
            self.read_into(&node, offset, buffer)?;
            Ok(then(buffer))
        })
    }

    fn readdir(&self, at: At, _handle: u64, mut sink: impl FnMut(Listed<'_>) -> bool) -> Answer<()> {
        self.walk(at, |listed, _| Ok(sink(listed)))
    }

    fn readdirplus(
        &self,
        at: At,
        _handle: u64,
        mut sink: impl FnMut(Listed<'_>, &Entry) -> bool,
    ) -> Answer<()> {
        self.walk(at, |listed, node| {
            let entry = self.entry(u32::try_from(listed.ino).map_err(|_| Errno::EIO)?, node);
            Ok(sink(listed, &entry))
        })
    }

    fn getxattr<R>(&self, ino: u64, name: &[u8], then: impl FnOnce(&[u8]) -> R) -> Answer<R> {
        let (_, node) = self.node(ino)?;
        if is_overlay_xattr(name) {
            return Err(Errno::ENODATA);
        }
        for index in 0..node.xattr_count {
            let (known, value) = self.image().xattr(&node, index)?;
            if known == name {
                return Ok(then(value));
            }
        }
        Err(Errno::ENODATA)
    }

    fn listxattr(&self, ino: u64) -> Answer<Vec<u8>> {
        let mut names = Vec::new();
        for (name, _) in self.xattrs(ino)? {
            names.extend_from_slice(name);
            names.push(0);
        }
        Ok(names)
    }

    fn seek(&self, at: At, whence: i32) -> Answer<u64> {
        let (_, node) = self.node(at.ino)?;
        if node.file_type() != libc::S_IFREG {
            return Err(Errno::EINVAL);
        }
        if at.offset >= node.size {
            return Err(Errno::ENXIO);
        }
        let mut place = at.offset;
        for index in self.first_extent(&node, at.offset)?..node.count {
            let extent = self.image().extent(&node, index)?;
            if extent.logical > place {
                break;
            }
            match whence {
                libc::SEEK_DATA => return Ok(place),
                _ => place = extent.logical.saturating_add(extent.length),
            }
        }
        match whence {
            libc::SEEK_HOLE => Ok(place.min(node.size)),
            libc::SEEK_DATA => {
                let first = self.first_extent(&node, at.offset)?;
                if first < node.count {
                    Ok(self.image().extent(&node, first)?.logical)
                } else {
                    Err(Errno::ENXIO)
                }
            }
            _ => Err(Errno::EINVAL),
        }
    }

    fn statfs(&self) -> Answer<Statfs> {
        let files = self.index.entry_count();
        let blocks = self.index.total_size().div_ceil(4096);
        Ok(Statfs { blocks, files, block_size: 4096, ..Statfs::default() })
    }
}

// The root of a mount is FUSE's node 1, and so it must be in an index.
const _: () = assert!(ROOT_ID == 1);
