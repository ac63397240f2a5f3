//! Namespaces that are made while the command still looks for its image.
//!
//! newuidmap(1) and newgidmap(1) take two milliseconds to write the maps of a process in a new user namespace,
//! a sixth of a start, and a network namespace takes the kernel half of one. They need nothing of what a start
//! finds out before its first process, so they are made beside that: by a process that only holds them. The
//! container's first process then enters them as it enters another container's ([`super::join`]).
//!
//! Whatever goes wrong here is left alone: the start makes its namespaces as if this had not been, and tells
//! what it meets.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use nix::sched::{CloneFlags, sched_getaffinity, sched_getcpu, sched_setaffinity, unshare};
use nix::sys::socket::MsgFlags;
use nix::unistd::Pid;

use super::idmap::{IdMaps, Method};
use super::join::Joined;
use super::namespaces::Namespaces;
use crate::sys;
use crate::sys::process::{Child, Fork};

/// Who makes the namespaces, and which.
#[derive(Debug)]
pub struct Ahead {
    maps: IdMaps,
    kinds: CloneFlags,
    socket: OwnedFd,
    maker: Child,
}

impl Ahead {
    /// Begins with a user namespace, and a network namespace where that is wanted, if the maps are of the kind
    /// that takes time. For a process with one thread.
    #[must_use]
    pub fn begin(maps: IdMaps, network: bool) -> Option<Self> {
        if !matches!(maps.method, Method::Helpers { .. }) {
            return None;
        }
        let mut kinds = CloneFlags::CLONE_NEWUSER;
        kinds.set(CloneFlags::CLONE_NEWNET, network);
        let (socket, theirs) = sys::fd::seqpacket_pair().ok()?;
        let own_cpu = sched_getcpu().ok();
        match sys::process::clone(0, false).ok()? {
            Fork::Parent(maker) => Some(Self { maps, kinds, socket, maker }),
            Fork::Child => {
                drop(socket);
                if leave_command(&theirs).is_err() {
                    sys::process::exit_now(1)
                }
                if let Some(cpu) = own_cpu {
                    leave_cpu(cpu);
                }
                sys::process::exit_now(i32::from(make(&maps, kinds, &theirs).is_none()))
            }
        }
    }

    /// The namespaces, as of a container of which nothing else is joined; `None` where other maps are wanted
    /// or fewer namespaces, or where they could not be made.
    #[must_use]
    pub fn take(self, maps: &IdMaps, namespaces: CloneFlags) -> Option<Joined> {
        if self.maps != *maps || !namespaces.contains(self.kinds) {
            return None;
        }
        let mut text = [0; 1 + 2 * size_of::<i32>()];
        let (length, files) =
            sys::fd::receive_with_fds(self.socket.as_fd(), &mut text, MsgFlags::empty()).ok()?;
        let namespaces = Namespaces::parse(text.get(1..length)?, files);
        Some(Joined { namespaces, kinds: self.kinds })
    }

    /// For the process that began, which has handed this on: waits for the maker's end.
    pub fn leave(self) {
        drop(self.socket);
        let _ = sys::process::wait_for(self.maker.pid); // it has nothing to say to its parent
    }
}

/// Lets go of what the command has open: whoever reads its output must not wait for a helper when it has ended.
fn leave_command(keep: &OwnedFd) -> io::Result<()> {
    sys::fd::close_all_except(&[keep.as_raw_fd()]);
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    (0..=2).try_for_each(|number| Ok(sys::fd::place_at(null.as_fd(), number)?))
}

/// Leaves a CPU to the command, which has work to do. The helpers inherit that; the scheduler alone was seen
/// to put one of them beside the command while another CPU was idle.
fn leave_cpu(cpu: usize) {
    let here = Pid::from_raw(0);
    // With no other CPU, or where it is refused, they share it.
    let _ = sched_getaffinity(here)
        .and_then(|mut cpus| cpus.unset(cpu).and_then(|()| sched_setaffinity(here, &cpus)));
}

/// In the maker: sends the namespaces once the maps are there.
fn make(maps: &IdMaps, kinds: CloneFlags, socket: &OwnedFd) -> Option<()> {
    let (ours, theirs) = sys::fd::seqpacket_pair().ok()?;
    let user = CloneFlags::CLONE_NEWUSER;
    let holder = match sys::process::clone(user.bits() as u64, false).ok()? {
        Fork::Parent(holder) => holder,
        Fork::Child => {
            drop(ours);
            // Beside the helpers: it has the rights already.
            let made = unshare(kinds - user).is_ok();
            if made && kinds.contains(CloneFlags::CLONE_NEWNET) {
                // The first process does it once more, which costs little then, and tells what is wrong.
                let _ = net::link::bring_up_loopback();
            }
            if made && nix::unistd::write(&theirs, &[0]).is_ok() {
                // Nothing is ever sent: it ends with the maker.
                let _ = nix::unistd::read(&theirs, &mut [0]);
            }
            sys::process::exit_now(0)
        }
    };
    drop(theirs);
    maps.begin(holder.pid).and_then(super::idmap::Writing::finish).ok()?;
    if nix::unistd::read(&ours, &mut [0]) != Ok(1) {
        return None;
    }
    let namespaces = Namespaces::of_process(holder.pid, kinds).ok()?;
    // Nobody may want them any more.
    namespaces.send(socket.as_fd(), 0).ok()
}
