//! Two threads in one space, each in a 2 MiB span of its own.
//!
//! Each thread maps and unmaps in the holes of its span, among 10^5 areas, with memory of its own or
//! with memory that all areas share; the spans lie side by side. What is compared is the time that
//! the work of a trial takes one thread alone, at its best, with the time of the trial
//! ([`trials`](crate::trials)).

use crate::ioas::baseline::Baseline;
use crate::ioas::pairs::{Choice, pairs};
use crate::ioas::space::{
    AREA_COUNT, Cursor, Engine, Layout, Memory, Order, Space, fill, holes, large_source, own_source,
};
use crate::row::{Bar, Row};
use crate::subject::range;
use crate::trials::{Share, Spans, Summary, Trials, run};
use crate::workload::FIRST_IOVA;

/// Times the work of one thread that two have to do.
pub const MIN_SPEED_UP: f64 = 1.8;

/// Threads that run at once.
pub const THREAD_COUNT: usize = 2;

const MIB_2: u64 = 1 << 21;

/// Turns of one thread and two.
const TURN_COUNT: usize = 10;

/// Measurements of threads that never ran side by side, at most.
const ATTEMPT_COUNT: usize = 5;

/// How much longer than at its fastest one thread may take for what two are compared with.
const SLOW_ALONE: f64 = 1.03;

/// What one thread and two of them did.
#[derive(Clone, Copy, Debug)]
pub struct Scaled {
    /// Nanoseconds of one thread alone for an operation, in its best trial.
    pub alone_ns: f64,
    /// Nanoseconds of both together for an operation, in their best trial; infinite if they never
    /// ran side by side.
    pub together_ns: f64,
    /// The same in the trial that three quarters of the trials did not beat.
    pub together_p25_ns: f64,
}

impl Scaled {
    /// Lets `work` do its share on the first of `cpus` and on all of them, in turns.
    ///
    /// `work` gets the index of the thread, its trials, and how much to do.
    pub fn measure(
        cpus: &[usize],
        trial_count: usize,
        work: impl Fn(usize, Trials<'_>, Share) -> Spans + Sync,
    ) -> Self {
        let some = |cpus: &[usize], share, trial_count| {
            run(cpus, trial_count, |index, trials| {
                work(index, trials, share)
            })
        };
        let share = Share::calibrate(|share| some(&cpus[..1], share, 5));
        let of_turn = trial_count.div_ceil(TURN_COUNT);
        let (mut alone, mut together) = (Vec::new(), Vec::new());
        for _ in 0..ATTEMPT_COUNT {
            for _ in 0..TURN_COUNT {
                alone.extend(some(&cpus[..1], share, of_turn));
                together.extend(some(cpus, share, of_turn));
            }
            if !together.is_empty() {
                break;
            }
        }
        let none = Summary {
            best: f64::INFINITY,
            p25: f64::INFINITY,
        };
        let alone = Summary::of(&alone, |_| 1.0).unwrap_or(none);
        let together = Summary::of(&together, |_| 1.0).unwrap_or(none);
        Self {
            alone_ns: alone.best,
            together_ns: together.best,
            together_p25_ns: together.p25,
        }
    }

    /// Returns how many times the work of one thread both did, at their best.
    pub fn speed_up(self) -> f64 {
        self.alone_ns / self.together_ns
    }

    /// Returns the best of several passes, of which there is one at least. Those in which one thread
    /// was slow do not count: they would make two look better.
    pub fn best_of(passes: &[Self]) -> Self {
        let alone = passes.iter().map(|pass| pass.alone_ns);
        let fastest = alone.fold(f64::INFINITY, f64::min);
        let fair = passes
            .iter()
            .filter(|pass| pass.alone_ns <= SLOW_ALONE * fastest);
        let best = fair.max_by(|a, b| a.speed_up().total_cmp(&b.speed_up()));
        *best.expect("there is a pass, and the fastest is fair")
    }
}

/// Measures the engine and the baseline on [`THREAD_COUNT`] of `cpus`.
pub fn measure(cpus: &[usize], trial_count: usize, pass_count: usize) -> Vec<Row> {
    let Some(cpus) = cpus.get(..THREAD_COUNT) else {
        return Vec::new();
    };
    let engine = Crowded::new(Engine::new(1));
    let baseline = Crowded::new(Baseline::new(1, 0));
    let fixed = Choice::Fixed(Order::Rising);
    let mut rows = Vec::new();
    for memory in Memory::ALL {
        let bar = (memory == Memory::Own).then_some(Bar::AtLeast(MIN_SPEED_UP));
        let mut add = |how, measure: &dyn Fn() -> Scaled, bar| {
            rows.push(row(
                fixed,
                memory,
                how,
                &passes(measure, bar, pass_count),
                bar,
            ));
        };
        let of_engine = || engine.measure(cpus, fixed, memory, trial_count);
        add("engine, 1 domain", &of_engine, bar);
        let of_baseline = || baseline.measure(cpus, fixed, memory, trial_count);
        add("baseline, 1 domain", &of_baseline, None);
    }
    let (choice, memory) = (Choice::Automatic, Memory::Own);
    let scaled = engine.measure(cpus, choice, memory, trial_count);
    rows.push(row(choice, memory, "engine, 1 domain", &[scaled], None));
    rows
}

/// Measures until the promise is kept, at most `pass_count` times.
fn passes(measure: &dyn Fn() -> Scaled, bar: Option<Bar>, pass_count: usize) -> Vec<Scaled> {
    let mut passes = vec![measure()];
    if let Some(Bar::AtLeast(bar)) = bar {
        while passes.len() < pass_count && Scaled::best_of(&passes).speed_up() < bar {
            passes.push(measure());
        }
    }
    passes
}

fn row(choice: Choice, memory: Memory, how: &str, passes: &[Scaled], bar: Option<Bar>) -> Row {
    let what = format!("{}, {} pages", choice.as_str(), memory.as_str());
    let best = Scaled::best_of(passes);
    let row = Row::new(&what, how, best.speed_up(), "times one thread")
        .beside("of p25", best.alone_ns / best.together_p25_ns)
        .beside("1 thread ns", best.alone_ns)
        .beside("2 threads ns", best.together_ns);
    match bar {
        _ if best.together_ns.is_infinite() => row.too_noisy(),
        Some(bar) => row.with_bar(bar, false),
        None => row,
    }
}

/// A space with its areas, and memory for each thread.
struct Crowded<S: Space> {
    space: S,
    shared: S::Memory,
    own: [S::Memory; THREAD_COUNT],
}

impl<S: Space> Crowded<S> {
    fn new(space: S) -> Self {
        let shared = S::memory(large_source(AREA_COUNT));
        fill(&space, &shared, Layout::Holes, AREA_COUNT);
        let own = [(); THREAD_COUNT].map(|()| S::memory(own_source()));
        Self { space, shared, own }
    }

    fn measure(
        &self,
        cpus: &[usize],
        choice: Choice,
        memory: Memory,
        trial_count: usize,
    ) -> Scaled {
        let holes = holes(AREA_COUNT);
        Scaled::measure(cpus, trial_count, |index, trials, share| {
            let part = range(FIRST_IOVA + index as u64 * MIB_2, MIB_2);
            let own: Vec<u64> = holes
                .iter()
                .copied()
                .filter(|&iova| (part.start().get()..=part.last().get()).contains(&iova))
                .collect();
            let mut cursor = Cursor::new(&own);
            let source = match memory {
                Memory::Own => &self.own[index],
                Memory::Shared => &self.shared,
            };
            self.space.with_seat(source, part, |seat| {
                trials.each(share, || {
                    let mut left = share.piece_len as usize;
                    while left > 0 {
                        let iovas = cursor.take(left);
                        pairs(seat, choice, memory, iovas);
                        left -= iovas.len();
                    }
                })
            })
        })
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "the values have exact representations")]
mod tests {
    use super::*;

    #[test]
    fn a_pass_in_which_one_thread_was_slow_does_not_count() {
        let pass = |alone_ns, together_ns| Scaled {
            alone_ns,
            together_ns,
            together_p25_ns: together_ns,
        };
        let passes = [pass(100.0, 62.5), pass(200.0, 50.0), pass(100.0, 50.0)];
        assert_eq!(Scaled::best_of(&passes).speed_up(), 2.0);
        assert_eq!(Scaled::best_of(&passes[..2]).speed_up(), 1.6);
    }
}
