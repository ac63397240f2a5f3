//! A short-lived child that reads, for its parent, what the parent may not.
//!
//! What the kernel's overlay keeps of a container belongs to the container's own users, behind modes
//! that may close it to everybody. The child enters a user namespace with the container's id maps, as
//! its root, and hands on what it reads through a pipe. It executes nothing and is forked while the
//! parent has one thread. The pipe's end is good only when the child's was: [`Reader`] gives the
//! child's failure as an error instead of an end.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd as _, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::MsgFlags;
use nix::unistd::{Gid, Uid, pipe2, setresgid, setresuid};

use crate::sandbox::idmap::IdMaps;
use crate::sandbox::{Context as _, Failure, Stage, Staged};
use crate::sys;
use crate::sys::process::{Child, Ended, Fork};

/// Bytes that may wait in the pipe: what Linux allows without privilege.
const PIPE_BYTES: i32 = 1 << 20;
/// Bytes of a failure's text.
const MAX_FAILURE_BYTES: usize = 8 << 10;

/// What a child reads.
#[derive(Debug)]
pub struct Reader {
    pipe: File,
    failure: OwnedFd,
    child: Option<Child>,
}

impl Reader {
    /// Starts a child that writes what `work` reads; in a user namespace where `maps` are given.
    ///
    /// # Errors
    /// No child, or no user namespace, can be made.
    pub fn start(maps: Option<&IdMaps>, work: impl FnOnce(File) -> Result<(), String>) -> Staged<Self> {
        let stage = Stage::Namespaces;
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC).during(stage, || "cannot make a pipe".into())?;
        // Fewer wake-ups; a smaller pipe works.
        let _ = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
        let (ours, theirs) = sys::fd::seqpacket_pair().during(stage, || "cannot make a socket".into())?;
        let namespaces = if maps.is_some() { libc::CLONE_NEWUSER as u64 } else { 0 };
        let fork = sys::process::clone(namespaces, false).map_err(super::no_namespaces)?;
        let child = match fork {
            Fork::Child => {
                drop((reader, ours));
                sys::process::set_name(c"hostel-reader");
                // A parent that is gone reads no more.
                let _ = sys::process::set_parent_death_signal(libc::SIGKILL);
                let ready = maps.map_or(Ok(()), |maps| enter(&theirs, maps));
                let done = ready.and_then(|()| work(File::from(writer)));
                if let Err(text) = &done {
                    let end = text.floor_char_boundary(MAX_FAILURE_BYTES);
                    let _ = sys::fd::send_with_fds(theirs.as_fd(), &text.as_bytes()[..end], &[]); // told or not, it failed
                }
                sys::process::exit_now(i32::from(done.is_err()))
            }
            Fork::Parent(child) => child,
        };
        drop((writer, theirs));
        let reader = Self { pipe: reader.into(), failure: ours, child: Some(child) };
        if let (Some(maps), Some(child)) = (maps, &reader.child) {
            maps.begin(child.pid)?.finish()?;
            sys::fd::send_with_fds(reader.failure.as_fd(), &[1], &[])
                .during(stage, || "the reading process is gone".into())?;
        }
        Ok(reader)
    }

    /// How the child ended; asked once.
    fn outcome(&mut self) -> io::Result<()> {
        let Some(child) = self.child.take() else { return Ok(()) };
        let mut text = vec![0; MAX_FAILURE_BYTES];
        let said = sys::fd::receive_with_fds(self.failure.as_fd(), &mut text, MsgFlags::empty());
        match (sys::process::wait_for(child.pid)?, said) {
            (Ended::Exited(0), _) => Ok(()),
            (_, Ok((length, _))) if length > 0 => {
                Err(io::Error::other(String::from_utf8_lossy(&text[..length]).into_owned()))
            }
            (ended, _) => Err(io::Error::other(format!("the reading process ended early ({ended:?})"))),
        }
    }
}

/// Waits until the maps are there and becomes the namespace's root.
fn enter(parent: &OwnedFd, maps: &IdMaps) -> Result<(), String> {
    let mut byte = [0_u8; 1];
    if nix::unistd::read(parent, &mut byte) != Ok(1) {
        return Err("the id maps were not written".to_owned());
    }
    let (gid, uid) = (Gid::from_raw(maps.first_gid()), Uid::from_raw(maps.first_uid()));
    let become_root = || {
        setresgid(gid, gid, gid)?;
        sys::process::set_keep_capabilities(true)?;
        setresuid(uid, uid, uid)
    };
    become_root().map_err(|errno| format!("cannot become the container's root: {}", errno.desc()))?;
    if let Ok(permitted) = caps::read(None, caps::CapSet::Permitted) {
        caps::set(None, caps::CapSet::Effective, &permitted)
            .map_err(|error| format!("cannot use the namespace's capabilities: {error}"))?;
    }
    sys::process::set_dumpable(false).map_err(|errno| format!("cannot hide: {}", errno.desc()))
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.pipe.read(buffer)? {
            0 if !buffer.is_empty() => self.outcome().map(|()| 0),
            count => Ok(count),
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if let Some(child) = self.child.take() {
            // Nobody wants the rest.
            let _ = sys::process::pidfd_send_signal(child.pidfd.as_fd(), libc::SIGKILL);
            let _ = sys::process::wait_for(child.pid);
        }
    }
}

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> Self {
        Self::other(failure)
    }
}
