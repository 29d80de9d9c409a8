//! Address spaces do what a plain model says, also when parts of them fail.
//!
//! `IOPT_SPACE_SEED` names the first seed, `IOPT_SPACE_COUNT` how many there are, `IOPT_SPACE_STEPS` the
//! operations of each; with `IOPT_SPACE_TRACE` they are printed. A million operations, in all:
//!
//! ```text
//! IOPT_SPACE_COUNT=10 IOPT_SPACE_STEPS=12500 CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS=true \
//!     cargo test --release -p iopt-tests --test space
//! ```

use std::env;

use iopt_tests::check::Mismatch;
use iopt_tests::space::plan::Plan;
use iopt_tests::space::setting::Mix;
use iopt_tests::space::world::{Outcome, World};

/// Operations from one comparison of everything to the next.
const PERIOD: u64 = 256;

/// How often operations went how.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    done: u64,
    refused: u64,
    failed: u64,
}

/// Runs operations at random, which a seed decides.
fn run(mix: Mix, seed: u64, step_count: u64, has_failures: bool) -> Result<Tally, Mismatch> {
    let mut world = World::new(mix, seed);
    let mut plan = Plan::new(seed, has_failures);
    let mut tally = Tally::default();
    for step in 0..step_count {
        let (op, orders) = plan.next(&world);
        if env::var_os("IOPT_SPACE_TRACE").is_some() {
            eprintln!("{step}: {op:x?} {orders:?}");
        }
        let outcome = world.step(&op, &orders);
        let at = |error| {
            Mismatch::new(format!(
                "{mix:?}, seed {seed}, step {step}, {orders:?}: {error}"
            ))
        };
        match outcome.map_err(at)? {
            Outcome::Done => tally.done += 1,
            Outcome::Refused(_) => tally.refused += 1,
            Outcome::Failed(_) => tally.failed += 1,
        }
        if step % PERIOD == PERIOD - 1 {
            world.check_all().map_err(at)?;
        }
    }
    world
        .finish()
        .map_err(|error| Mismatch::new(format!("{mix:?}, seed {seed}: {error}")))?;
    Ok(tally)
}

fn number(name: &str, default: u64) -> u64 {
    let value = env::var(name).ok().and_then(|value| value.parse().ok());
    value.unwrap_or(default)
}

/// Runs some seeds of one mix.
fn check(mix: Mix) {
    let first = number("IOPT_SPACE_SEED", 1);
    for seed in first..first + number("IOPT_SPACE_COUNT", 2) {
        for has_failures in [false, true] {
            let run = run(mix, seed, number("IOPT_SPACE_STEPS", 1500), has_failures);
            let tally = run.unwrap_or_else(|error| panic!("{error}"));
            eprintln!("{mix:?}, seed {seed}: {tally:?}");
        }
    }
}

#[test]
fn four_formats_side_by_side_are_as_the_model() {
    check(Mix::Small);
}

#[test]
fn pages_of_all_sizes_are_as_the_model() {
    check(Mix::Arm);
}

#[test]
fn what_devices_write_to_is_as_the_model() {
    check(Mix::Dirty);
}

#[test]
fn write_buffers_and_pins_are_as_the_model() {
    check(Mix::Strict);
}
