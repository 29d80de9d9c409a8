//! Claims of several threads, in every interleaving.
//!
//! A registry has two shards here, to which the stripes belong by turns: a claim over two stripes
//! stands in both. What a claim guards is modelled by relaxed loads and stores, which order
//! nothing by themselves.

use alloc::sync::Arc;

use loom::thread;

use super::*;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::model;

const STRIPE: u64 = 0x20_0000;

fn range(start: u64, last: u64) -> IovaRange {
    IovaRange::new(Iova::new(start), Iova::new(last)).expect("last is not below start")
}

/// Counts in two steps, between which no other holder may come.
fn work(guarded: &AtomicUsize) {
    let seen = guarded.load(Ordering::Relaxed);
    guarded.store(seen + 1, Ordering::Relaxed);
}

/// They overlap in one stripe and begin in different shards.
#[test]
fn of_two_claims_that_overlap_one_is_granted() {
    model(|| {
        let registry = Registry::new();
        let other = {
            let registry = registry.clone();
            thread::spawn(move || registry.claim(range(STRIPE, 3 * STRIPE - 1)))
        };
        let ours = registry.claim(range(0, 2 * STRIPE - 1));
        let theirs = other.join().unwrap();
        assert!(ours.is_ok() != theirs.is_ok(), "{ours:?} {theirs:?}");
    });
}

#[test]
fn of_two_claims_of_one_page_one_is_granted() {
    model(|| {
        let registry = Registry::new();
        let other = {
            let registry = registry.clone();
            thread::spawn(move || registry.claim(range(0, 0xfff)))
        };
        let ours = registry.claim(range(0, 0xfff));
        let theirs = other.join().unwrap();
        assert!(ours.is_ok() != theirs.is_ok(), "{ours:?} {theirs:?}");
    });
}

/// They stand in the same shards and share no address.
#[test]
fn claims_side_by_side_are_both_granted_divided_and_joined() {
    model(|| {
        let registry = Registry::new();
        let turn = |registry: &Registry, part: IovaRange, at: u64| {
            let claim = registry.claim(part).unwrap();
            let (lower, upper) = claim.split_at(Iova::new(at)).unwrap();
            assert_eq!(upper.join(lower).unwrap().range(), part);
        };
        let other = {
            let registry = registry.clone();
            thread::spawn(move || turn(&registry, range(STRIPE + 1, 3 * STRIPE), 2 * STRIPE))
        };
        turn(&registry, range(0, STRIPE), STRIPE);
        other.join().unwrap();
        drop(registry.claim(IovaRange::FULL).unwrap());
    });
}

/// The second claim is a part of the first, and one shard is all that they share.
#[test]
fn what_a_holder_did_is_seen_by_the_next() {
    model(|| {
        let registry = Registry::new();
        let guarded = Arc::new(AtomicUsize::new(0));
        let turn = |registry: &Registry, guarded: &AtomicUsize, part: IovaRange| {
            let claim = registry.claim(part);
            claim.map(|_claim| work(guarded)).is_ok()
        };
        let other = {
            let (registry, guarded) = (registry.clone(), Arc::clone(&guarded));
            thread::spawn(move || turn(&registry, &guarded, range(STRIPE, STRIPE)))
        };
        let first = turn(&registry, &guarded, range(0, 2 * STRIPE - 1));
        let again = turn(&registry, &guarded, range(0, 2 * STRIPE - 1));
        let theirs = other.join().unwrap();
        let count = [first, again, theirs]
            .into_iter()
            .filter(|&granted| granted);
        assert_eq!(guarded.load(Ordering::Relaxed), count.count());
        assert!(first || again || theirs);
        drop(registry.claim(IovaRange::FULL).unwrap());
    });
}

/// The parts end on threads of their own; who claims the whole comes after both.
#[test]
fn a_whole_is_granted_after_both_parts_ended() {
    model(|| {
        let registry = Registry::new();
        let guarded = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
        let whole = range(STRIPE, 3 * STRIPE - 1);
        let claim = registry.claim(whole).unwrap();
        let (lower, upper) = claim.split_at(Iova::new(2 * STRIPE)).unwrap();
        let ends = [lower, upper].into_iter().enumerate().map(|(index, part)| {
            let guarded = Arc::clone(&guarded);
            thread::spawn(move || {
                work(&guarded[index]);
                drop(part);
            })
        });
        let ends: Vec<_> = ends.collect();
        if let Ok(_claim) = registry.claim(whole) {
            for part in &*guarded {
                assert_eq!(part.load(Ordering::Relaxed), 1);
            }
        }
        for end in ends {
            end.join().unwrap();
        }
        drop(registry.claim(whole).unwrap());
    });
}

#[test]
fn nobody_gets_in_while_a_claim_is_divided() {
    model(|| {
        let registry = Registry::new();
        let claim = registry.claim(range(0, 2 * STRIPE - 1)).unwrap();
        let other = {
            let registry = registry.clone();
            thread::spawn(move || {
                registry.claim(range(STRIPE, 2 * STRIPE)).unwrap_err();
            })
        };
        let (lower, upper) = claim.split_at(Iova::new(STRIPE)).unwrap();
        drop(lower);
        other.join().unwrap();
        drop(upper);
    });
}

#[test]
fn nobody_gets_in_while_claims_are_joined() {
    model(|| {
        let registry = Registry::new();
        let lower = registry.claim(range(0, STRIPE - 1)).unwrap();
        let upper = registry.claim(range(STRIPE, 2 * STRIPE - 1)).unwrap();
        let other = {
            let registry = registry.clone();
            thread::spawn(move || {
                registry.claim(range(1, 1)).unwrap_err();
                registry.claim(range(STRIPE, STRIPE)).unwrap_err();
            })
        };
        let whole = lower.join(upper).unwrap();
        other.join().unwrap();
        drop(whole);
    });
}
