//! Image names: Docker's grammar and normalisation.
//!
//! The grammar is that of the distribution project (`reference.go`):
//!
//! ```text
//! reference      := name [":" tag] ["@" digest]
//! name           := [domain "/"] path-component ("/" path-component)*
//! domain         := host [":" port]           host: labels joined by ".", or "[" IPv6 "]"
//! path-component := alnum+ (separator alnum+)*   lower case; separator: "_", ".", "__" or "-"+
//! tag            := [A-Za-z0-9_][A-Za-z0-9_.-]{0,127}
//! ```
//!
//! What stands before the first `/` is a domain if it has a `.` or `:`, is `localhost`, or has an
//! upper-case letter. Without one the domain is `docker.io`, whose one-component names live below
//! `library/`.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::id::Digest;

const DEFAULT_DOMAIN: &str = "docker.io";
const LEGACY_DOMAIN: &str = "index.docker.io";
const OFFICIAL: &str = "library/";
/// The tag of a name that is given without one.
pub const DEFAULT_TAG: &str = "latest";
/// Bytes of a repository's name, domain included (distribution: NameTotalLengthMax, older clients'
/// reading of it).
const MAX_NAME_BYTES: usize = 255;
const MAX_TAG_BYTES: usize = 128;

/// Why a text is not an image name. The words are Docker's.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ReferenceError {
    /// It does not follow the grammar.
    #[error(
        "invalid reference format: {0:?} is not an image name such as debian, debian:12 or registry.example:5000/team/app:1.0"
    )]
    Format(String),
    /// It would, but for capitals.
    #[error("invalid reference format: repository name ({0}) must be lowercase")]
    Uppercase(String),
    /// 64 hex digits are an image id.
    #[error("invalid repository name ({0}), cannot specify 64-byte hexadecimal strings")]
    Identifier(String),
    /// Longer than a registry takes.
    #[error(
        "invalid reference format: repository name ({0}) must not be more than {MAX_NAME_BYTES} characters"
    )]
    TooLong(String),
    /// The part after `@`.
    #[error("invalid reference format: {0:?} is not a digest (sha256: and 64 hex digits)")]
    Digest(String),
}

/// A normalised image name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// The registry: `docker.io`, `localhost:5000`.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository within its registry: `library/debian`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag, if one was given.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if one was given.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Domain and path: `docker.io/library/debian`.
    #[must_use]
    pub fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The repository as a person writes it: `debian`.
    #[must_use]
    pub fn familiar_repository(&self) -> String {
        if self.domain != DEFAULT_DOMAIN {
            return self.repository();
        }
        let short = match self.path.strip_prefix(OFFICIAL) {
            // Without its prefix `library/a/b` would be another repository.
            Some(name) if !name.contains('/') => name,
            _ => &self.path,
        };
        // Nor is a path to be read as a registry's name, or as an id: `docker.io/quay.io/a` stays whole.
        match short.parse::<Self>() {
            Ok(read) if read.domain == self.domain && read.path == self.path => short.to_owned(),
            _ => self.repository(),
        }
    }

    /// The whole name as a person writes it: `debian:12`.
    #[must_use]
    pub fn familiar(&self) -> String {
        format!("{}{}", self.familiar_repository(), self.suffix())
    }

    /// The name with the tag `latest`, if it has neither tag nor digest.
    #[must_use]
    pub fn with_default_tag(mut self) -> Self {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some(DEFAULT_TAG.to_owned());
        }
        self
    }

    /// The name with a digest and without a tag.
    #[must_use]
    pub fn with_digest(self, digest: Digest) -> Self {
        Self { tag: None, digest: Some(digest), ..self }
    }

    fn suffix(&self) -> String {
        let mut text = String::new();
        if let Some(tag) = &self.tag {
            text = format!(":{tag}");
        }
        if let Some(digest) = &self.digest {
            text = format!("{text}@{digest}");
        }
        text
    }
}

/// The canonical form: `docker.io/library/debian:12`.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}{}", self.domain, self.path, self.suffix())
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(ReferenceError::Identifier(text.to_owned()));
        }
        let invalid = || ReferenceError::Format(text.to_owned());
        let (domain, remainder) = split_domain(text);
        let path_end = remainder.find([':', '@']).unwrap_or(remainder.len());
        let (path, suffix) = remainder.split_at(path_end);
        if path.chars().any(char::is_uppercase) {
            return Err(ReferenceError::Uppercase(path.to_owned()));
        }
        let (tag, digest) = match suffix.split_once('@') {
            Some((tag, digest)) => (tag, Some(digest)),
            None => (suffix, None),
        };
        let tag = match tag.strip_prefix(':') {
            Some(tag) if is_tag(tag) => Some(tag.to_owned()),
            None if tag.is_empty() => None,
            _ => return Err(invalid()),
        };
        if !is_domain(&domain) || !path.split('/').all(is_path_component) {
            return Err(invalid());
        }
        if domain.len() + 1 + path.len() > MAX_NAME_BYTES {
            return Err(ReferenceError::TooLong(path.to_owned()));
        }
        let digest = match digest.map(|digest| digest.parse().map_err(|_| digest)) {
            Some(Err(digest)) => return Err(ReferenceError::Digest(digest.to_owned())),
            Some(Ok(digest)) => Some(digest),
            None => None,
        };
        Ok(Self { domain, path: path.to_owned(), tag, digest })
    }
}

/// Splits off the domain and puts in the defaults.
fn split_domain(text: &str) -> (String, String) {
    let (domain, rest) = match text.split_once('/') {
        Some((LEGACY_DOMAIN, rest)) => (DEFAULT_DOMAIN, rest),
        Some((first, rest))
            if first == "localhost"
                || first.contains(['.', ':'])
                || first.chars().any(char::is_uppercase) =>
        {
            (first, rest)
        }
        _ => (DEFAULT_DOMAIN, text),
    };
    if domain == DEFAULT_DOMAIN && !rest.contains('/') {
        (domain.to_owned(), format!("{OFFICIAL}{rest}"))
    } else {
        (domain.to_owned(), rest.to_owned())
    }
}

fn is_domain(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, "")) => return is_ipv6(address),
            Some((address, port)) => return is_ipv6(address) && port.strip_prefix(':').is_some_and(is_port),
            None => return false,
        },
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let is_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    host.split('.').all(is_label) && port.is_none_or(is_port)
}

fn is_ipv6(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b':')
}

fn is_port(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_tag(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.len() <= MAX_TAG_BYTES
        && text.bytes().next().is_some_and(is_word)
        && text.bytes().all(|byte| is_word(byte) || byte == b'.' || byte == b'-')
}

fn is_path_component(text: &str) -> bool {
    let is_alnum = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let mut rest = text;
    loop {
        let word = rest.trim_start_matches(is_alnum);
        if word.len() == rest.len() {
            return false;
        }
        if word.is_empty() {
            return true;
        }
        let end = word.find(is_alnum).unwrap_or(word.len());
        let (separator, next) = word.split_at(end);
        if !matches!(separator, "." | "_" | "__") && !separator.bytes().all(|byte| byte == b'-') {
            return false;
        }
        rest = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_name_is_not_read_as_another_registrys() {
        for text in [
            "docker.io/quay.io/a:1",
            "docker.io/docker.io/a/b",
            "docker.io/localhost/a",
            "docker.io/a:1",
            "docker.io/library/a",
        ] {
            let name: Reference = text.parse().expect("a name");
            assert_eq!(name.familiar().parse(), Ok(name), "{text}");
        }
    }

    #[test]
    fn names_are_normalised_as_dockers() {
        let hex = "ab".repeat(32);
        let table = [
            ("debian", "docker.io/library/debian", "debian"),
            ("debian:12", "docker.io/library/debian:12", "debian:12"),
            ("a/b", "docker.io/a/b", "a/b"),
            ("library/debian", "docker.io/library/debian", "debian"),
            ("docker.io/debian", "docker.io/library/debian", "debian"),
            ("index.docker.io/debian:1", "docker.io/library/debian:1", "debian:1"),
            ("docker.io/library/a/b", "docker.io/library/a/b", "library/a/b"),
            ("localhost/x", "localhost/x", "localhost/x"),
            ("reg.example:5000/a/b:tag", "reg.example:5000/a/b:tag", "reg.example:5000/a/b:tag"),
            ("127.0.0.1:5000/a", "127.0.0.1:5000/a", "127.0.0.1:5000/a"),
            ("[::1]:5000/a", "[::1]:5000/a", "[::1]:5000/a"),
            ("[fe80::1]/a", "[fe80::1]/a", "[fe80::1]/a"),
            ("Upper/x", "Upper/x", "Upper/x"),
            ("oci:v1", "docker.io/library/oci:v1", "oci:v1"),
            ("a__b-c---d.e_f", "docker.io/library/a__b-c---d.e_f", "a__b-c---d.e_f"),
            ("x:_Tag.1-2", "docker.io/library/x:_Tag.1-2", "x:_Tag.1-2"),
        ];
        for (text, canonical, familiar) in table {
            let reference: Reference = text.parse().expect(text);
            assert_eq!(reference.to_string(), canonical);
            assert_eq!(reference.familiar(), familiar);
            assert_eq!(reference.to_string().parse(), Ok(reference), "the canonical form stays what it is");
        }
        for suffix in [format!("@sha256:{hex}"), format!(":1@sha256:{hex}")] {
            let reference: Reference = format!("a{suffix}").parse().expect("digest");
            assert_eq!(reference.to_string(), format!("docker.io/library/a{suffix}"));
            assert_eq!(reference.with_default_tag().familiar(), format!("a{suffix}"));
        }
        let plain: Reference = "debian".parse().expect("valid");
        assert_eq!(plain.with_default_tag().familiar(), "debian:latest");
    }

    #[test]
    fn wrong_names_are_refused_in_dockers_words() {
        let format = |text: &str| Err(ReferenceError::Format(text.to_owned()));
        let bad = [
            "",
            ":",
            "/",
            "a b",
            "a:",
            "a:b:c",
            "a/",
            "/a",
            "a//b",
            "-a",
            "a-",
            "a___b",
            "a..b",
            "a_-b",
            "a:-t",
            "a@",
            "ä",
            "reg.example:x/a",
            "-reg.example/a",
            "reg..example/a",
            "[::1/a",
            "[]/a",
            "a:b/c:d",
            "a\n",
        ];
        for text in bad {
            let wanted = if text == "a@" { Err(ReferenceError::Digest(String::new())) } else { format(text) };
            assert_eq!(text.parse::<Reference>(), wanted, "{text:?}");
        }
        assert_eq!("Foo".parse::<Reference>(), Err(ReferenceError::Uppercase("library/Foo".to_owned())));
        assert_eq!("a/Foo:x".parse::<Reference>(), Err(ReferenceError::Uppercase("a/Foo".to_owned())));
        let hex = "a".repeat(64);
        assert_eq!(hex.parse::<Reference>(), Err(ReferenceError::Identifier(hex)));
        let long = "a/".repeat(130) + "a";
        assert_eq!(long.parse::<Reference>(), Err(ReferenceError::TooLong(long)));
        let tag = format!("a:{}", "t".repeat(129));
        assert_eq!(tag.parse::<Reference>(), format(&tag));
        assert_eq!("a@sha256:12".parse::<Reference>(), Err(ReferenceError::Digest("sha256:12".to_owned())));
    }

    proptest::proptest! {
        /// Whatever is typed is refused or has a canonical form, which is its own.
        #[test]
        fn canonical_forms_are_fixed_points(text in "([a-cA]|[.]|/|:|@|_|__|-|[0-9]|\\[|\\]|localhost|sha256|ä){0,30}") {
            if let Ok(reference) = text.parse::<Reference>() {
                proptest::prop_assert_eq!(reference.to_string().parse::<Reference>(), Ok(reference.clone()));
                proptest::prop_assert_eq!(reference.familiar().parse::<Reference>(), Ok(reference));
            }
        }
    }
}
