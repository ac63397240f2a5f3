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
        ("FROM busybox\nCOPY nosuch /\n", "#4 [2/2] COPY nosuch /\n#4 ERROR: failed to compute cache key"),
        (
            "FROM busybox\nCMD [\"a\", [\"b\"]]\n",
            "line 2: when using JSON array syntax, arrays must be comprised",
        ),
        ("FROM busybox\nRUN [\"a\", 1]\n", "arrays must be comprised of strings only"),
        ("FROM busybox\nONBUILD CMD [null]\n", "arrays must be comprised of strings only"),
        ("FROM busybox\nHEALTHCHECK --timeout=1s CMD [1]\n", "arrays must be comprised of strings only"),
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
        ("--call what", "it is build, check, outline or targets"),
        ("--build-context a=ftp://x/y", "a git repository or a tar of the web"),
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

#[test]
fn a_call_tells_of_targets_and_what_they_take() {
    let h = Hostel::empty();
    let text = "FROM busybox AS base\n# V which one\nARG V=1\nRUN --mount=type=secret,id=token true\n\
        # app the program\nFROM base AS app\nRUN --mount=type=ssh,required true\n";
    let dir = context(&h, "c", &[("Dockerfile", text)]);
    let call = |flags: &str| h.run(&format!("build {flags} {}", dir.display())).ok().stdout.clone();
    assert_eq!(call("--call=targets"), "TARGET        DESCRIPTION\nbase\napp (default) the program\n");
    assert_eq!(
        call("--call outline --build-arg V=2"),
        "TARGET:      app\nDESCRIPTION: the program\n\nBUILD ARG   VALUE   DESCRIPTION\nV           2       which one\n\n\
         SECRET   REQUIRED\ntoken\n\nSSH       REQUIRED\ndefault   true\n\n"
    );
    let json: serde_json::Value =
        serde_json::from_str(&call("--call outline,format=json --target base")).unwrap();
    assert_eq!(
        json,
        serde_json::json!({
            "name": "base", "args": [{ "name": "V", "value": "1", "description": "which one" }],
            "secrets": [{ "name": "token" }],
        })
    );
    h.run(&format!("build --call outline --target no {}", dir.display())).fails(1, &["could not be found"]);
    h.run("images -aq").ok().stdout("");
}

#[test]
fn flags_that_change_nothing_here_are_taken() {
    let h = Hostel::empty();
    let dir = context(&h, "c", &[("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n")]);
    let told = dir.join("told");
    h.run(&format!(
        "build -D --compress --allow network.host --metadata-file {} {}",
        told.display(),
        dir.display()
    ))
    .ok();
    let told: serde_json::Value = serde_json::from_slice(&std::fs::read(&told).unwrap()).unwrap();
    let descriptor = &told["containerimage.descriptor"];
    assert_eq!(descriptor["digest"], told["containerimage.digest"]);
    assert_eq!(descriptor["mediaType"], "application/vnd.oci.image.manifest.v1+json");
    h.run("image prune -f").ok();
    h.run(&format!("build -o type=cacheonly -t x {}", dir.display())).ok();
    h.run("images -aq").ok().stdout("");
}
