//! The integration tests: one binary, one small harness, tests of a few lines.
//!
//! They run the real `hostel` on images made from this machine's Debian packages, as an ordinary user;
//! `scripts/test` prepares what they need. What a machine lacks is skipped loudly, and counted.
#![expect(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]
#![expect(clippy::panic, reason = "a test says what went wrong by panicking")]

mod attacks;
mod build;
mod changes;
mod cp;
mod errors;
mod faults;
mod fixtures;
mod harness;
mod help;
mod host_root;
mod images;
mod isolation;
mod joins;
mod layering;
mod leaks;
mod life;
mod lifecycle;
mod mount;
mod net;
mod one_id;
mod parity;
mod pty;
mod reach;
mod registry;
mod remote_fs;
mod run;
mod smoke;
mod storage;
mod store;
mod terminal;
mod without_fuse;
mod work;
