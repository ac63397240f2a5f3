//! The link where /dev/net/tun cannot be opened: a veth pair, of which one end is the interface inside
//! and a packet socket on the other end is the device. It needs no device node.
//!
//! The far end lives in a network namespace of its own that nothing but the socket holds, so the inside
//! sees one interface, as with a TUN, and cannot touch the other. Neither end resolves addresses
//! (IFF_NOARP): the kernel then sends to its own hardware address, and what is for the inside is sent to
//! that one.
//!
//! Unlike a TUN device it has no queue that holds packets back: what the socket's buffer cannot take
//! (the kernel's rmem_max) is lost and sent again.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::uio::{readv, writev};

use super::netlink::{Batch, Netlink};
use super::{Features, LinkConfig, LinkError, TRANSMIT_QUEUE_PACKETS};
use crate::device::VNET_HEADER_BYTES;
use crate::sys::packet;

/// The hardware address inside, a locally administered one. Nobody else is on the link.
const INSIDE: [u8; 6] = [0x02, 0, 0, 0, 0, 0x02];
const OUTSIDE: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];

/// The far end's name, in its own namespace.
const FAR_NAME: &str = "gateway";

const HEADER_BYTES: usize = 14;
const TYPE_IPV4: [u8; 2] = [0x08, 0x00];
const TYPE_IPV6: [u8; 2] = [0x86, 0xdd];

/// Where the virtio-net header holds the headers' length and where the checksum starts: both are
/// counted from the Ethernet header here.
const HEADERS_LENGTH_AT: usize = 2;
const CHECKSUM_START_AT: usize = 6;
const VNET_NEEDS_CHECKSUM: u8 = 1;
const VNET_SEGMENT_UDP: u8 = 5;

/// Makes the pair and returns its far end's socket. The caller's namespace has the interface then, still
/// down; the caller is in it again.
pub(super) fn create(config: &LinkConfig) -> Result<(OwnedFd, Features), LinkError> {
    let setup = |step: &'static str| move |source: io::Error| LinkError::Setup { step, source };
    let inside = File::open("/proc/self/ns/net").map_err(setup("network namespace's file"))?;
    unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| setup("namespace for the far end")(errno.into()))?;
    let made = far_end(config, inside.as_fd());
    // Back in any case: the caller goes on where it was.
    setns(&inside, CloneFlags::CLONE_NEWNET)
        .map_err(|errno| setup("return from the far end's namespace")(errno.into()))?;
    made
}

fn far_end(config: &LinkConfig, inside: BorrowedFd<'_>) -> Result<(OwnedFd, Features), LinkError> {
    let setup = |step: &'static str| move |source: io::Error| LinkError::Setup { step, source };
    let mut batch = Batch::new();
    batch.add_veth("veth pair", (FAR_NAME, OUTSIDE), (&config.name, INSIDE), inside);
    let netlink = Netlink::open()?;
    netlink.run(&batch)?;
    let index = if_nametoindex(FAR_NAME).map_err(|errno| setup("index of the far end")(errno.into()))?;
    let mut batch = Batch::new();
    batch.no_link_local("far end without link-local address", index);
    batch.no_address_resolution("far end without address resolution", index);
    batch.set_up("far end up", index, Some((u32::from(config.mtu_bytes), TRANSMIT_QUEUE_PACKETS)));
    netlink.run(&batch)?;
    let socket = packet::open(index).map_err(setup("packet socket"))?;
    let mut features = Features::CHECKSUM.with(Features::TCP_SEGMENTATION);
    if takes_udp_trains(&socket) {
        features = features.with(Features::UDP_SEGMENTATION);
    }
    Ok((socket, features.with(Features::ETHERNET)))
}

/// Whether this kernel's virtio-net header has UDP segmentation (since Linux 6.2). A train of two
/// datagrams to a hardware address that is nobody's goes nowhere.
fn takes_udp_trains(socket: &OwnedFd) -> bool {
    const IP_BYTES: u8 = 20;
    const UDP_BYTES: u8 = 8;
    const PAYLOAD_BYTES: u8 = 2;
    let mut ip = [0_u8; (IP_BYTES + UDP_BYTES + PAYLOAD_BYTES) as usize];
    ip[0] = 0x45;
    ip[3] = IP_BYTES + UDP_BYTES + PAYLOAD_BYTES;
    ip[8] = 1;
    ip[9] = 17;
    ip[IP_BYTES as usize + 5] = UDP_BYTES + PAYLOAD_BYTES;
    let mut frame = [0_u8; VNET_HEADER_BYTES + (IP_BYTES + UDP_BYTES + PAYLOAD_BYTES) as usize];
    frame[0] = VNET_NEEDS_CHECKSUM;
    frame[1] = VNET_SEGMENT_UDP;
    let words = [(2, IP_BYTES + UDP_BYTES), (4, 1), (6, IP_BYTES), (8, 6)];
    for (at, word) in words {
        frame[at..at + 2].copy_from_slice(&u16::from(word).to_ne_bytes());
    }
    frame[VNET_HEADER_BYTES..].copy_from_slice(&ip);
    write_to(socket.as_fd(), [0x02, 0, 0, 0, 0, 0xff], &frame).is_ok()
}

/// Writes a packet with its virtio-net header, as for a TUN device.
pub(super) fn write(socket: BorrowedFd<'_>, frame: &[u8]) -> io::Result<()> {
    write_to(socket, INSIDE, frame)
}

fn write_to(socket: BorrowedFd<'_>, to: [u8; 6], frame: &[u8]) -> io::Result<()> {
    let Some((vnet, packet)) = frame.split_first_chunk::<VNET_HEADER_BYTES>() else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let mut vnet = *vnet;
    let mut add = |at: usize| {
        let word = u16::from_ne_bytes([vnet[at], vnet[at + 1]]).saturating_add(HEADER_BYTES as u16);
        vnet[at..at + 2].copy_from_slice(&word.to_ne_bytes());
    };
    add(HEADERS_LENGTH_AT);
    add(CHECKSUM_START_AT);
    let mut ethernet = [0; HEADER_BYTES];
    ethernet[..6].copy_from_slice(&to);
    ethernet[6..12].copy_from_slice(&OUTSIDE);
    let is_v6 = packet.first().is_some_and(|first| first >> 4 == 6);
    ethernet[12..].copy_from_slice(if is_v6 { &TYPE_IPV6 } else { &TYPE_IPV4 });
    writev(socket, &[IoSlice::new(&vnet), IoSlice::new(&ethernet), IoSlice::new(packet)])?;
    Ok(())
}

/// Reads a packet with its virtio-net header, as from a TUN device. No bytes are a frame that is none of
/// this network's, or that the kernel could not describe.
pub(super) fn read(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    let Some((vnet, packet)) = buffer.split_first_chunk_mut::<VNET_HEADER_BYTES>() else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let mut ethernet = [0; HEADER_BYTES];
    let mut parts = [IoSliceMut::new(vnet), IoSliceMut::new(&mut ethernet), IoSliceMut::new(packet)];
    match readv(socket, &mut parts) {
        Ok(length) if length < VNET_HEADER_BYTES + HEADER_BYTES => Ok(0),
        Ok(length) if ethernet[12..] == TYPE_IPV4 || ethernet[12..] == TYPE_IPV6 => Ok(length - HEADER_BYTES),
        Ok(_) => Ok(0),
        // A train of datagrams for which an older kernel has no virtio-net header: it is lost.
        Err(nix::Error::EINVAL) => Ok(0),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_has_its_offsets_from_the_ethernet_header() {
        let (ours, theirs) = nix::sys::socket::socketpair(
            nix::sys::socket::AddressFamily::Unix,
            nix::sys::socket::SockType::Datagram,
            None,
            nix::sys::socket::SockFlag::SOCK_CLOEXEC,
        )
        .expect("a pair");
        let mut frame = vec![0_u8; VNET_HEADER_BYTES];
        frame[CHECKSUM_START_AT..8].copy_from_slice(&40_u16.to_ne_bytes());
        frame[HEADERS_LENGTH_AT..4].copy_from_slice(&60_u16.to_ne_bytes());
        frame.extend([0x60, 1, 2, 3]);
        write(ours.as_fd(), &frame).expect("a write");
        let mut raw = [0; 64];
        let length = nix::unistd::read(&theirs, &mut raw).expect("a frame");
        assert_eq!(length, frame.len() + HEADER_BYTES);
        assert_eq!(raw[CHECKSUM_START_AT..8], 54_u16.to_ne_bytes());
        assert_eq!(raw[HEADERS_LENGTH_AT..4], 74_u16.to_ne_bytes());
        assert_eq!(raw[VNET_HEADER_BYTES..][..6], INSIDE);
        assert_eq!(raw[VNET_HEADER_BYTES + 12..][..2], TYPE_IPV6);

        nix::unistd::write(&theirs, &raw[..length]).expect("a write");
        let mut buffer = [0; 64];
        let length = read(ours.as_fd(), &mut buffer).expect("a packet");
        assert_eq!(buffer[VNET_HEADER_BYTES..length], [0x60, 1, 2, 3]);
        for not_ours in [&[0_u8; 5][..], &[0; 40][..]] {
            nix::unistd::write(&theirs, not_ours).expect("a write");
            assert_eq!(read(ours.as_fd(), &mut buffer).expect("a read"), 0);
        }
    }
}
