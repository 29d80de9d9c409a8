//! Areas that change while they live.

use std::mem;

use iopt_formats::{Iova, IovaRange, Prot, Rights};

use crate::space::model::{Model, ModelArea, Output, Verdict};
use crate::space::op::To;
use crate::space::refused::Refused;

impl Model {
    pub(crate) fn copy(
        &mut self,
        into: usize,
        from: usize,
        range: IovaRange,
        to: To,
        prot: Prot,
    ) -> Verdict {
        let source = &self.spaces[from];
        let is_quarantined = source.overlapping(range).any(|area| area.is_quarantined);
        if is_quarantined || source.hole_in(range).is_some() {
            return Err(vec![Refused::Hole]);
        }
        let parts = source.overlapping(range).filter_map(|area| {
            let part = area.range.intersection(range)?;
            let offset = area.byte_of(part.start().get());
            Some((part, area.source, offset))
        });
        let parts: Vec<_> = parts.collect();
        let mut rights = parts.iter();
        if rights.any(|&(_, source, _)| self.rights_refusal(source, prot).is_some()) {
            return Err(vec![Refused::Rights]);
        }
        let (_, source, offset) = parts[0];
        let Some(len) = range.len() else {
            return Err(vec![Refused::NoRange]);
        };
        let span = self.place(into, source, offset, len, to)?;
        let start = span.start().get();
        let mut areas = Vec::new();
        for &(part, source, offset) in &parts {
            let from = Iova::new(start + (part.start().get() - range.start().get()));
            let Some(range) = IovaRange::with_len(from, part.len_minus_one() + 1) else {
                continue;
            };
            let reasons = self.place_refusals(into, range, offset);
            if !reasons.is_empty() {
                return Err(reasons);
            }
            areas.push(ModelArea {
                range,
                source,
                offset,
                prot,
                is_held: false,
                is_quarantined: false,
            });
        }
        let starts: Vec<u64> = areas.iter().map(|area| area.range.start().get()).collect();
        for area in areas {
            self.spaces[into]
                .areas
                .insert(area.range.start().get(), area);
        }
        self.fill(into, &starts).map_err(|(_, reasons)| reasons)?;
        Ok(Output::Range(span))
    }

    /// Divides the area around `iova`; `refuses_cut` says whether a domain has a page across it that
    /// cannot be cut.
    pub(crate) fn split(
        &mut self,
        space: usize,
        iova: u64,
        refuses_cut: impl Fn(usize) -> bool,
    ) -> Verdict {
        let area = self.spaces[space].area_at(iova).cloned();
        let area = area.ok_or_else(|| vec![Refused::Hole])?;
        let start = area.range.start().get();
        if start == iova {
            return Ok(Output::Nothing);
        }
        let mut reasons = Vec::new();
        if iova & (self.alignment(space) - 1) != 0 {
            reasons.push(Refused::Unaligned);
        }
        if area.is_quarantined || !self.pins_in(space, area.range).is_empty() {
            reasons.push(Refused::Busy);
        }
        let mut members = self.spaces[space].members.iter();
        if reasons.is_empty() && area.is_held && members.any(|member| refuses_cut(member.domain)) {
            reasons.push(Refused::Domain);
        }
        if !reasons.is_empty() {
            return Err(reasons);
        }
        let parts = [(start, iova - 1), (iova, area.range.last().get())];
        self.spaces[space].areas.remove(&start);
        for (from, last) in parts {
            let Some(range) = IovaRange::new(Iova::new(from), Iova::new(last)) else {
                continue;
            };
            let offset = area.byte_of(from);
            if area.is_held {
                // They were held as a whole, so that this costs nothing.
                let (first, last) = self.pages(area.source, offset, range.len_minus_one() + 1);
                for count in &mut self.users[area.source][first..=last] {
                    *count += 1;
                }
            }
            let part = ModelArea {
                range,
                offset,
                ..area.clone()
            };
            self.spaces[space].areas.insert(from, part);
        }
        if area.is_held {
            self.release(area.source, area.offset, area.byte_count());
        }
        Ok(Output::Nothing)
    }

    pub(crate) fn remap(&mut self, space: usize, range: IovaRange, to: To) -> Verdict {
        let reasons = self.whole_refusals(space, range, false);
        if !reasons.is_empty() {
            return Err(reasons);
        }
        let mut prots = self.spaces[space].overlapping(range).map(|area| area.prot);
        let first = prots.next().ok_or_else(|| vec![Refused::Hole])?;
        if prots.any(|prot| prot != first) {
            return Err(vec![Refused::Mixed]);
        }
        drop(prots);
        let before = self.clone();
        let moved = self.copy(space, space, range, to, first)?;
        let unmapped = self.unmap(space, &[range], false);
        match unmapped {
            Ok(_) => {
                if let Output::Range(to) = moved {
                    self.soil_moved(&before, space, range, to);
                }
                Ok(moved)
            }
            Err(reasons) => {
                if reasons != [Refused::UnmapQuarantined] {
                    // Accesses may have let go in vain; everything else is where it was.
                    let accesses = mem::take(&mut self.accesses);
                    *self = before;
                    self.keep_pins_of(accesses);
                }
                Err(reasons)
            }
        }
    }

    /// Takes what devices wrote to along to another place.
    fn soil_moved(&mut self, before: &Self, space: usize, from: IovaRange, to: IovaRange) {
        let shift = |iova: u64| to.start().get() + (iova - from.start().get());
        for (member, before) in self.spaces[space]
            .members
            .iter_mut()
            .zip(&before.spaces[space].members)
        {
            let soiled = before.soiled.iter();
            let moved = soiled.filter(|(iova, _)| from.contains_addr(Iova::new(*iova)));
            let moved = moved.filter_map(|&(iova, entry)| {
                let entry = entry.intersection(from)?;
                let start = Iova::new(shift(entry.start().get()));
                let entry = IovaRange::with_len(start, entry.len_minus_one() + 1)?;
                Some((shift(iova), entry))
            });
            if member.is_tracking {
                member.soiled.extend(moved);
            }
        }
    }

    /// Lets go of the pins that `accesses` have not.
    pub(crate) fn keep_pins_of(&mut self, accesses: Vec<crate::space::model::ModelAccess>) {
        for (number, after) in accesses.into_iter().enumerate() {
            let before = mem::take(&mut self.accesses[number].pins);
            for pin in before {
                if after.pins.contains(&pin) {
                    continue;
                }
                for (source, offset, len) in pin.parts {
                    self.release(source, offset, len);
                }
            }
            self.accesses[number] = after;
        }
    }

    pub(crate) fn protect(&mut self, space: usize, range: IovaRange, prot: Prot) -> Verdict {
        let reasons = self.whole_refusals(space, range, false);
        if !reasons.is_empty() {
            return Err(reasons);
        }
        let state = &self.spaces[space];
        let mut reasons = Vec::new();
        for area in state.overlapping(range) {
            let lost = area.prot.rights().difference(prot.rights());
            let is_less = lost.intersection(Rights::READ.union(Rights::WRITE)) != Rights::NONE;
            if is_less && !self.pins_in(space, area.range).is_empty() {
                reasons.push(Refused::Rights);
            }
            reasons.extend(self.rights_refusal(area.source, prot));
            if area.is_quarantined {
                reasons.push(Refused::Busy);
            }
            let mut members = state.members.iter();
            let grants = |domain: usize| {
                let facts = &self.facts.domains[domain];
                let memory = |prot: Prot| facts.effective[prot.index()].map(Prot::memory);
                let new = memory(prot);
                new.is_some() && (!facts.keeps_memory || new == memory(area.prot))
            };
            if area.is_held && !members.all(|member| grants(member.domain)) {
                reasons.push(Refused::Domain);
            }
        }
        if !reasons.is_empty() {
            return Err(reasons);
        }
        let starts: Vec<u64> = state
            .overlapping(range)
            .map(|area| area.range.start().get())
            .collect();
        for start in starts {
            let Some(area) = self.spaces[space].areas.get_mut(&start) else {
                continue;
            };
            area.prot = prot;
        }
        Ok(Output::Nothing)
    }

    pub(crate) fn revoke(&mut self, space: usize, source: usize) -> Verdict {
        self.is_revoked[source] = true;
        let areas = self.spaces[space].areas.values();
        let of_source = areas.filter(|area| area.source == source);
        let starts: Vec<u64> = of_source.map(|area| area.range.start().get()).collect();
        for start in starts {
            let Some(area) = self.spaces[space].areas.get_mut(&start) else {
                continue;
            };
            if area.is_quarantined {
                return Err(vec![Refused::Busy]);
            }
            if !area.is_held {
                continue;
            }
            area.is_held = false;
            let (range, offset, len) = (area.range, area.offset, area.byte_count());
            self.release(source, offset, len);
            for member in &mut self.spaces[space].members {
                let stays = |&(iova, _): &(u64, IovaRange)| !range.contains_addr(Iova::new(iova));
                member.soiled.retain(stays);
            }
        }
        Ok(Output::Nothing)
    }

    pub(crate) fn restore(&mut self, space: usize, source: usize) -> Verdict {
        self.is_revoked[source] = false;
        if self.spaces[space].members.is_empty() {
            return Ok(Output::Nothing);
        }
        let areas = self.spaces[space].areas.values();
        let of_source = areas.filter(|area| area.source == source && !area.is_quarantined);
        let starts: Vec<u64> = of_source.map(|area| area.range.start().get()).collect();
        for start in starts {
            let area = self.spaces[space].areas[&start].clone();
            if area.is_held {
                continue;
            }
            let held = self.hold(source, area.offset, area.byte_count());
            held.map_err(|reason| vec![reason])?;
            let members = self.spaces[space].members.iter();
            let reasons: Vec<Refused> = members
                .filter_map(|member| self.domain_refusal(space, member.domain, &area))
                .collect();
            if let Some(area) = self.spaces[space].areas.get_mut(&start) {
                area.is_held = true;
            }
            if !reasons.is_empty() {
                return Err(reasons);
            }
        }
        Ok(Output::Nothing)
    }
}
