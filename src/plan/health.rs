//! Health checks: what an image or `--health-*` asks for, and what comes of the results.
//!
//! The rules are moby's (`daemon/health.go`): a success makes a container healthy at once, so many failures in
//! a row make it unhealthy, and failures of the start period do not count until there was a success.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Between checks, unless said otherwise.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(30);
/// For one check, unless said otherwise.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// Between checks of the start period, unless said otherwise.
const DEFAULT_START_INTERVAL: Duration = Duration::from_secs(5);
/// Failures in a row that make a container unhealthy, unless said otherwise.
const DEFAULT_RETRIES: u32 = 3;
/// Results that are kept: Docker's number.
const KEPT_RESULTS: usize = 5;
/// Bytes of a check's output that are kept: Docker's number.
pub const MAX_OUTPUT_BYTES: usize = 4096;
/// The shell of `CMD-SHELL`.
const SHELL: [&str; 2] = ["/bin/sh", "-c"];

/// A health check as an image's configuration has it. Durations are nanoseconds, 0 for the default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Healthcheck {
    /// `NONE`, `CMD` and arguments, or `CMD-SHELL` and a line for the shell; empty inherits.
    pub test: Vec<String>,
    /// Between checks.
    pub interval: u64,
    /// For one check.
    pub timeout: u64,
    /// While failures do not count.
    pub start_period: u64,
    /// Between checks of the start period.
    pub start_interval: u64,
    /// Failures in a row that make it unhealthy.
    pub retries: u32,
}

impl Healthcheck {
    /// This one with what it leaves open taken from the image's; `None` when nothing is checked.
    #[must_use]
    pub fn merged(asked: Option<&Self>, of_image: Option<&Self>) -> Option<Self> {
        let merged = match (asked, of_image) {
            (Some(asked), Some(image)) => {
                let or = |own: u64, other: u64| if own == 0 { other } else { own };
                Self {
                    test: if asked.test.is_empty() { image.test.clone() } else { asked.test.clone() },
                    interval: or(asked.interval, image.interval),
                    timeout: or(asked.timeout, image.timeout),
                    start_period: or(asked.start_period, image.start_period),
                    start_interval: or(asked.start_interval, image.start_interval),
                    retries: if asked.retries == 0 { image.retries } else { asked.retries },
                }
            }
            (Some(only), None) | (None, Some(only)) => only.clone(),
            (None, None) => return None,
        };
        merged.command().is_some().then_some(merged)
    }

    /// What a check runs; `None` for no check.
    #[must_use]
    pub fn command(&self) -> Option<Vec<String>> {
        let (kind, rest) = self.test.split_first()?;
        match kind.as_str() {
            "CMD" if !rest.is_empty() => Some(rest.to_vec()),
            "CMD-SHELL" if !rest.is_empty() => {
                Some(SHELL.into_iter().map(str::to_owned).chain([rest.join(" ")]).collect())
            }
            _ => None,
        }
    }

    /// How long one check may take.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        or_default(self.timeout, DEFAULT_TIMEOUT)
    }

    /// How long to wait before the next check, so long after the start.
    #[must_use]
    pub fn wait(&self, status: HealthStatus, since_start: Duration) -> Duration {
        let starting =
            status == HealthStatus::Starting && since_start < Duration::from_nanos(self.start_period);
        if starting {
            or_default(self.start_interval, DEFAULT_START_INTERVAL)
        } else {
            or_default(self.interval, DEFAULT_INTERVAL)
        }
    }

    fn retries(&self) -> u32 {
        if self.retries == 0 { DEFAULT_RETRIES } else { self.retries }
    }
}

fn or_default(nanos: u64, default: Duration) -> Duration {
    if nanos == 0 { default } else { Duration::from_nanos(nanos) }
}

/// What is known of a container's health.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthStatus {
    /// No result counts yet.
    #[default]
    Starting,
    /// The last counted result was a success.
    Healthy,
    /// Too many failures in a row.
    Unhealthy,
}

impl HealthStatus {
    /// Docker's word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// One check's result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct HealthResult {
    /// When it was started.
    pub start: Timestamp,
    /// When it ended.
    pub end: Timestamp,
    /// Its exit code; -1 when it could not be run or took too long.
    pub exit_code: i32,
    /// What it printed, cut to [`MAX_OUTPUT_BYTES`].
    pub output: String,
}

/// A container's health: what `inspect` shows as `.State.Health`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Health {
    /// In a word.
    pub status: HealthStatus,
    /// Failures in a row.
    pub failing_streak: u32,
    /// The last results, oldest first.
    pub log: Vec<HealthResult>,
}

impl Health {
    /// Takes a result in; whether the status has changed by it.
    pub fn take(&mut self, check: &Healthcheck, result: HealthResult, since_start: Duration) -> bool {
        let before = self.status;
        if result.exit_code == 0 {
            self.failing_streak = 0;
            self.status = HealthStatus::Healthy;
        } else {
            let forgiven = self.status == HealthStatus::Starting
                && since_start < Duration::from_nanos(check.start_period);
            if !forgiven {
                self.failing_streak += 1;
                if self.failing_streak >= check.retries() {
                    self.status = HealthStatus::Unhealthy;
                }
            }
        }
        self.log.push(result);
        let excess = self.log.len().saturating_sub(KEPT_RESULTS);
        self.log.drain(..excess);
        before != self.status
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn result(exit_code: i32) -> HealthResult {
        HealthResult {
            start: Timestamp::UNIX_EPOCH,
            end: Timestamp::UNIX_EPOCH,
            exit_code,
            output: String::new(),
        }
    }

    #[test]
    fn results_move_the_status() {
        let check = Healthcheck { start_period: 10 * SECOND, retries: 2, ..Healthcheck::default() };
        let mut health = Health::default();
        // (exit code, seconds since the start) -> (status, streak, changed)
        for (code, at, status, streak, changed) in [
            (1, 1, HealthStatus::Starting, 0, false),
            (1, 9, HealthStatus::Starting, 0, false),
            (1, 11, HealthStatus::Starting, 1, false),
            (0, 12, HealthStatus::Healthy, 0, true),
            (1, 13, HealthStatus::Healthy, 1, false),
            (1, 14, HealthStatus::Unhealthy, 2, true),
            (7, 15, HealthStatus::Unhealthy, 3, false),
            (0, 16, HealthStatus::Healthy, 0, true),
        ] {
            let moved = health.take(&check, result(code), Duration::from_secs(at));
            assert_eq!((health.status, health.failing_streak, moved), (status, streak, changed), "at {at} s");
        }
        assert_eq!(health.log.len(), KEPT_RESULTS);
    }

    #[test]
    fn a_success_in_the_start_period_ends_its_mercy() {
        let check = Healthcheck { start_period: 60 * SECOND, retries: 1, ..Healthcheck::default() };
        let mut health = Health::default();
        health.take(&check, result(0), Duration::from_secs(1));
        assert!(health.take(&check, result(1), Duration::from_secs(2)));
        assert_eq!(health.status, HealthStatus::Unhealthy);
    }

    #[test]
    fn flags_go_before_the_image() {
        let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let image = Healthcheck {
            test: words(&["CMD-SHELL", "a b"]),
            interval: 5,
            retries: 9,
            ..Healthcheck::default()
        };
        let asked = Healthcheck { retries: 1, ..Healthcheck::default() };
        let merged = Healthcheck::merged(Some(&asked), Some(&image)).expect("a check");
        assert_eq!((merged.interval, merged.retries), (5, 1));
        assert_eq!(merged.command(), Some(words(&["/bin/sh", "-c", "a b"])));
        let none = Healthcheck { test: words(&["NONE"]), ..Healthcheck::default() };
        assert_eq!(Healthcheck::merged(Some(&none), Some(&image)), None);
        assert_eq!(Healthcheck::merged(None, None), None);
        assert_eq!(Healthcheck::merged(Some(&asked), None), None);
        assert_eq!(merged.wait(HealthStatus::Healthy, Duration::ZERO), Duration::from_nanos(5));
    }
}
