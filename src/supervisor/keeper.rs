//! The keeper of one container: single-threaded, tiny, the parent of everything in it.
//!
//! It owns the lock, the record of start and end, the id maps, init, the server, and the children of
//! `exec`. It parses nothing but the control protocol of commands of the same user. States:
//!
//! ```text
//! Starting --(init's socket closes without a word)--> Running --(init ends)--> Draining --> gone
//!  ^  \--(init or server fails)--> gone                                          |
//!  \------------------------- Waiting (the restart policy says so) <-------------/
//! ```
//!
//! A restart is a new life in the same keeper: it keeps lock, control socket and clients, and makes server and
//! init anew from what is on disk then. Between two lives nothing of the container exists.
//!
//! Draining waits, for a bounded time, until the server has passed on the last output, so that the
//! log is whole before anybody is told of the end. Whoever waits is told before anything is cleaned up.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, SockFlag, accept4, getsockopt, sockopt};
use nix::unistd::{Pid, Uid};
use oci_spec::runtime::Process;

use super::affinity::Together;
use super::cgroup::Group;
use super::checks::{Checks, Due};
use super::control::{self, ExecRequest, Reply, Request};
use super::rest::{Rest, timeout_until};
use super::server::word;
use super::told::{self, Use};
use super::{Kept, Saved, log, processes, remove};
use crate::plan::restart::{Life, Restarts};
use crate::plan::{SeccompPlan, WriteMode};
use crate::sandbox::idmap::IdMaps;
use crate::sandbox::init::{RootKind, message};
use crate::sandbox::namespaces::Namespaces;
use crate::sandbox::{Failure, Stage, Stdio, command, exec};
use crate::store::containers::{self, Containers, ExitRecord, Lock, Record, State, Status};
use crate::sys;
use crate::sys::process::{Child, Ended, Fork};

/// Why a start failed, as JSON: an error, its causes and a hint.
pub(super) const MAX_FAILURE_BYTES: usize = 16 << 10;

/// How long the last output may take after the container's end.
const DRAIN_LIMIT: Duration = Duration::from_secs(15);
/// How long the server may take to write back what the kernel still holds, once all is unmounted.
const SERVER_LIMIT: Duration = Duration::from_secs(30);
/// Connections at once; one more waits in the listener's queue.
const MAX_CONNECTIONS: usize = 256;
/// Processes entered by `exec` at once.
const MAX_EXECS: usize = 1024;

/// What the keeper is given.
#[derive(Debug)]
pub struct Parts {
    /// The store's containers.
    pub containers: Containers,
    /// The container's record.
    pub record: Record,
    /// Its plan and how it was put together.
    pub saved: Saved,
    /// How the root is made this time.
    pub root_kind: RootKind,
    /// Its lock.
    pub lock: Lock,
    /// The compiled filter, for `exec`.
    pub seccomp: Option<Vec<libc::sock_filter>>,
    /// The id maps.
    pub maps: IdMaps,
    /// Its control group, where one could be made.
    pub group: Option<Group>,
    /// The control socket, listening.
    pub listener: OwnedFd,
    /// Its path.
    pub socket_path: PathBuf,
    /// The command that started all this: it waits for the start and then for the end. None at a restart.
    pub starter: Option<OwnedFd>,
    /// Clients that came while the container waited for its restart.
    pub connections: Vec<Connection>,
    /// The server.
    pub server: Child,
    /// The socket to it.
    pub server_socket: OwnedFd,
    /// Pid 1 of the container.
    pub init: Child,
    /// While init and server share a CPU.
    pub together: Option<Together>,
    /// The socket to it.
    pub init_socket: Option<OwnedFd>,
    /// Published ports and the address, for the state.
    pub state: State,
}

/// A client.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    open: bool,
    /// Wants to hear of the container's end.
    waits: bool,
    /// Wants to hear of its start.
    starts: bool,
}

/// What init or an exec's process said of its failure: itself, or its stub.
fn parse_failure(message: &[u8], process: Option<&Process>) -> Option<Failure> {
    let name = process.and_then(|process| process.args().as_ref()?.first().cloned()).unwrap_or_default();
    command::reported_by_stub(message, &name).or_else(|| serde_json::from_slice(message).ok())
}

/// Answers everybody who waits for the end.
fn tell_waiting(connections: &[Connection], reply: &Reply) {
    for connection in connections {
        if connection.waits && connection.open {
            let _ = control::send(&connection.socket, reply, &[]); // gone: nobody to tell
        }
    }
}

/// How much the client of an exec knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Nothing,
    Started,
    All,
}

/// A process that `exec` runs.
#[derive(Debug)]
struct Exec {
    /// Who asked; its number in `connections` may change, its descriptor not.
    client: Option<i32>,
    /// Tells the pid and then, by closing, that the command runs.
    status: Option<OwnedFd>,
    /// The process that enters; it ends at once.
    helper: Option<Child>,
    process: Option<Child>,
    /// What it runs.
    request: Process,
    failure: Option<Failure>,
    told: Told,
    ended: Option<Ended>,
    /// Output that nobody reads any more is read here, so that the process is not held up.
    drains: Vec<Option<OwnedFd>>,
    /// What it is named by in events; a health check has no name.
    id: Option<String>,
}

impl Exec {
    fn is_check(&self) -> bool {
        self.id.is_none()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Listener,
    Connection(usize),
    InitSocket,
    Init,
    ServerSocket,
    Server,
    ExecStatus(usize),
    ExecHelper(usize),
    ExecProcess(usize),
    ExecDrain(usize, usize),
}

/// Runs until the container has ended for good and everything of it is gone.
pub fn run(parts: Parts) -> ! {
    sys::process::set_name(c"hostel-keeper");
    let mut keeper = Keeper::new(parts, Restarts::default());
    let result = loop {
        match keeper.live() {
            Ok(None) => break Ok(()),
            Ok(Some(wait)) => match keeper.again(wait) {
                Ok(Some(next)) => keeper = next,
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            },
            Err(error) => break Err(error),
        }
    };
    let code = match result {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("keeper: {error}"); // stderr is the container's supervisor.log
            1
        }
    };
    sys::process::exit_now(code)
}

struct Keeper {
    parts: Parts,
    running: bool,
    started: Instant,
    init_ended: Option<Ended>,
    /// Let go once everybody has been told of the end.
    namespaces: Namespaces,
    drained: bool,
    server_ended: bool,
    kill_at: Option<Instant>,
    drain_until: Option<Instant>,
    failure: Option<Failure>,
    connections: Vec<Connection>,
    execs: Vec<Exec>,
    /// The processes of a paused container that has no control group.
    held: Option<processes::Held>,
    checks: Option<Checks>,
    restarts: Restarts,
    /// When the next life begins, while there is none.
    restart_at: Option<Instant>,
    /// `stop` or `kill` wants it to stay down.
    by_hand: bool,
    /// `stop` was what ended it.
    stopped: bool,
    rest: Rest,
}

impl Keeper {
    fn new(mut parts: Parts, restarts: Restarts) -> Self {
        let starter = parts.starter.take();
        let starter = starter.map(|socket| Connection { socket, open: true, waits: true, starts: true });
        let connections = starter.into_iter().chain(std::mem::take(&mut parts.connections)).collect();
        parts.state.restarts = restarts.count;
        Self {
            running: false,
            started: Instant::now(),
            init_ended: None,
            held: None,
            namespaces: Namespaces::default(),
            drained: false,
            server_ended: false,
            kill_at: None,
            drain_until: None,
            failure: None,
            connections,
            execs: vec![],
            checks: None,
            restarts,
            restart_at: None,
            by_hand: false,
            stopped: false,
            rest: Rest::after_start(),
            parts,
        }
    }

    /// From the start of init to the end of everything: then how long to wait for the next life, if any.
    fn live(&mut self) -> io::Result<Option<Duration>> {
        while !self.is_over() {
            self.round()?;
        }
        self.finish()
    }

    fn round(&mut self) -> io::Result<()> {
        for (token, flags) in self.wait()? {
            self.serve(token, flags);
        }
        self.after_round();
        self.rest.take();
        Ok(())
    }

    /// Sits out the wait, answering commands, and starts the container once more; `None` when a command has
    /// called it off, or it does not start.
    fn again(mut self, wait: Duration) -> io::Result<Option<Self>> {
        let at = Instant::now() + wait;
        self.restart_at = Some(at);
        while Instant::now() < at && !self.by_hand {
            self.round()?;
        }
        let (containers, id) = (self.parts.containers.clone(), self.parts.record.id.clone());
        let guard = self.parts.lock.try_clone()?; // until the end is on disk
        let restarts = self.restarts;
        let failure = if self.by_hand {
            None
        } else {
            let kept = Kept {
                containers: self.parts.containers,
                id: id.clone(),
                lock: self.parts.lock,
                listener: self.parts.listener,
                socket_path: self.parts.socket_path.clone(),
                connections: std::mem::take(&mut self.connections),
            };
            match super::start_again(kept) {
                Ok(parts) => return Ok(Some(Self::new(parts, restarts))),
                Err(failure) => Some(failure),
            }
        };
        let status = containers.status(&id).map_err(io::Error::other)?;
        if let Status::Restarting(_, mut exit) = status {
            exit.restarting = false;
            exit.by_hand = self.by_hand;
            if let Some(failure) = &failure {
                exit.code = super::exit_code(failure);
                exit.error = failure.to_string();
            }
            containers.write_exit(&id, &exit).map_err(io::Error::other)?;
            tell_waiting(&self.connections, &Reply::Exited { code: exit.code });
        }
        let _ = std::fs::remove_file(&self.parts.socket_path); // a stale name is found dead by its connect
        drop(guard);
        Ok(None)
    }

    /// Over when init is gone, its last word heard, and its output passed on, or cannot be any more.
    fn is_over(&self) -> bool {
        let late = self.drain_until.is_some_and(|at| Instant::now() >= at);
        let heard = self.parts.init_socket.is_none();
        self.init_ended.is_some() && (late || (heard && (self.drained || self.server_ended)))
    }

    fn wait(&self) -> io::Result<Vec<(Token, PollFlags)>> {
        let mut wanted: Vec<(Token, BorrowedFd<'_>)> = Vec::new();
        if self.connections.len() < MAX_CONNECTIONS {
            wanted.push((Token::Listener, self.parts.listener.as_fd()));
        }
        for (index, connection) in self.connections.iter().enumerate() {
            wanted.push((Token::Connection(index), connection.socket.as_fd()));
        }
        wanted.extend(self.parts.init_socket.as_ref().map(|fd| (Token::InitSocket, fd.as_fd())));
        if self.init_ended.is_none() {
            wanted.push((Token::Init, self.parts.init.pidfd.as_fd()));
        }
        if !self.drained {
            wanted.push((Token::ServerSocket, self.parts.server_socket.as_fd()));
        }
        if !self.server_ended {
            wanted.push((Token::Server, self.parts.server.pidfd.as_fd()));
        }
        for (index, exec) in self.execs.iter().enumerate() {
            wanted.extend(exec.status.as_ref().map(|fd| (Token::ExecStatus(index), fd.as_fd())));
            wanted.extend(exec.helper.as_ref().map(|child| (Token::ExecHelper(index), child.pidfd.as_fd())));
            let process = exec.process.as_ref().filter(|_| exec.ended.is_none());
            wanted.extend(process.map(|child| (Token::ExecProcess(index), child.pidfd.as_fd())));
            if exec.client.is_none() {
                for (drain, fd) in exec.drains.iter().enumerate() {
                    wanted.extend(fd.as_ref().map(|fd| (Token::ExecDrain(index, drain), fd.as_fd())));
                }
            }
        }
        let mut polled: Vec<_> = wanted.iter().map(|(_, fd)| PollFd::new(*fd, PollFlags::POLLIN)).collect();
        let check = self.checks.as_ref().and_then(Checks::next).filter(|_| self.is_up());
        let due = [self.kill_at, self.drain_until, self.restart_at, check, self.rest.due()];
        let timeout = due.into_iter().flatten().min().map_or(PollTimeout::NONE, timeout_until);
        match poll(&mut polled, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let flags = polled.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        Ok(wanted.iter().map(|(token, _)| *token).zip(flags).filter(|(_, flags)| !flags.is_empty()).collect())
    }

    fn serve(&mut self, token: Token, flags: PollFlags) {
        match token {
            Token::Listener => self.accept(),
            Token::Connection(index) => self.hear(index),
            Token::InitSocket => self.hear_init(),
            Token::Init => {
                self.init_ended =
                    sys::process::wait_for(self.parts.init.pid).ok().or(Some(Ended::Signaled(libc::SIGKILL)));
                self.drain_until = Some(Instant::now() + DRAIN_LIMIT);
            }
            Token::ServerSocket => {
                let mut word = [0; 16];
                let received =
                    sys::fd::receive_with_fds(self.parts.server_socket.as_fd(), &mut word, MsgFlags::empty());
                match received {
                    Ok((1, _)) if word[0] == word::LOG_FULL => self.next_log(),
                    Ok((length, _)) => self.drained |= length == 0 || word[0] == word::DRAINED,
                    Err(_) => self.drained = true,
                }
            }
            Token::Server => {
                let _ = sys::process::wait_for(self.parts.server.pid); // how it ended is in supervisor.log
                self.server_ended = true;
                self.kill_container(); // without its server the container's root and network are dead
            }
            Token::ExecStatus(index) => self.hear_exec(index),
            Token::ExecHelper(index) => {
                if let Some(helper) = self.execs[index].helper.take() {
                    let _ = sys::process::wait_for(helper.pid); // what it had to say came through its socket
                }
            }
            Token::ExecProcess(index) => {
                let exec = &mut self.execs[index];
                if let Some(process) = &exec.process {
                    exec.ended =
                        sys::process::wait_for(process.pid).ok().or(Some(Ended::Signaled(libc::SIGKILL)));
                }
            }
            Token::ExecDrain(index, drain) => {
                let mut buffer = [0; 4096];
                let Some(fd) = &self.execs[index].drains[drain] else { return };
                let read = if flags.contains(PollFlags::POLLIN) {
                    nix::unistd::read(fd, &mut buffer)
                } else {
                    Ok(0)
                };
                match (read, &mut self.checks) {
                    // A terminal whose last user is gone says EIO.
                    (Ok(0) | Err(Errno::EIO), _) => self.execs[index].drains[drain] = None,
                    (Ok(length), Some(checks)) if self.execs[index].is_check() => {
                        checks.hear(&buffer[..length]);
                    }
                    _ => {}
                }
            }
        }
    }

    /// Work that follows from what has been heard, once all of it has been heard.
    fn after_round(&mut self) {
        if self.kill_at.is_some_and(|at| Instant::now() >= at) {
            self.kill_at = None;
            self.kill_container();
        }
        self.check_health();
        for index in 0..self.execs.len() {
            self.advance_exec(index);
        }
        // Its end may be seen before its last message: it stays until its client has been told.
        let is_done = |exec: &Exec| exec.ended.is_some() && exec.helper.is_none() && exec.told == Told::All;
        if let Some(check) = self.execs.iter().position(|exec| exec.is_check() && is_done(exec)) {
            let check = self.execs.remove(check);
            self.end_check(check);
        }
        self.execs.retain(|exec| !is_done(exec));
        for exec in &mut self.execs {
            let gone = |fd: i32| {
                !self
                    .connections
                    .iter()
                    .any(|connection| connection.open && connection.socket.as_raw_fd() == fd)
            };
            if exec.client.is_some_and(gone) {
                exec.client = None;
            }
        }
        self.connections.retain(|connection| connection.open);
    }

    fn kill_container(&self) {
        if self.init_ended.is_none() {
            // It cannot have been reaped: only this process reaps it, and has not.
            let _ = sys::process::pidfd_send_signal(self.parts.init.pidfd.as_fd(), libc::SIGKILL);
        }
    }

    fn accept(&mut self) {
        let Ok(fd) = accept4(self.parts.listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC) else { return };
        let Ok(socket) = sys::fd::own(fd) else { return };
        // The directory is 0700 already; this holds where somebody made the path known to others.
        let peer = getsockopt(&socket, sockopt::PeerCredentials).map(|peer| peer.uid());
        if peer.is_ok_and(|uid| uid == Uid::effective().as_raw() || uid == 0) {
            self.connections.push(Connection { socket, open: true, waits: false, starts: false });
        }
    }

    fn hear(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        let (request, fds) = match control::receive::<Request>(&connection.socket) {
            Ok(Some(message)) => message,
            Ok(None) => {
                connection.open = false;
                return;
            }
            Err(error) => {
                self.reply(
                    index,
                    &Reply::Refused(format!("the container's keeper does not understand this: {error}")),
                );
                self.connections[index].open = false;
                return;
            }
        };
        match request {
            Request::Wait => connection.waits = true,
            Request::Attach { .. } if self.restart_at.is_some() => {
                let what = format!(
                    "Container {} is restarting, wait until the container is running",
                    self.parts.record.id
                );
                self.reply(index, &Reply::Refused(what));
            }
            Request::Attach { stdin } => {
                let sent = fds.first().is_some_and(|socket| {
                    let server = self.parts.server_socket.as_fd();
                    sys::fd::send_with_fds(server, &[u8::from(stdin)], &[socket.as_fd()]).is_ok()
                });
                connection.waits = true;
                let reply = if sent { Reply::Ok } else { Reply::Refused("the container is ending".into()) };
                self.reply(index, &reply);
            }
            Request::Signal { signal } => self.signal(index, signal),
            Request::Stop { signal, timeout_s } => {
                connection.waits = true;
                self.stop(signal, timeout_s);
            }
            Request::Exec(request) => {
                if let Err(failure) = self.exec(index, &request, fds) {
                    self.reply(index, &Reply::Failed(failure));
                }
            }
            Request::Namespaces => {
                let reply = match self.is_up() {
                    true => Reply::Namespaces { kinds: self.namespaces.kinds() },
                    false => Reply::Refused("the container is ending".into()),
                };
                let files = if self.is_up() { self.namespaces.files() } else { Vec::new() };
                if let Some(connection) = self.connections.get_mut(index)
                    && control::send(&connection.socket, &reply, &files).is_err()
                {
                    connection.open = false; // as in `reply`
                }
            }
            Request::Pause => {
                let reply = self.pause().map_or_else(Reply::Refused, |()| Reply::Ok);
                self.reply(index, &reply);
            }
            Request::Unpause => {
                let reply = self.unpause().map_or_else(Reply::Refused, |()| Reply::Ok);
                self.reply(index, &reply);
            }
        }
    }

    /// Whether its command runs.
    fn is_up(&self) -> bool {
        self.running && self.init_ended.is_none()
    }

    fn tell(&self, action: &str, extra: &[(&str, &str)]) {
        // Read again: `rename` may have changed its name.
        let containers = &self.parts.containers;
        let record = containers.record(&self.parts.record.id);
        containers.tell(record.as_ref().unwrap_or(&self.parts.record), action, extra);
    }

    fn pause(&mut self) -> Result<(), String> {
        let id = &self.parts.record.id;
        if !self.is_up() {
            return Err(format!("Container {id} is not running"));
        }
        if self.parts.state.paused {
            return Err(format!("Container {id} is already paused"));
        }
        let State { keeper_pid, server_pid, .. } = self.parts.state;
        let held = match &self.parts.group {
            Some(group) => group.freeze(true).map(|()| None),
            None => processes::hold(keeper_pid, &[server_pid]).map(Some),
        };
        self.held = held.map_err(|error| format!("cannot pause container {id}: {error}"))?;
        self.write_paused(true)?;
        self.tell("pause", &[]);
        Ok(())
    }

    fn unpause(&mut self) -> Result<(), String> {
        if !self.parts.state.paused {
            return Err(format!("Container {} is not paused", self.parts.record.id));
        }
        match &self.parts.group {
            Some(group) => group.freeze(false).map_err(|error| format!("cannot let it go on: {error}"))?,
            None => drop(self.held.take()),
        }
        if let Some(checks) = &mut self.checks {
            checks.put_off(Instant::now());
        }
        self.write_paused(false)?;
        self.tell("unpause", &[]);
        Ok(())
    }

    fn write_paused(&mut self, paused: bool) -> Result<(), String> {
        self.parts.state.paused = paused;
        let written = self.parts.containers.write_state(&self.parts.record.id, &self.parts.state);
        written.map_err(|error| crate::sandbox::chain(&error))
    }

    /// The log's file is full: puts it aside and hands the server the next one.
    fn next_log(&self) {
        let path = self.parts.containers.path(&self.parts.record.id).join("log");
        match log::next_file(&path, self.parts.saved.request.log.max_files) {
            Ok(file) => {
                let server = self.parts.server_socket.as_fd();
                let _ = sys::fd::send_with_fds(server, &[word::NEXT_LOG], &[file.as_fd()]); // gone: seen elsewhere
            }
            // The server writes on to the old file.
            Err(error) => eprintln!("keeper: cannot begin the log's next file: {error}"),
        }
    }

    /// Runs a health check, or ends one that takes too long.
    fn check_health(&mut self) {
        let up = self.is_up();
        let Some(checks) = self.checks.as_mut().filter(|_| up) else { return };
        if self.parts.state.paused {
            return checks.put_off(Instant::now());
        }
        match checks.due(Instant::now()) {
            Due::Nothing => {}
            Due::Kill => {
                let process =
                    self.execs.iter().find(|exec| exec.is_check()).and_then(|exec| exec.process.as_ref());
                if let Some(process) = process {
                    let _ = sys::process::pidfd_send_signal(process.pidfd.as_fd(), libc::SIGKILL); // gone: good
                }
            }
            Due::Run => {
                let command = checks.command();
                if let Err(failure) = self.start_check(command) {
                    self.take_result(Err(failure.to_string()));
                }
            }
        }
    }

    fn start_check(&mut self, command: Vec<String>) -> Result<(), Failure> {
        use crate::sandbox::Context as _;
        let stage = Stage::Namespaces;
        let what = || "cannot run the health check".to_owned();
        let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).during(stage, what)?;
        sys::fd::set_nonblocking(&reader).during(stage, what)?;
        let null = std::fs::File::open("/dev/null").during(stage, what)?;
        let errors = writer.try_clone().during(stage, what)?;
        let stdio = Stdio::Pipes([null.into(), writer, errors]);
        let mut process = self.parts.saved.plan.spec.process().clone().unwrap_or_default();
        process.set_args(Some(command)).set_terminal(Some(false));
        let request = ExecRequest { process, user: None, privileged: false, size: None };
        let exec = self.enter(&request, stdio, None)?;
        self.execs.push(Exec { drains: vec![Some(reader)], ..exec });
        Ok(())
    }

    fn end_check(&mut self, check: Exec) {
        if let (Some(checks), Some(Some(output))) = (&mut self.checks, check.drains.first()) {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = nix::unistd::read(output, &mut buffer) {
                checks.hear(&buffer[..length]);
            }
        }
        let result = match (check.failure, check.ended) {
            (Some(failure), _) => Err(failure.to_string()),
            (None, Some(ended)) => Ok(ended.code()),
            (None, None) => Err("its end was not seen".into()),
        };
        self.take_result(result);
    }

    fn take_result(&mut self, result: Result<u8, String>) {
        let Some(checks) = &mut self.checks else { return };
        let changed = checks.ended(result, Instant::now());
        let health = checks.health.clone();
        self.write_health();
        if changed {
            self.tell(&format!("health_status: {}", health.status.as_str()), &[]);
        }
    }

    fn write_health(&self) {
        if let Some(checks) = &self.checks
            && let Err(error) = self.parts.containers.write_health(&self.parts.record.id, &checks.health)
        {
            eprintln!("keeper: {}", crate::sandbox::chain(&error));
        }
    }

    fn signal(&mut self, index: usize, signal: i32) {
        let client = self.connections[index].socket.as_raw_fd();
        let exec = self.execs.iter().find(|exec| exec.client == Some(client));
        let target = match exec {
            Some(exec) => {
                exec.process.as_ref().filter(|_| exec.ended.is_none()).map(|process| process.pidfd.as_fd())
            }
            None => Some(self.parts.init.pidfd.as_fd()).filter(|_| self.init_ended.is_none()),
        };
        let is_exec = exec.is_some();
        if !is_exec {
            // Any signal, unless the image or --stop-signal says which one ends it: moby's rule.
            let plan = &self.parts.saved;
            let named = plan.request.process.stop_signal.is_some()
                || plan.image_config.config().as_ref().is_some_and(|config| config.stop_signal().is_some());
            self.by_hand |= !named || signal == libc::SIGKILL || signal == plan.plan.stop_signal;
            if self.restart_at.is_some() {
                return self.reply(index, &Reply::Ok);
            }
            self.tell("kill", &[("signal", &signal.to_string())]);
        }
        let result = target.map_or(Err(Errno::ESRCH), |pidfd| sys::process::pidfd_send_signal(pidfd, signal));
        if !is_exec {
            let reply = match result {
                Ok(()) => Reply::Ok,
                Err(errno) => Reply::Refused(format!("cannot send signal {signal}: {}", errno.desc())),
            };
            self.reply(index, &reply);
        }
    }

    fn stop(&mut self, signal: i32, timeout_s: i64) {
        self.by_hand = true;
        if self.init_ended.is_none() {
            self.stopped = signal != libc::SIGKILL || timeout_s != 0;
            let first = if timeout_s == 0 { libc::SIGKILL } else { signal };
            self.tell("kill", &[("signal", &first.to_string())]);
            if self.parts.state.paused && timeout_s != 0 {
                let _ = self.unpause(); // what is not on disk is so when it has ended
            }
        }
        if self.init_ended.is_none() && timeout_s != 0 {
            let _ = sys::process::pidfd_send_signal(self.parts.init.pidfd.as_fd(), signal); // ended: told below
        }
        if timeout_s == 0 {
            self.kill_container();
        } else if let Ok(seconds) = u64::try_from(timeout_s) {
            let at = Instant::now().checked_add(Duration::from_secs(seconds));
            // The sooner of two stops counts.
            self.kill_at = [self.kill_at, at].into_iter().flatten().min();
        }
    }

    fn exec(&mut self, index: usize, request: &ExecRequest, mut fds: Vec<OwnedFd>) -> Result<(), Failure> {
        let plain = |what: &str| Failure::plain(Stage::Namespaces, what);
        if self.restart_at.is_some() {
            let id = &self.parts.record.id;
            return Err(plain(&format!("Container {id} is restarting, wait until the container is running")));
        }
        if !self.is_up() {
            return Err(plain("the container is not running"));
        }
        if self.parts.state.paused {
            let id = &self.parts.record.id;
            return Err(plain(&format!("Container {id} is paused, unpause the container before exec")));
        }
        if self.execs.len() >= MAX_EXECS {
            return Err(plain("too many processes were entered by exec at once"));
        }
        let terminal = request.process.terminal() == Some(true);
        if fds.len() != if terminal { 1 } else { 5 } {
            return Err(plain("the request came without its descriptors"));
        }
        let drains = if terminal { Vec::new() } else { fds.split_off(3) };
        let (stdio, client) = if terminal {
            (Stdio::Terminal { size: request.size }, fds.pop())
        } else {
            let pipes = <[OwnedFd; 3]>::try_from(fds)
                .map_err(|_| plain("the request came without its descriptors"))?;
            (Stdio::Pipes(pipes), None)
        };
        let exec = self.enter(request, stdio, client)?;
        let id = crate::id::ContainerId::from_random(&sys::process::random_bytes().unwrap_or_default())
            .to_string();
        let line = request.process.args().iter().flatten().map(String::as_str).collect::<Vec<_>>().join(" ");
        self.tell(&format!("exec_create: {line}"), &[("execID", &id)]);
        self.tell(&format!("exec_start: {line}"), &[("execID", &id)]);
        let client = Some(self.connections[index].socket.as_raw_fd());
        self.execs.push(Exec {
            client,
            drains: drains.into_iter().map(Some).collect(),
            id: Some(id),
            ..exec
        });
        Ok(())
    }

    /// Makes a process that enters the container.
    fn enter(&self, request: &ExecRequest, stdio: Stdio, terminal: Option<OwnedFd>) -> Result<Exec, Failure> {
        let plain = |what: &str| Failure::plain(Stage::Namespaces, what);
        let (ours, theirs) = sys::fd::seqpacket_pair()
            .map_err(|errno| Failure::new(Stage::Namespaces, "cannot make a socket", errno))?;
        let stub = sys::stub::make()
            .map_err(|error| plain(&format!("cannot make the program that executes commands: {error}")))?;
        let plan = &self.parts.saved.plan;
        let group = self.parts.group.as_ref().map(Group::open).transpose();
        let group =
            group.map_err(|error| plain(&format!("cannot open the container's control group: {error}")))?;
        let fork = match &group {
            Some(group) => sys::process::clone_into(0, group.as_fd()),
            None => sys::process::clone(0, false),
        };
        let fork = fork.map_err(|errno| Failure::new(Stage::Namespaces, "cannot make a process", errno))?;
        match fork {
            Fork::Child => {
                // Dumpable is inherited from the keeper, which is not; exec checks it again inside.
                exec::run(&exec::Join {
                    namespaces: &self.namespaces,
                    process: &request.process,
                    user: request.user.as_deref().unwrap_or(&plan.user),
                    group_add: &plan.group_add,
                    ids: (self.parts.maps.first_uid(), self.parts.maps.first_gid()),
                    may_set_groups: !self.parts.maps.is_single() && !plan.keeps_groups(),
                    seccomp: self.parts.seccomp.as_deref().filter(|_| !request.privileged),
                    filter: if request.privileged { &SeccompPlan::Unconfined } else { &plan.seccomp },
                    stub,
                    stdio,
                    keeper: theirs,
                    client: terminal,
                })
            }
            Fork::Parent(helper) => Ok(Exec {
                client: None,
                status: Some(ours),
                helper: Some(helper),
                process: None,
                request: request.process.clone(),
                failure: None,
                told: Told::Nothing,
                ended: None,
                drains: Vec::new(),
                id: None,
            }),
        }
    }

    fn hear_exec(&mut self, index: usize) {
        let exec = &mut self.execs[index];
        let Some(status) = &exec.status else { return };
        let mut buffer = vec![0; MAX_FAILURE_BYTES];
        match sys::fd::receive_with_fds(status.as_fd(), &mut buffer, MsgFlags::empty()) {
            Ok((4, _)) => {
                let pid = i32::from_ne_bytes([buffer[0], buffer[1], buffer[2], buffer[3]]);
                let pid = Pid::from_raw(pid);
                // Only a child of ours that we have not reaped: its number cannot mean another process.
                if exec.process.is_none()
                    && containers::parent_of(pid.as_raw()) == Some(nix::unistd::getpid().as_raw())
                {
                    exec.process = sys::process::pidfd_open(pid).ok().map(|pidfd| Child { pid, pidfd });
                }
            }
            // Held for the process's life: the last master that is closed would hang its session up.
            Ok((1, fds)) if buffer[0] == message::TERMINAL => {
                exec.drains.extend(fds.into_iter().map(Some));
            }
            Ok((length, _)) if length > 0 => {
                exec.failure = parse_failure(&buffer[..length], Some(&exec.request));
            }
            _ => exec.status = None,
        }
    }

    /// Tells the client of an exec what it has not been told yet.
    fn advance_exec(&mut self, index: usize) {
        let exec = &mut self.execs[index];
        if exec.status.is_some() {
            return;
        }
        let client = exec.client.and_then(|fd| {
            self.connections
                .iter()
                .position(|connection| connection.open && connection.socket.as_raw_fd() == fd)
        });
        let mut replies = Vec::new();
        if exec.told == Told::Nothing {
            let never = || Failure::plain(Stage::Namespaces, "the process could not enter the container");
            (exec.told, exec.failure) = match (exec.failure.take(), &exec.process) {
                (None, Some(process)) => {
                    replies.push(Reply::Started { pid: process.pid.as_raw() });
                    (Told::Started, None)
                }
                (failure, _) => {
                    let failure = failure.unwrap_or_else(never);
                    replies.push(Reply::Failed(failure.clone()));
                    (Told::All, Some(failure))
                }
            };
        }
        if exec.process.is_none() && exec.helper.is_none() {
            exec.ended = exec.ended.or(Some(Ended::Exited(1)));
        }
        if let (Some(ended), Told::Started) = (exec.ended, exec.told) {
            exec.told = Told::All;
            replies.push(Reply::Exited { code: ended.code() });
            if let Some(id) = exec.id.clone() {
                self.tell("exec_die", &[("execID", &id), ("exitCode", &ended.code().to_string())]);
            }
        }
        if let Some(client) = client {
            for reply in replies {
                self.reply(client, &reply);
            }
        }
    }

    /// Init's socket speaks only when something failed; its silent close means that the command runs.
    fn hear_init(&mut self) {
        let Some(socket) = &self.parts.init_socket else { return };
        let mut buffer = vec![0; MAX_FAILURE_BYTES];
        match sys::fd::receive_with_fds(socket.as_fd(), &mut buffer, MsgFlags::empty()) {
            // A failure is JSON, and begins with a brace.
            Ok((length, files)) if length > 0 && buffer[0] == message::NAMESPACES => {
                self.namespaces = Namespaces::parse(&buffer[1..length], files);
            }
            Ok((length, _)) if length > 0 => {
                let process = self.parts.saved.plan.spec.process();
                self.failure = parse_failure(&buffer[..length], process.as_ref());
            }
            _ => {
                self.parts.init_socket = None;
                if self.by_hand {
                    // It did not close the socket by executing the command: it was ended before.
                    let failure = || Failure::plain(Stage::Namespaces, "it was stopped while it started");
                    self.failure.get_or_insert_with(failure);
                }
                if self.failure.is_none() {
                    self.started();
                }
            }
        }
    }

    fn started(&mut self) {
        sys::fault::point("keeper-before-state");
        self.running = true;
        if let Some(together) = self.parts.together.take() {
            together.part();
        }
        self.parts.state.started = Timestamp::now();
        if let Err(error) = self.parts.containers.write_state(&self.parts.record.id, &self.parts.state) {
            self.failure = Some(Failure::plain(Stage::Namespaces, crate::sandbox::chain(&error)));
            self.kill_container();
            return;
        }
        if self.parts.saved.write_mode == WriteMode::Auto && !self.parts.saved.plan.auto_remove {
            // What worked stays: a container keeps the mode of its first start.
            self.parts.saved.write_mode = match self.parts.root_kind {
                // The same upper: what differs is how the image below is read.
                RootKind::Hybrid | RootKind::Materialised => WriteMode::Hybrid,
                RootKind::Pure => WriteMode::Pure,
                RootKind::Copy => WriteMode::Copy,
            };
            if let Err(error) = self.parts.containers.replace_plan(&self.parts.record.id, &self.parts.saved) {
                eprintln!("keeper: {}", crate::sandbox::chain(&error));
            }
        }
        sys::fault::point("keeper-has-state");
        let check = self.parts.saved.plan.healthcheck.clone();
        self.started = Instant::now();
        self.checks = check.map(|check| Checks::new(check, self.started));
        self.write_health();
        self.parts.containers.tell(&self.parts.record, "start", &[]); // as it was read a moment ago
        for index in 0..self.connections.len() {
            if std::mem::take(&mut self.connections[index].starts) {
                self.reply(index, &Reply::Started { pid: self.parts.init.pid.as_raw() });
            }
        }
        told::tell(&self.parts.containers, &self.parts.record, &self.parts.saved.plan, Use::Begins);
    }

    fn reply(&mut self, index: usize, reply: &Reply) {
        if let Some(connection) = self.connections.get_mut(index)
            && control::send(&connection.socket, reply, &[]).is_err()
        {
            connection.open = false; // the client is gone; nobody else waits for this answer
        }
    }

    /// Without a pid namespace of its own (`--pid host`) nothing but this ends what the container
    /// left running: it has become the keeper's child.
    fn end_descendants(&self) {
        let path = format!("/proc/self/task/{}/children", nix::unistd::gettid());
        let server = self.parts.server.pid;
        loop {
            let children = std::fs::read_to_string(&path).unwrap_or_default();
            let children =
                children.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw);
            let left: Vec<Pid> = children.filter(|pid| *pid != server).collect();
            if left.is_empty() {
                return;
            }
            for pid in left {
                // Children that only this process reaps: their numbers cannot mean others.
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
                let _ = sys::process::wait_for(pid);
            }
        }
    }

    /// Init is gone: record it, tell whoever waits, clean up, in this order. How long to wait for the next
    /// life, if there is to be one.
    fn finish(&mut self) -> io::Result<Option<Duration>> {
        sys::fault::point("keeper-ending");
        let plan = &self.parts.saved.plan;
        if !exec::namespaces(&plan.spec).contains(nix::sched::CloneFlags::CLONE_NEWPID) {
            self.end_descendants();
        }
        if let (Some(_), Some(mounts)) =
            (&plan.joins.pid, self.namespaces.of(nix::sched::CloneFlags::CLONE_NEWNS))
            && let Err(failure) = crate::sandbox::join::end_all_in(mounts)
        {
            eprintln!("{failure}"); // the supervisor's log
        }
        let code = self.init_ended.map_or(137, Ended::code);
        let reply = match (&self.failure, self.running) {
            (Some(failure), _) => Reply::Failed(failure.clone()),
            (None, true) => Reply::Exited { code },
            (None, false) => Reply::Failed(
                Failure::plain(Stage::Namespaces, "the container's supervisor failed to start it")
                    .hint("its supervisor.log in the store says more"),
            ),
        };
        let again = self.next_life(code);
        let oom_killed = self.parts.group.as_ref().is_some_and(|group| group.oom_kills() > 0);
        if oom_killed {
            self.tell("oom", &[]);
        }
        if self.running {
            let seconds = self.started.elapsed().as_secs().to_string();
            self.tell("die", &[("exitCode", &code.to_string()), ("execDuration", &seconds)]);
            told::tell(&self.parts.containers, &self.parts.record, &self.parts.saved.plan, Use::Ends);
            if self.stopped {
                self.tell("stop", &[]);
            }
        }
        let removed = self.record_end(code, again.is_some(), oom_killed);
        sys::fault::point("keeper-recorded");
        tell_waiting(&self.connections, &reply);
        sys::fault::point("keeper-told");
        self.connections.clear();
        self.namespaces = Namespaces::default();
        if again.is_none() {
            let _ = std::fs::remove_file(&self.parts.socket_path); // a stale name is found dead by its connect
        }
        self.let_server_finish(removed.is_some());
        if let Some(group) = self.parts.group.take() {
            group.remove();
        }
        sys::fault::point("keeper-cleaning");
        if let Some(grave) = removed {
            remove::tree(&grave, &self.parts.maps).map_err(io::Error::other)?;
            let root = self.parts.containers.store_root();
            remove::anonymous_volumes(root, &self.parts.record, &self.parts.maps)
                .map_err(io::Error::other)?;
        }
        if again.is_some() {
            self.forget_life();
        }
        Ok(again)
    }

    /// What the policy says; it is read again, since `update` may have changed it.
    fn next_life(&mut self, code: u8) -> Option<Duration> {
        if !self.running || self.failure.is_some() || self.parts.saved.plan.auto_remove {
            return None;
        }
        let saved = self.parts.containers.plan::<Saved>(&self.parts.record.id);
        let policy = saved.as_ref().unwrap_or(&self.parts.saved).request.restart;
        let life = Life { lasted: self.started.elapsed(), code, stopped_by_hand: self.by_hand };
        self.restarts.after(policy, life)
    }

    /// Nothing of the last life is polled any more.
    fn forget_life(&mut self) {
        for exec in self.execs.drain(..) {
            for child in [exec.helper, exec.process.filter(|_| exec.ended.is_none())].into_iter().flatten() {
                let _ = sys::process::wait_for(child.pid); // it has died with its namespace
            }
        }
        self.checks = None;
        (self.kill_at, self.drain_until) = (None, None);
        (self.drained, self.server_ended) = (true, true);
        self.parts.init_socket = None;
    }

    /// Writes the exit, or unlinks the record of a container that is to go; then its remains are returned.
    fn record_end(&self, code: u8, restarting: bool, oom_killed: bool) -> Option<PathBuf> {
        let Parts { containers, record, saved, lock, .. } = &self.parts;
        if self.failure.as_ref().is_some_and(|failure| failure.stage == Stage::Overlay)
            && saved.write_mode == WriteMode::Auto
        {
            return None; // the command is about to start it once more, in pure mode
        }
        if saved.plan.auto_remove {
            let latest = containers.record(&record.id).unwrap_or_else(|_| record.clone()); // `rename`
            match containers.unlink(&latest, lock) {
                Ok(grave) => {
                    containers.tell(&latest, "destroy", &[]);
                    return Some(grave);
                }
                Err(error) => eprintln!("keeper: {}", crate::sandbox::chain(&error)),
            }
        }
        let error = self.failure.as_ref().map(ToString::to_string).unwrap_or_default();
        let code = match &self.failure {
            Some(failure) => super::exit_code(failure),
            None => code,
        };
        let by_hand = self.by_hand;
        let exit = ExitRecord { finished: Timestamp::now(), code, error, restarting, by_hand, oom_killed };
        if let Err(error) = containers.write_exit(&record.id, &exit) {
            eprintln!("keeper: {}", crate::sandbox::chain(&error));
        }
        None
    }

    /// The server writes back what the kernel still holds while the mounts go away; a container that
    /// is removed needs none of it.
    fn let_server_finish(&mut self, removed: bool) {
        if self.server_ended {
            return;
        }
        if !removed {
            let mut polled = [PollFd::new(self.parts.server.pidfd.as_fd(), PollFlags::POLLIN)];
            let limit = PollTimeout::try_from(SERVER_LIMIT).unwrap_or(PollTimeout::MAX);
            let _ = poll(&mut polled, limit); // a signal only shortens the grace
        }
        let _ = sys::process::pidfd_send_signal(self.parts.server.pidfd.as_fd(), libc::SIGKILL);
        let _ = sys::process::wait_for(self.parts.server.pid); // gone either way
    }
}
