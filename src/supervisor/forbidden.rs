//! Who forbids user namespaces on this machine, and what to ask for.

use std::fs;

use nix::errno::Errno;

use crate::sandbox::{Failure, Stage};

/// What is in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forbids {
    /// `user.max_user_namespaces` is 0.
    Number,
    /// `kernel.unprivileged_userns_clone` is 0 (Debian's kernels before 2021, and hardened ones).
    Users,
    /// AppArmor allows them to listed programs (Ubuntu 23.10 and later). It refuses the namespace itself, or, where
    /// its profile `unprivileged_userns` is loaded, gives one without any right.
    AppArmor,
    /// A filter, or a chroot.
    Surroundings,
    /// A count.
    Limit,
}

impl Forbids {
    /// Who refused namespaces with `errno`; `setting` reads a file of /proc/sys.
    pub fn find(errno: Errno, setting: impl Fn(&str) -> String) -> Self {
        if setting("/proc/sys/user/max_user_namespaces") == "0" {
            Self::Number
        } else if setting("/proc/sys/kernel/unprivileged_userns_clone") == "0" {
            Self::Users
        } else if setting("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1" {
            Self::AppArmor
        } else if matches!(errno, Errno::EPERM | Errno::ENOSYS) {
            Self::Surroundings
        } else {
            Self::Limit
        }
    }

    /// What to do, below the error of a start.
    #[must_use]
    pub fn hint(self) -> &'static str {
        match self {
            Self::Number => {
                "user namespaces are off on this machine: ask for `sysctl user.max_user_namespaces=15000`"
            }
            Self::Users => {
                "user namespaces are closed to users: ask for `sysctl kernel.unprivileged_userns_clone=1`"
            }
            Self::AppArmor => {
                "AppArmor restricts user namespaces here: ask for `sysctl kernel.apparmor_restrict_unprivileged_userns=0`, \
                 or an AppArmor profile for this program with the rule `userns,`"
            }
            Self::Surroundings => {
                "something forbids user namespaces to this process. In a container of hostel, start that one with \
                 --security-opt nested; in one of docker or podman with --security-opt seccomp=unconfined \
                 --security-opt systempaths=unconfined (podman: unmask=ALL) and --device /dev/fuse. A chroot forbids \
                 them too"
            }
            Self::Limit => "a limit may be reached: see /proc/sys/user/max_*_namespaces and `ulimit -u`",
        }
    }

    /// The line that mends it, for whoever may.
    #[must_use]
    pub fn mend(self) -> &'static str {
        match self {
            Self::Number => "sudo sysctl -w user.max_user_namespaces=15000",
            Self::Users => "sudo sysctl -w kernel.unprivileged_userns_clone=1",
            Self::AppArmor => "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
            Self::Surroundings | Self::Limit => {
                "a filter of a surrounding container, a chroot or `ulimit -u` forbids them"
            }
        }
    }
}

/// A setting of the kernel; empty where there is none.
#[must_use]
pub fn setting(path: &str) -> String {
    fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// Why the kernel refused new namespaces, and who can change that.
#[must_use]
pub fn no_namespaces(errno: Errno) -> Failure {
    Failure::new(Stage::Namespaces, "cannot make the container's namespaces", errno)
        .hint(Forbids::find(errno, setting).hint())
}

/// A failed start whose cause lies deeper than its message: the first thing that is not permitted in a user namespace
/// without rights. `setting` is [`setting`], but in tests.
#[must_use]
pub fn explain(failure: Failure, setting: impl Fn(&str) -> String) -> Failure {
    let refused = matches!(Errno::from_raw(failure.errno), Errno::EPERM | Errno::EACCES)
        || [Errno::EPERM, Errno::EACCES].iter().any(|errno| failure.what.ends_with(errno.desc()));
    let early = matches!(failure.stage, Stage::Namespaces | Stage::Network | Stage::Fuse | Stage::Overlay);
    if refused && early && Forbids::find(Errno::EPERM, setting) == Forbids::AppArmor {
        failure.hint(Forbids::AppArmor.hint())
    } else {
        failure
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NUMBER: &str = "/proc/sys/user/max_user_namespaces";
    const CLONE: &str = "/proc/sys/kernel/unprivileged_userns_clone";
    const APPARMOR: &str = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns";

    type Settings<'a> = &'a [(&'a str, &'a str)];

    fn machine<'a>(settings: Settings<'a>) -> impl Fn(&str) -> String + 'a {
        |path| {
            settings
                .iter()
                .find(|(name, _)| *name == path)
                .map(|(_, text)| (*text).to_owned())
                .unwrap_or_default()
        }
    }

    #[test]
    fn who_forbids_namespaces_and_what_to_ask_for() {
        let ubuntu = [(NUMBER, "62000"), (CLONE, "1"), (APPARMOR, "1")];
        let rows: [(Settings<'_>, Errno, Forbids, &str); 6] = [
            (&[(NUMBER, "0"), (APPARMOR, "1")], Errno::ENOSPC, Forbids::Number, "user.max_user_namespaces"),
            (
                &[(NUMBER, "9"), (CLONE, "0")],
                Errno::EPERM,
                Forbids::Users,
                "kernel.unprivileged_userns_clone",
            ),
            (&ubuntu, Errno::EACCES, Forbids::AppArmor, "kernel.apparmor_restrict_unprivileged_userns"),
            (&[(NUMBER, "9"), (APPARMOR, "0")], Errno::EPERM, Forbids::Surroundings, "--security-opt nested"),
            (&[], Errno::ENOSYS, Forbids::Surroundings, "--security-opt seccomp=unconfined"),
            (&[(NUMBER, "9")], Errno::ENOSPC, Forbids::Limit, "ulimit -u"),
        ];
        for (settings, errno, who, asked) in rows {
            let found = Forbids::find(errno, machine(settings));
            assert_eq!(found, who, "{settings:?}");
            assert!(found.hint().contains(asked), "{}", found.hint());
            assert!(found.mend().len() > 10);
        }
    }

    #[test]
    fn a_namespace_without_rights_is_apparmors() {
        let ubuntu = [(NUMBER, "62000"), (APPARMOR, "1")];
        let tun = || {
            Failure::plain(Stage::Network, "cannot make tap0: Operation not permitted").hint("--network none")
        };
        let mounts = || Failure::new(Stage::Fuse, "cannot make the mounts private", Errno::EACCES);
        for failure in [tun(), mounts()] {
            let hint = explain(failure, machine(&ubuntu)).hint.unwrap_or_default();
            assert!(hint.contains("kernel.apparmor_restrict_unprivileged_userns=0"), "{hint}");
        }
        // Elsewhere, and for other errors, what was said stays.
        assert_eq!(explain(tun(), machine(&[])).hint.as_deref(), Some("--network none"));
        let missing = Failure::new(Stage::NotFound, "nosuch", Errno::EACCES);
        assert_eq!(explain(missing, machine(&ubuntu)).hint, None);
        let full = Failure::new(Stage::Fuse, "cannot mount", Errno::ENOSPC);
        assert_eq!(explain(full, machine(&ubuntu)).hint, None);
    }
}
