//! Random operations on a table of every configuration, compared with the model, the decoder's walk
//! and the reference walk after each of them.
//!
//! Without `PROPTEST_CASES` the cases are the same on every run.

mod strategy;

use iopt::radix::MapSide;
use iopt_formats::{amd, armv8, riscv, vtd, x86_64};
use iopt_tests::configuration::{
    LARGE_PAGES, MIXED_PAGES, SMALL_PAGES, dirty_stage1, dirty_stage2, legal,
};
use iopt_tests::differential::Differential;
use iopt_tests::for_each_configuration;
use iopt_tests::referee::Judged;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// Cases of one configuration.
const CASE_COUNT: u32 = if cfg!(miri) { 1 } else { 32 };

fn runner() -> TestRunner {
    let config = Config {
        failure_persistence: None,
        ..Config::default()
    };
    if std::env::var_os("PROPTEST_CASES").is_some() {
        return TestRunner::new(config);
    }
    let config = Config {
        cases: CASE_COUNT,
        ..config
    };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

fn agrees<F: Judged>(format: F) {
    let map_side = prop_oneof![3 => Just(MapSide::Silent), 1 => Just(MapSide::Announced)];
    let outcome = runner().run(&(map_side, strategy::ops()), |(map_side, ops)| {
        let test = Differential::new(format, map_side);
        let done = test.and_then(|test| test.run(&ops));
        done.map_err(|mismatch| TestCaseError::fail(mismatch.to_string()))
    });
    if let Err(error) = outcome {
        panic!("{format:?}\n{error}");
    }
}

macro_rules! tests {
    ($($name:ident: $configured:expr;)+) => {
        $(
            #[test]
            fn $name() {
                agrees(legal($configured));
            }
        )+
    };
}

for_each_configuration!(tests);
