//! Doorbells of interrupts behind an IOMMU that translates them, too.

use alloc::sync::Arc;
use alloc::vec::Vec;

use iopt_formats::{Iova, IovaRange, Oa, PageSize, Prot};

use crate::domain::{Domain, Flush, Grant, MapOp};
use crate::ioas::{Ioas, MsiError, Owner, ReserveError};
use crate::pin::{Access, Fixed, Kind};

/// The window, and what is mapped there.
#[derive(Default)]
pub(super) struct Msi {
    pub(super) window: Option<IovaRange>,
    pub(super) pages: Vec<Doorbell>,
}

pub(super) struct Doorbell {
    /// Key of the domain.
    pub(super) domain: u64,
    /// The page of output addresses.
    pub(super) oa: Oa,
    pub(super) range: IovaRange,
}

impl Msi {
    /// Forgets what was mapped to a domain.
    pub(super) fn forget(&mut self, domain: u64) {
        self.pages.retain(|page| page.domain != domain);
    }
}

impl Ioas {
    /// Sets the window in which doorbells are mapped; no area is placed there.
    ///
    /// # Errors
    ///
    /// [`MsiError::Reserve`] if areas or allowed ranges lie in it, [`MsiError::InUse`] if doorbells are
    /// mapped in the one there is.
    #[doc(alias = "iommu_get_msi_cookie")]
    pub fn set_msi_window(&self, window: Option<IovaRange>) -> Result<(), MsiError> {
        let mut msi = self.attaching.lock();
        if !msi.pages.is_empty() {
            return Err(MsiError::InUse);
        }
        let old = msi.window;
        self.domains.write().reservations.release(Owner::Msi);
        if let Some(window) = window
            && let Err(error) = self.reserve_for(window, Owner::Msi)
        {
            if let Some(old) = old {
                // It was reserved a moment ago; an area that came meanwhile wins.
                let restored = self.reserve_for(old, Owner::Msi);
                msi.window = restored.is_ok().then_some(old);
            }
            return Err(error.into());
        }
        msi.window = window;
        Ok(())
    }

    /// Returns the IOVA at which devices of a domain reach the doorbell at `oa`, and maps its page there
    /// if it is the first time. It is the same in all domains whose smallest pages are equal: a device whose
    /// interrupts are set up goes on when it is led to a domain in which its doorbells were mapped before.
    ///
    /// # Errors
    ///
    /// [`MsiError`]; nothing is mapped then.
    pub fn map_msi(&self, domain: &Arc<dyn Domain>, oa: Oa) -> Result<Iova, MsiError> {
        let mut msi = self.attaching.lock();
        let (key, caps, tenant) = {
            let domains = self.domains.read();
            let place = domains.find(domain).ok_or(MsiError::NotAttached)?;
            let attached = &domains.list[place];
            (attached.key, attached.caps, attached.tenant)
        };
        let page = caps.sizes.smallest().unwrap_or(PageSize::KIB_4);
        let within = oa.get() & page.offset_mask();
        let oa = Oa::new(oa.get() - within);
        let of_domain = |known: &&Doorbell| known.domain == key;
        let known = msi
            .pages
            .iter()
            .filter(of_domain)
            .find(|known| known.oa == oa);
        if let Some(known) = known {
            return Ok(Iova::new(known.range.start().get() + within));
        }
        let window = msi.window.ok_or(MsiError::NoWindow)?;
        let elsewhere = msi
            .pages
            .iter()
            .find(|known| known.oa == oa && known.range.len_minus_one() == page.offset_mask());
        let range = match elsewhere {
            Some(known) => Some(known.range),
            None => free_page(window, page, |range| {
                let mut others = msi.pages.iter();
                others.any(|other| other.range.intersection(range).is_some())
            }),
        };
        let range = range.ok_or(MsiError::Full { window })?;
        let doorbell = Fixed::new(oa, page, 1, Kind::Device, Access::ReadWrite);
        let source = doorbell.map_err(|_| MsiError::Full { window })?;
        msi.pages
            .try_reserve(1)
            .map_err(|_| MsiError::OutOfMemory)?;
        let op = MapOp {
            range,
            oa,
            prot: Prot::W.device(),
            source: &source,
            offset: 0,
        };
        // I2: no area lies in the window, and whoever maps a doorbell there holds the lock.
        let mapped = domain.map_batch(&mut Grant::new(tenant, range), &[op]);
        if let Err(failure) = mapped {
            // It may be mapped, and the hardware not told.
            let mut flush = Flush::new();
            let removed = domain.unmap(&mut Grant::new(tenant, range), &mut flush, None);
            if domain.sync(flush).is_err() || removed.is_err() {
                // Nobody gets the page again while the domain is attached.
                msi.pages.push(Doorbell {
                    domain: key,
                    oa: Oa::new(u64::MAX),
                    range,
                });
            }
            return Err(MsiError::Domain(failure.error));
        }
        msi.pages.push(Doorbell {
            domain: key,
            oa,
            range,
        });
        Ok(Iova::new(range.start().get() + within))
    }
}

impl From<ReserveError> for MsiError {
    fn from(error: ReserveError) -> Self {
        Self::Reserve(error)
    }
}

/// Returns the lowest page of a window that is not taken.
fn free_page(
    window: IovaRange,
    page: PageSize,
    is_taken: impl Fn(IovaRange) -> bool,
) -> Option<IovaRange> {
    let mut start = window
        .start()
        .get()
        .checked_next_multiple_of(page.bytes())?;
    loop {
        let range = IovaRange::with_len(Iova::new(start), page.bytes())?;
        if !window.contains(range) {
            return None;
        }
        if !is_taken(range) {
            return Some(range);
        }
        start = start.checked_add(page.bytes())?;
    }
}
