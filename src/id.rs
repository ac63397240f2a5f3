//! Names and ids that are valid once they exist: container ids, container names, digests.
//!
//! Each is parsed at the border and carried as its own type, so that nothing below needs to check again.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Hex digits of an id that a person is shown, as in Docker's tables.
pub const SHORT_ID_LEN: usize = 12;

/// What is wrong with an id, a name or a digest.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum IdError {
    /// Not 64 lower-case hex digits.
    #[error("{0:?} is not a container id (64 hex digits)")]
    ContainerId(String),
    /// Not in Docker's set of names.
    #[error(
        "Invalid container name ({0}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed, at least two characters"
    )]
    Name(String),
    /// Not `sha256:` and 64 hex digits.
    #[error("{0:?} is not a digest this engine knows: it takes sha256: followed by 64 hex digits")]
    Digest(String),
}

/// A container's id: 64 hex digits, from the kernel's random source.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerId(String);

impl ContainerId {
    /// Makes an id of 32 random bytes that the caller got from the kernel.
    #[must_use]
    pub fn from_random(bytes: &[u8; 32]) -> Self {
        Self(hex(bytes))
    }

    /// All 64 digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first twelve digits, as tables show them.
    #[must_use]
    pub fn short(&self) -> &str {
        &self.0[..SHORT_ID_LEN]
    }
}

impl TryFrom<String> for ContainerId {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        if is_hex64(&text) { Ok(Self(text)) } else { Err(IdError::ContainerId(text)) }
    }
}

impl FromStr for ContainerId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        Self::try_from(text.to_owned())
    }
}

impl From<ContainerId> for String {
    fn from(id: ContainerId) -> Self {
        id.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.short())
    }
}

/// A container's (or volume's) name, within Docker's rule `[a-zA-Z0-9][a-zA-Z0-9_.-]+`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// Names are also file names; longer ones would not fit in a directory entry beside a suffix.
pub const MAX_NAME_LEN: usize = 200;

impl Name {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Name {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        let mut bytes = text.bytes();
        let first = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric());
        let rest = bytes.len() >= 1 && bytes.all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
        if first && rest && text.len() <= MAX_NAME_LEN { Ok(Self(text)) } else { Err(IdError::Name(text)) }
    }
}

impl FromStr for Name {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        Self::try_from(text.to_owned())
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A SHA-256 digest, written `sha256:<64 hex digits>` (OCI image-spec, descriptor.md).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

const SHA256_PREFIX: &str = "sha256:";

impl Digest {
    /// From the 32 bytes of a finished hash.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        Self(format!("{SHA256_PREFIX}{}", hex(bytes)))
    }

    /// `sha256:` and the digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The 64 hex digits alone: a blob's file name.
    #[must_use]
    pub fn hex(&self) -> &str {
        &self.0[SHA256_PREFIX.len()..]
    }

    /// The first twelve digits, as tables show them.
    #[must_use]
    pub fn short(&self) -> &str {
        &self.hex()[..SHORT_ID_LEN]
    }
}

impl TryFrom<String> for Digest {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        if text.strip_prefix(SHA256_PREFIX).is_some_and(is_hex64) {
            Ok(Self(text))
        } else {
            Err(IdError::Digest(text))
        }
    }
}

impl FromStr for Digest {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        Self::try_from(text.to_owned())
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.short())
    }
}

fn is_hex64(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        for nibble in [byte >> 4, byte & 15] {
            text.push(char::from(b"0123456789abcdef"[usize::from(nibble)]));
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_64_lower_hex_digits() {
        let id = ContainerId::from_random(&[0xab; 32]);
        assert_eq!(id.as_str(), "ab".repeat(32));
        assert_eq!(id.short(), "abababababab");
        for bad in ["", "ab", &"AB".repeat(32), &"g".repeat(64), &"a".repeat(65)] {
            assert_eq!(bad.parse::<ContainerId>(), Err(IdError::ContainerId(bad.to_owned())));
        }
    }

    #[test]
    fn names_follow_dockers_rule() {
        for good in ["ab", "a_b.c-d", "0x"] {
            assert_eq!(good.parse::<Name>().expect("valid").as_str(), good);
        }
        for bad in ["", "a", "-ab", ".ab", "a b", "a/b", "ä1", &"a".repeat(201)] {
            assert_eq!(bad.parse::<Name>(), Err(IdError::Name(bad.to_owned())));
        }
    }

    #[test]
    fn digests_are_sha256_only() {
        let digest = Digest::from_bytes(&[1; 32]);
        assert_eq!(digest.hex(), "01".repeat(32));
        assert_eq!(digest.as_str().parse(), Ok(digest));
        for bad in ["sha256:", "sha512:00", "../../x", &format!("sha256:{}", "A".repeat(64))] {
            assert_eq!(bad.parse::<Digest>(), Err(IdError::Digest(bad.to_owned())));
        }
    }
}
