//! The gateway on a host with a network of the test's own: paths with a small MTU, without a route,
//! without an answer, and what the inside is told of them.

mod world;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::thread;
use std::time::Duration;

use net::Config;
use net::publish::{HostPorts, Protocol, Publish};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrStorage, bind,
    getsockname, listen, recv, sendto, setsockopt, socket, sockopt,
};
use world::{HOST_ADDRESS, PATIENCE, PrivateHost, World};

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
const NOWHERE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

fn on_host(mtu_bytes: u32, sysctls: &'static [(&'static str, &'static str)]) -> World {
    World { host: Some(PrivateHost { mtu_bytes, sysctls }), ..World::new() }
}

fn patient(socket: UdpSocket) -> UdpSocket {
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    socket
}

fn inner_socket(config: &Config, like: IpAddr) -> UdpSocket {
    patient(UdpSocket::bind((config.addresses.container_like(like), 0)).expect("a socket"))
}

/// A datagram that does not fit the host's path, and must not be cut up, is answered with
/// "fragmentation needed" (or "packet too big"): its sender learns the MTU. One that may be cut up
/// arrives.
#[test]
fn a_small_mtu_on_the_way_is_told() {
    const MTU_BYTES: u32 = 1_300;
    const LENGTH: usize = 1_400;
    on_host(MTU_BYTES, &[]).run(
        "a_small_mtu_on_the_way_is_told",
        |peer, _| {
            for ip in [V4, V6] {
                let server = patient(UdpSocket::bind((ip, 0)).expect("a socket"));
                peer.say(&server.local_addr().expect("an address").to_string());
                let mut buffer = [0; 2_000];
                let (length, _) = server.recv_from(&mut buffer).expect("a datagram");
                assert_eq!(length, LENGTH);
            }
        },
        |peer, config| {
            for ip in [V4, V6] {
                let to = SocketAddr::new(config.addresses.gateway_like(ip), peer.hear_address().port());
                let client = inner_socket(config, ip);
                world::refuse_oversize(&client, ip.is_ipv6());
                client.connect(to).expect("a peer");
                assert_eq!(client.send(&[7; LENGTH]).expect("the path is not known yet"), LENGTH);
                let error = client.recv(&mut [0; 8]).expect_err("nobody answers");
                assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE), "{ip}");
                let error = client.send(&[7; LENGTH]).expect_err("the path is known now");
                assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE), "{ip}");
                // By default the kernel inside cuts up what is too long for a path that it knows.
                let client = inner_socket(config, ip);
                client.send_to(&[7; LENGTH], to).expect("sent");
            }
        },
    );
}

#[test]
fn a_destination_without_a_route_is_unreachable() {
    on_host(1_500, &[]).run(
        "a_destination_without_a_route_is_unreachable",
        |_, _| {},
        |_, _| {
            let to = SocketAddr::new(NOWHERE.into(), 80);
            let error = TcpStream::connect_timeout(&to, PATIENCE).expect_err("there is no route");
            assert_eq!(error.kind(), ErrorKind::NetworkUnreachable);
        },
    );
}

/// A server that never answers: the inside is told when the host gives up, however long it would
/// have waited itself.
#[test]
fn a_connect_that_times_out_is_told() {
    on_host(1_500, &[("ipv4/tcp_syn_retries", "1"), ("ipv4/tcp_syn_linear_timeouts", "0")]).run(
        "a_connect_that_times_out_is_told",
        |peer, _| {
            // A queue of one that is full: the kernel drops what comes next.
            let flags = SockFlag::SOCK_CLOEXEC;
            let server = socket(AddressFamily::Inet, SockType::Stream, flags, None).expect("a socket");
            bind(server.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).expect("a port");
            listen(&server, Backlog::new(0).expect("none")).expect("a listener");
            let address: SockaddrIn = getsockname(server.as_raw_fd()).expect("an address");
            let to = SocketAddr::from((address.ip(), address.port()));
            let _first = TcpStream::connect_timeout(&to, PATIENCE).expect("room for one");
            peer.say(&to.to_string());
            peer.hear_exactly("told");
        },
        |peer, config| {
            let to = SocketAddr::new(config.addresses.gateway_like(V4), peer.hear_address().port());
            let error = TcpStream::connect_timeout(&to, PATIENCE).expect_err("nobody answers");
            assert_eq!(error.kind(), ErrorKind::HostUnreachable);
            peer.say("told");
        },
    );
}

/// Pings leave through the host's ping sockets where it allows them.
#[test]
fn pings_reach_other_machines() {
    on_host(1_500, &[("ipv4/ping_group_range", "0 0")]).run(
        "pings_reach_other_machines",
        |_, _| {},
        |_, _| {
            let ping = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::empty(), SockProtocol::Icmp)
                .expect("a ping socket");
            setsockopt(&ping, sockopt::Ipv4RecvErr, &true).expect("an option");
            let exchange = |to: Ipv4Addr| {
                let to = SockaddrStorage::from(SocketAddr::new(to.into(), 0));
                let message = [8, 0, 0, 0, 0, 0, 0, 9, b'p', b'i', b'n', b'g'];
                sendto(ping.as_raw_fd(), &message, &to, MsgFlags::empty()).expect("sent");
                let timeout = PollTimeout::try_from(PATIENCE).expect("a short time");
                let mut wait = [PollFd::new(ping.as_fd(), PollFlags::POLLIN)];
                assert_eq!(poll(&mut wait, timeout), Ok(1), "nothing came");
                let mut answer = [0; 64];
                let length = recv(ping.as_raw_fd(), &mut answer, MsgFlags::empty())?;
                Ok::<_, nix::Error>((answer[0], answer[6..length].to_vec()))
            };
            assert_eq!(exchange(HOST_ADDRESS), Ok((0, b"\0\x09ping".to_vec())));
            assert_eq!(exchange(NOWHERE), Err(nix::Error::ENETUNREACH));
        },
    );
}

/// What traceroute needs: the gateway is the first router, and what has hops left goes on.
#[test]
fn the_hop_limit_is_honoured() {
    on_host(1_500, &[]).run(
        "the_hop_limit_is_honoured",
        |peer, _| {
            let server = patient(UdpSocket::bind((HOST_ADDRESS, 0)).expect("a socket"));
            peer.say(&server.local_addr().expect("an address").to_string());
            let mut buffer = [0; 16];
            let (length, _) = server.recv_from(&mut buffer).expect("a datagram");
            assert_eq!(&buffer[..length], b"two hops");
        },
        |peer, config| {
            let client = inner_socket(config, V4);
            setsockopt(&client, sockopt::Ipv4RecvErr, &true).expect("an option");
            client.connect(peer.hear_address()).expect("a peer");
            world::set_hop_limit(&client, 1);
            client.send(b"one hop").expect("sent");
            let error = client.recv(&mut [0; 8]).expect_err("the gateway is a hop");
            assert_eq!(error.kind(), ErrorKind::HostUnreachable);
            world::set_hop_limit(&client, 2);
            client.send(b"two hops").expect("sent");
        },
    );
}

/// While the process has no descriptor left, clients of a published port wait, and are served
/// afterwards.
#[test]
fn clients_wait_for_descriptors() {
    let mut world = on_host(65_536, &[]);
    world.publish =
        vec![Publish { host: Some(V4), ports: HostPorts::Any, container_port: 80, protocol: Protocol::Tcp }];
    world.run(
        "clients_wait_for_descriptors",
        |peer, bound| {
            peer.hear_exactly("listening");
            let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit of descriptors");
            setrlimit(Resource::RLIMIT_NOFILE, 64, hard).expect("a lower limit");
            let mut clients = Vec::new();
            while let Ok(client) = TcpStream::connect(bound[0].address) {
                client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
                clients.push(client);
            }
            assert!(clients.len() > 10, "only {} clients", clients.len());
            // The gateway looks for descriptors, in vain, again and again.
            thread::sleep(Duration::from_millis(300));
            setrlimit(Resource::RLIMIT_NOFILE, 1_024.min(hard), hard).expect("the old limit");
            peer.say(&clients.len().to_string());
            for client in &mut clients {
                let mut answer = [0; 2];
                client.read_exact(&mut answer).expect("an answer");
                assert_eq!(&answer, b"ok");
            }
        },
        |peer, config| {
            let server = TcpListener::bind((config.addresses.v4.container, 80)).expect("port 80");
            peer.say("listening");
            let count: usize = peer.hear().parse().expect("a number");
            let mut sockets = Vec::new();
            for _ in 0..count {
                let (mut socket, _) = server.accept().expect("a client");
                socket.write_all(b"ok").expect("room");
                sockets.push(socket);
            }
        },
    );
}
