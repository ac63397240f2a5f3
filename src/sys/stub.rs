//! A program of a few dozen instructions that stands between the engine and a container's command.
//!
//! While a process of the container executes its command, `/proc/self/exe` is what it executed
//! last. Were that the engine's own file, an image could name `/proc/self/exe` as its command or as
//! a script's interpreter, keep the file open, and write to it later with the rights of the user
//! who owns it (CVE-2019-5736). So the engine first executes this stub, a sealed file in memory,
//! which executes the command.
//!
//! The stub gets the path as its first argument and the command's own arguments behind it, the
//! environment unchanged, and a socket at descriptor [`STATUS_FD`]. It marks that close-on-exec,
//! calls execve(2), and if that fails sends [`FAILED_MARK`] and the errno, and ends with 127. Without the
//! socket it ends at once: a script of the image's may name `/proc/self/exe` as its interpreter, and the two
//! would execute each other for ever.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

use super::fd::sealed_memfd;

/// Where the stub finds the socket that it reports to.
pub const STATUS_FD: i32 = 3;
/// The first four bytes of the stub's message; the errno follows, in native order.
pub const FAILED_MARK: [u8; 4] = *b"EXEC";

#[cfg(target_arch = "x86_64")]
std::arch::global_asm!(
    ".pushsection .rodata.hostel_stub, \"a\", @progbits",
    ".balign 16",
    ".globl hostel_stub_start",
    "hostel_stub_start:",
    "mov edi, 3", // fcntl(3, F_SETFD, FD_CLOEXEC)
    "mov esi, 2",
    "mov edx, 1",
    "mov eax, 72",
    "syscall",
    "test eax, eax", // no socket: not the engine has executed this, but a script that names it
    "js 2f",
    "mov rdi, [rsp + 8]", // execve(argv[0], &argv[1], envp)
    "lea rsi, [rsp + 16]",
    "mov rax, [rsp]",
    "lea rdx, [rsp + rax * 8 + 16]",
    "mov eax, 59",
    "syscall",
    "neg eax", // write(3, "EXEC" errno, 8)
    "sub rsp, 16",
    "mov dword ptr [rsp], 0x43455845",
    "mov dword ptr [rsp + 4], eax",
    "mov edi, 3",
    "mov rsi, rsp",
    "mov edx, 8",
    "mov eax, 1",
    "syscall",
    "2:",
    "mov edi, 127", // exit_group(127)
    "mov eax, 231",
    "syscall",
    "ud2",
    ".globl hostel_stub_end",
    "hostel_stub_end:",
    ".popsection",
);

#[cfg(target_arch = "aarch64")]
std::arch::global_asm!(
    ".pushsection .rodata.hostel_stub, \"a\", @progbits",
    ".balign 16",
    ".globl hostel_stub_start",
    "hostel_stub_start:",
    "mov x0, #3", // fcntl(3, F_SETFD, FD_CLOEXEC)
    "mov x1, #2",
    "mov x2, #1",
    "mov x8, #25",
    "svc #0",
    "tbnz w0, #31, 2f", // no socket: not the engine has executed this, but a script that names it
    "ldr x0, [sp, #8]", // execve(argv[0], &argv[1], envp)
    "add x1, sp, #16",
    "ldr x2, [sp]",
    "add x2, x1, x2, lsl #3",
    "mov x8, #221",
    "svc #0",
    "neg w0, w0", // write(3, "EXEC" errno, 8)
    "sub sp, sp, #16",
    "mov w1, #0x5845",
    "movk w1, #0x4345, lsl #16",
    "str w1, [sp]",
    "str w0, [sp, #4]",
    "mov x0, #3",
    "mov x1, sp",
    "mov x2, #8",
    "mov x8, #64",
    "svc #0",
    "2:",
    "mov x0, #127", // exit_group(127)
    "mov x8, #94",
    "svc #0",
    "brk #1",
    ".globl hostel_stub_end",
    "hostel_stub_end:",
    ".popsection",
);

unsafe extern "C" {
    static hostel_stub_start: u8;
    static hostel_stub_end: u8;
}

/// Where the stub is mapped: any page that is not the first will do.
const LOAD_ADDRESS: u64 = 0x40_0000;
const EHDR_BYTES: u64 = 64;
const PHDR_BYTES: u64 = 56;

/// The stub as an ELF file in memory that nobody can change.
///
/// # Errors
/// As memfd_create(2); EACCES where `vm.memfd_noexec` forbids it.
pub fn make() -> io::Result<OwnedFd> {
    let fd = sealed_memfd(c"hostel-exec", &image())?;
    // Not readable, so that the process is not dumpable while it runs (execve(2), NOTES).
    // SAFETY: an open descriptor and an integer.
    Errno::result(unsafe { libc::fchmod(fd.as_raw_fd(), 0o111) })?;
    Ok(fd)
}

/// An ELF64 executable of one segment: header, program header, code (elf(5)).
fn image() -> Vec<u8> {
    let start = &raw const hostel_stub_start;
    let end = &raw const hostel_stub_end;
    // SAFETY: both symbols delimit one contiguous read-only object that lives as long as the program.
    let code = unsafe { std::slice::from_raw_parts(start, end as usize - start as usize) };
    let offset = EHDR_BYTES + PHDR_BYTES;
    let size = offset + code.len() as u64;
    let machine: u16 = if cfg!(target_arch = "x86_64") { 62 } else { 183 };
    let mut elf = Vec::with_capacity(size as usize);
    elf.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0"); // 64 bits, little endian, version 1
    elf.extend(2_u16.to_le_bytes()); // ET_EXEC
    elf.extend(machine.to_le_bytes());
    elf.extend(1_u32.to_le_bytes());
    elf.extend((LOAD_ADDRESS + offset).to_le_bytes()); // entry
    elf.extend(EHDR_BYTES.to_le_bytes()); // program headers
    elf.extend(0_u64.to_le_bytes()); // no sections
    elf.extend(0_u32.to_le_bytes());
    for half in [EHDR_BYTES as u16, PHDR_BYTES as u16, 1, 64, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    elf.extend(1_u32.to_le_bytes()); // PT_LOAD
    elf.extend(5_u32.to_le_bytes()); // R X
    for word in [0, LOAD_ADDRESS, LOAD_ADDRESS, size, size, 0x1000] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(code);
    elf
}

/// Executes the stub, which executes the command; returns only when the stub cannot be executed.
///
/// `args` begin with the path, then the command's own arguments.
#[must_use]
pub fn execute(stub: BorrowedFd<'_>, args: &[&CStr], env: &[&CStr]) -> Errno {
    let pointers = |list: &[&CStr]| -> Vec<*const libc::c_char> {
        list.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: both arrays end with a null pointer and point to NUL-terminated strings that outlive the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            stub.as_raw_fd(),
            c"".as_ptr(),
            args.as_ptr(),
            env.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    Errno::last()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;
    use crate::sys::process::{Ended, Fork, clone, exit_now, wait_for};

    /// Runs the stub in a child with a socket at 3 and returns how it ended and what it said.
    fn run(args: &[&CStr]) -> (Ended, Vec<u8>) {
        let (ours, theirs) = crate::sys::fd::seqpacket_pair().expect("socketpair");
        let stub = make().expect("memfd");
        match clone(0, false).expect("fork") {
            Fork::Child => {
                let stub = nix::fcntl::fcntl(&stub, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(100)).unwrap_or(-1);
                let _ = crate::sys::fd::place_at(theirs.as_fd(), STATUS_FD);
                let stub = crate::sys::fd::own(stub).expect("a descriptor");
                let _ = execute(stub.as_fd(), args, &[c"A=b"]);
                exit_now(99)
            }
            Fork::Parent(child) => {
                drop(theirs);
                let mut buffer = [0; 64];
                let length = nix::unistd::read(&ours, &mut buffer).expect("read");
                (wait_for(child.pid).expect("wait"), buffer[..length].to_vec())
            }
        }
    }

    #[test]
    fn a_command_runs_with_its_own_arguments_and_a_closed_socket() {
        let script = c"test \"$0 $1 $A\" = 'zero one b' && test ! -e /proc/self/fd/3 && exit 42";
        let (ended, said) = run(&[c"/bin/sh", c"sh", c"-c", script, c"zero", c"one"]);
        assert_eq!((ended, said), (Ended::Exited(42), vec![]));
    }

    #[test]
    fn a_failure_is_reported_with_its_errno() {
        let (ended, said) = run(&[c"/nonexistent", c"x"]);
        let expected: Vec<u8> = FAILED_MARK.into_iter().chain(libc::ENOENT.to_ne_bytes()).collect();
        assert_eq!((ended, said), (Ended::Exited(127), expected));
    }
}
