//! Go's `printf` for the values that a template has: texts, integers, floating point numbers, truth values,
//! nothing, and lists and maps of them. What does not fit is printed into the text, as Go does (`%!d(string=x)`).

use std::fmt::Write as _;

use serde_json::Value;

use super::functions::type_name;

/// Widths and precisions above which a format is refused. (Go has its limit at a million.)
pub(super) const MAX_WIDTH: usize = 10_000;

/// The flags, width and precision of one verb.
#[derive(Clone, Copy, Debug, Default)]
struct Style {
    minus: bool,
    plus: bool,
    sharp: bool,
    space: bool,
    zero: bool,
    width: usize,
    precision: Option<usize>,
}

/// Where in the arguments a format is.
struct Arguments<'v> {
    values: &'v [Option<&'v Value>],
    next: usize,
    /// Whether one was named by its number, which ends the count of what is left over.
    reordered: bool,
}

/// The text of a format and its arguments.
///
/// # Errors
/// A width or precision that is larger than [`MAX_WIDTH`].
pub(super) fn printf(format: &str, values: &[Option<&Value>]) -> Result<String, String> {
    let mut out = String::new();
    let mut arguments = Arguments { values, next: 0, reordered: false };
    let mut rest = format;
    while let Some((plain, directive)) = rest.split_once('%') {
        out.push_str(plain);
        rest = verb(directive, &mut arguments, &mut out)?;
    }
    out.push_str(rest);
    if !arguments.reordered && arguments.next < values.len() {
        let extra: Vec<String> = values[arguments.next..].iter().map(|value| typed(*value)).collect();
        let _ = write!(out, "%!(EXTRA {})", extra.join(", "));
    }
    Ok(out)
}

/// Prints what follows a `%`, and gives what follows that.
fn verb<'f>(directive: &'f str, arguments: &mut Arguments<'_>, out: &mut String) -> Result<&'f str, String> {
    let mut style = Style::default();
    let flags_end =
        directive.find(|c: char| !matches!(c, '-' | '+' | '#' | ' ' | '0')).unwrap_or(directive.len());
    for flag in directive[..flags_end].chars() {
        match flag {
            '-' => style.minus = true,
            '+' => style.plus = true,
            '#' => style.sharp = true,
            ' ' => style.space = true,
            _ => style.zero = true,
        }
    }
    style.zero &= !style.minus;
    let mut rest = &directive[flags_end..];
    let mut bad = false;
    rest = arguments.numbered(rest, &mut bad);
    if let Some(tail) = rest.strip_prefix('*') {
        rest = tail;
        match arguments.take().map(|value| value.and_then(Value::as_i64)) {
            Some(Some(width)) if width.unsigned_abs() <= MAX_WIDTH as u64 => {
                style.minus |= width < 0;
                style.zero &= width >= 0;
                style.width = usize::try_from(width.unsigned_abs()).unwrap_or(0);
            }
            _ => out.push_str("%!(BADWIDTH)"),
        }
    } else {
        let (width, tail) = digits(rest)?;
        style.width = width.unwrap_or(0);
        rest = tail;
    }
    if let Some(tail) = rest.strip_prefix('.') {
        rest = arguments.numbered(tail, &mut bad);
        if let Some(tail) = rest.strip_prefix('*') {
            rest = tail;
            match arguments.take().map(|value| value.and_then(Value::as_u64)) {
                Some(Some(precision)) if precision <= MAX_WIDTH as u64 => {
                    style.precision = usize::try_from(precision).ok();
                }
                _ => out.push_str("%!(BADPREC)"),
            }
        } else {
            let (precision, tail) = digits(rest)?;
            style.precision = Some(precision.unwrap_or(0));
            rest = tail;
        }
    }
    rest = arguments.numbered(rest, &mut bad);
    let mut chars = rest.chars();
    let Some(verb) = chars.next() else {
        out.push_str("%!(NOVERB)");
        return Ok("");
    };
    if verb == '%' {
        out.push('%');
    } else if bad {
        let _ = write!(out, "%!{verb}(BADINDEX)");
    } else {
        match arguments.take() {
            Some(value) => style.value(verb, value, out),
            None => {
                let _ = write!(out, "%!{verb}(MISSING)");
            }
        }
    }
    Ok(chars.as_str())
}

impl<'v> Arguments<'v> {
    fn take(&mut self) -> Option<Option<&'v Value>> {
        let value = self.values.get(self.next).copied();
        self.next += usize::from(value.is_some());
        value
    }

    /// Goes to the argument that `[N]` at the beginning of a text names, if it is there.
    fn numbered<'f>(&mut self, text: &'f str, bad: &mut bool) -> &'f str {
        let Some((number, tail)) = text.strip_prefix('[').and_then(|text| text.split_once(']')) else {
            return text;
        };
        self.reordered = true;
        match number.parse::<usize>() {
            Ok(number) if (1..=self.values.len()).contains(&number) => self.next = number - 1,
            _ => *bad = true,
        }
        tail
    }
}

fn digits(text: &str) -> Result<(Option<usize>, &str), String> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    if end == 0 {
        return Ok((None, text));
    }
    match text[..end].parse::<usize>() {
        Ok(number) if number <= MAX_WIDTH => Ok((Some(number), &text[end..])),
        _ => Err(format!("a width above {MAX_WIDTH}")),
    }
}

impl Style {
    fn value(self, verb: char, value: Option<&Value>, out: &mut String) {
        let value = value.unwrap_or(&Value::Null);
        match (verb, value) {
            ('T', Value::Null) => self.pad("<nil>", out),
            ('T', value) => self.pad(type_name(value), out),
            ('v', Value::Null) => self.pad("<nil>", out),
            (_, Value::Null) => {
                let _ = write!(out, "%!{verb}(<nil>)");
            }
            _ => self.print(verb, value, out),
        }
    }

    fn print(self, verb: char, value: &Value, out: &mut String) {
        match (verb, value) {
            (_, Value::Null) => {
                self.pad(if verb == 'v' && self.sharp { "interface {}(nil)" } else { "<nil>" }, out);
            }
            (_, Value::Array(items)) => {
                let go = verb == 'v' && self.sharp;
                out.push_str(if go { "[]interface {}{" } else { "[" });
                for (place, item) in items.iter().enumerate() {
                    if place > 0 {
                        out.push_str(if go { ", " } else { " " });
                    }
                    self.print(verb, item, out);
                }
                out.push(if go { '}' } else { ']' });
            }
            (_, Value::Object(map)) if super::eval::is_struct(map) => {
                out.push('{');
                for (place, (key, item)) in map.iter().enumerate() {
                    if place > 0 {
                        out.push(' ');
                    }
                    if verb == 'v' && (self.plus || self.sharp) {
                        let _ = write!(out, "{key}:");
                    }
                    self.print(verb, item, out);
                }
                out.push('}');
            }
            (_, Value::Object(map)) => {
                let go = verb == 'v' && self.sharp;
                let mut pairs: Vec<(&String, &Value)> = map.iter().collect();
                pairs.sort_by_key(|(key, _)| *key);
                out.push_str(if go { "map[string]interface {}{" } else { "map[" });
                for (place, (key, item)) in pairs.into_iter().enumerate() {
                    if place > 0 {
                        out.push_str(if go { ", " } else { " " });
                    }
                    self.text(verb, key, out);
                    out.push(':');
                    self.print(verb, item, out);
                }
                out.push(if go { '}' } else { ']' });
            }
            ('v' | 't', Value::Bool(truth)) => self.pad(if *truth { "true" } else { "false" }, out),
            (_, Value::String(text)) => self.text(verb, text, out),
            (_, Value::Number(number)) => {
                if let Some(number) = number.as_u64() {
                    self.integer(verb, false, number, value, out);
                } else if let Some(number) = number.as_i64() {
                    self.integer(verb, true, number.unsigned_abs(), value, out);
                } else {
                    self.float(verb, number.as_f64().unwrap_or_default(), value, out);
                }
            }
            (_, Value::Bool(_)) => self.mistake(verb, value, out),
        }
    }

    fn mistake(self, verb: char, value: &Value, out: &mut String) {
        let mut shown = String::new();
        self.print('v', value, &mut shown);
        let _ = write!(out, "%!{verb}({}={shown})", type_name(value));
    }

    fn text(self, verb: char, text: &str, out: &mut String) {
        let cut: String = match self.precision {
            Some(precision) => text.chars().take(precision).collect(),
            None => text.to_owned(),
        };
        match verb {
            'v' if self.sharp => self.pad(&quoted(text), out),
            'v' | 's' => self.pad(&cut, out),
            'q' if self.sharp && !cut.contains(['`', '\n', '\u{7f}']) => self.pad(&format!("`{cut}`"), out),
            'q' => self.pad(&quoted_in(&cut, '"', self.plus), out),
            'x' | 'X' => {
                let mut hex = String::new();
                let bytes = text.bytes().take(self.precision.unwrap_or(usize::MAX));
                for (place, byte) in bytes.enumerate() {
                    if place > 0 && self.space {
                        hex.push(' ');
                    }
                    if self.sharp && (self.space || place == 0) {
                        hex.push_str("0x");
                    }
                    let _ = write!(hex, "{byte:02x}");
                }
                self.pad(&if verb == 'X' { hex.to_uppercase() } else { hex }, out);
            }
            _ => self.mistake(verb, &Value::from(text), out),
        }
    }

    fn integer(self, verb: char, negative: bool, number: u64, value: &Value, out: &mut String) {
        let character = || u32::try_from(number).ok().filter(|_| !negative).and_then(char::from_u32);
        let (digits, prefix) = match verb {
            'v' | 'd' => (number.to_string(), ""),
            'b' => (format!("{number:b}"), "0b"),
            'o' => (format!("{number:o}"), "0"),
            'O' => (format!("0o{number:o}"), ""),
            'x' => (format!("{number:x}"), "0x"),
            'X' => (format!("{number:X}"), "0X"),
            'c' => return self.pad(&character().unwrap_or('\u{fffd}').to_string(), out),
            'q' => {
                let text = character().unwrap_or('\u{fffd}').to_string();
                return self.pad(&quoted_in(&text, '\'', self.plus), out);
            }
            'U' => {
                let mut text = format!("U+{number:04X}");
                if let (true, Some(c)) = (self.sharp, character().filter(|c| !c.is_control())) {
                    let _ = write!(text, " '{c}'");
                }
                return self.pad(&text, out);
            }
            _ => return self.mistake(verb, value, out),
        };
        let prefix = if self.sharp { prefix } else { "" };
        let sign = self.sign(negative);
        let wanted = match self.precision {
            Some(precision) => precision,
            None if self.zero => self.width.saturating_sub(sign.len()),
            None => 0,
        };
        let zeros = "0".repeat(wanted.saturating_sub(digits.len()));
        Self { zero: false, ..self }.pad(&format!("{sign}{prefix}{zeros}{digits}"), out);
    }

    fn float(self, verb: char, number: f64, value: &Value, out: &mut String) {
        let size = number.abs();
        let text = match verb {
            'v' => general(size, self.precision, false),
            'g' => general(size, self.precision, self.sharp),
            'G' => general(size, self.precision, self.sharp).to_uppercase(),
            'f' | 'F' => format!("{size:.*}", self.precision.unwrap_or(6)),
            'e' => exponent(&format!("{size:.*e}", self.precision.unwrap_or(6))),
            'E' => exponent(&format!("{size:.*e}", self.precision.unwrap_or(6))).to_uppercase(),
            _ => return self.mistake(verb, value, out),
        };
        let sign = self.sign(number.is_sign_negative());
        let zeros = match self.zero {
            true => "0".repeat(self.width.saturating_sub(sign.len() + text.len())),
            false => String::new(),
        };
        Self { zero: false, ..self }.pad(&format!("{sign}{zeros}{text}"), out);
    }

    fn sign(self, negative: bool) -> &'static str {
        match (negative, self.plus, self.space) {
            (true, ..) => "-",
            (false, true, _) => "+",
            (false, false, true) => " ",
            _ => "",
        }
    }

    fn pad(self, text: &str, out: &mut String) {
        let padding = self.width.saturating_sub(text.chars().count());
        let blank = if self.zero { '0' } else { ' ' };
        if !self.minus {
            out.extend(std::iter::repeat_n(blank, padding));
        }
        out.push_str(text);
        if self.minus {
            out.extend(std::iter::repeat_n(' ', padding));
        }
    }
}

/// An argument as what is left over is told: `int=3`.
fn typed(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "<nil>".to_owned(),
        Some(value) => {
            let mut text = format!("{}=", type_name(value));
            Style::default().print('v', value, &mut text);
            text
        }
    }
}

/// Go's `%v` of a value.
pub(super) fn plain(value: &Value) -> String {
    let mut text = String::new();
    Style::default().value('v', Some(value), &mut text);
    text
}

/// C's `%g`: an exponent below -4 and from the precision on; the shortest digits that mean the number, of which
/// six at most stand before it. `keeps_zeros` is `#`.
fn general(number: f64, precision: Option<usize>, keeps_zeros: bool) -> String {
    let precision = match precision {
        None if keeps_zeros => Some(6),
        other => other.map(|precision| precision.max(1)),
    };
    let scientific = match precision {
        Some(precision) => format!("{number:.*e}", precision - 1),
        None => format!("{number:e}"),
    };
    let power: i32 = scientific.split_once('e').and_then(|(_, power)| power.parse().ok()).unwrap_or(0);
    let digits = scientific.split('e').next().unwrap_or_default();
    let count = digits.bytes().filter(u8::is_ascii_digit).count();
    let mut limit = precision.unwrap_or(6);
    let significant = digits.trim_end_matches('0').bytes().filter(u8::is_ascii_digit).count();
    if precision.is_some() && !keeps_zeros && limit > significant && significant as i32 > power {
        limit = significant;
    }
    let trimmed = |text: &str| match text.contains('.') && !keeps_zeros {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text.to_owned(),
    };
    if power < -4 || power >= i32::try_from(limit).unwrap_or(i32::MAX) {
        let (digits, power) = scientific.split_once('e').unwrap_or((&scientific, "0"));
        return exponent(&format!("{}e{power}", trimmed(digits)));
    }
    let decimals = usize::try_from(i32::try_from(count).unwrap_or(0) - 1 - power).unwrap_or(0);
    let text = format!("{number:.decimals$}");
    if keeps_zeros && decimals == 0 { text + "." } else { trimmed(&text) }
}

/// Rust's exponent (`1e5`) as C's (`1e+05`).
fn exponent(text: &str) -> String {
    let (digits, power) = text.split_once('e').unwrap_or((text, "0"));
    let (sign, power) = match power.strip_prefix('-') {
        Some(power) => ('-', power),
        None => ('+', power),
    };
    format!("{digits}e{sign}{power:0>2}")
}

/// A text between double quotes, with Go's escapes.
pub(super) fn quoted(text: &str) -> String {
    quoted_in(text, '"', false)
}

fn quoted_in(text: &str, quote: char, ascii: bool) -> String {
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x0b' => out.push_str("\\v"),
            _ if c == quote || c == '\\' => out.extend(['\\', c]),
            _ if u32::from(c) < 0x20 || u32::from(c) == 0x7f => {
                let _ = write!(out, "\\x{:02x}", u32::from(c));
            }
            _ if c.is_control() || (ascii && !c.is_ascii()) => {
                let code = u32::from(c);
                let _ =
                    if code > 0xffff { write!(out, "\\U{code:08x}") } else { write!(out, "\\u{code:04x}") };
            }
            _ => out.push(c),
        }
    }
    out.push(quote);
    out
}
