//! Readers of the formats and of the engine against damaged inputs, the same in every run.

use iopt_tests::fuzz::{TARGETS, search_all};

#[test]
#[cfg_attr(miri, ignore = "safe code alone, and much of it")]
fn no_damage_breaks_a_reader_or_a_law() {
    search_all(TARGETS);
}
