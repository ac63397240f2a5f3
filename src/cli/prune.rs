//! Remove all stopped containers

use std::io::Write as _;

use super::rm::remove_container;
use super::{CliError, Context, Exit, Outcome};
use crate::store::containers::{Containers, Status};
use crate::store::events::Events;

/// Remove all stopped containers
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Provide filter values (e.g. `until=TIMESTAMP`)
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,
    /// Do not prompt for confirmation
    #[arg(short, long)]
    force: bool,
}

/// Removes every container that does not run and prints its id.
///
/// # Errors
/// When a container cannot be removed.
pub fn run(ctx: &Context, args: &Args) -> Outcome {
    if !args.force && !confirm("WARNING! This will remove all stopped containers.")? {
        return Ok(Exit::Success);
    }
    let filter = super::ps::Filter::parse(&ctx.root, &args.filter, FILTERS)?;
    let freed = remove_stopped(ctx, &filter)?;
    println!("Total reclaimed space: {}", super::format::human_size(freed));
    Ok(Exit::Success)
}

/// Filters of pruning containers.
pub const FILTERS: &[&str] = &["label", "label!", "until"];

/// Removes the stopped containers that pass the filter, prints which, and gives the bytes they had.
///
/// # Errors
/// When a container cannot be removed.
pub fn remove_stopped(ctx: &Context, filter: &super::ps::Filter) -> Result<u64, CliError> {
    let containers = Containers::new(&ctx.root);
    let (mut removed, mut freed) = (Vec::new(), 0);
    for id in containers.ids()? {
        let Ok(record) = containers.record(&id) else { continue };
        let status = containers.status(&id)?;
        if status.is_live()
            || matches!(status, Status::Elsewhere(_))
            || !filter.matches(&record, &status, &containers)
        {
            continue;
        }
        let size = super::ps::size_on_disk(&containers.path(&id));
        remove_container(ctx, &containers, &record, false)?;
        freed += size;
        removed.push(id);
    }
    if !removed.is_empty() {
        println!("Deleted Containers:");
        for id in removed {
            println!("{id}");
        }
        println!();
    }
    tell(ctx, "container", freed);
    Ok(freed)
}

/// Tells the journal of a prune of one kind of things, as Docker does even where nothing went.
pub fn tell(ctx: &Context, kind: &str, reclaimed_bytes: u64) {
    Events::new(&ctx.root).tell(kind, "prune", "", &[("reclaimed", &reclaimed_bytes.to_string())]);
}

/// Asks on the terminal, as Docker does.
///
/// # Errors
/// When stdin cannot be read.
pub fn confirm(warning: &str) -> Result<bool, CliError> {
    print!("{warning}\nAre you sure you want to continue? [y/N] ");
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y"))
}
