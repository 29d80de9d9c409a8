//! The target `groups` for libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| iopt_fuzz::run("groups", bytes));
