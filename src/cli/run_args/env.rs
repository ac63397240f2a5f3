//! `-e` and `--env-file`, shared with `exec`.

use std::path::PathBuf;

use clap::Args;

use super::{Caller, files, invalid_argument};
use crate::cli::{CliError, Exit};
use crate::plan::request::EnvSetting;

/// The environment's flags.
#[derive(Args, Clone, Debug, Default)]
pub struct EnvArgs {
    /// Set environment variables
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Read in a file of environment variables
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
}

impl EnvArgs {
    /// The settings in the order in which they count: the files', then the flags'.
    ///
    /// `NAME` alone takes the caller's value. Where the caller has none, `-e NAME` takes the
    /// variable away, and a line of a file does nothing: Docker's rules.
    ///
    /// # Errors
    /// A setting without a name; a file that cannot be read or has a wrong line.
    pub fn parse(self, caller: &Caller<'_>) -> Result<Vec<EnvSetting>, CliError> {
        let mut settings = Vec::new();
        for path in &self.env_file {
            let lines =
                files::read_settings(path).map_err(|error| CliError::from(error).with_exit(Exit::Engine))?;
            for (name, value) in lines {
                if let Some(value) = value.or_else(|| (caller.variable)(&name)) {
                    settings.push(EnvSetting { name, value: Some(value) });
                }
            }
        }
        for text in self.env {
            let (name, value) = match text.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (text.as_str(), (caller.variable)(&text)),
            };
            if name.is_empty() {
                let reason = format!("invalid environment variable: {text}");
                return Err(invalid_argument("-e, --env", &text, reason));
            }
            settings.push(EnvSetting { name: name.into(), value });
        }
        Ok(settings)
    }
}
