//! Save one or more images to a tar archive (streamed to STDOUT by default)

use std::fs::{self, File, OpenOptions};
use std::io::IsTerminal as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::images::{self, image_error};
use super::{CliError, Context, Exit, Outcome};
use crate::image::{self, ImageError, SaveFormat, SaveWanted};
use crate::store::Store;

/// Save one or more images to a tar archive (streamed to STDOUT by default)
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Save image as docker-archive, oci-archive, oci-dir (a directory with an OCI layout) or docker-dir
    #[arg(long, default_value = "docker-archive", value_parser = parse_format)]
    format: SaveFormat,
    /// Accepted for podman's sake: several images are always possible
    #[arg(short, long, hide = true)]
    multi_image_archive: bool,
    /// Write to a file, instead of STDOUT
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Of an image for several platforms this one alone (os[/arch[/variant]])
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
    /// Suppress the output (nothing is printed in any case)
    #[arg(short, long)]
    quiet: bool,
    /// IMAGE [IMAGE...]
    #[arg(required = true)]
    images: Vec<String>,
}

/// Writes the archive; a file appears under its name when it is whole.
///
/// # Errors
/// No such image, or the archive cannot be written.
pub fn run(ctx: &Context, args: &Args) -> Outcome {
    let store = Store::open(&ctx.root)?;
    let platform = images::platform(args.platform.as_deref())?;
    let wanted = SaveWanted { texts: &args.images, format: args.format, platform };
    if matches!(args.format, SaveFormat::OciDir | SaveFormat::DockerDir) {
        let Some(path) = &args.output else {
            return Err(CliError::new("a directory format needs the directory's name: give it with -o"));
        };
        image::save_directory(&store, &wanted, path).map_err(image_error)?;
        return Ok(Exit::Success);
    }
    write_output(args.output.as_deref(), |file, path| {
        image::save(&store, &wanted, file, path).map_err(image_error)
    })?;
    Ok(Exit::Success)
}

/// Has an archive written to a file, which appears when it is whole, or to standard output.
///
/// # Errors
/// A terminal; those of `write` and of the file.
pub fn write_output(
    output: Option<&Path>,
    write: impl FnOnce(&mut File, &Path) -> Result<(), CliError>,
) -> Result<(), CliError> {
    match output {
        None => {
            if std::io::stdout().is_terminal() {
                return Err(CliError::new(
                    "cowardly refusing to save to a terminal. Use the -o flag or redirect",
                ));
            }
            let mut out = File::from(std::io::stdout().as_fd().try_clone_to_owned()?);
            write(&mut out, Path::new("standard output"))
        }
        // A pipe or a device has no place beside it for an unfinished file.
        Some(path) if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) => {
            let failed = |source| image_error(ImageError::Write { path: path.to_owned(), source });
            write(&mut OpenOptions::new().write(true).open(path).map_err(failed)?, path)
        }
        Some(path) => {
            let unfinished = Unfinished::beside(path)?;
            let mut options = OpenOptions::new();
            let failed = |source| image_error(ImageError::Write { path: path.to_owned(), source });
            let mut file =
                options.write(true).create_new(true).mode(0o600).open(&unfinished.path).map_err(failed)?;
            write(&mut file, path)?;
            fs::rename(&unfinished.path, path).map_err(failed)
        }
    }
}

fn parse_format(text: &str) -> Result<SaveFormat, String> {
    match text {
        "docker-archive" => Ok(SaveFormat::DockerArchive),
        "oci-archive" => Ok(SaveFormat::OciArchive),
        "oci-dir" => Ok(SaveFormat::OciDir),
        "docker-dir" => Ok(SaveFormat::DockerDir),
        _ => Err("must be one of docker-archive, oci-archive, oci-dir, docker-dir".to_owned()),
    }
}

/// A file that goes away unless it is renamed.
struct Unfinished {
    path: PathBuf,
}

impl Unfinished {
    fn beside(path: &Path) -> Result<Self, CliError> {
        let name = path
            .file_name()
            .ok_or_else(|| CliError::new(format!("invalid output path: {}", path.display())))?;
        let mut unfinished = std::ffi::OsString::from(".");
        unfinished.push(name);
        unfinished.push(format!(".{}", std::process::id()));
        Ok(Self { path: path.with_file_name(unfinished) })
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // Gone already when it was renamed.
        let _ = fs::remove_file(&self.path);
    }
}
