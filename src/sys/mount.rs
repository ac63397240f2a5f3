//! The kernel's mount API by descriptor: fsopen(2), fsmount(2), open_tree(2), move_mount(2),
//! mount_setattr(2). Mounts are made detached and put in place by descriptor, so that no path of an
//! image is ever walked by name while something is mounted on it.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

pub use libc::{
    MOUNT_ATTR_NOATIME, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY,
    MOUNT_ATTR_RELATIME, MOUNT_ATTR_STRICTATIME,
};

const FSCONFIG_SET_FLAG: libc::c_uint = 0;
const FSCONFIG_SET_STRING: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;
const FSOPEN_CLOEXEC: libc::c_uint = 1;
const OPEN_TREE_CLONE: libc::c_uint = 1;
const OPEN_TREE_CLOEXEC: libc::c_uint = libc::O_CLOEXEC as libc::c_uint;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 0x4;
const MOVE_MOUNT_T_EMPTY_PATH: libc::c_uint = 0x40;
const AT_RECURSIVE: libc::c_uint = 0x8000;

/// A new detached mount of a filesystem type.
///
/// An option without a value is a flag. `attributes` are MOUNT_ATTR_* bits.
///
/// # Errors
/// As fsopen(2), fsconfig(2) and fsmount(2); the errno of the step that failed.
pub fn new_filesystem(
    kind: &CStr,
    options: &[(&CStr, Option<&CStr>)],
    attributes: u64,
) -> Result<OwnedFd, Errno> {
    // SAFETY: `kind` is NUL-terminated.
    let context = own(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) })?;
    let fd = context.as_raw_fd();
    for (key, value) in options {
        let command = if value.is_some() { FSCONFIG_SET_STRING } else { FSCONFIG_SET_FLAG };
        let value = value.map_or(std::ptr::null(), CStr::as_ptr);
        // SAFETY: key and value are NUL-terminated; a flag takes a null value.
        Errno::result(unsafe { libc::syscall(libc::SYS_fsconfig, fd, command, key.as_ptr(), value, 0) })?;
    }
    let null = std::ptr::null::<libc::c_char>();
    // SAFETY: the create command takes no key and no value.
    Errno::result(unsafe { libc::syscall(libc::SYS_fsconfig, fd, FSCONFIG_CMD_CREATE, null, null, 0) })?;
    // SAFETY: integers only.
    own(unsafe { libc::syscall(libc::SYS_fsmount, fd, FSMOUNT_CLOEXEC, attributes as libc::c_uint) })
}

/// A detached copy of the mount at an open descriptor, with all that is mounted below it.
///
/// # Errors
/// As open_tree(2).
pub fn clone_tree(source: BorrowedFd<'_>, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | libc::AT_EMPTY_PATH as libc::c_uint;
    if recursive {
        flags |= AT_RECURSIVE;
    }
    // SAFETY: an empty NUL-terminated path with AT_EMPTY_PATH.
    own(unsafe { libc::syscall(libc::SYS_open_tree, source.as_raw_fd(), c"".as_ptr(), flags) })
}

/// Attaches a detached mount at an open descriptor.
///
/// # Errors
/// As move_mount(2).
pub fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: empty NUL-terminated paths with the matching flags.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            target.as_raw_fd(),
            c"".as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH,
        )
    };
    Errno::result(result).map(drop)
}

/// Adds MOUNT_ATTR_* bits to a mount (and those below it), and sets its propagation
/// (`libc::MS_PRIVATE` and its kin; 0 leaves it).
///
/// # Errors
/// As mount_setattr(2): EPERM for a locked attribute, ENOSYS before Linux 5.12.
pub fn set_attributes(
    mount: BorrowedFd<'_>,
    attributes: u64,
    propagation: u64,
    recursive: bool,
) -> Result<(), Errno> {
    // SAFETY: mount_attr is plain data for which zero is a valid value of every field.
    let mut request: libc::mount_attr = unsafe { std::mem::zeroed() };
    request.attr_set = attributes;
    request.propagation = propagation;
    let mut flags = libc::AT_EMPTY_PATH as libc::c_uint;
    if recursive {
        flags |= AT_RECURSIVE;
    }
    // SAFETY: an empty NUL-terminated path, and a struct of the size that is passed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const request,
            size_of::<libc::mount_attr>(),
        )
    };
    Errno::result(result).map(drop)
}

fn own(result: libc::c_long) -> Result<OwnedFd, Errno> {
    let fd = Errno::result(result)?;
    // SAFETY: a new descriptor that the kernel has just made and nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
