//! Display system-wide information

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::format::Template;
use super::{CliError, Context, Exit, Outcome};
use crate::sandbox::idmap::{Facts, Method, Wanted, choose};
use crate::store::containers::{Containers, Status};
use crate::store::{Settings, Store, local};
use crate::supervisor::cgroup;
use crate::supervisor::materialise;

/// Display system-wide information
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Format output using a custom template: 'json', or 'TEMPLATE'
    #[arg(short, long, default_value = "", hide_default_value = true)]
    format: String,
}

/// Prints what this machine gives containers, and why not more.
///
/// # Errors
/// A template that is wrong; a store that cannot be read.
pub fn run(ctx: &Context, args: &Args) -> Outcome {
    let object = gather(ctx)?;
    match args.format.as_str() {
        "" => print!("{}", text(&object)),
        "json" => println!("{object}"),
        template => println!("{}", Template::render_one(template, &object)?),
    }
    Ok(Exit::Success)
}

fn gather(ctx: &Context) -> Result<Value, CliError> {
    let containers = Containers::new(&ctx.root);
    let (mut running, mut paused, mut stopped) = (0, 0, 0);
    for id in containers.ids()? {
        match containers.status(&id) {
            Ok(Status::Running(state)) if state.paused => paused += 1,
            Ok(Status::Running(_) | Status::Restarting(..)) => running += 1,
            Ok(_) => stopped += 1,
            Err(_) => {}
        }
    }
    let store = Store::open(&ctx.root)?;
    let images = store.catalog()?.images.len();
    let settings = Settings::current();
    let maps = choose(&Facts::gather(), Wanted::Usual);
    let (ids, reason) = match &maps.method {
        Method::Helpers { .. } => ("subordinate ids, by newuidmap".to_owned(), String::new()),
        Method::Direct => (
            "direct, started by root: the container's root is root outside too, without its privilege"
                .to_owned(),
            String::new(),
        ),
        Method::SingleId { reason } => ("one id".to_owned(), reason.clone()),
    };
    let [root, root_reason, write, write_reason] = modes(ctx);
    let uname = nix::sys::utsname::uname()?;
    let setting = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    let mut object = json!({
        "Containers": running + paused + stopped,
        "ContainersRunning": running,
        "ContainersPaused": paused,
        "ContainersStopped": stopped,
        "Images": images,
        "Driver": "hostel",
        "ServerVersion": env!("CARGO_PKG_VERSION"),
        "LoggingDriver": "json-file",
        "CgroupDriver": match cgroup::obtainable() {
            Some((_, cgroup::Source::Delegated)) => "cgroupfs",
            Some((_, cgroup::Source::Systemd)) => "systemd",
            None => "none",
        },
        "CgroupVersion": if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() { "2" } else { "1" },
        "KernelVersion": uname.release().to_string_lossy(),
        "OperatingSystem": operating_system(),
        "OSType": "linux",
        "Architecture": uname.machine().to_string_lossy(),
        "MemTotal": memory_bytes(),
        "NCPU": std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get),
        "Name": uname.nodename().to_string_lossy(),
        "DockerRootDir": ctx.root,
        "SecurityOptions": ["name=seccomp,profile=builtin", "name=rootless"],
    });
    if let (Some(object), Value::Object(others)) = (object.as_object_mut(), daemon()) {
        object.extend(others);
    }
    if let (Some(object), Value::Object(flags)) = (object.as_object_mut(), limit_flags()) {
        object.extend(flags);
    }
    object["Hostel"] = json!({
        "IdMaps": ids,
        "IdMapsReason": reason,
        "UidMap": maps.uids,
        "GidMap": maps.gids,
        "FuseDevice": device("/dev/fuse"),
        "TunDevice": device("/dev/net/tun"),
        "NetworkLink": match device("/dev/net/tun").as_str() {
            "usable" => "a TUN device",
            _ => "a veth pair with a packet socket, as there is no TUN device: the same features, at less speed",
        },
        "RootMode": root,
        "RootModeReason": root_reason,
        "WriteMode": write,
        "WriteModeReason": write_reason,
        "HybridLimits": HYBRID_LIMITS,
        "Limits": limits(),
        "PingGroupRange": setting("/proc/sys/net/ipv4/ping_group_range"),
        "UnprivilegedPortStart": setting("/proc/sys/net/ipv4/ip_unprivileged_port_start"),
        "StoreFilesystem": store_filesystem(store.root()),
        "AdditionalImageStores": settings.additional,
        "SocketDirectory": crate::supervisor::socket_dir().map_or_else(|error| error.to_string(), |dir| dir.display().to_string()),
    });
    Ok(object)
}

fn limits() -> String {
    match cgroup::obtainable() {
        Some((controllers, _)) if controllers.is_empty() => {
            "none hold: the delegated control group has no controllers".into()
        }
        Some((controllers, cgroup::Source::Delegated)) => format!("hold: {}", controllers.join(", ")),
        Some((controllers, cgroup::Source::Systemd)) => {
            format!(
                "hold, in a scope of systemd's for each container that has any: {}",
                controllers.join(", ")
            )
        }
        None => "none hold: no control group is delegated; `hostel doctor` says what would help".into(),
    }
}

/// Docker's flags for which limits its host can hold.
fn limit_flags() -> Value {
    let controllers = cgroup::obtainable().map(|(controllers, _)| controllers).unwrap_or_default();
    let holds = |name: &str| controllers.iter().any(|known| known == name);
    json!({
        "MemoryLimit": holds("memory"),
        "SwapLimit": holds("memory"),
        "CpuCfsPeriod": holds("cpu"),
        "CpuCfsQuota": holds("cpu"),
        "CPUShares": holds("cpu"),
        "CPUSet": holds("cpuset"),
        "PidsLimit": holds("pids"),
        "OomKillDisable": false,
        "IPv4Forwarding": true,
        "Debug": false,
        "ExperimentalBuild": false,
        "LiveRestoreEnabled": true,
        "Labels": [],
        "Isolation": "",
        "InitBinary": "hostel",
        "DriverStatus": Value::Null,
        "CDISpecDirs": super::cdi::directories(),
    })
}

/// What Docker's clients expect to read of a daemon.
fn daemon() -> Value {
    json!({
        "IndexServerAddress": "https://index.docker.io/v1/",
        "HttpProxy": variable("HTTP_PROXY", "http_proxy"),
        "HttpsProxy": variable("HTTPS_PROXY", "https_proxy"),
        "NoProxy": variable("NO_PROXY", "no_proxy"),
        "SystemTime": jiff::Timestamp::now().to_string(),
        "DefaultRuntime": "hostel",
        "Runtimes": { "hostel": { "path": std::env::current_exe().unwrap_or_default() } },
        "Plugins": {
            "Volume": ["local"], "Network": ["bridge", "host", "none"], "Authorization": null,
            "Log": ["journald", "json-file", "local", "none"],
        },
        "Swarm": { "LocalNodeState": "inactive" },
        "Warnings": null,
    })
}

/// Docker shows the variables that its daemon would use.
fn variable(name: &str, other: &str) -> String {
    std::env::var(name).or_else(|_| std::env::var(other)).unwrap_or_default()
}

fn memory_bytes() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok());
    total.unwrap_or(0_u64) * 1024
}

/// Whether the store's own filesystem holds locks and writable layers, and which does if not.
fn store_filesystem(root: &Path) -> String {
    let kind = match local::remote_kind(root) {
        Some(kind) => format!("{kind}, a network's or one of unknown abilities"),
        None => "local".to_owned(),
    };
    match local::directory(root) {
        Ok(None) => kind,
        Ok(Some(place)) => format!("{kind}; locks and writable layers are in {}", place.display()),
        Err(error) => format!("{kind}; {error}"),
    }
}

/// How images are read and containers written here, each with the reason why it is not the usual way.
fn modes(ctx: &Context) -> [String; 4] {
    let overlay = materialise::try_overlay(&ctx.root).err().unwrap_or_default();
    let fuse = materialise::reason().unwrap_or_default();
    let (root, write) = match (fuse.is_empty(), overlay.is_empty()) {
        (true, true) => ("packed layers, served over FUSE; hot and large files from plain files", HYBRID),
        (true, false) => ("packed layers, served over FUSE", "pure: the built-in FUSE filesystem alone"),
        (false, true) => {
            ("materialised: images are written out to directories, once for all containers", HYBRID)
        }
        (false, false) => (
            "materialised: images are written out to directories",
            "copy: each container has one of its image",
        ),
    };
    [root.to_owned(), fuse, write.to_owned(), overlay]
}

const HYBRID: &str = "hybrid: the kernel's overlayfs over the image";

/// What the kernel imposes on the hybrid write mode.
const HYBRID_LIMITS: [&str; 5] = [
    "renaming a directory of the image gives EXDEV (programs copy instead)",
    "hard links of the image part when one of them is written to",
    "a file's inode number changes when it is first written to",
    "the writable layer has no quota (write=pure has)",
    "directories that hold changed or native files have a link count of 1",
];

fn device(path: &str) -> String {
    match fs::OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => "usable".into(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            format!("missing: load its kernel module ({path})")
        }
        Err(error) => format!("closed ({error}): ask for `chmod 0666 {path}`"),
    }
}

fn operating_system() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .map_or_else(|| "Linux".to_owned(), |name| name.trim_matches('"').to_owned())
}

fn text(object: &Value) -> String {
    let mut out = String::new();
    for (label, key) in [
        ("Containers", "Containers"),
        (" Running", "ContainersRunning"),
        (" Paused", "ContainersPaused"),
        (" Stopped", "ContainersStopped"),
        ("Images", "Images"),
        ("Server Version", "ServerVersion"),
        ("Storage Driver", "Driver"),
        ("Logging Driver", "LoggingDriver"),
        ("Cgroup Driver", "CgroupDriver"),
        ("Cgroup Version", "CgroupVersion"),
        ("Kernel Version", "KernelVersion"),
        ("Operating System", "OperatingSystem"),
        ("OSType", "OSType"),
        ("Architecture", "Architecture"),
        ("CPUs", "NCPU"),
        ("Total Memory", "MemTotal"),
        ("Name", "Name"),
        ("Root Dir", "DockerRootDir"),
    ] {
        match (key, object[key].as_u64()) {
            ("MemTotal", Some(bytes)) => {
                push(&mut out, label, &super::format::human_size_binary(bytes).into());
            }
            _ => push(&mut out, label, &object[key]),
        }
    }
    let own = &object["Hostel"];
    for (label, key) in [
        ("Id Maps", "IdMaps"),
        (" Reason", "IdMapsReason"),
        (" Users (container, machine, count)", "UidMap"),
        (" Groups", "GidMap"),
        ("FUSE Device", "FuseDevice"),
        ("TUN Device", "TunDevice"),
        ("Network Link", "NetworkLink"),
        ("Image Mode", "RootMode"),
        (" Reason", "RootModeReason"),
        ("Write Mode", "WriteMode"),
        (" Reason", "WriteModeReason"),
        (" What hybrid cannot do", "HybridLimits"),
        ("Resource Limits", "Limits"),
        ("Ping Group Range", "PingGroupRange"),
        ("First Unprivileged Port", "UnprivilegedPortStart"),
        ("Store Filesystem", "StoreFilesystem"),
        ("Additional Image Stores", "AdditionalImageStores"),
        ("Socket Directory", "SocketDirectory"),
    ] {
        push(&mut out, label, &own[key]);
    }
    out
}

fn push(out: &mut String, label: &str, value: &Value) {
    let text = match value {
        Value::Null => return,
        Value::String(text) if text.is_empty() => return,
        Value::Array(list) if list.is_empty() => return,
        Value::String(text) => text.clone(),
        Value::Array(list) if list.iter().all(Value::is_string) => {
            let list: Vec<_> = list.iter().filter_map(Value::as_str).collect();
            list.join("; ")
        }
        other => other.to_string(),
    };
    out.push_str(&format!("{label}: {text}\n"));
}

/// This machine's architecture in Go's words, as images name it.
#[must_use]
pub fn go_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
