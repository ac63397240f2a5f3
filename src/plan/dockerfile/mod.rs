//! Dockerfiles: their text as stages of instructions, before anything is known of images or files.
//!
//! The grammar is the Dockerfile reference's; the words of errors are BuildKit's. Parsing takes bytes
//! that a stranger wrote and does no I/O. What must stay true: every instruction knows its lines, so
//! that an error can show them, and variables are expanded only when a stage is worked through, since
//! only then their values are known.

use std::fmt::Write as _;

use thiserror::Error;

pub mod check;
mod check_names;
pub mod expand;
pub mod ignore;
pub mod lines;
mod mounts;
pub mod outline;
mod parse;

pub use lines::{Directives, Document};
pub use mounts::{MountKind, RunMount, Sharing};
pub use parse::{did_you_mean, instruction};

/// Lines of a file, from 1, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The first.
    pub first: usize,
    /// The last.
    pub last: usize,
}

impl Place {
    /// Of what is wrong with a file as a whole.
    pub const NONE: Self = Self { first: 0, last: 0 };
}

/// What is wrong with a Dockerfile, and where.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{}{message}", at(*.place))]
pub struct ParseError {
    /// Its lines.
    pub place: Place,
    /// What.
    pub message: String,
}

fn at(place: Place) -> String {
    if place == Place::NONE {
        String::new()
    } else {
        format!("dockerfile parse error on line {}: ", place.first)
    }
}

impl ParseError {
    /// An error of some lines.
    pub fn new(place: Place, message: impl Into<String>) -> Self {
        Self { place, message: message.into() }
    }
}

/// What is allowed, but better not done: what `--check` tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// The rule's name, as BuildKit's documentation has it.
    pub rule: &'static str,
    /// What was found.
    pub message: String,
    /// Where.
    pub place: Place,
}

impl Warning {
    /// A warning of some lines.
    pub fn new(rule: &'static str, message: impl Into<String>, place: Place) -> Self {
        Self { rule, message: message.into(), place }
    }
}

/// A whole file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dockerfile {
    /// What its directives say.
    pub directives: Directives,
    /// ARGs in front of the first FROM.
    pub arguments: Vec<Instruction>,
    /// Its stages, in order.
    pub stages: Vec<Stage>,
    /// What `--check` tells of the text itself.
    pub warnings: Vec<Warning>,
}

/// FROM, and what follows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// The base as written: an image, another stage, `scratch`, maybe with variables.
    pub base: String,
    /// `--platform`, as written.
    pub platform: Option<String>,
    /// AS, in lower case.
    pub name: Option<String>,
    /// The FROM's lines.
    pub place: Place,
    /// The FROM as written.
    pub text: String,
    /// Comments right above it.
    pub comments: Vec<String>,
    /// What follows.
    pub instructions: Vec<Instruction>,
}

/// One instruction of a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// As written, continued lines joined.
    pub text: String,
    /// Its lines.
    pub place: Place,
    /// Comments right above it.
    pub comments: Vec<String>,
    /// What it does.
    pub kind: Kind,
}

/// What an instruction does. Texts are unexpanded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// RUN.
    Run(Run),
    /// COPY and ADD.
    Copy(Copy),
    /// ARG: names, each maybe with a default.
    Arg(Vec<(String, Option<String>)>),
    /// Those that change the configuration only: the name in capitals, and the rest of the line.
    Config {
        /// `ENV`, `CMD`...
        name: String,
        /// What follows.
        rest: String,
    },
}

/// A command: words, or a text for the shell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// `["a", "b"]`
    Exec(Vec<String>),
    /// `a b`
    Shell(String),
}

/// RUN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// What it runs.
    pub command: Command,
    /// `--mount`, as written.
    pub mounts: Vec<String>,
    /// `--network`.
    pub network: Option<String>,
    /// `--security`.
    pub security: Option<String>,
    /// `--device`.
    pub devices: Vec<String>,
    /// Here-documents.
    pub documents: Vec<Document>,
}

/// COPY or ADD.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Copy {
    /// Whether it is ADD.
    pub is_add: bool,
    /// `--from`: a stage, an image or a named context.
    pub from: Option<String>,
    /// `--chown`.
    pub chown: Option<String>,
    /// `--chmod`.
    pub chmod: Option<String>,
    /// `--link`.
    pub link: bool,
    /// `--parents`.
    pub parents: bool,
    /// `--exclude`.
    pub exclude: Vec<String>,
    /// `--checksum` of ADD.
    pub checksum: Option<String>,
    /// `--keep-git-dir` of ADD.
    pub keep_git_dir: bool,
    /// `--unpack` of ADD.
    pub unpack: Option<bool>,
    /// Sources that are no here-documents.
    pub sources: Vec<String>,
    /// Those that are.
    pub documents: Vec<Document>,
    /// Where to.
    pub destination: String,
}

/// Reads a Dockerfile.
///
/// # Errors
/// The first thing that is wrong, with its lines.
pub fn parse(text: &str) -> Result<Dockerfile, ParseError> {
    parse::file(text)
}

/// The lines that an error is about with some around them, as BuildKit prints them.
#[must_use]
pub fn picture(name: &str, text: &str, place: Place) -> String {
    let lines: Vec<&str> = text.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line)).collect();
    if place.first == 0 || place.first > lines.len() {
        return String::new();
    }
    let (mut start, mut end) = (place.first, place.last.clamp(place.first, lines.len()));
    let wanted = if start == end { 4 } else { 2 };
    let mut around = 0;
    while around < wanted {
        if start > 1 {
            start -= 1;
            around += 1;
        }
        if end < lines.len() {
            end += 1;
            around += 1;
        }
        around += 1;
    }
    let mut out = format!("{name}:{}\n--------------------\n", place.first);
    for number in start..=end {
        let mark = if (place.first..=place.last).contains(&number) { ">>>" } else { "   " };
        let _ = writeln!(out, " {number:>3} | {mark} {}", lines[number - 1]);
    }
    out.push_str("--------------------\n");
    out
}

#[cfg(test)]
mod tests;
