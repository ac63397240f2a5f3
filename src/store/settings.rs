//! What a person decides about stores in general: set once, when the program starts.
//!
//! The settings hold for the process and its children and never change, so they are not handed
//! through every call. Whoever sets none (tests, other programs) gets the defaults.

use std::path::PathBuf;
use std::sync::OnceLock;

/// Decisions from the configuration files and the environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Stores of others whose images may be used and are never written (`additional_image_stores`).
    pub additional: Vec<PathBuf>,
    /// Where locks and writable layers go when the store's own filesystem is no place for them
    /// (`local_dir`).
    pub local: Option<PathBuf>,
    /// Whether layers of registries stay as they came, beside the packed ones (`keep_compressed`).
    pub keep_compressed: bool,
    /// Whether `load` and `pull` wait until the disk has all that they bring (`wait_for_disk`).
    pub wait_for_disk: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { additional: Vec::new(), local: None, keep_compressed: true, wait_for_disk: false }
    }
}

static SETTINGS: OnceLock<Settings> = OnceLock::new();

impl Settings {
    /// Makes these the process's settings, unless it has some already.
    pub fn install(self) {
        // A second call is a programmer's mistake without consequence: the first holds.
        let _ = SETTINGS.set(self);
    }

    /// The process's settings.
    #[must_use]
    pub fn current() -> &'static Self {
        SETTINGS.get_or_init(Self::default)
    }
}
