//! Packing: from a layer's tar stream to its index, in one pass.
//!
//! A layer is kept as its uncompressed tar, whole; the index says what is in it and where. The
//! caller feeds the bytes through [`index_tar`] while it writes them to the layer's file and
//! hashes them, so nothing is read twice. What an archive may not hold (`..`, entries below a
//! symlink, more than the [`Limits`]) is refused here, so that whoever reads an index need not
//! ask again.

mod builder;
mod header;
mod pax;
mod sparse;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, Write};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use tar::EntryType;

use self::builder::Builder;
use self::header::{BLOCK, Fields, HeaderError};
use crate::index::tree::Xattr;
use crate::index::{Extent, Image, IndexError, Kind, MergeError, Timestamp, render};

/// What an archive may ask for. Each limit is far above what images hold and low enough that an
/// archive made to exhaust memory fails early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Entries in one archive. The largest images seen have about a million; an entry costs
    /// about 300 bytes of memory while its layer is packed.
    pub entries: u64,
    /// Bytes in one name: `NAME_MAX` of Linux.
    pub name_bytes: usize,
    /// Bytes in one path or link target: `PATH_MAX` of Linux. A longer path cannot be opened.
    pub path_bytes: usize,
    /// Names in one path: half of `PATH_MAX`, what a path of one-letter names can have.
    pub depth: usize,
    /// Bytes of PAX or GNU extension data before one entry. Xattrs are the largest: a value can
    /// have 64 KiB on Linux.
    pub extension_bytes: usize,
    /// Bytes in the values of one file's xattrs: as much as Linux takes in one value.
    pub xattr_bytes: usize,
    /// Runs of data in one sparse file.
    pub sparse_runs: usize,
    /// Bytes in all names, targets and xattrs of one archive: they are held in memory.
    pub text_bytes: u64,
    /// Bytes in one file, holes included: what ext4 can hold with 4 KiB blocks.
    pub file_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 8_000_000,
            name_bytes: 255,
            path_bytes: 4096,
            depth: 2048,
            extension_bytes: 1 << 20,
            xattr_bytes: 1 << 16,
            sparse_runs: 1 << 20,
            text_bytes: 1 << 30,
            file_bytes: 1 << 44,
        }
    }
}

/// Why an archive is not taken as a layer. Offsets count uncompressed bytes.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The stream failed.
    #[error("cannot read the layer")]
    Read(#[source] io::Error),
    /// The stream ends inside an entry.
    #[error("the layer ends in the middle of an entry at byte {offset}: it has been cut short")]
    Truncated {
        /// Where.
        offset: u64,
    },
    /// A header is not one.
    #[error("no tar header at byte {offset} of the layer ({reason}): it is damaged or not a tar archive")]
    Header {
        /// Where.
        offset: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A path with `..` in it.
    #[error("the layer holds {path:?}: paths with \"..\" are refused")]
    ParentPath {
        /// The path.
        path: PathBuf,
    },
    /// An entry below a symlink of the same layer.
    #[error("the layer holds {path:?} below the symbolic link {link:?}: such paths are refused")]
    BelowSymlink {
        /// The path.
        path: PathBuf,
        /// The symlink.
        link: PathBuf,
    },
    /// An entry below something that is neither directory nor symlink.
    #[error("the layer holds {path:?}, but {parent:?} is not a directory")]
    BelowFile {
        /// The path.
        path: PathBuf,
        /// What is no directory.
        parent: PathBuf,
    },
    /// A name with a NUL, a whiteout of nothing, a root that is no directory, an empty target.
    #[error("the layer holds {path:?}: {reason}")]
    Name {
        /// The path.
        path: PathBuf,
        /// What is wrong.
        reason: &'static str,
    },
    /// A hard link to a directory.
    #[error("the layer holds {path:?} as a hard link to the directory {target:?}")]
    LinkToDirectory {
        /// The link.
        path: PathBuf,
        /// The directory.
        target: PathBuf,
    },
    /// A kind of entry that images do not have.
    #[error("the layer holds {path:?} of the unknown kind {kind:?}")]
    Kind {
        /// The path.
        path: PathBuf,
        /// The type byte.
        kind: char,
    },
    /// A field of an entry, from its header or its extensions.
    #[error("the layer holds {path:?} with a bad {field}")]
    Field {
        /// The path.
        path: PathBuf,
        /// Which field.
        field: &'static str,
    },
    /// More than the [`Limits`] allow.
    #[error("the layer exceeds the limit of {limit} {what} at {path:?}")]
    Limit {
        /// The path.
        path: PathBuf,
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// The tree does not fit an index.
    #[error("the layer does not fit an index")]
    Index(#[source] MergeError),
}

/// Reads an uncompressed layer up to its end-of-archive marker and returns its index.
///
/// Bytes after the marker are left in `tar`; whoever hashes the layer must drain them.
///
/// # Errors
/// [`PackError`]. Nothing of the archive's content can cause a panic.
pub fn index_tar<R: BufRead>(tar: R, limits: &Limits) -> Result<LayerIndex, PackError> {
    let mut archive = Archive { tar, offset: 0, limits: *limits, global: Extensions::default() };
    let mut builder = Builder::new(*limits);
    while let Some(entry) = archive.next_entry()? {
        builder.add(entry)?;
    }
    let tree = builder.finish()?;
    let bytes = render(&tree, Kind::Layer, 1).map_err(PackError::Index)?;
    let image = Image::from_vec(bytes, Kind::Layer).map_err(|_| PackError::Index(MergeError::TooLarge))?;
    Ok(LayerIndex { image })
}

/// The index of one layer: its own files and what it hides in the layers below.
#[derive(Debug)]
pub struct LayerIndex {
    image: Image,
}

impl LayerIndex {
    /// Writes the index file's bytes. To make it durable and visible at once (sync, rename) is
    /// the caller's part.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write_to(&self, mut file: impl Write) -> io::Result<()> {
        file.write_all(self.image.bytes())
    }

    /// Maps a layer's index and checks its header and body.
    ///
    /// # Errors
    /// [`IndexError`]; all but `Read` mean that the index should be made again from the layer.
    pub fn open(file: &File) -> Result<Self, IndexError> {
        let image = Image::map(file, Kind::Layer)?;
        image.verify()?;
        Ok(Self { image })
    }

    /// Whether this is the index of an uncompressed layer, which is read to its end-of-archive
    /// marker.
    ///
    /// # Errors
    /// As [`index_tar`].
    pub fn describes<R: BufRead>(&self, tar: R, limits: &Limits) -> Result<bool, PackError> {
        Ok(index_tar(tar, limits)?.image.bytes() == self.image.bytes())
    }

    /// How many files, directories and other nodes the layer has; hard links count once.
    pub fn entry_count(&self) -> u64 {
        self.image.counts().nodes
    }

    /// The sum of the sizes of all regular files in bytes.
    pub fn total_size(&self) -> u64 {
        self.image.summary().total_size
    }

    pub(crate) fn image(&self) -> &Image {
        &self.image
    }

    #[cfg(any(test, fuzzing))]
    pub(crate) fn from_image(image: Image) -> Self {
        Self { image }
    }
}

/// An archive's entry with all that extensions say about it.
#[derive(Debug)]
struct Entry {
    kind: EntryType,
    path: Vec<u8>,
    link: Vec<u8>,
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: Timestamp,
    rdev: u32,
    size: u64,
    extents: Vec<Extent>,
    xattrs: Vec<Xattr>,
}

/// What extension headers (PAX, GNU long names) say about the entry after them.
#[derive(Clone, Debug, Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<Timestamp>,
    xattrs: Vec<Xattr>,
    sparse: sparse::Pax,
    /// Bytes of extension data so far, for the limit.
    bytes: usize,
}

struct Archive<R> {
    tar: R,
    offset: u64,
    limits: Limits,
    global: Extensions,
}

impl<R: BufRead> Archive<R> {
    /// The next entry with its data passed over, or None at the end of the archive.
    fn next_entry(&mut self) -> Result<Option<Entry>, PackError> {
        let mut extensions = self.global.clone();
        loop {
            let at = self.offset;
            let Some(block) = self.header_block()? else {
                // Extensions without an entry after them are cut off, not ended.
                return if extensions.bytes > self.global.bytes {
                    Err(PackError::Truncated { offset: at })
                } else {
                    Ok(None)
                };
            };
            let fields = header::parse(&block).map_err(|error| PackError::Header {
                offset: at,
                reason: match error {
                    HeaderError::Checksum => "its checksum is wrong",
                    HeaderError::Number(field) => field,
                },
            })?;
            match fields.kind {
                // Solaris wrote X for what became x.
                kind if kind == EntryType::XHeader || kind.as_byte() == b'X' => {
                    let data = self.extension(&fields, &mut extensions)?;
                    self.pax(&data, &mut extensions, &fields.name)?;
                }
                EntryType::XGlobalHeader => {
                    let mut global = std::mem::take(&mut self.global);
                    global.bytes = 0;
                    let data = self.extension(&fields, &mut global)?;
                    self.pax(&data, &mut global, &fields.name)?;
                    self.global = global.clone();
                    extensions = global;
                }
                EntryType::GNULongName => {
                    let data = self.extension(&fields, &mut extensions)?;
                    extensions.path = Some(header::text(&data).to_vec());
                }
                EntryType::GNULongLink => {
                    let data = self.extension(&fields, &mut extensions)?;
                    extensions.link = Some(header::text(&data).to_vec());
                }
                // A volume label: a name for the archive, not a file.
                kind if kind.as_byte() == b'V' => {}
                _ => return self.entry(&block, fields, extensions).map(Some),
            }
        }
    }

    /// The next header block; None at the end of the archive, marked or not.
    fn header_block(&mut self) -> Result<Option<[u8; BLOCK]>, PackError> {
        let mut block = [0; BLOCK];
        let at = self.offset;
        if !self.read_block(&mut block)? {
            return Ok(None);
        }
        if block.iter().any(|byte| *byte != 0) {
            return Ok(Some(block));
        }
        // The marker is two blocks of zeros; a stream may also end after one.
        if !self.read_block(&mut block)? || block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        Err(PackError::Header { offset: at, reason: "a block of zeros amid the entries" })
    }

    /// Reads a block; false where the stream ends before its first byte.
    fn read_block(&mut self, block: &mut [u8; BLOCK]) -> Result<bool, PackError> {
        let mut filled = 0;
        while filled < BLOCK {
            match self.tar.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(PackError::Truncated { offset: self.offset + filled as u64 }),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(PackError::Read(error)),
            }
        }
        self.offset += BLOCK as u64;
        Ok(true)
    }

    /// A block that must be there.
    fn need_block(&mut self) -> Result<[u8; BLOCK], PackError> {
        let mut block = [0; BLOCK];
        if self.read_block(&mut block)? {
            Ok(block)
        } else {
            Err(PackError::Truncated { offset: self.offset })
        }
    }

    /// Reads an extension's data whole.
    fn extension(&mut self, fields: &Fields, extensions: &mut Extensions) -> Result<Vec<u8>, PackError> {
        let limit = self.limits.extension_bytes;
        let size = usize::try_from(fields.size)
            .map_err(|_| PackError::Field { path: lossless(&fields.name), field: "size" })?;
        extensions.bytes = extensions.bytes.saturating_add(size.max(1));
        if extensions.bytes > limit {
            let path = lossless(&fields.name);
            return Err(PackError::Limit { path, what: "bytes of extension headers", limit: limit as u64 });
        }
        let mut data = Vec::with_capacity(size);
        while data.len() < size {
            let block = self.need_block()?;
            data.extend_from_slice(&block[..BLOCK.min(size - data.len())]);
        }
        Ok(data)
    }

    fn pax(&self, data: &[u8], extensions: &mut Extensions, name: &[u8]) -> Result<(), PackError> {
        for record in pax::records(data) {
            let (key, value) = record
                .map_err(|_| PackError::Field { path: lossless(name), field: "extended header record" })?;
            extensions
                .set(key, value, &self.limits)
                .map_err(|field| PackError::Field { path: lossless(name), field })?;
        }
        Ok(())
    }

    /// Puts header and extensions together and passes over the data.
    fn entry(
        &mut self,
        block: &[u8; BLOCK],
        fields: Fields,
        extensions: Extensions,
    ) -> Result<Entry, PackError> {
        let Extensions { path, link, size, uid, gid, mtime, xattrs, sparse: pax_sparse, .. } = extensions;
        let path = pax_sparse.name.clone().or(path).unwrap_or(fields.name);
        let bad = |field| PackError::Field { path: lossless(&path), field };
        let id = |pax: Option<u64>, field: i64, name| {
            let value = pax.or_else(|| u64::try_from(field).ok()).ok_or_else(|| bad(name))?;
            // 2^32-1 is "no id" to chown(2) and cannot own a file.
            u32::try_from(value).ok().filter(|id| *id != u32::MAX).ok_or_else(|| bad(name))
        };
        let mut entry = Entry {
            kind: fields.kind,
            link: link.unwrap_or(fields.link),
            mode: fields.mode,
            uid: id(uid, fields.uid, "uid")?,
            gid: id(gid, fields.gid, "gid")?,
            mtime: mtime.unwrap_or(fields.mtime),
            rdev: device(fields.major, fields.minor).ok_or_else(|| bad("device number"))?,
            size: 0,
            extents: Vec::new(),
            xattrs,
            path: Vec::new(),
        };
        if has_data(fields.kind) {
            let stored = size.or_else(|| u64::try_from(fields.size).ok()).ok_or_else(|| bad("size"))?;
            let limit = self.limits.file_bytes;
            if stored > limit {
                return Err(PackError::Limit { path: lossless(&path), what: "bytes in a file", limit });
            }
            let map = self.sparse_map(block, fields.kind, &pax_sparse, stored, &path)?;
            if map.size > limit {
                return Err(PackError::Limit { path: lossless(&path), what: "bytes in a file", limit });
            }
            entry.size = map.size;
            entry.extents = map.extents(self.offset);
            self.skip(map.stored)?;
        }
        entry.path = path;
        Ok(entry)
    }

    fn sparse_map(
        &mut self,
        block: &[u8; BLOCK],
        kind: EntryType,
        pax: &sparse::Pax,
        stored: u64,
        path: &[u8],
    ) -> Result<sparse::Map, PackError> {
        let bad = || PackError::Field { path: lossless(path), field: "sparse map" };
        let limit = self.limits.sparse_runs;
        let mut reader = sparse::Reader::new(stored, limit);
        if kind == EntryType::GNUSparse {
            let mut more = reader.old_gnu(block).ok_or_else(bad)?;
            while more {
                let block = self.need_block()?;
                more = reader.old_gnu_extension(&block).ok_or_else(bad)?;
            }
        } else if pax.is_version_1() {
            while reader.version_1_wants_block() {
                let block = self.need_block()?;
                reader.version_1_block(&block).ok_or_else(bad)?;
            }
            reader.version_1_end(pax).ok_or_else(bad)?;
        } else if pax.is_sparse() {
            reader.version_0(pax).ok_or_else(bad)?;
        } else {
            return Ok(sparse::Map::whole(stored));
        }
        reader.finish().ok_or_else(bad)
    }

    /// Passes over data and its padding, which nobody copies.
    fn skip(&mut self, length: u64) -> Result<(), PackError> {
        let mut left = length.next_multiple_of(BLOCK as u64);
        while left > 0 {
            match self.tar.fill_buf().map(<[u8]>::len) {
                // Padding after the last file's data may be missing, as Go allows.
                Ok(0) if left < BLOCK as u64 && left <= length.next_multiple_of(BLOCK as u64) - length => {
                    break;
                }
                Ok(0) => return Err(PackError::Truncated { offset: self.offset }),
                Ok(ready) => {
                    let count = usize::try_from(left).unwrap_or(usize::MAX).min(ready);
                    self.tar.consume(count);
                    self.offset += count as u64;
                    left -= count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(PackError::Read(error)),
            }
        }
        Ok(())
    }
}

impl Extensions {
    /// Takes in one PAX record; an empty value takes an earlier one back. Returns the name of
    /// the field where the value is bad.
    fn set(&mut self, key: &[u8], value: &[u8], limits: &Limits) -> Result<(), &'static str> {
        let empty = value.is_empty();
        let number = |field| if empty { Ok(None) } else { pax::decimal(value).map(Some).ok_or(field) };
        match key {
            b"path" => self.path = (!empty).then(|| value.to_vec()),
            b"linkpath" => self.link = (!empty).then(|| value.to_vec()),
            b"size" => self.size = number("size")?,
            b"uid" => self.uid = number("uid")?,
            b"gid" => self.gid = number("gid")?,
            b"mtime" => self.mtime = if empty { None } else { Some(pax::time(value).ok_or("mtime")?) },
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    return self.set_xattr(name, value, limits);
                } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                    let value = pax::base64_decode(value).ok_or("extended attribute")?;
                    return self.set_xattr(&pax::percent_decode(name), &value, limits);
                } else if let Some(name) = key.strip_prefix(b"GNU.sparse.") {
                    return self.sparse.set(name, value, limits.sparse_runs);
                }
            }
        }
        Ok(())
    }

    fn set_xattr(&mut self, name: &[u8], value: &[u8], limits: &Limits) -> Result<(), &'static str> {
        if name.is_empty() || name.len() > limits.name_bytes || name.contains(&0) {
            return Err("extended attribute");
        }
        match self.xattrs.binary_search_by(|(known, _)| (**known).cmp(name)) {
            Ok(at) => self.xattrs[at].1 = value.into(),
            Err(at) => self.xattrs.insert(at, (name.into(), value.into())),
        }
        let total: usize = self.xattrs.iter().map(|(_, value)| value.len()).sum();
        if total > limits.xattr_bytes { Err("amount of extended attributes") } else { Ok(()) }
    }
}

/// Whether data follows an entry's header. Links, devices and directories have none, whatever
/// their size field says; so have Go and GNU tar.
fn has_data(kind: EntryType) -> bool {
    !matches!(
        kind,
        EntryType::Link
            | EntryType::Symlink
            | EntryType::Char
            | EntryType::Block
            | EntryType::Directory
            | EntryType::Fifo
    )
}

/// A device number as the kernel's `new_encode_dev`: 12 bits of major, 20 of minor.
fn device(major: i64, minor: i64) -> Option<u32> {
    let major = u32::try_from(major).ok().filter(|major| *major < 1 << 12)?;
    let minor = u32::try_from(minor).ok().filter(|minor| *minor < 1 << 20)?;
    Some((minor & 0xff) | major << 8 | (minor & !0xff) << 12)
}

/// A path from an archive, for messages.
fn lossless(path: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(path.to_vec()))
}
