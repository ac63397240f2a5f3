//! Mounting, as done inside the user and mount namespace that shall see the files.
//!
//! The kernel ties a FUSE connection to the user namespace in which `/dev/fuse` was opened, so
//! [`open_device`] and [`mount`] both run inside; the descriptor then goes to the server, which
//! may be outside (see [`crate::serve`]). Nothing here needs the server to run yet: requests
//! wait for it. All functions are safe to call in a single-threaded process between fork and
//! exec, but they allocate.

use std::fmt::Write;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::MsFlags;

/// Where the kernel's FUSE device is.
pub const DEVICE: &str = "/dev/fuse";

/// The largest request in bytes, read or write: more saves nothing measurable and costs the
/// server a larger buffer a thread.
pub(crate) const MAX_REQUEST_BYTES: u32 = 1 << 20;

/// Why a mount cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// No such device.
    #[error(
        "{DEVICE} is missing: load the fuse module (modprobe fuse), or pass the device into this container"
    )]
    DeviceMissing,
    /// The device is closed to this user.
    #[error(
        "{DEVICE} may not be opened: it should have mode 0666 (chmod 0666 {DEVICE}), and the device cgroup must allow it"
    )]
    DeviceDenied,
    /// The device cannot be opened for another reason.
    #[error("cannot open {DEVICE}")]
    Device(#[source] io::Error),
    /// The kernel does not let this process mount.
    #[error(
        "may not mount a {kind} filesystem on {target:?}: this needs a user and a mount namespace of its own, and a kernel that lets user namespaces mount {kind}"
    )]
    Denied {
        /// Which filesystem.
        kind: &'static str,
        /// Where.
        target: PathBuf,
    },
    /// The mount fails for another reason.
    #[error("cannot mount a {kind} filesystem on {target:?}")]
    Mount {
        /// Which filesystem.
        kind: &'static str,
        /// Where.
        target: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// How the FUSE filesystem is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// Mount read-only. Beyond refusing writes this saves a request after each cached read: the
    /// kernel need not ask for a new access time.
    pub read_only: bool,
    /// What the mount table shows as the source. Commas are replaced.
    pub source: String,
    /// The user that owns the mount, as an id of this namespace.
    pub uid: u32,
    /// The group that owns the mount, as an id of this namespace.
    pub gid: u32,
}

/// Opens [`DEVICE`] for one connection.
///
/// # Errors
/// [`MountError::DeviceMissing`], [`MountError::DeviceDenied`], [`MountError::Device`].
pub fn open_device() -> Result<OwnedFd, MountError> {
    match OpenOptions::new().read(true).write(true).open(DEVICE) {
        Ok(file) => Ok(file.into()),
        Err(error) => Err(match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => MountError::DeviceMissing,
            Some(libc::EACCES | libc::EPERM) => MountError::DeviceDenied,
            _ => MountError::Device(error),
        }),
    }
}

/// Mounts the connection on `target`. Access rights are checked by the kernel; every user of the
/// namespace may enter. Device nodes are shown but cannot be opened; set-user-id bits count only
/// where the namespace owns the mount, which the kernel sees to.
///
/// # Errors
/// [`MountError::Denied`], [`MountError::Mount`].
pub fn mount(device: BorrowedFd<'_>, target: &Path, options: &MountOptions) -> Result<(), MountError> {
    let mut data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},allow_other,default_permissions",
        device.as_raw_fd(),
        options.uid,
        options.gid
    );
    // Writing to a String cannot fail.
    let _ = write!(data, ",max_read={MAX_REQUEST_BYTES}");
    let source = options.source.replace(',', "_");
    let read_only = if options.read_only { MsFlags::MS_RDONLY } else { MsFlags::empty() };
    let flags = MsFlags::MS_NODEV | read_only;
    nix::mount::mount(Some(source.as_str()), target, Some("fuse"), flags, Some(data.as_str()))
        .map_err(|errno| failed("fuse", target, errno))
}

/// The parts of a kernel overlay mount.
#[derive(Clone, Copy, Debug)]
pub struct OverlayMount<'a> {
    /// What the mount table shows as the source.
    pub source: &'a str,
    /// A read-only FUSE mount made by [`mount`], or another directory.
    pub lower: &'a Path,
    /// Some files of `lower` as plain files, at their paths, which are seen instead of them (see
    /// [`crate::unpack`]).
    pub native: Option<&'a Path>,
    /// Where changes go: a directory on a local filesystem.
    pub upper: &'a Path,
    /// An empty directory on the same filesystem as `upper`.
    pub work: &'a Path,
    /// Skip syncing to disk: only for an upper that nothing will read after this mount is gone.
    pub volatile: bool,
}

/// Mounts the kernel's overlayfs, as far as it may be used in a user namespace (`userxattr`).
///
/// # Errors
/// [`MountError::Denied`], [`MountError::Mount`]: the caller falls back to a writable mount of
/// this crate's own.
pub fn mount_overlay(parts: OverlayMount<'_>, target: &Path) -> Result<(), MountError> {
    let mut data = b"userxattr,lowerdir=".to_vec();
    if let Some(native) = parts.native {
        escape(native, &mut data);
        data.push(b':');
    }
    escape(parts.lower, &mut data);
    data.extend_from_slice(b",upperdir=");
    escape(parts.upper, &mut data);
    data.extend_from_slice(b",workdir=");
    escape(parts.work, &mut data);
    if parts.volatile {
        data.extend_from_slice(b",volatile");
    }
    nix::mount::mount(Some(parts.source), target, Some("overlay"), MsFlags::empty(), Some(data.as_slice()))
        .map_err(|errno| failed("overlay", target, errno))
}

/// Opens and closes the root of a fresh mount, so that the server's answer that it needs no
/// OPEN requests is known to the kernel before anything else opens a file. Needs the server.
///
/// # Errors
/// Those of opening the directory.
pub fn prime(target: &Path) -> io::Result<()> {
    File::open(target).map(drop)
}

/// overlayfs takes `,` `:` and `\` in paths where a backslash stands before them.
fn escape(path: &Path, out: &mut Vec<u8>) {
    for byte in path.as_os_str().as_bytes() {
        if matches!(byte, b',' | b':' | b'\\') {
            out.push(b'\\');
        }
        out.push(*byte);
    }
}

fn failed(kind: &'static str, target: &Path, errno: Errno) -> MountError {
    match errno {
        Errno::EPERM | Errno::EACCES => MountError::Denied { kind, target: target.into() },
        errno => MountError::Mount { kind, target: target.into(), source: errno.into() },
    }
}
