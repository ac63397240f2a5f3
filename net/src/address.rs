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
