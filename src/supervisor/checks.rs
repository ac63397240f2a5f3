//! The health checks of one running container: when the next one is due, and what the last one said.
//!
//! The keeper owns it and does what it asks for; here is no process and no clock.

use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::plan::health::{Health, HealthResult, Healthcheck, MAX_OUTPUT_BYTES};

/// A check under way.
#[derive(Debug)]
struct Probe {
    start: Timestamp,
    until: Instant,
    output: Vec<u8>,
    timed_out: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Checks {
    check: Healthcheck,
    /// What is known.
    pub health: Health,
    started: Instant,
    next: Instant,
    probe: Option<Probe>,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Nothing.
    Nothing,
    /// Run a check.
    Run,
    /// Kill the one that runs: it has taken too long.
    Kill,
}

impl Checks {
    /// For a container that has started `now`.
    #[must_use]
    pub fn new(check: Healthcheck, now: Instant) -> Self {
        let health = Health::default();
        let next = now + check.wait(health.status, Duration::ZERO);
        Self { check, health, started: now, next, probe: None }
    }

    /// The command of a check.
    #[must_use]
    pub fn command(&self) -> Vec<String> {
        self.check.command().unwrap_or_default()
    }

    /// When something is due next.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        match &self.probe {
            Some(probe) if probe.timed_out => None,
            Some(probe) => Some(probe.until),
            None => Some(self.next),
        }
    }

    /// What is due `now`; it counts as done.
    pub fn due(&mut self, now: Instant) -> Due {
        match &mut self.probe {
            Some(probe) if !probe.timed_out && now >= probe.until => {
                probe.timed_out = true;
                Due::Kill
            }
            None if now >= self.next => {
                self.probe = Some(Probe {
                    start: Timestamp::now(),
                    until: now + self.check.timeout(),
                    output: Vec::new(),
                    timed_out: false,
                });
                Due::Run
            }
            _ => Due::Nothing,
        }
    }

    /// Puts off the next check: a container that is held up cannot answer.
    pub fn put_off(&mut self, now: Instant) {
        self.next = now + self.check.wait(self.health.status, now.saturating_duration_since(self.started));
    }

    /// Takes what the check prints; what is too much is dropped.
    pub fn hear(&mut self, bytes: &[u8]) {
        if let Some(probe) = &mut self.probe {
            let room = MAX_OUTPUT_BYTES - probe.output.len();
            probe.output.extend(&bytes[..bytes.len().min(room)]);
        }
    }

    /// The check has ended, or could not be run for the reason given. Whether the status has changed.
    pub fn ended(&mut self, result: Result<u8, String>, now: Instant) -> bool {
        let Some(probe) = self.probe.take() else { return false };
        let output = String::from_utf8_lossy(&probe.output).into_owned();
        let (exit_code, output) = match result {
            _ if probe.timed_out => {
                let limit = self.check.timeout().as_secs_f64();
                (-1, format!("Health check exceeded timeout ({limit}s): {output}"))
            }
            Ok(code) => (i32::from(code), output),
            Err(reason) => (-1, reason),
        };
        let result = HealthResult { start: probe.start, end: Timestamp::now(), exit_code, output };
        let changed = self.health.take(&self.check, result, now.saturating_duration_since(self.started));
        self.put_off(now);
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::health::HealthStatus;

    #[test]
    fn a_check_is_run_heard_and_killed_when_it_is_late() {
        let check =
            Healthcheck { interval: 2_000_000_000, timeout: 1_000_000_000, retries: 1, ..Default::default() };
        let start = Instant::now();
        let at = |tenths: u64| start + Duration::from_millis(tenths * 100);
        let mut checks = Checks::new(check, start);
        assert_eq!(checks.next(), Some(at(20)));
        assert_eq!(checks.due(at(19)), Due::Nothing);
        assert_eq!(checks.due(at(20)), Due::Run);
        assert_eq!(checks.due(at(25)), Due::Nothing);
        checks.hear(b"fine");
        assert!(checks.ended(Ok(0), at(26)));
        assert_eq!(
            (checks.health.status, checks.health.log[0].output.as_str()),
            (HealthStatus::Healthy, "fine")
        );
        assert_eq!(checks.next(), Some(at(46)));
        assert_eq!(checks.due(at(46)), Due::Run);
        checks.hear(&[b'x'; MAX_OUTPUT_BYTES + 1]);
        assert_eq!((checks.due(at(56)), checks.due(at(57))), (Due::Kill, Due::Nothing));
        assert!(checks.ended(Ok(137), at(57)));
        let last = checks.health.log.last().expect("a result");
        assert_eq!((last.exit_code, last.output.len()), (-1, MAX_OUTPUT_BYTES + 36));
        assert!(last.output.starts_with("Health check exceeded timeout (1s): x"));
    }
}
