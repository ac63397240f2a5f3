//! What is done again, and what is not.

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::{build, context, id};
use crate::harness::{Hostel, eventually};

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
