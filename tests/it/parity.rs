//! The same command lines through podman and hostel: the same output and exit code.
//!
//! Each row is run by both, in order, so later rows see what earlier ones made. Ids are masked. Where podman
//! and Docker differ, the row carries Docker's answer and hostel has to give that.

mod docker;

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
    // Podman counts /etc, where it puts what it mounts.
    ("diff d1", Docker(0, "A /x\nA /x/y\nA /x/y/f\n")),
    ("commit -q nosuch", Docker(1, "")),
    ("rm d1", Podman),
    (
        "run --name d2 busybox sh -c 'touch -r /etc/passwd /tmp/r && touch /etc/passwd && touch -r /tmp/r /etc/passwd && rm /tmp/r'",
        Podman,
    ),
    // What was written back as it was, and a directory of which the time alone is new: see COMPATIBILITY.md.
    ("diff d2", Docker(0, "")),
];

/// What `run` does with its flags.
const RUN: [(&str, Answer); 60] = [
    ("run --rm busybox sh -c 'echo out; echo err >&2'", Podman),
    ("run --rm busybox sh -c 'kill -9 $$'", Podman),
    ("run --rm busybox sh -c 'kill -TERM $$'", Podman),
    ("run --rm busybox false", Podman),
    ("run --rm -w /tmp busybox pwd", Podman),
    ("run --rm --workdir=/var/lib busybox pwd", Podman),
    ("run --rm -u 0 busybox id -u", Podman),
    ("run --rm -u app busybox id -un", Podman),
    ("run --rm -u nosuchuser busybox id", Docker(125, "")),
    ("run --rm --env A=1 --env B=2 busybox sh -c 'echo $A$B'", Podman),
    ("run --rm --env A busybox sh -c 'echo [$A]'", Podman),
    ("run --rm -e HOME=/x busybox sh -c 'echo $HOME'", Podman),
    ("run --rm busybox sh -c 'echo $PATH'", Podman),
    ("run --rm busybox sh -c 'echo $HOME'", Podman),
    ("run --rm --entrypoint sh busybox -c 'echo entered'", Podman),
    ("run --rm --entrypoint echo busybox a 'b c'", Podman),
    ("run --rm --entrypoint '' busybox echo plain", Podman),
    ("run --rm --entrypoint /nosuch busybox", Podman),
    ("run --rm --init busybox sh -c 'exit 3'", Podman),
    ("run --rm --read-only busybox sh -c 'echo x > /x'", Podman),
    ("run --rm --read-only --tmpfs /t busybox sh -c 'echo x > /t/x; cat /t/x'", Podman),
    ("run --rm --tmpfs /t:size=64k,mode=700 busybox stat -c %a /t", Podman),
    (
        "run --rm --mount type=tmpfs,destination=/t,tmpfs-size=65536 busybox grep -c ' /t tmpfs' /proc/mounts",
        Podman,
    ),
    ("run --rm --shm-size 1m busybox stat -f -c '%b %S' /dev/shm", Podman),
    ("run --rm --hostname a.example busybox hostname", Podman),
    ("run --rm --network none busybox cat /etc/hostname", Docker(0, "<id>\n")),
    ("run --rm --uts host busybox sh -c 'test -n \"$(hostname)\"'", Podman),
    ("run --rm --ulimit nofile=100:200 busybox sh -c 'ulimit -Sn; ulimit -Hn'", Podman),
    ("run --rm --ulimit core=0 busybox sh -c 'ulimit -c'", Podman),
    ("run --rm --cap-drop ALL busybox grep CapEff /proc/self/status", Podman),
    ("run --rm --cap-drop ALL --cap-add CHOWN busybox grep CapEff /proc/self/status", Podman),
    ("run --rm --cap-add NOSUCH busybox true", Docker(125, "")),
    ("run --rm --security-opt no-new-privileges busybox grep NoNewPrivs /proc/self/status", Podman),
    ("run --rm --security-opt seccomp=unconfined busybox grep -w Seccomp /proc/self/status", Podman),
    ("run --rm busybox grep -w Seccomp /proc/self/status", Podman),
    ("run --rm --sysctl net.ipv4.ip_default_ttl=33 busybox cat /proc/sys/net/ipv4/ip_default_ttl", Podman),
    ("run --rm --sysctl kernel.nosuch=1 busybox true", Docker(125, "")),
    ("run --rm --label a=b busybox true", Podman),
    ("run --rm --stop-signal INT busybox true", Podman),
    ("run --rm --stop-signal NOSUCH busybox true", Docker(125, "")),
    ("run --rm --name 'bad name' busybox true", Podman),
    ("run --rm --pull never nosuchimage true", Podman),
    ("run --rm --pull sometimes busybox true", Podman),
    ("run --rm -v relative:/x:nosuchoption busybox true", Podman),
    ("run --rm -v /nosuch-dir-of-the-host/x:/x:ro busybox true", Docker(125, "")),
    ("run --rm --mount type=nosuch,destination=/x busybox true", Podman),
    ("run --rm --mount type=bind,destination=/x busybox true", Podman),
    ("run --rm --memory 1k-x busybox true", Podman),
    ("run --rm --restart always busybox true", Podman),
    ("run --rm --restart sometimes busybox true", Podman),
    ("run --rm -p 99999999:80 busybox true", Podman),
    ("run --rm --dns 192.0.2.7 busybox grep -c 192.0.2.7 /etc/resolv.conf", Podman),
    (
        "run --rm --dns-search example.org busybox grep search /etc/resolv.conf",
        Docker(0, "search example.org\n"),
    ),
    (
        "run --rm --add-host a:192.0.2.1 --add-host b:192.0.2.2 busybox grep -c 192.0.2. /etc/hosts",
        Docker(0, "2\n"),
    ),
    ("run --rm --tz UTC busybox date +%Z", Podman),
    ("run --rm --group-add 77 busybox id -G", Docker(0, "0 77\n")),
    ("run --rm --oom-score-adj 500 busybox cat /proc/self/oom_score_adj", Podman),
    ("run --rm busybox stat -c '%a %u:%g' /tmp /dev/null", Podman),
    ("run --rm busybox ls /dev/pts", Podman),
    ("run --rm busybox readlink /proc/self/exe", Podman),
];

/// A container's life by its verbs.
const LIFE: [(&str, Answer); 101] = [
    ("create --name cc busybox sh -c 'echo said; exit 3'", Podman),
    ("inspect -f '{{.State.Status}}' cc", Podman),
    ("inspect -f '{{.RestartCount}}' cc", Podman),
    ("inspect -f '{{.Name}}' cc", Docker(0, "/cc\n")),
    ("inspect -f '{{.Path}} {{len .Args}}' cc", Podman),
    ("inspect -f '{{json .Config.Cmd}}' cc", Podman),
    ("inspect -f '{{.HostConfig.RestartPolicy.Name}}' cc", Docker(0, "no\n")),
    ("inspect -f '{{.NoSuchField}}' cc", Docker(1, "")),
    ("inspect -f '{{' cc", Docker(64, "")),
    ("inspect -f '{{' nosuch", Docker(64, "")),
    ("inspect -f '{{nosuch}}' cc", Docker(64, "")),
    ("inspect -f '{{len 3}}' cc", Docker(1, "")),
    ("inspect -f '{{define \"x\"}}<{{.}}>{{end}}{{template \"x\" .Name}}' cc", Docker(0, "</cc>\n")),
    ("inspect -f '{{printf \"%q %5d|\" .Path .RestartCount}}' cc", Docker(0, "\"sh\"     0|\n")),
    (
        "inspect -f '{{html \"<a>\"}} {{js \"<\"}} {{urlquery \"a b\"}}' cc",
        Docker(0, "&lt;a&gt; \\u003C a+b\n"),
    ),
    ("inspect -f '{{with \"\"}}a{{else with .Path}}{{.}}{{end}}' cc", Docker(0, "sh\n")),
    ("info --format '{{'", Docker(64, "")),
    ("version --format '{{'", Docker(64, "")),
    ("events --format '{{' --until 0s", Docker(64, "")),
    ("start cc", Podman),
    ("wait cc", Podman),
    ("start -a cc", Podman),
    ("logs cc", Podman),
    ("logs --tail 1 cc", Podman),
    ("logs -n 0 cc", Docker(0, "")),
    ("logs --tail x cc", Docker(0, "said\nsaid\n")),
    ("inspect -f '{{.State.ExitCode}} {{.State.Running}} {{.State.Paused}} {{.State.OOMKilled}}' cc", Podman),
    ("ps -a --format '{{.Names}} {{.Image}}'", Docker(0, "cc busybox\n")),
    ("ps -a -q --no-trunc", Podman),
    ("ps -aq", Podman),
    ("ps -a --filter name=cc --format '{{.Names}}'", Podman),
    ("ps -a --filter status=exited --format '{{.Names}}'", Podman),
    ("ps -a --filter exited=3 --format '{{.Names}}'", Podman),
    ("ps -a --filter exited=4 --format '{{.Names}}'", Podman),
    ("ps -a --filter label=nosuch --format '{{.Names}}'", Podman),
    ("ps --filter nosuch=1", Docker(1, "")),
    ("ps --format '{{'", Docker(1, "")),
    ("ps --format '{{.NoSuch}}' -a", Docker(1, "")),
    ("ps -a --format 'table {{.Label \"com.x-y\"}}|{{upper .Names}}'", Docker(0, "x y|NAMES\n|CC\n")),
    ("ps -a --format 'table{{.Names}}'", Docker(0, "NAMES\ncc\n")),
    ("ps -a --filter 'name=^c.$' --format '{{.Names}}'", Docker(0, "cc\n")),
    ("ps -a --filter 'name=^/cc$' --format '{{.Names}}'", Docker(0, "cc\n")),
    ("ps -a --filter 'name=^(aa|cc)$' --format '{{.Names}}'", Docker(0, "cc\n")),
    ("ps -a --filter 'name=[' --format '{{.Names}}'", Docker(0, "")),
    ("ps -a --filter name=C --format '{{.Names}}'", Docker(0, "")),
    ("ps -a --filter ancestor=busybox --format '{{.Names}}'", Docker(0, "cc\n")),
    ("ps -a --filter ancestor=busybox:1 --format '{{.Names}}'", Docker(0, "cc\n")),
    ("ps -a --filter ancestor=env --format '{{.Names}}'", Docker(0, "")),
    ("ps -a --filter ancestor=nosuch --format '{{.Names}}'", Docker(0, "")),
    ("ps --filter exited=3 --format '{{.Names}}'", Docker(0, "")),
    ("ps --filter status=exited --format '{{.Names}}'", Docker(0, "cc\n")),
    ("ps -n 0 --format '{{.Names}}'", Docker(0, "")),
    ("ps -n 5 --format '{{.Names}}'", Docker(0, "cc\n")),
    ("ps -a --filter is-task=false --format '{{.Names}}'", Docker(0, "cc\n")),
    ("ps -a --filter is-task=true --format '{{.Names}}'", Docker(0, "")),
    ("ps -a --filter isolation=default --format '{{.Names}}'", Docker(0, "cc\n")),
    ("ps -a --filter is-task=maybe", Docker(1, "")),
    ("ps -a --filter status=nosuch", Docker(1, "")),
    ("ps -a --filter health=nosuch", Docker(1, "")),
    ("ps -a --filter exited=x", Docker(1, "")),
    ("ps -a --filter before=nosuch", Docker(1, "")),
    ("ps -a --filter since=nosuch", Docker(1, "")),
    ("ps -a --filter publish=x", Docker(1, "")),
    ("ps -a --filter expose=1-99999", Docker(1, "")),
    ("container prune -f --filter until=x", Docker(1, "")),
    ("ps -q", Podman),
    ("rename cc dd", Podman),
    ("rename nosuch ee", Docker(1, "")),
    ("inspect -f '{{.State.ExitCode}}' dd", Podman),
    ("rm dd", Podman),
    ("rm dd", Podman),
    ("rm -f nosuch", Podman),
    ("run -d --name up --label tier=web -v keep:/keep busybox sleep 1000", Podman),
    ("run -d --name up busybox true", Podman),
    ("ps --format '{{.Names}}'", Podman),
    ("ps --filter label=tier=web --format '{{.Names}}'", Podman),
    ("ps --filter volume=keep --format '{{.Names}}'", Podman),
    ("inspect -f '{{index .Config.Labels \"tier\"}}' up", Podman),
    ("inspect -f '{{range .Mounts}}{{.Type}} {{.Destination}}{{end}}' up", Podman),
    ("exec up echo in", Podman),
    ("exec up sh -c 'exit 42'", Podman),
    ("exec up nosuch", Podman),
    ("exec up /etc", Podman),
    ("exec -w /keep up pwd", Podman),
    ("exec -u 0 up id -u", Podman),
    ("exec -e X=y up sh -c 'echo $X'", Podman),
    ("exec nosuch true", Docker(1, "")),
    ("volume rm keep", Docker(1, "")),
    ("start up", Docker(0, "up\n")),
    ("kill -s NOSUCH up", Docker(1, "")),
    ("kill up", Podman),
    ("wait up", Podman),
    ("kill up", Docker(1, "")),
    ("stop up", Podman),
    ("restart -t 0 up", Podman),
    ("inspect -f '{{.State.Running}}' up", Podman),
    ("rm up", Docker(1, "")),
    ("rm -f up", Podman),
    ("wait nosuch", Docker(1, "")),
    ("logs nosuch", Docker(1, "")),
    ("volume rm keep", Podman),
];

/// Volumes, images, and what has no verb of its own.
const THINGS: [(&str, Answer); 34] = [
    ("volume create vv", Podman),
    ("volume create vv", Docker(0, "vv\n")),
    ("volume create --label a=b labelled", Podman),
    ("volume ls -q", Podman),
    ("volume ls -q --filter label=a=b", Podman),
    ("volume ls -q --filter name=vv", Podman),
    ("volume ls -q --filter 'name=^v.$'", Docker(0, "vv\n")),
    ("volume ls -q --filter 'name=['", Docker(0, "")),
    ("volume ls -q --filter label=a=c", Docker(0, "")),
    ("volume ls -q --filter driver=loc", Docker(0, "")),
    ("volume ls --format '{{.Driver}} {{.Name}}'", Podman),
    ("volume inspect -f '{{.Name}} {{.Driver}} {{.Scope}}' vv", Podman),
    ("volume inspect nosuch", Docker(1, "[]\n")),
    ("run --rm -v vv:/d busybox sh -c 'echo 1 > /d/f'", Podman),
    ("run --rm -v vv:/d:ro busybox sh -c 'cat /d/f; echo 2 > /d/f'", Podman),
    ("run --rm --mount type=volume,source=vv,destination=/d busybox cat /d/f", Podman),
    ("run --rm --mount type=volume,src=vv,dst=/d,readonly busybox touch /d/x", Docker(1, "")),
    ("volume rm vv labelled", Podman),
    ("volume rm vv", Podman),
    ("volume rm -f vv", Docker(0, "vv\n")),
    ("volume create -d nosuchdriver xx", Docker(1, "")),
    ("image inspect -f '{{.Os}}/{{.Architecture}}' busybox", Podman),
    ("image inspect -f '{{json .Config.Cmd}}' busybox", Podman),
    ("image inspect -f '{{index .Config.Labels \"org.example.kind\"}}' label", Podman),
    ("image inspect nosuchimage", Docker(1, "[]\n")),
    ("tag busybox other:tag", Podman),
    ("run --rm other:tag echo tagged", Podman),
    ("tag nosuchimage x", Docker(1, "")),
    ("rmi nosuchimage", Podman),
    ("run --rm volume sh -c 'grep -c \" /data \" /proc/mounts'", Podman),
    ("nosuchverb", Docker(1, "")),
    ("run", Docker(1, "")),
    ("run --rm --nosuch=1 busybox", Podman),
    ("inspect nosuch", Docker(1, "[]\n")),
];

/// The network's flags and verbs. Fixed ports are of an address of the table's own, and of containers that end at
/// once: each row runs twice.
const NET: [(&str, Answer); 68] = [
    ("run --rm -p 80 busybox true", Podman),
    ("run --rm -p 127.0.0.1::80 busybox true", Podman),
    ("run --rm -p 127.83.9.1:8000:80 busybox true", Podman),
    ("run --rm -p 127.83.9.1:8000:80/udp busybox true", Podman),
    ("run --rm -p 127.83.9.1:8000:80/UDP busybox true", Docker(0, "")),
    ("run --rm -p 127.83.9.1:8000-8001:80-81 busybox true", Podman),
    // Podman wants ranges of one length.
    ("run --rm -p 127.83.9.1:8000-8001:80 busybox true", Docker(0, "")),
    ("run --rm -p 127.83.9.1:8000:80 -p 127.83.9.1:8000:80 busybox true", Podman),
    ("run --rm -p 127.83.9.1:8000:80 -p 127.83.9.1:8000:81 busybox true", Docker(125, "")),
    ("run --rm -p [::1]:8090:80 busybox true", Podman),
    ("run --rm -p [::1]::80 busybox true", Podman),
    ("run --rm -p [::1:8090:80 busybox true", Podman),
    ("run --rm -p 1-3:1-2 busybox true", Docker(125, "")),
    ("run --rm -p 8001-8000:80-81 busybox true", Docker(125, "")),
    ("run --rm -p x:80 busybox true", Podman),
    ("run --rm -p 80:x busybox true", Podman),
    ("run --rm -p 80:80:80:80 busybox true", Podman),
    ("run --rm -p 127.0.0.1:80 busybox true", Podman),
    ("run --rm -p nohost:80:80 busybox true", Podman),
    ("run --rm -p 192.0.2.77:8000:80 busybox true", Docker(125, "")),
    ("run --rm -p 80/nosuch busybox true", Podman),
    ("run --rm -p 70000 busybox true", Podman),
    ("run --rm -p 0:80 busybox true", Docker(0, "")),
    ("run --rm -p 80:0 busybox true", Podman),
    // Podman publishes nothing.
    ("run --rm -p '' busybox true", Docker(125, "")),
    ("run --rm --network none -p 80 busybox true", Docker(0, "")),
    ("run --rm --network host -p 80 busybox true", Podman),
    ("run --rm --expose 80 busybox true", Podman),
    ("run --rm --expose 80-82/udp busybox true", Podman),
    ("run --rm --expose x busybox true", Podman),
    ("run --rm --expose 82-80 busybox true", Podman),
    ("run --rm --expose 80:80 busybox true", Podman),
    ("run -d --name pp -P --expose 7000-7001 --expose 7000/udp busybox sleep 1000", Podman),
    ("inspect -f '{{len .NetworkSettings.Ports}}' pp", Podman),
    ("inspect -f '{{range $port, $binding := .NetworkSettings.Ports}}{{$port}} {{end}}' pp", Podman),
    ("port pp 9999", Docker(1, "")),
    ("port pp x", Docker(1, "")),
    ("port nosuch", Docker(1, "")),
    ("ps --filter network=nosuch --format '{{.Names}}'", Podman),
    ("rm -f pp", Docker(0, "pp\n")),
    ("create --name ee --expose 80 -p 127.83.9.1:8000:80 busybox true", Podman),
    ("port ee", Docker(0, "")),
    ("ps -a --filter name=ee --format '[{{.Ports}}]'", Docker(0, "[]\n")),
    (
        "inspect -f '{{range $p, $b := .HostConfig.PortBindings}}{{$p}} {{(index $b 0).HostIp}} {{(index $b 0).HostPort}}{{end}}' ee",
        // Podman's templates know Go's names only.
        Docker(0, "80/tcp 127.83.9.1 8000\n"),
    ),
    (
        "inspect -f '[{{.NetworkSettings.IPAddress}}] {{.NetworkSettings.IPPrefixLen}} [{{.NetworkSettings.Gateway}}]' ee",
        Podman,
    ),
    ("rm ee", Podman),
    ("run --rm --network nosuch busybox true", Podman),
    ("run --rm --network container:nosuch busybox true", Podman),
    ("run --rm --network container: busybox true", Podman),
    ("run --rm --network none busybox sh -c 'ip -o link | wc -l'", Podman),
    ("run --rm --network host busybox sh -c 'test -e /sys/class/net/lo && echo there'", Podman),
    ("run --rm --net none busybox ls /sys/class/net", Podman),
    ("run --rm --dns x busybox true", Podman),
    ("run --rm --dns 192.0.2.7 --dns 192.0.2.8 busybox grep nameserver /etc/resolv.conf", Podman),
    ("run --rm --dns 2001:db8::7 busybox grep nameserver /etc/resolv.conf", Podman),
    (
        "run --rm --dns 192.0.2.7 --dns-search a.example --dns-search b.example busybox grep search /etc/resolv.conf",
        Podman,
    ),
    ("run --rm --dns 192.0.2.7 --dns-search . busybox grep -c search /etc/resolv.conf", Podman),
    (
        "run --rm --dns 192.0.2.7 --dns-option ndots:3 --dns-option rotate busybox grep options /etc/resolv.conf",
        Podman,
    ),
    ("run --rm --dns-search 'a b' busybox true", Docker(125, "")),
    ("run --rm --add-host a:192.0.2.1 --add-host a:2001:db8::1 busybox grep -w a /etc/hosts", Podman),
    ("run --rm --add-host a:nosuch busybox true", Podman),
    ("run --rm --add-host a busybox true", Podman),
    ("run --rm --add-host gw:host-gateway busybox grep -cw gw /etc/hosts", Docker(0, "1\n")),
    (
        "run --rm --hostname box --domainname example.org busybox sh -c 'hostname; cat /proc/sys/kernel/domainname'",
        Docker(0, "box\nexample.org\n"),
    ),
    ("run --rm --hostname box.example.org busybox sh -c 'hostname; hostname -s'", Podman),
    ("network ls -q --filter name=nosuch", Podman),
    ("network inspect nosuch", Docker(1, "[]\n")),
    ("network rm nosuch", Docker(1, "")),
];

/// Images by their verbs, and filters of all listings. Podman writes `localhost/` before names.
const IMAGES: [(&str, Answer); 57] = [
    // Podman shows all names of an image that has this one.
    ("images --format '{{.Tag}}' busybox:1", Docker(0, "1\n")),
    ("images -q nosuch", Podman),
    ("images nosuch", Docker(0, "REPOSITORY   TAG       IMAGE ID   CREATED   SIZE\n")),
    ("images --filter nosuch=1", Docker(1, "")),
    ("images --filter dangling=maybe", Docker(1, "")),
    ("images --filter dangling", Docker(125, "")),
    ("images --filter before=nosuch", Docker(1, "")),
    ("images --filter label=org.example.kind --format '{{.Tag}}'", Podman),
    ("images --filter label=org.example.kind=nosuch -q", Podman),
    ("images --filter reference=busybox:1 --format '{{.Tag}}'", Docker(0, "1\n")),
    ("images --filter 'reference=busy*:1' --format '{{.Repository}}'", Docker(0, "busybox\n")),
    ("images --filter dangling=true -q", Podman),
    ("image prune -f", Docker(0, "Total reclaimed space: 0B\n")),
    ("images --format '{{.Nope}}'", Docker(1, "")),
    ("images busybox extra", Docker(1, "")),
    ("image ls --no-trunc -q busybox:1", Podman),
    ("tag busybox par:1", Podman),
    ("tag busybox", Docker(1, "")),
    ("tag busybox 'BAD NAME'", Docker(1, "")),
    (
        "tag busybox par@sha256:0000000000000000000000000000000000000000000000000000000000000000",
        Docker(1, ""),
    ),
    ("image inspect -f '{{len .RootFS.Layers}} {{.RootFS.Type}}' par:1", Podman),
    ("image inspect -f '{{.RepoTags}}' par:1", Docker(0, "[busybox:1 busybox:latest par:1]\n")),
    ("history nosuch", Docker(1, "")),
    ("save nosuch", Docker(1, "")),
    ("load -i nosuch.tar", Docker(1, "")),
    ("import nosuch.tar", Docker(1, "")),
    ("rmi", Docker(1, "")),
    ("rmi par:1", Docker(0, "Untagged: par:1\n")),
    ("rmi -f par:1", Docker(0, "")),
    ("create --name used label", Podman),
    ("ps -a --format '{{.Image}}'", Docker(0, "label\n")),
    ("rmi label", Docker(1, "")),
    ("commit used made:1", Docker(0, "sha256:<id>\n")),
    ("commit used 'BAD NAME'", Docker(1, "")),
    ("commit -c 'FROM x' used", Docker(1, "")),
    ("history --format '{{.CreatedBy}}' made:1", Docker(0, "sh\n")),
    ("rmi made:1", Docker(0, "Untagged: made:1\nDeleted: sha256:<id>\n")),
    ("rmi -f label", Docker(0, "Untagged: label:latest\nDeleted: sha256:<id>\n")),
    ("ps -a --format '{{.Image}}'", Docker(0, "<id>\n")),
    ("rm used", Docker(0, "used\n")),
    ("image prune -f --filter nosuch=1", Docker(1, "")),
    ("system df --format '{{.Type}}'", Docker(0, "Images\nContainers\nLocal Volumes\nBuild Cache\n")),
    ("volume ls --filter dangling=maybe", Docker(1, "")),
    ("volume ls --filter nosuch=1", Docker(1, "")),
    ("network ls --filter nosuch=1", Docker(1, "")),
    ("network ls --format '{{.Name}}' --filter 'name=^h.st$'", Docker(0, "host\n")),
    ("network ls --format '{{.Name}}' --filter label=a", Docker(0, "")),
    ("network ls --format '{{.Name}}' --filter dangling=true", Docker(0, "")),
    ("network ls --filter dangling=x", Docker(1, "")),
    ("network ls --filter type=x", Docker(1, "")),
    ("network prune -f --filter until=x", Docker(1, "")),
    ("images --filter 'reference=['", Docker(1, "")),
    ("images --format '{{.Tag}}' --filter 'reference=b?sybox:1'", Docker(0, "1\n")),
    ("events --until 0s --filter plugin=x", Docker(0, "")),
    ("events --until 0s --filter nosuch=x", Docker(1, "")),
    ("network ls -q --filter driver=nosuch", Docker(0, "")),
    ("ps --filter name", Docker(125, "")),
];

#[test]
fn podman_and_hostel_answer_alike() {
    compare("first", &ROWS);
}

#[test]
fn flags_of_run_are_podmans() {
    compare("run", &RUN);
}

#[test]
fn a_life_is_podmans() {
    compare("life", &LIFE);
}

#[test]
fn volumes_and_images_are_podmans() {
    compare("things", &THINGS);
}

#[test]
fn the_network_is_podmans() {
    compare("net", &NET);
}

#[test]
fn images_are_podmans_or_dockers() {
    compare("images", &IMAGES);
}

/// Runs the rows by both; `name` keeps podman's store of a table apart from the others.
fn compare(name: &str, rows: &[(&str, Answer)]) {
    let Some(h) = Hostel::new() else { return };
    let Some(podman) = Peer::new(&h, name) else { return };
    let mut wrong = Vec::new();
    for (line, answer) in rows {
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
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
}

/// Podman with a store of its own and settings that work where the caller owns no cgroup.
struct Peer {
    config: String,
    runtime: String,
    arguments: Vec<String>,
}

impl Peer {
    fn new(h: &Hostel, name: &str) -> Option<Self> {
        if output(Command::new("podman").arg("--version")).is_err() {
            skip("podman is not installed");
            return None;
        }
        let archive = fixtures::busybox_archive()?;
        let place = fixtures::dir().join("podman").join(name);
        fs::create_dir_all(&place).unwrap();
        // podman wants the file where it is told to look for it.
        fs::create_dir_all(h.place("docker")).unwrap();
        fs::write(h.place("docker/config.json"), "{}").unwrap();
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
        for line in [&*format!("load -q -i {}", archive.display()), "run --rm busybox true"] {
            let done = peer.run(h, line);
            if done.exit_code() != 0 {
                // Its pause process is there already.
                peer.clear(h);
                skip(&format!("podman does not work here: {line}: {}", done.stderr));
                return None;
            }
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
