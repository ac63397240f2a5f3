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
    // The store tells them apart by their tags.
    let listed = h.run("images --format {{.Repository}}:{{.Tag}}").ok().out();
    assert!(listed.contains("x:latest-linux-arm-v7"), "{listed}");
    let files = h.scratch("files");
    build(&h, "x", &dir, &format!("{PLATFORMS} --output type=local,dest={}", files.display()));
    assert_eq!(fs::read_to_string(files.join("linux_arm64/p")).unwrap(), "linux/arm64\n");
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
    let digest = told["containerimage.digest"].as_str().unwrap().trim_start_matches("sha256:").to_owned();
    let place = format!("registry/data/docker/registry/v2/blobs/sha256/{}/{digest}/data", &digest[..2]);
    assert_eq!(json_of(&h.place("scratch").join(place))["annotations"], json!({"a": "1"}));
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
