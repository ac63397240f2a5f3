//! The first process of a container that shares another container's network.
//!
//! A network namespace belongs to the user namespace it was made in, and only who is inside that one
//! may enter it. So both are shared: a helper enters them, makes the container's first process in
//! all the namespaces that are its own, as a child of the helper's parent (CLONE_PARENT), and ends.

use std::os::fd::{AsFd as _, BorrowedFd};

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::MsgFlags;
use nix::unistd::Pid;

use super::{Context as _, Failure, Stage, Staged};
use crate::sys;
use crate::sys::process::{Child, Fork};

/// What is shared with the other container.
const SHARED: CloneFlags = CloneFlags::CLONE_NEWUSER.union(CloneFlags::CLONE_NEWNET);

/// A failure as JSON fits well.
const MESSAGE_BYTES_MAX: usize = 16 << 10;

/// As [`sys::process::clone`], in the user and network namespace of the process `peer`, and in new ones of
/// the other kinds in `namespaces`.
///
/// # Errors
/// The other container's end, above all.
pub fn clone_beside(peer: BorrowedFd<'_>, namespaces: CloneFlags) -> Staged<Fork> {
    let (ours, theirs) =
        sys::fd::seqpacket_pair().during(Stage::Namespaces, || "cannot make a socket".into())?;
    let helper =
        match sys::process::clone(0, false).during(Stage::Namespaces, || "cannot make a process".into())? {
            Fork::Parent(helper) => helper,
            Fork::Child => {
                let made = enter(peer, namespaces);
                return match made {
                    // The container's first process: it goes on where the caller's child would.
                    Ok(Fork::Child) => Ok(Fork::Child),
                    Ok(Fork::Parent(child)) => {
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
            Ok(Fork::Parent(Child { pid: Pid::from_raw(i32::from_ne_bytes(pid)), pidfd }))
        }
        _ => Err(serde_json::from_slice(message).unwrap_or_else(|_| {
            Failure::plain(Stage::Namespaces, "the process that was to join the other container was killed")
        })),
    }
}

fn enter(peer: BorrowedFd<'_>, namespaces: CloneFlags) -> Staged<Fork> {
    setns(peer, SHARED)
        .during(Stage::Network, || "cannot join the other container's network".into())
        .map_err(|failure| failure.hint("it may have ended just now"))?;
    let fork = sys::process::clone((namespaces - SHARED).bits() as u64, true)
        .during(Stage::Namespaces, || "cannot make the container's namespaces".into())?;
    if let Fork::Child = fork {
        // Entering a user namespace took the process its own files in /proc, which set-up writes to. Nobody in
        // the other container can trace it: it is in another pid namespace and has all capabilities.
        sys::process::set_dumpable(true)
            .during(Stage::Namespaces, || "cannot use the process's own files in /proc".into())?;
    }
    Ok(fork)
}
