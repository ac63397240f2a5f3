//! Create a tag TARGET_IMAGE that refers to SOURCE_IMAGE

use super::images::image_error;
use super::{CliError, Context, Exit, Outcome};
use crate::image::{self, Reference};
use crate::store::Store;

/// Create a tag TARGET_IMAGE that refers to SOURCE_IMAGE
#[derive(clap::Args, Debug)]
pub struct Args {
    /// SOURCE_IMAGE[:TAG]
    source: String,
    /// TARGET_IMAGE[:TAG]
    target: String,
}

/// Gives the image the name; whatever had it loses it.
///
/// # Errors
/// No such image; the name is none.
pub fn run(ctx: &Context, args: &Args) -> Outcome {
    let target = &args.target;
    if let Err(error) = target.parse::<Reference>() {
        return Err(CliError::new(format!(
            "Error parsing reference: {target:?} is not a valid repository/tag: {error}"
        )));
    }
    image::tag(&Store::open(&ctx.root)?, &args.source, target).map_err(image_error)?;
    Ok(Exit::Success)
}
