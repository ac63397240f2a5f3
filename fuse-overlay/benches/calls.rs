//! What single calls cost on a mount whose write side is this crate's own.
//!
//! ```text
//! cargo bench -p hostel-fuse-overlay [-- NAME]
//! ```
//!
//! The program mounts (see examples/mount.rs), and runs itself inside.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on ends")]

#[expect(dead_code, reason = "its main function is not called")]
#[path = "../examples/mount.rs"]
mod mount;

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};

use divan::Bencher;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

/// Small files in the lower layer, each of which is copied up once at the most.
const SMALL: usize = 20_000;
/// Files of 1 MiB there.
const LARGE: usize = 200;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "--inside") {
        return mount::run(arguments);
    }
    if std::env::var_os("MOUNT").is_some() {
        divan::main();
        return ExitCode::SUCCESS;
    }
    let place = tempfile::tempdir().unwrap();
    let layer = place.path().join("layer.tar");
    fs::write(&layer, lower()).unwrap();
    let mut command = vec!["--pure".into(), place.path().join("upper").into(), layer.into(), "--".into()];
    command.push(std::env::current_exe().unwrap().into());
    command.extend(arguments);
    mount::run(command)
}

fn lower() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |path: String, kind, data: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_size(data.len() as u64);
        tar.append_data(&mut header, path, data).unwrap();
    };
    for directory in ["small", "large", "list"] {
        add(directory.into(), tar::EntryType::Directory, b"");
    }
    for number in 0..SMALL {
        add(format!("small/{number}"), tar::EntryType::Regular, &[1; 2000]);
    }
    for number in 0..LARGE {
        add(format!("large/{number}"), tar::EntryType::Regular, &[2; 1 << 20]);
    }
    for number in 0..1000 {
        add(format!("list/{number}"), tar::EntryType::Regular, b"");
    }
    tar.into_inner().unwrap()
}

fn root() -> PathBuf {
    std::env::var_os("MOUNT").unwrap().into()
}

static NUMBER: AtomicUsize = AtomicUsize::new(0);

fn number() -> usize {
    NUMBER.fetch_add(1, Ordering::Relaxed)
}

/// A name that is not there and has not been asked for.
#[divan::bench]
fn lookup(bencher: Bencher<'_, '_>) {
    let root = root();
    bencher.with_inputs(|| root.join(format!("missing{}", number()))).bench_values(|path| path.exists());
}

/// Of a file that has just been written, which the kernel asks for again.
#[divan::bench]
fn write_and_getattr(bencher: Bencher<'_, '_>) {
    let file = File::create(root().join("getattr")).unwrap();
    bencher.bench_local(|| {
        file.write_all_at(b"x", 0).unwrap();
        file.metadata().unwrap().len()
    });
}

#[divan::bench]
fn readdir_1000(bencher: Bencher<'_, '_>) {
    let path = root().join("list");
    bencher.bench_local(|| fs::read_dir(&path).unwrap().count());
}

#[divan::bench]
fn open_and_close(bencher: Bencher<'_, '_>) {
    let path = root().join("small/0");
    bencher.bench_local(|| File::open(&path).unwrap());
}

/// 128 KiB that the kernel has forgotten and the server has not.
#[divan::bench]
fn read_128k(bencher: Bencher<'_, '_>) {
    let file = File::open(root().join("large/0")).unwrap();
    let mut data = vec![0; 128 << 10];
    bencher.bench_local(|| {
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
        file.read_exact_at(&mut data, 0).unwrap();
    });
}

#[divan::bench]
fn write_4k(bencher: Bencher<'_, '_>) {
    let file = File::create(root().join("write")).unwrap();
    file.set_len(1 << 20).unwrap();
    let mut place = 0;
    bencher.bench_local(|| {
        place = (place + 4096) % (1 << 20);
        file.write_all_at(&[3; 4096], place).unwrap();
    });
}

/// A file of 4 KiB: made, written, given a mode, closed.
#[divan::bench]
fn create(bencher: Bencher<'_, '_>) {
    let directory = root().join("created");
    let _ = fs::create_dir(&directory);
    bencher.with_inputs(|| directory.join(number().to_string())).bench_local_values(|path| {
        fs::write(&path, [4; 4096]).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    });
}

#[divan::bench]
fn create_and_unlink(bencher: Bencher<'_, '_>) {
    let path = root().join("unlinked");
    bencher.bench_local(|| {
        fs::write(&path, [5; 4096]).unwrap();
        fs::remove_file(&path).unwrap();
    });
}

#[divan::bench(sample_count = 50, sample_size = 20)]
fn copy_up_small(bencher: Bencher<'_, '_>) {
    let root = root();
    bencher
        .with_inputs(|| root.join(format!("small/{}", 1 + number() % (SMALL - 1))))
        .bench_local_values(append);
}

#[divan::bench(sample_count = 50, sample_size = 2)]
fn copy_up_1m(bencher: Bencher<'_, '_>) {
    let root = root();
    let next = AtomicUsize::new(1);
    let path = || root.join(format!("large/{}", next.fetch_add(1, Ordering::Relaxed) % LARGE));
    bencher.with_inputs(path).bench_local_values(append);
}

fn append(path: PathBuf) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(b"+", 0).unwrap();
}

#[divan::bench]
fn rename(bencher: Bencher<'_, '_>) {
    let (here, there) = (root().join("here"), root().join("there"));
    fs::write(&here, "").unwrap();
    bencher.bench_local(|| {
        fs::rename(&here, &there).unwrap();
        fs::rename(&there, &here).unwrap();
    });
}

/// A directory of the lower layer with 20,000 files.
#[divan::bench]
fn rename_lower_directory(bencher: Bencher<'_, '_>) {
    let (here, there) = (root().join("small"), root().join("moved"));
    bencher.bench_local(|| {
        fs::rename(&here, &there).unwrap();
        fs::rename(&there, &here).unwrap();
    });
}
