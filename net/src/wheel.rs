//! A hierarchical timer wheel: one deadline a key, moved or cancelled in constant time.
//!
//! A TCP flow's deadline moves with almost every packet, so a heap that cannot cancel would fill
//! with stale entries. Here each key is a node in a doubly linked list of its slot. Four levels
//! of 64 slots with a tick of a millisecond reach 4.6 hours; what is further away waits in the
//! last slot and is looked at again when its time comes.

const LEVELS: usize = 4;
const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
const NONE: u32 = u32::MAX;

/// Milliseconds since a moment of the caller's choice.
pub(crate) type Tick = u64;

#[derive(Debug, Clone, Copy)]
struct Node {
    previous: u32,
    next: u32,
    /// The slot that it is in, as level * SLOTS + index; NONE when it is in no slot.
    slot: u32,
    deadline: Tick,
}

const FREE: Node = Node { previous: NONE, next: NONE, slot: NONE, deadline: 0 };

/// See the module.
pub(crate) struct Wheel {
    nodes: Vec<Node>,
    heads: [u32; LEVELS * SLOTS],
    /// A bit for each slot that is not empty.
    occupied: [u64; LEVELS],
    /// Everything due at or before this tick has been taken.
    now: Tick,
}

impl Wheel {
    pub(crate) fn new() -> Self {
        Self { nodes: Vec::new(), heads: [NONE; LEVELS * SLOTS], occupied: [0; LEVELS], now: 0 }
    }

    /// Sets the key's deadline, replacing the one it had. A deadline that has passed is due at
    /// the next tick.
    pub(crate) fn set(&mut self, key: u32, deadline: Tick) {
        let index = key as usize;
        if index >= self.nodes.len() {
            self.nodes.resize(index + 1, FREE);
        }
        if self.nodes[index].slot != NONE {
            if self.nodes[index].deadline == deadline {
                return;
            }
            self.unlink(key);
        }
        self.nodes[index].deadline = deadline;
        self.link(key);
    }

    /// Forgets the key's deadline, if it has one.
    pub(crate) fn cancel(&mut self, key: u32) {
        if self.nodes.get(key as usize).is_some_and(|node| node.slot != NONE) {
            self.unlink(key);
        }
    }

    /// A tick at which [`advance`](Self::advance) should be called: never later than the earliest
    /// deadline, and later than now.
    pub(crate) fn next(&self) -> Option<Tick> {
        (0..LEVELS).filter_map(|level| self.next_of(level)).min()
    }

    /// Moves to `now` and calls `due` with every key whose deadline has come. Each such key has
    /// no deadline any more.
    pub(crate) fn advance(&mut self, now: Tick, mut due: impl FnMut(u32)) {
        while let Some(tick) = self.next().filter(|&tick| tick <= now) {
            self.now = tick;
            // Higher levels first: what they hold may be due in this very tick.
            for level in (0..LEVELS).rev() {
                if tick & ((1 << (SLOT_BITS * level as u32)) - 1) == 0 {
                    self.empty(level, &mut due);
                }
            }
        }
        self.now = self.now.max(now);
    }

    /// Takes every key of the level's current slot; what is not due yet is put further down.
    fn empty(&mut self, level: usize, due: &mut impl FnMut(u32)) {
        let slot = level * SLOTS + slot_of(self.now, level);
        while self.heads[slot] != NONE {
            let key = self.heads[slot];
            self.unlink(key);
            if self.nodes[key as usize].deadline <= self.now {
                due(key);
            } else {
                self.link(key);
            }
        }
    }

    /// The first tick after now at which a slot of this level that holds something is current.
    fn next_of(&self, level: usize) -> Option<Tick> {
        if self.occupied[level] == 0 {
            return None;
        }
        let shift = SLOT_BITS * level as u32;
        let here = self.now >> shift;
        // Bit 0 is the slot after the current one.
        let ahead = self.occupied[level].rotate_right((slot_of(self.now, level) as u32 + 1) % 64);
        let steps = u64::from(ahead.trailing_zeros()) + 1;
        Some((here + steps) << shift)
    }

    fn link(&mut self, key: u32) {
        let deadline = self.nodes[key as usize].deadline.max(self.now + 1);
        let mut level = 0;
        while level + 1 < LEVELS
            && (deadline >> (SLOT_BITS * level as u32)) - (self.now >> (SLOT_BITS * level as u32))
                >= SLOTS as u64
        {
            level += 1;
        }
        let shift = SLOT_BITS * level as u32;
        // Beyond the last level's reach: its furthest slot.
        let reach = (self.now >> shift) + SLOTS as u64 - 1;
        let place = (deadline >> shift).min(reach);
        let slot = level * SLOTS + (place as usize & (SLOTS - 1));
        let head = self.heads[slot];
        let node = &mut self.nodes[key as usize];
        node.slot = slot as u32;
        node.previous = NONE;
        node.next = head;
        if head != NONE {
            self.nodes[head as usize].previous = key;
        }
        self.heads[slot] = key;
        self.occupied[level] |= 1 << (slot % SLOTS);
    }

    fn unlink(&mut self, key: u32) {
        let Node { previous, next, slot, .. } = self.nodes[key as usize];
        let slot = slot as usize;
        if previous == NONE {
            self.heads[slot] = next;
        } else {
            self.nodes[previous as usize].next = next;
        }
        if next != NONE {
            self.nodes[next as usize].previous = previous;
        }
        if self.heads[slot] == NONE {
            self.occupied[slot / SLOTS] &= !(1 << (slot % SLOTS));
        }
        self.nodes[key as usize].slot = NONE;
    }
}

fn slot_of(tick: Tick, level: usize) -> usize {
    (tick >> (SLOT_BITS * level as u32)) as usize & (SLOTS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn due_at(wheel: &mut Wheel, now: Tick) -> Vec<u32> {
        let mut keys = Vec::new();
        wheel.advance(now, |key| keys.push(key));
        keys.sort_unstable();
        keys
    }

    #[test]
    fn deadlines_are_met_to_the_tick_on_every_level() {
        for deadline in [1, 63, 64, 65, 4_095, 4_096, 262_144, 16_777_216, 40_000_000] {
            let mut wheel = Wheel::new();
            wheel.set(7, deadline);
            assert_eq!(due_at(&mut wheel, deadline - 1), [], "{deadline}");
            assert_eq!(due_at(&mut wheel, deadline), [7], "{deadline}");
            assert_eq!(wheel.next(), None);
        }
    }

    #[test]
    fn a_moved_deadline_counts_once() {
        let mut wheel = Wheel::new();
        wheel.set(1, 10);
        wheel.set(1, 1_000);
        wheel.set(2, 20);
        wheel.cancel(2);
        wheel.cancel(3);
        assert_eq!(due_at(&mut wheel, 999), []);
        assert_eq!(due_at(&mut wheel, 1_000), [1]);
    }

    #[test]
    fn a_deadline_in_the_past_is_due_at_the_next_tick() {
        let mut wheel = Wheel::new();
        assert_eq!(due_at(&mut wheel, 500), []);
        wheel.set(1, 3);
        assert_eq!(wheel.next(), Some(501));
        assert_eq!(due_at(&mut wheel, 501), [1]);
    }

    proptest! {
        /// The wheel against a map from keys to deadlines.
        #[test]
        fn agrees_with_a_map(steps in prop::collection::vec((0_u32..20, 0_u64..300_000, 0_u64..9_000), 1..200)) {
            let mut wheel = Wheel::new();
            let mut map = BTreeMap::new();
            let mut now = 0;
            for (key, delay, pass) in steps {
                if delay % 7 == 0 {
                    wheel.cancel(key);
                    map.remove(&key);
                } else {
                    wheel.set(key, now + delay + 1);
                    map.insert(key, now + delay + 1);
                }
                if let (Some(next), Some(first)) = (wheel.next(), map.values().min()) {
                    prop_assert!(next <= *first && next > now);
                }
                now += pass;
                let expected: Vec<u32> =
                    map.iter().filter(|&(_, &at)| at <= now).map(|(&key, _)| key).collect();
                map.retain(|_, at| *at > now);
                prop_assert_eq!(due_at(&mut wheel, now), expected);
            }
        }
    }
}
