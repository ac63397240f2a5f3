//! Blobs on their way from a registry: what came is kept, so that a later pull goes on from there.
//!
//! `downloads/<hex>` has the first bytes of the blob with this digest, as far as they came. Nothing
//! trusts them: whoever goes on hashes them again. Whoever writes has the file locked (flock), so that
//! two pulls of one blob wait for each other and the second finds the blob done. A finished blob is
//! synced and renamed to its place below blobs/.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek as _, SeekFrom};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::large_file::{DIRECT_ALIGNMENT, LargeFile};
use super::staging::{make_directory, sync_directory};
use super::{Result, Store, StoreError};
use crate::id::Digest;

/// How long a collection leaves what came of a blob: a pull that broke off is taken up again soon or
/// not at all.
pub(super) const KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// A blob that this process downloads. Dropped unfinished, it stays for a later pull.
#[derive(Debug)]
pub struct Download {
    store: Store,
    digest: Digest,
    path: PathBuf,
    file: LargeFile,
    _lock: Flock<File>,
}

/// What there is of a blob.
#[derive(Debug)]
pub enum Blob {
    /// All of it.
    Stored(File),
    /// Nothing or its begin.
    Incomplete(Download),
}

impl Store {
    /// The blob of a registry's layer, or what there is of it. Waits for another pull of the same blob.
    /// The caller holds the content lock.
    ///
    /// # Errors
    /// Files cannot be made or opened.
    pub fn download(&self, digest: &Digest) -> Result<Blob> {
        let directory = self.path("downloads");
        make_directory(&directory)?;
        let path = directory.join(digest.hex());
        loop {
            if let Some(file) = self.open_blob(digest)? {
                return Ok(Blob::Stored(file));
            }
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(0o600);
            let file = options.open(&path).map_err(StoreError::io("open", &path))?;
            let lock = lock(file.try_clone().map_err(StoreError::io("open", &path))?, &path)?;
            // Whoever had it before may have finished it, or thrown it away.
            let is_there = fs::metadata(&path).is_ok_and(|found| {
                lock.metadata().is_ok_and(|own| (own.dev(), own.ino()) == (found.dev(), found.ino()))
            });
            if is_there {
                return Download::resume(self, digest, path, file, lock).map(Blob::Incomplete);
            }
        }
    }

    /// Opens a blob of any size that came from a registry.
    ///
    /// # Errors
    /// It is there and cannot be opened.
    pub fn open_blob(&self, digest: &Digest) -> Result<Option<File>> {
        let path = self.blob_path(digest);
        match File::open(&path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("open", &path)(error)),
        }
    }
}

impl Download {
    fn resume(
        store: &Store,
        digest: &Digest,
        path: PathBuf,
        mut file: File,
        lock: Flock<File>,
    ) -> Result<Self> {
        let size = file.metadata().map_err(StoreError::io("look at", &path))?.len();
        let have = size - size % DIRECT_ALIGNMENT as u64;
        file.set_len(have)
            .and_then(|()| file.seek(SeekFrom::Start(have)))
            .map_err(StoreError::io("write", &path))?;
        let file = LargeFile::new(file, have);
        Ok(Self { store: store.clone(), digest: digest.clone(), path, file, _lock: lock })
    }

    /// Bytes that are there.
    #[must_use]
    pub fn have(&self) -> u64 {
        self.file.written()
    }

    /// The file, to read what is there by position.
    #[must_use]
    pub fn file(&self) -> &File {
        self.file.file()
    }

    /// Appends. Chunks whose address and length are multiples of 4096 are written the fastest.
    ///
    /// # Errors
    /// The disk is full or fails.
    pub fn write(&mut self, chunk: &[u8]) -> Result<()> {
        self.file.write(chunk).map_err(StoreError::io("write", &self.path))
    }

    /// Makes the blob durable and puts it in its place. The caller has verified it.
    ///
    /// # Errors
    /// The disk is full or fails.
    pub fn finish(self) -> Result<()> {
        let place = self.store.blob_path(&self.digest);
        self.file.sync().map_err(StoreError::io("sync", &self.path))?;
        fs::rename(&self.path, &place).map_err(StoreError::io("rename a finished file to", &place))?;
        sync_directory(place.parent().unwrap_or(Path::new("/")))
    }

    /// Throws away what came.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn discard(self) -> Result<()> {
        fs::remove_file(&self.path).map_err(StoreError::io("remove", &self.path))
    }
}

fn lock(mut file: File, path: &Path) -> Result<Flock<File>> {
    loop {
        match Flock::lock(file, FlockArg::LockExclusive) {
            Ok(lock) => return Ok(lock),
            Err((again, Errno::EINTR)) => file = again,
            Err((_, errno)) => return Err(StoreError::io("lock", path)(errno.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    #![expect(clippy::panic, reason = "a test says what went wrong by panicking")]

    use super::*;

    fn incomplete(store: &Store, digest: &Digest) -> Download {
        match store.download(digest).unwrap() {
            Blob::Incomplete(download) => download,
            Blob::Stored(_) => panic!("it is not stored yet"),
        }
    }

    #[test]
    fn what_came_stays_until_it_is_whole_or_thrown_away() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let digest = Digest::from_bytes(&[3; 32]);
        let mut download = incomplete(&store, &digest);
        assert_eq!(download.have(), 0);
        download.write(&[7; 10_000]).unwrap();
        drop(download);
        // Begun again where a direct write may begin.
        let download = incomplete(&store, &digest);
        assert_eq!(download.have(), 8192);
        download.discard().unwrap();
        let mut download = incomplete(&store, &digest);
        assert_eq!(download.have(), 0);
        download.write(b"whole").unwrap();
        download.finish().unwrap();
        assert_eq!(fs::read(store.blob_path(&digest)).unwrap(), b"whole");
        assert!(matches!(store.download(&digest).unwrap(), Blob::Stored(_)));
        assert_eq!(fs::read_dir(dir.path().join("downloads")).unwrap().count(), 0);
    }

    #[test]
    fn the_second_waits_for_the_first_and_finds_it_done() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let digest = Digest::from_bytes(&[3; 32]);
        let mut download = incomplete(&store, &digest);
        std::thread::scope(|scope| {
            let second = scope.spawn(|| store.download(&digest).unwrap());
            download.write(b"whole").unwrap();
            download.finish().unwrap();
            assert!(matches!(second.join().unwrap(), Blob::Stored(_)));
        });
    }
}
