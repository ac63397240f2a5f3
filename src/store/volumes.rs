//! Named volumes: directories that outlive containers.
//!
//! A volume is there when `volumes/<name>/` is: it is made in tmp/ and renamed, and removed by
//! renaming it back. What containers wrote into `_data` may belong to subordinate ids, so whoever
//! removes a volume brings the means to remove such a tree.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::events::Events;
use super::staging::{sync_directory, write_synced};
use super::{Result, Store, StoreError, read_json};
use crate::id::Name;

const DATA: &str = "_data";
const META: &str = "meta.json";

/// What is recorded about a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMeta {
    /// Seconds since 1970 at its making.
    pub created_seconds: i64,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Driver options as given.
    pub options: BTreeMap<String, String>,
    /// Made without a name of its own: `volume prune` takes it without `-a`.
    pub anonymous: bool,
}

impl VolumeMeta {
    /// A volume made now.
    #[must_use]
    pub fn new(anonymous: bool) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let created_seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
        Self { created_seconds, labels: BTreeMap::new(), options: BTreeMap::new(), anonymous }
    }
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Its name.
    pub name: Name,
    /// The directory that containers mount.
    pub data: PathBuf,
    /// What is recorded about it.
    pub meta: VolumeMeta,
}

/// What a container gets when it mounts a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backing {
    /// A directory: the volume's own, or one of the machine's that its options name.
    Directory {
        /// Which.
        path: PathBuf,
        /// `o=ro`.
        read_only: bool,
    },
    /// Memory, new with each start.
    Memory {
        /// Options of the mount.
        options: Vec<String>,
    },
}

impl Volume {
    /// What its options make of it (the local driver's `type`, `device` and `o`, as mount(8) has them).
    #[must_use]
    pub fn backing(&self) -> Backing {
        let option = |name: &str| self.meta.options.get(name).map_or("", String::as_str);
        let words = || option("o").split(',').filter(|word| !word.is_empty());
        match option("type") {
            "tmpfs" => Backing::Memory { options: words().map(str::to_owned).collect() },
            "none" | "bind" if !option("device").is_empty() => Backing::Directory {
                path: option("device").into(),
                read_only: words().any(|word| word == "ro"),
            },
            _ => Backing::Directory { path: self.data.clone(), read_only: false },
        }
    }
}

impl Store {
    /// Makes a volume, or gives the one that exists; the second value says whether it is new. The
    /// caller holds the volumes lock until a container's record names the volume.
    ///
    /// # Errors
    /// Files cannot be made.
    pub fn create_volume(&self, name: &Name, meta: &VolumeMeta) -> Result<(Volume, bool)> {
        if let Some(volume) = self.find_volume(name)? {
            return Ok((volume, false));
        }
        let staged = self.stage_directory()?;
        let data = staged.path().join(DATA);
        DirBuilder::new().mode(0o755).create(&data).map_err(StoreError::io("create", &data))?;
        // The umask of the caller says nothing about what containers may see.
        fs::set_permissions(&data, fs::Permissions::from_mode(0o755))
            .map_err(StoreError::io("chmod", &data))?;
        let json = serde_json::to_vec(meta).map_err(|source| StoreError::Damaged {
            root: self.root.clone(),
            path: staged.path().join(META),
            source,
        })?;
        write_synced(&staged.path().join(META), &json)?;
        sync_directory(staged.path())?;
        let is_new = staged.publish(&self.volume_path(name))?;
        if is_new {
            self.tell_volume("create", name);
        }
        Ok((self.volume(name)?, is_new))
    }

    /// The volume of this name, if there is one.
    ///
    /// # Errors
    /// Its record is damaged.
    pub fn find_volume(&self, name: &Name) -> Result<Option<Volume>> {
        let path = self.volume_path(name);
        let meta = read_json(&self.root, &path.join(META))?;
        Ok(meta.map(|meta| Volume { name: name.clone(), data: path.join(DATA), meta }))
    }

    /// The volume of this name.
    ///
    /// # Errors
    /// There is none, or its record is damaged.
    pub fn volume(&self, name: &Name) -> Result<Volume> {
        self.find_volume(name)?.ok_or_else(|| StoreError::NoSuchVolume(name.to_string()))
    }

    /// All volumes by name.
    ///
    /// # Errors
    /// The directory or a record cannot be read.
    pub fn volumes(&self) -> Result<Vec<Volume>> {
        let directory = self.path("volumes");
        let mut volumes = Vec::new();
        for entry in fs::read_dir(&directory).map_err(StoreError::io("read", &directory))? {
            let entry = entry.map_err(StoreError::io("read", &directory))?;
            let name = entry.file_name().into_string().ok().and_then(|name| name.parse::<Name>().ok());
            if let Some(name) = name {
                volumes.extend(self.find_volume(&name)?);
            }
        }
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(volumes)
    }

    /// Removes a volume that no container uses. `users` gives the ids of the containers that use it,
    /// asked while nobody can begin to; `remove_tree` removes the directory, which by then is out of
    /// everybody's sight.
    ///
    /// # Errors
    /// There is no such volume, it is in use, its files cannot be removed.
    pub fn remove_volume(
        &self,
        name: &Name,
        users: impl FnOnce() -> Vec<String>,
        remove_tree: impl FnOnce(&Path) -> io::Result<()>,
    ) -> Result<()> {
        let _lock = self.lock_volumes_exclusive()?;
        self.volume(name)?;
        let containers = users();
        if !containers.is_empty() {
            return Err(StoreError::VolumeInUse { name: name.to_string(), containers });
        }
        let path = self.volume_path(name);
        let staged = self.stage();
        fs::rename(&path, staged.path()).map_err(StoreError::io("remove", &path))?;
        sync_directory(&self.path("volumes"))?;
        self.tell_volume("destroy", name);
        match remove_tree(staged.path()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::io("remove", staged.path())(error))
            }
            _ => Ok(()),
        }
    }

    /// Tells the journal, in Docker's words.
    fn tell_volume(&self, action: &str, name: &Name) {
        Events::new(&self.root).tell("volume", action, name.as_str(), &[("driver", "local")]);
    }

    fn volume_path(&self, name: &Name) -> PathBuf {
        self.path("volumes").join(name.as_str())
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn volumes_are_made_once_and_listed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let [b, a]: [Name; 2] = ["bb", "aa"].map(|name| name.parse().unwrap());
        let (volume, is_new) = store.create_volume(&b, &VolumeMeta::new(false)).unwrap();
        assert!(is_new);
        fs::write(volume.data.join("kept"), "x").unwrap();
        let (again, is_new) = store.create_volume(&b, &VolumeMeta::new(true)).unwrap();
        assert!(!is_new);
        assert_eq!(again, volume);
        assert!(again.data.join("kept").exists());
        store.create_volume(&a, &VolumeMeta::new(false)).unwrap();
        let names: Vec<_> = store.volumes().unwrap().into_iter().map(|volume| volume.name).collect();
        assert_eq!(names, [a, b]);
    }

    #[test]
    fn only_unused_volumes_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let name: Name = "data".parse().unwrap();
        store.create_volume(&name, &VolumeMeta::new(false)).unwrap();
        let used = store.remove_volume(&name, || vec!["abc".to_owned()], |_| Ok(()));
        assert_eq!(used.unwrap_err().to_string(), "remove data: volume is in use - [abc]");
        store.remove_volume(&name, Vec::new, |path| fs::remove_dir_all(path)).unwrap();
        let gone = store.remove_volume(&name, Vec::new, |path| fs::remove_dir_all(path));
        assert_eq!(gone.unwrap_err().to_string(), "get data: no such volume");
        assert_eq!(fs::read_dir(store.path("tmp")).unwrap().count(), 0);
    }
}
