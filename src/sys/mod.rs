//! All of this crate's unsafe code: system calls that neither std nor nix wrap.
//!
//! Each function is a thin, safe face of one call: it owns what it returns (`OwnedFd`), borrows what
//! it is given, and reports `std::io::Error` or nix's `Errno` as the kernel gave it. Policy lives
//! above; nothing here decides anything.
#![allow(unsafe_code)] // the one place where it is allowed; the crate root denies it

pub mod fault;
pub mod fd;
pub mod memory;
pub mod mount;
pub mod process;
pub mod seccomp;
pub mod stub;
pub mod terminal;
