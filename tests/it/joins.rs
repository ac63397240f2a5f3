//! Namespaces of other containers, and containers in which the user keeps their own ids.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use crate::harness::{Hostel, has_subordinate_ids};

#[test]
fn processes_ipc_and_host_name_are_shared() {
    let Some(h) = Hostel::new() else { return };
    h.detached(
        "--name first --network none --ipc shareable busybox sh -c 'echo there > /dev/shm/f; sleep 1000'",
    );
    h.run("exec first sh -c 'until test -s /dev/shm/f; do sleep 0.01; done'").ok();
    for (flag, namespace) in [("pid", "pid"), ("ipc", "ipc"), ("uts", "uts"), ("userns", "user")] {
        let own = h.run(&format!("exec first readlink /proc/self/ns/{namespace}")).ok().out();
        let join = format!("run --rm --{flag} container:first busybox readlink /proc/self/ns/{namespace}");
        h.run(&join).ok().stdout(&format!("{own}\n"));
        // What was not asked for is its own.
        let other = if namespace == "uts" { "ipc" } else { "uts" };
        let others = h.run(&format!("exec first readlink /proc/self/ns/{other}")).ok().out();
        let join = format!("run --rm --{flag} container:first busybox readlink /proc/self/ns/{other}");
        h.run(&join).ok().lacks(others.trim());
    }
    let id = h.run("inspect -f {{.Id}} first").ok().out().trim().to_owned();
    let all = "--pid container:first --ipc container:first --uts container:first --network container:first";
    h.run(&format!("run --rm {all} busybox cat /dev/shm/f")).ok().stdout("there\n");
    h.run(&format!("run --rm {all} busybox hostname")).ok().stdout(&format!("{}\n", &id[..12]));
    h.run(&format!("run --rm {all} busybox sh -c 'ps | grep -c \"[s]leep 1000\"'")).ok().stdout("1\n");
    h.run(&format!("create --name joined {all} busybox true")).ok();
    let modes =
        "{{.HostConfig.PidMode}} {{.HostConfig.IpcMode}} {{.HostConfig.UTSMode}} {{.HostConfig.NetworkMode}}";
    h.args(&["inspect", "-f", modes, "joined"])
        .ok()
        .stdout(&format!("{}\n", vec![format!("container:{id}"); 4].join(" ")));
    h.run("stop -t 0 first").ok();
    h.run("start joined").fails(125, &[&format!("cannot join network of a non running container: {id}")]);
    h.run("run --rm --pid container:joined busybox true")
        .fails(125, &["cannot join PID of a non running container"]);
    h.run("rm joined first").ok();
}

#[test]
fn what_shares_process_ids_is_ended_whole() {
    let Some(h) = Hostel::new() else { return };
    // Its pid 1 reaps, so that what is gone is gone.
    h.detached("--name first --init --network none busybox sleep 1000");
    h.detached("--name second --pid container:first --network none busybox sh -c 'sleep 2001 & sleep 2002 & sleep 2003'");
    h.run("exec second sh -c 'until test $(ps | grep -c \"[s]leep 200[123]$\") = 3; do sleep 0.01; done'")
        .ok();
    h.run("rm -f second").ok();
    h.run("exec first sh -c 'while ps | grep \"[s]leep 200[123]$\"; do sleep 0.01; done'").ok();
    // With the first one everything in its pid namespace ends.
    h.detached("--name third --pid container:first --network none busybox sleep 1000");
    h.run("kill first").ok();
    h.run("wait third").ok().stdout("137\n");
    h.run("rm first third").ok();
}

#[test]
fn what_cannot_be_joined_is_named() {
    let Some(h) = Hostel::new() else { return };
    h.detached("--name first --network none busybox sleep 1000");
    h.detached("--name second --network none --ipc none busybox sleep 1000");
    for (flags, message) in [
        ("--ipc container:first", "non-shareable IPC (hint: use IpcMode:shareable for the donor container)"),
        ("--ipc container:second", "non-shareable IPC"),
        ("--pid container:nobody", "No such container: nobody"),
        ("--pid container:", "--pid: invalid PID mode"),
        ("--uts container:first --hostname x", "conflicting options: hostname and the UTS mode"),
        (
            "--network none --pid container:first --uts container:second",
            "cannot join the namespaces of first and of second at once: each is in a user namespace of its own",
        ),
        ("--cgroupns container:first", "--cgroupns: invalid CGROUP mode"),
        ("--pid ns:/proc/1/ns/pid", "a namespace that belongs to no container"),
        ("--userns keep-id:uid=x", "keep-id takes uid=UID and gid=GID"),
        ("--group-add keep-groups --group-add 5", "not allowed with any other --group-add options"),
    ] {
        h.run(&format!("run --rm {flags} busybox true")).fails(125, &[message]);
    }
    // Of one user namespace, they can be joined together.
    h.detached("--name third --userns container:first busybox sleep 1000");
    h.run("run --rm --pid container:first --uts container:third busybox true").ok();
    h.run("rm -f first second third").ok();
}

/// Its process hides itself, and is entered all the same.
#[test]
fn a_container_behind_the_engines_init_is_entered() {
    let Some(h) = Hostel::new() else { return };
    for user in ["0", "1234"] {
        if user != "0" && !has_subordinate_ids() {
            continue;
        }
        h.detached(&format!("--name first --init -u {user} --network none busybox sleep 1000"));
        h.run("exec first id -u").ok().stdout(&format!("{user}\n"));
        h.run("exec first readlink /proc/1/exe").code(1);
        let title = h.run("exec first cat /proc/1/cmdline").ok().out();
        assert_eq!(title.trim_end_matches('\0'), "hostel-init -- sleep 1000");
        h.run("cp first:/etc/hostname -").ok();
        h.run("commit first held").ok();
        h.run("rmi held").ok();
        h.run("run --rm --network container:first --pid container:first busybox ps -o comm")
            .ok()
            .has("sleep");
        h.run("rm -f first").ok();
    }
}

#[test]
fn the_users_ids_are_kept() {
    let Some(h) = Hostel::new() else { return };
    let dir = h.scratch("kept");
    let meta = fs::metadata(&dir).unwrap();
    let (uid, gid) = (meta.uid(), meta.gid());
    let run = |flags: &str, script: &str| {
        h.args(
            &[
                &["run", "--rm", "--network", "none"],
                &flags.split(' ').collect::<Vec<_>>()[..],
                &["busybox", "sh", "-c", script],
            ]
            .concat(),
        )
    };
    run("--userns keep-id", "echo $(id -u):$(id -g)").ok().stdout(&format!("{uid}:{gid}\n"));
    let volume = format!("{}:/v", dir.display());
    run(&format!("--userns keep-id -v {volume}"), "echo x > /v/f; stat -c %u:%g /v/f")
        .ok()
        .stdout(&format!("{uid}:{gid}\n"));
    let made = fs::metadata(dir.join("f")).unwrap();
    assert_eq!((made.uid(), made.gid()), (uid, gid));
    for mode in ["auto", "pure"] {
        let flags = format!("--storage-opt write={mode} --userns keep-id:uid=4321,gid=8765 -v {volume}");
        if !has_subordinate_ids() {
            // There is no other id: everything is the user's.
            run(&flags, "echo $(id -u):$(id -g) $(stat -c %u:%g /v/f /bin/busybox)")
                .ok()
                .stdout("4321:8765 4321:8765 4321:8765\n");
            continue;
        }
        run(&flags, "echo $(id -u):$(id -g) $(stat -c %u:%g /v/f /bin/busybox)")
            .ok()
            .stdout("4321:8765 4321:8765 0:0\n");
        run(&format!("{flags} -u 0"), "touch /new && stat -c %u:%g / /new /proc/1 /etc/passwd")
            .ok()
            .stdout("0:0\n0:0\n0:0\n0:0\n");
    }
    // A name and a home for it.
    let user = h.run("run --rm --network none --userns keep-id:uid=4321,gid=8765 -w /tmp busybox sh -c 'id -un; echo $HOME; ls -l /etc/passwd'");
    user.ok();
    let text = user.out();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[1], "/tmp", "{text}");
    assert!(lines[2].starts_with("-rw-r--r--"), "{text}");
    h.run("create --name kept --network none --userns keep-id:uid=4321,gid=8765 busybox sh -c 'id -u; touch /tmp/t; exec sleep 1000'").ok();
    h.run("inspect -f {{.HostConfig.UsernsMode}} kept").ok().stdout("keep-id:uid=4321,gid=8765\n");
    fs::write(dir.join("in"), "x\n").unwrap();
    h.run(&format!("cp {}/in kept:/tmp/in", dir.display())).ok();
    h.run("start kept").ok();
    h.run("exec kept id -u").ok().stdout("4321\n");
    h.run("exec kept sh -c 'until test -e /tmp/t; do sleep 0.01; done; stat -c %u /tmp/t'")
        .ok()
        .stdout("4321\n");
    h.run("diff kept").ok().stdout("C /tmp\nA /tmp/in\nA /tmp/t\n");
    h.run("rm -f kept").ok();
}

#[test]
fn the_callers_groups_can_be_kept() {
    let Some(h) = Hostel::new() else { return };
    let own = nix::unistd::getgroups().unwrap().len();
    let groups = |flags: &str| {
        let seen = h
            .run(&format!("run --rm --network none {flags} busybox sed -n 's/^Groups://p' /proc/self/status"))
            .ok()
            .out();
        seen.split_whitespace().count()
    };
    assert_eq!(groups("--group-add keep-groups"), own);
}
