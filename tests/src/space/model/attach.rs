//! Domains that come and go, and where areas may lie.

use iopt_formats::{Iova, IovaRange, PageSize, Prot};

use crate::space::model::map::fits;
use crate::space::model::{Doorbell, Member, Model, Output, Owner, Verdict};
use crate::space::refused::Refused;

impl Model {
    fn member_mut(&mut self, space: usize, domain: usize) -> Option<&mut Member> {
        let members = &mut self.spaces[space].members;
        members.iter_mut().find(|member| member.domain == domain)
    }

    /// Returns whether a domain serves an address space.
    pub fn is_taken(&self, domain: usize) -> bool {
        self.spaces.iter().any(|space| {
            let mut members = space.members.iter();
            members.any(|member| member.domain == domain) || space.leaving.contains(&domain)
        })
    }

    pub(crate) fn attach(&mut self, space: usize, domain: usize) -> Verdict {
        if self.is_taken(domain) {
            return Err(vec![Refused::Taken]);
        }
        let aperture = self.facts.domains[domain].aperture;
        let page = self.facts.domains[domain].page.bytes();
        let alignment = self.alignment(space).max(page);
        let state = &self.spaces[space];
        let mut reasons = Vec::new();
        let allowed = state.allowed.iter().copied();
        let areas = state.areas.values().map(|area| area.range);
        if allowed.chain(areas).any(|range| !aperture.contains(range)) {
            reasons.push(Refused::Aperture);
        }
        if state
            .areas
            .values()
            .any(|area| !fits(area.range, area.offset, alignment))
        {
            reasons.push(Refused::Unaligned);
        }
        if !reasons.is_empty() {
            return Err(reasons);
        }
        let below = aperture.start().get().checked_sub(1);
        let below = below.and_then(|last| IovaRange::new(Iova::new(0), Iova::new(last)));
        let above = aperture.last().checked_add(1);
        let above = above.and_then(|start| IovaRange::new(start, Iova::new(u64::MAX)));
        for outside in below.into_iter().chain(above) {
            self.spaces[space]
                .reserved
                .push((outside, Owner::Domain(domain)));
        }
        self.spaces[space].members.push(Member {
            domain,
            is_tracking: false,
            soiled: Vec::new(),
        });
        // Areas are filled in no order, so that any of several reasons may come first.
        let starts: Vec<u64> = self.spaces[space].areas.keys().copied().collect();
        for start in starts {
            let area = self.spaces[space].areas[&start].clone();
            if area.is_quarantined {
                continue;
            }
            if !area.is_held {
                match self.hold(area.source, area.offset, area.byte_count()) {
                    Err(Refused::Revoked) => continue,
                    held => reasons.extend(held.err()),
                }
            }
            if let Some(area) = self.spaces[space].areas.get_mut(&start) {
                area.is_held = true;
            }
            reasons.extend(self.domain_refusal(space, domain, &area));
        }
        if reasons.is_empty() {
            Ok(Output::Nothing)
        } else {
            Err(reasons)
        }
    }

    /// Takes a domain out of a space; it is flushed, or is one of those that leave.
    pub(crate) fn leave(&mut self, space: usize, domain: usize, is_flushed: bool) -> Verdict {
        let state = &mut self.spaces[space];
        let place = state
            .members
            .iter()
            .position(|member| member.domain == domain);
        let place = place.ok_or_else(|| vec![Refused::NotAttached])?;
        state.members.remove(place);
        state
            .reserved
            .retain(|&(_, owner)| owner != Owner::Domain(domain));
        state.doorbells.retain(|doorbell| doorbell.domain != domain);
        if !is_flushed {
            state.leaving.push(domain);
            return Err(vec![Refused::NotFlushed]);
        }
        if state.members.is_empty() && state.leaving.is_empty() {
            self.release_areas(space);
        }
        Ok(Output::Nothing)
    }

    /// Lets go of the pages of all areas but those in quarantine.
    pub(crate) fn release_areas(&mut self, space: usize) {
        let starts: Vec<u64> = self.spaces[space].areas.keys().copied().collect();
        for start in starts {
            let Some(area) = self.spaces[space].areas.get_mut(&start) else {
                continue;
            };
            if area.is_held && !area.is_quarantined {
                area.is_held = false;
                let (source, offset, len) = (area.source, area.offset, area.byte_count());
                self.release(source, offset, len);
            }
        }
    }

    pub(crate) fn replace(&mut self, space: usize, old: usize, new: usize) -> Verdict {
        let members = &self.spaces[space].members;
        if !members.iter().any(|member| member.domain == old) {
            return Err(vec![Refused::NoOld]);
        }
        if old == new {
            return Ok(Output::Nothing);
        }
        self.attach(space, new)?;
        self.leave(space, old, true)
    }

    pub(crate) fn reserve(&mut self, space: usize, range: IovaRange, owner: Owner) -> Verdict {
        let state = &mut self.spaces[space];
        let mut reasons = Vec::new();
        if state.overlapping(range).next().is_some() {
            reasons.push(Refused::Occupied);
        }
        if state.allowed.iter().any(|allowed| allowed.overlaps(range)) {
            reasons.push(Refused::Allowed);
        }
        if !reasons.is_empty() {
            return Err(reasons);
        }
        state.reserved.push((range, owner));
        Ok(Output::Nothing)
    }

    pub(crate) fn allow(&mut self, space: usize, ranges: &[IovaRange]) -> Verdict {
        let state = &mut self.spaces[space];
        let mut reasons = Vec::new();
        if ranges.iter().any(|range| range.start() == range.last()) {
            reasons.push(Refused::OneByte);
        }
        let mut sorted = ranges.to_vec();
        sorted.sort_by_key(|range| range.start());
        if sorted.windows(2).any(|pair| pair[0].overlaps(pair[1])) {
            reasons.push(Refused::Overlap);
        }
        let is_reserved = |range: &IovaRange| {
            state
                .reserved
                .iter()
                .any(|(other, _)| other.overlaps(*range))
        };
        if sorted.iter().any(is_reserved) {
            reasons.push(Refused::Reserved);
        }
        if !reasons.is_empty() {
            return Err(reasons);
        }
        let mut joined: Vec<IovaRange> = Vec::new();
        for range in sorted {
            match joined.last_mut() {
                Some(below) if below.last().checked_add(1) == Some(range.start()) => {
                    *below = IovaRange::new(below.start(), range.last()).unwrap_or(*below);
                }
                _ => joined.push(range),
            }
        }
        state.allowed = joined;
        Ok(Output::Nothing)
    }

    pub(crate) fn set_page_by_page(&mut self, space: usize, is_on: bool) -> Verdict {
        let state = &mut self.spaces[space];
        if state.page_by_page == is_on {
            return Ok(Output::Nothing);
        }
        let mut reasons = Vec::new();
        if is_on && !state.members.is_empty() && !state.areas.is_empty() {
            reasons.push(Refused::InUse);
        }
        if is_on
            && state
                .areas
                .values()
                .any(|area| !fits(area.range, area.offset, 0x1000))
        {
            reasons.push(Refused::Unaligned);
        }
        if !reasons.is_empty() {
            return Err(reasons);
        }
        state.page_by_page = is_on;
        Ok(Output::Nothing)
    }

    pub(crate) fn set_msi_window(&mut self, space: usize, window: Option<IovaRange>) -> Verdict {
        if !self.spaces[space].doorbells.is_empty() {
            return Err(vec![Refused::InUse]);
        }
        let state = &mut self.spaces[space];
        state.reserved.retain(|&(_, owner)| owner != Owner::Msi);
        if let Some(window) = window {
            let reserved = self.reserve(space, window, Owner::Msi);
            if let Err(reasons) = reserved {
                let state = &mut self.spaces[space];
                state
                    .reserved
                    .extend(state.msi.map(|old| (old, Owner::Msi)));
                return Err(reasons);
            }
        }
        self.spaces[space].msi = window;
        Ok(Output::Nothing)
    }

    pub(crate) fn map_msi(&mut self, space: usize, domain: usize, oa: u64) -> Verdict {
        let state = &self.spaces[space];
        if !state.members.iter().any(|member| member.domain == domain) {
            return Err(vec![Refused::NotAttached]);
        }
        let facts = &self.facts.domains[domain];
        let within = oa & facts.page.offset_mask();
        let page_oa = oa - within;
        let mut mine = state
            .doorbells
            .iter()
            .filter(|doorbell| doorbell.domain == domain);
        if let Some(doorbell) = mine.clone().find(|doorbell| doorbell.oa == page_oa) {
            return Ok(Output::Iova(doorbell.range.start().get() + within));
        }
        let window = state.msi.ok_or_else(|| vec![Refused::NoWindow])?;
        let all = state.doorbells.iter();
        let elsewhere = all.clone().find(|doorbell| {
            let is_same_size = doorbell.range.len_minus_one() == facts.page.offset_mask();
            doorbell.oa == page_oa && is_same_size
        });
        let mut start = window.start().get().next_multiple_of(facts.page.bytes());
        let range = loop {
            if let Some(doorbell) = elsewhere {
                break doorbell.range;
            }
            let range = IovaRange::with_len(Iova::new(start), facts.page.bytes());
            let range = range.filter(|&range| window.contains(range));
            let range = range.ok_or_else(|| vec![Refused::Full])?;
            if !all
                .clone()
                .any(|doorbell| doorbell.range.intersection(range).is_some())
            {
                break range;
            }
            start += facts.page.bytes();
        };
        let is_granted = facts.effective[Prot::W.device().index()].is_some();
        if !is_granted || !facts.aperture.contains(range) || mine.any(|other| other.range == range)
        {
            return Err(vec![Refused::Domain]);
        }
        let oa = page_oa;
        let doorbell = Doorbell { domain, oa, range };
        self.spaces[space].doorbells.push(doorbell);
        Ok(Output::Iova(range.start().get() + within))
    }

    pub(crate) fn track(&mut self, space: usize, domain: usize, is_on: bool) -> Verdict {
        let tracks = self.facts.domains[domain].tracks_dirty;
        let member = self.member_mut(space, domain);
        let member = member.ok_or_else(|| vec![Refused::NotAttached])?;
        if member.is_tracking == is_on {
            return Ok(Output::Nothing);
        }
        if is_on && !tracks {
            return Err(vec![Refused::Domain]);
        }
        member.is_tracking = is_on;
        if is_on {
            member.soiled.clear();
        }
        Ok(Output::Nothing)
    }

    /// Notes that a device behind a domain wrote to `iova`, which `entry` translates.
    pub(crate) fn soil(&mut self, domain: usize, iova: u64, entry: IovaRange) {
        for space in 0..self.spaces.len() {
            if let Some(member) = self.member_mut(space, domain) {
                member.soiled.push((iova, entry));
            }
        }
    }

    pub(crate) fn read_dirty(
        &mut self,
        space: usize,
        domain: usize,
        range: IovaRange,
        tolerates_holes: bool,
        forgets: bool,
    ) -> Verdict {
        let hole = self.spaces[space].hole_in(range);
        let member = self.member_mut(space, domain);
        let member = member.ok_or_else(|| vec![Refused::NotAttached])?;
        if !member.is_tracking {
            return Err(vec![Refused::NotTracking]);
        }
        if forgets {
            let last = hole.filter(|_| !tolerates_holes);
            let last = last.map_or(Some(range.last().get()), |hole| hole.checked_sub(1));
            let read = last.and_then(|last| IovaRange::new(range.start(), Iova::new(last)));
            if let Some(read) = read {
                member
                    .soiled
                    .retain(|&(iova, _)| !read.contains_addr(Iova::new(iova)));
            }
        }
        if hole.is_some() && !tolerates_holes {
            return Err(vec![Refused::Hole]);
        }
        Ok(Output::Nothing)
    }

    /// Returns the size of the smallest page of all domains of the test.
    pub fn smallest_page(&self) -> PageSize {
        let pages = self.facts.domains.iter().map(|facts| facts.page);
        pages.min().unwrap_or(PageSize::KIB_4)
    }
}
