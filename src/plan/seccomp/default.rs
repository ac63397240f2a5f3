//! The default profile: moby's meaning (the list of allowed calls of July 2026), with these
//! differences, each stricter or closer to the kernel:
//!
//! - Arguments that the kernel takes as 32 bits are compared as 32 bits.
//! - A call that is not in the profile and does not exist in its time is ENOSYS instead of EPERM.
//! - x32 is ENOSYS.
//!
//! What is not protected: on i386 `socketcall` passes its arguments in memory, so the families that
//! `socket` refuses can be had there, as in Docker.

use oci_spec::runtime::Capability;

use super::syscalls::{self, Abi, SYSCALLS, Verdict};
use super::{Action, Compare, Decision, Rule, Table, Test};

/// clone flags that make a namespace (clone(2)): mount, cgroup, UTS, IPC, user, PID and network.
/// The time namespace's bit means something else to clone.
const NAMESPACE_FLAGS: u64 =
    0x0002_0000 | 0x0200_0000 | 0x0400_0000 | 0x0800_0000 | 0x1000_0000 | 0x2000_0000 | 0x4000_0000;

/// Execution domains that change nothing but uname's answer (personality(2)): PER_LINUX,
/// PER_LINUX32, both with UNAME26, and the question for the present one.
const PERSONALITIES: [u32; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Families of sockets that are the host's, not the network namespace's: the kernel's crypto
/// interface and virtual machines' sockets (address_families(7)).
const HOST_FAMILIES: [i32; 2] = [libc::AF_ALG, libc::AF_VSOCK];

/// What the profile says for one ABI.
pub(super) fn table(abi: Abi, capabilities: &[Capability]) -> Table {
    let mut calls: Vec<(u32, Decision)> = SYSCALLS
        .iter()
        .filter_map(|call| Some((call.number(abi)?, decide(call.verdict, capabilities))))
        .collect();
    calls.sort_by_key(|(number, _)| *number);
    // Two names of one call (arm's sync_file_range2) have one verdict.
    calls.dedup_by_key(|(number, _)| *number);
    Table { abi, calls, unlisted: Action::ENOSYS, newer: Action::ENOSYS }
}

/// The same with pivot_root(2), which moby allows to nobody and an engine inside changes its root by.
pub(super) fn with_pivot_root(mut table: Table) -> Table {
    let number = syscalls::find("pivot_root").and_then(|call| call.number(table.abi));
    if let Some((_, decision)) = table.calls.iter_mut().find(|(call, _)| Some(*call) == number) {
        *decision = Decision::Always(Action::ALLOW);
    }
    table
}

fn decide(verdict: Verdict, capabilities: &[Capability]) -> Decision {
    let admin = capabilities.contains(&Capability::SysAdmin);
    match verdict {
        Verdict::Allow => Decision::Always(Action::ALLOW),
        Verdict::Deny => Decision::Always(Action::EPERM),
        Verdict::Newer => Decision::Always(Action::ENOSYS),
        Verdict::With(any) => {
            let has = any.iter().any(|capability| capabilities.contains(capability));
            Decision::Always(if has { Action::ALLOW } else { Action::EPERM })
        }
        Verdict::Clone | Verdict::Clone3 if admin => Decision::Always(Action::ALLOW),
        Verdict::Clone => {
            let tests =
                vec![Test { argument: 0, compare: Compare::Masked { mask: NAMESPACE_FLAGS, value: 0 } }];
            let rules = vec![Rule { tests, action: Action::ALLOW }];
            Decision::ByArguments { rules, otherwise: Action::EPERM }
        }
        Verdict::Clone3 => Decision::Always(Action::ENOSYS),
        Verdict::Personality => by_first_argument(PERSONALITIES, Action::ALLOW, Action::EPERM),
        Verdict::Socket => {
            by_first_argument(HOST_FAMILIES.map(i32::cast_unsigned), Action::EPERM, Action::ALLOW)
        }
    }
}

fn by_first_argument<const N: usize>(values: [u32; N], action: Action, otherwise: Action) -> Decision {
    let rule = |value| Rule { tests: vec![Test { argument: 0, compare: Compare::LowEqual(value) }], action };
    Decision::ByArguments { rules: values.into_iter().map(rule).collect(), otherwise }
}
