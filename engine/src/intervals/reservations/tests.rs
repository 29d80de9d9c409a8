//! Reservations and allowed lists, against vectors of ranges.

use alloc::vec;

use super::super::random::{Random, rounds};
use super::*;

fn range(start: u64, last: u64) -> IovaRange {
    IovaRange::new(Iova::new(start), Iova::new(last)).expect("last is not below start")
}

fn ranges<O: Copy + Eq>(reservations: &Reservations<O>) -> Vec<IovaRange> {
    reservations.iova_ranges().collect()
}

const DEFAULT: IovaRange = match IovaRange::new(Iova::new(0x1000), Iova::new(u64::MAX - 0x1000)) {
    Some(range) => range,
    None => IovaRange::FULL,
};

fn windows<O: Copy + Eq>(reservations: &Reservations<O>) -> Vec<IovaRange> {
    reservations.windows(DEFAULT).collect()
}

#[test]
fn nothing_reserved_leaves_everything_open() {
    let reservations = Reservations::<u8>::new();
    assert_eq!(ranges(&reservations), [IovaRange::FULL]);
    assert_eq!(windows(&reservations), [DEFAULT]);
    assert_eq!(reservations.is_reserved(IovaRange::FULL), None);
}

#[test]
fn an_aperture_leaves_what_is_inside() {
    let mut reservations = Reservations::new();
    reservations.reserve(range(0, 0), 'a').unwrap();
    let top = range(1 << 48, u64::MAX);
    reservations.reserve(top, 'a').unwrap();
    assert_eq!(ranges(&reservations), [range(1, (1 << 48) - 1)]);
    assert_eq!(windows(&reservations), [range(0x1000, (1 << 48) - 1)]);
    assert_eq!(reservations.is_reserved(range(1, (1 << 48) - 1)), None);
    assert_eq!(reservations.is_reserved(range(1, 1 << 48)), Some(top));

    // All of it, in two parts by two owners.
    reservations
        .reserve(range(1, top.last().get()), 'b')
        .unwrap();
    assert_eq!(ranges(&reservations), []);
    assert_eq!(windows(&reservations), []);
    reservations.release('a');
    assert_eq!(ranges(&reservations), [range(0, 0)]);
    reservations.release('a');
    reservations.release('b');
    assert_eq!(ranges(&reservations), [IovaRange::FULL]);
}

#[test]
fn what_two_owners_reserved_stays_until_both_release_it() {
    let mut reservations = Reservations::new();
    let window = range(0xfee0_0000, 0xfeef_ffff);
    for owner in [1, 2, 2] {
        reservations.reserve(window, owner).unwrap();
    }
    let all = ranges(&reservations);
    assert_eq!(all, [range(0, 0xfedf_ffff), range(0xfef0_0000, u64::MAX)]);
    reservations.release(2);
    assert_eq!(ranges(&reservations), all);
    reservations.release(1);
    assert_eq!(ranges(&reservations), [IovaRange::FULL]);
}

#[test]
fn what_is_allowed_cannot_be_reserved() {
    let mut reservations = Reservations::new();
    let (low, high) = (range(0x1000, 0x1fff), range(0x8000, u64::MAX));
    reservations.set_allowed(&[high, low]).unwrap();
    for (start, last, with) in [
        (0, u64::MAX, low),
        (0x1fff, 0x1fff, low),
        (0x2000, 0x8000, high),
        (u64::MAX, u64::MAX, high),
    ] {
        let range = range(start, last);
        let error = reservations.reserve(range, 0).unwrap_err();
        assert_eq!(error, ReserveError::Allowed { range, with });
    }
    assert_eq!(ranges(&reservations), [IovaRange::FULL]);
    for (start, last) in [(0, 0xfff), (0x2000, 0x7fff)] {
        reservations.reserve(range(start, last), 0).unwrap();
    }
    assert_eq!(windows(&reservations), [low, high]);
    assert_eq!(ranges(&reservations), [low, high]);
}

#[test]
fn a_list_that_is_refused_changes_nothing() {
    let mut reservations = Reservations::new();
    let (reserved, old) = (range(0x4000, 0x4fff), range(0, 0xfff));
    reservations.reserve(reserved, 0).unwrap();
    reservations.set_allowed(&[old]).unwrap();
    let (byte, top_byte) = (range(7, 7), range(u64::MAX, u64::MAX));
    let (wide, met) = (range(0x2000, 0x3000), range(0x3000, 0x3001));
    let meets = range(0x4fff, 0x5000);
    for (list, expected) in [
        (vec![wide, byte], AllowError::OneByte { range: byte }),
        (vec![top_byte], AllowError::OneByte { range: top_byte }),
        (
            // The list itself comes first.
            vec![meets, met, wide],
            AllowError::Overlap {
                lower: wide,
                upper: met,
            },
        ),
        (
            vec![wide, wide],
            AllowError::Overlap {
                lower: wide,
                upper: wide,
            },
        ),
        (
            vec![meets, wide],
            AllowError::Reserved {
                range: meets,
                with: reserved,
            },
        ),
    ] {
        assert_eq!(reservations.set_allowed(&list), Err(expected));
        assert_eq!(windows(&reservations), [old]);
    }
    let new = [range(0x5000, u64::MAX), range(0, 0x3fff)];
    reservations.set_allowed(&new).unwrap();
    assert_eq!(windows(&reservations), [new[1], new[0]]);
}

#[test]
fn an_empty_list_allows_everything_again() {
    let mut reservations = Reservations::new();
    let window = range(0x8000, 0x8fff);
    reservations.set_allowed(&[window]).unwrap();
    reservations.set_allowed(&[]).unwrap();
    assert_eq!(windows(&reservations), [DEFAULT]);
    reservations.reserve(window, 0).unwrap();
    assert_eq!(
        windows(&reservations),
        [range(0x1000, 0x7fff), range(0x9000, DEFAULT.last().get())]
    );
}

#[test]
fn allowed_neighbours_are_one_window() {
    let mut reservations = Reservations::<()>::new();
    let list = [
        range(0x3000, 0x3fff),
        range(0x1000, 0x1fff),
        range(0x2000, 0x2fff),
        range(0x4001, 0x4fff),
        range(0x5000, u64::MAX),
    ];
    reservations.set_allowed(&list).unwrap();
    assert_eq!(
        windows(&reservations),
        [range(0x1000, 0x3fff), range(0x4001, u64::MAX)]
    );
}

/// What is left of a range without others, lowest first.
fn without(whole: IovaRange, others: &[(IovaRange, u8)]) -> Vec<IovaRange> {
    let mut left = vec![whole];
    for (other, _) in others {
        let cut = |part: IovaRange| {
            let below = other.start().get().checked_sub(1);
            let below = below.and_then(|last| IovaRange::new(part.start(), Iova::new(last)));
            let above = other.last().checked_add(1);
            let above = above.and_then(|start| IovaRange::new(start, part.last()));
            let sides = [below, above].into_iter().flatten();
            let sides: Vec<_> = sides.filter_map(|side| side.intersection(part)).collect();
            sides
        };
        left = left.into_iter().flat_map(cut).collect();
    }
    left
}

/// The merged list, or why it is refused.
fn allow(list: &[IovaRange], reserved: &[(IovaRange, u8)]) -> Option<Vec<IovaRange>> {
    let mut merged: Vec<IovaRange> = Vec::new();
    let mut sorted = list.to_vec();
    sorted.sort_by_key(|range| range.start());
    for range in sorted {
        let is_good = range.start() != range.last()
            && !merged.iter().any(|other| other.overlaps(range))
            && !reserved.iter().any(|(other, _)| other.overlaps(range));
        if !is_good {
            return None;
        }
        match merged.last_mut() {
            Some(lower) if lower.last().checked_add(1) == Some(range.start()) => {
                *lower = IovaRange::new(lower.start(), range.last())?;
            }
            _ => merged.push(range),
        }
    }
    Some(merged)
}

#[test]
fn reservations_agree_with_vectors() {
    let mut random = Random::new(41);
    let mut reservations = Reservations::new();
    let (mut reserved, mut allowed): (Vec<(IovaRange, u8)>, Vec<IovaRange>) = Default::default();
    let (mut lists_taken, mut refused) = (0, 0);
    let interval = |random: &mut Random, width| {
        let (start, last) = random.interval(width);
        range(start, last)
    };
    for _ in 0..rounds(10_000) {
        let owner = random.below(3) as u8;
        match random.below(8) {
            0..2 => {
                let new = interval(&mut random, 200);
                let with = allowed.iter().find(|allowed| allowed.overlaps(new));
                let with = with.copied();
                let expected = with.map_or(Ok(()), |with| {
                    Err(ReserveError::Allowed { range: new, with })
                });
                assert_eq!(reservations.reserve(new, owner), expected);
                if expected.is_ok() {
                    reserved.push((new, owner));
                } else {
                    refused += 1;
                }
            }
            2..4 => {
                reservations.release(owner);
                reserved.retain(|&(_, other)| other != owner);
            }
            _ => {
                let count = random.below(4);
                let list: Vec<_> = (0..count).map(|_| interval(&mut random, 200)).collect();
                let expected = allow(&list, &reserved);
                let found = reservations.set_allowed(&list);
                assert_eq!(found.is_ok(), expected.is_some(), "{list:?}: {found:?}");
                if let Some(expected) = expected {
                    lists_taken += usize::from(!expected.is_empty());
                    allowed = expected;
                }
            }
        }
        assert_eq!(ranges(&reservations), without(IovaRange::FULL, &reserved));
        let probe = interval(&mut random, 200);
        let met = reserved.iter().map(|&(range, _)| range);
        let met = met.filter(|range| range.overlaps(probe));
        let lowest = met.min_by_key(|range| (range.start(), range.last()));
        assert_eq!(reservations.is_reserved(probe), lowest);
        let found: Vec<_> = reservations.windows(probe).collect();
        if allowed.is_empty() {
            assert_eq!(found, without(probe, &reserved));
        } else {
            assert_eq!(found, allowed);
        }
    }
    let has_met_all = lists_taken > 100 && refused > 100;
    assert!(
        cfg!(miri) || has_met_all,
        "{lists_taken} lists, {refused} refused"
    );
}
