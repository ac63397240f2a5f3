//! ICMP from inside: echo requests. Errors to the inside are sent where they arise.

use crate::compose::Route;
use crate::device::{FrameSink, Transmitter};
use crate::frame::Packet;
use crate::policy::Policy;

const ECHO_REPLY_V4: u8 = 0;
const ECHO_REQUEST_V4: u8 = 8;
const ECHO_REQUEST_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;

pub(crate) struct Icmp {}

impl Icmp {
    pub(crate) fn new() -> Self {
        Self {}
    }

    /// Takes a message from inside; it has at least 8 bytes.
    pub(crate) fn message<S: FrameSink>(
        &mut self,
        link: &mut Transmitter<S>,
        policy: &Policy,
        packet: &Packet<'_>,
        message: &[u8],
    ) {
        let (request, reply) = if packet.source.is_ipv6() {
            (ECHO_REQUEST_V6, ECHO_REPLY_V6)
        } else {
            (ECHO_REQUEST_V4, ECHO_REPLY_V4)
        };
        if message[0] != request || !policy.is_gateway(packet.destination) {
            link.counters.unforwardable += 1;
            return;
        }
        let route = Route { source: packet.destination, destination: packet.source };
        let mut answer = message.to_vec();
        answer[0] = reply;
        link.icmp(route, &answer);
    }
}
