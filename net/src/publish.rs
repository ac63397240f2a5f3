//! Ports of the host that lead into the namespace: bound before anything starts.
//!
//! [`bind`] runs in the host's namespaces, so that a busy port is an error before a container
//! exists. The [`Listeners`] hold the sockets; TCP ones listen already, so no client is refused
//! while the rest starts.

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

/// One port to publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Publish {
    /// The host's address to bind; none is 0.0.0.0 and, where the host has IPv6, `[::]`.
    pub host: Option<IpAddr>,
    /// The host's port; 0 lets the kernel choose.
    pub port: u16,
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
#[error("cannot publish {address}/{protocol}{hint}", hint = self.hint())]
pub struct BindError {
    /// The address asked for.
    pub address: SocketAddr,
    /// The transport.
    pub protocol: Protocol,
    /// The first port that an ordinary user may bind, if this one is below it.
    pub unprivileged_port_start: Option<u16>,
    /// The kernel's answer.
    pub source: io::Error,
}

impl BindError {
    fn new(address: SocketAddr, protocol: Protocol, source: io::Error) -> Self {
        let start = unprivileged_port_start();
        let denied = source.kind() == io::ErrorKind::PermissionDenied;
        Self {
            address,
            protocol,
            unprivileged_port_start: (denied && address.port() < start).then_some(start),
            source,
        }
    }

    fn hint(&self) -> String {
        match (self.unprivileged_port_start, self.source.kind()) {
            (Some(start), _) => format!(
                ": ports below {start} are root's; choose another, or have root run \
                 `sysctl net.ipv4.ip_unprivileged_port_start={port}`",
                port = self.address.port()
            ),
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

/// Binds every request, or none.
///
/// # Errors
/// [`BindError`] for the first address that cannot be bound.
pub fn bind(requests: &[Publish]) -> Result<Listeners, BindError> {
    let mut sockets = Vec::with_capacity(requests.len() * 2);
    for (index, request) in requests.iter().enumerate() {
        let result = match request.host {
            Some(host) => bind_one(index, request, SocketAddr::new(host, request.port))
                .map(|listener| sockets.push(listener)),
            None => bind_any(index, request, &mut sockets),
        };
        result.map_err(|(address, source)| BindError::new(address, request.protocol, source))?;
    }
    Ok(Listeners { sockets })
}

type Refused = (SocketAddr, io::Error);

/// Binds both families on one port.
fn bind_any(index: usize, request: &Publish, sockets: &mut Vec<Listener>) -> Result<(), Refused> {
    let mut picks_left = if request.port == 0 { PORT_PICKS } else { 1 };
    loop {
        let any_v4 = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), request.port);
        let v4 = bind_one(index, request, any_v4)?;
        let any_v6 = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), v4.bound.address.port());
        picks_left -= 1;
        match bind_one(index, request, any_v6) {
            Ok(v6) => {
                sockets.push(v4);
                sockets.push(v6);
                return Ok(());
            }
            Err((_, error)) if lacks_ipv6(&error) => {
                sockets.push(v4);
                return Ok(());
            }
            Err((_, error)) if picks_left > 0 && error.kind() == io::ErrorKind::AddrInUse => {}
            Err(refused) => return Err(refused),
        }
    }
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
        Publish { host: Some(Ipv4Addr::LOCALHOST.into()), port, container_port: 80, protocol }
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

    #[test]
    fn a_privileged_port_names_the_setting() {
        let error = BindError {
            address: "0.0.0.0:80".parse().unwrap(),
            protocol: Protocol::Tcp,
            unprivileged_port_start: Some(1024),
            source: io::ErrorKind::PermissionDenied.into(),
        };
        assert!(error.to_string().contains("net.ipv4.ip_unprivileged_port_start=80"));
    }
}
