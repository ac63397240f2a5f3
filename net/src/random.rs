//! Numbers that the inside cannot guess: query identifications, initial sequence numbers.

use std::hash::{BuildHasher, RandomState};

/// SipHash of a counter under keys that the system chose.
pub(crate) struct Random {
    keys: RandomState,
    counter: u64,
}

impl Random {
    pub(crate) fn new() -> Self {
        Self { keys: RandomState::new(), counter: 0 }
    }

    pub(crate) fn next_u64(&mut self) -> u64 {
        self.counter += 1;
        self.keys.hash_one(self.counter)
    }

    pub(crate) fn next_u16(&mut self) -> u16 {
        self.next_u64() as u16
    }
}
