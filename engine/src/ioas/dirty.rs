//! What devices wrote to.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::mem;

use iopt_formats::{Iova, IovaRange, Oa, PageSize};

use crate::domain::{Domain, DomainError, Flush, Grant};
use crate::ioas::area::{Area, Ops, State};
use crate::ioas::unmap::EachDirty;
use crate::ioas::{DirtyBitmap, DirtyError, Holes, Ioas, Pages};

/// Bytes that one read section looks through, unless one page is larger.
const SECTION: PageSize = PageSize::from_lg2(30);

/// Whether what is reported counts as written to the next time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Forget {
    /// It does.
    No,
    /// Not unless devices write to it again.
    Yes,
}

/// Bytes of some pages that devices wrote to.
#[derive(Clone, Debug)]
pub struct DirtyPages {
    /// The pages.
    pub pages: Arc<Pages>,
    /// First byte of them.
    pub offset: u64,
    /// Where that is mapped.
    pub range: IovaRange,
}

/// Dirty tracking, domain by domain.
impl Ioas {
    /// Begins or ends to track what devices write to through a domain. It begins with nothing written.
    ///
    /// # Errors
    ///
    /// [`DirtyError`]; it does not begin then.
    #[doc(alias = "IOMMU_HWPT_SET_DIRTY_TRACKING")]
    pub fn set_dirty_tracking(
        &self,
        domain: &Arc<dyn Domain>,
        is_on: bool,
    ) -> Result<(), DirtyError> {
        let one = self.attaching.lock();
        let place = self
            .domains
            .read()
            .find(domain)
            .ok_or(DirtyError::NotAttached)?;
        if self.domains.read().list[place].is_tracking == is_on {
            return Ok(());
        }
        domain.set_tracking(is_on)?;
        self.domains.write().list[place].is_tracking = is_on;
        drop(one);
        if is_on {
            let full = IovaRange::FULL;
            let cleaned = self.scan(domain, full, Holes::Tolerated, Forget::Yes, &mut |_, _| {});
            if cleaned.is_err() {
                // Else the next attempt would find it begun, with old writes.
                let _ = self.set_dirty_tracking(domain, false);
            }
            return cleaned;
        }
        Ok(())
    }

    /// Sets the bits of the pages in `range` that devices wrote to through a domain. Large pages count
    /// whole. With [`Forget::Yes`] the range should not divide them: they are forgotten whole.
    ///
    /// Copy the memory once this returns: what is written later is reported the next time.
    ///
    /// # Errors
    ///
    /// [`DirtyError`]; bits are set for what was looked through before.
    #[doc(alias = "IOMMU_HWPT_GET_DIRTY_BITMAP")]
    pub fn read_dirty(
        &self,
        domain: &Arc<dyn Domain>,
        range: IovaRange,
        holes: Holes,
        forget: Forget,
        bitmap: &mut DirtyBitmap<'_>,
    ) -> Result<(), DirtyError> {
        self.check_tracking(domain)?;
        self.scan(domain, range, holes, forget, &mut |_, range| {
            bitmap.set(range);
        })
    }

    /// Returns what devices wrote to, as bytes of the pages behind it: behind a virtual IOMMU, where the
    /// guest chooses the IOVA, these are the guest's physical addresses.
    ///
    /// # Errors
    ///
    /// As for [`read_dirty`](Self::read_dirty).
    pub fn dirty_pages(
        &self,
        domain: &Arc<dyn Domain>,
        range: IovaRange,
        forget: Forget,
    ) -> Result<Vec<DirtyPages>, DirtyError> {
        self.check_tracking(domain)?;
        let mut found = Vec::new();
        self.scan(
            domain,
            range,
            Holes::Tolerated,
            forget,
            &mut |area, range| {
                found.push(DirtyPages {
                    pages: Arc::clone(area.pages()),
                    offset: area.byte_of(range.start()),
                    range,
                });
            },
        )?;
        Ok(found)
    }

    fn check_tracking(&self, domain: &Arc<dyn Domain>) -> Result<(), DirtyError> {
        let domains = self.domains.read();
        let place = domains.find(domain).ok_or(DirtyError::NotAttached)?;
        if domains.list[place].is_tracking {
            Ok(())
        } else {
            Err(DirtyError::NotTracking)
        }
    }

    /// Calls `each`, engine code, with what devices wrote to, area by area, and syncs once.
    fn scan(
        &self,
        domain: &Arc<dyn Domain>,
        range: IovaRange,
        holes: Holes,
        forget: Forget,
        each: &mut dyn FnMut(&Area, IovaRange),
    ) -> Result<(), DirtyError> {
        let mut flush = self.take_unsynced(domain);
        let scanned = self.scan_areas(domain, range, holes, forget, &mut flush, each);
        if let Err(failed) = domain.sync(flush) {
            let mut domains = self.domains.write();
            // Who leaves is flushed as a whole.
            if let Some(place) = domains.find(domain) {
                domains.list[place].unsynced.append(failed.flush);
            }
            return Err(DomainError::Sync(failed.error).into());
        }
        scanned
    }

    /// Takes what earlier reads left to be told.
    fn take_unsynced(&self, domain: &Arc<dyn Domain>) -> Flush {
        let has_some = {
            let domains = self.domains.read();
            let place = domains.find(domain);
            place.is_some_and(|place| !domains.list[place].unsynced.is_empty())
        };
        if !has_some {
            return Flush::new();
        }
        let mut domains = self.domains.write();
        let place = domains.find(domain);
        place.map_or_else(Flush::new, |place| {
            mem::take(&mut domains.list[place].unsynced)
        })
    }

    fn scan_areas(
        &self,
        domain: &Arc<dyn Domain>,
        range: IovaRange,
        holes: Holes,
        forget: Forget,
        flush: &mut Flush,
        each: &mut dyn FnMut(&Area, IovaRange),
    ) -> Result<(), DirtyError> {
        let entries = self.index.overlapping(range);
        let mut next = Some(range.start());
        for (entry, area) in entries.map_err(|_| DirtyError::OutOfMemory)? {
            let hole = next.filter(|&next| next < entry.start());
            if let (Holes::Refused, Some(iova)) = (holes, hole) {
                return Err(DirtyError::Hole { iova });
            }
            if let Some(part) = entry.intersection(range) {
                let forget = (forget == Forget::Yes).then_some(&mut *flush);
                self.scan_area(domain, &area, part, forget, &mut |range| each(&area, range))?;
            }
            next = entry.last().checked_add(1);
        }
        match (holes, next.filter(|&next| next <= range.last())) {
            (Holes::Refused, Some(iova)) => Err(DirtyError::Hole { iova }),
            _ => Ok(()),
        }
    }

    /// Looks through a part of an area, in sections.
    fn scan_area(
        &self,
        domain: &Arc<dyn Domain>,
        area: &Area,
        part: IovaRange,
        mut forget: Option<&mut Flush>,
        each: EachDirty<'_>,
    ) -> Result<(), DirtyError> {
        // A section must not divide a page, of which the first section would forget all.
        let sizes = domain.caps().sizes.iter();
        let len_minus_one = area.range().len_minus_one();
        let largest = sizes
            .filter(|size| size.offset_mask() <= len_minus_one)
            .max();
        let mask = largest.unwrap_or(SECTION).max(SECTION).offset_mask();
        let mut from = Some(part.start());
        while let Some(start) = from {
            let last = Iova::new(start.get() | mask).min(part.last());
            let Some(section) = IovaRange::new(start, last) else {
                return Ok(());
            };
            let domains = self.domains.read();
            let place = domains.find(domain).ok_or(DirtyError::NotAttached)?;
            let mut status = area.status();
            let is_mapped = matches!(status.state, State::Live | State::Draining);
            if !is_mapped || !area.is_held() {
                return Ok(());
            }
            // I2: its lock is held.
            let mut grant = domains.list[place].grant(area.range());
            domain.dirty(&mut grant, section, forget.as_deref_mut(), each)?;
            let key = domains.list[place].key;
            status.each_faded(key, section, forget.is_some(), each);
            from = last.checked_add(1).filter(|&next| next <= part.last());
        }
        Ok(())
    }

    /// Cuts what a domain maps in `range` into pages of at most `size`, ahead of tracking, so that what
    /// devices write to is known exactly.
    ///
    /// # Errors
    ///
    /// [`DirtyError`]; some pages may be cut then.
    pub fn cut(
        &self,
        domain: &Arc<dyn Domain>,
        range: IovaRange,
        size: PageSize,
    ) -> Result<(), DirtyError> {
        self.each_part(domain, range, |grant, part| domain.cut(grant, part, size))
    }

    /// Merges what a domain maps in `range` into the largest pages that fit, after tracking.
    ///
    /// # Errors
    ///
    /// [`DirtyError`]; some pages may be merged then.
    pub fn merge(&self, domain: &Arc<dyn Domain>, range: IovaRange) -> Result<(), DirtyError> {
        self.each_part(domain, range, |grant, part| domain.merge(grant, part))
    }

    fn each_part(
        &self,
        domain: &Arc<dyn Domain>,
        range: IovaRange,
        mut each: impl FnMut(&mut Grant<'_>, IovaRange) -> Result<(), DomainError>,
    ) -> Result<(), DirtyError> {
        let entries = self.index.overlapping(range);
        for (entry, area) in entries.map_err(|_| DirtyError::OutOfMemory)? {
            let domains = self.domains.read();
            let place = domains.find(domain).ok_or(DirtyError::NotAttached)?;
            let status = area.status();
            if status.state != State::Live || !area.is_held() {
                continue;
            }
            if let Some(part) = entry.intersection(range) {
                // I2: its lock is held.
                each(&mut domains.list[place].grant(entry), part)?;
            }
        }
        Ok(())
    }

    /// Returns where output addresses are mapped: the IOVA of every area that has one of the `len` bytes
    /// from `oa` on pinned, lowest first. Goes through the runs of all areas.
    pub fn find_oa(&self, oa: Oa, len: u64) -> Vec<IovaRange> {
        let mut found = Vec::new();
        let Some(last) = len.checked_sub(1).and_then(|more| oa.checked_add(more)) else {
            return found;
        };
        self.index.each(|_, area| {
            let state = area.status().state;
            if !area.is_held() || !matches!(state, State::Live | State::Draining) {
                return;
            }
            let mut ops = Ops::new();
            let prot = area.status().prot;
            area.ops(area.range().start(), prot, usize::MAX, false, &mut ops);
            for op in ops {
                let (op_oa, op_last) = (op.oa.get(), op.oa.get() + op.range.len_minus_one());
                let (from, to) = (op_oa.max(oa.get()), op_last.min(last.get()));
                if from <= to {
                    let start = op.range.start().get() + (from - op_oa);
                    found.extend(IovaRange::with_len(Iova::new(start), to - from + 1));
                }
            }
        });
        found.sort_unstable_by_key(|range: &IovaRange| range.start());
        found.dedup();
        found
    }
}
