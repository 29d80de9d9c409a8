//! Measurements of several threads: many short trials, of which the undisturbed ones count.
//!
//! Every thread is pinned to a processor of its own. The threads meet before each trial, start
//! together, and do small pieces of work until one of them has done its share, 0.5 to 1 ms of it;
//! then all stop, so that none works alone at the end. What counts is how many pieces were done by
//! all of them in the time from the first start to the last end.
//!
//! A thread that did not run at all, or started late, would make the others look better than they
//! are: a trial counts only if all threads ran for most of it. A trial is short enough that most of
//! them meet no interrupt, so what a machine can do shows in the best and in the first quartile of
//! them.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_utils::CachePadded;

use crate::cpu;
use crate::paired::quantile;

/// Shortest time of a trial of one thread.
const TRIAL: Duration = Duration::from_micros(500);

/// Pieces of a thread's share, so that threads that are to stop do so within 1 % of a trial.
const PIECE_COUNT: u32 = 256;

/// Part of a trial that all its threads must have run at once.
pub const MIN_OVERLAP: f64 = 0.8;

/// Trials at the start of a run that do not count: they bring memory into the caches.
const WARM_UP_COUNT: usize = 3;

/// How much one thread does in a trial, if it is the first to end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Share {
    /// Operations of a piece of work.
    pub piece_len: u32,
    /// Pieces.
    piece_count: u32,
}

impl Share {
    /// Returns a share of at least `count` operations.
    pub const fn new(count: u32) -> Self {
        let piece_len = count.div_ceil(PIECE_COUNT);
        Self {
            piece_len,
            piece_count: count.div_ceil(if piece_len == 0 { 1 } else { piece_len }),
        }
    }

    /// Returns a share that takes one thread 0.5 to 1 ms; `run` measures some trials of such a
    /// thread.
    pub fn calibrate(run: impl Fn(Self) -> Vec<Trial>) -> Self {
        let mut count = 16;
        loop {
            let share = Self::new(count);
            let walls = run(share);
            let walls: Vec<f64> = walls.iter().map(|trial| trial.wall_ns).collect();
            let is_long = !walls.is_empty() && quantile(&walls, 0.0) >= TRIAL.as_nanos() as f64;
            if is_long || count >= 1 << 30 {
                return share;
            }
            count *= 2;
        }
    }
}

/// What one thread did in one trial.
#[derive(Clone, Copy, Debug)]
struct Span {
    start: Instant,
    end: Instant,
    op_count: u64,
}

/// What one thread did, trial by trial.
#[derive(Debug)]
pub struct Spans(Vec<Span>);

/// The trials of one thread of a run.
#[derive(Debug)]
pub struct Trials<'g> {
    gate: &'g Gate,
    count: usize,
}

impl Trials<'_> {
    /// Does `piece`, over and over, in each trial, together with the other threads of the run.
    pub fn each(self, share: Share, mut piece: impl FnMut()) -> Spans {
        let one = |index| {
            self.gate.pass();
            let start = Instant::now();
            let mut piece_count = 0;
            while self.gate.is_open(index) {
                piece();
                piece_count += 1;
                if piece_count == share.piece_count {
                    self.gate.close(index);
                }
            }
            Span {
                start,
                end: Instant::now(),
                op_count: u64::from(piece_count) * u64::from(share.piece_len),
            }
        };
        Spans((0..self.count).map(one).collect())
    }
}

impl Drop for Trials<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.gate.is_broken.store(true, Relaxed);
        }
    }
}

/// Where threads start and stop together. They spin: one that sleeps is late by more than a trial
/// can bear.
#[derive(Debug)]
struct Gate {
    thread_count: usize,
    arrived_count: CachePadded<AtomicUsize>,
    /// Trials that are over. Written once a trial, so that looking at it costs nothing.
    over_count: CachePadded<AtomicUsize>,
    /// Whether a thread panicked, which the others must not wait for.
    is_broken: AtomicBool,
}

impl Gate {
    const fn new(thread_count: usize) -> Self {
        Self {
            thread_count,
            arrived_count: CachePadded::new(AtomicUsize::new(0)),
            over_count: CachePadded::new(AtomicUsize::new(0)),
            is_broken: AtomicBool::new(false),
        }
    }

    /// Waits until every thread has come here as often as the caller.
    fn pass(&self) {
        let arrived = self.arrived_count.fetch_add(1, Release);
        let everyone = (arrived / self.thread_count + 1) * self.thread_count;
        while self.arrived_count.load(Acquire) < everyone {
            assert!(
                !self.is_broken.load(Relaxed),
                "another thread of the run panicked"
            );
            std::hint::spin_loop();
        }
    }

    #[inline(always)]
    fn is_open(&self, trial: usize) -> bool {
        self.over_count.load(Relaxed) <= trial
    }

    fn close(&self, trial: usize) {
        self.over_count.fetch_max(trial + 1, Relaxed);
    }
}

/// Runs `body` on a thread for each of `cpus`, with the thread's index and its trials, and returns
/// the trials, `trial_count` at most, whose threads overlapped.
///
/// # Panics
///
/// Panics if a thread cannot be pinned or panics itself.
pub fn run(
    cpus: &[usize],
    trial_count: usize,
    body: impl Fn(usize, Trials<'_>) -> Spans + Sync,
) -> Vec<Trial> {
    let gate = Gate::new(cpus.len());
    let (gate, body) = (&gate, &body);
    let spans: Vec<Spans> = thread::scope(|scope| {
        let start = |(index, &cpu): (usize, &usize)| {
            scope.spawn(move || {
                let trials = Trials {
                    gate,
                    count: WARM_UP_COUNT + trial_count,
                };
                cpu::pin(Some(cpu)).expect("the processors are those that the process may use");
                body(index, trials)
            })
        };
        // All are started before the first is waited for.
        let threads: Vec<_> = cpus.iter().enumerate().map(start).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, Spans>| thread.join();
        let spans: Result<Vec<Spans>, _> = threads.into_iter().map(join).collect();
        spans.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    let trials = (WARM_UP_COUNT..WARM_UP_COUNT + trial_count).map(|index| {
        let spans = spans.iter().map(|Spans(spans)| spans[index]);
        Trial::of(&spans.collect::<Vec<_>>())
    });
    trials
        .filter(|trial| trial.overlap >= MIN_OVERLAP)
        .collect()
}

/// One trial of all its threads.
#[derive(Clone, Debug, PartialEq)]
pub struct Trial {
    /// From the first start to the last end, in nanoseconds.
    wall_ns: f64,
    /// The part of it that all threads ran.
    overlap: f64,
    /// Operations that each thread did.
    op_counts: Vec<u64>,
}

impl Trial {
    /// Returns a trial whose threads all overlapped.
    #[cfg(test)]
    pub(crate) fn new(wall_ns: f64, op_counts: &[u64]) -> Self {
        Self {
            wall_ns,
            overlap: 1.0,
            op_counts: op_counts.to_vec(),
        }
    }

    fn of(spans: &[Span]) -> Self {
        let starts = || spans.iter().map(|span| span.start);
        let ends = || spans.iter().map(|span| span.end);
        let between = |from: Option<Instant>, to: Option<Instant>| {
            let elapsed = from
                .zip(to)
                .map(|(from, to)| to.saturating_duration_since(from));
            elapsed.map_or(0.0, |elapsed| elapsed.as_nanos() as f64)
        };
        let wall_ns = between(starts().min(), ends().max());
        Self {
            wall_ns,
            overlap: between(starts().max(), ends().min()) / wall_ns.max(1.0),
            op_counts: spans.iter().map(|span| span.op_count).collect(),
        }
    }

    /// Returns the time of the trial by the work that was done in it, of which each operation of a
    /// thread counts as much as `weight_of` the thread's index.
    fn cost(&self, weight_of: impl Fn(usize) -> f64) -> f64 {
        let counts = self.op_counts.iter().enumerate();
        let done = counts.map(|(index, &count)| count as f64 * weight_of(index));
        self.wall_ns / done.sum::<f64>()
    }
}

/// What many trials showed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// The lowest cost.
    pub best: f64,
    /// What the cost of a quarter of the trials did not exceed.
    pub p25: f64,
}

impl Summary {
    /// Returns what the work of `trials` cost: nanoseconds of all threads together for an operation
    /// whose weight, as `weight_of` says for its thread, is 1. `None` if there are no trials.
    pub fn of(trials: &[Trial], weight_of: impl Fn(usize) -> f64) -> Option<Self> {
        let costs: Vec<f64> = trials.iter().map(|trial| trial.cost(&weight_of)).collect();
        (!costs.is_empty()).then(|| Self {
            best: quantile(&costs, 0.0),
            p25: quantile(&costs, 0.25),
        })
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "the values have exact representations")]
mod tests {
    use std::cell::Cell;
    use std::panic;

    use super::*;

    fn spans(micros: &[(u64, u64)]) -> Vec<Span> {
        let zero = Instant::now();
        let at = |micros| zero + Duration::from_micros(micros);
        micros
            .iter()
            .map(|&(start, end)| Span {
                start: at(start),
                end: at(end),
                op_count: end - start,
            })
            .collect()
    }

    #[test]
    fn a_trial_lasts_from_the_first_start_to_the_last_end() {
        let trial = Trial::of(&spans(&[(0, 900), (100, 1000)]));
        assert_eq!((trial.wall_ns, trial.overlap), (1_000_000.0, 0.8));
        assert_eq!(trial.op_counts, [900, 900]);
        let alone = Trial::of(&spans(&[(5, 9)]));
        assert_eq!((alone.wall_ns, alone.overlap), (4_000.0, 1.0));
    }

    #[test]
    fn threads_that_took_turns_did_not_overlap() {
        let trial = Trial::of(&spans(&[(0, 500), (500, 1000)]));
        assert_eq!(trial.overlap, 0.0);
        let apart = Trial::of(&spans(&[(0, 500), (600, 1000)]));
        assert_eq!(apart.overlap, 0.0);
    }

    #[test]
    fn a_cost_is_the_time_by_the_weight_of_what_all_threads_did() {
        let trials = [Trial::new(600.0, &[100, 50]), Trial::new(300.0, &[100, 50])];
        assert_eq!(Summary::of(&trials, |_| 1.0).unwrap().best, 2.0);
        let by_thread = |thread| [1.0, 4.0][thread];
        assert_eq!(Summary::of(&trials, by_thread).unwrap().best, 1.0);
        assert_eq!(Summary::of(&[], |_| 1.0), None);
    }

    #[test]
    fn a_share_is_cut_into_small_pieces_and_never_less_than_asked_for() {
        for count in [1, 16, 255, 256, 257, 1000, 1 << 20] {
            let Share {
                piece_len,
                piece_count,
            } = Share::new(count);
            assert!(piece_len * piece_count >= count);
            assert!(piece_count <= PIECE_COUNT);
            assert!(piece_len == 1 || piece_count > PIECE_COUNT / 2);
        }
    }

    #[test]
    fn a_thread_that_has_done_its_share_ends_the_trial() {
        let cpus = cpu::cores().unwrap();
        let share = Share::new(1000);
        // A thread alone overlaps with itself, so that every trial counts.
        let trials = run(&cpus[..1], 5, |_, trials| trials.each(share, || {}));
        assert_eq!(trials.len(), 5);
        for trial in trials {
            let share = u64::from(share.piece_len * share.piece_count);
            assert_eq!(trial.op_counts, [share]);
        }
    }

    #[test]
    fn a_thread_that_panics_ends_the_run() {
        let cpus = cpu::cores().unwrap();
        let first = cpus[0];
        // Two threads on one processor: the one waits for the other until it panics.
        let outcome = panic::catch_unwind(|| {
            run(&[first, first], 5, |index, trials| {
                assert!(index == 0, "on purpose");
                trials.each(Share::new(16), || {})
            })
        });
        assert!(outcome.is_err());
    }

    #[test]
    fn a_trial_is_made_as_long_as_it_has_to_be() {
        let run_count = Cell::new(0);
        let share = Share::calibrate(|share| {
            run_count.set(run_count.get() + 1);
            let op_count = share.piece_len * share.piece_count;
            vec![Trial::new(f64::from(op_count) * 1000.0, &[op_count.into()])]
        });
        assert_eq!((share, run_count.get()), (Share::new(512), 6));
    }
}
