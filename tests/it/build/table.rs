//! Dockerfiles and what becomes of them: configuration, history and files, a row each (table.txt).
//!
//! ```text
//! = FROM busybox                 the Dockerfile, a line each
//! = CMD a
//! c {"Cmd":[...]}                the configuration, less what is empty
//! h CMD ["/bin/sh" ...]          the history, less the base's
//! t /a f 644 0:0 "A\n"           what the layers above the base hold; "-" what they take away
//! ```
//!
//! Rows agree with a real dockerd (20.10, BuildKit), except those marked `n`, which it is too old for: it
//! lacks the words, or its history and its mounts' directories are other than BuildKit's are today.
//! Some are checked against `buildah build` in every run, all of them with HOSTEL_TEST_PARITY=all; with
//! HOSTEL_TEST_DOCKER=/SOCKET all are checked against that dockerd (its containers need no network).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::context;
use crate::fixtures::{Layer, gzip};
use crate::harness::{Hostel, skip, skip_for_this_kernel};

const TABLE: &str = include_str!("table.txt");
/// Of the rows, how many a run checks against buildah: one in so many.
const BUILDAH_STRIDE: usize = 24;
const KEYS: [&str; 12] = [
    "Env",
    "Cmd",
    "Entrypoint",
    "WorkingDir",
    "User",
    "ExposedPorts",
    "Volumes",
    "Labels",
    "StopSignal",
    "Healthcheck",
    "OnBuild",
    "Shell",
];

#[derive(Debug, Default)]
struct Row {
    dockerfile: String,
    is_newer: bool,
    result: Built,
}

/// What became of a Dockerfile.
#[derive(Debug, Default, PartialEq)]
struct Built {
    config: Value,
    history: Vec<String>,
    tree: BTreeMap<String, String>,
}

fn rows() -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    let mut in_text = false;
    for line in TABLE.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (kind, rest) = line.split_once(' ').unwrap_or((line, ""));
        if matches!(kind, "=" | "n") && !in_text {
            rows.push(Row::default());
        }
        in_text = matches!(kind, "=" | "n");
        let row = rows.last_mut().unwrap();
        match kind {
            "=" => row.dockerfile.push_str(&format!("{rest}\n")),
            "n" => row.is_newer = true,
            "c" => row.result.config = serde_json::from_str(rest).unwrap(),
            "h" => row.result.history.push(serde_json::from_str(rest).unwrap()),
            "t" => {
                let (path, what) = rest.split_once('\t').unwrap();
                row.result.tree.insert(path.to_owned(), what.to_owned());
            }
            _ => panic!("{line:?} is no line of the table"),
        }
    }
    rows
}

/// The context that all rows have.
fn files(h: &Hostel) -> PathBuf {
    let files = [
        ("a", "A\n"),
        ("b", "B\n"),
        ("x.txt", "X\n"),
        ("y.txt", "Y\n"),
        ("with space", "S\n"),
        ("d/f", "F\n"),
        ("d/e/g", "G\n"),
        ("exec", "E\n"),
    ];
    let dir = context(h, "context", &files);
    let mode = |name: &str, mode: u32| {
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    files.iter().for_each(|(name, _)| mode(name, 0o644));
    mode("exec", 0o755);
    mode("d", 0o755);
    mode("d/e", 0o755);
    symlink("a", dir.join("link")).unwrap();
    symlink("d", dir.join("dl")).unwrap();
    let tar = archive();
    fs::write(dir.join("t.tgz"), gzip(&tar)).unwrap();
    fs::write(dir.join("t.tar"), tar).unwrap();
    dir
}

/// A directory, a file with a second name, and a symlink.
fn archive() -> Vec<u8> {
    let mut layer = Layer::new();
    layer.dir("in", 0o755, 0).file("in/f", 0o640, 9, b"in\n").symlink("in/l", "f").hard_link("in/h", "in/f");
    layer.finish()
}

/// The configuration and the files of layers of a saved image: an OCI layout, or what `docker save` wrote.
fn saved(dir: &Path) -> (Value, Vec<PathBuf>) {
    let json_of = |path: &Path| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
    if dir.join("manifest.json").exists() {
        let manifest = &json_of(&dir.join("manifest.json"))[0];
        let layers = manifest["Layers"].as_array().unwrap();
        let layers = layers.iter().map(|layer| dir.join(layer.as_str().unwrap())).collect();
        return (json_of(&dir.join(manifest["Config"].as_str().unwrap())), layers);
    }
    let blob = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().unwrap().trim_start_matches("sha256:").to_owned();
        dir.join("blobs/sha256").join(digest)
    };
    let manifest = json_of(&blob(&json_of(&dir.join("index.json"))["manifests"][0]));
    let layers = manifest["layers"].as_array().unwrap().iter().map(blob).collect();
    (json_of(&blob(&manifest["config"])), layers)
}

/// What an image is above its base's layers.
fn built(dir: &Path, base_layers: usize) -> Built {
    let (image, layers) = saved(dir);
    let mut config = Map::new();
    for key in KEYS {
        let value = &image["config"][key];
        let is_empty = match value {
            Value::Null => true,
            Value::Array(list) => list.is_empty(),
            Value::Object(object) => object.is_empty(),
            Value::String(text) => text.is_empty() || (key == "WorkingDir" && text == "/"),
            _ => false,
        };
        if !is_empty {
            config.insert(key.to_owned(), value.clone());
        }
    }
    // buildah's own mark.
    if let Some(Value::Object(labels)) = config.get_mut("Labels") {
        labels.retain(|name, _| !name.starts_with("io.buildah"));
        if labels.is_empty() {
            config.remove("Labels");
        }
    }
    let told = image["history"].as_array().into_iter().flatten();
    let told = told.filter_map(|entry| entry["created_by"].as_str());
    let history = told.filter(|text| !text.is_empty() && !is_filler(text)).map(str::to_owned);
    let mut tree = BTreeMap::new();
    for layer in layers.iter().skip(base_layers) {
        lay_over(&mut tree, layer);
    }
    // What engines put in the way of their mounts.
    for name in ["etc/hosts", "etc/resolv.conf", "etc/hostname"] {
        tree.remove(name);
    }
    Built { config: Value::Object(config), history: history.collect(), tree }
}

/// What dockerd 20.10 says of layers that no instruction told of.
fn is_filler(text: &str) -> bool {
    matches!(text, "from local " | "fileop target") || text.starts_with("mount / from exec")
}

/// What another engine built, without the directories of the base that it names though they are as they
/// were: hostel's layers leave them out (COMPATIBILITY.md).
fn built_elsewhere(dir: &Path, row: &Row) -> Built {
    let mut found = built(dir, base_layers(&row.dockerfile));
    let mut base = BTreeMap::new();
    if base_layers(&row.dockerfile) == 1 {
        lay_over(&mut base, &saved(dir).1[0]);
    }
    // buildah's place for secrets.
    if !row.result.tree.contains_key("run") {
        found.tree.remove("run");
    }
    found.tree.retain(|path, what| row.result.tree.contains_key(path) || base.get(path) != Some(what));
    found
}

fn lay_over(tree: &mut BTreeMap<String, String>, layer: &Path) {
    let mut head = [0; 2];
    File::open(layer).unwrap().read_exact(&mut head).unwrap();
    let file = File::open(layer).unwrap();
    let reader: Box<dyn Read> =
        if head == [0x1f, 0x8b] { Box::new(flate2::read::GzDecoder::new(file)) } else { Box::new(file) };
    let mut archive = tar::Archive::new(reader);
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().to_string_lossy().into_owned();
        let path = path.trim_start_matches("./").trim_matches('/').to_owned();
        let (parent, name) =
            path.rsplit_once('/').map_or(("", path.as_str()), |(parent, name)| (parent, name));
        if path.is_empty() || path == "." || name == ".wh..wh..opq" {
            continue;
        }
        let below = |path: &str| format!("{path}/");
        if let Some(name) = name.strip_prefix(".wh.") {
            let gone = if parent.is_empty() { name.to_owned() } else { format!("{parent}/{name}") };
            tree.retain(|known, _| !known.starts_with(&below(&gone)));
            tree.insert(gone, "-".to_owned());
            continue;
        }
        let header = entry.header().clone();
        let owner = format!(
            "{:o} {}:{}",
            header.mode().unwrap() & 0o7777,
            header.uid().unwrap(),
            header.gid().unwrap()
        );
        let link =
            entry.link_name().unwrap().map(|link| link.to_string_lossy().into_owned()).unwrap_or_default();
        let what = match header.entry_type() {
            tar::EntryType::Directory => format!("d {owner}"),
            tar::EntryType::Symlink => format!("l {link}"),
            tar::EntryType::Link => tree
                .get(link.trim_start_matches("./").trim_start_matches('/'))
                .cloned()
                .unwrap_or("f?".into()),
            tar::EntryType::Fifo => format!("p {owner}"),
            _ => {
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                let text = String::from_utf8(content).ok().filter(|text| !text.contains('\0'));
                let text: String = text.map_or("(no text)".into(), |text| text.chars().take(40).collect());
                format!("f {owner} {}", json!(text))
            }
        };
        if header.entry_type() != tar::EntryType::Directory {
            tree.retain(|known, _| !known.starts_with(&below(&path)));
        }
        tree.insert(path, what);
    }
}

/// The layers of what a Dockerfile's last stage is built on: busybox has one, nothing has none.
fn base_layers(dockerfile: &str) -> usize {
    usize::from(!dockerfile.rsplit("FROM ").next().unwrap_or_default().starts_with("scratch"))
}

/// Builds every fourth row, from `first` on.
fn check(first: usize) {
    let Some(h) = Hostel::new() else { return };
    let dir = files(&h);
    let file = h.scratch("dockerfile").join("Dockerfile");
    let mut wrong = Vec::new();
    for (number, row) in rows().iter().enumerate().skip(first).step_by(4) {
        fs::write(&file, &row.dockerfile).unwrap();
        let out = h.scratch("out").join(number.to_string());
        let output = format!("--output type=oci,tar=false,dest={}", out.display());
        let done = h.run(&format!("build -q -f {} {output} {}", file.display(), dir.display()));
        if done.exit_code() != 0 {
            wrong.push(format!("row {number}:\n{}{}", row.dockerfile, done.stderr));
            continue;
        }
        compare(number, row, &built(&out, base_layers(&row.dockerfile)), &mut wrong);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Notes what of a row's result is other than the table says.
fn compare(number: usize, row: &Row, found: &Built, wrong: &mut Vec<String>) {
    let wanted = &row.result;
    if found.config != wanted.config {
        wrong.push(format!(
            "row {number}:\n{}config {}\n not   {}",
            row.dockerfile, found.config, wanted.config
        ));
    }
    if found.history != wanted.history {
        wrong.push(format!(
            "row {number}:\n{}history {:#?}\n not    {:#?}",
            row.dockerfile, found.history, wanted.history
        ));
    }
    let paths: BTreeSet<_> = found.tree.keys().chain(wanted.tree.keys()).collect();
    for path in paths {
        let (found, wanted) = (found.tree.get(path), wanted.tree.get(path));
        if found != wanted {
            wrong.push(format!("row {number}:\n{}/{path}: {found:?}\n not {wanted:?}", row.dockerfile));
        }
    }
}

#[test]
fn rows_of_the_table_0() {
    check(0);
}

#[test]
fn rows_of_the_table_1() {
    check(1);
}

#[test]
fn rows_of_the_table_2() {
    check(2);
}

#[test]
fn rows_of_the_table_3() {
    check(3);
}

#[test]
fn the_table_has_rows_enough() {
    assert!(rows().len() >= 120, "{} rows", rows().len());
}

/// As buildah has it: no history of BuildKit's, and files that the two are known to differ in.
fn differs_by_design(dockerfile: &str) -> bool {
    // An ARG behind an ENV of its name; mounts and changes of volumes; newer words; HEALTHCHECK's zeros;
    // what a wildcard without matches and a directory that is there become.
    const WORDS: [&str; 12] = [
        "ARG A=1\nENV B",
        "ARG A=1\nRUN",
        "--mount",
        "VOLUME /data",
        "none*",
        "HEALTHCHECK",
        "mkdir -m 700",
        "mkdir -p -m 700",
        "escape=`",
        "WORKDIR",
        "RUN ln -s",
        "EXPOSE",
    ];
    WORDS.iter().any(|word| dockerfile.contains(word))
}

#[test]
fn buildah_makes_the_same_of_rows() {
    let Some(h) = Hostel::new() else { return };
    if !Path::new("/usr/bin/buildah").exists() {
        return skip("buildah is not installed");
    }
    if !crate::harness::has_subordinate_ids() {
        return skip("buildah needs a range of subordinate ids");
    }
    let all = std::env::var("HOSTEL_TEST_PARITY").is_ok_and(|value| value == "all");
    let (dir, root) = (files(&h), h.scratch("buildah"));
    let run = h.runtime().join("buildah");
    fs::create_dir_all(&run).unwrap();
    let buildah = |arguments: &[&str]| {
        let places = [root.join("graph"), root.join("run")].map(|path| path.display().to_string());
        let common = ["--storage-driver", "vfs", "--root", &places[0], "--runroot", &places[1]];
        h.program("buildah", &[&common[..], arguments].concat())
            .env("XDG_RUNTIME_DIR", &run.to_string_lossy())
            .env("REGISTRY_AUTH_FILE", "/dev/null")
            .run()
    };
    let archive = h.scratch("base").join("busybox.tar");
    h.run(&format!("save -o {} busybox", archive.display())).ok();
    buildah(&["pull", "-q", &format!("docker-archive:{}", archive.display())]).ok();
    let file = h.scratch("dockerfile").join("Dockerfile");
    let stride = if all { 1 } else { BUILDAH_STRIDE };
    let mut wrong = Vec::new();
    for (number, row) in rows().iter().enumerate().step_by(stride) {
        if row.is_newer || differs_by_design(&row.dockerfile) {
            continue;
        }
        fs::write(&file, &row.dockerfile).unwrap();
        let (file, dir) = (file.display().to_string(), dir.display().to_string());
        let done = buildah(&[
            "build",
            "--isolation",
            "chroot",
            "--format",
            "docker",
            "--pull-never",
            "-q",
            "-t",
            "row",
            "-f",
            &file,
            &dir,
        ]);
        done.ok();
        let out = h.scratch("out").join(number.to_string());
        buildah(&["push", "-q", "row", &format!("oci:{}:row", out.display())]).ok();
        let found = Built { history: row.result.history.clone(), ..built_elsewhere(&out, row) };
        compare(number, row, &found, &mut wrong);
        buildah(&["rmi", "-f", "row"]);
    }
    // Its files belong to subordinate ids.
    buildah(&["unshare", "rm", "-rf", &root.to_string_lossy()]).ok();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn dockerd_makes_the_same_of_rows() {
    let Ok(socket) = std::env::var("HOSTEL_TEST_DOCKER") else {
        skip_for_this_kernel("no Docker daemon is given: scripts/with-dockerd scripts/test has one");
        return;
    };
    let Some(h) = Hostel::new() else { return };
    let dir = files(&h).display().to_string();
    let docker = |arguments: &[&str]| {
        h.program("docker", &[&["-H", &format!("unix://{socket}")][..], arguments].concat())
            .env("DOCKER_BUILDKIT", "1")
            .run()
    };
    let archive = h.scratch("base").join("busybox.tar").display().to_string();
    h.run(&format!("save -o {archive} busybox")).ok();
    docker(&["load", "-q", "-i", &archive]).ok();
    let file = h.scratch("dockerfile").join("Dockerfile");
    let mut wrong = Vec::new();
    for (number, row) in rows().iter().enumerate().filter(|(_, row)| !row.is_newer) {
        fs::write(&file, &row.dockerfile).unwrap();
        let file = file.display().to_string();
        docker(&["build", "-q", "--network", "host", "-t", "row", "-f", &file, &dir]).ok();
        let out = h.scratch("out").join(number.to_string());
        fs::create_dir_all(&out).unwrap();
        let tar = out.join("saved.tar").display().to_string();
        docker(&["save", "-o", &tar, "row"]).ok();
        tar::Archive::new(File::open(&tar).unwrap()).unpack(&out).unwrap();
        compare(number, row, &built_elsewhere(&out, row), &mut wrong);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
