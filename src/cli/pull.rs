//! Download an image from a registry

use std::collections::HashMap;

use super::images::image_error;
use super::progress::{Output, Show};
use super::{CliError, Context, Exit, Outcome};
use crate::image::registry::{self, PullOptions};
use crate::image::{self, Added, Choice, DEFAULT_TAG, ImageError, Platform, Reason, Reference, Source};
use crate::store::Store;

/// Download an image from a registry
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Download all tagged images in the repository
    #[arg(short, long)]
    all_tags: bool,
    /// Skip image verification (accepted: there is none to skip)
    #[arg(long, hide = true)]
    disable_content_trust: bool,
    /// Set platform if server is multi-platform capable
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<String>,
    /// Suppress verbose output
    #[arg(short, long)]
    quiet: bool,
    /// NAME[:TAG|@DIGEST], oci:DIR[:TAG], oci-archive:FILE[:TAG] or docker-archive:FILE
    #[arg(value_name = "NAME")]
    source: String,
}

/// Pulls and prints what came, the last line being what the image is now called.
///
/// # Errors
/// The registry or source cannot be read, has no such image, or gives something else.
pub fn run(ctx: &Context, args: &Args) -> Outcome {
    let store = Store::open(&ctx.root)?;
    let source = Source::parse(&args.source).map_err(image_error)?;
    let choice = if args.all_tags { Choice::All } else { Choice::One };
    let platform = args.platform.as_deref().map(str::parse::<Platform>).transpose().map_err(CliError::new)?;
    if let Source::Stored(name) = &source {
        return from_registry(&store, name, choice, platform, args.quiet);
    }
    for added in image::pull_source(&store, &source, choice, platform.as_ref()).map_err(image_error)? {
        announce(&added, args);
    }
    Ok(Exit::Success)
}

fn from_registry(
    store: &Store,
    name: &str,
    choice: Choice,
    platform: Option<Platform>,
    quiet: bool,
) -> Outcome {
    let reference: Reference = name.parse().map_err(CliError::from)?;
    if !quiet && choice == Choice::One && reference.tag().is_none() && reference.digest().is_none() {
        println!("Using default tag: {DEFAULT_TAG}");
    }
    let before = digests(store)?;
    let show = Show::new(Output::Stdout, quiet);
    let options = PullOptions { platform, ..PullOptions::default() };
    let pulled = registry::pull(store, name, choice, &options, &show);
    show.finish();
    let pulled = pulled.map_err(image_error)?;
    for added in &pulled {
        let called = added.names.first().map_or_else(|| added.id.to_string(), |(name, _)| name.familiar());
        // As in Docker no failure: a registry may have the image for one platform only, and not say for which.
        if let Err(error) = image::check_platform(store, &added.id, &called, options.platform.as_ref()) {
            eprintln!("WARNING: {error}");
        }
    }
    let Some(last) = pulled.last() else {
        return Err(CliError::new(format!("{} has no tags", reference.familiar_repository())));
    };
    if quiet {
        println!("{}", pulled_name(last, &reference, choice));
        return Ok(Exit::Success);
    }
    for added in &pulled {
        // Docker says "newer" whenever the name did not stand for this digest before.
        let is_same = added
            .names
            .iter()
            .all(|(name, _)| added.digest.is_some() && before.get(&name.to_string()) == Some(&added.digest));
        let status = if is_same { "Image is up to date for" } else { "Downloaded newer image for" };
        let familiar = added.names.first().map_or_else(|| added.id.to_string(), |(name, _)| name.familiar());
        if let Some(digest) = &added.digest {
            println!("Digest: {digest}");
        }
        println!("Status: {status} {familiar}");
    }
    show.summary();
    println!("{}", pulled_name(last, &reference, choice));
    Ok(Exit::Success)
}

/// What each name stands for, by the digest that it came with.
fn digests(store: &Store) -> Result<HashMap<String, Option<crate::id::Digest>>, CliError> {
    let catalog = store.catalog()?;
    Ok(catalog.names.into_iter().map(|(name, entry)| (name, entry.digest)).collect())
}

fn pulled_name(added: &Added, reference: &Reference, choice: Choice) -> String {
    match (choice, added.names.first()) {
        (Choice::One, Some((name, _))) => name.to_string(),
        _ => reference.to_string(),
    }
}

/// Brings the image that a build starts from.
///
/// # Errors
/// As [`registry::pull`].
pub fn for_build(
    store: &Store,
    name: &str,
    _reason: Reason,
    platform: Option<&str>,
    quiet: bool,
) -> Result<Vec<Added>, ImageError> {
    let platform = platform.and_then(|text| text.parse::<Platform>().ok());
    let show = Show::new(Output::Stderr, quiet);
    let options = PullOptions { platform, ..PullOptions::default() };
    let pulled = registry::pull(store, name, Choice::One, &options, &show);
    show.finish();
    pulled
}

/// Brings the image of a `run` or `create`; progress goes to standard error, as Docker's does.
///
/// # Errors
/// As [`registry::pull`].
pub fn for_run(
    store: &Store,
    name: &str,
    reason: Reason,
    platform: Option<Platform>,
    quiet: bool,
) -> Result<Vec<Added>, ImageError> {
    if reason == Reason::Missing && !quiet {
        let reference: Reference = name.parse()?;
        eprintln!("Unable to find image '{}' locally", reference.with_default_tag().familiar());
    }
    let show = Show::new(Output::Stderr, quiet);
    let options = PullOptions { platform, ..PullOptions::default() };
    let pulled = registry::pull(store, name, Choice::One, &options, &show);
    show.finish();
    let pulled = pulled?;
    if !quiet {
        for added in &pulled {
            if let Some(digest) = &added.digest {
                eprintln!("Digest: {digest}");
            }
            let familiar =
                added.names.first().map_or_else(|| added.id.to_string(), |(name, _)| name.familiar());
            let status = if added.is_new { "Downloaded newer image for" } else { "Image is up to date for" };
            eprintln!("Status: {status} {familiar}");
        }
    }
    Ok(pulled)
}

fn announce(added: &Added, args: &Args) {
    let name = added.names.first().map(|(name, _)| name);
    let familiar = name.map_or_else(|| added.id.to_string(), Reference::familiar);
    if !args.quiet {
        println!(
            "{}: Pulling from {}",
            name.and_then(Reference::tag).unwrap_or(added.id.short()),
            args.source
        );
        if let Some(digest) = &added.digest {
            println!("Digest: {digest}");
        }
        let status = if added.is_new { "Downloaded newer image for" } else { "Image is up to date for" };
        println!("Status: {status} {familiar}");
    }
    println!("{}", name.map_or_else(|| added.id.to_string(), ToString::to_string));
}
