//! What the event loop waits for: an epoll instance and the names of its events.

use std::io;
use std::os::fd::AsFd;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::tcp::{FlowId, Readiness};

/// How many events one turn takes; the rest waits for the next.
const EVENTS_MAX: usize = 256;

/// What an event is about. The numbers are places in the owner's table; generations tell a late
/// event of a closed descriptor from one of its successor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token {
    /// The TUN device.
    Tun,
    /// The descriptor that ends the gateway.
    Stop,
    /// A published port's socket.
    Listener(u32),
    /// A TCP flow's outer connection.
    Flow(FlowId),
    /// A UDP mapping's socket.
    Udp(FlowId),
    /// A ping mapping's socket.
    Ping(FlowId),
    /// A DNS query's socket.
    Dns(FlowId),
}

impl Token {
    fn encode(self) -> u64 {
        let (kind, index, generation) = match self {
            Self::Tun => (0, 0, 0),
            Self::Stop => (1, 0, 0),
            Self::Listener(index) => (2, index, 0),
            Self::Flow(id) => (3, id.index, id.generation),
            Self::Udp(id) => (4, id.index, id.generation),
            Self::Ping(id) => (5, id.index, id.generation),
            Self::Dns(id) => (6, id.index, id.generation),
        };
        kind << 56 | u64::from(generation & 0xff_ffff) << 32 | u64::from(index)
    }

    fn decode(data: u64) -> Option<Self> {
        let id = FlowId { index: data as u32, generation: (data >> 32) as u32 & 0xff_ffff };
        Some(match data >> 56 {
            0 => Self::Tun,
            1 => Self::Stop,
            2 => Self::Listener(id.index),
            3 => Self::Flow(id),
            4 => Self::Udp(id),
            5 => Self::Ping(id),
            6 => Self::Dns(id),
            _ => return None,
        })
    }
}

/// One event.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Event {
    pub(crate) token: Token,
    pub(crate) readiness: Readiness,
}

/// How often an event is told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trigger {
    /// While there is something to read.
    Level,
    /// When something changes, for reading and writing.
    Edge,
}

pub(crate) struct Poller {
    epoll: Epoll,
}

impl Poller {
    pub(crate) fn new() -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Self { epoll })
    }

    /// Adds a descriptor. Closing it removes it.
    pub(crate) fn add(&self, fd: impl AsFd, token: Token, trigger: Trigger) -> io::Result<()> {
        let flags = match trigger {
            Trigger::Level => EpollFlags::EPOLLIN,
            Trigger::Edge => {
                EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET
            }
        };
        Ok(self.epoll.add(fd, EpollEvent::new(flags, token.encode()))?)
    }

    /// Removes a descriptor that stays open.
    pub(crate) fn remove(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(self.epoll.delete(fd)?)
    }

    /// Waits up to so many milliseconds, or for ever, and appends what happened.
    pub(crate) fn wait(&self, events: &mut Vec<Event>, timeout_ms: Option<u64>) -> io::Result<()> {
        let timeout = match timeout_ms {
            None => EpollTimeout::NONE,
            Some(ms) => EpollTimeout::try_from(ms.min(u64::from(u16::MAX))).unwrap_or(EpollTimeout::MAX),
        };
        let mut buffer = [EpollEvent::empty(); EVENTS_MAX];
        let count = match self.epoll.wait(&mut buffer, timeout) {
            Ok(count) => count,
            Err(nix::Error::EINTR) => 0,
            Err(errno) => return Err(errno.into()),
        };
        for event in &buffer[..count] {
            let Some(token) = Token::decode(event.data()) else {
                debug_assert!(false, "only tokens are registered");
                continue;
            };
            let flags = event.events();
            let ended = EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
            let hangup = flags.intersects(ended);
            events.push(Event {
                token,
                readiness: Readiness {
                    readable: hangup || flags.contains(EpollFlags::EPOLLIN),
                    writable: flags.contains(EpollFlags::EPOLLOUT),
                    hangup,
                },
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_kernel() {
        let id = FlowId { index: u32::MAX, generation: 0xff_ffff };
        for token in [
            Token::Tun,
            Token::Stop,
            Token::Listener(7),
            Token::Flow(id),
            Token::Udp(id),
            Token::Ping(id),
            Token::Dns(id),
        ] {
            assert_eq!(Token::decode(token.encode()), Some(token));
        }
        assert_eq!(Token::decode(u64::MAX), None);
    }
}
