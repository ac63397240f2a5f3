//! Indexes of any content, for `crate::fuzzing`.

use super::MergedIndex;
use super::format::{
    Counts, ENTRY_SIZE, EXTENT_SIZE, Image, Kind, NODE_SIZE, Summary, XATTR_SIZE, encode_header,
};

/// An index whose body is the bytes after the first four, behind a header with the right checksums. The
/// four say how many records of each kind there are; what is left over is strings.
pub(crate) fn image(bytes: &[u8], kind: Kind) -> Option<Image> {
    let (counts, body) = bytes.split_first_chunk::<4>()?;
    let mut left = body.len();
    let mut section = |count: u8, size: usize| {
        let count = usize::from(count).min(left / size);
        left -= count * size;
        count as u64
    };
    let nodes = section(counts[0], NODE_SIZE);
    let entries = section(counts[1], ENTRY_SIZE);
    let extents = section(counts[2], EXTENT_SIZE);
    let xattrs = section(counts[3], XATTR_SIZE);
    let counts = Counts { nodes, entries, extents, xattrs, strings: left as u64 };
    let header = encode_header(Summary { kind, layers: 1, total_size: 1 }, counts, body);
    let image = Image::from_vec([&header, body].concat(), kind).ok()?;
    assert!(image.verify().is_ok());
    Some(image)
}

pub(crate) fn index_of(image: Image) -> MergedIndex {
    MergedIndex { image }
}
