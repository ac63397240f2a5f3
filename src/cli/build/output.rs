//! `--output`: where the result of a build goes.

use std::fs::{self, File};
use std::io::{self, IsTerminal as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use super::{Finished, image_problem};
use crate::build::{write_files, write_tar};
use crate::cli::progress::Show;
use crate::cli::{CliError, Exit};
use crate::id::Digest;
use crate::image::{self, SaveFormat, SaveWanted, registry};
use crate::store::Store;

/// One `--output`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Output {
    kind: Kind,
    dest: Option<PathBuf>,
    names: Vec<String>,
    push: bool,
    rewrite_timestamps: bool,
    /// `annotation[-TYPE].KEY=VALUE`, as `--annotation` has them.
    annotations: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The files, as files.
    Local,
    /// The files, as a tar.
    Tar,
    /// An OCI archive, or a layout where `tar=false`.
    Oci { is_directory: bool },
    /// A docker-archive, or the store where there is no destination.
    Docker,
    /// An image of the store.
    Image,
    /// Nothing but the steps.
    CacheOnly,
}

/// What a registry got.
pub(super) struct Written {
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) is_index: bool,
}

impl Output {
    /// Reads all of them, and what stands for one.
    pub(super) fn parse_all(push: bool, texts: &[String], tag: Option<&str>) -> Result<Vec<Self>, CliError> {
        let mut outputs = texts.iter().map(|text| Self::parse(text)).collect::<Result<Vec<_>, _>>()?;
        if push {
            match outputs.iter_mut().find(|output| output.kind == Kind::Image) {
                Some(output) => output.push = true,
                None => outputs.push(Self {
                    kind: Kind::Image,
                    dest: None,
                    names: Vec::new(),
                    push: true,
                    rewrite_timestamps: false,
                    annotations: Vec::new(),
                }),
            }
        }
        if outputs.iter().any(|output| output.push && output.names.is_empty()) && tag.is_none() {
            return Err(CliError::new("tag is needed when pushing to registry").with_exit(Exit::Engine));
        }
        Ok(outputs)
    }

    fn parse(text: &str) -> Result<Self, CliError> {
        let wrong = |reason: &str| {
            CliError::new(format!("invalid argument {text:?} for \"-o, --output\" flag: {reason}"))
                .with_exit(Exit::Engine)
        };
        let (mut kind, mut dest, mut names) = (None, None, Vec::new());
        let mut annotations = Vec::new();
        let (mut push, mut rewrite_timestamps, mut is_directory) = (false, false, false);
        // A path alone: files there, or a tar on standard output.
        if !text.contains('=') {
            let kind = if text == "-" { Kind::Tar } else { Kind::Local };
            return Ok(Self { kind, dest: Some(text.into()), names, push, rewrite_timestamps, annotations });
        }
        for field in text.split(',') {
            let (key, value) = field.split_once('=').ok_or_else(|| wrong("it must be key=value pairs"))?;
            let flag = || match value {
                "true" | "1" => Ok(true),
                "false" | "0" => Ok(false),
                _ => Err(wrong(&format!("{key} is true or false"))),
            };
            match key.to_ascii_lowercase().as_str() {
                "type" => {
                    kind = Some(match value {
                        "local" => Kind::Local,
                        "tar" => Kind::Tar,
                        "oci" => Kind::Oci { is_directory: false },
                        "docker" => Kind::Docker,
                        "image" => Kind::Image,
                        "cacheonly" => Kind::CacheOnly,
                        "registry" => {
                            push = true;
                            Kind::Image
                        }
                        other => {
                            return Err(wrong(&format!(
                                "the type {other:?} is none of local, tar, oci, docker, image, registry and cacheonly"
                            )));
                        }
                    });
                }
                "dest" => dest = Some(PathBuf::from(value)),
                "name" => names.extend(value.split(' ').filter(|name| !name.is_empty()).map(str::to_owned)),
                "push" => push |= flag()?,
                "rewrite-timestamp" => rewrite_timestamps = flag()?,
                "tar" => is_directory = !flag()?,
                // What they choose is chosen when an image is pushed, or is how the store has it.
                "compression" | "force-compression" | "oci-mediatypes" | "unpack" | "store"
                | "platform-split" => {}
                other => match other.strip_prefix("annotation").and_then(|rest| rest.split_once('.')) {
                    // As it was typed: keys of annotations have capitals.
                    Some((level, _)) => {
                        let key = key.split_once('.').map_or("", |(_, key)| key);
                        let level = if level.is_empty() { "manifest" } else { &level[1..] };
                        annotations.push(format!("{level}:{key}={value}"));
                    }
                    None => return Err(wrong(&format!("unknown key {other:?}"))),
                },
            }
        }
        let mut kind = kind.ok_or_else(|| wrong("type is required"))?;
        if let Kind::Oci { is_directory: directory } = &mut kind {
            *directory = is_directory;
        }
        if dest.is_none() && matches!(kind, Kind::Local) {
            return Err(wrong("dest is required for local exporter"));
        }
        Ok(Self { kind, dest, names, push, rewrite_timestamps, annotations })
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.names.clone()
    }

    pub(super) fn annotations(&self) -> impl Iterator<Item = &str> {
        self.annotations.iter().map(String::as_str)
    }

    /// Whether it can take an image for several platforms.
    pub(super) fn check_several(&self) -> Result<(), CliError> {
        let reason = match self.kind {
            Kind::Docker if self.dest.is_some() => {
                "docker exporter does not currently support exporting manifest lists: use type=oci"
            }
            Kind::Tar => "the tar exporter takes one platform: use type=local or type=oci",
            _ => return Ok(()),
        };
        Err(CliError::new(format!("failed to build: {reason}")))
    }

    pub(super) fn rewrites_timestamps(&self) -> bool {
        self.rewrite_timestamps
    }

    /// Whether the result has to be an image of the store.
    pub(super) fn needs_image(&self) -> bool {
        !matches!(self.kind, Kind::Local | Kind::Tar | Kind::CacheOnly)
    }

    /// Writes the result there; tells what was pushed.
    pub(super) fn write(
        &self,
        store: &Store,
        result: &Finished,
        quiet: bool,
    ) -> Result<Option<Written>, CliError> {
        match self.kind {
            Kind::Local => {
                let dest = self.dest.as_deref().unwrap_or(Path::new("."));
                for (platform, built) in &result.builds {
                    // Of several, each has a directory of its own, called as BuildKit calls it.
                    let place = match platform {
                        Some(platform) if result.builds.len() > 1 => dest.join(platform.replace('/', "_")),
                        _ => dest.to_owned(),
                    };
                    fs::create_dir_all(&place).map_err(|error| {
                        CliError::new(format!("cannot make {}: {error}", place.display()))
                    })?;
                    write_files(store, &built.layers, &place)?;
                }
            }
            Kind::Tar => {
                let (file, _) = self.open()?;
                for (_, built) in &result.builds {
                    write_tar(store, &built.layers, file.try_clone()?)?;
                }
            }
            Kind::Oci { is_directory: true } => {
                let dest = self
                    .dest
                    .as_deref()
                    .ok_or_else(|| CliError::new("dest is required for oci exporter with tar=false"))?;
                image::save_several_directory(store, &result.several, &result.names, dest)
                    .map_err(image_problem)?;
            }
            Kind::Oci { is_directory: false } => {
                let (mut file, path) = self.open()?;
                image::save_several(store, &result.several, &result.names, &mut file, &path)
                    .map_err(image_problem)?;
            }
            Kind::Docker if self.dest.is_some() => {
                let name = result.names.first().map(ToString::to_string);
                let id = result.several.members.first().map(|member| member.id.to_string());
                let names = name.or(id).into_iter().collect::<Vec<_>>();
                let (mut file, path) = self.open()?;
                let wanted = SaveWanted { texts: &names, format: SaveFormat::DockerArchive, platform: None };
                image::save(store, &wanted, &mut file, &path).map_err(image_problem)?;
            }
            Kind::Docker | Kind::Image | Kind::CacheOnly => {}
        }
        let mut written = None;
        if self.push {
            for name in &result.names {
                let show = Show::of_push(quiet);
                let pushed = registry::push(store, &name.to_string(), &registry::Choice::default(), &show);
                show.finish();
                let is_index = result.builds.len() > 1;
                let pushed = pushed.map_err(image_problem)?.into_iter().next();
                written = pushed.map(|pushed| Written { digest: pushed.digest, size: pushed.size, is_index });
            }
        }
        Ok(written)
    }

    fn open(&self) -> Result<(File, PathBuf), CliError> {
        match &self.dest {
            Some(path) if path != Path::new("-") => {
                let file = File::create(path)
                    .map_err(|error| CliError::new(format!("cannot write {}: {error}", path.display())))?;
                Ok((file, path.clone()))
            }
            _ => {
                if io::stdout().is_terminal() {
                    return Err(CliError::new(
                        "dest is required for this exporter: refusing to write a tar to the terminal",
                    ));
                }
                Ok((File::from(io::stdout().as_fd().try_clone_to_owned()?), "standard output".into()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_are_read() {
        let plain = |kind| Output {
            kind,
            dest: None,
            names: Vec::new(),
            push: false,
            rewrite_timestamps: false,
            annotations: Vec::new(),
        };
        let table = [
            ("out", Output { dest: Some("out".into()), ..plain(Kind::Local) }),
            ("-", Output { dest: Some("-".into()), ..plain(Kind::Tar) }),
            ("type=local,dest=o", Output { dest: Some("o".into()), ..plain(Kind::Local) }),
            ("type=tar,dest=o.tar", Output { dest: Some("o.tar".into()), ..plain(Kind::Tar) }),
            (
                "type=oci,dest=o,tar=false",
                Output { dest: Some("o".into()), ..plain(Kind::Oci { is_directory: true }) },
            ),
            ("type=docker", plain(Kind::Docker)),
            ("type=cacheonly", plain(Kind::CacheOnly)),
            (
                "type=image,name=a,push=true,rewrite-timestamp=true",
                Output {
                    names: vec!["a".into()],
                    push: true,
                    rewrite_timestamps: true,
                    ..plain(Kind::Image)
                },
            ),
            ("type=registry,name=a", Output { names: vec!["a".into()], push: true, ..plain(Kind::Image) }),
        ];
        for (text, expected) in table {
            assert_eq!(Output::parse(text).ok(), Some(expected), "{text}");
        }
        for text in ["type=local", "type=x", "dest=o", "type=image,what=1", "type=image,push=maybe"] {
            assert!(Output::parse(text).is_err(), "{text}");
        }
        assert!(Output::parse_all(true, &[], None).is_err());
    }
}
