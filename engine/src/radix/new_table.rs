//! Mapping the first pages of a leaf table.

#![expect(unsafe_code, reason = "gives a page back that was never linked")]

use iopt_formats::{Format, Level, Oa};

use crate::mem::TableMemory;
use crate::radix::Mapper;
use crate::radix::alloc_page;
use crate::radix::fill::store_items;
use crate::radix::map::Piece;
use crate::sync::atomic::{Ordering, fence};

impl<F: Format, M: TableMemory> Mapper<'_, F, M> {
    /// Maps a run of pages in a leaf table that is not there yet, below a path that is; or does
    /// nothing and returns false.
    ///
    /// Nobody sees the table before it is linked, so it is filled first and published once, by one
    /// compare-exchange.
    pub(super) fn map_new_table(&mut self, piece: Piece, attributes: u64) -> bool {
        let table = self.table;
        let (iova, last) = (piece.range.start().get(), piece.range.last().get());
        // Walkers that do not snoop need more steps.
        if !M::SNOOPED {
            return false;
        }
        let Some(item) = self.large_item(iova, Level(1)) else {
            return false;
        };
        if item.load(Ordering::Relaxed) != 0 {
            return false;
        }
        // Without memory the general way says so.
        let Ok(page) = alloc_page(&table.memory, &table.format, F::GRANULE) else {
            return false;
        };
        let node = table.node_at(page);
        let first = node.index(iova, Level::LEAF);
        let count = ((last - iova) >> F::GRANULE.lg2()) as usize + 1;
        let step = table.format.encode_oa(Oa::new(F::GRANULE.bytes()));
        let word = attributes | table.format.encode_oa(piece.oa);
        let items = &node.items()[first..first + count];
        store_items(items, word, step);
        let link = table.format.encode_table(page, Level(1));
        let linked = item.compare_exchange(0, link, Ordering::Release, Ordering::Relaxed);
        if linked.is_ok() {
            table.page_count.add(1);
            fence(Ordering::Release);
            return true;
        }
        // A neighbour's table came first.
        store_items(items, 0, 0);
        // SAFETY: the page was allocated above with this size and never linked, and holds zeroes
        // again.
        unsafe { table.memory.free_zeroed(page, F::GRANULE) };
        false
    }
}
