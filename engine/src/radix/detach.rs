//! Unmapping by unlinking whole tables.
//!
//! A range that covers tables wholly need not clear their items: one store per table takes it out
//! of the tree, and nobody looks at it again but hardware and readers that met it before.

#![expect(unsafe_code, reason = "plain reads of items that the claim covers")]

use iopt_formats::{Format, IovaRange, Level, PageSize, PageSizes};

use crate::invalidation::{Changes, Gather, Kind};
use crate::mem::TableMemory;
use crate::radix::node::flush_items;
use crate::radix::unmap::is_plain;
use crate::radix::{Mapper, Unmapped};
use crate::sync::atomic::{Ordering, fence};

impl<F: Format, M: TableMemory> Mapper<'_, F, M> {
    /// Unlinks the leaf tables that make up `range`, if all of their items are single pages and
    /// the quarantine has room for them; else does nothing.
    #[inline(never)]
    pub(super) fn detach_leaf_tables(&mut self, range: IovaRange) -> Option<Unmapped> {
        let table = self.table;
        let (iova, last) = (range.start().get(), range.last().get());
        let span = PageSize::from_lg2(F::item_lg2(Level(1)));
        if !span.divides(iova | last.wrapping_add(1)) || !self.claims(iova, last) {
            return None;
        }
        let spans = || (iova >> span.lg2()..=last >> span.lg2()).map(|index| index << span.lg2());
        for at in spans() {
            let (items, _) = self.leaf_table(at)?.span(at, at | span.offset_mask());
            // SAFETY: T3: the range is claimed, and `&mut self` keeps other uses of the claim
            // away.
            if !unsafe { is_plain(&table.format, items) } {
                return None;
            }
        }
        let count = usize::try_from((last - iova) >> span.lg2())
            .ok()?
            .checked_add(1)?;
        let mut retiring = table.quarantine.begin();
        retiring.reserve(count).ok()?;
        for at in spans() {
            let item = self.large_item(at, Level(1));
            let item = item.expect("the leaf table was found through it");
            let leaf_table = table.child_oa(item.load(Ordering::Acquire), Level(1));
            let leaf_table = leaf_table.expect("the claim keeps it linked (T4)");
            // Readers that come later find nothing; those inside stay until they leave (R3).
            item.store(0, Ordering::Release);
            flush_items(&table.memory, core::slice::from_ref(item));
            retiring.push(leaf_table);
        }
        let sizes = PageSizes::EMPTY.with(F::GRANULE);
        let mut changes = Changes::leaves(range, sizes, Kind::Removed);
        changes.add_table(range, Level(1));
        if last - iova >= PageSize::from_lg2(F::item_lg2(Level(2))).offset_mask() {
            // Tables above may have become empty. Those that find no room stay.
            let _ = table.compact_range(range, &mut changes, &mut retiring);
            self.forget();
        }
        fence(Ordering::Release);
        Some(Unmapped {
            gather: Gather::new(changes, table.id, retiring.finish()),
            bytes: range.len_minus_one().saturating_add(1),
        })
    }
}
