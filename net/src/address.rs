//! The addresses of the inner network, and how they are chosen.
//!
//! The defaults are the ones that users of slirp know: 10.0.2.0/24 with the container at .100,
//! the gateway at .2 and the name server at .3, and fd00::/64 likewise. A host that already
//! routes one of these networks somewhere must stay reachable from inside, so the network moves
//! to the next candidate until it collides with none of the host's routes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// One network: its prefix and the three hosts that exist in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network<A> {
    /// The network's own address, all host bits zero.
    pub network: A,
    /// The length of the prefix, in bits.
    pub prefix_length: u8,
    /// The address of the interface inside the namespace.
    pub container: A,
    /// The default route, which is this gateway. Where it is allowed, the host's loopback.
    pub gateway: A,
    /// The name server that this gateway runs.
    pub dns: A,
}

/// The two networks of a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// The IPv4 network.
    pub v4: Network<Ipv4Addr>,
    /// The IPv6 network.
    pub v6: Network<Ipv6Addr>,
}

/// The /24 networks to try, in this order: slirp's own, then ones that site plans seldom use.
const CANDIDATES_V4: [Ipv4Addr; 12] = [
    Ipv4Addr::new(10, 0, 2, 0),
    Ipv4Addr::new(10, 0, 102, 0),
    Ipv4Addr::new(10, 102, 2, 0),
    Ipv4Addr::new(10, 202, 2, 0),
    Ipv4Addr::new(172, 27, 2, 0),
    Ipv4Addr::new(172, 22, 2, 0),
    Ipv4Addr::new(172, 31, 102, 0),
    Ipv4Addr::new(192, 168, 102, 0),
    Ipv4Addr::new(192, 168, 202, 0),
    Ipv4Addr::new(100, 102, 2, 0),
    Ipv4Addr::new(198, 18, 2, 0),
    Ipv4Addr::new(198, 19, 102, 0),
];

/// The /64 networks to try. All are unique local (RFC 4193), so a resolver that sorts
/// destinations (RFC 6724) prefers IPv4 for global ones, as it should behind an IPv4 host.
const CANDIDATES_V6: [Ipv6Addr; 4] = [
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0),
    Ipv6Addr::new(0xfd00, 0, 0, 2, 0, 0, 0, 0),
    Ipv6Addr::new(0xfd68, 0x6f73, 0x7465, 0x6c, 0, 0, 0, 0),
    Ipv6Addr::new(0xfdd2, 0x4c1b, 0x90a7, 2, 0, 0, 0, 0),
];

const PREFIX_LENGTH_V4: u8 = 24;
const PREFIX_LENGTH_V6: u8 = 64;

/// The last part of each host's address, in both families.
const CONTAINER: u8 = 100;
const GATEWAY: u8 = 2;
const DNS: u8 = 3;

impl Addresses {
    /// The first candidate networks that do not collide with the host's routes. When every
    /// candidate collides, the first: an unreachable corner of the host's network is better than
    /// no network.
    #[must_use]
    pub fn default_for(routes: &HostRoutes) -> Self {
        let v4 = CANDIDATES_V4
            .into_iter()
            .find(|&network| !routes.collides_v4(network, PREFIX_LENGTH_V4))
            .unwrap_or(CANDIDATES_V4[0]);
        let v6 = CANDIDATES_V6
            .into_iter()
            .find(|&network| !routes.collides_v6(network, PREFIX_LENGTH_V6))
            .unwrap_or(CANDIDATES_V6[0]);
        let host_v4 = |last: u8| Ipv4Addr::from(u32::from(v4) | u32::from(last));
        // ::100, ::2, ::3 as they are read, so the container's 100 is hexadecimal here.
        let host_v6 = |last: u16| Ipv6Addr::from(u128::from(v6) | u128::from(last));
        Self {
            v4: Network {
                network: v4,
                prefix_length: PREFIX_LENGTH_V4,
                container: host_v4(CONTAINER),
                gateway: host_v4(GATEWAY),
                dns: host_v4(DNS),
            },
            v6: Network {
                network: v6,
                prefix_length: PREFIX_LENGTH_V6,
                container: host_v6(0x100),
                gateway: host_v6(u16::from(GATEWAY)),
                dns: host_v6(u16::from(DNS)),
            },
        }
    }

    /// The gateway's address of the same family as `like`.
    #[must_use]
    pub fn gateway_like(&self, like: IpAddr) -> IpAddr {
        match like {
            IpAddr::V4(_) => self.v4.gateway.into(),
            IpAddr::V6(_) => self.v6.gateway.into(),
        }
    }

    /// The container's address of the same family as `like`.
    #[must_use]
    pub fn container_like(&self, like: IpAddr) -> IpAddr {
        match like {
            IpAddr::V4(_) => self.v4.container.into(),
            IpAddr::V6(_) => self.v6.container.into(),
        }
    }

    /// Whether the address belongs to one of the two networks.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => overlaps_v4(self.v4.network, self.v4.prefix_length, v4, Ipv4Addr::BITS as u8),
            IpAddr::V6(v6) => overlaps_v6(self.v6.network, self.v6.prefix_length, v6, Ipv6Addr::BITS as u8),
        }
    }
}

/// What of the addresses somebody has chosen; the rest is as in [`Addresses::default_for`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Chosen {
    /// The IPv4 network: an address in it, and the prefix's length in bits.
    pub subnet_v4: Option<(Ipv4Addr, u8)>,
    /// The IPv6 network.
    pub subnet_v6: Option<(Ipv6Addr, u8)>,
    /// The container's IPv4 address. Without a network, one round it is taken.
    pub container_v4: Option<Ipv4Addr>,
    /// The container's IPv6 address.
    pub container_v6: Option<Ipv6Addr>,
}

/// Addresses that do not work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// The prefix leaves no room, or too much.
    #[error("a prefix of /{length} does not work: choose from /{shortest} to /{longest}")]
    Prefix {
        /// The prefix's length, in bits.
        length: u8,
        /// The shortest that works.
        shortest: u8,
        /// The longest.
        longest: u8,
    },
    /// Not an address that a host can have.
    #[error(
        "{0} is no address for a container's network: it is loopback, link-local, multicast or unspecified"
    )]
    Kind(IpAddr),
    /// The container's address is none of its network's.
    #[error("{address} is not in {network}/{length}")]
    Outside {
        /// The address.
        address: IpAddr,
        /// The network.
        network: IpAddr,
        /// Its prefix's length, in bits.
        length: u8,
    },
    /// The container's address is taken.
    #[error("{address} is the {whose}; choose another")]
    Taken {
        /// The address.
        address: IpAddr,
        /// Whose it is.
        whose: &'static str,
    },
}

/// Prefixes that can be chosen. The longest still have room for gateway, name server and container.
const PREFIX_LENGTHS_V4: (u8, u8) = (8, 29);
const PREFIX_LENGTHS_V6: (u8, u8) = (16, 125);

impl Addresses {
    /// As [`default_for`](Self::default_for), but for what was chosen. A network that was chosen is
    /// taken even where the host routes it somewhere.
    ///
    /// # Errors
    /// [`AddressError`].
    pub fn chosen(routes: &HostRoutes, chosen: &Chosen) -> Result<Self, AddressError> {
        let Self { mut v4, mut v6 } = Self::default_for(routes);
        if let Some((address, length)) = chosen.subnet_v4 {
            v4 = network_v4(address, length)?;
        }
        if let Some((address, length)) = chosen.subnet_v6 {
            v6 = network_v6(address, length)?;
        }
        if let Some(address) = chosen.container_v4 {
            if chosen.subnet_v4.is_none()
                && !overlaps_v4(v4.network, v4.prefix_length, address, Ipv4Addr::BITS as u8)
            {
                v4 = network_v4(address, PREFIX_LENGTH_V4)?;
            }
            v4.container = address;
            check(&v4, is_host_v4, |a| overlaps_v4(v4.network, v4.prefix_length, a, Ipv4Addr::BITS as u8))?;
            if address == broadcast_v4(&v4) {
                return Err(AddressError::Taken { address: address.into(), whose: "broadcast address" });
            }
        }
        if let Some(address) = chosen.container_v6 {
            if chosen.subnet_v6.is_none()
                && !overlaps_v6(v6.network, v6.prefix_length, address, Ipv6Addr::BITS as u8)
            {
                v6 = network_v6(address, PREFIX_LENGTH_V6)?;
            }
            v6.container = address;
            check(&v6, is_host_v6, |a| overlaps_v6(v6.network, v6.prefix_length, a, Ipv6Addr::BITS as u8))?;
        }
        Ok(Self { v4, v6 })
    }
}

/// Whether the container's address is one that it can have.
fn check<A: Copy + PartialEq + Into<IpAddr>>(
    network: &Network<A>,
    is_host: impl Fn(A) -> bool,
    is_inside: impl Fn(A) -> bool,
) -> Result<(), AddressError> {
    let address = network.container;
    if !is_host(address) {
        return Err(AddressError::Kind(address.into()));
    }
    if !is_inside(address) {
        let (network, length) = (network.network.into(), network.prefix_length);
        return Err(AddressError::Outside { address: address.into(), network, length });
    }
    let taken = [
        (network.network, "network's own address"),
        (network.gateway, "gateway's address"),
        (network.dns, "name server's address"),
    ];
    match taken.into_iter().find(|(other, _)| *other == address) {
        Some((_, whose)) => Err(AddressError::Taken { address: address.into(), whose }),
        None => Ok(()),
    }
}

fn check_prefix(length: u8, (shortest, longest): (u8, u8)) -> Result<(), AddressError> {
    if (shortest..=longest).contains(&length) {
        Ok(())
    } else {
        Err(AddressError::Prefix { length, shortest, longest })
    }
}

/// The network round an address, its hosts where they usually are; a small one's container is its
/// last host.
fn network_v4(address: Ipv4Addr, length: u8) -> Result<Network<Ipv4Addr>, AddressError> {
    check_prefix(length, PREFIX_LENGTHS_V4)?;
    if !is_host_v4(address) {
        return Err(AddressError::Kind(address.into()));
    }
    let host_bits = Ipv4Addr::BITS - u32::from(length);
    let network = u32::from(address) >> host_bits << host_bits;
    let last = (1 << host_bits) - 2;
    let host = |number: u32| Ipv4Addr::from(network | number);
    Ok(Network {
        network: network.into(),
        prefix_length: length,
        container: host(last.min(u32::from(CONTAINER))),
        gateway: host(u32::from(GATEWAY)),
        dns: host(u32::from(DNS)),
    })
}

fn network_v6(address: Ipv6Addr, length: u8) -> Result<Network<Ipv6Addr>, AddressError> {
    check_prefix(length, PREFIX_LENGTHS_V6)?;
    if !is_host_v6(address) {
        return Err(AddressError::Kind(address.into()));
    }
    let host_bits = Ipv6Addr::BITS - u32::from(length);
    let network = u128::from(address) >> host_bits << host_bits;
    let last = (1 << host_bits) - 1;
    let host = |number: u128| Ipv6Addr::from(network | number);
    Ok(Network {
        network: network.into(),
        prefix_length: length,
        container: host(last.min(0x100)),
        gateway: host(u128::from(GATEWAY)),
        dns: host(u128::from(DNS)),
    })
}

fn broadcast_v4(network: &Network<Ipv4Addr>) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(network.network) | (u32::MAX >> network.prefix_length))
}

fn is_host_v4(address: Ipv4Addr) -> bool {
    let is_special = address.is_loopback() || address.is_link_local() || address.is_multicast();
    // 240.0.0.0/4 is nobody's, 0.0.0.0/8 this host.
    !is_special && !matches!(address.octets()[0], 0 | 240..)
}

fn is_host_v6(address: Ipv6Addr) -> bool {
    let is_special = address.is_unicast_link_local() || address.is_multicast();
    // ::/96 and ::ffff:0:0/96 are IPv4 in other clothes, loopback and unspecified among them.
    !is_special && address.to_ipv4().is_none()
}

/// The networks that the host routes somewhere, the default routes excepted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostRoutes {
    v4: Vec<(Ipv4Addr, u8)>,
    v6: Vec<(Ipv6Addr, u8)>,
}

impl HostRoutes {
    /// Reads /proc/net/route and /proc/net/ipv6_route of the caller's namespace. A file that
    /// cannot be read counts as having no routes: /proc may be hidden, and IPv6 may be off.
    #[must_use]
    pub fn read() -> Self {
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        Self::parse(&text("/proc/net/route"), &text("/proc/net/ipv6_route"))
    }

    /// Parses the two files' text; lines that are not routes are passed over.
    #[must_use]
    pub fn parse(route: &str, ipv6_route: &str) -> Self {
        Self {
            v4: route.lines().filter_map(parse_route_v4).collect(),
            v6: ipv6_route.lines().filter_map(parse_route_v6).collect(),
        }
    }

    fn collides_v4(&self, network: Ipv4Addr, prefix_length: u8) -> bool {
        self.v4.iter().any(|&(other, length)| overlaps_v4(network, prefix_length, other, length))
    }

    fn collides_v6(&self, network: Ipv6Addr, prefix_length: u8) -> bool {
        self.v6.iter().any(|&(other, length)| overlaps_v6(network, prefix_length, other, length))
    }
}

/// One line of /proc/net/route: interface, destination, gateway, flags, ... , mask; the addresses
/// are the hexadecimal form of the network-order word as the machine reads it.
fn parse_route_v4(line: &str) -> Option<(Ipv4Addr, u8)> {
    let mut fields = line.split_ascii_whitespace();
    let destination = u32::from_str_radix(fields.nth(1)?, 16).ok()?;
    let mask = u32::from_str_radix(fields.nth(5)?, 16).ok()?;
    let prefix_length = u32::from_be(mask).leading_ones() as u8;
    let destination = Ipv4Addr::from(u32::from_be(destination));
    (prefix_length > 0).then_some((destination, prefix_length))
}

/// One line of /proc/net/ipv6_route: destination, prefix length, source, its prefix length, next
/// hop, ... , interface.
fn parse_route_v6(line: &str) -> Option<(Ipv6Addr, u8)> {
    let mut fields = line.split_ascii_whitespace();
    let destination = Ipv6Addr::from(u128::from_str_radix(fields.next()?, 16).ok()?);
    let prefix_length = u8::from_str_radix(fields.next()?, 16).ok()?;
    (prefix_length > 0 && u32::from(prefix_length) <= Ipv6Addr::BITS).then_some((destination, prefix_length))
}

fn overlaps_v4(a: Ipv4Addr, a_length: u8, b: Ipv4Addr, b_length: u8) -> bool {
    let common = u32::from(a_length.min(b_length));
    let differing = u32::from(a) ^ u32::from(b);
    common == 0 || differing.leading_zeros() >= common
}

fn overlaps_v6(a: Ipv6Addr, a_length: u8, b: Ipv6Addr, b_length: u8) -> bool {
    let common = u32::from(a_length.min(b_length));
    let differing = u128::from(a) ^ u128::from(b);
    common == 0 || differing.leading_zeros() >= common
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed parse is a failed test")]

    use super::*;

    const ROUTE_HEADER: &str =
        "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";

    fn hex(address: &str) -> String {
        let address: Ipv4Addr = address.parse().unwrap();
        format!("{:08X}", u32::from(address).to_be())
    }

    fn route(destination: &str, mask: &str) -> String {
        format!("eth0\t{}\t00000000\t0001\t0\t0\t0\t{}\t0\t0\t0\n", hex(destination), hex(mask))
    }

    #[test]
    fn slirps_addresses_when_nothing_collides() {
        let routes = HostRoutes::parse(
            &(ROUTE_HEADER.to_owned() + &route("0.0.0.0", "0.0.0.0") + &route("192.0.2.0", "255.255.255.0")),
            "",
        );
        let addresses = Addresses::default_for(&routes);
        assert_eq!(addresses.v4.network, Ipv4Addr::new(10, 0, 2, 0));
        assert_eq!(addresses.v4.container, Ipv4Addr::new(10, 0, 2, 100));
        assert_eq!(addresses.v4.gateway, Ipv4Addr::new(10, 0, 2, 2));
        assert_eq!(addresses.v4.dns, Ipv4Addr::new(10, 0, 2, 3));
        assert_eq!(addresses.v6.network, "fd00::".parse::<Ipv6Addr>().unwrap());
        assert_eq!(addresses.v6.container, "fd00::100".parse::<Ipv6Addr>().unwrap());
        assert_eq!(addresses.v6.dns, "fd00::3".parse::<Ipv6Addr>().unwrap());
    }

    #[test]
    fn addresses_can_be_chosen() {
        let of = |subnet: Option<(&str, u8)>, container: Option<&str>| {
            let chosen = Chosen {
                subnet_v4: subnet.map(|(address, length)| (address.parse().unwrap(), length)),
                container_v4: container.map(|address| address.parse().unwrap()),
                ..Chosen::default()
            };
            Addresses::chosen(&HostRoutes::default(), &chosen)
                .map(|Addresses { v4, .. }| {
                    format!("{}/{} {} {} {}", v4.network, v4.prefix_length, v4.container, v4.gateway, v4.dns)
                })
                .map_err(|error| error.to_string())
        };
        let good = [
            (None, None, "10.0.2.0/24 10.0.2.100 10.0.2.2 10.0.2.3"),
            (None, Some("10.0.2.7"), "10.0.2.0/24 10.0.2.7 10.0.2.2 10.0.2.3"),
            (None, Some("192.0.2.9"), "192.0.2.0/24 192.0.2.9 192.0.2.2 192.0.2.3"),
            (Some(("10.5.6.7", 16)), None, "10.5.0.0/16 10.5.0.100 10.5.0.2 10.5.0.3"),
            (Some(("10.5.6.8", 29)), None, "10.5.6.8/29 10.5.6.14 10.5.6.10 10.5.6.11"),
            (Some(("10.5.0.0", 16)), Some("10.5.9.9"), "10.5.0.0/16 10.5.9.9 10.5.0.2 10.5.0.3"),
        ];
        for (subnet, container, expected) in good {
            assert_eq!(of(subnet, container), Ok(expected.to_owned()));
        }
        let bad = [
            (Some(("10.5.0.0", 30)), None, "a prefix of /30 does not work: choose from /8 to /29"),
            (Some(("10.5.0.0", 24)), Some("10.6.0.1"), "10.6.0.1 is not in 10.5.0.0/24"),
            (None, Some("10.0.2.2"), "10.0.2.2 is the gateway's address; choose another"),
            (None, Some("10.0.2.3"), "10.0.2.3 is the name server's address; choose another"),
            (None, Some("10.0.2.0"), "10.0.2.0 is the network's own address; choose another"),
            (None, Some("10.0.2.255"), "10.0.2.255 is the broadcast address; choose another"),
        ];
        for (subnet, container, expected) in bad {
            assert_eq!(of(subnet, container), Err(expected.to_owned()));
        }
        for address in ["127.0.0.1", "169.254.1.1", "224.0.0.1", "0.0.0.0", "255.255.255.255"] {
            assert!(of(None, Some(address)).unwrap_err().contains("is no address"), "{address}");
        }
    }

    #[test]
    fn ipv6_addresses_can_be_chosen() {
        let of = |subnet: Option<(&str, u8)>, container: Option<&str>| {
            let chosen = Chosen {
                subnet_v6: subnet.map(|(address, length)| (address.parse().unwrap(), length)),
                container_v6: container.map(|address| address.parse().unwrap()),
                ..Chosen::default()
            };
            Addresses::chosen(&HostRoutes::default(), &chosen)
                .map(|Addresses { v6, .. }| {
                    format!("{}/{} {} {}", v6.network, v6.prefix_length, v6.container, v6.gateway)
                })
                .map_err(|error| error.to_string())
        };
        assert_eq!(of(None, Some("fd12::9")), Ok("fd12::/64 fd12::9 fd12::2".into()));
        assert_eq!(of(Some(("fd12::", 48)), None), Ok("fd12::/48 fd12::100 fd12::2".into()));
        assert_eq!(of(Some(("fd12::8", 125)), None), Ok("fd12::8/125 fd12::f fd12::a".into()));
        assert_eq!(of(Some(("fd12::", 48)), Some("fd13::9")), Err("fd13::9 is not in fd12::/48".into()));
        for address in ["::1", "fe80::1", "ff02::1", "::ffff:10.0.0.1"] {
            assert!(of(None, Some(address)).unwrap_err().contains("is no address"), "{address}");
        }
    }

    #[test]
    fn a_route_that_overlaps_moves_the_network() {
        let cases: &[(&[(&str, &str)], &str)] = &[
            (&[("10.0.2.0", "255.255.255.0")], "10.0.102.0"),
            (&[("10.0.2.128", "255.255.255.128")], "10.0.102.0"),
            (&[("10.0.0.0", "255.0.0.0")], "172.27.2.0"),
            (&[("10.0.0.0", "255.0.0.0"), ("172.16.0.0", "255.240.0.0")], "192.168.102.0"),
            (&[("128.0.0.0", "128.0.0.0")], "10.0.2.0"),
            // A VPN that takes everything as two halves leaves no candidate: the first it is.
            (&[("0.0.0.0", "128.0.0.0"), ("128.0.0.0", "128.0.0.0")], "10.0.2.0"),
        ];
        for (routes, expected) in cases {
            let text: String = routes.iter().map(|(d, m)| route(d, m)).collect();
            let addresses = Addresses::default_for(&HostRoutes::parse(&text, ""));
            assert_eq!(addresses.v4.network.to_string(), *expected, "{routes:?}");
        }
    }

    #[test]
    fn ipv6_moves_too_and_default_routes_do_not_count() {
        let line = |destination: &str, length: u8| {
            let destination: Ipv6Addr = destination.parse().unwrap();
            format!(
                "{:032x} {length:02x} {:032x} 00 {:032x} 00000100 00000001 00000000 00000001 eth0\n",
                u128::from(destination),
                0,
                0
            )
        };
        let of = |text: &str| Addresses::default_for(&HostRoutes::parse("", text)).v6.network.to_string();
        assert_eq!(of(&line("::", 0)), "fd00::");
        assert_eq!(of(&line("fd00::", 64)), "fd00:0:0:2::");
        assert_eq!(of(&line("fd00::2", 128)), "fd00:0:0:2::");
        assert_eq!(of(&line("fd00::", 16)), "fd68:6f73:7465:6c::");
    }

    #[test]
    fn lines_that_are_no_routes_are_passed_over() {
        let routes = HostRoutes::parse("nonsense\n\neth0 zz zz\n", "also\nff\n00 ff\n");
        assert_eq!(routes, HostRoutes::default());
    }

    #[test]
    fn membership_follows_the_prefix() {
        let addresses = Addresses::default_for(&HostRoutes::default());
        for (address, expected) in
            [("10.0.2.255", true), ("10.0.3.1", false), ("fd00::ffff", true), ("fd00:0:0:1::1", false)]
        {
            assert_eq!(addresses.contains(address.parse().unwrap()), expected, "{address}");
        }
    }
}
