//! Terminals: sizes, the controlling terminal, and a pseudo-terminal's other end.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::pty::Winsize;
use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};

/// The size of a terminal in rows and columns.
///
/// # Errors
/// ENOTTY when it is not a terminal.
pub fn size(terminal: BorrowedFd<'_>) -> Result<(u16, u16), Errno> {
    let mut size = Winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize.
    Errno::result(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) })?;
    Ok((size.ws_row, size.ws_col))
}

/// Does something while the terminal does not show what is typed, and shows it again afterwards.
///
/// # Errors
/// ENOTTY when it is not a terminal.
pub fn without_echo<T>(terminal: BorrowedFd<'_>, work: impl FnOnce() -> T) -> Result<T, Errno> {
    let before = tcgetattr(terminal)?;
    let mut silent = before.clone();
    silent.local_flags.remove(LocalFlags::ECHO);
    tcsetattr(terminal, SetArg::TCSAFLUSH, &silent)?;
    let result = work();
    tcsetattr(terminal, SetArg::TCSAFLUSH, &before)?;
    Ok(result)
}

/// Sets the size in rows and columns; the foreground group gets SIGWINCH.
///
/// # Errors
/// ENOTTY when it is not a terminal.
pub fn set_size(terminal: BorrowedFd<'_>, rows: u16, columns: u16) -> Result<(), Errno> {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize.
    Errno::result(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }).map(drop)
}

/// Makes the terminal the controlling one of this session, of which the caller is the leader.
///
/// # Errors
/// EPERM when the caller is not a session leader or has one already.
pub fn make_controlling(terminal: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: TIOCSCTTY takes an int.
    Errno::result(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) }).map(drop)
}

/// Unlocks a pseudo-terminal's master and opens its other end without walking a path that the
/// container controls (TIOCGPTPEER).
///
/// # Errors
/// ENOTTY when it is not a master; ENOSYS-like EINVAL before Linux 4.13.
pub fn open_peer(master: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let unlock: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int.
    Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) })?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes open flags and returns a descriptor.
    let fd = Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) })?;
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes the caller's process group the terminal's foreground group, if `fd` is a terminal.
///
/// SIGTTOU is ignored meanwhile, which would stop a caller in the background.
///
/// # Errors
/// ENOTTY when it is not one.
pub fn take_foreground(fd: i32) -> Result<(), Errno> {
    // SAFETY: SIG_IGN is a valid disposition for SIGTTOU.
    let old = unsafe { libc::signal(libc::SIGTTOU, libc::SIG_IGN) };
    // SAFETY: integers only.
    let result = unsafe { libc::tcsetpgrp(fd, nix::unistd::getpgrp().as_raw()) };
    // SAFETY: the disposition is the one that was there before.
    unsafe { libc::signal(libc::SIGTTOU, old) };
    Errno::result(result).map(drop)
}
