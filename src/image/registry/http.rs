//! HTTP as registries need it: over verified TLS, with retries, and with redirects that carry no
//! credentials.
//!
//! One `ureq` agent a host, since certificates, proxy and the right to plain HTTP are a host's. An agent
//! has no thread; its connections close when it is dropped, so a process that has pulled can still fork.
//!
//! What must stay true: a request goes out over plain HTTP only to a host that may have it; a header
//! with a credential goes to the host that it is for and to no other; no error text has a URL's query,
//! where redirects carry signatures.

use std::collections::HashMap;
use std::io::{self, Read};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ureq::http::{self, HeaderMap, Uri};
use ureq::tls::TlsConfig;
use ureq::unversioned::transport::DefaultConnector;
use ureq::{Agent, AsSendBody, Body, SendBody};

use super::certificates;
use super::dns::Names;
use super::error::{RegistryError, Result};
use super::secret::Secret;
use crate::sys;

/// Redirects followed from one request: registries need one or two.
const MAX_REDIRECTS: usize = 5;
/// Bytes of a response's headers.
const MAX_HEADER_BYTES: usize = 64 << 10;
/// Bytes of an error's body that are looked at.
const MAX_ERROR_BYTES: u64 = 64 << 10;
/// How long a connection may take to be made, and to deliver the next bytes.
const CONNECT_LIMIT: Duration = Duration::from_secs(20);
const SILENCE_LIMIT: Duration = Duration::from_secs(60);
/// How long a host may think about a TLS handshake before it counts as one that has no TLS.
const PROBE_LIMIT: Duration = Duration::from_secs(3);
/// A blob is read in large pieces.
const INPUT_BYTES: usize = 256 << 10;
/// Attempts at one request, and the pauses between them, which double.
pub(super) const MAX_ATTEMPTS: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// What a registry may ask for in Retry-After before it counts as an error.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(120);

/// An address of the form `https://host:port` without a path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Origin {
    pub(super) is_tls: bool,
    /// Host, and port where it is given.
    pub(super) host: String,
}

impl Origin {
    pub(super) fn url(&self, path: &str) -> String {
        let scheme = if self.is_tls { "https" } else { "http" };
        format!("{scheme}://{}{path}", self.host)
    }

    fn of(uri: &Uri) -> Option<Self> {
        let is_tls = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let authority = uri.authority()?;
        // User and password in a URL are nobody's business here.
        let host = authority.as_str().rsplit('@').next()?.to_ascii_lowercase();
        Some(Self { is_tls, host })
    }
}

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub(super) enum Payload<'a> {
    None,
    Bytes(&'a [u8]),
}

/// A request that can be repeated.
#[derive(Clone, Debug)]
pub(super) struct Request<'a> {
    pub(super) method: http::Method,
    pub(super) url: String,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) payload: Payload<'a>,
    /// What messages call what is asked for.
    pub(super) what: String,
}

impl Request<'_> {
    pub(super) fn get(url: String, what: impl Into<String>) -> Self {
        let (headers, payload) = (Vec::new(), Payload::None);
        Self { method: http::Method::GET, url, headers, payload, what: what.into() }
    }

    pub(super) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// An answer, whatever its status, with where it came from in the end.
#[derive(Debug)]
pub(super) struct Response {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) url: String,
    body: Body,
}

impl Response {
    pub(super) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Bytes of the body, where the server says.
    pub(super) fn length(&self) -> Option<u64> {
        self.header("content-length")?.trim().parse().ok()
    }

    pub(super) fn host(&self) -> String {
        host_of(&self.url)
    }

    /// The body, unlimited: for whoever counts.
    pub(super) fn into_reader(self) -> impl Read + Send {
        self.body.into_with_config().limit(u64::MAX).reader()
    }

    /// The whole body, if it is not larger than `limit`.
    pub(super) fn read(self, what: &str, limit: u64) -> Result<Vec<u8>> {
        let host = self.host();
        let too_large = || RegistryError::TooLarge { what: what.to_owned(), host: host.clone(), limit };
        if self.length().is_some_and(|length| length > limit) {
            return Err(too_large());
        }
        let mut bytes = Vec::new();
        let reader = self.into_reader();
        reader.take(limit + 1).read_to_end(&mut bytes).map_err(|error| failure(&host, &error.into()))?;
        if bytes.len() as u64 > limit { Err(too_large()) } else { Ok(bytes) }
    }

    /// The answer as an error.
    pub(super) fn into_error(self, what: &str) -> RegistryError {
        let (status, host, retry_after) = (self.status, self.host(), retry_after(&self.headers));
        let mut bytes = Vec::new();
        // An error's body that cannot be read says nothing.
        let _ = self.into_reader().take(MAX_ERROR_BYTES).read_to_end(&mut bytes);
        let detail = detail(&bytes).map_or_else(String::new, |detail| format!(": {detail}"));
        RegistryError::Status { what: what.to_owned(), host, status, detail, retry_after }
    }
}

/// What a registry says in an error's body (distribution spec, "Error Codes"), fit for a terminal.
pub(super) fn detail(body: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Errors {
        #[serde(default)]
        errors: Vec<Error>,
        #[serde(default, alias = "details")]
        message: String,
    }
    #[derive(serde::Deserialize)]
    struct Error {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let errors: Errors = serde_json::from_slice(body).ok()?;
    let text = match errors.errors.first() {
        Some(error) if error.code.is_empty() => error.message.clone(),
        Some(error) => format!("{}: {}", error.code.to_lowercase().replace('_', " "), error.message),
        None => errors.message,
    };
    let text: String = text.chars().filter(|c| !c.is_control()).take(500).collect();
    (!text.is_empty()).then_some(text)
}

/// Which hosts may be spoken to without verified TLS.
pub(super) type Insecure = dyn Fn(&str) -> bool + Send + Sync;

/// The agents of one command.
pub(super) struct Http {
    agents: Mutex<HashMap<(String, bool), Agent>>,
    origins: Mutex<HashMap<String, Origin>>,
    insecure: Box<Insecure>,
}

impl Http {
    pub(super) fn new(insecure: Box<Insecure>) -> Self {
        Self { agents: Mutex::default(), origins: Mutex::default(), insecure }
    }

    /// How a registry's host is spoken to: over TLS, or, where plain HTTP is allowed and the host does
    /// not speak TLS, without.
    pub(super) fn origin(&self, host: &str) -> Result<Origin> {
        let is_insecure = (self.insecure)(host);
        let secure = Origin { is_tls: true, host: host.to_owned() };
        if !is_insecure && !is_loopback(host) {
            return Ok(secure);
        }
        if let Some(known) = self.origins.lock().unwrap_or_else(PoisonError::into_inner).get(host) {
            return Ok(known.clone());
        }
        let request = http::Request::get(secure.url("/v2/")).body(());
        let request = request.map_err(|error| invalid_address(host, &error))?;
        // Whether it speaks TLS at all; whom it is, the agent that is used later verifies.
        let probe = Agent::with_parts(
            config(unverified(), proxy_of(host, true)?, PROBE_LIMIT),
            DefaultConnector::default(),
            Names,
        );
        let is_plain = match probe.run(request) {
            Ok(_) => false,
            Err(error) => match tls_error(&error) {
                Some(error) => matches!(error, rustls::Error::InvalidMessage(_)),
                // A server that hangs up on what it does not understand, or says nothing; one that is not
                // there fails again.
                None => matches!(
                    error,
                    ureq::Error::Protocol(_)
                        | ureq::Error::Io(_)
                        | ureq::Error::Tls(_)
                        | ureq::Error::Timeout(_)
                        | ureq::Error::ConnectionFailed
                ),
            },
        };
        let origin = Origin { is_tls: !is_plain, ..secure };
        let mut origins = self.origins.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(origins.entry(host.to_owned()).or_insert(origin).clone())
    }

    /// Sends a request and gives the answer of any status. Redirects are followed, with `credential`
    /// only where they stay on the host.
    pub(super) fn send(&self, request: &Request<'_>, credential: Option<&Secret>) -> Result<Response> {
        let first = parse_url(&request.url, &host_of(&request.url))?;
        let origin = Origin::of(&first).ok_or_else(|| unusable(&request.url, "it is no HTTP address"))?;
        let mut uri = first;
        for _ in 0..=MAX_REDIRECTS {
            let here = Origin::of(&uri).ok_or_else(|| unusable(&origin.host, "it is no HTTP address"))?;
            let credential = credential.filter(|_| here == origin);
            let response = self.send_once(request, &uri, &here, credential)?;
            let location = match response.status {
                301 | 302 | 303 | 307 | 308 => response.header("location").map(str::to_owned),
                _ => None,
            };
            let Some(location) = location else { return Ok(response) };
            if !matches!(request.method, http::Method::GET | http::Method::HEAD) && response.status < 307 {
                return Ok(response);
            }
            let target = resolve(&response.url, &location)?;
            uri = parse_url(&target, &origin.host)?;
            let next = Origin::of(&uri)
                .ok_or_else(|| refused(&origin, &target, "only HTTP and HTTPS addresses are followed"))?;
            if !next.is_tls && here.is_tls && !(self.insecure)(&next.host) {
                return Err(refused(&origin, &target, "it leads from HTTPS to plain HTTP"));
            }
            if !next.is_tls && !(self.insecure)(&next.host) && !is_loopback(&next.host) && next != here {
                return Err(refused(
                    &origin,
                    &target,
                    "plain HTTP is for this machine and listed hosts only",
                ));
            }
        }
        Err(RegistryError::Redirects { host: origin.host, limit: MAX_REDIRECTS })
    }

    fn send_once(
        &self,
        request: &Request<'_>,
        uri: &Uri,
        origin: &Origin,
        credential: Option<&Secret>,
    ) -> Result<Response> {
        let builder = head(request, uri, origin, credential)?;
        let agent = self.agent(&origin.host, origin.is_tls)?;
        match request.payload {
            Payload::None => finish(&agent, builder, (), origin, uri),
            Payload::Bytes(bytes) => finish(&agent, builder, bytes, origin, uri),
        }
    }

    /// Sends a body of known length that is read as it goes, once: it follows no redirect and is not
    /// repeated.
    pub(super) fn send_reader(
        &self,
        request: &Request<'_>,
        length: u64,
        reader: &mut dyn Read,
        credential: Option<&Secret>,
    ) -> Result<Response> {
        let uri = parse_url(&request.url, &host_of(&request.url))?;
        let origin = Origin::of(&uri).ok_or_else(|| unusable(&request.url, "it is no HTTP address"))?;
        let builder = head(request, &uri, &origin, credential)?.header(http::header::CONTENT_LENGTH, length);
        let agent = self.agent(&origin.host, origin.is_tls)?;
        finish(&agent, builder, SendBody::from_reader(reader), &origin, &uri)
    }

    fn agent(&self, host: &str, is_tls: bool) -> Result<Agent> {
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(agent) = agents.get(&(host.to_owned(), is_tls)) {
            return Ok(agent.clone());
        }
        let tls = if !is_tls || (self.insecure)(host) { unverified() } else { certificates::of(host)? };
        let config = config(tls, proxy_of(host, is_tls)?, CONNECT_LIMIT);
        let agent = Agent::with_parts(config, DefaultConnector::default(), Names);
        agents.insert((host.to_owned(), is_tls), agent.clone());
        Ok(agent)
    }
}

/// Method, address and headers of a request.
fn head(
    request: &Request<'_>,
    uri: &Uri,
    origin: &Origin,
    credential: Option<&Secret>,
) -> Result<http::request::Builder> {
    let mut builder = http::Request::builder().method(request.method.clone()).uri(uri.clone());
    for (name, value) in &request.headers {
        builder = builder.header(*name, value);
    }
    if let Some(credential) = credential {
        let mut value = http::HeaderValue::from_str(credential.expose())
            .map_err(|_| unusable(&origin.host, "the credentials have characters that no header may have"))?;
        value.set_sensitive(true);
        builder = builder.header(http::header::AUTHORIZATION, value);
    }
    Ok(builder)
}

fn finish(
    agent: &Agent,
    builder: http::request::Builder,
    body: impl AsSendBody,
    origin: &Origin,
    uri: &Uri,
) -> Result<Response> {
    let request = builder.body(body).map_err(|error| invalid_address(&origin.host, &error))?;
    let response = agent.run(request).map_err(|error| failure(&origin.host, &error))?;
    let (parts, body) = response.into_parts();
    Ok(Response { status: parts.status.as_u16(), headers: parts.headers, url: uri.to_string(), body })
}

/// Calls `attempt` until it succeeds, fails for good, or has failed too often.
pub(super) fn with_retries<T>(mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let mut pauses = Pauses::default();
    loop {
        match attempt() {
            Err(error) => pauses.after(error)?,
            done => return done,
        }
    }
}

/// The pauses between attempts at one thing.
#[derive(Debug, Default)]
pub(super) struct Pauses {
    failures: u32,
}

impl Pauses {
    /// Waits, or gives the error back where another attempt makes no sense.
    pub(super) fn after(&mut self, error: RegistryError) -> Result<()> {
        self.failures += 1;
        let asked = match &error {
            RegistryError::Transport { .. } => None,
            RegistryError::Status { status: 429 | 500 | 502 | 503 | 504, retry_after, .. } => *retry_after,
            _ => return Err(error),
        };
        if self.failures >= MAX_ATTEMPTS || asked.is_some_and(|asked| asked > MAX_RETRY_AFTER) {
            return Err(error);
        }
        let pause = FIRST_PAUSE * 2_u32.pow(self.failures - 1);
        // Up to a quarter more, so that many clients do not come back together.
        let jitter = sys::process::random_bytes().map_or(0, u32::from_ne_bytes) % 256;
        std::thread::sleep(asked.unwrap_or(pause + pause / 1024 * jitter));
        Ok(())
    }

    /// Something came: what fails next is a new failure.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }
}

/// `Retry-After`: seconds, or a date (RFC 9110, 10.2.3).
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(http::header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    date.duration_since(jiff::Timestamp::now()).try_into().ok()
}

fn config(tls: TlsConfig, proxy: Option<ureq::Proxy>, connect_limit: Duration) -> ureq::config::Config {
    ureq::config::Config::builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .proxy(proxy)
        .user_agent(concat!("hostel/", env!("CARGO_PKG_VERSION")))
        .accept_encoding("identity")
        .timeout_connect(Some(connect_limit))
        .timeout_per_read(Some(SILENCE_LIMIT))
        .timeout_per_write(Some(SILENCE_LIMIT))
        .max_response_header_size(MAX_HEADER_BYTES)
        .input_buffer_size(INPUT_BYTES)
        .tls_config(tls)
        .build()
}

fn unverified() -> TlsConfig {
    certificates::builder().disable_verification(true).build()
}

/// The environment's proxy for a host, if it has one (curl's and Go's variables). As in Go, this
/// machine is never spoken to through one.
fn proxy_of(host: &str, is_tls: bool) -> Result<Option<ureq::Proxy>> {
    let variable = |name: &str| {
        let value = std::env::var(name.to_ascii_uppercase()).or_else(|_| std::env::var(name));
        value.ok().filter(|value| !value.is_empty())
    };
    let Some(address) = variable(if is_tls { "https_proxy" } else { "http_proxy" }) else { return Ok(None) };
    if is_loopback(host) || variable("no_proxy").is_some_and(|list| is_excepted(&list, host)) {
        return Ok(None);
    }
    let is_usable = |proxy: &ureq::Proxy| {
        matches!(proxy.protocol(), ureq::ProxyProtocol::Http | ureq::ProxyProtocol::Https)
    };
    match ureq::Proxy::new(&address).ok().filter(is_usable) {
        Some(proxy) => Ok(Some(proxy)),
        None => Err(unusable(
            host,
            "the proxy in the environment is not an address such as http://proxy.example:3128",
        )),
    }
}

/// Whether NO_PROXY names a host: `*`, a domain and what is below it, an address, a network, each
/// perhaps with a port (golang.org/x/net/http/httpproxy).
fn is_excepted(list: &str, host: &str) -> bool {
    let (name, port) = split_port(host);
    let name = name.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
    let address: Option<IpAddr> = name.parse().ok();
    list.split(',').map(|entry| entry.trim().to_ascii_lowercase()).filter(|entry| !entry.is_empty()).any(
        |entry| {
            if entry == "*" {
                return true;
            }
            if let (Some(address), Some((network, bits))) = (address, entry.split_once('/')) {
                return in_network(address, network, bits);
            }
            let (pattern, wanted_port) = split_port(&entry);
            if wanted_port.is_some() && wanted_port != port {
                return false;
            }
            let pattern = pattern.trim_start_matches('[').trim_end_matches(']');
            match pattern.strip_prefix("*.").or_else(|| pattern.strip_prefix('.')) {
                Some(domain) => name.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.')),
                None => {
                    name == pattern
                        || (address.is_none()
                            && name.strip_suffix(pattern).is_some_and(|rest| rest.ends_with('.')))
                }
            }
        },
    )
}

fn in_network(address: IpAddr, network: &str, bits: &str) -> bool {
    let (Ok(network), Ok(bits)) = (network.parse::<IpAddr>(), bits.parse::<u32>()) else { return false };
    let (a, b, width) = match (address, network) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (u128::from(a.to_bits()), u128::from(b.to_bits()), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits(), b.to_bits(), 128),
        _ => return false,
    };
    bits <= width && (a ^ b).checked_shr(width - bits).unwrap_or(0) == 0
}

/// Splits `host:port`; the port may be missing, the host be `[IPv6]`.
pub(super) fn split_port(host: &str) -> (&str, Option<&str>) {
    match host.rsplit_once(':') {
        Some((name, port))
            if port.bytes().all(|byte| byte.is_ascii_digit())
                && (!name.contains(':') || name.ends_with(']')) =>
        {
            (name, Some(port))
        }
        _ => (host, None),
    }
}

/// Whether a host is this machine by its very name or address.
pub(super) fn is_loopback(host: &str) -> bool {
    let name = split_port(host).0;
    name.eq_ignore_ascii_case("localhost")
        || name
            .trim_start_matches('[')
            .trim_end_matches(']')
            .parse::<IpAddr>()
            .is_ok_and(|ip| ip.is_loopback())
}

/// A `Location`, which may be relative (RFC 3986, 4.2; registries use whole addresses and paths).
pub(super) fn resolve(base: &str, location: &str) -> Result<String> {
    let is_absolute = location.split_once("://").is_some_and(|(scheme, _)| {
        !scheme.is_empty()
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
    });
    if is_absolute {
        return Ok(location.to_owned());
    }
    let uri = parse_url(base, &host_of(base))?;
    let origin = Origin::of(&uri).ok_or_else(|| unusable(base, "it is no HTTP address"))?;
    if let Some(rest) = location.strip_prefix("//") {
        return Ok(format!("{}://{rest}", if origin.is_tls { "https" } else { "http" }));
    }
    if location.starts_with('/') {
        return Ok(origin.url(location));
    }
    let directory = uri.path().rsplit_once('/').map_or("", |(directory, _)| directory);
    Ok(origin.url(&format!("{directory}/{location}")))
}

/// Host and port of a URL, for messages: no path, query, user or password.
pub(super) fn host_of(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    authority.rsplit('@').next().unwrap_or_default().to_owned()
}

fn parse_url(url: &str, host: &str) -> Result<Uri> {
    // What a browser would escape, and some servers do not.
    let escaped = url.replace(' ', "%20");
    escaped.parse().map_err(|error| RegistryError::Invalid {
        what: "an address".to_owned(),
        host: host.to_owned(),
        reason: format!("{error}"),
    })
}

fn refused(origin: &Origin, target: &str, reason: &'static str) -> RegistryError {
    RegistryError::Redirect { host: origin.host.clone(), target: host_of(target), reason }
}

fn unusable(host: &str, reason: &str) -> RegistryError {
    RegistryError::Unreachable { host: host_of(host), reason: reason.to_owned() }
}

fn invalid_address(host: &str, error: &http::Error) -> RegistryError {
    unusable(host, &error.to_string())
}

/// A request's failure: whether another attempt may help, and in words that do.
fn failure(host: &str, error: &ureq::Error) -> RegistryError {
    let host = host.to_owned();
    if let Some(error) = tls_error(error) {
        return RegistryError::Unreachable { host, reason: tls_reason(error) };
    }
    let is_final = match error {
        ureq::Error::HostNotFound | ureq::Error::BadUri(_) => true,
        ureq::Error::Io(error) => error.kind() == io::ErrorKind::ConnectionRefused,
        _ => false,
    };
    let reason = match error {
        ureq::Error::HostNotFound => "there is no such host".to_owned(),
        ureq::Error::Timeout(_) => "it does not answer in time".to_owned(),
        // The system's words, without ureq's prefix.
        ureq::Error::Io(error) => error.to_string(),
        other => other.to_string(),
    };
    if is_final {
        RegistryError::Unreachable { host, reason }
    } else {
        RegistryError::Transport { host, reason }
    }
}

/// What TLS itself found wrong; while data flows it comes wrapped.
fn tls_error(error: &ureq::Error) -> Option<&rustls::Error> {
    match error {
        ureq::Error::Rustls(error) => Some(error),
        ureq::Error::Io(error) => error.get_ref()?.downcast_ref(),
        _ => None,
    }
}

fn tls_reason(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(reason) => format!(
            "its certificate is not trusted ({reason}); put its CA into certs.d/HOST/ca.crt below /etc/containers or ~/.config/containers"
        ),
        rustls::Error::InvalidMessage(_) => {
            "it does not speak TLS; if it is meant to be without, list it as insecure in registries.conf"
                .to_owned()
        }
        rustls::Error::AlertReceived(alert) => {
            format!("it ends the TLS connection ({alert:?}): it may want a client's certificate, see certs.d")
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn no_proxy_follows_gos_rules() {
        let table = [
            ("*", "a.example", true),
            ("example", "reg.example:443", true),
            ("ample", "reg.example", false),
            (".example", "example", false),
            (".example,x", "a.example", true),
            ("*.example", "a.b.example", true),
            ("a.example:5000", "a.example:5000", true),
            ("a.example:5000", "a.example", false),
            ("10.0.0.0/8", "10.1.2.3:80", true),
            ("10.0.0.0/8", "11.1.2.3", false),
            ("10.1.2.3", "10.1.2.3", true),
            ("fd00::/8", "[fd00::1]:5000", true),
            ("0.0.0.0/0", "1.2.3.4", true),
            (" , ", "a", false),
        ];
        for (list, host, wanted) in table {
            assert_eq!(is_excepted(list, host), wanted, "{list} {host}");
        }
    }

    #[test]
    fn this_machine_is_known_by_name_and_address() {
        for host in ["localhost", "LOCALHOST:5000", "127.0.0.1:1", "127.9.9.9", "[::1]:5000", "[::1]"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["localhost.example", "10.0.0.1", "128.0.0.1:1", "[::2]", "127.0.0.1.example"] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn locations_may_be_relative() {
        let base = "https://reg.example:1/v2/a/blobs/uploads/1?x=y";
        let table = [
            ("http://other.example/p?q", "http://other.example/p?q"),
            ("/p?u=http://x", "https://reg.example:1/p?u=http://x"),
            ("//other.example/p", "https://other.example/p"),
            ("2?z", "https://reg.example:1/v2/a/blobs/uploads/2?z"),
        ];
        for (location, wanted) in table {
            assert_eq!(resolve(base, location).unwrap(), wanted);
        }
    }

    #[test]
    fn messages_have_no_query_and_no_password() {
        assert_eq!(host_of("https://user:word@reg.example:1/v2/?sig=secret"), "reg.example:1");
        assert_eq!(host_of("https://reg.example?sig=secret"), "reg.example");
    }

    #[test]
    fn errors_of_registries_are_read_and_cleaned() {
        let body =
            br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest\u001b[31m unknown","detail":{}}]}"#;
        assert_eq!(detail(body).unwrap(), "manifest unknown: manifest[31m unknown");
        assert_eq!(detail(b"<html>"), None);
        assert_eq!(
            detail(br#"{"details":"incorrect username or password"}"#).unwrap(),
            "incorrect username or password"
        );
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let parse = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("retry-after", text.parse().unwrap());
            retry_after(&headers)
        };
        assert_eq!(parse("7"), Some(Duration::from_secs(7)));
        assert!(parse("Fri, 01 Jan 2100 00:00:00 GMT").unwrap() > MAX_RETRY_AFTER);
        assert_eq!(parse("soon"), None);
    }
}
