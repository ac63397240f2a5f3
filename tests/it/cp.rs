//! Copying into and out of containers (`cp`), and whole filesystems (`export`): running and stopped, on each
//! write side, and with hostile content.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::harness::Hostel;

/// Containers in every state that a copy may meet: their names.
fn containers(h: &Hostel) -> Vec<String> {
    let mut names = Vec::new();
    for write in ["hybrid", "pure"] {
        let option = format!("write={write}");
        let (running, stopped, created) =
            (format!("run-{write}"), format!("end-{write}"), format!("new-{write}"));
        h.args(&[
            "run",
            "-d",
            "--storage-opt",
            &option,
            "--network",
            "none",
            "--name",
            &running,
            "busybox",
            "sleep",
            "1000",
        ])
        .ok();
        h.args(&[
            "run",
            "--storage-opt",
            &option,
            "--network",
            "none",
            "--name",
            &stopped,
            "busybox",
            "true",
        ])
        .ok();
        h.args(&[
            "create",
            "--storage-opt",
            &option,
            "--network",
            "none",
            "--name",
            &created,
            "busybox",
            "true",
        ])
        .ok();
        names.extend([running, stopped, created]);
    }
    names
}

fn tree(dir: &Path) {
    fs::create_dir_all(dir.join("d/sub")).unwrap();
    fs::write(dir.join("f"), "file\n").unwrap();
    fs::write(dir.join("d/a"), "a\n").unwrap();
    fs::write(dir.join("d/sub/b"), "b\n").unwrap();
    fs::hard_link(dir.join("d/a"), dir.join("d/again")).unwrap();
    symlink("a", dir.join("d/link")).unwrap();
    fs::set_permissions(dir.join("d/sub/b"), fs::Permissions::from_mode(0o640)).unwrap();
}

#[test]
fn every_rule_of_what_goes_where_holds() {
    let Some(h) = Hostel::new() else { return };
    let dir = h.scratch("from");
    tree(&dir);
    let at = dir.display();
    for name in containers(&h) {
        // What is copied, and what is then found where, with its content.
        let table = [
            (format!("{at}/f {name}:/new"), "/new", "file\n"),
            (format!("{at}/f {name}:/tmp"), "/tmp/f", "file\n"),
            (format!("{at}/f {name}:/tmp/"), "/tmp/f", "file\n"),
            (format!("{at}/f {name}:tmp/rel"), "/tmp/rel", "file\n"),
            (format!("{at}/d/a {name}:/new"), "/new", "a\n"),
            (format!("{at}/d {name}:/made"), "/made/sub/b", "b\n"),
            (format!("{at}/d {name}:/made"), "/made/d/sub/b", "b\n"),
            (format!("{at}/d/. {name}:/tmp"), "/tmp/sub/b", "b\n"),
            (format!("{at}/d/. {name}:/fresh"), "/fresh/sub/b", "b\n"),
            (format!("{at}/d/ {name}:/slash/"), "/slash/a", "a\n"),
            (format!("-L {at}/d/link {name}:/followed"), "/followed", "a\n"),
            (format!("{at}/d/link {name}:/etc/link2"), "/etc/link2", "?"),
        ];
        for (line, path, content) in table {
            h.run(&format!("cp {line}")).ok().stdout("").stderr("");
            let out = h.scratch("out").join("it");
            let _ = fs::remove_file(&out);
            h.run(&format!("cp {name}:{path} {}", out.display())).ok();
            if content == "?" {
                assert_eq!(fs::read_link(&out).unwrap(), Path::new("a"), "{line}");
            } else {
                assert_eq!(fs::read_to_string(&out).unwrap(), content, "{line}");
            }
        }
        let failures = [
            (format!("{at}/f {name}:/nosuch/"), "no such directory"),
            (format!("{at}/f {name}:/nosuch/x"), "Could not find the file /nosuch"),
            (format!("{at}/d {name}:/new"), "cannot copy directory"),
            (format!("{at}/nosuch {name}:/x"), "nosuch: no such file or directory"),
            (format!("{at}/f/ {name}:/x"), "not a directory"),
            (
                format!("{name}:/nosuch {at}"),
                &*format!("Could not find the file /nosuch in container {name}"),
            ),
            (format!("{name}:/etc {at}/f"), "cannot copy directory"),
            (format!("{name}:/etc {at}/no/such"), "does not exist"),
            (format!("{name}:/etc/passwd {at}/nosuch/"), "no such directory"),
            (format!("{at}/f {name}:/made/d2/../d"), ""),
        ];
        for (line, said) in failures {
            let done = h.run(&format!("cp {line}"));
            if said.is_empty() {
                done.ok();
            } else {
                done.fails(1, &[said]);
            }
        }
        // A file over a directory, and the other way round.
        h.run(&format!("cp {at}/d/sub {name}:/tmp/over")).ok();
        fs::create_dir_all(dir.join("e")).unwrap();
        fs::write(dir.join("e/sub"), "").unwrap();
        h.run(&format!("cp {at}/e/. {name}:/made"))
            .fails(1, &["cannot overwrite directory", "with non-directory"]);
    }
    for (line, said) in [
        ("cp a b", "must specify at least one container source"),
        ("cp x:/a y:/b", "copying between containers is not supported"),
        ("cp nosuch:/a b", "No such container: nosuch"),
        ("cp '' x:/a", "source can not be empty"),
    ] {
        h.run(line).fails(1, &[said]);
    }
}

#[test]
fn trees_come_back_as_they_went() {
    let Some(h) = Hostel::new() else { return };
    let dir = h.scratch("from");
    tree(&dir);
    let long = "n".repeat(200);
    fs::write(dir.join("d").join(&long), "long\n").unwrap();
    let sparse = fs::File::create(dir.join("d/sparse")).unwrap();
    sparse.set_len(1 << 36).unwrap();
    for name in containers(&h) {
        h.run(&format!("cp {}/d {name}:/there", dir.display())).ok();
        let back = h.scratch("back").join(&name);
        h.run(&format!("cp {name}:/there {}", back.display())).ok();
        let same = format!(
            "cd {} && diff -r --no-dereference --exclude sparse d {} && stat -c '%s %a' {}/sparse",
            dir.display(),
            back.display(),
            back.display()
        );
        h.program("sh", &["-ec", &same]).run().ok().stdout("68719476736 644\n");
        let (mine, original) =
            (fs::metadata(back.join("sub/b")).unwrap(), fs::metadata(dir.join("d/sub/b")).unwrap());
        assert_eq!(
            (mine.mode(), mine.mtime_nsec(), mine.mtime()),
            (original.mode(), original.mtime_nsec(), original.mtime())
        );
        assert_eq!(
            fs::metadata(back.join("a")).unwrap().ino(),
            fs::metadata(back.join("again")).unwrap().ino()
        );
        assert!(fs::metadata(back.join("sparse")).unwrap().blocks() < 1000, "holes were filled");
    }
}

#[test]
fn archives_go_through_standard_streams() {
    let Some(h) = Hostel::new() else { return };
    let dir = h.scratch("from");
    tree(&dir);
    h.program("sh", &["-c", &format!("cd {} && tar -cf plain.tar d f && gzip -k plain.tar", dir.display())])
        .run()
        .ok();
    for name in containers(&h) {
        for file in ["plain.tar", "plain.tar.gz"] {
            let bytes = fs::read(dir.join(file)).unwrap();
            h.cmd(&format!("cp - {name}:/tmp")).stdin(bytes).run().ok();
            let listing = format!("$HOSTEL cp {name}:/tmp/d - | tar -tf - | sort | tr '\\n' ' '");
            h.program("sh", &["-c", &listing]).run().ok().stdout("d/ d/a d/again d/link d/sub/ d/sub/b ");
            let content = format!("$HOSTEL cp {name}:/tmp/d/. - | tar -xOf - sub/b");
            h.program("sh", &["-c", &content]).run().ok().stdout("b\n");
        }
        h.cmd(&format!("cp - {name}:/nosuch")).stdin(b"".to_vec()).run().fails(1, &["must be a directory"]);
        h.cmd(&format!("cp - {name}:/etc/passwd"))
            .stdin(b"".to_vec())
            .run()
            .fails(1, &["must be a directory"]);
        h.cmd(&format!("cp - {name}:/tmp"))
            .stdin(b"no archive at all, but long enough".repeat(99))
            .run()
            .code(1);
    }
}

#[test]
fn owners_are_the_containers_root_unless_asked_otherwise() {
    let Some(h) = Hostel::new() else { return };
    let dir = h.scratch("from");
    fs::write(dir.join("f"), "x").unwrap();
    fs::set_permissions(dir.join("f"), fs::Permissions::from_mode(0o4755)).unwrap();
    h.detached("--network none --name cc busybox sleep 1000");
    for (flags, name) in [("", "/plain"), ("-a", "/archive")] {
        h.run(&format!("cp {flags} {}/f cc:{name}", dir.display())).ok();
        // The caller's own id is the container's root.
        h.run(&format!("exec cc stat -c '%u:%g %a' {name}")).ok().stdout("0:0 4755\n");
    }
    // What comes out is the caller's, and no set-user-id program of somebody's making.
    h.run("exec cc sh -c 'chown 5:6 /plain 2>/dev/null; chmod 4755 /plain'").ok();
    let out = dir.join("out");
    h.run(&format!("cp cc:/plain {}", out.display())).ok();
    let meta = fs::metadata(&out).unwrap();
    assert_eq!((meta.uid(), meta.mode() & 0o7777), (nix::unistd::getuid().as_raw(), 0o755));
}

#[test]
fn volumes_and_binds_are_reached_and_read_only_ones_refused() {
    let Some(h) = Hostel::new() else { return };
    let (dir, bind) = (h.scratch("from"), h.scratch("bind"));
    fs::write(dir.join("f"), "x\n").unwrap();
    let mounts = format!("-v vol:/vol -v {0}:/bind -v {0}:/ro:ro --tmpfs /mem", bind.display());
    h.run(&format!("create --network none --name new {mounts} busybox true")).ok();
    h.detached(&format!("--network none --name run {mounts} busybox sleep 1000"));
    for name in ["new", "run"] {
        for place in ["/vol", "/bind"] {
            h.run(&format!("cp {}/f {name}:{place}/{name}", dir.display())).ok();
        }
        assert_eq!(fs::read_to_string(bind.join(name)).unwrap(), "x\n");
        h.run(&format!("cp {}/f {name}:/ro/x", dir.display()))
            .fails(1, &["mounted volume is marked read-only"]);
    }
    h.run("run --rm -v vol:/v busybox ls /v").ok().stdout("new\nrun\n");
    h.run(&format!("cp {}/f run:/mem/f", dir.display())).ok();
    h.run("exec run cat /mem/f").ok().stdout("x\n");
    // A file that is mounted is written through.
    h.run(&format!("cp {}/f run:/etc/hosts", dir.display())).ok();
    h.run("exec run cat /etc/hosts").ok().stdout("x\n");
    h.run("run --read-only --name closed --network none busybox true").ok();
    h.run(&format!("cp {}/f closed:/x", dir.display())).fails(1, &["container rootfs is marked read-only"]);
    h.run("rm -f new run closed").ok();
    h.run("volume rm vol").ok();
}

#[test]
fn what_is_copied_into_a_new_container_is_there_when_it_starts() {
    let Some(h) = Hostel::new() else { return };
    let dir = h.scratch("from");
    fs::write(dir.join("f"), "x\n").unwrap();
    for write in ["auto", "hybrid", "pure"] {
        h.run(&format!("create --storage-opt write={write} --network none --name cc busybox sh -c 'cat /f; echo more >> /f'")).ok();
        h.run(&format!("cp {}/f cc:/f", dir.display())).ok();
        h.run("diff cc").ok().stdout("A /f\n");
        h.run("start -a cc").ok().stdout("x\n");
        h.run(&format!("cp cc:/f {}/back", dir.display())).ok();
        assert_eq!(fs::read_to_string(dir.join("back")).unwrap(), "x\nmore\n");
        h.run("rm cc").ok();
    }
}

#[test]
fn links_lead_nowhere_but_into_the_container() {
    let Some(h) = Hostel::new() else { return };
    let dir = h.scratch("host");
    fs::write(dir.join("secret"), "the machine's\n").unwrap();
    fs::write(dir.join("f"), "x\n").unwrap();
    let secret = dir.join("secret");
    let script = format!(
        "mkdir -p /in && ln -s {0} /in/abs && ln -s ../../../../../../../../../..{0} /in/rel && ln -s {1} /in/dir \
         && ln -s /proc/1/root /in/magic && sleep 1000",
        secret.display(),
        dir.display()
    );
    h.args(&["run", "-d", "--network", "none", "--name", "evil", "busybox", "sh", "-c", &script]).ok();
    h.run("exec evil sh -c 'until test -L /in/magic; do sleep 0.01; done'").ok();
    let out = h.scratch("out");
    for link in ["abs", "rel"] {
        h.run(&format!("cp -L evil:/in/{link} {}/got", out.display())).fails(1, &["Could not find the file"]);
        // Written through the link: that is a path of the container, where no such directory is.
        h.run(&format!("cp {}/f evil:/in/{link}", dir.display())).code(1);
    }
    h.run(&format!("cp {}/f evil:/in/dir/secret", dir.display())).code(1);
    h.run(&format!("cp -L evil:/in/magic/etc/passwd {}/got", out.display())).code(1);
    h.run(&format!("cp evil:/in {}", out.display())).ok();
    assert_eq!(fs::read_link(out.join("in/abs")).unwrap(), secret);
    assert_eq!(fs::read_to_string(&secret).unwrap(), "the machine's\n");
    // A link that the container left at the destination on the machine is not followed either.
    symlink(&secret, out.join("planted")).unwrap();
    h.run("exec evil sh -c 'mkdir -p /s/planted && echo owned > /s/planted/secret'").ok();
    h.run(&format!("cp evil:/s/. {}", out.display())).fails(1, &["cannot overwrite"]);
    assert_eq!(fs::read_to_string(&secret).unwrap(), "the machine's\n");
    for name in ["../out", "/tmp/../../out", "a/../../out"] {
        h.cmd("cp - evil:/in").stdin(one_file(name)).run().fails(1, &["\"..\" are refused"]);
    }
    // Absolute names mean the destination.
    h.cmd("cp - evil:/in").stdin(one_file("/etc/absolute")).run().ok();
    h.run("exec evil cat /in/etc/absolute").ok().stdout("evil\n");
    h.cmd("cp - evil:/in")
        .stdin([&entry("l", b'2', "/etc", b"")[..], &one_file("l/escaped")].concat())
        .run()
        .fails(1, &["symbolic link"]);
    h.run("exec evil test -e /etc/escaped").code(1);
}

#[test]
fn a_swap_of_directory_and_link_gains_nothing() {
    let Some(h) = Hostel::new() else { return };
    let dir = h.scratch("host");
    fs::write(dir.join("f"), "x\n").unwrap();
    fs::create_dir(dir.join("t")).unwrap();
    fs::write(dir.join("t/g"), "y\n").unwrap();
    let script = format!(
        "mkdir -p /race /safe; while :; do rm -rf /race; ln -s {} /race; rm -f /race; mkdir /race; done",
        dir.display()
    );
    h.args(&["run", "-d", "--network", "none", "--name", "race", "busybox", "sh", "-c", &script]).ok();
    let before: Vec<_> = names(&dir);
    let start = Instant::now();
    for round in 0.. {
        if start.elapsed() > Duration::from_secs(2) {
            break;
        }
        // Whether one succeeds is the race's affair.
        h.run(&format!("cp {}/t race:/race/in", dir.display()));
        // Another name each time: a link that came out is a link, and the next copy to it would follow it.
        h.run(&format!("cp race:/race {}", h.scratch("out").join(round.to_string()).display()));
    }
    assert_eq!(names(&dir), before);
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn an_export_is_the_whole_root_without_mounts() {
    let Some(h) = Hostel::new() else { return };
    let dir = h.scratch("out");
    let script = "mkdir /x && echo 1 > /x/a && ln /x/a /x/b && chmod 000 /x/a && echo v > /vol/inside; test -z \"$1\" || sleep 1000";
    let mut archives = Vec::new();
    for write in ["hybrid", "pure"] {
        let option = format!("write={write}");
        for state in ["end", "run"] {
            let name = format!("{state}-{write}");
            let (detach, wait) = if state == "run" { ("-d", "wait") } else { ("-i", "") };
            h.args(&[
                "run",
                detach,
                "--storage-opt",
                &option,
                "--network",
                "none",
                "-v",
                "/vol",
                "--name",
                &name,
                "busybox",
                "sh",
                "-ec",
                script,
                "-",
                wait,
            ])
            .ok();
            if state == "run" {
                h.run(&format!("exec {name} sh -c 'until test -e /vol/inside; do sleep 0.01; done'")).ok();
            }
            let (first, second) = (dir.join(format!("{name}.tar")), dir.join(format!("{name}2.tar")));
            h.run(&format!("export -o {} {name}", first.display())).ok();
            h.program("sh", &["-c", &format!("$HOSTEL export {name} > {}", second.display())]).run().ok();
            assert!(fs::read(&first).unwrap() == fs::read(&second).unwrap(), "two exports of {name} differ");
            let list = format!("tar -tf {} | grep -E '^(x|vol|proc|etc/passwd)'", first.display());
            h.program("sh", &["-c", &list]).run().ok().stdout("etc/passwd\nproc/\nvol/\nx/\nx/a\nx/b\n");
            archives.push(first);
        }
    }
    let id = h.run(&format!("import {} whole", archives[0].display())).ok().out();
    assert!(id.starts_with("sha256:"));
    h.run("run --rm whole stat -c '%a %h' /x/b").ok().stdout("0 2\n");
    h.run("export nosuch").fails(1, &["No such container: nosuch"]);
}

/// One member of a tar.
fn entry(name: &str, kind: u8, link: &str, content: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.as_old_mut().linkflag = [kind];
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    let mut bytes = [header.as_bytes(), content].concat();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn one_file(name: &str) -> Vec<u8> {
    [&entry(name, b'0', "", b"evil\n")[..], &[0; 1024]].concat()
}
