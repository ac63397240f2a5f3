//! Ordinary work in a Debian container, once on each write side: what people do all day must not notice
//! which file system it is done on.

use crate::harness::{Done, Hostel};

/// Runs a script in a fresh Debian container on each write side, and gives each result to `check`.
fn on_each_write_side(script: &str, check: impl Fn(&Done)) {
    let Some(h) = Hostel::debian() else { return };
    for write in ["pure", "hybrid"] {
        let option = format!("write={write}");
        let script = format!("set -e\n{script}");
        let done = h.args(&["run", "--rm", "--storage-opt", &option, "debian", "bash", "-c", &script]);
        assert!(done.exit_code() == 0, "write={write}: {}\n{}", done.stdout, done.stderr);
        check(&done);
    }
}

#[test]
fn apt_installs_and_dpkg_removes_a_package() {
    let script = r#"
        mkdir -p /p/DEBIAN /p/usr/share/demo && cd /
        for i in $(seq 300); do echo $i > /p/usr/share/demo/f$i; done
        printf 'Package: demo\nVersion: 1.0\nArchitecture: all\nMaintainer: T <t@example.org>\nDescription: demo\n' > /p/DEBIAN/control
        printf '#!/bin/sh\necho configured > /var/lib/demo.state\n' > /p/DEBIAN/postinst && chmod 755 /p/DEBIAN/postinst
        dpkg-deb --build /p /demo.deb > /dev/null
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq ./demo.deb > /log 2>&1 || { cat /log; exit 1; }
        cat /var/lib/demo.state; dpkg -L demo | wc -l; dpkg -s demo | grep Status
        dpkg --purge demo > /dev/null; ls /usr/share/demo 2>&1 | grep -c 'No such file'
    "#;
    on_each_write_side(script, |done| {
        done.stdout("configured\n304\nStatus: install ok installed\n1\n");
    });
}

#[test]
fn dpkg_removes_what_the_image_brought() {
    let script = "dpkg --purge --force-depends procps > /dev/null 2>&1; ls /usr/bin/pgrep 2>&1 | grep -c 'No such file'; \
                  dpkg --verify libc6 | grep -vc ' /usr/share/' || true";
    on_each_write_side(script, |done| {
        done.stdout("1\n0\n");
    });
}

#[test]
fn git_keeps_its_promises() {
    let script = r#"
        cd /tmp && git init -q r && cd r && git config user.email t@example.org && git config user.name t
        for i in $(seq 200); do mkdir -p d$((i % 20)); echo $i > d$((i % 20))/f$i; done
        git add -A && git commit -qm one && git mv d1 moved && rm -r d2 && git add -A && git commit -qm two
        git clone -q /tmp/r /tmp/c && cd /tmp/c && git status --porcelain && git fsck --strict && git log --oneline | wc -l
        git checkout -q HEAD~1 && ls | wc -l && git checkout -q - && git gc -q && git status --porcelain
    "#;
    on_each_write_side(script, |done| {
        done.stdout("2\n20\n");
    });
}

#[test]
fn tar_copies_a_tree_exactly() {
    let script = "mkdir /copy && tar -C /usr -cf - --sort=name bin lib/python3 share/perl* | tar -C /copy -xpf - \
                  && diff -r --no-dereference /usr/bin /copy/bin && (cd /usr && find bin | sort | xargs -d '\\n' stat -c '%n %a %u %g %s %Y %F') > /a \
                  && (cd /copy && find bin | sort | xargs -d '\\n' stat -c '%n %a %u %g %s %Y %F') > /b \
                  && grep -v directory /a > /a1 && grep -v directory /b > /b1 && cmp /a1 /b1 && echo same";
    on_each_write_side(script, |done| {
        done.stdout("same\n");
    });
}

#[test]
fn gcc_and_make_build() {
    let script = r#"
        mkdir /b && cd /b
        for i in 1 2 3 4 5; do printf 'int f%d(void) { return %d; }\n' $i $i > f$i.c; done
        printf '#include <stdio.h>\nint f1(void); int f2(void); int f3(void); int f4(void); int f5(void);\nint main(void) { printf("%%d\\n", f1() + f2() + f3() + f4() + f5()); return 0; }\n' > main.c
        printf 'main: main.o f1.o f2.o f3.o f4.o f5.o\n\tgcc -o $@ $^\nclean:\n\trm -f *.o main\n' > Makefile
        make -s -j2 && ./main && make -s && make -s clean && ls
    "#;
    on_each_write_side(script, |done| {
        done.stdout("15\nMakefile\nf1.c\nf2.c\nf3.c\nf4.c\nf5.c\nmain.c\n");
    });
}

#[test]
fn python_compiles_and_keeps_a_database() {
    let script = r#"
        mkdir /py && cp /usr/lib/python3*/json/*.py /py && python3 -m compileall -q /py && ls /py/__pycache__ | wc -l
        python3 - <<'END'
import sqlite3, mmap, os, fcntl
db = sqlite3.connect('/db'); db.execute('pragma journal_mode=wal'); db.execute('create table t (n)')
db.executemany('insert into t values (?)', [(i,) for i in range(1000)]); db.commit()
print(db.execute('select sum(n) from t').fetchone()[0]); db.close()
with open('/m', 'wb+') as f:
    f.truncate(10000); m = mmap.mmap(f.fileno(), 10000); m[5000:5003] = b'abc'; m.flush(); f.seek(5000); print(f.read(3))
with open('/etc/os-release', 'r+b') as f:
    fcntl.flock(f, fcntl.LOCK_EX); f.seek(0, 2); f.write(b'X=1\n'); os.fsync(f.fileno())
print(open('/etc/os-release').read().endswith('X=1\n'))
END
    "#;
    on_each_write_side(script, |done| {
        done.stdout("5\n499500\nb'abc'\nTrue\n");
    });
}

#[test]
fn the_file_system_does_what_posix_says() {
    let script = r#"
        cd /opt/fixture && sha256sum < os-release > /s1 && ln os-release second && echo more >> second && cmp os-release second
        rm -rf /usr/share/doc && mkdir /usr/share/doc && ls /usr/share/doc | wc -l
        mkdir -p /x/a/b && touch /x/a/b/f && mv /x/a /x/c && ls /x/c/b
        mv /usr/share/perl5 /usr/share/perl5-moved && ls -d /usr/share/perl5 2>&1 | grep -c 'No such' && test -e /usr/share/perl5-moved/Debian
        ln -s nowhere /x/l && readlink /x/l && chmod 4755 /x/c/b/f && stat -c %a /x/c/b/f && chown 1000:1000 /x/c/b/f && stat -c '%a %u:%g' /x/c/b/f
        mkfifo /x/p && test -p /x/p && touch -d @1000000000 /x/c/b/f && stat -c %Y /x/c/b/f
        truncate -s 1G /x/sparse && stat -c '%s %b' /x/sparse && printf abc > /x/o && printf d >> /x/o && cat /x/o; echo
        for i in $(seq 1000); do echo > /x/many$i; done; ls /x | grep -c many; rm /x/many*; ls /x | grep -c many || true
    "#;
    on_each_write_side(script, |done| {
        done.stdout("0\nf\n1\nnowhere\n4755\n755 1000:1000\n1000000000\n1073741824 0\nabcd\n1000\n0\n");
    });
}

#[test]
fn a_hard_link_of_the_image_stays_one_file_in_pure_mode() {
    // The kernel's overlay splits such links at copy-up, so this is the pure write side's promise alone.
    let Some(h) = Hostel::debian() else { return };
    let script = "cd /opt/fixture && stat -c %h os-release && echo more >> os-release && cmp os-release /usr/lib/os-release \
                  && rm os-release && stat -c %h /usr/lib/os-release";
    h.args(&["run", "--rm", "--storage-opt", "write=pure", "debian", "sh", "-c", script])
        .ok()
        .stdout("2\n1\n");
}

#[test]
fn a_quota_holds_over_a_restart() {
    let Some(h) = Hostel::new() else { return };
    let script = "df -k / | tail -1 | awk '{print $2}'; dd if=/dev/zero of=/fill bs=64k count=1000 2>&1 | grep -c 'No space'; \
                  rm -f /fill; dd if=/dev/zero of=/kept bs=1k count=1500 2>/dev/null; ls /kept; \
                  for i in 1 2 3 4 5 6 7 8 9 10 11 12; do : > /inode$i || break; done 2>&1 | grep -c 'No space'";
    h.args(&[
        "create",
        "--name",
        "small",
        "--storage-opt",
        "size=2m",
        "--storage-opt",
        "inodes=10",
        "busybox",
        "sh",
        "-c",
        script,
    ])
    .ok();
    h.run("start -a small").stdout("2048\n1\n/kept\n1\n");
    // The second time there is room for what was there before, and little more.
    h.run("start -a small").stdout("2048\n1\n/kept\n1\n");
    h.run("rm small").ok();
    h.run("run --rm --storage-opt size=1g --storage-opt write=hybrid busybox true")
        .fails(125, &["--storage-opt size and inodes need write=pure"]);
}

#[test]
fn layers_of_the_debian_image_hide_as_they_should() {
    on_each_write_side(
        "ls /usr/share/doc; ls /usr/share/common-licenses/BSD 2>&1 | grep -c 'No such'; id -un app",
        |done| {
            done.stdout("only\n1\napp\n");
        },
    );
}

#[test]
fn another_user_can_be_become() {
    on_each_write_side(
        "su app -c 'id -u; touch ~/mine; stat -c %u ~/mine; touch /etc/x 2>&1 | grep -c denied'",
        |done| {
            done.stdout("1000\n1000\n1\n");
        },
    );
    let Some(h) = Hostel::debian() else { return };
    h.run("run --rm debian-app").ok().stdout("uid=1000(app) gid=1000(app) groups=1000(app)\n");
}

#[test]
fn a_database_in_a_volume_outlives_its_container() {
    let Some(h) = Hostel::debian() else { return };
    h.args(&[
        "run",
        "--rm",
        "-v",
        "db:/d",
        "debian",
        "sqlite3",
        "/d/db",
        "create table t (n); insert into t values (42);",
    ])
    .ok();
    h.args(&["run", "--rm", "-v", "db:/d", "debian", "sqlite3", "/d/db", "select n from t;"])
        .ok()
        .stdout("42\n");
    h.run("volume rm db").ok();
}
