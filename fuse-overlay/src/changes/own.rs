//! This crate's own upper: what its journal says, and the way to what was changed in place.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use nix::errno::Errno;

use super::{Listing, View, kept_xattrs};
use crate::index::tree::Name;
use crate::serve::overlay::{Facts, Named, Snapshot};
use crate::sys::Xattrs;

pub(super) struct Own<'a> {
    snapshot: &'a Snapshot,
    touched: HashMap<u64, BTreeSet<Name>>,
}

impl<'a> Own<'a> {
    pub(super) fn new(snapshot: &'a Snapshot) -> Result<Self, Errno> {
        Ok(Self { snapshot, touched: snapshot.touched()? })
    }
}

impl View for Own<'_> {
    fn list(&self, node: u64, _path: &[u8], below: Option<u64>, cut: bool) -> Result<Listing, Errno> {
        let (entries, shows_lower) = self.snapshot.entries(node);
        let mut names: BTreeMap<Name, Option<u64>> = entries
            .into_iter()
            .map(|(name, listed)| match listed {
                Named::Whiteout => (name, None),
                Named::Node(ino) => (name, Some(ino)),
            })
            .collect();
        // A directory of the lower layer in its own place: of its lower names only those count that
        // lead to a change. Anywhere else each of them is one.
        let in_place = shows_lower && below == Some(node);
        let lower: Vec<Name> = if in_place && !cut {
            self.touched.get(&node).into_iter().flatten().cloned().collect()
        } else if shows_lower {
            self.snapshot.lower_names(node)?
        } else {
            Vec::new()
        };
        for name in lower {
            if !names.contains_key(&name)
                && let Some(child) = self.snapshot.lower_child(node, &name)?
            {
                names.insert(name, Some(child));
            }
        }
        Ok(Listing { names: names.into_iter().collect(), replaces: !in_place, complete: false })
    }

    fn facts(&self, node: u64, _path: &[u8]) -> Result<Facts, Errno> {
        self.snapshot.facts(node)
    }

    fn xattrs(&self, node: u64, _path: &[u8]) -> Result<Xattrs, Errno> {
        Ok(kept_xattrs(self.snapshot.xattrs(node)?))
    }

    fn is_lower(&self, node: u64, below: u64) -> bool {
        node == below && !self.snapshot.is_changed(node)
    }
}
