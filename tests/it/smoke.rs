//! The start of everything: what must work for any user on any machine, subordinate ids or not.
//!
//! `scripts/test` runs these for a user without subordinate ids too, so nothing here needs a second id.

use crate::harness::Hostel;

#[test]
fn a_command_runs_as_root_and_pid_1() {
    let Some(h) = Hostel::new() else { return };
    h.run("run --rm busybox sh -c 'echo $$ $(id -u) $(id -g)'").ok().stdout("1 0 0\n").stderr("");
}

#[test]
fn the_exit_code_is_the_commands() {
    let Some(h) = Hostel::new() else { return };
    h.run("run --rm busybox sh -c 'exit 42'").code(42);
}

#[test]
fn what_is_written_is_gone_afterwards() {
    let Some(h) = Hostel::new() else { return };
    h.run("run --rm busybox sh -c 'echo x > /etc/new && rm /etc/passwd && cat /etc/new'").ok().stdout("x\n");
    h.run("run --rm busybox sh -c 'ls /etc/new /etc/passwd'").code(1).stdout("/etc/passwd\n");
}

#[test]
fn the_embedded_default_needs_no_image() {
    let h = Hostel::empty();
    h.run("run --rm host:/ sh -c 'echo $$ $(id -u)'").ok().stdout("1 0\n");
}

#[test]
fn a_container_in_the_background_can_be_entered_and_stopped() {
    let Some(h) = Hostel::new() else { return };
    h.detached("--name bg busybox sh -c 'trap exit TERM; echo up; while :; do sleep 0.05; done'");
    h.wait_for_log("bg", "up");
    h.run("exec bg sh -c 'echo $(id -u)'").ok().stdout("0\n");
    h.run("stop bg").ok().stdout("bg\n");
    h.run("rm bg").ok().stdout("bg\n");
}

#[test]
fn a_bind_mount_writes_files_of_the_caller() {
    let Some(h) = Hostel::new() else { return };
    let dir = h.scratch("bind");
    h.run(&format!("run --rm -v {}:/b busybox sh -c 'echo hi > /b/f'", dir.display())).ok();
    assert_eq!(std::fs::read_to_string(dir.join("f")).unwrap(), "hi\n");
    let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(dir.join("f")).unwrap());
    assert_eq!(owner, nix::unistd::getuid().as_raw());
}

#[test]
fn the_default_network_has_an_address_and_a_name_server() {
    let Some(h) = Hostel::new() else { return };
    h.run("run --rm busybox sh -c 'ip -4 addr; ip route; cat /etc/resolv.conf'")
        .ok()
        .has("inet 127.0.0.1/8")
        .has("default via ")
        .has("nameserver ");
}
