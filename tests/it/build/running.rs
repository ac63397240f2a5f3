//! Building and running what was built: the whole way.

use super::{build, build_text, config, context};
use crate::harness::Hostel;

#[test]
fn an_image_is_built_and_runs() {
    let Some(h) = Hostel::new() else { return };
    let dir = context(
        &h,
        "c",
        &[
            (
                "Dockerfile",
                "FROM busybox\nENV WHO=world\nWORKDIR /app\nCOPY greet.txt .\nRUN echo \"hello $WHO\" > made && cat greet.txt >> made\nCMD [\"cat\", \"made\"]\n",
            ),
            ("greet.txt", "from a file\n"),
        ],
    );
    let shown = build(&h, "x", &dir, "");
    for line in [
        "#1 [internal] load build definition from Dockerfile",
        "[1/4] FROM docker.io/library/busybox:latest",
        "[2/4] WORKDIR /app",
        "[3/4] COPY greet.txt .",
        "exporting to image",
        "naming to docker.io/library/x:latest done",
    ] {
        assert!(shown.contains(line), "{line:?} in {shown}");
    }
    h.run("run --rm x").ok().stdout("hello world\nfrom a file\n");
    let image = config(&h, "x");
    assert_eq!(image["Config"]["WorkingDir"], "/app");
    h.run("ps -a -q").ok().stdout("");
}

#[test]
fn quiet_gives_the_id_alone() {
    let Some(h) = Hostel::new() else { return };
    let dir = context(&h, "c", &[("Dockerfile", "FROM busybox\nRUN echo noise\n")]);
    let done = h.run(&format!("build -q -t x {}", dir.display()));
    done.ok();
    assert_eq!(done.out(), super::id(&h, "x"));
    assert_eq!(done.stderr, "");
    let file = dir.join("id");
    let again = h.run(&format!("build -q --iidfile {} {}", file.display(), dir.display())).ok().out();
    assert_eq!(std::fs::read_to_string(file).unwrap(), again);
}

#[test]
fn a_dockerfile_may_come_on_standard_input() {
    let Some(h) = Hostel::new() else { return };
    h.cmd("build -t x -").stdin("FROM busybox\nRUN echo a > /b\n").run().ok();
    h.run("run --rm x cat /b").ok().stdout("a\n");
    let dir = context(&h, "c", &[("file", "content\n")]);
    h.cmd(&format!("build -t y -f - {}", dir.display())).stdin("FROM busybox\nCOPY file /\n").run().ok();
    h.run("run --rm y cat /file").ok().stdout("content\n");
}

#[test]
fn stages_give_each_other_files() {
    let Some(h) = Hostel::new() else { return };
    let shown = build_text(
        &h,
        "x",
        "FROM busybox AS one\nRUN mkdir /d && echo 1 > /d/one && ln -s one /d/link && chown 7:8 /d/one\n\
         FROM busybox AS unused\nRUN exit 1\n\
         FROM busybox AS two\nRUN echo 2 > /two\n\
         FROM scratch\nCOPY --from=busybox / /\nCOPY --from=one /d /d\nCOPY --from=two /two /renamed\n",
    );
    assert!(!shown.contains("unused"), "{shown}");
    h.run("run --rm x sh -c 'cat /d/one /d/link /renamed; stat -c %u:%g /d/one; readlink /d/link'")
        .ok()
        .stdout("1\n1\n2\n7:8\none\n");
    h.run("ps -a -q").ok().stdout("");
}

#[test]
fn mounts_are_there_for_a_step_alone() {
    let Some(h) = Hostel::new() else { return };
    let dir = context(
        &h,
        "c",
        &[
            (
                "Dockerfile",
                "FROM busybox AS one\nRUN echo from-one > /file\nFROM busybox\n\
              RUN --mount=type=bind,target=/src cat /src/a > /out\n\
              RUN --mount=type=bind,from=one,source=/file,target=/in/file cat /in/file >> /out\n\
              RUN --mount=type=tmpfs,target=/scratch echo x > /scratch/y\n\
              RUN --mount=type=cache,target=/cache echo once >> /cache/log\n\
              RUN --mount=type=cache,target=/cache echo twice >> /cache/log && cat /cache/log >> /out\n\
              RUN --mount=type=secret,id=s cat /run/secrets/s | tr a-z A-Z >> /out\n\
              RUN --mount=type=secret,id=s,env=TOKEN echo $TOKEN-env >> /out\n",
            ),
            ("a", "from-context\n"),
            ("secret", "hidden\n"),
        ],
    );
    build(&h, "x", &dir, &format!("--secret id=s,src={}", dir.join("secret").display()));
    h.run("run --rm x cat /out").ok().stdout("from-context\nfrom-one\nonce\ntwice\nHIDDEN\nhidden -env\n");
    h.run("run --rm x ls -d /src /in /scratch /cache /run/secrets")
        .fails(1, &["/src", "/in", "/scratch", "/cache"]);
    let history = h.run("history --no-trunc x").ok().out();
    assert!(!history.contains("hidden"), "{history}");
}

#[test]
fn a_bind_of_a_stage_is_a_mount_and_no_copy() {
    let Some(h) = Hostel::new() else { return };
    let text = "FROM busybox AS one\nRUN mkdir /d && echo 1 > /d/file && chown 7:8 /d/file && ln -s d /link && echo top > /top\n\
         FROM busybox\n\
         RUN --mount=type=bind,from=one,target=/m cat /m/link/file > /out; stat -c %u:%g /m/d/file >> /out; \\\n\
             (: > /m/x) 2> /dev/null || echo read-only >> /out; grep ' /m ' /proc/mounts | cut -d' ' -f3 > /type\n\
         RUN --mount=type=bind,from=one,source=link,target=/m,rw echo 2 >> /m/file; echo x > /m/new; cat /m/file /m/new >> /out; rm /m/file\n\
         RUN --mount=type=bind,from=one,source=/d,target=/m,rw --mount=type=bind,from=one,source=/top,target=/t,rw \\\n\
             ls /m >> /out; echo more >> /t; cat /t >> /out\n\
         RUN --mount=type=bind,from=busybox,source=/bin,target=/m --mount=type=bind,from=one,source=/d/file,target=/n/f \\\n\
             /m/busybox cat /n/f >> /out; ls -d /m/busybox >> /out\n";
    build_text(&h, "x", text);
    h.run("run --rm x cat /out").ok().stdout("1\n7:8\nread-only\n1\n2\nx\nfile\ntop\nmore\n1\n/m/busybox\n");
    let kind = h.run("run --rm x cat /type").ok().out();
    assert!(kind.starts_with("fuse"), "{kind}");
    h.run("run --rm x ls -d /m /t /n").fails(1, &["/m", "/t", "/n"]);
    let dir = context(
        &h,
        "missing",
        &[(
            "Dockerfile",
            "FROM busybox AS one\nFROM busybox\nRUN --mount=type=bind,from=one,source=/none,target=/m true\n",
        )],
    );
    h.run(&format!("build {}", dir.display())).fails(1, &["\"/none\": not found"]);
    assert_eq!(std::fs::read_dir(h.root().join("builds/run")).unwrap().count(), 0, "directories of builds");
}

#[test]
fn a_here_document_is_a_script_or_a_file() {
    let Some(h) = Hostel::new() else { return };
    build_text(
        &h,
        "x",
        "FROM busybox\nENV V=value\nRUN <<EOF\nset -e\necho one > /out\necho $V >> /out\nEOF\n\
         RUN <<-\"END\"\n#!/bin/sh\n\techo script $0 >> /out\n\tEND\n\
         RUN cat <<A >> /out\ndocument\nA\n\
         COPY <<a <<\"b\" /files/\n$V\na\n$V\nb\n",
    );
    h.run("run --rm x sh -c 'cat /out /files/a /files/b'")
        .ok()
        .stdout("one\nvalue\nscript /dev/pipes/END\ndocument\nvalue\n$V\n");
}
