//! The changes an overlay consists of, and their form in the journal.
//!
//! A change says what is so from now on ("inode 7 has mode 0644", "the name x in directory 3 is
//! gone"), never what was done, so applying one twice does no harm and replaying needs no look
//! at the lower layers. All changes of one request form one record of the journal: they take
//! effect together or not at all.

use crate::index::Timestamp;
use crate::index::tree::Name;

/// Where a file's data is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Data {
    /// In the lower layer, or nowhere, as the file is no regular one.
    Lower,
    /// Nowhere: the file is empty.
    Empty,
    /// In the upper's object of the inode's number.
    Object,
    /// In the journal itself, as the last [`Change::Content`] has it.
    Inline,
}

/// The data of a small file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// About to be written.
    Bytes(Box<[u8]>),
    /// Where it lies in the journal.
    Stored(Stored),
}

/// A run of bytes in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub place: u64,
    pub length: u32,
}

/// All that the overlay keeps of an inode, save names, link target and xattrs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Meta {
    /// Type and permission bits, as `st_mode`.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    pub nlink: u32,
    /// Of a file with an object, size, atime and mtime are the object's own.
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    pub data: Data,
    /// A node of the lower layer of the same number stands behind this inode: a directory shows
    /// the lower names too, a file may have its data there.
    pub lower: bool,
}

impl Meta {
    pub(super) fn is_directory(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFDIR
    }

    pub(super) fn is_file(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFREG
    }
}

/// What the overlay says about a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EntryState {
    /// Nothing: the lower layer decides.
    Absent,
    /// It does not exist, whatever the lower layer has.
    Whiteout,
    /// It is this inode.
    Node(u64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// An inode has these attributes.
    Inode(u64, Meta),
    /// A symlink has this target.
    Target(u64, Box<[u8]>),
    /// A directory is in this one.
    Parent(u64, u64),
    /// A name in a directory means this.
    Entry(u64, Name, EntryState),
    /// An inode's xattrs are kept here from now on; none at first.
    OwnXattrs(u64),
    /// An xattr has this value, or is gone.
    Xattr(u64, Name, Option<Box<[u8]>>),
    /// A small file has this data.
    Content(u64, Content),
    /// The lower node of this number lies at this path (only where paths identify nodes).
    Origin(u64, Box<[u8]>),
}

const TAG_INODE: u8 = 1;
const TAG_TARGET: u8 = 2;
const TAG_PARENT: u8 = 3;
const TAG_ENTRY: u8 = 4;
const TAG_OWN_XATTRS: u8 = 5;
const TAG_XATTR: u8 = 6;
const TAG_ORIGIN: u8 = 7;
const TAG_CONTENT: u8 = 8;

impl Change {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Inode(ino, meta) => {
                head(out, TAG_INODE, *ino);
                for word in [meta.mode, meta.uid, meta.gid, meta.rdev, meta.nlink] {
                    out.extend_from_slice(&word.to_le_bytes());
                }
                for time in [meta.atime, meta.mtime, meta.ctime] {
                    out.extend_from_slice(&time.seconds.to_le_bytes());
                    out.extend_from_slice(&time.nanoseconds.to_le_bytes());
                }
                let data = match meta.data {
                    Data::Lower => 0,
                    Data::Empty => 1,
                    Data::Object => 2,
                    Data::Inline => 3,
                };
                out.extend_from_slice(&[data, u8::from(meta.lower)]);
            }
            Self::Target(ino, target) => {
                head(out, TAG_TARGET, *ino);
                bytes(out, target);
            }
            Self::Parent(ino, parent) => {
                head(out, TAG_PARENT, *ino);
                out.extend_from_slice(&parent.to_le_bytes());
            }
            Self::Entry(parent, name, state) => {
                head(out, TAG_ENTRY, *parent);
                bytes(out, name);
                let (state, ino) = match state {
                    EntryState::Absent => (0, 0),
                    EntryState::Whiteout => (1, 0),
                    EntryState::Node(ino) => (2, *ino),
                };
                out.push(state);
                out.extend_from_slice(&ino.to_le_bytes());
            }
            Self::OwnXattrs(ino) => head(out, TAG_OWN_XATTRS, *ino),
            Self::Xattr(ino, name, value) => {
                head(out, TAG_XATTR, *ino);
                bytes(out, name);
                out.push(u8::from(value.is_some()));
                bytes(out, value.as_deref().unwrap_or_default());
            }
            Self::Origin(ino, path) => {
                head(out, TAG_ORIGIN, *ino);
                bytes(out, path);
            }
            Self::Content(ino, Content::Bytes(content)) => {
                head(out, TAG_CONTENT, *ino);
                bytes(out, content);
            }
            // What lies in the journal already is not written again: a rewrite reads it first.
            Self::Content(_, Content::Stored(_)) => {}
        }
    }
}

fn head(out: &mut Vec<u8>, tag: u8, ino: u64) {
    out.push(tag);
    out.extend_from_slice(&ino.to_le_bytes());
}

fn bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    // Names, targets and values are limited far below 4 GiB where they come in.
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

/// Reads the changes of one record, which lies at `place`; an item of None means that the rest
/// makes no sense. Data of files is left where it is.
pub(super) fn decode(record: &[u8], place: u64) -> impl Iterator<Item = Option<Change>> {
    let mut reader = Reader { rest: record, end: place + record.len() as u64 };
    let mut failed = false;
    std::iter::from_fn(move || {
        if failed || reader.rest.is_empty() {
            return None;
        }
        let change = reader.change();
        failed = change.is_none();
        Some(change)
    })
}

struct Reader<'a> {
    rest: &'a [u8],
    /// Where in the journal the record ends.
    end: u64,
}

impl Reader<'_> {
    fn change(&mut self) -> Option<Change> {
        let tag = self.u8()?;
        let ino = self.u64()?;
        Some(match tag {
            TAG_INODE => Change::Inode(ino, self.meta()?),
            TAG_TARGET => Change::Target(ino, self.bytes()?),
            TAG_PARENT => Change::Parent(ino, self.u64()?),
            TAG_ENTRY => {
                let name = self.bytes()?;
                let state = self.u8()?;
                let target = self.u64()?;
                let state = match state {
                    0 => EntryState::Absent,
                    1 => EntryState::Whiteout,
                    2 => EntryState::Node(target),
                    _ => return None,
                };
                Change::Entry(ino, name, state)
            }
            TAG_OWN_XATTRS => Change::OwnXattrs(ino),
            TAG_XATTR => {
                let name = self.bytes()?;
                let present = self.u8()? == 1;
                let value = self.bytes()?;
                Change::Xattr(ino, name, present.then_some(value))
            }
            TAG_ORIGIN => Change::Origin(ino, self.bytes()?),
            TAG_CONTENT => {
                let length = self.u32()?;
                let place = self.end - self.rest.len() as u64;
                self.rest = self.rest.get(length as usize..)?;
                Change::Content(ino, Content::Stored(Stored { place, length }))
            }
            _ => return None,
        })
    }

    fn meta(&mut self) -> Option<Meta> {
        Some(Meta {
            mode: self.u32()?,
            uid: self.u32()?,
            gid: self.u32()?,
            rdev: self.u32()?,
            nlink: self.u32()?,
            atime: self.time()?,
            mtime: self.time()?,
            ctime: self.time()?,
            data: match self.u8()? {
                0 => Data::Lower,
                1 => Data::Empty,
                2 => Data::Object,
                3 => Data::Inline,
                _ => return None,
            },
            lower: self.u8()? == 1,
        })
    }

    fn time(&mut self) -> Option<Timestamp> {
        Some(Timestamp { seconds: self.u64()?.cast_signed(), nanoseconds: self.u32()? })
    }

    fn bytes(&mut self) -> Option<Box<[u8]>> {
        let length = self.u32()? as usize;
        let (bytes, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(bytes.into())
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*array)
    }

    fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_change_survives_its_encoding() {
        let time = |seconds| Timestamp { seconds, nanoseconds: 999_999_999 };
        let meta = Meta {
            mode: libc::S_IFREG | 0o4755,
            uid: 1,
            gid: 2,
            rdev: 3,
            nlink: 4,
            atime: time(-5),
            mtime: time(i64::MAX),
            ctime: time(0),
            data: Data::Object,
            lower: true,
        };
        let mut changes = vec![
            Change::Inode(7, meta),
            Change::Target(u64::MAX, (*b"../x\xff").into()),
            Change::Parent(8, 1),
            Change::Entry(1, (*b"a").into(), EntryState::Absent),
            Change::Entry(1, (*b"b").into(), EntryState::Whiteout),
            Change::Entry(1, (*b"c").into(), EntryState::Node(9)),
            Change::OwnXattrs(7),
            Change::Xattr(7, (*b"user.a").into(), Some(Box::default())),
            Change::Xattr(7, (*b"user.a").into(), None),
            Change::Origin(3, (*b"usr/bin").into()),
            Change::Content(4, Content::Bytes((*b"small").into())),
        ];
        let mut record = Vec::new();
        for change in &changes {
            change.encode(&mut record);
        }
        // The data is the last of the record, and is said to lie there.
        let stored = Stored { place: 1000 + record.len() as u64 - 5, length: 5 };
        changes.pop();
        changes.push(Change::Content(4, Content::Stored(stored)));
        assert_eq!(decode(&record, 1000).collect::<Option<Vec<_>>>().as_deref(), Some(&changes[..]));
        for cut in 1..record.len() {
            // Whatever is cut off, decoding ends and never panics.
            let decoded: Vec<_> = decode(&record[..cut], 0).collect();
            assert!(decoded.len() <= changes.len());
        }
    }
}
