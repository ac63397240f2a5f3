//! `images`, and what else is said about images: inspect, history, prune.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::client_config::ClientConfig;
use super::filter::{self, Filters};
use super::format::{Table, ago, check_inspect, go_time, human_size, human_size_exact, raw, render_inspect};
use super::{CliError, Context, Exit, Outcome};
use crate::id::Digest;
use crate::image::registry::RegistryError;
use crate::image::{self, ContainerUse, ImageError, Platform, Reference};
use crate::store::containers::Containers;
use crate::store::{Catalog, ImageEntry, Store};

/// List images
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Show all images (default hides intermediate images)
    #[arg(short, long)]
    all: bool,
    /// Show digests
    #[arg(long)]
    digests: bool,
    /// Filter output based on conditions provided: dangling, label, before, since, until, reference, readonly
    #[arg(short, long, value_name = "FILTER")]
    filter: Vec<String>,
    /// Format output using a custom template: 'table', 'table TEMPLATE', 'json', or 'TEMPLATE'
    #[arg(long, default_value = "", hide_default_value = true)]
    format: String,
    /// Don't truncate output
    #[arg(long)]
    no_trunc: bool,
    /// Only show image IDs
    #[arg(short, long)]
    quiet: bool,
    /// [REPOSITORY[:TAG]]
    repository: Option<String>,
}

/// Display detailed information on one or more images
#[derive(clap::Args, Debug)]
pub struct InspectArgs {
    /// Format output using a custom template: 'json', or 'TEMPLATE'
    #[arg(short, long)]
    format: Option<String>,
    /// Of an image for several platforms this one (os[/arch[/variant]])
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
    /// IMAGE [IMAGE...]
    #[arg(required = true)]
    images: Vec<String>,
}

/// Show the history of an image
#[derive(clap::Args, Debug)]
pub struct HistoryArgs {
    /// Format output using a custom template: 'table', 'table TEMPLATE', 'json', or 'TEMPLATE'
    #[arg(long, default_value = "", hide_default_value = true)]
    format: String,
    /// Print sizes and dates in human readable format
    #[arg(short = 'H', long, default_value_t = true, num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set)]
    human: bool,
    /// Don't truncate output
    #[arg(long)]
    no_trunc: bool,
    /// Of an image for several platforms this one (os[/arch[/variant]])
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
    /// Only show image IDs
    #[arg(short, long)]
    quiet: bool,
    /// IMAGE
    image: String,
}

/// Remove unused images
#[derive(clap::Args, Debug)]
pub struct PruneArgs {
    /// Remove all unused images, not just dangling ones
    #[arg(short, long)]
    all: bool,
    /// Provide filter values (e.g. "until=24h", "label=key=value")
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,
    /// Do not prompt for confirmation
    #[arg(short, long)]
    force: bool,
}

/// What Docker shows where there is no name, tag or digest.
const NONE: &str = "<none>";
/// What Docker shows for what it does not know.
const UNKNOWN: &str = "N/A";

const HEADINGS: &[(&str, &str)] = &[
    ("Containers", "CONTAINERS"),
    ("CreatedAt", "CREATED AT"),
    ("CreatedSince", "CREATED"),
    ("Digest", "DIGEST"),
    ("ID", "IMAGE ID"),
    ("ReadOnly", "R/O"),
    ("Repository", "REPOSITORY"),
    ("SharedSize", "SHARED SIZE"),
    ("Size", "SIZE"),
    ("Tag", "TAG"),
    ("UniqueSize", "UNIQUE SIZE"),
    ("VirtualSize", "SIZE"),
];
const COLUMNS: &str = "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}";
const WITH_READ_ONLY: &str =
    "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}\t{{.ReadOnly}}";
const WITH_BOTH: &str =
    "{{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}\t{{.ReadOnly}}";
const WITH_DIGESTS: &str = "{{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}";

/// Prints the table, newest image first.
///
/// # Errors
/// A filter or template that is wrong; a store that cannot be read.
pub fn run(ctx: &Context, args: &Args) -> Outcome {
    let store = Store::open(&ctx.root)?;
    let catalog = store.catalog()?;
    let mut filter = Filter::parse(&args.filter, &catalog, LIST_FILTERS)?;
    filter.references.extend(args.repository.clone());
    let mut images: Vec<(&Digest, &ImageEntry)> = catalog.images.iter().collect();
    images.sort_by_key(|(id, entry)| (std::cmp::Reverse(created(entry)), *id));
    let mut rows = Vec::new();
    let now = Timestamp::now();
    for (id, entry) in images {
        if !filter.keeps(&store, id, entry)? {
            continue;
        }
        let names: Vec<_> = catalog.names_of(id).collect();
        // Those of other platforms are behind the name that has them all.
        if names.is_empty() && !args.all && catalog.names_with(id).next().is_some() {
            continue;
        }
        let read_only = catalog.read_only.contains_key(id);
        let is_dangling = catalog.names_with(id).next().is_none();
        if filter.dangling.is_some_and(|dangling| dangling != is_dangling)
            || filter.read_only.is_some_and(|wanted| wanted != read_only)
        {
            continue;
        }
        let id = if args.no_trunc { id.as_str() } else { id.short() };
        if names.is_empty() && filter.references.is_empty() {
            rows.push(row(id, entry, [NONE, NONE, NONE], read_only, now));
        }
        for (name, named) in names {
            let Ok(name) = name.parse::<Reference>() else { continue };
            if !filter.names(&name) {
                continue;
            }
            let repository = name.familiar_repository();
            let digest = named.digest.as_ref().map_or(NONE, Digest::as_str);
            rows.push(row(id, entry, [&repository, name.tag().unwrap_or(NONE), digest], read_only, now));
        }
    }
    // As podman: the column is there when it tells something.
    let columns = match (args.digests, rows.iter().any(|row| row["ReadOnly"] == true)) {
        (false, false) => COLUMNS,
        (false, true) => WITH_READ_ONLY,
        (true, false) => WITH_DIGESTS,
        (true, true) => WITH_BOTH,
    };
    let table = Table { headings: HEADINGS, default: columns };
    let shown = RAW.into_iter().filter(|(word, _)| args.digests || *word != "digest").collect::<Vec<_>>();
    let format = ClientConfig::format(&args.format, args.quiet, |config| &config.images_format);
    let raw = raw(format, &shown);
    let format =
        if args.quiet && args.format.is_empty() { "{{.ID}}" } else { raw.as_deref().unwrap_or(format) };
    print!("{}", table.render(format, &rows)?);
    Ok(Exit::Success)
}

/// `--format raw`.
const RAW: [(&str, &str); 6] = [
    ("repository", "Repository"),
    ("tag", "Tag"),
    ("digest", "Digest"),
    ("image_id", "ID"),
    ("created_at", "CreatedAt"),
    ("virtual_size", "Size"),
];

fn row(
    id: &str,
    entry: &ImageEntry,
    [repository, tag, digest]: [&str; 3],
    read_only: bool,
    now: Timestamp,
) -> Value {
    let created = created(entry);
    json!({
        "Containers": UNKNOWN,
        "CreatedAt": created.map_or(UNKNOWN.to_owned(), go_time),
        "CreatedSince": created.map_or(UNKNOWN.to_owned(), |created| ago(created, now)),
        "Digest": digest,
        "ID": id,
        "Repository": repository,
        "SharedSize": UNKNOWN,
        "Size": human_size(entry.size_bytes),
        "Tag": tag,
        "UniqueSize": UNKNOWN,
        "VirtualSize": human_size_exact(entry.size_bytes),
        "ReadOnly": read_only,
    })
}

fn created(entry: &ImageEntry) -> Option<Timestamp> {
    entry.created.as_ref()?.parse().ok()
}

const LIST_FILTERS: &[&str] = &["dangling", "label", "before", "since", "until", "reference", "readonly"];
const PRUNE_FILTERS: &[&str] = &["dangling", "label", "label!", "until"];

/// `--filter`, understood.
#[derive(Default)]
struct Filter {
    dangling: Option<bool>,
    read_only: Option<bool>,
    given: Filters,
    before: Option<Timestamp>,
    since: Option<Timestamp>,
    references: Vec<String>,
}

impl Filter {
    fn parse(filters: &[String], catalog: &Catalog, known: &[&str]) -> Result<Self, CliError> {
        let given = Filters::parse(filters, known)?;
        let created = |name: &str| -> Result<Option<Timestamp>, CliError> {
            let id = image::find(catalog, name).map_err(image_error)?;
            Ok(catalog.images.get(&id).and_then(created))
        };
        let of_image = |key: &str| given.values(key).last().map(created).transpose().map(Option::flatten);
        if let Some(wrong) = given.values("reference").find(|pattern| !is_pattern(pattern)) {
            return Err(CliError::new(format!("syntax error in pattern {wrong:?}")));
        }
        let mut before = of_image("before")?;
        if let Some(value) = given.values("until").last() {
            let until = super::until(value).ok_or_else(|| {
                filter::wrong("until", value).with_hint("until is a time or a duration such as 24h")
            })?;
            before = Some(before.map_or(until, |before| before.min(until)));
        }
        Ok(Self {
            dangling: given.flag("dangling")?,
            read_only: given.flag("readonly")?,
            before,
            since: of_image("since")?,
            references: given.values("reference").map(str::to_owned).collect(),
            given,
        })
    }

    /// Whether an image passes all but the filters on names.
    fn keeps(&self, store: &Store, id: &Digest, entry: &ImageEntry) -> Result<bool, CliError> {
        let created = created(entry);
        let is_between = self.before.is_none_or(|before| created < Some(before))
            && self.since.is_none_or(|since| created > Some(since));
        if !is_between || !(self.given.has("label") || self.given.has("label!")) {
            return Ok(is_between);
        }
        let config = image::config(store, id).map_err(image_error)?;
        let labels = config.config().as_ref().and_then(|config| config.labels().clone()).unwrap_or_default();
        Ok(self.given.labels(&labels))
    }

    fn names(&self, name: &Reference) -> bool {
        let fits = |pattern: &String| {
            let pattern: Vec<char> = pattern.chars().collect();
            let matches = |text: String| matches(&pattern, &text.chars().collect::<Vec<_>>());
            matches(name.familiar()) || matches(name.familiar_repository())
        };
        self.references.is_empty() || self.references.iter().any(fits)
    }
}

/// Whether every `[` of a pattern has its `]`.
fn is_pattern(pattern: &str) -> bool {
    let mut rest = pattern;
    while let Some((_, class)) = rest.split_once('[') {
        // The first character of a class may be the bracket itself.
        let Some(end) = class.char_indices().skip(1).find(|(_, c)| *c == ']') else { return false };
        rest = &class[end.0..];
    }
    true
}

/// Go's path.Match, which Docker's reference filter uses: `*` and `?` stop at `/`; `[a-z]`, `[^a]`.
fn matches(pattern: &[char], text: &[char]) -> bool {
    match (pattern, text) {
        ([], []) => true,
        (['*', rest @ ..], _) => {
            let end = text.iter().position(|c| *c == '/').unwrap_or(text.len());
            (0..=end).any(|taken| matches(rest, &text[taken..]))
        }
        (['?', rest @ ..], [c, text @ ..]) if *c != '/' => matches(rest, text),
        (['[', rest @ ..], [c, text @ ..]) => {
            let Some(end) = rest.iter().skip(1).position(|c| *c == ']').map(|end| end + 1) else {
                return false;
            };
            let (class, negated) = match &rest[..end] {
                ['^', class @ ..] => (class, true),
                class => (class, false),
            };
            in_class(class, *c) != negated && matches(&rest[end + 1..], text)
        }
        (['\\', literal, rest @ ..], [c, text @ ..]) => literal == c && matches(rest, text),
        ([literal, rest @ ..], [c, text @ ..]) => literal == c && matches(rest, text),
        _ => false,
    }
}

fn in_class(class: &[char], c: char) -> bool {
    match class {
        [low, '-', high, rest @ ..] => (*low..=*high).contains(&c) || in_class(rest, c),
        [one, rest @ ..] => *one == c || in_class(rest, c),
        [] => false,
    }
}

/// Prints what is found, and ends with 1 when something was not.
///
/// # Errors
/// A template that is wrong; a store that cannot be read.
pub fn inspect(ctx: &Context, args: &InspectArgs) -> Outcome {
    check_inspect(args.format.as_deref())?;
    let (mut objects, mut missing) = (Vec::new(), Vec::new());
    let platform = platform(args.platform.as_deref())?;
    let store = Store::open(&ctx.root)?;
    let catalog = store.catalog()?;
    for name in &args.images {
        match image::find_for(&store, &catalog, name, platform.as_ref()).map_err(image_error) {
            Ok(id) => objects.push(describe(&store, &catalog, &id)?),
            Err(error) => missing.push(error),
        }
    }
    let format = args.format.as_deref();
    if !objects.is_empty() || format.is_none_or(|format| format.is_empty() || format == "json") {
        print!("{}", render_inspect(format, &objects)?);
    }
    for error in &missing {
        eprintln!("{}", error.render());
    }
    Ok(if missing.is_empty() { Exit::Success } else { Exit::Failure })
}

/// `--platform`.
///
/// # Errors
/// The text is no platform.
pub fn platform(text: Option<&str>) -> Result<Option<Platform>, CliError> {
    text.map(str::parse).transpose().map_err(CliError::new)
}

/// Refuses an image that is for another platform. What is not there is left to whoever looks for it.
///
/// # Errors
/// It is for another one.
pub fn require_platform(store: &Store, name: &str, platform: Option<&Platform>) -> Result<(), CliError> {
    match image::find_for(store, &store.catalog()?, name, platform) {
        Err(error @ ImageError::PlatformMismatch { .. }) => Err(image_error(error)),
        _ => Ok(()),
    }
}

/// Docker's JSON of an image; `None` where there is no such image.
///
/// # Errors
/// The store cannot be read.
pub fn inspect_value(ctx: &Context, name: &str) -> Result<Option<Value>, CliError> {
    let store = Store::open(&ctx.root)?;
    let catalog = store.catalog()?;
    match image::find(&catalog, name) {
        Ok(id) => describe(&store, &catalog, &id).map(Some),
        Err(ImageError::NotFound(_) | ImageError::Reference(_)) => Ok(None),
        Err(error) => Err(image_error(error)),
    }
}

/// Docker's JSON of an image (Engine API, ImageInspect).
fn describe(store: &Store, catalog: &Catalog, id: &Digest) -> Result<Value, CliError> {
    let entry = catalog.images.get(id).ok_or_else(|| CliError::new(format!("No such image: {id}")))?;
    let missing = || CliError::new(format!("the config of image {id} is missing from the store"));
    let bytes = store.blob(id)?.ok_or_else(missing)?;
    let raw: Value = serde_json::from_slice(&bytes)?;
    let text = |key: &str| raw.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let names: Vec<_> = catalog
        .names_with(id)
        .filter_map(|(name, entry)| Some((name.parse::<Reference>().ok()?, entry)))
        .collect();
    let mut digests: Vec<String> = names
        .iter()
        .filter_map(|(name, entry)| Some(name.clone().with_digest(entry.digest.clone()?).familiar()))
        .collect();
    digests.dedup();
    let comment = raw["history"].as_array().and_then(|history| history.last()?.get("comment")?.as_str());
    let mut object = json!({
        "Id": id,
        "RepoTags": names.iter().filter(|(name, _)| name.tag().is_some()).map(|(name, _)| name.familiar()).collect::<Vec<_>>(),
        "RepoDigests": digests,
        "Parent": "",
        "Comment": comment.unwrap_or_default(),
        "Created": entry.created.clone().unwrap_or_default(),
        "DockerVersion": text("docker_version"),
        "Author": text("author"),
        "Config": docker_config(&raw["config"]),
        "Architecture": entry.architecture,
    });
    if let (Some(variant), Some(object)) = (raw.get("variant"), object.as_object_mut()) {
        object.insert("Variant".to_owned(), variant.clone());
    }
    object["Os"] = entry.os.clone().into();
    object["Size"] = entry.size_bytes.into();
    let layers: Vec<_> = entry.layers.iter().map(|layer| store.layer_tar(layer)).collect();
    object["GraphDriver"] = json!({ "Name": "hostel", "Data": { "Layers": layers } });
    object["RootFS"] = json!({ "Type": "layers", "Layers": entry.layers });
    object["Metadata"] = json!({ "LastTagTime": "0001-01-01T00:00:00Z" });
    Ok(object)
}

/// The fields that Docker always shows in a `Config`, with what it shows when they are not set.
fn docker_config(raw: &Value) -> Value {
    let always = [
        ("Hostname", json!("")),
        ("Domainname", json!("")),
        ("User", json!("")),
        ("AttachStdin", json!(false)),
        ("AttachStdout", json!(false)),
        ("AttachStderr", json!(false)),
        ("ExposedPorts", Value::Null),
        ("Tty", json!(false)),
        ("OpenStdin", json!(false)),
        ("StdinOnce", json!(false)),
        ("Env", Value::Null),
        ("Cmd", Value::Null),
        ("Healthcheck", Value::Null),
        ("ArgsEscaped", Value::Null),
        ("Image", json!("")),
        ("Volumes", Value::Null),
        ("WorkingDir", json!("")),
        ("Entrypoint", Value::Null),
        ("OnBuild", Value::Null),
        ("Labels", Value::Null),
        ("StopSignal", Value::Null),
        ("Shell", Value::Null),
    ];
    let omitted_when_unset = ["ExposedPorts", "Healthcheck", "ArgsEscaped", "StopSignal", "Shell"];
    let mut config = Map::new();
    for (key, default) in always {
        match raw.get(key) {
            Some(value) if !value.is_null() => config.insert(key.to_owned(), value.clone()),
            _ if omitted_when_unset.contains(&key) => None,
            _ => config.insert(key.to_owned(), default),
        };
    }
    Value::Object(config)
}

const HISTORY_HEADINGS: &[(&str, &str)] = &[
    ("Comment", "COMMENT"),
    ("CreatedAt", "CREATED AT"),
    ("CreatedBy", "CREATED BY"),
    ("CreatedSince", "CREATED"),
    ("ID", "IMAGE"),
    ("Size", "SIZE"),
];
const HISTORY_COLUMNS: &str = "{{.ID}}\t{{.CreatedSince}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}";
const HISTORY_TIMES: &str = "{{.ID}}\t{{.CreatedAt}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}";
/// Characters of a build step that the table shows.
const CREATED_BY_LEN: usize = 45;
const MISSING: &str = "<missing>";

/// Prints an image's steps, the last first.
///
/// # Errors
/// No such image; a template that is wrong.
pub fn history(ctx: &Context, args: &HistoryArgs) -> Outcome {
    let store = Store::open(&ctx.root)?;
    let catalog = store.catalog()?;
    let platform = platform(args.platform.as_deref())?;
    let id = image::find_for(&store, &catalog, &args.image, platform.as_ref()).map_err(image_error)?;
    let config = image::config(&store, &id).map_err(image_error)?;
    let mut layers =
        catalog.images.get(&id).map(|entry| entry.layers.clone()).unwrap_or_default().into_iter();
    let now = Timestamp::now();
    let mut rows = Vec::new();
    for step in config.history().iter().flatten() {
        let layer = if step.empty_layer() == Some(true) { None } else { layers.next() };
        let size = match &layer {
            Some(layer) => store.layer(layer)?.map_or(0, |layer| layer.content_bytes),
            None => 0,
        };
        let created: Option<Timestamp> = step.created().as_ref().and_then(|created| created.parse().ok());
        let by = step.created_by().clone().unwrap_or_default().replace('\t', " ");
        rows.push(json!({
            "Comment": step.comment().clone().unwrap_or_default(),
            "CreatedAt": created.map_or(String::new(), |created| created.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
            "CreatedBy": if args.no_trunc { by } else { ellipsis(&by, CREATED_BY_LEN) },
            "CreatedSince": created.map_or(UNKNOWN.to_owned(), |created| ago(created, now)),
            "ID": MISSING,
            "Size": if args.human { human_size(size) } else { size.to_string() },
        }));
    }
    if let Some(last) = rows.last_mut() {
        last["ID"] = if args.no_trunc { id.as_str().into() } else { id.short().into() };
    }
    rows.reverse();
    let format = if args.quiet && args.format.is_empty() { "{{.ID}}" } else { &args.format };
    let default = if args.human { HISTORY_COLUMNS } else { HISTORY_TIMES };
    print!("{}", Table { headings: HISTORY_HEADINGS, default }.render(format, &rows)?);
    Ok(Exit::Success)
}

fn ellipsis(text: &str, length: usize) -> String {
    if text.chars().count() <= length {
        return text.to_owned();
    }
    text.chars().take(length - 1).chain(['…']).collect()
}

/// Removes images that nothing uses.
///
/// # Errors
/// A filter that is wrong; a store that cannot be read or written.
pub fn prune(ctx: &Context, args: &PruneArgs) -> Outcome {
    let catalog = Store::open(&ctx.root)?.catalog()?;
    let filter = Filter::parse(&args.filter, &catalog, PRUNE_FILTERS)?;
    let warning = if args.all || filter.dangling == Some(false) {
        "WARNING! This will remove all images without at least one container associated to them."
    } else {
        "WARNING! This will remove all dangling images."
    };
    if !args.force && !super::prune::confirm(warning)? {
        return Ok(Exit::Success);
    }
    let freed = remove_unused(ctx, &filter, args.all || filter.dangling == Some(false))?;
    println!("Total reclaimed space: {}", human_size_exact(freed));
    Ok(Exit::Success)
}

/// Removes dangling images: `system prune`; with `all` every image that no container uses. Prints
/// which, and gives the bytes that are free again.
///
/// # Errors
/// A filter that is wrong; a store that cannot be read or written.
pub fn prune_all(ctx: &Context, filters: &[String], all: bool) -> Result<u64, CliError> {
    let catalog = Store::open(&ctx.root)?.catalog()?;
    remove_unused(ctx, &Filter::parse(filters, &catalog, PRUNE_FILTERS)?, all)
}

fn remove_unused(ctx: &Context, filter: &Filter, all: bool) -> Result<u64, CliError> {
    let store = Store::open(&ctx.root)?;
    let mut kept = BTreeMap::new();
    for (id, entry) in &store.own_catalog()?.images {
        kept.insert(id.clone(), !filter.keeps(&store, id, entry)?);
    }
    // An image that came meanwhile was not asked about.
    let keep = |id: &Digest, _: &ImageEntry| kept.get(id).copied().unwrap_or(true);
    let pruned = image::prune(&store, all, &uses(ctx)?, keep).map_err(image_error)?;
    if !pruned.removals.is_empty() {
        println!("Deleted Images:");
        for removal in &pruned.removals {
            removal.untagged.iter().for_each(|name| println!("untagged: {name}"));
            removal.deleted.iter().for_each(|id| println!("deleted: {id}"));
        }
        println!();
    }
    super::prune::tell(ctx, "image", pruned.reclaimed_bytes);
    Ok(pruned.reclaimed_bytes)
}

/// Which containers keep which images from being removed.
///
/// # Errors
/// The containers cannot be listed.
pub fn uses(ctx: &Context) -> Result<Vec<ContainerUse>, CliError> {
    let containers = Containers::new(&ctx.root);
    let mut uses = Vec::new();
    for id in containers.ids()? {
        // One that goes away meanwhile uses nothing.
        let (Ok(record), Ok(status)) = (containers.record(&id), containers.status(&id)) else { continue };
        let images = record.image_id.iter().chain(&record.mounted_images).filter_map(|id| id.parse().ok());
        uses.extend(images.map(|image| ContainerUse {
            container: id.short().to_owned(),
            image,
            is_running: status.is_live(),
        }));
    }
    Ok(uses)
}

/// An image's error at the edge.
pub fn image_error(error: ImageError) -> CliError {
    let hint = match &error {
        // Capitals before the first `/` are a host to the grammar, and a slip to most who type them.
        ImageError::Registry(RegistryError::Transport { .. } | RegistryError::Unreachable { .. }) => Some(
            "without a registry, bring images in with `hostel load -i FILE` or `hostel pull oci:DIR:TAG`",
        ),
        _ => None,
    };
    let error = CliError::from(error);
    match hint {
        Some(hint) => error.with_hint(hint),
        None => error,
    }
}

/// The error of `run` and `create` for an image that cannot be used: exit 125.
pub fn resolve_error(error: ImageError) -> CliError {
    image_error(error).with_exit(Exit::Engine)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_gos() {
        let table = [
            ("fo*", "foo", true),
            ("*", "a/b", false),
            ("*/*", "a/b", true),
            ("f?o", "foo", true),
            ("f[a-p]o", "foo", true),
            ("f[^o]o", "foo", false),
            ("foo", "foo:1", false),
            ("foo:*", "foo:1", true),
            ("[", "x", false),
            ("a\\*", "a*", true),
            ("", "", true),
        ];
        for (pattern, text, wanted) in table {
            let [pattern, chars] = [pattern, text].map(|text| text.chars().collect::<Vec<_>>());
            assert_eq!(matches(&pattern, &chars), wanted, "{pattern:?} {text}");
        }
    }

    #[test]
    fn configs_are_filled_up_as_docker_does() {
        let config = docker_config(&json!({ "Env": ["A=1"], "StopSignal": "SIGINT" }));
        let keys: Vec<&str> =
            config.as_object().into_iter().flat_map(Map::keys).map(String::as_str).collect();
        assert_eq!(
            keys,
            [
                "Hostname",
                "Domainname",
                "User",
                "AttachStdin",
                "AttachStdout",
                "AttachStderr",
                "Tty",
                "OpenStdin",
                "StdinOnce",
                "Env",
                "Cmd",
                "Image",
                "Volumes",
                "WorkingDir",
                "Entrypoint",
                "OnBuild",
                "Labels",
                "StopSignal",
            ]
        );
        assert_eq!(docker_config(&Value::Null)["Cmd"], Value::Null);
    }

    #[test]
    fn long_steps_end_in_an_ellipsis() {
        assert_eq!(ellipsis("short", 45), "short");
        assert_eq!(ellipsis("äöüß", 3), "äö…");
    }
}
