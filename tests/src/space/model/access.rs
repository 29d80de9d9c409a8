//! Accesses and what they have pinned.

use iopt_formats::{Iova, IovaRange};

use crate::space::model::{Model, Output, Verdict};
use crate::space::refused::Refused;

/// An access.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ModelAccess {
    /// Where it is bound to.
    pub space: Option<usize>,
    /// Its pins, oldest first.
    pub pins: Vec<HeldPin>,
    /// Whether it lets go of nothing.
    pub is_stubborn: bool,
    /// Whether it was destroyed.
    pub is_destroyed: bool,
}

/// A pin.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HeldPin {
    /// What is pinned.
    pub range: IovaRange,
    /// The areas that it counts in, as long as they are there.
    pub areas: Vec<IovaRange>,
    /// Slices of sources: number, first byte, bytes.
    pub parts: Vec<(usize, u64, u64)>,
}

impl Model {
    /// Asks the accesses of a space to let go of `range`.
    pub(crate) fn let_go(&mut self, space: usize, range: IovaRange) {
        for access in 0..self.accesses.len() {
            if self.accesses[access].space == Some(space) {
                self.ask(access, range);
            }
        }
    }

    /// Asks an access to let go of `range`; returns whether it did.
    fn ask(&mut self, access: usize, range: IovaRange) -> bool {
        let pins = &self.accesses[access].pins;
        if !pins.iter().any(|pin| pin.range.overlaps(range)) {
            return true;
        }
        if self.accesses[access].is_stubborn {
            return false;
        }
        while let Some(place) = self.accesses[access]
            .pins
            .iter()
            .position(|pin| pin.range.overlaps(range))
        {
            self.drop_pin(access, place);
        }
        true
    }

    fn drop_pin(&mut self, access: usize, place: usize) {
        let pin = self.accesses[access].pins.remove(place);
        for (source, offset, len) in pin.parts {
            self.release(source, offset, len);
        }
    }

    /// Returns why an access may not use `range`.
    fn entry_refusals(&self, space: usize, range: IovaRange, is_write: bool) -> Vec<Refused> {
        let space = &self.spaces[space];
        let mut reasons = Vec::new();
        let is_quarantined = space.overlapping(range).any(|area| area.is_quarantined);
        if is_quarantined || space.hole_in(range).is_some() {
            reasons.push(Refused::Hole);
        }
        let is_refused = |prot: iopt_formats::Prot| {
            if is_write {
                !prot.can_write()
            } else {
                !prot.can_read()
            }
        };
        if space.overlapping(range).any(|area| is_refused(area.prot)) {
            reasons.push(Refused::Rights);
        }
        reasons
    }

    pub(crate) fn pin(&mut self, access: usize, range: IovaRange, is_write: bool) -> Verdict {
        let space = self.accesses[access]
            .space
            .ok_or_else(|| vec![Refused::Detached])?;
        let reasons = self.entry_refusals(space, range, is_write);
        if !reasons.is_empty() {
            return Err(reasons);
        }
        let areas: Vec<_> = self.spaces[space].overlapping(range).cloned().collect();
        let mut pin = HeldPin {
            range,
            areas: areas.iter().map(|area| area.range).collect(),
            parts: Vec::new(),
        };
        let mut runs: Vec<(IovaRange, u64)> = Vec::new();
        for area in areas {
            let Some(part) = area.range.intersection(range) else {
                continue;
            };
            let (first, len) = (area.byte_of(part.start().get()), part.len_minus_one() + 1);
            let page = self.facts.sources[area.source].page;
            if !page.divides(first) {
                return Err(vec![Refused::Unaligned]);
            }
            let held = self.hold(area.source, first, len);
            held.map_err(|reason| vec![reason])?;
            pin.parts.push((area.source, first, len));
            let source = &self.facts.sources[area.source];
            for cut in source.cuts(first, len, false).windows(2) {
                let iova = Iova::new(part.start().get() + (cut[0] - first));
                let run = IovaRange::with_len(iova, cut[1] - cut[0]);
                runs.extend(run.map(|run| (run, source.oa_of(cut[0]))));
            }
        }
        self.accesses[access].pins.push(pin);
        Ok(Output::Runs(join_runs(runs)))
    }

    pub(crate) fn unpin(&mut self, access: usize, range: IovaRange) -> Verdict {
        let pins = &self.accesses[access].pins;
        let place = pins.iter().rposition(|pin| pin.range == range);
        let place = place.ok_or_else(|| vec![Refused::NotPinned])?;
        self.drop_pin(access, place);
        Ok(Output::Nothing)
    }

    /// Returns the slices of sources behind a range: number, first byte, bytes.
    pub(crate) fn bytes_behind(
        &self,
        access: usize,
        iova: u64,
        len: usize,
        is_write: bool,
    ) -> Result<Vec<(usize, u64, u64)>, Vec<Refused>> {
        let space = self.accesses[access]
            .space
            .ok_or_else(|| vec![Refused::Detached])?;
        if len == 0 {
            return Ok(Vec::new());
        }
        let range = IovaRange::with_len(Iova::new(iova), len as u64);
        let range = range.ok_or_else(|| vec![Refused::NoRange])?;
        let reasons = self.entry_refusals(space, range, is_write);
        if !reasons.is_empty() {
            return Err(reasons);
        }
        let mut areas = self.spaces[space].overlapping(range);
        if areas.any(|area| self.is_revoked[area.source]) {
            return Err(vec![Refused::Revoked]);
        }
        let parts = self.spaces[space].overlapping(range).filter_map(|area| {
            let part = area.range.intersection(range)?;
            Some((
                area.source,
                area.byte_of(part.start().get()),
                part.len_minus_one() + 1,
            ))
        });
        Ok(parts.collect())
    }

    pub(crate) fn rebind(&mut self, access: usize, space: Option<usize>) -> Verdict {
        if self.accesses[access].space.is_some() && !self.ask(access, IovaRange::FULL) {
            return Err(vec![Refused::Stuck]);
        }
        self.accesses[access].space = space;
        Ok(Output::Nothing)
    }

    pub(crate) fn destroy(&mut self, access: usize) {
        while !self.accesses[access].pins.is_empty() {
            self.drop_pin(access, 0);
        }
        self.accesses[access].space = None;
        self.accesses[access].is_destroyed = true;
    }
}

/// Returns runs as long as they can be.
pub(crate) fn join_runs(runs: Vec<(IovaRange, u64)>) -> Vec<(IovaRange, u64)> {
    let mut joined: Vec<(IovaRange, u64)> = Vec::new();
    for (range, oa) in runs {
        if let Some((last, last_oa)) = joined.last_mut()
            && last.last().checked_add(1) == Some(range.start())
            && *last_oa + last.len_minus_one() + 1 == oa
        {
            *last = IovaRange::new(last.start(), range.last()).unwrap_or(*last);
        } else {
            joined.push((range, oa));
        }
    }
    joined
}
