//! Ports of the host that lead into the namespace: bound before anything starts.
//!
//! [`bind`] runs in the host's namespaces, so that a busy port is an error before a container
//! exists. The [`Listeners`] hold the sockets; TCP ones listen already, so no client is refused
//! while the rest starts.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, getsockname, setsockopt, socket, sockopt,
};
use nix::sys::socket::{bind as bind_socket, listen};

/// How many connections may wait for the gateway, as far as the host's somaxconn lets it.
const BACKLOG: i32 = 4096;

/// With "any address" and "any port" the kernel picks the port for IPv4, and it may be taken for
/// IPv6: this many picks are tried.
const PORT_PICKS: usize = 16;

/// Where Linux keeps the first port that everyone may bind.
const UNPRIVILEGED_PORT_START: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";

/// The transport of a published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// Which of the host's ports may be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HostPorts {
    /// One that the kernel chooses.
    Any,
    /// The first free one from `first` to `last`.
    FirstFree {
        /// The first to try.
        first: u16,
        /// The last.
        last: u16,
    },
}

impl HostPorts {
    /// This one; 0 is any, as for bind(2).
    #[must_use]
    pub const fn one(port: u16) -> Self {
        if port == 0 { Self::Any } else { Self::FirstFree { first: port, last: port } }
    }

    fn is_one(self) -> bool {
        matches!(self, Self::FirstFree { first, last } if first == last)
    }

    fn first(self) -> u16 {
        match self {
            Self::Any => 0,
            Self::FirstFree { first, .. } => first,
        }
    }
}

/// One port to publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Publish {
    /// The host's address to bind; none is 0.0.0.0 and, where the host has IPv6, `[::]`.
    pub host: Option<IpAddr>,
    /// The host's port.
    pub ports: HostPorts,
    /// The port inside.
    pub container_port: u16,
    /// The transport.
    pub protocol: Protocol,
}

/// One address that was bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    /// Which of the requests it belongs to.
    pub request: usize,
    /// The host's address, with the port that the kernel chose if it did.
    pub address: SocketAddr,
    /// The port inside.
    pub container_port: u16,
    /// The transport.
    pub protocol: Protocol,
}

/// A port that cannot be published.
#[derive(Debug, thiserror::Error)]
#[error("cannot publish {address}{range}/{protocol}{hint}", range = self.range(), hint = self.hint())]
pub struct BindError {
    /// The address asked for.
    pub address: SocketAddr,
    /// The last port that was tried, where it was a range of them.
    pub last_port: Option<u16>,
    /// Whether another of the requests has the port.
    pub is_own: bool,
    /// The transport.
    pub protocol: Protocol,
    /// The first port that an ordinary user may bind, if this one is below it.
    pub unprivileged_port_start: Option<u16>,
    /// The kernel's answer.
    pub source: io::Error,
}

impl BindError {
    fn new(request: &Publish, address: SocketAddr, source: io::Error, held: &[Listener]) -> Self {
        let start = unprivileged_port_start();
        let denied = source.kind() == io::ErrorKind::PermissionDenied;
        let last_port = match request.ports {
            HostPorts::FirstFree { first, last } if first < last => Some(last),
            _ => None,
        };
        let is_own = source.kind() == io::ErrorKind::AddrInUse
            && held.iter().any(|other| {
                (other.bound.protocol, other.bound.address.port()) == (request.protocol, address.port())
            });
        Self {
            address,
            last_port,
            is_own: is_own && last_port.is_none(),
            protocol: request.protocol,
            unprivileged_port_start: (denied && address.port() < start).then_some(start),
            source,
        }
    }

    fn range(&self) -> String {
        self.last_port.map(|last| format!("-{last}")).unwrap_or_default()
    }

    fn hint(&self) -> String {
        match (self.unprivileged_port_start, self.source.kind()) {
            (Some(start), _) => format!(
                ": ports below {start} are root's; choose another, or have root run \
                 `sysctl net.ipv4.ip_unprivileged_port_start={port}`",
                port = self.address.port()
            ),
            (None, io::ErrorKind::AddrInUse) if self.last_port.is_some() => {
                ": every port of the range is taken; choose others, or see who has them with `ss -lntup`"
                    .into()
            }
            (None, io::ErrorKind::AddrInUse) if self.is_own => {
                ": the port was asked for twice; give each its own".into()
            }
            (None, io::ErrorKind::AddrInUse) => {
                ": the port is taken; choose another, or see who has it with `ss -lntup`".into()
            }
            (None, io::ErrorKind::AddrNotAvailable) => ": the host does not have this address".into(),
            _ => String::new(),
        }
    }
}

fn unprivileged_port_start() -> u16 {
    std::fs::read_to_string(UNPRIVILEGED_PORT_START)
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(1024)
}

/// The bound sockets of all requests.
#[derive(Debug, Default)]
pub struct Listeners {
    pub(crate) sockets: Vec<Listener>,
}

#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) socket: OwnedFd,
    pub(crate) bound: Bound,
}

impl Listeners {
    /// What was bound, in the order of the requests.
    #[must_use]
    pub fn bound(&self) -> Vec<Bound> {
        self.sockets.iter().map(|listener| listener.bound).collect()
    }
}

/// Binds every request, or none. Two that are the same count once.
///
/// The order is Docker's: single ports come first, so that no range takes them. Requests that differ
/// in their address alone get the same port.
///
/// # Errors
/// [`BindError`] for the first address that cannot be bound.
pub fn bind(requests: &[Publish]) -> Result<Listeners, BindError> {
    let what = |index: &usize| {
        let Publish { ports, container_port, protocol, .. } = requests[*index];
        (!ports.is_one(), container_port, protocol, ports)
    };
    let mut order: Vec<usize> = (0..requests.len()).collect();
    let mut seen = HashSet::new();
    order.retain(|index| seen.insert(requests[*index]));
    order.sort_by_key(what);
    let mut sockets = Vec::with_capacity(requests.len() * 2);
    for group in order.chunk_by(|a, b| what(a) == what(b)) {
        let bound = bind_group(requests, group).map_err(|(index, (address, source))| {
            BindError::new(&requests[index], address, source, &sockets)
        })?;
        sockets.extend(bound);
    }
    sockets.sort_by_key(|listener| listener.bound.request);
    Ok(Listeners { sockets })
}

type Refused = (SocketAddr, io::Error);

/// Binds requests that want the same port at different addresses.
fn bind_group(requests: &[Publish], group: &[usize]) -> Result<Vec<Listener>, (usize, Refused)> {
    let (mut port, last, mut picks_left) = match group.first().map(|index| requests[*index].ports) {
        None => return Ok(Vec::new()),
        Some(HostPorts::FirstFree { first, last }) => (first, last, 0),
        Some(HostPorts::Any) => (0, 0, PORT_PICKS - 1),
    };
    loop {
        match bind_at(requests, group, port) {
            Ok(sockets) => return Ok(sockets),
            Err((_, (_, error))) if error.kind() == io::ErrorKind::AddrInUse && port < last => port += 1,
            Err((_, (_, error))) if error.kind() == io::ErrorKind::AddrInUse && picks_left > 0 => {
                picks_left -= 1;
            }
            Err((index, (mut address, error))) => {
                address.set_port(requests[index].ports.first());
                return Err((index, (address, error)));
            }
        }
    }
}

/// Binds all of a group at this port; 0 lets the kernel choose it.
fn bind_at(requests: &[Publish], group: &[usize], mut port: u16) -> Result<Vec<Listener>, (usize, Refused)> {
    let mut sockets = Vec::with_capacity(group.len() * 2);
    for &index in group {
        let request = &requests[index];
        let (host, second) = match request.host {
            Some(host) => (host, None),
            None => (Ipv4Addr::UNSPECIFIED.into(), Some(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port))),
        };
        let first =
            bind_one(index, request, SocketAddr::new(host, port)).map_err(|refused| (index, refused))?;
        port = first.bound.address.port();
        sockets.push(first);
        let Some(mut second) = second else { continue };
        second.set_port(port);
        match bind_one(index, request, second) {
            Ok(listener) => sockets.push(listener),
            Err((_, error)) if lacks_ipv6(&error) => {}
            Err(refused) => return Err((index, refused)),
        }
    }
    Ok(sockets)
}

fn lacks_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL | libc::EPROTONOSUPPORT))
}

fn bind_one(index: usize, request: &Publish, address: SocketAddr) -> Result<Listener, Refused> {
    let bind = || -> io::Result<Listener> {
        let family = match address {
            SocketAddr::V4(_) => AddressFamily::Inet,
            SocketAddr::V6(_) => AddressFamily::Inet6,
        };
        let kind = match request.protocol {
            Protocol::Tcp => SockType::Stream,
            Protocol::Udp => SockType::Datagram,
        };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(family, kind, flags, None)?;
        if address.is_ipv6() {
            setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
        }
        if request.protocol == Protocol::Tcp {
            // As Go's listeners do, and so Docker's proxy: connections of a server that just
            // ended do not keep its port.
            setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        }
        bind_socket(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
        if request.protocol == Protocol::Tcp {
            listen(&socket, Backlog::new(BACKLOG)?)?;
        }
        let local: SockaddrStorage = getsockname(socket.as_raw_fd())?;
        let port = local
            .as_sockaddr_in()
            .map(nix::sys::socket::SockaddrIn::port)
            .or_else(|| local.as_sockaddr_in6().map(nix::sys::socket::SockaddrIn6::port))
            .unwrap_or(address.port());
        Ok(Listener {
            socket,
            bound: Bound {
                request: index,
                address: SocketAddr::new(address.ip(), port),
                container_port: request.container_port,
                protocol: request.protocol,
            },
        })
    };
    bind().map_err(|error| (address, error))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed bind is a failed test")]

    use super::*;

    fn local(port: u16, protocol: Protocol) -> Publish {
        let ports = HostPorts::one(port);
        Publish { host: Some(Ipv4Addr::LOCALHOST.into()), ports, container_port: 80, protocol }
    }

    #[test]
    fn the_kernel_chooses_a_port_for_both_families() {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let request = Publish { host: None, ..local(0, protocol) };
            let bound = bind(&[request]).unwrap().bound();
            assert!(!bound.is_empty() && bound.len() <= 2);
            assert_ne!(bound[0].address.port(), 0);
            for one in &bound {
                assert_eq!(one.address.port(), bound[0].address.port());
                assert!(one.address.ip().is_unspecified());
                assert_eq!(one.container_port, 80);
            }
        }
    }

    #[test]
    fn a_busy_port_is_named() {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let first = bind(&[local(0, protocol)]).unwrap();
            let taken = first.bound()[0].address;
            let error = bind(&[local(taken.port(), protocol)]).unwrap_err();
            assert_eq!(error.address, taken);
            assert_eq!(error.source.kind(), io::ErrorKind::AddrInUse);
            let text = error.to_string();
            assert!(text.contains(&format!("{taken}/{protocol}")) && text.contains("ss -lntup"), "{text}");
        }
    }

    #[test]
    fn all_or_none() {
        let first = bind(&[local(0, Protocol::Tcp)]).unwrap();
        let taken = first.bound()[0].address.port();
        let free = bind(&[local(0, Protocol::Tcp)]).unwrap();
        let free_port = free.bound()[0].address.port();
        drop(free);
        bind(&[local(free_port, Protocol::Tcp), local(taken, Protocol::Tcp)]).unwrap_err();
        bind(&[local(free_port, Protocol::Tcp)]).unwrap();
    }

    /// A port that was free a moment ago, and the next one too.
    fn two_free_ports() -> (u16, u16) {
        loop {
            let first = bind(&[local(0, Protocol::Tcp)]).unwrap().bound()[0].address.port();
            if first < u16::MAX
                && bind(&[local(first, Protocol::Tcp), local(first + 1, Protocol::Tcp)]).is_ok()
            {
                return (first, first + 1);
            }
        }
    }

    #[test]
    fn a_range_gives_its_first_free_port_and_no_single_one() {
        let (first, last) = two_free_ports();
        let ports = HostPorts::FirstFree { first, last };
        let of = |ports, container_port| Publish { ports, container_port, ..local(0, Protocol::Tcp) };
        let numbers = |requests: &[Publish]| -> Vec<(u16, u16)> {
            bind(requests).unwrap().bound().iter().map(|b| (b.address.port(), b.container_port)).collect()
        };
        assert_eq!(numbers(&[of(ports, 80)]), [(first, 80)]);
        assert_eq!(numbers(&[of(ports, 80), of(ports, 81)]), [(first, 80), (last, 81)]);
        // The lower container port chooses first; what is asked for by its number, before all.
        assert_eq!(numbers(&[of(ports, 81), of(ports, 80)]), [(last, 81), (first, 80)]);
        assert_eq!(numbers(&[of(ports, 80), of(HostPorts::one(first), 81)]), [(last, 80), (first, 81)]);
        let error = bind(&[of(ports, 80), of(ports, 81), of(ports, 82)]).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&format!("127.0.0.1:{first}-{last}/tcp: every port")), "{text}");
    }

    #[test]
    fn the_same_twice_is_once_and_a_conflict_is_explained() {
        let (port, _) = two_free_ports();
        assert_eq!(bind(&[local(port, Protocol::Tcp); 2]).unwrap().bound().len(), 1);
        let other = Publish { container_port: 81, ..local(port, Protocol::Tcp) };
        let text = bind(&[local(port, Protocol::Tcp), other]).unwrap_err().to_string();
        assert!(text.contains("asked for twice"), "{text}");
    }

    #[test]
    fn one_port_for_several_addresses() {
        let second = Publish { host: Some(Ipv4Addr::new(127, 0, 0, 2).into()), ..local(0, Protocol::Tcp) };
        let bound = bind(&[local(0, Protocol::Tcp), second]).unwrap().bound();
        assert_eq!(bound.len(), 2);
        assert_eq!(bound[0].address.port(), bound[1].address.port());
    }

    #[test]
    fn a_privileged_port_names_the_setting() {
        let error = BindError {
            address: "0.0.0.0:80".parse().unwrap(),
            last_port: None,
            is_own: false,
            protocol: Protocol::Tcp,
            unprivileged_port_start: Some(1024),
            source: io::ErrorKind::PermissionDenied.into(),
        };
        assert!(error.to_string().contains("net.ipv4.ip_unprivileged_port_start=80"));
    }
}
