//! Images: references, load and pull, what a layer hides, listing, tagging, removal.

use std::fs;
use std::process::Command;

use serde_json::json;

use crate::fixtures::{self, Archive, Layer, Layout};
use crate::harness::{Hostel, eventually, output};

#[test]
fn load_says_what_it_loaded() {
    let Some(archive) = fixtures::busybox_archive() else { return crate::harness::skip("no busybox-static") };
    let h = Hostel::empty();
    h.run(&format!("load -i {}", archive.display())).ok().has("Loaded image: busybox:latest\n");
    h.run("run --rm busybox echo hi").ok().stdout("hi\n");
    let h = Hostel::empty();
    h.cmd("load").stdin(fs::read(&archive).unwrap()).run().ok().has("Loaded image: busybox:latest\n");
    let compressed = h.scratch("z").join("b.tar.gz");
    fs::write(&compressed, fixtures::gzip(&fs::read(&archive).unwrap())).unwrap();
    h.run(&format!("load -i {}", compressed.display())).ok().has("Loaded image: entrypoint:latest\n");
    // In whatever form it comes, by file and by standard input.
    for program in ["gzip", "bzip2", "xz", "zstd"] {
        let Ok(packed) = output(Command::new(program).arg("-c").arg(&archive)) else {
            crate::harness::skip(&format!("{program} is not installed"));
            continue;
        };
        let h = Hostel::empty();
        h.cmd("load -q").stdin(packed.stdout).run().ok().has("Loaded image: busybox:latest\n");
        h.run("run --rm busybox echo hi").ok().stdout("hi\n");
    }
}

#[test]
fn a_layout_runs_without_being_pulled() {
    let Some(h) = Hostel::new() else { return };
    let dir = h.scratch("layout");
    fixtures::busybox_layout(&dir);
    h.run(&format!("run --rm oci:{} echo hi", dir.display())).ok().stdout("hi\n");
    h.run(&format!("run --rm oci:{}:latest echo hi", dir.display())).ok().stdout("hi\n");
    h.cmd("run --rm oci:./layout echo hi").cwd(dir.parent().unwrap()).run().ok().stdout("hi\n");
    h.run(&format!("run --rm oci:{}:nosuch true", dir.display())).fails(125, &["nosuch"]);
}

#[test]
fn archives_run_without_being_loaded() {
    let Some(archive) = fixtures::busybox_archive() else { return crate::harness::skip("no busybox-static") };
    let h = Hostel::empty();
    let dir = h.scratch("one");
    let one = dir.join("one.tar");
    let mut writer = Archive::new(&one);
    let layer = static_layer();
    writer.add(&["tiny:latest"], "amd64", &json!({"Cmd": ["/busybox", "echo", "tiny"]}), &[layer]);
    writer.finish();
    h.run(&format!("run --rm docker-archive:{}", one.display())).ok().stdout("tiny\n");
    let layout = h.scratch("layout");
    fixtures::busybox_layout(&layout);
    let packed = dir.join("oci.tar");
    let tar =
        h.program("tar", &["-C", &layout.to_string_lossy(), "-cf", &packed.to_string_lossy(), "."]).run();
    tar.ok();
    h.run(&format!("run --rm oci-archive:{} echo packed", packed.display())).ok().stdout("packed\n");
    h.run(&format!("load -i {}", packed.display())).ok().has("Loaded image");
    assert!(archive.exists());
}

#[test]
fn a_blob_may_be_a_symlink() {
    let Some(h) = Hostel::new() else { return };
    let dir = h.scratch("layout");
    fixtures::busybox_layout(&dir);
    let (blobs, away) = (dir.join("blobs/sha256"), h.scratch("away"));
    for blob in fs::read_dir(&blobs).unwrap().map(Result::unwrap) {
        fs::rename(blob.path(), away.join(blob.file_name())).unwrap();
        std::os::unix::fs::symlink(away.join(blob.file_name()), blob.path()).unwrap();
    }
    h.run(&format!("run --rm oci:{} echo linked", dir.display())).ok().stdout("linked\n");
}

#[test]
fn names_that_look_like_transports_are_names() {
    let Some(h) = Hostel::new() else { return };
    for name in ["oci:v1", "rootfs:1", "host:latest"] {
        h.run(&format!("tag busybox {name}")).ok();
        h.run(&format!("run --rm {name} echo hi")).ok().stdout("hi\n");
    }
}

#[test]
fn upper_layers_hide_replace_and_link() {
    let Some(h) = Hostel::new() else { return };
    for write in ["pure", "auto"] {
        let flags = format!("run --rm --storage-opt write={write} layers");
        let listed = h.run(&format!("{flags} sh -c 'ls -A /l /l/opaque'")).ok().out();
        let long = "long-name-".repeat(20);
        let expected = format!(
            "/l:\nabsolute\nbecomes-dir\nbecomes-file\nfirst\n{long}\nopaque\nreplaced\nsecond\nthird\n\n/l/opaque:\nabove"
        );
        assert_eq!(listed, expected);
        h.run(&format!("{flags} cat /l/replaced /l/absolute /l/becomes-file /l/becomes-dir/x /l/third"))
            .ok()
            .stdout("new\nnew\nnow a file\nx\nlinked\n");
        h.run(&format!("{flags} sh -c 'stat -c \"%a %h\" /l/first /l/second /l/third | uniq'"))
            .ok()
            .stdout("640 3\n");
        h.run(&format!("{flags} sh -c 'stat -c %i /l/first /l/third | uniq | wc -l'")).ok().stdout("1\n");
        h.run(&format!("{flags} sh -c 'cat /l/hidden'")).code(1).stderr_has("No such file");
    }
}

#[test]
fn listing_tagging_and_removing() {
    let Some(h) = Hostel::new() else { return };
    let head = h.run("images").ok().out();
    let head: Vec<_> =
        head.lines().next().unwrap().split("  ").map(str::trim).filter(|word| !word.is_empty()).collect();
    assert_eq!(head, ["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"]);
    h.run("images --format '{{.Repository}}:{{.Tag}}' busybox")
        .ok()
        .has("busybox:latest\n")
        .has("busybox:1\n");
    h.run("image ls -q busybox:latest").ok();
    h.run("tag busybox reg.example:5000/a/b:t").ok();
    h.run("run --rm reg.example:5000/a/b:t echo hi").ok().stdout("hi\n");
    h.run("rmi reg.example:5000/a/b:t").ok().has("Untagged: reg.example:5000/a/b:t");
    h.run("run --rm --pull never reg.example:5000/a/b:t true").fails(125, &["reg.example:5000/a/b:t"]);
    h.run("rmi nosuch").fails(1, &["nosuch", "No such image"]);
    h.run("tag nosuch other").fails(1, &["nosuch", "No such image"]);
    h.run("create --name holds label").ok();
    h.run("rmi label").fails(1, &["label", "container"]);
    h.run("rm holds").ok();
    h.run("rmi label").ok().has("Untagged: label:latest").has("Deleted: sha256:");
    h.run("image inspect label").code(1).stdout("[]\n").stderr_has("No such image: label");
}

#[test]
fn an_image_is_found_by_its_digest_and_id() {
    let Some(h) = Hostel::new() else { return };
    let value: serde_json::Value = serde_json::from_str(&h.run("image inspect busybox").ok().out()).unwrap();
    let value = &value[0];
    let id = value["Id"].as_str().unwrap();
    assert!(id.starts_with("sha256:") && id.len() == 71, "{id}");
    assert_eq!(value["Architecture"], if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" });
    assert_eq!(value["Os"], "linux");
    assert_eq!(value["Config"]["Cmd"], json!(["sh"]));
    assert!(value["RepoTags"].as_array().unwrap().contains(&"busybox:latest".into()));
    h.run(&format!("run --rm {id} echo by id")).ok().stdout("by id\n");
    h.run(&format!("run --rm {} echo short", &id[7..19])).ok().stdout("short\n");
    h.run("image inspect -f '{{.Config.StopSignal}}' stopsignal").ok().stdout("SIGUSR1\n");
}

#[test]
fn an_image_for_another_platform_runs_as_far_as_the_kernel_can() {
    let Some(h) = Hostel::new() else { return };
    // Only its config says what it is for: the programs in it are this machine's.
    let warning =
        "WARNING: The requested image's platform (linux/s390x) does not match the detected host platform";
    h.run("run --rm otherarch echo hi").ok().stdout("hi\n").stderr_has(warning);
    h.run("run --rm --platform linux/s390x otherarch echo hi").ok().stdout("hi\n").stderr("");
    let other = "run --rm --platform linux/riscv64 --pull never otherarch true";
    h.run(other)
        .fails(125, &["does not match the specified platform: wanted linux/riscv64, actual: linux/s390x"]);
    h.run("run --rm --platform linux/ otherarch true").fails(125, &["--platform", "invalid platform"]);
    let out = h.scratch("out").join("x.tar");
    let save = format!("save -o {}", out.display());
    for verb in [&save, "history", "image inspect", "push"] {
        h.run(&format!("{verb} --platform linux/arm64 otherarch"))
            .code(1)
            .stderr_has("does not match the specified platform: wanted linux/arm64, actual: linux/s390x");
        h.run(&format!("{verb} --platform linux/ otherarch")).code(1).stderr_has("invalid platform");
        h.run(&format!("{verb} --platform linux/arm64 nosuch")).code(1).stderr_has("nosuch");
        if verb != "push" {
            h.run(&format!("{verb} --platform linux/s390x otherarch")).ok();
        }
    }
    // A program for another processor, where the kernel has no emulator for it.
    let program = h.place("program");
    let mut bytes = fs::read("/bin/busybox").unwrap();
    bytes[18..20].copy_from_slice(&[0xfe, 0xca]);
    fs::write(&program, bytes).unwrap();
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    h.run(&format!("run --rm -v {}:/program busybox /program", program.display()))
        .fails(126, &["exec format error", "another architecture"]);
    fs::remove_file(&program).unwrap();
}

#[test]
fn what_is_not_there_is_named() {
    let h = Hostel::empty();
    h.run("run --rm nosuch:tag true").fails(125, &["nosuch:tag", "Hint: "]);
    h.run("run --rm UPPER/case true").fails(125, &["UPPER/case", "lower"]);
    h.run("run --rm 'a b' true").fails(125, &["a b"]);
    h.run("run --rm oci:/no/such true").fails(125, &["/no/such"]);
    h.run("run --rm oci-archive:/no/such.tar true").fails(125, &["/no/such.tar"]);
    h.run("run --rm docker-archive:/no/such.tar true").fails(125, &["/no/such.tar"]);
    h.run("load -i /no/such.tar").fails(1, &["/no/such.tar"]);
    h.run("run --rm --pull never nosuch true").fails(125, &["nosuch"]);
}

#[test]
fn damaged_archives_are_refused() {
    let Some(archive) = fixtures::busybox_archive() else { return crate::harness::skip("no busybox-static") };
    let h = Hostel::empty();
    let dir = h.scratch("bad");
    let load = |name: &str, bytes: &[u8]| {
        let file = dir.join(name);
        fs::write(&file, bytes).unwrap();
        h.run(&format!("load -i {}", file.display()))
    };
    let whole = fs::read(archive).unwrap();
    load("cut.tar", &whole[..whole.len() / 2]).fails(1, &["cut.tar"]);
    load("noise.tar", &[7; 4096]).fails(1, &["noise.tar"]);
    load("empty.tar", b"").fails(1, &["empty.tar"]);
    load("zeros.tar", &[0; 10240]).fails(1, &["zeros.tar"]);
    let gz = fixtures::gzip(&whole);
    load("cut.tar.gz", &gz[..gz.len() / 2]).fails(1, &["cut.tar.gz"]);
    h.run("images -q").ok().stdout("");
    assert_eq!(
        fs::read_dir(h.root().join("layers")).map_or(0, Iterator::count),
        0,
        "layers of refused archives"
    );
}

#[test]
fn a_loaded_image_torn_by_a_stop_of_the_machine_is_told_and_comes_again() {
    let Some(archive) = fixtures::busybox_archive() else { return crate::harness::skip("no busybox-static") };
    let bytes = fs::read(&archive).unwrap();
    for waits in [false, true] {
        let h = Hostel::empty();
        let load = |input: &[u8]| {
            h.cmd("load -q").env("HOSTEL_WAIT_FOR_DISK", &waits.to_string()).stdin(input).run()
        };
        load(&bytes).ok();
        let layer = fs::read_dir(h.root().join("layers")).unwrap().next().unwrap().unwrap().path();
        let (tar, mark) = (layer.join("layer.tar"), layer.join("unsettled"));
        assert_eq!(mark.exists(), !waits);
        if waits {
            continue;
        }
        let whole = fs::read(&tar).unwrap();
        let tear = || {
            fs::write(&tar, &whole[..whole.len() / 2]).unwrap();
            fs::write(&mark, "another-boot\n").unwrap();
        };
        tear();
        for _ in 0..2 {
            h.run("run --rm busybox true")
                .fails(125, &["was not on the disk yet", "pull or load its image again"]);
        }
        load(&bytes).ok();
        h.run("run --rm busybox echo hi").ok().stdout("hi\n");
        // A stream is read once, and finds the torn layer in its place.
        tear();
        load(&fixtures::gzip(&bytes)).ok();
        assert_eq!(fs::read(&tar).unwrap(), whole);
        h.run("run --rm busybox echo hi").ok().stdout("hi\n");
        // A whole one is only looked at.
        fs::write(&mark, "another-boot\n").unwrap();
        h.run("run --rm busybox echo hi").ok().stdout("hi\n");
        assert!(!mark.exists());
    }
}

#[test]
fn wrong_digests_are_refused() {
    let h = Hostel::empty();
    let blob = |dir: &std::path::Path, data: &[u8]| dir.join("blobs/sha256").join(fixtures::digest(data));
    // The layer's bytes are not what its descriptor says.
    let dir = h.scratch("layer");
    fixtures::layout_of(&dir, &static_layer());
    let other = vec![0; static_layer().len()];
    fs::write(blob(&dir, &static_layer()), other).unwrap();
    h.run(&format!("pull oci:{}:latest", dir.display()))
        .fails(1, &["digest", &fixtures::digest(&static_layer())]);
    // The layer is what its descriptor says, but not what the config's diff id says.
    let dir = h.scratch("diff");
    let mut layout = Layout::new(&dir);
    let layer = layout.blob(&static_layer());
    layout.image("latest", &json!({"Cmd": ["/busybox"]}), &[layer.with_diff_id(&"0".repeat(64))]);
    layout.finish();
    h.run(&format!("pull oci:{}:latest", dir.display())).fails(1, &["digest mismatch", &"0".repeat(64)]);
    h.run("images -q").ok().stdout("");
}

#[test]
fn hostile_paths_are_refused_and_write_nothing() {
    let h = Hostel::empty();
    let outside = h.scratch("outside");
    let out = outside.display().to_string();
    // What the layer links to, the file that follows, and what the message has to name.
    let cases = [
        ("/", "../../../../tmp/escaped", ".."),
        ("/", "a/../../escaped", ".."),
        (out.as_str(), "link/crossed", "link/crossed"),
    ];
    for (number, (link, file, named)) in cases.into_iter().enumerate() {
        let mut layer = Layer::new();
        layer.symlink("link", link).hostile_file(file, b"x");
        let dir = h.scratch(&format!("evil{number}"));
        fixtures::layout_of(&dir, &layer.finish());
        h.run(&format!("pull oci:{}:latest", dir.display())).fails(1, &[named]);
    }
    assert!(fs::read_dir(&outside).unwrap().next().is_none());
    assert!(!std::path::Path::new("/tmp/escaped").exists());
}

#[test]
fn a_refused_pull_leaves_the_store_as_it_was() {
    let Some(h) = Hostel::new() else { return };
    let before = h.run("images --format '{{.Repository}} {{.ID}}'").ok().out();
    let dir = h.scratch("layout");
    fixtures::busybox_layout(&dir);
    fs::write(dir.join("index.json"), "{").unwrap();
    h.run(&format!("pull oci:{}", dir.display())).fails(1, &["index.json"]);
    h.run("images --format '{{.Repository}} {{.ID}}'").ok().stdout(&format!("{before}\n"));
}

#[test]
fn verify_names_what_is_altered_and_who_uses_it() {
    let Some(h) = Hostel::new() else { return };
    h.run("image verify").ok().has("nothing is wrong");
    h.run("image verify busybox layers").ok().has("Checked 2 images");
    h.run("image verify nosuch").fails(1, &["No such image: nosuch"]);
    let top = h.run("image inspect -f '{{index .RootFS.Layers 2}}' layers").ok().out();
    let place = h.root().join("layers").join(&top["sha256:".len()..]);
    // A seed's large files are shared by hard link with other tests: what is changed is replaced.
    let replace = |file: &str| {
        let mut bytes = fs::read(place.join(file)).unwrap();
        let last = bytes.len() / 2;
        bytes[last] ^= 0x20;
        fs::remove_file(place.join(file)).unwrap();
        fs::write(place.join(file), bytes).unwrap();
    };
    replace("index");
    h.run("image verify").code(1).has(&format!("index of layer {top}")).has("used by layers:latest");
    h.run("image verify busybox").ok();
    h.run("image verify --repair").ok().has("; repaired");
    h.run("image verify -q").ok().stdout("");
    replace("layer.tar");
    h.run("image verify --repair")
        .code(1)
        .has(&format!("layer {top}: it has been altered"))
        .has("(used by layers:latest)")
        .stderr_has("load or pull them again");
    let report = h.run("image verify --format json layers").code(1).out();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["Problems"][0]["Part"], "layer");
    assert_eq!(report["Problems"][0]["Name"], json!(top));
    assert_eq!(report["Problems"][0]["Names"], json!(["layers:latest"]));
    assert_eq!(report["Checked"]["Images"], 1);
    // What the hint says helps.
    h.run("rmi -f layers").ok();
    h.run(&format!("load -i {}", fixtures::layers_archive().unwrap().display())).ok();
    h.run("image verify").ok();
}

/// A root with nothing in it but busybox.
fn static_layer() -> Vec<u8> {
    let mut layer = Layer::new();
    layer.file("busybox", 0o755, 0, &fs::read("/bin/busybox").unwrap());
    layer.finish()
}

#[test]
fn events_tell_what_happened_to_images_and_volumes() {
    let Some(h) = Hostel::new() else { return };
    let id = h.run("image inspect -f '{{.Id}}' label").ok().out();
    // What the seed's loads told is no part of it.
    fs::remove_dir_all(h.root().join("events")).unwrap();
    let past = |flags: &str, format: &str| {
        let line = format!("events --since 1h --until 0s {flags} --format '{format}'");
        h.run(&line).ok().out().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    h.run("tag label mine:1").ok();
    h.run("save -o out.tar mine:1").ok();
    h.run("rmi mine:1").ok();
    h.run("rmi label").ok();
    h.run("load -q -i out.tar").ok();
    let labelled = "{{.Action}} {{.Actor.ID}} {{.Actor.Attributes.name}} {{index .Actor.Attributes \"org.example.kind\"}}";
    let kind = h.run("image inspect -f '{{index .Config.Labels \"org.example.kind\"}}' mine:1").ok().out();
    let told = |action: &str, name: &str| format!("{action} {id} {name} {kind}");
    assert_eq!(
        past("--filter type=image", labelled),
        [
            told("tag", "mine:1"),
            told("save", &id),
            told("untag", &id),
            told("untag", &id),
            told("delete", &id),
            told("load", &id)
        ]
    );
    let mut layer = Layer::new();
    layer.file("f", 0o644, 0, b"x");
    h.cmd("import - made:1").stdin(layer.finish()).run().ok();
    assert_eq!(past("--filter type=image --filter event=import --filter event=tag", "{{.Action}}").len(), 3);
    assert_eq!(past("--filter image=made", "{{.Action}}"), ["tag"]);
    h.run("create --name cc busybox true").ok();
    let made = h.run("commit -m why cc committed:1").ok().out();
    assert_eq!(
        past(
            "--filter event=commit",
            "{{.Actor.Attributes.imageID}} {{.Actor.Attributes.imageRef}} {{.Actor.Attributes.comment}}"
        ),
        [format!("{made} committed:1 why")]
    );
    h.run("export -o root.tar cc").ok();
    assert_eq!(past("--filter event=export", "{{.Actor.Attributes.name}}"), ["cc"]);
    h.run("rm cc").ok();
    h.run("volume create data").ok();
    h.run("volume create data").ok();
    h.run("volume rm data").ok();
    h.run("run --rm -v /anonymous busybox true").ok();
    // The client of a --rm container returns before its volumes are gone.
    eventually("the volume is gone", || {
        past("--filter event=destroy --filter type=volume", "{{.Action}}").len() == 2
    });
    let volumes = past("--filter type=volume", "{{.Action}} {{.Actor.Attributes.driver}}");
    let anonymous = ["create local", "mount local", "unmount local", "destroy local"];
    assert_eq!(volumes, [&["create local", "destroy local"], &anonymous[..]].concat());
    let networks = past("--filter type=network", "{{.Action}} {{.Actor.Attributes.name}} {{.Actor.ID}}");
    let id = h.run("network ls -q --no-trunc --filter name=bridge").ok().out();
    assert_eq!(networks, [format!("connect bridge {id}"), format!("disconnect bridge {id}")]);
    assert_eq!(past("--filter network=bridge --filter event=connect", "{{.Type}}"), ["network"]);
    assert_eq!(past("--filter volume=data", "{{.Action}}"), ["create", "destroy"]);
    for line in ["image prune -f", "volume prune -f", "container prune -f", "network prune -f"] {
        h.run(line).ok();
    }
    assert_eq!(
        past("--filter event=prune", "{{.Type}} {{.Actor.Attributes.reclaimed}}"),
        ["image 0", "volume 0", "container 0", "network 0"]
    );
    for file in ["out.tar", "root.tar"] {
        fs::remove_file(h.place(file)).unwrap();
    }
}
