//! The log driver journald: the container's lines in the machine's journal, by its native protocol.
//!
//! One datagram an entry, `FIELD=value` a line, or, for what may hold a newline, the field's name, a little-endian
//! length and the bytes (systemd's "Native Journal Protocol"). The fields are Docker's. The socket is connected
//! before the server's fence goes up, and stays connected when journald is restarted: systemd holds its other end.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use super::log::Stream;

/// Where journald listens.
const SOCKET: &str = "/run/systemd/journal/socket";
/// How long a line may wait for a journal that has no room, before it is given up; the container waits meanwhile,
/// as with Docker.
const PATIENCE: Duration = Duration::from_secs(5);
/// syslog(3): an informational message, and an error.
const PRIORITIES: [&str; 2] = ["6", "3"];

/// A container's place in the journal.
#[derive(Debug)]
pub struct Journal {
    socket: UnixDatagram,
    /// The fields that every entry has, written out.
    fields: Vec<u8>,
}

impl Journal {
    /// Connects to the journal of this machine.
    ///
    /// # Errors
    /// There is none.
    pub fn open<'a>(fields: impl IntoIterator<Item = (&'a str, &'a str)>) -> io::Result<Self> {
        Self::open_at(Path::new(SOCKET), fields)
    }

    fn open_at<'a>(path: &Path, fields: impl IntoIterator<Item = (&'a str, &'a str)>) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let mut text = Vec::new();
        for (name, value) in fields {
            // journald drops fields with other names, and those that begin with "_" are its own.
            if is_field_name(name) {
                put(&mut text, name, value.as_bytes());
            }
        }
        Ok(Self { socket, fields: text })
    }

    /// Writes a line, without its newline; `is_partial` where it goes on in the next entry.
    ///
    /// # Errors
    /// As send(2).
    pub fn write(&self, stream: Stream, line: &[u8], is_partial: bool) -> io::Result<()> {
        let mut entry = self.fields.clone();
        put(&mut entry, "PRIORITY", PRIORITIES[stream as usize].as_bytes());
        if is_partial {
            put(&mut entry, "CONTAINER_PARTIAL_MESSAGE", b"true");
        }
        put(&mut entry, "MESSAGE", line);
        self.socket.send(&entry).map(drop)
    }
}

/// A label or variable as a field: Docker's writes them in capitals.
#[must_use]
pub fn field_name(name: &str) -> String {
    let upper = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    name.chars().map(upper).skip_while(|c| *c == '_' || c.is_ascii_digit()).collect()
}

fn is_field_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_uppercase())
        && name.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
}

fn put(entry: &mut Vec<u8>, name: &str, value: &[u8]) {
    entry.extend(name.as_bytes());
    if value.contains(&b'\n') {
        entry.push(b'\n');
        entry.extend((value.len() as u64).to_le_bytes());
    } else {
        entry.push(b'=');
    }
    entry.extend(value);
    entry.push(b'\n');
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn entries_are_written_as_the_protocol_says() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let other = UnixDatagram::bind(&path).unwrap();
        let fields = [("CONTAINER_NAME", "web"), ("_UID", "0"), ("bad", "x"), ("TWO", "a\nb")];
        let journal = Journal::open_at(&path, fields).unwrap();
        journal.write(Stream::Stdout, b"hello", false).unwrap();
        journal.write(Stream::Stderr, b"a\nb", true).unwrap();
        let mut buffer = [0; 512];
        let mut next = || {
            let length = other.recv(&mut buffer).unwrap();
            String::from_utf8(buffer[..length].to_vec()).unwrap()
        };
        let head = "CONTAINER_NAME=web\nTWO\n\x03\0\0\0\0\0\0\0a\nb\n";
        assert_eq!(next(), format!("{head}PRIORITY=6\nMESSAGE=hello\n"));
        let tail = "PRIORITY=3\nCONTAINER_PARTIAL_MESSAGE=true\nMESSAGE\n\x03\0\0\0\0\0\0\0a\nb\n";
        assert_eq!(next(), format!("{head}{tail}"));
    }

    #[test]
    fn labels_become_fields() {
        for (name, field) in
            [("app", "APP"), ("com.example/a-b", "COM_EXAMPLE_A_B"), ("_1x", "X"), ("__", "")]
        {
            assert_eq!(field_name(name), field);
        }
    }
}
