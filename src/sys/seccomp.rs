//! Loading a seccomp filter (seccomp(2)).

use nix::errno::Errno;

/// Loads a filter for this process; it stays for ever and is inherited.
///
/// # Errors
/// EACCES without CAP_SYS_ADMIN in the user namespace and without no_new_privs; EINVAL for a
/// program that the kernel's checker refuses.
pub fn load(program: &[libc::sock_filter]) -> Result<(), Errno> {
    let length = libc::c_ushort::try_from(program.len()).map_err(|_| Errno::EINVAL)?;
    let program = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    // SAFETY: the kernel copies `len` instructions from a live slice and writes nothing.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
    Errno::result(result).map(drop)
}
