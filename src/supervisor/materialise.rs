//! Roots without FUSE: an image written out as a directory, for machines where `/dev/fuse` cannot
//! be opened.
//!
//! ```text
//! materialised/<chain>.<owners>/tree/   the image, shared by all its containers as the overlay's lower layer
//! containers/<id>/local/copy/tree/      the image again, where the kernel's overlay is not to be had either
//! ```
//!
//! With a range of ids the files belong to the ids that the image says, so the work is done by a
//! short-lived child in a user namespace with the container's own maps; `<owners>` names those. With
//! one id all is the caller's. What a directory cannot hold (device nodes, and owners with one id)
//! stays in the merged index, which `save`, `diff` and `commit` go by.
//!
//! A tree is made beside its place, under the lock that half made containers have too, and renamed:
//! what a kill leaves is swept with them. A tree that nothing needs any more is moved among the
//! remains of containers by a collection, and removed from there by whoever has the id maps.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use fuse_overlay::index::MergedIndex;
use fuse_overlay::mount as fuse_mount;
use fuse_overlay::serve::Ids;
use fuse_overlay::unpack::{Owners, Select, unpack};
use nix::sys::socket::MsgFlags;
use nix::unistd::{Gid, Pid, Uid, setresgid, setresuid};

use super::{LaunchError, io_error};
use crate::sandbox::chain;
use crate::sandbox::idmap::IdMaps;
use crate::store::containers::Containers;
use crate::sys;
use crate::sys::process::{Ended, Fork};

const TREE: &str = "tree";
/// What a child says of a failure: an error and its causes.
const MAX_MESSAGE_BYTES: usize = 4096;

/// Why no FUSE mount can be made here; `None` where one can.
#[must_use]
pub fn reason() -> Option<String> {
    fuse_mount::open_device().err().map(|error| chain(&error))
}

/// Whether the kernel's overlayfs may be used here, with an upper below `store`: tried, in namespaces
/// of its own.
///
/// # Errors
/// Why not.
pub fn try_overlay(store: &Path) -> Result<(), String> {
    let text = |error: io::Error| error.to_string();
    let place = store.join("tmp").join(format!("overlay-{}", std::process::id()));
    for directory in
        [&place, &place.join("lower"), &place.join("upper"), &place.join("work"), &place.join("root")]
    {
        super::private_directory(directory).map_err(text)?;
    }
    let (uid, gid) = (Uid::effective(), Gid::effective());
    let attempt = || {
        // Each error shows in the mount's own; what counts is whether that works.
        let _ = fs::write("/proc/self/setgroups", "deny");
        let _ = fs::write("/proc/self/uid_map", format!("0 {uid} 1"));
        let _ = fs::write("/proc/self/gid_map", format!("0 {gid} 1"));
        let parts = fuse_mount::OverlayMount {
            source: "overlay",
            lower: &place.join("lower"),
            native: None,
            upper: &place.join("upper"),
            work: &place.join("work"),
            volatile: false,
        };
        fuse_mount::mount_overlay(parts, &place.join("root")).map_err(|error| chain(&error))
    };
    let namespaces = (libc::CLONE_NEWUSER | libc::CLONE_NEWNS) as u64;
    let tried = in_child(namespaces, |_| Ok(()), attempt).map_err(text);
    // Overlayfs leaves a directory of mode 0 in its work directory.
    let _ = fs::set_permissions(place.join("work/work"), std::os::unix::fs::PermissionsExt::from_mode(0o700));
    let _ = fs::remove_dir_all(&place); // swept with what else is left in tmp/
    tried
}

/// What an image is made of.
#[derive(Clone, Copy, Debug)]
pub struct Image<'a> {
    /// The merged index's file, in the store.
    pub index: &'a Path,
    /// The layers' tars, bottom first.
    pub layers: &'a [PathBuf],
}

/// Where the image's tree is, or would be.
#[must_use]
pub fn place(containers: &Containers, index: &Path, maps: &IdMaps) -> PathBuf {
    let chain = index.file_name().unwrap_or_default().to_string_lossy();
    let owners = if maps.is_single() {
        "one".to_owned()
    } else {
        // Where the second id begins, which is the first of the range.
        let first = |id: Option<u32>| id.map_or_else(|| "0".to_owned(), |id| id.to_string());
        let range = format!("{}-{}", first(maps.host_uid(1)), first(maps.host_gid(1)));
        match maps.kept() {
            Some((uid, gid)) => format!("{range}-keep-{uid}-{gid}"),
            None => range,
        }
    };
    containers.store_root().join("materialised").join(format!("{chain}.{owners}"))
}

/// The image's tree, made if it is not there.
///
/// # Errors
/// The image cannot be read, or the tree not be written.
pub fn shared(
    containers: &Containers,
    image: Image<'_>,
    maps: &IdMaps,
    ids: Ids,
) -> Result<PathBuf, LaunchError> {
    let place = place(containers, image.index, maps);
    let tree = place.join(TREE);
    if tree.is_dir() {
        return Ok(tree);
    }
    let what = || format!("write out the image to {}", place.display());
    if let Some(parent) = place.parent() {
        super::private_directory(parent).map_err(io_error(what))?;
    }
    let staging = containers.stage_tree().map_err(io_error(what))?;
    let made = write(image, &staging.path().join(TREE), maps, ids);
    let moved = made.and_then(|()| match fs::rename(staging.path(), &place) {
        // Another command was quicker.
        Err(_) if tree.is_dir() => super::remove::tree(staging.path(), maps).map_err(io_error(what)),
        other => other.map_err(io_error(what)),
    });
    if moved.is_err() {
        let _ = super::remove::tree(staging.path(), maps); // a later command sweeps what is left
    }
    moved.map(|()| tree)
}

/// A container's own copy of the image, made at its first start.
///
/// # Errors
/// As [`shared`].
pub fn private(local_dir: &Path, image: Image<'_>, maps: &IdMaps, ids: Ids) -> Result<PathBuf, LaunchError> {
    let (place, staging) = (local_dir.join("copy"), local_dir.join(".copy"));
    let what = || format!("write out the image to {}", place.display());
    if place.is_dir() {
        return Ok(place.join(TREE));
    }
    // Of a start that was killed.
    super::remove::tree(&staging, maps).map_err(io_error(what))?;
    super::private_directory(&staging).map_err(io_error(what))?;
    write(image, &staging.join(TREE), maps, ids)?;
    fs::rename(&staging, &place).map_err(io_error(what))?;
    Ok(place.join(TREE))
}

/// Writes the whole image into the new directory `target`, durably.
fn write(image: Image<'_>, target: &Path, maps: &IdMaps, ids: Ids) -> Result<(), LaunchError> {
    let what = || format!("write out the image to {}", target.display());
    super::private_directory(target).map_err(io_error(what))?;
    let open = |path: &Path| File::open(path).map_err(io_error(|| format!("open {}", path.display())));
    let index = MergedIndex::open(&open(image.index)?)
        .map_err(|error| LaunchError::Image { path: image.index.to_owned(), source: error.into() })?;
    let layers = image.layers.iter().map(|path| open(path)).collect::<Result<Vec<_>, _>>()?;
    let directory = open(target)?;
    let work = |owners| {
        let done = unpack(&index, &layers, directory.as_fd(), Select::All, owners);
        done.map_err(|error| chain(&error)).and_then(|_| {
            nix::unistd::syncfs(&directory).map_err(|errno| format!("cannot sync: {}", errno.desc()))
        })
    };
    if maps.is_single() {
        return work(Owners::Caller).map_err(|error| io_error(what)(io::Error::other(error)));
    }
    in_namespace(maps, || work(Owners::Image(ids))).map_err(io_error(what))
}

/// Runs `work` as root of a user namespace with these maps.
fn in_namespace(maps: &IdMaps, work: impl FnOnce() -> Result<(), String>) -> io::Result<()> {
    let map = |pid| {
        let written = maps.begin(pid).and_then(crate::sandbox::idmap::Writing::finish);
        written.map_err(|failure| io::Error::other(failure.to_string()))
    };
    in_child(libc::CLONE_NEWUSER as u64, map, || {
        let (gid, uid) = (Gid::from_raw(0), Uid::from_raw(0));
        if setresgid(gid, gid, gid).is_err() || setresuid(uid, uid, uid).is_err() {
            return Err("cannot become root of the user namespace".to_owned());
        }
        nix::sys::stat::umask(nix::sys::stat::Mode::empty());
        work()
    })
}

/// Runs `work` in a child in new namespaces, after `prepare` was called for it, and waits. It ends
/// with this process.
fn in_child(
    namespaces: u64,
    prepare: impl FnOnce(Pid) -> io::Result<()>,
    work: impl FnOnce() -> Result<(), String>,
) -> io::Result<()> {
    let (ours, theirs) = sys::fd::seqpacket_pair()?;
    match sys::process::clone(namespaces, false)? {
        Fork::Child => {
            drop(ours);
            let mut byte = [0_u8; 1];
            let done = match nix::unistd::read(&theirs, &mut byte) {
                Ok(1) => work(),
                _ => Err("the process that waits for this one is gone".to_owned()),
            };
            if let Err(message) = &done {
                let text = &message.as_bytes()[..message.len().min(MAX_MESSAGE_BYTES)];
                let _ = sys::fd::send_with_fds(theirs.as_fd(), text, &[]); // nobody else to tell
            }
            sys::process::exit_now(i32::from(done.is_err()))
        }
        Fork::Parent(child) => {
            drop(theirs);
            let prepared = prepare(child.pid);
            let mut message = Vec::new();
            if prepared.is_ok() {
                sys::fd::send_with_fds(ours.as_fd(), &[1], &[])?;
                message.resize(MAX_MESSAGE_BYTES, 0);
                let received = sys::fd::receive_with_fds(ours.as_fd(), &mut message, MsgFlags::empty());
                message.truncate(received.map_or(0, |(length, _)| length));
            }
            drop(ours);
            let ended = sys::process::wait_for(child.pid)?;
            prepared?;
            match ended {
                Ended::Exited(0) => Ok(()),
                _ if !message.is_empty() => {
                    Err(io::Error::other(String::from_utf8_lossy(&message).into_owned()))
                }
                ended => Err(io::Error::other(format!("the process that did it ended: {ended:?}"))),
            }
        }
    }
}
