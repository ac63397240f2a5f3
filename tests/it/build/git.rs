//! Git repositories as sources and contexts, from a web server that knows nothing of git.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::{build_text, context};
use crate::harness::{Hostel, output, skip};
use crate::registry::server::{Reply, Server};

/// A repository with two commits, ready to be served as files; gives the first commit's name.
fn repository(place: &Path) -> String {
    let work = place.join("work");
    fs::create_dir_all(work.join("sub")).unwrap();
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        command
            .arg("-C")
            .arg(&work)
            .args(["-c", "user.name=n", "-c", "user.email=n@example.org"])
            .args(arguments)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_COMMITTER_DATE", "1700000000 +0000");
        let output = output(&mut command).unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    git(&["init", "-q", "-b", "main"]);
    fs::write(work.join("a"), "one\n").unwrap();
    fs::write(work.join("sub/Dockerfile"), "FROM busybox\nCOPY f /f\n").unwrap();
    fs::write(work.join("sub/f"), "in sub\n").unwrap();
    git(&["add", "."]);
    git(&["commit", "-q", "-m", "one"]);
    git(&["tag", "v1"]);
    let first = git(&["rev-parse", "HEAD"]);
    fs::write(work.join("a"), "two\n").unwrap();
    git(&["commit", "-q", "-a", "-m", "two"]);
    git(&["clone", "-q", "--bare", ".", "../r.git"]);
    let bare = place.join("r.git").to_string_lossy().into_owned();
    git(&["-C", &bare, "update-server-info"]);
    first
}

fn serve(place: &Path) -> Server {
    let place = place.to_owned();
    Server::start(move |seen| {
        let path = seen.path.split('?').next().unwrap_or_default().trim_start_matches('/').to_owned();
        match fs::read(place.join(path)) {
            Ok(bytes) => Reply::ok(bytes),
            Err(_) => Reply::status(404),
        }
    })
}

fn has_git() -> bool {
    let found = output(Command::new("git").arg("--version")).is_ok();
    if !found {
        skip("git is not installed");
    }
    found
}

#[test]
fn a_repository_is_added() {
    let Some(h) = Hostel::new() else { return };
    if !has_git() {
        return;
    }
    let place = h.scratch("git");
    let first = repository(&place);
    let server = serve(&place);
    let url = format!("http://{}/r.git", server.host());
    build_text(
        &h,
        "x",
        &format!(
            "FROM busybox\nADD {url} /head\nADD {url}#v1 /tag\nADD --keep-git-dir=true {url}#main /kept\n\
             ADD {url}#:sub /sub\nADD --checksum={first} {url}#{first} /commit\nADD --chown=5:6 {url}?tag=v1&subdir=sub /owned\n"
        ),
    );
    h.run("run --rm x sh -c 'cat /head/a /tag/a /kept/a /sub/f /commit/a; test -d /kept/.git && test ! -e /head/.git; stat -c \"%a %u:%g %Y\" /head/a /owned/f'")
        .ok()
        .stdout("two\none\ntwo\nin sub\none\n644 0:0 1700000000\n644 5:6 1700000000\n");
    for (name, add, message) in [
        ("c1", format!("--checksum={first} {url}"), "expected checksum to match"),
        ("c2", format!("{url}#nothing"), "failed to fetch"),
        ("c3", format!("{url}#:nowhere"), "has no directory"),
        ("c4", format!("{url}#:../work"), "has no directory"),
        ("c5", format!("--checksum=xyz {url}"), "hexadecimal"),
    ] {
        let dir = context(&h, name, &[("Dockerfile", &format!("FROM busybox\nADD {add} /d\n"))]);
        h.run(&format!("build {}", dir.display())).fails(1, &[message]);
    }
}

#[test]
fn a_repository_is_a_context() {
    let Some(h) = Hostel::new() else { return };
    if !has_git() {
        return;
    }
    let place = h.scratch("git");
    repository(&place);
    let server = serve(&place);
    h.run(&format!("build -t x http://{}/r.git#v1:sub", server.host())).ok();
    h.run("run --rm x cat /f").ok().stdout("in sub\n");
    h.run(&format!("build http://{}/r.git#v2", server.host())).fails(1, &["failed to fetch"]);
    // And one beside the context, for COPY and for mounts; it goes with the build.
    let text = "FROM busybox\nCOPY --from=other f /copied\nRUN --mount=type=bind,from=other,target=/m cp /m/f /bound\n";
    let dir = context(&h, "c", &[("Dockerfile", text)]);
    let url = format!("http://{}/r.git", server.host());
    h.run(&format!("build -t y --build-context other={url}#v1:sub {}", dir.display())).ok();
    h.run("run --rm y cat /copied /bound").ok().stdout("in sub\nin sub\n");
    assert_eq!(fs::read_dir(h.root().join("builds/run")).unwrap().count(), 0);
    h.run(&format!("build --build-context other={url}#v2 {}", dir.display()))
        .fails(1, &["context other", "failed to fetch"]);
}
