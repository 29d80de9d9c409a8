//! Mapping: reserve, hold, fill, publish.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::ControlFlow;
use core::slice;

use iopt_formats::{Iova, IovaRange, Oa, Prot};
use smallvec::SmallVec;

use crate::domain::MapOp;
use crate::intervals::gaps::{Fit, Gaps};
use crate::ioas::area::{Area, Ops, State, Watch};
use crate::ioas::pages::HoldError;
use crate::ioas::{Attached, Domains, Ioas, MapError, MapManyError, Mapping, Place, is_aligned};
use crate::stripes::EnterError;
use crate::sync::pause;

/// Runs that one read section maps to each domain: the domain lock is never held for long.
pub(super) const RUNS_PER_SECTION: usize = if cfg!(loom) { 1 } else { 512 };

/// Ranges that automatic choice proposes to the index before it looks at all areas.
const PROPOSAL_COUNT: u32 = 16;

/// Where automatic choice may go at all.
const NOT_ZERO: Option<IovaRange> = IovaRange::new(Iova::new(1), Iova::new(u64::MAX));

/// The largest alignment that automatic choice asks for: more brings no larger page on most hardware.
const CHOICE_ALIGN_LG2: u32 = 21;

impl Ioas {
    /// Maps a slice of pages to every domain, all or nothing, and returns where.
    ///
    /// Without a domain nothing is pinned yet, and nothing of the source is looked at.
    ///
    /// # Errors
    ///
    /// [`MapError`]; the address space is as before, unless it is [`MapError::Quarantined`].
    #[doc(alias = "IOMMU_IOAS_MAP")]
    pub fn map(&self, mapping: Mapping<'_>) -> Result<IovaRange, MapError> {
        self.map_watched(mapping, |_| ControlFlow::Continue(()))
    }

    /// As [`map`](Self::map), for large memory: `watch` is called after each GiB or so that was pinned, with
    /// the number of bytes so far and no lock held, and may give up.
    ///
    /// # Errors
    ///
    /// As for [`map`](Self::map), and [`HoldError::Cancelled`] if `watch` gave up.
    pub fn map_watched(
        &self,
        mapping: Mapping<'_>,
        mut watch: impl FnMut(u64) -> ControlFlow<()>,
    ) -> Result<IovaRange, MapError> {
        let area = self.reserve_area(mapping)?;
        let range = area.range();
        let filled = self.fill(slice::from_ref(&area), |_| mapping.prot, &mut watch);
        filled.map_err(|(_, error)| error)?;
        Ok(range)
    }

    /// Maps several slices, all or none, and returns where, in their order.
    ///
    /// # Errors
    ///
    /// As for [`map`](Self::map), and which mapping failed.
    pub fn map_many(&self, mappings: &[Mapping<'_>]) -> Result<Vec<IovaRange>, MapManyError> {
        let failed = |(index, error)| MapManyError { index, error };
        let mut areas: Vec<Arc<Area>> = Vec::new();
        let mut ranges = Vec::new();
        let room = areas.try_reserve_exact(mappings.len());
        let room = room.and_then(|()| ranges.try_reserve_exact(mappings.len()));
        room.map_err(|_| failed((0, HoldError::OutOfMemory.into())))?;
        for (index, &mapping) in mappings.iter().enumerate() {
            match self.reserve_area(mapping) {
                Ok(area) => {
                    ranges.push(area.range());
                    areas.push(area);
                }
                Err(error) => {
                    self.forget(&areas);
                    return Err(failed((index, error)));
                }
            }
        }
        self.fill(&areas, |index| mappings[index].prot, &mut |_| {
            ControlFlow::Continue(())
        })
        .map_err(failed)?;
        Ok(ranges)
    }

    /// Takes areas that translate nothing out of the index.
    pub(super) fn forget(&self, areas: &[Arc<Area>]) {
        for area in areas {
            let is_known = area.become_gone();
            self.index.remove(area.range());
            // Another area may have come to its addresses meanwhile; the gap index learns of it only
            // once this one is out.
            if is_known {
                self.gaps.lock().remove(area.range());
            }
        }
    }

    /// Checks a request and enters its area.
    fn reserve_area(&self, mapping: Mapping<'_>) -> Result<Arc<Area>, MapError> {
        let Mapping {
            pages,
            offset,
            len,
            prot,
            ..
        } = mapping;
        let available = pages.len();
        if offset.checked_add(len).is_none_or(|end| end > available) {
            return Err(MapError::OutsidePages {
                offset,
                len,
                available,
            });
        }
        if !may_grant(pages.source().is_writable(), prot) {
            return Err(MapError::Rights);
        }
        self.enter_area(mapping)
    }

    /// Enters an area of whatever length.
    pub(super) fn enter_area(&self, mapping: Mapping<'_>) -> Result<Arc<Area>, MapError> {
        let Mapping {
            pages,
            offset,
            len,
            prot,
            place,
        } = mapping;
        let iova = match place {
            Place::Fixed(iova) => iova,
            Place::Anywhere => Iova::new(0),
        };
        let range = IovaRange::with_len(iova, len).ok_or(MapError::NoRange { iova, len })?;
        let domains = self.domains.read();
        match place {
            Place::Fixed(_) => {
                domains.check(range, offset)?;
                let area = Area::new(range, Arc::clone(pages), offset, prot, domains.next_key);
                let entered = self.index.insert(range, Arc::clone(&area), |()| ());
                entered.map_err(|error| match error {
                    EnterError::Overlap(with) => MapError::Occupied { range, with },
                    EnterError::OutOfMemory => HoldError::OutOfMemory.into(),
                })?;
                Ok(area)
            }
            Place::Anywhere => self.choose(&domains, mapping),
        }
    }

    /// Enters an area at the lowest place that fits. The gap index proposes, the area index decides,
    /// and what the gap index did not know it learns.
    fn choose(&self, domains: &Domains, mapping: Mapping<'_>) -> Result<Arc<Area>, MapError> {
        let Mapping {
            pages,
            offset,
            len,
            prot,
            ..
        } = mapping;
        let fit = domains.fit(mapping)?;
        let page = pages.source().page_size().bytes();
        let default = IovaRange::new(Iova::new(page), Iova::new(u64::MAX - page));
        let mut turn = 0;
        loop {
            let range = {
                let mut gaps = self.gaps.lock();
                gaps.try_reserve(1).map_err(|_| HoldError::OutOfMemory)?;
                // What is allowed may begin at address 0.
                let mut windows = default
                    .into_iter()
                    .flat_map(|default| domains.reservations.windows(default))
                    .filter_map(|window| window.intersection(NOT_ZERO?));
                let found = windows.find_map(|window| gaps.first_fit(Fit { window, ..fit }));
                let range = found.ok_or(MapError::NoSpace { len })?;
                let proposed = gaps.insert(range);
                debug_assert!(proposed.is_ok(), "what is proposed is free");
                range
            };
            debug_assert!(is_aligned(range, offset, domains.alignment), "as asked");
            let area = Area::new(range, Arc::clone(pages), offset, prot, domains.next_key);
            let is_new = area.become_known();
            debug_assert!(is_new, "nobody else has the area yet");
            let entered = self.index.insert(range, Arc::clone(&area), |()| ());
            let Err(refused) = entered else {
                return Ok(area);
            };
            let mut gaps = self.gaps.lock();
            gaps.remove(range);
            if refused == EnterError::OutOfMemory {
                return Err(HoldError::OutOfMemory.into());
            }
            let learnt = match turn {
                0..PROPOSAL_COUNT => self.learn(&mut gaps, range),
                _ => self.learn(&mut gaps, IovaRange::FULL),
            };
            learnt?;
            drop(gaps);
            // An area that leaves at this moment is in the way, and not to be learnt.
            pause(turn);
            turn = turn.saturating_add(1);
        }
    }

    /// Tells the gap index of the areas in `range` that it does not know.
    fn learn(&self, gaps: &mut Gaps, range: IovaRange) -> Result<(), MapError> {
        let mut learnt = Ok(());
        self.index.each_overlapping(range, |range, area| {
            learnt = gaps
                .try_reserve(1)
                .map_err(|_| HoldError::OutOfMemory.into());
            if learnt.is_ok() && gaps.insert(range).is_ok() && !area.become_known() {
                gaps.remove(range);
            }
            learnt.is_ok()
        });
        learnt
    }

    /// Maps reserved areas to every domain and publishes them, or gives up all that was done for them,
    /// the reservations included. The error says which area failed.
    pub(super) fn fill(
        &self,
        areas: &[Arc<Area>],
        prot: impl Fn(usize) -> Prot,
        watch: Watch<'_>,
    ) -> Result<(), (usize, MapError)> {
        {
            let domains = self.domains.read();
            if domains.list.is_empty() {
                domains.publish(areas, false);
                return Ok(());
            }
        }
        let mut first_oa = None;
        for (index, area) in areas.iter().enumerate() {
            match area.hold_watched(watch) {
                Ok(oa) if index == 0 => first_oa = oa,
                Ok(_) => {}
                Err(error) => {
                    release(&areas[..index]);
                    self.forget(areas);
                    return Err((index, error.into()));
                }
            }
        }
        self.fill_held(areas, prot, first_oa)
            .map_err(|(index, failed)| {
                // Whatever was mapped goes before the pages do; a quarantine has to know of them.
                for area in areas {
                    area.set_held(true);
                }
                match self.withdraw(areas, None) {
                    Ok(()) => {
                        for area in areas {
                            area.release_held();
                        }
                        self.forget(areas);
                        (index, failed)
                    }
                    Err(error) => (index, MapError::Quarantined { error }),
                }
            })
    }

    /// Maps areas whose pages are held, some runs in each read section. The first area is one run if its
    /// output address is given.
    fn fill_held(
        &self,
        areas: &[Arc<Area>],
        prot: impl Fn(usize) -> Prot,
        first_oa: Option<Oa>,
    ) -> Result<(), (usize, MapError)> {
        // How far each domain is; those that join meanwhile start from the beginning.
        let mut marks: SmallVec<[(u64, Mark); 2]> = SmallVec::new();
        let mut ops = Ops::new();
        let first = Mark {
            index: 0,
            iova: areas.first().map(|area| area.range().start()),
        };
        let mut at = first;
        let page_by_page = self.page_by_page();
        loop {
            // Runs are looked up with no guard at hand, since the pages may be locked for long; they
            // stay as they are while they are held.
            ops.clear();
            let mut next = at;
            if let (Some(area), Some(iova)) = (areas.get(at.index), at.iova) {
                let prot = prot(at.index);
                next.iova = match first_oa.filter(|_| at == first) {
                    Some(oa) if !page_by_page => {
                        ops.push(area.whole_op(oa, prot));
                        None
                    }
                    _ => area.ops(iova, prot, RUNS_PER_SECTION, page_by_page, &mut ops),
                };
                if next.iova.is_none() {
                    next.index += 1;
                    next.iova = areas.get(next.index).map(|area| area.range().start());
                }
            }
            let domains = self.domains.read();
            if domains.list.is_empty() {
                drop(domains);
                if self.publish_unmapped(areas) {
                    return Ok(());
                }
                continue;
            }
            let mut lowest = None;
            for (place, attached) in domains.list.iter().enumerate() {
                let known = marks.iter().position(|(key, _)| *key == attached.key);
                let known = known.unwrap_or_else(|| {
                    marks.push((attached.key, first));
                    marks.len() - 1
                });
                let mark = &mut marks[known].1;
                if *mark == at && at.index < areas.len() {
                    let mapped = attached.map_ops(&areas[at.index], place, &ops);
                    mapped.map_err(|error| (at.index, error))?;
                    *mark = next;
                }
                lowest = lowest.min(Some(*mark)).or(Some(*mark));
            }
            at = lowest.unwrap_or(first);
            if at.index == areas.len() {
                domains.publish(areas, true);
                return Ok(());
            }
        }
    }

    /// Publishes held areas if there is no domain any more; without pins, unless a domain that leaves may
    /// still reach them.
    fn publish_unmapped(&self, areas: &[Arc<Area>]) -> bool {
        let domains = self.domains.read();
        if !domains.list.is_empty() {
            return false;
        }
        let is_reached = domains.withdraw_from_leaving(areas).is_err();
        domains.publish(areas, is_reached);
        drop(domains);
        if !is_reached {
            release(areas);
        }
        true
    }
}

impl Attached {
    /// Maps runs of an area to one domain.
    pub(super) fn map_ops(
        &self,
        area: &Area,
        place: usize,
        ops: &[MapOp<'_>],
    ) -> Result<(), MapError> {
        if self.caps.needs_pinned && !area.pages().source().firmness().suits_hardware() {
            return Err(MapError::NotFirm);
        }
        // I2: callers are the area's maker, or hold its lock.
        let mut grant = self.grant(area.range());
        let mapped = self.domain.map_batch(&mut grant, ops);
        mapped.map_err(|failure| MapError::Domain {
            domain: place,
            range: ops.get(failure.index).map_or(area.range(), |op| op.range),
            error: failure.error,
        })
    }
}

/// How far a domain is: the area, and the address in it; past the last area there is none.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Mark {
    index: usize,
    iova: Option<Iova>,
}

impl Domains {
    /// Lets everybody use areas, which are mapped to the whole set.
    fn publish(&self, areas: &[Arc<Area>], is_held: bool) {
        let generation = self.list.last().map_or(0, |newest| newest.key + 1);
        for area in areas {
            let mut status = area.status();
            debug_assert_eq!(status.state, State::Reserved, "an area is published once");
            status.state = State::Live;
            area.set_held(is_held);
            status.generation = generation;
        }
    }

    /// Checks that an area may be placed at `range`.
    pub(super) fn check(&self, range: IovaRange, offset: u64) -> Result<(), MapError> {
        if !is_aligned(range, offset, self.alignment) {
            return Err(MapError::Unaligned {
                range,
                offset,
                alignment: self.alignment.bytes(),
            });
        }
        if let Some(with) = self.reservations.is_reserved(range) {
            return Err(MapError::Reserved { range, with });
        }
        Ok(())
    }

    /// Returns what a place for `mapping` must be like.
    ///
    /// The alignment is what the length is rounded up to, or that of the source's first byte if it is
    /// less: then the largest pages fit that the source allows. The low bits are those of the source.
    fn fit(&self, mapping: Mapping<'_>) -> Result<Fit, MapError> {
        let Mapping {
            pages, offset, len, ..
        } = mapping;
        let source = pages.source();
        // Both are powers of two.
        let page = source.page_size().max(self.alignment);
        let page_mask = page.offset_mask();
        let len_minus_one = len.checked_sub(1).filter(|_| len <= u64::MAX / 2);
        let len_minus_one = len_minus_one.ok_or(MapError::NoSpace { len })?;
        let first = source.low_bits().wrapping_add(offset);
        let low = first & page_mask;
        if (low | len) & self.alignment.offset_mask() != 0 {
            return Err(MapError::Unaligned {
                range: IovaRange::with_len(Iova::new(low), len).ok_or(MapError::NoSpace { len })?,
                offset,
                alignment: self.alignment.bytes(),
            });
        }
        let of_len = u64::BITS - len_minus_one.leading_zeros();
        let of_source = (first & !page_mask).trailing_zeros();
        let align_lg2 = of_len.min(of_source).min(CHOICE_ALIGN_LG2);
        Ok(Fit {
            len_minus_one,
            align_lg2: align_lg2.max(u32::from(page.lg2())) as u8,
            low,
            window: IovaRange::FULL,
        })
    }
}

/// Lets go of the pages of areas.
fn release(areas: &[Arc<Area>]) {
    for area in areas {
        area.release();
    }
}

/// Returns whether pages grant `prot`.
pub(super) fn may_grant(is_writable: bool, prot: Prot) -> bool {
    (prot.can_read() || prot.can_write()) && (is_writable || !prot.can_write())
}
