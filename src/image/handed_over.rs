//! The images in an archive or layout, found and checked before any layer is read.
//!
//! Two forms: a docker-archive (manifest.json names configs, layers and tags) and an OCI image
//! layout (index.json leads to manifests by digest). `docker save` writes both into one archive
//! since version 25; then manifest.json counts, as it has the names.

use std::collections::HashMap;
use std::path::Path;

use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use super::archive::Files;
use super::error::{ImageError, Result};
use super::ingest::check_digest;
use super::platform::Platform;
use super::reference::Reference;
use crate::id::Digest;

/// Manifests and indexes: the OCI distribution spec asks registries to take 4 MiB at least.
const MAX_MANIFEST_BYTES: u64 = 4 << 20;
/// Configs; with a long history they have some hundred KiB.
pub(super) const MAX_CONFIG_BYTES: u64 = 8 << 20;
/// Layers of an image: Docker's own limit.
pub(super) const MAX_LAYERS: usize = 127;
/// Indexes that lead to indexes: one level is common, a loop cannot be (digests), a chain can.
pub(super) const MAX_INDEX_DEPTH: usize = 4;

const REF_NAME: &str = "org.opencontainers.image.ref.name";
const CONTAINERD_NAME: &str = "io.containerd.image.name";
const ATTESTATION: &str = "vnd.docker.reference.type";

/// An image that can be stored.
#[derive(Debug)]
pub(super) struct Candidate {
    /// Digest of the config.
    pub(super) id: Digest,
    /// The config's bytes.
    pub(super) config: Vec<u8>,
    /// The config, understood.
    pub(super) configuration: ImageConfiguration,
    /// Diff ids, lowest layer first.
    pub(super) diff_ids: Vec<Digest>,
    /// Where the layers are, in the same order and number.
    pub(super) layers: Vec<LayerFile>,
    /// The manifest that led here, of a layout.
    pub(super) manifest: Option<(Digest, Vec<u8>)>,
    /// Its names.
    pub(super) names: Vec<Reference>,
}

/// A layer's file among those handed over.
#[derive(Debug)]
pub(super) struct LayerFile {
    pub(super) member: String,
    pub(super) digest: Option<Digest>,
    pub(super) size: Option<u64>,
}

/// Which images of a layout are wanted.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wanted<'a> {
    /// All of them.
    All,
    /// The one of this tag; without a tag the only one, or the one tagged `latest`.
    One(Option<&'a str>),
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ArchiveImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Finds the images of an archive or layout, in its order; of one for several platforms, that for `asked`
/// or this machine.
pub(super) fn candidates(
    files: &Files,
    wanted: Wanted<'_>,
    asked: Option<&Platform>,
) -> Result<Vec<Candidate>> {
    let is_docker = !matches!(wanted, Wanted::One(Some(_)));
    match files.read("manifest.json", MAX_MANIFEST_BYTES)? {
        Some(manifest) if is_docker => match asked {
            None => docker_candidates(files, &manifest, wanted),
            Some(asked) => docker_candidates_for(files, &manifest, wanted, asked),
        },
        _ => match files.read("index.json", MAX_MANIFEST_BYTES)? {
            Some(index) => layout_candidates(files, &index, wanted, asked),
            None => Err(ImageError::NoImage { path: files.path().to_owned() }),
        },
    }
}

/// As [`docker_candidates`], for a platform. What was written with all of an image's platforms has one in
/// manifest.json, and all in index.json.
fn docker_candidates_for(
    files: &Files,
    manifest: &[u8],
    wanted: Wanted<'_>,
    asked: &Platform,
) -> Result<Vec<Candidate>> {
    let found = match files.read("index.json", MAX_MANIFEST_BYTES)? {
        Some(index) => layout_candidates(files, &index, wanted, Some(asked))?,
        None => docker_candidates(files, manifest, wanted)?,
    };
    let platform = |one: &Candidate| Platform::of(one.configuration.os(), one.configuration.architecture());
    let platforms: Vec<_> = found.iter().map(|one| Some(platform(one))).collect();
    let fitting: Vec<_> = found.into_iter().filter(|one| asked.is_met_by(&platform(one))).collect();
    if fitting.is_empty() {
        return Err(ImageError::no_platform(files.path().to_owned(), Some(asked), &platforms));
    }
    Ok(fitting)
}

fn docker_candidates(files: &Files, manifest: &[u8], wanted: Wanted<'_>) -> Result<Vec<Candidate>> {
    let images: Vec<ArchiveImage> = json(files, "manifest.json", manifest)?;
    if let (Wanted::One(_), [_, _, ..]) = (wanted, &images[..]) {
        let known = images.iter().flat_map(|image| image.repo_tags.iter().flatten());
        let known = known.map(String::as_str).collect::<Vec<_>>().join(", ");
        return Err(ImageError::SeveralImages { path: files.path().to_owned(), known });
    }
    if images.is_empty() {
        return Err(ImageError::NoImage { path: files.path().to_owned() });
    }
    images.into_iter().map(|image| docker_candidate(files, image)).collect()
}

fn docker_candidate(files: &Files, image: ArchiveImage) -> Result<Candidate> {
    let config = require(files, &image.config, MAX_CONFIG_BYTES)?;
    let id = digest_of(&config);
    check_digest(&image.config, digest_in_name(&image.config).as_ref(), &id)?;
    let layers = image.layers.into_iter().map(|member| {
        // Only in the newer form is the name that of the bytes as they are.
        let digest = member.strip_prefix("blobs/sha256/").and_then(digest_in_name);
        LayerFile { member, digest, size: None }
    });
    let names = image.repo_tags.unwrap_or_default();
    let names = names.iter().map(|name| name.parse()).collect::<Result<Vec<Reference>, _>>()?;
    candidate(files.path(), &image.config, config, id, layers.collect(), None, names)
}

/// `<64 hex>` or `<64 hex>.json` at the end of a path.
fn digest_in_name(member: &str) -> Option<Digest> {
    let name = Path::new(member).file_name()?.to_str()?;
    format!("sha256:{}", name.strip_suffix(".json").unwrap_or(name)).parse().ok()
}

fn layout_candidates(
    files: &Files,
    index: &[u8],
    wanted: Wanted<'_>,
    asked: Option<&Platform>,
) -> Result<Vec<Candidate>> {
    let index: ImageIndex = json(files, "index.json", index)?;
    let descriptors: Vec<&Descriptor> =
        index.manifests().iter().filter(|found| !is_attestation(found)).collect();
    let chosen = match wanted {
        Wanted::All => descriptors,
        Wanted::One(tag) => choose(files, &descriptors, tag, asked)?,
    };
    if chosen.is_empty() {
        return Err(ImageError::NoImage { path: files.path().to_owned() });
    }
    let mut candidates: Vec<Candidate> = Vec::new();
    let mut by_manifest: HashMap<Digest, usize> = HashMap::new();
    for descriptor in chosen {
        let (digest, manifest) = manifest(files, descriptor, asked, 0)?;
        let name = name_of(files.path(), descriptor);
        if let Some(place) = by_manifest.get(&digest) {
            candidates[*place].names.extend(name);
            continue;
        }
        by_manifest.insert(digest.clone(), candidates.len());
        candidates.push(layout_candidate(files, digest, manifest, name)?);
    }
    Ok(candidates)
}

/// The descriptor of one image; of those that are the same image for several platforms, the one for `asked`.
fn choose<'a>(
    files: &Files,
    all: &[&'a Descriptor],
    tag: Option<&str>,
    asked: Option<&Platform>,
) -> Result<Vec<&'a Descriptor>> {
    let path = || files.path().to_owned();
    let known = || {
        let tags: Vec<&str> = all.iter().filter_map(|descriptor| annotation(descriptor, REF_NAME)).collect();
        if tags.is_empty() { "images without a tag".to_owned() } else { tags.join(", ") }
    };
    let tagged = |tag: Option<&str>| -> Vec<&'a Descriptor> {
        all.iter().filter(|found| annotation(found, REF_NAME) == tag).copied().collect()
    };
    let fitting = match tag {
        Some(tag) => tagged(Some(tag)),
        None if all.len() == 1 => all.to_vec(),
        None => {
            Some(tagged(Some("latest"))).filter(|found| !found.is_empty()).unwrap_or_else(|| tagged(None))
        }
    };
    match (tag, &fitting[..]) {
        (_, [one]) if tag.is_some() || all.len() == 1 || annotation(one, REF_NAME).is_some() => {
            Ok(vec![*one])
        }
        (Some(tag), []) => Err(ImageError::NoTag { path: path(), tag: tag.to_owned(), known: known() }),
        (None, []) if all.is_empty() => Err(ImageError::NoImage { path: path() }),
        (_, several) if several.len() > 1 && several.iter().all(|found| found.platform().is_some()) => {
            let platforms: Vec<_> = several.iter().map(|found| platform_of(found)).collect();
            match Platform::choose(asked, &platforms).and_then(|chosen| several.get(chosen)) {
                Some(chosen) => Ok(vec![*chosen]),
                None => Err(ImageError::no_platform(path(), asked, &platforms)),
            }
        }
        _ => Err(ImageError::SeveralImages { path: path(), known: known() }),
    }
}

fn platform_of(descriptor: &Descriptor) -> Option<Platform> {
    descriptor.platform().as_ref().map(Platform::of_descriptor)
}

/// A descriptor's manifest with its digest; of an index, the one for `asked` or this machine.
fn manifest(
    files: &Files,
    descriptor: &Descriptor,
    asked: Option<&Platform>,
    depth: usize,
) -> Result<(Digest, Vec<u8>)> {
    let (digest, bytes) = blob(files, descriptor, MAX_MANIFEST_BYTES)?;
    let is_index = match descriptor.media_type() {
        MediaType::ImageIndex => true,
        MediaType::Other(name) => name == "application/vnd.docker.distribution.manifest.list.v2+json",
        _ => false,
    };
    if !is_index {
        return Ok((digest, bytes));
    }
    if depth == MAX_INDEX_DEPTH {
        return Err(ImageError::IndexDepth { path: files.path().to_owned(), limit: MAX_INDEX_DEPTH });
    }
    let index: ImageIndex = json(files, digest.as_str(), &bytes)?;
    let images: Vec<_> = index.manifests().iter().filter(|found| !is_attestation(found)).collect();
    let platforms: Vec<_> = images.iter().map(|found| platform_of(found)).collect();
    match Platform::choose(asked, &platforms).and_then(|chosen| images.get(chosen)) {
        Some(found) => manifest(files, found, asked, depth + 1),
        None => Err(ImageError::no_platform(files.path().to_owned(), asked, &platforms)),
    }
}

fn layout_candidate(
    files: &Files,
    digest: Digest,
    bytes: Vec<u8>,
    name: Option<Reference>,
) -> Result<Candidate> {
    let manifest: ImageManifest = json(files, digest.as_str(), &bytes)?;
    let (id, config) = blob(files, manifest.config(), MAX_CONFIG_BYTES)?;
    let layers = manifest.layers().iter().map(|descriptor| {
        let digest = sha256(files, descriptor)?;
        Ok(LayerFile { member: blob_path(&digest), digest: Some(digest), size: Some(descriptor.size()) })
    });
    let layers = layers.collect::<Result<_>>()?;
    let names = name.into_iter().collect();
    candidate(files.path(), &id.to_string(), config, id, layers, Some((digest, bytes)), names)
}

/// Puts an image together. `place` and `member` are what messages call where it and its config are.
pub(super) fn candidate(
    place: &Path,
    member: &str,
    config: Vec<u8>,
    id: Digest,
    layers: Vec<LayerFile>,
    manifest: Option<(Digest, Vec<u8>)>,
    names: Vec<Reference>,
) -> Result<Candidate> {
    let configuration: ImageConfiguration = parse(place, member, &config)?;
    let path = || place.to_owned();
    let diff_ids = configuration.rootfs().diff_ids().iter().map(|digest| {
        digest.parse::<Digest>().map_err(|_| ImageError::Algorithm { path: path(), digest: digest.clone() })
    });
    let diff_ids = diff_ids.collect::<Result<Vec<_>>>()?;
    if diff_ids.len() != layers.len() {
        return Err(ImageError::LayerCount { path: path(), layers: layers.len(), diff_ids: diff_ids.len() });
    }
    if layers.len() > MAX_LAYERS {
        return Err(ImageError::TooManyLayers { path: path(), layers: layers.len(), limit: MAX_LAYERS });
    }
    let names = names.into_iter().map(Reference::with_default_tag).collect();
    Ok(Candidate { id, config, configuration, diff_ids, layers, manifest, names })
}

/// What an image of a layout is called: containerd's annotation has the whole name, the
/// standard's either a whole name or only a tag; then the repository is called as the layout is.
fn name_of(layout: &Path, descriptor: &Descriptor) -> Option<Reference> {
    if let Some(name) = annotation(descriptor, CONTAINERD_NAME) {
        return name.parse().ok();
    }
    let tag = annotation(descriptor, REF_NAME)?;
    if tag.contains(['/', ':']) {
        return tag.parse().ok();
    }
    let layout = std::path::absolute(layout).ok()?;
    let stem = if layout.is_dir() { layout.file_name()? } else { layout.file_stem()? };
    format!("{}:{tag}", stem.to_str()?.to_lowercase()).parse().ok()
}

fn annotation<'a>(descriptor: &'a Descriptor, key: &str) -> Option<&'a str> {
    descriptor.annotations().as_ref()?.get(key).map(String::as_str)
}

/// Build records beside an image, which BuildKit lists as images of no platform.
pub(super) fn is_attestation(descriptor: &Descriptor) -> bool {
    annotation(descriptor, ATTESTATION).is_some()
}

/// A descriptor's content, verified.
fn blob(files: &Files, descriptor: &Descriptor, limit: u64) -> Result<(Digest, Vec<u8>)> {
    let digest = sha256(files, descriptor)?;
    let bytes = require(files, &blob_path(&digest), limit)?;
    check_digest(&blob_path(&digest), Some(&digest), &digest_of(&bytes))?;
    Ok((digest, bytes))
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn sha256(files: &Files, descriptor: &Descriptor) -> Result<Digest> {
    let digest = descriptor.digest().to_string();
    digest.parse().map_err(|_| ImageError::Algorithm { path: files.path().to_owned(), digest })
}

fn digest_of(bytes: &[u8]) -> Digest {
    Digest::from_bytes(&Sha256::digest(bytes).into())
}

fn require(files: &Files, member: &str, limit: u64) -> Result<Vec<u8>> {
    let missing = || ImageError::Missing { path: files.path().to_owned(), member: member.to_owned() };
    files.read(member, limit)?.ok_or_else(missing)
}

fn json<T: DeserializeOwned>(files: &Files, member: &str, bytes: &[u8]) -> Result<T> {
    parse(files.path(), member, bytes)
}

/// Reads JSON. `place` and `member` are what messages call it.
pub(super) fn parse<T: DeserializeOwned>(place: &Path, member: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|source| ImageError::Json {
        path: place.to_owned(),
        member: member.to_owned(),
        source,
    })
}
