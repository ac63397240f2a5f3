//! The system calls that neither the standard library nor `nix` offer safely.
//!
//! Everything unsafe of this crate is in this file and below it.
#![allow(unsafe_code, reason = "the one module of this crate that calls the kernel directly")]

mod guard;

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::ops::{Deref, Range};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use nix::errno::Errno;

use crate::index::Timestamp;

/// A read-only shared mapping of a whole file.
///
/// The bytes are as stable as the file: the callers map only files of the store, which are
/// written once, renamed into place and never changed. A file that someone else cuts short reads
/// as zeros where it was (see [`guard`]).
#[derive(Debug)]
pub(crate) struct Mapping {
    address: NonNull<u8>,
    length: usize,
    /// None of an empty mapping. Dropped after this value's own `drop`, which unmaps.
    _guard: Option<guard::Guard>,
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
            return Ok(Self { address: NonNull::dangling(), length, _guard: None });
        }
        let (read, shared, fd) = (libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd());
        // SAFETY: no address is asked for, so no existing mapping is replaced; the descriptor is
        // open for the duration of the call.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), length, read, shared, fd, 0) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let address = NonNull::new(address.cast()).ok_or(io::ErrorKind::InvalidData)?;
        let mut mapping = Self { address, length, _guard: None };
        mapping._guard = Some(guard::Guard::new(address.addr().get(), length)?);
        Ok(mapping)
    }

    /// Lets go of its pages: the file's stay in the machine's cache, and are mapped again when they are
    /// read.
    pub(crate) fn release(&self) {
        if self.length > 0 {
            // SAFETY: the range is the mapping's own, of a file and shared: what is read afterwards is
            // read from the file again, so no slice of it changes. That it fails would change nothing.
            unsafe { libc::madvise(self.address.as_ptr().cast(), self.length, libc::MADV_DONTNEED) };
        }
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
        // files mapped are never written (see the type's documentation); a page that is gone is
        // replaced by the guard.
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

/// What `statx` tells of a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FileStatus {
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    /// As the kernel's `new_encode_dev`.
    pub rdev: u32,
    pub device: u64,
    pub inode: u64,
    pub size: u64,
    pub blocks: u64,
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    /// Zero where the filesystem does not know.
    pub btime: Timestamp,
    /// Looking into this directory would mount something.
    pub automount: bool,
}

/// Looks at `name` in a directory, or at the descriptor itself where the name is empty. Follows
/// no symlink and mounts nothing.
pub(crate) fn status(at: BorrowedFd<'_>, name: &CStr) -> Result<FileStatus, Errno> {
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT | libc::AT_EMPTY_PATH;
    let mask = libc::STATX_BASIC_STATS | libc::STATX_BTIME;
    let mut status = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the name ends in a NUL, and the kernel writes one statx structure.
    let result = unsafe { libc::statx(at.as_raw_fd(), name.as_ptr(), flags, mask, status.as_mut_ptr()) };
    Errno::result(result)?;
    // SAFETY: it was zeroed, for which every field of the structure is valid.
    let status = unsafe { status.assume_init() };
    let time = |time: libc::statx_timestamp| Timestamp { seconds: time.tv_sec, nanoseconds: time.tv_nsec };
    Ok(FileStatus {
        mode: u32::from(status.stx_mode),
        nlink: status.stx_nlink,
        uid: status.stx_uid,
        gid: status.stx_gid,
        rdev: encode_device(status.stx_rdev_major, status.stx_rdev_minor),
        device: u64::from(status.stx_dev_major) << 32 | u64::from(status.stx_dev_minor),
        inode: status.stx_ino,
        size: status.stx_size,
        blocks: status.stx_blocks,
        atime: time(status.stx_atime),
        mtime: time(status.stx_mtime),
        ctime: time(status.stx_ctime),
        btime: time(status.stx_btime),
        automount: status.stx_attributes & libc::STATX_ATTR_AUTOMOUNT as u64 != 0,
    })
}

/// A device number as the kernel's `new_encode_dev`, which FUSE uses.
pub(crate) fn encode_device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & 0xf_ff00) << 12
}

/// Makes `to` share the data of `from`, where the filesystem can.
pub(crate) fn clone_file(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: FICLONE takes a descriptor by value and touches no memory of ours.
    let result = unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONE, from.as_raw_fd()) };
    Errno::result(result).map(drop)
}

/// The value of an xattr of an open file.
pub(crate) fn get_xattr(file: BorrowedFd<'_>, name: &CStr) -> Result<Vec<u8>, Errno> {
    sized(|buffer| {
        // SAFETY: the kernel writes at most as many bytes as the buffer has.
        unsafe { libc::fgetxattr(file.as_raw_fd(), name.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) }
    })
}

/// Sets an xattr of an open file.
pub(crate) fn set_xattr(file: BorrowedFd<'_>, name: &CStr, value: &[u8]) -> Result<(), Errno> {
    let (fd, data, length) = (file.as_raw_fd(), value.as_ptr().cast(), value.len());
    // SAFETY: the name ends in a NUL, and the kernel reads as many bytes as the value has.
    let result = unsafe { libc::fsetxattr(fd, name.as_ptr(), data, length, 0) };
    Errno::result(result).map(drop)
}

/// The names of an open file's xattrs, each ended by a NUL.
pub(crate) fn list_xattrs(file: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    sized(|buffer| {
        // SAFETY: the kernel writes at most as many bytes as the buffer has.
        unsafe { libc::flistxattr(file.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) }
    })
}

/// Names and values of extended attributes.
pub(crate) type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// Names and values of all xattrs of what an `O_PATH` descriptor refers to: through /proc, since
/// such a descriptor has none of its own calls before Linux 6.13 (getxattrat(2)).
pub(crate) fn all_xattrs(node: BorrowedFd<'_>) -> Result<Xattrs, Errno> {
    let path = CString::new(format!("/proc/self/fd/{}", node.as_raw_fd())).map_err(|_| Errno::EINVAL)?;
    let names = sized(|buffer| {
        // SAFETY: the path ends in a NUL, and the kernel writes at most as many bytes as the buffer has.
        unsafe { libc::listxattr(path.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) }
    });
    let names = match names {
        Err(Errno::EOPNOTSUPP) => return Ok(Vec::new()),
        names => names?,
    };
    let mut found = Vec::new();
    for name in names.split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        let value = sized(|buffer| {
            // SAFETY: both strings end in a NUL, and the kernel writes at most as many bytes as the
            // buffer has.
            unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) }
        });
        match value {
            Ok(value) => found.push((name.to_bytes().to_vec(), value)),
            // Gone meanwhile, or only listed.
            Err(Errno::ENODATA | Errno::EOPNOTSUPP) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(found)
}

/// Names and values of all xattrs of an open file.
pub(crate) fn file_xattrs(file: BorrowedFd<'_>) -> Result<Xattrs, Errno> {
    let names = match list_xattrs(file) {
        Err(Errno::EOPNOTSUPP) => return Ok(Vec::new()),
        names => names?,
    };
    let mut found = Vec::new();
    for name in names.split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        match get_xattr(file, name) {
            Ok(value) => found.push((name.to_bytes().to_vec(), value)),
            // Gone meanwhile, or only listed.
            Err(Errno::ENODATA | Errno::EOPNOTSUPP) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(found)
}

/// Bytes that nearly every xattr and list of names fit into.
const USUAL_XATTR_BYTES: usize = 512;

/// Calls with a small buffer and, where that does not do, with one that is large enough for every
/// xattr Linux allows (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`), which costs more than the call.
fn sized(mut call: impl FnMut(&mut [u8]) -> isize) -> Result<Vec<u8>, Errno> {
    let mut usual = [0; USUAL_XATTR_BYTES];
    match Errno::result(call(&mut usual)) {
        Err(Errno::ERANGE) => {}
        result => return result.map(|length| usual[..usize::try_from(length).unwrap_or(0)].to_vec()),
    }
    let mut buffer = vec![0; 1 << 16];
    let length = Errno::result(call(&mut buffer))?;
    buffer.truncate(usize::try_from(length).unwrap_or(0));
    Ok(buffer)
}

/// Counters that take up memory only where they have been counted.
pub(crate) fn counters(length: usize) -> Box<[AtomicU64]> {
    // Allocated as zeros, which the allocator takes from the kernel untouched.
    let zeros: Box<[u64]> = vec![0u64; length].into_boxed_slice();
    // Where 64-bit integers are aligned to less than atomics, the cast would be wrong.
    const { assert!(align_of::<AtomicU64>() == align_of::<u64>()) };
    // SAFETY: an AtomicU64 has the size of a u64 (documented) and, as asserted, its alignment;
    // the box is owned and turned over whole.
    unsafe { Box::from_raw(Box::into_raw(zeros) as *mut [AtomicU64]) }
}
