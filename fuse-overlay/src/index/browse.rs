//! Walking an image without a mount, node by node: for whoever copies files out of it.
//!
//! Nodes are named by the inode number that a container sees. Nothing here follows a symlink.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use super::format::{Corrupt, NodeRecord, ROOT_ID};
use super::{MergedIndex, Metadata};
use crate::archive::Content;

/// The root's inode number.
pub const ROOT_INODE: u64 = ROOT_ID as u64;

/// Names and values, sorted by name.
pub type XattrList = Vec<(Vec<u8>, Vec<u8>)>;

/// The index does not hold together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the index is damaged: rebuild it")]
pub struct Damaged;

impl From<Corrupt> for Damaged {
    fn from(_: Corrupt) -> Self {
        Self
    }
}

impl MergedIndex {
    fn record(&self, inode: u64) -> Result<NodeRecord, Damaged> {
        Ok(self.image.node(u32::try_from(inode).map_err(|_| Damaged)?)?)
    }

    /// What is known of a node.
    ///
    /// # Errors
    /// [`Damaged`]; also for a number that no node has.
    pub fn metadata(&self, inode: u64) -> Result<Metadata, Damaged> {
        let NodeRecord { mode, uid, gid, nlink, size, mtime, .. } = self.record(inode)?;
        Ok(Metadata { inode, mode, uid, gid, nlink, size, mtime })
    }

    /// A device's major and minor number.
    ///
    /// # Errors
    /// [`Damaged`].
    pub fn device(&self, inode: u64) -> Result<(u32, u32), Damaged> {
        let rdev = self.record(inode)?.rdev;
        Ok(((rdev >> 8) & 0xfff, (rdev & 0xff) | ((rdev >> 12) & 0xf_ff00)))
    }

    /// What a directory has under a name.
    ///
    /// # Errors
    /// [`Damaged`].
    pub fn child(&self, directory: u64, name: &[u8]) -> Result<Option<u64>, Damaged> {
        let record = self.record(directory)?;
        if !record.is_directory() {
            return Ok(None);
        }
        Ok(self.image.lookup(&record, name)?.map(u64::from))
    }

    /// A directory's parent.
    ///
    /// # Errors
    /// [`Damaged`].
    pub fn parent(&self, directory: u64) -> Result<u64, Damaged> {
        Ok(self.record(directory)?.parent.into())
    }

    /// A directory's names, sorted, each with its node.
    ///
    /// # Errors
    /// [`Damaged`].
    pub fn children(&self, directory: u64) -> Result<Vec<(Vec<u8>, u64)>, Damaged> {
        let record = self.record(directory)?;
        if !record.is_directory() {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        for index in self.image.entries_of(&record)? {
            let (entry, name) = self.image.entry(index)?;
            found.push((name.to_vec(), entry.node.into()));
        }
        Ok(found)
    }

    /// Where a symlink leads.
    ///
    /// # Errors
    /// [`Damaged`].
    pub fn link_target(&self, inode: u64) -> Result<Vec<u8>, Damaged> {
        Ok(self.image.link_target(&self.record(inode)?)?.to_vec())
    }

    /// A node's extended attributes.
    ///
    /// # Errors
    /// [`Damaged`].
    pub fn xattrs(&self, inode: u64) -> Result<XattrList, Damaged> {
        let record = self.record(inode)?;
        (0..record.xattr_count)
            .map(|index| {
                let (name, value) = self.image.xattr(&record, index)?;
                Ok((name.to_vec(), value.to_vec()))
            })
            .collect()
    }

    /// A regular file's data; `layers` are the uncompressed tars, bottom first.
    ///
    /// # Errors
    /// [`Damaged`].
    pub fn content<'a>(&'a self, inode: u64, layers: &'a [File]) -> Result<ImageContent<'a>, Damaged> {
        Ok(ImageContent { index: self, record: self.record(inode)?, layers })
    }
}

/// A regular file of an image.
#[derive(Debug)]
pub struct ImageContent<'a> {
    index: &'a MergedIndex,
    record: NodeRecord,
    layers: &'a [File],
}

impl ImageContent<'_> {
    /// The extent at an offset or the first after it, as its end in the file.
    fn extent(&self, offset: u64) -> io::Result<Option<super::Extent>> {
        let broken = |_| io::Error::other(Damaged);
        let (mut low, mut high) = (0, self.record.count);
        while low < high {
            let middle = low + (high - low) / 2;
            let extent = self.index.image.extent(&self.record, middle).map_err(broken)?;
            if extent.logical.saturating_add(extent.length) <= offset {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        if low == self.record.count {
            return Ok(None);
        }
        self.index.image.extent(&self.record, low).map(Some).map_err(broken)
    }
}

impl Content for ImageContent<'_> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let left = self.record.size.saturating_sub(offset);
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let buffer = &mut buffer[..length];
        let mut filled = 0;
        while filled < length {
            let at = offset + filled as u64;
            let rest = length - filled;
            match self.extent(at)? {
                Some(extent) if extent.logical <= at => {
                    let inside = at - extent.logical;
                    let count = usize::try_from(extent.length - inside).unwrap_or(usize::MAX).min(rest);
                    let layer =
                        self.layers.get(extent.layer as usize).ok_or_else(|| io::Error::other(Damaged))?;
                    layer.read_exact_at(&mut buffer[filled..filled + count], extent.offset + inside)?;
                    filled += count;
                }
                hole => {
                    let end = hole.map_or(u64::MAX, |extent| extent.logical);
                    let count = usize::try_from(end - at).unwrap_or(usize::MAX).min(rest);
                    buffer[filled..filled + count].fill(0);
                    filled += count;
                }
            }
        }
        Ok(length)
    }

    fn next_run(&self, offset: u64) -> io::Result<Option<(u64, u64)>> {
        Ok(self.extent(offset)?.map(|extent| (extent.logical.max(offset), extent.logical + extent.length)))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::io::Write as _;

    use super::*;
    use crate::archive::{Entry, Kind, Writer};
    use crate::index::{Timestamp, merge};
    use crate::pack::{Limits, index_tar};

    fn entry<'a>(path: &'a [u8], kind: Kind<'a>, xattrs: &'a [(Vec<u8>, Vec<u8>)]) -> Entry<'a> {
        Entry { path, kind, mode: 0o640, uid: 1, gid: 2, mtime: Timestamp::default(), xattrs }
    }

    #[test]
    fn an_image_is_walked_and_read_without_a_mount() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        let mut file = File::create(&source).unwrap();
        file.write_all(&[7; 5000]).unwrap();
        file.set_len(4 << 20).unwrap();
        let file = File::open(&source).unwrap();
        let xattrs = [(b"user.a".to_vec(), b"b".to_vec())];
        let mut writer = Writer::new(Vec::new());
        writer.entry(&entry(b"d", Kind::Directory, &[])).unwrap();
        writer.file(&entry(b"d/sparse", Kind::File, &xattrs), 4 << 20, &file).unwrap();
        writer.entry(&entry(b"d/link", Kind::Symlink(b"sparse"), &[])).unwrap();
        writer.entry(&entry(b"d/null", Kind::CharDevice(300, 70_000), &[])).unwrap();
        let tar = writer.finish().unwrap();
        let layer = dir.path().join("layer.tar");
        std::fs::write(&layer, &tar).unwrap();
        let index = merge(&[index_tar(&tar[..], &Limits::default()).unwrap()]).unwrap().into_index().unwrap();

        let directory = index.child(ROOT_INODE, b"d").unwrap().unwrap();
        assert_eq!(index.parent(directory).unwrap(), ROOT_INODE);
        let names: Vec<_> = index.children(directory).unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, [b"link".to_vec(), b"null".to_vec(), b"sparse".to_vec()]);
        let node = |name: &[u8]| index.child(directory, name).unwrap().unwrap();
        assert_eq!(index.link_target(node(b"link")).unwrap(), b"sparse");
        assert_eq!(index.device(node(b"null")).unwrap(), (300, 70_000));
        assert_eq!(index.xattrs(node(b"sparse")).unwrap(), xattrs);
        assert_eq!(index.metadata(node(b"sparse")).unwrap().size, 4 << 20);
        let layers = [File::open(&layer).unwrap()];
        let content = index.content(node(b"sparse"), &layers).unwrap();
        let mut bytes = vec![1; 6000];
        assert_eq!(content.read_at(&mut bytes, 100).unwrap(), 6000);
        assert_eq!((bytes[0], bytes[4800], bytes[5999]), (7, 7, 0));
        assert_eq!(content.read_at(&mut bytes, (4 << 20) - 10).unwrap(), 10);
        assert_eq!(content.next_run(0).unwrap().map(|(start, _)| start), Some(0));
        assert_eq!(content.read_at(&mut bytes, 5 << 20).unwrap(), 0);
        assert_eq!(index.metadata(999), Err(Damaged));
    }
}
