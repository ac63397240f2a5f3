//! Git repositories, as contexts and for ADD: fetched by the machine's own git, as BuildKit does.
//!
//! What comes of it depends on the commit alone: files have the modes that git knows (0644, 0755) and
//! the commit's time, whatever this machine's umask and clock say. Hooks and helpers of the repository
//! are not run.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;

use super::error::Problem;

/// A repository, and what of it is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Repository {
    address: String,
    /// A branch, a tag, a whole name such as `refs/pull/1/head`, or a commit; empty for HEAD.
    reference: String,
    /// A directory in it, empty for all.
    directory: String,
    /// The commit that it has to be, or how that begins.
    checksum: Option<String>,
    /// `keep-git-dir` of the address.
    keep_git_dir: bool,
    without_submodules: bool,
}

/// Whether a source is a git repository (BuildKit, "Git repositories": by scheme, or an HTTP address
/// whose path ends in `.git`).
pub(super) fn is_repository(source: &str) -> bool {
    let base = source.split(['#', '?']).next().unwrap_or(source);
    let by_scheme = ["git://", "ssh://"].iter().any(|scheme| source.starts_with(scheme))
        // user@host:path, as scp(1) has it.
        || (!base.contains("://") && base.starts_with("git@") && base.contains(':'));
    by_scheme
        || source.starts_with("github.com/")
        || (base.starts_with("http://") || base.starts_with("https://")) && base.ends_with(".git")
}

impl Repository {
    /// Reads `ADDRESS[?KEY=VALUE&...][#REFERENCE[:DIRECTORY]]`.
    pub(super) fn parse(source: &str) -> Result<Self, Problem> {
        let wrong = |what: &str| Problem::new(format!("invalid git source {source:?}: {what}"));
        let (address, fragment) = source.split_once('#').unwrap_or((source, ""));
        let (reference, directory) = fragment.split_once(':').unwrap_or((fragment, ""));
        let (address, query) = address.split_once('?').unwrap_or((address, ""));
        let address = match address.strip_prefix("github.com/") {
            Some(_) => format!("https://{address}"),
            None => address.to_owned(),
        };
        let mut found = Self {
            address,
            reference: reference.to_owned(),
            directory: directory.to_owned(),
            ..Self::default()
        };
        for field in query.split('&').filter(|field| !field.is_empty()) {
            let (key, value) = field.split_once('=').unwrap_or((field, "true"));
            let is_on = !matches!(value, "false" | "0");
            match key {
                "ref" => found.reference = value.to_owned(),
                "branch" => found.reference = format!("refs/heads/{value}"),
                "tag" => found.reference = format!("refs/tags/{value}"),
                "commit" => {
                    found.reference = value.to_owned();
                    found.checksum = Some(value.to_owned());
                }
                "checksum" => found.checksum = Some(value.to_owned()),
                "subdir" => found.directory = value.to_owned(),
                "keep-git-dir" => found.keep_git_dir = is_on,
                "submodules" => found.without_submodules = !is_on,
                _ => return Err(wrong(&format!("unexpected key {key:?}"))),
            }
        }
        if found.address.starts_with('-') || found.reference.starts_with('-') {
            return Err(wrong("it begins like an option of git"));
        }
        if let Some(checksum) = &found.checksum {
            check_form(checksum)?;
        }
        Ok(found)
    }

    /// ADD's `--checksum`.
    pub(super) fn expect(&mut self, checksum: &str) -> Result<(), Problem> {
        check_form(checksum)?;
        self.checksum = Some(checksum.to_owned());
        Ok(())
    }

    /// Fetches what is wanted to `place`, an empty directory; gives the directory that was asked for.
    pub(super) fn check_out(&self, place: &Path, keep_git_dir: bool) -> Result<PathBuf, Problem> {
        let git = Git { place, address: &self.address };
        git.run(&["init", "-q", "-b", "main"])?;
        git.run(&["remote", "add", "origin", &self.address])?;
        let wanted = if self.reference.is_empty() { "HEAD" } else { self.reference.as_str() };
        let commit = self.fetch(&git, wanted)?;
        if let Some(checksum) = self.checksum.as_ref().filter(|checksum| !commit.starts_with(*checksum)) {
            return Err(Problem::new(format!(
                "expected checksum to match {checksum}, got {commit} for {}",
                self.address
            )));
        }
        git.run(&["-c", "advice.detachedHead=false", "checkout", "-q", "--detach", &commit])?;
        if !self.without_submodules {
            git.run(&["submodule", "update", "-q", "--init", "--recursive", "--depth", "1"])?;
        }
        let time_s = git.answer(&["show", "-s", "--format=%ct", "HEAD"])?.parse().unwrap_or(0);
        let keeps = keep_git_dir || self.keep_git_dir;
        if !keeps {
            fs::remove_dir_all(place.join(".git"))?;
        }
        settle(place, time_s)?;
        let missing = || Problem::new(format!("{} has no directory {:?}", self.address, self.directory));
        let inside =
            fs::canonicalize(place.join(self.directory.trim_start_matches('/'))).map_err(|_| missing())?;
        if !inside.starts_with(fs::canonicalize(place)?) || !inside.is_dir() {
            return Err(missing());
        }
        Ok(inside)
    }

    /// Fetches one commit, alone where the server can do that, and gives its name.
    fn fetch(&self, git: &Git<'_>, wanted: &str) -> Result<String, Problem> {
        let is_commit = wanted.len() >= 7 && wanted.bytes().all(|byte| byte.is_ascii_hexdigit());
        let one = git.run(&["fetch", "-q", "--depth", "1", "--no-tags", "origin", wanted]);
        let Err(problem) = one else {
            return git.answer(&["rev-parse", "--verify", "-q", "FETCH_HEAD^{commit}"]);
        };
        // A server of plain files has no shallow clones; others give no commit that no branch ends in.
        let text = problem.to_string();
        if !is_commit && !text.contains("shallow") {
            return Err(problem);
        }
        git.run(&["fetch", "-q", "--tags", "origin", "+refs/heads/*:refs/remotes/origin/*"])?;
        if is_commit {
            let name = format!("{wanted}^{{commit}}");
            return git.answer(&["rev-parse", "--verify", "-q", &name]).map_err(|_| problem);
        }
        git.run(&["fetch", "-q", "origin", wanted])?;
        git.answer(&["rev-parse", "--verify", "-q", "FETCH_HEAD^{commit}"])
    }
}

fn check_form(checksum: &str) -> Result<(), Problem> {
    /// As many digits as git shows at least.
    const MIN_DIGITS: usize = 7;
    let is_hex = checksum.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    if is_hex && (MIN_DIGITS..=64).contains(&checksum.len()) {
        return Ok(());
    }
    Err(Problem::new(format!(
        "invalid checksum {checksum:?}: of a git source it is a commit's hexadecimal name"
    )))
}

struct Git<'a> {
    place: &'a Path,
    address: &'a str,
}

impl Git<'_> {
    fn run(&self, arguments: &[&str]) -> Result<(), Problem> {
        self.answer(arguments).map(drop)
    }

    fn answer(&self, arguments: &[&str]) -> Result<String, Problem> {
        let output = Command::new("git")
            .arg("-C")
            .arg(self.place)
            .args(["-c", "core.hooksPath=/dev/null", "-c", "protocol.ext.allow=never"])
            .args(["-c", "core.fsmonitor=false", "-c", "gc.auto=0"])
            .args(arguments)
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("LC_ALL", "C")
            .env_remove("GIT_DIR")
            .env_remove("GIT_WORK_TREE")
            .env_remove("GIT_INDEX_FILE")
            .stdin(Stdio::null())
            .output()
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => Problem::new(format!(
                    "cannot fetch {}: git is not installed here; clone it and build the directory",
                    self.address
                )),
                _ => Problem::new(format!("cannot run git: {error}")),
            })?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
        }
        let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(Problem::new(format!("failed to fetch {}: {text}", self.address)))
    }
}

/// Gives everything the modes that git knows and one time.
fn settle(path: &Path, time_s: i64) -> io::Result<()> {
    let meta = fs::symlink_metadata(path)?;
    if meta.is_dir() {
        for entry in fs::read_dir(path)? {
            settle(&entry?.path(), time_s)?;
        }
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    } else if meta.is_file() {
        let mode = if meta.permissions().mode() & 0o100 == 0 { 0o644 } else { 0o755 };
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
    let time = TimeSpec::new(time_s, 0);
    let name: &OsStr = path.as_os_str();
    utimensat(AT_FDCWD, name, &time, &time, UtimensatFlags::NoFollowSymlink)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn what_is_a_repository() {
        for (source, expected) in [
            ("git://host/repo", true),
            ("git@host:me/repo.git#main", true),
            ("ssh://git@host/repo", true),
            ("https://host/me/repo.git", true),
            ("https://host/me/repo.git#v1:docs", true),
            ("https://host/me/repo.git?tag=v1", true),
            ("http://host/file.tar", false),
            ("https://host/repo.git/file", false),
            ("github.com/me/repo", true),
            ("git@here", false),
            ("dir/repo.git", false),
        ] {
            assert_eq!(is_repository(source), expected, "{source}");
        }
    }

    #[test]
    fn sources_are_read() {
        let of = |address: &str, reference: &str, directory: &str| Repository {
            address: address.to_owned(),
            reference: reference.to_owned(),
            directory: directory.to_owned(),
            ..Repository::default()
        };
        for (source, expected) in [
            ("https://h/r.git", of("https://h/r.git", "", "")),
            ("https://h/r.git#main", of("https://h/r.git", "main", "")),
            ("https://h/r.git#:a/b", of("https://h/r.git", "", "a/b")),
            ("git@h:r.git#v1:d", of("git@h:r.git", "v1", "d")),
            ("github.com/me/r", of("https://github.com/me/r", "", "")),
            ("https://h/r.git?tag=v1&subdir=d", of("https://h/r.git", "refs/tags/v1", "d")),
            ("https://h/r.git?branch=b", of("https://h/r.git", "refs/heads/b", "")),
        ] {
            assert_eq!(Repository::parse(source).unwrap(), expected, "{source}");
        }
        let kept = Repository::parse("https://h/r.git?keep-git-dir=1&submodules=0&checksum=abcdef0").unwrap();
        assert!(kept.keep_git_dir && kept.without_submodules);
        assert_eq!(kept.checksum.as_deref(), Some("abcdef0"));
        for source in
            ["https://h/r.git?what=1", "https://h/r.git#--upload-pack=x", "https://h/r.git?checksum=x"]
        {
            assert!(Repository::parse(source).is_err(), "{source}");
        }
    }
}
