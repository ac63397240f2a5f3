//! config.toml and the environment: where things are, decided before any verb.
//!
//! Read in this order, each over the one before, key by key: the defaults, `/etc/hostel/config.toml`,
//! `$XDG_CONFIG_HOME/hostel/config.toml` (else `~/.config/hostel/config.toml`), `$HOSTEL_*`, the
//! command line's flags. A file that is not there is no error; one that cannot be understood is, as
//! going on without it might write to the wrong place. A key that is not known is a warning, so that
//! one file serves an older hostel as well.
//!
//! ```toml
//! root = "/home/me/.local/share/hostel"   # HOSTEL_ROOT, --root
//! additional_image_stores = []            # HOSTEL_ADDITIONAL_IMAGE_STORES, separated by colons
//! local_dir = "/var/tmp/hostel-1000"      # HOSTEL_LOCAL_DIR
//! keep_compressed = true                  # HOSTEL_KEEP_COMPRESSED
//! wait_for_disk = false                   # HOSTEL_WAIT_FOR_DISK
//! ```

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::CliError;
use super::switches::parse_bool;
use crate::store::Settings;

const SYSTEM: &str = "/etc/hostel/config.toml";
/// Below the directory of a user's configuration.
const OF_USER: &str = "hostel/config.toml";

/// One file's keys.
#[derive(Debug, Default, Deserialize)]
struct Document {
    root: Option<PathBuf>,
    additional_image_stores: Option<Vec<PathBuf>>,
    local_dir: Option<PathBuf>,
    keep_compressed: Option<bool>,
    wait_for_disk: Option<bool>,
    #[serde(flatten)]
    unknown: BTreeMap<String, toml::Value>,
}

/// What was decided.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Config {
    /// The store's directory.
    pub(crate) root: PathBuf,
    /// What else holds for stores.
    pub(crate) settings: Settings,
    /// What a person should know, a line each.
    pub(crate) warnings: Vec<String>,
}

/// Reads files and environment. `flag` is `--root`.
///
/// # Errors
/// A file cannot be read or understood, a value is of the wrong kind, there is no place for the store.
pub(crate) fn load(flag: Option<PathBuf>) -> Result<Config, CliError> {
    let variable = |name: &str| std::env::var_os(name);
    decide(flag, variable, &[Path::new(SYSTEM)])
}

fn decide(
    flag: Option<PathBuf>,
    variable: impl Fn(&str) -> Option<OsString>,
    system: &[&Path],
) -> Result<Config, CliError> {
    let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
    // As the specification asks (XDG Base Directory): a relative path is no path.
    let base = |name: &str, in_home: &str| {
        let set = variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let home = || variable("HOME").map(PathBuf::from).filter(|path| path.is_absolute());
        set.or_else(|| Some(home()?.join(in_home)))
    };
    let mut warnings = Vec::new();
    let mut merged = Document::default();
    let of_user = base("XDG_CONFIG_HOME", ".config").map(|dir| dir.join(OF_USER));
    for path in system.iter().map(|path| path.to_path_buf()).chain(of_user) {
        let Some(text) = read(&path)? else { continue };
        let document = parse(&path, &text)?;
        for key in document.unknown.keys() {
            warnings.push(format!("{}: unknown key {key:?} (known: {})", path.display(), KEYS.join(", ")));
        }
        merged.root = document.root.or(merged.root);
        merged.additional_image_stores = document.additional_image_stores.or(merged.additional_image_stores);
        merged.local_dir = document.local_dir.or(merged.local_dir);
        merged.keep_compressed = document.keep_compressed.or(merged.keep_compressed);
        merged.wait_for_disk = document.wait_for_disk.or(merged.wait_for_disk);
    }
    let root = flag
        .or_else(|| variable("HOSTEL_ROOT").map(PathBuf::from))
        .or(merged.root)
        .or_else(|| Some(base("XDG_DATA_HOME", ".local/share")?.join("hostel")))
        .ok_or_else(|| {
            CliError::new("there is no place for images and containers: HOME is not set")
                .with_hint("set HOME, or name a directory with --root")
        })?;
    let additional = match variable("HOSTEL_ADDITIONAL_IMAGE_STORES") {
        Some(list) => std::env::split_paths(&list).filter(|path| !path.as_os_str().is_empty()).collect(),
        None => merged.additional_image_stores.unwrap_or_default(),
    };
    for path in &additional {
        absolute("additional_image_stores", path)?;
    }
    let local = variable("HOSTEL_LOCAL_DIR").map(PathBuf::from).or(merged.local_dir);
    if let Some(path) = &local {
        absolute("local_dir", path)?;
    }
    let switch = |name: &str, configured: Option<bool>, default: bool| match variable(name) {
        Some(text) => text
            .to_str()
            .and_then(parse_bool)
            .ok_or_else(|| CliError::new(format!("{name} is {text:?}, which is neither true nor false"))),
        None => Ok(configured.unwrap_or(default)),
    };
    let keep_compressed = switch("HOSTEL_KEEP_COMPRESSED", merged.keep_compressed, true)?;
    let wait_for_disk = switch("HOSTEL_WAIT_FOR_DISK", merged.wait_for_disk, false)?;
    let settings = Settings { additional, local, keep_compressed, wait_for_disk };
    Ok(Config { root: std::path::absolute(root)?, settings, warnings })
}

/// Understands a file's text, for `crate::fuzzing`.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(path: &Path, text: &str) {
    if let Ok(document) = parse(path, text) {
        assert!(document.root.is_none_or(|root| root.is_absolute()));
    }
}

const KEYS: [&str; 5] = ["root", "additional_image_stores", "local_dir", "keep_compressed", "wait_for_disk"];

fn read(path: &Path) -> Result<Option<String>, CliError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => {
            Err(CliError::new(format!("cannot read the configuration {}: {error}", path.display())))
        }
    }
}

fn parse(path: &Path, text: &str) -> Result<Document, CliError> {
    let document: Document = toml::from_str(text).map_err(|error| {
        // The first line says where, the last what; between them is a picture.
        let text = error.to_string();
        let text: Vec<&str> = text.trim_end().lines().collect();
        let (place, reason) = (text.first().unwrap_or(&""), text.last().unwrap_or(&""));
        CliError::new(format!("the configuration {} is not valid: {place}: {reason}", path.display()))
    })?;
    let root = document.root.iter().map(|path| ("root", path));
    for (key, value) in root.chain(document.local_dir.iter().map(|path| ("local_dir", path))) {
        absolute(key, value)?;
    }
    Ok(document)
}

fn absolute(key: &str, path: &Path) -> Result<(), CliError> {
    if path.is_absolute() {
        return Ok(());
    }
    Err(CliError::new(format!("{key} is {:?}, which is not an absolute path", path.display().to_string())))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    /// Decides with these files' texts, environment and `--root`.
    fn with(system: &str, user: &str, env: &[(&str, &str)], flag: Option<&str>) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let (etc, home) = (dir.path().join("etc.toml"), dir.path().join("home"));
        fs::create_dir_all(home.join("hostel")).unwrap();
        for (path, text) in [(&etc, system), (&home.join(OF_USER), user)] {
            if !text.is_empty() {
                fs::write(path, text).unwrap();
            }
        }
        let variable = |name: &str| {
            if name == "XDG_CONFIG_HOME" {
                return Some(home.clone().into_os_string());
            }
            env.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
        };
        decide(flag.map(PathBuf::from), variable, &[&etc]).map_err(|error| error.message().to_owned())
    }

    #[test]
    fn each_source_goes_over_the_one_before() {
        let home = [("HOME", "/h")];
        let data = [("HOME", "/h"), ("XDG_DATA_HOME", "/d")];
        let env = [("HOME", "/h"), ("XDG_DATA_HOME", "/d"), ("HOSTEL_ROOT", "/e")];
        let relative = [("HOME", "/h"), ("XDG_DATA_HOME", "d"), ("HOSTEL_ROOT", "")];
        type Case<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], Option<&'a str>, &'a str);
        let table: [Case<'_>; 7] = [
            ("", "", &home, None, "/h/.local/share/hostel"),
            ("", "", &relative, None, "/h/.local/share/hostel"),
            ("", "", &data, None, "/d/hostel"),
            ("root = '/s'", "", &data, None, "/s"),
            ("root = '/s'", "root = '/u'", &data, None, "/u"),
            ("root = '/s'", "root = '/u'", &env, None, "/e"),
            ("root = '/s'", "root = '/u'", &env, Some("/f"), "/f"),
        ];
        for (system, user, env, flag, root) in table {
            assert_eq!(with(system, user, env, flag).unwrap().root, Path::new(root));
        }
        assert!(with("", "", &[], None).unwrap_err().contains("HOME is not set"));
    }

    #[test]
    fn keys_are_merged_one_by_one() {
        let system = "additional_image_stores = ['/a', '/b']\nlocal_dir = '/l'";
        let env = [("HOME", "/h")];
        let config = with(system, "keep_compressed = false", &env, None).unwrap();
        let additional = vec![PathBuf::from("/a"), PathBuf::from("/b")];
        let local = Some(PathBuf::from("/l"));
        assert_eq!(
            config.settings,
            Settings { additional, local, keep_compressed: false, wait_for_disk: false }
        );
        let env = [
            ("HOME", "/h"),
            ("HOSTEL_ADDITIONAL_IMAGE_STORES", "/x::/y"),
            ("HOSTEL_LOCAL_DIR", "/m"),
            ("HOSTEL_KEEP_COMPRESSED", "1"),
            ("HOSTEL_WAIT_FOR_DISK", "true"),
        ];
        let config = with(system, "keep_compressed = false", &env, None).unwrap();
        let additional = vec![PathBuf::from("/x"), PathBuf::from("/y")];
        let local = Some(PathBuf::from("/m"));
        assert_eq!(
            config.settings,
            Settings { additional, local, keep_compressed: true, wait_for_disk: true }
        );
        assert_eq!(with("", "", &env[..1], None).unwrap().settings, Settings::default());
    }

    #[test]
    fn unknown_keys_are_told_and_wrong_values_refused() {
        let env = [("HOME", "/h"), ("HOSTEL_KEEP_COMPRESSED", "maybe")];
        assert!(with("", "", &env, None).unwrap_err().contains("neither true nor false"));
        let env = [("HOME", "/h")];
        let warnings = with("", "rot = '/x'\n[table]\na = 1", &env, None).unwrap().warnings;
        assert_eq!(warnings.len(), 2);
        assert!(warnings[0].contains("unknown key \"rot\" (known: root, "), "{warnings:?}");
        let table = [
            ("root = ", "is not valid"),
            ("root = 1", "is not valid"),
            ("keep_compressed = 'yes'", "is not valid"),
            ("root = 'relative'", "not an absolute path"),
            ("additional_image_stores = '/x'", "is not valid"),
            ("additional_image_stores = ['x']", "not an absolute path"),
        ];
        for (text, wanted) in table {
            let error = with("", text, &env, None).unwrap_err();
            assert!(error.contains(wanted), "{text}: {error}");
        }
    }
}
