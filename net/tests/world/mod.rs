//! A namespace with a gateway, for tests on the real kernel as an ordinary user.
//!
//! [`World::run`] is called by a test with two closures. The test's own process runs the gateway in a
//! thread and the *outside* closure. For the *inside* closure it starts the test binary again,
//! for this one test only and in new user and network namespaces, with a variable in the
//! environment; there `run` makes the TUN, passes it out and runs the closure. The two talk
//! through [`Peer`].

#![allow(dead_code, reason = "each test binary uses its part")]

mod sys;

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};
use std::thread;
use std::time::Duration;

use net::link::{self, LinkConfig, Tun, create_tun, create_veth};
use net::publish::{self, Bound, Publish};
use net::{Addresses, Config, Gateway, HostRoutes};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol, SockType, recvmsg,
    sendmsg, socket,
};
use nix::time::{ClockId, clock_gettime};

/// Set in the process that plays a host of the test's own.
const PRIVATE_HOST: &str = "HOSTEL_NET_TEST_HOST";

/// Set in the process inside, to the number of its socket.
const INSIDE: &str = "HOSTEL_NET_TEST_INSIDE";

/// Whether this is the test binary whose link is a veth pair; its tests are those of another, in a module.
const IS_VETH: bool = matches!(env!("CARGO_CRATE_NAME").as_bytes(), b"veth");
const TEST_PREFIX: &str = if IS_VETH { "kernel::" } else { "" };

/// Nothing here takes long; a test that waits longer has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The other half of the test: bytes both ways, so that the halves can wait for each other.
pub(crate) struct Peer(UnixStream);

impl Peer {
    /// Sends a line.
    pub(crate) fn say(&mut self, text: &str) {
        self.0.write_all(format!("{text}\n").as_bytes()).expect("the other half listens");
    }

    /// Receives a line.
    pub(crate) fn hear(&mut self) -> String {
        let mut text = Vec::new();
        let mut byte = [0];
        loop {
            self.0.read_exact(&mut byte).expect("the other half speaks");
            if byte[0] == b'\n' {
                return String::from_utf8(text).expect("text");
            }
            text.push(byte[0]);
        }
    }

    /// Receives a line and compares.
    pub(crate) fn hear_exactly(&mut self, text: &str) {
        assert_eq!(self.hear(), text);
    }

    /// Receives an address.
    pub(crate) fn hear_address(&mut self) -> SocketAddr {
        self.hear().parse().expect("an address")
    }
}

/// What a test asks of its world.
pub(crate) struct World {
    pub config: Config,
    pub publish: Vec<Publish>,
    /// The gateway runs on this host, not on the machine itself.
    pub host: Option<PrivateHost>,
}

/// A network namespace of the test's own, in a process of its own, that plays the host.
pub(crate) struct PrivateHost {
    /// The MTU of its only interface, the loopback.
    pub mtu_bytes: u32,
    /// Settings below /proc/sys/net.
    pub sysctls: &'static [(&'static str, &'static str)],
}

/// An address that a private host has besides the loopback's. It has no route to anything else.
pub(crate) const HOST_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

impl World {
    /// The defaults, with the host's loopback open: the tests' servers are there.
    pub(crate) fn new() -> Self {
        // Not the host's routes: inside they are others, and both halves need the same answer.
        let mut config = Config::new(Addresses::default_for(&HostRoutes::default()));
        config.host_loopback = net::HostLoopback::All;
        Self { config, publish: Vec::new(), host: None }
    }

    /// Whether this is the inside's process, where the host's addresses cannot be looked up.
    pub(crate) fn is_inside() -> bool {
        std::env::var_os(INSIDE).is_some()
    }

    /// Runs both halves of the test of this name. Returns after both have succeeded, with the time
    /// that the gateway's thread was on a CPU; none inside, or where nothing was run.
    pub(crate) fn run(
        self,
        test: &str,
        outside: impl FnOnce(&mut Peer, &[Bound]),
        inside: impl FnOnce(&mut Peer, &Config),
    ) -> Option<Duration> {
        if let Ok(number) = std::env::var(INSIDE) {
            let number: RawFd = number.parse().expect("the number of a descriptor");
            run_inside(sys::own(number), &self.config, inside);
            return None;
        }
        if let Some(reason) = unavailable() {
            eprintln!("SKIPPED {test}: {reason}");
            return None;
        }
        match &self.host {
            Some(host) if std::env::var_os(PRIVATE_HOST).is_some() => host.set_up(),
            Some(_) => {
                let status = again(test).env(PRIVATE_HOST, "1").status().expect("this binary again");
                assert!(status.success(), "{test} failed on its own host: {status}");
                return None;
            }
            None => {}
        }
        Some(self.run_outside(test, outside))
    }

    fn run_outside(self, test: &str, outside: impl FnOnce(&mut Peer, &[Bound])) -> Duration {
        let listeners = publish::bind(&self.publish).expect("free ports");
        let bound = listeners.bound();
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        ours.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let child = spawn_inside(test, &theirs);
        drop(theirs);
        let tun = receive_tun(&ours);
        let (stopper, stop) = std::io::pipe().expect("a pipe");
        let gateway = Gateway::new(tun, listeners, self.config).expect("a gateway");
        let thread = thread::spawn(move || {
            let result = gateway.run(OwnedFd::from(stopper));
            let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("a thread has a clock");
            result.map(|()| Duration::from(time))
        });
        let mut child = KillOnDrop(child);
        outside(&mut Peer(ours), &bound);
        let status = child.0.wait().expect("the inside ends");
        drop(stop);
        let on_cpu = thread.join().expect("no panic in the gateway").expect("the gateway ends well");
        assert!(status.success(), "the inside of {test} failed: {status}");
        on_cpu
    }
}

impl PrivateHost {
    fn set_up(&self) {
        link::bring_up_loopback().expect("a loopback");
        sys::set_up_loopback(HOST_ADDRESS, self.mtu_bytes).expect("an address and an MTU");
        for (name, value) in self.sysctls {
            std::fs::write(format!("/proc/sys/net/{name}"), value).expect("a setting");
        }
    }
}

/// A test that fails outside must not leave its inside waiting.
struct KillOnDrop(Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // It may have ended.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// Why this machine cannot run these tests.
fn unavailable() -> Option<String> {
    let tun = std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    if let Err(error) = tun
        && !IS_VETH
    {
        return Some(format!("/dev/net/tun cannot be opened: {error}"));
    }
    let status = Command::new("unshare").args(["-Urn", "true"]).status();
    match status {
        Ok(status) if status.success() => None,
        Ok(_) => Some("user namespaces are not allowed".into()),
        Err(error) => Some(format!("unshare(1) cannot be run: {error}")),
    }
}

fn spawn_inside(test: &str, socket: &UnixStream) -> Child {
    fcntl(socket, FcntlArg::F_SETFD(FdFlag::empty())).expect("a descriptor to inherit");
    again(test).env(INSIDE, socket.as_raw_fd().to_string()).spawn().expect("this binary again")
}

/// This binary for this one test, as root of new user and network namespaces. A thread cannot enter
/// a user namespace, and a test is run in one.
fn again(test: &str) -> Command {
    let mut command = Command::new("unshare");
    command.arg("-Urn").arg(std::env::current_exe().expect("this binary's path")).args([
        "--exact",
        &format!("{TEST_PREFIX}{test}"),
        "--test-threads=1",
        "--nocapture",
        "--quiet",
    ]);
    command
}

fn run_inside(socket: OwnedFd, config: &Config, inside: impl FnOnce(&mut Peer, &Config)) {
    let create = if IS_VETH { create_veth } else { create_tun };
    let tun = create(&LinkConfig::new(config)).expect("a device");
    let (fd, features) = tun.into_parts();
    sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(&features.to_ne_bytes())],
        &[ControlMessage::ScmRights(&[fd.as_raw_fd()])],
        MsgFlags::empty(),
        None,
    )
    .expect("the device passed out");
    drop(fd);
    // The kernel makes an IPv6 address valid in a work queue, a moment after it was added; a
    // container takes longer than that to start.
    thread::sleep(Duration::from_millis(20));
    let socket = UnixStream::from(socket);
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    inside(&mut Peer(socket), config);
}

fn receive_tun(socket: &UnixStream) -> Tun {
    let mut bytes = [0; 4];
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let mut control = nix::cmsg_space!(RawFd);
    let message =
        recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC)
            .expect("a message with the device");
    let fd = message
        .cmsgs()
        .expect("control messages")
        .find_map(|control| match control {
            ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
            _ => None,
        })
        .expect("the device's descriptor: the inside says why not");
    Tun::from_parts(sys::own(fd), u32::from_ne_bytes(bytes))
}

/// A socket that sends packets as they are, as a container with CAP_NET_RAW can have one.
pub(crate) fn raw_socket() -> OwnedFd {
    socket(AddressFamily::Packet, SockType::Datagram, SockFlag::empty(), SockProtocol::EthAll)
        .expect("a packet socket")
}

/// Sends a packet through the interface, whatever is in it. The kernel may refuse what is too odd.
pub(crate) fn send_raw(socket: &OwnedFd, packet: &[u8]) {
    let index = if_nametoindex("eth0").expect("the interface");
    sys::send_to_interface(socket, index, packet);
}

/// Forbids that datagrams are cut up: what is too long for the path is refused.
pub(crate) fn refuse_oversize(socket: &UdpSocket, is_v6: bool) {
    let (level, name) = if is_v6 {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER)
    } else {
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER)
    };
    sys::set_option(socket, level, name, libc::IP_PMTUDISC_DO).expect("an option");
}

/// Sets the hop limit of what is sent.
pub(crate) fn set_hop_limit(socket: &UdpSocket, limit: i32) {
    sys::set_option(socket, libc::IPPROTO_IP, libc::IP_TTL, limit).expect("an option");
}
