//! The quarantine without a table: pages are numbers here.

use alloc::vec;

use super::*;

fn pages(numbers: impl IntoIterator<Item = u64>) -> Vec<Oa> {
    numbers
        .into_iter()
        .map(|number| Oa::new(number << 12))
        .collect()
}

fn retire(quarantine: &Quarantine, pages: &[Oa]) -> Operation {
    let mut retiring = quarantine.begin();
    retiring.reserve(pages.len()).unwrap();
    for &page in pages {
        retiring.push(page);
    }
    retiring.finish()
}

fn freed_exclusively(quarantine: &mut Quarantine) -> Vec<Oa> {
    let mut freed = Vec::new();
    quarantine.collect_exclusively(|page| freed.push(page));
    freed
}

#[test]
fn pages_leave_in_the_order_of_their_proofs_and_not_before() {
    let mut quarantine = Quarantine::new(8);
    let one = retire(&quarantine, &pages(1..=1));
    let two = retire(&quarantine, &pages(2..=4));
    assert_eq!(freed_exclusively(&mut quarantine), []);
    quarantine.settle(two);
    quarantine.settle(two);
    quarantine.settle(Operation::NONE);
    assert_eq!(freed_exclusively(&mut quarantine), pages(2..=4));
    assert_eq!(quarantine.held_count(), 1);
    quarantine.settle(one);
    assert_eq!(freed_exclusively(&mut quarantine), pages(1..=1));
    assert_eq!(quarantine.held_count(), 0);
}

#[test]
fn an_operation_that_ends_early_leaves_its_pages_and_gives_room_back() {
    let mut quarantine = Quarantine::new(8);
    let mut retiring = quarantine.begin();
    retiring.reserve(6).unwrap();
    retiring.push(Oa::new(0x1000));
    assert_eq!(quarantine.held_count(), 6);
    drop(retiring);
    assert_eq!(quarantine.held_count(), 1);
    assert!(quarantine.begin().is_empty());
    assert_eq!(quarantine.begin().finish(), Operation::NONE);
    let mut drained = Vec::new();
    quarantine.drain(|page| drained.push(page));
    assert_eq!(drained, vec![Oa::new(0x1000)]);
}

#[test]
fn no_more_is_held_than_the_limit_allows() {
    let quarantine = Quarantine::new(4);
    let operation = retire(&quarantine, &pages(1..=3));
    let mut retiring = quarantine.begin();
    assert_eq!(retiring.reserve(2), Err(NoRoom::Limit));
    assert_eq!(retiring.reserve(usize::MAX), Err(NoRoom::Memory));
    retiring.reserve(1).unwrap();
    retiring.push(Oa::new(0x9000));
    assert_eq!(retiring.reserve(1), Err(NoRoom::Limit));
    let last = retiring.finish();
    assert_ne!(operation, last);
    assert_eq!(quarantine.held_count(), 4);
}

#[test]
fn a_reader_that_stays_keeps_what_was_retired_after_it_came() {
    let mut quarantine = Quarantine::new(8);
    let pin = sync::epoch::pin();
    let operation = retire(&quarantine, &pages(1..=2));
    quarantine.settle(operation);
    for _ in 0..4 {
        quarantine.collect(|page| panic!("{page} may be read"));
    }
    drop(pin);
    assert_eq!(freed_exclusively(&mut quarantine), pages(1..=2));
}
