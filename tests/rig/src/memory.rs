//! The memory of a machine, as its processors and as its IOMMU see it.

#![expect(
    unsafe_code,
    reason = "hands out table pages, and reads and writes words as hardware does"
)]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use iopt::mem::{Arena, OutOfMemory, TableMemory};
use iopt_formats::{Oa, PageSize};
use iopt_sim::Ledger;

/// Where it begins: no multiple of what tables map, and within 32 bits.
const BASE: u64 = 0x4130_0000;

/// Memory that holds tables, queues and status words; what devices read and write need not exist.
#[derive(Debug)]
pub struct Physical {
    arena: Arena,
    len: u64,
}

impl Physical {
    /// Creates a memory of `len` bytes, of which those are used that are touched.
    ///
    /// # Errors
    ///
    /// Fails if the system refuses the mapping.
    pub fn new(len: usize) -> io::Result<Self> {
        let arena = Arena::with_base(len, Oa::new(BASE))?;
        let len = arena.usage().len;
        Ok(Self { arena, len })
    }

    /// Returns what table pages can be taken from where no ledger has to know of them.
    pub const fn arena(&self) -> &Arena {
        &self.arena
    }

    /// Takes zeroed memory of `size` that stays as long as the machine does.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub fn take(&self, size: PageSize) -> Result<Oa, OutOfMemory> {
        self.arena.alloc(size)
    }

    /// Returns the `count` words from `oa` on, or `None` if they are not all inside.
    pub fn words(&self, oa: Oa, count: usize) -> Option<&[AtomicU64]> {
        let offset = oa.get().checked_sub(BASE)?;
        let len = (count as u64).checked_mul(8)?;
        let is_inside = offset.is_multiple_of(8) && offset.checked_add(len)? <= self.len;
        #[expect(
            clippy::cast_ptr_alignment,
            reason = "the base and the offset are multiples of 8"
        )]
        let start = is_inside.then(|| self.arena.ptr(oa).cast::<AtomicU64>())?;
        // SAFETY: the arena is one mapping of `len` bytes at `BASE`, mapped as long as `self` lives; the words
        // are inside and aligned. Pages that are in use, as tables or as queues, are accessed by atomics
        // only; the ledger reports an IOMMU that reads any other.
        Some(unsafe { std::slice::from_raw_parts(start, count) })
    }

    fn word(&self, address: u64) -> Option<&AtomicU64> {
        self.words(Oa::new(address), 1)?.first()
    }
}

impl iopt_reference::Memory for Physical {
    fn read64(&self, address: u64) -> Option<u64> {
        let word = self.word(address)?.load(Ordering::Acquire);
        Some(u64::from_le(word))
    }
}

impl iopt_sim::Memory for Physical {
    fn write64(&self, address: u64, word: u64) -> bool {
        let at = self.word(address);
        at.inspect(|at| at.store(word.to_le(), Ordering::Release))
            .is_some()
    }

    fn write32(&self, address: u64, word: u32) -> bool {
        let Some(at) = self
            .word(address & !7)
            .filter(|_| address.is_multiple_of(4))
        else {
            return false;
        };
        let shift = address % 8 * 8;
        let merge = |old: u64| {
            let kept = u64::from_le(old) & !(u64::from(u32::MAX) << shift);
            Some((kept | u64::from(word) << shift).to_le())
        };
        at.fetch_update(Ordering::AcqRel, Ordering::Acquire, merge)
            .is_ok()
    }
}

/// The memory of tables: pages of a [`Physical`], with what the ledger has to know of them.
#[derive(Clone, Debug)]
pub struct Tables {
    memory: Arc<Physical>,
    ledger: Arc<Ledger>,
}

impl Tables {
    pub(crate) const fn new(memory: Arc<Physical>, ledger: Arc<Ledger>) -> Self {
        Self { memory, ledger }
    }
}

// SAFETY: M1 to M3 hold because every page comes from the arena, which upholds them.
unsafe impl TableMemory for Tables {
    fn alloc(&self, size: PageSize) -> Result<Oa, OutOfMemory> {
        let page = self.memory.arena.alloc(size)?;
        self.ledger.table_allocated(page.get(), size.bytes());
        Ok(page)
    }

    unsafe fn free(&self, oa: Oa, size: PageSize) {
        // Before somebody else can have it.
        self.ledger.table_freed(oa.get());
        // SAFETY: the caller's contract is that of the memory behind.
        unsafe { self.memory.arena.free(oa, size) };
    }

    unsafe fn free_zeroed(&self, oa: Oa, size: PageSize) {
        self.ledger.table_freed(oa.get());
        // SAFETY: as for `free`.
        unsafe { self.memory.arena.free_zeroed(oa, size) };
    }

    #[inline]
    fn ptr(&self, oa: Oa) -> *mut u8 {
        self.memory.arena.ptr(oa)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iopt_reference::Memory as _;
    use iopt_sim::Memory as _;

    #[test]
    fn hardware_stores_words_and_halves_where_memory_is() {
        let memory = Physical::new(1 << 20).expect("the tests need some memory");
        let page = memory.take(PageSize::KIB_4).expect("there is room").get();
        assert!(memory.write64(page + 8, 0x1111_2222_3333_4444));
        assert!(memory.write32(page + 12, 7));
        assert_eq!(memory.read64(page + 8), Some(0x7_3333_4444));
        assert!(memory.write32(page + 8, 9));
        assert_eq!(memory.read64(page + 8), Some(0x7_0000_0009));
        for address in [page + 4, BASE - 8, BASE + (1 << 20), u64::MAX - 7] {
            assert_eq!(memory.read64(address), None, "{address:#x}");
            assert!(!memory.write64(address, 1), "{address:#x}");
        }
        assert!(!memory.write32(page + 2, 1));
    }
}
