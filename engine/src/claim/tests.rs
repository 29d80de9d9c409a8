//! Claims of one thread, at the corners of stripes and of the space.

use alloc::format;
use alloc::string::ToString as _;
use alloc::vec::Vec;

use super::*;

const STRIPE: u64 = 0x20_0000;

fn range(start: u64, last: u64) -> IovaRange {
    IovaRange::new(Iova::new(start), Iova::new(last)).expect("last is not below start")
}

/// Asserts that each range is claimed as a whole: its corners cannot be claimed.
fn assert_held(registry: &Registry, ranges: &[IovaRange]) {
    for held in ranges {
        for corner in [held.start(), held.last()] {
            let claim = registry.claim(range(corner.get(), corner.get()));
            let ClaimError::Overlap { with, .. } = claim.expect_err("it is claimed");
            assert_eq!(with, *held);
        }
    }
}

#[test]
fn claims_that_share_a_byte_are_refused() {
    // Within a stripe, over two, over more than there are shards.
    for (first, last) in [
        (0x2000, 0x4fff),
        (STRIPE - 1, STRIPE),
        (3 * STRIPE + 1, 90 * STRIPE),
    ] {
        let registry = Registry::new();
        let held = registry.claim(range(first, last)).unwrap();
        for (start, end) in [
            (0, first),
            (last, u64::MAX),
            (first + 1, last),
            (0, u64::MAX),
        ] {
            let error = registry.claim(range(start, end)).unwrap_err();
            let expected = ClaimError::Overlap {
                range: range(start, end),
                with: held.range(),
            };
            assert_eq!(error, expected);
        }
        let below = registry.claim(range(0, first - 1)).unwrap();
        let above = registry.claim(range(last + 1, u64::MAX)).unwrap();
        drop((below, above, held));
        drop(registry.claim(IovaRange::FULL).unwrap());
    }
}

#[test]
fn the_lowest_overlap_is_reported_whatever_its_shard() {
    let registry = Registry::new();
    let held: Vec<_> = (1..20)
        .map(|stripe| {
            registry
                .claim(range(stripe * STRIPE, stripe * STRIPE))
                .unwrap()
        })
        .collect();
    for (stripe, lowest) in (0..19).zip([&held[0]].into_iter().chain(&held)) {
        let error = registry
            .claim(range(stripe * STRIPE, u64::MAX))
            .unwrap_err();
        let ClaimError::Overlap { with, .. } = error;
        assert_eq!(with, lowest.range());
    }
}

#[test]
fn a_claim_belongs_to_the_registry_that_issued_it() {
    let (ours, theirs) = (Registry::new(), Registry::new());
    let claim = ours.claim(range(0, 0xfff)).unwrap();
    let (lower, upper) = claim.split_at(Iova::new(0x800)).unwrap();
    for claim in [&lower, &upper] {
        assert!(ours.clone().issued(claim));
        assert!(!theirs.issued(claim));
    }
}

#[test]
fn the_parts_of_a_claim_end_separately() {
    let registry = Registry::new();
    for (start, middle, last) in [
        (0x1000, 0x2000, 0x2fff),
        (0, STRIPE, 2 * STRIPE),
        (5 * STRIPE, 5 * STRIPE + 1, 90 * STRIPE),
        (STRIPE - 1, STRIPE, STRIPE),
        (0, u64::MAX, u64::MAX),
    ] {
        let claim = registry.claim(range(start, last)).unwrap();
        let (lower, upper) = claim.split_at(Iova::new(middle)).unwrap();
        assert_eq!(lower.range(), range(start, middle - 1));
        assert_eq!(upper.range(), range(middle, last));
        assert_held(&registry, &[lower.range(), upper.range()]);
        drop(upper);
        assert_held(&registry, &[lower.range()]);
        let above = registry.claim(range(middle, u64::MAX)).unwrap();
        drop(lower);
        assert_held(&registry, &[above.range()]);
        drop(registry.claim(range(0, middle - 1)).unwrap());
    }
}

#[test]
fn a_split_outside_gives_the_claim_back() {
    let registry = Registry::new();
    for (whole, outside) in [
        (
            range(0x1000, 0x2fff),
            &[0, 0xfff, 0x1000, 0x3000, u64::MAX][..],
        ),
        (range(STRIPE, STRIPE), &[0, STRIPE, STRIPE + 1]),
        (IovaRange::FULL, &[0]),
        (range(u64::MAX, u64::MAX), &[0, u64::MAX]),
    ] {
        let mut claim = registry.claim(whole).unwrap();
        for &iova in outside {
            let error = claim.split_at(Iova::new(iova)).unwrap_err();
            assert!(error.to_string().contains(&whole.to_string()), "{error}");
            claim = error.into_claim();
            assert_eq!(claim.range(), whole);
            assert_held(&registry, &[whole]);
        }
    }
    drop(registry.claim(IovaRange::FULL).unwrap());
}

#[test]
fn neighbours_join_in_either_order() {
    let registry = Registry::new();
    for (start, middle, last) in [
        (0x1000, 0x2000, 0x2fff),
        (STRIPE - 1, STRIPE, STRIPE),
        (STRIPE, 20 * STRIPE, 40 * STRIPE),
        (0, u64::MAX, u64::MAX),
        (0, 1, u64::MAX),
    ] {
        for is_upward in [true, false] {
            let lower = registry.claim(range(start, middle - 1)).unwrap();
            let upper = registry.claim(range(middle, last)).unwrap();
            let (first, second) = if is_upward {
                (lower, upper)
            } else {
                (upper, lower)
            };
            let whole = first.join(second).unwrap();
            assert_eq!(whole.range(), range(start, last));
            assert!(registry.issued(&whole));
            assert_held(&registry, &[whole.range()]);
            drop(whole);
            drop(registry.claim(IovaRange::FULL).unwrap());
        }
    }
}

#[test]
fn claims_that_are_no_neighbours_come_back_unchanged() {
    let registry = Registry::new();
    for (low, high) in [
        (range(0, 0xfff), range(0x2000, 0x2fff)),
        (range(0, STRIPE), range(STRIPE + 2, 90 * STRIPE)),
        // The ends of the space do not meet.
        (range(0, 0), range(u64::MAX, u64::MAX)),
    ] {
        let first = registry.claim(high).unwrap();
        let second = registry.claim(low).unwrap();
        let error = first.join(second).unwrap_err();
        assert!(matches!(error, JoinError::Apart { .. }));
        let (first, second) = error.into_claims();
        assert_eq!((first.range(), second.range()), (high, low));
        assert_held(&registry, &[low, high]);
    }
}

#[test]
fn claims_of_different_registries_do_not_join() {
    let (ours, theirs) = (Registry::new(), Registry::new());
    let first = ours.claim(range(0, 0xfff)).unwrap();
    let second = theirs.claim(range(0x1000, 0x1fff)).unwrap();
    let error = first.join(second).unwrap_err();
    assert!(matches!(error, JoinError::Foreign { .. }));
    let (first, second) = error.into_claims();
    assert!(ours.issued(&first) && theirs.issued(&second));
    assert_held(&ours, &[range(0, 0xfff)]);
    assert_held(&theirs, &[range(0x1000, 0x1fff)]);
    drop(ours.claim(range(0x1000, u64::MAX)).unwrap());
}

#[test]
fn a_claim_outlives_the_handles_of_its_registry() {
    let registry = Registry::new();
    let claim = registry.claim(IovaRange::FULL).unwrap();
    drop(registry);
    let (lower, upper) = claim.split_at(Iova::new(STRIPE)).unwrap();
    assert_eq!(upper.join(lower).unwrap().range(), IovaRange::FULL);
}

#[test]
#[cfg_attr(miri, ignore = "leaks, as it says")]
fn a_forgotten_claim_refuses_for_ever() {
    let registry = Registry::new();
    let claim = registry.claim(range(STRIPE, 3 * STRIPE)).unwrap();
    let (lower, upper) = claim.split_at(Iova::new(2 * STRIPE)).unwrap();
    core::mem::forget(upper);
    drop(lower);
    assert_held(&registry, &[range(2 * STRIPE, 3 * STRIPE)]);
    drop(registry.claim(range(0, 2 * STRIPE - 1)).unwrap());
}

#[test]
fn what_is_shown_of_a_registry_counts_each_claim_once() {
    let registry = Registry::new();
    let claim = registry.claim(IovaRange::FULL).unwrap();
    let parts = claim.split_at(Iova::new(STRIPE)).unwrap();
    assert_eq!(format!("{registry:?}"), "Registry { claim_count: 2, .. }");
    drop(parts);
}
