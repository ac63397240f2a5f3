//! Mounts layers in a user namespace of its own and runs a command there.
//!
//! ```text
//! mount [--pure DIR [--size BYTES] [--inodes NUMBER] [--writeback] | --hybrid DIR] [--volatile] [--map-auto] [--hide PATH] [--expose PATH] SOURCE... -- COMMAND...
//! ```
//!
//! A SOURCE is an uncompressed layer tar, bottom first, or one directory. The command runs in
//! the root of the mount, which it finds in `$MOUNT` too. This process is the server: it stays
//! outside the namespace as the user who called it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufReader, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use fuse_overlay::index::{MergedIndex, merge};
use fuse_overlay::mount::{self, MountOptions, OverlayMount};
use fuse_overlay::pack::{Limits, index_tar};
use fuse_overlay::serve::{DirectoryLower, IdRange, Ids, Lower, Mode, Options, PathRule, Quota, Server};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
    socketpair,
};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

#[derive(Default)]
struct Arguments {
    pure: Option<PathBuf>,
    hybrid: Option<PathBuf>,
    volatile: bool,
    writeback: bool,
    quota: Quota,
    map_auto: bool,
    rules: Vec<PathRule>,
    sources: Vec<PathBuf>,
    command: Vec<OsString>,
}

fn main() -> ExitCode {
    run(std::env::args_os().skip(1).collect())
}

/// What the program does, for its command line (benches/calls.rs comes here too).
pub(crate) fn run(arguments: Vec<OsString>) -> ExitCode {
    let outcome = match arguments.first() {
        Some(first) if first == "--inside" => inside(&arguments[1..]).map(|()| ExitCode::SUCCESS),
        _ => parse(arguments).and_then(|arguments| outside(&arguments)),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("mount: {error}");
        let mut source = error.source();
        while let Some(cause) = source {
            eprintln!("  because: {cause}");
            source = cause.source();
        }
        ExitCode::from(125)
    })
}

fn parse(arguments: Vec<OsString>) -> Outcome<Arguments> {
    let mut parsed = Arguments::default();
    let mut rest = arguments.into_iter();
    while let Some(argument) = rest.next() {
        let mut value = || rest.next().map(PathBuf::from).ok_or("a path is missing");
        match argument.to_str() {
            Some("--pure") => parsed.pure = Some(value()?),
            Some("--hybrid") => parsed.hybrid = Some(value()?),
            Some("--hide") => parsed.rules.push(PathRule::Hide(value()?)),
            Some("--expose") => parsed.rules.push(PathRule::Expose(value()?)),
            Some("--size") => parsed.quota.bytes = Some(number(&mut rest)?),
            Some("--inodes") => parsed.quota.inodes = Some(number(&mut rest)?),
            Some("--writeback") => parsed.writeback = true,
            Some("--volatile") => parsed.volatile = true,
            Some("--map-auto") => parsed.map_auto = true,
            Some("--") => parsed.command = rest.by_ref().collect(),
            _ => parsed.sources.push(argument.into()),
        }
    }
    if parsed.sources.is_empty() || parsed.command.is_empty() {
        return Err("usage: mount [OPTIONS] SOURCE... -- COMMAND...".into());
    }
    Ok(parsed)
}

fn number(rest: &mut impl Iterator<Item = OsString>) -> Outcome<u64> {
    let text = rest.next().ok_or("a number is missing")?;
    Ok(text.to_str().ok_or("not a number")?.parse()?)
}

/// The server's side.
fn outside(arguments: &Arguments) -> Outcome<ExitCode> {
    let options = Options { writeback: arguments.writeback, ..Options::default() };
    let server = Server::new(lower(arguments)?, mode(arguments)?, ids(arguments), options)?;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty()))?;
    let place = tempfile::tempdir()?;
    let mut command = Command::new("unshare");
    command.args(["--user", "--mount", "--map-root-user"]);
    if arguments.map_auto {
        command.arg("--map-auto");
    }
    command.arg(std::env::current_exe()?).arg("--inside");
    command.arg(theirs.as_raw_fd().to_string()).arg(place.path());
    command.arg(if arguments.pure.is_some() { "write" } else { "read" });
    command.arg(arguments.hybrid.clone().unwrap_or_default());
    command.arg(if arguments.volatile { "volatile" } else { "durable" });
    let mut child = command.args(&arguments.command).spawn()?;
    drop(theirs);
    if let Some(device) = receive(&ours)? {
        server.serve(device)?;
    }
    let status = child.wait()?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(255)))
}

fn lower(arguments: &Arguments) -> Outcome<Lower> {
    let first = &arguments.sources[0];
    if first.is_dir() {
        let root = File::open(first)?.into();
        return Ok(Lower::Directory(DirectoryLower { root, rules: arguments.rules.clone() }));
    }
    let mut layers = Vec::new();
    let mut indexes = Vec::new();
    for source in &arguments.sources {
        let file = File::open(source)?;
        indexes.push(index_tar(BufReader::with_capacity(1 << 20, &file), &Limits::default())?);
        layers.push(file);
    }
    // Through a file, as an engine would keep it.
    let mut file = tempfile::tempfile()?;
    merge(&indexes)?.write_to(&mut file)?;
    Ok(Lower::Packed { index: MergedIndex::open(&file)?, layers })
}

fn mode(arguments: &Arguments) -> Outcome<Mode> {
    let Some(upper) = &arguments.pure else { return Ok(Mode::ReadOnly) };
    fs::create_dir_all(upper)?;
    Ok(Mode::Overlay {
        upper: File::open(upper)?.into(),
        volatile: arguments.volatile,
        quota: arguments.quota,
    })
}

fn ids(arguments: &Arguments) -> Ids {
    let (uid, gid) = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
    if arguments.map_auto {
        Ids { uids: IdRange::range(65536, uid), gids: IdRange::range(65536, gid) }
    } else {
        Ids { uids: IdRange::single(uid), gids: IdRange::single(gid) }
    }
}

/// The namespace's side: mounts, hands the device over, becomes the command.
fn inside(arguments: &[OsString]) -> Outcome<()> {
    let [socket, place, access, hybrid, durability, command @ ..] = arguments else {
        return Err("not to be called by hand".into());
    };
    let socket: RawFd = socket.to_str().and_then(|text| text.parse().ok()).ok_or("no socket")?;
    let place = Path::new(place);
    let target = place.join("fuse");
    fs::create_dir(&target)?;
    let device = mount::open_device()?;
    let read_only = access == "read";
    let options = MountOptions { read_only, source: "example".into(), uid: 0, gid: 0 };
    mount::mount(device.as_fd(), &target, &options)?;
    let (data, fds) = ([IoSlice::new(b"f")], [device.as_raw_fd()]);
    sendmsg::<()>(socket, &data, &[ControlMessage::ScmRights(&fds)], MsgFlags::empty(), None)?;
    drop(device);
    mount::prime(&target)?;
    let root = if hybrid.is_empty() { target } else { overlay(place, &target, hybrid, durability)? };
    nix::unistd::close(socket)?;
    std::env::set_current_dir(&root)?;
    Err(Command::new(&command[0]).args(&command[1..]).env("MOUNT", &root).exec().into())
}

fn overlay(place: &Path, lower: &Path, hybrid: &OsString, durability: &OsString) -> Outcome<PathBuf> {
    let merged = place.join("merged");
    let (upper, work) = (Path::new(hybrid).join("upper"), Path::new(hybrid).join("work"));
    for directory in [&merged, &upper, &work] {
        fs::create_dir_all(directory)?;
    }
    let volatile = durability == "volatile";
    mount::mount_overlay(
        OverlayMount { source: "example", native: None, lower, upper: &upper, work: &work, volatile },
        &merged,
    )?;
    Ok(merged)
}

/// The device, or None where the other side ended before it sent one.
fn receive(socket: &OwnedFd) -> Outcome<Option<OwnedFd>> {
    let mut byte = [0u8; 1];
    let mut data = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut data, Some(&mut space), flags)?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control
            && let Some(fd) = fds.first()
        {
            return Ok(Some(sys::own(*fd)));
        }
    }
    Ok(None)
}

/// The one unsafe step.
mod sys {
    #![allow(unsafe_code, reason = "a received descriptor arrives as a bare number")]

    use super::{FromRawFd, OwnedFd, RawFd};

    pub(super) fn own(fd: RawFd) -> OwnedFd {
        // SAFETY: recvmsg has just made this descriptor for us, and nothing else knows it.
        unsafe { OwnedFd::from_raw_fd(fd) }
    }
}
