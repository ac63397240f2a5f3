//! The fence around a container's server.
//!
//! The server parses what is hostile: FUSE requests, packets, output. All that it needs is open
//! before this, or is named here; the rest is given up, in this order, before its first thread
//! starts: new privileges, capabilities, paths (Landlock, where the kernel has it), system calls.
//! A flaw in a parser then gives neither a new program nor another file of the user.

use std::path::{Path, PathBuf};

use caps::{CapSet, CapsHashSet};
use landlock::{
    ABI, Access as _, AccessFs, BitFlags, Ruleset, RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _,
    path_beneath_rules,
};

use crate::plan::SeccompPlan;
use crate::plan::seccomp::{self, Arch, Program};
use crate::sys;

/// What of the filesystem the server opens by path once it runs.
#[derive(Clone, Debug, Default)]
pub struct Paths {
    /// Directories that it writes to: the upper of a pure overlay.
    pub writable: Vec<PathBuf>,
    /// What it reads: the lower directory of `host:/` and `rootfs:`.
    pub readable: Vec<PathBuf>,
}

/// Where the machine keeps what name resolution follows as it changes; resolv.conf is often a link
/// into one of the latter.
const RESOLVER_PATHS: [&str; 4] = ["/etc", "/run/systemd/resolve", "/run/resolvconf", "/run/NetworkManager"];

/// The Landlock rights that are handled: where the kernel knows fewer, it handles those it knows.
const RIGHTS: ABI = ABI::V5;

/// Puts the fence up. For a process with one thread.
///
/// # Errors
/// What was refused; a kernel without Landlock is no error.
pub fn enter(paths: &Paths) -> Result<(), String> {
    Fence::new(paths)?.raise()
}

/// A fence whose paths have been opened: their names need not be there any more when it is raised.
#[derive(Debug)]
pub struct Fence {
    rules: RulesetCreated,
}

impl Fence {
    /// Opens the paths.
    ///
    /// # Errors
    /// One cannot be opened.
    pub fn new(paths: &Paths) -> Result<Self, String> {
        let rules = rules(paths).map_err(|error| format!("cannot restrict paths: {error}"))?;
        Ok(Self { rules })
    }

    /// Puts it up. For a process with one thread.
    ///
    /// # Errors
    /// What was refused; a kernel without Landlock is no error.
    pub fn raise(self) -> Result<(), String> {
        let filter =
            filter().map_err(|error| format!("cannot make the filter: {}", crate::sandbox::chain(&error)))?;
        sys::process::set_no_new_privs().map_err(|errno| format!("cannot set no_new_privs: {errno}"))?;
        for set in [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable] {
            caps::set(None, set, &CapsHashSet::new())
                .map_err(|error| format!("cannot drop capabilities: {error}"))?;
        }
        // A kernel without Landlock enforces nothing; the other fences stand.
        self.rules.restrict_self().map_err(|error| format!("cannot restrict paths: {error}"))?;
        sys::seccomp::load(&filter)
            .map_err(|errno| format!("cannot load the server's seccomp filter: {errno}"))
    }
}

fn rules(paths: &Paths) -> Result<RulesetCreated, landlock::RulesetError> {
    let all = AccessFs::from_all(RIGHTS);
    let read: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::ReadDir;
    let existing = |path: &&Path| path.exists();
    let resolver = RESOLVER_PATHS.iter().map(Path::new).filter(existing);
    let readable = paths.readable.iter().map(PathBuf::as_path);
    Ruleset::default()
        .handle_access(all)?
        .create()?
        .add_rules(path_beneath_rules(paths.writable.iter(), all))?
        .add_rules(path_beneath_rules(readable.chain(resolver), read))
}

/// The server's filter: an allow-list of what FUSE, network and log do. Anything else fails with EPERM.
///
/// # Errors
/// Never for the built-in list; the type is the compiler's.
fn filter() -> Result<Program, seccomp::SeccompError> {
    let text = format!(
        r#"{{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
            "syscalls": [
              {{"names": {ALLOWED:?}, "action": "SCMP_ACT_ALLOW"}},
              {{"names": ["clone"], "action": "SCMP_ACT_ALLOW",
                "args": [{{"index": 0, "value": {CLONE_THREAD}, "valueTwo": {CLONE_THREAD}, "op": "SCMP_CMP_MASKED_EQ"}}]}},
              {{"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": {ENOSYS}}}
            ]}}"#,
        CLONE_THREAD = libc::CLONE_THREAD,
        ENOSYS = libc::ENOSYS,
    );
    let program = seccomp::compile(&SeccompPlan::Profile(text), &[], Arch::NATIVE)?;
    Ok(program.unwrap_or_default())
}

/// Names that the architecture does not have are passed over by the compiler. `clone` is allowed for
/// threads only, and clone3, whose flags a filter cannot see, answers ENOSYS so that the C library
/// falls back to it.
const ALLOWED: &[&str] = &[
    // Files, by descriptor and below a directory's descriptor.
    "access",
    "chmod",
    "chown",
    "close",
    "close_range",
    "copy_file_range",
    "dup",
    "dup2",
    "dup3",
    "faccessat",
    "faccessat2",
    "fadvise64",
    "fallocate",
    "fchdir",
    "fchmod",
    "fchmodat",
    "fchmodat2",
    "fchown",
    "fchownat",
    "fcntl",
    "fdatasync",
    "fgetxattr",
    "flistxattr",
    "flock",
    "fremovexattr",
    "fsetxattr",
    "fstat",
    "fstatfs",
    "fsync",
    "ftruncate",
    "futimesat",
    "getcwd",
    "getdents64",
    "getxattr",
    "getxattrat",
    "ioctl",
    "lchown",
    "lgetxattr",
    "link",
    "linkat",
    "listxattr",
    "listxattrat",
    "llistxattr",
    "lremovexattr",
    "lseek",
    "lsetxattr",
    "lstat",
    "mkdir",
    "mkdirat",
    "mknod",
    "mknodat",
    "newfstatat",
    "open",
    "openat",
    "openat2",
    "pread64",
    "preadv",
    "preadv2",
    "pwrite64",
    "pwritev",
    "pwritev2",
    "read",
    "readahead",
    "readlink",
    "readlinkat",
    "readv",
    "removexattr",
    "removexattrat",
    "rename",
    "renameat",
    "renameat2",
    "rmdir",
    "sendfile",
    "setxattr",
    "setxattrat",
    "splice",
    "stat",
    "statfs",
    "statx",
    "symlink",
    "symlinkat",
    "sync_file_range",
    "syncfs",
    "tee",
    "truncate",
    "umask",
    "unlink",
    "unlinkat",
    "utimensat",
    "vmsplice",
    "write",
    "writev",
    // Notifications and waiting.
    "epoll_create1",
    "epoll_ctl",
    "epoll_pwait",
    "epoll_pwait2",
    "epoll_wait",
    "eventfd2",
    "inotify_add_watch",
    "inotify_init1",
    "inotify_rm_watch",
    "pipe2",
    "poll",
    "ppoll",
    "pselect6",
    "select",
    "signalfd4",
    "timerfd_create",
    "timerfd_gettime",
    "timerfd_settime",
    // Sockets of the network gateway.
    "accept",
    "accept4",
    "bind",
    "connect",
    "getpeername",
    "getsockname",
    "getsockopt",
    "listen",
    "recvfrom",
    "recvmmsg",
    "recvmsg",
    "sendmmsg",
    "sendmsg",
    "sendto",
    "setsockopt",
    "shutdown",
    "socket",
    "socketpair",
    // Memory, threads, time, and this process itself.
    "brk",
    "clock_getres",
    "clock_gettime",
    "clock_nanosleep",
    "exit",
    "exit_group",
    "futex",
    "futex_wait",
    "futex_wake",
    "futex_waitv",
    "get_robust_list",
    "getegid",
    "geteuid",
    "getgid",
    "getpid",
    "getppid",
    "getrandom",
    "getrlimit",
    "getrusage",
    "gettid",
    "gettimeofday",
    "getuid",
    "madvise",
    "membarrier",
    "mincore",
    "mmap",
    "mprotect",
    "mremap",
    "msync",
    "munmap",
    "nanosleep",
    "prctl",
    "prlimit64",
    "restart_syscall",
    "rseq",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sched_getaffinity",
    "sched_setaffinity",
    "sched_yield",
    "set_robust_list",
    "set_tid_address",
    "setrlimit",
    "sigaltstack",
    "sysinfo",
    "tgkill",
    "time",
    "uname",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process::{Ended, Fork, clone, exit_now, wait_for};

    /// Puts the fence up in a child and tries something; what it returns is the exit code.
    fn behind_fence(paths: &Paths, attempt: impl FnOnce() -> i32) -> Ended {
        match clone(0, false).expect("fork") {
            Fork::Child => {
                let entered = enter(paths);
                exit_now(if entered.is_ok() { attempt() } else { 99 })
            }
            Fork::Parent(child) => wait_for(child.pid).expect("wait"),
        }
    }

    fn errno_of(result: std::io::Result<()>) -> i32 {
        result.map_or_else(|error| error.raw_os_error().unwrap_or(98), |()| 0)
    }

    #[test]
    fn neither_programs_nor_processes_nor_namespaces_behind_it() {
        let paths = Paths::default();
        assert_eq!(
            behind_fence(&paths, || nix::unistd::execv(c"/bin/true", &[c"true"])
                .map_or_else(|errno| errno as i32, |never| match never {})),
            Ended::Exited(1)
        );
        assert_eq!(
            behind_fence(&paths, || clone(0, false).map_or_else(|errno| errno as i32, |_| 0)),
            Ended::Exited(libc::ENOSYS as u8)
        );
        let unshare = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER)
                .map_or_else(|errno| errno as i32, |()| 0)
        };
        assert_eq!(behind_fence(&paths, unshare), Ended::Exited(1));
    }

    #[test]
    fn only_the_named_paths_behind_it() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (inside, outside) = (dir.path().join("inside"), dir.path().join("outside"));
        for path in [&inside, &outside] {
            std::fs::create_dir(path).expect("mkdir");
        }
        let paths = Paths { writable: vec![inside.clone()], readable: Vec::new() };
        assert_eq!(
            behind_fence(&paths, || errno_of(std::fs::write(inside.join("x"), "x"))),
            Ended::Exited(0)
        );
        if std::fs::read_to_string("/sys/kernel/security/lsm").is_ok_and(|list| !list.contains("landlock")) {
            eprintln!("SKIPPED: this kernel has no Landlock");
            return;
        }
        assert_eq!(
            behind_fence(&paths, || errno_of(std::fs::write(outside.join("x"), "x"))),
            Ended::Exited(libc::EACCES as u8)
        );
    }
}
