//! Where /dev/fuse cannot be opened an image is written out to a directory and used from there.
//!
//! The device is hidden in a mount namespace of the test's own, in which this user has one id.

use crate::harness::{Done, Hostel, skip, words};

/// Runs its arguments with a /dev that has no fuse device.
const HIDDEN: &str = r#"set -e
d=$(mktemp -d)
mount -t tmpfs none "$d"
for n in null zero full random urandom tty; do touch "$d/$n"; mount --bind "/dev/$n" "$d/$n"; done
mkdir "$d/shm" "$d/pts"
mount --rbind "$d" /dev
exec "$HOSTEL" "$@""#;

fn without_fuse(h: &Hostel, line: &str) -> Done {
    let arguments = words(line);
    let mut all = vec!["--user", "--map-root-user", "--mount", "sh", "-c", HIDDEN, "sh"];
    all.extend(arguments.iter().map(String::as_str));
    h.program("unshare", &all).run()
}

#[test]
fn an_image_is_written_out_once_and_works() {
    let Some(h) = Hostel::new() else { return };
    let run = |line: &str| {
        let done = without_fuse(&h, line);
        (Some(done.exit_code()), done.stdout, done.stderr)
    };
    let info = run("info");
    if info.0 != Some(0) {
        skip(&format!("no user namespace with mounts of its own: {}", info.2));
        return;
    }
    assert!(info.1.contains("Image Mode: materialised"), "{}", info.1);
    let (code, out, err) = run(
        "run --rm --network none busybox sh -c 'echo new > /etc/group && cat /etc/group && rm /etc/passwd && ls /etc/passwd'",
    );
    assert_eq!((code, out.as_str()), (Some(1), "new\n"), "{err}");
    assert!(err.contains("NOTE: the image is written out"), "{err}");
    // The next one finds it, as it was.
    let (code, out, err) = run("run --rm --network none busybox ls /etc/passwd");
    assert_eq!((code, out.as_str()), (Some(0), "/etc/passwd\n"), "{err}");
    assert!(!err.contains("NOTE"), "{err}");
    let (code, _, err) = run("run --rm --network none host:/ true");
    assert_eq!(code, Some(125), "{err}");
    assert!(err.contains("/dev/fuse"), "{err}");
}

#[test]
fn a_build_binds_stages() {
    let Some(h) = Hostel::new() else { return };
    let dir = h.scratch("c");
    let text = "FROM busybox AS one\nRUN mkdir /d && echo 1 > /d/file\nFROM busybox\n\
        RUN --network=none --mount=type=bind,from=one,source=/d,target=/m cat /m/file > /out\n\
        RUN --network=none --mount=type=bind,from=one,source=/d,target=/m,rw echo 2 >> /m/file; cat /m/file >> /out\n\
        RUN --network=none --mount=type=bind,from=one,source=/d,target=/m cat /m/file >> /out\n";
    std::fs::write(dir.join("Dockerfile"), text.replace("RUN mkdir", "RUN --network=none mkdir")).unwrap();
    let done = without_fuse(&h, &format!("build -t x {}", dir.display()));
    if done.stderr.contains("unshare: ") {
        skip(&format!("no user namespace with mounts of its own: {}", done.stderr));
        return;
    }
    done.ok();
    without_fuse(&h, "run --rm --network none x cat /out").has("1\n1\n2\n1\n");
}

/// Neither the device nor a filesystem that the kernel's overlay takes for its upper: the store is on an
/// overlay itself, as in a container.
const NESTED: &str = r#"
s=$HOSTEL_ROOT.nested
mkdir -p "$s/upper" "$s/work"
mount -t overlay none -o "userxattr,lowerdir=$HOSTEL_ROOT,upperdir=$s/upper,workdir=$s/work" "$HOSTEL_ROOT"
"#;

#[test]
fn a_copied_container_tells_its_changes() {
    let Some(h) = Hostel::new() else { return };
    let (prepare, run) = HIDDEN.rsplit_once("exec").unwrap();
    let script = format!("{prepare}{NESTED}exec{run}");
    let run = |line: &str| {
        let arguments = words(line);
        let mut all = vec!["--user", "--map-root-user", "--mount", "sh", "-c", &script, "sh"];
        all.extend(arguments.iter().map(String::as_str));
        h.program("unshare", &all).run()
    };
    let first = run(
        "run --name copied --network none busybox sh -c 'mkdir /new /etc/sub && echo x > /new/f && echo changed > /etc/group && rm /etc/passwd && rm -r /bin/../tmp && ln /new/f /new/g && chmod 700 /root'",
    );
    if first.stderr.contains("cannot mount") || first.stderr.contains("mount:") {
        skip(&format!("no overlay in a user namespace: {}", first.stderr));
        return;
    }
    first.ok();
    run("inspect -f '{{.GraphDriver.Data.WriteMode}}' copied").ok().stdout("copy\n");
    let expected =
        "C /etc\nC /etc/group\nD /etc/passwd\nA /etc/sub\nA /new\nA /new/f\nA /new/g\nC /root\nD /tmp\n";
    run("diff copied").ok().stdout(expected);
    run("commit copied changed").ok();
    run("run --rm --network none changed sh -c 'cat /etc/group /new/g; stat -c %h /new/f; ls -d /tmp /etc/passwd 2>/dev/null; stat -c %a /root'")
        .ok()
        .stdout("changed\nx\n2\n700\n");
    run("create --name never busybox true").ok();
    run("diff never").ok().stdout("");
    run("rm copied never").ok();
    // Overlayfs leaves a directory of mode 0 in its work directory.
    let left = h.place("root.nested/work/work");
    std::fs::set_permissions(left, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
}

#[test]
fn a_device_that_is_closed_to_the_user_is_as_one_that_is_missing() {
    let Some(h) = Hostel::new() else { return };
    // A file of an owner who has no id in the namespace, and that nobody else may read: no right opens it.
    let closed = HIDDEN
        .replace("mount --rbind", "touch \"$d/fuse\"; mount --bind /etc/shadow \"$d/fuse\"\nmount --rbind");
    let run = |line: &str| {
        let arguments = words(line);
        let mut all = vec!["--user", "--map-root-user", "--mount", "sh", "-c", &closed, "sh"];
        all.extend(arguments.iter().map(String::as_str));
        h.program("unshare", &all).run()
    };
    let info = run("info");
    if info.exit_code() != 0 {
        return skip(&format!("no user namespace with mounts of its own: {}", info.stderr));
    }
    info.has("Image Mode: materialised");
    run("run --rm --network none busybox echo runs")
        .ok()
        .stdout("runs\n")
        .stderr_has("NOTE: the image is written out");
    run("doctor").has("/dev/fuse: Permission denied").has("chmod 0666 /dev/fuse");
}
