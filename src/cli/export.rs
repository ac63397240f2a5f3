//! Export a container's filesystem as a tar archive

use std::fs::File;
use std::io::BufWriter;
use std::os::fd::AsFd as _;
use std::path::PathBuf;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use super::save::write_output;
use super::{CliError, Context, Exit, Outcome};
use crate::sandbox::tree::{Packer, TreeError};
use crate::sandbox::{Failure, Stage, chain};
use crate::store::containers::Containers;
use crate::supervisor::Saved;
use crate::supervisor::view::{Inside, Scope, View};

/// Bytes that are written at once.
const OUTPUT_BYTES: usize = 1 << 20;

/// Export a container's filesystem as a tar archive
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Write to a file, instead of STDOUT
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// CONTAINER
    container: String,
}

/// Writes the root filesystem, without what is mounted on it; names are sorted, so that the same
/// files give the same bytes.
///
/// # Errors
/// No such container, a terminal, files that cannot be read or written.
pub fn run(ctx: &Context, args: &Args) -> Outcome {
    let containers = Containers::new(&ctx.root);
    let record = containers.find(&args.container)?;
    let saved: Saved = containers.plan(&record.id)?;
    write_output(args.output.as_deref(), |file, _| {
        let view = View::start(&containers, &record, &saved, Scope::Root, pack)?;
        view.send(b"to", &[file.as_fd()])?;
        view.finish().map_err(CliError::from)
    })?;
    containers.tell(&record, "export", &[]);
    Ok(Exit::Success)
}

fn pack(inside: &Inside<'_>) -> Result<(), Failure> {
    let (_, mut fds) = inside.receive()?;
    let failed = |error: &TreeError| Failure::plain(Stage::Mounts, chain(error));
    let missing = || Failure::plain(Stage::Mounts, "the command sent no file to write to");
    let out = BufWriter::with_capacity(OUTPUT_BYTES, File::from(fds.pop().ok_or_else(missing)?));
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = openat(inside.root, ".", flags, Mode::empty())
        .map_err(|errno| Failure::new(Stage::Mounts, "cannot open the container's root", errno))?;
    let owner = |uid, gid| (uid, gid);
    let mut packer = Packer::new(out, &owner);
    packer.add_content(root).map_err(|error| failed(&error))?;
    packer.finish().map(drop).map_err(|error| failed(&error))
}
