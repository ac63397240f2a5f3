//! A place for the image and volume verbs, which land next.
use super::{Context, Exit, Outcome};
/// Arguments.
#[derive(clap::Args, Debug)]
pub struct Args {}
/// Runs it.
///
/// # Errors
/// None.
pub fn run(_: &Context, _: &Args) -> Outcome {
    Ok(Exit::Success)
}
