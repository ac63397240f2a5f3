//! `-v`: `[SOURCE:]DESTINATION[:OPTIONS]`.

use std::path::{Path, PathBuf};

use super::{absolute, not_supported, refused};
use crate::cli::CliError;
use crate::id::Name;
use crate::plan::Relabel;
use crate::plan::mount::clean_destination;
use crate::plan::request::{Access, BindMount, MountKind, MountRequest, Propagation, VolumeMount};

/// Reads one `-v`. A source that begins with `/` or `.` is a path of the host, made when missing;
/// another is a volume's name; without one the volume is anonymous.
///
/// # Errors
/// Exit 125 in Docker's words.
pub(super) fn parse(text: &str, working_dir: &Path) -> Result<MountRequest, CliError> {
    let invalid = || refused(format!("invalid volume specification: '{text}'"));
    if text.split(':').any(str::is_empty) {
        return Err(refused(format!("invalid spec: {text}: empty section between colons")));
    }
    let mut parts = text.split(':');
    let first = parts.next().unwrap_or_default();
    let (source, target, mode) = match (parts.next(), parts.next(), parts.next()) {
        (None, ..) => (None, first, ""),
        // `/data:ro` has no source to be read-only; Docker refuses it too.
        (Some(second), None, _) if Mode::parse(second).is_ok() => return Err(invalid()),
        (Some(target), None, _) => (Some(first), target, ""),
        (Some(target), Some(mode), None) => (Some(first), target, mode),
        (Some(_), Some(_), Some(_)) => return Err(invalid()),
    };
    let mode = Mode::parse(mode)?;
    let destination = destination(target)
        .map_err(|why| refused(format!("invalid volume specification: '{text}': {why}")))?;
    let kind = match source {
        Some(path) if path.starts_with(['/', '.']) => {
            MountKind::Bind(mode.bind(absolute(path, working_dir))?)
        }
        Some(name) => MountKind::Volume(mode.volume(Some(volume_name(name)?))?),
        None => MountKind::Volume(mode.volume(None)?),
    };
    Ok(MountRequest { destination, access: mode.access, kind })
}

/// A mount's place in the container.
pub(super) fn destination(text: &str) -> Result<PathBuf, String> {
    if text.contains('\0') {
        return Err("invalid mount path: it contains a NUL character".into());
    }
    let clean = clean_destination(text)
        .ok_or_else(|| format!("invalid mount path: '{text}' mount path must be absolute"))?;
    if clean == Path::new("/") {
        return Err("invalid specification: destination can't be '/'".into());
    }
    Ok(clean)
}

/// A volume's name.
pub(super) fn volume_name(name: &str) -> Result<Name, CliError> {
    name.parse().map_err(|_| {
        refused(format!(
            "create {name}: {name:?} includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path"
        ))
    })
}

/// What stands behind the second colon.
#[derive(Default)]
struct Mode {
    access: Access,
    propagation: Option<Propagation>,
    relabel: Option<Relabel>,
    no_copy: bool,
    top_only: bool,
}

impl Mode {
    fn parse(text: &str) -> Result<Self, CliError> {
        let invalid = || refused(format!("invalid mode: {text}"));
        let mut mode = Self::default();
        let mut access = None;
        for option in text.split(',').filter(|_| !text.is_empty()) {
            let repeated = match option {
                "ro" | "readonly" => access.replace(Access::ReadOnly).is_some(),
                "rw" => access.replace(Access::ReadWrite).is_some(),
                "z" => mode.relabel.replace(Relabel::Shared).is_some(),
                "Z" => mode.relabel.replace(Relabel::Private).is_some(),
                "nocopy" => std::mem::replace(&mut mode.no_copy, true),
                "bind" => std::mem::replace(&mut mode.top_only, true),
                // What is the default here and elsewhere; and Docker Desktop's consistency hints.
                "copy" | "rbind" | "consistent" | "cached" | "delegated" | "default" => false,
                "U" | "O" | "idmap" | "exec" | "noexec" | "dev" | "nodev" | "suid" | "nosuid" => {
                    return Err(not_supported(&format!("-v with {option:?}"), "nothing applies it yet"));
                }
                _ => match Propagation::parse(option) {
                    Some(propagation) => mode.propagation.replace(propagation).is_some(),
                    None => return Err(invalid()),
                },
            };
            if repeated {
                return Err(invalid());
            }
        }
        mode.access = access.unwrap_or_default();
        Ok(mode)
    }

    fn bind(&self, source: PathBuf) -> Result<BindMount, CliError> {
        if self.no_copy {
            return Err(refused("invalid mode: nocopy is for volumes"));
        }
        Ok(BindMount {
            source,
            create_source: true,
            recursive: !self.top_only,
            propagation: self.propagation.unwrap_or_default(),
            relabel: self.relabel,
        })
    }

    fn volume(&self, name: Option<Name>) -> Result<VolumeMount, CliError> {
        if self.propagation.is_some() || self.top_only {
            return Err(refused("invalid mode: propagation is for binds of host paths"));
        }
        Ok(VolumeMount { name, no_copy: self.no_copy, ..VolumeMount::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(source: &str) -> BindMount {
        BindMount {
            source: source.into(),
            create_source: true,
            recursive: true,
            propagation: Propagation::RPrivate,
            relabel: None,
        }
    }

    fn volume(name: Option<&str>) -> VolumeMount {
        VolumeMount { name: name.map(|name| name.parse().expect("a name")), ..VolumeMount::default() }
    }

    #[test]
    fn every_form() {
        use Access::{ReadOnly, ReadWrite};
        let table = [
            ("/h:/c", "/c", ReadWrite, MountKind::Bind(bind("/h"))),
            ("/h/../i/:/c/", "/c", ReadWrite, MountKind::Bind(bind("/i"))),
            ("./h:/c", "/c", ReadWrite, MountKind::Bind(bind("/work/h"))),
            (".:/c", "/c", ReadWrite, MountKind::Bind(bind("/work"))),
            ("../h:/c", "/c", ReadWrite, MountKind::Bind(bind("/h"))),
            ("/h:/c:ro", "/c", ReadOnly, MountKind::Bind(bind("/h"))),
            ("/h:/c:rw,cached", "/c", ReadWrite, MountKind::Bind(bind("/h"))),
            (
                "/h:/c:ro,z,rslave",
                "/c",
                ReadOnly,
                MountKind::Bind(BindMount {
                    propagation: Propagation::RSlave,
                    relabel: Some(Relabel::Shared),
                    ..bind("/h")
                }),
            ),
            (
                "/h:/c:Z",
                "/c",
                ReadWrite,
                MountKind::Bind(BindMount { relabel: Some(Relabel::Private), ..bind("/h") }),
            ),
            ("data:/c", "/c", ReadWrite, MountKind::Volume(volume(Some("data")))),
            ("data:/c:ro", "/c", ReadOnly, MountKind::Volume(volume(Some("data")))),
            (
                "data:/c:nocopy",
                "/c",
                ReadWrite,
                MountKind::Volume(VolumeMount { no_copy: true, ..volume(Some("data")) }),
            ),
            ("/c", "/c", ReadWrite, MountKind::Volume(volume(None))),
        ];
        for (text, destination, access, kind) in table {
            let mount = parse(text, Path::new("/work")).expect(text);
            assert_eq!(mount, MountRequest { destination: destination.into(), access, kind }, "{text}");
        }
    }

    #[test]
    fn wrong_forms() {
        let table = [
            ("", "invalid spec: : empty section between colons"),
            (":/c", "invalid spec: :/c: empty section between colons"),
            ("/h::ro", "invalid spec: /h::ro: empty section between colons"),
            ("/c:ro", "invalid volume specification: '/c:ro'"),
            ("/h:/c:ro:x", "invalid volume specification: '/h:/c:ro:x'"),
            ("/h:/c:foo", "invalid mode: foo"),
            ("/h:/c:ro,rw", "invalid mode: ro,rw"),
            ("/h:/c:ro,", "invalid mode: ro,"),
            ("/h:/c:z,Z", "invalid mode: z,Z"),
            ("data:/c:rslave", "invalid mode: propagation is for binds of host paths"),
            ("/h:/c:nocopy", "invalid mode: nocopy is for volumes"),
            (
                "/h:c",
                "invalid volume specification: '/h:c': invalid mount path: 'c' mount path must be absolute",
            ),
            ("c", "invalid volume specification: 'c': invalid mount path: 'c' mount path must be absolute"),
            ("/h:/", "invalid volume specification: '/h:/': invalid specification: destination can't be '/'"),
            (
                "a/b:/c",
                "create a/b: \"a/b\" includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path",
            ),
            ("/h:/c:O", "-v with \"O\" is not supported in this version: nothing applies it yet"),
        ];
        for (text, message) in table {
            let error = parse(text, Path::new("/work")).expect_err(text);
            assert_eq!((error.message(), error.exit.code()), (message, 125), "{text}");
        }
    }
}
