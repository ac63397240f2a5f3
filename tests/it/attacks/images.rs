//! What an image can be made of.

use std::fs;

use serde_json::{Value, json};

use super::load_evil;
use crate::fixtures::{self, Layer};
use crate::harness::{Hostel, eventually};

/// Whether nothing was made at a path of the machine that a hostile link leads to.
fn untouched(dir: &std::path::Path) {
    let names: Vec<_> = fs::read_dir(dir).unwrap().collect();
    assert!(names.is_empty(), "an image wrote outside: {names:?}");
}

#[test]
fn dev_and_its_files_as_links_lead_nowhere() {
    let h = Hostel::empty();
    let outside = h.scratch("outside");
    let link = |name: &str| format!("{}/{name}", outside.display());
    let made = load_evil(&h, &json!({}), |layer| {
        layer.symlink("dev/null", &link("null")).symlink("dev/console", "/proc/sysrq-trigger");
        layer.symlink("dev/pts", "../../../..").symlink("dev/shm", &link("shm")).symlink("dev/fd", "/");
    });
    if !made {
        return;
    }
    let look = "echo x > /dev/null && test -c /dev/null && test -d /dev/pts && ls /dev/shm | wc -l";
    h.args(&["run", "--rm", "-t", "evil", "sh", "-c", look]).ok().has("0");
    load_evil(&h, &json!({}), |layer| {
        layer.symlink("dev", &outside.to_string_lossy());
    });
    // It is the container's own directory of that name that gets the devices.
    h.args(&["run", "--rm", "evil", "sh", "-c", "echo x > /dev/null; test -c /dev/null && echo own"])
        .ok()
        .stdout("own\n");
    untouched(&outside);
}

#[test]
fn proc_and_sys_as_links_are_refused() {
    let h = Hostel::empty();
    for (name, target) in [("proc", "/etc"), ("proc", "/home/app"), ("sys", "../../tmp"), ("sys", "/nowhere")]
    {
        if !load_evil(&h, &json!({}), |layer| {
            layer.symlink(name, target);
        }) {
            return;
        }
        h.run("run --rm evil true").fails(125, &[name, "ordinary directory"]);
    }
}

#[test]
fn a_volume_led_into_proc_is_refused() {
    let h = Hostel::empty();
    for target in ["/proc", "/proc/self/attr", "/proc/sys/net", "/home/../proc/self"] {
        let config = json!({"Volumes": {"/data/here": {}}});
        if !load_evil(&h, &config, |layer| {
            layer.symlink("data/here", target);
        }) {
            return;
        }
        h.run("run --rm evil true").fails(125, &["inside /proc"]);
    }
    // The keeper removes what was made for it, after it has told the command.
    eventually("the end of the volumes", || h.run("volume ls -q").ok().stdout.is_empty());
}

#[test]
fn binds_follow_links_of_the_image_inside_only() {
    let h = Hostel::empty();
    let (outside, source) = (h.scratch("outside"), h.scratch("source"));
    fs::write(source.join("f"), "bound\n").unwrap();
    let made = load_evil(&h, &json!({}), |layer| {
        layer.symlink("etc/hosts", &format!("{}/hosts", outside.display()));
        layer.symlink("etc/resolv.conf", "/../../../../../../../etc/resolv-of-evil");
        layer.symlink("v", &outside.to_string_lossy());
    });
    if !made {
        return;
    }
    let bind = format!("{}:/v/in", source.display());
    h.args(&["run", "--rm", "-v", &bind, "evil", "sh", "-c", "cat /v/in/f; grep -c localhost /etc/hosts"])
        .ok()
        .has("bound\n");
    untouched(&outside);
}

#[test]
fn account_files_of_every_kind() {
    let h = Hostel::empty();
    type Fill = fn(&mut Layer, &str);
    let kinds: [(&str, Fill); 6] = [
        ("a link to the machine's", |layer, name| {
            layer.symlink(name, "/../../../../../etc/passwd");
        }),
        ("a magic link", |layer, name| {
            layer.symlink(name, "/proc/self/environ");
        }),
        ("a pipe", |layer, name| {
            layer.special(name, tar::EntryType::Fifo, 0, 0);
        }),
        ("a device", |layer, name| {
            layer.special(name, tar::EntryType::Char, 1, 5);
        }),
        ("a directory", |layer, name| {
            layer.dir(name, 0o755, 0);
        }),
        ("a gibibyte", |layer, name| {
            layer.sparse(name, 1 << 30);
        }),
    ];
    for (what, fill) in kinds {
        if !load_evil(&h, &json!({}), |layer| {
            fill(layer, "etc/passwd");
            fill(layer, "etc/group");
        }) {
            return;
        }
        h.run("run --rm -u 0 evil echo runs").ok().stdout("runs\n");
        let user = std::env::var("USER").unwrap_or_else(|_| "root".into());
        let done = h.args(&["run", "--rm", "-u", &user, "evil", "true"]);
        assert_eq!(done.exit_code(), 125, "{what}: {}", done.stderr);
        done.stderr_has("unable to find user");
    }
}

#[test]
fn a_sparse_file_of_terabytes_stays_one_in_a_volume() {
    let h = Hostel::empty();
    let made = load_evil(&h, &json!({"Volumes": {"/data": {}}}), |layer| {
        layer.sparse("data/huge", 8 << 40);
    });
    if !made {
        return;
    }
    h.args(&["run", "--rm", "evil", "sh", "-c", "stat -c %s /data/huge; du -m /data/huge"])
        .ok()
        .has(&format!("{}\n", 8_u64 << 40))
        .has("1\t/data/huge");
}

#[test]
fn xattrs_of_overlayfs_are_not_forged() {
    let h = Hostel::empty();
    let made = load_evil(&h, &json!({}), |layer| {
        let forged = [
            ("SCHILY.xattr.user.overlay.redirect", "/etc/passwd"),
            ("SCHILY.xattr.user.overlay.metacopy", ""),
            ("SCHILY.xattr.trusted.overlay.redirect", "/etc/passwd"),
        ];
        layer.extended(&forged).file("x/small", 0o644, 0, b"its own\n");
        layer.extended(&forged).file("x/large", 0o755, 0, &vec![b'A'; 5 << 20]);
        layer.extended(&[
            ("SCHILY.xattr.user.overlay.redirect", "/etc"),
            ("SCHILY.xattr.user.overlay.opaque", "y"),
        ]);
        layer.dir("home/app", 0o755, 0);
    });
    if !made {
        return;
    }
    for write in ["write=hybrid", "write=pure"] {
        let script =
            "cat /x/small; head -c 3 /x/large; echo; ls /home/app; echo more >> /x/small; tail -1 /x/small";
        h.args(&["run", "--rm", "--storage-opt", write, "evil", "sh", "-c", script])
            .ok()
            .stdout("its own\nAAA\nmore\n");
    }
}

#[test]
fn devices_and_whiteouts_cannot_be_made_or_opened() {
    let h = Hostel::empty();
    let made = load_evil(&h, &json!({}), |layer| {
        layer.special("disk", tar::EntryType::Block, 8, 0).special("mem", tar::EntryType::Char, 1, 1);
        layer.special("hole", tar::EntryType::Char, 0, 0);
    });
    if !made {
        return;
    }
    for write in ["write=hybrid", "write=pure"] {
        let script = "for f in disk mem hole; do cat /$f 2>/dev/null && echo opened $f; done; \
                      for d in 'c 0 0' 'c 1 1' 'b 8 0'; do mknod /made $d 2>/dev/null && cat /made && echo made $d; rm -f /made; done; \
                      echo end";
        h.args(&["run", "--rm", "--storage-opt", write, "evil", "sh", "-c", script]).ok().stdout("end\n");
    }
}

#[test]
fn a_working_directory_of_a_descriptor_is_the_containers() {
    let Some(h) = Hostel::new() else { return };
    h.detached("--name box --network none busybox sleep 1000");
    let root = h.run("exec box stat -c %d:%i /").ok().out();
    // CVE-2024-21626: a directory of the machine's that the engine has open.
    for fd in 0..24 {
        for done in [
            h.run(&format!("exec -w /proc/self/fd/{fd} box sh -c 'stat -c %d:%i . ; stat -c %d:%i /'")),
            h.run(&format!("run --rm --network none -w /proc/self/fd/{fd} busybox sh -c 'stat -c %d:%i . ; stat -c %d:%i /'")),
        ] {
            if done.exit_code() == 0 {
                let (here, top) = done.stdout.trim().split_once('\n').unwrap();
                assert_eq!(here, top, "descriptor {fd} is a directory that is not the container's root");
            } else {
                done.code(126);
            }
        }
        h.run(&format!("exec box ls -a /proc/self/fd/{fd}/../../..")).lacks("hostel");
    }
    assert!(root.contains(':'));
}

#[test]
fn the_engine_is_not_a_command_of_the_image() {
    let h = Hostel::empty();
    let made = load_evil(&h, &json!({"Entrypoint": ["/self"], "Cmd": ["version"]}), |layer| {
        layer.symlink("self", "/proc/self/exe");
        layer.file("script", 0o755, 0, b"#!/proc/self/exe\nversion\n");
    });
    if !made {
        return;
    }
    let before = fs::metadata(crate::harness::binary()).unwrap().modified().unwrap();
    for line in ["run --rm evil", "run --rm --entrypoint /script evil", "run --rm --init evil"] {
        let done = h.run(line);
        assert_ne!(done.exit_code(), 0, "{line}: {}", done.stdout);
        done.lacks("hostel");
    }
    assert_eq!(fs::metadata(crate::harness::binary()).unwrap().modified().unwrap(), before);
}

#[test]
fn name_service_modules_of_the_image_are_not_loaded() {
    let h = Hostel::empty();
    let made = load_evil(&h, &json!({}), |layer| {
        layer.file("etc/nsswitch.conf", 0o644, 0, b"passwd: evil\ngroup: evil\nhosts: evil\n");
        for dir in ["lib", "lib64", "usr/lib", "lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"] {
            for name in ["libnss_evil.so.2", "libnss_files.so.2", "libc.so.6"] {
                // Loading it would fail loudly.
                layer.file(&format!("{dir}/{name}"), 0o755, 0, b"\x7fELF not a library");
            }
        }
    });
    if !made {
        return;
    }
    h.detached("--name box evil sleep 1000");
    for line in ["exec -u app box echo ok", "top box", "cp box:/etc/group -", "exec -u 12:13 box echo ok"] {
        let done = h.run(line);
        if line.contains("-u app") && !crate::harness::has_subordinate_ids() {
            continue;
        }
        done.ok();
    }
}

#[test]
fn set_id_programs_give_nothing_outside_or_against_the_will() {
    let h = Hostel::empty();
    let made = load_evil(&h, &json!({}), |layer| {
        layer.file("suid/id", 0o6755, 0, &fs::read("/bin/busybox").unwrap());
    });
    if !made {
        return;
    }
    if crate::harness::has_subordinate_ids() {
        h.run("run --rm -u 1000 --security-opt no-new-privileges evil /suid/id -u").ok().stdout("1000\n");
    }
    h.detached("--name box evil sh -c 'cp /suid/id /own && chmod 6755 /own && sleep 1000'");
    h.run("exec box ls -l /own").ok();
    // On the disk nobody else can pass to what was made.
    for private in ["containers", "native", "volumes"] {
        let Ok(found) = fs::metadata(h.root().join(private)) else { continue };
        let top = fs::metadata(h.root()).unwrap();
        let mode = |meta: &fs::Metadata| std::os::unix::fs::PermissionsExt::mode(&meta.permissions());
        assert!(mode(&found) & 0o077 == 0 || mode(&top) & 0o077 == 0, "{private} is open to others");
    }
}

/// Layers whose names, links and sizes are an attack: the error names what is wrong with each.
#[test]
fn hostile_layers_are_refused_and_write_nothing() {
    let h = Hostel::empty();
    let outside = h.scratch("outside");
    let up = format!("../../../../../../../../..{}/up", outside.display());
    let absolute = format!("{}/absolute", outside.display());
    let through = outside.to_string_lossy().into_owned();
    type Fill<'a> = Box<dyn Fn(&mut Layer) + 'a>;
    let layers: Vec<(&str, Fill<'_>)> = vec![
        (
            "..",
            Box::new(|layer| {
                layer.hostile_file(&up, b"x");
            }),
        ),
        (
            "a/..",
            Box::new(|layer| {
                layer.hostile_file("a/../../b", b"x");
            }),
        ),
        (
            "through a link",
            Box::new(|layer| {
                layer.symlink("l", &through).file("l/written", 0o644, 0, b"x");
            }),
        ),
        (
            "hard link out",
            Box::new(|layer| {
                layer.symlink("l", "/etc").hard_link("h", "../../../../etc/passwd");
            }),
        ),
        (
            "hard link to nothing",
            Box::new(|layer| {
                layer.hard_link("h", "no/such");
            }),
        ),
        (
            "whiteout of ..",
            Box::new(|layer| {
                layer.file("a/.wh...", 0o644, 0, b"");
            }),
        ),
        (
            "whiteout of nothing",
            Box::new(|layer| {
                layer.file("a/.wh.", 0o644, 0, b"");
            }),
        ),
    ];
    for (what, fill) in &layers {
        let mut layer = Layer::new();
        fill(&mut layer);
        let place = h.scratch(&format!("layout-{}", what.replace([' ', '/', '.'], "_")));
        fixtures::layout_of(&place, &layer.finish());
        let done = h.run(&format!("pull oci:{}:latest", place.display()));
        // One that is taken all the same, as Docker takes it, has its content below the container's root.
        assert!(done.exit_code() <= 1, "{what}: {}", done.stderr);
        assert!(!done.stderr.contains("panicked"), "{what}: {}", done.stderr);
    }
    // An absolute name is one below the root.
    let mut layer = Layer::new();
    layer.hostile_file(&absolute, b"x");
    let place = h.scratch("layout-absolute");
    fixtures::layout_of(&place, &layer.finish());
    h.run(&format!("pull oci:{}:latest", place.display())).ok();
    untouched(&outside);
}

#[test]
fn bombs_are_refused_within_limits() {
    let h = Hostel::empty();
    let pull = |name: &str, layer: &[u8]| {
        let place = h.scratch(name);
        fixtures::layout_of(&place, layer);
        h.run(&format!("pull oci:{}:latest", place.display()))
    };
    // Ten thousand levels: longer than any path may be.
    let mut layer = Layer::new();
    layer.extended(&[("path", &"d/".repeat(10_000))]).file("x", 0o644, 0, b"");
    pull("deep", &layer.finish()).code(1);
    let mut layer = Layer::new();
    layer.extended(&[("path", &"n".repeat(70_000))]).file("x", 0o644, 0, b"");
    pull("long", &layer.finish()).code(1);
    let mut layer = Layer::new();
    layer.extended(&[("comment", &"c".repeat(32 << 20))]).file("x", 0o644, 0, b"");
    pull("records", &layer.finish()).code(1);
    // A gzip stream of nothing but one byte, 1:1030, is the most that deflate gives: more is no deflate.
    let mut layer = Layer::new();
    layer.file("zeros", 0o644, 0, &vec![0; 64 << 20]);
    let place = h.scratch("zeros");
    fixtures::layout_of(&place, &layer.finish());
    h.run(&format!("pull -q oci:{}:latest", place.display())).ok();
    // A file that claims more than there is.
    let mut header = tar::Header::new_gnu();
    header.set_path("claims").unwrap();
    header.set_size(1 << 60);
    header.set_cksum();
    pull("claims", header.as_bytes()).code(1);
}

#[test]
fn json_bombs_and_digests_that_climb() {
    let h = Hostel::empty();
    let place = h.scratch("layout");
    let index = place.join("index.json");
    fixtures::busybox_layout(&place);
    let good: Value = serde_json::from_slice(&fs::read(&index).unwrap()).unwrap();
    let pull = |text: &[u8]| {
        fs::write(&index, text).unwrap();
        h.run(&format!("pull oci:{}:latest", place.display())).fails(1, &[]);
    };
    pull("[".repeat(1 << 20).as_bytes());
    pull(format!("{}{}", "{\"a\":".repeat(100_000), "1").as_bytes());
    pull(format!("{{\"schemaVersion\":2,\"manifests\":[{}]}}", "{},".repeat(1 << 20)).as_bytes());
    for digest in
        ["sha256:../../../../../etc/passwd", "sha256:..", "../x", "sha256:/etc/passwd", "md5:00", "sha256:"]
    {
        let mut bad = good.clone();
        bad["manifests"][0]["digest"] = json!(digest);
        pull(bad.to_string().as_bytes());
    }
    let mut bad = good;
    bad["manifests"][0]["size"] = json!(-1);
    pull(bad.to_string().as_bytes());
    h.run("images -q").ok().stdout("");
}
