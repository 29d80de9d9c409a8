//! A writer among threads that map: how long it waits, and how long they keep it waiting.
//!
//! Attaching a device needs a domain for itself for a moment. Meanwhile *mappers* map and unmap
//! 4 KiB, 64 KiB and 2 MiB in turn, each in a read section of its own, and one more thread *fills*
//! 1 TiB with 2 MiB leaves and empties it again, in chunks between which it lets go of the lock, for
//! a read section lasts as long as its chunk. A *writer* comes every now and then.
//!
//! A read section is timed by the thread itself, from when it has the lock until it has given it
//! back. Of a thread that the system took off its processor in the middle nothing can be promised:
//! such sections are counted apart. They are told by the time that the thread was ready to run but
//! did not, which is looked at every 256 sections; all sections of a burst that waited
//! count as interrupted. Time that a hypervisor takes does not show there, so the same threads also
//! time nothing at all, as often and as long: what interrupts that interrupts read sections, too.

use core::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{io, thread};

use iopt::mem::Arena;
use iopt::radix::Table;
use iopt::sync::DomainLock;
use iopt_formats::Format;

use crate::cpu::{self, Waits};
use crate::histogram::Histogram;
use crate::subject::{map_synced, range, unmap_synced, zeroed_arena};
use crate::workload::FIRST_IOVA;

/// The longest read section that keeps the promise.
pub const MAX_SECTION: Duration = Duration::from_micros(50);

/// What the writer may wait at most in all but one of a thousand times.
pub const MAX_WAIT: Duration = Duration::from_millis(1);

/// Read sections between two looks at what a mapper had to wait for a processor.
const BURST_LEN: usize = 256;

/// Bytes that one read section of the filling thread maps or unmaps: the leaves of one table.
pub const CHUNK_LEN: u64 = 1 << 30;

/// Bytes that the filling thread maps in all.
const FILLED_LEN: u64 = 1 << 40;

/// Where they start: behind the mappers' ranges.
const FILLED_IOVA: u64 = FIRST_IOVA + (1 << 40);

/// Distance of the mappers' ranges.
const STRIDE: u64 = 1 << 30;

/// Calls of a mapper, in turn.
const LENS: [u64; 3] = [1 << 12, 1 << 16, 1 << 21];

/// Time between two writes.
const PAUSE: Duration = Duration::from_micros(100);

/// Table pages: far more than those of the filled range and the mappers together, so that each
/// thread finds some near its own.
const ARENA_PAGE_COUNT: usize = 1 << 14;

/// Who takes the lock.
#[derive(Clone, Debug)]
pub struct Crowd<'c> {
    /// A mapper is pinned to each of these.
    pub mapper_cpus: &'c [usize],
    /// The filling thread is pinned to this one, if any.
    pub filler_cpu: Option<usize>,
    /// How long they go on.
    pub duration: Duration,
}

/// What was seen.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// Read sections of threads that ran all the time, in nanoseconds.
    pub sections: Histogram,
    /// Read sections of bursts in which the thread did not run all the time.
    pub interrupted: Histogram,
    /// Waits of the writer, in nanoseconds.
    pub waits: Histogram,
    /// How often 1 TiB was filled or emptied.
    pub filled_count: u64,
}

/// A domain with a table for everyone.
pub struct Rig<F: Format> {
    table: Table<F, Arena>,
    /// Holds how many devices were attached.
    lock: DomainLock<u64>,
}

impl<F: Format> fmt::Debug for Rig<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rig")
            .field("table", &self.table)
            .finish_non_exhaustive()
    }
}

impl<F: Format> Rig<F> {
    /// Creates an empty table.
    ///
    /// # Panics
    ///
    /// Panics if the system has no memory for it.
    pub fn new(format: F) -> Self {
        // A page fault in a read section would be measured with it.
        let memory = zeroed_arena(ARENA_PAGE_COUNT);
        Self {
            table: Table::new(format, memory).expect("memory for the tables"),
            lock: DomainLock::new(0),
        }
    }

    /// Lets `crowd` have its way.
    ///
    /// # Errors
    ///
    /// Fails if a thread cannot be pinned.
    pub fn measure(&self, crowd: &Crowd<'_>) -> io::Result<Measured> {
        let is_over = &AtomicBool::new(false);
        thread::scope(|scope| {
            let map = |(index, &cpu): (usize, &usize)| {
                scope.spawn(move || self.map_until(index, cpu, is_over))
            };
            let mappers: Vec<_> = crowd.mapper_cpus.iter().enumerate().map(map).collect();
            let filler = scope.spawn(|| self.fill_until(crowd.filler_cpu, is_over));
            let waits = self.write_for(crowd.duration);
            is_over.store(true, Ordering::Relaxed);
            let (mut sections, filled_count) = joined(filler)?;
            for mapper in mappers {
                sections.merge(&joined(mapper)?);
            }
            Ok(Measured {
                sections: sections.whole,
                interrupted: sections.interrupted,
                waits,
                filled_count,
            })
        })
    }

    /// Lets threads on the processors of `crowd` time nothing for its duration, and returns how long
    /// that took them.
    ///
    /// # Errors
    ///
    /// Fails if a thread cannot be pinned.
    pub fn measure_nothing(&self, crowd: &Crowd<'_>) -> io::Result<Histogram> {
        let is_over = &AtomicBool::new(false);
        let cpus = crowd.mapper_cpus.iter().chain(&crowd.filler_cpu);
        thread::scope(|scope| {
            let time = |&cpu: &usize| {
                scope.spawn(move || {
                    cpu::pin(Some(cpu))?;
                    let mut sections = Sections::new();
                    while !is_over.load(Ordering::Relaxed) {
                        sections.add(Instant::now());
                    }
                    Ok(sections.end())
                })
            };
            let threads: Vec<_> = cpus.map(time).collect();
            let start = Instant::now();
            while start.elapsed() < crowd.duration {
                thread::sleep(PAUSE);
            }
            is_over.store(true, Ordering::Relaxed);
            let mut whole = Histogram::default();
            for thread in threads {
                whole.merge(&joined(thread)?.whole);
            }
            Ok(whole)
        })
    }

    /// Maps and unmaps in the range of the mapper `index`.
    fn map_until(&self, index: usize, cpu: usize, is_over: &AtomicBool) -> io::Result<Sections> {
        cpu::pin(Some(cpu))?;
        let mut sections = Sections::new();
        let start = FIRST_IOVA + index as u64 * STRIDE;
        let claim = self.table.claim(range(start, STRIDE));
        let mut claim = claim.expect("mappers have ranges of their own");
        let mut mapper = self
            .table
            .mapper(&mut claim)
            .expect("the claim is the table's");
        for &len in LENS.iter().cycle() {
            if is_over.load(Ordering::Relaxed) {
                break;
            }
            sections.time(&self.lock, || {
                map_synced(&mut mapper, start, start + LENS[0], len);
            });
            sections.time(&self.lock, || {
                unmap_synced(&mut mapper, start, len);
            });
        }
        Ok(sections.end())
    }

    /// Fills and empties 1 TiB; returns how often.
    fn fill_until(&self, cpu: Option<usize>, is_over: &AtomicBool) -> io::Result<(Sections, u64)> {
        if cpu.is_some() {
            cpu::pin(cpu)?;
        }
        let mut sections = Sections::new();
        let claim = self.table.claim(range(FILLED_IOVA, FILLED_LEN));
        let mut claim = claim.expect("the filled range is nobody else's");
        let mut mapper = self
            .table
            .mapper(&mut claim)
            .expect("the claim is the table's");
        let mut filled_count = 0;
        let chunks = || (FILLED_IOVA..FILLED_IOVA + FILLED_LEN).step_by(CHUNK_LEN as usize);
        // Whatever is begun is done to its end: what is filled has to be emptied.
        while !is_over.load(Ordering::Relaxed) {
            for iova in chunks() {
                let oa = iova + (2 << 20);
                sections.time(&self.lock, || map_synced(&mut mapper, iova, oa, CHUNK_LEN));
            }
            for iova in chunks() {
                sections.time(&self.lock, || {
                    unmap_synced(&mut mapper, iova, CHUNK_LEN);
                });
            }
            filled_count += 2;
        }
        Ok((sections.end(), filled_count))
    }

    /// Takes the exclusive side again and again and returns how long each time took.
    fn write_for(&self, duration: Duration) -> Histogram {
        let mut waits = Histogram::default();
        let start = Instant::now();
        loop {
            thread::sleep(PAUSE);
            let asked = Instant::now();
            let mut domain = self.lock.write();
            waits.add(asked.elapsed().as_nanos() as u64);
            *domain += 1;
            drop(domain);
            if start.elapsed() >= duration {
                return waits;
            }
        }
    }
}

/// Read sections of one thread.
struct Sections {
    whole: Histogram,
    interrupted: Histogram,
    burst: Vec<u64>,
    waited: Duration,
    waits: Waits,
}

impl Sections {
    fn new() -> Self {
        let waits = Waits::of_this_thread();
        Self {
            whole: Histogram::default(),
            interrupted: Histogram::default(),
            burst: Vec::with_capacity(BURST_LEN),
            waited: waits.total(),
            waits,
        }
    }

    /// Does `work` in a read section of `lock`.
    #[inline(always)]
    fn time(&mut self, lock: &DomainLock<u64>, work: impl FnOnce()) {
        let guard = lock.read();
        let start = Instant::now();
        work();
        drop(guard);
        self.add(start);
    }

    /// Adds a section that began at `start` and ends now.
    #[inline(always)]
    fn add(&mut self, start: Instant) {
        self.burst.push(start.elapsed().as_nanos() as u64);
        if self.burst.len() == BURST_LEN {
            self.end_burst();
        }
    }

    #[inline(never)]
    fn end_burst(&mut self) {
        let waited = self.waits.total();
        let kind = if waited == self.waited {
            &mut self.whole
        } else {
            &mut self.interrupted
        };
        self.burst.drain(..).for_each(|ns| kind.add(ns));
        self.waited = waited;
    }

    fn end(mut self) -> Self {
        self.end_burst();
        self
    }

    fn merge(&mut self, other: &Self) {
        self.whole.merge(&other.whole);
        self.interrupted.merge(&other.interrupted);
    }
}

fn joined<T>(thread: thread::ScopedJoinHandle<'_, io::Result<T>>) -> io::Result<T> {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

#[cfg(test)]
mod tests {
    use iopt_formats::{Iova, vtd::SecondStage};

    use super::*;

    #[test]
    fn everyone_gets_the_lock_and_leaves_nothing_mapped() {
        let cpus = cpu::cores().unwrap();
        let rig = Rig::new(SecondStage::new(48).unwrap());
        let measured = rig
            .measure(&Crowd {
                mapper_cpus: &cpus[..1],
                filler_cpu: None,
                duration: Duration::from_millis(1),
            })
            .unwrap();
        assert!(measured.waits.count() > 0);
        assert_eq!(measured.waits.count(), *rig.lock.read());
        assert_eq!(rig.table.lookup(Iova::new(FIRST_IOVA)), None);
        assert_eq!(rig.table.lookup(Iova::new(FILLED_IOVA)), None);
    }

    #[test]
    fn threads_that_time_nothing_end_in_time() {
        let cpus = cpu::cores().unwrap();
        let rig = Rig::new(SecondStage::new(48).unwrap());
        // On a busy machine the thread may not have run at all when the time is over.
        let last_lg2 = if cfg!(miri) { 0 } else { 13 };
        let mut durations = (0..=last_lg2).map(|lg2| Duration::from_millis(1 << lg2));
        let has_timed = durations.any(|duration| {
            let crowd = Crowd {
                mapper_cpus: &cpus[..1],
                filler_cpu: None,
                duration,
            };
            rig.measure_nothing(&crowd).unwrap().count() > 0
        });
        assert!(has_timed || cfg!(miri));
    }

    #[test]
    fn sections_of_a_burst_count_together() {
        let lock = DomainLock::new(0);
        let mut sections = Sections::new();
        for _ in 0..=BURST_LEN {
            sections.time(&lock, || ());
        }
        assert_eq!(sections.burst.len(), 1);
        // A burst that begins with another wait than it ends with was interrupted.
        sections.waited += Duration::from_nanos(1);
        let before = sections.interrupted.count();
        let sections = sections.end();
        assert_eq!(sections.interrupted.count(), before + 1);
    }
}
