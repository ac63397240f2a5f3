//! Holding a container's processes still for a moment.
//!
//! Without a cgroup of its own a container has no freezer, so its processes are stopped with SIGSTOP,
//! one by one, until a look at the machine's processes finds none of its pid namespace that runs.
//! What that cannot hide: a process inside that waits for children with WUNTRACED sees them stop and
//! go on. Those that were stopped before stay so.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::unistd::Pid;

use crate::store::containers::State;
use crate::sys;

/// How long stopping may take: a process in an uninterruptible wait stops when that ends.
const LIMIT: Duration = Duration::from_secs(10);
/// Between two looks.
const STEP: Duration = Duration::from_millis(2);

/// A container whose processes stand still until this is dropped.
#[derive(Debug)]
pub struct Paused {
    stopped: BTreeSet<i32>,
    namespace: PathBuf,
}

impl Paused {
    /// Stops every process of a running container.
    ///
    /// # Errors
    /// The container is gone, shares the machine's pid namespace, or does not come to a halt.
    pub fn new(state: &State) -> io::Result<Self> {
        let namespace = fs::read_link(format!("/proc/{}/ns/pid", state.pid))?;
        if fs::read_link("/proc/self/ns/pid")? == namespace {
            return Err(io::Error::other("it runs in the machine's own pid namespace"));
        }
        // From here on whatever was stopped goes on again, also after a failure.
        let mut paused = Self { stopped: BTreeSet::new(), namespace };
        let start = Instant::now();
        loop {
            let mut running = false;
            for pid in paused.members()? {
                match state_of(pid) {
                    Some('T' | 't') => {}
                    // Ended, or about to.
                    None | Some('Z' | 'X') => {}
                    Some(_) => {
                        running = true;
                        paused.signal(pid, libc::SIGSTOP);
                        paused.stopped.insert(pid);
                    }
                }
            }
            if !running {
                return Ok(paused);
            }
            if start.elapsed() > LIMIT {
                return Err(io::Error::other("its processes do not come to a halt"));
            }
            thread::sleep(STEP);
        }
    }

    fn members(&self) -> io::Result<Vec<i32>> {
        let pids = fs::read_dir("/proc")?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
            .filter(|pid| self.is_member(*pid));
        Ok(pids.collect())
    }

    fn is_member(&self, pid: i32) -> bool {
        fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|namespace| namespace == self.namespace)
    }

    /// Through a pidfd that is checked after it was opened, so that a reused number is nobody else's.
    fn signal(&self, pid: i32, signal: i32) {
        let Ok(pidfd) = sys::process::pidfd_open(Pid::from_raw(pid)) else { return };
        if self.is_member(pid) {
            match sys::process::pidfd_send_signal(pidfd.as_fd(), signal) {
                // Gone meanwhile: as good as still.
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => eprintln!("WARNING: cannot signal process {pid}: {}", errno.desc()),
            }
        }
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        for pid in &self.stopped {
            self.signal(*pid, libc::SIGCONT);
        }
    }
}

/// The state letter (proc_pid_stat(5), field 3).
fn state_of(pid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything, parentheses too.
    stat[stat.rfind(')')? + 1..].trim_start().chars().next()
}
