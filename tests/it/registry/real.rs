//! Against Debian's docker-registry, and side by side with skopeo and podman.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};

use super::noise;
use super::server::{DockerRegistry, PASSWORD, certificates, proxy};
use crate::fixtures::{self, Layout};
use crate::harness::{Done, Hostel, skip};

/// A line of `pull`'s or `push`'s output that begins so, without that beginning.
fn line<'a>(done: &'a Done, start: &str) -> &'a str {
    let found = done.stdout.lines().find_map(|line| line.strip_prefix(start));
    found.unwrap_or_else(|| panic!("no line begins with {start:?} in {}", done.stdout))
}

/// The digest that a push ended with.
fn pushed(done: &Done) -> String {
    let tail = done.stdout.lines().last().and_then(|line| line.split_once("digest: ")).unwrap().1;
    tail.split(' ').next().unwrap().to_owned()
}

/// skopeo, if it is installed.
fn skopeo(h: &Hostel, arguments: &[&str]) -> Option<Done> {
    if !Path::new("/usr/bin/skopeo").exists() {
        skip("skopeo is not installed");
        return None;
    }
    Some(h.program("skopeo", arguments).run())
}

#[test]
fn an_image_goes_to_a_registry_and_comes_back_the_same() {
    let Some(h) = Hostel::new() else { return };
    let Some(registry) = DockerRegistry::start(&h.scratch("registry"), "") else { return };
    let name = format!("{}/team/app:1", registry.host());
    h.run(&format!("tag busybox {name}")).ok();
    let done = h.run(&format!("push {name}"));
    done.ok()
        .has(&format!("The push refers to repository [{}/team/app]\n", registry.host()))
        .has(": Pushed\n");
    let digest = pushed(&done);
    // What is there already is not sent again, and the bytes do not change.
    let again = h.run(&format!("push {name}"));
    again.ok().has(": Layer already exists\n").lacks(": Pushed");
    again.stderr_has("Reused 1 of 1 layers; transferred 0B\n");
    assert_eq!(pushed(&again), digest);
    assert_eq!(h.run(&format!("push -q {name}")).ok().out(), name);

    let other = Hostel::empty();
    let done = other.run(&format!("pull {name}"));
    done.ok().has("1: Pulling from team/app\n").has(": Pulling fs layer\n").has(": Pull complete\n");
    assert_eq!(line(&done, "Digest: "), digest);
    assert_eq!(line(&done, "Status: "), format!("Downloaded newer image for {name}"));
    assert_eq!(done.out().lines().last().unwrap(), name);
    other.run(&format!("run --rm {name} echo hi")).ok().stdout("hi\n");
    other
        .run(&format!("images --digests --format '{{{{.Digest}}}}' {name}"))
        .ok()
        .stdout(&format!("{digest}\n"));
    let again = other.run(&format!("pull {name}"));
    again.ok().has(": Already exists\n").has(&format!("Status: Image is up to date for {name}\n"));
    again.stderr_has("Reused 1 of 1 layers");
    assert_eq!(other.run(&format!("pull -q {name}")).ok().out(), name);
    // By digest.
    let by_digest = format!("{}/team/app@{digest}", registry.host());
    let third = Hostel::empty();
    third.run(&format!("pull -q {by_digest}")).ok().stdout(&format!("{by_digest}\n"));
    third.run(&format!("run --rm {by_digest} echo by digest")).ok().stdout("by digest\n");
    // A digest that is removed takes no tag with it; the last name takes the image.
    third.run(&format!("tag {by_digest} {name}")).ok();
    third.run(&format!("rmi {by_digest}")).ok().stdout(&format!("Untagged: {by_digest}\n"));
    third.run("images --format '{{.Tag}} {{.Digest}}'").ok().stdout("1 <none>\n");
    third.run(&format!("pull -q {by_digest}")).ok();
    let removed = format!("Untagged: {name}\nUntagged: {by_digest}\nDeleted: sha256:");
    third.run(&format!("rmi {name}")).ok().has(&removed);
    third.run("images -q").ok().stdout("");
    third.run(&format!("pull -q {by_digest}")).ok();
    third.run(&format!("rmi {by_digest}")).ok().has(&format!("Untagged: {by_digest}\nDeleted: sha256:"));
    third.run("images -q").ok().stdout("");

    // Elsewhere it has the same digest, and from the same registry it need not be sent.
    let moved = format!("{}/other/place:2", registry.host());
    other.run(&format!("tag {name} {moved}")).ok();
    let done = other.run(&format!("push {moved}"));
    done.ok().has(": Mounted from team/app\n");
    assert_eq!(pushed(&done), digest);
    if let Some(done) = skopeo(&h, &["inspect", "--tls-verify=false", &format!("docker://{moved}")]) {
        let value: Value = serde_json::from_str(&done.ok().stdout).unwrap();
        assert_eq!(value["Digest"], digest);
    }
    // The store itself is a layout with that very manifest.
    let store = format!("oci:{}:{name}", other.root().display());
    if let Some(done) = skopeo(&h, &["inspect", &store]) {
        let value: Value = serde_json::from_str(&done.ok().stdout).unwrap();
        assert_eq!(value["Digest"], digest);
    }
    h.run(&format!("pull {}/team/nosuch", registry.host())).code(1).stderr_has("manifest for ");
    h.run(&format!("push {}/team/nosuch", registry.host()))
        .code(1)
        .stderr_has("does not exist locally with the tag");
}

#[test]
fn all_tags_come_and_go_together() {
    let Some(h) = Hostel::new() else { return };
    let Some(registry) = DockerRegistry::start(&h.scratch("registry"), "") else { return };
    let repository = format!("{}/many", registry.host());
    for (image, tag) in [("busybox", "a"), ("label", "b"), ("env", "c")] {
        h.run(&format!("tag {image} {repository}:{tag}")).ok();
    }
    h.run(&format!("push -a -q {repository}")).ok();
    let other = Hostel::empty();
    let done = other.run(&format!("pull -a {repository}"));
    for tag in ["a", "b", "c"] {
        done.ok().has(&format!("{tag}: Pulling from many\n"));
    }
    assert_eq!(done.out().lines().last().unwrap(), repository);
    other.run(&format!("images --format '{{{{.Tag}}}}' {repository} -q")).ok();
    other.run(&format!("run --rm {repository}:c env")).ok().has("FROM_IMAGE=yes");
    other.run(&format!("pull -a {repository}:a")).fails(1, &["--all-tags"]);
    let found = other.run(&format!("search {}/man", registry.host()));
    found.ok().has(&repository);
    let manifest = other.run(&format!("manifest inspect {repository}:a"));
    let value: Value = serde_json::from_str(&manifest.ok().stdout).unwrap();
    assert_eq!(value["schemaVersion"], 2);
    let verbose = other.run(&format!("manifest inspect -v {repository}:a"));
    let value: Value = serde_json::from_str(&verbose.ok().stdout).unwrap();
    assert_eq!(value["Ref"], format!("{repository}:a"));
    assert!(value["OCIManifest"]["layers"].is_array(), "{value}");
}

#[test]
fn every_compression_and_both_manifest_types_keep_their_digest() {
    let Some(h) = Hostel::new() else { return };
    let Some(registry) = DockerRegistry::start(&h.scratch("registry"), "") else { return };
    let dir = h.scratch("layout");
    fixtures::busybox_layout(&dir);
    let source = format!("oci:{}:latest", dir.display());
    // zstd:chunked needs a newer skopeo; its frames are zstd's.
    for (name, arguments) in [
        ("oci", vec!["--format", "oci"]),
        ("v2s2", vec!["--format", "v2s2"]),
        ("zstd", vec!["--format", "oci", "--dest-compress-format", "zstd"]),
    ] {
        let target = format!("docker://{}/{name}", registry.host());
        let mut all = vec!["copy", "-q", "--dest-tls-verify=false"];
        all.extend(arguments);
        all.extend([source.as_str(), target.as_str()]);
        let Some(done) = skopeo(&h, &all) else { return };
        done.ok();
        let inspected = skopeo(&h, &["inspect", "--tls-verify=false", &target]).unwrap();
        let value: Value = serde_json::from_str(&inspected.ok().stdout).unwrap();
        let digest = value["Digest"].as_str().unwrap();
        let other = Hostel::empty();
        let done = other.run(&format!("pull {}/{name}", registry.host()));
        assert_eq!(line(done.ok(), "Digest: "), digest, "{name}");
        other.run(&format!("run --rm {}/{name} echo hi", registry.host())).ok().stdout("hi\n");
        let moved = format!("{}/moved-{name}:x", registry.host());
        other.run(&format!("tag {}/{name} {moved}", registry.host())).ok();
        assert_eq!(pushed(other.run(&format!("push {moved}")).ok()), digest, "{name}");
        let store = format!("oci:{}:{moved}", other.root().display());
        skopeo(&h, &["inspect", &store]).unwrap().ok();
        other.run(&format!("rmi {}/{name} {moved}", registry.host())).ok();
        let blobs = fs::read_dir(other.root().join("blobs/sha256")).unwrap().count();
        assert_eq!(blobs, 0, "{name}: compressed layers go with the image");
    }
    let zstd = format!("{}/again:z", registry.host());
    h.run(&format!("tag busybox {zstd}")).ok();
    h.run(&format!("push --compression-format zstd {zstd}")).ok();
    let manifest = h.run(&format!("manifest inspect {zstd}"));
    manifest.ok().has("tar+zstd");
}

#[test]
fn podman_and_hostel_read_what_the_other_pushed() {
    let Some(h) = Hostel::new() else { return };
    if !Path::new("/usr/bin/podman").exists() {
        return skip("podman is not installed");
    }
    let Some(registry) = DockerRegistry::start(&h.scratch("registry"), "") else { return };
    let ours = format!("{}/ours:1", registry.host());
    let theirs = format!("{}/theirs:1", registry.host());
    h.run(&format!("tag busybox {ours}")).ok();
    h.run(&format!("push -q {ours}")).ok();
    // podman wants the file where it is told to look for it.
    fs::create_dir_all(h.place("docker")).unwrap();
    fs::write(h.place("docker/config.json"), "{}").unwrap();
    // podman takes no run directory of more than 50 characters.
    let place = tempfile::Builder::new().prefix("ht").tempdir_in("/tmp").unwrap();
    let (root, run) = (h.scratch("podman"), place.path());
    let podman = |line: &str| {
        let (root, run) = (root.to_string_lossy(), run.to_string_lossy());
        let mut all = vec!["--root", &root, "--runroot", &run, "--storage-driver", "vfs"];
        all.extend(["--cgroup-manager", "cgroupfs"]);
        all.extend(line.split(' '));
        h.program("podman", &all).env("XDG_RUNTIME_DIR", &run).run()
    };
    let id = podman(&format!("pull -q --tls-verify=false {ours}")).ok().out();
    let own = h.run(&format!("images -q --no-trunc {ours}")).ok().out();
    assert_eq!(format!("sha256:{id}"), own);
    podman(&format!("tag {ours} {theirs}")).ok();
    podman(&format!("push -q --tls-verify=false {theirs}")).ok();
    podman(&format!("unshare rm -rf {0}/vfs {0}/vfs-layers", root.display())).ok();
    // Ends the process that holds podman's namespaces.
    podman("system migrate");
    let other = Hostel::empty();
    other.run(&format!("pull -q {theirs}")).ok().stdout(&format!("{theirs}\n"));
    assert_eq!(other.run(&format!("images -q --no-trunc {theirs}")).ok().out(), own);
}

#[test]
fn passwords_are_asked_for_kept_and_forgotten() {
    let Some(h) = Hostel::new() else { return };
    let Some(registry) = DockerRegistry::with_passwords(&h.scratch("registry")) else { return };
    let host = registry.host();
    let name = format!("{host}/private:1");
    h.run(&format!("tag busybox {name}")).ok();
    h.run(&format!("push {name}")).code(1).stderr_has("denied").stderr_has(&format!("hostel login {host}"));
    let login = |password: &str| h.cmd(&format!("login -u me --password-stdin {host}")).stdin(password).run();
    login("wrong").code(1).stderr_has("login attempt to");
    let config = h.place("docker/config.json");
    assert!(!config.exists(), "a login that failed leaves nothing");
    login(&format!("{PASSWORD}\n")).ok().stdout("Login Succeeded\n").stderr_has("unencrypted");
    assert_eq!(fs::metadata(&config).unwrap().permissions().mode() & 0o7777, 0o600);
    let value: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    assert_eq!(value, json!({"auths": {&host: {"auth": "bWU6aHVudGVyMg=="}}}));
    h.run(&format!("push -q {name}")).ok();
    h.run(&format!("login {host}")).ok().stdout("Login Succeeded\n");
    // What podman and skopeo wrote counts as well.
    let file = h.scratch("auth").join("auth.json");
    fs::write(&file, value.to_string()).unwrap();
    let other = Hostel::empty();
    other.run(&format!("pull {name}")).code(1).stderr_has("denied");
    other.cmd(&format!("pull -q {name}")).env("REGISTRY_AUTH_FILE", &file.to_string_lossy()).run().ok();
    h.run(&format!("logout {host}")).ok().stdout(&format!("Removing login credentials for {host}\n"));
    h.run(&format!("logout {host}")).ok().stdout(&format!("Not logged in to {host}\n"));
    h.run(&format!("push {name}")).code(1).stderr_has("denied");
    h.run("login -u me --password-stdin -p x").code(1).stderr_has("both --password and --password-stdin");
    h.run(&format!("login {host}")).code(1).stderr_has("non-TTY");
}

#[test]
fn helpers_keep_passwords_and_see_them_on_standard_input_only() {
    let Some(h) = Hostel::new() else { return };
    let Some(registry) = DockerRegistry::with_passwords(&h.scratch("registry")) else { return };
    let host = registry.host();
    let bin = h.scratch("bin");
    let helper = bin.join("docker-credential-test");
    let script = "#!/bin/sh\nread -r line\necho \"$1 [$#] $line\" >>\"$0.log\"\ncase $1 in\nstore) echo \"$line\" >\"$0.kept\";;\n\
                  get) cat \"$0.kept\" 2>/dev/null || { echo 'credentials not found in native keychain'; exit 1; };;\n\
                  erase) rm -f \"$0.kept\";;\nesac\n";
    fs::write(&helper, script).unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    let docker = h.place("docker");
    fs::create_dir_all(&docker).unwrap();
    fs::write(docker.join("config.json"), r#"{"credsStore":"test"}"#).unwrap();
    let path = format!("{}:/usr/bin:/bin", bin.display());
    let run = |line: &str| h.cmd(line).env("PATH", &path);
    let done = run(&format!("login -u me --password-stdin {host}")).stdin(PASSWORD).run();
    done.ok().stdout("Login Succeeded\n").stderr("");
    let config = fs::read_to_string(docker.join("config.json")).unwrap();
    assert!(!config.contains("bWU6"), "{config}");
    run(&format!("tag busybox {host}/x:1")).run().ok();
    run(&format!("push -q {host}/x:1")).run().ok();
    run(&format!("logout {host}")).run().ok().stdout(&format!("Removing login credentials for {host}\n"));
    let log = fs::read_to_string(bin.join("docker-credential-test.log")).unwrap();
    assert!(log.lines().all(|line| line.contains(" [1] ")), "one argument, the action: {log}");
    h.run(&format!("push -q {host}/x:1")).code(1).stderr_has("docker-credential-test");
}

#[test]
fn a_registry_with_a_ca_of_its_own_is_verified() {
    let Some(h) = Hostel::new() else { return };
    let Some(dir) = certificates(&h.scratch("ca")) else { return skip("openssl is not installed") };
    let tls = format!(
        "  tls: {{certificate: {0}/server.crt, key: {0}/server.key, clientcas: [{0}/ca.crt]}}",
        dir.display()
    );
    let Some(registry) = DockerRegistry::start(&h.scratch("registry"), &tls) else { return };
    let name = format!("{}/x:1", registry.host());
    h.run(&format!("tag busybox {name}")).ok();
    h.run(&format!("push {name}")).code(1).stderr_has("certificate is not trusted");
    let place = h.place("config/containers/certs.d").join(registry.host());
    fs::create_dir_all(&place).unwrap();
    fs::copy(dir.join("ca.crt"), place.join("ca.crt")).unwrap();
    h.run(&format!("push {name}")).code(1).stderr_has(&registry.host());
    // The server asks for a certificate of the client as well.
    fs::copy(dir.join("server.crt"), place.join("client.cert")).unwrap();
    h.run(&format!("push {name}")).code(1).stderr_has("client.key");
    fs::copy(dir.join("server.key"), place.join("client.key")).unwrap();
    h.run(&format!("push -q {name}")).ok();
    h.run(&format!("rmi {name}")).ok();
    h.run(&format!("pull -q {name}")).ok();
}

#[test]
fn a_proxy_stands_in_between_unless_it_is_excepted() {
    let Some(h) = Hostel::new() else { return };
    let Some(registry) = DockerRegistry::start(&h.scratch("registry"), "") else { return };
    let (port, asked) = proxy();
    let host = format!("registry.invalid:{}", registry.port);
    let conf = h.scratch("conf").join("registries.conf");
    fs::write(&conf, format!("[[registry]]\nlocation = \"{host}\"\ninsecure = true\n")).unwrap();
    let conf = conf.to_string_lossy().into_owned();
    let name = format!("{host}/x:1");
    h.run(&format!("tag busybox {name}")).ok();
    let address = format!("http://127.0.0.1:{port}");
    let run = |line: &str| {
        let command = h.cmd(line).env("CONTAINERS_REGISTRIES_CONF", &conf);
        command.env("HTTP_PROXY", &address).env("https_proxy", &address)
    };
    run(&format!("push -q {name}")).run().ok();
    assert!(asked.lock().unwrap().iter().all(|asked| asked == &format!("CONNECT {host}")));
    assert!(!asked.lock().unwrap().is_empty());
    // Without it the name leads nowhere.
    let done = run(&format!("push -q {name}")).env("NO_PROXY", "other.example,registry.invalid").run();
    done.code(1).stderr_has(&format!("cannot reach {host}"));
    // This machine is never reached through one.
    let before = asked.lock().unwrap().len();
    h.run(&format!("tag busybox {}/y:1", registry.host())).ok();
    run(&format!("push -q {}/y:1", registry.host())).run().ok();
    assert_eq!(asked.lock().unwrap().len(), before);
}

#[test]
fn several_layers_come_at_once_and_a_run_brings_its_image() {
    let h = Hostel::empty();
    let Some(registry) = DockerRegistry::start(&h.scratch("registry"), "") else { return };
    let dir = h.scratch("layout");
    let mut layout = Layout::new(&dir);
    let mut layers = Vec::new();
    for seed in 0..6 {
        layers.push(layout.blob(&noise(300_000, seed)));
    }
    layout.image("many", &json!({"Cmd": ["/x"]}), &layers);
    layout.finish();
    let pulled = h.run(&format!("pull -q oci:{}:many", dir.display())).ok().out();
    let name = format!("{}/many:6", registry.host());
    h.run(&format!("tag {pulled} {name}")).ok();
    h.run(&format!("push {name}")).ok();
    let other = Hostel::empty();
    // There is nothing to run in it, but it is there afterwards.
    let done = other.run(&format!("run --rm {name}"));
    done.code(127).stderr_has(&format!("Unable to find image '{name}' locally"));
    done.stderr_has(&format!("Status: Downloaded newer image for {name}"));
    assert_eq!(done.stderr.matches(": Pull complete").count(), 6, "{}", done.stderr);
    let quiet = other.run(&format!("run --rm -q --pull always {name}"));
    assert!(!quiet.stderr.contains("Pulling"), "{}", quiet.stderr);
    other
        .run(&format!("create --pull never {}/nosuch", registry.host()))
        .code(125)
        .stderr_has("No such image");
}
