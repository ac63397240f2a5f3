//! Writing images out: `hostel save`.
//!
//! Four forms. A *docker-archive* is what `docker save` writes since version 25: an OCI image layout
//! whose layers are uncompressed, with manifest.json beside it; Docker, podman and skopeo read it,
//! either way. An *oci-archive* is the layout alone, an *oci-dir* the same in a directory; there an
//! image's tag is its whole name, as podman writes and expects it, and an image of a registry is written
//! with the manifest and the compressed layers that it came with, if they are here. A *docker-dir* is one image as
//! skopeo's `dir:` has it: manifest.json, version, and a file a blob.
//!
//! What is written follows from the images alone, so saving twice gives the same bytes.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};

use super::error::{ImageError, Result};
use super::find::{find_for, found};
use super::platform::Platform;
use super::reference::Reference;
use super::several::{OCI_INDEX, annotate_value, annotations_of};
use crate::id::Digest;
use crate::store::{Catalog, ImageEntry, OCI_MANIFEST, Several, Store};

const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
const OCI_LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
/// What skopeo's `dir:` begins with.
const DIR_VERSION: &[u8] = b"Directory Transport Version: 1.1\n";

/// How images are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SaveFormat {
    /// What `docker save` writes.
    #[default]
    DockerArchive,
    /// A tar of an OCI layout.
    OciArchive,
    /// An OCI layout.
    OciDir,
    /// One image in a directory, with Docker's media types.
    DockerDir,
}

/// What is written, and how.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// Names and ids. Under a name only that name is saved, under an id none.
    pub texts: &'a [String],
    /// How it is written.
    pub format: SaveFormat,
    /// Of what stands for several platforms this one alone.
    pub platform: Option<Platform>,
}

/// Writes images as one archive to `out`. `path` is what messages call it. What a name stands for is written with
/// all platforms, joined by an index; what other tools read of a docker-archive is this machine's.
///
/// # Errors
/// There is no such image; the archive cannot be written.
pub fn save(store: &Store, wanted: &Wanted<'_>, out: &mut File, path: &Path) -> Result<()> {
    let mut tar = TarWriter { out };
    write(store, wanted, &mut tar, path)?;
    // Two blocks of zeros end an archive (pax(1), ustar interchange format).
    out.write_all(&[0; 1024]).map_err(|source| ImageError::Write { path: path.to_owned(), source })
}

/// Writes images into a directory, which is made if it is not there.
///
/// # Errors
/// As [`save`]; of a docker-dir, more than one image.
pub fn save_directory(store: &Store, wanted: &Wanted<'_>, path: &Path) -> Result<()> {
    let failed = |source| ImageError::Write { path: path.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(failed)?;
    let mut directory = DirectoryWriter { root: path.to_owned() };
    write(store, wanted, &mut directory, path)
}

/// Writes images as one, an index over them, as an OCI archive to `out`. The caller holds the content lock.
///
/// # Errors
/// As [`save`].
pub fn save_several(
    store: &Store,
    several: &Several,
    names: &[Reference],
    out: &mut File,
    path: &Path,
) -> Result<()> {
    write_several(store, several, names, &mut TarWriter { out }, path)?;
    out.write_all(&[0; 1024]).map_err(|source| ImageError::Write { path: path.to_owned(), source })
}

/// As [`save_several`], to a directory, which is made if it is not there.
///
/// # Errors
/// As [`save`].
pub fn save_several_directory(
    store: &Store,
    several: &Several,
    names: &[Reference],
    path: &Path,
) -> Result<()> {
    let failed = |source| ImageError::Write { path: path.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(failed)?;
    write_several(store, several, names, &mut DirectoryWriter { root: path.to_owned() }, path)
}

fn write_several(
    store: &Store,
    several: &Several,
    names: &[Reference],
    target: &mut dyn Target,
    path: &Path,
) -> Result<()> {
    let failed = |source| ImageError::Write { path: path.to_owned(), source };
    let catalog = store.catalog()?;
    let mut writer = Writer { store, target, path, written: HashSet::new() };
    writer.target.directory("blobs/").map_err(failed)?;
    writer.target.directory("blobs/sha256/").map_err(failed)?;
    let descriptor = writer.joined(&catalog, several, false)?;
    let index = json!({
        "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": described(&descriptor, names, false),
    });
    writer.target.file("index.json", index.to_string().as_bytes()).map_err(failed)?;
    writer.target.file("oci-layout", OCI_LAYOUT).map_err(failed)
}

fn write(store: &Store, wanted: &Wanted<'_>, target: &mut dyn Target, path: &Path) -> Result<()> {
    let _lock = store.lock_content()?;
    let catalog = store.catalog()?;
    let images = chosen(store, &catalog, wanted)?;
    let mut writer = Writer { store, target, path, written: HashSet::new() };
    match (wanted.format, &images[..]) {
        (SaveFormat::DockerDir, [one]) => writer.docker_directory(&catalog, &one.id),
        (SaveFormat::DockerDir, _) => Err(ImageError::OneImageOnly { path: path.to_owned() }),
        (SaveFormat::DockerArchive, _) => writer.layout(&catalog, &images, true),
        (SaveFormat::OciArchive | SaveFormat::OciDir, _) => writer.layout(&catalog, &images, false),
    }?;
    images.iter().for_each(|one| super::told::tell(store, "save", &one.id));
    Ok(())
}

/// An image that was asked for, with the names under which it was, and what they stand for besides.
struct Chosen {
    id: Digest,
    several: Option<Several>,
    names: Vec<Reference>,
}

/// The images that were asked for, in that order.
fn chosen(store: &Store, catalog: &Catalog, wanted: &Wanted<'_>) -> Result<Vec<Chosen>> {
    let mut images: Vec<Chosen> = Vec::new();
    for text in wanted.texts {
        let id = find_for(store, catalog, text, wanted.platform.as_ref())?;
        let (_, entry) = found(catalog, text)?;
        let several = entry.filter(|_| wanted.platform.is_none()).and_then(|entry| entry.several.clone());
        let place = match images.iter().position(|known| known.id == id && known.several == several) {
            Some(place) => place,
            None => {
                images.push(Chosen { id, several, names: Vec::new() });
                images.len() - 1
            }
        };
        let Chosen { id, names, .. } = &mut images[place];
        // A short id reads like a name: it is one only where the catalog has it.
        let named = text.parse::<Reference>().ok().map(Reference::with_default_tag);
        let named = named.filter(|name| {
            catalog.names.get(&name.to_string()).is_some_and(|entry| entry.images().any(|one| one == id))
        });
        names.extend(named.filter(|name| !names.contains(name)));
    }
    Ok(images)
}

/// A descriptor under each of its names.
fn described(descriptor: &Value, names: &[Reference], with_docker: bool) -> Vec<Value> {
    if names.is_empty() {
        return vec![descriptor.clone()];
    }
    let named = |name: &Reference| {
        let tag = if with_docker { name.tag().unwrap_or_default().to_owned() } else { name.to_string() };
        let mut descriptor = descriptor.clone();
        descriptor["annotations"]["io.containerd.image.name"] = json!(name.to_string());
        descriptor["annotations"]["org.opencontainers.image.ref.name"] = json!(tag);
        descriptor
    };
    names.iter().map(named).collect()
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Where files are written to.
trait Target {
    fn directory(&mut self, name: &str) -> io::Result<()>;
    fn file(&mut self, name: &str, bytes: &[u8]) -> io::Result<()>;
    /// Copies a file of `size` bytes, which the kernel does where it can (copy_file_range, splice).
    fn copy(&mut self, name: &str, from: &mut File, size: u64) -> io::Result<()>;
}

struct Writer<'a> {
    store: &'a Store,
    target: &'a mut dyn Target,
    /// What messages call the target.
    path: &'a Path,
    /// Blobs that have been written.
    written: HashSet<Digest>,
}

impl Writer<'_> {
    fn layout(&mut self, catalog: &Catalog, images: &[Chosen], with_docker: bool) -> Result<()> {
        let path = self.path.to_owned();
        let failed = |source| ImageError::Write { path: path.clone(), source };
        let mut manifest = Vec::new();
        let mut descriptors = Vec::new();
        let mut repositories: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        self.target.directory("blobs/").map_err(failed)?;
        self.target.directory("blobs/sha256/").map_err(failed)?;
        for Chosen { id, several, names } in images {
            let entry = entry_of(catalog, id)?;
            let descriptor = match several {
                Some(several) => self.joined(catalog, several, with_docker)?,
                None => {
                    let bytes = self.image(id, entry, with_docker)?;
                    let digest = Digest::from_bytes(&Sha256::digest(&bytes).into());
                    json!({
                        "mediaType": OCI_MANIFEST, "digest": digest, "size": bytes.len(),
                        "platform": { "architecture": entry.architecture, "os": entry.os },
                    })
                }
            };
            let layers: Vec<String> = entry.layers.iter().map(blob_path).collect();
            // Whole names: podman takes a short one for an image of no registry.
            let tags: Vec<String> = names.iter().map(ToString::to_string).collect();
            manifest.push(json!({ "Config": blob_path(id), "RepoTags": tags, "Layers": layers }));
            descriptors.extend(described(&descriptor, names, with_docker));
            for name in names {
                let top = entry.layers.last().map_or(String::new(), |layer| layer.hex().to_owned());
                let tags = repositories.entry(name.familiar_repository()).or_default();
                tags.insert(name.tag().unwrap_or_default().to_owned(), top);
            }
        }
        let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": descriptors });
        self.target.file("index.json", index.to_string().as_bytes()).map_err(failed)?;
        if with_docker {
            self.target
                .file("manifest.json", Value::Array(manifest).to_string().as_bytes())
                .map_err(failed)?;
        }
        self.target.file("oci-layout", OCI_LAYOUT).map_err(failed)?;
        if with_docker {
            self.target.file("repositories", json!(repositories).to_string().as_bytes()).map_err(failed)?;
        }
        Ok(())
    }

    /// Writes images of several platforms and the index over them, and gives its descriptor. One alone is its
    /// manifest.
    fn joined(&mut self, catalog: &Catalog, several: &Several, with_docker: bool) -> Result<Value> {
        let mut manifests = Vec::new();
        for member in &several.members {
            let bytes = self.image(&member.id, entry_of(catalog, &member.id)?, with_docker)?;
            manifests.push((Digest::from_bytes(&Sha256::digest(&bytes).into()), bytes.len() as u64));
        }
        if let ([member], [(digest, size)]) = (&several.members[..], &manifests[..]) {
            let mut one = json!({ "mediaType": OCI_MANIFEST, "digest": digest, "size": size });
            annotate_value(&mut one, &member.annotations);
            return Ok(one);
        }
        let bytes = several.index(self.store, &manifests)?;
        let digest = Digest::from_bytes(&Sha256::digest(&bytes).into());
        if self.written.insert(digest.clone()) {
            self.target
                .file(&blob_path(&digest), &bytes)
                .map_err(|source| ImageError::Write { path: self.path.to_owned(), source })?;
        }
        let mut index = json!({ "mediaType": OCI_INDEX, "digest": digest, "size": bytes.len() });
        annotate_value(&mut index, &several.descriptor);
        Ok(index)
    }

    /// Writes all of an image, and gives its manifest.
    fn image(&mut self, id: &Digest, entry: &ImageEntry, with_docker: bool) -> Result<Vec<u8>> {
        super::intact::ensure(self.store, entry)?;
        let config_bytes = self.blob(&blob_path(id), id)?;
        // What other tools read of a docker-archive is the same by either way.
        let whole = if with_docker { None } else { self.as_it_came(entry)? };
        let bytes = match whole {
            Some(bytes) => bytes,
            None => {
                for layer in &entry.layers {
                    self.layer(&blob_path(layer), layer)?;
                }
                let plain = self.store.layout_manifest((id, config_bytes), &entry.layers)?;
                let annotations = annotations_of(self.store, &entry.manifest)?;
                if annotations.is_empty() {
                    plain
                } else {
                    let mut manifest: Value = serde_json::from_slice(&plain)
                        .map_err(|source| ImageError::StoredConfig { image: id.clone(), source })?;
                    annotate_value(&mut manifest, &annotations);
                    manifest.to_string().into_bytes()
                }
            }
        };
        let digest = Digest::from_bytes(&Sha256::digest(&bytes).into());
        if self.written.insert(digest.clone()) {
            self.target
                .file(&blob_path(&digest), &bytes)
                .map_err(|source| ImageError::Write { path: self.path.to_owned(), source })?;
        }
        Ok(bytes)
    }

    /// Writes the layers of an image as a registry gave them, or as they were pushed to one, and gives the
    /// manifest that names them, so that the image keeps its digest. `None` where they are not all here.
    fn as_it_came(&mut self, entry: &ImageEntry) -> Result<Option<Vec<u8>>> {
        let Some(bytes) = self.store.blob(&entry.manifest)? else { return Ok(None) };
        let found = Digest::from_bytes(&Sha256::digest(&bytes).into());
        let layers = self.store.manifest_layers(&entry.manifest)?;
        if found != entry.manifest || layers.len() != entry.layers.len() || layers == entry.layers {
            return Ok(None);
        }
        let mut files = Vec::new();
        for layer in &layers {
            let Some(file) = self.store.open_blob(layer)? else { return Ok(None) };
            files.push(file);
        }
        for (layer, mut file) in layers.iter().zip(files) {
            let name = blob_path(layer);
            let unreadable = |source| ImageError::Read { path: name.clone().into(), source };
            let size = file.metadata().map_err(unreadable)?.len();
            if self.written.insert(layer.clone()) {
                self.target
                    .copy(&name, &mut file, size)
                    .map_err(|source| ImageError::Write { path: self.path.to_owned(), source })?;
            }
        }
        Ok(Some(bytes))
    }

    fn docker_directory(&mut self, catalog: &Catalog, id: &Digest) -> Result<()> {
        let path = self.path.to_owned();
        let failed = |source| ImageError::Write { path: path.clone(), source };
        let entry = entry_of(catalog, id)?;
        super::intact::ensure(self.store, entry)?;
        let mut layers = Vec::new();
        for layer in &entry.layers {
            let size = self.layer(layer.hex(), layer)?;
            layers.push(json!({ "mediaType": DOCKER_LAYER, "size": size, "digest": layer }));
        }
        let size = self.blob(id.hex(), id)?;
        let manifest = json!({
            "schemaVersion": 2, "mediaType": DOCKER_MANIFEST,
            "config": { "mediaType": DOCKER_CONFIG, "size": size, "digest": id },
            "layers": layers,
        });
        self.target.file("manifest.json", manifest.to_string().as_bytes()).map_err(failed)?;
        self.target.file("version", DIR_VERSION).map_err(failed)
    }

    /// Writes a config or manifest, once, and gives its size.
    fn blob(&mut self, name: &str, digest: &Digest) -> Result<u64> {
        let missing = || ImageError::NotFound(digest.to_string());
        let bytes = self.store.blob(digest)?.ok_or_else(missing)?;
        if self.written.insert(digest.clone()) {
            // A damaged blob would be refused by whoever reads this, too late.
            let found = Digest::from_bytes(&Sha256::digest(&bytes).into());
            super::ingest::check_digest(name, Some(digest), &found)?;
            self.target
                .file(name, &bytes)
                .map_err(|source| ImageError::Write { path: self.path.to_owned(), source })?;
        }
        Ok(bytes.len() as u64)
    }

    /// Writes a layer, once, and gives its size.
    fn layer(&mut self, name: &str, digest: &Digest) -> Result<u64> {
        let path = self.store.layer_tar(digest);
        let unreadable = |source| ImageError::Read { path: path.clone(), source };
        let mut tar = File::open(&path).map_err(unreadable)?;
        let size = tar.metadata().map_err(unreadable)?.len();
        if self.written.insert(digest.clone()) {
            self.target
                .copy(name, &mut tar, size)
                .map_err(|source| ImageError::Write { path: self.path.to_owned(), source })?;
        }
        Ok(size)
    }
}

fn entry_of<'a>(catalog: &'a Catalog, id: &Digest) -> Result<&'a ImageEntry> {
    catalog.images.get(id).ok_or_else(|| ImageError::NotFound(id.to_string()))
}

/// Copies a whole file; one that is longer or shorter than it was is not what was promised.
fn copy_whole(from: &mut File, to: &mut File, size: u64) -> io::Result<()> {
    let copied = io::copy(from, to)?;
    if copied == size { Ok(()) } else { Err(io::Error::other("a layer changed while it was read")) }
}

struct TarWriter<'a> {
    out: &'a mut File,
}

impl Target for TarWriter<'_> {
    fn directory(&mut self, name: &str) -> io::Result<()> {
        self.header(name, EntryType::Directory, 0o755, 0)
    }

    fn file(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.header(name, EntryType::Regular, 0o644, bytes.len() as u64)?;
        self.out.write_all(bytes)?;
        self.pad(bytes.len() as u64)
    }

    fn copy(&mut self, name: &str, from: &mut File, size: u64) -> io::Result<()> {
        self.header(name, EntryType::Regular, 0o644, size)?;
        copy_whole(from, self.out, size)?;
        self.pad(size)
    }
}

impl TarWriter<'_> {
    fn header(&mut self, name: &str, kind: EntryType, mode: u32, size: u64) -> io::Result<()> {
        let mut header = Header::new_ustar();
        header.set_path(name)?;
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(size);
        header.set_cksum();
        self.out.write_all(header.as_bytes())
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let rest = (512 - size % 512) % 512;
        self.out.write_all(&[0; 512][..usize::try_from(rest).unwrap_or(0)])
    }
}

/// Files of a directory; whole ones replace what is there.
struct DirectoryWriter {
    root: PathBuf,
}

impl DirectoryWriter {
    fn write(&self, name: &str, content: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
        let place = self.root.join(name);
        let beside = place.with_extension(format!("part-{}", std::process::id()));
        let mut file = File::create(&beside)?;
        let written = content(&mut file).and_then(|()| fs::rename(&beside, &place));
        if written.is_err() {
            // The first error is the one to tell.
            let _ = fs::remove_file(&beside);
        }
        written
    }
}

impl Target for DirectoryWriter {
    fn directory(&mut self, name: &str) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o755).create(self.root.join(name))
    }

    fn file(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.write(name, |file| file.write_all(bytes))
    }

    fn copy(&mut self, name: &str, from: &mut File, size: u64) -> io::Result<()> {
        self.write(name, |file| copy_whole(from, file, size))
    }
}
