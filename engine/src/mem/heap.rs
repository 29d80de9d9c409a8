//! Table pages out of the global allocator.

#![expect(
    unsafe_code,
    reason = "uses the raw allocator interface for aligned zeroed pages"
)]

use core::alloc::Layout;
use core::ptr;

use alloc::alloc::{alloc_zeroed, dealloc};
use iopt_formats::{Oa, PageSize};

use crate::mem::{LARGEST, OutOfMemory, SMALLEST, TableMemory};

/// Pages of the global allocator; a page's output address is its host address.
///
/// Fits programs without an operating system, and tests: every page is an allocation of its own.
#[derive(Clone, Copy, Debug, Default)]
pub struct Heap;

fn layout(size: PageSize) -> Option<Layout> {
    let bytes = size.bytes() as usize;
    (SMALLEST..=LARGEST)
        .contains(&size)
        .then(|| Layout::from_size_align(bytes, bytes).ok())?
}

// SAFETY: M1: the allocator returns zeroed memory with the alignment of the layout. M2: the address
// of a page is its exposed pointer, which stays valid until `free`. M3: user addresses of 64-bit
// hosts are below 2^52; `alloc` refuses others.
unsafe impl TableMemory for Heap {
    fn alloc(&self, size: PageSize) -> Result<Oa, OutOfMemory> {
        let layout = layout(size).ok_or(OutOfMemory { size })?;
        // SAFETY: the layout's size is at least 4 KiB, not zero.
        let page = unsafe { alloc_zeroed(layout) };
        let oa = page.expose_provenance() as u64;
        if page.is_null() {
            return Err(OutOfMemory { size });
        }
        if oa >> 52 != 0 {
            // SAFETY: `page` was allocated above with the same layout.
            unsafe { dealloc(page, layout) };
            return Err(OutOfMemory { size });
        }
        Ok(Oa::new(oa))
    }

    unsafe fn free(&self, oa: Oa, size: PageSize) {
        let Some(layout) = layout(size) else { return };
        // SAFETY: by the caller's contract the page came from `alloc_zeroed` with this layout.
        unsafe { dealloc(self.ptr(oa), layout) };
    }

    #[inline]
    fn ptr(&self, oa: Oa) -> *mut u8 {
        ptr::with_exposed_provenance_mut(oa.get() as usize)
    }
}
