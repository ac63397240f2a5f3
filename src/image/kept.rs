//! An image of a layout as it came: its manifest and its compressed layers, kept beside the packed ones,
//! so that it keeps its digest when it goes on to a registry or another layout.

use std::io::Read as _;

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::archive::Files;
use super::error::{ImageError, Result};
use super::handed_over::Candidate;
use super::ingest::{CHUNK_BYTES, check_digest};
use crate::id::Digest;
use crate::store::{ImageEntry, OCI_MANIFEST, Settings, Store};

/// Keeps what an image came as, unless the settings say otherwise, it came without a manifest, or it came
/// as a stream, whose layers have gone by. The caller holds the content lock and has stored the layers.
pub(super) fn keep(
    store: &Store,
    files: &Files,
    candidate: &Candidate,
    entry: &mut ImageEntry,
) -> Result<()> {
    let Some((digest, bytes)) = &candidate.manifest else { return Ok(()) };
    if entry.original.is_some() || !Settings::current().keep_compressed || matches!(files, Files::Streamed(_))
    {
        return Ok(());
    }
    for layer in &candidate.layers {
        let Some(wanted) = &layer.digest else { return Ok(()) };
        // An uncompressed layer is its own blob.
        if store.open_blob(wanted)?.is_none() {
            copy(store, files, &layer.member, wanted)?;
        }
    }
    store.put_blob(bytes)?;
    entry.original = Some(digest.clone());
    let manifest: Value = serde_json::from_slice(bytes).unwrap_or_default();
    if manifest["mediaType"].as_str().is_none_or(|kind| kind == OCI_MANIFEST) {
        entry.manifest = digest.clone();
        entry.manifest_bytes = bytes.len() as u64;
    }
    Ok(())
}

fn copy(store: &Store, files: &Files, member: &str, wanted: &Digest) -> Result<()> {
    let failed = |source| ImageError::Read { path: files.path().join(member), source };
    let missing = || ImageError::Missing { path: files.path().to_owned(), member: member.to_owned() };
    let (mut reader, _) = files.open(member)?.ok_or_else(missing)?;
    let (mut blob, mut hash, mut chunk) = (store.new_blob()?, Sha256::new(), vec![0; CHUNK_BYTES]);
    loop {
        match reader.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => {
                hash.update(&chunk[..count]);
                blob.write(&chunk[..count])?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
    check_digest(member, Some(wanted), &Digest::from_bytes(&hash.finalize().into()))?;
    Ok(blob.finish(wanted)?)
}
