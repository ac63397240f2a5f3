//! Reads an IP packet that came from inside: the border where hostile bytes are checked once.
//!
//! [`parse`] accepts exactly the packets that the rest of the crate can work on without looking
//! at lengths again: whole headers, a payload that lies within the buffer, unicast addresses of
//! one family. Everything else is [`Malformed`] or named as [`Transport::Other`], to be dropped
//! and counted. Checksums are not looked at: the kernel on the other end of the device made the
//! packet, or offloads left the sum unfinished.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub(crate) const IPV4_HEADER_BYTES: usize = 20;
pub(crate) const IPV6_HEADER_BYTES: usize = 40;
pub(crate) const TCP_HEADER_BYTES: usize = 20;
pub(crate) const UDP_HEADER_BYTES: usize = 8;
pub(crate) const ICMP_HEADER_BYTES: usize = 8;

pub(crate) const PROTOCOL_ICMP: u8 = 1;
pub(crate) const PROTOCOL_TCP: u8 = 6;
pub(crate) const PROTOCOL_UDP: u8 = 17;
pub(crate) const PROTOCOL_ICMPV6: u8 = 58;

const EXTENSION_HOP_BY_HOP: u8 = 0;
const EXTENSION_ROUTING: u8 = 43;
pub(crate) const EXTENSION_FRAGMENT: u8 = 44;
const EXTENSION_DESTINATION: u8 = 60;

/// More extension headers than any honest stack sends.
const EXTENSIONS_MAX: usize = 4;

/// Why a packet is dropped without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// Shorter than its own headers say.
    Truncated,
    /// Neither IPv4 nor IPv6.
    Version,
    /// A length field contradicts another.
    Length,
    /// Not from one host to one other.
    Address,
    /// More extension headers than are walked.
    Extensions,
}

/// A checked IP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Exactly the packet, without what came after it in the buffer.
    pub bytes: &'a [u8],
    /// Source and destination, of one family.
    pub source: IpAddr,
    /// See `source`.
    pub destination: IpAddr,
    /// Bytes before the transport's header, extension headers included.
    pub header_bytes: usize,
    /// IPv4's "do not fragment"; always so for IPv6.
    pub dont_fragment: bool,
    /// IPv4's "time to live", IPv6's hop limit.
    pub hop_limit: u8,
    /// What it carries.
    pub transport: Transport<'a>,
}

/// What an IP packet carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport<'a> {
    /// A TCP segment.
    Tcp(Segment),
    /// A UDP datagram.
    Udp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
        /// The payload.
        payload: &'a [u8],
    },
    /// An ICMP or ICMPv6 message of the packet's family, whole; at least 8 bytes.
    Icmp(&'a [u8]),
    /// A part of a larger packet.
    Fragment(Fragment<'a>),
    /// Something that is not forwarded.
    Other(u8),
}

/// The fields of a TCP header that the flow table needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// The first sequence number.
    pub sequence: u32,
    /// Sequence numbers that it takes: payload, SYN and FIN.
    pub length: u32,
    /// SYN flag.
    pub syn: bool,
    /// ACK flag.
    pub ack: bool,
    /// RST flag.
    pub rst: bool,
    /// FIN flag.
    pub fin: bool,
    /// The header with its options, in bytes.
    pub header_bytes: usize,
    /// The MSS option, of a SYN.
    pub maximum_segment: Option<u16>,
}

/// A fragment of an IP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment<'a> {
    /// The identification, 16 bits in IPv4.
    pub identification: u32,
    /// The transport's protocol number.
    pub protocol: u8,
    /// Where the payload goes, in bytes.
    pub offset: usize,
    /// Whether this is not the last.
    pub more: bool,
    /// The bytes.
    pub payload: &'a [u8],
}

impl Packet<'_> {
    /// Source and destination with the transport's ports.
    pub(crate) fn endpoints(&self, source: u16, destination: u16) -> (SocketAddr, SocketAddr) {
        (SocketAddr::new(self.source, source), SocketAddr::new(self.destination, destination))
    }
}

/// Checks one packet.
///
/// # Errors
/// [`Malformed`] says what is wrong with it.
pub fn parse(bytes: &[u8]) -> Result<Packet<'_>, Malformed> {
    match bytes.first().ok_or(Malformed::Truncated)? >> 4 {
        4 => parse_v4(bytes),
        6 => parse_v6(bytes),
        _ => Err(Malformed::Version),
    }
}

fn parse_v4(bytes: &[u8]) -> Result<Packet<'_>, Malformed> {
    if bytes.len() < IPV4_HEADER_BYTES {
        return Err(Malformed::Truncated);
    }
    let header_bytes = usize::from(bytes[0] & 0x0f) * 4;
    let total = usize::from(be16(bytes, 2));
    if header_bytes < IPV4_HEADER_BYTES || total < header_bytes {
        return Err(Malformed::Length);
    }
    let bytes = bytes.get(..total).ok_or(Malformed::Truncated)?;
    let source = Ipv4Addr::from(be32(bytes, 12));
    let destination = Ipv4Addr::from(be32(bytes, 16));
    let is_host = |a: Ipv4Addr| !a.is_unspecified() && !a.is_multicast() && !a.is_broadcast();
    if !is_host(source) || !is_host(destination) {
        return Err(Malformed::Address);
    }
    let flags_and_offset = be16(bytes, 6);
    let more = flags_and_offset & 0x2000 != 0;
    let offset = usize::from(flags_and_offset & 0x1fff) * 8;
    let payload = &bytes[header_bytes..];
    let transport = if more || offset > 0 {
        Transport::Fragment(Fragment {
            identification: u32::from(be16(bytes, 4)),
            protocol: bytes[9],
            offset,
            more,
            payload,
        })
    } else {
        parse_transport(bytes[9], PROTOCOL_ICMP, payload)?
    };
    Ok(Packet {
        bytes,
        source: source.into(),
        destination: destination.into(),
        header_bytes,
        dont_fragment: flags_and_offset & 0x4000 != 0,
        hop_limit: bytes[8],
        transport,
    })
}

fn parse_v6(bytes: &[u8]) -> Result<Packet<'_>, Malformed> {
    if bytes.len() < IPV6_HEADER_BYTES {
        return Err(Malformed::Truncated);
    }
    let total = IPV6_HEADER_BYTES + usize::from(be16(bytes, 4));
    let bytes = bytes.get(..total).ok_or(Malformed::Truncated)?;
    let address = |at: usize| Ipv6Addr::from(be128(bytes, at));
    let (source, destination) = (address(8), address(24));
    let is_host = |a: Ipv6Addr| !a.is_unspecified() && !a.is_multicast();
    if !is_host(source) || !is_host(destination) {
        return Err(Malformed::Address);
    }
    let mut next = bytes[6];
    let mut header_bytes = IPV6_HEADER_BYTES;
    let mut extensions = 0;
    let transport = loop {
        let rest = &bytes[header_bytes..];
        match next {
            EXTENSION_HOP_BY_HOP | EXTENSION_ROUTING | EXTENSION_DESTINATION => {
                extensions += 1;
                if extensions > EXTENSIONS_MAX {
                    return Err(Malformed::Extensions);
                }
                let length = match rest {
                    [_, length, ..] => (usize::from(*length) + 1) * 8,
                    _ => return Err(Malformed::Truncated),
                };
                if length > rest.len() {
                    return Err(Malformed::Truncated);
                }
                next = rest[0];
                header_bytes += length;
            }
            EXTENSION_FRAGMENT => {
                if rest.len() < 8 {
                    return Err(Malformed::Truncated);
                }
                let offset_and_more = be16(rest, 2);
                break Transport::Fragment(Fragment {
                    identification: be32(rest, 4),
                    protocol: rest[0],
                    offset: usize::from(offset_and_more & 0xfff8),
                    more: offset_and_more & 1 != 0,
                    payload: &rest[8..],
                });
            }
            // The stack behind reads TCP right after the fixed header.
            PROTOCOL_TCP if extensions > 0 => break Transport::Other(next),
            _ => break parse_transport(next, PROTOCOL_ICMPV6, rest)?,
        }
    };
    Ok(Packet {
        bytes,
        source: source.into(),
        destination: destination.into(),
        header_bytes,
        dont_fragment: true,
        hop_limit: bytes[7],
        transport,
    })
}

/// Reads the transport's header; `icmp` is the family's protocol number for it.
pub(crate) fn parse_transport(protocol: u8, icmp: u8, payload: &[u8]) -> Result<Transport<'_>, Malformed> {
    match protocol {
        PROTOCOL_TCP => parse_tcp(payload),
        PROTOCOL_UDP => parse_udp(payload),
        _ if protocol == icmp => {
            if payload.len() < ICMP_HEADER_BYTES {
                return Err(Malformed::Truncated);
            }
            Ok(Transport::Icmp(payload))
        }
        _ => Ok(Transport::Other(protocol)),
    }
}

fn parse_tcp(bytes: &[u8]) -> Result<Transport<'_>, Malformed> {
    if bytes.len() < TCP_HEADER_BYTES {
        return Err(Malformed::Truncated);
    }
    let header_bytes = usize::from(bytes[12] >> 4) * 4;
    if header_bytes < TCP_HEADER_BYTES {
        return Err(Malformed::Length);
    }
    if header_bytes > bytes.len() {
        return Err(Malformed::Truncated);
    }
    let (source, destination) = (be16(bytes, 0), be16(bytes, 2));
    if source == 0 || destination == 0 {
        return Err(Malformed::Address);
    }
    let flags = bytes[13];
    let (fin, syn) = (flags & 0x01 != 0, flags & 0x02 != 0);
    let payload_bytes = (bytes.len() - header_bytes) as u32;
    Ok(Transport::Tcp(Segment {
        source,
        destination,
        sequence: be32(bytes, 4),
        length: payload_bytes + u32::from(fin) + u32::from(syn),
        syn,
        ack: flags & 0x10 != 0,
        rst: flags & 0x04 != 0,
        fin,
        header_bytes,
        maximum_segment: syn.then(|| maximum_segment(&bytes[TCP_HEADER_BYTES..header_bytes])).flatten(),
    }))
}

/// The UDP datagram that an ICMP error from inside is about, as far as the error quotes it: its
/// source and destination. IPv6 with extension headers is not looked through.
pub(crate) fn quoted_datagram(quoted: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let (source, destination, protocol, header_bytes): (IpAddr, IpAddr, u8, usize) =
        match quoted.first()? >> 4 {
            4 if quoted.len() >= IPV4_HEADER_BYTES => (
                Ipv4Addr::from(be32(quoted, 12)).into(),
                Ipv4Addr::from(be32(quoted, 16)).into(),
                quoted[9],
                usize::from(quoted[0] & 0x0f) * 4,
            ),
            6 if quoted.len() >= IPV6_HEADER_BYTES => (
                Ipv6Addr::from(be128(quoted, 8)).into(),
                Ipv6Addr::from(be128(quoted, 24)).into(),
                quoted[6],
                IPV6_HEADER_BYTES,
            ),
            _ => return None,
        };
    let udp = quoted.get(header_bytes..).filter(|udp| udp.len() >= 4 && protocol == PROTOCOL_UDP)?;
    Some((SocketAddr::new(source, be16(udp, 0)), SocketAddr::new(destination, be16(udp, 2))))
}

/// The MSS option among TCP's options (RFC 9293, 3.2), if they are well formed up to it.
fn maximum_segment(mut options: &[u8]) -> Option<u16> {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const MAXIMUM_SEGMENT: u8 = 2;
    loop {
        match options {
            [] | [END, ..] => return None,
            [NO_OPERATION, rest @ ..] => options = rest,
            [MAXIMUM_SEGMENT, 4, high, low, ..] => {
                return Some(u16::from_be_bytes([*high, *low]));
            }
            [_, length, ..] if *length >= 2 => options = options.get(usize::from(*length)..)?,
            _ => return None,
        }
    }
}

fn parse_udp(bytes: &[u8]) -> Result<Transport<'_>, Malformed> {
    if bytes.len() < UDP_HEADER_BYTES {
        return Err(Malformed::Truncated);
    }
    let length = usize::from(be16(bytes, 4));
    // With segmentation offload the field holds the length of the whole train, as here.
    if length < UDP_HEADER_BYTES || length > bytes.len() {
        return Err(Malformed::Length);
    }
    let (source, destination) = (be16(bytes, 0), be16(bytes, 2));
    if source == 0 || destination == 0 {
        return Err(Malformed::Address);
    }
    Ok(Transport::Udp { source, destination, payload: &bytes[UDP_HEADER_BYTES..length] })
}

/// The big-endian word at an offset that the caller has checked.
pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from(be16(bytes, at)) << 16 | u32::from(be16(bytes, at + 2))
}

fn be128(bytes: &[u8], at: usize) -> u128 {
    bytes[at..at + 16].iter().fold(0, |word, &byte| word << 8 | u128::from(byte))
}
