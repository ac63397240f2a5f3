//! What goes wrong in a build.

use std::io;

use thiserror::Error;

use crate::image::ImageError;
use crate::plan::dockerfile::{ParseError, Place};
use crate::store::StoreError;

/// Why a step failed, in words. It may have come from another process.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{message}")]
pub struct Problem {
    message: String,
}

impl Problem {
    #[expect(clippy::needless_pass_by_value, reason = "errors and texts are handed over as they come")]
    pub(super) fn new(message: impl ToString) -> Self {
        Self { message: message.to_string() }
    }

    /// An error with all its causes.
    pub(super) fn chain(error: &dyn std::error::Error) -> Self {
        Self { message: crate::sandbox::chain(error) }
    }
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        Self::chain(&error)
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        Self::chain(&error)
    }
}

impl From<ImageError> for Problem {
    fn from(error: ImageError) -> Self {
        Self::chain(&error)
    }
}

/// Why a build failed.
#[derive(Debug, Error)]
pub enum BuildError {
    /// The Dockerfile is wrong.
    #[error(transparent)]
    Parse(#[from] ParseError),
    /// A step failed. What it printed last has been shown.
    #[error("{problem}")]
    Step {
        /// Why.
        problem: Problem,
        /// The instruction's lines; none where it is another image's.
        place: Place,
    },
    /// Something outside of the steps.
    #[error(transparent)]
    Other(#[from] Problem),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The result cannot be made.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The system.
    #[error("cannot {action}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// SIGINT or SIGTERM came.
    #[error("Canceled: context canceled")]
    Cancelled,
}

impl BuildError {
    /// The lines of the Dockerfile that it is about.
    #[must_use]
    pub fn place(&self) -> Place {
        match self {
            Self::Parse(error) => error.place,
            Self::Step { place, .. } => *place,
            _ => Place::NONE,
        }
    }
}
