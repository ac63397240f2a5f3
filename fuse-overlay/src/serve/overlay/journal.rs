//! The journal: an append-only file of records, each with its length and checksum.
//!
//! ```text
//! header   32 bytes: magic, version, fingerprint of the lower layer, checksum
//! record   length u32, checksum u32, payload; again and again
//! ```
//!
//! A record counts once it is written whole; the first one that is not ends the journal, and
//! what follows is cut off. Every record reaches the kernel before its request is answered, so
//! killing the server loses nothing; a [`Syncer`] makes it survive the machine. The file is
//! locked while it is open: two servers on one upper would destroy it.

use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, Flock, FlockArg, OFlag, fallocate, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::UpperError;
use super::change::{Change, Content, Stored, decode};
use super::fault::{Point, point};
use crate::index::xxh64;
use crate::sys::Mapping;

const NAME: &str = "journal";
const NEW_NAME: &str = "journal.new";
const MAGIC: [u8; 8] = *b"HOSTLUPR";
const VERSION: u32 = 2;

/// As [`VERSION`], but without data of files: it is rewritten when it is opened.
const VERSION_WITHOUT_CONTENT: u32 = 1;
const HEADER_SIZE: usize = 32;
const FRAME_SIZE: usize = 8;

/// Bytes of the largest record. A request changes a few inodes and names; the largest carries an
/// xattr of 64 KiB, or a whole set of them.
const MAX_RECORD: usize = 4 << 20;

/// Space is reserved in steps of this size, so that what frees space on a full disk can still be
/// written down.
const RESERVE_STEP: u64 = 1 << 20;

/// What must be left of the reserve after a record that takes up space.
const RESERVE_LEAST: u64 = 256 << 10;

/// Whether a record may use the last of the reserve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// It belongs to a request that takes up space.
    Space,
    /// It belongs to a request that gives space back.
    Release,
}

#[derive(Debug)]
pub(super) struct Journal {
    file: Arc<Flock<File>>,
    length: u64,
    reserved: u64,
    /// Where reserving is not possible (tmpfs of old, NFS), the reserve is not kept.
    can_reserve: bool,
    fingerprint: u64,
    /// Written by an older version of this program, which must not meet what this one writes.
    is_old: bool,
}

impl Journal {
    /// Opens the journal of an upper, or begins one, and hands every change to `apply`.
    pub(super) fn open(
        upper: BorrowedFd<'_>,
        fingerprint: u64,
        apply: impl FnMut(Change),
    ) -> Result<Self, UpperError> {
        let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        // What an interrupted rewrite left behind.
        match unlinkat(upper, NEW_NAME, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(UpperError::Journal(errno.into())),
        }
        match openat(upper, NAME, flags, Mode::empty()) {
            Ok(fd) => Self::replay(lock(fd)?, fingerprint, apply),
            Err(Errno::ENOENT) => {
                let journal = Self::begin(upper, NEW_NAME, fingerprint)?;
                renameat(upper, NEW_NAME, upper, NAME).map_err(|errno| UpperError::Journal(errno.into()))?;
                Ok(journal)
            }
            Err(errno) => Err(UpperError::Journal(errno.into())),
        }
    }

    /// Hands every change of an upper's journal to `apply` without opening it for service: neither
    /// locked nor cut, so that it may be written to meanwhile. Its file, in which data of small
    /// files lies, or None where there is none yet.
    pub(super) fn read(
        upper: BorrowedFd<'_>,
        fingerprint: u64,
        apply: impl FnMut(Change),
    ) -> Result<Option<File>, UpperError> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let file = match openat(upper, NAME, flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(UpperError::Journal(errno.into())),
        };
        let bytes = map(&file)?;
        check_header(bytes.first_chunk::<HEADER_SIZE>().ok_or(UpperError::NotAnUpper)?, fingerprint)?;
        apply_records(&bytes, apply);
        drop(bytes);
        Ok(Some(file))
    }

    fn begin(upper: BorrowedFd<'_>, name: &str, fingerprint: u64) -> Result<Self, UpperError> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let fd = openat(upper, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)
            .map_err(|errno| UpperError::Journal(errno.into()))?;
        let file = lock(fd)?;
        file.write_all_at(&header(fingerprint), 0).map_err(UpperError::Journal)?;
        Ok(Self {
            file: Arc::new(file),
            length: HEADER_SIZE as u64,
            reserved: 0,
            can_reserve: true,
            fingerprint,
            is_old: false,
        })
    }

    fn replay(file: Flock<File>, fingerprint: u64, apply: impl FnMut(Change)) -> Result<Self, UpperError> {
        let bytes = map(&file)?;
        let found = bytes.first_chunk::<HEADER_SIZE>().ok_or(UpperError::NotAnUpper)?;
        let is_old = check_header(found, fingerprint)?;
        let at = apply_records(&bytes, apply);
        // A record that was being written when the server died: its request got no answer.
        let is_whole = at == bytes.len();
        drop(bytes);
        if !is_whole {
            file.set_len(at as u64).map_err(UpperError::Journal)?;
        }
        Ok(Self {
            file: Arc::new(file),
            length: at as u64,
            reserved: 0,
            can_reserve: true,
            fingerprint,
            is_old,
        })
    }

    /// Bytes in the journal.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    pub(super) fn is_old(&self) -> bool {
        self.is_old
    }

    /// Writes one record. Data of files among the changes is then where they say.
    pub(super) fn append(&mut self, changes: &mut [Change], need: Need) -> Result<(), Errno> {
        let mut frame = vec![0; FRAME_SIZE];
        for change in changes {
            change.encode(&mut frame);
            store(change, self.length + frame.len() as u64);
        }
        if frame.len() > MAX_RECORD {
            return Err(Errno::ENOSPC);
        }
        seal(&mut frame, self.length);
        self.reserve(frame.len() as u64, need)?;
        if cfg!(feature = "fault-points") {
            let _ = self.file.write_all_at(&frame[..frame.len() / 2], self.length);
            point(Point::RecordHalf);
        }
        if let Err(error) = self.file.write_all_at(&frame, self.length) {
            // Half a record would end the journal for all that come after it. If this fails too,
            // the next record overwrites it.
            let _ = self.file.set_len(self.length);
            self.reserved = 0;
            return Err(errno_of(&error));
        }
        self.length += frame.len() as u64;
        point(Point::RecordWritten);
        Ok(())
    }

    fn reserve(&mut self, length: u64, need: Need) -> Result<(), Errno> {
        let end = self.length + length;
        let wanted = end + RESERVE_LEAST;
        if !self.can_reserve || wanted <= self.reserved {
            return Ok(());
        }
        let (Ok(start), Ok(step)) = (i64::try_from(self.length), i64::try_from(length + RESERVE_STEP)) else {
            return Err(Errno::EFBIG);
        };
        match fallocate(&**self.file, FallocateFlags::FALLOC_FL_KEEP_SIZE, start, step) {
            Ok(()) => self.reserved = end + RESERVE_STEP,
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL) => self.can_reserve = false,
            Err(_) if need == Need::Release && end <= self.reserved => {}
            Err(errno) => return Err(errno),
        }
        Ok(())
    }

    /// The file, in which data of small files lies until the journal is rewritten; this descriptor
    /// of it stays good.
    pub(super) fn reader(&self) -> Arc<Flock<File>> {
        Arc::clone(&self.file)
    }

    /// The file, to be synced without holding up who appends.
    pub(super) fn syncer(&self) -> Syncer {
        Syncer(Arc::clone(&self.file))
    }

    /// Replaces the journal by one that holds just `records`, durable before it takes the old
    /// one's place. Tells where data of files lies then.
    pub(super) fn rewrite(
        &mut self,
        upper: BorrowedFd<'_>,
        records: impl Iterator<Item = Vec<Change>>,
    ) -> Result<Vec<(u64, Stored)>, UpperError> {
        /// Records written at once.
        const BATCH: usize = 1 << 20;
        let mut new = Self::begin(upper, NEW_NAME, self.fingerprint)?;
        point(Point::RewriteBegun);
        let mut batch = Vec::with_capacity(BATCH);
        let mut moved = Vec::new();
        for mut changes in records {
            let start = batch.len();
            batch.extend_from_slice(&[0; FRAME_SIZE]);
            for change in &mut changes {
                self.fetch(change)?;
                change.encode(&mut batch);
                store(change, new.length + batch.len() as u64);
                if let Change::Content(ino, Content::Stored(stored)) = change {
                    moved.push((*ino, *stored));
                }
            }
            seal(&mut batch[start..], new.length + start as u64);
            if batch.len() >= BATCH {
                new.file.write_all_at(&batch, new.length).map_err(UpperError::Journal)?;
                new.length += batch.len() as u64;
                batch.clear();
            }
        }
        new.file.write_all_at(&batch, new.length).map_err(UpperError::Journal)?;
        new.length += batch.len() as u64;
        new.file.sync_data().map_err(UpperError::Journal)?;
        point(Point::RewriteFilled);
        renameat(upper, NEW_NAME, upper, NAME).map_err(|errno| UpperError::Journal(errno.into()))?;
        point(Point::RewriteRenamed);
        *self = new;
        Ok(moved)
    }

    /// Reads the data that a change says lies here.
    fn fetch(&self, change: &mut Change) -> Result<(), UpperError> {
        if let Change::Content(_, content) = change
            && let Content::Stored(stored) = *content
        {
            let mut bytes = vec![0; stored.length as usize];
            self.file.read_exact_at(&mut bytes, stored.place).map_err(UpperError::Journal)?;
            *content = Content::Bytes(bytes.into());
        }
        Ok(())
    }
}

/// Turns data that has just been encoded, up to `end`, into the place where it will lie.
fn store(change: &mut Change, end: u64) {
    if let Change::Content(_, content) = change
        && let Content::Bytes(bytes) = content
    {
        let length = bytes.len() as u32;
        *content = Content::Stored(Stored { place: end - u64::from(length), length });
    }
}

/// Syncs the journal.
#[derive(Debug)]
pub(super) struct Syncer(Arc<Flock<File>>);

impl Syncer {
    pub(super) fn sync(&self) -> Result<(), Errno> {
        self.0.sync_data().map_err(|error| errno_of(&error))
    }
}

fn lock(fd: OwnedFd) -> Result<Flock<File>, UpperError> {
    match Flock::lock(File::from(fd), FlockArg::LockExclusiveNonblock) {
        Ok(file) => Ok(file),
        Err((_, Errno::EAGAIN)) => Err(UpperError::InUse),
        Err((_, errno)) => Err(UpperError::Journal(errno.into())),
    }
}

fn header(fingerprint: u64) -> [u8; HEADER_SIZE] {
    let mut header = [0; HEADER_SIZE];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[16..24].copy_from_slice(&fingerprint.to_le_bytes());
    let checksum = xxh64(&header[..24]);
    header[24..].copy_from_slice(&checksum.to_le_bytes());
    header
}

/// Checks who wrote a journal, and over what; true for one of the older version.
fn check_header(found: &[u8; HEADER_SIZE], fingerprint: u64) -> Result<bool, UpperError> {
    if found[..8] != MAGIC {
        return Err(UpperError::NotAnUpper);
    }
    let is_old = found[8..12] == VERSION_WITHOUT_CONTENT.to_le_bytes();
    if !is_old && found[8..12] != VERSION.to_le_bytes() {
        return Err(UpperError::Version);
    }
    let mut expected = header(0);
    expected[8..12].copy_from_slice(&found[8..12]);
    expected[16..24].copy_from_slice(&found[16..24]);
    let checksum = xxh64(&expected[..24]);
    if found[24..] != checksum.to_le_bytes() {
        return Err(UpperError::NotAnUpper);
    }
    if found[16..24] != fingerprint.to_le_bytes() {
        return Err(UpperError::OtherLower);
    }
    Ok(is_old)
}

/// Fills in length and checksum of a record that lies at `place`. The place is part of the
/// checksum, so that an old record in a recycled block is not taken for a new one.
fn seal(frame: &mut [u8], place: u64) {
    let checksum = checksum(&frame[FRAME_SIZE..], place);
    let length = (frame.len() - FRAME_SIZE) as u32;
    frame[..4].copy_from_slice(&length.to_le_bytes());
    frame[4..8].copy_from_slice(&checksum.to_le_bytes());
}

fn checksum(payload: &[u8], place: u64) -> u32 {
    let mixed = xxh64(payload) ^ xxh64(&place.to_le_bytes());
    (mixed ^ mixed >> 32) as u32
}

/// Maps a journal instead of reading it: it may be long, and the data of small files in it is not
/// needed now. What is cut off meanwhile reads as zeros, which no record is.
fn map(file: &File) -> Result<Mapping, UpperError> {
    let length = file.metadata().map_err(UpperError::Journal)?.len();
    let length = usize::try_from(length).map_err(|_| UpperError::NotAnUpper)?;
    Mapping::new(file, length).map_err(UpperError::Journal)
}

/// Hands the changes of all whole records to `apply`, and says where they end.
fn apply_records(bytes: &[u8], mut apply: impl FnMut(Change)) -> usize {
    let mut at = HEADER_SIZE;
    while let Some(payload) = record(bytes, at) {
        let place = (at + FRAME_SIZE) as u64;
        let Some(changes) = decode(payload, place).collect::<Option<Vec<_>>>() else { break };
        changes.into_iter().for_each(&mut apply);
        at += FRAME_SIZE + payload.len();
    }
    at
}

/// The payload of the record at `at`, where a whole one is there.
fn record(bytes: &[u8], at: usize) -> Option<&[u8]> {
    let frame = bytes.get(at..)?;
    let (length, rest) = frame.split_first_chunk::<4>()?;
    let (expected, rest) = rest.split_first_chunk::<4>()?;
    let payload = rest.get(..u32::from_le_bytes(*length) as usize)?;
    let whole = !payload.is_empty() && checksum(payload, at as u64) == u32::from_le_bytes(*expected);
    whole.then_some(payload)
}

fn errno_of(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
