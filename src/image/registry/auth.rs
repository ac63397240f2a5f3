//! Proving who one is: Basic, Bearer tokens, and tokens for an identity token.
//!
//! A registry's 401 names a scheme (RFC 9110, 11.6.1). For Bearer a token is fetched from the server
//! that it names (distribution: "Token Authentication Specification"; with an identity token the OAuth2
//! variant), and used until it ends. One [`Auth`] a registry and set of credentials.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;
use ureq::http::Method;

use super::credentials::Credentials;
use super::error::{RegistryError, Result};
use super::http::{Http, Payload, Request, Response, host_of, is_loopback};
use super::secret::Secret;

/// Challenges looked at in one answer.
const MAX_CHALLENGES: usize = 8;
/// Bytes of a token server's answer. Tokens of some kilobytes exist.
const MAX_TOKEN_BYTES: u64 = 1 << 20;
/// How long a token holds that does not say (the specification's own number).
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
/// A token is not used in its last moments.
const MARGIN: Duration = Duration::from_secs(10);
/// The name by which hostel is known to token servers.
const CLIENT: &str = "hostel";

/// One challenge of a `WWW-Authenticate` header.
#[derive(Debug, PartialEq, Eq)]
struct Challenge {
    scheme: String,
    parameters: HashMap<String, String>,
}

/// What one registry wants and was given.
#[derive(Debug)]
pub(super) struct Auth {
    /// The registry, for messages.
    registry: String,
    credentials: Option<Credentials>,
    /// Whether the token server is asked for an identity token.
    is_login: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    identity_token: Option<Secret>,
    /// It wants Basic.
    is_basic: bool,
    tokens: HashMap<String, Token>,
}

#[derive(Clone, Debug)]
struct Token {
    header: Secret,
    until: Instant,
}

impl Auth {
    pub(super) fn new(registry: &str, credentials: Option<Credentials>) -> Self {
        Self { registry: registry.to_owned(), credentials, is_login: false, state: Mutex::default() }
    }

    /// For trying credentials.
    pub(super) fn for_login(registry: &str, credentials: Credentials) -> Self {
        Self { is_login: true, ..Self::new(registry, Some(credentials)) }
    }

    /// The identity token that the token server gave for a password, if it did.
    pub(super) fn identity_token(&self) -> Option<Secret> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).identity_token.clone()
    }

    /// Sends a request with what the registry wants for `scope`, finding out what that is. An answer of
    /// 401 is one that no credentials help against.
    pub(super) fn send(
        &self,
        http: &Http,
        scope: &str,
        send: &mut dyn FnMut(Option<&Secret>) -> Result<Response>,
    ) -> Result<Response> {
        let before = self.header(scope);
        let response = send(before.as_ref())?;
        if response.status != 401 {
            return Ok(response);
        }
        match self.meet(http, scope, &response)? {
            Some(header) if Some(&header) != before.as_ref() => send(Some(&header)),
            _ => Ok(response),
        }
    }

    /// The header to begin with.
    pub(super) fn header(&self, scope: &str) -> Option<Secret> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.is_basic {
            return self.credentials.as_ref().and_then(Credentials::basic);
        }
        state.tokens.get(scope).filter(|token| token.until > Instant::now()).map(|token| token.header.clone())
    }

    /// Meets the challenge of a 401; `None` where there is nothing to meet it with.
    fn meet(&self, http: &Http, scope: &str, response: &Response) -> Result<Option<Secret>> {
        let headers = response.headers.get_all("www-authenticate").iter();
        let challenges: Vec<Challenge> = headers
            .filter_map(|value| value.to_str().ok())
            .flat_map(challenges)
            .take(MAX_CHALLENGES)
            .collect();
        if let Some(bearer) = challenges.iter().find(|challenge| challenge.scheme == "bearer") {
            let token = self.token(http, scope, bearer, response)?;
            let header = token.header.clone();
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.tokens.insert(scope.to_owned(), token);
            return Ok(Some(header));
        }
        if challenges.iter().any(|challenge| challenge.scheme == "basic") {
            self.state.lock().unwrap_or_else(PoisonError::into_inner).is_basic = true;
            return Ok(self.credentials.as_ref().and_then(Credentials::basic));
        }
        Ok(None)
    }

    fn token(&self, http: &Http, scope: &str, challenge: &Challenge, response: &Response) -> Result<Token> {
        let wrong = |reason: &str| RegistryError::Challenge {
            registry: self.registry.clone(),
            reason: reason.into(),
        };
        let parameter = |name: &str| challenge.parameters.get(name).map(String::as_str);
        let realm = parameter("realm").ok_or_else(|| wrong("a Bearer challenge has no realm"))?;
        let is_tls = realm.starts_with("https://");
        let may_be_plain = realm.starts_with("http://")
            && (response.url.starts_with("http://") || is_loopback(&host_of(realm)));
        if !is_tls && !may_be_plain {
            return Err(wrong("its token server is not reached over HTTPS"));
        }
        let service = parameter("service").unwrap_or_default();
        let scope = if scope.is_empty() { parameter("scope").unwrap_or_default() } else { scope };
        let host = host_of(realm);
        let response = match &self.credentials {
            Some(Credentials::IdentityToken(token)) => {
                let body = form(&[
                    ("grant_type", "refresh_token"),
                    ("service", service),
                    ("client_id", CLIENT),
                    ("scope", scope),
                    ("refresh_token", token.expose()),
                ]);
                let request = Request {
                    method: Method::POST,
                    url: realm.to_owned(),
                    headers: vec![("content-type", "application/x-www-form-urlencoded".to_owned())],
                    payload: Payload::Bytes(body.as_bytes()),
                    what: "a token".to_owned(),
                };
                http.send(&request, None)?
            }
            credentials => {
                let mut query = vec![("service", service)];
                query
                    .extend(scope.split(' ').filter(|scope| !scope.is_empty()).map(|scope| ("scope", scope)));
                if let Some(Credentials::Password { user, .. }) = credentials {
                    query.extend([("account", user.as_str()), ("client_id", CLIENT)]);
                    query.extend(self.is_login.then_some(("offline_token", "true")));
                }
                let separator = if realm.contains('?') { '&' } else { '?' };
                let request = Request::get(format!("{realm}{separator}{}", form(&query)), "a token");
                http.send(&request, credentials.as_ref().and_then(Credentials::basic).as_ref())?
            }
        };
        let refused = |reason: String| RegistryError::Token {
            registry: self.registry.clone(),
            host: host.clone(),
            reason,
        };
        if matches!(response.status, 401 | 403) {
            let status = response.status;
            let detail =
                response.read("a token", MAX_TOKEN_BYTES).ok().and_then(|body| super::http::detail(&body));
            return Err(RegistryError::Denied {
                repository: scope.split(':').nth(1).unwrap_or(&self.registry).to_owned(),
                registry: self.registry.clone(),
                detail: detail.unwrap_or_else(|| format!("its token server answered {status}")),
            });
        }
        if !response.is_success() {
            return Err(response.into_error("a token"));
        }
        let (token, refresh) =
            parse_token(&response.read("a token", MAX_TOKEN_BYTES)?, Instant::now()).map_err(refused)?;
        if self.is_login {
            self.state.lock().unwrap_or_else(PoisonError::into_inner).identity_token = refresh;
        }
        Ok(token)
    }
}

/// Reads a token server's answer: the token, and the identity token if there is one.
fn parse_token(body: &[u8], now: Instant) -> Result<(Token, Option<Secret>), String> {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(default)]
        token: Option<String>,
        #[serde(default)]
        access_token: Option<String>,
        #[serde(default)]
        expires_in: Option<u64>,
        #[serde(default)]
        refresh_token: Option<String>,
    }
    let answer: Answer =
        serde_json::from_slice(body).map_err(|_| "its answer is not valid JSON".to_owned())?;
    let token = answer.token.into_iter().chain(answer.access_token).find(|token| !token.is_empty());
    let token = token.ok_or("its answer has no token")?;
    let life = answer.expires_in.map_or(DEFAULT_LIFE, Duration::from_secs).min(Duration::from_secs(86_400));
    let token =
        Token { header: Secret::new(format!("Bearer {token}")), until: now + life.saturating_sub(MARGIN) };
    Ok((token, answer.refresh_token.filter(|token| !token.is_empty()).map(Secret::new)))
}

/// Splits a header into its challenges: `Bearer realm="..",service=".." , Basic realm=".."`.
fn challenges(header: &str) -> Vec<Challenge> {
    let mut found: Vec<Challenge> = Vec::new();
    let mut rest = header.trim_start();
    while !rest.is_empty() {
        let end = rest.find([' ', '=', ',']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        let after = after.trim_start_matches(' ');
        match after.strip_prefix('=') {
            Some(value) => {
                let (value, after) = parameter(value.trim_start_matches(' '));
                if let Some(challenge) = found.last_mut() {
                    challenge.parameters.insert(word.to_ascii_lowercase(), value);
                }
                rest = after;
            }
            None if word.is_empty() => rest = after.get(1..).unwrap_or_default(),
            None => {
                found.push(Challenge { scheme: word.to_ascii_lowercase(), parameters: HashMap::new() });
                rest = after;
            }
        }
        rest = rest.trim_start_matches([' ', ',']);
    }
    found
}

/// A token or a quoted string, and what follows it.
fn parameter(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([' ', ',']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

/// `application/x-www-form-urlencoded`.
pub(super) fn form(pairs: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (name, value) in pairs {
        if !text.is_empty() {
            text.push('&');
        }
        for (part, end) in [(name, "="), (value, "")] {
            for byte in part.bytes() {
                if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
                    text.push(char::from(byte));
                } else {
                    let _ = write!(text, "%{byte:02X}"); // a String takes everything
                }
            }
            text.push_str(end);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn challenges_are_told_apart() {
        let header = r#"Bearer realm="https://a.example/token?x=1,2", service=reg ,scope="repository:a/b:pull,push",BASIC realm="say \"hi\"""#;
        let found = challenges(header);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].scheme, "bearer");
        assert_eq!(found[0].parameters["realm"], "https://a.example/token?x=1,2");
        assert_eq!(found[0].parameters["service"], "reg");
        assert_eq!(found[0].parameters["scope"], "repository:a/b:pull,push");
        assert_eq!(found[1].scheme, "basic");
        assert_eq!(found[1].parameters["realm"], "say \"hi\"");
        assert_eq!(challenges("Negotiate").len(), 1);
        assert!(challenges("  , ,").is_empty());
    }

    #[test]
    fn tokens_are_read_in_both_forms() {
        let now = Instant::now();
        let header =
            |body: &str| parse_token(body.as_bytes(), now).map(|(token, _)| token.header.expose().to_owned());
        assert_eq!(header(r#"{"token":"a","access_token":"b"}"#).unwrap(), "Bearer a");
        assert_eq!(header(r#"{"access_token":"b","expires_in":300}"#).unwrap(), "Bearer b");
        assert!(header(r#"{"token":""}"#).is_err());
        assert!(header("hunter2").is_err_and(|message| !message.contains("hunter2")));
        let (token, refresh) =
            parse_token(br#"{"token":"a","expires_in":18446744073709551615,"refresh_token":"r"}"#, now)
                .unwrap();
        assert_eq!(refresh, Some(Secret::new("r")));
        assert!(token.until < now + Duration::from_secs(90_000));
    }

    #[test]
    fn forms_are_escaped() {
        assert_eq!(form(&[("a", "b c&d"), ("e", "ä/:~")]), "a=b%20c%26d&e=%C3%A4%2F%3A~");
    }

    #[test]
    fn nothing_shows_a_token() {
        let auth = Auth::new("r", Some(Credentials::IdentityToken(Secret::new("hunter2"))));
        let (token, _) = parse_token(br#"{"token":"hunter2"}"#, Instant::now()).unwrap();
        auth.state.lock().unwrap().tokens.insert("s".to_owned(), token);
        assert!(!format!("{auth:?}").contains("hunter2"));
    }

    proptest! {
        #[test]
        fn no_header_breaks_the_reader(text in "[ a-c=,\"\\\\ä]{0,60}") {
            let _ = challenges(&text);
        }
    }
}
