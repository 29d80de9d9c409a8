//! The promises: what the engine may cost, as ratios to yardsticks of the same process.
//!
//! The first yardstick of a row decides; the second is of another kind and says whether the first
//! can be believed; the others measure the core rather than memory. A bar is what a ratio to the
//! yardstick may be at most; a row without one is there to compare with.
//!
//! Lookups are measured in three ways: through a reader, which holds an epoch for many of them and
//! which the promise is about; alone, each with an epoch of its own; and by the holder of the claim,
//! who needs none. P7b takes pages that are zeroed beforehand from an arena, P13 unlinks the leaf
//! tables and frees them between rounds. P11, about several threads, is the bench `scaling`.

use iopt::radix::UnmapPolicy;
use iopt_formats::Format;

use crate::loops::{Rounds, Yardstick, rounds};
use crate::paired::{Comparison, Side, Turns, quantile};
use crate::peers::aarch64::Stage2Tables;
#[cfg(target_arch = "x86_64")]
use crate::peers::{multiarch::MultiarchTables, x86::OffsetTables};
use crate::subject::{MakeDetaching, MakeSubject, MakeZeroed};
use crate::workload::{Make, MakeDefault, Phase, Tables, Times, Workload, WorkloadName, map_pages};
use crate::{clock, pool};

use Phase::{Map, Translate, TranslateAlone, TranslateOwn, Unmap};
use WorkloadName::{W1, W2, W3, W5, W6, W7, W8, W9, W10Fifo, W10Lifo, W10b, W13Exact, W13Sparse};
use Yardstick::{Y1, Y2, Y3, Y4a, Y4b, Y5a, Y5c, Y6, Y8, Y9, Y10, Y12};

/// What a ratio to one yardstick may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bar {
    /// The yardstick.
    pub yardstick: Yardstick,
    /// The largest ratio that keeps the promise, if there is one.
    pub at_most: Option<f64>,
}

/// One promise about one workload.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    /// Its name, `P1` to `P13`; several rows may share one.
    pub id: &'static str,
    /// What is promised.
    pub what: &'static str,
    /// The workload.
    pub workload: WorkloadName,
    /// The part of it that is timed.
    pub phase: Phase,
    /// The bars: the one that decides, the cross-check if there is one, then the others.
    pub bars: &'static [Bar],
}

const fn bar(yardstick: Yardstick, at_most: f64) -> Bar {
    Bar {
        yardstick,
        at_most: Some(at_most),
    }
}

/// Compares without a promise.
const fn beside(yardstick: Yardstick) -> Bar {
    Bar {
        yardstick,
        at_most: None,
    }
}

const fn row(
    id: &'static str,
    what: &'static str,
    workload: WorkloadName,
    phase: Phase,
    bars: &'static [Bar],
) -> Row {
    Row {
        id,
        what,
        workload,
        phase,
        bars,
    }
}

/// Every promise about one thread and one table.
pub const ROWS: &[Row] = &[
    row(
        "P1",
        "map 4K, hot",
        W1,
        Map,
        &[
            bar(Y9, 0.32),
            bar(Y8, 0.88),
            bar(Y6, 5.0),
            bar(Y5c, 0.92),
            bar(Y10, 0.75),
        ],
    ),
    row(
        "P2",
        "map 4K, 128 tables",
        W2,
        Map,
        &[bar(Y9, 0.40), bar(Y8, 1.1)],
    ),
    row(
        "P2",
        "map 4K, 128 tables, random",
        W3,
        Map,
        &[bar(Y9, 0.39), bar(Y8, 1.0)],
    ),
    row(
        "P3",
        "unmap 4K, hot",
        W1,
        Unmap,
        &[bar(Y9, 0.36), bar(Y8, 3.2), bar(Y6, 5.6)],
    ),
    row(
        "P4",
        "look up, hot",
        W1,
        Translate,
        &[bar(Y5a, 2.0), bar(Y8, 1.3), bar(Y9, 0.16)],
    ),
    row(
        "P4",
        "look up alone, hot",
        W1,
        TranslateAlone,
        &[beside(Y5a), beside(Y8), beside(Y9)],
    ),
    row(
        "P4",
        "look up one's own, hot",
        W1,
        TranslateOwn,
        &[beside(Y5a), beside(Y8), beside(Y9)],
    ),
    row(
        "P5",
        "map 2M of 4K",
        W8,
        Map,
        &[bar(Y2, 1.5), bar(Y9, 0.19), bar(Y1, 2.3)],
    ),
    row(
        "P6",
        "unmap 2M of 4K",
        W8,
        Unmap,
        &[bar(Y3, 1.5), bar(Y1, 2.35)],
    ),
    row(
        "P7",
        "map 2M of 4K, new table",
        W10Lifo,
        Map,
        &[bar(Y4a, 2.2), bar(Y9, 0.30)],
    ),
    row(
        "P7",
        "map 2M of 4K, cold table",
        W10Fifo,
        Map,
        &[bar(Y4b, 1.3)],
    ),
    row(
        "P7b",
        "map 4K, new zeroed table",
        W10b,
        Map,
        &[bar(Y12, 0.70), bar(Y9, 0.35)],
    ),
    row(
        "P8",
        "map 1G of 4K",
        W9,
        Map,
        &[bar(Y2, 2.0), bar(Y9, 0.25)],
    ),
    row(
        "P9",
        "map 64K of 4K",
        W5,
        Map,
        &[bar(Y9, 0.35), bar(Y2, 4.7)],
    ),
    row(
        "P9",
        "unmap 64K of 4K",
        W5,
        Unmap,
        &[bar(Y9, 0.34), bar(Y3, 4.2)],
    ),
    row(
        "P10",
        "map a 2M block",
        W6,
        Map,
        &[bar(Y9, 0.54), bar(Y8, 1.4)],
    ),
    row(
        "P10",
        "unmap a 2M block",
        W6,
        Unmap,
        &[bar(Y9, 0.51), bar(Y8, 4.4)],
    ),
    row(
        "P10",
        "map a 1G block",
        W7,
        Map,
        &[bar(Y9, 0.71), bar(Y8, 1.3)],
    ),
    row(
        "P10",
        "unmap a 1G block",
        W7,
        Unmap,
        &[bar(Y9, 0.66), bar(Y8, 5.1)],
    ),
    row(
        "P13",
        "unlink 2M of 4K",
        W13Sparse,
        Unmap,
        &[bar(Y12, 1.6), bar(Y9, 3.0)],
    ),
    row(
        "P13",
        "the same, looked at",
        W13Exact,
        Unmap,
        &[beside(Y12), beside(Y9)],
    ),
];

/// How much slower than the fastest 2 MiB region the slowest may be (P2).
pub const MAX_REGION_RATIO: f64 = 2.0;

/// Who ran in a measurement.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Who {
    Subject,
    Yardstick(Yardstick),
}

/// One bar of one row, measured.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// The row.
    pub row: Row,
    /// The bar.
    pub bar: Bar,
    /// Whether this bar decides.
    pub decides: bool,
    /// The numbers.
    pub comparison: Comparison,
}

/// Measures `rows`, all of the workload `name`, for tables of `format`; one round.
///
/// Yardsticks that do not exist on this processor are left out.
pub fn measure<F: Format>(format: F, name: WorkloadName, rows: &[Row]) -> Vec<Measured> {
    let workload = Workload::new(name);
    let subject = MakeSubject(format);
    let turns = match name {
        W10Fifo => pool::with_cold_pages(|| new_tables(&subject, &workload, rows)),
        W10Lifo => new_tables(&subject, &workload, rows),
        W10b => new_tables(&MakeZeroed(format), &workload, rows),
        W13Exact => {
            let make = MakeDetaching(format, UnmapPolicy::Exact);
            used_tables(&make, &workload, rows)
        }
        W13Sparse => {
            let make = MakeDetaching(format, UnmapPolicy::Sparse);
            used_tables(&make, &workload, rows)
        }
        W1 | W2 | W3 | W5 | W6 | W7 | W8 | W9 => used_tables(&subject, &workload, rows),
    };
    let mut measured = Vec::new();
    for &row in rows {
        for (index, &bar) in row.bars.iter().enumerate() {
            if bar.yardstick.is_available() {
                let phase = bar.yardstick.phase(row.phase);
                let comparison = turns.compare(
                    (Who::Subject, row.phase),
                    (Who::Yardstick(bar.yardstick), phase),
                );
                measured.push(Measured {
                    row,
                    bar,
                    decides: index == 0,
                    comparison,
                });
            }
        }
    }
    measured
}

/// Measures in tables that earlier rounds have created.
fn used_tables(subject: &impl Make, workload: &Workload, rows: &[Row]) -> Turns<Who> {
    subject.with(|tables| {
        let side = Side::new(Who::Subject, || workload.round(tables));
        run(side, rows, |yardstick| match yardstick {
            Y9 => used(Stage2Tables::default(), workload),
            #[cfg(target_arch = "x86_64")]
            Y8 => used(MultiarchTables::default(), workload),
            #[cfg(target_arch = "x86_64")]
            Y10 => used(OffsetTables::default(), workload),
            other => rounds(other),
        })
    })
}

fn used<T: Tables + 'static>(mut tables: T, workload: &Workload) -> Rounds<'_> {
    Box::new(move || workload.round(&mut tables))
}

/// Measures in tables that each round makes and ends; only the calls of the workload are timed.
fn new_tables(subject: &impl Make, workload: &Workload, rows: &[Row]) -> Turns<Who> {
    let side = Side::new(Who::Subject, || {
        subject.with(|tables| workload.round(tables))
    });
    run(side, rows, |yardstick| match yardstick {
        Y9 => new(MakeDefault::<Stage2Tables>::new(), workload),
        #[cfg(target_arch = "x86_64")]
        Y8 => new(MakeDefault::<MultiarchTables>::new(), workload),
        #[cfg(target_arch = "x86_64")]
        Y10 => new(MakeDefault::<OffsetTables>::new(), workload),
        other => rounds(other),
    })
}

fn new<M: Make>(make: M, workload: &Workload) -> Rounds<'_> {
    Box::new(move || make.with(|tables| workload.round(tables)))
}

fn run<'a>(
    subject: Side<'a, Who>,
    rows: &[Row],
    rounds_of: impl Fn(Yardstick) -> Rounds<'a>,
) -> Turns<Who> {
    let mut sides = vec![subject];
    let bars = rows.iter().flat_map(|row| row.bars);
    let mut names: Vec<Yardstick> = bars.map(|bar| bar.yardstick).collect();
    names.retain(|name| name.is_available());
    names.sort_unstable();
    names.dedup();
    for name in names {
        sides.push(Side::new(Who::Yardstick(name), rounds_of(name)));
    }
    let deciding = rows.iter().map(|row| {
        let yardstick = row.bars[0].yardstick;
        (Who::Yardstick(yardstick), yardstick.phase(row.phase))
    });
    Turns::measure(&mut sides, &deciding.collect::<Vec<_>>())
}

/// Returns how much slower the slowest 2 MiB region of W2 is mapped than the fastest (P2).
pub fn region_ratio<F: Format>(format: F) -> f64 {
    const ROUND_COUNT: usize = 101;
    const PAGES_OF_REGION: usize = 512;
    let workload = Workload::new(W2);
    MakeSubject(format).with(|tables| {
        workload.round(tables);
        let regions = workload.iovas().chunks_exact(PAGES_OF_REGION);
        let mut fastest = vec![f64::INFINITY; regions.len()];
        for _ in 0..ROUND_COUNT {
            for (fastest, iovas) in fastest.iter_mut().zip(regions.clone()) {
                *fastest = fastest.min(clock::time(|| map_pages::<_, 12>(tables, iovas)));
            }
            workload.unmap(tables);
        }
        quantile(&fastest, 1.0) / quantile(&fastest, 0.0)
    })
}

/// Returns the medians of every yardstick, in nanoseconds: the loops, then the crates on W1.
pub fn yardsticks() -> Vec<(Yardstick, Times)> {
    let workload = Workload::new(W1);
    let used = |yardstick: Yardstick| match yardstick {
        Y9 => used(Stage2Tables::default(), &workload),
        #[cfg(target_arch = "x86_64")]
        Y8 => used(MultiarchTables::default(), &workload),
        #[cfg(target_arch = "x86_64")]
        Y10 => used(OffsetTables::default(), &workload),
        other => rounds(other),
    };
    let names = Yardstick::LOOPS.into_iter().chain(Yardstick::PEERS);
    let names: Vec<Yardstick> = names.filter(|name| name.is_available()).collect();
    let mut sides: Vec<_> = names
        .iter()
        .map(|&name| Side::new(name, used(name)))
        .collect();
    let turns = Turns::measure(&mut sides, &[]);
    names
        .into_iter()
        .map(|name| (name, turns.medians(name)))
        .collect()
}
