//! The system call filter: which calls a container may make, as a program for the kernel's BPF
//! machine (seccomp(2)).
//!
//! [`compile`] makes the program; loading it is the sandbox's. Three things decide its shape:
//!
//! - The kernel runs the program once for every call number when it is loaded, to remember which
//!   numbers are allowed whatever their arguments (kernel/seccomp.c, `seccomp_cache_prepare`). The
//!   cost of loading is the mean length of a run, so the numbers are found by bisection (`bpf`).
//! - A call that does not exist is answered with ENOSYS, not EPERM: programs probe for new calls and
//!   fall back on ENOSYS only. What is newer than a profile counts as not existing, as in runc.
//! - A second ABI has its own numbers. On x86_64 32-bit programs (i386) get a table of their own, on
//!   aarch64 those of arm do, because images for them run in Docker too. x32 answers ENOSYS: hardly
//!   a kernel has it switched on. A call through any other ABI ends the process.
//!
//! The number -1 is let through: it is how a tracer says that a call is to be skipped, the kernel
//! runs nothing for it, and an errno from here would overwrite the result that the tracer set.

use oci_spec::runtime::Capability;
use thiserror::Error;

use super::{ContainerPlan, SeccompPlan};

mod bpf;
mod default;
mod profile;
mod syscalls;
#[cfg(test)]
mod tests;

use syscalls::Abi;

/// A filter as the kernel takes it.
pub type Program = Vec<libc::sock_filter>;

/// Why no filter came of a profile.
#[derive(Debug, Error)]
pub enum SeccompError {
    /// Not JSON, or not of a profile's shape.
    #[error("decoding seccomp profile failed")]
    Json(#[from] serde_json::Error),
    /// Two keys that say the same.
    #[error("{0:?} and {1:?} are both in the seccomp profile; use one of them")]
    Both(&'static str, &'static str),
    /// An action that does not exist, or that takes another process.
    #[error(
        "seccomp action {0:?} is not one of SCMP_ACT_ALLOW, ERRNO, KILL, KILL_PROCESS, KILL_THREAD, LOG, TRACE, TRAP"
    )]
    Action(String),
    /// A comparison that does not exist.
    #[error("seccomp operator {0:?} is not one of SCMP_CMP_NE, LT, LE, EQ, GE, GT, MASKED_EQ")]
    Operator(String),
    /// An argument that does not exist.
    #[error("seccomp argument {0} does not exist: a call has arguments 0 to 5")]
    Argument(u32),
    /// A profile for other machines only.
    #[error("the seccomp profile does not cover this machine's architecture ({0})")]
    Architecture(&'static str),
    /// The kernel would refuse it.
    #[error("the seccomp profile is too large: {length} instructions, the kernel takes {limit}")]
    TooLarge {
        /// How many there are.
        length: usize,
        /// How many there may be.
        limit: usize,
    },
}

/// The machine a filter is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// x86_64, and i386 for its 32-bit programs.
    X86_64,
    /// aarch64, and arm for its 32-bit programs.
    Aarch64,
}

impl Arch {
    /// The machine that this binary is for.
    pub const NATIVE: Self = if cfg!(target_arch = "aarch64") { Self::Aarch64 } else { Self::X86_64 };

    /// The ABIs of its programs, its own first.
    fn abis(self) -> [Abi; 2] {
        match self {
            Self::X86_64 => [Abi::X86_64, Abi::I386],
            Self::Aarch64 => [Abi::Aarch64, Abi::Arm],
        }
    }
}

/// The filter for a plan on this machine; `None` when it has none.
///
/// # Errors
/// As [`compile`].
pub fn compile_for(plan: &ContainerPlan) -> Result<Option<Program>, SeccompError> {
    let bounding =
        plan.spec.process().as_ref().and_then(|process| process.capabilities().as_ref()?.bounding().as_ref());
    let capabilities: Vec<Capability> = bounding.into_iter().flatten().copied().collect();
    compile(&plan.seccomp, &capabilities, Arch::NATIVE)
}

/// The filter for a container with these capabilities; `None` for an unconfined one.
///
/// # Errors
/// [`SeccompError`]: a profile that is not valid, not for this machine, or too large.
pub fn compile(
    plan: &SeccompPlan,
    capabilities: &[Capability],
    arch: Arch,
) -> Result<Option<Program>, SeccompError> {
    let tables = match plan {
        SeccompPlan::Unconfined => return Ok(None),
        SeccompPlan::Default => arch.abis().map(|abi| default::table(abi, capabilities)).into(),
        SeccompPlan::Nested => {
            let admin = [capabilities, &[Capability::SysAdmin, Capability::SysChroot]].concat();
            arch.abis().map(|abi| default::with_pivot_root(default::table(abi, &admin))).into()
        }
        SeccompPlan::Profile(text) => profile::tables(text, capabilities, arch)?,
    };
    let program = bpf::assemble(&tables);
    let limit = usize::try_from(libc::BPF_MAXINSNS).unwrap_or(usize::MAX);
    if program.len() > limit {
        return Err(SeccompError::TooLarge { length: program.len(), limit });
    }
    Ok(Some(program))
}

/// What the kernel does with a call: a SECCOMP_RET_* value with its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Action(u32);

impl Action {
    const ALLOW: Self = Self(libc::SECCOMP_RET_ALLOW);
    const EPERM: Self = Self::errno(libc::EPERM.unsigned_abs());
    const ENOSYS: Self = Self::errno(libc::ENOSYS.unsigned_abs());

    const fn errno(number: u32) -> Self {
        Self(libc::SECCOMP_RET_ERRNO | (number & libc::SECCOMP_RET_DATA))
    }
}

/// How one argument is compared. The words are unsigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compare {
    Equal(u64),
    NotEqual(u64),
    Less(u64),
    LessOrEqual(u64),
    Greater(u64),
    GreaterOrEqual(u64),
    /// The argument and the mask together equal the value.
    Masked {
        mask: u64,
        value: u64,
    },
    /// The low 32 bits equal the value. For arguments that the kernel takes as int: it drops the
    /// high half, so a filter that looks at it can be fooled.
    LowEqual(u32),
}

/// A comparison of one argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Test {
    /// Which argument, 0 to 5.
    argument: u32,
    compare: Compare,
}

/// An action for calls whose arguments pass every test.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    tests: Vec<Test>,
    action: Action,
}

/// What happens to one call.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Decision {
    /// Always this.
    Always(Action),
    /// The first rule that passes, else `otherwise`.
    ByArguments { rules: Vec<Rule>, otherwise: Action },
}

/// What happens to every call of an ABI.
#[derive(Clone, Debug)]
struct Table {
    abi: Abi,
    /// By number, ascending, no number twice.
    calls: Vec<(u32, Decision)>,
    /// For numbers without an entry, up to the highest that has one.
    unlisted: Action,
    /// For numbers above that.
    newer: Action,
}
