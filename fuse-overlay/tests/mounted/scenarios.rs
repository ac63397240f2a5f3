//! What is tried inside a mount. Each scenario gets the root of the filesystem.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, FallocateFlags, FlockArg, OFlag, RenameFlags, fallocate, renameat2};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, mknod, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Whence, lseek};

use super::tree;

/// How many of a directory's entries are the image's, how many are added, and how many are left when
/// one of ten has gone.
pub(crate) const HUGE_LOWER: usize = 95_000;
const HUGE_ADDED: usize = 5_000;
const HUGE_LEFT: usize = (HUGE_LOWER + HUGE_ADDED) / 10 * 9;

pub(crate) fn run(name: &str, root: &Path, lower: &str) {
    match name {
        "sees_the_merged_tree" => sees_the_merged_tree(root),
        "refuses_writes" => refuses_writes(root),
        "lists_and_seeks" => lists_and_seeks(root),
        "executes" => executes(root),
        "ordinary_changes" => ordinary_changes(root),
        "ordinary_changes_are_kept" => ordinary_changes_are_kept(root),
        "renames" => renames(root),
        "renames_are_kept" => renames_are_kept(root),
        "directories" => directories(root),
        "long_names" => long_names(root),
        "hard_links_stay_together" => hard_links_stay_together(root),
        "hard_links_are_kept" => hard_links_are_kept(root),
        "data" => data(root),
        "open_files_outlive_their_names" => open_files_outlive_their_names(root),
        "shared_mappings" => shared_mappings(root),
        "locks" => locks(root),
        "attributes" => attributes(root),
        "attributes_are_kept" => attributes_are_kept(root),
        "privileged_bits" => privileged_bits(root),
        "xattrs" => xattrs(root),
        "xattrs_are_kept" => xattrs_are_kept(root),
        "large_directory" => large_directory(root),
        "huge_directory" => huge_directory(root),
        "directory_rules" => directory_rules(root),
        "directory_changes_underneath" => directory_changes_underneath(root, Path::new(lower)),
        _ => panic!("no scenario {name}"),
    }
}

pub(crate) fn errno<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

pub(crate) fn names(path: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(path).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

pub(crate) fn text(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap()
}

fn sees_the_merged_tree(root: &Path) {
    let reference = tempfile::tempdir().unwrap();
    tree::create(reference.path());
    assert_eq!(tree::snapshot(root, &[]), tree::snapshot(reference.path(), &[]));
    for path in ["d/a", "d", "link", "fifo"] {
        let mtime = fs::symlink_metadata(root.join(path)).unwrap().mtime();
        assert_eq!(mtime, tree::MTIME as i64, "{path}");
    }
    assert_eq!(fs::metadata(root.join("d")).unwrap().nlink(), 4);
}

/// The numbers in a listing are those of stat (the kernel's overlayfs does not promise it).
fn lists_the_numbers_of_stat(root: &Path) {
    for entry in fs::read_dir(root).unwrap() {
        use std::os::unix::fs::DirEntryExt;
        let entry = entry.unwrap();
        assert_eq!(entry.ino(), entry.metadata().unwrap().ino(), "{:?}", entry.file_name());
    }
}

fn refuses_writes(root: &Path) {
    assert_eq!(errno(fs::write(root.join("new"), "")), Some(libc::EROFS));
    assert_eq!(errno(OpenOptions::new().write(true).open(root.join("d/a"))), Some(libc::EROFS));
    assert_eq!(errno(fs::remove_file(root.join("d/a"))), Some(libc::EROFS));
    assert_eq!(errno(fs::metadata(root.join("missing"))), Some(libc::ENOENT));
    assert_eq!(errno(fs::metadata(root.join("d/a/x"))), Some(libc::ENOTDIR));
}

fn lists_and_seeks(root: &Path) {
    lists_the_numbers_of_stat(root);
    assert_eq!(names(&root.join("many")).len(), 300);
    let mut large = File::open(root.join("large")).unwrap();
    let mut word = [0; 4];
    for at in [0u32, 1, 1023, 1024, 99_999, 399_999] {
        large.seek(SeekFrom::Start(u64::from(at) * 4)).unwrap();
        large.read_exact(&mut word).unwrap();
        assert_eq!(u32::from_le_bytes(word), at);
    }
    assert_eq!(large.read(&mut word).unwrap(), 0);
    assert_eq!(lseek(&large, 5, Whence::SeekData), Ok(5));
    assert_eq!(lseek(&large, 5, Whence::SeekHole), Ok(1_600_000));
    assert_eq!(lseek(&large, 1_600_000, Whence::SeekData), Err(Errno::ENXIO));
}

fn executes(root: &Path) {
    let output = Command::new(root.join("script")).output().unwrap();
    assert_eq!(output.stdout, b"executed\n");
}

fn ordinary_changes(root: &Path) {
    let at = |path: &str| root.join(path);
    OpenOptions::new().append(true).open(at("d/a")).unwrap().write_all(b" more").unwrap();
    fs::write(at("d/b"), "replaced").unwrap();
    fs::write(at("new"), "new").unwrap();
    fs::create_dir_all(at("dir/in/dir")).unwrap();
    fs::write(at("dir/in/dir/file"), vec![7; 200_000]).unwrap();
    fs::remove_file(at("empty")).unwrap();
    fs::remove_dir_all(at("opaque")).unwrap();
    symlink("d/a", at("symlink")).unwrap();
    fs::rename(at("d/sub/deep"), at("d/deep")).unwrap();
    fs::remove_dir(at("d/sub")).unwrap();
    fs::create_dir(at("opaque")).unwrap();
    // A directory made in a removed one's place does not show what was in it.
    assert_eq!(names(&at("opaque")), BTreeSet::new());
    ordinary_changes_are_there(root);
}

fn ordinary_changes_are_there(root: &Path) {
    let at = |path: &str| root.join(path);
    assert_eq!(text(at("d/a")), "upper a more");
    assert_eq!(text(at("d/b")), "replaced");
    assert_eq!(text(at("new")), "new");
    assert_eq!(fs::read(at("dir/in/dir/file")).unwrap(), vec![7; 200_000]);
    assert_eq!(text(at("symlink")), "upper a more");
    assert_eq!(fs::metadata(at("d/deep")).unwrap().len(), 10_000);
    assert_eq!(errno(fs::metadata(at("empty"))), Some(libc::ENOENT));
    assert_eq!(errno(fs::metadata(at("d/sub"))), Some(libc::ENOENT));
    assert_eq!(names(&at("opaque")), BTreeSet::new());
}

fn ordinary_changes_are_kept(root: &Path) {
    ordinary_changes_are_there(root);
    fs::write(root.join("d/b"), "again").unwrap();
    assert_eq!(text(root.join("d/b")), "again");
}

fn rename(root: &Path, from: &str, to: &str, flags: RenameFlags) -> Result<(), Errno> {
    renameat2(AT_FDCWD, &root.join(from), AT_FDCWD, &root.join(to), flags)
}

fn renames(root: &Path) {
    let plain = RenameFlags::empty();
    let at = |path: &str| root.join(path);
    let ino = fs::metadata(at("d/sub")).unwrap().ino();
    // A lower directory moves without EXDEV, keeps its number and what is in it.
    rename(root, "d", "moved", plain).unwrap();
    assert_eq!(fs::metadata(at("moved/sub")).unwrap().ino(), ino);
    assert_eq!(errno(fs::metadata(at("d"))), Some(libc::ENOENT));
    fs::write(at("moved/sub/added"), "1").unwrap();
    rename(root, "moved/sub", "sub", plain).unwrap();
    assert_eq!(fs::canonicalize(at("sub/..")).unwrap(), fs::canonicalize(root).unwrap());
    assert_eq!(names(&at("sub")), ["added", "deep"].map(String::from).into());
    // Removed, made again, renamed: nothing of the first comes back.
    fs::remove_dir_all(at("opaque")).unwrap();
    fs::create_dir(at("opaque")).unwrap();
    rename(root, "opaque", "clear", plain).unwrap();
    fs::create_dir(at("opaque")).unwrap();
    assert_eq!((names(&at("clear")), names(&at("opaque"))), (BTreeSet::new(), BTreeSet::new()));
    // Onto a name that was removed.
    fs::remove_file(at("empty")).unwrap();
    rename(root, "script", "empty", plain).unwrap();
    assert!(text(at("empty")).starts_with("#!"));
    assert_eq!(rename(root, "hard1", "large", RenameFlags::RENAME_NOREPLACE), Err(Errno::EEXIST));
    rename(root, "clear", "large", RenameFlags::RENAME_EXCHANGE).unwrap();
    assert!(fs::metadata(at("large")).unwrap().is_dir());
    assert_eq!(fs::metadata(at("clear")).unwrap().len(), 1_600_000);
    assert_eq!(rename(root, "large", "moved", plain), Err(Errno::ENOTEMPTY));
    assert_eq!(rename(root, "clear", "large", plain), Err(Errno::EISDIR));
    assert_eq!(rename(root, "large", "clear", plain), Err(Errno::ENOTDIR));
    assert_eq!(rename(root, "moved", "moved/sub2", plain), Err(Errno::EINVAL));
    // Names of one file: nothing happens.
    rename(root, "hard1", "hard2", plain).unwrap();
    assert!(at("hard1").exists() && at("hard2").exists());
}

fn renames_are_kept(root: &Path) {
    let at = |path: &str| root.join(path);
    assert_eq!(text(at("moved/a")), "upper a");
    assert_eq!(names(&at("sub")), ["added", "deep"].map(String::from).into());
    assert!(fs::metadata(at("large")).unwrap().is_dir());
    assert_eq!(fs::metadata(at("clear")).unwrap().len(), 1_600_000);
    assert_eq!(errno(fs::metadata(at("script"))), Some(libc::ENOENT));
    fs::rename(at("sub"), at("moved/back")).unwrap();
    assert_eq!(text(at("moved/back/added")), "1");
    fs::rename(at("moved"), at("d")).unwrap();
    fs::rename(at("d/back"), at("sub")).unwrap();
}

fn directories(root: &Path) {
    let at = |path: &str| root.join(path);
    let links = |path: &str| fs::metadata(at(path)).unwrap().nlink();
    let before = links("many");
    fs::create_dir(at("many/x")).unwrap();
    fs::create_dir(at("many/x/y")).unwrap();
    assert_eq!((links("many"), links("many/x"), links("many/x/y")), (before + 1, 3, 2));
    fs::rename(at("many/x/y"), at("many/y")).unwrap();
    assert_eq!((links("many"), links("many/x")), (before + 2, 2));
    assert_eq!(errno(fs::remove_dir(at("many"))), Some(libc::ENOTEMPTY));
    fs::remove_dir(at("many/x")).unwrap();
    fs::remove_dir(at("many/y")).unwrap();
    assert_eq!(links("many"), before);
    // What is made in a set-group-id directory takes after it.
    fs::create_dir(at("many/sgid")).unwrap();
    fs::set_permissions(at("many/sgid"), fs::Permissions::from_mode(0o2755)).unwrap();
    fs::create_dir(at("many/sgid/below")).unwrap();
    assert_eq!(fs::metadata(at("many/sgid/below")).unwrap().mode() & 0o7000, 0o2000);
    fs::remove_dir_all(at("many/sgid")).unwrap();
    // A directory's time is that of its last change.
    let old = fs::metadata(at("many")).unwrap().modified().unwrap();
    fs::write(at("many/z"), "").unwrap();
    assert!(fs::metadata(at("many")).unwrap().modified().unwrap() > old);
    fs::remove_file(at("many/z")).unwrap();
}

fn long_names(root: &Path) {
    let name = "n".repeat(255);
    fs::write(root.join(&name), "long").unwrap();
    assert_eq!(text(root.join(&name)), "long");
    assert_eq!(errno(fs::write(root.join("n".repeat(256)), "")), Some(libc::ENAMETOOLONG));
    fs::remove_file(root.join(&name)).unwrap();
    use std::os::unix::ffi::OsStrExt;
    let odd = root.join(std::ffi::OsStr::from_bytes(b"\xff\n \\"));
    fs::write(&odd, "odd").unwrap();
    assert_eq!(text(&odd), "odd");
    symlink("t".repeat(4095), root.join("longest")).unwrap();
    assert_eq!(fs::read_link(root.join("longest")).unwrap().as_os_str().len(), 4095);
    fs::write(root.join(".wh.file"), "not a whiteout here").unwrap();
    assert_eq!(text(root.join(".wh.file")), "not a whiteout here");
}

fn hard_links_stay_together(root: &Path) {
    let at = |path: &str| root.join(path);
    let before = fs::metadata(at("hard1")).unwrap();
    assert_eq!(before.nlink(), 3);
    let open = File::open(at("hard2")).unwrap();
    fs::write(at("hard1"), "changed").unwrap();
    let after = fs::metadata(at("d/hard3")).unwrap();
    assert_eq!((after.ino(), after.dev(), after.nlink()), (before.ino(), before.dev(), 3));
    assert_eq!((text(at("hard2")), text(at("d/hard3"))), ("changed".into(), "changed".into()));
    let mut seen = String::new();
    (&open).read_to_string(&mut seen).unwrap();
    assert_eq!(seen, "changed", "a file opened before the change is the same file");
    fs::hard_link(at("hard2"), at("hard4")).unwrap();
    fs::remove_file(at("hard1")).unwrap();
    assert_eq!(fs::metadata(at("hard4")).unwrap().nlink(), 3);
    OpenOptions::new().append(true).open(at("hard4")).unwrap().write_all(b"!").unwrap();
    assert_eq!(text(at("d/hard3")), "changed!");
    fs::hard_link(at("link"), at("link2")).unwrap();
    assert_eq!(fs::symlink_metadata(at("link")).unwrap().nlink(), 2);
}

fn hard_links_are_kept(root: &Path) {
    let at = |path: &str| root.join(path);
    let inos: BTreeSet<u64> =
        ["hard2", "d/hard3", "hard4"].iter().map(|path| fs::metadata(at(path)).unwrap().ino()).collect();
    assert_eq!(inos.len(), 1);
    assert_eq!(fs::metadata(at("hard2")).unwrap().nlink(), 3);
    assert_eq!(text(at("hard2")), "changed!");
}

fn data(root: &Path) {
    let at = |path: &str| root.join(path);
    let file = OpenOptions::new().read(true).write(true).open(at("large")).unwrap();
    file.write_all_at(b"in the middle", 1_000_001).unwrap();
    let mut byte = [0; 15];
    file.read_exact_at(&mut byte, 1_000_000).unwrap();
    assert_eq!(&byte[1..14], b"in the middle");
    assert_eq!(file.metadata().unwrap().len(), 1_600_000);
    // Truncation, down and up: what comes back is zeros.
    file.set_len(10).unwrap();
    file.set_len(20).unwrap();
    let mut short = [9; 20];
    file.read_exact_at(&mut short, 0).unwrap();
    assert_eq!(short[..12], [0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0]);
    assert_eq!(short[12..], [0; 8]);
    // A lower file that is truncated first and written later.
    let file = OpenOptions::new().write(true).truncate(true).open(at("d/sub/deep")).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 0);
    file.write_all_at(b"z", 99_999).unwrap();
    file.sync_all().unwrap();
    let deep = fs::read(at("d/sub/deep")).unwrap();
    assert_eq!((deep.len(), deep[99_998], deep[99_999]), (100_000, 0, b'z'));
    assert!(file.metadata().unwrap().blocks() < 100, "a hole takes no space");
    // Holes are found again, and can be made.
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(at("holes")).unwrap();
    file.write_all_at(&[1; 4096], 1 << 20).unwrap();
    assert_eq!(lseek(&file, 0, Whence::SeekData), Ok(1 << 20));
    assert_eq!(lseek(&file, 0, Whence::SeekHole), Ok(0));
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&file, punch, 1 << 20, 4096).unwrap();
    let mut zeros = [1; 4096];
    file.read_exact_at(&mut zeros, 1 << 20).unwrap();
    assert_eq!(zeros, [0; 4096]);
    fallocate(&file, FallocateFlags::empty(), 0, 3 << 20).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 3 << 20);
    // Copies, of changed and unchanged files.
    fs::copy(at("many/file000"), at("copy")).unwrap();
    assert_eq!(text(at("copy")), "many/file000");
    fs::copy(at("copy"), at("copy2")).unwrap();
    assert_eq!(text(at("copy2")), "many/file000");
    // Direct I/O goes past the page cache and sees the same bytes.
    let direct = OpenOptions::new().read(true).custom_flags_of(OFlag::O_DIRECT).open(at("holes"));
    assert_eq!(direct.unwrap().metadata().unwrap().len(), 3 << 20);
}

trait CustomFlags {
    fn custom_flags_of(&mut self, flags: OFlag) -> &mut Self;
}

impl CustomFlags for OpenOptions {
    fn custom_flags_of(&mut self, flags: OFlag) -> &mut Self {
        std::os::unix::fs::OpenOptionsExt::custom_flags(self, flags.bits())
    }
}

fn open_files_outlive_their_names(root: &Path) {
    for path in ["d/a", "fresh"] {
        let path = root.join(path);
        if !path.exists() {
            fs::write(&path, "fresh").unwrap();
        }
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let before = text(&path);
        fs::remove_file(&path).unwrap();
        assert_eq!(file.metadata().unwrap().nlink(), 0);
        let mut seen = vec![0; before.len()];
        file.read_exact_at(&mut seen, 0).unwrap();
        assert_eq!(seen, before.as_bytes());
        file.write_all_at(b"after the end", 0).unwrap();
        // Another file of the same name is another file.
        fs::write(&path, "successor").unwrap();
        let mut seen = [0; 13];
        file.read_exact_at(&mut seen, 0).unwrap();
        assert_eq!(&seen, b"after the end");
        assert_eq!(text(&path), "successor");
        file.set_len(3).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 3);
    }
    // A file replaced by a rename, while it is open.
    fs::write(root.join("old"), "old").unwrap();
    let old = File::open(root.join("old")).unwrap();
    fs::write(root.join("next"), "next").unwrap();
    fs::rename(root.join("next"), root.join("old")).unwrap();
    let mut seen = String::new();
    (&old).read_to_string(&mut seen).unwrap();
    assert_eq!((seen.as_str(), text(root.join("old")).as_str()), ("old", "next"));
    // A process may stand in a directory that is removed.
    fs::create_dir(root.join("here")).unwrap();
    let here = File::open(root.join("here")).unwrap();
    fs::remove_dir(root.join("here")).unwrap();
    assert_eq!(here.metadata().unwrap().nlink(), 0);
    let inside = nix::fcntl::openat(&here, "x", OFlag::O_CREAT | OFlag::O_WRONLY, Mode::S_IRWXU);
    assert_eq!(inside.err(), Some(Errno::ENOENT));
}

fn shared_mappings(root: &Path) {
    // Without unsafe code here: a program that maps, which every test machine has.
    let script = "import mmap, os, sys\n\
                  f = os.open(sys.argv[1], os.O_RDWR)\n\
                  m = mmap.mmap(f, 10000)\n\
                  m[5000:5006] = b'mapped'\n\
                  m.flush()\n\
                  assert os.pread(f, 6, 5000) == b'mapped'\n\
                  os.pwrite(f, b'written', 6000)\n\
                  assert m[6000:6007] == b'written'\n";
    let path = root.join("d/sub/deep");
    match Command::new("python3").arg("-c").arg(script).arg(&path).output() {
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => {
            eprintln!("SKIPPED shared_mappings: python3: {error}");
            return;
        }
    }
    let data = fs::read(&path).unwrap();
    assert_eq!((&data[5000..5006], &data[6000..6007]), (&b"mapped"[..], &b"written"[..]));
}

fn locks(root: &Path) {
    let open = || OpenOptions::new().read(true).write(true).open(root.join("d/b")).unwrap();
    let first = nix::fcntl::Flock::lock(open(), FlockArg::LockExclusiveNonblock);
    assert!(first.is_ok());
    let second = nix::fcntl::Flock::lock(open(), FlockArg::LockExclusiveNonblock);
    assert_eq!(second.err().map(|(_, errno)| errno), Some(Errno::EAGAIN));
}

fn times(path: &Path) -> ((i64, i64), (i64, i64)) {
    let meta = fs::symlink_metadata(path).unwrap();
    ((meta.atime(), meta.atime_nsec()), (meta.mtime(), meta.mtime_nsec()))
}

fn attributes(root: &Path) {
    let at = |path: &str| root.join(path);
    let past = TimeSpec::new(-7, 123_456_789);
    let future = TimeSpec::new(5_000_000_000, 999_999_999);
    // Of a lower file, a new empty one, one with data, a directory, a symlink.
    fs::write(at("written"), "data").unwrap();
    File::create_new(at("untouched")).unwrap();
    for path in ["many/file001", "untouched", "written", "many", "link"] {
        utimensat(AT_FDCWD, &at(path), &past, &future, UtimensatFlags::NoFollowSymlink).unwrap();
        assert_eq!(times(&at(path)), ((-7, 123_456_789), (5_000_000_000, 999_999_999)), "{path}");
    }
    // A copy-up keeps the times; a write changes them.
    fs::set_permissions(at("many/file001"), fs::Permissions::from_mode(0o4711)).unwrap();
    assert_eq!(times(&at("many/file001")).1, (5_000_000_000, 999_999_999));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
    let file = OpenOptions::new().append(true).open(at("many/file002")).unwrap();
    assert_eq!(times(&at("many/file002")).1, (tree::MTIME as i64, 0));
    (&file).write_all(b"x").unwrap();
    assert!(times(&at("many/file002")).1.0 >= now - 1);
    assert_eq!(fs::metadata(at("many/file001")).unwrap().mode() & 0o7777, 0o4711);
    fs::set_permissions(at("many"), fs::Permissions::from_mode(0o1777)).unwrap();
    assert_eq!(fs::metadata(at("many")).unwrap().mode() & 0o7777, 0o1777);
    let fifo = at("pipe");
    mknod(&fifo, SFlag::S_IFIFO, Mode::from_bits_truncate(0o600), 0).unwrap();
    mknod(&at("socket"), SFlag::S_IFSOCK, Mode::from_bits_truncate(0o600), 0).unwrap();
    attributes_are_there(root);
}

fn attributes_are_there(root: &Path) {
    let at = |path: &str| root.join(path);
    use std::os::unix::fs::FileTypeExt;
    assert_eq!(times(&at("many/file001")).1, (5_000_000_000, 999_999_999));
    assert_eq!(fs::metadata(at("many/file001")).unwrap().mode() & 0o7777, 0o4711);
    assert_eq!(times(&at("untouched")), ((-7, 123_456_789), (5_000_000_000, 999_999_999)));
    assert_eq!(times(&at("written")).1, (5_000_000_000, 999_999_999));
    assert_eq!(fs::metadata(at("many")).unwrap().mode() & 0o7777, 0o1777);
    assert!(fs::metadata(at("pipe")).unwrap().file_type().is_fifo());
    assert!(fs::metadata(at("socket")).unwrap().file_type().is_socket());
}

fn attributes_are_kept(root: &Path) {
    attributes_are_there(root);
}

fn privileged_bits(root: &Path) {
    let mode = || fs::metadata(root.join("suid")).unwrap().mode() & 0o7777;
    assert_eq!(mode(), 0o6755);
    // A write takes them away, unless by the machine's own root; so does a change of owner.
    OpenOptions::new().append(true).open(root.join("suid")).unwrap().write_all(b"x").unwrap();
    assert_eq!(mode(), 0o755);
    let set = |bits| fs::set_permissions(root.join("suid"), fs::Permissions::from_mode(bits)).unwrap();
    set(0o6755);
    std::os::unix::fs::chown(root.join("suid"), Some(0), Some(0)).unwrap();
    assert_eq!(mode(), 0o755);
    set(0o6755);
    OpenOptions::new().write(true).truncate(true).open(root.join("suid")).unwrap();
    assert_eq!(mode() & 0o4000, 0);
}

fn xattr(arguments: &[&str], path: &Path) -> (bool, String) {
    let script = "import os, sys\n\
                  op, path, *rest = sys.argv[1:]\n\
                  f = dict(follow_symlinks=False)\n\
                  try:\n\
                  \x20if op == 'set': os.setxattr(path, rest[0], rest[1].encode(), 0, **f)\n\
                  \x20elif op == 'create': os.setxattr(path, rest[0], rest[1].encode(), os.XATTR_CREATE, **f)\n\
                  \x20elif op == 'remove': os.removexattr(path, rest[0], **f)\n\
                  \x20elif op == 'get': print(os.getxattr(path, rest[0], **f).decode(), end='')\n\
                  \x20else: print(sorted(os.listxattr(path, **f)), end='')\n\
                  except OSError as e:\n\
                  \x20print(os.strerror(e.errno), end=''); sys.exit(1)\n";
    let (operation, rest) = arguments.split_first().unwrap();
    let mut command = Command::new("python3");
    command.arg("-c").arg(script).arg(operation).arg(path).args(rest);
    let output = command.output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

fn xattrs(root: &Path) {
    if Command::new("python3").arg("-V").output().is_err() {
        eprintln!("SKIPPED xattrs: python3 is missing");
        return;
    }
    for path in ["d/a", "d", "many"] {
        let path = root.join(path);
        let ok = |text: &str| (true, text.to_owned());
        assert_eq!(xattr(&["set", "user.one", "1"], &path), ok(""));
        assert_eq!(xattr(&["create", "user.one", "2"], &path), (false, "File exists".into()));
        assert_eq!(xattr(&["set", "user.two", "2"], &path), ok(""));
        assert_eq!(xattr(&["list"], &path), ok("['user.one', 'user.two']"));
        assert_eq!(xattr(&["remove", "user.two"], &path), ok(""));
        assert_eq!(xattr(&["remove", "user.two"], &path), (false, "No data available".into()));
        assert_eq!(xattr(&["get", "user.one"], &path), ok("1"));
    }
    assert!(!xattr(&["set", "nonsense", "1"], &root.join("d")).0);
    fs::write(root.join("d/a"), "data does not touch them").unwrap();
    xattrs_are_kept(root);
}

fn xattrs_are_kept(root: &Path) {
    if Command::new("python3").arg("-V").output().is_err() {
        return;
    }
    assert_eq!(xattr(&["get", "user.one"], &root.join("d/a")), (true, "1".into()));
    assert_eq!(xattr(&["list"], &root.join("many")), (true, "['user.one']".into()));
}

fn large_directory(root: &Path) {
    /// More than fits one listing request many times over.
    const COUNT: usize = 5000;
    let directory = root.join("many");
    for number in 0..COUNT {
        File::create_new(directory.join(format!("added{number:05}"))).unwrap();
    }
    assert_eq!(names(&directory).len(), COUNT + 300);
    // Every second name is removed while the listing goes on: the others each appear once.
    let mut seen = Vec::new();
    for entry in fs::read_dir(&directory).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let number: usize = name.trim_start_matches(char::is_alphabetic).parse().unwrap();
        seen.push(name);
        if number.is_multiple_of(2) {
            let neighbour = directory.join(format!("added{:05}", number + 1));
            let _ = fs::remove_file(neighbour);
        }
    }
    let unique: BTreeSet<&String> = seen.iter().collect();
    assert_eq!(unique.len(), seen.len(), "a name was listed twice");
    for number in (0..COUNT).step_by(2) {
        assert!(unique.contains(&format!("added{number:05}")), "{number} was missed");
    }
    fs::remove_dir_all(&directory).unwrap();
    assert_eq!(errno(fs::metadata(&directory)), Some(libc::ENOENT));
}

/// While a listing of 100,000 entries goes on others vanish, and it stays right: two listings at once,
/// one of which has seen what goes, and one that has not.
fn huge_directory(root: &Path) {
    let directory = root.join("huge");
    for number in 0..HUGE_ADDED {
        File::create_new(directory.join(format!("added{number:06}"))).unwrap();
    }
    let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut other = fs::read_dir(&directory).unwrap().map(name);
    let mut seen_by_other: Vec<String> = other.by_ref().take(HUGE_LOWER / 2).collect();
    let mut seen = BTreeSet::new();
    for name in fs::read_dir(&directory).unwrap().map(name) {
        if name.ends_with('7') {
            fs::remove_file(directory.join(&name)).unwrap();
        }
        assert!(seen.insert(name), "a name was listed twice");
    }
    assert_eq!(seen.len(), HUGE_LOWER + HUGE_ADDED);
    seen_by_other.extend(other);
    let unique: BTreeSet<&String> = seen_by_other.iter().collect();
    assert_eq!(unique.len(), seen_by_other.len(), "a name was listed twice");
    let missed = seen.iter().filter(|name| !name.ends_with('7') && !unique.contains(name)).count();
    assert_eq!(missed, 0, "names that stay were missed");
    assert_eq!(names(&directory).len(), HUGE_LEFT);
    assert_eq!(errno(fs::remove_dir(&directory)), Some(libc::ENOTEMPTY));
}

fn directory_rules(root: &Path) {
    assert_eq!(names(&root.join("d/hidden")), ["shown".to_owned()].into());
    assert_eq!(errno(fs::metadata(root.join("d/hidden/secret"))), Some(libc::ENOENT));
    assert_eq!(text(root.join("d/hidden/shown/x")), "shown");
    assert_eq!(text(root.join("d/a")), "upper a");
    // The caller's own files belong to root here.
    assert_eq!(fs::metadata(root.join("d/a")).unwrap().uid(), 0);
}

fn directory_changes_underneath(root: &Path, lower: &Path) {
    assert_eq!(text(root.join("d/a")), "upper a");
    assert_eq!(errno(fs::metadata(root.join("appears"))), Some(libc::ENOENT));
    // Through another path: the scenario has the machine's files too.
    fs::write(lower.join("d/a"), "changed underneath").unwrap();
    fs::write(lower.join("appears"), "here").unwrap();
    fs::remove_file(lower.join("large")).unwrap();
    let mut waited = Duration::ZERO;
    let step = Duration::from_millis(100);
    // The time for which the kernel may keep what it saw, and then some.
    while waited < Duration::from_secs(20) {
        let seen = fs::read_to_string(root.join("d/a")).unwrap() == "changed underneath"
            && fs::read_to_string(root.join("appears")).is_ok_and(|text| text == "here")
            && !root.join("large").exists();
        if seen {
            return;
        }
        std::thread::sleep(step);
        waited += step;
    }
    panic!("changes underneath never showed");
}
