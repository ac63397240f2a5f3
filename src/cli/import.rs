//! Import the contents from a tarball to create a filesystem image

use std::fs::File;
use std::io::{IsTerminal as _, Read};
use std::os::fd::AsFd as _;
use std::path::Path;

use jiff::Timestamp;

use super::commit::parse_name;
use super::images::image_error;
use super::{CliError, Context, Exit, Outcome};
use crate::image::{self, Draft, ImageError, registry};
use crate::plan::instruction::{self, Config};
use crate::store::Store;

/// Import the contents from a tarball to create a filesystem image
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Apply Dockerfile instruction to the created image
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<String>,
    /// Set commit message for imported image
    #[arg(short, long, default_value = "", hide_default_value = true)]
    message: String,
    /// Set platform of the image (os/architecture[/variant])
    #[arg(long)]
    platform: Option<String>,
    /// Suppress what is said of a download
    #[arg(short, long)]
    quiet: bool,
    /// file|URL|-
    source: String,
    /// [REPOSITORY[:TAG]]
    name: Option<String>,
}

/// Makes an image of one layer and prints its id.
///
/// # Errors
/// The archive cannot be read or is none; a wrong name or instruction; a full disk.
pub fn run(ctx: &Context, args: &Args) -> Outcome {
    let name = parse_name(args.name.as_deref())?;
    let mut config = Config::new();
    instruction::apply(&mut config, &args.change)?;
    let base = image::scratch(args.platform.as_deref()).map_err(image_error)?;
    let (file, what) = open(&args.source, args.quiet)?;
    let store = Store::open(&ctx.root)?;
    let comment = match (&*args.message, &*args.source) {
        ("", "-") => "Imported from -".to_owned(),
        ("", _) => format!("Imported from {what}"),
        (message, _) => message.to_owned(),
    };
    let draft = Draft {
        base,
        config,
        author: String::new(),
        comment,
        created_by: String::new(),
        created: Timestamp::now().to_string(),
        name,
    };
    let added = image::commit(&store, draft, file, &what).map_err(image_error)?;
    image::tell(&store, "import", &added.id);
    println!("{}", added.id);
    Ok(Exit::Success)
}

/// The archive, and what messages and the image's history call it.
fn open(source: &str, quiet: bool) -> Result<(Box<dyn Read>, String), CliError> {
    if source == "-" {
        if std::io::stdin().is_terminal() {
            return Err(CliError::new("requested import from stdin, but stdin is a terminal")
                .with_hint("give the archive's name, or redirect stdin"));
        }
        let stdin = File::from(std::io::stdin().as_fd().try_clone_to_owned()?);
        return Ok((Box::new(stdin), "standard input".to_owned()));
    }
    if registry::is_address(source) {
        let file = registry::open(source).map_err(|error| CliError::from(ImageError::from(error)))?;
        let address = file.address.clone();
        if !quiet {
            eprintln!("Downloading from {address}");
        }
        return Ok((Box::new(file), address));
    }
    let path = Path::new(source);
    let file =
        File::open(path).map_err(|source| image_error(ImageError::Read { path: path.to_owned(), source }))?;
    if file.metadata()?.is_dir() {
        return Err(image_error(ImageError::NotAFile { path: path.to_owned() }));
    }
    Ok((Box::new(file), source.to_owned()))
}
