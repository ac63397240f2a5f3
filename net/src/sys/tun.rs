//! The ioctls of /dev/net/tun (linux/if_tun.h).

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

pub(crate) const TUN_F_CSUM: u32 = 0x01;
pub(crate) const TUN_F_TSO4: u32 = 0x02;
pub(crate) const TUN_F_TSO6: u32 = 0x04;
pub(crate) const TUN_F_USO4: u32 = 0x20;
pub(crate) const TUN_F_USO6: u32 = 0x40;

pub(crate) const DEVICE: &str = "/dev/net/tun";

/// Opens the device, non-blocking and close-on-exec.
pub(crate) fn open_device() -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    Ok(open(DEVICE, flags, Mode::empty())?)
}

/// TUNSETIFF: makes the interface `name` in the caller's network namespace, without packet
/// information and with a virtio-net header before each packet.
pub(crate) fn attach(device: impl AsFd, name: &str) -> io::Result<()> {
    // SAFETY: ifreq is plain old data, for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero: the name is a C string.
    if name.is_empty() || name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives across the call.
    let result = unsafe { libc::ioctl(device.as_fd().as_raw_fd(), libc::TUNSETIFF, &mut request) };
    check(result)
}

/// TUNSETPERSIST: the interface outlives the descriptor and dies with its namespace.
pub(crate) fn set_persistent(device: impl AsFd) -> io::Result<()> {
    let on: libc::c_ulong = 1;
    // SAFETY: TUNSETPERSIST takes its argument by value and touches no memory of ours.
    let result = unsafe { libc::ioctl(device.as_fd().as_raw_fd(), libc::TUNSETPERSIST, on) };
    check(result)
}

/// TUNSETOFFLOAD: which unfinished packets this side takes. EINVAL where the kernel does not know
/// one of the bits.
pub(crate) fn set_offloads(device: impl AsFd, offloads: u32) -> io::Result<()> {
    let offloads = libc::c_ulong::from(offloads);
    // SAFETY: TUNSETOFFLOAD takes its argument by value and touches no memory of ours.
    let result = unsafe { libc::ioctl(device.as_fd().as_raw_fd(), libc::TUNSETOFFLOAD, offloads) };
    check(result)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
