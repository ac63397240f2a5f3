//! Secrets: small texts that containers get as files or variables, and that `inspect` does not show.
//!
//! ```text
//! secrets/<name>/meta.json   id, times, labels
//!                data        the secret itself, mode 0600
//! ```
//!
//! They are as safe as any file of the user's with mode 0600: nothing here encrypts. A secret is made in a
//! directory beside, which is then renamed: it is there whole or not at all.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::id::Name;

/// podman's limit.
pub const MAX_SECRET_BYTES: u64 = 512_000;

/// What can go wrong with a secret.
#[derive(Debug, Error)]
pub enum SecretError {
    /// There is none of this name or id.
    #[error("no such secret: {0}")]
    NotFound(String),
    /// The name is taken.
    #[error("secret name in use: {0}")]
    InUse(Name),
    /// It is empty or too long.
    #[error("secret data must be larger than 0 and less than {MAX_SECRET_BYTES} bytes")]
    Size,
    /// A file cannot be read or written.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{path} is damaged; remove the secret and make it again")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong in it.
        source: serde_json::Error,
    },
}

type Result<T> = std::result::Result<T, SecretError>;

/// What is known of a secret besides itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretMeta {
    /// 25 hex digits, as podman's.
    pub id: String,
    /// Its name.
    pub name: Name,
    /// When it was made.
    pub created: Timestamp,
    /// When it was last replaced.
    pub updated: Timestamp,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// The secrets of one store.
#[derive(Clone, Debug)]
pub struct Secrets {
    dir: PathBuf,
}

impl Secrets {
    /// Those of the store at `root`. Touches nothing.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self { dir: root.join("secrets") }
    }

    /// Makes a secret; with `replace` one of the same name goes.
    ///
    /// # Errors
    /// [`SecretError::InUse`], [`SecretError::Size`], and whatever the filesystem refuses.
    pub fn create(&self, meta: &SecretMeta, data: &[u8], replace: bool) -> Result<()> {
        if data.is_empty() || data.len() as u64 >= MAX_SECRET_BYTES {
            return Err(SecretError::Size);
        }
        let path = self.dir.join(meta.name.as_str());
        let staging = self.dir.join(format!(".new-{}", meta.id));
        let make = |dir: &Path| {
            let made = fs::DirBuilder::new().mode(0o700).recursive(true).create(dir);
            made.map_err(io_error("make", dir))
        };
        make(&self.dir)?;
        make(&staging)?;
        let text = serde_json::to_vec(meta)
            .map_err(|source| SecretError::Damaged { path: staging.join("meta.json"), source })?;
        write(&staging.join("meta.json"), &text)?;
        write(&staging.join("data"), data)?;
        if replace && path.exists() {
            self.remove(meta.name.as_str())?;
        }
        // Onto a directory with something in it nothing can be renamed.
        fs::rename(&staging, &path).map_err(|source| {
            let _ = fs::remove_dir_all(&staging); // ours; what stays is in nobody's way
            match source.raw_os_error() {
                Some(libc::ENOTEMPTY | libc::EEXIST) => SecretError::InUse(meta.name.clone()),
                _ => SecretError::Io { action: "make", path, source },
            }
        })
    }

    /// All of them, by name.
    ///
    /// # Errors
    /// One that is damaged.
    pub fn list(&self) -> Result<Vec<SecretMeta>> {
        let mut names: Vec<_> = fs::read_dir(&self.dir)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| !name.starts_with('.'))
            .collect();
        names.sort();
        names.iter().map(|name| self.meta(name)).collect()
    }

    fn meta(&self, name: &str) -> Result<SecretMeta> {
        let path = self.dir.join(name).join("meta.json");
        let text = fs::read(&path).map_err(io_error("read", &path))?;
        serde_json::from_slice(&text).map_err(|source| SecretError::Damaged { path, source })
    }

    /// By name, id, or the beginning of an id.
    ///
    /// # Errors
    /// [`SecretError::NotFound`], also when several ids begin so.
    pub fn find(&self, reference: &str) -> Result<SecretMeta> {
        let all = self.list()?;
        if let Some(found) = all.iter().find(|meta| meta.name.as_str() == reference || meta.id == reference) {
            return Ok(found.clone());
        }
        let mut fits = all.into_iter().filter(|meta| !reference.is_empty() && meta.id.starts_with(reference));
        match (fits.next(), fits.next()) {
            (Some(found), None) => Ok(found),
            _ => Err(SecretError::NotFound(reference.to_owned())),
        }
    }

    /// The secret itself.
    ///
    /// # Errors
    /// As reading a file.
    pub fn data(&self, meta: &SecretMeta) -> Result<Vec<u8>> {
        let path = self.dir.join(meta.name.as_str()).join("data");
        let mut data = Vec::new();
        fs::File::open(&path)
            .and_then(|file| file.take(MAX_SECRET_BYTES).read_to_end(&mut data))
            .map_err(io_error("read", &path))?;
        Ok(data)
    }

    /// Removes a secret by name. Containers that were created with it keep their copy.
    ///
    /// # Errors
    /// As removing files.
    pub fn remove(&self, name: &str) -> Result<()> {
        let path = self.dir.join(name);
        let grave = self.dir.join(format!(".rm-{name}"));
        let _ = fs::remove_dir_all(&grave); // of a removal that was killed
        fs::rename(&path, &grave).map_err(io_error("remove", &path))?;
        fs::remove_dir_all(&grave).map_err(io_error("remove", &grave))
    }
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SecretError {
    let path = path.to_owned();
    move |source| SecretError::Io { action, path, source }
}

fn write(path: &Path, data: &[u8]) -> Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    options
        .open(path)
        .and_then(|mut file| {
            file.write_all(data)?;
            file.sync_all()
        })
        .map_err(io_error("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_come_and_go() {
        let dir = tempfile::tempdir().expect("tempdir");
        let secrets = Secrets::new(dir.path());
        assert_eq!(secrets.list().expect("list"), []);
        let meta = |name: &str, id: &str| SecretMeta {
            id: id.into(),
            name: name.parse().expect("a name"),
            created: Timestamp::UNIX_EPOCH,
            updated: Timestamp::UNIX_EPOCH,
            labels: BTreeMap::new(),
        };
        secrets.create(&meta("one", "a1b2"), b"first", false).expect("make");
        secrets.create(&meta("two", "a1c3"), b"second", false).expect("make");
        assert!(matches!(secrets.create(&meta("one", "ffff"), b"x", false), Err(SecretError::InUse(_))));
        assert!(matches!(secrets.create(&meta("three", "ffff"), b"", false), Err(SecretError::Size)));
        secrets.create(&meta("one", "d4d4"), b"newer", true).expect("replace");
        assert_eq!(secrets.data(&secrets.find("d4").expect("by id")).expect("data"), b"newer");
        assert!(matches!(secrets.find("a1b"), Err(SecretError::NotFound(_))));
        assert_eq!(secrets.find("two").expect("by name").id, "a1c3");
        secrets.remove("two").expect("remove");
        assert_eq!(secrets.list().expect("list").len(), 1);
        let left: Vec<_> = fs::read_dir(dir.path().join("secrets")).expect("dir").flatten().collect();
        assert_eq!(left.len(), 1);
    }
}
