//! The journal's side of `crate::fuzzing`.

use super::change::{Change, decode};
use super::state::State;

/// The changes of one record, as if a journal with the right checksum had it. What a rewrite of the
/// journal would keep gives the same state again, save for what becomes something of another kind,
/// which no journal says.
pub(crate) fn journal(bytes: &[u8]) {
    let mut state = State::new();
    for change in decode(bytes, 0).map_while(|change| change) {
        let kind = |mode: u32| mode & libc::S_IFMT;
        if let Change::Inode(ino, meta) = &change
            && state.get(*ino).is_some_and(|inode| kind(inode.meta.mode) != kind(meta.mode))
        {
            break;
        }
        state.apply(change);
    }
    let kept = kept(&state);
    let mut again = State::new();
    for change in &kept {
        again.apply(change.clone());
    }
    assert_eq!(kept, self::kept(&again));
}

/// In an order that does not depend on how the state is kept.
fn kept(state: &State) -> Vec<Change> {
    let mut records: Vec<Vec<Change>> = state.snapshot().collect();
    records.sort_by_key(|record| match record.first() {
        Some(Change::Inode(ino, _)) => *ino,
        _ => 0,
    });
    records.into_iter().flatten().collect()
}
