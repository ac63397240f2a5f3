//! Restart one or more containers

use super::run::start;
use super::stop::stop;
use super::{Context, Outcome, each};
use crate::plan::signal;
use crate::store::containers::Containers;
use crate::supervisor::Saved;

/// Restart one or more containers
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Signal to send to the container
    #[arg(short, long)]
    signal: Option<String>,
    /// Seconds to wait before killing the container
    #[arg(short, long, visible_alias = "time", value_name = "SECONDS", allow_hyphen_values = true)]
    timeout: Option<i64>,
    /// CONTAINER [CONTAINER...]
    #[arg(required = true)]
    containers: Vec<String>,
}

/// Stops each that runs, and starts it.
///
/// # Errors
/// As `stop` and `start`.
pub fn run(ctx: &Context, args: &Args) -> Outcome {
    let containers = Containers::new(&ctx.root);
    let asked = args.signal.as_deref().map(signal::parse).transpose()?;
    each(&args.containers, |reference| {
        let record = containers.find(reference)?;
        stop(&containers, &record, asked, args.timeout)?;
        let saved: Saved = containers.plan(&record.id)?;
        start(&containers, &record, saved, None, None)?;
        containers.tell(&record, "restart", &[]);
        println!("{reference}");
        Ok(())
    })
}
