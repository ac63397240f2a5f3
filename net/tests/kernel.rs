//! The gateway between real kernels: the host's and that of a new network namespace.

mod world;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::thread;
use std::time::{Duration, Instant};

use net::publish::{HostPorts, Protocol, Publish};
use net::{Config, HostLoopback, HostName, Resolver};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, recv, send, sendto,
    setsockopt, socket, sockopt,
};
use world::{PATIENCE, World};

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// A pseudo-random stream that both halves of a test can make.
struct Stream(u64);

impl Stream {
    fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            // xorshift64*, enough to tell any shift, loss or repetition.
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            let word = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

const BLOCK_BYTES: usize = 64 << 10;

fn send_stream(socket: &mut impl Write, seed: u64, blocks: usize) {
    let mut stream = Stream(seed);
    let mut block = vec![0; BLOCK_BYTES];
    for _ in 0..blocks {
        stream.fill(&mut block);
        socket.write_all(&block).expect("room for the stream");
    }
}

/// Reads to the end and compares every byte.
fn check_stream(socket: &mut impl Read, seed: u64, blocks: usize) {
    let mut stream = Stream(seed);
    let (mut expected, mut received) = (vec![0; BLOCK_BYTES], vec![0; BLOCK_BYTES]);
    for index in 0..blocks {
        stream.fill(&mut expected);
        socket.read_exact(&mut received).expect("the whole stream");
        assert!(expected == received, "block {index} differs");
    }
    assert_eq!(socket.read(&mut received).expect("an orderly end"), 0);
}

fn listen(ip: IpAddr) -> TcpListener {
    TcpListener::bind((ip, 0)).expect("a listener")
}

fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    let timeout = PollTimeout::try_from(PATIENCE).expect("a short time");
    let mut wait = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut wait, timeout), Ok(1), "no client came");
    let (socket, peer) = listener.accept().expect("a client");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    (socket, peer)
}

fn dial(to: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect_timeout(&to, PATIENCE).expect("a connection");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    socket
}

fn drop_with_reset(socket: TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(&socket, sockopt::Linger, &linger).expect("no lingering");
    drop(socket);
}

fn gateway(config: &Config, like: IpAddr) -> IpAddr {
    config.addresses.gateway_like(like)
}

fn tcp(host: IpAddr, container_port: u16) -> Publish {
    Publish { host: Some(host), ports: HostPorts::Any, container_port, protocol: Protocol::Tcp }
}

fn udp(host: IpAddr, container_port: u16) -> Publish {
    Publish { protocol: Protocol::Udp, ..tcp(host, container_port) }
}

/// How much goes each way at once in the tests of integrity: 48 MiB, or what the environment says
/// (1024 for a thorough run; both halves of a test see it).
fn blocks() -> usize {
    const DEFAULT_MIB: usize = 48;
    let mib = std::env::var("HOSTEL_NET_TEST_MIB").ok().and_then(|text| text.parse().ok());
    mib.unwrap_or(DEFAULT_MIB) * (1 << 20) / BLOCK_BYTES
}

/// How many connections are open at once in the test of that: a thousand, or what the environment
/// says. Each takes two descriptors here and one inside.
fn connections() -> usize {
    const DEFAULT: usize = 1_000;
    let count = std::env::var("HOSTEL_NET_TEST_CONNECTIONS").ok().and_then(|text| text.parse().ok());
    count.unwrap_or(DEFAULT)
}

fn both_ways(socket: TcpStream, seeds: (u64, u64)) {
    let mut writer = socket.try_clone().expect("a second handle");
    let sender = thread::spawn(move || {
        send_stream(&mut writer, seeds.0, blocks());
        writer.shutdown(Shutdown::Write).expect("an end");
    });
    let mut reader = socket;
    check_stream(&mut reader, seeds.1, blocks());
    sender.join().expect("all sent");
}

fn bytes_survive_outward(test: &str, ip: IpAddr, mtu_bytes: u16) {
    let mut world = World::new();
    world.config.mtu_bytes = mtu_bytes;
    world.run(
        test,
        |peer, _| {
            let listener = listen(ip);
            peer.say(&listener.local_addr().expect("an address").to_string());
            both_ways(accept(&listener).0, (1, 2));
        },
        |peer, config| {
            let port = peer.hear_address().port();
            both_ways(dial(SocketAddr::new(gateway(config, ip), port)), (2, 1));
        },
    );
}

#[test]
fn bytes_survive_outward_over_ipv4() {
    bytes_survive_outward("bytes_survive_outward_over_ipv4", V4, 1500);
}

#[test]
fn bytes_survive_outward_over_ipv6() {
    bytes_survive_outward("bytes_survive_outward_over_ipv6", V6, 1500);
}

#[test]
fn bytes_survive_with_the_largest_mtu() {
    bytes_survive_outward("bytes_survive_with_the_largest_mtu", V4, 65_520);
}

fn bytes_survive_inward(test: &str, ip: IpAddr) {
    let mut world = World::new();
    world.publish = vec![tcp(ip, 80)];
    world.run(
        test,
        |peer, bound| {
            peer.hear_exactly("listening");
            both_ways(dial(bound[0].address), (1, 2));
        },
        |peer, config| {
            let listener = TcpListener::bind((config.addresses.container_like(ip), 80)).expect("port 80");
            peer.say("listening");
            let (socket, client) = accept(&listener);
            // A client of the host's loopback cannot be answered there from inside.
            assert_eq!(client.ip(), gateway(config, ip));
            both_ways(socket, (2, 1));
        },
    );
}

#[test]
fn bytes_survive_inward_over_ipv4() {
    bytes_survive_inward("bytes_survive_inward_over_ipv4", V4);
}

#[test]
fn bytes_survive_inward_over_ipv6() {
    bytes_survive_inward("bytes_survive_inward_over_ipv6", V6);
}

/// Each side ends its half first once, and the other half goes on.
#[test]
fn half_closed_connections_go_on() {
    World::new().run(
        "half_closed_connections_go_on",
        |peer, _| {
            let listener = listen(V4);
            peer.say(&listener.local_addr().expect("an address").to_string());
            let mut text = String::new();

            let (mut socket, _) = accept(&listener);
            socket.read_to_string(&mut text).expect("the inside's end");
            assert_eq!(text, "question");
            socket.write_all(b"answer").expect("the other half is open");
            drop(socket);

            let (mut socket, _) = accept(&listener);
            socket.write_all(b"greeting").expect("room");
            socket.shutdown(Shutdown::Write).expect("an end");
            text.clear();
            socket.read_to_string(&mut text).expect("the inside's end");
            assert_eq!(text, "reply");
        },
        |peer, config| {
            let to = SocketAddr::new(gateway(config, V4), peer.hear_address().port());
            let mut text = String::new();

            let mut socket = dial(to);
            socket.write_all(b"question").expect("room");
            socket.shutdown(Shutdown::Write).expect("an end");
            socket.read_to_string(&mut text).expect("the outside's end");
            assert_eq!(text, "answer");

            let mut socket = dial(to);
            text.clear();
            socket.read_to_string(&mut text).expect("the outside's end");
            assert_eq!(text, "greeting");
            socket.write_all(b"reply").expect("the other half is open");
        },
    );
}

/// A server that is not read from for a while, and an end behind data.
#[test]
fn a_slow_reader_gets_everything() {
    World::new().run(
        "a_slow_reader_gets_everything",
        |peer, _| {
            let listener = listen(V4);
            peer.say(&listener.local_addr().expect("an address").to_string());
            let (mut socket, _) = accept(&listener);
            // The inside has written all that fits and waits, or has even ended.
            thread::sleep(Duration::from_millis(300));
            check_stream(&mut socket, 3, 256);
            send_stream(&mut socket, 4, 256);
        },
        |peer, config| {
            let to = SocketAddr::new(gateway(config, V4), peer.hear_address().port());
            let mut socket = dial(to);
            send_stream(&mut socket, 3, 256);
            socket.shutdown(Shutdown::Write).expect("an end");
            thread::sleep(Duration::from_millis(300));
            check_stream(&mut socket, 4, 256);
        },
    );
}

#[test]
fn what_is_refused_outside_is_refused_inside() {
    let mut world = World::new();
    world.config.host_loopback = HostLoopback::Ports([1].into());
    world.run(
        "what_is_refused_outside_is_refused_inside",
        |_, _| {},
        |_, config| {
            let error = |to: SocketAddr| {
                let started = Instant::now();
                let error = TcpStream::connect_timeout(&to, PATIENCE).expect_err("nobody listens");
                assert!(started.elapsed() < Duration::from_secs(5), "{to} took long");
                error.kind()
            };
            for ip in [V4, V6] {
                let gateway = gateway(config, ip);
                // Nobody listens on this port of the host; the other is closed by policy.
                assert_eq!(error(SocketAddr::new(gateway, 1)), ErrorKind::ConnectionRefused);
                assert_eq!(error(SocketAddr::new(gateway, 22)), ErrorKind::ConnectionRefused);
            }
            // The metadata address is closed: EHOSTUNREACH from "administratively prohibited".
            let metadata = "169.254.169.254:80".parse().expect("an address");
            assert_eq!(error(metadata), ErrorKind::HostUnreachable);
        },
    );
}

#[test]
fn a_reset_goes_through_both_ways() {
    World::new().run(
        "a_reset_goes_through_both_ways",
        |peer, _| {
            let listener = listen(V4);
            peer.say(&listener.local_addr().expect("an address").to_string());
            let (socket, _) = accept(&listener);
            drop_with_reset(socket);
            let (mut socket, _) = accept(&listener);
            let error = socket.read(&mut [0; 8]).expect_err("the inside has reset it");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        },
        |peer, config| {
            let to = SocketAddr::new(gateway(config, V4), peer.hear_address().port());
            // The reset may come so soon that connect(2) tells of it.
            let read = TcpStream::connect_timeout(&to, PATIENCE).and_then(|mut s| s.read(&mut [0; 8]));
            let error = read.expect_err("the outside has reset it");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            drop_with_reset(dial(to));
        },
    );
}

/// Clients that are not of the host itself keep their address. A namespace of the test's own
/// stands for another machine: its gateway's address is one that can be answered.
#[test]
fn a_published_server_sees_the_true_client() {
    let own_address = if World::is_inside() { Some(V4) } else { own_address() };
    let Some(address) = own_address else {
        eprintln!("SKIPPED a_published_server_sees_the_true_client: no address but loopback");
        return;
    };
    let mut world = World::new();
    world.publish = vec![tcp(address, 80), udp(address, 80)];
    world.run(
        "a_published_server_sees_the_true_client",
        |peer, bound| {
            peer.hear_exactly("listening");
            let mut client = dial(bound[0].address);
            peer.say(&client.local_addr().expect("an address").to_string());
            let mut text = String::new();
            client.read_to_string(&mut text).expect("the answer");
            assert_eq!(text, "tcp");

            let client = UdpSocket::bind((address, 0)).expect("a socket");
            client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            client.send_to(b"hello", bound[1].address).expect("sent");
            peer.say(&client.local_addr().expect("an address").to_string());
            let mut buffer = [0; 16];
            let (length, from) = client.recv_from(&mut buffer).expect("the answer");
            assert_eq!((&buffer[..length], from), (&b"udp"[..], bound[1].address));
        },
        |peer, config| {
            let own = config.addresses.container_like(address);
            let listener = TcpListener::bind((own, 80)).expect("port 80");
            let socket = UdpSocket::bind((own, 80)).expect("port 80");
            socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            peer.say("listening");
            let (mut server, client) = accept(&listener);
            assert_eq!(client, peer.hear_address());
            server.write_all(b"tcp").expect("room");
            drop(server);
            let mut buffer = [0; 16];
            let (length, client) = socket.recv_from(&mut buffer).expect("the datagram");
            assert_eq!(&buffer[..length], b"hello");
            assert_eq!(client, peer.hear_address());
            socket.send_to(b"udp", client).expect("sent");
        },
    );
}

/// An IPv4 address of this machine that is not its loopback.
fn own_address() -> Option<IpAddr> {
    // Connecting a datagram socket sends nothing; it only looks up the route.
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.254:9").ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_loopback() && !ip.is_unspecified()).then_some(ip)
}

/// A server that listens on IPv4 only is reached by a client that came over IPv6.
#[test]
fn an_ipv6_client_reaches_an_ipv4_server() {
    let mut world = World::new();
    world.publish = vec![tcp(V6, 80)];
    world.run(
        "an_ipv6_client_reaches_an_ipv4_server",
        |peer, bound| {
            peer.hear_exactly("listening");
            let mut client = dial(bound[0].address);
            let mut text = String::new();
            client.read_to_string(&mut text).expect("the answer");
            assert_eq!(text, "from IPv4");
        },
        |peer, config| {
            let listener = TcpListener::bind((config.addresses.v4.container, 80)).expect("port 80");
            peer.say("listening");
            let (mut server, client) = accept(&listener);
            assert_eq!(client.ip(), gateway(config, V4));
            server.write_all(b"from IPv4").expect("room");
        },
    );
}

#[test]
fn a_published_port_without_a_server_resets_its_clients() {
    let mut world = World::new();
    world.publish = vec![tcp(V4, 80)];
    world.run(
        "a_published_port_without_a_server_resets_its_clients",
        |peer, bound| {
            peer.hear_exactly("ready");
            // A server on the container's own loopback is not exposed either.
            // The reset may come before the client has looked whether it is connected.
            let error = TcpStream::connect_timeout(&bound[0].address, PATIENCE)
                .and_then(|mut client| {
                    client.set_read_timeout(Some(PATIENCE))?;
                    client.read(&mut [0; 8])
                })
                .expect_err("nobody listens there");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            peer.say("done");
        },
        |peer, _| {
            let _hidden = TcpListener::bind((V4, 80)).expect("port 80 of the loopback");
            peer.say("ready");
            peer.hear_exactly("done");
        },
    );
}

#[test]
fn datagrams_of_every_size_go_both_ways() {
    // The last is the most that fits an IPv4 packet; an IPv6 packet has 20 bytes more.
    const SIZES: [usize; 9] = [0, 1, 100, 1472, 1473, 9000, 40_000, 65_000, 65_507];
    let mut world = World::new();
    world.publish = vec![udp(V4, 5000), udp(V6, 5000)];
    world.run(
        "datagrams_of_every_size_go_both_ways",
        |peer, bound| {
            peer.hear_exactly("listening");
            let mut buffer = vec![0; 65_536];
            for published in bound {
                let client = UdpSocket::bind((published.address.ip(), 0)).expect("a socket");
                client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
                for size in SIZES {
                    let mut datagram = vec![0; size];
                    Stream(size as u64 + 1).fill(&mut datagram);
                    client.send_to(&datagram, published.address).expect("sent");
                    let (length, from) = client.recv_from(&mut buffer).expect("the echo");
                    assert_eq!(from, published.address);
                    assert!(buffer[..length] == datagram, "{size} bytes came back changed");
                }
            }
            for ip in [V4, V6] {
                let server = UdpSocket::bind((ip, 0)).expect("a socket");
                server.set_read_timeout(Some(PATIENCE)).expect("a timeout");
                peer.say(&server.local_addr().expect("an address").to_string());
                for _ in SIZES {
                    let (length, client) = server.recv_from(&mut buffer).expect("a datagram");
                    server.send_to(&buffer[..length], client).expect("sent");
                }
            }
        },
        |peer, config| {
            let mut buffer = vec![0; 65_536];
            let addresses = &config.addresses;
            let servers = [V4, V6].map(|ip| {
                let server = UdpSocket::bind((addresses.container_like(ip), 5000)).expect("port 5000");
                server.set_read_timeout(Some(PATIENCE)).expect("a timeout");
                server
            });
            peer.say("listening");
            for server in &servers {
                for _ in SIZES {
                    let (length, client) = server.recv_from(&mut buffer).expect("a datagram");
                    assert_eq!(client.ip(), gateway(config, client.ip()));
                    server.send_to(&buffer[..length], client).expect("sent");
                }
            }
            for ip in [V4, V6] {
                let to = SocketAddr::new(gateway(config, ip), peer.hear_address().port());
                let client = UdpSocket::bind((addresses.container_like(ip), 0)).expect("a socket");
                client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
                for size in SIZES {
                    let mut datagram = vec![0; size];
                    Stream(size as u64 + 1).fill(&mut datagram);
                    client.send_to(&datagram, to).expect("sent");
                    let (length, from) = client.recv_from(&mut buffer).expect("the echo");
                    assert_eq!(from, to);
                    assert!(buffer[..length] == datagram, "{size} bytes came back changed");
                }
            }
        },
    );
}

/// Once a container's port has sent something, others than its correspondent can reach it.
#[test]
fn the_udp_mapping_is_a_full_cone() {
    World::new().run(
        "the_udp_mapping_is_a_full_cone",
        |peer, _| {
            let server = UdpSocket::bind((V4, 0)).expect("a socket");
            server.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            peer.say(&server.local_addr().expect("an address").to_string());
            let mut buffer = [0; 16];
            let (_, mapped) = server.recv_from(&mut buffer).expect("a datagram");
            let stranger = UdpSocket::bind((V4, 0)).expect("a socket");
            stranger.send_to(b"stranger", mapped).expect("sent");
            peer.say(&stranger.local_addr().expect("an address").to_string());
        },
        |peer, config| {
            let to = SocketAddr::new(gateway(config, V4), peer.hear_address().port());
            let client = UdpSocket::bind("0.0.0.0:0").expect("a socket");
            client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            client.send_to(b"hello", to).expect("sent");
            let stranger = SocketAddr::new(gateway(config, V4), peer.hear_address().port());
            let mut buffer = [0; 16];
            let (length, from) = client.recv_from(&mut buffer).expect("a datagram");
            assert_eq!((&buffer[..length], from), (&b"stranger"[..], stranger));
        },
    );
}

/// Closed by policy, and closed on the host.
#[test]
fn a_closed_udp_port_is_told() {
    closed_udp_port_is_told("a_closed_udp_port_is_told", HostLoopback::Closed);
}

#[test]
fn a_udp_port_that_is_closed_outside_is_told() {
    closed_udp_port_is_told("a_udp_port_that_is_closed_outside_is_told", HostLoopback::All);
}

fn closed_udp_port_is_told(test: &str, host_loopback: HostLoopback) {
    let mut world = World::new();
    world.config.host_loopback = host_loopback;
    world.run(
        test,
        |_, _| {},
        |_, config| {
            for ip in [V4, V6] {
                let client = UdpSocket::bind((config.addresses.container_like(ip), 0)).expect("a socket");
                client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
                client.connect((gateway(config, ip), 9)).expect("a peer");
                client.send(b"hello").expect("sent");
                let error = client.recv(&mut [0; 8]).expect_err("nobody is there");
                assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{ip}");
            }
        },
    );
}

/// The gateway and the name server answer pings; so does, in their name, nobody else.
#[test]
fn the_gateway_answers_pings() {
    World::new().run(
        "the_gateway_answers_pings",
        |_, _| {},
        |_, config| {
            for like in [V4, V6] {
                let (family, protocol, request, reply) = match like {
                    IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp, 8, 0),
                    IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6, 128, 129),
                };
                // Allowed by the namespace's ping_group_range, which the link has set.
                let ping =
                    socket(family, SockType::Datagram, SockFlag::empty(), protocol).expect("a ping socket");
                let mut message = vec![request, 0, 0, 0, 0, 0, 0, 1];
                message.resize(3_000, b'x');
                let to = SockaddrStorage::from(SocketAddr::new(gateway(config, like), 0));
                sendto(ping.as_raw_fd(), &message, &to, MsgFlags::empty()).expect("sent");
                let timeout = PollTimeout::try_from(PATIENCE).expect("a short time");
                let mut wait = [PollFd::new(ping.as_fd(), PollFlags::POLLIN)];
                assert_eq!(poll(&mut wait, timeout), Ok(1), "no reply came");
                let mut answer = vec![0; 4_000];
                let length = recv(ping.as_raw_fd(), &mut answer, MsgFlags::empty()).expect("a reply");
                assert_eq!((length, answer[0]), (message.len(), reply));
                assert_eq!(answer[8..length], message[8..]);
            }
            let ping = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::empty(), SockProtocol::Icmp)
                .expect("a ping socket");
            let metadata =
                SockaddrStorage::from("169.254.169.254:0".parse::<SocketAddr>().expect("an address"));
            let message = [8, 0, 0, 0, 0, 0, 0, 1];
            sendto(ping.as_raw_fd(), &message, &metadata, MsgFlags::empty()).expect("sent");
            let timeout = PollTimeout::from(200_u8);
            let mut wait = [PollFd::new(ping.as_fd(), PollFlags::POLLIN)];
            poll(&mut wait, timeout).expect("poll");
            let answered = wait[0].revents().is_some_and(|events| events.contains(PollFlags::POLLIN));
            assert!(!answered, "a prohibited address answered");
        },
    );
}

fn query(id: u8, name: &str, kind: u8) -> Vec<u8> {
    let mut message = vec![0, id, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(label.len() as u8);
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, kind, 0, 1]);
    message
}

/// What the tests' name server makes of a query: the query as an answer, with a record.
fn forwarded_answer(query: &[u8]) -> Vec<u8> {
    let mut answer = query.to_vec();
    answer[2] |= 0x80;
    answer[7] = 1;
    answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, 53]);
    answer
}

const A: u8 = 1;

#[test]
fn names_are_answered_and_forwarded() {
    let server = UdpSocket::bind((V4, 0)).expect("a socket");
    server.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let address = server.local_addr().expect("an address");
    let tcp_server = TcpListener::bind(address).expect("the same port for TCP");
    let dead = UdpSocket::bind((V4, 0)).expect("a socket").local_addr().expect("an address");
    let mut world = World::new();
    // The first server does not exist; the second answers.
    world.config.resolver = Resolver::Servers(vec![dead, address]);
    world.config.host_names = vec![HostName {
        name: "Web.Local".into(),
        addresses: vec!["192.0.2.80".parse().expect("an address")],
    }];
    world.run(
        "names_are_answered_and_forwarded",
        |_, _| {
            let mut buffer = [0; 512];
            for _ in 0..2 {
                let (length, from) = server.recv_from(&mut buffer).expect("a query");
                server.send_to(&forwarded_answer(&buffer[..length]), from).expect("sent");
            }
            let (mut socket, _) = accept(&tcp_server);
            let mut length = [0; 2];
            socket.read_exact(&mut length).expect("a length");
            let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
            socket.read_exact(&mut message).expect("a query");
            let answer = forwarded_answer(&message);
            socket.write_all(&(answer.len() as u16).to_be_bytes()).expect("room");
            socket.write_all(&answer).expect("room");
        },
        |_, config| {
            let mut buffer = [0; 512];
            for like in [V4, V6] {
                let dns: IpAddr = match like {
                    IpAddr::V4(_) => config.addresses.v4.dns.into(),
                    IpAddr::V6(_) => config.addresses.v6.dns.into(),
                };
                let client = UdpSocket::bind((config.addresses.container_like(like), 0)).expect("a socket");
                client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
                client.connect((dns, 53)).expect("a peer");
                let mut ask = |query: &[u8]| {
                    client.send(query).expect("sent");
                    let length = client.recv(&mut buffer).expect("an answer");
                    buffer[..length].to_vec()
                };
                let known = ask(&query(1, "web.local", A));
                assert_eq!(known[known.len() - 4..], [192, 0, 2, 80]);
                let host = ask(&query(2, "host.docker.internal", A));
                assert_eq!(host[host.len() - 4..], config.addresses.v4.gateway.octets());
                let query = query(3, "example.com", A);
                assert_eq!(ask(&query), forwarded_answer(&query));
            }
            // Over TCP, two queries in one go, their bytes cut where it hurts.
            let mut client = dial(SocketAddr::new(config.addresses.v4.dns.into(), 53));
            let mut bytes = Vec::new();
            for message in [query(4, "web.local", A), query(5, "example.com", A)] {
                bytes.extend((message.len() as u16).to_be_bytes());
                bytes.extend(message);
            }
            client.write_all(&bytes[..1]).expect("room");
            thread::sleep(Duration::from_millis(20));
            client.write_all(&bytes[1..]).expect("room");
            client.shutdown(Shutdown::Write).expect("an end");
            let mut answers = Vec::new();
            client.read_to_end(&mut answers).expect("the answers and an end");
            let first = 2 + usize::from(u16::from_be_bytes([answers[0], answers[1]]));
            assert_eq!(answers[first - 4..first], [192, 0, 2, 80]);
            assert_eq!(answers[first + 2..], forwarded_answer(&query(5, "example.com", A)));
        },
    );
}

#[test]
fn a_thousand_connections_at_once() {
    let count = connections();
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit of descriptors");
    // Per connection one descriptor for the server here and one for the gateway.
    let needed = 2 * count as u64 + 400;
    if hard < needed {
        eprintln!("SKIPPED a_thousand_connections_at_once: {hard} descriptors are too few");
        return;
    }
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(needed), hard).expect("more descriptors");
    World::new().run(
        "a_thousand_connections_at_once",
        |peer, _| {
            let listener = listen(V4);
            peer.say(&listener.local_addr().expect("an address").to_string());
            let mut sockets: Vec<TcpStream> = (0..count).map(|_| accept(&listener).0).collect();
            for socket in &mut sockets {
                let mut number = [0; 4];
                socket.read_exact(&mut number).expect("a number");
                socket.write_all(&number).expect("room");
            }
        },
        |peer, config| {
            let to = SocketAddr::new(gateway(config, V4), peer.hear_address().port());
            let mut sockets: Vec<TcpStream> = (0..count).map(|_| dial(to)).collect();
            for (number, socket) in sockets.iter_mut().enumerate() {
                socket.write_all(&(number as u32).to_be_bytes()).expect("room");
            }
            for (number, socket) in sockets.iter_mut().enumerate() {
                let mut answer = [0; 4];
                socket.read_exact(&mut answer).expect("the number");
                assert_eq!(u32::from_be_bytes(answer), number as u32);
            }
        },
    );
}

/// Frames of any kind, put on the wire by a raw socket as a container with CAP_NET_RAW can, end
/// neither the gateway nor a connection beside them.
#[test]
fn garbage_frames_are_dropped() {
    World::new().run(
        "garbage_frames_are_dropped",
        |peer, _| {
            let listener = listen(V4);
            peer.say(&listener.local_addr().expect("an address").to_string());
            let (mut socket, _) = accept(&listener);
            check_stream(&mut socket, 5, 16);
        },
        |peer, config| {
            let to = SocketAddr::new(gateway(config, V4), peer.hear_address().port());
            let mut beside = dial(to);
            let raw = world::raw_socket();
            let mut random = Stream(77);
            let own = config.addresses.v4.container.octets();
            let gateway = config.addresses.v4.gateway.octets();
            for round in 0..2_000_usize {
                let mut frame = vec![0; 1 + round % 200];
                random.fill(&mut frame);
                // Half of them look like IP up to a point, and some like TCP of this connection.
                if round % 2 == 0 && frame.len() >= 40 {
                    let length = (frame.len() as u16).to_be_bytes();
                    let protocol = [6, 17, 1, 58][round / 2 % 4];
                    frame[..4].copy_from_slice(&[0x45, 0, length[0], length[1]]);
                    frame[6..8].copy_from_slice(if round % 16 == 0 { &[0x20, 1] } else { &[0x40, 0] });
                    frame[9] = protocol;
                    frame[12..16].copy_from_slice(&own);
                    frame[16..20].copy_from_slice(&gateway);
                    if round % 3 == 0 {
                        let port = beside.local_addr().expect("an address").port();
                        frame[20..22].copy_from_slice(&port.to_be_bytes());
                        frame[22..24].copy_from_slice(&to.port().to_be_bytes());
                        frame[32] = 0x50;
                        // Not RST: that one would be believed.
                        frame[33] &= !0x04;
                    }
                }
                world::send_raw(&raw, &frame);
            }
            send_stream(&mut beside, 5, 16);
        },
    );
}

/// An urgent byte has its place in the stream, both ways: nothing is lost, nothing is moved.
#[test]
fn urgent_bytes_stay_in_the_stream() {
    fn say(socket: &TcpStream) {
        for (bytes, flags) in
            [(&b"ab"[..], MsgFlags::empty()), (b"!", MsgFlags::MSG_OOB), (b"cd", MsgFlags::empty())]
        {
            assert_eq!(send(socket.as_raw_fd(), bytes, flags), Ok(bytes.len()));
        }
        socket.shutdown(Shutdown::Write).expect("an end");
    }
    fn hear(mut socket: TcpStream) {
        setsockopt(&socket, sockopt::OobInline, &true).expect("an option");
        let mut text = String::new();
        socket.read_to_string(&mut text).expect("the whole");
        assert_eq!(text, "ab!cd");
    }
    World::new().run(
        "urgent_bytes_stay_in_the_stream",
        |peer, _| {
            let listener = listen(V4);
            peer.say(&listener.local_addr().expect("an address").to_string());
            let (socket, _) = accept(&listener);
            say(&socket);
            hear(socket);
        },
        |peer, config| {
            let socket = dial(SocketAddr::new(gateway(config, V4), peer.hear_address().port()));
            say(&socket);
            hear(socket);
        },
    );
}

/// A port that was closed inside is closed outside, too: whoever goes on sending is told.
#[test]
fn a_udp_port_that_is_closed_inside_is_told() {
    World::new().run(
        "a_udp_port_that_is_closed_inside_is_told",
        |peer, _| {
            let server = UdpSocket::bind((V4, 0)).expect("a socket");
            server.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            peer.say(&server.local_addr().expect("an address").to_string());
            let (_, mapped) = server.recv_from(&mut [0; 16]).expect("a datagram");
            server.connect(mapped).expect("a peer");
            peer.hear_exactly("closed");
            let started = Instant::now();
            while server.send(b"hello?").is_ok() {
                assert!(started.elapsed() < PATIENCE, "nobody told of the closed port");
                thread::sleep(Duration::from_millis(10));
            }
            peer.say("told");
        },
        |peer, config| {
            let to = SocketAddr::new(gateway(config, V4), peer.hear_address().port());
            let client = UdpSocket::bind((config.addresses.v4.container, 0)).expect("a socket");
            client.send_to(b"hello", to).expect("sent");
            drop(client);
            peer.say("closed");
            peer.hear_exactly("told");
        },
    );
}

/// A published server that answers a client which is gone is told so.
#[test]
fn a_udp_client_that_is_gone_is_told() {
    let mut world = World::new();
    world.publish = vec![udp(V4, 5000)];
    world.run(
        "a_udp_client_that_is_gone_is_told",
        |peer, bound| {
            peer.hear_exactly("listening");
            let client = UdpSocket::bind((V4, 0)).expect("a socket");
            client.send_to(b"question", bound[0].address).expect("sent");
            peer.hear_exactly("heard");
            drop(client);
            peer.say("gone");
        },
        |peer, config| {
            let server = UdpSocket::bind((config.addresses.v4.container, 5000)).expect("port 5000");
            server.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            setsockopt(&server, sockopt::Ipv4RecvErr, &true).expect("an option");
            peer.say("listening");
            let (_, client) = server.recv_from(&mut [0; 16]).expect("a question");
            peer.say("heard");
            peer.hear_exactly("gone");
            server.send_to(b"answer", client).expect("sent");
            let error = server.recv(&mut [0; 16]).expect_err("nobody is there");
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        },
    );
}

/// What a container can do at worst, each at full speed: SYNs to everywhere, a scan of all ports, and
/// datagrams from all ports. The gateway's memory and descriptors stay within bounds, a connection
/// beside it goes on, and afterwards all is as before.
#[test]
fn floods_from_inside_are_bounded() {
    const MEMORY_MAX_KIB: u64 = 48 << 10;
    let resident_kib = || {
        let status = std::fs::read_to_string("/proc/self/status").expect("own status");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a size");
        line.split_ascii_whitespace().nth(1).and_then(|size| size.parse::<u64>().ok()).expect("a number")
    };
    World::new().run(
        "floods_from_inside_are_bounded",
        |peer, _| {
            let listener = listen(V4);
            peer.say(&listener.local_addr().expect("an address").to_string());
            let (mut beside, _) = accept(&listener);
            let before = resident_kib();
            check_stream(&mut beside, 9, 64);
            peer.hear_exactly("flooded");
            let after = resident_kib();
            assert!(after < before + MEMORY_MAX_KIB, "grew from {before} to {after} KiB");
            let (mut late, _) = accept(&listener);
            late.write_all(b"still here").expect("room");
        },
        |peer, config| {
            let to = SocketAddr::new(gateway(config, V4), peer.hear_address().port());
            let mut beside = dial(to);
            let raw = world::raw_socket();
            let (own, gateway) = (config.addresses.v4.container, config.addresses.v4.gateway);
            let sender = thread::spawn(move || send_stream(&mut beside, 9, 64));
            for number in 0..20_000_u32 {
                // No host of the documentation's network answers; where there is no route, each
                // SYN is answered at once.
                let nowhere = Ipv4Addr::from(0xc633_6400 + number % 250);
                world::send_raw(&raw, &syn(own, nowhere, 1_024 + (number / 250) as u16, 80));
                world::send_raw(&raw, &syn(own, gateway, 40_000, 1 + number as u16 % 20_000));
            }
            for port in 1_024..12_000_u16 {
                // The kernel cannot have so many sockets of this process; a raw one can speak for
                // all ports.
                world::send_raw(&raw, &datagram(own, gateway, port, 9));
            }
            sender.join().expect("the connection beside goes on");
            peer.say("flooded");
            let mut late = dial(to);
            let mut text = String::new();
            late.read_to_string(&mut text).expect("a greeting");
            assert_eq!(text, "still here");
        },
    );
}

fn ipv4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0];
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(payload);
    let length = (packet.len() as u16).to_be_bytes();
    packet[2..4].copy_from_slice(&length);
    packet
}

fn syn(source: Ipv4Addr, destination: Ipv4Addr, source_port: u16, port: u16) -> Vec<u8> {
    let mut tcp = Vec::new();
    tcp.extend(source_port.to_be_bytes());
    tcp.extend(port.to_be_bytes());
    tcp.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    ipv4(source, destination, 6, &tcp)
}

fn datagram(source: Ipv4Addr, destination: Ipv4Addr, source_port: u16, port: u16) -> Vec<u8> {
    let mut udp = Vec::new();
    udp.extend(source_port.to_be_bytes());
    udp.extend(port.to_be_bytes());
    udp.extend([0, 12, 0, 0, b'f', b'l', b'o', b'o']);
    ipv4(source, destination, 17, &udp)
}
