//! Where a build's files come from: a directory, a tar (a file, standard input, the web) or a git
//! repository. All but the first become a directory of the build's own.

use std::fs::{self, File};
use std::io::{self, Cursor, Read};
use std::path::{Path, PathBuf};

use super::error::Problem;
use super::git::{Repository, is_repository};
use super::scratch::Scratch;
use crate::image::{registry, uncompressed};
use crate::plan::dockerfile::ignore::Ignore;
use crate::plan::dockerfile::lines::MAX_BYTES as MAX_DOCKERFILE_BYTES;
use crate::store::Store;

/// Entries of a context that comes as a tar.
const MAX_ENTRIES: u64 = 2_000_000;
/// Bytes of a context that comes as a tar.
const MAX_CONTEXT_BYTES: u64 = 256 << 30;
/// Bytes of an ignore file.
const MAX_IGNORE_BYTES: u64 = 4 << 20;
/// Where a Dockerfile is looked for, in order.
const NAMES: [&str; 3] = ["Dockerfile", "dockerfile", "Containerfile"];

/// A context and its Dockerfile.
#[derive(Debug)]
pub struct Context {
    /// The directory; none where only a Dockerfile was given.
    pub directory: Option<PathBuf>,
    /// What messages call the Dockerfile.
    pub file_name: String,
    /// Its text.
    pub text: String,
    /// What of the directory is not seen.
    pub ignore: Ignore,
    /// Keeps a directory that was made for this.
    _scratch: Option<Scratch>,
}

/// What is needed to find a context. Standard input is read once.
#[derive(Debug)]
pub struct Asked<'a> {
    /// PATH, URL or `-`.
    pub context: &'a str,
    /// `-f`.
    pub file: Option<&'a str>,
    /// Of a repository its `.git` stays (the build argument BUILDKIT_CONTEXT_KEEP_GIT_DIR).
    pub keep_git_dir: bool,
}

impl Context {
    /// Finds the context and reads its Dockerfile.
    ///
    /// # Errors
    /// There is no such thing; it cannot be read; it has no Dockerfile.
    pub fn open(store: &Store, asked: &Asked<'_>) -> Result<Self, Problem> {
        let mut scratch = None;
        let mut inline = None;
        let is_local = Path::new(asked.context).is_dir();
        let directory = match asked.context {
            "-" => {
                if asked.file == Some("-") {
                    return Err(Problem::new(
                        "invalid argument: can't use stdin for both build context and dockerfile",
                    ));
                }
                let mut head = Vec::new();
                let mut stdin = io::stdin().lock();
                stdin.by_ref().take(512).read_to_end(&mut head)?;
                Self::of_stream(store, head, &mut stdin, &mut scratch, &mut inline)?
            }
            path if is_local => Some(fs::canonicalize(path)?),
            url if is_repository(url) => Some(clone(store, url, asked.keep_git_dir, &mut scratch)?),
            url if url.starts_with("http://") || url.starts_with("https://") => {
                let fetched = registry::download(url).map_err(|error| Problem::chain(&error))?;
                let (mut head, mut body) = (Vec::new(), fetched.body);
                body.by_ref().take(512).read_to_end(&mut head)?;
                Self::of_stream(store, head, &mut body, &mut scratch, &mut inline)?
            }
            path => {
                let mut file = File::open(path).map_err(|_| {
                    Problem::new(format!("unable to prepare context: path {path:?} not found"))
                })?;
                let mut head = Vec::new();
                file.by_ref().take(512).read_to_end(&mut head)?;
                Self::of_stream(store, head, &mut file, &mut scratch, &mut inline)?
            }
        };
        if let Some(text) = inline {
            return Ok(Self {
                directory: None,
                file_name: "Dockerfile".to_owned(),
                text,
                ignore: Ignore::default(),
                _scratch: scratch,
            });
        }
        let directory = directory.ok_or_else(|| Problem::new("there is no context"))?;
        let (file_name, path, text) = match asked.file {
            Some("-") => {
                let mut text = Vec::new();
                io::stdin().lock().take(MAX_DOCKERFILE_BYTES as u64 + 1).read_to_end(&mut text)?;
                ("Dockerfile".to_owned(), None, text)
            }
            Some(name) => {
                // Of a context that came from elsewhere it is a path inside; else one of the machine.
                let path = if is_local && Path::new(name).exists() {
                    PathBuf::from(name)
                } else {
                    directory.join(name)
                };
                let text = read_limited(&path, MAX_DOCKERFILE_BYTES as u64)
                    .map_err(|error| missing(name, &error))?;
                (
                    Path::new(name).file_name().unwrap_or_default().to_string_lossy().into_owned(),
                    Some(path),
                    text,
                )
            }
            None => {
                let name = NAMES.iter().find(|name| directory.join(name).is_file()).unwrap_or(&NAMES[0]);
                let path = directory.join(name);
                let text = read_limited(&path, MAX_DOCKERFILE_BYTES as u64)
                    .map_err(|error| missing(name, &error))?;
                ((*name).to_owned(), Some(path), text)
            }
        };
        let text = String::from_utf8(text)
            .map_err(|_| Problem::new(format!("failed to read dockerfile: {file_name} is not UTF-8")))?;
        let own = path.map(|path| {
            let mut name = path.into_os_string();
            name.push(".dockerignore");
            PathBuf::from(name)
        });
        let ignore = match own.filter(|own| own.is_file()) {
            Some(own) => read_limited(&own, MAX_IGNORE_BYTES)?,
            None => match read_limited(&directory.join(".dockerignore"), MAX_IGNORE_BYTES) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
                other => other?,
            },
        };
        let ignore = Ignore::parse(&String::from_utf8_lossy(&ignore)).map_err(Problem::new)?;
        Ok(Self { directory: Some(directory), file_name, text, ignore, _scratch: scratch })
    }

    /// A tar, or, where it is none, a Dockerfile's text.
    fn of_stream(
        store: &Store,
        head: Vec<u8>,
        rest: &mut dyn Read,
        scratch: &mut Option<Scratch>,
        inline: &mut Option<String>,
    ) -> Result<Option<PathBuf>, Problem> {
        if head.is_empty() {
            return Err(Problem::new("the Dockerfile or context is empty"));
        }
        let is_archive = super::unpack::is_archive_head(&head);
        let mut whole = Cursor::new(head).chain(rest);
        if !is_archive {
            let mut text = Vec::new();
            whole.take(MAX_DOCKERFILE_BYTES as u64 + 1).read_to_end(&mut text)?;
            let text = String::from_utf8(text)
                .map_err(|_| Problem::new("what was given is neither a tar nor a Dockerfile"))?;
            *inline = Some(text);
            return Ok(None);
        }
        let made = Scratch::new(store)?;
        let place = made.directory("context")?;
        unpack(&mut whole, &place)?;
        *scratch = Some(made);
        Ok(Some(place))
    }
}

/// The files of a named context that is elsewhere.
#[derive(Debug)]
pub struct Fetched {
    /// Where they are, as long as this is there.
    pub directory: PathBuf,
    _scratch: Option<Scratch>,
}

impl Fetched {
    /// Brings a git repository, or a tar of the web.
    ///
    /// # Errors
    /// It is neither; it cannot be had.
    pub fn fetch(store: &Store, url: &str, keep_git_dir: bool) -> Result<Self, Problem> {
        let mut scratch = None;
        if is_repository(url) {
            let directory = clone(store, url, keep_git_dir, &mut scratch)?;
            return Ok(Self { directory, _scratch: scratch });
        }
        if !(url.starts_with("http://") || url.starts_with("https://")) {
            return Err(Problem::new(
                "it is a directory, docker-image://NAME, oci-layout://DIR, a git repository or a tar of the web",
            ));
        }
        let fetched = registry::download(url).map_err(|error| Problem::chain(&error))?;
        let (mut head, mut body) = (Vec::new(), fetched.body);
        body.by_ref().take(512).read_to_end(&mut head)?;
        let directory = Context::of_stream(store, head, &mut body, &mut scratch, &mut None)?;
        let directory = directory.ok_or_else(|| Problem::new("what is there is no tar"))?;
        Ok(Self { directory, _scratch: scratch })
    }
}

fn missing(name: &str, error: &io::Error) -> Problem {
    match error.kind() {
        io::ErrorKind::NotFound => {
            Problem::new(format!("failed to read dockerfile: open {name}: no such file or directory"))
        }
        _ => Problem::new(format!("failed to read dockerfile: open {name}: {error}")),
    }
}

fn read_limited(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::other(format!("it has more than {limit} bytes")));
    }
    Ok(bytes)
}

/// Unpacks a context: files, directories and symlinks, none of which leads out of `place` while it is
/// written (the `tar` crate's `unpack_in`).
fn unpack(stream: &mut dyn Read, place: &Path) -> Result<(), Problem> {
    let mut archive = tar::Archive::new(uncompressed(Box::new(stream))?);
    archive.set_overwrite(true);
    let (mut count, mut bytes) = (0, 0_u64);
    for entry in archive.entries()? {
        let mut entry = entry?;
        count += 1;
        bytes = bytes.saturating_add(entry.size());
        if count > MAX_ENTRIES || bytes > MAX_CONTEXT_BYTES {
            return Err(Problem::new(format!(
                "the context is larger than {MAX_ENTRIES} files and {MAX_CONTEXT_BYTES} bytes"
            )));
        }
        use tar::EntryType::{Directory, Link, Regular, Symlink};
        if matches!(
            entry.header().entry_type(),
            Regular | Directory | Symlink | Link | tar::EntryType::GNUSparse | tar::EntryType::Continuous
        ) {
            entry.unpack_in(place)?;
        }
    }
    Ok(())
}

/// A repository's files, in a directory of the build's own.
fn clone(
    store: &Store,
    url: &str,
    keep_git_dir: bool,
    scratch: &mut Option<Scratch>,
) -> Result<PathBuf, Problem> {
    let repository = Repository::parse(url)?;
    let made = Scratch::new(store)?;
    let inside = repository.check_out(&made.directory("context")?, keep_git_dir)?;
    *scratch = Some(made);
    Ok(inside)
}
