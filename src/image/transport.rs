//! Where an image is asked from: the store, an archive, a layout, a directory, the machine itself.

use std::fmt;
use std::path::{Path, PathBuf};

use super::ImageError;

/// What a person typed for an image, told apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A name or id in the store.
    Stored(String),
    /// `oci:DIR[:TAG]`: an OCI image layout.
    OciLayout {
        /// The layout's directory.
        directory: PathBuf,
        /// The image in it (`org.opencontainers.image.ref.name`).
        tag: Option<String>,
    },
    /// `oci-archive:FILE[:TAG]`: a tar of an OCI image layout.
    OciArchive {
        /// The archive.
        file: PathBuf,
        /// The image in it.
        tag: Option<String>,
    },
    /// `docker-archive:FILE`: what `docker save` writes.
    DockerArchive {
        /// The archive.
        file: PathBuf,
    },
    /// `containers-storage:NAME`: an image of podman's and buildah's store.
    ContainersStorage {
        /// What it is called there.
        name: String,
    },
    /// `docker-daemon:NAME`: an image of a Docker daemon.
    DockerDaemon {
        /// What it is called there.
        name: String,
    },
    /// `rootfs:DIR`: a root file system unpacked in a directory.
    Rootfs {
        /// The directory.
        directory: PathBuf,
    },
    /// `host:/`: the machine's own root.
    Host,
}

impl Source {
    /// Tells what `text` names. A transport's prefix counts only where a path follows (with a `/`
    /// in it, or a `.` in front), because `oci:v1` is a valid name; those of other engines always
    /// count.
    ///
    /// # Errors
    /// `host:` with a path other than `/`.
    pub fn parse(text: &str) -> Result<Self, ImageError> {
        let stored = || Self::Stored(text.to_owned());
        let Some((transport, path)) = text.split_once(':') else { return Ok(stored()) };
        match transport {
            "containers-storage" => return Ok(Self::ContainersStorage { name: path.to_owned() }),
            "docker-daemon" => return Ok(Self::DockerDaemon { name: path.to_owned() }),
            _ => {}
        }
        if !path.contains('/') && !path.starts_with('.') {
            return Ok(stored());
        }
        Ok(match transport {
            "oci" => {
                let (path, tag) = split_tag(path);
                Self::OciLayout { directory: path.into(), tag }
            }
            "oci-archive" => {
                let (path, tag) = split_tag(path);
                Self::OciArchive { file: path.into(), tag }
            }
            "docker-archive" => Self::DockerArchive { file: path.into() },
            "rootfs" => Self::Rootfs { directory: path.into() },
            "host" if path == "/" => Self::Host,
            "host" if path.starts_with('/') => return Err(ImageError::HostPath(text.to_owned())),
            _ => stored(),
        })
    }
}

/// As it was typed.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tagged = |f: &mut fmt::Formatter<'_>, transport: &str, path: &Path, tag: &Option<String>| {
            write!(f, "{transport}:{}", path.display())?;
            tag.as_ref().map_or(Ok(()), |tag| write!(f, ":{tag}"))
        };
        match self {
            Self::Stored(name) => f.write_str(name),
            Self::OciLayout { directory, tag } => tagged(f, "oci", directory, tag),
            Self::OciArchive { file, tag } => tagged(f, "oci-archive", file, tag),
            Self::DockerArchive { file } => tagged(f, "docker-archive", file, &None),
            Self::ContainersStorage { name } => write!(f, "containers-storage:{name}"),
            Self::DockerDaemon { name } => write!(f, "docker-daemon:{name}"),
            Self::Rootfs { directory } => tagged(f, "rootfs", directory, &None),
            Self::Host => f.write_str("host:/"),
        }
    }
}

/// Splits `PATH:TAG` at the first colon: a path with a colon in it cannot be named, as in skopeo.
/// A tag may be a whole name with colons of its own.
fn split_tag(path: &str) -> (&str, Option<String>) {
    match path.split_once(':') {
        Some((path, tag)) if !tag.is_empty() => (path, Some(tag.to_owned())),
        _ => (path, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_counts_only_before_a_path() {
        let stored = |text: &str| Source::Stored(text.to_owned());
        let layout = |directory: &str, tag: Option<&str>| Source::OciLayout {
            directory: directory.into(),
            tag: tag.map(str::to_owned),
        };
        let table = [
            ("debian", stored("debian")),
            ("oci:v1", stored("oci:v1")),
            ("rootfs:12", stored("rootfs:12")),
            ("reg.example:5000/a/b:tag", stored("reg.example:5000/a/b:tag")),
            ("oci:/a/b", layout("/a/b", None)),
            ("oci:./img:v1", layout("./img", Some("v1"))),
            ("oci:img/:debian", layout("img/", Some("debian"))),
            ("oci:/img:reg.example:5000/a:1", layout("/img", Some("reg.example:5000/a:1"))),
            ("oci:.", layout(".", None)),
            ("oci-archive:/a.tar:x", Source::OciArchive { file: "/a.tar".into(), tag: Some("x".to_owned()) }),
            ("docker-archive:./a:b.tar", Source::DockerArchive { file: "./a:b.tar".into() }),
            ("rootfs:/srv/root", Source::Rootfs { directory: "/srv/root".into() }),
            ("host:/", Source::Host),
            ("containers-storage:a:1", Source::ContainersStorage { name: "a:1".to_owned() }),
            ("docker-daemon:r/a:1", Source::DockerDaemon { name: "r/a:1".to_owned() }),
            ("host:5000/a", stored("host:5000/a")),
        ];
        for (text, source) in table {
            assert_eq!(source.to_string(), text);
            assert_eq!(Source::parse(text).expect(text), source);
        }
        assert!(matches!(Source::parse("host:/usr"), Err(ImageError::HostPath(_))));
    }
}
