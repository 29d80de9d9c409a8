//! Y9: the crate `aarch64-paging`, a stage-2 table of four levels.
//!
//! No blocks and no contiguous hint for 4 KiB pages. An unmap maps the range with empty flags;
//! over a whole 2 MiB it drops the leaf table without a look at its entries.

#![expect(
    unsafe_code,
    reason = "the crate's interface to table memory is unsafe"
)]

use core::fmt;
use std::ptr::NonNull;

use aarch64_paging::descriptor::{PhysicalAddress, Stage2Attributes};
use aarch64_paging::paging::{
    Constraints, MemoryRegion, PageTable, RootTable, Stage2, Translation,
};

use crate::pool;
use crate::workload::Tables;

/// A stage-2 table.
pub struct Stage2Tables(RootTable<Stage2, PoolTranslation>);

impl Default for Stage2Tables {
    fn default() -> Self {
        Self(RootTable::new(PoolTranslation, 0, Stage2))
    }
}

impl fmt::Debug for Stage2Tables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Stage2Tables")
            .field(&self.0.to_physical())
            .finish()
    }
}

/// Cached, readable, writable.
fn attributes() -> Stage2Attributes {
    Stage2Attributes::VALID
        | Stage2Attributes::MEMATTR_NORMAL_INNER_WB
        | Stage2Attributes::MEMATTR_NORMAL_OUTER_WB
        | Stage2Attributes::S2AP_ACCESS_RW
        | Stage2Attributes::SH_INNER
        | Stage2Attributes::ACCESS_FLAG
}

const PAGES_ONLY: Constraints =
    Constraints::NO_BLOCK_MAPPINGS.union(Constraints::NO_CONTIGUOUS_HINT);

impl Stage2Tables {
    #[inline(always)]
    fn set(
        &mut self,
        iova: u64,
        oa: u64,
        len: u64,
        flags: Stage2Attributes,
        constraints: Constraints,
    ) {
        let range = MemoryRegion::new(iova as usize, (iova + len) as usize);
        let oa = PhysicalAddress(oa as usize);
        self.0
            .map_range(&range, oa, flags, constraints)
            .expect("the range is inside the table");
    }
}

const fn constraints(size_lg2: u8) -> Constraints {
    if size_lg2 == 12 {
        PAGES_ONLY
    } else {
        Constraints::NO_CONTIGUOUS_HINT
    }
}

impl Tables for Stage2Tables {
    #[inline(always)]
    fn map_page<const SIZE_LG2: u8>(&mut self, iova: u64, oa: u64) {
        self.set(iova, oa, 1 << SIZE_LG2, attributes(), constraints(SIZE_LG2));
    }

    #[inline(always)]
    fn map_run(&mut self, iova: u64, oa: u64, len: u64) {
        self.set(iova, oa, len, attributes(), PAGES_ONLY);
    }

    #[inline(always)]
    fn unmap_page<const SIZE_LG2: u8>(&mut self, iova: u64) {
        let flags = Stage2Attributes::empty();
        self.set(iova, iova, 1 << SIZE_LG2, flags, constraints(SIZE_LG2));
    }

    #[inline(always)]
    fn unmap_run(&mut self, iova: u64, len: u64) {
        self.set(iova, iova, len, Stage2Attributes::empty(), PAGES_ONLY);
    }

    #[inline(always)]
    fn translate(&self, iova: u64) -> Option<u64> {
        let page = iova as usize & !0xfff;
        let mut found = None;
        let range = MemoryRegion::new(page, page + 0x1000);
        self.0
            .walk_range(&range, &mut |_, descriptor, level| {
                if descriptor.is_valid() {
                    let offset_mask = (0x1000_u64 << (9 * (3 - level))) - 1;
                    let oa = descriptor.output_address().0 as u64;
                    found = Some(oa | iova & offset_mask);
                }
                Ok(())
            })
            .expect("the address is inside the table");
        found
    }
}

/// Tables in pages of the pool.
struct PoolTranslation;

impl Translation<Stage2Attributes> for PoolTranslation {
    fn allocate_table(&mut self) -> (NonNull<PageTable<Stage2Attributes>>, PhysicalAddress) {
        let page = pool::take_zeroed().expect("the pool has pages for every workload");
        (page.cast(), PhysicalAddress(pool::oa_of(page) as usize))
    }

    unsafe fn deallocate_table(&mut self, page_table: NonNull<PageTable<Stage2Attributes>>) {
        // SAFETY: by the caller's contract the table came from `allocate_table`, so from the pool,
        // and nobody uses it any more.
        unsafe { pool::give(page_table.cast()) };
    }

    #[inline(always)]
    fn physical_to_virtual(&self, pa: PhysicalAddress) -> NonNull<PageTable<Stage2Attributes>> {
        pool::page_at(pa.0 as u64).cast()
    }
}
