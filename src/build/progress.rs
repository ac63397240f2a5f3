//! What a build shows while it goes on: BuildKit's lines.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::json;

use crate::sys;

/// Lines of a failed step that are shown once more at the end.
const TAIL_LINES: usize = 20;
/// Bytes of one step's output that are kept for that.
const TAIL_BYTES: usize = 16 << 10;
/// Bytes of one step's output that are shown: BuildKit's limit, after which a step goes on in silence.
const MAX_SHOWN_BYTES: usize = 2 << 20;
/// Lines of a running step that a terminal shows.
const TTY_LINES: usize = 6;

/// How it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Line by line.
    Plain,
    /// Drawn anew all the time.
    Terminal,
    /// A JSON object a line.
    RawJson,
    /// Not at all; a failed step's output is.
    Quiet,
}

/// Shows one build, on stderr.
#[derive(Debug)]
pub struct Progress {
    look: Look,
    begun: Instant,
    vertices: BTreeMap<usize, Vertex>,
    drawn_lines: usize,
    drawn: Option<Instant>,
    title: String,
}

#[derive(Debug)]
struct Vertex {
    title: String,
    begun: Instant,
    stamp: Timestamp,
    took: Option<Duration>,
    cached: bool,
    error: Option<String>,
    /// Output without its last newline yet.
    partial: Vec<u8>,
    tail: Vec<u8>,
    shown_bytes: usize,
    headed: bool,
    /// What a terminal shows below it while it goes on.
    note: Option<String>,
}

impl Progress {
    /// Begins.
    #[must_use]
    pub fn new(look: Look) -> Self {
        Self {
            look,
            begun: Instant::now(),
            vertices: BTreeMap::new(),
            drawn_lines: 0,
            drawn: None,
            title: String::new(),
        }
    }

    /// Whether it has to be drawn again after a while.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.look == Look::Terminal
    }

    /// A step begins. Gives its number.
    pub fn start(&mut self, title: &str) -> usize {
        let number = self.vertices.len() + 1;
        let vertex = Vertex {
            title: title.to_owned(),
            begun: Instant::now(),
            stamp: Timestamp::now(),
            took: None,
            cached: false,
            error: None,
            partial: Vec::new(),
            tail: Vec::new(),
            shown_bytes: 0,
            headed: false,
            note: None,
        };
        self.vertices.insert(number, vertex);
        match self.look {
            Look::Plain if number == 1 => eprintln!("#{number} {title}"),
            Look::Plain => eprintln!("\n#{number} {title}"),
            Look::RawJson => self.raw_vertex(number),
            Look::Terminal => self.draw(true),
            Look::Quiet => {}
        }
        if let Some(vertex) = self.vertices.get_mut(&number) {
            vertex.headed = true;
        }
        number
    }

    /// What a step did is known from before.
    pub fn cached(&mut self, number: usize) {
        let Some(vertex) = self.vertices.get_mut(&number) else { return };
        vertex.cached = true;
        vertex.took = Some(Duration::ZERO);
        match self.look {
            Look::Plain => eprintln!("#{number} CACHED"),
            Look::RawJson => self.raw_vertex(number),
            Look::Terminal => self.draw(false),
            Look::Quiet => {}
        }
    }

    /// A line about a step.
    pub fn status(&mut self, number: usize, text: &str) {
        match self.look {
            Look::Plain => eprintln!("#{number} {text}"),
            Look::RawJson => raw(
                &json!({ "statuses": [{ "id": text, "vertex": digest(number), "name": text, "timestamp": Timestamp::now().to_string() }] }),
            ),
            Look::Terminal => {
                if let Some(vertex) = self.vertices.get_mut(&number) {
                    vertex.note = Some(text.to_owned());
                }
                self.draw(false);
            }
            Look::Quiet => {}
        }
    }

    /// A step has printed.
    pub fn output(&mut self, number: usize, is_error: bool, bytes: &[u8]) {
        let look = self.look;
        let Some(vertex) = self.vertices.get_mut(&number) else { return };
        vertex.tail.extend_from_slice(bytes);
        if vertex.tail.len() > 2 * TAIL_BYTES {
            vertex.tail.drain(..vertex.tail.len() - TAIL_BYTES);
        }
        let before = vertex.shown_bytes;
        vertex.shown_bytes = vertex.shown_bytes.saturating_add(bytes.len());
        let elapsed = vertex.begun.elapsed().as_secs_f64();
        match look {
            Look::Plain => {
                if before > MAX_SHOWN_BYTES {
                    return;
                }
                vertex.partial.extend_from_slice(bytes);
                while let Some(end) = vertex.partial.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = vertex.partial.drain(..=end).collect();
                    line_out(number, elapsed, &line[..end]);
                }
                if vertex.shown_bytes > MAX_SHOWN_BYTES {
                    eprintln!("#{number} [output clipped, log limit {}MiB reached]", MAX_SHOWN_BYTES >> 20);
                }
            }
            Look::RawJson => {
                let stream = if is_error { 2 } else { 1 };
                let data = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, bytes);
                raw(
                    &json!({ "logs": [{ "vertex": digest(number), "stream": stream, "data": data, "timestamp": Timestamp::now().to_string() }] }),
                );
            }
            Look::Terminal => self.draw(false),
            Look::Quiet => {}
        }
    }

    /// A step is done.
    pub fn done(&mut self, number: usize) {
        let look = self.look;
        let Some(vertex) = self.vertices.get_mut(&number) else { return };
        let took = vertex.begun.elapsed();
        vertex.took = Some(took);
        match look {
            Look::Plain => {
                flush(number, vertex);
                eprintln!("#{number} DONE {:.1}s", took.as_secs_f64());
            }
            Look::RawJson => self.raw_vertex(number),
            Look::Terminal => self.draw(true),
            Look::Quiet => {}
        }
    }

    /// A step was given up, because another failed.
    pub fn cancelled(&mut self, number: usize) {
        let look = self.look;
        let Some(vertex) = self.vertices.get_mut(&number) else { return };
        vertex.took = Some(vertex.begun.elapsed());
        vertex.error = Some("context canceled".to_owned());
        match look {
            Look::Plain => {
                flush(number, vertex);
                eprintln!("#{number} CANCELED");
            }
            Look::RawJson => self.raw_vertex(number),
            Look::Terminal | Look::Quiet => {}
        }
    }

    /// A step failed: what it printed last is shown once more.
    pub fn failed(&mut self, number: usize, message: &str) {
        let look = self.look;
        let Some(vertex) = self.vertices.get_mut(&number) else { return };
        vertex.took = Some(vertex.begun.elapsed());
        vertex.error = Some(message.to_owned());
        if look == Look::Plain {
            flush(number, vertex);
            eprintln!("#{number} ERROR: {message}");
        }
        let title = vertex.title.clone();
        let tail = String::from_utf8_lossy(&vertex.tail).into_owned();
        match look {
            Look::RawJson => self.raw_vertex(number),
            Look::Terminal => self.draw(true),
            _ => {}
        }
        if look == Look::RawJson {
            return;
        }
        let lines: Vec<&str> = tail.lines().collect();
        let elapsed =
            self.vertices.get(&number).and_then(|vertex| vertex.took).unwrap_or_default().as_secs_f64();
        eprintln!("------\n > {title}:");
        for line in &lines[lines.len().saturating_sub(TAIL_LINES)..] {
            eprintln!("{elapsed:.3} {}", printable(line.as_bytes()));
        }
        eprintln!("------");
    }

    /// Whether a step has failed, and was shown so.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.vertices.values().any(|vertex| vertex.error.is_some())
    }

    /// Draws what a terminal shows, if it is time to.
    pub fn tick(&mut self) {
        if self.look == Look::Terminal {
            self.draw(false);
        }
    }

    /// The last picture.
    pub fn finish(&mut self) {
        if self.look == Look::Terminal {
            self.title = "FINISHED".to_owned();
            self.draw(true);
        }
    }

    fn raw_vertex(&self, number: usize) {
        let Some(vertex) = self.vertices.get(&number) else { return };
        let mut shown =
            json!({ "digest": digest(number), "name": vertex.title, "started": vertex.stamp.to_string() });
        if vertex.cached {
            shown["cached"] = json!(true);
        }
        if let Some(took) = vertex.took {
            let ended = jiff::SignedDuration::try_from(took)
                .ok()
                .and_then(|took| vertex.stamp.checked_add(took).ok());
            shown["completed"] = json!(ended.unwrap_or(vertex.stamp).to_string());
        }
        if let Some(error) = &vertex.error {
            shown["error"] = json!(error);
        }
        raw(&json!({ "vertexes": [shown] }));
    }

    fn draw(&mut self, now: bool) {
        const FRAME: Duration = Duration::from_millis(80);
        if !now && self.drawn.is_some_and(|drawn| drawn.elapsed() < FRAME) {
            return;
        }
        self.drawn = Some(Instant::now());
        let (rows, columns) = sys::terminal::size(std::io::stderr().as_fd()).unwrap_or((24, 80));
        let (rows, columns) = (usize::from(rows).max(4), usize::from(columns).max(20));
        let done = self.vertices.values().filter(|vertex| vertex.took.is_some()).count();
        let total = self.vertices.len();
        let mut lines = vec![format!(
            "[+] Building {:.1}s ({done}/{total}){}",
            self.begun.elapsed().as_secs_f64(),
            if self.title.is_empty() { String::new() } else { format!(" {}", self.title) }
        )];
        for vertex in self.vertices.values() {
            let took = vertex.took.unwrap_or_else(|| vertex.begun.elapsed()).as_secs_f64();
            let word = match (&vertex.error, vertex.cached) {
                (Some(error), _) if error == "context canceled" => "CANCELED ",
                (Some(_), _) => "ERROR ",
                (_, true) => "CACHED ",
                _ => "",
            };
            let time = format!("{took:.1}s");
            let mut text = format!(
                " => {word}{}",
                printable(vertex.title.lines().next().unwrap_or_default().as_bytes())
            );
            let room = columns.saturating_sub(time.len() + 2);
            if text.chars().count() > room {
                text = text.chars().take(room.saturating_sub(3)).collect::<String>() + "...";
            }
            let fill = columns.saturating_sub(text.chars().count() + time.len() + 1).max(1);
            let colour = match (&vertex.error, vertex.took) {
                (Some(_), _) => "\x1b[31m",
                (None, Some(_)) => "\x1b[34m",
                _ => "",
            };
            let reset = if colour.is_empty() { "" } else { "\x1b[0m" };
            lines.push(format!("{colour}{text}{}{time}{reset}", " ".repeat(fill)));
            if vertex.took.is_none() {
                if let Some(note) = &vertex.note {
                    lines.push(format!(" => => {note}").chars().take(columns).collect());
                }
                let tail = String::from_utf8_lossy(&vertex.tail);
                let all: Vec<&str> = tail.lines().collect();
                for line in &all[all.len().saturating_sub(TTY_LINES)..] {
                    let line: String = format!(" => => # {}", printable(line.as_bytes()));
                    lines.push(line.chars().take(columns).collect());
                }
            }
        }
        if lines.len() > rows - 1 {
            let keep = rows - 2;
            let cut = lines.len() - keep;
            lines.drain(1..=cut);
        }
        let mut out = String::new();
        if self.drawn_lines > 0 {
            out.push_str(&format!("\x1b[{}A", self.drawn_lines));
        }
        for line in &lines {
            out.push_str("\r\x1b[2K");
            out.push_str(line);
            out.push('\n');
        }
        out.push_str("\x1b[J");
        self.drawn_lines = lines.len();
        let _ = std::io::stderr().write_all(out.as_bytes()); // a terminal that is gone needs no picture
    }
}

fn flush(number: usize, vertex: &mut Vertex) {
    if !vertex.partial.is_empty() && vertex.shown_bytes <= MAX_SHOWN_BYTES {
        let line = std::mem::take(&mut vertex.partial);
        line_out(number, vertex.begun.elapsed().as_secs_f64(), &line);
    }
}

fn line_out(number: usize, elapsed: f64, line: &[u8]) {
    // What rewrites its line is shown as it ends.
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let line = line.rsplit(|byte| *byte == b'\r').next().unwrap_or(line);
    eprintln!("#{number} {elapsed:.3} {}", printable(line));
}

/// A line without what would move a terminal's cursor: colours stay.
fn printable(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\x1b' if chars.peek() == Some(&'[') => {
                let mut sequence = String::from("\x1b[");
                chars.next();
                for c in chars.by_ref() {
                    sequence.push(c);
                    if c.is_ascii_alphabetic() || sequence.len() > 32 {
                        break;
                    }
                }
                if sequence.ends_with('m') {
                    out.push_str(&sequence);
                }
            }
            '\t' => out.push_str("    "),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

fn digest(number: usize) -> String {
    use sha2::Digest as _;
    crate::id::Digest::from_bytes(&sha2::Sha256::digest(format!("vertex {number}")).into()).to_string()
}

fn raw(value: &serde_json::Value) {
    eprintln!("{value}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_cannot_move_the_cursor() {
        let table: [(&[u8], &str); 5] = [
            (b"plain", "plain"),
            (b"\x1b[31mred\x1b[0m", "\x1b[31mred\x1b[0m"),
            (b"\x1b[2Aup\x1b[2K", "up"),
            (b"a\x07b\x1b]0;title\x07", "ab]0;title"),
            (b"\xff\t", "\u{fffd}    "),
        ];
        for (line, expected) in table {
            assert_eq!(printable(line), expected);
        }
    }
}
