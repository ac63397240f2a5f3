//! A mapping whose file is cut short underneath reads as zeros instead of ending the process.
//!
//! Touching a page of a mapping that its file no longer has raises SIGBUS. The files of a store
//! are never changed by this program, but another program of the same user can truncate one, and
//! a server must not take its container down for that. So every mapping is entered here, and the
//! handler puts a page of zeros where the missing one was: readers check whatever they read, so
//! zeros become an error of one request. Any other SIGBUS ends the process as it would have.

use std::io;
use std::mem::MaybeUninit;
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Mappings at once: an image has at most 127 layers and one index, and a process that merges
/// maps the index of each layer too.
const SLOTS: usize = 4096;

struct Slot {
    /// First address; 0 while the slot is free.
    start: AtomicUsize,
    /// Address after the last one; 0 while the slot is being filled.
    end: AtomicUsize,
}

static TABLE: [Slot; SLOTS] =
    [const { Slot { start: AtomicUsize::new(0), end: AtomicUsize::new(0) } }; SLOTS];
static INSTALL: Once = Once::new();

/// A mapping's entry in the table; leaves it when dropped, which must be after the unmapping.
#[derive(Debug)]
pub(super) struct Guard {
    slot: usize,
}

impl Guard {
    /// Enters `length` bytes at `start`.
    pub(super) fn new(start: usize, length: usize) -> io::Result<Self> {
        INSTALL.call_once(install);
        let end = start.checked_add(length).ok_or(io::ErrorKind::InvalidInput)?;
        for (slot, range) in TABLE.iter().enumerate() {
            if range.start.compare_exchange(0, start, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                range.end.store(end, Ordering::Release);
                return Ok(Self { slot });
            }
        }
        Err(io::Error::other("more files are mapped at once than this process can look after"))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let range = &TABLE[self.slot];
        range.end.store(0, Ordering::Release);
        range.start.store(0, Ordering::Release);
    }
}

fn install() {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: all fields of the structure may be zero.
    let action = unsafe { action.assume_init_mut() };
    action.sa_sigaction = on_fault as *const () as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    // SAFETY: the handler has the signature that SA_SIGINFO asks for, and calls only what may be
    // called in a signal handler. A failure (none is documented for these arguments) leaves the
    // default, under which the process ends.
    unsafe { libc::sigaction(libc::SIGBUS, action, std::ptr::null_mut()) };
}

/// Runs on the faulting thread: atomics, mmap(2) and sigaction(2) only, errno kept.
extern "C" fn on_fault(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel passes a pointer to a valid siginfo.
    let info = unsafe { &*info };
    // SAFETY: for SIGBUS the siginfo has an address.
    let address = unsafe { info.si_addr() } as usize;
    // SAFETY: errno's place is the thread's own and always valid.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    let kept = unsafe { *errno };
    let page = super::page_size();
    let ours = TABLE.iter().any(|range| {
        let (start, end) = (range.start.load(Ordering::Acquire), range.end.load(Ordering::Acquire));
        // The last page reaches beyond the file's end.
        start != 0 && start <= address && address < end.next_multiple_of(page)
    });
    if !ours || !replace_page(address - address % page, page) {
        // SAFETY: resets to the default, under which the repeated access ends the process.
        unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
    }
    // SAFETY: as above.
    unsafe { *errno = kept };
}

fn replace_page(start: usize, length: usize) -> bool {
    let start = start as *mut libc::c_void;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    // SAFETY: the page belongs to a mapping of ours (it is in the table), which is only ever read;
    // the table's entry goes only after the mapping, so nobody else can have taken the address.
    let mapped = unsafe { libc::mmap(start, length, libc::PROT_READ, flags, -1, 0) };
    mapped != libc::MAP_FAILED
}
