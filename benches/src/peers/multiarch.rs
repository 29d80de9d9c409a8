//! Y8: the crate `page_table_multiarch`, an x86-64 table.
//!
//! Each call opens a cursor, as its invalidation ends with the cursor.

#![expect(unsafe_code, reason = "gives pages back to the pool")]

use core::fmt;

use memory_addr::{PhysAddr, VirtAddr};
use page_table_multiarch::x86_64::X64PageTable;
use page_table_multiarch::{MappingFlags, PageSize, PagingHandler};

use crate::pool;
use crate::workload::Tables;

/// An x86-64 table.
pub struct MultiarchTables(X64PageTable<PoolHandler>);

impl Default for MultiarchTables {
    fn default() -> Self {
        Self(X64PageTable::try_new().expect("the pool has pages for every workload"))
    }
}

impl fmt::Debug for MultiarchTables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MultiarchTables")
            .field(&self.0.root_paddr())
            .finish()
    }
}

const FLAGS: MappingFlags = MappingFlags::READ
    .union(MappingFlags::WRITE)
    .union(MappingFlags::USER);

const fn page_size(size_lg2: u8) -> PageSize {
    match size_lg2 {
        12 => PageSize::Size4K,
        21 => PageSize::Size2M,
        _ => PageSize::Size1G,
    }
}

fn va(iova: u64) -> VirtAddr {
    VirtAddr::from_usize(iova as usize)
}

fn pa(oa: u64) -> PhysAddr {
    PhysAddr::from_usize(oa as usize)
}

impl Tables for MultiarchTables {
    #[inline(always)]
    fn map_page<const SIZE_LG2: u8>(&mut self, iova: u64, oa: u64) {
        self.0
            .cursor()
            .map(va(iova), pa(oa), page_size(SIZE_LG2), FLAGS)
            .expect("the page is not mapped");
    }

    #[inline(always)]
    fn map_run(&mut self, iova: u64, oa: u64, len: u64) {
        let oa_of = |va: VirtAddr| pa(va.as_usize() as u64 - iova + oa);
        self.0
            .cursor()
            .map_region(va(iova), oa_of, len as usize, FLAGS, false)
            .expect("the range is not mapped");
    }

    #[inline(always)]
    fn unmap_page<const SIZE_LG2: u8>(&mut self, iova: u64) {
        self.0.cursor().unmap(va(iova)).expect("the page is mapped");
    }

    #[inline(always)]
    fn unmap_run(&mut self, iova: u64, len: u64) {
        self.0
            .cursor()
            .unmap_region(va(iova), len as usize)
            .expect("the range is mapped");
    }

    #[inline(always)]
    fn translate(&self, iova: u64) -> Option<u64> {
        self.0
            .query(va(iova))
            .ok()
            .map(|(oa, _, _)| oa.as_usize() as u64)
    }
}

/// Tables in pages of the pool; the crate zeroes them itself.
struct PoolHandler;

impl PagingHandler for PoolHandler {
    fn alloc_frames(num: usize, _align: usize) -> Option<PhysAddr> {
        if num != 1 {
            return None;
        }
        pool::take().map(|page| pa(pool::oa_of(page)))
    }

    fn dealloc_frames(paddr: PhysAddr, _num: usize) {
        // SAFETY: the table gives back what `alloc_frames` returned, when it links it no more.
        unsafe { pool::give(pool::page_at(paddr.as_usize() as u64)) };
    }

    #[inline(always)]
    fn phys_to_virt(paddr: PhysAddr) -> VirtAddr {
        VirtAddr::from_mut_ptr_of(pool::pointer_to(paddr.as_usize() as u64))
    }
}
