//! A buffer for file data on its way to a reply, one a thread: a fresh one of this size would
//! cost a page fault for every 4 KiB.

use std::cell::RefCell;

use super::backend::Answer;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Lends `length` bytes of any content to `then`.
pub(super) fn with<R>(length: usize, then: impl FnOnce(&mut [u8]) -> Answer<R>) -> Answer<R> {
    BUFFER.with(|buffer| match buffer.try_borrow_mut() {
        Ok(mut buffer) => {
            if buffer.len() < length {
                buffer.resize(length, 0);
            }
            then(&mut buffer[..length])
        }
        // Lent already, further up in this thread.
        Err(_) => then(&mut vec![0; length]),
    })
}
