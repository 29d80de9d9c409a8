//! Address spaces and their model, side by side.

mod check;
mod dirty;
mod run;

use std::mem;
use std::sync::Arc;

use iopt::ioas::{Access, Ioas, Quarantined};
use iopt_formats::{Iova, IovaRange};

use crate::check::{Mismatch, ensure_eq};
use crate::space::fault::FailPoint;
use crate::space::holder::Holder;
use crate::space::model::{Model, Output, Owner, Verdict};
use crate::space::op::Op;
use crate::space::refused::Refused;
use crate::space::setting::{Mix, Setting};

/// Address spaces of a test.
const SPACE_COUNT: usize = 2;

/// What is to fail during one operation.
#[derive(Clone, Debug, Default)]
pub struct Orders {
    /// Points, each with the number of calls that go well before.
    pub points: Vec<(FailPoint, u64)>,
    /// Pages that each domain's tables may still take.
    pub table_pages: Option<usize>,
}

/// How an operation went.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// It was done.
    Done,
    /// It was refused, for a reason that the model knows.
    Refused(Refused),
    /// It failed, as ordered.
    Failed(Refused),
}

/// Address spaces with their model.
#[derive(Debug)]
pub struct World {
    setting: Setting,
    spaces: Vec<Arc<Ioas>>,
    accesses: Vec<Option<(Access, Arc<Holder>)>>,
    /// What the sources hold.
    contents: Vec<Vec<u8>>,
    model: Model,
    /// Whether table pages are short.
    is_starved: bool,
    /// What failed in the last operation, as ordered.
    fired_count: u64,
    /// Where the last operation put something.
    placed: Vec<IovaRange>,
}

impl World {
    /// Creates two empty address spaces.
    pub fn new(mix: Mix, seed: u64) -> Self {
        let setting = Setting::new(mix, seed);
        let sources = setting.facts.sources.iter();
        let contents = sources
            .map(|source| vec![0; source.len() as usize])
            .collect();
        let model = Model::new(Arc::clone(&setting.facts), SPACE_COUNT);
        Self {
            setting,
            spaces: (0..SPACE_COUNT).map(|_| Arc::new(Ioas::new())).collect(),
            accesses: Vec::new(),
            contents,
            model,
            is_starved: false,
            fired_count: 0,
            placed: Vec::new(),
        }
    }

    /// Returns the model.
    pub const fn model(&self) -> &Model {
        &self.model
    }

    /// Returns the sources, domains and budgets.
    pub const fn setting(&self) -> &Setting {
        &self.setting
    }

    /// Returns how many calls failed in the last operation, as ordered.
    pub const fn fired_count(&self) -> u64 {
        self.fired_count
    }

    /// Leaves room for `page_count` pages of 4 KiB in a budget; returns the bytes it took for that.
    pub fn squeeze(&mut self, budget: usize, page_count: u64) -> u64 {
        let facts = Arc::clone(&self.model.facts);
        let left = facts.budgets[budget] - self.model.used[budget];
        let bytes = left.saturating_sub(page_count * 0x1000);
        let charged = self.setting.budgets[budget].charge(bytes);
        charged.expect("it is less than what is left");
        self.model.used[budget] += bytes;
        bytes
    }

    /// Gives back what [`squeeze`](Self::squeeze) took.
    pub fn relax(&mut self, budget: usize, bytes: u64) {
        self.setting.budgets[budget].release(bytes);
        self.model.used[budget] -= bytes;
    }

    /// Returns the range of the entry that translates `iova` in a domain.
    pub fn entry_at(&self, domain: usize, iova: u64) -> Option<IovaRange> {
        self.setting.domains[domain].entry_at(iova)
    }

    /// Runs one operation, of which some parts may be told to fail, and compares what it touched.
    ///
    /// # Errors
    ///
    /// A [`Mismatch`] if address space and model disagree.
    pub fn step(&mut self, op: &Op, orders: &Orders) -> Result<Outcome, Mismatch> {
        // What is refused is taken back, and if that fails, too, nobody knows what a domain holds.
        let is_delicate = matches!(
            op,
            Op::Attach { .. } | Op::Replace { .. } | Op::Protect { .. }
        );
        if is_delicate && self.expect(&mut self.model.clone(), op).is_err() {
            self.order(&Orders::default());
        } else {
            self.order(orders);
        }
        self.placed.clear();
        let outcome = match op {
            Op::Revoke { source } => self.revoke(*source),
            Op::Restore { source } => self.restore(*source),
            Op::Read { access, iova, len } => self.read(*access, *iova, *len),
            Op::Write {
                access,
                iova,
                bytes,
            } => self.write(*access, *iova, bytes),
            Op::Soil { domain, iova } => self.soil(*domain, *iova),
            _ => self.compare(op),
        };
        self.fired_count = self.setting.faults.fired_count();
        self.order(&Orders::default());
        let outcome = outcome?;
        self.check_touched(op)?;
        Ok(outcome)
    }

    /// Lets things fail, until it is called again.
    fn order(&mut self, orders: &Orders) {
        self.is_starved = orders.table_pages.is_some();
        let faults = &self.setting.faults;
        faults.clear();
        for &(point, count) in &orders.points {
            faults.arm(point, count);
        }
        for domain in &self.setting.domains {
            domain.memory().set_left(orders.table_pages);
        }
    }

    /// Returns whether anything may have failed as ordered.
    fn has_failed(&self, reason: Refused) -> bool {
        self.setting.faults.fired_count() > 0 || (self.is_starved && reason == Refused::Domain)
    }

    /// Runs one operation on the address spaces and on the model.
    fn compare(&mut self, op: &Op) -> Result<Outcome, Mismatch> {
        let mut next = self.model.clone();
        let (expected, dirty) = (self.expect(&mut next, op), self.dirty_expectation(op));
        let (found, bitmap) = self.run(op)?;
        if let (Some(dirty), Some(bitmap)) = (dirty, bitmap) {
            dirty.check(&bitmap)?;
        }
        match (found, expected) {
            (Ok(found), Ok(expected)) => {
                ensure_eq(format_args!("{op:x?}"), &found, &expected)?;
                self.model = next;
                match found {
                    Output::Range(range) => self.placed.push(range),
                    Output::Ranges(ranges) => self.placed = ranges,
                    _ => {}
                }
                Ok(Outcome::Done)
            }
            (Err(reason), Err(reasons)) if reasons.contains(&reason) => {
                self.settle(op, reason, next);
                Ok(Outcome::Refused(reason))
            }
            (Err(reason), expected) => {
                let is_left = self
                    .model
                    .spaces
                    .iter()
                    .any(|space| !space.leaving.is_empty());
                if !self.has_failed(reason) && !is_left {
                    let text = format!("{op:x?}: refused as {reason:?}, expected {expected:x?}");
                    return Err(Mismatch::new(text));
                }
                self.settle_failure(op, reason, &expected, next)?;
                Ok(Outcome::Failed(reason))
            }
            (Ok(found), Err(reasons)) => {
                let text = format!("{op:x?}: gave {found:x?}, expected one of {reasons:?}");
                Err(Mismatch::new(text))
            }
        }
    }

    /// Runs an operation on a model.
    fn expect(&self, next: &mut Model, op: &Op) -> Verdict {
        match *op {
            Op::Map { space, slice } => match next.map(space, &[slice]) {
                Ok(ranges) => Ok(Output::Range(ranges[0])),
                Err((_, reasons)) => Err(reasons),
            },
            Op::MapMany { space, ref slices } => match next.map(space, slices) {
                Ok(ranges) => Ok(Output::Ranges(ranges)),
                Err((_, reasons)) => Err(reasons),
            },
            Op::Unmap {
                space,
                range,
                tolerates_holes,
                ..
            } => next.unmap(space, &[range], tolerates_holes),
            Op::UnmapMany {
                space,
                ref ranges,
                tolerates_holes,
            } => next.unmap(space, ranges, tolerates_holes),
            Op::Copy {
                into,
                from,
                range,
                to,
                prot,
            } => next.copy(into, from, range, to, prot),
            Op::Split { space, iova } => next.split(space, iova, |domain| {
                let witness = &self.setting.domains[domain];
                let entry = witness.entry_at(iova);
                witness.refuses_cuts() && entry.is_some_and(|entry| entry.start().get() != iova)
            }),
            Op::Remap { space, range, to } => next.remap(space, range, to),
            Op::Protect { space, range, prot } => next.protect(space, range, prot),
            Op::Attach { space, domain } => next.attach(space, domain),
            Op::Detach { space, domain } => next.leave(space, domain, true),
            Op::Replace { space, old, new } => next.replace(space, old, new),
            Op::Create { space } => {
                next.create(space);
                Ok(Output::Nothing)
            }
            Op::SetStubborn {
                access,
                is_stubborn,
            } => {
                next.accesses[access].is_stubborn = is_stubborn;
                Ok(Output::Nothing)
            }
            Op::Pin {
                access,
                range,
                is_write,
            } => next.pin(access, range, is_write),
            Op::Unpin { access, range } => next.unpin(access, range),
            Op::Rebind { access, space } => next.rebind(access, space),
            Op::Destroy { access } => {
                next.destroy(access);
                Ok(Output::Nothing)
            }
            Op::Reserve {
                space,
                range,
                owner,
            } => next.reserve(space, range, Owner::User(owner)),
            Op::Release { space, owner } => {
                let reserved = &mut next.spaces[space].reserved;
                reserved.retain(|&(_, other)| other != Owner::User(owner));
                Ok(Output::Nothing)
            }
            Op::Allow { space, ref ranges } => next.allow(space, ranges),
            Op::PageByPage { space, is_on } => next.set_page_by_page(space, is_on),
            Op::MsiWindow { space, window } => next.set_msi_window(space, window),
            Op::MapMsi { space, domain, oa } => next.map_msi(space, domain, oa),
            Op::Track {
                space,
                domain,
                is_on,
            } => next.track(space, domain, is_on),
            Op::ReadDirty {
                space,
                domain,
                range,
                tolerates_holes,
                forgets,
            } => next.read_dirty(space, domain, range, tolerates_holes, forgets),
            Op::Retry { space } => {
                next.retry(space);
                Ok(Output::Nothing)
            }
            Op::Revoke { .. }
            | Op::Restore { .. }
            | Op::Read { .. }
            | Op::Write { .. }
            | Op::Soil { .. } => Ok(Output::Nothing),
        }
    }

    /// Takes over what a refused operation leaves.
    fn settle(&mut self, op: &Op, reason: Refused, next: Model) {
        match (op, reason) {
            (_, Refused::UnmapQuarantined | Refused::NotFlushed)
            | (Op::ReadDirty { .. }, Refused::Hole) => self.model = next,
            (_, Refused::Deadlock) => self.model.keep_pins_of(next.accesses),
            _ => {}
        }
    }

    /// Takes over what an operation leaves that failed as ordered: nothing, or a quarantine.
    fn settle_failure(
        &mut self,
        op: &Op,
        reason: Refused,
        expected: &Verdict,
        next: Model,
    ) -> Result<(), Mismatch> {
        let model = &mut self.model;
        let unexpected = || {
            let text = format!("{op:x?}: failed as {reason:?}, expected {expected:x?}");
            Err(Mismatch::new(text))
        };
        match (op, reason) {
            (Op::Map { .. } | Op::MapMany { .. } | Op::Copy { .. }, Refused::Quarantined) => {
                model.quarantine_new(&next);
            }
            (&Op::Remap { space, range, to }, Refused::Quarantined) => {
                let first = model.spaces[space].overlapping(range).next();
                let Some(prot) = first.map(|area| area.prot) else {
                    return unexpected();
                };
                // Whatever came of the unmap, it was not tried.
                let mut copied = model.clone();
                let _ = copied.copy(space, space, range, to, prot);
                model.quarantine_new(&copied);
            }
            (
                Op::Map { .. }
                | Op::MapMany { .. }
                | Op::Copy { .. }
                | Op::Remap { .. }
                | Op::Attach { .. }
                | Op::Replace { .. },
                Refused::Domain | Refused::Pin,
            )
            | (Op::Pin { .. }, Refused::Pin)
            | (
                Op::Protect { .. } | Op::Split { .. } | Op::MapMsi { .. } | Op::Track { .. },
                Refused::Domain,
            ) => {}
            (
                &Op::Unmap {
                    space,
                    range,
                    tolerates_holes,
                    ..
                },
                Refused::UnmapQuarantined,
            ) => {
                return self.settle_unmap(space, &[range], tolerates_holes);
            }
            (
                Op::UnmapMany {
                    space,
                    ranges,
                    tolerates_holes,
                },
                Refused::UnmapQuarantined,
            ) => return self.settle_unmap(*space, ranges, *tolerates_holes),
            (&Op::Remap { space, range, to }, Refused::UnmapQuarantined) => {
                let first = model.spaces[space].overlapping(range).next();
                let Some(prot) = first.map(|area| area.prot) else {
                    return unexpected();
                };
                let is_stuck = expected == &Err(vec![Refused::Deadlock]);
                let copied = model.copy(space, space, range, to, prot);
                let Ok(Output::Range(moved)) = copied else {
                    return unexpected();
                };
                if is_stuck {
                    model.keep_pins_of(next.accesses);
                    let areas = model.spaces[space].overlapping(moved);
                    let starts: Vec<u64> = areas.map(|area| area.range.start().get()).collect();
                    model.quarantine(space, &starts);
                } else {
                    return self.settle_unmap(space, &[range], false);
                }
            }
            (&Op::Replace { space, old, new }, Refused::NotFlushed) => {
                let attached = model.attach(space, new);
                let left = model.leave(space, old, false);
                if attached.is_err() || left != Err(vec![Refused::NotFlushed]) {
                    return unexpected();
                }
            }
            (&Op::Detach { space, domain }, Refused::NotFlushed) => {
                if model.leave(space, domain, false) != Err(vec![Refused::NotFlushed]) {
                    return unexpected();
                }
            }
            _ => return unexpected(),
        }
        Ok(())
    }

    fn settle_unmap(
        &mut self,
        space: usize,
        ranges: &[IovaRange],
        tolerates_holes: bool,
    ) -> Result<(), Mismatch> {
        let starts = self.model.drain(space, ranges, tolerates_holes);
        let starts = starts.map_err(|reasons| {
            Mismatch::new(format!("an unmap went too far, expected {reasons:?}"))
        })?;
        self.model.quarantine(space, &starts);
        Ok(())
    }

    /// Takes the memory of a source back from all address spaces.
    fn revoke(&mut self, source: usize) -> Result<Outcome, Mismatch> {
        let mut outcome = Outcome::Done;
        for space in 0..SPACE_COUNT {
            let pages = &self.setting.sources[source].pages;
            let found = self.spaces[space].revoke(pages).map_err(Refused::from);
            let held: Vec<u64> = {
                let areas = self.model.spaces[space].areas.values();
                let held = areas
                    .filter(|area| area.source == source && area.is_held && !area.is_quarantined);
                held.map(|area| area.range.start().get()).collect()
            };
            match (found, self.model.revoke(space, source)) {
                (Ok(()), Ok(_)) => {}
                (Err(reason), Err(reasons)) if reasons.contains(&reason) => {
                    outcome = Outcome::Refused(reason);
                }
                // The one area that was mapped failed.
                (Err(Refused::Domain), Ok(_))
                    if self.has_failed(Refused::Domain) && held.len() == 1 =>
                {
                    let area = self.model.spaces[space].areas[&held[0]].clone();
                    self.model.quarantine_again(space, &area);
                    outcome = Outcome::Failed(Refused::Domain);
                }
                (found, expected) => {
                    let text = format!("revoke: {found:?}, expected {expected:?}");
                    return Err(Mismatch::new(text));
                }
            }
        }
        Ok(outcome)
    }

    /// Gives the memory of a source back to all address spaces, or to none.
    fn restore(&mut self, source: usize) -> Result<Outcome, Mismatch> {
        let mut outcome = Outcome::Done;
        for space in 0..SPACE_COUNT {
            let pages = &self.setting.sources[source].pages;
            let found = self.spaces[space].restore(pages).map_err(Refused::from);
            match (found, self.model.restore(space, source)) {
                (Ok(()), Ok(_)) => {}
                (Err(reason), Err(reasons)) if reasons.contains(&reason) => {
                    self.order(&Orders::default());
                    self.revoke(source)?;
                    return Ok(Outcome::Refused(reason));
                }
                // What is left may be tried again.
                (Err(reason), expected) if self.has_failed(reason) => {
                    self.order(&Orders::default());
                    let pages = &self.setting.sources[source].pages;
                    let again = self.spaces[space].restore(pages).map_err(Refused::from);
                    if again.is_ok() != expected.is_ok() {
                        let text = format!("restored again: {again:?}, expected {expected:?}");
                        return Err(Mismatch::new(text));
                    }
                    outcome = Outcome::Failed(reason);
                    if again.is_err() {
                        self.revoke(source)?;
                        return Ok(outcome);
                    }
                }
                (found, expected) => {
                    let text = format!("restore: {found:?}, expected {expected:?}");
                    return Err(Mismatch::new(text));
                }
            }
        }
        Ok(outcome)
    }

    fn read(&self, access: usize, iova: u64, len: usize) -> Result<Outcome, Mismatch> {
        let Some((handle, _)) = &self.accesses[access] else {
            return Ok(Outcome::Done);
        };
        let mut found = vec![0; len];
        let result = handle
            .read(Iova::new(iova), &mut found)
            .map_err(Refused::from);
        match (result, self.model.bytes_behind(access, iova, len, false)) {
            (Ok(()), Ok(parts)) => {
                let mut expected = Vec::new();
                for (source, first, len) in parts {
                    let part = first as usize..(first + len) as usize;
                    expected.extend_from_slice(&self.contents[source][part]);
                }
                ensure_eq(format_args!("read at {iova:#x}"), &found, &expected)?;
                Ok(Outcome::Done)
            }
            (Err(reason), Err(reasons)) if reasons.contains(&reason) => {
                Ok(Outcome::Refused(reason))
            }
            (found, expected) => Err(Mismatch::new(format!(
                "read at {iova:#x}: {found:?}, expected {expected:?}"
            ))),
        }
    }

    fn write(&mut self, access: usize, iova: u64, bytes: &[u8]) -> Result<Outcome, Mismatch> {
        let Some((handle, _)) = &self.accesses[access] else {
            return Ok(Outcome::Done);
        };
        let result = handle.write(Iova::new(iova), bytes).map_err(Refused::from);
        match (
            result,
            self.model.bytes_behind(access, iova, bytes.len(), true),
        ) {
            (Ok(()), Ok(parts)) => {
                let mut rest = bytes;
                for (source, first, len) in parts {
                    let (part, behind) = rest.split_at(len as usize);
                    self.contents[source][first as usize..][..part.len()].copy_from_slice(part);
                    rest = behind;
                }
                Ok(Outcome::Done)
            }
            (Err(reason), Err(reasons)) if reasons.contains(&reason) => {
                Ok(Outcome::Refused(reason))
            }
            (found, expected) => Err(Mismatch::new(format!(
                "write at {iova:#x}: {found:?}, expected {expected:?}"
            ))),
        }
    }

    /// Empties the quarantine, but for what accesses have pinned.
    ///
    /// # Errors
    ///
    /// A [`Mismatch`] if something stays.
    pub fn retry_all(&mut self) -> Result<(), Mismatch> {
        for space in 0..SPACE_COUNT {
            self.step(&Op::Retry { space }, &Orders::default())?;
            let left = self.spaces[space].quarantined();
            let areas = self.model.spaces[space].areas.values();
            let pinned_count = areas.filter(|area| area.is_quarantined).count();
            let found = (left.area_count, left.domain_count);
            ensure_eq("quarantine", &found, &(pinned_count, 0))?;
        }
        Ok(())
    }

    /// Takes everything down; nothing may be left then.
    ///
    /// # Errors
    ///
    /// A [`Mismatch`]: a leak.
    pub fn finish(mut self) -> Result<(), Mismatch> {
        self.retry_all()?;
        self.check_all()?;
        for access in mem::take(&mut self.accesses).into_iter().flatten() {
            let destroyed = access.0.destroy();
            destroyed.map_err(|error| Mismatch::new(format!("destroy: {error}")))?;
        }
        for space in mem::take(&mut self.spaces) {
            let left = space.retry_quarantined();
            ensure_eq("quarantine", &left, &Quarantined::default())?;
            ensure_eq("owners of a space", &Arc::strong_count(&space), &1)?;
        }
        self.check_nothing_left()
    }
}
