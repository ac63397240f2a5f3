//! ADD of an archive: its files become the layer's, below the destination.
//!
//! The archive is a stranger's. Names are cleaned, `..` leads nowhere, absolute names and targets of
//! hard links are below the destination, and what a layer would take for a deletion is left out. The
//! layer is checked like any other when it comes into the store.

use std::collections::HashMap;
use std::io::{self, Read, Write};

use fuse_overlay::archive::{Content, Entry, Kind, Writer};
use fuse_overlay::index::Timestamp;

use super::copy::InMemory;
use super::error::Problem;
use crate::image::uncompressed;

/// Entries of an archive.
const MAX_ENTRIES: u64 = 10_000_000;
/// Files up to this size are held in memory; larger ones go through a temporary file.
const MAX_HELD_BYTES: u64 = 4 << 20;

/// What BuildKit, too, takes for an archive: by its first bytes, whatever its name.
pub(super) fn is_archive(content: &dyn Content) -> io::Result<bool> {
    let mut head = [0; 512];
    let count = content.read_at(&mut head, 0)?;
    let head = &head[..count];
    if !is_compressed(head) {
        return Ok(is_tar(head));
    }
    // A compressed file that is no tar is copied as it is.
    let mut inside = [0; 512];
    let Ok(mut reader) = uncompressed(Box::new(Sequential::new(content, u64::MAX))) else { return Ok(false) };
    let mut filled = 0;
    while filled < inside.len() {
        match reader.read(&mut inside[filled..]) {
            Ok(0) | Err(_) => break,
            Ok(count) => filled += count,
        }
    }
    Ok(is_tar(&inside[..filled]))
}

/// Whether the first block of a stream is a tar's, or something compressed.
pub(super) fn is_archive_head(head: &[u8]) -> bool {
    is_compressed(head) || is_tar(head)
}

fn is_compressed(head: &[u8]) -> bool {
    head.starts_with(&[0x1f, 0x8b, 8])
        || head.starts_with(b"\x28\xb5\x2f\xfd")
        || head.starts_with(b"BZh")
        || head.starts_with(b"\xfd7zXZ\0")
}

fn is_tar(head: &[u8]) -> bool {
    if head.len() < 512 {
        return false;
    }
    let octal = |field: &[u8]| {
        let text: String = field.iter().map(|byte| char::from(*byte)).collect();
        u64::from_str_radix(text.trim_matches(['\0', ' ']), 8).ok()
    };
    let sum: u64 = head
        .iter()
        .enumerate()
        .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u64::from(*byte) })
        .sum();
    // Of nothing but zeros, with which a tar ends, the sum is that of the blanks that stand for the field.
    sum != 8 * 32 && octal(&head[148..156]) == Some(sum)
}

/// Reads a content from its beginning.
struct Sequential<'a> {
    content: &'a dyn Content,
    at: u64,
    end: u64,
}

impl<'a> Sequential<'a> {
    fn new(content: &'a dyn Content, end: u64) -> Self {
        Self { content, at: 0, end }
    }
}

impl Read for Sequential<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.content.read_at(&mut buffer[..left], self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

/// Writes an archive's entries below a directory of a layer.
pub(super) fn copy<W: Write>(
    content: &dyn Content,
    size: u64,
    below: &[u8],
    owner: Option<(u32, u32)>,
    (now_s, clamp_s): (i64, Option<i64>),
    image: &dyn Fn(&[u8]) -> Result<InImage, Problem>,
    writer: &mut Writer<W>,
) -> Result<(), Problem> {
    let mut links = Links { below, made: HashMap::new(), image };
    let reader = uncompressed(Box::new(Sequential::new(content, size)))?;
    let mut archive = tar::Archive::new(reader);
    let mut count = 0;
    for entry in archive.entries()? {
        let mut entry = entry?;
        count += 1;
        if count > MAX_ENTRIES {
            return Err(Problem::new(format!("the archive has more than {MAX_ENTRIES} entries")));
        }
        let kind = entry.header().entry_type();
        // No file: extensions for all that follows.
        if kind == tar::EntryType::XGlobalHeader {
            continue;
        }
        let Some(path) = placed(&entry.path_bytes(), below) else { continue };
        let path = links.resolve(&path)?;
        for missing in links.missing_parents(&path)? {
            // Nobody said whose they are: root's, as where they are made.
            let (uid, gid) = owner.unwrap_or((0, 0));
            let mtime =
                Timestamp { seconds: clamp_s.map_or(now_s, |clamp| clamp.min(now_s)), nanoseconds: 0 };
            let kind = Kind::Directory;
            writer.entry(&Entry { path: &missing, kind, mode: 0o755, uid, gid, mtime, xattrs: &[] })?;
            links.made.insert(missing, Made::Directory);
        }
        let link = entry.link_name_bytes().map(std::borrow::Cow::into_owned).unwrap_or_default();
        let header = entry.header();
        let number = |value: io::Result<u64>| value.map(|value| u32::try_from(value).unwrap_or(0));
        let (uid, gid) = match owner {
            Some(owner) => owner,
            None => (number(header.uid())?, number(header.gid())?),
        };
        let seconds = i64::try_from(header.mtime()?).unwrap_or(i64::MAX);
        let mtime =
            Timestamp { seconds: clamp_s.map_or(seconds, |clamp| clamp.min(seconds)), nanoseconds: 0 };
        let mode = header.mode()? & 0o7777;
        // Of other entries the fields may hold anything.
        let device = match kind {
            tar::EntryType::Char | tar::EntryType::Block => {
                (header.device_major()?.unwrap_or(0), header.device_minor()?.unwrap_or(0))
            }
            _ => (0, 0),
        };
        let xattrs = xattrs(&mut entry)?;
        let made = |kind| Entry { path: &path, kind, mode, uid, gid, mtime, xattrs: &xattrs };
        match kind {
            // One that is a symlink already stays one, as where it would be made.
            tar::EntryType::Directory if links.is_link(&path)? => {}
            tar::EntryType::Directory => {
                writer.entry(&made(Kind::Directory))?;
                links.made.insert(path, Made::Directory);
                continue;
            }
            tar::EntryType::Symlink => {
                writer.entry(&made(Kind::Symlink(&link)))?;
                links.made.insert(path, Made::Link(link));
                continue;
            }
            tar::EntryType::Link => {
                match placed(&link, below).map(|path| links.resolve(&path)).transpose()? {
                    Some(target) => writer.entry(&Entry { xattrs: &[], ..made(Kind::Link(&target)) })?,
                    None => continue,
                }
            }
            tar::EntryType::Char => writer.entry(&made(Kind::CharDevice(device.0, device.1)))?,
            tar::EntryType::Block => writer.entry(&made(Kind::BlockDevice(device.0, device.1)))?,
            tar::EntryType::Fifo => writer.entry(&made(Kind::Fifo))?,
            kind if kind.is_file() || kind == tar::EntryType::GNUSparse => {
                let size = entry.size();
                if size <= MAX_HELD_BYTES {
                    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
                    entry.read_to_end(&mut bytes)?;
                    writer.file(&made(Kind::File), bytes.len() as u64, &InMemory(&bytes))?;
                } else {
                    let mut file = unnamed_file()?;
                    let size = io::copy(&mut entry, &mut file)?;
                    writer.file(&made(Kind::File), size, &file)?;
                }
            }
            _ => {}
        }
        links.made.insert(path, Made::Other);
    }
    Ok(())
}

/// What an image has at a path.
pub(super) enum InImage {
    Nothing,
    Directory,
    /// A symlink, and where it leads.
    Link(Vec<u8>),
    Other,
}

/// What an archive has put somewhere.
enum Made {
    Directory,
    Link(Vec<u8>),
    Other,
}

/// The symlinks that names of an archive lead through: it is unpacked as if its destination were `/`.
struct Links<'a> {
    below: &'a [u8],
    made: HashMap<Vec<u8>, Made>,
    image: &'a dyn Fn(&[u8]) -> Result<InImage, Problem>,
}

impl Links<'_> {
    fn target(&self, path: &[u8]) -> Result<Option<Vec<u8>>, Problem> {
        Ok(match self.made.get(path) {
            Some(Made::Link(target)) => Some(target.clone()),
            Some(_) => None,
            None => match (self.image)(path)? {
                InImage::Link(target) => Some(target),
                _ => None,
            },
        })
    }

    fn is_link(&self, path: &[u8]) -> Result<bool, Problem> {
        Ok(self.target(path)?.is_some())
    }

    /// The directories above a path that neither the archive nor the image has, the highest first.
    fn missing_parents(&self, path: &[u8]) -> Result<Vec<Vec<u8>>, Problem> {
        let mut missing = Vec::new();
        let mut at = path;
        while let Some(end) = at.iter().rposition(|byte| *byte == b'/') {
            at = &at[..end];
            if at.len() <= self.below.len() || matches!(self.made.get(at), Some(Made::Directory)) {
                break;
            }
            if !self.made.contains_key(at) && matches!((self.image)(at)?, InImage::Directory) {
                break;
            }
            missing.push(at.to_vec());
        }
        missing.reverse();
        Ok(missing)
    }

    /// A path whose directories are no symlinks; the last name is not followed.
    fn resolve(&self, path: &[u8]) -> Result<Vec<u8>, Problem> {
        /// As many symlinks as Linux follows in one path, and names that they may have in all.
        const MAX_STEPS: usize = 41 * 2048;
        const MAX_LINKS: usize = 40;
        let rest = &path[self.below.len()..];
        let mut names: Vec<Vec<u8>> = super::tree::split(rest).rev().map(<[u8]>::to_vec).collect();
        let mut at: Vec<Vec<u8>> = Vec::new();
        let (mut steps, mut followed) = (0, 0);
        let whole = |at: &[Vec<u8>]| {
            let mut path = self.below.to_vec();
            for name in at {
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(name);
            }
            path
        };
        while let Some(name) = names.pop() {
            steps += 1;
            if steps > MAX_STEPS {
                return Err(Problem::new("a name of the archive leads through too many symbolic links"));
            }
            match name.as_slice() {
                b"." => continue,
                b".." => {
                    at.pop();
                    continue;
                }
                _ => at.push(name),
            }
            if names.is_empty() {
                break;
            }
            let Some(target) = self.target(&whole(&at))? else { continue };
            followed += 1;
            if followed > MAX_LINKS {
                return Err(Problem::new("a name of the archive leads through too many symbolic links"));
            }
            at.pop();
            if target.first() == Some(&b'/') {
                at.clear();
            }
            names.extend(super::tree::split(&target).rev().map(<[u8]>::to_vec));
        }
        Ok(whole(&at))
    }
}

fn xattrs<R: Read>(entry: &mut tar::Entry<'_, R>) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut found = Vec::new();
    for extension in entry.pax_extensions()?.into_iter().flatten() {
        let extension = extension?;
        if let Some(name) = extension.key_bytes().strip_prefix(b"SCHILY.xattr.") {
            found.push((name.to_vec(), extension.value_bytes().to_vec()));
        }
    }
    found.sort();
    found.dedup_by(|a, b| a.0 == b.0);
    Ok(found)
}

/// A name of the archive as one of the layer; none for the archive's own root, and for what would be a
/// deletion.
fn placed(name: &[u8], below: &[u8]) -> Option<Vec<u8>> {
    let mut names: Vec<&[u8]> = Vec::new();
    for name in name.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => drop(names.pop()),
            name if name.starts_with(b".wh.") => return None,
            name => names.push(name),
        }
    }
    if names.is_empty() {
        return None;
    }
    let mut path = below.to_vec();
    for name in names {
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
    }
    Some(path)
}

fn unnamed_file() -> io::Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let dir = std::env::temp_dir();
    let mut options = std::fs::OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    match options.clone().custom_flags(libc::O_TMPFILE).open(&dir) {
        Ok(file) => Ok(file),
        Err(_) => {
            let random = u64::from_ne_bytes(crate::sys::process::random_bytes()?);
            let path = dir.join(format!("hostel-add-{random:x}"));
            let file = options.create_new(true).open(&path)?;
            std::fs::remove_file(&path)?;
            Ok(file)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_below() {
        let table: [(&[u8], Option<&[u8]>); 7] = [
            (b"a/b", Some(b"d/a/b")),
            (b"/a", Some(b"d/a")),
            (b"../../a", Some(b"d/a")),
            (b"./", None),
            (b"a/../b/", Some(b"d/b")),
            (b"a/.wh.b", None),
            (b".wh..wh..opq", None),
        ];
        for (name, expected) in table {
            assert_eq!(placed(name, b"d").as_deref(), expected, "{}", name.escape_ascii());
        }
    }
}
