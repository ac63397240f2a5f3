//! The container's own /etc/hosts, /etc/hostname and /etc/resolv.conf, written anew at each start. The last has
//! the host's search domains and options, and keeps up with them while the container runs ([`Mirror`]).

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::plan::{ContainerPlan, HostAddress, NetworkMode, NetworkPlan};

/// Writes the three files into `dir`.
///
/// # Errors
/// As writing files.
pub fn write(dir: &Path, plan: &ContainerPlan, network: Option<&net::Config>) -> io::Result<()> {
    let hostname = plan.spec.hostname().clone().unwrap_or_default();
    fs::write(dir.join("hostname"), format!("{hostname}\n"))?;
    fs::write(dir.join("hosts"), hosts(plan, &hostname, network))?;
    let host_resolv = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let servers = servers(plan, &host_resolv, network);
    let text = resolv_conf(&plan.network, &servers, &net::ResolvConf::parse(&host_resolv));
    fs::write(dir.join("resolv.conf"), text)
}

/// A container's resolv.conf on the userspace network, rewritten when the host's search domains or options change.
/// Once anybody else has written it, it is left alone.
#[derive(Debug)]
pub struct Mirror {
    file: File,
    written: String,
    network: NetworkPlan,
    servers: Vec<String>,
}

impl Mirror {
    /// Of the file that [`write()`] has just written into `dir`.
    ///
    /// # Errors
    /// As opening a file.
    pub fn open(dir: &Path, plan: &ContainerPlan, network: &net::Config) -> io::Result<Self> {
        let path = dir.join("resolv.conf");
        let written = fs::read_to_string(&path)?;
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Self { file, written, network: plan.network.clone(), servers: servers(plan, "", Some(network)) })
    }

    /// Follows the host.
    ///
    /// # Errors
    /// As reading and writing a file.
    pub fn follow(&mut self, host: &net::ResolvConf) -> io::Result<()> {
        let text = resolv_conf(&self.network, &self.servers, host);
        // In place, because the file is a mount inside.
        if text != self.written && self.is_ours()? {
            self.file.write_all_at(text.as_bytes(), 0)?;
            self.file.set_len(text.len() as u64)?;
            self.written = text;
        }
        Ok(())
    }

    /// Whether the file still is as it was written. The container may have made it as long as it likes.
    fn is_ours(&self) -> io::Result<bool> {
        if self.file.metadata()?.len() != self.written.len() as u64 {
            return Ok(false);
        }
        let mut found = vec![0; self.written.len()];
        match self.file.read_exact_at(&mut found, 0) {
            Ok(()) => Ok(found == self.written.as_bytes()),
            // It was cut just now.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error),
        }
    }
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
        let names = own_names(hostname, plan.spec.domainname().as_deref());
        if !names.is_empty() {
            let net::Addresses { v4, v6 } = config.addresses;
            let _ = writeln!(text, "{}\t{names}", v4.container);
            let _ = writeln!(text, "{}\t{names}", v6.container);
        }
    }
    text
}

/// The container's own names: with a domain both the whole name and the first part, as in Docker.
fn own_names(hostname: &str, domain: Option<&str>) -> String {
    match (domain.filter(|domain| !domain.is_empty()), hostname.split_once('.')) {
        (Some(domain), _) if !hostname.is_empty() => format!("{hostname}.{domain} {hostname}"),
        (None, Some((first, _))) if !first.is_empty() => format!("{hostname} {first}"),
        _ => hostname.to_owned(),
    }
}

/// The servers that the container's resolver asks: the gateway, unless others are asked for or there is none.
fn servers(plan: &ContainerPlan, host: &str, network: Option<&net::Config>) -> Vec<String> {
    match (plan.network.dns.as_slice(), network) {
        ([], Some(config)) => vec![config.addresses.v4.dns.to_string()],
        ([], None) => host_servers(host),
        (asked, _) => asked.iter().map(ToString::to_string).collect(),
    }
}

/// What the container's resolver reads. Search domains and options are the host's, each kind unless it is asked for.
fn resolv_conf(asked: &NetworkPlan, servers: &[String], host: &net::ResolvConf) -> String {
    let search = match asked.dns_search.as_slice() {
        [] => host.search.as_slice(),
        [dot] if dot == "." => &[],
        given => given,
    };
    let options = if asked.dns_options.is_empty() { &host.options } else { &asked.dns_options };
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

/// The servers of a resolv.conf as they are written there, zones too.
fn host_servers(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            (words.next() == Some("nameserver")).then(|| words.next().map(str::to_owned))?
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed call is a failed test")]

    use super::*;

    /// The mirror of a file as it is first written, with these flags.
    fn mirror(dir: &Path, search: &[&str]) -> Mirror {
        let network = NetworkPlan {
            mode: NetworkMode::Bridge,
            publish: Vec::new(),
            publish_all: false,
            expose: Vec::new(),
            extra_hosts: Vec::new(),
            dns: Vec::new(),
            dns_search: search.iter().map(|domain| (*domain).to_owned()).collect(),
            dns_options: Vec::new(),
            host_loopback: crate::plan::HostLoopback::Closed,
            mtu_bytes: None,
            addresses: crate::plan::ChosenAddresses::default(),
        };
        let servers = vec!["10.0.2.3".to_owned()];
        let written = resolv_conf(&network, &servers, &net::ResolvConf::default());
        fs::write(dir.join("resolv.conf"), &written).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(dir.join("resolv.conf")).unwrap();
        Mirror { file, written, network, servers }
    }

    #[test]
    fn the_hosts_search_domains_are_followed() {
        let dir = tempfile::tempdir().unwrap();
        let text = || fs::read_to_string(dir.path().join("resolv.conf")).unwrap();
        let mut mirror = mirror(dir.path(), &[]);
        assert_eq!(text(), "nameserver 10.0.2.3\n");
        let host =
            net::ResolvConf::parse("nameserver 192.0.2.1\nsearch a.example b.example\noptions ndots:2\n");
        mirror.follow(&host).unwrap();
        assert_eq!(text(), "search a.example b.example\nnameserver 10.0.2.3\noptions ndots:2\n");
        mirror.follow(&net::ResolvConf::parse("domain c.example\n")).unwrap();
        assert_eq!(text(), "search c.example\nnameserver 10.0.2.3\n");
    }

    #[test]
    fn a_resolv_conf_that_somebody_else_has_written_is_left_alone() {
        let host = net::ResolvConf::parse("search a.example\n");
        for theirs in ["", "nameserver 10.0.2.4\n", "nameserver 192.0.2.1\nnameserver 192.0.2.2\n"] {
            let dir = tempfile::tempdir().unwrap();
            let mut mirror = mirror(dir.path(), &[]);
            fs::write(dir.path().join("resolv.conf"), theirs).unwrap();
            mirror.follow(&host).unwrap();
            assert_eq!(fs::read_to_string(dir.path().join("resolv.conf")).unwrap(), theirs);
        }
    }

    #[test]
    fn search_domains_that_were_asked_for_stay() {
        let dir = tempfile::tempdir().unwrap();
        let mut mirror = mirror(dir.path(), &["own.example"]);
        mirror.follow(&net::ResolvConf::parse("search a.example\n")).unwrap();
        let text = fs::read_to_string(dir.path().join("resolv.conf")).unwrap();
        assert_eq!(text, "search own.example\nnameserver 10.0.2.3\n");
    }

    #[test]
    fn servers_keep_their_zone() {
        let host = "nameserver 192.0.2.1\nnameserver\tfe80::1%eth0\n# nameserver x\nnameserver\n";
        assert_eq!(host_servers(host), ["192.0.2.1", "fe80::1%eth0"]);
    }

    #[test]
    fn a_container_has_its_whole_name_and_its_first() {
        let table = [
            ("box", None, "box"),
            ("box", Some(""), "box"),
            ("box.example.org", None, "box.example.org box"),
            ("box", Some("example.org"), "box.example.org box"),
            ("", Some("example.org"), ""),
            (".x", None, ".x"),
        ];
        for (hostname, domain, expected) in table {
            assert_eq!(own_names(hostname, domain), expected);
        }
    }
}
