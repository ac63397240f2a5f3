//! The images that the tests run, made on this machine from Debian's packages.
//!
//! `busybox` and its variants (one per image setting that a test looks at) share one small layer and are
//! one docker-archive. `debian` is an OCI layout of three layers, made from the tar that `scripts/fixtures`
//! leaves; its layers are plain, zstd and gzip, and the last has whiteouts, an opaque directory and a hard
//! link to a lower layer's file.
//!
//! Everything is made once, under a lock, in [`dir`], and is stamped with the recipe: the stamp is the last
//! thing written, so an interrupted build is made again.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::harness::output;

/// Changes whenever what is made here changes.
const RECIPE: &str = "8";
/// Longer than any run of the tests.
const OLD: Duration = Duration::from_secs(3 * 60 * 60);
/// Where Debian's busybox-static puts the binary.
const BUSYBOX: &str = "/bin/busybox";
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where fixtures, seeds and stores live between runs: `$HOSTEL_TEST_DIR`, else in cargo's target directory.
pub(crate) fn dir() -> PathBuf {
    let dir = std::env::var_os("HOSTEL_TEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    fs::create_dir_all(&dir).unwrap();
    dir
}

/// Runs `make` in the fresh directory `dir()/name` unless its stamp says `recipe`; one process at a time.
pub(crate) fn once(name: &str, recipe: &str, make: impl FnOnce(&Path)) -> PathBuf {
    let place = dir().join(name);
    let lock = File::create(dir().join(format!("{name}.lock"))).unwrap();
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, errno)| errno).unwrap();
    let stamp = dir().join(format!("{name}.stamp"));
    if fs::read_to_string(&stamp).is_ok_and(|found| found == recipe) {
        return place;
    }
    let _ = fs::remove_file(&stamp);
    if place.exists() {
        fs::remove_dir_all(&place).unwrap();
    }
    fs::create_dir_all(&place).unwrap();
    make(&place);
    fs::write(&stamp, recipe).unwrap();
    place
}

/// Removes what [`once`] made under names that begin so, if that was long ago.
pub(crate) fn remove_old(prefix: &str) {
    for entry in fs::read_dir(dir()).unwrap().map(Result::unwrap) {
        let old = entry
            .metadata()
            .and_then(|meta| meta.modified())
            .is_ok_and(|time| time.elapsed().is_ok_and(|age| age > OLD));
        if old && entry.file_name().to_string_lossy().starts_with(prefix) {
            let _ = fs::remove_dir_all(entry.path()).or_else(|_| fs::remove_file(entry.path()));
        }
    }
}

/// The docker-archive with `busybox` and its variants; `None` where no static busybox is installed.
pub(crate) fn busybox_archive() -> Option<PathBuf> {
    let found = fs::metadata(BUSYBOX).ok()?;
    let recipe = format!("{RECIPE} {} {}", found.len(), found.mtime());
    let place = once("busybox", &recipe, |place| {
        let mut archive = Archive::new(&place.join("busybox.tar"));
        let layer = busybox_layer();
        for (tag, config) in busybox_variants() {
            // One image of two names is one entry, as `docker save` writes it.
            let tags = if tag == "busybox:latest" { vec![tag, "busybox:1"] } else { vec![tag] };
            archive.add(&tags, "amd64", &config, std::slice::from_ref(&layer));
        }
        archive.add(&["otherarch:latest"], "s390x", &json!({"Cmd": ["sh"]}), &[layer]);
        archive.finish();
        let mut archive = Archive::new(&place.join("layers.tar"));
        let layers: Vec<_> = std::iter::once(busybox_layer()).chain(small_layers()).collect();
        archive.add(&["layers:latest"], "amd64", &json!({"Cmd": ["sh"], "Env": [PATH]}), &layers);
        archive.finish();
    });
    Some(place.join("busybox.tar"))
}

/// The docker-archive with `layers`, of three layers; apart, as a hard link to a lower layer's file is more
/// than the engine it is compared with can load.
pub(crate) fn layers_archive() -> Option<PathBuf> {
    Some(busybox_archive()?.with_file_name("layers.tar"))
}

/// The same busybox image alone as an OCI layout with the tag `latest`, its layer gzip-compressed.
pub(crate) fn busybox_layout(place: &Path) {
    let mut layout = Layout::new(place);
    let layer = layout.blob(&gzip(&busybox_layer()));
    let diff_id = digest(&busybox_layer());
    let layer = Stored { kind: "tar+gzip", diff_id, ..layer };
    layout.image("latest", &json!({"Cmd": ["sh"], "Env": [PATH]}), &[layer]);
    layout.finish();
}

/// A layout whose image `latest` has this one plain layer.
pub(crate) fn layout_of(place: &Path, layer: &[u8]) {
    let mut layout = Layout::new(place);
    let layer = layout.blob(layer);
    layout.image("latest", &json!({"Cmd": ["/busybox"]}), &[layer]);
    layout.finish();
}

/// The OCI layout with the tag `debian`; `None` where `scripts/fixtures` left no Debian tar.
pub(crate) fn debian_layout() -> Option<PathBuf> {
    let source = std::env::var_os("HOSTEL_TEST_DEBIAN").map_or_else(|| dir().join("debian"), PathBuf::from);
    let base = source.join("debian.tar");
    let found = fs::metadata(&base).ok()?;
    let recipe = format!("{RECIPE} {} {}", found.len(), found.mtime());
    Some(once("debian-layout", &recipe, |place| debian(&base, place)))
}

/// One image per setting; the tag says which.
fn busybox_variants() -> Vec<(&'static str, Value)> {
    vec![
        ("busybox:latest", json!({"Cmd": ["sh"], "Env": [PATH]})),
        ("entrypoint:latest", json!({"Entrypoint": ["/bin/echo", "entry"], "Cmd": ["cmd"], "Env": [PATH]})),
        ("nocmd:latest", json!({"Env": [PATH]})),
        ("user:latest", json!({"User": "app", "Cmd": ["id"], "Env": [PATH]})),
        ("numericuser:latest", json!({"User": "1234:4321", "Cmd": ["id"], "Env": [PATH]})),
        ("env:latest", json!({"Env": [PATH, "FROM_IMAGE=yes", "EMPTY="], "Cmd": ["env"]})),
        ("workdir:latest", json!({"WorkingDir": "/made/by/engine", "Cmd": ["pwd"], "Env": [PATH]})),
        (
            "volume:latest",
            json!({"Volumes": {"/data": {}}, "ExposedPorts": {"8080/tcp": {}}, "Cmd": ["sh"], "Env": [PATH]}),
        ),
        (
            "stopsignal:latest",
            json!({"StopSignal": "SIGUSR1", "Env": [PATH],
                   "Cmd": ["sh", "-c", "trap 'echo got USR1; exit 7' USR1; echo ready; while :; do sleep 0.05; done"]}),
        ),
        (
            "healthcheck:latest",
            json!({"Cmd": ["sleep", "1000"], "Env": [PATH],
                   "Healthcheck": {"Test": ["CMD", "test", "-d", "/"], "Interval": 100_000_000}}),
        ),
        ("label:latest", json!({"Labels": {"org.example.kind": "test"}, "Cmd": ["sh"], "Env": [PATH]})),
    ]
}

pub(crate) fn busybox_layer() -> Vec<u8> {
    let applets = output(Command::new(BUSYBOX).arg("--list")).unwrap();
    let mut layer = Layer::new();
    for dir in ["bin", "etc", "proc", "sys", "dev", "root", "data", "usr", "usr/bin", "var", "var/lib"] {
        layer.dir(dir, 0o755, 0);
    }
    layer.dir("tmp", 0o1777, 0).dir("home", 0o755, 0).dir("home/app", 0o755, 1000);
    layer.file("bin/busybox", 0o755, 0, &fs::read(BUSYBOX).unwrap());
    for applet in String::from_utf8(applets.stdout).unwrap().lines().filter(|applet| *applet != "busybox") {
        layer.symlink(&format!("bin/{applet}"), "busybox");
    }
    layer.file(
        "etc/passwd",
        0o644,
        0,
        b"root:x:0:0:root:/root:/bin/sh\napp:*:1000:1000:app:/home/app:/bin/sh\n",
    );
    layer.file("etc/group", 0o644, 0, b"root:x:0:\napp:x:1000:\nextra:x:2000:app\n");
    layer.file("etc/not-executable", 0o644, 0, b"#!/bin/sh\necho no\n");
    layer.file("data/from-image", 0o644, 1000, b"of the image\n");
    layer.finish()
}

/// Two layers above busybox's: what the upper one hides, replaces and links.
fn small_layers() -> [Vec<u8>; 2] {
    let mut lower = Layer::new();
    lower.dir("l", 0o755, 0).file("l/hidden", 0o644, 0, b"hidden\n").file("l/replaced", 0o644, 0, b"old\n");
    lower.dir("l/opaque", 0o755, 0).file("l/opaque/below", 0o644, 0, b"below\n");
    lower.dir("l/gone", 0o755, 0).file("l/gone/deep", 0o644, 0, b"deep\n");
    lower.file("l/first", 0o640, 1000, b"linked\n").hard_link("l/second", "l/first");
    lower.dir("l/becomes-file", 0o755, 0).file("l/becomes-file/x", 0o644, 0, b"x\n");
    lower.file("l/becomes-dir", 0o644, 0, b"file\n");
    let mut upper = Layer::new();
    upper.file("l/.wh.hidden", 0o644, 0, b"").file("l/replaced", 0o600, 0, b"new\n");
    upper.file("l/opaque/above", 0o644, 0, b"above\n").file("l/opaque/.wh..wh..opq", 0o644, 0, b"");
    upper.file("l/.wh.gone", 0o644, 0, b"");
    upper.hard_link("l/third", "l/first").symlink("l/absolute", "/l/replaced");
    upper.file("l/becomes-file", 0o644, 0, b"now a file\n");
    upper.dir("l/becomes-dir", 0o755, 0).file("l/becomes-dir/x", 0o644, 0, b"x\n");
    let long = format!("l/{}", "long-name-".repeat(20));
    upper.file(&long, 0o644, 0, b"long\n");
    [lower.finish(), upper.finish()]
}

/// Writes the Debian layout: `base` split in two by path, and a third layer of changes.
fn debian(base: &Path, place: &Path) {
    let mut layout = Layout::new(place);
    let parts = [place.join("part0"), place.join("part1")];
    let accounts = split(base, &parts);
    let mut layers = vec![layout.blob_file(&parts[0], "tar")];
    let compressed = place.join("part1.zst");
    let diff_id = digest_file(&parts[1]);
    if run_quietly(Command::new("zstd").args(["-q", "-1", "-f"]).arg(&parts[1]).arg("-o").arg(&compressed)) {
        let stored = layout.blob_file(&compressed, "tar+zstd");
        layers.push(Stored { diff_id, ..stored });
        fs::remove_file(&parts[1]).unwrap();
    } else {
        layers.push(layout.blob_file(&parts[1], "tar"));
    }
    let mut top = Layer::new();
    let account = |name: &str, line: &str| [accounts[name].as_slice(), line.as_bytes()].concat();
    top.file("etc/passwd", 0o644, 0, &account("etc/passwd", "app:*:1000:1000:app:/home/app:/bin/bash\n"));
    top.file("etc/group", 0o644, 0, &account("etc/group", "app:x:1000:\n"));
    top.dir("home/app", 0o755, 1000).file("home/app/.profile", 0o644, 1000, b"");
    top.file("usr/share/doc/.wh..wh..opq", 0o644, 0, b"").file(
        "usr/share/doc/only",
        0o644,
        0,
        b"only this\n",
    );
    top.file("usr/share/common-licenses/.wh.BSD", 0o644, 0, b"");
    top.dir("opt/fixture", 0o755, 0).hard_link("opt/fixture/os-release", "usr/lib/os-release");
    top.file("var/www/html/index.html", 0o644, 0, b"served from the fixture\n");
    let top = top.finish();
    let stored = layout.blob(&gzip(&top));
    layers.push(Stored { kind: "tar+gzip", diff_id: digest(&top), ..stored });
    let config = json!({"Cmd": ["bash"], "Env": [PATH]});
    layout.image("debian", &config, &layers);
    layout.image(
        "debian-app",
        &json!({"User": "app", "WorkingDir": "/home/app", "Cmd": ["id"], "Env": [PATH]}),
        &layers,
    );
    layout.finish();
}

/// Splits a tar in two without touching an entry's bytes; returns the account files' contents.
fn split(base: &Path, parts: &[PathBuf; 2]) -> BTreeMap<String, Vec<u8>> {
    let mut source = BufReader::with_capacity(1 << 20, File::open(base).unwrap());
    let mut outputs =
        parts.each_ref().map(|part| BufWriter::with_capacity(1 << 20, File::create(part).unwrap()));
    let mut accounts = BTreeMap::new();
    let mut extents = Vec::new();
    let mut archive = tar::Archive::new(File::open(base).unwrap());
    let mut start = 0;
    for entry in archive.entries_with_seek().unwrap().raw(true) {
        let mut entry = entry.unwrap();
        let kind = entry.header().entry_type();
        let end = entry.raw_file_position() + entry.header().entry_size().unwrap().next_multiple_of(512);
        if kind.is_pax_local_extensions() || kind.is_gnu_longname() || kind.is_gnu_longlink() {
            continue; // belongs to the entry that follows
        }
        let path = entry.path().unwrap().to_string_lossy().trim_start_matches("./").to_owned();
        if path == "etc/passwd" || path == "etc/group" {
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            accounts.insert(path.clone(), content);
        }
        let upper =
            ["usr/share/", "usr/lib/python3", "var/lib/"].iter().any(|prefix| path.starts_with(prefix));
        if !kind.is_pax_global_extensions() && (path == "dev/" || !path.starts_with("dev/")) {
            extents.push((usize::from(upper), start, end));
        }
        start = end;
    }
    for (part, start, end) in extents {
        source.seek(SeekFrom::Start(start)).unwrap();
        std::io::copy(&mut Read::by_ref(&mut source).take(end - start), &mut outputs[part]).unwrap();
    }
    for output in &mut outputs {
        output.write_all(&[0; 1024]).unwrap();
        output.flush().unwrap();
    }
    accounts
}

/// A layer's tar under construction.
pub(crate) struct Layer(tar::Builder<Vec<u8>>);

impl Layer {
    pub(crate) fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn entry(
        &mut self,
        kind: tar::EntryType,
        path: &str,
        mode: u32,
        owner: u64,
        link: &str,
        data: &[u8],
    ) -> &mut Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner);
        header.set_gid(owner);
        header.set_mtime(1_700_000_000);
        header.set_size(data.len() as u64);
        if link.is_empty() {
            self.0.append_data(&mut header, path, data).unwrap();
        } else {
            self.0.append_link(&mut header, path, link).unwrap();
        }
        self
    }

    pub(crate) fn dir(&mut self, path: &str, mode: u32, owner: u64) -> &mut Self {
        self.entry(tar::EntryType::Directory, path, mode, owner, "", b"")
    }

    pub(crate) fn file(&mut self, path: &str, mode: u32, owner: u64, data: &[u8]) -> &mut Self {
        self.entry(tar::EntryType::Regular, path, mode, owner, "", data)
    }

    pub(crate) fn symlink(&mut self, path: &str, target: &str) -> &mut Self {
        self.entry(tar::EntryType::Symlink, path, 0o777, 0, target, b"")
    }

    pub(crate) fn hard_link(&mut self, path: &str, target: &str) -> &mut Self {
        self.entry(tar::EntryType::Link, path, 0o644, 0, target, b"")
    }

    /// A device or a pipe.
    pub(crate) fn special(&mut self, path: &str, kind: tar::EntryType, major: u32, minor: u32) -> &mut Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o666);
        header.set_size(0);
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        self.0.append_data(&mut header, path, &b""[..]).unwrap();
        self
    }

    /// PAX records of the entry that follows.
    pub(crate) fn extended(&mut self, records: &[(&str, &str)]) -> &mut Self {
        self.0.append_pax_extensions(records.iter().map(|(key, value)| (*key, value.as_bytes()))).unwrap();
        self
    }

    /// A file of `size` bytes of which only the last is there (GNU's sparse format 1.0).
    pub(crate) fn sparse(&mut self, path: &str, size: u64) -> &mut Self {
        let mut data = format!("1\n{}\n1\n", size - 1).into_bytes();
        data.resize(512, 0);
        data.push(b'E');
        let real = size.to_string();
        let records = [
            ("GNU.sparse.major", "1"),
            ("GNU.sparse.minor", "0"),
            ("GNU.sparse.name", path),
            ("GNU.sparse.realsize", &real),
        ];
        self.extended(&records).file("GNUSparseFile.0/sparse", 0o644, 0, &data)
    }

    /// A file whose name is written into the header as it is, past the tar crate's own checks.
    pub(crate) fn hostile_file(&mut self, path: &str, data: &[u8]) -> &mut Self {
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.set_mode(0o644);
        header.set_size(data.len() as u64);
        header.set_cksum();
        self.0.append(&header, data).unwrap();
        self
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// A docker-archive under construction (moby's `docker save` format: manifest.json, configs, layers).
pub(crate) struct Archive {
    tar: tar::Builder<BufWriter<File>>,
    written: Vec<String>,
    manifest: Vec<Value>,
}

impl Archive {
    pub(crate) fn new(file: &Path) -> Self {
        let tar = tar::Builder::new(BufWriter::new(File::create(file).unwrap()));
        Self { tar, written: Vec::new(), manifest: Vec::new() }
    }

    fn put(&mut self, name: String, data: &[u8]) {
        if self.written.contains(&name) {
            return;
        }
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(data.len() as u64);
        self.tar.append_data(&mut header, &name, data).unwrap();
        self.written.push(name);
    }

    pub(crate) fn add(&mut self, tags: &[&str], architecture: &str, config: &Value, layers: &[Vec<u8>]) {
        let architecture = if architecture == "amd64" { native_architecture() } else { architecture };
        let digests: Vec<_> = layers.iter().map(|layer| digest(layer)).collect();
        let config = image_config(architecture, config, &digests);
        let config_name = format!("{}.json", digest(&config));
        let names: Vec<_> = digests.iter().map(|digest| format!("{digest}.tar")).collect();
        self.manifest.push(json!({"Config": config_name, "RepoTags": tags, "Layers": names}));
        self.put(config_name, &config);
        for (name, layer) in names.into_iter().zip(layers) {
            self.put(name, layer);
        }
    }

    /// Writes the manifest as it is, whatever was added: for archives that lie.
    pub(crate) fn finish_with(mut self, manifest: &Value) {
        self.put("manifest.json".to_owned(), manifest.to_string().as_bytes());
        self.tar.into_inner().unwrap().flush().unwrap();
    }

    pub(crate) fn finish(mut self) {
        let manifest = Value::from(std::mem::take(&mut self.manifest));
        self.finish_with(&manifest);
    }
}

/// A blob that is in a layout.
#[derive(Clone)]
pub(crate) struct Stored {
    digest: String,
    size: u64,
    kind: &'static str,
    diff_id: String,
}

impl Stored {
    /// The same blob under a config that claims other content for it.
    pub(crate) fn with_diff_id(self, diff_id: &str) -> Self {
        Self { diff_id: diff_id.to_owned(), ..self }
    }
}

/// An OCI image layout under construction (OCI image-spec, image-layout.md).
pub(crate) struct Layout {
    place: PathBuf,
    manifests: Vec<Value>,
}

impl Layout {
    pub(crate) fn new(place: &Path) -> Self {
        fs::create_dir_all(place.join("blobs/sha256")).unwrap();
        fs::write(place.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self { place: place.to_owned(), manifests: Vec::new() }
    }

    pub(crate) fn blob(&mut self, data: &[u8]) -> Stored {
        let digest = digest(data);
        fs::write(self.place.join("blobs/sha256").join(&digest), data).unwrap();
        Stored { diff_id: digest.clone(), digest, size: data.len() as u64, kind: "tar" }
    }

    /// Moves a file of the layout's own file system in.
    fn blob_file(&mut self, file: &Path, kind: &'static str) -> Stored {
        let digest = digest_file(file);
        let size = fs::metadata(file).unwrap().len();
        fs::rename(file, self.place.join("blobs/sha256").join(&digest)).unwrap();
        Stored { diff_id: digest.clone(), digest, size, kind }
    }

    pub(crate) fn image(&mut self, tag: &str, config: &Value, layers: &[Stored]) {
        let diff_ids: Vec<_> = layers.iter().map(|layer| layer.diff_id.clone()).collect();
        let config = self.blob(&image_config(native_architecture(), config, &diff_ids));
        let layers: Vec<_> = layers
            .iter()
            .map(|layer| descriptor(&format!("application/vnd.oci.image.layer.v1.{}", layer.kind), layer))
            .collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config), "layers": layers,
        });
        let manifest = self.blob(manifest.to_string().as_bytes());
        let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        self.manifests.push(entry);
    }

    pub(crate) fn finish(self) {
        let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
                           "manifests": self.manifests});
        fs::write(self.place.join("index.json"), index.to_string()).unwrap();
    }
}

fn descriptor(media_type: &str, blob: &Stored) -> Value {
    json!({"mediaType": media_type, "digest": format!("sha256:{}", blob.digest), "size": blob.size})
}

fn image_config(architecture: &str, config: &Value, diff_ids: &[String]) -> Vec<u8> {
    let diff_ids: Vec<_> = diff_ids.iter().map(|digest| format!("sha256:{digest}")).collect();
    json!({"architecture": architecture, "os": "linux", "created": "2023-11-14T22:13:20Z", "config": config,
           "rootfs": {"type": "layers", "diff_ids": diff_ids}})
    .to_string()
    .into_bytes()
}

/// The machine's architecture as the OCI image specification spells it (Go's names).
fn native_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

pub(crate) fn digest(data: &[u8]) -> String {
    hex(&Sha256::digest(data))
}

fn digest_file(file: &Path) -> String {
    let mut file = File::open(file).unwrap();
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer).unwrap();
        if n == 0 {
            return hex(&hash.finalize());
        }
        hash.update(&buffer[..n]);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        text.push_str(&format!("{byte:02x}"));
        text
    })
}

pub(crate) fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn run_quietly(command: &mut Command) -> bool {
    output(command).is_ok_and(|output| output.status.success())
}

#[test]
fn fixtures_are_what_they_claim() {
    let Some(archive) = busybox_archive() else {
        return crate::harness::skip("busybox-static is not installed");
    };
    let list = output(Command::new("tar").arg("-tf").arg(archive)).unwrap();
    let list = String::from_utf8(list.stdout).unwrap();
    assert!(list.lines().any(|name| name == "manifest.json"), "{list}");
    let place = tempfile::tempdir_in(dir()).unwrap();
    busybox_layout(place.path());
    let blobs = fs::read_dir(place.path().join("blobs/sha256")).unwrap();
    for blob in blobs.map(Result::unwrap) {
        assert_eq!(digest_file(&blob.path()), blob.file_name().to_str().unwrap());
    }
}

#[test]
fn the_debian_layout_has_three_layers() {
    let Some(layout) = debian_layout() else {
        return crate::harness::skip("no Debian tar from scripts/fixtures");
    };
    let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
    let digest = index["manifests"][0]["digest"].as_str().unwrap().trim_start_matches("sha256:").to_owned();
    let manifest = fs::read(layout.join("blobs/sha256").join(digest)).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    assert_eq!(manifest["layers"].as_array().unwrap().len(), 3);
}
