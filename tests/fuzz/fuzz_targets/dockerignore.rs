#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hostel::fuzzing::dockerignore(bytes));
