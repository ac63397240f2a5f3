//! The name server of the inner network.
//!
//! It answers names that it knows (the configuration's, `host.docker.internal`, the host's
//! /etc/hosts) and forwards every other query, as the bytes it came in, to the host's name
//! servers: over UDP what came over UDP, over TCP what came over TCP. Each query has a socket of
//! its own, so its source port is as hard to guess as its identification, and an ICMP error
//! reaches the query that caused it.
//!
//! All names pass through [`Dns::ask`]: a policy about domains would sit there.

mod conversation;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod message;
mod pending;
mod system;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use crate::config::{Config, Resolver};
use crate::host::SharedConversation;
use crate::poll::{Poller, Token, Trigger};
use crate::random::Random;
use crate::slab::{EntryId, Slab};
use crate::tcp::{FlowId, Readiness};
use crate::wheel::{Tick, Wheel};
pub(crate) use conversation::Conversation;
use message::{Kind, Query, ResponseCode};
use pending::{Pending, Progress};
pub use system::ResolvConf;
use system::{Followed, Hosts};

/// The names under which containers look for their host.
const HOST_NAMES: [&str; 3] = ["host.docker.internal", "host.containers.internal", "gateway.docker.internal"];

/// How long one server has. Resolvers inside wait five seconds before they ask again.
const ATTEMPT_MS: Tick = 2_000;

/// The largest message: its length field over TCP has 16 bits.
const MESSAGE_BYTES_MAX: usize = 65_535;

/// Who gets an answer.
#[derive(Clone)]
pub(crate) enum Asker {
    Datagram { inside: SocketAddr, server: SocketAddr },
    Conversation { flow: FlowId, conversation: SharedConversation },
}

/// An answer on its way.
pub(crate) struct Reply {
    pub(crate) to: Asker,
    pub(crate) message: Vec<u8>,
}

/// Told of the host's resolv.conf as it is read, at first and when it has changed.
pub type ResolvConfObserver = Box<dyn FnMut(&ResolvConf) + Send>;

pub(crate) struct Dns {
    /// Besides the queries there may be somebody who wants to know.
    observer: Option<ResolvConfObserver>,
    poller: Arc<Poller>,
    random: Random,
    resolver: Resolver,
    resolv_conf: Followed<ResolvConf>,
    hosts: Followed<Hosts>,
    /// Names of the configuration.
    names: Hosts,
    gateway: Ipv4Addr,
    pending: Slab<Pending>,
    pending_max: usize,
    wheel: Wheel,
    receive: Box<[u8]>,
}

impl Dns {
    pub(crate) fn new(config: &Config, poller: Arc<Poller>) -> Self {
        let mut names = Hosts::default();
        for host in &config.host_names {
            for &address in &host.addresses {
                names.insert(&host.name, address);
            }
        }
        let gateway = config.addresses.v4.gateway;
        for name in HOST_NAMES {
            if names.addresses(name).is_none() {
                names.insert(name, gateway.into());
            }
        }
        Self {
            observer: None,
            poller,
            random: Random::new(),
            resolver: config.resolver.clone(),
            resolv_conf: system::follow_resolv_conf(),
            hosts: system::follow_hosts(),
            names,
            gateway,
            pending: Slab::new(),
            pending_max: config.limits.dns_queries,
            wheel: Wheel::new(),
            receive: vec![0; MESSAGE_BYTES_MAX].into(),
        }
    }

    /// Has the host's resolv.conf told to `observer`. It is looked at when a name is asked for.
    pub(crate) fn observe(&mut self, observer: ResolvConfObserver) {
        self.observer = Some(observer);
    }

    /// Takes a query. Returns the answer if there is one at once.
    pub(crate) fn ask(&mut self, now: Tick, asker: Asker, message: &[u8]) -> Option<Reply> {
        if let Some(resolv_conf) = self.resolv_conf.refresh(now)
            && let Some(observer) = &mut self.observer
        {
            observer(resolv_conf);
        }
        let Ok(query) = message::parse_query(message)? else {
            let message = message::answer_format_error(message)?;
            return Some(Reply { to: asker, message });
        };
        if let Some(answer) = self.answer_known(now, &query, message) {
            return Some(Reply { to: asker, message: answer });
        }
        self.forward(now, asker, query, message)
    }

    /// The answer from the tables here.
    fn answer_known(&mut self, now: Tick, query: &Query, message: &[u8]) -> Option<Vec<u8>> {
        let hosts = self.hosts.get(now);
        if let Some(address) = query.reverse_address() {
            let name = self.names.name(address).or_else(|| hosts.name(address))?;
            return Some(query.answer_name(message, name));
        }
        if let Some(addresses) = self.names.addresses(&query.name) {
            return Some(query.answer_addresses(message, addresses));
        }
        if query.kind != Kind::A && query.kind != Kind::Aaaa {
            return None;
        }
        // The host's loopback is not the container's.
        let seen_inside = |&address: &IpAddr| {
            if address.is_loopback() { self.gateway.into() } else { address }
        };
        let addresses: Vec<IpAddr> = hosts.addresses(&query.name)?.iter().map(seen_inside).collect();
        Some(query.answer_addresses(message, &addresses))
    }

    fn forward(&mut self, now: Tick, asker: Asker, query: Query, message: &[u8]) -> Option<Reply> {
        let servers = match &self.resolver {
            Resolver::Host => self.resolv_conf.get(now).servers.clone(),
            Resolver::Servers(servers) => servers.clone(),
        };
        if self.pending.len() >= self.pending_max || servers.is_empty() {
            let message = query.answer_empty(message, ResponseCode::ServerFailure);
            return Some(Reply { to: asker, message });
        }
        let mut pending = Pending::new(asker, query, message, servers);
        if !self.send(now, self.pending.next_id(), &mut pending) {
            return Some(pending.into_failure());
        }
        self.pending.insert(pending);
        None
    }

    /// Sends the query to the server whose turn it is, or the next that can be sent to. Returns
    /// whether there was one.
    fn send(&mut self, now: Tick, id: EntryId, pending: &mut Pending) -> bool {
        while let Some(server) = pending.next_server() {
            let sent_id = self.random.next_u16();
            let sent = pending
                .send(server, sent_id)
                .and_then(|fd| self.poller.add(fd, Token::Dns(id), Trigger::Edge));
            if sent.is_ok() {
                self.wheel.set(id.index, now + ATTEMPT_MS);
                return true;
            }
        }
        false
    }

    /// Reads what a server sent. Returns the answer if it is one, or if no server is left.
    pub(crate) fn ready(&mut self, now: Tick, id: EntryId, readiness: Readiness) -> Option<Reply> {
        let pending = self.pending.get_mut(id)?;
        match pending.progress(readiness, &mut self.receive) {
            Progress::Wait => None,
            Progress::Answered(message) => {
                self.wheel.cancel(id.index);
                let to = self.pending.remove(id)?.asker;
                Some(Reply { to, message })
            }
            Progress::Failed => self.try_next(now, id),
        }
    }

    /// Sends overdue queries to the next server. Returns the failures of those without one.
    pub(crate) fn expire(&mut self, now: Tick) -> Vec<Reply> {
        let mut overdue = Vec::new();
        self.wheel.advance(now, |index| overdue.push(index));
        overdue
            .into_iter()
            .filter_map(|index| {
                let (id, _) = self.pending.at_mut(index)?;
                self.try_next(now, id)
            })
            .collect()
    }

    fn try_next(&mut self, now: Tick, id: EntryId) -> Option<Reply> {
        let mut pending = self.pending.remove(id)?;
        self.wheel.cancel(id.index);
        let id = self.pending.next_id();
        if !self.send(now, id, &mut pending) {
            return Some(pending.into_failure());
        }
        self.pending.insert(pending);
        None
    }

    /// When [`expire`](Self::expire) must be called next.
    pub(crate) fn next_deadline(&self) -> Option<Tick> {
        self.wheel.next()
    }
}
