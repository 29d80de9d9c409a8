//! The readers' targets for libFuzzer: each file of `targets` names one.

#[path = "../../tools/tests/fuzz/readers.rs"]
mod readers;

/// Reads bytes with the target of a name and checks what came out.
pub fn run(name: &str, bytes: &[u8]) {
    let mut targets = iopt_tests::fuzz::TARGETS.iter().chain(readers::TARGETS);
    let target = targets.find(|target| target.name == name);
    (target.expect("the name is that of a target").run)(bytes);
}
