//! Any conversation of a few connections with the flow table, segments from inside and the host's
//! side together, as bytes say.

use std::cell::Cell;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;

use super::{FlowId, FlowKey, Host, Phase, Readiness, Refusal, Stream, Tcp};
use crate::clock::Now;
use crate::config::Limits;
use crate::device::{FrameSink, Transmitter, Unreachable, VNET_HEADER_BYTES};
use crate::frame::{self, IPV4_HEADER_BYTES, TCP_HEADER_BYTES, Transport, be32};
use crate::link::Features;

const INSIDE: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// Ports inside; few, so that steps meet the connections of others.
const PORTS: u16 = 8;
const FIRST_PORT: u16 = 40_000;

/// Fewer flows than ports, so that the limits are met.
const LIMITS: Limits = Limits {
    tcp_flows: 6,
    tcp_connecting: 3,
    ring_bytes: 32 << 10,
    buffer_bytes: 256 << 10,
    udp_mappings: 0,
    ping_mappings: 0,
    dns_queries: 0,
};

/// A step: port and side, flags, sequence and acknowledgement relative to what is expected, payload
/// in units of 64 bytes, pause in units of 16 ms, window.
const STEP_BYTES: usize = 8;

/// Runs the steps; then lets time pass until nothing is left that waits for something.
pub(crate) fn conversation(bytes: &[u8]) {
    let features = Features::CHECKSUM.with(Features::TCP_SEGMENTATION);
    let mut world =
        World { link: Transmitter::new(Seen::default(), features, 1500), host: Outer::default(), now_ms: 1 };
    let mut tcp = Tcp::new(&mut world.link, LIMITS, 1);
    for step in bytes.chunks_exact(STEP_BYTES) {
        world.step(&mut tcp, step);
        tcp.check();
        assert!(tcp.len() <= LIMITS.tcp_flows && tcp.connecting <= LIMITS.tcp_connecting);
    }
    // The inside resets every connection: whatever state they are in, they go.
    for port in 0..PORTS {
        let (end, acknowledged) = world.link.sink_mut().of(port);
        world.segment(&mut tcp, port, 0x14, acknowledged, end, 0, 0);
    }
    tcp.check();
}

struct World {
    link: Transmitter<Seen>,
    host: Outer,
    now_ms: u64,
}

impl World {
    fn now(&self) -> Now {
        Now::from_micros(self.now_ms * 1_000)
    }

    fn step(&mut self, tcp: &mut Tcp<Script>, step: &[u8]) {
        self.now_ms += u64::from(step[5]) * 16;
        let port = u16::from(step[0]) % PORTS;
        self.host.mood.set(step[6]);
        match step[0] >> 5 {
            0 => self.ready(tcp, step[1]),
            1 => self.client(tcp, port),
            _ => {
                let (end, acknowledged) = self.link.sink_mut().of(port);
                let sequence = acknowledged.wrapping_add_signed(offset(step[2]));
                let acknowledges = end.wrapping_add_signed(offset(step[3]));
                let payload = usize::from(step[4]) * 64;
                let window = u16::from_be_bytes([step[6], step[7]]);
                self.segment(tcp, port, step[1], sequence, acknowledges, payload, window);
            }
        }
        self.serve(tcp);
    }

    fn serve(&mut self, tcp: &mut Tcp<Script>) {
        let now = self.now();
        tcp.expire(now);
        for _ in 0..3 {
            tcp.serve(&mut self.link, now);
        }
    }

    /// The host's kernel says something about a flow.
    fn ready(&mut self, tcp: &mut Tcp<Script>, bits: u8) {
        let Some(&id) = self.host.opened.get(usize::from(bits >> 3) % self.host.opened.len().max(1)) else {
            return;
        };
        let readiness = Readiness { readable: bits & 1 != 0, writable: bits & 2 != 0, hangup: bits & 4 != 0 };
        let now = self.now();
        tcp.ready(&mut self.link, now, id, readiness);
    }

    /// A client of a published port.
    fn client(&mut self, tcp: &mut Tcp<Script>, port: u16) {
        if !tcp.may_accept() {
            return;
        }
        let key = FlowKey {
            inside: SocketAddr::new(INSIDE.into(), FIRST_PORT + port),
            outside: SocketAddr::new(OUTSIDE.into(), 80),
        };
        let (now, host) = (self.now(), &mut self.host);
        let adopt = |id| {
            host.opened.push(id);
            Ok(Script { mood: Rc::clone(&host.mood) })
        };
        // Refused where every port is taken; then the client is dropped.
        _ = tcp.publish(now, key, None, adopt);
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of a segment")]
    fn segment(
        &mut self,
        tcp: &mut Tcp<Script>,
        port: u16,
        flags: u8,
        sequence: u32,
        acknowledges: u32,
        payload: usize,
        window: u16,
    ) {
        let length = IPV4_HEADER_BYTES + TCP_HEADER_BYTES + payload;
        let mut packet = vec![0x5a; length];
        packet[..IPV4_HEADER_BYTES + TCP_HEADER_BYTES].fill(0);
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
        packet[8..10].copy_from_slice(&[64, 6]);
        packet[12..16].copy_from_slice(&INSIDE.octets());
        packet[16..20].copy_from_slice(&OUTSIDE.octets());
        packet[20..22].copy_from_slice(&(FIRST_PORT + port).to_be_bytes());
        packet[22..24].copy_from_slice(&80_u16.to_be_bytes());
        packet[24..28].copy_from_slice(&sequence.to_be_bytes());
        packet[28..32].copy_from_slice(&acknowledges.to_be_bytes());
        packet[32..34].copy_from_slice(&[0x50, flags]);
        packet[34..36].copy_from_slice(&window.to_be_bytes());
        let Ok(packet) = frame::parse(&packet) else { return };
        let Transport::Tcp(segment) = packet.transport else { return };
        let now = self.now();
        tcp.segment(&mut self.host, &mut self.link, now, &packet, &segment);
    }
}

/// Small numbers mean a little off, large ones far.
fn offset(byte: u8) -> i32 {
    let signed = i32::from(byte as i8);
    if signed.abs() < 64 { signed } else { signed * 16_000_000 }
}

/// What was sent inward to each port last: the sequence number after it, and what it acknowledges.
#[derive(Default)]
struct Seen {
    last: [(u32, u32); PORTS as usize],
}

impl Seen {
    fn of(&self, port: u16) -> (u32, u32) {
        self.last[usize::from(port % PORTS)]
    }
}

impl FrameSink for Seen {
    fn send(&mut self, packet: &[u8]) -> io::Result<()> {
        let packet = frame::parse(&packet[VNET_HEADER_BYTES..]).expect("what is sent is well formed");
        let Transport::Tcp(segment) = packet.transport else { return Ok(()) };
        let place = usize::from(segment.destination.wrapping_sub(FIRST_PORT) % PORTS);
        let end = segment.sequence.wrapping_add(segment.length);
        self.last[place] = (end, be32(&packet.bytes[packet.header_bytes..], 8));
        Ok(())
    }
}

/// The host's side, in a mood that each step may change.
#[derive(Default)]
struct Outer {
    opened: Vec<FlowId>,
    mood: Rc<Cell<u8>>,
}

impl Host for Outer {
    type Stream = Script;

    fn connect(&mut self, id: FlowId, _: SocketAddr) -> Result<Script, Refusal> {
        match self.mood.get() % 16 {
            1 => Err(Refusal::Reset),
            2 => Err(Refusal::Unreachable(Unreachable::Host)),
            3 => Err(Refusal::Silence),
            _ => {
                self.opened.push(id);
                Ok(Script { mood: Rc::clone(&self.mood) })
            }
        }
    }
}

/// An outer connection.
struct Script {
    mood: Rc<Cell<u8>>,
}

impl Stream for Script {
    fn connected(&mut self) -> io::Result<()> {
        match self.mood.get() % 8 {
            1 => Err(io::ErrorKind::ConnectionRefused.into()),
            2 => Err(io::ErrorKind::ConnectionReset.into()),
            _ => Ok(()),
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mood = self.mood.get();
        match mood % 8 {
            0..=2 => Err(io::ErrorKind::WouldBlock.into()),
            3 => Ok(0),
            4 => Err(io::ErrorKind::ConnectionReset.into()),
            _ => {
                let length = buffer.len().min(usize::from(mood) * 64 + 1);
                buffer[..length].fill(mood);
                // What comes next is nothing, or the input would decide how long this lasts.
                self.mood.set(mood & !7);
                Ok(length)
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.mood.get() / 8 % 4 {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            1 => Err(io::ErrorKind::BrokenPipe.into()),
            2 => Ok(bytes.len().min(100)),
            _ => Ok(bytes.len()),
        }
    }

    fn shutdown_write(&mut self) {}

    fn reset(&mut self) {}
}

impl<S: Stream> Tcp<S> {
    /// Whether the counts are those of what they count.
    fn check(&self) {
        let flows = || self.flows.iter().filter_map(|place| place.flow.as_ref());
        let joined = || {
            flows().filter_map(|flow| match &flow.phase {
                Phase::Joined(joined) => Some(joined),
                Phase::Connecting { .. } => None,
            })
        };
        assert_eq!(flows().count(), self.live);
        assert_eq!(self.by_key.len(), self.live);
        assert!(flows().all(|flow| self.by_key.contains_key(&flow.key)));
        assert_eq!(flows().count() - joined().count(), self.connecting);
        assert_eq!(joined().filter(|joined| joined.handshake.is_some()).count(), self.handshakes);
        assert_eq!(joined().map(|joined| joined.connection.queued()).sum::<usize>(), self.queued);
        // Place 0 is nobody's.
        assert_eq!(self.free.len() + self.live + 1, self.flows.len());
    }
}
