//! Verbs and flags of Docker's that mean nothing here: refused by name and with the reason, where clap would call
//! them unknown. Those of `run` and `create` are in `run_args/unsupported.rs`.

use super::{CliError, Exit};

/// What a reason is for: words of a command line behind `hostel`, and the reason.
type Row = (&'static [&'static str], &'static str);

const DAEMON: &str = "there is no daemon to connect to";
const SWARM: &str = "it is Docker Swarm's, an orchestrator of many machines";
const LISTS: &str = "no lists of several platforms are made or changed here";
const BUILDER: &str = "it is of Docker's former builder, and BuildKit ignores it";
const BUILD_LIMITS: &str =
    "a build is limited as a whole: run it in `systemd-run --user --scope -p MemoryMax=...`";

const CLUSTER: &str = "it is of volumes of a Swarm cluster";

const VERBS: [Row; 16] = [
    (&["checkpoint"], "CRIU takes root to write and to restore a process"),
    (&["config"], SWARM),
    (&["context"], DAEMON),
    (
        &["compose"],
        "docker-compose and podman-compose run with DOCKER_HOST or a program's path; there is no daemon here",
    ),
    (&["dial-stdio"], DAEMON),
    (&["machine"], "containers run on this machine itself"),
    (&["node"], SWARM),
    (&["plugin"], "drivers for volumes, networks and logs are built in; there is no daemon to add others to"),
    (&["pod"], "containers share namespaces by --network, --pid and --ipc container:NAME"),
    (&["service"], SWARM),
    (&["stack"], SWARM),
    (&["swarm"], SWARM),
    (&["volume update"], CLUSTER),
    (&["trust"], "Notary's signatures are not checked; policy.json of the containers tools is honoured"),
    (&["manifest annotate", "manifest create", "manifest push", "manifest rm"], LISTS),
    (&["system dial-stdio", "system connection", "system service"], DAEMON),
];

const FLAGS: [Row; 18] = [
    (&["start --checkpoint", "start --checkpoint-dir"], "CRIU takes root to restore a process"),
    (&["rm --link", "rm -l"], "there are no links: containers do not share a network"),
    (&["images --tree", "image ls --tree"], "`image inspect --platform` tells of an image's platforms"),
    (&["rmi --platform", "image rm --platform"], "remove the image of that platform by its id, with -f"),
    (&["volume ls --cluster", "volume create --availability", "volume create --group"], CLUSTER),
    (&["volume create --limit-bytes", "volume create --required-bytes", "volume create --scope"], CLUSTER),
    (
        &[
            "volume create --secret",
            "volume create --sharing",
            "volume create --topology-preferred",
            "volume create --topology-required",
            "volume create --type",
        ],
        CLUSTER,
    ),
    (&["secret create --driver", "secret create -d"], "secrets are files of the store"),
    (&["secret create --template-driver"], SWARM),
    (&["build --cgroup-parent"], "systemd and delegation decide where groups are"),
    (&["build --cpu-period", "build --cpu-quota", "build --cpu-shares", "build -c"], BUILD_LIMITS),
    (&["build --cpuset-cpus", "build --cpuset-mems", "build --memory-swap"], BUILD_LIMITS),
    (&["build --isolation"], "it is of Windows"),
    (&["build --security-opt"], BUILDER),
    (&["build --squash"], "layers are kept, for the cache; `hostel export` and `import` make one of all"),
    (&["build --disable-content-trust"], "there is nothing to check or skip"),
    (&["--host", "-H"], DAEMON),
    (&["--context", "-c", "--tls", "--tlscacert", "--tlscert", "--tlskey", "--tlsverify"], DAEMON),
];

/// The refusal of a verb (`hostel swarm`), if it is known.
#[must_use]
pub(super) fn verb(line: &str) -> Option<CliError> {
    let words = line.strip_prefix("hostel ")?;
    let reason = find(&VERBS, words)?;
    Some(CliError::new(format!("{line} is not supported: {reason}")).with_exit(Exit::Failure))
}

/// The refusal of a flag that was given to a verb (`hostel image rm`), if it is known.
#[must_use]
pub(super) fn flag(path: &str, flag: &str) -> Option<CliError> {
    let name = flag.split('=').next().unwrap_or(flag);
    let verb = path.strip_prefix("hostel").unwrap_or(path).trim_start();
    // `container rm` and `image build` are `rm` and `build`.
    let bare =
        ["container ", "image ", "buildx ", "builder "].iter().find_map(|group| verb.strip_prefix(group));
    let lines =
        [Some(verb), bare].into_iter().flatten().map(|verb| format!("{verb} {name}").trim_start().to_owned());
    let reason = lines.into_iter().find_map(|line| find(&FLAGS, &line))?;
    let message = format!("{name} is not supported in this version: {reason}");
    Some(CliError::new(message).with_exit(Exit::Engine))
}

fn find(rows: &[Row], words: &str) -> Option<&'static str> {
    rows.iter().find(|(lines, _)| lines.contains(&words)).map(|(_, reason)| *reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_docker_has_is_refused_by_name() {
        for (path, given, known) in [
            ("hostel rm", "--link", true),
            ("hostel container rm", "-l", true),
            ("hostel image build", "--squash", true),
            ("hostel image rm", "--platform=linux/arm64", true),
            ("hostel", "-H", true),
            ("hostel rm", "--nope", false),
            ("hostel ps", "--link", false),
        ] {
            assert_eq!(flag(path, given).is_some(), known, "{path} {given}");
        }
        let refusal = verb("hostel swarm").expect("known");
        let message = "hostel swarm is not supported: it is Docker Swarm's, an orchestrator of many machines";
        assert_eq!((refusal.message(), refusal.exit), (message, Exit::Failure));
        assert!(verb("hostel manifest create").is_some() && verb("hostel nosuch").is_none());
    }
}
