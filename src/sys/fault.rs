//! Places at which a test ends a process, or has a step fail, to see what everybody else makes of it.
//!
//! There is nothing here but for tests: without the feature `fault-points`, which `scripts/test` alone turns on, a
//! place is an empty function. With it, `HOSTEL_FAULT=PLACE:WHAT:N` chooses the N-th time, over all processes of one
//! command, that somebody comes to the place: `KILL` ends that process by SIGKILL, the name of an errno fails the
//! step. The times are counted in the file that `HOSTEL_FAULT_COUNT` names, by a shared mapping: behind the fences
//! and inside a container nothing could be opened.

#[cfg(feature = "fault-points")]
pub use chosen::{begin, io, point};

/// Reads what was chosen; before anything is forked.
#[cfg(not(feature = "fault-points"))]
pub fn begin() {}

/// A place between two steps.
#[cfg(not(feature = "fault-points"))]
pub fn point(_place: &str) {}

/// A step that may fail.
///
/// # Errors
/// The one that was chosen.
#[cfg(not(feature = "fault-points"))]
pub fn io(_place: &str) -> std::io::Result<()> {
    Ok(())
}

#[cfg(feature = "fault-points")]
mod chosen {
    use std::io;
    use std::num::NonZeroUsize;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    use nix::errno::Errno;
    use nix::sys::mman::{MapFlags, ProtFlags, mmap};

    struct Fault {
        place: String,
        /// None ends the process.
        errno: Option<Errno>,
        time: u32,
        count: &'static AtomicU32,
    }

    static FAULT: OnceLock<Option<Fault>> = OnceLock::new();

    /// Reads what was chosen; before anything is forked.
    pub fn begin() {
        FAULT.get_or_init(read);
    }

    fn read() -> Option<Fault> {
        let text = std::env::var("HOSTEL_FAULT").ok()?;
        let mut parts = text.split(':');
        let place = parts.next()?.to_owned();
        let errno = match parts.next().unwrap_or("KILL") {
            "EIO" => Some(Errno::EIO),
            "ENOSPC" => Some(Errno::ENOSPC),
            _ => None,
        };
        let time = parts.next().and_then(|time| time.parse().ok()).unwrap_or(1);
        let path = std::env::var_os("HOSTEL_FAULT_COUNT")?;
        let file = std::fs::File::options().read(true).write(true).open(path).ok()?;
        let length = NonZeroUsize::new(size_of::<AtomicU32>())?;
        let flags = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, at an address of the kernel's choice, takes the place of nothing.
        let at = unsafe { mmap(None, length, flags, MapFlags::MAP_SHARED, &file, 0) }.ok()?;
        // SAFETY: the mapping is page-aligned, as long as the number, writable, and never taken away; the test that
        // made the file does not cut it.
        let count = unsafe { at.cast::<AtomicU32>().as_ref() };
        Some(Fault { place, errno, time, count })
    }

    fn is_due(place: &str) -> Option<&'static Fault> {
        let fault = FAULT.get()?.as_ref().filter(|fault| fault.place == place)?;
        (fault.count.fetch_add(1, Ordering::SeqCst) + 1 == fault.time).then_some(fault)
    }

    fn end() -> ! {
        let _ = nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::Signal::SIGKILL);
        // Behind the server's fence there is no kill(2).
        super::super::process::exit_now(137)
    }

    /// A place between two steps.
    pub fn point(place: &str) {
        if is_due(place).is_some_and(|fault| fault.errno.is_none()) {
            end()
        }
    }

    /// A step that may fail.
    ///
    /// # Errors
    /// The one that was chosen.
    pub fn io(place: &str) -> io::Result<()> {
        match is_due(place) {
            None => Ok(()),
            Some(Fault { errno: Some(errno), .. }) => Err((*errno).into()),
            Some(_) => end(),
        }
    }
}
