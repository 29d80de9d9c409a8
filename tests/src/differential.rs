//! A table with its model, from the first operation to the last freed page.

use std::mem;
use std::sync::Arc;

use iopt::claim::Claim;
use iopt::invalidation::NoHardware;
use iopt::mem::TableMemory;
use iopt::radix::{MapSide, Table, TableConfig, UnmapPolicy};
use iopt_formats::{Format, IovaRange};

use crate::check::{Mismatch, check_all, ensure_eq};
use crate::memory::TestMemory;
use crate::model::{Model, halves, windows};
use crate::op::Op;
use crate::place::Places;
use crate::referee::Judged;
use crate::session::{Context, Outcome, Session};
use crate::shadow::Watched;
use crate::told::expect_told_tables;

/// Largest pages (1 MiB) of table memory.
const MEMORY_COUNT: u64 = 48;

/// A table with its model.
#[derive(Debug)]
pub struct Differential<F: Format, M: TableMemory = Arc<TestMemory>> {
    table: Table<F, M>,
    memory: Arc<TestMemory>,
    model: Model<F>,
    /// Two claims over each window, so that ranges across their border are refused.
    claims: Vec<Claim>,
    places: Places,
    map_side: MapSide,
}

impl<F: Judged, M: Watched> Differential<F, M> {
    /// Creates an empty table and its model.
    ///
    /// # Errors
    ///
    /// A [`Mismatch`] if the table cannot be made.
    pub fn new(format: F, map_side: MapSide) -> Result<Self, Mismatch> {
        let memory = Arc::new(TestMemory::new(MEMORY_COUNT));
        let config = TableConfig::new().with_map_side(map_side);
        let table = Table::with_config(format, M::over(Arc::clone(&memory)), config)
            .map_err(|error| Mismatch::new(format!("new table: {error}")))?;
        let claims = halves(format.geometry())
            .into_iter()
            .map(|range| table.claim(range))
            .collect::<Result<_, _>>();
        let claims = claims.map_err(|error| Mismatch::new(format!("claim: {error}")))?;
        let (model, places) = (Model::new(format), Places::new(&format));
        Ok(Self {
            table,
            memory,
            model,
            claims,
            places,
            map_side,
        })
    }

    /// Runs `ops` in order, then takes everything down again.
    ///
    /// # Errors
    ///
    /// The first [`Mismatch`].
    pub fn run(mut self, ops: &[Op]) -> Result<(), Mismatch> {
        let mut rest = ops;
        while !rest.is_empty() {
            let is_compact = |op: &Op| matches!(op, Op::Compact { .. });
            let count = rest.iter().position(is_compact).unwrap_or(rest.len());
            self.session(&rest[..count])?;
            if let Some(Op::Compact { target }) = rest.get(count)
                && let Some(range) = self.places.range(*target, &self.model)
            {
                self.compact_claimed(range)?;
            }
            rest = &rest[(count + 1).min(rest.len())..];
        }
        self.finish()
    }

    /// Runs each of `ops` first with memory for none, one, two, .. of the tables it needs.
    ///
    /// # Errors
    ///
    /// A [`Mismatch`]: also if an operation that failed left a trace.
    pub fn starve(mut self, ops: &[Op]) -> Result<(), Mismatch> {
        for op in ops {
            for left in 0.. {
                self.memory.set_left(Some(left));
                let outcome = self.session(std::slice::from_ref(op));
                self.memory.set_left(None);
                if outcome? != Outcome::Starved {
                    break;
                }
            }
        }
        self.finish()
    }

    /// Runs `ops` through one set of mappers and compares everything; returns how the last went.
    fn session(&mut self, ops: &[Op]) -> Result<Outcome, Mismatch> {
        let Self {
            table,
            model,
            claims,
            places,
            ..
        } = self;
        let mappers = claims
            .iter_mut()
            .map(|claim| table.mapper(claim))
            .collect::<Result<_, _>>();
        let mappers = mappers.map_err(|error| Mismatch::new(format!("mapper: {error}")))?;
        let context = Context {
            places,
            map_side: self.map_side,
        };
        let mut session = Session::new(table, model, mappers, context);
        let mut outcome = Outcome::Done;
        for op in ops {
            outcome = session
                .step(op)
                .map_err(|error| Mismatch::new(format!("{op:x?}: {error}")))?;
        }
        for flushed in session.finish() {
            self.table.reclaim(&flushed);
        }
        self.table.trim();
        check_all(&self.table, &self.model)?;
        Ok(outcome)
    }

    /// Compacts what of `range` is claimed.
    fn compact_claimed(&mut self, range: IovaRange) -> Result<(), Mismatch> {
        let mut claims = mem::take(&mut self.claims);
        let result = claims.iter_mut().try_for_each(|claim| {
            let start = range.start().max(claim.range().start());
            let last = range.last().min(claim.range().last());
            IovaRange::new(start, last).map_or(Ok(()), |part| self.compact(claim, part))
        });
        self.claims = claims;
        result
    }

    fn compact(&mut self, claim: &mut Claim, range: IovaRange) -> Result<(), Mismatch> {
        let mapper = self.table.mapper(claim);
        let mut mapper = mapper.map_err(|error| Mismatch::new(format!("mapper: {error}")))?;
        let gather = mapper.compact(range);
        let gather = gather.map_err(|error| Mismatch::new(format!("compact: {error}")))?;
        let changes = *gather.changes();
        let flushed = gather.sync(&NoHardware);
        let flushed = flushed.map_err(|error| Mismatch::new(format!("sync: {error}")))?;
        self.table.reclaim(&flushed);
        self.table.trim();
        self.model.compact(range);
        expect_told_tables(&[changes], &self.model.take_unlinked())?;
        check_all(&self.table, &self.model)
    }

    /// Unmaps everything; nothing may be left then.
    fn finish(mut self) -> Result<(), Mismatch> {
        let entries: Vec<_> = self.model.entries().collect();
        for entry in entries {
            let holds = |claim: &&mut Claim| claim.range().contains(entry.range());
            let claim = self.claims.iter_mut().find(holds);
            let claim =
                claim.ok_or_else(|| Mismatch::new("an entry lies outside of the claims"))?;
            let mapper = self.table.mapper(claim);
            let mut mapper = mapper.map_err(|error| Mismatch::new(format!("mapper: {error}")))?;
            let unmapped = mapper.unmap(entry.range(), UnmapPolicy::Exact);
            let unmapped = unmapped
                .map_err(|error| Mismatch::new(format!("last unmap of {entry:x?}: {error}")))?;
            let flushed = unmapped.gather.sync(&NoHardware);
            flushed.map_err(|error| Mismatch::new(format!("sync: {error}")))?;
            self.model.remove(entry.range());
        }
        self.claims.clear();
        for part in windows(self.table.format().geometry()) {
            let claim = self.table.claim(part);
            let mut claim = claim.map_err(|error| Mismatch::new(format!("claim: {error}")))?;
            self.compact(&mut claim, part)?;
        }
        // The root, and the roots before it.
        let initial = self.table.format().geometry().top;
        let root_count = usize::from(self.table.root().level.0 - initial.0) + 1;
        ensure_eq("tables at the end", &self.table.table_count(), &root_count)?;
        ensure_eq("pages at the end", &self.memory.page_count(), &root_count)?;
        let Self { table, memory, .. } = self;
        drop(table);
        ensure_eq("pages after the drop", &memory.page_count(), &0)
    }
}
