//! Images made here: a base, or nothing, and one more layer.
//!
//! The layer takes the way that every layer takes into the store: read, hashed, indexed and written
//! in one pass, and visible only when its stream has ended well. Configurations are handled as JSON,
//! so that what this engine does not know of a base (health checks, build records) is kept.

use std::io::Read;
use std::thread;

use oci_spec::image::ImageConfiguration;
use serde_json::{Map, Value, json};

use super::error::{ImageError, Result};
use super::handed_over::MAX_LAYERS;
use super::ingest::{InputHash, pack};
use super::platform::Platform;
use super::reference::Reference;
use super::{Added, NameEntry};
use crate::id::Digest;
use crate::store::{Durable, ImageEntry, Store, StoreError};

/// Diff id of an archive without entries: what a commit without changes gives, and no layer at all.
const EMPTY_LAYER: &str = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef";

/// An image about to be made.
#[derive(Clone, Debug)]
pub struct Draft {
    /// The base's configuration, whole; [`scratch`] for none.
    pub base: Value,
    /// Its `config`, as it is to be.
    pub config: Map<String, Value>,
    /// Who made it; may be empty.
    pub author: String,
    /// For the history; may be empty.
    pub comment: String,
    /// The command that made the layer, for the history; may be empty.
    pub created_by: String,
    /// When, as RFC 3339 writes it.
    pub created: String,
    /// What it is to be called.
    pub name: Option<Reference>,
}

/// The configuration of an image of nothing, for this machine or for `platform` (`os/arch[/variant]`).
///
/// # Errors
/// A platform that is none.
pub fn scratch(platform: Option<&str>) -> Result<Value> {
    let host = ImageConfiguration::default();
    let (mut os, mut architecture, mut variant) =
        (host.os().to_string(), Platform::host().architecture().to_string(), None);
    if let Some(text) = platform.filter(|text| !text.is_empty()) {
        let invalid = || ImageError::InvalidPlatform(text.to_owned());
        let is_part = |part: &&str| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
        };
        let mut parts = text.split('/');
        os = parts.next().filter(is_part).ok_or_else(invalid)?.to_lowercase();
        if let Some(part) = parts.next() {
            architecture = match Some(part).filter(is_part).ok_or_else(invalid)? {
                "x86_64" | "x86-64" => "amd64".to_owned(),
                "aarch64" => "arm64".to_owned(),
                part => part.to_lowercase(),
            };
        }
        variant = parts.next().map(|part| Some(part).filter(is_part).ok_or_else(invalid)).transpose()?;
        if parts.next().is_some() {
            return Err(invalid());
        }
    }
    let mut base = json!({
        "architecture": architecture, "os": os, "config": {},
        "rootfs": { "type": "layers", "diff_ids": [] }, "history": [],
    });
    if let Some(variant) = variant {
        base["variant"] = json!(variant);
    }
    Ok(base)
}

/// The configuration of a stored image as JSON, whether it has a name or only containers.
///
/// # Errors
/// It is missing or damaged.
pub fn base_config(store: &Store, id: &Digest) -> Result<Value> {
    let bytes = store.blob(id)?.ok_or_else(|| ImageError::NotFound(id.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|source| ImageError::StoredConfig { image: id.clone(), source })
}

/// Makes an image of a draft and a layer, whose stream may be compressed. `what` is what messages
/// call the stream.
///
/// # Errors
/// The stream fails or is no layer; the store fails. Nothing is visible then.
pub fn commit(store: &Store, draft: Draft, layer: Box<dyn Read + '_>, what: &str) -> Result<Added> {
    store.sweep_leftovers()?;
    let lock = store.lock_content()?;
    let made = make(store, draft, layer, what);
    drop(lock);
    for (added, name) in made.iter().flat_map(|added| added.names.iter().map(move |(name, _)| (added, name)))
    {
        super::told::tell_tag(store, &added.id, name);
    }
    if made.is_err() {
        // A layer that came before the failure. What cannot be collected now is so later.
        let _ = store.collect();
    }
    made
}

fn make(store: &Store, draft: Draft, layer: Box<dyn Read + '_>, what: &str) -> Result<Added> {
    let Draft { mut base, config, author, comment, created_by, created, name } = draft;
    let mut layers = diff_ids(&base, what)?;
    // The base's tree is read while the layer comes.
    let (packed, tree) = thread::scope(|scope| {
        let tree = scope.spawn(|| store.base(&layers));
        let packed = pack(store, layer, what, InputHash::Here, Durable::Now);
        (packed, tree.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    let packed = packed?;
    let diff_id = packed.found.diff_id().clone();
    let is_empty = diff_id.to_string() == EMPTY_LAYER;
    if is_empty {
        packed.check(what)?;
    } else {
        if layers.len() >= MAX_LAYERS {
            return Err(ImageError::TooManyLayers {
                path: what.into(),
                layers: layers.len() + 1,
                limit: MAX_LAYERS,
            });
        }
        layers.push(diff_id);
        packed.publish_beside(what, |index| {
            tree.map_or(Ok(()), |tree| store.lay_over(tree, &layers, index))
        })??;
    }
    let mut history = json!({ "created": created });
    for (key, text) in [("created_by", &created_by), ("author", &author), ("comment", &comment)] {
        if !text.is_empty() {
            history[key] = json!(text);
        }
    }
    if is_empty {
        history["empty_layer"] = json!(true);
    }
    match &mut base["history"] {
        Value::Array(list) => list.push(history),
        other => *other = json!([history]),
    }
    base["created"] = json!(created);
    if author.is_empty() {
        remove(&mut base, "author");
    } else {
        base["author"] = json!(author);
    }
    // What Docker once said of the container that a build step ran in.
    remove(&mut base, "container");
    remove(&mut base, "container_config");
    base["config"] = Value::Object(config);
    make_image(store, base, layers, name.into_iter().collect(), what)
}

/// The layers of a configuration, lowest first. `what` is what messages call the image.
///
/// # Errors
/// One is named by something else than a SHA-256 digest.
pub fn diff_ids(base: &Value, what: &str) -> Result<Vec<Digest>> {
    let listed = base["rootfs"]["diff_ids"].as_array().into_iter().flatten();
    listed
        .map(|layer| {
            let text = layer.as_str().unwrap_or_default();
            text.parse().map_err(|_| ImageError::Algorithm { path: what.into(), digest: text.to_owned() })
        })
        .collect()
}

/// A layer that has come into the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewLayer {
    /// Its diff id.
    pub diff_id: Digest,
    /// Bytes of its tar.
    pub tar_bytes: u64,
}

/// Stores a layer, whose stream may be compressed; none where it has no entries. The caller holds the
/// content lock.
///
/// # Errors
/// The stream fails or is no layer; the store fails. Nothing is visible then.
pub fn add_layer(store: &Store, layer: Box<dyn Read + '_>, what: &str) -> Result<Option<NewLayer>> {
    let packed = pack(store, layer, what, InputHash::Here, Durable::Now)?;
    let diff_id = packed.found.diff_id().clone();
    if diff_id.to_string() == EMPTY_LAYER {
        packed.check(what)?;
        return Ok(None);
    }
    let stored = packed.publish(what)?;
    Ok(Some(NewLayer { diff_id, tar_bytes: stored.tar_bytes }))
}

/// Makes an image of a whole configuration, whose `rootfs` is set here, and of layers that are stored.
/// The caller holds the content lock.
///
/// # Errors
/// Too many layers; the store fails.
pub fn make_image(
    store: &Store,
    mut base: Value,
    layers: Vec<Digest>,
    names: Vec<Reference>,
    what: &str,
) -> Result<Added> {
    if layers.len() > MAX_LAYERS {
        return Err(ImageError::TooManyLayers { path: what.into(), layers: layers.len(), limit: MAX_LAYERS });
    }
    base["rootfs"] = json!({ "type": "layers", "diff_ids": layers });
    let bytes = base.to_string().into_bytes();
    let id = store.put_blob(&bytes)?;
    let known = store.own_catalog()?.images.get(&id).cloned();
    let entry = match known {
        Some(entry) => entry,
        None => {
            let (manifest, manifest_bytes) = store.put_layout_manifest((&id, bytes.len() as u64), &layers)?;
            let mut size_bytes = 0;
            for layer in &layers {
                size_bytes += store.layer(layer)?.map_or(0, |layer| layer.content_bytes);
            }
            let text = |key: &str| base[key].as_str().unwrap_or_default().to_owned();
            ImageEntry {
                manifest,
                manifest_bytes,
                original: None,
                size_bytes,
                created: base["created"].as_str().map(str::to_owned),
                architecture: text("architecture"),
                os: text("os"),
                layers,
            }
        }
    };
    store.merged_index(&entry.layers)?;
    store
        .update_catalog(|catalog| {
            let is_new = !catalog.images.contains_key(&id);
            catalog.images.entry(id.clone()).or_insert(entry);
            let named = names.into_iter().map(|name| {
                let new = NameEntry::of(id.clone(), None);
                let old = catalog.names.insert(name.to_string(), new);
                (name, old.map(|old| old.image).filter(|old| *old != id))
            });
            let names = named.collect();
            Ok::<_, StoreError>(Added { id, digest: None, names, is_new })
        })
        .map_err(ImageError::from)
}

fn remove(value: &mut Value, key: &str) {
    if let Value::Object(object) = value {
        object.shift_remove(key);
    }
}
