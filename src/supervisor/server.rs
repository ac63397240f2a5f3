//! The server of one container: FUSE threads, network thread, log pump.
//!
//! It parses all that is hostile (FUSE requests, packets, the container's output), so it holds no
//! more than it needs: it is forked before anything of the container exists, is not dumpable, is
//! fenced ([`fence`]), and dies with the keeper. Threads start here and nowhere else in the engine.

use std::collections::VecDeque;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::mpsc;

use fuse_overlay::serve;
use nix::fcntl::OFlag;
use nix::unistd::pipe2;

use super::log::{Stream, Target, Writer};
use super::pump::{Event, Pump};
use super::{etc, fence};
use crate::sandbox::init::message;
use crate::sys;

/// What the server tells the keeper: one byte a message.
pub mod word {
    /// All output has been passed on.
    pub const DRAINED: u8 = b'D';
    /// The log's file is full.
    pub const LOG_FULL: u8 = b'R';
    /// From the keeper, with the log's next file. Its other messages are clients to attach.
    pub const NEXT_LOG: u8 = b'L';
}

/// What the server is given.
#[derive(Debug)]
pub struct Parts {
    /// The filesystems, ready, in the order in which init mounts them: the root, then images. None where images
    /// are used without FUSE.
    pub filesystems: VecDeque<serve::Server>,
    /// Published ports and the network's settings.
    pub network: Option<(net::publish::Listeners, net::Config)>,
    /// The container's resolv.conf, where it follows the host's.
    pub resolv_conf: Option<etc::Mirror>,
    /// From init.
    pub init: OwnedFd,
    /// To and from the keeper.
    pub keeper: OwnedFd,
    /// Reading ends of the container's output.
    pub sources: Vec<(Stream, OwnedFd)>,
    /// Writing end of its stdin.
    pub stdin: Option<OwnedFd>,
    /// A client that is attached from the start, and whether its input counts.
    pub client: Option<(OwnedFd, bool)>,
    /// Where the output is kept.
    pub log: Target,
    /// What it may do once it runs.
    pub fence: fence::Paths,
}

/// Runs in a child of the keeper's; never returns.
pub fn run(parts: Parts) -> ! {
    sys::process::set_name(c"hostel-server");
    let code = match serve(parts) {
        Ok(()) => 0,
        Err(message) => {
            eprintln!("server: {message}"); // stderr is the container's supervisor.log
            1
        }
    };
    sys::process::exit_now(code)
}

fn serve(parts: Parts) -> Result<(), String> {
    let text = |what: &'static str| move |error: std::io::Error| format!("{what}: {error}");
    sys::process::set_dumpable(false)
        .map_err(|errno| format!("cannot hide from other processes: {errno}"))?;
    sys::fault::point("server-begins");
    raise_file_limit();
    let log = Writer::open(parts.log).map_err(text("cannot open the log"))?;
    let mut pump = Pump::new(
        parts.init,
        parts.keeper.try_clone().map_err(text("dup"))?,
        parts.sources,
        parts.stdin,
        log,
    );
    fence::enter(&parts.fence)?;
    sys::fault::point("server-fenced");
    if let Some((socket, stdin)) = parts.client {
        pump.attach(socket, stdin, stdin);
    }
    let mut network = parts.network;
    let mut resolv_conf = parts.resolv_conf;
    // Now, while init is made and mounts: the first look at a mount waits for its thread.
    let (mut fuse_threads, mut devices) = (Vec::new(), VecDeque::new());
    for filesystem in parts.filesystems {
        let (sender, device) = mpsc::channel();
        devices.push_back(sender);
        fuse_threads.push(spawn("fuse", move || {
            filesystem.serve_when(|| device.recv().ok()).map_err(|error| chain(&error))
        })?);
    }
    let mut net_stop = None;
    loop {
        match pump.wait_event().map_err(text("cannot poll"))? {
            Event::Init(text, Some(fd)) => match text.split_first() {
                Some((&message::FUSE, _)) => {
                    sys::fault::point("server-has-mount");
                    // A thread that is gone has said why, and ended the server.
                    let _ = devices.pop_front().map(|waiting| waiting.send(fd));
                }
                Some((&message::TUN, features)) => {
                    if let (Some((listeners, config)), Ok(features)) = (network.take(), features.try_into()) {
                        let tun = net::link::Tun::from_parts(fd, u32::from_ne_bytes(features));
                        let mut gateway =
                            net::Gateway::new(tun, listeners, config).map_err(|error| chain(&error))?;
                        if let Some(mut mirror) = resolv_conf.take() {
                            gateway.observe_resolv_conf(Box::new(move |host| {
                                if let Err(error) = mirror.follow(host) {
                                    // Names still resolve, with the old search domains.
                                    eprintln!("net: cannot write the container's resolv.conf: {error}");
                                }
                            }));
                        }
                        let (stopped, stop) =
                            pipe2(OFlag::O_CLOEXEC).map_err(|errno| format!("pipe: {errno}"))?;
                        net_stop = Some(stop);
                        spawn("net", move || gateway.run(stopped).map_err(|error| chain(&error)))?;
                    }
                }
                Some((&message::TERMINAL, _)) => {
                    pump.set_terminal(fd).map_err(|error| format!("cannot use the terminal: {error}"))?;
                }
                _ => return Err("init sent a message that is not of this protocol".into()),
            },
            Event::Init(..) => return Err("init sent a message without a descriptor".into()),
            Event::Attach(socket, stdin) => pump.attach(socket, stdin, false),
            Event::Drained => {
                sys::fault::point("server-drained");
                drop((net_stop.take(), devices));
                // The keeper may have gone first; then this process is about to be killed anyway.
                let _ = sys::fd::send_with_fds(parts.keeper.as_fd(), &[word::DRAINED], &[]);
                drop(parts.keeper);
                drop(pump);
                break;
            }
            Event::KeeperGone => return Ok(()),
        }
    }
    sys::fault::point("server-told");
    // What the kernel still has to write back comes while the mounts go away; then the threads end.
    for thread in fuse_threads {
        let _ = thread.join(); // its own error is reported by itself
    }
    Ok(())
}

/// Starts a thread whose failure ends the server, and with it the container.
fn spawn(
    name: &'static str,
    work: impl FnOnce() -> Result<(), String> + Send + 'static,
) -> Result<std::thread::JoinHandle<()>, String> {
    let body = move || {
        if let Err(error) = work() {
            eprintln!("{name}: {error}");
            sys::process::exit_now(1);
        }
    };
    std::thread::Builder::new()
        .name(name.into())
        .spawn(body)
        .map_err(|error| format!("cannot start a thread: {error}"))
}

/// A flow and an open file are a descriptor each: take all that the user may have.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard); // the soft limit stays then
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    crate::sandbox::chain(error)
}
