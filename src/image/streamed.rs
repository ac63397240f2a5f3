//! An archive that can be read only once: from a pipe, or compressed as a whole.
//!
//! What an archive's members are is told by manifest.json or index.json, which often come last. So
//! whatever looks like a layer goes to the store at once, under the diff id that it turns out to
//! have, and everything small is kept in memory. Layers that nothing refers to in the end are taken
//! away by the next collection.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Cursor, Read};
use std::path::{Path, PathBuf};

use super::archive::{MAX_LINKS, MAX_MEMBERS, Named, Opened, named, normalised, not_an_archive};
use super::compression::Decoder;
use super::error::{ImageError, Result};
use super::ingest::{Found, InputHash, pack};
use crate::store::{Durable, Store, StoreError};

/// Where a member is told apart: a tar's first header is complete.
const HEAD_BYTES: usize = 512;
/// Larger members are layers, whatever they look like.
const MAX_SMALL_BYTES: u64 = 8 << 20;
/// Bytes of all small members together.
const MAX_KEPT_BYTES: u64 = 64 << 20;

/// An archive that was read.
#[derive(Debug)]
pub(super) struct Streamed {
    path: PathBuf,
    members: HashMap<PathBuf, Member>,
}

#[derive(Debug)]
enum Member {
    Small(Vec<u8>),
    /// In the store, or why it is no layer.
    Layer(Result<Found, String>),
    Link(PathBuf),
}

impl Streamed {
    /// Reads an archive to its end. The caller holds the content lock.
    pub(super) fn read(store: &Store, file: File, path: &Path) -> Result<Self> {
        let unreadable = |source| ImageError::Read { path: path.to_owned(), source };
        let mut decoder = Decoder::new(Box::new(file)).map_err(unreadable)?;
        let mut members = HashMap::new();
        let mut kept_bytes = 0;
        let mut archive = tar::Archive::new(&mut decoder);
        for entry in archive.entries().map_err(unreadable)? {
            let mut entry = match entry {
                Ok(entry) => entry,
                Err(error) if members.is_empty() => return Err(not_an_archive(path, &error)),
                Err(error) => return Err(unreadable(error)),
            };
            if members.len() >= MAX_MEMBERS {
                return Err(not_an_archive(
                    path,
                    &io::Error::other(format!("more than {MAX_MEMBERS} members")),
                ));
            }
            let (name, member) = match named(&entry).map_err(|error| not_an_archive(path, &error))? {
                Some((name, Named::Link(target))) => (name, Member::Link(target)),
                Some((name, Named::File)) => {
                    let member = read_member(store, &mut entry, &name).map_err(|failure| failure.at(path))?;
                    (name, member)
                }
                None => continue,
            };
            if let Member::Small(bytes) = &member {
                kept_bytes += bytes.len() as u64;
            }
            if kept_bytes > MAX_KEPT_BYTES {
                return Err(ImageError::TooMuchBesides { path: path.to_owned(), limit: MAX_KEPT_BYTES });
            }
            members.insert(name, member);
        }
        if members.is_empty() {
            return Err(not_an_archive(path, &io::Error::other("it has no members")));
        }
        // Whoever writes into a pipe should not be cut off before its last block.
        io::copy(&mut decoder, &mut io::sink()).map_err(unreadable)?;
        Ok(Self { path: path.to_owned(), members })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A small member.
    pub(super) fn open(&self, name: &str) -> Result<Option<Opened<'_>>> {
        match self.member(name) {
            Some(Member::Small(bytes)) => Ok(Some((Box::new(Cursor::new(bytes)), bytes.len() as u64))),
            Some(Member::Layer(_)) => Err(ImageError::TooLarge {
                path: self.path.join(name),
                size: MAX_SMALL_BYTES,
                limit: MAX_SMALL_BYTES,
            }),
            _ => Ok(None),
        }
    }

    /// What a member that went to the store was found to be; `None` if it is small or not there.
    pub(super) fn layer(&self, name: &str) -> Option<Result<&Found>> {
        match self.member(name)? {
            Member::Layer(Ok(found)) => Some(Ok(found)),
            Member::Layer(Err(reason)) => {
                Some(Err(ImageError::NotALayer { what: name.to_owned(), reason: reason.clone() }))
            }
            Member::Small(_) | Member::Link(_) => None,
        }
    }

    fn member(&self, name: &str) -> Option<&Member> {
        let mut name = normalised(Path::new(name))?;
        for _ in 0..MAX_LINKS {
            match self.members.get(&name)? {
                Member::Link(target) => name.clone_from(target),
                member => return Some(member),
            }
        }
        None
    }
}

/// Why reading stopped: of the stream itself, or of the store.
enum Failure {
    Stream(io::Error),
    Image(ImageError),
}

impl Failure {
    fn at(self, path: &Path) -> ImageError {
        match self {
            Self::Stream(source) => ImageError::Read { path: path.to_owned(), source },
            Self::Image(error) => error,
        }
    }
}

fn read_member<R: Read>(
    store: &Store,
    entry: &mut tar::Entry<'_, R>,
    name: &Path,
) -> Result<Member, Failure> {
    let size = entry.size();
    let mut head = Vec::with_capacity(HEAD_BYTES);
    entry.by_ref().take(HEAD_BYTES as u64).read_to_end(&mut head).map_err(Failure::Stream)?;
    if size <= MAX_SMALL_BYTES && !is_layer(&head) {
        entry.read_to_end(&mut head).map_err(Failure::Stream)?;
        return Ok(Member::Small(head));
    }
    let what = name.display().to_string();
    let packed =
        pack(store, Box::new(Cursor::new(head).chain(entry)), &what, InputHash::Here, Durable::Later);
    let stored = packed.and_then(|packed| {
        let found = packed.found.clone();
        packed.publish(&what).map(|_| found)
    });
    match stored {
        Ok(found) => Ok(Member::Layer(Ok(found))),
        Err(
            error @ (ImageError::Store(StoreError::Io { .. } | StoreError::Full { .. })
            | ImageError::Bomb { .. }),
        ) => Err(Failure::Image(error)),
        // Only if an image refers to it is it wrong not to be a layer.
        Err(error) => Ok(Member::Layer(Err(error_chain(&error)))),
    }
}

fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Whether a member begins as a layer does: compressed, with a tar's header, or with the zeros that
/// are an empty tar.
fn is_layer(head: &[u8]) -> bool {
    let is_tar = head.get(257..262) == Some(b"ustar");
    let is_empty_tar = head.len() == HEAD_BYTES && head.iter().all(|byte| *byte == 0);
    Decoder::is_compressed(head) || is_tar || is_empty_tar
}
