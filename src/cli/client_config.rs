//! What Docker's client is told by its `config.json` and hostel takes too: formats of listings, the detach keys,
//! `proxies`. Passwords and credential helpers are `image::registry`'s.
//!
//! The file is `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`, read once where it is first asked for. One
//! that cannot be understood is a warning, as Docker's, and as if it were not there.

use std::collections::HashMap;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde::Deserialize;

/// Bytes of the file that are read: what people write has some hundred.
const MAX_BYTES: u64 = 1 << 20;

/// The keys that mean something here. `HttpHeaders` are for the daemon, `pluginsFormat` is for its plugins: there is
/// neither.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientConfig {
    /// `--detach-keys` where that is not given.
    pub detach_keys: String,
    /// `ps --format`.
    pub ps_format: String,
    /// `images --format`.
    pub images_format: String,
    /// `volume ls --format`.
    pub volumes_format: String,
    /// `network ls --format`.
    pub networks_format: String,
    /// `stats --format`.
    pub stats_format: String,
    /// Variables of containers, by daemon; `default` is taken.
    pub proxies: HashMap<String, Proxies>,
}

/// One daemon's proxies.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Proxies {
    pub http_proxy: String,
    pub https_proxy: String,
    pub ftp_proxy: String,
    pub all_proxy: String,
    pub no_proxy: String,
}

impl ClientConfig {
    /// The user's, with a warning on standard error, once, where it cannot be read.
    #[must_use]
    pub fn of_user() -> &'static Self {
        static CONFIG: OnceLock<ClientConfig> = OnceLock::new();
        CONFIG.get_or_init(|| {
            let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
            let dir = set("DOCKER_CONFIG").or_else(|| Some(set("HOME")?.join(".docker")));
            let Some(path) = dir.map(|dir| dir.join("config.json")) else { return Self::default() };
            Self::read(&path).unwrap_or_else(|warning| {
                eprintln!("WARNING: {}", super::harmless::text(&warning));
                Self::default()
            })
        })
    }

    fn read(path: &Path) -> Result<Self, String> {
        let wrong = |error: &dyn std::fmt::Display| {
            format!("Error parsing config file ({}): {error}", path.display())
        };
        let mut text = String::new();
        match std::fs::File::open(path).and_then(|file| file.take(MAX_BYTES).read_to_string(&mut text)) {
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(Self::default());
            }
            Err(error) => return Err(wrong(&error)),
        }
        // An empty file is none.
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        // Not from the whole type at once, as that would take an array for its fields.
        let object: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(&text).map_err(|error| wrong(&error))?;
        serde_json::from_value(object.into()).map_err(|error| wrong(&error))
    }

    /// What a listing's `--format` is: the flag, else what the file says, but for `-q`.
    #[must_use]
    pub fn format(flag: &str, quiet: bool, of: impl Fn(&'static Self) -> &'static str) -> &str {
        if flag.is_empty() && !quiet { of(Self::of_user()) } else { flag }
    }

    /// The variables that `proxies` asks for, in capitals.
    #[must_use]
    pub fn proxy_variables(&self) -> Vec<(&'static str, &str)> {
        let Some(proxies) = self.proxies.get("default") else { return Vec::new() };
        let all = [
            ("HTTP_PROXY", &proxies.http_proxy),
            ("HTTPS_PROXY", &proxies.https_proxy),
            ("FTP_PROXY", &proxies.ftp_proxy),
            ("ALL_PROXY", &proxies.all_proxy),
            ("NO_PROXY", &proxies.no_proxy),
        ];
        let set = all.into_iter().filter(|(_, value)| !value.is_empty());
        set.map(|(name, value)| (name, value.as_str())).collect()
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn what_is_known_is_read_and_the_rest_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            ClientConfig::read(&path)
        };
        let config = read(
            r#"{"detachKeys": "ctrl-x", "psFormat": "{{.ID}}", "HttpHeaders": {"A": "b"}, "auths": {},
                "proxies": {"default": {"httpProxy": "http://p:1", "noProxy": "x"}}}"#,
        )
        .unwrap();
        assert_eq!((config.detach_keys.as_str(), config.ps_format.as_str()), ("ctrl-x", "{{.ID}}"));
        assert_eq!(config.proxy_variables(), [("HTTP_PROXY", "http://p:1"), ("NO_PROXY", "x")]);
        for nothing in ["", " \n", "{}"] {
            assert_eq!(read(nothing), Ok(ClientConfig::default()), "{nothing:?}");
        }
        for wrong in ["{", "[]", r#"{"psFormat": 3}"#, "x"] {
            let warning = read(wrong).unwrap_err();
            let wanted = format!("Error parsing config file ({}): ", path.display());
            assert!(warning.starts_with(&wanted), "{wrong}: {warning}");
        }
        assert_eq!(ClientConfig::read(&dir.path().join("nosuch")), Ok(ClientConfig::default()));
        assert!(ClientConfig::read(dir.path()).is_err(), "a directory is no file");
    }
}
