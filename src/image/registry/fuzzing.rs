//! The registries' part of `crate::fuzzing`.

use std::path::Path;

use super::settings::Settings;

/// A registries.conf and, after a NUL, a typed name. Whatever is accepted leads every name to hosts.
pub fn registries(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (file, name) = text.split_once('\0').unwrap_or((text, "debian"));
    let mut settings = Settings::default();
    if settings.add(Path::new("/registries.conf"), file).is_err() {
        return;
    }
    for reference in settings.candidates(name).into_iter().flatten() {
        let Ok(places) = settings.pull_places(&reference) else {
            assert!(settings.push_place(&reference).is_err(), "blocked for pulls is blocked for pushes");
            continue;
        };
        assert_eq!(places.iter().filter(|place| !place.is_mirror).count(), 1, "{places:?}");
        assert_eq!(places.last(), settings.push_place(&reference).ok().as_ref());
        for place in &places {
            assert!(!place.host.is_empty() && !place.host.contains('/'), "{place:?}");
            assert!(!place.repository.is_empty(), "{place:?}");
            let _ = settings.is_insecure(&place.host);
        }
    }
}
