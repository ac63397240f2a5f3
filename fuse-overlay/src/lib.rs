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
//! The crate knows nothing of containers, image formats or command lines. All unsafe code is in
//! `sys`; the words of the FUSE protocol are in one private module of [`serve`].

pub mod archive;
pub mod changes;
pub mod index;
pub mod mount;
pub mod pack;
pub mod serve;
mod sys;
pub mod unpack;
