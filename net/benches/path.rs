//! The gateway's data path on the real kernel, without an engine and without other programs.
//!
//! ```sh
//! cargo bench -p hostel-net --bench path [-- CASE...]
//! ```
//!
//! For each case: what came through, and how long the gateway's thread was on a CPU for it. The
//! latter is what to compare between two builds: on a busy machine it moves far less than the rate.
//! Needs what the tests need: user namespaces and /dev/net/tun.

#[path = "../tests/world/mod.rs"]
mod world;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use net::Config;
use net::publish::{HostPorts, Protocol, Publish};
use world::World;

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const STREAM_BYTES: usize = 2 << 30;
const CONNECTIONS: usize = 64;
const REQUESTS: usize = 100_000;
const REQUEST_BYTES: usize = 128;
const CONNECTS: usize = 4_000;
const DATAGRAMS: usize = 400_000;
const DATAGRAM_BYTES: usize = 1_400;

/// A name, and what runs the case under it.
type Case = (&'static str, fn(&str));

fn main() {
    let cases: [Case; 6] = [
        ("tcp-out", tcp_out),
        ("tcp-in", tcp_in),
        ("requests", requests),
        ("connects", connects),
        ("udp-out", udp_out),
        ("udp-in", udp_in),
    ];
    let asked: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    for (name, case) in cases {
        if asked.is_empty() || asked.iter().any(|one| one == name) {
            case(name);
        }
    }
}

fn world(protocol: Protocol) -> World {
    let publish = Publish { host: Some(V4), ports: HostPorts::Any, container_port: 5000, protocol };
    World { publish: vec![publish], ..World::new() }
}

fn container(config: &Config) -> SocketAddr {
    SocketAddr::new(config.addresses.v4.container.into(), 5000)
}

/// The host's port that the other half names, as the inside reaches it.
fn host(peer: &mut world::Peer, config: &Config) -> SocketAddr {
    SocketAddr::new(config.addresses.v4.gateway.into(), peer.hear_address().port())
}

fn listen_outside(peer: &mut world::Peer) -> TcpListener {
    let listener = TcpListener::bind((V4, 0)).expect("a listener");
    peer.say(&listener.local_addr().expect("an address").to_string());
    listener
}

fn report_stream(name: &str, took: Duration, on_cpu: Option<Duration>) {
    let Some(on_cpu) = on_cpu else { return };
    let gigabits = STREAM_BYTES as f64 * 8.0 / 1e9;
    println!(
        "{name:9} {:7.2} Gbit/s   gateway {:6.1} ms a GiB",
        gigabits / took.as_secs_f64(),
        on_cpu.as_secs_f64() * 1e3 / (STREAM_BYTES as f64 / f64::from(1 << 30))
    );
}

fn report_each(name: &str, count: usize, what: &str, took: Duration, on_cpu: Option<Duration>) {
    let Some(on_cpu) = on_cpu else { return };
    println!(
        "{name:9} {:7.0} {what}/s   gateway {:6.2} us each",
        count as f64 / took.as_secs_f64(),
        on_cpu.as_secs_f64() * 1e6 / count as f64
    );
}

fn send_stream(mut socket: TcpStream) {
    let block = vec![7; 128 << 10];
    for _ in 0..STREAM_BYTES / block.len() {
        socket.write_all(&block).expect("room");
    }
    socket.shutdown(Shutdown::Write).expect("an end");
}

/// Reads to the end; returns the time from the first byte on.
fn receive_stream(mut socket: TcpStream) -> Duration {
    let mut block = vec![0; 128 << 10];
    let mut total = socket.read(&mut block).expect("a first byte");
    let started = Instant::now();
    loop {
        match socket.read(&mut block).expect("bytes") {
            0 => break,
            count => total += count,
        }
    }
    assert_eq!(total, STREAM_BYTES);
    started.elapsed()
}

fn tcp_out(name: &str) {
    let mut took = Duration::ZERO;
    let on_cpu = world(Protocol::Tcp).run(
        name,
        |peer, _| took = receive_stream(listen_outside(peer).accept().expect("a client").0),
        |peer, config| send_stream(TcpStream::connect(host(peer, config)).expect("a connection")),
    );
    report_stream(name, took, on_cpu);
}

fn tcp_in(name: &str) {
    let mut took = Duration::ZERO;
    let on_cpu = world(Protocol::Tcp).run(
        name,
        |peer, bound| {
            peer.hear_exactly("listening");
            send_stream(TcpStream::connect(bound[0].address).expect("a connection"));
            took = Duration::from_micros(peer.hear().parse().expect("a number"));
        },
        |peer, config| {
            let listener = TcpListener::bind(container(config)).expect("the port");
            peer.say("listening");
            let took = receive_stream(listener.accept().expect("a client").0);
            peer.say(&took.as_micros().to_string());
        },
    );
    report_stream(name, took, on_cpu);
}

/// Requests and answers on connections that stay open, as many under way as there are connections.
fn requests(name: &str) {
    let mut took = Duration::ZERO;
    let on_cpu = world(Protocol::Tcp).run(
        name,
        |peer, bound| {
            peer.hear_exactly("listening");
            let connect = |_| {
                let socket = TcpStream::connect(bound[0].address).expect("a connection");
                socket.set_nodelay(true).expect("an option");
                socket
            };
            let mut sockets: Vec<TcpStream> = (0..CONNECTIONS).map(connect).collect();
            let mut buffer = [7; REQUEST_BYTES];
            let started = Instant::now();
            for _ in 0..REQUESTS / CONNECTIONS {
                for socket in &mut sockets {
                    socket.write_all(&buffer).expect("room");
                }
                for socket in &mut sockets {
                    socket.read_exact(&mut buffer).expect("an answer");
                }
            }
            took = started.elapsed();
        },
        |peer, config| {
            let listener = TcpListener::bind(container(config)).expect("the port");
            peer.say("listening");
            let serve = |_| {
                let (mut socket, _) = listener.accept().expect("a client");
                thread::spawn(move || {
                    let mut buffer = [0; REQUEST_BYTES];
                    while socket.read_exact(&mut buffer).is_ok() {
                        socket.write_all(&buffer).expect("room");
                    }
                })
            };
            for server in (0..CONNECTIONS).map(serve).collect::<Vec<_>>() {
                server.join().expect("no panic");
            }
        },
    );
    report_each(name, REQUESTS, "requests", took, on_cpu);
}

/// Connections out, one after the other, a byte each way on each.
fn connects(name: &str) {
    let mut took = Duration::ZERO;
    let on_cpu = world(Protocol::Tcp).run(
        name,
        |peer, _| {
            let listener = listen_outside(peer);
            let started = Instant::now();
            for _ in 0..CONNECTS {
                let (mut socket, _) = listener.accept().expect("a client");
                let mut byte = [0];
                socket.read_exact(&mut byte).expect("a byte");
                socket.write_all(&byte).expect("room");
            }
            took = started.elapsed();
        },
        |peer, config| {
            let to = host(peer, config);
            for _ in 0..CONNECTS {
                let mut socket = TcpStream::connect(to).expect("a connection");
                socket.write_all(&[1]).expect("room");
                socket.read_exact(&mut [0]).expect("a byte");
            }
        },
    );
    report_each(name, CONNECTS, "connections", took, on_cpu);
}

fn send_datagrams(to: SocketAddr) {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    socket.connect(to).expect("a peer");
    for _ in 0..DATAGRAMS {
        // A full queue loses it, as a network may.
        _ = socket.send(&[7; DATAGRAM_BYTES]);
    }
}

/// Receives until nothing comes any more; returns how many came, and in which time.
fn receive_datagrams(socket: &UdpSocket) -> (usize, Duration) {
    let mut buffer = [0; 2_048];
    socket.set_read_timeout(Some(world::PATIENCE)).expect("a timeout");
    socket.recv(&mut buffer).expect("a datagram");
    socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
    let started = Instant::now();
    let (mut count, mut took) = (1, Duration::ZERO);
    while socket.recv(&mut buffer).is_ok() {
        count += 1;
        if count % 64 == 0 {
            took = started.elapsed();
        }
    }
    (count, took)
}

fn udp_out(name: &str) {
    let mut received = (0, Duration::ZERO);
    let on_cpu = world(Protocol::Udp).run(
        name,
        |peer, _| {
            let socket = UdpSocket::bind((V4, 0)).expect("a socket");
            peer.say(&socket.local_addr().expect("an address").to_string());
            received = receive_datagrams(&socket);
        },
        |peer, config| send_datagrams(host(peer, config)),
    );
    report_each(name, received.0, "datagrams", received.1, on_cpu);
}

fn udp_in(name: &str) {
    let mut received = (0, Duration::ZERO);
    let on_cpu = world(Protocol::Udp).run(
        name,
        |peer, bound| {
            peer.hear_exactly("listening");
            send_datagrams(bound[0].address);
            let (count, micros) = (peer.hear(), peer.hear());
            let micros = micros.parse().expect("a number");
            received = (count.parse().expect("a number"), Duration::from_micros(micros));
        },
        |peer, config| {
            let socket = UdpSocket::bind(container(config)).expect("the port");
            peer.say("listening");
            let (count, took) = receive_datagrams(&socket);
            peer.say(&count.to_string());
            peer.say(&took.as_micros().to_string());
        },
    );
    report_each(name, received.0, "datagrams", received.1, on_cpu);
}
