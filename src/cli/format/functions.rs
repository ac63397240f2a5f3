//! The functions of templates: Go's own, and those that Docker adds (`json`, `join`, `split`,
//! `lower`, `upper`, `title`, `pad`, `truncate`), with the printing of values as Go prints them.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt::Write as _;

use serde_json::{Number, Value};

use super::eval::{Item, is_struct};

/// Widths and precisions of `printf`, and blanks of `pad`, above which a format is refused.
const MAX_WIDTH: usize = 10_000;

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

impl Function {
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "and" => Self::And,
            "or" => Self::Or,
            "not" => Self::Not,
            "len" => Self::Len,
            "index" => Self::Index,
            "slice" => Self::Slice,
            "eq" => Self::Eq,
            "ne" => Self::Ne,
            "lt" => Self::Lt,
            "le" => Self::Le,
            "gt" => Self::Gt,
            "ge" => Self::Ge,
            "print" => Self::Print,
            "printf" => Self::Printf,
            "println" => Self::Println,
            "json" => Self::Json,
            "join" => Self::Join,
            "split" => Self::Split,
            "lower" => Self::Lower,
            "upper" => Self::Upper,
            "title" => Self::Title,
            "pad" => Self::Pad,
            "truncate" => Self::Truncate,
            _ => return None,
        })
    }

    /// Whether a heading goes through unchanged (Docker's HeaderFunctions).
    pub(super) fn keeps_headings(self) -> bool {
        matches!(self, Self::Json | Self::Title | Self::Lower | Self::Upper | Self::Truncate)
    }

    /// Calls the function; `And` and `Or` are the evaluator's.
    pub(super) fn call<'a>(self, arguments: &[Item<'a>]) -> Result<Item<'a>> {
        let owned = |value: Value| Ok(Some(Cow::Owned(value)));
        match (self, arguments) {
            (Self::Not, [value]) => owned((!truth(value)).into()),
            (Self::Len, [value]) => owned(length(value)?.into()),
            (Self::Index, [value, keys @ ..]) => keys.iter().try_fold(value.clone(), index),
            (Self::Slice, [value, bounds @ ..]) => owned(slice(value, bounds)?),
            (Self::Eq, [value, others @ ..]) if !others.is_empty() => {
                owned(others.iter().any(|other| equal(value, other)).into())
            }
            (Self::Ne, [a, b]) => owned((!equal(a, b)).into()),
            (Self::Lt, [a, b]) => owned((order(a, b)? == Ordering::Less).into()),
            (Self::Le, [a, b]) => owned((order(a, b)? != Ordering::Greater).into()),
            (Self::Gt, [a, b]) => owned((order(a, b)? == Ordering::Greater).into()),
            (Self::Ge, [a, b]) => owned((order(a, b)? != Ordering::Less).into()),
            (Self::Print, values) => owned(print(values).into()),
            (Self::Println, values) => {
                let words: Vec<String> = values.iter().map(|value| text(value).into_owned()).collect();
                owned((words.join(" ") + "\n").into())
            }
            (Self::Printf, [format, values @ ..]) => owned(printf(string(format)?, values)?.into()),
            (Self::Json, [value]) => owned(super::json_compact(value).into()),
            (Self::Join, [list, separator]) => owned(join(list, string(separator)?)?.into()),
            (Self::Split, [value, separator]) => owned(split(string(value)?, string(separator)?)),
            (Self::Lower, [value]) => owned(string(value)?.to_lowercase().into()),
            (Self::Upper, [value]) => owned(string(value)?.to_uppercase().into()),
            (Self::Title, [value]) => owned(title(string(value)?).into()),
            (Self::Pad, [value, before, after]) => owned(pad(string(value)?, before, after)?.into()),
            (Self::Truncate, [value, count]) => {
                owned(string(value)?.chars().take(small(count)?).collect::<String>().into())
            }
            _ => Err(format!("{self:?} was given {} arguments, which is not what it takes", arguments.len())
                .to_lowercase()),
        }
    }
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

/// What a message calls a value.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn kind_of(value: &Item<'_>) -> &'static str {
    value.as_deref().map_or("nothing", kind)
}

/// Go's `%v`.
fn go_text(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(go_text).collect::<Vec<_>>().join(" ")),
        Value::Object(map) if is_struct(map) => {
            format!("{{{}}}", map.values().map(go_text).collect::<Vec<_>>().join(" "))
        }
        Value::Object(map) => {
            let mut pairs: Vec<(&String, &Value)> = map.iter().collect();
            pairs.sort_by_key(|(key, _)| *key);
            let pairs: Vec<String> =
                pairs.iter().map(|(key, value)| format!("{key}:{}", go_text(value))).collect();
            format!("map[{}]", pairs.join(" "))
        }
    }
}

/// Go's Sprint: a blank between two values neither of which is a string.
fn print(values: &[Item<'_>]) -> String {
    let is_string = |value: &Item<'_>| matches!(value.as_deref(), Some(Value::String(_)));
    let mut out = String::new();
    for (place, value) in values.iter().enumerate() {
        if place > 0 && !is_string(value) && !is_string(&values[place - 1]) {
            out.push(' ');
        }
        out.push_str(&text(value));
    }
    out
}

fn string<'v>(value: &'v Item<'_>) -> Result<&'v str> {
    match value.as_deref() {
        Some(Value::String(text)) => Ok(text),
        None | Some(Value::Null) => Ok(""),
        Some(other) => Err(format!("a string is needed, not {}; use json or print first", kind(other))),
    }
}

fn small(value: &Item<'_>) -> Result<usize> {
    let number = value.as_deref().and_then(Value::as_u64).and_then(|number| usize::try_from(number).ok());
    number
        .filter(|number| *number <= MAX_WIDTH)
        .ok_or_else(|| format!("a number up to {MAX_WIDTH} is needed"))
}

fn length(value: &Item<'_>) -> Result<usize> {
    match value.as_deref() {
        Some(Value::String(text)) => Ok(text.len()),
        Some(Value::Array(items)) => Ok(items.len()),
        Some(Value::Object(map)) => Ok(map.len()),
        Some(Value::Null) => Ok(0),
        _ => Err(format!("len of {}", kind_of(value))),
    }
}

fn index<'a>(value: Item<'a>, key: &Item<'a>) -> Result<Item<'a>> {
    let place = |length: usize| {
        let place = key.as_deref().and_then(Value::as_u64).and_then(|place| usize::try_from(place).ok());
        place
            .filter(|place| *place < length)
            .ok_or_else(|| format!("index {} is out of range ({length})", text(key)))
    };
    match value {
        Some(Cow::Borrowed(Value::Array(items))) => Ok(Some(Cow::Borrowed(&items[place(items.len())?]))),
        Some(Cow::Owned(Value::Array(mut items))) => {
            Ok(Some(Cow::Owned(items.swap_remove(place(items.len())?))))
        }
        Some(Cow::Borrowed(Value::Object(map))) => Ok(map.get(string(key)?).map(Cow::Borrowed)),
        Some(Cow::Owned(Value::Object(mut map))) => Ok(map.remove(string(key)?).map(Cow::Owned)),
        Some(Cow::Borrowed(Value::Null) | Cow::Owned(Value::Null)) | None => Ok(None),
        Some(Cow::Borrowed(Value::String(text))) => {
            Ok(Some(Cow::Owned(text.as_bytes()[place(text.len())?].into())))
        }
        Some(Cow::Owned(Value::String(text))) => {
            Ok(Some(Cow::Owned(text.as_bytes()[place(text.len())?].into())))
        }
        other => Err(format!("index of {}", kind_of(&other))),
    }
}

fn slice(value: &Item<'_>, bounds: &[Item<'_>]) -> Result<Value> {
    let all = length(value)?;
    let bound = |place: usize, default| bounds.get(place).map_or(Ok(default), small);
    let (start, end) = (bound(0, 0)?, bound(1, all)?);
    if start > end || end > all {
        return Err(format!("slice bounds {start}:{end} are out of range ({all})"));
    }
    match value.as_deref() {
        Some(Value::Array(items)) => Ok(items[start..end].to_vec().into()),
        Some(Value::String(text)) => {
            Ok(String::from_utf8_lossy(&text.as_bytes()[start..end]).into_owned().into())
        }
        _ => Err(format!("slice of {}", kind_of(value))),
    }
}

fn equal(a: &Item<'_>, b: &Item<'_>) -> bool {
    match (a.as_deref(), b.as_deref()) {
        (Some(Value::Number(a)), Some(Value::Number(b))) => a.as_f64() == b.as_f64(),
        (None | Some(Value::Null), None | Some(Value::Null)) => true,
        (a, b) => a == b,
    }
}

fn order(a: &Item<'_>, b: &Item<'_>) -> Result<Ordering> {
    let ordering = match (a.as_deref(), b.as_deref()) {
        (Some(Value::Number(a)), Some(Value::Number(b))) => match (a.as_i64(), b.as_i64()) {
            (Some(a), Some(b)) => Some(a.cmp(&b)),
            _ => a.as_f64().partial_cmp(&b.as_f64()),
        },
        (Some(Value::String(a)), Some(Value::String(b))) => Some(a.cmp(b)),
        _ => None,
    };
    ordering.ok_or_else(|| format!("{} and {} have no order", kind_of(a), kind_of(b)))
}

fn join(list: &Item<'_>, separator: &str) -> Result<String> {
    match list.as_deref() {
        Some(Value::Array(items)) => Ok(items.iter().map(go_text).collect::<Vec<_>>().join(separator)),
        None | Some(Value::Null) => Ok(String::new()),
        _ => Err(format!("join needs a list, not {}", kind_of(list))),
    }
}

fn split(value: &str, separator: &str) -> Value {
    if separator.is_empty() {
        return value.chars().map(|c| c.to_string()).collect::<Vec<_>>().into();
    }
    value.split(separator).collect::<Vec<_>>().into()
}

fn title(value: &str) -> String {
    let mut at_start = true;
    let capital = |c: char| {
        let first = std::mem::replace(&mut at_start, !(c.is_alphanumeric() || c == '_' || c == '\''));
        if first { c.to_uppercase().to_string() } else { c.to_string() }
    };
    value.chars().map(capital).collect()
}

fn pad(value: &str, before: &Item<'_>, after: &Item<'_>) -> Result<String> {
    if value.is_empty() {
        return Ok(String::new());
    }
    Ok(format!("{}{value}{}", " ".repeat(small(before)?), " ".repeat(small(after)?)))
}

/// Go's Sprintf for the verbs that a format has a use for: `%s %v %d %q %x %X %t %f %g %%`, with
/// `-`, `0`, width and precision. A wrong argument prints `%!d(...)` as in Go.
fn printf(format: &str, values: &[Item<'_>]) -> Result<String> {
    let mut out = String::new();
    let mut values = values.iter();
    let mut rest = format;
    while let Some((plain, directive)) = rest.split_once('%') {
        out.push_str(plain);
        let flags_end =
            directive.find(|c: char| !matches!(c, '-' | '+' | '#' | ' ' | '0')).unwrap_or(directive.len());
        let (flags, tail) = directive.split_at(flags_end);
        let (width, tail) = digits(tail)?;
        let (precision, tail) = match tail.strip_prefix('.') {
            Some(tail) => digits(tail).map(|(number, tail)| (Some(number.unwrap_or(0)), tail))?,
            None => (None, tail),
        };
        let mut chars = tail.chars();
        let Some(verb) = chars.next() else {
            out.push_str("%!(NOVERB)");
            return Ok(out);
        };
        rest = chars.as_str();
        if verb == '%' {
            out.push('%');
            continue;
        }
        let Some(value) = values.next() else {
            let _ = write!(out, "%!{verb}(MISSING)");
            continue;
        };
        let body = formatted(verb, value.as_deref().unwrap_or(&Value::Null), precision);
        let padding = width.unwrap_or(0).saturating_sub(body.chars().count());
        if flags.contains('-') {
            out.push_str(&body);
            out.extend(std::iter::repeat_n(' ', padding));
        } else {
            let zero = flags.contains('0') && matches!(verb, 'd' | 'x' | 'X' | 'f' | 'g');
            out.extend(std::iter::repeat_n(if zero { '0' } else { ' ' }, padding));
            out.push_str(&body);
        }
    }
    out.push_str(rest);
    Ok(out)
}

fn digits(text: &str) -> Result<(Option<usize>, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    if end == 0 {
        return Ok((None, text));
    }
    match text[..end].parse::<usize>() {
        Ok(number) if number <= MAX_WIDTH => Ok((Some(number), &text[end..])),
        _ => Err(format!("printf: a width above {MAX_WIDTH}")),
    }
}

fn formatted(verb: char, value: &Value, precision: Option<usize>) -> String {
    let cut = |text: String| match precision {
        Some(precision) => text.chars().take(precision).collect(),
        None => text,
    };
    match (verb, value) {
        ('v', value) => go_text(value),
        ('s', Value::Number(_) | Value::Bool(_)) => format!("%!s({})", go_text(value)),
        ('s', value) => cut(go_text(value)),
        ('q', Value::String(_)) => super::json_compact(value),
        ('d', Value::Number(number)) if number.is_i64() || number.is_u64() => number.to_string(),
        ('t', Value::Bool(value)) => value.to_string(),
        ('x', Value::String(text)) => text.bytes().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        }),
        ('x', Value::Number(number)) if number.is_u64() => {
            format!("{:x}", number.as_u64().unwrap_or_default())
        }
        ('X', Value::Number(number)) if number.is_u64() => {
            format!("{:X}", number.as_u64().unwrap_or_default())
        }
        ('f', Value::Number(number)) => {
            format!("{:.*}", precision.unwrap_or(6), Number::as_f64(number).unwrap_or_default())
        }
        ('g', Value::Number(number)) => number.to_string(),
        (verb, value) => format!("%!{verb}({})", go_text(value)),
    }
}
