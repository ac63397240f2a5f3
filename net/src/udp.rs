//! UDP in both directions: a full-cone NAT, and published ports.
//!
//! A *mapping* is a container's port and one unconnected socket of the host. It sends to any
//! destination and hands in whatever arrives at it, from anyone (full cone, RFC 3489), so
//! protocols that find their peers through third parties work. It ends after a silence.
//!
//! A published port's socket hands in what its clients send, with their true addresses. What the
//! container sends back from that port to such a client goes out of the same socket, and from the
//! host address that the client had sent to.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg, setsockopt, sockopt};

use crate::compose::{Route, udp_header};
use crate::config::Limits;
use crate::delivery::{Undelivered, tell};
use crate::device::{FrameSink, Transmitter, Unreachable};
use crate::frame::{PROTOCOL_UDP, Packet, UDP_HEADER_BYTES};
use crate::nat::{Client, Clients, Mappings};
use crate::policy::Policy;
use crate::poll::{Poller, Token, Trigger};
use crate::publish::Bound;
use crate::slab::EntryId;
use crate::sys::datagram::{Complaint, Inbox, Oversize, Received, set_oversize, take_error};
use crate::tcp::Readiness;
use crate::wheel::Tick;

/// How long a mapping lives after its last datagram: while nothing has come back, and afterwards.
/// Linux's connection tracking uses the same.
const UNANSWERED_MS: Tick = 30_000;
const ANSWERED_MS: Tick = 180_000;

/// Batches that are read from one socket for one event.
const BATCHES_MAX: usize = 4;

/// A smaller hop limit than this was chosen by the sender, as traceroute does, and is kept. Others
/// get the host's own, so that the extra router shows nowhere.
const HOP_LIMIT_USUAL: u8 = 64;

/// ICMP errors that are read from one socket for one event.
const ERRORS_MAX: usize = 16;

/// Datagrams that leave in one system call, and their bytes: what the kernel cuts up
/// (UDP_MAX_SEGMENTS in older ones; 64 KiB less headers).
const TRAIN_DATAGRAMS_MAX: usize = 64;
const TRAIN_BYTES_MAX: usize = 60_000;

/// Larger ones may not fit the path's MTU, and a train's datagrams must.
const TRAIN_SEGMENT_MAX: usize = 1_472;

/// How much of a packet is kept to tell its sender that it could not be delivered: the IP header
/// and 8 bytes are the least, an IPv6 header and UDP's are 48.
const QUOTED_BYTES: usize = 64;

pub(crate) struct Udp {
    poller: Arc<Poller>,
    policy: Policy,
    /// By the container's address and port.
    mappings: Mappings<SocketAddr, Mapping>,
    published: HashMap<u32, Published>,
    clients: Clients,
    inbox: Inbox,
    outgoing: Outgoing,
}

/// A datagram from inside, or a train of them.
pub(crate) struct Datagram<'a> {
    /// The IP packet that it came in.
    pub(crate) packet: &'a Packet<'a>,
    pub(crate) inside: SocketAddr,
    /// Where it goes, as the inside sees it.
    pub(crate) outside: SocketAddr,
    pub(crate) payload: &'a [u8],
    /// The size of the datagrams, if it is a train of them.
    pub(crate) segment_bytes: Option<usize>,
}

/// Datagrams on their way out that wait for more of their kind.
#[derive(Default)]
struct Outgoing {
    way: Option<Way>,
    segment_bytes: usize,
    bytes: Vec<u8>,
    /// The first one's packet, as far as it is quoted in an error.
    quoted: Vec<u8>,
    key: Option<(SocketAddr, SocketAddr)>,
}

/// The socket that a datagram leaves through, and its addresses there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Way {
    through: Through,
    from: Option<IpAddr>,
    to: SocketAddr,
    oversize: Oversize,
    hop_limit: Option<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Through {
    Mapping(EntryId),
    Published(u32),
}

struct Mapping {
    socket: UdpSocket,
    oversize: Oversize,
    /// Where the last datagram went, as the inside sees it.
    last_outside: SocketAddr,
}

struct Published {
    socket: OwnedFd,
    container_port: u16,
}

impl Udp {
    pub(crate) fn new(limits: &Limits, policy: Policy, poller: Arc<Poller>) -> Self {
        Self {
            poller,
            policy,
            mappings: Mappings::new(limits.udp_mappings),
            published: HashMap::new(),
            clients: Clients::default(),
            inbox: Inbox::new(),
            outgoing: Outgoing::default(),
        }
    }

    /// Takes over a published port's socket, under the number of its listener.
    pub(crate) fn publish(&mut self, index: u32, socket: OwnedFd, bound: &Bound) -> io::Result<()> {
        // Without it the answer leaves from the address that the route back has.
        if bound.address.is_ipv4() {
            _ = setsockopt(&socket, sockopt::Ipv4PacketInfo, &true);
        } else {
            _ = setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true);
        }
        prepare(&socket, bound.address.is_ipv6());
        self.poller.add(&socket, Token::Listener(index), Trigger::Level)?;
        let container_port = bound.container_port;
        self.published.insert(index, Published { socket, container_port });
        Ok(())
    }

    /// Sends a datagram, or a train of datagrams of `segment_bytes`, from inside. `to` is where it
    /// goes on the host's side, none if there is only a published port's client that it could be
    /// for. It may wait for more of its kind: [`flush`](Self::flush) must follow.
    pub(crate) fn send<S: FrameSink>(
        &mut self,
        link: &mut Transmitter<S>,
        now: Tick,
        datagram: &Datagram<'_>,
        to: Option<SocketAddr>,
    ) {
        let way = match self.way(link, now, datagram, to) {
            Ok(way) => way,
            Err(undelivered) => {
                let ends = (datagram.inside.ip(), datagram.outside.ip());
                return tell(link, &self.policy, ends, datagram.packet.bytes, undelivered);
            }
        };
        if self.outgoing.board(way, datagram) {
            return;
        }
        self.flush(link);
        self.outgoing.start(way, datagram);
        if !self.outgoing.may_wait() {
            self.flush(link);
        }
    }

    /// Sends what waits.
    pub(crate) fn flush<S: FrameSink>(&mut self, link: &mut Transmitter<S>) {
        let (Some(way), Some(key)) = (self.outgoing.way.take(), self.outgoing.key.take()) else { return };
        let mut outgoing = std::mem::take(&mut self.outgoing);
        let socket = match way.through {
            Through::Mapping(id) => self.mappings.get_mut(id).map(|(inside, mapping)| {
                if mapping.oversize != way.oversize {
                    // Where it cannot be set, datagrams are cut up, as most senders wish.
                    _ = set_oversize(&mapping.socket, inside.is_ipv6(), way.oversize);
                    mapping.oversize = way.oversize;
                }
                mapping.socket.as_fd()
            }),
            Through::Published(index) => self.published.get(&index).map(|published| published.socket.as_fd()),
        };
        if let Some(socket) = socket
            && let Err(error) = send_all(socket, way, &outgoing.bytes, outgoing.segment_bytes)
        {
            let ends = (key.0.ip(), key.1.ip());
            let is_oversize = error.raw_os_error() == Some(libc::EMSGSIZE);
            let undelivered = if is_oversize { too_big(socket) } else { Undelivered::of(&error) };
            tell(link, &self.policy, ends, &outgoing.quoted, undelivered);
        }
        outgoing.bytes.clear();
        self.outgoing = outgoing;
    }

    /// Finds or makes the socket for a datagram.
    fn way<S: FrameSink>(
        &mut self,
        link: &mut Transmitter<S>,
        now: Tick,
        datagram: &Datagram<'_>,
        to: Option<SocketAddr>,
    ) -> Result<Way, Undelivered> {
        let Datagram { packet, inside, outside, .. } = *datagram;
        let hop_limit = onward_hop_limit(&self.policy, packet)?;
        let oversize = if packet.dont_fragment { Oversize::Refuse } else { Oversize::Fragment };
        if let Some(client) = self.clients.find(now, inside, outside) {
            let through = Through::Published(client.listener);
            return Ok(Way { through, from: client.sent_to, to: client.address, oversize, hop_limit });
        }
        let to = to.ok_or(Undelivered::Unreachable(Unreachable::Port))?;
        let id = match self.mappings.find(&inside) {
            Some(id) => id,
            None => {
                let id = self.map(now, inside, outside)?;
                link.counters.udp_mappings += 1;
                id
            }
        };
        self.mappings.touch(now, id);
        if let Some((_, mapping)) = self.mappings.get_mut(id) {
            mapping.last_outside = outside;
        }
        Ok(Way { through: Through::Mapping(id), from: None, to, oversize, hop_limit })
    }

    fn map(&mut self, now: Tick, inside: SocketAddr, outside: SocketAddr) -> Result<EntryId, Undelivered> {
        if self.mappings.is_full() {
            return Err(Undelivered::Limited);
        }
        let any: IpAddr = match inside {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind(SocketAddr::new(any, 0)).map_err(|error| Undelivered::of(&error))?;
        prepare(&socket, inside.is_ipv6());
        let id = self.mappings.next_id();
        socket
            .set_nonblocking(true)
            .and_then(|()| self.poller.add(&socket, Token::Udp(id), Trigger::Level))
            .map_err(|error| Undelivered::of(&error))?;
        let mapping = Mapping { socket, oversize: Oversize::Fragment, last_outside: outside };
        Ok(self.mappings.insert(now, inside, mapping, UNANSWERED_MS))
    }

    /// Takes the inside's word that nobody there is at a port any more: its mapping ends, and
    /// whoever sends to it next is told by the host's kernel. Only if the mapping's last
    /// correspondent is the one who was turned away: a connected socket turns strangers away.
    pub(crate) fn inside_refuses(&mut self, inside: SocketAddr, outside: SocketAddr) {
        if let Some(id) = self.mappings.find(&inside)
            && let Some((_, mapping)) = self.mappings.get_mut(id)
            && mapping.last_outside == outside
        {
            self.mappings.remove(id);
        }
    }

    /// Hands in what has arrived at a mapping.
    pub(crate) fn mapping_ready<S: FrameSink>(
        &mut self,
        link: &mut Transmitter<S>,
        now: Tick,
        id: EntryId,
        readiness: Readiness,
    ) {
        if readiness.hangup {
            self.pass_errors_on(link, id);
        }
        for _ in 0..BATCHES_MAX {
            let Some((inside, mapping)) = self.mappings.get_mut(id) else { break };
            let Ok(may_have_more) = self.inbox.receive(&mapping.socket) else { break };
            for received in self.inbox.iter() {
                let Some(from) = self.policy.answer_inside(received.from) else {
                    link.counters.prohibited += 1;
                    continue;
                };
                hand_in(link, from, inside, &received);
            }
            self.mappings.touch(now, id);
            self.mappings.set_lifetime(id, ANSWERED_MS);
            if !may_have_more {
                break;
            }
        }
        link.depart();
    }

    /// Tells the inside of the errors that its datagrams met.
    fn pass_errors_on<S: FrameSink>(&mut self, link: &mut Transmitter<S>, id: EntryId) {
        for _ in 0..ERRORS_MAX {
            let Some((inside, mapping)) = self.mappings.get_mut(id) else { return };
            let Some(error) = take_error(&mapping.socket) else { return };
            if let Some(outside) = self.policy.answer_inside(error.to) {
                tell_later(link, &self.policy, inside, outside, Undelivered::of_queued(&error));
            }
        }
    }

    /// Hands in what clients have sent to a published port.
    pub(crate) fn published_ready<S: FrameSink>(
        &mut self,
        link: &mut Transmitter<S>,
        now: Tick,
        index: u32,
        readiness: Readiness,
    ) {
        if readiness.hangup {
            self.pass_clients_errors_on(link, index);
        }
        let Some(published) = self.published.get(&index) else { return };
        let container_port = published.container_port;
        for _ in 0..BATCHES_MAX {
            let Ok(may_have_more) = self.inbox.receive(&published.socket) else { break };
            for received in self.inbox.iter() {
                let outside = self.policy.source_inside(received.from);
                let container = self.policy.addresses().container_like(outside.ip());
                let inside = SocketAddr::new(container, container_port);
                let client = Client { listener: index, address: received.from, sent_to: received.sent_to };
                match self.clients.remember(now, inside, outside, client) {
                    Some(outside) => hand_in(link, outside, inside, &received),
                    None => link.counters.limited += 1,
                }
            }
            if !may_have_more {
                break;
            }
        }
        link.depart();
    }

    /// Tells the inside of the errors that its answers to clients met.
    fn pass_clients_errors_on<S: FrameSink>(&mut self, link: &mut Transmitter<S>, index: u32) {
        let Some(published) = self.published.get(&index) else { return };
        for _ in 0..ERRORS_MAX {
            let Some(error) = take_error(&published.socket) else { return };
            let wanted = self.policy.source_inside(error.to);
            let container = self.policy.addresses().container_like(wanted.ip());
            let inside = SocketAddr::new(container, published.container_port);
            if let Some(outside) = self.clients.appearance(inside, wanted, index, error.to) {
                tell_later(link, &self.policy, inside, outside, Undelivered::of_queued(&error));
            }
        }
    }

    /// Ends mappings that have been silent for too long.
    pub(crate) fn expire(&mut self, now: Tick) {
        self.mappings.expire(now);
    }

    /// When [`expire`](Self::expire) must be called next.
    pub(crate) fn next_deadline(&self) -> Option<Tick> {
        self.mappings.next_deadline()
    }
}

impl Outgoing {
    /// Takes a datagram on, if it goes the same way and has the same size; a shorter one is the
    /// last.
    fn board(&mut self, way: Way, datagram: &Datagram<'_>) -> bool {
        let payload = datagram.payload;
        let is_open = self.segment_bytes > 0 && self.bytes.len().is_multiple_of(self.segment_bytes);
        let has_room = self.bytes.len() + payload.len() <= TRAIN_BYTES_MAX
            && self.bytes.len() < TRAIN_DATAGRAMS_MAX * self.segment_bytes;
        let fits =
            !payload.is_empty() && payload.len() <= self.segment_bytes && datagram.segment_bytes.is_none();
        if self.way != Some(way) || !is_open || !has_room || !fits {
            return false;
        }
        self.bytes.extend(payload);
        true
    }

    /// Starts over with this datagram or train.
    fn start(&mut self, way: Way, datagram: &Datagram<'_>) {
        self.way = Some(way);
        self.key = Some((datagram.inside, datagram.outside));
        self.segment_bytes = datagram.segment_bytes.unwrap_or(datagram.payload.len());
        self.bytes.clear();
        self.bytes.extend(datagram.payload);
        self.quoted.clear();
        let packet = datagram.packet.bytes;
        self.quoted.extend(&packet[..packet.len().min(QUOTED_BYTES)]);
    }

    /// Whether others could join it.
    fn may_wait(&self) -> bool {
        !self.bytes.is_empty()
            && self.bytes.len() == self.segment_bytes
            && self.segment_bytes <= TRAIN_SEGMENT_MAX
    }
}

/// Settings that make a socket better and whose lack does no harm.
fn prepare(socket: &impl AsFd, is_v6: bool) {
    // Bursts wait here while the gateway is busy elsewhere.
    const RECEIVE_BYTES: usize = 1 << 20;
    _ = setsockopt(socket, sockopt::UdpGroSegment, &true);
    _ = setsockopt(socket, sockopt::RcvBuf, &RECEIVE_BYTES);
    // Without it nobody tells the inside of a closed port.
    if is_v6 {
        _ = setsockopt(socket, sockopt::Ipv6RecvErr, &true);
    } else {
        _ = setsockopt(socket, sockopt::Ipv4RecvErr, &true);
    }
}

/// The hop limit that a packet from inside goes on with; none is the host's own.
///
/// # Errors
/// It may not go on.
pub(crate) fn onward_hop_limit(policy: &Policy, packet: &Packet<'_>) -> Result<Option<u8>, Undelivered> {
    if policy.is_gateway(packet.destination) {
        return Ok(None);
    }
    match packet.hop_limit {
        0 | 1 => Err(Undelivered::Unreachable(Unreachable::HopLimit)),
        limit => Ok((limit < HOP_LIMIT_USUAL).then(|| limit - 1)),
    }
}

/// The MTU of the path that a datagram did not fit, as the kernel has just noted it. What else waits
/// in the queue is let go: it is rare beside this, and will come again.
fn too_big(socket: BorrowedFd<'_>) -> Undelivered {
    let mut undelivered = Undelivered::Lost;
    for _ in 0..ERRORS_MAX {
        let Some(error) = take_error(socket) else { break };
        if matches!(error.complaint, Complaint::Local { errno: libc::EMSGSIZE, .. }) {
            undelivered = Undelivered::of_queued(&error);
        }
    }
    undelivered
}

/// Tells the inside of a datagram that is gone: what the error quotes is made from its addresses.
fn tell_later<S: FrameSink>(
    link: &mut Transmitter<S>,
    policy: &Policy,
    inside: SocketAddr,
    outside: SocketAddr,
    undelivered: Undelivered,
) {
    let mut header = [0; UDP_HEADER_BYTES];
    udp_header(&mut header, inside.port(), outside.port(), 0, 0);
    let route = Route { source: inside.ip(), destination: outside.ip() };
    if let Some(quoted) = route.packet(PROTOCOL_UDP, &header) {
        tell(link, policy, (inside.ip(), outside.ip()), &quoted, undelivered);
    }
}

/// Sends into the namespace what a socket gave.
fn hand_in<S: FrameSink>(
    link: &mut Transmitter<S>,
    from: SocketAddr,
    inside: SocketAddr,
    received: &Received<'_>,
) {
    match received.segment_bytes {
        Some(segment_bytes) => {
            for datagram in received.payload.chunks(segment_bytes) {
                link.datagram_soon(from, inside, datagram);
            }
        }
        None => link.datagram_soon(from, inside, received.payload),
    }
}

/// Sends datagrams of `segment_bytes` each (the last may be shorter), in trains where there are
/// several.
fn send_all(socket: BorrowedFd<'_>, way: Way, bytes: &[u8], segment_bytes: usize) -> io::Result<()> {
    if bytes.len() <= segment_bytes {
        return send_one(socket, way, bytes, None);
    }
    let train_bytes = (TRAIN_BYTES_MAX / segment_bytes).clamp(1, TRAIN_DATAGRAMS_MAX) * segment_bytes;
    for train in bytes.chunks(train_bytes) {
        let size = u16::try_from(segment_bytes).ok().filter(|_| train.len() > segment_bytes);
        if size.is_some() && send_one(socket, way, train, size).is_ok() {
            continue;
        }
        // One that the kernel does not cut up: a device without checksums, or a small MTU.
        for datagram in train.chunks(segment_bytes) {
            send_one(socket, way, datagram, None)?;
        }
    }
    Ok(())
}

fn send_one(socket: BorrowedFd<'_>, way: Way, payload: &[u8], train: Option<u16>) -> io::Result<()> {
    match try_send(socket, way, payload, train) {
        Err(errno @ (nix::Error::EAGAIN | nix::Error::ENOBUFS | nix::Error::ENOMEM)) => Err(errno.into()),
        // It may be an ICMP error about an earlier datagram, perhaps to somebody else: each is
        // reported once.
        Err(_) => Ok(try_send(socket, way, payload, train)?),
        Ok(()) => Ok(()),
    }
}

fn try_send(socket: BorrowedFd<'_>, way: Way, payload: &[u8], train: Option<u16>) -> nix::Result<()> {
    let v4_info;
    let v6_info;
    let mut control = Vec::new();
    match way.from {
        Some(IpAddr::V4(address)) => {
            v4_info = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr { s_addr: u32::from(address).to_be() },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            control.push(ControlMessage::Ipv4PacketInfo(&v4_info));
        }
        Some(IpAddr::V6(address)) => {
            v6_info = libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr { s6_addr: address.octets() },
                ipi6_ifindex: 0,
            };
            control.push(ControlMessage::Ipv6PacketInfo(&v6_info));
        }
        None => {}
    }
    let hop_limit = way.hop_limit.map(libc::c_int::from);
    match &hop_limit {
        Some(hop_limit) if way.to.is_ipv6() => control.push(ControlMessage::Ipv6HopLimit(hop_limit)),
        Some(hop_limit) => control.push(ControlMessage::Ipv4Ttl(hop_limit)),
        None => {}
    }
    if let Some(size) = &train {
        control.push(ControlMessage::UdpGsoSegments(size));
    }
    let to = SockaddrStorage::from(way.to);
    sendmsg(socket.as_raw_fd(), &[IoSlice::new(payload)], &control, MsgFlags::MSG_DONTWAIT, Some(&to))?;
    Ok(())
}
