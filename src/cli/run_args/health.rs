//! `--health-*` and `--no-healthcheck`.

use std::time::Duration;

use clap::Args;

use super::process::parse_int;
use super::{invalid_argument, refused};
use crate::cli::CliError;
use crate::plan::health::Healthcheck;

/// The shortest interval that Docker takes, in nanoseconds.
const SHORTEST_NANOS: u64 = 1_000_000;

/// The flags.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct HealthArgs {
    /// Command to run to check health
    #[arg(long, value_name = "COMMAND")]
    health_cmd: Option<String>,
    /// Time between running the check (ms|s|m|h) (default 30s)
    #[arg(long, value_name = "DURATION")]
    health_interval: Option<String>,
    /// Consecutive failures needed to report unhealthy (default 3)
    #[arg(long, value_name = "NUMBER")]
    health_retries: Option<String>,
    /// Time between running the check during the start period (ms|s|m|h) (default 5s)
    #[arg(long, value_name = "DURATION")]
    health_start_interval: Option<String>,
    /// Start period for the container to initialize before counting failures (ms|s|m|h) (default 0s)
    #[arg(long, value_name = "DURATION")]
    health_start_period: Option<String>,
    /// Maximum time to allow one check to run (ms|s|m|h) (default 30s)
    #[arg(long, value_name = "DURATION")]
    health_timeout: Option<String>,
    /// Disable any container-specified HEALTHCHECK
    #[arg(long)]
    no_healthcheck: bool,
}

impl HealthArgs {
    pub(super) fn parse(self) -> Result<Option<Healthcheck>, CliError> {
        let check = Healthcheck {
            test: match &self.health_cmd {
                Some(line) if line == "none" => vec!["NONE".into()], // podman's word
                Some(line) if !line.is_empty() => command(line),
                _ => Vec::new(),
            },
            interval: duration("--health-interval", "Interval", self.health_interval.as_deref())?,
            timeout: duration("--health-timeout", "Timeout", self.health_timeout.as_deref())?,
            start_period: duration(
                "--health-start-period",
                "StartPeriod",
                self.health_start_period.as_deref(),
            )?,
            start_interval: duration(
                "--health-start-interval",
                "StartInterval",
                self.health_start_interval.as_deref(),
            )?,
            retries: match self.health_retries.as_deref() {
                None => 0,
                Some(text) => u32::try_from(parse_int("--health-retries", text)?)
                    .map_err(|_| refused("--health-retries cannot be negative"))?,
            },
        };
        if self.no_healthcheck {
            if check != Healthcheck::default() {
                return Err(refused("--no-healthcheck conflicts with --health-* options"));
            }
            return Ok(Some(Healthcheck { test: vec!["NONE".into()], ..check }));
        }
        Ok((check != Healthcheck::default()).then_some(check))
    }
}

/// A line for the shell, or, as podman has it, a JSON array of words.
fn command(line: &str) -> Vec<String> {
    match serde_json::from_str::<Vec<String>>(line) {
        Ok(words)
            if words.first().is_some_and(|word| ["CMD", "CMD-SHELL", "NONE"].contains(&word.as_str())) =>
        {
            words
        }
        Ok(words) if !words.is_empty() => std::iter::once("CMD".to_owned()).chain(words).collect(),
        _ => vec!["CMD-SHELL".into(), line.to_owned()],
    }
}

fn duration(flag: &str, name: &str, text: Option<&str>) -> Result<u64, CliError> {
    let Some(text) = text else { return Ok(0) };
    let parsed = parse_duration(text)
        .ok_or_else(|| invalid_argument(flag, text, format!("time: invalid duration {text:?}")))?;
    let nanos = u64::try_from(parsed.as_nanos()).map_err(|_| refused(format!("{flag} is too long")))?;
    if nanos > 0 && nanos < SHORTEST_NANOS {
        return Err(refused(format!("{name} in Healthcheck cannot be less than 1ms")));
    }
    Ok(nanos)
}

/// A duration in Go's notation: `1h30m`, `1.5s`, `250ms`, `0`.
#[must_use]
pub(in crate::cli) fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        rest = &rest[end..];
        total = total.checked_add(Duration::try_from_secs_f64(number * unit).ok()?)?;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        for (text, millis) in
            [("1h30m", 5_400_000), ("1.5s", 1500), ("250ms", 250), ("0", 0), ("1m0.5s", 60_500)]
        {
            assert_eq!(parse_duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "5", "s", "1x", "-1s", "1 s"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn checks_are_read() {
        let parse = |args: HealthArgs| args.parse().map_err(|error| error.message().to_owned());
        assert_eq!(parse(HealthArgs::default()), Ok(None));
        let args = HealthArgs {
            health_cmd: Some("test -e /ok".into()),
            health_interval: Some("2s".into()),
            health_retries: Some("4".into()),
            ..HealthArgs::default()
        };
        let check = parse(args.clone()).expect("valid").expect("a check");
        assert_eq!(
            (check.test.join("|"), check.interval, check.retries),
            ("CMD-SHELL|test -e /ok".into(), 2_000_000_000, 4)
        );
        let list = HealthArgs { health_cmd: Some("[\"a\", \"b c\"]".into()), ..HealthArgs::default() };
        assert_eq!(parse(list).expect("valid").expect("a check").test, ["CMD", "a", "b c"]);
        for (args, message) in [
            (
                HealthArgs { no_healthcheck: true, ..args },
                "--no-healthcheck conflicts with --health-* options",
            ),
            (
                HealthArgs { health_timeout: Some("1us".into()), ..HealthArgs::default() },
                "Timeout in Healthcheck cannot be less than 1ms",
            ),
            (
                HealthArgs { health_interval: Some("soon".into()), ..HealthArgs::default() },
                "invalid argument \"soon\" for \"--health-interval\" flag: time: invalid duration \"soon\"",
            ),
            (
                HealthArgs { health_retries: Some("-1".into()), ..HealthArgs::default() },
                "--health-retries cannot be negative",
            ),
        ] {
            assert_eq!(parse(args), Err(message.to_owned()));
        }
    }
}
