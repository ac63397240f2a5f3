//! Against a registry that does wrong: what is refused, what is tried again, and what is left.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use nix::sys::signal::Signal;
use serde_json::json;

use super::noise;
use super::server::{
    DockerRegistry, FakeImage, HANG_UP, OCI, OCI_INDEX, OCI_LAYER, Reply, Seen, Server, forward,
};
use crate::fixtures::digest;
use crate::harness::{Hostel, eventually};

/// Bytes of the layer of most tests: several chunks of the transfer.
const LARGE: usize = 3_500_000;

fn one_layer() -> FakeImage {
    FakeImage::new(&[noise(LARGE, 1)])
}

fn is_layer(image: &FakeImage, seen: &Seen) -> bool {
    seen.path.contains("/blobs/") && image.layers.iter().any(|layer| seen.path.contains(layer.as_str()))
}

/// A server with an image whose layer requests are answered by `fault`, which gets their number, from
/// 1 on, and the right answer.
fn faulty(image: &FakeImage, fault: impl Fn(usize, Reply, &Seen) -> Reply + Send + Sync + 'static) -> Server {
    let (image, count) = (image.clone(), AtomicUsize::new(0));
    Server::start(move |seen| {
        let right = image.answer(seen);
        if is_layer(&image, seen) {
            fault(count.fetch_add(1, Ordering::Relaxed) + 1, right, seen)
        } else {
            right
        }
    })
}

fn assert_nothing_visible(h: &Hostel) {
    h.run("images -q").ok().stdout("");
    assert_eq!(fs::read_dir(h.root().join("layers")).unwrap().count(), 0, "no layer is in its place");
    assert_eq!(fs::read_dir(h.root().join("tmp")).unwrap().count(), 0, "nothing half done is left");
}

#[test]
fn a_broken_connection_is_made_again_and_asked_for_the_rest() {
    let image = one_layer();
    let server = faulty(&image, |number, right, _| match number {
        1 => Reply { cut: Some(1_500_000), ..right },
        2 => Reply { cut: Some(700_000), ..right },
        _ => right,
    });
    let h = Hostel::empty();
    let done = h.run(&format!("pull {}/x", server.host()));
    done.ok().has(": Retrying: ").has(": Pull complete\n").has(&format!("Digest: {}\n", image.digest()));
    let ranges: Vec<_> =
        server.seen().iter().filter_map(|seen| seen.header("range").map(str::to_owned)).collect();
    assert_eq!(ranges, ["bytes=1500000-", "bytes=2200000-"]);
}

#[test]
fn a_server_without_ranges_is_read_from_the_begin() {
    let image = one_layer();
    let whole = image.blobs[&image.layers[0]].clone();
    let server = faulty(&image, move |number, right, _| match number {
        1 => Reply { cut: Some(1_500_000), ..right },
        _ => Reply::ok(whole.clone()),
    });
    let h = Hostel::empty();
    h.run(&format!("pull {}/x", server.host())).ok().has(&format!("Digest: {}\n", image.digest()));
}

#[test]
fn a_killed_pull_leaves_nothing_to_see_and_the_next_goes_on() {
    let image = one_layer();
    let server = faulty(&image, |number, right, _| match number {
        1 => Reply { cut: Some(2_500_000), stall: true, ..right },
        _ => right,
    });
    let h = Hostel::empty();
    let pull = format!("pull {}/x", server.host());
    let running = h.cmd(&pull).spawn();
    let partial = h.root().join("downloads").join(&image.layers[0]["sha256:".len()..]);
    // Whole chunks are kept as they come.
    eventually("two chunks are kept", || fs::metadata(&partial).is_ok_and(|found| found.len() >= 2 << 20));
    running.signal(Signal::SIGKILL);
    running.wait();
    h.run("images -q").ok().stdout("");
    let done = h.run(&pull);
    done.ok().has("Resuming after 2.1MB").stderr_has("2.1MB left by an earlier pull");
    let last = server.seen().into_iter().rfind(|seen| is_layer(&image, seen)).unwrap();
    assert_eq!(last.header("range"), Some("bytes=2097152-"));
    assert!(!partial.exists());
    assert_eq!(fs::read_dir(h.root().join("tmp")).unwrap().count(), 0);
}

#[test]
fn a_layer_torn_by_a_stop_of_the_machine_is_made_again_from_its_blob() {
    let image = one_layer();
    let server = faulty(&image, |_, right, _| right);
    let h = Hostel::empty();
    let name = format!("{}/x", server.host());
    h.run(&format!("pull {name}")).ok();
    let layer = fs::read_dir(h.root().join("layers")).unwrap().next().unwrap().unwrap().path();
    let (tar, mark) = (layer.join("layer.tar"), layer.join("unsettled"));
    let whole = fs::read(&tar).unwrap();
    assert_eq!(fs::read(&mark).unwrap(), fs::read("/proc/sys/kernel/random/boot_id").unwrap());
    let tear = || {
        fs::write(&tar, &whole[..whole.len() / 2]).unwrap();
        fs::write(&mark, "another-boot\n").unwrap();
    };
    tear();
    h.run(&format!("save {name}")).ok();
    assert_eq!(fs::read(&tar).unwrap(), whole);
    assert!(!mark.exists());
    h.run("image verify").ok();
    // Without the blob it cannot be.
    tear();
    fs::remove_file(h.root().join("blobs/sha256").join(&image.layers[0]["sha256:".len()..])).unwrap();
    h.run(&format!("save {name}")).code(1).stderr_has("was not on the disk yet when the machine stopped");
}

#[test]
fn what_an_earlier_pull_left_is_not_trusted() {
    let image = one_layer();
    let server = faulty(&image, |_, right, _| right);
    let h = Hostel::empty();
    h.run("images").ok();
    let downloads = h.root().join("downloads");
    fs::create_dir_all(&downloads).unwrap();
    for bytes in [2_000_000, 9_000_000] {
        fs::write(downloads.join(&image.layers[0]["sha256:".len()..]), vec![7; bytes]).unwrap();
        h.run(&format!("pull {}/x", server.host())).ok().has("was damaged").has(": Pull complete\n");
        h.run(&format!("rmi {}/x", server.host())).ok();
    }
}

#[test]
fn wrong_bytes_lengths_and_layers_are_refused() {
    let image = one_layer();
    let size = image.blobs[&image.layers[0]].len();
    type Fault = Box<dyn Fn(usize, Reply, &Seen) -> Reply + Send + Sync>;
    let cases: Vec<(&str, Fault)> = vec![
        ("digest mismatch", Box::new(|_, right, _| Reply { body: vec![7; right.body.len()], ..right })),
        (
            "bytes where its manifest says",
            Box::new(|_, right, _| Reply { body: right.body[1..].to_vec(), ..right }),
        ),
        ("bytes where its manifest says", Box::new(|_, right, _| Reply::ok([right.body, vec![7]].concat()))),
        ("bytes where its manifest says", Box::new(|_, right, _| Reply { endless: true, ..right })),
        ("answered 404", Box::new(|_, _, _| Reply::status(404))),
    ];
    for (wanted, fault) in cases {
        let server = faulty(&image, fault);
        let h = Hostel::empty();
        let done = h.run(&format!("pull {}/x", server.host()));
        done.code(1).stderr_has(wanted);
        assert!(!done.stdout.contains("Pull complete"), "{size}: {}", done.stdout);
        assert_nothing_visible(&h);
        let left = fs::read_dir(h.root().join("downloads")).unwrap().count();
        assert_eq!(left, usize::from(wanted == "answered 404"), "{wanted}");
    }
    // A layer that is no tar, and one that is not what the config says.
    let tar = noise(1000, 2);
    let junk = vec![b'x'; 5000];
    let layers = [(junk, OCI_LAYER.to_owned())];
    for tars in [vec![vec![b'x'; 5000]], vec![tar]] {
        let image = FakeImage::of(&tars, &layers, "amd64", &json!({}));
        let server = faulty(&image, |_, right, _| right);
        let h = Hostel::empty();
        h.run(&format!("pull {}/x", server.host())).code(1).stderr_has("layer");
        assert_nothing_visible(&h);
    }
}

#[test]
fn busy_servers_are_asked_again_when_they_say() {
    let image = FakeImage::new(&[noise(1000, 1)]);
    let server = faulty(&image, |number, right, _| match number {
        1 => Reply::status(503),
        2 => Reply::status(429).header("retry-after", "1"),
        _ => right,
    });
    let h = Hostel::empty();
    h.run(&format!("pull {}/x", server.host())).ok().has(": Retrying: layer ");
    // Not for ever: an hour is an error at once.
    let server = faulty(&image, |_, _, _| Reply::status(429).header("retry-after", "3600"));
    let h = Hostel::empty();
    h.run(&format!("pull {}/x", server.host())).code(1).stderr_has("answered 429");
    assert_eq!(server.count("/blobs/"), 2, "the config, and the layer once");
}

#[test]
fn redirects_are_followed_without_the_password_and_not_in_a_circle() {
    let image = FakeImage::new(&[noise(1000, 1)]);
    let other = {
        let image = image.clone();
        Server::start(move |seen| image.answer(seen))
    };
    let target = other.host();
    let auth = "Basic bWU6aHVudGVyMg==";
    let server = {
        let image = image.clone();
        Server::start(move |seen| match seen.header("authorization") {
            Some(found) if found == auth => match is_layer(&image, seen) {
                true => {
                    Reply::status(307).header("location", format!("http://{target}{}?sig=hunter3", seen.path))
                }
                false => image.answer(seen),
            },
            _ => Reply::status(401).header("www-authenticate", "Basic realm=\"r\""),
        })
    };
    let h = Hostel::empty();
    let file = h.scratch("auth").join("auth.json");
    let auths = json!({"auths": {server.host(): {"auth": "bWU6aHVudGVyMg=="}, other.host(): {"auth": "bWU6aHVudGVyMg=="}}});
    fs::write(&file, auths.to_string()).unwrap();
    let pull = |host: &str| {
        let fresh = Hostel::empty();
        fresh.cmd(&format!("pull {host}/x")).env("REGISTRY_AUTH_FILE", &file.to_string_lossy()).run()
    };
    pull(&server.host()).ok();
    let there = other.seen();
    assert!(
        !there.is_empty() && there.iter().all(|seen| seen.header("authorization").is_none()),
        "{there:?}"
    );

    let circle = faulty(&image, |_, _, seen| Reply::status(302).header("location", seen.path.clone()));
    pull(&circle.host()).code(1).stderr_has("redirects more than 5 times");
    let elsewhere =
        faulty(&image, |_, _, _| Reply::status(302).header("location", "http://192.0.2.1/x?sig=hunter3"));
    let done = pull(&elsewhere.host());
    done.code(1).stderr_has("192.0.2.1").stderr_has("plain HTTP");
    assert!(!done.stderr.contains("hunter3"), "{}", done.stderr);
    let file_address = faulty(&image, |_, _, _| Reply::status(302).header("location", "file:///etc/passwd"));
    pull(&file_address.host()).code(1).stderr_has("is not valid");
}

#[test]
fn tokens_are_fetched_for_the_scope_and_an_identity_token_is_exchanged() {
    let image = FakeImage::new(&[noise(1000, 1)]);
    let tokens: Arc<Mutex<Vec<Seen>>> = Arc::default();
    let list = Arc::clone(&tokens);
    let realm = Server::start(move |seen| {
        list.lock().unwrap().push(seen.clone());
        let body = String::from_utf8_lossy(&seen.body).into_owned();
        let is_me = seen.header("authorization") == Some("Basic bWU6aHVudGVyMg==");
        if seen.method == "POST"
            && body.contains("refresh_token=identity")
            && body.contains("grant_type=refresh_token")
        {
            return Reply::ok(r#"{"access_token":"good","expires_in":300}"#);
        }
        match is_me && seen.path.contains("offline_token") {
            true => Reply::ok(r#"{"token":"good","refresh_token":"identity"}"#),
            false if is_me => Reply::ok(r#"{"token":"good"}"#),
            false => Reply::status(401),
        }
    });
    let address = format!("http://{}/token", realm.host());
    let server = {
        let image = image.clone();
        Server::start(move |seen| match seen.header("authorization") {
            Some("Bearer good") => image.answer(seen),
            _ => Reply::status(401).header(
                "www-authenticate",
                format!("Bearer realm=\"{address}\",service=\"reg\",scope=\"repository:x:pull\""),
            ),
        })
    };
    let h = Hostel::empty();
    let host = server.host();
    h.run(&format!("pull {host}/x")).code(1).stderr_has("denied");
    h.cmd(&format!("login -u me --password-stdin {host}")).stdin("nonsense").run().code(1);
    h.cmd(&format!("login -u me --password-stdin {host}")).stdin("hunter2").run().ok();
    let config = fs::read_to_string(h.place("docker/config.json")).unwrap();
    assert!(
        config.contains("\"identitytoken\": \"identity\"") && !config.contains("bWU6aHVudGVyMg=="),
        "{config}"
    );
    h.run(&format!("pull -q {host}/x")).ok();
    let last = tokens.lock().unwrap().last().cloned().unwrap();
    let body = String::from_utf8_lossy(&last.body).into_owned();
    assert!(body.contains("scope=repository%3Ax%3Apull") && body.contains("service=reg"), "{body}");
    // One token for all requests of the pull.
    assert_eq!(tokens.lock().unwrap().iter().filter(|seen| seen.method == "POST").count(), 1);
    assert!(server.seen().iter().all(|seen| !seen.path.contains("hunter2")));
}

#[test]
fn an_index_is_answered_by_platform_and_odd_things_are_refused() {
    let config = |name: &str| json!({"Cmd": [name]});
    let tar = noise(1000, 1);
    let layer = (tar.clone(), OCI_LAYER.to_owned());
    let image = |architecture: &str| {
        FakeImage::of(
            std::slice::from_ref(&tar),
            std::slice::from_ref(&layer),
            architecture,
            &config(architecture),
        )
    };
    let (mine, arm) = (image("amd64"), image("arm64"));
    let entry = |image: &FakeImage, architecture: &str| {
        json!({"mediaType": OCI, "digest": image.digest(), "size": image.manifest.len(),
               "platform": {"os": "linux", "architecture": architecture}})
    };
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX,
                       "manifests": [entry(&arm, "arm64"), entry(&mine, "amd64")]});
    let index = index.to_string();
    let foreign = format!("{OCI_LAYER}.nondistributable")
        .replace("layer.v1.tar.nondistributable", "layer.nondistributable.v1.tar");
    let foreign = FakeImage::of(std::slice::from_ref(&tar), &[(tar.clone(), foreign)], "amd64", &config("x"));
    let chart = String::from_utf8(mine.manifest.clone())
        .unwrap()
        .replace("oci.image.config.v1+json", "cncf.helm.config.v1+json");
    let schema1 = r#"{"schemaVersion": 1, "fsLayers": []}"#.to_owned();
    let huge = format!("{{\"x\": \"{}\"}}", "y".repeat(5 << 20));
    let answers: Vec<(&str, String)> = vec![
        ("index", index.clone()),
        ("foreign", String::from_utf8(foreign.manifest.clone()).unwrap()),
        ("chart", chart),
        ("schema1", schema1),
        ("huge", huge),
        ("junk", "{".to_owned()),
    ];
    let images = [mine.clone(), arm.clone(), foreign];
    let server = Server::start(move |seen| {
        let reference = seen.path.rsplit('/').next().unwrap_or_default();
        if seen.path.contains("/manifests/") {
            if let Some((_, body)) = answers.iter().find(|(name, _)| reference == *name) {
                return Reply::ok(body.clone());
            }
            let found = images.iter().find(|image| image.digest() == reference);
            return found.map_or(Reply::status(404), |image| {
                Reply::ok(image.manifest.clone()).header("content-type", OCI)
            });
        }
        let found = images.iter().map(|image| image.answer(seen)).find(|reply| reply.status != 404);
        found.unwrap_or(Reply::status(404))
    });
    let h = Hostel::empty();
    let host = server.host();
    let pull = |rest: &str| h.run(&format!("pull {rest}"));
    let whole = format!("Digest: sha256:{}\n", digest(index.as_bytes()));
    if cfg!(target_arch = "x86_64") {
        pull(&format!("{host}/x:index")).ok().has(&whole);
        h.run(&format!("image inspect -f '{{{{.Architecture}}}}' {host}/x:index")).ok().stdout("amd64\n");
    }
    pull(&format!("--platform linux/arm64 {host}/x:index")).ok().has(&whole);
    h.run(&format!("image inspect -f '{{{{.Architecture}}}}' {host}/x:index")).ok().stdout("arm64\n");
    pull(&format!("--platform linux/s390x {host}/x:index"))
        .code(1)
        .stderr_has("linux/s390x")
        .stderr_has("linux/arm64");
    for (tag, wanted) in [
        ("foreign", "foreign layer"),
        ("chart", "not a container image"),
        ("schema1", "schema 1"),
        ("huge", "larger than the"),
        ("junk", "is not valid"),
    ] {
        pull(&format!("{host}/x:{tag}")).code(1).stderr_has(wanted);
    }
    let wrong = format!("{host}/x@sha256:{}", "a".repeat(64));
    pull(&wrong).code(1).stderr_has("not found");
}

#[test]
fn a_manifest_that_is_not_its_digest_is_refused() {
    let image = FakeImage::new(&[noise(1000, 1)]);
    let fake = image.clone();
    let server = Server::start(move |seen| fake.answer(seen));
    let h = Hostel::empty();
    let wanted = "b".repeat(64);
    h.run(&format!("pull {}/x@sha256:{wanted}", server.host()))
        .code(1)
        .stderr_has("digest mismatch")
        .stderr_has(&wanted);
    h.run("images -q").ok().stdout("");
}

#[test]
fn mirrors_come_first_and_blocked_registries_never() {
    let image = one_layer();
    let (good, broken) = (image.clone(), image.clone());
    let layer = image.layers[0].clone();
    // The mirror has the manifest, and half of the layer.
    let mirror = Server::start(move |seen| {
        let right = broken.answer(seen);
        match (seen.path.ends_with(&layer), seen.header("range")) {
            (true, None) => Reply { cut: Some(1_500_000), ..right },
            (true, Some(_)) => Reply::status(404),
            _ => right,
        }
    });
    let origin = Server::start(move |seen| good.answer(seen));
    let h = Hostel::empty();
    let conf = h.scratch("conf").join("registries.conf");
    let text = format!(
        "unqualified-search-registries = [\"reg.test\"]\n[[registry]]\nprefix = \"reg.test\"\nlocation = \"{}\"\n\
         [[registry.mirror]]\nlocation = \"{}/cache\"\n[[registry]]\nlocation = \"bad.test\"\nblocked = true\n",
        origin.host(),
        mirror.host()
    );
    fs::write(&conf, text).unwrap();
    let run = |line: &str| h.cmd(line).env("CONTAINERS_REGISTRIES_CONF", &conf.to_string_lossy()).run();
    run("pull reg.test/a/x:1").ok().has(&format!("Digest: {}\n", image.digest()));
    assert_eq!(mirror.count("/v2/cache/a/x/manifests/1"), 1);
    assert_eq!(origin.count("/manifests/"), 0);
    let asked = origin.seen().into_iter().find(|seen| is_layer(&image, seen)).unwrap();
    assert_eq!(asked.header("range"), Some("bytes=1500000-"), "the rest comes from the next place");
    run("pull bad.test/x").code(1).stderr_has("blocked in").stderr_has("registries.conf");
    // A short name is looked for where the settings say.
    run("rmi reg.test/a/x:1").ok();
    let done = run("pull a/x:1");
    assert_eq!(done.ok().out().lines().last().unwrap(), "reg.test/a/x:1");
    run("image inspect -f '{{.RepoTags}}' a/x:1").ok().stdout("[reg.test/a/x:1]\n");
}

#[test]
fn a_search_that_a_registry_does_not_have_is_refused_by_name() {
    let server = Server::start(|_| Reply::status(404));
    let h = Hostel::empty();
    h.run(&format!("search {}/x", server.host())).code(1).stderr_has("cannot be searched").stderr_has("404");
    let server = Server::start(|seen| match seen.path.starts_with("/v1/search?q=web&n=25") {
        true => Reply::ok(
            r#"{"results":[{"name":"web/server","description":"serves\nthings","star_count":7,"is_official":true}]}"#,
        ),
        false => Reply::status(404),
    });
    h.run(&format!("search {}/web", server.host())).ok().has("web/server").has("serves things").has("[OK]");
}

#[test]
fn a_registry_that_takes_no_blob_whole_gets_it_in_pieces() {
    let Some(h) = Hostel::new() else { return };
    let Some(registry) = DockerRegistry::start(&h.scratch("registry"), "") else { return };
    // A proxy that lets no more than 5 MB through at once, as many do, and once hangs up in the middle.
    let (port, pieces) = (registry.port, AtomicUsize::new(0));
    let server = Server::start(move |seen| {
        if seen.body.len() > 5_000_000 {
            return Reply::status(413);
        }
        if seen.method == "PATCH" && pieces.fetch_add(1, Ordering::Relaxed) == 1 {
            return Reply::status(HANG_UP);
        }
        forward(seen, port).unwrap()
    });
    let name = format!("{}/pieces:1", server.host());
    h.cmd(&format!("import - {name}")).stdin(noise(9_000_000, 5)).run().ok();
    let done = h.run(&format!("push {name}"));
    done.ok().has(": Pushed\n");
    let seen = server.seen();
    let whole = seen.iter().filter(|seen| seen.method == "PUT" && seen.body.len() > 5_000_000).count();
    assert_eq!(whole, 1, "tried once");
    let ranges: Vec<_> = seen
        .iter()
        .filter(|seen| seen.method == "PATCH")
        .filter_map(|seen| seen.header("content-range"))
        .collect();
    assert_eq!(ranges.len(), 5, "{ranges:?}");
    assert_eq!(ranges[..4], ["0-8388607", "0-4194303", "4194304-8388607", "4194304-8388607"]);
    // After the break it was asked what it had.
    assert!(seen.iter().any(|seen| seen.method == "GET" && seen.path.contains("/blobs/uploads/")));
    let digest = done.stdout.lines().last().and_then(|line| line.split_once("digest: ")).unwrap().1;
    let other = Hostel::empty();
    other.run(&format!("pull {}/pieces:1", registry.host())).ok().has(digest.split(' ').next().unwrap());
}

#[test]
fn an_upload_that_breaks_goes_on_in_pieces_and_one_that_is_forgotten_begins_again() {
    let Some(h) = Hostel::new() else { return };
    for forgets in [false, true] {
        let (blob, requests) = (Mutex::new(Vec::new()), AtomicUsize::new(0));
        let server = Server::start(move |seen| {
            let location = |reply: Reply| reply.header("location", "/v2/x/blobs/uploads/1?state=s");
            let mut blob = blob.lock().unwrap();
            match (seen.method.as_str(), seen.path.contains("/uploads/")) {
                ("HEAD", _) => Reply::status(404),
                ("POST", _) => {
                    blob.clear();
                    location(Reply::status(202))
                }
                ("GET", true) if forgets => Reply::status(404),
                ("GET", true) => location(Reply::status(204))
                    .header("range", format!("0-{}", blob.len().saturating_sub(1))),
                ("PUT", true) if seen.body.len() > 8_000_000 => Reply::status(HANG_UP),
                ("PATCH", _) if requests.fetch_add(1, Ordering::Relaxed) == 1 => Reply::status(503),
                ("PATCH", _) => {
                    let start: usize =
                        seen.header("content-range").unwrap().split('-').next().unwrap().parse().unwrap();
                    if start != blob.len() {
                        return Reply::status(416);
                    }
                    blob.extend(&seen.body);
                    location(Reply::status(202)).header("range", format!("0-{}", blob.len() - 1))
                }
                ("PUT", true) => {
                    blob.extend(&seen.body);
                    let wanted = seen.path.split("digest=sha256%3A").nth(1).unwrap();
                    Reply::status(if digest(&blob) == wanted { 201 } else { 400 })
                }
                ("PUT", false) => Reply::status(201),
                _ => Reply::ok("{}"),
            }
        });
        let name = format!("{}/x:1", server.host());
        h.cmd(&format!("import - {name}")).stdin(noise(9_000_000, 6)).run().ok();
        h.run(&format!("push {name}")).ok().has(": Pushed\n");
        let seen = server.seen();
        let begun = seen.iter().filter(|seen| seen.method == "POST").count();
        assert_eq!(begun, if forgets { 4 } else { 3 }, "the layer whole, then in pieces; the config");
        h.run(&format!("rmi {name}")).ok();
    }
}
