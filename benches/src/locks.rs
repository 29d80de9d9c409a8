//! The shared side of locks, one thread and several at a time.

use core::fmt;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};
use std::{io, thread};

use crossbeam_utils::sync::ShardedLock;
use iopt::sync::DomainLock;

use crate::areas::Areas;
use crate::cpu;
use crate::histogram::Histogram;
use crate::scaling::thread_counts;
use crate::subject::range;
use crate::trials::{Share, Spans, Summary, Trial, Trials, run};
use crate::workload::FIRST_IOVA;

/// Turns of the locks and thread counts.
const TURN_COUNT: usize = 10;

/// Time between two writes of [`write_times`], which readers have for themselves.
const PAUSE: Duration = Duration::from_micros(100);

/// Bytes of an area of [`LockName::Areas`].
const AREA_LEN: u64 = 4096;

/// Something to hold while reading.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LockName {
    /// The engine's lock of a domain.
    Domain,
    /// `parking_lot::RwLock`.
    ParkingLot,
    /// `std::sync::RwLock`.
    Standard,
    /// `crossbeam_utils::sync::ShardedLock`.
    Sharded,
    /// An epoch of `crossbeam_epoch`, which has no exclusive side.
    Epoch,
    /// One area added to [`Areas`] and removed again: a semaphore and a tree.
    Areas,
}

impl LockName {
    /// Every lock.
    pub const ALL: [Self; 6] = [
        Self::Domain,
        Self::ParkingLot,
        Self::Standard,
        Self::Sharded,
        Self::Epoch,
        Self::Areas,
    ];

    /// Returns the name as text.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Domain => "domain-lock",
            Self::ParkingLot => "parking_lot",
            Self::Standard => "std",
            Self::Sharded => "sharded",
            Self::Epoch => "epoch",
            Self::Areas => "rwsem-and-tree",
        }
    }

    /// Returns whether promises are about it.
    pub const fn is_ours(self) -> bool {
        matches!(self, Self::Domain)
    }
}

/// What two threads may cost each, as times the cost of one.
pub const MAX_RATIO: f64 = 1.3;

/// What two threads may cost each, in nanoseconds.
pub const MAX_NS: f64 = 6.0;

/// One of each lock.
pub struct Locks {
    domain: DomainLock<()>,
    parking_lot: parking_lot::RwLock<()>,
    standard: RwLock<()>,
    sharded: ShardedLock<()>,
    areas: Areas,
}

impl Default for Locks {
    fn default() -> Self {
        Self {
            domain: DomainLock::new(()),
            parking_lot: parking_lot::RwLock::new(()),
            standard: RwLock::new(()),
            sharded: ShardedLock::new(()),
            areas: Areas::default(),
        }
    }
}

impl fmt::Debug for Locks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Locks").finish_non_exhaustive()
    }
}

/// What a lock costs with some number of threads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// Threads.
    pub thread_count: usize,
    /// Nanoseconds of one thread for a lock and an unlock, best trial and first quartile; `None` if
    /// there was no trial that counts.
    pub ns: Option<Summary>,
}

impl Locks {
    /// Measures locking and unlocking of the shared side of `name`, with 1, 2, 4 and so on threads.
    pub fn read_costs(&self, name: LockName, cpus: &[usize], trial_count: usize) -> Vec<Cost> {
        let run_on = |cpus: &[usize], share, trial_count| {
            run(cpus, trial_count, |index, trials| {
                self.read_in(name, index, share, trials)
            })
        };
        let share = Share::calibrate(|share| run_on(&cpus[..1], share, 5));
        let mut thread_counts = thread_counts(cpus.len());
        thread_counts.insert(0, 1);
        let mut trials: Vec<Vec<Trial>> = thread_counts.iter().map(|_| Vec::new()).collect();
        for _ in 0..TURN_COUNT {
            for (&thread_count, trials) in thread_counts.iter().zip(&mut trials) {
                let count = trial_count.div_ceil(TURN_COUNT);
                trials.extend(run_on(&cpus[..thread_count], share, count));
            }
        }
        let of_threads = thread_counts.into_iter().zip(&trials);
        of_threads
            .map(|(thread_count, trials)| Cost {
                thread_count,
                ns: Summary::of(trials, |_| 1.0 / thread_count as f64),
            })
            .collect()
    }

    fn read_in(&self, name: LockName, index: usize, share: Share, trials: Trials<'_>) -> Spans {
        match name {
            LockName::Domain => repeat(trials, share, || drop(black_box(self.domain.read()))),
            LockName::ParkingLot => {
                repeat(trials, share, || drop(black_box(self.parking_lot.read())))
            }
            LockName::Standard => repeat(trials, share, || drop(black_box(self.standard.read()))),
            LockName::Sharded => repeat(trials, share, || drop(black_box(self.sharded.read()))),
            LockName::Epoch => repeat(trials, share, || drop(black_box(crossbeam_epoch::pin()))),
            LockName::Areas => {
                let area = range(FIRST_IOVA + index as u64 * AREA_LEN, AREA_LEN);
                repeat(trials, share, || {
                    self.areas.map(area, || {});
                    self.areas.unmap(area, || {});
                })
            }
        }
    }

    /// Measures how long the exclusive side of `name` takes to get, with readers that come and go
    /// all the time on the other `cpus` but the first; `None` if it has none.
    ///
    /// # Errors
    ///
    /// Fails if a thread cannot be pinned.
    pub fn write_times(
        &self,
        name: LockName,
        cpus: &[usize],
        write_count: usize,
    ) -> io::Result<Option<Histogram>> {
        let (domain, sharded) = (&self.domain, &self.sharded);
        let (standard, parking_lot) = (&self.standard, &self.parking_lot);
        let times = match name {
            LockName::Domain => write_times(
                cpus,
                write_count,
                || drop(black_box(domain.read())),
                || domain.write(),
            )?,
            LockName::ParkingLot => write_times(
                cpus,
                write_count,
                || drop(black_box(parking_lot.read())),
                || parking_lot.write(),
            )?,
            LockName::Standard => write_times(
                cpus,
                write_count,
                || drop(black_box(standard.read())),
                || standard.write().unwrap_or_else(PoisonError::into_inner),
            )?,
            LockName::Sharded => write_times(
                cpus,
                write_count,
                || drop(black_box(sharded.read())),
                || sharded.write().unwrap_or_else(PoisonError::into_inner),
            )?,
            LockName::Epoch | LockName::Areas => return Ok(None),
        };
        Ok(Some(times))
    }
}

/// Does `operation` for the trials of one thread.
#[inline(always)]
fn repeat(trials: Trials<'_>, share: Share, operation: impl Fn()) -> Spans {
    trials.each(share, || {
        for _ in 0..share.piece_len {
            operation();
        }
    })
}

fn write_times<G>(
    cpus: &[usize],
    write_count: usize,
    read: impl Fn() + Sync,
    write: impl Fn() -> G + Sync,
) -> io::Result<Histogram> {
    let is_over = AtomicBool::new(false);
    let (is_over, read, write) = (&is_over, &read, &write);
    thread::scope(|scope| {
        let reader = |&cpu: &usize| {
            scope.spawn(move || -> io::Result<()> {
                cpu::pin(Some(cpu))?;
                while !is_over.load(Ordering::Relaxed) {
                    read();
                }
                Ok(())
            })
        };
        let (&first, others) = cpus.split_first().ok_or(io::ErrorKind::NotFound)?;
        let readers: Vec<_> = others.iter().map(reader).collect();
        // A thread of its own, so that the caller stays where it may run.
        let writer = scope.spawn(move || -> io::Result<Histogram> {
            cpu::pin(Some(first))?;
            let mut times = Histogram::default();
            for _ in 0..write_count {
                let start = Instant::now();
                let guard = write();
                times.add(start.elapsed().as_nanos() as u64);
                drop(guard);
                while start.elapsed() < PAUSE {
                    std::hint::spin_loop();
                }
            }
            Ok(times)
        });
        let times = writer.join();
        is_over.store(true, Ordering::Relaxed);
        for reader in readers {
            reader
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        times.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_lock_is_measured_with_every_number_of_threads() {
        let cpus = cpu::cores().unwrap();
        let locks = Locks::default();
        for name in LockName::ALL {
            let share = Share::new(100);
            run(&cpus, 2, |index, trials| {
                locks.read_in(name, index, share, trials)
            });
        }
    }

    #[test]
    fn every_write_is_counted() {
        let cpus = cpu::cores().unwrap();
        let locks = Locks::default();
        for name in LockName::ALL {
            let times = locks.write_times(name, &cpus, 10).unwrap();
            let has_writers = !matches!(name, LockName::Epoch | LockName::Areas);
            assert_eq!(times.map(|times| times.count()), has_writers.then_some(10));
        }
    }
}
