//! Digests of a context's files, remembered between builds by what stat(2) says of them.
//!
//! A file is taken for unchanged when its device, inode, size, time of modification and time of change
//! are what they were: the kernel sets the last with every write and lets nobody choose it. Clocks tick
//! in steps, so a file that was changed in the very step in which it was hashed might change again
//! without a trace: such a digest is not remembered (git's "racy" entries). The store's file is a cache:
//! what cannot be read or written is hashed again.

use std::collections::HashMap;
use std::fs;
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
    known: HashMap<Key, [u8; 32]>,
    used: HashMap<Key, [u8; 32]>,
    changed: bool,
}

impl FileDigests {
    /// Reads what earlier builds left.
    pub(super) fn open(store: &Store) -> Self {
        let Ok(path) = store.file_digests() else { return Self::default() };
        let bytes = fs::read(&path).unwrap_or_default();
        let mut known = HashMap::new();
        if let Some(rest) = bytes.strip_prefix(MAGIC) {
            for record in rest.chunks_exact(RECORD).take(MAX_FILES) {
                let mut key = [0; 7];
                for (number, word) in record[..56].chunks_exact(8).enumerate() {
                    key[number] = u64::from_le_bytes(word.try_into().unwrap_or_default());
                }
                let mut digest = [0; 32];
                digest.copy_from_slice(&record[56..]);
                known.insert(key, digest);
            }
        }
        Self { path: Some(path), known, used: HashMap::new(), changed: false }
    }

    /// A file's digest, if it is known.
    pub(super) fn get(&mut self, facts: &Facts) -> Option<[u8; 32]> {
        let key = key(facts)?;
        let digest = *self.known.get(&key)?;
        self.used.insert(key, digest);
        Some(digest)
    }

    /// Remembers a file's digest; `facts` are from before it was read.
    pub(super) fn put(&mut self, facts: &Facts, digest: [u8; 32]) {
        let (Some(key), Some(stamp)) = (key(facts), facts.stamp) else { return };
        let now =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos().cast_signed());
        let changed = i128::from(stamp.ctime_s) * 1_000_000_000 + i128::from(stamp.ctime_ns);
        if now - changed > SETTLED_NS {
            self.used.insert(key, digest);
            self.changed = true;
        }
    }

    /// Leaves it for the next build: what this one used, and of the rest what there is room for.
    pub(super) fn save(self, store: &Store) {
        let Some(path) = self.path.filter(|_| self.changed) else { return };
        let rest = self.known.into_iter().filter(|(key, _)| !self.used.contains_key(key));
        let rest: Vec<_> = rest.take(MAX_FILES.saturating_sub(self.used.len())).collect();
        let mut bytes = Vec::with_capacity(MAGIC.len() + (self.used.len() + rest.len()) * RECORD);
        bytes.extend_from_slice(MAGIC);
        for (key, digest) in self.used.into_iter().chain(rest).take(MAX_FILES) {
            for word in key {
                bytes.extend_from_slice(&word.to_le_bytes());
            }
            bytes.extend_from_slice(&digest);
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
