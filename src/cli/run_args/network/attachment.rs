//! Which network a container is attached to, and how: `--network` in its forms, `--opt`, `--ip`, `--ip6`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use net::{Addresses, HostRoutes};

use super::super::{invalid_argument, not_supported, refused};
use crate::cli::CliError;
use crate::plan::{ChosenAddresses, NetworkMode};

/// The smallest MTU that IPv6 allows, and so the smallest that keeps both families working.
const MIN_MTU_BYTES: u16 = 1280;

/// The options of the userspace network, for error messages.
const OPTIONS: &str =
    "the options are mtu=1280..65535, subnet=ADDRESS/BITS (IPv4 or IPv6), ip=ADDRESS and ip6=ADDRESS";

/// Why a container has no second name: nobody else is in its network to use it.
pub(in super::super) const NO_ALIAS: &str = "a container's network is its own, so nobody else could use the name; its name and host name resolve inside";

/// One container's attachment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attachment {
    pub(super) mode: NetworkMode,
    pub(super) mtu_bytes: Option<u16>,
    pub(super) addresses: ChosenAddresses,
}

impl Attachment {
    fn to(mode: NetworkMode) -> Self {
        Self { mode, mtu_bytes: None, addresses: ChosenAddresses::default() }
    }

    /// What the flags say together.
    pub(super) fn parse(
        networks: &[String],
        options: &[String],
        ip: Option<&str>,
        ip6: Option<&str>,
    ) -> Result<Self, CliError> {
        let mut found = networks.iter().map(|text| parse_one(text)).collect::<Result<Vec<_>, _>>()?;
        found.dedup();
        if found.len() > 1 {
            return Err(not_supported("more than one --network", "a container has one interface"));
        }
        let mut attachment = found.pop().unwrap_or(Self::to(NetworkMode::Bridge));
        let given = [("ip", ip), ("ip6", ip6)].into_iter().filter_map(|(key, value)| Some((key, value?)));
        for (key, value) in options.iter().map(|text| text.split_once('=').unwrap_or((text, ""))).chain(given)
        {
            if attachment.mode != NetworkMode::Bridge {
                return Err(refused(format!("conflicting options: {key} and the network mode"))
                    .with_hint("MTU and addresses can be chosen for the network \"bridge\" only"));
            }
            attachment.set(key, value)?;
        }
        attachment.check()
    }

    /// Takes one option of the userspace network.
    fn set(&mut self, key: &str, value: &str) -> Result<(), CliError> {
        let wrong = || invalid(&format!("{key}={value}"));
        match key {
            "mtu" | "com.docker.network.driver.mtu" => {
                let mtu = value.parse().ok().filter(|mtu| *mtu >= MIN_MTU_BYTES);
                self.mtu_bytes = Some(mtu.ok_or_else(wrong)?);
            }
            // podman's word for it, with slirp4netns.
            "subnet" | "cidr" => match parse_subnet(value).ok_or_else(wrong)? {
                (IpAddr::V4(address), bits) => self.addresses.subnet_v4 = Some((address, bits)),
                (IpAddr::V6(address), bits) => self.addresses.subnet_v6 = Some((address, bits)),
            },
            "ip" => self.addresses.container_v4 = Some(parse_address::<Ipv4Addr>("--ip", value)?),
            "ip6" => self.addresses.container_v6 = Some(parse_address::<Ipv6Addr>("--ip6", value)?),
            "allow_host_loopback" => {
                return Err(
                    invalid(key).with_hint("--host-loopback PORTS opens ports of the host's loopback")
                );
            }
            "mac-address" => return Err(not_supported("mac-address", "the interface has no link layer")),
            "alias" => return Err(not_supported("alias", NO_ALIAS)),
            _ => return Err(wrong()),
        }
        Ok(())
    }

    /// Whether the addresses go together. Which network it becomes is known at the start only.
    fn check(self) -> Result<Self, CliError> {
        Addresses::chosen(&HostRoutes::default(), &self.addresses.into())
            .map_err(|error| refused(format!("invalid address: {error}")))?;
        Ok(self)
    }
}

fn invalid(option: &str) -> CliError {
    refused(format!("invalid network option {option:?}")).with_hint(OPTIONS)
}

fn parse_subnet(text: &str) -> Option<(IpAddr, u8)> {
    let (address, bits) = text.split_once('/')?;
    Some((address.parse().ok()?, bits.parse().ok()?))
}

fn parse_address<A: FromStr>(flag: &str, text: &str) -> Result<A, CliError> {
    let family = if flag == "--ip" { "IPv4" } else { "IPv6" };
    text.parse().map_err(|_| invalid_argument(flag, text, format!("it is no {family} address")))
}

/// One `--network`: `bridge`, `host`, `none`, `container:NAME`, `bridge:KEY=VALUE,...`, or Docker's
/// long form `name=bridge,KEY=VALUE,...`.
fn parse_one(text: &str) -> Result<Attachment, CliError> {
    if text.starts_with("name=") || text.contains(",name=") {
        return parse_long(text);
    }
    let (name, options) = text.split_once(':').map_or((text, None), |(name, options)| (name, Some(options)));
    let mut attachment = match (name, options) {
        ("container", Some("") | None) => {
            return Err(refused("invalid container format container:<name|id>"));
        }
        ("container", Some(reference)) => {
            return Ok(Attachment::to(NetworkMode::Container(reference.into())));
        }
        // podman's names for a private network made in user space are what bridge is here.
        ("bridge" | "default" | "private" | "pasta" | "slirp4netns" | "", _) => {
            Attachment::to(NetworkMode::Bridge)
        }
        ("none", None) => Attachment::to(NetworkMode::None),
        ("host", None) => Attachment::to(NetworkMode::Host),
        _ => return Err(refused(format!("network {text} not found")).with_hint(
            "the networks are bridge, none, host and container:NAME; networks of one's own do not exist yet",
        )),
    };
    for option in options.into_iter().flat_map(|options| options.split(',')) {
        let (key, value) = option.split_once('=').ok_or_else(|| invalid(option))?;
        attachment.set(key, value)?;
    }
    Ok(attachment)
}

fn parse_long(text: &str) -> Result<Attachment, CliError> {
    let fields: Vec<_> = text
        .split(',')
        .map(|field| field.split_once('=').ok_or_else(|| refused(format!("invalid field {field}"))))
        .collect::<Result<_, _>>()?;
    let name = fields.iter().rev().find(|(key, _)| *key == "name").map_or("", |(_, name)| *name);
    let mut attachment = parse_one(name)?;
    for (key, value) in fields.into_iter().filter(|(key, _)| *key != "name") {
        if attachment.mode != NetworkMode::Bridge {
            return Err(refused(format!("conflicting options: {key} and the network mode")));
        }
        match (key, value.split_once('=')) {
            ("driver-opt", Some((key, value))) => attachment.set(key, value)?,
            ("ip" | "ip6" | "alias" | "mac-address", _) => attachment.set(key, value)?,
            _ => return Err(refused(format!("invalid field key {key}"))),
        }
    }
    Ok(attachment)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "the addresses are literals")]

    use super::*;

    fn parse(texts: &[&str]) -> Result<Attachment, String> {
        let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        Attachment::parse(&texts, &[], None, None).map_err(|error| error.message().to_owned())
    }

    #[test]
    fn names() {
        let table = [
            ("bridge", NetworkMode::Bridge, None),
            ("default", NetworkMode::Bridge, None),
            ("name=bridge", NetworkMode::Bridge, None),
            ("bridge:mtu=9000", NetworkMode::Bridge, Some(9000)),
            ("name=bridge,driver-opt=com.docker.network.driver.mtu=1400", NetworkMode::Bridge, Some(1400)),
            ("none", NetworkMode::None, None),
            ("name=none", NetworkMode::None, None),
            ("host", NetworkMode::Host, None),
            ("container:web", NetworkMode::Container("web".into()), None),
        ];
        for (text, mode, mtu_bytes) in table {
            let expected = Attachment { mtu_bytes, ..Attachment::to(mode) };
            assert_eq!(parse(&[text]), Ok(expected), "{text}");
        }
        let table = [
            ("mine", "network mine not found"),
            ("container:", "invalid container format container:<name|id>"),
            ("host:x", "network host:x not found"),
            ("bridge:mtu=100", "invalid network option \"mtu=100\""),
            ("bridge:mtu", "invalid network option \"mtu\""),
            ("bridge:port_handler=x", "invalid network option \"port_handler=x\""),
            ("slirp4netns:allow_host_loopback=true", "invalid network option \"allow_host_loopback\""),
            ("bridge:subnet=10.0.0.0", "invalid network option \"subnet=10.0.0.0\""),
            (
                "bridge:subnet=10.0.0.0/30",
                "invalid address: a prefix of /30 does not work: choose from /8 to /29",
            ),
            ("name=bridge,colour=red", "invalid field key colour"),
            ("name=host,ip=10.0.2.5", "conflicting options: ip and the network mode"),
        ];
        for (text, message) in table {
            assert_eq!(parse(&[text]), Err(message.into()), "{text}");
        }
        assert!(parse(&["host", "host"]).is_ok());
        assert!(parse(&["host", "none"]).is_err());
        assert!(
            parse(&["name=bridge,alias=db"]).is_err_and(|message| message.contains("alias is not supported"))
        );
    }

    #[test]
    fn addresses() {
        let of = |networks: &[&str], options: &[&str], ip: Option<&str>, ip6: Option<&str>| {
            let own = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
            Attachment::parse(&own(networks), &own(options), ip, ip6)
                .map(|attachment| (attachment.mtu_bytes, attachment.addresses))
                .map_err(|error| error.message().to_owned())
        };
        let chosen = ChosenAddresses {
            subnet_v4: Some((Ipv4Addr::new(10, 9, 0, 0), 16)),
            subnet_v6: Some(("fd09::".parse().unwrap(), 64)),
            container_v4: Some(Ipv4Addr::new(10, 9, 1, 2)),
            container_v6: Some("fd09::7".parse().unwrap()),
        };
        let all = "bridge:mtu=1400,subnet=10.9.0.0/16,subnet=fd09::/64,ip=10.9.1.2,ip6=fd09::7";
        assert_eq!(of(&[all], &[], None, None), Ok((Some(1400), chosen)));
        let options = ["mtu=1400", "subnet=10.9.0.0/16", "subnet=fd09::/64"];
        assert_eq!(of(&[], &options, Some("10.9.1.2"), Some("fd09::7")), Ok((Some(1400), chosen)));
        let long = "name=bridge,ip=10.9.1.2,ip6=fd09::7";
        assert_eq!(of(&[long], &options, None, None), Ok((Some(1400), chosen)));
        let bad = [
            (
                of(&[], &[], Some("x"), None),
                "invalid argument \"x\" for \"--ip\" flag: it is no IPv4 address",
            ),
            (
                of(&[], &[], None, Some("1.2.3.4")),
                "invalid argument \"1.2.3.4\" for \"--ip6\" flag: it is no IPv6 address",
            ),
            (of(&["none"], &[], Some("10.0.2.9"), None), "conflicting options: ip and the network mode"),
            (of(&["host"], &["mtu=1400"], None, None), "conflicting options: mtu and the network mode"),
            (
                of(&[], &[], Some("10.0.2.2"), None),
                "invalid address: 10.0.2.2 is the gateway's address; choose another",
            ),
        ];
        for (outcome, message) in bad {
            assert_eq!(outcome, Err(message.into()));
        }
    }
}
