//! Images and containers as directories of a user and mount namespace that is not a container's: what
//! `hostel mount` and `hostel unshare` do.
//!
//! Only who may mount sees a mount, and a plain user may in a namespace of their own. So [`enter`] puts
//! this process into one, with the ids that containers have, and [`Mounter`] mounts in the namespace that
//! the process is in, whoever made it.
//!
//! The server of such a mount is forked from there and lets go of everything before it serves: of the
//! caller's descriptors, terminal and session, and of the namespace's mounts. It would keep them alive
//! otherwise; so it ends with its mount, and the mount with the last process of the namespace.

use std::fs;
use std::os::fd::{AsFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use fuse_overlay::mount as fuse_mount;
use fuse_overlay::serve;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::MsgFlags;
use nix::sys::stat::Mode;
use nix::unistd::{Pid, chdir, pivot_root, setsid};

use super::changes::{last_state, recorded_maps, root_kind};
use super::client::Client;
use super::view::{Scope, View};
use super::{Below, LaunchError, Saved, below, fence};
use crate::image::RootSource;
use crate::plan::WriteMode;
use crate::sandbox::idmap::{IdMaps, Method};
use crate::sandbox::init::{self, RootKind, RootMount, message};
use crate::sandbox::{Context as _, Failure, Stage, Staged, chain};
use crate::store::containers::{ContainerError, Containers, LOCK_WAIT, Lock, Record, State};
use crate::sys;
use crate::sys::process::Fork;

/// What the mount table has before the name of an image or a container.
const SOURCE: &str = "hostel:";
/// The filesystem in which mounts get directories of their own, as the mount table has it.
const PLACES: &str = "hostel-mounts";
/// How often a container's lock is tried: five seconds.
const LOCK_ATTEMPTS: u32 = 1_000;
/// Said by a server that is ready for its connection.
const READY: &[u8] = b"ready";
/// Bytes of a failure, as JSON.
const MAX_MESSAGE_BYTES: usize = 16 << 10;

/// Puts this process, which has one thread, into a user and a mount namespace of its own, as root of the
/// former; as the user where the maps keep their ids, since root could not reach the user's files then. What
/// the machine mounts later shows in there; what is mounted there stays there.
///
/// # Errors
/// Namespaces are refused, or the id maps.
pub fn enter(maps: &IdMaps) -> Staged<()> {
    let stage = Stage::Namespaces;
    let helper = || "cannot make a helper for the id maps".to_owned();
    let (ours, theirs) = sys::fd::seqpacket_pair().during(stage, helper)?;
    let this = Pid::this();
    let keeps_id = maps.kept().is_some(); // asked before the ids are others
    // The maps are written from outside.
    match sys::process::clone(0, false).during(stage, helper)? {
        Fork::Child => {
            drop(ours);
            let mut byte = [0_u8; 1];
            let done = match nix::unistd::read(&theirs, &mut byte) {
                Ok(1) => maps.begin(this).and_then(crate::sandbox::idmap::Writing::finish),
                _ => Ok(()), // the other side has failed, and says so
            };
            tell(&theirs, &done);
            sys::process::exit_now(i32::from(done.is_err()))
        }
        Fork::Parent(child) => {
            drop(theirs);
            unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS).map_err(super::no_namespaces)?;
            sys::fd::send_with_fds(ours.as_fd(), &[1], &[]).during(stage, helper)?;
            let answer = hear(&ours, "the helper for the id maps ended early");
            sys::process::wait_for(child.pid).during(stage, helper)?;
            answer?;
        }
    }
    if !keeps_id {
        become_first(maps)?;
    }
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
        .during(stage, || "cannot separate the mounts from the machine's".into())
}

/// The first id of the maps, with what capabilities there are. Supplementary groups stay: they are what
/// the user reaches shared files with.
fn become_first(maps: &IdMaps) -> Staged<()> {
    let what = || "cannot become root of the namespace".to_owned();
    let (uid, gid) = (maps.first_uid(), maps.first_gid());
    nix::unistd::setresgid(gid.into(), gid.into(), gid.into()).during(Stage::Namespaces, what)?;
    nix::unistd::setresuid(uid.into(), uid.into(), uid.into()).during(Stage::Namespaces, what)
}

/// Puts this process into the user namespace of a running container and a mount namespace of its own,
/// in which the container's root lies at `point`.
///
/// # Errors
/// The container cannot be entered.
pub fn enter_running(
    containers: &Containers,
    record: &Record,
    saved: &Saved,
    state: &State,
    point: &Point,
) -> Result<PathBuf, LaunchError> {
    let stage = Stage::Namespaces;
    let what = || "cannot mount the running container's root".to_owned();
    let view = View::start(containers, record, saved, Scope::Root, |inside| {
        inside.hand_over(b"root", &[inside.root.as_fd()])
    })?;
    let Some((_, mut fds)) = view.hear()? else {
        return Err(view.failure(&[]).into());
    };
    let root = fds.pop();
    view.finish()?;
    let root = root.ok_or_else(|| Failure::plain(stage, what()))?;
    let namespaces = Client::namespaces(state).during(stage, what)?;
    let namespaces = namespaces.ok_or_else(|| Failure::plain(stage, what()))?;
    let maps = recorded_maps(saved, Some(state));
    let keeps_id = maps.kept().is_some();
    namespaces.enter(CloneFlags::CLONE_NEWUSER).during(stage, what)?;
    if !keeps_id {
        become_first(&maps)?;
    }
    unshare(CloneFlags::CLONE_NEWNS).map_err(super::no_namespaces)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
        .during(stage, what)?;
    let place = point.make(containers)?;
    let target = open_directory(&place)?;
    sys::mount::attach(root.as_fd(), target.as_fd()).during(stage, what)?;
    Ok(place)
}

/// Where something is mounted.
#[derive(Clone, Debug)]
pub enum Point {
    /// A directory that is there.
    Given(PathBuf),
    /// One that is made for this name, in memory.
    Made(String),
}

impl Point {
    /// The directory, there and absolute.
    fn make(&self, containers: &Containers) -> Staged<PathBuf> {
        let name = match self {
            Self::Given(path) => {
                let what = || format!("cannot mount on {}", path.display());
                let path = fs::canonicalize(path).during(Stage::Mounts, what)?;
                return match path.is_dir() {
                    true => Ok(path),
                    false => Err(Failure::new(Stage::Mounts, what(), nix::errno::Errno::ENOTDIR)),
                };
            }
            Self::Made(name) => name.replace('/', "_"),
        };
        let places = containers.root_point();
        let what = || format!("cannot make a place to mount on in {}", places.display());
        fs::create_dir_all(&places).during(Stage::Mounts, what)?;
        let places = fs::canonicalize(&places).during(Stage::Mounts, what)?;
        if !table()?.iter().any(|line| line.source == PLACES.as_bytes() && line.point == places) {
            let options = Some("mode=0755,size=64k");
            mount(Some(PLACES), &places, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, options)
                .during(Stage::Mounts, what)?;
        }
        let place = places.join(&name);
        fs::create_dir_all(&place).during(Stage::Mounts, what)?;
        Ok(place)
    }
}

/// Mounts in the namespace that this process is in.
#[derive(Debug)]
pub struct Mounter<'a> {
    /// The store's containers.
    pub containers: &'a Containers,
    /// What it is called in the mount table.
    pub name: &'a str,
    /// Where.
    pub point: Point,
    /// Descriptors that the caller came with: the server does not keep them.
    pub inherited: &'a [RawFd],
}

impl Mounter<'_> {
    /// Mounts an image: read-only, or with the changes going to a directory that is kept.
    ///
    /// # Errors
    /// The image cannot be read; the mount is refused; another mount uses the directory.
    pub fn image(&self, root: &RootSource, changes: Option<&Path>) -> Result<PathBuf, LaunchError> {
        if !matches!(root, RootSource::Packed { .. }) {
            return Err(Failure::plain(Stage::Mounts, "only an image in the store can be mounted")
                .hint("a directory is there already: use it as it is")
                .into());
        }
        let maps = current_maps()?;
        let mode = match changes {
            None => serve::Mode::ReadOnly,
            Some(path) => {
                fs::create_dir_all(path)
                    .map_err(super::io_error(|| format!("make the directory {}", path.display())))?;
                let upper = super::open_file(path)?.into();
                serve::Mode::Overlay { upper, volatile: false, quota: serve::Quota::default() }
            }
        };
        let lower = super::lower_of(root, Path::new("/"), Path::new("/"))?;
        let filesystem = serve::Server::new(lower, mode, super::ids(&maps), serve::Options::default())
            .map_err(LaunchError::Filesystem)?;
        let point = self.point.make(self.containers)?;
        let paths = fence::Paths {
            writable: changes.map(Path::to_owned).into_iter().collect(),
            readable: Vec::new(),
        };
        let socket = self.serve(filesystem, &paths, None)?;
        let failed = |error: fuse_mount::MountError| Failure::plain(Stage::Fuse, chain(&error));
        let device = fuse_mount::open_device().map_err(failed)?;
        let options = fuse_mount::MountOptions {
            read_only: changes.is_none(),
            source: format!("{SOURCE}{}", self.name),
            uid: maps.first_uid(),
            gid: maps.first_gid(),
        };
        fuse_mount::mount(device.as_fd(), &point, &options).map_err(failed)?;
        sys::fd::send_with_fds(socket.as_fd(), &[message::FUSE], &[device.as_fd()])
            .during(Stage::Fuse, || "the filesystem's server is gone".into())?;
        fuse_mount::prime(&point).map_err(super::io_error(|| format!("look into {}", point.display())))?;
        Ok(point)
    }

    /// Mounts the root of a container that does not run, for reading and writing. It cannot be started
    /// until it is unmounted.
    ///
    /// # Errors
    /// It runs; its files belong to other ids than this namespace has; the mount is refused.
    pub fn container(&self, record: &Record, saved: &Saved) -> Result<PathBuf, LaunchError> {
        if matches!(saved.root, RootSource::Host) {
            return Err(Failure::plain(
                Stage::Mounts,
                "the root of a `host:/` container cannot be mounted among the files that it shows",
            )
            .hint("`hostel cp`, `hostel export` and `hostel diff` read it")
            .into());
        }
        let lock = self.lock(record)?;
        let status = self.containers.status(&record.id)?;
        let state = last_state(&status);
        let maps = current_maps()?;
        let kind = root_kind(saved, state);
        let undecided = saved.write_mode == WriteMode::Auto && state.is_none();
        if let Some(state) = state
            && kind != RootKind::Pure
            && (&state.uid_map, &state.gid_map) != (&maps.uids, &maps.gids)
        {
            return Err(Failure::plain(
                Stage::Mounts,
                "the container's files belong to other ids than this namespace has",
            )
            .hint("use `hostel unshare`, or `hostel mount CONTAINER DIR -- COMMAND`")
            .into());
        }
        let point = self.point.make(self.containers)?;
        let kind = match self.root(record, saved, kind, &maps, &lock, &point) {
            Err(LaunchError::Failed(failure)) if failure.stage == Stage::Overlay && undecided => {
                self.root(record, saved, RootKind::Pure, &maps, &lock, &point)?
            }
            other => other?,
        };
        if undecided {
            // What is written now, the first start has to read: it keeps the mode.
            let write_mode = super::view::kept_mode(kind);
            self.containers.replace_plan(&record.id, &Saved { write_mode, ..saved.clone() })?;
        }
        Ok(point)
    }

    /// A keeper that tidies up behind its container holds the lock for moments.
    fn lock(&self, record: &Record) -> Result<Lock, ContainerError> {
        for _ in 0..LOCK_ATTEMPTS {
            match self.containers.lock(&record.id) {
                Err(ContainerError::Busy(_)) => std::thread::sleep(LOCK_WAIT),
                other => return other,
            }
        }
        self.containers.lock(&record.id)
    }

    fn root(
        &self,
        record: &Record,
        saved: &Saved,
        kind: RootKind,
        maps: &IdMaps,
        lock: &Lock,
        point: &Path,
    ) -> Result<RootKind, LaunchError> {
        let Below { root_kind: kind, tree, filesystem, native } =
            below(self.containers, record, saved, kind, maps)?;
        let serving = filesystem.is_some();
        let socket = match filesystem {
            Some(filesystem) => {
                let paths = super::fence_paths(saved, kind, &record.local_dir);
                self.serve(filesystem, &paths, Some(lock))?
            }
            None => sys::fd::seqpacket_pair().during(Stage::Fuse, || "cannot make a socket".into())?.0,
        };
        let source = format!("{SOURCE}{}", self.name);
        let lower_point = self.containers.lower_point();
        let mounted = init::add_root(&RootMount {
            lower_point: &lower_point,
            root_point: point,
            native: native.as_deref(),
            tree: tree.as_deref(),
            local_dir: &record.local_dir,
            root_kind: kind,
            volatile: false,
            ids: (maps.first_uid(), maps.first_gid()),
            kept: None, // the process that mounts is whoever reaches the store
            server: socket.as_fd(),
            source: Some(&source),
        });
        if kind == RootKind::Hybrid && serving {
            // The overlay holds it; nobody else needs to see it. Not there: the mount has failed.
            let _ = umount2(&lower_point, MntFlags::MNT_DETACH);
        }
        mounted?;
        Ok(kind)
    }

    /// Forks the server; what comes back takes the connection, as init's socket to a container's does.
    fn serve(
        &self,
        filesystem: serve::Server,
        paths: &fence::Paths,
        lock: Option<&Lock>,
    ) -> Result<OwnedFd, LaunchError> {
        let stage = Stage::Fuse;
        let what = || "cannot make the filesystem's server".to_owned();
        let (ours, theirs) = sys::fd::seqpacket_pair().during(stage, what)?;
        if let Fork::Parent(child) = sys::process::clone(0, false).during(stage, what)? {
            drop(theirs);
            let heard = hear(&ours, "the filesystem's server ended early");
            sys::process::wait_for(child.pid).during(stage, what)?;
            heard?;
            return Ok(ours);
        }
        // This process may become a command that waits for all its children: the server is none of them.
        match sys::process::clone(0, false) {
            Ok(Fork::Child) => drop(ours),
            Ok(Fork::Parent(_)) => sys::process::exit_now(0),
            Err(_) => sys::process::exit_now(1), // the closed socket tells
        }
        // A container's lock is held by whoever has it open: it goes with this process.
        let _lock = lock;
        let ready = self.let_go(paths).and_then(|fence| {
            fence.raise().map_err(|error| Failure::plain(stage, error))?;
            Ok(())
        });
        tell(&theirs, &ready);
        let mut text = [0_u8; 16];
        let served = match sys::fd::receive_with_fds(theirs.as_fd(), &mut text, MsgFlags::empty()) {
            Ok((1.., mut fds)) if ready.is_ok() => fds.pop().map(|device| {
                drop(theirs);
                filesystem.serve(device)
            }),
            _ => None,
        };
        sys::process::exit_now(i32::from(!matches!(served, Some(Ok(())))))
    }

    /// Of everything that is the caller's.
    fn let_go(&self, paths: &fence::Paths) -> Staged<fence::Fence> {
        let stage = Stage::Fuse;
        let what = || "cannot separate the filesystem's server".to_owned();
        sys::process::set_name(c"hostel-server");
        setsid().during(stage, what)?;
        let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null").during(stage, what)?;
        for stdio in 0..=2 {
            sys::fd::place_at(null.as_fd(), stdio).during(stage, what)?;
        }
        for fd in self.inherited {
            // They were open when the command began, and are not used by it; closed already is as good.
            let _ = nix::unistd::close(*fd);
        }
        let fence = fence::Fence::new(paths).map_err(|error| Failure::plain(stage, error))?;
        let none = None::<&str>;
        unshare(CloneFlags::CLONE_NEWNS).during(stage, what)?;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).during(stage, what)?;
        let empty = self.containers.lower_point();
        fs::create_dir_all(&empty).during(stage, what)?;
        mount(Some("none"), &empty, Some("tmpfs"), MsFlags::empty(), Some("size=4k")).during(stage, what)?;
        chdir(&empty).during(stage, what)?;
        pivot_root(".", ".").during(stage, what)?;
        umount2(".", MntFlags::MNT_DETACH).during(stage, what)?;
        chdir("/").during(stage, what)?;
        sys::process::set_dumpable(false).during(stage, what)?;
        Ok(fence)
    }
}

fn tell(socket: &OwnedFd, done: &Staged<()>) {
    let text = match done {
        Ok(()) => READY.to_vec(),
        Err(failure) => serde_json::to_vec(failure).unwrap_or_default(),
    };
    let _ = sys::fd::send_with_fds(socket.as_fd(), &text, &[]); // gone: nobody is left to tell
}

fn hear(socket: &OwnedFd, otherwise: &str) -> Staged<()> {
    let mut text = vec![0; MAX_MESSAGE_BYTES];
    let (length, _) = sys::fd::receive_with_fds(socket.as_fd(), &mut text, MsgFlags::empty())
        .during(Stage::Namespaces, || otherwise.to_owned())?;
    match &text[..length] {
        READY => Ok(()),
        said => {
            Err(serde_json::from_slice(said).unwrap_or_else(|_| Failure::plain(Stage::Namespaces, otherwise)))
        }
    }
}

/// The maps of the user namespace that this process is in.
fn current_maps() -> Staged<IdMaps> {
    let read = |file: &str| {
        let path = format!("/proc/self/{file}");
        let text = fs::read_to_string(&path).during(Stage::Namespaces, || format!("cannot read {path}"))?;
        let extents = text.lines().filter_map(|line| {
            let mut fields = line.split_ascii_whitespace().map(str::parse);
            Some((fields.next()?.ok()?, fields.next()?.ok()?, fields.next()?.ok()?))
        });
        Ok::<Vec<_>, Failure>(extents.collect())
    };
    let (uids, gids) = (read("uid_map")?, read("gid_map")?);
    let single = |map: &[(u32, u32, u32)]| matches!(map, [(_, _, 1)]);
    let method = match single(&uids) {
        true => Method::SingleId { reason: "the namespace that this runs in has one id".to_owned() },
        false => Method::Direct,
    };
    Ok(IdMaps { uids, gids, method })
}

fn open_directory(path: &Path) -> Staged<OwnedFd> {
    open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .during(Stage::Mounts, || format!("cannot open {}", path.display()))
}

/// Something of hostel's that is mounted in this namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// The image's or container's name, as it was given.
    pub name: String,
    /// Where.
    pub point: PathBuf,
}

/// What is mounted by [`Mounter`] in this mount namespace, in the order in which it was.
///
/// # Errors
/// The mount table cannot be read.
pub fn mounted() -> Staged<Vec<Mounted>> {
    let found = table()?.into_iter().filter_map(|line| {
        let name = line.source.strip_prefix(SOURCE.as_bytes())?;
        Some(Mounted { name: String::from_utf8_lossy(name).into_owned(), point: line.point })
    });
    Ok(found.collect())
}

/// Takes a mount away; `lazily` also one that is in use. A directory that was made for it goes too.
///
/// # Errors
/// As umount2(2): EBUSY while it is used, EPERM outside the namespace that mounted it.
pub fn unmount(containers: &Containers, mounted: &Mounted, lazily: bool) -> Staged<()> {
    let flags = if lazily { MntFlags::MNT_DETACH } else { MntFlags::UMOUNT_NOFOLLOW };
    umount2(&mounted.point, flags)
        .during(Stage::Mounts, || format!("cannot unmount {}", mounted.point.display()))
        .map_err(|failure| match failure.errno {
            libc::EBUSY => failure
                .hint("something uses it (a shell's directory, an open file): leave it, or use --force"),
            libc::EPERM => failure.hint("only the namespace that it was mounted in can unmount it"),
            _ => failure,
        })?;
    let places = fs::canonicalize(containers.root_point()).unwrap_or_default();
    if mounted.point.parent() == Some(&places) {
        let _ = fs::remove_dir(&mounted.point); // covered by another mount of its name: that one needs it
    }
    Ok(())
}

struct Line {
    source: Vec<u8>,
    point: PathBuf,
}

/// /proc/self/mountinfo (proc_pid_mountinfo(5)).
fn table() -> Staged<Vec<Line>> {
    let text = fs::read("/proc/self/mountinfo")
        .during(Stage::Mounts, || "cannot read /proc/self/mountinfo".into())?;
    let lines = text.split(|byte| *byte == b'\n').filter_map(|line| {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let dash = fields.iter().position(|field| *field == b"-")?;
        let point = std::ffi::OsString::from_vec(unescape(fields.get(4)?));
        Some(Line { source: unescape(fields.get(dash + 2)?), point: point.into() })
    });
    Ok(lines.collect())
}

/// The kernel writes blanks and backslashes as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, more)) = rest.split_first() {
        let octal = |digits: &[u8]| {
            digits.iter().try_fold(0_u8, |sum, digit| {
                sum.checked_mul(8)?.checked_add(digit.checked_sub(b'0').filter(|digit| *digit < 8)?)
            })
        };
        match (first, more.get(..3).and_then(octal)) {
            (b'\\', Some(byte)) => {
                out.push(byte);
                rest = &more[3..];
            }
            _ => {
                out.push(*first);
                rest = more;
            }
        }
    }
    out
}

/// Whether this process may mount here.
#[must_use]
pub fn may_mount() -> bool {
    caps::has_cap(None, caps::CapSet::Effective, caps::Capability::CAP_SYS_ADMIN).unwrap_or(false)
}

/// The descriptors that are open now, without stdio.
#[must_use]
pub fn open_descriptors() -> Vec<RawFd> {
    let names = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let numbers: Vec<RawFd> =
        names.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(|fd| *fd > 2).collect();
    // The directory's own is in the list, and closed.
    numbers.into_iter().filter(|fd| Path::new(&format!("/proc/self/fd/{fd}")).exists()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_is_read_as_the_kernel_writes_it() {
        for (field, expected) in [
            ("/a\\040b", "/a b"),
            ("\\134\\011", "\\\t"),
            ("plain", "plain"),
            ("\\09", "\\09"),
            ("\\777", "\\777"),
            ("\\", "\\"),
        ] {
            assert_eq!(unescape(field.as_bytes()), expected.as_bytes());
        }
    }
}
