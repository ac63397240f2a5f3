//! What the fuzz targets in `tests/fuzz` call, one function a target.
//!
//! Each takes any bytes and checks what must hold whatever they are; a panic is a finding. The
//! functions are here because the parsers are private. An ordinary test runs them over the
//! committed corpora, so that a mended finding stays mended.

use std::path::Path;

use crate::cli::format::Template;
use crate::image::policy::Policy;
use crate::image::{Reference, Source};
use crate::plan::dockerfile::{self, Kind, check, expand, ignore};

pub use crate::cli::run_args::fuzzing::flags;
pub use crate::image::fuzzing::{archive, archive_json, layout_json};
pub use crate::image::registry::fuzzing::registries;

/// A name, which must read the same when it is written out, whole or as a person writes it.
pub fn reference(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(source) = Source::parse(text)
        && !matches!(source, Source::Host | Source::Rootfs { .. })
    {
        assert_eq!(Source::parse(&source.to_string()).ok(), Some(source));
    }
    let Ok(reference) = text.parse::<Reference>() else { return };
    assert_eq!(reference.to_string().parse::<Reference>().as_ref(), Ok(&reference));
    assert_eq!(
        reference.familiar().parse::<Reference>().as_ref(),
        Ok(&reference),
        "{}",
        reference.familiar()
    );
    let tagged = reference.clone().with_default_tag();
    assert!(tagged.tag().is_some() || tagged.digest().is_some());
    // A policy can be asked about any name.
    if let Ok(policy) = Policy::parse("/p".into(), br#"{"default": [{"type": "insecureAcceptAnything"}]}"#) {
        assert!(policy.check_registry(&reference).is_ok());
    }
}

/// A signature policy; one that is accepted gives an answer to every question.
pub fn policy(bytes: &[u8]) {
    let Ok(policy) = Policy::parse("/p".into(), bytes) else { return };
    for name in ["a", "docker.io/library/a:1", "x.example.com:5000/a/b"] {
        if let Ok(name) = name.parse() {
            let _ = policy.check_registry(&name);
        }
    }
    if let Ok(source) = Source::parse("oci:/a/b:c") {
        let _ = policy.check_source(&source, "oci:/a/b:c");
    }
}

/// A configuration file.
pub fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    crate::cli::config::fuzz(Path::new("/config.toml"), text);
}

/// A format, rendered for an object and for a table's heading.
pub fn template(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(template) = Template::parse(text) else { return };
    let data = serde_json::json!({
        "ID": "abc", "Size": 12, "Names": ["a", "ä"], "Config": {"Labels": {"k": "v"}, "Cmd": null}, "Ratio": 1.5,
    });
    let _ = template.render(&data);
}

/// A Dockerfile: what is read has its lines, and can be checked and shown.
pub fn dockerfile(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let file = match dockerfile::parse(text) {
        Ok(file) => file,
        Err(error) => {
            let _ = dockerfile::picture("Dockerfile", text, error.place);
            return;
        }
    };
    let lines = text.split('\n').count();
    for warning in check::warnings(&file, &ignore::Ignore::default()) {
        assert!(warning.place.first <= warning.place.last && warning.place.last <= lines);
    }
    let variable = |name: &str| (name.len() > 1).then(|| name.repeat(2));
    let scope = expand::Scope { variable: &variable, escape: file.directives.escape };
    for instruction in file.stages.iter().flat_map(|stage| &stage.instructions) {
        let place = instruction.place;
        assert!(place.first >= 1 && place.first <= place.last && place.last <= lines, "{place:?}");
        let _ = dockerfile::picture("Dockerfile", text, place);
        let _ = expand::word(&instruction.text, scope);
        let _ = expand::words(&instruction.text, scope);
        if let Kind::Run(run) = &instruction.kind {
            for document in &run.documents {
                let _ = expand::document(&document.content, scope);
            }
        }
    }
}

/// An ignore file and a path, parted by a NUL: what is left out is so whichever way it is asked.
pub fn dockerignore(bytes: &[u8]) {
    let mut parts = bytes.splitn(2, |byte| *byte == 0);
    let (Some(text), path) = (parts.next(), parts.next().unwrap_or(b"a/b")) else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let Ok(ignore) = ignore::Ignore::parse(text) else { return };
    let path = &path[..path.len().min(256)];
    let whole = ignore.matches(path, None);
    if ignore.is_empty() {
        assert!(!whole.excluded());
    }
    let below = [path, b"/x"].concat();
    let _ = ignore.matches(&below, Some(&whole)).excluded();
    let _ = ignore.may_keep_below(path);
}

#[cfg(test)]
#[path = "../tests/fuzz/replay.rs"]
mod replay;

#[cfg(test)]
mod tests {
    #[test]
    fn corpora_pass() {
        super::replay::replay(
            ".",
            "tests/fuzz/corpus",
            &[
                ("archive", super::archive),
                ("archive_json", super::archive_json),
                ("config", super::config),
                ("dockerfile", super::dockerfile),
                ("dockerignore", super::dockerignore),
                ("flags", super::flags),
                ("layout_json", super::layout_json),
                ("policy", super::policy),
                ("reference", super::reference),
                ("registries", super::registries),
                ("template", super::template),
            ],
        );
    }
}
