//! Hosts on which engines usually do not start: each test makes one, as far as a plain user can.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::fixtures;
use crate::harness::{Done, Hostel, binary, skip};

/// Runs a script with `$HOSTEL`, as root of a user namespace with one id and mounts of its own. Its end kills whatever
/// is left in there, so what a keeper still clears away after its command has ended is waited for.
fn unshared(h: &Hostel, script: &str) -> Done {
    let script = format!(
        "({script}\n); code=$?
        for _ in $(seq 500); do pgrep -x hostel-keeper >/dev/null || break; sleep 0.02; done; exit $code"
    );
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
            &script,
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
    let none = "ulimit -u 1; exec \"$HOSTEL\" run --rm --network none busybox true";
    h.program("bash", &["-c", none]).run().fails(125, &["the container's keeper", "ulimit -u"]);
    h.run("ps -aq").ok().stdout("");
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

#[test]
fn few_inodes_lose_nothing() {
    let Some(archive) = fixtures::busybox_archive() else { return skip("no busybox-static") };
    let h = Hostel::empty();
    if !may_unshare(&h) {
        return;
    }
    let small = h.scratch("small").display().to_string();
    // As many files as a small quota has: as an index and a tar they are a handful.
    let mut layer = fixtures::Layer::new();
    layer.dir("many", 0o755, 0);
    for number in 0..33_000 {
        layer.file(&format!("many/{number}"), 0o644, 0, b"");
    }
    layer.file("bin/busybox", 0o755, 0, &fs::read("/bin/busybox").unwrap_or_default());
    let layout = h.scratch("layout");
    fixtures::layout_of(&layout, &layer.finish());
    let script = format!(
        "mount -t tmpfs -o nr_inodes=20,size=64m none {small}; export HOSTEL_ROOT={small}/root
        $HOSTEL load -q -i {archive} 2>&1 >/dev/null | grep -io 'no space left on device' || exit 80
        test -z \"$($HOSTEL images -q)\" || exit 81
        mount -t tmpfs -o remount,nr_inodes=32768 none {small}
        $HOSTEL load -q -i {archive} >/dev/null || exit 82
        many=$($HOSTEL pull -q oci:{layout}:latest) || exit 83
        $HOSTEL run --rm --network none $many /bin/busybox sh -c 'ls /many | wc -l' || exit 84
        $HOSTEL run -d --name box --network none busybox sleep 1000 >/dev/null || exit 85
        # Not an inode is left; what runs can be stopped, and room be made.
        i=0; while : > {small}/f$i; do i=$((i+1)); done 2>/dev/null
        $HOSTEL run --rm --network none busybox true 2>&1 | grep -io 'no space left on device' || exit 86
        pkill -9 -x hostel-keeper
        $HOSTEL ps -a --format '{{{{.Names}}}} {{{{.State}}}}' || exit 87
        $HOSTEL rm -f box || exit 88
        $HOSTEL image prune -a -f >/dev/null || exit 89
        rm {small}/f*
        $HOSTEL load -q -i {archive} >/dev/null && $HOSTEL run --rm --network none busybox echo runs
        $HOSTEL system check >/dev/null || exit 90",
        archive = archive.display(),
        layout = layout.display(),
    );
    let full = "No space left on device";
    unshared(&h, &script).ok().stdout(&format!("{full}\n33000\n{full}\nbox exited\nbox\nruns\n"));
}

#[test]
fn a_home_that_is_mounted_read_only_and_a_temporary_directory_without_execution() {
    let Some(h) = Hostel::new() else { return };
    if !may_unshare(&h) {
        return;
    }
    let home = h.scratch("home").display().to_string();
    let script = format!(
        "mount -t tmpfs -o noexec,nosuid,nodev none {home}; mkdir {home}/tmp; mount -t tmpfs -o remount,ro,noexec none {home}; export HOME={home}
        TMPDIR={home}/tmp $HOSTEL run --rm --network none busybox echo runs || exit 80
        mount -t tmpfs -o remount,rw,noexec none {home}
        TMPDIR={home}/tmp $HOSTEL run --rm --network none busybox echo runs || exit 81
        mount -t tmpfs -o remount,ro,noexec none {home}; unset HOSTEL_ROOT XDG_DATA_HOME XDG_CONFIG_HOME
        $HOSTEL run --rm host:/ true"
    );
    let done = unshared(&h, &script);
    done.code(125).stdout("runs\nruns\n").stderr_has(&home).stderr_has("HOSTEL_ROOT");
}

#[test]
fn records_from_a_clock_that_jumped() {
    let Some(h) = Hostel::new() else { return };
    let id = h.detached("--name box --network none busybox sh -c 'echo said; sleep 1000'");
    h.wait_for_log("box", "said");
    let place = |name: &str| h.root().join("containers").join(&id).join(name);
    // Far in the future, and before there were machines.
    for year in ["2199", "1970"] {
        for name in ["record.json", "state.json"] {
            let mut value: serde_json::Value =
                serde_json::from_slice(&fs::read(place(name)).unwrap()).unwrap();
            for field in ["created", "started"] {
                if value.get(field).is_some() {
                    value[field] = serde_json::json!(format!("{year}-01-02T03:04:05Z"));
                }
            }
            fs::write(place(name), value.to_string()).unwrap();
        }
        h.run("ps --format '{{.Names}} {{.State}}'").ok().stdout("box running\n");
        h.run("exec box echo entered").ok().stdout("entered\n");
        h.run("logs box").ok().stdout("said\n");
        h.run("inspect --format {{.Created}} box").ok().has(year);
        h.run("container prune -f --filter until=1h").ok();
        h.run("ps -q").ok().has(&id[..12]);
    }
    h.run("stop -t 0 box").ok();
    h.run("start box").ok();
    h.run("restart -t 0 box").ok();
    h.run("ps --format '{{.Names}} {{.State}}'").ok().stdout("box running\n");
}

#[test]
fn without_a_control_group_each_limit_is_told_and_discarded() {
    let Some(h) = Hostel::new() else { return };
    if !may_unshare(&h) {
        return;
    }
    let script = "mount -t tmpfs none /sys/fs/cgroup || exit 80
        $HOSTEL run --rm --network none -m 64m --pids-limit 10 --cpus 1 busybox echo runs";
    let done = unshared(&h, script);
    done.ok().stdout("runs\n");
    let told: Vec<_> = done.stderr.lines().filter(|line| line.contains("discarded")).collect();
    assert_eq!(told.len(), 3, "{}", done.stderr);
}
