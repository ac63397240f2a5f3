//! The processes of a running container as the machine sees them.
//!
//! They are the descendants of its keeper, but for the keeper's server: pid 1, what `exec` entered, and what
//! either of them started. Found by /proc/PID/task/TID/children, which anybody may read. A process that forks
//! while it is looked for may be missed once; who must have all of them looks again ([`hold`]).

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How often [`hold`] looks until nothing moves any more, for ten seconds in all: a fork bomb is faster, and a
/// process in an uninterruptible wait may be slower; either is told of.
const HOLD_ROUNDS: u32 = 20_000;
/// Between two looks, so that a stopped process has the time to be seen stopped.
const HOLD_WAIT: Duration = Duration::from_micros(500);

/// All of them, parents first: the descendants of `keeper` without those in `without`.
#[must_use]
pub fn of(keeper: i32, without: &[i32]) -> Vec<i32> {
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    let mut next: Vec<i32> = children(keeper).into_iter().filter(|pid| !without.contains(pid)).collect();
    while let Some(pid) = next.pop() {
        // A number that was given out anew between two looks must not make this go round in circles.
        if seen.insert(pid) {
            found.push(pid);
            next.extend(children(pid));
        }
    }
    found
}

fn children(pid: i32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

/// The fields of /proc/PID/stat from the third on (proc_pid_stat(5)); the first is the state.
#[must_use]
pub fn stat(pid: i32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may hold anything: look from its end.
    let (_, tail) = text.rsplit_once(')')?;
    Some(tail.split_ascii_whitespace().map(str::to_owned).collect())
}

/// A container's processes, held still by SIGSTOP until this is dropped. A process inside that waits for
/// children with WUNTRACED sees them stop and go on; those that were stopped before stay so.
#[derive(Debug)]
pub struct Held {
    keeper: i32,
    without: Vec<i32>,
    stopped: BTreeSet<i32>,
}

/// Stops every process of the container, and looks again until nothing new has come.
///
/// # Errors
/// When they start processes faster than they can be stopped; then all are let go again.
pub fn hold(keeper: i32, without: &[i32]) -> io::Result<Held> {
    // From here on whatever was stopped goes on again, also after a failure.
    let mut held = Held { keeper, without: without.to_vec(), stopped: BTreeSet::new() };
    for _ in 0..HOLD_ROUNDS {
        let mut moving = false;
        for pid in of(keeper, without) {
            let state = stat(pid).and_then(|fields| fields.first().cloned());
            if matches!(state.as_deref(), None | Some("T" | "t" | "Z" | "X")) {
                continue;
            }
            moving = true;
            match kill(Pid::from_raw(pid), Signal::SIGSTOP) {
                Ok(()) => drop(held.stopped.insert(pid)),
                Err(Errno::ESRCH) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        if !moving {
            return Ok(held);
        }
        std::thread::sleep(HOLD_WAIT);
    }
    Err(io::Error::other("its processes start others faster than they can be stopped"))
}

impl Drop for Held {
    fn drop(&mut self) {
        // Looked for anew: a number may have become another process's.
        for pid in of(self.keeper, &self.without).into_iter().filter(|pid| self.stopped.contains(pid)) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGCONT); // gone is as good
        }
    }
}
