//! What the journal is told of images, in Docker's words (moby, `LogImageEvent`): the actor is what was
//! named for a pull and a push, and the image's id for everything else; `name` and the image's labels
//! are its attributes.

use std::collections::BTreeMap;

use super::reference::Reference;
use crate::id::Digest;
use crate::store::Store;
use crate::store::events::Events;

/// Tells of something that happened to an image, by its id: `delete`, `load`, `save`, `import`, `untag`.
/// The labels are those that its config has while it is there.
pub fn tell(store: &Store, action: &str, id: &Digest) {
    emit(store, action, id, id.as_str(), id.as_str());
}

/// Tells of a new name.
pub fn tell_tag(store: &Store, id: &Digest, name: &Reference) {
    emit(store, "tag", id, id.as_str(), &name.familiar());
}

/// Tells of a `pull` or `push` of a name.
pub(super) fn tell_transfer(store: &Store, action: &str, id: &Digest, name: &Reference) {
    emit(store, action, id, &name.familiar(), &name.familiar_repository());
}

fn emit(store: &Store, action: &str, id: &Digest, actor: &str, name: &str) {
    let mut attributes: BTreeMap<String, String> = super::config(store, id)
        .ok()
        .and_then(|config| config.config().as_ref()?.labels().clone())
        .map(|labels| labels.into_iter().collect())
        .unwrap_or_default();
    attributes.insert("name".to_owned(), name.to_owned());
    Events::new(store.root()).emit("image", action, actor, attributes);
}
