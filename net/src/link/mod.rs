//! Makes the interface, from inside the new network namespace.
//!
//! Everything here is for a single-threaded process that has CAP_NET_ADMIN over the namespace,
//! before its workload starts. It talks to the kernel by ioctl, netlink and /proc/sys and never
//! runs a program. [`create`] hands back the device's descriptor, which goes out to the
//! process that runs the [`Gateway`](crate::Gateway); nothing else crosses the border. The device
//! is a TUN, or a packet socket on a veth pair where /dev/net/tun cannot be opened; [`Tun`] makes
//! one look like the other.
//!
//! The TUN is made persistent at once: closing one that is not takes the kernel 23 to 30 ms,
//! while a persistent one goes silently with its namespace.

mod netlink;
mod sysctl;
mod veth;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::net::if_::if_nametoindex;

use crate::sys::tun;
use crate::{Addresses, Config};
use netlink::{Batch, Netlink};

/// The name that Docker's containers see.
const INTERFACE_NAME: &str = "eth0";

/// The device must not drop: the stack that feeds from it waits a second for a lost segment.
const TRANSMIT_QUEUE_PACKETS: u32 = 10_000;

/// The loopback interface's index in every network namespace.
const LOOPBACK_INDEX: u32 = 1;

/// What the interface looks like from inside.
#[derive(Debug, Clone)]
pub struct LinkConfig {
    /// The interface's name, at most 15 bytes.
    pub name: String,
    /// The largest IP packet, in bytes.
    pub mtu_bytes: u16,
    /// Its addresses and routes.
    pub addresses: Addresses,
}

impl LinkConfig {
    /// `eth0`, with the MTU and addresses of the gateway's configuration.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self { name: INTERFACE_NAME.to_owned(), mtu_bytes: config.mtu_bytes, addresses: config.addresses }
    }
}

/// Why the namespace has no network.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// /dev/net/tun is not there, or not for this user.
    #[error("cannot open {device}: {remedy}", device = tun::DEVICE)]
    OpenTun {
        /// What to do about it.
        remedy: &'static str,
        /// The error of open(2).
        source: io::Error,
    },
    /// The kernel refused to make the interface.
    #[error("cannot make the network interface {name:?} (does the caller hold CAP_NET_ADMIN?)")]
    Attach {
        /// The interface's name.
        name: String,
        /// The error of the ioctl.
        source: io::Error,
    },
    /// There is neither a TUN device nor a veth pair.
    #[error("{tun}; nor can a veth pair stand in for it")]
    NoDevice {
        /// Why no TUN device.
        tun: Box<LinkError>,
        /// Why no veth pair.
        #[source]
        veth: Box<LinkError>,
    },
    /// The kernel refused a step of the set-up.
    #[error("cannot set up the network: {step}")]
    Setup {
        /// The step.
        step: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl LinkError {
    fn open_tun(source: io::Error) -> Self {
        let remedy = match source.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
                "load the kernel module with `modprobe tun`, as root"
            }
            Some(libc::EACCES | libc::EPERM) => {
                "open it to all users with `chmod 0666 /dev/net/tun`, as root; \
                 it gives nobody rights over the host's network"
            }
            _ => "see whether the device works at all",
        };
        Self::OpenTun { remedy, source }
    }
}

/// What the device takes and gives unfinished, so that neither side works on single packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features(u32);

impl Features {
    /// Partial checksums.
    pub const CHECKSUM: Self = Self(tun::TUN_F_CSUM);
    /// TCP segmentation.
    pub const TCP_SEGMENTATION: Self = Self(tun::TUN_F_TSO4 | tun::TUN_F_TSO6);
    /// UDP segmentation, since Linux 6.2.
    pub const UDP_SEGMENTATION: Self = Self(tun::TUN_F_USO4 | tun::TUN_F_USO6);

    /// Not an offload: frames are Ethernet's, the descriptor is a packet socket.
    const ETHERNET: Self = Self(1 << 30);

    /// Whether every part of `other` is there.
    pub(crate) fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets together.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The sets to try on a kernel, best first.
    const OFFERS: [Self; 4] = [
        Self::CHECKSUM.with(Self::TCP_SEGMENTATION).with(Self::UDP_SEGMENTATION),
        Self::CHECKSUM.with(Self::TCP_SEGMENTATION),
        Self::CHECKSUM,
        Self(0),
    ];
}

/// An interface's packet end: a TUN device or a packet socket. What is read and written are IP packets, each
/// with a virtio-net header in front.
#[derive(Debug)]
pub struct Tun {
    fd: OwnedFd,
    features: Features,
}

impl Tun {
    /// Takes it apart, to send it to another process: the descriptor with SCM_RIGHTS, the
    /// features as the number.
    #[must_use]
    pub fn into_parts(self) -> (OwnedFd, u32) {
        (self.fd, self.features.0)
    }

    /// Puts together what [`into_parts`](Self::into_parts) gave. Unknown bits are dropped. A
    /// features number that does not belong to the descriptor garbles packets, no more.
    #[must_use]
    pub fn from_parts(fd: OwnedFd, features: u32) -> Self {
        let known = Features::OFFERS[0].with(Features::ETHERNET).0;
        Self { fd, features: Features(features & known) }
    }

    pub(crate) fn features(&self) -> Features {
        self.features
    }

    /// Whether a sender inside is made to wait when packets are not read fast enough, as a TUN's queue does;
    /// they are lost otherwise.
    pub(crate) fn holds_back(&self) -> bool {
        !self.features.has(Features::ETHERNET)
    }

    /// Reads one packet. No bytes are one that is not to be looked at.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.features.has(Features::ETHERNET) {
            return veth::read(self.fd.as_fd(), buffer);
        }
        Ok(nix::unistd::read(&self.fd, buffer)?)
    }

    /// Writes one packet.
    pub(crate) fn write(&self, frame: &[u8]) -> io::Result<()> {
        if self.features.has(Features::ETHERNET) {
            return veth::write(self.fd.as_fd(), frame);
        }
        nix::unistd::write(&self.fd, frame)?;
        Ok(())
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Sets the loopback interface up: all the network of a namespace that is to have none.
///
/// # Errors
/// [`LinkError::Setup`] where netlink refuses.
pub fn bring_up_loopback() -> Result<(), LinkError> {
    let mut batch = Batch::new();
    batch.set_up("loopback up", LOOPBACK_INDEX, None);
    Netlink::open()?.run(&batch)
}

/// Makes the interface and everything round it: loopback up, addresses, default routes, MTU,
/// queue length, and the namespace's settings where they can be written.
///
/// A kernel without IPv6 gets IPv4 only. Where /dev/net/tun cannot be opened the interface is one end of a
/// veth pair.
///
/// # Errors
/// [`LinkError`], which names the remedy where there is one.
pub fn create(config: &LinkConfig) -> Result<Tun, LinkError> {
    match create_tun(config) {
        Err(refused @ LinkError::OpenTun { .. }) => {
            create_veth(config).map_err(|veth| LinkError::NoDevice { tun: refused.into(), veth: veth.into() })
        }
        made => made,
    }
}

/// As [`create`], with a veth pair in any case.
///
/// # Errors
/// [`LinkError::Setup`] for the step that the kernel refused.
pub fn create_veth(config: &LinkConfig) -> Result<Tun, LinkError> {
    let (fd, features) = veth::create(config)?;
    let index = if_nametoindex(config.name.as_str())
        .map_err(|errno| LinkError::Attach { name: config.name.clone(), source: errno.into() })?;
    let mut batch = Batch::new();
    batch.no_address_resolution("interface without address resolution", index);
    Netlink::open()?.run(&batch)?;
    bring_up(config, index)?;
    Ok(Tun { fd, features })
}

/// As [`create`], with a TUN device only.
///
/// # Errors
/// [`LinkError`], which names the remedy where there is one.
pub fn create_tun(config: &LinkConfig) -> Result<Tun, LinkError> {
    let device = tun::open_device().map_err(LinkError::open_tun)?;
    let attach_error = |source| LinkError::Attach { name: config.name.clone(), source };
    tun::attach(&device, &config.name).map_err(attach_error)?;
    tun::set_persistent(&device).map_err(attach_error)?;
    let features = probe_offloads(&device)?;

    let index = if_nametoindex(config.name.as_str()).map_err(|errno| attach_error(errno.into()))?;
    bring_up(config, index)?;
    Ok(Tun { fd: device, features })
}

/// Addresses, routes and settings of an interface that has just been made.
fn bring_up(config: &LinkConfig, index: u32) -> Result<(), LinkError> {
    sysctl::before_up(&config.name);
    let Addresses { v4, v6 } = config.addresses;
    let mut batch = Batch::new();
    batch.set_up("loopback up", LOOPBACK_INDEX, None);
    batch.no_link_local("interface without link-local address", index);
    batch.set_up("interface up", index, Some((u32::from(config.mtu_bytes), TRANSMIT_QUEUE_PACKETS)));
    // IPv6 first: the kernel makes such an address valid in a work queue of its own, a moment
    // later, and what arrives before is lost.
    batch.add_address("IPv6 address", index, v6.container.into(), v6.prefix_length);
    batch.add_address("IPv4 address", index, v4.container.into(), v4.prefix_length);
    batch.add_default_route("IPv4 default route", index, v4.gateway.into());
    batch.add_default_route("IPv6 default route", index, v6.gateway.into());
    Netlink::open()?.run(&batch)?;
    sysctl::apply();
    Ok(())
}

/// The largest set of offloads that this kernel takes.
fn probe_offloads(device: &OwnedFd) -> Result<Features, LinkError> {
    let mut refused = None;
    for offer in Features::OFFERS {
        match tun::set_offloads(device, offer.0) {
            Ok(()) => return Ok(offer),
            Err(error) => refused = Some(error),
        }
    }
    Err(LinkError::Setup {
        step: "no offloads on the TUN device",
        source: refused.unwrap_or_else(|| io::Error::from_raw_os_error(libc::EINVAL)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_survive_the_trip_as_a_number() {
        for offer in Features::OFFERS {
            let fd = tempfile::tempfile().expect("a temporary file").into();
            let (fd, number) = Tun::from_parts(fd, offer.0).into_parts();
            assert_eq!(Tun::from_parts(fd, number | 0x8000_0000).features, offer);
        }
    }

    #[test]
    fn errors_name_the_remedy() {
        for (errno, word) in [(libc::ENOENT, "modprobe"), (libc::EACCES, "chmod")] {
            let error = LinkError::open_tun(io::Error::from_raw_os_error(errno));
            let text = error.to_string();
            assert!(text.contains("/dev/net/tun") && text.contains(word), "{text}");
        }
    }
}
