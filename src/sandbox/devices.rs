//! A minimal /dev: the machine's harmless devices, bound one by one, and the usual links.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::symlinkat;

use super::rootfs::{Root, Target};
use super::{Context as _, Stage, Staged};
use crate::sys::mount as api;

/// Devices that every container gets (runtime-spec, config-linux.md, "Default Devices").
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// Links in /dev (the same section, and Docker's habit).
const LINKS: [(&str, &str); 6] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("/proc/kcore", "core"),
    ("pts/ptmx", "ptmx"),
];

/// Fills a fresh tmpfs that has just become /dev.
///
/// A device node cannot be made in a user namespace, so each is a bind of the machine's own.
///
/// # Errors
/// Which device or link failed.
pub fn populate(dev: &OwnedFd) -> Staged<()> {
    let root = Root::new(dev.try_clone().during(Stage::Mounts, || "cannot duplicate /dev".into())?);
    for name in DEVICES {
        bind_device(&root, &Path::new("/dev").join(name), Path::new(name))
            .during(Stage::Mounts, || format!("cannot bind /dev/{name}"))?;
    }
    for (target, name) in LINKS {
        symlinkat(target, dev, name).during(Stage::Mounts, || format!("cannot link /dev/{name}"))?;
    }
    Ok(())
}

/// Devices that a container engine inside may use, where the machine has them.
const ENGINE_DEVICES: [&str; 2] = ["/dev/fuse", "/dev/net/tun"];

/// Adds `ENGINE_DEVICES` to the container's /dev.
///
/// # Errors
/// One is there and cannot be bound.
pub fn add_for_engine(root: &Root) -> Staged<()> {
    for name in ENGINE_DEVICES.map(Path::new) {
        if name.exists() && !root.exists(name) {
            bind_device(root, name, name)
                .during(Stage::Mounts, || format!("cannot bind {}", name.display()))?;
        }
    }
    Ok(())
}

fn bind_device(root: &Root, source: &Path, name: &Path) -> Result<(), Errno> {
    let source = open(source, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    let point = root.mount_point(name, Target::File)?;
    let made = api::clone_tree(source.as_fd(), false)?;
    api::attach(made.as_fd(), point.as_fd())
}

/// The container's terminal: a new pair from its own devpts, whose far end becomes /dev/console.
///
/// Returns `(master, far end)`.
///
/// # Errors
/// What could not be opened or bound.
pub fn open_terminal(root: &Root, console: bool, owner_uid: u32) -> Staged<(OwnedFd, OwnedFd)> {
    let what = || "cannot open a terminal in the container's /dev/pts".to_owned();
    let master =
        root.open(Path::new("/dev/pts/ptmx"), libc::O_RDWR | libc::O_NOCTTY).during(Stage::Mounts, what)?;
    let peer = crate::sys::terminal::open_peer(master.as_fd()).during(Stage::Mounts, what)?;
    // The command's user has to own its terminal, or it could not open /dev/tty's name again.
    let owner = nix::unistd::Uid::from_raw(owner_uid);
    nix::unistd::fchownat(&peer, "", Some(owner), None, AtFlags::AT_EMPTY_PATH)
        .during(Stage::Mounts, what)?;
    if console {
        let made = api::clone_tree(peer.as_fd(), false).during(Stage::Mounts, what)?;
        let point = root.mount_point(Path::new("/dev/console"), Target::File).during(Stage::Mounts, what)?;
        api::attach(made.as_fd(), point.as_fd()).during(Stage::Mounts, what)?;
    }
    Ok((master, peer))
}
