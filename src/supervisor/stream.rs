//! The attach stream between a client and a container's server: frames over a stream socket.
//!
//! `kind (1 byte) | length (4 bytes, little endian) | payload`. Output flows to the client, input,
//! its end and the window's size to the server. Either side may close at any time.

/// Bytes before a payload.
pub const HEADER_BYTES: usize = 5;
/// The largest payload: what one read of a pipe gives.
pub const MAX_PAYLOAD_BYTES: usize = 64 << 10;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Client to server: bytes for stdin.
    Stdin = 0,
    /// Server to client: from stdout, or the terminal.
    Stdout = 1,
    /// Server to client: from stderr.
    Stderr = 2,
    /// Client to server: stdin has ended.
    StdinEnd = 3,
    /// Client to server: rows and columns, two bytes each, little endian.
    Resize = 4,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Stdin, Self::Stdout, Self::Stderr, Self::StdinEnd, Self::Resize]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// Appends a frame; a longer payload becomes several.
pub fn append(out: &mut Vec<u8>, kind: Kind, payload: &[u8]) {
    let mut one = |payload: &[u8]| {
        out.push(kind as u8);
        out.extend((payload.len() as u32).to_le_bytes());
        out.extend(payload);
    };
    if payload.is_empty() {
        one(payload);
    }
    payload.chunks(MAX_PAYLOAD_BYTES).for_each(&mut one);
}

/// A frame that is not of this protocol.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the other side does not speak the attach protocol")]
pub struct BadFrame;

/// Takes the first whole frame off the front of `buffer`: its kind, its payload's place, and how many
/// bytes to drop afterwards. `None` when more has to arrive.
///
/// # Errors
/// [`BadFrame`] for an unknown kind or a length beyond [`MAX_PAYLOAD_BYTES`].
pub fn parse(buffer: &[u8]) -> Result<Option<(Kind, std::ops::Range<usize>)>, BadFrame> {
    let Some((header, _)) = buffer.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let [kind, length @ ..] = *header;
    let kind = Kind::from_byte(kind).ok_or(BadFrame)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_PAYLOAD_BYTES {
        return Err(BadFrame);
    }
    let end = HEADER_BYTES + length;
    Ok((buffer.len() >= end).then_some((kind, HEADER_BYTES..end)))
}

/// The payload of a [`Kind::Resize`].
#[must_use]
pub fn size_payload(rows: u16, columns: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (rows.to_le_bytes(), columns.to_le_bytes());
    [a, b, c, d]
}

/// Reads what [`size_payload`] wrote.
#[must_use]
pub fn parse_size(payload: &[u8]) -> Option<(u16, u16)> {
    let [a, b, c, d] = *<&[u8; 4]>::try_from(payload).ok()?;
    Some((u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_the_trip_in_any_pieces() {
        let mut wire = Vec::new();
        append(&mut wire, Kind::Stdout, &[7; MAX_PAYLOAD_BYTES + 1]);
        append(&mut wire, Kind::StdinEnd, &[]);
        append(&mut wire, Kind::Resize, &size_payload(24, 80));
        let (mut buffer, mut seen) = (Vec::new(), Vec::new());
        for piece in wire.chunks(1000) {
            buffer.extend(piece);
            while let Some((kind, range)) = parse(&buffer).expect("our own frames") {
                seen.push((kind, buffer[range.clone()].to_vec()));
                buffer.drain(..range.end);
            }
        }
        assert!(buffer.is_empty());
        let lengths: Vec<_> = seen.iter().map(|(kind, payload)| (*kind, payload.len())).collect();
        assert_eq!(
            lengths,
            [(Kind::Stdout, MAX_PAYLOAD_BYTES), (Kind::Stdout, 1), (Kind::StdinEnd, 0), (Kind::Resize, 4)]
        );
        assert_eq!(parse_size(&seen[3].1), Some((24, 80)));
    }

    #[test]
    fn foreign_bytes_are_refused() {
        assert_eq!(parse(b"GET / HTTP"), Err(BadFrame));
        assert_eq!(parse(&[1, 0, 0, 0, 1]), Err(BadFrame));
        assert_eq!(parse(&[1, 0]), Ok(None));
    }
}
