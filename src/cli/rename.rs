//! Rename a container

use super::{Context, Exit, Outcome};
use crate::store::containers::Containers;

/// Rename a container
#[derive(clap::Args, Debug)]
pub struct Args {
    /// CONTAINER
    container: String,
    /// NEW_NAME
    name: String,
}

/// Gives it the name, if that is free.
///
/// # Errors
/// No such container; a name that is in use or none.
pub fn run(ctx: &Context, args: &Args) -> Outcome {
    let containers = Containers::new(&ctx.root);
    let mut record = containers.find(&args.container)?;
    let old = format!("/{}", record.name);
    containers.rename(&mut record, args.name.parse()?)?;
    containers.tell(&record, "rename", &[("oldName", &old)]);
    Ok(Exit::Success)
}
