//! A keeper and a server that have nothing left to set up let go of what only that needed.
//!
//! Most of a container's life its two processes wait. What they leave mapped from their start would
//! count as theirs all that time, container by container.

use std::time::{Duration, Instant};

use nix::poll::PollTimeout;

use crate::sys;

/// How long after its start a process rests. Later than the end of most short commands, which so
/// pay nothing for it.
const AFTER: Duration = Duration::from_millis(300);

/// How long poll(2) may wait for `at` to come; a millisecond more, so that it has come then.
pub(super) fn timeout_until(at: Instant) -> PollTimeout {
    let left = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
    PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
}

/// When to rest, once.
#[derive(Clone, Copy, Debug)]
pub struct Rest(Option<Instant>);

impl Rest {
    /// Counts from now.
    #[must_use]
    pub fn after_start() -> Self {
        Self(Some(Instant::now() + AFTER))
    }

    /// Until when a wait for events may last; `None` once rested.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.0
    }

    /// Rests if it is time.
    pub fn take(&mut self) {
        if self.0.is_some_and(|due| due <= Instant::now()) {
            self.0 = None;
            sys::memory::release_freed();
            sys::memory::release_code();
        }
    }
}
