//! Programs run through a small BPF machine, call by call.

use oci_spec::runtime::Capability;

use super::syscalls::{Abi, SYSCALLS, Syscall, find};
use super::*;
use crate::plan::capability;

const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;
const AARCH64: u32 = 0xc000_00b7;
const ARM: u32 = 0x4000_0028;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const EPERM: u32 = libc::SECCOMP_RET_ERRNO | 1;
const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | 38;
const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;

/// What the kernel would do, and in how many instructions.
fn run(program: &[libc::sock_filter], arch: u32, number: u32, args: &[u64]) -> (u32, usize) {
    let mut words = vec![number, arch, 0, 0];
    for place in 0..6 {
        let value = args.get(place).copied().unwrap_or_default();
        words.extend([value as u32, (value >> 32) as u32]);
    }
    let (mut accumulator, mut counter, mut steps) = (0, 0, 0);
    loop {
        let instruction = program[counter];
        counter += 1;
        steps += 1;
        let k = instruction.k;
        let branch = |taken| usize::from(if taken { instruction.jt } else { instruction.jf });
        match instruction.code {
            0x20 => accumulator = words[k as usize / 4],
            0x54 => accumulator &= k,
            0x05 => counter += k as usize,
            0x15 => counter += branch(accumulator == k),
            0x25 => counter += branch(accumulator > k),
            0x35 => counter += branch(accumulator >= k),
            0x06 => return (k, steps),
            other => unreachable!("the kernel's emulation would stop at {other:#x}"),
        }
    }
}

fn verdict(program: &[libc::sock_filter], arch: u32, number: u32, args: &[u64]) -> u32 {
    run(program, arch, number, args).0
}

/// What the kernel's checker demands: jumps land inside, and the end is a return.
fn check(program: &[libc::sock_filter]) {
    for (place, instruction) in program.iter().enumerate() {
        let furthest = match instruction.code {
            0x05 => instruction.k as usize,
            0x15 | 0x25 | 0x35 => usize::from(instruction.jt.max(instruction.jf)),
            _ => 0,
        };
        assert!(place + 1 + furthest < program.len() || instruction.code == 0x06, "at {place}");
    }
    assert_eq!(program.last().map(|last| last.code), Some(0x06));
}

fn default_program(capabilities: &[Capability], arch: Arch) -> Program {
    let program = compile(&SeccompPlan::Default, capabilities, arch).expect("compiles").expect("a filter");
    check(&program);
    program
}

fn docker_capabilities() -> Vec<Capability> {
    capability::wanted(&crate::plan::request::SecurityRequest::default())
}

fn number(name: &str, abi: Abi) -> u32 {
    find(name).expect(name).number(abi).expect(name)
}

#[test]
fn the_table_is_sorted_and_right() {
    assert!(SYSCALLS.is_sorted_by(|a, b| a.name < b.name));
    // A sample of what this machine's C library knows under the same names.
    let table = [
        ("read", libc::SYS_read),
        ("openat", libc::SYS_openat),
        ("clone", libc::SYS_clone),
        ("execve", libc::SYS_execve),
        ("ptrace", libc::SYS_ptrace),
        ("mount", libc::SYS_mount),
        ("setns", libc::SYS_setns),
        ("bpf", libc::SYS_bpf),
        ("statx", libc::SYS_statx),
        ("clone3", libc::SYS_clone3),
        ("io_uring_setup", libc::SYS_io_uring_setup),
        ("landlock_restrict_self", libc::SYS_landlock_restrict_self),
        ("futex_waitv", libc::SYS_futex_waitv),
        ("keyctl", libc::SYS_keyctl),
        ("personality", libc::SYS_personality),
        ("socket", libc::SYS_socket),
    ];
    for (name, expected) in table {
        assert_eq!(i64::from(number(name, Arch::NATIVE.abis()[0])), expected, "{name}");
    }
    assert_eq!(number("socketcall", Abi::I386), 102);
    assert_eq!(number("set_tls", Abi::Arm), 0xf_0005);
    assert_eq!(find("access").expect("known").number(Abi::Aarch64), None);
    assert!(find("no_such_call").is_none());
}

#[test]
fn dockers_default_call_by_call() {
    let program = default_program(&docker_capabilities(), Arch::X86_64);
    const NEW_USER: u64 = 0x1000_0000;
    type Row = (&'static str, &'static [u64], u32);
    let table: [Row; 45] = [
        ("read", &[], ALLOW),
        ("openat2", &[], ALLOW),
        ("execve", &[], ALLOW),
        ("capset", &[], ALLOW),
        ("setuid", &[], ALLOW),
        ("setgroups", &[], ALLOW),
        ("prctl", &[], ALLOW),
        ("seccomp", &[], ALLOW),
        ("chroot", &[], ALLOW),
        ("ptrace", &[], ALLOW),
        ("process_vm_readv", &[], ALLOW),
        ("landlock_create_ruleset", &[], ALLOW),
        ("mseal", &[], ALLOW),
        ("removexattrat", &[], ALLOW),
        ("clone", &[0x11], ALLOW),
        ("clone", &[0x003d_0f00], ALLOW),
        ("clone", &[NEW_USER | 0x11], EPERM),
        ("clone", &[0x2_0000], EPERM),
        ("clone", &[0x4000_0000], EPERM),
        ("clone3", &[], ENOSYS),
        ("unshare", &[NEW_USER], EPERM),
        ("setns", &[], EPERM),
        ("mount", &[], EPERM),
        ("umount2", &[], EPERM),
        ("pivot_root", &[], EPERM),
        ("bpf", &[], EPERM),
        ("perf_event_open", &[], EPERM),
        ("io_uring_setup", &[], EPERM),
        ("keyctl", &[], EPERM),
        ("userfaultfd", &[], EPERM),
        ("open_by_handle_at", &[], EPERM),
        ("init_module", &[], EPERM),
        ("reboot", &[], EPERM),
        ("kexec_load", &[], EPERM),
        ("clock_settime", &[], EPERM),
        ("file_getattr", &[], ENOSYS),
        ("personality", &[0], ALLOW),
        ("personality", &[0x2_0008], ALLOW),
        ("personality", &[0xffff_ffff], ALLOW),
        ("personality", &[0x4_0000], EPERM),
        ("socket", &[1], ALLOW),
        ("socket", &[39], ALLOW),
        ("socket", &[38], EPERM),
        ("socket", &[40], EPERM),
        // The kernel takes the family as an int, so the high half must not hide it.
        ("socket", &[0x1_0000_0028], EPERM),
    ];
    for (name, args, expected) in table {
        assert_eq!(verdict(&program, X86_64, number(name, Abi::X86_64), args), expected, "{name} {args:x?}");
    }
    for (abi, args, expected) in [(I386, [38], EPERM), (I386, [2], ALLOW)] {
        assert_eq!(verdict(&program, abi, number("socket", Abi::I386), &args), expected);
    }
    assert_eq!(verdict(&program, I386, number("socketcall", Abi::I386), &[]), ALLOW);
    assert_eq!(verdict(&program, I386, number("mount", Abi::I386), &[]), EPERM);
    // 21 is access on x86_64 and mount on i386: an ABI never reads another's table.
    assert_eq!(verdict(&program, X86_64, 21, &[]), ALLOW);
    assert_eq!(verdict(&program, I386, 21, &[]), EPERM);
}

#[test]
fn what_does_not_exist() {
    for (arch, audit) in [(Arch::X86_64, [X86_64, I386]), (Arch::Aarch64, [AARCH64, ARM])] {
        let program = default_program(&docker_capabilities(), arch);
        for abi in audit {
            for unknown in [471, 500, 0x3fff_ffff, 0x7fff_ffff, 0xffff_fffe] {
                assert_eq!(verdict(&program, abi, unknown, &[]), ENOSYS, "{unknown:#x}");
            }
            assert_eq!(verdict(&program, abi, u32::MAX, &[]), ALLOW);
        }
        for foreign in [0, 0xc000_00f3, 0x4000_0016, u32::MAX] {
            assert_eq!(verdict(&program, foreign, 0, &[]), KILL);
        }
    }
    let program = default_program(&docker_capabilities(), Arch::X86_64);
    assert_eq!(verdict(&program, X86_64, 0x4000_0000, &[]), ENOSYS, "x32's read");
    assert_eq!(verdict(&program, AARCH64, 63, &[]), KILL);
}

#[test]
fn arm_has_its_private_calls() {
    let program = default_program(&docker_capabilities(), Arch::Aarch64);
    for (private, expected) in [(0xf_0001, ALLOW), (0xf_0002, ALLOW), (0xf_0003, ENOSYS), (0xf_0005, ALLOW)] {
        assert_eq!(verdict(&program, ARM, private, &[]), expected, "{private:#x}");
    }
    assert_eq!(verdict(&program, AARCH64, number("clone3", Abi::Aarch64), &[]), ENOSYS);
    assert_eq!(verdict(&program, AARCH64, number("getrlimit", Abi::Aarch64), &[]), ALLOW);
}

#[test]
fn capabilities_open_their_calls() {
    let calls = [
        (Capability::SysAdmin, "mount"),
        (Capability::SysAdmin, "unshare"),
        (Capability::SysAdmin, "bpf"),
        (Capability::Bpf, "bpf"),
        (Capability::SysAdmin, "perf_event_open"),
        (Capability::Perfmon, "perf_event_open"),
        (Capability::SysAdmin, "syslog"),
        (Capability::Syslog, "syslog"),
        (Capability::DacReadSearch, "open_by_handle_at"),
        (Capability::SysBoot, "reboot"),
        (Capability::SysChroot, "chroot"),
        (Capability::SysModule, "finit_module"),
        (Capability::SysPacct, "acct"),
        (Capability::SysPtrace, "pidfd_getfd"),
        (Capability::SysRawio, "iopl"),
        (Capability::SysTime, "settimeofday"),
        (Capability::SysTtyConfig, "vhangup"),
        (Capability::SysNice, "mbind"),
    ];
    let none = default_program(&[], Arch::X86_64);
    for (capability, name) in calls {
        let number = number(name, Abi::X86_64);
        assert_eq!(verdict(&none, X86_64, number, &[]), EPERM, "{name}");
        assert_eq!(
            verdict(&default_program(&[capability], Arch::X86_64), X86_64, number, &[]),
            ALLOW,
            "{name}"
        );
    }
    let admin = default_program(&[Capability::SysAdmin], Arch::X86_64);
    for (name, args) in [("clone", [0x1000_0000]), ("clone3", [0])] {
        assert_eq!(verdict(&admin, X86_64, number(name, Abi::X86_64), &args), ALLOW, "{name}");
    }
    let every = default_program(&capability::ALL, Arch::X86_64);
    assert_eq!(verdict(&every, X86_64, number("io_uring_setup", Abi::X86_64), &[]), EPERM);
}

#[test]
fn the_tree_says_what_the_table_says_in_few_steps() {
    for arch in [Arch::X86_64, Arch::Aarch64] {
        let capabilities = docker_capabilities();
        let program = default_program(&capabilities, arch);
        let audits = if arch == Arch::X86_64 { [X86_64, I386] } else { [AARCH64, ARM] };
        for (abi, audit) in arch.abis().into_iter().zip(audits) {
            let table = default::table(abi, &capabilities);
            for number in 0..600 {
                let (got, steps) = run(&program, audit, number, &[0]);
                let call = table.calls.iter().find(|(known, _)| *known == number);
                match call.map(|(_, decision)| decision) {
                    Some(Decision::Always(action)) => assert_eq!(got, action.0, "{abi:?} {number}"),
                    Some(Decision::ByArguments { .. }) => {}
                    None => assert_eq!(got, ENOSYS, "{abi:?} {number}"),
                }
                assert!(steps <= 24, "{abi:?} {number} takes {steps} steps");
            }
        }
    }
}

fn profile(text: &str) -> Result<Program, SeccompError> {
    let program = compile(&SeccompPlan::Profile(text.into()), &docker_capabilities(), Arch::X86_64)?;
    let program = program.expect("a filter");
    check(&program);
    Ok(program)
}

#[test]
fn a_profile_in_dockers_json() {
    let program = profile(
        r#"{
            "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
            "archMap": [
                {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]},
                {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]}
            ],
            "syscalls": [
                {"names": ["read", "write", "openat2", "no_such_call"], "action": "SCMP_ACT_ALLOW", "args": []},
                {"name": "close", "action": "SCMP_ACT_ALLOW"},
                {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
                {"names": ["chroot"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_CHROOT"], "minKernel": "4.8"}},
                {"names": ["acct"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["arm64"]}},
                {"names": ["sync"], "action": "SCMP_ACT_ALLOW", "excludes": {"arches": ["amd64"]}},
                {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38, "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
                {"names": ["reboot"], "action": "SCMP_ACT_KILL"},
                {"names": ["times"], "action": "SCMP_ACT_LOG"}
            ]
        }"#,
    )
    .expect("valid");
    let table = [
        ("read", ALLOW),
        ("close", ALLOW),
        ("fork", EPERM),
        ("mount", EPERM),
        ("chroot", ALLOW),
        ("acct", EPERM),
        ("sync", EPERM),
        ("clone3", ENOSYS),
        ("reboot", libc::SECCOMP_RET_KILL_THREAD),
        ("times", libc::SECCOMP_RET_LOG),
        // Newer than openat2, the newest call that is named.
        ("pidfd_getfd", ENOSYS),
    ];
    for (name, expected) in table {
        assert_eq!(verdict(&program, X86_64, number(name, Abi::X86_64), &[]), expected, "{name}");
    }
    assert_eq!(verdict(&program, I386, 3, &[]), ALLOW);
    assert_eq!(verdict(&program, I386, 2, &[]), EPERM);
    assert_eq!(verdict(&program, X86_64, u32::MAX, &[]), ALLOW);
}

#[test]
fn a_permissive_profile_leaves_no_side_door() {
    let text = r#"{"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13}]}"#;
    let program = profile(text).expect("valid");
    assert_eq!(verdict(&program, X86_64, 83, &[]), libc::SECCOMP_RET_ERRNO | 13);
    assert_eq!(verdict(&program, X86_64, 0, &[]), ALLOW);
    assert_eq!(verdict(&program, X86_64, 1000, &[]), ALLOW);
    assert_eq!(verdict(&program, X86_64, 0x4000_0053, &[]), ENOSYS, "x32's mkdir");
    assert_eq!(verdict(&program, I386, 39, &[]), KILL, "i386 was not named");
}

#[test]
fn comparisons_of_64_bits() {
    const BIG: u64 = 0x1_0000_0005;
    type Operator = (&'static str, fn(u64) -> bool);
    let operators: [Operator; 6] = [
        ("NE", |value| value != BIG),
        ("LT", |value| value < BIG),
        ("LE", |value| value <= BIG),
        ("EQ", |value| value == BIG),
        ("GE", |value| value >= BIG),
        ("GT", |value| value > BIG),
    ];
    let values = [0, 4, 5, 6, BIG - 1, BIG, BIG + 1, 0x2_0000_0004, 0x2_0000_0005, u64::MAX];
    for (name, expected) in operators {
        // The tested argument is not the first, and a second test must hold as well.
        let text = format!(
            r#"{{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [
                {{"index": 2, "value": {BIG}, "op": "SCMP_CMP_{name}"}}, {{"index": 0, "value": 7, "op": "SCMP_CMP_EQ"}}]}}]}}"#
        );
        let program = profile(&text).expect("valid");
        for value in values {
            let allowed = if expected(value) { ALLOW } else { EPERM };
            assert_eq!(verdict(&program, X86_64, 0, &[7, 0, value]), allowed, "{value:#x} {name}");
            assert_eq!(verdict(&program, X86_64, 0, &[8, 0, value]), EPERM, "{value:#x} {name}");
        }
    }
    let masked = r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW",
        "args": [{"index": 5, "value": 8589934595, "valueTwo": 8589934593, "op": "SCMP_CMP_MASKED_EQ"}]}]}"#;
    let program = profile(masked).expect("valid");
    for (value, expected) in
        [(0x2_0000_0001, ALLOW), (0xe_0000_000d, ALLOW), (0x2_0000_0003, EPERM), (1, EPERM)]
    {
        assert_eq!(verdict(&program, X86_64, 0, &[0, 0, 0, 0, 0, value]), expected, "{value:#x}");
    }
}

#[test]
fn a_program_longer_than_a_jump() {
    let calls: Vec<&Syscall> = SYSCALLS.iter().filter(|call| call.number(Abi::X86_64).is_some()).collect();
    let entries: Vec<String> = calls
        .iter()
        .enumerate()
        .map(|(place, call)| {
            format!(
                r#"{{"names": ["{}"], "action": "SCMP_ACT_ALLOW", "args": [{{"index": 1, "value": {place}, "op": "SCMP_CMP_EQ"}}]}}"#,
                call.name
            )
        })
        .collect();
    let program =
        profile(&format!(r#"{{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{}]}}"#, entries.join(",")))
            .expect("valid");
    assert!(program.len() > 1500);
    for (place, call) in calls.iter().enumerate() {
        let number = call.number(Abi::X86_64).expect("picked");
        assert_eq!(verdict(&program, X86_64, number, &[0, place as u64]), ALLOW, "{}", call.name);
        assert_eq!(verdict(&program, X86_64, number, &[0, place as u64 + 1]), EPERM, "{}", call.name);
        assert_eq!(verdict(&program, X86_64, number, &[0, place as u64 | 1 << 32]), EPERM, "{}", call.name);
    }
    assert_eq!(verdict(&program, X86_64, 400, &[]), EPERM, "a gap");
    assert_eq!(verdict(&program, X86_64, 600, &[]), ENOSYS);
}

#[test]
fn several_entries_for_one_call() {
    let text = r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
        {"names": ["socket"], "action": "SCMP_ACT_ALLOW"},
        {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 97, "args": [{"index": 0, "value": 38, "op": "SCMP_CMP_EQ"}]},
        {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [
            {"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]}]}"#;
    let program = profile(text).expect("valid");
    assert_eq!(verdict(&program, X86_64, 41, &[38]), libc::SECCOMP_RET_ERRNO | 97);
    assert_eq!(verdict(&program, X86_64, 41, &[2]), ALLOW);
    for (value, expected) in [(0, ALLOW), (8, ALLOW), (1, EPERM)] {
        assert_eq!(verdict(&program, X86_64, 135, &[value]), expected);
    }
}

#[test]
fn wrong_profiles() {
    let entry = |entry: &str| format!(r#"{{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{entry}]}}"#);
    let table = [
        ("nonsense".to_owned(), "decoding seccomp profile failed"),
        ("[]".into(), "decoding seccomp profile failed"),
        ("{}".into(), "seccomp action \"\" is not one of"),
        (r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#.into(), "seccomp action \"SCMP_ACT_NOTIFY\" is not one of"),
        (
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "archMap": [{"architecture": "SCMP_ARCH_X86_64"}]}"#.into(),
            "\"architectures\" and \"archMap\" are both in the seccomp profile",
        ),
        (
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_S390X"]}"#.into(),
            "the seccomp profile does not cover this machine's architecture (amd64)",
        ),
        (
            entry(r#"{"name": "read", "names": ["write"], "action": "SCMP_ACT_ALLOW"}"#),
            "\"name\" and \"names\" are both in the seccomp profile",
        ),
        (
            entry(r#"{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}"#),
            "seccomp argument 6 does not exist",
        ),
        (
            entry(r#"{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 0, "op": "=="}]}"#),
            "seccomp operator \"==\" is not one of",
        ),
    ];
    for (text, start) in table {
        let message = profile(&text).expect_err(&text).to_string();
        assert!(message.starts_with(start), "{message}");
    }
    let argument = r#"{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]}"#;
    let many = entry(&vec![argument; 2000].join(","));
    assert!(matches!(profile(&many), Err(SeccompError::TooLarge { limit: 4096, .. })));
}

#[test]
fn no_filter_when_unconfined() {
    assert!(compile(&SeccompPlan::Unconfined, &[], Arch::NATIVE).expect("valid").is_none());
}
