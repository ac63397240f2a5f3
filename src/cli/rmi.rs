//! Remove one or more images

use super::images::{image_error, uses};
use super::{Context, Exit, Outcome};
use crate::image::{self, ImageError};
use crate::store::Store;
use crate::store::containers::Containers;

/// Remove one or more images
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Force removal of the image
    #[arg(short, long)]
    force: bool,
    /// Do not delete untagged parents
    #[arg(long)]
    no_prune: bool,
    /// IMAGE [IMAGE...]
    #[arg(required = true)]
    images: Vec<String>,
}

/// Removes each and prints what went. What is not there is no failure with `-f`.
///
/// # Errors
/// The store cannot be read.
pub fn run(ctx: &Context, args: &Args) -> Outcome {
    let store = Store::open(&ctx.root)?;
    let (mut errors, mut fatal) = (Vec::new(), false);
    for text in &args.images {
        match image::remove(&store, text, args.force, &uses(ctx)?) {
            Ok(removal) => {
                removal.untagged.iter().for_each(|name| println!("Untagged: {name}"));
                removal.deleted.iter().for_each(|id| println!("Deleted: {id}"));
            }
            Err(error) => {
                fatal |= !args.force || !matches!(error, ImageError::NotFound(_));
                errors.push(image_error(error));
            }
        }
    }
    // What was written out of the images may belong to subordinate ids.
    super::create::sweep(&Containers::new(&ctx.root));
    for error in errors {
        eprintln!("{}", error.render());
    }
    Ok(if fatal { Exit::Failure } else { Exit::Success })
}
