//! `-it`: a true terminal, on `run` and on `exec`.

use crate::harness::Hostel;
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

#[test]
fn job_control_works_inside() {
    let Some(h) = Hostel::debian() else { return };
    let mut t = Terminal::run(h.cmd("run -it --rm debian bash --norc"));
    t.expect("# ");
    t.type_keys("sleep 100\n");
    std::thread::sleep(std::time::Duration::from_millis(300));
    t.type_keys(CTRL_Z);
    t.expect("Stopped");
    t.type_keys("jobs; fg\n");
    t.expect("Stopped");
    t.expect("sleep 100\r\nsleep 100\r\n");
    t.type_keys(CTRL_C);
    t.expect("# ");
    t.type_keys("exit 0\n");
    assert_eq!(t.end().0, 0);
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
