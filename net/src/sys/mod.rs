//! All of this crate's unsafe code: ioctls on the TUN device, packet sockets, the memory of TCP buffers, recvmmsg.
//!
//! Every function here is safe to call; what makes it so is said at each block.
#![allow(unsafe_code, reason = "ioctl and mmap have no safe form; each block says why it is sound")]

pub(crate) mod datagram;
pub(crate) mod packet;
pub(crate) mod ring;
pub(crate) mod tun;
