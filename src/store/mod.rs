//! Everything hostel keeps on disk, below one directory.
//!
//! ```text
//! ROOT/                      0700, as every directory below it that hostel makes
//!   format.json              {"version": 1, "required_features": []}: read first, written last
//!   oci-layout, index.json   with blobs/ an OCI image layout that other tools can read
//!   blobs/sha256/<hex>       configs, manifests and registries' layers, byte for byte as they came;
//!                            for an uncompressed layer a link to ../../layers/<hex>/layer.tar
//!   downloads/<hex>          blobs that have not come whole yet (see `downloads`)
//!   layers/<hex>/layer.tar   a layer's uncompressed tar, named for its diff id
//!               /index       where in it everything is (fuse_overlay::pack)
//!               /unsettled   in which boot it was written without a sync (see `settle`)
//!   merged/<hex>             the merged index of an image's layers, named for their chain id
//!         /<hex>.seal        which file it was when its checksum was last verified
//!   native/<hex>/tree/       some files of that image as plain files (see `native`)
//!   materialised/<hex>.*/    that image written out, where /dev/fuse cannot be opened
//!   images.json              the catalog: images by id, names to images
//!   volumes/<name>/          meta.json, _data/
//!   containers/              see `containers`
//!   reserve                  room for the next catalog on a full disk
//!   events/                  see `events`
//!   secrets/                 see `secrets`
//!   builds/                  see `build_cache`
//!   tmp/                     what is being written
//!   lock, images.lock, volumes/.lock
//! ```
//!
//! **Layers are kept uncompressed**, packed, and those of a registry as they came as well, so that an
//! image can be pushed on with its digest unchanged; they go with the last image that came with them.
//! The manifest that an image came from a registry with is then the one in index.json, which makes
//! ROOT a whole and valid layout (`skopeo inspect oci:ROOT:NAME`). Every other image (loaded, or with
//! a layer that was here uncompressed already, or of Docker's manifest type, which layouts do not have)
//! gets a manifest of hostel's own making: the same config, and the uncompressed layers (media type
//! `...layer.v1.tar`, digest = diff id). What an image came with is kept as a blob for its digest,
//! which `images --digests` shows.
//!
//! **Durability.** A file or directory is made in tmp/, synced, renamed into place, and its new
//! parent synced; images.json, which makes an image visible, comes last. Only the tar of a layer whose
//! compressed blob is kept is synced later (see `settle`). A kill at any moment
//! leaves at most files in tmp/ and blobs or layers that nothing refers to: the next collection
//! takes them away, and until then a repeated load finds the layers done.
//!
//! **Sharing.** A store whose root others may read can be an additional store of theirs: see `shared`.
//!
//! **Locks** (flock). `lock` is shared by whoever adds to or relies on blobs, layers and merged
//! indexes, from before the first look until a catalog entry or a container record refers to them;
//! a collection holds it exclusively. `images.lock` is held exclusively while images.json is read,
//! changed and replaced. `volumes/.lock` is to volumes what `lock` is to content. They are always
//! taken in this order. Files under tmp/ belong to holders of a lock.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::id::Digest;

mod build_cache;
mod catalog;
mod collect;
pub mod containers;
mod content;
mod downloads;
pub mod events;
mod large_file;
pub mod local;
mod lock;
pub mod native;
pub mod seal;
pub mod secrets;
mod settings;
pub mod settle;
mod shared;
mod staging;
mod verify;
pub mod volumes;

pub use build_cache::{CacheMount, CachedStep, StepRecord, StepTurn};
pub use catalog::{Catalog, ImageEntry, Member, NameEntry, OCI_MANIFEST, Several};
pub use collect::{Collected, DiskUsage};

pub use content::{LayerWriter, NewBlob, StoredLayer, chain_id};
pub use downloads::{Blob, Download};
pub(crate) use large_file::DIRECT_ALIGNMENT;
pub use lock::{ContentLock, VolumesLock};
pub use settings::Settings;
pub use settle::Durable;
pub use verify::{Checked, Depth, Mending, Part, Problem, Report};
pub use volumes::{Volume, VolumeMeta};

/// The layout of the store that this program writes.
const VERSION: u32 = 1;
/// Features of a store that a program must know to use it; none yet.
const KNOWN_FEATURES: &[&str] = &[];
/// The store's own JSON files. The catalog is the largest: some 400 bytes an image.
const MAX_JSON_BYTES: u64 = 64 << 20;

const FORMAT: &str = "format.json";
const DIRECTORIES: [&str; 9] =
    ["blobs", "blobs/sha256", "layers", "merged", "native", "materialised", "volumes", "containers", "tmp"];

/// What can go wrong in the store.
#[derive(Debug, Error)]
pub enum StoreError {
    /// A file or directory of the store cannot be used.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The disk is full, or the user's quota.
    #[error(
        "no space left to write {path}: free some (`hostel image prune -a`), or put the store elsewhere with --root"
    )]
    Full {
        /// What was being written.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// The filesystem is mounted read-only, as homes of some clusters' nodes are.
    #[error("cannot {action} {path}: put the store elsewhere with --root or HOSTEL_ROOT")]
    ReadOnly {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// A newer hostel made this store.
    #[error(
        "the store {root} has version {found}, this hostel knows {VERSION}: use a newer hostel, or another store with --root"
    )]
    Version {
        /// The store.
        root: PathBuf,
        /// Its version.
        found: u32,
    },
    /// The store needs something that this program does not know.
    #[error(
        "the store {root} needs the feature {feature:?}, which this hostel does not have: use a newer hostel, or another store with --root"
    )]
    Feature {
        /// The store.
        root: PathBuf,
        /// What it needs.
        feature: String,
    },
    /// A directory that is not empty and not a store.
    #[error(
        "{root} is neither empty nor a hostel store (it has no {FORMAT}): give another directory with --root"
    )]
    NotAStore {
        /// The directory.
        root: PathBuf,
    },
    /// A file of the store's own does not hold what it should.
    #[error("{path} is damaged; restore it, or move the store {root} away and load its images again")]
    Damaged {
        /// The store.
        root: PathBuf,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// A file is larger than anything of its kind.
    #[error("{path} is larger than {limit} bytes, so it is not what it should be")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit in bytes.
        limit: u64,
    },
    /// An index cannot be made again from its layer.
    #[error(
        "the stored layer {layer} is damaged; remove the images that use it (`hostel rmi`) and load them again"
    )]
    Layer {
        /// Its diff id.
        layer: Digest,
        /// What is wrong.
        source: fuse_overlay::pack::PackError,
    },
    /// A layer that was not on the disk when the machine stopped.
    #[error(
        "the layer {layer} was not on the disk yet when the machine stopped: pull or load its image again"
    )]
    Lost {
        /// Its diff id.
        layer: Digest,
    },
    /// Layers that do not fit together.
    #[error("cannot merge the layers of the image")]
    Merge {
        /// Why not.
        source: fuse_overlay::index::MergeError,
    },
    /// Files cannot be written out from the layers.
    #[error("cannot write the image's files out of its layers")]
    Native {
        /// Why not.
        source: fuse_overlay::unpack::UnpackError,
    },
    /// What containers need cannot be told.
    #[error("cannot tell which images containers need")]
    Containers {
        /// Why not.
        source: containers::ContainerError,
    },
    /// No volume has this name.
    #[error("get {0}: no such volume")]
    NoSuchVolume(String),
    /// A volume that a container uses.
    #[error("remove {name}: volume is in use - [{}]", containers.join(", "))]
    VolumeInUse {
        /// The volume.
        name: String,
        /// Ids of its containers.
        containers: Vec<String>,
    },
    /// A store of others that everybody may change.
    #[error(
        "everybody may write to {path}, so it is not used as an additional image store: its owner has to take that right away (`chmod o-w`)"
    )]
    WorldWritable {
        /// The directory.
        path: PathBuf,
    },
    /// A config or manifest that should be there is not.
    #[error("{digest} is missing from the store; `hostel image verify` tells what else is")]
    Blob {
        /// Its digest.
        digest: Digest,
    },
    /// Not a volume's name.
    #[error(
        "create {0}: {0:?} includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path"
    )]
    VolumeName(String),
}

type Result<T, E = StoreError> = std::result::Result<T, E>;

impl From<containers::ContainerError> for StoreError {
    fn from(source: containers::ContainerError) -> Self {
        Self::Containers { source }
    }
}

impl StoreError {
    /// Wraps an error of the file system, telling a full disk apart.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => Self::Full { path: path.to_owned(), source },
            Some(libc::EROFS) => Self::ReadOnly { action, path: path.to_owned(), source },
            _ => Self::Io { action, path: path.to_owned(), source },
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Format {
    version: u32,
    required_features: Vec<String>,
}

/// A store on disk. Opening it takes no lock.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
    /// Roots of additional stores, which are only read.
    shared: Vec<PathBuf>,
}

impl Store {
    /// Opens the store at `root`, which is made if there is nothing yet. An existing store costs
    /// one small read.
    ///
    /// # Errors
    /// A store of a newer hostel, a directory that is something else, a path that cannot be made.
    pub fn open(root: &Path) -> Result<Self> {
        Self::open_with(root, Settings::current().additional.clone())
    }

    /// Opens a store beside others that are only read: see [`Self::check_shared`].
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(root: &Path, mut shared: Vec<PathBuf>) -> Result<Self> {
        let root = std::path::absolute(root).map_err(StoreError::io("use", root))?;
        shared.retain(|other| *other != root);
        let store = Self { root, shared };
        let path = store.root.join(FORMAT);
        let format: Format = match read_json(&store.root, &path)? {
            Some(format) => format,
            None => return store.initialise(),
        };
        if format.version > VERSION {
            return Err(StoreError::Version { root: store.root, found: format.version });
        }
        match format.required_features.into_iter().find(|feature| !KNOWN_FEATURES.contains(&feature.as_str()))
        {
            Some(feature) => Err(StoreError::Feature { root: store.root, feature }),
            None => Ok(store),
        }
    }

    /// A store that nothing is read from or written to.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn nowhere() -> Self {
        Self { root: "/nonexistent".into(), shared: Vec::new() }
    }

    /// The store's directory, absolute.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Makes the directories and, last, format.json. Two processes may do so at once.
    fn initialise(self) -> Result<Self> {
        staging::make_directory(&self.root)?;
        let entries = fs::read_dir(&self.root).map_err(StoreError::io("read", &self.root))?;
        // Another process may be making this store: its directories are no reason to refuse.
        let ours = |name: &std::ffi::OsStr| {
            DIRECTORIES
                .iter()
                .chain(&["oci-layout", FORMAT, "lock", "images.lock"])
                .any(|known| name == *known)
        };
        if entries.flatten().any(|entry| !ours(&entry.file_name())) && !self.path(FORMAT).exists() {
            return Err(StoreError::NotAStore { root: self.root });
        }
        for directory in DIRECTORIES {
            staging::make_directory(&self.path(directory))?;
        }
        // What is staged belongs to holders of the lock: without it, another command's sweep of
        // leftovers may take the file away before it is in its place.
        let _lock = self.lock_content()?;
        self.write(&self.path("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        let format = Format { version: VERSION, required_features: Vec::new() };
        self.write_json(&self.path(FORMAT), &format)?;
        Ok(self)
    }

    fn write_json<T: Serialize>(&self, path: &Path, value: &T) -> Result<()> {
        let bytes = serde_json::to_vec(value).map_err(|source| StoreError::Damaged {
            root: self.root.clone(),
            path: path.to_owned(),
            source,
        })?;
        self.write(path, &bytes)
    }
}

/// Reads a JSON file of the store; `None` where it does not exist.
fn read_json<T: DeserializeOwned>(root: &Path, path: &Path) -> Result<Option<T>> {
    let Some(bytes) = read_limited(path, MAX_JSON_BYTES)? else { return Ok(None) };
    let damaged = |source| StoreError::Damaged { root: root.to_owned(), path: path.to_owned(), source };
    serde_json::from_slice(&bytes).map(Some).map_err(damaged)
}

/// Reads a whole file of at most `limit` bytes; `None` where it does not exist.
fn read_limited(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StoreError::io("open", path)(error)),
    };
    // One read for nearly all of these files.
    let mut bytes = Vec::with_capacity(16 << 10);
    file.take(limit + 1).read_to_end(&mut bytes).map_err(StoreError::io("read", path))?;
    if bytes.len() as u64 > limit {
        return Err(StoreError::TooLarge { path: path.to_owned(), limit });
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_new_store_is_private_and_opens_again() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("a/b");
        Store::open(&root).unwrap();
        Store::open(&root).unwrap();
        for directory in DIRECTORIES.iter().map(|name| root.join(name)).chain([root.clone()]) {
            let mode = fs::metadata(&directory).unwrap().permissions().mode();
            assert_eq!(mode & 0o7777, 0o700, "{}", directory.display());
        }
        assert_eq!(fs::read_dir(root.join("tmp")).unwrap().count(), 0);
    }

    #[test]
    fn stores_of_the_future_and_other_directories_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let cases = [
            (r#"{"version": 2, "required_features": []}"#, "has version 2"),
            (r#"{"version": 1, "required_features": ["x"]}"#, "needs the feature \"x\""),
            ("{", "is damaged"),
        ];
        for (text, wanted) in cases {
            fs::write(dir.path().join(FORMAT), text).unwrap();
            let message = Store::open(dir.path()).unwrap_err().to_string();
            assert!(message.contains(wanted), "{message}");
        }
        fs::remove_file(dir.path().join(FORMAT)).unwrap();
        fs::write(dir.path().join("letter.txt"), "dear").unwrap();
        assert!(matches!(Store::open(dir.path()), Err(StoreError::NotAStore { .. })));
    }

    #[test]
    fn many_may_make_the_store_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("s");
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| Store::open(&root).unwrap());
            }
        });
    }
}
