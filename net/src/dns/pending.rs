//! A query that was forwarded and waits for its answer.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket};

use super::message::{self, Query, Response, ResponseCode};
use super::{Asker, MESSAGE_BYTES_MAX, Reply};
use crate::tcp::Readiness;

/// Every server is asked twice, within so many attempts.
const ROUNDS: usize = 2;
const ATTEMPTS_MAX: usize = 6;

/// Datagrams that are read for one event; others than the answer are forgeries or late.
const DATAGRAMS_MAX: usize = 8;

/// See the module.
pub(super) struct Pending {
    pub(super) asker: Asker,
    query: Query,
    /// As it came, with its own identification.
    message: Box<[u8]>,
    /// The identification under which it was sent.
    sent_id: u16,
    servers: Vec<SocketAddr>,
    attempt: usize,
    upstream: Upstream,
    /// What a server that declined said, in case all do.
    declined: Option<Vec<u8>>,
}

enum Upstream {
    None,
    Datagram(UdpSocket),
    Stream { socket: TcpStream, unsent: Vec<u8>, received: Vec<u8> },
}

/// What an event brought.
pub(super) enum Progress {
    /// Nothing yet.
    Wait,
    /// The answer, with the asker's identification.
    Answered(Vec<u8>),
    /// This server will not answer.
    Failed,
}

impl Pending {
    pub(super) fn new(asker: Asker, query: Query, message: &[u8], servers: Vec<SocketAddr>) -> Self {
        Self {
            asker,
            query,
            message: message.into(),
            sent_id: 0,
            servers,
            attempt: 0,
            upstream: Upstream::None,
            declined: None,
        }
    }

    /// The server to ask next, if there are attempts left.
    pub(super) fn next_server(&mut self) -> Option<SocketAddr> {
        let attempts = (self.servers.len() * ROUNDS).min(ATTEMPTS_MAX);
        if self.attempt >= attempts {
            return None;
        }
        let server = self.servers[self.attempt % self.servers.len()];
        self.attempt += 1;
        Some(server)
    }

    /// Sends the query in the way it came, and returns the socket that the answer will come to.
    pub(super) fn send(&mut self, server: SocketAddr, sent_id: u16) -> io::Result<BorrowedFd<'_>> {
        self.sent_id = sent_id;
        let mut message = self.message.to_vec();
        message::set_id(&mut message, sent_id);
        self.upstream = match self.asker {
            Asker::Datagram { .. } => {
                let socket = datagram_socket(server)?;
                socket.send(&message)?;
                Upstream::Datagram(socket)
            }
            Asker::Conversation { .. } => {
                let mut unsent = (message.len() as u16).to_be_bytes().to_vec();
                unsent.extend(message);
                Upstream::Stream { socket: start_connect(server)?, unsent, received: Vec::new() }
            }
        };
        match &self.upstream {
            Upstream::None => Err(io::ErrorKind::NotConnected.into()),
            Upstream::Datagram(socket) => Ok(socket.as_fd()),
            Upstream::Stream { socket, .. } => Ok(socket.as_fd()),
        }
    }

    /// Does what the socket is ready for.
    pub(super) fn progress(&mut self, readiness: Readiness, buffer: &mut [u8]) -> Progress {
        let received = match &mut self.upstream {
            Upstream::None => return Progress::Wait,
            Upstream::Datagram(socket) => receive_datagram(socket, self.sent_id, buffer),
            Upstream::Stream { socket, unsent, received } => {
                converse(socket, unsent, received, readiness, buffer)
            }
        };
        match received {
            Ok(None) => Progress::Wait,
            Err(_) => Progress::Failed,
            Ok(Some(mut answer)) => {
                let verdict = message::judge_response(&answer, self.sent_id);
                message::set_id(&mut answer, self.query.id);
                match verdict {
                    Response::Answer => Progress::Answered(answer),
                    Response::Failure => {
                        self.declined = Some(answer);
                        Progress::Failed
                    }
                    Response::Foreign => Progress::Failed,
                }
            }
        }
    }

    /// The answer when no server is left to ask.
    pub(super) fn into_failure(self) -> Reply {
        let message = self
            .declined
            .unwrap_or_else(|| self.query.answer_empty(&self.message, ResponseCode::ServerFailure));
        Reply { to: self.asker, message }
    }
}

/// A socket that takes datagrams of this server only.
fn datagram_socket(server: SocketAddr) -> io::Result<UdpSocket> {
    let any = match server {
        SocketAddr::V4(_) => SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0),
        SocketAddr::V6(_) => SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0),
    };
    let socket = UdpSocket::bind(any)?;
    socket.set_nonblocking(true)?;
    socket.connect(server)?;
    Ok(socket)
}

fn start_connect(server: SocketAddr) -> io::Result<TcpStream> {
    let family = match server {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(family, SockType::Stream, flags, None)?;
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(server)) {
        Ok(()) | Err(nix::Error::EINPROGRESS) => Ok(socket.into()),
        Err(errno) => Err(errno.into()),
    }
}

/// The first datagram that answers the identification.
fn receive_datagram(socket: &UdpSocket, id: u16, buffer: &mut [u8]) -> io::Result<Option<Vec<u8>>> {
    for _ in 0..DATAGRAMS_MAX {
        match socket.recv(buffer) {
            Ok(length) => {
                let message = &buffer[..length];
                if message::judge_response(message, id) != Response::Foreign {
                    return Ok(Some(message.to_vec()));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Sends the rest of the query and reads more of the answer.
fn converse(
    socket: &mut TcpStream,
    unsent: &mut Vec<u8>,
    received: &mut Vec<u8>,
    readiness: Readiness,
    buffer: &mut [u8],
) -> io::Result<Option<Vec<u8>>> {
    if !readiness.writable && !readiness.readable {
        return Ok(None);
    }
    while !unsent.is_empty() {
        match socket.write(unsent) {
            Ok(count) => drop(unsent.drain(..count)),
            Err(error) if is_not_yet(&error) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    loop {
        match socket.read(buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => received.extend(&buffer[..count]),
            Err(error) if is_not_yet(&error) => return Ok(None),
            Err(error) => return Err(error),
        }
        if let Some(&[high, low]) = received.get(..2) {
            let length = usize::from(u16::from_be_bytes([high, low]));
            if received.len() >= 2 + length {
                return Ok(Some(received[2..2 + length].to_vec()));
            }
        }
        if received.len() > MESSAGE_BYTES_MAX + 2 {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}

fn is_not_yet(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.kind() == io::ErrorKind::NotConnected
}
