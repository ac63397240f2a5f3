//! A connection: the handshake, the threads that read requests, and the replies.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::uio::writev;

use super::wire::{self, Body, Header, Init, InitReply, OUT_HEADER, opcode};
use crate::mount::MAX_REQUEST_BYTES;
use crate::serve::MAX_BACKGROUND;
use crate::serve::backend::Answer;

/// Room for a request of the largest size with all that stands before its data.
const BUFFER_BYTES: usize = MAX_REQUEST_BYTES as usize + 4096;

/// The first version in which everything has the form that is read here (Linux 4.20; the kernels
/// this crate works on are far newer).
const OLDEST_MINOR: u32 = 28;

/// How long the thread whose turn it is looks for the next request before it sleeps. A program
/// that works on files sends one request after the other, each a few microseconds after the
/// answer to the last; being woken takes several times as long, on the program's bill.
const LOOK: Duration = Duration::from_micros(30);

/// Answers one request. Whatever it says, the kernel gets one answer.
pub(super) trait Handler: Send + Sync + 'static {
    /// The capabilities to be used, of those that the kernel offers.
    fn capabilities(&self, offered: u64) -> u64;

    /// Whether any request may take for ever, as a look at a dead NFS server does. Else a request
    /// that may take long says so ([`pass`]).
    fn may_hang(&self) -> bool;

    fn handle(&self, header: Header, body: Body<'_>, reply: Reply<'_>);
}

/// Answers requests until the filesystem is unmounted or the connection aborted.
pub(super) fn run<H: Handler>(handler: H, device: OwnedFd, threads: usize) -> io::Result<()> {
    handshake(&handler, device.as_fd())?;
    let turn = if handler.may_hang() { None } else { Some(Arc::new(Turn::default())) };
    if turn.is_some() {
        set_nonblocking(device.as_fd())?;
    }
    let shared = Arc::new((handler, device, turn));
    let mut others = Vec::new();
    for number in 1..threads {
        let shared = Arc::clone(&shared);
        let builder = std::thread::Builder::new().name(format!("fuse-{number}"));
        others.push(builder.spawn(move || answer_all(&shared.0, shared.1.as_fd(), shared.2.as_ref()))?);
    }
    let mut outcome = answer_all(&shared.0, shared.1.as_fd(), shared.2.as_ref());
    for other in others {
        let ended = other.join().unwrap_or_else(|_| Err(io::Error::other("a thread of the server panicked")));
        outcome = outcome.and(ended);
    }
    outcome
}

fn set_nonblocking(device: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(device, FcntlArg::F_GETFL)?);
    fcntl(device, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

fn handshake<H: Handler>(handler: &H, device: BorrowedFd<'_>) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let Some(length) = receive(device, &mut buffer, Duration::ZERO)? else {
            return Err(io::Error::new(io::ErrorKind::NotConnected, "unmounted before the first request"));
        };
        let (header, body) = Header::read(&buffer[..length])?;
        let reply = Reply { device, unique: header.unique };
        if header.opcode != opcode::INIT {
            reply.error(Errno::EIO);
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the first request is not INIT"));
        }
        let init = Init::read(body)?;
        if init.major > wire::MAJOR {
            // The kernel asks again in the version it is told here.
            let mut version = [0; 64];
            version[..4].copy_from_slice(&wire::MAJOR.to_ne_bytes());
            version[4..8].copy_from_slice(&wire::MINOR.to_ne_bytes());
            reply.data(&version);
            continue;
        }
        if init.major < wire::MAJOR || init.minor < OLDEST_MINOR {
            reply.error(Errno::EPROTO);
            return Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel's FUSE protocol is too old"));
        }
        let answer = InitReply {
            max_readahead: init.max_readahead,
            capabilities: handler.capabilities(init.capabilities) & init.capabilities,
            max_background: MAX_BACKGROUND,
            max_write: MAX_REQUEST_BYTES,
        };
        reply.data(&answer.bytes());
        return Ok(());
    }
}

/// One thread's work. Without turns, each waits for requests in the kernel.
fn answer_all<H: Handler>(handler: &H, device: BorrowedFd<'_>, turn: Option<&Arc<Turn>>) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let ended = loop {
        if turn.is_some_and(|turn| !turn.take()) {
            return Ok(());
        }
        HELD.set(turn.cloned());
        let ended = loop {
            let look = if turn.is_some() { LOOK } else { Duration::ZERO };
            match answer_next(handler, device, &mut buffer, look) {
                Ok(true) if turn.is_some() && HELD.with_borrow(Option::is_none) => break None,
                Ok(true) => {}
                Ok(false) => break Some(Ok(())),
                Err(error) => break Some(Err(error)),
            }
        };
        if let Some(ended) = ended {
            break ended;
        }
    };
    if let Some(turn) = turn {
        turn.end();
    }
    ended
}

/// Answers the next request; false where the connection has ended.
fn answer_next<H: Handler>(
    handler: &H,
    device: BorrowedFd<'_>,
    buffer: &mut [u8],
    look: Duration,
) -> io::Result<bool> {
    let Some(length) = receive(device, buffer, look)? else { return Ok(false) };
    let (header, body) = Header::read(&buffer[..length])?;
    let reply = Reply { device, unique: header.unique };
    if header.opcode == opcode::DESTROY {
        reply.ok();
        return Ok(false);
    }
    handler.handle(header, body, reply);
    Ok(true)
}

/// Which thread reads the next request. Only one waits for requests at a time: were it all of
/// them, each request would wake another, on another CPU, whose caches are cold. A thread that is
/// about to do something slow passes the turn on first ([`pass`]).
#[derive(Debug, Default)]
struct Turn {
    state: Mutex<TurnState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct TurnState {
    taken: bool,
    ended: bool,
}

impl Turn {
    /// Waits for the turn; false where the connection has ended.
    fn take(&self) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_while(state, |state| state.taken && !state.ended);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        state.taken = true;
        !state.ended
    }

    fn release(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).taken = false;
        self.changed.notify_one();
    }

    fn end(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
        self.changed.notify_all();
    }
}

thread_local! {
    /// The turn, while it is this thread's.
    static HELD: RefCell<Option<Arc<Turn>>> = const { RefCell::new(None) };
}

/// Lets another thread read requests while this one does something slow: waits for a disk, copies
/// much.
pub(in crate::serve) fn pass() {
    if let Some(turn) = HELD.take() {
        turn.release();
    }
}

/// The next request's length, or None where the connection has ended. Where reading does not wait,
/// it is tried for a while before this sleeps.
fn receive(device: BorrowedFd<'_>, buffer: &mut [u8], look: Duration) -> io::Result<Option<usize>> {
    let mut since = None;
    loop {
        match nix::unistd::read(device, buffer) {
            Ok(length) => return Ok(Some(length)),
            Err(Errno::EAGAIN) if since.get_or_insert_with(Instant::now).elapsed() < look => {
                // Whoever else wants this CPU comes first.
                let _ = nix::sched::sched_yield();
            }
            Err(Errno::EAGAIN) => {
                let mut fds = [PollFd::new(device, PollFlags::POLLIN)];
                match poll(&mut fds, PollTimeout::NONE) {
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            // A request was taken back before it was read, or a signal came.
            Err(Errno::ENOENT | Errno::EINTR) => {}
            Err(Errno::ENODEV | Errno::ECONNABORTED) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// The one answer that a request gets.
#[derive(Debug)]
pub(super) struct Reply<'a> {
    device: BorrowedFd<'a>,
    unique: u64,
}

/// One thread at a time waits for the kernel to write back a file, so that others are left to
/// answer those writes.
static WRITING_BACK: Mutex<()> = Mutex::new(());

#[cfg(any(test, fuzzing))]
impl<'a> Reply<'a> {
    pub(super) fn new(device: BorrowedFd<'a>, unique: u64) -> Self {
        Self { device, unique }
    }
}

impl Reply<'_> {
    /// Has the kernel send what it holds of a file's data, and forget it. False where that cannot
    /// be waited for now.
    pub(super) fn write_back(&self, ino: u64) -> bool {
        let Ok(_alone) = WRITING_BACK.try_lock() else { return false };
        // The kernel's writes are answered by another thread.
        pass();
        let mut message = [0; OUT_HEADER + 24];
        message[..4].copy_from_slice(&((OUT_HEADER + 24) as u32).to_ne_bytes());
        message[4..8].copy_from_slice(&wire::NOTIFY_INVAL_INODE.to_ne_bytes());
        message[OUT_HEADER..OUT_HEADER + 8].copy_from_slice(&ino.to_ne_bytes());
        // From 0 on, and a length of 0: all of it.
        match nix::unistd::write(self.device, &message) {
            // The kernel does not know the file, so it holds nothing of it.
            Ok(_) | Err(Errno::ENOENT) => true,
            Err(_) => false,
        }
    }

    pub(super) fn ok(self) {
        self.send(0, &[]);
    }

    pub(super) fn data(self, data: &[u8]) {
        self.send(0, data);
    }

    pub(super) fn error(self, errno: Errno) {
        self.send(-(errno as i32), &[]);
    }

    pub(super) fn empty(self, answer: Answer<()>) {
        match answer {
            Ok(()) => self.ok(),
            Err(errno) => self.error(errno),
        }
    }

    /// Answers with what `encode` makes of a success.
    pub(super) fn with<T, const N: usize>(self, answer: Answer<T>, encode: impl FnOnce(&T) -> [u8; N]) {
        match answer {
            Ok(value) => self.data(&encode(&value)),
            Err(errno) => self.error(errno),
        }
    }

    fn send(self, error: i32, data: &[u8]) {
        let mut header = [0; OUT_HEADER];
        // No reply is larger than a request may ask for, MAX_REQUEST_BYTES.
        let length = (OUT_HEADER + data.len()) as u32;
        header[..4].copy_from_slice(&length.to_ne_bytes());
        header[4..8].copy_from_slice(&error.to_ne_bytes());
        header[8..].copy_from_slice(&self.unique.to_ne_bytes());
        let parts = [IoSlice::new(&header), IoSlice::new(data)];
        // It fails where nobody waits for the answer any more: the request was interrupted, or
        // the connection aborted, which the next read finds out.
        let _ = writev(self.device, &parts[..if data.is_empty() { 1 } else { 2 }]);
    }
}
