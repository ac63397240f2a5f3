//! Execute a command in a running container

use std::io::IsTerminal as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;

use oci_spec::runtime::Process;

use super::relay::{self, Channel};
use super::run::{failed, follow, own_size};
use super::run_args::{Caller, EnvArgs};
use super::{CliError, Context, Exit, Outcome, running};
use crate::plan::process::joined_environment;
use crate::store::containers::Containers;
use crate::supervisor::Saved;
use crate::supervisor::client::Client;
use crate::supervisor::control::{ExecRequest, Reply, Request};
use crate::sys;

/// Execute a command in a running container
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Detached mode: run command in the background
    #[arg(short, long)]
    detach: bool,
    /// Override the key sequence for detaching a container
    #[arg(long, value_name = "KEYS")]
    detach_keys: Option<String>,
    #[command(flatten)]
    env: EnvArgs,
    /// Keep STDIN open even if not attached
    #[arg(short, long)]
    interactive: bool,
    /// Give extended privileges to the command
    #[arg(long)]
    privileged: bool,
    /// Allocate a pseudo-TTY
    #[arg(short, long)]
    tty: bool,
    /// Username or UID (format: "<name|uid>[:<group|gid>]")
    #[arg(short, long)]
    user: Option<String>,
    /// Working directory inside the container
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<PathBuf>,
    /// CONTAINER
    container: String,
    /// COMMAND [ARG...]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    command: Vec<String>,
}

/// Runs a process in the container and, unless detached, waits for it.
///
/// # Errors
/// No such container, not running: 1; 126 and 127 for the command's; 125 for the engine's.
pub fn run(ctx: &Context, args: &Args) -> Outcome {
    let containers = Containers::new(&ctx.root);
    let record = containers.find(&args.container)?;
    let state = running(&containers, &record)?;
    if state.paused {
        let id = &record.id;
        return Err(CliError::new(format!("Container {id} is paused, unpause the container before exec")));
    }
    let saved: Saved = containers.plan(&record.id)?;
    let client = Client::connect(&state.socket)
        .map_err(|error| CliError::new(format!("cannot reach the container's supervisor: {error}")))?;
    if args.tty && args.interactive && !args.detach && !std::io::stdin().is_terminal() {
        return Err(CliError::new("the input device is not a TTY"));
    }
    let process = process(args, &saved)?;
    let request = ExecRequest {
        process,
        user: args.user.clone(),
        privileged: args.privileged,
        size: if args.tty { own_size() } else { None },
    };
    let request = Request::Exec(Box::new(request));
    let ends = if args.tty {
        Ends::terminal(&client, &request)?
    } else {
        Ends::pipes(&client, &request, args.interactive && !args.detach)?
    };
    match client.receive()? {
        Some(Reply::Started { .. }) => {}
        Some(Reply::Failed(failure)) => return Err(failed(&failure)),
        Some(Reply::Refused(what)) => return Err(CliError::new(what)),
        Some(Reply::Ok | Reply::Exited { .. } | Reply::Namespaces { .. }) | None => {
            return Err(CliError::new("the container ended before the command was started")
                .with_exit(Exit::Container(137)));
        }
    }
    if args.detach {
        return Ok(Exit::Success);
    }
    let options = relay::Options {
        stdin: args.interactive,
        terminal: args.tty,
        proxy_signals: false,
        detach_keys: relay::detach_keys(args.detach_keys.as_deref())?,
        tells_of_leaving: true,
    };
    follow(&client, ends.into_channel()?, &options)
}

/// The container's own process with what the flags change: Docker's rules.
fn process(args: &Args, saved: &Saved) -> Result<Process, CliError> {
    let mut process = saved.plan.spec.process().clone().unwrap_or_default();
    let caller = Caller::current("exec")?;
    let asked = args.env.clone().parse(&caller)?;
    let env = joined_environment(process.env().as_deref().unwrap_or_default(), args.tty, &asked);
    process.set_args(Some(args.command.clone())).set_terminal(Some(args.tty)).set_env(Some(env));
    if let Some(dir) = &args.workdir {
        if !dir.is_absolute() {
            return Err(CliError::new(format!("Cwd must be an absolute path, not {:?}", dir.display()))
                .with_exit(Exit::NotExecutable));
        }
        process.set_cwd(dir.clone());
    }
    if args.privileged {
        process.set_capabilities(Some(crate::plan::capability::every()));
    }
    Ok(process)
}

/// Our ends of the process's stdio.
enum Ends {
    Pipes { stdin: Option<OwnedFd>, outputs: [OwnedFd; 2] },
    Terminal(OwnedFd),
}

impl Ends {
    fn pipes(client: &Client, request: &Request, input: bool) -> Result<Self, CliError> {
        let pipe = || nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC);
        let (out_reader, out_writer) = pipe()?;
        let (err_reader, err_writer) = pipe()?;
        let (in_reader, in_writer) = if input {
            let (reader, writer) = pipe()?;
            (reader, Some(writer))
        } else {
            (OwnedFd::from(std::fs::File::open("/dev/null")?), None)
        };
        // The keeper gets our reading ends too: should we die, it reads on, and the process lives.
        let fds = [&in_reader, &out_writer, &err_writer, &out_reader, &err_reader].map(|fd| fd.as_fd());
        client.send(request, &fds)?;
        Ok(Self::Pipes { stdin: in_writer, outputs: [out_reader, err_reader] })
    }

    fn terminal(client: &Client, request: &Request) -> Result<Self, CliError> {
        let (ours, theirs) = sys::fd::seqpacket_pair()?;
        client.send(request, &[theirs.as_fd()])?;
        Ok(Self::Terminal(ours))
    }

    fn into_channel(self) -> Result<Channel, CliError> {
        match self {
            Self::Pipes { stdin, outputs } => Ok(Channel::Pipes { stdin, outputs }),
            Self::Terminal(socket) => {
                let mut byte = [0];
                let (_, mut fds) = sys::fd::receive_with_fds(
                    socket.as_fd(),
                    &mut byte,
                    nix::sys::socket::MsgFlags::empty(),
                )?;
                fds.pop().map(Channel::Master).ok_or_else(|| CliError::new("the process has no terminal"))
            }
        }
    }
}
