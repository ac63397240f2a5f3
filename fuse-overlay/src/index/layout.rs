//! Lays a [`Tree`] out as the bytes of an index file (see [`super::format`]).

use std::collections::{HashMap, VecDeque};

use super::MergeError;
use super::format::{
    Counts, ENTRY_WHITEOUT, EntryRecord, FLAG_IMPLICIT, FLAG_LINK, FLAG_OPAQUE, HEADER_SIZE, Kind,
    NodeRecord, Summary, encode_extent, encode_header, encode_xattr, prefix_of,
};
use super::tree::{Content, Key, ROOT, Tree, Xattr};

/// An index counts entries, extents and bytes of strings with 32 bits.
const SECTION_LIMIT: usize = u32::MAX as usize;

/// Renders the tree. Nodes without a name are left out; link counts are right.
pub(crate) fn render(tree: &Tree, kind: Kind, layers: u32) -> Result<Vec<u8>, MergeError> {
    let mut layout = Layout::new(tree);
    layout.number();
    layout.fill()?;
    layout.finish(kind, layers)
}

struct Layout<'a> {
    tree: &'a Tree,
    /// Node id of each key, 0 where not reached.
    ids: Vec<u32>,
    links: Vec<u32>,
    /// Keys in the order of their ids, with the parent's id.
    order: Vec<(Key, u32)>,
    nodes: Vec<u8>,
    entries: Vec<u8>,
    extents: Vec<u8>,
    xattrs: Vec<u8>,
    strings: Strings,
    xattr_sets: HashMap<Vec<u8>, u32>,
    entry_count: usize,
    total_size: u64,
}

impl<'a> Layout<'a> {
    fn new(tree: &'a Tree) -> Self {
        Self {
            tree,
            ids: vec![0; tree.len()],
            links: vec![0; tree.len()],
            order: Vec::with_capacity(tree.len()),
            nodes: Vec::new(),
            entries: Vec::new(),
            extents: Vec::new(),
            xattrs: Vec::new(),
            strings: Strings::default(),
            xattr_sets: HashMap::new(),
            entry_count: 0,
            total_size: 0,
        }
    }

    /// Numbers what can be reached from the root, directory after directory.
    fn number(&mut self) {
        self.visit(ROOT, 1);
        let mut queue = VecDeque::from([ROOT]);
        while let Some(key) = queue.pop_front() {
            let Some(directory) = self.tree.directory(key) else { continue };
            let parent = self.ids[key as usize];
            for child in directory.children.values() {
                if self.visit(*child, parent) && self.tree.directory(*child).is_some() {
                    queue.push_back(*child);
                }
            }
        }
    }

    /// Counts a name of `key`; true when it is the first.
    fn visit(&mut self, key: Key, parent: u32) -> bool {
        self.links[key as usize] += 1;
        if self.ids[key as usize] != 0 {
            return false;
        }
        self.order.push((key, parent));
        self.ids[key as usize] = self.order.len() as u32;
        true
    }

    fn fill(&mut self) -> Result<(), MergeError> {
        for (key, parent) in std::mem::take(&mut self.order) {
            let record = self.record(key, parent)?;
            self.nodes.extend_from_slice(&record.encode());
        }
        Ok(())
    }

    fn record(&mut self, key: Key, parent: u32) -> Result<NodeRecord, MergeError> {
        let tree = self.tree;
        let node = tree.node(key);
        let attributes = &node.attributes;
        let mut record = NodeRecord {
            mode: attributes.mode & 0o7777,
            uid: attributes.uid,
            gid: attributes.gid,
            nlink: self.links[key as usize],
            mtime: attributes.mtime,
            xattr_count: attributes.xattrs.len() as u32,
            parent,
            ..NodeRecord::default()
        };
        record.xattr_first = self.add_xattrs(&attributes.xattrs)?;
        match &node.content {
            Content::Directory(directory) => {
                record.mode |= libc::S_IFDIR;
                record.flags = if directory.opaque { FLAG_OPAQUE } else { 0 }
                    | if directory.implicit { FLAG_IMPLICIT } else { 0 };
                record.first = self.entry_count as u32;
                let subdirectories =
                    directory.children.values().filter(|child| tree.directory(**child).is_some()).count();
                record.nlink = 2 + subdirectories as u32;
                self.add_entries(directory)?;
                record.count = self.entry_count as u32 - record.first;
            }
            Content::File { size, extents } => {
                record.mode |= libc::S_IFREG;
                record.size = *size;
                self.total_size = self.total_size.saturating_add(*size);
                record.first = checked(self.extents.len() / super::format::EXTENT_SIZE)?;
                record.count = checked(extents.len())?;
                for extent in extents {
                    self.extents.extend_from_slice(&encode_extent(extent));
                }
            }
            Content::Symlink(target) => {
                record.mode |= libc::S_IFLNK;
                record.size = target.len() as u64;
                (record.first, record.count) = self.strings.add(target)?;
            }
            Content::Link(target) => {
                record.mode |= libc::S_IFLNK;
                record.flags = FLAG_LINK;
                (record.first, record.count) = self.strings.add(&target.join(&b'/'))?;
            }
            Content::CharDevice(number) => {
                record.mode |= libc::S_IFCHR;
                record.rdev = *number;
            }
            Content::BlockDevice(number) => {
                record.mode |= libc::S_IFBLK;
                record.rdev = *number;
            }
            Content::Fifo => record.mode |= libc::S_IFIFO,
        }
        Ok(record)
    }

    fn add_entries(&mut self, directory: &super::tree::Directory) -> Result<(), MergeError> {
        // Both are sorted; a whiteout comes before a child of the same name.
        let mut whiteouts = directory.whiteouts.iter().peekable();
        let mut children = directory.children.iter().peekable();
        loop {
            let next_is_whiteout = match (whiteouts.peek(), children.peek()) {
                (Some(whiteout), Some((name, _))) => whiteout <= name,
                (Some(_), None) => true,
                (None, Some(_)) => false,
                (None, None) => return Ok(()),
            };
            if next_is_whiteout {
                if let Some(name) = whiteouts.next() {
                    self.add_entry(name, 0, ENTRY_WHITEOUT)?;
                }
            } else if let Some((name, key)) = children.next() {
                let kind = entry_type(&self.tree.node(*key).content);
                self.add_entry(name, self.ids[*key as usize], kind)?;
            }
        }
    }

    fn add_entry(&mut self, name: &[u8], node: u32, kind: u8) -> Result<(), MergeError> {
        let (name_offset, length) = self.strings.add(name)?;
        let name_length = u16::try_from(length).map_err(|_| MergeError::TooLarge)?;
        let record = EntryRecord { name_offset, node, name_length, kind };
        self.entries.extend_from_slice(&record.encode(prefix_of(name)));
        self.entry_count += 1;
        checked(self.entry_count).map(|_| ())
    }

    fn add_xattrs(&mut self, xattrs: &[Xattr]) -> Result<u32, MergeError> {
        if xattrs.is_empty() {
            return Ok(0);
        }
        let mut records = Vec::new();
        for (name, value) in xattrs {
            let (name, value) = (self.strings.add(name)?, self.strings.add(value)?);
            records.extend_from_slice(&encode_xattr(name, value));
        }
        if let Some(first) = self.xattr_sets.get(&records) {
            return Ok(*first);
        }
        let first = checked(self.xattrs.len() / super::format::XATTR_SIZE)?;
        self.xattrs.extend_from_slice(&records);
        self.xattr_sets.insert(records, first);
        Ok(first)
    }

    fn finish(self, kind: Kind, layers: u32) -> Result<Vec<u8>, MergeError> {
        let counts = Counts {
            nodes: (self.nodes.len() / super::format::NODE_SIZE) as u64,
            entries: self.entry_count as u64,
            extents: (self.extents.len() / super::format::EXTENT_SIZE) as u64,
            xattrs: (self.xattrs.len() / super::format::XATTR_SIZE) as u64,
            strings: self.strings.bytes.len() as u64,
        };
        let mut out = vec![0; HEADER_SIZE];
        for section in [&self.nodes, &self.entries, &self.extents, &self.xattrs, &self.strings.bytes] {
            out.extend_from_slice(section);
        }
        let summary = Summary { kind, layers, total_size: self.total_size };
        let header = encode_header(summary, counts, &out[HEADER_SIZE..]);
        out[..HEADER_SIZE].copy_from_slice(&header);
        Ok(out)
    }
}

fn checked(count: usize) -> Result<u32, MergeError> {
    u32::try_from(count).map_err(|_| MergeError::TooLarge)
}

fn entry_type(content: &Content) -> u8 {
    match content {
        Content::Directory(_) => libc::DT_DIR,
        Content::File { .. } => libc::DT_REG,
        Content::Symlink(_) | Content::Link(_) => libc::DT_LNK,
        Content::CharDevice(_) => libc::DT_CHR,
        Content::BlockDevice(_) => libc::DT_BLK,
        Content::Fifo => libc::DT_FIFO,
    }
}

/// The string section, equal strings stored once.
#[derive(Default)]
struct Strings {
    bytes: Vec<u8>,
    known: HashMap<Box<[u8]>, u32>,
}

impl Strings {
    fn add(&mut self, string: &[u8]) -> Result<(u32, u32), MergeError> {
        if let Some(offset) = self.known.get(string) {
            return Ok((*offset, string.len() as u32));
        }
        let offset = checked(self.bytes.len())?;
        if self.bytes.len().saturating_add(string.len()) > SECTION_LIMIT {
            return Err(MergeError::TooLarge);
        }
        self.bytes.extend_from_slice(string);
        self.known.insert(string.into(), offset);
        Ok((offset, string.len() as u32))
    }
}
