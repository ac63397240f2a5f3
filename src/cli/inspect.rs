//! Return low-level information on containers, images and volumes

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::format::{check_inspect, render_inspect};
use super::{CliError, Context, Exit, Outcome};
use crate::id::Name;
use crate::plan::request::{
    Access, CapabilityName, IpcMode, MountKind, NamespaceMode, SecretTarget, UsernsMode,
};
use crate::plan::{NetworkMode, Protocol, SeccompPlan};
use crate::store::Store;
use crate::store::containers::{ContainerError, Containers, ExitRecord, Record, State, Status};
use crate::supervisor::Saved;

/// Return low-level information on containers, images and volumes
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Format output using a custom template: 'json', or 'TEMPLATE'
    #[arg(short, long)]
    format: Option<String>,
    /// Display total file sizes if the type is container
    #[arg(short, long)]
    size: bool,
    /// Only inspect objects of the given type
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// NAME|ID [NAME|ID...]
    #[arg(required = true)]
    names: Vec<String>,
}

/// Prints what is found, and ends with 1 when something was not.
///
/// # Errors
/// A template that is wrong; objects that do not exist, after the others were printed.
pub fn run(ctx: &Context, args: &Args) -> Outcome {
    inspect(ctx, args, args.kind.as_deref().unwrap_or("any"))
}

/// `container inspect`.
///
/// # Errors
/// As [`run`].
pub fn run_container(ctx: &Context, args: &Args) -> Outcome {
    inspect(ctx, args, "container")
}

fn inspect(ctx: &Context, args: &Args, kind: &str) -> Outcome {
    check_inspect(args.format.as_deref())?;
    let containers = Containers::new(&ctx.root);
    let (mut objects, mut missing) = (Vec::new(), Vec::new());
    for name in &args.names {
        let found = match kind {
            "container" => container(&containers, name, args.size)?,
            "image" => super::images::inspect_value(ctx, name)?,
            "volume" => volume(ctx, name)?,
            "any" => match container(&containers, name, args.size)? {
                Some(found) => Some(found),
                None => match super::images::inspect_value(ctx, name)? {
                    Some(found) => Some(found),
                    None => volume(ctx, name)?,
                },
            },
            other => return Err(CliError::new(format!("{other:?} is not a valid value for --type"))),
        };
        match found {
            Some(object) => objects.push(object),
            None => missing.push(name.clone()),
        }
    }
    let format = args.format.as_deref();
    if !objects.is_empty() || format.is_none_or(|format| format.is_empty() || format == "json") {
        print!("{}", render_inspect(format, &objects)?);
    }
    for name in &missing {
        match kind {
            "any" => eprintln!("Error: No such object: {name}"),
            kind => eprintln!("Error: No such {kind}: {name}"),
        }
    }
    Ok(if missing.is_empty() { Exit::Success } else { Exit::Failure })
}

fn container(containers: &Containers, name: &str, size: bool) -> Result<Option<Value>, CliError> {
    let record = match containers.find(name) {
        Ok(record) => record,
        Err(ContainerError::NotFound(_)) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let status = containers.status(&record.id)?;
    let saved: Saved = containers.plan(&record.id)?;
    Ok(Some(describe(containers, &record, &status, &saved, size)))
}

fn volume(ctx: &Context, name: &str) -> Result<Option<Value>, CliError> {
    let store = Store::open(&ctx.root)?;
    let Ok(name) = name.parse::<Name>() else { return Ok(None) };
    Ok(store.find_volume(&name)?.map(|volume| super::volume::describe(&volume)))
}

/// A time that has not come, as Docker writes it.
const NO_TIME: &str = "0001-01-01T00:00:00Z";

/// Docker's JSON of a container (Engine API, ContainerInspect).
fn describe(containers: &Containers, record: &Record, status: &Status, saved: &Saved, size: bool) -> Value {
    let dir = containers.path(&record.id);
    let process = saved.plan.spec.process().clone().unwrap_or_default();
    let plan = &saved.plan;
    let (state, exit) = match status {
        Status::Running(state) => (Some(state), None),
        Status::Restarting(state, exit) => (Some(state), Some(exit)),
        Status::Exited(state, exit) => (state.as_ref(), Some(exit)),
        Status::Created | Status::Starting | Status::Elsewhere(_) => (None, None),
    };
    let args = process.args().clone().unwrap_or_default();
    let linux = plan.spec.linux().clone().unwrap_or_default();
    let mut object = json!({
        "Id": record.id,
        "Created": record.created.to_string(),
        "Path": args.first().cloned().unwrap_or_default(),
        "Args": args.iter().skip(1).collect::<Vec<_>>(),
        "State": state_object(status, state, exit, containers.health(&record.id).ok().flatten()),
        "Image": record.image_id.clone().unwrap_or_default(),
        "ResolvConfPath": dir.join("etc/resolv.conf"),
        "HostnamePath": dir.join("etc/hostname"),
        "HostsPath": dir.join("etc/hosts"),
        "LogPath": dir.join("log"),
        "Name": format!("/{}", record.name),
        "RestartCount": state.map_or(0, |state| state.restarts),
        "Driver": "hostel",
        "Platform": "linux",
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": Value::Null,
        "HostConfig": host_config(saved, &linux),
        "GraphDriver": { "Name": "hostel", "Data": { "UpperDir": record.local_dir.join("upper"), "WriteMode": state.map(|state| state.write_mode.clone()) } },
        "Mounts": mounts(saved),
        "Config": config(record, saved, &process),
        "NetworkSettings": network_settings(state.filter(|_| exit.is_none()), saved),
    });
    if size && let Some(map) = object.as_object_mut() {
        map.insert("SizeRw".into(), super::ps::size_on_disk(&record.local_dir).into());
    }
    object
}

fn state_object(
    status: &Status,
    state: Option<&State>,
    exit: Option<&ExitRecord>,
    health: Option<Value>,
) -> Value {
    let running = matches!(status, Status::Running(_));
    let restarting = matches!(status, Status::Restarting(..));
    let mut object = json!({
        "Status": super::ps::state_word(status),
        "Running": running || restarting,
        "Paused": running && state.is_some_and(|state| state.paused),
        "Restarting": restarting,
        "OOMKilled": exit.is_some_and(|exit| exit.oom_killed),
        "Dead": false,
        "Pid": state.filter(|_| running).map_or(0, |state| state.pid),
        "ExitCode": exit.map_or(0, |exit| exit.code),
        "Error": exit.map(|exit| exit.error.clone()).unwrap_or_default(),
        "StartedAt": state.map_or_else(|| NO_TIME.to_owned(), |state| state.started.to_string()),
        "FinishedAt": exit.map_or_else(|| NO_TIME.to_owned(), |exit| exit.finished.to_string()),
    });
    if let (Some(map), Some(health)) = (object.as_object_mut(), health) {
        map.insert("Health".into(), health);
    }
    object
}

fn config(record: &Record, saved: &Saved, process: &oci_spec::runtime::Process) -> Value {
    let request = &saved.request;
    let set = |keys: Vec<String>| -> Value {
        if keys.is_empty() {
            return Value::Null;
        }
        Value::Object(keys.into_iter().map(|key| (key, json!({}))).collect())
    };
    let (entrypoint, command) = entrypoint_and_command(saved);
    let attached = |wanted: bool| wanted && !request.stdio.detach;
    let mut object = json!({
        "Hostname": saved.plan.spec.hostname().clone().unwrap_or_default(),
        "Domainname": saved.plan.spec.domainname().clone().unwrap_or_default(),
        "User": saved.plan.user,
        "AttachStdin": attached(request.stdio.interactive),
        "AttachStdout": attached(true),
        "AttachStderr": attached(true),
        "ExposedPorts": set(saved.plan.network.expose.iter().map(|(port, kind)| format!("{port}/{}", protocol_name(*kind))).collect()),
        "Tty": request.stdio.tty,
        "OpenStdin": request.stdio.interactive,
        "StdinOnce": attached(request.stdio.interactive),
        "Env": environment(request, process.env().as_deref().unwrap_or_default()),
        "Cmd": command,
        "Image": record.image,
        "Volumes": set(saved.plan.volumes.iter().filter(|volume| volume.anonymous).map(|volume| volume.destination.to_string_lossy().into_owned()).collect()),
        "WorkingDir": process.cwd(),
        "Entrypoint": entrypoint,
        "OnBuild": Value::Null,
        "Labels": record.labels,
        "StopSignal": crate::plan::signal::name(saved.plan.stop_signal),
        "StopTimeout": request.process.stop_timeout_s,
    });
    if let (Some(map), Some(check)) = (object.as_object_mut(), &saved.plan.healthcheck) {
        map.insert("Healthcheck".into(), json!(check));
    }
    object
}

/// Entrypoint and command of a container: what was asked for, else the image's.
#[must_use]
pub fn entrypoint_and_command(saved: &Saved) -> (Option<Vec<String>>, Option<Vec<String>>) {
    let (request, image) = (&saved.request, saved.image_config.config().clone().unwrap_or_default());
    let entrypoint = match &request.process.entrypoint {
        Some(text) if text.is_empty() => None,
        Some(text) => Some(vec![text.clone()]),
        None => image.entrypoint().clone(),
    };
    let command = match request.process.command.as_slice() {
        [] if request.process.entrypoint.is_none() => image.cmd().clone(),
        [] => None,
        given => Some(given.to_vec()),
    };
    (entrypoint, command)
}

/// Docker's Config.Env: what was asked for, then what the image has, without what every container is given.
fn environment<'e>(request: &crate::plan::RunRequest, all: &'e [String]) -> Vec<&'e String> {
    let name = |setting: &str| setting.split('=').next().unwrap_or_default().to_owned();
    let place = |setting: &String| {
        let asked = &request.process.env;
        asked.iter().position(|asked| asked.name == name(setting)).unwrap_or(asked.len())
    };
    let given = |setting: &String| {
        matches!(name(setting).as_str(), "HOSTNAME" | "TERM") && place(setting) == request.process.env.len()
    };
    let mut shown: Vec<_> =
        all.iter().filter(|setting| !is_secret(request, setting) && !given(setting)).collect();
    shown.sort_by_key(|setting| place(setting));
    shown
}

/// A variable that a secret is handed over in: nobody else's to see.
fn is_secret(request: &crate::plan::RunRequest, setting: &str) -> bool {
    let name = setting.split('=').next().unwrap_or_default();
    let mut targets = request.secrets.iter().map(|secret| &secret.target);
    targets.any(|target| matches!(target, SecretTarget::Variable(variable) if variable == name))
}

fn host_config(saved: &Saved, linux: &oci_spec::runtime::Linux) -> Value {
    let (plan, request) = (&saved.plan, &saved.request);
    let mut bindings = Map::new();
    for port in &plan.network.publish {
        let key = format!("{}/{}", port.container_port, protocol_name(port.protocol));
        let host_port = match port.host_port {
            crate::plan::HostPort::Any => String::new(),
            crate::plan::HostPort::Fixed(number) => number.to_string(),
            crate::plan::HostPort::FirstFree(first, last) => format!("{first}-{last}"),
        };
        let binding = json!({ "HostIp": port.host_ip.map(|ip| ip.to_string()).unwrap_or_default(), "HostPort": host_port });
        if let Value::Array(list) = bindings.entry(key).or_insert_with(|| json!([])) {
            list.push(binding);
        }
    }
    let binds: Vec<String> = plan
        .spec
        .mounts()
        .iter()
        .flatten()
        .filter(|mount| mount.typ().as_deref() == Some("bind"))
        .map(|mount| {
            // A volume by its name, as it was asked for.
            let volume = plan.volumes.iter().find(|volume| &volume.destination == mount.destination());
            let path =
                || mount.source().as_deref().map(|path| path.display().to_string()).unwrap_or_default();
            let source = volume.map_or_else(path, |volume| volume.name.clone());
            let read_only = mount.options().iter().flatten().any(|option| option == "ro");
            format!("{source}:{}{}", mount.destination().display(), if read_only { ":ro" } else { "" })
        })
        .collect();
    let words = |names: Vec<String>| if names.is_empty() { Value::Null } else { json!(names) };
    let mut config = json!({
        "Binds": words(binds),
        "ContainerIDFile": request.cidfile.clone().unwrap_or_default(),
        "LogConfig": { "Type": request.log_driver, "Config": request.log.options },
        "NetworkMode": network_name(saved),
        "PortBindings": bindings,
        "RestartPolicy": { "Name": request.restart.name(), "MaximumRetryCount": request.restart.max_retries() },
        "AutoRemove": plan.auto_remove,
        "VolumesFrom": words(request.storage.volumes_from.iter().map(|from| match from.access {
            Access::ReadWrite => from.container.clone(),
            _ => format!("{}:ro", from.container),
        }).collect()),
        "CapAdd": words(request.security.cap_add.iter().copied().map(capability_name).collect()),
        "CapDrop": words(request.security.cap_drop.iter().copied().map(capability_name).collect()),
        "Dns": plan.network.dns,
        "DnsOptions": plan.network.dns_options,
        "DnsSearch": plan.network.dns_search,
        "ExtraHosts": plan.network.extra_hosts.iter().map(|(name, address)| match address {
            crate::plan::HostAddress::HostGateway => format!("{name}:host-gateway"),
            crate::plan::HostAddress::Ip(ip) => format!("{name}:{ip}"),
        }).collect::<Vec<_>>(),
        "GroupAdd": words(plan.group_add.clone()),
        "Init": plan.init,
        "Privileged": request.security.privileged,
        "PublishAllPorts": plan.network.publish_all,
        "ReadonlyRootfs": request.storage.read_only_root,
        "Memory": request.limits.memory_bytes,
        "MemorySwap": match request.limits.memory_swap_bytes {
            // As much swap again.
            0 => i64::try_from(request.limits.memory_bytes.saturating_mul(2)).unwrap_or(i64::MAX),
            given => given,
        },
        "MemoryReservation": request.limits.memory_reservation_bytes,
        "MemorySwappiness": request.limits.memory_swappiness,
        "NanoCpus": request.limits.cpu_nanos,
        "CpuShares": request.limits.cpu_shares,
        "CpuPeriod": request.limits.cpu_period_us,
        "CpuQuota": request.limits.cpu_quota_us,
        "CpusetCpus": request.limits.cpuset_cpus,
        "CpusetMems": request.limits.cpuset_mems,
        "PidsLimit": if request.limits.pids == 0 { Value::Null } else { request.limits.pids.into() },
        "BlkioWeight": request.limits.blkio_weight,
        "OomKillDisable": request.limits.oom_kill_disable,
        "OomScoreAdj": request.process.oom_score_adj.unwrap_or(0),
        "CgroupParent": request.limits.cgroup_parent,
        "ShmSize": request.storage.shm_size_bytes.unwrap_or(crate::plan::mount::DEFAULT_SHM_SIZE_BYTES),
        "MaskedPaths": linux.masked_paths(),
        "ReadonlyPaths": linux.readonly_paths(),
    });
    if let (Value::Object(config), Value::Object(modes)) = (&mut config, namespace_modes(saved)) {
        config.extend(modes);
    }
    if let (Value::Object(config), Value::Object(rest)) = (&mut config, host_config_rest(saved)) {
        config.extend(rest);
    }
    config
}

/// What of Docker's HostConfig is seldom asked for, and what can only be empty here.
fn host_config_rest(saved: &Saved) -> Value {
    let request = &saved.request;
    let devices: Vec<Value> = request
        .storage
        .mounts
        .iter()
        .filter_map(|mount| match &mount.kind {
            MountKind::Device { source } => Some(json!({
                "PathOnHost": source, "PathInContainer": mount.destination, "CgroupPermissions": "rwm",
            })),
            _ => None,
        })
        .collect();
    let tmpfs: Map<String, Value> = request
        .storage
        .mounts
        .iter()
        .filter_map(|mount| match &mount.kind {
            MountKind::Tmpfs { options } => {
                Some((mount.destination.to_string_lossy().into_owned(), options.join(",").into()))
            }
            _ => None,
        })
        .collect();
    let ulimits: Vec<Value> = request
        .process
        .rlimits
        .iter()
        .map(|limit| {
            let name = limit.typ().to_string().trim_start_matches("RLIMIT_").to_lowercase();
            json!({ "Name": name, "Hard": limit.hard(), "Soft": limit.soft() })
        })
        .collect();
    let mut security = Vec::new();
    if request.security.no_new_privileges {
        security.push("no-new-privileges".to_owned());
    }
    match &request.security.seccomp {
        Some(SeccompPlan::Unconfined) => security.push("seccomp=unconfined".to_owned()),
        Some(SeccompPlan::Profile(profile)) => security.push(format!("seccomp={profile}")),
        _ => {}
    }
    let rates = |flag: &str| {
        let texts = request.limits.blkio_devices.get(flag).into_iter().flatten();
        let split = texts.filter_map(|text| text.rsplit_once(':'));
        Value::from_iter(split.map(|(path, rate)| json!({ "Path": path, "Rate": rate })))
    };
    let mut object = json!({
        "BlkioDeviceReadBps": rates("device-read-bps"),
        "BlkioDeviceReadIOps": rates("device-read-iops"),
        "BlkioDeviceWriteBps": rates("device-write-bps"),
        "BlkioDeviceWriteIOps": rates("device-write-iops"),
        "BlkioWeightDevice": rates("blkio-weight-device"),
        "Cgroup": "",
        "ConsoleSize": [0, 0],
        "CpuCount": 0,
        "CpuPercent": 0,
        "CpuRealtimePeriod": 0,
        "CpuRealtimeRuntime": 0,
        "DeviceCgroupRules": Value::Null,
        "DeviceRequests": Value::Null,
        "Devices": devices,
        "IOMaximumBandwidth": 0,
        "IOMaximumIOps": 0,
        "Isolation": "",
        "Links": Value::Null,
        "Runtime": "hostel",
        "SecurityOpt": if security.is_empty() { Value::Null } else { json!(security) },
        "Ulimits": ulimits,
        "VolumeDriver": "",
    });
    if let (Value::Object(object), false) = (&mut object, tmpfs.is_empty()) {
        object.insert("Tmpfs".into(), Value::Object(tmpfs));
    }
    object
}

fn mounts(saved: &Saved) -> Value {
    let mut found = Vec::new();
    for mount in saved.plan.spec.mounts().iter().flatten() {
        let read_only = mount.options().iter().flatten().any(|option| option == "ro");
        let volume = saved.plan.volumes.iter().find(|volume| &volume.destination == mount.destination());
        let kind = mount.typ().as_deref().unwrap_or_default();
        if let Some(volume) = volume {
            found.push(json!({
                "Type": "volume", "Name": volume.name, "Source": mount.source(), "Destination": mount.destination(),
                "Driver": "local", "Mode": "z", "RW": !read_only, "Propagation": "",
            }));
        } else if kind == "image" {
            found.push(json!({
                "Type": "image", "Source": mount.source(), "Destination": mount.destination(),
                "Mode": "", "RW": false, "Propagation": "",
            }));
        } else if kind == "bind" {
            found.push(json!({
                "Type": "bind", "Source": mount.source(), "Destination": mount.destination(),
                "Mode": if read_only { "ro" } else { "" }, "RW": !read_only, "Propagation": "rprivate",
            }));
        }
    }
    Value::Array(found)
}

fn network_settings(state: Option<&State>, saved: &Saved) -> Value {
    // In the order of their names, as Go writes a map.
    let mut ports = BTreeMap::new();
    if let Some(state) = state {
        for (port, kind) in &saved.plan.network.expose {
            ports.insert(format!("{port}/{}", protocol_name(*kind)), Value::Null);
        }
        for (inner, protocol, address, port) in &state.ports {
            let entry = ports.entry(format!("{inner}/{protocol}")).or_insert(Value::Null);
            let binding = json!({ "HostIp": address.to_string(), "HostPort": port.to_string() });
            match entry {
                Value::Array(list) => list.push(binding),
                other => *other = json!([binding]),
            }
        }
    }
    let addresses = addresses(state);
    let mut settings = Map::from_iter([
        ("Bridge".to_owned(), json!("")),
        ("SandboxID".to_owned(), json!("")),
        (
            "SandboxKey".to_owned(),
            state.map_or_else(String::new, |state| format!("/proc/{}/ns/net", state.pid)).into(),
        ),
        ("Ports".to_owned(), json!(ports)),
        ("EndpointID".to_owned(), json!("")),
        ("HairpinMode".to_owned(), json!(false)),
        ("LinkLocalIPv6Address".to_owned(), json!("")),
        ("LinkLocalIPv6PrefixLen".to_owned(), json!(0)),
        ("SecondaryIPAddresses".to_owned(), Value::Null),
        ("SecondaryIPv6Addresses".to_owned(), Value::Null),
    ]);
    settings.extend(addresses.clone());
    let networks = match &saved.plan.network.mode {
        // As in Docker: they are the other container's.
        NetworkMode::Container(_) => json!({}),
        _ => {
            let name = network_name(saved);
            let mut endpoint = Map::from_iter([
                ("IPAMConfig".to_owned(), ipam_config(saved)),
                ("Links".to_owned(), Value::Null),
                ("Aliases".to_owned(), Value::Null),
                ("DriverOpts".to_owned(), Value::Null),
                ("GwPriority".to_owned(), json!(0)),
                ("NetworkID".to_owned(), super::network::id_of(&name).into()),
                ("EndpointID".to_owned(), json!("")),
                ("DNSNames".to_owned(), Value::Null),
            ]);
            endpoint.extend(addresses);
            json!({ name: endpoint })
        }
    };
    settings.insert("Networks".into(), networks);
    Value::Object(settings)
}

/// Docker's fields of a container's addresses; empty where it has none. There is never a hardware address: the
/// interface has no link layer.
fn addresses(state: Option<&State>) -> Map<String, Value> {
    let network = state.and_then(|state| state.network);
    let text = |address: Option<std::net::IpAddr>| {
        Value::from(address.map(|address| address.to_string()).unwrap_or_default())
    };
    let (v4, v6) = (network.map(|network| network.v4), network.map(|network| network.v6));
    // A record of an older version has this one alone.
    let v4_address = v4.map(|v4| v4.address).or_else(|| state.and_then(|state| state.address));
    Map::from_iter([
        ("Gateway".to_owned(), text(v4.map(|v4| v4.gateway))),
        ("IPAddress".to_owned(), text(v4_address)),
        ("IPPrefixLen".to_owned(), v4.map_or(0, |v4| v4.prefix_length).into()),
        ("IPv6Gateway".to_owned(), text(v6.map(|v6| v6.gateway))),
        ("GlobalIPv6Address".to_owned(), text(v6.map(|v6| v6.address))),
        ("GlobalIPv6PrefixLen".to_owned(), v6.map_or(0, |v6| v6.prefix_length).into()),
        ("MacAddress".to_owned(), json!("")),
    ])
}

/// The addresses that were asked for.
fn ipam_config(saved: &Saved) -> Value {
    let chosen = saved.plan.network.addresses;
    let mut config = Map::new();
    if let Some(address) = chosen.container_v4 {
        config.insert("IPv4Address".into(), address.to_string().into());
    }
    if let Some(address) = chosen.container_v6 {
        config.insert("IPv6Address".into(), address.to_string().into());
    }
    if config.is_empty() { Value::Null } else { Value::Object(config) }
}

/// The names of what a container mounts, for `ps`.
#[must_use]
pub fn mount_names(saved: &Saved, no_trunc: bool) -> Vec<String> {
    let Value::Array(found) = mounts(saved) else { return Vec::new() };
    found
        .iter()
        .filter_map(|mount| mount.get("Name").or_else(|| mount.get("Source"))?.as_str())
        .map(|name| match name.char_indices().nth(15) {
            Some((end, _)) if !no_trunc => format!("{}…", &name[..end]),
            _ => name.to_owned(),
        })
        .collect()
}

/// Whose namespaces the container is in.
fn namespace_modes(saved: &Saved) -> Value {
    let (plan, request) = (&saved.plan, &saved.request);
    json!({
        "IpcMode": match (&plan.joins.ipc, &request.security.ipc) {
            (Some(id), _) | (None, IpcMode::Container(id)) => format!("container:{id}"),
            (_, IpcMode::Private) => "private".into(),
            (_, IpcMode::Shareable) => "shareable".into(),
            (_, IpcMode::None) => "none".into(),
            (_, IpcMode::Host) => "host".into(),
        },
        "PidMode": mode_name(plan.joins.pid.as_ref(), &request.security.pid),
        "UTSMode": mode_name(plan.joins.uts.as_ref(), &request.security.uts),
        "CgroupnsMode": match request.security.cgroup {
            NamespaceMode::Host => "host",
            _ => "private",
        },
        "UsernsMode": match (&plan.joins.user, &request.security.user) {
            (Some(id), _) | (None, UsernsMode::Container(id)) => format!("container:{id}"),
            (_, UsernsMode::Usual) => String::new(),
            (_, UsernsMode::KeepId { .. }) => match &plan.keep_id {
                Some(keep) => format!("keep-id:uid={},gid={}", keep.uid, keep.gid),
                None => "keep-id".into(),
            },
        },
    })
}

/// A namespace as Docker shows it: nothing for the container's own.
fn mode_name(joined: Option<&String>, mode: &NamespaceMode) -> String {
    match (joined, mode) {
        (Some(id), _) | (None, NamespaceMode::Container(id)) => format!("container:{id}"),
        (_, NamespaceMode::Host) => "host".into(),
        (_, NamespaceMode::Private) => String::new(),
    }
}

/// The network's name as Docker shows it.
#[must_use]
pub fn network_name(saved: &Saved) -> String {
    match &saved.plan.network.mode {
        NetworkMode::None => "none".into(),
        NetworkMode::Host => "host".into(),
        NetworkMode::Bridge => "bridge".into(),
        NetworkMode::Container(reference) => format!("container:{reference}"),
    }
}

fn capability_name(name: CapabilityName) -> String {
    match name {
        CapabilityName::All => "ALL".into(),
        CapabilityName::One(capability) => format!("CAP_{capability}"),
    }
}

/// `tcp` or `udp`.
#[must_use]
pub fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}
