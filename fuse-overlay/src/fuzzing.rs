//! What the fuzz targets in `fuse-overlay/fuzz` call, one function a target.
//!
//! Each takes any bytes and checks what must hold whatever they are; a panic is a finding. The
//! functions are here because the parsers are private. An ordinary test runs them over the
//! committed corpora, so that a mended finding stays mended.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write as _;

use crate::index::fuzzing::{image, index_of};
use crate::index::{Image, Kind, MergeError, MergedIndex, NodeRecord, ROOT_ID, merge};
use crate::pack::{LayerIndex, Limits, index_tar};
use crate::serve::fuzzing as serve;

/// Low enough that a run costs little, and that the limits themselves are met.
const LIMITS: Limits = Limits {
    entries: 1000,
    name_bytes: 255,
    path_bytes: 1024,
    depth: 64,
    extension_bytes: 2048,
    xattr_bytes: 1024,
    sparse_runs: 64,
    text_bytes: 1 << 16,
    file_bytes: 1 << 40,
};

const BLOCK: usize = 512;

/// A layer's tar: headers, PAX and GNU extensions, sparse maps. Once as it is, and once with the
/// checksum of every block made right, which nothing gets past otherwise.
pub fn layer_tar(bytes: &[u8]) {
    check_tar(bytes);
    let mut repaired = bytes.to_vec();
    for block in repaired.as_chunks_mut::<BLOCK>().0 {
        if block.iter().any(|byte| *byte != 0) {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        }
    }
    check_tar(&repaired);
}

fn check_tar(bytes: &[u8]) {
    let Ok(layer) = index_tar(bytes, &LIMITS) else { return };
    check_index(layer.image(), bytes.len() as u64);
    assert!(matches!(layer.describes(bytes, &LIMITS), Ok(true)), "the same tar gives another index");
    match merge(std::slice::from_ref(&layer)) {
        Ok(merged) => {
            let index = merged.into_index().unwrap_or_else(|error| unreachable!("{error}"));
            assert!(index.verify().is_ok());
            check_index(index.image(), bytes.len() as u64);
            serve::explore(index, memory(bytes));
        }
        // A hard link to what a lower layer would have.
        Err(MergeError::LinkTarget { .. }) => {}
        Err(error) => unreachable!("{error}"),
    }
}

/// What must hold of an index that was made here.
fn check_index(image: &Image, tar_bytes: u64) {
    let mut names: BTreeMap<u32, u32> = BTreeMap::new();
    let mut directories = vec![ROOT_ID];
    while let Some(id) = directories.pop() {
        let node = get(image, id);
        let mut last: Option<Vec<u8>> = None;
        for index in image.entries_of(&node).unwrap_or_else(|_| unreachable!("entries of {id}")) {
            let Ok((entry, name)) = image.entry(index) else { unreachable!("entry {index}") };
            assert!(!name.is_empty() && name != b"." && name != b".." && name.len() <= LIMITS.name_bytes);
            assert!(!name.contains(&b'/') && !name.contains(&0));
            // A whiteout may stand before the name that it would hide below.
            assert!(last.as_deref() <= Some(name), "names out of order");
            last = Some(name.to_vec());
            if entry.node == 0 {
                continue;
            }
            *names.entry(entry.node).or_default() += 1;
            let child = get(image, entry.node);
            assert_eq!(u32::from(entry.kind) << 12, child.file_type());
            if child.is_directory() {
                assert_eq!(child.parent, id);
                directories.push(entry.node);
            }
        }
    }
    assert_eq!(names.len() as u64 + 1, image.counts().nodes, "nodes without a name");
    for (id, count) in names {
        let node = get(image, id);
        if !node.is_directory() {
            assert_eq!(node.nlink, count);
        }
        if node.file_type() == libc::S_IFREG {
            let mut end = 0;
            for index in 0..node.count {
                let Ok(extent) = image.extent(&node, index) else { unreachable!("extent {index} of {id}") };
                assert!(extent.length > 0 && extent.logical >= end, "extents overlap");
                end = extent.logical + extent.length;
                assert!(end <= node.size && extent.offset + extent.length <= tar_bytes);
            }
        }
    }
}

fn get(image: &Image, id: u32) -> NodeRecord {
    image.node(id).unwrap_or_else(|_| unreachable!("node {id}"))
}

/// A merged index that says anything, behind a header that is right: whoever reads it gets an
/// error at the most.
pub fn merged_index(bytes: &[u8]) {
    let Some(image) = image(bytes, Kind::Merged) else { return };
    let all: std::collections::HashSet<u32> = (0..64).collect();
    if let Ok(names) = image.names_of(&all) {
        // One for each entry at the most, however often directories share them.
        assert!(names.len() as u64 <= (image.counts().nodes + 1) * (image.counts().entries + 1));
    }
    serve::explore(index_of(image), memory(&[b'x'; 4096]));
}

/// A layer's index that says anything, merged with itself.
pub fn layer_index(bytes: &[u8]) {
    let layers: Vec<LayerIndex> =
        (0..2).filter_map(|_| image(bytes, Kind::Layer)).map(LayerIndex::from_image).collect();
    if let Ok(merged) = merge(&layers)
        && let Ok(index) = merged.into_index()
    {
        assert!(index.verify().is_ok());
        serve::explore(index, memory(&[b'x'; 4096]));
    }
}

/// Layers of files, directories, whiteouts and opaque marks, two bytes an entry: the merged index
/// shows what a plain model of the specification does.
pub fn whiteouts(bytes: &[u8]) {
    let mut model = Model::default();
    let mut layers = Vec::new();
    for (number, layer) in bytes.split(|byte| *byte == b'\n').take(4).enumerate() {
        let entries: Vec<Entry> = layer
            .chunks_exact(2)
            .take(40)
            .enumerate()
            .map(|(at, pair)| Entry::new(pair[0], pair[1], number * 40 + at + 1))
            .collect();
        let tar = tar_of(&entries);
        let own = Own::new(&entries);
        match (index_tar(&tar[..], &LIMITS), own) {
            (Ok(index), Some(own)) => {
                model.lay(&own);
                layers.push(index);
            }
            (Err(_), None) => return,
            (index, own) => unreachable!("{index:?} where the model has {own:?}"),
        }
    }
    let index = merge(&layers).and_then(|merged| merged.into_index().map_err(|_| MergeError::TooLarge));
    let index = index.unwrap_or_else(|error| unreachable!("{error}"));
    assert_eq!(shown(&index), model.nodes);
}

type Path = Vec<u8>;

/// A node with what tells it from others: a directory's mode, a file's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Node {
    Directory(u32),
    File(u64),
}

#[derive(Debug)]
enum Entry {
    Node(Path, Node),
    Whiteout(Path),
    Opaque(Path),
}

impl Entry {
    /// Paths have one to three names of `a`, `b` and `c`; `""` is the root.
    fn new(kind: u8, place: u8, id: usize) -> Self {
        let names = [b"a", b"b", b"c"];
        let path: Path = (0..=u32::from(place >> 6).min(2))
            .map(|level| names[usize::from(place >> (2 * level) & 3).min(2)].as_slice())
            .collect::<Vec<_>>()
            .join(&b'/');
        match kind % 4 {
            0 => Self::Node(path, Node::Directory(id as u32)),
            1 => Self::Node(path, Node::File(id as u64)),
            2 => Self::Whiteout(path),
            _ if kind > 200 => Self::Opaque(Vec::new()),
            _ => Self::Opaque(path),
        }
    }
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

fn join(directory: &[u8], name: &[u8]) -> Path {
    if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() }
}

/// Whether a path lies in a directory, at any depth.
fn is_below(path: &[u8], directory: &[u8]) -> bool {
    directory.is_empty() && !path.is_empty()
        || path.strip_prefix(directory).is_some_and(|rest| rest.starts_with(b"/"))
}

fn tar_of(entries: &[Entry]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for entry in entries {
        let (path, kind, mode, size) = match entry {
            Entry::Node(path, Node::Directory(mode)) => (path.clone(), tar::EntryType::Directory, *mode, 0),
            Entry::Node(path, Node::File(size)) => (path.clone(), tar::EntryType::Regular, 0o644, *size),
            Entry::Whiteout(path) => {
                let (directory, name) = split(path);
                (join(directory, &[b".wh.", name].concat()), tar::EntryType::Regular, 0o600, 0)
            }
            Entry::Opaque(path) => (join(path, b".wh..wh..opq"), tar::EntryType::Regular, 0o600, 0),
        };
        let mut header = tar::Header::new_ustar();
        header.as_old_mut().name[..path.len()].copy_from_slice(&path);
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size);
        header.set_cksum();
        let written = tar.append(&header, &vec![0; size as usize][..]);
        written.unwrap_or_else(|error| unreachable!("writing to memory: {error}"));
    }
    tar.into_inner().unwrap_or_else(|error| unreachable!("writing to memory: {error}"))
}

/// One layer as it says of itself: the last entry of a name wins, a directory named again keeps
/// what is in it, and marks are kept apart.
#[derive(Debug, Default)]
struct Own {
    /// None: a directory that is only part of other paths.
    nodes: BTreeMap<Path, Option<Node>>,
    whiteouts: BTreeSet<Path>,
    opaque: BTreeSet<Path>,
}

impl Own {
    /// None where an entry lies below a file.
    fn new(entries: &[Entry]) -> Option<Self> {
        let mut own = Self::default();
        for entry in entries {
            match entry {
                Entry::Node(path, node) => {
                    own.make_directory(split(path).0)?;
                    if !matches!(
                        (own.nodes.get(path), node),
                        (Some(None | Some(Node::Directory(_))), Node::Directory(_))
                    ) {
                        own.drop_below(path);
                    }
                    own.nodes.insert(path.clone(), Some(*node));
                }
                Entry::Whiteout(path) => {
                    own.make_directory(split(path).0)?;
                    own.whiteouts.insert(path.clone());
                }
                Entry::Opaque(path) => {
                    own.make_directory(path)?;
                    own.opaque.insert(path.clone());
                }
            }
        }
        Some(own)
    }

    fn make_directory(&mut self, path: &[u8]) -> Option<()> {
        if path.is_empty() {
            return Some(());
        }
        self.make_directory(split(path).0)?;
        match self.nodes.entry(path.to_vec()).or_insert(None) {
            Some(Node::File(_)) => None,
            _ => Some(()),
        }
    }

    /// Whether anything but marks, and the way to them, is below a path.
    fn has_nodes(&self, path: &[u8]) -> bool {
        self.nodes.iter().any(|(known, node)| node.is_some() && is_below(known, path))
    }

    fn drop_below(&mut self, path: &[u8]) {
        self.nodes.retain(|known, _| !is_below(known, path));
        self.whiteouts.retain(|known| !is_below(known, path));
        self.opaque.retain(|known| known != path && !is_below(known, path));
    }
}

/// What a container sees.
#[derive(Debug, Default)]
struct Model {
    nodes: BTreeMap<Path, Node>,
}

impl Model {
    fn lay(&mut self, own: &Own) {
        // What the layer hides, before anything of its own.
        for path in &own.whiteouts {
            self.nodes.retain(|known, _| known != path && !is_below(known, path));
        }
        for path in &own.opaque {
            self.nodes.retain(|known, _| !is_below(known, path));
        }
        // Parents before what is in them.
        for (path, node) in &own.nodes {
            let below = self.nodes.get(path).copied();
            let is_directory = !matches!(node, Some(Node::File(_)));
            if node.is_none() && !matches!(below, Some(Node::Directory(_))) && !own.has_nodes(path) {
                continue; // the way to marks alone makes no directory
            }
            if !(is_directory && matches!(below, Some(Node::Directory(_)))) {
                self.nodes.retain(|known, _| !is_below(known, path));
            }
            match (node, below) {
                (None, Some(Node::Directory(_))) => {}
                (None, _) => drop(self.nodes.insert(path.clone(), Node::Directory(0o755))),
                (Some(node), _) => drop(self.nodes.insert(path.clone(), *node)),
            }
        }
    }
}

fn shown(index: &MergedIndex) -> BTreeMap<Path, Node> {
    let image = index.image();
    let mut nodes = BTreeMap::new();
    let mut directories = vec![(ROOT_ID, Vec::new())];
    while let Some((id, path)) = directories.pop() {
        for at in image.entries_of(&get(image, id)).unwrap_or_else(|_| unreachable!("entries of {id}")) {
            let Ok((entry, name)) = image.entry(at) else { unreachable!("entry {at}") };
            let (child, path) = (get(image, entry.node), join(&path, name));
            if child.is_directory() {
                directories.push((entry.node, path.clone()));
                nodes.insert(path, Node::Directory(child.mode & 0o7777));
            } else {
                nodes.insert(path, Node::File(child.size));
            }
        }
    }
    nodes
}

/// Records of an upper's journal.
pub fn journal(bytes: &[u8]) {
    serve::journal(bytes);
}

/// Requests of the kernel, one after the other, to a writable overlay, which is then opened again.
pub fn requests(bytes: &[u8]) {
    serve::requests(bytes, small_layer());
}

/// A layer with one of each kind, and the file that it lies in.
fn small_layer() -> (MergedIndex, File) {
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |path: &str, kind, link: &str, size: usize| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_size(size as u64);
        let data = vec![b'd'; size];
        let written = match link {
            "" => tar.append_data(&mut header, path, &data[..]),
            link => tar.append_link(&mut header, path, link),
        };
        written.unwrap_or_else(|error| unreachable!("writing to memory: {error}"));
    };
    add("d", tar::EntryType::Directory, "", 0);
    add("d/e", tar::EntryType::Directory, "", 0);
    add("d/f", tar::EntryType::Regular, "", 5000);
    add("d/g", tar::EntryType::Link, "d/f", 0);
    add("s", tar::EntryType::Symlink, "d/f", 0);
    add("large", tar::EntryType::Regular, "", 20_000);
    let tar = tar.into_inner().unwrap_or_else(|error| unreachable!("writing to memory: {error}"));
    let layer = index_tar(&tar[..], &LIMITS).unwrap_or_else(|error| unreachable!("{error}"));
    let merged = merge(&[layer]).unwrap_or_else(|error| unreachable!("{error}"));
    (merged.into_index().unwrap_or_else(|error| unreachable!("{error}")), memory(&tar))
}

/// A file that is nowhere on a disk.
fn memory(bytes: &[u8]) -> File {
    let made = nix::sys::memfd::memfd_create(c"fuzz", nix::sys::memfd::MFdFlags::MFD_CLOEXEC);
    let mut file = File::from(made.unwrap_or_else(|errno| unreachable!("no file in memory: {errno}")));
    file.write_all(bytes).unwrap_or_else(|error| unreachable!("writing to memory: {error}"));
    file
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a corpus that cannot be read is a failed test")]

    type Target = fn(&[u8]);

    /// Where the corpora lie at run time: the test may run on a copy of the sources.
    fn corpora() -> std::path::PathBuf {
        let package = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| "fuse-overlay".to_owned());
        std::path::Path::new(&package).join("fuzz/corpus")
    }

    #[test]
    fn corpora_pass() {
        let targets: [(&str, Target); 6] = [
            ("layer_tar", super::layer_tar),
            ("merged_index", super::merged_index),
            ("layer_index", super::layer_index),
            ("whiteouts", super::whiteouts),
            ("journal", super::journal),
            ("requests", super::requests),
        ];
        for (name, target) in targets {
            target(&[]);
            let files: Vec<_> = std::fs::read_dir(corpora().join(name)).unwrap().collect();
            assert!(!files.is_empty(), "{name}");
            for file in files {
                target(&std::fs::read(file.unwrap().path()).unwrap());
            }
        }
    }
}
