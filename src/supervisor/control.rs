//! The control protocol between a command and a container's keeper.
//!
//! One SOCK_SEQPACKET connection, one JSON object a message, descriptors beside it (SCM_RIGHTS).
//! The client's first message carries the version of the protocol; a keeper answers what it knows
//! and refuses the rest by name, so that a newer command can still list, stop, log and enter the
//! containers of an older keeper. New fields are optional, new requests new variants.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::socket::MsgFlags;
use oci_spec::runtime::Process;
use serde::{Deserialize, Serialize};

use crate::sandbox::Failure;
use crate::sys::fd::{receive_with_fds, send_with_fds};

/// Version of the protocol; raised only for what an older side would misunderstand.
pub const VERSION: u32 = 1;

/// The largest message: an `exec` with its environment. Larger than the kernel's default socket
/// buffer would carry in one packet is refused when sending.
pub const MAX_MESSAGE_BYTES: usize = 128 << 10;

/// What a command asks of a keeper.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Stream output, and input where wanted; one descriptor, a stream socket for [`super::stream`].
    Attach {
        /// Whether this client's input goes to the container.
        stdin: bool,
    },
    /// Run a process in the container. Descriptors: stdin, stdout, stderr and then the reading ends of
    /// stdout and stderr; or, with a terminal, a socket that gets its master.
    Exec(Box<ExecRequest>),
    /// Send a signal to the container's pid 1, or to the process that this connection's Exec started.
    Signal {
        /// Its number.
        signal: i32,
    },
    /// Send the signal, wait, then SIGKILL. Answered by [`Reply::Exited`].
    Stop {
        /// First signal.
        signal: i32,
        /// Seconds until SIGKILL; negative for never.
        timeout_s: i64,
    },
    /// Answer with [`Reply::Exited`] when the container ends.
    Wait,
    /// The container's namespaces, to enter them. Answered by [`Reply::Namespaces`].
    Namespaces,
    /// Hold up every process of the container.
    Pause,
    /// Let them go on.
    Unpause,
}

/// A process to run in the container.
#[derive(Debug, Serialize, Deserialize)]
pub struct ExecRequest {
    /// args, env, cwd, terminal, capabilities, rlimits, noNewPrivileges.
    pub process: Process,
    /// As in the plan; empty for the container's own.
    pub user: Option<String>,
    /// Whether to give it all capabilities and no seccomp filter.
    pub privileged: bool,
    /// Rows and columns of the terminal.
    pub size: Option<(u16, u16)>,
}

/// What a keeper answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Done.
    Ok,
    /// The container's or the exec's command runs.
    Started {
        /// Its pid on the machine.
        pid: i32,
    },
    /// It did not start.
    Failed(Failure),
    /// It has ended.
    Exited {
        /// Its exit code.
        code: u8,
    },
    /// The container's namespaces; their files come as descriptors, in this order.
    Namespaces {
        /// The kinds, as numbers of clone(2).
        kinds: Vec<i32>,
    },
    /// The request cannot be met.
    Refused(String),
}

/// Sends one message.
///
/// # Errors
/// EPIPE when the other side is gone; an error of kind InvalidInput for a message that is too long.
pub fn send<T: Serialize>(socket: impl AsFd, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let text = serde_json::to_vec(&Versioned { v: VERSION, message })?;
    if text.len() > MAX_MESSAGE_BYTES {
        let what = format!("the request is {} bytes long; at most {MAX_MESSAGE_BYTES} fit", text.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    Ok(send_with_fds(socket.as_fd(), &text, fds)?)
}

/// Receives one message; `None` when the other side closed.
///
/// # Errors
/// As recvmsg(2); InvalidData for what is not this protocol.
pub fn receive<T: for<'de> Deserialize<'de>>(socket: impl AsFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut buffer = vec![0; MAX_MESSAGE_BYTES];
    let (length, fds) = receive_with_fds(socket.as_fd(), &mut buffer, MsgFlags::empty())?;
    if length == 0 {
        return Ok(None);
    }
    let Versioned { v: _, message } = serde_json::from_slice(&buffer[..length])?;
    Ok(Some((message, fds)))
}

/// One message with the protocol's version.
#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    v: u32,
    message: T,
}
