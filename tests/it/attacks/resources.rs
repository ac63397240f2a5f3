//! Containers that eat what there is: they must still be removable.

use nix::sys::signal::{Signal, kill};

use crate::harness::{Hostel, descendant, eventually};

#[test]
fn a_fork_bomb_is_removed() {
    let Some(h) = Hostel::new() else { return };
    // The shell that forks ends at the limit; what it started stays.
    let bomb = "echo up; (while :; do sleep 1000 & done) 2>/dev/null & exec sleep 1000";
    h.args(&["run", "-d", "--name", "bomb", "--ulimit", "nproc=300:300", "busybox", "sh", "-c", bomb]).ok();
    h.wait_for_log("bomb", "up");
    eventually("it has forked", || h.run("top bomb").stdout.lines().count() > 100);
    h.run("exec bomb true"); // may or may not find a process free
    h.run("rm -f bomb").ok();
    h.run("run --rm busybox echo ok").ok().stdout("ok\n");
}

#[test]
fn a_container_without_free_descriptors_is_entered_and_removed() {
    let Some(h) = Hostel::debian() else { return };
    let program = "import os,time\nfds=[]\ntry:\n while True: fds.append(os.open('/etc/passwd',0))\nexcept OSError: pass\nprint('full',flush=True)\ntime.sleep(1000)";
    for write in ["write=hybrid", "write=pure"] {
        h.args(&["run", "-d", "--name", "full", "--storage-opt", write, "debian", "python3", "-c", program])
            .ok();
        h.wait_for_log("full", "full");
        h.run("exec full cat /etc/hostname").ok();
        h.run("rm -f full").ok();
    }
}

#[test]
fn signals_and_stops_from_inside_do_not_save_a_container() {
    let Some(h) = Hostel::new() else { return };
    let script = "trap '' TERM INT HUP QUIT USR1 TSTP; echo up; kill -STOP -1; while :; do sleep 1; done";
    h.args(&["run", "-d", "--name", "stubborn", "busybox", "sh", "-c", script]).ok();
    h.wait_for_log("stubborn", "up");
    h.run("pause stubborn").ok();
    h.run("rm -f stubborn").ok();
    h.run("ps -aq").ok().stdout("");
}

#[test]
fn a_start_that_takes_for_ever_is_removed() {
    let Some(h) = Hostel::debian() else { return };
    // The image's files go to the volume first, which gives the time to stop the process that copies them.
    let start = h.cmd("run -d --name slow --network none -v big:/usr debian true").spawn();
    let mut init = None;
    eventually("the start is under way", || {
        init = descendant(start.pid(), "hostel-init");
        init.is_some_and(|pid| kill(pid, Signal::SIGSTOP).is_ok())
    });
    h.run("ps -a --format {{.Names}}:{{.State}}").ok().stdout("slow:created\n");
    h.run("rm -f slow").ok().stdout("slow\n");
    start.wait().code(125).stderr_has("it was stopped while it started");
    h.run("ps -aq").ok().stdout("");
    h.run("volume rm big").ok();
    h.run("run --rm --network none debian echo ok").ok().stdout("ok\n");
}
