//! The few words of D-Bus that it takes to ask systemd for something: one connection, one question at a time.
//!
//! Why not a crate: those that are well kept bring an asynchronous runtime, threads and some fifty dependencies with
//! them, into a process that has to fork afterwards; what is needed is one call with strings, numbers and
//! arrays in it. The format is the D-Bus Specification's, "Message Protocol" and "Authentication Protocol".
//!
//! What the other end sends is checked against `MAX_MESSAGE_BYTES` before it is read, and every length in
//! it before it is used; a time limit is on every read and write.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use thiserror::Error;

/// How long the other end may take for anything: systemd answers at once, unless the machine is starved.
const PATIENCE: Duration = Duration::from_secs(10);
/// The largest message that is read. Answers have some hundred bytes; the specification allows 128 MiB.
const MAX_MESSAGE_BYTES: usize = 1 << 20;
/// Messages that are passed over while an answer is waited for: signals that nobody asked for.
const MAX_OTHERS: usize = 1000;
/// The fixed part of a message's header.
const HEAD_BYTES: usize = 16;

const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum DbusError {
    /// The connection.
    #[error("the message bus does not answer")]
    Io(#[from] io::Error),
    /// It does not let this user in.
    #[error("the message bus refuses this user: {0}")]
    Refused(String),
    /// Not this protocol.
    #[error("the message bus said something that is no message")]
    Malformed,
    /// The answer is an error.
    #[error("{name}: {text}")]
    Answer {
        /// Its name.
        name: String,
        /// What it says.
        text: String,
    },
}

/// A method call's arguments, as they are written (little-endian).
#[derive(Debug, Default)]
pub struct Body {
    bytes: Vec<u8>,
}

impl Body {
    /// A 32-bit number, or a truth value.
    pub fn number(&mut self, value: u32) {
        self.align(4);
        self.bytes.extend(value.to_le_bytes());
    }

    /// A string, or an object path.
    pub fn text(&mut self, text: &str) {
        // No text of ours comes near 4 GiB; one that did would be cut short and refused by the other end.
        self.number(u32::try_from(text.len()).unwrap_or(u32::MAX));
        self.bytes.extend(text.as_bytes());
        self.bytes.push(0);
    }

    /// A type signature.
    pub fn signature(&mut self, text: &str) {
        self.bytes.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
        self.bytes.extend(text.as_bytes());
        self.bytes.push(0);
    }

    /// A variant: the signature of what it holds, and that.
    pub fn variant(&mut self, signature: &str, write: impl FnOnce(&mut Self)) {
        self.signature(signature);
        write(self);
    }

    /// A structure, or an entry of a dictionary.
    pub fn structure(&mut self, write: impl FnOnce(&mut Self)) {
        self.align(8);
        write(self);
    }

    /// An array whose elements begin at multiples of `alignment`.
    pub fn array(&mut self, alignment: usize, write: impl FnOnce(&mut Self)) {
        self.number(0);
        let length_at = self.bytes.len() - 4;
        self.align(alignment);
        let start = self.bytes.len();
        write(self);
        // The padding before the first element does not count.
        let length = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        self.bytes[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
    }

    fn align(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }
}

/// Where a method is.
#[derive(Clone, Copy, Debug)]
pub struct Method<'a> {
    /// Whose; empty where the other end itself is meant.
    pub destination: &'a str,
    /// Of which object.
    pub path: &'a str,
    /// In which interface.
    pub interface: &'a str,
    /// Its name.
    pub name: &'a str,
    /// What its arguments are.
    pub signature: &'a str,
}

/// A connection.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    serial: u32,
}

/// The bus's own method that gives a connection its name, before which it may say nothing else.
const HELLO: Method<'_> = Method {
    destination: "org.freedesktop.DBus",
    path: "/org/freedesktop/DBus",
    interface: "org.freedesktop.DBus",
    name: "Hello",
    signature: "",
};

impl Connection {
    /// Connects to a message bus as the user `uid`.
    ///
    /// # Errors
    /// Nobody listens, or does not let this user in.
    pub fn to_bus(path: &Path, uid: u32) -> Result<Self, DbusError> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut connection = Self { stream, serial: 0 };
        connection.authenticate(uid)?;
        connection.call(&HELLO, &Body::default())?;
        Ok(connection)
    }

    /// `EXTERNAL`: the kernel tells the other end who this is.
    fn authenticate(&mut self, uid: u32) -> Result<(), DbusError> {
        /// Of a line of the other end's: they have some forty bytes.
        const MAX_LINE_BYTES: usize = 1024;
        let digits: String = uid.to_string().bytes().map(|digit| format!("{digit:02x}")).collect();
        write!(self.stream, "\0AUTH EXTERNAL {digits}\r\n")?;
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            self.stream.read_exact(&mut byte)?;
            line.push(byte[0]);
            if line.len() > MAX_LINE_BYTES {
                return Err(DbusError::Malformed);
            }
        }
        if !line.starts_with(b"OK ") {
            return Err(DbusError::Refused(String::from_utf8_lossy(&line).trim().to_owned()));
        }
        Ok(self.stream.write_all(b"BEGIN\r\n")?)
    }

    /// Calls a method and waits until it is done; what it answers besides that is of no use here.
    ///
    /// # Errors
    /// The connection breaks; the method's own errors.
    pub fn call(&mut self, method: &Method<'_>, body: &Body) -> Result<(), DbusError> {
        self.serial += 1;
        self.stream.write_all(&message(method, body, self.serial))?;
        for _ in 0..MAX_OTHERS {
            let answer = self.receive()?;
            if answer.reply_to == Some(self.serial) {
                return match answer.kind {
                    METHOD_RETURN => Ok(()),
                    ERROR => Err(DbusError::Answer { name: answer.error, text: answer.text }),
                    _ => Err(DbusError::Malformed),
                };
            }
        }
        Err(DbusError::Malformed)
    }

    fn receive(&mut self) -> Result<Incoming, DbusError> {
        let mut head = [0; HEAD_BYTES];
        self.stream.read_exact(&mut head)?;
        let number =
            |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]) as usize;
        let (body, fields) = (number(4), number(12));
        if head[0] != b'l' || body > MAX_MESSAGE_BYTES || fields > MAX_MESSAGE_BYTES {
            return Err(DbusError::Malformed);
        }
        let mut rest = vec![0; fields.next_multiple_of(8) + body];
        self.stream.read_exact(&mut rest)?;
        parse(head[1], &rest[..fields], &rest[fields.next_multiple_of(8)..]).ok_or(DbusError::Malformed)
    }
}

/// A whole message.
fn message(method: &Method<'_>, body: &Body, serial: u32) -> Vec<u8> {
    let mut head = Body { bytes: vec![b'l', METHOD_CALL, 0, 1] };
    head.number(u32::try_from(body.bytes.len()).unwrap_or(u32::MAX));
    head.number(serial);
    // Codes of the header's fields: path 1, interface 2, member 3, destination 6, signature 8.
    let texts = [
        (1, "o", method.path),
        (2, "s", method.interface),
        (3, "s", method.name),
        (6, "s", method.destination),
    ];
    head.array(8, |fields| {
        for (code, kind, text) in texts.into_iter().filter(|(.., text)| !text.is_empty()) {
            fields.structure(|field| {
                field.bytes.push(code);
                field.variant(kind, |value| value.text(text));
            });
        }
        if !method.signature.is_empty() {
            fields.structure(|field| {
                field.bytes.push(8);
                field.variant("g", |value| value.signature(method.signature));
            });
        }
    });
    head.align(8);
    head.bytes.extend(&body.bytes);
    head.bytes
}

/// What is needed of a message that came.
#[derive(Debug, Default, PartialEq, Eq)]
struct Incoming {
    kind: u8,
    reply_to: Option<u32>,
    error: String,
    /// The first argument, where it is a string: what an error says.
    text: String,
}

fn parse(kind: u8, fields: &[u8], body: &[u8]) -> Option<Incoming> {
    let mut incoming = Incoming { kind, ..Incoming::default() };
    let mut reader = Reader { bytes: fields, at: 0 };
    let mut signature = String::new();
    while reader.at < fields.len() {
        reader.align(8);
        let code = reader.byte()?;
        let value = reader.signature()?;
        match (code, value.as_str()) {
            (4, "s") => incoming.error = reader.text()?,
            (5, "u") => incoming.reply_to = Some(reader.number()?),
            (8, "g") => signature = reader.signature()?,
            (_, "s" | "o") => drop(reader.text()?),
            (_, "u") => drop(reader.number()?),
            (_, "g") => drop(reader.signature()?),
            _ => return None,
        }
    }
    if signature.starts_with('s') {
        incoming.text = Reader { bytes: body, at: 0 }.text()?;
    }
    Some(incoming)
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, count: usize) -> Option<&[u8]> {
        let end = self.at.checked_add(count)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn number(&mut self) -> Option<u32> {
        self.align(4);
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn text(&mut self) -> Option<String> {
        let length = usize::try_from(self.number()?).ok()?;
        self.string(length)
    }

    fn signature(&mut self) -> Option<String> {
        let length = usize::from(self.byte()?);
        self.string(length)
    }

    /// Text, and the NUL after it.
    fn string(&mut self, length: usize) -> Option<String> {
        let text = String::from_utf8(self.take(length)?.to_vec()).ok()?;
        (self.byte()? == 0).then_some(text)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    const PING: Method<'_> =
        Method { destination: "a.b", path: "/c", interface: "d.e", name: "Ping", signature: "sau" };

    /// Written down from the specification, byte by byte.
    #[test]
    fn a_call_is_written_as_the_specification_says() {
        let mut body = Body::default();
        body.text("hi");
        body.array(4, |array| array.number(7));
        let bytes = message(&PING, &body, 2);
        let expected: Vec<u8> = [
            b"l\x01\x00\x01\x10\x00\x00\x00\x02\x00\x00\x00\x49\x00\x00\x00".as_slice(),
            b"\x01\x01o\x00\x02\x00\x00\x00/c\x00\x00\x00\x00\x00\x00",
            b"\x02\x01s\x00\x03\x00\x00\x00d.e\x00\x00\x00\x00\x00",
            b"\x03\x01s\x00\x04\x00\x00\x00Ping\x00\x00\x00\x00",
            b"\x06\x01s\x00\x03\x00\x00\x00a.b\x00\x00\x00\x00\x00",
            b"\x08\x01g\x00\x03sau\x00\x00\x00\x00\x00\x00\x00\x00",
            b"\x02\x00\x00\x00hi\x00\x00\x04\x00\x00\x00\x07\x00\x00\x00",
        ]
        .concat();
        assert_eq!(bytes, expected);
    }

    /// Another end that says `answers`, one a call, and gives back what it was sent.
    fn bus(answers: Vec<Vec<u8>>) -> (tempfile::TempDir, thread::JoinHandle<()>) {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("bus")).unwrap();
        let serve = move || {
            let (mut stream, _) = listener.accept().unwrap();
            // It may come in pieces.
            let mut line = [0; b"\0AUTH EXTERNAL 31303030\r\n".len()];
            stream.read_exact(&mut line).unwrap();
            assert_eq!(&line, b"\0AUTH EXTERNAL 31303030\r\n");
            stream.write_all(b"OK 0123\r\n").unwrap();
            let mut begin = [0; 7];
            stream.read_exact(&mut begin).unwrap();
            for answer in answers {
                let mut head = [0; HEAD_BYTES];
                stream.read_exact(&mut head).unwrap();
                let number = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap()) as usize;
                let mut rest = vec![0; number(12).next_multiple_of(8) + number(4)];
                stream.read_exact(&mut rest).unwrap();
                stream.write_all(&answer).unwrap();
            }
        };
        (dir, thread::spawn(serve))
    }

    fn answer(kind: u8, reply_to: u32, error: &str, text: &str) -> Vec<u8> {
        let mut body = Body::default();
        if !text.is_empty() {
            body.text(text);
        }
        let mut head = Body { bytes: vec![b'l', kind, 0, 1] };
        head.number(u32::try_from(body.bytes.len()).unwrap());
        head.number(9);
        head.array(8, |fields| {
            fields.structure(|field| {
                field.bytes.push(5);
                field.variant("u", |value| value.number(reply_to));
            });
            if !error.is_empty() {
                fields.structure(|field| {
                    field.bytes.push(4);
                    field.variant("s", |value| value.text(error));
                });
                fields.structure(|field| {
                    field.bytes.push(8);
                    field.variant("g", |value| value.signature("s"));
                });
            }
        });
        head.align(8);
        head.bytes.extend(&body.bytes);
        head.bytes
    }

    #[test]
    fn answers_and_errors_are_told_apart() {
        // A signal before the answer is passed over.
        let second = [answer(4, 0, "", ""), answer(METHOD_RETURN, 2, "", "")].concat();
        let third = answer(ERROR, 3, "org.example.No", "not today");
        let (dir, server) = bus(vec![answer(METHOD_RETURN, 1, "", ""), second, third]);
        let mut connection = Connection::to_bus(&dir.path().join("bus"), 1000).unwrap();
        connection.call(&PING, &Body::default()).unwrap();
        let error = connection.call(&PING, &Body::default()).unwrap_err();
        assert_eq!(error.to_string(), "org.example.No: not today");
        server.join().unwrap();
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        let good = answer(METHOD_RETURN, 1, "", "");
        let mut huge = good.clone();
        huge[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        let mut bent = good.clone();
        bent[17] = 200; // a signature longer than the header
        let cut = good[..good.len() - 3].to_vec();
        for bad in [huge, bent, cut, b"BEGIN BEGIN BEGIN".to_vec()] {
            let (dir, server) = bus(vec![bad]);
            assert!(Connection::to_bus(&dir.path().join("bus"), 1000).is_err());
            server.join().unwrap();
        }
    }
}
