//! A container's control group, where this user may make one.
//!
//! ```text
//! BASE                   what was delegated: the nearest group above our own that systemd has marked so (the
//!                        attribute user.delegate), else the highest that is ours to write
//! BASE/hostel            all containers
//! BASE/hostel/<id>       one container: made before its first process, which is born in it
//! BASE/hostel-callers    where the processes of BASE go when a limit needs its controllers
//! ```
//!
//! Only version 2 of the kernel's control groups can be delegated. What systemd gives to a user
//! (`user@UID.service`) can be written to, but a process of a login session is not below it, and the kernel
//! moves a process only where its old and its new group have an ancestor that the mover may write. There systemd
//! is asked for a scope ([`super::scope`]); without it there is no BASE, no limit holds, and `run` says so. A
//! service of `systemd --user`, `systemd-run --user --scope` and a container of a cluster have one.
//!
//! What must stay true: a limit that cannot be kept is told and never silently dropped; nothing outside BASE is
//! written to.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::{AccessFlags, access};

use crate::plan::request::Limits;
use crate::sys;

/// The group of all containers.
const ALL: &str = "hostel";
/// The group of what was in BASE itself: a group with processes can give no controllers to those below it.
const CALLERS: &str = "hostel-callers";
/// What limits are made of.
const CONTROLLERS: [&str; 5] = ["cpu", "cpuset", "io", "memory", "pids"];
/// How often and how long to wait until the kernel has let go of a group's last process.
const REMOVE_ATTEMPTS: u32 = 200;
const REMOVE_WAIT: Duration = Duration::from_millis(5);
/// The kernel's period, unless another was asked for.
const DEFAULT_PERIOD_US: u64 = 100_000;

/// What was delegated to this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delegation {
    base: PathBuf,
    /// The controllers that can be used below.
    pub controllers: Vec<String>,
}

impl Delegation {
    /// Looks for it; `None` where there is none.
    #[must_use]
    pub fn find() -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let top = place(&mounts, "/")?;
        let own = place(&mounts, own.lines().find_map(|line| line.strip_prefix("0::"))?)?;
        let writable = own.ancestors().take_while(|dir| dir.starts_with(&top) && is_ours(dir));
        let writable: Vec<&Path> = writable.collect();
        // systemd marks what it gives away, and keeps the rest of a user's tree to itself.
        let is_marked = |dir: &&&Path| {
            CString::new(dir.as_os_str().as_bytes())
                .is_ok_and(|dir| sys::fd::has_xattr(&dir, c"user.delegate"))
        };
        let marked = writable.iter().find(is_marked);
        let base = marked.or(writable.last())?.to_path_buf();
        let controllers = read_controllers(&base)?;
        Some(Self { base, controllers })
    }

    /// Makes a container's group with its limits.
    ///
    /// # Errors
    /// What the kernel refuses; nothing is left then.
    pub fn make(&self, id: &str, limits: &Limits) -> io::Result<Group> {
        let all = self.base.join(ALL);
        make_dir(&all)?;
        let settings = self.settings(limits)?;
        if !settings.is_empty() {
            self.give_controllers(&all)?;
        }
        let dir = all.join(id);
        make_dir(&dir)?;
        let group = Group { dir };
        for (file, value) in &settings {
            if let Err(error) = group.set(file, value) {
                group.remove();
                return Err(io::Error::new(error.kind(), format!("cannot set {file} to {value:?}: {error}")));
            }
        }
        Ok(group)
    }

    /// The files that hold these limits, without those whose controller is missing.
    fn settings(&self, limits: &Limits) -> io::Result<Vec<(&'static str, String)>> {
        let mut found = settings(limits);
        for (device, rates) in device_rates(limits)? {
            found.push(("io.max", format!("{device} {rates}")));
        }
        found.retain(|(file, _)| {
            let controller = file.split('.').next().unwrap_or_default();
            self.controllers.iter().any(|name| name == controller)
        });
        Ok(found)
    }

    fn give_controllers(&self, all: &Path) -> io::Result<()> {
        let wanted: Vec<String> = self.controllers.iter().map(|name| format!("+{name}")).collect();
        let wanted = wanted.join(" ");
        let base = self.base.join("cgroup.subtree_control");
        if !has_all(&base, &self.controllers) {
            match fs::write(&base, &wanted) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                    self.move_callers()?;
                    fs::write(&base, &wanted)?;
                }
                other => other?,
            }
        }
        let below = all.join("cgroup.subtree_control");
        if has_all(&below, &self.controllers) { Ok(()) } else { fs::write(below, &wanted) }
    }

    /// Everything in BASE belongs to this user, who was given it: it goes one level down.
    fn move_callers(&self) -> io::Result<()> {
        let callers = self.base.join(CALLERS);
        make_dir(&callers)?;
        let pids = fs::read_to_string(self.base.join("cgroup.procs"))?;
        for pid in pids.lines() {
            match fs::write(callers.join("cgroup.procs"), pid) {
                Err(error) if error.raw_os_error() != Some(libc::ESRCH) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

/// The controllers by which limits hold for a container that is started now, and who gives them; `None` where no
/// limit holds.
#[must_use]
pub fn obtainable() -> Option<(Vec<String>, Source)> {
    let delegated = Delegation::find().map(|found| (found.controllers, Source::Delegated));
    delegated.or_else(|| super::scope::Manager::find().map(|found| (found.controllers, Source::Systemd)))
}

/// Who gives a container its control group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// It is made in what was delegated to the caller.
    Delegated,
    /// systemd makes a scope for it.
    Systemd,
}

/// The controllers of a group of version 2, by its path as /proc/PID/cgroup has it.
pub(super) fn controllers_of(path: &str) -> Option<Vec<String>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    read_controllers(&place(&mounts, path)?)
}

fn read_controllers(group: &Path) -> Option<Vec<String>> {
    let text = fs::read_to_string(group.join("cgroup.controllers")).ok()?;
    Some(text.split_whitespace().filter(|name| CONTROLLERS.contains(name)).map(str::to_owned).collect())
}

/// Whether every controller is given to the groups below.
fn has_all(subtree_control: &Path, controllers: &[String]) -> bool {
    let text = fs::read_to_string(subtree_control).unwrap_or_default();
    controllers.iter().all(|wanted| text.split_whitespace().any(|name| name == wanted))
}

/// Where a group of version 2 is mounted: `path` is as /proc/self/cgroup has it.
fn place(mountinfo: &str, path: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (head, tail) = line.split_once(" - ")?;
        if tail.split(' ').next() != Some("cgroup2") {
            return None;
        }
        let mut fields = head.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        // In a cgroup namespace of its own the root is "/"; a group outside of it begins with "/..".
        let below = Path::new(path).strip_prefix(root).ok().filter(|below| !below.starts_with(".."))?;
        Some(Path::new(point).join(below))
    })
}

fn is_ours(dir: &Path) -> bool {
    ["", "cgroup.procs", "cgroup.subtree_control"]
        .iter()
        .all(|file| access(&dir.join(file), AccessFlags::W_OK).is_ok())
}

fn make_dir(dir: &Path) -> io::Result<()> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Limits as files of a group and their values.
fn settings(limits: &Limits) -> Vec<(&'static str, String)> {
    let mut files = Vec::new();
    if limits.memory_bytes > 0 {
        files.push(("memory.max", limits.memory_bytes.to_string()));
        // Docker's: unset means as much swap again, and the file has the swap alone.
        let swap = match limits.memory_swap_bytes {
            -1 => "max".to_owned(),
            0 => limits.memory_bytes.to_string(),
            both => u64::try_from(both).unwrap_or(0).saturating_sub(limits.memory_bytes).to_string(),
        };
        files.push(("memory.swap.max", swap));
    }
    if limits.memory_reservation_bytes > 0 {
        files.push(("memory.low", limits.memory_reservation_bytes.to_string()));
    }
    let period = if limits.cpu_period_us == 0 { DEFAULT_PERIOD_US } else { limits.cpu_period_us };
    if limits.cpu_nanos > 0 {
        let quota = u128::from(limits.cpu_nanos) * u128::from(DEFAULT_PERIOD_US) / 1_000_000_000;
        files.push(("cpu.max", format!("{quota} {DEFAULT_PERIOD_US}")));
    } else if limits.cpu_quota_us > 0 {
        files.push(("cpu.max", format!("{} {period}", limits.cpu_quota_us)));
    } else if limits.cpu_period_us > 0 {
        files.push(("cpu.max", format!("max {period}")));
    }
    if limits.cpu_shares > 0 {
        // From 2..262144 to 1..10000, as runc and crun convert.
        let shares = limits.cpu_shares.clamp(2, 262_144);
        files.push(("cpu.weight", (1 + (shares - 2) * 9999 / 262_142).to_string()));
    }
    if !limits.cpuset_cpus.is_empty() {
        files.push(("cpuset.cpus", limits.cpuset_cpus.clone()));
    }
    if !limits.cpuset_mems.is_empty() {
        files.push(("cpuset.mems", limits.cpuset_mems.clone()));
    }
    match limits.pids {
        0 => {}
        -1 => files.push(("pids.max", "max".into())),
        count => files.push(("pids.max", count.to_string())),
    }
    if limits.blkio_weight > 0 {
        // From 10..1000 to 1..10000, likewise.
        let weight = u64::from(limits.blkio_weight);
        files.push(("io.weight", format!("default {}", 1 + (weight - 10) * 9999 / 990)));
    }
    files
}

/// `--device-read-bps` and its kin: device number and what io.max says of it.
fn device_rates(limits: &Limits) -> io::Result<Vec<(String, String)>> {
    const KEYS: [(&str, &str); 4] = [
        ("device-read-bps", "rbps"),
        ("device-write-bps", "wbps"),
        ("device-read-iops", "riops"),
        ("device-write-iops", "wiops"),
    ];
    let mut rates = Vec::new();
    for (flag, key) in KEYS {
        for text in limits.blkio_devices.get(flag).into_iter().flatten() {
            let Some((device, rate)) = text.rsplit_once(':') else { continue };
            let meta = fs::metadata(device)
                .map_err(|error| io::Error::new(error.kind(), format!("{device}: {error}")))?;
            let (major, minor) = (nix::sys::stat::major(meta.rdev()), nix::sys::stat::minor(meta.rdev()));
            rates.push((format!("{major}:{minor}"), format!("{key}={}", in_bytes(rate))));
        }
    }
    Ok(rates)
}

/// `1mb` in bytes; it was checked when the flag was read.
fn in_bytes(text: &str) -> u64 {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text[digits.len()..].chars().next().map(|unit| unit.to_ascii_lowercase());
    let shift = unit.and_then(|unit| "kmgtp".find(unit)).map_or(0, |power| 10 * (power + 1));
    digits.parse::<u64>().unwrap_or(0) << shift
}

/// One container's group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    dir: PathBuf,
}

impl Group {
    /// The group that a record names.
    #[must_use]
    pub fn at(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// Its directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Opens it, for clone3(2).
    ///
    /// # Errors
    /// As open(2).
    pub fn open(&self) -> io::Result<OwnedFd> {
        Ok(fs::File::open(&self.dir)?.into())
    }

    /// Moves a process into it, which could not be made there (clone3(2), CLONE_INTO_CGROUP).
    ///
    /// # Errors
    /// As writing cgroup.procs.
    pub fn add(&self, pid: nix::unistd::Pid) -> io::Result<()> {
        self.write("cgroup.procs", &pid.to_string())
    }

    /// A limit. A weight counts among siblings, and of a scope from systemd the siblings are other scopes: it has the
    /// container's weight, too.
    fn set(&self, file: &str, value: &str) -> io::Result<()> {
        self.write(file, value)?;
        match self.scope() {
            Some(scope) if file.ends_with(".weight") => fs::write(scope.join(file), value),
            _ => Ok(()),
        }
    }

    /// The scope that systemd made for this container alone.
    fn scope(&self) -> Option<&Path> {
        let base = self.dir.parent()?.parent()?;
        let name = base.file_name()?.to_str()?;
        (name.starts_with("hostel-") && name.ends_with(".scope")).then_some(base)
    }

    fn write(&self, file: &str, value: &str) -> io::Result<()> {
        fs::write(self.dir.join(file), value)
    }

    /// Changes its limits.
    ///
    /// # Errors
    /// A limit whose controller is missing, or that the kernel refuses.
    pub fn update(&self, limits: &Limits) -> io::Result<()> {
        for (file, value) in settings(limits) {
            self.set(file, &value).map_err(|error| {
                io::Error::new(error.kind(), format!("cannot set {file} to {value:?}: {error}"))
            })?;
        }
        Ok(())
    }

    /// Holds every process up, or lets them go on; returns when it is so.
    ///
    /// # Errors
    /// As writing the file; TimedOut when the kernel cannot stop one of them.
    pub fn freeze(&self, frozen: bool) -> io::Result<()> {
        self.write("cgroup.freeze", if frozen { "1" } else { "0" })?;
        let wanted = if frozen { 1 } else { 0 };
        for _ in 0..REMOVE_ATTEMPTS {
            if self.number("cgroup.events", "frozen ") == Some(wanted) {
                return Ok(());
            }
            std::thread::sleep(REMOVE_WAIT);
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    /// How many of its processes the kernel has killed for want of memory.
    #[must_use]
    pub fn oom_kills(&self) -> u64 {
        self.number("memory.events", "oom_kill ").unwrap_or(0)
    }

    /// A number of one of its files: the line that begins with `key`, or the only one.
    #[must_use]
    pub fn number(&self, file: &str, key: &str) -> Option<u64> {
        let text = fs::read_to_string(self.dir.join(file)).ok()?;
        text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
    }

    /// Takes it away when its last process has gone; one that stays is taken over by the next start.
    pub fn remove(&self) {
        let _ = self.write("cgroup.kill", "1"); // nothing is left mostly
        for _ in 0..REMOVE_ATTEMPTS {
            match fs::remove_dir(&self.dir) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => std::thread::sleep(REMOVE_WAIT),
                _ => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_found_below_its_mount() {
        let table = "24 30 0:22 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                     25 30 0:23 /a /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n";
        for (path, found) in
            [("/a", Some("/sys/fs/cgroup/")), ("/a/b/c", Some("/sys/fs/cgroup/b/c")), ("/other", None)]
        {
            assert_eq!(place(table, path), found.map(PathBuf::from), "{path}");
        }
        assert_eq!(place("25 30 0:23 / /x rw - cgroup2 cgroup2 rw", "/../y"), None);
    }

    #[test]
    fn limits_are_files() {
        let limits = Limits {
            memory_bytes: 64 << 20,
            memory_swap_bytes: 96 << 20,
            memory_reservation_bytes: 32 << 20,
            cpu_nanos: 1_500_000_000,
            cpu_shares: 512,
            cpuset_cpus: "0-1".into(),
            pids: 100,
            blkio_weight: 500,
            ..Limits::default()
        };
        let text: Vec<String> =
            settings(&limits).into_iter().map(|(file, value)| format!("{file}={value}")).collect();
        assert_eq!(
            text,
            [
                "memory.max=67108864",
                "memory.swap.max=33554432",
                "memory.low=33554432",
                "cpu.max=150000 100000",
                "cpu.weight=20",
                "cpuset.cpus=0-1",
                "pids.max=100",
                "io.weight=default 4950",
            ]
        );
        let limits = Limits { cpu_period_us: 50_000, cpu_quota_us: 25_000, pids: -1, ..Limits::default() };
        assert_eq!(settings(&limits), [("cpu.max", "25000 50000".into()), ("pids.max", "max".into())]);
        assert_eq!(settings(&Limits::default()), []);
        assert_eq!((in_bytes("1mb"), in_bytes("17"), in_bytes("2K")), (1 << 20, 17, 2048));
    }
}
