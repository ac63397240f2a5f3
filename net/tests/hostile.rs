//! Whatever comes out of the namespace, nothing panics and nothing grows without bound.

use std::cell::RefCell;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;

use net::Limits;
use net::stack::{
    Features, FlowId, FrameSink, Host, Now, Readiness, Refusal, Stream, Tcp, Transmitter, Transport,
    VNET_HEADER_BYTES, parse,
};
use proptest::prelude::*;

const INSIDE: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2_000) })]

    #[test]
    fn any_bytes_are_parsed_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        _ = parse(&bytes);
    }

    /// Bytes that pass the first looks: a version, a protocol, and lengths that nearly fit.
    #[test]
    fn damaged_packets_are_parsed_or_refused(
        mut bytes in prop::collection::vec(any::<u8>(), 1..300),
        is_v6 in any::<bool>(),
        protocol in prop::sample::select(vec![0_u8, 1, 6, 17, 43, 44, 58, 60]),
        off_by in 0_usize..3,
    ) {
        let length = bytes.len();
        if is_v6 && length >= 40 {
            bytes[0] = 0x60;
            bytes[4..6].copy_from_slice(&((length - 40 + off_by) as u16).to_be_bytes());
            bytes[6] = protocol;
            bytes[8] &= 0x7f;
            bytes[24] &= 0x7f;
        } else if length >= 20 {
            bytes[0] = 0x40 | bytes[0] & 0x0f;
            bytes[2..4].copy_from_slice(&((length + off_by) as u16).to_be_bytes());
            bytes[9] = protocol;
            bytes[12] &= 0x7f;
            bytes[16] &= 0x7f;
        }
        if let Ok(packet) = parse(&bytes) {
            prop_assert!(packet.bytes.len() <= bytes.len());
            if let Transport::Tcp(segment) = packet.transport {
                prop_assert!(packet.header_bytes + segment.header_bytes <= packet.bytes.len());
            }
        }
    }
}

/// A segment whose numbers are given relative to what the connection expects.
#[derive(Debug, Clone)]
struct Odd {
    flags: u8,
    sequence: i32,
    acknowledged: i32,
    window: u16,
    payload: usize,
    options: Vec<u8>,
    /// Milliseconds since the one before.
    pause: u64,
    /// The host's kernel is ready as well.
    host_ready: bool,
}

fn odd() -> impl Strategy<Value = Odd> {
    // Mostly near what is expected, as far-off numbers are refused early.
    let offset = || prop_oneof![4 => -3..3_i32, 2 => -3_000..3_000_i32, 1 => any::<i32>()];
    let flags = prop_oneof![6 => Just(ACK), 2 => Just(ACK | 1), 1 => Just(ACK | 4), 3 => any::<u8>()];
    let payload =
        prop_oneof![3 => Just(0_usize), 2 => 1..5_usize, 2 => 1..3_000_usize, 1 => 60_000..65_000_usize];
    let options = prop_oneof![4 => Just(vec![]), 1 => prop::collection::vec(any::<u8>(), 0..40)];
    (flags, offset(), offset(), any::<u16>(), payload, options, 0..1_500_u64, any::<bool>()).prop_map(
        |(flags, sequence, acknowledged, window, payload, options, pause, host_ready)| Odd {
            flags,
            sequence,
            acknowledged,
            window,
            payload,
            options,
            pause,
            host_ready,
        },
    )
}

fn packet(odd: &Odd, sequence: u32, acknowledged: u32) -> Vec<u8> {
    let mut options = odd.options.clone();
    options.resize(options.len().next_multiple_of(4), 0);
    let payload = odd.payload.min(65_535 - 40 - options.len());
    let length = 40 + options.len() + payload;
    let mut packet = vec![0x5a; length];
    packet[..20].fill(0);
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
    packet[8..10].copy_from_slice(&[64, 6]);
    packet[12..16].copy_from_slice(&INSIDE.octets());
    packet[16..20].copy_from_slice(&OUTSIDE.octets());
    packet[20..24].copy_from_slice(&[0xc3, 0x50, 0, 80]);
    packet[24..28].copy_from_slice(&sequence.to_be_bytes());
    packet[28..32].copy_from_slice(&acknowledged.to_be_bytes());
    packet[32] = (((20 + options.len()) / 4) << 4) as u8;
    packet[33] = odd.flags;
    packet[34..36].copy_from_slice(&odd.window.to_be_bytes());
    packet[36..40].fill(0);
    packet[40..40 + options.len()].copy_from_slice(&options);
    packet
}

/// Remembers the last sequence and acknowledgement numbers that were sent inward.
#[derive(Default)]
struct LastSent {
    end: u32,
    acknowledged: u32,
    count: usize,
}

impl FrameSink for LastSent {
    fn send(&mut self, packet: &[u8]) -> io::Result<()> {
        let packet = parse(&packet[VNET_HEADER_BYTES..]).expect("what is sent is well formed");
        let Transport::Tcp(segment) = packet.transport else { return Ok(()) };
        let tcp = &packet.bytes[packet.header_bytes..];
        self.end = segment.sequence.wrapping_add(segment.length);
        self.acknowledged = u32::from_be_bytes([tcp[8], tcp[9], tcp[10], tcp[11]]);
        self.count += 1;
        Ok(())
    }
}

/// Talks for ever and takes everything.
struct Endless;

impl Stream for Endless {
    fn connected(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(buffer.len().min(1_000))
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn shutdown_write(&mut self) {}

    fn reset(&mut self) {}
}

#[derive(Default)]
struct AnyHost {
    connecting: Rc<RefCell<Vec<FlowId>>>,
}

impl Host for AnyHost {
    type Stream = Endless;

    fn connect(&mut self, id: FlowId, _: SocketAddr) -> Result<Endless, Refusal> {
        self.connecting.borrow_mut().push(id);
        Ok(Endless)
    }
}

const READY: Readiness = Readiness { readable: true, writable: true, hangup: false };

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(600) })]

    #[test]
    fn no_conversation_of_odd_segments_panics(conversation in prop::collection::vec(odd(), 1..60)) {
        let features = Features::CHECKSUM.with(Features::TCP_SEGMENTATION);
        let mut link = Transmitter::new(LastSent::default(), features, 1500);
        let limits = Limits { ring_bytes: 64 << 10, ..Limits::default() };
        let mut tcp = Tcp::new(&mut link, limits, 1);
        let mut host = AnyHost::default();
        let mut now_ms = 0;
        let mut flow = None;
        let syn = Odd { flags: SYN, payload: 0, ..conversation[0].clone() };
        for (index, odd) in std::iter::once(&syn).chain(&conversation).enumerate() {
            now_ms += odd.pause;
            let now = Now::from_micros(now_ms * 1_000);
            let (end, acknowledged) = (link.sink_mut().end, link.sink_mut().acknowledged);
            let sequence = if index == 0 { 1_000 } else { acknowledged.wrapping_add_signed(odd.sequence) };
            let bytes = packet(odd, sequence, end.wrapping_add_signed(odd.acknowledged));
            if let Ok(packet) = parse(&bytes)
                && let Transport::Tcp(segment) = packet.transport
            {
                tcp.segment(&mut host, &mut link, now, &packet, &segment);
            }
            flow = host.connecting.borrow_mut().pop().or(flow);
            if let Some(id) = flow
                && (odd.host_ready || index == 0)
            {
                tcp.ready(&mut link, now, id, READY);
            }
            tcp.expire(now);
            for _ in 0..4 {
                tcp.serve(&mut link, now);
            }
        }
        prop_assert!(tcp.len() <= 1);
    }
}

/// SYNs to everywhere: as many connects as allowed, and no buffers.
#[test]
fn a_flood_of_syns_is_bounded() {
    let mut link = Transmitter::new(LastSent::default(), Features::default(), 1500);
    let limits = Limits { tcp_connecting: 100, ..Limits::default() };
    let mut tcp = Tcp::new(&mut link, limits, 1);
    let mut host = AnyHost::default();
    let syn = Odd {
        flags: SYN,
        sequence: 0,
        acknowledged: 0,
        window: 1_000,
        payload: 0,
        options: vec![],
        pause: 0,
        host_ready: false,
    };
    for port in 1..=1_000_u16 {
        let mut bytes = packet(&syn, 1, 0);
        bytes[20..22].copy_from_slice(&port.to_be_bytes());
        let packet = parse(&bytes).expect("a SYN");
        let Transport::Tcp(segment) = packet.transport else { unreachable!("it is TCP") };
        tcp.segment(&mut host, &mut link, Now::from_micros(0), &packet, &segment);
    }
    assert_eq!(tcp.len(), 100);
    assert_eq!(link.counters().limited, 900);
}

/// A host that takes nothing.
struct Stuck;

impl Stream for Stuck {
    fn connected(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn shutdown_write(&mut self) {}

    fn reset(&mut self) {}
}

struct StuckHost(Option<FlowId>);

impl Host for StuckHost {
    type Stream = Stuck;

    fn connect(&mut self, id: FlowId, _: SocketAddr) -> Result<Stuck, Refusal> {
        self.0 = Some(id);
        Ok(Stuck)
    }
}

/// Many connections whose host does not read, and an inside that sends all the same: what is
/// buffered stays within the limit and a share for each connection.
#[test]
fn buffers_are_bounded_together() {
    const FLOWS: u16 = 50;
    const SEGMENT_BYTES: usize = 50_000;
    const SHARE_BYTES: usize = 64 << 10;
    let features = Features::CHECKSUM.with(Features::TCP_SEGMENTATION);
    let mut link = Transmitter::new(LastSent::default(), features, 1500);
    let limits = Limits { buffer_bytes: 2 << 20, ring_bytes: 1 << 20, ..Limits::default() };
    let mut tcp = Tcp::new(&mut link, limits, 1);
    let mut host = StuckHost(None);
    let mut now_ms = 0;
    let mut buffered = 0;
    for port in 1..=FLOWS {
        let mut exchange = |flags: u8, sequence: u32, acknowledged: u32, payload: usize| {
            let odd = Odd {
                flags,
                sequence: 0,
                acknowledged: 0,
                window: 60_000,
                payload,
                options: vec![],
                pause: 0,
                host_ready: false,
            };
            let mut bytes = packet(&odd, sequence, acknowledged);
            bytes[20..22].copy_from_slice(&port.to_be_bytes());
            let parsed = parse(&bytes).expect("a segment");
            let Transport::Tcp(segment) = parsed.transport else { unreachable!("it is TCP") };
            now_ms += 5;
            let now = Now::from_micros(now_ms * 1_000);
            tcp.segment(&mut host, &mut link, now, &parsed, &segment);
            if let Some(id) = host.0.take() {
                tcp.ready(&mut link, now, id, Readiness { writable: true, ..Readiness::default() });
            }
            tcp.expire(now);
            tcp.serve(&mut link, now);
            (link.sink_mut().end, link.sink_mut().acknowledged)
        };
        let (server, _) = exchange(SYN, 0, 0, 0);
        exchange(ACK, 1, server, 0);
        let mut sequence = 1;
        for _ in 0..30 {
            let (_, acknowledged) = exchange(ACK, sequence, server, SEGMENT_BYTES);
            sequence = acknowledged;
        }
        buffered += sequence as usize;
    }
    assert_eq!(tcp.len(), usize::from(FLOWS));
    let bound = limits.buffer_bytes + usize::from(FLOWS) * (SHARE_BYTES + SEGMENT_BYTES);
    assert!(buffered <= bound, "{buffered} bytes are held, more than {bound}");
    assert!(link.counters().limited > 0);
}
