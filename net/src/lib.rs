//! A userspace TCP/IP gateway.
