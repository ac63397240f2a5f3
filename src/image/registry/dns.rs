//! Names to addresses, in Rust alone: this binary is linked statically, and glibc's getaddrinfo would
//! load modules of whatever glibc the machine has.
//!
//! /etc/hosts comes first, then the servers of /etc/resolv.conf, with its search list, ndots, timeout
//! and attempts (hosts(5), resolv.conf(5)). An answer counts only if it comes from the server that was
//! asked, has the id of the query and repeats its question; of its records only A, AAAA and CNAME are
//! looked at. A truncated answer is asked for again over TCP.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

use crate::sys;

/// Servers that resolv.conf may name (MAXNS in resolv.h).
const MAX_SERVERS: usize = 3;
/// Names tried for one: resolv.conf(5) no longer limits the search list, six was the limit for long.
const MAX_SEARCH: usize = 6;
/// Addresses that are tried for a name.
const MAX_ADDRESSES: usize = 16;
/// Links of a chain of CNAMEs.
const MAX_ALIASES: usize = 16;
/// Bytes of a configuration file that are read.
const MAX_FILE_BYTES: usize = 1 << 20;
/// A datagram's size that every path carries (RFC 9715); larger answers come over TCP.
const MAX_DATAGRAM: usize = 4096;

const TYPE_A: u16 = 1;
const TYPE_CNAME: u16 = 5;
const TYPE_AAAA: u16 = 28;
const CLASS_IN: u16 = 1;
const DNS_PORT: u16 = 53;

/// Resolves for ureq.
#[derive(Debug)]
pub(super) struct Names;

impl Resolver for Names {
    fn resolve(
        &self,
        uri: &Uri,
        _config: &ureq::config::Config,
        _timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let host = uri.host().ok_or(ureq::Error::HostNotFound)?;
        let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("http") { 80 } else { 443 });
        let mut found = self.empty();
        for address in lookup(host)?.into_iter().take(MAX_ADDRESSES) {
            found.push(SocketAddr::new(address, port));
        }
        if found.is_empty() { Err(ureq::Error::HostNotFound) } else { Ok(found) }
    }
}

/// The addresses of a host, IPv4 first: a machine without IPv6 must not wait for it.
fn lookup(host: &str) -> io::Result<Vec<IpAddr>> {
    let host = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.');
    if let Ok(address) = host.parse() {
        return Ok(vec![address]);
    }
    let lower = host.to_ascii_lowercase();
    let local = hosts(&read("/etc/hosts"), &lower);
    if !local.is_empty() {
        return Ok(local);
    }
    // RFC 6761, 6.3: localhost is never asked for.
    if lower == "localhost" || lower.ends_with(".localhost") {
        return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
    }
    // RFC 6761, 6.4: nor is what cannot exist.
    if lower == "invalid" || lower.ends_with(".invalid") {
        return Ok(Vec::new());
    }
    let settings = Settings::parse(&read("/etc/resolv.conf"));
    let mut failure = None;
    for name in settings.candidates(&lower) {
        let mut found = Vec::new();
        for kind in [TYPE_A, TYPE_AAAA] {
            match ask(&settings, &name, kind) {
                Ok(addresses) => found.extend(addresses),
                Err(error) => failure = Some(error),
            }
        }
        if !found.is_empty() {
            return Ok(found);
        }
    }
    match failure {
        Some(error) => Err(error),
        None => Ok(Vec::new()),
    }
}

/// A file of the machine; one that is missing says nothing.
fn read(path: &str) -> String {
    let mut bytes = fs::read(path).unwrap_or_default();
    bytes.truncate(MAX_FILE_BYTES);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The addresses that a hosts file has for a name.
fn hosts(text: &str, name: &str) -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let Some(address) = words.next().and_then(|word| word.parse().ok()) else { continue };
        if words.any(|word| word.trim_end_matches('.').eq_ignore_ascii_case(name))
            && !found.contains(&address)
        {
            found.push(address);
        }
    }
    found.sort_by_key(IpAddr::is_ipv6);
    found.truncate(MAX_ADDRESSES);
    found
}

/// What resolv.conf says.
#[derive(Debug, PartialEq, Eq)]
struct Settings {
    servers: Vec<SocketAddr>,
    search: Vec<String>,
    dots: usize,
    timeout: Duration,
    attempts: u32,
}

impl Settings {
    fn parse(text: &str) -> Self {
        let mut settings = Self {
            servers: Vec::new(),
            search: Vec::new(),
            dots: 1,
            timeout: Duration::from_secs(5),
            attempts: 2,
        };
        for line in text.lines() {
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    // A zone (`%eth0`) is of no use to a server that is reached by route.
                    let address = words.next().and_then(|word| word.split('%').next()?.parse().ok());
                    if let Some(address) = address.filter(|_| settings.servers.len() < MAX_SERVERS) {
                        settings.servers.push(SocketAddr::new(address, DNS_PORT));
                    }
                }
                Some("search" | "domain") => {
                    settings.search =
                        words.take(MAX_SEARCH).map(|word| word.trim_matches('.').to_lowercase()).collect();
                }
                Some("options") => words.for_each(|word| settings.option(word)),
                _ => {}
            }
        }
        if settings.servers.is_empty() {
            settings.servers.push(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), DNS_PORT));
        }
        settings
    }

    /// The limits of each are those of resolv.conf(5).
    fn option(&mut self, word: &str) {
        let Some((name, value)) = word.split_once(':') else { return };
        let Ok(value) = value.parse::<u32>() else { return };
        match name {
            "ndots" => self.dots = value.min(15) as usize,
            "timeout" => self.timeout = Duration::from_secs(value.clamp(1, 30).into()),
            "attempts" => self.attempts = value.clamp(1, 5),
            _ => {}
        }
    }

    /// The whole names that a name may stand for, in the order in which they are tried.
    fn candidates(&self, name: &str) -> Vec<String> {
        let searched = self.search.iter().map(|domain| format!("{name}.{domain}"));
        if name.matches('.').count() >= self.dots {
            std::iter::once(name.to_owned()).chain(searched).collect()
        } else {
            searched.chain([name.to_owned()]).collect()
        }
    }
}

/// Asks the servers in turn. A name that does not exist is an empty answer.
fn ask(settings: &Settings, name: &str, kind: u16) -> io::Result<Vec<IpAddr>> {
    let id = u16::from_ne_bytes(sys::process::random_bytes()?);
    let query = Query::new(id, name, kind)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("{name} is not a host's name")))?;
    let mut failure = io::Error::new(io::ErrorKind::TimedOut, "no name server answers");
    for _ in 0..settings.attempts {
        for server in &settings.servers {
            let answer = over_udp(*server, &query, settings.timeout).and_then(|answer| match answer {
                Answer::Truncated => over_tcp(*server, &query, settings.timeout),
                answer => Ok(answer),
            });
            match answer {
                Ok(Answer::Addresses(addresses)) => return Ok(addresses),
                Ok(Answer::Truncated) => failure = io::Error::other(format!("{server} cuts its answers")),
                Ok(Answer::Failure(code)) => {
                    failure = io::Error::other(format!("the name server {server} answers with error {code}"));
                }
                Err(error) => failure = error,
            }
        }
    }
    Err(failure)
}

fn over_udp(server: SocketAddr, query: &Query, timeout: Duration) -> io::Result<Answer> {
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    // The kernel then drops what comes from elsewhere.
    socket.connect(server)?;
    socket.send(&query.bytes)?;
    let end = Instant::now() + timeout;
    let mut buffer = [0; MAX_DATAGRAM];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("the name server {server} does not answer"),
            ));
        }
        socket.set_read_timeout(Some(left))?;
        let count = match socket.recv(&mut buffer) {
            Ok(count) => count,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                continue;
            }
            Err(error) => return Err(error),
        };
        // What does not answer this query is passed over.
        if let Some(answer) = query.answer(&buffer[..count]) {
            return Ok(answer);
        }
    }
}

fn over_tcp(server: SocketAddr, query: &Query, timeout: Duration) -> io::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&server, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    let length = u16::try_from(query.bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), query.bytes.as_slice()].concat())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut bytes = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut bytes)?;
    query.answer(&bytes).ok_or_else(|| io::Error::other(format!("{server} answers what was not asked")))
}

/// A question on its way.
struct Query {
    id: u16,
    kind: u16,
    name: Vec<Vec<u8>>,
    bytes: Vec<u8>,
}

/// What a message says.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Addresses(Vec<IpAddr>),
    Truncated,
    Failure(u8),
}

impl Query {
    fn new(id: u16, name: &str, kind: u16) -> Option<Self> {
        let labels: Vec<Vec<u8>> = name.split('.').map(|label| label.as_bytes().to_vec()).collect();
        let fits = labels.iter().all(|label| (1..=63).contains(&label.len())) && name.len() <= 253;
        if !fits {
            return None;
        }
        let mut bytes = id.to_be_bytes().to_vec();
        // Recursion desired; one question.
        bytes.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        for label in &labels {
            bytes.push(u8::try_from(label.len()).ok()?);
            bytes.extend(label);
        }
        bytes.push(0);
        bytes.extend(kind.to_be_bytes());
        bytes.extend(CLASS_IN.to_be_bytes());
        Some(Self { id, kind, name: labels, bytes })
    }

    /// Reads a message; `None` if it is no answer to this query (RFC 1035, 4.1).
    fn answer(&self, message: &[u8]) -> Option<Answer> {
        let mut reader = Reader { message, at: 0 };
        let id = reader.u16()?;
        let flags = reader.u16()?;
        let counts = [reader.u16()?, reader.u16()?, reader.u16()?, reader.u16()?];
        if id != self.id || flags & 0x8000 == 0 || counts[0] != 1 {
            return None;
        }
        if !same(&reader.name()?, &self.name) || reader.u16()? != self.kind || reader.u16()? != CLASS_IN {
            return None;
        }
        if flags & 0x0200 != 0 {
            return Some(Answer::Truncated);
        }
        match u8::try_from(flags & 15).ok()? {
            0 => {}
            3 => return Some(Answer::Addresses(Vec::new())), // the name does not exist
            code => return Some(Answer::Failure(code)),
        }
        let mut records = Vec::new();
        for _ in 0..counts[1] {
            // What does not parse ends the records; those before it count.
            let Some(record) = reader.record() else { break };
            records.push(record);
        }
        Some(Answer::Addresses(self.addresses(&records)))
    }

    /// The addresses of the name or of what it is an alias for.
    fn addresses(&self, records: &[Record]) -> Vec<IpAddr> {
        let mut name = self.name.clone();
        for _ in 0..MAX_ALIASES {
            let alias = records.iter().find_map(|record| match &record.data {
                Data::Alias(target) if same(&record.name, &name) => Some(target.clone()),
                _ => None,
            });
            match alias {
                Some(target) => name = target,
                None => break,
            }
        }
        let mut seen = HashSet::new();
        let of_name = records.iter().filter(|record| same(&record.name, &name));
        let addresses = of_name.filter_map(|record| match record.data {
            Data::Address(address) if seen.insert(address) => Some(address),
            _ => None,
        });
        addresses.take(MAX_ADDRESSES).collect()
    }
}

fn same(a: &[Vec<u8>], b: &[Vec<u8>]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.eq_ignore_ascii_case(b))
}

struct Record {
    name: Vec<Vec<u8>>,
    data: Data,
}

enum Data {
    Address(IpAddr),
    Alias(Vec<Vec<u8>>),
    Other,
}

/// Reads a message; nothing in it can make it read outside, or for ever.
struct Reader<'a> {
    message: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn take(&mut self, count: usize) -> Option<&[u8]> {
        let end = self.at.checked_add(count)?;
        let bytes = self.message.get(self.at..end)?;
        self.at = end;
        Some(bytes)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// A name, its compression followed backwards only, so that it ends.
    fn name(&mut self) -> Option<Vec<Vec<u8>>> {
        let mut labels: Vec<Vec<u8>> = Vec::new();
        let mut length = 0;
        let mut reader = Reader { message: self.message, at: self.at };
        let mut after = None;
        loop {
            let start = reader.at;
            match reader.u8()? {
                0 => break,
                count @ 1..=63 => {
                    length += usize::from(count) + 1;
                    if length > 255 {
                        return None;
                    }
                    labels.push(reader.take(count.into())?.to_vec());
                }
                high @ 192..=255 => {
                    let target = usize::from(high & 63) << 8 | usize::from(reader.u8()?);
                    after.get_or_insert(reader.at);
                    if target >= start {
                        return None;
                    }
                    reader.at = target;
                }
                _ => return None,
            }
        }
        self.at = after.unwrap_or(reader.at);
        Some(labels)
    }

    fn record(&mut self) -> Option<Record> {
        let name = self.name()?;
        let (kind, class) = (self.u16()?, self.u16()?);
        self.take(4)?; // time to live
        let length = usize::from(self.u16()?);
        let end = self.at.checked_add(length)?;
        let data = match (kind, class, length) {
            (TYPE_A, CLASS_IN, 4) => {
                let bytes: [u8; 4] = self.take(4)?.try_into().ok()?;
                Data::Address(Ipv4Addr::from(bytes).into())
            }
            (TYPE_AAAA, CLASS_IN, 16) => {
                let bytes: [u8; 16] = self.take(16)?.try_into().ok()?;
                Data::Address(Ipv6Addr::from(bytes).into())
            }
            (TYPE_CNAME, CLASS_IN, _) => Data::Alias(self.name()?),
            _ => {
                self.take(length)?;
                Data::Other
            }
        };
        (self.at == end && end <= self.message.len()).then_some(Record { name, data })
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hosts_files_are_read_as_they_are_written() {
        let text =
            "127.0.0.1 localhost\n::1 Reg.example reg # here\n10.0.0.7\treg.EXAMPLE. other\nbad line\n";
        assert_eq!(
            hosts(text, "reg.example"),
            ["10.0.0.7".parse::<IpAddr>().unwrap(), "::1".parse().unwrap()]
        );
        assert_eq!(hosts(text, "here"), [] as [IpAddr; 0]);
    }

    #[test]
    fn resolv_conf_is_read_with_its_limits() {
        let text = "nameserver 10.0.0.1\nnameserver fe80::1%eth0\n; no\nsearch A.example. b.example\n\
                    options ndots:2 timeout:90 attempts:9 rotate\nnameserver 10.0.0.3\nnameserver 10.0.0.4\n";
        let settings = Settings::parse(text);
        assert_eq!(settings.servers.len(), 3);
        assert_eq!((settings.dots, settings.timeout.as_secs(), settings.attempts), (2, 30, 5));
        assert_eq!(settings.candidates("reg"), ["reg.a.example", "reg.b.example", "reg"]);
        assert_eq!(settings.candidates("a.b.c")[0], "a.b.c");
        assert_eq!(Settings::parse("").servers, ["127.0.0.1:53".parse().unwrap()]);
    }

    fn reply(query: &Query, flags: u16, records: &[&[u8]]) -> Vec<u8> {
        let mut message = query.bytes.clone();
        message[2..4].copy_from_slice(&flags.to_be_bytes());
        message[7] = u8::try_from(records.len()).unwrap();
        records.iter().for_each(|record| message.extend(*record));
        message
    }

    #[test]
    fn answers_are_followed_through_aliases_and_strangers_are_not_believed() {
        let query = Query::new(7, "reg.example", TYPE_A).unwrap();
        // reg.example is an alias of a.reg.example, which has an address; so has a stranger.
        let alias: &[u8] = &[0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 9, 0, 4, 1, b'a', 0xc0, 12];
        let address: &[u8] = &[1, b'A', 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 10, 0, 0, 7];
        let stranger: &[u8] = &[1, b'x', 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 6, 6, 6, 6];
        let message = reply(&query, 0x8180, &[stranger, address, alias]);
        let found = Answer::Addresses(vec![Ipv4Addr::new(10, 0, 0, 7).into()]);
        assert_eq!(query.answer(&message), Some(found));
        assert_eq!(query.answer(&reply(&query, 0x8183, &[])), Some(Answer::Addresses(Vec::new())));
        assert_eq!(query.answer(&reply(&query, 0x8182, &[])), Some(Answer::Failure(2)));
        assert_eq!(query.answer(&reply(&query, 0x8380, &[])), Some(Answer::Truncated));
        assert_eq!(query.answer(&reply(&query, 0x0180, &[])), None, "a query is no answer");
        let other = Query::new(8, "reg.example", TYPE_A).unwrap();
        assert_eq!(query.answer(&reply(&other, 0x8180, &[address])), None, "another id");
        let other = Query::new(7, "beg.example", TYPE_A).unwrap();
        assert_eq!(query.answer(&reply(&other, 0x8180, &[address])), None, "another question");
        assert!(Query::new(1, "a..b", TYPE_A).is_none());
        assert!(Query::new(1, &"a".repeat(64), TYPE_A).is_none());
    }

    proptest! {
        #[test]
        fn no_message_breaks_the_reader(bytes in proptest::collection::vec(any::<u8>(), 0..300), at in 0usize..40) {
            let query = Query::new(7, "reg.example", TYPE_A).unwrap();
            let mut message = reply(&query, 0x8180, &[&bytes]);
            message.drain(..at.min(message.len()));
            let _ = query.answer(&message);
            let _ = query.answer(&reply(&query, 0x8180, &[&bytes, &bytes]));
        }
    }
}
