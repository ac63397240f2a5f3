//! A userspace TCP/IP gateway for one network namespace.
//!
//! A process inside a new namespace makes an interface with [`link::create`] and passes its
//! descriptor out. [`Gateway`] then plays the whole world at the other end of it, with ordinary
//! sockets of the host: TCP and UDP out, published ports in, names, ping. Nothing needs privilege
//! on the host, and the crate knows nothing of containers.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use net::{Addresses, Config, Gateway, HostRoutes, link, publish};
//!
//! let config = Config::new(Addresses::default_for(&HostRoutes::read()));
//! // In the host's namespaces, before anything starts.
//! let listeners = publish::bind(&[])?;
//! // In the new namespace, by another process; the parts come back through a socket.
//! let (fd, features) = link::create(&link::LinkConfig::new(&config))?.into_parts();
//! // Outside again.
//! let tun = link::Tun::from_parts(fd, features);
//! let (_stopper, stop) = std::io::pipe()?;
//! Gateway::new(tun, listeners, config)?.run(stop.into())?;
//! # Ok(())
//! # }
//! ```
//!
//! # What a running gateway needs of the kernel
//! For the seccomp filter and the file system rules of the process round it.
//!
//! System calls: `accept4`, `bind`, `brk`, `clock_gettime`, `close`, `connect`, `epoll_create1`,
//! `epoll_ctl`, `epoll_pwait`/`epoll_wait`, `fcntl`, `fstat`, `getpeername`, `getrandom`,
//! `getsockname`, `getsockopt`, `ioctl` (FIONBIO on sockets; SIOCGIFINDEX for a zone in
//! resolv.conf), `lseek`, `madvise`, `mmap`, `mremap`, `munmap`, `openat`, `prlimit64`, `read`, `readv`, `recvfrom`,
//! `recvmmsg`, `recvmsg`, `sendmsg`, `sendto`, `setsockopt`, `shutdown`, `socket`,
//! `statx`/`newfstatat`, `write`, `writev`, and what the allocator and a thread's end use (`futex`, `rt_sigprocmask`, `exit`).
//! Socket families: AF_INET, AF_INET6; types SOCK_STREAM, SOCK_DGRAM.
//!
//! Files: /etc/resolv.conf and /etc/hosts are opened for reading again when they change. Either
//! may be replaced by rename, and may be a symlink to another directory (usual targets are below
//! /run/systemd/resolve, /run/NetworkManager, /run/resolvconf), so rules must cover directories.
//!
//! # Where later things have their place
//! What a destination stands for, and so any egress policy: `policy`. Names: `dns::Dns::ask`.
//! A flow's begin and end, and so a log of flows: `Tcp::insert` and `Tcp::vacate`, `nat::Mappings`.
//! Every packet inward, and so capture and shaping: `device::Transmitter`; outward:
//! `Gateway::packet`. Figures: [`Counters`](stack::Counters). A switch between namespaces would
//! be another sink and source of packets beside the device.

mod address;
mod clock;
mod compose;
mod config;
mod counters;
mod delivery;
mod device;
mod dns;
mod frame;
#[cfg(any(test, fuzzing))]
#[cfg_attr(fuzzing, doc(hidden))]
pub mod fuzzing;
mod gateway;
mod host;
mod icmp;
pub mod link;
mod nat;
mod policy;
mod poll;
pub mod publish;
mod random;
mod reassembly;
mod slab;
mod sys;
mod tcp;
mod udp;
mod wheel;

pub use address::{AddressError, Addresses, Chosen, HostRoutes, Network};
pub use config::{Config, DEFAULT_MTU_BYTES, HostLoopback, HostName, Limits, Resolver};
pub use dns::{ResolvConf, ResolvConfObserver};
pub use gateway::{Gateway, GatewayError};

/// The gateway's parts that need no kernel: packets and time are passed in. For simulations and
/// fuzzers.
pub mod stack {
    pub use crate::clock::Now;
    pub use crate::counters::Counters;
    pub use crate::device::{FrameSink, Transmitter, Unreachable, VNET_HEADER_BYTES};
    pub use crate::frame::{Fragment, Malformed, Packet, Segment, Transport, parse};
    pub use crate::link::Features;
    pub use crate::tcp::{FlowId, FlowKey, Host, Readiness, Refusal, Stream, Tcp};
}
