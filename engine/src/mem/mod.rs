//! Memory of the tables.
//!
//! A table lives in one page of a [`TableMemory`], which knows two addresses of it: the pointer
//! that this program uses and the output address (OA) that a parent entry holds, whatever the
//! walker needs there: physical, guest-physical, or an IOVA of a nesting parent.
//!
//! | type | memory | OA |
//! |---|---|---|
//! | [`Arena`] | one mapping, private or shared (feature `std`) | a base of your choice plus the offset |
//! | [`Region`] | memory that you provide | a base of your choice plus the offset |
//! | [`Heap`] | the global allocator | the host address |
//! | [`NonSnooped`] | any of these | cache lines are written back for walkers that do not snoop |
//! | [`Limited`] | any of these | refuses after a number of allocations, for tests |

#![expect(unsafe_code, reason = "the trait that implementors vouch for")]

mod adopt;
#[cfg(feature = "std")]
mod arena;
mod bits;
mod chunk;
mod frames;
mod heap;
#[cfg(all(feature = "std", target_os = "linux"))]
mod heirs;
mod limited;
mod listing;
mod non_snooped;
mod pool;
mod region;
mod stock;
#[cfg(feature = "std")]
mod system;

#[cfg(all(test, loom))]
mod models;

#[cfg(test)]
#[cfg(not(loom))]
mod tests;

use core::fmt;

use iopt_formats::{Oa, PageSize};

pub use crate::mem::adopt::{Adoptable, PageError};
#[cfg(feature = "std")]
pub use crate::mem::arena::{Arena, ArenaConfig, Backing, HugePages};
pub use crate::mem::heap::Heap;
pub use crate::mem::limited::Limited;
pub use crate::mem::non_snooped::{FlushLine, NonSnooped};
pub use crate::mem::region::{Region, RegionError};

/// Bytes of a cache line, the unit in which a table is written back.
pub const LINE_LEN: usize = 64;

/// The smallest page a memory hands out.
pub(crate) const SMALLEST: PageSize = PageSize::KIB_4;

/// The largest page a memory hands out: sixteen concatenated 64 KiB tables.
pub(crate) const LARGEST: PageSize = PageSize::from_lg2(20);

/// No page of the requested size is left, or none at an address that a table's entries can hold.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("no table page of {size} is left at an address that entries can hold")]
pub struct OutOfMemory {
    /// The size asked for.
    pub size: PageSize,
}

/// Where table pages come from.
///
/// # Safety
///
/// The engine dereferences what [`ptr`](Self::ptr) returns. An implementor guarantees:
///
/// - **M1** (fresh): [`alloc`](Self::alloc) returns a page that is aligned to its size in both
///   address spaces, holds only zeroes, and belongs to nobody else until it is freed.
/// - **M2** (stable): `ptr` of an address inside an allocated page is valid for reads and writes
///   of the rest of that page, is the same at every call, and moves with the address.
/// - **M3** (width): no bit of a page's OA is lost in 52 bits.
pub unsafe trait TableMemory: Send + Sync {
    /// Whether hardware walks see what this program's caches hold.
    const SNOOPED: bool = true;

    /// Takes a zeroed page of `size`, a power of two from 4 KiB to 1 MiB.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`] if no page of that size is left or the size is out of range.
    fn alloc(&self, size: PageSize) -> Result<Oa, OutOfMemory>;

    /// Gives a page back. Never fails and never allocates.
    ///
    /// # Safety
    ///
    /// `oa` and `size` are those of an earlier [`alloc`](Self::alloc) on this memory, the page is
    /// freed once, and neither this program nor hardware uses it any more.
    unsafe fn free(&self, oa: Oa, size: PageSize);

    /// As [`free`](Self::free), for a page that holds only zeroes again: a memory that keeps its
    /// free pages zeroed need not clear this one.
    ///
    /// # Safety
    ///
    /// As for [`free`](Self::free), and every byte of the page is 0.
    unsafe fn free_zeroed(&self, oa: Oa, size: PageSize) {
        // SAFETY: the caller's contract includes that of `free`.
        unsafe { self.free(oa, size) };
    }

    /// Returns the pointer to the byte at `oa`, which lies in an allocated page.
    fn ptr(&self, oa: Oa) -> *mut u8;

    /// Writes the cache line at `line` back to memory; called only if not
    /// [`SNOOPED`](Self::SNOOPED).
    fn flush_line(&self, line: *const u8) {
        let _ = line;
    }
}

macro_rules! forward {
    ($($pointer:ty),+) => {$(
        // SAFETY: M1 to M3 hold because every call reaches the same `M`, which upholds them.
        unsafe impl<M: TableMemory> TableMemory for $pointer {
            const SNOOPED: bool = M::SNOOPED;

            fn alloc(&self, size: PageSize) -> Result<Oa, OutOfMemory> {
                (**self).alloc(size)
            }

            unsafe fn free(&self, oa: Oa, size: PageSize) {
                // SAFETY: the caller's contract is that of the memory behind the pointer.
                unsafe { (**self).free(oa, size) }
            }

            unsafe fn free_zeroed(&self, oa: Oa, size: PageSize) {
                // SAFETY: as for `free`.
                unsafe { (**self).free_zeroed(oa, size) }
            }

            #[inline]
            fn ptr(&self, oa: Oa) -> *mut u8 {
                (**self).ptr(oa)
            }

            fn flush_line(&self, line: *const u8) {
                (**self).flush_line(line);
            }
        }
    )+};
}

forward!(&M, alloc::sync::Arc<M>);

/// Formats a memory by what it has handed out.
fn debug_usage(f: &mut fmt::Formatter<'_>, name: &str, base: Oa, usage: Usage) -> fmt::Result {
    f.debug_struct(name)
        .field("base", &base)
        .field("len", &usage.len)
        .field("used_len", &usage.used_len)
        .finish_non_exhaustive()
}

/// How much of a memory is in use.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Usage {
    /// Bytes that can be handed out at most.
    pub len: u64,
    /// Bytes in pages that are handed out now.
    pub used_len: u64,
    /// Bytes in free pages that threads keep at hand, up to 2 MiB each; others take them when
    /// nothing else is left.
    pub held_len: u64,
    /// Bytes from the start that have been drawn from, in steps of 2 MiB: nothing behind was ever
    /// used. It never falls.
    pub reached_len: u64,
}
