//! Builds a layer's tree from its entries, in the order of the archive.
//!
//! The last of several entries of one name wins, save that a directory named again keeps what is
//! in it. Whiteouts are kept apart from names, because they act on lower layers only, wherever
//! they stand.

use tar::EntryType;

use super::{Entry, Limits, PackError, lossless};
use crate::index::display;
use crate::index::tree::{Attributes, Content, Directory, Key, Name, Node, ROOT, Tree};

const WHITEOUT_PREFIX: &[u8] = b".wh.";
const OPAQUE_MARKER: &[u8] = b".wh..wh..opq";
/// Names that old engines kept for themselves; every engine passes over them.
const RESERVED_PREFIX: &[u8] = b".wh..wh.";

pub(super) struct Builder {
    tree: Tree,
    limits: Limits,
    entries: u64,
    text: u64,
    /// Names whose hard link's target was not there yet.
    links: Vec<Link>,
}

struct Link {
    parent: Key,
    name: Name,
    key: Key,
    target: Vec<Name>,
}

impl Builder {
    pub(super) fn new(limits: Limits) -> Self {
        Self { tree: Tree::new(), limits, entries: 0, text: 0, links: Vec::new() }
    }

    pub(super) fn add(&mut self, entry: Entry) -> Result<(), PackError> {
        self.count(&entry)?;
        let mut names = self.split(&entry.path, &entry.path)?;
        let Some(name) = names.pop() else {
            return self.add_root(entry);
        };
        if names.iter().any(|name| name.starts_with(RESERVED_PREFIX)) {
            return Ok(());
        }
        let parent = self.parent(&names, &entry.path)?;
        if name.starts_with(WHITEOUT_PREFIX) {
            return self.whiteout(parent, &name, &entry.path);
        }
        if entry.kind == EntryType::Link {
            return self.hard_link(parent, name, &entry);
        }
        let content = self.content(&entry)?;
        let attributes = attributes(entry);
        let existing = self.tree.child(parent, &name);
        if let (Content::Directory(_), Some(key)) = (&content, existing)
            && let Some(directory) = self.tree.directory_mut(key)
        {
            directory.implicit = false;
            self.tree.node_mut(key).attributes = attributes;
            return Ok(());
        }
        let key = self.tree.add(Node { attributes, content });
        self.put(parent, name, key);
        Ok(())
    }

    /// The tree, with hard links to later entries resolved.
    pub(super) fn finish(mut self) -> Result<Tree, PackError> {
        let mut waiting = std::mem::take(&mut self.links);
        loop {
            let before = waiting.len();
            let mut unresolved = Vec::new();
            for link in waiting {
                // A later entry of the same name has taken the link's place.
                if self.tree.child(link.parent, &link.name) != Some(link.key) {
                    continue;
                }
                match self.tree.find(&link.target) {
                    Some(key) if self.tree.directory(key).is_some() => {
                        return Err(PackError::LinkToDirectory {
                            path: display(&[&link.name]),
                            target: display(&link.target),
                        });
                    }
                    Some(key) if !matches!(self.tree.node(key).content, Content::Link(_)) => {
                        self.put(link.parent, link.name, key);
                    }
                    _ => unresolved.push(link),
                }
            }
            if unresolved.len() == before {
                // What is left leads to other layers: the merge will see.
                return Ok(self.tree);
            }
            waiting = unresolved;
        }
    }

    fn count(&mut self, entry: &Entry) -> Result<(), PackError> {
        let limit = |what, limit| PackError::Limit { path: lossless(&entry.path), what, limit };
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(limit("entries", self.limits.entries));
        }
        let xattrs: usize = entry.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.text += (entry.path.len() + entry.link.len() + xattrs) as u64 + 32 * entry.extents.len() as u64;
        if self.text > self.limits.text_bytes {
            return Err(limit("bytes of names and attributes", self.limits.text_bytes));
        }
        Ok(())
    }

    /// Splits a path into names. A leading slash is dropped, as every engine does; `..` is not
    /// taken.
    fn split(&self, path: &[u8], entry: &[u8]) -> Result<Vec<Name>, PackError> {
        let limit =
            |what, limit: usize| PackError::Limit { path: lossless(entry), what, limit: limit as u64 };
        if path.len() > self.limits.path_bytes {
            return Err(limit("bytes in a path", self.limits.path_bytes));
        }
        if path.contains(&0) {
            return Err(PackError::Name { path: lossless(entry), reason: "its name contains a NUL" });
        }
        let mut names = Vec::new();
        for name in path.split(|byte| *byte == b'/') {
            match name {
                b"" | b"." => {}
                b".." => return Err(PackError::ParentPath { path: lossless(entry) }),
                name if name.len() > self.limits.name_bytes => {
                    return Err(limit("bytes in a name", self.limits.name_bytes));
                }
                name => names.push(name.into()),
            }
        }
        if names.len() > self.limits.depth {
            return Err(limit("names in a path", self.limits.depth));
        }
        Ok(names)
    }

    fn add_root(&mut self, entry: Entry) -> Result<(), PackError> {
        if entry.kind != EntryType::Directory {
            let reason = "the root of a layer must be a directory";
            return Err(PackError::Name { path: lossless(&entry.path), reason });
        }
        self.tree.node_mut(ROOT).attributes = attributes(entry);
        if let Some(root) = self.tree.directory_mut(ROOT) {
            root.implicit = false;
        }
        Ok(())
    }

    /// The directory that holds an entry; missing ones are made.
    fn parent(&mut self, names: &[Name], entry: &[u8]) -> Result<Key, PackError> {
        let mut key = ROOT;
        for (depth, name) in names.iter().enumerate() {
            key = match self.tree.child(key, name) {
                None => {
                    let directory = Directory { implicit: true, ..Directory::default() };
                    let content = Content::Directory(directory);
                    let made = self.tree.add(Node { attributes: Attributes::implicit_directory(), content });
                    self.put(key, name.clone(), made);
                    made
                }
                Some(child) => match &self.tree.node(child).content {
                    Content::Directory(_) => child,
                    Content::Symlink(_) => {
                        let link = display(&names[..=depth]);
                        return Err(PackError::BelowSymlink { path: lossless(entry), link });
                    }
                    _ => {
                        let parent = display(&names[..=depth]);
                        return Err(PackError::BelowFile { path: lossless(entry), parent });
                    }
                },
            };
        }
        Ok(key)
    }

    fn whiteout(&mut self, parent: Key, name: &[u8], path: &[u8]) -> Result<(), PackError> {
        let Some(directory) = self.tree.directory_mut(parent) else { return Ok(()) };
        if name == OPAQUE_MARKER {
            directory.opaque = true;
            return Ok(());
        }
        if name.starts_with(RESERVED_PREFIX) {
            return Ok(());
        }
        match &name[WHITEOUT_PREFIX.len()..] {
            b"" | b"." | b".." => {
                Err(PackError::Name { path: lossless(path), reason: "a whiteout of nothing" })
            }
            hidden => {
                directory.whiteouts.insert(hidden.into());
                Ok(())
            }
        }
    }

    fn hard_link(&mut self, parent: Key, name: Name, entry: &Entry) -> Result<(), PackError> {
        let target = self.split(&entry.link, &entry.path)?;
        if target.is_empty() {
            let reason = "a hard link to nothing";
            return Err(PackError::Name { path: lossless(&entry.path), reason });
        }
        let found = self.tree.find(&target);
        match found.map(|key| (key, &self.tree.node(key).content)) {
            Some((_, Content::Directory(_))) => {
                let (path, target) = (lossless(&entry.path), lossless(&entry.link));
                Err(PackError::LinkToDirectory { path, target })
            }
            // A link to its own name changes nothing where the name is known.
            Some((key, _)) if self.tree.child(parent, &name) == Some(key) => Ok(()),
            Some((key, content)) if !matches!(content, Content::Link(_)) => {
                self.put(parent, name, key);
                Ok(())
            }
            _ => {
                let content = Content::Link(target.clone());
                let key = self.tree.add(Node { attributes: Attributes::default(), content });
                self.put(parent, name.clone(), key);
                self.links.push(Link { parent, name, key, target });
                Ok(())
            }
        }
    }

    fn content(&self, entry: &Entry) -> Result<Content, PackError> {
        Ok(match entry.kind {
            EntryType::Directory => Content::Directory(Directory::default()),
            // GNU's incremental backups: a directory whose data lists what was in it.
            kind if kind.as_byte() == b'D' => Content::Directory(Directory::default()),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                Content::File { size: entry.size, extents: entry.extents.clone() }
            }
            EntryType::Symlink => {
                let limit = self.limits.path_bytes;
                if entry.link.is_empty() || entry.link.contains(&0) || entry.link.len() >= limit {
                    return Err(PackError::Field { path: lossless(&entry.path), field: "link target" });
                }
                Content::Symlink(entry.link.as_slice().into())
            }
            EntryType::Char => Content::CharDevice(entry.rdev),
            EntryType::Block => Content::BlockDevice(entry.rdev),
            EntryType::Fifo => Content::Fifo,
            kind => {
                let kind = char::from(kind.as_byte());
                return Err(PackError::Kind { path: lossless(&entry.path), kind });
            }
        })
    }

    fn put(&mut self, parent: Key, name: Name, key: Key) {
        if let Some(directory) = self.tree.directory_mut(parent) {
            directory.children.insert(name, key);
        }
    }
}

fn attributes(entry: Entry) -> Attributes {
    let Entry { mode, uid, gid, mtime, xattrs, .. } = entry;
    Attributes { mode, uid, gid, mtime, xattrs }
}
