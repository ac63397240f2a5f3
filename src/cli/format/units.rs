//! Sizes, durations and points in time, in the words of Docker's go-units.

use std::time::{SystemTime, UNIX_EPOCH};

const SECONDS_A_DAY: i64 = 86_400;

/// A size in bytes with decimal units and three significant digits, as `images` and `ps -s` show
/// it: `623MB`, `1.09kB`, `0B`.
///
/// Where three digits would round up to 1000, the next unit is taken (Docker prints `1e+03MB`).
#[must_use]
pub fn human_size(bytes: u64) -> String {
    sized(bytes, 1000.0, 3, &["B", "kB", "MB", "GB", "TB", "PB", "EB"])
}

/// A size in bytes with binary units and four significant digits, as `stats` and `info` show
/// memory: `1.952GiB`.
#[must_use]
pub fn human_size_binary(bytes: u64) -> String {
    sized(bytes, 1024.0, 4, &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"])
}

fn sized(bytes: u64, base: f64, digits: usize, units: &[&str]) -> String {
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= base && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    let mut text = significant(value, digits);
    let rounded_to_base = text.parse::<f64>().is_ok_and(|rounded| rounded >= base);
    if rounded_to_base && unit + 1 < units.len() {
        text = "1".to_owned();
        unit += 1;
    }
    format!("{text}{}", units[unit])
}

/// C's `%.Ng` for a value that needs no exponent: N significant digits, no trailing zeros.
fn significant(value: f64, digits: usize) -> String {
    let whole = if value < 1.0 { 1 } else { value.log10().floor() as usize + 1 };
    let text = format!("{value:.*}", digits.saturating_sub(whole));
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// A span in seconds as Docker words it: `3 seconds`, `About a minute`, `2 weeks`. `ps` puts `Up `
/// before it, tables ` ago` behind it.
#[must_use]
pub fn human_duration(seconds: u64) -> String {
    let minutes = seconds / 60;
    let hours = (seconds + 1800) / 3600;
    match (seconds, minutes, hours) {
        (0, ..) => "Less than a second".to_owned(),
        (1, ..) => "1 second".to_owned(),
        (2..60, ..) => format!("{seconds} seconds"),
        (_, 1, _) => "About a minute".to_owned(),
        (_, ..60, _) => format!("{minutes} minutes"),
        (.., 1) => "About an hour".to_owned(),
        (.., ..48) => format!("{hours} hours"),
        (.., ..336) => format!("{} days", hours / 24),
        (.., ..1440) => format!("{} weeks", hours / 24 / 7),
        (.., ..17_520) => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", seconds / 3600 / 24 / 365),
    }
}

/// A point in time: seconds and nanoseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    /// Whole seconds; negative before 1970.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanoseconds: u32,
}

impl Timestamp {
    /// The wall clock.
    #[must_use]
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { seconds: since.as_secs().try_into().unwrap_or(i64::MAX), nanoseconds: since.subsec_nanos() }
    }

    /// From RFC 3339 (`2024-01-02T03:04:05.678Z`, `...+01:00`); `None` where the text is not that.
    #[must_use]
    pub fn from_rfc3339(text: &str) -> Option<Self> {
        let (date, rest) = text.split_at_checked(10)?;
        let (clock, rest) = rest.strip_prefix(['T', 't', ' '])?.split_at_checked(8)?;
        let [year, month, day] = numbers(date, '-')?;
        let [hour, minute, second] = numbers(clock, ':')?;
        if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
            return None;
        }
        let (nanoseconds, zone) = match rest.strip_prefix('.') {
            Some(rest) => {
                let end = rest.find(|c: char| !c.is_ascii_digit())?;
                (fraction(&rest[..end])?, &rest[end..])
            }
            None => (0, rest),
        };
        let offset = match zone.as_bytes() {
            [b'Z' | b'z'] => 0,
            [sign @ (b'+' | b'-'), ..] => {
                let [hours, minutes] = numbers(&zone[1..], ':')?;
                let offset = hours * 3600 + minutes * 60;
                if *sign == b'-' { -offset } else { offset }
            }
            _ => return None,
        };
        let seconds = days_from_civil(year, month, day) * SECONDS_A_DAY + hour * 3600 + minute * 60 + second;
        Some(Self { seconds: seconds - offset, nanoseconds })
    }

    /// As RFC 3339 in UTC with as many digits after the point as are not zero, Go's RFC3339Nano:
    /// what `inspect` prints.
    #[must_use]
    pub fn rfc3339(self) -> String {
        let (year, month, day, hour, minute, second) = self.civil();
        let fraction = match self.nanoseconds {
            0 => String::new(),
            nanoseconds => format!(".{nanoseconds:09}").trim_end_matches('0').to_owned(),
        };
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z")
    }

    /// As Go prints a time: `2024-01-02 03:04:05 +0000 UTC`, what `CREATED AT` shows.
    #[must_use]
    pub fn go_style(self) -> String {
        let (year, month, day, hour, minute, second) = self.civil();
        format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} +0000 UTC")
    }

    /// How long before `now`, in Docker's words: `2 minutes ago`. What lies in the future is
    /// `Less than a second ago`.
    #[must_use]
    pub fn ago(self, now: Self) -> String {
        let seconds = u64::try_from(now.seconds.saturating_sub(self.seconds)).unwrap_or(0);
        format!("{} ago", human_duration(seconds))
    }

    fn civil(self) -> (i64, i64, i64, i64, i64, i64) {
        let (days, clock) = (self.seconds.div_euclid(SECONDS_A_DAY), self.seconds.rem_euclid(SECONDS_A_DAY));
        let (year, month, day) = civil_from_days(days);
        (year, month, day, clock / 3600, clock / 60 % 60, clock % 60)
    }
}

fn numbers<const N: usize>(text: &str, separator: char) -> Option<[i64; N]> {
    let mut fields = text.split(separator);
    let mut numbers = [0; N];
    for number in &mut numbers {
        let field = fields.next()?;
        if field.is_empty() || !field.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        *number = field.parse().ok()?;
    }
    fields.next().is_none().then_some(numbers)
}

fn fraction(digits: &str) -> Option<u32> {
    let kept = &digits[..digits.len().min(9)];
    let value: u32 = kept.parse().ok()?;
    Some(value * 10_u32.pow(9 - kept.len() as u32))
}

/// Days since 1970-01-01 of a date of the proleptic Gregorian calendar. Years are counted from
/// March, so that the leap day is a year's last; 400 years have 146,097 days.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// The inverse of [`days_from_civil`].
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits_and_decimal_units() {
        let table = [
            (0, "0B"),
            (1, "1B"),
            (999, "999B"),
            (1000, "1kB"),
            (1024, "1.02kB"),
            (1090, "1.09kB"),
            (123_456, "123kB"),
            (652_656_640, "653MB"),
            (999_900_000, "1GB"),
            (1_500_000_000, "1.5GB"),
            (u64::MAX, "18.4EB"),
        ];
        for (bytes, text) in table {
            assert_eq!(human_size(bytes), text, "{bytes}");
        }
        assert_eq!(human_size_binary(2_095_944_499), "1.952GiB");
        assert_eq!(human_size_binary(1023), "1023B");
    }

    #[test]
    fn durations_are_in_dockers_words() {
        const HOUR: u64 = 3600;
        const DAY: u64 = 24 * HOUR;
        let table = [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (119, "About a minute"),
            (120, "2 minutes"),
            (3599, "59 minutes"),
            (HOUR, "About an hour"),
            (5399, "About an hour"),
            (5400, "2 hours"),
            (47 * HOUR, "47 hours"),
            (2 * DAY, "2 days"),
            (13 * DAY, "13 days"),
            (14 * DAY, "2 weeks"),
            (59 * DAY, "8 weeks"),
            (60 * DAY, "2 months"),
            (729 * DAY, "24 months"),
            (730 * DAY, "2 years"),
        ];
        for (seconds, text) in table {
            assert_eq!(human_duration(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn rfc3339_is_read_and_written() {
        let table = [
            ("1970-01-01T00:00:00Z", 0, 0, "1970-01-01T00:00:00Z"),
            ("2024-02-29T12:34:56.789Z", 1_709_210_096, 789_000_000, "2024-02-29T12:34:56.789Z"),
            (
                "2026-11-23T14:21:21.673495845+01:00",
                1_795_440_081,
                673_495_845,
                "2026-11-23T13:21:21.673495845Z",
            ),
            ("1969-12-31T23:59:59Z", -1, 0, "1969-12-31T23:59:59Z"),
            ("0001-01-01T00:00:00Z", -62_135_596_800, 0, "0001-01-01T00:00:00Z"),
        ];
        for (text, seconds, nanoseconds, written) in table {
            let time = Timestamp::from_rfc3339(text).expect(text);
            assert_eq!(time, Timestamp { seconds, nanoseconds }, "{text}");
            assert_eq!(time.rfc3339(), written);
        }
        for bad in [
            "",
            "2024",
            "2024-13-01T00:00:00Z",
            "2024-01-01T00:00:00",
            "2024-01-01T24:00:00Z",
            "2024-01-01T00:00:00.Z",
        ] {
            assert_eq!(Timestamp::from_rfc3339(bad), None, "{bad}");
        }
        let time = Timestamp { seconds: 1_709_210_096, nanoseconds: 5 };
        assert_eq!(time.go_style(), "2024-02-29 12:34:56 +0000 UTC");
        assert_eq!(time.ago(Timestamp { seconds: time.seconds + 180, nanoseconds: 0 }), "3 minutes ago");
    }
}
