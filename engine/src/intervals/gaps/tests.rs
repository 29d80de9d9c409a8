//! Holes and places in them, against a vector of ranges.

use alloc::vec::Vec;

use super::super::random::{Random, rounds};
use super::*;

fn span(start: u64, last: u64) -> IovaRange {
    range(start, last).expect("last is not below start")
}

fn anywhere(len_minus_one: u64) -> Fit {
    Fit {
        len_minus_one,
        align_lg2: 0,
        low: 0,
        window: IovaRange::FULL,
    }
}

fn gaps_of(used: &[(u64, u64)]) -> Gaps {
    let mut gaps = Gaps::new();
    for &(start, last) in used {
        gaps.insert(span(start, last)).unwrap();
    }
    gaps
}

#[test]
fn without_ranges_the_whole_space_fits() {
    let gaps = Gaps::new();
    assert_eq!(gaps.first_fit(anywhere(u64::MAX)), Some(IovaRange::FULL));
    assert_eq!(gaps.first_fit(anywhere(0)), Some(span(0, 0)));
    let off_zero = Fit {
        window: span(1, u64::MAX),
        ..anywhere(u64::MAX - 1)
    };
    assert_eq!(gaps.first_fit(off_zero), Some(span(1, u64::MAX)));
    let too_long = Fit {
        len_minus_one: u64::MAX,
        ..off_zero
    };
    assert_eq!(gaps.first_fit(too_long), None);
}

#[test]
fn the_last_byte_of_the_space_is_used_and_nothing_wraps() {
    let mut gaps = gaps_of(&[(0, u64::MAX - 1)]);
    assert_eq!(gaps.first_fit(anywhere(0)), Some(span(u64::MAX, u64::MAX)));
    assert_eq!(gaps.first_fit(anywhere(1)), None);
    let aligned = Fit {
        align_lg2: 1,
        ..anywhere(0)
    };
    assert_eq!(gaps.first_fit(aligned), None);
    let odd = Fit { low: 1, ..aligned };
    assert_eq!(gaps.first_fit(odd), Some(span(u64::MAX, u64::MAX)));
    gaps.insert(span(u64::MAX, u64::MAX)).unwrap();
    assert_eq!(gaps.first_fit(anywhere(0)), None);

    // All but the first bytes: lengths and alignments near the limits.
    let gaps = gaps_of(&[(6, u64::MAX)]);
    for len_minus_one in [6, 1 << 63, u64::MAX - 5, u64::MAX - 1, u64::MAX] {
        for align_lg2 in [0, 12, 63, 64, 255] {
            let fit = Fit {
                align_lg2,
                ..anywhere(len_minus_one)
            };
            assert_eq!(gaps.first_fit(fit), None);
        }
    }
    assert_eq!(gaps.first_fit(anywhere(5)), Some(span(0, 5)));
    let above_zero = Fit {
        window: span(1, u64::MAX),
        ..anywhere(4)
    };
    assert_eq!(gaps.first_fit(above_zero), Some(span(1, 5)));
}

#[test]
fn the_largest_alignments_leave_one_address() {
    let gaps = gaps_of(&[(0, 0xfff)]);
    let half = Fit {
        align_lg2: 63,
        ..anywhere(0xfff)
    };
    let found = gaps.first_fit(half);
    assert_eq!(found, Some(span(1 << 63, (1 << 63) + 0xfff)));
    let fixed = Fit {
        align_lg2: 64,
        low: 0x1234,
        ..anywhere(3)
    };
    assert_eq!(gaps.first_fit(fixed), Some(span(0x1234, 0x1237)));
    let taken = Fit {
        low: 0xfff,
        ..fixed
    };
    assert_eq!(gaps.first_fit(taken), None);
    let impossible = Fit {
        align_lg2: 12,
        low: 0x1000,
        ..anywhere(0)
    };
    assert_eq!(gaps.first_fit(impossible), None);
}

#[test]
fn a_window_may_lie_inside_a_hole_or_a_range() {
    let gaps = gaps_of(&[(0x1000, 0x1fff), (0x8000, 0x8fff)]);
    let within = |start, last, len_minus_one| {
        gaps.first_fit(Fit {
            window: span(start, last),
            ..anywhere(len_minus_one)
        })
    };
    assert_eq!(within(0x3001, 0x3010, 0xf), Some(span(0x3001, 0x3010)));
    assert_eq!(within(0x3001, 0x3010, 0x10), None);
    assert_eq!(within(0x1800, 0x1900, 0), None);
    assert_eq!(within(0x1800, 0x2000, 0), Some(span(0x2000, 0x2000)));
    assert_eq!(within(0x7fff, 0x9000, 1), None);
    assert_eq!(within(0x7fff, 0x9000, 0), Some(span(0x7fff, 0x7fff)));
    assert_eq!(within(0x8000, 0x9000, 0), Some(span(0x9000, 0x9000)));
    assert_eq!(within(0, 0xfff, 0xfff), Some(span(0, 0xfff)));
}

#[test]
fn overlaps_are_refused_and_the_lowest_is_named() {
    let mut gaps = gaps_of(&[(10, 19), (20, 20), (30, u64::MAX)]);
    for ((start, last), (low, high)) in [
        ((0, u64::MAX), (10, 19)),
        ((19, 40), (10, 19)),
        ((20, 25), (20, 20)),
        ((21, 30), (30, u64::MAX)),
        ((u64::MAX, u64::MAX), (30, u64::MAX)),
    ] {
        let (range, with) = (span(start, last), span(low, high));
        assert_eq!(gaps.insert(range), Err(InUse { range, with }));
    }
    assert_eq!(gaps.len(), 3);
    gaps.insert(span(21, 29)).unwrap();
    gaps.insert(span(0, 9)).unwrap();
    assert_eq!(gaps.first_fit(anywhere(0)), None);
}

#[test]
fn only_a_range_as_inserted_is_removed() {
    let mut gaps = gaps_of(&[(0, 9), (10, 19), (u64::MAX, u64::MAX)]);
    for (start, last) in [(0, 8), (1, 9), (0, 19), (5, 5), (20, 30), (0, u64::MAX)] {
        assert!(!gaps.remove(span(start, last)));
    }
    for (start, last) in [(10, 19), (u64::MAX, u64::MAX), (0, 9)] {
        assert!(gaps.remove(span(start, last)));
        assert!(!gaps.remove(span(start, last)));
    }
    assert_eq!(gaps.len(), 0);
}

/// The definition: the first aligned address of which as many follow that are free.
fn naive_fit(model: &[IovaRange], fit: Fit) -> Option<IovaRange> {
    // An address is lowest at the window's start or right above a range, or one of the aligned
    // ones that follow these; tests use small alignments.
    let mut bases: Vec<_> = model
        .iter()
        .filter_map(|used| used.last().get().checked_add(1))
        .collect();
    bases.push(fit.window.start().get());
    let step = 1_u128 << fit.align_lg2;
    let mut places: Vec<_> = bases
        .into_iter()
        .filter_map(|base| {
            let mut start = u128::from(base);
            while start % step != u128::from(fit.low) {
                start += 1;
            }
            let last = start + u128::from(fit.len_minus_one);
            let place = range(u64::try_from(start).ok()?, u64::try_from(last).ok()?)?;
            let is_free = !model.iter().any(|used| used.overlaps(place));
            (is_free && fit.window.contains(place)).then_some(place)
        })
        .collect();
    places.sort_unstable_by_key(|place| place.start());
    places.first().copied()
}

fn random_fit(random: &mut Random) -> Fit {
    let align_lg2 = [0, 0, 1, 3, 5][random.index(5)];
    let (start, last) = random.interval(300);
    let window = match random.below(4) {
        0 => IovaRange::FULL,
        1 => span(start, u64::MAX),
        2 => span(0, last),
        _ => span(start, last),
    };
    let len_minus_one = match random.below(10) {
        0 => random.next(),
        1 => u64::MAX - random.below(500),
        2 => 0,
        _ => random.below(40),
    };
    Fit {
        len_minus_one,
        align_lg2,
        low: random.below(1 << align_lg2),
        window,
    }
}

/// Checks the order and every summary.
fn check_summaries(gaps: &Gaps) {
    let mut next = gaps.used.first();
    while let Some(at) = next {
        let [left, right] = [Side::Left, Side::Right].map(|side| {
            let child = gaps.used.child(at, side)?;
            Some(gaps.used.summary(child))
        });
        let expected = Holes::new(left, gaps.used.key(at), right);
        assert_eq!(gaps.used.summary(at), expected);
        next = gaps.used.next(at);
    }
}

#[test]
fn places_agree_with_a_vector() {
    for (seed, most) in [(31, 4), (32, 25), (33, 120)] {
        let mut random = Random::new(seed);
        let (mut gaps, mut model) = (Gaps::new(), Vec::new());
        let mut is_growing = true;
        for _ in 0..rounds(8000) {
            is_growing = match model.len() {
                0 => true,
                len if len >= most => false,
                _ => is_growing,
            };
            if is_growing != random.one_in(4) || model.is_empty() {
                // Half of them where a fit says, as its users do.
                let new = if random.one_in(2) {
                    naive_fit(&model, random_fit(&mut random))
                } else {
                    let (start, last) = random.interval(300);
                    range(start, last.min(start.saturating_add(7)))
                };
                let Some(new) = new else { continue };
                let with = model.iter().filter(|used| used.overlaps(new));
                let lowest = with.min_by_key(|used| used.start()).copied();
                let expected = lowest.map_or(Ok(()), |with| Err(InUse { range: new, with }));
                assert_eq!(gaps.insert(new), expected);
                if expected.is_ok() {
                    model.push(new);
                }
            } else {
                let old = model.swap_remove(random.index(model.len()));
                assert!(gaps.remove(old));
            }
            assert_eq!(gaps.len(), model.len());
            check_summaries(&gaps);
            for _ in 0..3 {
                let fit = random_fit(&mut random);
                assert_eq!(gaps.first_fit(fit), naive_fit(&model, fit), "{fit:?}");
            }
        }
    }
}

#[test]
fn a_crowded_space_hands_out_its_holes_in_order() {
    let mut gaps = Gaps::new();
    let count = rounds(3000) as u64;
    gaps.try_reserve(2 * count as usize).unwrap();
    for page in 0..count {
        gaps.insert(span(page * 0x2000, page * 0x2000 + 0xfff))
            .unwrap();
    }
    let page = Fit {
        align_lg2: 12,
        ..anywhere(0xfff)
    };
    for number in 0..count {
        let place = gaps.first_fit(page).expect("a page is free");
        assert_eq!(place.start().get(), number * 0x2000 + 0x1000);
        gaps.insert(place).unwrap();
    }
    let place = gaps.first_fit(page).expect("the space goes on");
    assert_eq!(place.start().get(), count * 0x2000);
}
