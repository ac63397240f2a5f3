//! One image for several platforms: an index over the images of a build, and annotations.
//!
//! The store has an image a platform, and a name that stands for all of them (`store::NameEntry`). What joins
//! them elsewhere, an OCI image index, is written where it is wanted: into a registry (`registry::push`) or a
//! layout (`save`).

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::commit::base_config;
use super::error::{ImageError, Result};
use super::platform::Platform;
use super::reference::Reference;
use crate::id::Digest;
use crate::store::{NameEntry, OCI_MANIFEST, Several, Store, StoreError};

/// The media type of an image index (OCI image specification).
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Annotations by key (image-spec, annotations.md).
pub type Annotations = BTreeMap<String, String>;

impl Several {
    /// The index over manifests, one a member.
    pub(super) fn index(&self, store: &Store, manifests: &[(Digest, u64)]) -> Result<Vec<u8>> {
        let mut descriptors = Vec::new();
        for (member, (digest, size)) in self.members.iter().zip(manifests) {
            let platform = Platform::of_config(&base_config(store, &member.id)?);
            let mut descriptor = json!({
                "mediaType": OCI_MANIFEST, "digest": digest, "size": size, "platform": described(&platform),
            });
            annotate_value(&mut descriptor, &member.annotations);
            descriptors.push(descriptor);
        }
        let mut index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": descriptors });
        annotate_value(&mut index, &self.annotations);
        Ok(index.to_string().into_bytes())
    }
}

/// Has names stand for images of several platforms, `own` for those who ask for none. The caller holds the content
/// lock.
///
/// # Errors
/// One of the images is not there any more; the store fails.
pub fn name_several(store: &Store, names: &[Reference], several: &Several, own: &Digest) -> Result<()> {
    store.update_catalog(|catalog| {
        let gone = several.members.iter().find(|member| !catalog.images.contains_key(&member.id));
        if let Some(gone) = gone {
            return Err(ImageError::NotFound(gone.id.to_string()));
        }
        for name in names {
            let entry = NameEntry { image: own.clone(), digest: None, several: Some(several.clone()) };
            catalog.names.insert(name.to_string(), entry);
        }
        Ok(())
    })?;
    names.iter().for_each(|name| super::tell_tag(store, own, name));
    Ok(())
}

/// A platform as descriptors have it.
fn described(platform: &Platform) -> Value {
    let text = platform.to_string();
    let mut parts = text.split('/');
    let mut value = json!({ "os": parts.next(), "architecture": parts.next() });
    if let Some(variant) = parts.next() {
        value["variant"] = json!(variant);
    }
    value
}

/// Adds annotations, if there are any.
pub(super) fn annotate_value(value: &mut Value, annotations: &Annotations) {
    if !annotations.is_empty() {
        value["annotations"] = json!(annotations);
    }
}

/// The annotations of a stored image's manifest.
pub(super) fn annotations_of(store: &Store, manifest: &Digest) -> Result<Annotations> {
    let bytes = store.blob(manifest)?;
    let value = bytes.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok()).unwrap_or_default();
    // What is no text is no annotation.
    Ok(serde_json::from_value(value["annotations"].clone()).unwrap_or_default())
}

/// Gives the manifest of a stored image these annotations and no others. The caller holds the content
/// lock.
///
/// # Errors
/// There is no such image; the store fails.
pub fn annotate(store: &Store, id: &Digest, annotations: &Annotations) -> Result<()> {
    let missing = || ImageError::NotFound(id.to_string());
    let entry = store.own_catalog()?.images.get(id).cloned().ok_or_else(missing)?;
    if annotations_of(store, &entry.manifest)? == *annotations {
        return Ok(());
    }
    let config = store.blob(id)?.ok_or_else(missing)?;
    let plain = store.layout_manifest((id, config.len() as u64), &entry.layers)?;
    let mut manifest: Value = serde_json::from_slice(&plain)
        .map_err(|source| ImageError::StoredConfig { image: id.clone(), source })?;
    annotate_value(&mut manifest, annotations);
    let bytes = if annotations.is_empty() { plain } else { manifest.to_string().into_bytes() };
    let manifest = store.put_blob(&bytes)?;
    store.update_catalog(|catalog| {
        if let Some(entry) = catalog.images.get_mut(id) {
            entry.manifest = manifest;
            entry.manifest_bytes = bytes.len() as u64;
            // What a registry has of it is another manifest.
            entry.original = None;
        }
        Ok::<_, StoreError>(())
    })?;
    Ok(())
}
