//! Inspect changes to files or directories on a container's filesystem

use std::io::{BufWriter, IsTerminal as _, Write as _};

use super::{Context, Exit, Outcome, harmless};
use crate::store::containers::Containers;
use crate::supervisor::{Saved, changes};

/// Inspect changes to files or directories on a container's filesystem
#[derive(clap::Args, Debug)]
pub struct Args {
    /// CONTAINER
    container: String,
}

/// Prints a line for each changed path: C, A or D, and the path, parents before what is in them.
///
/// # Errors
/// No such container, or its files cannot be read.
pub fn run(ctx: &Context, args: &Args) -> Outcome {
    let containers = Containers::new(&ctx.root);
    let record = containers.find(&args.container)?;
    let saved: Saved = containers.plan(&record.id)?;
    let lines = changes::list(&record, &saved, &containers.status(&record.id)?)?;
    let is_terminal = std::io::stdout().is_terminal();
    let mut out = BufWriter::new(std::io::stdout().lock());
    for line in lines {
        write!(out, "{} ", line.letter)?;
        if is_terminal {
            out.write_all(harmless::text(&String::from_utf8_lossy(&line.path)).as_bytes())?;
        } else {
            out.write_all(&line.path)?;
        }
        out.write_all(b"\n")?;
    }
    out.flush()?;
    Ok(Exit::Success)
}
