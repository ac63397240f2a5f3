//! Display a live stream of container(s) resource usage statistics

use std::collections::BTreeMap;
use std::fs;
use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::client_config::ClientConfig;
use super::format::{Table, human_size, human_size_binary};
use super::{CliError, Context, Exit, Outcome, top};
use crate::store::containers::{Containers, Record, State, Status};
use crate::supervisor::cgroup::Group;
use crate::supervisor::processes;

/// Display a live stream of container(s) resource usage statistics
///
/// Read from the container's control group, or without one from /proc: then memory is what its processes have resident, shared pages by their share; reads and writes of
/// devices are those of the processes that are there now.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Show all containers (default shows just running)
    #[arg(short, long)]
    all: bool,
    /// Format output using a custom template: 'table', 'table TEMPLATE', 'json', or 'TEMPLATE'
    #[arg(long, default_value = "", hide_default_value = true)]
    format: String,
    /// Disable streaming stats and only pull the first result
    #[arg(long)]
    no_stream: bool,
    /// Do not truncate output
    #[arg(long)]
    no_trunc: bool,
    /// CONTAINER...
    containers: Vec<String>,
}

const HEADINGS: &[(&str, &str)] = &[
    ("Container", "CONTAINER"),
    ("ID", "CONTAINER ID"),
    ("Name", "NAME"),
    ("CPUPerc", "CPU %"),
    ("MemUsage", "MEM USAGE / LIMIT"),
    ("MemPerc", "MEM %"),
    ("NetIO", "NET I/O"),
    ("BlockIO", "BLOCK I/O"),
    ("PIDs", "PIDS"),
];
const DEFAULT: &str =
    "{{.ID}}\t{{.Name}}\t{{.CPUPerc}}\t{{.MemUsage}}\t{{.MemPerc}}\t{{.NetIO}}\t{{.BlockIO}}\t{{.PIDs}}";

/// Between two looks, whose difference is the CPU's use.
const INTERVAL: Duration = Duration::from_secs(1);
/// The same when there is only one result to wait for.
const SHORT_INTERVAL: Duration = Duration::from_millis(250);
/// Clears a terminal, as Docker does between two tables.
const CLEAR: &str = "\x1b[2J\x1b[H";

/// Prints a table a second until interrupted, or one.
///
/// # Errors
/// No such container; a template that is wrong.
pub fn run(ctx: &Context, args: &Args) -> Outcome {
    let containers = Containers::new(&ctx.root);
    let interval = if args.no_stream { SHORT_INTERVAL } else { INTERVAL };
    let clears = !args.no_stream && std::io::stdout().is_terminal();
    let mut before: BTreeMap<String, Look> = BTreeMap::new();
    let mut first = true;
    loop {
        let now: Vec<_> = chosen(&containers, args)?
            .into_iter()
            .map(|(record, state)| {
                let look = state.as_ref().map(Look::take);
                (record, look)
            })
            .collect();
        if !first {
            let rows: Vec<Value> = now
                .iter()
                .map(|(record, look)| {
                    row(record, look.as_ref(), before.get(record.id.as_str()), args.no_trunc)
                })
                .collect();
            let format = ClientConfig::format(&args.format, false, |config| &config.stats_format);
            let table = Table { headings: HEADINGS, default: DEFAULT }.render(format, &rows)?;
            write!(std::io::stdout().lock(), "{}{table}", if clears { CLEAR } else { "" })?;
            std::io::stdout().flush()?;
            if args.no_stream {
                return Ok(Exit::Success);
            }
        }
        first = false;
        before = now.into_iter().filter_map(|(record, look)| Some((record.id.to_string(), look?))).collect();
        std::thread::sleep(interval);
    }
}

/// Those that were named, or all that run, oldest first; with the state of those that run.
fn chosen(containers: &Containers, args: &Args) -> Result<Vec<(Record, Option<State>)>, CliError> {
    let state_of = |record: &Record| match containers.status(&record.id) {
        Ok(Status::Running(state)) => Some(state),
        _ => None,
    };
    if !args.containers.is_empty() {
        return args
            .containers
            .iter()
            .map(|reference| {
                let record = containers.find(reference)?;
                let state = state_of(&record);
                Ok((record, state))
            })
            .collect();
    }
    let mut found = Vec::new();
    for id in containers.ids()? {
        let Ok(record) = containers.record(&id) else { continue };
        let state = state_of(&record);
        if args.all || state.is_some() {
            found.push((record, state));
        }
    }
    found.sort_by_key(|(record, _)| std::cmp::Reverse(record.created));
    Ok(found)
}

/// What /proc says of a container at one moment.
struct Look {
    at: Instant,
    cpu_ticks: u64,
    memory_bytes: u64,
    received_bytes: u64,
    sent_bytes: u64,
    read_bytes: u64,
    written_bytes: u64,
    processes: usize,
    /// Of its control group.
    limit_bytes: Option<u64>,
}

impl Look {
    fn take(state: &State) -> Self {
        let mut look = Self {
            at: Instant::now(),
            cpu_ticks: 0,
            memory_bytes: 0,
            received_bytes: 0,
            sent_bytes: 0,
            read_bytes: 0,
            written_bytes: 0,
            processes: 0,
            limit_bytes: None,
        };
        for pid in top::pids(state) {
            let Some(fields) = processes::stat(pid) else { continue };
            let number =
                |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
            // With the time of children that have ended.
            look.cpu_ticks += (11..=14).map(number).sum::<u64>();
            look.processes += fields.get(17).and_then(|threads| threads.parse::<usize>().ok()).unwrap_or(1);
            look.memory_bytes += memory(pid).unwrap_or(0);
            let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
            look.read_bytes += field(&io, "read_bytes:").unwrap_or(0);
            look.written_bytes += field(&io, "write_bytes:").unwrap_or(0);
        }
        // The control group's numbers know of processes that have ended, too.
        if let Some(group) = state.cgroup.as_deref().map(Group::at) {
            if let Some(used_us) = group.number("cpu.stat", "usage_usec ") {
                look.cpu_ticks = used_us * top::TICKS_PER_SECOND / 1_000_000;
            }
            if let Some(bytes) = group.number("memory.current", "") {
                // Docker's: without what the kernel would give back first.
                look.memory_bytes =
                    bytes.saturating_sub(group.number("memory.stat", "inactive_file ").unwrap_or(0));
            }
            look.limit_bytes = group.number("memory.max", "");
        }
        let net = fs::read_to_string(format!("/proc/{}/net/dev", state.pid)).unwrap_or_default();
        for line in net.lines() {
            let Some((name, numbers)) = line.split_once(':') else { continue };
            let numbers: Vec<u64> =
                numbers.split_whitespace().filter_map(|number| number.parse().ok()).collect();
            // Eight numbers of what came, then eight of what went (proc_pid_net(5)); the first is bytes.
            if let (Some(received), Some(sent), false) =
                (numbers.first(), numbers.get(8), name.trim() == "lo")
            {
                look.received_bytes += received;
                look.sent_bytes += sent;
            }
        }
        look
    }
}

/// Resident bytes of a process, shared pages by their share where the kernel tells.
fn memory(pid: i32) -> Option<u64> {
    const KIB: u64 = 1024;
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    if let Some(share) = field(&rollup, "Pss:") {
        return Some(share * KIB);
    }
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    Some(field(&status, "VmRSS:")? * KIB)
}

fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}

fn row(record: &Record, now: Option<&Look>, before: Option<&Look>, no_trunc: bool) -> Value {
    let id = if no_trunc { record.id.as_str() } else { record.id.short() };
    let Some(now) = now else {
        return json!({
            "Container": id, "ID": id, "Name": record.name, "CPUPerc": "0.00%", "MemUsage": "0B / 0B",
            "MemPerc": "0.00%", "NetIO": "0B / 0B", "BlockIO": "0B / 0B", "PIDs": "0",
        });
    };
    let cpu = before.map_or(0.0, |before| {
        let ticks = now.cpu_ticks.saturating_sub(before.cpu_ticks) as f64;
        let seconds = now.at.duration_since(before.at).as_secs_f64().max(1e-3);
        ticks / top::TICKS_PER_SECOND as f64 / seconds * 100.0
    });
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let machine = field(&meminfo, "MemTotal:").unwrap_or(0) * 1024;
    let limit = now.limit_bytes.map_or(machine, |limit| limit.min(machine));
    let share = if limit == 0 { 0.0 } else { now.memory_bytes as f64 / limit as f64 * 100.0 };
    let pair = |a: u64, b: u64| format!("{} / {}", human_size(a), human_size(b));
    json!({
        "Container": id,
        "ID": id,
        "Name": record.name,
        "CPUPerc": format!("{cpu:.2}%"),
        "MemUsage": format!("{} / {}", human_size_binary(now.memory_bytes), human_size_binary(limit)),
        "MemPerc": format!("{share:.2}%"),
        "NetIO": pair(now.received_bytes, now.sent_bytes),
        "BlockIO": pair(now.read_bytes, now.written_bytes),
        "PIDs": now.processes.to_string(),
    })
}
