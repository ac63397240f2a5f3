//! `--rm=false`: Go's way of writing switches, which scripts use and clap's flags refuse.

use std::ffi::OsString;
use std::mem::ManuallyDrop;

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory, FromArgMatches};

/// Parses a command line as `clap::Parser::try_parse_from` does, but a switch may also have a truth
/// value after `=` (`--rm=false`, `--init=1`).
///
/// The values are only looked for when the plain reading fails on one, so that help shows `--rm`.
///
/// # Errors
/// clap's own, help and version among them.
pub fn try_parse_from<C: CommandFactory + FromArgMatches>(arguments: &[OsString]) -> Result<C, clap::Error> {
    let matches = matches(C::command, arguments)?;
    C::from_arg_matches(&matches).map_err(|error| error.format(&mut C::command()))
}

fn matches(command: impl Fn() -> Command, arguments: &[OsString]) -> Result<ArgMatches, clap::Error> {
    // As in Docker, the last of several values counts.
    let lazy = || command().args_override_self(true);
    // Verbs are built when they are typed; help lists all of them, and so do the changes below.
    let command = || {
        let mut command = lazy();
        command.build();
        command
    };
    let asks_for_help = |text: &OsString| ["--help", "-h", "help"].iter().any(|word| text == word);
    if arguments.len() < 2 || arguments.iter().any(asks_for_help) {
        return command().try_get_matches_from(arguments);
    }
    // Some 2,000 small pieces that the end of the process frees at once.
    let mut plain = ManuallyDrop::new(lazy());
    match plain.try_get_matches_from_mut(arguments) {
        // A group of verbs without a verb: its help.
        Err(error) if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            command().try_get_matches_from(arguments)
        }
        Err(error) if error.kind() == ErrorKind::TooManyValues => {
            with_values(command()).try_get_matches_from(arguments)
        }
        // `-f=false`, which clap reads as the flags f, =, f ...
        Err(error) if error.kind() == ErrorKind::UnknownArgument => {
            with_values(command()).try_get_matches_from(arguments).map_err(|_| error)
        }
        other => other,
    }
}

/// The same command, in which every switch takes a truth value.
fn with_values(command: Command) -> Command {
    let mut command = command.mut_args(|argument| {
        if matches!(argument.get_action(), ArgAction::SetTrue) { with_value(argument) } else { argument }
    });
    let verbs: Vec<String> = command.get_subcommands().map(|verb| verb.get_name().to_owned()).collect();
    for verb in verbs {
        command = command.mut_subcommand(verb, with_values);
    }
    command
}

fn with_value(switch: Arg) -> Arg {
    switch
        .action(ArgAction::Set)
        .num_args(0..=1)
        .require_equals(true)
        .default_value("false")
        .default_missing_value("true")
        .value_parser(|text: &str| {
            parse_bool(text).ok_or_else(|| format!("strconv.ParseBool: parsing {text:?}: invalid syntax"))
        })
}

/// A truth value as Go's strconv.ParseBool reads it.
#[must_use]
pub fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(arguments: &[&str]) -> Result<(bool, bool, String), ErrorKind> {
        let switch = |name: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue);
        let run = || {
            Command::new("run")
                .args([switch("rm").short('r'), switch("init").short('i')])
                .arg(Arg::new("name").long("name").default_value(""))
                .arg(Arg::new("rest").num_args(0..).trailing_var_arg(true))
        };
        let command = || Command::new("hostel").subcommand(run());
        let arguments: Vec<OsString> =
            ["hostel", "run"].iter().chain(arguments).map(|text| OsString::from(*text)).collect();
        let matches = matches(command, &arguments).map_err(|error| error.kind())?;
        let run = matches.subcommand_matches("run").expect("the verb");
        let name = run.get_one::<String>("name").cloned().unwrap_or_default();
        Ok((run.get_flag("rm"), run.get_flag("init"), name))
    }

    #[test]
    fn values_of_switches() {
        type Row = (&'static [&'static str], (bool, bool, &'static str));
        let table: [Row; 10] = [
            (&[], (false, false, "")),
            (&["--rm"], (true, false, "")),
            (&["--rm=true", "--init=0"], (true, false, "")),
            (&["--rm", "--rm=false"], (false, false, "")),
            (&["-ri", "--rm=1"], (true, true, "")),
            (&["--init=T", "-r", "--name", "x", "image"], (true, true, "x")),
            (&["--rm=false", "image", "--init", "--init=x"], (false, false, "")),
            (&["--rm", "--rm"], (true, false, "")),
            (&["-r=false", "-i=true"], (false, true, "")),
            (&["-ri=false"], (true, false, "")),
        ];
        for (arguments, (rm, init, name)) in table {
            assert_eq!(flags(arguments), Ok((rm, init, name.to_owned())), "{arguments:?}");
        }
        assert_eq!(flags(&["--rm=maybe"]), Err(ErrorKind::ValueValidation));
        assert_eq!(flags(&["--nope=1"]), Err(ErrorKind::UnknownArgument));
    }
}
