//! What a container has changed of its image: told (`diff`), and made into images (`commit`, `import`).
//!
//! Both write sides have to give the same answers, on running and on stopped containers.

use std::fs;
use std::process::Command;

use crate::harness::{Hostel, output, skip};

const WRITE_MODES: [&str; 2] = ["hybrid", "pure"];

/// Makes a container by running a script in it, on one write side, and leaves it stopped.
fn changed(h: &Hostel, write: &str, image: &str, name: &str, script: &str) {
    let option = format!("write={write}");
    h.args(&[
        "run",
        "--storage-opt",
        &option,
        "--network",
        "none",
        "--name",
        name,
        image,
        "sh",
        "-ec",
        script,
    ])
    .ok();
}

#[test]
fn a_diff_is_dockers_on_each_write_side() {
    let Some(h) = Hostel::new() else { return };
    changed(&h, "auto", "busybox", "base", "mkdir /q && touch -d @5 /q/a /q/b");
    h.run("commit base base").ok();
    // The script, and what is told of it.
    let table = [
        ("true", ""),
        ("touch /a", "A /a\n"),
        ("mkdir -p /x/y && echo > /x/y/f", "A /x\nA /x/y\nA /x/y/f\n"),
        // Names sort within their directory.
        ("mkdir /d /d-e && touch /d/f", "A /d\nA /d/f\nA /d-e\n"),
        ("echo more >> /etc/passwd", "C /etc\nC /etc/passwd\n"),
        ("chmod 600 /etc/passwd", "C /etc\nC /etc/passwd\n"),
        ("chmod 711 /etc", "C /etc\n"),
        // Its time is the file's own again: nothing has changed.
        ("touch -r /etc/passwd /r && touch /etc/passwd && touch -r /r /etc/passwd && rm /r", ""),
        ("rm /etc/passwd", "C /etc\nD /etc/passwd\n"),
        ("rm -r /q", "D /q\n"),
        ("rm -r /q && mkdir /q && echo > /q/new", "C /q\nD /q/a\nD /q/b\nA /q/new\n"),
        ("rm -r /q && echo > /q", "C /q\n"),
        ("cp -a /q /e && rm -r /q && cp -a /e /q && rm -r /e && touch /q/z", "C /q\nA /q/z\n"),
        ("rm /etc/passwd && mkdir -p /etc/passwd/in", "C /etc\nC /etc/passwd\nA /etc/passwd/in\n"),
        ("ln -s nowhere /l && mkfifo /p", "A /l\nA /p\n"),
        ("ln /etc/passwd /etc/second", "C /etc\nC /etc/passwd\nA /etc/second\n"),
        ("touch /a && rm /a", ""),
        ("touch '/a b\u{e9}'", "A /a b\u{e9}\n"),
    ];
    for (place, (script, expected)) in table.iter().enumerate() {
        for write in WRITE_MODES {
            let name = format!("c{place}-{write}");
            changed(&h, write, "base", &name, script);
            let told = h.run(&format!("diff {name}")).ok().stdout.clone();
            assert_eq!(told, *expected, "write={write}: {script}");
            h.run(&format!("rm {name}")).ok();
        }
    }
    h.run("diff nosuch").fails(1, &["No such container: nosuch"]);
}

#[test]
fn a_moved_directory_is_told_whole() {
    let Some(h) = Hostel::new() else { return };
    changed(&h, "auto", "busybox", "base", "mkdir -p /q/deep && touch /q/a /q/deep/b");
    h.run("commit base base").ok();
    // Only this crate's own write side can move a directory of the image.
    changed(&h, "pure", "base", "cc", "mv /q /moved && touch /moved/z && rm /moved/a");
    h.run("diff cc").ok().stdout("A /moved\nA /moved/deep\nA /moved/deep/b\nA /moved/z\nD /q\n");
    h.run("commit cc moved").ok();
    h.run("run --rm moved ls -A /moved /moved/deep").ok().stdout("/moved:\ndeep\nz\n\n/moved/deep:\nb\n");
    h.run("run --rm moved ls /q").code(1);
    // And one that is moved back into a directory that is new is as it was, and in the layer all the same.
    changed(&h, "pure", "base", "back", "mv /q/deep /d && rm -r /q && mkdir /q && mv /d /q/deep");
    h.run("diff back").ok().stdout("C /q\nD /q/a\n");
    h.run("commit back back").ok();
    h.run("run --rm back find /q").ok().stdout("/q\n/q/deep\n/q/deep/b\n");
}

#[test]
fn the_changes_of_a_running_container_are_told() {
    let Some(h) = Hostel::new() else { return };
    for write in WRITE_MODES {
        let line = format!(
            "--storage-opt write={write} --network none --name rr busybox sh -c 'echo hi > /f; chmod 000 /f; echo up; sleep 1000'"
        );
        h.detached(&line);
        h.wait_for_log("rr", "up");
        h.run("diff rr").ok().stdout("A /f\n");
        for (flags, image) in [("", "one"), ("--pause=false", "two"), ("-p=true -q", "three")] {
            let id = h.run(&format!("commit {flags} rr {image}")).ok().out();
            assert!(id.starts_with("sha256:") && id.len() == 71, "{id}");
            h.run(&format!("run --rm {image} cat /f")).ok().stdout("hi\n");
        }
        // It goes on as before.
        h.run("exec rr sh -c 'echo more >> /f && cat /f'").ok().stdout("hi\nmore\n");
        h.run("rm -f rr").ok();
        h.run("rmi -f one two three").ok();
    }
}

#[test]
fn a_commit_runs_with_all_that_was_changed() {
    let Some(h) = Hostel::new() else { return };
    let script = "mkdir -p /srv/a && echo data > /srv/a/f && ln /srv/a/f /srv/a/hard && ln -s f /srv/a/soft \
                  && mkfifo /srv/pipe && chmod 4755 /srv/a/f && chmod 1777 /srv/a && touch -d @1000000000 /srv/a/f \
                  && rm /etc/group && rm /bin/vi && echo x > /srv/closed && chmod 000 /srv/closed \
                  && truncate -s 100M /srv/sparse && echo end >> /srv/sparse \
                  && mkdir /srv/$(printf '%0200d' 7) && echo long > /srv/$(printf '%0200d' 7)/$(printf '%0200d' 8)";
    let check = "stat -c '%a %h %Y' /srv/a/f /srv/a && readlink /srv/a/soft && test -p /srv/pipe && cat /srv/a/hard \
                 && ls /etc/group /bin/vi 2>&1 | grep -c 'No such' && cat /srv/closed && tail -c 4 /srv/sparse \
                 && stat -c %s /srv/sparse && cat /srv/0*/0*";
    for write in WRITE_MODES {
        changed(&h, write, "busybox", "cc", script);
        let id = h.run("commit -m note -a me cc made:1").ok().out();
        h.args(&["run", "--rm", "made:1", "sh", "-ec", check])
            .ok()
            .has("4755 2 1000000000\n1777 2")
            .has("f\ndata\n2\nx\nend\n104857604\nlong\n");
        // A container of it has changed nothing.
        for again in WRITE_MODES {
            changed(&h, again, "made:1", "again", "true");
            h.run("diff again").ok().stdout("");
            h.run("rm again").ok();
        }
        let layers = h.run("image inspect -f '{{len .RootFS.Layers}}' made:1").ok().out();
        assert_eq!(layers, "2");
        h.run("image inspect -f '{{.Author}} {{.Id}}' made:1").ok().stdout(&format!("me {id}\n"));
        h.run("history --no-trunc --format '{{.Comment}}' made:1").ok().has("note\n");
        h.run("rm cc").ok();
        h.run("rmi made:1").ok();
    }
}

#[test]
fn two_commits_of_the_same_changes_are_one_layer_on_either_side() {
    let Some(h) = Hostel::new() else { return };
    let script = "mkdir /m && touch -d @5 /m/b /m/a && echo 1 > /etc/x && touch -d @7 /etc/x && rm /bin/vi && touch -d @9 /m /etc /bin";
    let mut layers = Vec::new();
    for write in WRITE_MODES {
        changed(&h, write, "busybox", write, script);
        for tag in ["a", "b"] {
            h.run(&format!("commit {write} {write}:{tag}")).ok();
            layers.push(
                h.run(&format!("image inspect -f '{{{{index .RootFS.Layers 1}}}}' {write}:{tag}")).ok().out(),
            );
        }
    }
    assert!(layers.iter().all(|layer| layer == &layers[0]), "{layers:?}");
}

#[test]
fn a_commits_configuration_is_the_containers_with_changes() {
    let Some(h) = Hostel::new() else { return };
    h.args(&[
        "create",
        "--name",
        "cc",
        "-e",
        "A=1",
        "-e",
        "B=2",
        "-w",
        "/etc",
        "-u",
        "app",
        "-l",
        "k=v",
        "--expose",
        "81",
        "--stop-signal",
        "QUIT",
        "-v",
        "/data",
        "--entrypoint",
        "/bin/echo",
        "busybox",
        "x",
    ])
    .ok();
    h.run("commit cc plain").ok();
    let show = |image: &str| h.args(&["image", "inspect", "-f", "{{json .Config}}", image]).ok().out();
    let plain: serde_json::Value = serde_json::from_str(&show("plain")).unwrap();
    for (key, expected) in [
        ("Cmd", r#"["x"]"#),
        ("Entrypoint", r#"["/bin/echo"]"#),
        ("WorkingDir", r#""/etc""#),
        ("User", r#""app""#),
        ("StopSignal", r#""SIGQUIT""#),
        ("ExposedPorts", r#"{"81/tcp":{}}"#),
        ("Volumes", r#"{"/data":{}}"#),
    ] {
        assert_eq!(plain[key].to_string(), expected, "{key}: {plain}");
    }
    assert_eq!(plain["Labels"]["k"], "v");
    let env = plain["Env"].to_string();
    assert!(env.starts_with(r#"["A=1","B=2","PATH="#), "{env}");
    // Nothing has changed: no layer is added.
    assert_eq!(h.run("image inspect -f '{{len .RootFS.Layers}}' plain").ok().out(), "1");

    let changes = [
        "-c",
        r#"CMD ["other"]"#,
        "-c",
        "ENV B=3 C=\"a b\"",
        "-c",
        "EXPOSE 82/udp",
        "-c",
        "WORKDIR sub",
        "-c",
        "LABEL l=w",
        "-c",
        "USER root",
        "-c",
        "VOLUME /more",
        "-c",
        "ENTRYPOINT []",
        "-c",
        "STOPSIGNAL TERM",
    ];
    let arguments: Vec<&str> = ["commit"].iter().chain(&changes).chain(&["cc", "changed"]).copied().collect();
    h.args(&arguments).ok();
    let changed: serde_json::Value = serde_json::from_str(&show("changed")).unwrap();
    assert_eq!(changed["Cmd"].to_string(), r#"["other"]"#);
    assert!(
        changed["Env"].to_string().contains(r#""B=3""#) && changed["Env"].to_string().contains(r#""C=a b""#)
    );
    assert_eq!((changed["WorkingDir"].as_str(), changed["User"].as_str()), (Some("/etc/sub"), Some("root")));
    assert_eq!(changed["ExposedPorts"].as_object().unwrap().len(), 2);

    for (line, parts) in [
        ("commit -c 'RUN x' cc", &["RUN is not a valid change command"][..]),
        ("commit cc UPPER", &["invalid reference format", "lowercase"]),
        ("commit nosuch", &["No such container: nosuch"]),
    ] {
        h.run(line).fails(1, parts);
    }
}

#[test]
fn names_like_whiteouts_are_left_out_of_images() {
    let Some(h) = Hostel::new() else { return };
    for write in WRITE_MODES {
        changed(
            &h,
            write,
            "busybox",
            "cc",
            "touch /.wh.etc /.wh..wh..opq /kept && mkdir /d && touch /d/.wh.x",
        );
        h.run("commit cc made").ok().stderr_has("/.wh.etc is left out").stderr_has("/d/.wh.x is left out");
        h.run("run --rm made sh -c 'ls /etc/passwd /kept; ls -A /d'").ok().stdout("/etc/passwd\n/kept\n");
        h.run("rm cc").ok();
        h.run("rmi made").ok();
    }
}

#[test]
fn other_programs_read_a_committed_image() {
    let Some(h) = Hostel::new() else { return };
    changed(
        &h,
        "hybrid",
        "busybox",
        "cc",
        "mkdir /n && echo new > /n/f && rm /etc/group && rm -r /bin && mkdir /bin && cp /n/f /bin/g",
    );
    h.run("commit cc cross:1").ok();
    let archive = h.scratch("cross").join("cross.tar");
    h.run(&format!("save -o {} cross:1", archive.display())).ok();
    if output(Command::new("skopeo").arg("--version")).is_err()
        || output(Command::new("umoci").arg("--version")).is_err()
    {
        return skip("skopeo or umoci is not installed");
    }
    let layout = h.scratch("layout");
    let copy =
        ["copy", &format!("docker-archive:{}", archive.display()), &format!("oci:{}:it", layout.display())]
            .map(str::to_owned);
    let copy: Vec<&str> = copy.iter().map(String::as_str).collect();
    h.program("skopeo", &[&["--insecure-policy"][..], &copy].concat()).run().ok();
    let bundle = h.scratch("bundles").join("b");
    h.program(
        "umoci",
        &["unpack", "--rootless", "--image", &format!("{}:it", layout.display()), &bundle.to_string_lossy()],
    )
    .run()
    .ok();
    let root = bundle.join("rootfs");
    assert_eq!(fs::read_to_string(root.join("n/f")).unwrap(), "new\n");
    assert!(!root.join("etc/group").exists() && root.join("etc/passwd").exists());
    let names: Vec<_> =
        fs::read_dir(root.join("bin")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["g"]);
}

#[test]
fn an_archive_becomes_an_image() {
    let Some(h) = Hostel::new() else { return };
    let dir = h.scratch("import");
    fs::create_dir_all(dir.join("root/bin")).unwrap();
    fs::copy("/bin/busybox", dir.join("root/bin/busybox")).unwrap();
    fs::write(dir.join("root/f"), "imported\n").unwrap();
    for (compress, file) in [("-cf", "plain.tar"), ("-czf", "small.tar.gz"), ("--zstd -cf", "small.tar.zst")]
    {
        let line = format!("cd {} && tar {compress} {file} -C root .", dir.display());
        h.program("sh", &["-c", &line]).run().ok();
        let path = dir.join(file);
        let id = h
            .run(&format!(
                "import -m why -c 'CMD [\"/bin/busybox\",\"cat\",\"/f\"]' {} imported:1",
                path.display()
            ))
            .ok()
            .out();
        assert!(id.starts_with("sha256:"), "{id}");
        h.run("run --rm imported:1").ok().stdout("imported\n");
        h.run("history --format '{{.Comment}}' imported:1").ok().stdout("why\n");
        h.run("rmi imported:1").ok();
    }
    let bytes = fs::read(dir.join("plain.tar")).unwrap();
    h.cmd("import --platform linux/arm64/v8 - arm").stdin(bytes.clone()).run().ok();
    h.run("image inspect -f '{{.Os}}/{{.Architecture}}' arm").ok().stdout("linux/arm64\n");
    let id = h.cmd("import -").stdin(bytes).run().ok().out();
    h.run(&format!("image inspect -f '{{{{.Id}}}}' {id}")).ok().stdout(&format!("{id}\n"));
    for (line, parts) in [
        ("import /nosuch.tar", &["/nosuch.tar"][..]),
        ("import /etc", &["/etc is not a file"]),
        ("import https://127.0.0.1:1/x.tar", &["cannot reach 127.0.0.1:1"]),
        ("import --platform a//b -", &["invalid platform"]),
        ("import /etc/passwd", &["not usable"]),
        ("import - UP", &["lowercase"]),
    ] {
        h.run(line).fails(1, parts);
    }
    h.cmd("import - evil").stdin(hostile_tar("../out")).run().fails(1, &["\"..\" are refused"]);
    h.run("images -q evil").ok().stdout("");
}

/// An archive with one file of this name.
fn hostile_tar(name: &str) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_size(0);
    header.set_mode(0o644);
    header.set_cksum();
    [&header.as_bytes()[..], &[0; 1024]].concat()
}
