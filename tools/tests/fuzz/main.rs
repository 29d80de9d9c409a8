//! Readers of data files against damaged inputs, the same in every run.

mod readers;

#[test]
fn no_damage_breaks_a_reader_or_a_law() {
    iopt_tests::fuzz::search_all(readers::TARGETS);
}
