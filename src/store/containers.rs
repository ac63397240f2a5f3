//! Containers on disk: what each one is, whether it runs, how it ended.
//!
//! ```text
//! containers/names/<name>      symbolic link whose target is the id: creating it reserves the name
//! containers/<id>/record.json  what the container is; written once, renamed over by `rename`
//!                 spec.json    its plan, the supervisor's own type
//!                 lock         held exclusively (an open-file-description lock) by the keeper
//!                 state.json   written by the keeper at each start
//!                 exit.json    written by the keeper when the container has ended
//!                 health.json  written by the keeper after each health check
//!                 log          the container's output, a JSON object a line; log.1 the part before, ...
//! containers/mnt/{lower,root}  empty: mount points, the same for all, used in namespaces of their own
//! containers/.lock-<id>, .new-<id>, .rm-<id>   being made, being removed; left over only by a kill -9
//! ```
//!
//! Where the store's filesystem is no place for locks and writable layers, `lock` and `local` are
//! symbolic links into a directory that is (see `local`).
//!
//! Liveness is the lock and nothing else, so a reused pid cannot fool it. The lock is asked for
//! with F_OFD_GETLK, which takes nothing: looking never disturbs a start. A container whose lock is
//! free, with a state and no exit after it, lost its keeper: `Containers::settle` ends what is
//! left of it and writes the exit that the keeper could not.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::unistd::Pid;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::events::Events;
use crate::id::{ContainerId, Name};
use crate::sys;

/// Version of the record's format; a reader refuses a greater one.
pub const RECORD_VERSION: u32 = 1;
/// Records are small; a larger file is not one.
const MAX_JSON_BYTES: u64 = 16 << 20;
const NAMES: &str = "names";
/// How often and how long a lock is waited for that a keeper is about to let go: longer than the
/// keeper gives its server to write back (SERVER_LIMIT).
pub const LOCK_ATTEMPTS: u32 = 8_000;
/// See [`LOCK_ATTEMPTS`].
pub const LOCK_WAIT: std::time::Duration = std::time::Duration::from_millis(5);

/// What can go wrong with a container on disk.
#[derive(Debug, Error)]
pub enum ContainerError {
    /// No container has this name or id.
    #[error("No such container: {0}")]
    NotFound(String),
    /// A short id fits more than one.
    #[error("Multiple IDs found with provided prefix: {0}")]
    Ambiguous(String),
    /// The name is taken.
    #[error(
        "Conflict. The container name \"/{name}\" is already in use by container \"{id}\". You have to remove (or rename) that container to be able to reuse that name."
    )]
    NameInUse {
        /// The name.
        name: Name,
        /// Who has it.
        id: ContainerId,
    },
    /// Somebody else holds the container's lock.
    #[error("container {0} is running, being started by another command, or mounted (hostel mount)")]
    Busy(ContainerId),
    /// The container was made on another machine that shares this store.
    #[error("container {id} belongs to another machine (machine id {machine}): use it there")]
    Elsewhere {
        /// The container.
        id: ContainerId,
        /// The machine.
        machine: String,
    },
    /// A file of the container cannot be read or written.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file of the container does not hold what it should.
    #[error("{path} is damaged; remove the container with `rm -f`")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong in it.
        source: serde_json::Error,
    },
    /// A newer hostel wrote this.
    #[error("container {id} was made by a newer hostel (record version {version}); use that one")]
    Newer {
        /// The container.
        id: ContainerId,
        /// Its record's version.
        version: u32,
    },
}

type Result<T, E = ContainerError> = std::result::Result<T, E>;

/// What a container is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// [`RECORD_VERSION`] of its writer.
    pub version: u32,
    /// Its id.
    pub id: ContainerId,
    /// Its name.
    pub name: Name,
    /// When it was created.
    pub created: Timestamp,
    /// The image as it was given.
    pub image: String,
    /// The image's config digest; none for a directory.
    pub image_id: Option<String>,
    /// Config digests of images that it mounts besides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounted_images: Vec<String>,
    /// Command and arguments, as `ps` shows them.
    pub command: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Names of the volumes that it uses.
    pub volumes: Vec<String>,
    /// Those of them that were made for it alone.
    pub anonymous_volumes: Vec<String>,
    /// Directory of its writable layer and sockets' names, on a local filesystem.
    pub local_dir: PathBuf,
    /// /etc/machine-id of the machine that it was made on.
    pub machine_id: String,
}

/// A container that was started.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    /// When its command was started.
    pub started: Timestamp,
    /// Pid of the container's pid 1 on the machine.
    pub pid: i32,
    /// Start time of that process in clock ticks since boot (proc_pid_stat(5), field 22).
    pub pid_start_ticks: u64,
    /// /proc/sys/kernel/random/boot_id at the start.
    pub boot_id: String,
    /// Pid of the keeper.
    pub keeper_pid: i32,
    /// Pid of the server, the one child of the keeper that is not the container's; 0 in older records.
    #[serde(default)]
    pub server_pid: i32,
    /// The control socket.
    pub socket: PathBuf,
    /// Published ports as bound: `(container port, protocol, host address, host port)`.
    pub ports: Vec<(u16, String, std::net::IpAddr, u16)>,
    /// `hybrid`, `pure` or `readonly`.
    pub write_mode: String,
    /// The user namespace's maps: `(container id, host id, count)`.
    pub uid_map: Vec<(u32, u32, u32)>,
    /// As `uid_map`.
    pub gid_map: Vec<(u32, u32, u32)>,
    /// The container's IPv4 address, where it has one.
    pub address: Option<std::net::IpAddr>,
    /// Its addresses and those round it, where it has a network of its own.
    #[serde(default)]
    pub network: Option<NetworkState>,
    /// Exposed ports, as `(first, last, protocol)` of each range.
    #[serde(default)]
    pub exposed: Vec<(u16, u16, String)>,
    /// How often its policy has restarted it since it was started by hand.
    #[serde(default)]
    pub restarts: u32,
    /// Whether its processes are held up (`pause`).
    #[serde(default)]
    pub paused: bool,
    /// Directory of its control group, where it has one.
    #[serde(default)]
    pub cgroup: Option<PathBuf>,
}

/// The addresses of a container's network of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkState {
    /// IPv4.
    pub v4: NetworkAddresses,
    /// IPv6.
    pub v6: NetworkAddresses,
}

/// Those of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkAddresses {
    /// The container's.
    pub address: std::net::IpAddr,
    /// The length of its network's prefix, in bits.
    pub prefix_length: u8,
    /// The default route.
    pub gateway: std::net::IpAddr,
}

/// How a container ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExitRecord {
    /// When.
    pub finished: Timestamp,
    /// Its exit code; 128+n for signal n.
    pub code: u8,
    /// What the engine has to say of it; empty for an ordinary end.
    pub error: String,
    /// Its keeper waits to start it again.
    #[serde(default)]
    pub restarting: bool,
    /// It was stopped or killed by a command: what `unless-stopped` asks for.
    #[serde(default)]
    pub by_hand: bool,
    /// The kernel killed a process of it for want of memory.
    #[serde(default)]
    pub oom_killed: bool,
}

/// Where a container is in its life.
#[derive(Clone, Debug)]
pub enum Status {
    /// Made, never started.
    Created,
    /// Its keeper is there, its command not yet.
    Starting,
    /// It runs.
    Running(State),
    /// It ended, and its keeper waits to start it again.
    Restarting(State, ExitRecord),
    /// It ended.
    Exited(Option<State>, ExitRecord),
    /// It belongs to another machine that shares this store, and is left alone: that machine's id.
    Elsewhere(String),
}

impl Status {
    /// Docker's word for it.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Created | Self::Starting => "created",
            Self::Running(state) if state.paused => "paused",
            Self::Running(_) => "running",
            Self::Restarting(..) => "restarting",
            Self::Exited(..) => "exited",
            Self::Elsewhere(_) => "unknown",
        }
    }

    /// Whether its keeper is there.
    #[must_use]
    pub fn is_live(&self) -> bool {
        matches!(self, Self::Running(_) | Self::Starting | Self::Restarting(..))
    }
}

/// The exclusive right to a container: held by whoever starts, runs or removes it.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Lock {
    /// The same right once more: the lock is given up when the last of them is dropped.
    ///
    /// # Errors
    /// When there is no descriptor left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { file: self.file.try_clone()? })
    }

    /// The descriptor, to keep it open across a `close_all`.
    #[must_use]
    pub fn raw_fd(&self) -> i32 {
        self.file.as_raw_fd()
    }
}

/// The containers of one store.
#[derive(Clone, Debug)]
pub struct Containers {
    dir: PathBuf,
}

impl Containers {
    /// Those of the store at `root`. Touches nothing.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self { dir: root.join("containers") }
    }

    /// The store's directory.
    #[must_use]
    pub fn store_root(&self) -> &Path {
        self.dir.parent().unwrap_or(Path::new("/"))
    }

    /// The directory of one container.
    #[must_use]
    pub fn path(&self, id: &ContainerId) -> PathBuf {
        self.dir.join(id.as_str())
    }

    fn mount_points(&self) -> PathBuf {
        self.dir.join("mnt")
    }

    /// Where every container of the store mounts the read side of its root: each sees only its own,
    /// because each has its own mount namespace.
    #[must_use]
    pub fn lower_point(&self) -> PathBuf {
        self.mount_points().join("lower")
    }

    /// Where every container mounts its root, likewise.
    #[must_use]
    pub fn root_point(&self) -> PathBuf {
        self.mount_points().join("root")
    }

    /// Makes a container: reserves its name, writes record and plan, and makes it visible last.
    ///
    /// # Errors
    /// [`ContainerError::NameInUse`], and whatever the filesystem refuses.
    pub fn create<P: Serialize>(&self, record: &Record, plan: &P) -> Result<()> {
        let staging = self.dir.join(format!(".new-{}", record.id));
        for dir in
            [&self.dir, &self.dir.join(NAMES), &self.mount_points(), &self.lower_point(), &self.root_point()]
        {
            if !dir.exists() {
                make_dir(dir)?;
            }
        }
        // Held until the container is visible: whoever finds it unlocked may remove all of this.
        let gate = self.dir.join(format!(".lock-{}", record.id));
        let away = Some(&record.local_dir).filter(|dir| !dir.starts_with(&self.dir));
        let mut undo_away = Undo(None);
        let lock = match away {
            None => locked_file(&self.dir, &gate).map_err(io_error("lock", &gate))?,
            Some(away) => {
                make_dir(away)?;
                undo_away = Undo(Some(away.clone()));
                let target = away.join("lock");
                let lock = locked_file(away, &target).map_err(io_error("lock", &target))?;
                std::os::unix::fs::symlink(&target, &gate).map_err(io_error("create", &gate))?;
                lock
            }
        };
        make_dir(&staging)?;
        let undo = Undo(Some(staging.clone()));
        let named = staging.join("lock");
        fs::rename(&gate, &named).map_err(io_error("create", &named))?;
        make_dir(&staging.join("etc"))?;
        let local = staging.join("local");
        match away {
            None => make_dir(&local)?,
            Some(away) => {
                std::os::unix::fs::symlink(away, &local).map_err(io_error("create", &local))?;
            }
        }
        for sub in ["upper", "work"] {
            make_dir(&local.join(sub))?;
        }
        // Nobody sees the directory yet: no need to write beside and rename.
        write_new_json(&staging.join("record.json"), record)?;
        write_new_json(&staging.join("spec.json"), plan)?;
        sys::fault::point("container");
        self.reserve_name(&record.name, &record.id)?;
        let made = sys::fault::io("container").and_then(|()| fs::rename(&staging, self.path(&record.id)));
        if let Err(source) = made {
            self.release_name(&record.name);
            return Err(ContainerError::Io { action: "create", path: self.path(&record.id), source });
        }
        undo.disarm();
        undo_away.disarm();
        drop(lock);
        Ok(())
    }

    /// A new directory beside the containers for something that is renamed into its place when it is
    /// whole. A kill leaves it to be swept like a half made container, which may belong to
    /// subordinate ids too.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn stage_tree(&self) -> io::Result<StagedTree> {
        let random = ContainerId::from_random(&sys::process::random_bytes()?);
        let path = self.dir.join(format!(".new-{random}"));
        let gate = self.dir.join(format!(".lock-{random}"));
        let lock = locked_file(&self.dir, &gate)?;
        let staged = StagedTree { path, gate, _lock: lock };
        fs::DirBuilder::new().mode(0o700).create(&staged.path)?;
        Ok(staged)
    }

    /// Where a new container's writable layer and lock go.
    ///
    /// # Errors
    /// The store's filesystem is no place for them, and no other is.
    pub fn local_dir(&self, id: &ContainerId) -> Result<PathBuf> {
        let root = self.store_root();
        let instead = super::local::directory(root).map_err(io_error("find a local directory for", root))?;
        Ok(instead.map_or_else(|| self.path(id).join("local"), |dir| dir.join(id.as_str())))
    }

    /// What it means that a container's lock cannot be found: another machine's, or gone.
    fn lock_is_away(&self, id: &ContainerId) -> Result<()> {
        if !self.path(id).join("lock").is_symlink() {
            return Err(ContainerError::NotFound(id.to_string()));
        }
        let record = self.record(id)?;
        if record.machine_id != machine_id() {
            return Err(ContainerError::Elsewhere { id: id.clone(), machine: record.machine_id });
        }
        Ok(())
    }

    /// A whole local directory was wiped: a new lock lets the container be removed.
    fn lock_anew(&self, id: &ContainerId) -> Result<()> {
        self.lock_is_away(id)?;
        let link = self.path(id).join("lock");
        let target = fs::read_link(&link).map_err(io_error("read", &link))?;
        if let Some(parent) = target.parent() {
            make_dir(parent)?;
        }
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&target) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(io_error("create", &target)(error))
            }
            _ => Ok(()),
        }
    }

    /// A link whose making is atomic reserves the name; one whose container is gone is taken over.
    fn reserve_name(&self, name: &Name, id: &ContainerId) -> Result<()> {
        let link = self.dir.join(NAMES).join(name.as_str());
        for _ in 0..16 {
            match std::os::unix::fs::symlink(id.as_str(), &link) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(source) => return Err(ContainerError::Io { action: "create", path: link, source }),
            }
            let Some(owner) = self.named(name.as_str()) else { continue };
            let (gate, made) =
                (self.dir.join(format!(".lock-{owner}")), self.dir.join(format!(".new-{owner}")));
            // In this order: one that becomes visible in between is seen by the second question.
            if !is_abandoned(&gate, &made) || self.path(&owner).exists() {
                return Err(ContainerError::NameInUse { name: name.clone(), id: owner });
            }
            let _ = fs::remove_file(&link); // its container is gone; whoever is first takes the name
        }
        let source = io::Error::from(io::ErrorKind::AlreadyExists);
        Err(ContainerError::Io { action: "create", path: link, source })
    }

    /// Whether a name is taken, as far as can be seen without taking it.
    #[must_use]
    pub fn has_name(&self, name: &Name) -> bool {
        self.dir.join(NAMES).join(name.as_str()).is_symlink()
    }

    fn release_name(&self, name: &Name) {
        let _ = fs::remove_file(self.dir.join(NAMES).join(name.as_str())); // a left-over is taken over
    }

    fn named(&self, name: &str) -> Option<ContainerId> {
        let target = fs::read_link(self.dir.join(NAMES).join(name)).ok()?;
        target.to_str()?.parse().ok()
    }

    /// Gives a container another name.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub fn rename(&self, record: &mut Record, name: Name) -> Result<()> {
        self.reserve_name(&name, &record.id)?;
        let old = std::mem::replace(&mut record.name, name);
        let result = write_json(&self.path(&record.id).join("record.json"), record);
        self.release_name(if result.is_ok() { &old } else { &record.name });
        result
    }

    /// The ids of all containers.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn ids(&self) -> Result<Vec<ContainerId>> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(ContainerError::Io { action: "list", path: self.dir.clone(), source }),
        };
        Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
    }

    /// The container that a person means: by name, by id, by the beginning of an id.
    ///
    /// # Errors
    /// [`ContainerError::NotFound`], [`ContainerError::Ambiguous`].
    pub fn find(&self, reference: &str) -> Result<Record> {
        let bare = reference.strip_prefix('/').unwrap_or(reference);
        let exact = bare.parse::<ContainerId>().ok().filter(|id| self.path(id).exists());
        let named = || bare.parse::<Name>().ok().and_then(|name| self.named(name.as_str()));
        if let Some(id) = exact.or_else(named) {
            match self.record(&id) {
                Err(ContainerError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                other => return other,
            }
        }
        let mut fits = self.ids()?.into_iter().filter(|id| !bare.is_empty() && id.as_str().starts_with(bare));
        match (fits.next(), fits.next()) {
            (Some(id), None) => self.record(&id),
            (Some(_), Some(_)) => Err(ContainerError::Ambiguous(reference.to_owned())),
            (None, _) => Err(ContainerError::NotFound(reference.to_owned())),
        }
    }

    /// One container's record.
    ///
    /// # Errors
    /// When it is not there, damaged, or a newer hostel's.
    pub fn record(&self, id: &ContainerId) -> Result<Record> {
        let record: Record = read_json(&self.path(id).join("record.json"))?;
        if record.version > RECORD_VERSION {
            return Err(ContainerError::Newer { id: id.clone(), version: record.version });
        }
        Ok(record)
    }

    /// One container's plan, in the type that [`Self::create`] was given.
    ///
    /// # Errors
    /// When it is not there or damaged.
    pub fn plan<P: DeserializeOwned>(&self, id: &ContainerId) -> Result<P> {
        read_json(&self.path(id).join("spec.json"))
    }

    /// Writes a container's plan anew.
    ///
    /// # Errors
    /// As writing a file.
    pub fn replace_plan<P: Serialize>(&self, id: &ContainerId, plan: &P) -> Result<()> {
        write_json(&self.path(id).join("spec.json"), plan)
    }

    /// Takes the container's lock.
    ///
    /// # Errors
    /// [`ContainerError::Busy`] when somebody has it.
    pub fn lock(&self, id: &ContainerId) -> Result<Lock> {
        let path = self.path(id).join("lock");
        if path.is_symlink() && !path.exists() {
            self.lock_anew(id)?;
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|source| Self::gone_or_io(id, "open", &path, source))?;
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole_file(libc::F_WRLCK))) {
            Ok(_) => {}
            Err(Errno::EAGAIN | Errno::EACCES) => return Err(ContainerError::Busy(id.clone())),
            Err(errno) => {
                return Err(ContainerError::Io { action: "lock", path, source: errno.into() });
            }
        }
        // Removed between opening and locking: the lock is then on a file that nobody else will see.
        if !path.exists() {
            return Err(ContainerError::NotFound(id.to_string()));
        }
        Ok(Lock { file })
    }

    fn gone_or_io(id: &ContainerId, action: &'static str, path: &Path, source: io::Error) -> ContainerError {
        if source.kind() == io::ErrorKind::NotFound {
            ContainerError::NotFound(id.to_string())
        } else {
            ContainerError::Io { action, path: path.to_owned(), source }
        }
    }

    /// Whether somebody holds the container's lock; takes nothing.
    ///
    /// # Errors
    /// When the lock file cannot be opened.
    pub fn is_locked(&self, id: &ContainerId) -> Result<bool> {
        let path = self.path(id).join("lock");
        match is_file_locked(&path) {
            Ok(locked) => Ok(locked),
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.lock_is_away(id).map(|()| false),
            Err(source) => Err(Self::gone_or_io(id, "query the lock", &path, source)),
        }
    }

    /// Where the container is in its life, as the disk tells it.
    ///
    /// A keeper that died is found out here, and what it left is ended and recorded.
    ///
    /// # Errors
    /// When the files cannot be read.
    pub fn status(&self, id: &ContainerId) -> Result<Status> {
        // A keeper may end between two of these reads: then the second round sees its last word.
        for _ in 0..2 {
            let locked = match self.is_locked(id) {
                Err(ContainerError::Elsewhere { machine, .. }) => return Ok(Status::Elsewhere(machine)),
                other => other?,
            };
            let state: Option<State> = optional(read_json(&self.path(id).join("state.json")))?;
            let exit: Option<ExitRecord> = optional(read_json(&self.path(id).join("exit.json")))?;
            match (locked, state, exit) {
                (true, Some(state), None) => return Ok(Status::Running(state)),
                (true, _, None) => return Ok(Status::Starting),
                (true, Some(state), Some(exit)) if exit.restarting => {
                    return Ok(Status::Restarting(state, exit));
                }
                // With the lock held: its keeper is tidying up, or is about to start it again.
                (_, state, Some(exit)) => return Ok(Status::Exited(state, exit)),
                (false, None, None) => return Ok(Status::Created),
                (false, Some(state), None) => {
                    if let Some(exit) = self.settle(id)? {
                        return Ok(Status::Exited(Some(state), exit));
                    }
                }
            }
        }
        Ok(Status::Created)
    }

    /// Ends what a dead keeper left running and writes the exit that it could not; none where somebody else does.
    fn settle(&self, id: &ContainerId) -> Result<Option<ExitRecord>> {
        let lock = match self.lock(id) {
            Ok(lock) => lock,
            Err(ContainerError::Busy(_)) => return Ok(None), // somebody starts or settles it
            Err(error) => return Err(error),
        };
        let dir = self.path(id);
        if dir.join("exit.json").exists() {
            return Ok(None);
        }
        if let Some(state) = optional::<State>(read_json(&dir.join("state.json")))? {
            kill_orphan(&state);
            if let Some(group) = &state.cgroup {
                let _ = fs::remove_dir(group); // empty now, or not the kernel's to give back yet
            }
            let _ = fs::remove_file(&state.socket); // its listener is gone; a stale name harms nobody
        }
        let error = "the container's supervisor was killed".to_owned();
        let exit = ExitRecord {
            finished: Timestamp::now(),
            code: 137,
            error,
            restarting: false,
            by_hand: false,
            oom_killed: false,
        };
        match self.write_exit(id, &exit) {
            // On a full disk it must be seen and removed all the same; whoever looks next writes it.
            Err(ContainerError::Io { source, .. })
                if matches!(source.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT | libc::EROFS)) => {}
            other => other?,
        }
        drop(lock);
        Ok(Some(exit))
    }

    /// Records that the container has started. The keeper's, under the lock.
    ///
    /// # Errors
    /// As writing a file.
    pub fn write_state(&self, id: &ContainerId, state: &State) -> Result<()> {
        let dir = self.path(id);
        write_json(&dir.join("state.json"), state)?;
        match fs::remove_file(dir.join("exit.json")) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(ContainerError::Io { action: "remove", path: dir.join("exit.json"), source })
            }
            _ => Ok(()),
        }
    }

    /// Records how the container ended. The keeper's, under the lock.
    ///
    /// # Errors
    /// As writing a file.
    pub fn write_exit(&self, id: &ContainerId, exit: &ExitRecord) -> Result<()> {
        write_json(&self.path(id).join("exit.json"), exit)
    }

    /// Records the container's health. The keeper's, under the lock.
    ///
    /// # Errors
    /// As writing a file.
    pub fn write_health<H: Serialize>(&self, id: &ContainerId, health: &H) -> Result<()> {
        write_json(&self.path(id).join("health.json"), health)
    }

    /// The container's health, in the type that [`Self::write_health`] was given; `None` without checks.
    ///
    /// # Errors
    /// When it is damaged.
    pub fn health<H: DeserializeOwned>(&self, id: &ContainerId) -> Result<Option<H>> {
        optional(read_json(&self.path(id).join("health.json")))
    }

    /// The events of the store.
    #[must_use]
    pub fn events(&self) -> Events {
        Events::new(self.store_root())
    }

    /// Tells the journal of something that happened to a container: with its image, name and labels.
    pub fn tell(&self, record: &Record, action: &str, extra: &[(&str, &str)]) {
        let mut attributes = record.labels.clone();
        attributes.insert("image".into(), record.image.clone());
        attributes.insert("name".into(), record.name.to_string());
        attributes.extend(extra.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        self.events().emit("container", action, record.id.as_str(), attributes);
    }

    /// Makes a container invisible; what is left of it lies in the directory that is returned, for
    /// the caller to remove.
    ///
    /// # Errors
    /// As rename(2).
    pub fn unlink(&self, record: &Record, _lock: &Lock) -> Result<PathBuf> {
        let grave = self.dir.join(format!(".rm-{}", record.id));
        let path = self.path(&record.id);
        sys::fault::io("container")
            .and_then(|()| fs::rename(&path, &grave))
            .map_err(|source| Self::gone_or_io(&record.id, "remove", &path, source))?;
        sys::fault::point("container");
        if self.named(record.name.as_str()).as_ref() == Some(&record.id) {
            // Moved, not removed: whoever waits for the end need not wait until a filesystem has given back a
            // block, which took a millisecond where it tells the disk (mount(8), discard).
            let name = self.dir.join(NAMES).join(record.name.as_str());
            if fs::rename(name, grave.join(NAMES)).is_err() {
                self.release_name(&record.name);
            }
        }
        Ok(grave)
    }

    /// Ids of the containers that use a volume.
    #[must_use]
    pub fn users_of_volume(&self, name: &Name) -> Vec<String> {
        let ids = self.ids().unwrap_or_default();
        let records = ids.iter().filter_map(|id| self.record(id).ok());
        let using = records.filter(|record| record.volumes.iter().any(|volume| volume == name.as_str()));
        using.map(|record| record.id.to_string()).collect()
    }

    /// Directories that a killed command left half made or half removed.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn leftovers(&self) -> Result<Vec<PathBuf>> {
        let Ok(entries) = fs::read_dir(&self.dir) else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            if name.starts_with(".rm-") {
                // Its lock goes last: one that is held is about to be removed by whoever holds it.
                if !is_held(&entry.path().join("lock")) {
                    found.push(entry.path());
                }
            } else if name.starts_with(".lock-") {
                if !is_file_locked(&entry.path()).unwrap_or(true) {
                    let _ = fs::remove_file(entry.path()); // whoever is first; gone is as good
                }
            } else if let Some(id) = name.strip_prefix(".new-")
                && is_abandoned(&self.dir.join(format!(".lock-{id}")), &entry.path())
            {
                // So that it is still known for what it is if its removal is killed halfway.
                let grave = self.dir.join(format!(".rm-{id}"));
                if fs::rename(entry.path(), &grave).is_ok() {
                    found.push(grave);
                }
            }
        }
        for grave in &found {
            self.release_name_of(grave);
        }
        Ok(found)
    }

    /// Gives up the name of a container that was killed half made or half removed, if it is still its.
    fn release_name_of(&self, grave: &Path) {
        let Ok(record) = read_json::<Record>(&grave.join("record.json")) else { return };
        if self.named(record.name.as_str()).as_ref() == Some(&record.id) {
            self.release_name(&record.name);
        }
    }
}

/// What [`Containers::stage_tree`] makes: not swept while this lives.
#[derive(Debug)]
pub struct StagedTree {
    path: PathBuf,
    gate: PathBuf,
    _lock: File,
}

impl StagedTree {
    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for StagedTree {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.gate); // a left-over is swept
    }
}

/// Whether a half made container has lost its maker, who holds its lock all the time: first beside
/// the directory, then in it. Asked in this order, a move between the two questions is not missed.
fn is_abandoned(gate: &Path, staging: &Path) -> bool {
    !is_held(gate) && !is_held(&staging.join("lock"))
}

/// Whether somebody lives who holds a container's lock; one that is not there is not held.
fn is_held(lock: &Path) -> bool {
    is_file_locked(lock).unwrap_or(false)
}

/// A new file that is locked before it has a name, so that nobody ever finds it unlocked while its
/// maker lives. Where the filesystem has no unnamed files it is locked right after it got its name.
fn locked_file(dir: &Path, name: &Path) -> io::Result<File> {
    use std::os::fd::AsRawFd as _;
    let lock = |file: &File| fcntl(file, FcntlArg::F_OFD_SETLK(&whole_file(libc::F_WRLCK))).map(drop);
    let unnamed =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_TMPFILE).mode(0o600).open(dir);
    let locked_named = || {
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(name)?;
        lock(&file)?;
        Ok(file)
    };
    let Ok(unnamed) = unnamed else { return locked_named() };
    lock(&unnamed)?;
    // How open(2) says to name it without privilege.
    let source = PathBuf::from(format!("/proc/self/fd/{}", unnamed.as_raw_fd()));
    let here = nix::fcntl::AT_FDCWD;
    match nix::unistd::linkat(here, &source, here, name, nix::fcntl::AtFlags::AT_SYMLINK_FOLLOW) {
        Ok(()) => Ok(unnamed),
        Err(Errno::EEXIST) => Err(Errno::EEXIST.into()),
        // No hard links here.
        Err(_) => locked_named(),
    }
}

/// Whether anybody holds a file's lock; looking takes nothing.
fn is_file_locked(path: &Path) -> io::Result<bool> {
    let file = File::open(path)?;
    let mut probe = whole_file(libc::F_WRLCK);
    fcntl(&file, FcntlArg::F_OFD_GETLK(&mut probe))?;
    Ok(i32::from(probe.l_type) != libc::F_UNLCK)
}

/// This machine's id, for records in homes that several machines share; empty when it has none.
#[must_use]
pub fn machine_id() -> String {
    fs::read_to_string("/etc/machine-id").map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// This boot's id.
#[must_use]
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

/// Start time of a process in clock ticks since boot: with the pid and the boot it names a process
/// for ever (proc_pid_stat(5), field 22).
#[must_use]
pub fn process_start_ticks(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Whether the container's first process is the one that was recorded, and not yet a zombie
/// (proc_pid_stat(5), field 3).
#[must_use]
pub fn is_alive(state: &State) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", state.pid)).unwrap_or_default();
    let mut fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_ascii_whitespace();
    let lives = !matches!(fields.next(), None | Some("Z" | "X"));
    lives && fields.nth(18).and_then(|ticks| ticks.parse().ok()) == Some(state.pid_start_ticks)
}

/// The parent of a process (proc_pid_stat(5), field 4).
#[must_use]
pub fn parent_of(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Kills the container's pid 1 if it is still the process that was recorded; its pid namespace dies
/// with it.
fn kill_orphan(state: &State) {
    if state.boot_id != boot_id() {
        return;
    }
    let Ok(pidfd) = sys::process::pidfd_open(Pid::from_raw(state.pid)) else { return };
    // Compared after the pidfd is open: from here on it is this process or none.
    if process_start_ticks(state.pid) != Some(state.pid_start_ticks) {
        return;
    }
    use std::os::fd::AsFd as _;
    let _ = sys::process::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL); // gone already is as good
    let mut poll = [nix::poll::PollFd::new(pidfd.as_fd(), nix::poll::PollFlags::POLLIN)];
    let _ = nix::poll::poll(&mut poll, 5_000_u16); // a process in uninterruptible sleep may take longer
}

/// Removes its directory unless disarmed: the undo of a failed creation.
struct Undo(Option<PathBuf>);

impl Undo {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = fs::remove_dir_all(path); // a left-over is swept by a later command
        }
    }
}

fn whole_file(kind: i32) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

fn make_dir(path: &Path) -> Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::DirBuilder::new().mode(0o700).recursive(true).create(path).map_err(io_error("create", path))
        }
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(io_error("create", path)(error)),
        _ => Ok(()),
    }
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ContainerError {
    let path = path.to_owned();
    move |source| ContainerError::Io { action, path, source }
}

fn optional<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(ContainerError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    use std::io::Read as _;
    // One read for nearly all of these files.
    let mut text = Vec::with_capacity(16 << 10);
    File::open(path)
        .and_then(|file| file.take(MAX_JSON_BYTES).read_to_end(&mut text))
        .map_err(io_error("read", path))?;
    serde_json::from_slice(&text).map_err(|source| ContainerError::Damaged { path: path.to_owned(), source })
}

fn write_new_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let text = serde_json::to_vec(value)
        .map_err(|source| ContainerError::Damaged { path: path.to_owned(), source })?;
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| sys::fault::io("container").and_then(|()| file.write_all(&text)))
        .map_err(io_error("write", path))
}

/// Writes beside and renames over, so that a reader sees the old text or the new one.
///
/// Not fsynced: a container's files need to survive a killed process, which they do; after a power
/// cut a container that did not reach the disk was never acknowledged by anything durable.
fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let text = serde_json::to_vec(value)
        .map_err(|source| ContainerError::Damaged { path: path.to_owned(), source })?;
    let temp = path.with_extension("tmp");
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temp)
        .and_then(|mut file| file.write_all(&text))
        .and_then(|()| sys::fault::io("container"))
        .and_then(|()| fs::rename(&temp, path))
        .map_err(io_error("write", path))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn what_somebody_is_about_to_remove_is_no_left_over() {
        let dir = tempfile::tempdir().unwrap();
        let containers = Containers::new(dir.path());
        let grave = dir.path().join("containers/.rm-abc");
        fs::create_dir_all(&grave).unwrap();
        let lock = locked_file(&grave, &grave.join("lock")).unwrap();
        assert_eq!(containers.leftovers().unwrap(), Vec::<PathBuf>::new());
        drop(lock);
        assert_eq!(containers.leftovers().unwrap(), [grave]);
    }
}
