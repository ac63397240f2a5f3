//! registries.conf, as containers-registries.conf(5) describes its second version: which registry a
//! name means, where it is really fetched from, and what is forbidden.
//!
//! Read are `$CONTAINERS_REGISTRIES_CONF`, else ~/.config/containers/registries.conf, else
//! /etc/containers/registries.conf; over it, in this order and each by name, the `*.conf` of
//! registries.conf.d below /etc/containers and ~/.config/containers. With `$CONTAINERS_REGISTRIES_CONF`
//! set only that file counts, and `$CONTAINERS_REGISTRIES_CONF_DIR` in place of the directories.
//!
//! A name without a registry is Docker's (`docker.io`) unless an alias or
//! `unqualified-search-registries` says otherwise.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::error::{RegistryError, Result};
use crate::image::Reference;

/// Bytes of one file of settings.
const MAX_FILE_BYTES: u64 = 4 << 20;
/// Registries that a short name is looked for in.
const MAX_SEARCHED: usize = 16;

/// All files together.
#[derive(Clone, Debug, Default)]
pub(super) struct Settings {
    registries: Vec<(Registry, PathBuf)>,
    searched: Vec<String>,
    aliases: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct FileSettings {
    #[serde(default)]
    registry: Vec<Registry>,
    unqualified_search_registries: Option<Vec<String>>,
    #[serde(default)]
    aliases: BTreeMap<String, String>,
    /// The first version's tables, of which none is known any more.
    registries: Option<toml::Value>,
}

/// One `[[registry]]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Registry {
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    mirror_by_digest_only: bool,
    #[serde(default)]
    mirror: Vec<Mirror>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Mirror {
    #[serde(default)]
    location: String,
    #[serde(default)]
    insecure: bool,
    pull_from_mirror: Option<String>,
}

/// Where a repository may be fetched from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Host, with its port where it has one.
    pub(super) host: String,
    /// The repository there.
    pub(super) repository: String,
    pub(super) is_mirror: bool,
}

impl Settings {
    /// Reads the machine's and the user's files.
    pub(super) fn load() -> Result<Self> {
        let mut settings = Self::default();
        let user = config_home().map(|home| home.join("containers"));
        let system = Path::new("/etc/containers");
        if let Some(path) = variable("CONTAINERS_REGISTRIES_CONF") {
            settings.add_file(Path::new(&path))?;
            if let Some(directory) = variable("CONTAINERS_REGISTRIES_CONF_DIR") {
                settings.add_directory(Path::new(&directory))?;
            }
            return Ok(settings);
        }
        let own = user.as_ref().map(|user| user.join("registries.conf")).filter(|path| path.exists());
        let main = own.unwrap_or_else(|| system.join("registries.conf"));
        if main.exists() {
            settings.add_file(&main)?;
        }
        for directory in [Some(system.to_owned()), user].into_iter().flatten() {
            settings.add_directory(&directory.join("registries.conf.d"))?;
        }
        Ok(settings)
    }

    fn add_directory(&mut self, directory: &Path) -> Result<()> {
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => {
                return Err(RegistryError::File { action: "read", path: directory.to_owned(), source });
            }
        };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "conf"));
        paths.sort();
        paths.iter().try_for_each(|path| self.add_file(path))
    }

    fn add_file(&mut self, path: &Path) -> Result<()> {
        let bytes = read_limited(path, MAX_FILE_BYTES)?;
        self.add(path, &String::from_utf8_lossy(&bytes))
    }

    /// Adds a file's text. What it says of a prefix, and its search list, replace what was said before.
    pub(super) fn add(&mut self, path: &Path, text: &str) -> Result<()> {
        let wrong = |reason: String| RegistryError::Settings { path: path.to_owned(), reason };
        let file: FileSettings = toml::from_str(text).map_err(|error| wrong(error.to_string()))?;
        if file.registries.is_some() {
            return Err(wrong(
                "it is in the old format ([registries.search]); see containers-registries.conf(5)".into(),
            ));
        }
        for mut registry in file.registry {
            registry.prefix = location(&registry.prefix).map_err(wrong)?;
            registry.location = location(&registry.location).map_err(wrong)?;
            if registry.prefix.is_empty() {
                registry.prefix.clone_from(&registry.location);
            }
            if registry.prefix.is_empty() {
                return Err(wrong("a [[registry]] has neither prefix nor location".to_owned()));
            }
            if registry.location.is_empty() && !registry.prefix.starts_with("*.") {
                registry.location.clone_from(&registry.prefix);
            }
            for mirror in &mut registry.mirror {
                mirror.location = location(&mirror.location).map_err(wrong)?;
                if mirror.location.is_empty() {
                    return Err(wrong(format!("a mirror of {} has no location", registry.prefix)));
                }
                let known = ["all", "digest-only", "tag-only"];
                if let Some(value) = mirror.pull_from_mirror.as_deref().filter(|value| !known.contains(value))
                {
                    return Err(wrong(format!(
                        "pull-from-mirror = {value:?} is none of {}",
                        known.join(", ")
                    )));
                }
            }
            self.registries.retain(|(known, _)| known.prefix != registry.prefix);
            self.registries.push((registry, path.to_owned()));
        }
        if let Some(mut searched) = file.unqualified_search_registries {
            searched.truncate(MAX_SEARCHED);
            self.searched =
                searched.iter().map(|one| location(one)).collect::<Result<_, _>>().map_err(wrong)?;
            self.searched.retain(|one| !one.is_empty());
        }
        for (name, target) in file.aliases {
            // An empty one takes an alias of an earlier file away.
            if target.is_empty() {
                self.aliases.remove(&name)
            } else {
                self.aliases.insert(name, target)
            };
        }
        Ok(())
    }

    /// The whole names that a typed one may stand for, in the order in which they are tried.
    pub(super) fn candidates(&self, text: &str) -> Result<Vec<Reference>, crate::image::ImageError> {
        let plain: Reference = text.parse()?;
        if has_registry(text) {
            return Ok(vec![plain]);
        }
        let end = text.find(['@']).unwrap_or(text.len());
        let end = text[..end].rfind(':').unwrap_or(end);
        let (name, suffix) = text.split_at(end);
        if let Some(target) = self.aliases.get(name) {
            return Ok(vec![format!("{target}{suffix}").parse()?]);
        }
        if self.searched.is_empty() {
            return Ok(vec![plain]);
        }
        self.searched.iter().map(|registry| Ok(format!("{registry}/{text}").parse()?)).collect()
    }

    /// Where an image may be pulled from: its mirrors, then its own place.
    pub(super) fn pull_places(&self, reference: &Reference) -> Result<Vec<Place>> {
        let name = reference.repository();
        let Some((registry, path)) = self.registry_of(&name) else {
            return Ok(vec![place(&name, false)]);
        };
        if registry.blocked {
            return Err(RegistryError::Blocked { registry: registry.prefix.clone(), path: path.clone() });
        }
        let by_digest = reference.digest().is_some();
        let counts = |mirror: &&Mirror| match mirror.pull_from_mirror.as_deref() {
            Some("digest-only") => by_digest,
            Some("tag-only") => !by_digest,
            Some(_) => true,
            None => by_digest || !registry.mirror_by_digest_only,
        };
        let mirrors = registry.mirror.iter().filter(counts);
        let mut places = Vec::new();
        for mirror in mirrors {
            places.push(place_at(registry, path, &name, &mirror.location, true)?);
        }
        places.push(place_at(registry, path, &name, &registry.location, false)?);
        Ok(places)
    }

    /// Where an image is pushed to: its own place.
    pub(super) fn push_place(&self, reference: &Reference) -> Result<Place> {
        let name = reference.repository();
        let Some((registry, path)) = self.registry_of(&name) else { return Ok(place(&name, false)) };
        if registry.blocked {
            return Err(RegistryError::Blocked { registry: registry.prefix.clone(), path: path.clone() });
        }
        place_at(registry, path, &name, &registry.location, false)
    }

    /// Whether a host may be spoken to over plain HTTP, or with a certificate that nobody has signed.
    pub(super) fn is_insecure(&self, host: &str) -> bool {
        let of_host = |location: &str| location.split('/').next().is_some_and(|found| found == host);
        self.registries.iter().any(|(registry, _)| {
            let own = registry.insecure
                && (of_host(&registry.location)
                    || registry.location.is_empty() && covers(&registry.prefix, host));
            own || registry.mirror.iter().any(|mirror| mirror.insecure && of_host(&mirror.location))
        })
    }

    /// The entry with the longest prefix of a repository's name.
    fn registry_of(&self, name: &str) -> Option<&(Registry, PathBuf)> {
        let fitting = self.registries.iter().filter(|(registry, _)| covers(&registry.prefix, name));
        fitting.max_by_key(|(registry, _)| registry.prefix.len())
    }
}

/// A prefix or location as it counts: without slashes at its end. It has no scheme and begins with a host
/// (containers/image, sysregistriesv2, parseLocation).
fn location(text: &str) -> Result<String, String> {
    let text = text.trim_end_matches('/');
    if text.contains("://") {
        return Err(format!("{text:?} has a scheme: a location is HOST[:PORT][/PATH]"));
    }
    if text.rsplit("*.").next().is_some_and(|rest| rest.contains('*'))
        || text.rfind("*.").is_some_and(|at| at > 0)
    {
        return Err(format!("{text:?} has a * that is not the beginning of *.DOMAIN"));
    }
    if text.starts_with('/')
        || text.contains("//")
        || text.chars().any(|c| c.is_whitespace() || c.is_control())
    {
        return Err(format!("{text:?} is no location: it is HOST[:PORT][/PATH]"));
    }
    Ok(text.to_owned())
}

/// Whether a prefix is a registry, a namespace or a repository that has this name in it; `*.example`
/// is every registry below a domain.
fn covers(prefix: &str, name: &str) -> bool {
    if let Some(domain) = prefix.strip_prefix('*') {
        let host = name.split('/').next().unwrap_or_default();
        return host
            .split(':')
            .next()
            .is_some_and(|host| host.len() > domain.len() && host.ends_with(domain));
    }
    name.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', ':', '@']))
}

/// Where a name is found whose registry is at a location.
fn place_at(registry: &Registry, path: &Path, name: &str, location: &str, is_mirror: bool) -> Result<Place> {
    let found = place(&rewritten(registry, name, location), is_mirror);
    if found.host.is_empty() || found.repository.is_empty() {
        let reason = format!("the location {location:?} leaves no repository of {name}: it needs a path");
        return Err(RegistryError::Settings { path: path.to_owned(), reason });
    }
    Ok(found)
}

/// A name with its prefix replaced by a location.
fn rewritten(registry: &Registry, name: &str, location: &str) -> String {
    if registry.prefix.starts_with("*.") {
        let path = name.split_once('/').map_or("", |(_, path)| path);
        return if location.is_empty() { name.to_owned() } else { format!("{location}/{path}") };
    }
    format!("{location}{}", name.strip_prefix(&registry.prefix).unwrap_or_default())
}

/// Docker's registry is reached under another name than the one that images have.
fn place(name: &str, is_mirror: bool) -> Place {
    let (host, repository) = name.split_once('/').unwrap_or((name, ""));
    let host = if matches!(host, "docker.io" | "index.docker.io") { "registry-1.docker.io" } else { host };
    Place { host: host.to_owned(), repository: repository.to_owned(), is_mirror }
}

/// Whether a typed name begins with a registry (distribution's reference.go, splitDockerDomain).
fn has_registry(text: &str) -> bool {
    text.split_once('/').is_some_and(|(first, _)| {
        first == "localhost" || first.contains(['.', ':']) || first.chars().any(char::is_uppercase)
    })
}

/// The user's directory of settings: `$XDG_CONFIG_HOME`, else ~/.config.
pub(super) fn config_home() -> Option<PathBuf> {
    variable("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| home().map(|home| home.join(".config")))
}

/// The user's home, if it has one.
pub(super) fn home() -> Option<PathBuf> {
    variable("HOME").map(PathBuf::from).filter(|path| path.is_absolute())
}

/// A variable of the environment that is set and not empty.
pub(super) fn variable(name: &str) -> Option<std::ffi::OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// Reads a whole file of at most `limit` bytes.
pub(super) fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let failed = |source| RegistryError::File { action: "read", path: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(limit + 1).read_to_end(&mut bytes)).map_err(failed)?;
    if bytes.len() as u64 > limit {
        let reason = format!("it has more than {limit} bytes");
        return Err(RegistryError::Settings { path: path.to_owned(), reason });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use proptest::prelude::*;

    use super::*;

    fn settings(text: &str) -> Settings {
        let mut settings = Settings::default();
        settings.add(Path::new("r.conf"), text).unwrap();
        settings
    }

    fn places(settings: &Settings, name: &str) -> Vec<String> {
        let places = settings.pull_places(&name.parse().unwrap()).unwrap();
        places.iter().map(|place| format!("{}/{}", place.host, place.repository)).collect()
    }

    #[test]
    fn without_settings_a_name_is_dockers() {
        let none = Settings::default();
        assert_eq!(places(&none, "debian"), ["registry-1.docker.io/library/debian"]);
        assert_eq!(places(&none, "reg.example:5000/a/b"), ["reg.example:5000/a/b"]);
        assert_eq!(none.candidates("debian:12").unwrap(), ["docker.io/library/debian:12".parse().unwrap()]);
        assert!(!none.is_insecure("reg.example"));
    }

    #[test]
    fn the_longest_prefix_decides_and_mirrors_come_first() {
        let settings = settings(
            r#"
            [[registry]]
            prefix = "docker.io"
            location = "cache.example/hub"
            [[registry]]
            prefix = "docker.io/library"
            location = "registry-1.example/lib"
            [[registry.mirror]]
            location = "m1.example:5000/x"
            insecure = true
            [[registry.mirror]]
            location = "m2.example"
            pull-from-mirror = "digest-only"
            [[registry.mirror]]
            location = "m3.example"
            pull-from-mirror = "tag-only"
            "#,
        );
        assert_eq!(places(&settings, "a/b"), ["cache.example/hub/a/b"]);
        let by_tag = ["m1.example:5000/x/debian", "m3.example/debian", "registry-1.example/lib/debian"];
        assert_eq!(places(&settings, "debian"), by_tag);
        let by_digest = format!("debian@sha256:{}", "a".repeat(64));
        assert_eq!(places(&settings, &by_digest)[1], "m2.example/debian");
        assert!(settings.is_insecure("m1.example:5000"));
        assert!(!settings.is_insecure("m1.example"));
    }

    #[test]
    fn wildcards_blocks_and_mirrors_by_digest() {
        let settings = settings(
            "[[registry]]\nprefix = '*.example'\ninsecure = true\n\
             [[registry]]\nlocation = 'bad.example/evil'\nblocked = true\n\
             [[registry]]\nlocation = 'q.io'\nmirror-by-digest-only = true\n[[registry.mirror]]\nlocation = 'm.io'\n",
        );
        assert_eq!(places(&settings, "a.example/x"), ["a.example/x"]);
        assert!(settings.is_insecure("a.example:5000"));
        assert!(!settings.is_insecure("example"));
        let blocked = settings.pull_places(&"bad.example/evil/x".parse().unwrap());
        assert!(matches!(blocked, Err(RegistryError::Blocked { .. })), "{blocked:?}");
        assert_eq!(places(&settings, "bad.example/evilish"), ["bad.example/evilish"]);
        assert_eq!(places(&settings, "q.io/x"), ["q.io/x"]);
    }

    #[test]
    fn short_names_follow_aliases_and_the_search_list() {
        let mut settings = settings(
            "unqualified-search-registries = ['a.example', 'docker.io']\n[aliases]\nfedora = 'f.example/fedora'\ngone = 'x.example/y'\n",
        );
        settings.add(Path::new("later.conf"), "[aliases]\ngone = ''\n").unwrap();
        let names = |text: &str| -> Vec<String> {
            settings.candidates(text).unwrap().iter().map(ToString::to_string).collect()
        };
        assert_eq!(names("fedora:40"), ["f.example/fedora:40"]);
        assert_eq!(names("x/y"), ["a.example/x/y", "docker.io/x/y"]);
        assert_eq!(names("gone"), ["a.example/gone", "docker.io/library/gone"]);
        assert_eq!(names("b.example/z"), ["b.example/z"]);
        let digest = format!("sha256:{}", "a".repeat(64));
        assert_eq!(names(&format!("fedora@{digest}")), [format!("f.example/fedora@{digest}")]);
    }

    #[test]
    fn wrong_files_are_named() {
        for (text, wanted) in [
            ("x = ", "r.conf"),
            ("[registries.search]\nregistries = []", "old format"),
            ("[[registry]]\ninsecure = true", "neither prefix nor location"),
            ("[[registry]]\nlocation = '//'", "neither prefix nor location"),
            ("[[registry]]\nlocation = 'https://a'", "has a scheme"),
            ("[[registry]]\nlocation = '/a'", "is no location"),
            ("[[registry]]\nprefix = '*'", "not the beginning of *.DOMAIN"),
            ("[[registry]]\nprefix = 'a*.b'", "not the beginning of *.DOMAIN"),
            ("unqualified-search-registries = ['a b']", "is no location"),
            ("[[registry]]\nlocation='a'\n[[registry.mirror]]\n", "no location"),
            (
                "[[registry]]\nlocation='a'\n[[registry.mirror]]\nlocation='b'\npull-from-mirror='x'",
                "none of",
            ),
        ] {
            let error = Settings::default().add(Path::new("r.conf"), text).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_reader(text in "[\\[\\]a-z=\"'\\-\\.\n*: ]{0,200}", name in "[a-zA-Z0-9./:@-]{0,60}") {
            let mut settings = Settings::default();
            let _ = settings.add(Path::new("r.conf"), &text);
            if let Ok(names) = settings.candidates(&name) {
                names.iter().for_each(|name| drop(settings.pull_places(name)));
            }
        }
    }
}
