//! A user without subordinate ids: the container has one id, which is the caller's.
//!
//! `scripts/test` runs these, beside [`smoke`](crate::smoke), as a user who has no range; for a user with
//! one there is nothing to test here.

use crate::harness::{Hostel, has_subordinate_ids};

#[test]
fn the_map_has_one_id() {
    if has_subordinate_ids() {
        return;
    }
    let Some(h) = Hostel::new() else { return };
    let map = h.run("run --rm busybox cat /proc/self/uid_map").ok().out();
    let uid = nix::unistd::getuid().to_string();
    assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", &uid, "1"]);
    h.run("run --rm busybox sh -c 'touch /f && stat -c %u:%g /f /etc/passwd'").ok().stdout("0:0\n0:0\n");
    h.run("run --rm busybox sh -c 'touch /f && chown 1000 /f'").code(1);
}

#[test]
fn another_user_is_the_one_id_too() {
    if has_subordinate_ids() {
        return;
    }
    let Some(h) = Hostel::new() else { return };
    h.run("run --rm -u 1234 busybox id -u").ok().stdout("1234\n");
    h.run("run --rm numericuser sh -c 'echo $(id -u):$(id -g)'").ok().stdout("1234:4321\n");
    h.run("run --rm -u app busybox true").fails(125, &["1000", "/etc/subuid"]);
}

#[test]
fn ordinary_work_on_each_write_side() {
    if has_subordinate_ids() {
        return;
    }
    let Some(h) = Hostel::debian() else { return };
    for write in ["pure", "auto"] {
        let script = "set -e; git init -q /r && cd /r && git config user.email a@b && git config user.name n \
                      && echo 1 > f && git add f && git commit -qm m && python3 -c 'print(6*7)' \
                      && echo 'int main(){return 0;}' > /m.c && gcc -o /m /m.c && /m \
                      && rm -rf /usr/share/doc && ls /var/www/html";
        let option = format!("write={write}");
        let done = h.args(&["run", "--rm", "--storage-opt", &option, "debian", "bash", "-c", script]);
        done.ok().has("42\n").has("index.html\n");
    }
}

#[test]
fn volumes_exec_and_a_server() {
    if has_subordinate_ids() {
        return;
    }
    let Some(h) = Hostel::new() else { return };
    h.run("run --rm -v data:/d busybox sh -c 'echo kept > /d/f'").ok();
    h.run("run --rm -v data:/d busybox cat /d/f").ok().stdout("kept\n");
    h.run("volume rm data").ok();
    h.detached("--name box --network none busybox sh -c 'httpd -f -p 80'");
    h.run("exec box sh -c 'echo in $(id -u)'").ok().stdout("in 0\n");
    h.run("rm -f box").ok();
}

#[test]
fn a_joined_network() {
    if has_subordinate_ids() {
        return;
    }
    let Some(h) = Hostel::new() else { return };
    h.detached("--name first busybox sleep 100");
    let theirs = h.run("exec first readlink /proc/self/ns/net").ok().out();
    h.run("run --rm --network container:first busybox readlink /proc/self/ns/net")
        .ok()
        .stdout(&format!("{theirs}\n"));
    h.run("run --rm -u 1234 --network container:first busybox true").fails(125, &["1234", "one id"]);
}

#[test]
fn a_command_that_cannot_change_ids_is_explained() {
    if has_subordinate_ids() {
        return;
    }
    let Some(h) = Hostel::new() else { return };
    let explained = |line: &str| {
        let done = h.run(line);
        let count = done.stderr.matches("one user id in this container").count();
        (done.exit_code() != 0, count)
    };
    assert_eq!(explained("run --rm busybox sh -c 'touch /f && chown 1000 /f'"), (true, 1));
    assert_eq!(explained("run --rm --storage-opt write=pure busybox chgrp 7 /etc/passwd"), (true, 1));
    h.detached("--name box --network none busybox sleep 100");
    assert_eq!(explained("exec box chown 1000 /etc/passwd"), (true, 1));
    h.run("rm -f box").ok();
    // A failure of another kind, and a refusal that did not matter, are none.
    assert_eq!(explained("run --rm busybox ls /nosuch"), (true, 0));
    assert_eq!(explained("run --rm busybox sh -c 'chown 1000 /etc/passwd; true'"), (false, 0));
}

#[test]
fn a_step_that_cannot_change_ids_says_why() {
    if has_subordinate_ids() {
        return;
    }
    let Some(h) = Hostel::new() else { return };
    let dir = h.scratch("c");
    let text = "FROM busybox\nCOPY --chown=7:8 Dockerfile /d\nRUN --network=none chown 5 /d\n";
    std::fs::write(dir.join("Dockerfile"), text).unwrap();
    h.run(&format!("build -t x {}", dir.display())).fails(1, &["one user id in here", "hostel doctor"]);
}
