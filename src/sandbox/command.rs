//! The command: its user, its working directory, its file, and executing it.
//!
//! Runs inside the container's root, so plain paths are the container's own.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::{Mode, SFlag, stat};
use nix::unistd::{AccessFlags, access, chdir, mkdir};
use oci_spec::runtime::Process;

use super::rootfs::Root;
use super::{Context as _, Failure, Stage, Staged};
use crate::plan::KEEP_GROUPS;
use crate::plan::user::{ResolvedUser, resolve};
use crate::sys;

/// More of /etc/passwd or /etc/group than this is not read: an image may make them as large as it likes.
pub(super) const MAX_ACCOUNTS_BYTES: u64 = 4 << 20;

/// Finds the user's ids in the container's own account files.
///
/// # Errors
/// Docker's words for an unknown user or group.
pub fn resolve_user(root: &Root, user: &str, group_add: &[String]) -> Staged<ResolvedUser> {
    // A file that cannot be read is as good as an empty one: numbers work, names do not.
    let read = |path: &str| root.read(Path::new(path), MAX_ACCOUNTS_BYTES).unwrap_or_default();
    // The caller's groups are there already, and not the image's to name.
    let group_add = if group_add.iter().any(|group| group == KEEP_GROUPS) { &[] } else { group_add };
    resolve(user, &read("/etc/passwd"), &read("/etc/group"), group_add)
        .map_err(|error| Failure::plain(Stage::Credentials, error.to_string()))
}

/// At most this much of the command's file is read ahead: beyond it the program does not touch all.
const PREFETCH_BYTES: i64 = 4 << 20;

/// Begins to read the command's file while the rest of the container is set up.
///
/// The first execution is dominated by page faults that each ask the filesystem's server; a few large
/// requests beside the set-up take their place. Only a hint: whatever is wrong is found out later.
pub fn prefetch(root: &Root, process: &Process) {
    let args = process.args().as_deref().unwrap_or_default();
    let Some(name) = args.first() else { return };
    let search = process.env().iter().flatten().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or("");
    let dirs: Vec<&str> = if name.contains('/') { vec![""] } else { search.split(':').collect() };
    let found = dirs.iter().find_map(|dir| {
        root.open(&Path::new(dir).join(name), libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY).ok()
    });
    if let Some(file) = found {
        let advice = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_WILLNEED;
        let _ = nix::fcntl::posix_fadvise(&file, 0, PREFETCH_BYTES, advice); // only a hint
    }
}

/// Goes to the working directory, making it when it is missing, as Docker does.
///
/// # Errors
/// When it is no directory or may not be entered.
pub fn enter_directory(path: &Path) -> Staged<()> {
    let what = || format!("cannot use {} as working directory", path.display());
    match chdir(path) {
        Err(Errno::ENOENT) => {}
        other => return other.during(Stage::NotExecutable, what),
    }
    let mut made = PathBuf::new();
    for component in path.components() {
        made.push(component);
        match mkdir(&made, Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(error).during(Stage::NotExecutable, what),
        }
    }
    chdir(path).during(Stage::NotExecutable, what)
}

/// A command ready to be executed.
#[derive(Debug)]
pub struct Ready {
    path: CString,
    args: Vec<CString>,
    env: Vec<CString>,
}

/// Finds the command's file as the C library's execvp(3) does, with the container's PATH.
///
/// # Errors
/// [`Stage::NotFound`] and [`Stage::NotExecutable`], in Docker's words.
pub fn prepare(process: &Process, home: &Path) -> Staged<Ready> {
    let args = process.args().clone().unwrap_or_default();
    let name = args.first().cloned().unwrap_or_default();
    let mut env: Vec<String> = process.env().clone().unwrap_or_default();
    if !env.iter().any(|entry| entry.starts_with("HOME=")) {
        env.push(format!("HOME={}", home.display()));
    }
    let search = env.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or("");
    let path = find(&name, search)?;
    let text = |text: &OsStr| {
        CString::new(text.as_bytes())
            .map_err(|_| Failure::plain(Stage::NotExecutable, "the command has a NUL byte in it"))
    };
    Ok(Ready {
        path: text(path.as_os_str())?,
        args: args.iter().map(|arg| text(OsStr::new(arg))).collect::<Staged<_>>()?,
        env: env.iter().map(|entry| text(OsStr::new(entry))).collect::<Staged<_>>()?,
    })
}

impl Ready {
    /// The command's words, for people.
    #[must_use]
    pub fn words(&self) -> String {
        self.args.iter().map(|arg| arg.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }
}

fn find(name: &str, search: &str) -> Staged<PathBuf> {
    if name.contains('/') {
        return match check(Path::new(name)) {
            Ok(()) => Ok(name.into()),
            Err(errno) => Err(refused(name, errno)),
        };
    }
    let mut denied = None;
    for dir in search.split(':').filter(|_| !name.is_empty()) {
        let path = Path::new(if dir.is_empty() { "." } else { dir }).join(name);
        match check(&path) {
            Ok(()) => return Ok(path),
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(errno) => denied = denied.or(Some(errno)),
        }
    }
    match denied {
        Some(errno) => Err(refused(name, errno)),
        None => Err(Failure::plain(
            Stage::NotFound,
            format!("exec: {name:?}: executable file not found in $PATH"),
        )),
    }
}

fn check(path: &Path) -> Result<(), Errno> {
    let found = stat(path)?;
    if SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR {
        return Err(Errno::EISDIR);
    }
    access(path, AccessFlags::X_OK)
}

fn refused(name: &str, errno: Errno) -> Failure {
    let stage =
        if matches!(errno, Errno::ENOENT | Errno::ENOTDIR) { Stage::NotFound } else { Stage::NotExecutable };
    let failure = Failure::plain(stage, format!("exec: {name:?}: {}", lower(errno.desc())));
    match errno {
        Errno::ENOEXEC => failure.hint("the file is for another architecture, or a script without a #! line"),
        Errno::ENOENT => failure.hint("the file, or the interpreter that it names, is not in the image"),
        _ => failure,
    }
}

/// Docker quotes errors as Go writes them: in lower case.
fn lower(text: &str) -> String {
    text.to_lowercase()
}

impl Ready {
    /// Executes the command by way of the stub; returns only when not even that could be executed.
    ///
    /// Every descriptor but stdio closes on the way, which tells whoever listens at `status` that
    /// the command runs; a failure of the stub's own execve(2) comes as [`sys::stub::FAILED_MARK`].
    #[must_use]
    pub fn execute(&self, stub: BorrowedFd<'_>, status: BorrowedFd<'_>) -> Failure {
        let prepared = sys::fd::move_above(stub, sys::stub::STATUS_FD).and_then(|stub| {
            let status = sys::fd::move_above(status, sys::stub::STATUS_FD)?;
            sys::fd::close_on_exec_from(sys::stub::STATUS_FD)?;
            sys::fd::place_at(status.as_fd(), sys::stub::STATUS_FD)?;
            Ok(stub)
        });
        let stub = match prepared {
            Ok(stub) => stub,
            Err(errno) => return Failure::new(Stage::Credentials, "cannot arrange descriptors", errno),
        };
        let args: Vec<_> = [&self.path].into_iter().chain(&self.args).map(CString::as_c_str).collect();
        let env: Vec<_> = self.env.iter().map(CString::as_c_str).collect();
        let errno = sys::stub::execute(stub.as_fd(), &args, &env);
        Failure::new(Stage::Credentials, "cannot execute the engine's stub", errno)
            .hint("the sysctl vm.memfd_noexec has to be 0 or 1")
    }
}

/// The failure that a stub reported in its message, if it is one.
#[must_use]
pub fn reported_by_stub(message: &[u8], command: &str) -> Option<Failure> {
    let errno = message.strip_prefix(&sys::stub::FAILED_MARK)?;
    Some(refused(command, Errno::from_raw(i32::from_ne_bytes(errno.try_into().ok()?))))
}
