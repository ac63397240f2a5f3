//! Images for several platforms, and annotations.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::{build, config, context};
use crate::harness::Hostel;
use crate::registry::server::DockerRegistry;

/// No RUN, so that any machine builds it for any platform.
const TEXT: &str =
    "FROM scratch\nARG TARGETPLATFORM\nENV P=$TARGETPLATFORM\nCOPY <<EOF /p\n$TARGETPLATFORM\nEOF\n";
const PLATFORMS: &str = "--platform linux/amd64,linux/arm64,linux/arm/v7";

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn blob(layout: &Path, descriptor: &Value) -> Value {
    let digest = descriptor["digest"].as_str().unwrap().trim_start_matches("sha256:").to_owned();
    json_of(&layout.join("blobs/sha256").join(digest))
}

#[test]
fn an_index_joins_the_images_of_all_platforms() {
    let Some(h) = Hostel::new() else { return };
    let dir = context(&h, "c", &[("Dockerfile", TEXT)]);
    let layout = h.scratch("out").join("layout");
    let annotations = "--annotation a=1 --annotation manifest[linux/arm64]:b=2 --annotation index,index-descriptor:c=3 \
        --annotation manifest-descriptor:d=4";
    let flags = format!("{PLATFORMS} {annotations} --output type=oci,dest={},tar=false", layout.display());
    let shown = build(&h, "x", &dir, &flags);
    assert!(shown.contains("[linux/arm64 1/1] COPY"), "{shown}");
    let top = json_of(&layout.join("index.json"))["manifests"][0].clone();
    assert_eq!(top["annotations"]["c"], "3");
    let index = blob(&layout, &top);
    assert_eq!(index["annotations"], json!({"c": "3"}));
    let platforms: Vec<Value> = index["manifests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|descriptor| {
            assert_eq!(descriptor["annotations"], json!({"d": "4"}));
            let manifest = blob(&layout, descriptor);
            let config = blob(&layout, &manifest["config"]);
            assert_eq!(config["architecture"], descriptor["platform"]["architecture"]);
            let expected = match config["architecture"] == "arm64" {
                true => json!({"a": "1", "b": "2"}),
                false => json!({"a": "1"}),
            };
            assert_eq!(manifest["annotations"], expected);
            config["config"]["Env"][1].clone()
        })
        .collect();
    assert_eq!(platforms, ["P=linux/amd64", "P=linux/arm64", "P=linux/arm/v7"]);
    // What was written is read again, each platform as it is asked for.
    h.run(&format!("pull -q --platform linux/arm/v7 oci:{}", layout.display())).ok();
    let files = h.scratch("files");
    build(&h, "x", &dir, &format!("{PLATFORMS} --output type=local,dest={}", files.display()));
    assert_eq!(fs::read_to_string(files.join("linux_arm64/p")).unwrap(), "linux/arm64\n");
}

/// What a manifest in a registry's own directory says.
fn pushed(h: &Hostel, digest: &str) -> Value {
    let hex = digest.trim_start_matches("sha256:");
    let place = format!("registry/data/docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]);
    json_of(&h.place("scratch").join(place))
}

/// The digest that `push` prints.
fn digest_of_push(told: &str) -> String {
    let line = told.lines().find(|line| line.contains(": digest: ")).unwrap();
    line.split_whitespace().find(|word| word.starts_with("sha256:")).unwrap().to_owned()
}

fn architectures(index: &Value) -> Vec<&str> {
    let manifests = index["manifests"].as_array().unwrap();
    manifests.iter().map(|one| one["platform"]["architecture"].as_str().unwrap()).collect()
}

#[test]
fn a_name_stands_for_the_images_of_all_platforms() {
    let Some(h) = Hostel::new() else { return };
    let dir = context(&h, "c", &[("Dockerfile", TEXT)]);
    build(&h, "x:1", &dir, PLATFORMS);
    let variable = |flags: &str| {
        let told = h.run(&format!("image inspect --format {{{{.Config.Env}}}} {flags}")).ok().out();
        told.split("P=").nth(1).unwrap().trim_end_matches(&['"', ']', '\n'][..]).to_owned()
    };
    assert_eq!(variable("x:1"), "linux/amd64");
    assert_eq!(variable("--platform linux/arm64 x:1"), "linux/arm64");
    assert_eq!(variable("--platform linux/arm/v7 x:1"), "linux/arm/v7");
    h.run("image inspect --platform linux/s390x x:1").code(1).stderr_has("linux/s390x");
    // It is one image to those who list, and none of it is dangling.
    let own = h.run("images --format {{.Repository}}:{{.Tag}}").ok().out();
    assert_eq!(
        own.lines().filter(|line| line.starts_with("x:") || line.contains("none")).count(),
        1,
        "{own}"
    );
    h.run("images -q --filter dangling=true").ok().stdout("");
    h.run("image prune -f").ok();
    assert_eq!(variable("--platform linux/arm64 x:1"), "linux/arm64");
    // A container is made of the one that was asked for, without a look into a registry.
    h.run("create --name cc --platform linux/arm64 x:1 /p").ok();
    let image = h.run("inspect --format {{.Image}} cc").ok().out();
    let foreign = h.run("image inspect --platform linux/arm64 --format {{.Id}} x:1").ok().out();
    assert_eq!(image, foreign);
    // A name of a name stands for the same.
    h.run("tag x:1 y").ok();
    h.run("rmi x:1").ok().stdout("Untagged: x:1\n");
    assert_eq!(variable("--platform linux/arm/v7 y"), "linux/arm/v7");
    h.run(&format!("rmi {}", foreign.trim())).code(1).stderr_has("used by");
    h.run("rmi y").code(1).stderr_has("container");
    h.run("rm cc").ok();
    h.run(&format!("rmi {}", foreign.trim())).code(1).stderr_has("one of the platforms of y:latest");
    let gone = h.run("rmi y").ok().out();
    assert_eq!(gone.lines().filter(|line| line.starts_with("Deleted: ")).count(), 6, "{gone}");
    h.run("image inspect --platform linux/arm64 y").code(1);
    h.run("image verify").ok().has("nothing is wrong");
}

#[test]
fn an_image_of_several_platforms_leaves_nothing() {
    let h = Hostel::empty();
    let dir = context(&h, "c", &[("Dockerfile", TEXT)]);
    build(&h, "x", &dir, PLATFORMS);
    // By force one of them goes, and the name stands for the others.
    let foreign = h.run("image inspect --platform linux/arm64 --format {{.Id}} x").ok().out();
    h.run(&format!("rmi -f {}", foreign.trim())).ok();
    h.run("image inspect --platform linux/arm64 x").code(1);
    h.run("image inspect --platform linux/arm/v7 x").ok();
    h.run("image prune -af").ok().has("untagged: x:latest");
    h.run("images -aq").ok().stdout("");
    h.run("builder prune -af").ok();
    for place in ["blobs/sha256", "layers", "merged"] {
        let left = fs::read_dir(h.place("root").join(place)).unwrap().count();
        assert_eq!(left, 0, "{place}");
    }
}

#[test]
fn an_image_of_several_platforms_is_saved_with_all_of_them() {
    let h = Hostel::empty();
    let dir = context(&h, "c", &[("Dockerfile", TEXT)]);
    build(&h, "x:1", &dir, &format!("{PLATFORMS} --annotation index:a=b"));
    let out = h.scratch("out");
    let place = |name: &str| out.join(name).display().to_string();
    h.run(&format!("save --format oci-dir -o {} x:1", place("all"))).ok();
    let top = json_of(&out.join("all/index.json"));
    assert_eq!(top["manifests"].as_array().unwrap().len(), 1);
    let index = blob(&out.join("all"), &top["manifests"][0]);
    assert_eq!(architectures(&index), ["amd64", "arm64", "arm"]);
    assert_eq!(index["annotations"], json!({"a": "b"}));
    h.run(&format!("save --format oci-dir --platform linux/arm64 -o {} x:1", place("one"))).ok();
    let top = json_of(&out.join("one/index.json"));
    assert_eq!(top["manifests"][0]["platform"]["architecture"], "arm64");
    // Docker's form has all of them, too, and says which is this machine's to those who read it as it once was.
    h.run(&format!("save -o {} x:1", place("d.tar"))).ok();
    h.run("rmi x:1").ok();
    h.run(&format!("load -i {}", place("d.tar"))).ok();
    assert_eq!(config(&h, "x:1")["Architecture"], "amd64");
    h.run("rmi x:1").ok();
    h.run(&format!("load --platform linux/arm64 -i {}", place("d.tar"))).ok();
    assert_eq!(config(&h, "x:1")["Architecture"], "arm64");
    h.run(&format!("load --platform linux/s390x -i {}", place("d.tar"))).code(1).stderr_has("linux/s390x");
    h.run(&format!("load -i {}", place("d.tar"))).ok();
    h.run(&format!("save --platform linux/arm64 -o {} x:1", place("no.tar")))
        .code(1)
        .stderr_has("linux/arm64");
    h.run(&format!("save -o {} x:1", place("own.tar"))).ok();
    h.run(&format!("load --platform linux/arm64 -i {}", place("own.tar"))).code(1).stderr_has("linux/amd64");
}

#[test]
fn a_push_after_the_build_sends_the_index() {
    let h = Hostel::empty();
    let Some(registry) = DockerRegistry::start(&h.scratch("registry"), "") else { return };
    let dir = context(&h, "c", &[("Dockerfile", TEXT)]);
    let name = format!("{}/later:1", registry.host());
    build(&h, &name, &dir, PLATFORMS);
    let told = h.run(&format!("push {name}")).ok().out();
    let digest = digest_of_push(&told);
    assert_eq!(architectures(&pushed(&h, &digest)), ["amd64", "arm64", "arm"]);
    // The digest is the name's from then on, and stays with what is listed and verified.
    let listed = h.run("images --digests --format {{.Digest}}").ok().out();
    assert_eq!(listed.trim(), digest);
    h.run(&format!("manifest inspect --insecure {name}")).ok().has("arm64").has("amd64");
    h.run("image verify").ok().has("nothing is wrong");
    // The same again gives the same.
    assert_eq!(digest_of_push(&h.run(&format!("push {name}")).ok().out()), digest);
    // One alone is a manifest.
    let told = h.run(&format!("push --platform linux/arm64 {name}")).ok().out();
    let one = pushed(&h, &digest_of_push(&told));
    assert!(one["config"].is_object(), "{one}");
    h.run(&format!("push --platform linux/s390x {name}")).code(1).stderr_has("linux/s390x");
    // All tags: each as what it is.
    h.run(&format!("tag {name} {}/later:2", registry.host())).ok();
    let told = h.run(&format!("push -a {}/later", registry.host())).ok().out();
    assert_eq!(told.matches(&digest).count(), 2, "{told}");
    h.run(&format!("rmi {name} {}/later:2", registry.host())).ok();
    for platform in ["linux/amd64", "linux/arm64", "linux/arm/v7"] {
        h.run(&format!("pull -q --platform {platform} {name}")).ok();
        assert_eq!(config(&h, &name)["Config"]["Env"][1], format!("P={platform}"));
    }
}

#[test]
fn an_index_is_pushed() {
    let Some(h) = Hostel::new() else { return };
    let Some(registry) = DockerRegistry::start(&h.scratch("registry"), "") else { return };
    let dir = context(&h, "c", &[("Dockerfile", TEXT)]);
    let name = format!("{}/several:1", registry.host());
    build(&h, &name, &dir, &format!("{PLATFORMS} --push --annotation index:c=3 --annotation a=1"));
    h.run(&format!("rmi -f {name}")).ok();
    for platform in ["linux/amd64", "linux/arm64", "linux/arm/v7"] {
        h.run(&format!("pull -q --platform {platform} {name}")).ok();
        assert_eq!(config(&h, &name)["Config"]["Env"][1], format!("P={platform}"));
    }
    // One alone keeps its annotations, too.
    let one = format!("{}/one:1", registry.host());
    build(&h, &one, &dir, &format!("--push --annotation a=1 --metadata-file {}", dir.join("told").display()));
    let told = json_of(&dir.join("told"));
    let digest = told["containerimage.digest"].as_str().unwrap();
    assert_eq!(pushed(&h, digest)["annotations"], json!({"a": "1"}));
}

#[test]
fn a_platform_without_an_interpreter_is_told() {
    let Some(h) = Hostel::new() else { return };
    let dir = context(&h, "c", &[("Dockerfile", "FROM scratch\nCOPY f /f\nRUN [\"/f\"]\n"), ("f", "")]);
    h.run(&format!("build --platform linux/s390x {}", dir.display()))
        .fails(1, &["binfmt_misc has no interpreter", "linux/s390x"]);
    for (flags, message) in [
        ("--annotation index:a=1", "not supported for single platform"),
        ("--annotation wrong:a=1", "unknown annotation type"),
        ("--platform linux/amd64,linux/arm64 --output type=docker,dest=f", "manifest lists"),
        ("--platform linux/amd64,linux/arm64 --output type=tar,dest=f", "one platform"),
        ("--platform what/is/that/then", "invalid platform"),
        ("--sbom=true", "--sbom is not supported"),
        ("--provenance=true", "--provenance is not supported"),
    ] {
        let done = h.run(&format!("build {flags} {}", dir.display()));
        assert!(done.stderr.contains(message), "{flags}: {}", done.stderr);
    }
}

#[test]
fn a_platform_that_fails_leaves_no_name_of_the_others() {
    let h = Hostel::empty();
    let text = "FROM scratch\nARG TARGETARCH\nCOPY $TARGETARCH /x\n";
    let dir = context(&h, "c", &[("Dockerfile", text), ("amd64", "here\n")]);
    h.run(&format!("build -t x --platform linux/amd64,linux/arm64 {}", dir.display()))
        .code(1)
        .stderr_has("\"/arm64\": not found");
    h.run("images -aq").ok().stdout("");
    h.run(&format!("build -q -t x --platform linux/amd64 {}", dir.display())).ok();
    h.run("images --format {{.Repository}}").ok().stdout("x\n");
}
