//! From tables to instructions: a bisection over the numbers of each ABI.
//!
//! Only loads of 32-bit words of `struct seccomp_data`, jumps, one AND and returns are used, all
//! forwards, which is what the kernel's checker takes and its emulation of call numbers follows.
//!
//! Programs are built from their end to their start. A jump leads forwards, so what it leads to is
//! already there and every distance is known; and decisions that many numbers share are written
//! once, as long as a conditional jump reaches them. The kernel translates the program to machine
//! code each time it is loaded, so its length counts too.

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
    let mut code = Code::default();
    let mut other = code.answer(Action(libc::SECCOMP_RET_KILL_PROCESS));
    for table in tables.iter().rev() {
        let tree = code.bisect(&ranges(table), &mut Vec::new());
        let tree = code.load(NUMBER_OFFSET, tree);
        other = code.branch(JUMP_EQUAL, audit_arch(table.abi), tree, other);
    }
    code.load(ARCH_OFFSET, other);
    code.reversed.reverse();
    code.reversed
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

/// An instruction's place, counted from the end of the program.
type Label = usize;

/// A conditional jump reaches 255 instructions; some are kept for what is pushed in between.
const REACH: usize = 250;

/// The end of a program, last instruction first.
#[derive(Default)]
struct Code {
    reversed: Program,
}

impl Code {
    /// Code that ends in the decision of the range that the accumulator lies in. `written` has the
    /// decisions that this tree has code for.
    fn bisect<'a>(
        &mut self,
        ranges: &'a [(u32, Decision)],
        written: &mut Vec<(&'a Decision, Label)>,
    ) -> Label {
        let (low, high) = ranges.split_at(ranges.len() / 2);
        match high {
            [] => self.answer(Action::ENOSYS),
            [(_, decision)] if low.is_empty() => self.decision(decision, written),
            [(pivot, _), ..] => {
                let over = self.bisect(high, written);
                let under = self.bisect(low, written);
                self.branch(JUMP_GREATER_OR_EQUAL, *pivot, over, under)
            }
        }
    }

    fn decision<'a>(&mut self, decision: &'a Decision, written: &mut Vec<(&'a Decision, Label)>) -> Label {
        let place = written.iter().position(|(known, _)| *known == decision);
        if let Some(label) = place.map(|place| written[place].1).filter(|label| self.reaches(*label)) {
            return label;
        }
        let label = match decision {
            Decision::Always(action) => self.answer(*action),
            Decision::ByArguments { rules, otherwise } => {
                let otherwise = self.answer(*otherwise);
                rules.iter().rev().fold(otherwise, |fail, rule| self.rule(rule, fail))
            }
        };
        match place {
            Some(place) => written[place].1 = label,
            None => written.push((decision, label)),
        }
        label
    }

    /// The rule's action when every test passes, else `fail`.
    fn rule(&mut self, rule: &Rule, fail: Label) -> Label {
        let pass = self.answer(rule.action);
        rule.tests.iter().rev().fold(pass, |pass, test| self.test(test, pass, fail))
    }

    /// Code that leads to `pass` or `fail`.
    fn test(&mut self, test: &Test, pass: Label, fail: Label) -> Label {
        let low = ARGUMENTS_OFFSET + 8 * test.argument;
        let high = low + 4;
        match test.compare {
            Compare::LowEqual(value) => {
                let equal = self.branch(JUMP_EQUAL, value, pass, fail);
                self.load(low, equal)
            }
            Compare::Equal(value) => self.equal(test.argument, u64::MAX, value, pass, fail),
            Compare::NotEqual(value) => self.equal(test.argument, u64::MAX, value, fail, pass),
            Compare::Masked { mask, value } => self.equal(test.argument, mask, value, pass, fail),
            Compare::Greater(value) => self.order((low, high), JUMP_GREATER, value, pass, fail),
            Compare::GreaterOrEqual(value) => {
                self.order((low, high), JUMP_GREATER_OR_EQUAL, value, pass, fail)
            }
            Compare::Less(value) => self.order((low, high), JUMP_GREATER_OR_EQUAL, value, fail, pass),
            Compare::LessOrEqual(value) => self.order((low, high), JUMP_GREATER, value, fail, pass),
        }
    }

    /// Leads to `yes` when argument and mask together are the value.
    fn equal(&mut self, argument: u32, mask: u64, value: u64, yes: Label, no: Label) -> Label {
        let offset = ARGUMENTS_OFFSET + 8 * argument;
        let ((mask_low, mask_high), (value_low, value_high)) = (halves(mask), halves(value));
        let low = self.branch(JUMP_EQUAL, value_low, yes, no);
        let low = self.and(mask_low, low);
        let low = self.load(offset, low);
        let high = self.branch(JUMP_EQUAL, value_high, low, no);
        let high = self.and(mask_high, high);
        self.load(offset + 4, high)
    }

    /// Leads to `yes` when the high half is above, or equal and `low_jump` is taken for the low half.
    fn order(&mut self, (low, high): (u32, u32), low_jump: u32, value: u64, yes: Label, no: Label) -> Label {
        let (value_low, value_high) = halves(value);
        let ends = self.branch(low_jump, value_low, yes, no);
        let ends = self.load(low, ends);
        let equal = self.branch(JUMP_EQUAL, value_high, ends, no);
        let above = self.branch(JUMP_GREATER, value_high, yes, equal);
        self.load(high, above)
    }

    fn and(&mut self, mask: u32, next: Label) -> Label {
        if mask == u32::MAX {
            return next;
        }
        self.adjoin(next);
        self.push(statement(AND, mask))
    }

    fn load(&mut self, offset: u32, next: Label) -> Label {
        self.adjoin(next);
        self.push(statement(LOAD, offset))
    }

    fn answer(&mut self, action: Action) -> Label {
        self.push(statement(RETURN, action.0))
    }

    fn branch(&mut self, code: u32, k: u32, when_true: Label, when_false: Label) -> Label {
        let (when_true, when_false) = (self.near(when_true), self.near(when_false));
        let distance = |label| {
            // `near` has just brought both within reach.
            u8::try_from(self.reversed.len() - label - 1).unwrap_or(u8::MAX)
        };
        let (jt, jf) = (distance(when_true), distance(when_false));
        self.push(instruction(code, k, jt, jf))
    }

    /// Makes the code at the label what comes next.
    fn adjoin(&mut self, label: Label) {
        if label + 1 != self.reversed.len() {
            self.far_jump(label);
        }
    }

    /// The label itself, or a new one within reach that leads to it.
    fn near(&mut self, label: Label) -> Label {
        if self.reaches(label) { label } else { self.far_jump(label) }
    }

    fn reaches(&self, label: Label) -> bool {
        self.reversed.len() - label <= REACH
    }

    fn far_jump(&mut self, label: Label) -> Label {
        let target = self.reversed[label];
        if u32::from(target.code) == RETURN {
            return self.push(target);
        }
        // A program so long that this does not fit is refused by the caller anyway.
        let distance = u32::try_from(self.reversed.len() - label - 1).unwrap_or(u32::MAX);
        self.push(statement(JUMP, distance))
    }

    fn push(&mut self, instruction: sock_filter) -> Label {
        self.reversed.push(instruction);
        self.reversed.len() - 1
    }
}

/// The low and the high 32 bits.
#[expect(clippy::cast_possible_truncation, reason = "the halves are meant")]
fn halves(value: u64) -> (u32, u32) {
    (value as u32, (value >> 32) as u32)
}

fn statement(code: u32, k: u32) -> sock_filter {
    instruction(code, k, 0, 0)
}

fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    #[expect(clippy::cast_possible_truncation, reason = "every code of classic BPF is below 256")]
    let code = code as u16;
    sock_filter { code, jt, jf, k }
}
