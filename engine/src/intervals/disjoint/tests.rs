//! Disjoint intervals against a sorted vector.

use alloc::vec::Vec;

use super::super::random::{Random, rounds};
use super::*;

fn all(list: &DisjointList<u32>, start: u64, last: u64) -> Vec<(u64, u64, u32)> {
    let found = list.overlapping(start, last);
    found
        .map(|(start, last, &value)| (start, last, value))
        .collect()
}

fn check_shape(list: &DisjointList<u32>) {
    if let [only] = &list.chunks[..]
        && only.lasts.is_empty()
    {
        return;
    }
    let lasts = list.chunks.iter().map(|chunk| chunk.lasts.last().copied());
    assert!(list.lasts.iter().copied().map(Some).eq(lasts), "{list:?}");
    for chunk in &list.chunks {
        assert_eq!(chunk.lasts.len(), chunk.entries.len());
        assert!((1..=CAPACITY).contains(&chunk.lasts.len()), "{list:?}");
    }
}

#[test]
fn disjoint_intervals_agree_with_a_vector() {
    let mut random = Random::new(7);
    let mut list = DisjointList::new();
    let mut model: Vec<(u64, u64, u32)> = Vec::new();
    let (mut refused, mut moved, mut most) = (0, 0, 0);
    for value in 0..rounds(20_000) as u32 {
        let (start, last) = random.interval(400);
        let overlaps = |&&(low, high, _): &&(u64, u64, u32)| low <= last && start <= high;
        match random.below(4) {
            0..2 => {
                let last = last.min(start + random.below(5));
                let met = model
                    .iter()
                    .find(|&&(low, high, _)| low <= last && start <= high);
                let expected = met.map_or(Ok(()), |&(start, last, _)| {
                    Err(InsertError::Overlap { start, last })
                });
                refused += u32::from(met.is_some());
                assert_eq!(list.insert(start, last, value), expected);
                if expected.is_ok() {
                    model.push((start, last, value));
                    model.sort_unstable();
                }
            }
            2 => {
                let met = model.iter().find(overlaps).copied();
                let found = list.find(start, last);
                assert_eq!(
                    found.map(|at| (list.bounds(at), *list.get(at))),
                    met.map(|(start, last, value)| ((start, last), value))
                );
                if let Some((start, last, value)) = met.filter(|_| !random.one_in(3)) {
                    assert_eq!(list.find_exact(start, last), found);
                    assert_eq!(list.find_exact(start, last + 1), None);
                    let at = found.expect("it was found");
                    assert_eq!(list.remove(at), value);
                    model.retain(|&(_, _, other)| other != value);
                }
            }
            _ => {
                let place = model.iter().position(|entry| overlaps(&entry));
                let found = list.find(start, last);
                if let (Some(at), Some(place)) = (found, place) {
                    let above = model.get(place + 1).map_or(u64::MAX, |next| next.0 - 1);
                    let reach = model[place].1.saturating_add(random.below(3)).min(above);
                    let reach = if random.one_in(2) {
                        model[place].0
                    } else {
                        reach
                    };
                    list.set_last(at, reach);
                    *list.get_mut(at) = value;
                    model[place] = (model[place].0, reach, value);
                    moved += 1;
                }
            }
        }
        let expected: Vec<_> = model
            .iter()
            .filter(|&&(low, high, _)| low <= last && start <= high)
            .copied()
            .collect();
        assert_eq!(all(&list, start, last), expected, "{start:#x}..={last:#x}");
        check_shape(&list);
        most = most.max(list.chunks.len());
    }
    assert!(cfg!(miri) || refused > 1000 && moved > 1000 && most > 8);
}

#[test]
fn intervals_that_come_in_rising_order_fill_their_chunks() {
    let mut list = DisjointList::new();
    for start in 0..40 * CAPACITY as u64 {
        list.insert(2 * start, 2 * start, 0)
            .expect("nothing is there");
    }
    check_shape(&list);
    assert_eq!(list.chunks.len(), 40);
}

#[test]
fn disjoint_intervals_reach_the_ends_of_the_space() {
    let mut list = DisjointList::new();
    list.insert(u64::MAX, u64::MAX, 1).expect("it is empty");
    list.insert(0, 0, 2).expect("nothing is there");
    let met = InsertError::Overlap { start: 0, last: 0 };
    assert_eq!(list.insert(0, u64::MAX, 3), Err(met));
    list.insert(1, u64::MAX - 1, 4).expect("it lies between");
    assert_eq!(all(&list, 0, u64::MAX).len(), 3);
    let first = list.find(0, 0).expect("it was put in");
    let second = list.next(first).expect("there are three");
    assert_eq!(list.bounds(second), (1, u64::MAX - 1));
}
