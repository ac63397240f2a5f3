//! What has no safe form: descriptors that come as numbers, and the address of an interface.
#![allow(unsafe_code, reason = "each block says why it is sound")]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Takes a descriptor that recvmsg has just made, or that this process was started with.
pub(super) fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: both callers have the only copy of the number.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Sends a packet through the interface; failures are passed over.
pub(super) fn send_to_interface(socket: &OwnedFd, index: u32, packet: &[u8]) {
    // SAFETY: sockaddr_ll is plain old data, for which all zeroes is a valid value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = index as i32;
    // SAFETY: the pointers and lengths are those of a slice and of a sockaddr_ll that outlive
    // the call.
    unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            packet.as_ptr().cast(),
            packet.len(),
            0,
            (&raw const address).cast(),
            size_of_val(&address) as u32,
        )
    };
}
