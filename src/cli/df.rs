//! Show disk usage: `system df`

use std::collections::{BTreeMap, HashSet};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::builder::Cache;
use super::format::{Table, Template, ago, human_size, human_size_exact, raw};
use super::{CliError, Context, Exit, Outcome};
use crate::id::Digest;
use crate::image::Reference;
use crate::store::containers::{Containers, Record, Status};
use crate::store::{Catalog, ImageEntry, Store};

/// Show disk usage
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Format output using a custom template: 'table', 'table TEMPLATE', 'json', or 'TEMPLATE'
    #[arg(long, default_value = "", hide_default_value = true)]
    format: String,
    /// Show detailed information on space usage
    #[arg(short, long)]
    verbose: bool,
}

const SUMMARY: Table<'static> = Table {
    headings: &[
        ("Type", "TYPE"),
        ("TotalCount", "TOTAL"),
        ("Active", "ACTIVE"),
        ("Size", "SIZE"),
        ("Reclaimable", "RECLAIMABLE"),
    ],
    default: "{{.Type}}\t{{.TotalCount}}\t{{.Active}}\t{{.Size}}\t{{.Reclaimable}}",
};
/// `--format raw`.
const RAW: [(&str, &str); 5] = [
    ("type", "Type"),
    ("total", "TotalCount"),
    ("active", "Active"),
    ("size", "Size"),
    ("reclaimable", "Reclaimable"),
];
const IMAGES: Table<'static> = Table {
    headings: &[
        ("Repository", "REPOSITORY"),
        ("Tag", "TAG"),
        ("ID", "IMAGE ID"),
        ("CreatedSince", "CREATED"),
        ("Size", "SIZE"),
        ("SharedSize", "SHARED SIZE"),
        ("UniqueSize", "UNIQUE SIZE"),
        ("Containers", "CONTAINERS"),
    ],
    default: "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}\t{{.SharedSize}}\t{{.UniqueSize}}\t{{.Containers}}",
};
const CONTAINERS: Table<'static> = Table {
    headings: &[
        ("ID", "CONTAINER ID"),
        ("Image", "IMAGE"),
        ("Command", "COMMAND"),
        ("LocalVolumes", "LOCAL VOLUMES"),
        ("Size", "SIZE"),
        ("RunningFor", "CREATED"),
        ("Status", "STATUS"),
        ("Names", "NAMES"),
    ],
    default: "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.LocalVolumes}}\t{{.Size}}\t{{.RunningFor}}\t{{.Status}}\t{{.Names}}",
};
const BUILD_CACHE: Table<'static> = Table {
    headings: &[
        ("ID", "CACHE ID"),
        ("CacheType", "CACHE TYPE"),
        ("Size", "SIZE"),
        ("LastAccessed", "LAST USED"),
        ("Shared", "SHARED"),
    ],
    default: "{{.ID}}\t{{.CacheType}}\t{{.Size}}\t{{.LastAccessed}}\t{{.Shared}}",
};
const VOLUMES: Table<'static> = Table {
    headings: &[("Name", "VOLUME NAME"), ("Links", "LINKS"), ("Size", "SIZE")],
    default: "{{.Name}}\t{{.Links}}\t{{.Size}}",
};

/// Prints what images, containers and volumes take on the disk, and what of it could be had back.
///
/// # Errors
/// A template that is wrong; a store that cannot be read.
pub fn run(ctx: &Context, args: &Args) -> Outcome {
    let usage = Usage::gather(ctx)?;
    if args.verbose {
        print!("{}", usage.details(&args.format)?);
    } else {
        let raw = raw(&args.format, &RAW);
        let format = raw.as_deref().unwrap_or(&args.format);
        print!("{}", SUMMARY.render(format, &usage.summary()?)?);
    }
    Ok(Exit::Success)
}

struct ContainerUsage {
    record: Record,
    status: Status,
    bytes: u64,
}

struct VolumeUsage {
    name: String,
    links: usize,
    bytes: u64,
}

/// What is on the disk.
struct Usage {
    store: Store,
    catalog: Catalog,
    containers: Vec<ContainerUsage>,
    volumes: Vec<VolumeUsage>,
    cache: Cache,
}

impl Usage {
    fn gather(ctx: &Context) -> Result<Self, CliError> {
        let store = Store::open(&ctx.root)?;
        let catalog = store.own_catalog()?;
        let all = Containers::new(&ctx.root);
        let mut containers = Vec::new();
        for id in all.ids()? {
            // One that goes away meanwhile takes nothing.
            let (Ok(record), Ok(status)) = (all.record(&id), all.status(&id)) else { continue };
            let place = all.path(&id);
            let mut bytes = super::ps::size_on_disk(&place);
            if !record.local_dir.starts_with(&place) {
                bytes += super::ps::size_on_disk(&record.local_dir);
            }
            containers.push(ContainerUsage { record, status, bytes });
        }
        containers.sort_by_key(|container| std::cmp::Reverse(container.record.created));
        let linked = |name: &str| {
            let uses = |container: &&ContainerUsage| container.record.volumes.iter().any(|used| used == name);
            containers.iter().filter(uses).count()
        };
        let volumes = store
            .volumes()?
            .into_iter()
            .map(|volume| VolumeUsage {
                links: linked(volume.name.as_str()),
                bytes: super::ps::size_on_disk(&volume.data),
                name: volume.name.to_string(),
            })
            .collect();
        let cache = Cache::gather(&store)?;
        Ok(Self { store, catalog, containers, volumes, cache })
    }

    /// Images of containers.
    fn used_images(&self) -> HashSet<Digest> {
        let ids = self.containers.iter().filter_map(|container| container.record.image_id.as_deref());
        ids.filter_map(|id| id.parse().ok()).collect()
    }

    fn summary(&self) -> Result<Vec<Value>, CliError> {
        let used = self.used_images();
        let disk = self.store.disk_usage(&used)?;
        let active = self.catalog.images.keys().filter(|id| used.contains(*id)).count();
        let sum = |wanted: &dyn Fn(&ContainerUsage) -> bool| -> u64 {
            self.containers
                .iter()
                .filter(|container| wanted(container))
                .map(|container| container.bytes)
                .sum()
        };
        let running = self.containers.iter().filter(|container| container.status.is_live()).count();
        let linked = self.volumes.iter().filter(|volume| volume.links > 0).count();
        let idle: u64 =
            self.volumes.iter().filter(|volume| volume.links == 0).map(|volume| volume.bytes).sum();
        Ok(vec![
            row("Images", self.catalog.images.len(), active, disk.bytes, disk.bytes - disk.needed),
            row(
                "Containers",
                self.containers.len(),
                running,
                sum(&|_| true),
                sum(&|container| !container.status.is_live()),
            ),
            row(
                "Local Volumes",
                self.volumes.len(),
                linked,
                self.volumes.iter().map(|volume| volume.bytes).sum(),
                idle,
            ),
            row(
                "Build Cache",
                self.cache.count(),
                self.cache.active(),
                self.cache.bytes(),
                self.cache.bytes(),
            ),
        ])
    }

    fn details(&self, format: &str) -> Result<String, CliError> {
        let (images, containers, volumes) = (self.image_rows(), self.container_rows(), self.volume_rows());
        if !format.is_empty() && format != "table" {
            let all = json!({
                "Images": images, "Containers": containers, "Volumes": volumes, "BuildCache": self.cache.rows(),
            });
            return Ok(match format {
                "json" => format!("{}\n", super::format::json_compact(&all)),
                template => {
                    let rendered = Template::parse(template).and_then(|template| template.render(&all));
                    format!("{}\n", rendered.map_err(|error| error.told())?)
                }
            });
        }
        Ok(format!(
            "Images space usage:\n\n{}\nContainers space usage:\n\n{}\nLocal Volumes space usage:\n\n{}\nBuild cache usage: {}\n\n{}",
            IMAGES.render("", &images)?,
            CONTAINERS.render("", &containers)?,
            VOLUMES.render("", &volumes)?,
            human_size_exact(self.cache.bytes()),
            if self.cache.count() == 0 {
                String::new()
            } else {
                BUILD_CACHE.render("", &self.cache.rows())? + "\n"
            }
        ))
    }

    fn image_rows(&self) -> Vec<Value> {
        let mut count: BTreeMap<&Digest, usize> = BTreeMap::new();
        for layer in self.catalog.images.values().flat_map(|entry| &entry.layers) {
            *count.entry(layer).or_default() += 1;
        }
        let shared = |entry: &ImageEntry| -> u64 {
            let shared = entry.layers.iter().filter(|layer| count.get(layer).is_some_and(|count| *count > 1));
            shared.filter_map(|layer| self.store.layer(layer).ok()?).map(|layer| layer.content_bytes).sum()
        };
        let now = Timestamp::now();
        let created = |entry: &ImageEntry| entry.created.as_ref()?.parse::<Timestamp>().ok();
        let mut images: Vec<_> = self.catalog.images.iter().collect();
        images.sort_by_key(|(id, entry)| (std::cmp::Reverse(created(entry)), *id));
        let mut rows = Vec::new();
        for (id, entry) in images {
            let users = self
                .containers
                .iter()
                .filter(|container| container.record.image_id.as_deref() == Some(id.as_str()));
            let shared = shared(entry);
            let row = json!({
                "Repository": NONE,
                "Tag": NONE,
                "ID": id.short(),
                "CreatedSince": created(entry).map_or("N/A".to_owned(), |created| ago(created, now)),
                "Size": human_size(entry.size_bytes),
                "SharedSize": human_size_exact(shared),
                "UniqueSize": human_size_exact(entry.size_bytes.saturating_sub(shared)),
                "Containers": users.count().to_string(),
            });
            let names: Vec<Reference> =
                self.catalog.names_with(id).filter_map(|(name, _)| name.parse().ok()).collect();
            if names.is_empty() {
                rows.push(row);
                continue;
            }
            for name in names {
                let mut row = row.clone();
                row["Repository"] = name.familiar_repository().into();
                row["Tag"] = name.tag().unwrap_or(NONE).into();
                rows.push(row);
            }
        }
        rows
    }

    fn container_rows(&self) -> Vec<Value> {
        let now = Timestamp::now();
        let row = |container: &ContainerUsage| {
            let record = &container.record;
            json!({
                "ID": record.id.short(),
                "Image": record.image,
                "Command": super::ps::shown_command(&record.command, false),
                "LocalVolumes": record.volumes.len().to_string(),
                "Size": human_size(container.bytes),
                "RunningFor": ago(record.created, now),
                "Status": super::ps::describe(&container.status, None, now),
                "Names": record.name,
            })
        };
        self.containers.iter().map(row).collect()
    }

    fn volume_rows(&self) -> Vec<Value> {
        let row = |volume: &VolumeUsage| {
            json!({
                "Name": volume.name, "Links": volume.links.to_string(), "Size": human_size(volume.bytes),
            })
        };
        self.volumes.iter().map(row).collect()
    }
}

/// What Docker shows where there is no name.
const NONE: &str = "<none>";

fn row(kind: &str, total: usize, active: usize, bytes: u64, reclaimable: u64) -> Value {
    // As Docker's: a share only where there is something.
    let share = |percent: u64| format!("{} ({percent}%)", human_size_exact(reclaimable));
    let reclaimable = match (reclaimable * 100).checked_div(bytes) {
        Some(percent) => share(percent),
        None => human_size_exact(reclaimable),
    };
    json!({
        "Active": active.to_string(),
        "Reclaimable": reclaimable,
        "Size": human_size_exact(bytes),
        "TotalCount": total.to_string(),
        "Type": kind,
    })
}
