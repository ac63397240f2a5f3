//! Processes: clone, fork, pidfds, waiting, and the per-process switches of prctl(2).

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::unistd::{ForkResult, Pid};

/// A child process that this process made and has to reap.
#[derive(Debug)]
pub struct Child {
    /// Its pid in the namespace of the caller.
    pub pid: Pid,
    /// A descriptor that refers to it and to no other process ever.
    pub pidfd: OwnedFd,
}

/// The two sides of a fork.
#[derive(Debug)]
pub enum Fork {
    /// In the parent, with the child's handle.
    Parent(Child),
    /// In the child.
    Child,
}

/// Lets the calling thread have less of a processor that others want, too (nice(2): on Linux a value
/// of the thread). Not being allowed to changes nothing that matters.
pub fn be_nice(increment: i32) {
    // SAFETY: a call without pointers.
    unsafe { libc::nice(increment) };
}

/// fork(2) that also yields a pidfd.
///
/// # Errors
/// As clone3(2): EAGAIN at the process limit, ENOMEM, ENOSPC at a namespace limit, EPERM where user
/// namespaces are forbidden.
pub fn clone(namespaces: u64, parent_of_caller: bool) -> Result<Fork, Errno> {
    let mut pidfd: libc::c_int = -1;
    // SAFETY: clone_args is plain data for which zero is a valid value of every field.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = namespaces | libc::CLONE_PIDFD as u64;
    if parent_of_caller {
        // The exit signal is inherited from the caller then (clone(2), CLONE_PARENT).
        args.flags |= libc::CLONE_PARENT as u64;
    } else {
        args.exit_signal = libc::SIGCHLD as u64;
    }
    let place = std::ptr::from_mut(&mut pidfd);
    args.pidfd = place as u64;
    clone3(&mut args, place)
}

/// `place` is where `args` has the kernel write the new descriptor to, and valid.
fn clone3(args: &mut libc::clone_args, place: *const libc::c_int) -> Result<Fork, Errno> {
    // SAFETY: without CLONE_VM the child gets a copy of the address space, as with fork(2); the
    // engine forks only while it has one thread (architecture: every fork comes before the first
    // thread), so no lock can be held by a thread that the child lacks. `args` outlives the call.
    let result =
        unsafe { libc::syscall(libc::SYS_clone3, std::ptr::from_mut(args), size_of::<libc::clone_args>()) };
    match result {
        0 => Ok(Fork::Child),
        pid if pid > 0 => {
            // SAFETY: valid as every caller's is; the kernel has just stored the number there.
            let number = unsafe { place.read_volatile() };
            // SAFETY: a new descriptor, which nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(number) };
            Ok(Fork::Parent(Child { pid: Pid::from_raw(pid as libc::pid_t), pidfd }))
        }
        _ => Err(Errno::last()),
    }
}

/// Plain fork(2), for helpers that are waited for by pid.
///
/// # Errors
/// As fork(2).
pub fn fork() -> Result<ForkResult, Errno> {
    // SAFETY: as in `clone`: only called while the process has one thread.
    unsafe { nix::unistd::fork() }
}

/// A descriptor for a process by pid (pidfd_open(2)).
///
/// # Errors
/// ESRCH when there is no such process.
pub fn pidfd_open(pid: Pid) -> Result<OwnedFd, Errno> {
    // SAFETY: the call takes integers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    let fd = Errno::result(fd)?;
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Sends a signal through a pidfd; 0 only asks whether the process is there.
///
/// # Errors
/// ESRCH when it has been reaped, EINVAL for a number that is no signal, EPERM.
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<(), Errno> {
    // SAFETY: the siginfo pointer may be null (pidfd_send_signal(2)).
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    Errno::result(result).map(drop)
}

/// How a process ended, as a shell tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By itself, with a code.
    Exited(u8),
    /// By a signal.
    Signaled(i32),
}

impl Ended {
    /// 0-255; 128+n for signal n.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Exited(code) => code,
            Self::Signaled(signal) => (128 + signal) as u8,
        }
    }
}

/// Reaps one child, if one has ended; `None` when none has.
///
/// # Errors
/// ECHILD when there is no child at all.
pub fn reap_any() -> Result<Option<(Pid, Ended)>, Errno> {
    wait(-1, libc::WNOHANG)
}

/// Waits for one child.
///
/// # Errors
/// ECHILD when it is not a child of the caller.
pub fn wait_for(pid: Pid) -> Result<Ended, Errno> {
    loop {
        match wait(pid.as_raw(), 0) {
            Ok(Some((_, ended))) => return Ok(ended),
            Ok(None) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
}

fn wait(pid: libc::pid_t, flags: libc::c_int) -> Result<Option<(Pid, Ended)>, Errno> {
    let mut status = 0;
    // SAFETY: `status` is a valid place for the call to write an int to.
    let pid = Errno::result(unsafe { libc::waitpid(pid, &raw mut status, flags | libc::__WALL) })?;
    if pid == 0 {
        return Ok(None);
    }
    let ended = if libc::WIFSIGNALED(status) {
        Ended::Signaled(libc::WTERMSIG(status))
    } else {
        Ended::Exited(libc::WEXITSTATUS(status) as u8)
    };
    Ok(Some((Pid::from_raw(pid), ended)))
}

/// Replaces the process by a program.
///
/// # Errors
/// As execve(2); returns only on failure.
pub fn execve(path: &CStr, args: &[&CStr], env: &[&CStr]) -> Errno {
    match nix::unistd::execve(path, args, env) {
        Err(error) => error,
    }
}

/// Ends the process at once, without running destructors or flushing stdio: for forked children,
/// whose parent owns those.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit(2) has no precondition.
    unsafe { libc::_exit(code) }
}

fn prctl(option: libc::c_int, argument: libc::c_ulong) -> Result<libc::c_int, Errno> {
    // SAFETY: the options used here take integers only.
    Errno::result(unsafe {
        libc::prctl(option, argument, 0 as libc::c_ulong, 0 as libc::c_ulong, 0 as libc::c_ulong)
    })
}

/// The signal that this process gets when its parent dies; cleared by a change of credentials, so it
/// is set after the last one (prctl(2), PR_SET_PDEATHSIG).
///
/// # Errors
/// EINVAL for a number that is no signal.
pub fn set_parent_death_signal(signal: i32) -> Result<(), Errno> {
    prctl(libc::PR_SET_PDEATHSIG, signal as libc::c_ulong).map(drop)
}

/// Whether others of the same user may trace this process, read its memory or open its /proc/PID/exe.
///
/// # Errors
/// None that the kernel documents for 0 and 1.
pub fn set_dumpable(dumpable: bool) -> Result<(), Errno> {
    prctl(libc::PR_SET_DUMPABLE, libc::c_ulong::from(dumpable)).map(drop)
}

/// From here on exec grants no privilege (no_new_privs).
///
/// # Errors
/// None that the kernel documents.
pub fn set_no_new_privs() -> Result<(), Errno> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1).map(drop)
}

/// Leaves the session keyring that was inherited for a new, empty one (keyctl(2)).
///
/// # Errors
/// EDQUOT when the user has as many keys as `kernel.keys.maxkeys` allows. A kernel without keyrings, and a
/// filter that refuses them, leave nothing to get at: no error.
pub fn leave_session_keyring() -> Result<(), Errno> {
    /// linux/keyctl.h.
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_ulong = 1;
    let anonymous = std::ptr::null::<libc::c_char>();
    // SAFETY: the name may be null; the kernel writes nothing.
    let result = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, anonymous) };
    match Errno::result(result) {
        Ok(_) | Err(Errno::ENOSYS | Errno::EPERM) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Keeps permitted capabilities across the change of user id that follows.
///
/// # Errors
/// EPERM when the securebit is locked.
pub fn set_keep_capabilities(keep: bool) -> Result<(), Errno> {
    prctl(libc::PR_SET_KEEPCAPS, libc::c_ulong::from(keep)).map(drop)
}

/// The name that `ps` shows for this process; at most 15 bytes count.
pub fn set_name(name: &CStr) {
    // SAFETY: the kernel reads at most 16 bytes of a NUL-terminated string.
    let _ = unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}

/// The number of threads of this process, read from /proc/self/stat.
///
/// # Errors
/// As reading the file.
pub fn thread_count() -> io::Result<usize> {
    Ok(std::fs::read_dir("/proc/self/task")?.count())
}

/// Random bytes from the kernel (getrandom(2)).
///
/// # Errors
/// EINTR and ENOSYS only, neither of which happens for 32 bytes on a kernel that hostel runs on.
pub fn random_bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0_u8; N];
    // SAFETY: the buffer is N bytes long.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), N, 0) };
    if usize::try_from(got).is_ok_and(|got| got == N) { Ok(bytes) } else { Err(io::Error::last_os_error()) }
}

/// Restores the default action of SIGPIPE, which Rust's runtime ignores.
pub fn default_sigpipe() {
    // SAFETY: SIG_DFL is a valid disposition for SIGPIPE.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// A write to a pipe that nobody reads is an error again, as Rust's runtime has it.
pub fn ignore_sigpipe() {
    // SAFETY: SIG_IGN is a valid disposition for SIGPIPE.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// Every signal to its default action and none blocked: what a program expects to start with.
pub fn reset_signals() {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: SIG_DFL is valid for every signal; the call fails harmlessly for KILL and STOP.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let none = nix::sys::signal::SigSet::empty();
    let _ = nix::sys::signal::sigprocmask(nix::sys::signal::SigmaskHow::SIG_SETMASK, Some(&none), None);
}

/// Whether this process ignores a signal, as under nohup(1).
#[must_use]
pub fn is_ignored(signal: nix::sys::signal::Signal) -> bool {
    // SAFETY: sigaction is plain data, for which zeros are valid.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: without a new action the call only writes the present one.
    let result = unsafe { libc::sigaction(signal as i32, std::ptr::null(), &raw mut action) };
    result == 0 && action.sa_sigaction == libc::SIG_IGN
}

/// Sets a resource limit by its number (setrlimit(2)).
///
/// # Errors
/// EPERM when a hard limit would be raised, EINVAL.
pub fn set_rlimit(resource: u32, soft: u64, hard: u64) -> Result<(), Errno> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `limit` is a valid rlimit64.
    Errno::result(unsafe { libc::setrlimit64(resource as _, &raw const limit) }).map(drop)
}

/// Ignores what a terminal or a log-out sends, and SIGPIPE: for processes that outlive the command.
pub fn ignore_signals_of_others() {
    let ignored = [
        libc::SIGHUP,
        libc::SIGINT,
        libc::SIGQUIT,
        libc::SIGTERM,
        libc::SIGTSTP,
        libc::SIGTTOU,
        libc::SIGTTIN,
        libc::SIGPIPE,
    ];
    for signal in ignored {
        // SAFETY: SIG_IGN is a valid disposition for these signals.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Sets the NIS domain name of the UTS namespace (setdomainname(2)).
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN in the namespace, EINVAL for more than 64 bytes.
pub fn set_domain_name(name: &str) -> Result<(), Errno> {
    // SAFETY: the pointer and length are those of a live string; the call reads no further.
    Errno::result(unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) }).map(drop)
}

/// Makes this process the parent of descendants whose own parent dies (PR_SET_CHILD_SUBREAPER).
///
/// # Errors
/// None that the kernel documents.
pub fn become_subreaper() -> Result<(), Errno> {
    prctl(libc::PR_SET_CHILD_SUBREAPER, 1).map(drop)
}

/// Whether the kernel has Landlock switched on (landlock_create_ruleset(2), LANDLOCK_CREATE_RULESET_VERSION).
#[must_use]
pub fn has_landlock() -> bool {
    const VERSION: libc::c_ulong = 1;
    // SAFETY: with this flag the call takes no memory and only answers with a number.
    let answer =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0, VERSION) };
    answer > 0
}

/// As [`clone`], but the child is born in the control group that `group` is the directory of
/// (CLONE_INTO_CGROUP), which no process that it starts later can then miss.
///
/// # Errors
/// As there; EACCES where the group is not the caller's to use, ENODEV for one that is being removed.
pub fn clone_into(namespaces: u64, group: BorrowedFd<'_>) -> Result<Fork, Errno> {
    let mut pidfd: libc::c_int = -1;
    // SAFETY: clone_args is plain data for which zero is a valid value of every field.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = namespaces | libc::CLONE_PIDFD as u64 | CLONE_INTO_CGROUP;
    args.exit_signal = libc::SIGCHLD as u64;
    args.pidfd = std::ptr::from_mut(&mut pidfd) as u64;
    args.cgroup = group.as_raw_fd() as u64;
    clone3(&mut args, &pidfd)
}

/// Writes over the arguments that this process was started with, which everybody can read in
/// /proc/PID/cmdline. At most as long as these were; what is left of them becomes zeros. Whoever holds
/// `std::env::args` sees the change: only for a process that is done with them.
///
/// # Errors
/// When /proc/self/stat cannot be read, or does not tell (proc_pid_stat(5), arg_start and arg_end).
pub fn set_title(title: &str) -> io::Result<()> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let missing = || io::Error::other("/proc/self/stat does not say where the arguments are");
    let (_, fields) = stat.rsplit_once(')').ok_or_else(missing)?;
    let mut fields = fields.split_ascii_whitespace().skip(45).map(str::parse::<usize>);
    let (Some(Ok(start)), Some(Ok(end))) = (fields.next(), fields.next()) else { return Err(missing()) };
    // The last byte stays zero: otherwise the kernel goes on into the environment (proc_pid_cmdline(5)).
    let Some(room) = end.checked_sub(start).and_then(|length| length.checked_sub(1)).filter(|_| start != 0)
    else {
        return Err(missing());
    };
    let text = &title.as_bytes()[..title.len().min(room)];
    let place = std::ptr::with_exposed_provenance_mut::<u8>(start);
    // SAFETY: the kernel says that start..end are this process's arguments, which lie on its stack, are
    // writable, and stay for as long as it lives; nobody borrows them, as this process has one thread.
    unsafe { place.write_bytes(0, room) };
    // SAFETY: as above; the text is no longer than the room and lies elsewhere.
    unsafe { place.copy_from_nonoverlapping(text.as_ptr(), text.len()) };
    Ok(())
}

/// The user namespace that a namespace belongs to (ioctl_ns(2), NS_GET_USERNS).
///
/// # Errors
/// As there; EPERM for one that is not below the caller's.
pub fn owner_of_namespace(namespace: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    // SAFETY: this request takes no argument.
    let fd = Errno::result(unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_USERNS) })?;
    // SAFETY: the kernel has just made this descriptor for the caller, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// linux/nsfs.h: _IO(0xb7, 0x1).
const NS_GET_USERNS: libc::Ioctl = 0xb701;

/// sched.h; in the upper half of the flags, which only clone3(2) has.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
