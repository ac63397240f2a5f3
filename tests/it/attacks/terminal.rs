//! A person's terminal: input from inside, and escape sequences in what is listed.

use serde_json::json;

use super::load_evil;
use crate::harness::Hostel;
use crate::pty::Terminal;

#[test]
fn a_container_does_not_hold_the_callers_terminal() {
    let Some(h) = Hostel::new() else { return };
    // TIOCSTI, CVE-2017-5226: without -t there is no terminal inside, with it another than the caller's.
    for line in ["run --rm -i busybox", "run --rm busybox"] {
        let script = "for n in 0 1 2; do test -t $n && echo $n is a terminal; done; (: < /dev/tty) 2>/dev/null && echo has a terminal; echo end";
        let terminal = Terminal::run(h.cmd_args(
            &[&crate::harness::words(line)[..], &["sh".into(), "-c".into(), script.into()]].concat(),
        ));
        let (code, screen) = terminal.end();
        assert_eq!((code, screen.trim()), (0, "end"), "{line}");
    }
    let mut terminal = Terminal::run(h.cmd("run --rm -it busybox sh -c 'tty; stat -c %t:%T $(tty)'"));
    let shown = terminal.expect("\n");
    assert!(shown.contains("/dev/pts/0") || shown.contains("/dev/console"), "{shown}");
    terminal.settings_after_end();
}

#[test]
fn listings_show_escape_sequences_by_number() {
    let h = Hostel::empty();
    let config = json!({"Labels": {"k\u{1b}[31m": "v\u{1b}]0;title\u{7}"}, "Cmd": ["sleep", "1000"]});
    if !load_evil(&h, &config, |layer| {
        layer.file("x", 0o644, 0, b"");
    }) {
        return;
    }
    h.detached("--name box evil");
    h.run("exec box sh -c 'touch \"$(printf \"/a\\033[2Jb\")\"'").ok();
    for line in [
        "ps --format {{.Labels}}",
        "inspect -f {{.Config.Labels}} box",
        "diff box",
        "image inspect -f {{.Config.Labels}} evil",
        "cp box:/no\u{1b}[2J -",
    ] {
        // On a terminal by number; in a pipe as it is, which scripts want.
        let (_, screen) = Terminal::run(h.cmd(line)).end();
        assert!(screen.contains("\\x1b") && !screen.contains('\u{1b}'), "{line}: {screen:?}");
    }
    assert!(h.run("diff box").ok().stdout.contains('\u{1b}'));
    h.run("cp box:/no\u{1b}[2J -").code(1).stderr_has("\\x1b[2J");
}
