//! Several threads on one table, each under a claim of its own.
//!
//! | placement | the threads' ranges |
//! |---|---|
//! | apart | 1 GiB apart: no table but the root and the one below it in common |
//! | neighbouring | 2 MiB apart: neighbouring leaf tables, and items of one table above them |
//! | shared | equal parts of one leaf table, two at least: 1 MiB each for two threads |
//!
//! | work | what a thread does, round and round over its range |
//! |---|---|
//! | 4K pairs | maps a page and unmaps it |
//! | 64K runs | maps 16 pages and unmaps them |
//! | 2M runs | maps 512 pages, or all of its part of a shared table, and unmaps them |
//! | lookup beside unmap | every second thread looks its pages up, the others do 4K pairs |
//!
//! The table is guarded in each of the ways of [`designs`]. All tables exist before a trial. The
//! speed-up of a trial is the time that the work done in it takes one thread alone, at its best, by
//! the time of the trial.

use core::fmt;

use iopt::mem::Arena;
use iopt::radix::Table;
use iopt_formats::Format;

use crate::designs::{self, Design, Domain, Guards, Part, Pieces};
use crate::trials::{Share, Spans, Summary, Trial, Trials, run};
use crate::workload::FIRST_IOVA;

const KIB_4: u64 = 1 << 12;
const KIB_64: u64 = 1 << 16;
const MIB_2: u64 = 1 << 21;
const GIB_1: u64 = 1 << 30;

/// What a thread uses of its range where ranges are far apart: eight leaf tables, which fit in the
/// caches of a core.
const APART_LEN: u64 = 8 * MIB_2;

/// Most threads that are measured.
pub const MAX_THREADS: usize = 16;

/// Distance of the placements.
const SPAN: u64 = MAX_THREADS as u64 * GIB_1;

/// Table memory: far more than the tables of [`MAX_THREADS`] ranges.
const ARENA_LEN: usize = 64 << 20;

/// Turns of the thread counts of a row.
const TURN_COUNT: usize = 10;

/// How the ranges of the threads lie to each other.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Placement {
    /// 1 GiB apart.
    Apart,
    /// In neighbouring leaf tables.
    Neighbouring,
    /// In one leaf table.
    Shared,
}

impl Placement {
    /// Every placement.
    pub const ALL: [Self; 3] = [Self::Apart, Self::Neighbouring, Self::Shared];

    /// Returns the name as text.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Apart => "apart",
            Self::Neighbouring => "neighbouring",
            Self::Shared => "shared",
        }
    }

    /// Returns the range of the thread `index` of `part_count` at most.
    const fn part(self, index: usize, part_count: usize) -> Part {
        // Placements share no leaf table, so that each has tables of the threads that use them.
        let (offset, stride, len) = match self {
            Self::Apart => (0, GIB_1, APART_LEN),
            Self::Neighbouring => (SPAN, MIB_2, MIB_2),
            Self::Shared => {
                let len = MIB_2 / part_count as u64;
                (2 * SPAN, len, len)
            }
        };
        Part {
            start: FIRST_IOVA + offset + index as u64 * stride,
            len,
        }
    }
}

/// What the threads do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Work {
    /// One page at a time.
    Pairs4K,
    /// 16 pages at a time.
    Runs64K,
    /// 512 pages at a time.
    Runs2M,
    /// Lookups beside pages that come and go.
    LookupBesideUnmap,
}

impl Work {
    /// Every work.
    pub const ALL: [Self; 4] = [
        Self::Pairs4K,
        Self::Runs64K,
        Self::Runs2M,
        Self::LookupBesideUnmap,
    ];

    /// Returns the name as text.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pairs4K => "4K pairs",
            Self::Runs64K => "64K runs",
            Self::Runs2M => "2M runs",
            Self::LookupBesideUnmap => "lookup beside unmap",
        }
    }

    /// Returns the bytes of a call.
    fn len(self, part: Part) -> u64 {
        let len = match self {
            Self::Pairs4K | Self::LookupBesideUnmap => KIB_4,
            Self::Runs64K => KIB_64,
            Self::Runs2M => MIB_2,
        };
        len.min(part.len)
    }

    /// Returns what threads do, in the order of their indexes, over and over.
    const fn roles(self) -> &'static [Role] {
        match self {
            Self::Pairs4K | Self::Runs64K | Self::Runs2M => &[Role::Change],
            Self::LookupBesideUnmap => &[Role::Change, Role::Look],
        }
    }
}

/// What one thread does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Role {
    Change,
    Look,
}

/// One measurement.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Row {
    /// Where.
    pub placement: Placement,
    /// What.
    pub work: Work,
    /// How.
    pub design: Design,
}

/// What one thread of a run has.
#[derive(Clone, Copy, Debug)]
struct Task {
    role: Role,
    part: Part,
    /// Bytes of a call.
    len: u64,
    /// Calls, or pairs of them, of a trial.
    share: Share,
}

/// The same, to be done in trials.
struct TaskOf<'g> {
    task: Task,
    trials: Trials<'g>,
}

impl designs::Work for TaskOf<'_> {
    type Output = Spans;

    fn run<D: Domain>(self, domain: &mut D) -> Spans {
        let Self { task, trials } = self;
        let Task {
            role,
            part,
            len,
            share,
        } = task;
        let mut pieces = Pieces::new(part, len);
        match role {
            Role::Change => trials.each(share, || {
                pieces.visit(share.piece_len, |iova| {
                    domain.map(iova, len);
                    domain.unmap(iova, len);
                });
            }),
            Role::Look => {
                domain.map(part.start, part.len);
                let spans = trials.each(share, || domain.lookups(&mut pieces, share.piece_len));
                domain.unmap(part.start, part.len);
                spans
            }
        }
    }
}

/// Creates the tables of a part.
struct Touch(Part);

impl designs::Work for Touch {
    type Output = ();

    fn run<D: Domain>(self, domain: &mut D) {
        let Self(Part { start, len }) = self;
        domain.map(start, len);
        domain.unmap(start, len);
    }
}

/// What the trials of one thread count showed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// Threads.
    pub thread_count: usize,
    /// Speed-up in the best trial and in the first quartile; `None` if there was no trial that
    /// counts.
    pub speed_up: Option<SpeedUp>,
    /// Trials whose threads did not overlap.
    pub discarded_count: usize,
}

/// How many times as much the threads do together as one of them does alone, at its best.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SpeedUp {
    /// In the best trial.
    pub best: f64,
    /// In the trial that three quarters of the trials did not beat.
    pub p25: f64,
}

/// How much longer than at its fastest one thread may take for what more are compared with.
const SLOW_ALONE: f64 = 1.03;

/// One row, measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// By the number of threads, from two on.
    pub outcomes: Vec<Outcome>,
    /// Time of a map and its unmap on one thread alone, and of a lookup if there are any, in
    /// nanoseconds.
    pub alone_ns: Vec<f64>,
}

impl Measured {
    /// Returns the best of several measurements of one row, of which there is one at least. Those in
    /// which one thread was slow do not count: they would make more threads look better.
    pub fn best_of(passes: &[Self]) -> &Self {
        let alone = |pass: &Self| pass.alone_ns.iter().sum::<f64>();
        let fastest = passes.iter().map(alone).fold(f64::INFINITY, f64::min);
        let fair = passes
            .iter()
            .filter(|pass| alone(pass) <= SLOW_ALONE * fastest);
        let worst_of = |pass: &Self| {
            let outcomes = pass.outcomes.iter();
            let best = outcomes.map(|outcome| {
                let per_thread = |speed_up: SpeedUp| speed_up.best / outcome.thread_count as f64;
                outcome.speed_up.map_or(0.0, per_thread)
            });
            best.fold(f64::INFINITY, f64::min)
        };
        fair.max_by(|a, b| worst_of(a).total_cmp(&worst_of(b)))
            .expect("there is a measurement")
    }

    /// Returns the speed-up of the best trial of `thread_count` threads.
    pub fn best(&self, thread_count: usize) -> Option<f64> {
        let mut outcomes = self.outcomes.iter();
        let outcome = outcomes.find(|outcome| outcome.thread_count == thread_count);
        outcome
            .and_then(|outcome| outcome.speed_up)
            .map(|speed_up| speed_up.best)
    }
}

/// A table in all designs, and the processors for its threads.
pub struct Rig<'c, F: Format> {
    guards: Guards<F>,
    cpus: &'c [usize],
    part_count: usize,
}

impl<F: Format> fmt::Debug for Rig<'_, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rig")
            .field("table", &self.guards.table)
            .field("cpus", &self.cpus)
            .finish_non_exhaustive()
    }
}

impl<'c, F: Format> Rig<'c, F> {
    /// Creates a table with all leaf tables that a thread on each of `cpus` needs, of which the
    /// first [`MAX_THREADS`] are used.
    ///
    /// # Panics
    ///
    /// Panics if the system has no memory for the tables.
    pub fn new(format: F, cpus: &'c [usize]) -> Self {
        let cpus = &cpus[..cpus.len().min(MAX_THREADS)];
        let memory = Arena::new(ARENA_LEN).expect("address space for the tables");
        let table = Table::new(format, memory).expect("memory for the tables");
        let part_count = cpus.len().next_power_of_two().max(2);
        let rig = Self {
            guards: Guards::new(table, SPAN),
            cpus,
            part_count,
        };
        rig.create_tables();
        rig
    }

    /// Lets each thread create the tables of its parts, in pages of its own: two tables that lie
    /// side by side would be prefetched together.
    fn create_tables(&self) {
        run(self.cpus, 0, |index, trials| {
            for placement in Placement::ALL {
                let part = placement.part(index, self.part_count);
                self.guards.run(Design::Claim, part, Touch(part));
            }
            // Who ended before the others began would leave its pages to them.
            trials.each(Share::new(1), || {})
        });
    }

    fn run_task(&self, design: Design, task: Task, trials: Trials<'_>) -> Spans {
        let work = TaskOf { task, trials };
        self.guards.run(design, task.part, work)
    }

    /// Measures `row` with 1, 2, 4 and so on threads, and as many as there are processors, each for
    /// `trial_count` trials or a few more.
    pub fn measure(&self, row: Row, trial_count: usize) -> Measured {
        let Row {
            placement,
            work,
            design,
        } = row;
        let roles = work.roles();
        let task = |index: usize, role, share| {
            let part = placement.part(index, self.part_count);
            Task {
                role,
                part,
                len: work.len(part),
                share,
            }
        };
        let alone = |role, share, trial_count| {
            run(&self.cpus[..1], trial_count, |_, trials| {
                self.run_task(design, task(0, role, share), trials)
            })
        };
        let shares: Vec<Share> = roles
            .iter()
            .map(|&role| Share::calibrate(|share| alone(role, share, 5)))
            .collect();
        let together = |thread_count: usize, trial_count| {
            run(&self.cpus[..thread_count], trial_count, |index, trials| {
                let (role, share) = (roles[index % roles.len()], shares[index % roles.len()]);
                self.run_task(design, task(index, role, share), trials)
            })
        };
        let trials_of_turn = trial_count.div_ceil(TURN_COUNT);
        let thread_counts = thread_counts(self.cpus.len());
        let mut alone_trials: Vec<Vec<Trial>> = roles.iter().map(|_| Vec::new()).collect();
        let mut trials: Vec<Vec<Trial>> = thread_counts.iter().map(|_| Vec::new()).collect();
        for _ in 0..TURN_COUNT {
            for ((&role, &share), trials) in roles.iter().zip(&shares).zip(&mut alone_trials) {
                trials.extend(alone(role, share, trials_of_turn));
            }
            for (&thread_count, trials) in thread_counts.iter().zip(&mut trials) {
                trials.extend(together(thread_count, trials_of_turn));
            }
        }
        let alone_ns: Vec<f64> = alone_trials
            .iter()
            .map(|trials| Summary::of(trials, |_| 1.0).map_or(f64::NAN, |summary| summary.best))
            .collect();
        let of_threads = thread_counts.iter().zip(&trials);
        Measured {
            outcomes: of_threads
                .map(|(&thread_count, trials)| Outcome {
                    thread_count,
                    speed_up: speed_up(&alone_ns, trials),
                    discarded_count: TURN_COUNT * trials_of_turn - trials.len(),
                })
                .collect(),
            alone_ns,
        }
    }
}

/// Returns the numbers of threads, from two on, that are measured with `cpu_count` processors.
pub fn thread_counts(cpu_count: usize) -> Vec<usize> {
    let powers = (1..usize::BITS).map(|lg2| 1 << lg2);
    let mut counts: Vec<usize> = powers.take_while(|&n| n <= cpu_count).collect();
    if cpu_count > 1 && !cpu_count.is_power_of_two() {
        counts.push(cpu_count);
    }
    counts
}

/// Returns the speed-up of `trials`, whose threads need `alone_ns`, one after the other and over
/// again, for one operation alone.
fn speed_up(alone_ns: &[f64], trials: &[Trial]) -> Option<SpeedUp> {
    let cost = Summary::of(trials, |thread| alone_ns[thread % alone_ns.len()]);
    cost.map(|Summary { best, p25 }| SpeedUp {
        best: 1.0 / best,
        p25: 1.0 / p25,
    })
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "the values have exact representations")]
mod tests {
    use iopt_formats::Iova;
    use iopt_formats::vtd::SecondStage;

    use super::*;
    use crate::cpu;

    #[test]
    fn parts_do_not_overlap_and_fit_their_calls() {
        for part_count in [2, 4, 8, 16] {
            let parts = Placement::ALL.map(|placement| {
                let part = |index| placement.part(index, part_count);
                (0..part_count).map(part).collect::<Vec<_>>()
            });
            let parts = parts.concat();
            for (before, after) in parts.iter().zip(&parts[1..]) {
                assert!(before.start + before.len <= after.start);
            }
            for work in Work::ALL {
                assert!(parts.iter().all(|&part| part.len % work.len(part) == 0));
            }
        }
    }

    #[test]
    fn the_parts_of_a_shared_table_fill_it() {
        let [first, last] = [0, 15].map(|index| Placement::Shared.part(index, 16));
        assert_eq!(first.start % MIB_2, 0);
        assert_eq!(last.start + last.len - first.start, MIB_2);
    }

    #[test]
    fn thread_counts_are_powers_of_two_and_all_processors() {
        assert_eq!(thread_counts(1), []);
        assert_eq!(thread_counts(2), [2]);
        assert_eq!(thread_counts(6), [2, 4, 6]);
        assert_eq!(thread_counts(16), [2, 4, 8, 16]);
    }

    #[test]
    fn every_design_does_every_work() {
        let cpus = cpu::cores().unwrap();
        let rig = Rig::new(SecondStage::new(48).unwrap(), &cpus);
        for design in Design::ALL {
            for placement in Placement::ALL {
                for work in Work::ALL {
                    for (index, &role) in work.roles().iter().enumerate() {
                        let part = placement.part(index, rig.part_count);
                        let task = Task {
                            role,
                            part,
                            len: work.len(part),
                            share: Share::new(40),
                        };
                        run(&cpus[..1], 1, |_, trials| {
                            rig.run_task(design, task, trials)
                        });
                        assert_eq!(rig.guards.table.lookup(Iova::new(part.start)), None);
                    }
                }
            }
        }
    }

    #[test]
    fn a_speed_up_counts_each_thread_by_what_its_work_takes_alone() {
        assert_eq!(speed_up(&[100.0], &[]), None);
        let trials = [Trial::new(500.0, &[5, 4]), Trial::new(500.0, &[5, 5])];
        assert_eq!(speed_up(&[100.0], &trials).unwrap().best, 2.0);
        // One thread that takes 50 for each of its operations, and one that takes 10.
        let trials = [Trial::new(400.0, &[8, 20])];
        assert_eq!(speed_up(&[50.0, 10.0], &trials).unwrap().best, 1.5);
    }
}
