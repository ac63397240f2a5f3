//! Volumes as archives: `volume export` and `volume import`.
//!
//! What containers wrote into a volume may belong to subordinate ids, behind modes that close it to everybody, so a
//! child in a user namespace with the containers' own maps reads and writes it. Owners in an archive are those that
//! containers see.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, IsTerminal as _, Read, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use super::{CliError, Context, Exit, Outcome, Store, find};
use crate::image;
use crate::sandbox::chain;
use crate::sandbox::idmap::{Facts, IdMaps, Wanted, choose};
use crate::sandbox::tree::{Packer, Rename, Unpack, unpack};
use crate::store::volumes::Backing;
use crate::supervisor::reader::Reader;

const CHUNK_BYTES: usize = 1 << 20;

/// Export a volume's content as a tar archive
#[derive(clap::Args, Debug)]
pub struct ExportArgs {
    /// Write to a file, instead of STDOUT
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// VOLUME
    volume: String,
}

/// Import a tar archive's content into a volume, which has to be there
#[derive(clap::Args, Debug)]
pub struct ImportArgs {
    /// VOLUME
    volume: String,
    /// The archive (plain, gzip, zstd, xz, bzip2), or - for STDIN
    #[arg(default_value = "-")]
    archive: PathBuf,
}

/// Writes what is in a volume; names are sorted, so that the same files give the same bytes.
///
/// # Errors
/// No such volume, a terminal, files that cannot be read or written.
pub(super) fn export(ctx: &Context, args: &ExportArgs) -> Outcome {
    let (directory, maps) = opened(ctx, &args.volume)?;
    super::super::save::write_output(args.output.as_deref(), |file, _| {
        let mut reader = Reader::start(Some(&maps), |pipe| {
            let owner = |uid, gid| (uid, gid);
            let mut packer = Packer::new(BufWriter::with_capacity(CHUNK_BYTES, pipe), &owner);
            directory.try_clone().map_err(|error| error.to_string()).and_then(|directory| {
                packer.add_content(directory.into()).map_err(|error| chain(&error))?;
                let mut out = packer.finish().map_err(|error| chain(&error))?;
                out.flush().map_err(|error| error.to_string())
            })
        })?;
        let mut out: &File = file;
        io::copy(&mut reader, &mut out)?;
        Ok(())
    })?;
    Ok(Exit::Success)
}

/// Makes an archive's files in a volume; what is there under other names stays.
///
/// # Errors
/// No such volume, a terminal, an archive that is none or leads out of the volume.
pub(super) fn import(ctx: &Context, args: &ImportArgs) -> Outcome {
    let (directory, maps) = opened(ctx, &args.volume)?;
    let from_stdin = args.archive == Path::new("-");
    if from_stdin && io::stdin().is_terminal() {
        return Err(CliError::new("requested import from stdin, but stdin is a terminal")
            .with_hint("give the archive's name, or redirect stdin"));
    }
    let file = if from_stdin {
        File::from(io::stdin().as_fd().try_clone_to_owned()?)
    } else {
        File::open(&args.archive)
            .map_err(|error| CliError::new(format!("cannot open {}: {error}", args.archive.display())))?
    };
    let single = maps.is_single();
    let mut reader = Reader::start(Some(&maps), |_| {
        let owner = |uid, gid| (uid, gid);
        // With one id there is nobody else to give a file to.
        let owner: Option<crate::sandbox::tree::Owner<'_>> = if single { None } else { Some(&owner) };
        let options = Unpack { owner, privileged: true, rename: &Rename::Keep };
        let input = image::uncompressed(Box::new(file)).map_err(|error| error.to_string())?;
        let mut input = BufReader::with_capacity(CHUNK_BYTES, input);
        unpack(&mut input, directory.as_fd(), &options).map_err(|error| chain(&error))?;
        io::copy(&mut input, &mut io::sink()).map(drop).map_err(|error| error.to_string())
    })?;
    let mut nothing = Vec::new();
    reader.read_to_end(&mut nothing).map_err(|error| CliError::new(error.to_string()))?;
    Ok(Exit::Success)
}

/// A volume's directory, and the maps of the containers that write to it.
fn opened(ctx: &Context, name: &str) -> Result<(File, IdMaps), CliError> {
    let store = Store::open(&ctx.root)?;
    let volume = find(&store, name)?;
    let Backing::Directory { path, .. } = volume.backing() else {
        return Err(CliError::new(format!(
            "volume {name} is memory: it has content in a running container only"
        ))
        .with_hint("hostel cp CONTAINER:DIR - gives that as an archive"));
    };
    let file = File::open(&path)
        .map_err(|error| CliError::new(format!("cannot open {}: {error}", path.display())))?;
    Ok((file, choose(&Facts::gather(), Wanted::Usual)))
}
