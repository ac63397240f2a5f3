//! Gives a command a network of its own: `unshare -rn COMMAND`, with a gateway.
//!
//! ```sh
//! cargo run --release -p hostel-net --example gateway -- -p 127.0.0.1:8080:80 -- COMMAND
//! ```
//!
//! The command runs as root of a new user namespace, in a new network namespace whose only way
//! out is this process. Options: `-p [ADDRESS:]PORT:CONTAINER_PORT[/udp]` (repeated),
//! `--host-loopback all|PORT[,PORT]`, `--dns ADDRESS[:PORT]`, `--mtu BYTES`, `--ring BYTES` (the
//! largest TCP buffer). What was published
//! is told on standard error.

use std::error::Error;
use std::io::{IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitCode, ExitStatus};

use net::link::{LinkConfig, Tun, create};
use net::publish::{self, HostPorts, Protocol, Publish};
use net::{Addresses, Config, Gateway, HostLoopback, HostRoutes, Resolver};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
    socketpair,
};
use nix::unistd::{getgid, getuid};

/// The hidden first argument of the process that enters the namespace; its second is the number
/// of the socket to send the device through.
const INSIDE: &str = "--inside";

type Failure = Box<dyn Error>;

struct Options {
    config: Config,
    publish: Vec<Publish>,
    command: Vec<String>,
}

fn main() -> Result<ExitCode, Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [first, socket, rest @ ..] = arguments.as_slice()
        && first == INSIDE
    {
        return inside(socket.parse()?, &parse(rest)?);
    }
    let options = parse(&arguments)?;
    outside(options, &arguments)
}

fn outside(options: Options, arguments: &[String]) -> Result<ExitCode, Failure> {
    let listeners = publish::bind(&options.publish)?;
    for bound in listeners.bound() {
        eprintln!("{}/{} -> {}", bound.address, bound.protocol, bound.container_port);
    }
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty()))?;
    let mut child = Command::new("/proc/self/exe")
        .args([INSIDE, &theirs.as_raw_fd().to_string()])
        .args(arguments)
        .spawn()?;
    drop(theirs);
    let Some(tun) = receive_tun(&ours)? else {
        return Ok(exit_code(child.wait()?));
    };
    let (stopper, stop) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)?;
    let waiter = std::thread::spawn(move || {
        let status = child.wait();
        drop(stopper);
        status
    });
    Gateway::new(tun, listeners, options.config)?.run(stop)?;
    match waiter.join() {
        Ok(status) => Ok(exit_code(status?)),
        Err(_) => Err("the thread that waits for the command has panicked".into()),
    }
}

/// Enters the namespaces, makes the device, sends it out and becomes the command.
fn inside(socket: RawFd, options: &Options) -> Result<ExitCode, Failure> {
    let (uid, gid) = (getuid(), getgid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)?;
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    std::fs::write("/proc/self/gid_map", format!("0 {gid} 1"))?;
    let (fd, features) = create(&LinkConfig::new(&options.config))?.into_parts();
    sendmsg::<()>(
        socket,
        &[IoSlice::new(&features.to_ne_bytes())],
        &[ControlMessage::ScmRights(&[fd.as_raw_fd()])],
        MsgFlags::empty(),
        None,
    )?;
    nix::unistd::close(socket)?;
    let (program, arguments) = options.command.split_first().ok_or("no command was given")?;
    Err(Command::new(program).args(arguments).exec().into())
}

/// The device, or none if the other side has ended.
fn receive_tun(socket: &OwnedFd) -> Result<Option<Tun>, Failure> {
    let mut bytes = [0; 4];
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let mut control = nix::cmsg_space!(RawFd);
    let message =
        recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut fd = None;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            fd = fds.first().copied();
        }
    }
    Ok(fd.map(|fd| Tun::from_parts(sys::own(fd), u32::from_ne_bytes(bytes))))
}

fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(125))
}

fn parse(arguments: &[String]) -> Result<Options, Failure> {
    let mut config = Config::new(Addresses::default_for(&HostRoutes::read()));
    let mut publish = Vec::new();
    let mut rest = arguments.iter();
    while let Some(option) = rest.next() {
        if option == "--" {
            break;
        }
        let value = rest.next().ok_or_else(|| format!("{option} needs a value"))?;
        match option.as_str() {
            "-p" => publish.push(parse_publish(value)?),
            "--host-loopback" if value == "all" => config.host_loopback = HostLoopback::All,
            "--host-loopback" => {
                let ports = value.split(',').map(str::parse).collect::<Result<_, _>>()?;
                config.host_loopback = HostLoopback::Ports(ports);
            }
            "--dns" => {
                let server = value
                    .parse::<SocketAddr>()
                    .or_else(|_| value.parse().map(|ip: IpAddr| SocketAddr::new(ip, 53)))?;
                config.resolver = Resolver::Servers(vec![server]);
            }
            "--ring" => config.limits.ring_bytes = value.parse()?,
            "--mtu" => config.mtu_bytes = value.parse()?,
            _ => return Err(format!("unknown option {option}").into()),
        }
    }
    Ok(Options { config, publish, command: rest.cloned().collect() })
}

fn parse_publish(text: &str) -> Result<Publish, Failure> {
    let (text, protocol) = match text.split_once('/') {
        None | Some((_, "tcp")) => (text.trim_end_matches("/tcp"), Protocol::Tcp),
        Some((text, "udp")) => (text, Protocol::Udp),
        Some((_, other)) => return Err(format!("unknown protocol {other}").into()),
    };
    let (rest, container_port) = text.rsplit_once(':').ok_or("-p needs PORT:CONTAINER_PORT")?;
    let (host, port) = match rest.rsplit_once(':') {
        None => (None, rest),
        Some((host, port)) => {
            let host = host.trim_start_matches('[').trim_end_matches(']');
            (Some(host.parse()?), port)
        }
    };
    Ok(Publish {
        host,
        ports: HostPorts::one(port.parse()?),
        container_port: container_port.parse()?,
        protocol,
    })
}

/// The one unsafe step.
mod sys {
    #![allow(unsafe_code, reason = "a received descriptor comes as a number")]

    use super::{FromRawFd, OwnedFd, RawFd};

    pub(super) fn own(fd: RawFd) -> OwnedFd {
        // SAFETY: recvmsg has just made this descriptor for us, and nothing else knows it.
        unsafe { OwnedFd::from_raw_fd(fd) }
    }
}
