//! The gateway's time: microseconds since it started, read once a turn and passed down.

use std::cell::Cell;

use smoltcp::time::Instant;

use crate::wheel::Tick;

/// A moment since the gateway started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Now(Instant);

impl Now {
    /// The moment so many microseconds after the start.
    #[must_use]
    pub fn from_micros(micros: u64) -> Self {
        Self(Instant::from_micros(micros.min(i64::MAX as u64) as i64))
    }

    pub(crate) fn instant(self) -> Instant {
        self.0
    }

    /// Whole milliseconds, as the timer wheels count.
    pub(crate) fn tick(self) -> Tick {
        self.0.total_millis().max(0) as Tick
    }
}

/// The first tick at or after an instant.
pub(crate) fn tick_at_or_after(instant: Instant) -> Tick {
    (instant.total_micros().max(0) as u64).div_ceil(1_000)
}

thread_local! {
    static TIMESTAMP: Cell<u32> = const { Cell::new(0) };
}

/// Sets what [`timestamp`] answers on this thread.
pub(crate) fn set_timestamp(now: Now) {
    TIMESTAMP.set(now.tick() as u32);
}

/// The value of TCP's time stamp option (RFC 7323): milliseconds. smoltcp takes a plain function
/// for it, so the time cannot be passed in here. It must never go back from one connection to the
/// next: that is how the kernel inside tells a new SYN from an old one in TIME-WAIT.
pub(crate) fn timestamp() -> u32 {
    TIMESTAMP.get()
}
