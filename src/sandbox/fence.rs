//! A second fence around a container that may not mount: Landlock, whose processes mount(2), pivot_root(2)
//! and their kin fail whatever capability a flaw gives them, since the kernel refuses every change of the
//! mount tree behind it (landlock(7), "Current limitations").
//!
//! Nothing else is to change inside: the one right that is handled, moving files between directories, is
//! allowed everywhere again. A process of `exec` has no such fence: the kernel lets nobody join another's, and
//! one of its own would forbid it to look into `/proc/1/fd` and to trace what runs. What it may do is bounded by
//! the filter and its capabilities.

use landlock::{
    AccessFs, CompatLevel, Compatible as _, PathBeneath, PathFd, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _,
};
use oci_spec::runtime::Capability;

use super::{Failure, Stage, Staged};
use crate::plan::{ContainerPlan, SeccompPlan};

/// Whether a container gets it: not one that may mount, nor one that asked for no filter.
#[must_use]
pub fn is_wanted(plan: &ContainerPlan) -> bool {
    let sets = plan.spec.process().as_ref().and_then(|process| process.capabilities().as_ref());
    let bounding = sets.and_then(|sets| sets.bounding().as_ref());
    let may_mount = bounding.is_some_and(|bounding| bounding.contains(&Capability::SysAdmin));
    !may_mount && !matches!(plan.seccomp, SeccompPlan::Unconfined | SeccompPlan::Nested)
}

/// Puts it up, in the container's root and while CAP_SYS_ADMIN of its user namespace is held, so that
/// no_new_privs is not needed. A kernel without Landlock, or with one that cannot allow moving files
/// (before ABI 2), enforces nothing.
///
/// # Errors
/// The kernel has Landlock and refuses.
pub fn enter() -> Staged<()> {
    let failed = |error: &dyn std::fmt::Display| {
        Failure::plain(Stage::Credentials, format!("cannot restrict mounts by Landlock: {error}"))
    };
    let right = AccessFs::Refer;
    let ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement).handle_access(right);
    // Not there, or too old.
    let Ok(ruleset) = ruleset.and_then(Ruleset::create) else { return Ok(()) };
    let root = PathFd::new("/").map_err(|error| failed(&error))?;
    ruleset
        .no_new_privs(false)
        .add_rule(PathBeneath::new(root, right))
        .and_then(landlock::RulesetCreated::restrict_self)
        .map(drop)
        .map_err(|error| failed(&error))
}
