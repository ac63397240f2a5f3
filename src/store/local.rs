//! Locks and writable layers when the store is on a filesystem that is no place for them.
//!
//! A home on NFS is shared by several machines, its locks may fail, its server maps root and
//! subordinate ids away, and the kernel takes no overlay there. So the part of a container that is a
//! machine's own lies on a local filesystem:
//!
//! ```text
//! LOCAL/<hash of the store's root>/<container id>/   lock, upper/, work/
//!                                  lock, images.lock, volumes.lock    where the store's flock fails
//! containers/<id>/local, lock      symbolic links to them
//! ```
//!
//! LOCAL is `local_dir` of config.toml; else, where the store's filesystem is a network's,
//! `/var/tmp/hostel-UID`, `/tmp/hostel-UID` or `$XDG_RUNTIME_DIR/hostel-local`: the first that is
//! local and the user's own with mode 0700 (in /tmp anybody could have made it). `/var/tmp` comes
//! first, because a runtime directory goes at logout and is held in memory.
//!
//! A link that leads nowhere means another machine's container, or a local directory that was wiped:
//! the record's machine id tells which.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use nix::sys::statfs::statfs;
use sha2::{Digest as _, Sha256};

use super::Settings;
use crate::id::Digest;

/// Filesystems of a network, or of unknown abilities (statfs(2)).
const REMOTE: [(i64, &str); 13] = [
    (0x6969, "NFS"),
    (0x517b, "SMB"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB2"),
    (0x0bd0_0bd0, "Lustre"),
    (0x4750_4653, "GPFS"),
    (0x00c3_6400, "Ceph"),
    (0x5346_414f, "AFS"),
    (0x1983_0326, "BeeGFS"),
    (0x0102_1997, "9p"),
    (0x6573_5546, "FUSE"),
    (0x2003_0528, "OrangeFS"),
    (0x013d_1ff2, "Quobyte"),
];
/// Digits of the hash that tells stores apart.
const HASH_LEN: usize = 16;

/// What kind of network filesystem a path is on; `None` on a local one, or one that cannot be asked.
#[must_use]
pub fn remote_kind(path: &Path) -> Option<&'static str> {
    // The number's width and sign differ between machines; only its 32 bits mean something.
    let magic = i64::from(statfs(path).ok()?.filesystem_type().0 as u32);
    REMOTE.iter().find(|(known, _)| *known == magic).map(|(_, name)| *name)
}

/// Where locks and writable layers of the store at `root` go; `None` where the store itself will do.
///
/// # Errors
/// The store will not do, and no directory will.
pub fn directory(root: &Path) -> io::Result<Option<PathBuf>> {
    if Settings::current().local.is_none() && remote_kind(root).is_none() {
        return Ok(None);
    }
    instead(root).map(Some)
}

/// The local directory of a store, made if it is not there.
///
/// # Errors
/// None will do; the reasons are told.
pub fn instead(root: &Path) -> io::Result<PathBuf> {
    let root = fs::canonicalize(root)?;
    let hash = Digest::from_bytes(&Sha256::digest(root.as_os_str().as_bytes()).into());
    let of_store = |base: PathBuf| -> io::Result<PathBuf> {
        let place = base.join(&hash.hex()[..HASH_LEN]);
        private(&place)?;
        Ok(place)
    };
    if let Some(base) = &Settings::current().local {
        private(base)?;
        return of_store(base.clone());
    }
    let mut reasons = Vec::new();
    for base in candidates() {
        let usable = private(&base).and_then(|()| match remote_kind(&base) {
            Some(kind) => Err(io::Error::other(format!("it is on {kind}"))),
            None => of_store(base.clone()),
        });
        match usable {
            Ok(place) => return Ok(place),
            Err(error) => reasons.push(format!("{}: {error}", base.display())),
        }
    }
    Err(io::Error::other(format!(
        "no local directory will do for locks and writable layers ({}); name one as local_dir in config.toml or with HOSTEL_LOCAL_DIR",
        reasons.join("; ")
    )))
}

fn candidates() -> Vec<PathBuf> {
    let uid = nix::unistd::Uid::effective();
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_absolute());
    let shared = ["/var/tmp", "/tmp"].map(|dir| PathBuf::from(format!("{dir}/hostel-{uid}")));
    shared.into_iter().chain(runtime.map(|dir| dir.join("hostel-local"))).collect()
}

/// Makes a directory of the user's own, or checks that it is one.
fn private(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let metadata = fs::symlink_metadata(path)?;
    let is_ours = metadata.is_dir()
        && metadata.uid() == nix::unistd::Uid::effective().as_raw()
        && metadata.mode() & 0o077 == 0;
    if is_ours {
        return Ok(());
    }
    let reason = "it is not a directory of this user with mode 0700: remove it";
    Err(io::Error::new(io::ErrorKind::PermissionDenied, reason))
}

/// Where a removed container's local files are, if they are not in its own directory.
#[must_use]
pub fn away_of(grave: &Path) -> Option<PathBuf> {
    let target = fs::read_link(grave.join("local")).ok()?;
    let id = grave.file_name()?.to_str()?.strip_prefix(".rm-")?;
    (target.is_absolute() && target.file_name()? == id).then_some(target)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn a_local_filesystem_will_do() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(remote_kind(dir.path()), None);
        assert_eq!(directory(dir.path()).unwrap(), None);
    }

    #[test]
    fn each_store_has_a_place_of_its_own() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let [first, second] = [a.path(), b.path()].map(|root| instead(root).unwrap());
        assert_ne!(first, second);
        assert_eq!(instead(a.path()).unwrap(), first);
        assert_eq!(fs::metadata(&first).unwrap().mode() & 0o777, 0o700);
        for place in [&first, &second] {
            fs::remove_dir(place).unwrap();
        }
        // In use by another test perhaps.
        let _ = fs::remove_dir(first.parent().unwrap());
    }

    #[test]
    fn what_others_made_or_can_enter_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let open = dir.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).unwrap();
        let link = dir.path().join("link");
        symlink(dir.path(), &link).unwrap();
        for path in [&open, &link] {
            assert_eq!(private(path).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        }
    }

    #[test]
    fn only_a_link_to_the_same_container_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let grave = dir.path().join(".rm-abc");
        fs::create_dir(&grave).unwrap();
        assert_eq!(away_of(&grave), None);
        symlink("/home/user/documents", grave.join("local")).unwrap();
        assert_eq!(away_of(&grave), None);
        fs::remove_file(grave.join("local")).unwrap();
        symlink("/var/tmp/hostel-1/x/abc", grave.join("local")).unwrap();
        assert_eq!(away_of(&grave), Some("/var/tmp/hostel-1/x/abc".into()));
    }
}
