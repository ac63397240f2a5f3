//! Descriptors: opening below a root, closing ranges, passing them over sockets.

use std::ffi::CStr;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::OnceLock;

use nix::NixPath;
use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// How many descriptors one message may carry: stdio's three, their three far ends, and room for two.
pub const MAX_FDS: usize = 8;

/// Opens `path` with `root` as "/": symlinks and `..` cannot leave it, magic links are refused
/// (openat2(2), RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS).
///
/// # Errors
/// As openat2(2); ELOOP for a magic link.
pub fn open_in_root(
    root: BorrowedFd<'_>,
    path: &Path,
    flags: libc::c_int,
    mode: u32,
) -> Result<OwnedFd, Errno> {
    // SAFETY: open_how is plain data for which zero is a valid value of every field.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = (flags | libc::O_CLOEXEC) as u64;
    how.mode = u64::from(mode);
    how.resolve = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS;
    loop {
        let fd = path.with_nix_path(|path| {
            // SAFETY: `path` is NUL-terminated and `how` has the size that is passed.
            unsafe {
                libc::syscall(
                    libc::SYS_openat2,
                    root.as_raw_fd(),
                    path.as_ptr(),
                    &raw const how,
                    size_of::<libc::open_how>(),
                )
            }
        })?;
        match Errno::result(fd) {
            // SAFETY: a new descriptor that nobody else owns.
            Ok(fd) => return Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) }),
            // A rename raced with the look-up (openat2(2)): ask again.
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Marks every descriptor from `first` on close-on-exec.
///
/// # Errors
/// ENOSYS before Linux 5.11.
pub fn close_on_exec_from(first: RawFd) -> Result<(), Errno> {
    // SAFETY: only flags of descriptors are changed.
    let result =
        unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    Errno::result(result).map(drop)
}

/// Descriptors above stdio that this process was started with.
static INHERITED: OnceLock<Vec<RawFd>> = OnceLock::new();

/// Remembers which descriptors the caller handed down, before any is opened here.
pub fn remember_inherited() {
    let Ok(listed) = std::fs::read_dir("/proc/self/fd") else { return };
    let numbers: Vec<RawFd> = listed
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd > 2)
        .collect();
    // The listing's own descriptor was among them and is closed by now.
    let open = |fd: &RawFd| {
        // SAFETY: takes a number only.
        unsafe { libc::fcntl(*fd, libc::F_GETFD) >= 0 }
    };
    let _ = INHERITED.set(numbers.into_iter().filter(open).collect()); // the first call counts
}

/// Closes what [`remember_inherited`] found: for a process that outlives the command. A lock that the caller
/// holds by such a descriptor would be held as long as the container runs.
pub fn close_inherited() {
    for fd in INHERITED.get().into_iter().flatten() {
        // SAFETY: nothing here owns a descriptor that was open before anything was opened here.
        unsafe { libc::close(*fd) };
    }
}

/// Closes every descriptor above stdio except those listed.
///
/// For a process just forked, which wants none of its parent's: the caller must not use any
/// `OwnedFd` other than those listed afterwards.
pub fn close_all_except(keep: &[RawFd]) {
    let mut keep: Vec<RawFd> = keep.iter().copied().filter(|fd| *fd > 2).collect();
    keep.sort_unstable();
    let mut first: libc::c_uint = 3;
    for fd in keep.into_iter().chain([RawFd::MAX]) {
        let fd = fd as libc::c_uint;
        if fd > first {
            // SAFETY: closing is memory-safe; the caller promises not to use the descriptors again.
            unsafe { libc::syscall(libc::SYS_close_range, first, fd - 1, 0) };
        }
        first = fd + 1;
    }
}

/// Sends bytes and descriptors as one message.
///
/// # Errors
/// As sendmsg(2): EPIPE when the other side is gone.
pub fn send_with_fds(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    loop {
        match sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], control, MsgFlags::MSG_NOSIGNAL, None)
        {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Receives one message and the descriptors that came with it; no bytes mean that the other side closed.
///
/// # Errors
/// As recvmsg(2); EMSGSIZE when the message did not fit in `buffer`.
pub fn receive_with_fds(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    flags: MsgFlags,
) -> Result<(usize, Vec<OwnedFd>), Errno> {
    let mut reset = false;
    loop {
        let mut space = cmsg_space!([RawFd; MAX_FDS]);
        let mut slices = [IoSliceMut::new(buffer)];
        let message = match recvmsg::<()>(
            socket.as_raw_fd(),
            &mut slices,
            Some(&mut space),
            flags | MsgFlags::MSG_CMSG_CLOEXEC,
        ) {
            Ok(message) => message,
            Err(Errno::EINTR) => continue,
            // The other side closed with something unread. That is told once, and before what it
            // had sent itself, which is still there.
            Err(Errno::ECONNRESET) if !reset => {
                reset = true;
                continue;
            }
            Err(error) => return Err(error),
        };
        let mut fds = Vec::new();
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = control {
                // SAFETY: the kernel has just made these descriptors for this process.
                fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        if message.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
            return Err(Errno::EMSGSIZE);
        }
        return Ok((message.bytes, fds));
    }
}

/// An anonymous file in memory, sealed against every change once `content` is in it.
///
/// # Errors
/// As memfd_create(2) and write(2).
pub fn sealed_memfd(name: &CStr, content: &[u8]) -> std::io::Result<OwnedFd> {
    use std::io::Write as _;
    // SAFETY: `name` is NUL-terminated.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_ALLOW_SEALING | libc::MFD_CLOEXEC) };
    // SAFETY: on success a new descriptor that nobody else owns; -1 is caught first.
    let fd = unsafe { OwnedFd::from_raw_fd(Errno::result(fd)?) };
    let mut file = std::fs::File::from(fd);
    file.write_all(content)?;
    let seals = libc::F_SEAL_SEAL | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE;
    // SAFETY: F_ADD_SEALS takes an int.
    Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) })?;
    Ok(file.into())
}

/// Puts `source` at the number `target`, inherited across exec (dup2(2)).
///
/// # Errors
/// As dup2(2).
pub fn place_at(source: BorrowedFd<'_>, target: RawFd) -> Result<(), Errno> {
    let result = if source.as_raw_fd() == target {
        // SAFETY: F_SETFD takes an int.
        unsafe { libc::fcntl(target, libc::F_SETFD, 0) }
    } else {
        // SAFETY: whoever owned `target` before gives it up: used for 0, 1 and 2 of a forked child only.
        unsafe { libc::dup2(source.as_raw_fd(), target) }
    };
    Errno::result(result).map(drop)
}

/// Whether a file has an extended attribute of this name (following symlinks).
#[must_use]
pub fn has_xattr(path: &CStr, name: &CStr) -> bool {
    // SAFETY: both strings are NUL-terminated; a null buffer of size 0 asks for the size only.
    unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), std::ptr::null_mut(), 0) >= 0 }
}

/// Names and values of extended attributes.
pub type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// The extended attributes of an open file that can be read.
///
/// # Errors
/// As flistxattr(2): EOPNOTSUPP where the filesystem has none.
pub fn xattrs(file: BorrowedFd<'_>) -> Result<Xattrs, Errno> {
    // SAFETY: a null buffer of size 0 asks for the size only.
    let size = Errno::result(unsafe { libc::flistxattr(file.as_raw_fd(), std::ptr::null_mut(), 0) })?;
    let mut names = vec![0_u8; size.cast_unsigned()];
    // SAFETY: the kernel writes at most as many bytes as the buffer has.
    let size = unsafe { libc::flistxattr(file.as_raw_fd(), names.as_mut_ptr().cast(), names.len()) };
    names.truncate(Errno::result(size)?.cast_unsigned());
    let mut found = Vec::new();
    for name in names.split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        let mut value = vec![0_u8; 1 << 16]; // XATTR_SIZE_MAX
        let buffer = value.as_mut_ptr().cast();
        // SAFETY: the name is NUL-terminated; the kernel writes at most as many bytes as the buffer has.
        let size = unsafe { libc::fgetxattr(file.as_raw_fd(), name.as_ptr(), buffer, value.len()) };
        if let Ok(size) = usize::try_from(size) {
            value.truncate(size);
            found.push((name.to_bytes().to_vec(), value));
        }
    }
    Ok(found)
}

/// Sets an extended attribute of an open file.
///
/// # Errors
/// As fsetxattr(2); EINVAL for a name with a NUL.
pub fn set_xattr(file: BorrowedFd<'_>, name: &[u8], value: &[u8]) -> Result<(), Errno> {
    let name = std::ffi::CString::new(name).map_err(|_| Errno::EINVAL)?;
    let data = value.as_ptr().cast();
    // SAFETY: the name is NUL-terminated; the kernel reads `value.len()` bytes of a live slice.
    let result = unsafe { libc::fsetxattr(file.as_raw_fd(), name.as_ptr(), data, value.len(), 0) };
    Errno::result(result).map(drop)
}

/// Takes ownership of a descriptor that a call of nix returned as a number.
///
/// # Errors
/// EBADF for a number that cannot be one.
pub fn own(fd: RawFd) -> Result<OwnedFd, Errno> {
    if fd < 0 {
        return Err(Errno::EBADF);
    }
    // SAFETY: callers pass what the kernel has just returned to them, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A connected pair of sockets that keep message boundaries.
///
/// # Errors
/// As socketpair(2).
pub fn seqpacket_pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
}

/// A connected pair of stream sockets.
///
/// # Errors
/// As socketpair(2).
pub fn stream_pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)
}

/// Makes reads and writes return EAGAIN instead of waiting.
///
/// # Errors
/// None for an open descriptor.
pub fn set_nonblocking(fd: &OwnedFd) -> Result<(), Errno> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL)?) | OFlag::O_NONBLOCK;
    fcntl(fd, FcntlArg::F_SETFL(flags)).map(drop)
}

/// A duplicate with a number above `floor`, close-on-exec.
///
/// # Errors
/// EMFILE.
pub fn move_above(fd: BorrowedFd<'_>, floor: RawFd) -> Result<OwnedFd, Errno> {
    use nix::fcntl::{FcntlArg, fcntl};
    own(fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(floor + 1))?)
}
