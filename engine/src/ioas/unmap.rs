//! Unmapping: drain, remove, sync, release.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::{mem, slice};

use iopt_formats::IovaRange;
use smallvec::SmallVec;

use crate::domain::{Domain, DomainError, Flush, Grant, TenantId};
use crate::ioas::area::{Area, State};
use crate::ioas::leftovers::Leftover;
use crate::ioas::{
    Attached, DirtyBitmap, Holes, Ioas, PATIENCE, TRY_COUNT, UnmapError, byte_count,
};
use crate::sync::{Deadline, Left, pause};

/// Areas that one read section removes.
const AREAS_PER_SECTION: usize = if cfg!(loom) { 1 } else { 64 };

/// Takes notes of what devices wrote to; no code of the engine's users.
pub(super) type EachDirty<'a> = &'a mut dyn FnMut(IovaRange);

/// As [`EachDirty`], with the key of the domain.
pub(super) type EachDirtyOf<'a> = &'a mut dyn FnMut(u64, IovaRange);

impl Ioas {
    /// Unmaps the areas of `range` from every domain, all or none, and returns their bytes. Afterwards no
    /// device and no access reaches them, and their addresses are free.
    ///
    /// Accesses that have pinned a part are told to let go, with no lock held; they are waited for.
    ///
    /// # Errors
    ///
    /// [`UnmapError`]; everything is as before, unless it is [`UnmapError::Quarantined`].
    #[doc(alias = "IOMMU_IOAS_UNMAP")]
    pub fn unmap(&self, range: IovaRange, holes: Holes) -> Result<u64, UnmapError> {
        // Mostly the range is that of one area, and nobody has pinned a part of it.
        if let Some(area) = self.index.get_exact(range) {
            let mut status = area.status();
            if status.state == State::Live && status.pin_count == 0 {
                status.state = State::Teardown;
                drop(status);
                return self.tear_down(slice::from_ref(&area), None);
            }
        }
        let areas = self.drain(&[range], holes)?;
        self.tear_down(&areas, None)
    }

    /// As [`unmap`](Self::unmap), and sets the bits of what devices of the domains that track it wrote to
    /// since that was last forgotten. Once it returns, no write is still to come: copy the memory
    /// then.
    ///
    /// # Errors
    ///
    /// As for [`unmap`](Self::unmap); bits may be set only if it is [`UnmapError::Quarantined`].
    pub fn unmap_with_dirty(
        &self,
        range: IovaRange,
        holes: Holes,
        dirty: &mut DirtyBitmap<'_>,
    ) -> Result<u64, UnmapError> {
        let areas = self.drain(&[range], holes)?;
        self.tear_down(&areas, Some(&mut |_, range| dirty.set(range)))
    }

    /// Unmaps the areas of many ranges, all or none, with one sync for each domain.
    ///
    /// # Errors
    ///
    /// As for [`unmap`](Self::unmap).
    pub fn unmap_many(&self, ranges: &[IovaRange], holes: Holes) -> Result<u64, UnmapError> {
        let areas = self.drain(ranges, holes)?;
        self.tear_down(&areas, None)
    }

    /// Unmaps everything.
    ///
    /// # Errors
    ///
    /// As for [`unmap`](Self::unmap).
    pub fn unmap_all(&self) -> Result<u64, UnmapError> {
        self.unmap(IovaRange::FULL, Holes::Tolerated)
    }

    /// Takes the areas of `ranges` out of everybody else's hands, all or none.
    pub(super) fn drain(
        &self,
        ranges: &[IovaRange],
        holes: Holes,
    ) -> Result<SmallVec<[Arc<Area>; 1]>, UnmapError> {
        let mut areas: SmallVec<[Arc<Area>; 1]> = SmallVec::new();
        for &range in ranges {
            let entries = self.index.overlapping(range);
            let entries = entries.map_err(|_| UnmapError::OutOfMemory)?;
            let room = areas.try_reserve(entries.len());
            room.map_err(|_| UnmapError::OutOfMemory)?;
            check_whole(range, entries.iter().map(|&(entry, _)| entry), holes)?;
            areas.extend(entries.into_iter().map(|(_, area)| area));
        }
        for (index, area) in areas.iter().enumerate() {
            let mut status = area.status();
            if status.state != State::Live {
                drop(status);
                resume(&areas[..index]);
                return Err(UnmapError::Busy { area: area.range() });
            }
            status.state = State::Draining;
        }
        for area in &areas {
            if let Err(error) = self.drain_area(area) {
                resume(&areas);
                return Err(error);
            }
        }
        // Nobody can pin a draining area, so that all of them are free of pins by now.
        for area in &areas {
            area.status().state = State::Teardown;
        }
        Ok(areas)
    }

    /// Waits until nobody has pinned a part of a draining area.
    fn drain_area(&self, area: &Area) -> Result<(), UnmapError> {
        let range = area.range();
        let stuck = || UnmapError::Deadlock { area: range };
        let (mut try_count, mut turn) = (0, 0);
        let mut deadline = None;
        while area.status().pin_count > 0 {
            if try_count == TRY_COUNT {
                return Err(stuck());
            }
            if self.notify(range) {
                try_count += 1;
                continue;
            }
            // Somebody reads, writes, pins or unpins at this moment.
            let deadline = deadline.get_or_insert_with(|| Deadline::after(PATIENCE));
            if deadline.left() == Left::Nothing {
                return Err(stuck());
            }
            pause(turn);
            turn = turn.saturating_add(1);
        }
        Ok(())
    }

    /// Removes areas in teardown, waits for the hardware, and gives everything free.
    pub(super) fn tear_down(
        &self,
        areas: &[Arc<Area>],
        dirty: Option<EachDirtyOf<'_>>,
    ) -> Result<u64, UnmapError> {
        let bytes = byte_count(areas);
        let withdrawn = self.withdraw(areas, dirty);
        withdrawn.map_err(|error| UnmapError::Quarantined { bytes, error })?;
        self.give_free(areas);
        Ok(bytes)
    }

    /// Lets go of the pages and the IOVA of areas that nothing reaches any more.
    pub(super) fn give_free(&self, areas: &[Arc<Area>]) {
        for area in areas {
            area.release_held();
        }
        self.forget(areas);
    }

    /// Removes areas, which nobody else changes, from every domain and waits until no device reaches
    /// them. One sync for each domain.
    ///
    /// # Errors
    ///
    /// [`DomainError`] if a device may still reach them; they are leftovers then.
    pub(super) fn withdraw(
        &self,
        areas: &[Arc<Area>],
        dirty: Option<EachDirtyOf<'_>>,
    ) -> Result<(), DomainError> {
        let left = self.remove_and_sync(areas, dirty);
        match left.error {
            None => Ok(()),
            Some(error) => {
                self.keep(left.leftovers, areas);
                Err(error)
            }
        }
    }

    fn remove_and_sync(
        &self,
        areas: &[Arc<Area>],
        mut dirty: Option<EachDirtyOf<'_>>,
    ) -> Withdrawn {
        let mut left = Withdrawn::default();
        if areas.len() <= AREAS_PER_SECTION {
            // Mostly it is one area, and the sync short: domains need not be kept alive.
            let domains = self.domains.read();
            for attached in &domains.list {
                let mut flush = Flush::new();
                let removed = attached.remove(areas, &mut flush, &mut dirty);
                let synced = attached.domain.sync(flush).map_err(|failed| {
                    attached.unconfirmed.put(failed.flush);
                    DomainError::Sync(failed.error)
                });
                left.note(removed, synced, || attached.leftover());
            }
            left.leave(domains.withdraw_from_leaving(areas));
        } else {
            let mut removals: Vec<(Leftover, Result<(), DomainError>)> = Vec::new();
            for section in areas.chunks(AREAS_PER_SECTION) {
                let domains = self.domains.read();
                for attached in &domains.list {
                    let mut flush = Flush::new();
                    let removed = attached.remove(section, &mut flush, &mut dirty);
                    // If it leaves before the next section, that is flushed before it is gone.
                    attached.unconfirmed.put(flush);
                    let is_it = |(left, _): &&mut (Leftover, _)| left.tenant == attached.tenant;
                    if let Some((_, result)) = removals.iter_mut().find(is_it) {
                        *result = mem::replace(result, Ok(())).and(removed);
                    } else {
                        removals.push((attached.leftover(), removed));
                    }
                }
                left.leave(domains.withdraw_from_leaving(section));
            }
            for (of, removed) in removals {
                let synced = of.unconfirmed.lock_first(|so_far| so_far.sync(&*of.domain));
                left.note(removed, synced, || of);
            }
        }
        left
    }
}

impl Attached {
    /// Removes areas from the domain, and reports what devices wrote to if it tracks that: of
    /// others, nobody knows since when it was written to.
    fn remove(
        &self,
        areas: &[Arc<Area>],
        flush: &mut Flush,
        dirty: &mut Option<EachDirtyOf<'_>>,
    ) -> Result<(), DomainError> {
        let (domain, tenant) = (&*self.domain, self.tenant);
        match dirty {
            Some(dirty) if self.is_tracking => {
                let mut each = |range| dirty(self.key, range);
                let removed = remove_from(domain, tenant, areas, flush, Some(&mut each));
                for area in areas {
                    let mut status = area.status();
                    status.each_faded(self.key, area.range(), false, &mut each);
                }
                removed
            }
            _ => remove_from(domain, tenant, areas, flush, None),
        }
    }
}

/// Removes areas from one domain.
pub(super) fn remove_from(
    domain: &dyn Domain,
    tenant: TenantId,
    areas: &[Arc<Area>],
    flush: &mut Flush,
    mut dirty: Option<EachDirty<'_>>,
) -> Result<(), DomainError> {
    let mut result = Ok(());
    for area in areas {
        // I2: callers are the makers or unmappers of the areas.
        let mut grant = Grant::new(tenant, area.range());
        let dirty = dirty.as_mut().map(|dirty| &mut **dirty as EachDirty<'_>);
        let removed = domain.unmap(&mut grant, flush, dirty);
        if result.is_ok() {
            result = removed.map(|_| ());
        }
    }
    result
}

/// What came of a removal.
#[derive(Default)]
struct Withdrawn {
    leftovers: Vec<Leftover>,
    error: Option<DomainError>,
}

impl Withdrawn {
    /// Notes whether domains that leave reach nothing of it.
    fn leave(&mut self, left: Result<(), DomainError>) {
        if let Err(error) = left {
            self.error.get_or_insert(error);
        }
    }

    /// Notes what failed in a domain of the set.
    fn note(
        &mut self,
        removed: Result<(), DomainError>,
        synced: Result<(), DomainError>,
        leftover: impl FnOnce() -> Leftover,
    ) {
        let is_removed = removed.is_ok();
        if let Err(error) = removed.and(synced) {
            self.leftovers.push(Leftover {
                is_removed,
                ..leftover()
            });
            self.error.get_or_insert(error);
        }
    }
}

/// Checks that `range` holds whole areas, `entries` in rising order, and no hole unless that is
/// tolerated.
pub(super) fn check_whole(
    range: IovaRange,
    entries: impl Iterator<Item = IovaRange>,
    holes: Holes,
) -> Result<(), UnmapError> {
    let mut next = Some(range.start());
    for area in entries {
        if !range.contains(area) {
            return Err(UnmapError::Splits { range, area });
        }
        if holes == Holes::Refused
            && let Some(iova) = next.filter(|&next| next < area.start())
        {
            return Err(UnmapError::Hole { iova });
        }
        next = area.last().checked_add(1);
    }
    match next.filter(|&next| next <= range.last()) {
        Some(iova) if holes == Holes::Refused => Err(UnmapError::Hole { iova }),
        _ => Ok(()),
    }
}

/// Takes the unmap of areas back.
fn resume(areas: &[Arc<Area>]) {
    for area in areas {
        area.status().state = State::Live;
    }
}
