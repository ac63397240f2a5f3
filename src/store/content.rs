//! Blobs, packed layers and merged indexes.

use std::fs::{self, File};
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

use fuse_overlay::index::{self, Base, IndexError, Merged, MergedIndex};
use fuse_overlay::pack::{self, LayerIndex, Limits};
use sha2::{Digest as _, Sha256};

use super::catalog::layout_manifest;
use super::large_file::LargeFile;
use super::seal::is_sealed;
use super::settle::{self, Durable};
use super::staging::{Staged, create_file, sync_directory};
use super::{Result, Store, StoreError, read_limited};
use crate::id::Digest;

/// Manifests and configs: the OCI distribution spec asks registries to take 4 MiB at least, and no
/// image comes near.
pub(super) const MAX_BLOB_BYTES: u64 = 8 << 20;

/// The OCI chain id of a list of layers (image-spec, config.md): names the tree that they make.
#[must_use]
pub fn chain_id(layers: &[Digest]) -> Option<Digest> {
    let (first, rest) = layers.split_first()?;
    Some(rest.iter().fold(first.clone(), |chain, layer| {
        Digest::from_bytes(&Sha256::digest(format!("{chain} {layer}")).into())
    }))
}

/// The chain id of an image without layers: the digest of nothing.
fn empty_chain() -> Digest {
    Digest::from_bytes(&Sha256::digest(b"").into())
}

/// A layer in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredLayer {
    /// Bytes of its tar.
    pub tar_bytes: u64,
    /// Bytes of its files.
    pub content_bytes: u64,
}

impl Store {
    /// Reads a config or manifest; `None` where the store does not have it.
    ///
    /// # Errors
    /// The file cannot be read or is too large.
    pub fn blob(&self, digest: &Digest) -> Result<Option<Vec<u8>>> {
        match read_limited(&self.blob_path(digest), MAX_BLOB_BYTES)? {
            Some(bytes) => Ok(Some(bytes)),
            None => match self.shared_blob(digest) {
                Some(path) => read_limited(&path, MAX_BLOB_BYTES),
                None => Ok(None),
            },
        }
    }

    /// Stores a config or manifest.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn put_blob(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::from_bytes(&Sha256::digest(bytes).into());
        let place = self.blob_path(&digest);
        if !place.exists() {
            self.write(&place, bytes)?;
        }
        Ok(digest)
    }

    /// Makes and stores the manifest that shows an image in the store's own layout. Gives its digest
    /// and size.
    ///
    /// # Errors
    /// A layer is not stored; the file cannot be written.
    pub fn put_layout_manifest(&self, config: (&Digest, u64), layers: &[Digest]) -> Result<(Digest, u64)> {
        for layer in layers.iter().filter(|layer| self.is_shared(&self.layer_tar(layer))) {
            self.link_layer(layer)?;
        }
        let bytes = self.layout_manifest(config, layers)?;
        Ok((self.put_blob(&bytes)?, bytes.len() as u64))
    }

    /// The manifest of an image whose layers are as they are packed here, uncompressed.
    ///
    /// # Errors
    /// A layer is not stored.
    pub fn layout_manifest(&self, config: (&Digest, u64), layers: &[Digest]) -> Result<Vec<u8>> {
        let sized = |layer: &Digest| {
            let path = self.layer_tar(layer);
            let metadata = fs::metadata(&path).map_err(StoreError::io("look at", &path))?;
            Ok((layer.clone(), metadata.len()))
        };
        let layers = layers.iter().map(sized).collect::<Result<Vec<_>>>()?;
        Ok(layout_manifest(config, &layers))
    }

    pub(super) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.path("blobs/sha256").join(digest.hex())
    }

    /// Where a layer's tar is, or would be.
    #[must_use]
    pub fn layer_tar(&self, diff_id: &Digest) -> PathBuf {
        self.layer_directory(diff_id).join("layer.tar")
    }

    /// Where a layer is: here, in an additional store, or nowhere yet.
    fn layer_directory(&self, diff_id: &Digest) -> PathBuf {
        let own = self.own_layer_directory(diff_id);
        if self.shared.is_empty() || own.exists() { own } else { self.shared_layer(diff_id).unwrap_or(own) }
    }

    fn own_layer_directory(&self, diff_id: &Digest) -> PathBuf {
        self.path("layers").join(diff_id.hex())
    }

    pub(super) fn layer_index_path(&self, diff_id: &Digest) -> PathBuf {
        self.layer_directory(diff_id).join("index")
    }

    pub(super) fn merged_path(&self, layers: &[Digest]) -> PathBuf {
        self.path("merged").join(chain_id(layers).unwrap_or_else(empty_chain).hex())
    }

    /// A layer that is stored already.
    ///
    /// # Errors
    /// It is there, but cannot be read.
    pub fn layer(&self, diff_id: &Digest) -> Result<Option<StoredLayer>> {
        let path = self.layer_tar(diff_id);
        match fs::metadata(&path) {
            Ok(_) if !self.is_intact(diff_id)? => Ok(None),
            Ok(metadata) => {
                let content_bytes = self.layer_index(diff_id)?.total_size();
                Ok(Some(StoredLayer { tar_bytes: metadata.len(), content_bytes }))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("look at", &path)(error)),
        }
    }

    /// Begins a layer. The caller holds the content lock.
    ///
    /// # Errors
    /// Files cannot be made.
    pub fn new_layer(&self, durable: Durable) -> Result<LayerWriter> {
        let staged = self.stage_directory()?;
        let tar = create_file(&staged.path().join("layer.tar"))?;
        let durable = self.durable(durable);
        let tar = match durable {
            Durable::Now => LargeFile::new(tar, 0),
            Durable::Later => {
                settle::mark(staged.path())?;
                LargeFile::cached(tar)
            }
        };
        Ok(LayerWriter { store: self.clone(), staged, tar, durable })
    }

    /// The merged index of an image whose layers are stored; made where it is missing, of another
    /// version, or not what it was.
    ///
    /// # Errors
    /// A layer is missing or damaged; files cannot be read or written.
    pub fn merged_index(&self, layers: &[Digest]) -> Result<PathBuf> {
        let place = self.merged_path(layers);
        if let Ok(file) = File::open(&place) {
            match MergedIndex::open(&file) {
                Ok(_) if is_sealed(&place, &file) => return Ok(place),
                Ok(index) if index.verify().is_ok() => {
                    self.seal(&place, &file)?;
                    return Ok(place);
                }
                Err(IndexError::Read(source)) => return Err(StoreError::io("read", &place)(source)),
                Ok(_) | Err(_) => {}
            }
        }
        if let Some(shared) = self.shared_merged(&place.file_name().unwrap_or_default().to_string_lossy()) {
            return Ok(shared);
        }
        // What lies below may be merged already: a build adds one layer after the other.
        let below = layers.split_last().and_then(|(top, below)| Some((top, self.base(below)?)));
        let merged = match below {
            Some((top, base)) => {
                let top = self.layer_index(top)?;
                base.lay(&[&top]).map_err(|source| StoreError::Merge { source })?
            }
            None => self.merge(layers)?,
        };
        self.put_merged(&place, &merged)?;
        Ok(place)
    }

    /// Puts a merged index in its place. One that a stop of the machine tears is made again.
    fn put_merged(&self, place: &Path, merged: &Merged) -> Result<()> {
        let staged = self.stage();
        let mut file = create_file(staged.path())?;
        merged.write_to(&mut file).map_err(StoreError::io("write", place))?;
        staged.publish_unsynced(place)?;
        self.seal_for_this_boot(place, &file)
    }

    /// The tree of an image, to lay another layer over; `None` where its merged index is not there to
    /// be read, or not what it was.
    #[must_use]
    pub fn base(&self, layers: &[Digest]) -> Option<Base> {
        let own = self.merged_path(layers);
        let place = if own.exists() { own } else { self.shared_merged(&own.file_name()?.to_string_lossy())? };
        let file = File::open(&place).ok()?;
        let index = MergedIndex::open(&file).ok()?;
        if !is_sealed(&place, &file) && index.verify().is_err() {
            return None;
        }
        Base::of(&index).ok()
    }

    /// Makes the merged index of a base and one more layer, whose index this is.
    ///
    /// # Errors
    /// The layer does not fit on the base; files cannot be written.
    pub fn lay_over(&self, base: Base, layers: &[Digest], index: &LayerIndex) -> Result<()> {
        let place = self.merged_path(layers);
        if place.exists() {
            return Ok(());
        }
        let merged = base.lay(&[index]).map_err(|source| StoreError::Merge { source })?;
        self.put_merged(&place, &merged)
    }

    fn merge(&self, layers: &[Digest]) -> Result<Merged> {
        let indexes = layers.iter().map(|layer| self.layer_index(layer)).collect::<Result<Vec<_>>>()?;
        index::merge(&indexes).map_err(|source| StoreError::Merge { source })
    }

    /// The bytes that the merged index of these layers has to have.
    pub(super) fn merge_bytes(&self, layers: &[Digest]) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.merge(layers)?
            .write_to(&mut bytes)
            .map_err(StoreError::io("make", &self.merged_path(layers)))?;
        Ok(bytes)
    }

    /// A layer's index, made again from its tar where another version wrote it or it is damaged.
    pub(super) fn layer_index(&self, layer: &Digest) -> Result<LayerIndex> {
        let place = self.layer_index_path(layer);
        let opened = match File::open(&place) {
            Ok(file) => LayerIndex::open(&file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(IndexError::NotAnIndex),
            Err(error) => return Err(StoreError::io("open", &place)(error)),
        };
        match opened {
            Ok(index) => return Ok(index),
            Err(IndexError::Read(source)) => return Err(StoreError::io("read", &place)(source)),
            Err(_) => {}
        }
        let path = self.layer_tar(layer);
        let tar = File::open(&path).map_err(StoreError::io("open", &path))?;
        let index = pack::index_tar(BufReader::with_capacity(1 << 20, tar), &Limits::default())
            .map_err(|source| StoreError::Layer { layer: layer.clone(), source })?;
        let mut bytes = Vec::new();
        index.write_to(&mut bytes).map_err(StoreError::io("write", &place))?;
        if !self.is_shared(&place) {
            self.write_unsynced(&place, &bytes)?;
        }
        Ok(index)
    }
}

/// A layer being written. Dropped unfinished, it leaves nothing.
#[derive(Debug)]
pub struct LayerWriter {
    store: Store,
    staged: Staged,
    tar: LargeFile,
    durable: Durable,
}

impl LayerWriter {
    /// Appends to the tar. Chunks whose address and length are multiples of 4096
    /// are written the fastest.
    ///
    /// # Errors
    /// The disk is full or fails.
    pub fn write(&mut self, chunk: &[u8]) -> Result<()> {
        self.tar.write(chunk).map_err(StoreError::io("write", self.staged.path()))
    }

    /// Makes the layer durable, or leaves that for later, and visible as `diff_id`, which the caller
    /// has verified. Where another process stored the same layer meanwhile, this one goes away.
    ///
    /// # Errors
    /// The disk is full or fails.
    pub fn finish(self, diff_id: &Digest, index: &LayerIndex) -> Result<StoredLayer> {
        let path = self.staged.path();
        // An index has a checksum: one that a stop of the machine tears is made again.
        let mut file = create_file(&path.join("index"))?;
        index.write_to(&mut file).map_err(StoreError::io("write", path))?;
        if self.durable == Durable::Now {
            self.tar.sync().map_err(StoreError::io("sync", path))?;
        }
        sync_directory(path)?;
        let layer = StoredLayer { tar_bytes: self.tar.written(), content_bytes: index.total_size() };
        let place = self.store.own_layer_directory(diff_id);
        if place.exists() {
            // One that a stop of the machine tore makes room.
            self.store.is_intact(diff_id)?;
        }
        self.staged.publish(&place)?;
        self.store.link_layer(diff_id)?;
        Ok(layer)
    }
}

/// A blob being written whose digest is not known yet. Dropped unfinished, it leaves nothing.
#[derive(Debug)]
pub struct NewBlob {
    store: Store,
    staged: Staged,
    file: LargeFile,
}

impl NewBlob {
    /// Appends.
    ///
    /// # Errors
    /// The disk is full or fails.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write(bytes).map_err(StoreError::io("write", self.staged.path()))
    }

    /// Makes the blob durable and puts it in its place, under the digest that the caller has computed.
    ///
    /// # Errors
    /// The disk is full or fails.
    pub fn finish(self, digest: &Digest) -> Result<()> {
        self.file.sync().map_err(StoreError::io("sync", self.staged.path()))?;
        self.staged.publish(&self.store.blob_path(digest)).map(drop)
    }
}

impl Store {
    /// Begins a blob. The caller holds the content lock.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn new_blob(&self) -> Result<NewBlob> {
        let staged = self.stage();
        let file = LargeFile::new(create_file(staged.path())?, 0);
        Ok(NewBlob { store: self.clone(), staged, file })
    }

    /// Shows a layer as a blob of the layout. Its loss harms other tools only, so it is not synced.
    pub(super) fn link_layer(&self, diff_id: &Digest) -> Result<()> {
        let target = match self.layer_tar(diff_id) {
            tar if self.is_shared(&tar) => tar,
            _ => Path::new("../../layers").join(diff_id.hex()).join("layer.tar"),
        };
        let link = self.blob_path(diff_id);
        match std::os::unix::fs::symlink(target, &link) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(StoreError::io("create", &link)(error)),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    /// A tar with one file.
    pub(crate) fn small_tar(name: &str, content: &[u8]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append_data(&mut header, name, content).unwrap();
        builder.into_inner().unwrap()
    }

    /// Stores a tar as a layer.
    pub(crate) fn store_layer(store: &Store, tar: &[u8]) -> Digest {
        let digest = Digest::from_bytes(&Sha256::digest(tar).into());
        let mut writer = store.new_layer(Durable::Now).unwrap();
        writer.write(tar).unwrap();
        let index = pack::index_tar(tar, &Limits::default()).unwrap();
        writer.finish(&digest, &index).unwrap();
        digest
    }

    #[test]
    fn chain_ids_are_those_of_the_specification() {
        let [a, b, c] = [1, 2, 3].map(|byte| Digest::from_bytes(&[byte; 32]));
        assert_eq!(chain_id(&[]), None);
        assert_eq!(chain_id(std::slice::from_ref(&a)), Some(a.clone()));
        let two = Digest::from_bytes(&Sha256::digest(format!("{a} {b}")).into());
        let three = Digest::from_bytes(&Sha256::digest(format!("{two} {c}")).into());
        assert_eq!(chain_id(&[a, b, c]), Some(three));
    }

    #[test]
    fn a_layer_is_stored_once_and_merged() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let tar = small_tar("hello", b"world");
        let layer = store_layer(&store, &tar);
        assert_eq!(store_layer(&store, &tar), layer);
        let stored = store.layer(&layer).unwrap().unwrap();
        assert_eq!(stored, StoredLayer { tar_bytes: tar.len() as u64, content_bytes: 5 });
        assert_eq!(fs::read(store.blob_path(&layer)).unwrap(), tar);
        let merged = store.merged_index(std::slice::from_ref(&layer)).unwrap();
        let index = MergedIndex::open(&File::open(&merged).unwrap()).unwrap();
        let metadata = index.lookup(Path::new("/hello")).unwrap();
        assert_eq!(metadata.size, 5);
        assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
    }

    #[test]
    fn damaged_indexes_are_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let layer = store_layer(&store, &small_tar("hello", b"world"));
        let merged = store.merged_index(std::slice::from_ref(&layer)).unwrap();
        let good = fs::read(&merged).unwrap();
        fs::write(&merged, b"junk").unwrap();
        fs::write(store.layer_directory(&layer).join("index"), b"junk").unwrap();
        store.merged_index(std::slice::from_ref(&layer)).unwrap();
        assert_eq!(fs::read(&merged).unwrap(), good);
    }

    #[test]
    fn a_merged_index_altered_in_place_is_made_again() {
        use std::os::unix::fs::FileExt as _;
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let layer = store_layer(&store, &small_tar("hello", b"world"));
        let layers = std::slice::from_ref(&layer);
        let merged = store.merged_index(layers).unwrap();
        let good = fs::read(&merged).unwrap();
        for place in [good.len() as u64 - 1, 200] {
            // The header holds, the length too: only a look at the whole file can tell.
            let file = fs::OpenOptions::new().write(true).open(&merged).unwrap();
            file.write_all_at(&[good[place as usize] ^ 1], place).unwrap();
            drop(file);
            store.merged_index(layers).unwrap();
            assert_eq!(fs::read(&merged).unwrap(), good);
        }
        // Touched, but whole: sealed again, not made again.
        let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap());
        let before = inode(&merged);
        fs::remove_file(merged.with_extension("seal")).unwrap();
        store.merged_index(layers).unwrap();
        assert_eq!(inode(&merged), before);
        assert!(is_sealed(&merged, &File::open(&merged).unwrap()));
    }
}
