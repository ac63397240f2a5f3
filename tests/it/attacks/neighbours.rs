//! Who stands beside a container: its own engine, other containers, the machine's processes.

use std::fs;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};

use super::{SYSCALLS, python};
use crate::harness::Hostel;

/// The engine's processes of a container, from its state.
fn engine_pids(h: &Hostel, id: &str) -> Vec<i64> {
    let state = fs::read_to_string(h.root().join("containers").join(id).join("state.json")).unwrap();
    let state: serde_json::Value = serde_json::from_str(&state).unwrap();
    ["keeper_pid", "server_pid"].iter().map(|name| state[name].as_i64().unwrap()).collect()
}

#[test]
fn keeper_and_server_show_nothing_even_to_their_user() {
    let Some(h) = Hostel::new() else { return };
    let id = h.detached("--name box busybox sleep 1000");
    for pid in engine_pids(&h, &id) {
        for name in ["exe", "cwd", "root", "fd", "environ", "maps", "mem"] {
            let path = format!("/proc/{pid}/{name}");
            let seen = fs::read_dir(&path)
                .map(drop)
                .or_else(|_| fs::read_link(&path).map(drop))
                .or_else(|_| fs::File::open(&path).map(drop));
            assert!(seen.is_err() || nix::unistd::getuid().is_root(), "{path} can be read");
        }
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line =
            |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
        if pid == engine_pids(&h, &id)[1] {
            assert_eq!(
                (line("NoNewPrivs:"), line("Seccomp:"), line("CapEff:")),
                ("1".into(), "2".into(), "0".repeat(16))
            );
        }
    }
}

#[test]
fn the_callers_descriptors_are_nobodys() {
    let Some(h) = Hostel::new() else { return };
    let lock = h.scratch("lock").join("lock");
    let script = format!(
        "exec 9>{0}; flock -n 9 || exit 1; exec 7</etc 200</; \"$HOSTEL\" run -d --name box busybox sleep 1000 >/dev/null && \
         \"$HOSTEL\" exec box ls /proc/self/fd && \"$HOSTEL\" run --rm busybox ls /proc/self/fd",
        lock.display()
    );
    // A listing has its own descriptor, and nothing else beyond stdio.
    h.program("bash", &["-c", &script]).run().ok().stdout("0\n1\n2\n3\n0\n1\n2\n3\n");
    h.program("flock", &["-n", &lock.to_string_lossy(), "echo", "free"]).run().ok().stdout("free\n");
}

#[test]
fn abstract_sockets_of_the_machine_are_out_of_reach() {
    let Some(h) = Hostel::debian() else { return };
    let name = format!("hostel-test-{}", std::process::id());
    let _listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let program = format!("{SYSCALLS}\ns = socket.socket(socket.AF_UNIX)\nprint(s.connect_ex('\\0{name}'))");
    python(&h, &[], &program).ok().stdout("111\n");
    assert_eq!(h.program("python3", &["-c", &program]).run().ok().stdout, "0\n");
}

#[test]
fn neighbours_are_not_seen_signalled_or_entered() {
    let Some(h) = Hostel::new() else { return };
    h.detached("--name one busybox sleep 1111");
    h.detached("--name two busybox sleep 2222");
    h.run("exec two sh -c 'cat /proc/[0-9]*/cmdline | tr \"\\0\" \" \"'").ok().lacks("1111");
    h.run("exec two sh -c 'kill -9 -1'");
    h.run("inspect -f {{.State.Running}} one").ok().stdout("true\n");
    h.run("exec one sh -c 'nsenter -t 1 -m true'").code(1);
    h.run("exec one sh -c 'for n in /proc/1/ns/*; do nsenter --net=$n true 2>/dev/null && echo entered $n; done; echo end'").ok().stdout("end\n");
}

/// Sends what is no request, ever more of it, and too many connections.
const GARBAGE: &str = "
import sys, socket, os
def talk(data):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    s.settimeout(5)
    s.connect(sys.argv[1])
    try: s.send(data)
    except OSError: pass
    return s
for data in (b'x', b'{}', b'{\"v\":99,\"message\":\"wait\"}', b'[' * 60000, b'\\xff' * 1000,
             b'{\"v\":1,\"message\":{\"exec\":{}}}', b'{\"v\":1,\"message\":{\"signal\":{\"signal\":100000}}}'):
    talk(data).close()
held = []
for i in range(300):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    s.setblocking(False)
    try: s.connect(sys.argv[1])
    except OSError: break
    held.append(s)
count = len(held)
for s in held[1:]: s.close()
s = held[0]
s.setblocking(True)
r, w = os.pipe()
try: socket.send_fds(s, [b'{\"v\":1,\"message\":\"wait\"}'], [r] * 200)
except OSError: pass
print(count > 10)
";

#[test]
fn a_control_socket_survives_garbage_and_crowds() {
    let Some(h) = Hostel::new() else { return };
    let id = h.detached("--name box busybox sleep 1000");
    let state = fs::read_to_string(h.root().join("containers").join(&id).join("state.json")).unwrap();
    let state: serde_json::Value = serde_json::from_str(&state).unwrap();
    let socket = state["socket"].as_str().unwrap();
    h.program("python3", &["-c", GARBAGE, socket]).run().ok().stdout("True\n");
    h.run("exec box echo still here").ok().stdout("still here\n");
    use std::os::unix::fs::PermissionsExt as _;
    let dir = std::path::Path::new(socket).parent().unwrap();
    assert_eq!(fs::metadata(dir).unwrap().permissions().mode() & 0o777, 0o700);
}

/// Starts a container that swaps things for ever, and waits until it does.
fn race(h: &Hostel, flags: &[&str], script: &str) {
    let line = ["run", "-d", "--network", "none", "--name", "racer"];
    h.args(&[&line[..], flags, &["busybox", "sh", "-c", script]].concat()).ok();
    h.wait_for_log("racer", "up");
}

#[test]
fn mount_points_swapped_for_links_while_starting() {
    let Some(h) = Hostel::new() else { return };
    let outside = h.scratch("outside");
    let script = format!(
        "cd /v; mkdir x y; echo up; while :; do for t in /proc /proc/self/fd /etc /dev {}; do \
         rm -rf x; ln -s $t x; rm -f x; mkdir x; ln -s x z; mv -T z x 2>/dev/null; rm -rf z; done; done",
        outside.display()
    );
    race(&h, &["-v", "shared:/v"], &script);
    let look = "grep -c ' /proc ' /proc/mounts; head -c 1 /proc/kcore 2>/dev/null | wc -c; test -d /proc/self/task && echo real";
    let mut started = 0;
    for _ in 0..20 {
        // CVE-2021-30465: whether one starts is the race's affair; where the mount lands is not.
        let done = h.args(&[
            "run",
            "--rm",
            "--network",
            "none",
            "-v",
            "shared:/v",
            "-v",
            "other:/v/x",
            "--tmpfs",
            "/v/y",
            "busybox",
            "sh",
            "-c",
            look,
        ]);
        if done.exit_code() == 0 {
            done.stdout("1\n0\nreal\n");
            started += 1;
        }
    }
    println!("{started} of 20 started beside the racer");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn changes_are_read_without_following_swapped_links() {
    let Some(h) = Hostel::new() else { return };
    let secret = h.scratch("secret");
    fs::write(secret.join("f"), "of the machine\n").unwrap();
    for write in ["write=hybrid", "write=pure"] {
        let script = format!(
            "mkdir /d; echo own > /d/f; echo up; while :; do mv /d /e; ln -s {} /d; rm /d; mv /e /d; done",
            secret.display()
        );
        race(&h, &["--storage-opt", write], &script);
        for round in 0..3 {
            h.run("diff racer");
            let done = h.run(&format!("commit --pause=false racer taken:{round}"));
            if done.exit_code() == 0 {
                h.run(&format!(
                    "run --rm --network none taken:{round} sh -c 'cat /d/f /e/f 2>/dev/null; true'"
                ))
                .ok()
                .lacks("machine");
            }
        }
        h.run("rm -f racer").ok();
    }
}
