//! Merges the layers of an image, bottom first, into one tree without whiteouts.
//!
//! Within one layer, whiteouts and opaque marks act on lower layers only, wherever they stood in
//! the archive; then the layer's own entries are laid over. A hard link to a path that its own
//! layer does not have takes the file that lower layers have there.

use std::collections::HashMap;

use super::format::{
    Corrupt, ENTRY_WHITEOUT, FLAG_IMPLICIT, FLAG_LINK, FLAG_OPAQUE, Image, NodeRecord, ROOT_ID,
};
use super::tree::{Attributes, Content, Directory, Key, Name, Node, ROOT, Tree};
use super::{Extent, MergeError, display};

/// How deep directories can lie in each other: a path has at most 4096 bytes.
const DEPTH_LIMIT: u64 = 2048;

pub(super) fn merge(layers: &[&Image]) -> Result<Tree, MergeError> {
    let mut tree = Tree::new();
    lay(&mut tree, 0, layers)?;
    Ok(tree)
}

/// Lays layers over a tree that has been merged of `below` others.
pub(super) fn lay(tree: &mut Tree, below: u32, layers: &[&Image]) -> Result<(), MergeError> {
    for (number, image) in layers.iter().enumerate() {
        let number = u32::try_from(number).map_err(|_| MergeError::TooLarge)?;
        let layer = below.checked_add(number).ok_or(MergeError::TooLarge)?;
        Overlay { tree, image, layer, copied: HashMap::new(), links: Vec::new(), steps: 0 }.apply()?;
    }
    Ok(())
}

/// The tree that a merged index was laid out from: what is laid over it gives the same as merging
/// everything anew.
pub(super) fn tree_of(image: &Image) -> Result<Tree, Corrupt> {
    let count = u32::try_from(image.counts().nodes).map_err(|_| Corrupt)?;
    let mut tree = Tree::new();
    for id in ROOT_ID..ROOT_ID + count {
        let record = image.node(id)?;
        let content = if record.is_directory() {
            let names = image.entries_of(&record)?.map(|index| {
                let (entry, name) = image.entry(index)?;
                let key = entry.node.checked_sub(ROOT_ID).filter(|key| *key < count).ok_or(Corrupt)?;
                Ok((Name::from(name), key))
            });
            let children = names.collect::<Result<_, Corrupt>>()?;
            Content::Directory(Directory { children, ..Directory::default() })
        } else {
            content(image, &record, None)?.ok_or(Corrupt)?
        };
        let node = Node { attributes: attributes(image, &record)?, content };
        if id != ROOT_ID {
            tree.add(node);
            continue;
        }
        let Content::Directory(root) = node.content else { return Err(Corrupt) };
        tree.node_mut(ROOT).attributes = node.attributes;
        tree.directory_mut(ROOT).ok_or(Corrupt)?.children = root.children;
    }
    Ok(tree)
}

/// What a node that is no directory is; its extents in `layer`, or where they are recorded. None for
/// a kind that there is not.
fn content(image: &Image, record: &NodeRecord, layer: Option<u32>) -> Result<Option<Content>, Corrupt> {
    Ok(Some(match record.file_type() {
        libc::S_IFREG => {
            let extents = (0..record.count)
                .map(|index| image.extent(record, index))
                .map(|extent| extent.map(|found| Extent { layer: layer.unwrap_or(found.layer), ..found }))
                .collect::<Result<_, Corrupt>>()?;
            Content::File { size: record.size, extents }
        }
        libc::S_IFLNK => Content::Symlink(image.link_target(record)?.into()),
        libc::S_IFCHR => Content::CharDevice(record.rdev),
        libc::S_IFBLK => Content::BlockDevice(record.rdev),
        libc::S_IFIFO => Content::Fifo,
        _ => return Ok(None),
    }))
}

fn attributes(image: &Image, record: &NodeRecord) -> Result<Attributes, Corrupt> {
    let xattrs = (0..record.xattr_count)
        .map(|index| image.xattr(record, index).map(|(name, value)| (name.into(), value.into())))
        .collect::<Result<_, Corrupt>>()?;
    let NodeRecord { mode, uid, gid, mtime, .. } = *record;
    Ok(Attributes { mode: mode & 0o7777, uid, gid, mtime, xattrs })
}

/// One layer being laid over the tree.
struct Overlay<'a> {
    tree: &'a mut Tree,
    image: &'a Image,
    layer: u32,
    /// Keys of the layer's nodes that have been copied, so that hard links stay together.
    copied: HashMap<u32, Key>,
    /// Links to other layers, resolved once all else is in place.
    links: Vec<PendingLink>,
    /// Entries of the layer looked at: a damaged index could lead in circles.
    steps: u64,
}

struct PendingLink {
    parent: Key,
    name: Name,
    target: Vec<Name>,
}

impl Overlay<'_> {
    fn apply(mut self) -> Result<(), MergeError> {
        let root = self.image.node(ROOT_ID).map_err(|_| self.damaged())?;
        if root.flags & FLAG_IMPLICIT == 0 {
            self.tree.node_mut(ROOT).attributes = self.attributes(&root)?;
        }
        let mut pending = vec![(ROOT_ID, ROOT)];
        while let Some((source, target)) = pending.pop() {
            self.directory(source, target, &mut pending)?;
        }
        self.resolve_links()
    }

    /// Lays one directory of the layer over one of the tree; its subdirectories go to `pending`.
    fn directory(
        &mut self,
        source: u32,
        target: Key,
        pending: &mut Vec<(u32, Key)>,
    ) -> Result<(), MergeError> {
        let record = self.image.node(source).map_err(|_| self.damaged())?;
        let entries = self.image.entries_of(&record).map_err(|_| self.damaged())?;
        self.step(u64::from(record.count))?;
        let damaged = self.damaged();
        let directory = self.tree.directory_mut(target).ok_or(damaged)?;
        if record.flags & FLAG_OPAQUE != 0 {
            directory.children.clear();
        }
        let mut own = Vec::new();
        for index in entries {
            let (entry, name) = self.image.entry(index).map_err(|_| layer_damaged(self.layer))?;
            if entry.kind == ENTRY_WHITEOUT {
                directory.children.remove(name);
            } else {
                own.push((name, entry.node));
            }
        }
        for (name, node) in own {
            self.entry(target, name, node, pending)?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        parent: Key,
        name: &[u8],
        id: u32,
        pending: &mut Vec<(u32, Key)>,
    ) -> Result<(), MergeError> {
        let record = self.image.node(id).map_err(|_| self.damaged())?;
        let below = self.tree.child(parent, name);
        let key = if record.is_directory() {
            let Some(key) = self.subdirectory(&record, below)? else { return Ok(()) };
            pending.push((id, key));
            key
        } else if record.flags & FLAG_LINK != 0 {
            let target = self.image.link_target(&record).map_err(|_| self.damaged())?;
            let target = target.split(|byte| *byte == b'/').map(Into::into).collect();
            self.links.push(PendingLink { parent, name: name.into(), target });
            return Ok(());
        } else if let Some(key) = self.copied.get(&id) {
            *key
        } else {
            let node = self.leaf(&record)?;
            let key = self.tree.add(node);
            self.copied.insert(id, key);
            key
        };
        self.name(parent, name, key)
    }

    /// The directory of the tree that the layer's directory becomes: the one below, or a new one.
    /// None where the layer only hides things below a path that lower layers do not have.
    fn subdirectory(&mut self, record: &NodeRecord, below: Option<Key>) -> Result<Option<Key>, MergeError> {
        let implicit = record.flags & FLAG_IMPLICIT != 0;
        if let Some(key) = below.filter(|key| self.tree.directory(*key).is_some()) {
            if !implicit {
                self.tree.node_mut(key).attributes = self.attributes(record)?;
            }
            return Ok(Some(key));
        }
        if implicit && !self.has_entries(record)? {
            return Ok(None);
        }
        let attributes = if implicit { Attributes::implicit_directory() } else { self.attributes(record)? };
        Ok(Some(self.tree.add(Node { attributes, content: Content::Directory(Directory::default()) })))
    }

    /// Whether anything but whiteouts is in a directory of the layer or below it.
    fn has_entries(&mut self, record: &NodeRecord) -> Result<bool, MergeError> {
        let mut pending = vec![*record];
        while let Some(record) = pending.pop() {
            self.step(u64::from(record.count))?;
            for index in self.image.entries_of(&record).map_err(|_| self.damaged())? {
                let (entry, _) = self.image.entry(index).map_err(|_| self.damaged())?;
                if entry.kind == ENTRY_WHITEOUT {
                    continue;
                }
                let child = self.image.node(entry.node).map_err(|_| self.damaged())?;
                if !child.is_directory() || child.flags & FLAG_IMPLICIT == 0 {
                    return Ok(true);
                }
                pending.push(child);
            }
        }
        Ok(false)
    }

    fn leaf(&self, record: &NodeRecord) -> Result<Node, MergeError> {
        let content = content(self.image, record, Some(self.layer)).ok().flatten();
        let content = content.ok_or_else(|| self.damaged())?;
        Ok(Node { attributes: self.attributes(record)?, content })
    }

    fn attributes(&self, record: &NodeRecord) -> Result<Attributes, MergeError> {
        attributes(self.image, record).map_err(|_| self.damaged())
    }

    fn name(&mut self, parent: Key, name: &[u8], key: Key) -> Result<(), MergeError> {
        let damaged = self.damaged();
        self.tree.directory_mut(parent).ok_or(damaged)?.children.insert(name.into(), key);
        Ok(())
    }

    /// Names the files of other layers. A link may lead to another such link, so this goes round
    /// until nothing more can be resolved.
    fn resolve_links(&mut self) -> Result<(), MergeError> {
        let mut waiting = std::mem::take(&mut self.links);
        loop {
            let mut unresolved = Vec::new();
            let before = waiting.len();
            for link in waiting {
                match self.tree.find(&link.target) {
                    Some(key) if self.tree.directory(key).is_none() => {
                        self.name(link.parent, &link.name, key)?;
                    }
                    _ => unresolved.push(link),
                }
            }
            match unresolved.first() {
                None => return Ok(()),
                Some(link) if unresolved.len() == before => {
                    return Err(MergeError::LinkTarget {
                        layer: self.layer,
                        name: display(&[&link.name]),
                        target: display(&link.target),
                    });
                }
                Some(_) => waiting = unresolved,
            }
        }
    }

    /// Counts entries. Each is seen once in its directory, and once by each of the directories
    /// above that asks what is below it.
    fn step(&mut self, entries: u64) -> Result<(), MergeError> {
        self.steps = self.steps.saturating_add(entries.saturating_add(1));
        let counts = self.image.counts();
        let limit = (counts.entries + counts.nodes).saturating_mul(DEPTH_LIMIT);
        if self.steps > limit { Err(self.damaged()) } else { Ok(()) }
    }

    fn damaged(&self) -> MergeError {
        layer_damaged(self.layer)
    }
}

fn layer_damaged(layer: u32) -> MergeError {
    MergeError::LayerIndex { layer }
}
