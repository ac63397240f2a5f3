//! From logical lines to stages.

use super::lines::{BLANKS, Line, raw_words, read};
use super::{Command, Copy, Dockerfile, Instruction, Kind, ParseError, Place, Run, Stage, Warning};
use crate::plan::instruction::{self, Config};

const NAMES: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

type Result<T> = std::result::Result<T, ParseError>;

pub(super) fn file(text: &str) -> Result<Dockerfile> {
    let mut warnings = Vec::new();
    let (directives, lines) = read(text, &mut warnings)?;
    if lines.is_empty() {
        return Err(ParseError::new(
            Place::NONE,
            "the Dockerfile cannot be empty: file with no instructions",
        ));
    }
    let mut file = Dockerfile { directives, arguments: Vec::new(), stages: Vec::new(), warnings };
    for line in &lines {
        let (name, rest) = split(&line.text);
        if name == "FROM" {
            let stage = from(rest, line)?;
            file.stages.push(stage);
            continue;
        }
        let instruction = one(line, file.directives.escape)?;
        match (file.stages.last_mut(), &instruction.kind) {
            (Some(stage), _) => stage.instructions.push(instruction),
            (None, Kind::Arg(_)) => file.arguments.push(instruction),
            (None, _) => return Err(ParseError::new(line.place, "no build stage in current context")),
        }
    }
    if file.stages.is_empty() {
        return Err(ParseError::new(Place::NONE, "dockerfile contains no stages to build"));
    }
    file.warnings.extend(super::check::casing(&lines));
    Ok(file)
}

/// Reads one instruction without a file around it: an ONBUILD trigger. Here-documents come with it, as
/// Docker keeps them: behind the instruction, in the same text.
///
/// # Errors
/// It is none, or one that cannot be a trigger.
pub fn instruction(text: &str, place: Place) -> Result<Instruction> {
    let mut warnings: Vec<Warning> = Vec::new();
    let (directives, lines) = read(text, &mut warnings)?;
    let mut lines = lines.into_iter();
    let mut line = lines.next().ok_or_else(|| ParseError::new(place, "an empty ONBUILD trigger"))?;
    line.place = place;
    let name = split(&line.text).0;
    if matches!(name.as_str(), "FROM" | "MAINTAINER" | "ONBUILD") {
        return Err(ParseError::new(place, format!("{name} isn't allowed as an ONBUILD trigger")));
    }
    one(&line, directives.escape)
}

fn split(text: &str) -> (String, &str) {
    let (name, rest) = text.split_once(BLANKS).unwrap_or((text, ""));
    (name.to_ascii_uppercase(), rest.trim_matches(BLANKS))
}

fn one(line: &Line, escape: char) -> Result<Instruction> {
    let wrong = |message: String| ParseError::new(line.place, message);
    let (name, rest) = split(&line.text);
    if is_other_array(&name, rest, escape) {
        return Err(wrong(
            "when using JSON array syntax, arrays must be comprised of strings only".to_owned(),
        ));
    }
    let kind = match name.as_str() {
        "RUN" => Kind::Run(run(rest, line, escape)?),
        "COPY" | "ADD" => Kind::Copy(copy(&name, rest, line, escape)?),
        "ARG" => Kind::Arg(arg(rest, line, escape)?),
        "ONBUILD" => {
            let (trigger, _) = split(rest);
            if !trigger.is_empty() && !NAMES.contains(&trigger.as_str()) {
                return Err(wrong(unknown(&trigger)));
            }
            let mut rest = rest.to_owned();
            for document in &line.documents {
                rest.push_str(&format!("\n{}{}", document.content, document.name));
            }
            config("ONBUILD", &rest, line, escape)?
        }
        name if NAMES.contains(&name) => config(name, rest, line, escape)?,
        _ => return Err(wrong(unknown(&name))),
    };
    Ok(Instruction { text: line.text.clone(), place: line.place, comments: line.comments.clone(), kind })
}

fn unknown(name: &str) -> String {
    match did_you_mean(name, &NAMES) {
        Some(known) => format!("unknown instruction: {name} (did you mean {known}?)"),
        None => format!("unknown instruction: {name}"),
    }
}

/// The known word that a typed one differs least from, by two letters at most.
#[must_use]
pub fn did_you_mean<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    if word.len() > 32 {
        return None;
    }
    let distance = |other: &str| {
        let mut row: Vec<usize> = (0..=other.len()).collect();
        for (i, a) in word.bytes().enumerate() {
            let mut before = row[0];
            row[0] = i + 1;
            for (j, b) in other.bytes().enumerate() {
                let change = before + usize::from(!a.eq_ignore_ascii_case(&b));
                before = row[j + 1];
                row[j + 1] = change.min(row[j] + 1).min(before + 1);
            }
        }
        row[other.len()]
    };
    known
        .iter()
        .map(|other| (distance(other), *other))
        .filter(|(far, _)| *far > 0 && *far <= 2)
        .min()
        .map(|(_, name)| name)
}

/// An instruction that changes the configuration: tried on an empty one, so that what is wrong with
/// its form is told before anything is done. What has variables in it may only be wrong later.
fn config(name: &str, rest: &str, line: &Line, escape: char) -> Result<Kind> {
    let mut scratch = Config::new();
    let scope = instruction::Scope { variable: &|_| None, escape };
    if let Err(error) = instruction::apply_one(&mut scratch, name, rest, scope)
        && (!rest.contains('$') || error.is_of_form())
    {
        return Err(ParseError::new(line.place, error.to_string()));
    }
    Ok(Kind::Config { name: name.to_owned(), rest: rest.to_owned() })
}

/// Takes `--name` and `--name=value` off the front.
fn flags(rest: &str, escape: char) -> (Vec<(String, Option<String>)>, &str) {
    let mut found = Vec::new();
    let mut rest = rest;
    loop {
        let trimmed = rest.trim_start_matches(BLANKS);
        if !trimmed.starts_with("--") {
            return (found, trimmed);
        }
        let mut end = trimmed.len();
        let (mut quote, mut escaped) = (None, false);
        for (at, c) in trimmed.char_indices() {
            match (quote, c) {
                _ if escaped => escaped = false,
                (None | Some('"'), c) if c == escape => escaped = true,
                (None, '"' | '\'') => quote = Some(c),
                (Some(open), c) if open == c => quote = None,
                (None, c) if BLANKS.contains(&c) => {
                    end = at;
                    break;
                }
                _ => {}
            }
        }
        let (word, after) = trimmed.split_at(end);
        rest = after;
        if word == "--" {
            return (found, rest.trim_start_matches(BLANKS));
        }
        let word = unquoted(&word[2..], escape);
        found.push(match word.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (word, None),
        });
    }
}

/// A flag's word without quotes; variables stay.
fn unquoted(word: &str, escape: char) -> String {
    let (mut out, mut quote) = (String::new(), None);
    let mut chars = word.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (None | Some('"'), c) if c == escape => out.extend(chars.next()),
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), c) if open == c => quote = None,
            (_, c) => out.push(c),
        }
    }
    out
}

fn wanted(
    found: Vec<(String, Option<String>)>,
    known: &[&str],
    line: &Line,
) -> Result<Vec<(String, Option<String>)>> {
    const LISTS: [&str; 3] = ["mount", "exclude", "device"];
    let mut seen: Vec<&str> = Vec::new();
    for (name, _) in &found {
        if !known.contains(&name.as_str()) {
            let hint = did_you_mean(name, known).map(|known| format!(" (did you mean {known}?)"));
            let message = format!("unknown flag: --{name}{}", hint.unwrap_or_default());
            return Err(ParseError::new(line.place, message));
        }
        if seen.contains(&name.as_str()) && !LISTS.contains(&name.as_str()) {
            return Err(ParseError::new(line.place, format!("duplicate flag specified: {name}")));
        }
        seen.push(name);
    }
    Ok(found)
}

fn text_flag(name: &str, value: Option<String>, line: &Line) -> Result<String> {
    value.ok_or_else(|| ParseError::new(line.place, format!("missing a value on flag: --{name}")))
}

fn bool_flag(name: &str, value: Option<&str>, line: &Line) -> Result<bool> {
    match value.map(str::to_ascii_lowercase).as_deref() {
        None | Some("true") => Ok(true),
        Some("false") => Ok(false),
        Some(other) => {
            let message = format!("expecting boolean value for flag {name}, not: {other}");
            Err(ParseError::new(line.place, message))
        }
    }
}

fn from(rest: &str, line: &Line) -> Result<Stage> {
    let (found, rest) = flags(rest, '\\');
    let mut platform = None;
    for (name, value) in wanted(found, &["platform"], line)? {
        platform = Some(text_flag(&name, value, line)?);
    }
    let words: Vec<&str> = rest.split(BLANKS).filter(|word| !word.is_empty()).collect();
    let (base, name) = match words.as_slice() {
        [base] => (base, None),
        [base, word, name] if word.eq_ignore_ascii_case("as") => (base, Some(name.to_ascii_lowercase())),
        _ => return Err(ParseError::new(line.place, "FROM requires either one or three arguments")),
    };
    if let Some(name) = &name {
        let mut bytes = name.bytes();
        let is_name = bytes.next().is_some_and(|byte| byte.is_ascii_lowercase())
            && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        if !is_name {
            let message = format!(
                "invalid name for build stage: {name:?}, name can't start with a number or contain symbols"
            );
            return Err(ParseError::new(line.place, message));
        }
    }
    Ok(Stage {
        base: (*base).to_owned(),
        platform,
        name,
        place: line.place,
        text: line.text.clone(),
        comments: line.comments.clone(),
        instructions: Vec::new(),
    })
}

/// Whether an instruction that may have a JSON array has one of something else than strings: never what was meant.
fn is_other_array(name: &str, rest: &str, escape: char) -> bool {
    let rest = match name {
        "RUN" | "CMD" | "ENTRYPOINT" | "SHELL" | "VOLUME" | "ADD" | "COPY" => flags(rest, escape).1,
        "HEALTHCHECK" => match split(flags(rest, escape).1) {
            (kind, words) if kind == "CMD" => words,
            _ => return false,
        },
        "ONBUILD" => {
            let (trigger, words) = split(rest);
            return trigger != "ONBUILD" && is_other_array(&trigger, words, escape);
        }
        _ => return false,
    };
    let is_array = rest.starts_with('[') && serde_json::from_str::<Vec<serde_json::Value>>(rest).is_ok();
    is_array && exec_form(rest).is_none()
}

/// A JSON array of strings, if it is one.
fn exec_form(text: &str) -> Option<Vec<String>> {
    if text.starts_with('[') { serde_json::from_str(text).ok() } else { None }
}

fn run(rest: &str, line: &Line, escape: char) -> Result<Run> {
    let (found, rest) = flags(rest, escape);
    let mut run = Run {
        command: Command::Shell(rest.to_owned()),
        mounts: Vec::new(),
        network: None,
        security: None,
        devices: Vec::new(),
        documents: line.documents.clone(),
    };
    for (name, value) in wanted(found, &["mount", "network", "security", "device"], line)? {
        let value = text_flag(&name, value, line)?;
        match name.as_str() {
            "mount" => {
                if !value.contains('$') {
                    super::RunMount::parse(&value).map_err(|message| ParseError::new(line.place, message))?;
                }
                run.mounts.push(value);
            }
            "network" => match value.as_str() {
                "default" | "none" | "host" => run.network = Some(value),
                _ => return Err(ParseError::new(line.place, format!("unsupported network mode {value:?}"))),
            },
            "device" => run.devices.push(value),
            _ => match value.as_str() {
                "sandbox" | "insecure" => run.security = Some(value),
                _ => return Err(ParseError::new(line.place, format!("security {value:?} is not valid"))),
            },
        }
    }
    if rest.is_empty() {
        return Err(ParseError::new(line.place, "RUN requires at least one argument"));
    }
    if let Some(words) = exec_form(rest) {
        run.command = Command::Exec(words);
    }
    Ok(run)
}

fn copy(name: &str, rest: &str, line: &Line, escape: char) -> Result<Copy> {
    let is_add = name == "ADD";
    let known: &[&str] = if is_add {
        &["chown", "chmod", "link", "exclude", "checksum", "keep-git-dir", "unpack"]
    } else {
        &["chown", "chmod", "link", "parents", "exclude", "from"]
    };
    let (found, rest) = flags(rest, escape);
    let mut copy = Copy { is_add, ..Copy::default() };
    for (name, value) in wanted(found, known, line)? {
        match name.as_str() {
            "link" => copy.link = bool_flag(&name, value.as_deref(), line)?,
            "parents" => copy.parents = bool_flag(&name, value.as_deref(), line)?,
            "keep-git-dir" => copy.keep_git_dir = bool_flag(&name, value.as_deref(), line)?,
            "unpack" => copy.unpack = Some(bool_flag(&name, value.as_deref(), line)?),
            "exclude" => copy.exclude.push(text_flag(&name, value, line)?),
            _ => {
                let value = Some(text_flag(&name, value, line)?);
                match name.as_str() {
                    "from" => copy.from = value,
                    "chown" => copy.chown = value,
                    "chmod" => copy.chmod = value,
                    _ => copy.checksum = value,
                }
            }
        }
    }
    let mut words = match exec_form(rest) {
        Some(words) => words,
        None => rest.split(BLANKS).filter(|word| !word.is_empty()).map(str::to_owned).collect(),
    };
    let Some(destination) = words.pop() else {
        return Err(ParseError::new(
            line.place,
            format!(
                "{name} requires at least two arguments, but only one was provided. Destination could not be determined"
            ),
        ));
    };
    if words.is_empty() {
        return Err(ParseError::new(
            line.place,
            format!(
                "{name} requires at least two arguments, but only one was provided. Destination could not be determined"
            ),
        ));
    }
    copy.destination = destination;
    for word in words {
        match line.documents.iter().find(|document| document.token == word) {
            Some(document) => copy.documents.push(document.clone()),
            None => copy.sources.push(word),
        }
    }
    Ok(copy)
}

fn arg(rest: &str, line: &Line, escape: char) -> Result<Vec<(String, Option<String>)>> {
    let words = raw_words(rest, escape);
    if words.is_empty() {
        return Err(ParseError::new(line.place, "ARG requires at least one argument"));
    }
    words
        .into_iter()
        .map(|word| {
            let (name, value) = match word.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (word, None),
            };
            if name.is_empty() {
                return Err(ParseError::new(line.place, "ARG names can not be blank"));
            }
            Ok((unquoted(&name, escape), value))
        })
        .collect()
}
