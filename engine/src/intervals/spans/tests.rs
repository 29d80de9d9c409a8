//! Spans against a map of single addresses.

use alloc::vec::Vec;

use super::super::random::{Random, rounds};
use super::*;

const fn span(start: u64, last: u64, is_covered: bool) -> Span {
    Span {
        start,
        last,
        is_covered,
    }
}

fn tree_of(intervals: &[(u64, u64)]) -> IntervalTree<()> {
    let mut tree = IntervalTree::new();
    for &(start, last) in intervals {
        tree.insert(start, last, ());
    }
    tree
}

fn spans_of(intervals: &[(u64, u64)], start: u64, last: u64) -> Vec<Span> {
    covered_spans(&tree_of(intervals), start, last).collect()
}

#[test]
fn an_empty_tree_covers_nothing() {
    assert_eq!(spans_of(&[], 0, u64::MAX), [span(0, u64::MAX, false)]);
    assert_eq!(spans_of(&[], 7, 7), [span(7, 7, false)]);
}

#[test]
fn a_range_that_ends_before_it_begins_has_no_spans() {
    let tree = tree_of(&[(0, u64::MAX)]);
    assert_eq!(covered_spans(&tree, 5, 4).next(), None);
}

#[test]
fn spans_reach_the_ends_of_the_space() {
    assert_eq!(
        spans_of(&[(0, 0), (u64::MAX, u64::MAX)], 0, u64::MAX),
        [
            span(0, 0, true),
            span(1, u64::MAX - 1, false),
            span(u64::MAX, u64::MAX, true),
        ]
    );
    assert_eq!(
        spans_of(&[(1, u64::MAX - 1)], 0, u64::MAX),
        [
            span(0, 0, false),
            span(1, u64::MAX - 1, true),
            span(u64::MAX, u64::MAX, false),
        ]
    );
    assert_eq!(
        spans_of(&[(0, u64::MAX), (3, u64::MAX)], 0, u64::MAX),
        [span(0, u64::MAX, true)]
    );
}

#[test]
fn neighbours_and_nested_intervals_make_one_span() {
    assert_eq!(
        spans_of(&[(8, 15), (16, 23), (10, 11), (25, 25)], 0, 30),
        [
            span(0, 7, false),
            span(8, 23, true),
            span(24, 24, false),
            span(25, 25, true),
            span(26, 30, false),
        ]
    );
    // Cut to the range.
    assert_eq!(spans_of(&[(8, 15), (16, 23)], 10, 20), [span(10, 20, true)]);
}

/// Divides a range by a mark of each address.
fn divide<M: Copy + PartialEq>(
    start: u64,
    last: u64,
    mark: impl Fn(u64) -> M,
) -> Vec<(u64, u64, M)> {
    let mut parts: Vec<(u64, u64, M)> = Vec::new();
    for address in start..=last {
        let here = mark(address);
        match parts.last_mut() {
            Some((_, last, before)) if *before == here => *last = address,
            _ => parts.push((address, address, here)),
        }
    }
    parts
}

fn random_intervals(random: &mut Random) -> Vec<(u64, u64)> {
    let count = random.below(12);
    (0..count).map(|_| random.interval(48)).collect()
}

#[test]
fn spans_agree_with_a_look_at_each_address() {
    let mut random = Random::new(21);
    for _ in 0..rounds(6000) {
        let a = random_intervals(&mut random);
        let covers = |intervals: &[(u64, u64)], address| {
            let mut intervals = intervals.iter();
            intervals.any(|&(start, last)| start <= address && address <= last)
        };
        let in_a = tree_of(&a);
        let (start, last) = random.interval(48);

        let expected: Vec<_> = divide(start, last, |address| covers(&a, address))
            .into_iter()
            .map(|(start, last, is_covered)| span(start, last, is_covered))
            .collect();
        let found: Vec<_> = covered_spans(&in_a, start, last).collect();
        assert_eq!(found, expected, "{a:x?}");
    }
}
