//! Create and run a new container from an image

use std::ffi::OsString;
use std::io::IsTerminal as _;

use nix::sys::signal::{SigSet, raise};

use super::create::create_container;
use super::relay::{self, Channel, End};
use super::run_args::{Caller, RunArgs};
use super::{CliError, Context, Exit, Outcome};
use crate::plan::WriteMode;
use crate::plan::request::{StdioRequest, Stream};
use crate::sandbox::ahead::Ahead;
use crate::sandbox::idmap::{Facts, Wanted, choose};
use crate::sandbox::{Failure, Stage};
use crate::store::containers::{ContainerError, Containers, LOCK_ATTEMPTS, LOCK_WAIT, Lock, Record};
use crate::supervisor::client::Client;
use crate::supervisor::control::Reply;
use crate::supervisor::{self, Attach, Launched, Saved};
use crate::sys;

/// Create and run a new container from an image
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    run: RunArgs,
}

/// Creates, starts and, unless detached, waits.
///
/// # Errors
/// 125 for the engine's, 126 and 127 for the command's; else the container's exit code is the result.
pub fn run(ctx: &Context, args: Args, ahead: Option<Ahead>) -> Outcome {
    let request = args.run.into_request(&Caller::current("run")?)?;
    let stdio = &request.stdio;
    if stdio.tty && stdio.interactive && !stdio.detach && !std::io::stdin().is_terminal() {
        return Err(CliError::new("the input device is not a TTY").with_exit(Exit::Failure));
    }
    let (record, saved) = create_container(ctx, &request).map_err(|error| match error.exit {
        Exit::Failure => error.with_exit(Exit::Engine),
        _ => error,
    })?;
    let containers = Containers::new(&ctx.root);
    let attached = !stdio.detach;
    let result = start(&containers, &record, saved, attached.then(|| wanted(stdio)), ahead);
    let (keeper, stream) = match result {
        Ok(started) => started,
        Err(error) => {
            if request.auto_remove {
                discard(&containers, &record);
            }
            return Err(error);
        }
    };
    if !attached {
        println!("{}", record.id);
        return Ok(Exit::Success);
    }
    let options = relay_options(stdio)?;
    match stream {
        Some(stream) => follow(&keeper, Channel::Stream(stream), &options),
        None => Ok(Exit::Success),
    }
}

/// The namespaces that a container has if nothing is odd about it, made beside all that comes before they are
/// wanted: begun before the command line is understood. What is guessed wrong here is not used.
#[must_use]
pub fn make_ahead(arguments: &[OsString]) -> Option<Ahead> {
    let words: Vec<&str> = arguments.iter().skip(1).filter_map(|argument| argument.to_str()).collect();
    let words = match &words[..] {
        ["--root", _, rest @ ..] => rest,
        all => all,
    };
    let (["run", flags @ ..] | ["container", "run", flags @ ..]) = words else { return None };
    if flags.iter().any(|flag| flag.starts_with("--userns") || *flag == "--help") {
        return None;
    }
    let own_network = !flags.iter().any(|flag| flag.ends_with("host") || flag.contains("container:"));
    Ahead::begin(choose(&Facts::gather(), Wanted::Usual), own_network)
}

/// What of our stdio the container gets.
fn wanted(stdio: &StdioRequest) -> Attach {
    let stdin = stdio.interactive && (stdio.attach.is_empty() || stdio.attach.contains(&Stream::Stdin));
    let size = if stdio.tty { own_size() } else { None };
    Attach { stdin, size }
}

/// The size of our terminal, in rows and columns.
#[must_use]
pub fn own_size() -> Option<(u16, u16)> {
    use std::os::fd::AsFd as _;
    sys::terminal::size(std::io::stdout().as_fd())
        .or_else(|_| sys::terminal::size(std::io::stdin().as_fd()))
        .ok()
}

/// How to attach, from what the flags said.
///
/// # Errors
/// Detach keys that are none.
pub fn relay_options(stdio: &StdioRequest) -> Result<relay::Options, CliError> {
    let detach_keys =
        relay::detach_keys(stdio.detach_keys.as_deref()).map_err(|error| error.with_exit(Exit::Engine))?;
    Ok(relay::Options {
        stdin: wanted(stdio).stdin,
        terminal: stdio.tty,
        // A terminal's keys travel as bytes; a signal to this process is still passed on.
        proxy_signals: stdio.sig_proxy,
        detach_keys,
        tells_of_leaving: false,
    })
}

/// Said below what a failed command said last, where that may be why. See [`relay::LastWords`].
const ONE_ID: &str = "NOTE: there is one user id in this container, and no other to change to (chown, su, setgroups): programs \
                      call that an invalid argument or an operation that is not permitted. `hostel doctor` says how to have more.";

/// Relays until the end and turns it into an exit code.
///
/// # Errors
/// When the container's supervisor dies, or our own stdio breaks.
pub fn follow(keeper: &Client, channel: Channel, options: &relay::Options) -> Outcome {
    let (end, last_words) = relay::run(keeper, channel, options)?;
    match end {
        End::Exited(code) => {
            if code != 0
                && last_words.tell_of_refusal()
                && choose(&Facts::gather(), Wanted::Usual).is_single()
            {
                eprintln!("{ONE_ID}");
            }
            Ok(Exit::Container(code))
        }
        End::Detached if options.tells_of_leaving => {
            eprintln!("read escape sequence"); // Docker's words, without its "Error: "
            Ok(Exit::Failure)
        }
        End::Detached => Ok(Exit::Success),
        End::Signaled(signal) => {
            // As if it had never been held back, which whoever waits for this command can tell.
            SigSet::from(signal).thread_unblock()?;
            raise(signal)?;
            Ok(Exit::Failure)
        }
        End::Failed(failure) => Err(failed(&failure)),
        End::Lost => Err(CliError::new("the container's supervisor was killed, and the container with it")
            .with_exit(Exit::Container(137))),
    }
}

/// The command line's view of a failed start.
#[must_use]
pub fn failed(failure: &Failure) -> CliError {
    let failure = supervisor::forbidden::explain(failure.clone(), supervisor::forbidden::setting);
    let error = CliError::new(failure.to_string()).with_exit(match failure.stage {
        Stage::NotFound => Exit::NotFound,
        Stage::NotExecutable => Exit::NotExecutable,
        _ => Exit::Engine,
    });
    match &failure.hint {
        Some(hint) => error.with_hint(hint),
        None => error,
    }
}

/// Starts a created or stopped container and waits until its command runs.
///
/// Where the write mode is open and the kernel turns out not to allow the hybrid one, it is started
/// once more in the pure one.
///
/// # Errors
/// Why it did not start.
pub fn start(
    containers: &Containers,
    record: &Record,
    mut saved: Saved,
    attach: Option<Attach>,
    mut ahead: Option<Ahead>,
) -> Result<(Client, Option<std::os::fd::OwnedFd>), CliError> {
    if let Some(notice) = supervisor::notice(containers, &saved) {
        eprintln!("NOTE: {notice}");
    }
    for attempt in 0.. {
        let lock = lock(containers, record)?;
        let Launched { keeper, stream, ahead } =
            supervisor::launch(containers, record, &saved, lock, attach, ahead.take())
                .map_err(launch_error)?;
        let keeper = Client::from_launch(keeper);
        // While nothing is to be done: what is mapped makes this command's end the longer.
        sys::memory::release_code();
        let reply = keeper.receive()?;
        if let Some(ahead) = ahead {
            ahead.leave();
        }
        match reply {
            Some(Reply::Started { .. }) => {
                sys::fault::point("command-started");
                return Ok((keeper, stream));
            }
            Some(Reply::Failed(failure)) => {
                if failure.stage == Stage::Overlay && saved.write_mode == WriteMode::Auto && attempt == 0 {
                    saved.write_mode = supervisor::without_overlay(&saved);
                    continue;
                }
                return Err(failed(&failure));
            }
            Some(Reply::Ok | Reply::Exited { .. } | Reply::Namespaces { .. } | Reply::Refused(_)) | None => {
                break;
            }
        }
    }
    Err(CliError::new("the container's supervisor ended before the container ran").with_exit(Exit::Engine))
}

pub(super) fn launch_error(error: supervisor::LaunchError) -> CliError {
    match error {
        supervisor::LaunchError::Failed(failure) => failed(&failure),
        other => CliError::from(other).with_exit(Exit::Engine),
    }
}

/// Takes the container's lock, waiting for a keeper that is just cleaning up.
///
/// # Errors
/// When it is running after all.
pub fn lock(containers: &Containers, record: &Record) -> Result<Lock, CliError> {
    for _ in 0..LOCK_ATTEMPTS {
        match containers.lock(&record.id) {
            Err(ContainerError::Busy(_)) => std::thread::sleep(LOCK_WAIT),
            other => return Ok(other?),
        }
    }
    Ok(containers.lock(&record.id)?)
}

/// Removes a container that never ran.
pub fn discard(containers: &Containers, record: &Record) {
    if let Ok(lock) = lock(containers, record)
        && let Ok(grave) = containers.unlink(record, &lock)
    {
        supervisor::remove::stale_socket(&record.id); // its keeper may have been killed
        let maps = choose(&Facts::gather(), Wanted::Usual); // whichever it had: its files are within these
        let _ = supervisor::remove::tree(&grave, &maps); // a left-over is swept by a later command
    }
}
