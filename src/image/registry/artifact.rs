//! What lies in a registry like an image but is none: a configuration of some type, and layers. Build
//! caches are kept so.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use oci_spec::image::{ImageIndex, ImageManifest};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::client::Client;
use super::error::RegistryError;
use super::fetch::{Fetch, Layer};
use super::push::{Format, Push};
use super::upload::Upload;
use super::{LayerEvent, Progress, Session};
use crate::id::Digest;
use crate::image::handed_over::{self, MAX_CONFIG_BYTES, is_attestation};
use crate::image::policy::Policy;
use crate::image::{ImageError, Reference};
use crate::store::{OCI_MANIFEST, Store};

/// Manifests of one index that are looked at: more platforms than anyone builds for.
const MAX_MANIFESTS: usize = 64;

/// A manifest with its configuration.
#[derive(Clone, Debug)]
pub struct Artifact {
    /// The configuration's media type.
    pub config_type: String,
    /// The configuration, verified.
    pub config: Vec<u8>,
    /// Digests and sizes of the layers as the registry has them, lowest first.
    pub layers: Vec<(Digest, u64)>,
}

/// Nobody is told.
struct Silent;

impl Progress for Silent {
    fn image(&self, _: &Reference) {}
    fn layer(&self, _: &Digest, _: &LayerEvent) {}
}

/// Fetches what a name stands for, without the layers: of an index, all of its manifests.
///
/// # Errors
/// There is no such name; the registry does not answer; what comes is not what it should be.
pub fn fetch_artifacts(reference: &Reference) -> Result<Vec<Artifact>, ImageError> {
    Policy::of_user()?.check_registry(reference)?;
    let session = Session::new()?;
    let place = session.settings.push_place(reference)?;
    let auth = session.auth(reference, &place)?;
    let client = session.client(&auth, &place, reference)?;
    let name = reference.familiar();
    let asked = reference.digest().map(Digest::to_string).or_else(|| reference.tag().map(str::to_owned));
    let fetched = client.manifest(&asked.unwrap_or_default(), &name)?;
    if !fetched.is_index() {
        return Ok(vec![artifact(&client, &name, &fetched.bytes)?]);
    }
    let index: ImageIndex = handed_over::parse(Path::new(&name), fetched.digest.as_str(), &fetched.bytes)?;
    let listed = index.manifests().iter().filter(|found| !is_attestation(found));
    listed
        .take(MAX_MANIFESTS)
        .map(|found| {
            let manifest = client.manifest(found.digest().as_ref(), &name)?;
            artifact(&client, &name, &manifest.bytes)
        })
        .collect()
}

fn artifact(client: &Client<'_>, name: &str, manifest: &[u8]) -> Result<Artifact, ImageError> {
    let parsed: ImageManifest = handed_over::parse(Path::new(name), "its manifest", manifest)?;
    let digest_of = |descriptor: &oci_spec::image::Descriptor| {
        let digest = descriptor.digest().to_string();
        digest.parse::<Digest>().map_err(|_| ImageError::Algorithm { path: name.into(), digest })
    };
    let config = client.small_blob(
        &digest_of(parsed.config())?,
        MAX_CONFIG_BYTES,
        &format!("the config of {name}"),
    )?;
    let layers = parsed.layers().iter().map(|layer| Ok((digest_of(layer)?, layer.size())));
    Ok(Artifact {
        config_type: parsed.config().media_type().to_string(),
        config,
        layers: layers.collect::<Result<_, ImageError>>()?,
    })
}

/// Brings one layer into the store. The caller holds the content lock.
///
/// # Errors
/// The registry does not give it; it is not what it should be; the store fails.
pub fn fetch_layer(
    store: &Store,
    reference: &Reference,
    blob: (&Digest, u64),
    diff_id: &Digest,
) -> Result<(), ImageError> {
    let session = Session::new()?;
    let place = session.settings.push_place(reference)?;
    let auth = session.auth(reference, &place)?;
    let sources = [session.client(&auth, &place, reference)?];
    let fetch = Fetch { store, sources: &sources, progress: &Silent, keep_compressed: false };
    let layer = Layer { digest: blob.0.clone(), size: blob.1, diff_id: diff_id.clone() };
    fetch.layer(&layer).map(drop)
}

/// Puts a configuration and layers of the store to a registry, under a name. `known` says which layers
/// are there already, and how. The caller holds the content lock.
///
/// # Errors
/// The registry does not take it; the store fails.
pub fn push_artifact(
    store: &Store,
    reference: &Reference,
    config: (&str, &[u8]),
    layers: &[Digest],
    format: Format,
    known: &BTreeMap<Digest, (Digest, u64)>,
) -> Result<Digest, ImageError> {
    let session = Session::new()?;
    let place = session.settings.push_place(reference)?;
    let auth = session.auth(reference, &place)?;
    let client = session.client(&auth, &place, reference)?;
    let catalog = store.catalog()?;
    let push = Push { store, client: &client, catalog: &catalog, name: reference, progress: &Silent };
    let mut descriptors = Vec::new();
    for layer in layers {
        let there = match known.get(layer) {
            Some((digest, size)) if client.has_blob(digest)? => Some((digest.clone(), *size)),
            _ => None,
        };
        let (digest, size) = match there {
            Some(there) => there,
            None => {
                let (digest, size) = push.compress_layer(layer, format)?;
                push.layer(&digest, size)?;
                (digest, size)
            }
        };
        descriptors.push(json!({ "mediaType": format.media_type(), "digest": digest, "size": size }));
    }
    let (config_type, config) = config;
    let id = Digest::from_bytes(&Sha256::digest(config).into());
    upload(&client, &id, config)?;
    let manifest = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": { "mediaType": config_type, "digest": id, "size": config.len() },
        "layers": descriptors,
    });
    let bytes = manifest.to_string().into_bytes();
    let digest = Digest::from_bytes(&Sha256::digest(&bytes).into());
    let tag = reference.tag().map_or_else(|| digest.to_string(), str::to_owned);
    client.put_manifest(&tag, OCI_MANIFEST, &bytes, &reference.familiar())?;
    Ok(digest)
}

/// Brings a small blob to the registry, if it is not there.
pub(super) fn upload(client: &Client<'_>, digest: &Digest, bytes: &[u8]) -> Result<(), ImageError> {
    if client.has_blob(digest)? {
        return Ok(());
    }
    let shared: Arc<[u8]> = bytes.into();
    let length = shared.len() as u64;
    let open = &mut |from| -> Result<Box<dyn Read>, RegistryError> {
        let mut reader = io::Cursor::new(Arc::clone(&shared));
        reader.set_position(from);
        Ok(Box::new(reader))
    };
    Ok(Upload { client, digest, length, open }.run()?)
}
