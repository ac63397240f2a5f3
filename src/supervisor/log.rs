//! A container's log: Docker's json-file format, one object a line.
//!
//! `{"log":"text\n","stream":"stdout","time":"2024-01-02T03:04:05.000000006Z"}`. A line that is
//! longer than [`MAX_LINE_BYTES`], or not ended yet when its stream ends, is written without its
//! newline, and a reader joins the pieces. Bytes that are not UTF-8 are replaced, as in Docker.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

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

/// Writes a container's log.
#[derive(Debug)]
pub struct Writer {
    file: Option<File>,
    partial: [Vec<u8>; 2],
    out: Vec<u8>,
}

impl Writer {
    /// Appends to the log at `path`; with no path nothing is kept.
    ///
    /// # Errors
    /// As open(2).
    pub fn open(path: Option<&Path>) -> io::Result<Self> {
        let open = |path| OpenOptions::new().append(true).create(true).mode(0o600).open(path);
        Ok(Self { file: path.map(open).transpose()?, partial: Default::default(), out: Vec::new() })
    }

    /// Takes what was read from a stream.
    pub fn take(&mut self, stream: Stream, bytes: &[u8]) {
        if self.file.is_none() {
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
        match &mut self.file {
            Some(file) if !out.is_empty() => file.write_all(&out),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_split_and_long_ones_cut() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("log");
        let mut writer = Writer::open(Some(&path)).expect("open");
        writer.take(Stream::Stdout, b"one\ntw");
        writer.take(Stream::Stderr, b"err");
        writer.take(Stream::Stdout, b"o\n\n");
        writer.take(Stream::Stdout, &[b'x'; MAX_LINE_BYTES + 1]);
        writer.flush(true).expect("flush");
        let text = std::fs::read_to_string(path).expect("read");
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
}
