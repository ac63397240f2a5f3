//! Calls that few programs make, limits, and ACLs: what the write side has beyond the usual.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, FallocateFlags, OFlag, RenameFlags, fallocate, renameat2};
use nix::sys::stat::fstat;
use nix::sys::statvfs::statvfs;
use nix::unistd::{Whence, linkat, lseek};

use super::scenarios::{errno, names, text};

/// Runs a scenario of this file; false where it is none.
pub(crate) fn run(name: &str, root: &Path) -> bool {
    match name {
        "unnamed_files" => unnamed_files(root),
        "unnamed_files_are_kept" => unnamed_files_are_kept(root),
        "allocation_modes" => allocation_modes(root),
        "whiteouts" => whiteouts(root),
        "deep_paths" => deep_paths(root),
        "acls" => acls(root),
        "acls_are_kept" => acls_are_kept(root),
        "names_of_its_own" => names_of_its_own(root),
        "quota_bytes" => quota_bytes(root),
        "quota_is_kept" => quota_is_kept(root),
        "quota_inodes" => quota_inodes(root),
        "whole_or_absent" => whole_or_absent(root),
        _ => return false,
    }
    true
}

fn unnamed(directory: &Path, more: OFlag) -> io::Result<File> {
    let flags = OFlag::O_TMPFILE | more;
    OpenOptions::new().read(true).write(true).mode(0o666).custom_flags(flags.bits()).open(directory)
}

fn name_it(file: &File, path: &Path) -> Result<(), Errno> {
    use std::os::fd::AsRawFd;
    let from = format!("/proc/self/fd/{}", file.as_raw_fd());
    linkat(AT_FDCWD, from.as_str(), AT_FDCWD, path, AtFlags::AT_SYMLINK_FOLLOW)
}

fn unnamed_files(root: &Path) {
    let before = names(&root.join("d"));
    let file = unnamed(&root.join("d"), OFlag::empty()).unwrap();
    assert_eq!((file.metadata().unwrap().nlink(), file.metadata().unwrap().mode() & 0o7777), (0, 0o644));
    file.write_all_at(b"no name yet", 0).unwrap();
    assert_eq!(names(&root.join("d")), before);
    name_it(&file, &root.join("named")).unwrap();
    assert_eq!((file.metadata().unwrap().nlink(), text(root.join("named")).as_str()), (1, "no name yet"));
    name_it(&file, &root.join("named2")).unwrap();
    assert_eq!(fs::metadata(root.join("named")).unwrap().nlink(), 2);
    // One that must never get a name, and one that is closed without.
    let secret = unnamed(root, OFlag::O_EXCL).unwrap();
    assert_eq!(name_it(&secret, &root.join("secret")), Err(Errno::ENOENT));
    drop(unnamed(root, OFlag::empty()).unwrap());
    // A file whose names are gone does not come back by its descriptor.
    let gone = File::create_new(root.join("gone")).unwrap();
    fs::remove_file(root.join("gone")).unwrap();
    assert_eq!(name_it(&gone, &root.join("back")), Err(Errno::ENOENT));
}

fn unnamed_files_are_kept(root: &Path) {
    assert_eq!(text(root.join("named2")), "no name yet");
    assert_eq!(fs::metadata(root.join("named")).unwrap().nlink(), 2);
    assert!(!root.join("secret").exists() && !root.join("back").exists());
}

fn allocation_modes(root: &Path) {
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(root.join("ranges")).unwrap();
    let size = || file.metadata().unwrap().len();
    file.write_all_at(&[7; 16384], 0).unwrap();
    fallocate(&file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 16384, 65536).unwrap();
    assert_eq!(size(), 16384);
    let keep = FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&file, FallocateFlags::FALLOC_FL_ZERO_RANGE | keep, 100, 50).unwrap();
    fallocate(&file, FallocateFlags::FALLOC_FL_PUNCH_HOLE | keep, 8192, 4096).unwrap();
    let mut data = vec![1; 16384];
    file.read_exact_at(&mut data, 0).unwrap();
    let expected = |at: usize| if (100..150).contains(&at) || (8192..12288).contains(&at) { 0 } else { 7 };
    assert!(data.iter().enumerate().all(|(at, byte)| *byte == expected(at)));
    assert_eq!(lseek(&file, 0, Whence::SeekHole), Ok(8192));
    assert_eq!(lseek(&file, 8192, Whence::SeekData), Ok(12288));
    fallocate(&file, FallocateFlags::FALLOC_FL_ZERO_RANGE, 16384, 4096).unwrap();
    assert_eq!(size(), 20480);
    // Of a lower file it is copied up first.
    let large = OpenOptions::new().read(true).write(true).open(root.join("large")).unwrap();
    fallocate(&large, FallocateFlags::FALLOC_FL_PUNCH_HOLE | keep, 0, 1_000_000).unwrap();
    let mut word = [9; 8];
    large.read_exact_at(&mut word, 999_996).unwrap();
    assert_eq!(word[..4], [0; 4]);
    assert_eq!(u32::from_le_bytes([word[4], word[5], word[6], word[7]]), 250_000);
}

fn whiteouts(root: &Path) {
    let rename =
        |from: &str, to: &str, flags| renameat2(AT_FDCWD, &root.join(from), AT_FDCWD, &root.join(to), flags);
    // As the kernel's overlayfs does it when its upper lies here.
    rename("d/b", "d/moved", RenameFlags::RENAME_WHITEOUT).unwrap();
    let left = fs::symlink_metadata(root.join("d/b")).unwrap();
    assert!(left.file_type().is_char_device() && left.rdev() == 0);
    assert_eq!(text(root.join("d/moved")), "b");
    let both = RenameFlags::RENAME_WHITEOUT | RenameFlags::RENAME_NOREPLACE;
    assert_eq!(rename("d/moved", "d/a", both), Err(Errno::EEXIST));
    rename("d/moved", "d/again", both).unwrap();
    assert!(fs::symlink_metadata(root.join("d/moved")).unwrap().file_type().is_char_device());
}

fn deep_paths(root: &Path) {
    // 4096 bytes with the NUL: the longest path that a call takes.
    let name = "p".repeat(255);
    let mut made = root.to_path_buf();
    std::env::set_current_dir(root).unwrap();
    let mut depth = 0;
    while made.as_os_str().len() + 256 < 4096 {
        made.push(&name);
        fs::create_dir(&made).unwrap();
        depth += 1;
    }
    let rest = 4095 - made.as_os_str().len() - 1;
    made.push("f".repeat(rest));
    fs::write(&made, "deep").unwrap();
    assert_eq!((made.as_os_str().len(), text(&made).as_str()), (4095, "deep"));
    assert!(depth >= 12);
    // Deeper still, step by step.
    for _ in 0..20 {
        fs::create_dir_all(&name).unwrap();
        std::env::set_current_dir(&name).unwrap();
    }
    fs::write("bottom", "b").unwrap();
    std::env::set_current_dir(root).unwrap();
    fs::remove_dir_all(&name).unwrap();
}

/// An ACL as the kernel takes it: version 2, then tag, permissions, id.
fn acl(entries: &[(u16, u16, u32)]) -> String {
    let mut hex = String::from("02000000");
    for (tag, permissions, id) in entries {
        let bytes = [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat();
        hex.extend(bytes.iter().map(|byte| format!("{byte:02x}")));
    }
    hex
}

const NONE: u32 = u32::MAX;

/// `set NAME HEX`, `get NAME`, `list`, `remove NAME` on a path; the error's text where it fails.
fn xattr(path: &Path, arguments: &[&str]) -> String {
    let script = "import os, sys\n\
                  path, op, *rest = sys.argv[1:]\n\
                  try:\n\
                  \x20if op == 'set': os.setxattr(path, rest[0], bytes.fromhex(rest[1]))\n\
                  \x20elif op == 'get': print(os.getxattr(path, rest[0]).hex(), end='')\n\
                  \x20elif op == 'remove': os.removexattr(path, rest[0])\n\
                  \x20else: print(sorted(os.listxattr(path)), end='')\n\
                  except OSError as e: print(os.strerror(e.errno), end='')\n";
    let output = Command::new("python3").arg("-c").arg(script).arg(path).args(arguments).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";

fn acls(root: &Path) {
    let at = |path: &str| root.join(path);
    let mode = |path: &str| fs::metadata(at(path)).unwrap().mode() & 0o7777;
    // Setting one sets the mode; changing the mode changes its mask.
    let full = acl(&[(1, 6, NONE), (2, 7, 0), (4, 4, NONE), (16, 7, NONE), (32, 0, NONE)]);
    assert_eq!(xattr(&at("d/a"), &["set", ACCESS, &full]), "");
    assert_eq!(mode("d/a"), 0o670);
    fs::set_permissions(at("d/a"), fs::Permissions::from_mode(0o640)).unwrap();
    let narrowed = acl(&[(1, 6, NONE), (2, 7, 0), (4, 4, NONE), (16, 4, NONE), (32, 0, NONE)]);
    assert_eq!(xattr(&at("d/a"), &["get", ACCESS]), narrowed);
    // One that says what a mode can say is a mode.
    let plain = acl(&[(1, 6, NONE), (4, 6, NONE), (32, 4, NONE)]);
    assert_eq!(xattr(&at("d/a"), &["set", ACCESS, &plain]), "");
    assert_eq!((mode("d/a"), xattr(&at("d/a"), &["list"])), (0o664, "[]".into()));
    assert_eq!(xattr(&at("d/a"), &["set", ACCESS, &full]), "");
    // What is made in a directory with a default ACL takes after it, whatever the umask says.
    let default = acl(&[(1, 7, NONE), (2, 5, 0), (4, 7, NONE), (16, 7, NONE), (32, 0, NONE)]);
    assert_eq!(xattr(&at("d/sub"), &["set", DEFAULT, &default]), "");
    assert_eq!(xattr(&at("d/a"), &["set", DEFAULT, &default]), "Permission denied");
    File::create_new(at("d/sub/file")).unwrap();
    assert_eq!(mode("d/sub/file"), 0o660);
    let inherited = acl(&[(1, 6, NONE), (2, 5, 0), (4, 7, NONE), (16, 6, NONE), (32, 0, NONE)]);
    assert_eq!(xattr(&at("d/sub/file"), &["get", ACCESS]), inherited);
    fs::create_dir(at("d/sub/below")).unwrap();
    assert_eq!(mode("d/sub/below"), 0o770);
    assert_eq!(xattr(&at("d/sub/below"), &["get", DEFAULT]), default);
    let unnamed = unnamed(&at("d/sub"), OFlag::empty()).unwrap();
    assert_eq!(unnamed.metadata().unwrap().mode() & 0o7777, 0o660);
    std::os::unix::fs::symlink("x", at("d/sub/symlink")).unwrap();
    // Without one the umask counts.
    assert_eq!(xattr(&at("d/sub"), &["remove", DEFAULT]), "");
    File::create_new(at("d/sub/usual")).unwrap();
    assert_eq!((mode("d/sub/usual"), xattr(&at("d/sub/usual"), &["list"])), (0o644, "[]".into()));
}

fn acls_are_kept(root: &Path) {
    let full = acl(&[(1, 6, NONE), (2, 7, 0), (4, 4, NONE), (16, 7, NONE), (32, 0, NONE)]);
    assert_eq!(xattr(&root.join("d/a"), &["get", ACCESS]), full);
    assert_eq!(xattr(&root.join("d/sub/below"), &["list"]), format!("['{ACCESS}', '{DEFAULT}']"));
}

/// Nothing of this filesystem is kept in xattrs, so no name of theirs means anything to it.
fn names_of_its_own(root: &Path) {
    let path = root.join("opaque");
    for name in ["user.overlay.opaque", "user.overlay.redirect", "user.fuseoverlayfs.opaque"] {
        assert_eq!(xattr(&path, &["set", name, "79"]), "");
        assert_eq!(xattr(&path, &["get", name]), "79");
    }
    assert_eq!(names(&path), ["new".to_owned()].into());
    fs::rename(&path, root.join("renamed")).unwrap();
    assert_eq!(names(&root.join("renamed")), ["new".to_owned()].into());
    // trusted.* needs a capability in the machine's own namespace: the kernel does not ask us.
    assert_eq!(xattr(&root.join("d"), &["set", "trusted.x", "79"]), "Operation not permitted");
    assert_eq!(xattr(&root.join("d"), &["set", "system.x", "79"]), "Operation not supported");
}

/// Bytes that can be added to a file before the quota says no.
fn fill(path: &Path) -> u64 {
    let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
    loop {
        if let Err(error) = file.write_all(&[5; 100_000]) {
            assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
            return fstat(file.as_fd()).unwrap().st_size.cast_unsigned();
        }
    }
}

fn quota_bytes(root: &Path) {
    let seen = statvfs(root).unwrap();
    assert_eq!(seen.blocks() * seen.fragment_size(), 4 << 20);
    let filled = fill(&root.join("filler"));
    // All of it, save the flat charges for a few inodes.
    assert!(((4 << 20) - 65536..=4 << 20).contains(&filled), "{filled}");
    assert!(statvfs(root).unwrap().blocks_available() <= 1);
    assert_eq!(
        errno(OpenOptions::new().append(true).open(root.join("large")).unwrap().write_all(b"x")),
        Some(libc::ENOSPC)
    );
    assert_eq!(fs::metadata(root.join("large")).unwrap().len(), 1_600_000, "a copy that did not fit");
    // Overwriting takes up nothing, nor does filling what was set aside.
    let file = OpenOptions::new().write(true).open(root.join("filler")).unwrap();
    file.write_all_at(&[6; 300_000], 0).unwrap();
    file.set_len(1 << 20).unwrap();
    fallocate(&file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 1 << 20, 2 << 20).unwrap();
    let other = fill(&root.join("other"));
    assert!(other <= 1 << 20, "{other}");
    file.write_all_at(&[7; 2 << 20], 1 << 20).unwrap();
    assert_eq!(errno(file.write_all_at(&[8; 65536], 3 << 20)), Some(libc::ENOSPC));
    // What is removed can be used again at once.
    fs::remove_file(root.join("other")).unwrap();
    let again = fill(&root.join("again"));
    assert!(again + 8192 >= other, "{again} of {other}");
}

fn quota_is_kept(root: &Path) {
    assert!(statvfs(root).unwrap().blocks_available() <= 1);
    fs::remove_file(root.join("again")).unwrap();
    fs::remove_file(root.join("filler")).unwrap();
    let filled = fill(&root.join("filler"));
    assert!(((4 << 20) - 65536..=4 << 20).contains(&filled), "{filled}");
    fs::remove_file(root.join("filler")).unwrap();
}

fn quota_inodes(root: &Path) {
    assert_eq!(statvfs(root).unwrap().files(), 100);
    let made = (0..).find(|number| File::create_new(root.join(format!("inode{number}"))).is_err()).unwrap();
    assert_eq!((made, errno(fs::create_dir(root.join("directory")))), (100, Some(libc::ENOSPC)));
    // A lower file that is changed is one more.
    assert_eq!(errno(fs::write(root.join("d/a"), "changed")), Some(libc::ENOSPC));
    fs::remove_file(root.join("inode0")).unwrap();
    fs::write(root.join("d/b"), "changed").unwrap();
    assert_eq!(errno(File::create_new(root.join("one more"))), Some(libc::ENOSPC));
    assert_eq!(statvfs(root).unwrap().files_free(), 0);
}

/// Syncs some files, then changes everything in sight until the server is gone.
pub(crate) fn changes_until_killed(root: &Path, armed: &Path) {
    let at = |path: &str| root.join(path);
    for (path, length) in SYNCED {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(at(path)).unwrap();
        file.write_all(&vec![b's'; length]).unwrap();
        file.sync_all().unwrap();
    }
    println!("armed");
    fs::write(armed, "").unwrap();
    for round in 0..2000 {
        if change_all(root, round).is_err_and(|error| error.raw_os_error() == Some(libc::ENOTCONN)) {
            return;
        }
    }
    panic!("the fault point was never reached");
}

/// Small ones lie in the journal, large ones have objects; one is the lower layer's.
const SYNCED: [(&str, usize); 3] = [("synced-small", 5000), ("synced-large", 200_000), ("d/b", 3000)];

fn change_all(root: &Path, round: usize) -> io::Result<()> {
    let at = |path: &str| root.join(path);
    let append = |path: &str, data: &[u8]| OpenOptions::new().append(true).open(at(path))?.write_all(data);
    // Copy-ups of a large and a small file, and the way out of the journal.
    if round < 300 {
        append(&format!("many/file{round:03}"), b"+")?;
    }
    if round == 3 {
        append("large", b"+")?;
        append("hard1", b"+")?;
        append("synced-small", &[b'+'; 20_000])?;
    }
    let path = at(&format!("new{}", round % 7));
    fs::write(&path, vec![b'n'; 30_000 * (round % 2)])?;
    fs::rename(&path, at("renamed"))?;
    let directory = ["d/sub", "sub"];
    fs::rename(at(directory[round % 2]), at(directory[1 - round % 2]))?;
    fs::remove_file(at("renamed"))
}

fn whole_or_absent(root: &Path) {
    let at = |path: &str| root.join(path);
    for (path, length) in SYNCED {
        let data = fs::read(at(path)).unwrap();
        let synced = data.iter().take_while(|byte| **byte == b's').count();
        assert_eq!(synced, length, "{path}");
        assert!(data[length..].iter().all(|byte| *byte == b'+') && (data.len() - length) % 20_000 == 0);
    }
    for number in 0..300 {
        let path = format!("many/file{number:03}");
        let found = text(at(&path));
        assert!(found == path || found == format!("{path}+"), "{path}: {found}");
    }
    let large = fs::read(at("large")).unwrap();
    assert!(large.len() == 1_600_000 || large.len() == 1_600_001 && large[1_600_000] == b'+');
    assert_eq!(large[..8], [0, 0, 0, 0, 1, 0, 0, 0]);
    let linked = ["hard1", "hard2", "d/hard3"].map(|path| text(at(path)));
    assert!(linked.iter().all(|text| *text == linked[0]) && linked[0].starts_with("linked"));
    // The directory is in exactly one of its two places.
    assert!(at("sub/deep").exists() != at("d/sub/deep").exists());
    for entry in fs::read_dir(root).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if name.starts_with("new") || name == "renamed" {
            let data = fs::read(entry.path()).unwrap();
            assert!(data.iter().all(|byte| *byte == b'n') && data.len() <= 30_000);
            fs::remove_file(entry.path()).unwrap();
        }
    }
}
