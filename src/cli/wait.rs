//! Block until one or more containers stop, then print their exit codes

use super::stop::reach;
use super::{CliError, Context, Outcome, each};
use crate::store::containers::{Containers, Status};
use crate::supervisor::control::{Reply, Request};

/// Block until one or more containers stop, then print their exit codes
#[derive(clap::Args, Debug)]
pub struct Args {
    /// CONTAINER [CONTAINER...]
    #[arg(required = true)]
    containers: Vec<String>,
}

/// Prints the exit code of each, in the order given.
///
/// # Errors
/// No such container.
pub fn run(ctx: &Context, args: &Args) -> Outcome {
    let containers = Containers::new(&ctx.root);
    each(&args.containers, |reference| {
        let record = containers.find(reference)?;
        println!("{}", wait(&containers, &record)?);
        Ok(())
    })
}

/// Waits for one container's end.
///
/// # Errors
/// When its files cannot be read.
pub fn wait(containers: &Containers, record: &crate::store::containers::Record) -> Result<u8, CliError> {
    if let Some(client) = reach(containers, record)? {
        client.send(&Request::Wait, &[])?;
        loop {
            match client.receive()? {
                Some(Reply::Exited { code }) => return Ok(code),
                Some(Reply::Failed(failure)) => return Ok(crate::supervisor::exit_code(&failure)),
                Some(_) => {}
                None => break,
            }
        }
    }
    match containers.status(&record.id) {
        Ok(Status::Exited(_, exit)) => Ok(exit.code),
        Ok(_) => Ok(0),
        Err(error) => Err(error.into()),
    }
}
