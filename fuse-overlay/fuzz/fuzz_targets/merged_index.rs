#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuse_overlay::fuzzing::merged_index(bytes));
