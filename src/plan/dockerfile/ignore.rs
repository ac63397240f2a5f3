//! `.dockerignore`: which files of a context a build does not see.
//!
//! The rules are moby's (patternmatcher): a line is a pattern, cleaned as a path; `#` in the first
//! column is a comment; `!` takes back what came before; `*` and `?` stop at a slash, `**` does not,
//! `[a-z]` is a class, a backslash takes a meaning away. A pattern matches a path, and with it
//! everything below; the last pattern that matches counts.

/// Patterns of a file: beyond, each file of a context costs too much.
const MAX_PATTERNS: usize = 10_000;

/// The patterns of one file.
#[derive(Clone, Debug, Default)]
pub struct Ignore {
    patterns: Vec<Pattern>,
    has_exceptions: bool,
}

#[derive(Clone, Debug)]
struct Pattern {
    negated: bool,
    parts: Vec<Part>,
    /// Slashes in it: a path with fewer cannot match, but what is below it may.
    text: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    /// `*`
    Star,
    /// `**` with the slash behind it: any number of whole names, or none.
    Names,
    /// `**` at the end: everything.
    Rest,
    /// `?`
    One,
    Class {
        negated: bool,
        ranges: Vec<(u8, u8)>,
    },
    Byte(u8),
}

/// A pattern that is none.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum IgnoreError {
    /// Its syntax.
    #[error("failed parsing .dockerignore: syntax error in pattern: {0:?}")]
    Syntax(String),
    /// Too many of them.
    #[error("failed parsing .dockerignore: more than {MAX_PATTERNS} patterns")]
    TooMany,
}

impl Ignore {
    /// Reads a file.
    ///
    /// # Errors
    /// A pattern that is none.
    pub fn parse(text: &str) -> Result<Self, IgnoreError> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        Self::new(lines)
    }

    /// From single patterns, as `COPY --exclude` has them.
    ///
    /// # Errors
    /// A pattern that is none.
    pub fn new<'a>(lines: impl Iterator<Item = &'a str>) -> Result<Self, IgnoreError> {
        let mut patterns = Vec::new();
        for line in lines {
            let line = line.trim();
            if line.is_empty() {
                continue;
            }
            let (negated, pattern) = match line.strip_prefix('!') {
                Some(rest) => (true, rest.trim()),
                None => (false, line),
            };
            if pattern.is_empty() {
                return Err(IgnoreError::Syntax(line.to_owned()));
            }
            let cleaned = clean(pattern);
            let cleaned = cleaned.strip_prefix('/').unwrap_or(&cleaned).to_owned();
            // The whole context cannot be left out by name.
            if cleaned.is_empty() || cleaned == "." {
                continue;
            }
            if patterns.len() == MAX_PATTERNS {
                return Err(IgnoreError::TooMany);
            }
            let parts = compile(&cleaned).ok_or_else(|| IgnoreError::Syntax(line.to_owned()))?;
            patterns.push(Pattern { negated, parts, text: cleaned });
        }
        let has_exceptions = patterns.iter().any(|pattern| pattern.negated);
        Ok(Self { patterns, has_exceptions })
    }

    /// Whether nothing is ever left out.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Whether some patterns bring back what others leave out.
    #[must_use]
    pub fn has_exceptions(&self) -> bool {
        self.has_exceptions
    }

    /// Whether a path (no slash in front) is left out. `parent` is the answer for the directory that it
    /// is in, pattern by pattern: see [`Matched`].
    #[must_use]
    pub fn matches(&self, path: &[u8], parent: Option<&Matched>) -> Matched {
        let mut each = Vec::with_capacity(self.patterns.len());
        let mut excluded = false;
        for (number, pattern) in self.patterns.iter().enumerate() {
            let inherited = parent.is_some_and(|parent| parent.each.get(number) == Some(&true));
            let matched = inherited || matches(&pattern.parts, path);
            each.push(matched);
            if matched {
                excluded = !pattern.negated;
            }
        }
        Matched { each, excluded }
    }

    /// Whether something below an excluded directory may be taken back, so that it has to be looked into.
    #[must_use]
    pub fn may_keep_below(&self, directory: &[u8]) -> bool {
        if !self.has_exceptions {
            return false;
        }
        self.patterns.iter().filter(|pattern| pattern.negated).any(|pattern| {
            let has_signs = pattern.parts.iter().any(|part| !matches!(part, Part::Byte(_)));
            // With a sign in it it may match anywhere.
            has_signs || {
                let text = pattern.text.as_bytes();
                text.starts_with(directory) && text.get(directory.len()) == Some(&b'/')
                    || directory.starts_with(text) && directory.get(text.len()) == Some(&b'/')
            }
        })
    }
}

/// The answer for a path, which the answers for what is below it start from.
#[derive(Clone, Debug, Default)]
pub struct Matched {
    each: Vec<bool>,
    excluded: bool,
}

impl Matched {
    /// Whether the path is left out.
    #[must_use]
    pub fn excluded(&self) -> bool {
        self.excluded
    }
}

/// A path without `.`, `..` and doubled slashes, lexically; it may begin with `..`.
fn clean(path: &str) -> String {
    let is_absolute = path.starts_with('/');
    let mut names: Vec<&str> = Vec::new();
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." if names.last().is_some_and(|last| *last != "..") => drop(names.pop()),
            ".." if is_absolute => {}
            name => names.push(name),
        }
    }
    let joined = names.join("/");
    if is_absolute { format!("/{joined}") } else { joined }
}

fn compile(text: &str) -> Option<Vec<Part>> {
    let bytes = text.as_bytes();
    let (mut parts, mut at) = (Vec::new(), 0);
    while let Some(byte) = bytes.get(at) {
        at += 1;
        match byte {
            b'*' if bytes.get(at) == Some(&b'*') => {
                while bytes.get(at) == Some(&b'*') {
                    at += 1;
                }
                if bytes.get(at) == Some(&b'/') {
                    at += 1;
                    parts.push(Part::Names);
                } else if at == bytes.len() {
                    parts.push(Part::Rest);
                } else {
                    // `**x`: any path that ends so.
                    parts.push(Part::Rest);
                }
            }
            b'*' => parts.push(Part::Star),
            b'?' => parts.push(Part::One),
            b'[' => {
                let negated = bytes.get(at) == Some(&b'^');
                at += usize::from(negated);
                let mut ranges = Vec::new();
                loop {
                    let one = |at: &mut usize| -> Option<u8> {
                        let byte = *bytes.get(*at)?;
                        *at += 1;
                        if byte == b'\\' {
                            let byte = *bytes.get(*at)?;
                            *at += 1;
                            return Some(byte);
                        }
                        Some(byte)
                    };
                    if bytes.get(at) == Some(&b']') && !ranges.is_empty() {
                        at += 1;
                        break;
                    }
                    let low = one(&mut at)?;
                    let mut high = low;
                    if bytes.get(at) == Some(&b'-') && bytes.get(at + 1).is_some_and(|next| *next != b']') {
                        at += 1;
                        high = one(&mut at)?;
                    }
                    ranges.push((low, high));
                }
                parts.push(Part::Class { negated, ranges });
            }
            b'\\' => {
                parts.push(Part::Byte(*bytes.get(at)?));
                at += 1;
            }
            byte => parts.push(Part::Byte(*byte)),
        }
    }
    Some(parts)
}

/// Whether the whole path matches. Each part keeps the set of positions that it can be reached at, so
/// time is the product of both lengths, whatever the pattern.
fn matches(parts: &[Part], path: &[u8]) -> bool {
    // Most patterns are names: told apart without a table.
    if let Some(Part::Byte(first)) = parts.first()
        && path.first() != Some(first)
    {
        return false;
    }
    let mut reach = vec![false; path.len() + 1];
    reach[0] = true;
    for part in parts {
        let mut next = vec![false; path.len() + 1];
        match part {
            Part::Star => {
                let mut on = false;
                for at in 0..=path.len() {
                    on = (on && at > 0 && path[at - 1] != b'/') || reach[at];
                    next[at] = on;
                }
            }
            Part::Rest => {
                if let Some(first) = reach.iter().position(|set| *set) {
                    next[first..].fill(true);
                }
            }
            Part::Names => {
                let mut on = false;
                for at in 0..=path.len() {
                    on |= reach[at];
                    next[at] = reach[at] || (on && at > 0 && path[at - 1] == b'/');
                }
            }
            Part::One | Part::Class { .. } | Part::Byte(_) => {
                for at in 0..path.len() {
                    let byte = path[at];
                    next[at + 1] = reach[at]
                        && match part {
                            Part::Byte(wanted) => byte == *wanted,
                            Part::Class { negated, ranges } => {
                                byte != b'/'
                                    && ranges.iter().any(|(low, high)| (*low..=*high).contains(&byte))
                                        != *negated
                            }
                            _ => byte != b'/',
                        };
                }
            }
        }
        reach = next;
        if !reach.contains(&true) {
            return false;
        }
    }
    reach[path.len()]
}

/// Whether a path matches a shell's pattern name by name, as the sources of COPY do.
///
/// # Errors
/// A pattern that is none.
pub fn glob(pattern: &str, path: &[u8]) -> Result<bool, IgnoreError> {
    let parts = compile(pattern).ok_or_else(|| IgnoreError::Syntax(pattern.to_owned()))?;
    Ok(matches(&parts, path))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    /// Asks for a path by way of each directory above it, as a walk does.
    fn is_excluded(ignore: &Ignore, path: &str) -> bool {
        let mut matched: Option<Matched> = None;
        for (at, _) in path.match_indices('/').chain([(path.len(), "")]) {
            matched = Some(ignore.matches(&path.as_bytes()[..at], matched.as_ref()));
        }
        matched.unwrap().excluded()
    }

    #[test]
    fn patterns_match_as_mobys() {
        let table: &[(&str, &str, bool)] = &[
            ("a", "a", true),
            ("a", "a/b/c", true),
            ("a", "b/a", false),
            ("/a", "a", true),
            ("a/", "a", true),
            ("./a", "a", true),
            ("a/../b", "b", true),
            ("*", "a", true),
            ("*", "a/b", true),
            ("*.md", "README.md", true),
            ("*.md", "doc/README.md", false),
            ("*/*.md", "doc/README.md", true),
            ("**/*.md", "README.md", true),
            ("**/*.md", "a/b/c.md", true),
            ("**", "a/b", true),
            ("**/x", "x", true),
            ("**/x", "a/x", true),
            ("**/x", "a/yx", false),
            ("a/**", "a/b/c", true),
            ("a/**", "a", false),
            ("a/**/z", "a/z", true),
            ("a/**/z", "a/b/c/z", true),
            ("temp?", "tempa", true),
            ("temp?", "temp", false),
            ("te?p", "te/p", false),
            ("[a-c]x", "bx", true),
            ("[^a-c]x", "bx", false),
            ("[^a-c]x", "dx", true),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("a\\ b", "a b", true),
            ("# no comment", "# no comment", false),
            (" # pattern", "# pattern", true),
            ("a\n!a", "a", false),
            ("*\n!a", "a", false),
            ("*\n!a", "b", true),
            ("*\n!a", "a/c", false),
            ("*\n!a/b", "a/b", false),
            ("*\n!a/b", "a/c", true),
            ("*.md\n!README*.md\nREADME-secret.md", "README.md", false),
            ("*.md\n!README*.md\nREADME-secret.md", "README-secret.md", true),
            ("dir\n!dir/keep", "dir/keep", false),
            ("dir\n!dir/keep", "dir/other", true),
            ("dir\n!dir/keep\ndir/keep/x", "dir/keep/x", true),
            ("\u{feff}a", "a", true),
            (".", "a", false),
            ("/", "a", false),
            ("", "a", false),
            ("**/.git", ".git", true),
            ("**/.git", "sub/.git/config", true),
            ("a**b", "a/x/b", true),
        ];
        for (patterns, path, expected) in table {
            let ignore = Ignore::parse(patterns).unwrap();
            assert_eq!(is_excluded(&ignore, path), *expected, "{patterns:?} {path}");
        }
    }

    #[test]
    fn directories_are_looked_into_only_where_something_may_be_kept() {
        let ignore = Ignore::parse("*\n!a/b/c").unwrap();
        assert!(ignore.may_keep_below(b"a"));
        assert!(ignore.may_keep_below(b"a/b"));
        assert!(!ignore.may_keep_below(b"x"));
        assert!(!Ignore::parse("*").unwrap().may_keep_below(b"a"));
        assert!(Ignore::parse("*\n!**/x").unwrap().may_keep_below(b"a"));
    }

    #[test]
    fn what_is_no_pattern_is_told() {
        for text in ["[a", "!", "a\\", "[]"] {
            assert!(Ignore::parse(text).is_err(), "{text}");
        }
    }
}
