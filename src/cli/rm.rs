//! Remove one or more containers

use super::run::lock;
use super::stop::stop;
use super::{CliError, Context, Exit, Outcome, each};
use crate::sandbox::idmap::{Facts, Wanted, choose};
use crate::store::containers::{ContainerError, Containers, Record};
use crate::supervisor::remove;

/// Remove one or more containers
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Force the removal of a running container (uses SIGKILL)
    #[arg(short, long)]
    force: bool,
    /// Remove anonymous volumes associated with the container
    #[arg(short, long)]
    volumes: bool,
    /// CONTAINER [CONTAINER...]
    #[arg(required = true)]
    containers: Vec<String>,
}

/// Removes each.
///
/// # Errors
/// No such container (nothing wrong with `-f`), or it runs and `-f` was not given.
pub fn run(ctx: &Context, args: &Args) -> Outcome {
    let containers = Containers::new(&ctx.root);
    each(&args.containers, |reference| {
        let record = match containers.find(reference) {
            Err(error @ ContainerError::NotFound(_)) if args.force => {
                eprintln!("Error: {error}"); // Docker says so too, and ends with 0
                return Ok(());
            }
            other => other?,
        };
        if args.force {
            stop(&containers, &record, Some(libc::SIGKILL), Some(0))?;
        } else {
            let status = containers.status(&record.id)?;
            if status.is_live() {
                let (name, word) = (format!("/{}", record.name), status.word());
                let word = if word == "created" { "running" } else { word };
                return Err(CliError::new(format!(
                    "cannot remove container {name:?}: container is {word}: stop the container before removing or force remove"
                )));
            }
        }
        remove_container(ctx, &containers, &record, args.volumes)?;
        println!("{reference}");
        Ok(())
    })
}

/// Removes a container that does not run.
///
/// # Errors
/// When it runs, or its files cannot be removed.
pub fn remove_container(
    ctx: &Context,
    containers: &Containers,
    record: &Record,
    volumes: bool,
) -> Result<(), CliError> {
    match lock(containers, record) {
        Ok(lock) => {
            let grave = match containers.unlink(record, &lock) {
                Err(ContainerError::NotFound(_)) => return Ok(()), // a --rm container that went by itself
                other => other?,
            };
            containers.tell(record, "destroy", &[]);
            remove::stale_socket(&record.id);
            let maps = choose(&Facts::gather(), Wanted::Usual);
            remove::tree(&grave, &maps).map_err(|error| {
                CliError::new(format!(
                    "container {} is removed, but not all its files: {error}",
                    record.id.short()
                ))
            })?;
        }
        // Gone by itself.
        Err(error) if containers.find(record.id.as_str()).is_err() && error.exit == Exit::Failure => {}
        Err(error) => return Err(error),
    }
    if volumes {
        remove_anonymous(ctx, record)?;
    }
    Ok(())
}

/// Removes the volumes that were made for the container alone.
///
/// # Errors
/// When the store cannot be read.
pub fn remove_anonymous(ctx: &Context, record: &Record) -> Result<(), CliError> {
    remove::anonymous_volumes(&ctx.root, record, &choose(&Facts::gather(), Wanted::Usual))?;
    Ok(())
}
