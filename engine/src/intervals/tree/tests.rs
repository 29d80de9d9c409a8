//! Overlapping intervals against a vector of them.

use alloc::vec::Vec;

use super::super::random::{Random, rounds};
use super::*;

type Model = Vec<(u64, u64, Handle, u32)>;

fn overlapping<V>(tree: &IntervalTree<V>, start: u64, last: u64) -> Vec<Handle> {
    tree.overlapping(start, last).map(|(at, ..)| at).collect()
}

fn check(tree: &mut IntervalTree<u32>, model: &Model, random: &mut Random) {
    assert_eq!(tree.len(), model.len());
    let (start, last) = random.interval(60);
    let expected: Vec<_> = model
        .iter()
        .filter(|&&(low, high, ..)| low <= last && start <= high)
        .map(|&(low, high, at, _)| (at, low, high))
        .collect();
    let found: Vec<_> = tree.overlapping(start, last).collect();
    assert_eq!(found, expected, "{start:#x}..={last:#x}");
    if !model.is_empty() {
        let (low, high, at, value) = model[random.index(model.len())];
        assert_eq!(tree.bounds(at), (low, high));
        assert_eq!((*tree.get(at), *tree.get_mut(at)), (value, value));
    }
}

#[test]
fn the_tree_agrees_with_a_vector() {
    for (seed, most) in [(11, 5), (12, 40), (13, 150)] {
        let mut random = Random::new(seed);
        let (mut tree, mut model) = (IntervalTree::new(), Model::new());
        let mut is_growing = true;
        for round in 0..rounds(8000) as u32 {
            is_growing = match model.len() {
                0 => true,
                len if len == most => false,
                _ => is_growing,
            };
            if is_growing != random.one_in(4) || model.is_empty() {
                let (start, last) = random.interval(60);
                let at = tree.insert(start, last, round);
                let key = (start, last);
                let place = model.partition_point(|other| (other.0, other.1) <= key);
                model.insert(place, (start, last, at, round));
            } else if random.one_in(200) {
                let keeps = |value: u32| !value.is_multiple_of(3);
                tree.retain(|&value| keeps(value));
                model.retain(|&(.., value)| keeps(value));
            } else {
                let (_, _, at, value) = model.remove(random.index(model.len()));
                assert_eq!(tree.remove(at), value);
            }
            check(&mut tree, &model, &mut random);
        }
    }
}

#[test]
fn ends_of_the_space_are_addresses_like_others() {
    let mut tree = IntervalTree::new();
    assert!(overlapping(&tree, 0, u64::MAX).is_empty());
    let low = tree.insert(0, 0, ());
    let high = tree.insert(u64::MAX, u64::MAX, ());
    assert_eq!(overlapping(&tree, 0, 0), [low]);
    assert_eq!(overlapping(&tree, u64::MAX, u64::MAX), [high]);
    assert_eq!(overlapping(&tree, 1, u64::MAX - 1), []);
    assert_eq!(overlapping(&tree, 0, u64::MAX), [low, high]);

    let rest = tree.insert(1, u64::MAX - 1, ());
    tree.remove(rest);
    let all = tree.insert(0, u64::MAX, ());
    assert_eq!(overlapping(&tree, 5, 5), [all]);
    // By start, then by last.
    assert_eq!(overlapping(&tree, 0, u64::MAX), [low, all, high]);
}

#[test]
fn duplicates_are_intervals_of_their_own() {
    let mut tree = IntervalTree::new();
    tree.try_reserve(3).unwrap();
    let handles = [1, 2, 3].map(|value| tree.insert(8, 15, value));
    assert_eq!(overlapping(&tree, 15, 20), handles);
    assert_eq!(tree.remove(handles[0]), 1);
    *tree.get_mut(handles[2]) += 1;
    assert_eq!(*tree.get(handles[2]), 4);
}

#[test]
fn a_long_interval_far_below_is_found() {
    let mut tree = IntervalTree::new();
    let long = tree.insert(1, 1 << 40, ());
    for start in 2..2 + rounds(998) as u64 {
        tree.insert(start * 16, start * 16 + 3, ());
    }
    assert_eq!(overlapping(&tree, 1 << 30, 1 << 31), [long]);
    assert_eq!(overlapping(&tree, 500 * 16 + 4, 500 * 16 + 8), [long]);
}
