//! Digests of a context's files, remembered between builds by what stat(2) says of them.
//!
//! A file is taken for unchanged when its device, inode, size, time of modification and time of change
//! are what they were: the kernel sets the last with every write and lets nobody choose it. Clocks tick
//! in steps, so a file that was changed in the very step in which it was hashed might change again
//! without a trace: such a digest is not remembered (git's "racy" entries). The store's file is a cache:
//! what cannot be read or written is hashed again.

use std::collections::HashMap;
use std::fs;
use std::hash::{BuildHasherDefault, Hasher};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use super::tree::Facts;
use crate::store::Store;

/// Files remembered: some 30 MiB.
const MAX_FILES: usize = 300_000;
/// A file has to be left alone for this long before it is hashed. Kernels tick every 10 ms at most.
const SETTLED_NS: i128 = 100_000_000;
const MAGIC: &[u8; 8] = b"hostelf1";
const RECORD: usize = 8 * 7 + 32;

type Key = [u64; 7];

/// The memory.
#[derive(Debug, Default)]
pub(super) struct FileDigests {
    path: Option<PathBuf>,
    known: HashMap<Key, Known, BuildHasherDefault<Mix>>,
    changed: bool,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    digest: [u8; 32],
    /// By this build.
    used: bool,
}

/// Numbers of files are no stranger's to choose, so that a cheap hash will do.
#[derive(Debug, Default)]
struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for word in bytes.chunks_exact(8) {
            let word = u64::from_le_bytes(word.try_into().unwrap_or_default());
            // The constant of FxHash: an odd number near 2^64 over pi.
            self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
        }
    }
}

impl FileDigests {
    /// Reads what earlier builds left.
    pub(super) fn open(store: &Store) -> Self {
        let Ok(path) = store.file_digests() else { return Self::default() };
        let bytes = fs::read(&path).unwrap_or_default();
        let records = bytes.strip_prefix(MAGIC).unwrap_or_default().chunks_exact(RECORD).take(MAX_FILES);
        let mut known = HashMap::with_capacity_and_hasher(records.len(), BuildHasherDefault::default());
        for record in records {
            let mut key = [0; 7];
            for (number, word) in record[..56].chunks_exact(8).enumerate() {
                key[number] = u64::from_le_bytes(word.try_into().unwrap_or_default());
            }
            let mut digest = [0; 32];
            digest.copy_from_slice(&record[56..]);
            known.insert(key, Known { digest, used: false });
        }
        Self { path: Some(path), known, changed: false }
    }

    /// A file's digest, if it is known.
    pub(super) fn get(&mut self, facts: &Facts) -> Option<[u8; 32]> {
        let known = self.known.get_mut(&key(facts)?)?;
        known.used = true;
        Some(known.digest)
    }

    /// Remembers a file's digest; `facts` are from before it was read.
    pub(super) fn put(&mut self, facts: &Facts, digest: [u8; 32]) {
        let (Some(key), Some(stamp)) = (key(facts), facts.stamp) else { return };
        let now =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos().cast_signed());
        let changed = i128::from(stamp.ctime_s) * 1_000_000_000 + i128::from(stamp.ctime_ns);
        if now - changed > SETTLED_NS {
            self.known.insert(key, Known { digest, used: true });
            self.changed = true;
        }
    }

    /// Leaves it for the next build: what this one used, and of the rest what there is room for.
    pub(super) fn save(self, store: &Store) {
        let Some(path) = self.path.filter(|_| self.changed) else { return };
        let mut bytes = Vec::with_capacity(MAGIC.len() + self.known.len().min(MAX_FILES) * RECORD);
        bytes.extend_from_slice(MAGIC);
        let of = |used: bool| self.known.iter().filter(move |(_, known)| known.used == used);
        for (key, known) in of(true).chain(of(false)).take(MAX_FILES) {
            for word in key {
                bytes.extend_from_slice(&word.to_le_bytes());
            }
            bytes.extend_from_slice(&known.digest);
        }
        let _ = store.write_unsynced(&path, &bytes); // a cache
    }
}

fn key(facts: &Facts) -> Option<Key> {
    let stamp = facts.stamp?;
    Some([
        stamp.device,
        stamp.inode,
        facts.size,
        facts.mtime.seconds.cast_unsigned(),
        facts.mtime.nanoseconds.into(),
        stamp.ctime_s.cast_unsigned(),
        stamp.ctime_ns.cast_unsigned(),
    ])
}
