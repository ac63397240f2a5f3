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
