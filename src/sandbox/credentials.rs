//! Dropping privilege, in order: bounding set, seccomp, groups, user, capabilities.

use caps::{CapSet, Capability, CapsHashSet};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use oci_spec::runtime::{Capabilities, Process};

use super::{Context as _, Failure, Stage, Staged};
use crate::plan::SeccompPlan;
use crate::plan::user::ResolvedUser;
use crate::sys;

/// Lets go of the user's session keyring, which may hold tickets and passwords, where no filter keeps
/// the container from asking for what is in it. The default filter does: there no key is spent, of which a
/// user has few.
///
/// # Errors
/// The user has no key left.
pub fn leave_keyring(filter: &SeccompPlan) -> Staged<()> {
    if matches!(filter, SeccompPlan::Default | SeccompPlan::Nested) {
        return Ok(());
    }
    sys::process::leave_session_keyring()
        .during(Stage::Credentials, || "cannot leave the session keyring".into())
        .map_err(|failure| {
            failure.hint("remove other such containers, or raise the sysctl kernel.keys.maxkeys")
        })
}

/// Becomes what the command is to run as. Afterwards nothing privileged can be done.
///
/// The filter is loaded while CAP_SYS_ADMIN is still held, so that no_new_privs stays off unless
/// asked for and su and sudo work inside, as in Docker.
///
/// # Errors
/// Which step was refused.
pub fn become_user(
    process: &Process,
    user: &ResolvedUser,
    may_set_groups: bool,
    seccomp: Option<&[libc::sock_filter]>,
) -> Staged<()> {
    let what = |step: &'static str| move || format!("cannot {step}");
    let stage = Stage::Credentials;
    let sets = process.capabilities();
    let wanted = |set: fn(&oci_spec::runtime::LinuxCapabilities) -> &Option<Capabilities>| {
        sets.as_ref().and_then(|sets| set(sets).as_ref()).map(convert).unwrap_or_default()
    };
    let bounding = wanted(|sets| sets.bounding());
    for capability in caps::runtime::thread_all_supported() {
        if !bounding.contains(&capability) {
            caps::drop(None, CapSet::Bounding, capability)
                .map_err(|error| Failure::plain(stage, format!("cannot drop {capability}: {error}")))?;
        }
    }
    if process.no_new_privileges() == Some(true) {
        sys::process::set_no_new_privs().during(stage, what("set no_new_privs"))?;
    }
    if let Some(program) = seccomp {
        sys::seccomp::load(program).during(stage, what("load the seccomp filter"))?;
    }
    if may_set_groups {
        let groups: Vec<Gid> = user.additional_gids.iter().copied().map(Gid::from_raw).collect();
        setgroups(&groups).during(stage, what("set the supplementary groups"))?;
    }
    let unmapped = |kind: &str, id: u32, error: nix::errno::Errno| {
        Failure::new(stage, format!("cannot become {kind} {id} in the container"), error).hint(
            "this container has no such id: the account has one id only, or a short range in /etc/subuid; \
             ask the administrator for a range, or run as another user with -u",
        )
    };
    let gid = Gid::from_raw(user.gid);
    setresgid(gid, gid, gid).map_err(|error| unmapped("group", user.gid, error))?;
    sys::process::set_keep_capabilities(true).during(stage, what("keep capabilities"))?;
    let uid = Uid::from_raw(user.uid);
    setresuid(uid, uid, uid).map_err(|error| unmapped("user", user.uid, error))?;
    let set = |kind: CapSet, capabilities: &CapsHashSet| {
        caps::set(None, kind, capabilities)
            .map_err(|error| Failure::plain(stage, format!("cannot set the {kind:?} capabilities: {error}")))
    };
    // Root gets its capabilities back at exec from the bounding set; others have what is set here.
    let permitted = if user.uid == 0 { wanted(|sets| sets.permitted()) } else { CapsHashSet::new() };
    let ambient = if user.uid == 0 { CapsHashSet::new() } else { wanted(|sets| sets.ambient()) };
    let base: CapsHashSet = permitted.union(&ambient).copied().collect();
    set(CapSet::Effective, &base)?;
    set(CapSet::Permitted, &base)?;
    set(CapSet::Inheritable, &ambient)?;
    if !ambient.is_empty() {
        set(CapSet::Ambient, &ambient)?;
    }
    sys::process::set_keep_capabilities(false).during(stage, what("reset securebits"))
}

fn convert(set: &Capabilities) -> CapsHashSet {
    set.iter()
        .filter_map(|capability| format!("CAP_{}", bare(*capability)).parse::<Capability>().ok())
        .collect()
}

/// The name without its prefix, whichever form the spec's type prints.
fn bare(capability: oci_spec::runtime::Capability) -> String {
    let text = capability.to_string();
    text.strip_prefix("CAP_").unwrap_or(&text).to_owned()
}

/// The spec's resource limits.
///
/// # Errors
/// Which limit was refused; a hard limit above the caller's own cannot be had without privilege.
pub fn set_limits(process: &Process) -> Staged<()> {
    for limit in process.rlimits().iter().flatten() {
        let kind = limit.typ() as u32;
        sys::process::set_rlimit(resource_number(limit.typ()), limit.soft(), limit.hard()).map_err(
            |errno| {
                Failure::new(
                    Stage::Credentials,
                    format!(
                        "cannot set limit {:?} ({kind}) to {}:{}",
                        limit.typ(),
                        limit.soft(),
                        limit.hard()
                    ),
                    errno,
                )
                .hint("a limit above the caller's own (see `ulimit -H`) needs privilege")
            },
        )?;
    }
    Ok(())
}

fn resource_number(kind: oci_spec::runtime::PosixRlimitType) -> u32 {
    use oci_spec::runtime::PosixRlimitType as Kind;
    match kind {
        Kind::RlimitCpu => libc::RLIMIT_CPU,
        Kind::RlimitFsize => libc::RLIMIT_FSIZE,
        Kind::RlimitData => libc::RLIMIT_DATA,
        Kind::RlimitStack => libc::RLIMIT_STACK,
        Kind::RlimitCore => libc::RLIMIT_CORE,
        Kind::RlimitRss => libc::RLIMIT_RSS,
        Kind::RlimitNproc => libc::RLIMIT_NPROC,
        Kind::RlimitNofile => libc::RLIMIT_NOFILE,
        Kind::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        Kind::RlimitAs => libc::RLIMIT_AS,
        Kind::RlimitLocks => libc::RLIMIT_LOCKS,
        Kind::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        Kind::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        Kind::RlimitNice => libc::RLIMIT_NICE,
        Kind::RlimitRtprio => libc::RLIMIT_RTPRIO,
        Kind::RlimitRttime => libc::RLIMIT_RTTIME,
    }
}
