//! Random operations on a table of every configuration, compared with the model, the decoder's walk
//! and the reference walk after each of them.
//!
//! Without `PROPTEST_CASES` the cases are the same on every run.

mod strategy;

use iopt::radix::MapSide;
use iopt_formats::{amd, armv8, riscv, vtd, x86_64};
use iopt_tests::check::Mismatch;
use iopt_tests::configuration::{
    LARGE_PAGES, MIXED_PAGES, SMALL_PAGES, dirty_stage1, dirty_stage2, legal,
};
use iopt_tests::differential::Differential;
use iopt_tests::for_each_configuration;
use iopt_tests::referee::Judged;
use iopt_tests::shadow::Unsnooped;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

macro_rules! tests {
    ($($name:ident: $configured:expr;)+) => {
        $(
            #[test]
            fn $name() {
                run(legal($configured));
            }
        )+
    };
}

/// Operations of one case at most.
const OP_LIMIT: usize = if cfg!(miri) { 4 } else { 28 };
/// The same, where each operation is tried for every number of pages left.
const STARVED_OP_LIMIT: usize = if cfg!(miri) { 3 } else { 8 };
/// Cases of one configuration.
const CASE_COUNT: u32 = if cfg!(miri) { 1 } else { 32 };
/// The same, for tests that run out of memory.
const STARVED_CASE_COUNT: u32 = if cfg!(miri) { 1 } else { 12 };

fn runner(case_count: u32) -> TestRunner {
    let config = Config {
        failure_persistence: None,
        ..Config::default()
    };
    if std::env::var_os("PROPTEST_CASES").is_some() {
        return TestRunner::new(config);
    }
    let config = Config {
        cases: case_count,
        ..config
    };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

fn agrees<F: Judged>(format: F) {
    let map_side = prop_oneof![3 => Just(MapSide::Silent), 1 => Just(MapSide::Announced)];
    // Formats without a software bit cannot serve walkers that do not snoop.
    let snooped = if F::PENDING == 0 {
        Just(true).boxed()
    } else {
        any::<bool>().boxed()
    };
    let input = (map_side, snooped, strategy::ops(OP_LIMIT));
    check(format, &input, CASE_COUNT, |(map_side, snooped, ops)| {
        if snooped {
            Differential::<F>::new(format, map_side)?.run(&ops)
        } else {
            Differential::<F, Unsnooped>::new(format, map_side)?.run(&ops)
        }
    });
}

fn survives_without_memory<F: Judged>(format: F) {
    check(
        format,
        &strategy::ops(STARVED_OP_LIMIT),
        STARVED_CASE_COUNT,
        |ops| Differential::<F>::new(format, MapSide::Silent)?.starve(&ops),
    );
}

/// Runs `test` on random inputs and reports the smallest that fails.
fn check<F: Judged, S: Strategy>(
    format: F,
    input: &S,
    case_count: u32,
    test: impl Fn(S::Value) -> Result<(), Mismatch>,
) {
    let outcome = runner(case_count).run(input, |value| {
        test(value).map_err(|mismatch| TestCaseError::fail(mismatch.to_string()))
    });
    if let Err(error) = outcome {
        panic!("{format:?}\n{error}");
    }
}

mod agrees {
    use super::*;

    use super::agrees as run;

    for_each_configuration!(tests);
}

mod survives_without_memory {
    use super::*;

    use super::survives_without_memory as run;

    for_each_configuration!(tests);
}
