//! Images: what a name means, and how an image gets into the store.
//!
//! [`resolve`] turns what was typed into something a container can start from. For a stored image
//! that is three small reads: the catalog, the config, the head of the merged index. An archive or
//! layout is brought into the store first, if it is not there. A directory (`rootfs:DIR`) and the
//! machine's own root (`host:/`) are used where they are.
//!
//! What must stay true: nothing of an image is visible before all of it is verified and on the
//! disk; what comes from outside (archives, layouts, JSON) is read within stated limits.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use fuse_overlay::index::MergedIndex;
use oci_spec::image::{Config, ConfigBuilder, ImageConfiguration, Os};
use serde::{Deserialize, Serialize};

use crate::id::Digest;
use crate::store::native::Budget;
use crate::store::{Catalog, Durable, ImageEntry, NameEntry, Store, StoreError, StoredLayer};
pub use crate::store::{Member, Several};

mod archive;
mod commit;
mod compression;
mod engines;
mod error;
mod find;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod gzip;
mod handed_over;
mod hot;
mod ingest;
mod intact;
mod kept;
mod platform;
pub mod policy;
mod reference;
pub mod registry;
mod remove;
mod save;
mod several;
mod streamed;
mod told;
mod transport;

pub use commit::{Draft, NewLayer, add_layer, base_config, commit, diff_ids, make_image, scratch};
pub use error::ImageError;
pub use find::{find, find_for};
pub use platform::Platform;
pub use reference::{DEFAULT_TAG, Reference, ReferenceError};
pub use remove::{ContainerUse, Pruned, Removal, prune, remove, tag};
pub use save::{
    SaveFormat, Wanted as SaveWanted, save, save_directory, save_several, save_several_directory,
};
pub use several::{Annotations, OCI_INDEX, annotate, name_several};
pub use told::{tell, tell_tag};
pub use transport::Source;

use archive::Files;
use error::Result;
use handed_over::{Candidate, LayerFile, Wanted, candidates};
use ingest::Expected;

/// Layers of an archive that are stored at once: as many as keep a disk and two processors busy, each
/// with a few MiB of buffers.
const PARALLEL_LAYERS: usize = 2;

/// PATH of a container whose image sets none: Docker's.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// `--pull`: when an image is fetched anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PullPolicy {
    /// Every time.
    Always,
    /// When the store does not have it.
    #[default]
    Missing,
    /// Never.
    Never,
}

impl FromStr for PullPolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "always" => Ok(Self::Always),
            "missing" => Ok(Self::Missing),
            "never" => Ok(Self::Never),
            _ => Err(format!(
                "invalid pull option: '{text}': must be one of \"always\", \"missing\" or \"never\""
            )),
        }
    }
}

/// Why an image is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The store does not have it.
    Missing,
    /// It is fetched anew each time.
    Always,
}

/// What a container starts from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ResolvedImage {
    /// As given, for `ps`.
    pub name: String,
    /// The config's digest; a directory has none.
    pub id: Option<Digest>,
    /// The image's config.
    pub config: ImageConfiguration,
    /// Its files.
    pub root: RootSource,
}

/// Where the files of an image are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RootSource {
    /// Packed layers.
    Packed {
        /// The merged index.
        index: PathBuf,
        /// The layers' tars, lowest first, as the index counts them.
        layers: Vec<PathBuf>,
    },
    /// A directory.
    Directory {
        /// Its absolute path.
        path: PathBuf,
    },
    /// The machine's own root.
    Host,
}

/// Finds the image that `reference` names, bringing it into the store where it comes from an
/// archive or a layout. Where it has to come from a registry, `fetch` brings it, told whether it was
/// looked for and not found. With a `platform` only an image for that counts as found.
///
/// The caller holds the store's content lock from before this call until it has written down the
/// image's id where collections look.
///
/// # Errors
/// There is no such image, it cannot be read or is for another machine.
pub fn resolve(
    store: &Store,
    reference: &str,
    pull: PullPolicy,
    platform: Option<&Platform>,
    fetch: &dyn Fn(&str, Reason) -> Result<Vec<Added>>,
) -> Result<ResolvedImage> {
    match locate(store, reference, pull, platform, fetch)? {
        Located::Rootfs(directory) => rootfs(reference, &directory),
        Located::Host => Ok(unpacked(reference, RootSource::Host)),
        Located::Stored(id, catalog) => stored(store, &catalog, reference, id),
    }
}

/// What a build starts from: a stored image, for whatever platform.
#[derive(Clone, Debug)]
pub struct Base {
    /// Its id.
    pub id: Digest,
    /// Its configuration, whole.
    pub config: serde_json::Value,
    /// Its layers, lowest first.
    pub layers: Vec<Digest>,
}

/// Finds the image that a build starts from, as [`resolve`] does, but not for running it.
///
/// # Errors
/// As [`resolve`]; it is a directory, which has no layers.
pub fn base(
    store: &Store,
    reference: &str,
    pull: PullPolicy,
    platform: Option<&Platform>,
    fetch: &dyn Fn(&str, Reason) -> Result<Vec<Added>>,
) -> Result<Base> {
    match locate(store, reference, pull, platform, fetch)? {
        Located::Rootfs(directory) => Err(ImageError::NotStorable(format!("rootfs:{}", directory.display()))),
        Located::Host => Err(ImageError::NotStorable("host:/".to_owned())),
        Located::Stored(id, catalog) => {
            let entry = catalog.images.get(&id).ok_or_else(|| ImageError::NotFound(reference.to_owned()))?;
            let config = base_config(store, &id)?;
            Ok(Base { config, layers: entry.layers.clone(), id })
        }
    }
}

/// What a reference leads to.
enum Located {
    Rootfs(PathBuf),
    Host,
    Stored(Digest, Catalog),
}

fn locate(
    store: &Store,
    reference: &str,
    pull: PullPolicy,
    platform: Option<&Platform>,
    fetch: &dyn Fn(&str, Reason) -> Result<Vec<Added>>,
) -> Result<Located> {
    let fetched = |name: &str, reason| {
        let added = fetch(name, reason)?.into_iter().next();
        let image = added.ok_or_else(|| ImageError::NotFound(name.to_owned()))?;
        Ok::<_, ImageError>((image.id, store.catalog()?))
    };
    let find = |catalog: &Catalog, name: &str| find_for(store, catalog, name, platform);
    let (id, catalog) = match Source::parse(reference)? {
        Source::Rootfs { directory } => return Ok(Located::Rootfs(directory)),
        Source::Host => return Ok(Located::Host),
        Source::Stored(name) => {
            let catalog = store.catalog()?;
            let is_name = name.parse::<Reference>().is_ok();
            match (pull, find(&catalog, &name)) {
                (PullPolicy::Always, _) if is_name => fetched(&name, Reason::Always)?,
                (PullPolicy::Missing, Err(ImageError::NotFound(_) | ImageError::PlatformMismatch { .. }))
                    if is_name =>
                {
                    fetched(&name, Reason::Missing)?
                }
                (_, found) => (found?, catalog),
            }
        }
        source => {
            let pulled = pull_source(store, &source, Choice::One, platform)?;
            let image =
                pulled.into_iter().next().ok_or_else(|| ImageError::NotFound(reference.to_owned()))?;
            (image.id, store.catalog()?)
        }
    };
    // A registry gives what it has of an image that is for one platform only.
    check_platform(store, &id, reference, platform)?;
    Ok(Located::Stored(id, catalog))
}

/// Whether an image is for the platform that was asked for.
///
/// # Errors
/// It is not, or its config cannot be read.
pub fn check_platform(store: &Store, id: &Digest, name: &str, asked: Option<&Platform>) -> Result<()> {
    let Some(asked) = asked else { return Ok(()) };
    let found = Platform::of_config(&base_config(store, id)?);
    if asked.is_met_by(&found) {
        return Ok(());
    }
    let (wanted, found) = (asked.to_string(), found.to_string());
    Err(ImageError::PlatformMismatch { image: name.to_owned(), wanted, found })
}

/// The platform of an image that this machine's processor does not run by itself; whether the kernel
/// has an emulator for it (binfmt_misc) shows when its command is executed.
#[must_use]
pub fn foreign_platform(config: &ImageConfiguration) -> Option<Platform> {
    let found = Platform::of(config.os(), config.architecture());
    (!Platform::host().runs(&found)).then_some(found)
}

fn stored(store: &Store, catalog: &Catalog, reference: &str, id: Digest) -> Result<ResolvedImage> {
    let entry = catalog.images.get(&id).ok_or_else(|| ImageError::NotFound(reference.to_owned()))?;
    let (host, found) = (Platform::host(), Platform::new(&entry.os, &entry.architecture));
    if !host.has_os_of(&found) {
        let [found, host] = [found, host].map(|platform| platform.to_string());
        return Err(ImageError::Platform { image: reference.to_owned(), found, host });
    }
    let config = config(store, &id)?;
    intact::ensure(store, entry)?;
    let index = store.merged_index(&entry.layers)?;
    make_native(store, &entry.layers, &config);
    let root = RootSource::Packed {
        index,
        layers: entry.layers.iter().map(|layer| store.layer_tar(layer)).collect(),
    };
    Ok(ResolvedImage { name: reference.to_owned(), id: Some(id), config, root })
}

/// Takes out of an image's layers what is better read as plain files. The image works without:
/// what fails here (a full disk, mostly) fails again, and is told, where it matters.
fn make_native(store: &Store, layers: &[Digest], config: &ImageConfiguration) {
    let hot = |index: &MergedIndex, tars: &[File]| hot::find(index, tars, config);
    let _ = store.make_native(layers, Budget::default(), hot);
}

/// The config of a stored image.
///
/// # Errors
/// It is missing or damaged.
pub fn config(store: &Store, id: &Digest) -> Result<ImageConfiguration> {
    let bytes = store.blob(id)?.ok_or_else(|| ImageError::NotFound(id.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|source| ImageError::StoredConfig { image: id.clone(), source })
}

/// The HEALTHCHECK of a stored image: Docker's extension of the config, which OCI's type does not have.
/// What cannot be read was told when the config was.
#[must_use]
pub fn healthcheck(store: &Store, id: Option<&Digest>) -> Option<serde_json::Value> {
    const KEY: &[u8] = b"\"Healthcheck\"";
    let bytes = store.blob(id?).ok()??;
    // Hardly any image has one: a second parse of the whole config is spared the others.
    bytes.windows(KEY.len()).any(|window| window == KEY).then_some(())?;
    let mut config: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
    config
        .get_mut("config")?
        .get_mut("Healthcheck")
        .map(serde_json::Value::take)
        .filter(|check| !check.is_null())
}

fn rootfs(reference: &str, directory: &Path) -> Result<ResolvedImage> {
    let unusable = |source| ImageError::Rootfs { path: directory.to_owned(), source };
    let path = fs::canonicalize(directory).map_err(unusable)?;
    if !fs::metadata(&path).map_err(unusable)?.is_dir() {
        return Err(unusable(io::ErrorKind::NotADirectory.into()));
    }
    Ok(unpacked(reference, RootSource::Directory { path }))
}

/// A root that has no config of its own gets Docker's PATH and a shell.
fn unpacked(reference: &str, root: RootSource) -> ResolvedImage {
    let config = ConfigBuilder::default()
        .env([DEFAULT_PATH.to_owned()])
        .cmd(["/bin/sh".to_owned()])
        .build()
        .unwrap_or_else(|_| Config::default());
    let mut configuration = ImageConfiguration::default();
    configuration.set_os(Os::Linux);
    configuration.set_architecture(Platform::host().architecture());
    configuration.set_config(Some(config));
    ResolvedImage { name: reference.to_owned(), id: None, config: configuration, root }
}

/// Which images of an archive or layout are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The one that was named.
    One,
    /// All of them.
    All,
}

/// An image that was brought into the store, or was there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Added {
    /// Its id.
    pub id: Digest,
    /// Digest of the manifest that it came with, of a layout.
    pub digest: Option<Digest>,
    /// Its names, each with the image that had it before.
    pub names: Vec<(Reference, Option<Digest>)>,
    /// Whether the store did not have it.
    pub is_new: bool,
}

/// Brings all images of an archive into the store: `hostel load`. `path` is what messages call it.
///
/// # Errors
/// The archive is not one, is damaged, or the store fails. Images before the bad one stay.
pub fn load(store: &Store, file: File, path: &Path, platform: Option<&Platform>) -> Result<Vec<Added>> {
    let source = Source::DockerArchive { file: path.to_owned() };
    policy::Policy::of_user()?.check_source(&source, &path.display().to_string())?;
    let added = add_all(store, || Files::archive(store, file, path), Wanted::All, platform)?;
    added.iter().for_each(|added| tell(store, "load", &added.id));
    Ok(added)
}

/// Brings images of an archive or a layout into the store: `hostel pull`.
///
/// # Errors
/// As [`load`]; the source is a name, which needs a registry, or a directory, which is not stored.
pub fn pull_source(
    store: &Store,
    source: &Source,
    choice: Choice,
    platform: Option<&Platform>,
) -> Result<Vec<Added>> {
    policy::Policy::of_user()?.check_source(source, &source.to_string())?;
    let added = from_source(store, source, choice, platform)?;
    for Added { id, names, is_new, .. } in &added {
        // A run from a layout finds it again every time, which is no news.
        for (name, _) in names.iter().filter(|(_, old)| *is_new || old.is_some()) {
            told::tell_transfer(store, "pull", id, name);
        }
    }
    Ok(added)
}

fn from_source(
    store: &Store,
    source: &Source,
    choice: Choice,
    platform: Option<&Platform>,
) -> Result<Vec<Added>> {
    let add_all = |open: &dyn Fn() -> Result<Files>, wanted| add_all(store, open, wanted, platform);
    let wanted = |tag| if choice == Choice::All { Wanted::All } else { Wanted::One(tag) };
    match source {
        Source::OciLayout { directory, tag } => {
            if !directory.is_dir() {
                let error =
                    fs::metadata(directory).err().unwrap_or_else(|| io::ErrorKind::NotADirectory.into());
                return Err(ImageError::Read { path: directory.clone(), source: error });
            }
            add_all(&|| Ok(Files::Directory(directory.clone())), wanted(tag.as_deref()))
        }
        Source::OciArchive { file, tag } => add_all(&|| open_archive(store, file), wanted(tag.as_deref())),
        Source::DockerArchive { file } => add_all(&|| open_archive(store, file), wanted(None)),
        Source::ContainersStorage { name } => {
            add_all(&|| engines::containers_storage(store, name), wanted(None))
        }
        Source::DockerDaemon { name } => add_all(&|| engines::docker_daemon(store, name), wanted(None)),
        Source::Stored(name) => Err(ImageError::NotFound(name.clone())),
        Source::Rootfs { directory } => {
            Err(ImageError::NotStorable(format!("rootfs:{}", directory.display())))
        }
        Source::Host => Err(ImageError::NotStorable("host:/".to_owned())),
    }
}

/// Stores a layer that comes as a blob of a known digest and size. The caller holds the content lock.
///
/// # Errors
/// It is not what it should be; the store fails.
pub fn take_layer(
    store: &Store,
    reader: Box<dyn io::Read + '_>,
    blob: (&Digest, u64),
    diff_id: &Digest,
) -> Result<()> {
    let (digest, size) = blob;
    let expected = Expected { what: digest.as_str(), digest: Some(digest), size: Some(size), diff_id };
    ingest::store_layer(store, reader, &expected, Durable::Now).map(drop)
}

/// A stream that may be compressed with gzip or zstd, uncompressed.
///
/// # Errors
/// It cannot be read, or is compressed with something else.
pub fn uncompressed<'a>(input: Box<dyn io::Read + 'a>) -> io::Result<Box<dyn io::Read + 'a>> {
    Ok(Box::new(compression::Decoder::new(input)?))
}

fn open_archive(store: &Store, path: &Path) -> Result<Files> {
    let file = File::open(path).map_err(|source| ImageError::Read { path: path.to_owned(), source })?;
    Files::archive(store, file, path)
}

fn add_all(
    store: &Store,
    open: impl FnOnce() -> Result<Files>,
    wanted: Wanted<'_>,
    platform: Option<&Platform>,
) -> Result<Vec<Added>> {
    store.sweep_leftovers()?;
    let lock = store.lock_content()?;
    let added = open().and_then(|files| {
        let candidates = candidates(&files, wanted, platform)?;
        candidates.into_iter().map(|candidate| add(store, &files, candidate)).collect()
    });
    drop(lock);
    if added.is_err() {
        // Layers that came before the failure. What cannot be collected now is so later.
        let _ = store.collect();
    }
    added
}

/// Stores one image and names it. The caller holds the content lock.
fn add(store: &Store, files: &Files, candidate: Candidate) -> Result<Added> {
    let known = store.own_catalog()?.images.get(&candidate.id).cloned();
    let is_new = known.is_none();
    let mut entry = match known {
        Some(entry) if intact::is_whole(store, &entry)? => entry,
        _ => store_image(store, files, &candidate)?,
    };
    kept::keep(store, files, &candidate, &mut entry)?;
    store.merged_index(&entry.layers)?;
    let digest = match &candidate.manifest {
        Some((digest, bytes)) => {
            store.put_blob(bytes)?;
            Some(digest.clone())
        }
        None => None,
    };
    let Candidate { id, names, .. } = candidate;
    enter(store, Entering { id, entry, names, digest, is_new })
}

/// An image whose content is in the store, about to become visible.
struct Entering {
    id: Digest,
    entry: ImageEntry,
    names: Vec<Reference>,
    /// Digest of the manifest or index that it came with.
    digest: Option<Digest>,
    is_new: bool,
}

/// Makes an image visible under its names. The caller holds the content lock.
fn enter(store: &Store, Entering { id, entry, names, digest, is_new }: Entering) -> Result<Added> {
    let names = store.update_catalog(|catalog| {
        let known = catalog.images.entry(id.clone()).or_insert_with(|| entry.clone());
        if known.original.is_none() && entry.original.is_some() {
            known.clone_from(&entry);
        }
        let named = names.into_iter().map(|name| {
            let new = NameEntry::of(id.clone(), digest.clone());
            let old = catalog.names.insert(name.to_string(), new);
            (name, old.map(|old| old.image).filter(|old| *old != id))
        });
        Ok::<_, StoreError>(named.collect())
    })?;
    Ok(Added { id, digest, names, is_new })
}

/// Stores an image's config and those of its layers that are not there: several at once, so that one
/// is hashed while the disk takes another.
fn store_image(store: &Store, files: &Files, candidate: &Candidate) -> Result<ImageEntry> {
    let mut jobs: Vec<(&LayerFile, &Digest)> = Vec::new();
    for (layer, diff_id) in candidate.layers.iter().zip(&candidate.diff_ids) {
        if !jobs.iter().any(|(_, known)| *known == diff_id) {
            jobs.push((layer, diff_id));
        }
    }
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let results = Mutex::new(HashMap::new());
    let work = || {
        while !failed.load(Ordering::Relaxed) {
            let Some((layer, diff_id)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
            let stored = store_layer(store, files, layer, diff_id);
            failed.fetch_or(stored.is_err(), Ordering::Relaxed);
            results.lock().unwrap_or_else(PoisonError::into_inner).insert(*diff_id, stored);
        }
    };
    thread::scope(|scope| {
        for _ in 1..PARALLEL_LAYERS.min(jobs.len()) {
            scope.spawn(work);
        }
        work();
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut sizes = HashMap::new();
    // The lowest layer's failure is told, whichever came first.
    for (_, diff_id) in &jobs {
        if let Some(stored) = results.remove(diff_id) {
            sizes.insert(*diff_id, stored?.content_bytes);
        }
    }
    let size_bytes = candidate.diff_ids.iter().filter_map(|diff_id| sizes.get(diff_id)).sum();
    new_entry(store, candidate, size_bytes)
}

fn store_layer(store: &Store, files: &Files, layer: &LayerFile, diff_id: &Digest) -> Result<StoredLayer> {
    match store.layer(diff_id)? {
        Some(stored) => Ok(stored),
        None => {
            let (what, digest, size) = (layer.member.as_str(), layer.digest.as_ref(), layer.size);
            files.store_layer(store, &Expected { what, digest, size, diff_id })
        }
    }
}

/// Stores the config of an image whose layers are stored, and a manifest for it.
fn new_entry(store: &Store, candidate: &Candidate, size_bytes: u64) -> Result<ImageEntry> {
    let id = store.put_blob(&candidate.config)?;
    let (manifest, manifest_bytes) =
        store.put_layout_manifest((&id, candidate.config.len() as u64), &candidate.diff_ids)?;
    let configuration = &candidate.configuration;
    Ok(ImageEntry {
        manifest,
        manifest_bytes,
        original: None,
        layers: candidate.diff_ids.clone(),
        size_bytes,
        created: configuration.created().clone(),
        architecture: configuration.architecture().to_string(),
        os: configuration.os().to_string(),
    })
}

#[cfg(test)]
mod tests;
