//! A container's log: Docker's json-file format, one object a line.
//!
//! `{"log":"text\n","stream":"stdout","time":"2024-01-02T03:04:05.000000006Z"}`. A line that is
//! longer than [`MAX_LINE_BYTES`], or not ended yet when its stream ends, is written without its
//! newline, and a reader joins the pieces. Bytes that are not UTF-8 are replaced, as in Docker.
//!
//! With a limit (`--log-opt max-size`) a full file becomes `log.1`, that one `log.2`, and so on. The server
//! writes, but its fence lets it open nothing: it says that the file is full, and the keeper, which renames,
//! hands it the next one. Until then it writes on to the old one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::journal::Journal;

/// Docker's own limit for a piece of a line.
pub const MAX_LINE_BYTES: usize = 16 << 10;

/// Which stream a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// stdout, or the terminal.
    Stdout,
    /// stderr.
    Stderr,
}

/// One line of the log.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// The text, with its newline when the line is complete.
    pub log: String,
    /// Its stream.
    pub stream: Stream,
    /// When it was read.
    pub time: Timestamp,
}

/// Where a container's output is kept.
#[derive(Debug)]
pub enum Target {
    /// Nowhere.
    Nowhere,
    /// In a file.
    File {
        /// Its path.
        path: PathBuf,
        /// From which size on it gets its next file.
        limit_bytes: Option<u64>,
    },
    /// In the machine's journal.
    Journal(Journal),
}

/// Writes a container's log.
#[derive(Debug)]
pub struct Writer {
    sink: Sink,
    partial: [Vec<u8>; 2],
    out: Vec<u8>,
    size_bytes: u64,
    limit_bytes: Option<u64>,
    full: Fullness,
}

#[derive(Debug)]
enum Sink {
    Nowhere,
    File(File),
    Journal(Journal),
}

/// Whether the next file has been asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fullness {
    Room,
    Full,
    Asked,
}

impl Writer {
    /// Appends to what there is.
    ///
    /// # Errors
    /// As open(2).
    pub fn open(target: Target) -> io::Result<Self> {
        let (sink, size_bytes, limit_bytes) = match target {
            Target::Nowhere => (Sink::Nowhere, 0, None),
            Target::File { path, limit_bytes } => {
                let file = open(&path)?;
                let size_bytes = file.metadata()?.len();
                (Sink::File(file), size_bytes, limit_bytes)
            }
            Target::Journal(journal) => (Sink::Journal(journal), 0, None),
        };
        let mut writer = Self {
            sink,
            partial: Default::default(),
            out: Vec::new(),
            size_bytes,
            limit_bytes,
            full: Fullness::Room,
        };
        writer.look_at_size();
        Ok(writer)
    }

    fn look_at_size(&mut self) {
        if self.full == Fullness::Room && self.limit_bytes.is_some_and(|limit| self.size_bytes >= limit) {
            self.full = Fullness::Full;
        }
    }

    /// Whether the file is full; says so once until [`Self::go_on_in`] has been called.
    pub fn wants_next_file(&mut self) -> bool {
        let wants = self.full == Fullness::Full;
        if wants {
            self.full = Fullness::Asked;
        }
        wants
    }

    /// Writes to this new file from now on.
    pub fn go_on_in(&mut self, file: File) {
        self.sink = Sink::File(file);
        self.size_bytes = 0;
        self.full = Fullness::Room;
    }

    /// Takes what was read from a stream.
    pub fn take(&mut self, stream: Stream, bytes: &[u8]) {
        if matches!(self.sink, Sink::Nowhere) {
            return;
        }
        let time = Timestamp::now();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let mut rest = piece;
            while !rest.is_empty() {
                let partial = &mut self.partial[stream as usize];
                let room = MAX_LINE_BYTES - partial.len();
                let (now, later) = rest.split_at(rest.len().min(room));
                partial.extend(now);
                rest = later;
                if partial.len() == MAX_LINE_BYTES || partial.last() == Some(&b'\n') {
                    self.put(stream, time);
                }
            }
        }
    }

    fn put(&mut self, stream: Stream, time: Timestamp) {
        let line = std::mem::take(&mut self.partial[stream as usize]);
        if let Sink::Journal(journal) = &self.sink {
            let (line, is_partial) = match line.strip_suffix(b"\n") {
                Some(whole) => (whole, false),
                None => (line.as_slice(), true),
            };
            // A journal that takes nothing costs lines of the log, not the container.
            let _ = journal.write(stream, line, is_partial);
            return;
        }
        let entry = Entry { log: String::from_utf8_lossy(&line).into_owned(), stream, time };
        if serde_json::to_writer(&mut self.out, &entry).is_ok() {
            self.out.push(b'\n');
        }
    }

    /// Writes out what is complete; at the end of the streams with `all`, the rest too.
    ///
    /// # Errors
    /// As write(2): a full disk loses the lines that did not fit, and the container goes on.
    pub fn flush(&mut self, all: bool) -> io::Result<()> {
        if all {
            for stream in [Stream::Stdout, Stream::Stderr] {
                if !self.partial[stream as usize].is_empty() {
                    self.put(stream, Timestamp::now());
                }
            }
        }
        let out = std::mem::take(&mut self.out);
        match &mut self.sink {
            Sink::File(file) if !out.is_empty() => {
                self.size_bytes += out.len() as u64;
                let written = file.write_all(&out);
                self.look_at_size();
                written
            }
            _ => Ok(()),
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// The name of an older part of the log at `path`: 1 is the newest of them.
fn part(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

/// Puts the log at `path` aside, forgets the oldest of its parts, and begins a new one.
///
/// # Errors
/// As open(2).
pub fn next_file(path: &Path, max_files: u32) -> io::Result<File> {
    if max_files < 2 {
        let _ = fs::remove_file(path); // its writer has it open and ends with it
    } else {
        for number in (1..max_files - 1).rev() {
            let _ = fs::rename(part(path, number), part(path, number + 1)); // not there yet
        }
        fs::rename(path, part(path, 1))?;
    }
    open(path)
}

/// The parts of the log at `path` that are there, oldest first and the one that is written last.
#[must_use]
pub fn files(path: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        (1..).map(|number| part(path, number)).take_while(|part| part.exists()).collect();
    found.reverse();
    found.push(path.to_owned());
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_split_and_long_ones_cut() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("log");
        let mut writer = Writer::open(Target::File { path: path.clone(), limit_bytes: None }).expect("open");
        writer.take(Stream::Stdout, b"one\ntw");
        writer.take(Stream::Stderr, b"err");
        writer.take(Stream::Stdout, b"o\n\n");
        writer.take(Stream::Stdout, &[b'x'; MAX_LINE_BYTES + 1]);
        writer.flush(true).expect("flush");
        let text = fs::read_to_string(path).expect("read");
        let entries: Vec<Entry> =
            text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        let seen: Vec<_> = entries.iter().map(|entry| (entry.stream, entry.log.as_str())).collect();
        let long = "x".repeat(MAX_LINE_BYTES);
        assert_eq!(
            seen,
            [
                (Stream::Stdout, "one\n"),
                (Stream::Stdout, "two\n"),
                (Stream::Stdout, "\n"),
                (Stream::Stdout, long.as_str()),
                (Stream::Stdout, "x"),
                (Stream::Stderr, "err"),
            ]
        );
    }

    #[test]
    fn a_full_file_is_put_aside_and_old_parts_forgotten() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("log");
        let mut writer =
            Writer::open(Target::File { path: path.clone(), limit_bytes: Some(200) }).expect("open");
        let mut asked = 0;
        for number in 0..8 {
            writer.take(Stream::Stdout, format!("{number} {}\n", "x".repeat(40)).as_bytes());
            writer.flush(false).expect("flush");
            if writer.wants_next_file() {
                assert!(!writer.wants_next_file());
                asked += 1;
                writer.go_on_in(next_file(&path, 3).expect("next"));
            }
        }
        assert_eq!(asked, 4);
        let parts = files(&path);
        let names: Vec<_> = parts.iter().filter_map(|part| part.file_name()?.to_str()).collect();
        assert_eq!(names, ["log.2", "log.1", "log"]);
        let text: String = parts.iter().map(|part| fs::read_to_string(part).expect("read")).collect();
        let numbers: Vec<_> = text
            .lines()
            .map(|line| serde_json::from_str::<Entry>(line).expect("JSON").log[..1].to_owned())
            .collect();
        assert_eq!(numbers, ["4", "5", "6", "7"]);
    }
}
