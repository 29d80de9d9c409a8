//! Table pages out of memory that the caller provides.

#![expect(unsafe_code, reason = "the caller vouches for the memory")]

use core::fmt;
use core::ptr::NonNull;

use iopt_formats::{Oa, PageSize};

use crate::mem::pool::{Content, Pool};
use crate::mem::{LARGEST, OutOfMemory, SMALLEST, TableMemory, Usage, debug_usage};

/// A span of memory of the caller's whose pages have consecutive output addresses: guest memory,
/// device memory, or a buffer mapped in a nesting parent.
pub struct Region {
    pages: Pool,
}

/// Why a [`Region`] cannot be made.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RegionError {
    /// Pointer and output address must be equal modulo 1 MiB, so that a page aligned in one is
    /// aligned in the other, and both multiples of 4 KiB.
    #[error("pointer offset {ptr_offset:#x} and output address {base} differ modulo 1 MiB")]
    Unaligned {
        /// The pointer modulo 1 MiB.
        ptr_offset: u64,
        /// The output address.
        base: Oa,
    },
    /// The global allocator has no room for two bits a page.
    #[error("no memory to manage {len:#x} bytes")]
    NoMemory {
        /// Bytes of the region.
        len: u64,
    },
    /// The region passes the 52nd address bit.
    #[error("{len:#x} bytes from output address {base} do not fit 52 bits")]
    TooWide {
        /// First output address.
        base: Oa,
        /// Bytes of the region.
        len: u64,
    },
}

impl Region {
    /// Creates a memory out of `len` bytes at `ptr`, whose first byte has the output address
    /// `base`. Both must be multiples of 1 MiB; a remainder of `len` below 4 KiB is not used.
    ///
    /// # Errors
    ///
    /// [`RegionError`] says which rule the arguments break.
    ///
    /// # Safety
    ///
    /// `ptr` is valid for reads and writes of `len` bytes for as long as the region lives, nobody
    /// else touches them, and walkers find the byte at `ptr + n` under `base + n`.
    pub unsafe fn new(ptr: NonNull<u8>, len: u64, base: Oa) -> Result<Self, RegionError> {
        let ptr_offset = ptr.as_ptr().addr() as u64 & LARGEST.offset_mask();
        if ptr_offset != 0 || !LARGEST.divides(base.get()) {
            return Err(RegionError::Unaligned { ptr_offset, base });
        }
        let len = len & !SMALLEST.offset_mask();
        if base.checked_add(len).is_none_or(|end| end.get() > 1 << 52) {
            return Err(RegionError::TooWide { base, len });
        }
        // SAFETY: the caller vouches for the memory; alignment was checked; nothing is assumed
        // about the content.
        let pages = unsafe { Pool::new(ptr, len, base, Content::Unknown) };
        let pages = pages.ok_or(RegionError::NoMemory { len })?;
        Ok(Self { pages })
    }

    /// Returns how much is handed out.
    pub fn usage(&self) -> Usage {
        self.pages.usage()
    }
}

// SAFETY: M1: the pool hands out zeroed pages aligned to their size relative to a base that is
// aligned to the largest size in both spaces. M2: `ptr` is an addition to a fixed base. M3: `new`
// checks the width.
unsafe impl TableMemory for Region {
    #[inline]
    fn alloc(&self, size: PageSize) -> Result<Oa, OutOfMemory> {
        self.pages.alloc(size)
    }

    #[inline]
    unsafe fn free(&self, oa: Oa, size: PageSize) {
        // SAFETY: the caller's contract is the same.
        unsafe { self.pages.free(oa, size) };
    }

    #[inline]
    unsafe fn free_zeroed(&self, oa: Oa, size: PageSize) {
        // SAFETY: the caller's contract is the same.
        unsafe { self.pages.free_zeroed(oa, size) };
    }

    #[inline]
    fn ptr(&self, oa: Oa) -> *mut u8 {
        self.pages.ptr(oa)
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug_usage(f, "Region", self.pages.first(), self.usage())
    }
}
