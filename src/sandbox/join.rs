//! The first process of a container that shares namespaces of others.
//!
//! A namespace belongs to the user namespace it was made in, and only who is inside that one may enter it. So
//! that is shared in any case: a helper enters it and what else is shared, makes the container's first process
//! in all the namespaces that are its own, as a child of the helper's parent (CLONE_PARENT), and ends.

use std::fs;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::MsgFlags;
use nix::sys::stat::{Mode, fstat};
use nix::unistd::Pid;

use super::namespaces::Namespaces;
use super::{Context as _, Failure, Stage, Staged};
use crate::sys;
use crate::sys::process::{Child, Fork};

/// A container of which something is joined.
#[derive(Debug)]
pub struct Joined {
    /// All its namespaces.
    pub namespaces: Namespaces,
    /// Which of them, besides the user namespace.
    pub kinds: CloneFlags,
}

/// A failure as JSON fits well.
const MESSAGE_BYTES_MAX: usize = 16 << 10;

/// As [`sys::process::clone`], in the user namespace and the given other ones of the containers in `peers`, and
/// in new ones of the other kinds in `namespaces`. In the child: with the mount of /dev/shm, where the IPC
/// namespace is shared.
///
/// # Errors
/// The other container's end, above all.
pub fn clone_beside(peers: &[Joined], namespaces: CloneFlags) -> Staged<(Fork, Option<OwnedFd>)> {
    let (ours, theirs) =
        sys::fd::seqpacket_pair().during(Stage::Namespaces, || "cannot make a socket".into())?;
    let helper =
        match sys::process::clone(0, false).during(Stage::Namespaces, || "cannot make a process".into())? {
            Fork::Parent(helper) => helper,
            Fork::Child => {
                let made = enter(peers, namespaces);
                return match made {
                    // The container's first process: it goes on where the caller's child would.
                    Ok((Fork::Child, memory)) => Ok((Fork::Child, memory)),
                    Ok((Fork::Parent(child), _)) => {
                        let pid = child.pid.as_raw().to_ne_bytes();
                        // The parent may be gone: then the container ends with it.
                        let _ = sys::fd::send_with_fds(theirs.as_fd(), &pid, &[child.pidfd.as_fd()]);
                        sys::process::exit_now(0)
                    }
                    Err(failure) => {
                        if let Ok(text) = serde_json::to_vec(&failure) {
                            let _ = sys::fd::send_with_fds(theirs.as_fd(), &text, &[]); // as above
                        }
                        sys::process::exit_now(1)
                    }
                };
            }
        };
    drop(theirs);
    let mut buffer = vec![0; MESSAGE_BYTES_MAX];
    let received = sys::fd::receive_with_fds(ours.as_fd(), &mut buffer, MsgFlags::empty());
    // It has said all that it says and ends by itself.
    let _ = sys::process::wait_for(helper.pid);
    let (length, fds) =
        received.during(Stage::Namespaces, || "cannot hear from the process that joins".into())?;
    let message = &buffer[..length];
    match (<[u8; 4]>::try_from(message), fds.into_iter().next()) {
        (Ok(pid), Some(pidfd)) => {
            Ok((Fork::Parent(Child { pid: Pid::from_raw(i32::from_ne_bytes(pid)), pidfd }), None))
        }
        _ => Err(serde_json::from_slice(message).unwrap_or_else(|_| {
            Failure::plain(Stage::Namespaces, "the process that was to join the other container was killed")
        })),
    }
}

fn enter(peers: &[Joined], namespaces: CloneFlags) -> Staged<(Fork, Option<OwnedFd>)> {
    let user = CloneFlags::CLONE_NEWUSER;
    let mut shared = user;
    let mut memory = None;
    for peer in peers {
        let joined = |flags: CloneFlags| {
            peer.namespaces
                .enter(flags)
                .during(Stage::Network, || format!("cannot join the other container's {}", words(flags)))
                .map_err(|failure| failure.hint("it may have ended just now"))
        };
        if shared == user {
            joined(user)?;
        }
        // From the first on this process has every capability over all of them.
        if peer.kinds.contains(CloneFlags::CLONE_NEWIPC) {
            memory = Some(shared_memory(&peer.namespaces)?);
        }
        let others = peer.kinds - user;
        if !others.is_empty() {
            joined(others)?;
        }
        shared |= peer.kinds;
    }
    let fork = sys::process::clone((namespaces - shared).bits() as u64, true)
        .during(Stage::Namespaces, || "cannot make the container's namespaces".into())?;
    if let Fork::Child = fork {
        // Entering a user namespace took the process its own files in /proc, which set-up writes to. Nobody in
        // the other container can trace it: it has all capabilities, and they have not.
        sys::process::set_dumpable(true)
            .during(Stage::Namespaces, || "cannot use the process's own files in /proc".into())?;
    }
    Ok((fork, memory))
}

fn words(namespaces: CloneFlags) -> String {
    [
        (CloneFlags::CLONE_NEWUSER, "user namespace"),
        (CloneFlags::CLONE_NEWNET, "network"),
        (CloneFlags::CLONE_NEWPID, "process ids"),
        (CloneFlags::CLONE_NEWIPC, "IPC"),
        (CloneFlags::CLONE_NEWUTS, "host name"),
    ]
    .into_iter()
    .filter(|(flag, _)| namespaces.contains(*flag))
    .map(|(_, word)| word)
    .collect::<Vec<_>>()
    .join(" and ")
}

/// A mount of the other container's /dev/shm. Who enters a mount namespace cannot come back: another process
/// does, and hands it out.
fn shared_memory(peer: &Namespaces) -> Staged<OwnedFd> {
    let what = || "cannot share the other container's /dev/shm".to_owned();
    let (ours, theirs) = sys::fd::seqpacket_pair().during(Stage::Mounts, what)?;
    match sys::process::clone(0, false).during(Stage::Mounts, what)? {
        Fork::Child => {
            let made = (|| {
                peer.enter(CloneFlags::CLONE_NEWNS)?;
                let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let shm = open("/dev/shm", flags, Mode::empty())?;
                let mount = sys::mount::clone_tree(shm.as_fd(), false)?;
                sys::fd::send_with_fds(theirs.as_fd(), &[0], &[mount.as_fd()])
            })();
            sys::process::exit_now(i32::from(made.is_err()))
        }
        Fork::Parent(child) => {
            drop(theirs);
            let mut byte = [0];
            let received = sys::fd::receive_with_fds(ours.as_fd(), &mut byte, MsgFlags::empty());
            let _ = sys::process::wait_for(child.pid); // it has said all that it says
            let (_, fds) = received.during(Stage::Mounts, what)?;
            fds.into_iter().next().ok_or_else(|| {
                Failure::plain(Stage::Mounts, what())
                    .hint("the other container has none (--ipc none), or it has just ended")
            })
        }
    }
}

/// How often [`end_all_in`] looks for processes; each look ends all that it finds.
const END_ROUNDS: u32 = 1_000;

/// Ends every process whose mount namespace is `mounts`: what a container leaves behind that has no pid
/// namespace of its own. Only who is in its user namespace may look, so a helper does.
///
/// # Errors
/// They start others faster than they can be ended.
pub fn end_all_in(mounts: BorrowedFd<'_>) -> Staged<()> {
    let what = || "cannot end the processes that the container has left behind".to_owned();
    match sys::process::clone(0, false).during(Stage::Namespaces, what)? {
        Fork::Child => {
            let ended = (|| {
                let wanted = fstat(mounts)?;
                let user = sys::process::owner_of_namespace(mounts)?;
                setns(&user, CloneFlags::CLONE_NEWUSER)?;
                let is_left = |pid: &i32| {
                    let found = fs::metadata(Path::new("/proc").join(pid.to_string()).join("ns/mnt"));
                    found.is_ok_and(|found| (found.dev(), found.ino()) == (wanted.st_dev, wanted.st_ino))
                };
                for _ in 0..END_ROUNDS {
                    let numbers = fs::read_dir("/proc").into_iter().flatten().flatten();
                    let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
                    let left: Vec<i32> = numbers.filter(is_left).collect();
                    if left.is_empty() {
                        return Ok(());
                    }
                    for pid in left {
                        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL); // gone is as good
                    }
                    std::thread::yield_now();
                }
                Err(nix::errno::Errno::EAGAIN)
            })();
            sys::process::exit_now(i32::from(ended.is_err()))
        }
        Fork::Parent(child) => {
            match sys::process::wait_for(child.pid).during(Stage::Namespaces, what)?.code() {
                0 => Ok(()),
                _ => Err(Failure::plain(Stage::Namespaces, what())),
            }
        }
    }
}
