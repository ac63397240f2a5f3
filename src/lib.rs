//! hostel: a rootless OCI container engine in one binary.
//!
//! Modules, each using only those to its right:
//! `main -> cli -> build -> supervisor -> sandbox -> plan -> image -> store -> id`; `sys`, which holds all
//! of this crate's unsafe code, lies below `store`. ARCHITECTURE.md has the whole picture.

pub mod build;
pub mod cli;
#[cfg(any(test, fuzzing))]
#[cfg_attr(fuzzing, doc(hidden))]
pub mod fuzzing;
pub mod id;
pub mod image;
pub mod plan;
pub mod sandbox;
pub mod store;
pub mod supervisor;
pub mod sys;
