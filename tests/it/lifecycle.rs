//! A container's life: create, start, stop, kill, exec, logs, wait, inspect, ps, rm, prune; volumes.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::harness::{Hostel, eventually};

/// A container that says `up`, and ends with 5 on SIGTERM.
const LOOP: &str = "busybox sh -c 'trap \"exit 5\" TERM; echo up; while :; do sleep 0.05; done'";

#[test]
fn create_start_wait_rm() {
    let Some(h) = Hostel::new() else { return };
    let id = h.run("create --name one busybox sh -c 'echo said; exit 3'").ok().out();
    assert_eq!(id.len(), 64);
    h.run("ps -a --format '{{.ID}} {{.Names}} {{.Status}}'")
        .ok()
        .stdout(&format!("{} one Created\n", &id[..12]));
    h.run("ps -q").ok().stdout("");
    h.run("start one").ok().stdout("one\n");
    h.run("wait one").ok().stdout("3\n");
    h.run("logs one").ok().stdout("said\n");
    h.run("ps -a --format '{{.State}}'").ok().stdout("exited\n");
    h.run("ps -a --format '{{.Status}}'").ok().has("Exited (3) ");
    h.run("start -a one").code(3).stdout("said\n");
    h.run("rm one").ok().stdout("one\n");
    h.run("rm one").fails(1, &["one", "No such container"]);
    h.run("rm -f one").stderr_has("No such container");
}

#[test]
fn ids_can_be_shortened() {
    let Some(h) = Hostel::new() else { return };
    let id = h.detached(&format!("--name named {LOOP}"));
    h.run(&format!("inspect -f '{{{{.Id}}}}' {}", &id[..6])).ok().stdout(&format!("{id}\n"));
    h.run(&format!("stop {}", &id[..12])).ok().stdout(&format!("{}\n", &id[..12]));
    h.run(&format!("rm {}", &id[..4])).ok();
    h.run("stop nosuch").fails(1, &["nosuch", "No such container"]);
}

#[test]
fn an_ambiguous_prefix_is_refused() {
    let Some(h) = Hostel::new() else { return };
    // 17 ids: two of them begin with the same digit.
    let ids: Vec<_> = (0..17).map(|_| h.run("create busybox true").ok().out()).collect();
    let first = |digit: char| ids.iter().filter(|id| id.starts_with(digit)).count();
    let digit = "0123456789abcdef".chars().find(|digit| first(*digit) > 1).unwrap();
    h.run(&format!("rm {digit}")).fails(1, &[&digit.to_string()]);
    assert_eq!(h.run("ps -aq").ok().stdout.lines().count(), 17);
}

#[test]
fn a_stopped_container_keeps_its_files() {
    let Some(h) = Hostel::new() else { return };
    h.run("create --name keep busybox sh -c 'cat /kept; echo line >> /kept'").ok();
    h.run("start -a keep").ok().stdout("");
    h.run("start -a keep").ok().stdout("line\n");
    h.run("start -a keep").ok().stdout("line\nline\n");
}

#[test]
fn stop_sends_the_signal_and_then_kills() {
    let Some(h) = Hostel::new() else { return };
    let ended_with = |name: &str| h.run(&format!("inspect -f '{{{{.State.ExitCode}}}}' {name}")).ok().out();
    h.detached(&format!("--name polite {LOOP}"));
    h.wait_for_log("polite", "up");
    h.run("stop polite").ok().stdout("polite\n");
    assert_eq!(ended_with("polite"), "5");
    h.run("stop polite").ok().stdout("polite\n");

    h.detached("--name deaf busybox sh -c 'trap \"\" TERM; echo up; while :; do sleep 0.05; done'");
    h.wait_for_log("deaf", "up");
    h.run("stop -t 1 deaf").ok();
    assert_eq!(ended_with("deaf"), "137");

    h.detached("--name image stopsignal");
    h.wait_for_log("image", "ready");
    h.run("stop image").ok();
    assert_eq!(ended_with("image"), "7");
    h.run("logs image").ok().stdout("ready\ngot USR1\n");

    h.detached("--name flag --stop-signal HUP --stop-timeout 30 busybox sh -c 'trap \"exit 6\" HUP; echo up; while :; do sleep 0.05; done'");
    h.wait_for_log("flag", "up");
    h.run("stop flag").ok();
    assert_eq!(ended_with("flag"), "6");
}

#[test]
fn kill_sends_any_signal() {
    let Some(h) = Hostel::new() else { return };
    h.detached("--name kk busybox sh -c 'trap \"echo usr1\" USR1; echo up; while :; do sleep 0.05; done'");
    h.wait_for_log("kk", "up");
    h.run("kill -s USR1 kk").ok().stdout("kk\n");
    h.wait_for_log("kk", "usr1");
    h.run("kill kk").ok().stdout("kk\n");
    h.run("wait kk").ok().stdout("137\n");
    h.run("kill kk").fails(1, &["kk", "not running"]);
    h.run("kill -s NOSUCH kk").fails(1, &["NOSUCH"]);
}

#[test]
fn rm_of_a_running_container_needs_force() {
    let Some(h) = Hostel::new() else { return };
    h.detached(&format!("--name rr {LOOP}"));
    h.run("rm rr").fails(1, &["rr", "running"]);
    h.run("rm -f rr").ok().stdout("rr\n");
    h.run("ps -a -q").ok().stdout("");
}

#[test]
fn ps_has_dockers_columns_and_filters() {
    let Some(h) = Hostel::new() else { return };
    h.detached(&format!("--name running {LOOP}"));
    h.run("run --name done busybox true").ok();
    h.run("create --name made busybox true").ok();
    let table = h.run("ps").ok().out();
    let head: Vec<_> =
        table.lines().next().unwrap().split("  ").map(str::trim).filter(|word| !word.is_empty()).collect();
    assert_eq!(head, ["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"]);
    assert_eq!(table.lines().count(), 2);
    let names = |flags: &str| {
        let out = h.run(&format!("ps {flags} --format '{{{{.Names}}}}'")).ok().out();
        let mut names: Vec<_> = out.lines().map(str::to_owned).collect();
        names.sort();
        names.join(" ")
    };
    assert_eq!(names(""), "running");
    assert_eq!(names("-a"), "done made running");
    assert_eq!(names("-a -f status=exited"), "done");
    assert_eq!(names("-a -f status=created"), "made");
    assert_eq!(names("-f name=run"), "running");
    assert_eq!(names("-a -f name=done -f name=made"), "done made");
    assert_eq!(names("-a -f exited=0"), "done");
    assert_eq!(names("-a -f ancestor=busybox"), "done made running");
    h.run("ps -a -f nosuch=1").fails(1, &["nosuch"]);
    let json = h.run("ps --format json").ok().out();
    let row: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&row["Names"], &row["State"], &row["Image"]),
        (&"running".into(), &"running".into(), &"busybox".into())
    );
    assert_eq!(h.run("ps -q --no-trunc").ok().out().len(), 64);
    assert_eq!(h.run("ps -q").ok().out().len(), 12);
}

#[test]
fn exec_runs_beside_the_command() {
    let Some(h) = Hostel::new() else { return };
    h.detached(&format!("--name ee -e FROM_RUN=1 -w /tmp {LOOP}"));
    h.run("exec ee sh -c 'echo $FROM_RUN $(pwd)'").ok().stdout("1 /tmp\n");
    h.run("exec -e A=b -w /etc ee sh -c 'echo $A $(pwd)'").ok().stdout("b /etc\n");
    h.run("exec ee sh -c 'echo out; echo err >&2; exit 9'").code(9).stdout("out\n").stderr("err\n");
    h.cmd("exec -i ee cat").stdin("through\n").run().ok().stdout("through\n");
    h.cmd("exec ee cat").stdin("through\n").run().ok().stdout("");
    h.run("exec ee nosuch").code(127);
    h.run("exec ee /etc/not-executable").code(126);
    h.run("exec -d ee touch /from-exec").ok().stdout("");
    eventually("the detached exec ran", || h.run("exec ee ls /from-exec").exit_code() == 0);
    assert_ne!(h.run("exec -u nosuch ee true").stderr_has("nosuch").exit_code(), 0);
    h.run("kill ee").ok();
    h.run("wait ee").ok();
    h.run("exec ee true").fails(1, &["is not running"]);
    h.run("exec nosuch true").fails(1, &["nosuch", "No such container"]);
}

#[test]
fn exec_has_the_containers_confinement() {
    let Some(h) = Hostel::new() else { return };
    h.detached(&format!("--name ee {LOOP}"));
    let status = "grep -E '^(CapEff|CapBnd|Seccomp|NoNewPrivs):' /proc/self/status";
    let inside = h.run(&format!("run --rm busybox {status}")).ok().out();
    h.run(&format!("exec ee {status}")).ok().stdout(&format!("{inside}\n"));
    for name in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        let first = h.run(&format!("exec ee readlink /proc/1/ns/{name}")).ok().out();
        h.run(&format!("exec ee readlink /proc/self/ns/{name}")).ok().stdout(&format!("{first}\n"));
    }
}

#[test]
fn a_stopped_exec_client_does_not_hold_up_stop() {
    let Some(h) = Hostel::new() else { return };
    h.detached(&format!("--name held {LOOP}"));
    let client = h.cmd("exec held sh -c 'echo in; sleep 100'").spawn();
    client.wait_for("in");
    client.signal(Signal::SIGSTOP);
    h.cmd("stop -t 2 held").limit(Duration::from_secs(20)).run().ok().stdout("held\n");
    client.signal(Signal::SIGCONT);
    client.wait().code(137);
}

#[test]
fn an_exec_outlives_its_killed_client() {
    let Some(h) = Hostel::new() else { return };
    h.detached(&format!("--name held {LOOP}"));
    let client = h.cmd("exec held sh -c 'echo in; sleep 0.5; touch /outlived; sleep 100'").spawn();
    client.wait_for("in");
    client.signal(Signal::SIGKILL);
    client.wait().code(137);
    eventually("the exec went on", || h.run("exec held ls /outlived").exit_code() == 0);
    h.run("stop held").ok();
}

#[test]
fn logs_can_be_cut_followed_and_stamped() {
    let Some(h) = Hostel::new() else { return };
    h.run("run --name ll busybox sh -c 'for i in 1 2 3 4; do echo $i; done; echo err >&2'").ok();
    h.run("logs ll").ok().stdout("1\n2\n3\n4\n").stderr("err\n");
    h.run("logs --tail 1 ll").ok();
    h.run("logs -n 0 ll").ok().stdout("").stderr("");
    let stamped = h.run("logs -t ll").ok().out();
    let first = stamped.lines().next().unwrap();
    assert!(first.len() > 30 && first.ends_with("Z 1") && first.contains('T'), "{first}");
    h.detached("--name ff busybox sh -c 'echo a; sleep 0.3; echo b; sleep 0.3; echo c'");
    h.run("logs -f ff").ok().stdout("a\nb\nc\n");
    h.run("logs nosuch").fails(1, &["nosuch", "No such container"]);
}

#[test]
fn output_without_a_last_newline_is_kept() {
    let Some(h) = Hostel::new() else { return };
    h.run("run --name pp busybox printf 'no end'").ok().stdout("no end");
    h.run("logs pp").ok().stdout("no end");
    h.run("run --name bb busybox sh -c 'printf \"\\000\\377\\001\" | od -An -tx1'")
        .ok()
        .stdout(" 00 ff 01\n");
}

#[test]
fn wait_prints_codes_in_order() {
    let Some(h) = Hostel::new() else { return };
    h.detached("--name w1 busybox sh -c 'sleep 0.3; exit 1'");
    h.detached("--name w2 busybox sh -c 'exit 2'");
    h.run("wait w1 w2").ok().stdout("1\n2\n");
    h.run("wait nosuch").fails(1, &["nosuch"]);
}

#[test]
fn inspect_tells_the_truth() {
    let Some(h) = Hostel::new() else { return };
    let id = h.detached(&format!("--name ii -e A=1 --hostname hh -p 127.0.0.1::80 {LOOP}"));
    let text = h.run("inspect ii").ok().out();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let value = &value[0];
    assert_eq!(value["Id"], id.as_str());
    assert_eq!(value["Name"], "/ii");
    assert_eq!(value["State"]["Status"], "running");
    assert_eq!(value["State"]["Running"], true);
    assert_eq!(value["Config"]["Image"], "busybox");
    assert_eq!(value["Config"]["Hostname"], "hh");
    assert_eq!(value["Path"], "sh");
    assert!(value["Config"]["Env"].as_array().unwrap().contains(&"A=1".into()));
    let pid = value["State"]["Pid"].as_i64().unwrap();
    assert!(std::path::Path::new(&format!("/proc/{pid}")).exists());
    let port = value["NetworkSettings"]["Ports"]["80/tcp"][0]["HostPort"].as_str().unwrap().to_owned();
    h.run("port ii 80/tcp").stdout(&format!("127.0.0.1:{port}\n"));
    h.run("inspect --format '{{.State.Status}} {{json .Config.Cmd}}' ii").ok().has("running [\"sh\",\"-c\",");
    h.run("inspect nosuch").code(1).stderr_has("nosuch");
}

#[test]
fn prune_removes_what_has_ended() {
    let Some(h) = Hostel::new() else { return };
    h.detached(&format!("--name stays {LOOP}"));
    let ended = h.detached("--name ended busybox true");
    h.run("wait ended").ok();
    h.run("container prune -f").ok().has(&ended).has("Total reclaimed space: ");
    h.run("ps -a --format '{{.Names}}'").ok().stdout("stays\n");
    h.run("container prune -f").ok().lacks(&ended);
    h.run("container ls -q").ok();
}

#[test]
fn volumes_have_a_life_of_their_own() {
    let Some(h) = Hostel::new() else { return };
    h.run("volume create v1").ok().stdout("v1\n");
    h.run("volume create v1").ok().stdout("v1\n");
    h.run("volume ls").ok().has("DRIVER").has("VOLUME NAME").has("v1");
    h.run("run --name user -v v1:/d busybox true").ok();
    h.run("volume rm v1").fails(1, &["v1", "in use"]);
    h.run("rm user").ok();
    h.run("volume create v2").ok();
    h.run("volume rm v1").ok().stdout("v1\n");
    h.run("volume rm v1").fails(1, &["v1", "no such volume"]);
    let anonymous = h.run("volume create").ok().out();
    assert_eq!(anonymous.len(), 64);
    // As in Docker since 23: without --all only anonymous volumes go.
    h.run("volume prune -f").ok().has(&anonymous).lacks("v2");
    h.run("volume prune -f -a").ok().has("v2");
    h.run("volume ls -q").ok().stdout("");
    h.run("volume create 'bad/name'").fails(1, &["bad/name"]);
}

#[test]
fn version_and_info() {
    let h = Hostel::empty();
    h.run("version").ok().has(env!("CARGO_PKG_VERSION"));
    h.run("version --format '{{.Client.Version}}'").ok().stdout(concat!(env!("CARGO_PKG_VERSION"), "\n"));
    h.run("--version").ok().has(env!("CARGO_PKG_VERSION"));
    let info: serde_json::Value = serde_json::from_str(&h.run("info --format json").ok().out()).unwrap();
    assert_eq!(info["Containers"], 0);
    h.run("info").ok().has(&h.root().to_string_lossy());
    h.run("--help").ok().has("run");
    h.run("help").ok().has("run");
    h.run("run --help").ok().has("--publish");
    h.run("nosuchverb").code(1).stderr_has("nosuchverb");
}

#[test]
fn the_store_can_be_elsewhere() {
    let h = Hostel::empty();
    let other = h.scratch("other-store");
    let h = h.global(&format!("--root {} --log-level error", other.display()));
    h.run("volume create here").ok();
    assert!(other.join("volumes/here").exists());
    h.run("volume rm here").ok();
}

#[test]
fn twenty_at_once() {
    let Some(h) = Hostel::new() else { return };
    let clients: Vec<_> = (0..20)
        .map(|i| h.cmd(&format!("run --rm --name n{i} busybox sh -c 'sleep 0.5; echo {i}'")).spawn())
        .collect();
    for (i, client) in clients.into_iter().enumerate() {
        client.wait().ok().stdout(&format!("{i}\n"));
    }
    for i in 0..20 {
        h.detached(&format!("--name d{i} {LOOP}"));
    }
    assert_eq!(h.run("ps -q").ok().stdout.lines().count(), 20);
    let names: Vec<_> = (0..20).map(|i| format!("d{i}")).collect();
    h.run(&format!("kill {}", names.join(" "))).ok();
    h.run(&format!("wait {}", names.join(" "))).ok();
    h.run(&format!("rm {}", names.join(" "))).ok();
}
