//! A place for the image and volume verbs, which land next.
use super::{Context, Exit, Outcome};
/// Runs it.
///
/// # Errors
/// None.
pub fn run(_: &Context, _: Verb) -> Outcome {
    Ok(Exit::Success)
}
/// The verbs of volumes.
#[derive(clap::Subcommand, Debug)]
pub enum Verb {
    /// List volumes
    Ls,
}
/// Ids of the containers that use a volume.
#[must_use]
pub fn users(_: &crate::store::Store, _: &crate::id::Name) -> Vec<String> {
    Vec::new()
}
/// Docker's JSON of a volume.
#[must_use]
pub fn describe(_: &crate::store::Volume) -> serde_json::Value {
    serde_json::Value::Null
}
