//! `run`: what the command sees, and what each flag changes.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::harness::{Hostel, words};

#[test]
fn exit_codes_are_dockers() {
    let Some(h) = Hostel::new() else { return };
    let table = [
        ("true", 0),
        ("false", 1),
        ("sh -c 'exit 255'", 255),
        ("nosuchcommand", 127),
        ("/no/such/path", 127),
        ("/etc/not-executable", 126),
        ("/etc", 126),
    ];
    for (command, code) in table {
        h.run(&format!("run --rm busybox {command}")).code(code);
    }
    h.run("run --rm --init busybox sh -c 'kill -TERM $$'").code(143);
    h.run("run --rm --init busybox sh -c 'kill -KILL $$'").code(137);
    h.run("run --no-such-flag busybox true").fails(125, &["--no-such-flag"]);
}

#[test]
fn stdout_and_stderr_stay_apart() {
    let Some(h) = Hostel::new() else { return };
    h.run("run --rm busybox sh -c 'echo out; echo err >&2'").ok().stdout("out\n").stderr("err\n");
}

#[test]
fn stdin_reaches_the_command_only_with_i() {
    let Some(h) = Hostel::new() else { return };
    h.cmd("run --rm -i busybox cat").stdin("one\ntwo\n").run().ok().stdout("one\ntwo\n");
    h.cmd("run --rm busybox cat").stdin("one\n").run().ok().stdout("");
}

#[test]
fn much_data_passes_both_ways_whole() {
    let Some(h) = Hostel::new() else { return };
    h.cmd("run --rm -i busybox wc -c").stdin(vec![b'x'; 5_000_000]).run().ok().stdout("5000000\n");
    let done = h.run("run --rm busybox sh -c 'yes 0123456789abcde | head -n 300000'");
    assert_eq!(done.ok().stdout.len(), 16 * 300_000);
}

#[test]
fn arguments_arrive_as_they_are() {
    let Some(h) = Hostel::new() else { return };
    let arguments =
        ["run", "--rm", "busybox", "printf", "[%s]", "", "a b", "$HOME", "'", "\"", "\n", "--help", "ü"];
    h.args(&arguments).ok().stdout("[][a b][$HOME]['][\"][\n][--help][ü]");
}

#[test]
fn the_environment_is_the_images_then_the_callers() {
    let Some(h) = Hostel::new() else { return };
    let file = h.scratch("env").join("file");
    fs::write(&file, "# comment\nFILE=from file\n\nPASSED\n").unwrap();
    let line = format!(
        "run --rm --env-file {} -e SET=1 -e EMPTY2= -e CALLER -e UNSET -e FROM_IMAGE=changed env",
        file.display()
    );
    let done = h.cmd(&line).env("CALLER", "c").env("PASSED", "p").run();
    let mut seen: Vec<_> = done.ok().stdout.lines().filter(|line| !line.starts_with("HOSTNAME=")).collect();
    seen.sort_unstable();
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let expected = [
        "CALLER=c",
        "EMPTY2=",
        "EMPTY=",
        "FILE=from file",
        "FROM_IMAGE=changed",
        "HOME=/root",
        "PASSED=p",
        path,
        "SET=1",
    ];
    assert_eq!(seen, expected);
}

#[test]
fn the_hosts_environment_stays_outside() {
    let Some(h) = Hostel::new() else { return };
    h.cmd("run --rm busybox env").env("SECRET_TOKEN", "x").run().ok().lacks("SECRET").lacks("XDG_");
}

#[test]
fn the_working_directory_is_the_flags_or_the_images() {
    let Some(h) = Hostel::new() else { return };
    h.run("run --rm busybox pwd").ok().stdout("/\n");
    h.run("run --rm workdir").ok().stdout("/made/by/engine\n");
    h.run("run --rm -w /tmp workdir").ok().stdout("/tmp\n");
    h.run("run --rm -w /not/there/yet busybox pwd").ok().stdout("/not/there/yet\n");
    h.run("run --rm -w relative busybox pwd").fails(125, &["relative", "absolute"]);
}

#[test]
fn the_user_is_the_flags_or_the_images() {
    let Some(h) = Hostel::new() else { return };
    let id = "sh -c 'echo $(id -u):$(id -g) $(id -G) $HOME'";
    let table = [
        ("busybox", "0:0 0 /root"),
        ("-u 1000 busybox", "1000:1000 1000 2000 /home/app"),
        ("-u app busybox", "1000:1000 1000 2000 /home/app"),
        ("-u app:root busybox", "1000:0 0 /home/app"),
        ("-u 1000:2000 busybox", "1000:2000 2000 /home/app"),
        ("-u 4321 busybox", "4321:0 0 /"),
        ("user", "1000:1000 1000 2000 /home/app"),
        ("numericuser", "1234:4321 4321 /"),
        ("-u root user", "0:0 0 /root"),
    ];
    for (flags, expected) in table {
        h.run(&format!("run --rm {flags} {id}")).ok().stdout(&format!("{expected}\n"));
    }
    h.run("run --rm -u nobodyhere busybox true").fails(125, &["nobodyhere"]);
    h.run("run --rm -u app:nogroup busybox true").fails(125, &["nogroup"]);
}

#[test]
fn entrypoint_and_command_combine_as_in_docker() {
    let Some(h) = Hostel::new() else { return };
    h.run("run --rm entrypoint").ok().stdout("entry cmd\n");
    h.run("run --rm entrypoint other words").ok().stdout("entry other words\n");
    h.run("run --rm --entrypoint /bin/echo entrypoint").ok().stdout("\n");
    h.run("run --rm --entrypoint /bin/echo entrypoint mine").ok().stdout("mine\n");
    h.run("run --rm --entrypoint '' entrypoint echo none").ok().stdout("none\n");
    h.run("run --rm nocmd").fails(125, &["command"]);
}

#[test]
fn host_name_and_hosts_file() {
    let Some(h) = Hostel::new() else { return };
    h.run("run --rm --hostname box1 busybox sh -c 'hostname; cat /etc/hostname; echo $HOSTNAME'")
        .ok()
        .stdout("box1\nbox1\nbox1\n");
    h.run("run --rm --hostname box1 --add-host db:10.1.2.3 --add-host six:fd00::1 busybox cat /etc/hosts")
        .ok()
        .has("127.0.0.1\tlocalhost")
        .has("10.1.2.3\tdb\n")
        .has("fd00::1\tsix\n")
        .has("\tbox1\n");
    let done = h.run("run --rm --cidfile id busybox hostname");
    let id = fs::read_to_string(h.root().parent().unwrap().join("id")).unwrap();
    done.ok().stdout(&format!("{}\n", &id[..12]));
}

#[test]
fn name_servers_can_be_given() {
    let Some(h) = Hostel::new() else { return };
    h.run("run --rm --dns 192.0.2.1 --dns 192.0.2.2 busybox grep nameserver /etc/resolv.conf")
        .ok()
        .stdout("nameserver 192.0.2.1\nnameserver 192.0.2.2\n");
}

#[test]
fn bind_mounts() {
    let Some(h) = Hostel::new() else { return };
    let dir = h.scratch("bind");
    fs::write(dir.join("in"), "in\n").unwrap();
    let d = dir.display();
    h.run(&format!("run --rm -v {d}:/b busybox sh -c 'cat /b/in; echo out > /b/out'")).ok().stdout("in\n");
    assert_eq!(fs::read_to_string(dir.join("out")).unwrap(), "out\n");
    assert_eq!(fs::metadata(dir.join("out")).unwrap().uid(), nix::unistd::getuid().as_raw());
    let denied = h.run(&format!("run --rm -v {d}:/b:ro busybox sh -c 'cat /b/in; touch /b/no'"));
    denied.code(1).stdout("in\n").stderr_has("Read-only file system");
    h.run(&format!("run --rm -v {d}/in:/etc/one busybox cat /etc/one")).ok().stdout("in\n");
    h.run(&format!("run --rm --mount type=bind,source={d},target=/m,readonly busybox touch /m/no"))
        .code(1)
        .stderr_has("Read-only file system");
    h.run(&format!("run --rm --mount type=bind,src={d},dst=/m busybox ls /m")).ok().stdout("in\nout\n");
}

#[test]
fn a_bind_over_a_link_of_the_image_stays_inside() {
    let Some(h) = Hostel::new() else { return };
    let dir = h.scratch("bind");
    fs::write(dir.join("f"), "f\n").unwrap();
    // The target leads through a symlink: it is resolved in the container's root, never on the host.
    let line = format!("run --rm -v {}:/link/here layers ls /link/here", dir.display());
    h.run(&line).ok().stdout("f\n");
    assert!(!std::path::Path::new("/link").exists());
}

#[test]
fn tmpfs_mounts() {
    let Some(h) = Hostel::new() else { return };
    h.run("run --rm --tmpfs /t:size=1m,mode=700 busybox sh -c 'stat -c %a /t; grep \" /t \" /proc/mounts'")
        .ok()
        .has("700\n")
        .has("tmpfs /t tmpfs")
        .has("noexec")
        .has("size=1024k");
    h.run("run --rm --tmpfs /t:size=1m busybox dd if=/dev/zero of=/t/f bs=64k count=32")
        .code(1)
        .stderr_has("No space left");
    h.run(
        "run --rm --mount type=tmpfs,destination=/t,tmpfs-size=1m busybox grep -c ' /t tmpfs' /proc/mounts",
    )
    .ok()
    .stdout("1\n");
}

#[test]
fn a_read_only_root() {
    let Some(h) = Hostel::new() else { return };
    h.run("run --rm --read-only busybox touch /etc/x").code(1).stderr_has("Read-only file system");
    h.run("run --rm --read-only --tmpfs /t -v vol:/v busybox sh -c 'touch /t/x /v/x /dev/shm/x && echo ok'")
        .ok()
        .stdout("ok\n");
    h.run("volume rm vol").ok();
}

#[test]
fn named_and_anonymous_volumes() {
    let Some(h) = Hostel::new() else { return };
    h.run("run --rm -v data:/d busybox sh -c 'echo kept > /d/f'").ok();
    h.run("run --rm -v data:/d:ro busybox cat /d/f").ok().stdout("kept\n");
    h.run("run --rm -v data:/d:ro busybox touch /d/g").code(1).stderr_has("Read-only file system");
    h.run("run --rm --mount type=volume,src=data,dst=/e busybox cat /e/f").ok().stdout("kept\n");
    // A new volume begins with what the image has at that place, its owners too.
    h.run("run --rm -v fresh:/data busybox sh -c 'cat /data/from-image; stat -c %u /data/from-image'")
        .ok()
        .stdout("of the image\n1000\n");
    h.run("run --rm volume cat /data/from-image").ok().stdout("of the image\n");
    h.run("run --rm -v /anon busybox sh -c 'touch /anon/f && ls /anon'").ok().stdout("f\n");
    // Anonymous volumes go with their container; the command does not wait for that.
    crate::harness::eventually("only named volumes are left", || {
        h.run("volume ls -q").ok().stdout == "data\nfresh\n"
    });
    h.run("volume rm data fresh").ok().stdout("data\nfresh\n");
}

#[test]
fn the_id_file() {
    let Some(h) = Hostel::new() else { return };
    let file = h.scratch("cid").join("id");
    let f = file.display();
    let id = h.detached(&format!("--cidfile {f} busybox true"));
    assert_eq!(fs::read_to_string(&file).unwrap(), id);
    h.run(&format!("run --rm --cidfile {f} busybox true")).fails(125, &[&f.to_string()]);
}

#[test]
fn limits() {
    let Some(h) = Hostel::new() else { return };
    h.run("run --rm --ulimit nofile=64:128 --ulimit core=0 busybox sh -c 'ulimit -n; ulimit -Hn; ulimit -c'")
        .ok()
        .stdout("64\n128\n0\n");
    h.run("run --rm --ulimit nosuch=1 busybox true").fails(125, &["nosuch"]);
}

#[test]
fn an_init_reaps_orphans() {
    let Some(h) = Hostel::new() else { return };
    let script = "sh -c '(sleep 0.05 &) ; sleep 0.3; ps -o pid,stat | grep -c Z'";
    h.run(&format!("run --rm --init busybox {script}")).code(1).stdout("0\n");
    h.run("run --rm --init busybox sh -c 'echo $$'").ok().lacks("1\n");
}

#[test]
fn labels_and_names() {
    let Some(h) = Hostel::new() else { return };
    h.detached("--name one --label a=b --label bare label true");
    h.run("inspect -f '{{index .Config.Labels \"a\"}}' one").ok().stdout("b\n");
    h.run("inspect -f '{{index .Config.Labels \"org.example.kind\"}}' one").ok().stdout("test\n");
    h.run("ps -a --filter label=a=b --format '{{.Names}}'").ok().stdout("one\n");
    h.run("ps -a --filter label=a=c --format '{{.Names}}'").ok().stdout("");
    h.run("run --name one busybox true").fails(125, &["one", "in use"]);
    h.run("run --name 'bad/name' busybox true").fails(125, &["bad/name"]);
}

#[test]
fn generated_names_are_two_words() {
    let Some(h) = Hostel::new() else { return };
    h.detached("busybox true");
    let name = h.run("ps -a --format '{{.Names}}'").ok().out();
    assert!(name.split('_').count() == 2, "{name}");
}

#[test]
fn removing_on_exit_works_in_the_background_too() {
    let Some(h) = Hostel::new() else { return };
    h.detached("--rm --name gone busybox sleep 0.2");
    crate::harness::eventually("the container is removed", || h.run("ps -a -q").ok().stdout.is_empty());
}

#[test]
fn a_terminal_without_input() {
    let Some(h) = Hostel::new() else { return };
    h.run("run --rm -t busybox sh -c 'tty; echo $TERM'").ok().stdout("/dev/pts/0\r\nxterm\r\n");
}

#[test]
fn a_closed_pipe_ends_quietly() {
    let Some(h) = Hostel::new() else { return };
    let done = h.program("sh", &["-c", "\"$HOSTEL\" run --rm busybox yes | head -n 1"]).run();
    done.ok().stdout("y\n").stderr("");
    h.detached("--name lines busybox sh -c 'yes | head -n 100000'");
    h.run("wait lines").ok().stdout("0\n");
    let done = h.program("sh", &["-c", "\"$HOSTEL\" logs lines | head -n 1; \"$HOSTEL\" ps -a | true"]).run();
    done.ok().stdout("y\n").stderr("");
}

#[test]
fn every_stored_name_of_an_image_runs() {
    let Some(h) = Hostel::new() else { return };
    for name in
        ["busybox", "busybox:latest", "library/busybox", "docker.io/library/busybox:latest", "busybox:1"]
    {
        let arguments = [words("run --rm"), vec![name.to_owned()], words("echo hi")].concat();
        h.args(&arguments).ok().stdout("hi\n");
    }
}
