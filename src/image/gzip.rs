//! gzip (RFC 1952) of bytes whose digest is checked anyway: without the CRC-32.
//!
//! A layer of a registry is hashed as it comes and again as it is uncompressed, by SHA-256, and nothing of it is visible
//! before both are right. The checksum in its gzip members could only say the same once more, and costs a fifth of the
//! thread that everything else waits for. Everything but the checksum is held to: headers, lengths, ends.

use std::io::{self, BufRead, Read};

use flate2::bufread::DeflateDecoder;

const MAGIC_AND_DEFLATE: [u8; 3] = [0x1f, 0x8b, 8];
const HEADER_CRC: u8 = 1 << 1;
const EXTRA: u8 = 1 << 2;
const NAME: u8 = 1 << 3;
const COMMENT: u8 = 1 << 4;
const RESERVED: u8 = 0b1110_0000;
/// Of a name or a comment: a path has 4096 bytes at most, and nobody reads either.
const MAX_TEXT_BYTES: u64 = 1 << 16;

/// Reads one member after the other; whoever uses it checks a digest of what goes in or of what comes out.
pub(super) struct VerifiedGzip<R> {
    decoder: DeflateDecoder<R>,
    next: Next,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    FirstHeader,
    Data,
    HeaderOrEnd,
}

impl<R: BufRead> VerifiedGzip<R> {
    pub(super) fn new(input: R) -> Self {
        Self { decoder: DeflateDecoder::new(input), next: Next::FirstHeader }
    }

    /// What is left of the input.
    pub(super) fn get_mut(&mut self) -> &mut R {
        self.decoder.get_mut()
    }
}

impl<R: BufRead> Read for VerifiedGzip<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if self.next == Next::Data {
                match self.decoder.read(buffer)? {
                    0 => end(self.decoder.total_out(), self.decoder.get_mut())?,
                    count => return Ok(count),
                }
                self.next = Next::HeaderOrEnd;
            }
            if self.next == Next::HeaderOrEnd && self.decoder.get_mut().fill_buf()?.is_empty() {
                return Ok(0);
            }
            header(self.decoder.get_mut())?;
            self.decoder.reset_data();
            self.next = Next::Data;
        }
    }
}

/// Section 2.3: from the magic to the first byte of the data.
fn header(input: &mut impl BufRead) -> io::Result<()> {
    let mut fixed = [0; 10];
    input.read_exact(&mut fixed)?;
    let flags = fixed[3];
    if fixed[..3] != MAGIC_AND_DEFLATE || flags & RESERVED != 0 {
        return Err(invalid("invalid gzip header"));
    }
    if flags & EXTRA != 0 {
        let mut length = [0; 2];
        input.read_exact(&mut length)?;
        skip(input, u16::from_le_bytes(length).into())?;
    }
    for text in [NAME, COMMENT] {
        if flags & text != 0 {
            let mut bytes = Vec::new();
            input.by_ref().take(MAX_TEXT_BYTES).read_until(0, &mut bytes)?;
            if bytes.last() != Some(&0) {
                return Err(invalid("a text of a gzip header does not end"));
            }
        }
    }
    if flags & HEADER_CRC != 0 {
        skip(input, 2)?;
    }
    Ok(())
}

/// The checksum, which is passed over, and the length.
fn end(read: u64, input: &mut impl BufRead) -> io::Result<()> {
    let mut trailer = [0; 8];
    input.read_exact(&mut trailer)?;
    let [_, _, _, _, length @ ..] = trailer;
    // Modulo 2^32.
    if u32::from_le_bytes(length) == read as u32 {
        Ok(())
    } else {
        Err(invalid("a gzip member has another length"))
    }
}

fn skip(input: &mut impl BufRead, bytes: u64) -> io::Result<()> {
    let skipped = io::copy(&mut input.take(bytes), &mut io::sink())?;
    if skipped == bytes { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::io::Write as _;

    use flate2::{Compression, GzBuilder};

    use super::*;

    fn read(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        VerifiedGzip::new(bytes).read_to_end(&mut out)?;
        Ok(out)
    }

    fn member(text: &[u8], header: GzBuilder) -> Vec<u8> {
        let mut encoder = header.write(Vec::new(), Compression::default());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn members_with_every_kind_of_header_are_read_one_after_the_other() {
        let long = vec![b'l'; 300_000];
        let full = GzBuilder::new().filename("name").comment("comment").extra(vec![7; 300]).mtime(9);
        let mut with_crc = member(b"crc", GzBuilder::new());
        with_crc[3] |= HEADER_CRC;
        with_crc.splice(10..10, [1, 2]);
        let members =
            [member(&long, full), member(b"", GzBuilder::new()), with_crc, member(b"end", GzBuilder::new())];
        assert_eq!(read(&members.concat()).unwrap(), [&long[..], b"crcend"].concat());
    }

    #[test]
    fn everything_but_the_checksum_is_held_to() {
        let good = member(b"hello hello hello", GzBuilder::new().filename("name"));
        for length in 0..good.len() {
            let error = read(&good[..length]).expect_err("cut short");
            assert!(
                matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData),
                "{length}: {error}"
            );
        }
        let changed = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            read(&bytes)
        };
        assert_eq!(changed(good.len() - 8, 0).unwrap(), b"hello hello hello");
        for (at, byte) in [(0, 0), (2, 7), (3, 0x80), (good.len() - 4, 0), (good.len() - 1, 1)] {
            assert_eq!(changed(at, byte).expect_err("wrong").kind(), io::ErrorKind::InvalidData, "{at}");
        }
        let behind = [&good[..], b"not a header"].concat();
        assert_eq!(read(&behind).expect_err("rubbish").kind(), io::ErrorKind::InvalidData);
        let endless = [&[0x1f, 0x8b, 8, NAME, 0, 0, 0, 0, 0, 0][..], &[b'n'; 100_000]].concat();
        assert_eq!(read(&endless).expect_err("endless").kind(), io::ErrorKind::InvalidData);
    }
}
