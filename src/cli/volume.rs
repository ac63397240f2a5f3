//! Manage volumes

mod transfer;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::client_config::ClientConfig;
use super::filter::Filters;
use super::format::{Table, check_inspect, human_size_exact, raw, render_inspect};
use super::{CliError, Context, Exit, Outcome};
use crate::id::{ContainerId, Name};
use crate::sandbox::idmap::{Facts, Wanted, choose};
use crate::store::containers::Containers;
use crate::store::volumes::{Volume, VolumeMeta};
use crate::store::{Store, StoreError};
use crate::supervisor::remove;
use crate::sys;

/// Manage volumes
#[expect(missing_docs, reason = "clap takes the help of each verb from the type of its arguments")]
#[derive(clap::Subcommand, Debug)]
pub enum Verb {
    Create(CreateArgs),
    Export(transfer::ExportArgs),
    Import(transfer::ImportArgs),
    Inspect(InspectArgs),
    #[command(visible_alias = "list")]
    Ls(ListArgs),
    Prune(PruneArgs),
    #[command(visible_alias = "remove")]
    Rm(RemoveArgs),
}

/// Create a volume
#[derive(clap::Args, Debug)]
pub struct CreateArgs {
    /// Specify volume driver name
    #[arg(short, long, default_value = LOCAL)]
    driver: String,
    /// Set metadata for a volume
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// Set driver specific options
    #[arg(short, long = "opt", value_name = "KEY=VALUE")]
    options: Vec<String>,
    /// [VOLUME]
    name: Option<String>,
}

/// Display detailed information on one or more volumes
#[derive(clap::Args, Debug)]
pub struct InspectArgs {
    /// Format output using a custom template: 'json', or 'TEMPLATE'
    #[arg(short, long)]
    format: Option<String>,
    /// VOLUME [VOLUME...]
    #[arg(required = true)]
    volumes: Vec<String>,
}

/// List volumes
#[derive(clap::Args, Debug)]
pub struct ListArgs {
    /// Provide filter values: dangling, driver, label, name
    #[arg(short, long, value_name = "FILTER")]
    filter: Vec<String>,
    /// Format output using a custom template: 'table', 'table TEMPLATE', 'json', or 'TEMPLATE'
    #[arg(long, default_value = "", hide_default_value = true)]
    format: String,
    /// Only display volume names
    #[arg(short, long)]
    quiet: bool,
}

/// Remove unused local volumes
#[derive(clap::Args, Debug)]
pub struct PruneArgs {
    /// Remove all unused volumes, not just anonymous ones
    #[arg(short, long)]
    all: bool,
    /// Provide filter values (e.g. `label=LABEL`)
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,
    /// Do not prompt for confirmation
    #[arg(short, long)]
    force: bool,
}

/// Remove one or more volumes
#[derive(clap::Args, Debug)]
pub struct RemoveArgs {
    /// Force the removal of one or more volumes
    #[arg(short, long)]
    force: bool,
    /// VOLUME [VOLUME...]
    #[arg(required = true)]
    volumes: Vec<String>,
}

/// The one driver.
const LOCAL: &str = "local";

const HEADINGS: &[(&str, &str)] = &[
    ("Availability", "AVAILABILITY"),
    ("Driver", "DRIVER"),
    ("Group", "GROUP"),
    ("Labels", "LABELS"),
    ("Links", "LINKS"),
    ("Mountpoint", "MOUNTPOINT"),
    ("Name", "VOLUME NAME"),
    ("Scope", "SCOPE"),
    ("Size", "SIZE"),
    ("Status", "STATUS"),
];
const COLUMNS: &str = "{{.Driver}}\t{{.Name}}";
/// What Docker shows for what `ls` does not find out.
const UNKNOWN: &str = "N/A";

/// Does one of them.
///
/// # Errors
/// Those of the verb.
pub fn run(ctx: &Context, verb: Verb) -> Outcome {
    match verb {
        Verb::Create(args) => create(ctx, &args),
        Verb::Inspect(args) => inspect(ctx, &args),
        Verb::Ls(args) => list(ctx, &args),
        Verb::Prune(args) => prune(ctx, &args),
        Verb::Rm(args) => remove_each(ctx, &args),
        Verb::Export(args) => transfer::export(ctx, &args),
        Verb::Import(args) => transfer::import(ctx, &args),
    }
}

fn create(ctx: &Context, args: &CreateArgs) -> Outcome {
    if args.driver != LOCAL {
        return Err(CliError::new(format!(
            "error looking up volume plugin {0}: plugin \"{0}\" not found",
            args.driver
        ))
        .with_hint("the only driver is local"));
    }
    let options: BTreeMap<String, String> = args.options.iter().map(|option| key_value(option)).collect();
    check_options(&options)?;
    let store = Store::open(&ctx.root)?;
    let name: Name = match &args.name {
        Some(name) => parse_new_name(name)?,
        None => ContainerId::from_random(&sys::process::random_bytes()?).to_string().parse()?,
    };
    let mut meta = VolumeMeta::new(args.name.is_none());
    meta.options = options;
    meta.labels = args.label.iter().map(|label| key_value(label)).collect();
    let _lock = store.lock_volumes()?;
    store.create_volume(&name, &meta)?;
    println!("{name}");
    Ok(Exit::Success)
}

/// The local driver's options, as Docker checks them; what takes root to mount is refused by name.
///
/// # Errors
/// An option that is none, or that nobody but root can honour.
pub(super) fn check_options(options: &BTreeMap<String, String>) -> Result<(), CliError> {
    const ROOT: &str =
        "mount it yourself and bind the directory: --opt type=none --opt o=bind --opt device=DIR";
    if let Some(name) = options.keys().find(|name| !matches!(name.as_str(), "type" | "o" | "device" | "size"))
    {
        return Err(CliError::new(format!("invalid option: {name:?}")));
    }
    if options.contains_key("size") {
        return Err(CliError::new("quota size requested but no quota support")
            .with_hint("a tmpfs has a size: --opt type=tmpfs --opt device=tmpfs --opt o=size=64m"));
    }
    let option = |name: &str| options.get(name).map_or("", String::as_str);
    let words: Vec<&str> = option("o").split(',').filter(|word| !word.is_empty()).collect();
    match option("type") {
        "" if options.is_empty() => Ok(()),
        "" => Err(CliError::new("missing required option: \"type\"")),
        _ if option("device").is_empty() => Err(CliError::new("missing required option: \"device\"")),
        "tmpfs" => match words.iter().find(|word| !is_tmpfs_option(word)) {
            Some(word) => Err(CliError::new(format!("invalid option of a tmpfs: {word:?}"))),
            None => Ok(()),
        },
        "none" | "bind" if words.iter().any(|word| matches!(*word, "bind" | "rbind")) => {
            let known = ["bind", "rbind", "ro", "rw", "defaults", "private", "rprivate"];
            match words.iter().find(|word| !known.contains(word)) {
                _ if !option("device").starts_with('/') => Err(CliError::new(format!(
                    "the device of a bind is an absolute path: {:?}",
                    option("device")
                ))),
                Some(word) => Err(CliError::new(format!(
                    "the option {word:?} of a bind is not supported in this version"
                ))),
                None => Ok(()),
            }
        }
        kind => Err(CliError::new(format!(
            "a volume of type {kind:?} is not supported: only root may mount such a file system"
        ))
        .with_hint(ROOT)),
    }
}

fn is_tmpfs_option(word: &str) -> bool {
    let (key, value) = word.split_once('=').unwrap_or((word, ""));
    match key {
        "size" | "mode" | "uid" | "gid" | "nr_inodes" => !value.is_empty(),
        "ro" | "rw" | "exec" | "noexec" | "suid" | "nosuid" | "dev" | "nodev" | "noatime" | "relatime" => {
            true
        }
        _ => false,
    }
}

fn parse_new_name(text: &str) -> Result<Name, CliError> {
    if text.chars().count() == 1 {
        return Err(CliError::new(format!(
            "create {text}: volume name is too short, names should be at least two alphanumeric characters"
        )));
    }
    text.parse().map_err(|_| StoreError::VolumeName(text.to_owned()).into())
}

fn key_value(text: &str) -> (String, String) {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    (key.to_owned(), value.to_owned())
}

fn inspect(ctx: &Context, args: &InspectArgs) -> Outcome {
    check_inspect(args.format.as_deref())?;
    let store = Store::open(&ctx.root)?;
    let (mut objects, mut errors) = (Vec::new(), Vec::new());
    for text in &args.volumes {
        match find(&store, text) {
            Ok(volume) => objects.push(describe(&volume)),
            Err(error) => errors.push(CliError::from(error)),
        }
    }
    let format = args.format.as_deref();
    if !objects.is_empty() || format.is_none_or(|format| format.is_empty() || format == "json") {
        print!("{}", render_inspect(format, &objects)?);
    }
    for error in &errors {
        eprintln!("{}", error.render());
    }
    Ok(if errors.is_empty() { Exit::Success } else { Exit::Failure })
}

/// What no volume can be called is the name of none.
fn find(store: &Store, text: &str) -> Result<Volume, StoreError> {
    let name: Name = text.parse().map_err(|_| StoreError::NoSuchVolume(text.to_owned()))?;
    store.volume(&name)
}

/// Docker's JSON of a volume (Engine API, VolumeInspect).
#[must_use]
pub fn describe(volume: &Volume) -> Value {
    let or_null = |map: &BTreeMap<String, String>| if map.is_empty() { Value::Null } else { json!(map) };
    json!({
        "CreatedAt": Timestamp::from_second(volume.meta.created_seconds).unwrap_or_default().to_string(),
        "Driver": LOCAL,
        "Labels": or_null(&volume.meta.labels),
        "Mountpoint": volume.data,
        "Name": volume.name,
        "Options": or_null(&volume.meta.options),
        "Scope": LOCAL,
    })
}

fn list(ctx: &Context, args: &ListArgs) -> Outcome {
    let store = Store::open(&ctx.root)?;
    let filters = Filters::parse(&args.filter, &["dangling", "driver", "label", "name"])?;
    let dangling = filters.flag("dangling")?;
    let mut rows = Vec::new();
    for volume in store.volumes()? {
        if keeps(&filters, &volume)
            && dangling.is_none_or(|dangling| dangling == users(&store, &volume.name).is_empty())
        {
            rows.push(row(&volume));
        }
    }
    let format = ClientConfig::format(&args.format, args.quiet, |config| &config.volumes_format);
    let raw = raw(format, &RAW);
    let format =
        if args.quiet && args.format.is_empty() { "{{.Name}}" } else { raw.as_deref().unwrap_or(format) };
    print!("{}", Table { headings: HEADINGS, default: COLUMNS }.render(format, &rows)?);
    Ok(Exit::Success)
}

/// `--format raw`.
const RAW: [(&str, &str); 2] = [("name", "Name"), ("driver", "Driver")];

fn row(volume: &Volume) -> Value {
    let labels: Vec<String> =
        volume.meta.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    json!({
        "Availability": UNKNOWN,
        "Driver": LOCAL,
        "Group": UNKNOWN,
        "Labels": labels.join(","),
        "Links": UNKNOWN,
        "Mountpoint": volume.data,
        "Name": volume.name,
        "Scope": LOCAL,
        "Size": UNKNOWN,
        "Status": UNKNOWN,
    })
}

/// Whether a volume passes all filters but `dangling`.
fn keeps(filters: &Filters, volume: &Volume) -> bool {
    filters.patterns("name").any(&[volume.name.as_str()])
        && filters.any("driver", |driver| driver == LOCAL)
        && filters.labels(&volume.meta.labels)
}

fn remove_each(ctx: &Context, args: &RemoveArgs) -> Outcome {
    let store = Store::open(&ctx.root)?;
    let mut exit = Exit::Success;
    for text in &args.volumes {
        let removed = find(&store, text).and_then(|volume| remove_one(&store, &volume.name));
        match removed {
            Err(StoreError::NoSuchVolume(_)) if args.force => println!("{text}"),
            Ok(()) => println!("{text}"),
            Err(error) => {
                eprintln!("{}", CliError::from(error).render());
                exit = Exit::Failure;
            }
        }
    }
    Ok(exit)
}

fn remove_one(store: &Store, name: &Name) -> Result<(), StoreError> {
    let maps = choose(&Facts::gather(), Wanted::Usual);
    store.remove_volume(name, || users(store, name), |path| remove::tree(path, &maps))
}

/// Ids of the containers that use a volume.
#[must_use]
pub fn users(store: &Store, name: &Name) -> Vec<String> {
    Containers::new(store.root()).users_of_volume(name)
}

fn prune(ctx: &Context, args: &PruneArgs) -> Outcome {
    let filters = Filters::parse(&args.filter, &["all", "label", "label!"])?;
    let all = args.all || filters.flag("all")? == Some(true);
    let warning = if all {
        "WARNING! This will remove all local volumes not used by at least one container."
    } else {
        "WARNING! This will remove anonymous local volumes not used by at least one container."
    };
    if !args.force && !super::prune::confirm(warning)? {
        return Ok(Exit::Success);
    }
    let freed = remove_unused(ctx, &filters, all)?;
    println!("Total reclaimed space: {}", human_size_exact(freed));
    Ok(Exit::Success)
}

/// Removes anonymous volumes that no container uses and that have these labels, prints which, and
/// gives the bytes they had: `system prune --volumes`.
///
/// # Errors
/// A filter that is wrong; a volume that cannot be removed.
pub fn remove_anonymous(ctx: &Context, filters: &[String]) -> Result<u64, CliError> {
    remove_unused(ctx, &Filters::parse(filters, &["label", "label!"])?, false)
}

fn remove_unused(ctx: &Context, filters: &Filters, all: bool) -> Result<u64, CliError> {
    let store = Store::open(&ctx.root)?;
    let (mut removed, mut freed) = (Vec::new(), 0);
    for volume in store.volumes()? {
        if !(all || volume.meta.anonymous)
            || !keeps(filters, &volume)
            || !users(&store, &volume.name).is_empty()
        {
            continue;
        }
        let size = super::ps::size_on_disk(&volume.data);
        match remove_one(&store, &volume.name) {
            Ok(()) => {
                freed += size;
                removed.push(volume.name);
            }
            // Taken, or removed by another command, meanwhile.
            Err(StoreError::VolumeInUse { .. } | StoreError::NoSuchVolume(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if !removed.is_empty() {
        println!("Deleted Volumes:");
        removed.iter().for_each(|name| println!("{name}"));
        println!();
    }
    super::prune::tell(ctx, "volume", freed);
    Ok(freed)
}
