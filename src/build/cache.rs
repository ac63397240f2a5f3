//! The cache of steps on its way to other machines and back: `--cache-to`, `--cache-from`.
//!
//! ```text
//! a manifest, in an OCI image layout (type=local) or a registry (type=registry):
//!   config  application/vnd.hostel.buildcache.config.v1+json
//!           { "version": 1, "layers": [diff id, ...],
//!             "steps": [{ "keys": [...], "layer": 3, "bytes": .., "created": .., "description": .. }] }
//!   layers  compressed, in the order of "layers"
//! type=inline: the same object, without "layers", in the image's own configuration under
//!   "hostel.buildcache.v1"; its layers are the image's
//! ```
//!
//! BuildKit's own cache records cannot be written by others than BuildKit (its keys are digests of its
//! internal operations), so this format is hostel's; where the records lie, and what is in the layers,
//! is as with BuildKit.
//!
//! What must stay true: a layer is taken only if it has the diff id that its record says; a record is
//! believed, as one of the own store is, because whoever may write the cache may decide what steps
//! give; a cache that is not there, or is broken, makes a build slower and never fails it.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::error::Problem;
use super::progress::Progress;
use crate::id::Digest;
use crate::image::registry::{self, Format};
use crate::image::{self, Reference};
use crate::store::{CachedStep, OCI_MANIFEST, Store};

const CONFIG_TYPE: &str = "application/vnd.hostel.buildcache.config.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Where an image's configuration has the cache that came with it.
pub(super) const INLINE: &str = "hostel.buildcache.v1";
const VERSION: u32 = 1;
/// Records that are taken of one cache.
const MAX_STEPS: usize = 100_000;
/// Bytes of a layout's JSON files.
const MAX_JSON_BYTES: u64 = 64 << 20;

/// `--cache-from`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheSource {
    /// An OCI image layout.
    Local {
        /// Its directory.
        directory: PathBuf,
        /// Which of the caches in it.
        tag: String,
        /// The manifest that it has to be.
        digest: Option<Digest>,
    },
    /// A cache, or an image with a cache inside, of a registry.
    Registry(Reference),
}

/// `--cache-to`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheTarget {
    /// Where to.
    pub place: CachePlace,
    /// `mode=max`: every step, not only those of the result.
    pub all: bool,
    /// How layers are compressed.
    pub format: Format,
    /// Failing to write it does not fail the build.
    pub ignore_error: bool,
}

/// Where a cache is written to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CachePlace {
    /// An OCI image layout.
    Local {
        /// Its directory, made where it is not there.
        directory: PathBuf,
        /// What the cache is called in it.
        tag: String,
    },
    /// A name of a registry.
    Registry(Reference),
    /// The image itself.
    Inline,
}

impl std::fmt::Display for CacheSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Local { directory, .. } => write!(f, "local directory {}", directory.display()),
            Self::Registry(name) => write!(f, "{name}"),
        }
    }
}

/// A step that a build did, or found done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepDone {
    /// What stands for it.
    pub keys: Vec<Digest>,
    /// What it gave.
    pub step: CachedStep,
    /// Whether its layer is one of the result's.
    pub of_result: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Config {
    version: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    layers: Vec<Digest>,
    steps: Vec<Record>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    keys: Vec<Digest>,
    /// Which of the layers; none where the step changed nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    layer: Option<usize>,
    bytes: u64,
    created: Timestamp,
    description: String,
}

/// Records, and digests and sizes of the layers as they lie there.
type Cache = (Config, Vec<(Digest, u64)>);

impl Config {
    /// The records of steps, with the layers that they name.
    fn of(steps: &[StepDone], all: bool) -> Self {
        let mut config = Self { version: VERSION, layers: Vec::new(), steps: Vec::new() };
        for done in steps.iter().filter(|done| all || done.of_result) {
            let layer = done.step.layer.as_ref().map(|layer| {
                let known = config.layers.iter().position(|known| known == layer);
                known.unwrap_or_else(|| {
                    config.layers.push(layer.clone());
                    config.layers.len() - 1
                })
            });
            config.steps.push(Record::of(done, layer));
        }
        config
    }
}

impl Record {
    fn of(done: &StepDone, layer: Option<usize>) -> Self {
        Self {
            keys: done.keys.clone(),
            layer,
            bytes: done.step.bytes,
            created: done.step.created,
            description: done.step.description.clone(),
        }
    }
}

/// What an image's configuration has under [`INLINE`].
pub(super) fn inline(steps: &[StepDone], layers: &[Digest]) -> Value {
    let of_result = steps.iter().filter(|done| done.of_result);
    let records: Vec<Record> = of_result
        .filter_map(|done| {
            let place = match &done.step.layer {
                Some(layer) => Some(layers.iter().position(|known| known == layer)?),
                None => None,
            };
            Some(Record::of(done, place))
        })
        .collect();
    json!({ "version": VERSION, "steps": records })
}

/// Where a layer of a cache may be had.
#[derive(Clone, Debug)]
struct Remote {
    source: usize,
    blob: Digest,
    bytes: u64,
}

/// What other machines did.
#[derive(Debug, Default)]
pub(super) struct Imported {
    sources: Vec<CacheSource>,
    steps: HashMap<Digest, (CachedStep, Option<Remote>)>,
    /// Layers that could not be had, which are not asked for again.
    lost: RefCell<HashSet<Digest>>,
}

impl Imported {
    /// Reads the records of caches. Those that cannot be had are told, and left out.
    pub(super) fn read(sources: &[CacheSource], progress: &mut Progress) -> Self {
        let mut imported = Self { sources: sources.to_vec(), ..Self::default() };
        for (number, source) in sources.iter().enumerate() {
            let vertex = progress.start(&format!("importing cache manifest from {source}"));
            match found(source) {
                Ok(found) => {
                    for (config, blobs) in found {
                        imported.take(number, config, &blobs);
                    }
                    progress.done(vertex);
                }
                Err(problem) => progress.failed(vertex, &problem.to_string()),
            }
        }
        imported
    }

    fn take(&mut self, source: usize, config: Config, blobs: &[(Digest, u64)]) {
        for record in config.steps.into_iter().take(MAX_STEPS) {
            let place = match record.layer {
                None => None,
                Some(number) => match (config.layers.get(number), blobs.get(number)) {
                    (Some(layer), Some((blob, bytes))) => {
                        Some((layer.clone(), Remote { source, blob: blob.clone(), bytes: *bytes }))
                    }
                    _ => continue,
                },
            };
            let (layer, remote) = place.unzip();
            let step = CachedStep {
                layer,
                bytes: record.bytes,
                created: record.created,
                description: record.description,
            };
            for key in record.keys {
                self.steps.entry(key).or_insert_with(|| (step.clone(), remote.clone()));
            }
        }
    }

    /// What a step gave elsewhere; its layer is brought into the store, and the record kept.
    pub(super) fn find(&self, store: &Store, key: &Digest) -> Result<Option<CachedStep>, Problem> {
        let Some((step, remote)) = self.steps.get(key) else { return Ok(None) };
        if let (Some(layer), Some(remote)) = (&step.layer, remote)
            && store.layer(layer)?.is_none()
        {
            if self.lost.borrow().contains(layer) {
                return Ok(None);
            }
            let brought = match &self.sources[remote.source] {
                CacheSource::Local { directory, .. } => {
                    let open = || File::open(directory.join(blob_path(&remote.blob)));
                    open().map_err(Problem::from).and_then(|file| {
                        let blob = (&remote.blob, remote.bytes);
                        Ok(image::take_layer(store, Box::new(file), blob, layer)?)
                    })
                }
                CacheSource::Registry(name) => {
                    registry::fetch_layer(store, name, (&remote.blob, remote.bytes), layer)
                        .map_err(Problem::from)
                }
            };
            if let Err(problem) = brought {
                eprintln!(
                    "WARNING: a layer of the cache {} cannot be had: {problem}",
                    self.sources[remote.source]
                );
                self.lost.borrow_mut().insert(layer.clone());
                return Ok(None);
            }
        }
        store.keep_step(key, step)?;
        Ok(Some(step.clone()))
    }
}

/// Reads a cache: its records, and its layers as they lie there.
fn found(source: &CacheSource) -> Result<Vec<Cache>, Problem> {
    match source {
        CacheSource::Local { directory, tag, digest } => {
            let entry = local_entry(directory, tag, digest.as_ref())?.ok_or_else(|| {
                Problem::new(format!("there is no cache {tag:?} in {}", directory.display()))
            })?;
            Ok(vec![local_cache(directory, &entry)?])
        }
        CacheSource::Registry(name) => {
            let artifacts = registry::fetch_artifacts(name)?;
            let mut caches = Vec::new();
            for artifact in artifacts {
                if artifact.config_type == CONFIG_TYPE {
                    caches.push((config(&artifact.config)?, artifact.layers));
                    continue;
                }
                let image: Value = serde_json::from_slice(&artifact.config).map_err(Problem::new)?;
                if image[INLINE].is_object() {
                    let mut inline: Config =
                        serde_json::from_value(image[INLINE].clone()).map_err(Problem::new)?;
                    inline.layers = image::diff_ids(&image, &name.to_string())?;
                    caches.push((inline, artifact.layers));
                }
            }
            if caches.is_empty() {
                return Err(Problem::new(format!(
                    "{name} is neither a cache of hostel's nor an image with one (--cache-to type=inline)"
                )));
            }
            Ok(caches)
        }
    }
}

fn config(bytes: &[u8]) -> Result<Config, Problem> {
    let config: Config = serde_json::from_slice(bytes).map_err(Problem::new)?;
    if config.version != VERSION {
        return Err(Problem::new(format!("the cache is of version {}, {VERSION} is known", config.version)));
    }
    Ok(config)
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn read_limited(path: &Path) -> Result<Vec<u8>, Problem> {
    use io::Read as _;
    let failed = |error: io::Error| Problem::new(format!("cannot read {}: {error}", path.display()));
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(MAX_JSON_BYTES).read_to_end(&mut bytes)).map_err(failed)?;
    Ok(bytes)
}

/// The descriptor of a cache in a layout.
fn local_entry(directory: &Path, tag: &str, digest: Option<&Digest>) -> Result<Option<Value>, Problem> {
    let index: Value =
        serde_json::from_slice(&read_limited(&directory.join("index.json"))?).map_err(Problem::new)?;
    let mut listed = index["manifests"].as_array().into_iter().flatten();
    let is_it = |entry: &&Value| match digest {
        Some(digest) => entry["digest"] == json!(digest),
        None => entry["annotations"]["org.opencontainers.image.ref.name"] == json!(tag),
    };
    Ok(listed.rfind(is_it).cloned())
}

fn local_blob(directory: &Path, digest: &Value) -> Result<Vec<u8>, Problem> {
    let digest: Digest = digest.as_str().unwrap_or_default().parse().map_err(Problem::new)?;
    let bytes = read_limited(&directory.join(blob_path(&digest)))?;
    if Digest::from_bytes(&Sha256::digest(&bytes).into()) != digest {
        return Err(Problem::new(format!("{digest} in {} is damaged", directory.display())));
    }
    Ok(bytes)
}

fn local_cache(directory: &Path, entry: &Value) -> Result<Cache, Problem> {
    let manifest: Value =
        serde_json::from_slice(&local_blob(directory, &entry["digest"])?).map_err(Problem::new)?;
    if manifest["config"]["mediaType"] != json!(CONFIG_TYPE) {
        return Err(Problem::new(format!("what is in {} is no cache of hostel's", directory.display())));
    }
    let config = config(&local_blob(directory, &manifest["config"]["digest"])?)?;
    let layers = manifest["layers"].as_array().into_iter().flatten().map(|layer| {
        let digest: Digest = layer["digest"].as_str().unwrap_or_default().parse().map_err(Problem::new)?;
        Ok((digest, layer["size"].as_u64().unwrap_or(0)))
    });
    let layers = layers.collect::<Result<_, Problem>>()?;
    Ok((config, layers))
}

/// Writes the steps of builds where they were asked to be. The caller holds the content lock.
///
/// # Errors
/// A cache cannot be written, and that was not to be ignored.
pub fn export(
    store: &Store,
    targets: &[CacheTarget],
    steps: &[StepDone],
    progress: &mut Progress,
) -> Result<(), Problem> {
    for target in targets {
        let (title, done) = match &target.place {
            CachePlace::Inline => continue,
            CachePlace::Local { directory, tag } => {
                let vertex = progress.start("exporting cache to client directory");
                (vertex, export_local(store, directory, tag, target, steps))
            }
            CachePlace::Registry(name) => {
                let vertex = progress.start("exporting cache to registry");
                (vertex, export_registry(store, name, target, steps))
            }
        };
        match done {
            Ok(digest) => {
                progress.status(title, &format!("writing cache manifest {digest} done"));
                progress.done(title);
            }
            Err(problem) if target.ignore_error => progress.failed(title, &problem.to_string()),
            Err(problem) => {
                progress.failed(title, &problem.to_string());
                return Err(Problem::new(format!("error writing the cache: {problem}")));
            }
        }
    }
    Ok(())
}

/// Which of a cache's layers lie there already, and how.
fn known((config, blobs): Cache) -> BTreeMap<Digest, (Digest, u64)> {
    config.layers.into_iter().zip(blobs).collect()
}

fn export_registry(
    store: &Store,
    name: &Reference,
    target: &CacheTarget,
    steps: &[StepDone],
) -> Result<Digest, Problem> {
    let config = Config::of(steps, target.all);
    let before = found(&CacheSource::Registry(name.clone())).unwrap_or_default();
    let known = before.into_iter().flat_map(known).collect();
    let bytes = serde_json::to_vec(&config).map_err(Problem::new)?;
    Ok(registry::push_artifact(store, name, (CONFIG_TYPE, &bytes), &config.layers, target.format, &known)?)
}

fn export_local(
    store: &Store,
    directory: &Path,
    tag: &str,
    target: &CacheTarget,
    steps: &[StepDone],
) -> Result<Digest, Problem> {
    let failed = |error: io::Error| Problem::new(format!("cannot write {}: {error}", directory.display()));
    fs::create_dir_all(directory.join("blobs/sha256")).map_err(failed)?;
    let config = Config::of(steps, target.all);
    let before = local_entry(directory, tag, None).ok().flatten();
    let known = before.and_then(|entry| local_cache(directory, &entry).ok()).map(known).unwrap_or_default();
    let mut descriptors = Vec::new();
    for layer in &config.layers {
        let there = known.get(layer).filter(|(blob, bytes)| {
            fs::metadata(directory.join(blob_path(blob))).is_ok_and(|meta| meta.len() == *bytes)
        });
        let (digest, size) = match there {
            Some(there) => there.clone(),
            None => compress(&store.layer_tar(layer), directory, target.format).map_err(failed)?,
        };
        descriptors.push(json!({ "mediaType": target.format.media_type(), "digest": digest, "size": size }));
    }
    let put = |bytes: &[u8]| -> Result<Digest, Problem> {
        let digest = Digest::from_bytes(&Sha256::digest(bytes).into());
        write(directory, &blob_path(&digest), bytes).map_err(failed)?;
        Ok(digest)
    };
    let bytes = serde_json::to_vec(&config).map_err(Problem::new)?;
    let id = put(&bytes)?;
    let manifest = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": { "mediaType": CONFIG_TYPE, "digest": id, "size": bytes.len() },
        "layers": descriptors,
    });
    let manifest = manifest.to_string().into_bytes();
    let digest = put(&manifest)?;
    // Others in the same directory stay.
    let listed = read_limited(&directory.join("index.json")).ok();
    let listed = listed.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok()).unwrap_or_default();
    let is_other = |entry: &&Value| entry["annotations"]["org.opencontainers.image.ref.name"] != json!(tag);
    let mut manifests: Vec<Value> =
        listed["manifests"].as_array().into_iter().flatten().filter(is_other).cloned().collect();
    manifests.push(json!({
        "mediaType": OCI_MANIFEST, "digest": digest, "size": manifest.len(),
        "annotations": { "org.opencontainers.image.ref.name": tag },
    }));
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
    write(directory, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#).map_err(failed)?;
    write(directory, "index.json", index.to_string().as_bytes()).map_err(failed)?;
    Ok(digest)
}

/// Written beside and renamed, so that a reader sees it whole.
fn write(directory: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let mut staged = tempfile(directory)?;
    staged.0.write_all(bytes)?;
    fs::rename(&staged.1, directory.join(name))
}

fn tempfile(directory: &Path) -> io::Result<(File, PathBuf)> {
    let random = u64::from_ne_bytes(crate::sys::process::random_bytes()?);
    let path = directory.join(format!(".new-{random:016x}"));
    Ok((File::create_new(&path)?, path))
}

/// Compresses a layer into a layout.
fn compress(tar: &Path, directory: &Path, format: Format) -> io::Result<(Digest, u64)> {
    struct Hashing {
        inner: io::BufWriter<File>,
        hash: Sha256,
        bytes: u64,
    }
    impl io::Write for Hashing {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = self.inner.write(bytes)?;
            self.hash.update(&bytes[..count]);
            self.bytes += count as u64;
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            self.inner.flush()
        }
    }
    let (file, path) = tempfile(directory)?;
    let mut out = Hashing { inner: io::BufWriter::new(file), hash: Sha256::new(), bytes: 0 };
    let done = File::open(tar).and_then(|mut tar| registry::compress(&mut tar, &mut out, format));
    let done = done.and_then(|()| out.flush());
    let digest = Digest::from_bytes(&out.hash.finalize().into());
    if let Err(error) = done.and_then(|()| fs::rename(&path, directory.join(blob_path(&digest)))) {
        let _ = fs::remove_file(&path); // the first error is told
        return Err(error);
    }
    Ok((digest, out.bytes))
}
