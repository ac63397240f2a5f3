//! The merge itself: request, image and facts into one plan.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;

use oci_spec::image::{Config, ImageConfiguration};
use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceType, Process, Root, Spec, User};
use thiserror::Error;

use super::health::Healthcheck;
use super::port::{self, PortError};
use super::request::{IpcMode, Limits, NamespaceMode, RunRequest, SecurityRequest, Unmask};
use super::signal::{self, InvalidSignal};
use super::{
    ContainerPlan, HostPort, Joins, KeepId, Labels, NetworkMode, NetworkPlan, Protocol, PublishedPort,
    SeccompPlan, capability, mount, process,
};
use crate::id::ContainerId;

/// The version of the runtime spec that a plan follows.
const SPEC_VERSION: &str = "1.2.0";

/// Seconds before SIGKILL unless something else was asked for: Docker's.
const DEFAULT_STOP_TIMEOUT_S: i64 = 10;

/// Ports that one image may expose, ranges counted in full: one whole range of each protocol. It
/// bounds the work that a hostile configuration can ask for.
const MAX_IMAGE_PORTS: usize = 2 * 65_536;

/// Paths of the kernel's that are hidden: what tells about the host or reaches beyond the container
/// (moby's list).
const MASKED_PATHS: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Paths of the kernel's that can be read only (moby's list).
const READ_ONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// What a plan depends on besides request and image: known before anything is made.
#[derive(Clone, Debug)]
pub struct BuildFacts {
    /// The container's id.
    pub id: ContainerId,
    /// User ids in the container's map.
    pub uid_count: u32,
    /// Group ids in the container's map.
    pub gid_count: u32,
    /// The machine's host name, for `--network host` and `--uts host`.
    pub host_name: String,
    /// The containers whose namespaces are joined.
    pub peers: Peers,
    /// Who the caller is inside, for `--userns keep-id`.
    pub keep_id: Option<KeepId>,
    /// Set when the root is the machine's own (`host:/`).
    pub host_root: Option<HostRoot>,
    /// The controllers by which limits hold (`memory`, `pids`); none without a delegated control group.
    pub controllers: Vec<String>,
    /// The image's HEALTHCHECK, which its OCI configuration type does not have.
    pub image_healthcheck: Option<Healthcheck>,
    /// Paths to hide besides the fixed ones: those of this machine's CPUs
    /// (`/sys/devices/system/cpu/cpuN/thermal_throttle`).
    pub extra_masked_paths: Vec<String>,
}

/// The other containers that a request names, by what is joined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peers {
    /// `--network container:`.
    pub network: Option<Peer>,
    /// `--pid container:`.
    pub pid: Option<Peer>,
    /// `--ipc container:`.
    pub ipc: Option<Peer>,
    /// `--uts container:`.
    pub uts: Option<Peer>,
    /// `--userns container:`.
    pub user: Option<Peer>,
}

/// What a container takes over from one that it joins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its id.
    pub id: ContainerId,
    /// Its host name.
    pub host_name: Option<String>,
    /// Its NIS domain name.
    pub domain_name: Option<String>,
    /// The namespaces that it does not have to itself, nor from a third container: the machine's.
    pub host_namespaces: Vec<LinuxNamespaceType>,
}

impl Peer {
    fn shares_host(&self, kind: LinuxNamespaceType) -> bool {
        self.host_namespaces.contains(&kind)
    }
}

/// Whether a namespace is the machine's: by the request, or because that of the joined container is.
fn is_hosts(mode: &NamespaceMode, peer: Option<&Peer>, kind: LinuxNamespaceType) -> bool {
    match mode {
        NamespaceMode::Private => false,
        NamespaceMode::Host => true,
        NamespaceMode::Container(_) => peer.is_some_and(|peer| peer.shares_host(kind)),
    }
}

/// Whether the container has the machine's process ids.
pub(super) fn uses_host_pids(request: &RunRequest, facts: &BuildFacts) -> bool {
    is_hosts(&request.security.pid, facts.peers.pid.as_ref(), LinuxNamespaceType::Pid)
}

/// Whether the container has the machine's IPC.
pub(super) fn uses_host_ipc(request: &RunRequest, facts: &BuildFacts) -> bool {
    match &request.security.ipc {
        IpcMode::Private | IpcMode::Shareable | IpcMode::None => false,
        IpcMode::Host => true,
        IpcMode::Container(_) => {
            facts.peers.ipc.as_ref().is_some_and(|peer| peer.shares_host(LinuxNamespaceType::Ipc))
        }
    }
}

fn uses_host_uts(request: &RunRequest, facts: &BuildFacts) -> bool {
    is_hosts(&request.security.uts, facts.peers.uts.as_ref(), LinuxNamespaceType::Uts)
}

/// By their ids, as in Docker: a name may come to be another container's.
fn joins(request: &RunRequest, facts: &BuildFacts) -> Joins {
    let id =
        |peer: &Option<Peer>, hosts: bool| peer.as_ref().filter(|_| !hosts).map(|peer| peer.id.to_string());
    Joins {
        user: id(&facts.peers.user, false),
        pid: id(&facts.peers.pid, uses_host_pids(request, facts)),
        ipc: id(&facts.peers.ipc, uses_host_ipc(request, facts)),
        uts: id(&facts.peers.uts, uses_host_uts(request, facts)),
    }
}

/// What is special about `host:/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRoot {
    /// The caller's working directory: the container's, unless `-w` says otherwise.
    pub working_dir: PathBuf,
}

/// Why no plan came of a request. The wordings are Docker's where it has one.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PlanError {
    /// Neither image nor request says what to run.
    #[error("no command specified")]
    NoCommand,
    /// Two mounts at one place.
    #[error("Duplicate mount point: {0}")]
    DuplicateMount(PathBuf),
    /// A VOLUME of the image that is not an absolute path below `/`.
    #[error("the image's configuration is invalid: volume {0:?} is not an absolute path below /")]
    ImageVolume(String),
    /// More VOLUMEs than a container can have.
    #[error("the image's configuration is invalid: it has {count} volumes, the limit is {limit}")]
    TooManyVolumes {
        /// How many it has.
        count: usize,
        /// How many it may have.
        limit: usize,
    },
    /// An exposed port of the image that is none.
    #[error("the image's configuration is invalid: exposed port {text:?}")]
    ImagePort {
        /// The text.
        text: String,
        /// What is wrong with it.
        source: PortError,
    },
    /// More exposed ports than there are.
    #[error("the image's configuration is invalid: it exposes more than {0} ports")]
    TooManyPorts(usize),
    /// The image's STOPSIGNAL.
    #[error("the image's configuration is invalid: STOPSIGNAL")]
    ImageSignal(#[source] InvalidSignal),
    /// A text that cannot be handed to the kernel.
    #[error("the {what} contains a NUL character: {text:?}")]
    Nul {
        /// Which text.
        what: &'static str,
        /// It.
        text: String,
    },
    /// A sysctl of a namespace that is the host's.
    #[error("sysctl {name:?} is not allowed: the container shares the host's {namespace} namespace")]
    SysctlOfHost {
        /// The sysctl.
        name: String,
        /// Whose it is.
        namespace: &'static str,
    },
}

/// Merges the request with the image's configuration.
///
/// # Errors
/// [`PlanError`]: nothing to run, mounts in conflict, or a configuration that is not valid.
pub fn build(
    request: &RunRequest,
    image: &ImageConfiguration,
    facts: &BuildFacts,
) -> Result<ContainerPlan, PlanError> {
    let empty = Config::default();
    let config = image.config().as_ref().unwrap_or(&empty);
    let hostname = hostname(request, facts);
    let mounts = mount::plan(request, config.volumes().as_deref().unwrap_or_default(), facts)?;
    let network = network(request, config, facts)?;
    let capabilities = capability::wanted(&request.security);

    let mut spec = Spec::default();
    spec.set_version(SPEC_VERSION.into())
        .set_root(Some(root(request)))
        .set_mounts(Some(mounts.mounts))
        .set_process(Some(process(request, config, &hostname, facts, &capabilities)?))
        .set_hostname((request.security.uts == NamespaceMode::Private).then_some(hostname))
        .set_domainname(domain_name(request, facts))
        .set_linux(Some(linux(request, facts)?))
        .set_annotations(annotations(&request.annotations));

    Ok(ContainerPlan {
        spec,
        user: user(request, config, facts)?,
        group_add: request.process.group_add.clone(),
        joins: joins(request, facts),
        keep_id: facts.keep_id.clone(),
        write_mode: request.storage.write_mode,
        quota: request.storage.quota,
        network,
        seccomp: seccomp(&request.security),
        stdin_open: request.stdio.interactive,
        init: request.process.init,
        auto_remove: request.auto_remove,
        stop_signal: stop_signal(request, config)?,
        stop_timeout_s: request.process.stop_timeout_s.unwrap_or(DEFAULT_STOP_TIMEOUT_S),
        volumes: mounts.volumes,
        bind_sources: mounts.bind_sources,
        labels: labels(request, config),
        healthcheck: Healthcheck::merged(request.healthcheck.as_ref(), facts.image_healthcheck.as_ref()),
        warnings: warnings(request, &facts.controllers),
    })
}

/// What HOSTNAME and the UTS namespace say.
fn hostname(request: &RunRequest, facts: &BuildFacts) -> String {
    if let Some(name) = &request.network.hostname {
        return name.clone();
    }
    if let Some(peer) = facts.peers.uts.as_ref().filter(|_| !uses_host_uts(request, facts)) {
        return joined_name(peer, facts);
    }
    match &request.network.mode {
        _ if uses_host_uts(request, facts) => facts.host_name.clone(),
        NetworkMode::Host => facts.host_name.clone(),
        NetworkMode::Container(_) => facts
            .peers
            .network
            .as_ref()
            .map_or_else(|| facts.id.short().to_owned(), |peer| joined_name(peer, facts)),
        NetworkMode::None | NetworkMode::Bridge => facts.id.short().to_owned(),
    }
}

fn joined_name(peer: &Peer, facts: &BuildFacts) -> String {
    peer.host_name.clone().unwrap_or_else(|| facts.id.short().to_owned())
}

fn domain_name(request: &RunRequest, facts: &BuildFacts) -> Option<String> {
    if request.security.uts != NamespaceMode::Private {
        return None; // it is not the container's to set
    }
    match &request.network.mode {
        NetworkMode::Container(_) => facts.peers.network.as_ref().and_then(|peer| peer.domain_name.clone()),
        _ => None,
    }
    .or_else(|| request.network.domainname.clone())
}

fn root(request: &RunRequest) -> Root {
    let mut root = Root::default();
    root.set_path("rootfs".into()).set_readonly(Some(request.storage.read_only_root));
    root
}

fn process(
    request: &RunRequest,
    config: &Config,
    hostname: &str,
    facts: &BuildFacts,
    capabilities: &[oci_spec::runtime::Capability],
) -> Result<Process, PlanError> {
    let asked = &request.process;
    let arguments = process::arguments(
        config.entrypoint().as_deref().unwrap_or_default(),
        config.cmd().as_deref().unwrap_or_default(),
        asked.entrypoint.as_deref(),
        &asked.command,
    )
    .ok_or(PlanError::NoCommand)?;
    for argument in &arguments {
        without_nul("command", argument)?;
    }
    let image_env = config.env().as_deref().unwrap_or_default();
    let env = process::environment(hostname, request.stdio.tty, image_env, &asked.env);

    let mut process = Process::default();
    process
        .set_terminal(Some(request.stdio.tty))
        .set_user(User::default())
        .set_args(Some(arguments))
        .set_env(Some(env))
        .set_cwd(working_dir(request, config, facts)?)
        .set_capabilities(Some(capability::sets(capabilities)))
        .set_rlimits((!asked.rlimits.is_empty()).then(|| asked.rlimits.clone()))
        .set_no_new_privileges(Some(request.security.no_new_privileges))
        .set_oom_score_adj(asked.oom_score_adj);
    Ok(process)
}

fn working_dir(request: &RunRequest, config: &Config, facts: &BuildFacts) -> Result<PathBuf, PlanError> {
    let text = match (&request.process.working_dir, config.working_dir()) {
        (Some(asked), _) => asked,
        (None, Some(of_image)) if !of_image.is_empty() => of_image,
        (None, _) => {
            return Ok(facts.host_root.as_ref().map_or_else(|| "/".into(), |root| root.working_dir.clone()));
        }
    };
    without_nul("working directory", text)?;
    // An image's relative WORKDIR starts at the root, as in Docker.
    Ok(mount::clean_destination(text)
        .or_else(|| mount::clean_destination(&format!("/{text}")))
        .unwrap_or_else(|| "/".into()))
}

fn user(request: &RunRequest, config: &Config, facts: &BuildFacts) -> Result<String, PlanError> {
    // As in podman: who keeps their ids means to be themselves, whatever the image's USER.
    let kept = facts.keep_id.as_ref().map(|keep| format!("{}:{}", keep.uid, keep.gid));
    let asked = request.process.user.clone();
    let user = asked.or(kept).or_else(|| config.user().clone()).unwrap_or_default();
    without_nul("user", &user)?;
    Ok(user)
}

fn stop_signal(request: &RunRequest, config: &Config) -> Result<i32, PlanError> {
    match (request.process.stop_signal, config.stop_signal()) {
        (Some(asked), _) => Ok(asked),
        (None, Some(text)) if !text.is_empty() => signal::parse(text).map_err(PlanError::ImageSignal),
        (None, _) => Ok(libc::SIGTERM),
    }
}

fn labels(request: &RunRequest, config: &Config) -> Labels {
    let mut labels: Labels = config.labels().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
    labels.extend(request.labels.clone());
    labels
}

fn annotations(annotations: &Labels) -> Option<HashMap<String, String>> {
    (!annotations.is_empty()).then(|| annotations.clone().into_iter().collect())
}

fn network(request: &RunRequest, config: &Config, facts: &BuildFacts) -> Result<NetworkPlan, PlanError> {
    let asked = &request.network;
    let mut expose = image_ports(config)?;
    expose.extend(asked.expose.iter().copied());

    let mut publish = Vec::new();
    // Only the userspace network has anything between host and container to publish through.
    if asked.mode == NetworkMode::Bridge {
        publish.clone_from(&asked.publish);
        if asked.publish_all {
            publish.extend(random_ports(&expose, &asked.publish));
        }
    }
    let mode = match (&asked.mode, &facts.peers.network) {
        // By its id, as in Docker: the name may come to be another container's.
        (NetworkMode::Container(_), Some(peer)) => NetworkMode::Container(peer.id.to_string()),
        (mode, _) => mode.clone(),
    };
    Ok(NetworkPlan {
        mode,
        publish,
        publish_all: asked.publish_all,
        expose: expose.into_iter().collect(),
        extra_hosts: asked.extra_hosts.clone(),
        dns: asked.dns.clone(),
        dns_search: asked.dns_search.clone(),
        dns_options: asked.dns_options.clone(),
        host_loopback: asked.host_loopback.clone(),
        mtu_bytes: asked.mtu_bytes,
        addresses: asked.addresses,
    })
}

/// `-P`: every exposed port that has no mapping of its own gets one chosen by the kernel.
fn random_ports(expose: &BTreeSet<(u16, Protocol)>, published: &[PublishedPort]) -> Vec<PublishedPort> {
    let mapped: BTreeSet<(u16, Protocol)> =
        published.iter().map(|port| (port.container_port, port.protocol)).collect();
    expose
        .difference(&mapped)
        .map(|(container_port, protocol)| PublishedPort {
            host_ip: None,
            host_port: HostPort::Any,
            container_port: *container_port,
            protocol: *protocol,
        })
        .collect()
}

fn image_ports(config: &Config) -> Result<BTreeSet<(u16, Protocol)>, PlanError> {
    let mut ports = BTreeSet::new();
    let mut count = 0;
    for text in config.exposed_ports().iter().flatten() {
        let invalid = |source| PlanError::ImagePort { text: text.clone(), source };
        let (range, protocol) = match port::split_protocol(text) {
            // Nothing listens for it here, and exposing is only a note.
            Err(PortError::Sctp) => continue,
            other => other.map_err(invalid)?,
        };
        let range = port::parse_range(range).map_err(invalid)?;
        count += range.len();
        if count > MAX_IMAGE_PORTS {
            return Err(PlanError::TooManyPorts(MAX_IMAGE_PORTS));
        }
        ports.extend(range.map(|port| (port, protocol)));
    }
    Ok(ports)
}

fn seccomp(security: &SecurityRequest) -> SeccompPlan {
    match &security.seccomp {
        Some(asked) => asked.clone(),
        None if security.privileged => SeccompPlan::Unconfined,
        None => SeccompPlan::Default,
    }
}

fn linux(request: &RunRequest, facts: &BuildFacts) -> Result<Linux, PlanError> {
    let mut linux = Linux::default();
    let (masked, read_only) = protected_paths(&request.security, facts);
    linux
        .set_namespaces(Some(namespaces(request, facts)))
        .set_sysctl(Some(sysctls(request, facts)?).filter(|all| !all.is_empty()))
        .set_masked_paths(Some(masked))
        .set_readonly_paths(Some(read_only))
        .set_resources(None)
        .set_devices(None)
        .set_uid_mappings(None)
        .set_gid_mappings(None);
    Ok(linux)
}

/// Whether the container's network is the machine's: its own wish, or that of the container that it joins.
pub(super) fn uses_host_network(request: &RunRequest, facts: &BuildFacts) -> bool {
    match &request.network.mode {
        NetworkMode::None | NetworkMode::Bridge => false,
        NetworkMode::Host => true,
        NetworkMode::Container(_) => {
            facts.peers.network.as_ref().is_some_and(|peer| peer.shares_host(LinuxNamespaceType::Network))
        }
    }
}

/// The namespaces that are not the machine's: made for the container, or joined. The user namespace is
/// always one: that is what rootless means.
fn namespaces(request: &RunRequest, facts: &BuildFacts) -> Vec<LinuxNamespace> {
    let private_network = !uses_host_network(request, facts);
    [
        (LinuxNamespaceType::User, true),
        (LinuxNamespaceType::Mount, true),
        (LinuxNamespaceType::Pid, !uses_host_pids(request, facts)),
        (LinuxNamespaceType::Network, private_network),
        (LinuxNamespaceType::Ipc, !uses_host_ipc(request, facts)),
        (LinuxNamespaceType::Uts, !uses_host_uts(request, facts)),
        (LinuxNamespaceType::Cgroup, request.security.cgroup == NamespaceMode::Private),
    ]
    .into_iter()
    .filter(|(_, wanted)| *wanted)
    .map(|(kind, _)| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(kind);
        namespace
    })
    .collect()
}

/// Sysctls of the container's namespaces: as in Docker every port may be bound and every group may
/// ping, and what was asked for.
fn sysctls(request: &RunRequest, facts: &BuildFacts) -> Result<HashMap<String, String>, PlanError> {
    let mut all = BTreeMap::new();
    if matches!(request.network.mode, NetworkMode::None | NetworkMode::Bridge) {
        all.insert("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned());
        // The kernel refuses a range with a group outside the namespace's map.
        let last_gid = facts.gid_count.saturating_sub(1).min(i32::MAX.unsigned_abs());
        all.insert("net.ipv4.ping_group_range".to_owned(), format!("0 {last_gid}"));
    }
    for (name, value) in &request.security.sysctls {
        let namespace = if name.starts_with("net.") {
            uses_host_network(request, facts).then_some("network")
        } else {
            uses_host_ipc(request, facts).then_some("IPC")
        };
        if let Some(namespace) = namespace {
            return Err(PlanError::SysctlOfHost { name: name.clone(), namespace });
        }
        all.insert(name.clone(), value.clone());
    }
    Ok(all.into_iter().collect())
}

fn protected_paths(security: &SecurityRequest, facts: &BuildFacts) -> (Vec<String>, Vec<String>) {
    if security.privileged {
        return (security.mask.clone(), Vec::new());
    }
    let open = |path: &str| match &security.unmask {
        Unmask::Nothing => false,
        Unmask::All => true,
        Unmask::Paths(patterns) => patterns.iter().any(|pattern| matches(pattern, path)),
    };
    let extra = facts.extra_masked_paths.iter().map(String::as_str);
    let mut masked: Vec<String> =
        MASKED_PATHS.into_iter().chain(extra).filter(|path| !open(path)).map(str::to_owned).collect();
    masked.extend(security.mask.iter().cloned());
    let read_only = READ_ONLY_PATHS.into_iter().filter(|path| !open(path)).map(str::to_owned).collect();
    (masked, read_only)
}

/// Whether a path is the pattern's, where `*` stands for any run of characters within one component.
fn matches(pattern: &str, path: &str) -> bool {
    let (pattern, path): (Vec<&str>, Vec<&str>) = (pattern.split('/').collect(), path.split('/').collect());
    pattern.len() == path.len()
        && pattern.iter().zip(&path).all(|(pattern, part)| matches_part(pattern, part))
}

fn matches_part(pattern: &str, part: &str) -> bool {
    let Some((prefix, rest)) = pattern.split_once('*') else { return pattern == part };
    let Some(mut part) = part.strip_prefix(prefix) else { return false };
    // Each literal is taken at its first place; only the last must reach the end.
    let mut literals: Vec<&str> = rest.split('*').collect();
    let last = literals.pop().unwrap_or_default();
    for literal in literals {
        let Some(place) = part.find(literal) else { return false };
        part = &part[place + literal.len()..];
    }
    part.ends_with(last)
}

fn without_nul(what: &'static str, text: &str) -> Result<(), PlanError> {
    if text.contains('\0') { Err(PlanError::Nul { what, text: text.to_owned() }) } else { Ok(()) }
}

/// What will not be as asked: Docker's lines for a host without the cgroup controllers, for each whose
/// controller is not there to hold it.
fn warnings(request: &RunRequest, controllers: &[String]) -> Vec<String> {
    let mut lines: Vec<&str> = Vec::new();
    let published = !request.network.publish.is_empty() || request.network.publish_all;
    if request.network.mode == NetworkMode::Host && published {
        lines.push("Published ports are discarded when using host network mode");
    }
    let Limits {
        memory_bytes,
        memory_swap_bytes,
        memory_reservation_bytes,
        memory_swappiness,
        oom_kill_disable,
        cpu_nanos,
        cpu_shares,
        cpu_period_us,
        cpu_quota_us,
        cpu_realtime,
        cpuset_cpus,
        cpuset_mems,
        pids,
        blkio_weight,
        blkio_devices,
        cgroup_parent,
    } = &request.limits;
    let table: [(bool, &str, &str); 14] = [
        (
            *memory_bytes > 0,
            "memory",
            "Your kernel does not support memory limit capabilities or the cgroup is not mounted. Limitation discarded.",
        ),
        (
            *memory_swap_bytes > 0,
            "memory",
            "Your kernel does not support swap limit capabilities or the cgroup is not mounted. Memory limited without swap.",
        ),
        (
            *memory_reservation_bytes > 0,
            "memory",
            "Your kernel does not support memory soft limit capabilities or the cgroup is not mounted. Limitation discarded.",
        ),
        (
            memory_swappiness.is_some_and(|value| value != -1),
            "",
            "Your kernel does not support memory swappiness capabilities or the cgroup is not mounted. Memory swappiness discarded.",
        ),
        (*oom_kill_disable, "", "Your kernel does not support OomKillDisable. OomKillDisable discarded."),
        (
            *pids != 0 && *pids != -1,
            "pids",
            "Your kernel does not support PIDs limit capabilities or the cgroup is not mounted. PIDs limit discarded.",
        ),
        (
            *cpu_nanos > 0,
            "cpu",
            "Your kernel does not support CPU CFS scheduler or the cgroup is not mounted. NanoCPUs discarded.",
        ),
        (
            *cpu_shares > 0,
            "cpu",
            "Your kernel does not support CPU shares or the cgroup is not mounted. Shares discarded.",
        ),
        (
            *cpu_period_us > 0 || *cpu_quota_us > 0,
            "cpu",
            "Your kernel does not support CPU CFS scheduler or the cgroup is not mounted. CPU period/quota discarded.",
        ),
        (
            *cpu_realtime,
            "",
            "Your kernel does not support CPU real-time scheduler or the cgroup is not mounted. CPU real-time period/runtime discarded.",
        ),
        (
            !cpuset_cpus.is_empty() || !cpuset_mems.is_empty(),
            "cpuset",
            "Your kernel does not support cpuset or the cgroup is not mounted. Cpuset discarded.",
        ),
        (
            *blkio_weight > 0,
            "io",
            "Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded.",
        ),
        (
            !blkio_devices.is_empty(),
            "io",
            "Your kernel does not support Block I/O limits of devices or the cgroup is not mounted. Block I/O limits discarded.",
        ),
        (
            !cgroup_parent.is_empty(),
            "",
            "Your kernel does not support a cgroup parent or the cgroup is not delegated. Cgroup parent discarded.",
        ),
    ];
    // "" for what version 2 of the control groups does not have, or does not let be delegated.
    let holds = |controller: &str| controllers.iter().any(|name| name == controller);
    let broken = table.into_iter().filter(|(given, controller, _)| *given && !holds(controller));
    lines.extend(broken.map(|(.., line)| line));
    lines.into_iter().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests;
