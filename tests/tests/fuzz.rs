//! Every reader against damaged inputs: `IOPT_FUZZ_RUNS` of them, from the fixtures, the same in every run.
//!
//! `IOPT_FUZZ_SECONDS` ends each search early, `IOPT_FUZZ_SEED` draws others, `IOPT_FUZZ_ONLY` picks targets
//! by a part of their names, and `IOPT_FUZZ_CORPUS` is a folder for the inputs that searches start from.

use std::path::Path;
use std::time::{Duration, Instant};

use iopt_tests::fuzz::{TARGETS, Target};

/// Inputs of each target, unless said otherwise.
const RUNS: u64 = 5000;

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let number = text.parse();
    Some(number.unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

fn targets_asked_for() -> impl Iterator<Item = &'static Target> {
    let part = std::env::var("IOPT_FUZZ_ONLY").unwrap_or_default();
    TARGETS
        .iter()
        .filter(move |target| target.name.contains(&part))
}

#[test]
#[cfg_attr(miri, ignore = "safe code alone, and much of it")]
fn no_damage_breaks_a_reader_or_a_law() {
    let run_count = setting("IOPT_FUZZ_RUNS");
    let seconds = setting("IOPT_FUZZ_SECONDS");
    let seed = setting("IOPT_FUZZ_SEED").unwrap_or(1);
    for target in targets_asked_for() {
        let start = Instant::now();
        let end = seconds.map(|seconds| start + Duration::from_secs(seconds));
        let figures = target.search(run_count.unwrap_or(RUNS), seed, end);
        eprintln!(
            "{:16} {:>9} runs, {:>9} accepted, {:.1} s",
            target.name,
            figures.run_count,
            figures.accepted_count,
            start.elapsed().as_secs_f64()
        );
        // A search whose inputs are nearly all refused, or hardly any, looks at little.
        let (run, accepted) = (figures.run_count, figures.accepted_count);
        assert!(
            accepted >= run / 100 && accepted <= run - run / 100,
            "{}: {figures:?}",
            target.name
        );
    }
}

#[test]
fn inputs_to_start_from_are_written_down_if_somebody_asks() {
    if let Ok(folder) = std::env::var("IOPT_FUZZ_CORPUS") {
        for target in TARGETS {
            target
                .write_seeds(Path::new(&folder))
                .expect("the folder can be written");
        }
    }
    let mut names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), TARGETS.len());
}
