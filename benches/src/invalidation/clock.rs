//! Time of threads that work, and skip over what they wait for.
//!
//! Each thread has a clock of its own. It moves
//!
//! - by the work that the thread does, as the machine's clock measures it, while the engine and whoever uses
//!   it run;
//! - by as much as is said, where the thread waits for hardware: nobody spins or sleeps for it;
//! - not at all inside [`outside`]: in the simulated hardware, in what the bench itself looks at, and while a
//!   thread waits for the others.
//!
//! **One time for all.** Whoever is outside waits until no other thread is behind it by more than
//! [`WINDOW_NS`], before it does anything there. So what it finds in the hardware was done before its time
//! and what it does there is seen by who comes later, but for the window; and a thread that the system does
//! not let run keeps the others from running ahead, instead of looking slow. The engine itself knows nothing
//! of this: its locks and cache lines meet other threads on other processors for real.
//!
//! **What this gets wrong.** Each look at the machine's clock lets the processor finish what it had begun;
//! the time that a look takes is subtracted, that loss is not. Threads meet in the engine a little less often
//! than they would, as they also spend time outside. What another process took is left out only if it took
//! long ([`Clock::start`]).

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crossbeam_utils::CachePadded;

use crate::clock::overhead;

/// How far the clocks of two threads may be apart when one is outside.
pub const WINDOW_NS: u64 = 200;

/// Time of a lane that nobody has to wait for.
const NOBODY: u64 = u64::MAX;

/// Looks at a lane that is behind before the processor is left to others.
const SPIN_COUNT: u32 = 200;

/// Where each thread shows its time to the others.
#[derive(Clone, Debug)]
pub struct Lanes(Arc<[CachePadded<AtomicU64>]>);

impl Lanes {
    /// Creates the lanes of `count` threads, none of which runs.
    pub fn new(count: usize) -> Self {
        let lane = |_| CachePadded::new(AtomicU64::new(NOBODY));
        Self((0..count).map(lane).collect())
    }

    /// Lets the others wait for a lane from now on, which stands at `now_ns`.
    pub fn hold(&self, lane: usize, now_ns: u64) {
        self.0[lane].store(now_ns, Ordering::Release);
    }
}

/// The clock of a thread.
#[derive(Debug)]
pub struct Clock {
    lanes: Lanes,
    lane: usize,
    now_ns: f64,
    work_ns: f64,
    /// When the thread last came back from outside.
    since: Instant,
    longest_ns: f64,
    interrupted_count: u64,
}

/// What a clock showed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reading {
    /// The time.
    pub now_ns: f64,
    /// The part of it that the thread worked.
    pub work_ns: f64,
    /// How often the work was interrupted.
    pub interrupted_count: u64,
}

thread_local! {
    static CLOCK: RefCell<Option<Clock>> = const { RefCell::new(None) };
}

impl Clock {
    /// Starts the clock of this thread at `now_ns`, until the result is dropped.
    ///
    /// The thread has `lane`, which it [holds](Lanes::hold). Work of more than `longest_ns` between two looks
    /// was another process's, and does not count.
    #[must_use = "the clock stops when this is dropped"]
    pub fn start(lanes: &Lanes, lane: usize, now_ns: u64, longest_ns: f64) -> Running {
        // Measured now, and not in the first interval.
        overhead();
        CLOCK.set(Some(Self {
            lanes: lanes.clone(),
            lane,
            now_ns: now_ns as f64,
            work_ns: 0.0,
            since: Instant::now(),
            longest_ns,
            interrupted_count: 0,
        }));
        Running
    }

    /// Returns the time.
    #[expect(clippy::cast_sign_loss, reason = "time does not start below zero")]
    pub const fn now_ns(&self) -> u64 {
        self.now_ns as u64
    }

    /// Returns what the clock shows.
    pub const fn reading(&self) -> Reading {
        Reading {
            now_ns: self.now_ns,
            work_ns: self.work_ns,
            interrupted_count: self.interrupted_count,
        }
    }

    /// Waits until `then_ns`, if that is not over, in no time.
    pub fn skip_to(&mut self, then_ns: u64) {
        self.now_ns = self.now_ns.max(then_ns as f64);
        self.keep_pace();
    }

    /// Adds the work since the thread was outside last.
    fn add_work(&mut self, now: Instant) {
        let elapsed = now.duration_since(self.since).as_nanos() as f64;
        if elapsed > self.longest_ns {
            self.interrupted_count += 1;
            return;
        }
        // May be a little below zero, so that the sum is right.
        let work = elapsed - overhead();
        self.work_ns += work;
        self.now_ns += work;
    }

    /// Waits for those that are behind.
    fn keep_pace(&self) {
        let now = self.now_ns();
        self.lanes.hold(self.lane, now);
        for (lane, at) in self.lanes.0.iter().enumerate() {
            let mut turn = 0;
            while lane != self.lane && at.load(Ordering::Acquire).saturating_add(WINDOW_NS) < now {
                if turn < SPIN_COUNT {
                    std::hint::spin_loop();
                } else {
                    std::thread::yield_now();
                }
                turn += 1;
            }
        }
    }
}

/// Stops the clock of its thread when it is dropped, for whom nobody has to wait then.
#[derive(Debug)]
pub struct Running;

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(clock) = CLOCK.take() {
            clock.lanes.hold(clock.lane, NOBODY);
        }
    }
}

/// Does `work` while the clock of this thread stands still, once no other thread is behind it.
///
/// # Panics
///
/// Panics if no clock was [started](Clock::start) on this thread.
#[inline]
pub fn outside<R>(work: impl FnOnce(&mut Clock) -> R) -> R {
    let now = Instant::now();
    CLOCK.with_borrow_mut(|clock| {
        let clock = clock.as_mut().expect("the thread has started its clock");
        clock.add_work(now);
        clock.keep_pace();
        let result = work(clock);
        clock.since = Instant::now();
        result
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_outside_takes_no_time_and_waits_take_as_long_as_they_say() {
        let lanes = Lanes::new(1);
        let _running = Clock::start(&lanes, 0, 1000, f64::INFINITY);
        let before = outside(|clock| {
            std::thread::sleep(std::time::Duration::from_millis(20));
            clock.skip_to(5_000_000_000);
            clock.skip_to(7);
            clock.reading()
        });
        let after = outside(|clock| clock.reading());
        assert_eq!(before.now_ns.max(5e9).to_bits(), before.now_ns.to_bits());
        // Between the two lies next to nothing, however long another process had the processor.
        assert!(after.now_ns >= before.now_ns - 1e3);
        assert!(before.work_ns <= before.now_ns - 4.9e9);
    }

    #[test]
    fn work_that_took_too_long_was_somebody_elses() {
        let lanes = Lanes::new(1);
        let _running = Clock::start(&lanes, 0, 0, 1e6);
        std::thread::sleep(std::time::Duration::from_millis(20));
        let reading = outside(|clock| clock.reading());
        assert_eq!((reading.now_ns, reading.interrupted_count), (0.0, 1));
    }

    #[test]
    fn nobody_runs_ahead_of_a_thread_that_is_behind() {
        let lanes = Lanes::new(2);
        lanes.hold(0, 0);
        lanes.hold(1, 0);
        let latest = AtomicU64::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // No work counts, so that both move in steps.
                let _running = Clock::start(&lanes, 1, 0, f64::NEG_INFINITY);
                for step in 1..100 {
                    outside(|clock| clock.skip_to(step * 1000));
                    // The other one has come as far, and no farther than a step and the window allow.
                    latest.store(step * 1000, Ordering::SeqCst);
                }
            });
            let _running = Clock::start(&lanes, 0, 0, f64::NEG_INFINITY);
            for step in 1..100 {
                outside(|clock| clock.skip_to(step * 1000));
                let other = latest.load(Ordering::SeqCst);
                assert!(other + 1000 + WINDOW_NS >= step * 1000, "{other} {step}");
            }
        });
    }
}
