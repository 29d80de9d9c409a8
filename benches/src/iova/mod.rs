//! Allocators of IOVA: what a pair of calls costs, and what becomes of them with age.

use std::hint::black_box;

use iopt::iova::{FreshIova, IovaConfig, IovaRequest, IovaSpace};
use iopt::mem::Heap;
use iopt::radix::Table;
use iopt_formats::vtd::SecondStage;
use iopt_formats::{Iova, IovaRange};

use crate::iova::magazines::Magazines;
use crate::trials::{Share, Spans, Summary, Trial, Trials, run};

mod aging;
mod magazines;

pub use crate::iova::aging::{Aged, MIXTURE_NAMES, Ratio, age, clock_times, fewest_tables};

/// What a pair may cost, in epoch pins.
pub const MAX_PINS: f64 = 3.5;

/// How much two threads have to do, as times the work of one.
pub const MIN_SPEED_UP: f64 = 1.8;

/// What 99.9 % of the calls of a long life may take, in nanoseconds.
pub const MAX_LATE_NS: f64 = 1000.0;

/// Leaf tables that a long life may use, as times the fewest.
pub const MAX_TABLES: f64 = 1.25;

/// Turns of the sides.
const TURN_COUNT: usize = 10;

/// Bytes of the smallest allocation.
const PAGE_LEN: u64 = 4096;

/// Bytes of the space.
const SPACE_LEN: u64 = 1 << 40;

/// Ranges that live in [`Pattern::Ring`].
const RING_LEN: usize = 256;

/// What is measured.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Name {
    /// A pin and an unpin of an epoch: the yardstick.
    Pin,
    /// The engine's space.
    Ours,
    /// Magazines in front of a tree.
    Magazines,
}

impl Name {
    /// Every side.
    pub const ALL: [Self; 3] = [Self::Pin, Self::Ours, Self::Magazines];

    /// Returns the name as text.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pin => "epoch",
            Self::Ours => "space",
            Self::Magazines => "magazines",
        }
    }
}

/// What a thread does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Pattern {
    /// Frees what it has just allocated.
    Pair,
    /// Frees the oldest of 256 that live.
    Ring,
}

impl Pattern {
    /// Every pattern.
    pub const ALL: [Self; 2] = [Self::Pair, Self::Ring];

    /// Returns the name as text.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pair => "pair",
            Self::Ring => "ring",
        }
    }
}

/// What each side cost with each number of threads.
#[derive(Debug)]
pub struct Costs(Vec<(Name, usize, Option<Summary>)>);

impl Costs {
    /// Returns the cost of a pair of calls, in nanoseconds of one of so many threads.
    pub fn get(&self, name: Name, thread_count: usize) -> Option<Summary> {
        let found = self
            .0
            .iter()
            .find(|cost| (cost.0, cost.1) == (name, thread_count));
        found?.2
    }

    /// Returns the best cost.
    pub fn best(&self, name: Name, thread_count: usize) -> Option<f64> {
        Some(self.get(name, thread_count)?.best)
    }
}

/// Returns a space that lives as long as the process.
fn new_space() -> &'static IovaSpace {
    let format = SecondStage::new(48).expect("48 bits");
    let table = Table::new(format, Heap).expect("there is memory");
    let start = Iova::new(PAGE_LEN);
    let aperture = IovaRange::new(start, Iova::new(SPACE_LEN - 1)).expect("it begins lower");
    let space = IovaSpace::new(&table, IovaConfig::new(aperture)).expect("nobody else claims it");
    Box::leak(Box::new(space))
}

/// Measures every side with each number of threads from 1 to one on each of `cpus`, in turns.
pub fn costs(pattern: Pattern, cpus: &[usize], trial_count: usize) -> Costs {
    let space = new_space();
    let magazines = Magazines::new(SPACE_LEN / PAGE_LEN, cpus.len());
    let run_on = |name, cpus: &[usize], share, trial_count| {
        run(cpus, trial_count, |index, trials| {
            one(name, pattern, space, &magazines, index, share, trials)
        })
    };
    let mut sides = Vec::new();
    for name in Name::ALL {
        let share = Share::calibrate(|share| run_on(name, &cpus[..1], share, 5));
        for thread_count in 1..=cpus.len() {
            sides.push((name, thread_count, share, Vec::<Trial>::new()));
        }
    }
    for _ in 0..TURN_COUNT {
        for (name, thread_count, share, trials) in &mut sides {
            let count = trial_count.div_ceil(TURN_COUNT);
            trials.extend(run_on(*name, &cpus[..*thread_count], *share, count));
        }
    }
    let summaries = sides.into_iter().map(|(name, thread_count, _, trials)| {
        let summary = Summary::of(&trials, |_| 1.0 / thread_count as f64);
        (name, thread_count, summary)
    });
    Costs(summaries.collect())
}

fn one(
    name: Name,
    pattern: Pattern,
    space: &'static IovaSpace,
    magazines: &Magazines,
    thread: usize,
    share: Share,
    trials: Trials<'_>,
) -> Spans {
    let alloc = || {
        let request = IovaRequest::new(black_box(PAGE_LEN));
        space.alloc(&request).expect("there is room")
    };
    let take = || magazines.take(thread, black_box(1)).expect("there is room");
    match (name, pattern) {
        (Name::Pin, _) => repeat(trials, share, || drop(black_box(crossbeam_epoch::pin()))),
        (Name::Ours, Pattern::Pair) => repeat(trials, share, || {
            let fresh = alloc();
            black_box(fresh.range().start());
            fresh.cancel();
        }),
        (Name::Ours, Pattern::Ring) => {
            let mut ring: Vec<FreshIova<'_>> = (0..RING_LEN).map(|_| alloc()).collect();
            let mut at = 0;
            repeat(trials, share, || {
                at = (at + 1) % RING_LEN;
                // Assigning drops the old one, which frees it.
                ring[at] = alloc();
            })
        }
        (Name::Magazines, Pattern::Pair) => repeat(trials, share, || {
            magazines.put(thread, black_box(take()), 1);
        }),
        (Name::Magazines, Pattern::Ring) => {
            let mut ring: Vec<u64> = (0..RING_LEN).map(|_| take()).collect();
            let mut at = 0;
            let spans = repeat(trials, share, || {
                at = (at + 1) % RING_LEN;
                let old = std::mem::replace(&mut ring[at], take());
                magazines.put(thread, old, 1);
            });
            for page in ring {
                magazines.put(thread, page, 1);
            }
            spans
        }
    }
}

/// Does `operation` for the trials of one thread.
#[inline(always)]
fn repeat(trials: Trials<'_>, share: Share, mut operation: impl FnMut()) -> Spans {
    trials.each(share, || {
        for _ in 0..share.piece_len {
            operation();
        }
    })
}

/// An allocator for [`age`].
trait Allocator: Sync {
    /// A range that lives.
    type Held: Send;

    fn take(&self, thread: usize, page_count: u64) -> Option<Self::Held>;

    fn put(&self, thread: usize, held: Self::Held);

    /// Returns first and number of pages.
    fn pages(held: &Self::Held) -> (u64, u64);

    /// Returns the number of open chunks, if there are such.
    fn open_chunk_count(&self) -> Option<usize>;
}

impl Allocator for &'static IovaSpace {
    type Held = FreshIova<'static>;

    fn take(&self, _thread: usize, page_count: u64) -> Option<Self::Held> {
        self.alloc(&IovaRequest::new(page_count * PAGE_LEN)).ok()
    }

    fn put(&self, _thread: usize, held: Self::Held) {
        held.cancel();
    }

    fn pages(held: &Self::Held) -> (u64, u64) {
        let range = held.range();
        let len = range.len_minus_one() + 1;
        (range.start().get() / PAGE_LEN, len / PAGE_LEN)
    }

    fn open_chunk_count(&self) -> Option<usize> {
        Some(self.statistics().open_chunk_count)
    }
}

impl Allocator for Magazines {
    type Held = (u64, u64);

    fn take(&self, thread: usize, page_count: u64) -> Option<(u64, u64)> {
        Some((Self::take(self, thread, page_count)?, page_count))
    }

    fn put(&self, thread: usize, (page, page_count): (u64, u64)) {
        Self::put(self, thread, page, page_count);
    }

    fn pages(held: &(u64, u64)) -> (u64, u64) {
        *held
    }

    fn open_chunk_count(&self) -> Option<usize> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_side_is_measured_in_every_pattern() {
        let cpus = crate::cpu::cores().unwrap();
        let space = new_space();
        let magazines = Magazines::new(1 << 20, cpus.len());
        for (name, pattern) in Name::ALL
            .into_iter()
            .flat_map(|name| Pattern::ALL.map(|pattern| (name, pattern)))
        {
            run(&cpus, 2, |index, trials| {
                one(
                    name,
                    pattern,
                    space,
                    &magazines,
                    index,
                    Share::new(300),
                    trials,
                )
            });
        }
        assert_eq!(space.statistics().used_len, 0);
    }
}
