//! The flags' part of `crate::fuzzing`.

use std::path::Path;

use super::{mount_flag, ports, size, volume_flag};

/// A value of each flag that has a grammar of its own. What a mount's flag accepts has a clean,
/// absolute destination.
pub fn flags(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let here = Path::new("/work");
    for mount in [mount_flag::parse(text, here), volume_flag::parse(text, here)].into_iter().flatten() {
        assert!(mount.destination.is_absolute(), "{}", mount.destination.display());
        let is_clean =
            mount.destination.components().all(|part| !matches!(part, std::path::Component::ParentDir));
        assert!(is_clean && mount.destination != Path::new("/"), "{}", mount.destination.display());
    }
    for port in ports::parse_publish(text).into_iter().flatten() {
        assert_ne!(port.container_port, 0);
    }
    let _ = ports::parse_expose(text);
    let _ = size::parse_bytes(text);
    let _ = size::parse_cpus(text);
    let _ = volume_flag::destination(text);
}
