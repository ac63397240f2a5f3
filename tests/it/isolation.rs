//! What a container can see and do: namespaces, devices, capabilities, hidden and read-only paths.

use std::fs;

use crate::harness::Hostel;

#[test]
fn every_namespace_is_its_own() {
    let Some(h) = Hostel::new() else { return };
    for name in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        let host = fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        h.run(&format!("run --rm busybox readlink /proc/1/ns/{name}")).ok().lacks(&host.to_string_lossy());
    }
}

#[test]
fn only_the_containers_processes_are_seen() {
    let Some(h) = Hostel::new() else { return };
    h.run("run --rm busybox sh -c 'ls -d /proc/[0-9]* | wc -l'").ok();
    h.run("run --rm busybox ps -o pid").ok().stdout("PID\n    1\n");
}

#[test]
fn the_devices_are_dockers() {
    let Some(h) = Hostel::new() else { return };
    let devices = "console core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero";
    let seen = h.run("run --rm -t busybox ls /dev").ok().out();
    let mut seen: Vec<_> = seen.split_whitespace().collect();
    seen.sort_unstable();
    assert_eq!(seen.join(" "), devices);
    h.run("run --rm busybox sh -c 'echo x > /dev/null && head -c 4 /dev/zero | wc -c && head -c 4 /dev/urandom | wc -c'")
        .ok()
        .stdout("4\n4\n");
    h.run("run --rm busybox sh -c 'echo x > /dev/full'").code(1).stderr_has("No space left");
    h.run("run --rm busybox sh -c 'mknod /dev/sda b 8 0 && cat /dev/sda'").code(1);
}

#[test]
fn the_standard_mounts_are_there() {
    let Some(h) = Hostel::new() else { return };
    let mounts = h.run("run --rm busybox cat /proc/mounts").ok().out();
    let table = [
        (" /proc proc ", "nosuid"),
        (" /sys sysfs ro", "noexec"),
        (" /dev/pts devpts ", "ptmxmode=666"),
        (" /dev/mqueue mqueue ", "nodev"),
        (" /dev/shm tmpfs ", "size=65536k"),
    ];
    for (mount, option) in table {
        let line = mounts
            .lines()
            .find(|line| line.contains(mount))
            .unwrap_or_else(|| panic!("no {mount}: {mounts}"));
        assert!(line.contains(option), "{option} is missing: {line}");
    }
}

#[test]
fn masked_and_read_only_paths() {
    let Some(h) = Hostel::new() else { return };
    for path in ["/proc/kcore", "/proc/keys", "/proc/timer_list"] {
        h.run(&format!("run --rm busybox sh -c '! test -e {path} || wc -c < {path}'")).ok().lacks("1");
    }
    h.run("run --rm busybox sh -c 'ls /sys/firmware | wc -l'").ok().stdout("0\n");
    h.run("run --rm busybox sh -c 'echo x > /proc/sys/kernel/domainname'")
        .code(1)
        .stderr_has("Read-only file system");
    // Not every kernel has all of them.
    let read_only = "for p in /proc/bus /proc/fs /proc/irq /proc/sysrq-trigger; do \
                     test ! -e $p || grep \" $p \" /proc/mounts | grep -q \" ro,\" || echo $p; done";
    h.args(&["run", "--rm", "busybox", "sh", "-c", read_only]).ok().stdout("");
    h.run("run --rm busybox sh -c 'mkdir /sys/fs/x'").code(1);
}

#[test]
fn capabilities_are_dockers_default() {
    let Some(h) = Hostel::new() else { return };
    // The 14 of moby's default list (daemon/pkg/oci/caps/defaults.go), as the kernel prints them.
    h.run("run --rm busybox grep -E 'Cap(Prm|Eff|Bnd|Inh|Amb)' /proc/self/status").ok().stdout(
        "CapInh:\t0000000000000000\nCapPrm:\t00000000a80425fb\nCapEff:\t00000000a80425fb\n\
         CapBnd:\t00000000a80425fb\nCapAmb:\t0000000000000000\n",
    );
    h.run("run --rm -u 1000 busybox grep CapEff /proc/self/status")
        .ok()
        .stdout("CapEff:\t0000000000000000\n");
    h.run("run --rm busybox sh -c '! mount -t tmpfs none /tmp'").ok().stderr_has("denied");
    h.run("run --rm busybox hostname other").code(1);
}

#[test]
fn a_seccomp_filter_is_on_and_new_privileges_are_allowed() {
    let Some(h) = Hostel::new() else { return };
    h.run("run --rm busybox grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status")
        .ok()
        .stdout("NoNewPrivs:\t0\nSeccomp:\t2\n");
    h.run("run --rm --security-opt no-new-privileges busybox grep NoNewPrivs /proc/self/status")
        .ok()
        .stdout("NoNewPrivs:\t1\n");
    h.run("run --rm busybox unshare -r true").code(1);
}

#[test]
fn namespaced_sysctls_are_set() {
    let Some(h) = Hostel::new() else { return };
    h.run("run --rm busybox cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/ping_group_range")
        .ok()
        .has("0\n0\t");
}

#[test]
fn a_network_of_nothing_has_only_loopback() {
    let Some(h) = Hostel::new() else { return };
    h.run("run --rm --network none busybox sh -c 'ls /sys/class/net; ip route'").ok().stdout("lo\n");
    h.run("run --rm --network none busybox sh -c 'ping -c1 127.0.0.1 > /dev/null && echo up'")
        .ok()
        .stdout("up\n");
}

#[test]
fn the_hosts_network_can_be_used() {
    let Some(h) = Hostel::new() else { return };
    let host = fs::read_link("/proc/self/ns/net").unwrap();
    h.run("run --rm --network host busybox readlink /proc/self/ns/net").ok().has(&host.to_string_lossy());
    h.run("run --rm --network host busybox sh -c 'grep \" /sys \" /proc/mounts | grep -c \" ro,\"'")
        .ok()
        .stdout("1\n");
}

#[test]
fn the_engine_itself_cannot_be_written_from_inside() {
    let Some(h) = Hostel::new() else { return };
    let before = fs::metadata(crate::harness::binary()).unwrap().modified().unwrap();
    // CVE-2019-5736: whoever enters the container is /proc/PID/exe there for a moment.
    h.detached("--name target busybox sh -c 'while :; do for p in /proc/[0-9]*; do echo x >> $p/exe; done; done 2>/dev/null'");
    for _ in 0..10 {
        h.run("exec target true").ok();
    }
    assert_eq!(fs::metadata(crate::harness::binary()).unwrap().modified().unwrap(), before);
    h.run("version").ok();
}

#[test]
fn a_range_of_ids_is_mapped() {
    let Some(h) = Hostel::new() else { return };
    if !crate::harness::has_subordinate_ids() {
        return crate::harness::skip("this user has no subordinate ids");
    }
    let map = h.run("run --rm busybox cat /proc/self/uid_map").ok().out();
    assert!(map.lines().count() == 2, "root is the caller, the rest is the subordinate range: {map}");
    h.run("run --rm busybox sh -c 'touch /f && chown 1000:1000 /f && stat -c %u:%g /f'")
        .ok()
        .stdout("1000:1000\n");
}
