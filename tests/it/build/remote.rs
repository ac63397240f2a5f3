//! What a build takes from elsewhere and hands on: the web, caches, an agent's socket, archives, a registry.

use std::fs;
use std::os::unix::net::UnixListener;

use sha2::{Digest as _, Sha256};

use super::{build, build_text, context, id};
use crate::harness::Hostel;
use crate::registry::server::{DockerRegistry, Reply, Server};

#[test]
fn a_file_is_added_from_the_web() {
    let Some(h) = Hostel::new() else { return };
    let server = Server::start(|seen| match seen.path.as_str() {
        "/f.txt" => Reply::ok("data\n"),
        _ => Reply::status(404),
    });
    let sum: String = Sha256::digest(b"data\n").iter().map(|byte| format!("{byte:02x}")).collect();
    let dockerfile = |sum: &str, name: &str| {
        format!("FROM busybox\nADD --checksum=sha256:{sum} http://{}/{name} /d/\n", server.host())
    };
    build_text(&h, "x", &dockerfile(&sum, "f.txt"));
    h.run("run --rm x stat -c %a:%u:%s /d/f.txt").ok().stdout("600:0:5\n");
    let wrong = "0".repeat(64);
    for (name, text, message) in [
        ("c1", dockerfile(&wrong, "f.txt"), format!("digest mismatch sha256:{sum}: sha256:{wrong}")),
        ("c2", dockerfile(&sum, "other"), "answered 404".to_owned()),
    ] {
        let dir = context(&h, name, &[("Dockerfile", &text)]);
        h.run(&format!("build {}", dir.display())).fails(1, &[&message]);
    }
}

#[test]
fn a_context_comes_from_the_web() {
    let Some(h) = Hostel::new() else { return };
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in [("Dockerfile", "FROM busybox\nCOPY hello /hello\n"), ("hello", "hey\n")] {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, content.as_bytes()).unwrap();
    }
    let tar = tar.into_inner().unwrap();
    let server = Server::start(move |seen| match seen.path.as_str() {
        "/context.tar" => Reply::ok(tar.clone()),
        _ => Reply::status(404),
    });
    h.run(&format!("build -t x http://{}/context.tar", server.host())).ok();
    h.run("run --rm x cat /hello").ok().stdout("hey\n");
    h.run(&format!("build http://{}/other", server.host())).fails(1, &["404"]);
}

#[test]
fn a_cache_is_locked_or_private() {
    let Some(h) = Hostel::new() else { return };
    let mount = |sharing: &str| format!("RUN --mount=type=cache,id=c,target=/c,sharing={sharing}");
    build_text(
        &h,
        "x",
        &format!(
            "FROM busybox\n{0} touch /c/a\n{0} ls /c > /locked\n{1} ls /c > /private\n",
            mount("locked"),
            mount("private")
        ),
    );
    h.run("run --rm x cat /locked /private").ok().stdout("a\na\n");
}

#[test]
fn an_agents_socket_is_handed_in() {
    let Some(h) = Hostel::new() else { return };
    let socket = h.scratch("agent").join("socket");
    let _agent = UnixListener::bind(&socket).unwrap();
    let dockerfile = "FROM busybox\nRUN --mount=type=ssh,required=true test -S \"$SSH_AUTH_SOCK\"\n";
    let dir = context(&h, "c", &[("Dockerfile", dockerfile)]);
    build(&h, "x", &dir, &format!("--ssh default={}", socket.display()));
    h.run(&format!("build --no-cache {}", dir.display())).fails(1, &["--ssh default"]);
}

#[test]
fn what_is_built_goes_into_an_archive_and_to_a_registry() {
    let Some(h) = Hostel::new() else { return };
    let dir = context(&h, "c", &[("Dockerfile", "FROM busybox\nRUN echo made > /made\n")]);
    let archive = h.scratch("out").join("image.tar");
    build(&h, "x:1", &dir, &format!("--output type=docker,dest={}", archive.display()));
    // The archive is made of an image of the store, which stays (COMPATIBILITY.md).
    h.run("rmi x:1").ok();
    h.run(&format!("load -i {}", archive.display())).ok().has("x:1");
    h.run("run --rm x:1 cat /made").ok().stdout("made\n");
    assert!(fs::metadata(&archive).unwrap().len() > 0);
    let Some(registry) = DockerRegistry::start(&h.scratch("registry"), "") else { return };
    let name = format!("{}/built:1", registry.host());
    build(&h, &name, &dir, "--push");
    let pushed = id(&h, &name);
    h.run(&format!("rmi -f {name}")).ok();
    h.run(&format!("pull -q {name}")).ok();
    assert_eq!(id(&h, &name), pushed);
}
