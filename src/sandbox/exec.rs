//! Entering a running container (`exec`), and the small init that `--init` puts in front.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use nix::fcntl::{OFlag, open};
use nix::sched::CloneFlags;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Pid, Uid, setgroups, setresgid, setresuid, setsid};
use oci_spec::runtime::Process;

use super::namespaces::Namespaces;
use super::rootfs::Root;
use super::{Context as _, Failure, Stage, Staged, Stdio, command, credentials, devices, init};
use crate::plan::SeccompPlan;
use crate::sys;
use crate::sys::process::Fork;

/// What enters, and where.
#[derive(Debug)]
pub struct Join<'a> {
    /// The container's namespaces; those that it shares with the machine are not among them.
    pub namespaces: &'a Namespaces,
    /// The process to run.
    pub process: &'a Process,
    /// Its user, as asked for.
    pub user: &'a str,
    /// Groups added by `--group-add`.
    pub group_add: &'a [String],
    /// User and group of the container's set-up.
    pub ids: (u32, u32),
    /// Whether setgroups(2) is allowed.
    pub may_set_groups: bool,
    /// The compiled filter.
    pub seccomp: Option<&'a [libc::sock_filter]>,
    /// What it was compiled from.
    pub filter: &'a SeccompPlan,
    /// The program that executes the command.
    pub stub: OwnedFd,
    /// Stdio.
    pub stdio: Stdio,
    /// Gets the pid as text, the terminal's master, or a [`Failure`]; closes when the command runs.
    pub keeper: OwnedFd,
    /// Gets the terminal's master.
    pub client: Option<OwnedFd>,
}

/// Runs in a child of the keeper's: enters the namespaces, makes the process that will be the
/// keeper's own child (CLONE_PARENT, because only a child of an entered pid namespace is in it), and
/// ends.
pub fn run(join: &Join<'_>) -> ! {
    let result = enter(join).and_then(|()| {
        match sys::process::clone(0, true)
            .during(Stage::Namespaces, || "cannot make a process in the container".into())?
        {
            Fork::Parent(child) => {
                let _ = sys::fd::send_with_fds(join.keeper.as_fd(), &child.pid.as_raw().to_ne_bytes(), &[]);
                sys::process::exit_now(0)
            }
            Fork::Child => start(join).map(drop),
        }
    });
    if let Err(failure) = result
        && let Ok(text) = serde_json::to_vec(&failure)
    {
        // The keeper may be gone: then nobody is left to tell.
        let _ = sys::fd::send_with_fds(join.keeper.as_fd(), &text, &[]);
    }
    sys::process::exit_now(1)
}

fn enter(join: &Join<'_>) -> Staged<()> {
    let mut keep = join.namespaces.numbers();
    keep.extend([join.keeper.as_raw_fd(), join.stub.as_raw_fd()]);
    keep.extend(join.client.as_ref().map(std::os::fd::AsRawFd::as_raw_fd));
    if let Stdio::Pipes(pipes) = &join.stdio {
        keep.extend(pipes.iter().map(std::os::fd::AsRawFd::as_raw_fd));
    }
    sys::process::set_name(c"hostel-exec");
    sys::fd::close_all_except(&keep);
    join.namespaces.enter(CloneFlags::all()).during(Stage::Namespaces, || "cannot enter the container".into())
}

fn start(join: &Join<'_>) -> Staged<std::convert::Infallible> {
    let what = || "cannot become the container's root".to_owned();
    if join.may_set_groups {
        setgroups(&[]).during(Stage::Namespaces, what)?;
    }
    let (uid, gid) = (Uid::from_raw(join.ids.0), Gid::from_raw(join.ids.1));
    setresgid(gid, gid, gid).during(Stage::Namespaces, what)?;
    sys::process::set_keep_capabilities(true).during(Stage::Namespaces, what)?;
    setresuid(uid, uid, uid).during(Stage::Namespaces, what)?;
    // Changing the user made the process dumpable again or not, as suid_dumpable says: settle it.
    sys::process::set_dumpable(false)
        .during(Stage::Namespaces, || "cannot hide from other processes".into())?;
    setsid().during(Stage::Namespaces, || "cannot make a session".into())?;
    umask(Mode::from_bits_truncate(0o022));
    let root = open("/", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .during(Stage::Mounts, || "cannot open the container's root".into())?;
    let root = Root::new(root);
    let user = command::resolve_user(&root, join.user, join.group_add)?;
    let terminal = match (&join.stdio, &join.client) {
        (Stdio::Terminal { size }, Some(client)) => {
            let (master, peer) = devices::open_terminal(&root, false, user.uid)?;
            if let Some((rows, columns)) = size {
                let _ = sys::terminal::set_size(master.as_fd(), *rows, *columns); // cosmetic
            }
            sys::fd::send_with_fds(client.as_fd(), &[init::message::TERMINAL], &[master.as_fd()])
                .during(Stage::Credentials, || "the client is gone".into())?;
            sys::fd::send_with_fds(join.keeper.as_fd(), &[init::message::TERMINAL], &[master.as_fd()])
                .during(Stage::Credentials, || "the container's supervisor is gone".into())?;
            Some(peer)
        }
        _ => None,
    };
    command::enter_directory(join.process.cwd())?;
    init::attach_stdio(&join.stdio, terminal.as_ref())?;
    credentials::set_limits(join.process)?;
    credentials::leave_keyring(join.filter)?;
    credentials::become_user(join.process, &user, join.may_set_groups, join.seccomp)?;
    sys::process::set_dumpable(false)
        .during(Stage::Credentials, || "cannot hide from other processes".into())?;
    let ready = command::prepare(join.process, &user.home)?;
    sys::fault::point("exec-ready");
    sys::process::reset_signals();
    Err(ready.execute(join.stub.as_fd(), join.keeper.as_fd()))
}

/// `--init`: stays as pid 1, passes signals on to the command, reaps what is orphaned, and ends with
/// the command's exit code.
#[must_use]
pub fn run_as_init(ready: &command::Ready, stub: BorrowedFd<'_>, keeper: BorrowedFd<'_>) -> Failure {
    let all = SigSet::all();
    if let Err(errno) = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&all), None) {
        return Failure::new(Stage::Credentials, "cannot block signals", errno);
    }
    let child = match spawn_child(ready, stub, keeper) {
        Ok(child) => child,
        Err(failure) => return failure,
    };
    // What ps shows inside is not how the engine was called.
    let _ = sys::process::set_title(&format!("hostel-init -- {}", ready.words())); // cosmetic on failure
    // The child reports to the keeper by itself; the keeper sees its socket close once both ends of
    // it are closed, ours here and the child's at its exec.
    sys::fd::close_all_except(&[]);
    for fd in 0..=2 {
        let _ = nix::unistd::close(fd); // the command has its own; keeping ours would hold pipes open
    }
    loop {
        let Ok(signal) = all.wait() else { continue };
        if signal != Signal::SIGCHLD {
            let _ = nix::sys::signal::kill(child, signal); // gone: its end is about to be reaped
            continue;
        }
        while let Ok(Some((pid, ended))) = sys::process::reap_any() {
            if pid == child {
                sys::process::exit_now(i32::from(ended.code()));
            }
        }
    }
}

fn spawn_child(ready: &command::Ready, stub: BorrowedFd<'_>, keeper: BorrowedFd<'_>) -> Staged<Pid> {
    let what = || "cannot start the command below init".to_owned();
    match sys::process::fork().during(Stage::Credentials, what)? {
        nix::unistd::ForkResult::Parent { child } => Ok(child),
        nix::unistd::ForkResult::Child => {
            // A process group of its own that owns the terminal, if there is one: what job control expects.
            let _ = nix::unistd::setpgid(Pid::from_raw(0), Pid::from_raw(0));
            let _ = sys::terminal::take_foreground(0);
            sys::process::reset_signals();
            let failure = ready.execute(stub, keeper);
            if let Ok(text) = serde_json::to_vec(&failure) {
                let _ = sys::fd::send_with_fds(keeper, &text, &[]); // the keeper is gone then
            }
            sys::process::exit_now(127)
        }
    }
}

/// Which of a container's namespaces are its own.
#[must_use]
pub fn namespaces(spec: &oci_spec::runtime::Spec) -> CloneFlags {
    use oci_spec::runtime::LinuxNamespaceType as Kind;
    let mut flags = CloneFlags::CLONE_NEWUSER;
    let list = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    for namespace in list.into_iter().flatten() {
        flags |= match namespace.typ() {
            Kind::Mount => CloneFlags::CLONE_NEWNS,
            Kind::Pid => CloneFlags::CLONE_NEWPID,
            Kind::Network => CloneFlags::CLONE_NEWNET,
            Kind::Ipc => CloneFlags::CLONE_NEWIPC,
            Kind::Uts => CloneFlags::CLONE_NEWUTS,
            Kind::Cgroup => CloneFlags::CLONE_NEWCGROUP,
            Kind::User | Kind::Time => CloneFlags::empty(),
        };
    }
    flags
}
