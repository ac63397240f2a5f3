#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::format::{HEADER_SIZE, Image, Kind, ROOT_ID};
use super::tree::{Attributes, Content, Directory, Extent, Key, Node, ROOT, Timestamp, Tree};
use super::{IndexError, MergedIndex, merge, render};
use crate::pack::{Limits, index_tar};

fn attributes() -> Attributes {
    let xattrs = vec![(b"user.a".as_slice().into(), b"b".as_slice().into())];
    Attributes {
        mode: 0o755,
        mtime: Timestamp { seconds: 7, nanoseconds: 8 },
        xattrs,
        ..Attributes::default()
    }
}

fn add(tree: &mut Tree, parent: Key, name: &str, content: Content) -> Key {
    let key = tree.add(Node { attributes: attributes(), content });
    tree.directory_mut(parent).unwrap().children.insert(name.as_bytes().into(), key);
    key
}

/// A merged index with `files` files, 100 in a directory, and a symlink to each directory.
fn sample(files: u64) -> Vec<u8> {
    let mut tree = Tree::new();
    for number in 0..files.div_ceil(100) {
        let directory = add(&mut tree, ROOT, &format!("d{number}"), Content::Directory(Directory::default()));
        add(&mut tree, ROOT, &format!("l{number}"), Content::Symlink(format!("d{number}").as_bytes().into()));
        for file in 0..100.min(files - number * 100) {
            let extents = vec![Extent { logical: 0, offset: 512, length: 3, layer: 0 }];
            add(&mut tree, directory, &format!("f{file}"), Content::File { size: 3, extents });
        }
    }
    render(&tree, Kind::Merged, 1).unwrap()
}

fn file_of(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// Reads everything there is, as a server would for a hostile client; damage may show, panics not.
fn read_all(image: &Image) {
    let counts = image.counts();
    for id in 0..=u32::try_from(counts.nodes).unwrap() + 1 {
        let Ok(node) = image.node(id) else { continue };
        for entry in image.entries_of(&node).into_iter().flatten() {
            if let Ok((_, name)) = image.entry(entry) {
                let _ = image.lookup(&node, name);
            }
        }
        let _ = image.link_target(&node);
        // A damaged count may be any: what lies outside is refused at once.
        for index in (0..node.count.min(300)).chain([u32::MAX]) {
            let _ = image.extent(&node, index);
        }
        for index in (0..node.xattr_count.min(300)).chain([u32::MAX]) {
            let _ = image.xattr(&node, index);
        }
    }
}

#[test]
fn a_file_cut_short_at_any_place_is_refused() {
    let bytes = sample(10);
    for length in (0..bytes.len()).chain([bytes.len() + 1]) {
        let mut cut = bytes.clone();
        cut.resize(length, 0);
        let error = MergedIndex::open(file_of(&cut).as_file()).unwrap_err();
        assert!(matches!(error, IndexError::Truncated | IndexError::Damaged { .. }), "{length}: {error}");
    }
}

#[test]
fn any_altered_byte_is_found_and_none_breaks_a_reader() {
    let bytes = sample(10);
    for place in 0..bytes.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut altered = bytes.clone();
            altered[place] ^= flip;
            match Image::from_vec(altered, Kind::Merged) {
                Err(_) => {}
                Ok(image) => {
                    assert!(place >= HEADER_SIZE, "the header has a checksum of its own");
                    assert!(image.verify().is_err(), "byte {place}");
                    read_all(&image);
                }
            }
        }
    }
}

#[test]
fn a_file_cut_short_underneath_gives_errors_not_a_signal() {
    let file = file_of(&sample(20_000));
    let index = MergedIndex::open(file.as_file()).unwrap();
    assert!(index.lookup(Path::new("/d199/f99")).is_ok());
    file.as_file().set_len(5000).unwrap();
    read_all(index.image());
    assert!(index.lookup(Path::new("/d199/f99")).is_err());
    assert!(index.verify().is_err());
    // A second one, so that the first's pages were not merely lucky.
    let other = file_of(&sample(1000));
    let index = MergedIndex::open(other.as_file()).unwrap();
    other.as_file().set_len(0).unwrap();
    assert!(index.lookup(Path::new("/d1")).is_err());
}

/// Bytes of a mapped file that this process has touched.
fn touched_bytes(path: &Path) -> u64 {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let path = std::str::from_utf8(path.as_os_str().as_bytes()).unwrap();
    let mapping = smaps.split_once(path).unwrap().1;
    let line = mapping.lines().find_map(|line| line.strip_prefix("Rss:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[test]
fn opening_touches_as_much_of_a_large_index_as_of_a_small_one() {
    // What the kernel maps around one touched page: 64 KiB, or a folio of up to 2 MiB.
    let around = 2 << 20;
    let [small, large] = [1000, 200_000].map(|files| {
        let file = file_of(&sample(files));
        let index = MergedIndex::open(file.as_file()).unwrap();
        let bytes = touched_bytes(file.path());
        assert_eq!(index.entry_count(), 1 + files + 2 * files.div_ceil(100));
        (bytes, file.as_file().metadata().unwrap().len())
    });
    assert!(large.1 > 4 * around);
    assert!(small.0 <= 2 * around && large.0 <= 2 * around, "{} and {}", small.0, large.0);
}

#[test]
fn an_index_is_tied_to_its_layers() {
    let tar = |content: &[u8]| {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append_data(&mut header, "file", content).unwrap();
        builder.into_inner().unwrap()
    };
    let (one, two) = (tar(b"one"), tar(b"other"));
    let index = |tar: &[u8]| index_tar(tar, &Limits::default()).unwrap();
    let merged = merge(&[index(&one)]).unwrap().into_index().unwrap();
    assert!(merged.is_made_of(&[index(&one)]).unwrap());
    assert!(!merged.is_made_of(&[index(&two)]).unwrap());
    assert!(!merged.is_made_of(&[index(&one), index(&one)]).unwrap());
    assert!(index(&one).describes(one.as_slice(), &Limits::default()).unwrap());
    assert!(!index(&one).describes(two.as_slice(), &Limits::default()).unwrap());
    assert!(index(&one).describes(&one[..100], &Limits::default()).is_err());
}

#[test]
fn the_root_is_node_one() {
    let index = MergedIndex::open(file_of(&sample(0)).as_file()).unwrap();
    assert!(index.image().node(ROOT_ID).unwrap().is_directory());
}
