//! Manage networks

use std::collections::BTreeMap;

use net::{Addresses, DEFAULT_MTU_BYTES, HostRoutes};
use serde_json::{Map, Value, json};

use super::client_config::ClientConfig;
use super::filter::Filters;
use super::format::{Table, check_inspect, raw, render_inspect};
use super::{CliError, Context, Exit, Outcome};
use crate::plan::network_id;
use crate::store::containers::{Containers, NetworkAddresses, NetworkState, Status};
use crate::supervisor::Saved;

/// Manage networks
#[expect(missing_docs, reason = "clap takes the help of each verb from the type of its arguments")]
#[derive(clap::Subcommand, Debug)]
pub enum Verb {
    #[command(hide = true)]
    Connect(RefusedArgs),
    #[command(hide = true)]
    Create(RefusedArgs),
    #[command(hide = true)]
    Disconnect(RefusedArgs),
    Inspect(InspectArgs),
    #[command(visible_alias = "list")]
    Ls(ListArgs),
    Prune(PruneArgs),
    #[command(visible_alias = "remove")]
    Rm(RemoveArgs),
}

/// Refused: there are the three networks, and no others yet
#[derive(clap::Args, Debug)]
pub struct RefusedArgs {
    /// What it would take
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    arguments: Vec<String>,
}

/// Display detailed information on one or more networks
#[derive(clap::Args, Debug)]
pub struct InspectArgs {
    /// Format output using a custom template: 'json', or 'TEMPLATE'
    #[arg(short, long)]
    format: Option<String>,
    /// Verbose output for diagnostics (accepted: there is no more to tell)
    #[arg(short, long)]
    verbose: bool,
    /// NETWORK [NETWORK...]
    #[arg(required = true)]
    networks: Vec<String>,
}

/// List networks
#[derive(clap::Args, Debug)]
pub struct ListArgs {
    /// Provide filter values: dangling, driver, id, label, name, scope, type
    #[arg(short, long, value_name = "FILTER")]
    filter: Vec<String>,
    /// Format output using a custom template: 'table', 'table TEMPLATE', 'json', or 'TEMPLATE'
    #[arg(long, default_value = "", hide_default_value = true)]
    format: String,
    /// Do not truncate the output
    #[arg(long)]
    no_trunc: bool,
    /// Only display network IDs
    #[arg(short, long)]
    quiet: bool,
}

/// Remove all unused networks (there are none that can be removed)
#[derive(clap::Args, Debug)]
pub struct PruneArgs {
    /// Provide filter values
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,
    /// Do not prompt for confirmation
    #[arg(short, long)]
    force: bool,
}

/// Remove one or more networks
#[derive(clap::Args, Debug)]
pub struct RemoveArgs {
    /// Do not error if the network does not exist
    #[arg(short, long)]
    force: bool,
    /// NETWORK [NETWORK...]
    #[arg(required = true)]
    networks: Vec<String>,
}

/// A network that is always there.
#[derive(Clone, Copy, Debug)]
struct Network {
    name: &'static str,
    driver: &'static str,
}

/// In the order in which Docker lists them.
const NETWORKS: [Network; 3] = [
    Network { name: "bridge", driver: "bridge" },
    Network { name: "host", driver: "host" },
    Network { name: "none", driver: "null" },
];

const SHORT_ID_LEN: usize = 12;

const HEADINGS: &[(&str, &str)] = &[
    ("CreatedAt", "CREATED AT"),
    ("Driver", "DRIVER"),
    ("ID", "NETWORK ID"),
    ("IPv4", "IPV4"),
    ("IPv6", "IPV6"),
    ("Internal", "INTERNAL"),
    ("Labels", "LABELS"),
    ("Name", "NAME"),
    ("Scope", "SCOPE"),
];
const COLUMNS: &str = "{{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.Scope}}";
const FILTERS: [&str; 7] = ["dangling", "driver", "id", "label", "name", "scope", "type"];

impl Network {
    fn id(self) -> String {
        network_id(self.name)
    }

    fn find(text: &str) -> Result<Self, CliError> {
        NETWORKS
            .into_iter()
            .find(|network| network.name == text || (!text.is_empty() && network.id().starts_with(text)))
            .ok_or_else(|| CliError::new(format!("network {text} not found")))
    }

    fn has_ipv6(self) -> bool {
        self.name == "bridge"
    }
}

/// The id of the network of this name; empty for none of them.
#[must_use]
pub fn id_of(name: &str) -> String {
    NETWORKS.into_iter().find(|network| network.name == name).map(Network::id).unwrap_or_default()
}

/// Does one of them.
///
/// # Errors
/// Those of the verb.
pub fn run(ctx: &Context, verb: Verb) -> Outcome {
    match verb {
        Verb::Connect(_) => Err(refused("connect")),
        Verb::Create(_) => Err(refused("create")),
        Verb::Disconnect(_) => Err(refused("disconnect")),
        Verb::Inspect(args) => inspect(ctx, &args),
        Verb::Ls(args) => list(&args),
        Verb::Prune(args) => prune(ctx, &args),
        Verb::Rm(args) => remove(&args),
    }
}

fn refused(verb: &str) -> CliError {
    CliError::new(format!(
        "network {verb} is not supported: every container has a userspace network of its own"
    ))
    .with_hint("containers share one with --network container:NAME; the others are bridge, host and none")
}

fn remove(args: &RemoveArgs) -> Outcome {
    super::each(&args.networks, |text| match Network::find(text) {
        Ok(network) => {
            Err(CliError::new(format!("{} is a pre-defined network and cannot be removed", network.name)))
        }
        Err(_) if args.force => Ok(()),
        Err(error) => Err(error),
    })
}

/// Nothing can be made, so nothing is unused.
fn prune(ctx: &Context, args: &PruneArgs) -> Outcome {
    let filters = Filters::parse(&args.filter, &["label", "label!", "until"])?;
    if let Some(wrong) = filters.values("until").find(|value| super::until(value).is_none()) {
        return Err(CliError::new(format!("failed to parse value as time or duration: {wrong:?}")));
    }
    let warning = "WARNING! This will remove all custom networks not used by at least one container.";
    if args.force || super::prune::confirm(warning)? {
        super::prune::tell(ctx, "network", 0);
    }
    Ok(Exit::Success)
}

fn list(args: &ListArgs) -> Outcome {
    let filters = Filters::parse(&args.filter, &FILTERS)?;
    if let Some(wrong) = filters.values("type").find(|value| !matches!(*value, "builtin" | "custom")) {
        return Err(
            CliError::new(format!("invalid filter: 'type'='{wrong}'")).with_hint("type is builtin or custom")
        );
    }
    // What cannot be removed is not dangling.
    let dangling = filters.flag("dangling")? == Some(true);
    let rows: Vec<Value> = NETWORKS
        .into_iter()
        .filter(|network| keeps(*network, &filters) && !dangling)
        .map(|network| {
            let id = network.id();
            json!({
                "CreatedAt": "",
                "Driver": network.driver,
                "ID": if args.no_trunc { &id } else { &id[..SHORT_ID_LEN] },
                "IPv4": "true",
                "IPv6": network.has_ipv6().to_string(),
                "Internal": "false",
                "Labels": "",
                "Name": network.name,
                "Scope": "local",
            })
        })
        .collect();
    let format = ClientConfig::format(&args.format, args.quiet, |config| &config.networks_format);
    let raw = raw(format, &RAW);
    let format =
        if args.quiet && args.format.is_empty() { "{{.ID}}" } else { raw.as_deref().unwrap_or(format) };
    print!("{}", Table { headings: HEADINGS, default: COLUMNS }.render(format, &rows)?);
    Ok(Exit::Success)
}

/// `--format raw`.
const RAW: [(&str, &str); 4] =
    [("network_id", "ID"), ("name", "Name"), ("driver", "Driver"), ("scope", "Scope")];

fn keeps(network: Network, filters: &Filters) -> bool {
    let id = network.id();
    filters.any("driver", |value| network.driver == value)
        && filters.patterns("id").any(&[&id])
        && filters.patterns("name").any(&[network.name])
        && filters.labels(&BTreeMap::new())
        && filters.any("scope", |value| value == "local")
        && filters.any("type", |value| value == "builtin")
}

fn inspect(ctx: &Context, args: &InspectArgs) -> Outcome {
    check_inspect(args.format.as_deref())?;
    let (mut objects, mut errors) = (Vec::new(), Vec::new());
    for text in &args.networks {
        match Network::find(text) {
            Ok(network) => objects.push(describe(ctx, network)?),
            Err(error) => errors.push(error),
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

/// Docker's JSON of a network (Engine API, NetworkInspect).
fn describe(ctx: &Context, network: Network) -> Result<Value, CliError> {
    let (mut config, mut options) = (Vec::new(), Map::new());
    if network.name == "bridge" {
        // What the next container gets; one that runs has what was free at its start.
        let Addresses { v4, v6 } = Addresses::default_for(&HostRoutes::read());
        config
            .push(json!({ "Subnet": format!("{}/{}", v4.network, v4.prefix_length), "Gateway": v4.gateway }));
        config
            .push(json!({ "Subnet": format!("{}/{}", v6.network, v6.prefix_length), "Gateway": v6.gateway }));
        options.insert("com.docker.network.driver.mtu".into(), DEFAULT_MTU_BYTES.to_string().into());
    }
    Ok(json!({
        "Name": network.name,
        "Id": network.id(),
        "Created": "0001-01-01T00:00:00Z",
        "Scope": "local",
        "Driver": network.driver,
        "EnableIPv4": true,
        "EnableIPv6": network.has_ipv6(),
        "IPAM": { "Driver": "default", "Options": Value::Null, "Config": config },
        "Internal": false,
        "Attachable": false,
        "Ingress": false,
        "ConfigFrom": { "Network": "" },
        "ConfigOnly": false,
        "Containers": containers(ctx, network)?,
        "Options": options,
        "Labels": {},
    }))
}

/// The containers that run with it.
fn containers(ctx: &Context, network: Network) -> Result<Value, CliError> {
    let containers = Containers::new(&ctx.root);
    let mut found = Map::new();
    for id in containers.ids()? {
        let Ok(record) = containers.record(&id) else { continue };
        let Ok(Status::Running(state)) = containers.status(&record.id) else { continue };
        let Ok(saved) = containers.plan::<Saved>(&record.id) else { continue };
        if super::inspect::network_name(&saved) == network.name {
            let text = |of: fn(NetworkState) -> NetworkAddresses| {
                state
                    .network
                    .map(|network| format!("{}/{}", of(network).address, of(network).prefix_length))
                    .unwrap_or_default()
            };
            found.insert(
                record.id.to_string(),
                json!({
                    "Name": record.name.to_string(),
                    "EndpointID": "",
                    "MacAddress": "",
                    "IPv4Address": text(|network| network.v4),
                    "IPv6Address": text(|network| network.v6),
                }),
            );
        }
    }
    Ok(Value::Object(found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn found_by_name_and_by_the_digits_of_the_id() {
        let id = NETWORKS[0].id();
        assert_eq!(id.len(), 64);
        for text in ["bridge", &id, &id[..SHORT_ID_LEN]] {
            assert_eq!(Network::find(text).map(|network| network.name).ok(), Some("bridge"), "{text}");
        }
        let message = |text| Network::find(text).map(|_| ()).map_err(|error| error.message().to_owned());
        assert_eq!(message("mine"), Err("network mine not found".into()));
        assert_eq!(message(""), Err("network  not found".into()));
    }

    #[test]
    fn filters() {
        let names = |filters: &[&str]| -> Vec<&str> {
            let filters: Vec<String> = filters.iter().map(|filter| (*filter).to_owned()).collect();
            let filters = Filters::parse(&filters, &FILTERS).expect("valid");
            NETWORKS
                .into_iter()
                .filter(|network| keeps(*network, &filters))
                .map(|network| network.name)
                .collect()
        };
        assert_eq!(names(&[]), ["bridge", "host", "none"]);
        assert_eq!(names(&["driver=null"]), ["none"]);
        assert_eq!(names(&["name=o"]), ["host", "none"]);
        assert_eq!(names(&["name=o", "driver=host"]), ["host"]);
        assert_eq!(names(&["name=host", "name=none"]), ["host", "none"]);
        assert_eq!(names(&["type=custom"]), [] as [&str; 0]);
        assert_eq!(names(&["name=^h.st$"]), ["host"]);
        assert_eq!(names(&["label=a"]), [] as [&str; 0]);
    }
}
