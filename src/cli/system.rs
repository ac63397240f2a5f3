//! Manage the engine's disk: what it takes, what can go, whether it is whole.

use super::format::human_size_exact;
use super::prune::confirm;
use super::rm::remove_container;
use super::{CliError, Context, Exit, Outcome};
use super::{df, events, images, info, revive, verify, volume};
use crate::image;
use crate::store::containers::Containers;
use crate::store::{Depth, Mending, Part, Store};

/// Manage images, containers and volumes on the disk together
#[expect(missing_docs, reason = "clap takes the help of each verb from the type of its arguments")]
#[derive(clap::Subcommand, Debug)]
pub enum Verb {
    Check(CheckArgs),
    Df(df::Args),
    Events(events::Args),
    Info(info::Args),
    Prune(PruneArgs),
    StartAll(revive::StartAllArgs),
}

/// Check that what is stored is whole
#[derive(clap::Args, Debug)]
pub struct CheckArgs {
    /// With --repair, remove containers of images that have to go, too
    #[arg(short, long)]
    force: bool,
    /// Skip what needs the content of layers to be read
    #[arg(short, long)]
    quick: bool,
    /// Make again what can be made again, and remove images that are beyond repair
    #[arg(short, long)]
    repair: bool,
}

/// Remove unused data
#[derive(clap::Args, Debug)]
pub struct PruneArgs {
    /// Remove all unused images, not just dangling ones
    #[arg(short, long)]
    all: bool,
    /// Provide filter values (e.g. "label=KEY=VALUE")
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,
    /// Do not prompt for confirmation
    #[arg(short, long)]
    force: bool,
    /// Prune anonymous volumes
    #[arg(long)]
    volumes: bool,
}

/// Does one of them.
///
/// # Errors
/// Those of the verb.
pub fn run(ctx: &Context, verb: Verb) -> Outcome {
    match verb {
        Verb::Check(args) => check(ctx, &args),
        Verb::Df(args) => df::run(ctx, &args),
        Verb::Events(args) => events::run(ctx, &args),
        Verb::Info(args) => info::run(ctx, &args),
        Verb::StartAll(args) => revive::start_all(ctx, &args),
        Verb::Prune(args) => prune(ctx, &args),
    }
}

/// Stopped containers, then volumes and images, which they may have used.
fn prune(ctx: &Context, args: &PruneArgs) -> Outcome {
    let containers = super::ps::Filter::parse(&ctx.root, &args.filter, super::prune::FILTERS)?;
    if args.volumes && args.filter.iter().any(|filter| filter.starts_with("until=")) {
        return Err(CliError::new("The \"until\" filter is not supported with \"--volumes\""));
    }
    if !args.force && !confirm(&warning(args))? {
        return Ok(Exit::Success);
    }
    let mut freed = super::prune::remove_stopped(ctx, &containers)?;
    if args.volumes {
        freed += volume::remove_anonymous(ctx, &args.filter)?;
    }
    freed += images::prune_all(ctx, &args.filter, args.all)?;
    // Labels are of images and containers; of the cache all goes, or nothing.
    if args.filter.is_empty() {
        freed += super::builder::remove_unused(ctx, args.all, None, 0)?;
    }
    println!("Total reclaimed space: {}", human_size_exact(freed));
    Ok(Exit::Success)
}

fn warning(args: &PruneArgs) -> String {
    let mut lines = vec!["WARNING! This will remove:", "  - all stopped containers"];
    if args.volumes {
        lines.push("  - all anonymous volumes not used by at least one container");
    }
    lines.push(if args.all {
        "  - all images without at least one container associated to them"
    } else {
        "  - all dangling images"
    });
    lines.push(if args.all { "  - all build cache" } else { "  - unused build cache" });
    let mut text = lines.join("\n") + "\n";
    if !args.filter.is_empty() {
        text += "\n  Items to be pruned will be filtered with:\n";
        for filter in &args.filter {
            text += &format!("  - {filter}\n");
        }
    }
    text
}

fn check(ctx: &Context, args: &CheckArgs) -> Outcome {
    let store = Store::open(&ctx.root)?;
    let containers = Containers::new(&ctx.root);
    let mut bad = false;
    for id in containers.ids()? {
        // What `status` finds of dead keepers it mends itself.
        if let Err(error) = containers.record(&id).and_then(|_| containers.status(&id)) {
            println!("container {}: {}", id.short(), CliError::from(error).message());
            bad = true;
        }
    }
    store.sweep_leftovers()?;
    let depth = if args.quick { Depth::Presence } else { Depth::Content };
    let mending = if args.repair { Mending::Repair } else { Mending::Report };
    let catalog = store.catalog()?;
    let report = verify::check(&store, None, depth, mending)?;
    verify::print(&report, &catalog, false);
    if !args.repair {
        return Ok(if bad || report.is_bad() { Exit::Failure } else { Exit::Success });
    }
    // What is beyond repair: an image without all of its layers or its config.
    let lost = report
        .problems
        .iter()
        .filter(|problem| !problem.repaired && matches!(problem.part, Part::Layer | Part::Blob));
    let mut images: Vec<_> = lost.flat_map(|problem| problem.images.iter().cloned()).collect();
    images.sort();
    images.dedup();
    for id in images {
        if args.force {
            for used in images::uses(ctx)?.iter().filter(|used| used.image == id) {
                let record = containers.find(&used.container)?;
                super::stop::stop(&containers, &record, Some(libc::SIGKILL), Some(0))?;
                remove_container(ctx, &containers, &record, false)?;
                println!("Removed container {}", used.container);
            }
        }
        if images::uses(ctx)?.iter().any(|used| used.image == id) {
            eprintln!("Image {} is used by a container and stays; --force removes both", id.short());
            bad = true;
        } else if catalog.images.contains_key(&id) {
            image::remove(&store, id.as_str(), true, &[]).map_err(images::image_error)?;
            println!("Removed image {}", id.short());
        }
    }
    // Whatever no image needs any more goes with the images.
    store.collect()?;
    let rest = store.verify(None, Depth::Presence, Mending::Report)?;
    Ok(if bad || rest.is_bad() { Exit::Failure } else { Exit::Success })
}
