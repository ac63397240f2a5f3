//! The memory of TCP buffers, and the sockets that borrow it.
//!
//! A ring buffer is large (its size is the largest window) and mostly empty, so it lives in
//! anonymous memory that the kernel commits page by page on first touch. Blocks come in powers of
//! two, are cut from slabs, are recycled when a connection ends, and slabs are never unmapped
//! while the arena lives.
//!
//! smoltcp wants `&'static mut [u8]` for a socket that is stored. [`RingSocket`] keeps the borrow
//! and the block together: the socket is reachable only through closures that are generic over
//! its lifetime, so it cannot be carried out of them, and it is dropped before its blocks go
//! back. That is what keeps a block from having two owners.

use std::io;
use std::mem::ManuallyDrop;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::slice;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp;

/// The smallest ring: half of what one offloaded segment carries. Smaller ones would save little,
/// as nothing is committed before it is used.
pub(crate) const RING_BYTES_MIN: usize = 32 << 10;
/// The largest ring.
pub(crate) const RING_BYTES_MAX: usize = 8 << 20;

const CLASSES: usize = (RING_BYTES_MAX / RING_BYTES_MIN).ilog2() as usize + 1;

/// Blocks cut from one mapping: few enough that a gateway with one connection reserves little,
/// enough that ten thousand connections stay far below the kernel's limit of 65,530 mappings.
const BLOCKS_PER_SLAB: usize = 16;

/// Free blocks of one class whose pages are kept, so that a connection a request does not fault
/// its pages in again each time. They are given back by [`Arena::trim`].
const WARM_BLOCKS: usize = 8;

/// Where blocks come from; a handle, cheap to clone.
#[derive(Clone)]
pub(crate) struct Arena {
    shelves: Arc<Mutex<Shelves>>,
}

#[derive(Default)]
struct Shelves {
    /// Free blocks whose pages may be committed.
    warm: [Vec<Address>; CLASSES],
    /// Free blocks without pages.
    cold: [Vec<Address>; CLASSES],
    slabs: Vec<Slab>,
}

/// The address of a block that nothing refers to.
struct Address(NonNull<u8>);

// SAFETY: an Address is only a number until `lease` makes a slice of it, and each one is in
// exactly one place: a shelf or a Block.
unsafe impl Send for Address {}

struct Slab {
    start: Address,
    bytes: usize,
}

impl Drop for Slab {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `grow` with this address and length, and the shelves
        // are dropped only after the last Block, which holds a handle to them.
        let result = unsafe { munmap(self.start.0.cast(), self.bytes) };
        debug_assert!(result.is_ok(), "munmap of a whole mapping");
    }
}

/// A leased block. Its bytes belong to whoever was given the slice with it.
struct Block {
    address: Address,
    class: usize,
    arena: Arena,
}

impl Arena {
    pub(crate) fn new() -> Self {
        Self { shelves: Arc::default() }
    }

    fn shelves(&self) -> MutexGuard<'_, Shelves> {
        // Nothing that holds the lock can panic half way through a change.
        self.shelves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the pages of free blocks back to the system.
    pub(crate) fn trim(&self) {
        let mut shelves = self.shelves();
        for class in 0..CLASSES {
            while let Some(address) = shelves.warm[class].pop() {
                discard(&address, class_bytes(class));
                shelves.cold[class].push(address);
            }
        }
    }

    fn lease(&self, bytes: usize) -> io::Result<Block> {
        let class = class_of(bytes);
        let mut shelves = self.shelves();
        let address = match shelves.warm[class].pop().or_else(|| shelves.cold[class].pop()) {
            Some(address) => address,
            None => shelves.grow(class)?,
        };
        Ok(Block { address, class, arena: self.clone() })
    }
}

impl Shelves {
    /// Maps one more slab of this class and returns one of its blocks.
    fn grow(&mut self, class: usize) -> io::Result<Address> {
        let block_bytes = class_bytes(class);
        let bytes = block_bytes * BLOCKS_PER_SLAB;
        let length = NonZeroUsize::new(bytes).expect("a class has at least RING_BYTES_MIN");
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: an anonymous mapping at an address of the kernel's choice overlaps nothing.
        let start = unsafe { mmap_anonymous(None, length, protection, flags) }?.cast::<u8>();
        self.slabs.push(Slab { start: Address(start), bytes });
        for index in 1..BLOCKS_PER_SLAB {
            // SAFETY: the offset is less than the mapping's length.
            let block = unsafe { start.add(index * block_bytes) };
            self.cold[class].push(Address(block));
        }
        Ok(Address(start))
    }
}

impl Block {
    fn bytes(&self) -> usize {
        class_bytes(self.class)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let address = Address(self.address.0);
        let mut shelves = self.arena.shelves();
        if shelves.warm[self.class].len() < WARM_BLOCKS {
            shelves.warm[self.class].push(address);
        } else {
            discard(&address, self.bytes());
            shelves.cold[self.class].push(address);
        }
    }
}

/// Drops the pages of a range of whole blocks; it reads as zeroes afterwards.
fn discard(address: &Address, bytes: usize) {
    // SAFETY: the range is a block of a live private anonymous mapping; its content is dead, and
    // zeroes are a valid value of bytes. A slice of it may exist, as RingSocket's does: then the
    // caller holds that socket exclusively for the length of the call.
    let result = unsafe { madvise(address.0.cast(), bytes, MmapAdvise::MADV_DONTNEED) };
    debug_assert!(result.is_ok(), "madvise of a mapped block");
}

const fn class_bytes(class: usize) -> usize {
    RING_BYTES_MIN << class
}

fn class_of(bytes: usize) -> usize {
    let bytes = bytes.clamp(RING_BYTES_MIN, RING_BYTES_MAX).next_power_of_two();
    (bytes / RING_BYTES_MIN).ilog2() as usize
}

/// A smoltcp TCP socket alone in its set, with its two rings.
pub(crate) struct RingSocket {
    /// Dropped by hand, before the blocks that it borrows.
    set: ManuallyDrop<SocketSet<'static>>,
    handle: SocketHandle,
    receive: Block,
    transmit: Block,
}

impl RingSocket {
    /// A closed socket with rings of `bytes`, rounded up to a power of two.
    pub(crate) fn new(arena: &Arena, bytes: usize) -> io::Result<Self> {
        let receive = arena.lease(bytes)?;
        let transmit = arena.lease(bytes)?;
        let slice_of = |block: &Block| -> &'static mut [u8] {
            // SAFETY: the block was just taken from its shelf, so no other slice of it exists;
            // its memory stays mapped while the Block lives, and `Drop` below ends the socket,
            // which alone holds the slice, before the Block.
            unsafe { slice::from_raw_parts_mut(block.address.0.as_ptr(), block.bytes()) }
        };
        let socket = tcp::Socket::new(
            tcp::SocketBuffer::new(slice_of(&receive)),
            tcp::SocketBuffer::new(slice_of(&transmit)),
        );
        let mut set = SocketSet::new(Vec::with_capacity(1));
        let handle = set.add(socket);
        Ok(Self { set: ManuallyDrop::new(set), handle, receive, transmit })
    }

    /// Lends the set. The closure is generic over the socket's lifetime, so the socket cannot
    /// leave it.
    pub(crate) fn with_set<R>(&mut self, f: impl for<'r> FnOnce(&mut SocketSet<'r>) -> R) -> R {
        f(&mut self.set)
    }

    /// Lends the socket, on the same terms.
    pub(crate) fn with<R>(&mut self, f: impl for<'r> FnOnce(&mut tcp::Socket<'r>) -> R) -> R {
        f(self.set.get_mut::<tcp::Socket<'static>>(self.handle))
    }

    /// Gives the pages of both rings back to the system, if nothing is queued in them.
    ///
    /// The caller must know that no out-of-order segment is held either (the stack does not
    /// tell): its bytes would become zeroes.
    pub(crate) fn discard_empty(&mut self) -> bool {
        let empty = self.with(|socket| socket.recv_queue() == 0 && socket.send_queue() == 0);
        if empty {
            discard(&self.receive.address, self.receive.bytes());
            discard(&self.transmit.address, self.transmit.bytes());
        }
        empty
    }
}

impl Drop for RingSocket {
    fn drop(&mut self) {
        // SAFETY: the set is dropped here once and not used afterwards.
        unsafe { ManuallyDrop::drop(&mut self.set) };
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed mapping is a failed test")]

    use super::*;

    #[test]
    fn classes_are_powers_of_two_within_the_bounds() {
        for (asked, given) in [
            (0, RING_BYTES_MIN),
            (RING_BYTES_MIN, RING_BYTES_MIN),
            (RING_BYTES_MIN + 1, RING_BYTES_MIN * 2),
            (1 << 20, 1 << 20),
            (usize::MAX, RING_BYTES_MAX),
        ] {
            assert_eq!(class_bytes(class_of(asked)), given, "{asked}");
        }
        assert_eq!(class_of(RING_BYTES_MAX), CLASSES - 1);
    }

    #[test]
    fn rings_are_distinct_and_recycled() {
        let arena = Arena::new();
        let sockets: Vec<_> = (0..40).map(|_| RingSocket::new(&arena, 64 << 10).unwrap()).collect();
        let mut addresses: Vec<_> =
            sockets.iter().flat_map(|s| [s.receive.address.0, s.transmit.address.0]).collect();
        addresses.sort_unstable();
        addresses.dedup();
        assert_eq!(addresses.len(), 80);
        drop(sockets);

        let slabs = arena.shelves().slabs.len();
        let again: Vec<_> = (0..40).map(|_| RingSocket::new(&arena, 64 << 10).unwrap()).collect();
        assert_eq!(arena.shelves().slabs.len(), slabs);
        drop(again);
        arena.trim();
        assert!(arena.shelves().warm.iter().all(Vec::is_empty));
    }
}
