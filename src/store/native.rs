//! Native files: the hot and the large files of an image as plain files.
//!
//! ```text
//! native/<hex>/tree/       some files of the image with that chain id, at their paths
//!             /unsettled   in which boot they were written without a sync (see `settle`)
//! ```
//!
//! A FUSE read costs a request and a copy of the data in each container's page cache. So what every
//! start executes, and what is large, is kept a second time as plain files, which the kernel's
//! overlayfs puts above the FUSE mount (`sandbox::init`): no request, and one page cache for all
//! containers. Only files qualify that a plain file of the user's can stand for, in content and in
//! what stat(2) shows ([`MergedIndex::native_candidates`]), so nothing of the tree needs xattrs, a
//! range of ids or hard links to other places.
//!
//! The tree is a cache: made at an image's first run, complete or absent, never needed.
//! So a start does not wait for it to be on the disk: a machine that stopped makes it anew.
//! It doubles the disk space of what is in it, which [`Budget`] bounds.

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use fuse_overlay::index::MergedIndex;
use fuse_overlay::unpack::{self, Candidate, Owners, Select};
use nix::sys::statvfs::statvfs;

use super::settle::{self, Durable, Settling, settling};
use super::staging::{make_directory, sync_directory};
use super::{Result, Store, StoreError};
use crate::id::Digest;

const TREE: &str = "tree";

/// What native files may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// A file from this size on is native whether it is hot or not.
    pub large_bytes: u64,
    /// All native files of one image, the hot ones first, then the largest.
    pub total_bytes: u64,
}

impl Default for Budget {
    /// 4 MiB: reading less than that through FUSE costs a millisecond or two, and each directory
    /// with a native file is a merged one, which makes listing it dearer. 4 GiB: more than nearly
    /// all images have.
    fn default() -> Self {
        Self { large_bytes: 4 << 20, total_bytes: 4 << 30 }
    }
}

/// Never more than this part of what is free on the disk.
const FREE_DIVISOR: u64 = 8;

/// The tree of native files that belongs to a merged index of a store, if there is one.
#[must_use]
pub fn tree_beside(merged_index: &Path) -> Option<PathBuf> {
    let store = merged_index.parent()?.parent()?;
    let place = store.join("native").join(merged_index.file_name()?);
    let tree = place.join(TREE);
    let is_whole = tree.is_dir() && !matches!(settling(&place), Ok(Settling::Earlier) | Err(_));
    is_whole.then_some(tree)
}

impl Store {
    /// Makes the native files of an image whose merged index is there, unless that was done before.
    /// `hot` names inodes that are wanted whatever their size. The caller holds the content lock.
    ///
    /// # Errors
    /// A layer or the index cannot be read, or the disk is full: the image works without.
    pub fn make_native(
        &self,
        layers: &[Digest],
        budget: Budget,
        hot: impl FnOnce(&MergedIndex, &[File]) -> HashSet<u64>,
    ) -> Result<()> {
        let merged = self.merged_path(layers);
        let place = self.native_path(layers);
        if place.exists() {
            match settling(&place)? {
                Settling::Settled | Settling::ThisBoot(false) => return Ok(()),
                Settling::ThisBoot(true) => {
                    sync_tree(&place)?;
                    return settle::unmark(&place);
                }
                Settling::Earlier => self.remove_native(layers)?,
            }
        }
        make_directory(&self.path("native"))?;
        let open = |path: &Path| File::open(path).map_err(StoreError::io("open", path));
        let failed = |source| StoreError::Native { source };
        let index = MergedIndex::open(&open(&merged)?)
            .map_err(|error| StoreError::io("read", &merged)(std::io::Error::other(error)))?;
        let tars = layers.iter().map(|layer| open(&self.layer_tar(layer))).collect::<Result<Vec<_>>>()?;
        let candidates = index.native_candidates().map_err(failed)?;
        let wanted = choose(&candidates, &hot(&index, &tars), budget, self.free_bytes());
        let staged = self.stage_directory()?;
        let durable = self.durable(Durable::Later);
        if durable == Durable::Later {
            settle::mark(staged.path())?;
            sync_directory(staged.path())?;
        }
        if !wanted.is_empty() {
            let tree = staged.path().join(TREE);
            make_directory(&tree)?;
            let target = open(&tree)?;
            unpack::unpack(&index, &tars, target.as_fd(), Select::Files(&wanted), Owners::Caller)
                .map_err(failed)?;
        }
        if durable == Durable::Now {
            sync_tree(staged.path())?;
        }
        match durable {
            Durable::Now => staged.publish(&place).map(drop),
            Durable::Later => staged.publish_unsynced(&place).map(drop),
        }
    }

    /// The first native file that is not what the layers have, if any; all of them are read.
    ///
    /// # Errors
    /// The index or a layer cannot be read.
    pub fn verify_native(&self, layers: &[Digest]) -> Result<Option<PathBuf>> {
        let tree = self.native_path(layers).join(TREE);
        if !tree.is_dir() {
            return Ok(None);
        }
        let open = |path: &Path| File::open(path).map_err(StoreError::io("open", path));
        let merged = self.merged_index(layers)?;
        let index = MergedIndex::open(&open(&merged)?)
            .map_err(|error| StoreError::io("read", &merged)(std::io::Error::other(error)))?;
        let tars = layers.iter().map(|layer| open(&self.layer_tar(layer))).collect::<Result<Vec<_>>>()?;
        let target = open(&tree)?;
        unpack::find_difference(&index, &tars, target.as_fd()).map_err(|source| StoreError::Native { source })
    }

    /// Takes away an image's native files, so that they are made anew.
    ///
    /// # Errors
    /// They cannot be removed.
    pub fn remove_native(&self, layers: &[Digest]) -> Result<()> {
        let place = self.native_path(layers);
        if !place.exists() {
            return Ok(());
        }
        let staged = self.stage();
        fs::rename(&place, staged.path())
            .and_then(|()| fs::remove_dir_all(staged.path()))
            .map_err(StoreError::io("remove", &place))
    }

    fn native_path(&self, layers: &[Digest]) -> PathBuf {
        let merged = self.merged_path(layers);
        self.path("native").join(merged.file_name().unwrap_or_default())
    }

    fn free_bytes(&self) -> u64 {
        statvfs(&self.root).map_or(0, |disk| disk.blocks_available() * disk.fragment_size())
    }
}

/// Waits until a directory and all below it is on the disk.
fn sync_tree(directory: &Path) -> Result<()> {
    for entry in fs::read_dir(directory).map_err(StoreError::io("read", directory))? {
        let path = entry.map_err(StoreError::io("read", directory))?.path();
        let metadata = fs::symlink_metadata(&path).map_err(StoreError::io("look at", &path))?;
        if metadata.is_dir() {
            sync_tree(&path)?;
        } else if metadata.is_file() {
            // A file may be closed to its owner, as the image has it.
            match File::open(&path).and_then(|file| file.sync_all()) {
                Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                    let root = File::open(directory).map_err(StoreError::io("open", directory))?;
                    nix::unistd::syncfs(&root)
                        .map_err(|errno| StoreError::io("sync", &path)(errno.into()))?;
                }
                result => result.map_err(StoreError::io("sync", &path))?,
            }
        }
    }
    sync_directory(directory)
}

/// The hot files that qualify, then the large ones, largest first, as far as the budget goes.
fn choose(candidates: &[Candidate], hot: &HashSet<u64>, budget: Budget, free_bytes: u64) -> HashSet<u64> {
    let mut left = budget.total_bytes.min(free_bytes / FREE_DIVISOR);
    let mut sorted: Vec<_> = candidates
        .iter()
        .filter(|file| hot.contains(&file.inode) || file.size >= budget.large_bytes)
        .collect();
    sorted.sort_by_key(|file| (!hot.contains(&file.inode), std::cmp::Reverse(file.size), file.inode));
    let mut wanted = HashSet::new();
    for file in sorted {
        if let Some(rest) = left.checked_sub(file.size) {
            left = rest;
            wanted.insert(file.inode);
        }
    }
    wanted
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::os::unix::fs::MetadataExt as _;

    use super::super::content::tests::{small_tar, store_layer};
    use super::*;

    #[test]
    fn hot_files_come_first_and_the_budget_holds() {
        let candidates: Vec<_> =
            [(2, 10), (3, 500), (4, 700), (5, 600)].map(|(inode, size)| Candidate { inode, size }).into();
        let cases: [(&[u64], u64, u64, &[u64]); 5] = [
            (&[], 10_000, 1 << 30, &[3, 4, 5]),
            (&[2, 9], 10_000, 1 << 30, &[2, 3, 4, 5]),
            (&[2], 700, 1 << 30, &[2, 5]),
            (&[3], 1200, 1 << 30, &[3, 4]),
            (&[2], 10_000, 80, &[2]),
        ];
        for (hot, total_bytes, free, expected) in cases {
            let budget = Budget { large_bytes: 500, total_bytes };
            let found = choose(&candidates, &hot.iter().copied().collect(), budget, free);
            assert_eq!(found, expected.iter().copied().collect(), "{hot:?} {total_bytes} {free}");
        }
    }

    #[test]
    fn native_files_are_made_once_checked_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let layers = [store_layer(&store, &small_tar("hello", b"world"))];
        let merged = store.merged_index(&layers).unwrap();
        assert_eq!(tree_beside(&merged), None);
        let hot = |index: &MergedIndex, _: &[File]| {
            HashSet::from([index.lookup(Path::new("/hello")).unwrap().inode])
        };
        store.make_native(&layers, Budget::default(), hot).unwrap();
        let tree = tree_beside(&merged).unwrap();
        let file = tree.join("hello");
        assert_eq!(fs::read(&file).unwrap(), b"world");
        let inode = fs::metadata(&file).unwrap().ino();
        store.make_native(&layers, Budget::default(), |_, _| HashSet::new()).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().ino(), inode);

        assert_eq!(store.verify_native(&layers).unwrap(), None);
        fs::write(&file, "wormy").unwrap();
        assert_eq!(store.verify_native(&layers).unwrap(), Some("/hello".into()));
        store.remove_native(&layers).unwrap();
        assert_eq!(tree_beside(&merged), None);
        // Of another boot they are not used, and made anew.
        store.make_native(&layers, Budget::default(), hot).unwrap();
        let place = store.native_path(&layers);
        fs::write(place.join("unsettled"), "another-boot\n").unwrap();
        fs::write(place.join("tree/hello"), "").unwrap();
        assert_eq!(tree_beside(&merged), None);
        store.make_native(&layers, Budget::default(), hot).unwrap();
        assert_eq!(fs::read(tree_beside(&merged).unwrap().join("hello")).unwrap(), b"world");
        let mark = File::options().write(true).open(place.join("unsettled")).unwrap();
        mark.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(3600)).unwrap();
        store.make_native(&layers, Budget::default(), hot).unwrap();
        assert!(!place.join("unsettled").exists());
        store.remove_native(&layers).unwrap();
        // Nothing to take out: that too is done once.
        store.make_native(&layers, Budget::default(), |_, _| HashSet::new()).unwrap();
        assert!(store.native_path(&layers).exists());
        assert_eq!(tree_beside(&merged), None);
        assert_eq!(store.verify_native(&layers).unwrap(), None);
        // Nothing refers to it.
        store.collect().unwrap().unwrap();
        assert!(!store.native_path(&layers).exists());
    }
}
