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
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
};

use crate::config::Limits;
use crate::device::{FrameSink, PACKET_BYTES_MAX, Transmitter, Unreachable};
use crate::policy::Policy;
use crate::poll::{Poller, Token, Trigger};
use crate::publish::Bound;
use crate::slab::{EntryId, Slab};
use crate::wheel::{Tick, Wheel};

/// How long a mapping lives after its last datagram: while nothing has come back, and afterwards.
/// Linux's connection tracking uses the same.
const UNANSWERED_MS: Tick = 30_000;
const ANSWERED_MS: Tick = 180_000;

/// How long a published port's client is remembered.
const CLIENT_MS: Tick = 180_000;

/// Clients of published ports that are remembered at once.
const CLIENTS_MAX: usize = 8_192;

/// Datagrams (or trains of them) that are read from one socket for one event.
const DATAGRAMS_MAX: usize = 64;

/// Room for the control messages: a destination address and a segment size.
const CONTROL_BYTES: usize = 128;

pub(crate) struct Udp {
    poller: Arc<Poller>,
    policy: Policy,
    mappings: Slab<Mapping>,
    by_inside: HashMap<SocketAddr, EntryId>,
    mappings_max: usize,
    wheel: Wheel,
    published: HashMap<u32, Published>,
    clients: HashMap<ClientKey, Client>,
    clients_swept_at: Tick,
    receive: Box<[u8]>,
    control: Box<[u8]>,
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

/// What a socket gave.
struct Received {
    length: usize,
    from: SocketAddr,
    sent_to: Option<IpAddr>,
    /// The size of the datagrams, if it is a train of them.
    segment_bytes: Option<usize>,
}

/// Why a datagram from inside was not sent.
pub(crate) enum Undelivered {
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
            clients: HashMap::new(),
            clients_swept_at: 0,
            receive: vec![0; PACKET_BYTES_MAX].into(),
            control: vec![0; CONTROL_BYTES].into(),
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

    /// Sends a datagram, or a train of datagrams of `segment_bytes`, from inside to an address of
    /// the host's side. `outside` is that address as the inside sees it.
    pub(crate) fn send<S: FrameSink>(
        &mut self,
        link: &mut Transmitter<S>,
        now: Tick,
        key: (SocketAddr, SocketAddr),
        to: Option<SocketAddr>,
        payload: &[u8],
        segment_bytes: Option<usize>,
    ) -> Result<(), Undelivered> {
        let (inside, outside) = key;
        let segment_bytes = segment_bytes.filter(|&size| size < payload.len());
        if let Some(client) = self.clients.get_mut(&ClientKey { inside, outside })
            && let Some(published) = self.published.get(&client.listener)
        {
            client.last_active = now;
            let sent = send_to(&published.socket, client.address, client.sent_to, payload, segment_bytes);
            return sent.map_err(|error| undelivered(&error));
        }
        let Some(to) = to else {
            return Err(Undelivered::Unreachable(Unreachable::Port));
        };
        let mapping = match self.by_inside.get(&inside) {
            Some(&id) => self.mappings.get_mut(id),
            None => {
                let id = self.map(now, inside)?;
                link.counters.udp_mappings += 1;
                self.mappings.get_mut(id)
            }
        };
        let Some(mapping) = mapping else {
            debug_assert!(false, "the map names live mappings only");
            return Err(Undelivered::Lost);
        };
        mapping.last_active = now;
        send_to(&mapping.socket, to, None, payload, segment_bytes).map_err(|error| undelivered(&error))
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
    pub(crate) fn mapping_ready<S: FrameSink>(&mut self, link: &mut Transmitter<S>, now: Tick, id: EntryId) {
        let Some(mapping) = self.mappings.get_mut(id) else {
            return;
        };
        for _ in 0..DATAGRAMS_MAX {
            let Some(received) = receive(&mapping.socket, &mut self.receive, &mut self.control) else {
                break;
            };
            let Some(from) = self.policy.answer_inside(received.from) else {
                link.counters.prohibited += 1;
                continue;
            };
            if !mapping.answered {
                mapping.answered = true;
                self.wheel.set(id.index, now + ANSWERED_MS);
            }
            mapping.last_active = now;
            hand_in(link, from, mapping.inside, &received, &self.receive);
        }
    }

    /// Hands in what clients have sent to a published port. Returns whether there is one of that
    /// number.
    pub(crate) fn published_ready<S: FrameSink>(
        &mut self,
        link: &mut Transmitter<S>,
        now: Tick,
        index: u32,
    ) -> bool {
        if !self.published.contains_key(&index) {
            return false;
        }
        for _ in 0..DATAGRAMS_MAX {
            let Some(published) = self.published.get(&index) else {
                break;
            };
            let Some(received) = receive(&published.socket, &mut self.receive, &mut self.control) else {
                break;
            };
            let outside = self.policy.source_inside(received.from);
            let addresses = self.policy.addresses();
            let inside = SocketAddr::new(addresses.container_like(outside.ip()), published.container_port);
            let Some(outside) = self.remember(now, index, inside, outside, &received) else {
                link.counters.limited += 1;
                continue;
            };
            hand_in(link, outside, inside, &received, &self.receive);
        }
        true
    }

    /// Notes a client, so that answers find it. Its port as seen inside is another where two
    /// clients would look alike.
    fn remember(
        &mut self,
        now: Tick,
        listener: u32,
        inside: SocketAddr,
        mut outside: SocketAddr,
        received: &Received,
    ) -> Option<SocketAddr> {
        const PORT_TRIES: u16 = 64;
        for _ in 0..PORT_TRIES {
            let key = ClientKey { inside, outside };
            match self.clients.get_mut(&key) {
                Some(client) if client.listener == listener && client.address == received.from => {
                    client.last_active = now;
                    client.sent_to = received.sent_to;
                    return Some(outside);
                }
                Some(_) => outside.set_port(outside.port().wrapping_sub(1).max(1)),
                None => {
                    self.sweep_clients(now);
                    if self.clients.len() >= CLIENTS_MAX {
                        return None;
                    }
                    self.clients.insert(
                        key,
                        Client {
                            listener,
                            address: received.from,
                            sent_to: received.sent_to,
                            last_active: now,
                        },
                    );
                    return Some(outside);
                }
            }
        }
        None
    }

    /// Forgets silent clients, once in their lifetime or when there are too many.
    fn sweep_clients(&mut self, now: Tick) {
        const FULL_SWEEP_MS: Tick = 1_000;
        let full = self.clients.len() >= CLIENTS_MAX;
        let pause = if full { FULL_SWEEP_MS } else { CLIENT_MS };
        if now < self.clients_swept_at + pause {
            return;
        }
        self.clients_swept_at = now;
        self.clients.retain(|_, client| now < client.last_active + CLIENT_MS);
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

/// Settings that make a socket better and whose lack does no harm.
fn prepare(socket: &impl std::os::fd::AsFd) {
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
    received: &Received,
    buffer: &[u8],
) {
    let payload = &buffer[..received.length];
    match received.segment_bytes {
        Some(segment_bytes) => link.datagram_train(from, inside, payload, segment_bytes),
        None => link.datagram(from, inside, payload),
    }
}

/// Reads one datagram or train; none if there is none, or an error took its place.
fn receive(socket: &impl AsRawFd, buffer: &mut [u8], control: &mut [u8]) -> Option<Received> {
    let mut parts = [IoSliceMut::new(buffer)];
    let message =
        recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(control), MsgFlags::MSG_DONTWAIT)
            .ok()?;
    let from = socket_address(&message.address?)?;
    let mut received = Received { length: message.bytes, from, sent_to: None, segment_bytes: None };
    for control in message.cmsgs().ok()? {
        match control {
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                let address = Ipv4Addr::from(u32::from_be(info.ipi_spec_dst.s_addr));
                received.sent_to = Some(address.into());
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                received.sent_to = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).into());
            }
            ControlMessageOwned::UdpGroSegments(size) => {
                received.segment_bytes = usize::try_from(size).ok();
            }
            _ => {}
        }
    }
    Some(received)
}

/// Sends one datagram, or a train of `segment_bytes` each; `from` is the address to send from.
fn send_to(
    socket: &impl AsRawFd,
    to: SocketAddr,
    from: Option<IpAddr>,
    payload: &[u8],
    segment_bytes: Option<usize>,
) -> io::Result<()> {
    // The kernel cuts a train into 64 at most (UDP_MAX_SEGMENTS), each within the path's MTU.
    const TRAIN_DATAGRAMS_MAX: usize = 64;
    if let Some(size) = segment_bytes {
        for train in payload.chunks(size * TRAIN_DATAGRAMS_MAX) {
            let as_train = u16::try_from(size).ok().filter(|_| train.len() > size);
            if send_one(socket, to, from, train, as_train).is_err() {
                for datagram in train.chunks(size) {
                    send_one(socket, to, from, datagram, None)?;
                }
            }
        }
        return Ok(());
    }
    send_one(socket, to, from, payload, None)
}

fn send_one(
    socket: &impl AsRawFd,
    to: SocketAddr,
    from: Option<IpAddr>,
    payload: &[u8],
    train: Option<u16>,
) -> io::Result<()> {
    let v4_info;
    let v6_info;
    let mut control = Vec::new();
    match from {
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
    sendmsg(
        socket.as_raw_fd(),
        &[IoSlice::new(payload)],
        &control,
        MsgFlags::MSG_DONTWAIT,
        Some(&SockaddrStorage::from(to)),
    )?;
    Ok(())
}

fn socket_address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = storage.as_sockaddr_in() {
        return Some(SocketAddr::new(v4.ip().into(), v4.port()));
    }
    let v6 = storage.as_sockaddr_in6()?;
    // The zone of a link-local client is kept, as it cannot be answered without.
    Some(std::net::SocketAddrV6::from(*v6).into())
}
