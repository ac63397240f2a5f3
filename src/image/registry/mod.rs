//! Registries: pull, push, login, search.
//!
//! Blocking throughout, on threads that are joined before a call returns, so that a process which has
//! pulled an image can still fork. The layers below, each using only those before it:
//! `secret`, `error` -> `dns`, `settings`, `certificates`, `credentials` -> `http` -> `auth` ->
//! `client` (the distribution protocol) -> `fetch`, `upload` (one blob) -> `pull`, `push`, `account`.
//!
//! What must stay true: every byte that comes from a registry is within a stated limit and verified
//! before anything of it is visible; a credential goes to the registry that it is for, and to the token
//! server which that names over TLS, and nowhere else.

use std::sync::Arc;

use super::Reference;
use crate::id::Digest;

mod account;
mod artifact;
mod auth;
mod certificates;
mod client;
mod credentials;
mod dns;
mod error;
mod fetch;
mod file;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod http;
mod pull;
mod push;
mod repair;
mod secret;
mod settings;
mod upload;

pub use account::{
    Login, SearchResult, login, logout, manifest, registry_name, search, server_name, stored_user,
};
pub use artifact::{Artifact, fetch_artifacts, fetch_layer, push_artifact};
pub use error::RegistryError;
pub use file::{RemoteFile, is_address, open};
pub use pull::{PullOptions, pull};
pub use push::{Choice, Format, Pushed, compress, push};
pub use repair::repair;
pub use secret::Secret;

use auth::Auth;
use client::Client;
use error::Result;
use http::Http;
use settings::{Place, Settings};

/// How many layers are under way at once: docker's default.
pub const PARALLEL_LAYERS: usize = 3;

/// What happens, told while it does.
pub trait Progress: Sync {
    /// An image begins: its tag or digest, and its repository.
    fn image(&self, reference: &Reference);
    /// Something happened to a layer, which is named by its digest.
    fn layer(&self, digest: &Digest, event: &LayerEvent);
}

/// What can happen to a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LayerEvent {
    /// It will be transferred, and has this many bytes.
    Waiting {
        /// Bytes in all.
        total: u64,
    },
    /// It is there already.
    Exists,
    /// It was taken over from another repository of the registry.
    Mounted {
        /// The other repository.
        from: String,
    },
    /// This many bytes were there from an earlier pull.
    Resumed {
        /// Bytes that need not come again.
        bytes: u64,
    },
    /// This many bytes more have come or gone.
    Transferred {
        /// Bytes since the last such event.
        bytes: u64,
    },
    /// The connection broke and is made again.
    Retrying {
        /// Why.
        reason: String,
    },
    /// All bytes have come and are what they should be.
    Downloaded,
    /// It is in its place.
    Complete,
}

/// One command's view of the registries: settings and connections.
struct Session {
    settings: Arc<Settings>,
    http: Http,
}

impl Session {
    fn new() -> Result<Self> {
        Self::allowing(false)
    }

    /// With `insecure`, no host needs to be listed to be spoken to without verified TLS.
    fn allowing(insecure: bool) -> Result<Self> {
        let settings = Arc::new(Settings::load()?);
        let listed = Arc::clone(&settings);
        Ok(Self { settings, http: Http::new(Box::new(move |host| insecure || listed.is_insecure(host))) })
    }

    /// What proves who one is to a place. A mirror has credentials of its own or none.
    fn auth(&self, reference: &Reference, place: &Place) -> Result<Auth> {
        let (registry, path) = if place.is_mirror || place.host != host_of(reference) {
            (place.host.as_str(), place.repository.as_str())
        } else {
            (reference.domain(), reference.path())
        };
        Ok(Auth::new(registry, credentials::find(registry, path)?))
    }

    fn client<'a>(&'a self, auth: &'a Auth, place: &Place, reference: &Reference) -> Result<Client<'a>> {
        Client::new(&self.http, auth, &place.host, &place.repository, reference.domain())
    }
}

/// The host that a name's registry is reached at.
fn host_of(reference: &Reference) -> &str {
    if reference.domain() == "docker.io" { "registry-1.docker.io" } else { reference.domain() }
}

/// The whole names that a typed name may stand for.
///
/// # Errors
/// It is no name; registries.conf cannot be read.
pub fn candidates(text: &str) -> Result<Vec<Reference>, super::ImageError> {
    Settings::load()?.candidates(text)
}

/// A file of the web on its way.
pub struct Download {
    /// Its bytes, without a limit: for whoever counts.
    pub body: Box<dyn std::io::Read + Send>,
    /// When it was last changed, in seconds since 1970, if the server says.
    pub modified_s: Option<i64>,
}

impl std::fmt::Debug for Download {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Download").field("modified_s", &self.modified_s).finish_non_exhaustive()
    }
}

/// Asks for a file of any web server: TLS is verified, redirects from it to plain HTTP are refused.
///
/// # Errors
/// There is no such server or file.
pub fn download(url: &str) -> std::result::Result<Download, RegistryError> {
    let http = Http::new(Box::new(|_| false));
    let request = http::Request::get(url.to_owned(), url.split('?').next().unwrap_or(url));
    let response = http::with_retries(|| {
        let response = http.send(&request, None)?;
        if response.is_success() { Ok(response) } else { Err(response.into_error(&request.what)) }
    })?;
    let modified = response.header("last-modified").and_then(|text| jiff::fmt::rfc2822::parse(text).ok());
    let modified_s = modified.map(|time| time.timestamp().as_second());
    Ok(Download { modified_s, body: Box::new(response.into_reader()) })
}
