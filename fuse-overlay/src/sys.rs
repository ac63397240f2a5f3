//! The system calls that neither the standard library nor `nix` offer safely.
//!
//! Everything unsafe of this crate is in this file.
#![allow(unsafe_code, reason = "the one module of this crate that calls the kernel directly")]

use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

/// A read-only shared mapping of a whole file.
///
/// The bytes are as stable as the file: the callers map only files of the store, which are
/// written once, renamed into place and never changed. A file cut short by someone else would
/// raise SIGBUS on access to what is gone, so data is read through the mapping only where
/// [`Mapping::resident`] says that its pages are in memory.
#[derive(Debug)]
pub(crate) struct Mapping {
    address: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping is read-only and owned by this value alone; reading from several threads
// is no data race.
unsafe impl Send for Mapping {}
// SAFETY: as for Send: no method writes.
unsafe impl Sync for Mapping {}

impl Mapping {
    pub(crate) fn new(file: &File, length: usize) -> io::Result<Self> {
        if length == 0 {
            // mmap(2) refuses an empty mapping; a slice of no bytes needs no memory behind it.
            return Ok(Self { address: NonNull::dangling(), length });
        }
        let (read, shared, fd) = (libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd());
        // SAFETY: no address is asked for, so no existing mapping is replaced; the descriptor is
        // open for the duration of the call.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), length, read, shared, fd, 0) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let address = NonNull::new(address.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { address, length })
    }

    /// Whether every page of `range` is in memory, so that reading it cannot block or fault.
    pub(crate) fn resident(&self, range: Range<usize>) -> bool {
        /// Pages asked for in one call: 1 MiB of 4 KiB pages, the largest read FUSE sends.
        const BATCH: usize = 257;
        if range.start >= range.end || range.end > self.length {
            return false;
        }
        let page = page_size();
        let start = range.start - range.start % page;
        let mut pages = [0u8; BATCH];
        let count = (range.end - start).div_ceil(page);
        if count > BATCH {
            return false;
        }
        // SAFETY: start is within the mapping, as range is.
        let address = unsafe { self.address.as_ptr().add(start) };
        // SAFETY: the range lies within the mapping (its last page included), and the vector has
        // room for a byte a page.
        let result = unsafe { libc::mincore(address.cast(), range.end - start, pages.as_mut_ptr()) };
        result == 0 && pages[..count].iter().all(|page| page & 1 == 1)
    }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: address and length are those of a live mapping (or dangling and 0), and the
        // files mapped are never written (see the type's documentation).
        unsafe { std::slice::from_raw_parts(self.address.as_ptr(), self.length) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.length > 0 {
            // SAFETY: address and length are what mmap returned, and no slice outlives self.
            unsafe { libc::munmap(self.address.as_ptr().cast(), self.length) };
        }
    }
}

/// The size of a memory page in bytes.
pub(crate) fn page_size() -> usize {
    // SAFETY: sysconf has no preconditions.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).ok().filter(|size| size.is_power_of_two()).unwrap_or(4096)
}

/// Asks the kernel to read a range of a file into the page cache soon. Advice only.
pub(crate) fn will_need(file: &File, offset: u64, length: u64) {
    let (Ok(offset), Ok(length)) = (i64::try_from(offset), i64::try_from(length)) else { return };
    // SAFETY: the descriptor is open; the call only gives advice.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), offset, length, libc::POSIX_FADV_WILLNEED) };
}
