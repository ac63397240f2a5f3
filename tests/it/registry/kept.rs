//! What stays in the store of what came from elsewhere: compressed layers, their repair, imports from the web.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use super::noise;
use super::server::{DockerRegistry, FakeImage, OCI_LAYER, Reply, Server, forward};
use crate::fixtures::{digest, gzip};
use crate::harness::Hostel;

fn blobs(h: &Hostel) -> usize {
    let entries = fs::read_dir(h.root().join("blobs/sha256")).unwrap();
    entries.filter(|entry| entry.as_ref().unwrap().file_type().unwrap().is_file()).count()
}

#[test]
fn compressed_layers_are_kept_unless_the_settings_say_otherwise() {
    let image = FakeImage::new(&[noise(100_000, 1), noise(100_000, 2)]);
    let server = Server::start({
        let image = image.clone();
        move |seen| image.answer(seen)
    });
    let h = Hostel::empty();
    h.run(&format!("pull -q {}/x", server.host())).ok();
    let kept = blobs(&h);
    // What an image in use keeps is not to be had back.
    h.run(&format!("create --name user {}/x /x", server.host())).ok();
    h.run("system df --format '{{.Type}} {{.Reclaimable}}'").ok().has("(0%)\nContainers");
    h.run("rm user").ok();
    let other = Hostel::empty();
    let place = other.place("config/hostel");
    fs::create_dir_all(&place).unwrap();
    fs::write(place.join("config.toml"), "keep_compressed = false\n").unwrap();
    other.run(&format!("pull -q {}/x", server.host())).ok();
    assert_eq!(blobs(&other), kept - 2, "all but the two layers");
    other.run("image verify").ok();
    // Where they are not kept, a push makes them, and they go again.
    let Some(registry) = DockerRegistry::start(&other.scratch("registry"), "") else { return };
    let name = format!("{}/x:1", registry.host());
    other.run(&format!("tag {}/x {name}", server.host())).ok();
    other.run(&format!("push {name}")).ok().has("digest: sha256:");
    assert!(blobs(&other) <= kept, "{}", blobs(&other));
    other.run("image verify").ok();
    let third = Hostel::empty();
    let pull = format!("pull -q {}/x", server.host());
    third.cmd(&pull).env("HOSTEL_KEEP_COMPRESSED", "maybe").run().fails(1, &["neither true nor false"]);
    third.cmd(&pull).env("HOSTEL_KEEP_COMPRESSED", "0").run().ok();
    assert_eq!(blobs(&third), kept - 2);
}

#[test]
fn what_is_missing_or_altered_is_named_and_fetched_again() {
    let image = FakeImage::new(&[noise(100_000, 1), noise(100_000, 2)]);
    let server = Server::start({
        let image = image.clone();
        move |seen| image.answer(seen)
    });
    let h = Hostel::empty();
    let name = format!("{}/x:latest", server.host());
    h.run(&format!("pull -q {name}")).ok();
    h.run("image verify").ok().has("nothing is wrong");
    let hex = |digest: &str| digest["sha256:".len()..].to_owned();
    let blob = |digest: &str| h.root().join("blobs/sha256").join(hex(digest));
    let kept = blob(&image.layers[0]);
    let whole = fs::read(&kept).unwrap();
    let break_it = |path: &PathBuf| {
        let mut bytes = fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x20;
        fs::remove_file(path).unwrap();
        fs::write(path, bytes).unwrap();
    };
    let repaired = |what: &str| {
        h.run("image verify").code(1).has(what).has(&format!("(used by {name})"));
        h.run("image verify --repair").ok().has(what).has("; repaired");
        h.run("image verify").ok().has("nothing is wrong");
    };
    // A container runs all the same: a push alone would miss it.
    fs::remove_file(&kept).unwrap();
    h.run("image verify").code(1).stderr_has("keep the image's digest");
    repaired(&format!("compressed layer {}: it is missing", image.layers[0]));
    break_it(&kept);
    repaired(&format!("compressed layer {}: it has been altered", image.layers[0]));
    assert!(fs::read(&kept).unwrap() == whole, "it is what it was");
    // The packed layer is made again from it, without the registry.
    let requests = server.count("/blobs/");
    let value: Value = serde_json::from_str(&h.run(&format!("image inspect {name}")).ok().out()).unwrap();
    let layer = value[0]["RootFS"]["Layers"][1].as_str().unwrap().to_owned();
    break_it(&h.root().join("layers").join(hex(&layer)).join("layer.tar"));
    repaired(&format!("layer {layer}: it has been altered"));
    assert_eq!(server.count("/blobs/"), requests);
    // All at once, the manifest and the config too.
    let id = value[0]["Id"].as_str().unwrap().to_owned();
    for path in [blob(&id), blob(&image.digest()), blob(&image.layers[1])] {
        fs::remove_file(path).unwrap();
    }
    break_it(&h.root().join("layers").join(hex(&layer)).join("layer.tar"));
    repaired(&format!("blob {id}: it is missing"));
    // Without the registry it stays as it is, and that is told.
    drop(server);
    fs::remove_file(blob(&image.layers[1])).unwrap();
    h.run("image verify --repair")
        .code(1)
        .has("it is missing")
        .stderr_has(&format!("{} cannot be had again: cannot reach", image.layers[1]));
    h.run(&format!("create --pull never {name} /x")).ok();
    h.run("system check --repair").code(1);
    h.run(&format!("images -q {name}")).ok();
}

#[test]
fn an_archive_is_imported_from_the_web() {
    let tar = noise(3_000_000, 9);
    let packed = gzip(&tar);
    let half = packed.len() / 2;
    let server = Server::start(move |seen| match seen.path.split('?').next().unwrap() {
        "/plain.tar" => Reply::ok(tar.clone()),
        "/packed" => Reply::ok(packed.clone()),
        "/cut" => Reply { cut: Some(half), ..Reply::ok(packed.clone()) },
        "/moved" => Reply::status(302).header("location", "/plain.tar"),
        "/away" => Reply::status(302).header("location", "http://192.0.2.1/x?sig=hunter3"),
        "/circle" => Reply::status(302).header("location", "/circle"),
        "/text" => Reply::ok("no archive"),
        _ => Reply::status(404),
    });
    let h = Hostel::empty();
    let address = |path: &str| format!("http://{}/{path}", server.host());
    let import = |path: &str| h.run(&format!("import {} web:{}", address(path), path.len()));
    let diff_id = |done: &crate::harness::Done| {
        let id = done.ok().out();
        assert!(id.starts_with("sha256:") && id.lines().count() == 1, "{id}");
        h.run(&format!("image inspect -f '{{{{index .RootFS.Layers 0}}}}' {id}")).ok().out()
    };
    let wanted = format!("sha256:{}", digest(&noise(3_000_000, 9)));
    for path in ["plain.tar", "packed", "moved", "plain.tar?sig=hunter3"] {
        assert_eq!(diff_id(&import(path)), wanted, "{path}");
    }
    let done = h.run(&format!("import {}", address("plain.tar?sig=hunter3")));
    done.ok().stderr(&format!("Downloading from {}\n", address("plain.tar")));
    h.run(&format!("history --format '{{{{.Comment}}}}' {}", done.out()))
        .ok()
        .stdout(&format!("Imported from {}\n", address("plain.tar")));
    h.run(&format!("import -q {}", address("packed"))).ok().stderr("");
    let before = h.run("images -a -q").ok().out();
    for (path, part) in [
        ("cut", "cut short"),
        ("away", "plain HTTP"),
        ("circle", "redirects more than 5 times"),
        ("text", "not usable"),
        ("nosuch", "answered 404"),
    ] {
        let done = import(path);
        done.code(1).stdout("").stderr_has(part);
        assert!(!done.stderr.contains("hunter3"), "{}", done.stderr);
    }
    h.run("import http://me:hunter2@127.0.0.1:1/x").code(1).stderr_has("password");
    h.run("images -a -q").ok().stdout(&format!("{before}\n"));
}

#[test]
fn a_foreign_platform_is_pulled_for_a_run_that_asks_for_it() {
    let Some(h) = Hostel::new() else { return };
    let Some(registry) = DockerRegistry::start(&h.scratch("registry"), "") else { return };
    let port = registry.port;
    let server = Server::start(move |seen| forward(seen, port).unwrap());
    let name = format!("{}/app:1", registry.host());
    // The fixture's image for another platform, of this machine's programs.
    h.run(&format!("tag otherarch {name}")).ok();
    h.run(&format!("push -q {name}")).ok();
    let named = format!("{}/app:1", server.host());
    let other = Hostel::empty();
    let done = other.run(&format!("run --rm --platform linux/s390x {named} echo hi"));
    done.ok().stdout("hi\n").stderr_has("Unable to find image").stderr_has("Downloaded newer image");
    // What is there is for that platform: it is used, with a word where none was asked for.
    let manifests = server.count("/manifests/");
    other.run(&format!("run --rm --platform linux/s390x {named} echo hi")).ok().stderr("");
    other.run(&format!("run --rm {named} echo hi")).ok().stderr_has("(linux/s390x) does not match");
    assert_eq!(server.count("/manifests/"), manifests);
    // For another it is asked for again, and the registry has only this one.
    let done = other.run(&format!("run --rm --platform linux/arm64 {named} echo hi"));
    done.code(125).stdout("").stderr_has(
        "was found but does not match the specified platform: wanted linux/arm64, actual: linux/s390x",
    );
    assert!(server.count("/manifests/") > manifests);
    let done = other.run(&format!("pull -q --platform linux/arm64 {named}"));
    done.ok()
        .stdout(&format!("{named}\n"))
        .stderr_has("WARNING: image with reference")
        .stderr_has("linux/s390x");
}

#[test]
fn layers_made_for_lazy_readers_are_read_as_plain_ones() {
    let tar = noise(300_000, 3);
    let parts: Vec<&[u8]> = tar.chunks(100_000).collect();
    // eStargz: gzip members one after the other, the last an empty one.
    let members = parts.iter().copied().chain([&b""[..]]).map(gzip);
    let stargz = members.collect::<Vec<_>>().concat();
    // zstd:chunked: frames, then what lazy readers need in a frame that others skip (RFC 8878, 3.1.2).
    let mut chunked = Vec::new();
    for part in parts {
        chunked.extend(zstd::encode_all(part, 3).unwrap());
    }
    chunked.extend(0x184D_2A50_u32.to_le_bytes());
    chunked.extend(4_u32.to_le_bytes());
    chunked.extend(b"toc!");
    for (packed, kind) in [(stargz, "gzip"), (chunked, "zstd")] {
        let kind = format!("{OCI_LAYER}+{kind}");
        let layers = [(packed, kind.clone())];
        let image = FakeImage::of(std::slice::from_ref(&tar), &layers, "amd64", &serde_json::json!({}));
        let server = Server::start({
            let image = image.clone();
            move |seen| image.answer(seen)
        });
        let h = Hostel::empty();
        h.run(&format!("pull {}/x", server.host())).ok().has(&format!("Digest: {}\n", image.digest()));
        h.run("image verify").ok();
        let found = h.run(&format!("image inspect -f '{{{{index .RootFS.Layers 0}}}}' {}/x", server.host()));
        assert_eq!(found.ok().out(), format!("sha256:{}", digest(&tar)), "{kind}");
    }
}
