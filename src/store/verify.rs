//! Checking what the store holds against what it is called: `image verify`, `system check`.
//!
//! Everything under blobs/ and layers/ is named by a digest, so altered content shows by hashing
//! it. An index has a checksum of its own; beyond that it is made again from its layer and
//! compared, so that a well-formed index of something else is found too. What can be made again
//! (indexes, layout manifests, index.json, links of the layout) is mended on request; a layer or a
//! config cannot be, and its finding names the images that have to be got again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use fuse_overlay::index::{IndexError, MergedIndex};
use fuse_overlay::pack::{self, LayerIndex, Limits};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::catalog::{Catalog, ImageEntry, layout_index};
use super::{Result, Store, StoreError, chain_id, read_json};
use crate::id::Digest;

/// Bytes read at once.
const READ_BYTES: usize = 1 << 20;
/// Threads that hash: more do not help, as the disk is then the limit.
const MAX_THREADS: usize = 4;

/// A kind of thing that is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// A config or a manifest.
    Blob,
    /// A layer as it came from a registry, which a push needs and a container does not.
    CompressedLayer,
    /// A layer's tar.
    Layer,
    /// A layer's index.
    LayerIndex,
    /// The merged index of an image.
    MergedIndex,
    /// Files of an image that are kept as plain files, too (`native`).
    NativeFiles,
    /// What makes the store an OCI layout: index.json, links in blobs/.
    Layout,
}

impl Part {
    /// Its name in a sentence.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Blob => "blob",
            Self::CompressedLayer => "compressed layer",
            Self::Layer => "layer",
            Self::LayerIndex => "index of layer",
            Self::MergedIndex => "merged index",
            Self::NativeFiles => "native files",
            Self::Layout => "layout",
        }
    }
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Problem {
    /// What kind of thing.
    pub part: Part,
    /// Its name: a digest, or a file's name.
    pub name: String,
    /// Where it is, or should be.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: String,
    /// Images that need it.
    pub images: BTreeSet<Digest>,
    /// Whether it can be made again from what the store has.
    pub repairable: bool,
    /// Whether that has been done.
    pub repaired: bool,
}

/// How much was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Checked {
    /// Images of the catalog.
    pub images: u64,
    /// Blobs that are files of their own.
    pub blobs: u64,
    /// Layers.
    pub layers: u64,
    /// Indexes of layers and of images.
    pub indexes: u64,
    /// Bytes that were hashed.
    pub bytes: u64,
}

impl Checked {
    fn add(&mut self, other: Self) {
        self.blobs += other.blobs;
        self.layers += other.layers;
        self.indexes += other.indexes;
        self.bytes += other.bytes;
    }
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Report {
    /// How much was looked at.
    pub checked: Checked,
    /// What was wrong, ordered by kind and name.
    pub problems: Vec<Problem>,
}

impl Report {
    /// Whether something is wrong still.
    #[must_use]
    pub fn is_bad(&self) -> bool {
        self.problems.iter().any(|problem| !problem.repaired)
    }
}

/// How thoroughly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// That things are there, with the right sizes and headers.
    Presence,
    /// Every byte.
    Content,
}

/// What to do about what is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mending {
    /// Only say so.
    Report,
    /// Make again what can be made again.
    Repair,
}

/// The part of a config that says which layers it has.
#[derive(Deserialize)]
struct Config {
    rootfs: Rootfs,
}

#[derive(Deserialize)]
struct Rootfs {
    #[serde(default)]
    diff_ids: Vec<Digest>,
}

/// The things to check, each with the images that need it.
#[derive(Default)]
struct Wanted {
    blobs: BTreeMap<Digest, BTreeSet<Digest>>,
    layers: BTreeMap<Digest, BTreeSet<Digest>>,
    /// By the layers that are merged.
    merged: BTreeMap<Vec<Digest>, BTreeSet<Digest>>,
    /// Those of the blobs that are layers as they came from a registry.
    compressed: BTreeSet<String>,
}

impl Wanted {
    fn add(&mut self, image: &Digest, layers: &[Digest]) {
        self.blobs.entry(image.clone()).or_default().insert(image.clone());
        for layer in layers {
            self.layers.entry(layer.clone()).or_default().insert(image.clone());
        }
        self.merged.entry(layers.to_vec()).or_default().insert(image.clone());
    }
}

enum Job<'a> {
    Blob(&'a Digest, &'a BTreeSet<Digest>),
    Layer(&'a Digest, &'a BTreeSet<Digest>),
}

impl Store {
    /// Checks `only` these images, or the whole store: also what no image refers to any more, which
    /// a container may still use.
    ///
    /// # Errors
    /// The catalog or a directory cannot be read; something that should be mended cannot be written.
    pub fn verify(&self, only: Option<&[Digest]>, depth: Depth, mending: Mending) -> Result<Report> {
        let _lock = self.lock_content()?;
        let catalog = self.own_catalog()?;
        let images: BTreeMap<&Digest, &ImageEntry> =
            catalog.images.iter().filter(|(id, _)| only.is_none_or(|only| only.contains(id))).collect();
        let wanted = self.wanted(&catalog, &images, only.is_none())?;
        let mut check = Check { store: self, depth, report: Report::default() };
        check.report.checked.images = images.len() as u64;
        check.run_jobs(&wanted)?;
        let is_compressed =
            |problem: &&mut Problem| problem.part == Part::Blob && wanted.compressed.contains(&problem.name);
        for problem in check.report.problems.iter_mut().filter(is_compressed) {
            problem.part = Part::CompressedLayer;
        }
        for (id, entry) in &images {
            check.image(id, entry)?;
        }
        for (layers, users) in &wanted.merged {
            if check.merged(layers, users)? && depth == Depth::Content {
                check.native(layers, users)?;
            }
        }
        check.layout(&catalog, only.is_none())?;
        let mut report = check.report;
        report.problems.sort_by(|a, b| (a.part, &a.name).cmp(&(b.part, &b.name)));
        if mending == Mending::Repair {
            self.mend(&catalog, &mut report)?;
        }
        Ok(report)
    }

    fn wanted(
        &self,
        catalog: &Catalog,
        images: &BTreeMap<&Digest, &ImageEntry>,
        whole_store: bool,
    ) -> Result<Wanted> {
        let mut wanted = Wanted::default();
        for (id, entry) in images {
            wanted.add(id, &entry.layers);
            wanted.blobs.entry(entry.manifest.clone()).or_default().insert((*id).clone());
            if let Some(original) = &entry.original {
                wanted.blobs.entry(original.clone()).or_default().insert((*id).clone());
                for digest in self.manifest_layers(original)? {
                    wanted.compressed.insert(digest.to_string());
                    wanted.blobs.entry(digest).or_default().insert((*id).clone());
                }
            }
            for digest in catalog.names_with(id).filter_map(|(_, name)| name.digest.clone()) {
                wanted.blobs.entry(digest).or_default().insert((*id).clone());
            }
        }
        if whole_store {
            for id in self.container_images()?.iter().filter(|id| !catalog.images.contains_key(*id)) {
                if let Some(layers) = self.layers_of_config(id)? {
                    wanted.add(id, &layers);
                }
            }
            for digest in digests_in(&self.path("blobs/sha256"), fs::FileType::is_file)? {
                wanted.blobs.entry(digest).or_default();
            }
            for digest in digests_in(&self.path("layers"), fs::FileType::is_dir)? {
                wanted.layers.entry(digest).or_default();
            }
        }
        Ok(wanted)
    }

    /// Takes a layer away that is not what it should be, so that it can come again.
    ///
    /// # Errors
    /// It cannot be moved out of the way.
    pub fn discard_layer(&self, layer: &Digest) -> Result<()> {
        let tar = self.layer_tar(layer);
        let (Some(directory), false) = (tar.parent(), self.is_shared(&tar)) else { return Ok(()) };
        let staged = self.stage();
        match fs::rename(directory, staged.path()).and_then(|()| fs::remove_dir_all(staged.path())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::io("remove", directory)(error))
            }
            _ => Ok(()),
        }
    }

    /// Takes a blob away that is not what it should be, so that it can come again.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn discard_blob(&self, digest: &Digest) -> Result<()> {
        remove_if_there(&self.blob_path(digest))
    }

    /// The layers that a stored config names, if it can be read.
    pub(super) fn layers_of_config(&self, id: &Digest) -> Result<Option<Vec<Digest>>> {
        let config = self.blob(id)?.and_then(|bytes| serde_json::from_slice::<Config>(&bytes).ok());
        Ok(config.map(|config| config.rootfs.diff_ids))
    }

    fn mend(&self, catalog: &Catalog, report: &mut Report) -> Result<()> {
        // Layers first: what is made again below is made from them.
        let broken: BTreeSet<String> = report
            .problems
            .iter()
            .filter(|problem| problem.part == Part::Layer)
            .map(|problem| problem.name.clone())
            .collect();
        let rests_on_broken = |layers: &[Digest]| layers.iter().any(|layer| broken.contains(layer.as_str()));
        let ours = |problem: &&mut Problem| problem.repairable && !self.is_shared(&problem.path);
        for problem in report.problems.iter_mut().filter(ours) {
            let layers =
                problem.images.first().and_then(|id| catalog.images.get(id)).map(|entry| &entry.layers);
            match problem.part {
                Part::LayerIndex => {
                    let Ok(layer) = problem.name.parse::<Digest>() else { continue };
                    if rests_on_broken(std::slice::from_ref(&layer)) {
                        continue;
                    }
                    remove_if_there(&problem.path)?;
                    self.layer_index(&layer)?;
                }
                Part::MergedIndex | Part::NativeFiles => {
                    let users = problem.images.first();
                    let layers = match (layers, users) {
                        (Some(layers), _) => layers.clone(),
                        (None, Some(id)) => self.layers_of_config(id)?.unwrap_or_default(),
                        (None, None) => continue,
                    };
                    if rests_on_broken(&layers) {
                        continue;
                    }
                    if problem.part == Part::NativeFiles {
                        // Made again by the next run.
                        self.remove_native(&layers)?;
                    } else {
                        remove_if_there(&problem.path)?;
                        self.merged_index(&layers)?;
                    }
                }
                Part::Blob => {
                    let Some((id, entry)) =
                        problem.images.first().and_then(|id| catalog.images.get_key_value(id))
                    else {
                        continue;
                    };
                    let Some(config) = self.blob(id)? else { continue };
                    remove_if_there(&problem.path)?;
                    let (made, _) = self.put_layout_manifest((id, config.len() as u64), &entry.layers)?;
                    if made != entry.manifest {
                        continue;
                    }
                }
                Part::Layout => match problem.name.parse::<Digest>() {
                    Ok(layer) => {
                        remove_if_there(&problem.path)?;
                        self.link_layer(&layer)?;
                    }
                    Err(_) => self.write_layout(catalog)?,
                },
                Part::Layer | Part::CompressedLayer => continue,
            }
            problem.repaired = true;
        }
        Ok(())
    }
}

/// A check under way.
struct Check<'a> {
    store: &'a Store,
    depth: Depth,
    report: Report,
}

impl Check<'_> {
    /// Hashes blobs and layers, several at once.
    fn run_jobs(&mut self, wanted: &Wanted) -> Result<()> {
        // The largest first, so that no thread is left alone with one at the end.
        let mut jobs: Vec<(u64, Job<'_>)> = Vec::new();
        for (digest, users) in &wanted.layers {
            let size = fs::metadata(self.store.layer_tar(digest)).map_or(0, |metadata| metadata.len());
            jobs.push((size, Job::Layer(digest, users)));
        }
        for (digest, users) in wanted.blobs.iter().filter(|(digest, _)| !wanted.layers.contains_key(*digest))
        {
            jobs.push((0, Job::Blob(digest, users)));
        }
        jobs.sort_by_key(|(size, _)| std::cmp::Reverse(*size));
        let next = AtomicUsize::new(0);
        let results = Mutex::new(Vec::new());
        let work = || {
            while let Some((_, job)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                let result = match job {
                    Job::Blob(digest, users) => check_blob(self.store, digest, users, self.depth),
                    Job::Layer(digest, users) => check_layer(self.store, digest, users, self.depth),
                };
                results.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(result);
            }
        };
        let threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
        thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(work);
            }
            work();
        });
        for result in results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            let (checked, problems) = result?;
            self.report.checked.add(checked);
            self.report.problems.extend(problems);
        }
        Ok(())
    }

    /// What the catalog says of an image against its config.
    fn image(&mut self, id: &Digest, entry: &ImageEntry) -> Result<()> {
        if let Some(layers) = self.store.layers_of_config(id)?
            && layers != entry.layers
        {
            self.report.problems.push(Problem {
                part: Part::Blob,
                name: id.to_string(),
                path: self.store.blob_path(id),
                problem: "the catalog lists other layers than this config".to_owned(),
                images: BTreeSet::from([id.clone()]),
                repairable: false,
                repaired: false,
            });
        }
        // A layout manifest can be written again; `check_blob` does not know that it is one.
        for problem in &mut self.report.problems {
            if problem.part == Part::Blob && problem.name == entry.manifest.as_str() {
                problem.repairable = true;
            }
        }
        Ok(())
    }

    /// Whether the merged index and all that it is made from are whole.
    fn merged(&mut self, layers: &[Digest], users: &BTreeSet<Digest>) -> Result<bool> {
        let own = self.store.merged_path(layers);
        let name = own.file_name().unwrap_or_default().to_string_lossy();
        let shared = if own.exists() { None } else { self.store.shared_merged(&name) };
        let path = shared.unwrap_or_else(|| own.clone());
        self.report.checked.indexes += 1;
        let is_whole = |layer: &Digest| {
            let broken = |problem: &Problem| {
                matches!(problem.part, Part::Layer | Part::LayerIndex) && problem.name == layer.as_str()
            };
            !self.report.problems.iter().any(broken)
        };
        let wrong = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Some("it is missing".to_owned()),
            Err(error) => return Err(StoreError::io("open", &path)(error)),
            Ok(file) => match MergedIndex::open(&file) {
                Err(IndexError::Read(source)) => Some(format!("it cannot be read: {source}")),
                Err(error) => Some(error.to_string()),
                Ok(_) if self.depth == Depth::Presence => None,
                Ok(index) => match index.verify() {
                    Err(error) => Some(error.to_string()),
                    // From bad layers nothing can be told about it.
                    Ok(()) if !layers.iter().all(is_whole) => None,
                    Ok(()) => {
                        let same = self.store.merge_bytes(layers)? == read(&path)?;
                        (!same).then(|| "it is not the index of these layers".to_owned())
                    }
                },
            },
        };
        let is_good = wrong.is_none() && layers.iter().all(is_whole);
        if let Some(problem) = wrong {
            self.report.problems.push(Problem {
                part: Part::MergedIndex,
                name: chain_id(layers).map_or_else(|| "of no layers".to_owned(), |chain| chain.to_string()),
                path,
                problem,
                images: users.clone(),
                repairable: true,
                repaired: false,
            });
        }
        Ok(is_good)
    }

    fn native(&mut self, layers: &[Digest], users: &BTreeSet<Digest>) -> Result<()> {
        let wrong = match self.store.verify_native(layers) {
            Ok(None) => return Ok(()),
            Ok(Some(path)) => (path.display().to_string(), "it has been altered".to_owned()),
            Err(StoreError::Native { source }) => ("native".to_owned(), source.to_string()),
            Err(error) => return Err(error),
        };
        self.report.problems.push(Problem {
            part: Part::NativeFiles,
            name: chain_id(layers).map_or_else(|| "of no layers".to_owned(), |chain| chain.to_string()),
            path: wrong.0.clone().into(),
            problem: format!("{}: {}", wrong.0, wrong.1),
            images: users.clone(),
            repairable: true,
            repaired: false,
        });
        Ok(())
    }

    /// What other tools read of the store.
    fn layout(&mut self, catalog: &Catalog, whole_store: bool) -> Result<()> {
        let mut links: BTreeMap<&Digest, BTreeSet<Digest>> = BTreeMap::new();
        for (id, entry) in &catalog.images {
            for layer in &entry.layers {
                links.entry(layer).or_default().insert(id.clone());
            }
        }
        for (layer, users) in links {
            let path = self.store.blob_path(layer);
            // A layer that is missing altogether has been reported.
            if self.store.layer_tar(layer).exists() && !path.exists() {
                self.report.problems.push(Problem {
                    part: Part::Layout,
                    name: layer.to_string(),
                    path,
                    problem: "the link to this layer is missing".to_owned(),
                    images: users,
                    repairable: true,
                    repaired: false,
                });
            }
        }
        if !whole_store || catalog.images.is_empty() {
            return Ok(());
        }
        let path = self.store.path("index.json");
        let found: Result<Option<serde_json::Value>> = read_json(self.store.root(), &path);
        let wrong = match found {
            Ok(Some(found)) if found == layout_index(catalog) => return Ok(()),
            Ok(Some(_)) => "it lists other images than the catalog",
            Ok(None) => "it is missing",
            Err(_) => "it is damaged",
        };
        self.report.problems.push(Problem {
            part: Part::Layout,
            name: "index.json".to_owned(),
            path,
            problem: wrong.to_owned(),
            images: BTreeSet::new(),
            repairable: true,
            repaired: false,
        });
        Ok(())
    }
}

type Outcome = Result<(Checked, Vec<Problem>)>;

fn check_blob(store: &Store, digest: &Digest, users: &BTreeSet<Digest>, depth: Depth) -> Outcome {
    let path = store.blob_path(digest);
    let mut checked = Checked { blobs: 1, ..Checked::default() };
    let wrong = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some("it is missing".to_owned()),
        Err(error) => return Err(StoreError::io("open", &path)(error)),
        Ok(_) if depth == Depth::Presence => None,
        Ok(file) => {
            let mut reader = Hashing::new(file);
            match io::copy(&mut reader, &mut io::sink()) {
                Err(error) => Some(format!("it cannot be read: {error}")),
                Ok(bytes) => {
                    checked.bytes += bytes;
                    altered(digest, &reader.digest())
                }
            }
        }
    };
    let problem = wrong.map(|problem| Problem {
        part: Part::Blob,
        name: digest.to_string(),
        path,
        problem,
        images: users.clone(),
        repairable: false,
        repaired: false,
    });
    Ok((checked, problem.into_iter().collect()))
}

/// A layer's tar and its index in one pass.
fn check_layer(store: &Store, digest: &Digest, users: &BTreeSet<Digest>, depth: Depth) -> Outcome {
    let problem = |part, path: PathBuf, problem| Problem {
        part,
        name: digest.to_string(),
        path,
        problem,
        images: users.clone(),
        repairable: part == Part::LayerIndex,
        repaired: false,
    };
    let mut checked = Checked { layers: 1, indexes: 1, ..Checked::default() };
    let (tar, index) = (store.layer_tar(digest), store.layer_index_path(digest));
    let file = match File::open(&tar) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok((checked, vec![problem(Part::Layer, tar, "it is missing".to_owned())]));
        }
        Err(error) => return Err(StoreError::io("open", &tar)(error)),
    };
    let opened = match File::open(&index) {
        Ok(file) => LayerIndex::open(&file).map(drop).map_err(|error| error.to_string()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err("it is missing".to_owned()),
        Err(error) => return Err(StoreError::io("open", &index)(error)),
    };
    if depth == Depth::Presence {
        let problems = opened.err().map(|text| problem(Part::LayerIndex, index, text));
        return Ok((checked, problems.into_iter().collect()));
    }
    let mut reader = BufReader::with_capacity(READ_BYTES, Hashing::new(file));
    let made = pack::index_tar(&mut reader, &Limits::default());
    if let Err(error) = io::copy(&mut reader, &mut io::sink()) {
        return Ok((checked, vec![problem(Part::Layer, tar, format!("it cannot be read: {error}"))]));
    }
    let hashing = reader.into_inner();
    checked.bytes += hashing.bytes;
    if let Some(text) = altered(digest, &hashing.digest()) {
        return Ok((checked, vec![problem(Part::Layer, tar, text)]));
    }
    let wrong = match (opened, made) {
        (Err(text), _) => Some(text),
        // The layer is what it was; then a change of the limits refuses it.
        (Ok(()), Err(error)) => Some(format!("it cannot be made again: {error}")),
        (Ok(()), Ok(made)) => {
            let mut bytes = Vec::new();
            made.write_to(&mut bytes).map_err(StoreError::io("make", &index))?;
            (bytes != read(&index)?).then(|| "it is not the index of this layer".to_owned())
        }
    };
    Ok((checked, wrong.map(|text| problem(Part::LayerIndex, index, text)).into_iter().collect()))
}

fn altered(wanted: &Digest, found: &Digest) -> Option<String> {
    (wanted != found).then(|| format!("it has been altered: its content is {found}"))
}

/// The names in a directory that are digests, of entries of one kind.
fn digests_in(directory: &Path, is_wanted: impl Fn(&fs::FileType) -> bool) -> Result<Vec<Digest>> {
    let unreadable = || StoreError::io("read", directory);
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(unreadable())? {
        let entry = entry.map_err(unreadable())?;
        if entry.file_type().is_ok_and(|kind| is_wanted(&kind))
            && let Some(hex) = entry.file_name().to_str()
            && let Ok(digest) = format!("sha256:{hex}").parse()
        {
            found.push(digest);
        }
    }
    Ok(found)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(StoreError::io("read", path))
}

fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// A file whose bytes are hashed as they are read.
struct Hashing {
    file: File,
    hasher: Sha256,
    bytes: u64,
}

impl Hashing {
    fn new(file: File) -> Self {
        Self { file, hasher: Sha256::default(), bytes: 0 }
    }

    fn digest(self) -> Digest {
        Digest::from_bytes(&self.hasher.finalize().into())
    }
}

impl Read for Hashing {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.bytes += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::super::collect::tests::store_image;
    use super::*;

    fn found(store: &Store, mending: Mending) -> Vec<(Part, String, usize, bool)> {
        let report = store.verify(None, Depth::Content, mending).unwrap();
        let problems = report.problems.into_iter();
        problems.map(|p| (p.part, p.problem, p.images.len(), p.repaired)).collect()
    }

    #[test]
    fn every_part_is_checked_and_what_can_be_is_mended() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let (id, layer) = store_image(&store, "a");
        store_image(&store, "b");
        assert_eq!(found(&store, Mending::Report), []);
        let entry = store.catalog().unwrap().images[&id].clone();
        let layers = std::slice::from_ref(&layer);
        let flip = |path: &Path| {
            let mut bytes = fs::read(path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(path, bytes).unwrap();
        };
        let (index, merged) = (store.layer_index_path(&layer), store.merged_path(layers));
        // What is done to the store, and what is found then.
        type Harm<'a> = (&'a str, &'a dyn Fn(), Part, &'a str);
        let cases: [Harm<'_>; 8] = [
            ("index", &|| flip(&index), Part::LayerIndex, "is damaged: rebuild it"),
            ("no index", &|| fs::remove_file(&index).unwrap(), Part::LayerIndex, "it is missing"),
            ("merged", &|| flip(&merged), Part::MergedIndex, "is damaged: rebuild it"),
            ("no merged", &|| fs::remove_file(&merged).unwrap(), Part::MergedIndex, "it is missing"),
            ("manifest", &|| flip(&store.blob_path(&entry.manifest)), Part::Blob, "it has been altered"),
            ("link", &|| fs::remove_file(store.blob_path(&layer)).unwrap(), Part::Layout, "is missing"),
            (
                "index.json",
                &|| fs::write(dir.path().join("index.json"), "{").unwrap(),
                Part::Layout,
                "damaged",
            ),
            (
                "no index.json",
                &|| fs::remove_file(dir.path().join("index.json")).unwrap(),
                Part::Layout,
                "missing",
            ),
        ];
        for (name, harm, part, text) in cases {
            harm();
            let problems = found(&store, Mending::Report);
            assert_eq!(problems.len(), 1, "{name}: {problems:?}");
            assert_eq!(problems[0].0, part, "{name}");
            assert!(problems[0].1.contains(text) && !problems[0].3, "{name}: {problems:?}");
            assert!(found(&store, Mending::Repair)[0].3, "{name}");
            assert_eq!(found(&store, Mending::Report), [], "{name}");
        }
    }

    #[test]
    fn an_index_of_another_layer_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let (_, a) = store_image(&store, "a");
        let (_, b) = store_image(&store, "b");
        fs::copy(store.layer_index_path(&a), store.layer_index_path(&b)).unwrap();
        let problems = found(&store, Mending::Repair);
        assert_eq!(problems, [(Part::LayerIndex, "it is not the index of this layer".to_owned(), 1, true)]);
        fs::copy(store.merged_path(&[a]), store.merged_path(&[b])).unwrap();
        let problems = found(&store, Mending::Repair);
        assert_eq!(
            problems,
            [(Part::MergedIndex, "it is not the index of these layers".to_owned(), 1, true)]
        );
        assert_eq!(found(&store, Mending::Report), []);
    }

    #[test]
    fn altered_layers_and_configs_are_named_and_cannot_be_mended() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let (id, layer) = store_image(&store, "a");
        let (other, _) = store_image(&store, "b");
        let tar = store.layer_tar(&layer);
        let mut bytes = fs::read(&tar).unwrap();
        bytes[512] ^= 1;
        fs::write(&tar, bytes).unwrap();
        let report = store.verify(None, Depth::Content, Mending::Repair).unwrap();
        assert_eq!(report.problems.len(), 1);
        assert_eq!((report.problems[0].part, &report.problems[0].name[..]), (Part::Layer, layer.as_str()));
        assert_eq!(report.problems[0].images, BTreeSet::from([id.clone()]));
        assert!(report.is_bad());
        // The other image is whole.
        assert!(!store.verify(Some(&[other]), Depth::Content, Mending::Report).unwrap().is_bad());
        // Presence alone does not tell.
        assert!(!store.verify(None, Depth::Presence, Mending::Report).unwrap().is_bad());
        fs::remove_file(store.blob_path(&id)).unwrap();
        let problems = found(&store, Mending::Repair);
        assert!(problems.contains(&(Part::Blob, "it is missing".to_owned(), 1, false)), "{problems:?}");
    }

    #[test]
    fn blobs_that_nobody_needs_are_checked_too() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let digest = store.put_blob(b"alone").unwrap();
        fs::write(store.blob_path(&digest), "other").unwrap();
        let problems = found(&store, Mending::Report);
        assert_eq!(problems.len(), 1);
        assert_eq!((problems[0].0, problems[0].2), (Part::Blob, 0));
    }
}
