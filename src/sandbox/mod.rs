//! The inside of a container: from a freshly cloned process to the container's command.
//!
//! [`init`] runs as the first process of the new namespaces. It is straight work in named stages;
//! the first stage that fails is reported to the keeper as a [`Failure`] and nothing is undone,
//! because everything it made dies with its namespaces. [`exec`] enters a running container.
//!
//! What must stay true:
//! - No path of the image or of the container is walked by name with the host's root as "/": all go
//!   through [`rootfs::Root`], which resolves below the container's root and refuses magic links.
//! - Until the command is executed no process of the container exists that could interfere, except
//!   in [`exec`], whose process is not dumpable and holds no descriptor of the host's.
//! - The seccomp filter is loaded while CAP_SYS_ADMIN of the user namespace is still held; the
//!   capabilities go after it.

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

pub mod ahead;
pub mod command;
pub mod copy;
pub mod copyup;
pub mod credentials;
pub mod devices;
pub mod exec;
pub mod fence;
pub mod idmap;
pub mod init;
pub mod join;
pub mod mounts;
pub mod namespaces;
pub mod rootfs;
pub mod tree;

/// Why a container did not start: one stage's name, the kernel's answer, and on what.
#[derive(Clone, Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{what}{}", errno_text(*.errno))]
pub struct Failure {
    /// The stage.
    pub stage: Stage,
    /// What was being done, on what.
    pub what: String,
    /// The errno, 0 when the kernel was not asked.
    pub errno: i32,
    /// A next step for the reader, where there is one.
    pub hint: Option<String>,
}

fn errno_text(errno: i32) -> String {
    if errno == 0 { String::new() } else { format!(": {}", nix::errno::Errno::from_raw(errno).desc()) }
}

/// The stages of the start, as far as what happens next depends on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// Namespaces, id maps, credentials.
    Namespaces,
    /// The network interface.
    Network,
    /// The FUSE mount.
    Fuse,
    /// The kernel's overlayfs over it: where this fails, pure mode may still work.
    Overlay,
    /// Everything mounted on the root.
    Mounts,
    /// User, capabilities, seccomp.
    Credentials,
    /// The command was not found (exit code 127).
    NotFound,
    /// The command cannot be executed (exit code 126).
    NotExecutable,
}

impl Failure {
    /// A failure of a system call.
    pub fn new(stage: Stage, what: impl Into<String>, errno: nix::errno::Errno) -> Self {
        Self { stage, what: what.into(), errno: errno as i32, hint: None }
    }

    /// A failure that is not a system call's.
    pub fn plain(stage: Stage, what: impl Into<String>) -> Self {
        Self { stage, what: what.into(), errno: 0, hint: None }
    }

    /// The same with a next step.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// Result of a stage.
pub type Staged<T> = Result<T, Failure>;

/// Attaches the stage and what was being done to an errno.
pub trait Context<T> {
    /// Names the stage and the work.
    ///
    /// # Errors
    /// The same error, as a [`Failure`].
    fn during(self, stage: Stage, what: impl FnOnce() -> String) -> Staged<T>;
}

impl<T> Context<T> for Result<T, nix::errno::Errno> {
    fn during(self, stage: Stage, what: impl FnOnce() -> String) -> Staged<T> {
        self.map_err(|errno| Failure::new(stage, what(), errno))
    }
}

impl<T> Context<T> for std::io::Result<T> {
    fn during(self, stage: Stage, what: impl FnOnce() -> String) -> Staged<T> {
        self.map_err(|error| match error.raw_os_error() {
            Some(errno) => Failure::new(stage, what(), nix::errno::Errno::from_raw(errno)),
            None => Failure::plain(stage, format!("{}: {error}", what())),
        })
    }
}

/// An error's text with those of its sources, joined by `: `.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Where a process's stdin, stdout and stderr come from.
#[derive(Debug)]
pub enum Stdio {
    /// Three descriptors made by the caller.
    Pipes([OwnedFd; 3]),
    /// A terminal of the container's own devpts; its master is handed out.
    Terminal {
        /// Rows and columns to begin with.
        size: Option<(u16, u16)>,
    },
}
