//! Taking over the arena of another program.

#![expect(unsafe_code, reason = "believes what the caller says of a file")]

use std::io;
use std::os::fd::OwnedFd;

use iopt_formats::{Oa, PageSize};

use crate::mem::chunk::Order;
use crate::mem::heirs::Heirs;
use crate::mem::pool::Content;
use crate::mem::system::Mapping;
use crate::mem::{Adoptable, Arena, ArenaConfig, PageError, SMALLEST};

impl Arena {
    /// Maps `file`, the [`shared_fd`](Self::shared_fd) of another program's arena, and changes
    /// nothing in it: tables stay where they are, and hardware may walk them all the time.
    ///
    /// `config` must ask for the length and the base of the former arena, whose output addresses
    /// stand in the tables; its backing does not matter.
    ///
    /// Every page counts as handed out at first, so that [`alloc`](crate::mem::TableMemory::alloc)
    /// finds none. Adopt what is in use, with [`Table::adopt`](crate::radix::Table::adopt) or page by
    /// page with [`Adoptable::adopt_page`]; then [`free_rest`](Self::free_rest) frees all other
    /// pages. Tables that were adopted may change before that; what they free is free.
    ///
    /// # Errors
    ///
    /// As for [`with_config`](Self::with_config); [`io::ErrorKind::InvalidInput`] if the file is no
    /// memory whose size is sealed or has another length than `config` asks for.
    ///
    /// # Safety
    ///
    /// From now on, and as long as the arena lives, nobody writes to the file but through this arena,
    /// besides hardware that walks the tables and sets accessed and dirty bits. So the former owner
    /// has ended, or will never again use its tables nor drop them: that frees their pages. It leaves
    /// them with [`Table::hand_over`](crate::radix::Table::hand_over).
    pub unsafe fn adopt(file: OwnedFd, config: ArenaConfig) -> io::Result<Self> {
        let len = config.checked_len()?;
        let heirs = Heirs::new((len / SMALLEST.bytes()) as usize);
        let heirs = heirs.ok_or(io::ErrorKind::OutOfMemory)?;
        let mapping = Mapping::adopted(file, len as usize)?;
        // SAFETY: nothing is said of what the memory holds; by the caller's contract nobody else
        // uses it.
        let arena = unsafe { Self::over(mapping, config, Content::Taken) }?;
        Ok(Self {
            heirs: Some(heirs),
            ..arena
        })
    }

    /// Frees the pages of an [adopted](Self::adopt) arena that nobody has adopted, and returns how
    /// many bytes. They are cleared where the former owner has used the memory around them, in steps
    /// of 2 MiB; the rest stays as unbacked as it is.
    ///
    /// Nothing can be adopted afterwards. An adoption that fails while this runs leaves its pages to
    /// the next call.
    ///
    /// # Safety
    ///
    /// Hardware uses none of these pages: every root that it may walk from was adopted, and caches
    /// hold no table that the former owner had unlinked: it had reclaimed them all, or all caches
    /// of translations were invalidated since it stopped.
    pub unsafe fn free_rest(&self) -> u64 {
        let Some(heirs) = &self.heirs else { return 0 };
        let chunk_count = heirs.page_count().div_ceil(super::PAGE_COUNT);
        let chunks = (0..chunk_count).map(|index| heirs.take_rest(index));
        let freed = chunks.filter(|chunk| chunk.count() > 0).map(|chunk| {
            let content = if self.mapping.holds_data(self.pages.offsets(&chunk)) {
                Content::Unknown
            } else {
                Content::Zeroes
            };
            // SAFETY: W1: the pages had no owner since the pool was made, so nobody uses them in
            // this program, and by the caller's contract no hardware does. A file is zero where it
            // holds no data.
            unsafe { self.pages.release(&chunk, content) };
            chunk.count() as u64 * SMALLEST.bytes()
        });
        freed.sum()
    }

    /// Returns the number and the order of the page of `size` at `oa`, if there is such a page.
    fn page_at(&self, oa: Oa, size: PageSize) -> Result<(usize, Order), PageError> {
        let outside = PageError::Outside { oa, size };
        let order = Order::of(size).ok_or(outside)?;
        let offset = oa.get().checked_sub(self.pages.first().get());
        let first = offset.ok_or(outside)? / SMALLEST.bytes();
        let page_count = self.page_count();
        let is_inside = first
            .checked_add(order.page_count() as u64)
            .is_some_and(|end| end <= page_count);
        if !is_inside {
            return Err(outside);
        }
        if !size.divides(oa.get()) {
            return Err(PageError::Unaligned { oa, size });
        }
        Ok((first as usize, order))
    }

    fn page_count(&self) -> u64 {
        self.heirs
            .as_ref()
            .map_or(0, |heirs| heirs.page_count() as u64)
    }
}

// SAFETY: M4: by W1 the page has no other heir. Before the first heir it counted as handed out
// (`Content::Taken`), so the pool does not hand it out, and by the contract of `adopt` nobody else
// writes to it.
unsafe impl Adoptable for Arena {
    fn adopt_page(&self, oa: Oa, size: PageSize) -> Result<(), PageError> {
        let taken = PageError::Taken { oa, size };
        let heirs = self.heirs.as_ref().ok_or(taken)?;
        let (page, order) = self.page_at(oa, size)?;
        if heirs.take(page, order) {
            Ok(())
        } else {
            Err(taken)
        }
    }

    unsafe fn disown_page(&self, oa: Oa, size: PageSize) {
        if let (Some(heirs), Ok((page, order))) = (&self.heirs, self.page_at(oa, size)) {
            heirs.disown(page, order);
        }
    }
}
