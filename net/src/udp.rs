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
use crate::device::{FrameSink, Transmitter, Unreachable};
use crate::frame::{PROTOCOL_UDP, UDP_HEADER_BYTES};
use crate::policy::Policy;
use crate::poll::{Poller, Token, Trigger};
use crate::publish::Bound;
use crate::slab::{EntryId, Slab};
use crate::sys::datagram::{Inbox, Received, take_icmp_error};
use crate::tcp::Readiness;
use crate::wheel::{Tick, Wheel};

/// How long a mapping lives after its last datagram: while nothing has come back, and afterwards.
/// Linux's connection tracking uses the same.
const UNANSWERED_MS: Tick = 30_000;
const ANSWERED_MS: Tick = 180_000;

/// How long a published port's client is remembered.
const CLIENT_MS: Tick = 180_000;

/// Clients of published ports that are remembered at once.
const CLIENTS_MAX: usize = 8_192;

/// Batches that are read from one socket for one event.
const BATCHES_MAX: usize = 4;

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
    mappings: Slab<Mapping>,
    by_inside: HashMap<SocketAddr, EntryId>,
    mappings_max: usize,
    wheel: Wheel,
    published: HashMap<u32, Published>,
    clients: Clients,
    inbox: Inbox,
    outgoing: Outgoing,
}

/// A datagram from inside, or a train of them.
pub(crate) struct Datagram<'a> {
    /// The IP packet that it came in.
    pub(crate) packet: &'a [u8],
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
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Through {
    Mapping(EntryId),
    Published(u32),
}

struct Mapping {
    inside: SocketAddr,
    socket: UdpSocket,
    answered: bool,
    last_active: Tick,
}

struct Published {
    socket: OwnedFd,
    container_port: u16,
}

/// A client as the inside sees it, and the container's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct ClientKey {
    inside: SocketAddr,
    outside: SocketAddr,
}

struct Client {
    listener: u32,
    address: SocketAddr,
    /// The host's address that it had sent to.
    sent_to: Option<IpAddr>,
    last_active: Tick,
}

/// Why a datagram from inside was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Undelivered {
    /// The inside is told.
    Unreachable(Unreachable),
    /// The limit of mappings is reached.
    Limited,
    /// Lost, as datagrams may be.
    Lost,
}

impl Udp {
    pub(crate) fn new(limits: &Limits, policy: Policy, poller: Arc<Poller>) -> Self {
        Self {
            poller,
            policy,
            mappings: Slab::new(),
            by_inside: HashMap::new(),
            mappings_max: limits.udp_mappings,
            wheel: Wheel::new(),
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
        prepare(&socket);
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
        let key = (datagram.inside, datagram.outside);
        let way = match self.way(link, now, key, to) {
            Ok(way) => way,
            Err(undelivered) => return self.tell(link, key, datagram.packet, undelivered),
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
            Through::Mapping(id) => self.mappings.get_mut(id).map(|mapping| mapping.socket.as_fd()),
            Through::Published(index) => self.published.get(&index).map(|published| published.socket.as_fd()),
        };
        if let Some(socket) = socket
            && let Err(error) = send_all(socket, way, &outgoing.bytes, outgoing.segment_bytes)
        {
            self.tell(link, key, &outgoing.quoted, undelivered(&error));
        }
        outgoing.bytes.clear();
        self.outgoing = outgoing;
    }

    /// Finds or makes the socket for a datagram.
    fn way<S: FrameSink>(
        &mut self,
        link: &mut Transmitter<S>,
        now: Tick,
        (inside, outside): (SocketAddr, SocketAddr),
        to: Option<SocketAddr>,
    ) -> Result<Way, Undelivered> {
        if let Some(client) = self.clients.by_key.get_mut(&ClientKey { inside, outside }) {
            client.last_active = now;
            let through = Through::Published(client.listener);
            return Ok(Way { through, from: client.sent_to, to: client.address });
        }
        let to = to.ok_or(Undelivered::Unreachable(Unreachable::Port))?;
        let id = match self.by_inside.get(&inside) {
            Some(&id) => id,
            None => {
                link.counters.udp_mappings += 1;
                self.map(now, inside)?
            }
        };
        if let Some(mapping) = self.mappings.get_mut(id) {
            mapping.last_active = now;
        }
        Ok(Way { through: Through::Mapping(id), from: None, to })
    }

    /// Tells the inside that a datagram of its could not be delivered. A missing port is the
    /// destination's own message, the rest the gateway's.
    fn tell<S: FrameSink>(
        &self,
        link: &mut Transmitter<S>,
        (inside, outside): (SocketAddr, SocketAddr),
        quoted: &[u8],
        undelivered: Undelivered,
    ) {
        match undelivered {
            Undelivered::Lost => {}
            Undelivered::Limited => link.counters.limited += 1,
            Undelivered::Unreachable(why) => {
                let from = match why {
                    Unreachable::Port => outside.ip(),
                    _ => self.policy.addresses().gateway_like(outside.ip()),
                };
                link.unreachable_quoting(from, inside.ip(), quoted, why);
            }
        }
    }

    fn map(&mut self, now: Tick, inside: SocketAddr) -> Result<EntryId, Undelivered> {
        if self.mappings.len() >= self.mappings_max {
            return Err(Undelivered::Limited);
        }
        let any: IpAddr = match inside {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind(SocketAddr::new(any, 0)).map_err(|error| undelivered(&error))?;
        prepare(&socket);
        // Without it nobody tells the inside of a closed port.
        if inside.is_ipv4() {
            _ = setsockopt(&socket, sockopt::Ipv4RecvErr, &true);
        } else {
            _ = setsockopt(&socket, sockopt::Ipv6RecvErr, &true);
        }
        let id = self.mappings.next_id();
        socket
            .set_nonblocking(true)
            .and_then(|()| self.poller.add(&socket, Token::Udp(id), Trigger::Level))
            .map_err(|error| undelivered(&error))?;
        self.mappings.insert(Mapping { inside, socket, answered: false, last_active: now });
        self.by_inside.insert(inside, id);
        self.wheel.set(id.index, now + UNANSWERED_MS);
        Ok(id)
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
        let Some(mapping) = self.mappings.get_mut(id) else {
            return;
        };
        for _ in 0..BATCHES_MAX {
            let Ok(may_have_more) = self.inbox.receive(&mapping.socket) else { break };
            for received in self.inbox.iter() {
                let Some(from) = self.policy.answer_inside(received.from) else {
                    link.counters.prohibited += 1;
                    continue;
                };
                hand_in(link, from, mapping.inside, &received);
            }
            if !mapping.answered {
                mapping.answered = true;
                self.wheel.set(id.index, now + ANSWERED_MS);
            }
            mapping.last_active = now;
            if !may_have_more {
                break;
            }
        }
        link.depart();
    }

    /// Tells the inside of the ICMP errors that its datagrams met. The datagrams are gone; what an
    /// error quotes of one is made from its addresses.
    fn pass_errors_on<S: FrameSink>(&mut self, link: &mut Transmitter<S>, id: EntryId) {
        for _ in 0..ERRORS_MAX {
            let Some(mapping) = self.mappings.get_mut(id) else { return };
            let Some(error) = take_icmp_error(&mapping.socket) else { return };
            let inside = mapping.inside;
            let Some(outside) = self.policy.answer_inside(error.to) else { continue };
            let mut header = [0; UDP_HEADER_BYTES];
            udp_header(&mut header, inside.port(), outside.port(), 0, 0);
            let route = Route { source: inside.ip(), destination: outside.ip() };
            let Some(quoted) = route.packet(PROTOCOL_UDP, &header) else { return };
            let undelivered = undelivered(&io::Error::from_raw_os_error(error.errno));
            self.tell(link, (inside, outside), &quoted, undelivered);
        }
    }

    /// Hands in what clients have sent to a published port.
    pub(crate) fn published_ready<S: FrameSink>(&mut self, link: &mut Transmitter<S>, now: Tick, index: u32) {
        let Some(published) = self.published.get(&index) else { return };
        let container_port = published.container_port;
        for _ in 0..BATCHES_MAX {
            let Ok(may_have_more) = self.inbox.receive(&published.socket) else { break };
            for received in self.inbox.iter() {
                let outside = self.policy.source_inside(received.from);
                let container = self.policy.addresses().container_like(outside.ip());
                let inside = SocketAddr::new(container, container_port);
                match self.clients.remember(now, index, inside, outside, &received) {
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

    /// Ends mappings that have been silent for too long.
    pub(crate) fn expire(&mut self, now: Tick) {
        let mut due = Vec::new();
        self.wheel.advance(now, |index| due.push(index));
        for index in due {
            let Some((id, mapping)) = self.mappings.at_mut(index) else {
                continue;
            };
            let lifetime = if mapping.answered { ANSWERED_MS } else { UNANSWERED_MS };
            let end = mapping.last_active + lifetime;
            if end > now {
                self.wheel.set(index, end);
            } else if let Some(mapping) = self.mappings.remove(id) {
                self.by_inside.remove(&mapping.inside);
            }
        }
    }

    /// When [`expire`](Self::expire) must be called next.
    pub(crate) fn next_deadline(&self) -> Option<Tick> {
        self.wheel.next()
    }
}

/// The clients of published ports.
#[derive(Default)]
struct Clients {
    by_key: HashMap<ClientKey, Client>,
    swept_at: Tick,
}

impl Clients {
    /// Notes a client, so that answers find it. Its port as seen inside is another where two
    /// clients would look alike. None if there are too many.
    fn remember(
        &mut self,
        now: Tick,
        listener: u32,
        inside: SocketAddr,
        mut outside: SocketAddr,
        received: &Received<'_>,
    ) -> Option<SocketAddr> {
        const PORT_TRIES: u16 = 64;
        for _ in 0..PORT_TRIES {
            let key = ClientKey { inside, outside };
            match self.by_key.get_mut(&key) {
                Some(client) if client.listener == listener && client.address == received.from => {
                    client.last_active = now;
                    client.sent_to = received.sent_to;
                    return Some(outside);
                }
                Some(_) => outside.set_port(outside.port().wrapping_sub(1).max(1)),
                None => {
                    self.sweep(now);
                    if self.by_key.len() >= CLIENTS_MAX {
                        return None;
                    }
                    let client = Client {
                        listener,
                        address: received.from,
                        sent_to: received.sent_to,
                        last_active: now,
                    };
                    self.by_key.insert(key, client);
                    return Some(outside);
                }
            }
        }
        None
    }

    /// Forgets silent clients, once in their lifetime, or each second when there are too many.
    fn sweep(&mut self, now: Tick) {
        const FULL_SWEEP_MS: Tick = 1_000;
        let pause = if self.by_key.len() >= CLIENTS_MAX { FULL_SWEEP_MS } else { CLIENT_MS };
        if now < self.swept_at + pause {
            return;
        }
        self.swept_at = now;
        self.by_key.retain(|_, client| now < client.last_active + CLIENT_MS);
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
        self.quoted.extend(&datagram.packet[..datagram.packet.len().min(QUOTED_BYTES)]);
    }

    /// Whether others could join it.
    fn may_wait(&self) -> bool {
        !self.bytes.is_empty()
            && self.bytes.len() == self.segment_bytes
            && self.segment_bytes <= TRAIN_SEGMENT_MAX
    }
}

/// Settings that make a socket better and whose lack does no harm.
fn prepare(socket: &impl AsFd) {
    // Bursts wait here while the gateway is busy elsewhere.
    const RECEIVE_BYTES: usize = 1 << 20;
    _ = setsockopt(socket, sockopt::UdpGroSegment, &true);
    _ = setsockopt(socket, sockopt::RcvBuf, &RECEIVE_BYTES);
}

fn undelivered(error: &io::Error) -> Undelivered {
    match error.raw_os_error() {
        Some(libc::ENETUNREACH | libc::ENETDOWN | libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL) => {
            Undelivered::Unreachable(Unreachable::Network)
        }
        Some(libc::EHOSTUNREACH | libc::EHOSTDOWN) => Undelivered::Unreachable(Unreachable::Host),
        Some(libc::ECONNREFUSED) => Undelivered::Unreachable(Unreachable::Port),
        Some(libc::EACCES | libc::EPERM) => Undelivered::Unreachable(Unreachable::Prohibited),
        Some(libc::EMFILE | libc::ENFILE) => Undelivered::Limited,
        _ => Undelivered::Lost,
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
        // It may be an ICMP error about an earlier datagram, perhaps to somebody else: each is
        // reported once.
        Err(nix::Error::ECONNREFUSED | nix::Error::EHOSTUNREACH | nix::Error::ENETUNREACH) => {
            Ok(try_send(socket, way, payload, train)?)
        }
        result => Ok(result?),
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
    if let Some(size) = &train {
        control.push(ControlMessage::UdpGsoSegments(size));
    }
    let to = SockaddrStorage::from(way.to);
    sendmsg(socket.as_raw_fd(), &[IoSlice::new(payload)], &control, MsgFlags::MSG_DONTWAIT, Some(&to))?;
    Ok(())
}
