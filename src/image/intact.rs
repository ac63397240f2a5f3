//! Layers that were not on the disk when the machine stopped (see `store::settle`), made again from
//! the blobs that they came as, where they came as blobs.

use super::error::{ImageError, Result};
use super::ingest::{self, Expected};
use crate::store::{Durable, ImageEntry, Store, StoreError, settle};

/// Sees to it that an image's layers are what their names say, as far as a stop of the machine goes.
/// Costs one look a layer otherwise. The caller holds the content lock.
pub(super) fn ensure(store: &Store, entry: &ImageEntry) -> Result<()> {
    let tars: Vec<_> = entry.layers.iter().map(|layer| store.layer_tar(layer)).collect();
    match settle::first_damaged(&tars)? {
        Some(_) => restore(store, entry),
        None => Ok(()),
    }
}

/// As [`ensure`], for whoever can bring a lost layer: whether there is none.
pub(super) fn is_whole(store: &Store, entry: &ImageEntry) -> Result<bool> {
    match ensure(store, entry) {
        Err(ImageError::Store(StoreError::Lost { .. })) => Ok(false),
        result => result.map(|()| true),
    }
}

fn restore(store: &Store, entry: &ImageEntry) -> Result<()> {
    let blobs = match &entry.original {
        Some(manifest) => store.manifest_layers(manifest)?,
        None => Vec::new(),
    };
    for (number, diff_id) in entry.layers.iter().enumerate() {
        if store.layer(diff_id)?.is_some() {
            continue;
        }
        let lost = || ImageError::Store(StoreError::Lost { layer: diff_id.clone() });
        let digest = blobs.get(number).ok_or_else(lost)?;
        let blob = store.open_blob(digest)?.ok_or_else(lost)?;
        let expected = Expected { what: digest.as_str(), digest: Some(digest), size: None, diff_id };
        ingest::store_layer(store, Box::new(blob), &expected, Durable::Now)?;
    }
    Ok(())
}
