//! What a replay found and measured.

use std::fmt;
use std::path::Path;
use std::time::Instant;

use hdrhistogram::Histogram;
use iopt_formats::catalog::FormatName;
use iopt_tools::trace::Trace;
use serde::Serialize;

use crate::output::{Align, Table};
use crate::replay::engine::{DomainRun, Flushes};

/// Figures of one trace, and of all together.
#[derive(Clone, Debug, Default, Serialize)]
struct Figures {
    operations: u64,
    maps: u64,
    unmaps: u64,
    verified_pages: u64,
    mismatches: u64,
    peak_live_pages: u64,
    live_pages: u64,
    peak_table_pages: u64,
    cuts: u64,
    engine_ns: u64,
    latency_ns: Latency,
    invalidation: Invalidation,
}

/// Nanoseconds of one map or unmap.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Latency {
    mean: f64,
    p50: u64,
    p90: u64,
    p99: u64,
    p999: u64,
    max: u64,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Invalidation {
    ranges_gathered: u64,
    commands: u64,
    bytes: u64,
}

/// One trace.
#[derive(Debug, Serialize)]
pub(crate) struct Run {
    trace: String,
    format: &'static str,
    domains: u64,
    #[serde(flatten)]
    figures: Figures,
    details: Vec<String>,
    #[serde(skip)]
    latencies: Histogram<u64>,
}

/// All traces of a command.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    schema: u32,
    command: &'static str,
    /// What reading the clock adds to each operation.
    clock_ns: u64,
    #[serde(flatten)]
    totals: Figures,
    runs: Vec<Run>,
}

impl Run {
    /// Sums up the domains of a trace.
    pub(crate) fn new(
        path: &Path,
        format: FormatName,
        trace: &Trace,
        domains: Vec<DomainRun>,
    ) -> Self {
        let mut figures = Figures {
            operations: trace.operations.len() as u64,
            maps: trace.figures.maps,
            unmaps: trace.figures.unmaps,
            peak_live_pages: trace.figures.peak_live_pages,
            live_pages: trace.figures.live_pages,
            ..Figures::default()
        };
        let mut latencies = engine_histogram();
        let mut flushes = Flushes::default();
        let mut details = Vec::new();
        let mut table_pages = Vec::new();
        for domain in domains {
            figures.engine_ns = figures.engine_ns.saturating_add(domain.engine_ns);
            figures.cuts += domain.cuts;
            figures.verified_pages += domain.verifier.checked;
            figures.mismatches += domain.verifier.mismatches;
            flushes.add(domain.flushes);
            latencies
                .add(&domain.latencies)
                .expect("all histograms have the same bounds");
            let id = domain.id;
            details.extend(
                domain
                    .verifier
                    .details
                    .iter()
                    .map(|why| format!("domain {id}: {why}")),
            );
            table_pages.push(domain.table_pages);
        }
        figures.peak_table_pages = peak(&table_pages);
        figures.latency_ns = Latency::of(&latencies);
        figures.invalidation = Invalidation::of(flushes);
        Self {
            trace: path.display().to_string(),
            format: format.as_str(),
            domains: trace.figures.domains,
            figures,
            details,
            latencies,
        }
    }
}

impl Report {
    /// Sums up all traces.
    pub(crate) fn new(runs: Vec<Run>) -> Self {
        let mut totals = Figures::default();
        let mut latencies = engine_histogram();
        for run in &runs {
            let figures = &run.figures;
            totals.operations += figures.operations;
            totals.maps += figures.maps;
            totals.unmaps += figures.unmaps;
            totals.verified_pages += figures.verified_pages;
            totals.mismatches += figures.mismatches;
            totals.peak_live_pages = totals.peak_live_pages.max(figures.peak_live_pages);
            totals.live_pages += figures.live_pages;
            totals.peak_table_pages = totals.peak_table_pages.max(figures.peak_table_pages);
            totals.cuts += figures.cuts;
            totals.engine_ns = totals.engine_ns.saturating_add(figures.engine_ns);
            totals.invalidation.add(figures.invalidation);
            latencies
                .add(&run.latencies)
                .expect("all histograms have the same bounds");
        }
        totals.latency_ns = Latency::of(&latencies);
        Self {
            schema: 1,
            command: "replay",
            clock_ns: clock_ns(),
            totals,
            runs,
        }
    }

    /// Returns the number of pages that were not as they should be.
    pub(crate) fn mismatches(&self) -> u64 {
        self.totals.mismatches
    }
}

/// Creates a histogram with the bounds that all of a replay have.
pub(crate) fn engine_histogram() -> Histogram<u64> {
    /// A minute; what takes longer counts as that.
    const MAX_NS: u64 = 60_000_000_000;
    Histogram::new_with_max(MAX_NS, 3).expect("these bounds are possible")
}

impl Latency {
    fn of(latencies: &Histogram<u64>) -> Self {
        Self {
            mean: (latencies.mean() * 10.0).round() / 10.0,
            p50: latencies.value_at_quantile(0.5),
            p90: latencies.value_at_quantile(0.9),
            p99: latencies.value_at_quantile(0.99),
            p999: latencies.value_at_quantile(0.999),
            max: latencies.max(),
        }
    }
}

impl Invalidation {
    fn of(flushes: Flushes) -> Self {
        Self {
            ranges_gathered: flushes.gathered,
            commands: flushes.commands,
            bytes: flushes.bytes,
        }
    }

    fn add(&mut self, other: Self) {
        self.ranges_gathered += other.ranges_gathered;
        self.commands += other.commands;
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

/// Returns the most table pages of all domains at one point of the trace; each domain gives its
/// counts by rising position.
fn peak(domains: &[Vec<(u64, u64)>]) -> u64 {
    let mut changes = Vec::new();
    for counts in domains {
        let mut before = 0;
        for &(index, count) in counts {
            changes.push((index, before, count));
            before = count;
        }
    }
    // The sort is stable, so that the changes of one operation stay in order.
    changes.sort_by_key(|&(index, ..)| index);
    let mut total = 0;
    let mut peak = 0;
    for (_, before, count) in changes {
        total = total - before + count;
        peak = peak.max(total);
    }
    peak
}

/// Returns what one reading of the clock before and one after add to an operation, typically.
fn clock_ns() -> u64 {
    let mut samples: Vec<u128> = (0..1001)
        .map(|_| Instant::now().elapsed().as_nanos())
        .collect();
    samples.sort_unstable();
    samples
        .get(500)
        .copied()
        .and_then(|median| u64::try_from(median).ok())
        .unwrap_or(0)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for run in &self.runs {
            writeln!(
                f,
                "{} on {}, {} domains",
                run.trace, run.format, run.domains
            )?;
            write_figures(f, &run.figures)?;
            for detail in &run.details {
                writeln!(f, "  mismatch: {detail}")?;
            }
            writeln!(f)?;
        }
        if self.runs.len() > 1 {
            writeln!(f, "{} traces", self.runs.len())?;
            write_figures(f, &self.totals)?;
            writeln!(f)?;
        }
        writeln!(
            f,
            "times include reading the clock, about {} ns an operation",
            self.clock_ns
        )
    }
}

fn write_figures(f: &mut fmt::Formatter<'_>, figures: &Figures) -> fmt::Result {
    let mut table = Table::new([("", Align::Left), ("", Align::Right), ("", Align::Left)]);
    let mut row = |name: &str, value: u64, rest: String| {
        table.row([format!("  {name}"), value.to_string(), rest]);
    };
    let Latency {
        mean,
        p50,
        p90,
        p99,
        p999,
        max,
    } = figures.latency_ns;
    let Invalidation {
        ranges_gathered,
        commands,
        bytes,
    } = figures.invalidation;
    row(
        "operations",
        figures.operations,
        format!("{} maps, {} unmaps", figures.maps, figures.unmaps),
    );
    row(
        "live pages",
        figures.peak_live_pages,
        format!("at peak, {} at the end", figures.live_pages),
    );
    row("table pages", figures.peak_table_pages, "at peak".into());
    row(
        "engine ns",
        figures.engine_ns,
        format!("{mean} an operation; p50 {p50}, p90 {p90}, p99 {p99}, p99.9 {p999}, max {max}"),
    );
    row(
        "ranges gathered",
        ranges_gathered,
        format!("by unmaps; {commands} invalidations of {bytes} bytes"),
    );
    if figures.cuts > 0 {
        row(
            "entries cut",
            figures.cuts,
            "because an unmap ended inside".into(),
        );
    }
    row(
        "pages verified",
        figures.verified_pages,
        format!("{} mismatches", figures.mismatches),
    );
    write!(f, "{}", table.to_string().trim_start_matches('\n'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_that_of_one_moment() {
        // The first domain has 5 pages until operation 3, the second 4 from operation 4 on.
        let apart = [vec![(0, 1), (1, 5), (3, 0)], vec![(4, 4)]];
        assert_eq!(peak(&apart), 5);
        let together = [vec![(0, 1), (1, 5), (5, 0)], vec![(4, 4)]];
        assert_eq!(peak(&together), 9);
        assert_eq!(peak(&[]), 0);
    }

    #[test]
    fn totals_take_sums_of_counts_and_the_highest_peak() {
        let run = |peak_live_pages, maps| Run {
            trace: String::new(),
            format: "",
            domains: 1,
            figures: Figures {
                maps,
                mismatches: 1,
                peak_live_pages,
                ..Figures::default()
            },
            details: Vec::new(),
            latencies: engine_histogram(),
        };
        let report = Report::new(vec![run(7, 10), run(5, 20)]);
        assert_eq!((report.totals.peak_live_pages, report.totals.maps), (7, 30));
        assert_eq!(report.mismatches(), 2);
    }
}
