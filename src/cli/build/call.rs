//! `--call`: what is told of a Dockerfile instead of building it.

use serde_json::{Value, json};

use crate::build;
use crate::cli::{CliError, Exit, Outcome};
use crate::plan::dockerfile::outline::{self, Outline, Target, Wanted};
use crate::plan::dockerfile::{self, Dockerfile, check};

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    Build,
    Check,
    Outline,
    Targets,
}

/// One `--call`, and whether its answer is JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) method: Method,
    is_json: bool,
}

impl Call {
    /// `METHOD[,format=text|json]`.
    pub(super) fn parse(text: &str) -> Result<Self, CliError> {
        let wrong = |reason: &str| {
            CliError::new(format!("invalid argument {text:?} for \"--call\" flag: {reason}"))
                .with_exit(Exit::Engine)
        };
        let mut fields = text.split(',');
        let method = match fields.next().unwrap_or_default() {
            "build" | "" => Method::Build,
            "check" | "lint" => Method::Check,
            "outline" => Method::Outline,
            "targets" => Method::Targets,
            _ => return Err(wrong("it is build, check, outline or targets")),
        };
        let mut is_json = false;
        for field in fields {
            is_json = match field {
                "format=json" => true,
                "format=text" => false,
                _ => return Err(wrong("format is text or json")),
            };
        }
        Ok(Self { method, is_json })
    }

    pub(super) fn answer(
        self,
        found: &build::Context,
        target: Option<&str>,
        arguments: &[(String, String)],
    ) -> Outcome {
        let file = match dockerfile::parse(&found.text) {
            Ok(file) => file,
            Err(error) => {
                eprint!("{}", dockerfile::picture(&found.file_name, &found.text, error.place));
                return Err(CliError::new(format!("failed to build: failed to solve: {error}")));
            }
        };
        match self.method {
            Method::Build => {}
            Method::Check => return self.check(found, &file),
            Method::Targets => {
                let targets = outline::targets(&file);
                match self.is_json {
                    true => println!("{:#}", json!({ "targets": targets })),
                    false => print!("{}", targets_text(&targets)),
                }
            }
            Method::Outline => {
                let outline = outline::outline(&file, target, arguments)
                    .map_err(|reason| CliError::new(format!("failed to build: failed to solve: {reason}")))?;
                match self.is_json {
                    true => println!("{:#}", json!(outline)),
                    false => print!("{}", outline_text(&outline)),
                }
            }
        }
        Ok(Exit::Success)
    }

    /// Tells what is better not done.
    fn check(self, found: &build::Context, file: &Dockerfile) -> Outcome {
        let warnings = check::warnings(file, &found.ignore);
        let exit = if warnings.is_empty() { Exit::Success } else { Exit::Failure };
        if self.is_json {
            let line = |number: usize| json!({ "line": number });
            let listed: Vec<Value> = warnings
                .iter()
                .map(|warning| {
                    let range = json!({ "start": line(warning.place.first), "end": line(warning.place.last) });
                    json!({
                        "ruleName": warning.rule, "detail": warning.message, "location": { "ranges": [range] },
                    })
                })
                .collect();
            println!("{:#}", json!({ "warnings": listed }));
            return Ok(exit);
        }
        if warnings.is_empty() {
            println!("Check complete, no warnings found.");
            return Ok(exit);
        }
        let plural = if warnings.len() == 1 { "warning has" } else { "warnings have" };
        println!("Check complete, {} {plural} been found!", warnings.len());
        for warning in &warnings {
            println!("\nWARNING: {}\n{}\n", warning.rule, warning.message);
            print!("{}", dockerfile::picture(&found.file_name, &found.text, warning.place));
        }
        Ok(exit)
    }
}

/// Columns as wide as their longest cell, `gap` blanks between them.
fn columns(rows: &[Vec<&str>], gap: usize) -> String {
    let width = |column: usize| {
        rows.iter().map(|row| row.get(column).map_or(0, |cell| cell.chars().count())).max().unwrap_or(0)
    };
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let filled = format!("{cell:<width$}", width = width(column) + gap);
            line.push_str(if column + 1 == row.len() { cell } else { &filled });
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn targets_text(targets: &[Target]) -> String {
    let name = |target: &Target| match (target.name.as_str(), target.is_default) {
        ("", true) => "(default)".to_owned(),
        (name, true) => format!("{name} (default)"),
        (name, false) => name.to_owned(),
    };
    let names: Vec<String> = targets.iter().map(name).collect();
    let mut rows = vec![vec!["TARGET", "DESCRIPTION"]];
    rows.extend(names.iter().zip(targets).map(|(name, target)| vec![name.as_str(), &target.description]));
    columns(&rows, 1)
}

fn outline_text(outline: &Outline) -> String {
    const GAP: usize = 3;
    let mut text = String::new();
    if !outline.name.is_empty() {
        let mut rows = vec![vec!["TARGET:", &outline.name]];
        if !outline.description.is_empty() {
            rows.push(vec!["DESCRIPTION:", &outline.description]);
        }
        text.push_str(&columns(&rows, 1));
        text.push('\n');
    }
    if !outline.args.is_empty() {
        let mut rows = vec![vec!["BUILD ARG", "VALUE", "DESCRIPTION"]];
        rows.extend(outline.args.iter().map(|arg| vec![arg.name.as_str(), &arg.value, &arg.description]));
        text.push_str(&columns(&rows, GAP));
        text.push('\n');
    }
    for (heading, list) in [("SECRET", &outline.secrets), ("SSH", &outline.ssh)] {
        if list.is_empty() {
            continue;
        }
        let row = |wanted: &'_ Wanted| -> Vec<String> {
            vec![wanted.name.clone(), if wanted.required { "true".to_owned() } else { String::new() }]
        };
        let cells: Vec<Vec<String>> = list.iter().map(row).collect();
        let mut rows = vec![vec![heading, "REQUIRED"]];
        rows.extend(cells.iter().map(|row| row.iter().map(String::as_str).collect()));
        text.push_str(&columns(&rows, GAP));
        text.push('\n');
    }
    text
}
