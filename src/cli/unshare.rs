//! Run a command in the namespaces in which mounts of images can be made

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use super::{CliError, Context, Exit, Outcome};
use crate::sandbox::idmap::{Facts, Wanted, choose};
use crate::supervisor::mounted;

/// Run a command as root of a user namespace with the ids that containers have, and mounts of its own
///
/// The command sees the machine's files as before; those of the caller belong to root, those of containers
/// to the ids that the containers see. In there 'hostel mount' works, and what it mounts is gone when the
/// command and all that it has started have ended.
#[derive(clap::Args, Debug)]
#[command(override_usage = "hostel unshare [COMMAND] [ARG...]")]
pub struct Args {
    /// [COMMAND] [ARG...] (default: $SHELL)
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

/// Becomes the command; returns only when it cannot.
///
/// # Errors
/// No namespaces, no such command.
pub fn run(_ctx: &Context, args: &Args) -> Outcome {
    mounted::enter(&choose(&Facts::gather(), Wanted::Usual))
        .map_err(|failure| super::run::failed(&failure))?;
    Err(become_command(&args.command, |_| {}))
}

/// Becomes a command of the machine, a shell where none is given, with an environment that `prepare` may
/// change.
pub fn become_command(command: &[OsString], prepare: impl FnOnce(&mut Command)) -> CliError {
    let shell = || std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into());
    let (program, arguments) = match command.split_first() {
        Some((program, arguments)) => (program.clone(), arguments),
        None => (shell(), command),
    };
    let mut command = Command::new(&program);
    command.args(arguments);
    prepare(&mut command);
    let error = command.exec();
    let exit =
        if error.kind() == std::io::ErrorKind::NotFound { Exit::NotFound } else { Exit::NotExecutable };
    CliError::new(format!("cannot run {}: {error}", program.display())).with_exit(exit)
}
