//! Attach local standard input, output, and error streams to a running container

use std::os::fd::AsFd as _;

use super::relay::{self, Channel};
use super::run::follow;
use super::{CliError, Context, Outcome, running};
use crate::store::containers::{Containers, Status};
use crate::supervisor::Saved;
use crate::supervisor::client::Client;
use crate::supervisor::control::{Reply, Request};
use crate::sys;

/// Attach local standard input, output, and error streams to a running container
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Override the key sequence for detaching a container
    #[arg(long, value_name = "KEYS")]
    detach_keys: Option<String>,
    /// Do not attach STDIN
    #[arg(long)]
    no_stdin: bool,
    /// Proxy all received signals to the process
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    sig_proxy: bool,
    /// CONTAINER
    container: String,
}

/// Attaches until the container ends or the detach keys are typed.
///
/// # Errors
/// No such container, or it is not running.
pub fn run(ctx: &Context, args: &Args) -> Outcome {
    let containers = Containers::new(&ctx.root);
    let record = containers.find(&args.container)?;
    let state = running(&containers, &record).map_err(|error| match containers.status(&record.id) {
        Ok(Status::Restarting(..)) => error,
        _ => CliError::new("You cannot attach to a stopped container, start it first"),
    })?;
    if state.paused {
        return Err(CliError::new("You cannot attach to a paused container, unpause it first"));
    }
    let saved: Saved = containers.plan(&record.id)?;
    let client = Client::connect(&state.socket)?;
    let stdin = saved.plan.stdin_open && !args.no_stdin;
    let (ours, theirs) = sys::fd::stream_pair()?;
    client.send(&Request::Attach { stdin }, &[theirs.as_fd()])?;
    drop(theirs);
    if let Some(Reply::Refused(what)) = client.receive()? {
        return Err(CliError::new(what));
    }
    containers.tell(&record, "attach", &[]);
    let options = relay::Options {
        stdin,
        terminal: saved.request.stdio.tty,
        proxy_signals: args.sig_proxy,
        detach_keys: relay::detach_keys(args.detach_keys.as_deref())?,
        tells_of_leaving: true,
    };
    follow(&client, Channel::Stream(ours), &options)
}
