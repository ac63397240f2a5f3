//! One pass over a layer: read, hash, uncompress, hash, index, write.
//!
//! Two threads share the work. The caller's reads what was handed over, hashes it (unless whoever hands
//! it over does) and uncompresses it into chunks; the second hashes the uncompressed bytes, writes them
//! to the store and indexes them as they pass. Of a plain layer both hashes are the same, so only the
//! first thread hashes.
//! Memory is bounded by [`CHUNKS`] chunks of [`CHUNK_BYTES`], whatever the layer's size.
//!
//! Nothing is visible until digest and diff id are verified. A digest that does not match is
//! reported before anything that is wrong with the tar, since it is the cause.

use std::cell::Cell;
use std::io::{self, BufRead, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use fuse_overlay::pack::{self, LayerIndex, Limits, PackError};
use sha2::{Digest as _, Sha256};

use super::compression::Decoder;
use super::error::{ImageError, Result};
use crate::id::Digest;
use crate::store::{DIRECT_ALIGNMENT, Durable, LayerWriter, Store, StoreError, StoredLayer};

/// Large enough that direct writes run at the disk's speed.
pub(super) const CHUNK_BYTES: usize = 1 << 20;
/// One being filled, one being written, one on the way.
const CHUNKS: usize = 3;
/// Uncompressed bytes of a layer. Images of a hundred gigabytes exist; ten times that is none.
const MAX_LAYER_BYTES: u64 = 1 << 40;
/// gzip cannot compress better than 1:1032; of zstd, nothing honest of this size does.
const MAX_RATIO: u64 = 1100;
/// Below this many uncompressed bytes the ratio does not matter.
const RATIO_MATTERS_BYTES: u64 = 1 << 30;

/// What a layer is said to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected<'a> {
    /// What messages call it.
    pub(super) what: &'a str,
    /// Digest of its bytes as they are handed over, where it is known.
    pub(super) digest: Option<&'a Digest>,
    /// How many bytes, where it is known.
    pub(super) size: Option<u64>,
    /// Digest of the uncompressed bytes.
    pub(super) diff_id: &'a Digest,
}

/// What a layer was found to be.
#[derive(Clone, Debug)]
pub(super) struct Found {
    /// `None` where it was hashed before.
    digest: Option<Digest>,
    bytes: u64,
    diff_id: Digest,
}

impl Found {
    /// Digest of the uncompressed bytes.
    pub(super) fn diff_id(&self) -> &Digest {
        &self.diff_id
    }

    /// Whether it is what it is said to be, the cause of a difference before its consequences.
    pub(super) fn check(&self, expected: &Expected<'_>) -> Result<()> {
        let what = expected.what;
        if let Some(wanted) = expected.size.filter(|wanted| *wanted != self.bytes) {
            return Err(ImageError::SizeMismatch { what: what.to_owned(), wanted, found: self.bytes });
        }
        if let Some(digest) = &self.digest {
            check_digest(what, expected.digest, digest)?;
        }
        check_digest(&format!("the uncompressed layer {what}"), Some(expected.diff_id), &self.diff_id)
    }
}

/// Whether the bytes that are handed over are hashed here, or elsewhere and compared with what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InputHash {
    Here,
    Elsewhere,
}

/// A layer in the store's temporary files.
pub(super) struct Packed {
    pub(super) found: Found,
    writer: LayerWriter,
    index: Result<LayerIndex, PackError>,
}

impl Packed {
    /// Puts the layer in its place, under the diff id that it was found to have.
    pub(super) fn publish(self, what: &str) -> Result<StoredLayer> {
        let index = self.index.map_err(|error| not_a_layer(error, what))?;
        Ok(self.writer.finish(&self.found.diff_id, &index)?)
    }

    /// As [`Self::publish`], while `beside` does something with the layer's index.
    pub(super) fn publish_beside<T: Send>(
        self,
        what: &str,
        beside: impl FnOnce(&LayerIndex) -> T + Send,
    ) -> Result<T> {
        let index = self.index.map_err(|error| not_a_layer(error, what))?;
        let (writer, diff_id) = (self.writer, &self.found.diff_id);
        thread::scope(|scope| {
            let other = scope.spawn(|| beside(&index));
            let finished = writer.finish(diff_id, &index);
            let result = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            finished?;
            Ok(result)
        })
    }

    /// Whether it is a layer, for whoever does not need it in the store.
    pub(super) fn check(self, what: &str) -> Result<()> {
        self.index.map(drop).map_err(|error| not_a_layer(error, what))
    }
}

fn not_a_layer(error: PackError, what: &str) -> ImageError {
    match error {
        PackError::Read(source) => ImageError::LayerStream { what: what.to_owned(), source },
        source => ImageError::Layer { what: what.to_owned(), source },
    }
}

/// Stores a layer that is what it is expected to be. The caller holds the content lock.
pub(super) fn store_layer(
    store: &Store,
    reader: Box<dyn Read + '_>,
    expected: &Expected<'_>,
    durable: Durable,
) -> Result<StoredLayer> {
    let packed = pack(store, reader, expected.what, InputHash::Here, durable)?;
    packed.found.check(expected)?;
    packed.publish(expected.what)
}

/// Reads a layer into the store's temporary files. The caller holds the content lock.
pub(super) fn pack(
    store: &Store,
    reader: Box<dyn Read + '_>,
    what: &str,
    input_hash: InputHash,
    durable: Durable,
) -> Result<Packed> {
    let (full_sender, full) = sync_channel(CHUNKS);
    let (empty, empty_receiver) = sync_channel(CHUNKS);
    for _ in 0..CHUNKS {
        // The channel has room for all of them.
        let _ = empty.send(Chunk::new());
    }
    let mut intake = Intake::new(store.new_layer(durable)?, full, empty);
    let (produced, taken) = thread::scope(|scope| {
        let taker = scope.spawn(move || {
            let index = pack::index_tar(&mut intake, &Limits::default());
            intake.drain(index.is_ok());
            (intake.into_parts(), index)
        });
        let produced = produce(reader, input_hash, &full_sender, &empty_receiver);
        // With it the other thread sees the end.
        drop(full_sender);
        (produced, taker.join())
    });
    let (parts, index) = taken.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    if let Some(failure) = parts.failure {
        return Err(failure.into_error(what));
    }
    let Produced { digest, bytes, is_plain } = produced.map_err(|failure| failure.into_error(what))?;
    let diff_id = digest.clone().filter(|_| is_plain).unwrap_or_else(|| parts.hash.digest());
    Ok(Packed { found: Found { digest, bytes, diff_id }, writer: parts.writer, index })
}

pub(super) fn check_digest(what: &str, wanted: Option<&Digest>, found: &Digest) -> Result<()> {
    match wanted {
        Some(wanted) if wanted != found => Err(mismatch(what, wanted, found)),
        _ => Ok(()),
    }
}

pub(super) fn mismatch(what: &str, wanted: &Digest, found: &Digest) -> ImageError {
    ImageError::DigestMismatch { what: what.to_owned(), wanted: wanted.clone(), found: found.clone() }
}

/// Why one of the two threads stopped.
enum Failure {
    Stream(io::Error),
    Bomb(String),
    Store(StoreError),
}

impl Failure {
    fn into_error(self, what: &str) -> ImageError {
        match self {
            Self::Stream(source) => ImageError::LayerStream { what: what.to_owned(), source },
            Self::Bomb(limit) => ImageError::Bomb { what: what.to_owned(), limit },
            Self::Store(error) => error.into(),
        }
    }
}

/// Uncompressed bytes on their way, at an address fit for direct writes.
pub(super) struct Chunk {
    buffer: Vec<u8>,
    start: usize,
    length: usize,
    /// Whether its bytes have been hashed: those of a plain layer.
    is_hashed: bool,
}

impl Chunk {
    pub(super) fn new() -> Self {
        let buffer = vec![0; CHUNK_BYTES + DIRECT_ALIGNMENT];
        let start = buffer.as_ptr().align_offset(DIRECT_ALIGNMENT);
        Self { buffer, start, length: 0, is_hashed: false }
    }

    pub(super) fn clear(&mut self) {
        self.length = 0;
    }

    pub(super) fn is_full(&self) -> bool {
        self.length == CHUNK_BYTES
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.start + self.length]
    }

    /// Fills the chunk up as far as there are bytes. What came before an error stays.
    pub(super) fn fill(&mut self, from: &mut dyn Read) -> io::Result<()> {
        while self.length < CHUNK_BYTES {
            let begin = self.start + self.length;
            match from.read(&mut self.buffer[begin..self.start + CHUNK_BYTES]) {
                Ok(0) => break,
                Ok(count) => self.length += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// What the first thread found out.
struct Produced {
    digest: Option<Digest>,
    bytes: u64,
    is_plain: bool,
}

/// A running hash.
#[derive(Default)]
struct Hash {
    hasher: Sha256,
    bytes: u64,
}

impl Hash {
    fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    fn digest(self) -> Digest {
        Digest::from_bytes(&self.hasher.finalize().into())
    }
}

/// Hashes what passes.
struct Hashing<'a> {
    inner: Box<dyn Read + 'a>,
    input_hash: InputHash,
    hash: &'a mut Hash,
    /// The bytes that have passed, for whoever cannot see the hash meanwhile.
    taken: &'a Cell<u64>,
}

impl Read for Hashing<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        match self.input_hash {
            InputHash::Here => self.hash.update(&buffer[..count]),
            InputHash::Elsewhere => self.hash.bytes += count as u64,
        }
        self.taken.set(self.hash.bytes);
        Ok(count)
    }
}

/// The first thread: reads, hashes, uncompresses.
fn produce(
    reader: Box<dyn Read + '_>,
    input_hash: InputHash,
    full: &SyncSender<Chunk>,
    empty: &Receiver<Chunk>,
) -> Result<Produced, Failure> {
    let mut hash = Hash::default();
    let taken = Cell::new(0);
    let hashing = Hashing { inner: reader, input_hash, hash: &mut hash, taken: &taken };
    let decoder = match input_hash {
        InputHash::Here => Decoder::new(Box::new(hashing)),
        InputHash::Elsewhere => Decoder::of_verified(Box::new(hashing)),
    };
    let mut decoder = decoder.map_err(Failure::Stream)?;
    let is_plain = decoder.is_plain();
    let mut uncompressed: u64 = 0;
    // Without a chunk to fill, or a taker for it, the second thread has given up.
    while let Ok(mut chunk) = empty.recv() {
        chunk.clear();
        chunk.fill(&mut decoder).map_err(Failure::Stream)?;
        chunk.is_hashed = is_plain && input_hash == InputHash::Here;
        uncompressed += chunk.length as u64;
        if uncompressed > MAX_LAYER_BYTES {
            return Err(Failure::Bomb(format!("{MAX_LAYER_BYTES} bytes")));
        }
        if uncompressed > RATIO_MATTERS_BYTES && uncompressed / MAX_RATIO > taken.get() {
            return Err(Failure::Bomb(format!("{MAX_RATIO} times its size")));
        }
        if chunk.length == 0 || full.send(chunk).is_err() {
            break;
        }
    }
    decoder.drain().map_err(Failure::Stream)?;
    drop(decoder);
    let bytes = hash.bytes;
    let digest = (input_hash == InputHash::Here).then(|| hash.digest());
    Ok(Produced { bytes, digest, is_plain })
}

/// The second thread's end: what the indexer reads is written and hashed on the way.
struct Intake {
    writer: LayerWriter,
    full: Receiver<Chunk>,
    empty: SyncSender<Chunk>,
    hash: Hash,
    chunk: Option<Chunk>,
    at: usize,
    is_kept: bool,
    failure: Option<Failure>,
}

impl Intake {
    fn new(writer: LayerWriter, full: Receiver<Chunk>, empty: SyncSender<Chunk>) -> Self {
        Self { writer, full, empty, hash: Hash::default(), chunk: None, at: 0, is_kept: true, failure: None }
    }

    /// Takes the next chunk in; `false` at the end.
    fn advance(&mut self) -> Result<bool, StoreError> {
        if let Some(done) = self.chunk.take() {
            // The first thread may have ended already.
            let _ = self.empty.send(done);
        }
        let Ok(chunk) = self.full.recv() else { return Ok(false) };
        if !chunk.is_hashed {
            self.hash.update(chunk.bytes());
        }
        if self.is_kept {
            self.writer.write(chunk.bytes())?;
        }
        self.at = 0;
        self.chunk = Some(chunk);
        Ok(true)
    }

    /// Takes in what follows the end of the archive, to the stream's end: it belongs to the layer's
    /// digest. After an error it is only hashed.
    fn drain(&mut self, is_kept: bool) {
        self.is_kept = is_kept;
        while self.failure.is_none() {
            match self.advance() {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => self.failure = Some(Failure::Store(error)),
            }
        }
    }

    /// What is left when the stream is done with. Its channels close, which lets the first thread
    /// end, if it has not: it waits for chunks and for a taker.
    fn into_parts(self) -> Parts {
        Parts { writer: self.writer, hash: self.hash, failure: self.failure }
    }
}

/// What the second thread made.
struct Parts {
    writer: LayerWriter,
    hash: Hash,
    failure: Option<Failure>,
}

impl Read for Intake {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Intake {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.failure.is_some() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        while self.chunk.as_ref().is_none_or(|chunk| chunk.length == self.at) {
            match self.advance() {
                Ok(true) => {}
                Ok(false) => return Ok(&[]),
                Err(error) => {
                    self.failure = Some(Failure::Store(error));
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
            }
        }
        Ok(self.chunk.as_ref().map_or(&[], |chunk| &chunk.bytes()[self.at..]))
    }

    fn consume(&mut self, count: usize) {
        self.at += count;
    }
}
