//! Whatever is killed, whenever: nothing is left, and the next `ps -a` tells the truth.
//!
//! That nothing is left is what the harness checks at the end of every test; these provoke it.

use std::fs;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Hostel, eventually};

/// Clears its parent-death signal as hostile or merely setuid programs do: exec of a program by another
/// user id clears it too, and busybox has no prctl, so this asks python in the Debian image.
const CLEARS_DEATH_SIGNAL: &str = "python3 -c 'import ctypes,time; ctypes.CDLL(None).prctl(1,0,0,0,0); print(\"cleared\", flush=True); time.sleep(600)'";

fn pid_of(h: &Hostel, name: &str) -> Pid {
    Pid::from_raw(h.run(&format!("inspect -f '{{{{.State.Pid}}}}' {name}")).ok().out().parse().unwrap())
}

/// The engine's processes of a running container: all that belong to it but the container's own.
fn engine_pids(h: &Hostel, name: &str) -> Vec<Pid> {
    let init = pid_of(h, name).to_string();
    let mut found = Vec::new();
    for line in h.processes() {
        let pid = line.split(' ').next().unwrap();
        let inside = fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let container = fs::read_link(format!("/proc/{init}/ns/pid")).ok();
        if pid != init && (inside.is_none() || inside != container) {
            found.push(Pid::from_raw(pid.parse().unwrap()));
        }
    }
    found
}

#[test]
fn killing_any_engine_process_ends_the_container() {
    let Some(h) = Hostel::new() else { return };
    h.detached("--name probe busybox sleep 600");
    let count = engine_pids(&h, "probe").len();
    assert!(count >= 1, "no engine process was found: {:#?}", h.processes());
    h.run("rm -f probe").ok();
    for victim in 0..count {
        h.detached("--name vv busybox sleep 600");
        let init = pid_of(&h, "vv");
        let pids = engine_pids(&h, "vv");
        kill(pids[victim.min(pids.len() - 1)], Signal::SIGKILL).unwrap();
        eventually("the container is seen as ended", || {
            h.run("ps -a --format '{{.State}}'").ok().stdout != "running\n"
        });
        eventually("its first process is gone", || kill(init, None).is_err());
        h.run("ps -q").ok().stdout("");
        h.run("exec vv true").code(1);
        h.run("rm vv").ok();
    }
}

#[test]
fn a_container_that_cleared_its_death_signal_is_ended_too() {
    let Some(h) = Hostel::debian() else { return };
    h.detached(&format!("--name stubborn debian {CLEARS_DEATH_SIGNAL}"));
    h.wait_for_log("stubborn", "cleared");
    let init = pid_of(&h, "stubborn");
    for pid in engine_pids(&h, "stubborn") {
        let _ = kill(pid, Signal::SIGKILL);
    }
    eventually("the container is seen as ended", || {
        h.run("ps -a --format '{{.State}}'").ok().stdout == "exited\n"
    });
    eventually("its first process is gone", || kill(init, None).is_err());
    h.run("rm stubborn").ok();
}

#[test]
fn a_killed_client_of_run_leaves_a_container_that_can_be_removed() {
    let Some(h) = Hostel::new() else { return };
    let client = h.cmd("run --name left busybox sh -c 'echo up; sleep 600'").spawn();
    client.wait_for("up");
    client.signal(Signal::SIGKILL);
    client.wait().code(137);
    let state = h.run("ps -a --format '{{.State}}'").ok().out();
    assert!(state == "running" || state == "exited", "{state}");
    h.run("rm -f left").ok();
}

#[test]
fn a_client_killed_at_any_moment_leaves_no_half_container() {
    let Some(h) = Hostel::new() else { return };
    for delay_ms in [0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 30, 50] {
        let client = h.cmd("run --rm busybox true").spawn();
        std::thread::sleep(Duration::from_millis(delay_ms));
        client.signal(Signal::SIGKILL);
        let _ = client.wait();
        h.run("ps -a").ok();
    }
    eventually("what was started has ended", || h.run("ps -q").ok().stdout.is_empty());
    h.run("container prune -f").ok();
    h.run("run --rm busybox echo still works").ok().stdout("still works\n");
}

#[test]
fn signals_to_the_client_reach_the_command() {
    let Some(h) = Hostel::new() else { return };
    for (signal, code) in [(Signal::SIGTERM, 5), (Signal::SIGINT, 6), (Signal::SIGHUP, 7)] {
        let client = h
            .cmd("run --rm busybox sh -c 'trap \"exit 5\" TERM; trap \"exit 6\" INT; trap \"exit 7\" HUP; echo up; while :; do sleep 0.05; done'")
            .spawn();
        client.wait_for("up");
        client.signal(signal);
        client.wait().code(code);
    }
}

#[test]
fn many_children_end_with_the_container() {
    let Some(h) = Hostel::new() else { return };
    h.run("run --rm busybox sh -c 'for i in 1 2 3 4 5 6 7 8; do (setsid sleep 600 &); done; echo done'")
        .ok()
        .stdout("done\n");
}

#[test]
fn two_engines_load_at_once() {
    let Some(archive) = crate::fixtures::busybox_archive() else {
        return crate::harness::skip("no busybox-static");
    };
    let h = Hostel::empty();
    let line = format!("load -q -i {}", archive.display());
    let loads: Vec<_> = (0..4).map(|_| h.cmd(&line).spawn()).collect();
    let runs: Vec<_> = (0..4).map(|_| h.cmd("images -q").spawn()).collect();
    for load in loads {
        load.wait().ok();
    }
    for run in runs {
        run.wait().ok();
    }
    h.run("run --rm busybox echo ok").ok().stdout("ok\n");
}

#[test]
fn a_killed_load_leaves_a_store_that_works() {
    let Some(archive) = crate::fixtures::busybox_archive() else {
        return crate::harness::skip("no busybox-static");
    };
    let h = Hostel::empty();
    for delay_ms in [2, 5, 10, 20, 40] {
        let load = h.cmd(&format!("load -i {}", archive.display())).spawn();
        std::thread::sleep(Duration::from_millis(delay_ms));
        load.signal(Signal::SIGKILL);
        let _ = load.wait();
        h.run("images").ok();
    }
    h.run(&format!("load -i {}", archive.display())).ok();
    h.run("run --rm busybox echo ok").ok().stdout("ok\n");
}

#[test]
fn a_full_disk_is_said() {
    let Some(h) = Hostel::new() else { return };
    h.run("run --rm --tmpfs /small:size=64k busybox sh -c 'cat /bin/busybox > /small/f'")
        .code(1)
        .stderr_has("No space left on device");
}
