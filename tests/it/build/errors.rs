//! What a build that fails says, and what it leaves.

use super::context;
use crate::harness::Hostel;

#[test]
fn a_failing_step_is_shown_with_its_lines() {
    let Some(h) = Hostel::new() else { return };
    let dir = context(&h, "c", &[("Dockerfile", "FROM busybox\nRUN echo printed; \\\n  exit 3\nRUN true\n")]);
    let done = h.run(&format!("build -t x {}", dir.display()));
    done.fails(
        1,
        &[
            "#4 ERROR: process \"/bin/sh -c echo printed;   exit 3\" did not complete successfully: exit code: 3",
            "------\n > [2/3] RUN echo printed; exit 3:\n",
            "Dockerfile:2\n--------------------\n   1 |     FROM busybox\n   2 | >>> RUN echo printed; \\\n   3 | >>>   exit 3\n   4 |     RUN true\n",
            "failed to build: failed to solve: process \"/bin/sh -c echo printed;   exit 3\" did not complete successfully: exit code: 3",
        ],
    );
    h.run("images -q x").ok().stdout("");
    h.run("ps -a -q").ok().stdout("");
}

#[test]
fn what_is_wrong_is_told_before_anything_is_done() {
    let Some(h) = Hostel::new() else { return };
    let table = [
        (
            "FROM busybox\nRUNN x\n",
            "dockerfile parse error on line 2: unknown instruction: RUNN (did you mean RUN?)",
        ),
        ("FROM busybox\nCOPY nosuch /\n", "\"/nosuch\": not found"),
        ("FROM nosuch-image\n", "docker.io/library/nosuch-image:latest"),
        ("FROM busybox\nCOPY --from=nosuch-image /a /b\n", "docker.io/library/nosuch-image:latest"),
        ("FROM busybox\nRUN --security=insecure true\n", "security.insecure is not allowed"),
        ("FROM busybox\nENV A=${B:?wanted}\n", "B: wanted"),
        ("FROM busybox\nRUN --mount=type=secret,id=s,required cat /run/secrets/s\n", "secret s: not found"),
        ("FROM busybox\nUSER nobody-here\nRUN true\n", "nobody-here"),
        ("FROM busybox\nADD https://127.0.0.1:1/x /\n", "cannot fetch https://127.0.0.1:1/x"),
        ("FROM busybox AS a\nCOPY --from=a /x /y\n", "circular dependency detected on stage: a"),
    ];
    for (number, (text, expected)) in table.into_iter().enumerate() {
        let dir = context(&h, &format!("c{number}"), &[("Dockerfile", text)]);
        h.run(&format!("build {}", dir.display())).fails(1, &[expected]);
    }
    let dir = context(&h, "empty", &[]);
    h.run(&format!("build {}", dir.display()))
        .fails(1, &["failed to read dockerfile: open Dockerfile: no such file or directory"]);
    h.run("build /nosuch").fails(1, &["path \"/nosuch\" not found"]);
    let dir = context(&h, "t", &[("Dockerfile", "FROM busybox AS base\n")]);
    h.run(&format!("build --target bse {}", dir.display()))
        .fails(1, &["target stage \"bse\" could not be found (did you mean base?)"]);
}

#[test]
fn flags_that_cannot_be_honoured_are_refused_by_name() {
    let Some(h) = Hostel::new() else { return };
    let dir = context(&h, "c", &[("Dockerfile", "FROM busybox\n")]);
    for (flag, expected) in [
        ("--sbom=true", "--sbom"),
        ("--provenance=mode=max", "--provenance"),
        ("--cache-to type=gha", "--cache-to"),
        ("--allow security.insecure", "--allow"),
        ("--secret id=x,src=/nosuch", "invalid secret"),
        ("-o type=what", "is none of"),
        ("--push", "tag is needed when pushing to registry"),
    ] {
        let done = h.run(&format!("build {flag} {}", dir.display()));
        assert_ne!(done.exit_code(), 0, "{flag}");
        assert!(done.stderr.contains(expected), "{flag}: {}", done.stderr);
    }
}

#[test]
fn check_tells_and_builds_nothing() {
    let Some(h) = Hostel::new() else { return };
    let dir = context(&h, "c", &[("Dockerfile", "FROM busybox\nWORKDIR app\nRUN exit 1\n")]);
    let done = h.run(&format!("build --check {}", dir.display()));
    assert_eq!(done.exit_code(), 1);
    assert!(done.stdout.contains("Check complete, 1 warning has been found!"), "{}", done.stdout);
    assert!(done.stdout.contains("WARNING: WorkdirRelativePath"), "{}", done.stdout);
    let dir = context(&h, "d", &[("Dockerfile", "FROM busybox\nRUN exit 1\n")]);
    h.run(&format!("build --check {}", dir.display())).ok().stdout("Check complete, no warnings found.\n");
}
