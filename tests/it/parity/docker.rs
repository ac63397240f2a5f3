//! The same rows through a real Docker daemon, where the run has one: `scripts/with-dockerd`.

use std::env;

use super::{IMAGES, LIFE, ROWS, RUN, THINGS, masked};
use crate::fixtures;
use crate::harness::{Hostel, skip_for_this_kernel, words};

/// Where Docker differs from hostel, and why. (The daemon of Debian 12 is 20.10; the command may be newer.)
const DIFFERENT: [(&str, &str); 10] = [
    ("exec c1 nosuch", "127 since Docker 23, 126 before"),
    ("exec up nosuch", "127 since Docker 23, 126 before"),
    ("exec up /etc", "Docker prints runc's message on standard output"),
    ("commit -q nosuch", "-q is podman's"),
    ("inspect -f '{{.NoSuchField}}' cc", "Docker prints the empty line as well"),
    ("inspect -f '{{len 3}}' cc", "Docker prints the empty line as well"),
    ("events --until 0s --filter nosuch=x", "Docker passes over a filter of events that it does not know"),
    ("run --rm --tz UTC busybox date +%Z", "--tz is podman's"),
    (
        "run --rm -v /nosuch-dir-of-the-host/x:/x:ro busybox true",
        "a daemon that is root makes the directory, and leaves it to the machine",
    ),
    (
        "run --rm busybox stat -c '%a %u:%g' /tmp /dev/null",
        "devices are the machine's own, whose root has no id inside",
    ),
];

#[test]
fn docker_and_hostel_answer_alike() {
    let Some(socket) = env::var_os("HOSTEL_TEST_DOCKER") else {
        skip_for_this_kernel("no Docker daemon is given: scripts/with-dockerd scripts/test has one");
        return;
    };
    let Some(h) = Hostel::new() else { return };
    let Some(archive) = fixtures::busybox_archive() else { return };
    let host = format!("unix://{}", socket.to_string_lossy());
    let docker = |line: &str| {
        let arguments = words(line);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        h.program("docker", &arguments).env("DOCKER_HOST", &host).run()
    };
    let clear = || {
        for line in ["ps -aq", "volume ls -q"] {
            for name in docker(line).stdout.lines() {
                docker(&if line.starts_with("ps") {
                    format!("rm -f {name}")
                } else {
                    format!("volume rm {name}")
                });
            }
        }
    };
    docker(&format!("load -q -i {}", archive.display())).ok();
    clear();
    let (mut wrong, mut count) = (Vec::new(), 0);
    let rows = ROWS.iter().chain(&RUN).chain(&LIFE).chain(&THINGS).chain(&IMAGES);
    for (line, _) in rows {
        // Nothing that a later row needs is made by these.
        if DIFFERENT.iter().any(|(known, _)| known == line) {
            continue;
        }
        let (mine, peer) = (h.run(line), docker(line));
        count += 1;
        if (mine.exit_code(), masked(&mine.stdout)) != (peer.exit_code(), masked(&peer.stdout)) {
            wrong.push(format!(
                "{line}\n  docker {} {:?} {:?}\n  hostel {} {:?} {:?}",
                peer.exit_code(),
                peer.stdout,
                peer.stderr,
                mine.exit_code(),
                mine.stdout,
                mine.stderr
            ));
        }
    }
    clear();
    assert!(wrong.is_empty(), "{} of {count} differ:\n{}", wrong.len(), wrong.join("\n"));
}
