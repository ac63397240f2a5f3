//! What has no safe form: descriptors that come as numbers, and the address of an interface.
#![allow(unsafe_code, reason = "each block says why it is sound")]

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
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

/// Gives the loopback interface another address (a /24) and an MTU.
pub(super) fn set_up_loopback(address: Ipv4Addr, mtu_bytes: u32) -> io::Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let request = |name: &[u8]| {
        // SAFETY: ifreq is plain old data, for which all zeroes is a valid value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, &from) in request.ifr_name.iter_mut().zip(name) {
            *to = from as libc::c_char;
        }
        request
    };
    let call = |number: libc::c_ulong, request: &libc::ifreq| {
        // SAFETY: both requests read one ifreq, which lives across the call.
        match unsafe { libc::ioctl(socket.as_raw_fd(), number as _, request) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    let mut with_mtu = request(b"lo");
    with_mtu.ifr_ifru.ifru_mtu = mtu_bytes as libc::c_int;
    call(libc::SIOCSIFMTU, &with_mtu)?;
    let mut with_address = request(b"lo:1");
    // SAFETY: sockaddr_in is plain old data, and has the size of the sockaddr that it is written to.
    let mut socket_address: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    socket_address.sin_family = libc::AF_INET as u16;
    socket_address.sin_addr.s_addr = u32::from(address).to_be();
    // SAFETY: both types have 16 bytes, and any bytes are a valid sockaddr.
    with_address.ifr_ifru.ifru_addr =
        unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(socket_address) };
    call(libc::SIOCSIFADDR, &with_address)
}

/// Sets an option that takes an int.
pub(super) fn set_option(socket: &UdpSocket, level: i32, name: i32, value: i32) -> io::Result<()> {
    // SAFETY: the pointer and the size are those of an int that outlives the call.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), size_of::<i32>() as u32)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
