//! Files of a tree as plain files of the user's: for binds that are not the context itself, and for
//! `--output type=local`.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::error::Problem;
use super::tree::{Files, Kind, Node, Tree};
use crate::id::Digest;
use crate::plan::dockerfile::ignore::{Ignore, Matched};
use crate::store::Store;

const COPY_BYTES: usize = 1 << 18;
/// How deep directories lie in each other: as deep as a path is long.
const MAX_DEPTH: usize = 2048;

/// Writes a node and what is in it to a path that does not exist yet, or to an empty directory.
pub(super) fn write(
    tree: &Tree,
    path: &[u8],
    node: &Node,
    ignore: Option<&Ignore>,
    place: &Path,
) -> Result<(), Problem> {
    let ignore = ignore.filter(|ignore| !ignore.is_empty());
    Export { tree, ignore, links: HashMap::new() }.node(path, node, None, place, 0)
}

/// Writes all files of an image to a directory, over what is there.
///
/// # Errors
/// Something cannot be read or written.
pub fn write_files(store: &Store, layers: &[Digest], place: &Path) -> Result<(), Problem> {
    let tree = Tree::image(store, layers)?;
    let root = tree.root()?;
    Export { tree: &tree, ignore: None, links: HashMap::new() }.node(b"", &root, None, place, 0)
}

/// Writes all files of an image as a tar.
///
/// # Errors
/// Something cannot be read or written.
pub fn write_tar(store: &Store, layers: &[Digest], out: fs::File) -> Result<(), Problem> {
    let job = super::copy::CopyJob::of_everything(layers);
    job.write(store, io::BufWriter::with_capacity(1 << 18, out))
}

struct Export<'a> {
    tree: &'a Tree,
    ignore: Option<&'a Ignore>,
    links: HashMap<u64, PathBuf>,
}

impl Export<'_> {
    fn node(
        &mut self,
        path: &[u8],
        node: &Node,
        ignored: Option<&Matched>,
        place: &Path,
        depth: usize,
    ) -> Result<(), Problem> {
        let facts = &node.facts;
        if depth > MAX_DEPTH {
            return Err(Problem::new("the directories lie in each other too deeply"));
        }
        match facts.kind {
            Kind::Directory => {
                match fs::create_dir(place) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists && place.is_dir() => {}
                    other => other?,
                }
                for (name, child) in self.tree.children(node, Files::Seen)? {
                    let path = if path.is_empty() { name.clone() } else { [path, &name].join(&b'/') };
                    let matched = self.ignore.map(|ignore| ignore.matches(&path, ignored));
                    let is_out = matched.as_ref().is_some_and(Matched::excluded);
                    let keeps = child.facts.kind == Kind::Directory
                        && self.ignore.is_some_and(|ignore| ignore.may_keep_below(&path));
                    if is_out && !keeps {
                        continue;
                    }
                    let place = place.join(std::ffi::OsStr::from_bytes(&name));
                    self.node(&path, &child, matched.as_ref(), &place, depth + 1)?;
                }
                // The user goes on writing into it, and removes it in the end.
                fs::set_permissions(place, fs::Permissions::from_mode((facts.mode & 0o1777) | 0o700))?;
            }
            Kind::Symlink => {
                let target = self.tree.target(node)?;
                std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(&target), place)?;
            }
            Kind::File => {
                if facts.links > 1 {
                    if let Some(first) = self.links.get(&facts.inode) {
                        fs::hard_link(first, place)?;
                        return Ok(());
                    }
                    self.links.insert(facts.inode, place.to_owned());
                }
                let content = self.tree.content(node)?;
                let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(place)?;
                let mut buffer =
                    vec![0; COPY_BYTES.min(usize::try_from(facts.size).unwrap_or(COPY_BYTES).max(1))];
                let mut at = 0;
                while at < facts.size {
                    match content.read_at(&mut buffer, at)? {
                        0 => break,
                        count => {
                            file.write_all(&buffer[..count])?;
                            at += count as u64;
                        }
                    }
                }
                file.set_permissions(fs::Permissions::from_mode(facts.mode & 0o777))?;
                if let Ok(seconds) = u64::try_from(facts.mtime.seconds) {
                    let time: SystemTime = UNIX_EPOCH + Duration::new(seconds, facts.mtime.nanoseconds);
                    file.set_modified(time)?;
                }
            }
            // Nobody without privilege can make devices, and nothing listens at a copied socket or pipe.
            Kind::Fifo | Kind::Char | Kind::Block | Kind::Socket => {}
        }
        Ok(())
    }
}
