//! A wrong command line in Docker's words: clap's complaints are about its own notions, and scripts
//! and habits know `unknown flag: --nope`.

use std::ffi::{OsStr, OsString};

use clap::Command;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::{CliError, Exit, known_elsewhere};

/// What is wrong with the command line, or `None` for what is no complaint (help, version) and for
/// complaints that are best left in clap's words.
///
/// A wrong flag ends with 125 and a wrong count of arguments with 1, as in Docker.
#[must_use]
pub fn explain(error: &clap::Error, command: &Command, arguments: &[OsString]) -> Option<CliError> {
    let (path, verb) = verb(command, arguments);
    let subject = text(error, ContextKind::InvalidArg);
    let flag = subject.filter(|subject| subject.starts_with('-'));
    let (message, exit) = match error.kind() {
        ErrorKind::UnknownArgument
            if flag.is_some_and(|flag| known_elsewhere::flag(&path, flag).is_some()) =>
        {
            return known_elsewhere::flag(&path, flag?);
        }
        ErrorKind::UnknownArgument => match flag {
            Some(flag) => (unknown_flag(flag), Exit::Engine),
            None => (format!("'{path}' accepts no more arguments: {}", subject?), Exit::Failure),
        },
        ErrorKind::InvalidSubcommand => {
            let name = text(error, ContextKind::InvalidSubcommand)?;
            if let Some(refusal) = known_elsewhere::verb(&format!("{path} {name}")) {
                return Some(refusal);
            }
            (format!("unknown command: {path} {name}"), Exit::Failure)
        }
        // Also clap's kind for a value that is missing altogether.
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => {
            let flag = bare_flag(flag?);
            let value = text(error, ContextKind::InvalidValue).unwrap_or_default();
            let message = if value.is_empty() {
                format!("flag needs an argument: {flag}")
            } else {
                let reason = std::error::Error::source(error).map(ToString::to_string);
                let reason = reason.unwrap_or_else(|| "invalid value".into());
                format!("invalid argument {value:?} for {flag:?} flag: {reason}")
            };
            (message, Exit::Engine)
        }
        ErrorKind::MissingRequiredArgument => {
            let required = verb.get_positionals().filter(|argument| argument.is_required_set()).count();
            // Of a flag that has to be given nobody counts arguments.
            let count = required.max(1);
            let has_more = |argument: &clap::Arg| {
                !argument.is_required_set()
                    || argument.get_num_args().is_some_and(|count| count.max_values() > 1)
            };
            let bound = if verb.get_positionals().any(has_more) { "at least" } else { "exactly" };
            let plural = if count == 1 { "" } else { "s" };
            (format!("'{path}' requires {bound} {count} argument{plural}"), Exit::Failure)
        }
        _ => return None,
    };
    Some(
        CliError::new(message).with_exit(exit).with_hint(format!("run `{path} --help` for more information")),
    )
}

fn unknown_flag(flag: &str) -> String {
    let name = flag.split('=').next().unwrap_or(flag);
    match name.strip_prefix("--") {
        Some(_) => format!("unknown flag: {name}"),
        None => format!("unknown shorthand flag: '{}' in {name}", name.chars().nth(1).unwrap_or('-')),
    }
}

/// `--name <NAME>`, as clap shows a flag with its value, without the value.
fn bare_flag(flag: &str) -> &str {
    flag.split([' ', '=', '[']).next().unwrap_or(flag)
}

fn text(error: &clap::Error, kind: ContextKind) -> Option<&str> {
    match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text),
        _ => None,
    }
}

/// `hostel container rm`: the program and the verbs that the command line got to, and the last of them.
fn verb<'a>(command: &'a Command, arguments: &[OsString]) -> (String, &'a Command) {
    let mut path = vec![command.get_name().to_owned()];
    let mut command = command;
    let mut rest = arguments.iter().skip(1);
    while let Some(argument) = rest.next() {
        if let Some(verb) = command.find_subcommand(argument) {
            path.push(verb.get_name().to_owned());
            command = verb;
        } else if takes_next(command, argument) {
            rest.next();
        } else if !argument.to_string_lossy().starts_with('-') {
            break;
        }
    }
    (path.join(" "), command)
}

/// Whether the argument is a flag whose value is the argument after it.
fn takes_next(command: &Command, argument: &OsStr) -> bool {
    let Some(name) = argument.to_str().and_then(|text| text.strip_prefix('-')) else { return false };
    command.get_arguments().any(|known| {
        let long = known.get_long().is_some_and(|long| name.strip_prefix('-') == Some(long));
        let short = known.get_short().is_some_and(|short| name.ends_with(short) && !name.starts_with('-'));
        (long || short) && known.get_action().takes_values()
    })
}

#[cfg(test)]
mod tests {
    use clap::{Arg, ArgAction};

    use super::*;

    fn command() -> Command {
        let rm = Command::new("rm")
            .arg(Arg::new("force").short('f').long("force").action(ArgAction::SetTrue))
            .arg(Arg::new("time").short('t').long("time").value_parser(clap::value_parser!(i64)))
            .arg(Arg::new("containers").required(true).num_args(1..));
        let tag = Command::new("tag").arg(Arg::new("a").required(true)).arg(Arg::new("b").required(true));
        let container = Command::new("container").subcommand_required(true).subcommand(rm.clone());
        Command::new("hostel").arg(Arg::new("root").long("root")).subcommand_required(true).subcommands([
            rm,
            tag,
            container,
            Command::new("version"),
        ])
    }

    #[test]
    fn complaints_have_dockers_words() {
        let table: [(&[&str], u8, &str); 13] = [
            (&["rm", "--nope"], 125, "unknown flag: --nope"),
            (&["rm", "--nope=1", "x"], 125, "unknown flag: --nope"),
            (&["rm", "-x"], 125, "unknown shorthand flag: 'x' in -x"),
            (&["--nope", "rm"], 125, "unknown flag: --nope"),
            (&["rm", "--time"], 125, "flag needs an argument: --time"),
            (&["rm", "-f", "-t"], 125, "flag needs an argument: --time"),
            (
                &["rm", "-t", "x", "y"],
                125,
                "invalid argument \"x\" for \"--time\" flag: invalid digit found in string",
            ),
            (&["rm"], 1, "'hostel rm' requires at least 1 argument"),
            (
                &["--root", "rm", "container", "rm", "-f"],
                1,
                "'hostel container rm' requires at least 1 argument",
            ),
            (&["tag"], 1, "'hostel tag' requires exactly 2 arguments"),
            (&["tag", "x"], 1, "'hostel tag' requires exactly 2 arguments"),
            (&["version", "x"], 1, "'hostel version' accepts no more arguments: x"),
            (&["foo", "rm"], 1, "unknown command: hostel foo"),
        ];
        for (line, code, message) in table {
            let line: Vec<OsString> = ["hostel"].iter().chain(line).map(OsString::from).collect();
            let error = command().try_get_matches_from(&line).expect_err(message);
            let complaint = explain(&error, &command(), &line).expect(message);
            assert_eq!((complaint.message(), complaint.exit.code()), (message, code), "{line:?}");
        }
    }

    #[test]
    fn help_is_no_complaint() {
        let line: Vec<OsString> = ["hostel", "rm", "--help"].map(OsString::from).into();
        let error = command().try_get_matches_from(&line).expect_err("help");
        assert!(explain(&error, &command(), &line).is_none());
    }
}
