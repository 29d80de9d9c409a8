//! Y10: the crate `x86_64`, an `OffsetPageTable`.
//!
//! It has no call for a range, so runs are loops over pages.

#![expect(unsafe_code, reason = "the crate's mapping calls are unsafe")]

use std::ptr::NonNull;

use x86_64::structures::paging::mapper::{CleanUp as _, Mapper as _, Translate as _};
use x86_64::structures::paging::{
    FrameAllocator, FrameDeallocator, OffsetPageTable, Page, PageTable, PageTableFlags, PhysFrame,
    Size1GiB, Size2MiB, Size4KiB,
};
use x86_64::{PhysAddr, VirtAddr};

use crate::pool;
use crate::workload::Tables;

/// An x86-64 table.
#[derive(Debug)]
pub struct OffsetTables {
    table: OffsetPageTable<'static>,
    root: NonNull<u8>,
}

const FLAGS: PageTableFlags = PageTableFlags::PRESENT
    .union(PageTableFlags::WRITABLE)
    .union(PageTableFlags::USER_ACCESSIBLE)
    .union(PageTableFlags::NO_EXECUTE);

/// Rights of the entries that point to tables.
const TABLE_FLAGS: PageTableFlags = PageTableFlags::PRESENT
    .union(PageTableFlags::WRITABLE)
    .union(PageTableFlags::USER_ACCESSIBLE);

impl Default for OffsetTables {
    fn default() -> Self {
        let root = pool::take_zeroed().expect("the pool has pages for every workload");
        // SAFETY: the page is ours until `drop` gives it back, aligned, and zeroes are an empty
        // table.
        let table = unsafe { root.cast::<PageTable>().as_mut() };
        let offset = VirtAddr::from_ptr(pool::pointer_to(0));
        // SAFETY: tables come from the pool, whose pages lie at their address plus this constant.
        let table = unsafe { OffsetPageTable::new(table, offset) };
        Self { table, root }
    }
}

impl Drop for OffsetTables {
    fn drop(&mut self) {
        // SAFETY: workloads unmap all they map, so every table is empty and nothing walks them.
        unsafe { self.table.clean_up(&mut PoolFrames) };
        // SAFETY: `default` took the page from the pool and `table` is not used after this.
        unsafe { pool::give(self.root) };
    }
}

macro_rules! map_one {
    ($self:expr, $size:ty, $iova:expr, $oa:expr) => {{
        let page = Page::<$size>::containing_address(VirtAddr::new($iova));
        let frame = PhysFrame::<$size>::containing_address(PhysAddr::new($oa));
        let frames = &mut PoolFrames;
        // SAFETY: no processor uses the table, so nothing is aliased.
        unsafe {
            $self
                .table
                .map_to_with_table_flags(page, frame, FLAGS, TABLE_FLAGS, frames)
        }
        .expect("the page is not mapped")
        .ignore();
    }};
}

macro_rules! unmap_one {
    ($self:expr, $size:ty, $iova:expr) => {{
        let page = Page::<$size>::containing_address(VirtAddr::new($iova));
        $self
            .table
            .unmap(page)
            .expect("the page is mapped")
            .1
            .ignore();
    }};
}

impl Tables for OffsetTables {
    #[inline(always)]
    fn map_page<const SIZE_LG2: u8>(&mut self, iova: u64, oa: u64) {
        match SIZE_LG2 {
            12 => map_one!(self, Size4KiB, iova, oa),
            21 => map_one!(self, Size2MiB, iova, oa),
            _ => map_one!(self, Size1GiB, iova, oa),
        }
    }

    #[inline(always)]
    fn map_run(&mut self, iova: u64, oa: u64, len: u64) {
        for offset in (0..len).step_by(0x1000) {
            map_one!(self, Size4KiB, iova + offset, oa + offset);
        }
    }

    #[inline(always)]
    fn unmap_page<const SIZE_LG2: u8>(&mut self, iova: u64) {
        match SIZE_LG2 {
            12 => unmap_one!(self, Size4KiB, iova),
            21 => unmap_one!(self, Size2MiB, iova),
            _ => unmap_one!(self, Size1GiB, iova),
        }
    }

    #[inline(always)]
    fn unmap_run(&mut self, iova: u64, len: u64) {
        for offset in (0..len).step_by(0x1000) {
            unmap_one!(self, Size4KiB, iova + offset);
        }
    }

    #[inline(always)]
    fn translate(&self, iova: u64) -> Option<u64> {
        self.table
            .translate_addr(VirtAddr::new(iova))
            .map(PhysAddr::as_u64)
    }
}

/// Tables in pages of the pool; the crate zeroes them itself.
struct PoolFrames;

// SAFETY: the pool hands each page to one owner.
unsafe impl FrameAllocator<Size4KiB> for PoolFrames {
    fn allocate_frame(&mut self) -> Option<PhysFrame> {
        let oa = pool::oa_of(pool::take()?);
        Some(PhysFrame::containing_address(PhysAddr::new(oa)))
    }
}

impl FrameDeallocator<Size4KiB> for PoolFrames {
    unsafe fn deallocate_frame(&mut self, frame: PhysFrame) {
        // SAFETY: by the caller's contract nothing uses the frame, which `allocate_frame` made.
        unsafe { pool::give(pool::page_at(frame.start_address().as_u64())) };
    }
}
