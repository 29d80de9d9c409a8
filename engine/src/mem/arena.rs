//! Table pages out of one anonymous mapping.

#![expect(unsafe_code, reason = "hands out pages of the mapping")]

use core::fmt;
use core::ptr::NonNull;
use std::io;

use iopt_formats::{Oa, PageSize};
use memmap2::{MmapMut, MmapOptions};

use crate::mem::free_list::FreeList;
use crate::mem::{LARGEST, OutOfMemory, SMALLEST, TableMemory, Usage, debug_usage};

/// One anonymous mapping that table pages are cut from; memory is used only once touched.
///
/// Its output addresses are the offsets in the mapping plus a base, so that translating one to a
/// pointer is an addition.
pub struct Arena {
    pages: FreeList,
    /// Keeps the memory behind `pages` mapped.
    _map: MmapMut,
}

impl Arena {
    /// Reserves address space for `max_len` bytes of table pages, with output addresses from 1 MiB
    /// on, so that no table has the address 0.
    ///
    /// # Errors
    ///
    /// Fails if the system refuses the mapping, or if `max_len` is 0 or does not fit 52 bits.
    pub fn new(max_len: usize) -> io::Result<Self> {
        Self::with_base(max_len, Oa::new(LARGEST.bytes()))
    }

    /// As [`new`](Self::new), with output addresses from `base` on, a multiple of 1 MiB.
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new), and if `base` is not a multiple of 1 MiB.
    pub fn with_base(max_len: usize, base: Oa) -> io::Result<Self> {
        let refuse = |why| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        let len = max_len as u64 & !SMALLEST.offset_mask();
        if len == 0 {
            return refuse("an arena needs at least one page of 4 KiB");
        }
        if !LARGEST.divides(base.get()) {
            return refuse("the base of an arena must be a multiple of 1 MiB");
        }
        if base.checked_add(len).is_none_or(|end| end.get() > 1 << 52) {
            return refuse("the output addresses of an arena must fit 52 bits");
        }
        // One page of the largest size more, to align the base inside.
        let mapped_len = max_len.checked_add(LARGEST.bytes() as usize);
        let mapped_len = mapped_len.ok_or(io::ErrorKind::InvalidInput)?;
        let mut options = MmapOptions::new();
        options.len(mapped_len);
        if !cfg!(miri) {
            // Address space only; Miri knows no such flag.
            options.no_reserve_swap();
        }
        let mut map = options.map_anon()?;
        let start = map.as_mut_ptr();
        let skipped = start.addr().next_multiple_of(LARGEST.bytes() as usize) - start.addr();
        let first = NonNull::new(start.wrapping_add(skipped)).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: `map` lives as long as the list, nobody else knows the mapping, and it is long
        // enough behind the skipped part. Both addresses are aligned, and anonymous memory is zero.
        let pages = unsafe { FreeList::new(first, len, base, true) };
        Ok(Self { pages, _map: map })
    }

    /// Returns how much is handed out.
    pub fn usage(&self) -> Usage {
        self.pages.usage()
    }
}

// SAFETY: M1: the free list hands out zeroed pages aligned to their size relative to a base that is
// aligned to the largest size in both spaces. M2: `ptr` is an addition to a fixed base of a mapping
// that lives as long as `self`. M3: `with_base` checks the width.
unsafe impl TableMemory for Arena {
    fn alloc(&self, size: PageSize) -> Result<Oa, OutOfMemory> {
        self.pages.alloc(size)
    }

    unsafe fn free(&self, oa: Oa, size: PageSize) {
        // SAFETY: the caller's contract is the same.
        unsafe { self.pages.free(oa, size) };
    }

    #[inline]
    fn ptr(&self, oa: Oa) -> *mut u8 {
        self.pages.ptr(oa.get())
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug_usage(f, "Arena", self.pages.first(), self.usage())
    }
}
