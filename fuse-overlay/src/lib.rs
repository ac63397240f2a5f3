//! A layered filesystem over FUSE.
