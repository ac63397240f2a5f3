//! Capabilities, filters, protected paths and namespaces.

use std::collections::BTreeMap;
use std::path::Path;

use clap::Args;

use super::{files, invalid_argument, not_supported, refused};
use crate::cli::switches::parse_bool;
use crate::cli::{CliError, Exit};
use crate::plan::request::{CapabilityName, IpcMode, NamespaceMode, SecurityRequest, Unmask, UsernsMode};
use crate::plan::{SeccompPlan, capability};

/// The flags.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct SecurityArgs {
    /// Add Linux capabilities
    #[arg(long, value_name = "CAPABILITY", value_delimiter = ',')]
    cap_add: Vec<String>,
    /// Drop Linux capabilities
    #[arg(long, value_name = "CAPABILITY", value_delimiter = ',')]
    cap_drop: Vec<String>,
    /// Cgroup namespace to use (host|private)
    #[arg(long, value_name = "MODE")]
    cgroupns: Option<String>,
    /// IPC mode to use (private|shareable|none|host|container:NAME)
    #[arg(long, value_name = "MODE")]
    ipc: Option<String>,
    /// PID namespace to use (private|host|container:NAME)
    #[arg(long, value_name = "MODE")]
    pid: Option<String>,
    /// Give extended privileges to this container: every capability of its user namespace, no
    /// system call filter, no masked paths
    #[arg(long)]
    privileged: bool,
    /// Security options (no-new-privileges, seccomp=FILE|unconfined, mask=PATHS, unmask=PATHS,
    /// nested: let a container engine work inside)
    #[arg(long, value_name = "OPTION")]
    security_opt: Vec<String>,
    /// Sysctl options
    #[arg(long, value_name = "NAME=VALUE")]
    sysctl: Vec<String>,
    /// User namespace to use (host: the user's own map, the default; keep-id[:uid=UID,gid=GID]: the
    /// user has the same ids inside; container:NAME)
    #[arg(long, value_name = "MODE")]
    userns: Option<String>,
    /// UTS namespace to use (private|host|container:NAME)
    #[arg(long, value_name = "MODE")]
    uts: Option<String>,
}

impl SecurityArgs {
    pub(super) fn parse(self) -> Result<SecurityRequest, CliError> {
        let mut request = SecurityRequest {
            privileged: self.privileged,
            cap_add: parse_capabilities("CapAdd", &self.cap_add)?,
            cap_drop: parse_capabilities("CapDrop", &self.cap_drop)?,
            sysctls: parse_sysctls(&self.sysctl)?,
            pid: parse_namespace("--pid", "PID", self.pid.as_deref())?,
            ipc: parse_ipc(self.ipc.as_deref())?,
            uts: parse_namespace("--uts", "UTS", self.uts.as_deref())?,
            cgroup: parse_cgroup(self.cgroupns.as_deref())?,
            user: parse_userns(self.userns.as_deref())?,
            ..SecurityRequest::default()
        };
        for option in &self.security_opt {
            apply_option(&mut request, option)?;
        }
        Ok(request)
    }
}

fn parse_capabilities(what: &str, names: &[String]) -> Result<Vec<CapabilityName>, CliError> {
    names
        .iter()
        .map(|name| {
            capability::parse(name).ok_or_else(|| {
                let upper = name.to_ascii_uppercase();
                let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
                refused(format!("invalid {what}: unknown capability: {full:?}"))
            })
        })
        .collect()
}

fn parse_namespace(flag: &str, name: &str, mode: Option<&str>) -> Result<NamespaceMode, CliError> {
    match mode {
        None | Some("" | "private") => Ok(NamespaceMode::Private),
        Some("host") => Ok(NamespaceMode::Host),
        Some(other) if other.starts_with("ns:") => Err(not_supported(
            &format!("{flag} {other}"),
            "a namespace that belongs to no container cannot be entered without privilege",
        )),
        Some(other) if other.strip_prefix("container:").is_some_and(|name| !name.is_empty()) => {
            Ok(NamespaceMode::Container(other["container:".len()..].to_owned()))
        }
        Some(_) => Err(refused(format!("{flag}: invalid {name} mode"))),
    }
}

fn parse_ipc(mode: Option<&str>) -> Result<IpcMode, CliError> {
    match mode {
        Some("shareable") => Ok(IpcMode::Shareable),
        Some("none") => Ok(IpcMode::None),
        other => match parse_namespace("--ipc", "IPC", other)? {
            NamespaceMode::Private => Ok(IpcMode::Private),
            NamespaceMode::Host => Ok(IpcMode::Host),
            NamespaceMode::Container(name) => Ok(IpcMode::Container(name)),
        },
    }
}

fn parse_cgroup(mode: Option<&str>) -> Result<NamespaceMode, CliError> {
    match parse_namespace("--cgroupns", "CGROUP", mode)? {
        NamespaceMode::Container(_) => Err(refused("--cgroupns: invalid CGROUP mode")),
        mode => Ok(mode),
    }
}

/// Docker's `host` means no remapping below what the daemon has: for a rootless engine its usual map.
/// The rest is podman's.
fn parse_userns(mode: Option<&str>) -> Result<UsernsMode, CliError> {
    let invalid = || refused("--userns: invalid USER mode");
    let Some(mode) = mode else { return Ok(UsernsMode::Usual) };
    if let Some(options) = mode.strip_prefix("keep-id") {
        return match options.strip_prefix(':') {
            Some(options) => parse_keep_id(options),
            None if options.is_empty() => Ok(UsernsMode::KeepId { uid: None, gid: None }),
            None => Err(invalid()),
        };
    }
    match mode {
        "" | "host" | "private" => Ok(UsernsMode::Usual),
        _ if mode.strip_prefix("container:").is_some_and(|name| !name.is_empty()) => {
            Ok(UsernsMode::Container(mode["container:".len()..].to_owned()))
        }
        _ if ["auto", "nomap", "ns:"].iter().any(|word| mode.starts_with(word)) => Err(not_supported(
            &format!("--userns {mode}"),
            "a container has the user's usual id map, one that keeps the user's ids (keep-id), or that of another container",
        )),
        _ => Err(invalid()),
    }
}

/// `uid=1000,gid=1000`, either of them.
fn parse_keep_id(options: &str) -> Result<UsernsMode, CliError> {
    let (mut uid, mut gid) = (None, None);
    for option in options.split(',') {
        let invalid = || invalid_argument("--userns", option, "keep-id takes uid=UID and gid=GID");
        let (key, value) = option.split_once('=').ok_or_else(invalid)?;
        // The highest 32-bit number means "no change" to the kernel (setresuid(2)).
        let id = value.parse().ok().filter(|id| *id < u32::MAX).ok_or_else(invalid)?;
        match key {
            "uid" => uid = Some(id),
            "gid" => gid = Some(id),
            _ => return Err(invalid()),
        }
    }
    Ok(UsernsMode::KeepId { uid, gid })
}

/// Docker's list: sysctls of a namespace that the container has to itself.
fn parse_sysctls(texts: &[String]) -> Result<BTreeMap<String, String>, CliError> {
    const IPC: [&str; 9] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
        "kernel.domainname",
    ];
    texts
        .iter()
        .map(|text| {
            let (name, value) = text.split_once('=').ok_or_else(|| {
                invalid_argument("--sysctl", text, format!("sysctl '{text}' is not allowed"))
            })?;
            // Both spellings of sysctl(8).
            let name = if name.contains('/') { name.replace('/', ".") } else { name.to_owned() };
            let clean = name.split('.').all(|part| {
                !part.is_empty()
                    && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
            });
            let namespaced =
                name.starts_with("net.") || name.starts_with("fs.mqueue.") || IPC.contains(&name.as_str());
            if clean && namespaced && !value.contains('\0') {
                Ok((name, value.to_owned()))
            } else {
                Err(invalid_argument("--sysctl", text, format!("sysctl '{text}' is not allowed")))
            }
        })
        .collect()
}

/// One `--security-opt`. The old spelling with a colon is still read.
fn apply_option(request: &mut SecurityRequest, option: &str) -> Result<(), CliError> {
    let invalid = || refused(format!("invalid --security-opt: {option:?}"));
    let (name, value) = match option.split_once(['=', ':']) {
        Some((name, value)) => (name, Some(value)),
        None => (option, None),
    };
    match (name, value) {
        ("no-new-privileges", None) => request.no_new_privileges = true,
        ("no-new-privileges", Some(value)) => {
            request.no_new_privileges = parse_bool(value).ok_or_else(invalid)?;
        }
        ("nested", None) => {
            request.seccomp = Some(SeccompPlan::Nested);
            request.unmask = Unmask::All;
        }
        ("seccomp", Some("unconfined")) => request.seccomp = Some(SeccompPlan::Unconfined),
        ("seccomp", Some("builtin" | "default")) => request.seccomp = Some(SeccompPlan::Default),
        ("seccomp", Some(file)) => request.seccomp = Some(read_profile(Path::new(file))?),
        ("mask", Some(paths)) => request.mask.extend(absolute_paths(paths).ok_or_else(invalid)?),
        ("unmask", Some("ALL")) => request.unmask = Unmask::All,
        ("unmask", Some(paths)) => {
            let paths = absolute_paths(paths).ok_or_else(invalid)?;
            match &mut request.unmask {
                Unmask::All => {}
                Unmask::Paths(known) => known.extend(paths),
                Unmask::Nothing => request.unmask = Unmask::Paths(paths),
            }
        }
        ("systempaths", Some("unconfined")) => request.unmask = Unmask::All,
        // SELinux labels apply to binds (`:z`) only; processes keep the caller's.
        ("label", Some(_)) => {}
        // No profile is what the container gets.
        ("apparmor", Some("unconfined" | "")) => {}
        ("apparmor", Some(_)) => {
            return Err(not_supported(
                "--security-opt apparmor",
                "loading a profile takes root; the container runs with the caller's confinement",
            ));
        }
        ("writable-cgroups", Some(value)) => {
            if parse_bool(value).ok_or_else(invalid)? {
                return Err(not_supported("--security-opt writable-cgroups", "no cgroup is delegated yet"));
            }
        }
        _ => return Err(invalid()),
    }
    Ok(())
}

fn absolute_paths(list: &str) -> Option<Vec<String>> {
    list.split(':')
        .map(|path| (path.starts_with('/') && !path.contains("/..")).then(|| path.to_owned()))
        .collect()
}

fn read_profile(path: &Path) -> Result<SeccompPlan, CliError> {
    let failed =
        |reason: String| refused(format!("opening seccomp profile ({}) failed: {reason}", path.display()));
    let bytes = files::read(path).map_err(|error| CliError::from(error).with_exit(Exit::Engine))?;
    let text = String::from_utf8(bytes).map_err(|_| failed("it is not UTF-8".into()))?;
    Ok(SeccompPlan::Profile(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(list: &[&str]) -> Result<SecurityRequest, String> {
        let security_opt = list.iter().map(|option| (*option).to_owned()).collect();
        SecurityArgs { security_opt, ..SecurityArgs::default() }.parse().map_err(|e| e.message().to_owned())
    }

    #[test]
    fn security_options() {
        let all = options(&[
            "no-new-privileges",
            "seccomp=unconfined",
            "mask=/proc/a:/proc/b",
            "unmask=/proc/kcore",
            "unmask=/proc/*",
            "label=disable",
            "apparmor=unconfined",
        ])
        .expect("valid");
        assert!(all.no_new_privileges);
        assert_eq!(all.seccomp, Some(SeccompPlan::Unconfined));
        assert_eq!(all.mask, ["/proc/a", "/proc/b"]);
        assert_eq!(all.unmask, Unmask::Paths(vec!["/proc/kcore".into(), "/proc/*".into()]));
        assert!(!options(&["no-new-privileges:false"]).expect("valid").no_new_privileges);
        let nested = options(&["nested"]).expect("valid");
        assert_eq!((nested.seccomp, nested.unmask), (Some(SeccompPlan::Nested), Unmask::All));
        assert_eq!(options(&["systempaths=unconfined"]).map(|r| r.unmask), Ok(Unmask::All));
        for bad in [
            "foo",
            "foo=bar",
            "nested=x",
            "no-new-privileges=x",
            "mask=relative",
            "unmask=/a/../b",
            "seccomp",
        ] {
            assert_eq!(options(&[bad]).err(), Some(format!("invalid --security-opt: {bad:?}")));
        }
        let missing = options(&["seccomp=/no/such/profile"]).expect_err("missing");
        assert_eq!(missing, "open /no/such/profile: No such file or directory (os error 2)");
    }

    #[test]
    fn capabilities_and_modes() {
        assert_eq!(
            parse_capabilities("CapAdd", &["foo".into()]).map_err(|e| e.message().to_owned()),
            Err("invalid CapAdd: unknown capability: \"CAP_FOO\"".into())
        );
        assert_eq!(
            parse_namespace("--pid", "PID", Some("x")).map_err(|e| e.message().to_owned()),
            Err("--pid: invalid PID mode".into())
        );
        assert_eq!(parse_namespace("--pid", "PID", Some("host")).ok(), Some(NamespaceMode::Host));
        assert_eq!(
            parse_namespace("--pid", "PID", Some("container:x")).ok(),
            Some(NamespaceMode::Container("x".into()))
        );
        assert!(parse_namespace("--pid", "PID", Some("container:")).is_err());
        assert!(parse_namespace("--pid", "PID", Some("ns:/proc/1/ns/pid")).is_err());
        assert!(parse_cgroup(Some("container:x")).is_err());
        assert_eq!(parse_ipc(Some("none")).ok(), Some(IpcMode::None));
    }

    #[test]
    fn user_namespaces() {
        let keep = |uid, gid| Some(UsernsMode::KeepId { uid, gid });
        let table = [
            ("host", Some(UsernsMode::Usual)),
            ("keep-id", keep(None, None)),
            ("keep-id:uid=1", keep(Some(1), None)),
            ("keep-id:gid=3,uid=2", keep(Some(2), Some(3))),
            ("keep-id:", None),
            ("keep-id:uid", None),
            ("keep-id:uid=-1", None),
            ("keep-id:uid=4294967295", None),
            ("keep-id:size=5", None),
            ("keep-idle", None),
            ("container:x", Some(UsernsMode::Container("x".into()))),
            ("container:", None),
            ("auto", None),
            ("x", None),
        ];
        for (text, mode) in table {
            assert_eq!(parse_userns(Some(text)).ok(), mode, "{text}");
        }
    }

    #[test]
    fn sysctls() {
        let texts = [
            "net.core.somaxconn=1024".to_owned(),
            "net/ipv4/ip_forward=1".into(),
            "kernel.sem=1 2 3 4".into(),
        ];
        let sysctls = parse_sysctls(&texts).expect("valid");
        assert_eq!(
            sysctls.into_iter().collect::<Vec<_>>(),
            [
                ("kernel.sem".to_owned(), "1 2 3 4".to_owned()),
                ("net.core.somaxconn".into(), "1024".into()),
                ("net.ipv4.ip_forward".into(), "1".into()),
            ]
        );
        for bad in ["kernel.hostname=x", "net.core", "net.../x=1", "net..x=1", "vm.swappiness=1", "=1"] {
            let message =
                format!("invalid argument {bad:?} for \"--sysctl\" flag: sysctl '{bad}' is not allowed");
            assert_eq!(parse_sysctls(&[bad.into()]).map_err(|e| e.message().to_owned()), Err(message));
        }
    }
}
