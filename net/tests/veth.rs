//! Everything of `kernel` again, over the link that needs no /dev/net/tun.

#[path = "kernel.rs"]
mod kernel;
