//! What was asked for with `run` or `create`, checked and typed: the input of [`build`](super::build).
//!
//! A request holds no command-line types and no decision that needs the image. It is saved beside
//! the plan, because `inspect` shows what was asked for as well as what came of it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use oci_spec::runtime::{Capability, PosixRlimit};
use serde::{Deserialize, Serialize};

use super::health::Healthcheck;
use super::restart::RestartPolicy;
use super::{
    ChosenAddresses, HostAddress, HostLoopback, Labels, NetworkMode, Protocol, PublishedPort, Relabel,
    SeccompPlan, StorageQuota, WriteMode,
};
use crate::id::Name;
use crate::image::Platform;
pub use crate::image::PullPolicy;

/// Everything that the flags of `run` and `create` can say.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunRequest {
    /// The image reference, as typed.
    pub image: String,
    /// `--name`.
    pub name: Option<Name>,
    /// `--cidfile`: where to write the id; it must not exist yet.
    pub cidfile: Option<PathBuf>,
    /// `--pull`.
    pub pull: PullPolicy,
    /// `--platform`.
    #[serde(default)]
    pub platform: Option<Platform>,
    /// `-q`: no progress of a pull.
    pub quiet: bool,
    /// `--rm`.
    pub auto_remove: bool,
    /// `--label-file`, then `--label`.
    pub labels: Labels,
    /// `--annotation`.
    pub annotations: Labels,
    /// `--restart`.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// `--health-*` and `--no-healthcheck`, where one was given.
    #[serde(default)]
    pub healthcheck: Option<Healthcheck>,
    /// Where the output is kept.
    pub log_driver: LogDriver,
    /// How much of it.
    #[serde(default)]
    pub log: LogRequest,
    /// The terminal and the streams.
    pub stdio: StdioRequest,
    /// `--secret`.
    #[serde(default)]
    pub secrets: Vec<SecretRequest>,
    /// The command and what it runs with.
    pub process: ProcessRequest,
    /// Mounts and the writable layer.
    pub storage: StorageRequest,
    /// The network and the names.
    pub network: NetworkRequest,
    /// Capabilities, filters, namespaces.
    pub security: SecurityRequest,
    /// Limits of memory, CPU, processes and I/O.
    pub limits: Limits,
}

impl RunRequest {
    /// A request for an image and nothing else.
    #[must_use]
    pub fn of_image(image: String) -> Self {
        Self {
            image,
            name: None,
            cidfile: None,
            pull: PullPolicy::default(),
            platform: None,
            quiet: false,
            auto_remove: false,
            labels: Labels::default(),
            annotations: Labels::default(),
            restart: RestartPolicy::default(),
            healthcheck: None,
            log_driver: LogDriver::default(),
            log: LogRequest::default(),
            stdio: StdioRequest::default(),
            secrets: Vec::new(),
            process: ProcessRequest::default(),
            storage: StorageRequest::default(),
            network: NetworkRequest::default(),
            security: SecurityRequest::default(),
            limits: Limits::default(),
        }
    }
}

/// Where the container's output is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogDriver {
    /// In the container's log file.
    #[default]
    JsonFile,
    /// The same file with Docker's limits for this driver, unless others are given.
    Local,
    /// In the machine's journal.
    Journald,
    /// Nowhere.
    None,
}

/// `--log-opt`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRequest {
    /// All that was given, as typed, for `inspect`.
    pub options: BTreeMap<String, String>,
    /// A log file of this size is put aside; `None` keeps one file for ever.
    pub max_size_bytes: Option<u64>,
    /// How many files are kept, the one being written among them.
    pub max_files: u32,
    /// What `logs --details` shows with each line.
    pub details: BTreeMap<String, String>,
    /// `tag=`: a template, and rendered once the container has an id.
    #[serde(default)]
    pub tag: Option<String>,
}

/// One `--secret`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretRequest {
    /// The secret's name or id.
    pub source: String,
    /// How the container gets it.
    pub target: SecretTarget,
}

/// How a container gets a secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SecretTarget {
    /// As a file of the container's root.
    File {
        /// Where, absolute.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// As the value of this variable.
    Variable(String),
}

/// One of the three standard streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard input.
    Stdin,
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// The terminal and the streams.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StdioRequest {
    /// `-i`: keep stdin open.
    pub interactive: bool,
    /// `-t`: give it a terminal.
    pub tty: bool,
    /// `-d`: do not attach.
    pub detach: bool,
    /// `-a`, sorted; empty for Docker's default (stdout and stderr, and stdin with `-i`).
    pub attach: Vec<Stream>,
    /// `--detach-keys`, as typed; `None` for the default ctrl-p ctrl-q.
    pub detach_keys: Option<String>,
    /// `--sig-proxy`: hand the client's signals on to the process.
    pub sig_proxy: bool,
}

/// The command and what it runs with.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProcessRequest {
    /// COMMAND ARG...
    pub command: Vec<String>,
    /// `--entrypoint`; the empty text resets the image's.
    pub entrypoint: Option<String>,
    /// `--env-file`, then `-e`, in order; the last setting of a name counts.
    pub env: Vec<EnvSetting>,
    /// `-w`, absolute.
    pub working_dir: Option<String>,
    /// `-u`.
    pub user: Option<String>,
    /// `--group-add`.
    pub group_add: Vec<String>,
    /// `--init`.
    pub init: bool,
    /// `--ulimit`.
    pub rlimits: Vec<PosixRlimit>,
    /// `--oom-score-adj`.
    pub oom_score_adj: Option<i32>,
    /// `--stop-signal`, as a number.
    pub stop_signal: Option<i32>,
    /// `--stop-timeout` in seconds; negative waits for ever.
    pub stop_timeout_s: Option<i64>,
}

/// One `-e`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvSetting {
    /// The variable.
    pub name: String,
    /// Its value; `None` takes the variable away.
    pub value: Option<String>,
}

/// Mounts and the writable layer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StorageRequest {
    /// `-v`, `--mount`, `--tmpfs` and `--device`, in order.
    pub mounts: Vec<MountRequest>,
    /// `--device` by CDI names: what they add is among the mounts and variables of the request that is
    /// saved.
    #[serde(default)]
    pub cdi_devices: Vec<String>,
    /// `--gpus`, likewise.
    #[serde(default)]
    pub gpus: Vec<String>,
    /// `--volumes-from`: what it adds is among the mounts of the request that is saved.
    #[serde(default)]
    pub volumes_from: Vec<VolumesFrom>,
    /// `--read-only`.
    pub read_only_root: bool,
    /// `--shm-size` in bytes.
    pub shm_size_bytes: Option<u64>,
    /// `--storage-opt write=`.
    pub write_mode: WriteMode,
    /// `--storage-opt size=` and `inodes=`; not none only where `write_mode` is pure.
    #[serde(default, skip_serializing_if = "StorageQuota::is_none")]
    pub quota: StorageQuota,
    /// `--tz`: a zone's name, or `local`.
    pub time_zone: Option<String>,
}

/// One `--volumes-from`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumesFrom {
    /// The other container, as typed.
    pub container: String,
    /// `:ro` makes all of them read-only; otherwise each is as it is there.
    pub access: Access,
}

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountRequest {
    /// Where, in the container: absolute, cleaned, not `/`.
    pub destination: PathBuf,
    /// Whether it can be written.
    pub access: Access,
    /// What is mounted.
    pub kind: MountKind,
}

/// Whether a mount can be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// It can.
    #[default]
    ReadWrite,
    /// Neither it nor any mount below it (Docker's meaning of `ro` since 25.0).
    ReadOnly,
    /// It cannot, mounts below it can (`bind-recursive=writable`).
    ReadOnlyTop,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MountKind {
    /// A path of the host.
    Bind(BindMount),
    /// A volume.
    Volume(VolumeMount),
    /// Memory.
    Tmpfs {
        /// Options of the mount, checked, in order (`size=64m`, `exec`).
        options: Vec<String>,
    },
    /// Files of another image, read-only.
    Image(ImageMount),
    /// A device node of the host that the user may open.
    Device {
        /// The node.
        source: PathBuf,
    },
}

/// A path of the host in the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindMount {
    /// The path, absolute.
    pub source: PathBuf,
    /// Make it when missing (`-v`).
    pub create_source: bool,
    /// Mounts below the source come along.
    pub recursive: bool,
    /// How later mounts travel.
    pub propagation: Propagation,
    /// `:z`, `:Z`.
    pub relabel: Option<Relabel>,
}

/// A volume in the container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMount {
    /// Its name; `None` for an anonymous one.
    pub name: Option<Name>,
    /// Do not fill a new volume with the image's content there.
    pub no_copy: bool,
    /// The part of the volume that is mounted, relative to it; `None` for all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subpath: Option<PathBuf>,
    /// Labels of a volume that is made for this mount.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Its driver's options.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub options: Labels,
}

/// Another image in the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageMount {
    /// Its reference, as typed.
    pub reference: String,
    /// The part of it that is mounted, relative to its root; `None` for all of it.
    pub subpath: Option<PathBuf>,
    /// Whether it can be written to; what is written goes with the container.
    #[serde(default)]
    pub writable: bool,
}

/// How mounts made later travel between the host's view and the container's
/// (mount_namespaces(7)). `Shared` cannot reach back to the host from a user namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Propagation {
    /// Not at all (the default).
    #[default]
    RPrivate,
    /// Not at all, this mount only.
    Private,
    /// From the host.
    RSlave,
    /// From the host, this mount only.
    Slave,
    /// Both ways.
    RShared,
    /// Both ways, this mount only.
    Shared,
}

impl Propagation {
    /// The option's name in an OCI mount.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RPrivate => "rprivate",
            Self::Private => "private",
            Self::RSlave => "rslave",
            Self::Slave => "slave",
            Self::RShared => "rshared",
            Self::Shared => "shared",
        }
    }

    /// The inverse of [`Self::as_str`].
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::RPrivate, Self::Private, Self::RSlave, Self::Slave, Self::RShared, Self::Shared]
            .into_iter()
            .find(|propagation| propagation.as_str() == text)
    }
}

/// The network and the names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRequest {
    /// `--network`.
    pub mode: NetworkMode,
    /// `--network bridge:mtu=`, in bytes.
    pub mtu_bytes: Option<u16>,
    /// `--ip`, `--ip6`, `--network bridge:subnet=`.
    #[serde(default, skip_serializing_if = "ChosenAddresses::is_none")]
    pub addresses: ChosenAddresses,
    /// `-h`.
    pub hostname: Option<String>,
    /// `--domainname`.
    pub domainname: Option<String>,
    /// `-p`, one entry a port.
    pub publish: Vec<PublishedPort>,
    /// `-P`.
    pub publish_all: bool,
    /// `--expose`.
    pub expose: Vec<(u16, Protocol)>,
    /// `--add-host`.
    pub extra_hosts: Vec<(String, HostAddress)>,
    /// `--dns`.
    pub dns: Vec<IpAddr>,
    /// `--dns-search`.
    pub dns_search: Vec<String>,
    /// `--dns-option`.
    pub dns_options: Vec<String>,
    /// `--host-loopback`.
    pub host_loopback: HostLoopback,
}

impl Default for NetworkRequest {
    fn default() -> Self {
        Self {
            mode: NetworkMode::Bridge,
            mtu_bytes: None,
            addresses: ChosenAddresses::default(),
            hostname: None,
            domainname: None,
            publish: Vec::new(),
            publish_all: false,
            expose: Vec::new(),
            extra_hosts: Vec::new(),
            dns: Vec::new(),
            dns_search: Vec::new(),
            dns_options: Vec::new(),
            host_loopback: HostLoopback::Closed,
        }
    }
}

/// A capability to add or drop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CapabilityName {
    /// Every one (`ALL`).
    All,
    /// This one.
    One(Capability),
}

/// Capabilities, filters, namespaces.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SecurityRequest {
    /// `--privileged`.
    pub privileged: bool,
    /// `--cap-add`.
    pub cap_add: Vec<CapabilityName>,
    /// `--cap-drop`.
    pub cap_drop: Vec<CapabilityName>,
    /// `--security-opt no-new-privileges`.
    pub no_new_privileges: bool,
    /// `--security-opt seccomp=`; `None` for the default profile, or no filter when privileged.
    pub seccomp: Option<SeccompPlan>,
    /// `--security-opt mask=`: further paths to hide.
    pub mask: Vec<String>,
    /// `--security-opt unmask=`: paths not to hide or protect.
    pub unmask: Unmask,
    /// `--sysctl`.
    pub sysctls: BTreeMap<String, String>,
    /// `--pid`.
    pub pid: NamespaceMode,
    /// `--ipc`.
    pub ipc: IpcMode,
    /// `--uts`.
    pub uts: NamespaceMode,
    /// `--cgroupns`.
    pub cgroup: NamespaceMode,
    /// `--userns`.
    #[serde(default)]
    pub user: UsernsMode,
}

/// Which masked and read-only paths stay open.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unmask {
    /// None.
    #[default]
    Nothing,
    /// Those, and what they match as a pattern with `*`.
    Paths(Vec<String>),
    /// All.
    All,
}

/// Whose namespace the container runs in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NamespaceMode {
    /// A new one.
    #[default]
    Private,
    /// The host's.
    Host,
    /// That of another container, by name or id.
    Container(String),
}

/// Which user ids the container has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UsernsMode {
    /// The user's usual map: its root is the user.
    #[default]
    Usual,
    /// The user has the same ids inside as outside, or these, and the command runs as that.
    KeepId {
        /// The user's id inside.
        uid: Option<u32>,
        /// The group's.
        gid: Option<u32>,
    },
    /// Those of another container, by name or id.
    Container(String),
}

/// Whose System V IPC, message queues and /dev/shm the container has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IpcMode {
    /// Its own.
    #[default]
    Private,
    /// Its own, which other containers may join.
    Shareable,
    /// Its own, without /dev/shm.
    None,
    /// The host's.
    Host,
    /// That of another container, which must be shareable.
    Container(String),
}

/// Limits. Zero and absence both mean none, as in Docker.
///
/// They are checked and kept, but nothing enforces them yet: that takes a delegated cgroup. The
/// plan's warnings say so by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// `-m`, bytes.
    pub memory_bytes: u64,
    /// `--memory-swap`, bytes of memory and swap together; -1 for no limit.
    pub memory_swap_bytes: i64,
    /// `--memory-reservation`, bytes.
    pub memory_reservation_bytes: u64,
    /// `--memory-swappiness`, 0 to 100; -1 for the kernel's.
    pub memory_swappiness: Option<i64>,
    /// `--oom-kill-disable`.
    pub oom_kill_disable: bool,
    /// `--cpus`, in billionths of a CPU.
    pub cpu_nanos: u64,
    /// `-c`, a relative weight.
    pub cpu_shares: u64,
    /// `--cpu-period`, microseconds.
    pub cpu_period_us: u64,
    /// `--cpu-quota`, microseconds.
    pub cpu_quota_us: i64,
    /// `--cpu-rt-period` or `--cpu-rt-runtime` was given.
    pub cpu_realtime: bool,
    /// `--cpuset-cpus` (`0-3,5`).
    pub cpuset_cpus: String,
    /// `--cpuset-mems`.
    pub cpuset_mems: String,
    /// `--pids-limit`; -1 for no limit.
    pub pids: i64,
    /// `--blkio-weight`, 10 to 1000.
    pub blkio_weight: u16,
    /// The other block I/O limits, by flag, as typed.
    pub blkio_devices: BTreeMap<String, Vec<String>>,
    /// `--cgroup-parent`.
    pub cgroup_parent: String,
}
