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
/// Arguments.
#[derive(clap::Args, Debug)]
pub struct InspectArgs {}
/// Arguments.
#[derive(clap::Args, Debug)]
pub struct PruneArgs {}
/// Arguments.
#[derive(clap::Args, Debug)]
pub struct HistoryArgs {}
/// `image inspect`.
///
/// # Errors
/// None.
pub fn inspect(_: &Context, _: &InspectArgs) -> Outcome {
    Ok(Exit::Success)
}
/// `image prune`.
///
/// # Errors
/// None.
pub fn prune(_: &Context, _: &PruneArgs) -> Outcome {
    Ok(Exit::Success)
}
/// `history`.
///
/// # Errors
/// None.
pub fn history(_: &Context, _: &HistoryArgs) -> Outcome {
    Ok(Exit::Success)
}
/// Docker's JSON of an image, if there is one.
///
/// # Errors
/// None.
pub fn inspect_value(_: &Context, _: &str) -> Result<Option<serde_json::Value>, super::CliError> {
    Ok(None)
}
/// The command line's view of an image that cannot be had.
#[must_use]
pub fn resolve_error(error: crate::image::ImageError) -> super::CliError {
    error.into()
}
