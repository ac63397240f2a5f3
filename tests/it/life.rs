//! What keeps a container alive and tells of it: restart policies, health checks, events, pause, the log's
//! files, and the verbs that look inside.

use serde_json::Value;

use crate::harness::{Hostel, eventually, has_subordinate_ids};

const SLEEP: &str = "busybox sleep 1000";

fn status(h: &Hostel, name: &str) -> String {
    h.run(&format!("ps -a -f name={name} --format '{{{{.Status}}}}'")).ok().out()
}

fn field(h: &Hostel, name: &str, field: &str) -> String {
    h.run(&format!("inspect -f '{{{{{field}}}}}' {name}")).ok().out()
}

#[test]
fn on_failure_restarts_so_many_times() {
    let Some(h) = Hostel::new() else { return };
    h.detached("--name rr --restart on-failure:2 busybox sh -c 'echo life >> /lives; cat /lives; exit 3'");
    eventually("it has given up", || field(&h, "rr", ".State.Status") == "exited");
    assert_eq!(
        (field(&h, "rr", ".RestartCount"), field(&h, "rr", ".State.ExitCode")),
        ("2".into(), "3".into())
    );
    h.run("logs rr").ok().stdout("life\nlife\nlife\nlife\nlife\nlife\n");
    assert_eq!(field(&h, "rr", ".HostConfig.RestartPolicy.Name"), "on-failure");
    // Started by hand it begins to count anew.
    h.run("start rr").ok();
    eventually("it has given up again", || field(&h, "rr", ".State.Status") == "exited");
    assert_eq!(field(&h, "rr", ".RestartCount"), "2");
    h.run("run --rm --restart always busybox true").fails(125, &["--restart and --rm"]);
}

#[test]
fn a_success_ends_on_failure_and_stop_ends_always() {
    let Some(h) = Hostel::new() else { return };
    h.detached("--name done --restart on-failure busybox true");
    h.run("wait done").ok().stdout("0\n");
    assert_eq!(field(&h, "done", ".State.Status"), "exited");
    h.detached(&format!("--name up --restart always -p 127.0.0.1::80 {SLEEP}"));
    let pid = field(&h, "up", ".State.Pid");
    // From inside pid 1 cannot be killed.
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid.parse().unwrap()),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    eventually("it runs again", || {
        let now = field(&h, "up", ".State.Pid");
        now != "0" && now != pid
    });
    assert_eq!(field(&h, "up", ".RestartCount"), "1");
    h.run("exec up true").ok();
    h.run("port up 80").ok().has("127.0.0.1:");
    h.run("stop -t 0 up").ok();
    assert_eq!(field(&h, "up", ".State.Status"), "exited");
    h.run("rm up").ok();
}

#[test]
fn between_two_lives_it_is_restarting() {
    let Some(h) = Hostel::new() else { return };
    h.detached("--name flap --restart always busybox sh -c 'exit 9'");
    // The waits double: soon one is long enough to be met.
    eventually("it waits", || field(&h, "flap", ".RestartCount").parse::<u32>().unwrap() >= 4);
    eventually("it is seen waiting", || status(&h, "flap").starts_with("Restarting (9) "));
    h.run("ps --format '{{.Names}} {{.State}}'").ok().stdout("flap restarting\n");
    h.run("exec flap true").fails(1, &["is restarting, wait until the container is running"]);
    h.run("rm flap").fails(1, &["container is restarting"]);
    h.run("start flap").ok();
    h.run("stop flap").ok().stdout("flap\n");
    assert_eq!(field(&h, "flap", ".State.Status"), "exited");
    h.run("update --restart no flap").ok().stdout("flap\n");
    assert_eq!(field(&h, "flap", ".HostConfig.RestartPolicy.Name"), "no");
    h.run("update flap").fails(1, &["one or more flags"]);
    h.run("update --restart maybe flap").fails(1, &["unknown policy 'maybe'"]);
}

#[test]
fn a_changed_policy_counts_at_the_next_end() {
    let Some(h) = Hostel::new() else { return };
    h.detached(&format!("--name uu {SLEEP}"));
    h.run("update --restart on-failure:1 uu").ok();
    h.run("rename uu vv").ok();
    let pid = field(&h, "vv", ".State.Pid");
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid.parse().unwrap()),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    eventually("it runs again", || field(&h, "vv", ".RestartCount") == "1");
    eventually("it runs again", || field(&h, "vv", ".State.Status") == "running");
    h.run("kill vv").ok();
    h.run("wait vv").ok().stdout("137\n");
    assert_eq!(field(&h, "vv", ".State.Status"), "exited");
}

#[test]
fn start_all_starts_what_a_reboot_has_ended() {
    let Some(h) = Hostel::new() else { return };
    h.detached(&format!("--name crashed --restart unless-stopped {SLEEP}"));
    h.detached(&format!("--name stopped --restart unless-stopped {SLEEP}"));
    h.detached(&format!("--name always --restart always {SLEEP}"));
    h.run("create --name never --restart always busybox true").ok();
    h.run("stop -t 0 stopped always").ok();
    // As a power cut leaves it: no keeper, no exit.
    let state = std::fs::read_to_string(
        h.root().join("containers").join(field(&h, "crashed", ".Id")).join("state.json"),
    )
    .unwrap();
    let state: Value = serde_json::from_str(&state).unwrap();
    let keeper = i32::try_from(state["keeper_pid"].as_i64().unwrap()).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(keeper), nix::sys::signal::Signal::SIGKILL).unwrap();
    eventually("its end was found out", || status(&h, "crashed").starts_with("Exited (137)"));
    h.run("system start-all --dry-run").ok().stdout("crashed\nalways\n");
    h.run("system start-all").ok().stdout("crashed\nalways\n");
    h.run("system start-all").ok().stdout("");
    assert_eq!(field(&h, "crashed", ".State.Status"), "running");
    h.run("generate systemd").ok().has("system start-all").has("WantedBy=default.target");
    h.run("generate systemd always").ok().has("# container-always.service").has(" stop always\n");
    h.run("generate systemd nosuch").fails(1, &["No such container"]);
    h.run("kill crashed always").ok();
}

#[test]
fn checks_make_a_container_healthy_and_unhealthy() {
    let Some(h) = Hostel::new() else { return };
    h.detached(&format!(
        "--name hh --health-cmd 'echo looked; test ! -e /ill' --health-interval 100ms --health-retries 2 {SLEEP}"
    ));
    h.run("wait --condition healthy hh").ok();
    assert!(status(&h, "hh").ends_with(" (healthy)"), "{}", status(&h, "hh"));
    h.run("ps -f health=healthy --format '{{.Names}}'").ok().stdout("hh\n");
    h.run("exec hh touch /ill").ok();
    h.run("wait --condition unhealthy hh").ok();
    assert!(status(&h, "hh").ends_with(" (unhealthy)"));
    eventually("five results are kept", || {
        let health: Value = serde_json::from_str(&field(&h, "hh", "json .State.Health")).unwrap();
        let log = health["Log"].as_array().unwrap();
        log.len() == 5 && log[4]["ExitCode"] == 1 && log[4]["Output"] == "looked\n"
    });
    assert_eq!(
        field(&h, "hh", "json .Config.Healthcheck.Test"),
        "[\"CMD-SHELL\",\"echo looked; test ! -e /ill\"]"
    );
    h.run("exec hh rm /ill").ok();
    h.run("wait --condition healthy hh").ok();
    h.run("stop -t 0 hh").ok();
    let events =
        h.run("events --since 1h --until 0s --filter container=hh --format '{{.Action}}'").ok().out();
    let seen: Vec<_> = events.lines().filter(|line| line.starts_with("health_status")).collect();
    assert_eq!(
        seen,
        ["health_status: healthy", "health_status: unhealthy", "health_status: healthy"],
        "{events}"
    );
}

#[test]
fn a_check_that_hangs_is_killed_and_told() {
    let Some(h) = Hostel::new() else { return };
    h.detached(&format!(
        "--name slow --health-cmd 'sleep 100' --health-interval 50ms --health-timeout 200ms --health-retries 1 {SLEEP}"
    ));
    h.run("wait --condition unhealthy slow").ok();
    let health: Value = serde_json::from_str(&field(&h, "slow", "json .State.Health")).unwrap();
    assert_eq!(health["Log"][0]["ExitCode"], -1);
    assert!(health["Log"][0]["Output"].as_str().unwrap().starts_with("Health check exceeded timeout (0.2s)"));
    h.run("rm -f slow").ok();
}

#[test]
fn an_image_has_its_own_check() {
    let Some(h) = Hostel::new() else { return };
    h.detached("--name hc healthcheck");
    h.run("wait --condition healthy hc").ok();
    h.run("rm -f hc").ok();
    h.detached("--name none --no-healthcheck healthcheck");
    assert!(!status(&h, "none").contains("health"));
    h.run("rm -f none").ok();
}

#[test]
fn events_are_a_life() {
    let Some(h) = Hostel::new() else { return };
    let follower = h
        .cmd("events --filter type=container --filter event=destroy --format '{{.Actor.Attributes.name}}'")
        .spawn();
    h.run("run --name ev --label tier=web busybox sh -c 'exit 4'").code(4);
    h.run("rename ev ew").ok();
    h.run("rm ew").ok();
    follower.wait_for("ew");
    follower.signal(nix::sys::signal::Signal::SIGINT);
    follower.wait();
    let past = |flags: &str| h.run(&format!("events --since 1h --until 0s {flags}")).ok().out();
    let actions = past("--filter label=tier=web --format '{{.Action}}'");
    assert_eq!(actions.lines().collect::<Vec<_>>(), ["create", "start", "die", "rename", "destroy"]);
    let die: Value = serde_json::from_str(&past("--filter event=die --format json")).unwrap();
    assert_eq!(die["Actor"]["Attributes"]["exitCode"], "4");
    assert_eq!((&die["Type"], &die["status"]), (&"container".into(), &"die".into()));
    let line = past("--filter event=die");
    assert!(line.contains(" container die ") && line.contains("image=busybox, name=ev, tier=web)"), "{line}");
    assert_eq!(past("--filter container=other"), "");
    h.run("events --filter nope=1").fails(1, &["invalid filter 'nope'"]);
    // A writer that was killed in the middle of its line harms no other.
    let journal = h.root().join("events/journal");
    let mut text = std::fs::read(&journal).unwrap();
    text.extend(b"\n{\"time\":\"2024");
    std::fs::write(&journal, text).unwrap();
    h.run("run --rm --name after busybox true").ok();
    assert_eq!(past("--filter container=after --format '{{.Action}}'").lines().count(), 4);
}

#[test]
fn pause_holds_everything_up() {
    let Some(h) = Hostel::new() else { return };
    h.detached("--name pp busybox sh -c 'while :; do echo tick; sleep 0.02; done'");
    h.detached(&format!("--name other {SLEEP}"));
    h.run("exec -d pp sh -c 'while :; do echo x >> /ticks; sleep 0.02; done'").ok();
    h.wait_for_log("pp", "tick");
    h.run("pause pp").ok().stdout("pp\n");
    assert!(status(&h, "pp").ends_with(" (Paused)"));
    assert_eq!(field(&h, "pp", ".State.Status"), "paused");
    h.run("pause pp").fails(1, &["is already paused"]);
    h.run("exec pp true").fails(1, &["is paused, unpause the container before exec"]);
    let states = || {
        let table = h.run("top pp -e -o pid,stat").ok().out();
        table
            .lines()
            .skip(1)
            .map(|line| line.split_whitespace().nth(1).unwrap()[..1].to_owned())
            .collect::<Vec<_>>()
    };
    let held = states();
    // The freezer of a control group leaves no trace here: `a_container_has_a_control_group...` looks at it.
    let stopped = has_controller(&h, "cgroupfs") || held.iter().all(|state| state == "T");
    assert!(held.len() >= 2 && stopped, "{held:?}");
    h.run("unpause pp").ok().stdout("pp\n");
    h.run("unpause pp").fails(1, &["is not paused"]);
    assert!(states().iter().all(|state| state != "T"));
    h.run("pause pp").ok();
    h.run("stop -t 1 pp").ok();
    assert_eq!(field(&h, "pp", ".State.Status"), "exited");
    h.run("pause pp").fails(1, &["is not running"]);
    h.run("kill other").ok();
}

#[test]
fn a_log_has_as_many_files_as_was_asked_for() {
    let Some(h) = Hostel::new() else { return };
    let line = "y".repeat(100);
    h.run(&format!(
        "run --name ll --log-opt max-size=20k --log-opt max-file=3 busybox sh -c 'i=0; while [ $i -lt 2000 ]; do echo $i {line}; i=$((i+1)); done'"
    ))
    .ok();
    let dir = h.root().join("containers").join(field(&h, "ll", ".Id"));
    let mut names: Vec<_> = std::fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("log"))
        .collect();
    names.sort();
    assert_eq!(names, ["log", "log.1", "log.2"]);
    let text = h.run("logs ll").ok().out();
    let numbers: Vec<u32> =
        text.lines().map(|line| line.split(' ').next().unwrap().parse().unwrap()).collect();
    assert_eq!(numbers.last(), Some(&1999));
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "no line is missing in between");
    assert_eq!(h.run("logs -n 2 ll").ok().out().lines().count(), 2);
    h.run("logs --follow --tail 1 ll").ok().stdout(&format!("1999 {line}\n"));
    h.run("run --rm --log-opt max-file=3 busybox true").fails(125, &["max-size must be set"]);
    h.run("run --name lost --log-driver none busybox echo x").ok().stdout("x\n");
    h.run("logs lost").fails(1, &["does not support reading"]);
    h.run("run --name detailed --label a=1 --log-opt labels=a busybox echo x").ok();
    h.run("logs --details detailed").ok().stdout("a=1 x\n");
}

#[test]
fn logs_are_followed_across_restarts() {
    let Some(h) = Hostel::new() else { return };
    h.detached("--name lr --restart on-failure:2 busybox sh -c 'echo again; exit 1'");
    h.run("logs -f lr").ok().stdout("again\nagain\nagain\n");
}

#[test]
fn waiting_for_more_than_the_end() {
    let Some(h) = Hostel::new() else { return };
    h.run("create --name ww busybox sh -c 'sleep 0.3; exit 6'").ok();
    let next = h.cmd("wait --condition next-exit ww").spawn();
    let removed = h.cmd("wait --condition removed ww").spawn();
    let running = h.cmd("wait --condition running ww").spawn();
    h.run("start ww").ok();
    running.wait().ok();
    next.wait().ok().stdout("6\n");
    h.run("rm ww").ok();
    removed.wait().ok().stdout("6\n");
    h.run("wait --ignore ww").ok().stdout("-1\n");
    h.run("wait --condition sometime ww").fails(1, &["invalid condition"]);
}

#[test]
fn top_and_stats_look_inside() {
    let Some(h) = Hostel::new() else { return };
    h.detached("--name ts busybox sh -c 'sleep 1000 & while :; do :; done'");
    eventually("both processes are there", || h.run("top ts").ok().out().lines().count() == 3);
    let table = h.run("top ts").ok().out();
    let head: Vec<_> = table.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(head, ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]);
    assert!(table.contains("sleep 1000"), "{table}");
    h.run("top ts -o ppid").code(1);
    if has_subordinate_ids() {
        h.detached("--name other -u 1234 --network none busybox sleep 1000");
        h.run("top other").ok().has("sleep 1000");
        h.run("rm -f other").ok();
    }
    let json = h.run("stats --no-stream --format json ts").ok().out();
    let row: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&row["Name"], &row["PIDs"]), (&"ts".into(), &"2".into()));
    let percent: f64 = row["CPUPerc"].as_str().unwrap().trim_end_matches('%').parse().unwrap();
    assert!(percent > 1.0, "{json}");
    assert!(!row["MemUsage"].as_str().unwrap().starts_with("0B"), "{json}");
    let head = h.run("stats --no-stream").ok().out();
    assert!(head.starts_with("CONTAINER ID   NAME"), "{head}");
    h.run("stats --no-stream nosuch").fails(1, &["No such container"]);
    h.run("rm -f ts").ok();
    h.run("top ts").fails(1, &["No such container"]);
}

#[test]
fn volumes_come_from_another_container() {
    let Some(h) = Hostel::new() else { return };
    let bound = h.scratch("bound");
    std::fs::write(bound.join("file"), "bound\n").unwrap();
    h.run(&format!(
        "create --name from -v named:/named --mount type=volume,dst=/anonymous,readonly -v {}:/bound busybox true",
        bound.display()
    ))
    .ok();
    h.run(
        "run --rm --volumes-from from busybox sh -c 'echo x > /named/f; cat /bound/file; touch /anonymous/f'",
    )
    .code(1)
    .stdout("bound\n")
    .stderr_has("Read-only");
    h.run("run --rm --volumes-from from:ro busybox sh -c 'cat /named/f; touch /named/g'")
        .code(1)
        .stdout("x\n");
    // A mount of one's own goes before.
    h.run("run --rm --volumes-from from --tmpfs /named busybox ls /named").ok().stdout("");
    h.run("run --name chain --volumes-from from busybox true").ok();
    h.run("run --rm --volumes-from chain busybox cat /named/f").ok().stdout("x\n");
    assert_eq!(field(&h, "chain", "json .HostConfig.VolumesFrom"), "[\"from\"]");
    h.run("rm -v from").ok();
    assert_eq!(h.run("volume ls -q").ok().out().lines().count(), 2, "chain still uses both");
    h.run("run --rm --volumes-from nosuch busybox true").fails(125, &["No such container"]);
    h.run("run --rm --volumes-from chain:no busybox true").fails(125, &["invalid mode for volumes-from"]);
}

#[test]
fn doctor_says_what_works() {
    let h = Hostel::empty();
    let text = h.run("doctor").ok().out();
    for subject in ["user namespaces", "user ids", "file system", "network", "store", "limits", "ports"] {
        assert!(text.contains(subject), "{text}");
    }
    let json: Value = serde_json::from_str(&h.run("doctor --format json").ok().out()).unwrap();
    assert_eq!((&json[0]["subject"], &json[0]["verdict"]), (&"user namespaces".into(), &"ok".into()));
}

/// Whether a control group is delegated to this run, and with this controller.
fn has_controller(h: &Hostel, controller: &str) -> bool {
    h.run("info -f '{{.CgroupDriver}} {{.Hostel.Limits}}'").ok().out().contains(controller)
}

#[test]
fn a_container_has_a_control_group_where_one_is_delegated() {
    let Some(h) = Hostel::new() else { return };
    if !has_controller(&h, "cgroupfs") {
        return crate::harness::skip("no control group is delegated");
    }
    let id = h.detached(&format!("--name cg {SLEEP}"));
    let pid = field(&h, "cg", ".State.Pid");
    let group = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let group = group.lines().find(|line| line.starts_with("0::")).unwrap().to_owned();
    assert!(group.ends_with(&format!("/hostel/{id}")), "{group}");
    // Inside it is the root, for exec as well.
    h.run("exec cg grep ^0:: /proc/self/cgroup").ok().stdout("0::/\n");
    h.run("exec cg grep ^0:: /proc/1/cgroup").ok().stdout("0::/\n");
    h.run("pause cg").ok();
    let state = h.run("top cg -e -o pid,stat").ok().out();
    assert!(!state.lines().nth(1).unwrap().contains('T'), "frozen, not stopped: {state}");
    h.run("unpause cg").ok();
    h.run("exec cg true").ok();
    h.run("stats --no-stream cg").ok();
    h.run("rm -f cg").ok();
    eventually("the group is gone", || {
        !crate::harness::output(std::process::Command::new("find").args(["/sys/fs/cgroup", "-name", &id]))
            .is_ok_and(|found| !found.stdout.is_empty())
    });
}

#[test]
fn limits_hold_where_their_controllers_are() {
    let Some(h) = Hostel::new() else { return };
    if !has_controller(&h, "pids") {
        h.run("run --rm --pids-limit 10 busybox true").ok().stderr_has("PIDs limit discarded");
        crate::harness::skip_for_this_kernel("the controller for pids belongs to a cgroup v1 hierarchy");
        return;
    }
    h.run("run --rm --pids-limit 10 busybox cat /sys/fs/cgroup/pids.max").ok().stdout("10\n").stderr("");
    h.run("run --rm --pids-limit 5 busybox sh -c 'for i in 1 2 3 4 5 6 7 8; do sleep 1 & done; wait'")
        .stderr_has("can't fork");
    h.detached(&format!("--name pl --pids-limit 20 {SLEEP}"));
    h.run("update --pids-limit 30 pl").ok();
    h.run("exec pl cat /sys/fs/cgroup/pids.max").ok().stdout("30\n");
    h.run("rm -f pl").ok();
    if has_controller(&h, "memory") {
        h.run("run --name oom -m 16m busybox sh -c 'x=x; while :; do x=$x$x; done'").code(137);
        assert_eq!(field(&h, "oom", ".State.OOMKilled"), "true");
        assert!(h.run("events --since 1h --until 0s --filter event=oom").ok().out().contains("name=oom"));
    }
}

#[test]
fn completion_knows_verbs_flags_and_names() {
    let Some(h) = Hostel::new() else { return };
    h.run("create --name alpha busybox true").ok();
    h.detached(&format!("--name beta {SLEEP}"));
    h.run("volume create gamma").ok();
    let words = |line: &str| {
        let out = h.run(&format!("__complete -- {line}")).ok().out();
        let mut words: Vec<_> = out.lines().map(|line| line.split('\t').next().unwrap().to_owned()).collect();
        words.sort();
        words.join(" ")
    };
    assert_eq!(words("sta"), "start stats");
    assert_eq!(words("start ''"), "alpha");
    assert_eq!(words("stop ''"), "beta");
    assert_eq!(words("exec -it ''"), "beta");
    assert_eq!(words("rm -f ''"), "alpha beta");
    assert_eq!(words("rm al"), "alpha");
    assert_eq!(words("container logs b"), "beta");
    assert_eq!(words("volume rm ''"), "gamma");
    assert_eq!(words("run --restart on"), "on-failure");
    assert_eq!(words("run --health-i"), "--health-interval");
    assert_eq!(words("run --rm --name x hea"), "healthcheck");
    assert_eq!(words("run busybox --health-i"), "");
    for (shell, text) in
        [("bash", "complete -F _hostel hostel"), ("zsh", "#compdef hostel"), ("fish", "-c hostel")]
    {
        h.run(&format!("completion {shell}")).ok().has(text);
    }
    h.run("completion powershell").code(125);
    // In a real bash: the words that it splits are put together again.
    let script = h.scratch("bash").join("try.sh");
    let binary = crate::harness::binary();
    let text = format!(
        "hostel() {{ {} \"$@\"; }}\nsource <(hostel completion bash)\nCOMP_WORDS=(hostel rm al) COMP_CWORD=2\n_hostel 2>/dev/null\necho \"${{COMPREPLY[*]}}\"\n",
        binary.display()
    );
    std::fs::write(&script, text).unwrap();
    h.program("bash", &[&script.to_string_lossy()]).run().ok().stdout("alpha\n");
    h.run("rm -f beta").ok();
}

#[test]
fn help_is_grouped_and_the_manual_written() {
    let h = Hostel::empty();
    let text = h.run("--help").ok().out();
    for line in [
        "Common Commands:",
        "Management Commands:",
        "Global Options:",
        "  run         Create and run",
        "  volume      Manage volumes",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert_eq!(h.run("").ok().out(), text);
    assert_eq!(h.run("help").ok().out(), text);
    let dir = h.scratch("man");
    h.run(&format!("man {}", dir.display())).ok();
    for page in ["hostel.1", "hostel-run.1", "hostel-container-ls.1"] {
        assert!(std::fs::read_to_string(dir.join(page)).unwrap().contains(".TH"), "{page}");
    }
}

#[test]
fn secrets_are_handed_over() {
    let Some(h) = Hostel::new() else { return };
    let id = h.cmd("secret create key -").stdin("s3cret\n").run().ok().out();
    assert_eq!(id.len(), 25);
    h.cmd("secret create key -").stdin("x").run().fails(1, &["secret name in use: key"]);
    h.cmd("secret create token -").env("T", "v").stdin("tok").run().ok();
    h.run("secret ls --format '{{.Name}} {{.Driver}}'").ok().stdout("key file\ntoken file\n");
    h.run("secret inspect -f '{{.Spec.Name}}' key").ok().stdout("key\n");
    h.run("secret inspect --showsecret -f '{{.SecretData}}' token").ok().stdout("tok\n");
    h.run("run --rm --secret key busybox sh -c 'cat /run/secrets/key; stat -c %a /run/secrets/key'")
        .ok()
        .stdout("s3cret\n444\n");
    h.run("run --rm --secret key,target=/etc/k,mode=400 busybox sh -c 'cat /etc/k; echo x > /etc/k'")
        .code(1)
        .stdout("s3cret\n");
    h.run("run --name var --secret token,type=env,target=TOK busybox sh -c 'echo $TOK'").ok().stdout("tok\n");
    h.run("inspect var").ok().lacks("TOK=");
    h.run("run --rm --secret nosuch busybox true").fails(125, &["no such secret: nosuch"]);
    // It keeps what it was created with.
    h.run("secret rm token").ok();
    h.run("start -a var").ok().stdout("tok\n");
    h.run("secret rm nosuch").fails(1, &["no such secret"]);
    h.run("secret rm --all").ok();
    h.run("secret ls -q").ok().stdout("");
    h.run("rm var").ok();
}

/// What `psFormat` and its kin of Docker's config.json say holds where no flag says otherwise.
#[test]
fn formats_of_dockers_config_are_taken() {
    let Some(h) = Hostel::new() else { return };
    let dir = h.scratch("docker");
    let text = r#"{"psFormat": "{{.Names}}!", "imagesFormat": "{{.Tag}}!", "volumesFormat": "{{.Name}}!",
        "networksFormat": "{{.Name}}!", "statsFormat": "{{.Name}}!", "pluginsFormat": "x", "HttpHeaders": {"A": "b"}}"#;
    std::fs::write(dir.join("config.json"), text).unwrap();
    let with = |line: &str| h.cmd(line).env("DOCKER_CONFIG", dir.to_string_lossy().as_ref()).run();
    let id = h.detached("--name one busybox sleep 1000");
    h.run("volume create vol").ok();
    let short = format!("{}\n", &id[..12]);
    let table = [
        ("ps", "one!\n"),
        ("ps --format {{.Image}}", "busybox\n"),
        ("ps -q", short.as_str()),
        ("images busybox:1", "1!\n"),
        ("volume ls", "vol!\n"),
        ("volume ls -q", "vol\n"),
        ("network ls --filter driver=null", "none!\n"),
        ("stats --no-stream", "one!\n"),
    ];
    for (line, text) in table {
        let done = with(line);
        done.ok();
        assert_eq!((done.stdout.as_str(), done.stderr.as_str()), (text, ""), "{line}");
    }
    for broken in ["{", "[]", r#"{"psFormat": 3}"#] {
        std::fs::write(dir.join("config.json"), broken).unwrap();
        let done = with("ps --format {{.Names}}");
        done.ok();
        assert_eq!(done.stdout, "one\n", "{broken}");
        // Not asked for, not read.
        assert_eq!(done.stderr, "", "{broken}");
        let done = with("ps");
        done.ok();
        assert!(done.stdout.starts_with("CONTAINER ID "), "{broken}: {}", done.stdout);
        let wanted = format!("WARNING: Error parsing config file ({}): ", dir.join("config.json").display());
        assert!(
            done.stderr.starts_with(&wanted) && done.stderr.lines().count() == 1,
            "{broken}: {}",
            done.stderr
        );
    }
    h.run("rm -f one").ok();
    h.run("volume rm vol").ok();
}

#[test]
fn an_inspected_environment_is_what_was_asked_for() {
    let Some(h) = Hostel::new() else { return };
    h.run("create --name one -e B=2 -e A=1 busybox true").ok();
    let text = h.run("inspect -f '{{json .Config.Env}}' one").ok().out();
    assert!(text.starts_with(r#"["B=2","A=1""#) && !text.contains("HOSTNAME"), "{text}");
    h.run("rm one").ok();
}

#[test]
fn proxies_of_dockers_config_are_variables() {
    let Some(h) = Hostel::new() else { return };
    let dir = h.scratch("docker");
    let text = r#"{"proxies": {"default": {"httpProxy": "http://192.0.2.1:3128", "noProxy": "localhost"}}}"#;
    std::fs::write(dir.join("config.json"), text).unwrap();
    let dir = dir.to_string_lossy().into_owned();
    let print = "sh -c 'echo $HTTP_PROXY $http_proxy $no_proxy $FTP_PROXY'";
    h.cmd(&format!("run --rm busybox {print}"))
        .env("DOCKER_CONFIG", &dir)
        .run()
        .ok()
        .stdout("http://192.0.2.1:3128 http://192.0.2.1:3128 localhost\n");
    h.cmd(&format!("run --rm -e HTTP_PROXY= -e http_proxy=mine busybox {print}"))
        .env("DOCKER_CONFIG", &dir)
        .run()
        .ok()
        .stdout("mine localhost\n");
}
