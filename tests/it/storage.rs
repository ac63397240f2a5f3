//! Volumes with options, as archives, in part; other images as mounts; devices by CDI names.

use std::fs;

use crate::harness::{Hostel, has_subordinate_ids};

#[test]
fn a_volume_goes_out_and_comes_in_as_an_archive() {
    let Some(h) = Hostel::new() else { return };
    h.run("run --rm -v from:/d busybox sh -c 'mkdir -p /d/a && echo one > /d/a/f && ln -s a/f /d/l && chmod 600 /d/a/f && chmod 700 /d/a'")
        .ok();
    if has_subordinate_ids() {
        h.run("run --rm -v from:/d busybox chown -R 12:34 /d/a").ok();
    }
    let place = h.scratch("out");
    let (plain, packed) = (place.join("v.tar"), place.join("v.tar.gz"));
    h.run(&format!("volume export -o {} from", plain.display())).ok().stdout("");
    let archive = fs::read(&plain).unwrap();
    assert_eq!(h.run("volume export from").ok().exit_code(), 0);
    fs::write(&packed, crate::fixtures::gzip(&archive)).unwrap();
    let look = "sh -c 'cd /d && find . | sort | xargs stat -c \"%n %a %u:%g\" && cat l'";
    let wanted = h.run(&format!("run --rm -v from:/d busybox {look}")).ok().out();
    for (name, line, stdin) in [
        ("to1", format!("volume import to1 {}", plain.display()), Vec::new()),
        ("to2", format!("volume import to2 {}", packed.display()), Vec::new()),
        ("to3", "volume import to3 -".to_owned(), archive.clone()),
    ] {
        h.run(&format!("volume create {name}")).ok();
        h.run(&format!("run --rm -v {name}:/d busybox sh -c 'chmod 755 /d'")).ok();
        h.cmd(&line).stdin(stdin).run().ok().stdout("");
        h.run(&format!("run --rm -v {name}:/d busybox {look}")).ok().stdout(&format!("{wanted}\n"));
    }
    // Nothing leads out of the volume.
    let hostile = {
        let mut layer = crate::fixtures::Layer::new();
        layer.hostile_file("../../escaped", b"x");
        layer.finish()
    };
    h.cmd("volume import to1 -").stdin(hostile).run().fails(1, &[]);
    assert!(!h.root().join("volumes/escaped").exists() && !h.root().join("escaped").exists());
    h.run("volume export nosuch").fails(1, &["no such volume"]);
    h.run("volume import nosuch").fails(1, &["no such volume"]);
    h.cmd("volume import to1 -")
        .stdin("no archive at all, but long enough for a block".repeat(20))
        .run()
        .fails(1, &[]);
    h.run("volume rm from to1 to2 to3").ok();
}

#[test]
fn options_of_a_volume_are_the_local_drivers() {
    let Some(h) = Hostel::new() else { return };
    let dir = h.scratch("shown");
    fs::write(dir.join("f"), "of the machine\n").unwrap();
    h.run(&format!("volume create --opt type=none --opt o=bind --opt device={} bound", dir.display())).ok();
    h.run("run --rm -v bound:/d busybox cat /d/f").ok().stdout("of the machine\n");
    h.run("run --rm -v bound:/d busybox sh -c 'echo new > /d/g'").ok();
    assert_eq!(fs::read_to_string(dir.join("g")).unwrap(), "new\n");
    h.run(&format!("volume create --opt type=none --opt o=bind,ro --opt device={} locked", dir.display()))
        .ok();
    h.run("run --rm -v locked:/d busybox touch /d/x").code(1).stderr_has("Read-only file system");
    h.run("volume inspect -f '{{.Options.type}} {{.Options.o}}' locked").ok().stdout("none bind,ro\n");
    h.run("volume create -o type=tmpfs -o device=tmpfs -o o=size=1m,mode=700 mem").ok();
    h.run("run --rm -v mem:/d busybox sh -c 'stat -c %a /d; stat -f -c %b:%S /d'")
        .ok()
        .stdout("700\n256:4096\n");
    h.run("volume export mem").fails(1, &["is memory"]);
    h.run("volume rm bound locked mem").ok();
    assert!(dir.join("f").exists(), "what a volume only points to stays");
    for (options, reason) in [
        ("-o type=nfs -o device=:/x -o o=addr=192.0.2.1", "only root may mount"),
        ("-o type=ext4 -o device=/dev/sda1", "only root may mount"),
        ("-o size=10m", "quota size requested but no quota support"),
        ("-o nosuch=1", "invalid option: \"nosuch\""),
        ("-o o=bind", "missing required option: \"type\""),
        ("-o type=none", "missing required option: \"device\""),
        ("-o type=none -o o=bind -o device=relative", "absolute path"),
        ("-o type=tmpfs -o device=tmpfs -o o=nosuch=1", "invalid option of a tmpfs"),
        ("--scope multi", "Swarm"),
    ] {
        h.run(&format!("volume create {options} refused")).stderr_has(reason);
    }
    h.run("volume ls -q").ok().stdout("");
    h.run("run --rm --mount type=volume,src=made,dst=/d,volume-label=a=b,volume-opt=type=tmpfs,volume-opt=device=tmpfs busybox grep -c ' /d tmpfs' /proc/mounts")
        .ok()
        .stdout("1\n");
    h.run("volume inspect -f '{{.Labels.a}} {{.Options.type}}' made").ok().stdout("b tmpfs\n");
    h.run("volume rm made").ok();
    h.run("volume create --opt type=none --opt o=bind --opt device=/nosuch/dir gone").ok();
    h.run("run --rm -v gone:/d busybox true").fails(125, &["failed to mount local volume", "/nosuch/dir"]);
    h.run("volume rm gone").ok();
}

#[test]
fn a_part_of_a_volume() {
    let Some(h) = Hostel::new() else { return };
    h.run("run --rm -v parts:/d busybox sh -c 'mkdir -p /d/a/b && echo inside > /d/a/b/f && ln -s /etc /d/link && ln -s ../../../../etc /d/up'")
        .ok();
    h.run("run --rm --mount src=parts,dst=/m,volume-subpath=a/b busybox ls /m").ok().stdout("f\n");
    h.run("run --rm --mount src=parts,dst=/m/f,volume-subpath=a/b/f busybox cat /m/f")
        .ok()
        .stdout("inside\n");
    for missing in ["nosuch", "link", "up"] {
        // A link of a container's making leads nowhere but into the volume.
        h.run(&format!("run --rm --mount src=parts,dst=/m,volume-subpath={missing} busybox ls /m"))
            .fails(125, &[missing]);
    }
    h.run("volume rm parts").ok();
}

#[test]
fn another_image_is_mounted() {
    let Some(h) = Hostel::new() else { return };
    for write in ["auto", "pure"] {
        let run = format!("run --rm --storage-opt write={write}");
        h.run(&format!("{run} --mount type=image,source=layers,target=/img busybox cat /img/l/replaced"))
            .ok()
            .stdout("new\n");
        h.run(&format!(
            "{run} --mount type=image,src=layers,dst=/img,image-subpath=l busybox cat /img/replaced"
        ))
        .ok()
        .stdout("new\n");
        h.run(&format!("{run} --mount type=image,src=layers,dst=/img --mount type=image,src=busybox,dst=/other busybox sh -c 'cat /img/l/replaced; test -x /other/bin/busybox && echo both; ls /bin/busybox'"))
            .ok()
            .stdout("new\nboth\n/bin/busybox\n");
        h.run(&format!("{run} --mount type=image,src=layers,dst=/img busybox touch /img/x"))
            .code(1)
            .stderr_has("Read-only file system");
    }
    h.run("run --rm --mount type=image,src=layers,dst=/img,image-subpath=nosuch busybox true")
        .fails(125, &["nosuch"]);
    h.run("run --rm --mount type=image,src=nosuchimage,dst=/img --pull never busybox true")
        .fails(125, &["nosuchimage"]);
    h.run("run --rm --mount type=image,src=host:/,dst=/img busybox true").fails(125, &["is no image"]);
    h.run("run --rm --mount type=image,dst=/img busybox true").fails(125, &["Source must not be empty"]);
    // It stays for as long as the container may want it again.
    h.run("tag layers only").ok();
    h.run("create --name user --mount type=image,src=only,dst=/img busybox cat /img/l/replaced").ok();
    h.run(
        "inspect -f '{{(index .Mounts 0).Type}} {{(index .Mounts 0).Source}} {{(index .Mounts 0).RW}}' user",
    )
    .ok()
    .stdout("image only false\n");
    h.run("rmi only").ok();
    h.run("rmi layers").fails(1, &["is using"]);
    h.run("rmi -f layers").ok();
    h.run("start -a user").ok().stdout("new\n");
    h.run("start -a user").ok().stdout("new\n");
    h.run("rm user").ok();
}

#[test]
fn devices_by_their_cdi_names() {
    let Some(h) = Hostel::new() else { return };
    let (dir, shown) = (h.scratch("cdi"), h.scratch("shown"));
    fs::write(shown.join("lib"), "a library\n").unwrap();
    let yaml = format!(
        "cdiVersion: 0.6.0\nkind: nvidia.com/gpu\ncontainerEdits:\n  env: [VISIBLE=void]\n  mounts:\n  - hostPath: {}/lib\n    containerPath: /usr/lib/gpu.so\n    options: [ro, nosuid, nodev, rbind]\ndevices:\n- name: \"0\"\n  containerEdits:\n    deviceNodes:\n    - path: /dev/gpu0\n      hostPath: /dev/zero\n- name: all\n  containerEdits:\n    deviceNodes:\n    - path: /dev/gpu0\n      hostPath: /dev/zero\n",
        shown.display()
    );
    fs::write(dir.join("gpu.yaml"), yaml).unwrap();
    let json = r#"{"cdiVersion": "0.5.0", "kind": "example.com/dev", "devices": [
        {"name": "plain", "containerEdits": {"deviceNodes": [{"path": "/dev/full"}], "env": ["PLAIN=1"]}},
        {"name": "hooked", "containerEdits": {"hooks": [{"hookName": "createContainer", "path": "/usr/bin/hook"}]}}]}"#;
    fs::write(dir.join("dev.json"), json).unwrap();
    fs::write(dir.join("broken.json"), "{").unwrap();
    let dirs = dir.to_string_lossy().into_owned();
    let run = |line: &str| h.cmd(&format!("run --rm {line}")).env("CDI_SPEC_DIRS", &dirs).run();
    let look = "busybox sh -c 'echo $VISIBLE; cat /usr/lib/gpu.so; head -c 2 /dev/gpu0 | od -An -tx1'";
    for flags in ["--device nvidia.com/gpu=0", "--gpus all", "--gpus 1", "--gpus device=0"] {
        run(&format!("{flags} {look}")).ok().stdout("void\na library\n 00 00\n");
    }
    run("--device nvidia.com/gpu=0 -e VISIBLE=mine busybox sh -c 'echo $VISIBLE'").ok().stdout("mine\n");
    run("--device example.com/dev=plain busybox sh -c 'echo $PLAIN; test -c /dev/full && echo there'")
        .ok()
        .stdout("1\nthere\n");
    run("--device example.com/dev=hooked busybox true")
        .fails(125, &["createContainer hook /usr/bin/hook", "no program of the machine is run"]);
    run("--device example.com/dev=nosuch busybox true")
        .fails(125, &["unresolvable CDI device example.com/dev=nosuch", "broken.json cannot be read"]);
    run("--gpus 2 busybox true").fails(125, &["nvidia.com/gpu has 1"]);
    h.cmd("run --rm --gpus all busybox true")
        .env("CDI_SPEC_DIRS", &shown.to_string_lossy())
        .run()
        .fails(125, &["no CDI specification of this machine has GPUs"]);
}

#[test]
fn a_log_has_a_tag() {
    let Some(h) = Hostel::new() else { return };
    h.run("run --name tagged --log-opt tag={{.Name}}/{{.ImageName}} busybox echo hi").ok();
    h.run("logs --details tagged").ok().stdout("tag=tagged/busybox hi\n");
    h.run("rm tagged").ok();
    h.run("run --rm --log-opt tag={{.Nope}} busybox true").fails(125, &["invalid log opt tag"]);
    h.run("run --rm --log-driver journald --log-opt max-size=1m busybox true")
        .fails(125, &["unknown log opt 'max-size' for journald log driver"]);
    if !std::path::Path::new("/run/systemd/journal/socket").exists() {
        h.run("run --rm --log-driver journald busybox true")
            .fails(125, &["log driver journald", "no journal on this machine"]);
        h.run("ps -aq").ok().stdout("");
    }
}
