//! What a machine may lack or refuse, and that the message says what, on what, and what to do.
//!
//! The lack is made in a user namespace of the test's own, so nothing of the machine changes.

use std::path::Path;

use crate::harness::{Cmd, Hostel, skip};

/// A shell in a fresh user and mount namespace, as its root; `None` where that is not allowed.
fn in_namespace(h: &Hostel, script: &str) -> Option<Cmd> {
    let allowed = h.program("unshare", &["-Urm", "true"]).run().exit_code() == 0;
    if !allowed {
        skip("unshare -Urm is not allowed here");
        return None;
    }
    let script = format!("set -e\n{script}");
    Some(h.program("unshare", &["-Urm", "sh", "-c", &script]))
}

/// Replaces /dev by a copy that has everything the engine needs but `without`.
fn dev_without(h: &Hostel, without: &str) -> String {
    let dev = h.scratch("dev").display().to_string();
    let devices = ["null", "zero", "full", "random", "urandom", "tty", "fuse", "net/tun"];
    let mut script = format!("mkdir -p {dev}/net {dev}/pts {dev}/shm\n");
    for device in
        devices.into_iter().filter(|device| *device != without && Path::new("/dev").join(device).exists())
    {
        script.push_str(&format!("touch {dev}/{device}; mount --bind /dev/{device} {dev}/{device}\n"));
    }
    script.push_str(&format!("mount --rbind {dev} /dev\n"));
    script
}

#[test]
fn no_user_namespaces() {
    let Some(h) = Hostel::new() else { return };
    let script = "echo 0 > /proc/sys/user/max_user_namespaces; exec \"$HOSTEL\" run --rm busybox true";
    let Some(cmd) = in_namespace(&h, script) else { return };
    cmd.run().fails(125, &["user namespace", "user.max_user_namespaces"]);
}

#[test]
fn no_fuse_device() {
    let Some(h) = Hostel::new() else { return };
    // An image does without; what is not one cannot.
    let script = format!("{}exec \"$HOSTEL\" run --rm --network none host:/ true", dev_without(&h, "fuse"));
    let Some(cmd) = in_namespace(&h, &script) else { return };
    cmd.run().fails(125, &["/dev/fuse"]);
}

#[test]
fn without_the_tun_device_a_veth_pair_does_the_same() {
    let Some(h) = Hostel::new() else { return };
    let server = "mkdir /www; echo hello > /www/index.html; exec httpd -f -p 80 -h /www";
    let script = format!(
        "{dev}\"$HOSTEL\" run --rm busybox sh -c 'ls /sys/class/net; test -n \"$(nslookup host.docker.internal)\" && echo named'
        \"$HOSTEL\" run -d --name web -p 127.0.0.1::80 busybox sh -c '{server}' > /dev/null
        address=$(\"$HOSTEL\" port web 80)
        for i in $(seq 100); do curl -sf http://$address/ && break; sleep 0.1; done
        \"$HOSTEL\" rm -f web",
        dev = dev_without(&h, "net/tun")
    );
    let Some(cmd) = in_namespace(&h, &script) else { return };
    cmd.run().ok().stdout("eth0\nlo\nnamed\nhello\nweb\n");
}

#[test]
fn neither_tun_device_nor_veth_pair() {
    let Some(h) = Hostel::new() else { return };
    // The container's network namespace is the one that may be made, the far end's a second one.
    let script = format!(
        "{}echo 1 > /proc/sys/user/max_net_namespaces
        code=0; \"$HOSTEL\" run --rm busybox true || code=$?
        # The kernel lets a namespace go some time after its last process.
        echo 9 > /proc/sys/user/max_net_namespaces
        \"$HOSTEL\" run --rm --network none busybox echo without; exit $code",
        dev_without(&h, "net/tun")
    );
    let Some(cmd) = in_namespace(&h, &script) else { return };
    let done = cmd.run();
    done.code(125).stdout("without\n").stderr_has("/dev/net/tun").stderr_has("veth pair");
    done.stderr_has("--network none");
}

#[test]
fn a_full_disk() {
    let Some(archive) = crate::fixtures::busybox_archive() else { return skip("no busybox-static") };
    let h = Hostel::empty();
    let small = h.scratch("small").display().to_string();
    let script = format!(
        "mount -t tmpfs -o size=256k none {small}; export HOSTEL_ROOT={small}/root; exec \"$HOSTEL\" load -i {}",
        archive.display()
    );
    let Some(cmd) = in_namespace(&h, &script) else { return };
    cmd.run().fails(1, &["No space left on device", &small]);
}

#[test]
fn a_store_that_cannot_be_written() {
    let h = Hostel::empty();
    h.run("--root /proc/nowhere volume create v").fails(1, &["/proc/nowhere"]);
}

#[test]
fn a_missing_bind_source() {
    let Some(h) = Hostel::new() else { return };
    h.run("run --rm --mount type=bind,source=/no/such,target=/m busybox true").fails(125, &["/no/such"]);
    h.run("run --rm -v relative/path:/m busybox true").fails(125, &["relative/path"]);
    h.run("run --rm -v /etc:relative busybox true").fails(125, &["relative"]);
    h.run("run --rm --mount type=nosuch,target=/m busybox true").fails(125, &["nosuch"]);
}

#[test]
fn commands_that_cannot_run() {
    let Some(h) = Hostel::new() else { return };
    h.run("run --rm busybox nosuchcommand").fails(127, &["nosuchcommand", "not found"]);
    h.run("run --rm busybox /no/such/path").fails(127, &["/no/such/path", "no such file"]);
    h.run("run --rm busybox /etc/not-executable").fails(126, &["/etc/not-executable", "permission denied"]);
    h.run("ps -aq").ok().stdout("");
    h.run("create --name bad busybox nosuchcommand").ok();
    h.run("start bad").code(127);
    h.run("ps -a --format '{{.Status}}'").ok().stdout("Created\n");
}

#[test]
fn every_hint_is_one_line_after_the_error() {
    let h = Hostel::empty();
    let done = h.run("run --rm nosuch true");
    let lines: Vec<_> = done.stderr.lines().collect();
    assert_eq!(lines.len(), 3, "{}", done.stderr);
    assert_eq!(lines[0], "Unable to find image 'nosuch:latest' locally");
    assert!(lines[1].starts_with("Error: ") && lines[2].starts_with("Hint: "), "{}", done.stderr);
}
