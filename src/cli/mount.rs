//! Mount an image's or a container's files where a user can

use std::ffi::OsString;
use std::path::PathBuf;

use super::run::{failed, launch_error};
use super::{CliError, Context, Exit, Outcome, each};
use crate::image::{self, PullPolicy, ResolvedImage};
use crate::sandbox::idmap::{Facts, Wanted, choose};
use crate::store::Store;
use crate::store::containers::{ContainerError, Containers, Record, Status};
use crate::supervisor::Saved;
use crate::supervisor::changes::{last_state, recorded_maps};
use crate::supervisor::mounted::{self, Mounter, Point};

/// Tells a command where the mount is.
const VARIABLE: &str = "HOSTEL_MOUNT";

/// Mount an image's or a container's files
///
/// A mount is seen by what runs in the namespace that it was made in, and a plain user may only mount in a
/// namespace of their own. With a command, hostel makes one for it, and the mount lasts as long as what
/// runs in there. In 'hostel unshare' (or 'unshare -Urm', or as root) no command is needed: the mount stays
/// until 'hostel unmount', or until the namespace goes.
///
/// An image is mounted read-only, or with --changes writable, the changes being kept in a directory of their
/// own. A container that does not run is mounted for reading and writing, and cannot be started meanwhile.
/// Of a running one a command sees the root as it is, without what is mounted in it.
///
/// Without DIR a directory in memory is made, and printed; a command finds it in $HOSTEL_MOUNT. Without any
/// argument the mounts of this namespace are listed.
#[derive(clap::Args, Debug)]
#[command(
    override_usage = "hostel mount [OPTIONS] IMAGE|CONTAINER [DIR] [-- COMMAND [ARG...]]\n       hostel mount"
)]
pub struct Args {
    /// Let an image be written to, and keep the changes in this directory
    #[arg(long, value_name = "DIRECTORY")]
    changes: Option<PathBuf>,
    /// IMAGE|CONTAINER
    reference: Option<String>,
    /// [DIR]
    directory: Option<PathBuf>,
    /// [COMMAND] [ARG...]
    #[arg(last = true)]
    command: Vec<OsString>,
}

/// What is mounted.
enum Subject {
    Container(Box<(Record, Saved)>),
    Image(Box<ResolvedImage>),
}

/// Mounts, or lists what is mounted.
///
/// # Errors
/// No such image or container; no right to mount; the mount is refused.
pub fn run(ctx: &Context, args: &Args) -> Outcome {
    // Before anything is opened here: these are the caller's.
    let inherited = mounted::open_descriptors();
    let Some(reference) = &args.reference else {
        for mount in mounted::mounted().map_err(|failure| failed(&failure))? {
            println!("{} {}", mount.name, mount.point.display());
        }
        return Ok(Exit::Success);
    };
    let has_command = !args.command.is_empty();
    let containers = Containers::new(&ctx.root);
    let subject = find(ctx, &containers, reference)?;
    if args.changes.is_some() && matches!(subject, Subject::Container(_)) {
        return Err(CliError::new("--changes is for images: a container keeps its own changes"));
    }
    if !has_command && !mounted::may_mount() {
        return Err(CliError::new("a plain user cannot mount where everybody would see it")
            .with_hint(format!(
                "`hostel mount {reference} DIR -- COMMAND` runs a command that sees it, and `hostel unshare` a shell in which `hostel mount {reference} DIR` works"
            ))
            .with_exit(Exit::Engine));
    }
    let point = match &args.directory {
        Some(directory) => Point::Given(directory.clone()),
        None => Point::Made(reference.clone()),
    };
    let mounter = Mounter { containers: &containers, name: reference, point, inherited: &inherited };
    let place = match &subject {
        Subject::Image(resolved) => {
            if has_command {
                mounted::enter(&choose(&Facts::gather(), Wanted::Usual))
                    .map_err(|failure| failed(&failure))?;
            }
            mounter.image(&resolved.root, args.changes.as_deref()).map_err(launch_error)?
        }
        Subject::Container(found) => container(&mounter, found, has_command)?,
    };
    if has_command {
        return Err(super::unshare::become_command(&args.command, |command| {
            command.env(VARIABLE, &place);
        }));
    }
    println!("{}", place.display());
    Ok(Exit::Success)
}

fn container(mounter: &Mounter<'_>, found: &(Record, Saved), apart: bool) -> Result<PathBuf, CliError> {
    let (record, saved) = found;
    let status = mounter.containers.status(&record.id)?;
    match &status {
        Status::Running(state) if apart => {
            mounted::enter_running(mounter.containers, record, saved, state, &mounter.point)
                .map_err(launch_error)
        }
        Status::Running(_) => Err(CliError::new(format!("container {} is running", record.name))
            .with_hint(format!(
                "outside of this namespace `hostel mount {} DIR -- COMMAND` shows its files to a command",
                record.name
            ))
            .with_exit(Exit::Engine)),
        _ => {
            if apart {
                let maps = recorded_maps(saved, last_state(&status));
                mounted::enter(&maps).map_err(|failure| failed(&failure))?;
            }
            mounter.container(record, saved).map_err(launch_error)
        }
    }
}

/// A container of this name, else an image, as `inspect` looks.
fn find(ctx: &Context, containers: &Containers, reference: &str) -> Result<Subject, CliError> {
    match containers.find(reference) {
        Ok(record) => {
            let saved = containers.plan(&record.id)?;
            return Ok(Subject::Container(Box::new((record, saved))));
        }
        Err(ContainerError::NotFound(_)) => {}
        Err(error) => return Err(error.into()),
    }
    let store = Store::open(&ctx.root)?;
    let _content = store.lock_content()?;
    // Nothing is fetched: `pull` is there for that.
    let fetch = |name: &str, _| Err(image::ImageError::NotFound(name.to_owned()));
    let resolved = image::resolve(&store, reference, PullPolicy::Never, None, &fetch).map_err(|error| {
        let missing = matches!(error, image::ImageError::NotFound(_));
        let error = super::images::resolve_error(error).with_exit(Exit::Engine);
        match missing {
            true => CliError::new(format!("no container or image {reference}"))
                .with_hint(format!("`hostel pull {reference}` fetches an image"))
                .with_exit(Exit::Engine),
            false => error,
        }
    })?;
    Ok(Subject::Image(Box::new(resolved)))
}

/// Unmount what 'hostel mount' has mounted in this namespace
#[derive(clap::Args, Debug)]
#[command(override_usage = "hostel unmount [OPTIONS] DIR|IMAGE|CONTAINER [DIR|IMAGE|CONTAINER...]")]
pub struct UnmountArgs {
    /// Unmount everything that 'hostel mount' lists
    #[arg(short, long, conflicts_with = "mounts")]
    all: bool,
    /// Unmount what is in use as well: it goes when its last user does
    #[arg(short, long)]
    force: bool,
    /// DIR|IMAGE|CONTAINER [DIR|IMAGE|CONTAINER...]
    #[arg(required_unless_present = "all")]
    mounts: Vec<String>,
}

/// Unmounts, and prints what was asked for.
///
/// # Errors
/// Nothing of hostel's is mounted there; it is in use.
pub fn unmount(ctx: &Context, args: &UnmountArgs) -> Outcome {
    let containers = Containers::new(&ctx.root);
    let list = || mounted::mounted().map_err(|failure| failed(&failure));
    let take_away = |mount: &mounted::Mounted| {
        mounted::unmount(&containers, mount, args.force)
            .map_err(|failure| failed(&failure).with_exit(Exit::Failure))
    };
    if args.all {
        // The last first: one may lie in another.
        for mount in list()?.iter().rev() {
            take_away(mount)?;
            println!("{}", mount.point.display());
        }
        return Ok(Exit::Success);
    }
    each(&args.mounts, |asked| {
        let path = std::fs::canonicalize(asked).ok();
        let found = list()?;
        let found =
            found.iter().rev().filter(|mount| mount.name == asked || Some(&mount.point) == path.as_ref());
        let Some(mount) = found.into_iter().next() else {
            return Err(CliError::new(format!("nothing of hostel's is mounted as or on {asked} here"))
                .with_hint("`hostel mount` lists what is, in this namespace"));
        };
        take_away(mount)?;
        println!("{asked}");
        Ok(())
    })
}
