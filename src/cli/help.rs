//! The first page of the help, with its verbs in Docker's groups, and the manual pages.

use std::path::PathBuf;

use clap::Command;

use super::{CliError, Exit, Outcome};

/// Docker's groups; what is in none of them is another command.
const COMMON: [&str; 11] =
    ["run", "exec", "ps", "build", "pull", "push", "images", "login", "logout", "version", "info"];

/// The first page.
#[must_use]
pub fn overview(command: &Command) -> String {
    let mut text = format!("\nUsage:  hostel [OPTIONS] COMMAND\n\n{}\n", about(command));
    let shown = || command.get_subcommands().filter(|verb| !verb.is_hide_set() && verb.get_name() != "help");
    let common = COMMON.iter().filter_map(|name| shown().find(|verb| verb.get_name() == *name));
    section(&mut text, "Common Commands", common.collect());
    section(&mut text, "Management Commands", shown().filter(|verb| verb.has_subcommands()).collect());
    let others = shown().filter(|verb| !verb.has_subcommands() && !COMMON.contains(&verb.get_name()));
    section(&mut text, "Commands", others.collect());
    text.push_str("\nGlobal Options:\n");
    for flag in command.get_arguments().filter(|flag| !flag.is_hide_set() && flag.get_long().is_some()) {
        let short = flag.get_short().map_or_else(|| "   ".to_owned(), |short| format!("-{short},"));
        let value = match flag.get_value_names() {
            Some([name]) if flag.get_action().takes_values() => format!(" {name}"),
            _ => String::new(),
        };
        let name = format!("{short} --{}{value}", flag.get_long().unwrap_or_default());
        let help = flag.get_help().map(ToString::to_string).unwrap_or_default();
        text.push_str(&format!("  {name:<24} {}\n", help.lines().next().unwrap_or_default()));
    }
    text.push_str("\nRun 'hostel COMMAND --help' for more information on a command.\n");
    text
}

fn section(text: &mut String, title: &str, mut verbs: Vec<&Command>) {
    if title != "Common Commands" {
        verbs.sort_by_key(|verb| verb.get_name());
    }
    text.push_str(&format!("\n{title}:\n"));
    for verb in verbs {
        text.push_str(&format!("  {:<11} {}\n", verb.get_name(), about(verb)));
    }
}

fn about(command: &Command) -> String {
    let text = command.get_about().map(ToString::to_string).unwrap_or_default();
    text.lines().next().unwrap_or_default().to_owned()
}

/// Write a manual page for every command into a directory
#[derive(clap::Args, Debug)]
pub struct ManArgs {
    /// The directory, made when missing (e.g. ~/.local/share/man/man1)
    directory: PathBuf,
}

/// Writes hostel.1, hostel-run.1, hostel-container-ls.1 and so on.
///
/// # Errors
/// As writing files.
pub fn write_manual(args: &ManArgs) -> Outcome {
    std::fs::create_dir_all(&args.directory)
        .map_err(|error| CliError::new(format!("cannot make {}: {error}", args.directory.display())))?;
    let mut command = super::command();
    command.build();
    clap_mangen::generate_to(command, &args.directory)
        .map_err(|error| CliError::new(format!("cannot write to {}: {error}", args.directory.display())))?;
    Ok(Exit::Success)
}
