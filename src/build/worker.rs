//! A step's own process.
//!
//! Containers are started from processes with one thread, and several steps may run at once: so each
//! step is a child of the build, which itself stays single-threaded. The child speaks frames: what the
//! step prints, and at last what it gave. It dies with the build.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};

use serde::{Deserialize, Serialize};

use super::error::Problem;
use crate::id::Digest;
use crate::sys;
use crate::sys::process::{Child, Fork};

/// Bytes of one frame: what a keeper's stream gives at once.
const MAX_FRAME_BYTES: usize = 1 << 20;
const HEADER: usize = 5;

/// What a step gave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Given {
    /// The layer; none where nothing changed.
    pub(super) layer: Option<Digest>,
    pub(super) bytes: u64,
}

/// What a step's process says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// It printed; on stderr?
    Output { is_error: bool, bytes: Vec<u8> },
    /// It is done.
    Done(Given),
    /// It failed.
    Failed(Problem),
}

/// The child's side.
pub(super) struct Mouth {
    pipe: File,
}

impl Mouth {
    fn send(&mut self, kind: u8, payload: &[u8]) -> io::Result<()> {
        for part in payload.chunks(MAX_FRAME_BYTES) {
            let mut frame = Vec::with_capacity(HEADER + part.len());
            frame.push(kind);
            frame.extend((part.len() as u32).to_le_bytes());
            frame.extend(part);
            self.pipe.write_all(&frame)?;
        }
        Ok(())
    }

    /// Passes on what the step printed.
    pub(super) fn output(&mut self, is_error: bool, bytes: &[u8]) -> io::Result<()> {
        self.send(u8::from(is_error), bytes)
    }

    pub(super) fn done(&mut self, given: &Given) -> io::Result<()> {
        self.send(2, &serde_json::to_vec(given)?)
    }
}

/// The build's side.
#[derive(Debug)]
pub(super) struct Worker {
    pipe: File,
    child: Child,
    buffer: Vec<u8>,
}

impl Worker {
    /// Forks a child that does `work`; what it says after [`Mouth::done`] is tidying up.
    pub(super) fn start(work: impl FnOnce(&mut Mouth) -> Result<(), Problem>) -> Result<Self, Problem> {
        let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(io::Error::from)?;
        let parent = nix::unistd::getpid();
        match sys::process::clone(0, false).map_err(io::Error::from)? {
            Fork::Child => {
                drop(reader);
                let _ = sys::process::set_parent_death_signal(libc::SIGKILL); // checked right below
                if nix::unistd::getppid() != parent {
                    sys::process::exit_now(1);
                }
                sys::process::set_name(c"hostel-step");
                sys::process::ignore_sigpipe();
                let mut mouth = Mouth { pipe: writer.into() };
                let done = work(&mut mouth);
                if let Err(problem) = &done {
                    let text = problem.to_string();
                    let end = text.floor_char_boundary(MAX_FRAME_BYTES);
                    let _ = mouth.send(3, &text.as_bytes()[..end]); // a build that is gone needs no telling
                }
                sys::process::exit_now(i32::from(done.is_err()))
            }
            Fork::Parent(child) => Ok(Self { pipe: reader.into(), child, buffer: Vec::new() }),
        }
    }

    /// Reads what there is to read; waits where there is nothing.
    pub(super) fn hear(&mut self) -> Result<Vec<Said>, Problem> {
        let mut chunk = vec![0; 64 << 10];
        let count = match self.pipe.read(&mut chunk) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(Vec::new()),
            other => other?,
        };
        if count == 0 {
            return Err(Problem::new("the step's process ended early"));
        }
        self.buffer.extend_from_slice(&chunk[..count]);
        let mut said = Vec::new();
        while let Some((header, rest)) = self.buffer.split_first_chunk::<HEADER>() {
            let [kind, length @ ..] = *header;
            let length = u32::from_le_bytes(length) as usize;
            if length > MAX_FRAME_BYTES {
                return Err(Problem::new("the step's process does not speak as it should"));
            }
            let Some(payload) = rest.get(..length) else { break };
            said.push(match kind {
                0 | 1 => Said::Output { is_error: kind == 1, bytes: payload.to_vec() },
                2 => Said::Done(serde_json::from_slice(payload).map_err(Problem::new)?),
                _ => Said::Failed(Problem::new(String::from_utf8_lossy(payload))),
            });
            self.buffer.drain(..HEADER + length);
        }
        Ok(said)
    }

    /// Ends the child, and with it the step's container.
    pub(super) fn kill(&self) {
        let _ = sys::process::pidfd_send_signal(self.child.pidfd.as_fd(), libc::SIGKILL); // it may be gone
    }

    /// Waits for its end.
    pub(super) fn wait(self) {
        let _ = sys::process::wait_for(self.child.pid); // ours; nothing else waits for it
    }
}

impl AsFd for Worker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}
