//! Places at which a test kills the server, to see what the next one makes of what it left.
//!
//! There is nothing here but for tests: without the feature `fault-points`, which only the tests
//! of this crate turn on, a point is an empty function.

/// A place between two steps that are not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Point {
    /// A record is half written.
    RecordHalf,
    /// A record is written; memory does not know it and nobody was answered.
    RecordWritten,
    /// An object exists and is empty.
    ObjectCreated,
    /// An object has its data; the journal does not know it.
    ObjectFilled,
    /// The journal knows an object; its request was not answered.
    ObjectCommitted,
    /// An inode is gone from memory, its object is not.
    InodeDropped,
    /// A new journal is begun beside the old one.
    RewriteBegun,
    /// A new journal is complete and durable.
    RewriteFilled,
    /// A new journal has taken the old one's place; memory points into the old one.
    RewriteRenamed,
}

#[cfg(feature = "fault-points")]
pub(super) fn point(here: Point) {
    use nix::sys::signal::{Signal, kill};
    if std::env::var("FUSE_OVERLAY_FAULT").is_ok_and(|wanted| wanted == format!("{here:?}")) {
        // Only once the test says so: its beginning is the same for all points.
        if std::env::var("FUSE_OVERLAY_ARMED").is_ok_and(|path| std::path::Path::new(&path).exists()) {
            let _ = kill(nix::unistd::getpid(), Signal::SIGKILL);
        }
    }
}

#[cfg(not(feature = "fault-points"))]
pub(super) fn point(_here: Point) {}
