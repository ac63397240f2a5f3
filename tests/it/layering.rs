//! The root crate's modules may use only those below them; the leaves know nothing of each other.
//!
//! ARCHITECTURE.md draws the order; this reads the sources and holds it.

use std::fs;
use std::path::{Path, PathBuf};

/// From the top; each may use those after it.
const ORDER: [&str; 9] = ["cli", "build", "supervisor", "sandbox", "plan", "image", "store", "sys", "id"];

#[test]
fn modules_use_only_those_below_them() {
    let mut wrong = Vec::new();
    for (level, module) in ORDER.iter().enumerate() {
        for file in sources(&source_dir().join("src").join(module)) {
            let text = fs::read_to_string(&file).unwrap();
            for above in ORDER.iter().take(level) {
                if code_lines(&text).any(|line| line.contains(&format!("crate::{above}::"))) {
                    wrong.push(format!("{} uses {above}", file.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "against ARCHITECTURE.md's order: {wrong:#?}");
}

#[test]
fn borrowed_types_stay_where_they_belong() {
    // A crate's types, and the only directories whose code may name them.
    let homes: [(&str, &[&str]); 3] = [
        ("clap", &["src/cli"]),
        ("smoltcp", &["net/src", "net/tests"]),
        ("hostel", &["src/main.rs", "tests"]),
    ];
    let mut wrong = Vec::new();
    for (name, allowed) in homes {
        for top in ["src", "fuse-overlay", "net", "tests"] {
            for file in sources(&source_dir().join(top)) {
                let relative = file.strip_prefix(source_dir()).unwrap().to_owned();
                if allowed.iter().any(|home| relative.starts_with(home)) {
                    continue;
                }
                let text = fs::read_to_string(&file).unwrap();
                let uses = [format!("use {name}::"), format!(" {name}::"), format!("({name}::")];
                if code_lines(&text).any(|line| uses.iter().any(|using| line.contains(using))) {
                    wrong.push(format!("{} uses {name}", relative.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn unsafe_code_is_in_sys_modules() {
    let mut wrong = Vec::new();
    for top in ["src", "fuse-overlay/src", "net/src", "tests"] {
        for file in sources(&source_dir().join(top)) {
            let in_sys =
                file.components().any(|part| part.as_os_str() == "sys" || part.as_os_str() == "sys.rs");
            let text = fs::read_to_string(&file).unwrap();
            let marks = ["unsafe {", "unsafe fn", "unsafe impl"].map(|mark| format!(" {mark}"));
            if !in_sys
                && code_lines(&text).any(|line| marks.iter().any(|mark| format!(" {line}").contains(mark)))
            {
                wrong.push(file);
            }
        }
    }
    assert!(wrong.is_empty(), "unsafe outside `sys`: {wrong:#?}");
}

/// The workspace as it is at run time: nextest may have moved it since the build.
pub(crate) fn source_dir() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

/// `place` itself, or every Rust file below it; build output excepted.
fn sources(place: &Path) -> Vec<PathBuf> {
    let file = place.with_extension("rs");
    let mut found = if file.is_file() { vec![file] } else { Vec::new() };
    for entry in fs::read_dir(place).into_iter().flatten().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() && !path.ends_with("target") {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found.dedup();
    found
}

/// Lines that are neither comments nor string tables of this very file.
fn code_lines(text: &str) -> impl Iterator<Item = &str> {
    let own = text.contains("The root crate's modules may use only those below them");
    text.lines().map(str::trim).filter(move |line| !own && !line.starts_with("//"))
}
