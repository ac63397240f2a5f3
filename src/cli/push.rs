//! Upload an image to a registry

use super::images::{self, image_error};
use super::progress::Show;
use super::{CliError, Context, Exit, Outcome};
use crate::image::registry::{self, Choice, Format};
use crate::image::{DEFAULT_TAG, Reference};
use crate::store::Store;

/// Upload an image to a registry
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Push all tags of an image to the repository
    #[arg(short, long)]
    all_tags: bool,
    /// Compress the layers anew, as "gzip" or "zstd" (podman's)
    #[arg(long, value_name = "FORMAT", value_parser = ["gzip", "zstd"])]
    compression_format: Option<String>,
    /// Skip image signing (accepted: nothing is signed)
    #[arg(long, hide = true)]
    disable_content_trust: bool,
    /// Of an image for several platforms this one alone (os[/arch[/variant]])
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
    /// Suppress verbose output
    #[arg(short, long)]
    quiet: bool,
    /// NAME[:TAG]
    #[arg(value_name = "NAME")]
    name: String,
}

/// Pushes and prints the digest under which the registry now has the image.
///
/// # Errors
/// There is no such image; the registry does not take it.
pub fn run(ctx: &Context, args: &Args) -> Outcome {
    let store = Store::open(&ctx.root)?;
    let reference: Reference = args.name.parse().map_err(CliError::from)?;
    let platform = images::platform(args.platform.as_deref())?;
    if !args.all_tags {
        images::require_platform(&store, &args.name, platform.as_ref())?;
    }
    let format = match args.compression_format.as_deref() {
        None => None,
        Some("zstd") => Some(Format::Zstd),
        Some(_) => Some(Format::Gzip),
    };
    if !args.quiet && !args.all_tags && reference.tag().is_none() && reference.digest().is_none() {
        println!("Using default tag: {DEFAULT_TAG}");
    }
    let show = Show::of_push(args.quiet);
    let choice = Choice { all_tags: args.all_tags, platform, format };
    let pushed = registry::push(&store, &args.name, &choice, &show);
    show.finish();
    for pushed in pushed.map_err(image_error)? {
        if args.quiet {
            println!("{}", pushed.name);
        } else {
            println!(
                "{}: digest: {} size: {}",
                pushed.name.tag().unwrap_or_default(),
                pushed.digest,
                pushed.size
            );
        }
    }
    show.summary();
    Ok(Exit::Success)
}
