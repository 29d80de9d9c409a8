//! Guest memory, as its VMM knows it.

use core::fmt;

use iopt_formats::PageSize;

use crate::pin::{
    Firmness, Kind, OaRun, Origin, PageRange, PinError, Source, check_bytes, check_pages,
    check_write,
};

/// What a VMM says about the memory of its guest, for [`Guest`] to be a source of it.
///
/// The engine does not pin guest memory: the VMM answers for what it says in
/// [`firmness`](Self::firmness), for as long as the value lives.
pub trait GuestMemory: Send + Sync + fmt::Debug {
    /// Returns the size of a page.
    fn page_size(&self) -> PageSize;

    /// Returns the number of pages, at least one.
    fn page_count(&self) -> u64;

    /// Returns how firmly the pages stay where [`translate`](Self::translate) says.
    fn firmness(&self) -> Firmness;

    /// Returns whether the pages may be written to.
    fn is_writable(&self) -> bool;

    /// Returns where byte 0 lies.
    fn origin(&self) -> Origin<'_>;

    /// Returns the run of output addresses that starts at `page`, or `None` if there is nothing
    /// behind it. What passes `max_count` pages is ignored.
    fn translate(&self, page: u64, max_count: u64) -> Option<OaRun>;

    /// Copies what lies at `offset`, in bytes; all of it lies inside of the memory.
    ///
    /// # Errors
    ///
    /// [`PinError`], at best [`PinError::Fault`] or [`PinError::NoAccess`].
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), PinError>;

    /// Changes what lies at `offset`, in bytes; all of it lies inside of the memory, which is
    /// writable.
    ///
    /// # Errors
    ///
    /// As for [`read`](Self::read).
    fn write(&self, offset: u64, from: &[u8]) -> Result<(), PinError>;
}

/// A source over the memory of a guest.
#[derive(Debug)]
pub struct Guest<M> {
    memory: M,
}

impl<M: GuestMemory> Guest<M> {
    /// Creates a source over `memory`.
    pub const fn new(memory: M) -> Self {
        Self { memory }
    }

    /// Returns the memory.
    pub const fn memory(&self) -> &M {
        &self.memory
    }

    /// Returns the run that starts at `page`, at most `max_count` pages long, if it makes sense.
    fn run_at(&self, page: u64, max_count: u64) -> Option<OaRun> {
        let page_size = self.memory.page_size();
        let run = self.memory.translate(page, max_count)?;
        let page_count = run.page_count.min(max_count);
        let last_page = page_count.checked_sub(1)?;
        run.oa
            .checked_add(last_page.checked_mul(page_size.bytes())?)?;
        page_size.divides(run.oa.get()).then_some(OaRun {
            oa: run.oa,
            page_count,
        })
    }
}

/// Returns both runs as one if `second` goes on where `first` ends.
fn joined(first: OaRun, second: OaRun, page_size: PageSize) -> Option<OaRun> {
    let end = first.page_count.checked_mul(page_size.bytes())?;
    let is_next = first.oa.checked_add(end) == Some(second.oa);
    let page_count = first.page_count.checked_add(second.page_count)?;
    is_next.then_some(OaRun {
        oa: first.oa,
        page_count,
    })
}

impl<M: GuestMemory> Source for Guest<M> {
    fn page_size(&self) -> PageSize {
        self.memory.page_size()
    }

    fn page_count(&self) -> u64 {
        self.memory.page_count()
    }

    fn firmness(&self) -> Firmness {
        self.memory.firmness()
    }

    fn kind(&self) -> Kind {
        Kind::Ram
    }

    fn is_writable(&self) -> bool {
        self.memory.is_writable()
    }

    fn origin(&self) -> Origin<'_> {
        self.memory.origin()
    }

    fn pin(&self, pages: PageRange, runs: &mut dyn FnMut(OaRun)) -> Result<(), PinError> {
        check_pages(pages, self.page_count())?;
        let mut open: Option<OaRun> = None;
        let mut page = pages.first();
        loop {
            // The source has fewer than 2^64 pages, so that this cannot saturate.
            let left_count = pages.last() - page + 1;
            let run = self.run_at(page, left_count);
            let run = run.ok_or(PinError::Fault { page })?;
            let longer = open.and_then(|open| joined(open, run, self.page_size()));
            if longer.is_none()
                && let Some(done) = open
            {
                runs(done);
            }
            let current = longer.unwrap_or(run);
            if run.page_count == left_count {
                runs(current);
                return Ok(());
            }
            open = Some(current);
            page += run.page_count;
        }
    }

    fn unpin(&self, _pages: PageRange) {}

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), PinError> {
        check_bytes(self, offset, into.len())?;
        self.memory.read(offset, into)
    }

    fn write(&self, offset: u64, from: &[u8]) -> Result<(), PinError> {
        check_write(self, offset, from.len())?;
        self.memory.write(offset, from)
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use iopt_formats::Oa;

    use super::*;

    /// Runs as the VMM would give them: page, output address, length; a page in none is missing.
    #[derive(Debug)]
    struct Runs(&'static [(u64, u64, u64)]);

    impl GuestMemory for Runs {
        fn page_size(&self) -> PageSize {
            PageSize::KIB_4
        }

        fn page_count(&self) -> u64 {
            16
        }

        fn firmness(&self) -> Firmness {
            Firmness::Resident
        }

        fn is_writable(&self) -> bool {
            false
        }

        fn origin(&self) -> Origin<'_> {
            Origin::Oa(Oa::new(0))
        }

        fn translate(&self, page: u64, _max_count: u64) -> Option<OaRun> {
            let run = self.0.iter().find(|(first, ..)| *first == page);
            run.map(|&(_, oa, page_count)| OaRun {
                oa: Oa::new(oa),
                page_count,
            })
        }

        fn read(&self, _offset: u64, into: &mut [u8]) -> Result<(), PinError> {
            into.fill(7);
            Ok(())
        }

        fn write(&self, _offset: u64, _from: &[u8]) -> Result<(), PinError> {
            unreachable!("the memory is read-only")
        }
    }

    fn pin(
        runs: &'static [(u64, u64, u64)],
        first: u64,
        last: u64,
    ) -> Result<Vec<(u64, u64)>, PinError> {
        let mut pinned = Vec::new();
        let pages = PageRange::new(first, last).unwrap();
        let mut note = |run: OaRun| pinned.push((run.oa.get(), run.page_count));
        Guest::new(Runs(runs)).pin(pages, &mut note)?;
        Ok(pinned)
    }

    #[test]
    fn neighbours_become_one_run() {
        let runs = &[(2, 0x8000, 2), (4, 0xa000, 1), (5, 0x4000, 100)];
        assert_eq!(pin(runs, 2, 6).unwrap(), [(0x8000, 3), (0x4000, 2)]);
    }

    #[test]
    fn what_makes_no_sense_is_a_fault() {
        let empty = &[(0, 0x8000, 1), (1, 0x9000, 0)];
        assert_eq!(pin(empty, 0, 1), Err(PinError::Fault { page: 1 }));
        let unaligned = &[(0, 0x8001, 1)];
        assert_eq!(pin(unaligned, 0, 0), Err(PinError::Fault { page: 0 }));
        let wrapping = &[(0, u64::MAX - 0xfff, 2)];
        assert_eq!(pin(wrapping, 0, 1), Err(PinError::Fault { page: 0 }));
        let hole = &[(0, 0x8000, 1)];
        assert_eq!(pin(hole, 0, 1), Err(PinError::Fault { page: 1 }));
    }

    #[test]
    fn the_vmm_sees_valid_copies_only() {
        let guest = Guest::new(Runs(&[]));
        let mut bytes = [0; 2];
        guest.read(0xfffe, &mut bytes).unwrap();
        assert_eq!(bytes, [7, 7]);
        let beyond = PinError::BeyondEnd {
            offset: 0xffff,
            len: 2,
        };
        assert_eq!(guest.read(0xffff, &mut bytes), Err(beyond));
        assert!(guest.read(u64::MAX, &mut bytes).is_err());
        assert_eq!(guest.write(0, &[1]), Err(PinError::ReadOnly));
    }
}
