//! The store as other programs and other users see it: formats, disk usage, configuration, stores that
//! are shared, policies, and what happens when the disk is full.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use serde_json::Value;

use crate::fixtures;
use crate::harness::{Done, Hostel, skip};

/// Whether a program is installed; a missing one is a loud skip.
fn has_program(h: &Hostel, name: &str) -> bool {
    let found = h.program("sh", &["-c", &format!("command -v {name}")]).run().exit_code() == 0;
    if !found {
        skip(&format!("no {name}"));
    }
    found
}

fn json(done: &Done) -> Value {
    serde_json::from_str(&done.stdout).unwrap()
}

/// Everything below a directory with what changes when it is written to.
fn state_of(path: &Path) -> Vec<(String, u64, i64, i64)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        let metadata = entry.metadata().unwrap();
        let name = entry.path().display().to_string();
        // Large files are hard links to the seed's: their ctime is every test's.
        let changed = if metadata.is_file() && metadata.nlink() > 1 { 0 } else { metadata.ctime_nsec() };
        found.push((name, metadata.size(), metadata.mtime_nsec(), changed));
        if metadata.is_dir() {
            found.extend(state_of(&entry.path()));
        }
    }
    found.sort();
    found
}

#[test]
fn system_df_counts_and_prune_takes_away() {
    let Some(h) = Hostel::new() else { return };
    let columns = |line: &str| -> Vec<String> {
        line.split("  ").map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect()
    };
    let df = h.run("system df").ok().out();
    assert_eq!(columns(df.lines().next().unwrap()), ["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"]);
    let images = columns(df.lines().nth(1).unwrap());
    assert_eq!(images[2], "0");
    assert!(images[4].ends_with("(100%)"), "{df}");
    h.run("create --name first busybox true").ok();
    h.run("create --name second -v /data busybox true").ok();
    let rows = h.run("system df --format '{{.Type}}={{.TotalCount}}/{{.Active}}'").ok().out();
    assert!(
        rows.contains("Images=") && rows.contains("/1\nContainers=2/0\nLocal Volumes=1/1\nBuild Cache=0/0"),
        "{rows}"
    );
    let verbose = h.run("system df -v");
    verbose.ok();
    for part in [
        "Images space usage:\n\nREPOSITORY",
        "\nContainers space usage:\n\nCONTAINER ID",
        "\nLocal Volumes space usage:\n\nVOLUME NAME",
        "\nBuild cache usage: 0B\n",
    ] {
        verbose.has(part);
    }
    let all = json(h.run("system df -v --format json").ok());
    assert_eq!(all["Containers"].as_array().unwrap().len(), 2);
    assert_eq!(all["Volumes"][0]["Links"], "1");
    let lines = h.run("system df --format json").ok().out();
    let first: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!(first["Type"], "Images");

    h.run("system prune -f --volumes --filter until=1h").fails(1, &["\"until\" filter is not supported"]);
    h.run("system prune -f --filter label=nobody").ok().stdout("Total reclaimed space: 0B\n");
    h.cmd("system prune")
        .stdin("n\n")
        .run()
        .ok()
        .has("WARNING! This will remove:\n  - all stopped containers\n  - all dangling images\n  - unused build cache\n");
    h.run("system prune -f --volumes")
        .ok()
        .has("Deleted Containers:\n")
        .has("Deleted Volumes:\n")
        .has("Total reclaimed space: ");
    h.run("volume ls -q").ok().stdout("");
    h.run("create --name keeps busybox true").ok();
    h.run("system prune -a -f").ok().has("Deleted Containers:").has("untagged: busybox:latest");
    h.run("images -q").ok().stdout("");
    assert_eq!(fs::read_dir(h.root().join("layers")).unwrap().count(), 0);
    h.run("system check").ok().has("nothing is wrong");
}

#[test]
fn image_prune_follows_its_filters() {
    let Some(h) = Hostel::new() else { return };
    h.run("image prune -f").ok().stdout("Total reclaimed space: 0B\n");
    h.run("image prune -a -f --filter label=org.example.kind=test")
        .ok()
        .has("untagged: label:latest")
        .lacks("busybox");
    h.run("create --name one user").ok();
    h.run("image prune -f --filter dangling=false --filter label!=no.such")
        .ok()
        .has("untagged: busybox:1\n")
        .lacks("untagged: user");
    h.run("images --format '{{.Repository}}'").ok().stdout("user\n");
    h.run("image prune -f --filter nonsense=1").fails(1, &["invalid filter 'nonsense'"]);
    h.run("rm one").ok();
}

#[test]
fn a_check_repairs_and_removes_what_is_beyond_repair() {
    let Some(h) = Hostel::new() else { return };
    let top = h.run("image inspect -f '{{index .RootFS.Layers 2}}' layers").ok().out();
    let tar = h.root().join("layers").join(&top["sha256:".len()..]).join("layer.tar");
    h.run("create --name uses layers true").ok();
    let mut bytes = fs::read(&tar).unwrap();
    bytes[700] ^= 1;
    fs::remove_file(&tar).unwrap();
    fs::write(&tar, bytes).unwrap();
    h.run("system check --quick").ok();
    h.run("system check").code(1).has(&top);
    h.run("system check --repair").code(1).stderr_has("--force removes both");
    h.run("system check --repair --force").ok().has("Removed container").has("Removed image");
    h.run("system check").ok();
    h.run("run --rm busybox echo whole").ok().stdout("whole\n");
}

#[test]
fn config_files_environment_and_flags_have_their_order() {
    let h = Hostel::empty();
    let (config, first, second) = (h.scratch("config"), h.scratch("first"), h.scratch("second"));
    fs::create_dir(config.join("hostel")).unwrap();
    let write = |text: &str| fs::write(config.join("hostel/config.toml"), text).unwrap();
    let root = |env: &str, flag: &str| {
        let cmd = h.cmd(&format!("{flag} info --format '{{{{.DockerRootDir}}}}'"));
        cmd.env("XDG_CONFIG_HOME", &config.display().to_string()).env("HOSTEL_ROOT", env).run()
    };
    write(&format!("root = '{}'\nnosuch = 1\n", first.join("r").display()));
    let (first, second) = (first.join("r").display().to_string(), second.join("r").display().to_string());
    root("", "").ok().stdout(&format!("{first}\n")).stderr_has("unknown key \"nosuch\"");
    root(&second, "").ok().stdout(&format!("{second}\n"));
    root(&second, &format!("--root {first}")).ok().stdout(&format!("{first}\n"));
    write("root = [");
    root("", "").fails(1, &["config.toml is not valid", "line 1"]);
    write("local_dir = 'here'");
    root("", "").fails(1, &["local_dir is \"here\", which is not an absolute path"]);
}

#[test]
fn a_store_of_others_is_used_and_never_written() {
    let Some(theirs) = Hostel::new() else { return };
    let h = Hostel::empty();
    let other = theirs.root().display().to_string();
    let run = |line: &str| h.cmd(line).env("HOSTEL_ADDITIONAL_IMAGE_STORES", &other).run();
    let before = state_of(&theirs.root());
    run("images --format '{{.Repository}}:{{.Tag}} {{.ReadOnly}}' busybox:1").ok().stdout("busybox:1 true\n");
    run("images busybox").ok().has("R/O").has("true");
    run("run --rm busybox echo theirs").ok().stdout("theirs\n");
    run("create --name one layers cat /l/third").ok();
    run("start -a one").ok().stdout("linked\n");
    run("rm one").ok();
    run("rmi busybox").fails(1, &["read-only image store", &other]);
    run("image prune -a -f").ok().stdout("Total reclaimed space: 0B\n");
    run("image inspect -f '{{.Os}}' busybox").ok().stdout("linux\n");
    // A name of our own makes it ours; its layers stay where they are.
    run("tag busybox mine:1").ok();
    run("images --format '{{.Repository}}:{{.Tag}} {{.ReadOnly}}' mine").ok().stdout("mine:1 false\n");
    assert_eq!(fs::read_dir(h.root().join("layers")).unwrap().count(), 0);
    run("run --rm mine:1 echo ours").ok().stdout("ours\n");
    run("image verify").ok();
    run("rmi mine:1").ok().has("Untagged: mine:1");
    // A pull takes from there what is there.
    let layout = h.scratch("layout");
    fixtures::busybox_layout(&layout);
    run(&format!("pull -q oci:{}:latest", layout.display())).ok();
    assert_eq!(fs::read_dir(h.root().join("layers")).unwrap().count(), 0);
    run("run --rm layout:latest echo pulled").ok().stdout("pulled\n");
    assert_eq!(state_of(&theirs.root()), before);
    // Without it the command goes on, and says so.
    h.cmd("images -q nosuch")
        .env("HOSTEL_ADDITIONAL_IMAGE_STORES", "/no/such/store")
        .run()
        .ok()
        .stderr_has("/no/such/store");
    fs::set_permissions(theirs.root().join("layers"), fs::Permissions::from_mode(0o777)).unwrap();
    run("images -q busybox").ok().stdout("").stderr_has("everybody may write to");
    fs::set_permissions(theirs.root().join("layers"), fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn a_signature_policy_is_honoured() {
    let Some(archive) = fixtures::busybox_archive() else { return skip("no busybox-static") };
    let h = Hostel::empty();
    let home = h.scratch("home");
    let place = home.join(".config/containers");
    fs::create_dir_all(&place).unwrap();
    let load = |policy: &str| {
        fs::write(place.join("policy.json"), policy).unwrap();
        let cmd = h.cmd(&format!("load -q -i {}", archive.display()));
        cmd.env("HOME", &home.display().to_string()).run()
    };
    load(r#"{"default": [{"type": "reject"}]}"#)
        .fails(1, &["rejected by the signature policy", "policy.json"]);
    load(r#"{"default": [{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/k"}]}"#)
        .fails(1, &["signedBy"]);
    load("{}").fails(1, &["is not valid"]);
    h.run("images -q").ok().stdout("");
    load(r#"{"default": [{"type": "reject"}], "transports": {"docker-archive": {"": [{"type": "insecureAcceptAnything"}]}}}"#).ok();
}

#[test]
fn every_form_of_save_is_read_again() {
    let Some(h) = Hostel::new() else { return };
    let dir = h.scratch("saved");
    let id = h.run("images -q --no-trunc layers").ok().out();
    for format in ["docker-archive", "oci-archive", "oci-dir"] {
        let place = dir.join(format);
        h.run(&format!("save --format {format} -o {} layers busybox", place.display())).ok().stdout("");
        let fresh = Hostel::empty();
        fresh
            .run(&format!("load -i {}", place.display()))
            .ok()
            .has("Loaded image: layers:latest")
            .has("Loaded image: busybox:latest");
        fresh.run("images -q --no-trunc layers").ok().stdout(&format!("{id}\n"));
    }
    h.run("save --format oci-dir layers").fails(1, &["-o"]);
    h.run(&format!("save --format docker-dir -o {}/two layers busybox", dir.display()))
        .fails(1, &["one image only"]);
    h.run("save --format nonsense layers").fails(125, &["docker-archive, oci-archive, oci-dir, docker-dir"]);
    h.run(&format!("save --format docker-dir -o {}/docker-dir layers", dir.display())).ok();
    if has_program(&h, "skopeo") {
        for from in [
            "docker-archive:docker-archive:layers:latest",
            "oci-archive:oci-archive:docker.io/library/layers:latest",
            "oci:oci-dir:docker.io/library/layers:latest",
            "dir:docker-dir",
        ] {
            let (transport, rest) = from.split_once(':').unwrap();
            let source = format!("{transport}:{}/{rest}", dir.display());
            let config = h.program("skopeo", &["inspect", "--config", "--raw", &source]).run();
            config.ok();
            assert_eq!(format!("sha256:{}", fixtures::digest(config.stdout.as_bytes())), id, "{from}");
        }
    }
}

#[test]
fn other_tools_read_the_store_itself() {
    let Some(h) = Hostel::new() else { return };
    let root = h.root().display().to_string();
    let id = h.run("images -q --no-trunc layers").ok().out();
    if has_program(&h, "skopeo") {
        let source = format!("oci:{root}:docker.io/library/layers:latest");
        let config = h.program("skopeo", &["inspect", "--config", "--raw", &source]).run();
        config.ok();
        assert_eq!(format!("sha256:{}", fixtures::digest(config.stdout.as_bytes())), id);
        // All of it is there, layers too.
        let copy = h.scratch("copy");
        let target = format!("oci:{}:x", copy.display());
        h.program("skopeo", &["copy", "--insecure-policy", "-q", &source, &target]).run().ok();
        let fresh = Hostel::empty();
        fresh.run(&format!("run --rm oci:{}:x cat /l/third", copy.display())).ok().stdout("linked\n");
        fresh.run("images -q --no-trunc").ok().stdout(&format!("{id}\n"));
    }
    if has_program(&h, "umoci") {
        h.program("umoci", &["stat", "--image", &format!("{root}:docker.io/library/layers:latest")])
            .run()
            .ok()
            .has("LAYER");
        let bundle = h.scratch("bundle").join("b");
        let image = format!("{root}:docker.io/library/layers:latest");
        h.program("umoci", &["unpack", "--rootless", "--image", &image, &bundle.display().to_string()])
            .run()
            .ok();
        assert_eq!(fs::read_to_string(bundle.join("rootfs/l/third")).unwrap(), "linked\n");
        assert!(!bundle.join("rootfs/l/hidden").exists());
    }
    h.run("image verify").ok();
}

#[test]
fn hostel_and_the_tools_of_containers_read_each_other() {
    let Some(h) = Hostel::new() else { return };
    let dir = h.scratch("tools");
    let at = |name: &str| dir.join(name).display().to_string();
    let id = h.run("images -q --no-trunc busybox:latest").ok().out();
    h.run(&format!("save -o {} busybox:latest", at("hostel.tar"))).ok();
    h.run(&format!("save --format oci-archive -o {} busybox:latest", at("hostel.oci"))).ok();
    if has_program(&h, "podman") && has_program(&h, "skopeo") {
        // podman takes no run directory of more than 50 characters.
        let place = tempfile::Builder::new().prefix("ht").tempdir_in("/tmp").unwrap();
        let store = place.path().join("p").display().to_string();
        let podman = |arguments: &[&str]| {
            let mut all = vec![
                "--root",
                &store,
                "--runroot",
                &store,
                "--storage-driver",
                "vfs",
                "--cgroup-manager",
                "cgroupfs",
            ];
            all.extend(arguments);
            h.program("podman", &all).limit(std::time::Duration::from_secs(120)).run()
        };
        for (number, file) in ["hostel.tar", "hostel.oci"].into_iter().enumerate() {
            podman(&["load", "-q", "-i", &at(file)]).ok().has("busybox:latest");
            podman(&["images", "-q", "--no-trunc"]).ok().stdout(&format!("{id}\n"));
            for format in ["docker-archive", "oci-archive"] {
                let back = at(&format!("back{number}.{format}"));
                podman(&["save", "-q", "--format", format, "-o", &back, "busybox:latest"]).ok();
                // Ends the process that holds podman's namespaces.
                podman(&["system", "migrate"]);
                let fresh = Hostel::empty();
                fresh.run(&format!("load -i {back}")).ok().has("busybox:latest");
                fresh.run("images -q").ok();
                fresh.run("run --rm busybox echo back").ok().stdout("back\n");
                if format == "docker-archive" {
                    fresh.run("images -q --no-trunc").ok().stdout(&format!("{id}\n"));
                }
            }
            podman(&["rmi", "-a", "-f"]).ok();
        }
        podman(&["unshare", "rm", "-rf", &format!("{store}/vfs"), &format!("{store}/vfs-layers")]).ok();
        // Ends the process that holds podman's namespaces.
        podman(&["system", "migrate"]);
        for dir in ["containers", "libpod"] {
            let _ = fs::remove_dir_all(h.runtime().join(dir));
        }
    }
}

#[test]
fn a_full_disk_harms_nothing_and_pruning_works_on_it() {
    let Some(archive) = fixtures::busybox_archive() else { return skip("no busybox-static") };
    let h = Hostel::empty();
    if h.program("unshare", &["-Urm", "true"]).run().exit_code() != 0 {
        return skip("unshare -Urm is not allowed here");
    }
    let place = h.scratch("small").display().to_string();
    let layout = h.scratch("layout");
    // Beside busybox there is no room for it; alone it fits.
    let mut layer = fixtures::Layer::new();
    let noise: Vec<u8> = (0..600_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    layer.file("noise", 0o644, 0, &noise);
    layer.file("more", 0o644, 0, &noise);
    fixtures::layout_of(&layout, &layer.finish());
    let script = format!(
        "mount -t tmpfs -o size=6m none {place}; export HOSTEL_ROOT={place}/root
        $HOSTEL load -q -i {archive}
        before=$($HOSTEL images -q | sort)
        $HOSTEL pull oci:{layout}:latest 2>&1 | grep -o 'no space left' || exit 80
        [ \"$($HOSTEL images -q | sort)\" = \"$before\" ] || exit 81
        ls {place}/root/tmp | grep . && exit 82
        $HOSTEL image verify -q || exit 83
        # Not a block is left.
        cat /dev/zero > {place}/filler 2>/dev/null
        $HOSTEL pull oci:{layout}:latest 2>/dev/null && exit 84
        $HOSTEL images -q >/dev/null || exit 85
        $HOSTEL rmi label >/dev/null 2>&1; echo \"rmi $?\"
        $HOSTEL image prune -a -f | grep -o 'Total reclaimed' || exit 86
        [ -z \"$($HOSTEL images -q)\" ] || exit 87
        ls {place}/root/layers | grep . && exit 88
        rm {place}/filler
        $HOSTEL pull -q oci:{layout}:latest || exit 89",
        archive = archive.display(),
        layout = layout.display(),
    );
    let done = h.program("unshare", &["-Urm", "sh", "-c", &script]).run();
    done.ok().has("no space left").has("rmi 0").has("Total reclaimed");
}

#[test]
fn images_of_other_engines_are_pulled_and_run() {
    let Some(busybox) = fixtures::busybox_archive() else { return skip("no busybox-static") };
    let h = Hostel::empty();
    h.run("pull docker-daemon:x").fails(1, &["docker-daemon:x", "cannot reach the Docker daemon"]);
    if !has_program(&h, "podman") {
        return;
    }
    // An engine of its own: its store and sockets lie in this home.
    let home = h.scratch("home").display().to_string();
    let with_home =
        |cmd: crate::harness::Cmd| cmd.env("HOME", &home).env("XDG_DATA_HOME", &format!("{home}/data"));
    let podman = |arguments: &[&str]| {
        let mut all =
            vec!["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "none"];
        all.extend(arguments);
        with_home(h.program("podman", &all)).limit(std::time::Duration::from_secs(120))
    };
    // What its store is must be known without flags.
    let config = Path::new(&home).join(".config/containers");
    fs::create_dir_all(&config).unwrap();
    fs::write(config.join("storage.conf"), "[storage]\ndriver = \"vfs\"\n").unwrap();
    podman(&["load", "-q", "-i", &busybox.display().to_string()]).run().ok();
    with_home(h.cmd("pull containers-storage:nosuch")).run().fails(1, &["containers-storage:nosuch"]);
    with_home(h.cmd("run --rm containers-storage:busybox:latest echo podmans"))
        .run()
        .ok()
        .stdout("podmans\n");
    let id = podman(&["images", "-q", "--no-trunc", "busybox:latest"]).run().ok().out();
    let ids = h.run("images -q --no-trunc").ok().out();
    assert!(ids.lines().any(|line| line == id), "{id} is not among {ids}");
    // Its service speaks Docker's protocol.
    let socket = h.scratch("sock").join("s").display().to_string();
    let service = podman(&["system", "service", "--time", "20", &format!("unix://{socket}")]).spawn();
    crate::harness::eventually("podman's socket", || Path::new(&socket).exists());
    let docker = |line: &str| h.cmd(line).env("DOCKER_HOST", &format!("unix://{socket}")).run();
    docker("pull docker-daemon:nosuch").fails(1, &["docker-daemon:nosuch"]);
    docker("pull docker-daemon:localhost/label:latest").ok().has("label:latest");
    docker("run --rm localhost/label echo daemons").ok().stdout("daemons\n");
    service.signal(nix::sys::signal::Signal::SIGTERM);
    service.wait();
    podman(&["unshare", "rm", "-rf", &format!("{home}/data/containers/storage/vfs")]).run();
    // Ends the process that holds podman's namespaces.
    podman(&["system", "migrate"]).run();
    for dir in ["containers", "libpod"] {
        let _ = fs::remove_dir_all(h.runtime().join(dir));
    }
}

#[test]
fn collections_run_beside_pulls_and_runs() {
    let Some(h) = Hostel::new() else { return };
    let layout = h.scratch("layout");
    fixtures::busybox_layout(&layout);
    let source = format!("oci:{}:latest", layout.display());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..6 {
                h.run(&format!("run --rm {source} echo fine")).ok().stdout("fine\n");
            }
        });
        scope.spawn(|| {
            for _ in 0..6 {
                h.run(&format!("pull -q {source}")).ok();
                // Taken away meanwhile by the third: both are an answer.
                let done = h.run("rmi -f layout:latest");
                assert!(done.exit_code() == 0 || done.stderr.contains("No such image"), "{}", done.stderr);
            }
        });
        scope.spawn(|| {
            for _ in 0..12 {
                h.run("image prune -a -f").ok();
            }
        });
    });
    h.run("image verify").ok();
    h.run("image prune -a -f").ok();
    h.run("images -q").ok().stdout("");
    assert_eq!(fs::read_dir(h.root().join("layers")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(h.root().join("tmp")).unwrap().count(), 0);
}
