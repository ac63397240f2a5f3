//! The tree that packing and merging build in memory, before it is laid out as an index.
//!
//! One arena of nodes, addressed by [`Key`]; directories hold names. Two names of one key are
//! hard links. A node that lost its last name stays in the arena and is dropped by the layout,
//! which only follows names from the root.

use std::collections::{BTreeMap, BTreeSet};

/// A node of a [`Tree`]: an index into its arena.
pub(crate) type Key = u32;

/// The key of a tree's root, which is always a directory.
pub(crate) const ROOT: Key = 0;

/// A point in time, as tar and the kernel count it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    /// Seconds since 1970-01-01, negative before it.
    pub seconds: i64,
    /// Nanoseconds after `seconds`, below 1,000,000,000.
    pub nanoseconds: u32,
}

/// A run of a file's bytes inside a layer's uncompressed tar. What no extent covers is a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Offset in the file.
    pub logical: u64,
    /// Offset in the layer's tar.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
    /// Which layer, counted from the bottom.
    pub layer: u32,
}

pub(crate) type Name = Box<[u8]>;

/// Name and value of an extended attribute.
pub(crate) type Xattr = (Name, Box<[u8]>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    /// Permission bits with setuid, setgid and sticky: the low twelve of a mode.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Timestamp,
    /// Sorted by name, each name once.
    pub xattrs: Vec<Xattr>,
}

impl Attributes {
    /// What a directory gets that no archive described: root's, 0755, as every engine makes it.
    pub(crate) fn implicit_directory() -> Self {
        Self { mode: 0o755, ..Self::default() }
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Content {
    Directory(Directory),
    File {
        size: u64,
        extents: Vec<Extent>,
    },
    Symlink(Box<[u8]>),
    CharDevice(u32),
    BlockDevice(u32),
    Fifo,
    /// A hard link whose target is not in this layer: the target's path.
    Link(Vec<Name>),
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Directory {
    pub children: BTreeMap<Name, Key>,
    /// Names of lower layers that this layer hides. A name may be here and in `children`.
    pub whiteouts: BTreeSet<Name>,
    /// Hides everything that lower layers have in this directory.
    pub opaque: bool,
    /// Named only as part of other entries' paths: a lower directory's attributes stay.
    pub implicit: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub attributes: Attributes,
    pub content: Content,
}

#[derive(Clone, Debug)]
pub(crate) struct Tree {
    nodes: Vec<Node>,
}

impl Tree {
    pub(crate) fn new() -> Self {
        let root = Directory { implicit: true, ..Directory::default() };
        let attributes = Attributes::implicit_directory();
        Self { nodes: vec![Node { attributes, content: Content::Directory(root) }] }
    }

    pub(crate) fn add(&mut self, node: Node) -> Key {
        self.nodes.push(node);
        // The limits on entries keep an arena far below 2^32.
        (self.nodes.len() - 1) as Key
    }

    pub(crate) fn node(&self, key: Key) -> &Node {
        &self.nodes[key as usize]
    }

    pub(crate) fn node_mut(&mut self, key: Key) -> &mut Node {
        &mut self.nodes[key as usize]
    }

    /// Nodes in the arena, named or not.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(crate) fn directory(&self, key: Key) -> Option<&Directory> {
        match &self.node(key).content {
            Content::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    pub(crate) fn directory_mut(&mut self, key: Key) -> Option<&mut Directory> {
        match &mut self.node_mut(key).content {
            Content::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    pub(crate) fn child(&self, parent: Key, name: &[u8]) -> Option<Key> {
        self.directory(parent)?.children.get(name).copied()
    }

    /// Follows names downwards, no symlinks.
    pub(crate) fn find(&self, path: &[Name]) -> Option<Key> {
        path.iter().try_fold(ROOT, |key, name| self.child(key, name))
    }
}
