//! The container's mounts: Docker's defaults, what was asked for, what the image's VOLUMEs need,
//! in the order in which they are made.
//!
//! Options are those of the OCI runtime spec (config.md, "Linux mount options"). A read-only bind has
//! `ro`, and `rro` as well when everything below it is to be read-only too (mount_setattr(2) with
//! AT_RECURSIVE). No list holds an option and its opposite. A volume has the type `volume`, its name
//! as source, and beside a bind's options maybe `nocopy`; the supervisor turns it into a bind of the
//! volume's directory. An image has the type `image` and its reference as source. `subpath=PATH` is the part of
//! a volume or an image that is mounted.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::Mount;
use sha2::{Digest as _, Sha256};

use super::build::{BuildFacts, PlanError, uses_host_ipc, uses_host_network, uses_host_pids};
use super::request::{
    Access, BindMount, ImageMount, IpcMode, MountKind, MountRequest, Propagation, RunRequest, VolumeMount,
};
use super::{BindSource, VolumePlan};

/// Size of /dev/shm unless `--shm-size` says otherwise: Docker's.
pub const DEFAULT_SHM_SIZE_BYTES: u64 = 64 << 20;

/// The `tty` group of every distribution owns terminals.
const TTY_GROUP: u32 = 5;

/// Volumes that one image may ask for: far above any real image, and a bound on what starting a
/// hostile one leaves in the store.
const MAX_IMAGE_VOLUMES: usize = 256;

/// What becomes of all mount requests.
pub(super) struct MountPlan {
    pub(super) mounts: Vec<Mount>,
    pub(super) volumes: Vec<VolumePlan>,
    pub(super) bind_sources: Vec<BindSource>,
}

/// Makes an absolute path out of one in the container: `.`, `..` and doubled slashes are resolved
/// lexically, as in Docker. `None` for a relative one.
#[must_use]
pub fn clean_destination(path: &str) -> Option<PathBuf> {
    if !path.starts_with('/') {
        return None;
    }
    let mut clean = PathBuf::from("/");
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    Some(clean)
}

/// All mounts, shallow destinations first, so that none hides another.
pub(super) fn plan(
    request: &RunRequest,
    image_volumes: &[String],
    facts: &BuildFacts,
) -> Result<MountPlan, PlanError> {
    let requests = all_requests(request, image_volumes)?;
    let taken: BTreeSet<&Path> = requests.iter().map(|mount| mount.destination.as_path()).collect();
    // A /dev of the user's own is taken whole, as in Docker.
    let own_dev = taken.contains(Path::new("/dev"));
    let mut plan = MountPlan { mounts: Vec::new(), volumes: Vec::new(), bind_sources: Vec::new() };
    plan.mounts.extend(default_mounts(request, facts).into_iter().filter(|mount| {
        let destination = mount.destination().as_path();
        !(taken.contains(destination) || own_dev && destination.starts_with("/dev"))
    }));
    for mount in &requests {
        plan.add(mount, facts);
    }
    plan.mounts.sort_by_key(|mount| mount.destination().components().count());
    Ok(plan)
}

impl MountPlan {
    fn add(&mut self, request: &MountRequest, facts: &BuildFacts) {
        let destination = &request.destination;
        let mount = match &request.kind {
            MountKind::Bind(bind) => {
                self.bind_sources.push(BindSource {
                    path: bind.source.clone(),
                    create: bind.create_source,
                    relabel: bind.relabel,
                });
                mount(destination, "bind", &bind.source, bind_options(request.access, bind))
            }
            MountKind::Device { source } => {
                self.bind_sources.push(BindSource { path: source.clone(), create: false, relabel: None });
                mount(destination, "bind", source, options(&["bind", "rprivate", "nosuid", "noexec"]))
            }
            MountKind::Tmpfs { options: extra } => {
                mount(destination, "tmpfs", Path::new("tmpfs"), tmpfs_options(request.access, extra))
            }
            MountKind::Image(image) => {
                mount(destination, "image", Path::new(&image.reference), image_options(image))
            }
            MountKind::Volume(volume) => {
                let name = self.add_volume(destination, volume, facts);
                mount(destination, "volume", Path::new(&name), volume_options(request.access, volume))
            }
        };
        self.mounts.push(mount);
    }

    fn add_volume(&mut self, destination: &Path, volume: &VolumeMount, facts: &BuildFacts) -> String {
        let name = match &volume.name {
            Some(name) => name.to_string(),
            None => anonymous_name(facts.id.as_str(), destination),
        };
        if !self.volumes.iter().any(|known| known.name == name) {
            self.volumes.push(VolumePlan {
                name: name.clone(),
                anonymous: volume.name.is_none(),
                destination: destination.to_owned(),
                // Content of the image would lie in a part of the volume that this mount does not show.
                no_copy: volume.no_copy || volume.subpath.is_some(),
                labels: volume.labels.clone(),
                options: volume.options.clone(),
            });
        }
        name
    }
}

/// What was asked for, the time zone, and the image's VOLUMEs where nothing else is mounted.
fn all_requests(request: &RunRequest, image_volumes: &[String]) -> Result<Vec<MountRequest>, PlanError> {
    let mut all: Vec<MountRequest> = Vec::new();
    for mount in &request.storage.mounts {
        match all.iter().find(|known| known.destination == mount.destination) {
            None => all.push(mount.clone()),
            // `-v /data -v /data` is one anonymous volume.
            Some(known) if known == mount => {}
            Some(_) => return Err(PlanError::DuplicateMount(mount.destination.clone())),
        }
    }
    all.extend(request.storage.time_zone.as_deref().map(time_zone_mount));
    if image_volumes.len() > MAX_IMAGE_VOLUMES {
        return Err(PlanError::TooManyVolumes { count: image_volumes.len(), limit: MAX_IMAGE_VOLUMES });
    }
    let mut image_volumes: Vec<&String> = image_volumes.iter().collect();
    // The configuration's map has no order of its own.
    image_volumes.sort();
    for volume in image_volumes {
        let destination = clean_destination(volume)
            .filter(|path| path != Path::new("/") && !volume.contains('\0'))
            .ok_or_else(|| PlanError::ImageVolume(volume.clone()))?;
        if !all.iter().any(|known| known.destination == destination) {
            let kind = MountKind::Volume(VolumeMount::default());
            all.push(MountRequest { destination, access: Access::ReadWrite, kind });
        }
    }
    Ok(all)
}

/// `--tz`: the host's own zone file over the container's /etc/localtime, so that the image needs no
/// zone database.
fn time_zone_mount(zone: &str) -> MountRequest {
    let source = match zone {
        "local" => PathBuf::from("/etc/localtime"),
        _ => Path::new("/usr/share/zoneinfo").join(zone),
    };
    let bind = BindMount {
        source,
        create_source: false,
        recursive: false,
        propagation: Propagation::RPrivate,
        relabel: None,
    };
    MountRequest {
        destination: "/etc/localtime".into(),
        access: Access::ReadOnly,
        kind: MountKind::Bind(bind),
    }
}

/// An anonymous volume's name: 64 hex digits that only this container and place have. Made from the
/// container's id, so that planning needs no randomness of its own.
fn anonymous_name(id: &str, destination: &Path) -> String {
    let mut hash = Sha256::new();
    hash.update(id.as_bytes());
    hash.update(b"\0");
    hash.update(destination.as_os_str().as_encoded_bytes());
    let digest: [u8; 32] = hash.finalize().into();
    crate::id::ContainerId::from_random(&digest).to_string()
}

fn default_mounts(request: &RunRequest, facts: &BuildFacts) -> Vec<Mount> {
    let security = &request.security;
    let read_only = if security.privileged { "rw" } else { "ro" };
    let mut devpts = options(&["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]);
    if facts.gid_count > TTY_GROUP {
        devpts.push(format!("gid={TTY_GROUP}"));
    }
    let mut mounts = vec![
        if uses_host_pids(request, facts) {
            // A fresh proc shows the pid namespace of whoever mounts it, and needs to own it.
            host_bind("/proc", &["nosuid", "noexec", "nodev"])
        } else {
            kernel_mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"])
        },
        kernel_mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(Path::new("/dev/pts"), "devpts", Path::new("devpts"), devpts),
        if uses_host_network(request, facts) {
            // The kernel refuses a fresh sysfs to a user namespace that does not own the network's.
            let protect: &[&str] = if security.privileged { &["rw"] } else { &["ro", "rro"] };
            host_bind("/sys", &[&["nosuid", "noexec", "nodev"], protect].concat())
        } else {
            kernel_mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", read_only])
        },
        kernel_mount("/sys/fs/cgroup", "cgroup", "cgroup", &[read_only, "nosuid", "noexec", "nodev"]),
    ];
    if uses_host_ipc(request, facts) {
        // No /dev/mqueue: the host may have none to bind, a fresh one needs to own the namespace, and
        // the queues themselves work without it (mq_overview(7)).
        mounts.push(host_bind("/dev/shm", &["nosuid", "noexec", "nodev"]));
        return mounts;
    }
    mounts.push(kernel_mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]));
    // That of another container is bound when the container starts.
    if matches!(security.ipc, IpcMode::Private | IpcMode::Shareable) {
        let size = request.storage.shm_size_bytes.unwrap_or(DEFAULT_SHM_SIZE_BYTES);
        let mut shm = options(&["nosuid", "noexec", "nodev", "mode=1777"]);
        shm.push(format!("size={size}"));
        mounts.push(mount(Path::new("/dev/shm"), "tmpfs", Path::new("shm"), shm));
    }
    mounts
}

fn kernel_mount(destination: &str, kind: &str, source: &str, text: &[&str]) -> Mount {
    mount(Path::new(destination), kind, Path::new(source), options(text))
}

fn host_bind(path: &str, text: &[&str]) -> Mount {
    let mut all = options(&["rbind", "rprivate"]);
    all.extend(options(text));
    mount(Path::new(path), "bind", Path::new(path), all)
}

fn mount(destination: &Path, kind: &str, source: &Path, options: Vec<String>) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(destination.to_owned())
        .set_typ(Some(kind.to_owned()))
        .set_source(Some(source.to_owned()))
        .set_options(Some(options));
    mount
}

fn bind_options(access: Access, bind: &BindMount) -> Vec<String> {
    let mut text = vec![if bind.recursive { "rbind" } else { "bind" }];
    text.extend(access_options(access));
    text.push(bind.propagation.as_str());
    options(&text)
}

fn volume_options(access: Access, volume: &VolumeMount) -> Vec<String> {
    let mut text = vec!["rbind"];
    text.extend(access_options(access));
    text.push(Propagation::RPrivate.as_str());
    if volume.no_copy {
        text.push("nocopy");
    }
    let mut all = options(&text);
    all.extend(volume.subpath.as_deref().map(subpath_option));
    all
}

fn image_options(image: &ImageMount) -> Vec<String> {
    let mut all = options(if image.writable { &[] } else { &["ro", "rro"] });
    all.extend(options(&["nodev", Propagation::RPrivate.as_str()]));
    all.extend(image.subpath.as_deref().map(subpath_option));
    all
}

fn subpath_option(path: &Path) -> String {
    format!("subpath={}", path.display())
}

fn access_options(access: Access) -> &'static [&'static str] {
    match access {
        Access::ReadWrite => &[],
        Access::ReadOnly => &["ro", "rro"],
        Access::ReadOnlyTop => &["ro"],
    }
}

/// Docker's defaults and what was asked for; of an option and its opposite, or of two values for
/// one key, the last counts.
fn tmpfs_options(access: Access, asked: &[String]) -> Vec<String> {
    let subject = |option: &str| -> String {
        let key = option.split('=').next().unwrap_or(option);
        match key {
            "ro" | "rw" => "access".into(),
            "async" => "sync".into(),
            _ => key.strip_prefix("no").filter(|_| key != "noswap").unwrap_or(key).to_owned(),
        }
    };
    let read_only = (access != Access::ReadWrite).then_some("ro");
    let mut merged: Vec<String> = Vec::new();
    for option in
        ["noexec", "nosuid", "nodev"].into_iter().chain(asked.iter().map(String::as_str)).chain(read_only)
    {
        merged.retain(|known| subject(known) != subject(option));
        merged.push(option.to_owned());
    }
    merged
}

fn options(text: &[&str]) -> Vec<String> {
    text.iter().map(|option| (*option).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_cleaned_lexically() {
        let table = [
            ("/a", Some("/a")),
            ("/a/", Some("/a")),
            ("//a/./b/../c", Some("/a/c")),
            ("/..", Some("/")),
            ("/", Some("/")),
            ("a", None),
            ("", None),
            ("./a", None),
        ];
        for (path, clean) in table {
            assert_eq!(clean_destination(path), clean.map(PathBuf::from), "{path}");
        }
    }

    #[test]
    fn the_last_tmpfs_option_counts() {
        let table: [(Access, &[&str], &[&str]); 5] = [
            (Access::ReadWrite, &[], &["noexec", "nosuid", "nodev"]),
            (Access::ReadOnly, &["size=1m"], &["noexec", "nosuid", "nodev", "size=1m", "ro"]),
            (Access::ReadWrite, &["exec", "dev"], &["nosuid", "exec", "dev"]),
            (
                Access::ReadWrite,
                &["size=1m", "ro", "size=2m", "rw"],
                &["noexec", "nosuid", "nodev", "size=2m", "rw"],
            ),
            (
                Access::ReadWrite,
                &["nr_inodes=5", "noatime", "atime"],
                &["noexec", "nosuid", "nodev", "nr_inodes=5", "atime"],
            ),
        ];
        for (access, asked, expected) in table {
            assert_eq!(tmpfs_options(access, &options(asked)), options(expected), "{asked:?}");
        }
    }

    #[test]
    fn an_anonymous_volume_has_a_name_of_its_own() {
        let name = anonymous_name(&"ab".repeat(32), Path::new("/data"));
        assert_eq!(name.len(), 64);
        assert_eq!(name, anonymous_name(&"ab".repeat(32), Path::new("/data")));
        assert_ne!(name, anonymous_name(&"ab".repeat(32), Path::new("/other")));
        assert_ne!(name, anonymous_name(&"cd".repeat(32), Path::new("/data")));
    }
}
