//! What is asked of a build, decided and checked by whoever asks.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::cache::{CacheSource, StepDone};
use super::run::RunOptions;
use crate::id::Digest;
use crate::image::{Added, Annotations, ImageError, PullPolicy, Reason, Reference};
use crate::plan::dockerfile::ignore::Ignore;

/// One build.
#[derive(Clone, Debug)]
pub struct Request {
    /// What messages call the Dockerfile.
    pub file_name: String,
    /// Its text.
    pub text: String,
    /// The context's directory; none for a build without one.
    pub context: Option<PathBuf>,
    /// What of it is not seen.
    pub ignore: Ignore,
    /// `--build-context`.
    pub contexts: BTreeMap<String, NamedContext>,
    /// `--target`.
    pub target: Option<String>,
    /// `--build-arg`, in order; those without a value have been looked up.
    pub arguments: Vec<(String, String)>,
    /// `--platform`: `os/arch[/variant]`.
    pub platform: Option<String>,
    /// Steps are shown with the platform: there are others.
    pub tell_platform: bool,
    /// Of the image's manifest.
    pub annotations: Annotations,
    /// `--no-cache`.
    pub no_cache: bool,
    /// `--no-cache-filter`.
    pub no_cache_stages: Vec<String>,
    /// `--pull`.
    pub pull: PullPolicy,
    /// `--secret`.
    pub secrets: Vec<Secret>,
    /// `--ssh`.
    pub ssh: Vec<Ssh>,
    /// `--label`.
    pub labels: Vec<(String, String)>,
    /// What all RUNs have.
    pub run: RunOptions,
    /// `-t`.
    pub names: Vec<Reference>,
    /// SOURCE_DATE_EPOCH, in seconds.
    pub epoch_s: Option<i64>,
    /// Times of files in layers are not later than that.
    pub rewrite_timestamps: bool,
    /// `--cache-from`.
    pub cache_from: Vec<CacheSource>,
    /// `--cache-to type=inline`.
    pub inline_cache: bool,
    /// Whether the result becomes an image of the store.
    pub store_image: bool,
}

/// Where a named context is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamedContext {
    /// A directory of the machine.
    Directory(PathBuf),
    /// An image, by any reference that `run` takes.
    Image(String),
}

/// `--secret`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secret {
    /// What RUN calls it.
    pub id: String,
    /// Where it is.
    pub source: SecretSource,
}

/// Where a secret is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// A file, read when a step needs it.
    File(PathBuf),
    /// A variable's value.
    Value(Vec<u8>),
}

/// `--ssh`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ssh {
    /// What RUN calls it.
    pub id: String,
    /// The agent's socket.
    pub socket: PathBuf,
}

/// Brings an image that the store lacks.
pub type Fetch<'a> = dyn Fn(&str, Reason) -> Result<Vec<Added>, ImageError> + 'a;

/// What a build gave.
#[derive(Clone, Debug)]
pub struct Built {
    /// The image, where it was stored.
    pub image: Option<Added>,
    /// Its configuration, as bytes would have it.
    pub config: serde_json::Value,
    /// Its layers, lowest first.
    pub layers: Vec<Digest>,
    /// The steps that were done, or found done.
    pub steps: Vec<StepDone>,
    /// Build arguments that no stage asked for.
    pub unused_arguments: Vec<String>,
}
