//! What simulated IOMMUs were told, and what they got at.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use iopt_tools::trace::Trace;
use serde::Serialize;

use crate::output::{Align, Table};
use crate::replay::simulate::Model;
use crate::replay::simulate::run::Found;

/// Figures of one trace, and of all together.
#[derive(Clone, Debug, Default, Serialize)]
struct Figures {
    operations: u64,
    maps: u64,
    unmaps: u64,
    /// Commands consumed, syncs among them.
    commands: u64,
    commands_by_name: BTreeMap<&'static str, u64>,
    syncs: u64,
    /// Commands that dropped pointers to tables, or may have.
    table_invalidations: u64,
    dma_accesses: u64,
    stale_accesses: u64,
    lost_accesses: u64,
}

impl Figures {
    fn add(&mut self, other: &Self) {
        self.operations += other.operations;
        self.maps += other.maps;
        self.unmaps += other.unmaps;
        self.commands += other.commands;
        for (name, count) in &other.commands_by_name {
            *self.commands_by_name.entry(name).or_default() += count;
        }
        self.syncs += other.syncs;
        self.table_invalidations += other.table_invalidations;
        self.dma_accesses += other.dma_accesses;
        self.stale_accesses += other.stale_accesses;
        self.lost_accesses += other.lost_accesses;
    }
}

/// One trace.
#[derive(Debug, Serialize)]
pub(super) struct Run {
    trace: String,
    domains: u64,
    #[serde(flatten)]
    figures: Figures,
    details: Vec<String>,
}

/// All traces of a command.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    schema: u32,
    command: &'static str,
    simulated: String,
    deferred: bool,
    #[serde(flatten)]
    totals: Figures,
    runs: Vec<Run>,
}

impl Run {
    pub(super) fn new(path: &Path, trace: &Trace, found: Found) -> Self {
        let statistics = found.statistics;
        Self {
            trace: path.display().to_string(),
            domains: trace.figures.domains,
            figures: Figures {
                operations: trace.operations.len() as u64,
                maps: trace.figures.maps,
                unmaps: trace.figures.unmaps,
                commands: statistics.command_count(),
                commands_by_name: statistics.commands,
                syncs: statistics.syncs,
                table_invalidations: statistics.table_invalidations,
                dma_accesses: found.dma_count,
                stale_accesses: found.stale_count,
                lost_accesses: found.lost_count,
            },
            details: found.details,
        }
    }
}

impl Report {
    /// Sums up all traces.
    pub(super) fn new(model: Model, is_deferred: bool, runs: Vec<Run>) -> Self {
        let mut totals = Figures::default();
        for run in &runs {
            totals.add(&run.figures);
        }
        Self {
            schema: 1,
            command: "replay",
            simulated: model.to_string(),
            deferred: is_deferred,
            totals,
            runs,
        }
    }

    /// Returns the number of requests that got where they must not, or not where they must.
    pub(super) fn mismatches(&self) -> u64 {
        self.totals.stale_accesses + self.totals.lost_accesses
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = if self.deferred { "deferred" } else { "strict" };
        for run in &self.runs {
            let Run { trace, domains, .. } = run;
            writeln!(
                f,
                "{trace} on a simulated {}, {mode}, {domains} domains",
                self.simulated
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
        }
        Ok(())
    }
}

fn write_figures(f: &mut fmt::Formatter<'_>, figures: &Figures) -> fmt::Result {
    let mut table = Table::new([("", Align::Left), ("", Align::Right), ("", Align::Left)]);
    let mut row = |name: &str, value: u64, rest: String| {
        table.row([format!("  {name}"), value.to_string(), rest]);
    };
    let Figures {
        operations,
        maps,
        unmaps,
        ..
    } = *figures;
    row(
        "operations",
        operations,
        format!("{maps} maps, {unmaps} unmaps"),
    );
    let names: Vec<_> = figures
        .commands_by_name
        .iter()
        .map(|(name, count)| format!("{count} {name}"))
        .collect();
    row("commands", figures.commands, names.join(", "));
    row("syncs", figures.syncs, String::new());
    row(
        "table invalidations",
        figures.table_invalidations,
        String::new(),
    );
    row("dma accesses", figures.dma_accesses, String::new());
    row("stale accesses", figures.stale_accesses, String::new());
    row(
        "lost accesses",
        figures.lost_accesses,
        "that should have been let through".into(),
    );
    write!(f, "{}", table.to_string().trim_start_matches('\n'))
}
