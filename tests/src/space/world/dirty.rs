//! What devices wrote to.

use iopt_formats::{Iova, IovaRange};

use crate::check::Mismatch;
use crate::space::op::{Op, Report};
use crate::space::world::run::BITMAP_PAGES;
use crate::space::world::{Outcome, World};

const PAGE: u64 = 0x1000;

/// What a report must and may hold.
#[derive(Debug)]
pub(super) struct Expectation {
    /// Addresses that it must.
    points: Vec<u64>,
    /// Ranges that it may.
    entries: Vec<IovaRange>,
}

impl Expectation {
    /// Checks the first addresses of the pages that were reported.
    pub(super) fn check(&self, marked: &[u64]) -> Result<(), Mismatch> {
        for point in &self.points {
            if !marked.contains(&(point & !(PAGE - 1))) {
                let text = format!("a write to {point:#x} was not reported: {marked:x?}");
                return Err(Mismatch::new(text));
            }
        }
        for &page in marked {
            let range = IovaRange::with_len(Iova::new(page), PAGE);
            let is_known =
                range.is_some_and(|range| self.entries.iter().any(|entry| entry.overlaps(range)));
            if !is_known {
                let text = format!(
                    "nobody wrote to {page:#x}, which was reported: {marked:x?}, but {:x?}",
                    self.entries
                );
                return Err(Mismatch::new(text));
            }
        }
        Ok(())
    }
}

impl World {
    /// Returns what an operation must report, if it reports anything; before it runs.
    pub(super) fn dirty_expectation(&self, op: &Op) -> Option<Expectation> {
        let (space, range, only) = match *op {
            Op::Unmap {
                space,
                range,
                report: Report::Dirty,
                ..
            } => (space, range, None),
            Op::ReadDirty {
                space,
                range,
                domain,
                ..
            } => (space, range, Some(domain)),
            _ => return None,
        };
        // A report is due only if nothing is in the way; what may be in it is known anyway.
        let mut next = self.model.clone();
        let is_due = self.expect(&mut next, op).is_ok() && !self.setting.faults.is_armed();
        let base = range.start().get() & !(PAGE - 1);
        let members = self.model.spaces[space].members.iter();
        let members = members.filter(|member| only.is_none_or(|only| only == member.domain));
        let mut expectation = Expectation {
            points: Vec::new(),
            entries: Vec::new(),
        };
        for member in members {
            if !member.is_tracking {
                continue;
            }
            if self.model.facts.domains[member.domain].starts_dirty {
                expectation.entries.push(range);
            }
            for &(iova, entry) in &member.soiled {
                expectation.entries.push(entry);
                let has_bit = (iova - base.min(iova)) / PAGE < BITMAP_PAGES;
                if is_due && has_bit && range.contains_addr(Iova::new(iova)) {
                    expectation.points.push(iova);
                }
            }
        }
        Some(expectation)
    }

    /// Lets a device write to `iova`, if it may.
    pub(super) fn soil(&mut self, domain: usize, iova: u64) -> Result<Outcome, Mismatch> {
        let space = self.model.spaces.iter().find(|space| {
            let mut members = space.members.iter();
            members.any(|member| member.domain == domain && member.is_tracking)
        });
        let area = space.and_then(|space| space.area_at(iova));
        let may_write = area.is_some_and(|area| {
            let effective = self.model.facts.domains[domain].effective[area.prot.index()];
            let is_writable = effective.is_some_and(iopt_formats::Prot::can_write);
            area.is_held && !area.is_quarantined && is_writable
        });
        let witness = &self.setting.domains[domain];
        let Some(entry) = witness.entry_at(iova).filter(|_| may_write) else {
            return Ok(Outcome::Done);
        };
        if !witness.soil(iova) {
            return Err(Mismatch::new(format!("no item translates {iova:#x}")));
        }
        self.model.soil(domain, iova, entry);
        Ok(Outcome::Done)
    }
}
