//! A process killed at each named stage, and each step on the disk killed or refused: what everybody else sees then.
//!
//! The stages are the calls of `sys::fault` in src; see there for how one is chosen. After each fault `ps -a`,
//! `images`, `system check` and a new run are right, what a command before had acknowledged is there, and nothing is
//! left: no process, mount, socket or file of a container.

use std::fs;
use std::path::{Path, PathBuf};

use crate::fixtures;
use crate::harness::{Done, Hostel, skip};

const NEEDS: &str = "needs --features fault-points";

/// A command in which the `time`-th passage of `place` ends the process (`KILL`) or fails with an errno.
fn with_fault(h: &Hostel, line: &str, place: &str, what: &str, time: u32) -> (Done, u32) {
    let count = count_file(h);
    fs::write(&count, [0; 4]).unwrap();
    let done = h
        .cmd(line)
        .env("HOSTEL_FAULT", &format!("{place}:{what}:{time}"))
        .env("HOSTEL_FAULT_COUNT", &count.to_string_lossy())
        .run();
    assert!(!done.stderr.contains("panicked"), "{line} {place} {what} {time}: {}", done.stderr);
    (done, passed(&count))
}

fn count_file(h: &Hostel) -> PathBuf {
    h.place("faults")
}

/// How often the place has been passed so far.
fn passed(count: &Path) -> u32 {
    u32::from_ne_bytes(fs::read(count).unwrap().try_into().unwrap())
}

const KEEP: &str = "run --rm --network none -v kept:/v busybox sh -c 'echo acknowledged > /v/f; sync'";
const KEPT: &str = "run --rm --network none -v kept:/v busybox cat /v/f";

/// Everything works, and nothing is left.
fn all_is_well(h: &Hostel, images: &str) {
    h.run("ps -a").ok();
    assert_eq!(h.run("images -q --no-trunc").ok().stdout, images);
    h.run("system check").ok();
    h.run(KEPT).ok().stdout("acknowledged\n");
    h.check_clean();
}

/// Each place of `places`, in a container that is kept and in one that goes by itself.
fn killed_at(places: &[&str], follow: &str) {
    let Some(h) = Hostel::new() else { return };
    h.run(KEEP).ok();
    let images = h.run("images -q --no-trunc").ok().stdout.clone();
    for place in places {
        for line in
            ["run --name one busybox sh -c 'echo x > /f; echo said'", "run --rm -d --name two busybox true"]
        {
            let (done, _) = with_fault(&h, line, place, "KILL", 1);
            // A process in the background comes to its place when it comes.
            crate::harness::eventually(&format!("{place} is passed by `{line}`"), || {
                passed(&count_file(&h)) > 0
            });
            assert!(done.exit_code() <= 137, "{place}: {}", done.exit_code());
            if !follow.is_empty() {
                h.run(follow);
            }
        }
        all_is_well(&h, &images);
    }
}

#[test]
#[cfg_attr(not(feature = "fault-points"), ignore = "needs --features fault-points")]
fn the_command_is_killed_at_each_stage() {
    killed_at(&["command-before", "command-listens", "command-forked", "command-started"], "rm -f one two");
}

#[test]
#[cfg_attr(not(feature = "fault-points"), ignore = "needs --features fault-points")]
fn the_keeper_is_killed_at_each_stage_of_a_start() {
    let stages = ["begins", "has-server", "has-init", "has-maps", "before-state", "has-state"];
    killed_at(&stages.map(|stage| format!("keeper-{stage}")).each_ref().map(String::as_str), "");
}

#[test]
#[cfg_attr(not(feature = "fault-points"), ignore = "needs --features fault-points")]
fn the_keeper_is_killed_at_each_stage_of_an_end() {
    let stages = ["ending", "recorded", "told", "cleaning"];
    killed_at(&stages.map(|stage| format!("keeper-{stage}")).each_ref().map(String::as_str), "");
}

#[test]
#[cfg_attr(not(feature = "fault-points"), ignore = "needs --features fault-points")]
fn init_is_killed_at_each_stage() {
    let stages = ["begins", "has-maps", "has-root", "has-mounts", "inside", "ready"];
    killed_at(&stages.map(|stage| format!("init-{stage}")).each_ref().map(String::as_str), "");
}

#[test]
#[cfg_attr(not(feature = "fault-points"), ignore = "needs --features fault-points")]
fn the_server_is_killed_at_each_stage() {
    let stages = ["begins", "fenced", "has-mount", "drained", "told"];
    killed_at(&stages.map(|stage| format!("server-{stage}")).each_ref().map(String::as_str), "");
}

#[test]
#[cfg_attr(not(feature = "fault-points"), ignore = "needs --features fault-points")]
fn a_process_of_exec_that_is_killed_before_its_command_harms_nobody() {
    let Some(h) = Hostel::new() else { return };
    let (done, _) =
        with_fault(&h, "run -d --name one --network none busybox sleep 1000", "exec-ready", "KILL", 1);
    done.ok();
    assert_ne!(h.run("exec one true").exit_code(), 0);
    assert_eq!(passed(&count_file(&h)), 1);
    h.run("exec one echo in").ok().stdout("in\n");
    h.run("ps --format '{{.Names}} {{.State}}'").ok().stdout("one running\n");
}

/// Every step that a command makes on the disk with a fault: one of three in turn, or each with
/// `HOSTEL_TEST_FAULTS=all`, which takes three times as long.
struct Steps<'a> {
    h: &'a Hostel,
    /// What is done before each attempt, so that there is something to do.
    before: &'a [&'a str],
    line: &'a str,
    place: &'a str,
    /// What must hold whenever the command said that it was done.
    after: &'a dyn Fn(&Hostel),
}

impl Steps<'_> {
    fn prepare(&self) {
        for line in self.before {
            self.h.run(line);
        }
    }

    fn all(&self) {
        const FAULTS: [&str; 3] = ["KILL", "EIO", "ENOSPC"];
        let every = std::env::var("HOSTEL_TEST_FAULTS").is_ok_and(|text| text == "all");
        let mut count = 0;
        let Self { h, line, place, .. } = self;
        self.prepare();
        let (done, steps) = with_fault(h, line, place, "KILL", u32::MAX);
        done.ok();
        (self.after)(h);
        assert!(steps > 0, "`{line}` never comes to {place}");
        for time in 1..=steps {
            let turn = time as usize % FAULTS.len();
            for what in if every { &FAULTS[..] } else { &FAULTS[turn..=turn] } {
                count += 1;
                self.prepare();
                let (done, passed) = with_fault(h, line, place, what, time);
                // What it does may depend on how busy the machine is: a step less is none that failed.
                let said = [
                    "Input/output error",
                    "input/output error",
                    "No space left",
                    "no space left",
                    "I/O error",
                ];
                match done.exit_code() {
                    0 => (self.after)(h),
                    _ if passed < time => panic!("`{line}` failed without a fault: {}", done.stderr),
                    137 if *what == "KILL" => {}
                    code => assert!(
                        code <= 126
                            && (*what == "KILL" || said.iter().any(|words| done.stderr.contains(words))),
                        "`{line}` {what} at step {time}: {code}: {}",
                        done.stderr
                    ),
                }
                h.run("images -q").ok();
                h.run("ps -a").ok();
            }
        }
        self.prepare();
        h.run(line).ok();
        (self.after)(h);
        eprintln!("{count} faults of `{line}`");
    }
}

/// A layout of one small image.
fn small_layout(h: &Hostel) -> String {
    let dir = h.scratch("layout");
    let mut layer = fixtures::Layer::new();
    layer.file("busybox", 0o755, 0, b"#!").file("data", 0o644, 0, &[b'x'; 9000]);
    fixtures::layout_of(&dir, &layer.finish());
    dir.display().to_string()
}

#[test]
#[cfg_attr(not(feature = "fault-points"), ignore = "needs --features fault-points")]
fn each_step_of_a_pull_on_the_disk() {
    let Some(h) = Hostel::new() else { return };
    let layout = small_layout(&h);
    let pull = format!("pull -q oci:{layout}:latest");
    let is_there = |h: &Hostel| {
        let id = h.run(&pull).ok().out();
        h.run(&format!("tag {id} pulled")).ok();
        h.run("image inspect pulled").ok();
    };
    let before = ["rmi -f pulled", "image prune -a -f --filter until=0s", "builder prune -a -f"];
    Steps { h: &h, before: &before, line: &pull, place: "store", after: &is_there }.all();
    h.run("image verify -q").ok();
}

#[test]
#[cfg_attr(not(feature = "fault-points"), ignore = "needs --features fault-points")]
fn each_step_of_a_commit_on_the_disk() {
    let Some(h) = Hostel::new() else { return };
    h.run("run --name from --network none busybox sh -c 'echo changed > /changed'").ok();
    let is_there = |h: &Hostel| {
        h.run("run --rm --network none result cat /changed").ok().stdout("changed\n");
    };
    let before = ["rmi -f result"];
    Steps { h: &h, before: &before, line: "commit from result", place: "store", after: &is_there }.all();
    h.run("run --rm --network none busybox echo works").ok().stdout("works\n");
    h.run("image verify -q").ok();
}

#[test]
#[cfg_attr(not(feature = "fault-points"), ignore = "needs --features fault-points")]
fn each_step_of_a_build_on_the_disk() {
    let Some(h) = Hostel::new() else { return };
    let dir = h.scratch("context");
    fs::write(
        dir.join("Dockerfile"),
        "FROM busybox\nCOPY Dockerfile /d\nRUN --network=none echo built > /b\n",
    )
    .unwrap();
    let line = format!("build -q --no-cache -t result {}", dir.display());
    let is_there = |h: &Hostel| {
        h.run("run --rm --network none result cat /b").ok().stdout("built\n");
    };
    let before = ["rmi -f result"];
    Steps { h: &h, before: &before, line: &line, place: "store", after: &is_there }.all();
    h.run("image verify -q").ok();
    h.run("builder prune -a -f").ok();
}

#[test]
#[cfg_attr(not(feature = "fault-points"), ignore = "needs --features fault-points")]
fn each_step_of_names_and_volumes_on_the_disk() {
    let Some(h) = Hostel::new() else { return };
    let rows: [(&[&str], &str, &str); 3] = [
        (&["rmi again"], "tag busybox again", "image inspect again"),
        (&["tag busybox again"], "rmi again", "image inspect busybox"),
        (&["volume rm -f vol"], "volume create vol", "volume inspect vol"),
    ];
    for (before, line, check) in rows {
        let after = |h: &Hostel| {
            h.run(check).ok();
        };
        Steps { h: &h, before, line, place: "store", after: &after }.all();
    }
    h.run("image verify -q").ok();
    h.run("run --rm --network none busybox echo works").ok().stdout("works\n");
}

#[test]
#[cfg_attr(not(feature = "fault-points"), ignore = "needs --features fault-points")]
fn each_step_of_a_containers_records() {
    let Some(h) = Hostel::new() else { return };
    h.run(KEEP).ok();
    let images = h.run("images -q --no-trunc").ok().stdout.clone();
    let rows: [(&[&str], &str, &str); 4] = [
        (&["rm -f one"], "create --name one --network none busybox true", "inspect one"),
        (&["rm -f one"], "run --name one --network none busybox true", "inspect one"),
        (
            &["rm -f one two", "create --name one --network none busybox true"],
            "rename one two",
            "inspect two",
        ),
        (&["rm -f one", "create --name one --network none busybox true"], "rm one", "ps -a"),
    ];
    for (before, line, check) in rows {
        let after = |h: &Hostel| {
            h.run(check).ok();
        };
        Steps { h: &h, before, line, place: "container", after: &after }.all();
        all_is_well(&h, &images);
    }
}

#[test]
fn what_was_built_without_the_places_says_so() {
    // So that a run of the tests without the feature is told, and counted, as one that skips.
    if !cfg!(feature = "fault-points") {
        skip(NEEDS);
    }
}
