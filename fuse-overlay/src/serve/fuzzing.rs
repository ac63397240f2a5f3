//! The served side of `crate::fuzzing`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use super::attr::Attr;
use super::backend::{At, Backend};
use super::fuse;
use super::overlay::{FIRST_OWN, LowerFs, Overlay};
use super::packed::Packed;
use super::{IdRange, Ids, Quota};
use crate::index::MergedIndex;

pub(crate) use super::overlay::fuzzing::journal;

/// Names that one directory is asked for.
const NAMES: [&[u8]; 6] = [b"", b".", b"..", b"a", b"a/b", &[0xff; 300]];
/// How many entries of a tree are looked at: a damaged index may lead in circles.
const MAX_ENTRIES: usize = 2000;

fn ids() -> Ids {
    Ids { uids: IdRange::range(65536, 1000), gids: IdRange::range(1, 1000) }
}

/// Asks a read-only filesystem everything about everything.
pub(crate) fn explore(index: MergedIndex, layer: File) {
    let nodes = index.entry_count();
    let Ok(packed) = Packed::new(index, vec![layer], ids()) else { return };
    for ino in (0..nodes + 2).take(100) {
        let at = |offset| At { ino, offset };
        let size = packed.getattr(ino).map_or(0, |(attr, _)| attr.size);
        let _ = packed.readlink(ino, <[u8]>::len);
        for offset in [0, 1, size.wrapping_sub(1), size, u64::MAX] {
            let mut handed_over = 0;
            let _ = packed.read(at(offset), 700, |data| handed_over = data.len());
            assert!(handed_over <= 700);
            let _ = packed.seek(at(offset), libc::SEEK_DATA);
            let _ = packed.seek(at(offset), libc::SEEK_HOLE);
        }
        let mut left = 200;
        for offset in [0, 3, u64::from(u32::MAX), u64::MAX] {
            let _ = packed.readdirplus(at(offset), 0, |_, _| {
                left -= 1;
                left > 0
            });
        }
        if let Ok(names) = packed.listxattr(ino) {
            for name in names.split(|byte| *byte == 0) {
                let _ = packed.getxattr(ino, name, <[u8]>::len);
            }
        }
        for name in NAMES {
            let _ = packed.lookup(ino, name);
        }
    }
    let _ = packed.statfs();
}

/// A directory that goes when this does.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let shared = PathBuf::from("/dev/shm");
        let parent = if shared.is_dir() { shared } else { std::env::temp_dir() };
        let place = parent.join(format!("hostel-fuzz-{}-{number}", std::process::id()));
        fs::create_dir(&place).unwrap_or_else(|error| unreachable!("{}: {error}", place.display()));
        Self(place)
    }

    fn open(&self) -> OwnedFd {
        File::open(&self.0).unwrap_or_else(|error| unreachable!("{error}")).into()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0); // a fuzzer's left-over harms nobody
    }
}

/// Requests: which, about which inode, about which other one, how many bytes of arguments, these.
pub(crate) fn requests(bytes: &[u8], (index, layer): (MergedIndex, File)) {
    let place = Place::new();
    let again = MergedIndex::from_bytes(index.image().bytes());
    let open = |index: MergedIndex, layer: File| {
        let packed = Packed::new(index, vec![layer], ids()).unwrap_or_else(|error| unreachable!("{error}"));
        let quota = Quota { bytes: Some(1 << 20), inodes: None };
        Overlay::open(LowerFs::packed(packed), place.open(), false, quota)
            .unwrap_or_else(|error| unreachable!("{error}"))
    };
    let second = layer.try_clone().unwrap_or_else(|error| unreachable!("{error}"));
    let null = fs::OpenOptions::new().write(true).open("/dev/null");
    let null = null.unwrap_or_else(|error| unreachable!("{error}"));
    let overlay = fuse::Adapter::new(open(index, layer));
    let mut rest = bytes;
    while let Some((head, more)) = rest.split_first_chunk::<4>() {
        let [opcode, ino, other, length] = *head;
        let (body, more) = more.split_at(usize::from(length).min(more.len()));
        rest = more;
        overlay.answer(opcode.into(), inode(ino), inode(other), body, null.as_fd());
    }
    let before = tree(overlay.backend());
    drop(overlay);
    let after = tree(&open(again, second));
    assert_eq!(before, after, "another tree after opening it again");
}

/// The lower layer's numbers, and those that the overlay gives out.
fn inode(byte: u8) -> u64 {
    if byte < 16 { byte.into() } else { FIRST_OWN + u64::from(byte) - 16 }
}

/// Every name with what stat(2) shows of it.
fn tree(backend: &impl Backend) -> BTreeMap<Vec<u8>, Attr> {
    let mut found = BTreeMap::new();
    let mut directories = vec![(1, Vec::new())];
    while let Some((ino, path)) = directories.pop() {
        let mut below = Vec::new();
        let Ok(handle) = backend.opendir(ino) else { continue };
        let listed = backend.readdirplus(At { ino, offset: 0 }, handle, |listed, entry| {
            if listed.name != b"." && listed.name != b".." {
                below.push(([&path, &b"/"[..], listed.name].concat(), entry.attr));
            }
            true
        });
        backend.releasedir(handle);
        assert!(listed.is_ok(), "{listed:?}");
        for (path, attr) in below {
            if attr.mode & libc::S_IFMT == libc::S_IFDIR {
                directories.push((attr.ino, path.clone()));
            }
            assert!(found.insert(path, attr).is_none(), "a name twice");
        }
        if found.len() > MAX_ENTRIES {
            break;
        }
    }
    found
}
