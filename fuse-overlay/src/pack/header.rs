//! One tar header block: fields, numbers, checksum.
//!
//! Field positions come from the `tar` crate's header types; numbers are read here, because it
//! knows no negative base-256 ones and stops at what other writers pad differently. Where formats
//! are vague, Go's `archive/tar` decides: images are made by and for it.

use tar::{EntryType, Header};

use crate::index::Timestamp;

pub(super) const BLOCK: usize = 512;

/// A header block, decoded. Names are raw bytes up to the first NUL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fields {
    pub kind: EntryType,
    pub name: Vec<u8>,
    pub link: Vec<u8>,
    pub mode: u32,
    pub uid: i64,
    pub gid: i64,
    pub size: i64,
    pub mtime: Timestamp,
    pub major: i64,
    pub minor: i64,
}

/// What is wrong with a header block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeaderError {
    Checksum,
    Number(&'static str),
}

pub(super) fn parse(block: &[u8; BLOCK]) -> Result<Fields, HeaderError> {
    let header = Header::from_byte_slice(block);
    let old = header.as_old();
    let expected = number(&old.cksum).ok_or(HeaderError::Number("checksum"))?;
    if !checksums(block).contains(&expected) {
        return Err(HeaderError::Checksum);
    }
    let field = |bytes: &[u8], name| number(bytes).ok_or(HeaderError::Number(name));
    let mut fields = Fields {
        kind: header.entry_type(),
        name: text(&old.name).to_vec(),
        link: text(&old.linkname).to_vec(),
        mode: u32::try_from(field(&old.mode, "mode")? & 0o7777).unwrap_or(0),
        uid: field(&old.uid, "uid")?,
        gid: field(&old.gid, "gid")?,
        size: field(&old.size, "size")?,
        mtime: Timestamp { seconds: field(&old.mtime, "mtime")?, nanoseconds: 0 },
        major: 0,
        minor: 0,
    };
    let devices = match (header.as_ustar(), header.as_gnu()) {
        (Some(ustar), _) => {
            // The star format has times where the end of a ustar prefix would be.
            let star = &block[508..] == b"tar\0";
            let prefix = text(if star { &ustar.prefix[..131] } else { &ustar.prefix });
            if !prefix.is_empty() {
                fields.name = [prefix, b"/", &fields.name].concat();
            }
            Some((&ustar.dev_major, &ustar.dev_minor))
        }
        (None, Some(gnu)) => Some((&gnu.dev_major, &gnu.dev_minor)),
        (None, None) => None,
    };
    if let Some((major, minor)) = devices
        && matches!(fields.kind, EntryType::Char | EntryType::Block)
    {
        fields.major = field(major, "device major")?;
        fields.minor = field(minor, "device minor")?;
    }
    // Before ustar a directory was a file whose name ends in a slash.
    if block[156] == 0 && fields.name.ends_with(b"/") {
        fields.kind = EntryType::Directory;
    }
    Ok(fields)
}

/// Both sums in use: of unsigned bytes, as POSIX has it, and of signed ones, as some old tars do.
fn checksums(block: &[u8; BLOCK]) -> [i64; 2] {
    let sum = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    let negative = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(byte >> 7)).sum::<u32>();
    // The field of the sum itself counts as spaces.
    let field = &block[148..156];
    let unsigned = i64::from(sum(block) - sum(field) + 8 * u32::from(b' '));
    [unsigned, unsigned - 256 * i64::from(negative(block) - negative(field))]
}

/// A field up to its first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A numeric field: octal, padded with spaces or NULs on either side, or base-256 (first bit set,
/// two's complement, big-endian). An empty field is 0.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 != 0 {
        let negative = first & 0x40 != 0;
        let fill: u8 = if negative { 0xff } else { 0 };
        let top = if negative { first } else { first & 0x7f };
        let mut value: i128 = if negative { -1 } else { 0 };
        for (at, byte) in field.iter().enumerate() {
            let byte = if at == 0 { top } else { *byte };
            let in_range = value >= i128::from(i64::MIN) && value <= i128::from(i64::MAX);
            if !in_range && byte != fill {
                return None;
            }
            value = (value << 8) | i128::from(byte);
            if value > i128::from(i64::MAX) || value < i128::from(i64::MIN) {
                return None;
            }
        }
        return i64::try_from(value).ok();
    }
    let padding = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !padding(byte)).unwrap_or(field.len());
    let digits = field[start..].split(padding).next().unwrap_or_default();
    let rest = &field[start + digits.len()..];
    // After the terminator anything goes: old tars left rubbish there.
    let _ = rest;
    digits.iter().try_fold(0i64, |value, byte| match byte {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(byte - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sums_are_of_the_block_with_spaces_for_the_sum() {
        let mut block = [0; BLOCK];
        for (at, byte) in block.iter_mut().enumerate() {
            *byte = (at * 7 % 256) as u8;
        }
        let mut blank = block;
        blank[148..156].fill(b' ');
        let unsigned = blank.iter().map(|byte| i64::from(*byte)).sum();
        let signed = blank.iter().map(|byte| i64::from(byte.cast_signed())).sum();
        assert_eq!(checksums(&block), [unsigned, signed]);
    }

    #[test]
    fn numbers() {
        let cases: [(&[u8], Option<i64>); 16] = [
            (b"0000644\0", Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"644", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"77777777777\0", Some(0o77_777_777_777)),
            (b"777777777777", Some(0o777_777_777_777)),
            (b"0000008\0", None),
            (b"-000001\0", None),
            (b"\x80\0\0\0\0\0\0\x10", Some(16)),
            (b"\x80\0\0\0\0\0\0\0\0\0\x01\0", Some(256)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX)),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (b"\x80\x01\0\0\0\0\0\0\0\0\0\0", None),
        ];
        for (field, value) in cases {
            assert_eq!(number(field), value, "{field:?}");
        }
    }
}
