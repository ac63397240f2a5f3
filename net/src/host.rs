//! The host's side of TCP flows: sockets of the kernel, and the gateway's own name server.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::device::Unreachable;
use crate::dns::Conversation;
use crate::policy::{Policy, Verdict};
use crate::poll::{Poller, Token, Trigger};
use crate::tcp::{FlowId, Host, Refusal, Stream};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, connect, setsockopt, socket, sockopt,
};

/// TCP conversations with the name server at once. Resolvers use UDP and fall back to this.
const CONVERSATIONS_MAX: usize = 128;

/// After this many seconds without traffic the host's kernel asks whether the peer is still
/// there, so that a peer that vanished does not hold a flow for ever.
const KEEP_ALIVE_IDLE_S: u32 = 120;

/// For connections within the host, best first. Linux always allows the second.
const LOCAL_CONGESTION_CONTROLS: [&str; 2] = ["cubic", "reno"];

/// The outer end of a flow.
pub(crate) enum HostStream {
    Socket(TcpStream),
    NameServer(SharedConversation),
}

/// A conversation that both its flow and the name server hold.
pub(crate) type SharedConversation = Arc<Mutex<Conversation>>;

/// Locks a conversation; nothing that holds it can panic half way through a change.
pub(crate) fn lock(conversation: &SharedConversation) -> MutexGuard<'_, Conversation> {
    conversation.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stream for HostStream {
    fn connected(&mut self) -> io::Result<()> {
        match self {
            Self::Socket(socket) => match socket.take_error()? {
                None => Ok(()),
                Some(error) => Err(error),
            },
            Self::NameServer(_) => Ok(()),
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Socket(socket) => socket.read(buffer),
            Self::NameServer(conversation) => lock(conversation).read(buffer),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Socket(socket) => socket.write(bytes),
            Self::NameServer(conversation) => lock(conversation).write(bytes),
        }
    }

    fn shutdown_write(&mut self) {
        match self {
            // It fails where the peer has reset the connection; reading tells.
            Self::Socket(socket) => _ = socket.shutdown(Shutdown::Write),
            Self::NameServer(conversation) => lock(conversation).end(),
        }
    }

    fn reset(&mut self) {
        if let Self::Socket(socket) = self {
            let linger = libc::linger { l_onoff: 1, l_linger: 0 };
            // Without it the peer sees an orderly end; that is all that could go wrong.
            _ = setsockopt(socket, sockopt::Linger, &linger);
        }
    }
}

/// Opens outer connections where policy allows.
pub(crate) struct KernelHost {
    poller: Arc<Poller>,
    policy: Policy,
    conversations: Vec<(FlowId, SharedConversation)>,
    /// Flows to call ready, as no epoll event will.
    woken: Vec<FlowId>,
    pub(crate) prohibited: u64,
}

impl KernelHost {
    pub(crate) fn new(poller: Arc<Poller>, policy: Policy) -> Self {
        Self { poller, policy, conversations: Vec::new(), woken: Vec::new(), prohibited: 0 }
    }

    /// The conversations with the name server; those whose flow has ended are forgotten.
    pub(crate) fn conversations(&mut self) -> &[(FlowId, SharedConversation)] {
        self.conversations.retain(|(_, conversation)| Arc::strong_count(conversation) > 1);
        &self.conversations
    }

    /// Flows whose connect was over at once.
    pub(crate) fn take_woken(&mut self) -> Vec<FlowId> {
        std::mem::take(&mut self.woken)
    }

    /// Makes a flow's stream of a client that a [prepared](prepare_listener) socket has accepted.
    /// `bound` is the latter's address.
    pub(crate) fn adopt(
        &self,
        id: FlowId,
        socket: TcpStream,
        bound: SocketAddr,
        client: SocketAddr,
    ) -> io::Result<HostStream> {
        socket.set_nonblocking(true)?;
        if !bound.ip().is_loopback() && is_of_this_host(&socket, client) {
            choose_local_congestion_control(&socket);
        }
        self.watch(id, socket)
    }

    fn watch(&self, id: FlowId, socket: TcpStream) -> io::Result<HostStream> {
        self.poller.add(&socket, Token::Flow(id), Trigger::Edge)?;
        Ok(HostStream::Socket(socket))
    }

    fn connect_socket(&self, id: FlowId, to: SocketAddr) -> io::Result<HostStream> {
        let family = match to {
            SocketAddr::V4(_) => AddressFamily::Inet,
            SocketAddr::V6(_) => AddressFamily::Inet6,
        };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(family, SockType::Stream, flags, None)?;
        prepare(&socket);
        if to.ip().is_loopback() {
            // Before the connect: what is chosen later starts with what the first one has learnt.
            choose_local_congestion_control(&socket);
        }
        match connect(socket.as_raw_fd(), &SockaddrStorage::from(to)) {
            Ok(()) | Err(nix::Error::EINPROGRESS) => {}
            Err(errno) => return Err(errno.into()),
        }
        self.watch(id, socket.into())
    }
}

/// Settings for a published port. Whoever is accepted inherits them, which saves as many system
/// calls a client.
pub(crate) fn prepare_listener(socket: &TcpListener) {
    prepare(socket);
    if socket.local_addr().is_ok_and(|own| own.ip().is_loopback()) {
        choose_local_congestion_control(socket);
    }
}

/// Settings that make a stream better and whose lack does no harm.
fn prepare(socket: &impl AsFd) {
    _ = setsockopt(socket, sockopt::TcpNoDelay, &true);
    // An urgent byte would be missing from the stream otherwise; the inside gets it in its place.
    _ = setsockopt(socket, sockopt::OobInline, &true);
    _ = setsockopt(socket, sockopt::KeepAlive, &true);
    _ = setsockopt(socket, sockopt::TcpKeepIdle, &KEEP_ALIVE_IDLE_S);
}

/// Whether a client is the host itself, by its loopback or another of its addresses.
fn is_of_this_host(socket: &TcpStream, client: SocketAddr) -> bool {
    client.ip().is_loopback() || socket.local_addr().is_ok_and(|own| own.ip() == client.ip())
}

/// Takes bbr away from a path within the host: it paces what needs no pacing, and costs more than
/// half of the speed. Towards other machines the host's choice stays.
fn choose_local_congestion_control(socket: &impl AsFd) {
    for name in LOCAL_CONGESTION_CONTROLS {
        // One that the host does not allow is refused; the last resort is what the host has.
        if setsockopt(socket, sockopt::TcpCongestion, &OsString::from(name)).is_ok() {
            return;
        }
    }
}

impl Host for KernelHost {
    type Stream = HostStream;

    fn connect(&mut self, id: FlowId, to: SocketAddr) -> Result<HostStream, Refusal> {
        match self.policy.judge(to) {
            Verdict::Forward(to) => self.connect_socket(id, to).map_err(|error| Refusal::of(&error)),
            Verdict::NameServer => {
                if self.conversations.len() >= CONVERSATIONS_MAX {
                    return Err(Refusal::Reset);
                }
                let conversation = SharedConversation::default();
                self.conversations.push((id, Arc::clone(&conversation)));
                self.woken.push(id);
                Ok(HostStream::NameServer(conversation))
            }
            Verdict::Nothing => Err(Refusal::Reset),
            Verdict::Prohibited => {
                self.prohibited += 1;
                Err(Refusal::Unreachable(Unreachable::Prohibited))
            }
        }
    }
}
