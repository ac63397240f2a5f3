//! The files of an image as it is handed over: a directory, an archive read in place, or a stream.
//!
//! An archive is listed once by seeking from header to header, and its members are then read where
//! they lie, in whatever order they are needed. What cannot be sought in (a pipe, a compressed
//! archive) is read once (see `streamed`).

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::ImageError;
use super::compression::Decoder;
use super::ingest::{self, Expected};
use super::streamed::Streamed;
use crate::store::{Durable, Store, StoredLayer};

/// Members of one archive; `docker save` writes some four a layer.
pub(super) const MAX_MEMBERS: usize = 100_000;
/// Links followed from a member: `docker save` of old writes one to a layer that it shares.
pub(super) const MAX_LINKS: usize = 8;

/// A member's bytes and their number.
pub(super) type Opened<'a> = (Box<dyn Read + 'a>, u64);

/// Where an image's manifests, configs and layers are read from.
#[derive(Debug)]
pub(super) enum Files {
    /// A layout's directory. Its blobs may be symlinks.
    Directory(PathBuf),
    /// An archive.
    Archive(Archive),
    /// An archive that was read once, its layers going to the store.
    Streamed(Streamed),
}

impl Files {
    /// Opens a member of this name, with its size in bytes; `None` where there is none.
    pub(super) fn open(&self, name: &str) -> Result<Option<Opened<'_>>, ImageError> {
        match self {
            Self::Directory(directory) => {
                let path = directory.join(name);
                match File::open(&path).and_then(|file| Ok((file.metadata()?, file))) {
                    Ok((metadata, file)) if metadata.is_file() => Ok(Some((Box::new(file), metadata.size()))),
                    Ok(_) => Err(ImageError::NotAFile { path }),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(source) => Err(ImageError::Read { path, source }),
                }
            }
            Self::Archive(archive) => archive.open(name),
            Self::Streamed(streamed) => streamed.open(name),
        }
    }

    /// Reads a small member whole.
    pub(super) fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, ImageError> {
        let Some((reader, size)) = self.open(name)? else { return Ok(None) };
        let path = self.path().join(name);
        if size > limit {
            return Err(ImageError::TooLarge { path, size, limit });
        }
        let mut bytes = Vec::new();
        match reader.take(limit).read_to_end(&mut bytes) {
            Ok(_) => Ok(Some(bytes)),
            Err(source) => Err(ImageError::Read { path, source }),
        }
    }

    /// The archive or directory, for messages.
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Directory(path) => path,
            Self::Archive(archive) => &archive.path,
            Self::Streamed(streamed) => streamed.path(),
        }
    }

    /// Opens an archive: `file` is read from its current place. `path` is what messages call it. The
    /// caller holds the store's content lock.
    pub(super) fn archive(store: &Store, mut file: File, path: &Path) -> Result<Self, ImageError> {
        let unreadable = |source| ImageError::Read { path: path.to_owned(), source };
        let metadata = file.metadata().map_err(unreadable)?;
        if metadata.is_dir() {
            return Err(ImageError::NotAFile { path: path.to_owned() });
        }
        let mut magic = [0; 6];
        let is_plain = metadata.is_file() && {
            let at = file.stream_position().map_err(unreadable)?;
            let length = file.read_at(&mut magic, at).map_err(unreadable)?;
            !Decoder::is_compressed(&magic[..length])
        };
        if is_plain {
            Archive::list(file, path).map(Self::Archive)
        } else {
            Streamed::read(store, file, path).map(Self::Streamed)
        }
    }

    /// Stores a layer, which must be as expected. The caller holds the content lock.
    pub(super) fn store_layer(
        &self,
        store: &Store,
        expected: &Expected<'_>,
    ) -> Result<StoredLayer, ImageError> {
        let missing =
            || ImageError::Missing { path: self.path().to_owned(), member: expected.what.to_owned() };
        if let Self::Streamed(streamed) = self
            && let Some(found) = streamed.layer(expected.what)
        {
            found?.check(expected)?;
            return store.layer(expected.diff_id)?.ok_or_else(missing);
        }
        let (reader, _) = self.open(expected.what)?.ok_or_else(missing)?;
        ingest::store_layer(store, reader, expected, Durable::Later)
    }
}

/// A tar archive with its members found.
#[derive(Debug)]
pub(super) struct Archive {
    path: PathBuf,
    file: Arc<File>,
    members: HashMap<PathBuf, Member>,
}

#[derive(Debug)]
enum Member {
    File { offset: u64, size: u64 },
    Link(PathBuf),
}

impl Archive {
    fn list(file: File, path: &Path) -> Result<Self, ImageError> {
        let members = members(&file).map_err(|error| not_an_archive(path, &error))?;
        Ok(Self { path: path.to_owned(), file: Arc::new(file), members })
    }

    fn open_member(&self, name: &Path) -> Option<(u64, u64)> {
        let mut name = normalised(name)?;
        for _ in 0..MAX_LINKS {
            match self.members.get(&name)? {
                Member::File { offset, size } => return Some((*offset, *size)),
                Member::Link(target) => name.clone_from(target),
            }
        }
        None
    }

    fn open(&self, name: &str) -> Result<Option<Opened<'_>>, ImageError> {
        let Some((offset, size)) = self.open_member(Path::new(name)) else { return Ok(None) };
        let file_size = self.file.metadata().map_or(0, |metadata| metadata.size());
        if offset.checked_add(size).is_none_or(|end| end > file_size) {
            return Err(ImageError::Truncated { path: self.path.clone(), member: name.to_owned() });
        }
        Ok(Some((Box::new(Section { file: Arc::clone(&self.file), at: offset, left: size }), size)))
    }
}

/// Bytes of an archive that are one member.
struct Section {
    file: Arc<File>,
    at: u64,
    left: u64,
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let count = self.file.read_at(&mut buffer[..wanted], self.at)?;
        if count == 0 && wanted > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

fn members(file: &File) -> io::Result<HashMap<PathBuf, Member>> {
    let mut members = HashMap::new();
    let mut archive = tar::Archive::new(file);
    for entry in archive.entries_with_seek()? {
        let entry = entry?;
        if members.len() >= MAX_MEMBERS {
            return Err(io::Error::other(format!("it has more than {MAX_MEMBERS} members")));
        }
        let (name, member) = match named(&entry)? {
            Some((name, Named::File)) => {
                (name, Member::File { offset: entry.raw_file_position(), size: entry.size() })
            }
            Some((name, Named::Link(target))) => (name, Member::Link(target)),
            None => continue,
        };
        members.insert(name, member);
    }
    if members.is_empty() {
        return Err(io::Error::other("it has no members"));
    }
    Ok(members)
}

/// What a member of an archive is, as far as images go.
pub(super) enum Named {
    File,
    Link(PathBuf),
}

/// A member's name, normalised, and what it is; `None` for what no image refers to: directories,
/// and names that lead out of the archive.
pub(super) fn named<R: Read>(entry: &tar::Entry<'_, R>) -> io::Result<Option<(PathBuf, Named)>> {
    let path = entry.path()?;
    let Some(name) = normalised(&path) else { return Ok(None) };
    let kind = entry.header().entry_type();
    if kind.is_file() {
        return Ok(Some((name, Named::File)));
    }
    if !kind.is_symlink() && !kind.is_hard_link() {
        return Ok(None);
    }
    let target = entry.link_name()?.unwrap_or_default();
    let base = if kind.is_symlink() { name.parent().unwrap_or(Path::new("")) } else { Path::new("") };
    Ok(normalised(&base.join(target)).map(|target| (name, Named::Link(target))))
}

/// The error for a file that is no archive. Where a header should be and is none, the tar crate quotes
/// the bytes that it found, which help nobody.
pub(super) fn not_an_archive(path: &Path, error: &io::Error) -> ImageError {
    let text = error.to_string();
    let is_plain = text.chars().all(|c| !c.is_control()) && !text.contains("cksum");
    let reason = if is_plain { text } else { "it has no tar header where one should be".to_owned() };
    ImageError::NotAnArchive { path: path.to_owned(), reason }
}

/// A path without `.` and `..`; `None` where it leads above its root or begins at `/`.
pub(super) fn normalised(path: &Path) -> Option<PathBuf> {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => normal.push(name),
            Component::CurDir => {}
            Component::ParentDir if normal.pop() => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(normal)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::io::Write as _;

    use super::*;

    fn archive(build: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        build(&mut builder);
        builder.into_inner().unwrap()
    }

    fn file(builder: &mut tar::Builder<Vec<u8>>, name: &str, content: &[u8]) {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append_data(&mut header, name, content).unwrap();
    }

    fn link(builder: &mut tar::Builder<Vec<u8>>, name: &str, target: &str) {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        builder.append_link(&mut header, name, target).unwrap();
    }

    fn open(bytes: &[u8]) -> Result<Files, ImageError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        let dir = tempfile::tempdir().unwrap();
        Files::archive(&Store::open(dir.path()).unwrap(), file, Path::new("x.tar"))
    }

    #[test]
    fn members_are_read_in_any_order_and_through_links() {
        let bytes = archive(|builder| {
            file(builder, "./a/layer.tar", b"layer");
            link(builder, "b/layer.tar", "../a/layer.tar");
            link(builder, "loop", "loop");
            link(builder, "out", "../../etc/passwd");
            file(builder, "manifest.json", b"[]");
        });
        let files = open(&bytes).unwrap();
        assert_eq!(files.read("manifest.json", 10).unwrap().unwrap(), b"[]");
        assert_eq!(files.read("b/layer.tar", 10).unwrap().unwrap(), b"layer");
        assert_eq!(files.read("a//layer.tar", 10).unwrap().unwrap(), b"layer");
        for absent in ["nope", "loop", "out", "../x", "/a/layer.tar"] {
            assert!(files.open(absent).unwrap().is_none(), "{absent}");
        }
        assert!(matches!(files.read("a/layer.tar", 4), Err(ImageError::TooLarge { size: 5, limit: 4, .. })));
    }

    #[test]
    fn a_compressed_archive_is_read_once() {
        let bytes = archive(|builder| file(builder, "m", b"text"));
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&bytes).unwrap();
        for compressed in [encoder.finish().unwrap(), zstd::encode_all(&bytes[..], 1).unwrap()] {
            assert_eq!(open(&compressed).unwrap().read("m", 10).unwrap().unwrap(), b"text");
        }
    }

    #[test]
    fn what_is_no_archive_is_refused() {
        assert!(matches!(open(b"root:x:0:0:root:/root:/bin/sh\n"), Err(ImageError::NotAnArchive { .. })));
        assert!(matches!(open(&[b'x'; 2000]), Err(ImageError::NotAnArchive { .. })));
        assert!(matches!(open(b""), Err(ImageError::NotAnArchive { .. })));
        assert!(matches!(open(b"\x04\x22\x4d\x18rest"), Err(ImageError::Read { .. })));
        let bytes = archive(|builder| file(builder, "m", &[1; 5000]));
        let cut = open(&bytes[..2048]);
        assert!(cut.is_err() || matches!(cut.unwrap().open("m"), Err(ImageError::Truncated { .. })));
    }
}
