//! Copy files/folders between a container and the local filesystem
//!
//! Both directions are a tar stream through a pipe, one end of which a child holds in the container
//! (`supervisor::view`). The rules of what goes where are Docker's (moby, pkg/archive/copy.go): the
//! kind of both ends is known before anything is copied.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, IsTerminal as _, Read, Write};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::format::human_size;
use super::{CliError, Context, Exit, Outcome};
use crate::sandbox::idmap::Extent;
use crate::sandbox::tree::{Packer, Rename, TreeError, Unpack, unpack};
use crate::sandbox::{Failure, Stage, chain, copy};
use crate::store::containers::{Containers, Record};
use crate::supervisor::Saved;
use crate::supervisor::changes::{last_state, recorded_maps};
use crate::supervisor::view::{Inside, Scope, View, read_only_at, wide_pipe};

/// Bytes read or written at once.
const CHUNK_BYTES: usize = 1 << 18;

/// Copy files/folders between a container and the local filesystem
///
/// Use '-' as the source to read a tar archive from stdin and extract it to a directory destination
/// in a container. Use '-' as the destination to stream a tar archive of a container source to stdout.
#[derive(clap::Args, Debug)]
#[command(
    override_usage = "hostel cp [OPTIONS] CONTAINER:SRC_PATH DEST_PATH|-\n       hostel cp [OPTIONS] SRC_PATH|- CONTAINER:DEST_PATH"
)]
pub struct Args {
    /// Archive mode (copy all uid/gid information)
    #[arg(short, long)]
    archive: bool,
    /// Always follow symbol link in SRC_PATH
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// Suppress progress output during copy. Progress output is automatically suppressed if no terminal is attached
    #[arg(short, long)]
    quiet: bool,
    /// SRC_PATH
    source: OsString,
    /// DEST_PATH
    destination: OsString,
}

/// Copies in one of the two directions.
///
/// # Errors
/// Docker's rules of what may be copied where; files that cannot be read or made.
pub fn run(ctx: &Context, args: &Args) -> Outcome {
    if args.source.is_empty() {
        return Err(CliError::new("source can not be empty"));
    }
    if args.destination.is_empty() {
        return Err(CliError::new("destination can not be empty"));
    }
    match (split(&args.source), split(&args.destination)) {
        ((Some(container), path), (None, to)) => from_container(ctx, args, &container, path, to),
        ((None, path), (Some(container), to)) => to_container(ctx, args, path, &container, to),
        ((Some(_), _), (Some(_), _)) => Err(CliError::new("copying between containers is not supported")),
        ((None, _), (None, _)) => Err(CliError::new("must specify at least one container source")),
    }
}

/// `CONTAINER:PATH`, unless it is a path for certain: one that begins with `/` or `.`.
fn split(argument: &OsStr) -> (Option<String>, &Path) {
    let bytes = argument.as_bytes();
    let local = (None, Path::new(argument));
    if bytes.starts_with(b"/") || bytes.starts_with(b".") {
        return local;
    }
    let Some(colon) = bytes.iter().position(|byte| *byte == b':') else { return local };
    match std::str::from_utf8(&bytes[..colon]) {
        Ok(container) => (Some(container.to_owned()), Path::new(OsStr::from_bytes(&bytes[colon + 1..]))),
        Err(_) => local,
    }
}

/// A path cleaned as Go's filepath.Clean does, and what its end asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Asked {
    path: PathBuf,
    /// It ended with `/.`, or was `.`: what is in the directory, not itself.
    content: bool,
    /// It ended so, or with a slash: a directory, and what a symlink there leads to.
    directory: bool,
}

impl Asked {
    fn new(path: &Path) -> Self {
        let bytes = path.as_os_str().as_bytes();
        let content = bytes == b"." || bytes.ends_with(b"/.");
        let directory = content || bytes.ends_with(b"/");
        let mut clean = PathBuf::from("/");
        for component in path.components() {
            match component {
                Component::Normal(name) => clean.push(name),
                Component::ParentDir => {
                    clean.pop();
                }
                Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            }
        }
        Self { path: clean, content, directory }
    }

    /// The last name; of the root its own.
    fn base(&self) -> &OsStr {
        self.path.file_name().unwrap_or(OsStr::new("/"))
    }
}

/// What the two sides say to each other before anything is copied.
#[derive(Debug, Serialize, Deserialize)]
enum Message {
    /// To the child: what is to be read.
    Read { asked: Asked, follow: bool },
    /// To the child: the place to be written to.
    Look { asked: Asked },
    /// From the child: what is there; None where nothing is that could be read.
    There(Option<There>),
    /// To the child, with the stream: read it. The archive's first name.
    Pack { base: Vec<u8> },
    /// To the child, with the stream: make its files.
    Unpack { directory: PathBuf, rename: Option<Vec<u8>>, strip: bool },
    /// From the child: bytes of data that came.
    Done(u64),
}

/// What is at a path.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct There {
    /// Nothing is there yet.
    is_missing: bool,
    is_directory: bool,
    is_file: bool,
    /// Where it really is: a symlink at the end is followed when it is written to.
    path: PathBuf,
}

fn say(view: &View, message: &Message, fds: &[std::os::fd::BorrowedFd<'_>]) -> Result<(), CliError> {
    let text = serde_json::to_vec(message)?;
    view.send(&text, fds).map_err(CliError::from)
}

fn hear(view: View) -> Result<(View, Message), CliError> {
    match view.hear()? {
        Some((text, _)) => match serde_json::from_slice(&text) {
            Ok(message) => Ok((view, message)),
            // What is no message is why the child ended.
            Err(_) => Err(view.failure(&text).into()),
        },
        None => Err(ended(view)),
    }
}

/// The child has said why it ended.
fn ended(view: View) -> CliError {
    match view.finish() {
        Err(failure) => failure.into(),
        Ok(()) => CliError::new("the process in the container ended early"),
    }
}

/// Puts the rules of PrepareArchiveCopy: where the archive goes, and under what name.
#[derive(Debug, PartialEq, Eq)]
struct Placed {
    directory: PathBuf,
    rename: Rename,
}

fn place(
    source_is_directory: bool,
    source: &Asked,
    destination: &Asked,
    there: Option<&There>,
) -> Result<Placed, CliError> {
    let at = there.map_or(&destination.path, |there| &there.path).clone();
    let there = there.filter(|there| !there.is_missing);
    let parent = || at.parent().unwrap_or(Path::new("/")).to_owned();
    let named = || Rename::To(at.file_name().unwrap_or(OsStr::new("/")).to_owned());
    match there {
        Some(there) if there.is_directory && source.content => {
            Ok(Placed { directory: at.clone(), rename: Rename::Strip })
        }
        Some(there) if there.is_directory => Ok(Placed { directory: at.clone(), rename: Rename::Keep }),
        Some(_) if source_is_directory => Err(CliError::new("cannot copy directory")),
        Some(_) if destination.directory => Err(CliError::new("not a directory")),
        None if !source_is_directory && destination.directory => Err(CliError::new("no such directory")),
        _ => Ok(Placed { directory: parent(), rename: named() }),
    }
}

fn from_container(ctx: &Context, args: &Args, container: &str, path: &Path, to: &Path) -> Outcome {
    let (containers, record, saved) = find(ctx, container)?;
    let source = Asked::new(path);
    let view = View::start(&containers, &record, &saved, Scope::Mounted, work)?;
    say(&view, &Message::Read { asked: source.clone(), follow: args.follow_link }, &[])?;
    let (view, message) = hear(view)?;
    let Message::There(Some(found)) = message else {
        return Err(CliError::new(format!(
            "Could not find the file {} in container {container}",
            Path::new("/").join(path).display()
        )));
    };
    if source.directory && !found.is_directory {
        return Err(CliError::new(format!("{}: not a directory", path.display())));
    }
    if to == Path::new("-") {
        let base = if source.content || source.path == Path::new("/") {
            b"".to_vec()
        } else {
            source.base().as_bytes().to_vec()
        };
        let out: OwnedFd = io::stdout().as_fd().try_clone_to_owned()?;
        if io::stdout().is_terminal() {
            return Err(CliError::new("cowardly refusing to copy to a terminal. Redirect the output"));
        }
        say(&view, &Message::Pack { base }, &[out.as_fd()])?;
        view.finish()?;
        return Ok(Exit::Success);
    }
    let destination = local(to)?;
    let there = look_locally(&destination)?;
    let source = if source.path == Path::new("/") { Asked { content: true, ..source } } else { source };
    let placed = place(found.is_directory, &source, &destination, there.as_ref())?;
    let directory =
        File::open(&placed.directory).map_err(|error| local_error("open", &placed.directory, &error))?;
    let (reader, writer) = wide_pipe()?;
    say(&view, &Message::Pack { base: source.base().as_bytes().to_vec() }, &[writer.as_fd()])?;
    drop(writer);
    let mut counted = Counted { inner: BufReader::with_capacity(CHUNK_BYTES, reader), bytes: 0 };
    let options = Unpack { owner: None, privileged: false, rename: &placed.rename };
    let made = unpack(&mut counted, directory.as_fd(), &options);
    let bytes = counted.bytes;
    if made.is_ok() {
        // To its end, so that the child is not cut off before its last block.
        io::copy(&mut counted, &mut io::sink())?;
    }
    // What the child says of its own failure is the cause of a broken stream.
    drop(counted);
    let packed = view.finish();
    match (made, packed) {
        (Err(error), Ok(())) => return Err(error.into()),
        (
            Err(error @ (TreeError::File { .. } | TreeError::OtherKind { .. } | TreeError::Name(..))),
            Err(_),
        ) => return Err(error.into()),
        (_, Err(failure)) => return Err(failure.into()),
        (Ok(_), Ok(())) => {}
    }
    tell(args, bytes, &to.display().to_string());
    Ok(Exit::Success)
}

fn to_container(ctx: &Context, args: &Args, path: &Path, container: &str, to: &Path) -> Outcome {
    let (containers, record, saved) = find(ctx, container)?;
    let destination = Asked::new(to);
    let shown = format!("{container}:{}", to.display());
    if let Some(why) = read_only_at(&saved, &destination.path) {
        return Err(CliError::new(why));
    }
    let from_stdin = path == Path::new("-");
    let source = if from_stdin { None } else { Some(LocalSource::open(path, args.follow_link)?) };
    let status = containers.status(&record.id)?;
    let maps = recorded_maps(&saved, last_state(&status));
    let view = View::start(&containers, &record, &saved, Scope::Mounted, work)?;
    say(&view, &Message::Look { asked: destination.clone() }, &[])?;
    let (view, message) = hear(view)?;
    let Message::There(there) = message else { return Err(ended(view)) };
    if there.as_ref().is_some_and(|there| !there.is_missing && !there.is_directory && !there.is_file) {
        return Err(CliError::new(format!("destination \"{shown}\" must be a directory or a regular file")));
    }
    let placed = match &source {
        None => match there {
            Some(there) if !there.is_missing && there.is_directory => {
                Placed { directory: there.path, rename: Rename::Keep }
            }
            _ => return Err(CliError::new(format!("destination \"{shown}\" must be a directory"))),
        },
        Some(source) => place(source.is_directory(), &source.asked, &destination, there.as_ref())?,
    };
    let (rename, strip) = match placed.rename {
        Rename::Keep => (None, false),
        Rename::Strip => (None, true),
        Rename::To(name) => (Some(name.as_bytes().to_vec()), false),
    };
    let (reader, writer) = wide_pipe()?;
    say(&view, &Message::Unpack { directory: placed.directory, rename, strip }, &[reader.as_fd()])?;
    drop(reader);
    // The child may end before it has read all, and says why: that is no end of this command.
    crate::sys::process::ignore_sigpipe();
    let sent = match &source {
        None => send_stdin(writer),
        Some(source) => {
            let owner = |uid, gid| {
                if args.archive { (inside(&maps.uids, uid), inside(&maps.gids, gid)) } else { (0, 0) }
            };
            source.pack(writer, &owner)
        }
    };
    let (view, message) = match hear(view) {
        Ok(heard) => heard,
        Err(error) => {
            // A file that cannot be read cuts the stream short, and is the cause.
            return Err(match sent {
                Err(error @ TreeError::File { .. }) => error.into(),
                _ => error,
            });
        }
    };
    view.finish()?;
    let bytes = sent?;
    if let Message::Done(_) = message {
        tell(args, bytes, &shown);
    }
    Ok(Exit::Success)
}

/// Docker's last word, for a person only.
fn tell(args: &Args, bytes: u64, to: &str) {
    if !args.quiet && io::stdout().is_terminal() {
        eprintln!("Successfully copied {} to {to}", human_size(bytes));
    }
}

/// The container's id of one of the machine's: by the map; what it does not have keeps its number.
fn inside(map: &[Extent], host: u32) -> u32 {
    map.iter()
        .find_map(|(inside, outside, count)| {
            let offset = host.checked_sub(*outside).filter(|offset| offset < count)?;
            inside.checked_add(offset)
        })
        .unwrap_or(host)
}

fn find(ctx: &Context, container: &str) -> Result<(Containers, Record, Saved), CliError> {
    let containers = Containers::new(&ctx.root);
    let record = containers.find(container)?;
    let saved = containers.plan(&record.id)?;
    Ok((containers, record, saved))
}

/// Counts the bytes of a stream.
struct Counted<R> {
    inner: R,
    bytes: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.bytes += count as u64;
        Ok(count)
    }
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(buffer)?;
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn local_error(action: &str, path: &Path, error: &io::Error) -> CliError {
    CliError::new(format!("cannot {action} {}: {error}", path.display()))
}

/// A local path, absolute, its end kept.
fn local(path: &Path) -> Result<Asked, CliError> {
    let mut asked = Asked::new(path);
    // `..` behind a symlink is the kernel's to resolve.
    asked.path = std::path::absolute(path)?;
    Ok(asked)
}

/// What is at a local destination. Where nothing is, its directory has to be there.
fn look_locally(asked: &Asked) -> Result<Option<There>, CliError> {
    match fs::metadata(&asked.path) {
        Ok(meta) => {
            let kind = meta.file_type();
            if kind.is_char_device() || kind.is_block_device() {
                return Err(CliError::new("got a device"));
            }
            if !kind.is_dir() && !kind.is_file() {
                return Err(CliError::new("got an irregular file"));
            }
            let path = fs::canonicalize(&asked.path)?;
            Ok(Some(There { is_missing: false, is_directory: kind.is_dir(), is_file: kind.is_file(), path }))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // A symlink that leads nowhere yet: what it leads to is made.
            let parent = asked.path.parent().unwrap_or(Path::new("/"));
            let path = fs::read_link(&asked.path).map_or(asked.path.clone(), |target| parent.join(target));
            let parent = path.parent().unwrap_or(Path::new("/"));
            if parent.is_dir() {
                return Ok(Some(There { is_missing: true, is_directory: false, is_file: false, path }));
            }
            Err(CliError::new(format!("invalid output path: directory {parent:?} does not exist")))
        }
        Err(error) => Err(local_error("use", &asked.path, &error)),
    }
}

/// A file or tree of this machine.
struct LocalSource {
    asked: Asked,
    parent: File,
    name: OsString,
    /// A regular file or directory, open.
    opened: Option<File>,
}

impl LocalSource {
    fn open(path: &Path, follow: bool) -> Result<Self, CliError> {
        let asked = local(path)?;
        let missing = |error: io::Error| {
            let text = match error.raw_os_error() {
                Some(errno) => nix::errno::Errno::from_raw(errno).desc().to_lowercase(),
                None => error.to_string(),
            };
            CliError::new(format!("lstat {}: {text}", asked.path.display()))
        };
        let followed = follow || asked.directory;
        // A path that ends in `..` has no name of its own until it is resolved.
        let real = match asked.path.file_name() {
            Some(_) if !ends_with_parent(&asked.path) => asked.path.clone(),
            _ => fs::canonicalize(&asked.path).map_err(missing)?,
        };
        let meta =
            if followed { fs::metadata(&real) } else { fs::symlink_metadata(&real) }.map_err(missing)?;
        if asked.directory && !meta.is_dir() {
            return Err(CliError::new(format!("{}: not a directory", path.display())));
        }
        let opened = if meta.is_dir() || meta.is_file() {
            let flags = libc::O_NONBLOCK | libc::O_NOCTTY | if followed { 0 } else { libc::O_NOFOLLOW };
            let opened = fs::OpenOptions::new().read(true).custom_flags(flags).open(&real);
            Some(opened.map_err(|error| local_error("open", &real, &error))?)
        } else {
            None
        };
        let parent = real.parent().unwrap_or(Path::new("/"));
        let parent = File::open(parent).map_err(|error| local_error("open", parent, &error))?;
        let name = real.file_name().unwrap_or(OsStr::new("/")).to_owned();
        let content = asked.content || real == Path::new("/");
        Ok(Self { asked: Asked { path: real, content, ..asked }, parent, name, opened })
    }

    fn is_directory(&self) -> bool {
        self.opened.as_ref().is_some_and(|file| file.metadata().is_ok_and(|meta| meta.is_dir()))
    }

    fn pack(&self, out: File, owner: crate::sandbox::tree::Owner<'_>) -> Result<u64, TreeError> {
        let counted = Counted { inner: BufWriter::with_capacity(CHUNK_BYTES, out), bytes: 0 };
        let mut packer = Packer::new(counted, owner);
        let base = self.name.as_bytes();
        match &self.opened {
            Some(opened) => packer.add_opened(opened.try_clone().map_err(TreeError::Read)?.into(), base)?,
            None => {
                let name = std::ffi::CString::new(base).unwrap_or_default();
                packer.add(self.parent.as_fd(), &name, base)?;
            }
        }
        packer.finish().map(|counted| counted.bytes)
    }
}

fn ends_with_parent(path: &Path) -> bool {
    path.components().next_back() == Some(Component::ParentDir)
}

/// Hands an archive on, uncompressed.
fn send_stdin(out: File) -> Result<u64, TreeError> {
    let input = io::stdin().as_fd().try_clone_to_owned().map_err(TreeError::Read)?;
    let mut input = crate::image::uncompressed(Box::new(File::from(input))).map_err(TreeError::Read)?;
    let mut out = BufWriter::with_capacity(CHUNK_BYTES, out);
    let bytes = io::copy(&mut input, &mut out).map_err(TreeError::Write)?;
    out.flush().map_err(TreeError::Write)?;
    Ok(bytes)
}

/// The child's part, in the container.
fn work(inside: &Inside<'_>) -> Result<(), Failure> {
    let failed = |text: String| Failure::plain(Stage::Mounts, text);
    let tree = |error: TreeError| Failure::plain(Stage::Mounts, chain(&error));
    let next = || -> Result<(Message, Vec<OwnedFd>), Failure> {
        let (text, fds) = inside.receive()?;
        let message = serde_json::from_slice(&text).map_err(|error| failed(error.to_string()))?;
        Ok((message, fds))
    };
    let answer = |message: &Message| {
        let text = serde_json::to_vec(message).map_err(|error| failed(error.to_string()))?;
        inside.send(&text)
    };
    match next()?.0 {
        Message::Read { asked, follow } => {
            let source = copy::Source::open(inside.root, &asked.path, follow || asked.directory);
            let there = source.as_ref().map(|source| There {
                is_missing: false,
                is_directory: source.is_directory(),
                is_file: true,
                path: asked.path.clone(),
            });
            answer(&Message::There(there))?;
            let Some(source) = source else { return Ok(()) };
            let (Message::Pack { base }, mut fds) = next()? else { return Ok(()) };
            let out = fds.pop().ok_or_else(|| failed("the command sent no stream".into()))?;
            let owner = |uid, gid| (uid, gid);
            let mut packer = Packer::new(BufWriter::with_capacity(CHUNK_BYTES, File::from(out)), &owner);
            source.pack(&mut packer, &base).map_err(tree)?;
            packer.finish().map(drop).map_err(tree)
        }
        Message::Look { asked } => {
            let copy::Found { is_missing, is_directory, is_file, path } =
                copy::look(inside.root, &asked.path);
            answer(&Message::There(Some(There { is_missing, is_directory, is_file, path })))?;
            let (Message::Unpack { directory, rename, strip }, mut fds) = next()? else { return Ok(()) };
            let input = fds.pop().ok_or_else(|| failed("the command sent no stream".into()))?;
            let opened = inside.root.open(&directory, libc::O_RDONLY | libc::O_DIRECTORY).map_err(|_| {
                failed(format!("Could not find the file {} in the container", directory.display()))
            })?;
            let rename = match (rename, strip) {
                (Some(name), _) => Rename::To(OsStr::from_bytes(&name).to_owned()),
                (None, true) => Rename::Strip,
                (None, false) => Rename::Keep,
            };
            let owner = |uid, gid| (uid, gid);
            let options = Unpack { owner: Some(&owner), privileged: true, rename: &rename };
            let mut input = BufReader::with_capacity(CHUNK_BYTES, File::from(input));
            let bytes = unpack(&mut input, opened.as_fd(), &options).map_err(tree)?;
            io::copy(&mut input, &mut io::sink()).map_err(|error| failed(error.to_string()))?;
            answer(&Message::Done(bytes))
        }
        _ => Ok(()),
    }
}
