//! Manage what builds keep: `builder prune`, `buildx du`.

use std::collections::HashSet;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::format::{Table, human_size_exact, json_compact};
use super::prune::confirm;
use super::{CliError, Context, Exit, Outcome};
use crate::id::Digest;
use crate::sandbox::idmap::{Facts, Wanted, choose};
use crate::store::{CacheMount, StepRecord, Store};
use crate::supervisor::remove;

/// Remove build cache
#[derive(clap::Args, Debug)]
pub struct PruneArgs {
    /// Remove all build cache, not just what no image needs
    #[arg(short, long)]
    all: bool,
    /// Provide filter values (e.g., "until=24h")
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,
    /// Do not prompt for confirmation
    #[arg(short, long)]
    force: bool,
    /// Amount of disk space to keep for cache
    #[arg(long, alias = "max-used-space", alias = "reserved-space", value_name = "BYTES")]
    keep_storage: Option<String>,
}

/// Disk usage of the build cache
#[derive(clap::Args, Debug)]
pub struct UsageArgs {
    /// Format output using 'json' or as a table
    #[arg(long, default_value = "", hide_default_value = true)]
    format: String,
}

const TABLE: Table<'static> = Table {
    headings: &[
        ("ID", "ID"),
        ("Reclaimable", "RECLAIMABLE"),
        ("Size", "SIZE"),
        ("LastAccessed", "LAST ACCESSED"),
    ],
    default: "{{.ID}}\t{{.Reclaimable}}\t{{.Size}}\t{{.LastAccessed}}",
};

/// What builds keep on the disk.
#[derive(Debug)]
pub struct Cache {
    steps: Vec<StepRecord>,
    mounts: Vec<(CacheMount, u64)>,
    /// Layers that images need, which would stay.
    needed: HashSet<Digest>,
}

impl Cache {
    /// Looks.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn gather(store: &Store) -> Result<Self, CliError> {
        let catalog = store.own_catalog()?;
        let needed = catalog.images.values().flat_map(|entry| entry.layers.iter().cloned()).collect();
        let mounts = store.cache_mounts()?.into_iter().map(|mount| {
            let bytes = super::ps::size_on_disk(&mount.path);
            (mount, bytes)
        });
        Ok(Self { steps: store.step_records()?, mounts: mounts.collect(), needed })
    }

    fn is_needed(&self, step: &StepRecord) -> bool {
        step.step.layer.as_ref().is_some_and(|layer| self.needed.contains(layer))
    }

    /// How many records and mounts there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.steps.len() + self.mounts.len()
    }

    /// How many of them images share.
    #[must_use]
    pub fn active(&self) -> usize {
        self.steps.iter().filter(|step| self.is_needed(step)).count()
    }

    /// Bytes that are the cache's alone: each layer once, those of images not at all.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let mut seen = HashSet::new();
        let own = self.steps.iter().filter(|step| !self.is_needed(step));
        let layers: u64 =
            own.filter(|step| seen.insert(step.step.layer.clone())).map(|step| step.step.bytes).sum();
        layers + self.mounts.iter().map(|(_, bytes)| bytes).sum::<u64>()
    }

    /// One row a record or mount, the last used first.
    #[must_use]
    pub fn rows(&self) -> Vec<Value> {
        let now = Timestamp::now();
        let mut rows: Vec<(Timestamp, Value)> = Vec::new();
        for step in &self.steps {
            let row = json!({
                "ID": step.key.short(),
                "CacheType": "regular",
                "Description": step.step.description,
                "Shared": self.is_needed(step).to_string(),
                "Reclaimable": (!self.is_needed(step)).to_string(),
                "Size": human_size_exact(step.step.bytes),
                "LastAccessed": super::format::ago(step.last_used, now),
            });
            rows.push((step.last_used, row));
        }
        for (mount, bytes) in &self.mounts {
            let row = json!({
                "ID": mount.key.get(..12).unwrap_or(&mount.key),
                "CacheType": "exec.cachemount",
                "Description": format!("cached mount {}", mount.id),
                "Shared": "false",
                "Reclaimable": "true",
                "Size": human_size_exact(*bytes),
                "LastAccessed": super::format::ago(mount.last_used, now),
            });
            rows.push((mount.last_used, row));
        }
        rows.sort_by_key(|(used, _)| std::cmp::Reverse(*used));
        rows.into_iter().map(|(_, row)| row).collect()
    }
}

/// Shows what the cache takes.
///
/// # Errors
/// The store cannot be read.
pub fn usage(ctx: &Context, args: &UsageArgs) -> Outcome {
    let store = Store::open(&ctx.root)?;
    let cache = Cache::gather(&store)?;
    if args.format == "json" {
        for row in cache.rows() {
            println!("{}", json_compact(&row));
        }
        return Ok(Exit::Success);
    }
    print!("{}", TABLE.render(&args.format, &cache.rows())?);
    println!("Total:\t{}", human_size_exact(cache.bytes()));
    Ok(Exit::Success)
}

/// Removes what is asked for.
///
/// # Errors
/// A filter that is none; the store cannot be changed.
pub fn prune(ctx: &Context, args: &PruneArgs) -> Outcome {
    let warning = if args.all {
        "WARNING! This will remove all build cache."
    } else {
        "WARNING! This will remove all dangling build cache."
    };
    let before = until(&args.filter)?;
    let keep = match &args.keep_storage {
        None => 0,
        Some(text) => super::run_args::size::parse_bytes(text).map_err(CliError::new)?,
    };
    if !args.force && !confirm(warning)? {
        return Ok(Exit::Success);
    }
    let freed = remove_unused(ctx, args.all, before, keep)?;
    println!("Total reclaimed space: {}", human_size_exact(freed));
    Ok(Exit::Success)
}

fn until(filters: &[String]) -> Result<Option<Timestamp>, CliError> {
    let mut before = None;
    for filter in filters {
        let value = filter.strip_prefix("until=").or_else(|| filter.strip_prefix("unused-for="));
        let value = value.ok_or_else(|| CliError::new(format!("invalid filter '{filter}'")))?;
        before =
            Some(super::until(value).ok_or_else(|| CliError::new(format!("invalid filter '{filter}'")))?);
    }
    Ok(before)
}

/// Removes records, the longest unused first, until the cache takes no more than `keep` bytes; with `all`
/// those of images' layers, and cache mounts, too. Gives the bytes that were freed.
///
/// # Errors
/// The store cannot be read or changed.
pub fn remove_unused(
    ctx: &Context,
    all: bool,
    before: Option<Timestamp>,
    keep: u64,
) -> Result<u64, CliError> {
    let store = Store::open(&ctx.root)?;
    crate::build::sweep(&store);
    let cache = Cache::gather(&store)?;
    let is_old = |used: Timestamp| before.is_none_or(|before| used < before);
    let mut left = cache.bytes();
    let mut removed = Vec::new();
    for step in &cache.steps {
        if !is_old(step.last_used) || (!all && cache.is_needed(step)) || (keep > 0 && left <= keep) {
            continue;
        }
        store.forget_step(&step.key)?;
        if !cache.is_needed(step) {
            left = left.saturating_sub(step.step.bytes);
        }
        removed.push(step.key.hex().to_owned());
    }
    let maps = choose(&Facts::gather(), Wanted::Usual);
    let mut freed = 0;
    for (mount, bytes) in cache.mounts.iter().filter(|_| all) {
        if is_old(mount.last_used) && (keep == 0 || left > keep) {
            // A build that uses it at this moment keeps what it has mounted.
            remove::tree(&mount.path, &maps)?;
            left = left.saturating_sub(*bytes);
            freed += bytes;
            removed.push(mount.key.clone());
        }
    }
    freed += store.collect()?.map_or(0, |collected| collected.bytes);
    if !removed.is_empty() {
        println!("Deleted build cache objects:");
        for id in removed {
            println!("{id}");
        }
        println!();
    }
    Ok(freed)
}
