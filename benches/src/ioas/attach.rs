//! A domain is attached to a space of 10^5 areas, while another thread maps and unmaps.
//!
//! A *mapper* maps a page and unmaps it again, over and over, and times each pair, while domains are
//! attached and detached beside it, with pauses in which nothing happens. Pairs of a thread that the
//! system took off its processor say nothing and are counted apart, as in [`attach`](crate::attach);
//! not so if it gave the processor up itself, for it waited for a lock then. What the system hides
//! from the thread shows in the pauses.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use std::{io, thread};

use crate::cpu::{self, Waits};
use crate::histogram::Histogram;
use crate::ioas::space::{
    AREA_COUNT, Engine, Layout, Memory, Seat, Space as _, everything, fill, holes, large_source,
    new_domain, own_source,
};
use crate::paired::quantile;
use crate::row::{Bar, Row};
use crate::verdict::Verdict;

/// The longest pair of a thread that runs, beside an attach.
pub const MAX_PAIR: Duration = Duration::from_micros(50);

/// Domains that are attached, one after the other.
const ATTACH_COUNT: usize = 20;

/// Holes that the mapper uses: those of one leaf table.
const HOLE_COUNT: u64 = 256;

/// Pairs between two looks at what the mapper had to wait for its processor.
const BURST_LEN: usize = 64;

/// How many times as many long pairs as in the pauses are due to the machine.
const AS_BARE: u64 = 2;

const NS_PER_MS: f64 = 1e6;

const NS_PER_US: f64 = 1e3;

/// What happens beside the mapper.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Beside {
    Nothing,
    Attach,
    Detach,
}

impl Beside {
    const ALL: [Self; 3] = [Self::Nothing, Self::Attach, Self::Detach];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Nothing => "beside nothing",
            Self::Attach => "beside an attach",
            Self::Detach => "beside a detach",
        }
    }
}

/// Says what happens, to the mapper: the number of changes so far, each to the next [`Beside`], or
/// [`END`].
#[derive(Debug, Default)]
struct Stage(AtomicUsize);

const END: usize = usize::MAX;

impl Stage {
    fn next(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    fn end(&self) {
        self.0.store(END, Relaxed);
    }

    fn get(&self) -> usize {
        self.0.load(Relaxed)
    }

    /// Returns what happened between two looks: what disturbs most of all that did.
    fn between(before: usize, after: usize) -> Beside {
        let all = Beside::ALL.into_iter().rev();
        let mut met = all.filter(|&beside| {
            let distance = (beside as usize + Beside::ALL.len() - before % Beside::ALL.len())
                % Beside::ALL.len();
            distance <= after.saturating_sub(before)
        });
        met.next().unwrap_or(Beside::Nothing)
    }
}

/// What attaches and detaches took, in nanoseconds.
#[derive(Debug, Default)]
struct Turns {
    attach: Vec<f64>,
    detach: Vec<f64>,
}

impl Turns {
    /// Attaches a domain and detaches it.
    fn add(&mut self, engine: &Engine, stage: &Stage) {
        let domain = new_domain();
        stage.next();
        let start = Instant::now();
        let attached = engine.ioas.attach(Arc::clone(&domain));
        self.attach.push(start.elapsed().as_nanos() as f64);
        stage.next();
        attached.expect("an empty domain fits");
        let start = Instant::now();
        let detached = engine.ioas.detach(&domain);
        self.detach.push(start.elapsed().as_nanos() as f64);
        stage.next();
        detached.expect("it is attached, and the hardware does nothing");
    }

    fn rows(&self, how: &str) -> [Row; 2] {
        let row = |what: &str, series: &[f64]| {
            let (median, longest) = (quantile(series, 0.5), quantile(series, 1.0));
            Row::new(what, how, median / NS_PER_MS, "ms")
                .beside("ns an area", median / AREA_COUNT as f64)
                .beside("longest ms", longest / NS_PER_MS)
        };
        [
            row("attach to 100000 areas", &self.attach),
            row("detach", &self.detach),
        ]
    }
}

/// Times of pairs, by what happened beside them.
#[derive(Clone, Debug, Default)]
struct Pairs {
    whole: [Histogram; 3],
    interrupted: [Histogram; 3],
    /// Nanoseconds that it happened for in all.
    elapsed_ns: [f64; 3],
}

/// How often a thread gave its processor up itself.
struct Switches(Option<File>);

impl Switches {
    fn of_this_thread() -> Self {
        Self(File::open("/proc/thread-self/status").ok())
    }

    /// Returns the number since the thread started; zero where the system does not tell.
    fn count(&self) -> u64 {
        let mut status = [0; 4096];
        let read = self.0.as_ref().map(|file| file.read_at(&mut status, 0));
        let len = read.and_then(Result::ok).unwrap_or(0);
        let status = str::from_utf8(&status[..len]).unwrap_or_default();
        let mut lines = status.lines();
        let count = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        count
            .and_then(|count| count.trim().parse().ok())
            .unwrap_or(0)
    }
}

/// Measures attaches alone on the first of `cpus`, and beside a mapper on the last.
///
/// # Errors
///
/// Fails if a thread cannot be pinned.
pub fn measure(cpus: &[usize]) -> io::Result<Vec<Row>> {
    let engine = Engine::new(0);
    let shared = Engine::memory(large_source(AREA_COUNT));
    fill(&engine, &shared, Layout::Holes, AREA_COUNT);
    let stage = Stage::default();
    let (engine, stage) = (&engine, &stage);
    thread::scope(|scope| {
        let attacher = scope.spawn(|| {
            cpu::pin(cpus.first().copied())?;
            Ok(attach_alone(engine, stage))
        });
        let mut rows = joined(attacher)?;
        if let [first, .., last] = *cpus {
            let mapper = scope.spawn(move || map_until(engine, stage, last));
            let attacher = scope.spawn(move || {
                // Whatever happens, the mapper ends.
                let pinned = cpu::pin(Some(first));
                let turns = pinned.map(|_| attach_beside(engine, stage));
                stage.end();
                turns
            });
            let (turns, pauses) = joined(attacher)?;
            let mut pairs = joined(mapper)?;
            pairs.elapsed_ns = [&pauses, &turns.attach, &turns.detach]
                .map(|series: &Vec<f64>| series.iter().sum::<f64>());
            rows.extend(turns.rows("the second, beside a mapper"));
            rows.extend(Beside::ALL.map(|beside| pairs.row(beside)));
        }
        Ok(rows)
    })
}

fn joined<T>(thread: thread::ScopedJoinHandle<'_, io::Result<T>>) -> io::Result<T> {
    let joined = thread.join();
    joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Attaches domains while nobody else does anything, and leaves one attached.
fn attach_alone(engine: &Engine, stage: &Stage) -> Vec<Row> {
    // Each of these pins the pages and lets go of them.
    let mut pinning = Turns::default();
    for _ in 0..ATTACH_COUNT {
        pinning.add(engine, stage);
    }
    let attached = engine.ioas.attach(new_domain());
    attached.expect("an empty domain fits");
    let mut second = Turns::default();
    for _ in 0..ATTACH_COUNT {
        second.add(engine, stage);
    }
    let mut rows = Vec::from(pinning.rows("the only domain: pins"));
    rows.extend(second.rows("the second domain"));
    rows
}

/// Attaches domains with pauses in between, which are returned, too.
fn attach_beside(engine: &Engine, stage: &Stage) -> (Turns, Vec<f64>) {
    let mut turns = Turns::default();
    let mut pauses = Vec::new();
    for _ in 0..ATTACH_COUNT {
        let start = Instant::now();
        turns.add(engine, stage);
        // As long as both took, so that as many pairs are compared with.
        thread::sleep(start.elapsed());
        let elapsed = start.elapsed().as_nanos() as f64;
        let last = |series: &[f64]| series.last().copied().unwrap_or(0.0);
        pauses.push(elapsed - last(&turns.attach) - last(&turns.detach));
    }
    (turns, pauses)
}

/// Maps and unmaps until the end.
fn map_until(engine: &Engine, stage: &Stage, cpu: usize) -> io::Result<Pairs> {
    cpu::pin(Some(cpu))?;
    let own = Engine::memory(own_source());
    let holes = holes(HOLE_COUNT);
    let mut pairs = Pairs::default();
    let mut burst = Vec::with_capacity(BURST_LEN);
    let waits = Waits::of_this_thread();
    let switches = Switches::of_this_thread();
    let (mut waited, mut switch_count) = (waits.total(), switches.count());
    engine.with_seat(&own, everything(), |seat| {
        for &iova in holes.iter().cycle() {
            let before = stage.get();
            if before == END {
                break;
            }
            let ns = time(seat, iova);
            let after = stage.get();
            if after == END {
                break;
            }
            let beside = Stage::between(before, after);
            burst.push((beside, ns));
            if burst.len() == BURST_LEN {
                let now = (waits.total(), switches.count());
                pairs.add(&mut burst, now.0 != waited && now.1 == switch_count);
                (waited, switch_count) = now;
            }
        }
    });
    Ok(pairs)
}

fn time(seat: &mut dyn Seat, iova: u64) -> u64 {
    let start = Instant::now();
    seat.map(iova, Memory::Own.page(iova));
    seat.unmap(iova);
    start.elapsed().as_nanos() as u64
}

impl Pairs {
    fn add(&mut self, burst: &mut Vec<(Beside, u64)>, was_interrupted: bool) {
        let histograms = if was_interrupted {
            &mut self.interrupted
        } else {
            &mut self.whole
        };
        for (beside, ns) in burst.drain(..) {
            histograms[beside as usize].add(ns);
        }
    }

    fn row(&self, beside: Beside) -> Row {
        let times = &self.whole[beside as usize];
        let quiet = &self.whole[Beside::Nothing as usize];
        let long_ns = MAX_PAIR.as_nanos() as u64;
        let micros = |ns: u64| ns as f64 / NS_PER_US;
        let interrupted_count = self.interrupted[beside as usize].count();
        let count = times.count() + interrupted_count;
        let row = Row::new("longest pair", beside.as_str(), micros(times.max()), "us")
            .beside("p50", micros(times.quantile(0.5)))
            .beside("p99.9", micros(times.quantile(0.999)))
            .beside("above 50", times.count_above(long_ns) as f64)
            .beside("pairs", times.count() as f64)
            .beside("interrupted", interrupted_count as f64)
            .beside(
                "pairs a us",
                count as f64 / (self.elapsed_ns[beside as usize] / NS_PER_US),
            );
        if beside != Beside::Attach {
            return row;
        }
        let mut row = row.with_bar(Bar::AtMost(micros(long_ns)), false);
        // By the number of pairs, of which there are fewer beside an attach.
        let rate = |times: &Histogram| times.count_above(long_ns) as f64 / times.count() as f64;
        if row.verdict == Some(Verdict::NotMet) && rate(times) <= AS_BARE as f64 * rate(quiet) {
            row.verdict = Some(Verdict::AsBare);
        }
        row
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_counts_to_what_disturbs_most_of_what_it_met() {
        use Beside::{Attach, Detach, Nothing};
        let met = [
            (0, 0),
            (1, 1),
            (2, 2),
            (0, 1),
            (1, 2),
            (2, 3),
            (1, 3),
            (3, 4),
            (3, 6),
            (4, 4),
        ];
        let met = met.map(|(before, after)| Stage::between(before, after));
        let expected = [
            Nothing, Attach, Detach, Attach, Detach, Detach, Detach, Attach, Detach, Attach,
        ];
        assert_eq!(met, expected);
    }

    #[test]
    fn long_pairs_that_come_without_an_attach_as_often_are_the_machines() {
        let long_ns = 2 * MAX_PAIR.as_nanos() as u64;
        let mut pairs = Pairs::default();
        let mut add = |beside, ns: u64, was_interrupted| {
            pairs.add(&mut vec![(beside, ns); 10], was_interrupted);
            pairs.row(Beside::Attach).verdict
        };
        assert_eq!(add(Beside::Nothing, 500, false), Some(Verdict::Met));
        assert_eq!(add(Beside::Attach, 600, false), Some(Verdict::Met));
        assert_eq!(add(Beside::Attach, long_ns, true), Some(Verdict::Met));
        assert_eq!(add(Beside::Attach, long_ns, false), Some(Verdict::NotMet));
        assert_eq!(add(Beside::Nothing, long_ns, false), Some(Verdict::AsBare));
    }
}
