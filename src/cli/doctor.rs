//! Check what this machine gives containers, and how to mend what is missing

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::MsFlags;
use nix::unistd::{AccessFlags, Uid, access};
use serde::Serialize;
use serde_json::json;

use super::{Context, Exit, Outcome};
use crate::sandbox::idmap::{Facts, Method, Wanted, choose, login_name};
use crate::supervisor::cgroup;
use crate::supervisor::forbidden::{self, Forbids};
use crate::sys;

/// Check what this machine gives containers, and how to mend what is missing
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Format output: 'json'
    #[arg(long, default_value = "", hide_default_value = true)]
    format: String,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    /// As it should be.
    Ok,
    /// Works, with less.
    Note,
    /// No container runs, or not with its defaults.
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
struct Finding {
    subject: &'static str,
    verdict: Verdict,
    /// What was found, and what it costs.
    text: String,
    /// The line that mends it.
    mend: Option<String>,
}

/// Prints what was found; ends with 1 when containers cannot run as they should.
///
/// # Errors
/// A format that is none.
pub fn run(ctx: &Context, args: &Args) -> Outcome {
    let findings = [
        user_namespaces(),
        id_maps(),
        fuse(),
        tun(),
        runtime_dir(),
        store(&ctx.root),
        space(&ctx.root),
        limits(),
        linger(),
        ports(),
        ping(),
        landlock(),
    ];
    if args.format == "json" {
        println!("{}", json!(findings));
    } else {
        for finding in &findings {
            print!("{}", line(finding));
        }
    }
    let failed = findings.iter().any(|finding| finding.verdict == Verdict::Fail);
    Ok(if failed { Exit::Failure } else { Exit::Success })
}

fn line(finding: &Finding) -> String {
    let word = match finding.verdict {
        Verdict::Ok => "ok",
        Verdict::Note => "note",
        Verdict::Fail => "FAIL",
    };
    let mut text = format!("{word:<5} {:<16} {}\n", finding.subject, finding.text);
    if let Some(mend) = &finding.mend {
        text.push_str(&format!("{:<23}mend: {mend}\n", ""));
    }
    text
}

fn ok(subject: &'static str, text: impl Into<String>) -> Finding {
    Finding { subject, verdict: Verdict::Ok, text: text.into(), mend: None }
}

fn note(subject: &'static str, text: impl Into<String>, mend: impl Into<String>) -> Finding {
    Finding { subject, verdict: Verdict::Note, text: text.into(), mend: Some(mend.into()) }
}

fn fail(subject: &'static str, text: impl Into<String>, mend: impl Into<String>) -> Finding {
    Finding { subject, verdict: Verdict::Fail, text: text.into(), mend: Some(mend.into()) }
}

fn setting(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn user() -> String {
    let uid = Uid::effective();
    login_name(uid.as_raw()).unwrap_or_else(|| uid.to_string())
}

/// Makes one, in a child that ends at once, and uses a right in it: no setting tells as surely.
fn user_namespaces() -> Finding {
    const SUBJECT: &str = "user namespaces";
    const KINDS: i32 = libc::CLONE_NEWUSER | libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWNET;
    let forbidden = |errno, what: &str| {
        fail(SUBJECT, format!("{what}: no container runs"), Forbids::find(errno, forbidden::setting).mend())
    };
    match sys::process::clone(KINDS as u64, false) {
        Ok(sys::process::Fork::Child) => {
            let (none, private) = (None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE);
            let used = nix::mount::mount(none, "/", none, private, none);
            sys::process::exit_now(i32::from(used.is_err()))
        }
        Ok(sys::process::Fork::Parent(child)) => match sys::process::wait_for(child.pid) {
            Ok(sys::process::Ended::Exited(0)) => ok(SUBJECT, "can be made"),
            _ => forbidden(Errno::EPERM, "can be made, but give no rights"),
        },
        Err(errno) => forbidden(errno, &format!("cannot be made ({})", errno.desc())),
    }
}

fn id_maps() -> Finding {
    const SUBJECT: &str = "user ids";
    let maps = choose(&Facts::gather(), Wanted::Usual);
    match &maps.method {
        Method::Helpers { .. } | Method::Direct => {
            ok(SUBJECT, format!("{} in a container", maps.uid_count()))
        }
        Method::SingleId { reason } => {
            let user = user();
            let mend = if access("/usr/bin/newuidmap", AccessFlags::X_OK).is_err() {
                format!(
                    "sudo apt-get install uidmap && sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}"
                )
            } else {
                format!("sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}")
            };
            note(SUBJECT, format!("one: `su` and `chown` to others are refused inside ({reason})"), mend)
        }
    }
}

fn device(subject: &'static str, path: &str, module: &str, without: &str) -> Finding {
    match fs::OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => ok(subject, format!("{path} is usable")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            note(subject, format!("{path} is missing: {without}"), format!("sudo modprobe {module}"))
        }
        Err(error) => note(subject, format!("{path}: {error}: {without}"), format!("sudo chmod 0666 {path}")),
    }
}

fn fuse() -> Finding {
    const WITHOUT: &str = "images are written out before their first use; host:/ and rootfs: do not work";
    device("file system", "/dev/fuse", "fuse", WITHOUT)
}

fn tun() -> Finding {
    device("network", "/dev/net/tun", "tun", "a veth pair with a packet socket takes its place")
}

fn runtime_dir() -> Finding {
    const SUBJECT: &str = "sockets";
    match crate::supervisor::socket_dir() {
        Err(error) => fail(SUBJECT, error.to_string(), "set XDG_RUNTIME_DIR to a directory of your own"),
        Ok(dir) if dir.starts_with("/tmp") => note(
            SUBJECT,
            format!("in {}, since XDG_RUNTIME_DIR is not set", dir.display()),
            "log in through systemd (`machinectl shell`, ssh), or set XDG_RUNTIME_DIR to a directory of your own",
        ),
        Ok(dir) => ok(SUBJECT, format!("in {}", dir.display())),
    }
}

/// The nearest directory that is there: the store may not have been made yet.
fn nearest(root: &Path) -> &Path {
    root.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"))
}

fn store(root: &Path) -> Finding {
    const SUBJECT: &str = "store";
    let dir = nearest(root);
    let kind = nix::sys::statfs::statfs(dir).map_or(0, |stat| stat.filesystem_type().0);
    let owner = fs::metadata(dir).map_or(u32::MAX, |meta| meta.uid());
    if access(dir, AccessFlags::W_OK).is_err() {
        return fail(
            SUBJECT,
            format!("{} is not writable for you (its owner is user {owner})", dir.display()),
            "name another directory with --root or HOSTEL_ROOT",
        );
    }
    place(SUBJECT, root, kind)
}

/// What a writable store's filesystem means, by its magic number (statfs(2)).
fn place(subject: &'static str, root: &Path, kind: i64) -> Finding {
    const NFS: i64 = 0x6969;
    const SMB2: i64 = 0xfe53_4d42;
    const TMPFS: i64 = 0x0102_1994;
    match kind {
        NFS | SMB2 => note(
            subject,
            format!("{} is on a network file system: slow, and for one machine at a time", root.display()),
            "name a local directory with --root or HOSTEL_ROOT",
        ),
        TMPFS => note(
            subject,
            format!("{} is in memory: images and containers are gone after a reboot", root.display()),
            "name a directory on a disk with --root or HOSTEL_ROOT",
        ),
        _ => ok(subject, format!("{} is local and writable", root.display())),
    }
}

fn space(root: &Path) -> Finding {
    const SUBJECT: &str = "space";
    const LOW_BYTES: u64 = 1 << 30;
    const LOW_FILES: u64 = 10_000;
    let Ok(stat) = nix::sys::statvfs::statvfs(nearest(root)) else {
        return note(SUBJECT, "cannot be told", "see `df`");
    };
    let bytes = stat.blocks_available() * stat.fragment_size();
    let free = super::format::human_size(bytes);
    // Some file systems have no limit of files and say 0.
    let few_files = stat.files() > 0 && stat.files_available() < LOW_FILES;
    if bytes < LOW_BYTES || few_files {
        let text = format!("{free} and {} files are free", stat.files_available());
        return note(SUBJECT, text, "hostel container prune; hostel image prune -a; hostel volume prune");
    }
    ok(SUBJECT, format!("{free} free"))
}

fn limits() -> Finding {
    const SUBJECT: &str = "limits";
    const WANTED: [&str; 5] = ["cpu", "cpuset", "io", "memory", "pids"];
    match cgroup::obtainable() {
        Some((found, source)) if found.len() >= 3 => {
            let by = match source {
                cgroup::Source::Delegated => "",
                cgroup::Source::Systemd => ", in a scope of systemd's (linger, or they end when you log out)",
            };
            let missing: Vec<_> =
                WANTED.into_iter().filter(|name| !found.iter().any(|known| known == name)).collect();
            let text = format!("held by the kernel: {}{by}", found.join(", "));
            if missing.is_empty() {
                return ok(SUBJECT, text);
            }
            let uid = Uid::effective();
            note(
                SUBJECT,
                format!("{text}; not: {}", missing.join(", ")),
                format!(
                    "sudo mkdir -p /etc/systemd/system/user@.service.d && printf '[Service]\\nDelegate=yes\\n' | sudo tee /etc/systemd/system/user@.service.d/delegate.conf && sudo systemctl daemon-reload && sudo systemctl restart user@{uid}"
                ),
            )
        }
        Some((found, _)) => note(
            SUBJECT,
            format!("a control group is delegated, but only with: {}", found.join(", ")),
            "the machine must hand on the controllers cpu, cpuset, io, memory and pids (systemd: Delegate=yes)",
        ),
        None => note(
            SUBJECT,
            "none: no control group is delegated; -m, --cpus and --pids-limit are discarded with a warning",
            "systemd-run --user --scope --property=Delegate=yes hostel run ...",
        ),
    }
}

fn linger() -> Finding {
    const SUBJECT: &str = "log-out";
    let user = user();
    if !Path::new("/run/systemd/system").exists() {
        return ok(SUBJECT, "containers outlive it: there is no systemd to end them");
    }
    if Path::new("/var/lib/systemd/linger").join(&user).exists() {
        return ok(SUBJECT, "containers outlive it: you linger");
    }
    note(
        SUBJECT,
        "systemd may end your containers when you log out (KillUserProcesses=)",
        format!("loginctl enable-linger {user}"),
    )
}

fn ports() -> Finding {
    const SUBJECT: &str = "ports";
    let first = setting("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap_or_else(|| "1024".into());
    if first == "0" {
        return ok(SUBJECT, "all can be published");
    }
    note(
        SUBJECT,
        format!("those below {first} cannot be published"),
        "sudo sysctl -w net.ipv4.ip_unprivileged_port_start=80",
    )
}

fn ping() -> Finding {
    const SUBJECT: &str = "ping";
    let range = setting("/proc/sys/net/ipv4/ping_group_range").unwrap_or_default();
    let gid = nix::unistd::getegid().as_raw();
    let mut ends = range.split_whitespace().filter_map(|text| text.parse::<u32>().ok());
    match (ends.next(), ends.next()) {
        (Some(first), Some(last)) if first <= gid && gid <= last => ok(SUBJECT, "containers can ping others"),
        _ => note(
            SUBJECT,
            "containers cannot ping beyond this machine",
            "sudo sysctl -w net.ipv4.ping_group_range='0 2147483647'",
        ),
    }
}

fn landlock() -> Finding {
    const SUBJECT: &str = "landlock";
    if sys::process::has_landlock() {
        ok(SUBJECT, "confines each container's server to its own files")
    } else {
        note(
            SUBJECT,
            "is off: the other fences around each container's server stand",
            "boot with lsm=landlock,...",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_a_line_and_its_mending_another() {
        assert_eq!(
            line(&ok("ports", "all can be published")),
            "ok    ports            all can be published\n"
        );
        assert_eq!(
            line(&fail("network", "no", "sudo modprobe tun")),
            "FAIL  network          no\n                       mend: sudo modprobe tun\n"
        );
    }

    #[test]
    fn a_store_is_told_by_its_filesystem() {
        let said = |kind| line(&place("store", Path::new("/s"), kind));
        assert_eq!(said(0xef53), "ok    store            /s is local and writable\n");
        assert!(said(0x6969).starts_with("note  store            /s is on a network file system"));
        let in_memory = said(0x0102_1994);
        assert!(
            in_memory.contains("gone after a reboot")
                && in_memory.contains("mend: name a directory on a disk")
        );
    }
}
