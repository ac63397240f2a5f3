//! RUN: a container over the image so far, and its changes as a layer.
//!
//! The container is like one of `run`, but belongs to the build: it lies in the build's own directory,
//! ends with the step's process, and is thrown away. What is mounted for it is no part of the layer.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::PosixRlimit;
use serde_json::Value;

use super::copy::Origin;
use super::error::Problem;
use super::export;
use super::tree::{Kind, Node, Tree};
use super::worker::{Given, Mouth};
use crate::id::{ContainerId, Digest, Name};
use crate::image::{self, RootSource};
use crate::plan::dockerfile::Sharing;
use crate::plan::request::{
    Access, BindMount, EnvSetting, ImageMount, Limits, LogDriver, MountKind, MountRequest, Propagation,
    RunRequest,
};
use crate::plan::{self, BuildFacts, HostAddress, NetworkMode, Peers, WriteMode};
use crate::sandbox::idmap::{Facts, IdMaps, Wanted, choose};
use crate::sandbox::{Failure, Stage};
use crate::store::Store;
use crate::store::containers::{self, Containers, LOCK_ATTEMPTS, LOCK_WAIT, Lock, RECORD_VERSION, Record};
use crate::supervisor::client::Client;
use crate::supervisor::control::Reply;
use crate::supervisor::{
    self, Attach, Launched, MountedImage, Saved, changes, materialise, reader, remove, stream,
};
use crate::sys;

/// What BuildKit's containers are called inside.
const HOST_NAME: &str = "buildkitsandbox";
/// What binds of images are called, with their number behind.
const BIND_NAME: &str = "bind-";

/// What all RUNs of a build have.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// `--network`.
    pub network: Option<NetworkMode>,
    /// `--add-host`.
    pub extra_hosts: Vec<(String, HostAddress)>,
    /// `--ulimit`.
    pub rlimits: Vec<PosixRlimit>,
    /// `--shm-size`, in bytes.
    pub shm_size_bytes: Option<u64>,
    /// `-m` and its kin.
    pub limits: Limits,
}

/// One RUN, all variables expanded.
#[derive(Clone, Debug)]
pub(super) struct RunJob {
    pub(super) args: Vec<String>,
    /// ARGs, secrets and the like, beside the image's variables.
    pub(super) env: Vec<(String, String)>,
    /// The image's configuration, whole.
    pub(super) image: Value,
    pub(super) root: RootSource,
    pub(super) network: NetworkMode,
    pub(super) mounts: Vec<Mounted>,
    pub(super) options: RunOptions,
    pub(super) clamp_s: Option<i64>,
}

/// One mount.
#[derive(Clone, Debug)]
pub(super) struct Mounted {
    pub(super) target: PathBuf,
    pub(super) source: MountSource,
}

/// What is mounted.
#[derive(Clone, Debug)]
pub(super) enum MountSource {
    /// Files of a context or an image.
    Bind {
        origin: Origin,
        path: String,
        writable: bool,
    },
    /// A directory that stays.
    Cache {
        key: Digest,
        id: String,
        sharing: Sharing,
        seed: Option<(Origin, String)>,
        mode: u32,
        owner: (u32, u32),
        writable: bool,
    },
    Tmpfs {
        size: Option<u64>,
    },
    /// A file with this content: a secret, or a script.
    Content {
        bytes: Vec<u8>,
        mode: u32,
        owner: (u32, u32),
    },
    /// A socket of the machine.
    Socket {
        path: PathBuf,
    },
}

/// Said below what a failed step says where its user could not be changed: programs call it an invalid argument.
const ONE_ID: &[u8] =
    b"note: there is one user id in here, and no other to change to (chown, su): see `hostel doctor`\n";

/// What keeps a cache mount for this step.
type Held = Vec<File>;

impl RunJob {
    /// Runs the step in this process, which has one thread.
    pub(super) fn work(&self, store: &Store, scratch: &Path, mouth: &mut Mouth) -> Result<(), Problem> {
        let containers = Containers::new(scratch);
        let maps = choose(&Facts::gather(), Wanted::Usual);
        let id = ContainerId::from_random(&sys::process::random_bytes()?);
        let files = scratch.join(format!("files-{}", id.short()));
        let mut held = Held::new();
        let mut request = self.request();
        for (number, mount) in self.mounts.iter().enumerate() {
            let place = files.join(number.to_string());
            request.storage.mounts.push(mount.request(store, number, &place, &maps, &mut held)?);
        }
        let (record, mut saved) = self.plan(&containers, request, id, &maps)?;
        saved.images = self.mounted_images(store, &saved, &files)?;
        containers.create(&record, &saved).map_err(|error| Problem::chain(&error))?;
        let code = start(&containers, &record, &mut saved, mouth)?;
        if code != 0 {
            if maps.is_single() {
                mouth.output(true, ONE_ID)?;
            }
            return Err(Problem::new(format!(
                "process {:?} did not complete successfully: exit code: {code}",
                self.args.join(" ")
            )));
        }
        let lock = settled(&containers, &record, &saved)?;
        let status = containers.status(&record.id).map_err(|error| Problem::chain(&error))?;
        let layer = changes::layer(&record, &saved, &status).map_err(|error| Problem::chain(&error))?;
        let layer: Box<dyn std::io::Read> = match self.clamp_s {
            None => Box::new(layer),
            Some(clamp_s) => Box::new(super::clamp::Clamped::new(layer, clamp_s)),
        };
        let added = image::add_layer(store, layer, "the step's changes")?;
        mouth.done(&match added {
            Some(layer) => Given { layer: Some(layer.diff_id), bytes: layer.tar_bytes },
            None => Given { layer: None, bytes: 0 },
        })?;
        drop(held);
        // What is left goes with the build's directory.
        if let Ok(lock) = lock.map_or_else(|| wait_for_lock(&containers, &record), Ok)
            && let Ok(grave) = containers.unlink(&record, &lock)
        {
            let _ = remove::tree(&grave, &maps);
        }
        let _ = remove::tree(&files, &maps);
        Ok(())
    }

    fn request(&self) -> RunRequest {
        let mut request = RunRequest::of_image("build".to_owned());
        request.log_driver = LogDriver::None;
        request.process.command = self.args.clone();
        request.process.entrypoint = Some(String::new());
        request.process.rlimits = self.options.rlimits.clone();
        let set =
            |(name, value): &(String, String)| EnvSetting { name: name.clone(), value: Some(value.clone()) };
        request.process.env = self.env.iter().map(set).collect();
        request.network.mode = self.network.clone();
        request.network.extra_hosts = self.options.extra_hosts.clone();
        if self.network != NetworkMode::Host {
            request.network.hostname = Some(HOST_NAME.to_owned());
        }
        request.storage.shm_size_bytes = self.options.shm_size_bytes;
        request.storage.write_mode = WriteMode::Auto;
        request.limits = self.options.limits.clone();
        request
    }

    /// What of the binds is an image, in the order of the plan's mounts.
    fn mounted_images(
        &self,
        store: &Store,
        saved: &Saved,
        files: &Path,
    ) -> Result<Vec<MountedImage>, Problem> {
        let mut images = Vec::new();
        let entries = saved.plan.spec.mounts().iter().flatten();
        for entry in entries.filter(|entry| entry.typ().as_deref() == Some("image")) {
            let named = entry.source().as_deref().and_then(Path::to_str).unwrap_or_default();
            let number = named.strip_prefix(BIND_NAME).and_then(|text| text.parse::<usize>().ok());
            let mount = number.and_then(|number| self.mounts.get(number));
            let Some(MountSource::Bind { origin: Origin::Image { layers }, writable, .. }) =
                mount.map(|mount| &mount.source)
            else {
                return Err(Problem::new(format!("the step has no bind {named}")));
            };
            let changes = writable.then(|| files.join(format!("{named}-changes")));
            if let Some(directory) = &changes {
                fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
            }
            let (index, layers) =
                (store.merged_index(layers)?, layers.iter().map(|layer| store.layer_tar(layer)).collect());
            images.push(MountedImage {
                destination: entry.destination().clone(),
                root: RootSource::Packed { index, layers },
                changes,
            });
        }
        Ok(images)
    }

    fn plan(
        &self,
        containers: &Containers,
        request: RunRequest,
        id: ContainerId,
        maps: &IdMaps,
    ) -> Result<(Record, Saved), Problem> {
        let mut image = self.image.clone();
        if let Some(config) = image["config"].as_object_mut() {
            // What concerns containers of the image, not the making of it.
            for key in [
                "Volumes",
                "ExposedPorts",
                "Entrypoint",
                "Cmd",
                "Healthcheck",
                "Labels",
                "StopSignal",
                "OnBuild",
            ] {
                config.remove(key);
            }
        }
        image["rootfs"] = serde_json::json!({ "type": "layers", "diff_ids": [] });
        image["history"] = serde_json::json!([]);
        let image_config: ImageConfiguration = serde_json::from_value(image).map_err(Problem::new)?;
        let facts = BuildFacts {
            id: id.clone(),
            uid_count: maps.uid_count(),
            gid_count: maps.gid_count(),
            host_name: nix::unistd::gethostname()
                .map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default(),
            peers: Peers::default(),
            keep_id: None,
            host_root: None,
            controllers: supervisor::cgroup::obtainable()
                .map(|(controllers, _)| controllers)
                .unwrap_or_default(),
            image_healthcheck: None,
            extra_masked_paths: supervisor::thermal_throttle_paths(),
        };
        let plan = plan::build(&request, &image_config, &facts).map_err(|error| Problem::chain(&error))?;
        let name: Name = format!("build-{}", id.short()).parse().map_err(Problem::new)?;
        let record = Record {
            version: RECORD_VERSION,
            local_dir: containers.local_dir(&id).map_err(|error| Problem::chain(&error))?,
            id,
            name,
            created: Timestamp::now(),
            image: "build".to_owned(),
            image_id: None,
            mounted_images: Vec::new(),
            command: self.args.clone(),
            labels: plan.labels.clone(),
            volumes: Vec::new(),
            anonymous_volumes: Vec::new(),
            machine_id: containers::machine_id(),
        };
        let saved = Saved {
            images: Vec::new(),
            write_mode: plan.write_mode,
            plan,
            request,
            image_config,
            root: self.root.clone(),
            working_directory: PathBuf::from("/"),
            of_build: true,
        };
        Ok((record, saved))
    }
}

/// Starts the container and relays its output to its end; gives its exit code.
fn start(
    containers: &Containers,
    record: &Record,
    saved: &mut Saved,
    mouth: &mut Mouth,
) -> Result<u8, Problem> {
    let failed = |failure: &Failure| {
        let hint = failure.hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default();
        Problem::new(format!("{failure}{hint}"))
    };
    for attempt in 0.. {
        let lock = wait_for_lock(containers, record)?;
        let attach = Some(Attach { stdin: false, size: None });
        let Launched { keeper, stream, .. } =
            supervisor::launch(containers, record, saved, lock, attach, None)
                .map_err(|error| Problem::chain(&error))?;
        let keeper = Client::from_launch(keeper);
        match keeper.receive()? {
            Some(Reply::Started { .. }) => {}
            Some(Reply::Failed(failure)) => {
                if failure.stage == Stage::Overlay && saved.write_mode == WriteMode::Auto && attempt == 0 {
                    saved.write_mode = supervisor::without_overlay(saved);
                    continue;
                }
                return match failure.stage {
                    Stage::NotFound | Stage::NotExecutable => {
                        mouth.output(true, format!("{failure}\n").as_bytes())?;
                        Ok(supervisor::exit_code(&failure))
                    }
                    _ => Err(failed(&failure)),
                };
            }
            _ => break,
        }
        if let Some(stream) = stream {
            relay(File::from(stream), mouth)?;
        }
        loop {
            match keeper.receive()? {
                Some(Reply::Exited { code }) => return Ok(code),
                Some(Reply::Failed(failure)) => return Err(failed(&failure)),
                Some(_) => {}
                None => return Err(Problem::new("the step's supervisor was killed, and the step with it")),
            }
        }
    }
    Err(Problem::new("the step's supervisor ended before the step ran"))
}

/// Passes output on until the container's server closes its side.
fn relay(mut from: File, mouth: &mut Mouth) -> Result<(), Problem> {
    let (mut buffer, mut chunk) = (Vec::new(), vec![0; 64 << 10]);
    loop {
        let count = match from.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            // The server was killed; the keeper says what became of the step.
            Err(error) if error.raw_os_error() == Some(libc::ECONNRESET) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        buffer.extend_from_slice(&chunk[..count]);
        while let Some((kind, range)) = stream::parse(&buffer).map_err(Problem::new)? {
            mouth.output(kind == stream::Kind::Stderr, &buffer[range.clone()])?;
            buffer.drain(..range.end);
        }
    }
}

fn wait_for_lock(containers: &Containers, record: &Record) -> Result<Lock, Problem> {
    for _ in 0..LOCK_ATTEMPTS {
        match containers.lock(&record.id) {
            Err(containers::ContainerError::Busy(_)) => std::thread::sleep(LOCK_WAIT),
            other => return other.map_err(|error| Problem::chain(&error)),
        }
    }
    containers.lock(&record.id).map_err(|error| Problem::chain(&error))
}

/// Waits until the writable layer is as the step left it. What the kernel's overlay wrote is there when
/// the step has ended; hostel's own is whole when its server has.
fn settled(containers: &Containers, record: &Record, saved: &Saved) -> Result<Option<Lock>, Problem> {
    let status = containers.status(&record.id).map_err(|error| Problem::chain(&error))?;
    match changes::root_kind(saved, changes::last_state(&status)) {
        crate::sandbox::init::RootKind::Pure => wait_for_lock(containers, record).map(Some),
        _ => Ok(None),
    }
}

impl Mounted {
    /// The mount as a container has it, the step's `number`th; what it needs on the disk is made at `place`.
    fn request(
        &self,
        store: &Store,
        number: usize,
        place: &Path,
        maps: &IdMaps,
        held: &mut Held,
    ) -> Result<MountRequest, Problem> {
        let bind = |source: PathBuf| {
            MountKind::Bind(BindMount {
                source,
                create_source: false,
                recursive: false,
                propagation: Propagation::RPrivate,
                relabel: None,
            })
        };
        let access = |writable: bool| if writable { Access::ReadWrite } else { Access::ReadOnly };
        let (kind, access) = match &self.source {
            MountSource::Bind { origin: Origin::Image { layers }, path, writable }
                if !layers.is_empty() && (!*writable || materialise::reason().is_none()) =>
            {
                let (found, _) = found(&Tree::image(store, layers)?, path)?;
                let subpath = Path::new(std::ffi::OsStr::from_bytes(&found)).to_owned();
                let image = ImageMount {
                    reference: format!("{BIND_NAME}{number}"),
                    subpath: Some(subpath).filter(|path| !path.as_os_str().is_empty()),
                    writable: *writable,
                };
                (MountKind::Image(image), access(*writable))
            }
            MountSource::Bind { origin, path, writable } => {
                (bind(bind_source(store, origin, path, *writable, place)?), access(*writable))
            }
            MountSource::Cache { key, id, sharing, seed, mode, owner, writable } => {
                let cache = store.cache_mount(key, id)?;
                let (data, lock) = cache_data(&cache, *sharing)?;
                held.extend(lock);
                if !data.exists() {
                    fill_cache(store, &data, seed.as_ref(), *mode, *owner, maps)?;
                }
                (bind(data), access(*writable))
            }
            MountSource::Tmpfs { size } => {
                let mut options = vec!["exec".to_owned(), "mode=1777".to_owned()];
                options.extend(size.map(|size| format!("size={size}")));
                (MountKind::Tmpfs { options }, Access::ReadWrite)
            }
            MountSource::Content { bytes, mode, owner } => {
                fs::create_dir_all(place.parent().unwrap_or(place))?;
                let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(place)?;
                std::io::Write::write_all(&mut file, bytes)?;
                file.set_permissions(fs::Permissions::from_mode(*mode))?;
                give(place, *owner, maps)?;
                (bind(place.to_owned()), Access::ReadOnly)
            }
            MountSource::Socket { path } => (bind(path.clone()), Access::ReadWrite),
        };
        Ok(MountRequest { destination: self.target.clone(), access, kind })
    }
}

/// Where a bind's path leads.
fn found(tree: &Tree, path: &str) -> Result<(Vec<u8>, Node), Problem> {
    let missing = || Problem::new(format!("failed to compute cache key: {path:?}: not found"));
    tree.find(path.as_bytes())?.ok_or_else(missing)
}

/// A bind's files where they are no image's: the context's own where nothing is left out and nothing is written,
/// else a copy.
fn bind_source(
    store: &Store,
    origin: &Origin,
    path: &str,
    writable: bool,
    place: &Path,
) -> Result<PathBuf, Problem> {
    let tree = match origin {
        Origin::Directory { path, .. } => Tree::directory(path)?,
        Origin::Image { layers } => Tree::image(store, layers)?,
    };
    let (found, node) = found(&tree, path)?;
    if let Origin::Directory { path, ignore } = origin
        && ignore.is_empty()
        && !writable
    {
        let relative = Path::new(std::ffi::OsStr::from_bytes(&found));
        return Ok(if found.is_empty() { path.clone() } else { path.join(relative) });
    }
    fs::create_dir_all(place.parent().unwrap_or(place))?;
    let ignore = match origin {
        Origin::Directory { ignore, .. } => Some(ignore),
        Origin::Image { .. } => None,
    };
    export::write(&tree, &found, &node, ignore, place)?;
    Ok(place.to_owned())
}

/// The directory of a cache that this step gets, and what holds it.
fn cache_data(cache: &Path, sharing: Sharing) -> Result<(PathBuf, Option<File>), Problem> {
    /// Steps that use one private cache at once.
    const MAX_PRIVATE: usize = 64;
    let open = |name: &str| {
        fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(cache.join(name))
    };
    match sharing {
        Sharing::Shared => Ok((cache.join("data"), None)),
        Sharing::Locked => {
            let lock = open("lock")?;
            lock.lock()?;
            Ok((cache.join("data"), Some(lock)))
        }
        Sharing::Private => {
            for number in 0..MAX_PRIVATE {
                let lock = open(&format!("lock.{number}"))?;
                if lock.try_lock().is_ok() {
                    let name = if number == 0 { "data".to_owned() } else { format!("data.{number}") };
                    return Ok((cache.join(name), Some(lock)));
                }
            }
            Err(Problem::new(format!("more than {MAX_PRIVATE} steps use one private cache")))
        }
    }
}

fn fill_cache(
    store: &Store,
    data: &Path,
    seed: Option<&(Origin, String)>,
    mode: u32,
    owner: (u32, u32),
    maps: &IdMaps,
) -> Result<(), Problem> {
    let staged = data.with_extension(format!("new-{}", std::process::id()));
    match seed {
        None => fs::create_dir(&staged)?,
        Some((origin, path)) => {
            let tree = match origin {
                Origin::Directory { path, .. } => Tree::directory(path)?,
                Origin::Image { layers } => Tree::image(store, layers)?,
            };
            let (found, node) = found(&tree, path)?;
            if node.facts.kind != Kind::Directory {
                return Err(Problem::new(format!("{path:?} is no directory: a cache cannot begin with it")));
            }
            export::write(&tree, &found, &node, None, &staged)?;
        }
    }
    fs::set_permissions(&staged, fs::Permissions::from_mode(mode & 0o7777))?;
    give(&staged, owner, maps)?;
    if fs::rename(&staged, data).is_err() {
        // Another step was first; its directory is as good.
        let _ = fs::remove_dir_all(&staged);
    }
    Ok(())
}

/// Gives a path to one of the container's users.
fn give(path: &Path, owner: (u32, u32), maps: &IdMaps) -> Result<(), Problem> {
    if owner == (0, 0) || maps.is_single() {
        return Ok(());
    }
    let path = path.to_owned();
    let mut child = reader::Reader::start(Some(maps), move |_| {
        std::os::unix::fs::chown(&path, Some(owner.0), Some(owner.1)).map_err(|error| error.to_string())
    })
    .map_err(|failure| Problem::chain(&failure))?;
    child.read_to_end(&mut Vec::new())?;
    Ok(())
}
