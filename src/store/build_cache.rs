//! What builds keep: what each step gave, and the directories of cache mounts.
//!
//! ```text
//! builds/steps/<hex>       what a step gave, named for the digest of all that it depends on
//! builds/mounts/<hex>/     a cache mount: meta.json, lock, data/ (and data.1/ ... where it is private)
//! builds/run/<name>/       what a build that runs has for itself: lock, containers/, files
//! builds/doing/<hex>       empty, locked by the build that does that step at the moment
//! builds/files             digests of files of contexts, by what stat(2) says of them
//! ```
//!
//! A record is written beside and renamed, without waiting for the disk: one that is lost or cut short
//! after a power failure is none, and its step is done again. The layers that records name are kept
//! from collections like those of images; whoever reads a record and relies on it holds the content
//! lock.

use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::staging::make_directory;
use super::{Result, Store, StoreError, read_json};
use crate::id::Digest;

const BUILDS: &str = "builds";
const STEPS: &str = "builds/steps";
const MOUNTS: &str = "builds/mounts";
const RUN: &str = "builds/run";
const DOING: &str = "builds/doing";

/// What a step gave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CachedStep {
    /// The layer that it made; none where it changed nothing.
    pub layer: Option<Digest>,
    /// Bytes of the layer's tar.
    pub bytes: u64,
    /// When it was made.
    pub created: Timestamp,
    /// The step, as a build shows it.
    pub description: String,
}

/// A record and what the store knows of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepRecord {
    /// The digest of all that the step depends on.
    pub key: Digest,
    /// What it gave.
    pub step: CachedStep,
    /// When a build last used it.
    pub last_used: Timestamp,
}

/// A cache mount on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheMount {
    /// Its directory's name.
    pub key: String,
    /// What it is called.
    pub id: String,
    /// Its directory.
    pub path: PathBuf,
    /// When a build last used it.
    pub last_used: Timestamp,
}

/// The right to do a step, or the place in the queue for it: of builds that want the same one does it, and the
/// others find it done. The kernel lets go of it when its holder is killed.
#[derive(Debug)]
#[must_use = "a turn is over when it is dropped"]
pub struct StepTurn {
    file: File,
    path: PathBuf,
    /// The process that took it: its children let go of nothing.
    owner: u32,
    is_ours: bool,
}

impl StepTurn {
    /// Whether the step is the caller's to do.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.is_ours
    }

    /// Waits until nobody does the step. A child of the caller's may wait for it: the file is theirs in common, and
    /// so is the lock.
    ///
    /// # Errors
    /// The lock cannot be had.
    pub fn wait(&self) -> Result<()> {
        loop {
            match self.file.lock() {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                other => return other.map_err(StoreError::io("lock", &self.path)),
            }
        }
    }

    /// Takes the turn after [`Self::wait`]. Where the one who had it took its file away it is over, and another may
    /// have begun: then it has to be asked for again.
    #[must_use]
    pub fn after_waiting(mut self) -> Option<Self> {
        let inode = |found: std::io::Result<fs::Metadata>| found.map(|meta| (meta.dev(), meta.ino())).ok();
        let ours = inode(self.file.metadata());
        self.is_ours = ours.is_some() && ours == inode(fs::metadata(&self.path));
        self.is_ours.then_some(self)
    }
}

impl Drop for StepTurn {
    fn drop(&mut self) {
        if std::process::id() != self.owner {
            return;
        }
        if self.is_ours {
            let _ = fs::remove_file(&self.path); // one that stays is taken away by the next build
        }
        let _ = self.file.unlock(); // closing it does the same, but children may have it open
    }
}

#[derive(Serialize, Deserialize)]
struct MountMeta {
    id: String,
}

impl Store {
    fn step_path(&self, key: &Digest) -> PathBuf {
        self.path(STEPS).join(key.hex())
    }

    /// What a step gave, if it was done before and its layer is still there. The caller holds the
    /// content lock.
    ///
    /// # Errors
    /// The store cannot be read. A damaged record is none.
    pub fn cached_step(&self, key: &Digest) -> Result<Option<CachedStep>> {
        let path = self.step_path(key);
        let step: CachedStep = match read_json(&self.root, &path) {
            Ok(Some(step)) => step,
            Ok(None) | Err(StoreError::Damaged { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        if let Some(layer) = &step.layer
            && !self.layer_tar(layer).exists()
        {
            return Ok(None);
        }
        // Its age decides what a prune takes first; nothing else depends on it.
        let _ = File::open(&path).and_then(|file| file.set_modified(SystemTime::now()));
        Ok(Some(step))
    }

    /// Keeps what a step gave. The caller holds the content lock.
    ///
    /// # Errors
    /// The record cannot be written.
    pub fn keep_step(&self, key: &Digest, step: &CachedStep) -> Result<()> {
        make_directory(&self.path(STEPS))?;
        let path = self.step_path(key);
        let bytes = serde_json::to_vec(step).map_err(|source| StoreError::Damaged {
            root: self.root.clone(),
            path: path.clone(),
            source,
        })?;
        self.write_unsynced(&path, &bytes)
    }

    /// Everything that is kept of steps.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn step_records(&self) -> Result<Vec<StepRecord>> {
        let mut found = Vec::new();
        for (name, path) in entries(&self.path(STEPS))? {
            let Ok(key) = format!("sha256:{name}").parse::<Digest>() else { continue };
            let Ok(Some(step)) = read_json::<CachedStep>(&self.root, &path) else { continue };
            found.push(StepRecord { key, step, last_used: modified(&path) });
        }
        found.sort_by_key(|record| record.last_used);
        Ok(found)
    }

    /// Forgets a step. Its layer goes with the next collection, unless something else needs it.
    ///
    /// # Errors
    /// The record cannot be removed.
    pub fn forget_step(&self, key: &Digest) -> Result<()> {
        let path = self.step_path(key);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(StoreError::io("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }

    /// The directory of a cache mount, made if it is not there.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn cache_mount(&self, key: &Digest, id: &str) -> Result<PathBuf> {
        let path = self.path(MOUNTS).join(key.hex());
        make_directory(&path)?;
        let meta = path.join("meta.json");
        if !meta.exists() {
            self.write_json(&meta, &MountMeta { id: id.to_owned() })?;
        }
        let _ = File::open(&meta).and_then(|file| file.set_modified(SystemTime::now())); // as for steps
        Ok(path)
    }

    /// All cache mounts.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn cache_mounts(&self) -> Result<Vec<CacheMount>> {
        let mut found = Vec::new();
        for (key, path) in entries(&self.path(MOUNTS))? {
            let meta = path.join("meta.json");
            let id = match read_json::<MountMeta>(&self.root, &meta) {
                Ok(Some(meta)) => meta.id,
                _ => key.clone(),
            };
            found.push(CacheMount { key, id, last_used: modified(&meta), path });
        }
        found.sort_by_key(|mount| mount.last_used);
        Ok(found)
    }

    /// Asks for the right to do a step. The caller holds the content lock, and looks for the step's record again
    /// when it has the right. Where the filesystem has no locks everybody has it.
    ///
    /// # Errors
    /// The lock's file cannot be made.
    pub fn step_turn(&self, key: &Digest) -> Result<StepTurn> {
        make_directory(&self.path(DOING))?;
        let path = self.path(DOING).join(key.hex());
        loop {
            let mut options = fs::OpenOptions::new();
            options.write(true).create(true).truncate(false).mode(0o600);
            let file = options.open(&path).map_err(StoreError::io("open", &path))?;
            let mut turn = StepTurn { file, path: path.clone(), owner: std::process::id(), is_ours: false };
            match turn.file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(turn),
                Err(TryLockError::Error(_)) => {
                    turn.is_ours = true;
                    return Ok(turn);
                }
            }
            if let Some(turn) = turn.after_waiting() {
                return Ok(turn);
            }
        }
    }

    /// Takes away what killed builds left of their turns; best effort.
    pub fn sweep_step_turns(&self) {
        for (_, path) in entries(&self.path(DOING)).unwrap_or_default() {
            let Ok(file) = File::open(&path) else { continue };
            let turn = StepTurn { file, path, owner: std::process::id(), is_ours: false };
            if turn.file.try_lock().is_ok() {
                drop(turn.after_waiting());
            }
        }
    }

    /// Where builds that run have their own directories; made if it is not there.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn build_directory(&self) -> Result<PathBuf> {
        let path = self.path(RUN);
        make_directory(&path)?;
        Ok(path)
    }

    /// The file that remembers digests of contexts' files; its directory is made.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn file_digests(&self) -> Result<PathBuf> {
        make_directory(&self.path(BUILDS))?;
        Ok(self.path(BUILDS).join("files"))
    }
}

/// Names and paths in a directory, none where there is no such directory.
fn entries(directory: &Path) -> Result<Vec<(String, PathBuf)>> {
    let listed = match fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        listed => listed.map_err(StoreError::io("read", directory))?,
    };
    let named =
        |path: PathBuf| path.file_name().and_then(OsStr::to_str).map(|name| (name.to_owned(), path.clone()));
    Ok(listed.flatten().filter_map(|entry| named(entry.path())).collect())
}

fn modified(path: &Path) -> Timestamp {
    let time = fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    time.and_then(|time| Timestamp::try_from(time).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::super::content::tests::{small_tar, store_layer};
    use super::*;

    fn step(layer: Option<Digest>) -> CachedStep {
        CachedStep { layer, bytes: 1, created: Timestamp::UNIX_EPOCH, description: "RUN x".to_owned() }
    }

    #[test]
    fn a_kept_step_keeps_its_layer_until_it_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let layer = store_layer(&store, &small_tar("a", b"b"));
        let key = Digest::from_bytes(&[1; 32]);
        assert_eq!(store.cached_step(&key).unwrap(), None);
        store.keep_step(&key, &step(Some(layer.clone()))).unwrap();
        store.collect().unwrap().unwrap();
        assert_eq!(store.cached_step(&key).unwrap(), Some(step(Some(layer.clone()))));
        assert_eq!(store.step_records().unwrap().len(), 1);
        store.forget_step(&key).unwrap();
        store.forget_step(&key).unwrap();
        assert_eq!(store.collect().unwrap().unwrap().layers, [layer]);
    }

    #[test]
    fn a_step_is_one_builds_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let (key, other) = (Digest::from_bytes(&[1; 32]), Digest::from_bytes(&[2; 32]));
        let first = store.step_turn(&key).unwrap();
        assert!(first.is_ours());
        assert!(store.step_turn(&other).unwrap().is_ours());
        let second = store.step_turn(&key).unwrap();
        assert!(!second.is_ours());
        store.sweep_step_turns();
        assert!(!store.step_turn(&key).unwrap().is_ours(), "a sweep leaves what is locked");
        drop(first);
        second.wait().unwrap();
        // The file that it waited for is gone: somebody else may have made another by now.
        let third = store.step_turn(&key).unwrap();
        assert!(third.is_ours());
        assert!(second.after_waiting().is_none());
        assert!(!store.step_turn(&key).unwrap().is_ours());
        drop(third);
        // A killed one leaves its file, which the next takes, or a sweep.
        fs::write(dir.path().join(DOING).join(key.hex()), "").unwrap();
        assert!(store.step_turn(&key).unwrap().is_ours());
        fs::write(dir.path().join(DOING).join(key.hex()), "").unwrap();
        store.sweep_step_turns();
        assert!(entries(&dir.path().join(DOING)).unwrap().is_empty());
    }

    #[test]
    fn a_damaged_record_and_a_lost_layer_are_no_cache() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let key = Digest::from_bytes(&[2; 32]);
        store.keep_step(&key, &step(Some(Digest::from_bytes(&[3; 32])))).unwrap();
        assert_eq!(store.cached_step(&key).unwrap(), None);
        fs::write(store.step_path(&key), "{").unwrap();
        assert_eq!(store.cached_step(&key).unwrap(), None);
        assert!(store.step_records().unwrap().is_empty());
        store.collect().unwrap().unwrap();
    }
}
