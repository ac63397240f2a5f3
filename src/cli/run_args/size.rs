//! Sizes and counts as Docker writes them: `64m`, `1.5GiB`, `0.5` of a CPU.

/// A size in bytes; the units are powers of 1024 whether written `k`, `kb` or `KiB`.
///
/// # Errors
/// Docker's words for what is wrong.
pub(in crate::cli) fn parse_bytes(text: &str) -> Result<u64, String> {
    let end = text
        .rfind(|c: char| c.is_ascii_digit() || c == '.' || c == ' ')
        .ok_or_else(|| format!("invalid size: '{text}'"))?;
    let (number, suffix) =
        if text[end..].starts_with(' ') { (&text[..end], &text[end + 1..]) } else { text.split_at(end + 1) };
    let size: f64 =
        number.parse().map_err(|_| format!("strconv.ParseFloat: parsing {number:?}: invalid syntax"))?;
    if size < 0.0 {
        return Err(format!("invalid size: '{text}'"));
    }
    let suffix = suffix.to_ascii_lowercase();
    let bad_suffix = || format!("invalid suffix: '{suffix}'");
    let shift = match suffix.as_str() {
        "" | "b" => 0,
        _ => {
            let (unit, rest) = suffix.split_at_checked(1).ok_or_else(bad_suffix)?;
            if !matches!(rest, "" | "b" | "ib") {
                return Err(bad_suffix());
            }
            let power = "kmgtp".find(unit).ok_or_else(bad_suffix)?;
            10 * (power + 1)
        }
    };
    let bytes = size * (1_u64 << shift) as f64;
    // Also catches NaN and infinity.
    if !(0.0..9.2e18).contains(&bytes) {
        return Err(format!("invalid size: '{text}'"));
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked just above")]
    Ok(bytes as u64)
}

/// CPUs in billionths: `1.5` is 1,500,000,000.
///
/// # Errors
/// Docker's words for what is wrong.
pub(super) fn parse_cpus(text: &str) -> Result<u64, String> {
    const DIGITS: usize = 9;
    let not_a_number = || format!("failed to parse {text} as a rational number");
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if !(digits(whole) && digits(fraction)) || whole.len() + fraction.len() == 0 {
        return Err(not_a_number());
    }
    let fraction = fraction.trim_end_matches('0');
    if fraction.len() > DIGITS {
        return Err("value is too precise".into());
    }
    format!("{whole}{fraction:0<DIGITS$}").parse().map_err(|_| not_a_number())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let table = [
            ("0", 0),
            ("64", 64),
            ("64b", 64),
            ("64k", 64 << 10),
            ("64Kb", 64 << 10),
            ("64 KiB", 64 << 10),
            ("1.5g", 3 << 29),
            ("2T", 2 << 40),
            ("1p", 1 << 50),
        ];
        for (text, bytes) in table {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        let table = [
            ("", "invalid size: ''"),
            ("m", "invalid size: 'm'"),
            ("-1", "invalid size: '-1'"),
            ("1x", "invalid suffix: 'x'"),
            ("1kx", "invalid suffix: 'kx'"),
            ("1bb", "invalid suffix: 'bb'"),
            ("1é", "invalid suffix: 'é'"),
            ("a1", "strconv.ParseFloat: parsing \"a1\": invalid syntax"),
            ("99999999999p", "invalid size: '99999999999p'"),
        ];
        for (text, message) in table {
            assert_eq!(parse_bytes(text), Err(message.into()), "{text}");
        }
    }

    #[test]
    fn cpus() {
        let table = [
            ("1", 1_000_000_000),
            ("1.5", 1_500_000_000),
            (".5", 500_000_000),
            ("0.000000001", 1),
            ("2.", 2_000_000_000),
        ];
        for (text, nanos) in table {
            assert_eq!(parse_cpus(text), Ok(nanos), "{text}");
        }
        assert_eq!(parse_cpus("x"), Err("failed to parse x as a rational number".into()));
        assert_eq!(parse_cpus("."), Err("failed to parse . as a rational number".into()));
        assert_eq!(parse_cpus("-1"), Err("failed to parse -1 as a rational number".into()));
        assert_eq!(parse_cpus("0.0000000001"), Err("value is too precise".into()));
    }
}
