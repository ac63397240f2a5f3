//! buildah beside hostel: what one pushes, saves or commits, the other reads, with the same ids and digests.

use std::fs;
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use super::server::DockerRegistry;
use crate::harness::{Done, Hostel, has_subordinate_ids, skip, words};

/// buildah with a store of its own.
struct Buildah<'a> {
    h: &'a Hostel,
    root: String,
    /// No run directory may have more than 50 characters.
    run: TempDir,
}

impl<'a> Buildah<'a> {
    fn new(h: &'a Hostel) -> Option<Self> {
        if !Path::new("/usr/bin/buildah").exists() {
            skip("buildah is not installed");
            return None;
        }
        if !has_subordinate_ids() {
            skip("buildah needs a range of subordinate ids");
            return None;
        }
        // As podman, it wants the file where it is told to look for it.
        fs::create_dir_all(h.place("docker")).unwrap();
        fs::write(h.place("docker/config.json"), "{}").unwrap();
        let run = tempfile::Builder::new().prefix("ht").tempdir_in("/tmp").unwrap();
        Some(Self { h, root: h.scratch("buildah").to_string_lossy().into_owned(), run })
    }

    fn run(&self, line: &str) -> Done {
        let run = self.run.path().to_string_lossy();
        let mut all = vec!["--root", &self.root, "--runroot", &run, "--storage-driver", "vfs"];
        let words = words(line);
        all.extend(words.iter().map(String::as_str));
        self.h.program("buildah", &all).env("XDG_RUNTIME_DIR", &run).run()
    }
}

impl Drop for Buildah<'_> {
    fn drop(&mut self) {
        // Its files belong to subordinate ids, too.
        self.run(&format!("unshare rm -rf {0}/vfs {0}/vfs-layers {0}/vfs-containers", self.root));
    }
}

fn skopeo_digest(h: &Hostel, image: &str) -> Option<String> {
    if !Path::new("/usr/bin/skopeo").exists() {
        skip("skopeo is not installed");
        return None;
    }
    let done = h.program("skopeo", &["inspect", "--format", "{{.Digest}}", image]).run();
    Some(done.ok().out())
}

/// The id of an image of hostel's, without its algorithm.
fn id(h: &Hostel, name: &str) -> String {
    h.run(&format!("images -q --no-trunc {name}")).ok().out()["sha256:".len()..].to_owned()
}

#[test]
fn buildah_reads_what_hostel_pushed_and_saved() {
    let Some(h) = Hostel::new() else { return };
    let Some(buildah) = Buildah::new(&h) else { return };
    let Some(registry) = DockerRegistry::start(&h.scratch("registry"), "") else { return };
    let name = format!("{}/ours:1", registry.host());
    h.run(&format!("tag label {name}")).ok();
    let pushed = h.run(&format!("push {name}"));
    let digest = pushed.ok().stdout.split("digest: ").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    let own = id(&h, &name);
    assert_eq!(buildah.run(&format!("pull -q --tls-verify=false {name}")).ok().out(), own);
    let digests = buildah.run(&format!("images --digests --format '{{{{.Digest}}}}' {name}"));
    digests.ok().has(&digest);
    let dir = h.scratch("saved");
    for (format, transport) in [
        ("docker-archive", "docker-archive"),
        ("oci-archive", "oci-archive"),
        ("oci-dir", "oci"),
        ("docker-dir", "dir"),
    ] {
        let file = dir.join(format);
        h.run(&format!("save --format {format} -o {} {name}", file.display())).ok();
        buildah.run("rmi -a -f").ok();
        let image = format!("{transport}:{}", file.display());
        // It calls the image of a directory as that is called, which may have no capitals then.
        if format != "oci-dir" {
            assert_eq!(buildah.run(&format!("pull -q {image}")).ok().out(), own, "{format}");
        }
        if format.starts_with("oci") {
            // It is what the registry has, to the byte.
            let found = skopeo_digest(&h, &image);
            assert_eq!(found.unwrap_or_else(|| digest.clone()), digest, "{format}");
        }
    }
}

#[test]
fn hostel_reads_what_buildah_made() {
    let Some(h) = Hostel::new() else { return };
    let Some(buildah) = Buildah::new(&h) else { return };
    let Some(registry) = DockerRegistry::start(&h.scratch("registry"), "") else { return };
    let dir = h.scratch("made");
    fs::write(dir.join("text"), "of buildah\n").unwrap();
    h.run(&format!("save -o {}/base.tar busybox:latest", dir.display())).ok();
    buildah.run(&format!("pull -q docker-archive:{}/base.tar", dir.display())).ok();
    let container = buildah.run("from --pull-never busybox").ok().out();
    buildah.run(&format!("copy -q {container} {}/text /text", dir.display())).ok();
    buildah.run(&format!("config --cmd 'cat /text' --label made.by=buildah {container}")).ok();
    for format in ["oci", "docker"] {
        let name = format!("{}/made-{format}:1", registry.host());
        let made = buildah.run(&format!("commit -q --format {format} {container} {name}")).ok().out();
        let file = dir.join(format!("{format}.digest"));
        buildah.run(&format!("push -q --tls-verify=false --digestfile {} {name}", file.display())).ok();
        let digest = fs::read_to_string(&file).unwrap();
        let other = Hostel::empty();
        other.run(&format!("pull {name}")).ok().has(&format!("Digest: {digest}\n"));
        assert_eq!(id(&other, &name), made);
        other.run(&format!("run --rm {name}")).ok().stdout("of buildah\n");
        other.run(&format!("images -q --filter label=made.by=buildah {name}")).ok().has(&made[..12]);
        // Pushed on, it is what it was.
        let moved = format!("{}/moved-{format}:1", registry.host());
        other.run(&format!("tag {name} {moved}")).ok();
        other.run(&format!("push {moved}")).ok().has(&format!("digest: {digest} "));
        for transport in ["docker-archive", "oci-archive"] {
            let file = dir.join(format!("{format}-{transport}.tar"));
            buildah.run(&format!("push -q {name} {transport}:{}:{name}", file.display())).ok();
            let other = Hostel::empty();
            other.run(&format!("load -i {}", file.display())).ok().has(&format!("Loaded image: {name}\n"));
            other.run(&format!("run --rm {name}")).ok().stdout("of buildah\n");
            if transport == "oci-archive" {
                // What the archive has is kept, and pushed on as it is.
                let index = other.program("tar", &["-xOf", &file.to_string_lossy(), "index.json"]).run();
                let index: Value = serde_json::from_str(&index.ok().stdout).unwrap();
                let digest = index["manifests"][0]["digest"].as_str().unwrap();
                other.run(&format!("tag {name} {moved}")).ok();
                other.run(&format!("push {moved}")).ok().has(&format!("digest: {digest} "));
            }
            if (format, transport) != ("docker", "oci-archive") {
                assert_eq!(id(&other, &name), made, "{format} {transport}");
            }
        }
    }
}
