//! Starts the processes of a test and puts them together.

use std::fs::{self, File};
use std::io::{BufReader, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::Command;

use fuse_overlay::index::{MergedIndex, merge};
use fuse_overlay::mount::{self, MountError, MountOptions, OverlayMount};
use fuse_overlay::pack::{Limits, index_tar};
use fuse_overlay::serve::{
    self, DirectoryLower, IdRange, Ids, Mode, Options, PathRule, Quota, ServeError, Server,
};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
    socketpair,
};

/// Exit status of a scenario that cannot run on this machine.
const SKIPPED: i32 = 77;

#[derive(Clone)]
pub(crate) enum Lower {
    Layers(Vec<PathBuf>),
    Directory { root: PathBuf, hide: Vec<String>, expose: Vec<String> },
}

#[derive(Clone, PartialEq)]
pub(crate) enum Write {
    No,
    Pure(PathBuf),
    Volatile(PathBuf),
    Limited { upper: PathBuf, quota: Quota },
    Hybrid(PathBuf),
}

pub(crate) struct Mount {
    pub(crate) lower: Lower,
    pub(crate) write: Write,
    /// A directory for mount points and reference trees.
    pub(crate) place: PathBuf,
}

impl Mount {
    /// Runs a scenario on this mount; false where the machine does not allow it.
    pub(crate) fn run(&self, scenario: &str) -> bool {
        self.run_with_fault(scenario, "")
    }

    /// Runs a scenario that arms a fault point, at which its server is killed.
    pub(crate) fn run_with_fault(&self, scenario: &str, fault: &str) -> bool {
        if let Some(reason) = closed() {
            eprintln!("SKIPPED {scenario}: {reason}");
            return false;
        }
        let (lower, hide, expose) = match &self.lower {
            Lower::Layers(layers) => (join(layers), String::new(), String::new()),
            Lower::Directory { root, hide, expose } => {
                (root.display().to_string(), hide.join(":"), expose.join(":"))
            }
        };
        let (kind, upper) = match &self.write {
            Write::No => ("no", Path::new("")),
            Write::Pure(upper) => ("pure", upper.as_path()),
            Write::Volatile(upper) => ("volatile", upper.as_path()),
            Write::Limited { upper, .. } => ("limited", upper.as_path()),
            Write::Hybrid(upper) => ("hybrid", upper.as_path()),
        };
        let quota = match &self.write {
            Write::Limited { quota, .. } => *quota,
            _ => Quota::default(),
        };
        let _ = fs::remove_file(self.place.join("armed"));
        let output = this_again("server")
            .env(
                "MOUNTED_LOWER_KIND",
                if matches!(self.lower, Lower::Layers(_)) { "layers" } else { "directory" },
            )
            .env("MOUNTED_LOWER", lower)
            .env("MOUNTED_HIDE", hide)
            .env("MOUNTED_EXPOSE", expose)
            .env("MOUNTED_WRITE", kind)
            .env("MOUNTED_UPPER", upper)
            .env("MOUNTED_BYTES", quota.bytes.unwrap_or(0).to_string())
            .env("MOUNTED_INODES", quota.inodes.unwrap_or(0).to_string())
            .env("MOUNTED_PLACE", &self.place)
            .env("MOUNTED_SCENARIO", scenario)
            .env("FUSE_OVERLAY_FAULT", fault)
            .env("FUSE_OVERLAY_ARMED", self.place.join("armed"))
            .output()
            .unwrap();
        let text =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        match output.status.code() {
            Some(0) => true,
            Some(SKIPPED) => {
                eprintln!("SKIPPED {scenario}: {text}");
                false
            }
            // A scenario that kills its server says so.
            None if scenario.contains("kill") && text.contains("killing the server") => true,
            None if !fault.is_empty() && text.contains("armed") => true,
            code => panic!("{scenario} failed ({code:?}):\n{text}"),
        }
    }
}

fn join(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(":")
}

fn this_again(role: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "role", "--nocapture"]).env("MOUNTED_ROLE", role);
    command
}

/// Why no mount can be made here, if so.
fn closed() -> Option<String> {
    if let Err(error @ (MountError::DeviceMissing | MountError::DeviceDenied)) = mount::open_device() {
        return Some(error.to_string());
    }
    let tried = Command::new("unshare").args(["--user", "--mount", "--map-root-user", "true"]).output();
    match tried {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(error) => Some(format!("unshare: {error}")),
    }
}

pub(crate) fn role() {
    match std::env::var("MOUNTED_ROLE").as_deref() {
        Ok("server") => serve_scenario(),
        Ok("inside") => inside(),
        _ => {}
    }
}

fn variable(name: &str) -> String {
    std::env::var(format!("MOUNTED_{name}")).unwrap()
}

fn list(name: &str) -> Vec<String> {
    variable(name).split(':').filter(|item| !item.is_empty()).map(str::to_owned).collect()
}

fn described() -> (Lower, Write) {
    let lower = match variable("LOWER_KIND").as_str() {
        "layers" => Lower::Layers(list("LOWER").into_iter().map(PathBuf::from).collect()),
        _ => Lower::Directory { root: variable("LOWER").into(), hide: list("HIDE"), expose: list("EXPOSE") },
    };
    let upper = PathBuf::from(variable("UPPER"));
    let write = match variable("WRITE").as_str() {
        "no" => Write::No,
        "pure" => Write::Pure(upper),
        "volatile" => Write::Volatile(upper),
        "limited" => {
            let limit = |name| Some(variable(name).parse().unwrap()).filter(|limit| *limit > 0);
            Write::Limited { upper, quota: Quota { bytes: limit("BYTES"), inodes: limit("INODES") } }
        }
        _ => Write::Hybrid(upper),
    };
    (lower, write)
}

pub(crate) fn server(lower: &Lower, write: &Write) -> Result<Server, ServeError> {
    let lower = match lower {
        Lower::Layers(paths) => {
            let layers: Vec<File> = paths.iter().map(|path| File::open(path).unwrap()).collect();
            let indexes: Vec<_> = layers
                .iter()
                .map(|layer| index_tar(BufReader::new(layer), &Limits::default()).unwrap())
                .collect();
            let mut file = tempfile::tempfile().unwrap();
            merge(&indexes).unwrap().write_to(&mut file).unwrap();
            serve::Lower::Packed { index: MergedIndex::open(&file).unwrap(), layers }
        }
        Lower::Directory { root, hide, expose } => {
            let hide = hide.iter().map(|path| PathRule::Hide(path.into()));
            let expose = expose.iter().map(|path| PathRule::Expose(path.into()));
            let root = File::open(root).unwrap().into();
            serve::Lower::Directory(DirectoryLower { root, rules: hide.chain(expose).collect() })
        }
    };
    let quota = Quota::default();
    let upper = |path: &Path| {
        fs::create_dir_all(path).unwrap();
        OwnedFd::from(File::open(path).unwrap())
    };
    let mode = match write {
        Write::No | Write::Hybrid(_) => Mode::ReadOnly,
        Write::Pure(path) => Mode::Overlay { upper: upper(path), volatile: false, quota },
        Write::Volatile(path) => Mode::Overlay { upper: upper(path), volatile: true, quota },
        Write::Limited { upper: path, quota } => {
            Mode::Overlay { upper: upper(path), volatile: false, quota: *quota }
        }
    };
    let (uid, gid) = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
    let ids = Ids { uids: IdRange::single(uid), gids: IdRange::single(gid) };
    Server::new(lower, mode, ids, Options::default())
}

fn serve_scenario() {
    let (lower, write) = described();
    let server = server(&lower, &write).unwrap();
    let flags = SockFlag::SOCK_CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
    fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let again = this_again("inside");
    let mut command = Command::new("unshare");
    command.args(["--user", "--mount", "--map-root-user"]).arg(again.get_program()).args(again.get_args());
    command.env("MOUNTED_ROLE", "inside");
    command.env("MOUNTED_SOCKET", theirs.as_raw_fd().to_string());
    command.env("MOUNTED_SERVER", std::process::id().to_string());
    let mut child = command.spawn().unwrap();
    drop(theirs);
    if let Some(device) = receive(&ours) {
        server.serve(device).unwrap();
    }
    std::process::exit(child.wait().unwrap().code().unwrap_or(1));
}

fn receive(socket: &OwnedFd) -> Option<OwnedFd> {
    let mut byte = [0u8; 1];
    let mut data = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut data, Some(&mut space), flags).unwrap();
    let fd = message.cmsgs().unwrap().find_map(|control| match control {
        ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
        _ => None,
    });
    #[expect(unsafe_code, reason = "a received descriptor arrives as a bare number")]
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
    fd.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

fn inside() {
    let (_, write) = described();
    let place = PathBuf::from(variable("PLACE"));
    let socket: RawFd = variable("SOCKET").parse().unwrap();
    let target = place.join("mnt");
    fs::create_dir_all(&target).unwrap();
    let device = mount::open_device().unwrap();
    let read_only = matches!(write, Write::No | Write::Hybrid(_));
    let options = MountOptions { read_only, source: "test".into(), uid: 0, gid: 0 };
    mount::mount(device.as_fd(), &target, &options).unwrap();
    let (data, fds) = ([IoSlice::new(b"f")], [device.as_raw_fd()]);
    sendmsg::<()>(socket, &data, &[ControlMessage::ScmRights(&fds)], MsgFlags::empty(), None).unwrap();
    drop(device);
    mount::prime(&target).unwrap();
    let root = match write {
        Write::Hybrid(upper) => match overlay(&place, &target, &upper) {
            Ok(root) => root,
            Err(error) => {
                println!("{error}");
                std::process::exit(SKIPPED);
            }
        },
        _ => target,
    };
    let scenario = variable("SCENARIO");
    let mut words = scenario.split(' ');
    let name = words.next().unwrap();
    let numbers: Vec<u64> = words.map(|word| word.parse().unwrap()).collect();
    match (name, numbers.as_slice()) {
        ("random", [seed, count]) => super::random::run(&root, &place, *seed, *count),
        // With the kernel's overlay on both sides, over the mount here and over a plain directory there:
        // what the kernel imposes is then the same.
        ("random_beside_a_directory", [seed, count]) => {
            let plain = place.join("plain");
            if !plain.exists() {
                fs::create_dir(&plain).unwrap();
                super::tree::create(&plain);
            }
            overlay_on(&place.join("reference"), &plain, &place.join("reference-upper")).unwrap();
            super::random::run(&root, &place, *seed, *count);
        }
        ("random_then_kill", [seed, count]) => {
            super::random::run(&root, &place, *seed, *count);
            println!("killing the server");
            let server = nix::unistd::Pid::from_raw(variable("SERVER").parse().unwrap());
            nix::sys::signal::kill(server, nix::sys::signal::Signal::SIGKILL).unwrap();
        }
        ("compare", []) => super::random::compare(&root, &place, "after a new start"),
        ("changes_until_killed", []) => super::features::changes_until_killed(&root, &place.join("armed")),
        _ if super::features::run(name, &root) => {}
        _ => super::scenarios::run(name, &root, &variable("LOWER")),
    }
}

fn overlay(place: &Path, lower: &Path, upper: &Path) -> Result<PathBuf, MountError> {
    let merged = place.join("merged");
    overlay_on(&merged, lower, upper)?;
    Ok(merged)
}

fn overlay_on(merged: &Path, lower: &Path, upper: &Path) -> Result<(), MountError> {
    let (upper, work) = (upper.join("upper"), upper.join("work"));
    for directory in [merged, &upper, &work] {
        fs::create_dir_all(directory).unwrap();
    }
    let parts =
        OverlayMount { source: "test", native: None, lower, upper: &upper, work: &work, volatile: false };
    mount::mount_overlay(parts, merged)
}
