//! The server's main loop: the container's output to the log and the attached clients, their input
//! to the container.
//!
//! Nothing here grows without bound. A client that does not read holds up the container's output
//! once `MAX_PENDING_BYTES` wait for it, as a stopped terminal does; a container that does not
//! read its stdin holds up the clients' input. Neither ever holds up the keeper.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};
use nix::unistd::{read, write};

use super::log::{Stream, Writer};
use super::rest::{Rest, timeout_until};
use super::server::word;
use super::stream::{self, Kind};
use crate::sys;

/// Output that waits for one client before the container is held up.
const MAX_PENDING_BYTES: usize = 1 << 20;
/// Input that waits for the container before clients are held up.
const MAX_INPUT_BYTES: usize = 64 << 10;
/// One read.
const READ_BYTES: usize = 64 << 10;
/// Clients at once; one more is turned away.
const MAX_CLIENTS: usize = 64;
/// How long the last output waits for a client that does not read, in milliseconds.
const LAST_WORDS_MS: u16 = 10_000;

/// Something the loop cannot decide by itself.
#[derive(Debug)]
pub enum Event {
    /// A message from init: its tag, the rest, and its descriptor.
    Init(Vec<u8>, Option<OwnedFd>),
    /// A client to attach, from the keeper, and whether its input counts.
    Attach(OwnedFd, bool),
    /// All output has been read and passed on.
    Drained,
    /// The keeper is gone.
    KeeperGone,
}

/// What a polled descriptor stands for.
#[derive(Clone, Copy, Debug)]
enum Token {
    Init,
    Keeper,
    Stdin,
    Source(usize),
    Client(usize),
}

#[derive(Debug)]
struct Source {
    stream: Stream,
    fd: OwnedFd,
    open: bool,
}

#[derive(Debug)]
struct Client {
    socket: OwnedFd,
    open: bool,
    stdin: bool,
    /// Its end of input is the container's.
    owns_stdin: bool,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
}

/// See the module.
#[derive(Debug)]
pub struct Pump {
    init: Option<OwnedFd>,
    keeper: Option<OwnedFd>,
    sources: Vec<Source>,
    stdin: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
    input: Vec<u8>,
    input_ends: bool,
    clients: Vec<Client>,
    log: Writer,
    drained: bool,
    rest: Rest,
}

impl Pump {
    /// Takes the sockets to init and keeper, the reading ends of the container's output, and the
    /// writing end of its stdin.
    #[must_use]
    pub fn new(
        init: OwnedFd,
        keeper: OwnedFd,
        sources: Vec<(Stream, OwnedFd)>,
        stdin: Option<OwnedFd>,
        log: Writer,
    ) -> Self {
        for fd in sources.iter().map(|(_, fd)| fd).chain(&stdin) {
            set_nonblocking(fd);
        }
        Self {
            init: Some(init),
            keeper: Some(keeper),
            sources: sources.into_iter().map(|(stream, fd)| Source { stream, fd, open: true }).collect(),
            stdin,
            terminal: None,
            input: Vec::new(),
            input_ends: false,
            clients: Vec::new(),
            log,
            drained: false,
            rest: Rest::after_start(),
        }
    }

    /// The container's terminal has been made.
    ///
    /// # Errors
    /// When its descriptor cannot be duplicated.
    pub fn set_terminal(&mut self, master: OwnedFd) -> io::Result<()> {
        set_nonblocking(&master);
        self.sources.push(Source { stream: Stream::Stdout, fd: master.try_clone()?, open: true });
        self.stdin = Some(master.try_clone()?);
        self.terminal = Some(master);
        Ok(())
    }

    /// Attaches a client: a stream socket of [`stream`].
    pub fn attach(&mut self, socket: OwnedFd, stdin: bool, owns_stdin: bool) {
        if self.clients.len() < MAX_CLIENTS {
            set_nonblocking(&socket);
            let client =
                Client { socket, open: true, stdin, owns_stdin, incoming: Vec::new(), outgoing: Vec::new() };
            self.clients.push(client);
        }
    }

    /// Works until something happens that is the caller's to decide.
    ///
    /// # Errors
    /// Only what poll(2) itself refuses: a broken client or stream is dropped.
    pub fn wait_event(&mut self) -> io::Result<Event> {
        loop {
            if self.init.is_none() && self.sources.is_empty() && !self.drained {
                self.drained = true;
                self.say_last_words();
                return Ok(Event::Drained);
            }
            for (token, flags) in self.wait()? {
                if let Some(event) = self.serve(token, flags) {
                    return Ok(event);
                }
            }
            self.sources.retain(|source| source.open);
            self.clients.retain(|client| client.open);
            // A full disk costs lines of the log, not the container.
            self.log.flush(false).unwrap_or_default();
            self.rest.take();
            if self.log.wants_next_file()
                && let Some(keeper) = &self.keeper
            {
                let _ = sys::fd::send_with_fds(keeper.as_fd(), &[word::LOG_FULL], &[]); // gone: seen below
            }
        }
    }

    /// One poll over everything that something is wanted of.
    fn wait(&self) -> io::Result<Vec<(Token, PollFlags)>> {
        let (readable, writable, nothing) = (PollFlags::POLLIN, PollFlags::POLLOUT, PollFlags::empty());
        let mut wanted: Vec<(Token, BorrowedFd<'_>, PollFlags)> = Vec::new();
        wanted.extend(self.init.as_ref().map(|fd| (Token::Init, fd.as_fd(), readable)));
        wanted.extend(self.keeper.as_ref().map(|fd| (Token::Keeper, fd.as_fd(), readable)));
        if let Some(stdin) = self.stdin.as_ref().filter(|_| !self.input.is_empty()) {
            wanted.push((Token::Stdin, stdin.as_fd(), writable));
        }
        let held_up = self.clients.iter().any(|client| client.outgoing.len() > MAX_PENDING_BYTES);
        for (index, source) in self.sources.iter().enumerate().filter(|_| !held_up) {
            wanted.push((Token::Source(index), source.fd.as_fd(), readable));
        }
        let input_full = self.input.len() >= MAX_INPUT_BYTES;
        for (index, client) in self.clients.iter().enumerate() {
            let read = if client.stdin && input_full { nothing } else { readable };
            let write = if client.outgoing.is_empty() { nothing } else { writable };
            wanted.push((Token::Client(index), client.socket.as_fd(), read | write));
        }
        let mut polled: Vec<_> = wanted.iter().map(|(_, fd, flags)| PollFd::new(*fd, *flags)).collect();
        let timeout = self.rest.due().map_or(PollTimeout::NONE, timeout_until);
        while let Err(errno) = poll(&mut polled, timeout) {
            if errno != Errno::EINTR {
                return Err(errno.into());
            }
        }
        let flags = polled.iter().map(|fd| fd.revents().unwrap_or(nothing));
        Ok(wanted
            .iter()
            .map(|(token, ..)| *token)
            .zip(flags)
            .filter(|(_, flags)| !flags.is_empty())
            .collect())
    }

    fn serve(&mut self, token: Token, flags: PollFlags) -> Option<Event> {
        match token {
            Token::Init => self.hear_init(),
            Token::Keeper => self.hear_keeper(),
            Token::Stdin => {
                self.feed_stdin();
                None
            }
            Token::Source(index) => {
                self.read_source(index);
                None
            }
            Token::Client(index) => {
                self.serve_client(index, flags);
                None
            }
        }
    }

    fn hear_init(&mut self) -> Option<Event> {
        let mut buffer = [0; 16];
        let received = sys::fd::receive_with_fds(self.init.as_ref()?.as_fd(), &mut buffer, MsgFlags::empty());
        match received {
            Ok((0, _)) | Err(_) => {
                self.init = None;
                None
            }
            Ok((length, mut fds)) => Some(Event::Init(buffer[..length].to_vec(), fds.pop())),
        }
    }

    fn hear_keeper(&mut self) -> Option<Event> {
        let mut buffer = [0; 16];
        let received =
            sys::fd::receive_with_fds(self.keeper.as_ref()?.as_fd(), &mut buffer, MsgFlags::empty());
        match received {
            Ok((0, _)) | Err(_) => {
                self.keeper = None;
                Some(Event::KeeperGone)
            }
            Ok((_, mut fds)) if buffer[0] == word::NEXT_LOG => {
                if let Some(file) = fds.pop() {
                    self.log.go_on_in(file.into());
                }
                None
            }
            Ok((_, mut fds)) => fds.pop().map(|socket| Event::Attach(socket, buffer[0] != 0)),
        }
    }

    fn feed_stdin(&mut self) {
        let Some(stdin) = &self.stdin else { return };
        match write(stdin, &self.input) {
            Ok(written) => drop(self.input.drain(..written)),
            Err(Errno::EAGAIN | Errno::EINTR) => return,
            Err(_) => {
                // Nobody reads it any more: what was meant for it is lost, as in a pipeline.
                self.input.clear();
                self.stdin = None;
            }
        }
        self.end_stdin_when_fed();
    }

    fn end_stdin_when_fed(&mut self) {
        if self.input_ends && self.input.is_empty() && self.terminal.is_none() {
            self.stdin = None;
        }
    }

    fn read_source(&mut self, index: usize) {
        let source = &mut self.sources[index];
        let mut buffer = [0; READ_BYTES];
        match read(&source.fd, &mut buffer) {
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            // A terminal whose last user is gone answers EIO, where a pipe says 0.
            Ok(0) | Err(_) => source.open = false,
            Ok(length) => {
                let bytes = &buffer[..length];
                self.log.take(source.stream, bytes);
                let kind = match source.stream {
                    Stream::Stdout => Kind::Stdout,
                    Stream::Stderr => Kind::Stderr,
                };
                for client in &mut self.clients {
                    stream::append(&mut client.outgoing, kind, bytes);
                    client.write();
                }
            }
        }
    }

    fn serve_client(&mut self, index: usize, flags: PollFlags) {
        let client = &mut self.clients[index];
        if flags.contains(PollFlags::POLLOUT) {
            client.write();
        }
        if flags.contains(PollFlags::POLLIN) {
            client.read();
        } else if flags.intersects(PollFlags::POLLHUP | PollFlags::POLLERR) {
            client.open = false;
        }
        let mut used = 0;
        let mut size = None;
        loop {
            let frame = stream::parse(&client.incoming[used..]);
            let Ok(Some((kind, range))) = frame else {
                client.open &= frame.is_ok();
                break;
            };
            let payload = &client.incoming[used + range.start..used + range.end];
            match kind {
                Kind::Stdin if client.stdin => self.input.extend(payload),
                Kind::StdinEnd if client.stdin => self.input_ends = true,
                Kind::Resize => size = stream::parse_size(payload).or(size),
                _ => {}
            }
            used += range.end;
        }
        client.incoming.drain(..used);
        // A client that came with the container and goes away without detaching takes stdin with it.
        self.input_ends |= !client.open && client.owns_stdin;
        if let (Some((rows, columns)), Some(terminal)) = (size, &self.terminal) {
            let _ = sys::terminal::set_size(terminal.as_fd(), rows, columns); // cosmetic
        }
        if self.stdin.is_none() {
            self.input.clear();
        }
        self.end_stdin_when_fed();
    }

    /// Passes on what is left when all output has been read, and lets the clients go.
    fn say_last_words(&mut self) {
        // A full disk costs lines of the log, not the container.
        self.log.flush(true).unwrap_or_default();
        for mut client in self.clients.drain(..) {
            while client.open && !client.outgoing.is_empty() {
                let mut polled = [PollFd::new(client.socket.as_fd(), PollFlags::POLLOUT)];
                match poll(&mut polled, LAST_WORDS_MS) {
                    Ok(0) => break,
                    Ok(_) => client.write(),
                    Err(errno) => client.open = errno == Errno::EINTR,
                }
            }
        }
    }
}

impl Client {
    fn write(&mut self) {
        if self.outgoing.is_empty() {
            return;
        }
        match send(self.socket.as_raw_fd(), &self.outgoing, MsgFlags::MSG_NOSIGNAL) {
            Ok(written) => drop(self.outgoing.drain(..written)),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(_) => self.open = false,
        }
    }

    fn read(&mut self) {
        let mut buffer = [0; READ_BYTES];
        match read(&self.socket, &mut buffer) {
            Ok(0) => self.open = false,
            Ok(length) => self.incoming.extend(&buffer[..length]),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(_) => self.open = false,
        }
    }
}

fn set_nonblocking(fd: &OwnedFd) {
    let _ = sys::fd::set_nonblocking(fd); // cannot fail for an open descriptor
}
