//! Writes IP, UDP and ICMP headers. TCP's are smoltcp's work.

use std::net::IpAddr;

use crate::frame::{
    EXTENSION_FRAGMENT, IPV4_HEADER_BYTES, IPV6_HEADER_BYTES, PROTOCOL_ICMP, PROTOCOL_ICMPV6,
    UDP_HEADER_BYTES,
};

/// The hop limit of everything that the gateway sends.
const HOP_LIMIT: u8 = 64;

/// The IPv6 fragment header (RFC 8200, 4.5).
const FRAGMENT_HEADER_BYTES: usize = 8;

/// Source and destination of a packet; both of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
}

/// Which part of a larger packet a fragment is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part {
    pub(crate) identification: u32,
    pub(crate) offset: usize,
    pub(crate) more: bool,
}

impl Route {
    /// The length of a header that [`header`](Self::header) writes.
    pub(crate) fn header_bytes(self, part: Option<Part>) -> usize {
        match (self.source, part) {
            (IpAddr::V4(_), _) => IPV4_HEADER_BYTES,
            (IpAddr::V6(_), None) => IPV6_HEADER_BYTES,
            (IpAddr::V6(_), Some(_)) => IPV6_HEADER_BYTES + FRAGMENT_HEADER_BYTES,
        }
    }

    /// Writes the IP header for a payload of this length at the start of `buffer`.
    pub(crate) fn header(self, buffer: &mut [u8], protocol: u8, payload_bytes: usize, part: Option<Part>) {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let header = &mut buffer[..IPV4_HEADER_BYTES];
                let total = (IPV4_HEADER_BYTES + payload_bytes) as u16;
                let (identification, flags) = match part {
                    None => (0, 0x4000),
                    Some(part) => {
                        (part.identification as u16, u16::from(part.more) << 13 | (part.offset / 8) as u16)
                    }
                };
                header[0] = 0x45;
                header[1] = 0;
                header[2..4].copy_from_slice(&total.to_be_bytes());
                header[4..6].copy_from_slice(&identification.to_be_bytes());
                header[6..8].copy_from_slice(&flags.to_be_bytes());
                header[8] = HOP_LIMIT;
                header[9] = protocol;
                header[10..12].fill(0);
                header[12..16].copy_from_slice(&source.octets());
                header[16..20].copy_from_slice(&destination.octets());
                let checksum = !fold(sum(header));
                header[10..12].copy_from_slice(&checksum.to_be_bytes());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let header_bytes = self.header_bytes(part);
                let header = &mut buffer[..header_bytes];
                let length = (header_bytes - IPV6_HEADER_BYTES + payload_bytes) as u16;
                header[..4].copy_from_slice(&[0x60, 0, 0, 0]);
                header[4..6].copy_from_slice(&length.to_be_bytes());
                header[6] = part.map_or(protocol, |_| EXTENSION_FRAGMENT);
                header[7] = HOP_LIMIT;
                header[8..24].copy_from_slice(&source.octets());
                header[24..40].copy_from_slice(&destination.octets());
                if let Some(part) = part {
                    let offset = part.offset as u16 & 0xfff8 | u16::from(part.more);
                    header[40] = protocol;
                    header[41] = 0;
                    header[42..44].copy_from_slice(&offset.to_be_bytes());
                    header[44..48].copy_from_slice(&part.identification.to_be_bytes());
                }
            }
            _ => debug_assert!(false, "a route has one family"),
        }
    }

    /// A whole packet with this payload, if an IP packet can be so long.
    pub(crate) fn packet(self, protocol: u8, payload: &[u8]) -> Option<Vec<u8>> {
        let header_bytes = self.header_bytes(None);
        let length = header_bytes + payload.len();
        // IPv6's length field does not count the header.
        let counted = if self.source.is_ipv6() { payload.len() } else { length };
        if counted > usize::from(u16::MAX) {
            return None;
        }
        let mut packet = vec![0; length];
        packet[header_bytes..].copy_from_slice(payload);
        self.header(&mut packet, protocol, payload.len(), None);
        Some(packet)
    }

    /// The sum of the pseudo header (RFC 9293, 3.1; RFC 8200, 8.1), folded, not inverted: what a
    /// partial checksum starts with.
    pub(crate) fn pseudo_header(self, protocol: u8, payload_bytes: usize) -> u16 {
        let addresses = match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                sum(&source.octets()) + sum(&destination.octets())
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                sum(&source.octets()) + sum(&destination.octets())
            }
            _ => 0,
        };
        let length = payload_bytes as u64;
        fold(addresses + u64::from(protocol) + (length >> 16) + (length & 0xffff))
    }

    /// The protocol number of ICMP in this family.
    pub(crate) fn icmp_protocol(self) -> u8 {
        match self.source {
            IpAddr::V4(_) => PROTOCOL_ICMP,
            IpAddr::V6(_) => PROTOCOL_ICMPV6,
        }
    }

    /// Fills in the checksum of the ICMP message, which `message` holds whole.
    pub(crate) fn finish_icmp(self, message: &mut [u8]) {
        message[2..4].fill(0);
        let pseudo = match self.source {
            IpAddr::V4(_) => 0,
            IpAddr::V6(_) => self.pseudo_header(PROTOCOL_ICMPV6, message.len()),
        };
        let checksum = !fold(sum(message) + u64::from(pseudo));
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
    }
}

/// Writes a UDP header with this value in its checksum field.
pub(crate) fn udp_header(
    buffer: &mut [u8],
    source: u16,
    destination: u16,
    payload_bytes: usize,
    checksum: u16,
) {
    let length = (UDP_HEADER_BYTES + payload_bytes) as u16;
    buffer[0..2].copy_from_slice(&source.to_be_bytes());
    buffer[2..4].copy_from_slice(&destination.to_be_bytes());
    buffer[4..6].copy_from_slice(&length.to_be_bytes());
    buffer[6..8].copy_from_slice(&checksum.to_be_bytes());
}

/// The sum of big-endian 16-bit words (RFC 1071), an odd last byte padded with zero.
pub(crate) fn sum(bytes: &[u8]) -> u64 {
    let mut chunks = bytes.chunks_exact(4);
    let mut total = chunks
        .by_ref()
        .map(|word| u64::from(u32::from_be_bytes([word[0], word[1], word[2], word[3]])))
        .sum::<u64>();
    match *chunks.remainder() {
        [a] => total += u64::from(a) << 8,
        [a, b] => total += u64::from(u16::from_be_bytes([a, b])),
        [a, b, c] => total += u64::from(u16::from_be_bytes([a, b])) + (u64::from(c) << 8),
        _ => {}
    }
    total
}

/// Folds a sum to 16 bits with end-around carry.
pub(crate) fn fold(mut total: u64) -> u16 {
    while total > 0xffff {
        total = (total >> 16) + (total & 0xffff);
    }
    total as u16
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "the addresses are literals")]

    use super::*;
    use smoltcp::wire::{Ipv4Packet, UdpPacket};

    #[test]
    fn the_sum_is_the_same_however_it_is_cut() {
        let bytes: Vec<u8> = (0..=255).cycle().take(1001).collect();
        let by_words: u64 = bytes
            .chunks(2)
            .map(|pair| u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |&b| u64::from(b)))
            .sum();
        assert_eq!(fold(sum(&bytes)), fold(by_words));
        for length in 0..8 {
            let by_words: u64 = bytes[..length]
                .chunks(2)
                .map(|pair| u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |&b| u64::from(b)))
                .sum();
            assert_eq!(fold(sum(&bytes[..length])), fold(by_words), "{length}");
        }
    }

    #[test]
    fn smoltcp_agrees_with_the_headers() {
        let route =
            Route { source: "192.0.2.1".parse().unwrap(), destination: "10.0.2.100".parse().unwrap() };
        let mut packet = [0_u8; 28 + 5];
        packet[28..].copy_from_slice(b"hello");
        route.header(&mut packet, 17, 13, None);
        let pseudo = route.pseudo_header(17, 13);
        udp_header(&mut packet[20..], 53, 4000, 5, 0);
        let checksum = !fold(sum(&packet[20..]) + u64::from(pseudo));
        udp_header(&mut packet[20..], 53, 4000, 5, checksum);
        let ip = Ipv4Packet::new_checked(&packet[..]).unwrap();
        assert!(ip.verify_checksum());
        let udp = UdpPacket::new_checked(ip.payload()).unwrap();
        assert!(udp.verify_checksum(&ip.src_addr().into(), &ip.dst_addr().into()));
        assert_eq!(udp.payload(), b"hello");
    }
}
