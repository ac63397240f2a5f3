//! Random operations, done on the mount and on a plain directory: results and trees must agree.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, AtFlags, FallocateFlags, RenameFlags, copy_file_range, fallocate, renameat2};
use nix::sys::stat::{Mode, UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{linkat, mkfifo};

use super::tree;

/// How often the whole trees are compared.
const COMPARE_EVERY: u64 = 250;

/// Open files at a time.
const HANDLES: usize = 4;

/// SplitMix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut value = self.0;
        value = (value ^ value >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        value = (value ^ value >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        value ^ value >> 31
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// A path that may or may not exist: few names, so that they meet often.
    fn path(&mut self) -> String {
        const NAMES: [&str; 14] = [
            "d", "a", "b", "sub", "deep", "hard1", "hard2", "link", "new1", "new2", "hidden", "opaque",
            "many", "large",
        ];
        let depth = 1 + self.below(3);
        let names: Vec<&str> = (0..depth).map(|_| NAMES[self.below(NAMES.len() as u64) as usize]).collect();
        names.join("/")
    }
}

#[derive(Clone, Debug)]
enum Operation {
    Write { path: String, offset: u64, data: Vec<u8> },
    Append { path: String, data: Vec<u8> },
    Create { path: String, data: Vec<u8> },
    CreateNew { path: String },
    Truncate { path: String, size: u64 },
    Unlink { path: String },
    MakeDirectory { path: String },
    RemoveDirectory { path: String },
    RemoveAll { path: String },
    Rename { from: String, to: String, flags: RenameFlags },
    Link { from: String, to: String },
    Symlink { target: String, path: String },
    SetMode { path: String, mode: u32 },
    Punch { path: String, offset: u64, length: u64 },
    Allocate { path: String, offset: u64, length: u64 },
    Copy { from: String, to: String },
    Open { path: String },
    WriteOpen { number: usize, offset: u64, data: Vec<u8> },
    ReadOpen { number: usize },
    Close { number: usize },
    Read { path: String },
    List { path: String },
    Sync { path: String },
    Zero { path: String, offset: u64, length: u64 },
    CopyRange { from: String, to: String, offset: u64 },
    Unnamed { directory: String, data: Vec<u8>, to: String },
    SetTimes { path: String, seconds: i64 },
    TakeOver { path: String },
    MakeFifo { path: String },
}

fn choose(random: &mut Random) -> Operation {
    let data = |random: &mut Random| {
        let length = [1, 10, 4096, 70_000][random.below(4) as usize];
        vec![random.below(256) as u8; length]
    };
    let offset = |random: &mut Random| [0, 3, 4096, 100_000][random.below(4) as usize];
    let path = random.path();
    match random.below(36) {
        0 | 1 => Operation::Write { path, offset: offset(random), data: data(random) },
        2 => Operation::Append { path, data: data(random) },
        3 | 4 => Operation::Create { path, data: data(random) },
        5 => Operation::CreateNew { path },
        6 => Operation::Truncate { path, size: offset(random) },
        7 | 8 => Operation::Unlink { path },
        9 | 10 => Operation::MakeDirectory { path },
        11 => Operation::RemoveDirectory { path },
        12 => Operation::RemoveAll { path },
        13..=16 => Operation::Rename { from: path, to: random.path(), flags: RenameFlags::empty() },
        17 => Operation::Rename { from: path, to: random.path(), flags: RenameFlags::RENAME_NOREPLACE },
        18 => Operation::Rename { from: path, to: random.path(), flags: RenameFlags::RENAME_EXCHANGE },
        19 => Operation::Link { from: path, to: random.path() },
        20 => Operation::Symlink { target: path, path: random.path() },
        // The owner can always read and enter, so that trees can be compared.
        21 => Operation::SetMode { path, mode: 0o700 | random.below(0o100) as u32 },
        22 => Operation::Punch { path, offset: offset(random), length: 5000 },
        23 => Operation::Allocate { path, offset: offset(random), length: 5000 },
        24 => Operation::Copy { from: path, to: random.path() },
        25 => Operation::Open { path },
        26 => Operation::WriteOpen {
            number: random.below(4) as usize,
            offset: offset(random),
            data: data(random),
        },
        27 => match random.below(2) {
            0 => Operation::ReadOpen { number: random.below(4) as usize },
            _ => Operation::Close { number: random.below(4) as usize },
        },
        28 => Operation::Read { path },
        29 => Operation::Zero { path, offset: offset(random), length: 5000 },
        30 => Operation::CopyRange { from: path, to: random.path(), offset: offset(random) },
        31 => Operation::Unnamed { directory: path, data: data(random), to: random.path() },
        32 => Operation::SetTimes { path, seconds: random.below(1 << 33) as i64 },
        33 => Operation::TakeOver { path },
        34 => Operation::MakeFifo { path },
        _ => match random.below(3) {
            0 => Operation::Sync { path },
            _ => Operation::List { path },
        },
    }
}

/// One of the two trees, with the files open in it.
struct Side {
    root: PathBuf,
    open: Vec<Option<File>>,
}

impl Side {
    fn new(root: &Path) -> Self {
        Self { root: root.into(), open: (0..HANDLES).map(|_| None).collect() }
    }

    /// Does it and describes the outcome, errors included.
    fn perform(&mut self, operation: &Operation) -> String {
        match self.try_perform(operation) {
            Ok(outcome) => outcome,
            Err(error) => match error.raw_os_error() {
                Some(number) => format!("{}", nix::errno::Errno::from_raw(number)),
                None => format!("{:?}", error.kind()),
            },
        }
    }

    fn try_perform(&mut self, operation: &Operation) -> io::Result<String> {
        let at = |path: &str| self.root.join(path);
        match operation {
            Operation::Write { path, offset, data } => {
                not_fifo(&at(path))?;
                OpenOptions::new().write(true).open(at(path))?.write_all_at(data, *offset)?;
            }
            Operation::Append { path, data } => {
                not_fifo(&at(path))?;
                io::Write::write_all(&mut OpenOptions::new().append(true).open(at(path))?, data)?;
            }
            Operation::Create { path, data } => {
                not_fifo(&at(path))?;
                fs::write(at(path), data)?;
            }
            Operation::CreateNew { path } => drop(File::create_new(at(path))?),
            Operation::Truncate { path, size } => {
                not_fifo(&at(path))?;
                OpenOptions::new().write(true).open(at(path))?.set_len(*size)?;
            }
            Operation::Unlink { path } => fs::remove_file(at(path))?,
            Operation::MakeDirectory { path } => fs::create_dir(at(path))?,
            Operation::RemoveDirectory { path } => fs::remove_dir(at(path))?,
            Operation::RemoveAll { path } => {
                if fs::symlink_metadata(at(path))?.is_dir() {
                    fs::remove_dir_all(at(path))?;
                }
            }
            Operation::Rename { from, to, flags } => {
                renameat2(AT_FDCWD, &at(from), AT_FDCWD, &at(to), *flags)?;
            }
            Operation::Link { from, to } => fs::hard_link(at(from), at(to))?,
            Operation::Symlink { target, path } => symlink(target, at(path))?,
            Operation::SetMode { path, mode } => {
                if fs::symlink_metadata(at(path))?.is_symlink() {
                    return Ok("left".into());
                }
                fs::set_permissions(at(path), fs::Permissions::from_mode(*mode))?;
            }
            Operation::Punch { path, offset, length } => {
                not_fifo(&at(path))?;
                let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                let file = OpenOptions::new().write(true).open(at(path))?;
                fallocate(&file, flags, offset.cast_signed(), length.cast_signed())?;
            }
            Operation::Allocate { path, offset, length } => {
                not_fifo(&at(path))?;
                let file = OpenOptions::new().write(true).open(at(path))?;
                fallocate(&file, FallocateFlags::empty(), offset.cast_signed(), length.cast_signed())?;
            }
            Operation::Copy { from, to } => {
                not_fifo(&at(from))?;
                not_fifo(&at(to))?;
                // Onto itself it would be emptied first, by either.
                if same(&at(from), &at(to)) {
                    return Ok("same".into());
                }
                fs::copy(at(from), at(to))?;
            }
            Operation::Open { path } => {
                not_fifo(&at(path))?;
                let file = OpenOptions::new().read(true).write(true).open(at(path))?;
                let free = self.open.iter_mut().find(|slot| slot.is_none());
                if let Some(slot) = free {
                    *slot = Some(file);
                }
            }
            Operation::WriteOpen { number, offset, data } => {
                if let Some(file) = &self.open[*number] {
                    file.write_all_at(data, *offset)?;
                }
            }
            Operation::ReadOpen { number } => {
                if let Some(file) = &self.open[*number] {
                    return content(file);
                }
            }
            Operation::Close { number } => self.open[*number] = None,
            Operation::Read { path } => {
                not_fifo(&at(path))?;
                return content(&File::open(at(path))?);
            }
            Operation::List { path } => {
                let names = fs::read_dir(at(path))?.map(|entry| entry.map(|entry| entry.file_name()));
                let mut names = names.collect::<io::Result<Vec<_>>>()?;
                names.sort();
                return Ok(format!("{names:?}"));
            }
            Operation::Sync { path } => {
                not_fifo(&at(path))?;
                nix::unistd::fsync(File::open(at(path))?.as_fd())?;
            }
            Operation::Zero { path, offset, length } => {
                not_fifo(&at(path))?;
                let file = OpenOptions::new().write(true).open(at(path))?;
                let flags = FallocateFlags::FALLOC_FL_ZERO_RANGE;
                fallocate(&file, flags, offset.cast_signed(), length.cast_signed())?;
            }
            Operation::CopyRange { from, to, offset } => {
                not_fifo(&at(from))?;
                not_fifo(&at(to))?;
                if same(&at(from), &at(to)) {
                    return Ok("same".into());
                }
                return copy_range(&at(from), &at(to), *offset);
            }
            Operation::Unnamed { directory, data, to } => {
                let file = OpenOptions::new()
                    .write(true)
                    .mode(0o640)
                    .custom_flags(libc::O_TMPFILE)
                    .open(at(directory))?;
                file.write_all_at(data, 5)?;
                let path = format!("/proc/self/fd/{}", file.as_raw_fd());
                linkat(AT_FDCWD, path.as_str(), AT_FDCWD, &at(to), AtFlags::AT_SYMLINK_FOLLOW)?;
            }
            Operation::SetTimes { path, seconds } => {
                let times = [TimeSpec::new(*seconds, 1), TimeSpec::new(seconds / 2, 999_999_999)];
                let flags = UtimensatFlags::NoFollowSymlink;
                utimensat(AT_FDCWD, &at(path), &times[0], &times[1], flags)?;
                let meta = fs::symlink_metadata(at(path))?;
                return Ok(format!("{} {}", meta.mtime(), meta.mtime_nsec()));
            }
            Operation::TakeOver { path } => std::os::unix::fs::lchown(at(path), Some(0), Some(0))?,
            Operation::MakeFifo { path } => mkfifo(&at(path), Mode::from_bits_truncate(0o620))?,
        }
        Ok("done".into())
    }
}

fn copy_range(from: &Path, to: &Path, offset: u64) -> io::Result<String> {
    let source = File::open(from)?;
    let target = OpenOptions::new().write(true).open(to)?;
    let (mut here, mut there) = (offset.cast_signed() / 2, offset.cast_signed());
    let mut done = 0;
    // The kernel may copy less than asked at a time.
    loop {
        match copy_file_range(&source, Some(&mut here), &target, Some(&mut there), 50_000 - done) {
            // Between the two filesystems below the kernel's overlay: every program copies by itself then.
            Err(nix::errno::Errno::EXDEV) => {
                let mut data = vec![0; 50_000 - done];
                let count = source.read_at(&mut data, here.cast_unsigned())?;
                target.write_all_at(&data[..count], there.cast_unsigned())?;
                done += count;
                break;
            }
            copied => match copied? {
                0 => break,
                count => done += count,
            },
        }
        if done == 50_000 {
            break;
        }
    }
    Ok(format!("{done} copied"))
}

/// Opening a fifo would wait for somebody at the other end.
fn not_fifo(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::FileTypeExt;
    match fs::metadata(path) {
        Ok(meta) if meta.file_type().is_fifo() => Err(io::Error::from_raw_os_error(libc::ENXIO)),
        _ => Ok(()),
    }
}

fn same(left: &Path, right: &Path) -> bool {
    match (fs::metadata(left), fs::metadata(right)) {
        (Ok(left), Ok(right)) => left.ino() == right.ino() && left.dev() == right.dev(),
        _ => false,
    }
}

fn content(file: &File) -> io::Result<String> {
    let meta = file.metadata()?;
    if meta.is_dir() {
        return Err(io::Error::from_raw_os_error(libc::EISDIR));
    }
    let mut data = vec![0; meta.len() as usize];
    file.read_exact_at(&mut data, 0)?;
    let sum = data.iter().fold(0u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
    Ok(format!("{} bytes {sum:x}", data.len()))
}

pub(crate) fn run(root: &Path, place: &Path, seed: u64, count: u64) {
    let reference = place.join("reference");
    if !reference.exists() {
        fs::create_dir(&reference).unwrap();
        tree::create(&reference);
    }
    compare(root, place, "before the first operation");
    let mut random = Random(seed);
    let (mut here, mut there) = (Side::new(root), Side::new(&reference));
    for step in 0..count {
        let operation = choose(&mut random);
        let (found, expected) = (here.perform(&operation), there.perform(&operation));
        let what = brief(&operation);
        assert_eq!(found, expected, "seed {seed} step {step}: {what}");
        if step % COMPARE_EVERY == COMPARE_EVERY - 1 {
            compare(root, place, &format!("seed {seed} step {step}"));
        }
    }
    compare(root, place, "at the end");
}

fn brief(operation: &Operation) -> String {
    format!("{operation:?}").chars().take(200).collect()
}

/// Compares the mount with the reference directory.
pub(crate) fn compare(root: &Path, place: &Path, when: &str) {
    let found = tree::snapshot(root, &[]);
    let expected = tree::snapshot(&place.join("reference"), &[]);
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found, expected, "{when}");
    }
    assert_eq!(found.len(), expected.len(), "{when}");
}
