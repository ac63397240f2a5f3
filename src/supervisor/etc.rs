//! The container's own /etc/hosts, /etc/hostname and /etc/resolv.conf, written anew at each start.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use crate::plan::{ContainerPlan, HostAddress, NetworkMode};

/// Writes the three files into `dir`.
///
/// # Errors
/// As writing files.
pub fn write(dir: &Path, plan: &ContainerPlan, network: Option<&net::Config>) -> io::Result<()> {
    let hostname = plan.spec.hostname().clone().unwrap_or_default();
    fs::write(dir.join("hostname"), format!("{hostname}\n"))?;
    fs::write(dir.join("hosts"), hosts(plan, &hostname, network))?;
    let host_resolv = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    fs::write(dir.join("resolv.conf"), resolv_conf(plan, &host_resolv, network))
}

/// Makes the three files in `dir` the same as those in `peer`, the directory of the container whose network is
/// shared: one file each, so that a change in one container is seen in the other.
///
/// # Errors
/// As linking and copying files.
pub fn share(peer: &Path, dir: &Path) -> io::Result<()> {
    for name in ["hostname", "hosts", "resolv.conf"] {
        let (from, to) = (peer.join(name), dir.join(name));
        match fs::remove_file(&to) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // A file system without hard links shares the content as it is now.
        fs::hard_link(&from, &to).or_else(|_| fs::copy(&from, &to).map(drop))?;
    }
    Ok(())
}

fn hosts(plan: &ContainerPlan, hostname: &str, network: Option<&net::Config>) -> String {
    let mut text = String::new();
    if plan.network.mode == NetworkMode::Host {
        text = fs::read_to_string("/etc/hosts").unwrap_or_default();
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
    } else {
        text.push_str(
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\n\
             ff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
        );
    }
    let gateway =
        network.map_or(IpAddr::from([127, 0, 0, 1]), |config| IpAddr::V4(config.addresses.v4.gateway));
    for (name, address) in &plan.network.extra_hosts {
        let address = match address {
            HostAddress::HostGateway => gateway,
            HostAddress::Ip(address) => *address,
        };
        let _ = writeln!(text, "{address}\t{name}"); // writing to a String cannot fail
    }
    if let Some(config) = network {
        let _ = writeln!(text, "{gateway}\thost.docker.internal host.containers.internal");
        if !hostname.is_empty() {
            let _ = writeln!(text, "{}\t{hostname}", config.addresses.v4.container);
        }
    }
    text
}

fn resolv_conf(plan: &ContainerPlan, host: &str, network: Option<&net::Config>) -> String {
    let asked = &plan.network;
    let of_host = |keyword: &str| -> Vec<String> {
        host.lines()
            .filter_map(|line| line.trim().strip_prefix(keyword)?.strip_prefix([' ', '\t']))
            .flat_map(str::split_ascii_whitespace)
            .map(str::to_owned)
            .collect()
    };
    let servers: Vec<String> = match (asked.dns.is_empty(), network) {
        (false, _) => asked.dns.iter().map(ToString::to_string).collect(),
        (true, Some(config)) => vec![config.addresses.v4.dns.to_string()],
        (true, None) => of_host("nameserver"),
    };
    let search = match asked.dns_search.as_slice() {
        [] => of_host("search"),
        [dot] if dot == "." => Vec::new(),
        given => given.to_vec(),
    };
    let options = if asked.dns_options.is_empty() && network.is_none() {
        of_host("options")
    } else {
        asked.dns_options.clone()
    };
    let mut text = String::new();
    if !search.is_empty() {
        let _ = writeln!(text, "search {}", search.join(" "));
    }
    for server in servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    if !options.is_empty() {
        let _ = writeln!(text, "options {}", options.join(" "));
    }
    text
}
