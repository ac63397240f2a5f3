//! `host:/`: the machine's own root as an image, with what is private hidden and all of it copy-on-write.

use std::fs;
use std::path::Path;

use crate::harness::Hostel;

#[test]
fn the_readmes_first_command_shows_what_it_says() {
    let h = Hostel::empty();
    let readme = fs::read_to_string(crate::layering::source_dir().join("README.md")).unwrap();
    let block = readme.split("```sh\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let script = block.replace("cargo run --release --", "\"$HOSTEL\"");
    assert_ne!(script, block, "the first command is no cargo run");
    h.program("sh", &["-c", &script])
        .cwd(&h.scratch("empty"))
        .run()
        .has("I am root, and process 1 here\n")
        .has(" / fuse ")
        .has("the host's /tmp has 0 entries in here\n")
        .has(" /etc/written-inside\n")
        .stderr_has("/etc/written-inside");
}

#[test]
fn the_private_places_are_hidden() {
    let h = Hostel::empty();
    let marker = tempfile::Builder::new().prefix("hostel-visible").tempfile_in("/tmp").unwrap();
    let marker = marker.path().to_owned();
    h.run(&format!(
        "run --rm -w / host:/ sh -c 'ls {} 2>&1; ls /tmp /var/tmp /root /home | grep -v :'",
        marker.display()
    ))
    .lacks("hostel-visible\n")
    .has("No such file");
    h.run("run --rm host:/ sh -c 'cat /etc/shadow | wc -c; ls /etc/ssh/ssh_host* 2>/dev/null | wc -l; ls /run | wc -l'")
        .ok()
        .stdout("0\n0\n0\n");
    h.run("run --rm host:/ sh -c 'test -w /tmp && test -w /root && echo writable'").ok().stdout("writable\n");
}

#[test]
fn the_working_directory_is_the_callers_and_visible() {
    let h = Hostel::empty();
    let dir = h.scratch("work");
    fs::write(dir.join("file"), "mine\n").unwrap();
    let run = |line: &str| h.cmd(line).cwd(&dir).run();
    run("run --rm host:/ sh -c 'pwd; cat file'").ok().stdout(&format!("{}\nmine\n", dir.display()));
    run("run --rm host:/ sh -c 'echo changed > file; rm -f other; touch new; cat file'")
        .ok()
        .stdout("changed\n");
    assert_eq!(fs::read_to_string(dir.join("file")).unwrap(), "mine\n");
    assert!(!dir.join("new").exists());
    // Next to the visible directory, hidden is hidden.
    run("run --rm host:/ sh -c 'ls ..'").ok().stdout("work\n");
}

#[test]
fn nothing_on_the_host_changes() {
    let h = Hostel::empty();
    let line = "run --rm host:/ sh -c 'rm -rf /usr/share/doc /etc/hosts; echo x > /etc/hostel-was-here; \
                echo y >> /etc/os-release; ls /etc/hostel-was-here'";
    let before = fs::read("/etc/os-release").unwrap();
    h.run(line).stdout("/etc/hostel-was-here\n");
    assert!(!Path::new("/etc/hostel-was-here").exists());
    assert_eq!(fs::read("/etc/os-release").unwrap(), before);
}

#[test]
fn the_hosts_programs_work() {
    let h = Hostel::empty();
    h.run("run --rm host:/ python3 -c 'import json, ssl, sqlite3; print(json.dumps([1]))'")
        .ok()
        .stdout("[1]\n");
    h.run("run --rm host:/ sh -c 'cd / && tar -cf /tmp/t.tar etc/os-release && tar -tf /tmp/t.tar'")
        .ok()
        .stdout("etc/os-release\n");
}

#[test]
fn a_directory_is_an_image() {
    let Some(h) = Hostel::new() else { return };
    let dir = h.scratch("rootfs");
    for name in ["bin", "etc", "proc", "sys", "dev", "tmp"] {
        fs::create_dir_all(dir.join(name)).unwrap();
    }
    fs::copy("/bin/busybox", dir.join("bin/busybox")).unwrap();
    std::os::unix::fs::symlink("busybox", dir.join("bin/sh")).unwrap();
    fs::write(dir.join("etc/marker"), "of the directory\n").unwrap();
    let line = format!(
        "run --rm rootfs:{} sh -c 'read a < /etc/marker; echo $a; echo x > /etc/marker'",
        dir.display()
    );
    h.run(&line).ok().stdout("of the directory\n");
    assert_eq!(fs::read_to_string(dir.join("etc/marker")).unwrap(), "of the directory\n");
    h.cmd("run --rm rootfs:./rootfs sh -c 'echo relative'")
        .cwd(dir.parent().unwrap())
        .run()
        .ok()
        .stdout("relative\n");
    h.run("run --rm rootfs:/no/such/dir true").fails(125, &["/no/such/dir"]);
}
