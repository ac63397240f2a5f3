//! `hostel mount`, `unmount` and `unshare`: images and containers as directories.

use std::fs;

use crate::harness::{Done, Hostel, has_subordinate_ids, skip};

/// A script of the machine's shell in `hostel unshare`, with `$HOSTEL` and `$M`, an empty directory.
fn unshared(h: &Hostel, script: &str) -> Done {
    let m = h.scratch("m");
    let script = format!("M={} exec \"$HOSTEL\" unshare sh -c '{script}'", m.display());
    h.program("sh", &["-c", &script]).run()
}

#[test]
fn a_command_sees_an_image() {
    let Some(h) = Hostel::new() else { return };
    let m = h.scratch("m");
    let look = "readlink \"$1/bin/sh\" || ls \"$1/bin/sh\"; echo x > \"$1/x\"; exit 7";
    let m = m.to_str().unwrap();
    let done = h.args(&["mount", "busybox", m, "--", "sh", "-c", look, "sh", m]);
    done.code(7).stderr_has("Read-only file system");
    assert!(done.stdout.contains("sh") || done.stdout.contains("busybox"), "{}", done.stdout);
    // Nobody else has seen it, and nothing of it is left.
    assert_eq!(fs::read_dir(m).unwrap().count(), 0);
    h.args(&["mount", "busybox", "--", "sh", "-c", "test -d \"$HOSTEL_MOUNT/bin\""]).ok();
    h.run("mount").stdout("");
}

#[test]
fn the_server_is_no_child_of_the_command() {
    let Some(h) = Hostel::new() else { return };
    let children = "cat /proc/$$/task/$$/children; echo end";
    h.args(&["mount", "busybox", "--", "sh", "-c", children]).ok().has("end");
    let done = h.args(&["mount", "busybox", "--", "sh", "-c", children]);
    // What it lists is the `cat` that lists it.
    assert!(done.stdout.split_whitespace().count() <= 2, "{}", done.stdout);
}

#[test]
fn in_a_namespace_mounts_stay_until_they_are_taken_away() {
    let Some(h) = Hostel::new() else { return };
    let done = unshared(
        &h,
        r#"set -e
        exec 3>&1
        made=$("$HOSTEL" mount busybox)
        test -e "$made/bin/busybox"
        test "$("$HOSTEL" image mount busybox "$M")" = "$M"
        "$HOSTEL" mount | wc -l
        (cd "$M" && ! "$HOSTEL" unmount "$M" 2>&1) | grep -o "Hint: something uses it"
        "$HOSTEL" umount "$M" >/dev/null
        test -z "$(ls "$M")"
        "$HOSTEL" unmount --all >/dev/null
        test ! -e "$made"
        "$HOSTEL" mount
        echo end"#,
    );
    done.ok().stdout("2\nHint: something uses it\nend\n");
    // One that is not taken away goes with its namespace: the harness finds a server that stays.
    unshared(
        &h,
        r#""$HOSTEL" mount busybox "$M" >/dev/null && ls "$M/bin/busybox" >/dev/null && echo there"#,
    )
    .ok()
    .stdout("there\n");
}

#[test]
fn changes_of_an_image_are_kept_where_they_are_wanted() {
    let Some(h) = Hostel::new() else { return };
    let (m, kept) = (h.scratch("m"), h.scratch("kept"));
    let (m, kept) = (m.to_str().unwrap(), kept.to_str().unwrap());
    let mount =
        |script: &str| h.args(&["mount", "--changes", kept, "busybox", m, "--", "sh", "-c", script, "sh", m]);
    mount("echo new > \"$1/new\" && mv \"$1/etc\" \"$1/moved\" && chmod 751 \"$1/new\"").ok();
    mount(
        "cat \"$1/new\"; stat -c %a \"$1/new\"; test -d \"$1/moved\" && test ! -e \"$1/etc\" && echo moved",
    )
    .ok()
    .stdout("new\n751\nmoved\n");
    // The image is as it was.
    h.args(&["mount", "busybox", m, "--", "test", "-e", &format!("{m}/new")]).code(1);
}

#[test]
fn containers_are_mounted_for_writing() {
    let Some(h) = Hostel::new() else { return };
    for write in ["hybrid", "pure"] {
        let (name, option) = (format!("c-{write}"), format!("write={write}"));
        let create = ["create", "--name", &name, "--storage-opt", &option, "--network", "none", "busybox"];
        h.args(&[&create[..], &["sh", "-c", "cat /etc/made; cat /etc/again 2>/dev/null; true"]].concat())
            .ok();
        let m = h.scratch("m");
        let m = m.to_str().unwrap();
        let mount = |script: &str| h.args(&["mount", &name, m, "--", "sh", "-c", script, "sh", m]);
        mount("echo made > \"$1/etc/made\"").ok();
        h.run(&format!("start -a {name}")).ok().stdout("made\n");
        mount("cat \"$1/etc/made\" && echo again > \"$1/etc/again\"").ok().stdout("made\n");
        h.run(&format!("diff {name}")).ok().has("A /etc/again\n").has("A /etc/made\n");
        h.run(&format!("start -a {name}")).ok().stdout("made\nagain\n");
        if has_subordinate_ids() {
            let script = format!(
                r#""$HOSTEL" mount {name} "$M" >/dev/null && cat "$M/etc/again" && "$HOSTEL" unmount {name}"#
            );
            unshared(&h, &script).ok().stdout(&format!("again\n{name}\n"));
            h.run(&format!("start -a {name}")).ok();
        }
    }
}

#[test]
fn a_running_container_is_seen_as_it_is() {
    let Some(h) = Hostel::new() else { return };
    h.run("run -d --name up --network none busybox sh -c 'echo inside > /in; sleep 1000'").ok();
    let m = h.scratch("m");
    let m = m.to_str().unwrap();
    crate::harness::eventually("its file", || h.run("exec up cat /in").stdout == "inside\n");
    let look = "cat \"$1/in\"; ls \"$1/proc\"; echo outside > \"$1/out\"";
    h.args(&["mount", "up", m, "--", "sh", "-c", look, "sh", m]).ok().stdout("inside\n");
    h.run("exec up cat /out").ok().stdout("outside\n");
    unshared(&h, r#""$HOSTEL" mount up "$M""#)
        .fails(125, &["container up is running", "outside of this namespace"]);
}

#[test]
fn what_cannot_be_mounted_is_told() {
    let Some(h) = Hostel::new() else { return };
    h.run("mount busybox").fails(125, &["a plain user cannot mount", "hostel unshare"]);
    h.run("mount nowhere -- true").fails(125, &["no container or image nowhere", "hostel pull nowhere"]);
    h.run("mount busybox /nowhere -- true")
        .fails(125, &["cannot mount on /nowhere: No such file or directory"]);
    h.run("mount busybox /etc/passwd -- true").fails(125, &["cannot mount on /etc/passwd: Not a directory"]);
    h.run("mount host:/ -- true").fails(125, &["only an image in the store can be mounted"]);
    h.run("mount busybox -- /no/such/command").fails(127, &["cannot run /no/such/command"]);
    h.run("mount busybox -- /etc").fails(126, &["cannot run /etc"]);
    h.run("create --name held busybox true").ok();
    h.run("mount --changes /tmp/x held -- true").fails(1, &["--changes is for images"]);
    h.run("create --name machine host:/ true").ok();
    h.run("mount machine -- true").fails(125, &["`host:/` container cannot be mounted"]);
    h.run("unmount nothing").fails(1, &["nothing of hostel's is mounted as or on nothing here"]);
    h.run("unmount").fails(1, &["requires at least 1 argument"]);
}

#[test]
fn unshare_has_the_ids_of_containers() {
    let Some(h) = Hostel::new() else { return };
    h.run("unshare id -u").ok().stdout("0\n");
    h.run("unshare sh -c 'exit 3'").code(3);
    h.run("unshare /no/such").fails(127, &["cannot run /no/such"]);
    if !has_subordinate_ids() {
        skip("no subordinate ids");
        return;
    }
    let m = h.scratch("owned");
    let script = format!("touch {0}/f && chown 5:6 {0}/f && stat -c %u:%g {0}/f && rm {0}/f", m.display());
    h.args(&["unshare", "sh", "-c", &script]).ok().stdout("5:6\n");
}
