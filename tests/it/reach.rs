//! Hosts on which engines usually do not start: each test makes one, as far as a plain user can.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::fixtures;
use crate::harness::{Done, Hostel, binary, skip};

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

/// Binds the engine and an image's archive into a container.
fn engine_binds() -> Option<[String; 4]> {
    let archive = fixtures::busybox_archive()?;
    let engine = format!("{}:/hostel:ro", binary().display());
    Some(["-v".into(), engine, "-v".into(), format!("{}:/busybox.tar:ro", archive.display())])
}

/// What is tried inside: a run, entering a container, and a network where there is a device for it.
const INNER: &str = "set -e; export HOSTEL_ROOT=/store HOME=/root; /hostel load -q -i /busybox.tar >/dev/null; \
    /hostel run --rm --network none busybox sh -c 'echo inner; test $(cat /proc/self/comm) = cat && test -r /proc/mounts'; \
    /hostel run -d --name in --network none busybox sleep 1000 >/dev/null; /hostel exec in echo entered; \
    test \"$1\" != net || /hostel run --rm busybox sh -c 'nslookup host.docker.internal >/dev/null && echo net'; \
    /hostel rm -f in";

#[test]
fn an_engine_in_an_engine() {
    let Some(h) = Hostel::new() else { return };
    let Some(binds) = engine_binds() else { return skip("no busybox-static") };
    let store = format!("{}:/store", h.scratch("inner").display());
    let run = |more: &[&str]| {
        let mut line = vec!["run", "--rm", "-v", &store];
        line.extend(binds.iter().map(String::as_str));
        line.extend(more);
        line.extend(["busybox", "sh", "-c", INNER, "sh", "net"]);
        h.args(&line)
    };
    run(&["--security-opt", "nested"]).ok().stdout("inner\nentered\nnet\nin\n");
    // Without it the way out is named.
    let refused = run(&[]);
    assert_ne!(refused.exit_code(), 0);
    refused.stderr_has("--security-opt nested");
}

#[test]
fn in_a_container_of_podman() {
    let Some(h) = Hostel::new() else { return };
    let (Some(binds), Some(archive)) = (engine_binds(), fixtures::busybox_archive()) else {
        return skip("no busybox-static");
    };
    let podman = |arguments: &[&str]| {
        let store = h.scratch("podman").display().to_string();
        let mut line = vec!["--root", &store, "--storage-driver", "vfs", "--events-backend", "none"];
        line.extend(arguments);
        line.insert(0, "podman");
        // The tests' own directory of Docker's settings has no file, which podman takes for an error.
        line.splice(0..0, ["-u", "DOCKER_CONFIG"]);
        let run = h.scratch("podman-run");
        h.program("env", &line).env("XDG_RUNTIME_DIR", &run.to_string_lossy()).run()
    };
    if podman(&["load", "-q", "-i", &archive.to_string_lossy()]).exit_code() != 0 {
        return skip("podman cannot load an image here");
    }
    let base = ["run", "--rm", "--network", "none", "--cgroups=disabled"];
    let run = |more: &[&str], net: &str| {
        let mut line = base.to_vec();
        line.extend(binds.iter().map(String::as_str));
        line.extend(more);
        line.extend(["localhost/busybox:latest", "sh", "-c", INNER, "sh", net]);
        podman(&line)
    };
    let mut plain = base.to_vec();
    plain.extend(["localhost/busybox:latest", "true"]);
    let probe = podman(&plain);
    if probe.exit_code() != 0 {
        // crun refuses cgroups of both versions.
        crate::harness::skip_for_this_kernel(&format!("podman cannot run here: {}", probe.stderr));
    } else {
        // Its own seccomp filter and masked /proc, without and with the devices.
        run(&[], "").ok().stdout("inner\nentered\nin\n");
        run(&["--device", "/dev/fuse", "--device", "/dev/net/tun"], "net")
            .ok()
            .stdout("inner\nentered\nnet\nin\n");
    }
    podman(&["unshare", "rm", "-rf", &h.scratch("podman").to_string_lossy()]).ok();
    podman(&["system", "migrate"]); // ends its process that keeps the namespaces
}
