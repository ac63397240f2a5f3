//! The border to the TUN device: finishes packets on their way in, and lends itself to smoltcp.
//!
//! All packets go in through one [`Transmitter`], so this is where a packet capture or a shaper
//! of the inner side would sit. It writes the virtio-net header that tells the kernel what is
//! left to do: complete a checksum, cut a segment into packets.
//!
//! smoltcp is told of an MTU of 65,535, because its IPv6 side drops what is longer and reports no
//! segment size. The size comes from the peer's MSS instead, which the flow sets before it lets
//! its socket send.

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;

use smoltcp::phy::{self, Checksum, ChecksumCapabilities, DeviceCapabilities, Medium};
use smoltcp::time::Instant;

use crate::compose::{Part, Route, fold, sum, udp_header};
use crate::counters::Counters;
use crate::frame::{
    ICMP_HEADER_BYTES, IPV4_HEADER_BYTES, IPV6_HEADER_BYTES, PROTOCOL_TCP, PROTOCOL_UDP, Packet,
    TCP_HEADER_BYTES, UDP_HEADER_BYTES, be32,
};
use crate::link::Features;

/// The largest packet that goes through the device in one piece, and the largest IPv4 packet: the
/// length field has 16 bits. IPv6's does not count its header, and only a datagram in fragments
/// can be longer.
pub(crate) const PACKET_BYTES_MAX: usize = 65_535;

/// What may follow an IP header.
fn payload_bytes_max(route: Route) -> usize {
    if route.source.is_ipv6() { PACKET_BYTES_MAX } else { PACKET_BYTES_MAX - IPV4_HEADER_BYTES }
}

/// struct virtio_net_hdr: flags, kind of segmentation, header length, segment size, where the
/// checksum starts, and its offset from there; words in the machine's order.
pub const VNET_HEADER_BYTES: usize = 10;

const VNET_NEEDS_CHECKSUM: u8 = 1;
const VNET_SEGMENT_TCP4: u8 = 1;
const VNET_SEGMENT_TCP6: u8 = 4;
const VNET_SEGMENT_UDP: u8 = 5;

const TCP_CHECKSUM_OFFSET: u16 = 16;
const UDP_CHECKSUM_OFFSET: u16 = 6;

/// How much of a packet an ICMP error quotes: IPv6's least MTU less the error's own headers
/// (RFC 4443, 2.4), and RFC 1812's 576 bytes for IPv4.
const QUOTE_BYTES_V4: usize = 576 - IPV4_HEADER_BYTES - ICMP_HEADER_BYTES;
const QUOTE_BYTES_V6: usize = 1280 - IPV6_HEADER_BYTES - ICMP_HEADER_BYTES;

/// Where finished packets go, each with its virtio-net header in front.
pub trait FrameSink {
    /// Sends one packet. A failure means that this one is lost, as packets may be.
    ///
    /// # Errors
    /// Whatever the device says.
    fn send(&mut self, packet: &[u8]) -> io::Result<()>;
}

/// Why something could not be delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreachable {
    /// No route to the network.
    Network,
    /// No answer from the host.
    Host,
    /// Nothing listens on the port.
    Port,
    /// Policy or a firewall forbids it.
    Prohibited,
    /// It has passed as many routers as it may.
    HopLimit,
    /// It must be cut up, and must not be.
    TooBig {
        /// The MTU that would do.
        mtu_bytes: u16,
    },
}

impl Unreachable {
    /// Type, code and the second word, for IPv4 (RFC 792, 1812) or IPv6 (RFC 4443).
    pub(crate) fn message(self, is_v6: bool) -> ErrorMessage {
        let (kind, code, word) = match (self, is_v6) {
            (Self::Network, false) => (3, 0, 0),
            (Self::Host, false) => (3, 1, 0),
            (Self::Port, false) => (3, 3, 0),
            (Self::Prohibited, false) => (3, 13, 0),
            (Self::HopLimit, false) => (11, 0, 0),
            (Self::TooBig { mtu_bytes }, false) => (3, 4, u32::from(mtu_bytes)),
            (Self::Network, true) => (1, 0, 0),
            (Self::Host, true) => (1, 3, 0),
            (Self::Port, true) => (1, 4, 0),
            (Self::Prohibited, true) => (1, 1, 0),
            (Self::HopLimit, true) => (3, 0, 0),
            (Self::TooBig { mtu_bytes }, true) => (2, 0, u32::from(mtu_bytes)),
        };
        ErrorMessage { kind, code, word }
    }
}

/// The first two words of an ICMP error, but for the checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ErrorMessage {
    pub(crate) kind: u8,
    pub(crate) code: u8,
    pub(crate) word: u32,
}

/// Datagrams from one sender to one receiver, all of one size but the last, which may be shorter.
struct Train {
    endpoints: Option<(SocketAddr, SocketAddr)>,
    segment_bytes: usize,
    bytes: Vec<u8>,
    mtu_bytes: usize,
}

impl Train {
    /// What the kernel takes in one packet (UDP_MAX_SEGMENTS in older ones).
    const DATAGRAMS_MAX: usize = 64;

    fn new(mtu_bytes: usize) -> Self {
        Self { endpoints: None, segment_bytes: 0, bytes: Vec::new(), mtu_bytes }
    }

    /// Takes a datagram on, if it goes the same way and fits. An empty train takes any that the
    /// device can send whole.
    fn board(&mut self, source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> bool {
        let Some(endpoints) = self.endpoints else {
            let header_bytes = IPV6_HEADER_BYTES + UDP_HEADER_BYTES;
            if payload.is_empty() || header_bytes + payload.len() > self.mtu_bytes {
                return false;
            }
            self.endpoints = Some((source, destination));
            self.segment_bytes = payload.len();
            self.bytes.extend(payload);
            return true;
        };
        let is_full = self.bytes.len() + self.segment_bytes + IPV6_HEADER_BYTES + UDP_HEADER_BYTES
            > PACKET_BYTES_MAX
            || self.bytes.len() >= Self::DATAGRAMS_MAX * self.segment_bytes;
        // After a shorter one nothing can follow.
        let is_open = self.bytes.len().is_multiple_of(self.segment_bytes);
        let fits = !payload.is_empty() && payload.len() <= self.segment_bytes;
        if endpoints != (source, destination) || is_full || !is_open || !fits {
            return false;
        }
        self.bytes.extend(payload);
        true
    }
}

/// Sends packets into the namespace.
pub struct Transmitter<S> {
    sink: S,
    features: Features,
    mtu_bytes: usize,
    /// One packet with its virtio-net header.
    buffer: Box<[u8]>,
    /// The MSS of the peer whose socket sends next, without its options taken off.
    peer_segment: usize,
    /// The acknowledgement number of the last TCP segment sent.
    acknowledged: Option<u32>,
    identification: u32,
    /// Where the device cuts up trains of datagrams.
    train: Option<Train>,
    pub(crate) counters: Counters,
}

impl<S: FrameSink> Transmitter<S> {
    /// A transmitter for a device with these features.
    pub fn new(sink: S, features: Features, mtu_bytes: u16) -> Self {
        Self {
            sink,
            features,
            mtu_bytes: usize::from(mtu_bytes),
            buffer: vec![0; VNET_HEADER_BYTES + IPV6_HEADER_BYTES + PACKET_BYTES_MAX].into(),
            peer_segment: 0,
            acknowledged: None,
            identification: 0,
            train: features
                .has(Features::UDP_SEGMENTATION.with(Features::CHECKSUM))
                .then(|| Train::new(usize::from(mtu_bytes))),
            counters: Counters::default(),
        }
    }

    /// Where the packets go.
    pub fn sink_mut(&mut self) -> &mut S {
        &mut self.sink
    }

    /// What has passed.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Prepares for the segments of one TCP socket: sets the MSS that its peer announced.
    pub(crate) fn begin_flow(&mut self, peer_segment: usize) {
        self.peer_segment = peer_segment;
        self.acknowledged = None;
    }

    /// The acknowledgement number of the last segment since [`begin_flow`](Self::begin_flow).
    pub(crate) fn acknowledged(&self) -> Option<u32> {
        self.acknowledged
    }

    /// What smoltcp works with: this for sending, and a packet to receive where there is one.
    pub(crate) fn port<'a>(&'a mut self, packet: Option<&'a [u8]>) -> Port<'a, S> {
        Port { packet, transmitter: self }
    }

    /// Sends a UDP datagram, in fragments where it is longer than the MTU.
    pub(crate) fn datagram(&mut self, source: SocketAddr, destination: SocketAddr, payload: &[u8]) {
        let route = Route { source: source.ip(), destination: destination.ip() };
        let ip_bytes = route.header_bytes(None);
        let udp_bytes = UDP_HEADER_BYTES + payload.len();
        if udp_bytes > payload_bytes_max(route) {
            self.counters.dropped_inward += 1;
            return;
        }
        let packet = &mut self.buffer[VNET_HEADER_BYTES..];
        let udp = &mut packet[ip_bytes..ip_bytes + udp_bytes];
        udp[UDP_HEADER_BYTES..].copy_from_slice(payload);
        let pseudo = route.pseudo_header(PROTOCOL_UDP, udp_bytes);
        let whole = ip_bytes + udp_bytes <= self.mtu_bytes;
        let header = |udp: &mut [u8], checksum| {
            udp_header(udp, source.port(), destination.port(), payload.len(), checksum);
        };
        if whole && self.features.has(Features::CHECKSUM) {
            header(udp, pseudo);
            route.header(packet, PROTOCOL_UDP, udp_bytes, None);
            let vnet = VnetHeader::checksum(ip_bytes, UDP_CHECKSUM_OFFSET);
            self.send(ip_bytes + udp_bytes, vnet);
            return;
        }
        header(udp, 0);
        let checksum = match !fold(sum(udp) + u64::from(pseudo)) {
            // Zero means "no checksum" (RFC 768), so the other zero of one's complement is sent.
            0 => 0xffff,
            checksum => checksum,
        };
        header(udp, checksum);
        if whole {
            route.header(packet, PROTOCOL_UDP, udp_bytes, None);
            self.send(ip_bytes + udp_bytes, VnetHeader::default());
        } else {
            self.fragments(route, PROTOCOL_UDP, udp_bytes);
        }
    }

    /// Sends a datagram, or leaves it for a moment: those of one size from one sender go as a train
    /// that the kernel cuts up again. [`depart`](Self::depart) must follow.
    pub(crate) fn datagram_soon(&mut self, source: SocketAddr, destination: SocketAddr, payload: &[u8]) {
        let Some(train) = &mut self.train else {
            return self.datagram(source, destination, payload);
        };
        if train.board(source, destination, payload) {
            return;
        }
        self.depart();
        let boarded = self.train.as_mut().is_some_and(|train| train.board(source, destination, payload));
        if !boarded {
            self.datagram(source, destination, payload);
        }
    }

    /// Sends the train that waits, if one does.
    pub(crate) fn depart(&mut self) {
        let Some(mut train) = self.train.take() else { return };
        if let Some((source, destination)) = train.endpoints.take() {
            if train.bytes.len() <= train.segment_bytes {
                self.datagram(source, destination, &train.bytes);
            } else {
                self.send_train(source, destination, &train.bytes, train.segment_bytes);
            }
        }
        train.bytes.clear();
        self.train = Some(train);
    }

    /// Sends datagrams of `segment_bytes` each (the last may be shorter) that are in `payload`
    /// one after the other. They are of a size that the device cuts up.
    fn send_train(
        &mut self,
        source: SocketAddr,
        destination: SocketAddr,
        payload: &[u8],
        segment_bytes: usize,
    ) {
        let route = Route { source: source.ip(), destination: destination.ip() };
        let ip_bytes = route.header_bytes(None);
        let udp_bytes = UDP_HEADER_BYTES + payload.len();
        let packet = &mut self.buffer[VNET_HEADER_BYTES..];
        let udp = &mut packet[ip_bytes..ip_bytes + udp_bytes];
        udp[UDP_HEADER_BYTES..].copy_from_slice(payload);
        let pseudo = route.pseudo_header(PROTOCOL_UDP, udp_bytes);
        udp_header(udp, source.port(), destination.port(), payload.len(), pseudo);
        route.header(packet, PROTOCOL_UDP, udp_bytes, None);
        let vnet = VnetHeader {
            segmentation: VNET_SEGMENT_UDP,
            header_bytes: (ip_bytes + UDP_HEADER_BYTES) as u16,
            segment_bytes: segment_bytes as u16,
            ..VnetHeader::checksum(ip_bytes, UDP_CHECKSUM_OFFSET)
        };
        self.send(ip_bytes + udp_bytes, vnet);
    }

    /// Cuts what is in the buffer after one whole IP header's room into fragments.
    fn fragments(&mut self, route: Route, protocol: u8, payload_bytes: usize) {
        let first = VNET_HEADER_BYTES + route.header_bytes(None);
        let payload = self.buffer[first..first + payload_bytes].to_vec();
        self.identification = self.identification.wrapping_add(1);
        let part_header = route.header_bytes(Some(Part { identification: 0, offset: 0, more: false }));
        // All but the last carry a multiple of 8 bytes.
        let room = (self.mtu_bytes - part_header) & !7;
        for (index, bytes) in payload.chunks(room).enumerate() {
            let offset = index * room;
            let part = Part {
                identification: self.identification,
                offset,
                more: offset + bytes.len() < payload.len(),
            };
            let packet = &mut self.buffer[VNET_HEADER_BYTES..];
            packet[part_header..part_header + bytes.len()].copy_from_slice(bytes);
            route.header(packet, protocol, bytes.len(), Some(part));
            self.send(part_header + bytes.len(), VnetHeader::default());
        }
    }

    /// Sends an ICMP message whose checksum is still to be filled in.
    pub(crate) fn icmp(&mut self, route: Route, message: &[u8]) {
        let ip_bytes = route.header_bytes(None);
        if message.len() > payload_bytes_max(route) {
            self.counters.dropped_inward += 1;
            return;
        }
        let packet = &mut self.buffer[VNET_HEADER_BYTES..];
        let icmp = &mut packet[ip_bytes..ip_bytes + message.len()];
        icmp.copy_from_slice(message);
        route.finish_icmp(icmp);
        if ip_bytes + message.len() > self.mtu_bytes {
            self.fragments(route, route.icmp_protocol(), message.len());
        } else {
            route.header(packet, route.icmp_protocol(), message.len(), None);
            self.send(ip_bytes + message.len(), VnetHeader::default());
        }
    }

    /// Tells the sender of a packet that it could not be delivered, in the name of `from`.
    pub(crate) fn unreachable(&mut self, from: std::net::IpAddr, packet: &Packet<'_>, why: Unreachable) {
        self.unreachable_quoting(from, packet.source, packet.bytes, why);
    }

    /// The same, quoting these bytes of a packet that `to` sent.
    pub(crate) fn unreachable_quoting(
        &mut self,
        from: std::net::IpAddr,
        to: std::net::IpAddr,
        quoted: &[u8],
        why: Unreachable,
    ) {
        self.icmp_error(from, to, quoted, why.message(from.is_ipv6()));
    }

    /// Sends an ICMP error that quotes these bytes of a packet that `to` sent.
    pub(crate) fn icmp_error(
        &mut self,
        from: std::net::IpAddr,
        to: std::net::IpAddr,
        quoted: &[u8],
        error: ErrorMessage,
    ) {
        let route = Route { source: from, destination: to };
        let room = if from.is_ipv6() { QUOTE_BYTES_V6 } else { QUOTE_BYTES_V4 };
        let quoted = &quoted[..quoted.len().min(room)];
        let mut message = Vec::with_capacity(ICMP_HEADER_BYTES + quoted.len());
        message.extend([error.kind, error.code, 0, 0]);
        message.extend(error.word.to_be_bytes());
        message.extend(quoted);
        self.icmp(route, &message);
    }

    /// Completes a TCP packet that smoltcp wrote into the buffer, and sends it.
    fn finish_segment(&mut self, length: usize) {
        let packet = &mut self.buffer[VNET_HEADER_BYTES..VNET_HEADER_BYTES + length];
        let is_v6 = packet[0] >> 4 == 6;
        let ip_bytes = if is_v6 { IPV6_HEADER_BYTES } else { IPV4_HEADER_BYTES };
        let tcp = &packet[ip_bytes..];
        if tcp.len() < TCP_HEADER_BYTES {
            debug_assert!(false, "smoltcp sends TCP only");
            return;
        }
        let tcp_bytes = usize::from(tcp[12] >> 4) * 4;
        if tcp[13] & 0x10 != 0 {
            self.acknowledged = Some(be32(tcp, 8));
        }
        let payload_bytes = tcp.len() - tcp_bytes;
        let mut vnet = VnetHeader::default();
        if self.features.has(Features::CHECKSUM) {
            let pseudo = pseudo_header_of(packet, ip_bytes);
            let at = ip_bytes + usize::from(TCP_CHECKSUM_OFFSET);
            packet[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
            vnet = VnetHeader::checksum(ip_bytes, TCP_CHECKSUM_OFFSET);
        }
        // An MSS is meant without options (RFC 6691).
        let segment = self.peer_segment.saturating_sub(tcp_bytes - TCP_HEADER_BYTES);
        if segment > 0 && payload_bytes > segment {
            vnet.segmentation = if is_v6 { VNET_SEGMENT_TCP6 } else { VNET_SEGMENT_TCP4 };
            vnet.header_bytes = (ip_bytes + tcp_bytes) as u16;
            vnet.segment_bytes = segment as u16;
        }
        self.send(length, vnet);
    }

    /// Sends the packet in the buffer.
    fn send(&mut self, length: usize, vnet: VnetHeader) {
        let frame = &mut self.buffer[..VNET_HEADER_BYTES + length];
        vnet.write(frame);
        match self.sink.send(frame) {
            Ok(()) => {
                self.counters.packets_inward += 1;
                self.counters.bytes_inward += length as u64;
            }
            // A packet may be lost; a full queue, or an interface that is down, loses them.
            Err(_) => self.counters.dropped_inward += 1,
        }
    }
}

/// The pseudo header's sum of a finished IP packet.
fn pseudo_header_of(packet: &[u8], ip_bytes: usize) -> u16 {
    let addresses = if ip_bytes == IPV6_HEADER_BYTES { sum(&packet[8..40]) } else { sum(&packet[12..20]) };
    let length = (packet.len() - ip_bytes) as u64;
    fold(addresses + u64::from(PROTOCOL_TCP) + length)
}

#[derive(Debug, Clone, Copy, Default)]
struct VnetHeader {
    flags: u8,
    segmentation: u8,
    header_bytes: u16,
    segment_bytes: u16,
    checksum_start: u16,
    checksum_offset: u16,
}

impl VnetHeader {
    fn checksum(start: usize, offset: u16) -> Self {
        Self {
            flags: VNET_NEEDS_CHECKSUM,
            checksum_start: start as u16,
            checksum_offset: offset,
            ..Self::default()
        }
    }

    fn write(self, frame: &mut [u8]) {
        frame[0] = self.flags;
        frame[1] = self.segmentation;
        frame[2..4].copy_from_slice(&self.header_bytes.to_ne_bytes());
        frame[4..6].copy_from_slice(&self.segment_bytes.to_ne_bytes());
        frame[6..8].copy_from_slice(&self.checksum_start.to_ne_bytes());
        frame[8..10].copy_from_slice(&self.checksum_offset.to_ne_bytes());
    }
}

/// The size of the datagrams in a UDP train that came with this virtio-net header, if it is one.
pub(crate) fn train_segment(frame: &[u8]) -> Option<usize> {
    let header = frame.get(..VNET_HEADER_BYTES)?;
    let segment = u16::from_ne_bytes([header[4], header[5]]);
    (header[1] == VNET_SEGMENT_UDP && segment > 0).then_some(usize::from(segment))
}

/// A [`Transmitter`] lent to smoltcp for one call.
pub(crate) struct Port<'a, S> {
    packet: Option<&'a [u8]>,
    transmitter: &'a mut Transmitter<S>,
}

impl<S: FrameSink> phy::Device for Port<'_, S> {
    type RxToken<'t>
        = Received<'t>
    where
        Self: 't;
    type TxToken<'t>
        = Sending<'t, S>
    where
        Self: 't;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Sending<'_, S>)> {
        let packet = self.packet.take()?;
        Some((Received(packet), Sending(self.transmitter)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_, S>> {
        Some(Sending(self.transmitter))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let features = self.transmitter.features;
        let mut checksum = ChecksumCapabilities::ignored();
        checksum.ipv4 = Checksum::Tx;
        if !features.has(Features::CHECKSUM) {
            checksum.tcp = Checksum::Both;
        }
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = PACKET_BYTES_MAX;
        capabilities.checksum = checksum;
        if features.has(Features::TCP_SEGMENTATION) {
            capabilities.segmentation.tcpv4 = NonZeroUsize::new(PACKET_BYTES_MAX);
            capabilities.segmentation.tcpv6 = NonZeroUsize::new(PACKET_BYTES_MAX);
        }
        capabilities
    }
}

pub(crate) struct Received<'a>(&'a [u8]);

impl phy::RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

pub(crate) struct Sending<'a, S>(&'a mut Transmitter<S>);

impl<S: FrameSink> phy::TxToken for Sending<'_, S> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let packet = &mut self.0.buffer[VNET_HEADER_BYTES..VNET_HEADER_BYTES + length];
        let result = f(packet);
        self.0.finish_segment(length);
        result
    }
}
