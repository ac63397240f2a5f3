//! The image module's part of `crate::fuzzing`.

use std::fs::{File, OpenOptions};
use std::io::{Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::archive::Files;
use super::compression::Decoder;
use super::handed_over::{Candidate, MAX_LAYERS, Wanted, candidates};
use crate::id::Digest;
use crate::store::Store;

/// Bytes as an image archive: its members and what they say of images. Compressed ones are left to the
/// targets of what uncompresses them, as they would be written to a store.
pub fn archive(bytes: &[u8]) {
    if !Decoder::is_compressed(bytes) {
        open(bytes);
    }
}

/// A manifest.json and a config, separated by a NUL, in an archive that is well-formed otherwise.
pub fn archive_json(bytes: &[u8]) {
    let mut parts = bytes.splitn(2, |byte| *byte == 0);
    let (manifest, config) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let name = format!("{}.json", digest(config).hex());
    let text = String::from_utf8_lossy(manifest).replace("CONFIG", &name);
    open(&tar(&[("manifest.json", text.as_bytes()), (&name, config)]));
}

/// An index.json, a manifest and a config, separated by NULs; DIGEST and SIZE in one stand for the
/// next one's, so that the three hold together.
pub fn layout_json(bytes: &[u8]) {
    let mut parts = bytes.splitn(3, |byte| *byte == 0);
    let mut next = || String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    let (index, manifest, config) = (next(), next(), next());
    let filled = |text: &str, of: &str| {
        text.replace("DIGEST", digest(of.as_bytes()).as_str()).replace("SIZE", &of.len().to_string())
    };
    let manifest = filled(&manifest, &config);
    let index = filled(&index, &manifest);
    let blob = |text: &str| format!("blobs/sha256/{}", digest(text.as_bytes()).hex());
    open(&tar(&[
        ("index.json", index.as_bytes()),
        (&blob(&manifest), manifest.as_bytes()),
        (&blob(&config), config.as_bytes()),
    ]));
}

fn digest(bytes: &[u8]) -> Digest {
    Digest::from_bytes(&Sha256::digest(bytes).into())
}

fn tar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_cksum();
        // Writing to memory cannot fail, and the names are short.
        let _ = builder.append_data(&mut header, name, *content);
    }
    builder.into_inner().unwrap_or_default()
}

/// Whatever is accepted as an image keeps what the rest of the program relies on.
fn open(bytes: &[u8]) {
    let Some(file) = unnamed(bytes) else { return };
    // A plain archive is read where it is: the store is not touched.
    let store = Store::nowhere();
    let Ok(files) = Files::archive(&store, file, Path::new("x.tar")) else { return };
    for wanted in [Wanted::All, Wanted::One(None), Wanted::One(Some("a"))] {
        for candidate in candidates(&files, wanted, None).into_iter().flatten() {
            check(&candidate);
        }
    }
}

fn check(candidate: &Candidate) {
    assert_eq!(candidate.id, digest(&candidate.config));
    assert_eq!(candidate.layers.len(), candidate.diff_ids.len());
    assert!(candidate.layers.len() <= MAX_LAYERS);
    for name in &candidate.names {
        assert!(name.tag().is_some() || name.digest().is_some());
    }
}

fn unnamed(bytes: &[u8]) -> Option<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_TMPFILE).mode(0o600);
    let mut file = options.open(std::env::temp_dir()).ok()?;
    file.write_all(bytes).ok()?;
    file.rewind().ok()?;
    Some(file)
}
