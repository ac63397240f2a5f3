//! The journal of events: what happened to containers, images, volumes and networks.
//!
//! ```text
//! events/journal     a line an event: one JSON object, with a newline before and after it
//! events/journal.1   the journal before it was full
//! events/lock        held while the one becomes the other
//! ```
//!
//! There is no daemon, so whoever does something appends its event with one write(2). The newline in front
//! keeps a line whole even when the writer before was killed in the middle of its own; a reader passes over
//! what is no event. An event that cannot be written is lost and nothing else: a full disk must not keep a
//! container from being stopped.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

/// The journal is put aside when it has grown beyond this; with the one before it at most twice as much is
/// kept, some 8,000 events.
const MAX_JOURNAL_BYTES: u64 = 1 << 20;
/// A longer line is no event of ours: labels are an event's largest part.
const MAX_EVENT_BYTES: usize = 256 << 10;

/// One event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When.
    pub time: Timestamp,
    /// `container`, `image`, `volume`, `network`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Docker's word for what happened: `create`, `start`, `die`, `health_status: healthy`.
    pub action: String,
    /// The id, or the name of what has none.
    pub id: String,
    /// What else there is to say.
    pub attributes: BTreeMap<String, String>,
}

/// Where the events of one store are.
#[derive(Clone, Debug)]
pub struct Events {
    dir: PathBuf,
}

impl Events {
    /// Those of the store at `root`. Touches nothing.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self { dir: root.join("events") }
    }

    fn journal(&self) -> PathBuf {
        self.dir.join("journal")
    }

    fn previous(&self) -> PathBuf {
        self.dir.join("journal.1")
    }

    /// Appends an event that happens now. What cannot be written is lost: see the module.
    pub fn emit(&self, kind: &str, action: &str, id: &str, attributes: BTreeMap<String, String>) {
        let event = Event {
            time: Timestamp::now(),
            kind: kind.to_owned(),
            action: action.to_owned(),
            id: id.to_owned(),
            attributes,
        };
        let _ = self.append(&event); // lost, and nothing else with it
    }

    /// As [`Self::emit`], with the few attributes spelled out.
    pub fn tell(&self, kind: &str, action: &str, id: &str, attributes: &[(&str, &str)]) {
        let attributes = attributes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        self.emit(kind, action, id, attributes.collect());
    }

    fn append(&self, event: &Event) -> io::Result<()> {
        let mut line = vec![b'\n'];
        serde_json::to_writer(&mut line, event)?;
        line.push(b'\n');
        if line.len() > MAX_EVENT_BYTES {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let open = || OpenOptions::new().append(true).create(true).mode(0o600).open(self.journal());
        let mut file = match open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::DirBuilder::new().mode(0o700).recursive(true).create(&self.dir)?;
                open()?
            }
            other => other?,
        };
        file.write_all(&line)?;
        if file.metadata()?.len() > MAX_JOURNAL_BYTES {
            self.put_aside()?;
        }
        Ok(())
    }

    /// The full journal becomes the previous one. Who comes second finds a small journal and does nothing;
    /// who appends meanwhile appends to the file that is put aside, where readers still look.
    fn put_aside(&self) -> io::Result<()> {
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.dir.join("lock"))?;
        let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
        if fs::metadata(self.journal())?.len() > MAX_JOURNAL_BYTES {
            fs::rename(self.journal(), self.previous())?;
        }
        Ok(())
    }

    /// A reader that begins with the oldest event there is.
    #[must_use]
    pub fn read(&self) -> Reader {
        let mut files = Vec::new();
        // The newer one first: one that is put aside meanwhile is the older one then.
        for path in [self.journal(), self.previous()] {
            if let Ok(file) = File::open(path) {
                let known = |other: &File| matches!((other.metadata(), file.metadata()), (Ok(a), Ok(b)) if a.ino() == b.ino());
                if !files.iter().any(known) {
                    files.push(file);
                }
            }
        }
        Reader { events: self.clone(), files, pending: Vec::new() }
    }
}

/// Reads events in the order in which they were written, and later ones as they come.
#[derive(Debug)]
pub struct Reader {
    events: Events,
    /// The file being read is the last; those after it, in time, are before it.
    files: Vec<File>,
    pending: Vec<u8>,
}

impl Reader {
    /// Everything that was written since the last call.
    ///
    /// # Errors
    /// As reading a file.
    pub fn take_new(&mut self) -> io::Result<Vec<Event>> {
        let mut found = Vec::new();
        loop {
            let Some(file) = self.files.last_mut() else {
                match File::open(self.events.journal()) {
                    Ok(file) => self.files.push(file),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
                    Err(error) => return Err(error),
                }
                continue;
            };
            file.read_to_end(&mut self.pending)?;
            self.take_lines(&mut found);
            if self.files.len() > 1 {
                self.files.pop();
                self.pending.clear();
                continue;
            }
            let Some(file) = self.files.last() else { return Ok(found) };
            // Put aside since? Then what came after our last look is read before the new one is begun.
            let current = fs::metadata(self.events.journal()).map(|meta| meta.ino());
            if current.is_ok_and(|inode| file.metadata().is_ok_and(|own| own.ino() == inode)) {
                return Ok(found);
            }
            if let Some(mut file) = self.files.pop() {
                file.read_to_end(&mut self.pending)?;
                self.take_lines(&mut found);
                self.pending.clear();
            }
            if !self.events.journal().exists() {
                return Ok(found);
            }
        }
    }

    fn take_lines(&mut self, found: &mut Vec<Event>) {
        let Some(end) = self.pending.iter().rposition(|byte| *byte == b'\n') else {
            if self.pending.len() > MAX_EVENT_BYTES {
                self.pending.clear();
            }
            return;
        };
        let lines = self.pending[..end].split(|byte| *byte == b'\n');
        // What is no event is what a killed writer left.
        found.extend(
            lines.filter(|line| !line.is_empty()).filter_map(|line| serde_json::from_slice(line).ok()),
        );
        self.pending.drain(..=end);
    }

    /// Goes on with what is written from now on.
    ///
    /// # Errors
    /// As seeking.
    pub fn skip_to_end(&mut self) -> io::Result<()> {
        let newest = self.files.drain(..).next();
        self.pending.clear();
        if let Some(mut file) = newest {
            file.seek(SeekFrom::End(0))?;
            self.files.push(file);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn actions(events: &[Event]) -> Vec<&str> {
        events.iter().map(|event| event.action.as_str()).collect()
    }

    #[test]
    fn events_are_read_in_order_and_torn_lines_passed_over() {
        let dir = tempfile::tempdir().expect("tempdir");
        let events = Events::new(dir.path());
        let mut early = events.read();
        assert_eq!(early.take_new().expect("read"), []);
        events.tell("container", "create", "a", &[("name", "n")]);
        let torn = |text: &[u8]| {
            let mut file = OpenOptions::new().append(true).open(events.journal()).expect("open");
            file.write_all(text).expect("write");
        };
        torn(b"\n{\"time\":\"2024-01-02T03:04:05Z\",\"type\":\"conta");
        events.tell("container", "start", "a", &[]);
        torn(b"not json\n\xff\xfe\n");
        events.tell("container", "die", "a", &[("exitCode", "3")]);
        let seen = early.take_new().expect("read");
        assert_eq!(actions(&seen), ["create", "start", "die"]);
        assert_eq!(seen[2].attributes["exitCode"], "3");
        assert_eq!(early.take_new().expect("read"), []);
        assert_eq!(events.read().take_new().expect("read"), seen);
        let mut late = events.read();
        late.skip_to_end().expect("seek");
        events.tell("container", "destroy", "a", &[]);
        assert_eq!(actions(&late.take_new().expect("read")), ["destroy"]);
    }

    #[test]
    fn a_full_journal_is_put_aside_and_a_follower_misses_nothing() {
        let dir = tempfile::tempdir().expect("tempdir");
        let events = Events::new(dir.path());
        let filler = "x".repeat(100_000);
        let mut follower = events.read();
        let mut seen = Vec::new();
        for number in 0..35 {
            events.tell("container", &number.to_string(), "a", &[("filler", &filler)]);
            if number % 10 == 9 {
                seen.extend(follower.take_new().expect("read"));
            }
        }
        seen.extend(follower.take_new().expect("read"));
        let numbers: Vec<String> = (0..35).map(|number| number.to_string()).collect();
        assert_eq!(actions(&seen), numbers);
        let bytes: u64 = fs::read_dir(dir.path().join("events"))
            .expect("dir")
            .map(|entry| entry.expect("entry").metadata().expect("meta").len())
            .sum();
        assert!(bytes < 2 * MAX_JOURNAL_BYTES + 3 * 100_100, "{bytes}");
        let kept = events.read().take_new().expect("read");
        assert!(kept.len() > 10 && actions(&kept).last() == Some(&"34"));
    }
}
