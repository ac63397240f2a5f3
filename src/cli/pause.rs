//! Pause and unpause all processes within one or more containers

use super::stop::reach;
use super::{CliError, Context, Outcome, each};
use crate::store::containers::{Containers, Status};
use crate::supervisor::control::{Reply, Request};

/// Pause all processes within one or more containers
///
/// By its control group's freezer, where it has one. Elsewhere every process is stopped with SIGSTOP, which none
/// can refuse, but which a parent inside the container is told of.
#[derive(clap::Args, Debug)]
pub struct PauseArgs {
    /// CONTAINER [CONTAINER...]
    #[arg(required = true)]
    containers: Vec<String>,
}

/// Unpause all processes within one or more containers
#[derive(clap::Args, Debug)]
pub struct UnpauseArgs {
    /// CONTAINER [CONTAINER...]
    #[arg(required = true)]
    containers: Vec<String>,
}

/// Holds each up.
///
/// # Errors
/// It does not run, or is paused already.
pub fn pause(ctx: &Context, args: &PauseArgs) -> Outcome {
    ask(ctx, &args.containers, &Request::Pause)
}

/// Lets each go on.
///
/// # Errors
/// It is not paused.
pub fn unpause(ctx: &Context, args: &UnpauseArgs) -> Outcome {
    ask(ctx, &args.containers, &Request::Unpause)
}

fn ask(ctx: &Context, references: &[String], request: &Request) -> Outcome {
    let containers = Containers::new(&ctx.root);
    each(references, |reference| {
        let record = containers.find(reference)?;
        if matches!(containers.status(&record.id)?, Status::Restarting(..)) {
            return Err(CliError::new(format!(
                "Container {} is restarting, wait until the container is running",
                record.id
            )));
        }
        let client = reach(&containers, &record)?
            .ok_or_else(|| CliError::new(format!("Container {} is not running", record.id)))?;
        client.send(request, &[])?;
        match client.receive()? {
            Some(Reply::Ok) => println!("{reference}"),
            Some(Reply::Refused(what)) => return Err(CliError::new(what)),
            _ => return Err(CliError::new(format!("Container {} is not running", record.id))),
        }
        Ok(())
    })
}
