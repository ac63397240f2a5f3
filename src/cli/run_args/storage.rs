//! Mounts, devices, memory file systems and the writable layer.

use std::path::Path;

use clap::Args;

use super::{Caller, invalid_argument, mount_flag, not_supported, refused, size, volume_flag};
use crate::cli::CliError;
use crate::plan::cdi::DeviceName;
use crate::plan::request::{Access, MountKind, MountRequest, StorageRequest, VolumesFrom};
use crate::plan::{StorageQuota, WriteMode};

/// The flags.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct StorageArgs {
    /// Add a host device to the container, by its path or its CDI name (vendor/class=name)
    #[arg(long, value_name = "HOST[:CONTAINER]")]
    device: Vec<String>,
    /// GPU devices to add to the container ('all' to pass all GPUs), by CDI
    #[arg(long, value_name = "GPU-REQUEST")]
    gpus: Vec<String>,
    /// Attach a filesystem mount to the container
    #[arg(long, value_name = "TYPE,SOURCE,TARGET...")]
    mount: Vec<String>,
    /// Mount the container's root filesystem as read only
    #[arg(long)]
    read_only: bool,
    /// Size of /dev/shm
    #[arg(long, value_name = "BYTES")]
    shm_size: Option<String>,
    /// Storage driver options for the container (write=auto|hybrid|pure, size=BYTES, inodes=NUMBER)
    #[arg(long, value_name = "NAME=VALUE")]
    storage_opt: Vec<String>,
    /// Mount a tmpfs directory
    #[arg(long, value_name = "DIR[:OPTIONS]")]
    tmpfs: Vec<String>,
    /// Set the time zone in the container ("local" for this machine's)
    #[arg(long, value_name = "ZONE")]
    tz: Option<String>,
    /// Bind mount a volume
    #[arg(short, long, value_name = "[SOURCE:]DIR[:OPTIONS]")]
    volume: Vec<String>,
    /// Optional volume driver for the container (local)
    #[arg(long, value_name = "DRIVER")]
    volume_driver: Option<String>,
    /// Mount volumes from the specified container(s)
    #[arg(long, value_name = "CONTAINER[:ro|rw]")]
    volumes_from: Vec<String>,
}

impl StorageArgs {
    pub(super) fn parse(self, caller: &Caller<'_>) -> Result<StorageRequest, CliError> {
        if self.volume_driver.is_some_and(|driver| !matches!(driver.as_str(), "" | "local")) {
            return Err(not_supported("--volume-driver", "the only volume driver is local"));
        }
        let (write_mode, quota) = parse_storage_options(&self.storage_opt)?;
        let dir = &caller.working_dir;
        let mut mounts = Vec::new();
        for text in &self.volume {
            mounts.push(volume_flag::parse(text, dir)?);
        }
        for text in &self.mount {
            mounts.push(mount_flag::parse(text, dir)?);
        }
        for text in &self.tmpfs {
            mounts.push(parse_tmpfs(text)?);
        }
        let (cdi_devices, nodes): (Vec<_>, Vec<_>) =
            self.device.into_iter().partition(|text| DeviceName::is_one(text));
        for text in &nodes {
            mounts.push(parse_device(text)?);
        }
        Ok(StorageRequest {
            mounts,
            cdi_devices,
            gpus: self.gpus,
            volumes_from: self
                .volumes_from
                .iter()
                .map(|text| parse_volumes_from(text))
                .collect::<Result<_, _>>()?,
            read_only_root: self.read_only,
            shm_size_bytes: self
                .shm_size
                .as_deref()
                .map(parse_shm_size)
                .transpose()?
                .filter(|size| *size > 0),
            write_mode,
            quota,
            time_zone: self.tz.filter(|zone| !zone.is_empty()).map(check_time_zone).transpose()?,
        })
    }
}

/// `CONTAINER[:OPTIONS]`; labels are applied to what the other container binds already.
fn parse_volumes_from(text: &str) -> Result<VolumesFrom, CliError> {
    let (container, options) = text.split_once(':').unwrap_or((text, "rw"));
    if container.is_empty() {
        return Err(refused(format!("malformed volumes-from specification: {text}")));
    }
    let mut access = Access::ReadWrite;
    for option in options.split(',') {
        match option {
            "ro" => access = Access::ReadOnly,
            "rw" | "z" | "Z" => {}
            _ => return Err(refused(format!("invalid mode for volumes-from: {option}"))),
        }
    }
    Ok(VolumesFrom { container: container.to_owned(), access })
}

fn parse_shm_size(text: &str) -> Result<u64, CliError> {
    size::parse_bytes(text).map_err(|reason| invalid_argument("--shm-size", text, reason))
}

/// `DIR[:OPTIONS]`, the options checked as Docker does.
fn parse_tmpfs(text: &str) -> Result<MountRequest, CliError> {
    const SWITCHES: [&str; 22] = [
        "ro",
        "rw",
        "exec",
        "noexec",
        "suid",
        "nosuid",
        "dev",
        "nodev",
        "sync",
        "async",
        "atime",
        "noatime",
        "diratime",
        "nodiratime",
        "relatime",
        "norelatime",
        "strictatime",
        "nostrictatime",
        "dirsync",
        "defaults",
        "mand",
        "nomand",
    ];
    const VALUES: [&str; 7] = ["size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "mpol"];
    let (target, options) = text.split_once(':').unwrap_or((text, ""));
    let destination = volume_flag::destination(target)
        .map_err(|reason| refused(format!("invalid mount config for type \"tmpfs\": {reason}")))?;
    let mut kept = Vec::new();
    for option in options.split(',').filter(|option| !option.is_empty()) {
        let known = match option.split_once('=') {
            Some((key, value)) => VALUES.contains(&key) && !value.is_empty(),
            None => SWITCHES.contains(&option),
        };
        if !known {
            return Err(refused(format!("invalid tmpfs option {option:?}")));
        }
        if option != "defaults" {
            kept.push(option.to_owned());
        }
    }
    Ok(MountRequest { destination, access: Access::ReadWrite, kind: MountKind::Tmpfs { options: kept } })
}

/// `HOST[:CONTAINER][:rwm]`.
fn parse_device(text: &str) -> Result<MountRequest, CliError> {
    let invalid = |reason: String| invalid_argument("--device", text, reason);
    let is_mode = |part: &str| !part.is_empty() && part.bytes().all(|byte| b"rwm".contains(&byte));
    let mut parts = text.split(':');
    let source = parts.next().unwrap_or_default();
    let (target, mode) = match (parts.next(), parts.next(), parts.next()) {
        (None, ..) => (source, "rwm"),
        (Some(mode), None, _) if is_mode(mode) => (source, mode),
        (Some(target), None, _) => (target, "rwm"),
        (Some(target), Some(mode), None) => (target, mode),
        (Some(_), Some(_), Some(_)) => return Err(invalid(format!("bad format for path: {text}"))),
    };
    if !is_mode(mode) {
        return Err(invalid(format!("bad mode specified: {mode}")));
    }
    if !source.starts_with('/') {
        return Err(invalid(format!("{source} is not an absolute path")));
    }
    // A device's own permissions decide, since no cgroup rules over devices; less than reading and
    // writing could not be kept.
    if !(mode.contains('r') && mode.contains('w')) {
        return Err(not_supported(
            &format!("--device with the permissions {mode:?}"),
            "without a device cgroup the node's own permissions count",
        ));
    }
    let destination = volume_flag::destination(target).map_err(invalid)?;
    Ok(MountRequest {
        destination,
        access: Access::ReadWrite,
        kind: MountKind::Device { source: super::absolute(source, Path::new("/")) },
    })
}

/// A limit selects the pure mode: nothing else counts what a container writes.
fn parse_storage_options(texts: &[String]) -> Result<(WriteMode, StorageQuota), CliError> {
    let mut mode = WriteMode::default();
    let mut quota = StorageQuota::default();
    for text in texts {
        match text.split_once('=') {
            Some(("write", "auto")) => mode = WriteMode::Auto,
            Some(("write", "hybrid")) => mode = WriteMode::Hybrid,
            Some(("write", "pure")) => mode = WriteMode::Pure,
            Some(("write", other)) => {
                return Err(refused(format!(
                    "invalid storage option write={other}: it is auto, hybrid or pure"
                )));
            }
            Some(("size", value)) => quota.bytes = Some(positive_size(value)?),
            Some(("inodes", value)) => {
                let inodes = value.parse().ok().filter(|inodes| *inodes > 0);
                quota.inodes = Some(inodes.ok_or_else(|| {
                    refused(format!("invalid storage option inodes={value}: it is a number above 0"))
                })?);
            }
            Some((name, _)) => return Err(refused(format!("Unknown option {name}"))),
            None => return Err(refused("invalid storage option")),
        }
    }
    match mode {
        _ if quota.is_none() => Ok((mode, quota)),
        WriteMode::Hybrid => Err(refused(
            "--storage-opt size and inodes need write=pure: the kernel's overlayfs, which write=hybrid uses, has no quota",
        )),
        // Copy is never asked for.
        WriteMode::Auto | WriteMode::Pure | WriteMode::Copy => Ok((WriteMode::Pure, quota)),
    }
}

fn positive_size(value: &str) -> Result<u64, CliError> {
    size::parse_bytes(value).ok().filter(|bytes| *bytes > 0).ok_or_else(|| {
        refused(format!("invalid storage option size={value}: it is a size above 0, such as 10G"))
    })
}

/// A name below the zone database, never a path out of it.
fn check_time_zone(zone: String) -> Result<String, CliError> {
    let part = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte))
    };
    if zone.split('/').all(part) {
        Ok(zone)
    } else {
        Err(invalid_argument("--tz", &zone, "a zone is a name such as Europe/Berlin, or local"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tmpfs() {
        let mount = parse_tmpfs("/run:size=64m,exec,defaults").expect("valid");
        assert_eq!(mount.destination, Path::new("/run"));
        assert_eq!(mount.kind, MountKind::Tmpfs { options: vec!["size=64m".into(), "exec".into()] });
        let table = [
            (
                "run",
                "invalid mount config for type \"tmpfs\": invalid mount path: 'run' mount path must be absolute",
            ),
            ("/run:foo", "invalid tmpfs option \"foo\""),
            ("/run:size=", "invalid tmpfs option \"size=\""),
            ("/run:x=1", "invalid tmpfs option \"x=1\""),
        ];
        for (text, message) in table {
            assert_eq!(parse_tmpfs(text).map_err(|e| e.message().to_owned()), Err(message.into()));
        }
    }

    #[test]
    fn devices() {
        let table = [
            ("/dev/fuse", "/dev/fuse", "/dev/fuse"),
            ("/dev/fuse:rwm", "/dev/fuse", "/dev/fuse"),
            ("/dev/sda:/dev/xvda", "/dev/sda", "/dev/xvda"),
            ("/dev/sda:/dev/xvda:rw", "/dev/sda", "/dev/xvda"),
        ];
        for (text, source, target) in table {
            let mount = parse_device(text).expect(text);
            assert_eq!(mount.destination, Path::new(target));
            assert_eq!(mount.kind, MountKind::Device { source: source.into() });
        }
        let flag = |text: &str, why: &str| format!("invalid argument {text:?} for \"--device\" flag: {why}");
        let table = [
            ("/a:/b:rw:x", flag("/a:/b:rw:x", "bad format for path: /a:/b:rw:x")),
            ("/a:/b:x", flag("/a:/b:x", "bad mode specified: x")),
            ("a", flag("a", "a is not an absolute path")),
            (
                "/a:r",
                "--device with the permissions \"r\" is not supported in this version: without a device cgroup the node's own permissions count".into(),
            ),
        ];
        for (text, message) in table {
            assert_eq!(parse_device(text).map_err(|e| e.message().to_owned()), Err(message));
        }
    }

    #[test]
    fn zones_and_options() {
        for good in ["local", "UTC", "Europe/Berlin", "America/Argentina/Buenos_Aires", "Etc/GMT+1"] {
            assert!(check_time_zone(good.into()).is_ok(), "{good}");
        }
        for bad in ["../x", "/etc/passwd", "a//b", "a/", ".", "a b"] {
            assert!(check_time_zone(bad.into()).is_err(), "{bad}");
        }
        let parse = |texts: &[&str]| {
            let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
            parse_storage_options(&texts).map_err(|error| error.message().to_owned())
        };
        let none = StorageQuota::default();
        assert_eq!(parse(&["write=pure"]), Ok((WriteMode::Pure, none)));
        let limits = StorageQuota { bytes: Some(10 << 30), inodes: Some(5) };
        assert_eq!(parse(&["size=10G", "inodes=5"]), Ok((WriteMode::Pure, limits)));
        assert_eq!(parse(&["size=10G", "write=auto", "inodes=5"]), Ok((WriteMode::Pure, limits)));
        for bad in ["write=x", "size=0", "size=", "size=-1", "inodes=0", "inodes=x", "size", "x=y"] {
            assert!(parse(&[bad]).is_err(), "{bad}");
        }
        assert_eq!(
            parse(&["size=1g", "write=hybrid"]),
            Err("--storage-opt size and inodes need write=pure: the kernel's overlayfs, which write=hybrid uses, has no quota".into())
        );
    }
}
