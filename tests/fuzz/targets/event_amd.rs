//! The target `event_amd` for libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| iopt_fuzz::run("event_amd", bytes));
