//! What a gateway is told: addresses, what of the host may be reached, names and limits.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use crate::Addresses;

/// Ethernet's: with segmentation offloads a larger one gains little, and what runs inside
/// assumes it.
pub const DEFAULT_MTU_BYTES: u16 = 1500;

/// The settings of one gateway.
#[derive(Debug, Clone)]
pub struct Config {
    /// The largest IP packet on the link, in bytes: 1280 (IPv6's least) to 65,535.
    pub mtu_bytes: u16,
    /// The inner networks.
    pub addresses: Addresses,
    /// What of the host's loopback the gateway's address leads to.
    pub host_loopback: HostLoopback,
    /// Where names are looked up that nothing here knows.
    pub resolver: Resolver,
    /// Names that the gateway's name server answers itself, before the host's /etc/hosts.
    /// `host.docker.internal` and `host.containers.internal` are always there as well.
    pub host_names: Vec<HostName>,
    /// Upper bounds of everything that grows.
    pub limits: Limits,
}

impl Config {
    /// The defaults: host loopback closed, the host's own resolver, no extra names.
    #[must_use]
    pub fn new(addresses: Addresses) -> Self {
        Self {
            mtu_bytes: DEFAULT_MTU_BYTES,
            addresses,
            host_loopback: HostLoopback::Closed,
            resolver: Resolver::Host,
            host_names: Vec::new(),
            limits: Limits::default(),
        }
    }
}

/// Which ports of the host's loopback can be reached through the gateway's address.
///
/// Closed by default: services bind to 127.0.0.1 because they trust who can reach it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum HostLoopback {
    /// None.
    #[default]
    Closed,
    /// These, TCP and UDP.
    Ports(BTreeSet<u16>),
    /// All.
    All,
}

impl HostLoopback {
    /// Whether this port may be reached.
    #[must_use]
    pub fn allows(&self, port: u16) -> bool {
        match self {
            Self::Closed => false,
            Self::Ports(ports) => ports.contains(&port),
            Self::All => true,
        }
    }
}

/// Where the name server forwards to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Resolver {
    /// The name servers of the host's /etc/resolv.conf, read again when it changes.
    #[default]
    Host,
    /// These, in this order.
    Servers(Vec<SocketAddr>),
}

/// A name that the gateway's name server knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostName {
    /// The name, without a dot at its end; compared without regard to case.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// Upper bounds. When one is reached the newest is refused and the rest goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// TCP connections at once, both directions. Each holds a file descriptor, and up to two
    /// buffers.
    pub tcp_flows: usize,
    /// TCP connections to the host's side that have not succeeded yet: what a SYN flood or a
    /// port scan from inside can make of sockets.
    pub tcp_connecting: usize,
    /// The most a TCP connection may buffer in each direction, in bytes; a power of two from
    /// 32 KiB to 8 MiB. It is also the largest window.
    pub ring_bytes: usize,
    /// Bytes of buffers that may be in use at once; beyond it new connections get small ones and
    /// the largest are not filled further.
    pub buffer_bytes: usize,
    /// UDP mappings (a container's port each) at once. Each holds a file descriptor.
    pub udp_mappings: usize,
    /// ICMP echo identifiers at once. Each holds a file descriptor.
    pub ping_mappings: usize,
    /// DNS queries that wait for an answer. Each holds a file descriptor.
    pub dns_queries: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            tcp_flows: 16_384,
            tcp_connecting: 1_024,
            // Two of these fit a core's cache better than larger ones; a window of it is sixteen
            // packets with offloads.
            ring_bytes: 1 << 20,
            buffer_bytes: 512 << 20,
            udp_mappings: 2_048,
            ping_mappings: 64,
            dns_queries: 256,
        }
    }
}

/// Descriptors that are left to the rest of the process.
const DESCRIPTORS_RESERVED: u64 = 128;

impl Limits {
    /// Lowers what would need more descriptors than the process may have, so that no kind of
    /// traffic takes them all from the others.
    #[must_use]
    pub(crate) fn fitting(self, descriptors: u64) -> Self {
        let available = descriptors.saturating_sub(DESCRIPTORS_RESERVED);
        let available = usize::try_from(available).unwrap_or(usize::MAX).max(DESCRIPTORS_RESERVED as usize);
        let udp_mappings = self.udp_mappings.min(available / 4);
        let ping_mappings = self.ping_mappings.min(available / 16);
        let dns_queries = self.dns_queries.min(available / 16);
        let tcp_flows = self.tcp_flows.min(available - udp_mappings - ping_mappings - dns_queries);
        let tcp_connecting = self.tcp_connecting.min(tcp_flows / 2);
        Self { tcp_flows, tcp_connecting, udp_mappings, ping_mappings, dns_queries, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_fit_the_descriptors() {
        let limits = Limits::default();
        for descriptors in [0, 100, 256, 1_024, 4_096, 16_384] {
            let fitted = limits.fitting(descriptors);
            let sum = fitted.tcp_flows + fitted.udp_mappings + fitted.ping_mappings + fitted.dns_queries;
            assert!(sum as u64 <= descriptors.max(DESCRIPTORS_RESERVED), "{descriptors}: {fitted:?}");
            assert!(fitted.tcp_flows >= 64 && fitted.udp_mappings >= 32 && fitted.dns_queries >= 8);
            assert!(fitted.tcp_connecting < fitted.tcp_flows);
        }
        assert_eq!(limits.fitting(20_000), limits);
        assert_eq!(limits.fitting(u64::MAX), limits);
    }
}
