//! Layers whose bytes reach the disk later.
//!
//! A layer that can be had again need not wait for the disk. One of a registry is made again from its
//! blob, which is synced: the tar beside it is three times as large. One of an archive comes again
//! with the archive. (What was made here, by a commit or a build, is in no other place and waits.)
//! Such a layer has a mark,
//!
//! ```text
//! layers/<hex>/unsettled   the boot (proc(5), boot_id) in which layer.tar was written without a sync
//! ```
//!
//! which is on the disk before the layer has its name. Within that boot the kernel has the bytes,
//! whatever happens to processes, and writes them when it comes to it. It is not told to begin: what
//! syncs meanwhile would be behind them, and an image that is soon removed is never written. The mark
//! goes when the tar has been synced: at the first start after the kernel will have written it by
//! itself (`WRITTEN_AFTER`), or before a collection could take the blob. A mark of another boot means
//! that the machine may have stopped in between: then the tar is hashed before it is used, once, and a
//! layer that is not what its name says is none. The image module makes it again from the blob, or
//! says that it is lost. `Settings::wait_for_disk` does without all of this.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::staging::{sync_directory, write_synced};
use super::{Result, Settings, Store, StoreError, containers, local, read_limited};
use crate::id::Digest;

/// The mark's name, beside layer.tar.
const MARK: &str = "unsettled";
/// A boot id and a newline.
const MAX_MARK_BYTES: u64 = 64;
/// After this the kernel has begun to write what is dirty (proc(5), dirty_expire_centisecs: 30 s by
/// default) and is done, so that a sync has little to wait for.
const WRITTEN_AFTER: Duration = Duration::from_secs(60);
/// Bytes read at once.
const READ_BYTES: usize = 1 << 20;

/// When the bytes of a layer are on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durable {
    /// Before the layer has its name.
    Now,
    /// When the kernel comes to it. A blob that the layer is to be made from again must be synced
    /// before the layer gets its name.
    Later,
}

/// Whether the bytes beside a mark are on the disk.
pub(super) enum Settling {
    Settled,
    /// The kernel has them. `true` where it will have written them by now.
    ThisBoot(bool),
    /// Perhaps not.
    Earlier,
}

impl Store {
    /// What is wanted and possible here: a network's filesystem belongs to several machines, each with
    /// boots of its own.
    pub(super) fn durable(&self, wanted: Durable) -> Durable {
        match wanted {
            Durable::Later
                if !Settings::current().wait_for_disk
                    && local::remote_kind(&self.root).is_none()
                    && !containers::boot_id().is_empty() =>
            {
                Durable::Later
            }
            _ => Durable::Now,
        }
    }

    /// Whether a layer that is in its place may be used. One that the machine's stop damaged is taken
    /// away.
    ///
    /// # Errors
    /// The layer cannot be read, synced or taken away.
    pub(super) fn is_intact(&self, diff_id: &Digest) -> Result<bool> {
        let tar = self.layer_tar(diff_id);
        let is_intact = settle_if_due(&tar, diff_id)?;
        let (directory, staged) = (tar.with_file_name(""), self.stage());
        // Meanwhile another process may have made it again.
        let is_damaged = !is_intact && matches!(settling(&directory)?, Settling::Earlier);
        if is_damaged && !self.is_shared(&tar) {
            fs::rename(&directory, staged.path()).map_err(StoreError::io("remove", &directory))?;
        }
        Ok(is_intact)
    }

    /// Waits until a layer of this store is on the disk.
    pub(super) fn settle(&self, diff_id: &Digest) -> Result<()> {
        let tar = self.layer_tar(diff_id);
        match settling(&tar.with_file_name(""))? {
            Settling::Settled => Ok(()),
            Settling::ThisBoot(_) => settle_if_possible(&tar),
            Settling::Earlier => settle_if_due(&tar, diff_id).map(drop),
        }
    }
}

/// Whether layers, by the paths of their tars, may be used; gives the first that may not, or that was
/// found damaged before and is gone. Costs two looks a layer where all are on the disk.
///
/// # Errors
/// A layer cannot be read or synced.
pub fn first_damaged(tars: &[PathBuf]) -> Result<Option<Digest>> {
    for tar in tars {
        let name = tar.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
        // Not a layer's place in a store: nothing is known about it.
        let Ok(diff_id) = format!("sha256:{name}").parse::<Digest>() else { continue };
        if !tar.exists() || !settle_if_due(tar, &diff_id)? {
            return Ok(Some(diff_id));
        }
    }
    Ok(None)
}

/// Marks what is being made in a directory, before anything of it can be on the disk.
pub(super) fn mark(directory: &Path) -> Result<()> {
    write_synced(&directory.join(MARK), format!("{}\n", containers::boot_id()).as_bytes())
}

fn settle_if_due(tar: &Path, diff_id: &Digest) -> Result<bool> {
    match settling(&tar.with_file_name(""))? {
        Settling::Settled | Settling::ThisBoot(false) => Ok(true),
        Settling::ThisBoot(true) => settle_if_possible(tar).map(|()| true),
        Settling::Earlier if digest(tar)? == *diff_id => settle_if_possible(tar).map(|()| true),
        Settling::Earlier => Ok(false),
    }
}

/// A mark in somebody else's store stays for its owner, writable or not.
fn settle_if_possible(tar: &Path) -> Result<()> {
    if Settings::current().additional.iter().any(|root| tar.starts_with(root)) {
        return Ok(());
    }
    match settle(tar) {
        Err(StoreError::Io { source, .. })
            if matches!(
                source.kind(),
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
            ) =>
        {
            Ok(())
        }
        result => result,
    }
}

/// What the mark in a directory says.
pub(super) fn settling(directory: &Path) -> Result<Settling> {
    let path = directory.join(MARK);
    let Some(text) = read_limited(&path, MAX_MARK_BYTES)? else { return Ok(Settling::Settled) };
    if text.trim_ascii() != containers::boot_id().as_bytes() {
        return Ok(Settling::Earlier);
    }
    let age = fs::metadata(&path).ok().and_then(|mark| mark.modified().ok()?.elapsed().ok());
    Ok(Settling::ThisBoot(age.is_some_and(|age| age > WRITTEN_AFTER)))
}

/// Waits until a layer is on the disk, and takes the mark away. Another process may do the same.
fn settle(tar: &Path) -> Result<()> {
    for path in [tar, &tar.with_file_name("index")] {
        match File::open(path).and_then(|file| file.sync_all()) {
            Ok(()) => {}
            // An index is made again where there is none.
            Err(error) if error.kind() == io::ErrorKind::NotFound && path != tar => {}
            Err(error) => return Err(StoreError::io("sync", path)(error)),
        }
    }
    unmark(&tar.with_file_name(""))
}

/// Takes the mark away from a directory whose files are on the disk. Another process may do the same.
pub(super) fn unmark(directory: &Path) -> Result<()> {
    let mark = directory.join(MARK);
    match fs::remove_file(&mark) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io("remove", &mark)(error)),
        _ => sync_directory(directory),
    }
}

fn digest(tar: &Path) -> Result<Digest> {
    let failed = |error| StoreError::io("read", tar)(error);
    let mut file = File::open(tar).map_err(failed)?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; READ_BYTES]);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(Digest::from_bytes(&hash.finalize().into())),
            Ok(count) => hash.update(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::time::SystemTime;

    use fuse_overlay::pack::{Limits, index_tar};

    use super::super::content::tests::small_tar;
    use super::*;

    /// Stores a layer that reaches the disk later; gives its digest, tar and mark.
    fn unsettled(store: &Store) -> (Digest, PathBuf, PathBuf) {
        let tar = small_tar("hello", b"world");
        let digest = Digest::from_bytes(&Sha256::digest(&tar).into());
        let mut writer = store.new_layer(Durable::Later).unwrap();
        writer.write(&tar).unwrap();
        writer.finish(&digest, &index_tar(tar.as_slice(), &Limits::default()).unwrap()).unwrap();
        let path = store.layer_tar(&digest);
        let mark = path.with_file_name(MARK);
        (digest, path, mark)
    }

    fn boot_again(mark: &Path) {
        fs::write(mark, "another-boot\n").unwrap();
    }

    #[test]
    fn a_mark_stays_until_the_kernel_has_written_the_layer() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let (digest, tar, mark) = unsettled(&store);
        assert!(store.layer(&digest).unwrap().is_some());
        assert_eq!(first_damaged(std::slice::from_ref(&tar)).unwrap(), None);
        assert!(mark.exists());
        let old = SystemTime::now() - 2 * WRITTEN_AFTER;
        File::options().write(true).open(&mark).unwrap().set_modified(old).unwrap();
        assert_eq!(first_damaged(std::slice::from_ref(&tar)).unwrap(), None);
        assert!(!mark.exists());
    }

    #[test]
    fn after_another_boot_a_whole_layer_is_settled_and_a_torn_one_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let (digest, tar, mark) = unsettled(&store);
        boot_again(&mark);
        assert_eq!(first_damaged(std::slice::from_ref(&tar)).unwrap(), None);
        assert!(!mark.exists());

        // The machine stopped before the tar's second half was written.
        let torn = [&fs::read(&tar).unwrap()[..600], &[0; 400]].concat();
        mark_again(&mark);
        fs::write(&tar, torn).unwrap();
        assert_eq!(first_damaged(std::slice::from_ref(&tar)).unwrap(), Some(digest.clone()));
        assert!(store.layer(&digest).unwrap().is_none());
        assert!(!tar.exists());
    }

    fn mark_again(mark: &Path) {
        super::mark(mark.parent().unwrap()).unwrap();
        boot_again(mark);
    }

    #[test]
    fn a_layer_that_no_blob_backs_is_settled_by_a_collection() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let (digest, _, mark) = unsettled(&store);
        let config = format!(r#"{{"rootfs":{{"type":"layers","diff_ids":["{digest}"]}}}}"#);
        let id = store.put_blob(config.as_bytes()).unwrap();
        let backed = |original: Option<Digest>| {
            let (manifest, manifest_bytes) =
                store.put_layout_manifest((&id, 1), std::slice::from_ref(&digest)).unwrap();
            let entry = super::super::ImageEntry {
                manifest,
                manifest_bytes,
                original,
                layers: vec![digest.clone()],
                size_bytes: 5,
                created: None,
                architecture: "amd64".to_owned(),
                os: "linux".to_owned(),
            };
            store
                .update_catalog(|catalog| {
                    catalog.images.insert(id.clone(), entry);
                    Ok::<_, StoreError>(())
                })
                .unwrap();
            store.collect().unwrap().unwrap();
            mark.exists()
        };
        assert!(backed(Some(id.clone())));
        assert!(!backed(None));
        assert!(store.layer(&digest).unwrap().is_some());
    }
}
