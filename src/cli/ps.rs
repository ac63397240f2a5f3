//! List containers

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::Path;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::client_config::ClientConfig;
use super::filter::{Filters, Patterns};
use super::format::{Table, TemplateError, ago, human_duration, human_size, raw};
use super::{CliError, Context, Exit, Outcome};
use crate::id::Digest;
use crate::image::{self, Source};
use crate::plan::Protocol;
use crate::plan::health::{Health, HealthStatus};
use crate::plan::port::{parse_range, split_protocol};
use crate::store::containers::{Containers, Record, State, Status};
use crate::store::{Catalog, Store};
use crate::supervisor::Saved;

/// List containers
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Show all containers (default shows just running)
    #[arg(short, long)]
    all: bool,
    /// Filter output based on conditions provided
    #[arg(short, long, value_name = "FILTER")]
    filter: Vec<String>,
    /// Format output using a custom template: 'table', 'table TEMPLATE', 'json', or 'TEMPLATE'
    #[arg(long, default_value = "", hide_default_value = true)]
    format: String,
    /// Show n last created containers (includes all states)
    #[arg(short = 'n', long, value_name = "INT", allow_negative_numbers = true)]
    last: Option<i64>,
    /// Show the latest created container (includes all states)
    #[arg(short, long)]
    latest: bool,
    /// Don't truncate output
    #[arg(long)]
    no_trunc: bool,
    /// Only display container IDs
    #[arg(short, long)]
    quiet: bool,
    /// Display total file sizes
    #[arg(short, long)]
    size: bool,
}

const HEADINGS: &[(&str, &str)] = &[
    ("ID", "CONTAINER ID"),
    ("Image", "IMAGE"),
    ("Command", "COMMAND"),
    ("CreatedAt", "CREATED AT"),
    ("RunningFor", "CREATED"),
    ("Ports", "PORTS"),
    ("State", "STATE"),
    ("Status", "STATUS"),
    ("Size", "SIZE"),
    ("Names", "NAMES"),
    ("Labels", "LABELS"),
    ("LocalVolumes", "LOCAL VOLUMES"),
    ("Mounts", "MOUNTS"),
    ("Networks", "NETWORKS"),
    ("Platform", "PLATFORM"),
];
const DEFAULT: &str =
    "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}";
const WITH_SIZE: &str =
    "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}\t{{.Size}}";
/// Characters of a command that the table shows.
const COMMAND_LEN: usize = 20;

/// Prints the table, newest first.
///
/// # Errors
/// A filter or template that is wrong; a store that cannot be read.
pub fn run(ctx: &Context, args: &Args) -> Outcome {
    let containers = Containers::new(&ctx.root);
    let filter = Filter::parse(&ctx.root, &args.filter, FILTERS)?;
    // As Docker: none, and fewer, is no limit.
    let last = args.last.and_then(|last| usize::try_from(last).ok()).filter(|last| *last > 0);
    let last = if args.latest { Some(1) } else { last };
    let all = args.all || last.is_some() || filter.shows_stopped();
    let mut found = Vec::new();
    for id in containers.ids()? {
        // One that goes away meanwhile is not there.
        let (Ok(record), Ok(status)) = (containers.record(&id), containers.status(&id)) else { continue };
        if (all || matches!(status, Status::Running(_) | Status::Restarting(..)))
            && filter.matches(&record, &status, &containers)
        {
            found.push((record, status));
        }
    }
    found.sort_by_key(|(record, _)| std::cmp::Reverse(record.created));
    found.truncate(last.unwrap_or(usize::MAX));
    if args.quiet {
        for (record, _) in &found {
            println!("{}", if args.no_trunc { record.id.as_str() } else { record.id.short() });
        }
        return Ok(Exit::Success);
    }
    let catalog = Store::open(&ctx.root)?.catalog()?;
    let format = ClientConfig::format(&args.format, args.quiet, |config| &config.ps_format);
    let rows: Vec<Value> = found
        .iter()
        .map(|(record, status)| {
            let mut row = row(record, status, &containers, args, format);
            row["Image"] = shown_image(&catalog, record, args.no_trunc).into();
            row["Platform"] = platform(&catalog, record);
            row
        })
        .collect();
    let default = if args.size { WITH_SIZE } else { DEFAULT };
    let raw = raw(format, if args.size { &RAW } else { &RAW[..RAW.len() - 1] });
    let format = raw.as_deref().unwrap_or(format);
    let table = Table { headings: HEADINGS, default }.try_render(format, &rows).map_err(|error| {
        error.told_as(match error {
            TemplateError::Parse { .. } => "failed to parse template",
            TemplateError::Execute { .. } => "failed to execute template",
        })
    })?;
    print!("{table}");
    Ok(Exit::Success)
}

/// `--format raw`; the last only where sizes are asked for.
const RAW: [(&str, &str); 10] = [
    ("container_id", "ID"),
    ("image", "Image"),
    ("command", "Command"),
    ("created_at", "CreatedAt"),
    ("state", "State"),
    ("status", "Status"),
    ("names", "Names"),
    ("labels", "Labels"),
    ("ports", "Ports"),
    ("size", "Size"),
];

fn row(record: &Record, status: &Status, containers: &Containers, args: &Args, format: &str) -> Value {
    let wants = |field: &str| format.contains(field) || format.contains("json");
    // It is ten times the record's size: only for who looks at it.
    let saved =
        (wants("Mounts") || wants("Networks")).then(|| containers.plan::<Saved>(&record.id).ok()).flatten();
    let mounts =
        saved.as_ref().map(|saved| super::inspect::mount_names(saved, args.no_trunc)).unwrap_or_default();
    let networks = saved.as_ref().map(super::inspect::network_name).unwrap_or_default();
    let labels: Vec<String> = record.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let wants_size = args.size || format.contains("Size");
    json!({
        "ID": if args.no_trunc { record.id.as_str() } else { record.id.short() },
        "Image": record.image,
        "Command": shown_command(&record.command, args.no_trunc),
        "CreatedAt": super::format::go_time(record.created),
        "RunningFor": ago(record.created, Timestamp::now()),
        "Ports": match status { Status::Running(state) => ports(state), _ => String::new() },
        "State": state_word(status),
        "Status": describe(status, health(containers, record), Timestamp::now()),
        "Size": if wants_size { human_size(size_on_disk(&record.local_dir)) } else { "0B".into() },
        "Names": record.name.as_str(),
        "Labels": labels.join(","),
        "LocalVolumes": record.volumes.len().to_string(),
        "Mounts": mounts.join(","),
        "Networks": networks,
    })
}

/// The platform of a container's image, while that is there.
fn platform(catalog: &Catalog, record: &Record) -> Value {
    let id = record.image_id.as_ref().and_then(|id| id.parse::<Digest>().ok());
    let entry = id.and_then(|id| catalog.images.get(&id));
    entry.map_or(Value::Null, |entry| format!("{}/{}", entry.os, entry.architecture).into())
}

/// What a container's image is called: as it was asked for, while that means this image; else by its id.
fn shown_image(catalog: &Catalog, record: &Record, no_trunc: bool) -> String {
    let Some(id) = record.image_id.as_ref().and_then(|id| id.parse::<Digest>().ok()) else {
        return record.image.clone();
    };
    match Source::parse(&record.image) {
        Ok(Source::Stored(name)) if image::find(catalog, &name).ok().as_ref() != Some(&id) => {
            if no_trunc {
                id.to_string()
            } else {
                id.short().to_owned()
            }
        }
        _ => record.image.clone(),
    }
}

/// A command in quotes, cut short unless it is wanted whole.
#[must_use]
pub fn shown_command(command: &[String], no_trunc: bool) -> String {
    let inner = command.join(" ");
    if !no_trunc && inner.chars().count() > COMMAND_LEN {
        let cut: String = inner.chars().take(COMMAND_LEN - 1).collect();
        return format!("\"{cut}…\"");
    }
    format!("{inner:?}")
}

/// Docker's word for the state: a container that failed to start is still `created`.
#[must_use]
pub fn state_word(status: &Status) -> &'static str {
    match status {
        Status::Exited(None, _) => "created",
        other => other.word(),
    }
}

/// What the checks of a container say, where it has some and runs.
#[must_use]
pub fn health(containers: &Containers, record: &Record) -> Option<Health> {
    containers.health(&record.id).ok().flatten()
}

/// The STATUS column.
#[must_use]
pub fn describe(status: &Status, health: Option<Health>, now: Timestamp) -> String {
    match status {
        Status::Created | Status::Starting | Status::Exited(None, _) => "Created".into(),
        Status::Running(state) => {
            let seconds = u64::try_from(now.as_second() - state.started.as_second()).unwrap_or(0);
            let note = match health.map(|health| health.status) {
                _ if state.paused => " (Paused)",
                None => "",
                Some(HealthStatus::Starting) => " (health: starting)",
                Some(HealthStatus::Healthy) => " (healthy)",
                Some(HealthStatus::Unhealthy) => " (unhealthy)",
            };
            format!("Up {}{note}", human_duration(seconds))
        }
        Status::Elsewhere(machine) => format!("On another machine ({machine})"),
        Status::Restarting(_, exit) => format!("Restarting ({}) {}", exit.code, ago(exit.finished, now)),
        Status::Exited(Some(_), exit) => format!("Exited ({}) {}", exit.code, ago(exit.finished, now)),
    }
}

/// The PORTS column, as Docker writes it: by container port, ports that follow each other as one range, first
/// what is exposed only and what has the same number on the host, then the other mappings.
#[must_use]
pub fn ports(state: &State) -> String {
    let mut ports = state.ports.clone();
    ports.sort_by(|a, b| (a.0, a.2.is_ipv6(), a.2, a.3, &a.1).cmp(&(b.0, b.2.is_ipv6(), b.2, b.3, &b.1)));
    let published: BTreeSet<(u16, &str)> =
        ports.iter().map(|(inner, protocol, ..)| (*inner, protocol.as_str())).collect();
    let exposed = state
        .exposed
        .iter()
        .flat_map(|(first, last, protocol)| (*first..=*last).map(move |port| (port, protocol.as_str())))
        .filter(|port| !published.contains(port))
        .map(|(port, protocol)| (port, None, protocol));
    let same = ports
        .iter()
        .filter(|(inner, _, _, outer)| inner == outer)
        .map(|(inner, protocol, address, _)| (*inner, Some(*address), protocol.as_str()));
    let mut single: Vec<_> = exposed.chain(same).collect();
    single.sort_by_key(|(port, address, protocol)| {
        (*port, address.is_some_and(|a| a.is_ipv6()), *address, *protocol)
    });

    // A range that cannot go on comes before those that can, which come in the order of their beginnings.
    let (mut ended, mut open) = (Vec::new(), Vec::<(u16, u16, Option<IpAddr>, &str)>::new());
    for (port, address, protocol) in single {
        match open.iter_mut().find(|range| (range.2, range.3) == (address, protocol)) {
            Some(range) if Some(port) == range.1.checked_add(1) => range.1 = port,
            Some(range) => ended.push(std::mem::replace(range, (port, port, address, protocol))),
            None => open.push((port, port, address, protocol)),
        }
    }
    let mut text: Vec<String> = ended
        .into_iter()
        .chain(open)
        .map(|(first, last, address, protocol)| {
            let range = if first == last { first.to_string() } else { format!("{first}-{last}") };
            match address {
                Some(address) => format!("{}:{range}->{range}/{protocol}", bracketed(address)),
                None => format!("{range}/{protocol}"),
            }
        })
        .collect();
    text.extend(ports.iter().filter(|(inner, _, _, outer)| inner != outer).map(
        |(inner, protocol, address, outer)| format!("{}:{outer}->{inner}/{protocol}", bracketed(*address)),
    ));
    text.join(", ")
}

fn bracketed(address: IpAddr) -> String {
    match address {
        IpAddr::V6(address) => format!("[{address}]"),
        IpAddr::V4(address) => address.to_string(),
    }
}

/// Bytes on disk of a tree, as far as it can be read.
#[must_use]
pub fn size_on_disk(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(meta) = std::fs::symlink_metadata(path) else { return 0 };
    if !meta.is_dir() {
        return meta.blocks() * 512;
    }
    std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| size_on_disk(&entry.path())).sum()
}

/// Filters of `ps`. Docker knows `isolation` of Windows alone, and takes it everywhere.
const FILTERS: &[&str] = &[
    "id",
    "name",
    "label",
    "exited",
    "status",
    "ancestor",
    "before",
    "since",
    "volume",
    "network",
    "publish",
    "expose",
    "health",
    "is-task",
    "isolation",
];

const STATES: [&str; 7] = ["created", "running", "paused", "restarting", "removing", "exited", "dead"];
const HEALTH: [&str; 4] = ["starting", "healthy", "unhealthy", "none"];

/// Ports of `publish` and `expose`.
type Ports = (RangeInclusive<u16>, Protocol);

/// `--filter key=value`, each key's values joined by or, keys by and.
#[derive(Debug, Default)]
pub struct Filter {
    given: Filters,
    ids: Patterns,
    names: Patterns,
    exited: Vec<i64>,
    /// Containers older than all of these, and younger than all of these.
    before: Vec<Timestamp>,
    since: Vec<Timestamp>,
    publish: Vec<Ports>,
    expose: Vec<Ports>,
    /// Of `ancestor`: images, and those that are made of them.
    ancestors: Option<BTreeSet<Digest>>,
    is_task: Option<bool>,
}

impl Filter {
    /// Reads the flags.
    ///
    /// # Errors
    /// A key that is not among `known`, no key at all, a value that the key cannot have.
    pub fn parse(root: &Path, texts: &[String], known: &[&str]) -> Result<Self, CliError> {
        let given = Filters::parse(texts, known)?;
        if let Some(wrong) = given.values("status").find(|value| !STATES.contains(value)) {
            return Err(CliError::new(format!("invalid filter 'status={wrong}'"))
                .with_hint(format!("states are {}", STATES.join(", "))));
        }
        if let Some(wrong) = given.values("health").find(|value| !HEALTH.contains(value)) {
            return Err(CliError::new(format!("unrecognised filter value for health: {wrong}"))
                .with_hint(format!("values are {}", HEALTH.join(", "))));
        }
        let number = |text: &str| {
            let wrong =
                || CliError::new(format!("invalid filter 'exited={text}'")).with_hint("exited is a number");
            text.parse::<i64>().map_err(|_| wrong())
        };
        let containers = Containers::new(root);
        let created = |reference: &str| -> Result<Timestamp, CliError> {
            Ok(containers.find(reference).map(|container| container.created)?)
        };
        let until = |text: &str| {
            super::until(text).ok_or_else(|| {
                CliError::new(format!("failed to parse value as time or duration: {text:?}"))
                    .with_hint("until is a time, or a duration such as 24h")
            })
        };
        let mut before: Vec<Timestamp> = given.values("before").map(created).collect::<Result<_, _>>()?;
        before.extend(given.values("until").map(until).collect::<Result<Vec<_>, _>>()?);
        Ok(Self {
            ids: given.patterns("id"),
            names: given.patterns("name"),
            exited: given.values("exited").map(number).collect::<Result<_, _>>()?,
            before,
            since: given.values("since").map(created).collect::<Result<_, _>>()?,
            publish: ports_of(&given, "publish")?,
            expose: ports_of(&given, "expose")?,
            ancestors: ancestors(root, &given)?,
            is_task: given.flag("is-task")?,
            given,
        })
    }

    fn shows_stopped(&self) -> bool {
        self.given.has("status")
    }

    /// Whether a container passes every key.
    #[must_use]
    pub fn matches(&self, record: &Record, status: &Status, containers: &Containers) -> bool {
        let name = record.name.as_str();
        let exited = || match status {
            Status::Exited(Some(_), exit) => self.exited.contains(&i64::from(exit.code)),
            _ => false,
        };
        let image = || record.image_id.as_ref().and_then(|id| id.parse::<Digest>().ok());
        let by_image = |images: &BTreeSet<Digest>| image().is_some_and(|id| images.contains(&id));
        self.given.labels(&record.labels)
            && self.ids.any(&[record.id.as_str()])
            && self.names.any(&[name, &format!("/{name}")])
            && self.given.any("status", |value| value == state_word(status))
            && (self.exited.is_empty() || exited())
            && self.before.iter().all(|time| record.created < *time)
            && self.since.iter().all(|time| record.created > *time)
            && self.ancestors.as_ref().is_none_or(by_image)
            && self.is_task != Some(true)
            && self.given.any("health", |value| {
                let health = health(containers, record).filter(|_| matches!(status, Status::Running(_)));
                value == health.map_or("none", |health| health.status.as_str())
            })
            && self.matches_plan(record, containers)
    }

    /// What the container was made with, which is read only where it is asked for.
    fn matches_plan(&self, record: &Record, containers: &Containers) -> bool {
        if !["volume", "network", "publish", "expose"].iter().any(|key| self.given.has(key)) {
            return true;
        }
        let Ok(saved) = containers.plan::<Saved>(&record.id) else { return false };
        let among = |asked: &[Ports], port: u16, protocol| {
            asked.iter().any(|(ports, kind)| ports.contains(&port) && *kind == protocol)
        };
        let network = &saved.plan.network;
        self.given.any("volume", |value| {
            let mounts = saved.plan.spec.mounts();
            record.volumes.iter().any(|name| name == value)
                || mounts.iter().flatten().any(|mount| mount.destination() == Path::new(value))
        }) && self.given.any("network", |value| super::inspect::network_name(&saved) == value)
            && (self.publish.is_empty()
                || network
                    .publish
                    .iter()
                    .any(|port| among(&self.publish, port.container_port, port.protocol)))
            && (self.expose.is_empty()
                || network.expose.iter().any(|(port, kind)| among(&self.expose, *port, *kind)))
    }
}

fn ports_of(given: &Filters, key: &str) -> Result<Vec<Ports>, CliError> {
    let read = |value: &str| {
        let ports = split_protocol(value).and_then(|(ports, kind)| Ok((parse_range(ports)?, kind)));
        ports.map_err(|error| {
            CliError::new(format!(
                "error while looking up for {key} {value}: {}",
                crate::sandbox::chain(&error)
            ))
        })
    };
    given.values(key).map(read).collect()
}

/// The images that `ancestor` names, and those whose lowest layers are all of one's. A name of no image is none.
fn ancestors(root: &Path, given: &Filters) -> Result<Option<BTreeSet<Digest>>, CliError> {
    if !given.has("ancestor") {
        return Ok(None);
    }
    let catalog = Store::open(root)?.catalog()?;
    let named: Vec<Digest> =
        given.values("ancestor").filter_map(|name| image::find(&catalog, name).ok()).collect();
    let made_of = |layers: &[Digest]| {
        named
            .iter()
            .filter_map(|id| catalog.images.get(id))
            .any(|ancestor| layers.len() > ancestor.layers.len() && layers.starts_with(&ancestor.layers))
    };
    let descendants = catalog.images.iter().filter(|(_, entry)| made_of(&entry.layers));
    Ok(Some(descendants.map(|(id, _)| id.clone()).chain(named.iter().cloned()).collect()))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "the state is a literal")]

    use super::*;

    /// What the column shows of published ports (`ip outer inner`) and exposed ranges.
    fn shown(published: &[(&str, u16, u16)], exposed: &[(u16, u16)]) -> String {
        let published: Vec<_> =
            published.iter().map(|(ip, outer, inner)| json!([inner, "tcp", ip, outer])).collect();
        let exposed: Vec<_> = exposed.iter().map(|(first, last)| json!([first, last, "tcp"])).collect();
        let state = json!({
            "started": "2024-01-01T00:00:00Z", "pid": 1, "pid_start_ticks": 1, "boot_id": "", "keeper_pid": 1,
            "socket": "", "ports": published, "exposed": exposed, "write_mode": "pure", "uid_map": [],
            "gid_map": [], "address": null,
        });
        ports(&serde_json::from_value(state).unwrap())
    }

    #[test]
    fn ports_are_shown_as_docker_shows_them() {
        let (v4, v6) = ("0.0.0.0", "::");
        assert_eq!(shown(&[], &[]), "");
        assert_eq!(shown(&[], &[(80, 80), (443, 445)]), "80/tcp, 443-445/tcp");
        assert_eq!(
            shown(&[(v4, 8080, 80), (v6, 8080, 80)], &[(80, 80)]),
            "0.0.0.0:8080->80/tcp, [::]:8080->80/tcp"
        );
        assert_eq!(
            shown(&[(v4, 80, 80), (v4, 81, 81), (v6, 80, 80), (v6, 81, 81)], &[(80, 82)]),
            "0.0.0.0:80-81->80-81/tcp, [::]:80-81->80-81/tcp, 82/tcp"
        );
        assert_eq!(
            shown(&[("127.0.0.1", 8001, 81), ("127.0.0.1", 8000, 80)], &[(70, 70)]),
            "70/tcp, 127.0.0.1:8000->80/tcp, 127.0.0.1:8001->81/tcp"
        );
        assert_eq!(
            shown(&[(v4, 80, 80), (v4, 82, 82), (v6, 80, 80)], &[]),
            "0.0.0.0:80->80/tcp, 0.0.0.0:82->82/tcp, [::]:80->80/tcp"
        );
    }
}
