//! Shell completion: scripts for bash, zsh and fish, and what they ask

use clap::{ArgAction, Command};

use super::{CliError, Context, Exit, Outcome};
use crate::store::Store;
use crate::store::containers::{Containers, Status};

/// Generate the autocompletion script for the specified shell
///
/// bash: `source <(hostel completion bash)`, or put it in ~/.local/share/bash-completion/completions/hostel;
/// zsh: put it as `_hostel` in a directory of $fpath; fish: ~/.config/fish/completions/hostel.fish.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The shell
    #[arg(value_parser = ["bash", "zsh", "fish"])]
    shell: String,
}

/// What a script asks: the words of the command line, the last one being completed
#[derive(clap::Args, Debug)]
pub struct QueryArgs {
    /// The words after `hostel`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

const BASH: &str = r#"# bash completion for hostel
_hostel() {
    local IFS=$'\n' words=("${COMP_WORDS[@]:1:COMP_CWORD}")
    # bash splits at = and :, which are parts of our words.
    mapfile -t COMPREPLY < <(hostel __complete -- "${words[@]}" 2>/dev/null | cut -f1)
    if [ ${#COMPREPLY[@]} -eq 0 ]; then compopt -o default; return; fi
    [[ ${COMPREPLY[0]} == *= ]] && compopt -o nospace
}
complete -F _hostel hostel
"#;

const ZSH: &str = r#"#compdef hostel
_hostel() {
    local -a lines candidates
    lines=("${(@f)$(hostel __complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    candidates=("${(@)lines//$'\t'/:}")
    if [[ -z "${lines[1]}" ]]; then _files; else _describe 'hostel' candidates; fi
}
compdef _hostel hostel
"#;

const FISH: &str = r#"# fish completion for hostel
function __hostel_complete
    set -l words (commandline -opc) (commandline -ct)
    hostel __complete -- $words[2..-1] 2>/dev/null
end
complete -c hostel -a '(__hostel_complete)'
"#;

/// Prints a script.
///
/// # Errors
/// None.
pub fn script(args: &Args) -> Outcome {
    print!(
        "{}",
        match args.shell.as_str() {
            "zsh" => ZSH,
            "fish" => FISH,
            _ => BASH,
        }
    );
    Ok(Exit::Success)
}

/// Prints a candidate a line, with a tab and its description.
///
/// # Errors
/// A store that cannot be read.
pub fn answer(ctx: &Context, args: &QueryArgs) -> Outcome {
    let mut command = super::command();
    command.build();
    let (last, before) =
        args.words.split_last().map_or((String::new(), &[][..]), |(last, rest)| (last.clone(), rest));
    for (word, about) in candidates(ctx, &command, before, &last)? {
        if about.is_empty() { println!("{word}") } else { println!("{word}\t{about}") }
    }
    Ok(Exit::Success)
}

fn candidates(
    ctx: &Context,
    command: &Command,
    before: &[String],
    last: &str,
) -> Result<Vec<(String, String)>, CliError> {
    let place = Place::find(command, before);
    let mut found = if let Some(flag) = place.flag {
        values_of(ctx, flag)?
    } else if last.starts_with('-') && !place.ended {
        flags(place.command)
    } else if place.command.has_subcommands() {
        let verbs = place.command.get_subcommands().filter(|verb| !verb.is_hide_set());
        verbs.map(|verb| (verb.get_name().to_owned(), first_line(verb.get_about()))).collect()
    } else {
        arguments(ctx, &place)?
    };
    found.retain(|(word, _)| word.starts_with(last));
    found.sort();
    Ok(found)
}

/// Where on the command line the word to be completed is.
struct Place<'a> {
    command: &'a Command,
    path: Vec<&'a str>,
    /// Arguments before it that are no flags.
    arguments: usize,
    /// The flag whose value it is.
    flag: Option<&'a str>,
    /// After `--`, or after the image of `run`: no flags come any more.
    ended: bool,
}

impl<'a> Place<'a> {
    fn find(command: &'a Command, before: &[String]) -> Self {
        let mut place = Place { command, path: Vec::new(), arguments: 0, flag: None, ended: false };
        for word in before {
            if place.flag.take().is_some() {
                continue;
            }
            if word == "--" {
                place.ended = true;
            } else if word.starts_with('-') && !place.ended {
                place.flag = place.flag_with_value(word);
            } else if let Some(verb) = place.command.find_subcommand(word).filter(|_| place.arguments == 0) {
                place.command = verb;
                place.path.push(verb.get_name());
            } else {
                place.arguments += 1;
                // The rest is the command's own.
                place.ended |= matches!(place.path.last(), Some(&("run" | "create" | "exec" | "unshare")));
            }
        }
        place
    }

    /// The flag's long name if its value is still to come.
    fn flag_with_value(&self, word: &str) -> Option<&'a str> {
        if word.contains('=') {
            return None;
        }
        let flag = self.command.get_arguments().find(|flag| match word.strip_prefix("--") {
            Some(long) => {
                flag.get_long() == Some(long) || flag.get_all_aliases().is_some_and(|all| all.contains(&long))
            }
            // Of `-it` the last one counts.
            None => flag.get_short().is_some() && flag.get_short() == word.chars().next_back(),
        })?;
        let takes = matches!(flag.get_action(), ArgAction::Set | ArgAction::Append);
        let needs = flag.get_num_args().is_none_or(|range| range.min_values() > 0);
        (takes && needs).then(|| flag.get_long().unwrap_or_else(|| flag.get_id().as_str()))
    }
}

fn flags(command: &Command) -> Vec<(String, String)> {
    let shown = command.get_arguments().filter(|flag| !flag.is_hide_set() && !flag.is_positional());
    shown.filter_map(|flag| Some((format!("--{}", flag.get_long()?), first_line(flag.get_help())))).collect()
}

fn first_line(text: Option<&clap::builder::StyledStr>) -> String {
    text.map(ToString::to_string).unwrap_or_default().lines().next().unwrap_or_default().to_owned()
}

/// What the arguments of a verb name.
fn arguments(ctx: &Context, place: &Place<'_>) -> Result<Vec<(String, String)>, CliError> {
    let parent = if place.path.len() > 1 { place.path[0] } else { "" };
    let verb = place.path.last().copied().unwrap_or_default();
    let first = place.arguments == 0;
    match (parent, verb) {
        ("image", "rm" | "inspect" | "history" | "save" | "tag")
        | (_, "rmi" | "history" | "save" | "tag") => images(ctx),
        ("volume", "rm" | "inspect") => volumes(ctx),
        (_, "run" | "create") if first => images(ctx),
        ("image", "mount") if first => images(ctx),
        (_, "mount") if first => Ok([containers(ctx, |_| true)?, images(ctx)?].concat()),
        (_, "start") => containers(ctx, |status| !status.is_live()),
        (_, "exec" | "attach" | "top" | "port") if first => containers(ctx, is_running),
        (_, "stop" | "kill" | "pause" | "stats" | "wait") => containers(ctx, Status::is_live),
        (_, "unpause") => containers(ctx, |status| status.word() == "paused"),
        (_, "rm" | "restart" | "update" | "systemd") => containers(ctx, |_| true),
        (_, "logs" | "rename") if first => containers(ctx, |_| true),
        (_, "inspect") => {
            let mut all = containers(ctx, |_| true)?;
            if parent.is_empty() {
                all.extend(images(ctx)?);
                all.extend(volumes(ctx)?);
            }
            Ok(all)
        }
        _ => Ok(Vec::new()), // the shell's own: files
    }
}

fn is_running(status: &Status) -> bool {
    matches!(status, Status::Running(_))
}

/// What some flags take.
fn values_of(ctx: &Context, flag: &str) -> Result<Vec<(String, String)>, CliError> {
    let words = |list: &[&str]| list.iter().map(|word| ((*word).to_owned(), String::new())).collect();
    Ok(match flag {
        "volumes-from" => containers(ctx, |_| true)?,
        "restart" => words(&["no", "always", "on-failure", "unless-stopped"]),
        "pull" => words(&["always", "missing", "never"]),
        "network" | "net" => words(&["bridge", "host", "none"]),
        "log-driver" => words(&["json-file", "journald", "local", "none"]),
        "pid" | "uts" | "cgroupns" => words(&["host", "private"]),
        "ipc" => words(&["host", "none", "private", "shareable"]),
        "format" => words(&["json", "table"]),
        "condition" => words(&["healthy", "next-exit", "not-running", "removed", "running"]),
        "log-level" => words(&["debug", "error", "fatal", "info", "trace", "warn"]),
        "type" => words(&["container", "image", "volume"]),
        _ => Vec::new(),
    })
}

fn containers(ctx: &Context, wanted: impl Fn(&Status) -> bool) -> Result<Vec<(String, String)>, CliError> {
    let containers = Containers::new(&ctx.root);
    let mut found = Vec::new();
    for id in containers.ids()? {
        // One that goes away meanwhile is not there.
        let (Ok(record), Ok(status)) = (containers.record(&id), containers.status(&id)) else { continue };
        if wanted(&status) {
            found.push((record.name.to_string(), record.image));
        }
    }
    Ok(found)
}

fn images(ctx: &Context) -> Result<Vec<(String, String)>, CliError> {
    if !ctx.root.exists() {
        return Ok(Vec::new());
    }
    let catalog = Store::open(&ctx.root)?.catalog()?;
    let familiar = |name: &String| {
        let short = name
            .strip_prefix("docker.io/library/")
            .or_else(|| name.strip_prefix("docker.io/"))
            .unwrap_or(name);
        short.strip_suffix(":latest").unwrap_or(short).to_owned()
    };
    Ok(catalog.names.keys().map(|name| (familiar(name), String::new())).collect())
}

fn volumes(ctx: &Context) -> Result<Vec<(String, String)>, CliError> {
    let entries = std::fs::read_dir(ctx.root.join("volumes")).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    Ok(names.filter(|name| !name.starts_with('.')).map(|name| (name, String::new())).collect())
}
