//! The target `context_smmuv3` for libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| iopt_fuzz::run("context_smmuv3", bytes));
