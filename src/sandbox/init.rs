//! The first process of a container: from clone3(2) to the command.
//!
//! It runs as pid 1 of the new namespaces and talks to two others: to the keeper over `keeper`
//! (it waits for one byte that says that the id maps are written, and reports a [`Failure`]; a
//! close without a word means that the command is running), and to the server over `server`, which
//! gets the FUSE, TUN and terminal descriptors as soon as each exists.
//!
//! What does not need the id maps comes first, so that the helpers that write them run beside it.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use fuse_overlay::mount as fuse_mount;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, fchdir, pivot_root, setgroups, sethostname, setresgid, setresuid, setsid};

use super::namespaces::Namespaces;
use super::rootfs::{Root, Target, as_kept};
use super::{
    Context as _, Failure, Stage, Staged, Stdio, chain, command, copyup, credentials, devices, fence, mounts,
};
use crate::plan::{ContainerPlan, KeepId, NetworkMode, SeccompPlan};
use crate::sys;

/// Tags of the messages to the server.
pub mod message {
    /// With the FUSE connection's descriptor.
    pub const FUSE: u8 = b'F';
    /// With the TUN's descriptor; its features follow in four bytes.
    pub const TUN: u8 = b'T';
    /// With the terminal's master.
    pub const TERMINAL: u8 = b'M';
    /// To the keeper: with the container's namespaces, whose kinds follow in four bytes each.
    pub const NAMESPACES: u8 = b'N';
}

/// How the root filesystem is put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootKind {
    /// The kernel's overlayfs over the read-only FUSE mount.
    Hybrid,
    /// The FUSE mount alone, writable.
    Pure,
    /// The kernel's overlayfs over the image written out as a directory.
    Materialised,
    /// A directory of the container's own with the whole image in it.
    Copy,
}

/// Everything that init needs; it gets a copy of it with the rest of the keeper's memory.
#[derive(Debug)]
pub struct Enter<'a> {
    /// The plan.
    pub plan: &'a ContainerPlan,
    /// The container's directory in the store (its /etc files).
    pub dir: &'a Path,
    /// The root filesystem, and the socket to the server.
    pub root: RootMount<'a>,
    /// Whether setgroups(2) is allowed in the namespace.
    pub may_set_groups: bool,
    /// A mount of /dev/shm that another container shares.
    pub shared_memory: Option<OwnedFd>,
    /// The link to make, for the userspace network.
    pub link: Option<&'a net::link::LinkConfig>,
    /// For each mount of an image, in order: the directory that it is written out to, or none where it is served.
    pub images: &'a [Option<PathBuf>],
    /// Whether it is in a control group of its own, where a namespace of it is to begin.
    pub own_group: bool,
    /// New volumes to fill from the image: `(place in the container, the volume's directory)`.
    pub fill: Vec<(PathBuf, PathBuf)>,
    /// The program that executes the command.
    pub stub: OwnedFd,
    /// The compiled filter.
    pub seccomp: Option<&'a [libc::sock_filter]>,
    /// The command's stdio.
    pub stdio: Stdio,
    /// To the keeper.
    pub keeper: OwnedFd,
}

/// Runs in the child; never returns.
pub fn run(enter: &Enter<'_>) -> ! {
    let Err(failure) = start(enter);
    // The keeper may be gone: then nobody is left to tell, and the exit ends the namespaces.
    if let Ok(text) = serde_json::to_vec(&failure) {
        let _ = sys::fd::send_with_fds(enter.keeper.as_fd(), &text, &[]);
    }
    sys::process::exit_now(1)
}

fn start(enter: &Enter<'_>) -> Staged<std::convert::Infallible> {
    let Enter { plan, keeper, root: RootMount { server, .. }, .. } = enter;
    sys::process::set_name(c"hostel-init");
    let mut keep = vec![keeper.as_raw_fd(), server.as_raw_fd(), enter.stub.as_raw_fd()];
    if let Stdio::Pipes(pipes) = &enter.stdio {
        keep.extend(pipes.iter().map(std::os::fd::AsRawFd::as_raw_fd));
    }
    keep.extend(enter.shared_memory.as_ref().map(std::os::fd::AsRawFd::as_raw_fd));
    sys::fd::close_all_except(&keep);
    sys::fault::point("init-begins");
    network(enter)?;
    oom_score(plan)?;
    wait_for_maps(keeper.as_fd())?;
    sys::fault::point("init-has-maps");
    if enter.own_group {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWCGROUP)
            .during(Stage::Namespaces, || "cannot make a control group namespace".into())?;
    }
    hand_over_namespaces(plan, keeper.as_fd())?;
    sys::process::set_dumpable(false)
        .during(Stage::Namespaces, || "cannot hide from other processes".into())?;
    become_set_up_user(enter)?;
    setsid().during(Stage::Namespaces, || "cannot make a session".into())?;
    umask(Mode::empty());

    let root = mount_root(&enter.root)?;
    sys::fault::point("init-has-root");
    if let Some(process) = plan.spec.process() {
        command::prefetch(&root, process);
    }
    for (place, volume) in &enter.fill {
        root.as_kept(|| copyup::copy(&root, place, volume))?;
    }
    let mut images = enter.images.iter();
    for entry in plan.spec.mounts().iter().flatten() {
        if entry.typ().as_deref() == Some("image") {
            mount_image(enter, &root, entry, images.next())?;
        } else {
            mounts::apply(&root, entry)?;
        }
    }
    if plan.seccomp == SeccompPlan::Nested {
        devices::add_for_engine(&root)?;
    }
    shared_memory(enter, &root)?;
    etc_files(enter, &root)?;
    sys::fault::point("init-has-mounts");
    if let Some(keep) = &plan.keep_id {
        accounts(enter, &root, keep)?;
    }
    sysctls(plan, &root, enter.root.ids.1)?;
    let user = command::resolve_user(&root, &plan.user, &plan.group_add)?;
    let terminal = match &enter.stdio {
        Stdio::Terminal { size } => {
            let (master, peer) = devices::open_terminal(&root, true, user.uid)?;
            if let Some((rows, columns)) = size {
                // A terminal of unknown size works; only its programs' lines may break oddly.
                let _ = sys::terminal::set_size(master.as_fd(), *rows, *columns);
            }
            send(*server, &[message::TERMINAL], Some(master.as_fd()))?;
            Some(peer)
        }
        Stdio::Pipes(_) => None,
    };
    confine(plan, &root)?;
    enter_root(&root, plan)?;
    sys::fault::point("init-inside");

    let process = plan
        .spec
        .process()
        .as_ref()
        .ok_or_else(|| Failure::plain(Stage::Credentials, "the plan has no process"))?;
    if let Some(hostname) = plan.spec.hostname() {
        match sethostname(hostname) {
            // The filter of a container around this one. Nobody asked for that name; it stays in HOSTNAME.
            Err(Errno::EPERM) if is_made_up(hostname) => {}
            result => {
                result.during(Stage::Namespaces, || format!("cannot set the host name {hostname:?}"))?;
            }
        }
    }
    if let Some(domainname) = plan.spec.domainname() {
        sys::process::set_domain_name(domainname)
            .during(Stage::Namespaces, || format!("cannot set the domain name {domainname:?}"))?;
    }
    umask(Mode::from_bits_truncate(process.user().umask().unwrap_or(0o022)));
    command::enter_directory(process.cwd())?;
    attach_stdio(&enter.stdio, terminal.as_ref())?;
    credentials::set_limits(process)?;
    credentials::leave_keyring(&plan.seccomp)?;
    if fence::is_wanted(plan) {
        fence::enter()?;
    }
    credentials::become_user(process, &user, enter.may_set_groups, enter.seccomp)?;
    // Changing the user made the process what fs.suid_dumpable says: settle it.
    sys::process::set_dumpable(false)
        .during(Stage::Credentials, || "cannot hide from other processes".into())?;
    sys::process::set_parent_death_signal(libc::SIGKILL)
        .during(Stage::Credentials, || "cannot ask for the parent's death signal".into())?;
    let ready = command::prepare(process, &user.home)?;
    sys::fault::point("init-ready");
    sys::process::reset_signals();
    if plan.init {
        Err(super::exec::run_as_init(&ready, enter.stub.as_fd(), keeper.as_fd()))
    } else {
        Err(ready.execute(enter.stub.as_fd(), keeper.as_fd()))
    }
}

/// The interface, before the id maps are there: its capabilities come from the namespace's creation.
fn network(enter: &Enter<'_>) -> Staged<()> {
    let failed = |error: net::link::LinkError| {
        Failure::plain(Stage::Network, chain(&error))
            .hint("or run without this network: --network none, --network host")
    };
    match (&enter.plan.network.mode, enter.link) {
        (NetworkMode::Bridge, Some(link)) => {
            let (fd, features) = net::link::create(link).map_err(failed)?.into_parts();
            let mut text = vec![message::TUN];
            text.extend(features.to_ne_bytes());
            send(enter.root.server, &text, Some(fd.as_fd()))
        }
        (NetworkMode::None, _) => net::link::bring_up_loopback().map_err(failed),
        _ => Ok(()),
    }
}

/// The keeper holds the namespaces open from here on.
fn hand_over_namespaces(plan: &ContainerPlan, keeper: BorrowedFd<'_>) -> Staged<()> {
    let what = || "cannot hand over the namespaces".to_owned();
    let namespaces = Namespaces::own(super::exec::namespaces(&plan.spec)).during(Stage::Namespaces, what)?;
    namespaces.send(keeper, message::NAMESPACES).during(Stage::Namespaces, what)
}

/// Before the process hides itself: its files in /proc belong to root then.
fn oom_score(plan: &ContainerPlan) -> Staged<()> {
    let process = plan.spec.process().as_ref();
    let Some(score) = process.and_then(oci_spec::runtime::Process::oom_score_adj).filter(|score| *score != 0)
    else {
        return Ok(());
    };
    std::fs::write("/proc/self/oom_score_adj", score.to_string())
        .during(Stage::Credentials, || format!("cannot set --oom-score-adj {score}"))
        .map_err(|failure| failure.hint("lowering it below the caller's own needs privilege on the machine"))
}

fn send(socket: BorrowedFd<'_>, text: &[u8], fd: Option<BorrowedFd<'_>>) -> Staged<()> {
    let fds: Vec<_> = fd.into_iter().collect();
    sys::fd::send_with_fds(socket, text, &fds)
        .during(Stage::Namespaces, || "the container's server is gone".to_owned())
}

fn wait_for_maps(keeper: BorrowedFd<'_>) -> Staged<()> {
    let mut byte = [0_u8; 1];
    loop {
        match nix::unistd::read(keeper, &mut byte) {
            Ok(1) => return Ok(()),
            Ok(_) => sys::process::exit_now(1), // the keeper is gone, and with it the container
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(Failure::new(Stage::Namespaces, "cannot hear from the keeper", errno)),
        }
    }
}

fn become_set_up_user(enter: &Enter<'_>) -> Staged<()> {
    let what = || "cannot become the container's root".to_owned();
    if enter.may_set_groups {
        setgroups(&[]).during(Stage::Namespaces, what)?;
    }
    let (uid, gid) = (Uid::from_raw(enter.root.ids.0), Gid::from_raw(enter.root.ids.1));
    setresgid(gid, gid, gid).during(Stage::Namespaces, what)?;
    sys::process::set_keep_capabilities(true).during(Stage::Namespaces, what)?;
    setresuid(uid, uid, uid).during(Stage::Namespaces, what)?;
    // A set-up user other than 0 loses the effective set at that change, but not the permitted one.
    if let Ok(permitted) = caps::read(None, caps::CapSet::Permitted) {
        caps::set(None, caps::CapSet::Effective, &permitted)
            .map_err(|error| Failure::plain(Stage::Namespaces, format!("{}: {error}", what())))?;
    }
    Ok(())
}

/// What mounting the root takes.
#[derive(Clone, Copy, Debug)]
pub struct RootMount<'a> {
    /// Where the read side is mounted, in this namespace only.
    pub lower_point: &'a Path,
    /// Where the root is mounted, in this namespace only.
    pub root_point: &'a Path,
    /// Files of the image that are read from here and not from the server, in hybrid mode.
    pub native: Option<&'a Path>,
    /// The image, or the container's copy of it, written out: where it is used without FUSE.
    pub tree: Option<&'a Path>,
    /// Directory of the writable layer.
    pub local_dir: &'a Path,
    /// How the root is made.
    pub root_kind: RootKind,
    /// Whether the upper need not survive a power cut, as that of a `--rm` container.
    pub volatile: bool,
    /// User and group that own the mount, and that set-up runs as: 0, or the one id that is mapped.
    pub ids: (u32, u32),
    /// The user's ids inside, where that is not root.
    pub kept: Option<(u32, u32)>,
    /// Gets the FUSE descriptor, and later whatever else the server needs of init.
    pub server: BorrowedFd<'a>,
    /// What the mount table calls it; containers have the same name each.
    pub source: Option<&'a str>,
}

/// Mounts the root filesystem and opens it. From here on its requests wait for the server.
///
/// # Errors
/// [`Stage::Fuse`]; [`Stage::Overlay`] where only the kernel's overlay is refused.
pub fn mount_root(enter: &RootMount<'_>) -> Staged<Root> {
    as_kept(enter.kept, || {
        let none = None::<&str>;
        // Nothing that is mounted here may reach the machine, nor the other way round.
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
            .during(Stage::Fuse, || "cannot make the mounts private".into())
    })?;
    add_root(enter)
}

/// As [`mount_root`], in a mount namespace whose propagation is the caller's affair.
///
/// # Errors
/// As [`mount_root`].
pub fn add_root(enter: &RootMount<'_>) -> Staged<Root> {
    let opened = as_kept(enter.kept, || mount_opened(enter))?;
    Ok(Root::new(opened).kept(enter.kept))
}

fn mount_opened(enter: &RootMount<'_>) -> Staged<OwnedFd> {
    let stage = Stage::Fuse;
    let none = None::<&str>;
    let root = enter.root_point;
    match (enter.root_kind, enter.tree) {
        (RootKind::Hybrid, _) => {
            mount_fuse(enter, enter.lower_point, true)?;
            mount_overlay(enter, enter.lower_point)?;
        }
        (RootKind::Pure, _) => mount_fuse(enter, root, false)?,
        (RootKind::Materialised, Some(tree)) => mount_overlay(enter, tree)?,
        (RootKind::Copy, Some(tree)) => mount(Some(tree), root, none, MsFlags::MS_BIND, none)
            .during(stage, || "cannot mount the container's copy of its image".into())?,
        (RootKind::Materialised | RootKind::Copy, None) => {
            return Err(Failure::plain(stage, "the image was not written out"));
        }
    }
    open(root, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .during(stage, || "cannot open the container's root".into())
}

fn mount_fuse(enter: &RootMount<'_>, point: &Path, read_only: bool) -> Staged<()> {
    let stage = Stage::Fuse;
    let failed = |error: fuse_mount::MountError| Failure::plain(stage, chain(&error));
    let device = fuse_mount::open_device().map_err(failed)?;
    let source = enter.source.unwrap_or("hostel").to_owned();
    let options = fuse_mount::MountOptions { read_only, uid: enter.ids.0, gid: enter.ids.1, source };
    fuse_mount::mount(device.as_fd(), point, &options).map_err(failed)?;
    send(enter.server, &[message::FUSE], Some(device.as_fd()))?;
    Ok(())
}

fn mount_overlay(enter: &RootMount<'_>, lower: &Path) -> Staged<()> {
    let (upper, work) = (&enter.local_dir.join("upper"), &enter.local_dir.join("work"));
    match_root(lower, upper)?;
    let source = enter.source.unwrap_or("overlay");
    let (native, volatile) = (enter.native, enter.volatile);
    let parts = fuse_mount::OverlayMount { source, lower, native, upper, work, volatile };
    let mounted = fuse_mount::mount_overlay(parts, enter.root_point).or_else(|error| match enter.native {
        // Native files only save time; what they lie on may be no filesystem for a lower layer.
        Some(_) => {
            let parts = fuse_mount::OverlayMount { native: None, ..parts };
            fuse_mount::mount_overlay(parts, enter.root_point)
        }
        None => Err(error),
    });
    mounted.map_err(|error| Failure::plain(Stage::Overlay, chain(&error)))
}

/// The upper's own directory is the container's "/": it gets the image's mode and owner.
fn match_root(lower: &Path, upper: &Path) -> Staged<()> {
    let what = || "cannot prepare the writable layer".to_owned();
    let wanted = nix::sys::stat::stat(lower).during(Stage::Fuse, what)?;
    let found = nix::sys::stat::stat(upper).during(Stage::Fuse, what)?;
    // Not on a later start: the container may have changed its root since.
    if upper.read_dir().during(Stage::Fuse, what)?.next().is_some() {
        return Ok(());
    }
    if (wanted.st_uid, wanted.st_gid) != (found.st_uid, found.st_gid) {
        let (uid, gid) = (Uid::from_raw(wanted.st_uid), Gid::from_raw(wanted.st_gid));
        nix::unistd::chown(upper, Some(uid), Some(gid)).during(Stage::Fuse, what)?;
    }
    let mode = Mode::from_bits_truncate(wanted.st_mode);
    nix::sys::stat::fchmodat(nix::fcntl::AT_FDCWD, upper, mode, nix::sys::stat::FchmodatFlags::FollowSymlink)
        .during(Stage::Fuse, what)
}

/// /etc/hosts, /etc/hostname and /etc/resolv.conf: files of the container's own, bound in place.
fn etc_files(enter: &Enter<'_>, root: &Root) -> Staged<()> {
    for name in ["hosts", "hostname", "resolv.conf"] {
        let destination = Path::new("/etc").join(name);
        let source = enter.dir.join("etc").join(name);
        if !is_covered(enter.plan, &destination) && root.as_kept(|| source.exists()) {
            own_file(root, &source, &destination)?;
        }
    }
    Ok(())
}

/// Anew at each start; root's and readable by all as the image's, whatever the umask. With one id there is no
/// root: then it stays the user's.
fn write_account_file(path: &Path, text: &[u8]) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o644).open(path)?;
    file.write_all(text)?;
    match nix::unistd::fchown(&file, Some(Uid::from_raw(0)), Some(Gid::from_raw(0))) {
        Err(Errno::EINVAL) | Ok(()) => Ok(()), // not mapped (chown(2), user_namespaces(7))
        Err(errno) => Err(errno.into()),
    }
}

/// Whether a mount of the plan's is at this place.
fn is_covered(plan: &ContainerPlan, destination: &Path) -> bool {
    plan.spec.mounts().iter().flatten().any(|mount| mount.destination() == destination)
}

fn own_file(root: &Root, source: &Path, destination: &Path) -> Staged<()> {
    let what = || format!("cannot mount the container's own {}", destination.display());
    let opened = root.as_kept(|| open(source, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()));
    let opened = opened.during(Stage::Mounts, what)?;
    mounts::bind_fd(root, &opened, destination, &mounts::Options::default()).during(Stage::Mounts, what)
}

/// Mounts another image, or a part of it.
fn mount_image(
    enter: &Enter<'_>,
    root: &Root,
    entry: &oci_spec::runtime::Mount,
    tree: Option<&Option<PathBuf>>,
) -> Staged<()> {
    let RootMount { lower_point, kept, .. } = enter.root;
    let what = || format!("cannot mount an image on {}", entry.destination().display());
    let tree = tree.ok_or_else(|| Failure::plain(Stage::Mounts, what()))?.as_deref();
    let directory = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let opened = as_kept(kept, || {
        if tree.is_none() {
            // Over what may be mounted there already, and taken away as soon as the image is in its place.
            let read_only = entry.options().iter().flatten().any(|option| option == "ro");
            mount_fuse(&enter.root, lower_point, read_only)?;
        }
        open(tree.unwrap_or(lower_point), directory, Mode::empty()).during(Stage::Mounts, what)
    })?;
    let mounted = mounts::bind_part(root, opened, entry);
    if tree.is_none() {
        umount2(lower_point, MntFlags::MNT_DETACH).during(Stage::Mounts, what)?;
    }
    mounted
}

/// /dev/shm of the container whose IPC is shared.
fn shared_memory(enter: &Enter<'_>, root: &Root) -> Staged<()> {
    let destination = Path::new("/dev/shm");
    let Some(mount) = &enter.shared_memory else { return Ok(()) };
    if is_covered(enter.plan, destination) {
        return Ok(());
    }
    let what = || "cannot mount the other container's /dev/shm".to_owned();
    let point = root.mount_point(destination, Target::Directory).during(Stage::Mounts, what)?;
    sys::mount::attach(mount.as_fd(), point.as_fd()).during(Stage::Mounts, what)
}

/// The image's /etc/passwd and /etc/group with entries for the user, where they have none for these ids, as
/// files of the container's own: programs want to know a name and a home.
fn accounts(enter: &Enter<'_>, root: &Root, keep: &KeepId) -> Staged<()> {
    let home = enter.plan.spec.process().as_ref().map_or_else(|| "/".into(), |process| process.cwd().clone());
    let files = [
        (
            "passwd",
            keep.uid,
            format!("{}:*:{}:{}::{}:/bin/sh\n", keep.name, keep.uid, keep.gid, home.display()),
        ),
        ("group", keep.gid, format!("{}:*:{}:\n", keep.name, keep.gid)),
    ];
    for (name, id, line) in files {
        let destination = Path::new("/etc").join(name);
        if is_covered(enter.plan, &destination) {
            continue;
        }
        // An image without the file, or with something else in its place, keeps what it has.
        let Ok(mut text) = root.read(&destination, command::MAX_ACCOUNTS_BYTES) else { continue };
        let id = id.to_string();
        if text
            .split(|byte| *byte == b'\n')
            .any(|line| line.split(|byte| *byte == b':').nth(2) == Some(id.as_bytes()))
        {
            continue;
        }
        if !text.is_empty() && !text.ends_with(b"\n") {
            text.push(b'\n');
        }
        text.extend(line.as_bytes());
        let source = enter.dir.join("etc").join(name);
        root.as_kept(|| write_account_file(&source, &text)).during(Stage::Mounts, || {
            format!("cannot write the container's own {}", destination.display())
        })?;
        own_file(root, &source, &destination)?;
    }
    Ok(())
}

/// ip_sysctl: who may send echo requests without CAP_NET_RAW.
const PING_GROUPS: &str = "net.ipv4.ping_group_range";

/// Whether a host name is the beginning of a container's id, which is what it is unless another is asked for.
fn is_made_up(hostname: &str) -> bool {
    hostname.len() == 12 && hostname.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether it is what a plan sets without being asked.
fn is_default(key: &str, value: &str) -> bool {
    key == "net.ipv4.ip_unprivileged_port_start" && value == "0"
        || key == PING_GROUPS && value.starts_with("0 ")
}

/// Sysctls of the container's namespaces, through its own /proc, before that becomes read-only.
fn sysctls(plan: &ContainerPlan, root: &Root, first_gid: u32) -> Staged<()> {
    let Some(sysctls) = plan.spec.linux().as_ref().and_then(|linux| linux.sysctl().as_ref()) else {
        return Ok(());
    };
    let mut sorted: Vec<_> = sysctls.iter().collect();
    sorted.sort();
    for (key, value) in sorted {
        let path = Path::new("/proc/sys").join(key.replace('.', "/"));
        // The default opens ping to group 0, which a container of one id may not have.
        let only_group = format!("{first_gid} {first_gid}");
        let value = if key == PING_GROUPS && value == "0 0" { &only_group } else { value };
        let write = |file: OwnedFd| match mounts::is_proc(file.as_fd())? {
            true => nix::unistd::write(&file, value.as_bytes()).map(drop),
            false => Err(Errno::EXDEV), // something was mounted over it
        };
        match root.open(&path, libc::O_WRONLY).and_then(write) {
            // The engine's own wish, in a container whose /proc is another's: Docker's defaults are not had then.
            Err(Errno::EROFS | Errno::EACCES | Errno::EPERM) if is_default(key, value) => {}
            result => {
                result.during(Stage::Mounts, || format!("cannot set the sysctl {key}={value}"))?;
            }
        }
    }
    Ok(())
}

/// Hides and write-protects what the spec says.
fn confine(plan: &ContainerPlan, root: &Root) -> Staged<()> {
    if let Some(linux) = plan.spec.linux() {
        for path in linux.readonly_paths().iter().flatten() {
            mounts::make_read_only(root, Path::new(path))?;
        }
        for path in linux.masked_paths().iter().flatten() {
            mounts::mask(root, Path::new(path))?;
        }
    }
    Ok(())
}

/// Makes the root "/" and lets go of the machine's.
fn enter_root(root: &Root, plan: &ContainerPlan) -> Staged<()> {
    let what = || "cannot change the root".to_owned();
    if plan.spec.root().as_ref().and_then(oci_spec::runtime::Root::readonly) == Some(true) {
        sys::mount::set_attributes(root.as_fd(), sys::mount::MOUNT_ATTR_RDONLY, 0, false)
            .during(Stage::Mounts, || "cannot make the root read-only".into())?;
    }
    fchdir(root).during(Stage::Mounts, what)?;
    // The old root ends up under the new one and is let go at once (pivot_root(2), NOTES).
    pivot_root(".", ".").during(Stage::Mounts, what)?;
    umount2(".", MntFlags::MNT_DETACH).during(Stage::Mounts, what)?;
    nix::unistd::chdir("/").during(Stage::Mounts, what)
}

/// Puts the command's stdio at 0, 1 and 2.
///
/// # Errors
/// What could not be placed.
pub fn attach_stdio(stdio: &Stdio, terminal: Option<&OwnedFd>) -> Staged<()> {
    let what = || "cannot set up stdio".to_owned();
    match (stdio, terminal) {
        (Stdio::Terminal { .. }, Some(peer)) => {
            sys::terminal::make_controlling(peer.as_fd()).during(Stage::Credentials, what)?;
            for target in 0..=2 {
                sys::fd::place_at(peer.as_fd(), target).during(Stage::Credentials, what)?;
            }
        }
        (Stdio::Pipes(pipes), _) => {
            for (target, pipe) in (0..).zip(pipes) {
                sys::fd::place_at(pipe.as_fd(), target).during(Stage::Credentials, what)?;
            }
        }
        (Stdio::Terminal { .. }, None) => return Err(Failure::plain(Stage::Credentials, what())),
    }
    Ok(())
}
