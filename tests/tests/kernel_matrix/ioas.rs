//! One space, with no, one or two domains, and with one whose batches are full of short runs.

mod access;
mod area;
mod choice;
mod life;

use crate::fixture::{Fixture, PAGE_COUNT, Runs, memory};

/// Makes one test for each variant of every function that is named.
macro_rules! in_every_variant {
    ($($test:ident),* $(,)?) => {
        $crate::fixture::in_variants!(
            $crate::ioas::fixture,
            {
                no_domain: (0, $crate::fixture::Runs::Huge),
                one_domain: (1, $crate::fixture::Runs::Huge),
                two_domains: (2, $crate::fixture::Runs::Huge),
                small_batches: (1, $crate::fixture::Runs::Single),
            },
            [$($test),*]
        );
    };
}

use in_every_variant;

fn fixture(domain_count: usize, runs: Runs) -> Fixture {
    Fixture::new(memory(PAGE_COUNT, runs), domain_count)
}
