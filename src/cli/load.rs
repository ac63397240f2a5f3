//! Load an image from a tar archive or STDIN

use std::fs::File;
use std::io::IsTerminal as _;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use super::images::image_error;
use super::{CliError, Context, Exit, Outcome};
use crate::image::{self, Added, Choice, ImageError, Platform, Source};
use crate::store::Store;

/// Load an image from a tar archive or STDIN
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Read from tar archive file or OCI layout directory, instead of STDIN
    #[arg(short, long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Of images for several platforms, load the one for this
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<String>,
    /// Suppress the load output
    #[arg(short, long)]
    quiet: bool,
}

/// Loads every image of the archive and prints their names.
///
/// # Errors
/// The archive cannot be read, is none or is damaged.
pub fn run(ctx: &Context, args: &Args) -> Outcome {
    let store = Store::open(&ctx.root)?;
    let platform = args.platform.as_deref().map(str::parse::<Platform>).transpose().map_err(CliError::new)?;
    let platform = platform.as_ref();
    // As `podman load` takes a directory: what `save --format oci-dir` wrote.
    if let Some(directory) = args.input.as_deref().filter(|path| path.is_dir()) {
        let source = Source::OciLayout { directory: directory.to_owned(), tag: None };
        for added in image::pull_source(&store, &source, Choice::All, platform).map_err(image_error)? {
            announce(&added);
        }
        return Ok(Exit::Success);
    }
    let (file, path) = match args.input.as_deref().filter(|path| *path != Path::new("-")) {
        Some(path) => {
            let file = File::open(path)
                .map_err(|source| image_error(ImageError::Read { path: path.to_owned(), source }))?;
            (file, path)
        }
        None => {
            if std::io::stdin().is_terminal() {
                return Err(CliError::new("requested load from stdin, but stdin is a terminal")
                    .with_hint("give the archive with -i FILE, or redirect stdin"));
            }
            (File::from(std::io::stdin().as_fd().try_clone_to_owned()?), Path::new("standard input"))
        }
    };
    for added in image::load(&store, file, path, platform).map_err(image_error)? {
        announce(&added);
    }
    Ok(Exit::Success)
}

fn announce(added: &Added) {
    for (name, old) in &added.names {
        if let Some(old) = old {
            println!(
                "The image {} already exists, renaming the old one with ID {old} to empty string",
                name.familiar()
            );
        }
        println!("Loaded image: {}", name.familiar());
    }
    if added.names.is_empty() {
        println!("Loaded image ID: {}", added.id);
    }
}
