//! The steps of one domain, run on the engine and timed.

use std::cell::Cell;
use std::slice;
use std::time::Instant;

use hdrhistogram::Histogram;
use iopt::invalidation::{Changes, Flushed, Gather, Invalidate, SyncError};
use iopt::mem::Arena;
use iopt::radix::{BreakBeforeMake, Mapper, Table, UnmapError, UnmapPolicy};
use iopt_formats::walk::Root;
use iopt_formats::{Format, Geometry, Iova, IovaRange, Oa, PageSize, Prot, Window};
use iopt_rig::Physical;

use crate::replay::plan::{DomainPlan, Step, StepKind};
use crate::replay::report::engine_histogram;
use crate::replay::verify::{Subject, Verifier};
use crate::replay::{EngineFault, VerifyMode};

/// What one domain measured and found.
#[derive(Debug)]
pub(crate) struct DomainRun {
    /// Number of the domain.
    pub(crate) id: u32,
    /// Nanoseconds spent in the engine.
    pub(crate) engine_ns: u64,
    /// Nanoseconds of each map and unmap.
    pub(crate) latencies: Histogram<u64>,
    /// Number of table pages from a position in the trace on.
    pub(crate) table_pages: Vec<(u64, u64)>,
    /// Invalidations.
    pub(crate) flushes: Flushes,
    /// Large entries cut because an unmap ended inside.
    pub(crate) cuts: u64,
    /// What the reference walker said.
    pub(crate) verifier: Verifier,
}

/// How the hardware was told.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Flushes {
    /// Ranges that unmaps gathered.
    pub(crate) gathered: u64,
    /// Range invalidations that they became.
    pub(crate) commands: u64,
    /// Bytes in the ranges of those.
    pub(crate) bytes: u64,
}

impl Flushes {
    /// Adds the figures of another domain or trace.
    pub(crate) fn add(&mut self, other: Self) {
        self.gathered += other.gathered;
        self.commands += other.commands;
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

/// Hardware that only counts.
#[derive(Debug, Default)]
struct Counter {
    commands: Cell<u64>,
    bytes: Cell<u64>,
}

impl Invalidate for Counter {
    type Ticket = ();

    fn submit(&self, changes: &Changes) -> Result<(), SyncError> {
        let len = changes
            .range()
            .map_or(0, |range| range.len().unwrap_or(u64::MAX));
        self.commands.set(self.commands.get() + 1);
        self.bytes.set(self.bytes.get().saturating_add(len));
        Ok(())
    }

    fn wait(&self, (): ()) -> Result<(), SyncError> {
        Ok(())
    }
}

/// Returns the parts of the address space that a table decodes, each without a hole.
fn windows(geometry: Geometry) -> Vec<IovaRange> {
    let bias = geometry.bias();
    let range = |first: u64, last: u64| {
        let iova = |biased: u64| Iova::new(biased.wrapping_sub(bias));
        IovaRange::new(iova(first), iova(last)).expect("each half of a window is one range")
    };
    let last = geometry.va_mask();
    match geometry.window {
        Window::Lower | Window::Upper => vec![range(0, last)],
        Window::SignExtended => {
            let half = (last >> 1) + 1;
            vec![range(half, last), range(0, half - 1)]
        }
    }
}

/// Returns whether one mapper can map `range`.
pub(crate) fn decodes(geometry: Geometry, range: IovaRange) -> bool {
    windows(geometry)
        .iter()
        .any(|window| window.contains(range))
}

/// What every domain of a trace shares.
pub(crate) struct Shared<'a> {
    /// Memory of the tables.
    pub(crate) tables: &'a Physical,
    /// The page size of the trace.
    pub(crate) page: PageSize,
    /// When to compare with the reference walker.
    pub(crate) verify: VerifyMode,
    /// Told of every finished step.
    pub(crate) progress: &'a (dyn Fn() + Sync),
}

/// Tells the reference walker where a table of the domain's format starts.
pub(crate) type Reference<'a> = &'a dyn Fn(Root) -> iopt_reference::Table;

/// A fault and the line of the trace that met it.
pub(crate) type LineFault = (u64, EngineFault);

/// Runs the steps of a domain.
///
/// # Errors
///
/// What the engine refused, and at which line.
pub(crate) fn run<F: Format>(
    format: F,
    reference: Reference<'_>,
    plan: &DomainPlan,
    shared: &Shared<'_>,
) -> Result<DomainRun, LineFault> {
    let mut ledger = Ledger::new(plan.id, Verifier::new(shared.verify, shared.page));
    let Some(begin) = plan.steps.first() else {
        return Ok(ledger.run);
    };
    ledger.line = begin.line;
    let result = run_steps(format, reference, plan, shared, &mut ledger);
    result.map_err(|fault| (ledger.line, fault))?;
    let mut run = ledger.run;
    run.flushes.commands = ledger.hardware.commands.get();
    run.flushes.bytes = ledger.hardware.bytes.get();
    Ok(run)
}

fn run_steps<F: Format>(
    format: F,
    reference: Reference<'_>,
    plan: &DomainPlan,
    shared: &Shared<'_>,
    ledger: &mut Ledger,
) -> Result<(), EngineFault> {
    let table = Table::new(format, shared.tables.arena())?;
    let windows = windows(format.geometry()).into_iter();
    let mut claims = windows
        .map(|window| table.claim(window))
        .collect::<Result<Vec<_>, _>>()?;
    let mut steps = plan.steps.iter();
    loop {
        let mappers = claims.iter_mut().map(|claim| table.mapper(claim));
        let mappers = mappers.collect::<Result<Vec<_>, _>>()?;
        let mut domain = Domain {
            table: &table,
            mappers,
            ledger,
            reference,
            shared,
        };
        let Some(flushed) = domain.run(&mut steps)? else {
            return Ok(());
        };
        let start = Instant::now();
        table.reclaim(&flushed);
        ledger.run.engine_ns += elapsed_ns(start);
    }
}

/// What stays of a domain when its mappers are made anew.
struct Ledger {
    hardware: Counter,
    /// What was unmapped since the last flush.
    pending: Option<Gather>,
    /// Line of the step under way.
    line: u64,
    run: DomainRun,
}

impl Ledger {
    fn new(id: u32, verifier: Verifier) -> Self {
        let run = DomainRun {
            id,
            engine_ns: 0,
            latencies: engine_histogram(),
            table_pages: Vec::new(),
            flushes: Flushes::default(),
            cuts: 0,
            verifier,
        };
        Self {
            hardware: Counter::default(),
            pending: None,
            line: 0,
            run,
        }
    }

    fn record(&mut self, start: Instant) {
        let ns = elapsed_ns(start);
        self.run.engine_ns += ns;
        self.run.latencies.saturating_record(ns);
    }

    fn note_table_pages(&mut self, index: u64, count: u64) {
        if self
            .run
            .table_pages
            .last()
            .is_none_or(|&(_, last)| last != count)
        {
            self.run.table_pages.push((index, count));
        }
    }

    fn flush(&mut self) -> Result<(), EngineFault> {
        if let Some(gather) = self.pending.take() {
            let start = Instant::now();
            let result = gather.sync(&self.hardware);
            self.run.engine_ns += elapsed_ns(start);
            // Unmapping keeps the tables, so nothing waits for this proof.
            let _flushed = result?;
        }
        Ok(())
    }
}

struct Domain<'t, 'l, F: Format> {
    table: &'t Table<F, &'t Arena>,
    mappers: Vec<Mapper<'t, F, &'t Arena>>,
    ledger: &'l mut Ledger,
    reference: Reference<'l>,
    shared: &'l Shared<'l>,
}

impl<'l, F: Format> Domain<'_, 'l, F> {
    /// Runs steps until none is left, or until one retired tables: they can be reclaimed with the
    /// proof that is returned, once the mappers are gone.
    fn run(&mut self, steps: &mut slice::Iter<'_, Step>) -> Result<Option<Flushed>, EngineFault> {
        let mut has_ended = false;
        for step in steps {
            self.ledger.line = step.line;
            let flushed = self.step(step)?;
            (self.shared.progress)();
            has_ended = step.kind == StepKind::End;
            if flushed.is_some() {
                return Ok(flushed);
            }
        }
        if !has_ended {
            self.end()?;
        }
        Ok(None)
    }

    fn step(&mut self, step: &Step) -> Result<Option<Flushed>, EngineFault> {
        let mut flushed = None;
        let touched = match step.kind {
            StepKind::Begin => None,
            StepKind::Map { range, oa, prot } => {
                flushed = self.map(range, oa, prot)?;
                self.ledger.run.verifier.mapped(range, oa, prot);
                Some(range)
            }
            StepKind::Unmap { range } => {
                flushed = self.unmap(range)?;
                self.ledger.run.verifier.unmapped(range);
                Some(range)
            }
            StepKind::Flush => {
                self.ledger.flush()?;
                None
            }
            StepKind::End => {
                self.end()?;
                self.ledger.note_table_pages(step.index, 0);
                return Ok(None);
            }
        };
        self.ledger
            .note_table_pages(step.index, self.table.table_count() as u64);
        if let Some(range) = touched.filter(|_| self.ledger.run.verifier.is_stepwise()) {
            let subject = self.subject();
            self.ledger.run.verifier.check_around(&subject, range);
        }
        Ok(flushed)
    }

    fn map(
        &mut self,
        range: IovaRange,
        oa: Oa,
        prot: Prot,
    ) -> Result<Option<Flushed>, EngineFault> {
        let mapper = mapper_of(&mut self.mappers, range)?;
        let start = Instant::now();
        let result = mapper.map(range, oa, prot).map(|sync| {
            let has_work = !sync.is_empty();
            (has_work, sync.sync(&self.ledger.hardware))
        });
        self.ledger.record(start);
        let (has_work, flushed) = result?;
        Ok(Some(flushed?).filter(|_| has_work))
    }

    fn unmap(&mut self, range: IovaRange) -> Result<Option<Flushed>, EngineFault> {
        let mapper = mapper_of(&mut self.mappers, range)?;
        let mut flushed = None;
        let start = Instant::now();
        let mut result = mapper.unmap(range, UnmapPolicy::Exact);
        if let Err(UnmapError::Splits { .. }) = result {
            let hardware = &self.ledger.hardware;
            flushed = Some(mapper.cut(range, F::GRANULE, BreakBeforeMake::Hitless, hardware)?);
            result = mapper.unmap(range, UnmapPolicy::Exact);
        }
        self.ledger.record(start);
        self.ledger.run.cuts += u64::from(flushed.is_some());
        self.ledger.run.flushes.gathered += 1;
        let gather = result?.gather;
        let Some(pending) = &mut self.ledger.pending else {
            self.ledger.pending = Some(gather);
            return Ok(flushed);
        };
        if let Err(refused) = pending.join(gather) {
            self.ledger.flush()?;
            self.ledger.pending = Some(refused.gather);
        }
        Ok(flushed)
    }

    /// Flushes what is left and compares everything.
    fn end(&mut self) -> Result<(), EngineFault> {
        self.ledger.flush()?;
        let subject = self.subject();
        self.ledger.run.verifier.check_all(&subject);
        Ok(())
    }

    fn subject(&self) -> Subject<'l, F> {
        Subject {
            format: *self.table.format(),
            table: (self.reference)(self.table.root()),
            tables: self.shared.tables,
        }
    }
}

fn elapsed_ns(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

fn mapper_of<'m, 't, F: Format>(
    mappers: &'m mut [Mapper<'t, F, &'t Arena>],
    range: IovaRange,
) -> Result<&'m mut Mapper<'t, F, &'t Arena>, EngineFault> {
    let mapper = mappers
        .iter_mut()
        .find(|mapper| mapper.range().contains(range));
    mapper.ok_or(EngineFault::OutsideWindow { range })
}
