//! Stores of others (`additional_image_stores`): their images may be used, they are never written.
//!
//! Reading falls back to them one after the other, so an image of theirs is listed, inspected, run
//! and saved as one of our own, and a pull takes a layer that they have from there. No lock is taken:
//! a lock would let every reader hold up the owner's collections. So the owner may remove what a
//! container of ours was made from; a running one keeps its open files, a stopped one says what it
//! misses.
//!
//! Such a store is trusted as its owner is. One that everybody may write to is not used.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use fuse_overlay::index::MergedIndex;

use super::{Catalog, FORMAT, Format, KNOWN_FEATURES, Result, Store, StoreError, VERSION, read_json};
use crate::id::Digest;

/// What a reader needs of a store, below its root.
const READ: [&str; 5] = ["", "blobs", "blobs/sha256", "layers", "merged"];
/// Single files that a reader needs.
const READ_FILES: [&str; 4] = [FORMAT, "oci-layout", "images.json", "index.json"];
/// Mode bits of a store's root that say that others may read it.
const SHARE_BITS: u32 = 0o055;
/// Those of them that mean something for a file.
const SHARE_FILE_BITS: u32 = 0o044;
const WORLD_WRITABLE: u32 = 0o002;

impl Store {
    /// Whether `root` can be used as an additional store.
    ///
    /// # Errors
    /// It is no store that this program can read, or everybody may write to it.
    pub fn check_shared(root: &Path) -> Result<()> {
        let format: Option<Format> = read_json(root, &root.join(FORMAT))?;
        let format = format.ok_or_else(|| StoreError::NotAStore { root: root.to_owned() })?;
        if format.version > VERSION {
            return Err(StoreError::Version { root: root.to_owned(), found: format.version });
        }
        if let Some(feature) =
            format.required_features.into_iter().find(|feature| !KNOWN_FEATURES.contains(&feature.as_str()))
        {
            return Err(StoreError::Feature { root: root.to_owned(), feature });
        }
        for name in READ {
            let path = if name.is_empty() { root.to_owned() } else { root.join(name) };
            let metadata = fs::metadata(&path).map_err(StoreError::io("look at", &path))?;
            if metadata.mode() & WORLD_WRITABLE != 0 {
                return Err(StoreError::WorldWritable { path });
            }
            fs::read_dir(&path).map_err(StoreError::io("read", &path))?;
        }
        // Read if they are there and can be.
        let native = root.join("native");
        if fs::metadata(&native).is_ok_and(|metadata| metadata.mode() & WORLD_WRITABLE != 0) {
            return Err(StoreError::WorldWritable { path: native });
        }
        Ok(())
    }

    /// The store's images and those of additional stores.
    ///
    /// # Errors
    /// images.json of this store, or of another, is damaged or cannot be read.
    pub fn catalog(&self) -> Result<Catalog> {
        let mut catalog = self.own_catalog()?;
        for root in &self.shared {
            let other: Catalog = read_json(root, &root.join("images.json"))?.unwrap_or_default();
            for (id, entry) in other.images {
                if !catalog.images.contains_key(&id) {
                    catalog.images.insert(id.clone(), entry);
                    catalog.read_only.insert(id, root.clone());
                }
            }
            for (name, entry) in other.names {
                // A name of our own hides theirs; an image that we have, too, keeps our names.
                if catalog.read_only.contains_key(&entry.image) {
                    catalog.names.entry(name).or_insert(entry);
                }
            }
        }
        Ok(catalog)
    }

    /// Makes an image of an additional store one of our own: it then has names of ours. Its layers
    /// stay where they are. The caller holds the content lock.
    ///
    /// # Errors
    /// Its config cannot be read; files cannot be written.
    pub fn adopt(&self, id: &Digest) -> Result<()> {
        let catalog = self.catalog()?;
        let Some(entry) = catalog.images.get(id).filter(|_| catalog.read_only.contains_key(id)) else {
            return Ok(());
        };
        let mut entry = entry.clone();
        let config = self.blob(id)?.ok_or_else(|| StoreError::Blob { digest: id.clone() })?;
        self.put_blob(&config)?;
        (entry.manifest, entry.manifest_bytes) =
            self.put_layout_manifest((id, config.len() as u64), &entry.layers)?;
        self.update_catalog(|catalog| {
            catalog.images.entry(id.clone()).or_insert(entry);
            Ok(())
        })
    }

    /// The additional store that has this layer, where the store itself does not.
    pub(super) fn shared_layer(&self, diff_id: &Digest) -> Option<PathBuf> {
        self.shared_file(|root| root.join("layers").join(diff_id.hex()).join("layer.tar"))
            .and_then(|tar| tar.parent().map(Path::to_owned))
    }

    pub(super) fn shared_blob(&self, digest: &Digest) -> Option<PathBuf> {
        self.shared_file(|root| root.join("blobs/sha256").join(digest.hex()))
    }

    /// A merged index of another store, if it is whole as far as its header tells.
    pub(super) fn shared_merged(&self, name: &str) -> Option<PathBuf> {
        let path = self.shared_file(|root| root.join("merged").join(name))?;
        let usable = fs::File::open(&path).is_ok_and(|file| MergedIndex::open(&file).is_ok());
        usable.then_some(path)
    }

    fn shared_file(&self, place: impl Fn(&Path) -> PathBuf) -> Option<PathBuf> {
        self.shared.iter().map(|root| place(root)).find(|path| path.exists())
    }

    /// Whether a path is another store's.
    pub(super) fn is_shared(&self, path: &Path) -> bool {
        self.shared.iter().any(|root| path.starts_with(root))
    }
}

/// Lets those read `place` who may read the store at `root`: to share a store its owner opens its root
/// (`chmod 755`), and what is stored from then on follows. Containers and volumes stay private.
pub(super) fn follow_root(root: &Path, staged: &Path, place: &Path) {
    let Ok(relative) = place.strip_prefix(root) else { return };
    let is_content = ["blobs", "layers", "merged"].iter().any(|name| relative.starts_with(name));
    if !is_content && !READ_FILES.iter().any(|name| relative == Path::new(name)) {
        return;
    }
    let bits = fs::metadata(root).map_or(0, |metadata| metadata.mode()) & SHARE_BITS;
    if bits == 0 {
        return;
    }
    for name in READ.iter().skip(1).chain(&READ_FILES) {
        add_bits(&root.join(name), bits);
    }
    add_bits(staged, bits);
    for entry in fs::read_dir(staged).into_iter().flatten().flatten() {
        add_bits(&entry.path(), bits);
    }
}

/// What cannot be opened to others is only ours to read: their tools will say so.
fn add_bits(path: &Path, bits: u32) {
    let Ok(metadata) = fs::symlink_metadata(path) else { return };
    let bits = match metadata.file_type() {
        kind if kind.is_dir() => bits,
        kind if kind.is_file() => bits & SHARE_FILE_BITS,
        _ => return,
    };
    let mode = metadata.mode() & 0o7777;
    if mode & bits != bits {
        let _ = fs::set_permissions(path, fs::Permissions::from_mode(mode | bits));
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::super::collect::tests::store_image;
    use super::*;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn images_of_another_store_are_used_where_they_are() {
        let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let other = Store::open(theirs.path()).unwrap();
        let (id, layer) = store_image(&other, "docker.io/library/a:1");
        let store = Store::open_with(ours.path(), vec![theirs.path().to_owned()]).unwrap();
        let catalog = store.catalog().unwrap();
        assert_eq!(catalog.read_only[&id], theirs.path());
        assert_eq!(catalog.names["docker.io/library/a:1"].image, id);
        assert!(store.own_catalog().unwrap().images.is_empty());
        assert!(store.blob(&id).unwrap().is_some());
        assert!(store.layer_tar(&layer).starts_with(theirs.path()));
        let layers = std::slice::from_ref(&layer);
        assert!(store.merged_index(layers).unwrap().starts_with(theirs.path()));
        // Where theirs is of no use, one of our own is made.
        fs::write(other.merged_path(layers), "junk").unwrap();
        fs::write(other.layer_index_path(&layer), "junk").unwrap();
        assert!(store.merged_index(layers).unwrap().starts_with(ours.path()));
        assert_eq!(fs::read(other.layer_index_path(&layer)).unwrap(), b"junk");
    }

    #[test]
    fn an_adopted_image_is_ours_and_its_layers_theirs() {
        let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (id, layer) = store_image(&Store::open(theirs.path()).unwrap(), "docker.io/library/a:1");
        let store = Store::open_with(ours.path(), vec![theirs.path().to_owned()]).unwrap();
        store.adopt(&id).unwrap();
        assert!(store.catalog().unwrap().read_only.is_empty());
        assert!(store.own_catalog().unwrap().images.contains_key(&id));
        // The layout is whole: the layer is linked to.
        assert_eq!(fs::read(store.blob_path(&layer)).unwrap(), fs::read(store.layer_tar(&layer)).unwrap());
        let report = store.verify(None, super::super::Depth::Content, super::super::Mending::Report).unwrap();
        assert_eq!(report.problems, []);
        store.collect().unwrap();
        assert!(store.layer(&layer).unwrap().is_some());
    }

    #[test]
    fn what_everybody_may_write_to_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("s");
        assert!(matches!(Store::check_shared(&root), Err(StoreError::NotAStore { .. })));
        Store::open(&root).unwrap();
        Store::check_shared(&root).unwrap();
        set_mode(&root.join("layers"), 0o757);
        assert!(
            matches!(Store::check_shared(&root), Err(StoreError::WorldWritable { path }) if path.ends_with("layers"))
        );
        set_mode(&root.join("layers"), 0o755);
        fs::write(root.join(FORMAT), r#"{"version": 9, "required_features": []}"#).unwrap();
        assert!(matches!(Store::check_shared(&root), Err(StoreError::Version { found: 9, .. })));
    }

    #[test]
    fn content_is_as_readable_as_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("s")).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        let (_, private) = store_image(&store, "a");
        assert_eq!(mode(&store.layer_tar(&private)), 0o600);
        set_mode(store.root(), 0o755);
        let (id, shared) = store_image(&store, "b");
        for file in
            [store.layer_tar(&shared), store.blob_path(&id), store.path("images.json"), store.path(FORMAT)]
        {
            assert_eq!(mode(&file), 0o644, "{}", file.display());
        }
        for name in ["layers", "blobs", "blobs/sha256", "merged"] {
            assert_eq!(mode(&store.path(name)), 0o755, "{name}");
        }
        assert_eq!(mode(store.layer_tar(&shared).parent().unwrap()), 0o755);
        for name in ["containers", "volumes", "tmp"] {
            assert_eq!(mode(&store.path(name)), 0o700, "{name}");
        }
        assert_eq!(mode(&store.layer_tar(&private)), 0o600);
    }
}
