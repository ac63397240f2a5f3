//! One flow's two connections, joined: moves bytes, ends and resets between them.

use std::io;

use smoltcp::iface::{Interface, PollResult};
use smoltcp::socket::tcp::{CongestionControl, RecvError, Socket, State};
use smoltcp::time::Duration;

use super::{FlowKey, Readiness, Stream, segment_of, without_payload};
use crate::clock::{self, Now, tick_at_or_after};
use crate::device::{FrameSink, PACKET_BYTES_MAX, Transmitter};
use crate::frame::{IPV4_HEADER_BYTES, IPV6_HEADER_BYTES, Segment, TCP_HEADER_BYTES};
use crate::sys::ring::{Arena, RingSocket};
use crate::wheel::Tick;

/// Long enough that a reply usually carries the acknowledgement, short enough that a sender that
/// waits for it is not held up.
const ACK_DELAY: Duration = Duration::from_millis(1);

/// How long the inside may leave a handshake unfinished.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(20);

/// How long the inside may leave an end unacknowledged, without a sign of life.
const CLOSING_TIMEOUT: Duration = Duration::from_secs(60);

/// After this long without traffic the pages of empty rings go back to the system.
const IDLE_MS: Tick = 1_000;

/// A busy connection's rings are given back at most this often, and after at least so many bytes:
/// then the page faults cost less than a thousandth of the time.
const WALK_MS: Tick = 250;
const WALKED_BYTES: usize = 128 << 10;

/// Bytes that one flow may move each way in one turn, so that the others get theirs.
const TURN_BYTES: usize = 2 << 20;

/// Packets whose data is read from the host before the socket is let send: it is still in the
/// cache then. Whole ones, as the rest would go in a small packet of its own.
const CHUNK_PACKETS: usize = 4;

/// The headers of a packet: a TCP header with its time stamps.
const TCP_BYTES: usize = TCP_HEADER_BYTES + 12;

/// The MSS of a peer that names none (RFC 9293, 3.7.1), and the least that smoltcp believes.
const SEGMENT_DEFAULT: u16 = 536;
const SEGMENT_MIN: u16 = 48;

/// What a connection may buffer each way even when buffers are short: it goes on, and all
/// connections together stay within reason.
const SHARE_BYTES: usize = 64 << 10;

/// Whether all connections together may buffer more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Supply {
    Ample,
    Short,
}

/// What becomes of a connection after it was served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// There is more to do at once.
    Again,
    /// Nothing until a packet, an event, or this tick.
    Wait(Option<Tick>),
    /// The inner connection is no more.
    Ended,
}

pub(super) struct Connection<S> {
    socket: RingSocket,
    stream: S,
    /// The MSS that the inside announced.
    peer_segment: usize,
    readiness: Readiness,
    /// The host's end was read; the inner connection's sending half is closed.
    host_ended: bool,
    /// The inside's end was passed on.
    host_told: bool,
    /// The outer connection failed.
    host_failed: bool,
    /// The outer connection was reset as soon as it was there; the inside is to see the same.
    host_reset: bool,
    /// The inside has not completed the handshake yet.
    handshaking: bool,
    /// The sequence number after the last byte that the inside sent, and the last one
    /// acknowledged to it: they differ while something is missing before it.
    received_up_to: Option<u32>,
    acknowledged: Option<u32>,
    /// Bytes that are read from the host at once.
    chunk_bytes: usize,
    /// Bytes in the rings as of the last look.
    queued: usize,
    /// Bytes that have passed through the rings since their pages were given back.
    passed: usize,
    given_back_at: Tick,
    last_active: Tick,
}

impl<S: Stream> Connection<S> {
    /// The inner connection of a SYN, whose stream is connected.
    #[expect(clippy::too_many_arguments, reason = "the table's parts, borrowed one by one")]
    pub(super) fn accept<F: FrameSink>(
        interface: &mut Interface,
        arena: &Arena,
        ring_bytes: usize,
        link: &mut Transmitter<F>,
        now: Now,
        key: FlowKey,
        syn: &[u8],
        stream: S,
    ) -> io::Result<Self> {
        let mut this = Self::new(arena, ring_bytes, now, key, stream)?;
        let listening = this.socket.with(|socket| {
            configure(socket);
            socket.listen(key.outside)
        });
        let segment = segment_of(syn);
        let (Ok(()), Some(segment)) = (listening, segment) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        clock::set_timestamp(now);
        this.receive(interface, link, now, syn, &segment);
        Ok(this)
    }

    /// An inner connection from `key.outside` to `key.inside`.
    pub(super) fn connect(
        interface: &mut Interface,
        arena: &Arena,
        ring_bytes: usize,
        now: Now,
        key: FlowKey,
        stream: S,
    ) -> io::Result<Self> {
        let mut this = Self::new(arena, ring_bytes, now, key, stream)?;
        let connecting = this.socket.with(|socket| {
            configure(socket);
            socket.connect(interface.context(), key.inside, key.outside)
        });
        connecting.map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(this)
    }

    fn new(arena: &Arena, ring_bytes: usize, now: Now, key: FlowKey, stream: S) -> io::Result<Self> {
        let ip_bytes = if key.inside.is_ipv6() { IPV6_HEADER_BYTES } else { IPV4_HEADER_BYTES };
        Ok(Self {
            socket: RingSocket::new(arena, ring_bytes)?,
            stream,
            peer_segment: usize::from(SEGMENT_DEFAULT),
            readiness: Readiness::default(),
            host_ended: false,
            host_told: false,
            host_failed: false,
            host_reset: false,
            handshaking: true,
            received_up_to: None,
            acknowledged: None,
            chunk_bytes: CHUNK_PACKETS * (PACKET_BYTES_MAX - ip_bytes - TCP_BYTES),
            queued: 0,
            passed: 0,
            given_back_at: now.tick(),
            last_active: now.tick(),
        })
    }

    /// Notes what the host's kernel says.
    pub(super) fn ready(&mut self, readiness: Readiness) {
        self.readiness.readable |= readiness.readable;
        self.readiness.writable |= readiness.writable;
        self.readiness.hangup |= readiness.hangup;
    }

    /// Whether a segment with data is to be dropped because buffers are short and this connection
    /// has its share. The inside sends it again, more slowly.
    pub(super) fn exceeds_share(&mut self, segment: &Segment) -> bool {
        segment.length > 0 && self.socket.with(|socket| socket.recv_queue()) >= SHARE_BYTES
    }

    /// How many bytes are in the rings more than at the last look; negative if less.
    pub(super) fn queued_since(&mut self) -> isize {
        let queued = self.socket.with(|socket| socket.recv_queue() + socket.send_queue());
        let grown = queued as isize - self.queued as isize;
        self.queued = queued;
        grown
    }

    /// Bytes in the rings as of the last look.
    pub(super) fn queued(&self) -> usize {
        self.queued
    }

    /// Gives the socket a segment from inside.
    pub(super) fn receive<F: FrameSink>(
        &mut self,
        interface: &mut Interface,
        link: &mut Transmitter<F>,
        now: Now,
        packet: &[u8],
        segment: &Segment,
    ) {
        if segment.syn {
            self.peer_segment = match segment.maximum_segment {
                None | Some(0) => usize::from(SEGMENT_DEFAULT),
                Some(announced) => usize::from(announced.max(SEGMENT_MIN)),
            };
        }
        let end = segment.sequence.wrapping_add(segment.length);
        let is_newer = |old: u32| (end.wrapping_sub(old) as i32) > 0;
        if self.received_up_to.is_none_or(is_newer) {
            self.received_up_to = Some(end);
        }
        self.active(now, 0);
        link.begin_flow(self.peer_segment);
        self.socket
            .with_set(|set| interface.poll_ingress_single(now.instant(), &mut link.port(Some(packet)), set));
        self.note_acknowledged(link);
        self.receive_old_fin(interface, link, now, packet, segment);
    }

    /// Works round smoltcp 0.14, which drops a FIN that comes again with data that it has already
    /// (it takes the segment to be outside of the window, and never looks at the FIN): gives it
    /// the FIN alone. May go when smoltcp counts the FIN as part of the segment.
    fn receive_old_fin<F: FrameSink>(
        &mut self,
        interface: &mut Interface,
        link: &mut Transmitter<F>,
        now: Now,
        packet: &[u8],
        segment: &Segment,
    ) {
        let fin_at = segment.sequence.wrapping_add(segment.length).wrapping_sub(1);
        let is_old = segment.fin && segment.length > 1 && self.acknowledged == Some(fin_at);
        let may_end = |state| matches!(state, State::Established | State::FinWait1 | State::FinWait2);
        if !is_old || !self.socket.with(|socket| may_end(socket.state())) {
            return;
        }
        let Some(fin) = without_payload(packet, fin_at) else { return };
        self.socket
            .with_set(|set| interface.poll_ingress_single(now.instant(), &mut link.port(Some(&fin)), set));
        self.note_acknowledged(link);
    }

    /// Notes that the outer connection was reset before this one existed.
    pub(super) fn reset_by_host(&mut self) {
        self.host_reset = true;
    }

    /// Whether the inside has completed the handshake.
    pub(super) fn is_established(&self) -> bool {
        !self.handshaking
    }

    fn note_established(&mut self) {
        if !self.handshaking {
            return;
        }
        self.handshaking = self.socket.with(|socket| {
            let open = !matches!(
                socket.state(),
                State::Listen | State::SynSent | State::SynReceived | State::Closed
            );
            if open {
                // From here on a container that is paused may be silent for as long as it likes.
                socket.set_timeout(None);
            }
            !open
        });
        if !self.handshaking && self.host_reset {
            self.fail();
        }
    }

    /// Sees to it that an end which the inside never acknowledges does not stay for ever.
    ///
    /// The kernel inside always answers; and should a FIN get lost together with other segments,
    /// smoltcp 0.14 does not send it again after a fast retransmit.
    fn limit_closing(&mut self) {
        if !self.host_ended {
            return;
        }
        self.socket.with(|socket| {
            let is_waiting = matches!(socket.state(), State::FinWait1 | State::Closing | State::LastAck);
            socket.set_timeout(is_waiting.then_some(CLOSING_TIMEOUT));
        });
    }

    /// Moves what can be moved, lets the socket send, and says when to come back.
    pub(super) fn serve<F: FrameSink>(
        &mut self,
        interface: &mut Interface,
        link: &mut Transmitter<F>,
        now: Now,
        supply: Supply,
    ) -> Fate {
        self.note_established();
        self.limit_closing();
        let mut moved = 0;
        loop {
            let outward = self.move_outward();
            let inward = self.move_inward(supply);
            if outward + inward > 0 {
                self.active(now, outward + inward);
            }
            self.send(interface, link, now);
            moved += outward + inward;
            if outward + inward == 0 {
                break;
            }
            if moved >= TURN_BYTES {
                return Fate::Again;
            }
        }
        if self.has_ended() {
            return Fate::Ended;
        }
        let idle_at = self.give_back(now);
        let poll_at = self.socket.with_set(|set| interface.poll_at(now.instant(), set)).map(tick_at_or_after);
        Fate::Wait([idle_at, poll_at].into_iter().flatten().min())
    }

    /// From the inside to the host. Returns how many bytes went.
    fn move_outward(&mut self) -> usize {
        let mut moved = 0;
        while !self.host_told && !self.host_failed {
            let (queued, state) = self.socket.with(|socket| (socket.recv_queue(), socket.state()));
            if queued > 0 && !self.readiness.writable {
                break;
            }
            if queued == 0 && matches!(state, State::Listen | State::SynSent | State::SynReceived) {
                break;
            }
            let stream = &mut self.stream;
            let written = self.socket.with(|socket| {
                socket.recv(|bytes| {
                    if bytes.is_empty() {
                        return (0, Ok(0));
                    }
                    let written = stream.write(bytes);
                    (written.as_ref().map_or(0, |&count| count), written)
                })
            });
            match written {
                Ok(Ok(0)) => break,
                Ok(Ok(count)) => moved += count,
                Ok(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readiness.writable = false;
                    break;
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(_)) => {
                    self.fail();
                    break;
                }
                Err(RecvError::Finished) => {
                    self.stream.shutdown_write();
                    self.host_told = true;
                }
                // Reset from inside, or not open: `has_ended` sees to it.
                Err(RecvError::InvalidState) => break,
            }
        }
        moved
    }

    /// From the host to the inside, up to a chunk. Returns how many bytes went.
    fn move_inward(&mut self, supply: Supply) -> usize {
        let mut moved = 0;
        while moved < self.chunk_bytes && self.readiness.readable && !self.host_ended && !self.host_failed {
            let (can_send, queued) = self.socket.with(|socket| (socket.can_send(), socket.send_queue()));
            if !can_send || (supply == Supply::Short && queued >= SHARE_BYTES) {
                break;
            }
            let (stream, hangup) = (&mut self.stream, self.readiness.hangup);
            let rest = self.chunk_bytes - moved;
            let outcome = self.socket.with(|socket| {
                socket.send(|room| {
                    let length = room.len().min(rest);
                    let read = stream.read(&mut room[..length]);
                    let short = matches!(read, Ok(count) if count < length);
                    (read.as_ref().map_or(0, |&count| count), (read, short))
                })
            });
            match outcome {
                Ok((Ok(0), _)) => {
                    self.host_ended = true;
                    self.socket.with(|socket| {
                        socket.close();
                    });
                }
                Ok((Ok(count), short)) => {
                    moved += count;
                    // A short read has emptied the socket, unless an end came with the data: an
                    // edge-triggered event would not tell of it again.
                    if short && !hangup {
                        self.readiness.readable = false;
                    }
                }
                Ok((Err(error), _)) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readiness.readable = false;
                }
                Ok((Err(error), _)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok((Err(_), _)) => self.fail(),
                Err(_) => break,
            }
        }
        moved
    }

    /// The outer connection is broken: the inside is told with RST.
    fn fail(&mut self) {
        self.host_failed = true;
        self.socket.with(|socket| {
            socket.abort();
        });
    }

    /// Sends all that the socket has to send.
    fn send<F: FrameSink>(&mut self, interface: &mut Interface, link: &mut Transmitter<F>, now: Now) {
        link.begin_flow(self.peer_segment);
        self.socket.with_set(|set| {
            while interface.poll_egress(now.instant(), &mut link.port(None), set)
                == PollResult::SocketStateChanged
            {}
        });
        self.note_acknowledged(link);
    }

    fn note_acknowledged<F: FrameSink>(&mut self, link: &Transmitter<F>) {
        if let Some(acknowledged) = link.acknowledged() {
            self.acknowledged = Some(acknowledged);
        }
    }

    /// Whether nothing is left to do for the inner connection.
    fn has_ended(&mut self) -> bool {
        let (state, queued) = self.socket.with(|socket| (socket.state(), socket.recv_queue()));
        match state {
            // A reset while the handshake was under way.
            State::Listen => true,
            // Both ends were exchanged, or there was a reset; what came before an end is still
            // to be written.
            State::Closed => queued == 0 || self.host_failed,
            State::TimeWait => self.host_told || self.host_failed,
            _ => false,
        }
    }

    fn active(&mut self, now: Now, bytes: usize) {
        self.passed += bytes;
        self.last_active = now.tick();
    }

    /// Gives the pages of empty rings back: after a pause, and in between once enough has passed,
    /// as a ring is walked round by whatever little goes through it. Returns when to look again.
    fn give_back(&mut self, now: Now) -> Option<Tick> {
        if self.passed == 0 {
            return None;
        }
        let idle_at = self.last_active + IDLE_MS;
        let is_idle = now.tick() >= idle_at;
        let is_walked = self.passed >= WALKED_BYTES && now.tick() >= self.given_back_at + WALK_MS;
        if !is_idle && !is_walked {
            return Some(idle_at);
        }
        // What is held out of order does not show in the socket's queues.
        let is_whole = self.received_up_to == self.acknowledged;
        if is_whole && self.socket.discard_empty() {
            self.passed = 0;
            self.given_back_at = now.tick();
        }
        (!is_idle).then_some(idle_at)
    }

    /// Ends the outer connection as the inner one ended.
    pub(super) fn finish(mut self) {
        if !(self.host_ended && self.host_told) {
            self.stream.reset();
        }
    }

    /// Takes the stream back from an inner connection that was refused.
    pub(super) fn into_stream(self) -> (S, Readiness) {
        (self.stream, self.readiness)
    }
}

fn configure(socket: &mut Socket<'_>) {
    // Nothing is lost or late between here and the inside but what the inside has no room for,
    // and that the window says.
    socket.set_congestion_control(CongestionControl::None);
    socket.set_nagle_enabled(false);
    socket.set_ack_delay(Some(ACK_DELAY));
    socket.set_timeout(Some(HANDSHAKE_TIMEOUT));
    // Always: without time stamps, the kernel inside answers a SYN to a port that is in TIME-WAIT
    // with an ACK, and the connection starts a second late.
    socket.set_tsval_generator(Some(clock::timestamp));
}
