//! PAX extended header records: `LENGTH KEY=VALUE\n`, where the value may hold any bytes.

use crate::index::Timestamp;

/// A record whose length, key or end is not as it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadRecord;

/// Splits a PAX header's data into keys and values.
pub(super) fn records(data: &[u8]) -> impl Iterator<Item = Result<(&[u8], &[u8]), BadRecord>> {
    let mut rest = data;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let record = split_record(rest);
        rest = match &record {
            Some((_, _, tail)) => tail,
            None => &[],
        };
        Some(record.map(|(key, value, _)| (key, value)).ok_or(BadRecord))
    })
}

fn split_record(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = data.iter().take(20).position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(&data[..space])?).ok()?;
    if length <= space + 1 || length > data.len() {
        return None;
    }
    let (record, tail) = data.split_at(length);
    let body = record[space + 1..].strip_suffix(b"\n")?;
    let equals = body.iter().position(|byte| *byte == b'=')?;
    let (key, value) = (&body[..equals], &body[equals + 1..]);
    if key.is_empty() { None } else { Some((key, value, tail)) }
}

/// A decimal number without sign.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |value, byte| match byte {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

/// A time as PAX writes it: decimal seconds, maybe negative, maybe with a fraction. What is finer
/// than a nanosecond is cut off, towards the past.
pub(super) fn time(value: &[u8]) -> Option<Timestamp> {
    let (negative, digits) = match value.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, value),
    };
    let mut parts = digits.splitn(2, |byte| *byte == b'.');
    let whole = decimal(parts.next()?)?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let mut nanoseconds = 0u32;
    for at in 0..9 {
        nanoseconds = nanoseconds * 10 + u32::from(fraction.get(at).map_or(0, |digit| digit - b'0'));
    }
    let finer = fraction.iter().skip(9).any(|digit| *digit != b'0');
    let seconds = i64::try_from(whole).ok()?;
    if !negative {
        return Some(Timestamp { seconds, nanoseconds });
    }
    let below = u32::from(finer) + nanoseconds;
    Some(if below == 0 {
        Timestamp { seconds: -seconds, nanoseconds: 0 }
    } else {
        Timestamp { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - below }
    })
}

/// Undoes libarchive's percent encoding of xattr names.
pub(super) fn percent_decode(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len());
    let mut at = 0;
    while at < name.len() {
        let hex = |byte: u8| char::from(byte).to_digit(16);
        let decoded = match name[at..] {
            [b'%', high, low, ..] => hex(high).zip(hex(low)).map(|(high, low)| (high * 16 + low) as u8),
            _ => None,
        };
        out.push(decoded.unwrap_or(name[at]));
        at += if decoded.is_some() { 3 } else { 1 };
    }
    out
}

/// Base64 as libarchive writes xattr values: standard alphabet, padding optional.
pub(super) fn base64_decode(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3 + 3);
    let (mut bits, mut held) = (0u32, 0);
    for byte in text.iter().filter(|byte| !matches!(byte, b'=' | b'\n')) {
        let digit = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(digit);
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push((bits >> held) as u8);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Pair = (Vec<u8>, Vec<u8>);

    #[test]
    fn record_table() {
        let all = |data: &[u8]| -> Result<Vec<Pair>, BadRecord> {
            records(data).map(|record| record.map(|(k, v)| (k.to_vec(), v.to_vec()))).collect()
        };
        let pair = |key: &[u8], value: &[u8]| (key.to_vec(), value.to_vec());
        assert_eq!(all(b""), Ok(vec![]));
        assert_eq!(all(b"9 a=\nbc\n\n"), Ok(vec![pair(b"a", b"\nbc\n")]));
        assert_eq!(all(b"6 a=b\n7 cc=d\n"), Ok(vec![pair(b"a", b"b"), pair(b"cc", b"d")]));
        assert_eq!(all(b"5 a=\n"), Ok(vec![pair(b"a", b"")]));
        for bad in [
            &b"6 a=b"[..],
            b"7 a=b\n",
            b"x a=b\n",
            b" a=b\n",
            b"0 a=b\n",
            b"5 =b\n",
            b"5 ab\n",
            b"99999999999999999999 a=b\n",
            b"2 ",
            b"-6 a=b\n",
        ] {
            assert_eq!(all(bad), Err(BadRecord), "{bad:?}");
        }
    }

    #[test]
    fn times() {
        let at = |seconds, nanoseconds| Some(Timestamp { seconds, nanoseconds });
        for (text, time_) in [
            (&b"0"[..], at(0, 0)),
            (b"12.5", at(12, 500_000_000)),
            (b"12.", at(12, 0)),
            (b"1.0000000019", at(1, 1)),
            (b"-1", at(-1, 0)),
            (b"-1.5", at(-2, 500_000_000)),
            (b"-0.0000000001", at(-1, 999_999_999)),
            (b"", None),
            (b"1e3", None),
            (b"1.x", None),
            (b"--1", None),
            (b"9223372036854775808", None),
        ] {
            assert_eq!(time(text), time_, "{text:?}");
        }
    }

    #[test]
    fn encodings() {
        assert_eq!(percent_decode(b"user.a%3Db%zz%"), b"user.a=b%zz%");
        assert_eq!(base64_decode(b"AQIDBA=="), Some(vec![1, 2, 3, 4]));
        assert_eq!(base64_decode(b"AQIDBA"), Some(vec![1, 2, 3, 4]));
        assert_eq!(base64_decode(b"A!"), None);
    }
}
