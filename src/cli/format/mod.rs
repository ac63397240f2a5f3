//! What verbs print: aligned tables, JSON, Go templates, sizes and times, as Docker prints them.

use serde::Serialize;
use serde_json::ser::PrettyFormatter;

mod eval;
mod functions;
mod lex;
mod parse;
mod printf;
mod table;
mod template;
#[cfg(test)]
mod tests;
mod tree;
mod units;

pub use table::{Table, align, check_inspect, raw, render_inspect};
pub use template::{Template, TemplateError};
pub use units::{ago, go_time, human_duration, human_size, human_size_binary, human_size_exact};

/// JSON with an indentation of four blanks, as `inspect` prints it, without a final newline.
#[must_use]
pub fn json_indented<T: Serialize + ?Sized>(value: &T) -> String {
    let mut bytes = Vec::new();
    let mut serializer =
        serde_json::Serializer::with_formatter(&mut bytes, PrettyFormatter::with_indent(b"    "));
    // Writing to memory cannot fail, and what verbs print has string keys only.
    if value.serialize(&mut serializer).is_err() {
        return "null".to_owned();
    }
    String::from_utf8(bytes).unwrap_or_default()
}

/// JSON on one line, as the template function `json` prints it.
#[must_use]
pub fn json_compact<T: Serialize + ?Sized>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_else(|_| "null".to_owned())
}
