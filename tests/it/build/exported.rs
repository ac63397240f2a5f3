//! Caches that leave the machine, and come back.

use std::fs;

use serde_json::Value;

use super::{build, config, context, id};
use crate::harness::Hostel;
use crate::registry::server::DockerRegistry;

const STAGES: &str = "FROM busybox AS one\nRUN echo one > /one; date +%N > /when\n\
    FROM busybox\nCOPY --from=one /one /one\nRUN cat /one > /two; date +%N >> /two\nWORKDIR /w\n";

fn cached(shown: &str) -> Vec<bool> {
    // Of each step that is no base, whether it was found.
    ["RUN echo one", "COPY --from", "RUN cat", "WORKDIR"]
        .map(|step| {
            let number = shown.lines().find(|line| line.contains(step) && line.starts_with('#'));
            let Some(number) = number.and_then(|line| line.split(' ').next()) else { return false };
            shown.contains(&format!("{number} CACHED"))
        })
        .to_vec()
}

/// As on a machine that has the base alone.
fn forget(h: &Hostel) {
    h.run("rmi -f x").ok();
    h.run("builder prune -a -f").ok();
}

#[test]
fn a_directory_brings_the_cache_to_another_machine() {
    let Some(h) = Hostel::new() else { return };
    let dir = context(&h, "c", &[("Dockerfile", STAGES)]);
    let place = h.scratch("cache");
    let to = |mode: &str| format!("--cache-to type=local,dest={},mode={mode},tag={mode}", place.display());
    let from = |mode: &str| format!("--cache-from type=local,src={},tag={mode}", place.display());
    let shown = build(&h, "x", &dir, &format!("{} {}", to("max"), to("min")));
    assert!(shown.contains("exporting cache to client directory"), "{shown}");
    let first = id(&h, "x");
    forget(&h);
    // All steps of the first stage are in the larger one only; its result is what the second needs.
    let shown = build(&h, "x", &dir, &from("max"));
    assert_eq!(cached(&shown), [true; 4], "{shown}");
    assert_eq!(id(&h, "x"), first);
    forget(&h);
    let shown = build(&h, "x", &dir, &from("min"));
    assert!(!cached(&shown)[0], "{shown}");
    // It is an image layout, whose layers any tool may read.
    let index: Value = serde_json::from_slice(&fs::read(place.join("index.json")).unwrap()).unwrap();
    assert_eq!(index["manifests"].as_array().unwrap().len(), 2);
    // What is not there, or broken, is told and does no harm.
    forget(&h);
    for entry in fs::read_dir(place.join("blobs/sha256")).unwrap() {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        if bytes.starts_with(&[0x1f, 0x8b]) {
            fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        }
    }
    let shown = build(&h, "x", &dir, &format!("{} --cache-from type=local,src=/nowhere", from("max")));
    assert!(shown.contains("cannot be had") && shown.contains("/nowhere"), "{shown}");
    assert_eq!(cached(&shown), [false; 4]);
    h.run("run --rm x cat /one").ok().stdout("one\n");
}

#[test]
fn a_registry_brings_the_cache_to_another_machine() {
    let Some(h) = Hostel::new() else { return };
    let Some(registry) = DockerRegistry::start(&h.scratch("registry"), "") else { return };
    let dir = context(&h, "c", &[("Dockerfile", STAGES)]);
    let name = format!("{}/cache:x", registry.host());
    build(&h, "x", &dir, &format!("--cache-to type=registry,ref={name},mode=max"));
    let first = id(&h, "x");
    forget(&h);
    let shown =
        build(&h, "x", &dir, &format!("--cache-from {name} --cache-to type=registry,ref={name},mode=max"));
    assert_eq!(cached(&shown), [true; 4], "{shown}");
    assert_eq!(id(&h, "x"), first);
    // It is no image.
    h.run(&format!("pull -q {name}")).fails(1, &["not a container image"]);
    // Nobody listens there: the export fails the build, unless it may.
    let nowhere = "--cache-to type=registry,ref=127.0.0.1:1/c:x";
    h.run(&format!("build -t x {nowhere} {}", dir.display())).fails(1, &["error writing the cache"]);
    build(&h, "x", &dir, &format!("{nowhere},ignore-error=true"));
}

#[test]
fn an_image_carries_its_own_cache() {
    let Some(h) = Hostel::new() else { return };
    let Some(registry) = DockerRegistry::start(&h.scratch("registry"), "") else { return };
    let dir = context(&h, "c", &[("Dockerfile", STAGES)]);
    let name = format!("{}/image:x", registry.host());
    build(&h, &name, &dir, "--push --cache-to type=inline");
    let layers = |image: &str| config(&h, image)["RootFS"]["Layers"].clone();
    let first = layers(&name);
    h.run(&format!("tag {name} x")).ok();
    h.run(&format!("rmi -f {name}")).ok();
    forget(&h);
    let shown = build(&h, "x", &dir, &format!("--cache-from {name} --cache-to inline"));
    // The first stage is in no image; the copy from it is found by what it copies.
    assert_eq!(cached(&shown), [false, true, true, true], "{shown}");
    assert_eq!(layers("x"), first);
    h.run(&format!("build --cache-to type=gha {}", dir.display())).fails(125, &["type gha are not built"]);
}
