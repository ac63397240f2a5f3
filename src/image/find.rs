//! Which stored image a text names.

use super::error::{ImageError, Result};
use super::reference::Reference;
use crate::id::Digest;
use crate::store::Catalog;

/// Finds an image as Docker does: by whole id, by name, by the digest that it came with, by an
/// unambiguous beginning of its id, in this order.
///
/// # Errors
/// The text is no name, there is no such image, the id's beginning fits several.
pub fn find(catalog: &Catalog, text: &str) -> Result<Digest> {
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    if let Ok(id) = format!("sha256:{hex}").parse::<Digest>() {
        return if catalog.images.contains_key(&id) {
            Ok(id)
        } else {
            Err(ImageError::NotFound(text.to_owned()))
        };
    }
    let is_prefix = !hex.is_empty() && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let reference = match text.parse::<Reference>() {
        Ok(reference) => reference.with_default_tag(),
        Err(error) if !is_prefix => return Err(error.into()),
        Err(_) => return by_prefix(catalog, hex, text.to_owned()),
    };
    match by_name(catalog, &reference) {
        Some(id) => Ok(id),
        None => match by_other_name(catalog, text) {
            Some(id) => Ok(id),
            None if is_prefix => by_prefix(catalog, hex, reference.familiar()),
            None => Err(ImageError::NotFound(reference.familiar())),
        },
    }
}

/// The image that a name stands for. A digest is that of the manifest an image of this repository
/// came with, or its id.
pub(super) fn by_name(catalog: &Catalog, reference: &Reference) -> Option<Digest> {
    let Some(digest) = reference.digest() else {
        return catalog.names.get(&reference.to_string()).map(|entry| entry.image.clone());
    };
    let repository = reference.repository();
    let of_repository = catalog
        .names
        .iter()
        .filter(|(name, _)| name.parse::<Reference>().is_ok_and(|name| name.repository() == repository));
    let mut fitting =
        of_repository.filter(|(_, entry)| entry.digest.as_ref() == Some(digest) || entry.image == *digest);
    fitting.next().map(|(_, entry)| entry.image.clone())
}

/// The image of a short name that registries.conf makes another registry's. A file that cannot be read
/// is told by the pull that needs it.
fn by_other_name(catalog: &Catalog, text: &str) -> Option<Digest> {
    let candidates = super::registry::candidates(text).ok()?;
    candidates.into_iter().find_map(|candidate| by_name(catalog, &candidate.with_default_tag()))
}

fn by_prefix(catalog: &Catalog, hex: &str, name: String) -> Result<Digest> {
    match catalog.by_prefix(hex)[..] {
        [id] => Ok(id.clone()),
        [] => Err(ImageError::NotFound(name)),
        _ => Err(ImageError::Ambiguous(hex.to_owned())),
    }
}
