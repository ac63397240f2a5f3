//! What a process can try inside.

use std::fs;

use super::{SYSCALLS, python};
use crate::harness::{Hostel, eventually};

/// Calls that reach beyond a container, with the errno of each: seccomp's, with the meaning of moby's profile.
const REFUSED: &str = "
table = [('mount', 165, 1), ('umount2', 166, 1), ('unshare', 272, 1, 0x10000000), ('setns', 308, 1, 3, 0),
  ('pivot_root', 155, 1), ('fsopen', 430, 1), ('open_tree', 428, 1), ('move_mount', 429, 1), ('mount_setattr', 442, 1),
  ('keyctl', 250, 1, 0, -3, 0), ('add_key', 248, 1), ('request_key', 249, 1), ('bpf', 321, 1), ('userfaultfd', 323, 1),
  ('perf_event_open', 298, 1), ('io_uring_setup', 425, 1), ('io_uring_enter', 426, 1), ('io_uring_register', 427, 1),
  ('open_by_handle_at', 304, 1), ('kexec_load', 246, 1), ('kexec_file_load', 320, 1), ('init_module', 175, 1),
  ('finit_module', 313, 1), ('delete_module', 176, 1), ('reboot', 169, 1), ('swapon', 167, 1), ('acct', 163, 1),
  ('settimeofday', 164, 1), ('clock_settime', 227, 1), ('sethostname', 170, 1), ('iopl', 172, 1), ('ioperm', 173, 1),
  ('quotactl', 179, 1), ('syslog', 103, 1), ('vhangup', 153, 1), ('personality', 135, 1, 0x40000),
  ('clone with a namespace', 56, 1, 0x10000011), ('clone3', 435, 38), ('x32 getpid', 0x40000000 + 39, 38)]
for name, number, errno, *args in table:
    result = sc(number, *(args + [0] * (5 - len(args))))
    if result != -errno: print(name, result)
for family in (38, 40, 38 + (1 << 32), 40 + (1 << 32)):
    result = sc(41, family, 1, 0)
    if result != -1: print('socket', family, result)
print('end')";

#[test]
fn calls_that_reach_beyond_are_refused() {
    let Some(h) = Hostel::debian() else { return };
    if cfg!(target_arch = "x86_64") {
        python(&h, &[], &format!("{SYSCALLS}{REFUSED}")).ok().stdout("end\n");
    }
}

#[test]
fn the_kernels_settings_cannot_be_written() {
    let Some(h) = Hostel::new() else { return };
    let before = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let script = "for f in /proc/sys/kernel/core_pattern /proc/sys/kernel/modprobe /proc/sys/vm/swappiness /proc/sysrq-trigger \
        /proc/sys/net/ipv4/ip_forward /proc/self/attr/exec /proc/1/attr/current /proc/1/oom_score_adj /sys/kernel/uevent_helper \
        /sys/power/state /proc/irq/default_smp_affinity /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/release_agent /proc/bus/pci/devices; do \
        case $f in */oom_score_adj) v=-1000;; *) v=1;; esac; (echo $v > $f) 2>/dev/null && echo wrote $f; done; \
        mkdir /sys/fs/cgroup/x 2>/dev/null && echo made a group; echo end";
    h.args(&["run", "--rm", "busybox", "sh", "-c", script]).ok().stdout("end\n");
    assert_eq!(fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap(), before);
}

#[test]
fn masked_paths_are_masked_by_every_route() {
    let Some(h) = Hostel::new() else { return };
    let script = "cd /proc; for r in /proc /proc/self/root/proc /proc/1/root/proc /proc/thread-self/root/proc \
        /proc/self/cwd /proc/self/task/../.. /dev/fd/../../../proc /proc/net/../../../proc; do \
        for f in kcore keys timer_list sched_debug latency_stats interrupts; do \
        n=$(head -c 64 $r/$f 2>/dev/null | wc -c); test $n = 0 || echo $r/$f has $n; done; \
        for d in acpi scsi asound; do n=$(ls $r/$d 2>/dev/null | wc -l); test $n = 0 || echo $r/$d; done; done; \
        for d in /sys/firmware /sys/./firmware /proc/1/root/sys/firmware /sys/devices/virtual/powercap; do \
        n=$(ls $d 2>/dev/null | wc -l); test $n = 0 || echo $d; done; \
        for p in $(cut -d' ' -f2 /proc/mounts); do umount $p 2>/dev/null && echo took $p away; umount -l $p 2>/dev/null && echo lazily $p; done; echo end";
    h.args(&["run", "--rm", "busybox", "sh", "-c", script]).ok().stdout("end\n");
    h.args(&["exec", &h.detached("--network none busybox sleep 1000"), "sh", "-c", script])
        .ok()
        .stdout("end\n");
}

/// All that one process may learn of another by /proc, or do to it.
const PRY: &str = "
import sys
hits = []
def pry(pid):
    for name in ('exe', 'cwd', 'root', 'fd', 'environ', 'maps', 'mem', 'ns/user', 'ns/mnt', 'io', 'stack'):
        path = '/proc/%s/%s' % (pid, name)
        try:
            if name in ('exe', 'cwd', 'root') or name.startswith('ns/'): hits.append((pid, name, os.readlink(path)))
            elif name == 'fd': hits.append((pid, name, str([os.readlink(path + '/' + f) for f in os.listdir(path)])))
            else: hits.append((pid, name, str(open(path, 'rb').read(64))))
        except OSError: pass
    if sc(101, 16, int(pid), 0, 0) == 0: hits.append((pid, 'ptrace', ''))
";

#[test]
fn pid_one_of_the_engines_init_shows_nothing() {
    let Some(h) = Hostel::debian() else { return };
    for more in [&["--init"][..], &["--init", "--cap-add", "SYS_PTRACE"], &["--init", "--privileged"]] {
        let program = format!("{SYSCALLS}{PRY}\npry('1')\nprint(hits)");
        python(&h, more, &program).ok().stdout("[]\n");
    }
}

#[test]
fn whoever_enters_shows_nothing_of_the_machine() {
    let Some(h) = Hostel::debian() else { return };
    let before = fs::metadata(crate::harness::binary()).unwrap().modified().unwrap();
    let engine = crate::harness::binary().to_string_lossy().into_owned();
    // Whatever of an entering process can be seen is printed; with CAP_SYS_PTRACE, too.
    let program = format!(
        "{SYSCALLS}{PRY}
print('up', flush=True)
me, seen = str(os.getpid()), set()
while True:
    for pid in os.listdir('/proc'):
        if pid.isdigit() and pid != me:
            del hits[:]
            try:
                for name in ('exe', 'cwd', 'root'):
                    seen.add((name, os.readlink('/proc/%s/%s' % (pid, name))))
                for f in os.listdir('/proc/%s/fd' % pid): seen.add(('fd', os.readlink('/proc/%s/fd/%s' % (pid, f)).split(':')[0]))
                open('/proc/%s/exe' % pid, 'wb').write(b'x')
                print('WROTE', flush=True)
            except OSError: pass
    open('/seen', 'w').write(repr(sorted(seen)))
"
    );
    h.args(&[
        "run",
        "-d",
        "--network",
        "none",
        "--cap-add",
        "SYS_PTRACE",
        "--name",
        "spy",
        "debian",
        "python3",
        "-c",
        &program,
    ])
    .ok();
    h.wait_for_log("spy", "up");
    for _ in 0..15 {
        h.run("exec spy true").ok();
        h.run("exec -w /tmp spy ls /usr").ok();
    }
    h.run("logs spy").lacks("WROTE");
    eventually("the spy has written down what it saw", || h.run("exec spy test -s /seen").exit_code() == 0);
    let seen = h.run("exec spy cat /seen").ok().out();
    for secret in [engine.as_str(), "/containers/", "memfd", "hostel", "/home/"] {
        assert!(!seen.contains(secret), "{secret} was seen: {seen}");
    }
    assert_eq!(fs::metadata(crate::harness::binary()).unwrap().modified().unwrap(), before);
}

#[test]
fn no_capability_is_inheritable() {
    let Some(h) = Hostel::new() else { return };
    h.detached("--name box busybox sleep 1000");
    for line in [
        "run --rm busybox",
        "run --rm -u 1000 busybox",
        "exec box",
        "exec -u 1000 box",
        "run --rm --init busybox",
    ] {
        if line.contains("-u") && !crate::harness::has_subordinate_ids() {
            continue;
        }
        // CVE-2022-24769.
        h.run(&format!("{line} grep -E Cap(Inh|Amb) /proc/self/status"))
            .ok()
            .stdout("CapInh:\t0000000000000000\nCapAmb:\t0000000000000000\n");
    }
}

#[test]
fn the_users_session_keyring_stays_outside() {
    let Some(h) = Hostel::debian() else { return };
    let program = format!("{SYSCALLS}\nprint(sc(250, 0, -3, 0))");
    let outside = h.program("python3", &["-c", &program]).run().out();
    for more in [&["--privileged"][..], &["--security-opt", "seccomp=unconfined"]] {
        let inside = python(&h, more, &program).ok().out();
        assert!(inside.parse::<i64>().unwrap() > 0, "{inside}");
        assert_ne!(inside, outside);
    }
    h.detached("--name box --privileged debian sleep 1000");
    let entered = h.args(&["exec", "--privileged", "box", "python3", "-c", &program]).ok().out();
    assert_ne!(entered, outside);
}

#[test]
fn landlock_forbids_mounts_that_seccomp_would_not() {
    if fs::read_to_string("/sys/kernel/security/lsm").is_ok_and(|list| !list.contains("landlock")) {
        return drop(crate::harness::skip_for_this_kernel("no Landlock"));
    }
    let Some(h) = Hostel::debian() else { return };
    let profile = h.scratch("profile").join("all.json");
    fs::write(&profile, r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#).unwrap();
    let profile = format!("seccomp={}", profile.display());
    // Root of a user namespace of its own may mount, were it not for the fence.
    let program = format!(
        "{SYSCALLS}
print(sc(272, 0x10020000))
print(sc(165, ctypes.c_char_p(b'x'), ctypes.c_char_p(b'/tmp'), ctypes.c_char_p(b'tmpfs'), 0, 0))"
    );
    python(&h, &["--security-opt", &profile], &program).ok().stdout("0\n-1\n");
    python(&h, &["--security-opt", "seccomp=unconfined"], &program).ok().stdout("0\n0\n");
    // What the fence must not change: files move, are linked, and `exec` looks into what runs.
    let script =
        "mkdir /a /b; touch /a/f; mv /a/f /b/g && ln /b/g /a/h && mkdir /a/d && mv /a/d /b/d && echo moved";
    h.args(&["run", "--rm", "busybox", "sh", "-c", script]).ok().stdout("moved\n");
    h.detached("--name box busybox sleep 1000");
    h.run("exec box readlink /proc/1/exe").ok().stdout("/bin/busybox\n");
    h.run("exec box sh -c 'tr \"\\0\" \"\\n\" < /proc/1/environ | grep -c PATH'").ok().stdout("1\n");
}

#[test]
fn an_engine_inside_is_refused_without_being_asked_for() {
    let Some(h) = Hostel::new() else { return };
    h.run("run --rm busybox unshare -Urm true").code(1).stderr_has("Operation not permitted");
    h.run(
        "run --rm --security-opt nested busybox unshare -Urm sh -c 'mount -t tmpfs x /tmp && echo mounted'",
    )
    .ok()
    .stdout("mounted\n");
}
