//! Restart policies: when a container that has ended is started again, and after how long.
//!
//! The rules are moby's (its `restartmanager`): the wait begins at 100 ms, doubles with each restart up to a
//! minute, and begins anew once a life has lasted ten seconds. What was stopped by hand stays stopped.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The wait before the first restart.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// The longest wait.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// A life that lasts so long was not a failed start: the next wait is the first one again.
const SETTLED_AFTER: Duration = Duration::from_secs(10);

/// `--restart`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// It stays down.
    #[default]
    No,
    /// Whatever its exit code.
    Always,
    /// As `Always`; `system start-all` passes over one that was stopped by hand.
    UnlessStopped,
    /// When its exit code is not 0, at most so many times; 0 for no limit.
    OnFailure(u32),
}

/// A policy that is none, in Docker's words.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum InvalidRestartPolicy {
    /// The text after the colon.
    #[error("invalid restart policy format: maximum retry count must be an integer")]
    Count,
    /// A negative number after the colon.
    #[error("invalid restart policy: maximum retry count cannot be negative")]
    Negative,
    /// A number where the policy has none.
    #[error("invalid restart policy: maximum retry count can only be used with 'on-failure'")]
    CountOfOther,
    /// The word.
    #[error(
        "invalid restart policy: unknown policy '{0}'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
    )]
    Unknown(String),
}

impl RestartPolicy {
    /// Reads `no`, `always`, `unless-stopped`, `on-failure`, `on-failure:5`.
    ///
    /// # Errors
    /// Anything else.
    pub fn parse(text: &str) -> Result<Self, InvalidRestartPolicy> {
        let (name, count) = match text.split_once(':') {
            Some((name, count)) => (name, Some(count)),
            None => (text, None),
        };
        let count =
            count.map(|count| count.parse::<i64>().map_err(|_| InvalidRestartPolicy::Count)).transpose()?;
        let policy = match name {
            "no" | "" => Self::No,
            "always" => Self::Always,
            "unless-stopped" => Self::UnlessStopped,
            "on-failure" => {
                let count = u32::try_from(count.unwrap_or(0)).map_err(|_| InvalidRestartPolicy::Negative)?;
                return Ok(Self::OnFailure(count));
            }
            _ => return Err(InvalidRestartPolicy::Unknown(name.to_owned())),
        };
        match count {
            None | Some(0) => Ok(policy),
            Some(_) => Err(InvalidRestartPolicy::CountOfOther),
        }
    }

    /// Docker's word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Always => "always",
            Self::UnlessStopped => "unless-stopped",
            Self::OnFailure(_) => "on-failure",
        }
    }

    /// The limit of restarts, 0 for none.
    #[must_use]
    pub fn max_retries(self) -> u32 {
        match self {
            Self::OnFailure(count) => count,
            _ => 0,
        }
    }
}

/// How one life of a container ended.
#[derive(Clone, Copy, Debug)]
pub struct Life {
    /// How long it lasted.
    pub lasted: Duration,
    /// Its exit code.
    pub code: u8,
    /// `stop` or `kill` ended it, or tried to.
    pub stopped_by_hand: bool,
}

/// The restarts of one container since it was started by hand.
#[derive(Clone, Copy, Debug, Default)]
pub struct Restarts {
    /// How many there were.
    pub count: u32,
    wait: Option<Duration>,
}

impl Restarts {
    /// How long to wait before the next start; `None` when there is none.
    pub fn after(&mut self, policy: RestartPolicy, life: Life) -> Option<Duration> {
        if life.lasted >= SETTLED_AFTER {
            self.wait = None;
        }
        let again = match policy {
            _ if life.stopped_by_hand => false,
            RestartPolicy::No => false,
            RestartPolicy::Always | RestartPolicy::UnlessStopped => true,
            RestartPolicy::OnFailure(limit) => life.code != 0 && (limit == 0 || self.count < limit),
        };
        if !again {
            return None;
        }
        let wait = self.wait.map_or(FIRST_WAIT, |wait| (wait * 2).min(LONGEST_WAIT));
        self.wait = Some(wait);
        self.count += 1;
        Some(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_read() {
        use RestartPolicy::{Always, No, OnFailure, UnlessStopped};
        for (text, policy) in [
            ("", No),
            ("no", No),
            ("always", Always),
            ("always:0", Always),
            ("unless-stopped", UnlessStopped),
            ("on-failure", OnFailure(0)),
            ("on-failure:7", OnFailure(7)),
        ] {
            assert_eq!(RestartPolicy::parse(text), Ok(policy), "{text}");
        }
        for (text, message) in [
            ("on-failure:x", "invalid restart policy format: maximum retry count must be an integer"),
            ("on-failure:-1", "invalid restart policy: maximum retry count cannot be negative"),
            ("always:3", "invalid restart policy: maximum retry count can only be used with 'on-failure'"),
            (
                "sometimes",
                "invalid restart policy: unknown policy 'sometimes'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'",
            ),
        ] {
            assert_eq!(
                RestartPolicy::parse(text).map_err(|error| error.to_string()),
                Err(message.to_owned())
            );
        }
    }

    fn life(lasted_s: u64, code: u8) -> Life {
        Life { lasted: Duration::from_secs(lasted_s), code, stopped_by_hand: false }
    }

    #[test]
    fn waits_double_up_to_a_minute_and_begin_anew() {
        let mut restarts = Restarts::default();
        let waits: Vec<u128> = (0..12)
            .map(|_| restarts.after(RestartPolicy::Always, life(0, 0)).expect("always").as_millis())
            .collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 51_200, 60_000, 60_000]);
        assert_eq!(restarts.after(RestartPolicy::Always, life(10, 0)), Some(FIRST_WAIT));
        assert_eq!(restarts.count, 13);
    }

    #[test]
    fn who_is_restarted() {
        let mut restarts = Restarts::default();
        assert_eq!(restarts.after(RestartPolicy::No, life(0, 1)), None);
        assert_eq!(restarts.after(RestartPolicy::OnFailure(0), life(0, 0)), None);
        let by_hand = Life { stopped_by_hand: true, ..life(0, 1) };
        assert_eq!(restarts.after(RestartPolicy::Always, by_hand), None);
        for _ in 0..3 {
            assert!(restarts.after(RestartPolicy::OnFailure(3), life(0, 1)).is_some());
        }
        assert_eq!(restarts.after(RestartPolicy::OnFailure(3), life(0, 1)), None);
        assert_eq!(restarts.count, 3);
    }
}
