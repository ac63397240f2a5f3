//! At a limit the newest is refused, and the rest goes on. One test a limit, each on the real kernel;
//! those of buffers and of SYNs that wait are in `hostile.rs`, those of tables beside the tables.

mod world;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use net::{Config, HostName, Resolver};
use world::{PATIENCE, World};

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn gateway(config: &Config) -> IpAddr {
    config.addresses.v4.gateway.into()
}

fn socket(config: &Config) -> UdpSocket {
    let socket = UdpSocket::bind((config.addresses.v4.container, 0)).expect("a socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    socket
}

/// Whether a byte comes back.
fn echoes(stream: &mut TcpStream) -> bool {
    let mut byte = [0];
    stream.write_all(b"x").is_ok() && stream.read_exact(&mut byte).is_ok()
}

fn dial(to: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

#[test]
fn connections() {
    let mut world = World::new();
    world.config.limits.tcp_flows = 2;
    world.run(
        "connections",
        |peer, _| {
            let listener = TcpListener::bind((V4, 0)).expect("a listener");
            peer.say(&listener.local_addr().expect("an address").to_string());
            thread::spawn(move || {
                for stream in listener.incoming() {
                    let mut stream = stream.expect("a client");
                    thread::spawn(move || {
                        let mut byte = [0];
                        while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
                    });
                }
            });
            peer.hear_exactly("done");
        },
        |peer, config| {
            let to = SocketAddr::new(gateway(config), peer.hear_address().port());
            let mut first = dial(to).expect("the first");
            let mut second = dial(to).expect("the second");
            assert!(echoes(&mut first) && echoes(&mut second));
            for _ in 0..20 {
                let error = dial(to).expect_err("there is room for two");
                assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
            }
            assert!(echoes(&mut first) && echoes(&mut second));
            drop(first);
            // Its end is exchanged in a moment; then there is room again.
            let started = Instant::now();
            let mut third = loop {
                match dial(to) {
                    Ok(stream) => break stream,
                    Err(error) => assert!(started.elapsed() < PATIENCE, "{error}"),
                }
                thread::sleep(Duration::from_millis(5));
            };
            assert!(echoes(&mut third) && echoes(&mut second));
            peer.say("done");
        },
    );
}

#[test]
fn udp_mappings() {
    let mut world = World::new();
    world.config.limits.udp_mappings = 2;
    world.run(
        "udp_mappings",
        |peer, _| {
            let server = UdpSocket::bind((V4, 0)).expect("a socket");
            server.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            peer.say(&server.local_addr().expect("an address").to_string());
            let mut buffer = [0; 8];
            let mut seen = Vec::new();
            for _ in 0..4 {
                let (length, from) = server.recv_from(&mut buffer).expect("a datagram");
                seen.push(buffer[0]);
                server.send_to(&buffer[..length], from).expect("sent");
            }
            // The third's would have come before the second round's.
            assert_eq!(seen, b"1212");
        },
        |peer, config| {
            let to = SocketAddr::new(gateway(config), peer.hear_address().port());
            let (first, second, third) = (socket(config), socket(config), socket(config));
            let echoes = |socket: &UdpSocket, byte: u8| {
                socket.send_to(&[byte], to).expect("sent");
                let mut buffer = [0; 8];
                assert_eq!(socket.recv(&mut buffer).expect("an echo"), 1);
                assert_eq!(buffer[0], byte);
            };
            echoes(&first, b'1');
            echoes(&second, b'2');
            third.send_to(b"3", to).expect("sent");
            echoes(&first, b'1');
            echoes(&second, b'2');
        },
    );
}

fn query(id: u8, name: &str) -> Vec<u8> {
    let mut message = vec![0, id, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, name.len() as u8];
    message.extend(name.as_bytes());
    message.extend([0, 0, 1, 0, 1]);
    message
}

const SERVER_FAILURE: u8 = 2;

#[test]
fn queries_that_wait() {
    let server = UdpSocket::bind((V4, 0)).expect("a socket");
    server.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut world = World::new();
    world.config.resolver = Resolver::Servers(vec![server.local_addr().expect("an address")]);
    world.config.limits.dns_queries = 1;
    let addresses = vec![IpAddr::V4(Ipv4Addr::new(192, 0, 2, 80))];
    world.config.host_names = vec![HostName { name: "web".into(), addresses }];
    world.run(
        "queries_that_wait",
        |peer, _| {
            let mut buffer = [0; 512];
            let (length, from) = server.recv_from(&mut buffer).expect("the first query");
            peer.say("here");
            peer.hear_exactly("refused");
            buffer[2] |= 0x80;
            server.send_to(&buffer[..length], from).expect("sent");
        },
        |peer, config| {
            let ask = |socket: &UdpSocket, id, name| {
                socket.send_to(&query(id, name), (config.addresses.v4.dns, 53)).expect("sent");
            };
            let answer = |socket: &UdpSocket| {
                let mut buffer = [0; 512];
                socket.recv(&mut buffer).expect("an answer");
                (buffer[1], buffer[3] & 0xf)
            };
            let (first, second) = (socket(config), socket(config));
            ask(&first, 1, "slow");
            peer.hear_exactly("here");
            ask(&second, 2, "late");
            assert_eq!(answer(&second), (2, SERVER_FAILURE));
            // What is known here takes nothing.
            ask(&second, 3, "web");
            assert_eq!(answer(&second), (3, 0));
            peer.say("refused");
            assert_eq!(answer(&first), (1, 0));
        },
    );
}

/// The name server's conversations over TCP, of which there are 128 at once.
#[test]
fn name_conversations() {
    const MAX: usize = 128;
    let mut world = World::new();
    let addresses = vec![IpAddr::V4(Ipv4Addr::new(192, 0, 2, 80))];
    world.config.host_names = vec![HostName { name: "web".into(), addresses }];
    world.run(
        "name_conversations",
        |_, _| {},
        |_, config| {
            let to = SocketAddr::new(config.addresses.v4.dns.into(), 53);
            let mut open: Vec<_> = (0..MAX).map(|_| dial(to).expect("a conversation")).collect();
            let error = dial(to).expect_err("that is all");
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
            for id in [0, MAX - 1] {
                let query = query(id as u8, "web");
                let mut message = (query.len() as u16).to_be_bytes().to_vec();
                message.extend(&query);
                open[id].write_all(&message).expect("room");
                let mut answer = [0; 4];
                open[id].read_exact(&mut answer).expect("an answer");
                assert_eq!(answer[3], id as u8);
            }
        },
    );
}
