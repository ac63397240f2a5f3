//! Words of a Dockerfile: quotes, escapes and variables (Dockerfile reference, "Environment
//! replacement").
//!
//! `$NAME`, `${NAME}`, and the modifiers `-`, `+` and `?` (with a colon: an empty value counts as
//! none), `#` and `##`, `%` and `%%`, `/` and `//`. What must stay true: a text ends, whatever it
//! holds, in time bounded by its length, its values' lengths and `MAX_DEPTH`.

use thiserror::Error;

/// `${A:-${B:-...}}`: nobody nests this deep, and each level is a frame of the stack.
const MAX_DEPTH: usize = 64;
/// Bytes of one expanded word. The kernel takes 128 KiB of an argument (execve(2), MAX_ARG_STRLEN);
/// the rest is room for what is not handed to it.
const MAX_BYTES: usize = 4 << 20;

/// What is wrong with a word. The wordings are BuildKit's where it has one.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ExpandError {
    /// A quote that is not closed.
    #[error("unexpected end of statement while looking for matching {quote}-quote")]
    Quote {
        /// `single` or `double`.
        quote: &'static str,
    },
    /// `${` without its end, or without a name.
    #[error("syntax error: missing '}}' or name in ${{...}}")]
    Brace,
    /// Something else behind a variable's name.
    #[error("unsupported modifier ({0}) in substitution")]
    Modifier(String),
    /// `${NAME:?word}` of a variable that is not set.
    #[error("{name}: {message}")]
    Required {
        /// The variable.
        name: String,
        /// The word, or the shell's words for none.
        message: String,
    },
    /// Nested or expanded beyond the limits.
    #[error("the word is nested too deeply, or becomes too long")]
    Limit,
}

type Result<T> = std::result::Result<T, ExpandError>;

/// Where values come from, and what escapes.
#[derive(Clone, Copy)]
pub struct Scope<'a> {
    /// A variable's value.
    pub variable: &'a dyn Fn(&str) -> Option<String>,
    /// `\`, or what the `escape` directive says.
    pub escape: char,
}

impl std::fmt::Debug for Scope<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scope").field("escape", &self.escape).finish_non_exhaustive()
    }
}

/// Expands a text to one word, quotes and escapes taken away.
///
/// # Errors
/// [`ExpandError`].
pub fn word(text: &str, scope: Scope<'_>) -> Result<String> {
    Ok(expand(text, scope)?.0)
}

/// Expands a text and splits it at blanks that are neither quoted nor escaped, those of values too.
///
/// # Errors
/// [`ExpandError`].
pub fn words(text: &str, scope: Scope<'_>) -> Result<Vec<String>> {
    Ok(expand(text, scope)?.1)
}

/// Expands the variables of a here-document: quotes mean nothing there.
///
/// # Errors
/// [`ExpandError`].
pub fn document(text: &str, scope: Scope<'_>) -> Result<String> {
    let mut reader = Reader::new(text, scope);
    let mut out = Words::default();
    while let Some(c) = reader.next() {
        match c {
            '$' => out.value(&reader.dollar(0)?, true),
            c if c == scope.escape => match reader.peek() {
                Some(next) if next == '$' || next == scope.escape => {
                    reader.next();
                    out.push(next);
                }
                _ => out.push(c),
            },
            c => out.push(c),
        }
        out.check()?;
    }
    Ok(out.whole)
}

fn expand(text: &str, scope: Scope<'_>) -> Result<(String, Vec<String>)> {
    let mut reader = Reader::new(text, scope);
    let out = reader.until(None, 0)?;
    Ok(out.finish())
}

/// The text as one word and as several at once.
#[derive(Debug, Default)]
struct Words {
    whole: String,
    list: Vec<String>,
    current: String,
    /// A word has begun, maybe an empty one in quotes.
    begun: bool,
}

impl Words {
    fn push(&mut self, c: char) {
        self.whole.push(c);
        self.current.push(c);
        self.begun = true;
    }

    fn blank(&mut self, c: char) {
        self.whole.push(c);
        self.end();
    }

    fn end(&mut self) {
        if self.begun {
            self.list.push(std::mem::take(&mut self.current));
            self.begun = false;
        }
    }

    fn value(&mut self, value: &str, quoted: bool) {
        for c in value.chars() {
            if !quoted && matches!(c, ' ' | '\t' | '\n') { self.blank(c) } else { self.push(c) }
        }
    }

    fn check(&self) -> Result<()> {
        if self.whole.len() > MAX_BYTES { Err(ExpandError::Limit) } else { Ok(()) }
    }

    fn finish(mut self) -> (String, Vec<String>) {
        self.end();
        (self.whole, self.list)
    }
}

struct Reader<'a> {
    chars: std::iter::Peekable<std::str::Chars<'a>>,
    scope: Scope<'a>,
}

impl<'a> Reader<'a> {
    fn new(text: &'a str, scope: Scope<'a>) -> Self {
        Self { chars: text.chars().peekable(), scope }
    }

    fn next(&mut self) -> Option<char> {
        self.chars.next()
    }

    fn peek(&mut self) -> Option<char> {
        self.chars.peek().copied()
    }

    /// Reads to the end, or to an unquoted `stop`, which is taken.
    fn until(&mut self, stop: Option<&[char]>, depth: usize) -> Result<Words> {
        if depth > MAX_DEPTH {
            return Err(ExpandError::Limit);
        }
        let mut out = Words::default();
        loop {
            out.check()?;
            let Some(c) = self.peek() else {
                return if stop.is_some() { Err(ExpandError::Brace) } else { Ok(out) };
            };
            if stop.is_some_and(|stop| stop.contains(&c)) {
                return Ok(out);
            }
            self.next();
            match c {
                '\'' => self.single(&mut out)?,
                '"' => self.double(&mut out, depth)?,
                '$' => {
                    let value = self.dollar(depth)?;
                    out.value(&value, false);
                }
                ' ' | '\t' | '\n' => out.blank(c),
                // At the end of a text it is dropped.
                c if c == self.scope.escape => {
                    if let Some(next) = self.next() {
                        out.push(next);
                    }
                }
                c => out.push(c),
            }
        }
    }

    fn single(&mut self, out: &mut Words) -> Result<()> {
        out.begun = true;
        loop {
            match self.next() {
                Some('\'') => return Ok(()),
                Some(c) => out.push(c),
                None => return Err(ExpandError::Quote { quote: "single" }),
            }
        }
    }

    fn double(&mut self, out: &mut Words, depth: usize) -> Result<()> {
        out.begun = true;
        loop {
            match self.next() {
                Some('"') => return Ok(()),
                Some('$') => {
                    let value = self.dollar(depth)?;
                    out.value(&value, true);
                    out.check()?;
                }
                Some(c) if c == self.scope.escape => match self.next() {
                    // In double quotes only these are escaped.
                    Some(next) if next == '"' || next == '$' || next == self.scope.escape => out.push(next),
                    Some(next) => {
                        out.push(c);
                        out.push(next);
                    }
                    None => return Err(ExpandError::Quote { quote: "double" }),
                },
                Some(c) => out.push(c),
                None => return Err(ExpandError::Quote { quote: "double" }),
            }
        }
    }

    fn name(&mut self) -> String {
        let mut name = String::new();
        // As in a shell, a parameter of digits or a sign is one character long.
        match self.peek() {
            Some(c) if c.is_ascii_digit() || matches!(c, '@' | '*' | '#' | '!' | '?' | '-') => {
                name.extend(self.next());
                return name;
            }
            _ => {}
        }
        while let Some(c) = self.peek().filter(|c| c.is_ascii_alphanumeric() || *c == '_') {
            name.push(c);
            self.next();
        }
        name
    }

    fn value(&self, name: &str) -> Option<String> {
        (self.scope.variable)(name)
    }

    /// What stands behind a dollar.
    fn dollar(&mut self, depth: usize) -> Result<String> {
        if self.peek() != Some('{') {
            let is_name = self.peek().is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
            if !is_name {
                return Ok("$".to_owned());
            }
            let name = self.name();
            return Ok(self.value(&name).unwrap_or_default());
        }
        self.next();
        let name = self.name();
        if name.is_empty() {
            return Err(ExpandError::Brace);
        }
        let value = self.value(&name);
        let Some(mut operator) = self.next() else { return Err(ExpandError::Brace) };
        if operator == '}' {
            return Ok(value.unwrap_or_default());
        }
        let mut value = value;
        if operator == ':' {
            value = value.filter(|value| !value.is_empty());
            operator = self.next().ok_or(ExpandError::Brace)?;
            if !matches!(operator, '-' | '+' | '?') {
                return Err(ExpandError::Modifier(format!(":{operator}")));
            }
        }
        match operator {
            '-' | '+' | '?' => {
                let word = self.until(Some(&['}']), depth + 1)?.finish().0;
                self.next();
                Ok(match (operator, value) {
                    ('-', value) => value.unwrap_or(word),
                    ('+', value) => value.map(|_| word).unwrap_or_default(),
                    (_, Some(value)) => value,
                    (_, None) => {
                        let message =
                            if word.is_empty() { "is not allowed to be unset".to_owned() } else { word };
                        return Err(ExpandError::Required { name, message });
                    }
                })
            }
            '#' | '%' => {
                let greedy = self.peek() == Some(operator);
                if greedy {
                    self.next();
                }
                let pattern = Pattern::new(&self.until(Some(&['}']), depth + 1)?.finish().0);
                self.next();
                let value = value.unwrap_or_default();
                Ok(if operator == '#' {
                    pattern.without_prefix(&value, greedy)
                } else {
                    pattern.without_suffix(&value, greedy)
                })
            }
            '/' => {
                let all = self.peek() == Some('/');
                if all {
                    self.next();
                }
                let pattern = Pattern::new(&self.until(Some(&['/', '}']), depth + 1)?.finish().0);
                let with = if self.next() == Some('/') {
                    let with = self.until(Some(&['}']), depth + 1)?.finish().0;
                    self.next();
                    with
                } else {
                    String::new()
                };
                let replaced = pattern.replace(&value.unwrap_or_default(), &with, all);
                if replaced.len() > MAX_BYTES { Err(ExpandError::Limit) } else { Ok(replaced) }
            }
            other => Err(ExpandError::Modifier(other.to_string())),
        }
    }
}

/// A shell's pattern: `*` and `?`, the rest as it is; a backslash takes a sign's meaning away.
struct Pattern(Vec<Part>);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Any,
    One,
    Char(char),
}

impl Pattern {
    fn new(text: &str) -> Self {
        let mut parts = Vec::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            let part = match c {
                '*' => Part::Any,
                '?' => Part::One,
                '\\' => Part::Char(chars.next().unwrap_or('\\')),
                c => Part::Char(c),
            };
            // Runs of stars are one: matching stays quadratic at most.
            if !(part == Part::Any && parts.last() == Some(&Part::Any)) {
                parts.push(part);
            }
        }
        Self(parts)
    }

    /// Which lengths of a prefix of `text`, in characters, match.
    fn prefixes(&self, text: &[char]) -> Vec<bool> {
        let mut reach = vec![false; text.len() + 1];
        reach[0] = true;
        for part in &self.0 {
            match part {
                Part::Any => {
                    let first = reach.iter().position(|set| *set);
                    if let Some(first) = first {
                        reach[first..].fill(true);
                    }
                }
                Part::One | Part::Char(_) => {
                    for at in (1..reach.len()).rev() {
                        reach[at] =
                            reach[at - 1] && (*part == Part::One || *part == Part::Char(text[at - 1]));
                    }
                    reach[0] = false;
                }
            }
        }
        reach
    }

    fn longest_or_shortest(&self, text: &[char], greedy: bool) -> Option<usize> {
        let reach = self.prefixes(text);
        if greedy { reach.iter().rposition(|set| *set) } else { reach.iter().position(|set| *set) }
    }

    fn without_prefix(&self, value: &str, greedy: bool) -> String {
        let chars: Vec<char> = value.chars().collect();
        let cut = self.longest_or_shortest(&chars, greedy).unwrap_or(0);
        chars[cut..].iter().collect()
    }

    fn without_suffix(&self, value: &str, greedy: bool) -> String {
        let mut chars: Vec<char> = value.chars().collect();
        chars.reverse();
        let reversed = Self(self.0.iter().rev().copied().collect());
        let cut = reversed.longest_or_shortest(&chars, greedy).unwrap_or(0);
        chars[cut..].iter().rev().collect()
    }

    fn replace(&self, value: &str, with: &str, all: bool) -> String {
        // A value this long is no word; what a search in it would cost is not worth it.
        const MAX_SEARCHED: usize = 16 << 10;
        let chars: Vec<char> = value.chars().collect();
        if self.0.is_empty() || chars.len() > MAX_SEARCHED {
            return value.to_owned();
        }
        let (mut out, mut at, mut done) = (String::new(), 0, false);
        while at < chars.len() {
            let found = if done {
                None
            } else {
                self.longest_or_shortest(&chars[at..], true).filter(|length| *length > 0)
            };
            match found {
                Some(length) => {
                    out.push_str(with);
                    at += length;
                    done = !all;
                }
                None => {
                    out.push(chars[at]);
                    at += 1;
                }
            }
            if out.len() > MAX_BYTES {
                break;
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(name: &str) -> Option<String> {
        let table = [
            ("A", "1"),
            ("E", ""),
            ("P", "/usr/local/lib/x.tar.gz"),
            ("S", "a b  c"),
            ("F", "foobarfoo"),
            ("Q", "it's"),
        ];
        table.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
    }

    fn scope() -> Scope<'static> {
        Scope { variable: &lookup, escape: '\\' }
    }

    #[test]
    fn words_are_expanded_as_buildkits() {
        let table = [
            ("plain", "plain"),
            ("$A", "1"),
            ("${A}", "1"),
            ("x$A.y", "x1.y"),
            ("$A$A", "11"),
            ("$NONE", ""),
            ("a$", "a$"),
            ("$ a", "$ a"),
            ("\\$A", "$A"),
            ("'$A'", "$A"),
            ("\"$A\"", "1"),
            ("\"\\$A\"", "$A"),
            ("\"\\n\"", "\\n"),
            ("\\n", "n"),
            ("end\\", "end"),
            ("'\\'", "\\"),
            ("\"a\"'b'c", "abc"),
            ("${E-d}", ""),
            ("${E:-d}", "d"),
            ("${NONE-d}", "d"),
            ("${NONE:-$A}", "1"),
            ("${NONE:-${NONE2:-deep}}", "deep"),
            ("${NONE:-\"a}b\"}", "a}b"),
            ("${A+x}", "x"),
            ("${E+x}", "x"),
            ("${E:+x}", ""),
            ("${NONE:+x}", ""),
            ("${A:?no}", "1"),
            ("${P#*/}", "usr/local/lib/x.tar.gz"),
            ("${P##*/}", "x.tar.gz"),
            ("${P%.*}", "/usr/local/lib/x.tar"),
            ("${P%%.*}", "/usr/local/lib/x"),
            ("${P%nothing}", "/usr/local/lib/x.tar.gz"),
            ("${P#/usr}", "/local/lib/x.tar.gz"),
            ("${F/foo/X}", "Xbarfoo"),
            ("${F//foo/X}", "XbarX"),
            ("${F//foo}", "bar"),
            ("${F/o*b/-}", "f-arfoo"),
            ("${F//?o/-}", "-obar-o"),
            ("${F#\\*}", "foobarfoo"),
            ("$Q", "it's"),
            ("日本$A", "日本1"),
        ];
        for (text, expected) in table {
            assert_eq!(word(text, scope()).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn values_split_unless_quoted() {
        let table: [(&str, &[&str]); 6] = [
            ("$S", &["a", "b", "c"]),
            ("\"$S\"", &["a b  c"]),
            ("x$S'y z'", &["xa", "b", "cy z"]),
            ("a\\ b c", &["a b", "c"]),
            ("$NONE", &[]),
            ("''", &[""]),
        ];
        for (text, expected) in table {
            let found = words(text, scope());
            assert_eq!(
                found.as_deref(),
                Ok(&expected.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>()[..]),
                "{text}"
            );
        }
    }

    #[test]
    fn a_document_knows_no_quotes() {
        let text = "a \"$A\" '$A' \\$A ${NONE:-x}\n\\n";
        assert_eq!(document(text, scope()).as_deref(), Ok("a \"1\" '1' $A x\n\\n"));
    }

    #[test]
    fn another_escape_leaves_backslashes() {
        let scope = Scope { escape: '`', ..scope() };
        assert_eq!(word("C:\\$A`$A", scope).as_deref(), Ok("C:\\1$A"));
    }

    #[test]
    fn what_is_wrong_is_told() {
        let table = [
            ("'a", "unexpected end of statement while looking for matching single-quote"),
            ("\"a", "unexpected end of statement while looking for matching double-quote"),
            ("${A", "syntax error"),
            ("${}", "syntax error"),
            ("${A:-x", "syntax error"),
            ("${A^}", "unsupported modifier (^) in substitution"),
            ("${A:x}", "unsupported modifier (:x) in substitution"),
            ("${NONE:?give one}", "NONE: give one"),
            ("${NONE?}", "NONE: is not allowed to be unset"),
        ];
        for (text, expected) in table {
            let error = word(text, scope()).expect_err(text).to_string();
            assert!(error.starts_with(expected), "{text}: {error}");
        }
    }

    #[test]
    fn nesting_ends() {
        let deep = format!("{}{}", "${N:-".repeat(1000), "}".repeat(1000));
        assert_eq!(word(&deep, scope()), Err(ExpandError::Limit));
    }
}
