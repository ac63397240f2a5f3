//! What a check of the store found missing or altered, fetched again from where its image came from.

use std::path::Path;

use oci_spec::image::ImageManifest;

use super::client::Client;
use super::fetch::{Fetch, Layer};
use super::{Progress, Session};
use crate::id::Digest;
use crate::image::handed_over::{self, MAX_CONFIG_BYTES};
use crate::image::policy::Policy;
use crate::image::{ImageError, Reference};
use crate::store::{Catalog, ImageEntry, Part, Problem, Store};

/// Mends what it can of these problems, and gives for each that it tried in vain why it could not.
/// Configs and manifests come first, then layers as they came, then packed layers, which are made from
/// those without the network where they are whole.
///
/// # Errors
/// The settings cannot be read; the store fails.
pub fn repair(
    store: &Store,
    problems: &[Problem],
    progress: &dyn Progress,
) -> Result<Vec<(String, ImageError)>, ImageError> {
    let session = Session::new()?;
    let catalog = store.own_catalog()?;
    let _lock = store.lock_content()?;
    let mut failures = Vec::new();
    for part in [Part::Blob, Part::CompressedLayer, Part::Layer] {
        for problem in problems.iter().filter(|problem| problem.part == part && !problem.repaired) {
            let mut failure = None;
            for source in sources(&catalog, problem) {
                match (Mending { session: &session, store, progress }).mend(problem, &source) {
                    Ok(()) => {
                        failure = None;
                        break;
                    }
                    Err(error) => failure = Some(error),
                }
            }
            failures.extend(failure.map(|error| (problem.name.clone(), error)));
        }
    }
    Ok(failures)
}

/// A name under which a registry should have what is broken.
struct Origin<'a> {
    name: Reference,
    entry: &'a ImageEntry,
    image: &'a Digest,
}

fn sources<'a>(catalog: &'a Catalog, problem: &'a Problem) -> Vec<Origin<'a>> {
    let mut found = Vec::new();
    for image in &problem.images {
        let Some(entry) = catalog.images.get(image) else { continue };
        // Without a digest it did not come from a registry.
        let names = catalog.names_with(image).filter(|(_, named)| named.digest.is_some());
        let names = names.filter_map(|(name, _)| name.parse().ok());
        found.extend(names.map(|name| Origin { name, entry, image }));
    }
    found
}

struct Mending<'a> {
    session: &'a Session,
    store: &'a Store,
    progress: &'a dyn Progress,
}

impl Mending<'_> {
    fn mend(&self, problem: &Problem, from: &Origin<'_>) -> Result<(), ImageError> {
        let Ok(digest) = problem.name.parse::<Digest>() else { return Ok(()) };
        Policy::of_user()?.check_registry(&from.name)?;
        let places = self.session.settings.pull_places(&from.name)?;
        let auths: Result<Vec<_>, _> =
            places.iter().map(|place| self.session.auth(&from.name, place)).collect();
        let auths = auths?;
        let clients: Result<Vec<_>, _> = places
            .iter()
            .zip(&auths)
            .map(|(place, auth)| self.session.client(auth, place, &from.name))
            .collect();
        let clients = clients?;
        if problem.part == Part::Blob {
            return self.blob(&clients, from, &digest);
        }
        let layer = self.layer(from, problem.part, &digest)?;
        if problem.part == Part::CompressedLayer {
            self.store.discard_blob(&layer.digest)?;
        } else {
            self.store.discard_layer(&layer.diff_id)?;
        }
        let fetch =
            Fetch { store: self.store, sources: &clients, progress: self.progress, keep_compressed: true };
        fetch.layer(&layer).map(drop)
    }

    /// A config by its digest; everything else is a manifest or an index.
    fn blob(&self, clients: &[Client<'_>], from: &Origin<'_>, digest: &Digest) -> Result<(), ImageError> {
        let name = from.name.familiar();
        let mut failure = None;
        for client in clients {
            let found = if digest == from.image {
                client.small_blob(digest, MAX_CONFIG_BYTES, &format!("the config of {name}"))
            } else {
                client.manifest(digest.as_str(), &name).map(|fetched| fetched.bytes)
            };
            match found {
                Ok(bytes) => {
                    self.store.discard_blob(digest)?;
                    self.store.put_blob(&bytes)?;
                    return Ok(());
                }
                Err(error) => failure = Some(error),
            }
        }
        failure.map_or(Ok(()), |error| Err(error.into()))
    }

    /// What the manifest that the image came with says of a layer.
    fn layer(&self, from: &Origin<'_>, part: Part, digest: &Digest) -> Result<Layer, ImageError> {
        let name = from.name.familiar();
        let missing = || ImageError::Missing { path: (&name).into(), member: digest.to_string() };
        let original = from.entry.original.as_ref().ok_or_else(missing)?;
        let bytes = self.store.blob(original)?.ok_or_else(missing)?;
        let manifest: ImageManifest = handed_over::parse(Path::new(&name), original.as_str(), &bytes)?;
        let mut pairs = manifest.layers().iter().zip(&from.entry.layers);
        let (descriptor, diff_id) = pairs
            .find(|(descriptor, diff_id)| match part {
                Part::Layer => *diff_id == digest,
                _ => descriptor.digest().to_string() == digest.as_str(),
            })
            .ok_or_else(missing)?;
        let digest = descriptor.digest().to_string().parse().map_err(|_| missing())?;
        Ok(Layer { digest, size: descriptor.size(), diff_id: diff_id.clone() })
    }
}
