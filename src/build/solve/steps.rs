//! What RUN, COPY and ADD become: a job, its keys, and what the history says of it.

use std::fs;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::super::copy::{CopyJob, Given as GivenFile, GivenContent, Origin};
use super::super::error::Problem;
use super::super::git::{self, Repository};
use super::super::remote;
use super::super::request::{NamedContext, SecretSource};
use super::super::run::{MountSource, Mounted, RunJob};
use super::super::state::PROXIES;
use super::{Job, Solver, Work, key};
use crate::id::Digest;
use crate::image::{self, Platform};
use crate::plan::NetworkMode;
use crate::plan::dockerfile::expand::{self, Scope};
use crate::plan::dockerfile::ignore::Ignore;
use crate::plan::dockerfile::{Command, Copy, MountKind, Run, RunMount};
use crate::plan::mount::clean_destination;

impl Solver<'_> {
    /// What `from` names: the context itself where nothing does.
    pub(super) fn origin(&mut self, number: usize, from: Option<&str>) -> Result<Origin, Problem> {
        let Some(from) = from else {
            let path = self.request.context.clone().ok_or_else(|| {
                Problem::new("there is no context to copy from: give a directory instead of a Dockerfile on standard input")
            })?;
            return Ok(Origin::Directory { path, ignore: self.request.ignore.clone() });
        };
        if let Some(stage) = self.referred_stage(from, number) {
            return Ok(Origin::Image { layers: self.state(stage)?.layers.clone() });
        }
        let platform = self.request.platform.clone();
        match self.request.contexts.get(from).cloned() {
            Some(NamedContext::Directory(path)) => {
                let ignore = fs::read_to_string(path.join(".dockerignore"))
                    .ok()
                    .map(|text| Ignore::parse(&text))
                    .transpose()
                    .map_err(Problem::new)?
                    .unwrap_or_default();
                Ok(Origin::Directory { path, ignore })
            }
            Some(NamedContext::Image(reference)) => {
                Ok(Origin::Image { layers: self.base_image(&reference, platform.as_deref())?.layers })
            }
            None if from.eq_ignore_ascii_case("scratch") => Ok(Origin::Image { layers: Vec::new() }),
            None => Ok(Origin::Image { layers: self.base_image(from, platform.as_deref())?.layers }),
        }
    }

    pub(super) fn copy_work(&mut self, number: usize, copy: &Copy) -> Result<Work, Problem> {
        let escape = self.escape();
        let origin = if copy.sources.iter().all(|source| copy.is_add && is_remote(source)) {
            Origin::Image { layers: Vec::new() }
        } else {
            self.origin(number, copy.from.as_deref())?
        };
        let state = self.state(number)?;
        let word = |text: &str| state.expand(text, escape);
        let optional = |text: &Option<String>| text.as_deref().map(word).transpose();
        let (chown, chmod, checksum) =
            (optional(&copy.chown)?, optional(&copy.chmod)?, optional(&copy.checksum)?);
        let sources = copy.sources.iter().map(|source| word(source)).collect::<Result<Vec<_>, _>>()?;
        let exclude = copy.exclude.iter().map(|pattern| word(pattern)).collect::<Result<Vec<_>, _>>()?;
        let written_destination = word(&copy.destination)?;
        let destination = placed(state.text("WorkingDir"), &written_destination);
        let variable = |name: &str| state.variable(name);
        let scope = Scope { variable: &variable, escape };
        let mut given = Vec::new();
        for document in &copy.documents {
            let content = if document.expand {
                expand::document(&document.content, scope).map_err(Problem::new)?
            } else {
                document.content.clone()
            };
            given.push(GivenFile {
                name: document.name.clone(),
                content: GivenContent::Bytes(content.into_bytes()),
                mode: 0o644,
                mtime_s: None,
            });
        }
        let layers_key = state.layers_key();
        let layers = state.layers.clone();
        let (local, remote): (Vec<String>, Vec<String>) =
            sources.iter().cloned().partition(|source| !(copy.is_add && is_remote(source)));
        if checksum.is_some() && sources.len() != 1 {
            return Err(Problem::new("checksum can't be specified for multiple sources"));
        }
        if checksum.is_some() && remote.len() != 1 {
            return Err(Problem::new("checksum requires HTTP(S) or Git sources"));
        }
        let repositories = remote.iter().filter(|url| git::is_repository(url)).count();
        if copy.keep_git_dir && repositories == 0 {
            return Err(Problem::new("keep-git-dir is only for git sources"));
        }
        let (origin, local) = if repositories == 0 {
            for url in &remote {
                given.push(remote::fetch(url, checksum.as_deref(), self.scratch)?);
            }
            (origin, local)
        } else if sources.len() == 1 {
            let mut repository = Repository::parse(&sources[0])?;
            if let Some(checksum) = &checksum {
                repository.expect(checksum)?;
            }
            let number = u64::from_ne_bytes(crate::sys::process::random_bytes()?);
            let place = self.scratch.directory(&format!("git-{number:x}"))?;
            let path = repository.check_out(&place, copy.keep_git_dir)?;
            (Origin::Directory { path, ignore: Ignore::default() }, vec!["/".to_owned()])
        } else {
            return Err(Problem::new(
                "a git repository is added alone: give it, and the other sources, an ADD of its own",
            ));
        };
        let unpacks = copy.is_add && copy.unpack != Some(false);
        let job = CopyJob {
            origin,
            sources: local,
            given,
            destination,
            unpack: unpacks,
            unpack_given: copy.is_add && copy.unpack == Some(true),
            chown,
            chmod,
            link: copy.link,
            parents: copy.parents,
            exclude,
            layers,
            now_s: self.now.as_second(),
            clamp_s: self.clamp_s(),
        };
        let options = format!(
            "{} {} {:?} {:?} {} {} {:?}",
            job.unpack, job.unpack_given, job.chown, job.chmod, job.link, job.parents, job.exclude
        );
        let below = if job.link { "link" } else { &layers_key };
        let mut keys = Vec::new();
        // Of an image's files the layers say all: told before anything is read.
        if let Origin::Image { layers } = &job.origin
            && job.given.is_empty()
        {
            let chain = crate::store::chain_id(layers)
                .map_or_else(|| "scratch".to_owned(), |chain| chain.to_string());
            keys.push(key(&[
                "copy-from",
                below,
                &chain,
                &job.sources.join("\0"),
                &job.destination,
                &options,
                &self.time_key(),
            ]));
        }
        if keys.is_empty() || self.known(number, &keys)?.is_none() {
            let digest = job.digest(self.store, &mut self.digests)?;
            keys.push(key(&[
                "copy",
                below,
                &digest.to_string(),
                &job.destination,
                &options,
                &self.time_key(),
            ]));
        }
        let mut history = String::from(if copy.is_add { "ADD" } else { "COPY" });
        if copy.parents {
            history.push_str(" --parents");
        }
        if let Some(chown) = &job.chown {
            history.push_str(&format!(" --chown={chown}"));
        }
        if let Some(chmod) = &job.chmod {
            history.push_str(&format!(" --chmod={chmod}"));
        }
        for source in &sources {
            history.push_str(&format!(" {source}"));
        }
        for document in &copy.documents {
            history.push_str(&format!(" <<{}", document.name));
        }
        history.push_str(&format!(" {written_destination} # buildkit"));
        Ok(Work { job: Job::Copy(Box::new(job)), keys, history, begun: None })
    }

    pub(super) fn run_work(&mut self, number: usize, run: &Run) -> Result<Work, Problem> {
        let escape = self.escape();
        if run.security.as_deref() == Some("insecure") {
            return Err(Problem::new(
                "granting entitlement security.insecure is not allowed: a step has no more rights than a container of `run`; use `run --privileged` and `commit`",
            ));
        }
        if let Some(device) = run.devices.first() {
            return Err(Problem::new(format!(
                "RUN --device={device} is not supported: builds have no devices"
            )));
        }
        let state = self.state(number)?;
        let shell = state.shell();
        let arguments = state.arguments();
        let layers_key = state.layers_key();
        let mut mounts = Vec::new();
        let mut mount_keys = Vec::new();
        let (args, script) = command(run, &shell);
        if let Some((path, bytes)) = script {
            mount_keys.push(format!("script {path} {}", Digest::from_bytes(&Sha256::digest(&bytes).into())));
            mounts.push(Mounted {
                target: path.into(),
                source: MountSource::Content { bytes, mode: 0o755, owner: (0, 0) },
            });
        }
        let mut env = arguments.clone();
        let expanded = run
            .mounts
            .iter()
            .map(|text| {
                let text = if text.contains('$') { state.expand(text, escape)? } else { text.clone() };
                RunMount::parse(&text).map_err(Problem::new)
            })
            .collect::<Result<Vec<_>, _>>()?;
        for mount in &expanded {
            self.mount(number, mount, &mut mounts, &mut mount_keys, &mut env)?;
        }
        let state = self.state(number)?;
        let mut effective = env;
        for name in PROXIES {
            if let Some(value) = self.build_argument(name)
                && state.variable(name).is_none()
            {
                effective.push((name.to_owned(), value.to_owned()));
            }
        }
        let network = match run.network.as_deref() {
            Some("none") => NetworkMode::None,
            Some("host") => NetworkMode::Host,
            _ => self.request.run.network.clone().unwrap_or(NetworkMode::Bridge),
        };
        let list = |key: &str| state.config()[key].to_string();
        let mut parts = vec![
            "run".to_owned(),
            layers_key,
            serde_json::json!(args).to_string(),
            serde_json::json!(arguments).to_string(),
            list("Env"),
            list("WorkingDir"),
            list("User"),
            state.platform(),
            format!("{network:?}"),
            self.time_key(),
        ];
        parts.extend(mount_keys);
        parts.extend(self.request.run.extra_hosts.iter().map(|host| format!("{host:?}")));
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let key = key(&parts);
        let known = self.known(number, std::slice::from_ref(&key))?.is_some();
        let state = self.state(number)?;
        let found: Platform = state.platform().parse().map_err(Problem::new)?;
        if !known && !Platform::host().runs(&found) && !has_interpreter(&found) {
            return Err(Problem::new(format!(
                "cannot run {found} programs on this machine: binfmt_misc has no interpreter for them (install qemu-user-static), or leave RUN out of the stages of that platform"
            )));
        }
        // Of a step that is known nothing has to be ready.
        let root = if known { image::RootSource::Host } else { state.root(self.store)? };
        let job = RunJob {
            args: args.clone(),
            env: effective,
            image: state.image().clone(),
            root,
            network,
            mounts,
            options: self.request.run.clone(),
            clamp_s: self.clamp_s(),
        };
        let mut told = String::from("RUN");
        let told_arguments = state.told_arguments();
        if !told_arguments.is_empty() {
            told.push_str(&format!(" |{}", told_arguments.len()));
            for (name, value) in &told_arguments {
                told.push_str(&format!(" {name}={value}"));
            }
        }
        told.push_str(&format!(" {} # buildkit", args.join(" ")));
        Ok(Work { job: Job::Run(Box::new(job)), keys: vec![key], history: told, begun: None })
    }

    fn mount(
        &mut self,
        number: usize,
        mount: &RunMount,
        mounts: &mut Vec<Mounted>,
        keys: &mut Vec<String>,
        env: &mut Vec<(String, String)>,
    ) -> Result<(), Problem> {
        let working_dir = self.state(number)?.text("WorkingDir").to_owned();
        let target = mount.target.as_deref().map(|target| placed(&working_dir, target));
        let absolute = |target: &Option<String>| -> Result<std::path::PathBuf, Problem> {
            let target = target.as_deref().ok_or_else(|| Problem::new("target is required"))?;
            clean_destination(target)
                .filter(|path| path != Path::new("/"))
                .ok_or_else(|| Problem::new(format!("invalid mount target {target:?}")))
        };
        let source = mount.source.clone().unwrap_or_else(|| "/".to_owned());
        match &mount.kind {
            MountKind::Bind => {
                let origin = self.origin(number, mount.from.as_deref())?;
                let digest = self.origin_digest(&origin, &source)?;
                keys.push(format!("bind {target:?} {source:?} {} {digest}", mount.writable));
                mounts.push(Mounted {
                    target: absolute(&target)?,
                    source: MountSource::Bind { origin, path: source, writable: mount.writable },
                });
            }
            MountKind::Cache { id, sharing } => {
                let seed = match &mount.from {
                    Some(from) => Some((self.origin(number, Some(from))?, source.clone())),
                    None => None,
                };
                let path = absolute(&target)?;
                let id = id.clone().unwrap_or_else(|| path.display().to_string());
                let from = mount.from.clone().unwrap_or_default();
                keys.push(format!("cache {path:?} {id:?} {from:?} {source:?} {sharing:?}"));
                let name = key(&["mount", &id, &from, &source]);
                mounts.push(Mounted {
                    target: path,
                    source: MountSource::Cache {
                        key: name,
                        id,
                        sharing: *sharing,
                        seed,
                        mode: mount.mode.unwrap_or(0o755),
                        owner: (mount.uid, mount.gid),
                        writable: mount.writable,
                    },
                });
            }
            MountKind::Tmpfs { size } => {
                keys.push(format!("tmpfs {target:?} {size:?}"));
                mounts
                    .push(Mounted { target: absolute(&target)?, source: MountSource::Tmpfs { size: *size } });
            }
            MountKind::Secret { id, required, env: variable } => {
                // Its name is part of the key, its content is not, as with BuildKit.
                keys.push(format!("secret {id:?} {target:?} {variable:?}"));
                let Some(bytes) = self.secret(id)? else {
                    return if *required {
                        Err(Problem::new(format!("secret {id}: not found")))
                    } else {
                        Ok(())
                    };
                };
                if let Some(name) = variable {
                    let text = String::from_utf8(bytes.clone()).map_err(|_| {
                        Problem::new(format!("secret {id} cannot be a variable: it is no text"))
                    })?;
                    env.push((name.clone(), text));
                }
                if target.is_some() {
                    let source = MountSource::Content {
                        bytes,
                        mode: mount.mode.unwrap_or(0o400),
                        owner: (mount.uid, mount.gid),
                    };
                    mounts.push(Mounted { target: absolute(&target)?, source });
                }
            }
            MountKind::Ssh { id, required } => {
                keys.push(format!("ssh {id:?} {target:?}"));
                let Some(agent) = self.request.ssh.iter().find(|agent| agent.id == *id) else {
                    return if *required {
                        Err(Problem::new(format!("unset ssh forward key {id}: give --ssh {id}")))
                    } else {
                        Ok(())
                    };
                };
                let count =
                    mounts.iter().filter(|mount| matches!(mount.source, MountSource::Socket { .. })).count();
                let path = match target {
                    Some(_) => absolute(&target)?,
                    None => format!("/run/buildkit/ssh_agent.{count}").into(),
                };
                if count == 0 {
                    env.push(("SSH_AUTH_SOCK".to_owned(), path.display().to_string()));
                }
                mounts.push(Mounted {
                    target: path,
                    source: MountSource::Socket { path: agent.socket.clone() },
                });
            }
        }
        Ok(())
    }

    fn secret(&self, id: &str) -> Result<Option<Vec<u8>>, Problem> {
        /// BuildKit's limit.
        const MAX_SECRET_BYTES: u64 = 500 << 10;
        let Some(secret) = self.request.secrets.iter().find(|secret| secret.id == id) else {
            return Ok(None);
        };
        match &secret.source {
            SecretSource::Value(bytes) => Ok(Some(bytes.clone())),
            SecretSource::File(path) => {
                use std::io::Read as _;
                let opened = fs::File::open(path);
                let file = opened.map_err(|error| {
                    Problem::new(format!("secret {id}: cannot open {}: {error}", path.display()))
                })?;
                let mut bytes = Vec::new();
                file.take(MAX_SECRET_BYTES + 1).read_to_end(&mut bytes)?;
                if bytes.len() as u64 > MAX_SECRET_BYTES {
                    return Err(Problem::new(format!(
                        "secret {id} is larger than {} KiB",
                        MAX_SECRET_BYTES >> 10
                    )));
                }
                Ok(Some(bytes))
            }
        }
    }

    /// What a bind shows.
    fn origin_digest(&mut self, origin: &Origin, path: &str) -> Result<String, Problem> {
        if let Origin::Image { layers } = origin {
            return Ok(crate::store::chain_id(layers).map_or_else(String::new, |chain| chain.to_string()));
        }
        let job = CopyJob::as_it_is(origin.clone(), path);
        Ok(job.digest(self.store, &mut self.digests)?.to_string())
    }
}

/// A path of the image, a relative one below the working directory; a slash at the end stays.
fn placed(working_dir: &str, path: &str) -> String {
    let absolute = if path.starts_with('/') { path.to_owned() } else { format!("/{working_dir}/{path}") };
    let clean =
        clean_destination(&absolute).map_or_else(|| absolute.clone(), |path| path.display().to_string());
    let is_directory = path.ends_with('/') || path.ends_with("/.") || path == "." || path.is_empty();
    if is_directory && clean != "/" { format!("{clean}/") } else { clean }
}

fn is_remote(source: &str) -> bool {
    ["http://", "https://"].iter().any(|scheme| source.starts_with(scheme)) || git::is_repository(source)
}

/// The words of a RUN, and a script that they need.
fn command(run: &Run, shell: &[String]) -> (Vec<String>, Option<(String, Vec<u8>)>) {
    let text = match &run.command {
        Command::Exec(words) => return (words.clone(), None),
        Command::Shell(text) => text,
    };
    let with_shell = |text: String| {
        let mut words = shell.to_vec();
        words.push(text);
        words
    };
    let [first, ..] = run.documents.as_slice() else { return (with_shell(text.clone()), None) };
    if run.documents.len() == 1 && text.trim() == first.token {
        // The document is the script itself.
        if first.content.starts_with("#!") {
            let path = format!("/dev/pipes/{}", first.name);
            return (vec![path.clone()], Some((path, first.content.clone().into_bytes())));
        }
        return (with_shell(first.content.clone()), None);
    }
    let mut whole = text.clone();
    for document in &run.documents {
        whole.push_str(&format!("\n{}{}", document.content, document.name));
    }
    (with_shell(whole), None)
}

/// Whether the kernel hands programs of a platform to an interpreter.
fn has_interpreter(platform: &Platform) -> bool {
    let text = platform.to_string();
    let name = match text.split('/').nth(1).unwrap_or_default() {
        "arm64" => "aarch64",
        "386" => "i386",
        "amd64" => "x86_64",
        other => other,
    };
    let path = format!("/proc/sys/fs/binfmt_misc/qemu-{name}");
    fs::read_to_string(path).is_ok_and(|text| text.starts_with("enabled"))
}
