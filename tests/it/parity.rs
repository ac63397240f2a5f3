//! The same command lines through podman and hostel: the same output and exit code.
//!
//! Each row is run by both, in order, so later rows see what earlier ones made. Ids are masked. Where podman
//! and Docker differ, the row carries Docker's answer and hostel has to give that.

use std::fs;
use std::process::Command;

use crate::fixtures;
use crate::harness::{Done, Hostel, output, skip, words};

enum Answer {
    /// Whatever podman says.
    Podman,
    /// Podman differs; Docker exits with this and prints this.
    Docker(i32, &'static str),
}
use Answer::{Docker, Podman};

const ROWS: [(&str, Answer); 44] = [
    ("run --rm busybox echo hello", Podman),
    ("run --rm busybox sh -c 'exit 7'", Podman),
    ("run --rm busybox nosuchcommand", Podman),
    ("run --rm busybox /etc", Podman),
    ("run --rm --no-such-flag busybox true", Podman),
    ("run --rm entrypoint", Podman),
    ("run --rm entrypoint other", Podman),
    ("run --rm --entrypoint /bin/echo entrypoint mine", Podman),
    ("run --rm workdir", Podman),
    ("run --rm user id", Podman),
    // Podman adds a line to /etc/passwd for such a user.
    ("run --rm -u 1234:4321 busybox id", Docker(0, "uid=1234 gid=4321 groups=4321\n")),
    ("run --rm -u app busybox sh -c 'id; echo $HOME'", Podman),
    ("run --rm -e A=1 -e B= busybox sh -c 'echo [$A] [$B]'", Podman),
    ("run --rm --hostname box busybox sh -c 'hostname; echo $HOSTNAME'", Podman),
    ("run --rm --tmpfs /t:size=1m busybox sh -c 'grep -c \" /t tmpfs\" /proc/mounts'", Podman),
    ("run --rm --read-only busybox touch /x", Podman),
    ("run --rm --network none busybox ls /sys/class/net", Podman),
    ("run --rm --add-host db:10.1.2.3 busybox grep -w db /etc/hosts", Podman),
    ("run --rm -v data:/d busybox sh -c 'echo kept > /d/f'", Podman),
    ("run --rm -v data:/d busybox cat /d/f", Podman),
    ("volume ls -q", Podman),
    ("volume rm data", Podman),
    ("volume rm data", Podman),
    ("run --rm --init busybox sh -c 'kill -TERM $$; sleep 5'", Podman),
    ("run -d --name c1 busybox sh -c 'trap \"exit 5\" TERM; echo up; while :; do sleep 0.05; done'", Podman),
    ("exec c1 sh -c 'echo in; exit 4'", Podman),
    ("exec c1 nosuch", Podman),
    ("exec -e A=b -w /etc c1 sh -c 'echo $A; pwd'", Podman),
    ("ps --format '{{.Names}}'", Podman),
    ("inspect -f '{{.State.Status}} {{.State.Running}}' c1", Podman),
    ("stop c1", Podman),
    ("inspect -f '{{.State.ExitCode}}' c1", Podman),
    ("logs c1", Podman),
    ("wait c1", Podman),
    // Podman starts an exited container for nothing less; exec says 255, Docker 1.
    ("exec c1 true", Docker(1, "")),
    ("rm c1", Podman),
    ("rm c1", Podman),
    ("image inspect -f '{{.Config.StopSignal}}' stopsignal", Podman),
    ("run --name d1 busybox sh -c 'mkdir -p /x/y && echo > /x/y/f'", Podman),
    ("diff d1", Podman),
    ("commit -q nosuch", Docker(1, "")),
    ("rm d1", Podman),
    (
        "run --name d2 busybox sh -c 'touch -r /etc/passwd /tmp/r && touch /etc/passwd && touch -r /tmp/r /etc/passwd && rm /tmp/r'",
        Podman,
    ),
    ("diff d2", Podman),
];

#[test]
fn podman_and_hostel_answer_alike() {
    let Some(h) = Hostel::new() else { return };
    let Some(podman) = Peer::new(&h) else { return };
    let mut wrong = Vec::new();
    for (line, answer) in &ROWS {
        let mine = h.run(line);
        let peer = podman.run(&h, line);
        let (code, stdout) = match answer {
            Podman => (peer.exit_code(), masked(&peer.stdout)),
            Docker(code, stdout) => (*code, (*stdout).to_owned()),
        };
        if (mine.exit_code(), masked(&mine.stdout)) != (code, stdout.clone()) {
            wrong.push(format!(
                "{line}\n  expected {code} {stdout:?}\n  hostel   {} {:?} {:?}\n  podman   {} {:?}",
                mine.exit_code(),
                mine.stdout,
                mine.stderr,
                peer.exit_code(),
                peer.stderr
            ));
        }
    }
    podman.clear(&h);
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), ROWS.len(), wrong.join("\n"));
}

/// Podman with a store of its own and settings that work where the caller owns no cgroup.
struct Peer {
    config: String,
    runtime: String,
    arguments: Vec<String>,
}

impl Peer {
    fn new(h: &Hostel) -> Option<Self> {
        if output(Command::new("podman").arg("--version")).is_err() {
            skip("podman is not installed");
            return None;
        }
        let archive = fixtures::busybox_archive()?;
        let place = fixtures::dir().join("podman");
        fs::create_dir_all(&place).unwrap();
        let config = h.scratch("podman").join("containers.conf");
        let text = "[containers]\ncgroups = \"disabled\"\nlog_driver = \"k8s-file\"\n\
                    [engine]\nruntime = \"crun\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\n";
        fs::write(&config, text).unwrap();
        let arguments = vec![
            "--root".to_owned(),
            place.join("root").to_string_lossy().into_owned(),
            "--runroot".to_owned(),
            place.join("run").to_string_lossy().into_owned(),
            "--storage-driver".to_owned(),
            "overlay".to_owned(),
        ];
        let runtime = place.join("run").to_string_lossy().into_owned();
        fs::create_dir_all(&runtime).unwrap();
        let peer = Self { config: config.to_string_lossy().into_owned(), runtime, arguments };
        peer.clear(h);
        let usable = peer.run(h, &format!("load -q -i {}", archive.display()));
        if usable.exit_code() != 0 || peer.run(h, "run --rm busybox true").exit_code() != 0 {
            skip(&format!("podman does not work here: {}", usable.stderr));
            return None;
        }
        Some(peer)
    }

    /// Removes what this run or an interrupted one left, the process that holds the namespaces too.
    fn clear(&self, h: &Hostel) {
        for line in ["rm -fa -t 0", "volume prune -f", "system migrate"] {
            self.run(h, line);
        }
    }

    fn run(&self, h: &Hostel, line: &str) -> Done {
        let arguments: Vec<_> = self.arguments.iter().cloned().chain(words(line)).collect();
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        h.program("podman", &arguments)
            .env("CONTAINERS_CONF", &self.config)
            .env("XDG_RUNTIME_DIR", &self.runtime)
            .run()
    }
}

/// The text with ids of 64 and 12 hex digits replaced.
fn masked(text: &str) -> String {
    text.split_inclusive(|c: char| !c.is_ascii_hexdigit())
        .map(|piece| {
            let digits = piece.trim_end_matches(|c: char| !c.is_ascii_hexdigit()).len();
            match digits {
                64 | 12 => format!("<id>{}", &piece[digits..]),
                _ => piece.to_owned(),
            }
        })
        .collect()
}
