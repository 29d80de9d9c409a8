//! Claims taken, divided, joined, dropped and forgotten at random, compared with a plain list; and
//! by many threads at once.
//!
//! Without `PROPTEST_CASES` the cases are the same on every run.

use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use iopt::claim::{Claim, ClaimError, JoinError, Registry, SplitError};
use iopt_formats::{Iova, IovaRange};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

const PAGE: u64 = 0x1000;
const STRIPE: u64 = 0x20_0000;
/// Operations of one case at most.
const OP_LIMIT: usize = if cfg!(miri) { 6 } else { 60 };
/// Cases of one space.
const CASE_COUNT: u32 = if cfg!(miri) { 1 } else { 256 };

fn range(start: u64, last: u64) -> IovaRange {
    IovaRange::new(Iova::new(start), Iova::new(last)).expect("last is not below start")
}

#[derive(Clone, Debug)]
enum Op {
    /// Claims what lies between two addresses.
    Claim(u64, u64),
    /// Divides a claim at the address.
    Split(Index, u64),
    /// Divides a claim where that is possible: the number of bytes, modulo its length.
    Halve(Index, u64),
    /// Joins two claims, whichever they are.
    Join(Index, Index),
    /// Joins a claim and its upper neighbour.
    Mend(Index),
    Drop(Index),
    Forget(Index),
}

fn op(address: impl Strategy<Value = u64> + Clone) -> impl Strategy<Value = Op> {
    let which = any::<Index>;
    prop_oneof![
        6 => (address.clone(), address.clone()).prop_map(|(a, b)| Op::Claim(a.min(b), a.max(b))),
        2 => (which(), address.clone()).prop_map(|(claim, at)| Op::Split(claim, at)),
        3 => (which(), any::<u64>()).prop_map(|(claim, at)| Op::Halve(claim, at)),
        1 => (which(), which()).prop_map(|(first, second)| Op::Join(first, second)),
        4 => which().prop_map(Op::Mend),
        3 => which().prop_map(Op::Drop),
        1 => which().prop_map(Op::Forget),
    ]
}

/// Pages around the borders of some stripes.
fn near() -> impl Strategy<Value = u64> + Clone {
    let border = (0..24_u64).prop_map(|stripe| (stripe + 1) * STRIPE);
    let offset = prop_oneof![Just(0), Just(PAGE), Just(STRIPE - PAGE), Just(STRIPE - 1)];
    (border, offset).prop_map(|(border, offset)| border + offset - PAGE)
}

/// The ends of the space and powers of two between them, and what lies beside these.
fn far() -> impl Strategy<Value = u64> + Clone {
    let border = prop_oneof![
        Just(0),
        Just(u64::MAX),
        (0..64).prop_map(|bit| 1_u64 << bit)
    ];
    let offset = prop_oneof![Just(0), Just(1), Just(u64::MAX), Just(STRIPE)];
    (border, offset).prop_map(|(border, offset): (u64, u64)| border.wrapping_add(offset))
}

/// The registry and what should be claimed.
struct Pair {
    registry: Registry,
    claims: Vec<Claim>,
    /// Ranges of `claims`, in their order.
    live: Vec<IovaRange>,
    forgotten: Vec<IovaRange>,
    /// Claims kept instead of being forgotten, where a leak is an error.
    kept: Vec<Claim>,
}

impl Pair {
    fn new() -> Self {
        Self {
            registry: Registry::new(),
            claims: Vec::new(),
            live: Vec::new(),
            forgotten: Vec::new(),
            kept: Vec::new(),
        }
    }

    fn push(&mut self, claim: Claim) {
        self.live.push(claim.range());
        self.claims.push(claim);
    }

    fn take(&mut self, index: usize) -> Claim {
        self.live.swap_remove(index);
        self.claims.swap_remove(index)
    }

    /// Returns the lowest claimed range that overlaps `range`.
    fn overlap(&self, range: IovaRange) -> Option<IovaRange> {
        let held = self.live.iter().chain(&self.forgotten).copied();
        let overlapping = held.filter(|held| held.overlaps(range));
        overlapping.min_by_key(|held| held.start())
    }

    fn claim(&mut self, range: IovaRange) -> Result<(), TestCaseError> {
        let expected = self.overlap(range);
        match self.registry.claim(range) {
            Ok(claim) => {
                prop_assert_eq!(expected, None);
                prop_assert_eq!(claim.range(), range);
                self.push(claim);
            }
            Err(error) => {
                let with = expected.expect("a range that is free is granted");
                prop_assert_eq!(error, ClaimError::Overlap { range, with });
            }
        }
        Ok(())
    }

    fn split(&mut self, index: usize, at: u64) -> Result<(), TestCaseError> {
        let claim = self.take(index);
        let (whole, at) = (claim.range(), Iova::new(at));
        let fits = whole.contains_addr(at) && at != whole.start();
        match claim.split_at(at) {
            Ok((lower, upper)) => {
                prop_assert!(fits, "{} at {}", whole, at);
                prop_assert_eq!(
                    (lower.range().start(), upper.range().start()),
                    (whole.start(), at)
                );
                prop_assert_eq!(lower.range().last().get() + 1, at.get());
                prop_assert_eq!(upper.range().last(), whole.last());
                self.push(lower);
                self.push(upper);
            }
            Err(error) => {
                prop_assert!(!fits, "{}", error);
                let is_named = matches!(&error, SplitError::Outside { iova, .. } if *iova == at);
                prop_assert!(is_named);
                let claim = error.into_claim();
                prop_assert_eq!(claim.range(), whole);
                self.push(claim);
            }
        }
        Ok(())
    }

    fn join(&mut self, first: usize, second: usize) -> Result<(), TestCaseError> {
        // Taking the higher index first leaves the lower one in its place.
        let (high, low) = (first.max(second), first.min(second));
        let (high, low) = (self.take(high), self.take(low));
        let (a, b) = if first < second {
            (low, high)
        } else {
            (high, low)
        };
        let ranges = (a.range(), b.range());
        let [lower, upper] = if ranges.0.start() < ranges.1.start() {
            [ranges.0, ranges.1]
        } else {
            [ranges.1, ranges.0]
        };
        let fits = lower.last().get().checked_add(1) == Some(upper.start().get());
        match a.join(b) {
            Ok(union) => {
                prop_assert!(fits, "{} and {}", lower, upper);
                prop_assert_eq!(
                    union.range(),
                    range(lower.start().get(), upper.last().get())
                );
                self.push(union);
            }
            Err(error) => {
                prop_assert!(!fits, "{}", error);
                let is_apart = matches!(error, JoinError::Apart { .. });
                prop_assert!(is_apart);
                let (a, b) = error.into_claims();
                prop_assert_eq!((a.range(), b.range()), ranges);
                self.push(a);
                self.push(b);
            }
        }
        Ok(())
    }

    fn apply(&mut self, op: &Op) -> Result<(), TestCaseError> {
        let count = self.claims.len();
        match *op {
            Op::Claim(start, last) => return self.claim(range(start, last)),
            _ if count == 0 => {}
            Op::Split(claim, at) => return self.split(claim.index(count), at),
            Op::Halve(claim, offset) => {
                let index = claim.index(count);
                let whole = self.live[index];
                let len = whole.len().unwrap_or(u64::MAX);
                return self.split(index, whole.start().get() + offset % len);
            }
            Op::Join(first, second) => {
                let (first, second) = (first.index(count), second.index(count));
                if first != second {
                    return self.join(first, second);
                }
            }
            Op::Mend(claim) => {
                let index = claim.index(count);
                let next = self.live[index].last().checked_add(1);
                let neighbour = self.live.iter().position(|live| Some(live.start()) == next);
                if let Some(neighbour) = neighbour {
                    return self.join(index, neighbour);
                }
            }
            Op::Drop(claim) => drop(self.take(claim.index(count))),
            Op::Forget(claim) => {
                let claim = self.take(claim.index(count));
                self.forgotten.push(claim.range());
                if cfg!(miri) {
                    self.kept.push(claim);
                } else {
                    mem::forget(claim);
                }
            }
        }
        Ok(())
    }

    /// Compares every claim, and whether the addresses at the corners of all can be claimed.
    fn compare(&self) -> Result<(), TestCaseError> {
        let ranges: Vec<_> = self.claims.iter().map(Claim::range).collect();
        prop_assert_eq!(&ranges, &self.live);
        let held: Vec<_> = ranges.into_iter().chain(self.forgotten.clone()).collect();
        for (index, one) in held.iter().enumerate() {
            let overlapping = held[index + 1..].iter().find(|other| other.overlaps(*one));
            prop_assert_eq!(overlapping, None, "{}", one);
            let (start, last) = (one.start().get(), one.last().get());
            let middle = start + (last - start) / 2;
            for iova in [
                start.saturating_sub(1),
                start,
                middle,
                last,
                last.saturating_add(1),
            ] {
                let byte = range(iova, iova);
                let refused = self.registry.claim(byte).err();
                let with = self.overlap(byte);
                let expected = with.map(|with| ClaimError::Overlap { range: byte, with });
                prop_assert_eq!(refused, expected);
            }
        }
        let shown = format!("Registry {{ claim_count: {}, .. }}", held.len());
        prop_assert_eq!(format!("{:?}", self.registry), shown);
        Ok(())
    }

    /// Drops what is left; then all can be claimed but what was forgotten.
    fn end(mut self) -> Result<(), TestCaseError> {
        self.claims.clear();
        self.forgotten.sort_by_key(|range| range.start());
        let mut free = Some(0);
        let mut gaps = Vec::new();
        for held in &self.forgotten {
            gaps.extend(free.and_then(|free| {
                let below = Iova::new(held.start().get().checked_sub(1)?);
                IovaRange::new(Iova::new(free), below)
            }));
            free = held.last().get().checked_add(1);
        }
        gaps.extend(free.map(|free| range(free, u64::MAX)));
        let claims: Result<Vec<_>, _> = gaps.iter().map(|gap| self.registry.claim(*gap)).collect();
        prop_assert!(claims.is_ok(), "{:?}", claims);
        Ok(())
    }
}

fn agree(address: impl Strategy<Value = u64> + Clone) {
    let config = Config {
        failure_persistence: None,
        ..Config::default()
    };
    let mut runner = if std::env::var_os("PROPTEST_CASES").is_some() {
        TestRunner::new(config)
    } else {
        let config = Config {
            cases: CASE_COUNT,
            ..config
        };
        TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
    };
    let ops = proptest::collection::vec(op(address), 1..OP_LIMIT);
    let outcome = runner.run(&ops, |ops| {
        let mut pair = Pair::new();
        for op in &ops {
            pair.apply(op)?;
            pair.compare()?;
        }
        pair.end()
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}

#[test]
fn claims_of_neighbouring_stripes_agree_with_a_list() {
    agree(near());
}

#[test]
fn claims_all_over_the_space_agree_with_a_list() {
    agree(far());
}

#[test]
fn a_panic_ends_the_claims_in_its_way() {
    let registry = Registry::new();
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| {
        let claim = registry.claim(IovaRange::FULL).expect("nothing is claimed");
        let _parts = claim.split_at(Iova::new(STRIPE)).expect("it lies inside");
        panic::resume_unwind(Box::new(()));
    }));
    outcome.expect_err("it panics");
    drop(registry.claim(IovaRange::FULL).expect("all ended"));
}

/// Numbers that look random (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// Each byte is counted up by who claims it, with a load and a store that order nothing. Two
/// holders at once, or one who does not see what the last one did, lose a count.
#[test]
fn threads_that_claim_at_random_exclude_each_other() {
    const THREADS: u64 = 4;
    const TURNS: u64 = if cfg!(miri) { 8 } else { 20_000 };
    /// Bytes that are counted, half a stripe apart: as many stripes as no range may stand in a
    /// few shards only.
    const BYTES: u64 = 40;
    let registry = Registry::new();
    let counts: Vec<_> = (0..BYTES).map(|_| AtomicU64::new(0)).collect();
    let first_byte = |claim: &Claim| claim.range().start().get().div_ceil(STRIPE / 2);
    let count_up = |claim: &Claim| {
        let bytes = first_byte(claim)..=claim.range().last().get() / (STRIPE / 2);
        for byte in bytes.clone() {
            let count = &counts[byte as usize];
            count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
        bytes.count() as u64
    };
    let start = Barrier::new(THREADS as usize);
    let run = |seed: u64| {
        let mut random = Random(seed);
        let (mut granted, mut counted) = (0, 0);
        start.wait();
        for _ in 0..TURNS {
            let width = if random.below(4) == 0 { BYTES } else { 4 };
            let first = random.below(BYTES);
            let last = (first + random.below(width)).min(BYTES - 1);
            let whole = range(first * STRIPE / 2, last * STRIPE / 2);
            let Ok(claim) = registry.claim(whole) else {
                continue;
            };
            granted += 1;
            counted += count_up(&claim);
            let middle = first + random.below(last - first + 1);
            match claim.split_at(Iova::new(middle * STRIPE / 2)) {
                Ok((lower, upper)) => {
                    counted += count_up(&lower);
                    if random.below(2) == 0 {
                        drop(lower);
                        counted += count_up(&upper);
                    } else {
                        let claim = upper.join(lower).expect("they are the parts of one");
                        counted += count_up(&claim);
                    }
                }
                Err(error) => counted += count_up(&error.into_claim()),
            }
        }
        (granted, counted)
    };
    let (granted, counted) = thread::scope(|scope| {
        let run = &run;
        let threads: Vec<_> = (1..=THREADS)
            .map(|seed| scope.spawn(move || run(seed)))
            .collect();
        let results = threads
            .into_iter()
            .map(|thread| thread.join().expect("no thread panics"));
        results.fold((0, 0), |sum, result| (sum.0 + result.0, sum.1 + result.1))
    });
    let found: u64 = counts
        .iter()
        .map(|count| count.load(Ordering::Relaxed))
        .sum();
    assert_eq!(found, counted);
    assert!(granted > 0);
    drop(registry.claim(IovaRange::FULL).expect("all ended"));
}
