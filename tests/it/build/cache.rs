//! What is done again, and what is not.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;

use super::{build, context, id};
use crate::harness::{Hostel, Running, eventually};

fn cached(shown: &str) -> usize {
    shown.matches("CACHED").count()
}

#[test]
fn nothing_is_done_twice() {
    let Some(h) = Hostel::new() else { return };
    let text = "FROM busybox\nARG A=1\nRUN date +%N > /t; echo $A\nCOPY f /f\nRUN cat /f\n";
    let dir = context(&h, "c", &[("Dockerfile", text), ("f", "1"), ("other", "1")]);
    assert_eq!(cached(&build(&h, "x", &dir, "")), 1, "the base alone");
    let first = id(&h, "x");
    assert_eq!(cached(&build(&h, "x", &dir, "")), 4);
    assert_eq!(id(&h, "x"), first, "the same build gives the same image");

    // What is not copied does not count, nor does a time.
    fs::write(dir.join("other"), "2").unwrap();
    let file = fs::File::open(dir.join("f")).unwrap();
    file.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(1)).unwrap();
    assert_eq!(cached(&build(&h, "x", &dir, "")), 4);
    assert_eq!(id(&h, "x"), first);

    // A changed file is copied, and what follows it done.
    fs::write(dir.join("f"), "2").unwrap();
    assert_eq!(cached(&build(&h, "x", &dir, "")), 2);
    h.run("run --rm x cat /f").ok().stdout("2");
    // And what was before is still known.
    fs::write(dir.join("f"), "1").unwrap();
    assert_eq!(cached(&build(&h, "x", &dir, "")), 4);

    // An argument counts where it is declared.
    assert_eq!(cached(&build(&h, "x", &dir, "--build-arg A=2")), 1);
    assert_eq!(cached(&build(&h, "x", &dir, "--build-arg A=2")), 4);
    let shown = build(&h, "x", &dir, "--build-arg UNKNOWN=2");
    assert!(shown.contains("[UNKNOWN] were not consumed"), "{shown}");
    assert_eq!(cached(&shown), 4);
    assert_eq!(cached(&build(&h, "x", &dir, "--no-cache")), 1);
}

#[test]
fn another_stage_that_gives_the_same_file_changes_nothing() {
    let Some(h) = Hostel::new() else { return };
    let text = |comment: &str| {
        format!(
            "FROM busybox AS one\nRUN echo {comment} > /other; echo same > /file\nFROM busybox\nCOPY --from=one /file /file\nRUN cat /file\n"
        )
    };
    let dir = context(&h, "c", &[("Dockerfile", &text("a"))]);
    build(&h, "x", &dir, "");
    fs::write(dir.join("Dockerfile"), text("b")).unwrap();
    let shown = build(&h, "x", &dir, "");
    assert!(shown.contains("[one 2/2] RUN echo b"), "{shown}");
    assert_eq!(cached(&shown), 4, "both bases, COPY and RUN: {shown}");
}

#[test]
fn removed_images_leave_the_cache_and_a_prune_takes_it() {
    let Some(h) = Hostel::new() else { return };
    let dir = context(&h, "c", &[("Dockerfile", "FROM busybox\nRUN echo a > /a\n")]);
    build(&h, "x", &dir, "");
    h.run("rmi x").ok();
    assert_eq!(cached(&build(&h, "x", &dir, "")), 2);
    let usage = h.run("system df").ok().out();
    let line = usage.lines().find(|line| line.starts_with("Build Cache")).unwrap().to_owned();
    assert!(line.split_whitespace().nth(2) == Some("1"), "{line}");
    h.run("rmi x").ok();
    h.run("builder prune -f").ok().has("Total");
    assert_eq!(cached(&build(&h, "x", &dir, "")), 1);
    h.run("builder prune -f --all").ok();
    h.run("run --rm x cat /a").ok().stdout("a\n");
}

#[test]
fn a_killed_build_leaves_nothing_but_its_cache() {
    let Some(h) = Hostel::new() else { return };
    let dir =
        context(&h, "c", &[("Dockerfile", "FROM busybox\nRUN echo a > /a\nRUN echo waiting; sleep 100\n")]);
    for signal in [Signal::SIGKILL, Signal::SIGINT] {
        let line = format!("exec \"$HOSTEL\" build -t x {} 2>&1", dir.display());
        let running = h.program("sh", &["-c", &line]).spawn();
        running.wait_for(" waiting");
        running.signal(signal);
        running.wait();
        eventually("the end of the step", || h.processes().is_empty());
    }
    fs::write(dir.join("Dockerfile"), "FROM busybox\nRUN echo a > /a\n").unwrap();
    assert_eq!(cached(&build(&h, "x", &dir, "")), 2);
    let left = fs::read_dir(h.root().join("builds/run")).unwrap().count();
    assert_eq!(left, 0, "directories of builds");
}

/// A step that tells that it was begun, in a place that is seen from outside, and waits until it may go on: the first
/// that does it by `go1` or `go`, the second by `go2` or `go`.
const SLOW: &str = "FROM busybox\nRUN --mount=type=cache,id=slow,target=/c \
    echo one >> /c/log; n=$(wc -l < /c/log); echo has $(echo begun); \
    until [ -e /c/go$n -o -e /c/go ]; do sleep 0.05; done; echo done > /done\n";

/// The slow step's cache, as the machine has it.
fn slow_cache(h: &Hostel) -> PathBuf {
    let mounts = fs::read_dir(h.root().join("builds/mounts")).unwrap();
    mounts.map(|entry| entry.unwrap().path().join("data")).find(|path| path.join("log").exists()).unwrap()
}

fn spawn(h: &Hostel, tag: &str, flags: &str, dir: &Path) -> Running {
    h.program("sh", &["-c", &format!("exec \"$HOSTEL\" build -t {tag} {flags} {} 2>&1", dir.display())])
        .spawn()
}

fn count_of_log(h: &Hostel) -> usize {
    fs::read_to_string(slow_cache(h).join("log")).unwrap().lines().count()
}

#[test]
fn a_step_that_another_build_does_is_waited_for() {
    let Some(h) = Hostel::new() else { return };
    let dir = context(&h, "c", &[("Dockerfile", SLOW)]);
    let first = spawn(&h, "one", "", &dir);
    first.wait_for(" has begun");
    let second = spawn(&h, "two", "", &dir);
    second.wait_for("waiting for another build that does this step");
    // Who wants no cache waits for nobody.
    let third = spawn(&h, "three", "--no-cache", &dir);
    third.wait_for(" has begun");
    fs::write(slow_cache(&h).join("go1"), "").unwrap();
    first.wait().ok();
    let shown = second.wait();
    shown.ok();
    assert!(shown.stdout.contains("CACHED\n"), "{}", shown.stdout);
    assert!(!shown.stdout.contains("has begun"), "{}", shown.stdout);
    // Its result takes the place of the first's, so it ends last.
    fs::write(slow_cache(&h).join("go2"), "").unwrap();
    third.wait().ok();
    assert_eq!(count_of_log(&h), 2);
    assert_eq!(id(&h, "one"), id(&h, "two"));
    assert_eq!(fs::read_dir(h.root().join("builds/doing")).unwrap().count(), 0);
}

#[test]
fn a_step_of_a_build_that_is_killed_or_cancelled_is_done_by_the_one_that_waits() {
    let Some(h) = Hostel::new() else { return };
    let dir = context(&h, "c", &[("Dockerfile", SLOW)]);
    for (number, signal) in [Signal::SIGKILL, Signal::SIGINT].into_iter().enumerate() {
        h.run("builder prune -af").ok();
        let first = spawn(&h, "one", "", &dir);
        first.wait_for(" has begun");
        let second = spawn(&h, &format!("two-{number}"), "", &dir);
        second.wait_for("waiting for another build that does this step");
        first.signal(signal);
        first.wait();
        second.wait_for(" has begun");
        assert_eq!(count_of_log(&h), 2);
        fs::write(slow_cache(&h).join("go"), "").unwrap();
        second.wait().ok();
        h.run(&format!("run --rm two-{number} cat /done")).ok().stdout("done\n");
        assert_eq!(fs::read_dir(h.root().join("builds/doing")).unwrap().count(), 0);
    }
    // One whose step fails leaves it to the other, which fails by itself.
    let text = SLOW.replace("echo done > /done", "exit 7");
    let dir = context(&h, "f", &[("Dockerfile", &text)]);
    h.run("builder prune -af").ok();
    let first = spawn(&h, "one", "", &dir);
    first.wait_for(" has begun");
    let second = spawn(&h, "two", "", &dir);
    second.wait_for("waiting for another build that does this step");
    fs::write(slow_cache(&h).join("go"), "").unwrap();
    assert_ne!(first.wait().exit_code(), 0);
    let shown = second.wait();
    assert!(shown.stdout.contains("has begun") && shown.stdout.contains("exit code: 7"), "{}", shown.stdout);
}

#[test]
fn stages_of_one_build_that_want_the_same_step_do_it_once() {
    let Some(h) = Hostel::new() else { return };
    let step = "RUN --mount=type=cache,id=same,target=/c echo one >> /c/log; cp /c/log /log";
    let text = format!(
        "FROM busybox AS a\n{step}\nFROM busybox AS b\n{step}\nFROM scratch\nCOPY --from=a /log /a\nCOPY --from=b /log /b\n"
    );
    let dir = context(&h, "c", &[("Dockerfile", &text)]);
    let out = h.scratch("out");
    build(&h, "x", &dir, &format!("-o {}", out.display()));
    assert_eq!(fs::read_to_string(out.join("a")).unwrap(), "one\n");
    assert_eq!(fs::read_to_string(out.join("b")).unwrap(), "one\n");
}
