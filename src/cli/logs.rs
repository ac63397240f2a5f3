//! Fetch the logs of a container

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use super::{CliError, Context, Exit, Outcome};
use crate::store::containers::Containers;
use crate::supervisor::log::{Entry, Stream};

/// Fetch the logs of a container
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Show extra details provided to logs
    #[arg(long)]
    details: bool,
    /// Follow log output
    #[arg(short, long)]
    follow: bool,
    /// Show logs since timestamp (e.g. "2013-01-02T13:23:37Z") or relative (e.g. "42m" for 42 minutes)
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Number of lines to show from the end of the logs
    #[arg(short = 'n', long, value_name = "LINES", default_value = "all", allow_hyphen_values = true)]
    tail: String,
    /// Show timestamps
    #[arg(short, long)]
    timestamps: bool,
    /// Show logs before a timestamp (e.g. "2013-01-02T13:23:37Z") or relative (e.g. "42m" for 42 minutes)
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// CONTAINER
    container: String,
}

/// How often a followed log is looked at.
const FOLLOW_INTERVAL: std::time::Duration = std::time::Duration::from_millis(50);

/// Prints the log: stdout's lines on stdout, stderr's on stderr.
///
/// # Errors
/// No such container; a time that is none.
pub fn run(ctx: &Context, args: &Args) -> Outcome {
    let containers = Containers::new(&ctx.root);
    let record = containers.find(&args.container)?;
    let time = |flag: &str, text: &Option<String>| match text {
        Some(text) => super::until(text).map(Some).ok_or_else(|| {
            CliError::new(format!("invalid value for {flag:?}: {text:?} is neither a time nor a duration"))
        }),
        None => Ok(None),
    };
    let (since, until) = (time("since", &args.since)?, time("until", &args.until)?);
    let tail = match args.tail.as_str() {
        "all" => None,
        text if text.starts_with('-') => None, // as Docker: a negative number means all
        text => Some(text.parse::<usize>().map_err(|_| {
            CliError::new(format!(
                "invalid value for \"tail\": {text:?} is not a number of lines, nor \"all\""
            ))
        })?),
    };
    let path = containers.path(&record.id).join("log");
    let wanted = |entry: &Entry| {
        since.is_none_or(|since| entry.time >= since) && until.is_none_or(|until| entry.time <= until)
    };
    let Ok(file) = File::open(&path) else {
        return if args.follow {
            follow(&containers, &record.id, &path, None, args, &wanted)
        } else {
            Ok(Exit::Success)
        };
    };
    let mut reader = BufReader::new(file);
    let mut kept: VecDeque<Entry> = VecDeque::new();
    let mut line = String::new();
    while reader.read_line(&mut line)? > 0 && line.ends_with('\n') {
        if let Some(entry) = parse(&line).filter(|entry| wanted(entry)) {
            match tail {
                None => print(&entry, args)?,
                Some(0) => {}
                Some(tail) => {
                    // Pieces of one long line count as one.
                    kept.push_back(entry);
                    if kept.iter().filter(|entry| entry.log.ends_with('\n')).count() > tail {
                        while kept.pop_front().is_some_and(|entry| !entry.log.ends_with('\n')) {}
                    }
                }
            }
        }
        line.clear();
    }
    for entry in kept {
        print(&entry, args)?;
    }
    if args.follow {
        let half = i64::try_from(line.len()).unwrap_or(0);
        reader.seek(SeekFrom::Current(-half))?; // a line that is just being written
        return follow(&containers, &record.id, &path, Some(reader), args, &wanted);
    }
    Ok(Exit::Success)
}

fn parse(line: &str) -> Option<Entry> {
    serde_json::from_str(line).ok() // a line cut by a full disk is skipped
}

fn print(entry: &Entry, args: &Args) -> Result<(), CliError> {
    let stamp = if args.timestamps { format!("{:.9} ", entry.time) } else { String::new() };
    match entry.stream {
        Stream::Stdout => write!(std::io::stdout().lock(), "{stamp}{}", entry.log)?,
        Stream::Stderr => write!(std::io::stderr().lock(), "{stamp}{}", entry.log)?,
    }
    Ok(())
}

/// Prints what is appended until the container ends.
fn follow(
    containers: &Containers,
    id: &crate::id::ContainerId,
    path: &Path,
    mut reader: Option<BufReader<File>>,
    args: &Args,
    wanted: &dyn Fn(&Entry) -> bool,
) -> Outcome {
    let mut line = String::new();
    loop {
        // Asked before reading, so that what is written before the end is still seen.
        let live = containers.is_locked(id).unwrap_or(false);
        reader = reader.or_else(|| File::open(path).ok().map(BufReader::new));
        if let Some(reader) = &mut reader {
            while reader.read_line(&mut line)? > 0 && line.ends_with('\n') {
                if let Some(entry) = parse(&line).filter(|entry| wanted(entry)) {
                    print(&entry, args)?;
                }
                line.clear();
            }
        }
        std::io::stdout().flush()?;
        if !live {
            return Ok(Exit::Success);
        }
        std::thread::sleep(FOLLOW_INTERVAL);
    }
}
