//! Pushing: the blobs that the registry does not have, then the manifest.
//!
//! An image that came from a registry goes out with the manifest that it came with, so it keeps its
//! digest. Any other is compressed layer by layer, always to the same bytes; what comes out is kept, so
//! that the next push finds it and an image that was pushed is as whole as one that was pulled.

use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use flate2::{Compression, GzBuilder};
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::client::Client;
use super::error::RegistryError;
use super::upload::Upload;
use super::{LayerEvent, PARALLEL_LAYERS, Progress, Session};
use crate::id::Digest;
use crate::image::several::{OCI_INDEX, annotate_value, annotations_of};
use crate::image::{ImageError, Platform, Reference, find::named, find_for, intact, told};
use crate::store::{Catalog, ImageEntry, Member, OCI_MANIFEST, Settings, Several, Store, StoreError};

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// zlib's own compromise, and docker's.
const GZIP_LEVEL: u32 = 6;
/// zstd's own default, and podman's.
const ZSTD_LEVEL: i32 = 3;
const BUFFER_BYTES: usize = 256 << 10;

/// How layers that are not kept compressed are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// What every registry and engine takes.
    #[default]
    Gzip,
    /// Smaller and faster; OCI only.
    Zstd,
}

impl Format {
    /// What layers are called that are compressed so.
    #[must_use]
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// An image that was pushed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// Its name at the registry.
    pub name: Reference,
    /// The manifest's digest.
    pub digest: Digest,
    /// The manifest's size in bytes.
    pub size: u64,
}

/// What of a name is pushed, and how.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    /// All tags of the repository.
    pub all_tags: bool,
    /// Of a name that stands for several platforms the image for this one; it alone.
    pub platform: Option<Platform>,
    /// Layers are compressed anew in it.
    pub format: Option<Format>,
}

/// Pushes one image, or all tags of a repository. A name that stands for images of several platforms is pushed
/// with all of them, and the index over them.
///
/// # Errors
/// There is no such image; the registry does not take it; the store fails.
pub fn push(
    store: &Store,
    text: &str,
    choice: &Choice,
    progress: &dyn Progress,
) -> Result<Vec<Pushed>, ImageError> {
    let reference: Reference = text.parse()?;
    let session = Session::new()?;
    let lock = store.lock_content()?;
    let catalog = store.catalog()?;
    let names = if choice.all_tags {
        if reference.tag().is_some() || reference.digest().is_some() {
            return Err(ImageError::TagWithAllTags);
        }
        let of_repository =
            |name: &Reference| name.repository() == reference.repository() && name.tag().is_some();
        catalog.names.keys().filter_map(|name| name.parse().ok()).filter(of_repository).collect()
    } else {
        vec![reference.clone().with_default_tag()]
    };
    if names.is_empty() {
        return Err(ImageError::NotTagged(reference.familiar_repository()));
    }
    let place = session.settings.push_place(&reference)?;
    let auth = session.auth(&reference, &place)?;
    let client = session.client(&auth, &place, &reference)?;
    progress.image(&reference);
    let mut pushed = Vec::new();
    for name in names {
        let missing = || ImageError::NotTagged(name.familiar_repository());
        let named = named(&catalog, &name).ok_or_else(missing)?;
        let push = Push { store, client: &client, catalog: &catalog, name: &name, progress };
        pushed.push(match (&choice.platform, &named.several) {
            (None, Some(several)) => push.several(&named.image, several, choice.format)?,
            (platform, _) => {
                let id = find_for(store, &catalog, &name.to_string(), platform.as_ref())?;
                push.image(&id, catalog.images.get(&id).ok_or_else(missing)?, choice.format)?
            }
        });
    }
    drop(lock);
    if !Settings::current().keep_compressed {
        // The compressed layers were made for this push alone. What cannot be collected now is so later.
        let _ = store.collect();
    }
    Ok(pushed)
}

/// A manifest on its way, with what it refers to.
struct Outgoing {
    media_type: String,
    bytes: Vec<u8>,
    layers: Vec<(Digest, u64)>,
}

/// The parts of a registry's manifest that a push needs.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    #[serde(default)]
    media_type: Option<String>,
    layers: Vec<ManifestLayer>,
}

#[derive(Deserialize)]
struct ManifestLayer {
    digest: Digest,
    size: u64,
}

/// One push.
pub(super) struct Push<'a> {
    pub(super) store: &'a Store,
    pub(super) client: &'a Client<'a>,
    pub(super) catalog: &'a Catalog,
    pub(super) name: &'a Reference,
    pub(super) progress: &'a dyn Progress,
}

impl Push<'_> {
    fn image(&self, id: &Digest, entry: &ImageEntry, format: Option<Format>) -> Result<Pushed, ImageError> {
        let (outgoing, digest) = self.content(id, entry, format)?;
        let tag = self.name.tag().map_or_else(|| digest.to_string(), str::to_owned);
        self.client.put_manifest(&tag, &outgoing.media_type, &outgoing.bytes, &self.name.familiar())?;
        self.record(id, &outgoing, &digest)?;
        told::tell_transfer(self.store, "push", id, self.name);
        Ok(Pushed { name: self.name.clone(), digest, size: outgoing.bytes.len() as u64 })
    }

    /// Pushes images of several platforms as one, each by its digest and the index over them by the tag.
    fn several(&self, own: &Digest, several: &Several, format: Option<Format>) -> Result<Pushed, ImageError> {
        let familiar = self.name.familiar();
        let mut manifests = Vec::new();
        for Member { id, .. } in &several.members {
            let entry = self.catalog.images.get(id).ok_or_else(|| ImageError::NotFound(id.to_string()))?;
            let (outgoing, digest) = self.content(id, entry, format)?;
            self.client.put_manifest(digest.as_str(), &outgoing.media_type, &outgoing.bytes, &familiar)?;
            self.record(id, &outgoing, &digest)?;
            manifests.push((digest, outgoing.bytes.len() as u64));
        }
        let bytes = several.index(self.store, &manifests)?;
        let digest = self.store.put_blob(&bytes)?;
        let tag = self.name.tag().map_or_else(|| digest.to_string(), str::to_owned);
        self.client.put_manifest(&tag, OCI_INDEX, &bytes, &familiar)?;
        self.store.update_catalog(|catalog| {
            let named = catalog.names.get_mut(&self.name.to_string());
            if let Some(named) = named.filter(|named| named.several.as_ref() == Some(several)) {
                named.digest = Some(digest.clone());
            }
            Ok::<_, StoreError>(())
        })?;
        told::tell_transfer(self.store, "push", own, self.name);
        Ok(Pushed { name: self.name.clone(), digest, size: bytes.len() as u64 })
    }

    /// Brings all of an image but its manifest to the registry; gives that, and its digest.
    fn content(
        &self,
        id: &Digest,
        entry: &ImageEntry,
        format: Option<Format>,
    ) -> Result<(Outgoing, Digest), ImageError> {
        let kept = if format.is_none() { self.original(entry)? } else { None };
        let outgoing = match kept {
            Some(outgoing) => outgoing,
            None => self.compress(id, entry, format.unwrap_or_default())?,
        };
        for (digest, size) in &outgoing.layers {
            self.progress.layer(digest, &LayerEvent::Waiting { total: *size });
        }
        in_parallel(&outgoing.layers, |(digest, size)| self.layer(digest, *size))?;
        let config = self.store.blob(id)?.ok_or_else(|| ImageError::NotFound(id.to_string()))?;
        super::artifact::upload(self.client, id, &config)?;
        let digest = Digest::from_bytes(&Sha256::digest(&outgoing.bytes).into());
        Ok((outgoing, digest))
    }

    /// The manifest that the image came with, if every blob of it is here.
    fn original(&self, entry: &ImageEntry) -> Result<Option<Outgoing>, ImageError> {
        let Some(original) = &entry.original else { return Ok(None) };
        let Some(bytes) = self.store.blob(original)? else { return Ok(None) };
        let Ok(manifest) = serde_json::from_slice::<Manifest>(&bytes) else { return Ok(None) };
        let mut layers = Vec::new();
        for layer in manifest.layers {
            if self.store.open_blob(&layer.digest)?.is_none() {
                return Ok(None);
            }
            layers.push((layer.digest, layer.size));
        }
        let media_type = manifest.media_type.unwrap_or_else(|| OCI_MANIFEST.to_owned());
        Ok(Some(Outgoing { media_type, bytes, layers }))
    }

    /// Compresses the layers and makes a manifest of them.
    fn compress(&self, id: &Digest, entry: &ImageEntry, format: Format) -> Result<Outgoing, ImageError> {
        intact::ensure(self.store, entry)?;
        let compressed = in_parallel(&entry.layers, |layer| self.compress_layer(layer, format))?;
        let config = self.store.blob(id)?.ok_or_else(|| ImageError::NotFound(id.to_string()))?;
        let descriptors: Vec<_> = compressed
            .iter()
            .map(|(digest, size)| json!({ "mediaType": format.media_type(), "digest": digest, "size": size }))
            .collect();
        let mut manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": { "mediaType": CONFIG, "digest": id, "size": config.len() },
            "layers": descriptors,
        });
        annotate_value(&mut manifest, &annotations_of(self.store, &entry.manifest)?);
        let bytes = manifest.to_string().into_bytes();
        Ok(Outgoing { media_type: OCI_MANIFEST.to_owned(), bytes, layers: compressed })
    }

    pub(super) fn compress_layer(&self, layer: &Digest, format: Format) -> Result<(Digest, u64), ImageError> {
        let path = self.store.layer_tar(layer);
        let mut tar = File::open(&path).map_err(|source| ImageError::Read { path: path.clone(), source })?;
        let mut staged = self.store.new_blob()?;
        let mut out = Hashing { inner: &mut staged, hash: Sha256::new(), bytes: 0, failure: None };
        let result = compress(&mut tar, &mut out, format);
        let Hashing { hash, bytes, failure, .. } = out;
        match (result, failure) {
            (_, Some(error)) => return Err(error.into()),
            (Err(source), None) => return Err(ImageError::Read { path, source }),
            (Ok(()), None) => {}
        }
        let digest = Digest::from_bytes(&hash.finalize().into());
        staged.finish(&digest)?;
        Ok((digest, bytes))
    }

    /// Brings one layer to the registry, the cheapest way first.
    pub(super) fn layer(&self, digest: &Digest, size: u64) -> Result<(), ImageError> {
        if self.client.has_blob(digest)? {
            self.progress.layer(digest, &LayerEvent::Exists);
            return Ok(());
        }
        for from in self.other_repositories(digest) {
            if self.client.mount(digest, &from)? {
                self.progress.layer(digest, &LayerEvent::Mounted { from });
                return Ok(());
            }
        }
        let missing = || RegistryError::Unsupported {
            what: self.name.familiar(),
            reason: format!("its layer {digest} has gone from the store meanwhile"),
        };
        let open = &mut |from| -> Result<Box<dyn Read + '_>, RegistryError> {
            let mut file = self.store.open_blob(digest).ok().flatten().ok_or_else(missing)?;
            file.seek(SeekFrom::Start(from)).map_err(|_| missing())?;
            Ok(Box::new(Counting { inner: file, digest, progress: self.progress }))
        };
        Upload { client: self.client, digest, length: size, open }.run()?;
        self.progress.layer(digest, &LayerEvent::Complete);
        Ok(())
    }

    /// Repositories of the same registry that should have a layer: images that came from there have it.
    fn other_repositories(&self, digest: &Digest) -> Vec<String> {
        /// Tried before a layer is uploaded after all.
        const MAX_MOUNTS: usize = 3;
        let mut found = Vec::new();
        for (name, named) in &self.catalog.names {
            let Ok(name) = name.parse::<Reference>() else { continue };
            let is_other = name.domain() == self.name.domain() && name.path() != self.name.path();
            if !is_other || named.digest.is_none() || found.iter().any(|path| path == name.path()) {
                continue;
            }
            let original = self.catalog.images.get(&named.image).and_then(|entry| entry.original.clone());
            let manifest = original.and_then(|original| self.store.blob(&original).ok().flatten());
            let manifest = manifest.and_then(|bytes| serde_json::from_slice::<Manifest>(&bytes).ok());
            if manifest.is_some_and(|manifest| manifest.layers.iter().any(|layer| layer.digest == *digest)) {
                found.push(name.path().to_owned());
            }
        }
        found.truncate(MAX_MOUNTS);
        found
    }

    /// Notes what the name now stands for at the registry, and that the image is whole as pushed.
    fn record(&self, id: &Digest, outgoing: &Outgoing, digest: &Digest) -> Result<(), ImageError> {
        self.store.put_blob(&outgoing.bytes)?;
        self.store.update_catalog(|catalog| {
            if let Some(named) = catalog
                .names
                .get_mut(&self.name.to_string())
                .filter(|named| named.images().any(|one| one == id))
            {
                named.digest = Some(digest.clone());
            }
            let whole = catalog.images.get_mut(id).filter(|entry| entry.original.is_none());
            if let Some(entry) = whole.filter(|_| Settings::current().keep_compressed) {
                entry.original = Some(digest.clone());
                entry.manifest = digest.clone();
                entry.manifest_bytes = outgoing.bytes.len() as u64;
            }
            Ok::<_, StoreError>(())
        })?;
        Ok(())
    }
}

/// Does something for each item, several at once; the results keep the items' order.
fn in_parallel<I: Sync, T: Send>(
    items: &[I],
    work: impl Fn(&I) -> Result<T, ImageError> + Sync,
) -> Result<Vec<T>, ImageError> {
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let results = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..PARALLEL_LAYERS.min(items.len()) {
            scope.spawn(|| {
                while !failed.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(number) else { break };
                    let result = work(item);
                    failed.fetch_or(result.is_err(), Ordering::Relaxed);
                    results.lock().unwrap_or_else(PoisonError::into_inner).push((number, result));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(number, _)| *number);
    results.into_iter().map(|(_, result)| result).collect()
}

/// Compresses so that the same tar always gives the same bytes: no time, no name.
///
/// # Errors
/// The tar cannot be read, or what comes out not be written.
pub fn compress(tar: &mut File, out: &mut impl Write, format: Format) -> io::Result<()> {
    let mut reader = io::BufReader::with_capacity(BUFFER_BYTES, tar);
    match format {
        Format::Gzip => {
            let mut encoder = GzBuilder::new().operating_system(255).write(out, Compression::new(GZIP_LEVEL));
            io::copy(&mut reader, &mut encoder)?;
            encoder.finish().map(drop)
        }
        Format::Zstd => {
            let mut encoder = zstd::Encoder::new(out, ZSTD_LEVEL)?;
            encoder.include_checksum(true)?;
            io::copy(&mut reader, &mut encoder)?;
            encoder.finish().map(drop)
        }
    }
}

/// Hashes and counts what is written to a new blob.
struct Hashing<'a> {
    inner: &'a mut crate::store::NewBlob,
    hash: Sha256,
    bytes: u64,
    /// The store's own error, which io::Error could not carry as such.
    failure: Option<StoreError>,
}

impl Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Err(error) = self.inner.write(bytes) {
            self.failure = Some(error);
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Tells what passes.
struct Counting<'a> {
    inner: File,
    digest: &'a Digest,
    progress: &'a dyn Progress,
}

impl Read for Counting<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.progress.layer(self.digest, &LayerEvent::Transferred { bytes: count as u64 });
        Ok(count)
    }
}
