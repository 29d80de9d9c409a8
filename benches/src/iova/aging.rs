//! Operations without end, whose mixture changes, on two threads that free each other's ranges.

use std::collections::BTreeSet;
use std::mem;
use std::thread;
use std::time::Instant;

use crate::histogram::Histogram;
use crate::iova::magazines::Magazines;
use crate::iova::{Allocator, Name, PAGE_LEN, SPACE_LEN, new_space};
use crate::random::Random;

/// Threads.
const THREAD_COUNT: usize = 2;

/// Phases; as many as mixtures, a few times over.
const PHASE_COUNT: u64 = 20;

/// Pages of a chunk.
const CHUNK_PAGES: u64 = 512;

/// Sizes and how many bytes of them live, in pages.
#[derive(Clone, Copy, Debug)]
struct Mixture {
    live_count: usize,
    size: fn(&mut Random) -> u64,
}

const MIXTURES: [Mixture; 5] = [
    // Network buffers.
    Mixture {
        live_count: 4000,
        size: |random| 1 + random.bits() % 2,
    },
    // Disk requests up to 128 KiB, as many sizes as there are.
    Mixture {
        live_count: 1500,
        size: |random| 1 + random.bits() % 32,
    },
    // Disk requests up to 1 MiB.
    Mixture {
        live_count: 600,
        size: |random| 1 << (random.bits() % 9),
    },
    // Mostly pages, now and then some mebibytes.
    Mixture {
        live_count: 1000,
        size: |random| match random.bits() % 100 {
            0 => 512 + random.bits() % 2048,
            1..10 => 64 + random.bits() % 200,
            _ => 1,
        },
    },
    // Nearly idle.
    Mixture {
        live_count: 50,
        size: |random| 1 + random.bits() % 4,
    },
];

/// A figure at the end of each phase.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ratio {
    sum: f64,
    count: f64,
    /// The largest one.
    pub max: f64,
}

impl Ratio {
    fn add(&mut self, value: f64) {
        self.sum += value;
        self.count += 1.0;
        self.max = self.max.max(value);
    }

    /// Returns the mean, or 0.
    pub fn mean(&self) -> f64 {
        self.sum / self.count.max(1.0)
    }
}

/// What a long life showed.
#[derive(Debug)]
pub struct Aged {
    /// Of calls, in nanoseconds, with what the clock itself takes.
    pub times: Histogram,
    /// Leaf tables that live ranges touch, by the fewest that could hold them.
    pub tables: Ratio,
    /// Chunks whose pages are given out one by one, by the same.
    pub chunks: Option<Ratio>,
    /// Calls that got nothing.
    pub refused_count: u64,
}

/// Lets an allocator do so many operations.
///
/// # Panics
///
/// Panics for the yardstick, which allocates nothing.
pub fn age(name: Name, operation_count: u64) -> Aged {
    match name {
        Name::Ours => age_of(&new_space(), operation_count),
        Name::Magazines => {
            let magazines = Magazines::new(SPACE_LEN / PAGE_LEN, THREAD_COUNT);
            age_of(&magazines, operation_count)
        }
        Name::Pin => panic!("an epoch gives out no addresses"),
    }
}

/// One thread's part.
struct Life<H> {
    random: Random,
    live: Vec<H>,
    times: Histogram,
    refused_count: u64,
}

impl<H> Life<H> {
    fn timed<R>(&mut self, call: impl FnOnce() -> R) -> R {
        let start = Instant::now();
        let result = call();
        let ns = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.times.add(ns);
        result
    }

    fn go_through<A: Allocator<Held = H>>(
        &mut self,
        allocator: &A,
        thread: usize,
        mixture: Mixture,
        operation_count: u64,
    ) {
        for _ in 0..operation_count {
            // Towards the number that is to live, and up and down around it.
            let bits = self.random.bits();
            let is_full = self.live.len() > mixture.live_count;
            let frees = !self.live.is_empty() && bits % 8 < if is_full { 6 } else { 3 };
            if frees {
                // Old and young ones, those of the other thread included.
                let index = (bits >> 32) as usize % self.live.len();
                let held = self.live.swap_remove(index);
                self.timed(|| allocator.put(thread, held));
            } else {
                let page_count = (mixture.size)(&mut self.random);
                match self.timed(|| allocator.take(thread, page_count)) {
                    Some(held) => self.live.push(held),
                    None => self.refused_count += 1,
                }
            }
        }
    }
}

fn age_of<A: Allocator>(allocator: &A, operation_count: u64) -> Aged {
    let mut lives: Vec<Life<A::Held>> = (0..THREAD_COUNT)
        .map(|thread| Life {
            random: Random::new(1 + thread as u64),
            live: Vec::new(),
            times: Histogram::default(),
            refused_count: 0,
        })
        .collect();
    let mut tables = Ratio::default();
    let mut chunks = Ratio::default();
    for phase in 0..PHASE_COUNT {
        let mixture = MIXTURES[phase as usize % MIXTURES.len()];
        let count = operation_count / PHASE_COUNT / THREAD_COUNT as u64;
        thread::scope(|scope| {
            for (thread, life) in lives.iter_mut().enumerate() {
                scope.spawn(move || life.go_through(allocator, thread, mixture, count));
            }
        });
        let live = || lives.iter().flat_map(|life| life.live.iter().map(A::pages));
        let page_count: u64 = live().map(|(_, count)| count).sum();
        let fewest = page_count.div_ceil(CHUNK_PAGES).max(1) as f64;
        let touched =
            live().flat_map(|(page, count)| page / CHUNK_PAGES..=(page + count - 1) / CHUNK_PAGES);
        tables.add(touched.collect::<BTreeSet<_>>().len() as f64 / fewest);
        if let Some(count) = allocator.open_chunk_count() {
            chunks.add(count as f64 / fewest);
        }
        // Each thread goes on with what the other one allocated.
        let mut passed = Vec::new();
        for life in &mut lives {
            mem::swap(&mut passed, &mut life.live);
        }
        lives[0].live = passed;
    }
    let mut times = Histogram::default();
    let mut refused_count = 0;
    for life in lives {
        times.merge(&life.times);
        refused_count += life.refused_count;
        for held in life.live {
            allocator.put(0, held);
        }
    }
    Aged {
        times,
        tables,
        chunks: allocator.open_chunk_count().map(|_| chunks),
        refused_count,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_allocators_grow_old() {
        for name in [Name::Ours, Name::Magazines] {
            let aged = age(name, 20_000);
            assert_eq!(aged.times.count(), 20_000);
            assert_eq!(aged.refused_count, 0);
            assert!(aged.tables.mean() >= 1.0 && aged.tables.max >= aged.tables.mean());
        }
    }
}
