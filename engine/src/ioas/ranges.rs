//! Where areas may lie.

use alloc::vec::Vec;

use iopt_formats::{IovaRange, PageSize};

use crate::intervals::reservations as inner;
use crate::ioas::{AllowError, Ioas, OptionError, Owner, ReserveError, is_aligned};
use crate::sync::unmodelled::Ordering;

/// The key of alignments that no domain demands.
const NO_DOMAIN: u64 = 0;

/// Which ranges an area may have.
impl Ioas {
    /// Keeps areas out of a range: a window that a device's bus swallows, or where doorbells lie. Ranges
    /// of different owners may overlap.
    ///
    /// # Errors
    ///
    /// [`ReserveError`]; nothing has changed then.
    pub fn reserve(&self, range: IovaRange, owner: u64) -> Result<(), ReserveError> {
        self.reserve_for(range, Owner::User(owner))
    }

    pub(super) fn reserve_for(&self, range: IovaRange, owner: Owner) -> Result<(), ReserveError> {
        let mut domains = self.domains.write();
        let mut met = None;
        self.index.each_overlapping(range, |area, _| {
            met = Some(area);
            false
        });
        if let Some(with) = met {
            return Err(ReserveError::Occupied { range, with });
        }
        let reserved = domains.reservations.reserve(range, owner);
        reserved.map_err(|error| match error {
            inner::ReserveError::Allowed { range, with } => ReserveError::Allowed { range, with },
            inner::ReserveError::OutOfMemory(_) => ReserveError::OutOfMemory,
        })
    }

    /// Ends all reservations of an owner.
    pub fn release_reserved(&self, owner: u64) {
        let mut domains = self.domains.write();
        domains.reservations.release(Owner::User(owner));
    }

    /// Says where areas may lie that are placed by choice, and keeps domains and owners from reserving
    /// there later. An empty list allows everything. Areas at given addresses are not bound to it.
    ///
    /// # Errors
    ///
    /// [`AllowError`]; the old list stays.
    #[doc(alias = "IOMMU_IOAS_ALLOW_IOVAS")]
    pub fn allow(&self, ranges: &[IovaRange]) -> Result<(), AllowError> {
        let mut domains = self.domains.write();
        domains.reservations.set_allowed(ranges)
    }

    /// Returns the ranges that nobody reserved, lowest first. What is allowed makes no difference.
    #[doc(alias = "IOMMU_IOAS_IOVA_RANGES")]
    pub fn iova_ranges(&self) -> Vec<IovaRange> {
        self.domains.read().reservations.iova_ranges().collect()
    }

    /// Returns what every area's bounds are a multiple of, in bytes.
    pub fn alignment(&self) -> u64 {
        self.domains.read().alignment.bytes()
    }

    /// Maps every page by itself from now on, so that areas can be split without cutting pages that are
    /// in use; or as large as possible, which is the default.
    ///
    /// # Errors
    ///
    /// [`OptionError`] if areas are mapped already, or are not made of whole pages.
    #[doc(alias = "IOMMU_OPTION_HUGE_PAGES")]
    pub fn set_page_by_page(&self, is_on: bool) -> Result<(), OptionError> {
        let mut domains = self.domains.write();
        if self.page_by_page() == is_on {
            return Ok(());
        }
        if is_on && !domains.list.is_empty() && self.index.count() > 0 {
            return Err(OptionError::InUse);
        }
        domains.alignments.retain(|&(key, _)| key != NO_DOMAIN);
        if is_on {
            let mut checked = Ok(());
            self.index.each_overlapping(IovaRange::FULL, |area, entry| {
                if !is_aligned(area, entry.offset(), PageSize::KIB_4) {
                    checked = Err(OptionError::Unaligned { area });
                }
                checked.is_ok()
            });
            checked?;
            domains.alignments.push((NO_DOMAIN, PageSize::KIB_4));
        }
        domains.align();
        self.page_by_page.store(is_on, Ordering::Relaxed);
        Ok(())
    }

    /// Returns whether every page is mapped by itself.
    pub fn page_by_page(&self) -> bool {
        self.page_by_page.load(Ordering::Relaxed)
    }
}
