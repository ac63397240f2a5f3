//! What the inside may reach: the one place where a destination is turned into an address of the
//! host's side. A policy about names or addresses would sit here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::Addresses;
use crate::config::{Config, HostLoopback};

/// The port of the name server.
const DNS_PORT: u16 = 53;

/// Where clouds keep the machine's credentials, besides link-local addresses (169.254.169.254 of all of them,
/// and 169.254.170.2 and .23 of AWS): closed, as whatever runs inside is not the machine. Alibaba's, Azure's;
/// AWS's and Google's IPv6 addresses.
const METADATA_V4: [Ipv4Addr; 2] = [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16)];
const METADATA_V6: [Ipv6Addr; 3] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
];

/// The IPv4 address that a NAT64 gateway would make of an IPv6 one (RFC 6052, the well-known prefix).
fn behind_nat64(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    match v6.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low))),
        _ => None,
    }
}

/// What a destination inside stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// This address of the host's side.
    Forward(SocketAddr),
    /// The gateway's own name server.
    NameServer,
    /// The gateway's addresses, at a port where nothing is.
    Nothing,
    /// Not to be reached from inside.
    Prohibited,
}

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    addresses: Addresses,
    host_loopback: HostLoopback,
}

impl Policy {
    pub(crate) fn new(config: &Config) -> Self {
        Self { addresses: config.addresses, host_loopback: config.host_loopback.clone() }
    }

    pub(crate) fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Whether a packet may come from this address: only from the container's own.
    pub(crate) fn is_inside(&self, source: IpAddr) -> bool {
        source == self.addresses.container_like(source)
    }

    /// Whether the address is the gateway's or the name server's.
    pub(crate) fn is_gateway(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => v4 == self.addresses.v4.gateway || v4 == self.addresses.v4.dns,
            IpAddr::V6(v6) => v6 == self.addresses.v6.gateway || v6 == self.addresses.v6.dns,
        }
    }

    /// What a TCP or UDP destination stands for.
    pub(crate) fn judge(&self, to: SocketAddr) -> Verdict {
        let (is_dns, is_gateway, loopback): (bool, bool, IpAddr) = match to.ip() {
            IpAddr::V4(v4) => {
                (v4 == self.addresses.v4.dns, v4 == self.addresses.v4.gateway, Ipv4Addr::LOCALHOST.into())
            }
            IpAddr::V6(v6) => {
                (v6 == self.addresses.v6.dns, v6 == self.addresses.v6.gateway, Ipv6Addr::LOCALHOST.into())
            }
        };
        if is_dns {
            return if to.port() == DNS_PORT { Verdict::NameServer } else { Verdict::Nothing };
        }
        if is_gateway {
            return if self.host_loopback.allows(to.port()) {
                Verdict::Forward(SocketAddr::new(loopback, to.port()))
            } else {
                Verdict::Nothing
            };
        }
        if self.may_leave(to.ip()) { Verdict::Forward(to) } else { Verdict::Prohibited }
    }

    /// Whether an address of the host's side may be reached as it is. The kernel inside would
    /// not send to most of those that may not, but a raw socket can.
    pub(crate) fn may_leave(&self, to: IpAddr) -> bool {
        match to {
            IpAddr::V4(v4) => {
                // 0.0.0.0/8 is the host itself to connect(2).
                let this_host = v4.is_loopback() || v4.octets()[0] == 0;
                let one_to_one = !v4.is_multicast() && !v4.is_broadcast();
                one_to_one
                    && !this_host
                    && !v4.is_link_local()
                    && !METADATA_V4.contains(&v4)
                    && !self.addresses.contains(to)
            }
            IpAddr::V6(v6) => {
                // Written as IPv6, an IPv4 address would be connected to as IPv4.
                let hides_v4 = v6.to_ipv4().is_some();
                let link_local = v6.is_unicast_link_local();
                if let Some(v4) = behind_nat64(v6) {
                    return self.may_leave(v4.into());
                }
                !v6.is_multicast()
                    && !hides_v4
                    && !link_local
                    && !METADATA_V6.contains(&v6)
                    && !self.addresses.contains(to)
            }
        }
    }

    /// The source under which a client of a published port appears inside: its own, where the
    /// inside can answer to it.
    pub(crate) fn source_inside(&self, client: SocketAddr) -> SocketAddr {
        let ip = client.ip();
        let answerable = match ip {
            IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local() && !v4.is_unspecified(),
            IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local() && !v6.is_unspecified(),
        };
        if answerable && !self.addresses.contains(ip) {
            client
        } else {
            SocketAddr::new(self.addresses.gateway_like(ip), client.port())
        }
    }

    /// The address under which a datagram from the host's side appears inside; none if it is not
    /// to be handed in. The host's loopback is the gateway, for the ports that may be reached.
    pub(crate) fn answer_inside(&self, from: SocketAddr) -> Option<SocketAddr> {
        let ip = from.ip();
        if !ip.is_loopback() {
            return (!self.addresses.contains(ip)).then_some(from);
        }
        let gateway = SocketAddr::new(self.addresses.gateway_like(ip), from.port());
        self.host_loopback.allows(from.port()).then_some(gateway)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "the addresses are literals")]

    use super::*;
    use crate::HostRoutes;
    use std::collections::BTreeSet;

    fn policy(host_loopback: HostLoopback) -> Policy {
        let mut config = Config::new(Addresses::default_for(&HostRoutes::default()));
        config.host_loopback = host_loopback;
        Policy::new(&config)
    }

    #[test]
    fn the_hosts_loopback_is_reached_through_the_gateway_only_and_only_where_allowed() {
        let some = HostLoopback::Ports(BTreeSet::from([5432]));
        let cases = [
            (HostLoopback::Closed, "10.0.2.2:5432", Verdict::Nothing),
            (some.clone(), "10.0.2.2:5432", Verdict::Forward("127.0.0.1:5432".parse().unwrap())),
            (some.clone(), "[fd00::2]:5432", Verdict::Forward("[::1]:5432".parse().unwrap())),
            (some.clone(), "10.0.2.2:22", Verdict::Nothing),
            (HostLoopback::All, "10.0.2.2:22", Verdict::Forward("127.0.0.1:22".parse().unwrap())),
            (some, "10.0.2.3:5432", Verdict::Nothing),
            (HostLoopback::All, "10.0.2.3:53", Verdict::NameServer),
            (HostLoopback::Closed, "[fd00::3]:53", Verdict::NameServer),
        ];
        for (loopback, to, expected) in cases {
            let verdict = policy(loopback.clone()).judge(to.parse().unwrap());
            assert_eq!(verdict, expected, "{to} with {loopback:?}");
        }
    }

    #[test]
    fn addresses_that_mean_the_host_itself_are_prohibited() {
        let policy = policy(HostLoopback::All);
        for to in [
            "127.0.0.1:22",
            "127.8.9.1:22",
            "0.0.0.0:22",
            "0.1.2.3:22",
            "[::1]:22",
            "[::]:22",
            "[::ffff:127.0.0.1]:22",
            "[::ffff:8.8.8.8]:22",
            "[::127.0.0.1]:22",
            "169.254.169.254:80",
            "169.254.170.2:80",
            "100.100.100.200:80",
            "168.63.129.16:80",
            "[64:ff9b::a9fe:a9fe]:80",
            "[64:ff9b::7f00:1]:80",
            "[fd20:ce::254]:80",
            "[fd00:ec2::254]:80",
            "224.0.0.1:22",
            "255.255.255.255:22",
            "[ff02::1]:22",
            "[fe80::1]:22",
            "10.0.2.77:22",
            "10.0.2.100:22",
            "[fd00::77]:22",
        ] {
            assert_eq!(policy.judge(to.parse().unwrap()), Verdict::Prohibited, "{to}");
        }
        for to in ["192.0.2.1:80", "8.8.8.8:53", "[2001:db8::1]:80", "[64:ff9b::808:808]:80"] {
            let to = to.parse().unwrap();
            assert_eq!(policy.judge(to), Verdict::Forward(to));
        }
    }

    #[test]
    fn clients_keep_their_address_where_it_can_be_answered() {
        let policy = policy(HostLoopback::Closed);
        for (client, inside) in [
            ("192.0.2.7:4000", "192.0.2.7:4000"),
            ("127.0.0.1:4000", "10.0.2.2:4000"),
            ("127.9.9.9:4000", "10.0.2.2:4000"),
            ("169.254.3.4:4000", "10.0.2.2:4000"),
            ("10.0.2.100:4000", "10.0.2.2:4000"),
            ("[2001:db8::7]:4000", "[2001:db8::7]:4000"),
            ("[::1]:4000", "[fd00::2]:4000"),
            ("[fe80::7]:4000", "[fd00::2]:4000"),
        ] {
            assert_eq!(policy.source_inside(client.parse().unwrap()), inside.parse().unwrap(), "{client}");
        }
    }
}
