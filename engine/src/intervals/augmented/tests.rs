//! The tree against a sorted vector, with every invariant checked.

use alloc::vec::Vec;

use super::super::random::{Random, rounds};
use super::*;

/// Notices every node: their number, and the sums of their bounds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Sums {
    count: usize,
    starts: u64,
    lasts: u64,
}

impl Summary for Sums {
    fn new(left: Option<Self>, key: Key, right: Option<Self>) -> Self {
        let mut sums = Self {
            count: 1,
            starts: key.start,
            lasts: key.last,
        };
        for child in [left, right].into_iter().flatten() {
            sums.count += child.count;
            sums.starts = sums.starts.wrapping_add(child.starts);
            sums.lasts = sums.lasts.wrapping_add(child.lasts);
        }
        sums
    }
}

const fn key(start: u64, last: u64) -> Key {
    Key { start, last }
}

/// Checks N2, N3 and the links of a subtree. Returns its height and its summary.
fn check_subtree(
    tree: &Tree<u32, Sums>,
    at: Option<Handle>,
    parent: Option<Handle>,
) -> (u8, Option<Sums>) {
    let Some(at) = at else { return (0, None) };
    let node = tree.node(at);
    assert_eq!(node.parent, parent);
    assert!(node.value.is_some());
    let (left_height, left) = check_subtree(tree, tree.child(at, Side::Left), Some(at));
    let (right_height, right) = check_subtree(tree, tree.child(at, Side::Right), Some(at));
    assert!(left_height.abs_diff(right_height) <= 1, "out of balance");
    assert_eq!(node.height, 1 + left_height.max(right_height));
    assert_eq!(node.summary, Sums::new(left, node.key, right));
    (node.height, Some(node.summary))
}

/// Checks all invariants, and that the tree holds just `expected`, in order.
fn check(tree: &Tree<u32, Sums>, expected: &[(Key, u32, Handle)]) {
    let (height, sums) = check_subtree(tree, tree.root(), None);
    assert_eq!(sums.map_or(0, |sums| sums.count), tree.len());
    let count = u32::try_from(tree.len()).expect("a test has few nodes");
    let bound = 1.45 * (f64::from(count) + 2.0).log2();
    assert!(f64::from(height) <= bound, "{height} above {bound}");

    let mut found = Vec::new();
    let mut next = tree.first();
    while let Some(at) = next {
        found.push((tree.key(at), *tree.value(at), at));
        next = tree.next(at);
    }
    assert_eq!(found, expected);
    assert_eq!(tree.last(), expected.last().map(|&(_, _, at)| at));

    let mut free_count = 0;
    let mut free = tree.free;
    while let Some(at) = free {
        assert!(tree.node(at).value.is_none());
        free_count += 1;
        free = tree.parent(at);
    }
    assert_eq!(free_count + tree.len(), tree.nodes.len());
}

/// Puts a node where the tree must have it: behind all whose keys are not above.
fn insert(tree: &mut Tree<u32, Sums>, model: &mut Vec<(Key, u32, Handle)>, key: Key, value: u32) {
    let at = tree.insert(key, value);
    let place = model.partition_point(|&(other, ..)| other <= key);
    model.insert(place, (key, value, at));
}

#[test]
fn the_tree_agrees_with_a_sorted_vector() {
    for (seed, most) in [(1, 4), (2, 30), (3, 400)] {
        let mut random = Random::new(seed);
        let (mut tree, mut model) = (Tree::new(), Vec::new());
        let mut is_growing = true;
        for round in 0..rounds(6000) {
            is_growing = match model.len() {
                0 => true,
                len if len == most => false,
                _ => is_growing,
            };
            if is_growing != random.one_in(4) || model.is_empty() {
                let (start, last) = random.interval(40);
                insert(&mut tree, &mut model, key(start, last), round as u32);
            } else {
                let (_, value, at) = model.remove(random.index(model.len()));
                assert_eq!(tree.remove(at), value);
            }
            check(&tree, &model);
            let (start, last) = random.interval(40);
            let wanted = key(start, last);
            let found = tree.partition_point(|other| other < wanted);
            let place = model.partition_point(|&(other, ..)| other < wanted);
            assert_eq!(found, model.get(place).map(|&(_, _, at)| at));
        }
    }
}

#[test]
fn sorted_insertions_leave_the_tree_flat() {
    let count = rounds(4000) as u64;
    for is_descending in [false, true] {
        let (mut tree, mut model) = (Tree::new(), Vec::new());
        for number in 0..count {
            let start = if is_descending {
                count - number
            } else {
                number
            };
            insert(&mut tree, &mut model, key(start, start), 0);
        }
        check(&tree, &model);
        // From one end only: every removal shifts the weight to the same side.
        for (_, _, at) in model.drain(..model.len() / 2) {
            tree.remove(at);
        }
        check(&tree, &model);
    }
}

#[test]
fn equal_keys_stand_as_they_were_inserted() {
    let (mut tree, mut model) = (Tree::new(), Vec::new());
    for value in 0..100 {
        insert(&mut tree, &mut model, key(u64::MAX, u64::MAX), value);
    }
    check(&tree, &model);
    let (.., middle) = model.remove(50);
    assert_eq!(tree.remove(middle), 50);
    check(&tree, &model);
}

#[test]
fn room_made_before_is_enough_and_is_used_again() {
    let mut tree: Tree<u32, Sums> = Tree::new();
    let mut handles = Vec::new();
    for number in 0..10 {
        handles.push(tree.insert(key(number, number), 0));
    }
    for at in handles.drain(..4) {
        tree.remove(at);
    }
    tree.try_reserve(50).unwrap();
    let capacity = tree.nodes.capacity();
    assert!(capacity >= 56);
    for number in 0..50 {
        handles.push(tree.insert(key(number, number), 0));
    }
    assert_eq!(tree.nodes.capacity(), capacity);
    assert_eq!(tree.nodes.len(), 56, "free slots come first");
    for at in handles {
        tree.remove(at);
    }
    assert_eq!((tree.nodes.capacity(), tree.len()), (capacity, 0));
    tree.try_reserve(56).unwrap();
    assert_eq!(tree.nodes.capacity(), capacity);
}

#[test]
fn room_beyond_the_slots_is_refused() {
    let mut tree: Tree<u32, Sums> = Tree::new();
    tree.insert(key(0, 0), 0);
    for count in [u32::MAX as usize, usize::MAX] {
        assert_eq!(tree.try_reserve(count), Err(OutOfNodes { count }));
    }
    assert_eq!(Handle::new(u32::MAX as usize), None);
    assert_eq!(Handle::new(usize::MAX), None);
    let highest = Handle::new(u32::MAX as usize - 1).unwrap();
    assert_eq!(highest.slot(), u32::MAX as usize - 1);
}

#[test]
#[should_panic(expected = "good for one removal")]
fn a_second_removal_is_noticed() {
    let mut tree: Tree<u32, Sums> = Tree::new();
    let at = tree.insert(key(0, 0), 0);
    tree.remove(at);
    tree.remove(at);
}
