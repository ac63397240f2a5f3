//! Running containers: making the two processes that keep one, and talking to them.
//!
//! There is no daemon. [`launch`] forks a *keeper* ([`keeper`]), which owns the container's
//! processes and its record, and a *server* ([`server`]), which serves its filesystem, network and
//! log. Commands reach a running container through its control socket ([`client`], [`control`]).
//!
//! Order of forks: everything that can fail without a process is done first, in the command itself,
//! where an error is just an error; then keeper, server and init are forked, each before any thread.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use fuse_overlay::index::{IndexError, MergedIndex};
use fuse_overlay::serve;
use jiff::Timestamp;
use nix::sched::CloneFlags;
use nix::unistd::{Gid, Pid, Uid, getpid, setsid};
use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use self::forbidden::no_namespaces;
use crate::image::RootSource;
use crate::plan::request::LogDriver;
use crate::plan::{ContainerPlan, HostPort, NetworkMode, Protocol, PublishedPort, RunRequest, WriteMode};
use crate::sandbox::ahead::Ahead;
use crate::sandbox::idmap::{Facts, IdMaps, Wanted, choose};
use crate::sandbox::init::{self, Enter, RootKind, RootMount};
use crate::sandbox::join::Joined;
use crate::sandbox::{Failure, Stage, Stdio};
use crate::store::containers::{
    self, ContainerError, Containers, Lock, NetworkAddresses, NetworkState, Record, State,
};
use crate::store::{StoreError, seal, settle};
use crate::sys;
use crate::sys::process::Fork;

pub mod affinity;
pub mod cgroup;
pub mod changes;
pub mod checks;
pub mod client;
pub mod control;
pub mod dbus;
pub mod etc;
pub mod fence;
pub mod forbidden;
pub mod journal;
pub mod keeper;
pub mod log;
pub mod materialise;
pub mod mounted;
pub mod peer;
pub mod processes;
pub mod pump;
pub mod reader;
pub mod remove;
pub mod rest;
pub mod scope;
pub mod server;
pub mod stream;
mod told;
pub mod view;

/// What is kept of a container besides its record: enough to start it again.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Saved {
    /// The plan.
    pub plan: ContainerPlan,
    /// What was asked for, for `inspect`.
    pub request: RunRequest,
    /// The image's configuration at creation.
    pub image_config: ImageConfiguration,
    /// What lies below the writable layer.
    pub root: RootSource,
    /// Directory of the caller that stays visible in a `host:/` container.
    pub working_directory: PathBuf,
    /// How the writable layer is made: decided once, at the first start.
    pub write_mode: WriteMode,
    /// Images that it mounts, in the order of the plan's mounts.
    #[serde(default)]
    pub images: Vec<MountedImage>,
    /// A step of a build: it ends with whoever started it, its writes need not reach the disk, and what
    /// is made for its mounts is no change.
    #[serde(default)]
    pub of_build: bool,
}

/// An image that a container mounts besides its own.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MountedImage {
    /// Where.
    pub destination: PathBuf,
    /// Its files.
    pub root: RootSource,
    /// A directory for what is written there, where it can be written to: thrown away.
    #[serde(default)]
    pub changes: Option<PathBuf>,
}

/// Why a container was not started.
#[derive(Debug, Error)]
pub enum LaunchError {
    /// A stage of the start failed.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// A port cannot be published.
    #[error(transparent)]
    Port(#[from] net::publish::BindError),
    /// Addresses that do not go together.
    #[error("cannot choose the container's addresses")]
    Address(#[from] net::AddressError),
    /// The image's files in the store cannot be used.
    #[error("cannot use {path}; the image may be damaged: remove it and load it again")]
    Image {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The filesystem's server cannot be prepared.
    #[error("cannot prepare the container's filesystem")]
    Filesystem(#[source] serve::ServeError),
    /// The seccomp profile.
    #[error("cannot compile the seccomp profile")]
    Seccomp(#[source] crate::plan::seccomp::SeccompError),
    /// Records.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// The image's layers.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Everything else that the system may refuse.
    #[error("cannot {action}")]
    Io {
        /// What was tried.
        action: String,
        /// Why not.
        source: io::Error,
    },
}

/// Who watches from the start.
#[derive(Clone, Copy, Debug)]
pub struct Attach {
    /// The client's input goes to the container.
    pub stdin: bool,
    /// The client's terminal, rows and columns.
    pub size: Option<(u16, u16)>,
}

/// A container that has been handed to its keeper.
#[derive(Debug)]
pub struct Launched {
    /// Speaks [`control`]: first of the start, then of the end.
    pub keeper: OwnedFd,
    /// Speaks [`stream`], where one was asked for.
    pub stream: Option<OwnedFd>,
    /// What was made ahead, to be left once the keeper has been heard.
    pub ahead: Option<Ahead>,
}

/// Counters of each CPU that tell what others on the machine do (moby masks them too).
#[must_use]
pub fn thermal_throttle_paths() -> Vec<String> {
    let cpus = fs::read_dir("/sys/devices/system/cpu").into_iter().flatten().flatten();
    cpus.map(|cpu| cpu.path().join("thermal_throttle"))
        .filter(|path| path.is_dir())
        .map(|path| path.to_string_lossy().into_owned())
        .collect()
}

/// Docker's exit code for a failure of the start.
#[must_use]
pub fn exit_code(failure: &Failure) -> u8 {
    match failure.stage {
        Stage::NotFound => 127,
        Stage::NotExecutable => 126,
        _ => 125,
    }
}

/// Starts a container whose record and plan are in the store.
///
/// Returns once the keeper has it; whether its command runs is the first thing that the keeper says.
///
/// # Errors
/// Everything that is found out before the first process is made.
pub fn launch(
    containers: &Containers,
    record: &Record,
    saved: &Saved,
    lock: Lock,
    attach: Option<Attach>,
    ahead: Option<Ahead>,
) -> Result<Launched, LaunchError> {
    sys::fault::point("command-before");
    let mut prepared = prepare(containers, record, saved)?;
    let (socket_path, listener) = listen(&record.id.to_string())?;
    prepared.state.socket.clone_from(&socket_path);
    sys::fault::point("command-listens");
    let socket = |what: &'static str| move |errno: nix::errno::Errno| io_error(|| what.into())(errno.into());
    let (ours, starter) = sys::fd::seqpacket_pair().map_err(socket("make a socket"))?;
    let (stream, client) = match attach {
        Some(attach) => {
            let (ours, theirs) = sys::fd::stream_pair().map_err(socket("make a socket"))?;
            (Some(ours), Some((theirs, attach.stdin)))
        }
        None => (None, None),
    };
    let command = getpid();
    let forked = sys::process::clone(0, false).map_err(|errno| match errno {
        // What containers' usual seccomp profiles answer to clone3(2).
        nix::errno::Errno::ENOSYS => no_namespaces(errno).into(),
        nix::errno::Errno::EAGAIN => {
            Failure::new(Stage::Namespaces, "cannot make the container's keeper", errno)
                .hint("a limit of processes may be reached: see `ulimit -u`, and what else runs as this user")
                .into()
        }
        errno => socket("make the container's keeper")(errno),
    })?;
    match forked {
        Fork::Parent(_) => {
            sys::fault::point("command-forked");
            Ok(Launched { keeper: ours, stream, ahead })
        }
        Fork::Child => {
            drop((ours, stream));
            let work = Work {
                containers: containers.clone(),
                record: record.clone(),
                saved: saved.clone(),
                lock,
                attach,
                prepared,
                socket_path,
                listener,
                starter: Some(starter),
                connections: Vec::new(),
                client,
                ahead,
            };
            become_keeper(work, command)
        }
    }
}

/// What one life of a container needs, opened and compiled before any of its processes is made.
struct Prepared {
    dir: PathBuf,
    maps: IdMaps,
    seccomp: Option<Vec<libc::sock_filter>>,
    root_kind: RootKind,
    native: Option<PathBuf>,
    tree: Option<PathBuf>,
    filesystem: Option<serve::Server>,
    /// What serves the images that it mounts, and directories where they are used without FUSE.
    images: Vec<MountableImage>,
    network: Option<(net::publish::Listeners, net::Config)>,
    /// The container's resolv.conf, where it follows the host's.
    resolv_conf: Option<etc::Mirror>,
    link: Option<net::link::LinkConfig>,
    /// The containers whose namespaces are joined; with the first one the user namespace.
    peers: Vec<Joined>,
    /// Its control group, where one can be made.
    group: Option<cgroup::Group>,
    /// Whether it has limits and nothing is delegated: systemd may have a group for it.
    wants_scope: bool,
    log: log::Target,
    state: State,
    fence_paths: fence::Paths,
}

fn prepare(containers: &Containers, record: &Record, saved: &Saved) -> Result<Prepared, LaunchError> {
    let dir = containers.path(&record.id);
    let plan = &saved.plan;
    let peers = peer::Peers::find(containers, plan)?;
    let maps = peers.maps(choose(&Facts::gather(), Wanted::of(plan)));
    let seccomp = crate::plan::seccomp::compile_for(plan).map_err(LaunchError::Seccomp)?;
    let Below { root_kind, tree, filesystem, native } =
        below(containers, record, saved, root_kind(saved), &maps)?;
    let images = mountable(containers, record, saved, &maps)?;
    let fence_paths = fence_paths(saved, root_kind, &record.local_dir);
    let network = network(plan, record)?;
    let link = network.as_ref().map(|(_, config)| net::link::LinkConfig::new(config));
    match &peers.etc {
        Some(etc) => etc::share(etc, &dir.join("etc")),
        None => etc::write(&dir.join("etc"), plan, network.as_ref().map(|(_, config)| config)),
    }
    .map_err(io_error(|| "write the container's /etc files".into()))?;
    let resolv_conf = network
        .as_ref()
        .map(|(_, config)| etc::Mirror::open(&dir.join("etc"), plan, config))
        .transpose()
        .map_err(io_error(|| "open the container's resolv.conf".into()))?;
    let log = log_target(&dir, record, saved)?;
    let state = State {
        started: Timestamp::now(),
        pid: 0,
        pid_start_ticks: 0,
        boot_id: containers::boot_id(),
        keeper_pid: 0,
        server_pid: 0,
        socket: PathBuf::new(),
        ports: network.as_ref().map(|(listeners, _)| bound(listeners)).unwrap_or_default(),
        write_mode: match root_kind {
            RootKind::Hybrid => "hybrid".into(),
            RootKind::Pure => "pure".into(),
            RootKind::Materialised => "materialised".into(),
            RootKind::Copy => "copy".into(),
        },
        uid_map: maps.uids.clone(),
        gid_map: maps.gids.clone(),
        address: network.as_ref().map(|(_, config)| IpAddr::V4(config.addresses.v4.container)),
        network: network.as_ref().map(|(_, config)| network_state(&config.addresses)),
        exposed: exposed_ranges(&plan.network.expose),
        restarts: 0,
        paused: false,
        cgroup: None,
    };
    // Last: everything before leaves nothing behind when it fails.
    let delegation = cgroup::Delegation::find();
    let wants_scope = delegation.is_none() && has_limits(saved);
    let group = match delegation {
        Some(delegation) => group(&delegation, record, saved)?,
        None => None,
    };
    Ok(Prepared {
        dir,
        maps,
        seccomp,
        root_kind,
        native,
        tree,
        filesystem,
        images,
        network,
        resolv_conf,
        link,
        peers: peers.joined,
        state: State { cgroup: group.as_ref().map(|group| group.path().to_owned()), ..state },
        group,
        wants_scope,
        log,
        fence_paths,
    })
}

/// What mounting a container's root takes.
struct Below {
    root_kind: RootKind,
    tree: Option<PathBuf>,
    filesystem: Option<serve::Server>,
    native: Option<PathBuf>,
}

/// Gets ready what lies below and in the writable layer. A `kind` that needs /dev/fuse becomes one
/// that does not, where there is none.
fn below(
    containers: &Containers,
    record: &Record,
    saved: &Saved,
    kind: RootKind,
    maps: &IdMaps,
) -> Result<Below, LaunchError> {
    let packed = packed_image(saved);
    let without_fuse = packed.is_some() && materialise::reason().is_some();
    let root_kind = match kind {
        RootKind::Hybrid if without_fuse => RootKind::Materialised,
        kind => kind,
    };
    let tree = match (root_kind, packed) {
        (RootKind::Materialised, Some(image)) => {
            Some(materialise::shared(containers, image, maps, ids(maps))?)
        }
        (RootKind::Copy, Some(image)) => {
            Some(materialise::private(&record.local_dir, image, maps, ids(maps))?)
        }
        _ => None,
    };
    let filesystem = match root_kind {
        RootKind::Hybrid | RootKind::Pure => Some(filesystem(saved, root_kind, &record.local_dir, maps)?),
        RootKind::Materialised | RootKind::Copy => None,
    };
    let native = packed.and_then(|image| crate::store::native::tree_beside(image.index));
    // Its files belong to the user on disk: they are root's only where root is the user.
    let native = native.filter(|_| root_kind == RootKind::Hybrid && maps.kept().is_none());
    Ok(Below { root_kind, tree, filesystem, native })
}

/// Where the container's output goes.
fn log_target(dir: &Path, record: &Record, saved: &Saved) -> Result<log::Target, LaunchError> {
    let request = &saved.request;
    Ok(match request.log_driver {
        LogDriver::None => log::Target::Nowhere,
        LogDriver::JsonFile | LogDriver::Local => {
            log::Target::File { path: dir.join("log"), limit_bytes: request.log.max_size_bytes }
        }
        LogDriver::Journald => {
            let name = record.name.to_string();
            let tag = request.log.tag.as_deref().unwrap_or(record.id.short());
            let named: Vec<_> = request
                .log
                .details
                .iter()
                .filter(|(name, _)| *name != "tag")
                .map(|(name, value)| (journal::field_name(name), value.as_str()))
                .collect();
            let fields = [
                ("CONTAINER_ID", record.id.short()),
                ("CONTAINER_ID_FULL", record.id.as_str()),
                ("CONTAINER_NAME", name.as_str()),
                ("CONTAINER_TAG", tag),
                ("IMAGE_NAME", record.image.as_str()),
                ("SYSLOG_IDENTIFIER", tag),
            ];
            let fields = fields.into_iter().chain(named.iter().map(|(name, value)| (name.as_str(), *value)));
            let opened = journal::Journal::open(fields);
            log::Target::Journal(opened.map_err(io_error(|| {
                "initialize the log driver journald: there is no journal on this machine".into()
            }))?)
        }
    })
}

/// An image, ready to be mounted: one of the two.
struct MountableImage {
    server: Option<serve::Server>,
    tree: Option<PathBuf>,
}

fn mountable(
    containers: &Containers,
    record: &Record,
    saved: &Saved,
    maps: &IdMaps,
) -> Result<Vec<MountableImage>, LaunchError> {
    let one = |image: &MountedImage| match &image.root {
        RootSource::Packed { index, layers } if materialise::reason().is_some() => {
            let tree =
                materialise::shared(containers, materialise::Image { index, layers }, maps, ids(maps))?;
            Ok(MountableImage { server: None, tree: Some(tree) })
        }
        root => {
            let lower = lower_of(root, Path::new("/"), &record.local_dir)?;
            let mode = match &image.changes {
                None => serve::Mode::ReadOnly,
                Some(directory) => {
                    // A second attempt to start has its own.
                    let number = u64::from_ne_bytes(
                        sys::process::random_bytes().map_err(io_error(|| "ask for random bytes".into()))?,
                    );
                    let upper = directory.join(format!("{number:016x}"));
                    private_directory(&upper).map_err(io_error(|| format!("make {}", upper.display())))?;
                    let (upper, quota) = (open_file(&upper)?.into(), serve::Quota::default());
                    serve::Mode::Overlay { upper, volatile: true, quota }
                }
            };
            let server = serve::Server::new(lower, mode, ids(maps), serve::Options::default());
            Ok(MountableImage { server: Some(server.map_err(LaunchError::Filesystem)?), tree: None })
        }
    };
    saved.images.iter().map(one).collect()
}

/// How the root is made, or would be at the first start.
fn root_kind(saved: &Saved) -> RootKind {
    match saved.write_mode {
        WriteMode::Hybrid => RootKind::Hybrid,
        WriteMode::Auto if matches!(saved.root, RootSource::Packed { .. }) => RootKind::Hybrid,
        WriteMode::Auto | WriteMode::Pure => RootKind::Pure,
        WriteMode::Copy => RootKind::Copy,
    }
}

/// Everything that the keeper takes over: from the command, and at a restart from itself.
pub(super) struct Work {
    containers: Containers,
    record: Record,
    saved: Saved,
    lock: Lock,
    attach: Option<Attach>,
    prepared: Prepared,
    socket_path: PathBuf,
    listener: OwnedFd,
    starter: Option<OwnedFd>,
    /// Clients that came while the container waited for its restart.
    connections: Vec<keeper::Connection>,
    client: Option<(OwnedFd, bool)>,
    ahead: Option<Ahead>,
}

fn become_keeper(work: Work, command: Pid) -> ! {
    let starter = work.starter.as_ref().map(OwnedFd::try_clone);
    let socket_path = work.socket_path.clone();
    sys::fault::point("keeper-begins");
    let parts = leave_command(&work.prepared.dir)
        .and_then(|()| if work.saved.of_build { end_with(command) } else { Ok(()) })
        .and_then(|()| into_scope(work))
        .and_then(make_processes);
    match parts {
        Ok(parts) => keeper::run(parts),
        Err(failure) => {
            let _ = fs::remove_file(&socket_path); // a stale name is found dead by its connect
            if let Some(Ok(starter)) = starter {
                // The command may be gone: then nobody is left to tell.
                let _ = control::send(&starter, &control::Reply::Failed(failure), &[]);
            }
            sys::process::exit_now(1)
        }
    }
}

/// What a keeper hands on to the next life of its container.
pub(super) struct Kept {
    pub(super) containers: Containers,
    pub(super) id: crate::id::ContainerId,
    pub(super) lock: Lock,
    pub(super) listener: OwnedFd,
    pub(super) socket_path: PathBuf,
    pub(super) connections: Vec<keeper::Connection>,
}

/// In the keeper, when nothing of the last life is left: makes the processes of the next one. Record and
/// plan are read again, since `rename` and `update` may have changed them.
pub(super) fn start_again(kept: Kept) -> Result<keeper::Parts, Failure> {
    use crate::sandbox::Context as _;
    let stage = Stage::Namespaces;
    let text = |error: &dyn std::error::Error| Failure::plain(stage, crate::sandbox::chain(error));
    let record = kept.containers.record(&kept.id).map_err(|error| text(&error))?;
    let saved: Saved = kept.containers.plan(&kept.id).map_err(|error| text(&error))?;
    // The helpers that write id maps look at the owner of a process's files in /proc, which is root's for a
    // process that hides. There is no process of the container now that it had to hide from.
    sys::process::set_dumpable(true).during(stage, || "cannot show itself to newuidmap".into())?;
    let mut prepared = prepare(&kept.containers, &record, &saved).map_err(|error| text(&error))?;
    prepared.state.socket.clone_from(&kept.socket_path);
    make_processes(Work {
        containers: kept.containers,
        record,
        saved,
        lock: kept.lock,
        attach: None,
        prepared,
        socket_path: kept.socket_path,
        listener: kept.listener,
        starter: None,
        connections: kept.connections,
        client: None,
        ahead: None,
    })
}

/// In the new keeper: leaves the command's session and stdio.
fn leave_command(dir: &Path) -> Result<(), Failure> {
    use crate::sandbox::Context as _;
    let stage = Stage::Namespaces;
    setsid().during(stage, || "cannot make a session".into())?;
    sys::fd::close_inherited();
    leave_stdio(dir).during(stage, || "cannot leave the command's stdio".into())?;
    nix::unistd::chdir("/").during(stage, || "cannot change to /".into())?;
    sys::process::ignore_signals_of_others();
    sys::process::become_subreaper().during(stage, || "cannot become a subreaper".into())
}

/// Has the kernel end this keeper, and so its container, with the command that forked it.
fn end_with(command: Pid) -> Result<(), Failure> {
    use crate::sandbox::Context as _;
    let stage = Stage::Namespaces;
    let what = || "cannot end with the build".to_owned();
    sys::process::set_parent_death_signal(libc::SIGKILL).during(stage, what)?;
    // It may have ended before.
    if nix::unistd::getppid() == command { Ok(()) } else { Err(Failure::plain(stage, what())) }
}

/// The container's control group, with its limits.
fn group(
    delegation: &cgroup::Delegation,
    record: &Record,
    saved: &Saved,
) -> Result<Option<cgroup::Group>, LaunchError> {
    match delegation.make(record.id.as_str(), &saved.request.limits) {
        Ok(group) => Ok(Some(group)),
        // Nothing was promised: it runs where the caller does.
        Err(_) if !has_limits(saved) => Ok(None),
        Err(source) => Err(LaunchError::Io { action: "limit the container".into(), source }),
    }
}

fn has_limits(saved: &Saved) -> bool {
    saved.request.limits != crate::plan::request::Limits::default()
}

/// In the keeper: where limits are wanted and no control group is delegated, one from systemd. Where there is
/// none to be had `run` has said so, with each limit's name.
fn into_scope(mut work: Work) -> Result<Work, Failure> {
    if !work.prepared.wants_scope {
        return Ok(work);
    }
    let Some(manager) = scope::Manager::find() else { return Ok(work) };
    let failed = |error: &dyn std::error::Error| {
        Failure::plain(
            Stage::Namespaces,
            format!("cannot limit the container: {}", crate::sandbox::chain(error)),
        )
    };
    manager.enter_scope(work.record.id.as_str()).map_err(|error| failed(&error))?;
    if let Some(delegation) = cgroup::Delegation::find() {
        work.prepared.group =
            group(&delegation, &work.record, &work.saved).map_err(|error| failed(&error))?;
        work.prepared.state.cgroup = work.prepared.group.as_ref().map(|group| group.path().to_owned());
    }
    Ok(work)
}

/// In the keeper: forks server and init.
fn make_processes(work: Work) -> Result<keeper::Parts, Failure> {
    use crate::sandbox::Context as _;
    let stage = Stage::Namespaces;
    let prepared = work.prepared;
    let pair = || sys::fd::seqpacket_pair().during(stage, || "cannot make a socket".into());
    let pipe =
        || nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).during(stage, || "cannot make a pipe".into());
    let (init_socket, init_keeper) = pair()?;
    let (server_from_init, init_server) = pair()?;
    let (server_socket, server_keeper) = pair()?;
    let plan = &work.saved.plan;
    let terminal = plan.spec.process().as_ref().and_then(oci_spec::runtime::Process::terminal) == Some(true);
    let (stdio, sources, stdin) = if terminal {
        (Stdio::Terminal { size: work.attach.and_then(|attach| attach.size) }, Vec::new(), None)
    } else {
        let (out_reader, out_writer) = pipe()?;
        let (err_reader, err_writer) = pipe()?;
        let (in_reader, in_writer) = if plan.stdin_open {
            let (reader, writer) = pipe()?;
            (reader, Some(writer))
        } else {
            (File::open("/dev/null").during(stage, || "cannot open /dev/null".into())?.into(), None)
        };
        let sources = vec![(log::Stream::Stdout, out_reader), (log::Stream::Stderr, err_reader)];
        (Stdio::Pipes([in_reader, out_writer, err_writer]), sources, in_writer)
    };

    let mut filesystems: VecDeque<serve::Server> = prepared.filesystem.into_iter().collect();
    let mut trees = Vec::with_capacity(prepared.images.len());
    for image in prepared.images {
        trees.push(image.tree);
        filesystems.extend(image.server);
    }
    let parts = server::Parts {
        filesystems,
        network: prepared.network,
        resolv_conf: prepared.resolv_conf,
        init: server_from_init,
        keeper: server_keeper,
        sources,
        stdin,
        client: work.client,
        log: prepared.log,
        fence: prepared.fence_paths,
    };
    let stub = sys::stub::make().during(stage, || "cannot make the program that executes commands".into())?;
    let fill = volumes_to_fill(&prepared.dir, plan);
    let namespaces = crate::sandbox::exec::namespaces(&plan.spec);
    // A control group namespace begins at the group of whoever makes it: init does, once it is in its own.
    let own_group = prepared.group.is_some() && namespaces.contains(CloneFlags::CLONE_NEWCGROUP);
    let mut shared_memory = None;
    let kept = prepared.maps.kept(); // not in the child, whose ids are others
    // It is made and fenced beside init and what writes its id maps.
    let fork = sys::process::clone(0, false).during(stage, || "cannot make the container's server".into())?;
    let server = match fork {
        Fork::Child => {
            drop((init_socket, init_keeper, init_server, server_socket, stdio, stub));
            drop((work.starter, work.listener, work.lock, work.connections, work.ahead));
            let _ = sys::process::set_parent_death_signal(libc::SIGKILL); // it also sees the socket close
            server::run(parts)
        }
        Fork::Parent(server) => server,
    };
    drop(parts);
    sys::fault::point("keeper-has-server");
    let mut peers = prepared.peers;
    if peers.is_empty() && namespaces.contains(CloneFlags::CLONE_NEWUSER) {
        peers.extend(work.ahead.and_then(|ahead| ahead.take(&prepared.maps, namespaces)));
    }
    let fork = match &prepared.group {
        _ if !peers.is_empty() => {
            let (fork, memory) = crate::sandbox::join::clone_beside(&peers, namespaces)?;
            shared_memory = memory;
            if let (Fork::Parent(child), Some(group)) = (&fork, &prepared.group) {
                // It waits for its first word before it starts anything.
                group.add(child.pid).during(stage, || "cannot use the container's control group".into())?;
            }
            fork
        }
        Some(group) => {
            let opened = group.open().during(stage, || "cannot open the container's control group".into())?;
            let flags = (namespaces - CloneFlags::CLONE_NEWCGROUP).bits() as u64;
            sys::process::clone_into(flags, opened.as_fd()).map_err(no_namespaces)?
        }
        None => sys::process::clone(namespaces.bits() as u64, false).map_err(no_namespaces)?,
    };
    let child = match fork {
        Fork::Child => {
            drop(init_socket);
            init::run(&Enter {
                plan,
                dir: &prepared.dir,
                root: RootMount {
                    lower_point: &work.containers.lower_point(),
                    root_point: &work.containers.root_point(),
                    native: prepared.native.as_deref(),
                    tree: prepared.tree.as_deref(),
                    local_dir: &work.record.local_dir,
                    root_kind: prepared.root_kind,
                    volatile: plan.auto_remove || work.saved.of_build,
                    ids: (prepared.maps.first_uid(), prepared.maps.first_gid()),
                    kept,
                    server: init_server.as_fd(),
                    source: None,
                },
                may_set_groups: !prepared.maps.is_single() && !plan.keeps_groups(),
                shared_memory,
                link: prepared.link.as_ref(),
                images: &trees,
                own_group,
                fill,
                stub,
                seccomp: prepared.seccomp.as_deref(),
                stdio,
                keeper: init_keeper,
            })
        }
        Fork::Parent(child) => child,
    };
    drop((init_keeper, init_server, stdio));
    sys::fault::point("keeper-has-init");
    let begin = || prepared.maps.begin(child.pid).map_err(|failure| own_words(&init_socket, failure));
    // A user namespace that is joined, or was made ahead, has its maps.
    let writing = if peers.is_empty() { Some(begin()?) } else { None };
    let pid = child.pid.as_raw();
    let ticks = containers::process_start_ticks(pid).unwrap_or_default();
    if let Some(writing) = writing {
        writing.finish().map_err(|failure| own_words(&init_socket, failure))?;
    }
    sys::fault::point("keeper-has-maps");
    let together = affinity::Together::bring(child.pid, server.pid);
    sys::fd::send_with_fds(init_socket.as_fd(), &[1], &[])
        .during(stage, || "the container's init is gone".into())
        .map_err(|failure| own_words(&init_socket, failure))?;
    // From here on the container has processes, which must not read this one's memory.
    sys::process::set_dumpable(false).during(stage, || "cannot hide from other processes".into())?;
    let state = State {
        pid,
        pid_start_ticks: ticks,
        keeper_pid: getpid().as_raw(),
        server_pid: server.pid.as_raw(),
        ..prepared.state
    };
    Ok(keeper::Parts {
        containers: work.containers,
        record: work.record,
        saved: work.saved,
        root_kind: prepared.root_kind,
        lock: work.lock,
        seccomp: prepared.seccomp,
        maps: prepared.maps,
        group: prepared.group,
        listener: work.listener,
        socket_path: work.socket_path,
        starter: work.starter,
        connections: work.connections,
        server,
        server_socket,
        init: child,
        together,
        init_socket: Some(init_socket),
        state,
    })
}

/// Init may have failed before its id maps were there: then what it said tells more than that it
/// could not be given any.
fn own_words(init: &OwnedFd, otherwise: Failure) -> Failure {
    let mut buffer = vec![0; keeper::MAX_FAILURE_BYTES];
    let received =
        sys::fd::receive_with_fds(init.as_fd(), &mut buffer, nix::sys::socket::MsgFlags::MSG_DONTWAIT);
    match received {
        Ok((length, _)) => serde_json::from_slice(&buffer[..length]).unwrap_or(otherwise),
        Err(_) => otherwise,
    }
}

/// Volumes that get the image's content: at the container's first start, unless told not to.
fn volumes_to_fill(dir: &Path, plan: &ContainerPlan) -> Vec<(PathBuf, PathBuf)> {
    if dir.join("state.json").exists() {
        return Vec::new();
    }
    let directory = |destination: &Path| {
        let mut mounts = plan.spec.mounts().iter().flatten();
        mounts.find(|mount| mount.destination() == destination).and_then(|mount| mount.source().clone())
    };
    let wanted = plan.volumes.iter().filter(|volume| !volume.no_copy);
    wanted.filter_map(|volume| Some((volume.destination.clone(), directory(&volume.destination)?))).collect()
}

/// Gives up the command's stdio: input from nowhere, messages to the container's supervisor.log.
fn leave_stdio(dir: &Path) -> io::Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    let log = OpenOptions::new().append(true).create(true).mode(0o600).open(dir.join("supervisor.log"))?;
    sys::fd::place_at(null.as_fd(), 0)?;
    sys::fd::place_at(null.as_fd(), 1)?;
    sys::fd::place_at(log.as_fd(), 2)?;
    Ok(())
}

fn io_error(action: impl FnOnce() -> String) -> impl FnOnce(io::Error) -> LaunchError {
    move |source| LaunchError::Io { action: action(), source }
}

/// Prepares the root filesystem's server.
fn filesystem(
    saved: &Saved,
    kind: RootKind,
    local_dir: &Path,
    maps: &IdMaps,
) -> Result<serve::Server, LaunchError> {
    let lower = lower(saved, local_dir)?;
    let mode = match kind {
        RootKind::Hybrid | RootKind::Materialised | RootKind::Copy => serve::Mode::ReadOnly,
        RootKind::Pure => serve::Mode::Overlay {
            upper: open_file(&local_dir.join("upper"))?.into(),
            volatile: saved.plan.auto_remove || saved.of_build,
            quota: serve::Quota { bytes: saved.plan.quota.bytes, inodes: saved.plan.quota.inodes },
        },
    };
    serve::Server::new(lower, mode, ids(maps), serve::Options::default()).map_err(LaunchError::Filesystem)
}

fn open_file(path: &Path) -> Result<File, LaunchError> {
    File::open(path).map_err(io_error(|| format!("open {}", path.display())))
}

/// What lies below the writable layer.
fn lower(saved: &Saved, local_dir: &Path) -> Result<serve::Lower, LaunchError> {
    lower_of(&saved.root, &saved.working_directory, local_dir)
}

fn lower_of(
    root: &RootSource,
    working_directory: &Path,
    local_dir: &Path,
) -> Result<serve::Lower, LaunchError> {
    Ok(match root {
        RootSource::Packed { index, layers } => {
            if let Some(layer) = settle::first_damaged(layers)? {
                return Err(StoreError::Lost { layer }.into());
            }
            let unusable =
                |error: IndexError| LaunchError::Image { path: index.clone(), source: error.into() };
            let file = open_file(index)?;
            let merged = MergedIndex::open(&file).map_err(unusable)?;
            if !seal::is_sealed(index, &file) {
                merged.verify().map_err(unusable)?;
            }
            let layers = layers.iter().map(|path| open_file(path)).collect::<Result<_, _>>()?;
            serve::Lower::Packed { index: merged, layers }
        }
        RootSource::Directory { path } => serve::Lower::Directory(serve::DirectoryLower {
            root: open_file(path)?.into(),
            rules: Vec::new(),
        }),
        RootSource::Host => serve::Lower::Directory(serve::DirectoryLower {
            root: open_file(Path::new("/"))?.into(),
            rules: host_rules(working_directory, local_dir),
        }),
    })
}

/// How ids of the image and of the machine show in the container.
fn ids(maps: &IdMaps) -> serve::Ids {
    let (uid, gid) = (Uid::effective().as_raw(), Gid::effective().as_raw());
    let range = |single: u32, count: u32, caller: u32, inside: Option<u32>| {
        let inside = inside.unwrap_or(0);
        if maps.is_single() {
            // Whatever the image says, only this id exists.
            serve::IdRange { count: 0, rest: single, caller, inside }
        } else {
            serve::IdRange { inside, ..serve::IdRange::range(count, caller) }
        }
    };
    serve::Ids {
        uids: range(maps.first_uid(), maps.uid_count(), uid, maps.inside_uid(uid)),
        gids: range(maps.first_gid(), maps.gid_count(), gid, maps.inside_gid(gid)),
    }
}

/// The image, where it is one of packed layers.
fn packed_image(saved: &Saved) -> Option<materialise::Image<'_>> {
    match &saved.root {
        RootSource::Packed { index, layers } => Some(materialise::Image { index, layers }),
        RootSource::Directory { .. } | RootSource::Host => None,
    }
}

/// What the user is told before a start that makes something larger than a container: once an image.
#[must_use]
pub fn notice(containers: &Containers, saved: &Saved) -> Option<String> {
    let image = packed_image(saved)?;
    if !matches!(saved.write_mode, WriteMode::Auto | WriteMode::Hybrid) {
        return None;
    }
    let reason = materialise::reason()?;
    let maps = choose(&Facts::gather(), Wanted::of(&saved.plan));
    let place = materialise::place(containers, image.index, &maps);
    (!place.exists())
        .then(|| format!("the image is written out to a directory now and used from there, because {reason}"))
}

/// The write mode that is left where the kernel's overlayfs cannot be used.
#[must_use]
pub fn without_overlay(saved: &Saved) -> WriteMode {
    if packed_image(saved).is_some() && materialise::reason().is_some() {
        WriteMode::Copy
    } else {
        WriteMode::Pure
    }
}

/// A private directory; one that exists is left as it is.
fn private_directory(path: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// What the server goes on opening by path.
fn fence_paths(saved: &Saved, kind: RootKind, local_dir: &Path) -> fence::Paths {
    let root = (kind == RootKind::Pure).then(|| local_dir.join("upper"));
    let images = saved.images.iter().filter_map(|image| image.changes.clone());
    fence::Paths {
        writable: root.into_iter().chain(images).collect(),
        readable: match &saved.root {
            RootSource::Packed { .. } => Vec::new(),
            RootSource::Directory { path } => vec![path.clone()],
            RootSource::Host => vec!["/".into()],
        },
    }
}

/// What of the machine a `host:/` container does not see: other people's data, secrets, run-time
/// state, and hostel's own; and that it sees the directory that it was started in.
fn host_rules(working_directory: &Path, local_dir: &Path) -> Vec<serve::PathRule> {
    use serve::PathRule::{Expose, Hide};
    let mut rules: Vec<_> = [
        "/home",
        "/root",
        "/tmp",
        "/var/tmp",
        "/run",
        "/var/run",
        "/var/mail",
        "/var/spool/mail",
        "/etc/shadow",
        "/etc/shadow-",
        "/etc/gshadow",
        "/etc/gshadow-",
        "/proc",
        "/sys",
        "/dev",
        "/lost+found",
        "/etc/ssh/ssh_host_rsa_key",
        "/etc/ssh/ssh_host_ecdsa_key",
        "/etc/ssh/ssh_host_ed25519_key",
        "/etc/ssh/ssh_host_dsa_key",
    ]
    .map(|path| Hide(path.into()))
    .into();
    // Homes elsewhere than /home: the caller's own, at least.
    rules.extend(
        std::env::var_os("HOME")
            .map(PathBuf::from)
            .filter(|home| home.is_absolute() && home != Path::new("/"))
            .map(Hide),
    );
    if working_directory != Path::new("/") {
        rules.push(Expose(working_directory.into()));
    }
    // Last and longest: the store may lie below the working directory.
    rules.extend(local_dir.ancestors().nth(2).map(|store| Hide(store.into())));
    rules
}

/// Binds the published ports and settles the network's addresses.
fn network(
    plan: &ContainerPlan,
    record: &Record,
) -> Result<Option<(net::publish::Listeners, net::Config)>, LaunchError> {
    let network = &plan.network;
    if network.mode != NetworkMode::Bridge {
        return Ok(None);
    }
    let listeners = publish(&network.publish)?;
    let addresses = net::Addresses::chosen(&net::HostRoutes::read(), &network.addresses.into())?;
    let mut config = net::Config::new(addresses);
    if let Some(mtu) = network.mtu_bytes {
        config.mtu_bytes = mtu;
    }
    config.host_loopback = match &network.host_loopback {
        crate::plan::HostLoopback::Closed => net::HostLoopback::Closed,
        crate::plan::HostLoopback::Ports(ports) => net::HostLoopback::Ports(ports.iter().copied().collect()),
        crate::plan::HostLoopback::All => net::HostLoopback::All,
    };
    let own = [IpAddr::V4(addresses.v4.container), IpAddr::V6(addresses.v6.container)];
    let names = [Some(record.name.to_string()), plan.spec.hostname().clone()];
    config.host_names =
        names.into_iter().flatten().map(|name| net::HostName { name, addresses: own.to_vec() }).collect();
    Ok(Some((listeners, config)))
}

/// Binds every published port before anything is started.
fn publish(ports: &[PublishedPort]) -> Result<net::publish::Listeners, net::publish::BindError> {
    let requests: Vec<_> = ports
        .iter()
        .map(|port| net::publish::Publish {
            host: port.host_ip,
            ports: match port.host_port {
                HostPort::Any => net::publish::HostPorts::Any,
                HostPort::Fixed(number) => net::publish::HostPorts::one(number),
                HostPort::FirstFree(first, last) => net::publish::HostPorts::FirstFree { first, last },
            },
            container_port: port.container_port,
            protocol: match port.protocol {
                Protocol::Tcp => net::publish::Protocol::Tcp,
                Protocol::Udp => net::publish::Protocol::Udp,
            },
        })
        .collect();
    net::publish::bind(&requests)
}

fn network_state(addresses: &net::Addresses) -> NetworkState {
    let net::Addresses { v4, v6 } = addresses;
    NetworkState {
        v4: NetworkAddresses {
            address: v4.container.into(),
            prefix_length: v4.prefix_length,
            gateway: v4.gateway.into(),
        },
        v6: NetworkAddresses {
            address: v6.container.into(),
            prefix_length: v6.prefix_length,
            gateway: v6.gateway.into(),
        },
    }
}

/// Exposed ports as ranges: an image may expose all there are.
fn exposed_ranges(ports: &[(u16, Protocol)]) -> Vec<(u16, u16, String)> {
    let mut ports = ports.to_vec();
    ports.sort_by_key(|(port, protocol)| (*protocol, *port));
    ports
        .chunk_by(|a, b| a.1 == b.1 && (b.0 == a.0 || Some(b.0) == a.0.checked_add(1)))
        .filter_map(|range| {
            let ((first, protocol), (last, _)) = (range.first()?, range.last()?);
            let protocol = if *protocol == Protocol::Tcp { "tcp" } else { "udp" };
            Some((*first, *last, protocol.to_owned()))
        })
        .collect()
}

fn bound(listeners: &net::publish::Listeners) -> Vec<(u16, String, IpAddr, u16)> {
    let name = |protocol| match protocol {
        net::publish::Protocol::Tcp => "tcp".to_owned(),
        net::publish::Protocol::Udp => "udp".to_owned(),
    };
    listeners
        .bound()
        .into_iter()
        .map(|bound| (bound.container_port, name(bound.protocol), bound.address.ip(), bound.address.port()))
        .collect()
}

/// The directory of control sockets: $XDG_RUNTIME_DIR/hostel, else a private one in /tmp.
///
/// # Errors
/// When it cannot be made, or belongs to somebody else.
pub fn socket_dir() -> io::Result<PathBuf> {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    let uid = Uid::effective().as_raw();
    let own = std::env::var_os("XDG_RUNTIME_DIR")
        .map(PathBuf::from)
        .filter(|dir| fs::metadata(dir).is_ok_and(|meta| meta.is_dir() && meta.uid() == uid));
    let dir = own.map_or_else(|| PathBuf::from(format!("/tmp/hostel-{uid}")), |dir| dir.join("hostel"));
    match fs::DirBuilder::new().mode(0o700).create(&dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    // In /tmp anybody could have made it first.
    let meta = fs::symlink_metadata(&dir)?;
    if !meta.is_dir() || meta.uid() != uid || meta.permissions().mode() & 0o077 != 0 {
        let what = format!(
            "{} is not a directory of mode 0700 of this user; remove it, or set XDG_RUNTIME_DIR",
            dir.display()
        );
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, what));
    }
    Ok(dir)
}

/// Digits of the id in a socket's name: enough to be unique, short enough for the path limit.
const SOCKET_ID_LEN: usize = 24;

/// Where the keeper of a container listens, or would: for one whose start is under way, which has no state yet.
///
/// # Errors
/// When the directory of control sockets cannot be used.
pub fn socket_path(id: &crate::id::ContainerId) -> io::Result<PathBuf> {
    Ok(socket_dir()?.join(&id.as_str()[..SOCKET_ID_LEN]))
}

fn listen(id: &str) -> Result<(PathBuf, OwnedFd), LaunchError> {
    use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
    let dir = socket_dir().map_err(io_error(|| "use the directory of control sockets".into()))?;
    let path = dir.join(&id[..SOCKET_ID_LEN]);
    let _ = fs::remove_file(&path); // of a keeper that was killed: the lock says that there is none now
    let attempt = || {
        let listener = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        // By way of the directory's descriptor: a path of any length fits then (unix(7), 108 bytes).
        let opened = File::open(&dir).map_err(|_| nix::errno::Errno::EACCES)?;
        let short = format!("/proc/self/fd/{}/{}", opened.as_raw_fd(), &id[..SOCKET_ID_LEN]);
        bind(listener.as_raw_fd(), &UnixAddr::new(short.as_str())?)?;
        listen(&listener, Backlog::new(64)?)?;
        Ok(listener)
    };
    let listener = attempt().map_err(|errno: nix::errno::Errno| {
        io_error(|| format!("listen on {}", path.display()))(errno.into())
    })?;
    Ok((path, listener))
}
