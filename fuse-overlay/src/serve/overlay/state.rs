//! What the overlay keeps in memory: the inodes that differ from the lower layer, and nothing of
//! the others.
//!
//! [`State::apply`] is the one way in which any of this changes, at run time and at replay; the
//! journal is written before. So what is in memory is always what a replay would give.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};

use super::change::{self, Change, Data, EntryState, Meta, Stored};
use crate::index::tree::Name;

/// Inode numbers of the overlay's own begin here: above every node of an index, below those that
/// a directory lower gives out.
pub(in crate::serve) const FIRST_OWN: u64 = 1 << 40;

/// Whether a number is one of the overlay's own, not a lower node's.
pub(super) fn is_own(ino: u64) -> bool {
    (FIRST_OWN..FIRST_OWN << 8).contains(&ino)
}

/// Changes in one record of a rewritten journal: few enough for its limit on records.
const SNAPSHOT_CHANGES: usize = 1000;

#[derive(Debug)]
pub(super) struct State {
    inodes: HashMap<u64, Inode>,
    next: AtomicU64,
    /// How many of the inodes have no name.
    nameless: usize,
    /// Bytes of small files in the journal.
    inline_bytes: u64,
    /// What is applied now is new, and not what an earlier session left.
    live: bool,
}

#[derive(Debug)]
pub(super) struct Inode {
    pub meta: Meta,
    pub content: Content,
    /// None: those of the lower layer.
    pub xattrs: Option<BTreeMap<Name, Box<[u8]>>>,
    /// The kernel's references, of inodes without a lower node (the lower layer counts the rest).
    pub lookups: AtomicU64,
    /// Where the lower node lies, if paths identify nodes.
    pub origin: Option<Box<[u8]>>,
    /// Where the data of a small file lies in the journal.
    pub stored: Option<Stored>,
    /// Its data was synced once, so it must be durable wherever it goes.
    pub synced: bool,
    /// Made without a name (`O_TMPFILE`) and not given one yet.
    pub unnamed: bool,
}

#[derive(Debug)]
pub(super) enum Content {
    /// All there is to know is in the meta data.
    Plain,
    Directory(Directory),
    Symlink(Box<[u8]>),
}

/// What a directory has beyond, or instead of, its lower names.
#[derive(Debug, Default)]
pub(super) struct Directory {
    /// None until told: as in the lower layer.
    pub parent: Option<u64>,
    entries: BTreeMap<Name, Entry>,
    /// Added names by their place in listings. Places only grow, so a listing that goes on while
    /// names come and go neither repeats nor misses one that stays.
    places: BTreeMap<u64, Name>,
    next_place: u64,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// None: a whiteout.
    target: Option<u64>,
    place: u64,
}

/// What a directory says about a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    Node(u64),
    Whiteout,
    Nothing,
}

impl Directory {
    pub(super) fn get(&self, name: &[u8]) -> Known {
        match self.entries.get(name) {
            None => Known::Nothing,
            Some(Entry { target: None, .. }) => Known::Whiteout,
            Some(Entry { target: Some(ino), .. }) => Known::Node(*ino),
        }
    }

    /// The first added name at `place` or after it, with its place and inode.
    pub(super) fn added_from(&self, place: u64) -> Option<(u64, &Name, u64)> {
        let (place, name) = self.places.range(place..).next()?;
        let target = self.entries.get(name)?.target?;
        Some((*place, name, target))
    }

    pub(super) fn has_added(&self) -> bool {
        !self.places.is_empty()
    }

    /// All names with what they mean.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&Name, EntryState)> {
        self.entries
            .iter()
            .map(|(name, entry)| (name, entry.target.map_or(EntryState::Whiteout, EntryState::Node)))
    }

    fn set(&mut self, name: Name, state: EntryState) {
        if let Some(old) = self.entries.remove(&name)
            && old.target.is_some()
        {
            self.places.remove(&old.place);
        }
        let target = match state {
            EntryState::Absent => return,
            EntryState::Whiteout => None,
            EntryState::Node(ino) => Some(ino),
        };
        let place = self.next_place;
        if target.is_some() {
            self.places.insert(place, name.clone());
            self.next_place += 1;
        }
        self.entries.insert(name, Entry { target, place });
    }
}

impl State {
    pub(super) fn new() -> Self {
        Self {
            inodes: HashMap::new(),
            next: AtomicU64::new(FIRST_OWN),
            nameless: 0,
            inline_bytes: 0,
            live: false,
        }
    }

    pub(super) fn get(&self, ino: u64) -> Option<&Inode> {
        self.inodes.get(&ino)
    }

    pub(super) fn directory(&self, ino: u64) -> Option<&Directory> {
        match &self.inodes.get(&ino)?.content {
            Content::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    pub(super) fn inodes(&self) -> impl Iterator<Item = (u64, &Inode)> {
        self.inodes.iter().map(|(ino, inode)| (*ino, inode))
    }

    /// Whether inodes without a name are still kept, for open files or until the kernel forgets.
    pub(super) fn has_removed(&self) -> bool {
        self.nameless > 0
    }

    pub(super) fn len(&self) -> usize {
        self.inodes.len()
    }

    /// A number for a new inode; no two calls give the same.
    pub(super) fn allocate(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn apply(&mut self, change: Change) {
        match change {
            Change::Inode(ino, meta) => self.set_meta(ino, meta),
            Change::Target(ino, target) => {
                if let Some(inode) = self.inodes.get_mut(&ino) {
                    inode.content = Content::Symlink(target);
                }
            }
            Change::Parent(ino, parent) => {
                if let Some(directory) = self.directory_mut(ino) {
                    directory.parent = Some(parent);
                }
            }
            Change::Entry(parent, name, state) => {
                if let Some(directory) = self.directory_mut(parent) {
                    directory.set(name, state);
                }
            }
            Change::OwnXattrs(ino) => {
                if let Some(inode) = self.inodes.get_mut(&ino) {
                    inode.xattrs = Some(BTreeMap::new());
                }
            }
            Change::Xattr(ino, name, value) => {
                if let Some(xattrs) = self.inodes.get_mut(&ino).and_then(|inode| inode.xattrs.as_mut()) {
                    match value {
                        Some(value) => drop(xattrs.insert(name, value)),
                        None => drop(xattrs.remove(&name)),
                    }
                }
            }
            Change::Origin(ino, path) => {
                if let Some(inode) = self.inodes.get_mut(&ino) {
                    inode.origin = Some(path);
                }
            }
            Change::Content(ino, change::Content::Stored(stored)) => self.set_stored(ino, Some(stored)),
            // The journal says where it lies before anything is applied.
            Change::Content(_, change::Content::Bytes(_)) => {}
        }
    }

    /// Drops an inode that has no name left and that the kernel has let go of.
    pub(super) fn remove(&mut self, ino: u64) -> Option<Inode> {
        let removed = self.inodes.remove(&ino)?;
        self.nameless -= usize::from(removed.meta.nlink == 0);
        self.inline_bytes -= removed.stored.map_or(0, |stored| u64::from(stored.length));
        Some(removed)
    }

    fn set_meta(&mut self, ino: u64, meta: Meta) {
        if is_own(ino) {
            self.next.fetch_max(ino + 1, Ordering::Relaxed);
        }
        let is_new = !self.inodes.contains_key(&ino);
        let inode = self.inodes.entry(ino).or_insert_with(|| Inode {
            meta,
            content: if meta.is_directory() {
                Content::Directory(Directory::default())
            } else {
                Content::Plain
            },
            xattrs: None,
            lookups: AtomicU64::new(0),
            origin: None,
            stored: None,
            // What an earlier session left may have been; what a lower layer has is.
            synced: !self.live || !is_own(ino),
            unnamed: false,
        });
        // A new inode has not been counted yet: what it was made with is what it gets.
        self.nameless -= usize::from(!is_new && inode.meta.nlink == 0);
        self.nameless += usize::from(meta.nlink == 0);
        inode.meta = meta;
        if meta.data != Data::Inline && inode.stored.is_some() {
            self.set_stored(ino, None);
        }
    }

    /// Says where a small file's data lies now.
    pub(super) fn set_stored(&mut self, ino: u64, stored: Option<Stored>) {
        let Some(inode) = self.inodes.get_mut(&ino) else { return };
        let length = |stored: Option<Stored>| stored.map_or(0, |stored| u64::from(stored.length));
        self.inline_bytes = self.inline_bytes - length(inode.stored) + length(stored);
        inode.stored = stored;
    }

    /// Ends the replay.
    pub(super) fn set_live(&mut self) {
        self.live = true;
    }

    pub(super) fn inline_bytes(&self) -> u64 {
        self.inline_bytes
    }

    pub(super) fn set_synced(&mut self, ino: u64, synced: bool) {
        if let Some(inode) = self.inodes.get_mut(&ino) {
            inode.synced = synced;
        }
    }

    /// Says that an inode without a name may be given one.
    pub(super) fn set_unnamed(&mut self, ino: u64, unnamed: bool) {
        if let Some(inode) = self.inodes.get_mut(&ino) {
            inode.unnamed = unnamed;
        }
    }

    fn directory_mut(&mut self, ino: u64) -> Option<&mut Directory> {
        match &mut self.inodes.get_mut(&ino)?.content {
            Content::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    /// The records of a journal that gives just this state. Inodes without a name are left out:
    /// nothing could reach them again.
    pub(super) fn snapshot(&self) -> impl Iterator<Item = Vec<Change>> {
        self.inodes.iter().filter(|(_, inode)| inode.meta.nlink > 0).flat_map(|(ino, inode)| {
            let changes = inode.changes(*ino);
            changes.chunks(SNAPSHOT_CHANGES).map(<[Change]>::to_vec).collect::<Vec<_>>()
        })
    }
}

impl Inode {
    /// The size, where it is known without looking at a file.
    pub(super) fn known_size(&self) -> Option<u64> {
        match (&self.content, self.stored) {
            (Content::Symlink(target), _) => Some(target.len() as u64),
            (_, Some(stored)) => Some(stored.length.into()),
            _ => None,
        }
    }

    /// Bytes of what is kept beyond the attributes: link target and xattrs.
    pub(super) fn extra_bytes(&self) -> u64 {
        let target = match &self.content {
            Content::Symlink(target) => target.len(),
            _ => 0,
        };
        (target + self.xattr_bytes()) as u64
    }

    /// Bytes in names and values of the xattrs that are kept.
    pub(super) fn xattr_bytes(&self) -> usize {
        let all = self.xattrs.iter().flatten();
        all.map(|(name, value)| name.len() + value.len()).sum()
    }

    fn changes(&self, ino: u64) -> Vec<Change> {
        let mut changes = vec![Change::Inode(ino, self.meta)];
        let stored = self.stored.map(change::Content::Stored);
        changes.extend(stored.map(|content| Change::Content(ino, content)));
        changes.extend(self.origin.clone().map(|path| Change::Origin(ino, path)));
        match &self.content {
            Content::Plain => {}
            Content::Symlink(target) => changes.push(Change::Target(ino, target.clone())),
            Content::Directory(directory) => {
                changes.extend(directory.parent.map(|parent| Change::Parent(ino, parent)));
                let entries = directory.entries();
                changes.extend(entries.map(|(name, state)| Change::Entry(ino, name.clone(), state)));
            }
        }
        if let Some(xattrs) = &self.xattrs {
            changes.push(Change::OwnXattrs(ino));
            let values = xattrs.iter();
            changes.extend(values.map(|(name, value)| Change::Xattr(ino, name.clone(), Some(value.clone()))));
        }
        changes
    }
}

/// The changes of one request, made while the state is locked.
pub(super) struct Edit<'a> {
    state: &'a State,
    changes: Vec<Change>,
}

impl<'a> Edit<'a> {
    pub(super) fn new(state: &'a State) -> Self {
        Self { state, changes: Vec::with_capacity(8) }
    }

    pub(super) fn push(&mut self, change: Change) {
        self.changes.push(change);
    }

    pub(super) fn extend(&mut self, changes: Vec<Change>) {
        self.changes.extend(changes);
    }

    /// An inode's attributes as they are now; `base` are those of one that is not kept yet.
    pub(super) fn current(&self, ino: u64, base: Meta) -> Meta {
        let edited = self.changes.iter().rev().find_map(|change| match change {
            Change::Inode(known, meta) if *known == ino => Some(*meta),
            _ => None,
        });
        edited.or_else(|| self.state.get(ino).map(|inode| inode.meta)).unwrap_or(base)
    }

    /// Edits an inode's attributes; edits of one inode add up.
    pub(super) fn inode(&mut self, ino: u64, base: Meta, edit: impl FnOnce(&mut Meta)) {
        let mut meta = self.current(ino, base);
        edit(&mut meta);
        let known = self.changes.iter_mut().find_map(|change| match change {
            Change::Inode(known, meta) if *known == ino => Some(meta),
            _ => None,
        });
        match known {
            Some(known) => *known = meta,
            None => self.changes.push(Change::Inode(ino, meta)),
        }
    }

    pub(super) fn into_changes(self) -> Vec<Change> {
        self.changes
    }
}
