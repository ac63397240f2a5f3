//! What a container has changed of its image: read from its writable layer as it lies on the disk,
//! without a mount, whether it runs or not, in time that follows from the changes alone.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::path::Path;

use fuse_overlay::changes::{self, ChangeKind, Changes, LeftOut, Upper};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use super::reader::Reader;
use super::{LaunchError, Saved};
use crate::plan::WriteMode;
use crate::sandbox::idmap::{Facts, IdMaps, Wanted, choose};
use crate::sandbox::init::RootKind;
use crate::store::containers::{Record, State, Status};

/// Where the engine mounts by itself, and what it makes for that where the image has nothing: what
/// Docker keeps in a layer of its own below the container's.
const MADE: [&[u8]; 14] = [
    b"dev",
    b"dev/console",
    b"dev/mqueue",
    b"dev/pts",
    b"dev/shm",
    b"etc",
    b"etc/hostname",
    b"etc/hosts",
    b"etc/resolv.conf",
    b"proc",
    b"sys",
    b"sys/fs",
    b"sys/fs/cgroup",
    b"run",
];

/// One changed path, `A`, `C` or `D` in front.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Docker's letter.
    pub letter: char,
    /// The absolute path.
    pub path: Vec<u8>,
}

/// The maps that a container's files were written with.
#[must_use]
pub fn recorded_maps(saved: &Saved, state: Option<&State>) -> IdMaps {
    let mut maps = choose(&Facts::gather(), Wanted::of(&saved.plan));
    if let Some(state) = state {
        maps.uids.clone_from(&state.uid_map);
        maps.gids.clone_from(&state.gid_map);
    }
    maps
}

/// The last start's state, of a container that has had one.
#[must_use]
pub fn last_state(status: &Status) -> Option<&State> {
    match status {
        Status::Running(state) | Status::Restarting(state, _) => Some(state),
        Status::Exited(state, _) => state.as_ref(),
        Status::Created | Status::Starting | Status::Elsewhere(_) => None,
    }
}

/// How the writable layer was written; a container that never ran has what its first start would try.
#[must_use]
pub fn root_kind(saved: &Saved, state: Option<&State>) -> RootKind {
    match (saved.write_mode, state.map(|state| state.write_mode.as_str())) {
        (WriteMode::Auto, Some("pure")) => RootKind::Pure,
        (WriteMode::Auto, Some("copy")) => RootKind::Copy,
        (WriteMode::Auto, Some(_)) => RootKind::Hybrid,
        _ => super::root_kind(saved),
    }
}

/// The changes of a container, sorted.
///
/// # Errors
/// What cannot be read.
pub fn list(record: &Record, saved: &Saved, status: &Status) -> Result<Vec<Line>, LaunchError> {
    let mut reader = start(record, saved, status, |found, mut out| {
        for change in found.iter() {
            let letter = match change.kind {
                ChangeKind::Modified => b'C',
                ChangeKind::Added => b'A',
                ChangeKind::Deleted => b'D',
            };
            out.write_all(&[&[letter, b'/'], change.path, &[0]].concat())
                .map_err(|error| error.to_string())?;
        }
        out.flush().map_err(|error| error.to_string())
    })?;
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut reader, &mut bytes)
        .map_err(super::io_error(|| "tell the container's changes".into()))?;
    let lines = bytes.split(|byte| *byte == 0).filter_map(|line| {
        let (letter, path) = line.split_first()?;
        Some(Line { letter: char::from(*letter), path: path.to_vec() })
    });
    Ok(lines.collect())
}

/// The changes as a layer's tar, which ends in an error where they could not be read to their end.
/// What a layer cannot hold is told on stderr.
///
/// # Errors
/// The child that reads them cannot be started.
pub fn layer(record: &Record, saved: &Saved, status: &Status) -> Result<Reader, LaunchError> {
    start(record, saved, status, |found, out| {
        let LeftOut { like_whiteouts } =
            found.write_layer(out).map_err(|error| crate::sandbox::chain(&error))?;
        for path in like_whiteouts {
            eprintln!("WARNING: /{} is left out: in an image its name would mean a deletion", path.display());
        }
        Ok(())
    })
}

fn start(
    record: &Record,
    saved: &Saved,
    status: &Status,
    work: impl FnOnce(&Changes, std::io::BufWriter<File>) -> Result<(), String>,
) -> Result<Reader, LaunchError> {
    let state = last_state(status);
    let maps = recorded_maps(saved, state);
    let kind = root_kind(saved, state);
    let lower = super::lower(saved, &record.local_dir)?;
    let ids = super::ids(&maps);
    let copy = record.local_dir.join("copy/tree");
    let open = || open_upper(&record.local_dir.join("upper"));
    let upper = match kind {
        RootKind::Pure => Upper::Own(open()?),
        RootKind::Copy if copy.exists() => Upper::Copy(open_upper(&copy)?),
        // A copy that was not made yet has no changes: nor has what would be its upper.
        RootKind::Hybrid | RootKind::Materialised | RootKind::Copy => Upper::Kernel(open()?),
    };
    let mut made: Vec<&[u8]> = MADE.to_vec();
    let mount_points = if saved.of_build { mount_points(saved) } else { Vec::new() };
    made.extend(mount_points.iter().map(Vec::as_slice));
    // Only this crate's own upper has no files of other users.
    let maps = (kind != RootKind::Pure).then_some(&maps);
    let reader = Reader::start(maps, move |pipe| {
        let found = changes::find(lower, upper, ids, &made).map_err(|error| crate::sandbox::chain(&error))?;
        work(&found, std::io::BufWriter::with_capacity(1 << 18, pipe))
    })?;
    Ok(reader)
}

/// Where a build's step had something mounted, and the directories above.
fn mount_points(saved: &Saved) -> Vec<Vec<u8>> {
    let mounts = saved.plan.spec.mounts().iter().flatten();
    let above = mounts.flat_map(|mount| mount.destination().ancestors());
    let relative = above.filter_map(|path| path.strip_prefix("/").ok());
    let bytes = |path: &Path| std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()).to_vec();
    relative.filter(|path| !path.as_os_str().is_empty()).map(bytes).collect()
}

/// The directory may be closed to its own user by the container; a path is enough.
fn open_upper(path: &Path) -> Result<OwnedFd, LaunchError> {
    open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|errno| super::io_error(|| format!("open {}", path.display()))(errno.into()))
}
