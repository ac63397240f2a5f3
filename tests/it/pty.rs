//! A terminal for tests of `-it`: the engine on one end, keys and screen on the other.
//!
//! `setsid --ctty` gives the engine a session with the terminal as its controlling one, as a shell in a
//! terminal emulator has; `stty` on the terminal's path changes its size as the emulator would.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::openpty;
use nix::unistd::ttyname;

use crate::harness::{Cmd, SOON, output, spawn_registered, unregister};

/// A program on a terminal of its own.
pub(crate) struct Terminal {
    keys: File,
    device: PathBuf,
    /// Held so that the terminal's settings can be read after the program has ended.
    _slave: OwnedFd,
    child: Child,
    screen: String,
    seen: usize,
}

impl Terminal {
    /// Runs `command` on a new terminal of 24 rows and 80 columns.
    pub(crate) fn run(command: Cmd) -> Self {
        let pty = openpty(None, None).unwrap();
        let device = ttyname(&pty.slave).unwrap();
        let inner = command.into_command();
        let mut outer = Command::new("/usr/bin/setsid");
        outer.args(["--ctty", "--wait"]).arg(inner.get_program()).args(inner.get_args());
        outer.env_clear().envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
        outer.env("TERM", "xterm");
        if let Some(dir) = inner.get_current_dir() {
            outer.current_dir(dir);
        }
        let end = || pty.slave.try_clone().unwrap();
        outer.stdin(end()).stdout(end()).stderr(end());
        let mut terminal = Self {
            keys: File::from(pty.master),
            device,
            child: spawn_after_resize(&mut outer, &pty.slave),
            _slave: pty.slave,
            screen: String::new(),
            seen: 0,
        };
        terminal.resize(24, 80);
        terminal
    }

    /// Types `keys`.
    pub(crate) fn type_keys(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until `text` appears after what was waited for before; returns what came up to its end.
    pub(crate) fn expect(&mut self, text: &str) -> String {
        let start = Instant::now();
        loop {
            if let Some(at) = self.screen[self.seen..].find(text) {
                let from = self.seen;
                self.seen += at + text.len();
                return self.screen[from..self.seen].to_owned();
            }
            assert!(start.elapsed() < SOON, "no {text:?} on the terminal: {:?}", &self.screen[self.seen..]);
            self.read();
        }
    }

    fn read(&mut self) {
        let mut polled = [PollFd::new(self.keys.as_fd(), PollFlags::POLLIN)];
        if poll(&mut polled, PollTimeout::from(50_u8)).unwrap() > 0 {
            let mut buffer = [0; 4096];
            let n = self.keys.read(&mut buffer).unwrap_or(0);
            self.screen.push_str(&String::from_utf8_lossy(&buffer[..n]));
        }
    }

    /// Gives the terminal another size, as dragging its window would.
    pub(crate) fn resize(&mut self, rows: u16, columns: u16) {
        self.stty(&["rows", &rows.to_string(), "cols", &columns.to_string()]);
    }

    /// The terminal's settings, to compare before and after.
    pub(crate) fn settings(&self) -> String {
        self.stty(&["-g"])
    }

    fn stty(&self, arguments: &[&str]) -> String {
        let mut stty = Command::new("stty");
        stty.arg("-F").arg(&self.device).args(arguments);
        let output = output(&mut stty).unwrap();
        assert!(output.status.success(), "stty: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The terminal's settings once the program has ended.
    pub(crate) fn settings_after_end(&mut self) -> String {
        let start = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            assert!(start.elapsed() < SOON, "the program did not end; screen: {:?}", self.screen);
            self.read();
        }
        self.settings()
    }

    /// Waits for the program's end and returns its exit code and the whole screen.
    pub(crate) fn end(mut self) -> (i32, String) {
        let start = Instant::now();
        let status = loop {
            self.read();
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(start.elapsed() < SOON, "the program did not end; screen: {:?}", self.screen);
        };
        unregister(self.child.id());
        thread::sleep(Duration::from_millis(10));
        self.read();
        (status.code().unwrap_or(-1), std::mem::take(&mut self.screen))
    }
}

fn spawn_after_resize(command: &mut Command, slave: &OwnedFd) -> Child {
    let device = ttyname(slave).unwrap();
    let _ = output(Command::new("stty").arg("-F").arg(device).args(["rows", "24", "cols", "80"]));
    spawn_registered(command, "setsid")
}
