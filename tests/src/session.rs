//! Operations on a table and on its model, side by side.

use iopt::invalidation::{Changes, Flushed, Gather, MapSync};
use iopt::mem::TableMemory;
use iopt::radix::{
    BreakBeforeMake, CutError, DirtyError, FaultWindow, MapError, MapSide, Mapper, ProtectError,
    Removed, Table, TablePolicy, UnmapError, UnmapPolicy,
};
use iopt_formats::walk;
use iopt_formats::{Format, Iova, IovaRange, Level, Oa, PageSize, Prot};

use crate::check::{Mismatch, check_around, ensure_eq};
use crate::hardware::Recorder;
use crate::model::{Entry, Model, join_ranges};
use crate::op::Op;
use crate::place::{Len, Output, Places, Target};
use crate::referee::Judged;
use crate::refusal::{Refusal, expect_allowed, expect_refused, map_reason, unmap_reason};
use crate::shadow::Watched;
use crate::told::{expect_told, expect_told_tables};

/// Entries that one operation makes at most; longer ones are skipped.
const ENTRY_LIMIT: usize = if cfg!(miri) { 64 } else { 1500 };
/// Leaf tables that one operation reserves at most.
const TABLE_LIMIT: u64 = 40;

/// How an operation went.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// It was done, or refused for a reason that the model knows, too.
    Done,
    /// It names nothing, or too much.
    Skipped,
    /// No memory was left.
    Starved,
}

type Step = Result<Outcome, Mismatch>;

/// A stretch of operations through the same mappers, which remember the tables they used.
#[derive(Debug)]
pub struct Session<'t, F: Format, M: TableMemory> {
    table: &'t Table<F, M>,
    model: &'t mut Model<F>,
    places: &'t Places,
    map_side: MapSide,
    mappers: Vec<Mapper<'t, F, M>>,
    /// The level of the last root that each mapper announced.
    told: Vec<Level>,
    hardware: Recorder,
    flushed: Vec<Flushed>,
}

/// What is fixed for all sessions of a test.
#[derive(Clone, Copy, Debug)]
pub struct Context<'t> {
    /// The edges of the format.
    pub places: &'t Places,
    /// What the table announces.
    pub map_side: MapSide,
}

impl<'t, F: Judged, M: Watched> Session<'t, F, M> {
    /// Starts with one mapper for each claim.
    pub fn new(
        table: &'t Table<F, M>,
        model: &'t mut Model<F>,
        mappers: Vec<Mapper<'t, F, M>>,
        context: Context<'t>,
    ) -> Self {
        let Context { places, map_side } = context;
        let hardware = Recorder::default();
        let told = vec![table.format().geometry().top; mappers.len()];
        Self {
            table,
            model,
            places,
            map_side,
            mappers,
            told,
            hardware,
            flushed: Vec::new(),
        }
    }

    /// Ends the session and returns what was flushed in it.
    pub fn finish(self) -> Vec<Flushed> {
        self.flushed
    }

    /// Runs one operation and compares what it touched.
    ///
    /// # Errors
    ///
    /// A [`Mismatch`] if table and model disagree.
    pub fn step(&mut self, op: &Op) -> Step {
        match *op {
            Op::Map {
                target,
                output,
                prot,
            } => self.with(target, |this, at, range| {
                this.map(at, range, this.places.oa(output, range.start()), prot)
            }),
            Op::MapRuns {
                target,
                ref runs,
                prot,
            } => self.with(target, |this, at, range| {
                this.map_runs(at, range.start(), runs, prot)
            }),
            Op::Unmap { target, detach } => {
                self.with(target, |this, at, range| this.unmap(at, range, detach))
            }
            Op::Clear { target, detach } => {
                self.with(target, |this, at, range| this.clear(at, range, detach))
            }
            Op::UnmapEntries { target } => self.with(target, Self::unmap_entries),
            Op::Protect { target, prot } => {
                self.with(target, |this, at, range| this.protect(at, range, prot))
            }
            Op::Cut { target, size, rule } => self.with(target, |this, at, range| {
                this.cut(at, range, this.places.size(size), break_before_make(rule))
            }),
            Op::Merge { target, rule } => self.with(target, |this, at, range| {
                this.merge(at, range, break_before_make(rule))
            }),
            Op::Soil { entry, item } => self.soil(entry, item),
            Op::TakeDirty { target } => self.with(target, Self::take_dirty),
            Op::Reserve { target } => self.with(target, Self::reserve),
            // Needs the table alone; ends the session.
            Op::Compact { .. } => Ok(Outcome::Skipped),
        }
    }

    /// Runs `step` with the range that `target` names and the mapper that holds its start, or the
    /// first one.
    fn with(
        &mut self,
        target: Target,
        step: impl FnOnce(&mut Self, usize, IovaRange) -> Step,
    ) -> Step {
        let Some(range) = self.places.range(target, self.model) else {
            return Ok(Outcome::Skipped);
        };
        let holds = |mapper: &Mapper<'t, F, M>| mapper.range().contains_addr(range.start());
        let at = self.mappers.iter().position(holds).unwrap_or(0);
        let outcome = step(self, at, range)?;
        check_around(self.table, self.model, range)?;
        Ok(outcome)
    }

    fn claim(&self, at: usize) -> IovaRange {
        self.mappers[at].range()
    }

    fn map(&mut self, at: usize, range: IovaRange, oa: Oa, prot: Prot) -> Step {
        let refusals = self.model.map_refusals(self.claim(at), range, oa, prot);
        if refusals.is_empty() && !self.is_short(range, oa) {
            return Ok(Outcome::Skipped);
        }
        match self.mappers[at].map(range, oa, prot) {
            Ok(sync) => {
                expect_allowed("map", &refusals)?;
                self.model.map(range, oa, prot);
                self.synced(at, sync, Some(range))
            }
            Err(MapError::OutOfMemory(_)) => Ok(Outcome::Starved),
            Err(error) => {
                expect_refused(map_reason(&error), &refusals, &error).map(|()| Outcome::Done)
            }
        }
    }

    /// Returns whether mapping `range` makes few enough entries.
    fn is_short(&self, range: IovaRange, oa: Oa) -> bool {
        self.model
            .pieces(range, oa, self.table.format().sizes(), ENTRY_LIMIT)
            .is_some()
    }

    fn map_runs(&mut self, at: usize, iova: Iova, runs: &[(Output, Len)], prot: Prot) -> Step {
        let before = self.model.clone();
        let mut list = Vec::new();
        let mut refusals = Vec::new();
        let mut next = Some(iova);
        let mut mapped = None;
        for &(output, len) in runs {
            let start = next.unwrap_or(iova);
            let (oa, len) = (self.places.oa(output, start), self.places.len(len));
            list.push((oa, len));
            let Some(range) = next.and_then(|start| IovaRange::with_len(start, len)) else {
                refusals.push(Refusal::Wraps);
                break;
            };
            refusals = self.model.map_refusals(self.claim(at), range, oa, prot);
            if !refusals.is_empty() {
                break;
            }
            if !self.is_short(range, oa) {
                *self.model = before;
                return Ok(Outcome::Skipped);
            }
            self.model.map(range, oa, prot);
            mapped = IovaRange::new(iova, range.last());
            next = range.last().checked_add(1);
        }
        match self.mappers[at].map_runs(iova, &list, prot) {
            Ok(sync) => {
                expect_allowed("map of runs", &refusals)?;
                self.synced(at, sync, mapped)
            }
            Err(error) => {
                *self.model = before;
                if let MapError::OutOfMemory(_) = error {
                    return Ok(Outcome::Starved);
                }
                expect_refused(map_reason(&error), &refusals, &error).map(|()| Outcome::Done)
            }
        }
    }

    /// Does what a map of `range` left to do, and checks that it is enough.
    fn synced(&mut self, at: usize, sync: MapSync, range: Option<IovaRange>) -> Step {
        let told = sync.changes().and_then(Changes::range);
        let is_told = range.is_none_or(|range| told.is_some_and(|told| told.contains(range)));
        if self.map_side == MapSide::Announced && !is_told {
            return Err(Mismatch::new(format!("a map is not announced: {sync:?}")));
        }
        let root = self.table.root();
        ensure_eq("level of the root", &root.level, &self.model.top())?;
        let told = self.told[at];
        if let Some(new_root) = sync.new_root() {
            ensure_eq("announced root", &new_root, &root)?;
            self.told[at] = root.level;
        } else if let Some(range) = range.filter(|range| !self.model.reaches(told, range.last())) {
            return Err(Mismatch::new(format!(
                "the root that decodes {range} is not announced"
            )));
        }
        let flushed = sync.sync(&self.hardware);
        expect_told_tables(&self.hardware.take(), &self.model.take_unlinked())?;
        self.keep(flushed)
    }

    fn unmap(&mut self, at: usize, range: IovaRange, detach: bool) -> Step {
        let refusals = self.model.exact_refusals(range);
        self.unmap_all(at, range, UnmapPolicy::Exact, refusals, detach)
    }

    fn clear(&mut self, at: usize, range: IovaRange, detach: bool) -> Step {
        let refusals = self.model.split_refusals(range);
        self.unmap_all(at, range, UnmapPolicy::Sparse, refusals, detach)
    }

    /// Unmaps all of `range`, or nothing.
    fn unmap_all(
        &mut self,
        at: usize,
        range: IovaRange,
        policy: UnmapPolicy,
        mut refusals: Vec<Refusal>,
        detach: bool,
    ) -> Step {
        refusals.extend(self.model.range_refusals(self.claim(at), range));
        let mapper = &mut self.mappers[at];
        if detach {
            mapper.set_table_policy(TablePolicy::Detach);
        }
        let unmapped = mapper.unmap(range, policy);
        mapper.set_table_policy(TablePolicy::Keep);
        match unmapped {
            Ok(unmapped) => {
                expect_allowed("unmap", &refusals)?;
                let removed = self.model.remove(range);
                if detach {
                    self.model.compact(range);
                }
                let len = range.len_minus_one().saturating_add(1);
                ensure_eq("bytes unmapped", &unmapped.bytes, &len)?;
                let flushed = unmapped.gather.sync(&self.hardware);
                let seen = self.hardware.take();
                expect_told(&seen, &removed)?;
                expect_told_tables(&seen, &self.model.take_unlinked())?;
                self.keep(flushed)
            }
            Err(error) => self.refused(range, &error, &refusals),
        }
    }

    fn unmap_entries(&mut self, at: usize, range: IovaRange) -> Step {
        let claim = self.claim(at);
        let mut refusals = self.model.range_refusals(claim, range);
        let entries = self.model.whole_entries(claim, range);
        refusals.extend(entries.as_ref().err());
        let mut reported = Vec::new();
        let removed = self.mappers[at].unmap_with(range, UnmapPolicy::WholeEntries, |removed| {
            reported.push(removed);
        });
        match (removed, entries) {
            (Ok(unmapped), Ok(entries)) if refusals.is_empty() => {
                let expected = entries
                    .iter()
                    .fold(0, |sum: u64, entry| sum.saturating_add(entry.size.bytes()));
                ensure_eq("bytes unmapped", &unmapped.bytes, &expected)?;
                ensure_eq("runs removed", &reported, &removed_runs(&entries))?;
                for entry in &entries {
                    self.model.remove(entry.range());
                }
                self.gathered(unmapped.gather, &entries)
            }
            (Ok(_), _) => expect_allowed("unmap", &refusals).map(|()| Outcome::Done),
            (Err(error), _) => self.refused(range, &error, &refusals),
        }
    }

    fn protect(&mut self, at: usize, range: IovaRange, prot: Prot) -> Step {
        let mut refusals = self.model.range_refusals(self.claim(at), range);
        refusals.extend(self.model.exact_refusals(range));
        let old = self.model.overlapping(range);
        match self.table.format().effective(prot) {
            None => refusals.push(Refusal::Prot),
            Some(new) if F::BREAK_BEFORE_MAKE => {
                let differs = |entry: &&Entry| entry.prot.memory() != new.memory();
                let first = old.iter().find(differs);
                refusals.extend(first.map(|entry| Refusal::Memory(entry.start)));
            }
            Some(_) => {}
        }
        match self.mappers[at].protect(range, prot) {
            Ok(protected) => {
                expect_allowed("protect", &refusals)?;
                let was_dirty = self.model.protect(range, prot);
                ensure_eq("dirty state that went", &protected.was_dirty, &was_dirty)?;
                self.gathered(protected.gather, &old)
            }
            Err(ProtectError::Range(error)) => self.refused(range, &error, &refusals),
            Err(error) => {
                let reason = match error {
                    ProtectError::Prot { .. } => Some(Refusal::Prot),
                    ProtectError::Memory { iova } => Some(Refusal::Memory(iova)),
                    _ => None,
                };
                expect_refused(reason, &refusals, &error).map(|()| Outcome::Done)
            }
        }
    }

    fn cut(&mut self, at: usize, range: IovaRange, size: PageSize, rule: BreakBeforeMake) -> Step {
        let claim = self.claim(at);
        let larger: Vec<_> = self
            .model
            .overlapping(range)
            .into_iter()
            .filter(|entry| entry.size > size)
            .collect();
        let smallest = self
            .table
            .format()
            .sizes()
            .up_to(size)
            .largest()
            .unwrap_or(size);
        let inside = larger
            .iter()
            .filter_map(|entry| entry.range().intersection(range));
        let piece_count = inside
            .map(|part| part.len_minus_one() >> smallest.lg2())
            .sum::<u64>();
        if piece_count > ENTRY_LIMIT as u64 {
            return Ok(Outcome::Skipped);
        }
        let is_possible = may_change::<F>(rule);
        let result = self.mappers[at].cut(range, size, rule, &self.hardware);
        let seen = self.hardware.take();
        let mut changed = Vec::new();
        for entry in &larger {
            let size_at = |iova| self.table.lookup(iova).map(|found| found.size());
            if size_at(entry.start) == Some(entry.size) {
                continue;
            }
            let pieces = self.model.cut(entry.start, size_at);
            let pieces =
                pieces.ok_or_else(|| Mismatch::new(format!("{entry:x?} was cut badly")))?;
            let sizes = self.table.format().sizes();
            if let Some(odd) = pieces.iter().find(|piece| !sizes.contains(piece.size)) {
                return Err(Mismatch::new(format!(
                    "cut made {odd:x?}, but {sizes} are allowed"
                )));
            }
            if result.is_ok() {
                let inside = pieces.iter().filter(|piece| piece.range().overlaps(range));
                let largest = sizes.up_to(size).largest();
                if let Some(odd) = inside.into_iter().find(|piece| Some(piece.size) != largest) {
                    return Err(Mismatch::new(format!("cut to {size} left {odd:x?}")));
                }
            }
            changed.push(*entry);
        }
        match result {
            Ok(flushed) => {
                ensure_eq("entries cut", &changed, &larger)?;
                let is_known = claim.contains(range) && (is_possible || larger.is_empty());
                if !is_known {
                    return Err(Mismatch::new(format!("cut of {range} should be refused")));
                }
                expect_told(&seen, &larger)?;
                self.flushed.push(flushed);
                Ok(Outcome::Done)
            }
            Err(CutError::OutOfMemory(_)) => Ok(Outcome::Starved),
            Err(CutError::OutsideClaim { .. }) if !claim.contains(range) => Ok(Outcome::Done),
            Err(CutError::NeedsFaultWindow { .. }) if !is_possible && !larger.is_empty() => {
                Ok(Outcome::Done)
            }
            Err(error) => Err(Mismatch::new(format!("cut of {range} to {size}: {error}"))),
        }
    }

    fn merge(&mut self, at: usize, range: IovaRange, rule: BreakBeforeMake) -> Step {
        let claim = self.claim(at);
        let before = self.model.clone();
        let merged = self.model.merge(range);
        let result = self.mappers[at].merge(range, rule, &self.hardware);
        let seen = self.hardware.take();
        match result {
            Ok(flushed) => {
                if !claim.contains(range) || !may_change::<F>(rule) && !merged.is_empty() {
                    return Err(Mismatch::new(format!("merge of {range} should be refused")));
                }
                let old: Vec<_> = merged
                    .iter()
                    .flat_map(|entry| before.overlapping(entry.range()))
                    .collect();
                expect_told(&seen, &old)?;
                expect_told_tables(&seen, &self.model.take_unlinked())?;
                self.flushed.push(flushed);
                Ok(Outcome::Done)
            }
            Err(error) => {
                let is_known = match error {
                    CutError::OutsideClaim { .. } => !claim.contains(range),
                    CutError::NeedsFaultWindow { .. } => {
                        !may_change::<F>(rule) && !merged.is_empty()
                    }
                    _ => false,
                };
                *self.model = before;
                if is_known {
                    return Ok(Outcome::Done);
                }
                Err(Mismatch::new(format!("merge of {range}: {error}")))
            }
        }
    }

    fn soil(&mut self, entry: u16, item: u16) -> Step {
        let number = usize::from(entry) % self.model.entry_count().max(1);
        let Some(entry) = self.model.entries().nth(number) else {
            return Ok(Outcome::Skipped);
        };
        let Some(rule) = self.table.format().dirty_rule() else {
            return Ok(Outcome::Skipped);
        };
        let item_lg2 = F::item_lg2(F::level_of(entry.size));
        let offset = (u64::from(item) << item_lg2) & entry.size.offset_mask();
        let iova = Iova::new(entry.start.get() + offset);
        let memory = self.table.memory();
        let mut word = None;
        let read = |oa| memory.seen(oa);
        let walked = walk::walk(self.table.format(), self.table.root(), iova, read, |step| {
            word = Some(Oa::new(step.table.get() + 8 * step.index as u64));
        });
        walked.map_err(|fault| Mismatch::new(format!("walk to {iova}: {fault}")))?;
        let word = word.expect("a walk that translates reads an item");
        memory
            .update(word, |word| rule.soil(word))
            .expect("the item was read");
        if self.model.tracks_dirty(entry.prot) {
            self.model
                .update(entry.range(), |entry| entry.is_dirty = true);
        }
        check_around(self.table, self.model, entry.range())?;
        Ok(Outcome::Done)
    }

    fn take_dirty(&mut self, at: usize, range: IovaRange) -> Step {
        let claim = self.claim(at);
        let dirty: Vec<_> = self
            .model
            .overlapping(range)
            .into_iter()
            .filter(|entry| entry.is_dirty)
            .collect();
        let mut reported = Vec::new();
        match self.mappers[at].take_dirty(range, |part| reported.push(part)) {
            Ok(gather) => {
                let cut = |entry: &Entry| entry.range().intersection(range);
                let expected = join_ranges(dirty.iter().filter_map(cut));
                ensure_eq("dirty pages taken", &join_ranges(reported), &expected)?;
                self.model.update(range, |entry| entry.is_dirty = false);
                self.gathered(gather, &dirty)
            }
            Err(DirtyError::NotTracked) if self.table.format().dirty_rule().is_none() => {
                Ok(Outcome::Done)
            }
            Err(DirtyError::OutsideClaim { .. }) if !claim.contains(range) => Ok(Outcome::Done),
            Err(error) => Err(Mismatch::new(format!("dirty pages of {range}: {error}"))),
        }
    }

    fn reserve(&mut self, at: usize, range: IovaRange) -> Step {
        let is_inside = self.claim(at).contains(range);
        let table_lg2 = F::GRANULE.lg2() + F::item_count_lg2();
        if range.len_minus_one() >> table_lg2 > TABLE_LIMIT {
            return Ok(Outcome::Skipped);
        }
        match self.mappers[at].reserve(range) {
            Ok(()) if is_inside => {
                self.model.reserve(range);
                Ok(Outcome::Done)
            }
            Err(MapError::OutOfMemory(_)) => Ok(Outcome::Starved),
            Err(MapError::OutsideClaim { .. }) if !is_inside => Ok(Outcome::Done),
            other => Err(Mismatch::new(format!("reserve of {range}: {other:?}"))),
        }
    }

    /// Syncs `gather` and checks that hardware was told of every entry of `removed`.
    fn gathered(&mut self, gather: Gather, removed: &[Entry]) -> Step {
        let told = gather.changes().range().is_some();
        ensure_eq("whether something changed", &told, &!removed.is_empty())?;
        let flushed = gather.sync(&self.hardware);
        expect_told(&self.hardware.take(), removed)?;
        self.keep(flushed)
    }

    /// Weighs the refusal of an operation on whole entries.
    fn refused(&self, range: IovaRange, error: &UnmapError, refusals: &[Refusal]) -> Step {
        let reason = unmap_reason(self.model, range, error);
        expect_refused(reason, refusals, error).map(|()| Outcome::Done)
    }

    fn keep(&mut self, flushed: Result<Flushed, iopt::invalidation::Quarantined>) -> Step {
        let flushed = flushed.map_err(|error| Mismatch::new(format!("sync: {error}")))?;
        self.flushed.push(flushed);
        Ok(Outcome::Done)
    }
}

/// Returns the runs that an unmap of `entries` reports: joined as far as the dirty state is equal.
fn removed_runs(entries: &[Entry]) -> Vec<Removed> {
    let mut runs: Vec<Removed> = Vec::new();
    for entry in entries {
        let next = Removed {
            range: entry.range(),
            oa: entry.oa,
            prot: entry.prot,
            dirty: entry.is_dirty,
        };
        match runs.last_mut() {
            Some(run)
                if run.prot == next.prot
                    && run.dirty == next.dirty
                    && run.range.last().checked_add(1) == Some(next.range.start())
                    && run.oa.get() + run.range.len_minus_one() + 1 == next.oa.get() =>
            {
                run.range =
                    IovaRange::new(run.range.start(), next.range.last()).expect("the entries rise");
            }
            _ => runs.push(next),
        }
    }
    runs
}

/// Returns whether live entries may change their size under `rule`.
fn may_change<F: Format>(rule: BreakBeforeMake) -> bool {
    match rule {
        _ if !F::BREAK_BEFORE_MAKE => true,
        BreakBeforeMake::Marked => F::BLOCK_MARK != 0,
        BreakBeforeMake::Required(window) => window == FaultWindow::Allow,
        BreakBeforeMake::Hitless => true,
    }
}

fn break_before_make(number: u8) -> BreakBeforeMake {
    match number % 4 {
        0 => BreakBeforeMake::Hitless,
        1 => BreakBeforeMake::Required(FaultWindow::Allow),
        2 => BreakBeforeMake::Marked,
        _ => BreakBeforeMake::Required(FaultWindow::Refuse),
    }
}
