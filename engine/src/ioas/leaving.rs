//! Domains that leave.
//!
//! A domain that is out of the set is emptied and flushed by whoever detaches it. Unmaps that run beside
//! that do not wait for the end of it: they remove their own areas from it, too, and flush what was
//! removed so far, under a lock that is held for a span of some areas at a time. So what is removed under
//! the lock, by whomever, is in its flush until somebody confirmed it, and who finds nothing to remove
//! and nothing to flush knows that no device reaches his areas there.
//!
//! The domain gets nothing new, and is emptied in rising order: below the address that it has come to, it
//! need not be looked at.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::slice;

use iopt_formats::{Iova, IovaRange, PageSize};

use crate::domain::{Caps, Domain, DomainError, Farewell, Flush, Grant, TenantId};
use crate::ioas::area::{Area, State};
use crate::ioas::unconfirmed::{Removed, Unconfirmed};
use crate::ioas::{Domains, Ioas};

/// Areas that are removed together before others get a turn.
const AREAS_PER_SPAN: usize = if cfg!(loom) { 1 } else { 64 };

/// A domain that is emptied and flushed.
#[derive(Clone)]
pub(super) struct Leaving {
    pub(super) domain: Arc<dyn Domain>,
    pub(super) tenant: TenantId,
    pub(super) key: u64,
    /// Areas that were entered later are not in it.
    pub(super) left_at: u64,
    /// Whoever removes something holds the lock (G2).
    pub(super) unconfirmed: Arc<Unconfirmed>,
}

impl Leaving {
    /// Removes everything, up to one of the `ends` at a time, where areas end, and flushes it.
    fn empty(&self, ends: &[Iova]) -> Result<(), DomainError> {
        let Caps {
            aperture, sizes, ..
        } = self.domain.caps();
        let mask = sizes.smallest().map_or(0, PageSize::offset_mask);
        // Areas that came since then may end within a page, or lie elsewhere.
        let ends = ends.iter().copied();
        let ends = ends.filter(|&end| end.get() & mask == mask && end < aperture.last());
        let mut removed = Ok(());
        for end in ends.chain([aperture.last()]) {
            let mut so_far = self.unconfirmed.lock_last();
            let from = so_far.next.map(|next| next.max(aperture.start()));
            let Some(span) = from.and_then(|from| IovaRange::new(from, end)) else {
                continue;
            };
            removed = self.remove(span, &mut so_far.flush);
            if removed.is_err() {
                break;
            }
            so_far.next = end.checked_add(1).filter(|_| end < aperture.last());
        }
        let synced = self.unconfirmed.lock().sync(&*self.domain);
        removed.and(synced)
    }

    /// Returns whether the area may have been mapped to the domain before it left.
    fn may_hold(&self, area: &Area) -> bool {
        area.entered_at() <= self.left_at
    }

    /// Removes areas.
    fn remove_areas(&self, areas: &[Arc<Area>], so_far: &mut Removed) -> Result<(), DomainError> {
        let Caps {
            aperture, sizes, ..
        } = self.domain.caps();
        let mask = sizes.smallest().map_or(0, PageSize::offset_mask);
        for area in areas.iter().filter(|area| self.may_hold(area)) {
            let (start, last) = (area.range().start().get(), area.range().last());
            if so_far.next.is_none_or(|next| last < next) {
                continue;
            }
            // Areas that came since then may begin or end within a page, of which nothing else is
            // to stay either, or lie elsewhere.
            let pages = IovaRange::new(Iova::new(start & !mask), Iova::new(last.get() | mask));
            if let Some(part) = pages.and_then(|pages| pages.intersection(aperture)) {
                self.remove(part, &mut so_far.flush)?;
            }
        }
        Ok(())
    }

    /// Removes a range; the caller holds the lock of the flush.
    fn remove(&self, range: IovaRange, flush: &mut Flush) -> Result<(), DomainError> {
        // G2: the lock is held. G3: the domain is out of the set, and who saw it there has finished,
        // since the write lock was free.
        let mut grant = Grant::new(self.tenant, range);
        self.domain.unmap(&mut grant, flush, None).map(|_| ())
    }
}

impl Ioas {
    /// Empties a domain that left the set, and lets it go. The caller holds the attach lock.
    pub(super) fn empty(&self, key: u64) -> Result<(), DomainError> {
        let is_it = |leaving: &Leaving| leaving.key == key;
        let found = {
            let domains = self.domains.read();
            domains
                .leaving
                .iter()
                .find(|&leaving| is_it(leaving))
                .cloned()
        };
        let Some(leaving) = found else {
            return Ok(());
        };
        leaving.empty(&self.span_ends())?;
        let mut domains = self.domains.write();
        domains.leaving.retain(|leaving| !is_it(leaving));
        let is_unused = domains.list.is_empty() && domains.leaving.is_empty();
        drop(domains);
        leaving.domain.unbind(Farewell(leaving.tenant));
        if is_unused {
            self.release_areas();
        }
        Ok(())
    }

    /// Returns where every so many areas end, in rising order; nothing if there is no memory for that.
    fn span_ends(&self) -> Vec<Iova> {
        let mut ends = Vec::new();
        let mut has_room = true;
        self.index.each_overlapping(IovaRange::FULL, |range, _| {
            has_room = ends.try_reserve(1).is_ok();
            if has_room {
                ends.push(range.last());
            }
            has_room
        });
        if !has_room {
            return Vec::new();
        }
        ends.sort_unstable();
        ends.dedup();
        let mut count = 0;
        ends.retain(|_| {
            count += 1;
            count % AREAS_PER_SPAN == 0
        });
        ends
    }

    /// Tries once more to empty the domains that leave. The caller holds the attach lock.
    pub(super) fn retry_leaving(&self) {
        let mut place = 0;
        loop {
            let key = self
                .domains
                .read()
                .leaving
                .get(place)
                .map(|leaving| leaving.key);
            match key.map(|key| self.empty(key)) {
                Some(Ok(())) => {}
                Some(Err(_)) => place += 1,
                None => return,
            }
        }
    }

    /// Lets go of the pages of all areas, which no domain maps any more.
    fn release_areas(&self) {
        self.index.each(|_, area| {
            let status = area.status();
            if matches!(status.state, State::Live | State::Draining) {
                area.release_held();
            }
        });
    }
}

impl Domains {
    /// Removes areas, which nobody else changes, from the domains that leave, and waits until no device
    /// reaches them there.
    ///
    /// # Errors
    ///
    /// [`DomainError`] if a device may still reach them. They are confirmed along with the domain.
    pub(super) fn withdraw_from_leaving(&self, areas: &[Arc<Area>]) -> Result<(), DomainError> {
        let mut result = Ok(());
        for leaving in &self.leaving {
            // A domain whose hardware does not answer must not stop what it has nothing to do with.
            if !areas.iter().any(|area| leaving.may_hold(area)) {
                continue;
            }
            let withdrawn = leaving.unconfirmed.lock_first(|so_far| {
                let removed = leaving.remove_areas(areas, so_far);
                // They may be among what was removed before.
                let synced = so_far.sync(&*leaving.domain);
                removed.and(synced)
            });
            result = result.and(withdrawn);
        }
        result
    }

    /// Removes an area, which is about to be divided, from the domains that leave: their pages may reach
    /// over the border, and could not be removed with either part.
    ///
    /// # Errors
    ///
    /// [`DomainError`] if a domain may still hold it.
    pub(super) fn remove_from_leaving(&self, area: &Arc<Area>) -> Result<(), DomainError> {
        let areas = slice::from_ref(area);
        self.leaving.iter().try_for_each(|leaving| {
            let unconfirmed = &leaving.unconfirmed;
            unconfirmed.lock_first(|so_far| leaving.remove_areas(areas, so_far))
        })
    }
}
