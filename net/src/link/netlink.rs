//! The few rtnetlink requests that an interface needs, sent as one batch.
//!
//! Message formats: netlink(7), rtnetlink(7). Each request is a 16-byte header (length, type,
//! flags, sequence, port), a fixed body, and attributes (length, type, value) padded to 4 bytes.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

use super::LinkError;

const HEADER_BYTES: usize = 16;
const ADDRESS_GENERATION_NONE: u8 = 1;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IFLA_AF_SPEC: u16 = 26;
/// linux/veth.h
const VETH_INFO_PEER: u16 = 1;

/// Room for all the answers of one batch: each is a header, an errno and the request's header,
/// or the whole request.
const ANSWER_BYTES: usize = 16 << 10;

/// Requests, in the order in which the kernel carries them out.
pub(super) struct Batch {
    bytes: Vec<u8>,
    steps: Vec<Step>,
}

struct Step {
    name: &'static str,
    /// Whether the network is worth having without it.
    optional: bool,
}

impl Batch {
    pub(super) fn new() -> Self {
        Self { bytes: Vec::with_capacity(512), steps: Vec::with_capacity(8) }
    }

    /// Sets an interface up, with an MTU and a queue length where given.
    pub(super) fn set_up(&mut self, name: &'static str, index: u32, sizes: Option<(u32, u32)>) {
        let up = libc::IFF_UP as u32;
        let start = self.begin(name, false, libc::RTM_NEWLINK, 0);
        self.link_body(index, up, up);
        if let Some((mtu_bytes, queue_packets)) = sizes {
            self.attribute(libc::IFLA_MTU, &mtu_bytes.to_ne_bytes());
            self.attribute(libc::IFLA_TXQLEN, &queue_packets.to_ne_bytes());
        }
        self.end(start);
    }

    /// No link-local IPv6 address: nobody on this link would use it, and each brings multicast
    /// reports with it.
    pub(super) fn no_link_local(&mut self, name: &'static str, index: u32) {
        let start = self.begin(name, true, libc::RTM_NEWLINK, 0);
        self.link_body(index, 0, 0);
        let families = self.open_attribute(IFLA_AF_SPEC);
        let inet6 = self.open_attribute(libc::AF_INET6 as u16);
        self.attribute(IFLA_INET6_ADDR_GEN_MODE, &[ADDRESS_GENERATION_NONE]);
        self.close_attribute(inet6);
        self.close_attribute(families);
        self.end(start);
    }

    /// Makes a veth pair, both ends with name and hardware address: one in the caller's namespace, the other
    /// in the given one.
    pub(super) fn add_veth(
        &mut self,
        name: &'static str,
        near: (&str, [u8; 6]),
        peer: (&str, [u8; 6]),
        peer_namespace: BorrowedFd<'_>,
    ) {
        let create = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
        let start = self.begin(name, false, libc::RTM_NEWLINK, create);
        self.link_body(0, 0, 0);
        self.link_identity(near);
        let info = self.open_attribute(libc::IFLA_LINKINFO);
        self.attribute(libc::IFLA_INFO_KIND, b"veth");
        let data = self.open_attribute(libc::IFLA_INFO_DATA);
        let other = self.open_attribute(VETH_INFO_PEER);
        // struct ifinfomsg without a header.
        self.bytes.extend([0; 16]);
        self.link_identity(peer);
        self.attribute(libc::IFLA_NET_NS_FD, &peer_namespace.as_raw_fd().to_ne_bytes());
        self.close_attribute(other);
        self.close_attribute(data);
        self.close_attribute(info);
        self.end(start);
    }

    fn link_identity(&mut self, (name, hardware): (&str, [u8; 6])) {
        let mut text = name.as_bytes().to_vec();
        text.push(0);
        self.attribute(libc::IFLA_IFNAME, &text);
        self.attribute(libc::IFLA_ADDRESS, &hardware);
    }

    /// No ARP and no neighbour discovery.
    pub(super) fn no_address_resolution(&mut self, name: &'static str, index: u32) {
        let no_arp = libc::IFF_NOARP as u32;
        let start = self.begin(name, false, libc::RTM_NEWLINK, 0);
        self.link_body(index, no_arp, no_arp);
        self.end(start);
    }

    /// Adds an address; an IPv6 one without duplicate detection, as there is nobody to ask. IPv6
    /// is optional: a kernel may be without.
    pub(super) fn add_address(&mut self, name: &'static str, index: u32, address: IpAddr, prefix_length: u8) {
        let create = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
        let start = self.begin(name, address.is_ipv6(), libc::RTM_NEWADDR, create);
        let flags = if address.is_ipv6() { libc::IFA_F_NODAD as u8 } else { 0 };
        // struct ifaddrmsg: family, prefix length, flags, scope (0: universe), interface.
        self.bytes.extend([family(address), prefix_length, flags, 0]);
        self.bytes.extend(index.to_ne_bytes());
        with_octets(address, |octets| {
            self.attribute(libc::IFA_LOCAL, octets);
            self.attribute(libc::IFA_ADDRESS, octets);
        });
        self.end(start);
    }

    /// Adds a default route through the gateway.
    pub(super) fn add_default_route(&mut self, name: &'static str, index: u32, gateway: IpAddr) {
        let create = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
        let start = self.begin(name, gateway.is_ipv6(), libc::RTM_NEWROUTE, create);
        // struct rtmsg: family, two prefix lengths, type of service, table, protocol, scope, type,
        // and flags as 32 bits.
        self.bytes.extend([
            family(gateway),
            0,
            0,
            0,
            libc::RT_TABLE_MAIN,
            libc::RTPROT_BOOT,
            libc::RT_SCOPE_UNIVERSE,
            libc::RTN_UNICAST,
        ]);
        self.bytes.extend(0_u32.to_ne_bytes());
        with_octets(gateway, |octets| self.attribute(libc::RTA_GATEWAY, octets));
        self.attribute(libc::RTA_OIF, &index.to_ne_bytes());
        self.end(start);
    }

    /// Starts a request; its sequence number is its step's number, from 1.
    fn begin(&mut self, name: &'static str, optional: bool, kind: u16, flags: u16) -> usize {
        let start = self.bytes.len();
        self.steps.push(Step { name, optional });
        let flags = flags | (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
        self.bytes.extend(0_u32.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(flags.to_ne_bytes());
        self.bytes.extend((self.steps.len() as u32).to_ne_bytes());
        self.bytes.extend(0_u32.to_ne_bytes());
        start
    }

    fn end(&mut self, start: usize) {
        let length = (self.bytes.len() - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// struct ifinfomsg: family, padding, type, index, flags, and which flags to change.
    fn link_body(&mut self, index: u32, flags: u32, change: u32) {
        self.bytes.extend(0_u32.to_ne_bytes());
        for word in [index, flags, change] {
            self.bytes.extend(word.to_ne_bytes());
        }
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        let start = self.open_attribute(kind);
        self.bytes.extend(value);
        self.close_attribute(start);
    }

    fn open_attribute(&mut self, kind: u16) -> usize {
        let start = self.bytes.len();
        self.bytes.extend(0_u16.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        start
    }

    fn close_attribute(&mut self, start: usize) {
        let length = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => libc::AF_INET as u8,
        IpAddr::V6(_) => libc::AF_INET6 as u8,
    }
}

fn with_octets(address: IpAddr, f: impl FnOnce(&[u8])) {
    match address {
        IpAddr::V4(v4) => f(&v4.octets()),
        IpAddr::V6(v6) => f(&v6.octets()),
    }
}

/// A route netlink socket of the caller's network namespace.
pub(super) struct Netlink {
    socket: OwnedFd,
}

impl Netlink {
    pub(super) fn open() -> Result<Self, LinkError> {
        let socket =
            socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)
                .map_err(setup_error("netlink socket"))?;
        Ok(Self { socket })
    }

    /// Sends the batch and reads one answer for each request.
    pub(super) fn run(&self, batch: &Batch) -> Result<(), LinkError> {
        let fd = self.socket.as_raw_fd();
        send(fd, &batch.bytes, MsgFlags::empty()).map_err(setup_error("netlink request"))?;
        let mut answers = vec![0; ANSWER_BYTES];
        let mut outstanding = batch.steps.len();
        while outstanding > 0 {
            let length = recv(fd, &mut answers, MsgFlags::empty()).map_err(setup_error("netlink answer"))?;
            for answer in Answers(&answers[..length]) {
                outstanding = outstanding.saturating_sub(1);
                answer.check(&batch.steps)?;
            }
        }
        Ok(())
    }
}

fn setup_error(step: &'static str) -> impl Fn(nix::Error) -> LinkError {
    move |errno| LinkError::Setup { step, source: errno.into() }
}

/// The NLMSG_ERROR messages of a datagram; one with errno 0 is an acknowledgement.
struct Answers<'a>(&'a [u8]);

struct Answer {
    sequence: u32,
    errno: i32,
}

impl Iterator for Answers<'_> {
    type Item = Answer;

    fn next(&mut self) -> Option<Answer> {
        loop {
            let word = |at: usize| -> Option<u32> {
                let bytes = self.0.get(at..at + 4)?;
                Some(u32::from_ne_bytes(bytes.try_into().ok()?))
            };
            let length = word(0)? as usize;
            let kind = (word(4)? & 0xffff) as i32;
            let answer = Answer { sequence: word(8)?, errno: word(HEADER_BYTES)? as i32 };
            if length < HEADER_BYTES {
                return None;
            }
            self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or(&[]);
            if kind == libc::NLMSG_ERROR {
                return Some(answer);
            }
        }
    }
}

impl Answer {
    fn check(&self, steps: &[Step]) -> Result<(), LinkError> {
        let step = (self.sequence as usize).checked_sub(1).and_then(|index| steps.get(index));
        let (name, optional) = step.map_or(("an unknown step", false), |s| (s.name, s.optional));
        if self.errno == 0 || optional {
            return Ok(());
        }
        Err(LinkError::Setup { step: name, source: io::Error::from_raw_os_error(-self.errno) })
    }
}
