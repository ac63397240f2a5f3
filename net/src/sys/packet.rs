//! The packet socket at the far end of a veth pair (packet(7), linux/if_packet.h).

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// Every protocol, in network order, as the kernel wants it.
const ALL_PROTOCOLS: u16 = (libc::ETH_P_ALL as u16).to_be();

/// linux/if_packet.h, since Linux 4.20.
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;

/// A socket for whole Ethernet frames of one interface, each with a virtio-net header in front;
/// non-blocking and close-on-exec. It does not hear what it sends itself.
pub(crate) fn open(interface_index: u32) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // Without a protocol it hears nothing until it is bound to the interface.
    // SAFETY: socket takes integers only.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    check(fd)?;
    // SAFETY: a new descriptor that nobody else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    set(&socket, libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
    set(&socket, libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)?;
    // No PACKET_QDISC_BYPASS: that path drops what the kernel has to cut up, and it cuts up what comes
    // from a packet socket (SKB_GSO_DODGY) before a veth device has it.
    // The kernel caps it at rmem_max. What does not fit is lost, so as much as there may be.
    set(&socket, libc::SOL_SOCKET, libc::SO_RCVBUF, RECEIVE_BYTES)?;
    // SAFETY: sockaddr_ll is plain old data, for which all zeroes is a valid value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = ALL_PROTOCOLS;
    address.sll_ifindex = interface_index as i32;
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the address lives across the call and is as long as is said.
    let result = unsafe { libc::bind(socket.as_raw_fd(), std::ptr::from_ref(&address).cast(), length) };
    check(result)?;
    Ok(socket)
}

/// What the socket may hold unread, in bytes, as far as the kernel lets it.
const RECEIVE_BYTES: libc::c_int = 8 << 20;

fn set(socket: impl AsFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    let value = std::ptr::from_ref(&value).cast();
    // SAFETY: the value is an int that lives across the call and is as long as is said.
    let result = unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, name, value, length) };
    check(result)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
