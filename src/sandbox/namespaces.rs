//! A container's namespaces as open files.
//!
//! Its init opens them while it still may, and the keeper holds them. Entering by these asks for rights over
//! the namespaces alone: through a process (setns(2) with a pidfd) it asks for the right to trace that process
//! too, which nobody has over the engine's own init in front of a command (`--init`), as that hides itself.
//! And the end of pid 1 does not wait until everything in them is torn down.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::Mode;
use nix::unistd::Pid;

use crate::sys;

/// All kinds, in the order of entering: the user namespace gives the rights over the others.
const KINDS: [(CloneFlags, &str); 7] = [
    (CloneFlags::CLONE_NEWUSER, "user"),
    (CloneFlags::CLONE_NEWNET, "net"),
    (CloneFlags::CLONE_NEWPID, "pid"),
    (CloneFlags::CLONE_NEWIPC, "ipc"),
    (CloneFlags::CLONE_NEWUTS, "uts"),
    (CloneFlags::CLONE_NEWCGROUP, "cgroup"),
    (CloneFlags::CLONE_NEWNS, "mnt"),
];

/// See the module.
#[derive(Debug, Default)]
pub struct Namespaces(Vec<(CloneFlags, OwnedFd)>);

impl Namespaces {
    /// Those of this process, of the given kinds.
    ///
    /// # Errors
    /// As open(2).
    pub fn own(kinds: CloneFlags) -> Result<Self, Errno> {
        Self::in_proc("self", kinds)
    }

    /// Those of another process.
    ///
    /// # Errors
    /// As open(2).
    pub fn of_process(pid: Pid, kinds: CloneFlags) -> Result<Self, Errno> {
        Self::in_proc(&pid.to_string(), kinds)
    }

    fn in_proc(process: &str, kinds: CloneFlags) -> Result<Self, Errno> {
        let wanted = KINDS.into_iter().filter(|(kind, _)| kinds.contains(*kind));
        let opened = wanted.map(|(kind, name)| {
            let path = format!("/proc/{process}/ns/{name}");
            Ok((kind, open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?))
        });
        Ok(Self(opened.collect::<Result<_, Errno>>()?))
    }

    /// From what [`Self::kinds`] and [`Self::files`] said in another process.
    #[must_use]
    pub fn received(kinds: &[i32], files: Vec<OwnedFd>) -> Self {
        Self(kinds.iter().map(|bits| CloneFlags::from_bits_truncate(*bits)).zip(files).collect())
    }

    /// Which they are, as numbers of clone(2).
    #[must_use]
    pub fn kinds(&self) -> Vec<i32> {
        self.0.iter().map(|(kind, _)| kind.bits()).collect()
    }

    /// The files, in the same order.
    #[must_use]
    pub fn files(&self) -> Vec<BorrowedFd<'_>> {
        self.0.iter().map(|(_, file)| file.as_fd()).collect()
    }

    /// Their numbers, for [`sys::fd::close_all_except`].
    #[must_use]
    pub fn numbers(&self) -> Vec<RawFd> {
        self.0.iter().map(|(_, file)| file.as_raw_fd()).collect()
    }

    /// One of them.
    #[must_use]
    pub fn of(&self, kind: CloneFlags) -> Option<BorrowedFd<'_>> {
        self.0.iter().find(|(have, _)| *have == kind).map(|(_, file)| file.as_fd())
    }

    /// Enters those of the given kinds that there are.
    ///
    /// # Errors
    /// As setns(2).
    pub fn enter(&self, kinds: CloneFlags) -> Result<(), Errno> {
        self.0
            .iter()
            .filter(|(kind, _)| kinds.contains(*kind))
            .try_for_each(|(kind, file)| setns(file, *kind))
    }

    /// Sends them over a socket, with a tag in front.
    ///
    /// # Errors
    /// As sendmsg(2).
    pub fn send(&self, socket: BorrowedFd<'_>, tag: u8) -> Result<(), Errno> {
        let mut text = vec![tag];
        text.extend(self.kinds().into_iter().flat_map(i32::to_ne_bytes));
        sys::fd::send_with_fds(socket, &text, &self.files())
    }

    /// What [`Self::send`] sent, without its tag.
    #[must_use]
    pub fn parse(text: &[u8], files: Vec<OwnedFd>) -> Self {
        let (numbers, _) = text.as_chunks::<4>();
        let kinds: Vec<i32> = numbers.iter().copied().map(i32::from_ne_bytes).collect();
        Self::received(&kinds, files)
    }
}
