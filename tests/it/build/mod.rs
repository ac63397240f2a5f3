//! `build`: real Dockerfiles on the busybox and Debian images, without a network beyond this machine's.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use crate::harness::Hostel;

mod cache;
mod copying;
mod errors;
mod exported;
mod git;
mod language;
mod platforms;
mod remote;
mod running;
mod table;

/// A context with these files; a name that ends in a slash is a directory.
fn context(h: &Hostel, name: &str, files: &[(&str, &str)]) -> PathBuf {
    let dir = h.scratch(name);
    for (path, content) in files {
        let place = dir.join(path);
        if path.ends_with('/') {
            fs::create_dir_all(&place).unwrap();
        } else {
            fs::create_dir_all(place.parent().unwrap()).unwrap();
            fs::write(&place, content).unwrap();
        }
    }
    dir
}

/// Builds a context under a name and gives what was shown.
fn build(h: &Hostel, tag: &str, dir: &std::path::Path, flags: &str) -> String {
    let done = h.run(&format!("build -t {tag} {flags} {}", dir.display()));
    done.ok();
    done.stderr
}

/// Builds a Dockerfile alone, without other files.
fn build_text(h: &Hostel, tag: &str, dockerfile: &str) -> String {
    let dir = context(h, &format!("c-{}", tag.replace([':', '/'], "-")), &[("Dockerfile", dockerfile)]);
    build(h, tag, &dir, "")
}

fn config(h: &Hostel, image: &str) -> Value {
    let text = h.run(&format!("image inspect {image}")).ok().out();
    let all: Value = serde_json::from_str(&text).unwrap();
    all[0].clone()
}

fn id(h: &Hostel, image: &str) -> String {
    config(h, image)["Id"].as_str().unwrap().to_owned()
}
