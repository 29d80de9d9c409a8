//! Areas that change while they live: copies, other rights, splits, moves, revoked memory.

use alloc::sync::Arc;
use core::mem;
use core::ops::ControlFlow;
use core::slice;

use iopt_formats::{Iova, IovaRange, PageSize, Prot, Rights};
use smallvec::SmallVec;

use crate::domain::{DomainError, Flush};
use crate::ioas::area::{Area, State};
use crate::ioas::map::may_grant;
use crate::ioas::pages::HoldError;
use crate::ioas::unmap::check_whole;
use crate::ioas::{
    CopyError, Domains, Holes, Ioas, MapError, Mapping, Pages, Place, ProtectError, RemapError,
    RevokeError, SplitError, UnmapError,
};

type Areas = SmallVec<[Arc<Area>; 1]>;

impl Ioas {
    /// Maps what `from`, this address space or another one, maps at `range` here as well: the same pages,
    /// pinned once. The range may begin and end inside areas, but has no holes.
    ///
    /// # Errors
    ///
    /// [`CopyError`]; nothing is mapped then.
    #[doc(alias = "IOMMU_IOAS_COPY")]
    pub fn copy(
        &self,
        from: &Self,
        range: IovaRange,
        place: Place,
        prot: Prot,
    ) -> Result<IovaRange, CopyError> {
        let entries = from.index.overlapping(range);
        let entries = entries.map_err(|_| MapError::from(HoldError::OutOfMemory))?;
        let mut parts: SmallVec<[(IovaRange, Arc<Area>); 1]> = SmallVec::new();
        let mut next = Some(range.start());
        for (entry, area) in entries {
            let hole = next.filter(|&next| next < entry.start());
            let is_live = area.status().state == State::Live;
            let part = entry
                .intersection(range)
                .filter(|_| hole.is_none() && is_live);
            let iova = hole.unwrap_or(entry.start().max(range.start()));
            parts.push((part.ok_or(CopyError::Hole { iova })?, area));
            next = entry.last().checked_add(1);
        }
        if let Some(iova) = next.filter(|&next| next <= range.last()) {
            return Err(CopyError::Hole { iova });
        }
        let areas = self.reserve_parts(range, &parts, place, prot)?;
        let (first, last) = (&areas[0], &areas[areas.len() - 1]);
        let copy = IovaRange::new(first.range().start(), last.range().last());
        let filled = self.fill(&areas, |_| prot, &mut |_| ControlFlow::Continue(()));
        filled.map_err(|(_, error)| error)?;
        Ok(copy.unwrap_or(range))
    }

    /// Enters reserved areas, side by side, for parts of others.
    fn reserve_parts(
        &self,
        whole: IovaRange,
        parts: &[(IovaRange, Arc<Area>)],
        place: Place,
        prot: Prot,
    ) -> Result<Areas, MapError> {
        let (_, first) = &parts[0];
        if !parts
            .iter()
            .all(|(_, area)| may_grant(area.pages().source().is_writable(), prot))
        {
            return Err(MapError::Rights);
        }
        let no_range = MapError::NoRange {
            iova: whole.start(),
            len: u64::MAX,
        };
        let span = self.enter_area(Mapping {
            pages: first.pages(),
            offset: first.byte_of(whole.start()),
            len: whole.len().ok_or(no_range)?,
            prot,
            place,
        })?;
        let start = span.range().start().get();
        if parts.len() == 1 {
            return Ok(SmallVec::from_iter([span]));
        }
        let moved = parts.iter().map(|(part, area)| {
            let start = start + (part.start().get() - whole.start().get());
            let range = IovaRange::new(Iova::new(start), Iova::new(start + part.len_minus_one()));
            let range = range.expect("a part of the span");
            Area::new(
                range,
                Arc::clone(area.pages()),
                area.byte_of(part.start()),
                prot,
                span.entered_at(),
            )
        });
        let areas: Areas = moved.collect();
        let domains = self.domains.read();
        let unaligned = areas
            .iter()
            .find_map(|area| domains.check(area.range(), area.offset()).err());
        drop(domains);
        if let Some(error) = unaligned {
            self.forget(slice::from_ref(&span));
            return Err(error);
        }
        self.replace_entry(&span, &areas);
        Ok(areas)
    }

    /// Lets areas take the place of one that they divide.
    fn replace_entry(&self, old: &Area, new: &[Arc<Area>]) {
        if old.become_gone() {
            self.gaps.lock().remove(old.range());
        }
        let new: SmallVec<[_; 2]> = new
            .iter()
            .map(|area| (area.range(), Arc::clone(area)))
            .collect();
        self.index.replace(old.range(), &[old.range()], &new);
    }

    /// Changes what devices and accesses may do with the areas of `range`.
    ///
    /// # Errors
    ///
    /// [`ProtectError`]; nothing has changed then.
    pub fn protect(&self, range: IovaRange, prot: Prot) -> Result<(), ProtectError> {
        let _one = self.attaching.lock();
        let areas = self.whole_areas(range)?;
        for area in &areas {
            let status = area.status();
            let lost = status.prot.rights().difference(prot.rights());
            let used = lost.intersection(Rights::READ.union(Rights::WRITE));
            let is_relied_on = status.pin_count > 0 && used != Rights::NONE;
            if is_relied_on || !may_grant(area.pages().source().is_writable(), prot) {
                return Err(ProtectError::Rights { area: area.range() });
            }
        }
        let mut old: SmallVec<[Prot; 1]> = SmallVec::new();
        let mut result = Ok(());
        let domains = self.domains.read();
        let mut flushes: SmallVec<[Flush; 2]> = SmallVec::new();
        flushes.resize_with(domains.list.len(), Flush::new);
        for area in &areas {
            let was = area.status().prot;
            result = protect_area(&domains, area, prot, &mut flushes);
            if result.is_err() {
                break;
            }
            old.push(was);
        }
        if result.is_err() {
            for (area, &was) in areas.iter().zip(&old) {
                // What was granted a moment ago needs no memory to be granted again.
                let _ = protect_area(&domains, area, was, &mut flushes);
            }
        }
        let synced = sync_all(&domains, &mut flushes);
        if result.is_ok()
            && let Err(error) = synced
        {
            // Devices may go on with the old rights, so that these are the ones that hold.
            for (area, &was) in areas.iter().zip(&old) {
                let _ = protect_area(&domains, area, was, &mut flushes);
            }
            let _ = sync_all(&domains, &mut flushes);
            result = Err(ProtectError::Domain { area: range, error });
        }
        result
    }

    /// Divides the area around `iova`, which becomes the start of the second part. At a border, nothing
    /// is to be done.
    ///
    /// # Errors
    ///
    /// [`SplitError`]; there is one area as before then, though a domain may map it with smaller pages.
    pub fn split(&self, iova: Iova) -> Result<(), SplitError> {
        let _one = self.attaching.lock();
        let (range, area) = self.index.get(iova).ok_or(SplitError::Hole { iova })?;
        if range.start() == iova {
            return Ok(());
        }
        let busy = SplitError::Busy { area: range };
        let domains = self.domains.read();
        if !domains.alignment.divides(iova.get()) {
            let alignment = domains.alignment.bytes();
            return Err(SplitError::Unaligned { iova, alignment });
        }
        let mut status = area.status();
        if status.state != State::Live || status.pin_count > 0 {
            return Err(busy);
        }
        // Pages that are mapped one by one end where the source's do, and those may be larger than what
        // areas are made of.
        let page = area.pages().source().page_size();
        let is_page_end = self.page_by_page() && page.divides(area.byte_of(iova));
        if area.is_held() && !is_page_end {
            // A page that ends at `iova` is at most as large as its alignment.
            let size = PageSize::from_lg2(iova.get().trailing_zeros().min(63) as u8);
            let around = IovaRange::new(Iova::new(iova.get() - 1), iova);
            for attached in &domains.list {
                let mut grant = attached.grant(range);
                let cut = around.map_or(Ok(()), |around| {
                    attached.domain.cut(&mut grant, around, size)
                });
                cut.map_err(|error| SplitError::Domain { iova, error })?;
            }
        }
        let left = domains.remove_from_leaving(&area);
        left.map_err(|error| SplitError::Domain { iova, error })?;
        let parts = area.divide(&mut status, iova)?;
        drop(status);
        drop(domains);
        self.replace_entry(&area, &parts);
        Ok(())
    }

    /// Moves the areas of `range` to another place, all or none: they are mapped there first, then
    /// unmapped here. Where they begin and end stays as it is.
    ///
    /// # Errors
    ///
    /// [`RemapError`]; everything is where it was then, unless it is quarantined.
    pub fn remap(&self, range: IovaRange, place: Place) -> Result<IovaRange, RemapError> {
        let areas = self.whole_areas(range)?;
        let prot = areas[0].status().prot;
        if areas.iter().any(|area| area.status().prot != prot) {
            return Err(RemapError::Mixed { range });
        }
        let moved = self.copy(self, range, place, prot)?;
        let mut dirty: SmallVec<[(u64, IovaRange); 0]> = SmallVec::new();
        let unmapped = self.drain(&[range], Holes::Refused).and_then(|areas| {
            self.tear_down(&areas, Some(&mut |key, entry| dirty.push((key, entry))))
        });
        match unmapped {
            Ok(_) => {
                self.soil_moved(range, moved, &dirty);
                Ok(moved)
            }
            Err(error) => {
                if !matches!(error, UnmapError::Quarantined { .. }) {
                    self.unmap(moved, Holes::Refused)?;
                }
                Err(error.into())
            }
        }
    }

    /// Notes what devices wrote to, by the key of the domain, before it was moved.
    fn soil_moved(&self, from: IovaRange, to: IovaRange, dirty: &[(u64, IovaRange)]) {
        for &(key, entry) in dirty {
            let moved = entry.intersection(from).and_then(|entry| {
                let start = to.start().get() + (entry.start().get() - from.start().get());
                IovaRange::new(Iova::new(start), Iova::new(start + entry.len_minus_one()))
            });
            let areas = moved.and_then(|moved| self.index.overlapping(moved).ok());
            for (range, area) in areas.into_iter().flatten() {
                let part = moved.and_then(|moved| range.intersection(moved));
                area.status().faded.extend(part.map(|part| (key, part)));
            }
        }
    }

    /// Removes everything that maps `pages` from the domains, because whoever lent the memory takes it
    /// back; the areas stay and translate nothing, until [`restore`](Self::restore).
    ///
    /// # Errors
    ///
    /// [`RevokeError`]: a device may still reach the memory.
    pub fn revoke(&self, pages: &Arc<Pages>) -> Result<(), RevokeError> {
        let _one = self.attaching.lock();
        pages.set_revoked(true);
        for area in self.areas_of(pages)? {
            self.unfill(&area)?;
        }
        Ok(())
    }

    /// Removes a live area from every domain and lets go of its pages; the caller holds the attach lock.
    fn unfill(&self, area: &Arc<Area>) -> Result<(), RevokeError> {
        {
            let mut status = area.status();
            if status.state != State::Live {
                return Err(RevokeError::Busy { area: area.range() });
            }
            if !area.is_held() {
                return Ok(());
            }
            status.state = State::Teardown;
        }
        self.withdraw(slice::from_ref(area), None)?;
        let mut status = area.status();
        status.state = State::Live;
        status.generation = 0;
        drop(status);
        area.release_held();
        Ok(())
    }

    /// Maps revoked memory again wherever it was mapped.
    ///
    /// # Errors
    ///
    /// [`MapError`]: some areas translate nothing yet. It may be tried again.
    pub fn restore(&self, pages: &Arc<Pages>) -> Result<(), MapError> {
        let _one = self.attaching.lock();
        pages.set_revoked(false);
        let keys = self.domain_keys();
        let areas = self.areas_of(pages);
        for area in areas.map_err(|_| HoldError::OutOfMemory)? {
            // It was not revoked, or restored by the attempt before: it is in every domain.
            if area.is_held() {
                continue;
            }
            for &key in &keys {
                if let Err(error) = self.fill_area(&area, key, true) {
                    // What cannot be removed either is quarantined.
                    let _ = self.unfill(&area);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn areas_of(&self, pages: &Arc<Pages>) -> Result<Areas, RevokeError> {
        let mut areas = self.index.overlapping(IovaRange::FULL);
        let areas = areas.as_mut().map_err(|_| RevokeError::OutOfMemory)?;
        let of_pages = areas.drain(..).map(|(_, area)| area);
        Ok(of_pages
            .filter(|area| Arc::ptr_eq(area.pages(), pages))
            .collect())
    }

    /// Returns the areas of a range that consists of whole ones.
    fn whole_areas(&self, range: IovaRange) -> Result<Areas, UnmapError> {
        let entries = self.index.overlapping(range);
        let entries = entries.map_err(|_| UnmapError::OutOfMemory)?;
        check_whole(
            range,
            entries.iter().map(|&(entry, _)| entry),
            Holes::Refused,
        )?;
        Ok(entries.into_iter().map(|(_, area)| area).collect())
    }
}

/// Changes the rights of one area in every domain, or in none.
fn protect_area(
    domains: &Domains,
    area: &Area,
    prot: Prot,
    flushes: &mut [Flush],
) -> Result<(), ProtectError> {
    let mut status = area.status();
    if status.state != State::Live {
        return Err(UnmapError::Busy { area: area.range() }.into());
    }
    if area.is_held() {
        for (place, attached) in domains.list.iter().enumerate() {
            // I2: its lock is held.
            let mut grant = attached.grant(area.range());
            let mut lost = |entry| {
                if attached.is_tracking {
                    status.faded.push((attached.key, entry));
                }
            };
            let flush = &mut flushes[place];
            let changed = attached.domain.protect(&mut grant, prot, flush, &mut lost);
            if let Err(error) = changed {
                for (attached, flush) in domains.list[..place].iter().zip(flushes) {
                    let was = status.prot;
                    let mut grant = attached.grant(area.range());
                    let _ = attached.domain.protect(&mut grant, was, flush, &mut |_| {});
                }
                return Err(ProtectError::Domain {
                    area: area.range(),
                    error,
                });
            }
        }
    }
    status.prot = prot;
    Ok(())
}

/// Tells the hardware of all domains. What a domain did not confirm stays in its flush.
fn sync_all(domains: &Domains, flushes: &mut [Flush]) -> Result<(), DomainError> {
    let mut result = Ok(());
    for (attached, flush) in domains.list.iter().zip(flushes) {
        if let Err(failed) = attached.domain.sync(mem::take(flush)) {
            *flush = failed.flush;
            result = result.and(Err(DomainError::Sync(failed.error)));
        }
    }
    result
}
