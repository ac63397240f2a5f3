//! Uncompressing, by what a stream is rather than by what it is called.

use std::io::{self, BufReader, Chain, Cursor, Read};

use flate2::bufread::MultiGzDecoder;

/// Bytes asked for at once from what is compressed.
const INPUT_BYTES: usize = 256 << 10;
/// The largest zstd window that is accepted, as a power of two: zstd's own default, 128 MiB.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
const REFUSED: &[(&[u8], &str)] = &[(b"BZh", "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"\x04\x22\x4d\x18", "lz4")];

type Input<'a> = BufReader<Chain<Cursor<Vec<u8>>, Box<dyn Read + 'a>>>;

/// Reads a stream that is gzip (several members too), zstd or plain.
pub(super) enum Decoder<'a> {
    Plain(Chain<Cursor<Vec<u8>>, Box<dyn Read + 'a>>),
    Gzip(Box<MultiGzDecoder<Input<'a>>>),
    Zstd(zstd::Decoder<'static, Input<'a>>),
}

impl<'a> Decoder<'a> {
    /// Looks at the first bytes and chooses.
    pub(super) fn new(mut input: Box<dyn Read + 'a>) -> io::Result<Self> {
        let mut magic = Vec::with_capacity(6);
        input.by_ref().take(6).read_to_end(&mut magic)?;
        if let Some((_, name)) = REFUSED.iter().find(|(refused, _)| magic.starts_with(refused)) {
            let reason =
                format!("it is compressed with {name}, which is not supported: gzip, zstd or none is");
            return Err(io::Error::new(io::ErrorKind::Unsupported, reason));
        }
        let kind = magic.clone();
        let input = Cursor::new(magic).chain(input);
        if kind.starts_with(GZIP) {
            Ok(Self::Gzip(Box::new(MultiGzDecoder::new(BufReader::with_capacity(INPUT_BYTES, input)))))
        } else if kind.starts_with(ZSTD) {
            let mut decoder = zstd::Decoder::with_buffer(BufReader::with_capacity(INPUT_BYTES, input))?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            Ok(Self::Zstd(decoder))
        } else {
            Ok(Self::Plain(input))
        }
    }

    /// Whether these first bytes are of anything but a plain stream.
    pub(super) fn is_compressed(magic: &[u8]) -> bool {
        [GZIP, ZSTD]
            .iter()
            .chain(REFUSED.iter().map(|(refused, _)| refused))
            .any(|known| magic.starts_with(known))
    }

    pub(super) fn is_plain(&self) -> bool {
        matches!(self, Self::Plain(_))
    }

    /// What is left of the compressed stream after its last member.
    pub(super) fn drain(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(input) => io::copy(input, &mut io::sink()),
            Self::Gzip(decoder) => io::copy(decoder.get_mut(), &mut io::sink()),
            Self::Zstd(decoder) => io::copy(decoder.get_mut(), &mut io::sink()),
        }
        .map(drop)
    }
}

impl Read for Decoder<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(input) => input.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer),
            Self::Zstd(decoder) => decoder.read(buffer),
        }
    }
}
