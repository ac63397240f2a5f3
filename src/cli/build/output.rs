//! `--output`: where the result of a build goes.

use std::fs::{self, File};
use std::io::{self, IsTerminal as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use super::{image_problem, stored_name};
use crate::build::{Built, write_files, write_tar};
use crate::cli::progress::Show;
use crate::cli::{CliError, Exit};
use crate::image::{self, SaveFormat, registry};
use crate::store::Store;

/// One `--output`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Output {
    kind: Kind,
    dest: Option<PathBuf>,
    names: Vec<String>,
    push: bool,
    rewrite_timestamps: bool,
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
        let (mut push, mut rewrite_timestamps, mut is_directory) = (false, false, false);
        // A path alone: files there, or a tar on standard output.
        if !text.contains('=') {
            let kind = if text == "-" { Kind::Tar } else { Kind::Local };
            return Ok(Self { kind, dest: Some(text.into()), names, push, rewrite_timestamps });
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
                        "registry" => {
                            push = true;
                            Kind::Image
                        }
                        other => {
                            return Err(wrong(&format!(
                                "the type {other:?} is none of local, tar, oci, docker, image and registry"
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
                other => return Err(wrong(&format!("unknown key {other:?}"))),
            }
        }
        let mut kind = kind.ok_or_else(|| wrong("type is required"))?;
        if let Kind::Oci { is_directory: directory } = &mut kind {
            *directory = is_directory;
        }
        if dest.is_none() && matches!(kind, Kind::Local) {
            return Err(wrong("dest is required for local exporter"));
        }
        Ok(Self { kind, dest, names, push, rewrite_timestamps })
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.names.clone()
    }

    pub(super) fn rewrites_timestamps(&self) -> bool {
        self.rewrite_timestamps
    }

    /// Whether the result has to be an image of the store.
    pub(super) fn needs_image(&self) -> bool {
        !matches!(self.kind, Kind::Local | Kind::Tar)
    }

    /// Writes the result there.
    pub(super) fn write(&self, store: &Store, built: &Built, quiet: bool) -> Result<(), CliError> {
        match self.kind {
            Kind::Local => {
                let dest = self.dest.as_deref().unwrap_or(Path::new("."));
                fs::create_dir_all(dest)
                    .map_err(|error| CliError::new(format!("cannot make {}: {error}", dest.display())))?;
                write_files(store, &built.layers, dest)?;
            }
            Kind::Tar => {
                let (file, _) = self.open()?;
                write_tar(store, &built.layers, file)?;
            }
            Kind::Oci { is_directory: true } => {
                let dest = self
                    .dest
                    .as_deref()
                    .ok_or_else(|| CliError::new("dest is required for oci exporter with tar=false"))?;
                let names = stored_name(built).into_iter().collect::<Vec<_>>();
                image::save_directory(store, &names, SaveFormat::OciDir, dest).map_err(image_problem)?;
            }
            Kind::Oci { is_directory: false } => self.save(store, built, SaveFormat::OciArchive)?,
            Kind::Docker if self.dest.is_some() => self.save(store, built, SaveFormat::DockerArchive)?,
            Kind::Docker | Kind::Image => {}
        }
        if self.push {
            let names = built.image.iter().flat_map(|added| added.names.iter());
            for (name, _) in names {
                let show = Show::of_push(quiet);
                let pushed = registry::push(store, &name.to_string(), false, None, &show);
                show.finish();
                pushed.map_err(image_problem)?;
            }
        }
        Ok(())
    }

    fn save(&self, store: &Store, built: &Built, format: SaveFormat) -> Result<(), CliError> {
        let names = stored_name(built).into_iter().collect::<Vec<_>>();
        let (mut file, path) = self.open()?;
        image::save(store, &names, format, &mut file, &path).map_err(image_problem)
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
        let plain =
            |kind| Output { kind, dest: None, names: Vec::new(), push: false, rewrite_timestamps: false };
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
