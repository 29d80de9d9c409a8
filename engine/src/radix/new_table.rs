//! Mapping the first pages of a leaf table.

#![expect(unsafe_code, reason = "gives a page back that was never linked")]

use iopt_formats::{Format, IovaRange, Level, Oa, Prot};

use crate::invalidation::MapSync;
use crate::mem::TableMemory;
use crate::radix::alloc_page;
use crate::radix::fill::store_items;
use crate::radix::map::Piece;
use crate::radix::unmap::clear_items;
use crate::radix::{MapError, Mapper};
use crate::sync::atomic::{AtomicU64, Ordering, fence};

impl<F: Format, M: TableMemory> Mapper<'_, F, M> {
    /// Maps a run of ordinary pages whose leaf table is not at hand behind `item`, of level 1: most
    /// often because it is missing.
    ///
    /// Nobody sees the table before it is linked, so it is filled first and published once, by one
    /// compare-exchange.
    #[inline(never)]
    pub(super) fn map_new_table(
        &mut self,
        item: &AtomicU64,
        range: IovaRange,
        oa: Oa,
        prot: Prot,
    ) -> Result<MapSync, MapError> {
        let table = self.table;
        // Walkers that do not snoop need more steps.
        if M::SNOOPED
            && item.load(Ordering::Relaxed) == 0
            && self.link_filled(item, Piece { range, oa }, prot)
        {
            fence(Ordering::Release);
            return Ok(MapSync::none(table.id));
        }
        self.map_run(range, oa, prot)
    }

    /// Links a new table with the leaves of `piece`, or does nothing and returns false.
    fn link_filled(&self, item: &AtomicU64, piece: Piece, prot: Prot) -> bool {
        let table = self.table;
        let (iova, last) = (piece.range.start().get(), piece.range.last().get());
        // Without memory the general way says so.
        let Ok(page) = alloc_page(&table.memory, &table.format, F::GRANULE) else {
            return false;
        };
        let node = table.node_at(page);
        let first = node.index(iova, Level::LEAF);
        let count = ((last - iova) >> F::GRANULE.lg2()) as usize + 1;
        let step = table.format.encode_oa(Oa::new(F::GRANULE.bytes()));
        let word = table.attributes[0][prot.index()] | table.format.encode_oa(piece.oa);
        let items = &node.items()[first..first + count];
        store_items(items, word, step);
        let link = table.format.encode_table(page, Level(1));
        let linked = item.compare_exchange(0, link, Ordering::Release, Ordering::Relaxed);
        if linked.is_ok() {
            return true;
        }
        // A neighbour's table came first.
        clear_items(items);
        // SAFETY: the page was allocated above with this size and never linked, and holds zeroes
        // again.
        unsafe { table.memory.free_zeroed(page, F::GRANULE) };
        false
    }
}
