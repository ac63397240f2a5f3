//! A layered filesystem over FUSE, for users without privilege.
//!
//! Layers are packed: a layer is its uncompressed tar, whole, in one file, with an index beside
//! it ([`pack`]). The layers of an image are merged once into one immutable index that is mapped,
//! not loaded ([`index`]), and served from there ([`serve`]) through a mount that an unprivileged
//! process makes inside its own user namespace ([`mount`]). A directory can be a lower layer too.
//! What shall be read without FUSE is written out as plain files ([`unpack`]).
//!
//! ```text
//! tar stream --pack::index_tar--> LayerIndex --index::merge--> MergedIndex
//!                                                                  |
//!          /dev/fuse <--mount::mount-- (in the namespace)     serve::Server --> requests
//! ```
//!
//! A tar, looked into without a mount and without privilege:
//!
//! ```
//! use std::io::Write as _;
//! use std::path::Path;
//!
//! use fuse_overlay::index::merge;
//! use fuse_overlay::pack::{Limits, index_tar};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut layer = tempfile::tempfile()?;
//! let mut tar = tar::Builder::new(Vec::new());
//! let mut header = tar::Header::new_gnu();
//! header.set_size(6);
//! header.set_mode(0o644);
//! tar.append_data(&mut header, "etc/motd", &b"hello\n"[..])?;
//! layer.write_all(&tar.into_inner()?)?;
//!
//! let mut reader = std::io::BufReader::new(layer.try_clone()?);
//! std::io::Seek::rewind(&mut reader)?;
//! let index = merge(&[index_tar(reader, &Limits::default())?])?.into_index()?;
//! let motd = index.read_file(Path::new("/etc/motd"), &[layer], 1 << 20)?;
//! assert_eq!(motd, b"hello\n");
//! # Ok(())
//! # }
//! ```
//!
//! Mounting takes two sides, one in the namespace and one that serves: `examples/mount.rs` is both, and a
//! command of its own. On a machine with unprivileged user namespaces:
//!
//! ```text
//! cargo run -p hostel-fuse-overlay --example mount -- layer.tar -- ls -l            # read-only
//! cargo run -p hostel-fuse-overlay --example mount -- --pure kept layer.tar -- sh   # writable
//! ```
//!
//! The crate knows nothing of containers, image formats or command lines. All unsafe code is in
//! `sys`; the words of the FUSE protocol are in one private module of [`serve`].

pub mod archive;
pub mod changes;
#[cfg(any(test, fuzzing))]
#[cfg_attr(fuzzing, doc(hidden))]
pub mod fuzzing;
pub mod index;
pub mod mount;
pub mod pack;
pub mod serve;
mod sys;
pub mod unpack;
