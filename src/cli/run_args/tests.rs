//! Whole command lines, from argv to the plan.

use std::ffi::OsString;

use clap::{CommandFactory, Parser};
use oci_spec::image::ImageConfiguration;
use serde_json::Value;

use super::*;
use crate::cli::switches;
use crate::id::ContainerId;
use crate::plan::request::{EnvSetting, PullPolicy, Stream};
use crate::plan::{BuildFacts, NetworkMode, Peers, build};

#[derive(Parser, Debug)]
#[command(name = "run")]
struct Run {
    #[command(flatten)]
    args: RunArgs,
}

fn variable(name: &str) -> Option<String> {
    (name == "FROM_CALLER").then(|| "yes".to_owned())
}

fn caller() -> Caller<'static> {
    Caller { verb: "run", working_dir: "/work".into(), variable: &variable }
}

fn args(line: &[&str]) -> RunArgs {
    let line: Vec<OsString> = std::iter::once(&"run").chain(line).map(OsString::from).collect();
    switches::try_parse_from::<Run>(&line).expect("the command line is well formed").args
}

fn request(line: &[&str]) -> RunRequest {
    args(line).into_request(&caller()).expect("the request is valid")
}

fn refusal(line: &[&str]) -> String {
    let error = args(line).into_request(&caller()).expect_err("the request is refused");
    assert_eq!(error.exit, Exit::Engine, "{line:?}");
    error.message().to_owned()
}

#[test]
fn the_command_line_is_well_formed() {
    Run::command().debug_assert();
}

#[test]
fn help_offers_what_works() {
    let help = Run::command().render_long_help().to_string();
    assert!(help.contains("Usage: hostel run [OPTIONS] IMAGE [COMMAND] [ARG...]"), "{help}");
    let flags: Vec<&str> = help
        .lines()
        .filter(|line| line.trim_start().starts_with('-'))
        .filter_map(|line| Some(line.split_once("--")?.1))
        .collect();
    assert!(flags.len() > 60);
    for gone in ["link-local-ip", "kernel-memory"] {
        assert!(!flags.iter().any(|flag| flag.starts_with(gone)), "{gone} is known but not offered");
    }
}

#[test]
fn flags_after_the_image_are_the_commands() {
    let request = request(&["-it", "--rm", "busybox", "sh", "-c", "echo --rm", "-it", "--", "--name", "x"]);
    assert_eq!(request.image, "busybox");
    assert_eq!(request.process.command, ["sh", "-c", "echo --rm", "-it", "--", "--name", "x"]);
    assert!(request.stdio.interactive && request.stdio.tty && request.auto_remove);
    assert_eq!(request.name, None);

    let request = self::request(&["busybox", "-it", "--rm=false", "--unknown"]);
    assert_eq!(request.process.command, ["-it", "--rm=false", "--unknown"]);
    assert!(!request.stdio.tty);

    assert_eq!(self::request(&["--", "busybox", "--", "x"]).process.command, ["--", "x"]);
}

#[test]
fn switches_and_repeated_flags() {
    let request = request(&[
        "--rm=true",
        "--init=false",
        "--sig-proxy=false",
        "-dP",
        "--name=first",
        "--name",
        "second",
        "-e",
        "A=1",
        "-eB=2",
        "--env=C=3",
        "busybox",
    ]);
    assert!(request.auto_remove && request.stdio.detach && request.network.publish_all);
    assert!(!request.process.init && !request.stdio.sig_proxy);
    assert_eq!(request.name.as_ref().map(crate::id::Name::as_str), Some("second"));
    let names: Vec<&str> = request.process.env.iter().map(|setting| setting.name.as_str()).collect();
    assert_eq!(names, ["A", "B", "C"]);
    assert!(self::request(&["busybox"]).stdio.sig_proxy);
    assert!(self::request(&["--sig-proxy", "busybox"]).stdio.sig_proxy);
}

#[test]
fn the_environment_comes_from_files_flags_and_caller() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("env");
    std::fs::write(&file, "# comment\nA=file\nFROM_CALLER\nUNSET\n").expect("written");
    let file = file.to_str().expect("UTF-8");
    let request =
        request(&["-e", "A=flag", "-e", "UNSET", "-e", "FROM_CALLER", "--env-file", file, "busybox"]);
    let setting =
        |name: &str, value: Option<&str>| EnvSetting { name: name.into(), value: value.map(str::to_owned) };
    assert_eq!(
        request.process.env,
        [
            setting("A", Some("file")),
            setting("FROM_CALLER", Some("yes")),
            setting("A", Some("flag")),
            setting("UNSET", None),
            setting("FROM_CALLER", Some("yes")),
        ]
    );
    assert_eq!(
        refusal(&["-e", "=x", "busybox"]),
        "invalid argument \"=x\" for \"-e, --env\" flag: invalid environment variable: =x"
    );
    assert_eq!(
        refusal(&["--env-file", "/no/such", "busybox"]),
        "open /no/such: No such file or directory (os error 2)"
    );
}

#[test]
fn labels_come_from_files_and_flags() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("labels");
    std::fs::write(&file, "a=file\nb=file\n").expect("written");
    let file = file.to_str().expect("UTF-8");
    let request =
        request(&["--label-file", file, "-l", "b=flag", "--label", "c", "--annotation", "x=y", "i"]);
    let labels: Vec<(&str, &str)> = request.labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(labels, [("a", "file"), ("b", "flag"), ("c", "")]);
    assert_eq!(request.annotations["x"], "y");
    assert_eq!(
        refusal(&["-l", "=x", "i"]),
        "invalid argument \"=x\" for \"-l, --label\" flag: invalid label '=x': empty name"
    );
}

#[test]
fn what_stands_alone() {
    let request = request(&[
        "-h",
        "box",
        "--net",
        "none",
        "--pull=never",
        "-q",
        "--cidfile",
        "/c",
        "-a",
        "stdout",
        "-u",
        "1:2",
        "-w",
        "/w",
        "--stop-signal",
        "INT",
        "--stop-timeout",
        "-1",
        "--oom-score-adj",
        "-5",
        "--entrypoint",
        "",
        "i",
        "c",
    ]);
    assert_eq!(request.network.hostname.as_deref(), Some("box"));
    assert_eq!(request.network.mode, NetworkMode::None);
    assert_eq!(request.pull, PullPolicy::Never);
    assert!(request.quiet);
    assert_eq!(request.cidfile, Some("/c".into()));
    assert_eq!(request.stdio.attach, [Stream::Stdout]);
    assert_eq!(request.process.user.as_deref(), Some("1:2"));
    assert_eq!(request.process.working_dir.as_deref(), Some("/w"));
    assert_eq!(request.process.stop_signal, Some(2));
    assert_eq!(request.process.stop_timeout_s, Some(-1));
    assert_eq!(request.process.oom_score_adj, Some(-5));
    assert_eq!(request.process.entrypoint.as_deref(), Some(""));
}

#[test]
fn an_image_is_needed() {
    let error = args(&["--rm"]).into_request(&caller()).expect_err("no image");
    assert_eq!(error.exit, Exit::Failure);
    assert_eq!(error.message(), "'hostel run' requires at least 1 argument");
}

#[test]
fn refusals_have_dockers_words() {
    let table: [(&[&str], &str); 16] = [
        (
            &["--name", "a b"],
            "Invalid container name (a b), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed, at least two characters",
        ),
        (&["-w", "rel"], "the working directory 'rel' is invalid, it needs to be an absolute path"),
        (&["--stop-signal", "FOO"], "invalid signal: FOO"),
        (
            &["--stop-timeout", "x"],
            "invalid argument \"x\" for \"--stop-timeout\" flag: strconv.ParseInt: parsing \"x\": invalid syntax",
        ),
        (&["-p", "x"], "invalid containerPort: x"),
        (&["--net", "mine"], "network mine not found"),
        (&["-d", "-a", "stdin"], "conflicting options: cannot specify both --attach and --detach"),
        (&["--net", "container:x", "-h", "y"], "conflicting options: hostname and the network mode"),
        (&["--uts", "host", "-h", "y"], "conflicting options: hostname and the UTS mode"),
        (
            &["--net", "container:x", "-p", "80:80"],
            "conflicting options: port publishing and the container type network mode",
        ),
        (&["--net", "container:x", "--dns", "1.1.1.1"], "conflicting options: dns and the network mode"),
        (&["--rm", "--restart", "always"], "conflicting options: cannot specify both --restart and --rm"),
        (&["--cap-add", "nope"], "invalid CapAdd: unknown capability: \"CAP_NOPE\""),
        (&["--shm-size", "x"], "invalid argument \"x\" for \"--shm-size\" flag: invalid size: 'x'"),
        (&["--no-healthcheck", "--health-cmd", "true"], "--no-healthcheck conflicts with --health-* options"),
        (&["--isolation", "hyperv"], "invalid isolation: on Linux it is \"default\""),
    ];
    for (flags, message) in table {
        assert_eq!(refusal(&[flags, &["busybox"]].concat()), message);
    }
}

fn facts() -> BuildFacts {
    BuildFacts {
        id: ContainerId::from_random(&[0xab; 32]),
        uid_count: 65_537,
        gid_count: 65_537,
        host_name: "machine".into(),
        peers: Peers::default(),
        keep_id: None,
        host_root: None,
        controllers: Vec::new(),
        image_healthcheck: None,
        extra_masked_paths: Vec::new(),
    }
}

fn plan_text(line: &[&str], image: &str) -> String {
    let image: ImageConfiguration = serde_json::from_str(image).expect("an image's configuration");
    let plan = build(&request(line), &image, &facts()).expect("a plan");
    let mut plan = serde_json::to_value(&plan).expect("plans are JSON");
    // Whether serde_json keeps the order of keys is a feature that any crate may switch on.
    plan.sort_all_objects();
    // Sets of capabilities have no order of their own.
    for set in ["bounding", "effective", "permitted"] {
        if let Some(Value::Array(names)) = plan.pointer_mut(&format!("/spec/process/capabilities/{set}")) {
            names.sort_by_key(Value::to_string);
        }
    }
    serde_json::to_string_pretty(&plan).expect("JSON") + "\n"
}

/// Compares with a file in `tests/`; `UPDATE_SNAPSHOTS=1` writes it instead.
fn assert_snapshot(text: &str, expected: &str, name: &str) {
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cli/run_args/tests");
        std::fs::write(dir.join(name).with_extension("json"), text).expect("the snapshot is written");
        return;
    }
    for (number, (line, expected)) in text.lines().zip(expected.lines()).enumerate() {
        assert_eq!(line, expected, "{name}.json:{}", number + 1);
    }
    assert_eq!(text.lines().count(), expected.lines().count(), "{name}.json");
}

const IMAGE: &str = r#"{
    "architecture": "amd64", "os": "linux",
    "config": {
        "User": "app", "ExposedPorts": {"80/tcp": {}, "53/udp": {}}, "Env": ["PATH=/bin", "LANG=C"],
        "Entrypoint": ["/entry"], "Cmd": ["serve"], "Volumes": {"/data": {}, "/cache/": {}},
        "WorkingDir": "/srv", "Labels": {"a": "image", "b": "image"}, "StopSignal": "SIGQUIT"
    },
    "rootfs": {"type": "layers", "diff_ids": []}
}"#;

const PLAIN_IMAGE: &str =
    r#"{"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}"#;

#[test]
fn a_plain_run() {
    assert_snapshot(&plan_text(&["busybox", "true"], PLAIN_IMAGE), include_str!("tests/plain.json"), "plain");
}

#[test]
fn a_run_with_everything_usual() {
    let line = [
        "-it",
        "--rm",
        "--name",
        "web",
        "-h",
        "box",
        "-e",
        "A=1",
        "-e",
        "LANG=de",
        "-u",
        "1000:video",
        "-w",
        "/w",
        "-v",
        "/h:/c:ro",
        "-v",
        "data:/data",
        "-v",
        "/anon",
        "--mount",
        "type=bind,src=/h2,dst=/c/deep",
        "--tmpfs",
        "/run:size=1m",
        "--read-only",
        "-p",
        "127.0.0.1:8080:80",
        "-p",
        "9000-9001:90-91/udp",
        "-P",
        "--expose",
        "443",
        "--init",
        "--cap-drop",
        "ALL",
        "--cap-add",
        "NET_ADMIN",
        "--security-opt",
        "no-new-privileges",
        "--ulimit",
        "nofile=1024",
        "--add-host",
        "db:10.0.0.1",
        "--dns",
        "1.1.1.1",
        "-l",
        "b=flag",
        "--annotation",
        "k=v",
        "--shm-size",
        "1m",
        "--sysctl",
        "net.core.somaxconn=10",
        "--group-add",
        "4",
        "--stop-timeout",
        "3",
        "--oom-score-adj",
        "100",
        "--storage-opt",
        "write=pure",
        "-m",
        "1g",
        "image",
        "arg",
    ];
    assert_snapshot(&plan_text(&line, IMAGE), include_str!("tests/usual.json"), "usual");
}

#[test]
fn a_privileged_run_on_the_hosts_network() {
    let line =
        ["--privileged", "--network", "host", "--pid", "host", "--ipc", "host", "-p", "80:80", "image"];
    assert_snapshot(&plan_text(&line, IMAGE), include_str!("tests/privileged.json"), "privileged");
}

/// Texts of the characters that mean something to some parser, from a fixed seed.
fn odd_texts(count: usize) -> impl Iterator<Item = String> {
    const ALPHABET: [char; 24] = [
        ':', ',', '=', '/', '.', '-', '[', ']', '"', '0', '1', '9', 'k', 'b', 'a', 'r', 'o', 'é', '\0', ' ',
        '\n', '+', '*', '%',
    ];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap_or_default()
    };
    (0..count).map(move |_| (0..next() % 16).map(|_| ALPHABET[next() % ALPHABET.len()]).collect())
}

#[test]
fn no_text_makes_a_parser_panic() {
    let dir = Path::new("/work");
    for text in odd_texts(20_000) {
        let _ = ports::parse_publish(&text);
        let _ = ports::parse_expose(&text);
        let _ = volume_flag::parse(&text, dir);
        let _ = volume_flag::parse(&format!("/h:/c:{text}"), dir);
        let _ = mount_flag::parse(&text, dir);
        let _ = mount_flag::parse(&format!("type=bind,src=/h,dst=/c,{text}"), dir);
        let _ = size::parse_bytes(&text);
        let _ = size::parse_cpus(&text);
        let _ = crate::plan::signal::parse(&text);
        let _ = crate::plan::capability::parse(&text);
        let _ = crate::plan::user::resolve(&text, text.as_bytes(), text.as_bytes(), &[]);
        let clean = crate::plan::mount::clean_destination(&text);
        assert!(clean.is_none_or(|path| path.is_absolute() && !path.to_string_lossy().contains("/../")));
    }
}
