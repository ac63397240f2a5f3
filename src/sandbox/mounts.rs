//! The mounts of a container's spec, made detached and put in place by descriptor.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, SFlag, fstat};
use oci_spec::runtime::Mount;

use super::rootfs::{Root, Target};
use super::{Context as _, Failure, Stage, Staged, devices};
use crate::sys::mount as api;

/// A mount's options, sorted by what they mean to the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// MOUNT_ATTR_* bits.
    pub attributes: u64,
    /// MS_PRIVATE and its kin; 0 for none.
    pub propagation: u64,
    /// Whether a bind takes what is mounted below its source along.
    pub recursive: bool,
    /// The part of the source that a bind takes, relative to it.
    pub subpath: Option<PathBuf>,
    /// What the filesystem itself gets.
    pub data: Vec<(String, Option<String>)>,
}

impl Options {
    /// Sorts the options of an OCI mount (runtime-spec, config.md, "Linux mount options").
    #[must_use]
    pub fn parse(options: &[String]) -> Self {
        let mut parsed = Self::default();
        for option in options {
            let set = match option.as_str() {
                "ro" => api::MOUNT_ATTR_RDONLY,
                "nosuid" => api::MOUNT_ATTR_NOSUID,
                "nodev" => api::MOUNT_ATTR_NODEV,
                "noexec" => api::MOUNT_ATTR_NOEXEC,
                "noatime" => api::MOUNT_ATTR_NOATIME,
                "strictatime" => api::MOUNT_ATTR_STRICTATIME,
                _ => 0,
            };
            parsed.attributes |= set;
            match option.as_str() {
                _ if set != 0 => {}
                "rw" | "suid" | "dev" | "exec" | "relatime" | "bind" | "async" | "defaults" | "nocopy"
                | "rro" | "z" | "Z" => {}
                "rbind" => parsed.recursive = true,
                "private" | "rprivate" => parsed.propagation = libc::MS_PRIVATE,
                "slave" | "rslave" => parsed.propagation = libc::MS_SLAVE,
                "shared" | "rshared" => parsed.propagation = libc::MS_SHARED,
                "unbindable" | "runbindable" => parsed.propagation = libc::MS_UNBINDABLE,
                other if other.starts_with("subpath=") => {
                    parsed.subpath = other.split_once('=').map(|(_, path)| path.into());
                }
                other => {
                    let (key, value) = match other.split_once('=') {
                        Some((key, value)) => (key, Some(value.to_owned())),
                        None => (other, None),
                    };
                    parsed.data.push((key.to_owned(), value));
                }
            }
        }
        parsed
    }
}

/// Mounts one entry of the spec inside the root.
///
/// # Errors
/// Which mount failed, and why.
pub fn apply(root: &Root, mount: &Mount) -> Staged<()> {
    let destination = mount.destination();
    let mut options = Options::parse(mount.options().as_deref().unwrap_or_default());
    let kind = mount.typ().as_deref().unwrap_or("none");
    let source = mount.source().as_deref();
    if let Some(source) = source.filter(|_| !matches!(kind, "bind" | "none" | "cgroup" | "cgroup2")) {
        // Only a name, which /proc/mounts shows, and by which programs tell such mounts.
        options.data.push(("source".to_owned(), Some(source.to_string_lossy().into_owned())));
    }
    let what = |detail: &str| format!("cannot mount {detail} on {}", destination.display());
    match kind {
        "bind" | "none" => {
            let source = source.ok_or_else(|| Failure::plain(Stage::Mounts, what("nothing")))?;
            bind(root, source, destination, &options)
        }
        "cgroup" | "cgroup2" => cgroup(root, destination, &options),
        "proc" => {
            let ordinary = || ordinary(root, destination, "proc");
            match new(c"proc", &options) {
                Ok(made) => {
                    let point = ordinary()?;
                    api::attach(made.as_fd(), point.as_fd()).during(Stage::Mounts, || what("proc"))
                }
                // Refused inside a container whose own /proc is covered in places (mount_too_revealing):
                // then that one is shown, with the processes of the container around this one.
                Err(Errno::EPERM) => {
                    ordinary()?;
                    let options = Options { recursive: true, data: Vec::new(), ..options };
                    bind(root, Path::new("/proc"), destination, &options)
                }
                Err(errno) => Err(Failure::new(Stage::Mounts, what("proc"), errno)),
            }
        }
        "sysfs" => match new(c"sysfs", &options) {
            Ok(made) => {
                let point = ordinary(root, destination, "sysfs")?;
                api::attach(made.as_fd(), point.as_fd()).during(Stage::Mounts, || what("sysfs"))
            }
            // Refused where the network namespace is not the container's own, or /sys is covered.
            Err(Errno::EPERM) => {
                let options = Options {
                    attributes: options.attributes | api::MOUNT_ATTR_RDONLY,
                    recursive: true,
                    ..options
                };
                bind(root, Path::new("/sys"), destination, &options)
            }
            Err(errno) => Err(Failure::new(Stage::Mounts, what("sysfs"), errno)),
        },
        _ => {
            let name =
                CString::new(kind).map_err(|_| Failure::plain(Stage::Mounts, what("a type with NUL")))?;
            let made = new(&name, &options).during(Stage::Mounts, || what(kind))?;
            put(root, &made, destination).during(Stage::Mounts, || what(kind))?;
            // Not before: until Linux 6.15 nothing can be mounted on a mount that is attached nowhere.
            if kind == "tmpfs" && destination == Path::new("/dev") {
                devices::populate(&made)?;
            }
            Ok(())
        }
    }
}

/// A new filesystem, detached, with the spec's options.
fn new(kind: &CStr, options: &Options) -> Result<OwnedFd, Errno> {
    let text = |text: &str| CString::new(text).map_err(|_| Errno::EINVAL);
    let mut owned = Vec::with_capacity(options.data.len());
    for (key, value) in &options.data {
        // A copy of the content below is the engine's business, not the filesystem's.
        if key != "tmpcopyup" && key != "notmpcopyup" {
            owned.push((text(key)?, value.as_deref().map(text).transpose()?));
        }
    }
    let borrowed: Vec<_> = owned.iter().map(|(key, value)| (key.as_c_str(), value.as_deref())).collect();
    api::new_filesystem(kind, &borrowed, options.attributes)
}

/// Where proc or sysfs is mounted. Led elsewhere by a symlink, it would be there without what is hidden in it.
fn ordinary(root: &Root, destination: &Path, kind: &str) -> Staged<OwnedFd> {
    root.ordinary_directory(destination).map_err(|errno| {
        let failure =
            Failure::new(Stage::Mounts, format!("cannot mount {kind} on {}", destination.display()), errno);
        match errno {
            Errno::ENOTDIR => failure.hint("the image has something else than an ordinary directory there"),
            _ => failure,
        }
    })
}

fn put(root: &Root, made: &OwnedFd, destination: &Path) -> Result<(), Errno> {
    let point = root.mount_point(destination, Target::Directory)?;
    api::attach(made.as_fd(), point.as_fd())
}

/// Binds a path of the machine; one mount, with everything below it when asked.
fn bind(root: &Root, source: &Path, destination: &Path, options: &Options) -> Staged<()> {
    let what = || format!("cannot mount {} on {}", source.display(), destination.display());
    let opened = root.as_kept(|| open(source, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()));
    let opened = opened.during(Stage::Mounts, what)?;
    bind_below(root, opened, destination, options, &what)
}

/// Binds a directory that is open, or the part of it that the entry's options name.
///
/// # Errors
/// As [`bind_fd`]; there is no such part.
pub fn bind_part(root: &Root, source: OwnedFd, entry: &Mount) -> Staged<()> {
    let options = Options::parse(entry.options().as_deref().unwrap_or_default());
    let name = entry.source().clone().unwrap_or_default();
    let what = || format!("cannot mount {} on {}", name.display(), entry.destination().display());
    bind_below(root, source, entry.destination(), &options, &what)
}

fn bind_below(
    root: &Root,
    source: OwnedFd,
    destination: &Path,
    options: &Options,
    what: &dyn Fn() -> String,
) -> Staged<()> {
    let source = match &options.subpath {
        // A container has written there: whatever links there are end at the volume's root.
        Some(part) => Root::new(source)
            .open(part, libc::O_PATH)
            .during(Stage::Mounts, || format!("{}: its part {:?}", what(), part.display().to_string()))?,
        None => source,
    };
    bind_fd(root, &source, destination, options).map_err(|errno| match errno {
        Errno::EXDEV => Failure::plain(Stage::Mounts, format!("{}: it is inside /proc", what())),
        errno => Failure::new(Stage::Mounts, what(), errno),
    })
}

/// Binds what is open.
///
/// # Errors
/// As open_tree(2), mount_setattr(2), move_mount(2) and finding the mount point.
pub fn bind_fd(root: &Root, source: &OwnedFd, destination: &Path, options: &Options) -> Result<(), Errno> {
    let is_dir = SFlag::from_bits_truncate(fstat(source)?.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR;
    // A mount with others below it that belong to a more privileged namespace can only be taken with
    // them (mount_namespaces(7), "locked").
    let made = match api::clone_tree(source.as_fd(), options.recursive && is_dir) {
        Err(Errno::EINVAL) if is_dir => api::clone_tree(source.as_fd(), true)?,
        other => other?,
    };
    let propagation = if options.propagation == 0 { libc::MS_PRIVATE } else { options.propagation };
    api::set_attributes(made.as_fd(), options.attributes, propagation, true)?;
    let point = root.mount_point(destination, if is_dir { Target::Directory } else { Target::File })?;
    if is_proc(point.as_fd())? && !IN_PROC.iter().any(|name| destination == Path::new(name)) {
        return Err(Errno::EXDEV);
    }
    api::attach(made.as_fd(), point.as_fd())
}

/// Files of /proc that may be covered by others, and /proc itself (runc's list: what lxcfs serves). Anything
/// else there decides what programs believe of the kernel and the engine of the container; a symlink of the
/// image's may lead there.
const IN_PROC: [&str; 11] = [
    "/proc",
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/sys/crypto/fips_enabled",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/uptime",
];

/// Whether something lies in a proc filesystem.
///
/// # Errors
/// As fstatfs(2).
pub fn is_proc(file: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(nix::sys::statfs::fstatfs(file)?.filesystem_type() == nix::sys::statfs::PROC_SUPER_MAGIC)
}

/// The cgroup tree, where the kernel lets an unprivileged namespace mount it; an empty read-only
/// directory elsewhere (cgroup v1, hybrid hosts).
fn cgroup(root: &Root, destination: &Path, options: &Options) -> Staged<()> {
    let what = || format!("cannot mount cgroups on {}", destination.display());
    let plain = Options { data: Vec::new(), ..options.clone() };
    let made = match new(c"cgroup2", &plain) {
        Ok(made) => made,
        Err(_) => {
            let empty = Options {
                data: vec![("mode".into(), Some("755".into())), ("size".into(), Some("4k".into()))],
                attributes: options.attributes | api::MOUNT_ATTR_RDONLY,
                ..Options::default()
            };
            new(c"tmpfs", &empty).during(Stage::Mounts, what)?
        }
    };
    match put(root, &made, destination) {
        // A bound /sys has no such directory where the machine has no cgroups: nothing to show then.
        Ok(()) | Err(Errno::ENOENT | Errno::EROFS | Errno::EACCES | Errno::EPERM) => Ok(()),
        Err(errno) => Err(Failure::new(Stage::Mounts, what(), errno)),
    }
}

/// Hides a path: an empty read-only directory over a directory, /dev/null over a file.
///
/// # Errors
/// Which path could not be hidden; one that is not there needs no hiding.
pub fn mask(root: &Root, path: &Path) -> Staged<()> {
    let what = || format!("cannot hide {}", path.display());
    let Some(point) = existing(root, path).during(Stage::Mounts, what)? else { return Ok(()) };
    let mode = fstat(&point).during(Stage::Mounts, what)?.st_mode;
    let cover = if SFlag::from_bits_truncate(mode) & SFlag::S_IFMT == SFlag::S_IFDIR {
        api::new_filesystem(
            c"tmpfs",
            &[(c"size", Some(c"0")), (c"nr_inodes", Some(c"1")), (c"mode", Some(c"755"))],
            api::MOUNT_ATTR_RDONLY | api::MOUNT_ATTR_NOSUID,
        )
    } else {
        open("/dev/null", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
            .and_then(|null| api::clone_tree(null.as_fd(), false))
    };
    cover.and_then(|cover| api::attach(cover.as_fd(), point.as_fd())).during(Stage::Mounts, what)
}

/// Makes a path read-only, with everything mounted below it.
///
/// # Errors
/// Which path; one that is not there needs nothing.
pub fn make_read_only(root: &Root, path: &Path) -> Staged<()> {
    let what = || format!("cannot make {} read-only", path.display());
    let Some(point) = existing(root, path).during(Stage::Mounts, what)? else { return Ok(()) };
    api::clone_tree(point.as_fd(), true)
        .and_then(|made| {
            api::set_attributes(made.as_fd(), api::MOUNT_ATTR_RDONLY, 0, true)?;
            api::attach(made.as_fd(), point.as_fd())
        })
        .during(Stage::Mounts, what)
}

fn existing(root: &Root, path: &Path) -> Result<Option<OwnedFd>, Errno> {
    match root.open(path, libc::O_PATH) {
        Ok(point) => Ok(Some(point)),
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_sorted_by_meaning() {
        let options = ["nosuid", "ro", "rprivate", "rbind", "mode=755", "size=64k", "newinstance", "rw"];
        let parsed = Options::parse(&options.map(str::to_owned));
        assert_eq!(
            parsed,
            Options {
                attributes: api::MOUNT_ATTR_NOSUID | api::MOUNT_ATTR_RDONLY,
                propagation: libc::MS_PRIVATE,
                recursive: true,
                subpath: None,
                data: vec![
                    ("mode".into(), Some("755".into())),
                    ("size".into(), Some("64k".into())),
                    ("newinstance".into(), None)
                ],
            }
        );
    }
}
