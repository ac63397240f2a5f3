//! A terminal for tests of `-it`: the engine on one end, keys and screen on the other.
//!
//! `setsid --ctty` gives the engine a session with the terminal as its controlling one, as a shell in a
//! terminal emulator has; `stty` on the terminal's path changes its size as the emulator would.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::openpty;
use nix::unistd::{Pid, ttyname};

use crate::harness::{Cmd, SOON, descendant, eventually, output, spawn_registered, unregister};

/// A program on a terminal of its own.
pub(crate) struct Terminal {
    keys: File,
    device: PathBuf,
    /// Held so that the terminal's settings can be read after the program has ended.
    _slave: OwnedFd,
    child: Child,
    at_start: String,
    screen: Vec<u8>,
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
        let stty = |arguments: &[&str]| stty(&device, arguments);
        stty(&["rows", "24", "cols", "80"]);
        let at_start = stty(&["-g"]);
        Self {
            keys: File::from(pty.master),
            child: spawn_registered(&mut outer, "setsid"),
            device,
            at_start,
            _slave: pty.slave,
            screen: Vec::new(),
            seen: 0,
        }
    }

    /// Types `keys`.
    pub(crate) fn type_keys(&mut self, keys: &str) {
        self.type_bytes(keys.as_bytes());
    }

    /// Sends bytes that are no text.
    pub(crate) fn type_bytes(&mut self, bytes: &[u8]) {
        self.keys.write_all(bytes).unwrap();
    }

    /// Waits until `text` appears after what was waited for before; returns what came up to its end.
    pub(crate) fn expect(&mut self, text: &str) -> String {
        String::from_utf8_lossy(&self.expect_bytes(text.as_bytes())).into_owned()
    }

    /// The same with bytes.
    pub(crate) fn expect_bytes(&mut self, wanted: &[u8]) -> Vec<u8> {
        let start = Instant::now();
        loop {
            let unseen = &self.screen[self.seen..];
            if let Some(at) = unseen.windows(wanted.len()).position(|window| window == wanted) {
                let seen = unseen[..at + wanted.len()].to_owned();
                self.seen += seen.len();
                return seen;
            }
            assert!(
                start.elapsed() < SOON,
                "no {:?} on the terminal: {:?}",
                String::from_utf8_lossy(wanted),
                String::from_utf8_lossy(unseen)
            );
            self.read();
        }
    }

    /// The program itself: `setsid` has become it, or waits for it.
    pub(crate) fn program(&self) -> Pid {
        let child = Pid::from_raw(self.child.id().cast_signed());
        let name = fs::read_to_string(format!("/proc/{child}/comm")).unwrap_or_default();
        if name.trim() == "setsid" { descendant(child, "hostel").unwrap() } else { child }
    }

    fn read(&mut self) {
        let mut polled = [PollFd::new(self.keys.as_fd(), PollFlags::POLLIN)];
        if poll(&mut polled, PollTimeout::from(50_u8)).unwrap() > 0 {
            let mut buffer = [0; 4096];
            let n = self.keys.read(&mut buffer).unwrap_or(0);
            self.screen.extend(&buffer[..n]);
        }
    }

    /// Gives the terminal another size, as dragging its window would.
    pub(crate) fn resize(&mut self, rows: u16, columns: u16) {
        stty(&self.device, &["rows", &rows.to_string(), "cols", &columns.to_string()]);
    }

    /// The terminal's settings, to compare before and after.
    pub(crate) fn settings(&self) -> String {
        stty(&self.device, &["-g"])
    }

    /// The settings that the terminal began with.
    pub(crate) fn settings_of_start(&self) -> String {
        self.at_start.clone()
    }

    /// Waits until the program has made the terminal raw.
    pub(crate) fn until_raw(&self) {
        eventually("raw mode", || self.settings() != self.at_start);
    }

    /// The terminal's settings once the program has ended.
    pub(crate) fn settings_after_end(&mut self) -> String {
        let start = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            assert!(start.elapsed() < SOON, "the program did not end; screen: {:?}", self.text());
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
            assert!(start.elapsed() < SOON, "the program did not end; screen: {:?}", self.text());
        };
        unregister(self.child.id());
        thread::sleep(Duration::from_millis(10));
        self.read();
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap());
        (code, self.text())
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.screen).into_owned()
    }
}

fn stty(device: &Path, arguments: &[&str]) -> String {
    let output = output(Command::new("stty").arg("-F").arg(device).args(arguments)).unwrap();
    assert!(output.status.success(), "stty: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
