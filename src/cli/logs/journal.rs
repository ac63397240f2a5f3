//! A container's lines out of the machine's journal, by way of journalctl(1): the format of its files is systemd's own.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use super::{CliError, Entries, Entry, Stream};

/// journald writes lines down a moment after they were sent: how long the end of a container is waited for.
const AFTER_END: Duration = Duration::from_millis(300);

/// Reads what is there; then, when asked to, what comes.
pub(super) struct Reader {
    id: String,
    child: Child,
    lines: Lines,
    cursor: Option<String>,
}

/// What journalctl prints.
enum Lines {
    /// All there is, to its end.
    Whole(BufReader<std::process::ChildStdout>),
    /// As it comes: read by a thread, since a pipe cannot be asked whether it has a line.
    Coming { lines: Receiver<String>, waited: bool },
}

impl Reader {
    pub(super) fn new(id: &str, follow: bool) -> Result<Self, CliError> {
        let _ = follow; // both begin with what is there
        let mut child = journalctl(id, &[])?;
        let lines = Lines::Whole(output(&mut child)?);
        Ok(Self { id: id.to_owned(), child, lines, cursor: None })
    }

    fn next_line(&mut self) -> Result<Option<String>, CliError> {
        match &mut self.lines {
            Lines::Whole(reader) => {
                let mut line = String::new();
                Ok((reader.read_line(&mut line)? > 0).then_some(line))
            }
            Lines::Coming { lines, waited } => match lines.try_recv() {
                Ok(line) => Ok(Some(line)),
                Err(_) if *waited => Ok(None),
                // Once a turn of the caller's: its last turn is after the container's end.
                Err(_) => {
                    *waited = true;
                    Ok(lines.recv_timeout(AFTER_END).ok())
                }
            },
        }
    }
}

impl Entries for Reader {
    fn next(&mut self) -> Result<Option<Entry>, CliError> {
        loop {
            let Some(line) = self.next_line()? else {
                if let Lines::Coming { waited, .. } = &mut self.lines {
                    *waited = false;
                }
                return Ok(None);
            };
            if let Some((entry, cursor)) = parse(&line) {
                self.cursor = Some(cursor);
                return Ok(Some(entry));
            }
        }
    }

    fn go_on(&mut self) -> Result<(), CliError> {
        let after = self.cursor.as_ref().map(|cursor| format!("--after-cursor={cursor}"));
        let arguments: Vec<&str> = ["--follow", "--no-tail"].into_iter().chain(after.as_deref()).collect();
        let _ = self.child.wait(); // it has closed its output
        self.child = journalctl(&self.id, &arguments)?;
        let reader = output(&mut self.child)?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in reader.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        self.lines = Lines::Coming { lines, waited: false };
        Ok(())
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }
}

fn journalctl(id: &str, arguments: &[&str]) -> Result<Child, CliError> {
    let mut command = Command::new("journalctl");
    command.args(["--quiet", "--no-pager", "--output=json", "--all"]).args(arguments);
    command.arg(format!("CONTAINER_ID_FULL={id}")).stdin(Stdio::null()).stdout(Stdio::piped());
    command.spawn().map_err(|error| {
        CliError::new(format!("cannot read the journal: journalctl: {error}"))
            .with_hint("the log driver is journald: its lines are in the machine's journal and nowhere else")
    })
}

fn output(child: &mut Child) -> Result<BufReader<std::process::ChildStdout>, CliError> {
    child.stdout.take().map(BufReader::new).ok_or_else(|| CliError::new("cannot read from journalctl"))
}

/// An entry of the journal (journalctl(1), "json"; systemd.journal-fields(7)), and its cursor.
fn parse(line: &str) -> Option<(Entry, String)> {
    let object: Value = serde_json::from_str(line).ok()?;
    let text = |field: &str| object[field].as_str();
    let mut message = match &object["MESSAGE"] {
        Value::String(text) => text.clone(),
        // Bytes that are no text.
        Value::Array(bytes) => {
            let bytes: Vec<u8> = bytes.iter().filter_map(|byte| u8::try_from(byte.as_u64()?).ok()).collect();
            String::from_utf8_lossy(&bytes).into_owned()
        }
        _ => String::new(),
    };
    if text("CONTAINER_PARTIAL_MESSAGE") != Some("true") {
        message.push('\n');
    }
    let micros = text("_SOURCE_REALTIME_TIMESTAMP").or_else(|| text("__REALTIME_TIMESTAMP"))?.parse().ok()?;
    let stream = if text("PRIORITY") == Some("3") { Stream::Stderr } else { Stream::Stdout };
    let entry = Entry { log: message, stream, time: Timestamp::from_microsecond(micros).ok()? };
    Some((entry, text("__CURSOR").unwrap_or_default().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_the_journal() {
        let line =
            r#"{"__CURSOR":"s=1","__REALTIME_TIMESTAMP":"1700000000000001","PRIORITY":"3","MESSAGE":"oops"}"#;
        let (entry, cursor) = parse(line).expect("an entry");
        assert_eq!((entry.log.as_str(), entry.stream, cursor.as_str()), ("oops\n", Stream::Stderr, "s=1"));
        assert_eq!(entry.time.as_microsecond(), 1_700_000_000_000_001);
        let line = r#"{"__REALTIME_TIMESTAMP":"1","PRIORITY":"6","CONTAINER_PARTIAL_MESSAGE":"true","MESSAGE":[104,255]}"#;
        let (entry, _) = parse(line).expect("an entry");
        assert_eq!((entry.log.as_str(), entry.stream), ("h\u{fffd}", Stream::Stdout));
        assert!(parse("no JSON").is_none());
    }
}
