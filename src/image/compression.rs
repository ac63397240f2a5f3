//! Uncompressing, by what a stream is rather than by what it is called.

use std::io::{self, BufReader, Chain, Cursor, Read};

use bzip2::bufread::MultiBzDecoder;
use flate2::bufread::MultiGzDecoder;
use lzma_rust2::XzReader;

use super::gzip::VerifiedGzip;

/// Bytes asked for at once from what is compressed.
const INPUT_BYTES: usize = 256 << 10;
/// The largest zstd window that is accepted, as a power of two: zstd's own default, 128 MiB.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;
/// What an xz stream may need: twice what `xz -9` does (64 MiB for its dictionary).
const XZ_MEMORY_KIB: u32 = 128 << 10;

const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
const XZ: &[u8] = b"\xfd7zXZ\0";
const BZIP2: &[u8] = b"BZh";
const REFUSED: &[(&[u8], &str)] = &[(b"\x04\x22\x4d\x18", "lz4")];

type Input<'a> = BufReader<Chain<Cursor<Vec<u8>>, Box<dyn Read + 'a>>>;

/// Reads a stream that is gzip (several members too), zstd, xz, bzip2 or plain. Registries have the first
/// two; archives for `load` and `import` come in all of them.
pub(super) enum Decoder<'a> {
    Plain(Chain<Cursor<Vec<u8>>, Box<dyn Read + 'a>>),
    Gzip(Box<MultiGzDecoder<Input<'a>>>),
    VerifiedGzip(Box<VerifiedGzip<Input<'a>>>),
    Zstd(zstd::Decoder<'static, Input<'a>>),
    Xz(Box<XzReader<Input<'a>>>),
    Bzip2(Box<MultiBzDecoder<Input<'a>>>),
}

impl<'a> Decoder<'a> {
    /// Looks at the first bytes and chooses.
    pub(super) fn new(input: Box<dyn Read + 'a>) -> io::Result<Self> {
        Self::choose(input, false)
    }

    /// As [`Self::new`], for a stream whose digest is checked: a checksum besides is passed over where that is cheaper.
    pub(super) fn of_verified(input: Box<dyn Read + 'a>) -> io::Result<Self> {
        Self::choose(input, true)
    }

    fn choose(mut input: Box<dyn Read + 'a>, is_verified: bool) -> io::Result<Self> {
        let mut magic = Vec::with_capacity(6);
        input.by_ref().take(6).read_to_end(&mut magic)?;
        if let Some((_, name)) = REFUSED.iter().find(|(refused, _)| magic.starts_with(refused)) {
            let reason = format!(
                "it is compressed with {name}, which is not supported: gzip, zstd, xz, bzip2 or none is"
            );
            return Err(io::Error::new(io::ErrorKind::Unsupported, reason));
        }
        let kind = magic.clone();
        let input = Cursor::new(magic).chain(input);
        let buffered = |input| BufReader::with_capacity(INPUT_BYTES, input);
        if kind.starts_with(GZIP) && is_verified {
            Ok(Self::VerifiedGzip(Box::new(VerifiedGzip::new(buffered(input)))))
        } else if kind.starts_with(GZIP) {
            Ok(Self::Gzip(Box::new(MultiGzDecoder::new(buffered(input)))))
        } else if kind.starts_with(ZSTD) {
            let mut decoder = zstd::Decoder::with_buffer(buffered(input))?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            Ok(Self::Zstd(decoder))
        } else if kind.starts_with(XZ) {
            Ok(Self::Xz(Box::new(XzReader::new_mem_limit(buffered(input), true, XZ_MEMORY_KIB))))
        } else if kind.starts_with(BZIP2) {
            Ok(Self::Bzip2(Box::new(MultiBzDecoder::new(buffered(input)))))
        } else {
            Ok(Self::Plain(input))
        }
    }

    /// Whether these first bytes are of anything but a plain stream.
    pub(super) fn is_compressed(magic: &[u8]) -> bool {
        [GZIP, ZSTD, XZ, BZIP2]
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
            Self::VerifiedGzip(decoder) => io::copy(decoder.get_mut(), &mut io::sink()),
            Self::Zstd(decoder) => io::copy(decoder.get_mut(), &mut io::sink()),
            Self::Xz(decoder) => io::copy(decoder.inner_mut(), &mut io::sink()),
            Self::Bzip2(decoder) => io::copy(decoder.get_mut(), &mut io::sink()),
        }
        .map(drop)
    }
}

impl Read for Decoder<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(input) => input.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer),
            Self::VerifiedGzip(decoder) => decoder.read(buffer),
            Self::Zstd(decoder) => decoder.read(buffer),
            Self::Xz(decoder) => decoder.read(buffer),
            Self::Bzip2(decoder) => decoder.read(buffer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `hello` as xz writes it, with a dictionary of 256 MiB, and as bzip2 does.
    const XZ_HELLO: &[u8] = b"\xfd7zXZ\x00\x00\x04\xe6\xd6\xb4F\x02\x00!\x01\x16\x00\x00\x00t/\xe5\xa3\x01\x00\x04hello\x00\x00\x00\x00\xb17\xb9\xdb\xe5\xda\x1e\x9b\x00\x01\x1d\x05\xb8-\x80\xaf\x1f\xb6\xf3}\x01\x00\x00\x00\x00\x04YZ";
    const XZ_LARGE: &[u8] = b"\xfd7zXZ\x00\x00\x04\xe6\xd6\xb4F\x02\x00!\x01 \x00\x00\x00\x09\x88\xa5v\x01\x00\x04hello\x00\x00\x00\x00\xb17\xb9\xdb\xe5\xda\x1e\x9b\x00\x01\x1d\x05\xb8-\x80\xaf\x1f\xb6\xf3}\x01\x00\x00\x00\x00\x04YZ";
    const BZIP2_HELLO: &[u8] = b"BZh91AY&SY\x191e=\x00\x00\x00\x81\x00\x02D\xa0\x00!\x9ah3M\x073\x8b\xb9\x22\x9c(H\x0c\x98\xb2\x9e\x80";

    fn read(bytes: &[u8]) -> io::Result<String> {
        let mut decoder = Decoder::new(Box::new(bytes))?;
        let mut text = String::new();
        decoder.read_to_string(&mut text)?;
        decoder.drain()?;
        Ok(text)
    }

    #[test]
    fn xz_and_bzip2_are_read_whole_and_several_after_each_other() {
        for packed in [XZ_HELLO, BZIP2_HELLO] {
            assert!(Decoder::is_compressed(packed));
            assert_eq!(read(packed).ok().as_deref(), Some("hello"));
            assert_eq!(read(&[packed, packed].concat()).ok().as_deref(), Some("hellohello"));
            assert!(read(&packed[..packed.len() - 6]).is_err(), "cut short");
        }
    }

    #[test]
    fn a_dictionary_that_would_take_the_memory_is_refused() {
        assert_eq!(read(XZ_LARGE).expect_err("refused").kind(), io::ErrorKind::OutOfMemory);
    }
}
