//! The TCP flow table: every connection between the inside and the host's side.
//!
//! # Theory of operation
//! A flow joins two TCP connections. The *inner* one runs between the kernel inside and a smoltcp
//! socket here that plays the remote host; the *outer* one is a socket of the host's kernel, a
//! [`Stream`]. Bytes, ends and resets are passed from one to the other.
//!
//! Each flow owns its smoltcp socket in a set of its own, behind a map from the pair of endpoints
//! to the flow. A packet thus costs one look-up and one socket's work, however many flows there
//! are (a shared set would look at every socket for every packet).
//!
//! **Outward.** A SYN from inside starts a non-blocking connect; only the SYN's bytes are kept.
//! When the connect succeeds, a listening socket is made and fed the SYN. When it fails, the SYN
//! is answered with RST or an ICMP error, as the host's error was. So the inside sees what it
//! would see without a gateway, and a flood of SYNs costs no buffers.
//!
//! **Inward.** A client of a published port has been accepted already; the inner connection is
//! opened with the client's address and port as its source. When it is refused, the client is
//! reset.
//!
//! **Work.** Whatever happens to a flow marks it dirty. Once a turn each dirty flow moves bytes
//! both ways, lets its socket send, and sets its timer. A full ring is the back-pressure: the
//! host's socket is not read, or the window inside closes.
//!
//! **Ends.** Half-closed connections live as long as both ends want. TIME-WAIT is not held here:
//! the kernel inside, or the host's, does that for its own ports.

mod connection;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;

use smoltcp::iface::{Config as InterfaceConfig, Interface, SocketSet};
use smoltcp::wire::HardwareAddress;

use crate::clock::{self, Now};
use crate::compose::{Route, fold, sum};
use crate::config::Limits;
use crate::device::{FrameSink, Transmitter, Unreachable};
use crate::frame::{self, PROTOCOL_TCP, Packet, Segment, Transport};
use crate::nat::port_before;
use crate::slab::GENERATION_MASK;
use crate::sys::ring::Arena;
use crate::wheel::{Tick, Wheel};
use connection::{Connection, Fate, Supply};

/// SYNs to the inside that may wait for their answer. More could overflow a server's backlog,
/// and a SYN that is dropped there costs its client a second.
const INWARD_HANDSHAKES_MAX: usize = 256;

/// Other source ports that are tried for a client whose own is taken.
const PORT_TRIES: u16 = 512;

/// How long pages of free buffers are kept for the next connection.
const TRIM_AFTER_MS: Tick = 1_000;

/// The wheel's key for the arena; flows have their index.
const TRIM_KEY: u32 = 0;

/// One end of a flow's host side, non-blocking.
pub trait Stream {
    /// The outcome of a connect that has ended.
    ///
    /// # Errors
    /// Why it failed.
    fn connected(&mut self) -> io::Result<()>;
    /// Reads; 0 is the peer's end.
    ///
    /// # Errors
    /// As read(2).
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize>;
    /// Writes.
    ///
    /// # Errors
    /// As write(2).
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;
    /// Tells the peer that nothing more will be written.
    fn shutdown_write(&mut self);
    /// Makes the coming drop a reset.
    fn reset(&mut self);
}

/// The side of the host: opens the outer connections. Policy lives behind it.
pub trait Host {
    /// What it opens.
    type Stream: Stream;
    /// Starts to connect to an address as the inside sees it. Readiness is reported with
    /// [`Tcp::ready`], the end of the connect as writability.
    ///
    /// # Errors
    /// What the inside is told instead.
    fn connect(&mut self, id: FlowId, to: SocketAddr) -> Result<Self::Stream, Refusal>;
}

/// How a connection attempt from inside is turned down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// RST.
    Reset,
    /// An ICMP error.
    Unreachable(Unreachable),
    /// No answer; the attempt is repeated and then times out.
    Silence,
}

impl Refusal {
    /// What the kernel inside would have been told in the host's place.
    #[must_use]
    pub fn of(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENETUNREACH | libc::ENETDOWN | libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL) => {
                Self::Unreachable(Unreachable::Network)
            }
            // After a time-out the inside would wait on for as long as its own settings say.
            Some(libc::EHOSTUNREACH | libc::EHOSTDOWN | libc::ETIMEDOUT) => {
                Self::Unreachable(Unreachable::Host)
            }
            Some(libc::EACCES | libc::EPERM) => Self::Unreachable(Unreachable::Prohibited),
            // Out of descriptors or memory: the attempt is repeated, and may find some then.
            Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::EAGAIN) => Self::Silence,
            _ => Self::Reset,
        }
    }
}

/// Names a flow.
pub use crate::slab::EntryId as FlowId;

/// The two endpoints of an inner connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// The container's.
    pub inside: SocketAddr,
    /// The remote one, as the inside sees it.
    pub outside: SocketAddr,
}

/// What the host's kernel says about a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Readiness {
    /// There is something to read, an end or an error among it.
    pub readable: bool,
    /// There is room to write.
    pub writable: bool,
    /// The peer's end or an error is there, perhaps behind data.
    pub hangup: bool,
}

/// The flow table. See the module.
pub struct Tcp<S> {
    interface: Interface,
    flows: Vec<Place<S>>,
    free: Vec<u32>,
    by_key: HashMap<FlowKey, u32>,
    dirty: Vec<u32>,
    serving: Vec<u32>,
    wheel: Wheel,
    arena: Arena,
    limits: Limits,
    live: usize,
    connecting: usize,
    handshakes: usize,
    /// Bytes in all rings.
    queued: usize,
}

struct Place<S> {
    generation: u32,
    dirty: bool,
    flow: Option<Flow<S>>,
}

struct Flow<S> {
    key: FlowKey,
    phase: Phase<S>,
}

enum Phase<S> {
    /// The host's connect is under way; the bytes are the SYN's headers.
    Connecting { stream: S, syn: Box<[u8]> },
    /// The inner connection exists.
    Joined(Box<Joined<S>>),
}

struct Joined<S> {
    connection: Connection<S>,
    /// An inward connection that the inside has not answered yet, and what to try when it is
    /// refused.
    handshake: Option<Handshake>,
}

struct Handshake {
    fallback: Option<FlowKey>,
}

impl<S: Stream> Tcp<S> {
    /// An empty table for this device, whose abilities it keeps in mind. `seed` makes the initial
    /// sequence numbers.
    pub fn new<F: FrameSink>(link: &mut Transmitter<F>, limits: Limits, seed: u64) -> Self {
        let mut config = InterfaceConfig::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let start = Now::from_micros(0).instant();
        let mut interface = Interface::new(config, &mut link.port(None), start);
        interface.set_any_ip(true);
        Self {
            interface,
            // Place 0 is the arena's in the wheel.
            flows: vec![Place { generation: 0, dirty: false, flow: None }],
            free: Vec::new(),
            by_key: HashMap::new(),
            dirty: Vec::new(),
            serving: Vec::new(),
            wheel: Wheel::new(),
            arena: Arena::new(),
            limits,
            live: 0,
            connecting: 0,
            handshakes: 0,
            queued: 0,
        }
    }

    /// How many flows there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.live
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// Whether another client of a published port can be taken on now.
    #[must_use]
    pub fn may_accept(&self) -> bool {
        self.handshakes < INWARD_HANDSHAKES_MAX && self.live < self.limits.tcp_flows
    }

    /// Whether [`serve`](Self::serve) has something to do.
    #[must_use]
    pub fn has_work(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// When [`expire`](Self::expire) must be called next, in milliseconds since the start.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        self.wheel.next()
    }

    /// Takes a segment from inside.
    pub fn segment<F: FrameSink>(
        &mut self,
        host: &mut impl Host<Stream = S>,
        link: &mut Transmitter<F>,
        now: Now,
        packet: &Packet<'_>,
        segment: &Segment,
    ) {
        let (inside, outside) = packet.endpoints(segment.source, segment.destination);
        let key = FlowKey { inside, outside };
        let Some(&index) = self.by_key.get(&key) else {
            if segment.syn && !segment.ack && !segment.rst {
                self.open(host, link, now, key, packet, segment);
            } else if !segment.rst {
                self.answer_reset(link, now, packet.bytes);
            }
            return;
        };
        let Some(flow) = &mut self.flows[index as usize].flow else {
            debug_assert!(false, "the map names live flows only");
            return;
        };
        match &mut flow.phase {
            Phase::Connecting { .. } if segment.rst => self.remove(index),
            // The SYN again, or something that cannot come before its answer.
            Phase::Connecting { .. } => {}
            Phase::Joined(joined) => {
                if self.queued >= self.limits.buffer_bytes && joined.connection.exceeds_share(segment) {
                    link.counters.limited += 1;
                    return;
                }
                joined.connection.receive(&mut self.interface, link, now, packet.bytes, segment);
                self.mark(index);
            }
        }
    }

    /// Starts the host's connect for a SYN.
    fn open<F: FrameSink>(
        &mut self,
        host: &mut impl Host<Stream = S>,
        link: &mut Transmitter<F>,
        now: Now,
        key: FlowKey,
        packet: &Packet<'_>,
        segment: &Segment,
    ) {
        // Data that comes with a SYN is ignored by the stack, and sent again.
        let syn = only_headers(packet, segment);
        if self.live >= self.limits.tcp_flows || self.connecting >= self.limits.tcp_connecting {
            link.counters.limited += 1;
            self.refuse(link, now, key, &syn, Refusal::Reset);
            return;
        }
        let index = self.vacant();
        match host.connect(self.id(index), key.outside) {
            Ok(stream) => {
                link.counters.tcp_flows += 1;
                self.connecting += 1;
                self.insert(index, Flow { key, phase: Phase::Connecting { stream, syn } });
            }
            Err(refusal) => {
                self.free.push(index);
                self.refuse(link, now, key, &syn, refusal);
            }
        }
    }

    /// Opens an inner connection for a client of a published port. `adopt` makes the stream for
    /// the flow's name. `fallback` is tried when the inside refuses the first.
    ///
    /// # Errors
    /// Whatever `adopt` says, or the lack of a buffer.
    pub fn publish(
        &mut self,
        now: Now,
        key: FlowKey,
        fallback: Option<FlowKey>,
        adopt: impl FnOnce(FlowId) -> io::Result<S>,
    ) -> io::Result<()> {
        let key = self.untaken(key).ok_or_else(|| io::Error::from(io::ErrorKind::AddrInUse))?;
        let index = self.vacant();
        let ring_bytes = self.ring_bytes();
        let joined = adopt(self.id(index)).and_then(|stream| {
            Connection::connect(&mut self.interface, &self.arena, ring_bytes, now, key, stream)
        });
        let connection = match joined {
            Ok(connection) => connection,
            Err(error) => {
                self.free.push(index);
                return Err(error);
            }
        };
        self.handshakes += 1;
        let handshake = Some(Handshake { fallback });
        self.insert(index, Flow { key, phase: Phase::Joined(Box::new(Joined { connection, handshake })) });
        self.mark(index);
        Ok(())
    }

    /// Notes what the host's kernel says about a flow's stream.
    pub fn ready<F: FrameSink>(
        &mut self,
        link: &mut Transmitter<F>,
        now: Now,
        id: FlowId,
        readiness: Readiness,
    ) {
        let Some(place) = self.flows.get_mut(id.index as usize) else {
            return;
        };
        if place.generation != id.generation {
            return;
        }
        match place.flow.as_mut().map(|flow| &mut flow.phase) {
            None => {}
            Some(Phase::Joined(joined)) => {
                joined.connection.ready(readiness);
                self.mark(id.index);
            }
            Some(Phase::Connecting { .. }) => self.connected(link, now, id.index, readiness),
        }
    }

    /// Joins a flow whose connect has ended, or refuses it.
    fn connected<F: FrameSink>(
        &mut self,
        link: &mut Transmitter<F>,
        now: Now,
        index: u32,
        readiness: Readiness,
    ) {
        if !readiness.writable && !readiness.hangup {
            return;
        }
        let ring_bytes = self.ring_bytes();
        let Some(flow) = self.take(index) else { return };
        let Phase::Connecting { mut stream, syn } = flow.phase else {
            debug_assert!(false, "the caller has looked");
            return;
        };
        let key = flow.key;
        let outcome = stream.connected();
        // Reset means that it was connected, if only for a moment; refused is another error.
        let was_reset = outcome.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset);
        let joined = if was_reset { Ok(()) } else { outcome }.and_then(|()| {
            Connection::accept(&mut self.interface, &self.arena, ring_bytes, link, now, key, &syn, stream)
        });
        match joined {
            Ok(mut connection) => {
                connection.ready(readiness);
                if was_reset {
                    connection.reset_by_host();
                }
                self.connecting -= 1;
                self.flows[index as usize].flow = Some(Flow {
                    key,
                    phase: Phase::Joined(Box::new(Joined { connection, handshake: None })),
                });
                self.mark(index);
            }
            Err(error) => {
                self.connecting -= 1;
                self.vacate(index, key);
                self.refuse(link, now, key, &syn, Refusal::of(&error));
            }
        }
    }

    /// Serves every dirty flow once: moves bytes, sends, sets timers, removes what has ended.
    pub fn serve<F: FrameSink>(&mut self, link: &mut Transmitter<F>, now: Now) {
        clock::set_timestamp(now);
        let mut serving = std::mem::replace(&mut self.dirty, std::mem::take(&mut self.serving));
        for index in serving.drain(..) {
            self.serve_one(link, now, index);
        }
        self.serving = serving;
    }

    fn serve_one<F: FrameSink>(&mut self, link: &mut Transmitter<F>, now: Now, index: u32) {
        let place = &mut self.flows[index as usize];
        place.dirty = false;
        let Some(Flow { phase: Phase::Joined(joined), .. }) = &mut place.flow else {
            return;
        };
        let is_short = self.queued >= self.limits.buffer_bytes;
        let supply = if is_short { Supply::Short } else { Supply::Ample };
        let fate = joined.connection.serve(&mut self.interface, link, now, supply);
        self.queued = self.queued.saturating_add_signed(joined.connection.queued_since());
        if joined.handshake.is_some() && joined.connection.is_established() {
            joined.handshake = None;
            self.handshakes -= 1;
            link.counters.tcp_flows += 1;
        }
        match fate {
            Fate::Again => self.mark(index),
            Fate::Wait(Some(deadline)) => self.wheel.set(index, deadline.max(now.tick() + 1)),
            Fate::Wait(None) => self.wheel.cancel(index),
            Fate::Ended => self.end(now, index),
        }
    }

    /// Removes a flow whose inner connection is no more, or tries its fallback.
    fn end(&mut self, now: Now, index: u32) {
        let Some(flow) = self.take(index) else { return };
        let Phase::Joined(joined) = flow.phase else {
            return;
        };
        self.vacate(index, flow.key);
        self.queued -= joined.connection.queued();
        self.wheel.set(TRIM_KEY, now.tick() + TRIM_AFTER_MS);
        let Some(handshake) = joined.handshake else {
            joined.connection.finish();
            return;
        };
        self.handshakes -= 1;
        let fallback = handshake.fallback.and_then(|key| self.untaken(key));
        match fallback {
            Some(key) => self.fall_back(now, key, joined.connection),
            None => joined.connection.finish(),
        }
    }

    /// Opens the refused client's connection to another address of the container.
    fn fall_back(&mut self, now: Now, key: FlowKey, connection: Connection<S>) {
        let (stream, readiness) = connection.into_stream();
        let ring_bytes = self.ring_bytes();
        // The stream's events carry the place of the refused flow: it was freed last, so it is
        // the one that is taken now; only its generation has moved on.
        let index = self.vacant();
        self.flows[index as usize].generation =
            self.flows[index as usize].generation.wrapping_sub(1) & GENERATION_MASK;
        let Ok(mut connection) =
            Connection::connect(&mut self.interface, &self.arena, ring_bytes, now, key, stream)
        else {
            self.free.push(index);
            return;
        };
        connection.ready(readiness);
        self.handshakes += 1;
        self.insert(
            index,
            Flow {
                key,
                phase: Phase::Joined(Box::new(Joined {
                    connection,
                    handshake: Some(Handshake { fallback: None }),
                })),
            },
        );
        self.mark(index);
    }

    /// Marks every flow dirty whose timer has come.
    pub fn expire(&mut self, now: Now) {
        let Self { wheel, flows, dirty, arena, live, .. } = self;
        wheel.advance(now.tick(), |key| {
            if key == TRIM_KEY {
                if *live == 0 {
                    arena.trim();
                }
                return;
            }
            let place = &mut flows[key as usize];
            if !place.dirty {
                place.dirty = true;
                dirty.push(key);
            }
        });
    }

    fn mark(&mut self, index: u32) {
        let place = &mut self.flows[index as usize];
        if !place.dirty {
            place.dirty = true;
            self.dirty.push(index);
        }
    }

    fn refuse<F: FrameSink>(
        &mut self,
        link: &mut Transmitter<F>,
        now: Now,
        key: FlowKey,
        syn: &[u8],
        refusal: Refusal,
    ) {
        match refusal {
            Refusal::Reset => self.answer_reset(link, now, syn),
            Refusal::Unreachable(why) => {
                link.unreachable_quoting(key.outside.ip(), key.inside.ip(), syn, why);
            }
            Refusal::Silence => {}
        }
    }

    /// Lets the stack answer a segment that belongs to no connection: with RST.
    fn answer_reset<F: FrameSink>(&mut self, link: &mut Transmitter<F>, now: Now, packet: &[u8]) {
        let mut nobody = SocketSet::new(Vec::new());
        link.begin_flow(0);
        self.interface.poll_ingress_single(now.instant(), &mut link.port(Some(packet)), &mut nobody);
    }

    /// The size of a new connection's rings. Idle connections hold no pages, so what counts is
    /// how many there are that could all be busy.
    fn ring_bytes(&self) -> usize {
        let most = self.limits.ring_bytes;
        let share = self.limits.buffer_bytes / 2 / (self.live + 1);
        // A power of two, rounded down.
        let share = 1_usize << share.max(1).ilog2();
        share.min(most)
    }

    /// The key, or one with another source port if it is taken.
    fn untaken(&self, mut key: FlowKey) -> Option<FlowKey> {
        (0..PORT_TRIES)
            .map(|_| {
                let taken = key;
                key.outside.set_port(port_before(key.outside.port()));
                taken
            })
            .find(|key| !self.by_key.contains_key(key))
    }

    fn vacant(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.flows.push(Place { generation: 0, dirty: false, flow: None });
            (self.flows.len() - 1) as u32
        })
    }

    fn id(&self, index: u32) -> FlowId {
        FlowId { index, generation: self.flows[index as usize].generation }
    }

    fn insert(&mut self, index: u32, flow: Flow<S>) {
        self.by_key.insert(flow.key, index);
        self.flows[index as usize].flow = Some(flow);
        self.live += 1;
    }

    fn take(&mut self, index: u32) -> Option<Flow<S>> {
        self.flows[index as usize].flow.take()
    }

    /// Frees the place of a flow that was taken out of it.
    fn vacate(&mut self, index: u32, key: FlowKey) {
        self.wheel.cancel(index);
        self.by_key.remove(&key);
        let place = &mut self.flows[index as usize];
        place.generation = place.generation.wrapping_add(1) & GENERATION_MASK;
        self.free.push(index);
        self.live -= 1;
    }

    /// Removes a flow that is still connecting.
    fn remove(&mut self, index: u32) {
        if let Some(flow) = self.take(index) {
            self.connecting -= 1;
            self.vacate(index, flow.key);
        }
    }
}

/// A segment without its payload, its lengths made to fit.
fn only_headers(packet: &Packet<'_>, segment: &Segment) -> Box<[u8]> {
    let length = packet.header_bytes + segment.header_bytes;
    let mut bytes: Box<[u8]> = packet.bytes[..length].into();
    if packet.source.is_ipv6() {
        let payload = (length - frame::IPV6_HEADER_BYTES) as u16;
        bytes[4..6].copy_from_slice(&payload.to_be_bytes());
    } else {
        bytes[2..4].copy_from_slice(&(length as u16).to_be_bytes());
    }
    bytes
}

/// The packet's FIN alone, as it would come after its payload.
fn without_payload(packet: &[u8], sequence: u32) -> Option<Box<[u8]>> {
    let parsed = frame::parse(packet).ok()?;
    let Transport::Tcp(segment) = parsed.transport else { return None };
    let mut fin = only_headers(&parsed, &segment);
    let tcp = parsed.header_bytes;
    fin[tcp + 4..tcp + 8].copy_from_slice(&sequence.to_be_bytes());
    fin[tcp + 16..tcp + 18].fill(0);
    let route = Route { source: parsed.source, destination: parsed.destination };
    let pseudo = route.pseudo_header(PROTOCOL_TCP, fin.len() - tcp);
    let checksum = !fold(sum(&fin[tcp..]) + u64::from(pseudo));
    fin[tcp + 16..tcp + 18].copy_from_slice(&checksum.to_be_bytes());
    Some(fin)
}

/// The TCP header's fields of a packet that was checked before.
fn segment_of(packet: &[u8]) -> Option<Segment> {
    match frame::parse(packet).ok()?.transport {
        Transport::Tcp(segment) => Some(segment),
        _ => None,
    }
}
