//! What can go wrong with an image.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::platform::Platform;
use super::reference::ReferenceError;
use super::registry::RegistryError;
use crate::id::Digest;
use crate::store::StoreError;

/// What can go wrong with an image. Paths are those of the archive, layout or directory that it
/// was asked from; `member` is a file in it.
#[derive(Debug, Error)]
pub enum ImageError {
    /// Not a name.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The signature policy keeps it out.
    #[error(transparent)]
    Policy(#[from] super::policy::PolicyError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A registry failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// An image that the store does not have.
    #[error("No such image: {0}")]
    NotFound(String),
    /// `push` of a name that no image has. The words are Docker's.
    #[error("An image does not exist locally with the tag: {0}")]
    NotTagged(String),
    /// `pull --all-tags` of a name with a tag. The words are Docker's.
    #[error("tag can't be used with --all-tags/-a")]
    TagWithAllTags,
    /// A short id of several images.
    #[error("image id {0} is ambiguous: it fits more than one image; give more digits")]
    Ambiguous(String),
    /// `host:/usr`.
    #[error(
        "invalid reference format: {0} is not an image; the machine's own root is host:/, another directory is rootfs:DIR"
    )]
    HostPath(String),
    /// A directory or machine root where a stored image is needed.
    #[error(
        "{0} is not kept in the store; only oci:, oci-archive:, docker-archive:, containers-storage: and docker-daemon: can be pulled"
    )]
    NotStorable(String),
    /// `rootfs:` of something else.
    #[error("the root file system {path} is not a directory that can be read")]
    Rootfs {
        /// The path as given.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The image is for another operating system.
    #[error("image {image} is for {found}, but this machine is {host}: get the image built for {host}")]
    Platform {
        /// The image.
        image: String,
        /// Its platform.
        found: String,
        /// The machine's.
        host: String,
    },
    /// The image that has the name is not the one that `--platform` asks for. The words are Docker's.
    #[error(
        "image with reference {image} was found but does not match the specified platform: wanted {wanted}, actual: {found}"
    )]
    PlatformMismatch {
        /// The image.
        image: String,
        /// The platform that was asked for.
        wanted: String,
        /// Its platform.
        found: String,
    },
    /// An index without an image for this machine.
    #[error("{path} has no image for {host} under this name, only for {found}")]
    NoPlatform {
        /// Where.
        path: PathBuf,
        /// The machine's platform.
        host: String,
        /// Those there are.
        found: String,
    },
    /// `--platform` with something else.
    #[error("{0:?} is an invalid platform: it is os/architecture[/variant], as linux/amd64 or linux/arm/v7")]
    InvalidPlatform(String),
    /// An archive, or a file of a layout, cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A directory where a file is needed.
    #[error("{path} is not a file")]
    NotAFile {
        /// Which.
        path: PathBuf,
    },
    /// A manifest, config or index larger than any real one.
    #[error("{path} has {size} bytes, more than the {limit} that such a file may have")]
    TooLarge {
        /// Which file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// An archive that ends inside a member.
    #[error("{path} ends in the middle of {member}: it has been cut short; copy or save it again")]
    Truncated {
        /// The archive.
        path: PathBuf,
        /// The member.
        member: String,
    },
    /// Not a tar archive.
    #[error(
        "{path} is not an image archive ({reason}); `hostel load` takes what `docker save`, `podman save` or `skopeo copy` write"
    )]
    NotAnArchive {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A tar archive or directory with no image in it.
    #[error(
        "{path} holds no image: it has neither manifest.json (docker-archive) nor index.json (OCI layout)"
    )]
    NoImage {
        /// Which.
        path: PathBuf,
    },
    /// A stream whose small members are too many to hold.
    #[error(
        "{path} holds more than {limit} bytes of members that are no layers, which no image archive does"
    )]
    TooMuchBesides {
        /// The stream.
        path: PathBuf,
        /// The limit in bytes.
        limit: u64,
    },
    /// Something that is referred to is not there.
    #[error("{path} is incomplete: {member} is missing")]
    Missing {
        /// The archive or layout.
        path: PathBuf,
        /// What is missing.
        member: String,
    },
    /// A manifest, config or index that cannot be understood.
    #[error("{member} in {path} is not valid")]
    Json {
        /// The archive or layout.
        path: PathBuf,
        /// The file in it.
        member: String,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// The stored config of an image cannot be understood.
    #[error("the stored config of image {image} is damaged; remove it (`hostel rmi -f`) and load it again")]
    StoredConfig {
        /// The image.
        image: Digest,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// A file is not what it is called.
    #[error(
        "digest mismatch: {what} is named {wanted} but its content is {found}; the copy is damaged, get it again"
    )]
    DigestMismatch {
        /// Which file.
        what: String,
        /// The digest that it should have.
        wanted: Digest,
        /// The digest that it has.
        found: Digest,
    },
    /// A blob of another length than its descriptor says.
    #[error("{what} has {found} bytes where its manifest says {wanted}; the copy is damaged, get it again")]
    SizeMismatch {
        /// Which file.
        what: String,
        /// Bytes that it should have.
        wanted: u64,
        /// Bytes that it has.
        found: u64,
    },
    /// A layer that cannot be uncompressed.
    #[error("cannot read layer {what}: it is damaged or cut short; get the image again")]
    LayerStream {
        /// Which.
        what: String,
        /// Why not.
        source: io::Error,
    },
    /// A layer's tar is refused.
    #[error("layer {what} is not usable")]
    Layer {
        /// Which.
        what: String,
        /// Why.
        source: fuse_overlay::pack::PackError,
    },
    /// A member of a stream that an image calls a layer.
    #[error("{what} is not usable as a layer: {reason}")]
    NotALayer {
        /// Which.
        what: String,
        /// Why not.
        reason: String,
    },
    /// A layer that would fill the disk.
    #[error(
        "layer {what} grows to more than {limit} when it is uncompressed: this looks like an archive made to fill the disk"
    )]
    Bomb {
        /// Which.
        what: String,
        /// The limit that was reached.
        limit: String,
    },
    /// Layers and diff ids do not pair up.
    #[error("{path}: the image's manifest has {layers} layers but its config {diff_ids}")]
    LayerCount {
        /// The archive or layout.
        path: PathBuf,
        /// Layers in the manifest.
        layers: usize,
        /// Diff ids in the config.
        diff_ids: usize,
    },
    /// More layers than an image may have.
    #[error("{path}: the image has {layers} layers, more than the {limit} that an image may have")]
    TooManyLayers {
        /// The archive or layout.
        path: PathBuf,
        /// How many.
        layers: usize,
        /// The limit.
        limit: usize,
    },
    /// A digest of an algorithm other than SHA-256.
    #[error("{path}: {digest} is not a digest that hostel can check (only sha256 is)")]
    Algorithm {
        /// The archive or layout.
        path: PathBuf,
        /// The digest.
        digest: String,
    },
    /// A layout without the tag that was asked for.
    #[error("{path} has no image {tag:?}; it has: {known}")]
    NoTag {
        /// The layout.
        path: PathBuf,
        /// The tag.
        tag: String,
        /// Those there are.
        known: String,
    },
    /// A layout of several images, none chosen.
    #[error("{path} holds several images; name one of them behind the path (oci:DIR:TAG): {known}")]
    SeveralImages {
        /// The layout.
        path: PathBuf,
        /// Their tags.
        known: String,
    },
    /// Indexes within indexes.
    #[error("{path}: the image's index leads from index to index, more than {limit} deep")]
    IndexDepth {
        /// The layout.
        path: PathBuf,
        /// The limit.
        limit: usize,
    },
    /// `tag` to a name with a digest.
    #[error("refusing to create a tag with a digest reference")]
    TagWithDigest,
    /// An image that is in use or has other names. The words are Docker's.
    #[error("conflict: unable to {0}")]
    Conflict(String),
    /// An image of another engine cannot be had.
    #[error("cannot get {source_name}: {reason}")]
    Engine {
        /// As it was asked for.
        source_name: String,
        /// Why not.
        reason: String,
    },
    /// An image of an additional store cannot be removed from here.
    #[error(
        "unable to remove {image:?}: it is in the read-only image store {store}, whose owner can remove it (`hostel --root {store} rmi`)"
    )]
    ReadOnly {
        /// The image as it was named.
        image: String,
        /// The store.
        store: PathBuf,
    },
    /// A form that holds one image, and several were asked for.
    #[error("{path} can hold one image only in the format docker-dir; save each to a directory of its own")]
    OneImageOnly {
        /// The directory.
        path: PathBuf,
    },
    /// A file that `save` cannot write.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl ImageError {
    /// Of several images none is for the platform that was asked for, or this machine's.
    pub(super) fn no_platform(path: PathBuf, asked: Option<&Platform>, found: &[Option<Platform>]) -> Self {
        let found: Vec<String> = found.iter().flatten().map(ToString::to_string).collect();
        let host = asked.map_or_else(|| Platform::host().to_string(), ToString::to_string);
        Self::NoPlatform { path, host, found: found.join(", ") }
    }
}

pub(super) type Result<T, E = ImageError> = std::result::Result<T, E>;
