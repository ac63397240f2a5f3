//! What the image has at a new volume's place is copied into the volume, as Docker does.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read, Seek as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat, futimens, mkdirat, mknodat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, Whence, fchownat, lseek, symlinkat};

use super::rootfs::Root;
use super::{Context as _, Stage, Staged};

/// Deeper trees than this are not copied: a path of more levels cannot be named anyway (PATH_MAX / 2).
const MAX_DEPTH: usize = 2048;

/// Copies the directory at `from` in the root into the empty directory `to` of the machine.
///
/// # Errors
/// What could not be copied. A place that the image does not have, and a volume that has content,
/// are left alone.
pub fn copy(root: &Root, from: &Path, to: &Path) -> Staged<()> {
    let what = || format!("cannot copy {} of the image into its new volume", from.display());
    let source = match root.open(from, libc::O_RDONLY | libc::O_DIRECTORY) {
        Ok(source) => source,
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(()),
        Err(errno) => return Err(errno).during(Stage::Mounts, what),
    };
    let target: OwnedFd = File::open(to).during(Stage::Mounts, what)?.into();
    if to.read_dir().during(Stage::Mounts, what)?.next().is_some() {
        return Ok(());
    }
    copy_directory(source, target.as_fd(), 0).during(Stage::Mounts, what)
}

fn copy_directory(source: OwnedFd, target: BorrowedFd<'_>, depth: usize) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(Errno::ELOOP.into());
    }
    let stat = fstat(&source)?;
    let mut dir = Dir::from_fd(source)?;
    let names: Vec<_> =
        dir.iter().map(|entry| entry.map(|entry| entry.file_name().to_owned())).collect::<Result<_, _>>()?;
    for name in names.iter().filter(|name| ![c".", c".."].contains(&name.as_c_str())) {
        copy_entry(dir.as_fd(), target, name, depth)?;
    }
    give(target, &stat)
}

fn copy_entry(source: BorrowedFd<'_>, target: BorrowedFd<'_>, name: &CStr, depth: usize) -> io::Result<()> {
    let stat = fstatat(source, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
    let read = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match kind {
        SFlag::S_IFDIR => {
            mkdirat(target, name, Mode::S_IRWXU)?;
            let from = openat(source, name, read | OFlag::O_DIRECTORY, Mode::empty())?;
            let to = openat(target, name, read | OFlag::O_DIRECTORY, Mode::empty())?;
            copy_directory(from, to.as_fd(), depth + 1)
        }
        SFlag::S_IFREG => {
            let from = openat(source, name, read, Mode::empty())?;
            let write = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
            let to = openat(target, name, write, Mode::S_IRUSR | Mode::S_IWUSR)?;
            let mut to = File::from(to);
            copy_data(&mut File::from(from), &mut to, stat.st_size.unsigned_abs())?;
            give(to.as_fd(), &stat)
        }
        SFlag::S_IFLNK => {
            symlinkat(readlinkat(source, name)?.as_os_str(), target, name)?;
            own(target, name, &stat)
        }
        SFlag::S_IFIFO => {
            mknodat(target, name, kind, Mode::from_bits_truncate(stat.st_mode & 0o7777), 0)?;
            own(target, name, &stat)
        }
        // Sockets mean nothing without their process; devices cannot be made here.
        _ => Ok(()),
    }
}

/// What is in the file, and its size. Holes stay holes: an image may have a file of many terabytes that is one.
fn copy_data(from: &mut File, to: &mut File, size: u64) -> io::Result<()> {
    let offset = |place: u64| i64::try_from(place).map_err(|_| io::Error::from(Errno::EOVERFLOW));
    let mut place = 0;
    while place < size {
        let start = match lseek(&*from, offset(place)?, Whence::SeekData) {
            Ok(start) => start.unsigned_abs(),
            Err(Errno::ENXIO) => break, // nothing but a hole to the end
            Err(errno) => return Err(errno.into()),
        };
        let end = lseek(&*from, offset(start)?, Whence::SeekHole)?.unsigned_abs();
        from.seek(io::SeekFrom::Start(start))?;
        to.seek(io::SeekFrom::Start(start))?;
        if io::copy(&mut Read::by_ref(from).take(end.saturating_sub(start)), to)? == 0 {
            break; // cut short meanwhile
        }
        place = end;
    }
    to.set_len(size)
}

/// Owner, mode and times of the original.
fn give(target: BorrowedFd<'_>, stat: &FileStat) -> io::Result<()> {
    own(target, c"", stat)?;
    fchmod(target, Mode::from_bits_truncate(stat.st_mode & 0o7777))?;
    let (accessed, modified) =
        (TimeSpec::new(stat.st_atime, stat.st_atime_nsec), TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec));
    Ok(futimens(target, &accessed, &modified)?)
}

fn own(target: BorrowedFd<'_>, name: &CStr, stat: &FileStat) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    match fchownat(target, name, Some(uid), Some(gid), AtFlags::AT_EMPTY_PATH | AtFlags::AT_SYMLINK_NOFOLLOW)
    {
        // With one id everything belongs to it already.
        Ok(()) | Err(Errno::EINVAL | Errno::EPERM) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
