//! What can go wrong with a registry. No variant holds a credential, a token or a URL's query.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

/// What can go wrong between this machine and a registry.
#[derive(Debug, Error)]
pub enum RegistryError {
    /// The connection broke too often, or the host does not answer in time.
    #[error("cannot reach {host}: {reason}")]
    Transport {
        /// Host and port.
        host: String,
        /// Why not.
        reason: String,
    },
    /// There is no such host, nothing listens there, or it is not whom it should be: not tried again.
    #[error("cannot reach {host}: {reason}")]
    Unreachable {
        /// Host and port.
        host: String,
        /// Why not.
        reason: String,
    },
    /// Another answer than the one that was needed. The words of the registry are in `detail`.
    #[error("{what}: {host} answered {status}{detail}")]
    Status {
        /// What was asked for.
        what: String,
        /// Host and port.
        host: String,
        /// The HTTP status.
        status: u16,
        /// What the registry said, with `: ` before it, or nothing.
        detail: String,
        /// How long the registry asked to be left alone.
        retry_after: Option<Duration>,
    },
    /// The registry does not have it. The first words are Docker's.
    #[error("manifest for {0} not found: manifest unknown")]
    ManifestUnknown(String),
    /// The registry wants other credentials, or none help. The words are Docker's.
    #[error(
        "pull access denied for {repository}, repository does not exist or may require 'hostel login {registry}': {detail}"
    )]
    Denied {
        /// The repository.
        repository: String,
        /// Its registry.
        registry: String,
        /// What the registry said.
        detail: String,
    },
    /// As [`RegistryError::Denied`], of a push.
    #[error("push access to {repository} denied: it may require 'hostel login {registry}': {detail}")]
    PushDenied {
        /// The repository.
        repository: String,
        /// Its registry.
        registry: String,
        /// What the registry said.
        detail: String,
    },
    /// A token server did not give a token.
    #[error("cannot get a token for {registry} from {host}: {reason}")]
    Token {
        /// The registry.
        registry: String,
        /// The token server.
        host: String,
        /// Why not.
        reason: String,
    },
    /// A challenge that cannot be met.
    #[error("{registry} asks for authentication in a way that is not understood: {reason}")]
    Challenge {
        /// The registry.
        registry: String,
        /// What is wrong.
        reason: String,
    },
    /// The registry leads from one address to the next.
    #[error("{host} redirects more than {limit} times")]
    Redirects {
        /// Where it began.
        host: String,
        /// The limit.
        limit: usize,
    },
    /// A redirect to where one does not go.
    #[error("{host} redirects to {target}, which is refused: {reason}")]
    Redirect {
        /// Where it began.
        host: String,
        /// Where it leads.
        target: String,
        /// Why it is refused.
        reason: &'static str,
    },
    /// An answer larger than anything of its kind.
    #[error("{what} from {host} is larger than the {limit} bytes that it may have")]
    TooLarge {
        /// What was asked for.
        what: String,
        /// Host and port.
        host: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// An answer that is not what the protocol has.
    #[error("{what} from {host} is not valid: {reason}")]
    Invalid {
        /// What was asked for.
        what: String,
        /// Host and port.
        host: String,
        /// What is wrong.
        reason: String,
    },
    /// An artifact, a schema 1 image, a foreign layer.
    #[error("{what} cannot be used: {reason}")]
    Unsupported {
        /// Which.
        what: String,
        /// Why not.
        reason: String,
    },
    /// registries.conf blocks it.
    #[error("registry {registry} is blocked in {path}")]
    Blocked {
        /// The registry or repository.
        registry: String,
        /// The file that says so.
        path: PathBuf,
    },
    /// A file of settings, certificates or credentials.
    #[error("cannot use {path}: {reason}")]
    Settings {
        /// Which file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// Reading or writing a file of credentials.
    #[error("cannot {action} {path}")]
    File {
        /// What was tried.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A credential helper.
    #[error("the credential helper {program} {reason}")]
    Helper {
        /// Its name.
        program: String,
        /// What went wrong.
        reason: String,
    },
    /// `login` without what it needs.
    #[error("{0}")]
    Login(String),
    /// `search` where there is none.
    #[error("{registry} cannot be searched: {reason}")]
    NoSearch {
        /// The registry.
        registry: String,
        /// Why not.
        reason: String,
    },
    /// No candidate of a short name was found.
    #[error("{name} was not found under any of its full names: {}", tried.join("; "))]
    ShortName {
        /// The short name.
        name: String,
        /// What was tried, each with its error.
        tried: Vec<String>,
    },
}

impl RegistryError {
    /// Whether the next mirror, or the next candidate of a short name, may have what this one has not.
    pub(super) fn is_absent(&self) -> bool {
        match self {
            Self::ManifestUnknown(_)
            | Self::Denied { .. }
            | Self::Transport { .. }
            | Self::Unreachable { .. } => true,
            Self::Status { status, .. } => *status == 404 || *status >= 500,
            _ => false,
        }
    }
}

pub(super) type Result<T, E = RegistryError> = std::result::Result<T, E>;
