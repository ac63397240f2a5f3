//! Pulling: a name, the manifest that it stands for, the layers that are missing.

use std::path::Path;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use oci_spec::image::{Descriptor, ImageIndex, ImageManifest};

use super::client::{Client, Fetched};
use super::error::RegistryError;
use super::fetch::{Fetch, Layer};
use super::{LayerEvent, PARALLEL_LAYERS, Progress, Session};
use crate::id::Digest;
use crate::image::handed_over::{
    self, Candidate, LayerFile, MAX_CONFIG_BYTES, MAX_INDEX_DEPTH, is_attestation,
};
use crate::image::platform::Platform;
use crate::image::policy::Policy;
use crate::image::{self, Added, Choice, Entering, ImageError, Reference, ReferenceError, told};
use crate::store::{OCI_MANIFEST, Settings, Store, StoreError};
use crate::sys;

/// Bytes of one compressed layer; `ingest` has the limit for uncompressed ones.
const MAX_BLOB_BYTES: u64 = 1 << 40;

/// How much less of a processor layers get that come beside the largest: a third of its share.
const BESIDE_NICE: i32 = 5;

/// What of an image to pull, and how.
#[derive(Clone, Debug)]
pub struct PullOptions {
    /// The platform to choose from an index; this machine's where none is given.
    pub platform: Option<Platform>,
    /// Whether registries' layers stay in the store as they came, beside the packed ones.
    pub keep_compressed: bool,
    /// How many layers are under way at once.
    pub parallel_layers: usize,
}

impl Default for PullOptions {
    fn default() -> Self {
        let keep_compressed = Settings::current().keep_compressed;
        Self { platform: None, keep_compressed, parallel_layers: PARALLEL_LAYERS }
    }
}

/// Pulls what a typed name stands for: one image, or all tags of the repository.
///
/// # Errors
/// It is no name; no registry has it or gives it; what comes is not what it should be; the store fails.
pub fn pull(
    store: &Store,
    text: &str,
    choice: Choice,
    options: &PullOptions,
    progress: &dyn Progress,
) -> Result<Vec<Added>, ImageError> {
    let session = Session::new()?;
    let candidates = session.settings.candidates(text)?;
    // To the grammar, capitals before the first `/` are a host; to most who type them, a slip.
    let is_slip = |domain: &str| domain.chars().any(char::is_uppercase) && !domain.contains(['.', ':']);
    if candidates.iter().any(|candidate| is_slip(candidate.domain())) {
        return Err(ReferenceError::Uppercase(text.to_owned()).into());
    }
    store.sweep_leftovers()?;
    let lock = store.lock_content()?;
    let pulled = first(text, &candidates, |reference| match choice {
        Choice::One => {
            let reference = reference.clone().with_default_tag();
            let one = One { session: &session, store, options, progress };
            one.pull(&reference).map(|added| vec![added])
        }
        Choice::All => all_tags(&session, store, reference, options, progress),
    });
    drop(lock);
    if matches!(pulled, Err(ImageError::Store(StoreError::Full { .. }))) {
        // Layers that came before the disk was full. What cannot be collected now is so later.
        let _ = store.collect();
    }
    pulled
}

/// The first candidate of a short name that there is.
fn first<T>(
    text: &str,
    candidates: &[Reference],
    mut attempt: impl FnMut(&Reference) -> Result<T, ImageError>,
) -> Result<T, ImageError> {
    let mut tried = Vec::new();
    for candidate in candidates {
        match attempt(candidate) {
            Err(ImageError::Registry(error)) if error.is_absent() && candidates.len() > 1 => {
                tried.push(format!("{candidate}: {error}"));
            }
            outcome => return outcome,
        }
    }
    Err(RegistryError::ShortName { name: text.to_owned(), tried }.into())
}

fn all_tags(
    session: &Session,
    store: &Store,
    reference: &Reference,
    options: &PullOptions,
    progress: &dyn Progress,
) -> Result<Vec<Added>, ImageError> {
    if reference.tag().is_some() || reference.digest().is_some() {
        return Err(ImageError::TagWithAllTags);
    }
    let place = session.settings.push_place(reference)?;
    let auth = session.auth(reference, &place)?;
    let tags = session.client(&auth, &place, reference)?.tags(&reference.familiar())?;
    let mut added = Vec::new();
    for tag in tags {
        // A registry may hold what is no tag to us.
        let Ok(tagged) = format!("{reference}:{tag}").parse::<Reference>() else { continue };
        added.push(One { session, store, options, progress }.pull(&tagged)?);
    }
    Ok(added)
}

/// The pull of one image.
struct One<'a> {
    session: &'a Session,
    store: &'a Store,
    options: &'a PullOptions,
    progress: &'a dyn Progress,
}

/// What a name stands for at a registry.
struct Found {
    /// What the name's digest is: of the index, if there is one.
    digest: Digest,
    /// The index, where there is one.
    indexes: Vec<Vec<u8>>,
    manifest: Fetched,
}

impl One<'_> {
    fn pull(&self, reference: &Reference) -> Result<Added, ImageError> {
        Policy::of_user()?.check_registry(reference)?;
        let places = self.session.settings.pull_places(reference)?;
        let mut auths = Vec::new();
        for place in &places {
            auths.push(self.session.auth(reference, place)?);
        }
        let mut failure = None;
        for (number, place) in places.iter().enumerate() {
            let attempt = || -> Result<(Vec<Client<'_>>, Found), ImageError> {
                let rest = places[number..].iter().zip(&auths[number..]);
                let clients: Result<Vec<_>, _> =
                    rest.map(|(place, auth)| self.session.client(auth, place, reference)).collect();
                let clients = clients?;
                let client =
                    clients.first().ok_or_else(|| RegistryError::ManifestUnknown(reference.familiar()))?;
                let found = self.find(client, reference)?;
                Ok((clients, found))
            };
            match attempt() {
                Ok((clients, found)) => {
                    self.progress.image(reference);
                    return self.take(reference, &clients, found);
                }
                Err(ImageError::Registry(error)) if place.is_mirror && error.is_absent() => {
                    failure = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(failure.unwrap_or_else(|| RegistryError::ManifestUnknown(reference.familiar())).into())
    }

    /// Asks for the manifest of a name; of an index, for the one of the platform.
    fn find(&self, client: &Client<'_>, reference: &Reference) -> Result<Found, ImageError> {
        let name = reference.familiar();
        let asked = reference.digest().map(Digest::to_string).or_else(|| reference.tag().map(str::to_owned));
        let mut fetched = client.manifest(&asked.unwrap_or_default(), &name)?;
        let digest = fetched.digest.clone();
        let mut indexes = Vec::new();
        while fetched.is_index() {
            if indexes.len() == MAX_INDEX_DEPTH {
                return Err(ImageError::IndexDepth { path: name.into(), limit: MAX_INDEX_DEPTH });
            }
            let chosen = self.choose(&name, &fetched)?;
            indexes.push(fetched.bytes);
            fetched = client.manifest(chosen.as_str(), &name)?;
        }
        Ok(Found { digest, indexes, manifest: fetched })
    }

    /// The manifest of an index that is for the platform.
    fn choose(&self, name: &str, index: &Fetched) -> Result<Digest, ImageError> {
        let parsed: ImageIndex = handed_over::parse(Path::new(name), index.digest.as_str(), &index.bytes)?;
        let images: Vec<_> = parsed.manifests().iter().filter(|found| !is_attestation(found)).collect();
        let platforms: Vec<_> =
            images.iter().map(|found| found.platform().as_ref().map(Platform::of_descriptor)).collect();
        let asked = self.options.platform.as_ref();
        let Some(chosen) = Platform::choose(asked, &platforms).and_then(|chosen| images.get(chosen)) else {
            return Err(ImageError::no_platform(name.into(), asked, &platforms));
        };
        digest_of(name, chosen)
    }

    /// Brings the image of a manifest into the store.
    fn take(&self, reference: &Reference, clients: &[Client<'_>], found: Found) -> Result<Added, ImageError> {
        let candidate = self.candidate(reference, clients, &found)?;
        let layers = self.layers(&candidate)?;
        let known = self.store.own_catalog()?.images.get(&candidate.id).cloned();
        let is_new = known.is_none();
        let size_bytes = self.fetch(clients, &layers)?;
        for index in &found.indexes {
            self.store.put_blob(index)?;
        }
        let original = self.store.put_blob(&found.manifest.bytes)?;
        let mut entry = match known {
            Some(entry) => entry,
            None => image::new_entry(self.store, &candidate, size_bytes)?,
        };
        if self.has_all(&candidate)? {
            entry.original = Some(original.clone());
            // An image layout has OCI manifests only.
            if found.manifest.media_type == OCI_MANIFEST {
                entry.manifest = original;
                entry.manifest_bytes = found.manifest.bytes.len() as u64;
            }
        }
        self.store.merged_index(&entry.layers)?;
        let Candidate { id, names, .. } = candidate;
        let entering = Entering { id, entry, names, digest: Some(found.digest), is_new };
        let added = image::enter(self.store, entering)?;
        told::tell_transfer(self.store, "pull", &added.id, reference);
        Ok(added)
    }

    fn candidate(
        &self,
        reference: &Reference,
        clients: &[Client<'_>],
        found: &Found,
    ) -> Result<Candidate, ImageError> {
        let name = reference.familiar();
        let place = Path::new(&name);
        let manifest: ImageManifest =
            handed_over::parse(place, found.manifest.digest.as_str(), &found.manifest.bytes)?;
        check_artifact(&name, &manifest)?;
        let layers = manifest.layers().iter().map(|layer| {
            check_layer(&name, layer)?;
            let digest = digest_of(&name, layer)?;
            Ok(LayerFile { member: digest.to_string(), digest: Some(digest), size: Some(layer.size()) })
        });
        let layers = layers.collect::<Result<Vec<_>, ImageError>>()?;
        let id = digest_of(&name, manifest.config())?;
        let config = match self.store.blob(&id)? {
            Some(config) => config,
            None => {
                let mut failure = None;
                let mut config = None;
                for client in clients {
                    match client.small_blob(&id, MAX_CONFIG_BYTES, &format!("the config of {name}")) {
                        Ok(bytes) => config = Some(bytes),
                        Err(error) if error.is_absent() => failure = Some(error),
                        Err(error) => return Err(error.into()),
                    }
                    if config.is_some() {
                        break;
                    }
                }
                match config {
                    Some(config) => config,
                    None => return Err(failure.unwrap_or(RegistryError::ManifestUnknown(name)).into()),
                }
            }
        };
        // Without a tag an image keeps the digest that it was asked for by.
        let named = match reference.digest() {
            Some(digest) => reference.clone().with_digest(digest.clone()),
            None => reference.clone(),
        };
        let manifest = Some((found.manifest.digest.clone(), found.manifest.bytes.clone()));
        let member = id.to_string();
        handed_over::candidate(place, &member, config, id, layers, manifest, vec![named])
    }

    fn layers(&self, candidate: &Candidate) -> Result<Vec<Layer>, ImageError> {
        let pairs = candidate.layers.iter().zip(&candidate.diff_ids);
        let layers = pairs.filter_map(|(layer, diff_id)| {
            let digest = layer.digest.clone()?;
            Some(Layer { digest, size: layer.size.unwrap_or(0), diff_id: diff_id.clone() })
        });
        let mut distinct: Vec<Layer> = Vec::new();
        for layer in layers {
            if layer.size > MAX_BLOB_BYTES {
                let limit = format!("{MAX_BLOB_BYTES} bytes");
                return Err(ImageError::Bomb { what: layer.digest.to_string(), limit });
            }
            if !distinct.iter().any(|known| known.diff_id == layer.diff_id) {
                distinct.push(layer);
            }
        }
        Ok(distinct)
    }

    /// Fetches the layers that are missing, several at once. Gives the size of all files in all of them.
    fn fetch(&self, clients: &[Client<'_>], layers: &[Layer]) -> Result<u64, ImageError> {
        let mut missing = Vec::new();
        let mut size_bytes = 0;
        for layer in layers {
            match self.store.layer(&layer.diff_id)? {
                Some(stored) => {
                    size_bytes += stored.content_bytes;
                    self.progress.layer(&layer.digest, &LayerEvent::Exists);
                }
                None => {
                    self.progress.layer(&layer.digest, &LayerEvent::Waiting { total: layer.size });
                    missing.push(layer);
                }
            }
        }
        // The largest layer takes the longest, as one stream is uncompressed by one thread: it is begun
        // first, and the others run beside it (sched(7): nice values are per thread).
        missing.sort_by_key(|layer| std::cmp::Reverse(layer.size));
        let fetch = Fetch {
            store: self.store,
            sources: clients,
            progress: self.progress,
            keep_compressed: self.options.keep_compressed,
        };
        let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let results = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for number in 0..self.options.parallel_layers.clamp(1, missing.len().max(1)) {
                let (fetch, missing, next, failed, results) = (&fetch, &missing, &next, &failed, &results);
                scope.spawn(move || {
                    if number > 0 {
                        sys::process::be_nice(BESIDE_NICE);
                    }
                    while !failed.load(Ordering::Relaxed) {
                        let Some(layer) = missing.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
                        let result = fetch.layer(layer).map(|stored| stored.content_bytes);
                        failed.fetch_or(result.is_err(), Ordering::Relaxed);
                        results.lock().unwrap_or_else(PoisonError::into_inner).push(result);
                    }
                });
            }
        });
        let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
        results.into_iter().try_fold(size_bytes, |sum, result| Ok(sum + result?))
    }

    /// Whether the store has every blob of a manifest.
    fn has_all(&self, candidate: &Candidate) -> Result<bool, ImageError> {
        for digest in candidate.layers.iter().filter_map(|layer| layer.digest.as_ref()) {
            if self.store.open_blob(digest)?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

const CONFIGS: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
const LAYERS: [&str; 6] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];

/// Registries hold other things than images: charts, signatures, modules.
fn check_artifact(name: &str, manifest: &ImageManifest) -> Result<(), RegistryError> {
    let kind = manifest.config().media_type().to_string();
    if CONFIGS.contains(&kind.as_str()) {
        return Ok(());
    }
    let kind = manifest.artifact_type().as_ref().map_or(kind, ToString::to_string);
    let reason = format!("it is not a container image but an artifact of type {kind:?}");
    Err(RegistryError::Unsupported { what: name.to_owned(), reason })
}

fn check_layer(name: &str, layer: &Descriptor) -> Result<(), RegistryError> {
    let kind = layer.media_type().to_string();
    if LAYERS.contains(&kind.as_str()) {
        return Ok(());
    }
    let reason = if kind.contains("nondistributable") || kind.contains(".foreign.") {
        "it has a foreign layer, which is not in the registry but at an address of its maker's (Windows images do); such are not fetched".to_owned()
    } else {
        format!("it has a layer of the unknown type {kind:?}")
    };
    Err(RegistryError::Unsupported { what: name.to_owned(), reason })
}

fn digest_of(name: &str, descriptor: &Descriptor) -> Result<Digest, ImageError> {
    let digest = descriptor.digest().to_string();
    digest.parse().map_err(|_| ImageError::Algorithm { path: name.into(), digest })
}
