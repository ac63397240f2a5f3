//! What the fuzz targets in `net/fuzz` call, one function a target.
//!
//! Each takes any bytes and checks what must hold whatever they are; a panic is a finding. The
//! functions are here because the parsers are private. An ordinary test runs them over the
//! committed corpora, so that a mended finding stays mended.

use std::net::{IpAddr, Ipv4Addr};

use crate::dns::fuzzing as dns;
use crate::frame::{self, Fragment, Transport};
use crate::reassembly::Reassembly;

/// One packet from inside, of which every length must lie within its bytes.
pub fn frame(bytes: &[u8]) {
    let Ok(packet) = frame::parse(bytes) else { return };
    assert!(packet.bytes.len() <= bytes.len());
    assert!(packet.header_bytes <= packet.bytes.len());
    assert_eq!(packet.source.is_ipv4(), packet.destination.is_ipv4());
    let body_bytes = packet.bytes.len() - packet.header_bytes;
    match packet.transport {
        Transport::Tcp(segment) => {
            assert!(segment.header_bytes <= body_bytes);
            let flags = u32::from(segment.syn) + u32::from(segment.fin);
            assert_eq!(segment.length as usize, body_bytes - segment.header_bytes + flags as usize);
        }
        Transport::Udp { payload, .. } => assert!(payload.len() + frame::UDP_HEADER_BYTES <= body_bytes),
        Transport::Icmp(message) => assert_eq!(message.len(), body_bytes),
        Transport::Fragment(fragment) => assert!(fragment.payload.len() <= body_bytes),
        Transport::Other(_) => {}
    }
    // What an accepted packet is cut to is the same packet again.
    assert_eq!(frame::parse(packet.bytes), Ok(packet));
}

/// Fragments of a few datagrams, six bytes each: which datagram and which text, whether more
/// follow, where, how long, and how much later. A datagram that is put together must consist of
/// bytes that were sent for their places.
pub fn reassembly(bytes: &[u8]) {
    let address = |last| IpAddr::V4(Ipv4Addr::new(192, 0, 2, last));
    // The byte at a place of a datagram's text; the second text has the top bit set.
    let text = |datagram: u32, at: usize| (at as u32 * 7 + datagram * 31) as u8 & 0x7f;
    let mut reassembly = Reassembly::default();
    let mut now = 0;
    for step in bytes.chunks_exact(6) {
        let datagram = u32::from(step[0] >> 2);
        let top_bit = step[0] << 7;
        let offset = usize::from(u16::from_be_bytes([step[2], step[3]]) & 0x1fff) * 8;
        let length = usize::from(step[4]) * 8 + usize::from(step[1] >> 5);
        now += u64::from(step[5]) * 256;
        let payload: Vec<u8> = (offset..offset + length).map(|at| text(datagram, at) | top_bit).collect();
        let fragment = Fragment {
            identification: datagram,
            protocol: 17,
            offset,
            more: step[1] & 1 != 0,
            payload: &payload,
        };
        if let Some(whole) = reassembly.add(now, address(1), address(2), &fragment) {
            assert!(!whole.payload.is_empty());
            for (at, byte) in whole.payload.iter().enumerate() {
                assert_eq!(byte & 0x7f, text(datagram, at));
            }
        }
    }
}

/// Segments of a few connections, eight bytes each, between them what the host's side says.
pub fn flows(bytes: &[u8]) {
    crate::tcp::fuzzing::conversation(bytes);
}

/// One message from inside, and the same bytes as a message from a server.
pub fn dns_message(bytes: &[u8]) {
    dns::message(bytes);
}

/// A TCP conversation with the name server: what is written, read and answered in which order.
pub fn dns_conversation(bytes: &[u8]) {
    dns::conversation(bytes);
}

/// The host's resolv.conf and hosts files.
pub fn system_files(bytes: &[u8]) {
    dns::system_files(&String::from_utf8_lossy(bytes));
}

#[cfg(test)]
#[path = "../../tests/fuzz/replay.rs"]
mod replay;

#[cfg(test)]
mod tests {
    #[test]
    fn corpora_pass() {
        super::replay::replay(
            "net",
            "fuzz/corpus",
            &[
                ("frame", super::frame),
                ("flows", super::flows),
                ("reassembly", super::reassembly),
                ("dns_message", super::dns_message),
                ("dns_conversation", super::dns_conversation),
                ("system_files", super::system_files),
            ],
        );
    }
}
