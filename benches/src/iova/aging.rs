//! Operations without end, whose mixture changes, on two threads that free each other's ranges.

use std::collections::BTreeSet;
use std::mem;
use std::thread;
use std::time::Instant;

use crate::cpu;
use crate::histogram::Histogram;
use crate::iova::magazines::Magazines;
use crate::iova::{Allocator, Name, PAGE_LEN, SPACE_LEN, new_space};
use crate::random::Random;

/// Threads.
const THREAD_COUNT: usize = 2;

/// Pages of a chunk.
const CHUNK_PAGES: u64 = 512;

/// Sizes and how many bytes of them live, in pages.
#[derive(Clone, Copy, Debug)]
struct Mixture {
    live_count: usize,
    size: fn(&mut Random) -> u64,
}

/// What the phases are made of, in this order.
pub const MIXTURE_NAMES: [&str; MIXTURES.len()] =
    ["buffers", "requests", "large", "mebibytes", "idle"];

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

/// How much was used at the end of each phase, and the least that it could have been.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ratio {
    used: u64,
    least: u64,
    sum: f64,
    count: u64,
    /// The largest ratio.
    pub max: f64,
}

impl Ratio {
    fn add(&mut self, used: u64, least: u64) {
        let ratio = used as f64 / least.max(1) as f64;
        self.used += used;
        self.least += least.max(1);
        self.sum += ratio;
        self.count += 1;
        self.max = self.max.max(ratio);
    }

    fn merge(&mut self, other: &Self) {
        self.used += other.used;
        self.least += other.least;
        self.sum += other.sum;
        self.count += other.count;
        self.max = self.max.max(other.max);
    }

    /// Returns the sum of all that was used, by the sum of the least, or 0.
    pub fn overall(&self) -> f64 {
        self.used as f64 / self.least.max(1) as f64
    }

    /// Returns the mean of the ratios of all phases, or 0.
    pub fn mean(&self) -> f64 {
        self.sum / self.count.max(1) as f64
    }
}

/// What a long life showed, of all phases or those of one mixture.
#[derive(Clone, Debug, Default)]
pub struct Aged {
    /// Of calls that allocate, in nanoseconds, with what the clock itself takes.
    pub takes: Histogram,
    /// Of calls that free, likewise.
    pub puts: Histogram,
    /// Leaf tables that live ranges touch, by the [fewest](fewest_tables) that could hold them.
    pub tables: Ratio,
    /// The same, by as many as have room for the bytes, whatever their alignment.
    pub tables_by_bytes: Ratio,
    /// Chunks whose pages are given out one by one, by the fewest tables.
    pub chunks: Ratio,
    /// Calls that got nothing.
    pub refused_count: u64,
}

impl Aged {
    fn merge(&mut self, other: &Self) {
        self.takes.merge(&other.takes);
        self.puts.merge(&other.puts);
        self.tables.merge(&other.tables);
        self.tables_by_bytes.merge(&other.tables_by_bytes);
        self.chunks.merge(&other.chunks);
        self.refused_count += other.refused_count;
    }

    /// Returns what 99.9 % of all calls took at most, in nanoseconds.
    pub fn late_ns(&self) -> f64 {
        self.times().quantile(0.999) as f64
    }

    /// Returns the times of all calls.
    pub fn times(&self) -> Histogram {
        let mut times = self.takes.clone();
        times.merge(&self.puts);
        times
    }
}

/// Returns what nothing takes, timed as calls are.
pub fn clock_times() -> Histogram {
    let mut times = Histogram::default();
    for _ in 0..1_000_000 {
        timed(&mut times, || ());
    }
    times
}

#[inline(always)]
fn timed<R>(times: &mut Histogram, call: impl FnOnce() -> R) -> R {
    let start = Instant::now();
    let result = call();
    let ns = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
    times.add(ns);
    result
}

/// Returns the fewest leaf tables that could hold ranges of so many pages if all were placed anew, each
/// at a multiple of its length, rounded up to a power of two, as drivers are promised.
///
/// This is exact. A range of `n` pages touches `n / 2^j`, rounded up, of the parts of `2^j` pages at
/// multiples of that; no two ranges of at least that alignment share one of them. So there are at least as
/// many parts as all those ranges touch, for every `j`. And as many are enough: who places the ranges of
/// the largest alignment first always finds a whole part for the next one.
pub fn fewest_tables(page_counts: &[u64]) -> u64 {
    let pages_of = |lg2: u32| {
        let is_aligned = |count: &&u64| count.next_power_of_two() >> lg2 != 0;
        let aligned = page_counts.iter().filter(is_aligned);
        aligned
            .map(|count| count.next_multiple_of(1 << lg2))
            .sum::<u64>()
    };
    let tables = (0..=CHUNK_PAGES.ilog2()).map(|lg2| pages_of(lg2).div_ceil(CHUNK_PAGES));
    tables.max().unwrap_or(0)
}

/// Lets an allocator do so many operations, and returns what showed in the phases of each mixture, and in
/// all of them. Each thread stays on one of `cpus`, if they are enough.
///
/// # Panics
///
/// Panics for the yardstick, which allocates nothing, and if the process must not use one of `cpus`.
pub fn age(name: Name, operation_count: u64, cpus: &[usize]) -> (Vec<Aged>, Aged) {
    let by_mixture = match name {
        Name::Ours => age_of(&new_space(), operation_count, cpus),
        Name::Magazines => {
            let magazines = Magazines::new(SPACE_LEN / PAGE_LEN, THREAD_COUNT);
            age_of(&magazines, operation_count, cpus)
        }
        Name::Pin => panic!("an epoch gives out no addresses"),
    };
    let mut all = Aged::default();
    for aged in &by_mixture {
        all.merge(aged);
    }
    (by_mixture, all)
}

/// One thread's part.
struct Life<H> {
    random: Random,
    live: Vec<H>,
    aged: Vec<Aged>,
}

impl<H> Life<H> {
    fn go_through<A: Allocator<Held = H>>(
        &mut self,
        allocator: &A,
        thread: usize,
        mixture_index: usize,
        operation_count: u64,
    ) {
        let mixture = MIXTURES[mixture_index];
        let aged = &mut self.aged[mixture_index];
        for _ in 0..operation_count {
            // Towards the number that is to live, and up and down around it.
            let bits = self.random.bits();
            let is_full = self.live.len() > mixture.live_count;
            let frees = !self.live.is_empty() && bits % 8 < if is_full { 6 } else { 3 };
            if frees {
                // Old and young ones, those of the other thread included.
                let index = (bits >> 32) as usize % self.live.len();
                let held = self.live.swap_remove(index);
                timed(&mut aged.puts, || allocator.put(thread, held));
            } else {
                let page_count = (mixture.size)(&mut self.random);
                match timed(&mut aged.takes, || allocator.take(thread, page_count)) {
                    Some(held) => self.live.push(held),
                    None => aged.refused_count += 1,
                }
            }
        }
    }
}

fn age_of<A: Allocator>(allocator: &A, operation_count: u64, cpus: &[usize]) -> Vec<Aged> {
    // Two threads on one core would time each other's turns.
    let cpus = if cpus.len() >= THREAD_COUNT {
        cpus
    } else {
        &[]
    };
    let mut lives: Vec<Life<A::Held>> = (0..THREAD_COUNT)
        .map(|thread| Life {
            random: Random::new(1 + thread as u64),
            live: Vec::new(),
            aged: vec![Aged::default(); MIXTURES.len()],
        })
        .collect();
    let mut by_mixture = vec![Aged::default(); MIXTURES.len()];
    let phase_count = phase_count(operation_count);
    for phase in 0..phase_count {
        let index = phase as usize % MIXTURES.len();
        let count = operation_count / phase_count / THREAD_COUNT as u64;
        thread::scope(|scope| {
            for (thread, life) in lives.iter_mut().enumerate() {
                let cpu = cpus.get(thread).copied();
                scope.spawn(move || {
                    if cpu.is_some() {
                        cpu::pin(cpu).expect("the processors are those that the process may use");
                    }
                    life.go_through(allocator, thread, index, count);
                });
            }
        });
        let live: Vec<(u64, u64)> = lives
            .iter()
            .flat_map(|life| life.live.iter().map(A::pages))
            .collect();
        let page_counts: Vec<u64> = live.iter().map(|&(_, count)| count).collect();
        let fewest = fewest_tables(&page_counts);
        let touched = live
            .iter()
            .flat_map(|(page, count)| page / CHUNK_PAGES..=(page + count - 1) / CHUNK_PAGES);
        let touched_count = touched.collect::<BTreeSet<_>>().len() as u64;
        let aged = &mut by_mixture[index];
        aged.tables.add(touched_count, fewest);
        let by_bytes = page_counts.iter().sum::<u64>().div_ceil(CHUNK_PAGES);
        aged.tables_by_bytes.add(touched_count, by_bytes);
        if let Some(count) = allocator.open_chunk_count() {
            aged.chunks.add(count as u64, fewest);
        }
        // Each thread goes on with what the other one allocated.
        let mut passed = Vec::new();
        for life in &mut lives {
            mem::swap(&mut passed, &mut life.live);
        }
        lives[0].live = passed;
    }
    for life in lives {
        for (all, aged) in by_mixture.iter_mut().zip(&life.aged) {
            all.merge(aged);
        }
        for held in life.live {
            allocator.put(0, held);
        }
    }
    by_mixture
}

/// Returns how many phases so many operations have: each mixture comes at least four times, and again
/// after a million of each.
fn phase_count(operation_count: u64) -> u64 {
    (operation_count / 1_000_000)
        .next_multiple_of(MIXTURES.len() as u64)
        .max(20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_allocators_grow_old() {
        for name in [Name::Ours, Name::Magazines] {
            let (by_mixture, aged) = age(name, 20_000, &cpu::cores().unwrap());
            assert_eq!(aged.times().count(), 20_000);
            assert_eq!(by_mixture.len(), MIXTURES.len());
            assert_eq!(aged.refused_count, 0);
            assert!(aged.tables.mean() >= 1.0 && aged.tables.max >= aged.tables.mean());
            assert!(aged.tables_by_bytes.overall() >= aged.tables.overall());
        }
    }

    /// Places ranges as the proof says, the largest alignment first, and returns the tables.
    fn placed(page_counts: &[u64]) -> u64 {
        let mut counts = page_counts.to_vec();
        counts.sort_unstable_by_key(|count| std::cmp::Reverse(count.next_power_of_two()));
        let mut taken = Vec::<bool>::new();
        for count in counts {
            let align = count.next_power_of_two().min(CHUNK_PAGES) as usize;
            let is_free = |start: usize| {
                let part = taken.get(start..).unwrap_or_default();
                !part.iter().take(count as usize).any(|&is_taken| is_taken)
            };
            let start = (0..).step_by(align).find(|&start| is_free(start)).unwrap();
            let end = start + count as usize;
            taken.resize(taken.len().max(end), false);
            taken[start..end].fill(true);
        }
        (taken.len() as u64).div_ceil(CHUNK_PAGES)
    }

    #[test]
    fn the_fewest_tables_are_those_of_the_best_placement() {
        let mut random = Random::new(1);
        for round in 0..200 {
            let most = [2, 32, 300, 1500][round % 4];
            let count = 1 + random.bits() as usize % 60;
            let counts: Vec<u64> = (0..count).map(|_| 1 + random.bits() % most).collect();
            let fewest = fewest_tables(&counts);
            assert_eq!(fewest, placed(&counts), "{counts:?}");
        }
        assert_eq!(fewest_tables(&[17; 16]), 1);
        assert_eq!(fewest_tables(&[17; 17]), 2);
    }
}
