//! Memory at known output addresses.

use iopt_formats::{Oa, PageSize};

use crate::pin::{Access, Firmness, Kind, OaRun, Origin, PageRange, PinError, Source, check_pages};

/// Device memory, or memory carved out at boot: consecutive output addresses that stay what they
/// are. The program cannot reach it through this type.
#[derive(Clone, Copy, Debug)]
pub struct Fixed {
    start: Oa,
    page_size: PageSize,
    page_count: u64,
    kind: Kind,
    access: Access,
}

/// Why a [`Fixed`] source cannot be made.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum FixedError {
    /// There are no pages.
    #[error("a source has at least one page")]
    Empty,
    /// The memory does not start at a page.
    #[error("output address {start} is no multiple of {page_size}")]
    Unaligned {
        /// First output address.
        start: Oa,
        /// The page size.
        page_size: PageSize,
    },
    /// The memory passes the end of the 64-bit space.
    #[error("{page_count} pages from output address {start} on do not fit 64 bits")]
    TooWide {
        /// First output address.
        start: Oa,
        /// Number of pages.
        page_count: u64,
    },
}

impl Fixed {
    /// Creates a source of `page_count` pages from output address `start` on.
    ///
    /// # Errors
    ///
    /// [`FixedError`] says which rule the arguments break.
    pub fn new(
        start: Oa,
        page_size: PageSize,
        page_count: u64,
        kind: Kind,
        access: Access,
    ) -> Result<Self, FixedError> {
        let last_page = page_count.checked_sub(1).ok_or(FixedError::Empty)?;
        if !page_size.divides(start.get()) {
            return Err(FixedError::Unaligned { start, page_size });
        }
        let last_oa = last_page
            .checked_mul(page_size.bytes())
            .and_then(|len| start.checked_add(len));
        // Aligned as it is, the last page fits where its first byte does.
        last_oa.ok_or(FixedError::TooWide { start, page_count })?;
        Ok(Self {
            start,
            page_size,
            page_count,
            kind,
            access,
        })
    }
}

impl Source for Fixed {
    fn page_size(&self) -> PageSize {
        self.page_size
    }

    fn page_count(&self) -> u64 {
        self.page_count
    }

    fn firmness(&self) -> Firmness {
        Firmness::Fixed
    }

    fn kind(&self) -> Kind {
        self.kind
    }

    fn is_writable(&self) -> bool {
        self.access.is_writable()
    }

    fn origin(&self) -> Origin<'_> {
        Origin::Oa(self.start)
    }

    fn pin(&self, pages: PageRange, runs: &mut dyn FnMut(OaRun)) -> Result<(), PinError> {
        check_pages(pages, self.page_count)?;
        let distance = pages.first() * self.page_size.bytes();
        runs(OaRun {
            oa: Oa::new(self.start.get() + distance),
            page_count: pages.count(),
        });
        Ok(())
    }

    fn unpin(&self, _pages: PageRange) {}

    fn read(&self, _offset: u64, _into: &mut [u8]) -> Result<(), PinError> {
        Err(PinError::NoAccess)
    }

    fn write(&self, _offset: u64, _from: &[u8]) -> Result<(), PinError> {
        Err(PinError::NoAccess)
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    /// The last two pages of the 64-bit space.
    const LAST_TWO: u64 = u64::MAX - 0x1fff;

    fn fixed(start: u64, page_count: u64) -> Result<Fixed, FixedError> {
        let start = Oa::new(start);
        Fixed::new(
            start,
            PageSize::KIB_4,
            page_count,
            Kind::Device,
            Access::ReadWrite,
        )
    }

    #[test]
    fn memory_may_end_at_the_last_byte_and_not_behind() {
        let last = fixed(LAST_TWO, 2).unwrap();
        let mut runs = Vec::new();
        let pages = PageRange::new(1, 1).unwrap();
        last.pin(pages, &mut |run| runs.push((run.oa.get(), run.page_count)))
            .unwrap();
        assert_eq!(runs, [(LAST_TWO + 0x1000, 1)]);
        for page_count in [3, 1 << 60, u64::MAX] {
            let start = Oa::new(LAST_TWO);
            let refused = fixed(start.get(), page_count).unwrap_err();
            assert_eq!(refused, FixedError::TooWide { start, page_count });
        }
    }

    #[test]
    fn arguments_that_make_no_sense_are_refused() {
        assert_eq!(fixed(0, 0).unwrap_err(), FixedError::Empty);
        let unaligned = fixed(0x1800, 1).unwrap_err();
        assert!(matches!(unaligned, FixedError::Unaligned { .. }));
    }

    #[test]
    fn the_program_has_no_access() {
        let fixed = fixed(0x1000, 4).unwrap();
        assert_eq!(fixed.read(0, &mut [0]), Err(PinError::NoAccess));
        assert_eq!(fixed.write(0, &[0]), Err(PinError::NoAccess));
        assert_eq!(fixed.low_bits(), 0x1000);
        assert!(fixed.firmness().suits_hardware());
    }
}
