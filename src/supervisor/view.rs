//! A container's files from the inside, for `cp` and `export`: with the container's root as "/".
//!
//! A child process does the work. Of a running container it enters the user and mount namespace, and
//! no other, so that no process in there can see it; of a stopped one it mounts the root as a start
//! would, in namespaces of its own, with a server that lives as long. Either way it holds no
//! descriptor but those that it is sent, is not dumpable, and executes nothing: neither the engine's
//! file nor a directory of the machine can be reached through it.
//!
//! While a stopped container is looked at this way its lock is held: it cannot be started meanwhile.

use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sched::CloneFlags;
use nix::sys::socket::MsgFlags;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

use super::changes::{last_state, recorded_maps, root_kind};
use super::client::Client;
use super::{Below, LaunchError, Saved, below, log, server};
use crate::plan::WriteMode;
use crate::sandbox::idmap::IdMaps;
use crate::sandbox::init::{self, RootKind, RootMount};
use crate::sandbox::rootfs::Root;
use crate::sandbox::{Context as _, Failure, Stage, Staged, copyup, mounts};
use crate::store::containers::{
    ContainerError, Containers, LOCK_ATTEMPTS, LOCK_WAIT, Lock, Record, State, Status, is_alive,
};
use crate::sys;
use crate::sys::process::{Child, Ended, Fork};

/// Bytes of a message: a path and what goes with it, or a failure, as JSON.
const MAX_MESSAGE_BYTES: usize = 16 << 10;

/// What of the container is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The root filesystem alone; what is mounted on it is not there.
    Root,
    /// With what is mounted: everything of a running container; binds and volumes of a stopped one.
    Mounted,
}

/// A child at work in a container.
#[derive(Debug)]
pub struct View {
    child: Option<Child>,
    server: Option<Child>,
    socket: OwnedFd,
    /// The server ends when this closes.
    _watch: Option<OwnedFd>,
    _lock: Option<Lock>,
}

/// What the child works with.
#[derive(Debug)]
pub struct Inside<'a> {
    /// The container's root.
    pub root: &'a Root,
    /// To the parent: what the work has to say. Seqpacket.
    pub parent: BorrowedFd<'a>,
}

impl Inside<'_> {
    /// Waits for what the command has to say.
    ///
    /// # Errors
    /// As recvmsg(2); that the command is gone.
    pub fn receive(&self) -> Staged<(Vec<u8>, Vec<OwnedFd>)> {
        let mut text = vec![0; MAX_MESSAGE_BYTES];
        let (length, fds) = sys::fd::receive_with_fds(self.parent, &mut text, MsgFlags::empty())
            .during(Stage::Namespaces, || "cannot hear from the command".into())?;
        if length == 0 {
            return Err(Failure::plain(Stage::Namespaces, "the command is gone"));
        }
        text.truncate(length);
        Ok((text, fds))
    }

    /// Tells the command something.
    ///
    /// # Errors
    /// As sendmsg(2).
    pub fn send(&self, text: &[u8]) -> Staged<()> {
        self.hand_over(text, &[])
    }

    /// Tells the command something, with descriptors.
    ///
    /// # Errors
    /// As sendmsg(2).
    pub fn hand_over(&self, text: &[u8], fds: &[BorrowedFd<'_>]) -> Staged<()> {
        sys::fd::send_with_fds(self.parent, text, fds)
            .during(Stage::Namespaces, || "the command is gone".into())
    }
}

impl View {
    /// Starts a child that does `work` with the container's root. Whatever descriptors the work needs
    /// are sent to it afterwards: it has no others, and nor has the server.
    ///
    /// # Errors
    /// The container cannot be entered, or its root cannot be mounted.
    pub fn start(
        containers: &Containers,
        record: &Record,
        saved: &Saved,
        scope: Scope,
        work: impl Fn(&Inside<'_>) -> Staged<()>,
    ) -> Result<Self, LaunchError> {
        let mut attempts = 0..LOCK_ATTEMPTS;
        // A keeper that is starting it or tidying up behind it holds the lock for moments.
        let lock = loop {
            let status = containers.status(&record.id)?;
            if let Status::Running(state) = &status {
                match Self::running(saved, state, scope, &work) {
                    Err(_) if !is_alive(state) && !attempts.is_empty() => {} // it has just ended
                    other => return other.map_err(LaunchError::from),
                }
            }
            match containers.lock(&record.id) {
                Err(ContainerError::Busy(_)) if attempts.next().is_some() => std::thread::sleep(LOCK_WAIT),
                other => break other?,
            }
        };
        // It may have been started and ended between the two.
        let status = containers.status(&record.id)?;
        let kind = root_kind(saved, last_state(&status));
        let undecided = saved.write_mode == WriteMode::Auto && last_state(&status).is_none();
        let stopped = |kind| Self::stopped(containers, record, saved, &status, kind, scope, &work);
        let (mut view, kind) = match stopped(kind) {
            Err(LaunchError::Failed(failure)) if failure.stage == Stage::Overlay && undecided => {
                (stopped(RootKind::Pure)?, RootKind::Pure)
            }
            other => (other?, kind),
        };
        if undecided {
            // What is written now, the first start has to read: it keeps the mode.
            let write_mode = kept_mode(kind);
            containers.replace_plan(&record.id, &Saved { write_mode, ..saved.clone() })?;
        }
        view._lock = Some(lock);
        Ok(view)
    }

    fn running(
        saved: &Saved,
        state: &State,
        scope: Scope,
        work: impl Fn(&Inside<'_>) -> Staged<()>,
    ) -> Staged<Self> {
        let stage = Stage::Namespaces;
        let gone = || "cannot enter the container: it is ending".to_owned();
        let found = Client::namespaces(state).during(stage, || "cannot ask the container's keeper".into())?;
        let namespaces = found.ok_or_else(|| Failure::plain(stage, gone()))?;
        let maps = recorded_maps(saved, Some(state));
        let (ours, theirs) = sys::fd::seqpacket_pair().during(stage, || "cannot make a socket".into())?;
        let fork = sys::process::clone(0, false).during(stage, || "cannot make a process".into())?;
        let child = match fork {
            Fork::Child => {
                let mut keep = namespaces.numbers();
                keep.push(theirs.as_raw_fd());
                finish(&theirs, || {
                    prepare(&keep)?;
                    let own = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS;
                    namespaces.enter(own).during(stage, gone)?;
                    become_root(&maps)?;
                    let root = open_root(Path::new("/"))?;
                    let root = match scope {
                        Scope::Mounted => root,
                        Scope::Root => sys::mount::clone_tree(root.as_fd(), false)
                            .during(stage, || "cannot look below the container's mounts".into())?,
                    };
                    ready(&theirs)?;
                    work(&Inside { root: &Root::new(root), parent: theirs.as_fd() })
                })
            }
            Fork::Parent(child) => child,
        };
        drop(theirs);
        let mut view = Self { child: Some(child), server: None, socket: ours, _watch: None, _lock: None };
        view.wait_until_ready()?;
        Ok(view)
    }

    fn stopped(
        containers: &Containers,
        record: &Record,
        saved: &Saved,
        status: &Status,
        kind: RootKind,
        scope: Scope,
        work: impl Fn(&Inside<'_>) -> Staged<()>,
    ) -> Result<Self, LaunchError> {
        let stage = Stage::Namespaces;
        let maps = recorded_maps(saved, last_state(status));
        let kept = maps.kept(); // not in the child, whose ids are others
        let Below { root_kind: kind, tree, filesystem, native } =
            below(containers, record, saved, kind, &maps)?;
        let fence = super::fence_paths(saved, kind, &record.local_dir);
        let pair = || sys::fd::seqpacket_pair().during(stage, || "cannot make a socket".into());
        let (ours, theirs) = pair()?;
        let (to_server, server_side) = pair()?;
        let (watch, watched) = pair()?;
        let fill = if matches!(status, Status::Created | Status::Starting) {
            super::volumes_to_fill(&containers.path(&record.id), &saved.plan)
        } else {
            Vec::new()
        };
        let namespaces = (CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS).bits() as u64;
        let child = match sys::process::clone(namespaces, false).map_err(super::no_namespaces)? {
            Fork::Child => {
                let keep = [to_server.as_raw_fd(), theirs.as_raw_fd()];
                finish(&theirs, || {
                    wait_for_maps(&theirs)?;
                    prepare(&keep)?;
                    become_root(&maps)?;
                    let root = init::mount_root(&RootMount {
                        lower_point: &containers.lower_point(),
                        root_point: &containers.root_point(),
                        native: native.as_deref(),
                        tree: tree.as_deref(),
                        local_dir: &record.local_dir,
                        root_kind: kind,
                        volatile: false,
                        ids: (maps.first_uid(), maps.first_gid()),
                        kept,
                        server: to_server.as_fd(),
                        source: None,
                    })?;
                    if scope == Scope::Mounted {
                        for (place, volume) in &fill {
                            root.as_kept(|| copyup::copy(&root, place, volume))?;
                        }
                        for mount in user_binds(saved) {
                            mounts::apply(&root, mount)?;
                        }
                    }
                    // Opened anew, so that it is the root with what has been mounted on it.
                    let root = Root::new(root.as_kept(|| open_root(&containers.root_point()))?);
                    ready(&theirs)?;
                    work(&Inside { root: &root, parent: theirs.as_fd() })
                })
            }
            Fork::Parent(child) => child,
        };
        drop((theirs, to_server));
        let mut view = Self { child: Some(child), server: None, socket: ours, _watch: None, _lock: None };
        let parts = server::Parts {
            filesystems: filesystem.into_iter().collect(),
            network: None,
            resolv_conf: None,
            init: server_side,
            keeper: watched,
            sources: Vec::new(),
            stdin: None,
            client: None,
            log: log::Target::Nowhere,
            fence,
        };
        view.server = Some(
            match sys::process::clone(0, false)
                .during(stage, || "cannot make the filesystem's server".into())?
            {
                Fork::Child => {
                    let _ = sys::process::set_parent_death_signal(libc::SIGKILL); // it also sees the socket close
                    server::run(parts)
                }
                Fork::Parent(server) => server,
            },
        );
        drop(parts);
        view._watch = Some(watch);
        if let Some(child) = &view.child {
            maps.begin(child.pid)?.finish()?;
            sys::fd::send_with_fds(view.socket.as_fd(), &[1], &[])
                .during(stage, || "the process that looks into the container is gone".into())?;
        }
        view.wait_until_ready()?;
        Ok(view)
    }

    /// Until the root is there, or the child has said why not.
    fn wait_until_ready(&mut self) -> Staged<()> {
        let (said, _) = self.hear()?.unwrap_or_default();
        if said == READY { Ok(()) } else { Err(why(&said, self.reap())) }
    }

    /// The next thing that the work has to say, with descriptors; None when it has ended.
    ///
    /// # Errors
    /// As recvmsg(2).
    pub fn hear(&self) -> Staged<Option<(Vec<u8>, Vec<OwnedFd>)>> {
        let mut text = vec![0; MAX_MESSAGE_BYTES];
        let (length, fds) = sys::fd::receive_with_fds(self.socket.as_fd(), &mut text, MsgFlags::empty())
            .during(Stage::Namespaces, || "cannot hear from the process in the container".into())?;
        text.truncate(length);
        Ok((length > 0).then_some((text, fds)))
    }

    /// Tells the work something.
    ///
    /// # Errors
    /// As sendmsg(2): EPIPE when it has ended.
    pub fn send(&self, text: &[u8], fds: &[BorrowedFd<'_>]) -> Staged<()> {
        sys::fd::send_with_fds(self.socket.as_fd(), text, fds)
            .during(Stage::Namespaces, || "the process in the container is gone".into())
    }

    /// Waits for the end of the work.
    ///
    /// # Errors
    /// What the work failed with.
    pub fn finish(mut self) -> Staged<()> {
        let mut last = Vec::new();
        while let Some((said, _)) = self.hear()? {
            last = said;
        }
        let ended = self.reap();
        if ended == Some(Ended::Exited(0)) { Ok(()) } else { Err(why(&last, ended)) }
    }

    /// Why the work ended: `said` is the last that was heard of it.
    #[must_use]
    pub fn failure(mut self, said: &[u8]) -> Failure {
        let ended = self.reap();
        why(said, ended)
    }

    fn reap(&mut self) -> Option<Ended> {
        let ended = self.child.take().and_then(|child| sys::process::wait_for(child.pid).ok());
        if let Some(server) = self.server.take() {
            // The mounts have gone with the child: it writes back what is left, and ends.
            let _ = sys::process::wait_for(server.pid);
        }
        ended
    }
}

impl Drop for View {
    fn drop(&mut self) {
        if let Some(child) = &self.child {
            let _ = sys::process::pidfd_send_signal(child.pidfd.as_fd(), libc::SIGKILL); // ended already
        }
        self.reap();
    }
}

/// The child's own word for its failure, or how it ended if it had none.
fn why(said: &[u8], ended: Option<Ended>) -> Failure {
    serde_json::from_slice(said).unwrap_or_else(|_| {
        Failure::plain(Stage::Namespaces, format!("the process in the container ended early ({ended:?})"))
    })
}

/// The write mode of a container whose root was made so.
pub(super) fn kept_mode(kind: RootKind) -> WriteMode {
    match kind {
        RootKind::Hybrid | RootKind::Materialised => WriteMode::Hybrid,
        RootKind::Pure => WriteMode::Pure,
        RootKind::Copy => WriteMode::Copy,
    }
}

/// Said once the root is there.
const READY: &[u8] = b"ready";

fn ready(parent: &OwnedFd) -> Staged<()> {
    sys::fd::send_with_fds(parent.as_fd(), READY, &[])
        .during(Stage::Namespaces, || "the command is gone".into())
}

/// Does the child's part and ends it.
fn finish(parent: &OwnedFd, work: impl FnOnce() -> Staged<()>) -> ! {
    let done = work();
    if let Err(failure) = &done
        && let Ok(text) = serde_json::to_vec(failure)
    {
        let _ = sys::fd::send_with_fds(parent.as_fd(), &text, &[]); // gone: nobody is left to tell
    }
    sys::process::exit_now(i32::from(done.is_err()))
}

fn wait_for_maps(parent: &OwnedFd) -> Staged<()> {
    let mut byte = [0_u8; 1];
    match nix::unistd::read(parent, &mut byte) {
        Ok(1) => Ok(()),
        Ok(_) => sys::process::exit_now(1), // the command is gone
        Err(errno) => Err(Failure::new(Stage::Namespaces, "cannot hear from the command", errno)),
    }
}

/// Before anything of the container can see this process: nothing of the machine's is left open.
fn prepare(keep: &[RawFd]) -> Staged<()> {
    sys::process::set_name(c"hostel-view");
    // A command that is killed is answered by nobody.
    let _ = sys::process::set_parent_death_signal(libc::SIGKILL);
    sys::fd::close_all_except(keep);
    let hide = || "cannot hide from other processes".to_owned();
    sys::process::set_dumpable(false).during(Stage::Namespaces, hide)?;
    nix::unistd::chdir("/").during(Stage::Namespaces, || "cannot change to /".into())?;
    umask(Mode::empty());
    Ok(())
}

fn become_root(maps: &IdMaps) -> Staged<()> {
    let what = || "cannot become the container's root".to_owned();
    let stage = Stage::Namespaces;
    if !maps.is_single() {
        setgroups(&[]).during(stage, what)?;
    }
    let (gid, uid) = (Gid::from_raw(maps.first_gid()), Uid::from_raw(maps.first_uid()));
    setresgid(gid, gid, gid).during(stage, what)?;
    sys::process::set_keep_capabilities(true).during(stage, what)?;
    setresuid(uid, uid, uid).during(stage, what)?;
    if let Ok(permitted) = caps::read(None, caps::CapSet::Permitted) {
        caps::set(None, caps::CapSet::Effective, &permitted)
            .map_err(|error| Failure::plain(stage, format!("{}: {error}", what())))?;
    }
    // The change of user may have made it dumpable again, and has cleared the signal.
    sys::process::set_dumpable(false).during(stage, || "cannot hide from other processes".into())?;
    let _ = sys::process::set_parent_death_signal(libc::SIGKILL);
    Ok(())
}

fn open_root(path: &Path) -> Staged<OwnedFd> {
    open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .during(Stage::Mounts, || "cannot open the container's root".into())
}

/// The binds and volumes that a person asked for.
pub fn user_binds(saved: &Saved) -> impl Iterator<Item = &oci_spec::runtime::Mount> {
    let plan = &saved.plan;
    plan.spec.mounts().iter().flatten().filter(|mount| {
        let is_volume = plan.volumes.iter().any(|volume| &volume.destination == mount.destination());
        let source = mount.source().as_deref();
        let is_bind = plan.bind_sources.iter().any(|bind| Some(bind.path.as_path()) == source);
        mount.typ().as_deref() == Some("bind") && (is_volume || is_bind)
    })
}

/// Whether a path, cleaned, lies in something that is mounted read-only, and Docker's word for it.
#[must_use]
pub fn read_only_at(saved: &Saved, path: &Path) -> Option<&'static str> {
    let on = user_binds(saved)
        .filter(|mount| path.starts_with(mount.destination()))
        .max_by_key(|mount| mount.destination().components().count());
    match on {
        Some(mount) if mount.options().iter().flatten().any(|option| option == "ro") => {
            Some("mounted volume is marked read-only")
        }
        Some(_) => None,
        None if saved.request.storage.read_only_root => Some("container rootfs is marked read-only"),
        None => None,
    }
}

/// A pipe for bulk data, with as much room as Linux gives.
///
/// # Errors
/// As pipe2(2).
pub fn wide_pipe() -> Result<(File, File), Errno> {
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    let _ = nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETPIPE_SZ(1 << 20)); // a smaller one works
    Ok((reader.into(), writer.into()))
}
