//! `--label`, `--label-file` and `--annotation`.

use std::path::PathBuf;

use clap::Args;

use super::{files, invalid_argument};
use crate::cli::{CliError, Exit};
use crate::plan::Labels;

/// The flags of metadata.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct LabelArgs {
    /// Add an annotation to the container (passed through to the OCI runtime)
    #[arg(long, value_name = "KEY=VALUE")]
    annotation: Vec<String>,
    /// Set meta data on a container
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    label: Vec<String>,
    /// Read in a line delimited file of labels
    #[arg(long, value_name = "FILE")]
    label_file: Vec<PathBuf>,
}

impl LabelArgs {
    /// Labels, then annotations. A flag counts before a file.
    pub(super) fn parse(self) -> Result<(Labels, Labels), CliError> {
        let mut labels = Labels::new();
        for path in &self.label_file {
            let lines =
                files::read_settings(path).map_err(|error| CliError::from(error).with_exit(Exit::Engine))?;
            labels.extend(lines.into_iter().map(|(key, value)| (key, value.unwrap_or_default())));
        }
        labels.extend(pairs("-l, --label", "label", &self.label)?);
        Ok((labels, pairs("--annotation", "annotation", &self.annotation)?))
    }
}

fn pairs(flag: &str, what: &str, texts: &[String]) -> Result<Labels, CliError> {
    texts
        .iter()
        .map(|text| {
            let (key, value) = text.split_once('=').unwrap_or((text, ""));
            if key.trim().is_empty() {
                return Err(invalid_argument(flag, text, format!("invalid {what} '{text}': empty name")));
            }
            Ok((key.to_owned(), value.to_owned()))
        })
        .collect()
}
