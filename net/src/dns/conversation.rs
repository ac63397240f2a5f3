//! A TCP connection from inside with the name server: messages with their length in front
//! (RFC 1035, 4.2.2; RFC 7766), held in memory between the flow and the forwarder.

use std::collections::VecDeque;
use std::io;

use super::MESSAGE_BYTES_MAX;

/// Queries of one conversation that may wait for their answers.
const UNANSWERED_MAX: usize = 16;

/// Bytes that are held before the flow is told to wait: one message and a bit.
const INBOX_BYTES_MAX: usize = MESSAGE_BYTES_MAX + 4_096;

/// See the module. For the flow it is a stream: it reads answers and writes queries.
#[derive(Debug, Default)]
pub(crate) struct Conversation {
    inbox: Vec<u8>,
    outbox: VecDeque<u8>,
    unanswered: usize,
    /// The inside has sent its end.
    ended: bool,
    told_over: bool,
}

impl Conversation {
    /// Takes bytes from inside.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = INBOX_BYTES_MAX - self.inbox.len();
        let count = room.min(bytes.len());
        if count == 0 && !bytes.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.inbox.extend(&bytes[..count]);
        Ok(count)
    }

    /// Notes that the inside sends no more.
    pub(crate) fn end(&mut self) {
        self.ended = true;
    }

    /// Gives bytes to the inside.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.outbox.is_empty() && !(self.ended && self.unanswered == 0) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let count = self.outbox.len().min(buffer.len());
        for (to, from) in buffer.iter_mut().zip(self.outbox.drain(..count)) {
            *to = from;
        }
        Ok(count)
    }

    /// The next whole query, unless too many wait already. Each must be answered once.
    pub(crate) fn next_query(&mut self) -> Option<Vec<u8>> {
        let &[high, low] = self.inbox.get(..2)? else {
            return None;
        };
        let end = 2 + usize::from(u16::from_be_bytes([high, low]));
        if self.inbox.len() < end || self.unanswered >= UNANSWERED_MAX {
            return None;
        }
        let message = self.inbox[2..end].to_vec();
        self.inbox.drain(..end);
        self.unanswered += 1;
        Some(message)
    }

    /// Answers a query; an empty message answers one that deserves none.
    pub(crate) fn answer(&mut self, message: &[u8]) {
        self.unanswered = self.unanswered.saturating_sub(1);
        if !message.is_empty() {
            self.outbox.extend((message.len() as u16).to_be_bytes());
            self.outbox.extend(message);
        }
    }

    /// Whether the inside has ended and every query has its answer, so that the flow must look:
    /// true once.
    pub(crate) fn take_over(&mut self) -> bool {
        let is_over = self.ended && self.unanswered == 0 && !self.told_over;
        self.told_over |= is_over;
        is_over
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

    use super::*;

    #[test]
    fn queries_are_cut_out_of_the_stream() {
        let mut conversation = Conversation::default();
        for byte in [0, 2, b'a', b'b', 0, 1] {
            conversation.write(&[byte]).unwrap();
        }
        assert_eq!(conversation.next_query().as_deref(), Some(&b"ab"[..]));
        assert_eq!(conversation.next_query(), None);
        conversation.write(b"c").unwrap();
        assert_eq!(conversation.next_query().as_deref(), Some(&b"c"[..]));

        let mut buffer = [0; 8];
        let would_block = |result: io::Result<usize>| result.unwrap_err().kind() == io::ErrorKind::WouldBlock;
        assert!(would_block(conversation.read(&mut buffer)));
        conversation.answer(b"xyz");
        conversation.end();
        assert_eq!(conversation.read(&mut buffer).unwrap(), 5);
        assert_eq!(buffer[..5], [0, 3, b'x', b'y', b'z']);
        assert!(would_block(conversation.read(&mut buffer)));
        conversation.answer(&[]);
        assert!(conversation.take_over());
        assert!(!conversation.take_over());
        assert_eq!(conversation.read(&mut buffer).unwrap(), 0);
    }

    #[test]
    fn an_inside_that_does_not_wait_for_answers_is_made_to() {
        let mut conversation = Conversation::default();
        let query = [0, 1, b'q'].repeat(100);
        conversation.write(&query).unwrap();
        let taken = std::iter::from_fn(|| conversation.next_query()).count();
        assert_eq!(taken, UNANSWERED_MAX);
        let big = vec![0; 2 * INBOX_BYTES_MAX];
        let room = conversation.write(&big).unwrap();
        assert!(room < big.len());
        assert_eq!(conversation.write(&big).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
