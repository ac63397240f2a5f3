//! Logging in and out, and what can be asked of a registry besides images: search and manifests.

use std::path::{Path, PathBuf};

use oci_spec::image::ImageIndex;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Session;
use super::auth::{Auth, form};
use super::client::{Client, Fetched};
use super::credentials::{self, Credentials};
use super::error::{RegistryError, Result};
use super::secret::Secret;
use crate::image::{ImageError, Reference, handed_over};

/// Bytes of one answer to a search.
const MAX_SEARCH_BYTES: u64 = 4 << 20;
/// Manifests of an index that `manifest inspect -v` fetches.
const MAX_MANIFESTS: usize = 100;

/// Who logs in.
pub enum Login {
    /// With a name and a password.
    As {
        /// The name.
        user: String,
        /// The password.
        password: Secret,
    },
    /// With what is stored already.
    Stored,
}

/// A registry as a person types it, as it is called everywhere else.
#[must_use]
pub fn registry_name(text: &str) -> String {
    let text = text.trim_start_matches("https://").trim_start_matches("http://");
    match text.split('/').next().unwrap_or_default() {
        "" | "index.docker.io" | "registry-1.docker.io" | "docker.io" => "docker.io".to_owned(),
        name => name.to_owned(),
    }
}

/// What Docker calls a registry in its messages.
#[must_use]
pub fn server_name(registry: &str) -> String {
    if registry == "docker.io" { credentials::DOCKER_SERVER.to_owned() } else { registry.to_owned() }
}

/// The name that is stored for a registry, if one is.
///
/// # Errors
/// A file or helper cannot be read.
pub fn stored_user(registry: &str) -> Result<Option<String>> {
    Ok(credentials::find(registry, "")?.map(|found| match found {
        Credentials::Password { user, .. } => user,
        Credentials::IdentityToken(_) => String::new(),
    }))
}

/// Tries credentials on a registry and stores them if they are good. Gives the file, if that is where
/// they now lie unencrypted.
///
/// # Errors
/// The registry does not take them; they cannot be stored.
pub fn login(registry: &str, login: Login) -> Result<Option<PathBuf>> {
    let session = Session::new()?;
    let host = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
    let (credentials, is_new) = match login {
        Login::As { user, password } => (Credentials::Password { user, password }, true),
        Login::Stored => match credentials::find(registry, "")? {
            Some(found) => (found, false),
            None => return Err(RegistryError::Login(format!("not logged in to {registry}"))),
        },
    };
    let auth = Auth::for_login(registry, credentials.clone());
    let client = Client::new(&session.http, &auth, host, "", registry)?;
    client.ping().map_err(|error| match error {
        RegistryError::Denied { detail, .. } => {
            RegistryError::Login(format!("login attempt to {} failed: {detail}", server_name(registry)))
        }
        error => error,
    })?;
    if !is_new {
        return Ok(None);
    }
    // Where the token server gives an identity token, the password is not kept.
    let kept = auth.identity_token().map_or(credentials, Credentials::IdentityToken);
    credentials::store(registry, &kept)
}

/// Forgets a registry's credentials; `false` if there were none.
///
/// # Errors
/// A file or helper fails.
pub fn logout(registry: &str) -> Result<bool> {
    credentials::erase(registry)
}

/// One result of a search.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
pub struct SearchResult {
    /// The repository.
    #[serde(default)]
    pub name: String,
    /// What its owner says of it.
    #[serde(default, deserialize_with = "text_or_null")]
    pub description: String,
    /// How many like it.
    #[serde(default)]
    pub star_count: u64,
    /// Whether it is one of Docker's own.
    #[serde(default)]
    pub is_official: bool,
    /// Whether it is built by the registry.
    #[serde(default)]
    pub is_automated: bool,
}

fn text_or_null<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.unwrap_or_default())
}

/// Searches Docker's registry, or the one that the term begins with: by the old search address where
/// there is one, else in the list of all repositories.
///
/// # Errors
/// The registry has neither.
pub fn search(term: &str, limit: usize) -> Result<Vec<SearchResult>> {
    let session = Session::new()?;
    let (registry, term) = match term.split_once('/') {
        Some((first, rest)) if first == "localhost" || first.contains(['.', ':']) => (first, rest),
        _ => ("docker.io", term),
    };
    let host = if registry == "docker.io" { "index.docker.io" } else { registry };
    let auth = Auth::new(registry, credentials::find(registry, "")?);
    let client = Client::new(&session.http, &auth, host, "", registry)?;
    let query = form(&[("q", term), ("n", &limit.to_string())]);
    let response = client.get(&format!("/v1/search?{query}"), "", "the search")?;
    if response.is_success() {
        #[derive(Deserialize)]
        struct Answer {
            #[serde(default)]
            results: Vec<SearchResult>,
        }
        let host = response.host();
        let bytes = response.read("the search", MAX_SEARCH_BYTES)?;
        // Some registries answer every address with a page for people.
        if let Ok(answer) = serde_json::from_slice::<Answer>(&bytes) {
            return Ok(answer.results.into_iter().take(limit).collect());
        }
        if registry == "docker.io" {
            let reason = "it is not what a search answers".to_owned();
            return Err(RegistryError::Invalid { what: "the search".to_owned(), host, reason });
        }
    }
    let none = |reason: String| RegistryError::NoSearch { registry: registry.to_owned(), reason };
    let repositories = client.catalog().map_err(|error| match error {
        RegistryError::Status { status, .. } => {
            none(format!("it has no search, and its list of repositories answers {status}"))
        }
        RegistryError::Denied { detail, .. } => {
            none(format!("it has no search, and its list of repositories is not for everybody: {detail}"))
        }
        error => error,
    })?;
    let found = repositories.into_iter().filter(|name| name.contains(term)).take(limit);
    Ok(found
        .map(|name| SearchResult { name: format!("{registry}/{name}"), ..SearchResult::default() })
        .collect())
}

/// A manifest or index as the registry has it; with `verbose`, what docker shows of it and, of an
/// index, of each of its manifests.
///
/// # Errors
/// No registry has it.
pub fn manifest(text: &str, verbose: bool, insecure: bool) -> Result<Value, ImageError> {
    let session = Session::allowing(insecure)?;
    let mut failure = None;
    for reference in session.settings.candidates(text)? {
        let reference = reference.with_default_tag();
        match manifest_of(&session, &reference, verbose) {
            Err(ImageError::Registry(error)) if error.is_absent() => failure = Some(error),
            outcome => return outcome,
        }
    }
    Err(failure.unwrap_or_else(|| RegistryError::ManifestUnknown(text.to_owned())).into())
}

fn manifest_of(session: &Session, reference: &Reference, verbose: bool) -> Result<Value, ImageError> {
    let place = session.settings.push_place(reference)?;
    let auth = session.auth(reference, &place)?;
    let client = session.client(&auth, &place, reference)?;
    let name = reference.familiar();
    let asked = reference.digest().map(ToString::to_string).or_else(|| reference.tag().map(str::to_owned));
    let fetched = client.manifest(&asked.unwrap_or_default(), &name)?;
    let value = |fetched: &Fetched| -> Result<Value, ImageError> {
        handed_over::parse(Path::new(&name), fetched.digest.as_str(), &fetched.bytes)
    };
    if !verbose {
        return value(&fetched);
    }
    if !fetched.is_index() {
        return Ok(described(&reference.to_string(), &fetched, None, &value(&fetched)?));
    }
    let index: ImageIndex = handed_over::parse(Path::new(&name), fetched.digest.as_str(), &fetched.bytes)?;
    let mut all = Vec::new();
    for descriptor in index.manifests().iter().take(MAX_MANIFESTS) {
        let digest = descriptor.digest().to_string();
        let one = client.manifest(&digest, &name)?;
        let platform =
            descriptor.platform().as_ref().and_then(|platform| serde_json::to_value(platform).ok());
        let called = format!("{}@{digest}", reference.repository());
        all.push(described(&called, &one, platform, &value(&one)?));
    }
    Ok(Value::Array(all))
}

/// docker's view of a manifest (`docker manifest inspect -v`).
fn described(name: &str, fetched: &Fetched, platform: Option<Value>, manifest: &Value) -> Value {
    let mut descriptor =
        json!({ "mediaType": fetched.media_type, "digest": fetched.digest, "size": fetched.bytes.len() });
    if let Some(platform) = platform {
        descriptor["platform"] = platform;
    }
    let kind = if fetched.media_type.contains(".docker.") { "SchemaV2Manifest" } else { "OCIManifest" };
    json!({ "Ref": name, "Descriptor": descriptor, kind: manifest })
}
