//! Entries by number, with generations that tell an entry from its successors.

/// Names an entry for as long as it lives; a later one in its place has another generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EntryId {
    /// Its place.
    pub index: u32,
    /// Counts the entries that have had this place.
    pub generation: u32,
}

/// Generations travel in 24 bits of an epoll event.
pub(crate) const GENERATION_MASK: u32 = 0xff_ffff;

/// A table whose places are used again.
pub(crate) struct Slab<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
}

struct Place<T> {
    generation: u32,
    entry: Option<T>,
}

impl<T> Slab<T> {
    pub(crate) fn new() -> Self {
        Self { places: Vec::new(), free: Vec::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// The name that the next entry will have.
    pub(crate) fn next_id(&self) -> EntryId {
        match self.free.last() {
            Some(&index) => EntryId { index, generation: self.places[index as usize].generation },
            None => EntryId { index: self.places.len() as u32, generation: 0 },
        }
    }

    /// Adds an entry under [`next_id`](Self::next_id).
    pub(crate) fn insert(&mut self, entry: T) -> EntryId {
        let id = self.next_id();
        match self.free.pop() {
            Some(index) => self.places[index as usize].entry = Some(entry),
            None => self.places.push(Place { generation: 0, entry: Some(entry) }),
        }
        id
    }

    pub(crate) fn get_mut(&mut self, id: EntryId) -> Option<&mut T> {
        let place = self.places.get_mut(id.index as usize)?;
        place.entry.as_mut().filter(|_| place.generation == id.generation)
    }

    /// The entry in a place, whatever its generation, with its name.
    pub(crate) fn at_mut(&mut self, index: u32) -> Option<(EntryId, &mut T)> {
        let place = self.places.get_mut(index as usize)?;
        let id = EntryId { index, generation: place.generation };
        place.entry.as_mut().map(|entry| (id, entry))
    }

    pub(crate) fn remove(&mut self, id: EntryId) -> Option<T> {
        self.get_mut(id)?;
        let place = &mut self.places[id.index as usize];
        place.generation = place.generation.wrapping_add(1) & GENERATION_MASK;
        self.free.push(id.index);
        place.entry.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_used_again_under_another_name() {
        let mut slab = Slab::new();
        let first = slab.insert('a');
        assert_eq!(slab.next_id().index, 1);
        assert_eq!(slab.remove(first), Some('a'));
        assert_eq!(slab.remove(first), None);
        let second = slab.insert('b');
        assert_eq!(second.index, first.index);
        assert_eq!(slab.get_mut(first), None);
        assert_eq!(slab.get_mut(second), Some(&mut 'b'));
        assert_eq!(slab.at_mut(first.index), Some((second, &mut 'b')));
        assert_eq!(slab.len(), 1);
    }
}
