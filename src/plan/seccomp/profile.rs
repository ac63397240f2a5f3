//! Profiles in Docker's JSON (`--security-opt seccomp=FILE`), with the meaning that runc and
//! libseccomp give them, except where noted.

use std::collections::BTreeMap;

use oci_spec::runtime::Capability;
use serde::Deserialize;

use super::syscalls::{self, Abi};
use super::{Action, Arch, Compare, Decision, Rule, SeccompError, Table, Test};
use crate::plan::capability;
use crate::plan::request::CapabilityName;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: Option<String>,
    default_errno_ret: Option<u32>,
    architectures: Option<Vec<String>>,
    arch_map: Option<Vec<ArchMap>>,
    syscalls: Option<Vec<Entry>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: String,
    sub_architectures: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(default)]
    name: String,
    names: Option<Vec<String>>,
    action: String,
    errno_ret: Option<u32>,
    args: Option<Vec<Argument>>,
    includes: Option<Condition>,
    excludes: Option<Condition>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

/// When an entry counts. `minKernel` is taken as met: it is there for kernels before 4.8, on which
/// a tracer could step round a filter, and which hostel does not run on.
#[derive(Deserialize)]
struct Condition {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
}

/// What is said of one call, entry by entry.
#[derive(Default)]
struct Said {
    rules: Vec<Rule>,
    always: Option<Action>,
}

/// The tables of a profile, this machine's own ABI first.
pub(super) fn tables(
    text: &str,
    capabilities: &[Capability],
    arch: Arch,
) -> Result<Vec<Table>, SeccompError> {
    let profile: Profile = serde_json::from_str(text)?;
    let default = action(profile.default_action.as_deref().unwrap_or_default(), profile.default_errno_ret)?;
    let abis = covered_abis(&profile, arch)?;
    let mut said: BTreeMap<&'static str, Said> = BTreeMap::new();
    for entry in profile.syscalls.iter().flatten() {
        add(&mut said, entry, capabilities, arch)?;
    }
    Ok(abis.into_iter().map(|abi| table(abi, &said, default)).collect())
}

fn table(abi: Abi, said: &BTreeMap<&'static str, Said>, default: Action) -> Table {
    let mut calls: BTreeMap<u32, Decision> = BTreeMap::new();
    for (name, said) in said {
        let Some(number) = syscalls::find(name).and_then(|call| call.number(abi)) else { continue };
        calls.insert(number, decision(said, default));
    }
    // runc: where the rest is refused, what is newer than every named call does not exist.
    let permissive = matches!(
        default.0 & libc::SECCOMP_RET_ACTION_FULL,
        libc::SECCOMP_RET_ALLOW | libc::SECCOMP_RET_LOG | libc::SECCOMP_RET_TRACE
    );
    Table {
        abi,
        calls: calls.into_iter().collect(),
        unlisted: default,
        newer: if permissive { default } else { Action::ENOSYS },
    }
}

/// Entries with arguments come before one without, whatever their order in the file: libseccomp
/// would drop the narrower ones, which can open what a profile means to close.
fn decision(said: &Said, default: Action) -> Decision {
    let otherwise = said.always.unwrap_or(default);
    if said.rules.is_empty() {
        Decision::Always(otherwise)
    } else {
        Decision::ByArguments { rules: said.rules.clone(), otherwise }
    }
}

fn covered_abis(profile: &Profile, arch: Arch) -> Result<Vec<Abi>, SeccompError> {
    let [own, second] = arch.abis();
    let listed: Vec<&str> = match (&profile.architectures, &profile.arch_map) {
        (Some(list), Some(map)) if !list.is_empty() && !map.is_empty() => {
            return Err(SeccompError::Both("architectures", "archMap"));
        }
        (_, Some(map)) if !map.is_empty() => map
            .iter()
            .filter(|entry| entry.architecture == arch_name(own))
            .flat_map(|entry| entry.sub_architectures.iter().flatten().chain([&entry.architecture]))
            .map(String::as_str)
            .collect(),
        (Some(list), _) if !list.is_empty() => list.iter().map(String::as_str).collect(),
        // libseccomp's filter is for the machine's own ABI unless told otherwise.
        _ => return Ok(vec![own]),
    };
    if !listed.contains(&arch_name(own)) {
        return Err(SeccompError::Architecture(go_name(arch)));
    }
    let with_second = listed.contains(&arch_name(second));
    Ok([own].into_iter().chain(with_second.then_some(second)).collect())
}

fn arch_name(abi: Abi) -> &'static str {
    match abi {
        Abi::X86_64 => "SCMP_ARCH_X86_64",
        Abi::I386 => "SCMP_ARCH_X86",
        Abi::Aarch64 => "SCMP_ARCH_AARCH64",
        Abi::Arm => "SCMP_ARCH_ARM",
    }
}

fn go_name(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "amd64",
        Arch::Aarch64 => "arm64",
    }
}

fn add(
    said: &mut BTreeMap<&'static str, Said>,
    entry: &Entry,
    capabilities: &[Capability],
    arch: Arch,
) -> Result<(), SeccompError> {
    let names = entry.names.as_deref().unwrap_or_default();
    if !entry.name.is_empty() && !names.is_empty() {
        return Err(SeccompError::Both("name", "names"));
    }
    let action = action(&entry.action, entry.errno_ret)?;
    let rules = rules(entry.args.as_deref().unwrap_or_default(), action)?;
    if !counts(entry, capabilities, arch) {
        return Ok(());
    }
    let one = Some(&entry.name).filter(|name| !name.is_empty());
    for name in names.iter().chain(one) {
        // A call that this table does not know does not exist here, or is newer than the binary.
        let Some(call) = syscalls::find(name) else { continue };
        let said = said.entry(call.name).or_default();
        if rules.is_empty() {
            said.always.get_or_insert(action);
        } else {
            said.rules.extend(rules.iter().cloned());
        }
    }
    Ok(())
}

fn counts(entry: &Entry, capabilities: &[Capability], arch: Arch) -> bool {
    let has = |name: &String| match capability::parse(name) {
        Some(CapabilityName::One(capability)) => capabilities.contains(&capability),
        Some(CapabilityName::All) | None => false,
    };
    let here = |name: &String| name == go_name(arch);
    let list = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    let included = entry.includes.as_ref().is_none_or(|condition| {
        let arches = list(&condition.arches);
        (arches.is_empty() || arches.iter().any(here)) && list(&condition.caps).iter().all(has)
    });
    let excluded = entry.excludes.as_ref().is_some_and(|condition| {
        list(&condition.arches).iter().any(here) || list(&condition.caps).iter().any(has)
    });
    included && !excluded
}

/// All comparisons must hold; but several on one argument are alternatives, as in runc.
fn rules(arguments: &[Argument], action: Action) -> Result<Vec<Rule>, SeccompError> {
    let tests = arguments.iter().map(test).collect::<Result<Vec<_>, _>>()?;
    let mut seen = 0_u8;
    let repeated = tests.iter().any(|test| {
        let bit = 1 << test.argument;
        let known = seen & bit != 0;
        seen |= bit;
        known
    });
    Ok(match tests.as_slice() {
        [] => Vec::new(),
        _ if repeated => tests.into_iter().map(|test| Rule { tests: vec![test], action }).collect(),
        _ => vec![Rule { tests, action }],
    })
}

fn test(argument: &Argument) -> Result<Test, SeccompError> {
    const ARGUMENTS: u32 = 6;
    if argument.index >= ARGUMENTS {
        return Err(SeccompError::Argument(argument.index));
    }
    let value = argument.value;
    let compare = match argument.op.as_str() {
        "SCMP_CMP_NE" => Compare::NotEqual(value),
        "SCMP_CMP_LT" => Compare::Less(value),
        "SCMP_CMP_LE" => Compare::LessOrEqual(value),
        "SCMP_CMP_EQ" => Compare::Equal(value),
        "SCMP_CMP_GE" => Compare::GreaterOrEqual(value),
        "SCMP_CMP_GT" => Compare::Greater(value),
        "SCMP_CMP_MASKED_EQ" => Compare::Masked { mask: value, value: argument.value_two },
        other => return Err(SeccompError::Operator(other.into())),
    };
    Ok(Test { argument: argument.index, compare })
}

fn action(name: &str, errno: Option<u32>) -> Result<Action, SeccompError> {
    let errno = errno.unwrap_or(libc::EPERM.unsigned_abs());
    Ok(match name {
        "SCMP_ACT_ALLOW" => Action::ALLOW,
        "SCMP_ACT_ERRNO" => Action::errno(errno),
        "SCMP_ACT_TRACE" => Action(libc::SECCOMP_RET_TRACE | (errno & libc::SECCOMP_RET_DATA)),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action(libc::SECCOMP_RET_KILL_THREAD),
        "SCMP_ACT_KILL_PROCESS" => Action(libc::SECCOMP_RET_KILL_PROCESS),
        "SCMP_ACT_LOG" => Action(libc::SECCOMP_RET_LOG),
        "SCMP_ACT_TRAP" => Action(libc::SECCOMP_RET_TRAP),
        other => return Err(SeccompError::Action(other.into())),
    })
}
