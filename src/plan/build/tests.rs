//! What a plan says where whole snapshots would hide it, and what makes none.

use std::path::Path;

use oci_spec::image::{ConfigBuilder, ImageConfigurationBuilder};
use oci_spec::runtime::Mount;

use super::*;
use crate::plan::request::*;
use crate::plan::restart::RestartPolicy;
use crate::plan::{HostLoopback, WriteMode};

fn request() -> RunRequest {
    RunRequest {
        image: "image".into(),
        name: None,
        cidfile: None,
        pull: PullPolicy::Missing,
        platform: None,
        quiet: false,
        auto_remove: false,
        labels: Labels::new(),
        annotations: Labels::new(),
        restart: RestartPolicy::No,
        healthcheck: None,
        log_driver: LogDriver::JsonFile,
        log: LogRequest::default(),
        secrets: Vec::new(),
        stdio: StdioRequest::default(),
        process: ProcessRequest { command: vec!["true".into()], ..ProcessRequest::default() },
        storage: StorageRequest::default(),
        network: NetworkRequest::default(),
        security: SecurityRequest::default(),
        limits: Limits::default(),
    }
}

fn facts() -> BuildFacts {
    BuildFacts {
        id: ContainerId::from_random(&[0xab; 32]),
        uid_count: 1,
        gid_count: 1,
        host_name: "machine".into(),
        peers: Peers::default(),
        keep_id: None,
        host_root: None,
        controllers: Vec::new(),
        image_healthcheck: None,
        extra_masked_paths: Vec::new(),
    }
}

fn image(config: ConfigBuilder) -> ImageConfiguration {
    let config = config.build().expect("a config");
    ImageConfigurationBuilder::default().config(config).build().expect("an image")
}

fn plain() -> ImageConfiguration {
    ImageConfiguration::default()
}

fn planned(request: &RunRequest) -> ContainerPlan {
    build(request, &plain(), &facts()).expect("a plan")
}

fn mount_at<'a>(plan: &'a ContainerPlan, destination: &str) -> Option<&'a Mount> {
    plan.spec.mounts().iter().flatten().find(|mount| mount.destination() == Path::new(destination))
}

fn mount_text(plan: &ContainerPlan, destination: &str) -> Option<String> {
    let mount = mount_at(plan, destination)?;
    let source = mount.source().as_deref().map(|path| path.display().to_string()).unwrap_or_default();
    let options = mount.options().as_deref().unwrap_or_default().join(",");
    Some(format!("{} {source} {options}", mount.typ().as_deref().unwrap_or_default()))
}

fn bind(source: &str, destination: &str) -> MountRequest {
    let bind = BindMount {
        source: source.into(),
        create_source: true,
        recursive: true,
        propagation: Propagation::RPrivate,
        relabel: None,
    };
    MountRequest { destination: destination.into(), access: Access::ReadWrite, kind: MountKind::Bind(bind) }
}

#[test]
fn the_same_input_gives_the_same_plan() {
    let volumes = || (0..50).map(|number| format!("/v{number}")).collect::<Vec<_>>();
    let config = || image(ConfigBuilder::default().volumes(volumes()));
    let destinations = |plan: ContainerPlan| -> Vec<PathBuf> {
        plan.spec.mounts().iter().flatten().map(|mount| mount.destination().clone()).collect()
    };
    let first = destinations(build(&request(), &config(), &facts()).expect("a plan"));
    assert_eq!(first, destinations(build(&request(), &config(), &facts()).expect("a plan")));
    let depths: Vec<usize> = first.iter().map(|path| path.components().count()).collect();
    assert!(depths.is_sorted());
}

#[test]
fn one_id_has_no_terminal_group_and_one_ping_group() {
    let plan = planned(&request());
    let devpts = mount_text(&plan, "/dev/pts").expect("a devpts");
    assert_eq!(devpts, "devpts devpts nosuid,noexec,newinstance,ptmxmode=0666,mode=0620");
    let sysctls = plan.spec.linux().as_ref().and_then(|linux| linux.sysctl().clone()).expect("sysctls");
    assert_eq!(sysctls["net.ipv4.ping_group_range"], "0 0");
}

fn peer(shares_host_network: bool) -> Peer {
    Peer {
        id: ContainerId::from_random(&[0xcd; 32]),
        host_name: Some("web".into()),
        domain_name: Some("example".into()),
        host_namespaces: if shares_host_network { vec![LinuxNamespaceType::Network] } else { Vec::new() },
    }
}

#[test]
fn a_joined_network_is_the_peers_whatever_it_is() {
    let mut request = request();
    request.network.mode = NetworkMode::Container("web".into());
    for (shares_host, sysfs) in [(false, "sysfs"), (true, "bind")] {
        let joined =
            BuildFacts { peers: Peers { network: Some(peer(shares_host)), ..Peers::default() }, ..facts() };
        let plan = build(&request, &plain(), &joined).expect("a plan");
        let namespaces =
            plan.spec.linux().as_ref().and_then(|linux| linux.namespaces().clone()).expect("some");
        let has_network = namespaces.iter().any(|namespace| namespace.typ() == LinuxNamespaceType::Network);
        assert_eq!(has_network, !shares_host);
        assert!(mount_text(&plan, "/sys").expect("a /sys").starts_with(sysfs));
        assert_eq!(plan.network.mode, NetworkMode::Container("cd".repeat(32)));
        assert_eq!(plan.spec.domainname().as_deref(), Some("example"));
    }
}

#[test]
fn host_names() {
    let mut request = request();
    let hostname = |request: &RunRequest, facts: &BuildFacts| {
        let plan = build(request, &plain(), facts).expect("a plan");
        let env =
            plan.spec.process().as_ref().and_then(|process| process.env().clone()).expect("an environment");
        (plan.spec.hostname().clone(), env[1].clone())
    };
    assert_eq!(hostname(&request, &facts()), (Some("abababababab".into()), "HOSTNAME=abababababab".into()));
    request.network.mode = NetworkMode::Host;
    assert_eq!(hostname(&request, &facts()), (Some("machine".into()), "HOSTNAME=machine".into()));
    request.security.uts = NamespaceMode::Host;
    assert_eq!(hostname(&request, &facts()), (None, "HOSTNAME=machine".into()));
    request.security.uts = NamespaceMode::Private;
    request.network.mode = NetworkMode::Container("web".into());
    let joined = BuildFacts { peers: Peers { network: Some(peer(false)), ..Peers::default() }, ..facts() };
    assert_eq!(hostname(&request, &joined), (Some("web".into()), "HOSTNAME=web".into()));
    request.network.mode = NetworkMode::Bridge;
    request.network.hostname = Some("box".into());
    assert_eq!(hostname(&request, &facts()), (Some("box".into()), "HOSTNAME=box".into()));
}

#[test]
fn working_directories() {
    let host = BuildFacts { host_root: Some(HostRoot { working_dir: "/home/me/work".into() }), ..facts() };
    let image = |dir: &str| image(ConfigBuilder::default().working_dir(dir));
    let table = [
        (None, plain(), facts(), "/"),
        (None, plain(), host.clone(), "/home/me/work"),
        (None, image("/srv/../app"), facts(), "/app"),
        (None, image("srv"), facts(), "/srv"),
        (None, image(""), facts(), "/"),
        (Some("/w"), image("/srv"), host, "/w"),
    ];
    for (asked, image, facts, expected) in table {
        let mut request = request();
        request.process.working_dir = asked.map(str::to_owned);
        let plan = build(&request, &image, &facts).expect("a plan");
        assert_eq!(plan.spec.process().as_ref().map(|process| process.cwd().clone()), Some(expected.into()));
    }
}

#[test]
fn namespaces_of_the_host_change_their_mounts() {
    let mut request = request();
    request.network.mode = NetworkMode::Host;
    request.security.pid = NamespaceMode::Host;
    request.security.ipc = IpcMode::Host;
    request.security.cgroup = NamespaceMode::Host;
    let plan = planned(&request);
    let table = [
        ("/proc", "bind /proc rbind,rprivate,nosuid,noexec,nodev"),
        ("/sys", "bind /sys rbind,rprivate,nosuid,noexec,nodev,ro,rro"),
        ("/dev/shm", "bind /dev/shm rbind,rprivate,nosuid,noexec,nodev"),
    ];
    for (destination, expected) in table {
        assert_eq!(mount_text(&plan, destination).as_deref(), Some(expected));
    }
    let namespaces =
        plan.spec.linux().as_ref().and_then(|linux| linux.namespaces().clone()).expect("namespaces");
    let kinds: Vec<LinuxNamespaceType> = namespaces.iter().map(LinuxNamespace::typ).collect();
    assert_eq!(kinds, [LinuxNamespaceType::User, LinuxNamespaceType::Mount, LinuxNamespaceType::Uts]);
    assert_eq!(mount_at(&plan, "/dev/mqueue"), None);
    request.security.ipc = IpcMode::None;
    assert_eq!(mount_at(&planned(&request), "/dev/shm"), None);
}

#[test]
fn mounts_of_ones_own_replace_the_defaults() {
    let mut request = request();
    request.storage.mounts = vec![bind("/dev", "/dev"), bind("/x", "/sys")];
    let plan = planned(&request);
    assert_eq!(mount_text(&plan, "/dev").as_deref(), Some("bind /dev rbind,rprivate"));
    assert_eq!(mount_text(&plan, "/sys").as_deref(), Some("bind /x rbind,rprivate"));
    for gone in ["/dev/pts", "/dev/shm", "/dev/mqueue"] {
        assert_eq!(mount_at(&plan, gone), None, "{gone}");
    }
    assert!(mount_at(&plan, "/sys/fs/cgroup").is_some());
}

#[test]
fn time_zones_devices_and_volumes() {
    let mut request = request();
    request.storage.time_zone = Some("Europe/Berlin".into());
    request.storage.mounts = vec![
        MountRequest {
            destination: "/dev/fuse".into(),
            access: Access::ReadWrite,
            kind: MountKind::Device { source: "/dev/fuse".into() },
        },
        MountRequest {
            destination: "/a".into(),
            access: Access::ReadOnlyTop,
            kind: MountKind::Volume(VolumeMount {
                name: "data".parse().ok(),
                no_copy: true,
                ..VolumeMount::default()
            }),
        },
        MountRequest {
            destination: "/b".into(),
            access: Access::ReadOnly,
            kind: MountKind::Volume(VolumeMount { name: "data".parse().ok(), ..VolumeMount::default() }),
        },
    ];
    let plan = planned(&request);
    let table = [
        ("/etc/localtime", "bind /usr/share/zoneinfo/Europe/Berlin bind,ro,rro,rprivate"),
        ("/dev/fuse", "bind /dev/fuse bind,rprivate,nosuid,noexec"),
        ("/a", "volume data rbind,ro,rprivate,nocopy"),
        ("/b", "volume data rbind,ro,rro,rprivate"),
    ];
    for (destination, expected) in table {
        assert_eq!(mount_text(&plan, destination).as_deref(), Some(expected));
    }
    assert_eq!(plan.volumes.len(), 1);
    let sources: Vec<&Path> = plan.bind_sources.iter().map(|source| source.path.as_path()).collect();
    assert_eq!(sources, [Path::new("/dev/fuse"), Path::new("/usr/share/zoneinfo/Europe/Berlin")]);
    assert!(plan.bind_sources.iter().all(|source| !source.create));
}

#[test]
fn protected_paths_can_be_opened_and_added() {
    let facts = BuildFacts { extra_masked_paths: vec!["/sys/cpu0/thermal".into()], ..facts() };
    let paths = |security: SecurityRequest| protected_paths(&security, &facts);
    let (masked, read_only) = paths(SecurityRequest::default());
    assert_eq!((masked.len(), read_only.len()), (13, 5));
    assert_eq!(masked[12], "/sys/cpu0/thermal");
    let (masked, read_only) = paths(SecurityRequest {
        mask: vec!["/proc/x".into()],
        unmask: Unmask::Paths(vec!["/proc/*".into(), "/sys/firmware".into()]),
        ..SecurityRequest::default()
    });
    assert_eq!(masked, ["/sys/devices/virtual/powercap", "/sys/cpu0/thermal", "/proc/x"]);
    assert!(read_only.is_empty());
    let all = paths(SecurityRequest { unmask: Unmask::All, ..SecurityRequest::default() });
    assert_eq!(all, (Vec::new(), Vec::new()));
    let privileged =
        SecurityRequest { privileged: true, mask: vec!["/x".into()], ..SecurityRequest::default() };
    assert_eq!(paths(privileged), (vec!["/x".into()], Vec::new()));
}

#[test]
fn patterns_stay_within_a_component() {
    let table = [
        ("/proc/*", "/proc/kcore", true),
        ("/proc/*", "/proc/a/b", false),
        ("/proc/k*e", "/proc/kcore", true),
        ("/proc/k*e", "/proc/keys", false),
        ("/proc/*o*e*", "/proc/kcore", true),
        ("/*/kcore", "/proc/kcore", true),
        ("/proc/kcore*", "/proc/kcore", true),
        ("/proc/a*a", "/proc/a", false),
        ("/proc", "/proc/kcore", false),
    ];
    for (pattern, path, expected) in table {
        assert_eq!(matches(pattern, path), expected, "{pattern} {path}");
    }
}

#[test]
fn seccomp_and_privilege() {
    let profile = SeccompPlan::Profile("{}".into());
    let table = [
        (false, None, SeccompPlan::Default),
        (false, Some(SeccompPlan::Unconfined), SeccompPlan::Unconfined),
        (true, None, SeccompPlan::Unconfined),
        (true, Some(profile.clone()), profile),
    ];
    for (privileged, asked, expected) in table {
        assert_eq!(
            seccomp(&SecurityRequest { privileged, seccomp: asked, ..SecurityRequest::default() }),
            expected
        );
    }
}

#[test]
fn limits_warn_in_dockers_words() {
    let mut request = request();
    assert!(planned(&request).warnings.is_empty());
    request.network.mode = NetworkMode::Host;
    request.network.publish_all = true;
    request.limits = Limits { memory_bytes: 1, pids: 10, cpu_nanos: 1, ..Limits::default() };
    assert_eq!(
        planned(&request).warnings,
        [
            "Published ports are discarded when using host network mode",
            "Your kernel does not support memory limit capabilities or the cgroup is not mounted. Limitation discarded.",
            "Your kernel does not support PIDs limit capabilities or the cgroup is not mounted. PIDs limit discarded.",
            "Your kernel does not support CPU CFS scheduler or the cgroup is not mounted. NanoCPUs discarded.",
        ]
    );
    request.limits =
        Limits { pids: -1, memory_swap_bytes: -1, memory_swappiness: Some(-1), ..Limits::default() };
    assert_eq!(planned(&request).warnings.len(), 1, "no limit is asked for");
}

#[test]
fn ports_are_published_on_the_userspace_network_only() {
    let mut request = request();
    request.network.publish_all = true;
    request.network.expose = vec![(80, Protocol::Tcp), (80, Protocol::Udp)];
    request.network.publish = vec![PublishedPort {
        host_ip: None,
        host_port: HostPort::Fixed(8080),
        container_port: 80,
        protocol: Protocol::Tcp,
    }];
    let plan = planned(&request);
    assert_eq!(plan.network.publish.len(), 2);
    assert_eq!(plan.network.publish[1].protocol, Protocol::Udp);
    assert_eq!(plan.network.publish[1].host_port, HostPort::Any);
    request.network.mode = NetworkMode::None;
    assert_eq!(planned(&request).network.publish, []);
    assert_eq!(plan.network.host_loopback, HostLoopback::Closed);
    assert_eq!(plan.write_mode, WriteMode::Auto);
}

#[test]
fn what_makes_no_plan() {
    let config = ConfigBuilder::default;
    let text = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    let images = [
        (
            config().volumes(text(&["data"])),
            "the image's configuration is invalid: volume \"data\" is not an absolute path below /",
        ),
        (
            config().volumes(text(&["/a/.."])),
            "the image's configuration is invalid: volume \"/a/..\" is not an absolute path below /",
        ),
        (
            config().volumes((0..257).map(|number| format!("/{number}")).collect::<Vec<_>>()),
            "the image's configuration is invalid: it has 257 volumes, the limit is 256",
        ),
        (
            config().exposed_ports(text(&["x/tcp"])),
            "the image's configuration is invalid: exposed port \"x/tcp\"",
        ),
        (
            config().exposed_ports(text(&["1-65535", "1-65535/udp", "1-65535/tcp"])),
            "the image's configuration is invalid: it exposes more than 131072 ports",
        ),
        (config().stop_signal("SIGNOPE"), "the image's configuration is invalid: STOPSIGNAL"),
        (config().user("a\0b"), "the user contains a NUL character: \"a\\0b\""),
        (config().working_dir("/\0"), "the working directory contains a NUL character: \"/\\0\""),
        (config().entrypoint(text(&["/a\0"])), "the command contains a NUL character: \"/a\\0\""),
    ];
    for (config, message) in images {
        let error = build(&request(), &image(config), &facts()).expect_err(message);
        assert_eq!(error.to_string(), message);
    }

    let mut nothing = request();
    nothing.process.command.clear();
    assert_eq!(build(&nothing, &plain(), &facts()).err(), Some(PlanError::NoCommand));
    assert_eq!(PlanError::NoCommand.to_string(), "no command specified");

    let mut twice = request();
    twice.storage.mounts = vec![bind("/a", "/c"), bind("/b", "/c")];
    assert_eq!(
        build(&twice, &plain(), &facts()).map_err(|error| error.to_string()).err().as_deref(),
        Some("Duplicate mount point: /c")
    );

    let mut sysctl = request();
    sysctl.security.sysctls.insert("net.core.somaxconn".into(), "1".into());
    assert!(build(&sysctl, &plain(), &facts()).is_ok());
    sysctl.network.mode = NetworkMode::Host;
    assert_eq!(
        build(&sysctl, &plain(), &facts()).map_err(|error| error.to_string()).err().as_deref(),
        Some(
            "sysctl \"net.core.somaxconn\" is not allowed: the container shares the host's network namespace"
        )
    );
}

#[test]
fn a_saved_plan_reads_back() {
    let mut request = request();
    request.limits.memory_bytes = 1;
    let plan = planned(&request);
    let text = serde_json::to_string(&plan).expect("JSON");
    let read: ContainerPlan = serde_json::from_str(&text).expect("a plan");
    assert_eq!(read.spec, plan.spec);
    assert!(read.warnings.is_empty());
    let text = serde_json::to_string(&request).expect("JSON");
    assert_eq!(serde_json::from_str::<RunRequest>(&text).expect("a request"), request);
}
