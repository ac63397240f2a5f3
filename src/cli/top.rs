//! Display the running processes of a container

use std::collections::BTreeMap;
use std::process::Command;

use super::{CliError, Context, Exit, Outcome, harmless, running};
use crate::sandbox::idmap::login_name;
use crate::store::containers::{Containers, State};
use crate::supervisor::processes;

/// Display the running processes of a container
#[derive(clap::Args, Debug)]
pub struct Args {
    /// CONTAINER
    container: String,
    /// Options of ps(1), which the machine must have for this
    #[arg(value_name = "ps OPTIONS", trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

/// The columns of `ps -ef`.
const HEADINGS: [&str; 8] = ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"];

/// Prints the machine's view of them: `ps -ef`, by ourselves, or what ps(1) says with the options given.
///
/// # Errors
/// No such container, not running, options that ps does not take or that leave out the PID.
pub fn run(ctx: &Context, args: &Args) -> Outcome {
    let containers = Containers::new(&ctx.root);
    let record = containers.find(&args.container)?;
    let state = running(&containers, &record)?;
    let pids = processes::of(state.keeper_pid, &[state.server_pid]);
    let rows = if args.options.is_empty() { own_rows(&pids) } else { rows_of_ps(&args.options, &pids)? };
    print_table(&rows);
    Ok(Exit::Success)
}

fn own_rows(pids: &[i32]) -> Vec<Vec<String>> {
    let mut rows = vec![HEADINGS.map(str::to_owned).to_vec()];
    let mut names = Names::default();
    rows.extend(pids.iter().filter_map(|pid| own_row(*pid, &mut names)));
    rows
}

/// Login names by user id, each looked for once.
#[derive(Default)]
struct Names(BTreeMap<u32, String>);

impl Names {
    fn of(&mut self, uid: u32) -> String {
        let look = || login_name(uid).unwrap_or_else(|| uid.to_string());
        self.0.entry(uid).or_insert_with(look).clone()
    }
}

/// One process as `ps -ef` shows it; `None` when it has just gone.
fn own_row(pid: i32, names: &mut Names) -> Option<Vec<String>> {
    let fields = processes::stat(pid)?;
    let number = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let uid =
        status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().next()).unwrap_or("?");
    let name = status.lines().find_map(|line| line.strip_prefix("Name:")).unwrap_or_default().trim();
    let user = uid.parse().map_or_else(|_| uid.to_owned(), |uid| names.of(uid));
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let command = String::from_utf8_lossy(&command).trim_end_matches('\0').replace('\0', " ");
    let (ticks, start_ticks) = (number(11) + number(12), number(19));
    let (age_s, started) = since_boot(start_ticks);
    let used_s = ticks / TICKS_PER_SECOND;
    let percent = (used_s * 100).checked_div(age_s).unwrap_or(0).min(99);
    Some(vec![
        user,
        pid.to_string(),
        number(1).to_string(),
        percent.to_string(),
        started,
        terminal(number(4)),
        format!("{:02}:{:02}:{:02}", used_s / 3600, used_s / 60 % 60, used_s % 60),
        if command.is_empty() { format!("[{name}]") } else { command },
    ])
}

/// USER_HZ, which is 100 on every architecture that hostel runs on.
pub(super) const TICKS_PER_SECOND: u64 = 100;

/// Age in seconds, and the hour of the start, or its day when that was not today.
fn since_boot(start_ticks: u64) -> (u64, String) {
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let up_s: f64 = uptime.split_whitespace().next().and_then(|text| text.parse().ok()).unwrap_or(0.0);
    let age_s = (up_s - start_ticks as f64 / TICKS_PER_SECOND as f64).max(0.0);
    let now = jiff::Timestamp::now();
    let started = now.checked_sub(jiff::SignedDuration::from_secs_f64(age_s)).unwrap_or(now);
    let today = now.as_second() / 86_400 == started.as_second() / 86_400;
    (age_s as u64, started.strftime(if today { "%H:%M" } else { "%b%d" }).to_string())
}

/// The controlling terminal by its device number (proc_pid_stat(5), tty_nr).
fn terminal(number: u64) -> String {
    let (major, minor) = ((number >> 8) & 0xfff, (number & 0xff) | ((number >> 12) & 0xfff00));
    match major {
        0 => "?".into(),
        136..=143 => format!("pts/{}", (major - 136) * 256 + minor),
        4 => format!("tty{minor}"),
        _ => format!("{major}/{minor}"),
    }
}

/// What ps(1) says, without the lines of other processes: Docker's way.
fn rows_of_ps(options: &[String], pids: &[i32]) -> Result<Vec<Vec<String>>, CliError> {
    let output = Command::new("ps").args(options).output().map_err(|error| {
        CliError::new(format!("cannot run ps: {error}")).with_hint("without options hostel needs no ps")
    })?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(CliError::new(format!("error running ps: {}: {complaint}", output.status)));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    let headings: Vec<String> =
        lines.next().unwrap_or_default().split_whitespace().map(str::to_owned).collect();
    let place = headings
        .iter()
        .position(|heading| heading == "PID")
        .ok_or_else(|| CliError::new("Couldn't find PID field in ps output"))?;
    let count = headings.len();
    let mut rows = vec![headings];
    for line in lines {
        let mut row: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        if !row.get(place).and_then(|pid| pid.parse().ok()).is_some_and(|pid| pids.contains(&pid)) {
            continue;
        }
        // Only the last column has spaces.
        if row.len() > count {
            let last = row.split_off(count - 1).join(" ");
            row.push(last);
        }
        rows.push(row);
    }
    Ok(rows)
}

/// Columns as wide as their widest text and at least 20 characters, as Docker's tabwriter makes them.
fn print_table(rows: &[Vec<String>]) {
    const NARROWEST: usize = 20;
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            let widest = rows.iter().filter_map(|row| row.get(column)).map(|text| text.chars().count()).max();
            (widest.unwrap_or(0) + 1).max(NARROWEST)
        })
        .collect();
    for row in rows {
        let mut line = String::new();
        for (text, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{text:<width$}"));
        }
        println!("{}", harmless::on_terminal(line.trim_end()));
    }
}

/// The pids of a running container's processes.
#[must_use]
pub(super) fn pids(state: &State) -> Vec<i32> {
    processes::of(state.keeper_pid, &[state.server_pid])
}
