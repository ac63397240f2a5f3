//! Naming and removing images, with Docker's rules of what may go.

use std::collections::HashSet;

use super::error::{ImageError, Result};
use super::find::{find, found};
use super::reference::Reference;
use super::told::{tell, tell_tag};
use crate::id::Digest;
use crate::store::{Catalog, NameEntry, Store, StoreError, chain_id};

/// A container that was made from an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerUse {
    /// The container's id, shortened.
    pub container: String,
    /// The image's id.
    pub image: Digest,
    /// Whether it runs at the moment.
    pub is_running: bool,
}

/// What a removal did, in the order in which Docker tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removal {
    /// The image that lost a name or went, if there was one.
    pub image: Option<Digest>,
    /// Names that are gone, as a person writes them.
    pub untagged: Vec<String>,
    /// Images and chain ids of layers that are gone.
    pub deleted: Vec<Digest>,
    /// The images among them.
    pub gone: Vec<Digest>,
}

/// What a prune did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// The images that went.
    pub removals: Vec<Removal>,
    /// Bytes of disk that are free again.
    pub reclaimed_bytes: u64,
}

/// Gives an image another name: `hostel tag`.
///
/// # Errors
/// There is no such image; the name is none, or has a digest.
pub fn tag(store: &Store, source: &str, target: &str) -> Result<()> {
    let target: Reference = target.parse()?;
    if target.digest().is_some() {
        return Err(ImageError::TagWithDigest);
    }
    let target = target.with_default_tag();
    let _lock = store.lock_content()?;
    let name = target.clone();
    // A name may be another store's: what it stands for is this store's from now on, the name is not.
    let known = store.catalog()?;
    let (image, named) = found(&known, source)?;
    let several = named.and_then(|named| named.several.clone());
    let members = several.iter().flat_map(|several| &several.members).map(|member| &member.id);
    std::iter::once(&image).chain(members).try_for_each(|image| store.adopt(image))?;
    let id = image.clone();
    store.update_catalog(|catalog| {
        if !catalog.images.contains_key(&image) {
            return Err(ImageError::NotFound(source.to_owned()));
        }
        let digest = catalog.names_of(&image).find_map(|(_, entry)| entry.digest.clone());
        let of_same_repository =
            |name: &str| name.parse::<Reference>().is_ok_and(|name| name.repository() == target.repository());
        // A digest belongs to the repository that it came from.
        let digest = digest.filter(|_| catalog.names_of(&image).any(|(name, _)| of_same_repository(name)));
        catalog.names.insert(target.to_string(), NameEntry { image, digest, several });
        Ok(())
    })?;
    tell_tag(store, &id, &name);
    Ok(())
}

/// Removes a name or an image: `hostel rmi`. What it needed on the disk goes too, now or, if other
/// commands are at work, with the next removal.
///
/// # Errors
/// There is no such image; it is in use, or has several names, and `force` is not given.
pub fn remove(store: &Store, text: &str, force: bool, uses: &[ContainerUse]) -> Result<Removal> {
    let removal = store.update_catalog(|catalog| remove_from(catalog, text, force, uses));
    let removal = removal.map_err(|error| match error {
        ImageError::NotFound(_) => in_other_store(store, text).unwrap_or(error),
        error => error,
    })?;
    tell_removal(store, &removal);
    if !removal.deleted.is_empty() {
        store.collect()?;
    }
    Ok(removal)
}

/// Tells of each name and of the image itself, which is still on the disk.
fn tell_removal(store: &Store, removal: &Removal) {
    let Some(id) = &removal.image else { return };
    removal.untagged.iter().for_each(|_| tell(store, "untag", id));
    removal.gone.iter().for_each(|id| tell(store, "delete", id));
}

/// The error for an image that only an additional store has.
fn in_other_store(store: &Store, text: &str) -> Option<ImageError> {
    let catalog = store.catalog().ok()?;
    let root = catalog.read_only.get(&find(&catalog, text).ok()?)?;
    Some(ImageError::ReadOnly { image: text.to_owned(), store: root.clone() })
}

fn remove_from(catalog: &mut Catalog, text: &str, force: bool, uses: &[ContainerUse]) -> Result<Removal> {
    let id = find(catalog, text)?;
    let names: Vec<String> = catalog.names_of(&id).map(|(name, _)| name.to_owned()).collect();
    let is_id = id.hex().starts_with(text.strip_prefix("sha256:").unwrap_or(text));
    // Those of the other platforms go with the name, so who uses them counts, too.
    let together: HashSet<Digest> = std::iter::once(id.clone())
        .chain(catalog.names_of(&id).flat_map(|(_, named)| named.images().cloned()))
        .collect();
    let users = || uses.iter().filter(|container| together.contains(&container.image));
    if is_id {
        let conflict = |how: &str, why: String| {
            Err(ImageError::Conflict(format!("delete {} ({how}) - {why}", id.short())))
        };
        if let Some(user) = users().find(|user| user.is_running) {
            return conflict(
                "cannot be forced",
                format!("image is being used by running container {}", user.container),
            );
        }
        if !force && names.len() > 1 {
            return conflict("must be forced", "image is referenced in multiple repositories".to_owned());
        }
        if let Some(user) = users().next().filter(|_| !force) {
            return conflict(
                "must be forced",
                format!("image is being used by stopped container {}", user.container),
            );
        }
        if let Some((name, _)) = catalog.names_with(&id).find(|(_, named)| named.image != id && !force) {
            return conflict(
                "must be forced",
                format!("image is one of the platforms of {}", familiar(name)),
            );
        }
        leave_others(catalog, &id);
        return Ok(delete(catalog, &id, &names, uses));
    }
    let reference = text.parse::<Reference>()?.with_default_tag();
    if names.len() == 1
        && let Some(user) = users().next().filter(|_| !force)
    {
        return Err(ImageError::Conflict(format!(
            "remove repository reference {text:?} (must force) - container {} is using its referenced image {}",
            user.container,
            id.short()
        )));
    }
    let is_used = users().any(|user| user.is_running);
    if reference.digest().is_some() {
        return Ok(remove_digest(catalog, id, &names, &reference, is_used));
    }
    let names = with_digests(&names, &reference);
    let all = catalog.names_of(&id).count();
    if names.len() == all && !is_used {
        return Ok(delete(catalog, &id, &names, uses));
    }
    let others: Vec<Digest> = others_of(catalog, &names);
    let untagged = untag(catalog, &names);
    let mut removal = Removal { image: Some(id), untagged, ..Removal::default() };
    delete_unnamed(catalog, &others, uses, &mut removal);
    Ok(removal)
}

/// The images that names stand for beside their own: those of other platforms.
fn others_of(catalog: &Catalog, names: &[String]) -> Vec<Digest> {
    let entries = names.iter().filter_map(|name| catalog.names.get(name));
    entries.flat_map(|named| named.images().filter(|id| **id != named.image).cloned()).collect()
}

/// Deletes those of images that no name stands for any more and no container was made from.
fn delete_unnamed(catalog: &mut Catalog, images: &[Digest], uses: &[ContainerUse], removal: &mut Removal) {
    for id in images {
        let is_used = uses.iter().any(|container| container.image == *id);
        if !is_used && catalog.names_with(id).next().is_none() {
            delete_one(catalog, id, removal);
        }
    }
}

/// Takes an image away from names that stand for it and for others; one that is left alone is a name's only image.
fn leave_others(catalog: &mut Catalog, id: &Digest) {
    for named in catalog.names.values_mut().filter(|named| named.image != *id) {
        let Some(several) = &mut named.several else { continue };
        several.members.retain(|member| member.id != *id);
        if several.members.len() < 2 {
            named.several = None;
        }
    }
}

/// Takes names away. The digest that an image came with goes with the last name of its repository,
/// and is told as a name of its own, as Docker does.
fn untag(catalog: &mut Catalog, names: &[String]) -> Vec<String> {
    let mut untagged = Vec::new();
    let mut digests: Vec<Reference> = Vec::new();
    for name in names {
        let removed = catalog.names.remove(name);
        untagged.push(familiar(name));
        if let (Some(digest), Ok(name)) = (removed.and_then(|entry| entry.digest), name.parse::<Reference>())
        {
            digests.push(name.with_digest(digest));
        }
    }
    digests.sort();
    digests.dedup();
    let is_gone = |reference: &&Reference| super::find::by_name(catalog, reference).is_none();
    // An image that was pulled by digest has that as its name.
    let gone: Vec<String> = digests.iter().filter(is_gone).map(Reference::familiar).collect();
    untagged.extend(gone.into_iter().filter(|name| !names.iter().any(|known| familiar(known) == *name)));
    untagged
}

/// A name, and the digests that its repository has besides, if this is the last tag of it (moby does the same).
fn with_digests(names: &[String], reference: &Reference) -> Vec<String> {
    let whole = reference.to_string();
    let others: Vec<Reference> = names
        .iter()
        .filter(|name| **name != whole)
        .filter_map(|name| name.parse().ok())
        .filter(|name: &Reference| name.repository() == reference.repository())
        .collect();
    let is_last_tag = others.iter().all(|name| name.tag().is_none());
    std::iter::once(whole).chain(others.iter().filter(|_| is_last_tag).map(ToString::to_string)).collect()
}

/// Takes the digest of a repository away. As in Docker, tags stay; without one the image goes.
fn remove_digest(
    catalog: &mut Catalog,
    id: Digest,
    names: &[String],
    reference: &Reference,
    is_used: bool,
) -> Removal {
    for name in names {
        let Ok(parsed) = name.parse::<Reference>() else { continue };
        if parsed.repository() != reference.repository() {
            continue;
        }
        if parsed.tag().is_none() {
            catalog.names.remove(name);
        } else if let Some(entry) = catalog.names.get_mut(name) {
            entry.digest = None;
        }
    }
    let untagged = vec![reference.familiar()];
    if is_used || catalog.names_with(&id).next().is_some() {
        return Removal { image: Some(id), untagged, ..Removal::default() };
    }
    Removal { untagged, ..delete(catalog, &id, &[], &[]) }
}

fn familiar(name: &str) -> String {
    name.parse::<Reference>().map_or_else(|_| name.to_owned(), |name| name.familiar())
}

/// Takes an image out of the catalog, with its names and what they alone stood for.
fn delete(catalog: &mut Catalog, id: &Digest, names: &[String], uses: &[ContainerUse]) -> Removal {
    let others = others_of(catalog, names);
    let untagged = untag(catalog, names);
    let mut removal = Removal { image: Some(id.clone()), untagged, ..Removal::default() };
    delete_one(catalog, id, &mut removal);
    delete_unnamed(catalog, &others, uses, &mut removal);
    removal
}

/// Takes one image out of the catalog and says which trees no other image has.
fn delete_one(catalog: &mut Catalog, id: &Digest, removal: &mut Removal) {
    if let Some(entry) = catalog.images.remove(id) {
        removal.deleted.push(id.clone());
        removal.gone.push(id.clone());
        let others: HashSet<Digest> =
            catalog.images.values().flat_map(|entry| chain_ids(&entry.layers)).collect();
        removal
            .deleted
            .extend(chain_ids(&entry.layers).into_iter().rev().filter(|chain| !others.contains(chain)));
    }
}

/// The chain id of each of an image's trees, lowest first.
fn chain_ids(layers: &[Digest]) -> Vec<Digest> {
    let mut chain: Option<Digest> = None;
    let next = |layer: &Digest| {
        let link: Vec<Digest> = chain.take().into_iter().chain([layer.clone()]).collect();
        chain = chain_id(&link);
        chain.clone()
    };
    layers.iter().filter_map(next).collect()
}

/// Removes images that have no name (or, with `all`, that no container uses) and that `keep` does
/// not want kept: `hostel image prune`.
///
/// # Errors
/// The store fails.
pub fn prune(
    store: &Store,
    all: bool,
    uses: &[ContainerUse],
    keep: impl Fn(&Digest, &crate::store::ImageEntry) -> bool,
) -> Result<Pruned> {
    let used: HashSet<&Digest> = uses.iter().map(|container| &container.image).collect();
    let removals: Vec<Removal> = store.update_catalog(|catalog| {
        let stays = catalog.images.iter().filter(|(id, entry)| used.contains(*id) || keep(id, entry));
        let stays = together(catalog, stays.map(|(id, _)| id.clone()).collect());
        let unused: Vec<Digest> = catalog
            .images
            .keys()
            .filter(|id| !stays.contains(*id) && (all || catalog.names_with(id).next().is_none()))
            .cloned()
            .collect();
        let mut removals = Vec::new();
        for id in &unused {
            // It may have gone with that of another platform.
            if catalog.images.contains_key(id) {
                let names: Vec<String> = catalog.names_of(id).map(|(name, _)| name.to_owned()).collect();
                leave_others(catalog, id);
                removals.push(delete(catalog, id, &names, uses));
            }
        }
        Ok::<_, StoreError>(removals)
    })?;
    removals.iter().for_each(|removal| tell_removal(store, removal));
    let collected = store.collect()?.unwrap_or_default();
    Ok(Pruned { removals, reclaimed_bytes: collected.bytes })
}

/// Images, and those that a name stands for together with one of them.
fn together(catalog: &Catalog, mut images: HashSet<Digest>) -> HashSet<Digest> {
    loop {
        let before = images.len();
        for named in catalog.names.values().filter(|named| named.several.is_some()) {
            if named.images().any(|id| images.contains(id)) {
                images.extend(named.images().cloned());
            }
        }
        if images.len() == before {
            return images;
        }
    }
}
