//! `-p` and `--expose`.

use crate::plan::port::{PortError, parse_range, split_protocol};
use crate::plan::{HostPort, Protocol, PublishedPort};

/// Reads one `-p`: `[[ip:][host]:]container[/proto]` with ranges and `[v6]`, or Docker's long form
/// `published=8080,target=80,protocol=tcp`. One entry a container port.
///
/// # Errors
/// Docker's words for what is wrong.
pub(super) fn parse_publish(text: &str) -> Result<Vec<PublishedPort>, String> {
    if text.contains('=') { parse_short(&short_form(text)?) } else { parse_short(text) }
}

/// Reads one `--expose`: `80`, `8000-8010/udp`.
///
/// # Errors
/// Docker's words for what is wrong.
pub(super) fn parse_expose(text: &str) -> Result<Vec<(u16, Protocol)>, String> {
    if text.contains(':') {
        return Err(format!("invalid port format for --expose: {text}"));
    }
    let invalid = |error: PortError| format!("invalid range format for --expose: {text}, error: {error}");
    let (range, protocol) = split_protocol(text).map_err(invalid)?;
    Ok(parse_range(range).map_err(invalid)?.map(|port| (port, protocol)).collect())
}

fn short_form(text: &str) -> Result<String, String> {
    let (mut published, mut target, mut protocol) = ("", "", "tcp");
    for option in text.split(',') {
        match option.split_once('=') {
            Some(("published", value)) => published = value,
            Some(("target", value)) => target = value,
            Some(("protocol", value)) => protocol = value,
            // Swarm's routing, which a single machine has no choice of.
            Some(("mode", _)) => {}
            _ => {
                return Err(format!("invalid publish opts format (should be name=value but got '{option}')"));
            }
        }
    }
    Ok(format!("{published}:{target}/{protocol}"))
}

fn parse_short(text: &str) -> Result<Vec<PublishedPort>, String> {
    let (ip, host, container) = split_parts(text);
    let (container, protocol) = split_protocol(container).map_err(|error| error.to_string())?;
    let host_ip = match ip {
        "" => None,
        _ => Some(
            ip.strip_prefix('[')
                .and_then(|ip| ip.strip_suffix(']'))
                .unwrap_or(ip)
                .parse()
                .map_err(|_| format!("invalid IP address: {ip}"))?,
        ),
    };
    if container.is_empty() {
        return Err(format!("no port specified: {text}<empty>"));
    }
    let ports = parse_range(container)
        .ok()
        .filter(|range| *range.start() > 0)
        .ok_or_else(|| format!("invalid containerPort: {container}"))?;
    let host_ports = match host {
        "" | "0" => None,
        _ => Some(
            parse_range(host)
                .ok()
                .filter(|range| *range.start() > 0)
                .ok_or_else(|| format!("invalid hostPort: {host}"))?,
        ),
    };
    let entry = |host_port, container_port| PublishedPort { host_ip, host_port, container_port, protocol };
    match host_ports {
        None => Ok(ports.map(|port| entry(HostPort::Any, port)).collect()),
        Some(hosts) if hosts.len() == ports.len() => {
            Ok(hosts.zip(ports).map(|(host, port)| entry(HostPort::Fixed(host), port)).collect())
        }
        Some(hosts) if ports.len() == 1 => {
            Ok(vec![entry(HostPort::FirstFree(*hosts.start(), *hosts.end()), *ports.start())])
        }
        Some(_) => {
            Err(format!("invalid ranges specified for container and host Ports: {container} and {host}"))
        }
    }
}

/// Address, host port and container port; what is left of the last two colons is the address, so
/// that an IPv6 address needs its brackets only for the eye.
fn split_parts(text: &str) -> (&str, &str, &str) {
    let Some((rest, container)) = text.rsplit_once(':') else { return ("", "", text) };
    let Some((ip, host)) = rest.rsplit_once(':') else { return ("", rest, container) };
    (ip, host, container)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `ip host container/proto`, a line a port.
    fn shown(text: &str) -> Result<Vec<String>, String> {
        let ports = parse_publish(text)?;
        Ok(ports
            .into_iter()
            .map(|port| {
                let ip = port.host_ip.map_or("*".to_owned(), |ip| ip.to_string());
                let host = match port.host_port {
                    HostPort::Any => "any".to_owned(),
                    HostPort::Fixed(host) => host.to_string(),
                    HostPort::FirstFree(first, last) => format!("{first}..{last}"),
                };
                let protocol = if port.protocol == Protocol::Tcp { "tcp" } else { "udp" };
                format!("{ip} {host} {}/{protocol}", port.container_port)
            })
            .collect())
    }

    #[test]
    fn every_form() {
        let table: [(&str, &[&str]); 16] = [
            ("80", &["* any 80/tcp"]),
            ("8080:80", &["* 8080 80/tcp"]),
            ("8080:80/udp", &["* 8080 80/udp"]),
            (":80", &["* any 80/tcp"]),
            ("0:80", &["* any 80/tcp"]),
            ("127.0.0.1:8080:80", &["127.0.0.1 8080 80/tcp"]),
            ("127.0.0.1::80", &["127.0.0.1 any 80/tcp"]),
            ("[::1]:8080:80", &["::1 8080 80/tcp"]),
            ("[::]:80:80/UDP", &[":: 80 80/udp"]),
            ("::1:8080:80", &["::1 8080 80/tcp"]),
            ("8000-8001:80-81", &["* 8000 80/tcp", "* 8001 81/tcp"]),
            ("80-81", &["* any 80/tcp", "* any 81/tcp"]),
            ("8000-8100:80", &["* 8000..8100 80/tcp"]),
            ("127.0.0.1:1-2:3-4/udp", &["127.0.0.1 1 3/udp", "127.0.0.1 2 4/udp"]),
            ("published=8080,target=80,protocol=udp,mode=host", &["* 8080 80/udp"]),
            ("target=80", &["* any 80/tcp"]),
        ];
        for (text, expected) in table {
            assert_eq!(shown(text), Ok(expected.iter().map(|line| (*line).to_owned()).collect()), "{text}");
        }
    }

    #[test]
    fn the_whole_range() {
        assert_eq!(parse_publish("1-65535:1-65535").map(|ports| ports.len()), Ok(65_535));
    }

    #[test]
    fn wrong_forms() {
        let table = [
            ("", "no port specified: <empty>"),
            ("8080:", "no port specified: 8080:<empty>"),
            ("x", "invalid containerPort: x"),
            ("0", "invalid containerPort: 0"),
            ("80:x", "invalid containerPort: x"),
            ("x:80", "invalid hostPort: x"),
            ("65536:80", "invalid hostPort: 65536"),
            ("80:65536", "invalid containerPort: 65536"),
            ("80:90-80", "invalid containerPort: 90-80"),
            ("80/x", "invalid proto: x"),
            ("80/sctp", "protocol sctp is not supported: the userspace network carries tcp and udp"),
            ("localhost:80:80", "invalid IP address: localhost"),
            ("1-3:1-2", "invalid ranges specified for container and host Ports: 1-2 and 1-3"),
            ("port=80", "invalid publish opts format (should be name=value but got 'port=80')"),
        ];
        for (text, message) in table {
            assert_eq!(shown(text), Err(message.into()), "{text}");
        }
    }

    #[test]
    fn expose() {
        assert_eq!(parse_expose("80"), Ok(vec![(80, Protocol::Tcp)]));
        assert_eq!(parse_expose("80-81/udp"), Ok(vec![(80, Protocol::Udp), (81, Protocol::Udp)]));
        assert_eq!(parse_expose("8080:80"), Err("invalid port format for --expose: 8080:80".into()));
        assert_eq!(
            parse_expose("2-1"),
            Err("invalid range format for --expose: 2-1, error: invalid port range: 2-1".into())
        );
    }
}
