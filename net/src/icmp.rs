//! ICMP echo from inside. Errors to the inside are sent where they arise.
//!
//! The gateway's own addresses are answered here. Everything else goes out through ping sockets
//! (icmp(7): datagram sockets of the ICMP protocol), which the host allows to the groups of
//! `net.ipv4.ping_group_range`. Such a socket has an identifier of its own, so each identifier
//! inside has a socket, as a UDP port has; the kernel makes and checks the checksums.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, socket,
};

use crate::compose::Route;
use crate::config::Limits;
use crate::device::{FrameSink, Transmitter, Unreachable};
use crate::frame::{ICMP_HEADER_BYTES, Packet};
use crate::policy::Policy;
use crate::poll::{Poller, Token, Trigger};
use crate::slab::{EntryId, Slab};
use crate::sys::datagram::Inbox;
use crate::wheel::{Tick, Wheel};

/// How long an identifier is remembered after its last request: as long as ping waits, and then
/// some. Linux's connection tracking uses the same.
const LIFETIME_MS: Tick = 30_000;

/// Batches of replies that are read for one event.
const BATCHES_MAX: usize = 4;

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
    mappings: Slab<Mapping>,
    by_key: HashMap<Key, EntryId>,
    mappings_max: usize,
    wheel: Wheel,
    inbox: Inbox,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    inside: IpAddr,
    identifier: [u8; 2],
}

struct Mapping {
    key: Key,
    socket: OwnedFd,
    last_active: Tick,
}

impl Icmp {
    pub(crate) fn new(limits: &Limits, policy: Policy, poller: Arc<Poller>) -> Self {
        Self {
            poller,
            policy,
            mappings: Slab::new(),
            by_key: HashMap::new(),
            mappings_max: limits.ping_mappings,
            wheel: Wheel::new(),
            inbox: Inbox::new(),
        }
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
        let key = Key { inside: packet.source, identifier: [message[4], message[5]] };
        match self.send(now, key, packet.destination, message) {
            Ok(()) => {}
            // Whoever pings is told that it is not allowed, rather than left to wait.
            Err(nix::Error::EACCES | nix::Error::EPERM) => {
                link.unreachable(from, packet, Unreachable::Prohibited);
            }
            Err(nix::Error::ENETUNREACH | nix::Error::EADDRNOTAVAIL | nix::Error::EAFNOSUPPORT) => {
                link.unreachable(from, packet, Unreachable::Network);
            }
            Err(nix::Error::EHOSTUNREACH) => link.unreachable(from, packet, Unreachable::Host),
            Err(_) => link.counters.limited += 1,
        }
    }

    fn send(&mut self, now: Tick, key: Key, to: IpAddr, message: &[u8]) -> nix::Result<()> {
        let id = match self.by_key.get(&key) {
            Some(&id) => id,
            None => self.map(now, key)?,
        };
        let Some(mapping) = self.mappings.get_mut(id) else { return Ok(()) };
        mapping.last_active = now;
        let to = SockaddrStorage::from(SocketAddr::new(to, 0));
        sendto(mapping.socket.as_raw_fd(), message, &to, MsgFlags::MSG_DONTWAIT)?;
        Ok(())
    }

    fn map(&mut self, now: Tick, key: Key) -> nix::Result<EntryId> {
        if self.mappings.len() >= self.mappings_max {
            return Err(nix::Error::EMFILE);
        }
        let (family, protocol) = match key.inside {
            IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
            IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
        };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(family, SockType::Datagram, flags, protocol)?;
        let id = self.mappings.next_id();
        self.poller.add(&socket, Token::Ping(id), Trigger::Level).map_err(|_| nix::Error::ENOMEM)?;
        self.mappings.insert(Mapping { key, socket, last_active: now });
        self.by_key.insert(key, id);
        self.wheel.set(id.index, now + LIFETIME_MS);
        Ok(id)
    }

    /// Hands in the replies that have arrived.
    pub(crate) fn ready<S: FrameSink>(&mut self, link: &mut Transmitter<S>, id: EntryId) {
        let Some(mapping) = self.mappings.get_mut(id) else { return };
        let echo = echo_of(mapping.key.inside);
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
                message[4..6].copy_from_slice(&mapping.key.identifier);
                link.icmp(Route { source: from, destination: mapping.key.inside }, &message);
            }
            if !may_have_more {
                break;
            }
        }
    }

    /// Forgets identifiers that are silent.
    pub(crate) fn expire(&mut self, now: Tick) {
        let mut due = Vec::new();
        self.wheel.advance(now, |index| due.push(index));
        for index in due {
            let Some((id, mapping)) = self.mappings.at_mut(index) else { continue };
            let end = mapping.last_active + LIFETIME_MS;
            if end > now {
                self.wheel.set(index, end);
            } else if let Some(mapping) = self.mappings.remove(id) {
                self.by_key.remove(&mapping.key);
            }
        }
    }

    /// When [`expire`](Self::expire) must be called next.
    pub(crate) fn next_deadline(&self) -> Option<Tick> {
        self.wheel.next()
    }
}
