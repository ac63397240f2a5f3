//! The namespace's settings under /proc/sys/net.
//!
//! All are improvements, none is a condition: where /proc/sys is read-only or absent, or the
//! kernel refuses a value, the network works without, so failures are passed over.

use std::fs;

/// Settings of the namespace, each with the values to try in this order.
const SETTINGS: &[(&str, &[&str])] = &[
    // Ports below 1024 belong to the host's administrator there, to the container's here.
    ("ipv4/ip_unprivileged_port_start", &["0"]),
    // `ping` without capabilities. The range must be mapped in the user namespace: all groups,
    // the usual 65,536 of a subordinate range, or the only one.
    ("ipv4/ping_group_range", &["0 2147483647", "0 65535", "0 0"]),
    // Every connection out goes through one address, so there are many to few destinations.
    ("ipv4/ip_local_port_range", &["20000 65535"]),
    // With time stamps, which both ends use here, a port can be used again after a second.
    ("ipv4/tcp_tw_reuse", &["1"]),
];

const CONGESTION_CONTROL: &str = "ipv4/tcp_congestion_control";

/// What must be set before the interface comes up: no router to solicit, no addresses to make.
pub(super) fn before_up(interface: &str) {
    write(&format!("ipv6/conf/{interface}/accept_ra"), "0");
    write(&format!("ipv6/conf/{interface}/router_solicitations"), "0");
}

/// Applies [`SETTINGS`], and takes bbr away: on a path without a bottleneck it sends at less than
/// half the speed of the others (28 against 69 Gbit/s, measured on loopback).
pub(super) fn apply() {
    for (name, values) in SETTINGS {
        for value in *values {
            if write(name, value) {
                break;
            }
        }
    }
    let current = fs::read_to_string(path(CONGESTION_CONTROL)).unwrap_or_default();
    if current.starts_with("bbr") && !write(CONGESTION_CONTROL, "cubic") {
        write(CONGESTION_CONTROL, "reno");
    }
}

fn write(name: &str, value: &str) -> bool {
    fs::write(path(name), value).is_ok()
}

fn path(name: &str) -> String {
    format!("/proc/sys/net/{name}")
}
