//! `--mount`: `type=bind,source=/h,target=/c,...`, one comma-separated record.

use std::path::{Component, Path, PathBuf};

use super::{absolute, invalid_argument, not_supported, refused, size, volume_flag};
use crate::cli::CliError;
use crate::cli::switches::parse_bool;
use crate::plan::Labels;
use crate::plan::Relabel;
use crate::plan::request::{
    Access, BindMount, ImageMount, MountKind, MountRequest, Propagation, VolumeMount,
};

const FLAG: &str = "--mount";

/// Reads one `--mount`.
///
/// # Errors
/// Exit 125 in Docker's words.
pub(super) fn parse(text: &str, working_dir: &Path) -> Result<MountRequest, CliError> {
    let invalid = |reason: String| invalid_argument(FLAG, text, reason);
    let mut fields = Fields::default();
    for field in split_record(text).map_err(invalid)? {
        fields.read(&field, working_dir).map_err(invalid)?;
    }
    if fields.target.is_empty() {
        return Err(invalid("target is required".into()));
    }
    fields.finish(text)
}

/// What the keys said, before the type gives them their meaning.
#[derive(Default)]
struct Fields {
    kind: Option<String>,
    source: String,
    target: String,
    read_only: bool,
    /// `rw` was asked for, which is the default but for images.
    writable: bool,
    /// The first key of each family that was given, to be named when it does not fit the type.
    bind_key: Option<String>,
    volume_key: Option<String>,
    image_key: Option<String>,
    tmpfs_key: Option<String>,
    /// A key that is known and that nothing here can honour.
    unsupported: Option<(String, &'static str)>,
    propagation: Propagation,
    relabel: Option<Relabel>,
    top_only: bool,
    read_only_top: bool,
    create_source: bool,
    no_copy: bool,
    subpath: Option<PathBuf>,
    labels: Labels,
    options: Labels,
    tmpfs_size_bytes: Option<u64>,
    tmpfs_mode: Option<u32>,
}

impl Fields {
    fn read(&mut self, field: &str, working_dir: &Path) -> Result<(), String> {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key.to_ascii_lowercase(), Some(value)),
            None => (field.to_ascii_lowercase(), None),
        };
        let Some(value) = value else { return self.read_switch(&key, field) };
        let wrong = || format!("invalid value for {key}: {value}");
        let flag = || parse_bool(value).ok_or_else(wrong);
        match key.as_str() {
            "type" => self.kind = Some(value.to_ascii_lowercase()),
            "source" | "src" => {
                self.source =
                    if value == "." || value == ".." || value.starts_with("./") || value.starts_with("../") {
                        absolute(value, working_dir).to_string_lossy().into_owned()
                    } else {
                        value.to_owned()
                    };
            }
            "target" | "dst" | "destination" => value.clone_into(&mut self.target),
            "readonly" | "ro" => self.read_only = flag()?,
            "rw" => {
                self.writable = flag()?;
                self.read_only = !self.writable;
            }
            // Docker Desktop's hint about caches between two machines.
            "consistency" => {}
            "bind-propagation" => {
                self.propagation = Propagation::parse(value).ok_or_else(wrong)?;
                self.bind_key = Some(key);
            }
            "bind-nonrecursive" => {
                self.top_only = flag()?;
                self.bind_key = Some(key);
            }
            "bind-recursive" => {
                match value {
                    "enabled" | "readonly" => {}
                    "disabled" => self.top_only = true,
                    "writable" => self.read_only_top = true,
                    _ => {
                        return Err(format!(
                            "invalid value for {key}: {value} (must be \"enabled\", \"disabled\", \"writable\", or \"readonly\")"
                        ));
                    }
                }
                self.bind_key = Some(key);
            }
            "bind-create-src" => {
                self.create_source = flag()?;
                self.bind_key = Some(key);
            }
            "relabel" => {
                self.relabel = Some(match value {
                    "shared" => Relabel::Shared,
                    "private" => Relabel::Private,
                    _ => return Err(wrong()),
                });
                self.bind_key = Some(key);
            }
            "volume-nocopy" => {
                self.no_copy = flag()?;
                self.volume_key = Some(key);
            }
            "subpath" => self.subpath = Some(relative(value).ok_or_else(wrong)?),
            "volume-subpath" => {
                self.subpath = Some(relative(value).ok_or_else(wrong)?);
                self.volume_key = Some(key);
            }
            "image-subpath" => {
                self.subpath = Some(relative(value).ok_or_else(wrong)?);
                self.image_key = Some(key);
            }
            "volume-driver" if matches!(value, "local" | "") => self.volume_key = Some(key),
            "volume-driver" => self.unsupported = Some((key, "the only volume driver is local")),
            "volume-label" | "volume-opt" => {
                let (name, value) = value.split_once('=').unwrap_or((value, ""));
                let map = if key == "volume-label" { &mut self.labels } else { &mut self.options };
                map.insert(name.to_owned(), value.to_owned());
                self.volume_key = Some(key);
            }
            "tmpfs-size" => {
                self.tmpfs_size_bytes = Some(size::parse_bytes(value).map_err(|_| wrong())?);
                self.tmpfs_key = Some(key);
            }
            "tmpfs-mode" => {
                let mode = u32::from_str_radix(value, 8).ok().filter(|mode| *mode <= 0o7777);
                self.tmpfs_mode = Some(mode.ok_or_else(wrong)?);
                self.tmpfs_key = Some(key);
            }
            "u" | "chown" | "idmap" | "tmpcopyup" | "notmpcopyup" => {
                self.unsupported = Some((key, "nothing applies it yet"));
            }
            _ => return Err(format!("unexpected key '{key}' in '{field}'")),
        }
        Ok(())
    }

    fn read_switch(&mut self, key: &str, field: &str) -> Result<(), String> {
        match key {
            "readonly" | "ro" => self.read_only = true,
            "rw" => (self.writable, self.read_only) = (true, false),
            "volume-nocopy" => {
                self.no_copy = true;
                self.volume_key = Some(key.into());
            }
            "bind-nonrecursive" => {
                self.top_only = true;
                self.bind_key = Some(key.into());
            }
            "bind-create-src" => {
                self.create_source = true;
                self.bind_key = Some(key.into());
            }
            _ => return Err(format!("invalid field '{field}' must be a key=value pair")),
        }
        Ok(())
    }

    fn finish(self, text: &str) -> Result<MountRequest, CliError> {
        let kind = self.kind.as_deref().unwrap_or("volume");
        let families = [
            ("bind", &self.bind_key),
            ("volume", &self.volume_key),
            ("image", &self.image_key),
            ("tmpfs", &self.tmpfs_key),
        ];
        for (family, key) in families {
            if key.is_some() && family != kind {
                let reason = format!("cannot mix '{family}-*' options with mount type '{kind}'");
                return Err(invalid_argument(FLAG, text, reason));
            }
        }
        if let Some((key, reason)) = &self.unsupported {
            return Err(not_supported(&format!("--mount with {key}"), reason));
        }
        let wrong = |reason: &str| refused(format!("invalid mount config for type \"{kind}\": {reason}"));
        let destination = volume_flag::destination(&self.target).map_err(|reason| wrong(&reason))?;
        let access = match (self.read_only, self.read_only_top) {
            (false, _) => Access::ReadWrite,
            (true, false) => Access::ReadOnly,
            (true, true) => Access::ReadOnlyTop,
        };
        let kind = match kind {
            "bind" if self.source.is_empty() => return Err(wrong("field Source must not be empty")),
            "bind" if !self.source.starts_with('/') => {
                return Err(wrong(&format!(
                    "invalid mount path: '{}' mount path must be absolute",
                    self.source
                )));
            }
            "bind" => MountKind::Bind(BindMount {
                source: absolute(&self.source, Path::new("/")),
                create_source: self.create_source,
                recursive: !self.top_only,
                propagation: self.propagation,
                relabel: self.relabel,
            }),
            "volume" => MountKind::Volume(VolumeMount {
                name: Some(&self.source)
                    .filter(|name| !name.is_empty())
                    .map(|name| volume_flag::volume_name(name))
                    .transpose()?,
                no_copy: self.no_copy,
                subpath: self.subpath,
                labels: self.labels,
                options: self.options,
            }),
            "image" if self.source.is_empty() => return Err(wrong("field Source must not be empty")),
            "image" => {
                if self.writable {
                    return Err(not_supported(
                        "--mount type=image with rw",
                        "an image is mounted read-only, as Docker mounts it",
                    ));
                }
                MountKind::Image(ImageMount {
                    reference: self.source,
                    subpath: self.subpath,
                    writable: false,
                })
            }
            "tmpfs" if !self.source.is_empty() => return Err(wrong("field Source must not be specified")),
            "tmpfs" => MountKind::Tmpfs { options: self.tmpfs_options() },
            "glob" | "devpts" | "ramfs" | "cluster" | "npipe" => {
                return Err(not_supported(
                    &format!("--mount type={kind}"),
                    "the types are bind, volume, tmpfs and image",
                ));
            }
            _ => return Err(wrong("mount type unknown")),
        };
        Ok(MountRequest { destination, access, kind })
    }

    fn tmpfs_options(&self) -> Vec<String> {
        let size = self.tmpfs_size_bytes.filter(|size| *size > 0).map(|size| format!("size={size}"));
        let mode = self.tmpfs_mode.map(|mode| format!("mode={mode:o}"));
        size.into_iter().chain(mode).collect()
    }
}

/// A path below something: not absolute, and nowhere out of it. Symbolic links are resolved when it is mounted.
fn relative(value: &str) -> Option<PathBuf> {
    let path = Path::new(value);
    let inside = path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    (inside && !value.is_empty() && !value.contains('\0')).then(|| path.to_owned())
}

/// The fields of one record of RFC 4180: separated by commas; a field in double quotes may contain
/// commas and doubled quotes.
fn split_record(text: &str) -> Result<Vec<String>, String> {
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        let (field, after) = match rest.strip_prefix('"') {
            Some(quoted) => split_quoted(quoted)?,
            None => match rest.split_once(',') {
                Some((field, after)) => (field.to_owned(), Some(after)),
                None => (rest.to_owned(), None),
            },
        };
        if !rest.starts_with('"') && field.contains('"') {
            return Err("parse error: bare \" in non-quoted field".into());
        }
        fields.push(field);
        match after {
            Some(after) => rest = after,
            None => return Ok(fields),
        }
    }
}

fn split_quoted(text: &str) -> Result<(String, Option<&str>), String> {
    let mut field = String::new();
    let mut rest = text;
    loop {
        let (part, after) =
            rest.split_once('"').ok_or("parse error: extraneous or missing \" in quoted-field")?;
        field.push_str(part);
        match after.strip_prefix('"') {
            Some(doubled) => {
                field.push('"');
                rest = doubled;
            }
            None if after.is_empty() => return Ok((field, None)),
            None => {
                let after =
                    after.strip_prefix(',').ok_or("parse error: extraneous or missing \" in quoted-field")?;
                return Ok((field, Some(after)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(source: &str) -> BindMount {
        BindMount {
            source: source.into(),
            create_source: false,
            recursive: true,
            propagation: Propagation::RPrivate,
            relabel: None,
        }
    }

    fn volume(name: &str) -> VolumeMount {
        VolumeMount { name: name.parse().ok(), ..VolumeMount::default() }
    }

    #[test]
    fn every_type_and_key() {
        use Access::{ReadOnly, ReadOnlyTop, ReadWrite};
        let table = [
            ("type=bind,source=/h,target=/c", ReadWrite, MountKind::Bind(bind("/h"))),
            ("type=bind,src=/h,dst=/c,ro", ReadOnly, MountKind::Bind(bind("/h"))),
            ("type=bind,src=./h,destination=/c,readonly=true", ReadOnly, MountKind::Bind(bind("/work/h"))),
            ("type=bind,src=/h,dst=/c,readonly=0", ReadWrite, MountKind::Bind(bind("/h"))),
            (
                "type=bind,src=/h,dst=/c,ro,bind-recursive=writable,bind-propagation=rslave",
                ReadOnlyTop,
                MountKind::Bind(BindMount { propagation: Propagation::RSlave, ..bind("/h") }),
            ),
            (
                "type=bind,src=/h,dst=/c,bind-recursive=disabled,bind-create-src,relabel=private",
                ReadWrite,
                MountKind::Bind(BindMount {
                    recursive: false,
                    create_source: true,
                    relabel: Some(Relabel::Private),
                    ..bind("/h")
                }),
            ),
            ("type=bind,\"src=/a,b\",dst=/c", ReadWrite, MountKind::Bind(bind("/a,b"))),
            ("type=volume,source=data,target=/c", ReadWrite, MountKind::Volume(volume("data"))),
            ("source=data,target=/c", ReadWrite, MountKind::Volume(volume("data"))),
            ("target=/c", ReadWrite, MountKind::Volume(volume(""))),
            (
                "type=volume,src=data,dst=/c,volume-nocopy,volume-driver=local",
                ReadWrite,
                MountKind::Volume(VolumeMount { no_copy: true, ..volume("data") }),
            ),
            (
                "type=volume,src=data,dst=/c,volume-subpath=a/b,volume-label=k=v,volume-opt=type=tmpfs",
                ReadWrite,
                MountKind::Volume(VolumeMount {
                    subpath: Some("a/b".into()),
                    labels: Labels::from([("k".into(), "v".into())]),
                    options: Labels::from([("type".into(), "tmpfs".into())]),
                    ..volume("data")
                }),
            ),
            (
                "type=image,src=busybox:1,dst=/c,image-subpath=etc",
                ReadWrite,
                MountKind::Image(ImageMount {
                    reference: "busybox:1".into(),
                    subpath: Some("etc".into()),
                    writable: false,
                }),
            ),
            ("type=tmpfs,target=/c", ReadWrite, MountKind::Tmpfs { options: vec![] }),
            (
                "type=tmpfs,target=/c,tmpfs-size=1m,tmpfs-mode=1770,readonly",
                ReadOnly,
                MountKind::Tmpfs { options: vec!["size=1048576".into(), "mode=1770".into()] },
            ),
        ];
        for (text, access, kind) in table {
            let mount = parse(text, Path::new("/work")).expect(text);
            assert_eq!(mount, MountRequest { destination: "/c".into(), access, kind }, "{text}");
        }
    }

    #[test]
    fn wrong_records() {
        let flag =
            |text: &str, reason: &str| format!("invalid argument {text:?} for \"--mount\" flag: {reason}");
        let table = [
            ("", "invalid field '' must be a key=value pair"),
            ("type=bind,source=/h", "target is required"),
            ("type=bind,foo=1,target=/c", "unexpected key 'foo' in 'foo=1'"),
            ("type=bind,foo,target=/c", "invalid field 'foo' must be a key=value pair"),
            ("target=/c,readonly=maybe", "invalid value for readonly: maybe"),
            (
                "type=tmpfs,target=/c,bind-propagation=rslave",
                "cannot mix 'bind-*' options with mount type 'tmpfs'",
            ),
            ("target=/c,tmpfs-size=1m", "cannot mix 'tmpfs-*' options with mount type 'volume'"),
            (
                "type=bind,src=/h,target=/c,volume-nocopy",
                "cannot mix 'volume-*' options with mount type 'bind'",
            ),
            ("type=tmpfs,target=/c,tmpfs-mode=9", "invalid value for tmpfs-mode: 9"),
            ("src=v,target=/c,volume-subpath=../x", "invalid value for volume-subpath: ../x"),
            ("type=image,src=v,target=/c,image-subpath=/x", "invalid value for image-subpath: /x"),
            ("target=/c,a\"b", "parse error: bare \" in non-quoted field"),
            ("target=/c,\"a", "parse error: extraneous or missing \" in quoted-field"),
        ];
        for (text, reason) in table {
            let error = parse(text, Path::new("/work")).expect_err(text);
            assert_eq!((error.message(), error.exit.code()), (flag(text, reason).as_str(), 125));
        }
        let table = [
            ("type=bind,target=/c", "invalid mount config for type \"bind\": field Source must not be empty"),
            (
                "type=bind,src=h,target=/c",
                "invalid mount config for type \"bind\": invalid mount path: 'h' mount path must be absolute",
            ),
            (
                "type=bind,src=/h,target=c",
                "invalid mount config for type \"bind\": invalid mount path: 'c' mount path must be absolute",
            ),
            (
                "type=tmpfs,src=h,target=/c",
                "invalid mount config for type \"tmpfs\": field Source must not be specified",
            ),
            ("type=foo,target=/c", "invalid mount config for type \"foo\": mount type unknown"),
            (
                "type=image,src=x,target=/c,rw",
                "--mount type=image with rw is not supported in this version: an image is mounted read-only, as Docker mounts it",
            ),
        ];
        for (text, message) in table {
            let error = parse(text, Path::new("/work")).expect_err(text);
            assert_eq!(error.message(), message);
        }
    }

    #[test]
    fn quoting() {
        let table: [(&str, &[&str]); 4] = [
            ("a,b", &["a", "b"]),
            ("\"a,b\",c", &["a,b", "c"]),
            ("\"a\"\"b\"", &["a\"b"]),
            ("a,", &["a", ""]),
        ];
        for (text, fields) in table {
            assert_eq!(split_record(text), Ok(fields.iter().map(|f| (*f).to_owned()).collect()));
        }
    }
}
