//! Check that stored images are what they were when they came

use std::collections::BTreeSet;

use serde_json::json;

use super::format::human_size;
use super::images::image_error;
use super::{Context, Exit, Outcome};
use crate::id::Digest;
use crate::image::{self, Reference};
use crate::store::{Catalog, Checked, Depth, Mending, Part, Problem, Report, Store};

/// Check that stored images are what they were when they came
///
/// Every config, manifest, layer and index is read and compared with the digest or checksum that it
/// was stored under. Ends with 1 when something is wrong (and, with --repair, could not be mended).
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Format output: 'text' or 'json'
    #[arg(long, default_value = "text", value_parser = ["text", "json"])]
    format: String,
    /// Only print what is wrong
    #[arg(short, long)]
    quiet: bool,
    /// Make again what can be made again: indexes and the OCI layout
    #[arg(long)]
    repair: bool,
    /// [IMAGE...] (default: the whole store)
    images: Vec<String>,
}

/// Checks, prints what is wrong, and says what helps.
///
/// # Errors
/// No such image; a store that cannot be read.
pub fn run(ctx: &Context, args: &Args) -> Outcome {
    let store = Store::open(&ctx.root)?;
    let catalog = store.catalog()?;
    let only: Result<Vec<Digest>, _> = args.images.iter().map(|name| image::find(&catalog, name)).collect();
    let only = only.map_err(image_error)?;
    let mending = if args.repair { Mending::Repair } else { Mending::Report };
    let report = store.verify((!only.is_empty()).then_some(&only), Depth::Content, mending)?;
    if args.format == "json" {
        println!("{}", super::format::json_compact(&as_json(&report, &catalog)));
    } else {
        print(&report, &catalog, args.quiet);
    }
    Ok(if report.is_bad() { Exit::Failure } else { Exit::Success })
}

fn as_json(report: &Report, catalog: &Catalog) -> serde_json::Value {
    let problems: Vec<_> = report
        .problems
        .iter()
        .map(|problem| {
            let mut value = json!(problem);
            value["Names"] = json!(names(problem, catalog));
            value
        })
        .collect();
    json!({ "Checked": report.checked, "Problems": problems })
}

/// Prints findings to stdout, and what helps to stderr.
pub fn print(report: &Report, catalog: &Catalog, quiet: bool) {
    for problem in &report.problems {
        println!("{}", sentence(problem, catalog));
    }
    if !quiet {
        println!("{}", summary(&report.checked, report));
    }
    let open = || report.problems.iter().filter(|problem| !problem.repaired);
    if open().any(|problem| problem.repairable) {
        eprintln!("Hint: `hostel image verify --repair` makes indexes and the layout again");
    }
    if open().any(|problem| !problem.repairable && matches!(problem.part, Part::Layer | Part::Blob)) {
        eprintln!("Hint: remove the images named above (`hostel rmi -f`) and load or pull them again");
    }
}

fn sentence(problem: &Problem, catalog: &Catalog) -> String {
    let users = names(problem, catalog);
    let users = if users.is_empty() {
        "no image".to_owned()
    } else {
        users.into_iter().collect::<Vec<_>>().join(", ")
    };
    let repaired = if problem.repaired { "; repaired" } else { "" };
    format!("{} {}: {} (used by {users}){repaired}", problem.part.words(), problem.name, problem.problem)
}

/// What the images that need it are called; an image without a name by its short id.
fn names(problem: &Problem, catalog: &Catalog) -> BTreeSet<String> {
    let familiar =
        |name: &str| name.parse::<Reference>().map_or_else(|_| name.to_owned(), |name| name.familiar());
    let of_image = |id: &Digest| {
        let names: Vec<String> = catalog.names_of(id).map(|(name, _)| familiar(name)).collect();
        if names.is_empty() { vec![id.short().to_owned()] } else { names }
    };
    problem.images.iter().flat_map(of_image).collect()
}

fn summary(checked: &Checked, report: &Report) -> String {
    let count = report.problems.len();
    let repaired = report.problems.iter().filter(|problem| problem.repaired).count();
    let result = match (count, repaired) {
        (0, _) => "nothing is wrong".to_owned(),
        (1, 0) => "1 problem".to_owned(),
        (count, 0) => format!("{count} problems"),
        (count, repaired) => format!("{count} problems, {repaired} repaired"),
    };
    format!(
        "Checked {} images: {} blobs, {} layers, {} indexes, {}: {result}",
        checked.images,
        checked.blobs,
        checked.layers,
        checked.indexes,
        human_size(checked.bytes)
    )
}
