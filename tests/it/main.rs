//! The integration tests: one binary, one small harness, tests of a few lines.
//!
//! They run the real `hostel` on images made from this machine's Debian packages, as an ordinary user;
//! `scripts/test` prepares what they need. What a machine lacks is skipped loudly, and counted.
#![expect(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

mod layering;
