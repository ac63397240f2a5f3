//! Search a registry for images, and look at manifests

use serde_json::{Value, json};

use super::filter::{self, Filters};
use super::format::Table;
use super::images::image_error;
use super::{CliError, Context, Exit, Outcome};
use crate::image::registry::{self, SearchResult};

/// What Docker's registry gives at most.
const MAX_RESULTS: usize = 100;
/// Characters of a description that the table shows.
const DESCRIPTION_LEN: usize = 45;

/// Search a registry for images (Docker's, or HOST/TERM)
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Filter output based on conditions provided (stars=N, is-official=true)
    #[arg(short, long, value_name = "FILTER")]
    filter: Vec<String>,
    /// Pretty-print search using a Go template
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEMPLATE")]
    format: String,
    /// Max number of search results
    #[arg(long, default_value_t = 25, value_name = "N")]
    limit: usize,
    /// Don't truncate output
    #[arg(long)]
    no_trunc: bool,
    /// TERM, or HOST/TERM
    term: String,
}

/// Manage image manifests and manifest lists
#[derive(clap::Subcommand, Debug)]
#[command(defer = true)]
pub enum ManifestVerb {
    /// Display an image manifest, or manifest list
    Inspect(InspectArgs),
}

/// Display an image manifest, or manifest list
#[derive(clap::Args, Debug)]
pub struct InspectArgs {
    /// Allow communication with an insecure registry
    #[arg(long)]
    insecure: bool,
    /// Output additional info including layers and platform
    #[arg(short, long)]
    verbose: bool,
    /// NAME[:TAG|@DIGEST]
    name: String,
}

const HEADINGS: &[(&str, &str)] = &[
    ("Description", "DESCRIPTION"),
    ("IsAutomated", "AUTOMATED"),
    ("IsOfficial", "OFFICIAL"),
    ("Name", "NAME"),
    ("StarCount", "STARS"),
];
const COLUMNS: &str = "{{.Name}}\t{{.Description}}\t{{.StarCount}}\t{{.IsOfficial}}";

/// Prints what a registry finds.
///
/// # Errors
/// The registry cannot be searched; a filter or template that is wrong.
pub fn run(_ctx: &Context, args: &Args) -> Outcome {
    if !(1..=MAX_RESULTS).contains(&args.limit) {
        return Err(CliError::new(format!(
            "limit {} is outside the range of [1, {MAX_RESULTS}]",
            args.limit
        )));
    }
    let keeps = parse_filter(&args.filter)?;
    let found = registry::search(&args.term, args.limit).map_err(|error| image_error(error.into()))?;
    let rows: Vec<Value> =
        found.iter().filter(|result| keeps(result)).map(|result| row(result, args)).collect();
    print!("{}", Table { headings: HEADINGS, default: COLUMNS }.render(&args.format, &rows)?);
    Ok(Exit::Success)
}

fn row(result: &SearchResult, args: &Args) -> Value {
    let ok = |is: bool| if is { "[OK]" } else { "" };
    let mut description = result.description.replace(['\n', '\r', '\t'], " ");
    if !args.no_trunc && description.chars().count() > DESCRIPTION_LEN {
        description = description.chars().take(DESCRIPTION_LEN - 1).chain(['…']).collect();
    }
    json!({
        "Name": result.name, "Description": description, "StarCount": result.star_count.to_string(),
        "IsOfficial": ok(result.is_official), "IsAutomated": ok(result.is_automated),
    })
}

fn parse_filter(filters: &[String]) -> Result<impl Fn(&SearchResult) -> bool, CliError> {
    let filters = Filters::parse(filters, &["stars", "is-official", "is-automated"])?;
    let mut stars = 0;
    for count in filters.values("stars") {
        stars = count.parse::<u64>().map_err(|_| filter::wrong("stars", count))?;
    }
    let official = filters.flag("is-official")?;
    Ok(move |result: &SearchResult| {
        result.star_count >= stars && official.is_none_or(|official| official == result.is_official)
    })
}

/// Prints a manifest.
///
/// # Errors
/// No registry has it.
pub fn manifest(_ctx: &Context, verb: &ManifestVerb) -> Outcome {
    let ManifestVerb::Inspect(args) = verb;
    let value = registry::manifest(&args.name, args.verbose, args.insecure).map_err(image_error)?;
    println!("{}", super::format::json_indented(&value));
    Ok(Exit::Success)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_dockers() {
        let result = SearchResult { star_count: 7, is_official: true, ..SearchResult::default() };
        let keeps = |text: &str| parse_filter(&[text.to_owned()]).map(|keeps| keeps(&result));
        assert!(matches!(keeps("stars=7"), Ok(true)));
        assert!(matches!(keeps("stars=8"), Ok(false)));
        assert!(matches!(keeps("is-official=false"), Ok(false)));
        assert!(keeps("x=y").is_err() && keeps("stars=many").is_err());
    }
}
