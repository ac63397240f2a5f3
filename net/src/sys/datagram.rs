//! recvmmsg(2): several datagrams, or trains of them, in one system call.
//!
//! nix has a form of it, which cannot be used twice on the same headers: the kernel shortens the
//! length of the control buffer there, and nobody restores it.

use std::io;
use std::mem::zeroed;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

/// Datagrams for one system call.
const BATCH: usize = 16;

/// The largest datagram or train. Only the pages that something was received into are committed.
const SLOT_BYTES: usize = 64 << 10;

/// Room for a packet information and a segment size, aligned as control messages must be.
type Control = [u64; 16];

/// What is known of a received datagram.
#[derive(Debug, Clone, Copy)]
struct Summary {
    length: usize,
    from: Option<SocketAddr>,
    sent_to: Option<IpAddr>,
    segment_bytes: Option<usize>,
}

/// A received datagram, or a train of them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Received<'a> {
    pub(crate) payload: &'a [u8],
    pub(crate) from: SocketAddr,
    /// The host's address that it came to, where the socket tells.
    pub(crate) sent_to: Option<IpAddr>,
    /// The size of the datagrams, if it is a train of them.
    pub(crate) segment_bytes: Option<usize>,
}

/// Room for a batch.
pub(crate) struct Inbox {
    bytes: Box<[u8]>,
    summaries: Vec<Summary>,
}

impl Inbox {
    pub(crate) fn new() -> Self {
        Self { bytes: vec![0; BATCH * SLOT_BYTES].into(), summaries: Vec::with_capacity(BATCH) }
    }

    /// Receives a batch, replacing the last. Returns whether there may be more.
    ///
    /// # Errors
    /// As recvmmsg(2); EAGAIN when there is nothing.
    pub(crate) fn receive(&mut self, socket: impl AsFd) -> io::Result<bool> {
        self.summaries.clear();
        // SAFETY: these are plain old data, for which all zeroes is a valid value.
        let mut names: [libc::sockaddr_storage; BATCH] = unsafe { zeroed() };
        // SAFETY: the same.
        let mut parts: [libc::iovec; BATCH] = unsafe { zeroed() };
        // SAFETY: the same; null pointers with zero lengths.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { zeroed() };
        let mut controls: [Control; BATCH] = [[0; 16]; BATCH];
        for (index, slot) in self.bytes.chunks_exact_mut(SLOT_BYTES).enumerate() {
            parts[index] = libc::iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: slot.len() };
            let header = &mut headers[index].msg_hdr;
            header.msg_name = (&raw mut names[index]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_iov = &raw mut parts[index];
            header.msg_iovlen = 1;
            header.msg_control = (&raw mut controls[index]).cast();
            header.msg_controllen = size_of::<Control>() as _;
        }
        // SAFETY: every pointer in the headers leads to an element of an array above, or to a
        // slot of `bytes`, with its true length; all outlive the call.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_fd().as_raw_fd(),
                headers.as_mut_ptr(),
                BATCH as u32,
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
            )
        };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        for index in 0..count {
            let mut summary = Summary {
                length: (headers[index].msg_len as usize).min(SLOT_BYTES),
                from: socket_address(&names[index]),
                sent_to: None,
                segment_bytes: None,
            };
            read_controls(&headers[index].msg_hdr, &mut summary);
            self.summaries.push(summary);
        }
        Ok(count == BATCH)
    }

    /// The batch, without datagrams whose sender is unknown.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Received<'_>> {
        self.summaries.iter().zip(self.bytes.chunks_exact(SLOT_BYTES)).filter_map(|(summary, slot)| {
            Some(Received {
                payload: &slot[..summary.length],
                from: summary.from?,
                sent_to: summary.sent_to,
                segment_bytes: summary.segment_bytes,
            })
        })
    }
}

/// How much of the datagram that met an error is looked at: an ICMP echo header.
const QUOTED_BYTES: usize = 8;

/// Who says that a datagram could not be delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Complaint {
    /// A router or the destination, with this ICMP message.
    Icmp {
        /// Type and code in the family of the socket.
        kind: u8,
        code: u8,
        /// What the message has in its second word: an MTU.
        info: u32,
        /// Who sent it.
        offender: Option<IpAddr>,
    },
    /// The host's own kernel, with an errno, and the path's MTU where it is EMSGSIZE.
    Local { errno: i32, mtu_bytes: u32 },
}

/// An error that a socket with IP_RECVERR or IPV6_RECVERR has received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DeliveryError {
    /// Where the datagram had gone.
    pub(crate) to: SocketAddr,
    pub(crate) complaint: Complaint,
    /// The first bytes of its payload, as far as they came back.
    pub(crate) quoted: [u8; QUOTED_BYTES],
}

/// Takes the oldest error from a socket's queue.
pub(crate) fn take_error(socket: impl AsFd) -> Option<DeliveryError> {
    // SAFETY: plain old data, for which all zeroes is a valid value.
    let mut name: libc::sockaddr_storage = unsafe { zeroed() };
    // SAFETY: the same; null pointers with zero lengths.
    let mut header: libc::msghdr = unsafe { zeroed() };
    let mut control: Control = [0; 16];
    let mut quoted = [0; QUOTED_BYTES];
    let mut part = libc::iovec { iov_base: quoted.as_mut_ptr().cast(), iov_len: quoted.len() };
    header.msg_name = (&raw mut name).cast();
    header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = (&raw mut control).cast();
    header.msg_controllen = size_of::<Control>() as _;
    // SAFETY: the header's pointers lead to the variables above, with their true lengths; the
    // rest of the datagram is cut off for want of room.
    let result = unsafe {
        libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut header, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT)
    };
    if result < 0 {
        return None;
    }
    let mut complaint = None;
    for_each_control(&header, |level, kind, data, holds| {
        let is_error =
            matches!((level, kind), (libc::SOL_IP, libc::IP_RECVERR) | (libc::SOL_IPV6, libc::IPV6_RECVERR));
        if !is_error || !holds(size_of::<libc::sock_extended_err>()) {
            return;
        }
        // SAFETY: the message holds a whole sock_extended_err, perhaps not aligned for it.
        let error = unsafe { ptr::read_unaligned(data.cast::<libc::sock_extended_err>()) };
        complaint = Some(match error.ee_origin {
            libc::SO_EE_ORIGIN_ICMP | libc::SO_EE_ORIGIN_ICMP6 => Complaint::Icmp {
                kind: error.ee_type,
                code: error.ee_code,
                info: error.ee_info,
                offender: offender(data, holds),
            },
            _ => Complaint::Local { errno: error.ee_errno as i32, mtu_bytes: error.ee_info },
        });
    });
    Some(DeliveryError { to: socket_address(&name)?, complaint: complaint?, quoted })
}

/// The address behind a sock_extended_err.
fn offender(data: *const u8, holds: &dyn Fn(usize) -> bool) -> Option<IpAddr> {
    let at = size_of::<libc::sock_extended_err>();
    // SAFETY: all zeroes is a valid sockaddr_storage.
    let mut storage: libc::sockaddr_storage = unsafe { zeroed() };
    let bytes = [size_of::<libc::sockaddr_in6>(), size_of::<libc::sockaddr_in>()]
        .into_iter()
        .find(|&bytes| holds(at + bytes))?;
    // SAFETY: the message holds so many bytes there, and a storage has room for either address.
    unsafe { ptr::copy_nonoverlapping(data.wrapping_add(at), (&raw mut storage).cast::<u8>(), bytes) };
    socket_address(&storage).map(|address| address.ip())
}

/// What becomes of datagrams that are longer than the path's MTU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Oversize {
    /// They are cut up.
    Fragment,
    /// They are refused with EMSGSIZE.
    Refuse,
}

/// Sets what becomes of a socket's oversize datagrams (ip(7), IP_MTU_DISCOVER).
pub(crate) fn set_oversize(socket: impl AsFd, is_v6: bool, oversize: Oversize) -> io::Result<()> {
    let value: libc::c_int = match oversize {
        Oversize::Fragment => libc::IP_PMTUDISC_WANT,
        Oversize::Refuse => libc::IP_PMTUDISC_DO,
    };
    let (level, name) = if is_v6 {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER)
    } else {
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER)
    };
    // SAFETY: the option takes an int, whose address and size these are.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Notes what the control messages of a header that recvmmsg has filled say.
fn read_controls(header: &libc::msghdr, summary: &mut Summary) {
    for_each_control(header, |level, kind, data, holds| match (level, kind) {
        (libc::IPPROTO_IP, libc::IP_PKTINFO) if holds(size_of::<libc::in_pktinfo>()) => {
            // SAFETY: the message holds a whole in_pktinfo, perhaps not aligned for it.
            let info = unsafe { ptr::read_unaligned(data.cast::<libc::in_pktinfo>()) };
            summary.sent_to = Some(Ipv4Addr::from(u32::from_be(info.ipi_spec_dst.s_addr)).into());
        }
        (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) if holds(size_of::<libc::in6_pktinfo>()) => {
            // SAFETY: the message holds a whole in6_pktinfo, perhaps not aligned for it.
            let info = unsafe { ptr::read_unaligned(data.cast::<libc::in6_pktinfo>()) };
            summary.sent_to = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).into());
        }
        (libc::SOL_UDP, libc::UDP_GRO) if holds(size_of::<libc::c_int>()) => {
            // SAFETY: the message holds a whole int, perhaps not aligned for it.
            let size = unsafe { ptr::read_unaligned(data.cast::<libc::c_int>()) };
            summary.segment_bytes = usize::try_from(size).ok().filter(|&size| size > 0);
        }
        _ => {}
    });
}

/// Calls `f` with the level, the type and the data of each control message of a header that
/// recvmsg has filled, and a function that tells whether there are so many bytes of data.
fn for_each_control(
    header: &libc::msghdr,
    mut f: impl FnMut(libc::c_int, libc::c_int, *const u8, &dyn Fn(usize) -> bool),
) {
    // SAFETY: the header's control buffer is an array of the caller's, with the length that the
    // kernel has set.
    let mut control = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !control.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return headers within the buffer, aligned.
        let libc::cmsghdr { cmsg_level, cmsg_type, cmsg_len, .. } = unsafe { *control };
        // SAFETY: the data follows the header, in the same buffer.
        let data = unsafe { libc::CMSG_DATA(control) };
        // SAFETY: CMSG_LEN only computes.
        let holds = |bytes: usize| cmsg_len >= unsafe { libc::CMSG_LEN(bytes as u32) } as _;
        f(cmsg_level, cmsg_type, data, &holds);
        // SAFETY: both belong to the same buffer.
        control = unsafe { libc::CMSG_NXTHDR(header, control) };
    }
}

fn socket_address(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match libc::c_int::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says which type is there; a storage has room for each.
            let v4 = unsafe { &*(&raw const *storage).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
            Some(SocketAddr::new(ip.into(), u16::from_be(v4.sin_port)))
        }
        libc::AF_INET6 => {
            // SAFETY: the same.
            let v6 = unsafe { &*(&raw const *storage).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            // The zone of a link-local sender is kept, as it cannot be answered without.
            Some(SocketAddrV6::new(ip, u16::from_be(v6.sin6_port), 0, v6.sin6_scope_id).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed call is a failed test")]

    use super::*;
    use nix::sys::socket::{setsockopt, sockopt};
    use std::net::UdpSocket;

    #[test]
    fn icmp_errors_name_the_destination() {
        let closed = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        setsockopt(&sender, sockopt::Ipv4RecvErr, &true).unwrap();
        sender.send_to(b"hello", closed).unwrap();
        let error = take_error(&sender).unwrap();
        assert_eq!(error.to, closed);
        let offender = Some("127.0.0.1".parse().unwrap());
        assert_eq!(error.complaint, Complaint::Icmp { kind: 3, code: 3, info: 0, offender });
        assert_eq!(&error.quoted[..5], b"hello");
        assert_eq!(take_error(&sender), None);
    }

    #[test]
    fn batches_are_received_again_and_again() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        setsockopt(&receiver, sockopt::Ipv4PacketInfo, &true).unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut inbox = Inbox::new();
        for round in 0..3_u8 {
            for number in 0..20_u8 {
                let datagram = vec![round; usize::from(number) * 100];
                sender.send_to(&datagram, receiver.local_addr().unwrap()).unwrap();
            }
            let mut number = 0;
            let mut batches = 0;
            while number < 20 {
                let more = inbox.receive(&receiver).unwrap();
                assert_eq!(more, batches == 0);
                batches += 1;
                for received in inbox.iter() {
                    assert_eq!(received.payload, vec![round; number * 100]);
                    assert_eq!(received.from, sender.local_addr().unwrap());
                    assert_eq!(received.sent_to, Some("127.0.0.1".parse().unwrap()));
                    number += 1;
                }
            }
            assert_eq!(inbox.receive(&receiver).unwrap_err().kind(), io::ErrorKind::WouldBlock);
            assert_eq!(inbox.iter().count(), 0);
        }
    }
}
