//! From a Dockerfile's text to logical lines: parser directives, comments, continuation and
//! here-documents (Dockerfile reference, "Format", "Parser directives", "Here-Documents").

use super::{ParseError, Place, Warning};

/// Bytes of a Dockerfile: BuildKit's limit for one that is fetched is the same order.
pub const MAX_BYTES: usize = 16 << 20;
/// Instructions of a file, those of ONBUILD triggers not among them.
const MAX_INSTRUCTIONS: usize = 20_000;
/// Here-documents of one instruction.
const MAX_DOCUMENTS: usize = 64;

/// What the directives say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directives {
    /// The escape character.
    pub escape: char,
    /// The frontend that was asked for, which this is.
    pub syntax: Option<String>,
    /// Checks to skip, and whether warnings are errors.
    pub check: Option<String>,
}

/// A here-document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Its word.
    pub name: String,
    /// Its text, tabs taken away where `<<-` asks for it.
    pub content: String,
    /// Whether variables are expanded: the word had no quotes.
    pub expand: bool,
    /// The word as it stands, `<<-"EOF"`.
    pub token: String,
}

/// An instruction's text, continued lines joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The instruction and what follows.
    pub text: String,
    /// Where it is.
    pub place: Place,
    /// Here-documents that it begins.
    pub documents: Vec<Document>,
    /// Comments right above it, without their signs.
    pub comments: Vec<String>,
}

/// Reads a file.
///
/// # Errors
/// A wrong directive, an unterminated here-document, a file beyond the limits.
pub(super) fn read(text: &str, warnings: &mut Vec<Warning>) -> Result<(Directives, Vec<Line>), ParseError> {
    if text.len() > MAX_BYTES {
        return Err(ParseError::new(Place::NONE, format!("the file has more than {MAX_BYTES} bytes")));
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let source: Vec<&str> = text.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line)).collect();
    let directives = directives(&source)?;
    let escape = directives.escape;
    let mut lines = Vec::new();
    let mut comments = Vec::new();
    let mut at = 0;
    while at < source.len() {
        let first = at;
        let line = source[at].trim_start_matches(BLANKS);
        at += 1;
        if let Some(comment) = line.strip_prefix('#') {
            comments.push(comment.trim().to_owned());
            continue;
        }
        if line.is_empty() {
            comments.clear();
            continue;
        }
        let (start, mut goes_on) = continued(line, escape);
        let mut text = start.to_owned();
        let mut last = first;
        let mut has_empty = false;
        while goes_on && at < source.len() {
            let line = source[at];
            at += 1;
            let trimmed = line.trim_start_matches(BLANKS);
            if trimmed.starts_with('#') {
                continue;
            }
            if trimmed.is_empty() {
                has_empty = true;
                continue;
            }
            last = at - 1;
            let (part, more) = continued(line, escape);
            text.push_str(part);
            goes_on = more;
        }
        if has_empty && last > first {
            warnings.push(Warning::new(
                "NoEmptyContinuation",
                "Empty continuation line",
                Place { first: first + 1, last: last + 1 },
            ));
        }
        let mut documents = Vec::new();
        for word in document_words(&text, escape) {
            let place = Place { first: first + 1, last: at.max(first + 1) };
            if documents.len() == MAX_DOCUMENTS {
                return Err(ParseError::new(place, format!("more than {MAX_DOCUMENTS} here-documents")));
            }
            let (document, after) =
                document(&source, at, word).ok_or_else(|| ParseError::new(place, "unterminated heredoc"))?;
            at = after;
            last = at - 1;
            documents.push(document);
        }
        if lines.len() == MAX_INSTRUCTIONS {
            let place = Place { first: first + 1, last: last + 1 };
            return Err(ParseError::new(place, format!("more than {MAX_INSTRUCTIONS} instructions")));
        }
        lines.push(Line {
            text: text.trim_end_matches(BLANKS).to_owned(),
            place: Place { first: first + 1, last: last + 1 },
            documents,
            comments: std::mem::take(&mut comments),
        });
    }
    Ok((directives, lines))
}

pub(super) const BLANKS: [char; 5] = [' ', '\t', '\u{b}', '\u{c}', '\r'];

/// Directives stand in front of everything, comments too.
fn directives(source: &[&str]) -> Result<Directives, ParseError> {
    let mut found = Directives { escape: '\\', syntax: None, check: None };
    let mut seen: Vec<String> = Vec::new();
    for (number, line) in source.iter().enumerate() {
        let place = Place { first: number + 1, last: number + 1 };
        let line = line.trim_start_matches(BLANKS);
        // A script's first line may stand above.
        if number == 0 && line.starts_with("#!") {
            continue;
        }
        let Some((name, value)) = line.strip_prefix('#').and_then(|rest| rest.split_once('=')) else { break };
        let (name, value) = (name.trim().to_ascii_lowercase(), value.trim());
        if name.is_empty() || value.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            break;
        }
        match name.as_str() {
            "escape" | "syntax" | "check" if seen.contains(&name) => {
                return Err(ParseError::new(place, format!("only one {name} parser directive can be used")));
            }
            "escape" => {
                found.escape = match value {
                    "\\" => '\\',
                    "`" => '`',
                    _ => {
                        return Err(ParseError::new(
                            place,
                            format!("invalid escape token '{value}' does not match ` or \\"),
                        ));
                    }
                }
            }
            "syntax" => found.syntax = Some(value.to_owned()),
            "check" => found.check = Some(value.to_owned()),
            // Unknown ones are comments, and end the directives.
            _ => break,
        }
        seen.push(name);
    }
    Ok(found)
}

/// A line without its continuation, and whether it had one: an escape at the end that is not escaped itself.
fn continued(line: &str, escape: char) -> (&str, bool) {
    let end = line.trim_end_matches([' ', '\t']);
    match end.strip_suffix(escape) {
        Some(rest) if !rest.ends_with(escape) => (rest, true),
        _ => (line, false),
    }
}

struct DocumentWord {
    name: String,
    chomp: bool,
    expand: bool,
    token: String,
}

/// The here-documents that an instruction begins: RUN, COPY and ADD, also behind ONBUILD.
fn document_words(text: &str, escape: char) -> Vec<DocumentWord> {
    let mut words = text.split(BLANKS).filter(|word| !word.is_empty());
    let mut name = words.next().unwrap_or_default().to_ascii_uppercase();
    if name == "ONBUILD" {
        name = words.next().unwrap_or_default().to_ascii_uppercase();
    }
    if !matches!(name.as_str(), "RUN" | "COPY" | "ADD") || !text.contains("<<") {
        return Vec::new();
    }
    raw_words(text, escape).iter().filter_map(|word| document_word(word)).collect()
}

/// `3<<-"EOF"`: a number, the sign, a dash, a word. Anything else with `<<` in it is the shell's.
fn document_word(word: &str) -> Option<DocumentWord> {
    let rest = word.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix("<<")?;
    let (rest, chomp) = rest.strip_prefix('-').map_or((rest, false), |rest| (rest, true));
    if rest.contains('<') {
        return None;
    }
    let mut name = String::new();
    let (mut quote, mut quoted) = (None, false);
    for c in rest.chars() {
        match (quote, c) {
            (None, '"' | '\'') => (quote, quoted) = (Some(c), true),
            (Some(open), c) if open == c => quote = None,
            (None, '\\') => quoted = true,
            (_, c) => name.push(c),
        }
    }
    (!name.is_empty() && quote.is_none()).then(|| DocumentWord {
        name,
        chomp,
        expand: !quoted,
        token: word.to_owned(),
    })
}

/// The words between blanks, with their quotes and escapes.
pub(super) fn raw_words(text: &str, escape: char) -> Vec<String> {
    split(text, &BLANKS, escape).0
}

/// Splits at `blanks` outside of quotes; quotes and escapes stay. With it: whether every quote is closed.
pub(in crate::plan) fn split(text: &str, blanks: &[char], escape: char) -> (Vec<String>, bool) {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (None, c) if blanks.contains(&c) => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), c) if open == c => quote = None,
            (None | Some('"'), c) if c == escape => {
                word.push(c);
                word.extend(chars.next());
                continue;
            }
            _ => {}
        }
        word.push(c);
    }
    if !word.is_empty() {
        words.push(word);
    }
    (words, quote.is_none())
}

/// Reads a here-document that begins at a line; gives the line after its end too.
fn document(source: &[&str], from: usize, word: DocumentWord) -> Option<(Document, usize)> {
    let mut content = String::new();
    for (number, line) in source.iter().enumerate().skip(from) {
        let line = if word.chomp { line.trim_start_matches('\t') } else { line };
        if line == word.name {
            let DocumentWord { name, expand, token, .. } = word;
            return Some((Document { name, content, expand, token }, number + 1));
        }
        content.push_str(line);
        content.push('\n');
    }
    None
}
