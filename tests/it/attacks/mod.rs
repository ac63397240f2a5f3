//! Hostile images and hostile processes: each tries something, and the test sees that it fails.
//!
//! SECURITY.md names these tests claim by claim; [`claims`] checks that every test it names exists. What an
//! attack would change is looked at from outside, on the machine: that the attacker is told "no" proves little.

mod claims;
mod images;
mod neighbours;
mod network;
mod processes;
mod resources;
mod terminal;

use serde_json::{Value, json};

use crate::fixtures::{Archive, Layer, busybox_archive};
use crate::harness::{Hostel, skip};

/// Loads an image `evil`: busybox with a hostile layer on it.
fn load_evil(h: &Hostel, config: &Value, fill: impl FnOnce(&mut Layer)) -> bool {
    if busybox_archive().is_none() {
        skip("busybox-static is not installed");
        return false;
    }
    let mut layer = Layer::new();
    fill(&mut layer);
    let file = h.scratch("evil").join("evil.tar");
    let mut archive = Archive::new(&file);
    let mut whole = json!({"Cmd": ["sh"], "Env": ["PATH=/bin"]});
    whole.as_object_mut().unwrap().extend(config.as_object().unwrap().clone());
    archive.add(&["evil:latest"], "amd64", &whole, &[crate::fixtures::busybox_layer(), layer.finish()]);
    archive.finish();
    h.args(&["load", "-q", "-i", &file.to_string_lossy()]).ok();
    true
}

/// Runs a python program in a container of the Debian image.
fn python(h: &Hostel, flags: &[&str], program: &str) -> crate::harness::Done {
    let line = [&["run", "--rm"], flags, &["debian", "python3", "-c", program]].concat();
    h.args(&line)
}

/// What python programs here begin with: `sc(number, ...)` makes a system call and returns -errno.
const SYSCALLS: &str = "import ctypes, os, socket
lib = ctypes.CDLL(None, use_errno=True)
lib.syscall.restype = ctypes.c_long
def sc(number, *args):
    result = lib.syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in args])
    return result if result >= 0 else -ctypes.get_errno()
";
