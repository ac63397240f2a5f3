//! Registries: pull, push, login, over loopback only.

mod cross;
mod faults;
mod kept;
mod real;
pub(crate) mod server;
mod tokens;

use crate::fixtures::Layer;

/// A tar of one file that does not compress.
pub(crate) fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    // xorshift: the same bytes for the same seed.
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut data = Vec::with_capacity(bytes + 8);
    while data.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        data.extend(state.to_le_bytes());
    }
    data.truncate(bytes);
    let mut layer = Layer::new();
    layer.file(&format!("noise-{seed}"), 0o644, 0, &data);
    layer.finish()
}
