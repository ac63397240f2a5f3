//! Hosts on which engines usually do not start: each test makes one, as far as a plain user can.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::harness::{Done, Hostel, skip};

/// Runs a script with `$HOSTEL`, as root of a user namespace with one id and mounts of its own.
fn unshared(h: &Hostel, script: &str) -> Done {
    h.program(
        "unshare",
        &[
            "--user",
            "--map-root-user",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "bash",
            "-c",
            script,
        ],
    )
    .run()
}

fn may_unshare(h: &Hostel) -> bool {
    let done = unshared(h, "true");
    if done.exit_code() != 0 {
        skip(&format!("no user namespace with mounts of its own: {}", done.stderr));
    }
    done.exit_code() == 0
}

#[test]
fn no_runtime_directory_or_one_with_a_long_path() {
    let Some(h) = Hostel::new() else { return };
    let script = "set -e; \"$HOSTEL\" run -d --name box --network none busybox sleep 1000 >/dev/null; \
                  \"$HOSTEL\" exec box echo in; \"$HOSTEL\" rm -f box";
    let none = format!("unset XDG_RUNTIME_DIR; {script}");
    h.program("bash", &["-c", &none]).run().ok().stdout("in\nbox\n");
    // Longer than a socket's address may be (unix(7)).
    let long = h.scratch(&"d".repeat(120));
    fs::set_permissions(&long, fs::Permissions::from_mode(0o700)).unwrap();
    h.program("bash", &["-c", script])
        .env("XDG_RUNTIME_DIR", &long.to_string_lossy())
        .run()
        .ok()
        .stdout("in\nbox\n");
}

#[test]
fn a_home_that_cannot_be_written_and_odd_temporary_directories() {
    let Some(h) = Hostel::new() else { return };
    for (name, value) in
        [("HOME", "/proc"), ("HOME", "/nonexistent"), ("TMPDIR", "/proc"), ("TMPDIR", "/nonexistent")]
    {
        h.cmd("run --rm --network none busybox echo runs").env(name, value).run().ok().stdout("runs\n");
    }
    // Without a place for its store it names where that would be.
    let script = "unset HOSTEL_ROOT XDG_DATA_HOME; HOME=/proc \"$HOSTEL\" images";
    let done = h.program("bash", &["-c", script]).run();
    assert_ne!(done.exit_code(), 0);
    done.stderr_has("/proc/");
}

#[test]
fn few_descriptors_and_processes() {
    let Some(h) = Hostel::new() else { return };
    let script = "ulimit -n 64; \"$HOSTEL\" run --rm busybox echo runs";
    h.program("bash", &["-c", script]).run().ok().stdout("runs\n");
}

#[test]
fn user_namespaces_that_are_switched_off() {
    let Some(h) = Hostel::new() else { return };
    if !may_unshare(&h) {
        return;
    }
    let script =
        "echo 0 > /proc/sys/user/max_user_namespaces; exec \"$HOSTEL\" run --rm --network none busybox true";
    unshared(&h, script).fails(125, &["user.max_user_namespaces"]);
}

#[test]
fn records_of_newer_and_older_binaries() {
    let Some(h) = Hostel::new() else { return };
    let id = h.detached("--name box --network none busybox sh -c 'echo said; sleep 1000'");
    h.wait_for_log("box", "said");
    // A newer binary's fields are passed over; an older one's records lack them.
    for name in ["record.json", "spec.json", "state.json"] {
        let path = h.root().join("containers").join(&id).join(name);
        let mut value: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        value["of_a_newer_binary"] = serde_json::json!({"x": [1]});
        if name == "state.json" {
            for newer in ["network", "exposed", "restarts", "paused", "cgroup"] {
                value.as_object_mut().unwrap().remove(newer);
            }
        }
        fs::write(&path, value.to_string()).unwrap();
    }
    h.run("ps --format {{.Names}}").ok().stdout("box\n");
    h.run("exec box echo entered").ok().stdout("entered\n");
    h.run("logs box").ok().stdout("said\n");
    h.run("inspect box").ok();
    h.run("stop -t 0 box").ok();
    let path = h.root().join("containers").join(&id).join("record.json");
    let old = fs::read_to_string(&path).unwrap();
    fs::write(&path, old.replacen("\"version\":1", "\"version\":999", 1)).unwrap();
    h.run("start box").code(1).stderr_has("newer");
    fs::write(&path, old).unwrap();
}
