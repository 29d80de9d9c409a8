//! Unmapping by unlinking whole tables.
//!
//! A range that covers tables wholly need not clear their items: one store per table takes it out
//! of the tree, and nobody looks at it again but hardware and readers that met it before.

#![expect(unsafe_code, reason = "plain reads of items that the claim covers")]

use iopt_formats::{Format, IovaRange, Level, Oa, PageSize, PageSizes};

use crate::invalidation::{Changes, Gather, Kind};
use crate::mem::TableMemory;
use crate::radix::node::flush_items;
use crate::radix::unmap::is_plain;
use crate::radix::{Mapper, Table, UnmapPolicy, Unmapped};
use crate::reclaim::Operation;
use crate::sync::atomic::{AtomicU64, Ordering, fence};

impl<'t, F: Format, M: TableMemory> Mapper<'t, F, M> {
    /// Unlinks the leaf tables that make up `range`, if they hold what `policy` demands and the
    /// quarantine has room for them; else does nothing.
    #[inline(never)]
    pub(super) fn detach_leaf_tables(
        &mut self,
        range: IovaRange,
        policy: UnmapPolicy,
    ) -> Option<Unmapped> {
        let table = self.table;
        let (iova, last) = (range.start().get(), range.last().get());
        let span = PageSize::from_lg2(F::item_lg2(Level(1)));
        if !span.divides(iova | last.wrapping_add(1)) || !self.claims(iova, last) {
            return None;
        }
        let sizes = if policy == UnmapPolicy::Sparse {
            table.sizes.up_to(span).without(span)
        } else {
            PageSizes::EMPTY.with(F::GRANULE)
        };
        let mut changes = Changes::leaves(range, sizes, Kind::Removed);
        changes.add_table(range, Level(1));
        let operation = if last - iova == span.offset_mask() {
            let (item, leaf_table) = self.leaf_table_to_detach(iova, policy)?;
            let unlink = || table.unlink(item);
            table.quarantine.retire(leaf_table, unlink).ok()?
        } else {
            self.detach_many(range, policy, &mut changes)?
        };
        fence(Ordering::Release);
        Some(Unmapped {
            gather: Gather::new(changes, table.id, operation),
            bytes: range.len_minus_one().saturating_add(1),
        })
    }

    /// Unlinks several leaf tables, and those above them that become empty.
    fn detach_many(
        &mut self,
        range: IovaRange,
        policy: UnmapPolicy,
        changes: &mut Changes,
    ) -> Option<Operation> {
        let table = self.table;
        let (iova, last) = (range.start().get(), range.last().get());
        let span_lg2 = F::item_lg2(Level(1));
        let spans = || (iova >> span_lg2..=last >> span_lg2).map(|index| index << span_lg2);
        for at in spans() {
            self.leaf_table_to_detach(at, policy)?;
        }
        let count = usize::try_from((last - iova) >> span_lg2)
            .ok()?
            .checked_add(1)?;
        let mut retiring = table.quarantine.begin();
        retiring.reserve(count).ok()?;
        for at in spans() {
            // The claim keeps it linked (T4).
            let Some((item, leaf_table)) = self.leaf_table_to_detach(at, UnmapPolicy::Sparse)
            else {
                continue;
            };
            table.unlink(item);
            retiring.push(leaf_table);
        }
        if last - iova >= PageSize::from_lg2(F::item_lg2(Level(2))).offset_mask() {
            // Tables above may have become empty. Those that find no room stay.
            let _ = table.compact_range(range, changes, &mut retiring);
            self.forget();
        }
        Some(retiring.finish())
    }

    /// Returns the leaf table that translates from `iova` on, which is claimed, and the item that
    /// points to it, if an unmap of all of it by `policy` may unlink it.
    fn leaf_table_to_detach(
        &mut self,
        iova: u64,
        policy: UnmapPolicy,
    ) -> Option<(&'t AtomicU64, Oa)> {
        let table = self.table;
        let item = self.large_item(iova, Level(1))?;
        let leaf_table = table.child_oa(item.load(Ordering::Acquire), Level(1))?;
        if policy != UnmapPolicy::Sparse {
            let items = table.node_at(leaf_table).items();
            // SAFETY: T3: the range is claimed, and `&mut self` keeps other uses of the claim
            // away.
            if !unsafe { is_plain(&table.format, items) } {
                return None;
            }
        }
        Some((item, leaf_table))
    }
}

impl<F: Format, M: TableMemory> Table<F, M> {
    /// Takes the table out of the tree that `item` points to: readers that come later find nothing,
    /// those inside stay until they leave (R3).
    fn unlink(&self, item: &AtomicU64) {
        item.store(0, Ordering::Release);
        flush_items(&self.memory, core::slice::from_ref(item));
    }
}
