//! Mapping and unmapping.

use iopt_formats::{Iova, IovaRange, Prot};

use crate::space::model::{Model, ModelArea, ModelSpace, Output, Verdict};
use crate::space::op::{Slice, To};
use crate::space::refused::Refused;

/// The largest alignment that automatic choice asks for.
const CHOICE_ALIGN: u64 = 1 << 21;

/// A number of a slice with the reasons for which it is refused.
type At = (usize, Vec<Refused>);

impl Model {
    /// Maps slices, all or none.
    pub(crate) fn map(&mut self, space: usize, slices: &[Slice]) -> Result<Vec<IovaRange>, At> {
        let mut starts = Vec::new();
        for (index, slice) in slices.iter().enumerate() {
            let range = self.place_slice(space, slice);
            let range = range.map_err(|reasons| (index, reasons))?;
            let area = ModelArea {
                range,
                source: slice.source,
                offset: slice.offset,
                prot: slice.prot,
                is_held: false,
                is_quarantined: false,
            };
            self.spaces[space].areas.insert(range.start().get(), area);
            starts.push(range.start().get());
        }
        self.fill(space, &starts)?;
        let areas = &self.spaces[space].areas;
        Ok(starts.iter().map(|start| areas[start].range).collect())
    }

    fn place_slice(&self, space: usize, slice: &Slice) -> Result<IovaRange, Vec<Refused>> {
        let facts = &self.facts.sources[slice.source];
        let mut reasons = Vec::new();
        if slice
            .offset
            .checked_add(slice.len)
            .is_none_or(|end| end > facts.len())
        {
            reasons.push(Refused::OutsidePages);
        }
        reasons.extend(self.rights_refusal(slice.source, slice.prot));
        let placed = self.place(space, slice.source, slice.offset, slice.len, slice.to);
        match placed {
            Ok(range) if reasons.is_empty() => Ok(range),
            Ok(_) => Err(reasons),
            Err(more) => {
                reasons.extend(more);
                Err(reasons)
            }
        }
    }

    pub(crate) fn rights_refusal(&self, source: usize, prot: Prot) -> Option<Refused> {
        let is_writable = self.facts.sources[source].is_writable;
        let is_granted =
            (prot.can_read() || prot.can_write()) && (is_writable || !prot.can_write());
        (!is_granted).then_some(Refused::Rights)
    }

    /// Returns where bytes of a source go.
    pub(crate) fn place(
        &self,
        space: usize,
        source: usize,
        offset: u64,
        len: u64,
        to: To,
    ) -> Result<IovaRange, Vec<Refused>> {
        match to {
            To::Fixed(iova) => {
                let range = IovaRange::with_len(Iova::new(iova), len);
                let range = range.ok_or_else(|| vec![Refused::NoRange])?;
                let mut reasons = self.place_refusals(space, range, offset);
                if self.spaces[space].overlapping(range).next().is_some() {
                    reasons.push(Refused::Occupied);
                }
                if reasons.is_empty() {
                    Ok(range)
                } else {
                    Err(reasons)
                }
            }
            To::Anywhere if len == 0 => Err(vec![Refused::NoRange]),
            To::Anywhere => self
                .choose(space, source, offset, len)
                .map_err(|reason| vec![reason]),
        }
    }

    /// Returns why an area may not lie at `range`, whatever lies there.
    pub(crate) fn place_refusals(
        &self,
        space: usize,
        range: IovaRange,
        offset: u64,
    ) -> Vec<Refused> {
        let mut reasons = Vec::new();
        if !fits(range, offset, self.alignment(space)) {
            reasons.push(Refused::Unaligned);
        }
        let reserved = &self.spaces[space].reserved;
        if reserved
            .iter()
            .any(|(reserved, _)| reserved.overlaps(range))
        {
            reasons.push(Refused::Reserved);
        }
        reasons
    }

    /// Returns the lowest place that suits bytes of a source.
    fn choose(
        &self,
        space: usize,
        source: usize,
        offset: u64,
        len: u64,
    ) -> Result<IovaRange, Refused> {
        let facts = &self.facts.sources[source];
        let alignment = self.alignment(space);
        let page = facts.page.bytes().max(alignment);
        let first = facts.oas[0].wrapping_add(offset);
        let low = first & (page - 1);
        if (low | len) & (alignment - 1) != 0 {
            return Err(Refused::Unaligned);
        }
        let of_len = len.checked_next_power_of_two().ok_or(Refused::NoSpace)?;
        let high = first & !(page - 1);
        let of_source = if high == 0 {
            CHOICE_ALIGN
        } else {
            high & high.wrapping_neg()
        };
        let align = of_len.min(of_source).min(CHOICE_ALIGN).max(page);
        for window in self.windows(space, facts.page.bytes()) {
            // Address 0 is never chosen.
            let mut from = window.start().get().max(1);
            while let Some(start) = next_aligned(from, align, low) {
                let range = IovaRange::with_len(Iova::new(start), len);
                let Some(range) = range.filter(|&range| window.contains(range)) else {
                    break;
                };
                let Some(met) = self.spaces[space].overlapping(range).last() else {
                    return Ok(range);
                };
                let Some(above) = met.range.last().get().checked_add(1) else {
                    break;
                };
                from = above;
            }
        }
        Err(Refused::NoSpace)
    }

    /// Returns where automatic choice may go, lowest first.
    fn windows(&self, space: usize, page: u64) -> Vec<IovaRange> {
        let space = &self.spaces[space];
        if !space.allowed.is_empty() {
            return space.allowed.clone();
        }
        let default = IovaRange::new(Iova::new(page), Iova::new(u64::MAX - page));
        default.map_or(Vec::new(), |default| unreserved(space, default))
    }

    /// Maps entered areas to the domains there are.
    pub(crate) fn fill(&mut self, space: usize, starts: &[u64]) -> Result<(), At> {
        if self.spaces[space].members.is_empty() {
            return Ok(());
        }
        for (index, start) in starts.iter().enumerate() {
            let area = self.spaces[space].areas[start].clone();
            let held = self.hold(area.source, area.offset, area.byte_count());
            held.map_err(|reason| (index, vec![reason]))?;
        }
        for (index, start) in starts.iter().enumerate() {
            let area = self.spaces[space].areas[start].clone();
            let members = self.spaces[space].members.iter();
            let reasons: Vec<Refused> = members
                .filter_map(|member| self.domain_refusal(space, member.domain, &area))
                .collect();
            if !reasons.is_empty() {
                return Err((index, reasons));
            }
        }
        for start in starts {
            if let Some(area) = self.spaces[space].areas.get_mut(start) {
                area.is_held = true;
            }
        }
        Ok(())
    }

    /// Returns why a domain cannot map an area.
    pub(crate) fn domain_refusal(
        &self,
        space: usize,
        domain: usize,
        area: &ModelArea,
    ) -> Option<Refused> {
        let facts = &self.facts.domains[domain];
        let source = &self.facts.sources[area.source];
        if facts.needs_pinned && !source.is_firm {
            return Some(Refused::NotFirm);
        }
        if facts.effective[area.prot.index()].is_none() {
            return Some(Refused::Domain);
        }
        let mask = facts.page.offset_mask();
        let page_by_page = self.spaces[space].page_by_page;
        let cuts = source.cuts(area.offset, area.byte_count(), page_by_page);
        let is_odd = |&byte: &u64| {
            let iova = area.range.start().get() + (byte - area.offset);
            iova & mask != 0
        };
        let starts = &cuts[..cuts.len() - 1];
        let is_odd_oa = |&byte: &u64| source.oa_of(byte) & mask != 0;
        let is_refused = cuts.iter().any(is_odd) || starts.iter().any(is_odd_oa);
        is_refused.then_some(Refused::Domain)
    }

    /// Unmaps all areas of several ranges, or none.
    pub(crate) fn unmap(
        &mut self,
        space: usize,
        ranges: &[IovaRange],
        tolerates_holes: bool,
    ) -> Verdict {
        let starts = self.drain(space, ranges, tolerates_holes)?;
        let bytes = starts
            .iter()
            .map(|start| self.spaces[space].areas[start].byte_count())
            .sum();
        // A domain that left unflushed is flushed once more, which succeeds unless that is to fail, too.
        for start in starts {
            self.remove_area(space, start);
        }
        Ok(Output::Bytes(bytes))
    }

    /// Asks accesses to let go of the areas of ranges, in order.
    pub(crate) fn drain(
        &mut self,
        space: usize,
        ranges: &[IovaRange],
        tolerates_holes: bool,
    ) -> Result<Vec<u64>, Vec<Refused>> {
        let mut starts = Vec::new();
        for &range in ranges {
            let reasons = self.whole_refusals(space, range, tolerates_holes);
            if !reasons.is_empty() {
                return Err(reasons);
            }
            let areas = self.spaces[space].overlapping(range);
            starts.extend(areas.map(|area| area.range.start().get()));
        }
        let is_busy = |(place, start): (usize, &u64)| {
            starts[..place].contains(start) || self.spaces[space].areas[start].is_quarantined
        };
        if starts.iter().enumerate().any(is_busy) {
            return Err(vec![Refused::Busy]);
        }
        for start in &starts {
            let range = self.spaces[space].areas[start].range;
            if self.pins_in(space, range).is_empty() {
                continue;
            }
            self.let_go(space, range);
            if !self.pins_in(space, range).is_empty() {
                return Err(vec![Refused::Deadlock]);
            }
        }
        Ok(starts)
    }

    /// Returns why `range` does not consist of whole areas.
    pub(crate) fn whole_refusals(
        &self,
        space: usize,
        range: IovaRange,
        tolerates_holes: bool,
    ) -> Vec<Refused> {
        let space = &self.spaces[space];
        let mut reasons = Vec::new();
        if space
            .overlapping(range)
            .any(|area| !range.contains(area.range))
        {
            reasons.push(Refused::Splits);
        }
        if !tolerates_holes && space.hole_in(range).is_some() {
            reasons.push(Refused::Hole);
        }
        reasons
    }

    /// Takes an area out, and lets go of its pages.
    pub(crate) fn remove_area(&mut self, space: usize, start: u64) {
        let Some(area) = self.spaces[space].areas.remove(&start) else {
            return;
        };
        if area.is_held {
            self.release(area.source, area.offset, area.byte_count());
        }
        for member in &mut self.spaces[space].members {
            let stays = |&(iova, _): &(u64, IovaRange)| !area.range.contains_addr(Iova::new(iova));
            member.soiled.retain(stays);
        }
    }

    /// Puts areas in quarantine.
    pub(crate) fn quarantine(&mut self, space: usize, starts: &[u64]) {
        for start in starts {
            let Some(area) = self.spaces[space].areas.get_mut(start) else {
                continue;
            };
            area.is_quarantined = true;
            let range = area.range;
            for member in &mut self.spaces[space].members {
                let stays = |&(iova, _): &(u64, IovaRange)| !range.contains_addr(Iova::new(iova));
                member.soiled.retain(stays);
            }
        }
    }

    /// Empties the quarantine, of which nothing fails any more.
    pub(crate) fn retry(&mut self, space: usize) {
        let left = !std::mem::take(&mut self.spaces[space].leaving).is_empty();
        if left && self.spaces[space].members.is_empty() {
            self.release_areas(space);
        }
        let areas = self.spaces[space].areas.values();
        let quarantined = areas.filter(|area| area.is_quarantined);
        let starts: Vec<u64> = quarantined.map(|area| area.range.start().get()).collect();
        for start in starts {
            // Memory that was taken back may be pinned: its area waits for who has pinned it.
            let range = self.spaces[space].areas[&start].range;
            if self.pins_in(space, range).is_empty() {
                self.remove_area(space, start);
            }
        }
    }
}

/// Returns whether an area on byte `offset` begins and ends at multiples of `alignment`.
pub(crate) const fn fits(range: IovaRange, offset: u64, alignment: u64) -> bool {
    let bits = range.start().get() | range.last().get().wrapping_add(1) | offset;
    bits & (alignment - 1) == 0
}

/// Returns the lowest address from `from` on that is `low` modulo `align`.
fn next_aligned(from: u64, align: u64, low: u64) -> Option<u64> {
    let near = from & !(align - 1) | low;
    if near >= from {
        Some(near)
    } else {
        near.checked_add(align)
    }
}

/// Returns the parts of `range` that nobody reserved.
pub(crate) fn unreserved(space: &ModelSpace, range: IovaRange) -> Vec<IovaRange> {
    let mut reserved: Vec<IovaRange> = space.reserved.iter().map(|&(range, _)| range).collect();
    reserved.sort_by_key(|range| range.start());
    let mut parts = Vec::new();
    let mut next = Some(range.start().get());
    for reserved in reserved {
        let Some(from) = next else {
            break;
        };
        if reserved.last().get() < from {
            continue;
        }
        if let Some(below) = reserved
            .start()
            .get()
            .checked_sub(1)
            .filter(|&below| below >= from)
        {
            let last = below.min(range.last().get());
            parts.extend(IovaRange::new(Iova::new(from), Iova::new(last)));
        }
        next = reserved.last().get().checked_add(1);
    }
    if let Some(from) = next {
        parts.extend(IovaRange::new(Iova::new(from), range.last()));
    }
    parts
}
