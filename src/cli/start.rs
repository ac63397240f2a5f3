//! Start one or more stopped containers

use super::relay::{self, Channel};
use super::run::{follow, own_size, start};
use super::{CliError, Context, Exit, Outcome, each};
use crate::store::containers::{Containers, Status};
use crate::supervisor::{Attach, Saved};

/// Start one or more stopped containers
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Attach STDOUT/STDERR and forward signals
    #[arg(short, long)]
    attach: bool,
    /// Override the key sequence for detaching a container
    #[arg(long, value_name = "KEYS")]
    detach_keys: Option<String>,
    /// Attach container's STDIN
    #[arg(short, long)]
    interactive: bool,
    /// CONTAINER [CONTAINER...]
    #[arg(required = true)]
    containers: Vec<String>,
}

/// Starts each; one that runs already is left alone.
///
/// # Errors
/// What did not start; the others are tried all the same.
pub fn run(ctx: &Context, args: &Args) -> Outcome {
    let containers = Containers::new(&ctx.root);
    if args.attach || args.interactive {
        let [reference] = args.containers.as_slice() else {
            return Err(CliError::new("you cannot start and attach multiple containers at once"));
        };
        return attached(&containers, reference, args);
    }
    each(&args.containers, |reference| {
        let record = containers.find(reference)?;
        if !containers.status(&record.id)?.is_live() {
            let saved: Saved = containers.plan(&record.id)?;
            start(&containers, &record, saved, None, None)?;
        }
        println!("{reference}");
        Ok(())
    })
}

fn attached(containers: &Containers, reference: &str, args: &Args) -> Outcome {
    let record = containers.find(reference)?;
    if matches!(containers.status(&record.id)?, Status::Running(_) | Status::Restarting(..)) {
        return Ok(Exit::Success);
    }
    let saved: Saved = containers.plan(&record.id)?;
    let terminal = saved.request.stdio.tty;
    let stdin = args.interactive && saved.plan.stdin_open;
    let attach = Attach { stdin, size: if terminal { own_size() } else { None } };
    let (keeper, stream) = start(containers, &record, saved, Some(attach), None)?;
    let options = relay::Options {
        stdin,
        terminal,
        proxy_signals: true,
        detach_keys: relay::detach_keys(args.detach_keys.as_deref())?,
        tells_of_leaving: false,
    };
    match stream {
        Some(stream) => follow(&keeper, Channel::Stream(stream), &options),
        None => Ok(Exit::Success),
    }
}
