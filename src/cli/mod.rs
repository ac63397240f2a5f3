//! The command line: Docker's verbs and flags, one file a verb.
//!
//! A verb's file has its `Args` (clap) and a `run` that takes the [`Context`]; it turns what was
//! typed into a request, calls the modules below, and prints. Data goes to stdout, everything else
//! to stderr. `clap` types stay in this module.

use std::path::PathBuf;
use std::process::ExitCode;

pub mod error;
pub mod format;

pub use error::{CliError, Exit};

/// What every verb gets: the global flags, decided.
#[derive(Debug)]
pub struct Context {
    /// The store's directory (`--root`, `$HOSTEL_ROOT`, `$XDG_DATA_HOME/hostel`).
    pub root: PathBuf,
}

/// What a verb's `run` returns.
pub type Outcome = Result<Exit, CliError>;

/// Runs the command line and returns its exit code.
#[must_use]
pub fn main() -> ExitCode {
    ExitCode::SUCCESS
}
