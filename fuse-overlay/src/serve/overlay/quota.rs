//! A limit on what an upper may take up: bytes and inodes, as `--storage-opt size=` sets them.
//!
//! Bytes are the blocks of the objects, and a flat charge for each inode, which pays for what the
//! journal keeps of it. A request that takes up space first reserves the most it can need, and
//! settles afterwards for what it did need: so the limit holds whatever many threads do at a time.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;

use crate::serve::Quota;
use crate::serve::attr::Statfs;
use crate::serve::backend::Answer;

/// Charged for each inode: its record, name and place in memory.
pub(super) const INODE_BYTES: u64 = 512;

/// Space is given out in blocks by every filesystem that an upper lies on.
const BLOCK: u64 = 4096;

#[derive(Debug, Default)]
pub(super) struct Account {
    quota: Quota,
    bytes: AtomicU64,
    inodes: AtomicU64,
    /// What each object was charged. Empty where bytes have no limit.
    objects: Mutex<HashMap<u64, u64>>,
}

impl Account {
    pub(super) fn new(quota: Quota) -> Self {
        Self { quota, ..Self::default() }
    }

    pub(super) fn limits_bytes(&self) -> bool {
        self.quota.bytes.is_some()
    }

    /// Counts a new inode.
    pub(super) fn add_inode(&self) -> Answer<()> {
        take(&self.inodes, 1, self.quota.inodes)?;
        let charged = take(&self.bytes, INODE_BYTES, self.quota.bytes);
        if charged.is_err() {
            give(&self.inodes, 1);
        }
        charged
    }

    pub(super) fn remove_inode(&self) {
        give(&self.inodes, 1);
        give(&self.bytes, INODE_BYTES);
    }

    /// Counts what is there already, limit or not.
    pub(super) fn count_inodes(&self, count: u64) {
        self.inodes.fetch_add(count, Ordering::Relaxed);
        self.bytes.fetch_add(count * INODE_BYTES, Ordering::Relaxed);
    }

    pub(super) fn count_bytes(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Space of any other kind: xattrs, link targets, a copy.
    pub(super) fn add_bytes(&self, bytes: u64) -> Answer<()> {
        take(&self.bytes, bytes, self.quota.bytes)
    }

    pub(super) fn remove_bytes(&self, bytes: u64) {
        give(&self.bytes, bytes);
    }

    /// Reserves space for writing a range, block by block.
    pub(super) fn reserve_range(&self, offset: u64, length: u64) -> Answer<u64> {
        let bytes = range_bytes(offset, length);
        take(&self.bytes, bytes, self.quota.bytes).map(|()| bytes)
    }

    /// What is left of the bytes.
    pub(super) fn left(&self) -> u64 {
        let used = self.bytes.load(Ordering::Relaxed);
        self.quota.bytes.map_or(u64::MAX, |limit| limit.saturating_sub(used))
    }

    /// Whether that much more would fit.
    pub(super) fn has_left(&self, bytes: u64) -> bool {
        bytes <= self.left()
    }

    /// An object takes up `bytes` now; `reserved` was set aside for what was done to it.
    pub(super) fn settle(&self, ino: u64, bytes: u64, reserved: u64) {
        let charged = self.objects().insert(ino, bytes).unwrap_or(0);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        give(&self.bytes, charged + reserved);
    }

    pub(super) fn remove_object(&self, ino: u64) {
        if let Some(charged) = self.objects().remove(&ino) {
            give(&self.bytes, charged);
        }
    }

    fn objects(&self) -> std::sync::MutexGuard<'_, HashMap<u64, u64>> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Narrows what the disk says to what the quota leaves.
    pub(super) fn narrow(&self, disk: Statfs) -> Statfs {
        let mut seen = disk;
        if let Some(limit) = self.quota.bytes {
            let unit = u64::from(disk.block_size).max(1);
            seen.blocks = limit / unit;
            seen.blocks_free = disk.blocks_free.min(self.left() / unit);
            seen.blocks_available = disk.blocks_available.min(self.left() / unit);
        }
        if let Some(limit) = self.quota.inodes {
            let used = self.inodes.load(Ordering::Relaxed);
            seen.files = limit;
            seen.files_free = disk.files_free.min(limit.saturating_sub(used));
        }
        seen
    }
}

/// The bytes of all blocks that a range touches.
fn range_bytes(offset: u64, length: u64) -> u64 {
    let start = offset - offset % BLOCK;
    let end = offset.saturating_add(length).checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX);
    end - start
}

fn take(counter: &AtomicU64, amount: u64, limit: Option<u64>) -> Answer<()> {
    let Some(limit) = limit else {
        counter.fetch_add(amount, Ordering::Relaxed);
        return Ok(());
    };
    let more = |used: u64| used.checked_add(amount).filter(|used| *used <= limit);
    counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).map(drop).map_err(|_| Errno::ENOSPC)
}

fn give(counter: &AtomicU64, amount: u64) {
    // Never below zero: an account that is wrong must not become an endless one.
    let less = |used: u64| Some(used.saturating_sub(amount));
    let _ = counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_reached_and_not_passed() {
        let account = Account::new(Quota { bytes: Some(10 * BLOCK), inodes: Some(2) });
        assert_eq!(account.add_inode(), Ok(()));
        assert_eq!(account.add_inode(), Ok(()));
        assert_eq!(account.add_inode(), Err(Errno::ENOSPC));
        // 1 KiB is gone: nine blocks fit.
        let reserved = account.reserve_range(1, 9 * BLOCK - 1).expect("nine blocks");
        assert_eq!(reserved, 9 * BLOCK);
        assert_eq!(account.reserve_range(0, 1), Err(Errno::ENOSPC));
        account.settle(7, BLOCK, reserved);
        assert_eq!(account.left(), 9 * BLOCK - 2 * INODE_BYTES);
        account.remove_object(7);
        account.remove_inode();
        account.remove_inode();
        assert_eq!(account.left(), 10 * BLOCK);
    }

    #[test]
    fn statfs_is_the_narrower_of_disk_and_quota() {
        let disk = Statfs {
            blocks: 1000,
            blocks_free: 5,
            blocks_available: 4,
            files: 50,
            files_free: 40,
            block_size: 4096,
        };
        let account = Account::new(Quota { bytes: Some(10 * BLOCK), inodes: Some(8) });
        account.count_inodes(3);
        let seen = account.narrow(disk);
        assert_eq!((seen.blocks, seen.blocks_free, seen.blocks_available), (10, 5, 4));
        assert_eq!((seen.files, seen.files_free), (8, 5));
        assert_eq!(Account::default().narrow(disk), disk);
    }
}
