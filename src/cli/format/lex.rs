//! The words of a template, one at a time: what is wrong further on is told only when it is reached, after
//! what the grammar finds before it.

use serde_json::{Number, Value};

/// What a word is.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    /// What stands outside of actions.
    Text(String),
    LeftDelimiter,
    RightDelimiter,
    Field(String),
    Variable(String),
    Word(String),
    Keyword(&'static str),
    Boolean(bool),
    Number,
    Character,
    /// Between double quotes, or backquotes; with them.
    Quoted,
    Raw,
    Dot,
    Nil,
    Open,
    Close,
    Pipe,
    Declare,
    Assign,
    /// Another printable ASCII character.
    Other,
    /// What cannot be read, and why; the last one.
    Wrong(String),
    End,
}

/// A word where it stands.
#[derive(Clone, Debug)]
pub(super) struct Word {
    pub(super) token: Token,
    /// Offset in bytes.
    pub(super) at: usize,
    /// As it is written.
    pub(super) text: String,
    /// Whether a blank stands before it.
    pub(super) spaced: bool,
}

const KEYWORDS: [&str; 10] =
    ["if", "with", "range", "else", "end", "break", "continue", "define", "template", "block"];

/// Reads words.
#[derive(Clone, Debug)]
pub(super) struct Lexer<'s> {
    source: &'s str,
    at: usize,
    inside: bool,
    /// Parentheses that are open in this action.
    open: usize,
    ended: bool,
}

impl<'s> Lexer<'s> {
    pub(super) fn new(source: &'s str) -> Self {
        Self { source, at: 0, inside: false, open: 0, ended: false }
    }

    /// The next word; `End` for ever after the last.
    pub(super) fn next(&mut self) -> Word {
        if self.ended {
            return self.word(Token::End, self.source.len(), self.source.len(), false);
        }
        if self.inside { self.in_action() } else { self.outside() }
    }

    fn word(&mut self, token: Token, start: usize, end: usize, spaced: bool) -> Word {
        self.at = end;
        self.ended |= matches!(token, Token::Wrong(_));
        Word { token, at: start, text: self.source[start..end].to_owned(), spaced }
    }

    fn wrong(&mut self, at: usize, reason: impl Into<String>) -> Word {
        self.word(Token::Wrong(reason.into()), at, at, false)
    }

    fn outside(&mut self) -> Word {
        let start = self.at;
        let Some(open) = self.source[start..].find("{{").map(|found| start + found) else {
            self.ended = start == self.source.len();
            let token = match &self.source[start..] {
                "" => Token::End,
                text => Token::Text(text.to_owned()),
            };
            return self.word(token, start, self.source.len(), false);
        };
        let trims = trims_left(&self.source[open + 2..]);
        let text = &self.source[start..open];
        let text = if trims { text.trim_end_matches(is_space) } else { text };
        if !text.is_empty() {
            let text = text.to_owned();
            let end = start + text.len();
            let word = self.word(Token::Text(text), start, end, false);
            self.at = open;
            return word;
        }
        let inside = open + 2 + if trims { 2 } else { 0 };
        if self.source[inside..].starts_with("/*") {
            let Some(end) = self.source[inside..].find("*/").map(|found| inside + found + 2) else {
                return self.wrong(open, "unclosed comment");
            };
            let Some(length) = closing(&self.source[end..]) else {
                return self.wrong(open, "comment ends before closing delimiter");
            };
            self.leave(end, length);
            return self.outside();
        }
        self.inside = true;
        self.open = 0;
        self.word(Token::LeftDelimiter, open, inside, false)
    }

    /// Goes on after the closing delimiter at `at`.
    fn leave(&mut self, at: usize, length: usize) {
        self.inside = false;
        self.at = at + length;
        if length > 2 {
            let rest = &self.source[self.at..];
            self.at += rest.len() - rest.trim_start_matches(is_space).len();
        }
    }

    fn in_action(&mut self) -> Word {
        let begin = self.at;
        let rest = &self.source[begin..];
        let blanks = rest.len() - rest.trim_start_matches(is_space).len();
        // A blank before `-}}` belongs to it.
        let start = match closing(rest) {
            Some(_) => begin,
            None => begin + blanks,
        };
        let rest = &self.source[start..];
        let spaced = start > begin;
        // `  -}}`: of several blanks the last is its own.
        let trimmed = if rest.starts_with("-}}") && spaced { Some(3) } else { closing(rest) };
        if let Some(length) = trimmed {
            if self.open > 0 {
                return self.wrong(start, "unclosed left paren");
            }
            let word = self.word(Token::RightDelimiter, start, start + length, spaced);
            self.leave(start, length);
            return Word { text: "}}".to_owned(), ..word };
        }
        let Some(first) = rest.chars().next() else {
            return self.wrong(start, "unclosed action");
        };
        let (token, length) = match first {
            '=' => (Token::Assign, 1),
            ':' if rest.starts_with(":=") => (Token::Declare, 2),
            ':' => return self.wrong(start, "expected :="),
            '|' => (Token::Pipe, 1),
            '(' => {
                self.open += 1;
                (Token::Open, 1)
            }
            ')' => {
                let Some(open) = self.open.checked_sub(1) else {
                    return self.wrong(start, "unexpected right paren");
                };
                self.open = open;
                (Token::Close, 1)
            }
            '"' => match quoted_length(rest, '"') {
                Some(length) => (Token::Quoted, length),
                None => return self.wrong(start, "unterminated quoted string"),
            },
            '\'' => match quoted_length(rest, '\'') {
                Some(length) => (Token::Character, length),
                None => return self.wrong(start, "unterminated character constant"),
            },
            '`' => match rest[1..].find('`') {
                Some(end) => (Token::Raw, end + 2),
                None => return self.wrong(start, "unterminated raw quoted string"),
            },
            '.' if !rest[1..].starts_with(|c: char| c.is_ascii_digit()) => {
                let length = 1 + word_length(&rest[1..]);
                if let Some(wrong) = self.not_ended(start + length) {
                    return wrong;
                }
                match length {
                    1 => (Token::Dot, 1),
                    _ => (Token::Field(rest[1..length].to_owned()), length),
                }
            }
            '$' => {
                let length = 1 + word_length(&rest[1..]);
                if let Some(wrong) = self.not_ended(start + length) {
                    return wrong;
                }
                (Token::Variable(rest[..length].to_owned()), length)
            }
            '0'..='9' | '.' | '-' | '+' => match number_length(rest) {
                Ok(length) => (Token::Number, length),
                Err(length) => {
                    let reason = format!("bad number syntax: {}", super::printf::quoted(&rest[..length]));
                    return self.wrong(start, reason);
                }
            },
            _ if first.is_alphanumeric() || first == '_' => {
                let length = word_length(rest);
                if let Some(wrong) = self.not_ended(start + length) {
                    return wrong;
                }
                (word(&rest[..length]), length)
            }
            '!'..='~' => (Token::Other, 1),
            _ => {
                let reason = format!("unrecognized character in action: {}", code_point(first));
                return self.wrong(start, reason);
            }
        };
        self.word(token, start, start + length, spaced)
    }

    /// The error if a name ends where no name may end.
    fn not_ended(&mut self, at: usize) -> Option<Word> {
        let rest = &self.source[at..];
        let next = rest.chars().next()?;
        let ends =
            is_space(next) || matches!(next, '.' | ',' | '|' | ':' | ')' | '(') || rest.starts_with("}}");
        (!ends).then(|| self.wrong(at, format!("bad character {}", code_point(next))))
    }
}

fn word(text: &str) -> Token {
    match text {
        "true" | "false" => Token::Boolean(text == "true"),
        "nil" => Token::Nil,
        _ => match KEYWORDS.iter().find(|keyword| **keyword == text) {
            Some(keyword) => Token::Keyword(keyword),
            None => Token::Word(text.to_owned()),
        },
    }
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n')
}

/// Whether text after `{{` is the mark that trims what stands before.
fn trims_left(text: &str) -> bool {
    text.starts_with('-') && text[1..].starts_with(is_space)
}

/// The length of the closing delimiter at the beginning of a text, its trim mark with it.
fn closing(text: &str) -> Option<usize> {
    if text.starts_with("}}") {
        return Some(2);
    }
    (text.starts_with(is_space) && text[1..].starts_with("-}}")).then_some(4)
}

fn word_length(text: &str) -> usize {
    text.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text.len())
}

fn quoted_length(text: &str, quote: char) -> Option<usize> {
    let mut chars = text.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            '\n' => return None,
            '\\' if chars.next().is_none_or(|(_, c)| c == '\n') => return None,
            _ if c == quote => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// The length of a number, or that of what is none, the character that spoils it with it.
fn number_length(text: &str) -> Result<usize, usize> {
    let bytes = text.as_bytes();
    let skip = |mut at: usize, set: &[u8]| {
        while bytes.get(at).is_some_and(|byte| set.contains(byte)) {
            at += 1;
        }
        at
    };
    let mut at = usize::from(text.starts_with(['+', '-']));
    let mut digits: &[u8] = b"0123456789_";
    if bytes.get(at) == Some(&b'0') {
        at += 1;
        match bytes.get(at) {
            Some(b'x' | b'X') => (at, digits) = (at + 1, b"0123456789abcdefABCDEF_"),
            Some(b'o' | b'O') => (at, digits) = (at + 1, b"01234567_"),
            Some(b'b' | b'B') => (at, digits) = (at + 1, b"01_"),
            _ => {}
        }
    }
    at = skip(at, digits);
    if bytes.get(at) == Some(&b'.') {
        at = skip(at + 1, digits);
    }
    if digits.len() == 11 && matches!(bytes.get(at), Some(b'e' | b'E')) {
        at += 1;
        at += usize::from(matches!(bytes.get(at), Some(b'+' | b'-')));
        at = skip(at, b"0123456789_");
    }
    match text[at..].chars().next() {
        Some(c) if c.is_alphanumeric() || c == '_' => Err(at + c.len_utf8()),
        _ => Ok(at),
    }
}

/// A character as Go's `%#U` has it.
fn code_point(c: char) -> String {
    format!("U+{:04X} '{c}'", u32::from(c))
}

/// What a number's text means: base prefixes, a leading 0 for octal, `_` between digits, floating point.
pub(super) fn number(text: &str) -> Option<Value> {
    let (negative, digits) = match text.strip_prefix(['+', '-']) {
        Some(digits) => (text.starts_with('-'), digits),
        None => (false, text),
    };
    let plain = digits.replace('_', "");
    let lower = plain.to_ascii_lowercase();
    let (base, figures) = match lower.get(..2) {
        Some("0x") => (16, &plain[2..]),
        Some("0o") => (8, &plain[2..]),
        Some("0b") => (2, &plain[2..]),
        Some(two) if two.starts_with('0') && plain.bytes().all(|byte| byte.is_ascii_digit()) => {
            (8, &plain[1..])
        }
        _ => (10, plain.as_str()),
    };
    if let Ok(number) = u64::from_str_radix(figures, base) {
        if !negative {
            return Some(number.into());
        }
        return 0_i64.checked_sub_unsigned(number).map(Value::from);
    }
    if base != 10 {
        return None;
    }
    let number: f64 = plain.parse().ok()?;
    Number::from_f64(if negative { -number } else { number }).map(Value::Number)
}

/// What stands between the quotes of a text, by Go's rules: `None` where an escape is wrong. Bytes that are no
/// UTF-8 become the replacement character.
pub(super) fn unquoted(text: &str, quote: char) -> Option<String> {
    let mut bytes = Vec::new();
    let mut chars = text.get(1..text.len().checked_sub(1)?)?.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            continue;
        }
        let digits = |chars: &mut std::str::Chars<'_>, first: &str, count: usize, base: u32| {
            let more: String = chars.by_ref().take(count).collect();
            (more.len() == count).then(|| u32::from_str_radix(&(first.to_owned() + &more), base).ok())?
        };
        match chars.next()? {
            'a' => bytes.push(7),
            'b' => bytes.push(8),
            'f' => bytes.push(12),
            'n' => bytes.push(b'\n'),
            'r' => bytes.push(b'\r'),
            't' => bytes.push(b'\t'),
            'v' => bytes.push(11),
            '\\' => bytes.push(b'\\'),
            c if c == quote => bytes.push(u8::try_from(c).ok()?),
            'x' => bytes.push(u8::try_from(digits(&mut chars, "", 2, 16)?).ok()?),
            first @ '0'..='7' => {
                let first = first.to_string();
                bytes.push(u8::try_from(digits(&mut chars, &first, 2, 8)?).ok()?);
            }
            kind @ ('u' | 'U') => {
                let count = if kind == 'u' { 4 } else { 8 };
                let c = char::from_u32(digits(&mut chars, "", count, 16)?)?;
                bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            }
            _ => return None,
        }
    }
    Some(
        String::from_utf8(bytes)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()),
    )
}
