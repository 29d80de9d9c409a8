//! The target `event_smmuv3` for libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| iopt_fuzz::run("event_smmuv3", bytes));
