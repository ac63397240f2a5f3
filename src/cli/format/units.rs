//! Sizes, durations and points in time, in the words of Docker's go-units.

use jiff::Timestamp;

/// A size in bytes with decimal units and three significant digits, as `images` and `ps -s` show
/// it: `623MB`, `1.09kB`, `0B`.
///
/// Where three digits would round up to 1000, the next unit is taken (Docker prints `1e+03MB`).
#[must_use]
pub fn human_size(bytes: u64) -> String {
    sized(bytes, 1000.0, 3, &["B", "kB", "MB", "GB", "TB", "PB", "EB"])
}

/// A size in bytes with decimal units and four significant digits, as the `prune` verbs show what
/// they freed: `1.982MB`.
#[must_use]
pub fn human_size_exact(bytes: u64) -> String {
    sized(bytes, 1000.0, 4, &["B", "kB", "MB", "GB", "TB", "PB", "EB"])
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

/// How long before `now`, in Docker's words: `2 minutes ago`. What lies in the future is
/// `Less than a second ago`.
#[must_use]
pub fn ago(then: Timestamp, now: Timestamp) -> String {
    let seconds = u64::try_from(now.as_second().saturating_sub(then.as_second())).unwrap_or(0);
    format!("{} ago", human_duration(seconds))
}

/// A time as Go prints it: `2024-01-02 03:04:05 +0000 UTC`, what `CREATED AT` shows.
#[must_use]
pub fn go_time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S +0000 UTC").to_string()
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
        assert_eq!(human_size_exact(1_982_296), "1.982MB");
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
    fn times_are_shown_as_docker_shows_them() {
        let time: Timestamp = "2024-02-29T12:34:56.789Z".parse().expect("RFC 3339");
        assert_eq!(go_time(time), "2024-02-29 12:34:56 +0000 UTC");
        let [later, earlier] =
            [180, -5].map(|seconds| Timestamp::from_second(time.as_second() + seconds).expect("in range"));
        assert_eq!(ago(time, later), "3 minutes ago");
        assert_eq!(ago(time, earlier), "Less than a second ago");
    }
}
