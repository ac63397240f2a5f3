//! Create a new container

use std::fs;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use nix::sched::CloneFlags;
use oci_spec::runtime::LinuxNamespaceType;

use super::run_args::{Caller, CreateArgs};
use super::{CliError, Context, Exit, Outcome};
use crate::id::{ContainerId, Name};
use crate::image;
use crate::plan::request::{
    Access, EnvSetting, IpcMode, MountKind, MountRequest, NamespaceMode, SecretTarget, UsernsMode,
    VolumeMount,
};
use crate::plan::{self, BuildFacts, HostRoot, KeepId, NetworkMode, Peers, RunRequest};
use crate::sandbox::exec;
use crate::sandbox::idmap::{Facts, Wanted, choose, login_name};
use crate::store::containers::{self, Containers, RECORD_VERSION, Record};
use crate::store::secrets::Secrets;
use crate::store::volumes::Backing;
use crate::store::{Store, VolumeMeta};
use crate::supervisor::cgroup;
use crate::supervisor::{self, MountedImage, Saved};
use crate::sys;

/// Create a new container
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    create: CreateArgs,
}

/// Creates a container and prints its id.
///
/// # Errors
/// Wrong flags, an unknown image, a name in use: exit 125 as for `run`, 1 where Docker's is 1.
pub fn run(ctx: &Context, args: Args) -> Outcome {
    let request = args.create.into_request(&Caller::current("create")?)?;
    let (record, _) = create_container(ctx, &request)?;
    println!("{}", record.id);
    Ok(Exit::Success)
}

/// Makes a container from a request: what `create` does, and `run` first.
///
/// # Errors
/// As [`run`]. Nothing is left behind.
pub fn create_container(ctx: &Context, request: &RunRequest) -> Result<(Record, Saved), CliError> {
    let store = Store::open(&ctx.root)?;
    let containers = Containers::new(&ctx.root);
    sweep(&containers);
    let request = &completed(&containers, request)?;
    // Until the record names the image nothing else keeps a collection from its layers.
    let content = store.lock_content()?;
    let platform = request.platform.as_ref();
    let fetch = |name: &str, reason: image::Reason| {
        super::pull::for_run(&store, name, reason, platform.cloned(), request.quiet)
    };
    let resolved = image::resolve(&store, &request.image, request.pull, platform, &fetch)
        .map_err(super::images::resolve_error)?;
    if let Some(found) = image::foreign_platform(&resolved.config).filter(|_| platform.is_none()) {
        eprintln!(
            "WARNING: The requested image's platform ({found}) does not match the detected host platform ({}) and no specific platform was requested",
            image::Platform::host()
        );
    }
    let id = ContainerId::from_random(&sys::process::random_bytes()?);
    let name = match &request.name {
        Some(name) => name.clone(),
        None => free_name(&containers)?,
    };
    let idmap_facts = Facts::gather();
    let maps = choose(&idmap_facts, Wanted::Usual);
    let working_directory = std::env::current_dir()?;
    let facts = BuildFacts {
        id: id.clone(),
        uid_count: maps.uid_count(),
        gid_count: maps.gid_count(),
        host_name: nix::unistd::gethostname()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default(),
        peers: peers(&containers, request)?,
        keep_id: keep_id(&idmap_facts, &request.security.user)?,
        host_root: matches!(resolved.root, image::RootSource::Host)
            .then(|| HostRoot { working_dir: working_directory.clone() }),
        controllers: match request.limits == plan::request::Limits::default() {
            true => Vec::new(), // nobody asks
            false => cgroup::obtainable().map(|(controllers, _)| controllers).unwrap_or_default(),
        },
        image_healthcheck: image::healthcheck(&store, resolved.id.as_ref())
            .and_then(|check| serde_json::from_value(check).ok()),
        extra_masked_paths: supervisor::thermal_throttle_paths(),
    };
    let mut plan = plan::build(request, &resolved.config, &facts).map_err(engine_error)?;
    for warning in &plan.warnings {
        eprintln!("WARNING: {warning}");
    }
    let secrets = secrets(ctx, request, &containers.path(&id), &mut plan)?;
    let (images, image_ids) = mounted_images(&plan, &|reference| {
        let fetch = |name: &str, reason: image::Reason| {
            super::pull::for_run(&store, name, reason, platform.cloned(), request.quiet)
        };
        image::resolve(&store, reference, request.pull, platform, &fetch)
    })?;
    check_bind_sources(&plan)?;
    let lock = store.lock_volumes()?;
    mount_volumes(&store, &mut plan)?;
    let local_dir = containers.local_dir(&id)?;
    let record = Record {
        version: RECORD_VERSION,
        id: id.clone(),
        name,
        created: Timestamp::now(),
        image: request.image.clone(),
        image_id: resolved.id.as_ref().map(ToString::to_string),
        mounted_images: image_ids,
        command: plan.spec.process().as_ref().and_then(|process| process.args().clone()).unwrap_or_default(),
        labels: plan.labels.clone(),
        volumes: plan.volumes.iter().map(|volume| volume.name.clone()).collect(),
        anonymous_volumes: plan
            .volumes
            .iter()
            .filter(|volume| volume.anonymous)
            .map(|volume| volume.name.clone())
            .collect(),
        local_dir,
        machine_id: containers::machine_id(),
    };
    let mut request = request.clone();
    request.log.tag = rendered_tag(&request, &record)?;
    if let (Some(tag), true) = (&request.log.tag, request.log.options.contains_key("tag")) {
        request.log.details.insert("tag".to_owned(), tag.clone());
    }
    let saved = Saved {
        write_mode: plan.write_mode,
        plan,
        images,
        request: request.clone(),
        image_config: resolved.config,
        root: resolved.root,
        working_directory,
        of_build: false,
    };
    if let Some(path) = &request.cidfile {
        reserve_cidfile(path)?;
    }
    let made = containers.create(&record, &saved).map_err(engine_error);
    let made = made
        .and_then(|()| write_secrets(&secrets).inspect_err(|_| super::run::discard(&containers, &record)));
    drop((lock, content));
    match (&made, &request.cidfile) {
        (Ok(()), Some(path)) => fs::write(path, id.as_str())?,
        (Err(_), Some(path)) => drop(fs::remove_file(path)), // ours, and empty
        _ => {}
    }
    made?;
    containers.tell(&record, "create", &[]);
    Ok((record, saved))
}

/// The images that a plan mounts, in the order of its mounts, and their ids.
fn mounted_images(
    plan: &plan::ContainerPlan,
    resolve: &dyn Fn(&str) -> Result<image::ResolvedImage, image::ImageError>,
) -> Result<(Vec<MountedImage>, Vec<String>), CliError> {
    let (mut images, mut ids) = (Vec::new(), Vec::new());
    for mount in plan.spec.mounts().iter().flatten().filter(|mount| mount.typ().as_deref() == Some("image")) {
        let reference = mount.source().as_deref().unwrap_or(Path::new("")).to_string_lossy();
        let resolved = resolve(&reference).map_err(super::images::resolve_error)?;
        if !matches!(resolved.root, image::RootSource::Packed { .. }) {
            return Err(CliError::new(format!("{reference} is no image: it cannot be mounted as one"))
                .with_hint("bind the directory: --mount type=bind,source=DIR,target=DIR,readonly")
                .with_exit(Exit::Engine));
        }
        ids.extend(resolved.id.as_ref().map(ToString::to_string));
        images.push(MountedImage {
            destination: mount.destination().clone(),
            root: resolved.root,
            changes: None,
        });
    }
    Ok((images, ids))
}

/// `--log-opt tag=`: a template over Docker's fields, and without one the container's short id.
fn rendered_tag(request: &RunRequest, record: &Record) -> Result<Option<String>, CliError> {
    let Some(template) = &request.log.tag else { return Ok(None) };
    let image_id = record.image_id.clone().unwrap_or_default();
    let short = image_id.strip_prefix("sha256:").unwrap_or(&image_id).chars().take(12).collect::<String>();
    let fields = serde_json::json!({
        "ID": record.id.short(),
        "FullID": record.id,
        "Name": record.name,
        "FullName": format!("/{}", record.name),
        "ImageID": short,
        "ImageFullID": image_id,
        "ImageName": record.image,
        "Command": record.command.join(" "),
        "DaemonName": "hostel",
    });
    let rendered = super::format::Template::parse(template).and_then(|template| template.render(&fields));
    rendered.map(Some).map_err(|error| {
        CliError::new(format!("invalid log opt tag={template}: {error}")).with_exit(Exit::Engine)
    })
}

/// Who the caller is to be inside.
fn keep_id(facts: &Facts, mode: &UsernsMode) -> Result<Option<KeepId>, CliError> {
    let UsernsMode::KeepId { uid, gid } = mode else { return Ok(None) };
    if facts.privileged {
        return Err(CliError::new("keep-id is only supported in rootless mode").with_exit(Exit::Engine));
    }
    let keep = KeepId {
        uid: uid.unwrap_or(facts.uid),
        gid: gid.unwrap_or(facts.gid),
        name: login_name(facts.uid).unwrap_or_else(|| facts.uid.to_string()),
    };
    let maps = choose(facts, Wanted::KeepId(keep.uid, keep.gid));
    if maps.host_uid(keep.uid) != Some(facts.uid) || maps.host_gid(keep.gid) != Some(facts.gid) {
        let message = format!("--userns keep-id: the container has no id {}:{}", keep.uid, keep.gid);
        let hint = "its ids go to 65535, or as far as the range in /etc/subuid does: keep-id:uid=1000,gid=1000 chooses others";
        return Err(CliError::new(message).with_hint(hint).with_exit(Exit::Engine));
    }
    Ok(Some(keep))
}

/// The containers whose namespaces a request joins.
fn peers(containers: &Containers, request: &RunRequest) -> Result<Peers, CliError> {
    let find = |reference: &str| peer(containers, reference).map(Some);
    let of = |mode: &NamespaceMode| match mode {
        NamespaceMode::Container(reference) => find(reference),
        _ => Ok(None),
    };
    let security = &request.security;
    Ok(Peers {
        network: match &request.network.mode {
            NetworkMode::Container(reference) => find(reference)?,
            _ => None,
        },
        pid: of(&security.pid)?,
        ipc: match &security.ipc {
            IpcMode::Container(reference) => Some(shareable_peer(containers, reference)?),
            _ => None,
        },
        uts: of(&security.uts)?,
        user: match &security.user {
            UsernsMode::Container(reference) => find(reference)?,
            _ => None,
        },
    })
}

/// As [`peer`], for one whose IPC is to be joined: it has to be willing.
fn shareable_peer(containers: &Containers, reference: &str) -> Result<plan::Peer, CliError> {
    let peer = peer(containers, reference)?;
    let saved: Saved = containers.plan(&peer.id).map_err(engine_error)?;
    match saved.request.security.ipc {
        IpcMode::Private | IpcMode::None => Err(CliError::new(format!(
            "can't join IPC of container {}: non-shareable IPC (hint: use IpcMode:shareable for the donor container)",
            peer.id
        ))
        .with_exit(Exit::Engine)),
        IpcMode::Shareable | IpcMode::Host | IpcMode::Container(_) => Ok(peer),
    }
}

/// What a container takes over from one that it joins.
fn peer(containers: &Containers, reference: &str) -> Result<plan::Peer, CliError> {
    let record = containers.find(reference).map_err(engine_error)?;
    let saved: Saved = containers.plan(&record.id).map_err(engine_error)?;
    let spec = &saved.plan.spec;
    let own = exec::namespaces(spec);
    Ok(plan::Peer {
        id: record.id,
        host_name: spec.hostname().clone(),
        domain_name: spec.domainname().clone(),
        host_namespaces: [
            (LinuxNamespaceType::Network, CloneFlags::CLONE_NEWNET),
            (LinuxNamespaceType::Pid, CloneFlags::CLONE_NEWPID),
            (LinuxNamespaceType::Ipc, CloneFlags::CLONE_NEWIPC),
            (LinuxNamespaceType::Uts, CloneFlags::CLONE_NEWUTS),
        ]
        .into_iter()
        .filter(|(_, flag)| !own.contains(*flag))
        .map(|(kind, _)| kind)
        .collect(),
    })
}

/// The request with the volumes and binds of other containers, where it has nothing of its own, and with the
/// caller's proxies.
fn completed(containers: &Containers, request: &RunRequest) -> Result<RunRequest, CliError> {
    let mut request = request.clone();
    super::cdi::apply(&mut request)?;
    request.process.env.splice(0..0, proxy_settings());
    for from in request.storage.volumes_from.clone() {
        let other = containers.find(&from.container).map_err(engine_error)?;
        let saved: Saved = containers.plan(&other.id).map_err(engine_error)?;
        let access = |destination: &Path| {
            let mut mounts = saved.plan.spec.mounts().iter().flatten();
            let mount = mounts.find(|mount| mount.destination() == destination);
            let read_only =
                mount.is_some_and(|mount| mount.options().iter().flatten().any(|word| word == "ro"));
            if read_only { Access::ReadOnly } else { from.access }
        };
        let mut found = Vec::new();
        for volume in &saved.plan.volumes {
            let kind = MountKind::Volume(VolumeMount {
                name: Some(volume.name.parse().map_err(engine_error)?),
                no_copy: volume.no_copy,
                ..VolumeMount::default()
            });
            found.push(MountRequest {
                destination: volume.destination.clone(),
                access: access(&volume.destination),
                kind,
            });
        }
        let binds =
            saved.request.storage.mounts.iter().filter(|mount| matches!(mount.kind, MountKind::Bind(_)));
        found.extend(binds.map(|mount| MountRequest { access: access(&mount.destination), ..mount.clone() }));
        for mount in found {
            if !request.storage.mounts.iter().any(|known| known.destination == mount.destination) {
                request.storage.mounts.push(mount);
            }
        }
    }
    Ok(request)
}

/// A secret's copy: the file, what is in it, and its permissions.
type SecretFile = (PathBuf, Vec<u8>, u32);

/// Puts the request's secrets into the plan; the files to be written once the container's directory is there.
/// A container keeps the secret that it was created with.
fn secrets(
    ctx: &Context,
    request: &RunRequest,
    dir: &Path,
    plan: &mut plan::ContainerPlan,
) -> Result<Vec<SecretFile>, CliError> {
    let store = Secrets::new(&ctx.root);
    let mut files = Vec::new();
    for (number, asked) in request.secrets.iter().enumerate() {
        let meta = store.find(&asked.source).map_err(engine_error)?;
        let data = store.data(&meta).map_err(engine_error)?;
        match &asked.target {
            SecretTarget::Variable(name) => {
                let text =
                    String::from_utf8(data).ok().filter(|text| !text.contains('\0')).ok_or_else(|| {
                        CliError::new(format!("secret {} cannot be a variable: it is no text", meta.name))
                            .with_exit(Exit::Engine)
                    })?;
                if let Some(env) = plan.spec.process_mut().as_mut().map(oci_spec::runtime::Process::env_mut) {
                    env.get_or_insert_with(Vec::new).push(format!("{name}={text}"));
                }
            }
            SecretTarget::File { path, mode } => {
                let file = dir.join("secrets").join(number.to_string());
                let mut mount = oci_spec::runtime::Mount::default();
                let options = ["bind", "ro", "rprivate", "nosuid", "nodev", "noexec"].map(str::to_owned);
                mount
                    .set_destination(path.clone())
                    .set_typ(Some("bind".into()))
                    .set_source(Some(file.clone()))
                    .set_options(Some(options.to_vec()));
                let mounts = plan.spec.mounts_mut().get_or_insert_with(Vec::new);
                mounts.push(mount);
                mounts.sort_by_key(|mount| mount.destination().components().count());
                files.push((file, data, *mode));
            }
        }
    }
    Ok(files)
}

fn write_secrets(files: &[SecretFile]) -> Result<(), CliError> {
    for (path, data, mode) in files {
        use std::io::Write as _;
        let written = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| {
            let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(*mode).open(path)?;
            file.set_permissions(fs::Permissions::from_mode(*mode))?; // whatever the umask says
            file.write_all(data)
        });
        written.map_err(|error| {
            CliError::new(format!("cannot write the secret {}: {error}", path.display()))
                .with_exit(Exit::Engine)
        })?;
    }
    Ok(())
}

/// The variables that `proxies` in Docker's config.json asks for (its documentation, "Configure the Docker
/// client"): each in both spellings, and after it what `-e` says.
fn proxy_settings() -> Vec<EnvSetting> {
    let config = super::client_config::ClientConfig::of_user();
    let both = |(name, value): (&str, &str)| {
        [name.to_owned(), name.to_ascii_lowercase()]
            .map(|name| EnvSetting { name, value: Some(value.to_owned()) })
    };
    config.proxy_variables().into_iter().flat_map(both).collect()
}

/// An error that Docker's `run` ends with 125 for.
fn engine_error(error: impl std::error::Error + 'static) -> CliError {
    CliError::from(error).with_exit(Exit::Engine)
}

/// Removes what a killed command left; best effort, the next command tries again.
pub(super) fn sweep(containers: &Containers) {
    let Ok(leftovers) = containers.leftovers() else { return };
    if leftovers.is_empty() {
        return;
    }
    let maps = choose(&Facts::gather(), Wanted::Usual);
    for path in leftovers {
        supervisor::remove::socket_of(&path);
        let _ = supervisor::remove::tree(&path, &maps);
    }
}

fn free_name(containers: &Containers) -> Result<Name, CliError> {
    for _ in 0..64 {
        let name: Name = plan::names::generate(u64::from_ne_bytes(sys::process::random_bytes()?)).parse()?;
        if !containers.has_name(&name) {
            return Ok(name);
        }
    }
    Err(CliError::new("no free container name was found").with_hint("give one with --name"))
}

/// A bind's source has to be there; Docker's `-v` makes a missing one, `--mount` does not.
fn check_bind_sources(plan: &plan::ContainerPlan) -> Result<(), CliError> {
    for source in &plan.bind_sources {
        let path = &source.path;
        match fs::metadata(path) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && source.create => {
                fs::create_dir_all(path).map_err(|error| {
                    CliError::new(format!(
                        "error while creating mount source path '{}': {error}",
                        path.display()
                    ))
                    .with_exit(Exit::Engine)
                })?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(CliError::new(format!(
                    "invalid mount config for type \"bind\": bind source path does not exist: {}",
                    path.display()
                ))
                .with_exit(Exit::Engine));
            }
            Err(error) => {
                return Err(CliError::new(format!(
                    "cannot use {} for a bind mount: {error}",
                    path.display()
                ))
                .with_exit(Exit::Engine));
            }
        }
    }
    Ok(())
}

/// Makes the volumes that are missing and turns their mounts into binds of their directories.
fn mount_volumes(store: &Store, plan: &mut plan::ContainerPlan) -> Result<(), CliError> {
    let mut backings = std::collections::BTreeMap::new();
    for volume in &mut plan.volumes {
        let name: Name = volume.name.parse().map_err(engine_error)?;
        let mut meta = VolumeMeta::new(volume.anonymous);
        (meta.labels, meta.options) = (volume.labels.clone(), volume.options.clone());
        super::volume::check_options(&meta.options).map_err(|error| error.with_exit(Exit::Engine))?;
        let (made, is_new) = store.create_volume(&name, &meta)?;
        let backing = made.backing();
        volume.no_copy |= match &backing {
            Backing::Directory { path, .. } if *path == made.data => !is_new && has_content(path),
            Backing::Directory { path, .. } => has_content(path),
            // Empty at each start: there is nothing to keep a copy in.
            Backing::Memory { .. } => true,
        };
        backings.insert(PathBuf::from(&volume.name), backing);
    }
    for mount in plan.spec.mounts_mut().iter_mut().flatten() {
        let is_volume = mount.typ().as_deref() == Some("volume");
        let backing = mount.source().as_ref().and_then(|name| backings.get(name)).filter(|_| is_volume);
        match backing {
            Some(Backing::Directory { path, read_only }) => {
                if !path.is_dir() {
                    return Err(CliError::new(format!(
                        "failed to mount local volume: {} is not a directory of this machine",
                        path.display()
                    ))
                    .with_exit(Exit::Engine));
                }
                let mut options = mount.options().clone().unwrap_or_default();
                if *read_only && !options.iter().any(|option| option == "ro") {
                    options.extend(["ro".to_owned(), "rro".to_owned()]);
                }
                mount.set_source(Some(path.clone())).set_typ(Some("bind".into())).set_options(Some(options));
            }
            Some(Backing::Memory { options }) => {
                let read_only = mount.options().iter().flatten().any(|option| option == "ro");
                let all = ["nosuid", "nodev"].map(str::to_owned).into_iter().chain(options.iter().cloned());
                let all = all.chain(read_only.then(|| "ro".to_owned())).collect();
                mount.set_source(Some("tmpfs".into())).set_typ(Some("tmpfs".into())).set_options(Some(all));
            }
            None => {}
        }
    }
    Ok(())
}

fn has_content(directory: &Path) -> bool {
    // A volume whose files belong to subordinate ids may not be readable: it has been used then.
    fs::read_dir(directory).map_or(true, |mut entries| entries.next().is_some())
}

fn reserve_cidfile(path: &PathBuf) -> Result<(), CliError> {
    fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(path).map(drop).map_err(|error| {
        let message = if error.kind() == std::io::ErrorKind::AlreadyExists {
            format!(
                "container ID file found, make sure the other container isn't running or delete {}",
                path.display()
            )
        } else {
            format!("failed to create the container ID file {}: {error}", path.display())
        };
        CliError::new(message).with_exit(Exit::Engine)
    })
}
