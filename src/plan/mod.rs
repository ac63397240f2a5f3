//! What a container will be, decided before anything is touched.
//!
//! [`build`] merges what was asked for ([`RunRequest`]) with what the image says into a
//! [`ContainerPlan`]. It does no I/O: what depends on the root filesystem's content (the user's
//! numeric id, the command's path) is carried as a question and answered by the sandbox.
//!
//! What must stay true: the same request, image and facts give the same plan, so a plan can be
//! compared as text; and nothing here trusts the image's configuration, which is a stranger's.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

mod build;
pub mod capability;
pub mod cdi;
pub mod dockerfile;
pub mod health;
pub mod instruction;
pub mod mount;
pub mod names;
pub mod port;
pub mod process;
pub mod request;
pub mod restart;
pub mod seccomp;
pub mod signal;
pub mod user;

pub use build::{BuildFacts, HostRoot, Peer, Peers, PlanError, build};
pub use request::RunRequest;

/// Everything the supervisor and the sandbox need; saved as `spec.json` and read back by `start`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerPlan {
    /// The OCI runtime spec: process (args, env, cwd, terminal, capabilities, rlimits,
    /// noNewPrivileges, oomScoreAdj), hostname, mounts in order, masked and read-only paths, sysctl,
    /// namespaces, root.readonly. `process.user` is not final: see [`Self::user`].
    pub spec: Spec,
    /// The user as asked for (`-u`, or the image's USER): `name|uid[:group|gid]`, empty for root.
    /// The sandbox resolves it against the container's own /etc/passwd and /etc/group.
    pub user: String,
    /// Groups added with `--group-add`, names or numbers.
    pub group_add: Vec<String>,
    /// The namespaces of other containers that are joined, besides the network.
    #[serde(default, skip_serializing_if = "Joins::is_none")]
    pub joins: Joins,
    /// The caller's own ids inside, with `--userns keep-id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_id: Option<KeepId>,
    /// How the writable layer is made.
    pub write_mode: WriteMode,
    /// How much the writable layer may take up.
    #[serde(default, skip_serializing_if = "StorageQuota::is_none")]
    pub quota: StorageQuota,
    /// The network.
    pub network: NetworkPlan,
    /// The system calls that are allowed.
    pub seccomp: SeccompPlan,
    /// Keep stdin open (`-i`).
    pub stdin_open: bool,
    /// Put hostel's own init in front of the command as pid 1 (`--init`).
    pub init: bool,
    /// Remove the container when it ends (`--rm`).
    pub auto_remove: bool,
    /// Signal that `stop` sends first, as a number.
    pub stop_signal: i32,
    /// Seconds that `stop` waits before SIGKILL; negative waits for ever.
    pub stop_timeout_s: i64,
    /// Named and anonymous volumes to be made when missing, before the mounts that use them.
    pub volumes: Vec<VolumePlan>,
    /// Host paths that bind mounts need, to be checked, made or relabelled first.
    pub bind_sources: Vec<BindSource>,
    /// The image's labels and those that were asked for.
    pub labels: Labels,
    /// How its health is checked, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<health::Healthcheck>,
    /// Lines for the user at creation (`WARNING: ...` without the prefix); they are not saved.
    #[serde(skip)]
    pub warnings: Vec<String>,
}

impl ContainerPlan {
    /// Whether the command keeps the caller's supplementary groups (`--group-add keep-groups`).
    #[must_use]
    pub fn keeps_groups(&self) -> bool {
        self.group_add.iter().any(|group| group == KEEP_GROUPS)
    }
}

/// What `--group-add` says instead of a group.
pub const KEEP_GROUPS: &str = "keep-groups";

/// Ids of the containers whose namespaces one joins.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joins {
    /// The user namespace alone (`--userns container:`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The pid namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<String>,
    /// The IPC namespace, and /dev/shm with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipc: Option<String>,
    /// The UTS namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uts: Option<String>,
}

impl Joins {
    /// Whether nothing is joined.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// Who the caller is inside a container that keeps its ids.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeepId {
    /// User id inside.
    pub uid: u32,
    /// Group id inside.
    pub gid: u32,
    /// The login name, for an entry in the container's /etc/passwd.
    pub name: String,
}

/// A path of the host that a bind mount starts from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindSource {
    /// The absolute path.
    pub path: PathBuf,
    /// Make a directory there when nothing is (Docker's `-v`); otherwise a missing one is an error
    /// (`--mount type=bind`).
    pub create: bool,
    /// The SELinux label to give it (`:z`, `:Z`), where SELinux is on.
    pub relabel: Option<Relabel>,
}

/// How a bind's content is labelled for SELinux.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Relabel {
    /// `:z`, for every container.
    Shared,
    /// `:Z`, for this container alone.
    Private,
}

/// How the container's writes are kept (design: fuse-overlay.md).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WriteMode {
    /// Hybrid where the kernel allows it and the root does not need pure, else pure.
    #[default]
    Auto,
    /// The kernel's overlayfs over the read-only FUSE mount.
    Hybrid,
    /// The FUSE server is the whole overlay.
    Pure,
    /// A copy of the image of the container's own: where neither FUSE nor the kernel's overlayfs is
    /// to be had. Never asked for, only fallen back to.
    Copy,
}

/// A limit on the writable layer, which only the pure mode can keep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageQuota {
    /// `--storage-opt size=`, in bytes.
    pub bytes: Option<u64>,
    /// `--storage-opt inodes=`.
    pub inodes: Option<u64>,
}

impl StorageQuota {
    /// No limit at all.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// Which network the container gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// Loopback only.
    None,
    /// The host's network namespace.
    Host,
    /// The userspace network (the default).
    Bridge,
    /// The network namespace of another container, by the reference that was given.
    Container(String),
}

/// The network as asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkPlan {
    /// Which kind.
    pub mode: NetworkMode,
    /// Published ports, ranges already expanded to one entry a port. With `-P` this has the
    /// exposed ports as well, each on a host port that the kernel chooses.
    pub publish: Vec<PublishedPort>,
    /// `-P` was given (for inspect: [`Self::publish`] is complete).
    pub publish_all: bool,
    /// EXPOSEd ports (image and `--expose`).
    pub expose: Vec<(u16, Protocol)>,
    /// `--add-host name:ip`; the address may be `host-gateway`.
    pub extra_hosts: Vec<(String, HostAddress)>,
    /// `--dns`; empty means the gateway's forwarder.
    pub dns: Vec<IpAddr>,
    /// `--dns-search`.
    pub dns_search: Vec<String>,
    /// `--dns-option`.
    pub dns_options: Vec<String>,
    /// Ports of the host's loopback that the container may reach (`--host-loopback`).
    pub host_loopback: HostLoopback,
    /// MTU of the container's interface in bytes (`--opt mtu=`, `--network bridge:mtu=`).
    pub mtu_bytes: Option<u16>,
    /// Addresses that were chosen; the rest is what is free at the start.
    #[serde(default, skip_serializing_if = "ChosenAddresses::is_none")]
    pub addresses: ChosenAddresses,
}

/// Addresses chosen by hand for the userspace network, checked when they were given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChosenAddresses {
    /// An address of the IPv4 network, and its prefix's length in bits.
    pub subnet_v4: Option<(Ipv4Addr, u8)>,
    /// An address of the IPv6 network, and its prefix's length in bits.
    pub subnet_v6: Option<(Ipv6Addr, u8)>,
    /// The container's IPv4 address.
    pub container_v4: Option<Ipv4Addr>,
    /// The container's IPv6 address.
    pub container_v6: Option<Ipv6Addr>,
}

impl ChosenAddresses {
    /// Whether nothing was chosen.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

impl From<ChosenAddresses> for net::Chosen {
    fn from(chosen: ChosenAddresses) -> Self {
        let ChosenAddresses { subnet_v4, subnet_v6, container_v4, container_v6 } = chosen;
        Self { subnet_v4, subnet_v6, container_v4, container_v6 }
    }
}

/// Where an extra host name points.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostAddress {
    /// The address that reaches the host.
    HostGateway,
    /// A plain address.
    Ip(IpAddr),
}

/// What of the host's loopback is open to the container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HostLoopback {
    /// Nothing (the default).
    #[default]
    Closed,
    /// Only these ports.
    Ports(Vec<u16>),
    /// Every port.
    All,
}

/// A transport protocol that can be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// One published port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedPort {
    /// Address to listen on; `None` is every address of both families.
    pub host_ip: Option<IpAddr>,
    /// Port to listen on.
    pub host_port: HostPort,
    /// Port inside the container.
    pub container_port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

/// Which port of the host a published port listens on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HostPort {
    /// One that the kernel chooses.
    Any,
    /// This one.
    Fixed(u16),
    /// The first free one of an inclusive range (`-p 8000-8100:80`).
    FirstFree(u16, u16),
}

/// Which seccomp filter is loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SeccompPlan {
    /// The engine's default profile, adapted to the container's capabilities.
    #[default]
    Default,
    /// The default profile as for a container with CAP_SYS_ADMIN, so that a container engine inside can make
    /// user namespaces and mount in them (`--security-opt nested`).
    Nested,
    /// No filter.
    Unconfined,
    /// A profile in Docker's JSON, its text.
    Profile(String),
}

/// A volume that must exist before the container starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumePlan {
    /// Name; for an anonymous volume 64 hex digits, made by the caller.
    pub name: String,
    /// Whether it was made for this container (`-v /path`, the image's VOLUME).
    pub anonymous: bool,
    /// Where it is mounted: content of the image there is copied in when the volume is new.
    pub destination: PathBuf,
    /// `nocopy` was given.
    pub no_copy: bool,
    /// Labels of the volume, if it is made now.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Its driver's options, likewise.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub options: Labels,
}

/// The id of a network that is always there: made of its name, the same on every machine, and of Docker's
/// length.
#[must_use]
pub fn network_id(name: &str) -> String {
    let digest = Sha256::digest(format!("hostel network {name}"));
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Labels and annotations are sorted maps, so that a saved plan reads the same every time.
pub type Labels = BTreeMap<String, String>;
