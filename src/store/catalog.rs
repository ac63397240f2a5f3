//! images.json: which images there are, and what they are called.
//!
//! Everything that lists or finds images reads this one file. index.json is derived from it for
//! other tools and may, after a kill, be one change behind.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Result, Store, StoreError, read_json};
use crate::id::Digest;

/// The media type of an image layout's manifests (OCI image specification).
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TAR: &str = "application/vnd.oci.image.layer.v1.tar";

/// A file that holds room for the next catalog.
const RESERVE: &str = "reserve";
/// images.json and index.json need some 700 bytes an image, both beside their old ones.
const RESERVE_BYTES: usize = 256 << 10;

/// The images of a store and their names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Catalog {
    /// Images by id, which is the digest of their config.
    pub images: BTreeMap<Digest, ImageEntry>,
    /// Images by canonical name (`docker.io/library/debian:12`).
    pub names: BTreeMap<String, NameEntry>,
    /// Those of the images that are another store's, with its root.
    #[serde(skip)]
    pub read_only: BTreeMap<Digest, PathBuf>,
}

/// What listing an image needs to know of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageEntry {
    /// Digest of the manifest in index.json: the one that the image came from a registry with, if it
    /// is an OCI one whose blobs are all kept, else one of hostel's own making.
    pub manifest: Digest,
    /// That manifest's size in bytes.
    pub manifest_bytes: u64,
    /// Digest of the manifest that the image came from a registry with, if all of its blobs are kept:
    /// a push sends it as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original: Option<Digest>,
    /// Diff ids, lowest layer first.
    pub layers: Vec<Digest>,
    /// Sum of the sizes of all files in all layers, in bytes.
    pub size_bytes: u64,
    /// The config's `created`, as it stands there.
    pub created: Option<String>,
    /// The config's architecture, in Go's words.
    pub architecture: String,
    /// The config's operating system.
    pub os: String,
}

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameEntry {
    /// The image.
    pub image: Digest,
    /// Digest of the manifest or index that the image came with under this name, if it came with one.
    pub digest: Option<Digest>,
    /// Of a name that stands for images of several platforms: all of them, `image` among them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub several: Option<Several>,
}

impl NameEntry {
    /// A name of one image.
    #[must_use]
    pub fn of(image: Digest, digest: Option<Digest>) -> Self {
        Self { image, digest, several: None }
    }

    /// The images that it stands for.
    pub fn images(&self) -> impl Iterator<Item = &Digest> {
        let members = self.several.iter().flat_map(|several| &several.members);
        let others = members.map(|member| &member.id).filter(|id| **id != self.image);
        std::iter::once(&self.image).chain(others)
    }
}

/// Images of several platforms that are one, and what is said of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Several {
    /// One a platform, in the order that was asked for.
    pub members: Vec<Member>,
    /// Annotations of the index.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Annotations of the index's descriptor in a layout.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub descriptor: BTreeMap<String, String>,
}

/// An image of several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its id.
    pub id: Digest,
    /// Annotations of its descriptor in the index.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Catalog {
    /// Names of an image, sorted: those by which it is found where no platform is asked for.
    pub fn names_of<'a>(&'a self, image: &'a Digest) -> impl Iterator<Item = (&'a str, &'a NameEntry)> {
        self.names
            .iter()
            .filter(move |(_, entry)| entry.image == *image)
            .map(|(name, entry)| (name.as_str(), entry))
    }

    /// Names that stand for an image, for it alone or among those of other platforms; sorted.
    pub fn names_with<'a>(&'a self, image: &'a Digest) -> impl Iterator<Item = (&'a str, &'a NameEntry)> {
        self.names
            .iter()
            .filter(move |(_, entry)| entry.images().any(|id| id == image))
            .map(|(name, entry)| (name.as_str(), entry))
    }

    /// The images whose id begins with these hex digits, two at most: enough to tell whether the
    /// digits are ambiguous.
    #[must_use]
    pub fn by_prefix(&self, hex: &str) -> Vec<&Digest> {
        self.images.keys().filter(|id| id.hex().starts_with(hex)).take(2).collect()
    }
}

impl Store {
    /// The store's own images.
    ///
    /// # Errors
    /// images.json is damaged or cannot be read.
    pub fn own_catalog(&self) -> Result<Catalog> {
        Ok(read_json(&self.root, &self.path("images.json"))?.unwrap_or_default())
    }

    /// Changes the catalog: `change` sees its newest state, and nobody else changes it meanwhile.
    /// Where `change` fails nothing is written. A caller that adds an image holds the content lock.
    ///
    /// # Errors
    /// Those of `change`; files that cannot be read or written.
    pub fn update_catalog<T, E: From<StoreError>>(
        &self,
        change: impl FnOnce(&mut Catalog) -> Result<T, E>,
    ) -> Result<T, E> {
        let _lock = self.lock_catalog()?;
        let before = self.own_catalog()?;
        self.keep_reserve();
        let mut catalog = before.clone();
        let value = change(&mut catalog)?;
        if catalog != before {
            let written = self.write_catalog(&catalog);
            // Taking images away has to work on a full disk, as that is how it gets room again.
            let shrinks =
                catalog.images.len() <= before.images.len() && catalog.names.len() <= before.names.len();
            match written {
                Err(StoreError::Full { .. }) if shrinks && self.release_reserve() => {
                    self.write_catalog(&catalog)?;
                }
                written => written?,
            }
        }
        Ok(value)
    }

    fn write_catalog(&self, catalog: &Catalog) -> Result<()> {
        self.write_json(&self.path("images.json"), catalog)?;
        self.write_layout(catalog)
    }

    /// Keeps some bytes of the disk for the day when it is full. Without them all else works.
    fn keep_reserve(&self) {
        let place = self.path(RESERVE);
        if !place.exists() {
            let _ = self.write(&place, &vec![0; RESERVE_BYTES]);
        }
    }

    fn release_reserve(&self) -> bool {
        fs::remove_file(self.path(RESERVE)).is_ok()
    }

    /// Writes what other tools read of the catalog.
    pub(super) fn write_layout(&self, catalog: &Catalog) -> Result<()> {
        // images.json is the catalog; this is written anew with it, and by `image verify --repair`.
        let place = self.path("index.json");
        let bytes = serde_json::to_vec(&layout_index(catalog)).map_err(|source| StoreError::Damaged {
            root: self.root.clone(),
            path: place.clone(),
            source,
        })?;
        self.write_unsynced(&place, &bytes)
    }
}

/// index.json: each image's own manifest, once a name.
pub(super) fn layout_index(catalog: &Catalog) -> serde_json::Value {
    let descriptor = |entry: &ImageEntry, name: Option<&str>| {
        let mut descriptor = json!({
            "mediaType": OCI_MANIFEST, "digest": entry.manifest, "size": entry.manifest_bytes,
            "platform": { "architecture": entry.architecture, "os": entry.os },
        });
        if let Some(name) = name {
            descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
        }
        descriptor
    };
    let mut manifests = Vec::new();
    for (id, entry) in &catalog.images {
        let named = catalog.names_of(id).map(|(name, _)| descriptor(entry, Some(name)));
        let before = manifests.len();
        manifests.extend(named);
        if manifests.len() == before {
            manifests.push(descriptor(entry, None));
        }
    }
    json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests })
}

/// The manifest that says how an image lies in this store: its config, and its layers uncompressed.
pub(super) fn layout_manifest(config: (&Digest, u64), layers: &[(Digest, u64)]) -> Vec<u8> {
    let layers: Vec<_> = layers
        .iter()
        .map(|(digest, size)| json!({ "mediaType": LAYER_TAR, "digest": digest, "size": size }))
        .collect();
    json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": { "mediaType": CONFIG, "digest": config.0, "size": config.1 },
        "layers": layers,
    })
    .to_string()
    .into_bytes()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    fn entry(byte: u8) -> ImageEntry {
        ImageEntry {
            manifest: Digest::from_bytes(&[byte; 32]),
            manifest_bytes: 7,
            original: None,
            layers: Vec::new(),
            size_bytes: 0,
            created: None,
            architecture: "amd64".to_owned(),
            os: "linux".to_owned(),
        }
    }

    #[test]
    fn a_change_is_seen_by_the_next_reader_and_a_failed_one_by_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let id = Digest::from_bytes(&[1; 32]);
        store
            .update_catalog(|catalog| {
                catalog.images.insert(id.clone(), entry(2));
                catalog.names.insert("docker.io/library/a:1".to_owned(), NameEntry::of(id.clone(), None));
                Ok::<_, StoreError>(())
            })
            .unwrap();
        let failed = store.update_catalog(|catalog| {
            catalog.images.clear();
            Err::<(), _>(StoreError::NoSuchVolume("x".to_owned()))
        });
        assert!(failed.is_err());
        let catalog = store.catalog().unwrap();
        assert_eq!(catalog.images[&id], entry(2));
        assert_eq!(
            catalog.names_of(&id).map(|(name, _)| name).collect::<Vec<_>>(),
            ["docker.io/library/a:1"]
        );
        let index: serde_json::Value =
            read_json(dir.path(), &dir.path().join("index.json")).unwrap().unwrap();
        assert_eq!(
            index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"],
            "docker.io/library/a:1"
        );
    }

    #[test]
    fn short_ids_find_at_most_two() {
        let mut catalog = Catalog::default();
        for byte in [0xaa, 0xab, 0xac] {
            catalog.images.insert(Digest::from_bytes(&[byte; 32]), entry(byte));
        }
        assert_eq!(catalog.by_prefix("a").len(), 2);
        assert_eq!(catalog.by_prefix("ab"), [&Digest::from_bytes(&[0xab; 32])]);
        assert!(catalog.by_prefix("f").is_empty());
    }
}
