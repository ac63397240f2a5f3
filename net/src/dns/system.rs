//! The host's own idea of names: /etc/resolv.conf and /etc/hosts, followed as they change.

use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::net::if_::if_nametoindex;

use crate::wheel::Tick;

const RESOLV_CONF: &str = "/etc/resolv.conf";
const HOSTS: &str = "/etc/hosts";
const DNS_PORT: u16 = 53;

/// More than resolv.conf(5) lets the C library use.
const SERVERS_MAX: usize = 6;
const SEARCH_MAX: usize = 32;
/// Some sites block advertisers with a large hosts file; beyond this the rest is not read.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// A file is looked at again after this long, when a name is asked for. Idle means no work.
const CHECK_AFTER_MS: Tick = 1_000;

/// The host's resolver configuration, as resolv.conf(5) has it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResolvConf {
    /// The name servers, in order; if the file names none, the host's own at 127.0.0.1.
    pub servers: Vec<SocketAddr>,
    /// The search domains.
    pub search: Vec<String>,
    /// The options, such as `ndots:2`.
    pub options: Vec<String>,
}

impl ResolvConf {
    /// Reads the host's file; one that cannot be read counts as empty.
    #[must_use]
    pub fn read() -> Self {
        Self::parse(&read_text(Path::new(RESOLV_CONF)))
    }

    /// Parses the file's text.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut this = Self::default();
        for line in text.lines() {
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") => this.servers.extend(words.next().and_then(parse_server)),
                // The last of these lines counts.
                Some("search" | "domain") => {
                    let domains = words.filter(|word| is_plain(word));
                    this.search = domains.take(SEARCH_MAX).map(str::to_owned).collect();
                }
                Some("options") => {
                    this.options.extend(words.filter(|word| is_plain(word)).map(str::to_owned));
                }
                _ => {}
            }
        }
        this.servers.truncate(SERVERS_MAX);
        if this.servers.is_empty() {
            this.servers.push(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), DNS_PORT));
        }
        this
    }
}

/// Whether a word can be written into another such file and stays one word there, whatever its
/// reader takes for white space.
fn is_plain(word: &str) -> bool {
    word.bytes().all(|byte| byte.is_ascii_graphic())
}

/// An address, with the zone that a link-local one needs.
fn parse_server(word: &str) -> Option<SocketAddr> {
    if let Ok(address) = word.parse::<IpAddr>() {
        return Some(SocketAddr::new(address, DNS_PORT));
    }
    let (address, zone) = word.split_once('%')?;
    let address: Ipv6Addr = address.parse().ok()?;
    let zone = zone.parse().ok().or_else(|| if_nametoindex(zone).ok())?;
    Some(SocketAddrV6::new(address, DNS_PORT, 0, zone).into())
}

/// The names of a hosts(5) file, in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Hosts {
    by_name: HashMap<String, Vec<IpAddr>>,
    by_address: HashMap<IpAddr, String>,
}

impl Hosts {
    /// Parses the file's text. Names of the loopback itself are left out: inside, they are the
    /// container's own.
    pub(crate) fn parse(text: &str) -> Self {
        let mut this = Self::default();
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or_default();
            let mut words = line.split_ascii_whitespace();
            let Some(address) = words.next().and_then(|word| word.parse::<IpAddr>().ok()) else {
                continue;
            };
            for name in words.filter(|name| !is_local(name)) {
                this.insert(name, address);
            }
        }
        this
    }

    pub(crate) fn insert(&mut self, name: &str, address: IpAddr) {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        self.by_address.entry(address).or_insert_with(|| name.clone());
        let addresses = self.by_name.entry(name).or_default();
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }

    /// The addresses of a name in lower case.
    pub(crate) fn addresses(&self, name: &str) -> Option<&[IpAddr]> {
        self.by_name.get(name).map(Vec::as_slice)
    }

    /// The first name of an address.
    pub(crate) fn name(&self, address: IpAddr) -> Option<&str> {
        self.by_address.get(&address).map(String::as_str)
    }
}

fn is_local(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name == "localhost"
        || name.ends_with(".localhost")
        || name.starts_with("localhost.")
        || name.starts_with("localhost4")
        || name.starts_with("localhost6")
        || name.starts_with("ip6-")
}

/// A file's parsed content, read again when the file is another or has changed.
pub(crate) struct Followed<T> {
    path: PathBuf,
    parse: fn(&str) -> T,
    value: T,
    identity: Option<Identity>,
    check_at: Tick,
}

/// What differs between two versions of a file: a new one may be renamed into its place, or be
/// what a symlink now leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    size_bytes: u64,
    modified: (i64, i64),
}

impl<T> Followed<T> {
    pub(crate) fn new(path: impl Into<PathBuf>, parse: fn(&str) -> T) -> Self {
        Self { path: path.into(), parse, value: parse(""), identity: None, check_at: 0 }
    }

    /// The content, as of a second ago at most.
    pub(crate) fn get(&mut self, now: Tick) -> &T {
        self.refresh(now);
        &self.value
    }

    /// Looks at the file, if it is time. Returns the content if it is another.
    pub(crate) fn refresh(&mut self, now: Tick) -> Option<&T> {
        if now < self.check_at {
            return None;
        }
        self.check_at = now + CHECK_AFTER_MS;
        let identity = identity(&self.path);
        // A file that is gone for the moment is being replaced: the old content stands.
        if identity.is_none() || identity == self.identity {
            return None;
        }
        self.identity = identity;
        self.value = (self.parse)(&read_text(&self.path));
        Some(&self.value)
    }
}

pub(crate) fn follow_resolv_conf() -> Followed<ResolvConf> {
    Followed::new(RESOLV_CONF, ResolvConf::parse)
}

pub(crate) fn follow_hosts() -> Followed<Hosts> {
    Followed::new(HOSTS, Hosts::parse)
}

fn identity(path: &Path) -> Option<Identity> {
    let metadata = fs::metadata(path).ok()?;
    Some(Identity {
        device: metadata.dev(),
        inode: metadata.ino(),
        size_bytes: metadata.size(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
    })
}

fn read_text(path: &Path) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = fs::File::open(path) {
        // What was read before an error is used: half a file is better than none.
        _ = file.take(FILE_BYTES_MAX).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "the addresses are literals")]

    use super::*;

    #[test]
    fn resolv_conf_is_read_as_its_manual_says() {
        let text = "# comment\nnameserver 127.0.0.53 # stub\nnameserver fe80::1%7\n\
                    nameserver nonsense\ndomain old.example\nsearch a.example b.example\n\
                    options ndots:2 edns0\noptions trust-ad\n";
        let conf = ResolvConf::parse(text);
        assert_eq!(
            conf.servers,
            [
                "127.0.0.53:53".parse().unwrap(),
                SocketAddr::V6(SocketAddrV6::new("fe80::1".parse().unwrap(), 53, 0, 7)),
            ]
        );
        assert_eq!(conf.search, ["a.example", "b.example"]);
        assert_eq!(conf.options, ["ndots:2", "edns0", "trust-ad"]);
    }

    #[test]
    fn words_that_are_no_text_are_left_out() {
        let conf = ResolvConf::parse("search a.example b\u{b}c d\u{a0}e\noptions edns0 x\u{b} \0\n");
        assert_eq!(conf.search, ["a.example"]);
        assert_eq!(conf.options, ["edns0"]);
    }

    #[test]
    fn an_empty_resolv_conf_means_this_host() {
        assert_eq!(ResolvConf::parse("").servers, ["127.0.0.1:53".parse().unwrap()]);
    }

    #[test]
    fn hosts_are_found_by_name_and_address() {
        let text = "127.0.0.1 localhost localhost.localdomain\n127.0.1.1 box.example box\n\
                    192.0.2.5 DB.example db # the database\n2001:db8::5 db.example\n::1 ip6-loopback\n";
        let hosts = Hosts::parse(text);
        let addresses = |name| hosts.addresses(name).map(<[_]>::to_vec);
        assert_eq!(addresses("localhost"), None);
        assert_eq!(addresses("ip6-loopback"), None);
        assert_eq!(addresses("box"), Some(vec!["127.0.1.1".parse().unwrap()]));
        assert_eq!(
            addresses("db.example"),
            Some(vec!["192.0.2.5".parse().unwrap(), "2001:db8::5".parse().unwrap()])
        );
        assert_eq!(hosts.name("192.0.2.5".parse().unwrap()), Some("db.example"));
    }

    #[test]
    fn a_followed_file_is_read_again_when_it_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hosts");
        let mut hosts = Followed::new(&path, Hosts::parse);
        let has = |hosts: &mut Followed<Hosts>, now, name| hosts.get(now).addresses(name).is_some();
        assert!(!has(&mut hosts, 0, "a"));
        fs::write(&path, "192.0.2.1 a\n").unwrap();
        assert!(!has(&mut hosts, CHECK_AFTER_MS - 1, "a"));
        assert!(has(&mut hosts, CHECK_AFTER_MS, "a"));
        let other = directory.path().join("new");
        fs::write(&other, "192.0.2.1 b\n").unwrap();
        fs::rename(&other, &path).unwrap();
        assert!(has(&mut hosts, 2 * CHECK_AFTER_MS, "b"));
        fs::remove_file(&path).unwrap();
        assert!(has(&mut hosts, 3 * CHECK_AFTER_MS, "b"));
    }
}
