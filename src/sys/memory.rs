//! Memory that this process no longer needs.

use std::ffi::c_void;

/// Lets go of the program's own code and constants, as far as they are mapped from its file.
///
/// What is executed next comes back by page faults, which cost no reading while the file is in the
/// page cache. A process that has done its setting up keeps so only what its loop needs: mapping a
/// page of a file maps up to fifteen around it (the kernel's fault-around), so a start leaves
/// megabytes mapped that nothing looks at again.
pub fn release_code() {
    // SAFETY: `release_segments` has the signature that the call wants, does not unwind, and takes no
    // data; the C library calls it on this thread while no object can be loaded or unloaded.
    unsafe { libc::dl_iterate_phdr(Some(release_segments), std::ptr::null_mut()) };
}

/// Gives memory that was allocated and freed back to the kernel (malloc_trim(3)); a C library without that keeps it.
///
/// The whole command line, an image's configuration and the plan made of it have been in the heap, and lie between
/// what is still used.
pub fn release_freed() {
    // SAFETY: it takes a number, and locks the heap as malloc(3) does.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0)
    };
}

/// Called for each loaded object: for a static program the program itself, first, and the vDSO.
extern "C" fn release_segments(info: *mut libc::dl_phdr_info, _size: usize, _data: *mut c_void) -> i32 {
    // SAFETY: the C library passes a pointer that is valid for the time of the call.
    let info = unsafe { &*info };
    if info.dlpi_phdr.is_null() {
        return 1;
    }
    // SAFETY: an object has `dlpi_phnum` program headers at `dlpi_phdr`, mapped as long as it is.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
    let code =
        headers.iter().filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0);
    for header in code {
        let Ok(length) = usize::try_from(header.p_memsz) else { continue };
        let start = info.dlpi_addr.wrapping_add(header.p_vaddr);
        let page = start & !(PAGE_BYTES - 1);
        // SAFETY: the range is a segment of a mapped file that was never writable, so every page that
        // goes is read from the file again, unchanged, when it is touched. A refusal changes nothing.
        unsafe { libc::madvise(page as *mut c_void, length + (start - page) as usize, libc::MADV_DONTNEED) };
    }
    // The program is the first object; the vDSO has no file.
    1
}

/// Segments begin on pages of this size at least (ELF psABI of every architecture that Linux has).
const PAGE_BYTES: u64 = 4096;

#[cfg(test)]
mod tests {
    #[test]
    fn code_that_was_let_go_runs_on() {
        let before = resident_file_kib();
        super::release_code();
        let after = resident_file_kib();
        assert!(after < before, "{after} KiB of {before} KiB are mapped");
    }

    fn resident_file_kib() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").expect("a process can read its own status");
        let line =
            status.lines().find(|line| line.starts_with("RssFile:")).expect("Linux 4.5 and later say it");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number of KiB")
    }
}
