//! One repository of one registry: the requests of the OCI distribution specification 1.1, which are
//! those of Docker's registry.

use oci_spec::image::MediaType;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use ureq::http::Method;

use super::auth::{Auth, form};
use super::error::{RegistryError, Result};
use super::http::{Http, Origin, Payload, Request, Response, host_of, resolve, with_retries};
use super::secret::Secret;
use crate::id::Digest;

/// Manifests and indexes: the distribution spec asks registries to take 4 MiB at least.
pub(super) const MAX_MANIFEST_BYTES: u64 = 4 << 20;
/// One page of a list of tags or repositories.
const MAX_LIST_BYTES: u64 = 4 << 20;
/// Pages followed, and names taken, of such a list.
const MAX_PAGES: usize = 1000;
const MAX_NAMES: usize = 100_000;

/// Manifests and indexes that are understood.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// A manifest or index as a registry gave it.
#[derive(Clone, Debug)]
pub(super) struct Fetched {
    pub(super) digest: Digest,
    pub(super) media_type: String,
    pub(super) bytes: Vec<u8>,
}

impl Fetched {
    pub(super) fn is_index(&self) -> bool {
        matches!(MediaType::from(self.media_type.as_str()), MediaType::ImageIndex)
            || self.media_type == "application/vnd.docker.distribution.manifest.list.v2+json"
    }
}

/// A repository.
pub(super) struct Client<'a> {
    http: &'a Http,
    origin: Origin,
    repository: String,
    auth: &'a Auth,
    /// Token scopes for reading and for writing.
    pull_scope: String,
    push_scope: String,
    /// The registry as the user calls it.
    registry: String,
}

impl<'a> Client<'a> {
    pub(super) fn new(
        http: &'a Http,
        auth: &'a Auth,
        host: &str,
        repository: &str,
        registry: &str,
    ) -> Result<Self> {
        Ok(Self {
            http,
            origin: http.origin(host)?,
            repository: repository.to_owned(),
            auth,
            pull_scope: format!("repository:{repository}:pull"),
            push_scope: format!("repository:{repository}:pull,push"),
            registry: registry.to_owned(),
        })
    }

    pub(super) fn host(&self) -> &str {
        &self.origin.host
    }

    pub(super) fn url(&self, rest: &str) -> String {
        self.origin.url(&format!("/v2/{}/{rest}", self.repository))
    }

    fn send(&self, scope: &str, request: &Request<'_>) -> Result<Response> {
        self.auth.send(self.http, scope, &mut |credential| self.http.send(request, credential))
    }

    /// As [`Self::send`], with answers that may pass as errors, for [`with_retries`].
    fn send_for(&self, scope: &str, request: &Request<'_>, fine: &[u16]) -> Result<Response> {
        let response = self.send(scope, request)?;
        if response.is_success() || fine.contains(&response.status) {
            return Ok(response);
        }
        Err(self.denied(scope, response, &request.what))
    }

    /// The error that an answer stands for.
    fn denied(&self, scope: &str, response: Response, what: &str) -> RegistryError {
        let status = response.status;
        let error = response.into_error(what);
        let RegistryError::Status { detail, .. } = &error else { return error };
        if !matches!(status, 401 | 403) {
            return error;
        }
        let detail = match detail.strip_prefix(": ") {
            Some(detail) => detail.to_owned(),
            None => format!("{} answered {status}", self.origin.host),
        };
        let (repository, registry) = (self.repository.clone(), self.registry.clone());
        if scope == self.push_scope {
            RegistryError::PushDenied { repository, registry, detail }
        } else {
            RegistryError::Denied { repository, registry, detail }
        }
    }

    /// Gets a manifest or index by tag or digest, verified as far as it can be.
    pub(super) fn manifest(&self, reference: &str, name: &str) -> Result<Fetched> {
        let what = format!("the manifest of {name}");
        let request =
            Request::get(self.url(&format!("manifests/{reference}")), &what).header("accept", ACCEPT);
        with_retries(|| {
            let response = self.send_for(&self.pull_scope, &request, &[404])?;
            if response.status == 404 {
                return Err(RegistryError::ManifestUnknown(name.to_owned()));
            }
            self.fetched(response, reference, &what)
        })
    }

    fn fetched(&self, response: Response, reference: &str, what: &str) -> Result<Fetched> {
        let host = response.host();
        let invalid =
            |reason: String| RegistryError::Invalid { what: what.to_owned(), host: host.clone(), reason };
        let content_type = response.header("content-type").unwrap_or_default();
        let content_type = content_type.split(';').next().unwrap_or_default().trim().to_owned();
        let told = response.header("docker-content-digest").map(str::to_owned);
        let bytes = response.read(what, MAX_MANIFEST_BYTES)?;
        let digest = Digest::from_bytes(&Sha256::digest(&bytes).into());
        let asked = reference.parse::<Digest>().ok();
        let told = told.and_then(|told| told.parse::<Digest>().ok());
        if let Some(wanted) = asked.iter().chain(&told).find(|wanted| **wanted != digest) {
            return Err(invalid(format!("digest mismatch: it should be {wanted} but is {digest}")));
        }
        let media_type = media_type(&bytes, &content_type).map_err(invalid)?;
        Ok(Fetched { digest, media_type, bytes })
    }

    /// Gets a small blob whole, verified.
    pub(super) fn small_blob(&self, digest: &Digest, limit: u64, what: &str) -> Result<Vec<u8>> {
        let request = Request::get(self.url(&format!("blobs/{digest}")), what);
        with_retries(|| {
            let response = self.send_for(&self.pull_scope, &request, &[])?;
            let host = response.host();
            let bytes = response.read(what, limit)?;
            let found = Digest::from_bytes(&Sha256::digest(&bytes).into());
            if found == *digest {
                return Ok(bytes);
            }
            let reason = format!("digest mismatch: it should be {digest} but is {found}");
            Err(RegistryError::Invalid { what: what.to_owned(), host, reason })
        })
    }

    /// Begins to get a blob from byte `from` on. Gives the answer and where it really begins. One attempt.
    pub(super) fn blob(&self, digest: &Digest, from: u64) -> Result<(Response, u64)> {
        let mut request =
            Request::get(self.url(&format!("blobs/{digest}")), format!("layer {}", digest.short()));
        if from > 0 {
            request = request.header("range", format!("bytes={from}-"));
        }
        let response = self.send_for(&self.pull_scope, &request, &[])?;
        let start = match response.status {
            206 => content_range_start(response.header("content-range")).unwrap_or(from),
            _ => 0,
        };
        Ok((response, start))
    }

    /// Whether the repository has a blob.
    pub(super) fn has_blob(&self, digest: &Digest) -> Result<bool> {
        self.exists(&format!("blobs/{digest}"), &format!("blob {}", digest.short()))
    }

    fn exists(&self, rest: &str, what: &str) -> Result<bool> {
        let request = Request { method: Method::HEAD, ..Request::get(self.url(rest), what) };
        let request = request.header("accept", ACCEPT);
        with_retries(|| Ok(self.send_for(&self.push_scope, &request, &[404])?.is_success()))
    }

    /// Tries to take a blob over from another repository of the registry; `false` where it has to be
    /// uploaded after all.
    pub(super) fn mount(&self, digest: &Digest, from: &str) -> Result<bool> {
        let query = form(&[("mount", digest.as_str()), ("from", from)]);
        let url = self.url(&format!("blobs/uploads/?{query}"));
        let what = format!("blob {}", digest.short());
        let request = Request { method: Method::POST, ..Request::get(url, what) };
        let request = request.header("content-length", "0");
        let scope = format!("{} repository:{from}:pull", self.push_scope);
        let response = self.send(&scope, &request)?;
        if response.status == 201 {
            return Ok(true);
        }
        if response.status == 202
            && let Some(location) = response.header("location")
        {
            // An upload was begun instead; it is given back, and a registry that cannot is no worse off.
            let url = resolve(&response.url, location)?;
            if host_of(&url) == self.origin.host {
                let cancel = Request { method: Method::DELETE, ..Request::get(url, "an upload") };
                let _ = self.send(&self.push_scope, &cancel);
            }
        }
        Ok(false)
    }

    /// Sends a request of an upload with the right to write.
    pub(super) fn send_for_push(&self, request: &Request<'_>) -> Result<Response> {
        self.send_for(&self.push_scope, request, &[])
    }

    /// The error that an answer to a request of an upload stands for.
    pub(super) fn push_error(&self, response: Response, what: &str) -> RegistryError {
        self.denied(&self.push_scope, response, what)
    }

    /// The header that gives the right to write, while it does.
    pub(super) fn push_header(&self) -> Option<Secret> {
        self.auth.header(&self.push_scope)
    }

    /// Whether an address is the registry's own.
    pub(super) fn is_own(&self, url: &str) -> bool {
        url.starts_with(&self.origin.url("/"))
    }

    pub(super) fn http(&self) -> &Http {
        self.http
    }

    /// Where an upload goes on.
    pub(super) fn location(&self, response: &Response, what: &str) -> Result<String> {
        match response.header("location") {
            Some(location) => resolve(&response.url, location),
            None => Err(RegistryError::Invalid {
                what: what.to_owned(),
                host: response.host(),
                reason: "it does not say where to upload to".to_owned(),
            }),
        }
    }

    /// Puts a manifest or index under a tag or its digest.
    pub(super) fn put_manifest(
        &self,
        reference: &str,
        media_type: &str,
        bytes: &[u8],
        name: &str,
    ) -> Result<()> {
        let what = format!("the manifest of {name}");
        let request = Request {
            method: Method::PUT,
            payload: Payload::Bytes(bytes),
            ..Request::get(self.url(&format!("manifests/{reference}")), &what)
        };
        let request = request.header("content-type", media_type);
        with_retries(|| self.send_for(&self.push_scope, &request, &[]).map(drop))
    }

    /// All tags of the repository.
    pub(super) fn tags(&self, name: &str) -> Result<Vec<String>> {
        #[derive(Deserialize)]
        struct Page {
            #[serde(default)]
            tags: Option<Vec<String>>,
        }
        let what = format!("the tags of {name}");
        self.pages(self.url("tags/list"), &self.pull_scope, &what, |page: Page| page.tags.unwrap_or_default())
    }

    /// All names of a list that comes in pages (distribution spec, "Content Discovery").
    fn pages<P: serde::de::DeserializeOwned>(
        &self,
        first: String,
        scope: &str,
        what: &str,
        names: impl Fn(P) -> Vec<String>,
    ) -> Result<Vec<String>> {
        let (mut found, mut next) = (Vec::new(), Some(first));
        for _ in 0..MAX_PAGES {
            let Some(url) = next.take() else { break };
            let request = Request::get(url, what);
            let (page, link) = with_retries(|| {
                let response = self.send_for(scope, &request, &[])?;
                let (host, base) = (response.host(), response.url.clone());
                let link = response
                    .header("link")
                    .and_then(next_link)
                    .map(|link| resolve(&base, link))
                    .transpose()?;
                let bytes = response.read(what, MAX_LIST_BYTES)?;
                let page: P = serde_json::from_slice(&bytes).map_err(|error| RegistryError::Invalid {
                    what: what.to_owned(),
                    host,
                    reason: error.to_string(),
                })?;
                Ok((page, link))
            })?;
            found.extend(names(page));
            if found.len() > MAX_NAMES {
                return Err(RegistryError::TooLarge {
                    what: what.to_owned(),
                    host: self.origin.host.clone(),
                    limit: MAX_NAMES as u64,
                });
            }
            // A list that leads elsewhere is not followed with this registry's credentials.
            next = link.filter(|link| host_of(link) == self.origin.host);
        }
        Ok(found)
    }

    /// Repositories of the registry, where it lists them.
    pub(super) fn catalog(&self) -> Result<Vec<String>> {
        #[derive(Deserialize)]
        struct Page {
            #[serde(default)]
            repositories: Vec<String>,
        }
        let what = "the list of repositories";
        self.pages(self.origin.url("/v2/_catalog?n=1000"), "registry:catalog:*", what, |page: Page| {
            page.repositories
        })
    }

    /// Asks whether the credentials are good for the registry.
    pub(super) fn ping(&self) -> Result<()> {
        let request = Request::get(self.origin.url("/v2/"), "the registry");
        with_retries(|| self.send_for("", &request, &[]).map(drop))
    }

    /// Any address of the registry's host.
    pub(super) fn get(&self, path: &str, scope: &str, what: &str) -> Result<Response> {
        let request = Request::get(self.origin.url(path), what).header("accept", "application/json");
        with_retries(|| {
            let response = self.send(scope, &request)?;
            match response.status {
                429 | 500.. => Err(response.into_error(what)),
                _ => Ok(response),
            }
        })
    }
}

/// What a manifest is: its own word, which the digest covers, must not contradict the header's.
fn media_type(bytes: &[u8], content_type: &str) -> Result<String, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Head {
        #[serde(default)]
        media_type: Option<String>,
        #[serde(default)]
        schema_version: u32,
        #[serde(default)]
        manifests: Option<serde::de::IgnoredAny>,
        #[serde(default)]
        config: Option<serde::de::IgnoredAny>,
    }
    // serde would read a list as an object with its fields in their order.
    if bytes.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
        return Err("it is no JSON object".to_owned());
    }
    let head: Head = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if head.schema_version == 1 {
        return Err(
            "it is of schema 1, which registries have given up: have the image pushed anew".to_owned()
        );
    }
    if head.manifests.is_some() && head.config.is_some() {
        return Err("it is both a manifest and an index".to_owned());
    }
    let guessed = if head.manifests.is_some() {
        "application/vnd.oci.image.index.v1+json"
    } else {
        "application/vnd.oci.image.manifest.v1+json"
    };
    let is_known = ACCEPT.split(", ").any(|known| known == content_type);
    match head.media_type.filter(|own| !own.is_empty()) {
        Some(own) => Ok(own),
        None if is_known => Ok(content_type.to_owned()),
        None => Ok(guessed.to_owned()),
    }
}

/// `bytes 100-199/200` begins at 100.
fn content_range_start(header: Option<&str>) -> Option<u64> {
    header?.trim().strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}

/// The target of `<...>; rel="next"` (RFC 8288).
fn next_link(header: &str) -> Option<&str> {
    let (target, parameters) = header.trim().strip_prefix('<')?.split_once('>')?;
    let is_next = parameters.split(';').any(|parameter| {
        parameter.trim().split_once('=').is_some_and(|(name, value)| {
            name.trim().eq_ignore_ascii_case("rel")
                && value.trim().trim_matches('"').eq_ignore_ascii_case("next")
        })
    });
    is_next.then_some(target)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn links_and_ranges() {
        assert_eq!(
            next_link("</v2/a/tags/list?last=x&n=2>; rel=\"next\""),
            Some("/v2/a/tags/list?last=x&n=2")
        );
        assert_eq!(next_link("</x>; rel=prev"), None);
        assert_eq!(next_link("x"), None);
        assert_eq!(content_range_start(Some("bytes 100-199/200")), Some(100));
        assert_eq!(content_range_start(Some("bytes */200")), None);
    }

    #[test]
    fn a_manifests_own_word_counts() {
        let oci = "application/vnd.oci.image.manifest.v1+json";
        let docker = "application/vnd.docker.distribution.manifest.v2+json";
        let own = format!(r#"{{"schemaVersion":2,"mediaType":"{docker}","config":{{}}}}"#);
        assert_eq!(media_type(own.as_bytes(), oci).unwrap(), docker);
        assert_eq!(media_type(br#"{"schemaVersion":2,"config":{}}"#, docker).unwrap(), docker);
        assert_eq!(media_type(br#"{"schemaVersion":2,"config":{}}"#, "text/plain").unwrap(), oci);
        assert!(media_type(br#"{"schemaVersion":2,"manifests":[]}"#, "").unwrap().contains("index"));
        for bad in [r#"{"schemaVersion":1}"#, "[]", "{", r#"{"schemaVersion":2,"manifests":[],"config":{}}"#]
        {
            assert!(media_type(bad.as_bytes(), oci).is_err(), "{bad}");
        }
    }
}
