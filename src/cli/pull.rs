//! Bring an image into the store

use super::images::image_error;
use super::{CliError, Context, Exit, Outcome};
use crate::image::{self, Added, Choice, Reference, Source};
use crate::store::Store;

/// Bring an image into the store from an OCI layout or an archive
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Pull all images of the layout or archive
    #[arg(short, long)]
    all_tags: bool,
    /// Suppress verbose output
    #[arg(short, long)]
    quiet: bool,
    /// oci:DIR[:TAG], oci-archive:FILE[:TAG] or docker-archive:FILE
    #[arg(value_name = "SOURCE")]
    source: String,
}

/// Pulls and prints what came, the last line being what the image is now called.
///
/// # Errors
/// The source cannot be read, has no such image, or is the name of a registry's.
pub fn run(ctx: &Context, args: &Args) -> Outcome {
    let store = Store::open(&ctx.root)?;
    let source = Source::parse(&args.source).map_err(image_error)?;
    if let Source::Stored(name) = &source {
        // A wrong name is told before that names cannot be pulled.
        name.parse::<Reference>().map_err(CliError::from)?;
    }
    let choice = if args.all_tags { Choice::All } else { Choice::One };
    for added in image::pull_source(&store, &source, choice).map_err(image_error)? {
        announce(&added, args);
    }
    Ok(Exit::Success)
}

fn announce(added: &Added, args: &Args) {
    let name = added.names.first().map(|(name, _)| name);
    let familiar = name.map_or_else(|| added.id.to_string(), Reference::familiar);
    if !args.quiet {
        println!(
            "{}: Pulling from {}",
            name.and_then(Reference::tag).unwrap_or(added.id.short()),
            args.source
        );
        if let Some(digest) = &added.digest {
            println!("Digest: {digest}");
        }
        let status = if added.is_new { "Downloaded newer image for" } else { "Image is up to date for" };
        println!("Status: {status} {familiar}");
    }
    println!("{}", name.map_or_else(|| added.id.to_string(), ToString::to_string));
}
