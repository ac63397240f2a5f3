//! What the inside is told of datagrams and pings that were not delivered.
//!
//! The host's kernel tells of it in two ways: as the error of the system call that sends, and later
//! in the socket's error queue, where the ICMP message of whoever complained is found. Inside they
//! become ICMP errors again, so that path MTU discovery, traceroute and "connection refused" work
//! as they would without a gateway.

use std::io;
use std::net::IpAddr;

use crate::device::{ErrorMessage, FrameSink, Transmitter, Unreachable};
use crate::policy::Policy;
use crate::sys::datagram::{Complaint, DeliveryError};

/// Why something from inside did not arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Undelivered {
    /// A router or the destination has said so, in these words.
    Said { by: Option<IpAddr>, error: ErrorMessage },
    /// The gateway says so.
    Unreachable(Unreachable),
    /// A limit is reached.
    Limited,
    /// Lost, as datagrams may be.
    Lost,
}

/// ICMP errors that are passed on (RFC 792): unreachable, time exceeded, parameter problem.
const ERRORS_V4: [u8; 3] = [3, 11, PARAMETER_PROBLEM_V4];
const PARAMETER_PROBLEM_V4: u8 = 12;
/// The same for IPv6 (RFC 4443): unreachable, too big, time exceeded, parameter problem.
const ERRORS_V6: [u8; 4] = [1, 2, 3, 4];

impl Undelivered {
    /// What the error of a system call means. EMSGSIZE is found in the error queue again, with
    /// the MTU.
    pub(crate) fn of(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENETUNREACH | libc::ENETDOWN | libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL) => {
                Self::Unreachable(Unreachable::Network)
            }
            Some(libc::EHOSTUNREACH | libc::EHOSTDOWN) => Self::Unreachable(Unreachable::Host),
            Some(libc::ECONNREFUSED) => Self::Unreachable(Unreachable::Port),
            // Whoever may not is told, rather than left to wait.
            Some(libc::EACCES | libc::EPERM) => Self::Unreachable(Unreachable::Prohibited),
            Some(libc::EMFILE | libc::ENFILE) => Self::Limited,
            _ => Self::Lost,
        }
    }

    /// What an entry of the error queue means.
    pub(crate) fn of_queued(error: &DeliveryError) -> Self {
        match error.complaint {
            Complaint::Icmp { kind, code, info, offender } => {
                let is_v6 = error.to.is_ipv6();
                let is_known = if is_v6 { ERRORS_V6.contains(&kind) } else { ERRORS_V4.contains(&kind) };
                if !is_known {
                    return Self::Lost;
                }
                // The kernel gives the pointer alone, which is the first byte of the word.
                let word = if !is_v6 && kind == PARAMETER_PROBLEM_V4 { info << 24 } else { info };
                Self::Said { by: offender, error: ErrorMessage { kind, code, word } }
            }
            Complaint::Local { errno: libc::EMSGSIZE, mtu_bytes } => match u16::try_from(mtu_bytes) {
                Ok(mtu_bytes) if mtu_bytes > 0 => Self::Unreachable(Unreachable::TooBig { mtu_bytes }),
                _ => Self::Lost,
            },
            Complaint::Local { errno, .. } => Self::of(&io::Error::from_raw_os_error(errno)),
        }
    }
}

/// Tells `inside` that what it had sent to `outside` (as the inside sees it) was not delivered,
/// quoting the beginning of its packet.
pub(crate) fn tell<S: FrameSink>(
    link: &mut Transmitter<S>,
    policy: &Policy,
    (inside, outside): (IpAddr, IpAddr),
    quoted: &[u8],
    undelivered: Undelivered,
) {
    let gateway = policy.addresses().gateway_like(outside);
    match undelivered {
        Undelivered::Lost => {}
        Undelivered::Limited => link.counters.limited += 1,
        Undelivered::Unreachable(why) => {
            // A missing port is the destination's own message.
            let from = if why == Unreachable::Port { outside } else { gateway };
            link.unreachable_quoting(from, inside, quoted, why);
        }
        Undelivered::Said { by, error } => {
            let is_of_destination = error == Unreachable::Port.message(outside.is_ipv6());
            let from = match by {
                Some(by) if by.is_ipv6() == outside.is_ipv6() && policy.may_leave(by) => by,
                _ if is_of_destination => outside,
                _ => gateway,
            };
            link.icmp_error(from, inside, quoted, error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    #[test]
    fn the_error_queue_is_understood() {
        let v4 = SocketAddr::from(([192, 0, 2, 1], 53));
        let v6 = SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], 53));
        let icmp = |kind, code, info| Complaint::Icmp { kind, code, info, offender: None };
        let said =
            |kind, code, word| Undelivered::Said { by: None, error: ErrorMessage { kind, code, word } };
        let local = |errno, mtu_bytes| Complaint::Local { errno, mtu_bytes };
        let cases = [
            (v4, icmp(3, 3, 0), said(3, 3, 0)),
            (v4, icmp(3, 4, 1400), said(3, 4, 1400)),
            (v4, icmp(11, 0, 0), said(11, 0, 0)),
            (v4, icmp(12, 0, 20), said(12, 0, 20 << 24)),
            // A redirect is the host's affair.
            (v4, icmp(5, 0, 0), Undelivered::Lost),
            (v6, icmp(2, 0, 1300), said(2, 0, 1300)),
            (v6, icmp(4, 1, 40), said(4, 1, 40)),
            (v6, icmp(128, 0, 0), Undelivered::Lost),
            (
                v4,
                local(libc::EMSGSIZE, 1400),
                Undelivered::Unreachable(Unreachable::TooBig { mtu_bytes: 1400 }),
            ),
            (v4, local(libc::EMSGSIZE, 0), Undelivered::Lost),
            (v4, local(libc::EHOSTUNREACH, 0), Undelivered::Unreachable(Unreachable::Host)),
        ];
        for (to, complaint, expected) in cases {
            let error = DeliveryError { to, complaint, quoted: [0; 8] };
            assert_eq!(Undelivered::of_queued(&error), expected, "{complaint:?}");
        }
    }
}
