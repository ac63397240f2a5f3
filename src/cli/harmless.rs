//! Text of images, registries and containers for a person's terminal.
//!
//! A terminal obeys escape sequences: a label, a file's name or a registry's error could set its title, hide
//! lines, or answer as if typed. What people read therefore shows control characters as Go quotes them (`\x1b`);
//! pipes and files get every byte as it is, as scripts expect, and so does whatever a container itself prints.

use std::borrow::Cow;
use std::io::IsTerminal as _;

use serde_json::Value;

/// Shows control characters but newline and tab by their numbers.
#[must_use]
pub fn text(text: &str) -> Cow<'_, str> {
    let is_harmful = |c: char| c.is_control() && c != '\n' && c != '\t';
    if !text.contains(is_harmful) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            c if !is_harmful(c) => shown.push(c),
            '\r' => shown.push_str("\\r"),
            c => shown.push_str(&format!("\\x{:02x}", u32::from(c))),
        }
    }
    Cow::Owned(shown)
}

/// As [`text`] where standard output is a terminal.
#[must_use]
pub fn on_terminal(shown: &str) -> Cow<'_, str> {
    if std::io::stdout().is_terminal() { text(shown) } else { Cow::Borrowed(shown) }
}

/// As [`on_terminal`] for every text in a value.
#[must_use]
pub fn value_on_terminal(value: &Value) -> Cow<'_, Value> {
    if std::io::stdout().is_terminal() { Cow::Owned(in_value(value)) } else { Cow::Borrowed(value) }
}

fn in_value(value: &Value) -> Value {
    match value {
        Value::String(string) => Value::from(text(string).into_owned()),
        Value::Array(list) => list.iter().map(in_value).collect(),
        Value::Object(map) => {
            map.iter().map(|(key, value)| (text(key).into_owned(), in_value(value))).collect()
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn control_characters_become_their_numbers() {
        for (from, to) in [
            ("plain ü\tx\n", "plain ü\tx\n"),
            ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
            ("a\rb\x7f", "a\\rb\\x7f"),
            ("\u{9b}2J", "\\x9b2J"),
        ] {
            assert_eq!(text(from), to);
        }
        assert_eq!(in_value(&json!({"a\u{1b}": ["\u{7}", 1]})), json!({"a\\x1b": ["\\x07", 1]}));
    }
}
