//! The gateway itself: one thread, one epoll instance, and a turn of work for each wake-up.
//!
//! A turn reads what the device and the sockets have, up to limits, then serves every flow that
//! something happened to, then runs the timers. Work that a limit left over makes the next wait
//! return at once.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use nix::sys::resource::{Resource, getrlimit};

use crate::clock::Now;
use crate::compose::Route;
use crate::config::Config;
use crate::device::{
    FrameSink, PACKET_BYTES_MAX, Transmitter, Unreachable, VNET_HEADER_BYTES, train_segment,
};
use crate::dns::{Asker, Dns, Reply, ResolvConfObserver};
use crate::frame::{self, Fragment, Packet, Transport};
use crate::host::{HostStream, KernelHost, lock, prepare_listener};
use crate::icmp::{Icmp, refused_datagram};
use crate::link::Tun;
use crate::policy::{Policy, Verdict};
use crate::poll::{Event, Poller, Token, Trigger};
use crate::publish::{Bound, Listeners, Protocol};
use crate::random::Random;
use crate::reassembly::Reassembly;
use crate::tcp::{FlowKey, Readiness, Tcp};
use crate::udp::{Datagram, Udp};
use crate::wheel::Tick;

/// Packets that are read from the device in one turn. With offloads a packet has up to 64 KiB:
/// more would leave the cache before they are passed on.
const PACKETS_PER_TURN: usize = 64;
/// Bytes, for the same reason.
const BYTES_PER_TURN: usize = 512 << 10;

/// The largest window of a TCP connection over a device that loses what it cannot hold: three of
/// these fit what a packet socket holds by default (rmem_max, 208 KiB, of which the kernel makes twice).
const LOSSY_RING_BYTES: usize = 128 << 10;

/// Clients that are accepted from one listener in one turn.
const ACCEPTS_PER_TURN: usize = 64;

/// After the kernel was out of descriptors or memory, clients wait for so long. They are not lost:
/// the kernel has answered them.
const ACCEPT_PAUSE_MS: Tick = 100;

/// Why a gateway cannot run.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The configuration's MTU is not one that IPv6 can work with.
    #[error("an MTU of {mtu_bytes} bytes does not work: choose from 1280 to 65535")]
    Mtu {
        /// The MTU asked for.
        mtu_bytes: u16,
    },
    /// The kernel refused something that the gateway cannot do without.
    #[error("the network gateway failed: {step}")]
    System {
        /// What it was about to do.
        step: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

fn system(step: &'static str) -> impl Fn(io::Error) -> GatewayError {
    move |source| GatewayError::System { step, source }
}

/// IPv6's least MTU (RFC 8200, 5).
const MTU_BYTES_MIN: u16 = 1280;
/// What the kernel takes for a TUN device, and the largest IPv4 packet.
const MTU_BYTES_MAX: u16 = 65_535;

/// The network of one namespace. See the crate's documentation.
pub struct Gateway {
    poller: Arc<Poller>,
    policy: Policy,
    link: Transmitter<TunSink>,
    device: Arc<Tun>,
    device_open: bool,
    tcp: Tcp<HostStream>,
    host: KernelHost,
    udp: Udp,
    dns: Dns,
    icmp: Icmp,
    reassembly: Reassembly,
    listeners: Vec<Option<PublishedTcp>>,
    /// No client is accepted before this tick.
    accept_at: Tick,
    started: Instant,
    receive: Box<[u8]>,
}

/// A published TCP port.
struct PublishedTcp {
    socket: TcpListener,
    bound: Bound,
    /// Clients may be waiting: the edge-triggered event has told so, and nothing since that none
    /// is.
    may_have_clients: bool,
}

/// Writes packets to the device.
struct TunSink {
    device: Arc<Tun>,
}

impl FrameSink for TunSink {
    fn send(&mut self, packet: &[u8]) -> io::Result<()> {
        self.device.write(packet)
    }
}

impl Gateway {
    /// Puts a gateway together. Nothing is read or accepted before [`run`](Self::run). Limits that
    /// the process has not the descriptors for are lowered.
    ///
    /// # Errors
    /// [`GatewayError`] for a configuration that cannot work, or where epoll refuses.
    pub fn new(tun: Tun, listeners: Listeners, mut config: Config) -> Result<Self, GatewayError> {
        if let Ok((descriptors, _)) = getrlimit(Resource::RLIMIT_NOFILE) {
            config.limits = config.limits.fitting(descriptors);
        }
        if !tun.holds_back() {
            config.limits.ring_bytes = config.limits.ring_bytes.min(LOSSY_RING_BYTES);
        }
        let mtu_bytes = config.mtu_bytes;
        if !(MTU_BYTES_MIN..=MTU_BYTES_MAX).contains(&mtu_bytes) {
            return Err(GatewayError::Mtu { mtu_bytes });
        }
        let poller = Arc::new(Poller::new().map_err(system("make an epoll instance"))?);
        let policy = Policy::new(&config);
        let features = tun.features();
        let device = Arc::new(tun);
        poller.add(&*device, Token::Tun, Trigger::Level).map_err(system("wait for the TUN device"))?;
        let sink = TunSink { device: Arc::clone(&device) };
        let mut udp = Udp::new(&config.limits, policy.clone(), Arc::clone(&poller));
        let mut tcp_listeners = Vec::with_capacity(listeners.sockets.len());
        for (index, listener) in listeners.sockets.into_iter().enumerate() {
            let index = index as u32;
            let added = match listener.bound.protocol {
                Protocol::Tcp => {
                    let added = poller.add(&listener.socket, Token::Listener(index), Trigger::Edge);
                    let socket = TcpListener::from(listener.socket);
                    prepare_listener(&socket);
                    tcp_listeners.push(Some(PublishedTcp {
                        socket,
                        bound: listener.bound,
                        may_have_clients: false,
                    }));
                    added
                }
                Protocol::Udp => {
                    tcp_listeners.push(None);
                    udp.publish(index, listener.socket, &listener.bound)
                }
            };
            added.map_err(system("wait for a published port"))?;
        }
        let mut link = Transmitter::new(sink, features, mtu_bytes);
        Ok(Self {
            tcp: Tcp::new(&mut link, config.limits, Random::new().next_u64()),
            link,
            device,
            device_open: true,
            host: KernelHost::new(Arc::clone(&poller), policy.clone()),
            udp,
            dns: Dns::new(&config, Arc::clone(&poller)),
            icmp: Icmp::new(&config.limits, policy.clone(), Arc::clone(&poller)),
            reassembly: Reassembly::default(),
            listeners: tcp_listeners,
            accept_at: 0,
            started: Instant::now(),
            receive: vec![0; VNET_HEADER_BYTES + PACKET_BYTES_MAX].into(),
            poller,
            policy,
        })
    }

    /// Has the host's resolv.conf told to `observer` as it changes, so that the inside's can have its
    /// search domains. The gateway looks at it when a name is asked for, at most once a second; the
    /// observer is called on its thread and must not block.
    pub fn observe_resolv_conf(&mut self, observer: ResolvConfObserver) {
        self.dns.observe(observer);
    }

    /// Runs until `stop` (an eventfd, a pipe, a socket) is readable or hung up.
    ///
    /// # Errors
    /// [`GatewayError::System`] if epoll fails, which no packet can bring about.
    #[expect(clippy::needless_pass_by_value, reason = "it must stay open for as long as the gateway runs")]
    pub fn run(mut self, stop: OwnedFd) -> Result<(), GatewayError> {
        self.poller.add(&stop, Token::Stop, Trigger::Level).map_err(system("wait for the order to stop"))?;
        let mut events = Vec::new();
        loop {
            let timeout_ms = self.timeout_ms();
            events.clear();
            self.poller.wait(&mut events, timeout_ms).map_err(system("wait for events"))?;
            if events.iter().any(|event| event.token == Token::Stop) {
                return Ok(());
            }
            self.turn(&events);
        }
    }

    fn now(&self) -> Now {
        Now::from_micros(self.started.elapsed().as_micros() as u64)
    }

    /// How long the next wait may take: not at all while there is work.
    fn timeout_ms(&self) -> Option<u64> {
        if self.tcp.has_work() {
            return Some(0);
        }
        let clients_wait =
            self.listeners.iter().flatten().any(|l| l.may_have_clients) && self.tcp.may_accept();
        let deadlines = [
            clients_wait.then_some(self.accept_at),
            self.tcp.next_deadline(),
            self.udp.next_deadline(),
            self.icmp.next_deadline(),
            self.dns.next_deadline(),
        ];
        let first = deadlines.into_iter().flatten().min()?;
        Some(first.saturating_sub(self.now().tick()))
    }

    fn turn(&mut self, events: &[Event]) {
        let now = self.now();
        for event in events {
            self.event(now, event);
        }
        self.accept_clients(now);
        self.tcp.expire(now);
        self.tcp.serve(&mut self.link, now);
        self.serve_name_conversations(now);
        self.udp.expire(now.tick());
        self.icmp.expire(now.tick());
        for reply in self.dns.expire(now.tick()) {
            self.reply(now, reply);
        }
    }

    fn event(&mut self, now: Now, event: &Event) {
        match event.token {
            Token::Stop => {}
            Token::Tun => self.read_device(now),
            Token::Flow(id) => self.tcp.ready(&mut self.link, now, id, event.readiness),
            Token::Udp(id) => {
                self.udp.mapping_ready(&mut self.link, now.tick(), id, event.readiness);
            }
            Token::Listener(index) => {
                if let Some(Some(listener)) = self.listeners.get_mut(index as usize) {
                    listener.may_have_clients = true;
                } else {
                    self.udp.published_ready(&mut self.link, now.tick(), index, event.readiness);
                }
            }
            Token::Dns(id) => {
                if let Some(reply) = self.dns.ready(now.tick(), id, event.readiness) {
                    self.reply(now, reply);
                }
            }
            Token::Ping(id) => self.icmp.ready(&mut self.link, id, event.readiness),
        }
    }

    /// Reads packets from the device, up to the turn's share.
    fn read_device(&mut self, now: Now) {
        let mut buffer = std::mem::take(&mut self.receive);
        let mut bytes = 0;
        for _ in 0..PACKETS_PER_TURN {
            match self.device.read(&mut buffer) {
                Ok(0) => {}
                Ok(length) => {
                    bytes += length;
                    self.packet(now, &buffer[..length]);
                }
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) =>
                {
                    break;
                }
                Err(_) => {
                    self.close_device();
                    break;
                }
            }
            if bytes >= BYTES_PER_TURN {
                break;
            }
        }
        self.receive = buffer;
        self.udp.flush(&mut self.link);
    }

    /// The namespace is gone. There is nothing left to do but to wait for the order to stop.
    fn close_device(&mut self) {
        if self.device_open {
            self.device_open = false;
            // It is registered; should it not be, it tells of nothing either.
            _ = self.poller.remove(&*self.device);
        }
    }

    /// Takes one packet with its virtio-net header.
    fn packet(&mut self, now: Now, frame: &[u8]) {
        let Some(bytes) = frame.get(VNET_HEADER_BYTES..) else {
            self.link.counters.malformed += 1;
            return;
        };
        self.link.counters.packets_outward += 1;
        self.link.counters.bytes_outward += bytes.len() as u64;
        let Ok(packet) = frame::parse(bytes) else {
            self.link.counters.malformed += 1;
            return;
        };
        if !self.policy.is_inside(packet.source) {
            self.link.counters.prohibited += 1;
            return;
        }
        if let Transport::Fragment(fragment) = packet.transport {
            self.fragment(now, &packet, &fragment);
        } else {
            self.checked_packet(now, &packet, train_segment(frame));
        }
    }

    /// Takes a fragment, and the packet that it completes as if it had come in one piece.
    fn fragment(&mut self, now: Now, packet: &Packet<'_>, fragment: &Fragment<'_>) {
        let Packet { source, destination, .. } = *packet;
        let Some(whole) = self.reassembly.add(now.tick(), source, destination, fragment) else {
            return;
        };
        let bytes = Route { source, destination }.packet(whole.protocol, &whole.payload);
        match bytes.as_deref().map(frame::parse) {
            // What came in fragments may go on in fragments.
            Some(Ok(whole)) => {
                let hop_limit = packet.hop_limit;
                self.checked_packet(now, &Packet { dont_fragment: false, hop_limit, ..whole }, None);
            }
            _ => self.link.counters.malformed += 1,
        }
    }

    fn checked_packet(&mut self, now: Now, packet: &Packet<'_>, train: Option<usize>) {
        match packet.transport {
            Transport::Tcp(segment) => {
                self.tcp.segment(&mut self.host, &mut self.link, now, packet, &segment);
                for id in self.host.take_woken() {
                    let connected = Readiness { readable: false, writable: true, hangup: false };
                    self.tcp.ready(&mut self.link, now, id, connected);
                }
            }
            Transport::Udp { source, destination, payload } => {
                let key = packet.endpoints(source, destination);
                self.datagram(now, packet, key, payload, train);
            }
            Transport::Icmp(message) => {
                if let Some((outside, inside)) = refused_datagram(packet, message) {
                    self.udp.inside_refuses(inside, outside);
                    return;
                }
                self.icmp.message(&mut self.link, now.tick(), packet, message);
            }
            Transport::Fragment(_) | Transport::Other(_) => self.link.counters.unforwardable += 1,
        }
    }

    fn datagram(
        &mut self,
        now: Now,
        packet: &Packet<'_>,
        key: (SocketAddr, SocketAddr),
        payload: &[u8],
        segment_bytes: Option<usize>,
    ) {
        let (inside, outside) = key;
        let to = match self.policy.judge(outside) {
            Verdict::NameServer => {
                self.link.counters.dns_queries += 1;
                let server = outside;
                let asker = Asker::Datagram { inside, server };
                if let Some(reply) = self.dns.ask(now.tick(), asker, payload) {
                    self.reply(now, reply);
                }
                return;
            }
            Verdict::Forward(to) => Some(to),
            // A published port's client may look like the gateway.
            Verdict::Nothing => None,
            Verdict::Prohibited => {
                self.link.counters.prohibited += 1;
                let from = self.policy.addresses().gateway_like(outside.ip());
                self.link.unreachable(from, packet, Unreachable::Prohibited);
                return;
            }
        };
        let datagram = Datagram { packet, inside, outside, payload, segment_bytes };
        self.udp.send(&mut self.link, now.tick(), &datagram, to);
    }

    /// Delivers a name server's answer.
    fn reply(&mut self, now: Now, reply: Reply) {
        match reply.to {
            Asker::Datagram { inside, server } => {
                self.link.datagram(server, inside, &reply.message);
            }
            Asker::Conversation { flow, conversation } => {
                lock(&conversation).answer(&reply.message);
                let readable = Readiness { readable: true, writable: true, hangup: false };
                self.tcp.ready(&mut self.link, now, flow, readable);
            }
        }
    }

    /// Takes queries out of TCP conversations.
    fn serve_name_conversations(&mut self, now: Now) {
        let conversations = self.host.conversations().to_vec();
        for (flow, conversation) in conversations {
            loop {
                let Some(query) = lock(&conversation).next_query() else {
                    break;
                };
                self.link.counters.dns_queries += 1;
                let asker = Asker::Conversation { flow, conversation: Arc::clone(&conversation) };
                if let Some(reply) = self.dns.ask(now.tick(), asker, &query) {
                    self.reply(now, reply);
                }
            }
            let is_over = lock(&conversation).take_over();
            if is_over {
                let ended = Readiness { readable: true, writable: true, hangup: true };
                self.tcp.ready(&mut self.link, now, flow, ended);
            }
        }
    }

    /// Takes on clients of published ports, as long as the flow table wants more.
    fn accept_clients(&mut self, now: Now) {
        if now.tick() < self.accept_at {
            return;
        }
        for place in 0..self.listeners.len() {
            for _ in 0..ACCEPTS_PER_TURN {
                let Some(Some(listener)) = self.listeners.get_mut(place) else {
                    break;
                };
                if !listener.may_have_clients || !self.tcp.may_accept() {
                    break;
                }
                let bound = listener.bound;
                match listener.socket.accept() {
                    Ok((socket, client)) => self.take_client(now, socket, client, &bound),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        listener.may_have_clients = false;
                    }
                    Err(error) if is_shortage(&error) => {
                        self.accept_at = now.tick() + ACCEPT_PAUSE_MS;
                        return;
                    }
                    // This client is gone again; there may be others.
                    Err(_) => {}
                }
            }
        }
    }

    /// Opens the inner connection of a client. One that cannot be served is reset.
    fn take_client(&mut self, now: Now, socket: TcpStream, client: SocketAddr, bound: &Bound) {
        let port = bound.container_port;
        let addresses = self.policy.addresses();
        let outside = self.policy.source_inside(client);
        let key = FlowKey { inside: SocketAddr::new(addresses.container_like(outside.ip()), port), outside };
        // Most servers inside listen on IPv4 only, while clients try IPv6 first and do not fall
        // back from a reset.
        let fallback = outside.is_ipv6().then(|| FlowKey {
            inside: SocketAddr::new(addresses.v4.container.into(), port),
            outside: SocketAddr::new(addresses.v4.gateway.into(), client.port()),
        });
        let host = &self.host;
        let taken = self.tcp.publish(now, key, fallback, |id| host.adopt(id, socket, bound.address, client));
        if taken.is_err() {
            self.link.counters.limited += 1;
        }
    }
}

/// Whether the kernel, or this process, has no more of something.
fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_can_be_made_in_one_thread_and_run_in_another() {
        fn is_send<T: Send>() {}
        is_send::<Gateway>();
    }
}
