//! Fetch the logs of a container

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::{CliError, Context, Exit, Outcome};
use crate::plan::request::LogDriver;
use crate::store::containers::Containers;
use crate::supervisor::Saved;
use crate::supervisor::log::{self, Entry, Stream};

mod journal;

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

/// What is shown of a line, and how.
struct View {
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    timestamps: bool,
    /// With `--details`: what goes before each line.
    details: Option<String>,
}

/// Prints the log: stdout's lines on stdout, stderr's on stderr.
///
/// # Errors
/// No such container; a time that is none; a container that keeps no log.
pub fn run(ctx: &Context, args: &Args) -> Outcome {
    let containers = Containers::new(&ctx.root);
    let record = containers.find(&args.container)?;
    let saved: Saved = containers.plan(&record.id)?;
    if saved.request.log_driver == LogDriver::None {
        return Err(CliError::new("configured logging driver does not support reading"));
    }
    let time = |flag: &str, text: &Option<String>| match text {
        Some(text) => super::until(text).map(Some).ok_or_else(|| {
            CliError::new(format!("invalid value for {flag:?}: {text:?} is neither a time nor a duration"))
        }),
        None => Ok(None),
    };
    let details = saved.request.log.details.iter().map(|(key, value)| format!("{key}={value}"));
    let view = View {
        since: time("since", &args.since)?,
        until: time("until", &args.until)?,
        timestamps: args.timestamps,
        details: args.details.then(|| details.collect::<Vec<_>>().join(",")),
    };
    let tail = match args.tail.as_str() {
        "all" => None,
        text if text.starts_with('-') => None, // as Docker: a negative number means all
        // As Docker, too: what is no number of lines means all.
        text => text.parse::<usize>().ok(),
    };
    let mut reader: Box<dyn Entries> = match saved.request.log_driver {
        LogDriver::Journald => Box::new(journal::Reader::new(record.id.as_str(), args.follow)?),
        _ => Box::new(Reader::new(&containers.path(&record.id).join("log"))),
    };
    let mut kept: VecDeque<Entry> = VecDeque::new();
    let (mut ends, mut at_start) = (0, true);
    while let Some(entry) = reader.next()? {
        if !view.wants(&entry) {
            continue;
        }
        let Some(tail) = tail else {
            at_start = view.print(&entry, at_start)?;
            continue;
        };
        // Pieces of one long line count as one.
        ends += usize::from(entry.log.ends_with('\n'));
        kept.push_back(entry);
        while ends > tail {
            let Some(first) = kept.pop_front() else { break };
            ends -= usize::from(first.log.ends_with('\n'));
        }
    }
    if tail != Some(0) {
        for entry in kept {
            at_start = view.print(&entry, at_start)?;
        }
    }
    if !args.follow {
        return Ok(Exit::Success);
    }
    reader.go_on()?;
    loop {
        // Asked before reading, so that what is written before the end is still seen. The lock is held
        // through restarts too.
        let live = containers.is_locked(&record.id).unwrap_or(false);
        let over = view.until.is_some_and(|until| Timestamp::now() > until);
        while let Some(entry) = reader.next()? {
            if view.wants(&entry) {
                at_start = view.print(&entry, at_start)?;
            }
        }
        std::io::stdout().flush()?;
        if !live || over {
            return Ok(Exit::Success);
        }
        std::thread::sleep(FOLLOW_INTERVAL);
    }
}

/// Where lines come from.
trait Entries {
    /// The next entry that is whole; `None` when there is none for now.
    fn next(&mut self) -> Result<Option<Entry>, CliError>;

    /// After the first `None`: what comes later is wanted, too.
    fn go_on(&mut self) -> Result<(), CliError> {
        Ok(())
    }
}

impl View {
    fn wants(&self, entry: &Entry) -> bool {
        self.since.is_none_or(|since| entry.time >= since)
            && self.until.is_none_or(|until| entry.time <= until)
    }

    /// Whether the next piece begins a line.
    fn print(&self, entry: &Entry, at_start: bool) -> Result<bool, CliError> {
        let mut head = String::new();
        if at_start {
            if self.timestamps {
                let _ = write!(head, "{:.9} ", entry.time); // into a String
            }
            if let Some(details) = &self.details {
                let _ = write!(head, "{details} ");
            }
        }
        match entry.stream {
            Stream::Stdout => write!(std::io::stdout().lock(), "{head}{}", entry.log)?,
            Stream::Stderr => write!(std::io::stderr().lock(), "{head}{}", entry.log)?,
        }
        Ok(entry.log.ends_with('\n'))
    }
}

/// Reads a log that grows, and whose file is put aside now and then.
struct Reader {
    path: PathBuf,
    /// Parts that are still to be read, oldest first.
    parts: VecDeque<File>,
    current: Option<BufReader<File>>,
    line: String,
}

impl Reader {
    fn new(path: &Path) -> Self {
        let mut parts: VecDeque<File> = VecDeque::new();
        for part in log::files(path) {
            let Ok(file) = File::open(part) else { continue };
            // One that was put aside while we opened them comes twice.
            if !parts.iter().any(|known| inode(known) == inode(&file)) {
                parts.push_back(file);
            }
        }
        Self { path: path.to_owned(), parts, current: None, line: String::new() }
    }

    /// Where the file being read was put aside and nothing more came to it: what followed. Whether there is
    /// anything.
    fn find_later_parts(&mut self) -> Result<bool, CliError> {
        let Some(reader) = &mut self.current else { return Ok(false) };
        let own = inode(reader.get_ref());
        let is_other = |file: &File| inode(file) != own;
        if File::open(&self.path).is_ok_and(|file| !is_other(&file)) {
            return Ok(false);
        }
        let parts = log::files(&self.path);
        let newest_first = parts.iter().rev().filter_map(|part| File::open(part).ok());
        let mut later: VecDeque<File> = newest_first.take_while(is_other).collect();
        later.make_contiguous().reverse();
        // Looked at last: whoever put it aside had written all before.
        let read = reader.stream_position()?;
        let whole = reader.get_ref().metadata()?.len();
        if later.is_empty() || (whole > read && self.line.is_empty()) {
            return Ok(false);
        }
        self.parts = later;
        Ok(true)
    }
}

impl Entries for Reader {
    fn next(&mut self) -> Result<Option<Entry>, CliError> {
        loop {
            if self.current.is_none() {
                let next = self.parts.pop_front().or_else(|| File::open(&self.path).ok());
                self.current = next.map(BufReader::new);
            }
            let Some(reader) = &mut self.current else { return Ok(None) };
            self.line.clear();
            if reader.read_line(&mut self.line)? > 0 {
                if self.line.ends_with('\n') {
                    match serde_json::from_str(&self.line) {
                        Ok(entry) => return Ok(Some(entry)),
                        Err(_) => continue, // cut by a full disk
                    }
                }
                // Being written just now, or never to be finished: read again when there is more.
                let half = i64::try_from(self.line.len()).unwrap_or(0);
                reader.seek(SeekFrom::Current(-half))?;
            }
            if self.parts.is_empty() && !self.find_later_parts()? {
                return Ok(None);
            }
            self.current = None;
        }
    }
}

fn inode(file: &File) -> u64 {
    file.metadata().map_or(0, |meta| meta.ino())
}
