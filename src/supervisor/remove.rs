//! Removing what is left of a container: also files that belong to subordinate ids.
//!
//! A hybrid writable layer holds files of the container's own users, in directories that may be
//! closed to everybody. They are removed by a short-lived child in a user namespace with the same
//! maps, with all rights over them.

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::id::{ContainerId, Name};
use crate::sandbox::idmap::IdMaps;
use crate::store::containers::{Containers, Record};
use crate::store::{Store, StoreError};
use crate::sys;
use crate::sys::process::{Ended, Fork};

/// Removes a directory that was unlinked from the store.
///
/// # Errors
/// When something is left; a later command tries again.
pub fn tree(path: &Path, maps: &IdMaps) -> io::Result<()> {
    if let Some(away) = crate::store::local::away_of(path) {
        remove(&away, maps)?;
    }
    remove(path, maps)
}

fn remove(path: &Path, maps: &IdMaps) -> io::Result<()> {
    if remove_own(path).is_err() && path.exists() {
        remove_mapped(path, maps)?;
    }
    Ok(())
}

/// Takes away the name of a control socket that a killed start left. For a container that is gone.
pub fn stale_socket(id: &ContainerId) {
    if let Ok(dir) = super::socket_dir() {
        let _ = fs::remove_file(dir.join(&id.as_str()[..super::SOCKET_ID_LEN])); // mostly there is none
    }
}

/// As [`stale_socket`], for a container's directory that was unlinked from the store.
pub fn socket_of(grave: &Path) {
    let name = grave.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if let Some(Ok(id)) = name.strip_prefix(".rm-").map(str::parse) {
        stale_socket(&id);
    }
}

/// Removes the volumes that were made for the container alone; it is gone itself already.
///
/// # Errors
/// When the store cannot be read.
pub fn anonymous_volumes(root: &Path, record: &Record, maps: &IdMaps) -> Result<(), StoreError> {
    if record.anonymous_volumes.is_empty() {
        return Ok(());
    }
    let store = Store::open(root)?;
    let containers = Containers::new(root);
    for name in &record.anonymous_volumes {
        let Ok(name) = name.parse::<Name>() else { continue };
        // In use by another container, or gone: both leave nothing to do.
        let _ = store.remove_volume(&name, || containers.users_of_volume(&name), |path| tree(path, maps));
    }
    Ok(())
}

/// As the caller: enough unless ids of a range own something.
fn remove_own(path: &Path) -> io::Result<()> {
    match remove_lock_last(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            open_up(path);
            remove_lock_last(path)
        }
        other => other,
    }
}

/// A container's lock, held, says to [`Containers::leftovers`] that somebody is about to remove the rest.
fn remove_lock_last(path: &Path) -> io::Result<()> {
    // A link is removed, never followed.
    if !fs::symlink_metadata(path)?.is_dir() {
        return fs::remove_file(path);
    }
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else if entry.file_name() != "lock" {
            fs::remove_file(entry.path())?;
        }
    }
    fs::remove_dir_all(path)
}

/// Makes the caller's own directories passable: overlayfs leaves one of mode 0 behind, and a
/// container may do the same.
fn open_up(path: &Path) {
    let Ok(meta) = fs::symlink_metadata(path) else { return };
    if !meta.is_dir() {
        return;
    }
    let _ = fs::set_permissions(path, fs::Permissions::from_mode(0o700)); // another owner's: the caller sees
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            open_up(&entry.path());
        }
    }
}

fn remove_mapped(path: &Path, maps: &IdMaps) -> io::Result<()> {
    let failed = |what: &str| io::Error::other(format!("cannot remove {}: {what}", path.display()));
    let (ours, theirs) = sys::fd::seqpacket_pair()?;
    match sys::process::clone(libc::CLONE_NEWUSER as u64, false)? {
        Fork::Child => {
            drop(ours);
            let mut byte = [0_u8; 1];
            // The helpers that write its maps look at the owner of its files in /proc, which is root's for the
            // child of a keeper that hides. This one holds nothing that must be hidden.
            let shown = sys::process::set_dumpable(true).is_ok()
                && sys::fd::send_with_fds(theirs.as_fd(), &byte, &[]).is_ok();
            let ready = shown && nix::unistd::read(&theirs, &mut byte) == Ok(1);
            // As the user still, who owns the directories around, with all rights over the container's ids:
            // its root, where that is another, could not pass a directory of a group outside the maps.
            let done =
                ready && (fs::remove_dir_all(path).is_ok() || path.try_exists().is_ok_and(|exists| !exists));
            sys::process::exit_now(i32::from(!done))
        }
        Fork::Parent(child) => {
            drop(theirs);
            // Without an answer the maps are refused, with better words.
            let _ = nix::unistd::read(&ours, &mut [0]);
            let mapped = maps.begin(child.pid).and_then(crate::sandbox::idmap::Writing::finish);
            if mapped.is_ok() {
                sys::fd::send_with_fds(ours.as_fd(), &[1], &[])?;
            }
            drop(ours);
            let ended = sys::process::wait_for(child.pid)?;
            mapped.map_err(|failure| failed(&failure.to_string()))?;
            if ended == Ended::Exited(0) {
                Ok(())
            } else {
                Err(failed("files of the container's users are left"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn a_link_in_the_place_of_a_directory_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (kept, grave) = (dir.path().join("kept"), dir.path().join("grave"));
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("file"), "x").unwrap();
        std::os::unix::fs::symlink(&kept, &grave).unwrap();
        remove_own(&grave).unwrap();
        assert!(!grave.is_symlink());
        fs::create_dir(&grave).unwrap();
        std::os::unix::fs::symlink(&kept, grave.join("link")).unwrap();
        fs::write(grave.join("lock"), "").unwrap();
        remove_own(&grave).unwrap();
        assert!(!grave.exists());
        assert_eq!(fs::read(kept.join("file")).unwrap(), b"x");
    }
}
