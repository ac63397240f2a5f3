//! One layer: from a registry into the store, in one pass.
//!
//! Three threads: the first reads from the network (or from what an earlier pull left), hashes and keeps
//! the bytes as they come; the second uncompresses; the third hashes, writes and indexes what comes out
//! (see `ingest`). Chunks of 1 MiB go round between the first two: [`CHUNKS`] of them, so memory does not
//! grow with the layer.
//!
//! A connection that breaks is made again and asked for the rest. What was left by an earlier pull is
//! read first; if the whole then has the wrong digest, it is thrown away and all is fetched once more.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use sha2::{Digest as _, Sha256};

use super::client::Client;
use super::error::RegistryError;
use super::http::Pauses;
use super::{LayerEvent, Progress};
use crate::id::Digest;
use crate::image::ImageError;
use crate::image::ingest::{self, Chunk, Expected, InputHash};
use crate::store::{Blob, Download, Durable, Store, StoreError, StoredLayer};

/// One being filled, one being uncompressed, one on the way.
const CHUNKS: usize = 3;

/// A layer of a manifest.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) diff_id: Digest,
}

impl Layer {
    fn expected(&self) -> Expected<'_> {
        Expected {
            what: self.digest.as_str(),
            digest: Some(&self.digest),
            size: Some(self.size),
            diff_id: &self.diff_id,
        }
    }
}

/// Where a layer comes from and goes to.
pub(super) struct Fetch<'a> {
    pub(super) store: &'a Store,
    /// Where it may be had, the first first.
    pub(super) sources: &'a [Client<'a>],
    pub(super) progress: &'a dyn Progress,
    /// Whether the bytes stay in the store as they came.
    pub(super) keep_compressed: bool,
}

impl Fetch<'_> {
    /// Stores a layer. The caller holds the content lock.
    pub(super) fn layer(&self, layer: &Layer) -> Result<StoredLayer, ImageError> {
        loop {
            let stored = match self.store.download(&layer.digest)? {
                Blob::Stored(file) => {
                    // An uncompressed layer is its own blob; another pull may have brought either.
                    if let Some(stored) = self.store.layer(&layer.diff_id)? {
                        return Ok(stored);
                    }
                    self.progress.layer(&layer.digest, &LayerEvent::Resumed { bytes: layer.size });
                    ingest::store_layer(self.store, Box::new(file), &layer.expected(), self.durable(layer))?
                }
                Blob::Incomplete(download) => match self.fetch(layer, download)? {
                    Some(stored) => stored,
                    None => continue,
                },
            };
            self.progress.layer(&layer.digest, &LayerEvent::Complete);
            return Ok(stored);
        }
    }

    /// Fetches what is missing. `None` where what an earlier pull left was wrong and is gone.
    fn fetch(&self, layer: &Layer, mut download: Download) -> Result<Option<StoredLayer>, ImageError> {
        let had = download.have();
        if had > layer.size {
            return self.distrust(layer, download);
        }
        let (full_sender, full) = sync_channel(CHUNKS);
        let (empty_sender, empty) = sync_channel(CHUNKS);
        for _ in 0..CHUNKS {
            // The channel has room for all of them.
            let _ = empty_sender.send(Chunk::new());
        }
        let (fetched, packed) = thread::scope(|scope| {
            let fetcher = scope.spawn(|| {
                let line = Line { full: full_sender, empty };
                line.take()
                    .and_then(|chunk| {
                        let (download, line) = (&mut download, &line);
                        Transfer { fetch: self, layer, download, line, hash: Sha256::new(), at: 0, chunk }
                            .run()
                    })
                    .inspect_err(|_| line.fail())
            });
            let reader = Chunks { full, empty: empty_sender, chunk: None, at: 0 };
            let (what, hash) = (layer.digest.as_str(), InputHash::Elsewhere);
            let packed = ingest::pack(self.store, Box::new(reader), what, hash, self.durable(layer));
            (fetcher.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), packed)
        });
        let found = match fetched {
            Ok(found) => found,
            // The layer could not be written or was a bomb, and nobody took the rest.
            Err(Failure::NotTaken) => return packed.map(|_| None),
            Err(Failure::Wrong(error)) => {
                download.discard()?;
                return Err(error);
            }
            Err(Failure::Broken(error)) => return Err(error),
        };
        if found != layer.digest {
            if had > 0 {
                return self.distrust(layer, download);
            }
            download.discard()?;
            return Err(ingest::mismatch(layer.digest.as_str(), &layer.digest, &found));
        }
        self.progress.layer(&layer.digest, &LayerEvent::Downloaded);
        let packed = match packed.and_then(|packed| packed.found.check(&layer.expected()).map(|()| packed)) {
            Ok(packed) => packed,
            Err(error) => {
                download.discard()?;
                return Err(error);
            }
        };
        // A layer that is durable later rests on its blob.
        match self.durable(layer) {
            Durable::Now => download.discard()?,
            Durable::Later => download.finish()?,
        }
        packed.publish(layer.digest.as_str()).map(Some)
    }

    /// Where the blob stays, it is what has to be on the disk: the layer can be made from it again.
    fn durable(&self, layer: &Layer) -> Durable {
        if layer.digest == layer.diff_id || !self.keep_compressed { Durable::Now } else { Durable::Later }
    }

    /// Throws away what an earlier pull left, so that all is fetched once more.
    fn distrust(&self, layer: &Layer, download: Download) -> Result<Option<StoredLayer>, ImageError> {
        download.discard()?;
        let reason = "what an earlier pull left was damaged".to_owned();
        self.progress.layer(&layer.digest, &LayerEvent::Retrying { reason });
        Ok(None)
    }
}

/// The first thread's state, which lives across connections.
struct Transfer<'a> {
    fetch: &'a Fetch<'a>,
    layer: &'a Layer,
    download: &'a mut Download,
    line: &'a Line,
    hash: Sha256,
    /// Bytes that are hashed, kept and sent on.
    at: u64,
    /// Those that follow.
    chunk: Chunk,
}

impl Transfer<'_> {
    /// Gives the digest of all bytes.
    fn run(mut self) -> Result<Digest, Failure> {
        self.replay()?;
        let mut pauses = Pauses::default();
        let mut sources = self.fetch.sources.iter();
        let mut source = sources.next();
        while self.here() != self.layer.size {
            let here = self.here();
            let Some(client) = source else { return Err(Failure::NotTaken) };
            let error = match begin(client, self.layer, here)
                .and_then(|mut reader| self.receive(client, &mut reader))
            {
                Ok(()) => break,
                Err(Interrupted::Final(failure)) => return Err(failure),
                Err(Interrupted::Broken(error)) => error,
            };
            if self.here() > here {
                pauses.reset();
            }
            let (reason, is_absent) = (error.to_string(), error.is_absent());
            if let Err(error) = pauses.after(error) {
                // The next place may have it, from where this one stopped.
                source = sources.next().filter(|_| is_absent);
                if source.is_none() {
                    self.keep()?;
                    return Err(Failure::Broken(error.into()));
                }
                pauses.reset();
            }
            self.tell(&LayerEvent::Retrying { reason });
        }
        self.keep()?;
        self.hash.update(self.chunk.bytes());
        if !self.chunk.bytes().is_empty() {
            self.line.give(self.chunk)?;
        }
        Ok(Digest::from_bytes(&self.hash.finalize().into()))
    }

    /// Bytes that have come.
    fn here(&self) -> u64 {
        self.at + self.chunk.bytes().len() as u64
    }

    fn tell(&self, event: &LayerEvent) {
        self.fetch.progress.layer(&self.layer.digest, event);
    }

    /// Sends on what an earlier pull left.
    fn replay(&mut self) -> Result<(), Failure> {
        let had = self.download.have();
        if had > 0 {
            self.tell(&LayerEvent::Resumed { bytes: had });
        }
        while self.at < had {
            let mut section = Section { file: self.download.file(), at: self.at, end: had };
            let filled = self.chunk.fill(&mut section);
            filled.map_err(|source| Failure::Broken(stream_error(self.layer, source)))?;
            if self.chunk.bytes().is_empty() {
                let source = io::ErrorKind::UnexpectedEof.into();
                return Err(Failure::Broken(stream_error(self.layer, source)));
            }
            self.send_on()?;
        }
        Ok(())
    }

    /// Takes in what a connection delivers, until the layer's end.
    fn receive(&mut self, client: &Client<'_>, reader: &mut dyn Read) -> Result<(), Interrupted> {
        loop {
            let before = self.here();
            // One byte more than there should be tells a body that has no end.
            let result = self.chunk.fill(&mut reader.take(self.layer.size + 1 - before));
            let here = self.here();
            self.tell(&LayerEvent::Transferred { bytes: here - before });
            if here > self.layer.size {
                return Err(Failure::Wrong(self.wrong_size(here)).into());
            }
            if here == self.layer.size {
                return Ok(());
            }
            let reason = match result {
                Ok(()) if self.chunk.is_full() => {
                    self.keep()?;
                    self.send_on()?;
                    continue;
                }
                Ok(()) => "the connection was closed early".to_owned(),
                Err(error) => error.to_string(),
            };
            let host = client.host().to_owned();
            return Err(Interrupted::Broken(RegistryError::Transport { host, reason }));
        }
    }

    /// Hashes the chunk, gives it to the second thread and begins another.
    fn send_on(&mut self) -> Result<(), Failure> {
        self.hash.update(self.chunk.bytes());
        self.at += self.chunk.bytes().len() as u64;
        let next = self.line.take()?;
        self.line.give(std::mem::replace(&mut self.chunk, next))
    }

    /// Writes the chunk to what is kept.
    fn keep(&mut self) -> Result<(), Failure> {
        self.download.write(self.chunk.bytes()).map_err(|error| match error {
            // The space is needed for something that can be finished.
            error @ StoreError::Full { .. } => Failure::Wrong(error.into()),
            error => Failure::Broken(error.into()),
        })
    }

    fn wrong_size(&self, found: u64) -> ImageError {
        ImageError::SizeMismatch { what: self.layer.digest.to_string(), wanted: self.layer.size, found }
    }
}

fn stream_error(layer: &Layer, source: io::Error) -> ImageError {
    ImageError::LayerStream { what: layer.digest.to_string(), source }
}

/// Asks for the layer from byte `here` on.
fn begin(client: &Client<'_>, layer: &Layer, here: u64) -> Result<Box<dyn Read>, Interrupted> {
    let (response, start) = client.blob(&layer.digest, here).map_err(Interrupted::Broken)?;
    if start > here {
        let (what, host) = (format!("layer {}", layer.digest.short()), response.host());
        let reason = format!("it begins at byte {start}, and {here} was asked for");
        return Err(Interrupted::Broken(RegistryError::Invalid { what, host, reason }));
    }
    let found = response.length().map(|length| start.saturating_add(length));
    if let Some(found) = found.filter(|found| *found != layer.size) {
        let (what, wanted) = (layer.digest.to_string(), layer.size);
        return Err(Failure::Wrong(ImageError::SizeMismatch { what, wanted, found }).into());
    }
    let host = response.host();
    let mut reader = response.into_reader();
    // A server without ranges begins at the begin.
    let passed = io::copy(&mut reader.by_ref().take(here - start), &mut io::sink());
    match passed {
        Ok(passed) if passed == here - start => Ok(Box::new(reader)),
        Ok(_) => Err(Interrupted::Broken(RegistryError::Transport {
            host,
            reason: "the connection was closed early".to_owned(),
        })),
        Err(error) => Err(Interrupted::Broken(RegistryError::Transport { host, reason: error.to_string() })),
    }
}

/// Why a connection did not bring the whole rest.
enum Interrupted {
    /// Another one may.
    Broken(RegistryError),
    Final(Failure),
}

impl From<Failure> for Interrupted {
    fn from(failure: Failure) -> Self {
        Self::Final(failure)
    }
}

/// Why the first thread stopped.
enum Failure {
    /// The second has stopped; its reason counts.
    NotTaken,
    /// What came cannot be used.
    Wrong(ImageError),
    /// What came may be the begin of what is wanted.
    Broken(ImageError),
}

/// A part of a file.
struct Section<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl Read for Section<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        let count = self.file.read_at(&mut buffer[..wanted], self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

/// What the first thread puts chunks on.
struct Line {
    full: SyncSender<Option<Chunk>>,
    empty: Receiver<Chunk>,
}

impl Line {
    fn take(&self) -> Result<Chunk, Failure> {
        let mut chunk = self.empty.recv().map_err(|_| Failure::NotTaken)?;
        chunk.clear();
        Ok(chunk)
    }

    fn give(&self, chunk: Chunk) -> Result<(), Failure> {
        self.full.send(Some(chunk)).map_err(|_| Failure::NotTaken)
    }

    fn fail(&self) {
        // Whoever does not listen any more has failed already.
        let _ = self.full.send(None);
    }
}

/// What the second thread reads: the chunks, one after the other.
struct Chunks {
    full: Receiver<Option<Chunk>>,
    empty: SyncSender<Chunk>,
    chunk: Option<Chunk>,
    at: usize,
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.as_ref().is_none_or(|chunk| chunk.bytes().len() == self.at) {
            if let Some(done) = self.chunk.take() {
                // The first thread may have ended already.
                let _ = self.empty.send(done);
            }
            match self.full.recv() {
                Ok(Some(chunk)) => self.chunk = Some(chunk),
                Ok(None) => return Err(io::ErrorKind::BrokenPipe.into()),
                Err(_) => return Ok(0),
            }
            self.at = 0;
        }
        let Some(chunk) = &self.chunk else { return Ok(0) };
        let bytes = &chunk.bytes()[self.at..];
        let count = bytes.len().min(buffer.len());
        buffer[..count].copy_from_slice(&bytes[..count]);
        self.at += count;
        Ok(count)
    }
}
