//! `-it`: a true terminal, on `run` and on `exec`.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Hostel, eventually};
use crate::pty::Terminal;

const CTRL_C: &str = "\x03";
const CTRL_D: &str = "\x04";
const CTRL_Z: &str = "\x1a";
const CTRL_P_CTRL_Q: &str = "\x10\x11";

#[test]
fn a_shell_on_a_terminal() {
    let Some(h) = Hostel::new() else { return };
    let mut t = Terminal::run(h.cmd("run -it --rm busybox sh"));
    let before = t.settings();
    t.expect("# ");
    assert_ne!(t.settings(), before, "the caller's terminal is not in raw mode");
    t.type_keys("tty; stty size; echo $TERM\n");
    t.expect("/dev/pts/0\r\n24 80\r\nxterm\r\n");
    t.resize(50, 132);
    t.type_keys("sleep 0.2; stty size\n");
    t.expect("50 132");
    t.type_keys("exit 3\n");
    let settings = t.settings_after_end();
    let (code, _) = t.end();
    assert_eq!(code, 3);
    assert_eq!(settings, before, "the caller's terminal was not restored");
}

#[test]
fn ctrl_c_and_ctrl_d_go_to_the_container() {
    let Some(h) = Hostel::new() else { return };
    let mut t = Terminal::run(h.cmd("run -it --rm busybox sh"));
    t.expect("# ");
    t.type_keys("sleep 100; echo code=$?\n");
    std::thread::sleep(std::time::Duration::from_millis(300));
    t.type_keys(CTRL_C);
    t.expect("# ");
    t.type_keys("echo still here\n");
    t.expect("still here\r\n");
    t.type_keys(CTRL_D);
    t.end();
}

/// Every step waits for what says that the one before was done: a job for its first word, the shell for its prompt.
#[test]
fn job_control_works_inside() {
    let Some(h) = Hostel::debian() else { return };
    let mut t = Terminal::run(h.cmd("run -it --rm debian bash --norc"));
    t.expect("# ");
    // It makes no process of its own: one that is stopped between vfork and exec keeps its parent from stopping.
    let job = "sh -c 'echo rea''dy; exec sleep 1000'";
    t.type_keys(&format!("{job}\n"));
    t.expect("ready\r\n");
    t.type_keys(CTRL_Z);
    t.expect("[1]+  Stopped");
    t.expect("# ");
    t.type_keys("jobs\n");
    t.expect("[1]+  Stopped");
    t.expect("# ");
    // In the background the shell reads on; the job can be stopped, listed and sent on.
    t.type_keys("bg\n");
    t.expect("[1]+ ");
    t.expect("# ");
    t.type_keys("echo \"running=$(jobs -r | wc -l).\"\n");
    t.expect("running=1.");
    t.expect("# ");
    t.type_keys("kill -STOP %1; sleep 100 & echo \"jobs=$(jobs | wc -l).\"\n");
    t.expect("jobs=2.");
    t.expect("# ");
    t.type_keys("kill %2; fg %1\n");
    t.expect("fg %1\r\n");
    t.expect("sh -c ");
    // The one in the foreground gets the key, not the shell.
    t.type_keys(CTRL_C);
    t.expect("# ");
    t.type_keys("echo \"code=$?\"\n");
    t.expect("code=130\r\n");
    t.expect("# ");
    t.type_keys("sh -c 'exit 5' & wait $!; echo \"code=$?\"\n");
    t.expect("code=5\r\n");
    t.type_keys("exit 0\n");
    assert_eq!(t.end().0, 0);
}

/// A new size reaches whoever is in the foreground: as a signal, and when it is asked for.
#[test]
fn a_running_program_hears_of_a_new_size() {
    let Some(h) = Hostel::debian() else { return };
    let mut t = Terminal::run(h.cmd("run -it --rm debian bash --norc"));
    t.expect("# ");
    // One signal only: what comes while a shell runs its trap may be lost to it.
    t.type_keys("bash -c \"trap 'echo heard; exit 3' WINCH; echo rea''dy; while :; do sleep 0.1; done\"; echo code=$?\n");
    t.expect("ready\r\n");
    t.resize(50, 132);
    t.expect("heard\r\n");
    t.expect("code=3\r\n");
    t.expect("# ");
    t.type_keys(
        "while :; do now=$(stty size); [ \"$now\" = \"$was\" ] || echo \"size=$now.\"; was=$now; done\n",
    );
    t.expect("size=50 132.");
    for (rows, columns) in [(24, 80), (1, 1), (200, 300)] {
        t.resize(rows, columns);
        t.expect(&format!("size={rows} {columns}."));
    }
    t.type_keys(CTRL_C);
    t.expect("# ");
    t.type_keys("exit 0\n");
    assert_eq!(t.end().0, 0);
}

#[test]
fn detach_keys_of_dockers_config() {
    let Some(h) = Hostel::new() else { return };
    let dir = h.scratch("docker");
    std::fs::write(dir.join("config.json"), r#"{"detachKeys": "ctrl-x,x"}"#).unwrap();
    let with = |line: &str| h.cmd(line).env("DOCKER_CONFIG", dir.to_string_lossy().as_ref());
    let mut t = Terminal::run(with("run -it --name dd busybox sh"));
    t.expect("# ");
    t.type_keys("\x18x");
    assert_eq!(t.end().0, 0);
    // The flag wins.
    let mut t = Terminal::run(with("attach --detach-keys ctrl-a dd"));
    t.type_keys("echo at''tached\n");
    t.expect("attached\r\n");
    t.type_keys("\x01");
    t.end();
    h.run("ps --format '{{.Names}}'").ok().stdout("dd\n");
    std::fs::write(dir.join("config.json"), r#"{"detachKeys": "ctrl-xx"}"#).unwrap();
    with("exec dd true").run().fails(1, &["invalid escape keys (ctrl-xx) provided"]);
    h.run("rm -f dd").ok();
}

#[test]
fn ctrl_p_ctrl_q_detaches() {
    let Some(h) = Hostel::new() else { return };
    let mut t = Terminal::run(h.cmd("run -it --name dd busybox sh"));
    t.expect("# ");
    t.type_keys("touch /before-detach; echo do''ne\n");
    t.expect("done\r\n");
    t.expect("# ");
    t.type_keys(CTRL_P_CTRL_Q);
    assert_eq!(t.end().0, 0);
    h.run("ps --format '{{.Names}}'").ok().stdout("dd\n");
    h.run("exec dd ls /before-detach").ok();
    h.run("rm -f dd").ok();
}

#[test]
fn exec_on_a_terminal() {
    let Some(h) = Hostel::new() else { return };
    h.detached("--name ee busybox sleep 600");
    let mut t = Terminal::run(h.cmd("exec -it ee sh"));
    t.expect("# ");
    t.resize(30, 90);
    t.type_keys("stty size; exit 4\n");
    t.expect("30 90");
    assert_eq!(t.end().0, 4);
}

#[test]
fn a_terminal_is_asked_for_where_there_is_none() {
    let Some(h) = Hostel::new() else { return };
    let done = h.cmd("run -it --rm busybox true").stdin("").run();
    assert_ne!(done.exit_code(), 0);
    done.stderr_has("not a TTY");
}

#[test]
fn a_new_size_is_told_by_a_signal() {
    let Some(h) = Hostel::new() else { return };
    let shell = "'trap \"stty size\" WINCH; echo ready; while :; do sleep 0.05; done'";
    let each = |terminal: &mut Terminal| {
        terminal.expect("ready\r\n");
        terminal.resize(31, 99);
        terminal.expect("31 99\r\n");
    };
    let mut run = Terminal::run(h.cmd(&format!("run -it --name sized busybox sh -c {shell}")));
    each(&mut run);
    let mut exec = Terminal::run(h.cmd(&format!("exec -it sized sh -c {shell}")));
    each(&mut exec);
    // Another terminal is attached: its size holds from then on.
    let mut second = Terminal::run(h.cmd("attach sized"));
    second.expect("24 80\r\n");
    second.resize(32, 98);
    second.expect("32 98\r\n");
    h.run("rm -f sized").ok();
    assert_eq!(run.end().0, 137);
    assert_eq!(second.end().0, 137);
    exec.end();
}

#[test]
fn a_shell_is_left_and_found_again() {
    let Some(h) = Hostel::new() else { return };
    let mut t = Terminal::run(h.cmd("run -it --name left busybox sh"));
    t.expect("# ");
    t.type_keys("kept=4''2; echo set\n");
    t.expect("set\r\n");
    // One of the two keys is a key like any other.
    t.type_keys("\x10x");
    t.type_keys("\x7f");
    t.type_keys(CTRL_P_CTRL_Q);
    assert_eq!(t.end().0, 0);
    // attach and exec say that they were left, as Docker's do; run and start do not.
    for (line, keys) in [
        ("attach left", CTRL_P_CTRL_Q),
        ("attach --detach-keys ctrl-x,x left", "\x18x"),
        ("attach --detach-keys ctrl-x,x left", "\x18\x18x"),
    ] {
        let mut t = Terminal::run(h.cmd(line));
        let before = t.settings_of_start();
        t.type_keys("\necho again $kept\n");
        t.expect("again 42\r\n");
        t.type_keys(keys);
        assert_eq!(t.settings_after_end(), before, "{line}");
        let (code, screen) = t.end();
        assert!(code == 1 && screen.ends_with("read escape sequence\r\n"), "{line}: {code} {screen:?}");
    }
    let mut t = Terminal::run(h.cmd("attach left"));
    t.type_keys("\nexit 5\n");
    assert_eq!(t.end().0, 5);
    // A started one that is left goes on, too.
    let mut t = Terminal::run(h.cmd("start -ai --detach-keys q,q left"));
    t.expect("# ");
    t.type_keys("q");
    t.type_keys("q");
    assert_eq!(t.end().0, 0);
    h.run("ps --format '{{.Names}}'").ok().stdout("left\n");
    let mut t = Terminal::run(h.cmd("exec -it --detach-keys ctrl-a,d left sh"));
    t.expect("# ");
    t.type_keys("sleep 0.3; touch /after-detach; sleep 1000\n");
    t.type_keys("\x01d");
    let (code, screen) = t.end();
    assert!(code == 1 && screen.ends_with("read escape sequence\r\n"), "{code} {screen:?}");
    eventually("the file of the command that was left", || {
        h.run("exec left ls /after-detach").exit_code() == 0
    });
    h.run("top left -eo pid,args").has("sleep 1000");
    let t = Terminal::run(h.cmd("exec -it --detach-keys bad-key left true"));
    let (code, screen) = t.end();
    assert!(code == 1 && screen.contains("invalid escape keys (bad-key) provided"), "{code} {screen:?}");
    h.run("rm -f left").ok();
}

#[test]
fn vi_writes_what_was_typed() {
    let Some(h) = Hostel::new() else { return };
    let mut t = Terminal::run(h.cmd("run -it --rm busybox sh"));
    t.expect("# ");
    t.type_keys("printf 'one\\ntwo\\n' > /f; vi /f\n");
    t.expect("two");
    t.expect("/f");
    // Last line, a new one below it; the first line gone; saved.
    t.type_keys("Gothr\u{e4}e");
    t.expect("[Modified] 3/3");
    t.type_keys("\x1b");
    t.expect("- /f [Modified] 3/3");
    t.type_keys("ggdd:wq\r");
    t.expect("# ");
    t.type_keys("od -An -c /f\n");
    t.expect("t   w   o  \\n   t   h   r 303 244   e  \\n\r\n");
    t.type_keys("exit\n");
    assert_eq!(t.end().0, 0);
}

/// All bytes, NUL and what is no UTF-8 among them, as they are, into the container and out of it.
#[test]
fn bytes_pass_as_they_are() {
    let Some(h) = Hostel::new() else { return };
    h.detached("--name bytes busybox sleep 1000");
    let shell = "stty raw -echo; echo ready; head -c 512";
    let all: Vec<u8> = (0..=255).chain((0..=255).rev()).collect();
    for line in ["run --rm -it --detach-keys ctrl-x,x busybox", "exec -it --detach-keys ctrl-x,x bytes"] {
        let mut arguments = crate::harness::words(line);
        arguments.extend(["sh".to_owned(), "-c".to_owned(), shell.to_owned()]);
        let mut t = Terminal::run(h.cmd_args(&arguments));
        t.expect("ready\n");
        t.type_bytes(&all);
        assert_eq!(t.expect_bytes(&all), all, "{line}");
        assert_eq!(t.end().0, 0, "{line}");
    }
    // Without a terminal, by pipes.
    for line in ["run --rm -i busybox", "exec -i bytes"] {
        let mut arguments = crate::harness::words(line);
        arguments.extend(["sh", "-c", "head -c 512 | tee /all; od -An -v -tu1 /all"].map(str::to_owned));
        let done = h.cmd_args(&arguments).stdin(all.clone()).run();
        let listed =
            done.ok().stdout.rsplit_once("   0   1   2").map(|(_, tail)| format!("0 1 2 {tail}")).unwrap();
        let listed: Vec<u8> = listed.split_whitespace().map(|number| number.parse().unwrap()).collect();
        assert_eq!(listed, all, "{line}");
    }
}

/// However the command ends, the terminal is as it was.
#[test]
fn the_terminal_is_restored_on_every_way_out() {
    let Some(h) = Hostel::new() else { return };
    type WayOut = fn(&Hostel, &Terminal);
    let removed: WayOut = |h, _| {
        h.run("rm -f box").ok();
    };
    let term: WayOut = |_, t| kill(t.program(), Signal::SIGTERM).unwrap();
    let hangup: WayOut = |_, t| kill(t.program(), Signal::SIGHUP).unwrap();
    let keeper: WayOut = |h, _| {
        let id = h.run("inspect -f '{{.Id}}' box").ok().out();
        let state = std::fs::read(h.root().join("containers").join(id).join("state.json")).unwrap();
        let state: serde_json::Value = serde_json::from_slice(&state).unwrap();
        let keeper = state["keeper_pid"].as_i64().unwrap();
        kill(Pid::from_raw(keeper.try_into().unwrap()), Signal::SIGKILL).unwrap();
    };
    let table: [(&str, WayOut, i32); 9] = [
        ("run -it --name box busybox sh", removed, 137),
        ("run -it --name box busybox sh", keeper, 137),
        ("run -it --name box --sig-proxy=false busybox sh", term, 143),
        // It goes to the container, where it ends the process that takes it.
        ("run -it --name box --init busybox sleep 1000", term, 143),
        ("exec -it box sh", removed, 137),
        ("exec -it box sh", term, 143),
        ("exec -it box sh", hangup, 129),
        ("attach --sig-proxy=false box", term, 143),
        ("attach box", removed, 137),
    ];
    for (line, way_out, code) in table {
        if !line.starts_with("run") {
            h.detached("-it --name box busybox sh");
        }
        let mut t = Terminal::run(h.cmd(line));
        let before = t.settings_of_start();
        t.until_raw();
        way_out(&h, &t);
        assert_eq!(t.settings_after_end(), before, "{line}");
        let (ended, screen) = t.end();
        assert_eq!(ended, code, "{line}: {screen:?}");
        h.run("rm -f box").ok();
    }
}

/// A command without a terminal of its own is suspended and goes on as any in the caller's shell.
#[test]
fn the_command_itself_is_a_job_of_the_callers_shell() {
    let Some(h) = Hostel::debian() else { return };
    let run = h.cmd("run --rm -i busybox cat").into_command();
    let words: Vec<_> = run.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
    let program = run.get_program().to_string_lossy().into_owned();
    let mut t = Terminal::run(h.program("bash", &["--norc", "-i"]).env("PS1", "$ "));
    t.expect("$ ");
    t.type_keys(&format!("{program} {}\n", words.join(" ")));
    t.expect("cat\r\n");
    // What is typed while bash still hands the terminal over is sometimes bash's (13 of 400 times, with a plain
    // cat in hostel's place).
    eventually("the container runs", || h.run("ps -q").ok().stdout.lines().count() == 1);
    t.type_keys("one\n");
    t.expect("one\r\none\r\n");
    t.type_keys(CTRL_Z);
    t.expect("Stopped");
    t.expect("$ ");
    t.type_keys("echo in the shell\n");
    t.expect("in the shell\r\n");
    t.type_keys("fg\n");
    t.expect("cat\r\n");
    t.type_keys("two\n");
    t.expect("two\r\ntwo\r\n");
    t.type_keys(CTRL_D);
    t.expect("$ ");
    t.type_keys("exit 0\n");
    assert_eq!(t.end().0, 0);
}
