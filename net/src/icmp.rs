//! ICMP from inside: echo, and the inside's word that a port is closed. Errors to the inside are
//! sent where they arise.
//!
//! The gateway's own addresses are answered here. Everything else goes out through ping sockets
//! (icmp(7): datagram sockets of the ICMP protocol), which the host allows to the groups of
//! `net.ipv4.ping_group_range`. Such a socket has an identifier of its own, so each identifier
//! inside has a socket, as a UDP port has; the kernel makes and checks the checksums.

use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendmsg,
    setsockopt, socket, sockopt,
};

use crate::compose::Route;
use crate::config::Limits;
use crate::delivery::{Undelivered, tell};
use crate::device::{FrameSink, Transmitter, Unreachable};
use crate::frame::{ICMP_HEADER_BYTES, Packet, quoted_datagram};
use crate::nat::Mappings;
use crate::policy::Policy;
use crate::poll::{Poller, Token, Trigger};
use crate::slab::EntryId;
use crate::sys::datagram::{Inbox, Oversize, set_oversize, take_error};
use crate::tcp::Readiness;
use crate::udp::onward_hop_limit;
use crate::wheel::Tick;

/// How long an identifier is remembered after its last request: as long as ping waits, and then
/// some. Linux's connection tracking uses the same.
const LIFETIME_MS: Tick = 30_000;

/// Batches of replies that are read for one event.
const BATCHES_MAX: usize = 4;

/// Errors that are read for one event.
const ERRORS_MAX: usize = 16;

/// Type numbers (RFC 792, RFC 4443).
struct Echo {
    request: u8,
    reply: u8,
}

const ECHO_V4: Echo = Echo { request: 8, reply: 0 };
const ECHO_V6: Echo = Echo { request: 128, reply: 129 };

fn echo_of(address: IpAddr) -> Echo {
    if address.is_ipv6() { ECHO_V6 } else { ECHO_V4 }
}

pub(crate) struct Icmp {
    poller: Arc<Poller>,
    policy: Policy,
    mappings: Mappings<Key, Mapping>,
    inbox: Inbox,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    inside: IpAddr,
    identifier: [u8; 2],
}

struct Mapping {
    socket: OwnedFd,
    oversize: Oversize,
}

/// Type and code of "port unreachable" (RFC 792, RFC 4443).
const PORT_UNREACHABLE_V4: [u8; 2] = [3, 3];
const PORT_UNREACHABLE_V6: [u8; 2] = [1, 4];

/// The datagram whose port is closed inside, if a message says so: where it came from, and where
/// it went.
pub(crate) fn refused_datagram(packet: &Packet<'_>, message: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let expected = if packet.source.is_ipv6() { PORT_UNREACHABLE_V6 } else { PORT_UNREACHABLE_V4 };
    let (outside, inside) = quoted_datagram(message.get(ICMP_HEADER_BYTES..)?)?;
    (message[..2] == expected && inside.ip() == packet.source).then_some((outside, inside))
}

impl Icmp {
    pub(crate) fn new(limits: &Limits, policy: Policy, poller: Arc<Poller>) -> Self {
        Self { poller, policy, mappings: Mappings::new(limits.ping_mappings), inbox: Inbox::new() }
    }

    /// Takes a message from inside; it has at least 8 bytes.
    pub(crate) fn message<S: FrameSink>(
        &mut self,
        link: &mut Transmitter<S>,
        now: Tick,
        packet: &Packet<'_>,
        message: &[u8],
    ) {
        let echo = echo_of(packet.source);
        if message[0] != echo.request || message[1] != 0 {
            link.counters.unforwardable += 1;
            return;
        }
        if self.policy.is_gateway(packet.destination) {
            let route = Route { source: packet.destination, destination: packet.source };
            let mut answer = message.to_vec();
            answer[0] = echo.reply;
            link.icmp(route, &answer);
            return;
        }
        let from = self.policy.addresses().gateway_like(packet.source);
        if !self.policy.may_leave(packet.destination) {
            link.counters.prohibited += 1;
            link.unreachable(from, packet, Unreachable::Prohibited);
            return;
        }
        let sent = onward_hop_limit(&self.policy, packet)
            .and_then(|hop_limit| self.send(now, packet, message, hop_limit));
        if let Err(undelivered) = sent {
            let ends = (packet.source, packet.destination);
            tell(link, &self.policy, ends, packet.bytes, undelivered);
        }
    }

    fn send(
        &mut self,
        now: Tick,
        packet: &Packet<'_>,
        message: &[u8],
        hop_limit: Option<u8>,
    ) -> Result<(), Undelivered> {
        let key = Key { inside: packet.source, identifier: [message[4], message[5]] };
        let is_v6 = packet.source.is_ipv6();
        let id = match self.mappings.find(&key) {
            Some(id) => id,
            None => self.map(now, key).map_err(|errno| Undelivered::of(&errno.into()))?,
        };
        self.mappings.touch(now, id);
        let Some((_, mapping)) = self.mappings.get_mut(id) else { return Ok(()) };
        let oversize = if packet.dont_fragment { Oversize::Refuse } else { Oversize::Fragment };
        if mapping.oversize != oversize {
            // Where it cannot be set, pings are cut up.
            _ = set_oversize(&mapping.socket, is_v6, oversize);
            mapping.oversize = oversize;
        }
        let hop_limit = hop_limit.map(libc::c_int::from);
        let control: Vec<_> = hop_limit
            .iter()
            .map(
                |limit| {
                    if is_v6 { ControlMessage::Ipv6HopLimit(limit) } else { ControlMessage::Ipv4Ttl(limit) }
                },
            )
            .collect();
        let to = SockaddrStorage::from(SocketAddr::new(packet.destination, 0));
        let socket = mapping.socket.as_raw_fd();
        let send = || {
            sendmsg(socket, &[IoSlice::new(message)], &control, MsgFlags::MSG_DONTWAIT, Some(&to)).map(drop)
        };
        // The first error may be one about an earlier ping.
        send().or_else(|_| send()).map_err(|errno| Undelivered::of(&errno.into()))
    }

    fn map(&mut self, now: Tick, key: Key) -> nix::Result<EntryId> {
        if self.mappings.is_full() {
            return Err(nix::Error::EMFILE);
        }
        let is_v6 = key.inside.is_ipv6();
        let (family, protocol) = if is_v6 {
            (AddressFamily::Inet6, SockProtocol::IcmpV6)
        } else {
            (AddressFamily::Inet, SockProtocol::Icmp)
        };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(family, SockType::Datagram, flags, protocol)?;
        // Without it the inside is not told of errors, and waits.
        if is_v6 {
            _ = setsockopt(&socket, sockopt::Ipv6RecvErr, &true);
        } else {
            _ = setsockopt(&socket, sockopt::Ipv4RecvErr, &true);
        }
        let id = self.mappings.next_id();
        self.poller.add(&socket, Token::Ping(id), Trigger::Level).map_err(|_| nix::Error::ENOMEM)?;
        let mapping = Mapping { socket, oversize: Oversize::Fragment };
        Ok(self.mappings.insert(now, key, mapping, LIFETIME_MS))
    }

    /// Hands in the replies and errors that have arrived.
    pub(crate) fn ready<S: FrameSink>(
        &mut self,
        link: &mut Transmitter<S>,
        id: EntryId,
        readiness: Readiness,
    ) {
        if readiness.hangup {
            self.pass_errors_on(link, id);
        }
        let Some((key, mapping)) = self.mappings.get_mut(id) else { return };
        let echo = echo_of(key.inside);
        for _ in 0..BATCHES_MAX {
            let Ok(may_have_more) = self.inbox.receive(&mapping.socket) else { break };
            for received in self.inbox.iter() {
                let from = received.from.ip();
                let is_reply =
                    received.payload.len() >= ICMP_HEADER_BYTES && received.payload[0] == echo.reply;
                if !is_reply || !self.policy.may_leave(from) {
                    continue;
                }
                let mut message = received.payload.to_vec();
                message[4..6].copy_from_slice(&key.identifier);
                link.icmp(Route { source: from, destination: key.inside }, &message);
            }
            if !may_have_more {
                break;
            }
        }
    }

    /// Tells the inside of the errors that its pings met. The host's socket has an identifier of
    /// its own; what is quoted has the inside's.
    fn pass_errors_on<S: FrameSink>(&mut self, link: &mut Transmitter<S>, id: EntryId) {
        let Some((key, mapping)) = self.mappings.get_mut(id) else { return };
        for _ in 0..ERRORS_MAX {
            let Some(error) = take_error(&mapping.socket) else { return };
            let mut header = error.quoted;
            header[..4].copy_from_slice(&[echo_of(key.inside).request, 0, 0, 0]);
            header[4..6].copy_from_slice(&key.identifier);
            let route = Route { source: key.inside, destination: error.to.ip() };
            if let Some(quoted) = route.packet(route.icmp_protocol(), &header) {
                let ends = (key.inside, error.to.ip());
                tell(link, &self.policy, ends, &quoted, Undelivered::of_queued(&error));
            }
        }
    }

    /// Forgets identifiers that are silent.
    pub(crate) fn expire(&mut self, now: Tick) {
        self.mappings.expire(now);
    }

    /// When [`expire`](Self::expire) must be called next.
    pub(crate) fn next_deadline(&self) -> Option<Tick> {
        self.mappings.next_deadline()
    }
}
