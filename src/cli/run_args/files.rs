//! Files that flags name, read with a limit: one `NAME=VALUE` a line, and seccomp profiles.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// No real env file, label file or profile comes near it, and `--env-file /dev/zero` must end.
const MAX_FILE_SIZE_BYTES: u64 = 16 << 20;

/// Why a file that a flag names cannot be used. The wordings follow Docker's.
#[derive(Debug, Error)]
pub(super) enum FlagFileError {
    /// It cannot be read.
    #[error("open {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is too long.
    #[error("{0} is larger than 16 MiB")]
    TooLarge(PathBuf),
    /// A line is wrong.
    #[error("invalid env file ({path})")]
    Line {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: LineError,
    },
}

/// What is wrong with a line.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(super) enum LineError {
    /// Not UTF-8.
    #[error("invalid utf8 bytes at line {0}")]
    Encoding(usize),
    /// `=value`.
    #[error("no variable name on line '{0}'")]
    NoName(String),
    /// `a b=value`.
    #[error("variable '{0}' contains whitespaces")]
    Whitespace(String),
    /// A NUL, which no environment can hold.
    #[error("variable '{0}' contains a NUL character")]
    Nul(String),
}

/// The whole file.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, FlagFileError> {
    let open = |source| FlagFileError::Open { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(open)?;
    file.take(MAX_FILE_SIZE_BYTES + 1).read_to_end(&mut bytes).map_err(open)?;
    if bytes.len() as u64 > MAX_FILE_SIZE_BYTES {
        return Err(FlagFileError::TooLarge(path.to_owned()));
    }
    Ok(bytes)
}

/// The file's settings.
pub(super) fn read_settings(path: &Path) -> Result<Vec<(String, Option<String>)>, FlagFileError> {
    parse_settings(&read(path)?).map_err(|source| FlagFileError::Line { path: path.to_owned(), source })
}

/// Lines of `NAME=VALUE` or `NAME`. White space before a name is dropped, everything after the `=`
/// is the value; empty lines and those that begin with `#` are skipped.
fn parse_settings(bytes: &[u8]) -> Result<Vec<(String, Option<String>)>, LineError> {
    const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
    let mut settings = Vec::new();
    let bytes = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes);
    for (number, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let line = std::str::from_utf8(line).map_err(|_| LineError::Encoding(number + 1))?;
        let line = line.trim_start_matches([' ', '\t']);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = match line.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (line, None),
        };
        if name.is_empty() {
            return Err(LineError::NoName(line.into()));
        }
        if name.contains([' ', '\t']) {
            return Err(LineError::Whitespace(name.into()));
        }
        if line.contains('\0') {
            return Err(LineError::Nul(name.replace('\0', "\u{fffd}")));
        }
        settings.push((name.into(), value.map(str::to_owned)));
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let text = b"\xef\xbb\xbfA=1\r\n# no\n\n  B = x y \n\tC\nD==\nE=";
        assert_eq!(parse_settings(b"B = x"), Err(LineError::Whitespace("B ".into())));
        let text = String::from_utf8(text.to_vec()).expect("text").replace("B = x y ", "B= x y ");
        let expected =
            [("A", Some("1")), ("B", Some(" x y ")), ("C", None), ("D", Some("=")), ("E", Some(""))];
        let expected: Vec<_> = expected
            .into_iter()
            .map(|(n, v): (&str, Option<&str>)| (n.to_owned(), v.map(str::to_owned)))
            .collect();
        assert_eq!(parse_settings(text.as_bytes()), Ok(expected));
    }

    #[test]
    fn wrong_lines() {
        let table: [(&[u8], &str); 4] = [
            (b"A=1\n=2", "no variable name on line '=2'"),
            (b"A B=1", "variable 'A B' contains whitespaces"),
            (b"A=1\nB=\xff", "invalid utf8 bytes at line 2"),
            (b"A=\0", "variable 'A' contains a NUL character"),
        ];
        for (text, message) in table {
            assert_eq!(parse_settings(text).map_err(|e| e.to_string()), Err(message.to_owned()));
        }
    }

    #[test]
    fn files_have_a_limit() {
        assert!(matches!(read(Path::new("/dev/zero")), Err(FlagFileError::TooLarge(_))));
        let missing = read(Path::new("/no/such/file")).expect_err("missing");
        assert_eq!(missing.to_string(), "open /no/such/file");
    }
}
