//! What the command line says of itself: every help text, the manual pages, completion in a real bash, no colours.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::harness::{Hostel, skip};

/// The verbs that a help text lists below `Commands:`.
fn verbs(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut listing = false;
    for line in text.lines() {
        if !line.starts_with(' ') && !line.is_empty() {
            listing = line.ends_with("Commands:");
        } else if let Some(name) = line.strip_prefix("  ").filter(|line| listing && !line.starts_with(' ')) {
            found.extend(name.split_whitespace().next().map(str::to_owned));
        }
    }
    found.retain(|name| name != "help");
    found
}

/// Every help text, one after the other.
fn all_help(h: &Hostel, path: &[String], out: &mut String) {
    let mut words = path.to_vec();
    words.push("--help".to_owned());
    let text = h.args(&words).ok().stdout.clone();
    let _ = writeln!(out, "$ hostel {}\n{}", words.join(" "), text.trim_end()); // into a String
    out.push('\n');
    for verb in verbs(&text) {
        let mut below = path.to_vec();
        below.push(verb);
        // The groups' verbs are the plain ones again, checked by their own lines.
        if !(path.len() == 1 && matches!(path[0].as_str(), "container" | "image" | "buildx" | "builder")) {
            all_help(h, &below, out);
        }
    }
}

/// Whoever changes a flag copies the new text over the old one, and sees in the diff what users will see.
#[test]
fn the_whole_help_is_as_written_down() {
    let h = Hostel::empty();
    let mut text = String::new();
    all_help(&h, &[], &mut text);
    let known = include_str!("help.txt");
    if text != known {
        let place = crate::fixtures::dir().join("help.txt");
        fs::write(&place, &text).unwrap();
        let differing = known.lines().zip(text.lines()).find(|(known, now)| known != now);
        panic!("help has changed, first at {differing:?}: cp {} tests/it/help.txt", place.display());
    }
}

#[test]
fn the_manual_is_well_formed() {
    let h = Hostel::empty();
    let dir = h.scratch("man");
    h.run(&format!("man {}", dir.display())).ok();
    let pages: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(pages.len() > 100, "{} pages", pages.len());
    let mut arguments = vec!["-Tlint".to_owned(), "-Wwarning".to_owned()];
    arguments.extend(pages.iter().map(|page| page.to_string_lossy().into_owned()));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if !["/usr/bin/mandoc", "/bin/mandoc"].iter().any(|path| Path::new(path).exists()) {
        return skip("mandoc is not installed");
    }
    let done = h.program("mandoc", &arguments).run();
    let complaints: Vec<_> = done.stdout.lines().chain(done.stderr.lines()).take(20).collect();
    assert!(done.exit_code() == 0 && complaints.is_empty(), "{complaints:#?}");
}

/// bash's own machinery: `complete -p` knows the function, and what it offers is what a tab would.
#[test]
fn a_real_bash_completes() {
    let Some(h) = Hostel::new() else { return };
    h.run("create --name alpha busybox true").ok();
    h.run("create --name alphabet busybox true").ok();
    h.run("volume create gamma").ok();
    h.run("tag busybox reg.example:5000/app:1").ok();
    let script = h.scratch("bash").join("try.sh");
    // compgen -F would want a name; the function is called as readline calls it.
    let text = format!(
        r#"hostel() {{ {} "$@"; }}
source <(hostel completion bash)
complete -p hostel
offer() {{
    COMP_LINE="$*" COMP_POINT=${{#COMP_LINE}}
    local IFS=$' \t\n'
    read -r -a COMP_WORDS <<<"$COMP_LINE"
    [[ $COMP_LINE == *" " ]] && COMP_WORDS+=("")
    COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
    COMPREPLY=()
    _hostel hostel "${{COMP_WORDS[COMP_CWORD]}}" "${{COMP_WORDS[COMP_CWORD-1]}}" 2>/dev/null
    echo "${{COMPREPLY[*]}}"
}}
offer "hostel vol"
offer "hostel volume ins"
offer "hostel rm alph"
offer "hostel run --rest"
offer "hostel run --restart al"
offer "hostel run --rm bus"
offer "hostel volume rm "
offer "hostel run --log-driver j"
"#,
        crate::harness::binary().display()
    );
    fs::write(&script, text).unwrap();
    h.program("bash", &["--norc", &script.to_string_lossy()]).run().ok().stdout(
        "complete -F _hostel hostel\nvolume\ninspect\nalpha alphabet\n--restart\nalways\nbusybox busybox:1\ngamma\njournald json-file\n",
    );
}

#[test]
fn no_escape_sequence_leaves_for_a_pipe() {
    let Some(h) = Hostel::new() else { return };
    h.run("create --name one busybox true").ok();
    for line in [
        "--help",
        "run --help",
        "ps -a",
        "images",
        "info",
        "doctor",
        "version",
        "system df",
        "inspect one",
        "volume ls",
        "network ls",
        "history busybox",
        "run --nosuchflag",
        "nosuchverb",
        "stats --no-stream",
        "build --check /nosuch",
    ] {
        for (name, value) in [("NO_COLOR", "1"), ("TERM", "xterm-256color")] {
            let done = h.cmd(line).env(name, value).run();
            let text = format!("{}{}", done.stdout, done.stderr);
            assert!(!text.contains('\x1b'), "{line} with {name}: {text:?}");
        }
    }
    h.run("rm one").ok();
}

/// On a terminal colours are allowed, and NO_COLOR (no-color.org) is obeyed.
#[test]
fn no_color_is_obeyed_on_a_terminal() {
    let Some(h) = Hostel::new() else { return };
    for line in ["run --help", "ps -a", "run --nosuchflag busybox", "doctor", "images"] {
        let terminal = crate::pty::Terminal::run(h.cmd(line).env("NO_COLOR", "1"));
        let (_, screen) = terminal.end();
        assert!(!screen.contains("\x1b[3") && !screen.contains("\x1b[1m"), "{line}: {screen:?}");
    }
}

#[test]
fn what_docker_has_and_hostel_has_not_is_refused_by_name() {
    let h = Hostel::empty();
    for (line, code, reason) in [
        ("swarm init", 1, "Docker Swarm"),
        ("context ls", 1, "no daemon"),
        ("plugin ls", 1, "built in"),
        ("checkpoint ls x", 1, "CRIU"),
        ("manifest create a b", 1, "lists of several platforms"),
        ("volume update x", 1, "Swarm"),
        ("rm --link a", 125, "no links"),
        ("start --checkpoint x y", 125, "CRIU"),
        ("images --tree", 125, "platforms"),
        ("build --squash .", 125, "layers are kept"),
        ("volume create --scope multi x", 125, "Swarm"),
        ("secret create --driver x a b", 125, "files of the store"),
        ("-H tcp://x ps", 125, "no daemon"),
    ] {
        h.run(line).fails(code, &["not supported", reason]);
    }
}
