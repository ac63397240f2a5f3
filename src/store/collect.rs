//! Collection: taking away what nothing refers to.
//!
//! Roots are the catalog's images, the images of containers, which stay usable when their image has been
//! removed by force, and what builds keep of their steps. Everything else in blobs/, layers/, merged/ and tmp/ goes.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::Path;

use serde::Deserialize;

use super::containers::{ContainerError, Containers};
use super::{Result, Store, StoreError, chain_id, downloads};
use crate::id::Digest;

/// What a collection took away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Bytes of files that are gone.
    pub bytes: u64,
    /// Diff ids of layers that are gone.
    pub layers: Vec<Digest>,
}

/// The part of a registry's manifest that a collection needs.
#[derive(Deserialize)]
struct Manifest {
    layers: Vec<ManifestLayer>,
}

#[derive(Deserialize)]
struct ManifestLayer {
    digest: Digest,
}

/// What the images of a store take on the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// Bytes of all blobs, layers and merged indexes.
    pub bytes: u64,
    /// Those of them that certain images need.
    pub needed: u64,
}

/// Names that stay.
#[derive(Default)]
struct Live {
    blobs: HashSet<OsString>,
    layers: HashSet<OsString>,
    merged: HashSet<OsString>,
}

impl Live {
    fn add(&mut self, config: &Digest, layers: &[Digest]) {
        self.blobs.insert(config.hex().into());
        self.blobs.extend(layers.iter().map(|layer| OsString::from(layer.hex())));
        self.layers.extend(layers.iter().map(|layer| OsString::from(layer.hex())));
        if let Some(chain) = chain_id(layers) {
            self.merged.insert(format!("{}{}", chain.hex(), super::seal::SUFFIX).into());
            self.merged.insert(chain.hex().into());
        }
    }
}

impl Store {
    /// Takes away all that neither the catalog nor a container needs. Where other processes use the
    /// store at this moment it does nothing and gives `None`: the next one will. The caller must not
    /// hold the content lock itself.
    ///
    /// # Errors
    /// The catalog or a container's record cannot be read, a file cannot be removed.
    pub fn collect(&self) -> Result<Option<Collected>> {
        let Some(_lock) = self.try_lock_content_exclusive()? else { return Ok(None) };
        let catalog = self.own_catalog()?;
        let mut live = Live::default();
        let mut backed = HashSet::new();
        for (id, entry) in &catalog.images {
            live.add(id, &entry.layers);
            if entry.original.is_some() {
                backed.extend(entry.layers.iter().map(|layer| OsString::from(layer.hex())));
            }
            live.blobs.insert(entry.manifest.hex().into());
            if let Some(original) = &entry.original {
                live.blobs.insert(original.hex().into());
                live.blobs
                    .extend(self.manifest_layers(original)?.iter().map(|layer| OsString::from(layer.hex())));
            }
        }
        for name in catalog.names.values() {
            live.blobs.extend(name.digest.iter().map(|digest| OsString::from(digest.hex())));
        }
        for id in self.container_images()?.iter().filter(|id| !catalog.images.contains_key(*id)) {
            if let Some(layers) = self.layers_of_config(id)? {
                live.add(id, &layers);
            }
        }
        let kept = self.step_records()?.into_iter().filter_map(|record| record.step.layer);
        for layer in kept.filter(|layer| self.layer_tar(layer).exists()) {
            live.blobs.insert(layer.hex().into());
            live.layers.insert(layer.hex().into());
        }
        for layer in live.layers.difference(&backed) {
            // From here on nothing but the layer itself has its bytes.
            if let Some(layer) = layer.to_str().and_then(|hex| format!("sha256:{hex}").parse().ok()) {
                self.settle(&layer)?;
            }
        }
        let mut collected = Collected::default();
        // Merged indexes first, layers last: what is left after a kill is whole.
        self.sweep(&self.path("merged"), &live.merged, &mut collected)?;
        self.sweep(&self.path("blobs/sha256"), &live.blobs, &mut collected)?;
        self.sweep(&self.path("native"), &live.merged, &mut collected)?;
        self.bury_materialised(&live.merged)?;
        let layers = self.sweep(&self.path("layers"), &live.layers, &mut collected)?;
        collected
            .layers
            .extend(layers.iter().filter_map(|hex| format!("sha256:{}", hex.to_str()?).parse().ok()));
        self.sweep_downloads(&mut collected);
        self.sweep_staged()?;
        Ok(Some(collected))
    }

    /// Removes what is in tmp/. The caller holds the content lock exclusively. A command that only takes
    /// names away stages the catalog under the catalog's lock alone, so that one is taken too.
    fn sweep_staged(&self) -> Result<()> {
        let _lock = self.lock_catalog()?;
        // These are no part of what the caller freed, and one that cannot be removed (of a volume, with
        // files of subordinate ids) is no reason to fail.
        let _ = self.sweep(&self.path("tmp"), &HashSet::new(), &mut Collected::default());
        Ok(())
    }

    /// The compressed layers of a manifest that came from a registry.
    ///
    /// # Errors
    /// It is there and cannot be read.
    pub fn manifest_layers(&self, manifest: &Digest) -> Result<Vec<Digest>> {
        let bytes = self.blob(manifest)?;
        // A manifest that is lost or damaged names nothing: the image then has its packed layers only.
        let manifest = bytes.and_then(|bytes| serde_json::from_slice::<Manifest>(&bytes).ok());
        Ok(manifest.map_or_else(Vec::new, |manifest| {
            manifest.layers.into_iter().map(|layer| layer.digest).collect()
        }))
    }

    /// Removes what came of downloads that nobody has gone on with for long.
    fn sweep_downloads(&self, collected: &mut Collected) {
        let entries = fs::read_dir(self.path("downloads")).into_iter().flatten().flatten();
        for entry in entries {
            let Ok(metadata) = entry.metadata() else { continue };
            let is_old =
                metadata.modified().is_ok_and(|time| time.elapsed().is_ok_and(|age| age > downloads::KEPT));
            // What cannot be removed is left for another time.
            if is_old && fs::remove_file(entry.path()).is_ok() {
                collected.bytes += metadata.len();
            }
        }
    }

    /// What blobs, layers and merged indexes take on the disk, and what of it these images need.
    ///
    /// # Errors
    /// The catalog or a directory cannot be read.
    pub fn disk_usage(&self, needed: &HashSet<Digest>) -> Result<DiskUsage> {
        let catalog = self.own_catalog()?;
        let mut live = Live::default();
        for id in needed {
            let entry = catalog.images.get(id);
            let layers = match entry {
                Some(entry) => Some(entry.layers.clone()),
                None => self.layers_of_config(id)?,
            };
            live.add(id, &layers.unwrap_or_default());
            live.blobs.extend(entry.iter().map(|entry| OsString::from(entry.manifest.hex())));
            if let Some(original) = entry.and_then(|entry| entry.original.as_ref()) {
                let kept = self.manifest_layers(original)?;
                live.blobs.extend(kept.iter().chain([original]).map(|digest| OsString::from(digest.hex())));
            }
        }
        let mut usage = DiskUsage::default();
        let places = [
            ("blobs/sha256", &live.blobs),
            ("layers", &live.layers),
            ("merged", &live.merged),
            ("native", &live.merged),
            ("materialised", &live.merged),
        ];
        for (name, live) in places {
            let directory = self.path(name);
            // Of a store that an older version made.
            if !directory.exists() {
                continue;
            }
            for entry in fs::read_dir(&directory).map_err(StoreError::io("read", &directory))? {
                let entry = entry.map_err(StoreError::io("read", &directory))?;
                let bytes = match entry.metadata() {
                    Ok(metadata) if metadata.is_dir() => directory_bytes(&entry.path()),
                    Ok(metadata) if metadata.is_file() => metadata.len(),
                    // A link to a layer, or taken away meanwhile.
                    _ => 0,
                };
                usage.bytes += bytes;
                if live.contains(&entry.file_name()) {
                    usage.needed += bytes;
                }
            }
        }
        Ok(usage)
    }

    /// The images of all containers. A record that cannot be read might name any: then nothing may go.
    pub(super) fn container_images(&self) -> Result<Vec<Digest>> {
        let containers = Containers::new(&self.root);
        let mut images = Vec::new();
        for id in containers.ids()? {
            match containers.record(&id) {
                Ok(record) => {
                    let all = record.image_id.iter().chain(&record.mounted_images);
                    images.extend(all.filter_map(|image| image.parse().ok()));
                }
                // It went away meanwhile.
                Err(ContainerError::NotFound(_)) => {}
                Err(ContainerError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(images)
    }

    /// Removes the entries of a directory that are not among `live`, and gives their names.
    fn sweep(
        &self,
        directory: &Path,
        live: &HashSet<OsString>,
        collected: &mut Collected,
    ) -> Result<Vec<OsString>> {
        let entries = match fs::read_dir(directory) {
            // Of a store that an older version made.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(StoreError::io("read", directory))?,
        };
        let mut gone = Vec::new();
        for entry in entries {
            let entry = entry.map_err(StoreError::io("read", directory))?;
            let name = entry.file_name();
            if live.contains(&name) {
                continue;
            }
            let path = entry.path();
            let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let result = if is_directory {
                // In one step out of sight, so that no half layer is ever seen in its place.
                let staged = self.stage();
                collected.bytes += directory_bytes(&path);
                fs::rename(&path, staged.path()).and_then(|()| fs::remove_dir_all(staged.path()))
            } else {
                collected.bytes += entry.metadata().map_or(0, |metadata| metadata.len());
                fs::remove_file(&path)
            };
            result.map_err(StoreError::io("remove", &path))?;
            gone.push(name);
        }
        Ok(gone)
    }

    /// Moves what is written out of images that are not among `live` to where containers leave their
    /// remains: it may belong to subordinate ids, so whoever has the id maps removes it from there.
    fn bury_materialised(&self, live: &HashSet<OsString>) -> Result<()> {
        for entry in fs::read_dir(self.path("materialised")).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let chain = name.to_str().and_then(|name| name.split_once('.')).map_or("", |(chain, _)| chain);
            if live.contains(OsStr::new(chain)) {
                continue;
            }
            let mut grave = OsString::from(".rm-");
            grave.push(&name);
            let path = entry.path();
            fs::rename(&path, self.path("containers").join(grave))
                .map_err(StoreError::io("remove", &path))?;
        }
        Ok(())
    }

    /// Removes what killed commands left in tmp/, if nobody uses the store at this moment.
    ///
    /// # Errors
    /// The lock's file cannot be opened.
    pub fn sweep_leftovers(&self) -> Result<()> {
        let tmp = self.path("tmp");
        if fs::read_dir(&tmp).is_ok_and(|mut entries| entries.next().is_none()) {
            return Ok(());
        }
        if let Some(_lock) = self.try_lock_content_exclusive()? {
            self.sweep_staged()?;
        }
        Ok(())
    }
}

fn directory_bytes(path: &Path) -> u64 {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let metadata = entry.metadata().ok()?;
            Some(if metadata.is_dir() { directory_bytes(&entry.path()) } else { metadata.len() })
        })
        .sum()
}

#[cfg(test)]
pub(super) mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::path::PathBuf;

    use super::super::content::tests::{small_tar, store_layer};
    use super::super::{ImageEntry, NameEntry};
    use super::*;

    /// An image of one layer in the store; gives its id and its layer.
    pub(in crate::store) fn store_image(store: &Store, name: &str) -> (Digest, Digest) {
        let layer = store_layer(store, &small_tar(name, name.as_bytes()));
        let config = format!(r#"{{"rootfs":{{"diff_ids":["{layer}"]}}}}"#);
        let id = store.put_blob(config.as_bytes()).unwrap();
        let layers = vec![layer.clone()];
        let (manifest, manifest_bytes) =
            store.put_layout_manifest((&id, config.len() as u64), &layers).unwrap();
        store.merged_index(&layers).unwrap();
        store
            .update_catalog(|catalog| {
                let entry = ImageEntry {
                    manifest,
                    manifest_bytes,
                    original: None,
                    layers,
                    size_bytes: 0,
                    created: None,
                    architecture: String::new(),
                    os: String::new(),
                };
                catalog.images.insert(id.clone(), entry);
                catalog.names.insert(name.to_owned(), NameEntry::of(id.clone(), None));
                Ok::<_, StoreError>(())
            })
            .unwrap();
        (id, layer)
    }

    /// A container of an image; gives its directory.
    fn make_container(store: &Store, image: &Digest) -> PathBuf {
        let id = "c".repeat(64);
        let record = serde_json::json!({
            "version": 1, "id": id, "name": "c1", "created": "2024-01-02T03:04:05Z", "image": "b", "image_id": image,
            "command": [], "labels": {}, "volumes": [], "anonymous_volumes": [], "local_dir": "/", "machine_id": "",
        });
        let directory = store.path("containers").join(id);
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("record.json"), record.to_string()).unwrap();
        directory
    }

    fn remove(store: &Store, id: &Digest) {
        store
            .update_catalog(|catalog| {
                catalog.images.remove(id);
                catalog.names.retain(|_, entry| entry.image != *id);
                Ok::<_, StoreError>(())
            })
            .unwrap();
    }

    fn count(store: &Store, name: &str) -> usize {
        fs::read_dir(store.path(name)).unwrap().count()
    }

    #[test]
    fn only_what_nothing_refers_to_goes() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let (a, layer_a) = store_image(&store, "a");
        let (b, layer_b) = store_image(&store, "b");
        fs::write(store.path("tmp/left"), "over").unwrap();
        assert_eq!(store.collect().unwrap().unwrap(), Collected::default());
        assert_eq!(count(&store, "tmp"), 0);

        remove(&store, &a);
        remove(&store, &b);
        let container = make_container(&store, &b);
        let collected = store.collect().unwrap().unwrap();
        assert_eq!(collected.layers, [layer_a]);
        assert!(collected.bytes > 1024);
        assert!(store.layer(&layer_b).unwrap().is_some());
        assert!(store.merged_index(&[layer_b]).unwrap().exists());

        fs::write(container.join("record.json"), "{").unwrap();
        assert!(store.collect().is_err(), "a container whose needs cannot be told");
        fs::remove_dir_all(container).unwrap();
        store.collect().unwrap().unwrap();
        for directory in ["blobs/sha256", "layers", "merged", "tmp"] {
            assert_eq!(count(&store, directory), 0, "{directory}");
        }
    }

    #[test]
    fn a_store_in_use_is_not_collected() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let (id, layer) = store_image(&store, "a");
        remove(&store, &id);
        let lock = store.lock_content().unwrap();
        assert_eq!(store.collect().unwrap(), None);
        assert!(store.layer(&layer).unwrap().is_some());
        drop(lock);
        assert_eq!(store.collect().unwrap().unwrap().layers, [layer]);
    }
}
