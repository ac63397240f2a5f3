//! The attached client: this command's stdio to and from a container, its terminal and its signals.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{MsgFlags, recv, send};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

use super::client_config::ClientConfig;
use crate::supervisor::client::Client;
use crate::supervisor::control::{Reply, Request};
use crate::supervisor::stream::{self, Kind};
use crate::sys;

/// Input that waits for the container before no more is read from stdin.
const MAX_PENDING_BYTES: usize = 64 << 10;
const READ_BYTES: usize = 64 << 10;

/// Docker's default: ctrl-p ctrl-q.
pub const DETACH_KEYS: &[u8] = &[0x10, 0x11];

/// How to attach.
#[derive(Clone, Debug)]
pub struct Options {
    /// Read our stdin.
    pub stdin: bool,
    /// The container has a terminal: ours becomes raw and its size is passed on.
    pub terminal: bool,
    /// Pass signals on to the container.
    pub proxy_signals: bool,
    /// Bytes that detach, when there is a terminal.
    pub detach_keys: Vec<u8>,
    /// Leaving by the keys is told, and is a failure, as Docker's `attach` and `exec` have it.
    pub tells_of_leaving: bool,
}

/// How it ended.
#[derive(Debug)]
pub enum End {
    /// The container's or process's end, with its exit code.
    Exited(u8),
    /// The user left; the container goes on.
    Detached,
    /// This command is to end by a signal that it does not pass on; the terminal is as it was.
    Signaled(Signal),
    /// It never started.
    Failed(crate::sandbox::Failure),
    /// The keeper is gone without a word.
    Lost,
}

/// Signals that make no sense to pass on: what the kernel sends about this very process.
const NOT_PASSED_ON: [Signal; 9] = [
    Signal::SIGCHLD,
    Signal::SIGPIPE,
    Signal::SIGSEGV,
    Signal::SIGBUS,
    Signal::SIGILL,
    Signal::SIGFPE,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
    Signal::SIGTSTP,
];

/// Signals that end this command, unless they are passed on: the terminal is restored first.
const ENDING: [Signal; 4] = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM];

/// What travels between us and the process: frames to a server, or a terminal's master.
#[derive(Debug)]
pub enum Channel {
    /// The attach stream of [`stream`].
    Stream(OwnedFd),
    /// The master of an `exec -t` process's terminal.
    Master(OwnedFd),
    /// Pipes of an `exec` process: its stdin, its stdout and stderr.
    Pipes {
        /// Writing end; none when it gets no input.
        stdin: Option<OwnedFd>,
        /// Reading ends.
        outputs: [OwnedFd; 2],
    },
}

/// Makes our terminal raw until dropped.
#[derive(Debug)]
struct Raw(Termios);

impl Raw {
    fn enter() -> Option<Self> {
        let saved = tcgetattr(io::stdin()).ok()?;
        let mut raw = saved.clone();
        cfmakeraw(&mut raw);
        tcsetattr(io::stdin(), SetArg::TCSANOW, &raw).ok()?;
        Some(Self(saved))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), SetArg::TCSADRAIN, &self.0); // the terminal is gone then
    }
}

/// The last that a process said on stderr, or on its terminal.
#[derive(Debug, Default)]
pub struct LastWords(Vec<u8>);

/// A message, and what a program says after it.
const LAST_WORDS_BYTES: usize = 2048;

impl LastWords {
    fn hear(&mut self, bytes: &[u8]) {
        let new = &bytes[bytes.len().saturating_sub(LAST_WORDS_BYTES)..];
        let surplus = (self.0.len() + new.len()).saturating_sub(LAST_WORDS_BYTES);
        self.0.drain(..surplus);
        self.0.extend(new);
    }

    /// Whether something was refused in the words that C libraries and languages have for EPERM and EINVAL,
    /// which is what the kernel answers to chown(2), setuid(2) and their kin for an id that is not mapped. It
    /// does so before any filesystem is asked, so there is nowhere else to learn of it.
    #[must_use]
    pub fn tell_of_refusal(&self) -> bool {
        let text = self.0.to_ascii_lowercase();
        let has = |words: &[u8]| text.windows(words.len()).any(|part| part == words);
        has(b"operation not permitted") || has(b"invalid argument")
    }
}

struct Relay<'a> {
    keeper: &'a Client,
    options: &'a Options,
    stdin_open: bool,
    to_container: Option<OwnedFd>,
    outputs: Vec<(OwnedFd, Output)>,
    pending: Vec<u8>,
    incoming: Vec<u8>,
    end: Option<End>,
    end_of_input: bool,
    keys_seen: usize,
    last_words: LastWords,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Output {
    Frames,
    Stdout,
    Stderr,
}

#[derive(Clone, Copy, Debug)]
enum Token {
    Keeper,
    Signals,
    Stdin,
    Write,
    Output(usize),
}

/// Relays until the process ends or the user detaches; also what it said last.
///
/// # Errors
/// When our own stdio or the keeper's connection fails.
pub fn run(keeper: &Client, channel: Channel, options: &Options) -> io::Result<(End, LastWords)> {
    let mut signals = SigSet::all();
    for signal in NOT_PASSED_ON {
        signals.remove(signal);
    }
    if !options.proxy_signals {
        let ending = ENDING.into_iter().filter(|signal| !sys::process::is_ignored(*signal));
        signals = ending.chain([Signal::SIGWINCH]).collect();
    }
    signals.thread_block()?;
    let raw = if options.terminal && options.stdin { Raw::enter() } else { None };
    let signal_fd = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let (to_container, outputs) = match channel {
        Channel::Stream(fd) => (Some(fd.try_clone()?), vec![(fd, Output::Frames)]),
        Channel::Master(fd) => (Some(fd.try_clone()?), vec![(fd, Output::Stdout)]),
        Channel::Pipes { stdin, outputs: [out, err] } => {
            (stdin, vec![(out, Output::Stdout), (err, Output::Stderr)])
        }
    };
    for fd in to_container.iter().chain(outputs.iter().map(|(fd, _)| fd)) {
        sys::fd::set_nonblocking(fd)?;
    }
    let mut relay = Relay {
        keeper,
        options,
        stdin_open: options.stdin,
        to_container,
        outputs,
        pending: Vec::new(),
        incoming: Vec::new(),
        end: None,
        end_of_input: false,
        keys_seen: 0,
        last_words: LastWords::default(),
    };
    if options.terminal {
        relay.pass_size();
    }
    let end = relay.work(&signal_fd);
    drop(raw);
    end.map(|end| (end, relay.last_words))
}

impl Relay<'_> {
    fn work(&mut self, signals: &SignalFd) -> io::Result<End> {
        loop {
            // The process's end and its last output come by different ways: both have to be here.
            let at_once =
                matches!(self.end, Some(End::Failed(_) | End::Detached | End::Signaled(_) | End::Lost));
            if (self.outputs.is_empty() || at_once)
                && let Some(end) = self.end.take()
            {
                return Ok(end);
            }
            let mut wanted: Vec<(Token, BorrowedFd<'_>, PollFlags)> =
                vec![(Token::Signals, signals.as_fd(), PollFlags::POLLIN)];
            if self.end.is_none() {
                wanted.push((Token::Keeper, self.keeper.as_fd(), PollFlags::POLLIN));
            }
            let stdin = io::stdin();
            if self.stdin_open && self.to_container.is_some() && self.pending.len() < MAX_PENDING_BYTES {
                wanted.push((Token::Stdin, stdin.as_fd(), PollFlags::POLLIN));
            }
            if let Some(fd) = self.to_container.as_ref().filter(|_| !self.pending.is_empty()) {
                wanted.push((Token::Write, fd.as_fd(), PollFlags::POLLOUT));
            }
            for (index, (fd, _)) in self.outputs.iter().enumerate() {
                wanted.push((Token::Output(index), fd.as_fd(), PollFlags::POLLIN));
            }
            let mut polled: Vec<_> = wanted.iter().map(|(_, fd, flags)| PollFd::new(*fd, *flags)).collect();
            match poll(&mut polled, PollTimeout::NONE) {
                Ok(_) => {}
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            }
            let ready: Vec<Token> = wanted
                .iter()
                .zip(&polled)
                .filter(|(_, fd)| fd.revents().is_some_and(|flags| !flags.is_empty()))
                .map(|((token, ..), _)| *token)
                .collect();
            // From the back, so that a closed output does not change the number of the next.
            for token in ready.into_iter().rev() {
                match token {
                    Token::Keeper => self.hear_keeper()?,
                    Token::Signals => self.pass_signals(signals)?,
                    Token::Stdin => self.read_stdin(),
                    Token::Write => self.write(),
                    Token::Output(index) => self.read_output(index)?,
                }
            }
        }
    }

    fn hear_keeper(&mut self) -> io::Result<()> {
        match self.keeper.receive()? {
            None => {
                self.end = Some(End::Lost);
            }
            Some(Reply::Exited { code }) => self.end = Some(End::Exited(code)),
            Some(Reply::Failed(failure)) => self.end = Some(End::Failed(failure)),
            Some(Reply::Ok | Reply::Started { .. } | Reply::Namespaces { .. } | Reply::Refused(_)) => {}
        }
        Ok(())
    }

    fn pass_signals(&mut self, signals: &SignalFd) -> io::Result<()> {
        while let Some(info) = signals.read_signal()? {
            let signal = i32::try_from(info.ssi_signo).unwrap_or(0);
            if signal == libc::SIGWINCH {
                self.pass_size();
            } else if self.options.proxy_signals {
                // The keeper's end is seen by itself.
                let _ = self.keeper.send(&Request::Signal { signal }, &[]);
            } else {
                self.end = Signal::try_from(signal).ok().map(End::Signaled);
            }
        }
        Ok(())
    }

    fn pass_size(&mut self) {
        let Ok((rows, columns)) =
            sys::terminal::size(io::stdout().as_fd()).or_else(|_| sys::terminal::size(io::stdin().as_fd()))
        else {
            return;
        };
        match self.outputs.first() {
            Some((_, Output::Frames)) => {
                stream::append(&mut self.pending, Kind::Resize, &stream::size_payload(rows, columns));
                self.write();
            }
            // Cosmetic: a terminal of the wrong size works.
            Some((master, _)) => drop(sys::terminal::set_size(master.as_fd(), rows, columns)),
            None => {}
        }
    }

    fn is_framed(&self) -> bool {
        self.outputs.first().is_some_and(|(_, output)| *output == Output::Frames)
    }

    fn read_stdin(&mut self) {
        let mut buffer = [0; READ_BYTES];
        match nix::unistd::read(io::stdin(), &mut buffer) {
            Err(Errno::EAGAIN | Errno::EINTR) => return,
            Ok(0) | Err(_) => {
                self.stdin_open = false;
                self.end_of_input = true;
                if self.is_framed() {
                    stream::append(&mut self.pending, Kind::StdinEnd, &[]);
                }
            }
            Ok(length) => {
                let mut bytes = buffer[..length].to_vec();
                // What was typed before the keys still counts.
                if self.options.terminal && self.watch_for_detach(&mut bytes) {
                    self.end = Some(End::Detached);
                }
                if self.is_framed() {
                    stream::append(&mut self.pending, Kind::Stdin, &bytes);
                } else {
                    self.pending.extend(bytes);
                }
            }
        }
        self.write();
    }

    /// Looks for the detach keys, which may come in several reads. What turned out not to be them is
    /// put back in front.
    fn watch_for_detach(&mut self, bytes: &mut Vec<u8>) -> bool {
        let keys = &self.options.detach_keys;
        if keys.is_empty() {
            return false;
        }
        let mut passed = Vec::with_capacity(bytes.len());
        for byte in bytes.iter() {
            if *byte == keys[self.keys_seen] {
                self.keys_seen += 1;
                if self.keys_seen == keys.len() {
                    self.keys_seen = 0;
                    *bytes = passed;
                    return true;
                }
                continue;
            }
            passed.extend(&keys[..self.keys_seen]);
            self.keys_seen = usize::from(*byte == keys[0]);
            if self.keys_seen == 0 {
                passed.push(*byte);
            }
        }
        *bytes = passed;
        false
    }

    fn write(&mut self) {
        let framed = self.is_framed();
        if let Some(fd) = &self.to_container {
            while !self.pending.is_empty() {
                let written = if framed {
                    send(fd.as_raw_fd(), &self.pending, MsgFlags::MSG_NOSIGNAL)
                } else {
                    nix::unistd::write(fd, &self.pending)
                };
                match written {
                    Ok(length) => drop(self.pending.drain(..length)),
                    Err(Errno::EAGAIN | Errno::EINTR) => return,
                    Err(_) => {
                        // It reads no more: what was meant for it is lost, as in a pipeline.
                        self.pending.clear();
                        self.to_container = None;
                        return;
                    }
                }
            }
        }
        if self.end_of_input && !framed && !self.options.terminal {
            self.to_container = None; // closing the pipe is how it learns of the end
        }
    }

    fn read_output(&mut self, index: usize) -> io::Result<()> {
        let mut buffer = [0; READ_BYTES];
        let (fd, output) = &self.outputs[index];
        let output = *output;
        let result = if output == Output::Frames {
            recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty())
        } else {
            nix::unistd::read(fd, &mut buffer)
        };
        let bytes = match result {
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(()),
            // A terminal whose last user is gone answers EIO.
            Ok(0) | Err(_) => {
                self.outputs.remove(index);
                return Ok(());
            }
            Ok(length) => &buffer[..length],
        };
        match output {
            Output::Stdout => {
                if self.options.terminal {
                    self.last_words.hear(bytes);
                }
                put(&mut io::stdout().lock(), bytes)
            }
            Output::Stderr => {
                self.last_words.hear(bytes);
                put(&mut io::stderr().lock(), bytes)
            }
            Output::Frames => {
                self.incoming.extend(bytes);
                let mut used = 0;
                while let Some((kind, range)) =
                    stream::parse(&self.incoming[used..]).map_err(io::Error::other)?
                {
                    let payload = &self.incoming[used + range.start..used + range.end];
                    if self.options.terminal || kind == Kind::Stderr {
                        self.last_words.hear(payload);
                    }
                    match kind {
                        Kind::Stderr => put(&mut io::stderr().lock(), payload)?,
                        _ => put(&mut io::stdout().lock(), payload)?,
                    }
                    used += range.end;
                }
                self.incoming.drain(..used);
                Ok(())
            }
        }
    }
}

fn put(to: &mut impl io::Write, bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}

/// The keys that end an attachment: those of `--detach-keys`, of config.json's `detachKeys`, ctrl-p ctrl-q.
///
/// # Errors
/// What is no key.
pub fn detach_keys(flag: Option<&str>) -> Result<Vec<u8>, super::CliError> {
    let configured = || Some(ClientConfig::of_user().detach_keys.as_str()).filter(|keys| !keys.is_empty());
    flag.or_else(configured).map_or_else(|| Ok(DETACH_KEYS.to_vec()), parse_detach_keys)
}

/// Reads Docker's notation: keys separated by commas, `ctrl-` and one of `a-z @ [ \ ] ^ _`, or a
/// plain character.
///
/// # Errors
/// What is no key.
pub fn parse_detach_keys(text: &str) -> Result<Vec<u8>, super::CliError> {
    let wrong = || super::CliError::new(format!("invalid escape keys ({text}) provided"));
    if text.is_empty() {
        return Ok(Vec::new());
    }
    text.split(',')
        .map(|key| {
            let key = key.to_ascii_lowercase();
            match (key.strip_prefix("ctrl-").map(str::as_bytes), key.as_bytes()) {
                (Some([letter @ (b'a'..=b'z' | b'[' | b'\\' | b']' | b'^' | b'_')]), _) => Ok(letter & 0x1f),
                (Some([b'@']), _) => Ok(0),
                (None, [byte]) => Ok(*byte),
                _ => Err(wrong()),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_heard_in_what_was_said_last() {
        let mut words = LastWords::default();
        words.hear(b"chown: /f: Invalid argu");
        assert!(!words.tell_of_refusal());
        words.hear(b"ment\n");
        assert!(words.tell_of_refusal());
        words.hear(&[b'x'; LAST_WORDS_BYTES - 10]);
        assert!(!words.tell_of_refusal());
        words.hear(b"E: setgroups 65534 failed - setgroups (1: Operation not permitted)");
        assert!(words.tell_of_refusal());
        words.hear(&[b'x'; 3 * LAST_WORDS_BYTES]);
        assert_eq!(words.0.len(), LAST_WORDS_BYTES);
    }

    #[test]
    fn detach_keys_are_dockers() {
        for (text, keys) in [
            ("ctrl-p,ctrl-q", Some(vec![16, 17])),
            ("ctrl-@,x", Some(vec![0, b'x'])),
            ("", Some(vec![])),
            ("ctrl-1", None),
            ("ab", None),
        ] {
            assert_eq!(parse_detach_keys(text).ok(), keys, "{text}");
        }
    }
}
