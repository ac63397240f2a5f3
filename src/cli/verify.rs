//! Check that stored images are what they were when they came

use std::collections::BTreeSet;

use serde_json::json;

use super::format::human_size;
use super::images::image_error;
use super::progress::{Output, Show};
use super::{CliError, Context, Exit, Outcome};
use crate::id::Digest;
use crate::image::{self, Reference, registry};
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
    /// Make again what can be made again (indexes, the OCI layout), and fetch again what came from a registry
    #[arg(long)]
    repair: bool,
    /// [IMAGE...] (default: the whole store)
    images: Vec<String>,
}

/// Rounds of fetching: a manifest, then what it names, then what is made of that.
const MAX_ROUNDS: usize = 3;

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
    let only = (!only.is_empty()).then_some(&only[..]);
    let report = check(&store, only, Depth::Content, mending)?;
    if args.format == "json" {
        println!("{}", super::format::json_compact(&as_json(&report, &catalog)));
    } else {
        print(&report, &catalog, args.quiet);
    }
    Ok(if report.is_bad() { Exit::Failure } else { Exit::Success })
}

/// Checks, and with [`Mending::Repair`] also fetches again from registries what cannot be made again from
/// the rest of the store. What could not be fetched is told on standard error.
///
/// # Errors
/// A store that cannot be read or written.
pub fn check(
    store: &Store,
    only: Option<&[Digest]>,
    depth: Depth,
    mending: Mending,
) -> Result<Report, CliError> {
    let first = store.verify(only, depth, mending)?;
    if mending == Mending::Report || !first.is_bad() {
        return Ok(first);
    }
    let show = Show::new(Output::Stderr, true);
    let (mut problems, mut last) = (first.problems.clone(), first);
    // A manifest that has come again may tell of layers that are missing, too.
    for _ in 0..MAX_ROUNDS {
        let failures = registry::repair(store, &last.problems, &show).map_err(image_error)?;
        let next = store.verify(only, depth, mending)?;
        let is_progress = next != last;
        last = next;
        if !last.is_bad() || !is_progress {
            for (name, error) in failures {
                eprintln!("Warning: {name} cannot be had again: {}", image_error(error).message());
            }
            break;
        }
    }
    problems.extend(
        last.problems.iter().filter(|found| !is_among(&problems, found)).cloned().collect::<Vec<_>>(),
    );
    for problem in &mut problems {
        let now = last.problems.iter().find(|now| is_same(now, problem));
        problem.repaired = now.is_none_or(|now| now.repaired);
    }
    Ok(Report { checked: last.checked, problems })
}

fn is_same(one: &Problem, other: &Problem) -> bool {
    (one.part, &one.name) == (other.part, &other.name)
}

fn is_among(problems: &[Problem], wanted: &Problem) -> bool {
    problems.iter().any(|found| is_same(found, wanted))
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
        eprintln!(
            "Hint: `hostel image verify --repair` makes indexes and the layout again, and fetches again what came from a registry"
        );
    }
    if open().any(|problem| problem.part == Part::CompressedLayer) {
        eprintln!(
            "Hint: a compressed layer is what a push needs to keep the image's digest; `--repair` fetches it again"
        );
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
        let names: Vec<String> = catalog.names_with(id).map(|(name, _)| familiar(name)).collect();
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
