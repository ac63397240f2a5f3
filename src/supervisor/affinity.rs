//! One CPU for init and server while the container is set up.
//!
//! Setting up is a long conversation: each look-up of init's is a request to the server. On one CPU
//! a round trip is two context switches, some 8 us; across CPUs it wakes an idle one, which takes 50
//! to 120 us in a virtual machine. They part when the command is executed.

use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;

/// Two processes on one CPU, and the CPUs that they are allowed again.
#[derive(Clone, Copy, Debug)]
pub struct Together {
    allowed: CpuSet,
    init: Pid,
    server: Pid,
}

impl Together {
    /// Moves both to the CPU of the caller. Threads that the server starts later inherit it.
    ///
    /// Only speed depends on it: where it is refused they stay apart.
    #[must_use]
    pub fn bring(init: Pid, server: Pid) -> Option<Self> {
        let allowed = sched_getaffinity(Pid::from_raw(0)).ok()?;
        let mut one = CpuSet::new();
        one.set(sched_getcpu().ok()?).ok()?;
        sched_setaffinity(server, &one).ok()?;
        let together = Self { allowed, init, server };
        together.move_threads(&one);
        if sched_setaffinity(init, &one).is_err() {
            together.part();
            return None;
        }
        Some(together)
    }

    /// Gives both, and every thread of the server, all their CPUs back.
    pub fn part(self) {
        // One that has ended needs no CPU.
        let _ = sched_setaffinity(self.init, &self.allowed);
        self.move_threads(&self.allowed);
    }

    /// Moves every thread of the server.
    fn move_threads(self, cpus: &CpuSet) {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.server));
        let threads = tasks.into_iter().flatten().flatten();
        for thread in threads.filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
            let _ = sched_setaffinity(Pid::from_raw(thread), cpus);
        }
    }
}
