//! Which images may come in: containers-policy.json(5).
//!
//! The file is `$HOME/.config/containers/policy.json`, else `/etc/containers/policy.json`; where
//! there is neither everything is accepted, as Docker does. For an image the requirements of the
//! most specific scope count, and all of them must hold. `insecureAcceptAnything` and `reject` are
//! honoured. Signatures are not checked by this program: where a policy asks for one
//! (`signedBy`, `sigstoreSigned`) the image is refused by the requirement's name, never let in.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{DeserializeOwned, Error as _};
use serde_json::Value;
use thiserror::Error;

use super::reference::Reference;
use super::transport::Source;

/// Policies are written by hand; a larger file is not one.
const MAX_BYTES: u64 = 1 << 20;
const SYSTEM: &str = "/etc/containers/policy.json";
const OF_USER: &str = ".config/containers/policy.json";

/// Why an image may not come in.
#[derive(Debug, Error)]
pub enum PolicyError {
    /// The policy says so.
    #[error("{image} is rejected by the signature policy {path} (at {scope})")]
    Rejected {
        /// The image.
        image: String,
        /// The policy's file.
        path: PathBuf,
        /// Whose requirement.
        scope: String,
    },
    /// The policy asks for a signature.
    #[error(
        "the signature policy {path} asks for {kind} of {image} (at {scope}), which hostel cannot check, so the image is refused; have a tool check it that can (`skopeo copy`), and bring it in with `hostel load`"
    )]
    Unsupported {
        /// The image.
        image: String,
        /// The policy's file.
        path: PathBuf,
        /// The requirement's type.
        kind: String,
        /// Whose requirement.
        scope: String,
    },
    /// The policy is not one.
    #[error("the signature policy {path} is not valid, so no image is accepted")]
    Invalid {
        /// Its file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// The policy cannot be read.
    #[error("cannot read the signature policy {path}, so no image is accepted")]
    Read {
        /// Its file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    Accept,
    Reject,
    Signed(String),
}

impl<'de> Deserialize<'de> for Requirement {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Typed {
            r#type: String,
        }
        let kind = Typed::deserialize(deserializer)?.r#type;
        match kind.as_str() {
            "insecureAcceptAnything" => Ok(Self::Accept),
            "reject" => Ok(Self::Reject),
            "signedBy" | "signedBaseLayer" | "sigstoreSigned" => Ok(Self::Signed(kind)),
            _ => Err(D::Error::custom(format!("unknown policy requirement type {kind:?}"))),
        }
    }
}

/// At least one: an empty list would let everything in.
#[derive(Clone, Debug)]
struct Requirements(Vec<Requirement>);

impl<'de> Deserialize<'de> for Requirements {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Vec::deserialize(deserializer)? {
            list if list.is_empty() => Err(D::Error::custom("a list of requirements is empty")),
            list => Ok(Self(list)),
        }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    default: Requirements,
    #[serde(default)]
    transports: BTreeMap<String, BTreeMap<String, Requirements>>,
}

/// A policy, read.
#[derive(Clone, Debug)]
pub struct Policy {
    path: PathBuf,
    document: Option<Document>,
}

impl Policy {
    /// The policy that holds for this user. `home` is the user's home directory.
    ///
    /// # Errors
    /// A policy is there and cannot be read or understood: then nothing may come in.
    pub fn load(home: Option<&Path>) -> Result<Self, PolicyError> {
        let of_user = home.map(|home| home.join(OF_USER));
        for path in of_user.into_iter().chain([PathBuf::from(SYSTEM)]) {
            let mut bytes = Vec::new();
            let read = File::open(&path).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut bytes));
            match read {
                Ok(_) => return Self::parse(path, &bytes),
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                Err(source) => return Err(PolicyError::Read { path, source }),
            }
        }
        Ok(Self { path: PathBuf::new(), document: None })
    }

    /// The policy that holds for the process's user.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn of_user() -> Result<Self, PolicyError> {
        Self::load(std::env::var_os("HOME").map(PathBuf::from).as_deref())
    }

    /// Understands a policy's bytes; `path` is what messages call it.
    ///
    /// # Errors
    /// [`PolicyError::Invalid`].
    pub fn parse(path: PathBuf, bytes: &[u8]) -> Result<Self, PolicyError> {
        match parse_strictly(bytes) {
            Ok(document) => Ok(Self { path, document: Some(document) }),
            Err(source) => Err(PolicyError::Invalid { path, source }),
        }
    }

    /// Whether an image of a registry may come in.
    ///
    /// # Errors
    /// [`PolicyError::Rejected`], [`PolicyError::Unsupported`].
    pub fn check_registry(&self, reference: &Reference) -> Result<(), PolicyError> {
        self.check("docker", &registry_scopes(reference), &reference.familiar())
    }

    /// Whether an image of an archive, a layout or another engine may come in.
    ///
    /// # Errors
    /// As [`Self::check_registry`].
    pub fn check_source(&self, source: &Source, shown: &str) -> Result<(), PolicyError> {
        let (transport, scopes) = match source {
            Source::OciLayout { directory, tag } => ("oci", path_scopes(directory, tag.as_deref())),
            Source::OciArchive { file, tag } => ("oci-archive", path_scopes(file, tag.as_deref())),
            Source::DockerArchive { .. } => ("docker-archive", Vec::new()),
            Source::ContainersStorage { .. } => ("containers-storage", Vec::new()),
            Source::DockerDaemon { .. } => ("docker-daemon", Vec::new()),
            // What is in the store has been let in; directories of this machine are no images.
            Source::Stored(_) | Source::Rootfs { .. } | Source::Host => return Ok(()),
        };
        self.check(transport, &scopes, shown)
    }

    /// Checks against the first of `scopes` that the policy knows, else the transport's default
    /// (its scope ""), else the default of all.
    ///
    /// # Errors
    /// As [`Self::check_registry`].
    pub fn check(&self, transport: &str, scopes: &[String], image: &str) -> Result<(), PolicyError> {
        let Some(document) = &self.document else { return Ok(()) };
        let known = document.transports.get(transport);
        let scoped =
            scopes.iter().map(String::as_str).chain([""]).find_map(|scope| Some((scope, known?.get(scope)?)));
        let (scope, requirements) = match scoped {
            Some(("", requirements)) => (format!("transport {transport}"), requirements),
            Some((scope, requirements)) => (format!("{transport} {scope}"), requirements),
            None => ("default".to_owned(), &document.default),
        };
        for requirement in &requirements.0 {
            let (image, path, scope) = (image.to_owned(), self.path.clone(), scope.clone());
            match requirement {
                Requirement::Accept => {}
                Requirement::Reject => return Err(PolicyError::Rejected { image, path, scope }),
                Requirement::Signed(kind) => {
                    return Err(PolicyError::Unsupported { image, path, kind: kind.clone(), scope });
                }
            }
        }
        Ok(())
    }
}

/// A key that stands twice in an object is no valid policy: the format asks for it to be refused, and
/// the parser alone would take the last. All levels are checked before the document is understood.
fn parse_strictly<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, serde_json::Error> {
    struct Unique;
    impl<'de> Deserialize<'de> for Unique {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Visitor;
            impl<'de> serde::de::Visitor<'de> for Visitor {
                type Value = Unique;
                fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str("JSON")
                }
                fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Unique, A::Error> {
                    let mut seen = std::collections::BTreeSet::new();
                    while let Some((key, _)) = map.next_entry::<String, Unique>()? {
                        if !seen.insert(key.clone()) {
                            return Err(A::Error::custom(format!("the key {key:?} stands there twice")));
                        }
                    }
                    Ok(Unique)
                }
                fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Unique, A::Error> {
                    while seq.next_element::<Unique>()?.is_some() {}
                    Ok(Unique)
                }
                fn visit_str<E>(self, _: &str) -> Result<Unique, E> {
                    Ok(Unique)
                }
                fn visit_bool<E>(self, _: bool) -> Result<Unique, E> {
                    Ok(Unique)
                }
                fn visit_i64<E>(self, _: i64) -> Result<Unique, E> {
                    Ok(Unique)
                }
                fn visit_u64<E>(self, _: u64) -> Result<Unique, E> {
                    Ok(Unique)
                }
                fn visit_f64<E>(self, _: f64) -> Result<Unique, E> {
                    Ok(Unique)
                }
                fn visit_unit<E>(self) -> Result<Unique, E> {
                    Ok(Unique)
                }
            }
            deserializer.deserialize_any(Visitor)
        }
    }
    serde_json::from_slice::<Unique>(bytes)?;
    // Requirements hold fields that are not looked at; a value of any kind will do there.
    serde_json::from_value(serde_json::from_slice::<Value>(bytes)?)
}

/// The scopes of a registry's image, the most specific first (containers-policy.json(5), "docker:").
fn registry_scopes(reference: &Reference) -> Vec<String> {
    let repository = reference.repository();
    let mut scopes = Vec::new();
    match (reference.digest(), reference.tag()) {
        (Some(digest), _) => scopes.push(format!("{repository}@{digest}")),
        (None, tag) => scopes.push(format!("{repository}:{}", tag.unwrap_or(super::DEFAULT_TAG))),
    }
    let mut rest = repository.as_str();
    scopes.push(rest.to_owned());
    while let Some((parent, _)) = rest.rsplit_once('/') {
        scopes.push(parent.to_owned());
        rest = parent;
    }
    // `*.example.com` stands for every host below it, without its port.
    let mut host = reference.domain().split(':').next().unwrap_or_default();
    while let Some((_, parent)) = host.split_once('.') {
        scopes.push(format!("*.{parent}"));
        host = parent;
    }
    scopes
}

/// The scopes of a path: with its tag, alone, and each directory above, the root itself excepted.
fn path_scopes(path: &Path, tag: Option<&str>) -> Vec<String> {
    let path =
        std::fs::canonicalize(path).or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.into());
    let tagged = tag.map(|tag| format!("{}:{tag}", path.display()));
    let above = path.ancestors().filter(|above| above.parent().is_some());
    tagged.into_iter().chain(above.map(|above| above.display().to_string())).collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    const POLICY: &str = r#"{
        "default": [{"type": "reject"}],
        "transports": {
            "docker": {
                "docker.io": [{"type": "insecureAcceptAnything"}],
                "docker.io/library/signed": [{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/k.gpg"}],
                "docker.io/library/debian:11": [{"type": "reject"}],
                "*.example.com": [{"type": "insecureAcceptAnything"}],
                "bad.example.com": [{"type": "insecureAcceptAnything"}, {"type": "sigstoreSigned", "keyPath": "/k"}]
            },
            "oci": {"": [{"type": "insecureAcceptAnything"}], "/srv": [{"type": "reject"}]}
        }
    }"#;

    fn outcome(result: &Result<(), PolicyError>) -> &'static str {
        match result {
            Ok(()) => "accepted",
            Err(PolicyError::Rejected { .. }) => "rejected",
            Err(PolicyError::Unsupported { .. }) => "unsupported",
            Err(_) => "another error",
        }
    }

    #[test]
    fn the_most_specific_scope_counts() {
        let policy = Policy::parse("/p.json".into(), POLICY.as_bytes()).unwrap();
        let table = [
            ("debian", "accepted"),
            ("debian:11", "rejected"),
            ("team/app", "accepted"),
            ("signed", "unsupported"),
            ("signed:1", "unsupported"),
            ("a.example.com/x", "accepted"),
            ("a.b.example.com:5000/x/y", "accepted"),
            ("bad.example.com/x", "unsupported"),
            ("example.com/x", "rejected"),
            ("localhost:5000/x", "rejected"),
        ];
        for (name, wanted) in table {
            assert_eq!(outcome(&policy.check_registry(&name.parse().unwrap())), wanted, "{name}");
        }
        let table = [
            ("oci:/nosuch/x:1", "accepted"),
            ("oci:/srv/a/b", "rejected"),
            ("docker-archive:/x.tar", "rejected"),
            ("rootfs:/", "accepted"),
            ("host:/", "accepted"),
        ];
        for (source, wanted) in table {
            assert_eq!(
                outcome(&policy.check_source(&Source::parse(source).unwrap(), source)),
                wanted,
                "{source}"
            );
        }
    }

    #[test]
    fn a_refusal_names_the_requirement() {
        let policy = Policy::parse("/p.json".into(), POLICY.as_bytes()).unwrap();
        let message = |name: &str| policy.check_registry(&name.parse().unwrap()).unwrap_err().to_string();
        assert!(
            message("signed")
                .contains("/p.json asks for signedBy of signed (at docker docker.io/library/signed)")
        );
        assert!(message("bad.example.com/x").contains("sigstoreSigned"));
        assert_eq!(
            message("localhost/x"),
            "localhost/x is rejected by the signature policy /p.json (at default)"
        );
    }

    #[test]
    fn what_is_no_policy_lets_nothing_in() {
        let table = [
            "",
            "{}",
            r#"{"default": []}"#,
            r#"{"default": [{"type": "nonsense"}]}"#,
            r#"{"default": [{}]}"#,
            r#"{"default": [{"type": "reject"}], "more": 1}"#,
            r#"{"default": [{"type": "reject"}], "default": [{"type": "insecureAcceptAnything"}]}"#,
            r#"{"default": [{"type": "reject"}], "transports": {"docker": {"a": []}}}"#,
        ];
        for text in table {
            assert!(Policy::parse("/p".into(), text.as_bytes()).is_err(), "{text}");
        }
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join(OF_USER);
        std::fs::create_dir_all(place.parent().unwrap()).unwrap();
        std::fs::write(&place, "{").unwrap();
        assert!(
            matches!(Policy::load(Some(dir.path())), Err(PolicyError::Invalid { path, .. }) if path == place)
        );
    }
}
