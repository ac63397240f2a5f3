//! A tree that exists twice: as layers, and as a plain directory to compare with.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use tar::{Builder, EntryType, Header};

/// When everything in the layers was last modified.
pub(crate) const MTIME: u64 = 1_000_000_000;

enum Item {
    Directory(&'static str, u32),
    File(&'static str, u32, Vec<u8>),
    Symlink(&'static str, &'static str),
    Link(&'static str, &'static str),
    Fifo(&'static str),
}

/// What the merged tree has, in an order in which it can be created.
fn items() -> Vec<Item> {
    use Item::{Directory, Fifo, File, Link, Symlink};
    let mut items = vec![
        Directory("d", 0o755),
        File("d/a", 0o644, b"upper a".to_vec()),
        File("d/b", 0o600, b"b".to_vec()),
        Directory("d/sub", 0o700),
        File("d/sub/deep", 0o644, vec![b'x'; 10_000]),
        Directory("d/hidden", 0o755),
        File("d/hidden/secret", 0o644, b"secret".to_vec()),
        Directory("d/hidden/shown", 0o755),
        File("d/hidden/shown/x", 0o644, b"shown".to_vec()),
        File("hard1", 0o644, b"linked".to_vec()),
        Link("hard2", "hard1"),
        Link("d/hard3", "hard1"),
        Symlink("link", "d/a"),
        Symlink("dangling", "nowhere"),
        Fifo("fifo"),
        File("script", 0o755, b"#!/bin/sh\necho executed\n".to_vec()),
        File("suid", 0o6755, b"suid".to_vec()),
        File("large", 0o644, (0..400_000u32).flat_map(u32::to_le_bytes).collect()),
        File("empty", 0o644, Vec::new()),
        Directory("many", 0o755),
        Directory("opaque", 0o755),
        File("opaque/new", 0o644, b"new".to_vec()),
    ];
    for number in 0..300 {
        let name: &'static str = format!("many/file{number:03}").leak();
        items.push(File(name, 0o644, name.as_bytes().to_vec()));
    }
    items
}

/// The tree as two layers: the upper one hides, replaces and adds.
pub(crate) fn layers() -> Vec<Vec<u8>> {
    let mut lower = Builder::new(Vec::new());
    let mut upper = Builder::new(Vec::new());
    for path in ["gone", "d/gone", "opaque/old", "d/a"] {
        append(&mut lower, EntryType::Regular, path, None, 0o644, b"lower");
    }
    append(&mut lower, EntryType::Directory, "gone_directory", None, 0o755, b"");
    append(&mut lower, EntryType::Regular, "gone_directory/x", None, 0o644, b"x");
    for path in [".wh.gone", "d/.wh.gone", "opaque/.wh..wh..opq", ".wh.gone_directory"] {
        append(&mut upper, EntryType::Regular, path, None, 0o644, b"");
    }
    for item in items() {
        let upper_part = |path: &str| path.starts_with("d/a") || path.starts_with("opaque") || path == "link";
        let mut put = |path: &str, kind, target: Option<&str>, mode, data: &[u8]| {
            let layer = if upper_part(path) { &mut upper } else { &mut lower };
            append(layer, kind, path, target, mode, data);
        };
        match item {
            Item::Directory(path, mode) => put(path, EntryType::Directory, None, mode, b""),
            Item::File(path, mode, data) => put(path, EntryType::Regular, None, mode, &data),
            Item::Symlink(path, target) => put(path, EntryType::Symlink, Some(target), 0o777, b""),
            Item::Link(path, target) => put(path, EntryType::Link, Some(target), 0o644, b""),
            Item::Fifo(path) => put(path, EntryType::Fifo, None, 0o644, b""),
        }
    }
    vec![lower.into_inner().unwrap(), upper.into_inner().unwrap()]
}

fn append(
    builder: &mut Builder<Vec<u8>>,
    kind: EntryType,
    path: &str,
    target: Option<&str>,
    mode: u32,
    data: &[u8],
) {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(MTIME);
    header.set_size(data.len() as u64);
    match target {
        Some(target) => builder.append_link(&mut header, path, target).unwrap(),
        None => builder.append_data(&mut header, path, data).unwrap(),
    }
}

/// Creates the tree in a plain directory.
pub(crate) fn create(root: &Path) {
    for item in items() {
        match item {
            Item::Directory(path, mode) => {
                fs::create_dir(root.join(path)).unwrap();
                fs::set_permissions(root.join(path), fs::Permissions::from_mode(mode)).unwrap();
            }
            Item::File(path, mode, data) => {
                fs::write(root.join(path), data).unwrap();
                fs::set_permissions(root.join(path), fs::Permissions::from_mode(mode)).unwrap();
            }
            Item::Symlink(path, target) => symlink(target, root.join(path)).unwrap(),
            Item::Link(path, target) => fs::hard_link(root.join(target), root.join(path)).unwrap(),
            Item::Fifo(path) => {
                let mode = nix::sys::stat::Mode::from_bits_truncate(0o644);
                nix::unistd::mkfifo(&root.join(path), mode).unwrap();
                fs::set_permissions(root.join(path), fs::Permissions::from_mode(0o644)).unwrap();
            }
        }
    }
}

/// A line for everything in a tree: type and mode, size, links (as the first path of the same
/// file), content.
pub(crate) fn snapshot(root: &Path, skip: &[&str]) -> Vec<String> {
    let mut lines = Vec::new();
    let mut files = BTreeMap::new();
    let mut pending = vec![String::new()];
    while let Some(directory) = pending.pop() {
        let mut names: Vec<_> = fs::read_dir(root.join(&directory))
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry))
            .collect();
        names.sort_by(|left, right| left.0.cmp(&right.0));
        for (name, entry) in names {
            let path = if directory.is_empty() { name } else { format!("{directory}/{name}") };
            if skip.contains(&path.as_str()) {
                continue;
            }
            let full = root.join(&path);
            let meta = fs::symlink_metadata(&full).unwrap();
            let kind = entry.file_type().unwrap();
            assert_eq!(kind, meta.file_type(), "d_type of {path}");
            let mut line = format!("{path} {:o}", meta.mode());
            if meta.is_dir() {
                pending.push(path.clone());
            } else {
                let first = files.entry((meta.dev(), meta.ino())).or_insert_with(|| path.clone());
                line += &format!(" links {} {first}", meta.nlink());
            }
            if meta.is_file() {
                let data = fs::read(&full).unwrap();
                assert_eq!(data.len() as u64, meta.len(), "size of {path}");
                line += &format!(" size {} hash {:x}", meta.len(), hash(&data));
            } else if meta.is_symlink() {
                line += &format!(" -> {}", fs::read_link(&full).unwrap().display());
            }
            lines.push(line);
        }
    }
    lines.sort();
    lines
}

fn hash(data: &[u8]) -> u64 {
    // FNV-1a: any difference will do.
    data.iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
