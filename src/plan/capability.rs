//! Capabilities by name, and the set a container starts with.

use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities};

use super::request::{CapabilityName, SecurityRequest};

/// What a container has unless told otherwise: the same fourteen as in Docker. In a user namespace
/// they rule over the container's own ids and namespaces only.
const DEFAULT: [Capability; 14] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fsetid,
    Capability::Fowner,
    Capability::Mknod,
    Capability::NetRaw,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setfcap,
    Capability::Setpcap,
    Capability::NetBindService,
    Capability::SysChroot,
    Capability::Kill,
    Capability::AuditWrite,
];

/// Every capability of capabilities(7), by its number.
pub const ALL: [Capability; 41] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::LinuxImmutable,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::SysModule,
    Capability::SysRawio,
    Capability::SysChroot,
    Capability::SysPtrace,
    Capability::SysPacct,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysNice,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Mknod,
    Capability::Lease,
    Capability::AuditWrite,
    Capability::AuditControl,
    Capability::Setfcap,
    Capability::MacOverride,
    Capability::MacAdmin,
    Capability::Syslog,
    Capability::WakeAlarm,
    Capability::BlockSuspend,
    Capability::AuditRead,
    Capability::Perfmon,
    Capability::Bpf,
    Capability::CheckpointRestore,
];

/// A capability's name, `NET_ADMIN`, `cap_net_admin` or `ALL`; `None` for an unknown one.
#[must_use]
pub fn parse(text: &str) -> Option<CapabilityName> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
    if upper == "ALL" {
        return Some(CapabilityName::All);
    }
    name.parse().ok().map(CapabilityName::One)
}

/// Those of [`ALL`] that are named, for the ones that the running kernel knows.
pub fn all_of(names: impl IntoIterator<Item = String>) -> Vec<Capability> {
    let known: Vec<CapabilityName> = names.into_iter().filter_map(|name| parse(&name)).collect();
    ALL.into_iter().filter(|capability| known.contains(&CapabilityName::One(*capability))).collect()
}

/// The container's set, by Docker's rules: `--privileged` has all; `--cap-add ALL` all but what is
/// dropped; `--cap-drop ALL` only what is added; else the default, less what is dropped, with what
/// is added.
#[must_use]
pub fn wanted(security: &SecurityRequest) -> Vec<Capability> {
    let dropped = |capability: &Capability| security.cap_drop.contains(&CapabilityName::One(*capability));
    let added = security.cap_add.iter().filter_map(|name| match name {
        CapabilityName::One(capability) => Some(*capability),
        CapabilityName::All => None,
    });
    if security.privileged {
        return ALL.to_vec();
    }
    if security.cap_add.contains(&CapabilityName::All) {
        return ALL.into_iter().filter(|capability| !dropped(capability)).collect();
    }
    let mut set: Vec<Capability> = if security.cap_drop.contains(&CapabilityName::All) {
        Vec::new()
    } else {
        DEFAULT.into_iter().filter(|capability| !dropped(capability)).collect()
    };
    for capability in added {
        if !set.contains(&capability) {
            set.push(capability);
        }
    }
    set
}

/// Every capability: what `--privileged` gives.
#[must_use]
pub fn every() -> LinuxCapabilities {
    sets(&ALL)
}

/// The sets of the container's process. Inheritable and ambient stay empty, as in Docker since
/// CVE-2022-24769. The permitted and effective sets are those of a process of uid 0: for another
/// user the kernel empties them at the change of ids, which leaves the bounding set.
#[must_use]
pub fn sets(capabilities: &[Capability]) -> LinuxCapabilities {
    let set: Capabilities = capabilities.iter().copied().collect();
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(Some(set.clone()))
        .set_effective(Some(set.clone()))
        .set_permitted(Some(set))
        .set_inheritable(None)
        .set_ambient(None);
    sets
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(add: &[&str], drop: &[&str]) -> SecurityRequest {
        let names = |list: &[&str]| list.iter().map(|name| parse(name).expect("known")).collect();
        SecurityRequest { cap_add: names(add), cap_drop: names(drop), ..SecurityRequest::default() }
    }

    #[test]
    fn names_are_free_in_case_and_prefix() {
        let admin = Some(CapabilityName::One(Capability::NetAdmin));
        for text in ["NET_ADMIN", "CAP_NET_ADMIN", "net_admin", "Cap_Net_Admin"] {
            assert_eq!(parse(text), admin);
        }
        assert_eq!(parse("all"), Some(CapabilityName::All));
        for bad in ["", "CAP_", "NETADMIN", "CAP_ALL", "CAP_CAP_KILL", "KILL "] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn every_capability_has_its_name_and_place() {
        for capability in ALL {
            assert_eq!(parse(&capability.to_string()), Some(CapabilityName::One(capability)));
        }
        assert_eq!(ALL[12], Capability::NetAdmin);
        assert_eq!(ALL[21], Capability::SysAdmin);
        assert_eq!(ALL[40], Capability::CheckpointRestore);
    }

    #[test]
    fn the_kernels_own_are_picked_by_name() {
        let names = ["CAP_KILL".to_owned(), "CAP_CHOWN".into(), "CAP_FUTURE".into()];
        assert_eq!(all_of(names), [Capability::Chown, Capability::Kill]);
    }

    #[test]
    fn adding_and_dropping() {
        use Capability::{Chown, Kill, NetAdmin};
        assert_eq!(wanted(&request(&[], &[])), DEFAULT);
        assert_eq!(wanted(&request(&[], &["ALL"])), []);
        assert_eq!(wanted(&request(&["CHOWN", "KILL"], &["ALL"])), [Chown, Kill]);
        let less = wanted(&request(&[], &["KILL"]));
        assert_eq!(less.len(), 13);
        assert!(!less.contains(&Kill));
        let more = wanted(&request(&["NET_ADMIN", "KILL"], &[]));
        assert_eq!(more.len(), 15);
        assert_eq!(more.last(), Some(&NetAdmin));
        let all_but = wanted(&request(&["ALL"], &["NET_ADMIN"]));
        assert_eq!(all_but.len(), 40);
        assert!(!all_but.contains(&NetAdmin));
        let both = SecurityRequest { privileged: true, ..request(&[], &["ALL"]) };
        assert_eq!(wanted(&both), ALL);
    }
}
