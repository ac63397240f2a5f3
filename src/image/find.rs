//! Which stored image a text names.

use super::error::{ImageError, Result};
use super::platform::Platform;
use super::reference::Reference;
use crate::id::Digest;
use crate::store::{Catalog, NameEntry, Store};

/// Finds an image as Docker does: by whole id, by name, by the digest that it came with, by an
/// unambiguous beginning of its id, in this order.
///
/// # Errors
/// The text is no name, there is no such image, the id's beginning fits several.
pub fn find(catalog: &Catalog, text: &str) -> Result<Digest> {
    found(catalog, text).map(|(id, _)| id)
}

/// As [`find`], for a platform if one is given: of a name that stands for several the image for it.
///
/// # Errors
/// As [`find`]; what there is is for another platform; a config cannot be read.
pub fn find_for(store: &Store, catalog: &Catalog, text: &str, platform: Option<&Platform>) -> Result<Digest> {
    let (id, named) = found(catalog, text)?;
    let Some(platform) = platform else { return Ok(id) };
    let of_image = |id: &Digest| super::base_config(store, id).map(|config| Platform::of_config(&config));
    let wrong = match super::check_platform(store, &id, text, Some(platform)) {
        Ok(()) => return Ok(id),
        Err(wrong) => wrong,
    };
    let members: Vec<&Digest> = named.iter().flat_map(|named| named.images()).collect();
    let platforms = members.iter().map(|id| of_image(id).map(Some)).collect::<Result<Vec<_>>>()?;
    let chosen = Platform::choose(Some(platform), &platforms).and_then(|number| members.get(number));
    chosen.map(|id| (*id).clone()).ok_or(wrong)
}

/// The image that a text names, and what its name stands for besides.
pub(super) fn found<'a>(catalog: &'a Catalog, text: &str) -> Result<(Digest, Option<&'a NameEntry>)> {
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    if let Ok(id) = format!("sha256:{hex}").parse::<Digest>() {
        return if catalog.images.contains_key(&id) {
            Ok((id, None))
        } else {
            Err(ImageError::NotFound(text.to_owned()))
        };
    }
    let is_prefix = !hex.is_empty() && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let reference = match text.parse::<Reference>() {
        Ok(reference) => reference.with_default_tag(),
        Err(error) if !is_prefix => return Err(error.into()),
        Err(_) => return by_prefix(catalog, hex, text.to_owned()).map(|id| (id, None)),
    };
    match named(catalog, &reference).or_else(|| by_other_name(catalog, text)) {
        Some(entry) => Ok((entry.image.clone(), Some(entry))),
        None if is_prefix => by_prefix(catalog, hex, reference.familiar()).map(|id| (id, None)),
        None => Err(ImageError::NotFound(reference.familiar())),
    }
}

/// The image that a name stands for. A digest is that of the manifest an image of this repository
/// came with, or its id.
pub(super) fn by_name(catalog: &Catalog, reference: &Reference) -> Option<Digest> {
    named(catalog, reference).map(|entry| entry.image.clone())
}

/// What a name stands for.
pub(super) fn named<'a>(catalog: &'a Catalog, reference: &Reference) -> Option<&'a NameEntry> {
    let Some(digest) = reference.digest() else {
        return catalog.names.get(&reference.to_string());
    };
    let repository = reference.repository();
    let of_repository = catalog
        .names
        .iter()
        .filter(|(name, _)| name.parse::<Reference>().is_ok_and(|name| name.repository() == repository));
    let mut fitting =
        of_repository.filter(|(_, entry)| entry.digest.as_ref() == Some(digest) || entry.image == *digest);
    fitting.next().map(|(_, entry)| entry)
}

/// The image of a short name that registries.conf makes another registry's. A file that cannot be read
/// is told by the pull that needs it.
fn by_other_name<'a>(catalog: &'a Catalog, text: &str) -> Option<&'a NameEntry> {
    let candidates = super::registry::candidates(text).ok()?;
    candidates.into_iter().find_map(|candidate| named(catalog, &candidate.with_default_tag()))
}

fn by_prefix(catalog: &Catalog, hex: &str, name: String) -> Result<Digest> {
    match catalog.by_prefix(hex)[..] {
        [id] => Ok(id.clone()),
        [] => Err(ImageError::NotFound(name)),
        _ => Err(ImageError::Ambiguous(hex.to_owned())),
    }
}
