//! COPY and ADD: what comes where, and as whose.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::{build, build_text, context};
use crate::fixtures::Layer;
use crate::harness::Hostel;

#[test]
fn files_come_where_dockers_do() {
    let Some(h) = Hostel::new() else { return };
    let dir = context(
        &h,
        "c",
        &[
            (
                "Dockerfile",
                "FROM busybox\nRUN mkdir -p /existing/sub /real && ln -s real /alias\n\
              COPY a /one\nCOPY a /existing\nCOPY a b /two/\nCOPY d /dir\nCOPY d/ /existing/\n\
              COPY *.txt /txt/\nCOPY [\"with space\", \"/w s\"]\nCOPY a /alias/a\nCOPY d /alias\n\
              WORKDIR /work\nCOPY a .\nCOPY a ./renamed\nCOPY --parents d/e/deep ./x/\n\
              COPY --exclude=e d /without\nCOPY --chown=5:6 --chmod=0600 a /owned\nCOPY --chmod=u=rwX,go=rX d /letters\nCOPY link /followed\n",
            ),
            ("a", "A"),
            ("b", "B"),
            ("x.txt", "X"),
            ("y.txt", "Y"),
            ("with space", "S"),
            ("d/f", "F"),
            ("d/e/deep", "D"),
        ],
    );
    fs::set_permissions(dir.join("d"), fs::Permissions::from_mode(0o750)).unwrap();
    symlink("a", dir.join("link")).unwrap();
    symlink("../../../etc/passwd", dir.join("d/escape")).unwrap();
    build(&h, "x", &dir, "");
    h.run("run --rm x sh -c 'cat /one /existing/a /two/a /two/b /dir/f /dir/e/deep /existing/f /txt/x.txt /txt/y.txt \"/w s\" /real/a /real/f /work/a /work/renamed /work/x/d/e/deep /without/f /followed'")
        .ok()
        .stdout("AAABFDFXYSAFAADFA");
    h.run("run --rm x sh -c 'stat -c \"%a %u:%g\" /dir /dir/f /owned /letters; test ! -e /without/e && ls -d /existing/sub; readlink /alias; readlink /dir/escape'")
        .ok()
        .stdout("755 0:0\n644 0:0\n600 5:6\n755 0:0\n/existing/sub\nreal\n../../../etc/passwd\n");
}

#[test]
fn what_is_ignored_is_not_there() {
    let Some(h) = Hostel::new() else { return };
    let files = [
        ("Dockerfile", "FROM busybox\nCOPY . /all\nRUN --mount=target=/ctx find /ctx -type f > /mounted\n"),
        (".dockerignore", "# comment\n*\n!keep\n!d/keep\nkeep/not\n**/*.o\n"),
        ("keep/a", ""),
        ("keep/not", ""),
        ("keep/b.o", ""),
        ("d/keep", ""),
        ("d/other", ""),
        ("secret", "hidden"),
    ];
    let dir = context(&h, "c", &files);
    build(&h, "x", &dir, "");
    h.run("run --rm x sh -c 'cd /all; find . | sort'").ok().stdout(".\n./d\n./d/keep\n./keep\n./keep/a\n");
    h.run("run --rm x sort /mounted").ok().stdout("/ctx/d/keep\n/ctx/keep/a\n");
    fs::write(dir.join("Dockerfile"), "FROM busybox\nCOPY secret /\n").unwrap();
    h.run(&format!("build {}", dir.display())).fails(1, &["\"/secret\": not found"]);
    // A Dockerfile's own file comes before the common one.
    fs::write(dir.join("other"), "FROM busybox\nCOPY secret /\n").unwrap();
    fs::write(dir.join("other.dockerignore"), "keep\n").unwrap();
    h.run(&format!("build -t y -f {} {}", dir.join("other").display(), dir.display())).ok();
    h.run("run --rm y cat /secret").ok().stdout("hidden");
}

#[test]
fn a_context_has_no_outside() {
    let Some(h) = Hostel::new() else { return };
    let dir = context(&h, "c", &[("Dockerfile", ""), ("in", "inside")]);
    fs::write(h.scratch("outside").join("file"), "outside").unwrap();
    symlink(h.scratch("outside"), dir.join("out")).unwrap();
    symlink("/in", dir.join("absolute")).unwrap();
    for (source, expected) in [("out/file", None), ("../outside/file", None), ("absolute", Some("inside"))] {
        fs::write(dir.join("Dockerfile"), format!("FROM busybox\nCOPY {source} /f\n")).unwrap();
        let done = h.run(&format!("build -t x {}", dir.display()));
        if let Some(text) = expected {
            done.ok();
            h.run("run --rm x cat /f").ok().stdout(text);
        } else {
            done.fails(1, &["not found"]);
        }
    }
}

#[test]
fn archives_are_unpacked_by_add_alone() {
    let Some(h) = Hostel::new() else { return };
    let dir = context(
        &h,
        "c",
        &[
            (
                "Dockerfile",
                "FROM busybox\nADD a.tar.gz /add/\nCOPY a.tar.gz /copy/\nADD --chown=3:4 a.tar.gz /owned\nADD plain /\n",
            ),
            ("t/x/y", "Y"),
            ("plain", "P"),
        ],
    );
    let tar = |flags: &str| {
        h.program(
            "tar",
            &["-C", &dir.join("t").to_string_lossy(), flags, &dir.join("a.tar.gz").to_string_lossy(), "x"],
        )
        .run()
        .ok();
    };
    tar("-czf");
    build(&h, "x", &dir, "");
    h.run("run --rm x sh -c 'cat /add/x/y /owned/x/y /plain; ls /copy; stat -c %u:%g /owned/x/y'")
        .ok()
        .stdout("YYPa.tar.gz\n3:4\n");
}

#[test]
fn a_linked_copy_stands_alone() {
    let Some(h) = Hostel::new() else { return };
    let dir = context(
        &h,
        "c",
        &[("Dockerfile", "FROM busybox\nRUN echo 1 > /1\nCOPY --link a /l/a\n"), ("a", "A")],
    );
    build(&h, "x", &dir, "");
    fs::write(dir.join("Dockerfile"), "FROM busybox\nRUN echo 2 > /2\nCOPY --link a /l/a\n").unwrap();
    let shown = build(&h, "x", &dir, "");
    assert_eq!(shown.matches("CACHED").count(), 2, "the base and the copy: {shown}");
    h.run("run --rm x cat /l/a /2").ok().stdout("A2\n");
}

#[test]
fn what_is_in_the_way_is_told() {
    let Some(h) = Hostel::new() else { return };
    let dir = context(&h, "c", &[("Dockerfile", ""), ("file", "f"), ("d/bin/x", "x")]);
    for (text, expected) in [
        (
            "FROM busybox\nRUN mkdir /x /x/file\nCOPY file /x/\n",
            "cannot replace to directory /x/file with file",
        ),
        ("FROM busybox\nRUN touch /plain\nCOPY d /plain\n", "cannot copy to non-directory: /plain"),
        (
            "FROM busybox\nRUN mkdir -p /r/real && ln -s real /r/bin\nCOPY d /r\n",
            "cannot copy to non-directory: /r/bin",
        ),
    ] {
        fs::write(dir.join("Dockerfile"), text).unwrap();
        h.run(&format!("build {}", dir.display())).fails(1, &[expected]);
    }
}

#[test]
fn the_result_may_be_files_instead() {
    let Some(h) = Hostel::new() else { return };
    let dir = context(&h, "c", &[("Dockerfile", "FROM scratch\nCOPY a /d/a\nCOPY a /b\n"), ("a", "A")]);
    let out = h.scratch("out");
    h.run(&format!("build -o {} {}", out.display(), dir.display())).ok();
    assert_eq!(fs::read_to_string(out.join("d/a")).unwrap(), "A");
    assert_eq!(fs::read_to_string(out.join("b")).unwrap(), "A");
    let tar = out.join("o.tar");
    h.run(&format!("build -o type=tar,dest={} {}", tar.display(), dir.display())).ok();
    let listed = h.program("tar", &["-tf", &tar.to_string_lossy()]).run().ok().out();
    assert_eq!(listed, "b\nd/\nd/a");
    h.run(&format!("build -t x -o type=oci,dest={} {}", out.join("oci.tar").display(), dir.display())).ok();
    h.run(&format!("load -i {}", out.join("oci.tar").display())).ok();
    build_text(&h, "y", "FROM x\nCOPY --from=x /b /c\n");
}

#[test]
fn the_same_files_give_the_same_image() {
    let Some(h) = Hostel::new() else { return };
    let dir = context(
        &h,
        "c",
        &[
            (
                "Dockerfile",
                "FROM busybox\nWORKDIR /w\nCOPY a d /x/\nRUN echo r > /r; touch -d @5 /old\nCMD x\n",
            ),
            ("a", "A"),
            ("d/b", "B"),
        ],
    );
    let flags = "--no-cache --build-arg SOURCE_DATE_EPOCH=1000000000 -o type=image,rewrite-timestamp=true";
    build(&h, "x", &dir, flags);
    let first = super::id(&h, "x");
    let file = fs::File::open(dir.join("a")).unwrap();
    file.set_modified(std::time::SystemTime::now()).unwrap();
    build(&h, "x", &dir, flags);
    assert_eq!(super::id(&h, "x"), first);
    h.run("run --rm x stat -c %Y /r /old /x/a").ok().stdout("1000000000\n5\n1000000000\n");
    assert!(super::config(&h, "x")["Created"].as_str().unwrap().starts_with("2001-09-09T01:46:40"));
}

#[test]
fn a_directory_that_is_there_becomes_as_the_sources_is() {
    let Some(h) = Hostel::new() else { return };
    let dir = context(
        &h,
        "c",
        &[
            (
                "Dockerfile",
                "FROM busybox\nRUN mkdir -p -m 700 /to/sub && chmod 711 /to && touch /to/sub/kept\nCOPY from /to\nCOPY none* from/sub/a /got/\nCOPY --chmod=0700 from /deep/er\n",
            ),
            ("from/sub/a", "A"),
        ],
    );
    fs::set_permissions(dir.join("from"), fs::Permissions::from_mode(0o750)).unwrap();
    fs::set_permissions(dir.join("from/sub"), fs::Permissions::from_mode(0o755)).unwrap();
    build(&h, "x", &dir, "");
    h.run("run --rm x sh -c 'stat -c %a /to /to/sub /deep /deep/er/sub/a; ls /to/sub /got'")
        .ok()
        .stdout("711\n755\n700\n700\n/got:\na\n\n/to/sub:\na\nkept\n");
}

#[test]
fn an_archive_is_unpacked_as_if_its_destination_were_the_root() {
    let Some(h) = Hostel::new() else { return };
    let dir = context(
        &h,
        "c",
        &[("Dockerfile", "FROM busybox\nRUN mkdir -p /to/real && ln -s real /to/alias\nADD a.tar /to\n")],
    );
    let mut tar = Layer::new();
    tar.symlink("link", "/etc").file("link/passwd", 0o644, 0, b"own");
    tar.symlink("up", "../../../sub").file("up/f", 0o644, 0, b"f").file("alias/g", 0o644, 0, b"g");
    fs::write(dir.join("a.tar"), tar.finish()).unwrap();
    build(&h, "x", &dir, "");
    h.run("run --rm x sh -c 'cat /to/etc/passwd /to/sub/f /to/real/g; grep -c root /etc/passwd; readlink /to/link; readlink /to/alias'")
        .ok()
        .stdout("ownfg1\n/etc\nreal\n");
}
