//! The first page of the help, with its verbs in Docker's groups, and the manual pages.

use std::path::{Path, PathBuf};

use clap::Command;

use super::{CliError, Exit, Outcome};

/// Docker's groups; what is in none of them is another command.
const COMMON: [&str; 12] =
    ["run", "exec", "ps", "build", "pull", "push", "images", "login", "logout", "search", "version", "info"];

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

/// Writes hostel.1, hostel-run.1, hostel-container-ls.1 and so on; dated today, or as SOURCE_DATE_EPOCH says.
///
/// # Errors
/// As writing files.
pub fn write_manual(args: &ManArgs) -> Outcome {
    std::fs::create_dir_all(&args.directory)
        .map_err(|error| CliError::new(format!("cannot make {}: {error}", args.directory.display())))?;
    let mut command = super::command();
    command.build();
    let epoch = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|text| text.parse().ok());
    let time = epoch.and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    let date = time.unwrap_or_else(jiff::Timestamp::now).strftime("%Y-%m-%d").to_string();
    write_pages(&command, &args.directory, &date)
        .map_err(|error| CliError::new(format!("cannot write to {}: {error}", args.directory.display())))?;
    Ok(Exit::Success)
}

/// The page of a command, and those of the commands below it.
fn write_pages(command: &Command, directory: &Path, date: &str) -> std::io::Result<()> {
    let name = command.get_bin_name().unwrap_or_else(|| command.get_name()).replace(' ', "-");
    let page =
        clap_mangen::Man::new(command.clone().name(name.clone())).title(name.to_uppercase()).date(date);
    let mut text = Vec::new();
    page.render(&mut text)?;
    std::fs::write(
        directory.join(format!("{name}.1")),
        without_double_breaks(&String::from_utf8_lossy(&text)),
    )?;
    for below in command.get_subcommands().filter(|below| !below.is_hide_set() && below.get_name() != "help")
    {
        write_pages(below, directory, date)?;
    }
    Ok(())
}

/// `.br` beside an empty line breaks a line twice, which linters of pages complain of; so they do of the empty line.
fn without_double_breaks(page: &str) -> String {
    let lines: Vec<&str> = page.lines().collect();
    let is_space =
        |at: Option<usize>| at.and_then(|at| lines.get(at)).is_some_and(|line| matches!(*line, "" | ".sp"));
    let mut text = String::with_capacity(page.len());
    for (at, line) in lines.iter().enumerate() {
        if *line == ".br" && (is_space(at.checked_sub(1)) || is_space(Some(at + 1))) {
            continue;
        }
        text.push_str(if line.is_empty() { ".sp" } else { line });
        text.push('\n');
    }
    text
}
