//! Writing images out: `hostel save`.
//!
//! The archive is what `docker save` writes since version 25: an OCI image layout whose layers are
//! uncompressed, with manifest.json beside it. Docker, podman and skopeo read it, either way.
//! Members follow from the images alone, so saving twice gives the same bytes.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{self, Write};

use serde_json::{Value, json};
use tar::{EntryType, Header};

use super::error::{ImageError, Result};
use super::find::find;
use super::reference::Reference;
use crate::id::Digest;
use crate::store::{Catalog, Store};

/// Writes images, each asked for by a name or an id, as one archive to `out`. `path` is what
/// messages call it. Under a name only that name is saved, under an id none.
///
/// # Errors
/// There is no such image; the archive cannot be written.
pub fn save(store: &Store, texts: &[String], out: &mut File, path: &std::path::Path) -> Result<()> {
    let _lock = store.lock_content()?;
    let catalog = store.catalog()?;
    let images = chosen(&catalog, texts)?;
    let failed = |source| ImageError::Write { path: path.to_owned(), source };
    let mut writer = Writer { out, written: HashSet::new() };
    let mut manifest = Vec::new();
    let mut descriptors = Vec::new();
    let mut repositories: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    writer.directory("blobs/").map_err(failed)?;
    writer.directory("blobs/sha256/").map_err(failed)?;
    for (id, names) in &images {
        let entry = catalog.images.get(id).ok_or_else(|| ImageError::NotFound(id.to_string()))?;
        for layer in &entry.layers {
            let path = store.layer_tar(layer);
            let file = File::open(&path).map_err(|source| ImageError::Read { path, source })?;
            writer.layer(layer, file).map_err(failed)?;
        }
        for digest in [id, &entry.manifest] {
            let bytes = store.blob(digest)?.ok_or_else(|| ImageError::NotFound(digest.to_string()))?;
            writer.blob(digest, &bytes).map_err(failed)?;
        }
        let layers: Vec<String> = entry.layers.iter().map(blob_path).collect();
        // Whole names: podman takes a short one for an image of no registry.
        let tags: Vec<String> = names.iter().map(ToString::to_string).collect();
        manifest.push(json!({ "Config": blob_path(id), "RepoTags": tags, "Layers": layers }));
        descriptors.extend(described(entry, names));
        for name in names {
            let top = entry.layers.last().map_or(String::new(), |layer| layer.hex().to_owned());
            let tags = repositories.entry(name.familiar_repository()).or_default();
            tags.insert(name.tag().unwrap_or_default().to_owned(), top);
        }
    }
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": descriptors,
    });
    writer.file("index.json", index.to_string().as_bytes()).map_err(failed)?;
    writer.file("manifest.json", Value::Array(manifest).to_string().as_bytes()).map_err(failed)?;
    writer.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#).map_err(failed)?;
    writer.file("repositories", json!(repositories).to_string().as_bytes()).map_err(failed)?;
    // Two blocks of zeros end an archive (pax(1), ustar interchange format).
    writer.out.write_all(&[0; 1024]).map_err(failed)
}

/// The images that were asked for, in that order, each with the names under which it was.
fn chosen(catalog: &Catalog, texts: &[String]) -> Result<Vec<(Digest, Vec<Reference>)>> {
    let mut images: Vec<(Digest, Vec<Reference>)> = Vec::new();
    for text in texts {
        let id = find(catalog, text)?;
        let place = match images.iter().position(|(known, _)| *known == id) {
            Some(place) => place,
            None => {
                images.push((id, Vec::new()));
                images.len() - 1
            }
        };
        let (id, names) = &mut images[place];
        // A short id reads like a name: it is one only where the catalog has it.
        let named = text.parse::<Reference>().ok().map(Reference::with_default_tag);
        let named =
            named.filter(|name| catalog.names.get(&name.to_string()).is_some_and(|entry| entry.image == *id));
        names.extend(named.filter(|name| !names.contains(name)));
    }
    Ok(images)
}

fn described(entry: &crate::store::ImageEntry, names: &[Reference]) -> Vec<Value> {
    let descriptor = json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": entry.manifest, "size": entry.manifest_bytes,
        "platform": { "architecture": entry.architecture, "os": entry.os },
    });
    if names.is_empty() {
        return vec![descriptor];
    }
    let named = |name: &Reference| {
        let mut descriptor = descriptor.clone();
        descriptor["annotations"] = json!({
            "io.containerd.image.name": name.to_string(),
            "org.opencontainers.image.ref.name": name.tag().unwrap_or_default(),
        });
        descriptor
    };
    names.iter().map(named).collect()
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

struct Writer<'a> {
    out: &'a mut File,
    /// Blobs that are in the archive.
    written: HashSet<Digest>,
}

impl Writer<'_> {
    fn directory(&mut self, name: &str) -> io::Result<()> {
        self.header(name, EntryType::Directory, 0o755, 0)
    }

    fn file(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.header(name, EntryType::Regular, 0o644, bytes.len() as u64)?;
        self.out.write_all(bytes)?;
        self.pad(bytes.len() as u64)
    }

    fn blob(&mut self, digest: &Digest, bytes: &[u8]) -> io::Result<()> {
        if self.written.insert(digest.clone()) { self.file(&blob_path(digest), bytes) } else { Ok(()) }
    }

    /// Copies a layer from file to file, which the kernel does where it can (copy_file_range,
    /// splice).
    fn layer(&mut self, digest: &Digest, mut tar: File) -> io::Result<()> {
        if !self.written.insert(digest.clone()) {
            return Ok(());
        }
        let size = tar.metadata()?.len();
        self.header(&blob_path(digest), EntryType::Regular, 0o644, size)?;
        let copied = io::copy(&mut tar, self.out)?;
        if copied != size {
            return Err(io::Error::other(format!("layer {digest} changed while it was read")));
        }
        self.pad(size)
    }

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
