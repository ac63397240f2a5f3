//! The network's flags, and the container's names in it.

pub(super) mod attachment;

use std::net::IpAddr;

use clap::Args;

use super::{invalid_argument, ports, refused};
use crate::cli::CliError;
use crate::plan::request::{NamespaceMode, NetworkRequest, SecurityRequest};
use crate::plan::{HostAddress, HostLoopback, NetworkMode};
use attachment::Attachment;

/// The kernel's limit of a host name (uname(2)).
const MAX_HOSTNAME_LEN: usize = 64;

/// The flags.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct NetworkArgs {
    /// Add a custom host-to-IP mapping (host:ip)
    #[arg(long, value_name = "HOST:IP")]
    add_host: Vec<String>,
    /// Set custom DNS servers
    #[arg(long, value_name = "IP")]
    dns: Vec<String>,
    /// Set DNS options
    #[arg(long, alias = "dns-opt", value_name = "OPTION")]
    dns_option: Vec<String>,
    /// Set custom DNS search domains
    #[arg(long, value_name = "DOMAIN")]
    dns_search: Vec<String>,
    /// Container NIS domain name
    #[arg(long, value_name = "NAME")]
    domainname: Option<String>,
    /// Expose a port or a range of ports
    #[arg(long, value_name = "PORT")]
    expose: Vec<String>,
    /// Ports of the host's own loopback that the container may reach ("all", "none" or a list)
    #[arg(long, value_name = "PORTS")]
    host_loopback: Option<String>,
    /// Container host name
    #[arg(short = 'h', long, value_name = "NAME")]
    hostname: Option<String>,
    /// IPv4 address of the container (e.g., 10.0.2.50)
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<String>,
    /// IPv6 address of the container (e.g., fd00::50)
    #[arg(long, value_name = "ADDRESS")]
    ip6: Option<String>,
    /// Connect a container to a network ("bridge[:OPTION=VALUE,...]", "none", "host", "container:NAME")
    #[arg(long, alias = "net", value_name = "NETWORK")]
    network: Vec<String>,
    /// Set an option of the container's own network ("mtu=1400", "subnet=10.9.0.0/24")
    #[arg(long, value_name = "OPTION=VALUE")]
    opt: Vec<String>,
    /// Publish a container's port(s) to the host
    #[arg(short, long, value_name = "[[IP:]HOST:]PORT")]
    publish: Vec<String>,
    /// Publish all exposed ports to random ports
    #[arg(short = 'P', long)]
    publish_all: bool,
}

impl NetworkArgs {
    pub(super) fn parse(self, security: &SecurityRequest) -> Result<NetworkRequest, CliError> {
        let Attachment { mode, mtu_bytes, addresses } =
            Attachment::parse(&self.network, &self.opt, self.ip.as_deref(), self.ip6.as_deref())?;
        let mut request = NetworkRequest {
            mode,
            mtu_bytes,
            addresses,
            hostname: self.hostname.filter(|name| !name.is_empty()).map(check_hostname).transpose()?,
            domainname: self.domainname.filter(|name| !name.is_empty()).map(check_hostname).transpose()?,
            publish_all: self.publish_all,
            extra_hosts: self
                .add_host
                .iter()
                .map(|text| {
                    parse_extra_host(text).map_err(|reason| invalid_argument("--add-host", text, reason))
                })
                .collect::<Result<_, _>>()?,
            dns: self.dns.iter().map(|text| parse_dns(text)).collect::<Result<_, _>>()?,
            dns_search: self
                .dns_search
                .iter()
                .map(|domain| check_search(domain))
                .collect::<Result<_, _>>()?,
            dns_options: self.dns_option.into_iter().map(check_option).collect::<Result<_, _>>()?,
            host_loopback: self.host_loopback.as_deref().map_or(Ok(HostLoopback::Closed), parse_loopback)?,
            ..NetworkRequest::default()
        };
        for text in &self.publish {
            request.publish.extend(ports::parse_publish(text).map_err(refused)?);
        }
        for text in &self.expose {
            request.expose.extend(ports::parse_expose(text).map_err(refused)?);
        }
        check_conflicts(&request, security)?;
        Ok(request)
    }
}

/// Docker's conflicts, in Docker's words.
fn check_conflicts(request: &NetworkRequest, security: &SecurityRequest) -> Result<(), CliError> {
    let joined = matches!(request.mode, NetworkMode::Container(_));
    let conflicts = [
        (joined && request.hostname.is_some(), "hostname and the network mode"),
        (security.uts != NamespaceMode::Private && request.hostname.is_some(), "hostname and the UTS mode"),
        (joined && !request.dns.is_empty(), "dns and the network mode"),
        (joined && !request.extra_hosts.is_empty(), "custom host-to-IP mapping and the network mode"),
        (
            joined && (!request.publish.is_empty() || request.publish_all),
            "port publishing and the container type network mode",
        ),
        (joined && !request.expose.is_empty(), "port exposing and the container type network mode"),
    ];
    match conflicts.into_iter().find(|(conflict, _)| *conflict) {
        Some((_, what)) => Err(refused(format!("conflicting options: {what}"))),
        None => Ok(()),
    }
}

fn check_hostname(name: String) -> Result<String, CliError> {
    if name.len() > MAX_HOSTNAME_LEN || name.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(refused(format!(
            "invalid hostname format: {name}: at most {MAX_HOSTNAME_LEN} bytes without white space"
        )));
    }
    Ok(name)
}

pub(in crate::cli) fn parse_extra_host(text: &str) -> Result<(String, HostAddress), String> {
    let bad_format = || format!("bad format for add-host: {text:?}");
    let (name, address) = text.split_once('=').or_else(|| text.split_once(':')).ok_or_else(bad_format)?;
    // The name goes into the container's /etc/hosts, where white space ends it.
    if name.is_empty() || name.contains(|c: char| c == ':' || c.is_whitespace() || c.is_control()) {
        return Err(bad_format());
    }
    if address == "host-gateway" {
        return Ok((name.into(), HostAddress::HostGateway));
    }
    let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
    let ip = bare.trim().parse().map_err(|_| format!("invalid IP address in add-host: {bare:?}"))?;
    Ok((name.into(), HostAddress::Ip(ip)))
}

fn parse_dns(text: &str) -> Result<IpAddr, CliError> {
    text.trim().parse().map_err(|_| {
        invalid_argument("--dns", text, format!("IP address is not correctly formatted: {text}"))
    })
}

/// A search domain by Docker's rule: letters, digits and hyphens between dots, or a single dot for
/// none at all.
fn check_search(domain: &str) -> Result<String, CliError> {
    let trimmed = domain.trim();
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    let has_letter = trimmed.contains(|c: char| c.is_ascii_alphabetic());
    let valid = trimmed == "."
        || (has_letter
            && trimmed.len() <= 255
            && trimmed.strip_suffix('.').unwrap_or(trimmed).split('.').all(label));
    if valid {
        Ok(trimmed.to_owned())
    } else {
        Err(invalid_argument("--dns-search", domain, format!("{domain} is not a valid domain")))
    }
}

/// An option of resolv.conf(5): one word, because it becomes one there.
fn check_option(option: String) -> Result<String, CliError> {
    if option.is_empty() || option.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(invalid_argument("--dns-option", &option, "an option is one word of resolv.conf(5)"));
    }
    Ok(option)
}

fn parse_loopback(text: &str) -> Result<HostLoopback, CliError> {
    match text {
        "" | "none" => Ok(HostLoopback::Closed),
        "all" => Ok(HostLoopback::All),
        _ => text
            .split(',')
            .map(|port| port.parse().ok().filter(|port| *port > 0))
            .collect::<Option<Vec<u16>>>()
            .map(HostLoopback::Ports)
            .ok_or_else(|| {
                invalid_argument("--host-loopback", text, "it takes all, none or ports (5432,6379)")
            }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extra_hosts() {
        let ip = |text: &str| HostAddress::Ip(text.parse().expect("an address"));
        let table = [
            ("db:10.0.0.1", ("db", ip("10.0.0.1"))),
            ("db=10.0.0.1", ("db", ip("10.0.0.1"))),
            ("db:::1", ("db", ip("::1"))),
            ("db=[::1]", ("db", ip("::1"))),
            ("gw:host-gateway", ("gw", HostAddress::HostGateway)),
        ];
        for (text, (name, address)) in table {
            assert_eq!(parse_extra_host(text), Ok((name.to_owned(), address)));
        }
        let table = [
            ("db", "bad format for add-host: \"db\""),
            (":1.2.3.4", "bad format for add-host: \":1.2.3.4\""),
            ("a b:1.2.3.4", "bad format for add-host: \"a b:1.2.3.4\""),
            ("db:x", "invalid IP address in add-host: \"x\""),
        ];
        for (text, message) in table {
            assert_eq!(parse_extra_host(text), Err(message.into()));
        }
    }

    #[test]
    fn names_servers_and_domains() {
        assert_eq!(parse_dns(" 1.1.1.1").ok(), Some(IpAddr::from([1, 1, 1, 1])));
        assert_eq!(
            parse_dns("x").map_err(|e| e.message().to_owned()),
            Err("invalid argument \"x\" for \"--dns\" flag: IP address is not correctly formatted: x".into())
        );
        for good in [".", "example.com", "a", "x_y.example.", "1.2a"] {
            assert!(check_search(good).is_ok(), "{good}");
        }
        for bad in ["", "1.2", "a..b", "-a", "a b", "a\nnameserver 1.2.3.4", &"a".repeat(64)] {
            assert!(check_search(bad).is_err(), "{bad}");
        }
        assert!(check_option("ndots:2".into()).is_ok());
        assert!(check_option("ndots:2\nx".into()).is_err());
        assert!(check_hostname("a".repeat(64)).is_ok());
        assert!(check_hostname("a".repeat(65)).is_err());
    }

    #[test]
    fn loopback() {
        assert_eq!(parse_loopback("all").ok(), Some(HostLoopback::All));
        assert_eq!(parse_loopback("none").ok(), Some(HostLoopback::Closed));
        assert_eq!(parse_loopback("80,443").ok(), Some(HostLoopback::Ports(vec![80, 443])));
        for bad in ["0", "x", "80,", "65536"] {
            assert!(parse_loopback(bad).is_err(), "{bad}");
        }
    }
}
