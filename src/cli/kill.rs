//! Kill one or more running containers

use super::stop::reach;
use super::{CliError, Context, Outcome, each};
use crate::plan::signal;
use crate::store::containers::Containers;
use crate::supervisor::control::{Reply, Request};

/// Kill one or more running containers
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Signal to send to the container
    #[arg(short, long, default_value = "KILL")]
    signal: String,
    /// CONTAINER [CONTAINER...]
    #[arg(required = true)]
    containers: Vec<String>,
}

/// Sends the signal to each; after SIGKILL it waits for the end, so that the next command sees it.
///
/// # Errors
/// No such container, or it does not run.
pub fn run(ctx: &Context, args: &Args) -> Outcome {
    let containers = Containers::new(&ctx.root);
    let signal = signal::parse(&args.signal)?;
    each(&args.containers, |reference| {
        let record = containers.find(reference)?;
        let not_running = || {
            CliError::new(format!(
                "cannot kill container: {reference}: container {} is not running",
                record.id
            ))
        };
        let client = reach(&containers, &record)?.ok_or_else(not_running)?;
        if signal == libc::SIGKILL {
            client.send(&Request::Stop { signal, timeout_s: 0 }, &[])?;
        } else {
            client.send(&Request::Signal { signal }, &[])?;
        }
        match client.receive()? {
            Some(Reply::Refused(what)) => return Err(CliError::new(what)),
            Some(_) | None => println!("{reference}"),
        }
        Ok(())
    })
}
