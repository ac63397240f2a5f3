//! The functions of templates: Go's own, and those that Docker adds (`json`, `join`, `split`,
//! `lower`, `upper`, `title`, `pad`, `truncate`).

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt::Write as _;

use serde_json::Value;

use super::eval::Item;
use super::printf::{self, MAX_WIDTH, printf};
use super::tree::{Kind, Operand};

/// Every function with its name.
const NAMES: [(&str, Function); 27] = [
    ("and", Function::And),
    ("or", Function::Or),
    ("not", Function::Not),
    ("len", Function::Len),
    ("index", Function::Index),
    ("slice", Function::Slice),
    ("eq", Function::Eq),
    ("ne", Function::Ne),
    ("lt", Function::Lt),
    ("le", Function::Le),
    ("gt", Function::Gt),
    ("ge", Function::Ge),
    ("print", Function::Print),
    ("printf", Function::Printf),
    ("println", Function::Println),
    ("html", Function::Html),
    ("js", Function::Js),
    ("urlquery", Function::Urlquery),
    ("call", Function::Call),
    ("json", Function::Json),
    ("join", Function::Join),
    ("split", Function::Split),
    ("lower", Function::Lower),
    ("upper", Function::Upper),
    ("title", Function::Title),
    ("pad", Function::Pad),
    ("truncate", Function::Truncate),
];

/// A function that a template may call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Function {
    And,
    Or,
    Not,
    Len,
    Index,
    Slice,
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Print,
    Printf,
    Println,
    Html,
    Js,
    Urlquery,
    Call,
    Json,
    Join,
    Split,
    Lower,
    Upper,
    Title,
    Pad,
    Truncate,
}

type Result<T> = std::result::Result<T, String>;

/// What a function takes at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parameter {
    Any,
    Text,
    Integer,
    /// Texts.
    List,
}

impl Parameter {
    fn go_name(self) -> &'static str {
        match self {
            Self::Any => "interface {}",
            Self::Text => "string",
            Self::Integer => "int",
            Self::List => "[]string",
        }
    }

    /// Why a literal cannot stand here, if it is one.
    pub(super) fn refuses_literal(self, operand: &Operand) -> Option<String> {
        match (self, &operand.kind) {
            (Self::Text | Self::Integer, Kind::Nil) => {
                Some(format!("cannot assign nil to {}", self.go_name()))
            }
            (Self::Text, Kind::Literal(value, text)) if !value.is_string() => {
                Some(format!("expected string; found {text}"))
            }
            (Self::Integer, Kind::Literal(value, text)) if !(value.is_i64() || value.is_u64()) => {
                Some(format!("expected integer; found {text}"))
            }
            (Self::List, Kind::Literal(_, text)) => {
                Some(format!("can't handle {text} for arg of type []string"))
            }
            _ => None,
        }
    }

    /// Whether a value that came from elsewhere fits.
    pub(super) fn check(self, value: &Item<'_>) -> Result<()> {
        let fits = match (self, value.as_deref()) {
            (Self::Any, _) => true,
            (_, None) | (Self::Text | Self::Integer, Some(Value::Null)) => {
                return Err(format!("invalid value; expected {}", self.go_name()));
            }
            (Self::Text, Some(value)) => value.is_string(),
            (Self::Integer, Some(value)) => value.is_i64() || value.is_u64(),
            (Self::List, Some(Value::Array(items))) => items.iter().all(Value::is_string),
            (Self::List, Some(value)) => value.is_null(),
        };
        match value {
            Some(value) if !fits => {
                let (wanted, found) = (self.go_name(), type_name(value));
                Err(format!("wrong type for value; expected {wanted}; got {found}"))
            }
            _ => Ok(()),
        }
    }
}

impl Function {
    pub(super) fn named(name: &str) -> Option<Self> {
        NAMES.iter().find(|(known, _)| *known == name).map(|(_, function)| *function)
    }

    pub(super) fn name(self) -> &'static str {
        NAMES.iter().find(|(_, function)| *function == self).map_or("", |(name, _)| name)
    }

    /// How many arguments it takes, if these are not as many.
    pub(super) fn wants_other_than(self, given: usize) -> Option<String> {
        let (least, more) = match self {
            Self::Print | Self::Println | Self::Html | Self::Js | Self::Urlquery => return None,
            Self::And | Self::Or | Self::Index | Self::Slice | Self::Eq | Self::Printf | Self::Call => {
                (1, true)
            }
            Self::Not | Self::Len | Self::Json | Self::Lower | Self::Upper | Self::Title => (1, false),
            Self::Ne | Self::Lt | Self::Le | Self::Gt | Self::Ge => (2, false),
            Self::Join | Self::Split | Self::Truncate => (2, false),
            Self::Pad => (3, false),
        };
        match more {
            true if given < least => Some(format!("at least {least}")),
            false if given != least => Some(least.to_string()),
            _ => None,
        }
    }

    /// What it takes at this place, from 0.
    pub(super) fn parameter(self, place: usize) -> Parameter {
        match (self, place) {
            (Self::Printf, 0) | (Self::Split | Self::Lower | Self::Upper | Self::Title, _) => Parameter::Text,
            (Self::Join, 0) => Parameter::List,
            (Self::Join, _) | (Self::Pad | Self::Truncate, 0) => Parameter::Text,
            (Self::Pad | Self::Truncate, _) => Parameter::Integer,
            _ => Parameter::Any,
        }
    }

    /// Whether a heading goes through unchanged (Docker's HeaderFunctions).
    pub(super) fn keeps_headings(self) -> bool {
        matches!(
            self,
            Self::Json | Self::Title | Self::Lower | Self::Upper | Self::Truncate | Self::Join | Self::Split
        )
    }

    /// Whether the text that it changes comes first, before what says how.
    pub(super) fn is_text_first(self) -> bool {
        matches!(self, Self::Truncate | Self::Join | Self::Split)
    }

    /// Calls the function with as many arguments as it takes, of the kinds that it takes; `And` and `Or` are the
    /// evaluator's. `written` is how the first argument is written.
    pub(super) fn call<'a>(self, arguments: &[Item<'a>], written: &str) -> Result<Item<'a>> {
        let owned = |value: Value| Ok(Some(Cow::Owned(value)));
        let numbers = || arguments.iter().map(Option::as_deref).collect::<Vec<_>>();
        match (self, arguments) {
            (Self::Not, [value]) => owned((!truth(value)).into()),
            (Self::Len, [value]) => owned(length(value)?.into()),
            (Self::Index, [value, keys @ ..]) => keys.iter().try_fold(value.clone(), index),
            (Self::Slice, [value, bounds @ ..]) => owned(slice(value, bounds)?),
            (Self::Eq, [_]) => Err("missing argument for comparison".to_owned()),
            (Self::Eq, [value, others @ ..]) => {
                for other in others {
                    if equal(value, other)? {
                        return owned(true.into());
                    }
                }
                owned(false.into())
            }
            (Self::Ne, [a, b]) => owned((!equal(a, b)?).into()),
            (Self::Lt, [a, b]) => owned((order(a, b)? == Ordering::Less).into()),
            (Self::Le, [a, b]) => owned((order(a, b)? != Ordering::Greater).into()),
            (Self::Gt, [a, b]) => owned((order(a, b)? == Ordering::Greater).into()),
            (Self::Ge, [a, b]) => owned((order(a, b)? != Ordering::Less).into()),
            (Self::Print, values) => owned(print(values).into()),
            (Self::Println, values) => {
                let words: Vec<String> = values.iter().map(plain).collect();
                owned((words.join(" ") + "\n").into())
            }
            (Self::Printf, [format, ..]) => owned(printf(string(format)?, &numbers()[1..])?.into()),
            (Self::Html, values) => owned(escaped(values, |c| match c {
                '<' => Some("&lt;".to_owned()),
                '>' => Some("&gt;".to_owned()),
                '&' => Some("&amp;".to_owned()),
                '\'' => Some("&#39;".to_owned()),
                '"' => Some("&#34;".to_owned()),
                '\0' => Some('\u{fffd}'.to_string()),
                _ => None,
            })),
            (Self::Js, values) => owned(escaped(values, |c| match c {
                '\\' | '\'' | '"' => Some(format!("\\{c}")),
                '<' | '>' | '&' | '=' => Some(format!("\\u{:04X}", u32::from(c))),
                _ if c.is_control() => Some(format!("\\u{:04X}", u32::from(c))),
                _ => None,
            })),
            (Self::Urlquery, values) => owned(escaped(values, |c| match c {
                'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '_' | '.' | '~' => None,
                ' ' => Some("+".to_owned()),
                c => Some(c.encode_utf8(&mut [0; 4]).bytes().fold(String::new(), |mut text, byte| {
                    let _ = write!(text, "%{byte:02X}");
                    text
                })),
            })),
            (Self::Call, [value, ..]) => match value.as_deref() {
                None | Some(Value::Null) => Err("call of nil".to_owned()),
                Some(value) => Err(format!("non-function {written} of type {}", type_name(value))),
            },
            (Self::Json, [value]) => owned(super::json_compact(value).into()),
            (Self::Join, [list, separator]) => owned(join(list, string(separator)?).into()),
            (Self::Split, [value, separator]) => owned(split(string(value)?, string(separator)?)),
            (Self::Lower, [value]) => owned(string(value)?.to_lowercase().into()),
            (Self::Upper, [value]) => owned(string(value)?.to_uppercase().into()),
            (Self::Title, [value]) => owned(title(string(value)?).into()),
            (Self::Pad, [value, before, after]) => owned(pad(string(value)?, before, after)?.into()),
            (Self::Truncate, [value, count]) => owned(truncate(string(value)?, count)?.into()),
            // The evaluator has counted them.
            _ => Err(format!("{} arguments", arguments.len())),
        }
    }
}

/// The heading of a label's column: the last part of its name.
pub(super) fn label_heading(name: &str) -> Value {
    name.rsplit('.').next().unwrap_or_default().replace(['-', '_'], " ").into()
}

/// The value of one label: of the object itself, or of its `Labels` (an object, or `k=v,k=v`).
pub(super) fn label(object: &Item<'_>, name: &str) -> Value {
    let labels = object.as_deref().and_then(|object| object.get("Labels"));
    let found = match labels {
        Some(Value::Object(map)) => map.get(name).and_then(Value::as_str),
        Some(Value::String(list)) => list
            .split(',')
            .find_map(|pair| pair.split_once('=').filter(|(key, _)| *key == name))
            .map(|(_, value)| value),
        _ => None,
    };
    found.unwrap_or_default().into()
}

/// Go's truth: not false, zero, null or empty.
pub(super) fn truth(value: &Item<'_>) -> bool {
    match value.as_deref() {
        None | Some(Value::Null) => false,
        Some(Value::Bool(value)) => *value,
        Some(Value::Number(number)) => number.as_f64() != Some(0.0),
        Some(Value::String(text)) => !text.is_empty(),
        Some(Value::Array(items)) => !items.is_empty(),
        Some(Value::Object(map)) => !map.is_empty(),
    }
}

/// A value's text where a template prints it.
pub(super) fn text<'v>(value: &'v Item<'_>) -> Cow<'v, str> {
    match value.as_deref() {
        None | Some(Value::Null) => Cow::Borrowed("<no value>"),
        Some(Value::String(text)) => Cow::Borrowed(text),
        Some(value) => Cow::Owned(go_text(value)),
    }
}

/// Go's name of a value's type.
pub(super) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "interface {}",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int",
        Value::String(_) => "string",
        Value::Array(items) if !items.is_empty() && items.iter().all(Value::is_string) => "[]string",
        Value::Array(_) => "[]interface {}",
        Value::Object(map) if !map.is_empty() && map.values().all(Value::is_string) => "map[string]string",
        Value::Object(_) => "map[string]interface {}",
    }
}

/// Go's `%v`.
pub(super) fn go_text(value: &Value) -> String {
    printf::plain(value)
}

fn plain(value: &Item<'_>) -> String {
    value.as_deref().map_or_else(|| "<nil>".to_owned(), go_text)
}

/// Go's Sprint: a blank between two values neither of which is a string.
fn print(values: &[Item<'_>]) -> String {
    let is_string = |value: &Item<'_>| matches!(value.as_deref(), Some(Value::String(_)));
    let mut out = String::new();
    for (place, value) in values.iter().enumerate() {
        if place > 0 && !is_string(value) && !is_string(&values[place - 1]) {
            out.push(' ');
        }
        out.push_str(&plain(value));
    }
    out
}

/// The text of values with some characters written in another way.
fn escaped(values: &[Item<'_>], other: impl Fn(char) -> Option<String>) -> Value {
    let plain = match values {
        [value] => text(value).into_owned(),
        values => print(values),
    };
    let mut out = String::with_capacity(plain.len());
    for c in plain.chars() {
        match other(c) {
            Some(text) => out.push_str(&text),
            None => out.push(c),
        }
    }
    out.into()
}

fn string<'v>(value: &'v Item<'_>) -> Result<&'v str> {
    match value.as_deref() {
        Some(Value::String(text)) => Ok(text),
        _ => Err("a string is needed".to_owned()),
    }
}

fn small(value: &Item<'_>, name: &str) -> Result<usize> {
    let number = value.as_deref().and_then(Value::as_u64).and_then(|number| usize::try_from(number).ok());
    number
        .filter(|number| *number <= MAX_WIDTH)
        .ok_or_else(|| format!("{name} is {}, which is not from 0 to {MAX_WIDTH}", plain(value)))
}

fn length(value: &Item<'_>) -> Result<usize> {
    match value.as_deref() {
        Some(Value::String(text)) => Ok(text.len()),
        Some(Value::Array(items)) => Ok(items.len()),
        Some(Value::Object(map)) => Ok(map.len()),
        // A list or map of the API that is not there.
        Some(Value::Null) => Ok(0),
        None => Err("len of nil pointer".to_owned()),
        Some(value) => Err(format!("len of type {}", type_name(value))),
    }
}

/// An index into something of this length, or the one behind it where `end` is one more.
fn place(key: &Item<'_>, end: usize) -> Result<usize> {
    match key.as_deref() {
        Some(Value::Number(number)) if !number.is_f64() => {
            let place = number.as_u64().and_then(|place| usize::try_from(place).ok());
            place.filter(|place| *place < end).ok_or_else(|| format!("index out of range: {number}"))
        }
        None | Some(Value::Null) => Err("cannot index slice/array with nil".to_owned()),
        Some(other) => Err(format!("cannot index slice/array with type {}", type_name(other))),
    }
}

fn index<'a>(value: Item<'a>, key: &Item<'a>) -> Result<Item<'a>> {
    let absent = |map: &serde_json::Map<String, Value>| -> Item<'a> {
        // A map of texts gives the empty one.
        map.values().all(Value::is_string).then(|| Cow::Owned(Value::from("")))
    };
    let name = || match key.as_deref() {
        Some(Value::String(name)) => Ok(name.as_str()),
        None | Some(Value::Null) => Err("value is nil; should be of type string".to_owned()),
        Some(other) => Err(format!("value has type {}; should be string", type_name(other))),
    };
    match value {
        Some(Cow::Borrowed(Value::Array(items))) => Ok(Some(Cow::Borrowed(&items[place(key, items.len())?]))),
        Some(Cow::Owned(Value::Array(mut items))) => {
            Ok(Some(Cow::Owned(items.swap_remove(place(key, items.len())?))))
        }
        Some(Cow::Borrowed(Value::Object(map))) => {
            Ok(map.get(name()?).map(Cow::Borrowed).or_else(|| absent(map)))
        }
        Some(Cow::Owned(Value::Object(mut map))) => {
            Ok(map.remove(name()?).map(Cow::Owned).or_else(|| absent(&map)))
        }
        None => Err("index of untyped nil".to_owned()),
        Some(text) if text.is_string() => {
            let bytes = text.as_str().unwrap_or_default().as_bytes();
            Ok(Some(Cow::Owned(bytes[place(key, bytes.len())?].into())))
        }
        Some(null) if null.is_null() => Err("index of untyped nil".to_owned()),
        Some(other) => Err(format!("can't index item of type {}", type_name(&other))),
    }
}

fn slice(value: &Item<'_>, bounds: &[Item<'_>]) -> Result<Value> {
    let all = match value.as_deref() {
        Some(Value::String(_)) if bounds.len() == 3 => return Err("cannot 3-index slice a string".to_owned()),
        Some(Value::String(text)) => text.len(),
        Some(Value::Array(items)) => items.len(),
        None | Some(Value::Null) => return Err("slice of untyped nil".to_owned()),
        Some(other) => return Err(format!("can't slice item of type {}", type_name(other))),
    };
    if bounds.len() > 3 {
        return Err(format!("too many slice indexes: {}", bounds.len()));
    }
    let mut places = [0, all, all];
    for (slot, bound) in places.iter_mut().zip(bounds) {
        *slot = place(bound, all + 1)?;
    }
    let [start, end, most] = places;
    for (low, high) in [(start, end), (end, most)] {
        if low > high {
            return Err(format!("invalid slice index: {low} > {high}"));
        }
    }
    Ok(match value.as_deref() {
        Some(Value::Array(items)) => items[start..end].to_vec().into(),
        Some(Value::String(text)) => {
            String::from_utf8_lossy(&text.as_bytes()[start..end]).into_owned().into()
        }
        _ => Value::Null,
    })
}

/// What Go's comparison tells apart.
#[derive(PartialEq, Eq)]
enum Basic {
    Nothing,
    Truth,
    Integer,
    Float,
    Text,
    /// A list or a map.
    Other,
}

fn basic(value: &Item<'_>) -> Basic {
    match value.as_deref() {
        None | Some(Value::Null) => Basic::Nothing,
        Some(Value::Bool(_)) => Basic::Truth,
        Some(Value::Number(number)) if number.is_f64() => Basic::Float,
        Some(Value::Number(_)) => Basic::Integer,
        Some(Value::String(_)) => Basic::Text,
        Some(Value::Array(_) | Value::Object(_)) => Basic::Other,
    }
}

fn equal(a: &Item<'_>, b: &Item<'_>) -> Result<bool> {
    let (left, right) = (basic(a), basic(b));
    if left == Basic::Nothing || right == Basic::Nothing {
        return Ok(left == right);
    }
    if let (Basic::Other, Some(value)) = (&left, a.as_deref()) {
        return Err(format!("non-comparable type {}: {}", go_text(value), type_name(value)));
    }
    if left != right {
        return Err("incompatible types for comparison".to_owned());
    }
    Ok(a.as_deref() == b.as_deref())
}

fn order(a: &Item<'_>, b: &Item<'_>) -> Result<Ordering> {
    let (left, right) = (basic(a), basic(b));
    if [&left, &right].iter().any(|kind| matches!(kind, Basic::Nothing | Basic::Other)) {
        return Err("invalid type for comparison".to_owned());
    }
    if left != right {
        return Err("incompatible types for comparison".to_owned());
    }
    let ordering = match (a.as_deref(), b.as_deref()) {
        (Some(Value::Number(a)), Some(Value::Number(b))) => match (a.as_i64(), b.as_i64()) {
            (Some(a), Some(b)) => Some(a.cmp(&b)),
            _ => a.as_f64().partial_cmp(&b.as_f64()),
        },
        (Some(Value::String(a)), Some(Value::String(b))) => Some(a.cmp(b)),
        _ => None,
    };
    ordering.ok_or_else(|| "invalid type for comparison".to_owned())
}

fn join(list: &Item<'_>, separator: &str) -> String {
    match list.as_deref() {
        Some(Value::Array(items)) => items.iter().map(go_text).collect::<Vec<_>>().join(separator),
        _ => String::new(),
    }
}

fn split(value: &str, separator: &str) -> Value {
    if separator.is_empty() {
        return value.chars().map(|c| c.to_string()).collect::<Vec<_>>().into();
    }
    value.split(separator).collect::<Vec<_>>().into()
}

/// Go's strings.Title: a letter is a capital after what separates words, which of ASCII is all but letters, digits
/// and `_`, and of the rest the blanks.
fn title(value: &str) -> String {
    let mut at_start = true;
    let capital = |c: char| {
        let separates = match c.is_ascii() {
            true => !(c.is_ascii_alphanumeric() || c == '_'),
            false => c.is_whitespace(),
        };
        let first = std::mem::replace(&mut at_start, separates);
        if first { c.to_uppercase().to_string() } else { c.to_string() }
    };
    value.chars().map(capital).collect()
}

fn pad(value: &str, before: &Item<'_>, after: &Item<'_>) -> Result<String> {
    if value.is_empty() {
        return Ok(String::new());
    }
    let blanks = |count| small(count, "a padding").map(|count| " ".repeat(count));
    Ok(format!("{}{value}{}", blanks(before)?, blanks(after)?))
}

/// The first bytes of a text; a character is not cut.
fn truncate(value: &str, count: &Item<'_>) -> Result<String> {
    let count = small(count, "a length")?;
    Ok(value[..value.floor_char_boundary(count)].to_owned())
}
