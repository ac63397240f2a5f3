//! How a failed command speaks and with which code it ends.
//!
//! Libraries below return small typed errors; here, at the edge, each becomes a message of three
//! parts: what failed on what, the chain of causes, and a hint that names the next step.

use std::error::Error;

/// Exit codes as Docker documents them (`docker run` reference, "Exit status").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The command did what was asked.
    Success,
    /// A verb other than run, create, start and exec failed.
    Failure,
    /// A template of `inspect`, `info`, `version` or `events` that cannot be read.
    Usage,
    /// The engine itself failed before the container's command ran; also wrong flags of `run`.
    Engine,
    /// The container's command cannot be executed.
    NotExecutable,
    /// The container's command was not found.
    NotFound,
    /// The container's own exit code, 128+n when a signal ended it.
    Container(u8),
}

impl Exit {
    /// The number given to the shell.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Failure => 1,
            Self::Usage => 64,
            Self::Engine => 125,
            Self::NotExecutable => 126,
            Self::NotFound => 127,
            Self::Container(code) => code,
        }
    }
}

/// A failed command: its exit code, message and hint.
#[derive(Debug)]
pub struct CliError {
    /// The code to end with.
    pub exit: Exit,
    message: String,
    hint: Option<String>,
}

impl CliError {
    /// An error with exit code 1 and a message of its own.
    pub fn new(message: impl Into<String>) -> Self {
        Self { exit: Exit::Failure, message: message.into(), hint: None }
    }

    /// From a library's error: its text and those of its sources, joined by `: `.
    pub fn from_error(error: &(dyn Error + 'static)) -> Self {
        Self::new(crate::sandbox::chain(error))
    }

    /// The same error with another exit code.
    #[must_use]
    pub fn with_exit(mut self, exit: Exit) -> Self {
        self.exit = exit;
        self
    }

    /// The same error with a next step for the reader.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The message alone.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What goes to stderr, without a final newline.
    #[must_use]
    pub fn render(&self) -> String {
        // A message may quote what a registry, an image or a file is called.
        let message = super::harmless::text(&self.message);
        match &self.hint {
            Some(hint) => format!("Error: {message}\nHint: {}", super::harmless::text(hint)),
            None => format!("Error: {message}"),
        }
    }
}

impl<E: Error + 'static> From<E> for CliError {
    fn from(error: E) -> Self {
        Self::from_error(&error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_dockers() {
        let table = [
            (Exit::Success, 0),
            (Exit::Failure, 1),
            (Exit::Usage, 64),
            (Exit::Engine, 125),
            (Exit::NotExecutable, 126),
            (Exit::NotFound, 127),
            (Exit::Container(137), 137),
        ];
        for (exit, code) in table {
            assert_eq!(exit.code(), code);
        }
    }

    #[test]
    fn a_message_has_its_causes_and_hint() {
        let io = std::io::Error::other("disk on fire");
        let error = CliError::from(io).with_hint("call somebody");
        assert_eq!(error.render(), "Error: disk on fire\nHint: call somebody");
    }
}
