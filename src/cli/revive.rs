//! Start what a reboot has ended, and have systemd do so

use super::run::start;
use super::{CliError, Context, Exit, Outcome};
use crate::plan::restart::RestartPolicy;
use crate::store::containers::{Containers, Status};
use crate::supervisor::Saved;

/// Start the containers that their restart policy wants up: those that a reboot has ended
///
/// `always` starts whatever does not run, `unless-stopped` what was not stopped by hand, `on-failure` what was
/// killed with the machine or failed. Without a daemon nobody else does it: call it at login or at boot, or see
/// `hostel generate systemd`.
#[derive(clap::Args, Debug)]
pub struct StartAllArgs {
    /// Only print what would be started
    #[arg(long)]
    dry_run: bool,
}

/// Starts each and prints its name.
///
/// # Errors
/// What did not start; the others are started all the same.
pub fn start_all(ctx: &Context, args: &StartAllArgs) -> Outcome {
    let containers = Containers::new(&ctx.root);
    let mut found = Vec::new();
    for id in containers.ids()? {
        // One that goes away meanwhile is not there.
        let (Ok(record), Ok(status)) = (containers.record(&id), containers.status(&id)) else { continue };
        found.push((record, status));
    }
    found.sort_by_key(|(record, _)| record.created);
    let mut exit = Exit::Success;
    for (record, status) in found {
        let saved: Saved = containers.plan(&record.id)?;
        if !is_wanted(saved.request.restart, &status) {
            continue;
        }
        if args.dry_run {
            println!("{}", record.name);
        } else if let Err(error) = start(&containers, &record, saved, None, None) {
            eprintln!("{}", CliError::new(format!("{}: {}", record.name, error.message())).render());
            exit = Exit::Failure;
        } else {
            println!("{}", record.name);
        }
    }
    Ok(exit)
}

/// A container that was never started stays as it is, as in Docker after a reboot.
fn is_wanted(policy: RestartPolicy, status: &Status) -> bool {
    let Status::Exited(Some(_), exit) = status else { return false };
    match policy {
        RestartPolicy::No => false,
        RestartPolicy::Always => true,
        RestartPolicy::UnlessStopped => !exit.by_hand,
        RestartPolicy::OnFailure(_) => !exit.by_hand && exit.code != 0,
    }
}

/// Generate systemd user units
///
/// Prints a unit for each container named, or without a name one that starts all that their restart policy
/// wants up. Units of a user run while he is logged in; `loginctl enable-linger` lets them run from boot on.
#[derive(clap::Args, Debug)]
pub struct UnitArgs {
    /// Write NAME.service files into the current directory instead of printing them
    #[arg(short, long)]
    files: bool,
    /// Name units by container name (always so: kept for scripts written for podman)
    #[arg(short, long, hide = true)]
    name: bool,
    /// CONTAINER...
    containers: Vec<String>,
}

/// Prints the units, or writes them and prints their paths.
///
/// # Errors
/// No such container; a file that cannot be written.
pub fn generate_systemd(ctx: &Context, args: &UnitArgs) -> Outcome {
    let containers = Containers::new(&ctx.root);
    let binary = std::env::current_exe()?;
    let command =
        format!("{} --root {}", quoted(&binary.to_string_lossy()), quoted(&ctx.root.to_string_lossy()));
    let mut units = Vec::new();
    if args.containers.is_empty() {
        units.push((
            "hostel".to_owned(),
            unit(
                "the containers of hostel that are to be up",
                &format!("ExecStart={command} system start-all"),
            ),
        ));
    }
    for reference in &args.containers {
        let record = containers.find(reference)?;
        let name = record.name.to_string();
        let lines = format!(
            "ExecStart={command} start {name}\nExecStop={command} stop {name}\nTimeoutStopSec=infinity"
        );
        units.push((format!("container-{name}"), unit(&format!("container {name} of hostel"), &lines)));
    }
    for (name, text) in units {
        if args.files {
            let path = std::env::current_dir()?.join(format!("{name}.service"));
            std::fs::write(&path, text)?;
            println!("{}", path.display());
        } else {
            print!("# {name}.service\n{text}\n");
        }
    }
    Ok(Exit::Success)
}

/// The keeper is no child of the unit's command that systemd could follow by a PID file of its own: the unit is
/// what has been started, and the control group is what is stopped with it.
fn unit(description: &str, lines: &str) -> String {
    format!(
        "[Unit]\nDescription={description}\nAfter=default.target\n\n\
         [Service]\nType=oneshot\nRemainAfterExit=yes\nKillMode=mixed\nDelegate=yes\n{lines}\n\n\
         [Install]\nWantedBy=default.target\n"
    )
}

/// A word as systemd reads it (systemd.service(5), COMMAND LINES).
fn quoted(word: &str) -> String {
    let escaped = word.replace('%', "%%").replace('$', "$$");
    if escaped.contains([' ', '"', '\'', '\\']) {
        format!("\"{}\"", escaped.replace('\\', "\\\\").replace('"', "\\\""))
    } else {
        escaped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_unit_are_quoted() {
        for (word, text) in
            [("/a/b", "/a/b"), ("/a b", "\"/a b\""), ("/100%$x", "/100%%$$x"), ("a\"b", "\"a\\\"b\"")]
        {
            assert_eq!(quoted(word), text);
        }
    }
}
