//! Domains come and go.
//!
//! A domain that comes first narrows the address space, which is checked against the areas there are,
//! then joins the set, so that whatever is mapped from now on is mapped to it, too; then it gets the
//! areas there are, one by one, in short read sections. One that goes leaves the set first, so that
//! nobody changes it any more, and is emptied and flushed while others go on. Until that is done it is
//! one of those that leave, and no page is let go that it may still reach: see [`leaving`](super::leaving).

use alloc::sync::Arc;

use iopt_formats::{Iova, IovaRange, PageSize};
use smallvec::SmallVec;

use crate::domain::{Domain, Farewell, Flush, Tenant, TenantId};
use crate::intervals::reservations::ReserveError;
use crate::ioas::area::{Area, Ops, State};
use crate::ioas::leaving::Leaving;
use crate::ioas::map::RUNS_PER_SECTION;
use crate::ioas::msi::Msi;
use crate::ioas::pages::HoldError;
use crate::ioas::unconfirmed::Unconfirmed;
use crate::ioas::{AttachError, Attached, DetachError, Domains, Ioas, MapError, Owner, is_aligned};

impl Ioas {
    /// Attaches a domain: everything that is mapped is mapped to it, too, now and later.
    ///
    /// Maps, unmaps and accesses go on meanwhile.
    ///
    /// # Errors
    ///
    /// [`AttachError`]; nothing has changed then, and the domain is empty.
    #[expect(clippy::needless_pass_by_value, reason = "the address space keeps it")]
    pub fn attach(&self, domain: Arc<dyn Domain>) -> Result<(), AttachError> {
        let _one = self.attaching.lock();
        self.join(&domain)
    }

    /// Detaches a domain, which is empty afterwards. With the last one, pages that no access has pinned
    /// are let go.
    ///
    /// # Errors
    ///
    /// [`DetachError`].
    pub fn detach(&self, domain: &Arc<dyn Domain>) -> Result<(), DetachError> {
        let mut one = self.attaching.lock();
        self.leave(domain, &mut one)
    }

    /// Attaches `new`, then detaches `old`: memory stays pinned throughout, and devices may move from one
    /// to the other at any time in between.
    ///
    /// # Errors
    ///
    /// [`AttachError`] if that changed nothing; `new` is attached and `old` is not any more if it is
    /// [`AttachError::OldNotFlushed`].
    #[expect(clippy::needless_pass_by_value, reason = "the address space keeps it")]
    pub fn replace(&self, old: &Arc<dyn Domain>, new: Arc<dyn Domain>) -> Result<(), AttachError> {
        let mut one = self.attaching.lock();
        if self.domains.read().find(old).is_none() {
            return Err(AttachError::NoOld);
        }
        if Arc::ptr_eq(old, &new) {
            return Ok(());
        }
        self.join(&new)?;
        self.leave(old, &mut one).map_err(|error| match error {
            DetachError::NotAttached => AttachError::NoOld,
            DetachError::NotFlushed(error) => AttachError::OldNotFlushed(error),
        })
    }

    /// Returns the number of attached domains.
    pub fn domain_count(&self) -> usize {
        self.domains.read().list.len()
    }

    fn join(&self, domain: &Arc<dyn Domain>) -> Result<(), AttachError> {
        let caps = domain.caps();
        let page = caps.sizes.smallest().unwrap_or(PageSize::from_lg2(0));
        let tenant = TenantId::fresh();
        domain.bind(Tenant(tenant))?;
        let (key, alignment) = match self.narrow(caps.aperture, page) {
            Ok(narrowed) => narrowed,
            Err(error) => {
                domain.unbind(Farewell(tenant));
                return Err(error);
            }
        };
        let mut result = self.check_areas(caps.aperture, alignment);
        let attached = Attached {
            domain: Arc::clone(domain),
            tenant,
            caps,
            key,
            is_tracking: false,
            unsynced: Flush::new(),
            unconfirmed: Unconfirmed::new(),
        };
        if result.is_ok() {
            self.domains.write().list.push(attached);
            result = self.fill_domain(key).map_err(AttachError::Fill);
        }
        if result.is_err() {
            // As if it had never been there; if the hardware does not follow, it stays among those
            // that leave, and keeps what it may reach.
            let mut domains = self.domains.write();
            let place = domains.list.iter().position(|attached| attached.key == key);
            if let Some(place) = place {
                domains.remove(place);
                drop(domains);
                let _ = self.empty(key);
            } else {
                domains.widen(key);
                drop(domains);
                domain.unbind(Farewell(tenant));
            }
        }
        result
    }

    /// Reserves what a domain does not translate, and demands its alignment from now on. Returns its
    /// key and the alignment.
    pub(super) fn narrow(
        &self,
        aperture: IovaRange,
        page: PageSize,
    ) -> Result<(u64, PageSize), AttachError> {
        let mut domains = self.domains.write();
        let room = domains.list.try_reserve(1);
        let count = domains.list.len() + 1;
        let room = room.and_then(|()| domains.leaving.try_reserve(count));
        let room = room.and_then(|()| domains.alignments.try_reserve(1));
        room.map_err(|_| AttachError::Fill(HoldError::OutOfMemory.into()))?;
        let key = domains.next_key;
        domains.next_key += 1;
        let below = aperture.start().get().checked_sub(1);
        let below = below.and_then(|last| IovaRange::new(Iova::new(0), Iova::new(last)));
        let above = aperture.last().checked_add(1);
        let above = above.and_then(|start| IovaRange::new(start, Iova::new(u64::MAX)));
        for outside in [below, above].into_iter().flatten() {
            let reserved = domains.reservations.reserve(outside, Owner::Domain(key));
            if let Err(error) = reserved {
                domains.reservations.release(Owner::Domain(key));
                return Err(match error {
                    ReserveError::Allowed { with, .. } => AttachError::Aperture { aperture, with },
                    ReserveError::OutOfMemory(_) => {
                        AttachError::Fill(HoldError::OutOfMemory.into())
                    }
                });
            }
        }
        domains.alignments.push((key, page));
        domains.align();
        Ok((key, domains.alignment))
    }

    /// Checks that all areas fit a domain that demands this. Whatever is mapped later was checked
    /// when it came.
    pub(super) fn check_areas(
        &self,
        aperture: IovaRange,
        alignment: PageSize,
    ) -> Result<(), AttachError> {
        let mut checked = Ok(());
        self.index.each(|range, area| {
            if checked.is_err() {
                return;
            }
            if !aperture.contains(range) {
                let with = range;
                checked = Err(AttachError::Aperture { aperture, with });
            } else if !is_aligned(range, area.offset(), alignment) {
                checked = Err(AttachError::Unaligned {
                    area: range,
                    alignment: alignment.bytes(),
                });
            }
        });
        checked
    }

    /// Maps all areas to a domain that has joined.
    fn fill_domain(&self, key: u64) -> Result<(), MapError> {
        // Areas that are reserved at this moment are filled by their makers: they look at the set of
        // domains before they publish.
        let is_only = self.domains.read().list.len() == 1;
        let mut filled = Ok(());
        self.index.each(|_, area| {
            if filled.is_ok() {
                filled = self.fill_area(area, key, is_only);
            }
        });
        filled
    }

    /// Maps a live area to one domain. Unless it `may_hold` the pages, one that does not hold them is left
    /// alone: other domains lost it when the memory was revoked.
    pub(super) fn fill_area(&self, area: &Area, key: u64, may_hold: bool) -> Result<(), MapError> {
        let prot = {
            let status = area.status();
            let is_usable = matches!(status.state, State::Live | State::Draining);
            if !is_usable || key < status.generation {
                return Ok(());
            }
            if !area.is_held() {
                if !may_hold {
                    return Ok(());
                }
                match area.hold() {
                    // What was revoked occupies its IOVA, and translates nothing.
                    Err(HoldError::Revoked) => return Ok(()),
                    held => held.map(|_| area.set_held(true))?,
                }
            }
            status.prot
        };
        let mut ops = Ops::new();
        let mut from = Some(area.range().start());
        while let Some(iova) = from {
            ops.clear();
            from = area.ops(iova, prot, RUNS_PER_SECTION, self.page_by_page(), &mut ops);
            let domains = self.domains.read();
            let Some(place) = domains.list.iter().position(|attached| attached.key == key) else {
                return Ok(());
            };
            let mut status = area.status();
            if !matches!(status.state, State::Live | State::Draining) || !area.is_held() {
                // Its unmapper empties all domains, this one included.
                return Ok(());
            }
            domains.list[place].map_ops(area, place, &ops)?;
            if from.is_none() {
                // The index may show the area more than once.
                status.generation = key + 1;
            }
        }
        Ok(())
    }

    fn leave(&self, domain: &Arc<dyn Domain>, msi: &mut Msi) -> Result<(), DetachError> {
        let mut domains = self.domains.write();
        let place = domains.find(domain).ok_or(DetachError::NotAttached)?;
        let key = domains.list[place].key;
        domains.remove(place);
        drop(domains);
        let emptied = self.empty(key);
        msi.forget(key);
        emptied.map_err(DetachError::NotFlushed)
    }

    /// Returns the keys of all domains.
    pub(super) fn domain_keys(&self) -> SmallVec<[u64; 4]> {
        let domains = self.domains.read();
        domains.list.iter().map(|attached| attached.key).collect()
    }

    /// Detaches all domains, as the address space ends.
    pub(super) fn detach_all(&self) {
        loop {
            let next = self
                .domains
                .read()
                .list
                .first()
                .map(|first| Arc::clone(&first.domain));
            let Some(domain) = next else {
                return;
            };
            // What is not flushed stays among those that leave, and keeps its pages.
            let _ = self.detach(&domain);
        }
    }
}

impl Domains {
    /// Returns the place of a domain.
    pub(super) fn find(&self, domain: &Arc<dyn Domain>) -> Option<usize> {
        let is_same = |attached: &Attached| Arc::ptr_eq(&attached.domain, domain);
        self.list.iter().position(is_same)
    }

    /// Takes a domain out of the set, to those that leave. Needs no memory: attaching made room.
    fn remove(&mut self, place: usize) {
        let Attached {
            domain,
            tenant,
            key,
            unconfirmed,
            ..
        } = self.list.remove(place);
        self.widen(key);
        let left_at = self.next_key;
        self.next_key += 1;
        self.leaving.push(Leaving {
            domain,
            tenant,
            key,
            left_at,
            unconfirmed,
        });
    }

    /// Ends what a domain demands of areas.
    fn widen(&mut self, key: u64) {
        self.reservations.release(Owner::Domain(key));
        self.alignments.retain(|&(of, _)| of != key);
        self.align();
    }

    pub(super) fn align(&mut self) {
        let alignments = self.alignments.iter().map(|&(_, page)| page);
        self.alignment = alignments.max().unwrap_or(PageSize::from_lg2(0));
    }
}
