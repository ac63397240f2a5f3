//! From tables to instructions: a bisection over the numbers of each ABI.
//!
//! Only loads of 32-bit words of `struct seccomp_data`, jumps, one AND and returns are used, all
//! forwards, which is what the kernel's checker takes and its emulation of call numbers follows.

use libc::sock_filter;

use super::syscalls::Abi;
use super::{Action, Compare, Decision, Program, Rule, Table, Test};

/// Offsets in `struct seccomp_data` (seccomp(2)).
const NUMBER_OFFSET: u32 = 0;
const ARCH_OFFSET: u32 = 4;
const ARGUMENTS_OFFSET: u32 = 16;

/// From here on x86_64's numbers are x32's (`__X32_SYSCALL_BIT`).
const X32_START: u32 = 0x4000_0000;

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
const JUMP: u32 = libc::BPF_JMP | libc::BPF_JA;
const JUMP_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const JUMP_GREATER: u32 = libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K;
const JUMP_GREATER_OR_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;

/// The whole program: each ABI's tree behind a test of the ABI.
pub(super) fn assemble(tables: &[Table]) -> Program {
    let mut program = vec![statement(LOAD, ARCH_OFFSET)];
    for table in tables {
        let mut tree = vec![statement(LOAD, NUMBER_OFFSET)];
        bisect(&ranges(table), &mut tree);
        program.push(branch(JUMP_EQUAL, audit_arch(table.abi), 1, 0));
        program.push(jump(tree.len()));
        program.extend(tree);
    }
    program.push(answer(Action(libc::SECCOMP_RET_KILL_PROCESS)));
    program
}

/// The ABI's number in the kernel's audit records (linux/audit.h, AUDIT_ARCH_*).
fn audit_arch(abi: Abi) -> u32 {
    match abi {
        Abi::X86_64 => 0xc000_003e,
        Abi::I386 => 0x4000_0003,
        Abi::Aarch64 => 0xc000_00b7,
        Abi::Arm => 0x4000_0028,
    }
}

/// The table as ranges without gaps from 0 on: the first number of each and its decision, no two
/// neighbours alike.
fn ranges(table: &Table) -> Vec<(u32, Decision)> {
    // The private calls of arm lie far above its others and do not tell how new a profile is.
    const ARM_PRIVATE_START: u32 = 0x000f_0000;
    let highest =
        table.calls.iter().map(|(number, _)| *number).filter(|number| *number < ARM_PRIVATE_START).max();
    let between = |number: u32| {
        Decision::Always(if highest.is_some_and(|highest| number <= highest) {
            table.unlisted
        } else {
            table.newer
        })
    };
    let mut ranges = Vec::new();
    let mut push = |start: u32, decision: Decision| {
        if ranges.last().is_none_or(|(_, last)| *last != decision) {
            ranges.push((start, decision));
        }
    };
    let mut next = 0;
    for (number, decision) in &table.calls {
        if *number > next {
            push(next, between(next));
            // A gap that begins below the highest number and ends above it changes in between.
            if let Some(newer) =
                highest.map(|highest| highest + 1).filter(|newer| (next + 1..*number).contains(newer))
            {
                push(newer, between(newer));
            }
        }
        push(*number, decision.clone());
        next = number.saturating_add(1);
    }
    push(next, between(next));
    if table.abi == Abi::X86_64 {
        push(X32_START, Decision::Always(Action::ENOSYS));
    }
    push(u32::MAX, Decision::Always(Action::ALLOW));
    ranges
}

/// Appends code that ends in the decision of the range that the accumulator lies in.
fn bisect(ranges: &[(u32, Decision)], code: &mut Program) {
    let (low, high) = ranges.split_at(ranges.len() / 2);
    let Some((pivot, decision)) = high.first() else { return };
    if low.is_empty() {
        return decide(decision, code);
    }
    let place = code.len();
    code.push(branch(JUMP_GREATER_OR_EQUAL, *pivot, 0, 0));
    bisect(low, code);
    let over_low = code.len() - place - 1;
    // A conditional jump reaches 255 instructions; a longer way takes a second, plain one. All jumps
    // are relative and stay within their half, so the insertion moves nothing that counts.
    match u8::try_from(over_low) {
        Ok(over_low) => code[place].jt = over_low,
        Err(_) => {
            code[place].jf = 1;
            code.insert(place + 1, jump(over_low));
        }
    }
    bisect(high, code);
}

fn decide(decision: &Decision, code: &mut Program) {
    match decision {
        Decision::Always(action) => code.push(answer(*action)),
        Decision::ByArguments { rules, otherwise } => {
            for next in rules {
                code.extend(rule(next));
            }
            code.push(answer(*otherwise));
        }
    }
}

/// Tests that fall through to the answer, or jump behind it.
fn rule(rule: &Rule) -> Program {
    let mut code: Program = vec![answer(rule.action)];
    for tested in rule.tests.iter().rev() {
        // How far behind the test the code for the next rule begins.
        let fail = code.len();
        let mut whole = test(tested, fail);
        whole.append(&mut code);
        code = whole;
    }
    code
}

/// Code that falls through when the test passes, and jumps `fail` instructions further when not.
fn test(test: &Test, fail: usize) -> Program {
    let (low, high) = (ARGUMENTS_OFFSET + 8 * test.argument, ARGUMENTS_OFFSET + 8 * test.argument + 4);
    let load = |offset| statement(LOAD, offset);
    // A rule has at most six tests of at most six instructions.
    let fail = u8::try_from(fail).unwrap_or(u8::MAX);
    match test.compare {
        Compare::LowEqual(value) => vec![load(low), branch(JUMP_EQUAL, value, 0, fail)],
        Compare::Equal(value) => {
            let (value_low, value_high) = halves(value);
            vec![
                load(high),
                branch(JUMP_EQUAL, value_high, 0, fail + 2),
                load(low),
                branch(JUMP_EQUAL, value_low, 0, fail),
            ]
        }
        Compare::NotEqual(value) => {
            let (value_low, value_high) = halves(value);
            vec![
                load(high),
                branch(JUMP_EQUAL, value_high, 0, 2),
                load(low),
                branch(JUMP_EQUAL, value_low, fail, 0),
            ]
        }
        Compare::Masked { mask, value } => {
            let ((mask_low, mask_high), (value_low, value_high)) = (halves(mask), halves(value));
            vec![
                load(high),
                statement(AND, mask_high),
                branch(JUMP_EQUAL, value_high, 0, fail + 3),
                load(low),
                statement(AND, mask_low),
                branch(JUMP_EQUAL, value_low, 0, fail),
            ]
        }
        Compare::Greater(value) => above(low, high, value, JUMP_GREATER, fail),
        Compare::GreaterOrEqual(value) => above(low, high, value, JUMP_GREATER_OR_EQUAL, fail),
        Compare::Less(value) => below(low, high, value, JUMP_GREATER_OR_EQUAL, fail),
        Compare::LessOrEqual(value) => below(low, high, value, JUMP_GREATER, fail),
    }
}

/// Passes when the high half is above, or equal and `low_jump` holds for the low half.
fn above(low: u32, high: u32, value: u64, low_jump: u32, fail: u8) -> Program {
    let (value_low, value_high) = halves(value);
    vec![
        statement(LOAD, high),
        branch(JUMP_GREATER, value_high, 3, 0),
        branch(JUMP_EQUAL, value_high, 0, fail + 2),
        statement(LOAD, low),
        branch(low_jump, value_low, 0, fail),
    ]
}

/// Passes when the high half is below, or equal and `low_jump` does not hold for the low half.
fn below(low: u32, high: u32, value: u64, low_jump: u32, fail: u8) -> Program {
    let (value_low, value_high) = halves(value);
    vec![
        statement(LOAD, high),
        branch(JUMP_GREATER, value_high, fail + 3, 0),
        branch(JUMP_EQUAL, value_high, 0, 2),
        statement(LOAD, low),
        branch(low_jump, value_low, fail, 0),
    ]
}

/// The low and the high 32 bits.
#[expect(clippy::cast_possible_truncation, reason = "the halves are meant")]
fn halves(value: u64) -> (u32, u32) {
    (value as u32, (value >> 32) as u32)
}

fn answer(action: Action) -> sock_filter {
    statement(RETURN, action.0)
}

/// Skips that many instructions. A program that long the kernel refuses anyway, and [`super::compile`]
/// does so first.
fn jump(distance: usize) -> sock_filter {
    statement(JUMP, u32::try_from(distance).unwrap_or(u32::MAX))
}

fn statement(code: u32, k: u32) -> sock_filter {
    instruction(code, k, 0, 0)
}

fn branch(code: u32, k: u32, when_true: u8, when_false: u8) -> sock_filter {
    instruction(code, k, when_true, when_false)
}

fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    #[expect(clippy::cast_possible_truncation, reason = "every code of classic BPF is below 256")]
    let code = code as u16;
    sock_filter { code, jt, jf, k }
}
