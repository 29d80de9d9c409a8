//! Merging small entries into larger ones while devices use them.

use alloc::vec::Vec;
use core::ops::ControlFlow;

use iopt_formats::{Entry, Format, Iova, IovaRange, Level, PageSize};

use crate::invalidation::{Changes, Flushed, Invalidate, Kind};
use crate::mem::{OutOfMemory, TableMemory};
use crate::radix::cut::{Live, Swap, soil_item};
use crate::radix::node::{Node, flush_items};
use crate::radix::unmap::clear_items;
use crate::radix::{BreakBeforeMake, CutError, Mapper, Table};
use crate::reclaim::{NoRoom, Retiring};
use crate::sync::atomic::{AtomicU64, Ordering};

impl<F: Format, M: TableMemory> Mapper<'_, F, M> {
    /// Merges entries inside `range` that continue each other, with equal rights, into the largest
    /// entries that fit. A merged entry is dirty if one of its parts was.
    ///
    /// Tables that are not needed any more are unlinked; pass the result to [`Table::reclaim`].
    ///
    /// # Errors
    ///
    /// [`CutError`]; what was merged before stays merged, and the hardware was told of it; tables that
    /// it unlinked go with the next [`Table::reclaim`]. Translations are never lost, but for entries
    /// that hardware failed to flush inside their fault window.
    pub fn merge<I: Invalidate>(
        &mut self,
        range: IovaRange,
        bbm: BreakBeforeMake,
        hardware: &I,
    ) -> Result<Flushed, CutError> {
        if !self.claims(range.start().get(), range.last().get()) {
            return Err(CutError::OutsideClaim {
                range,
                claim: self.range(),
            });
        }
        let mut changes = Changes::none(Kind::Altered);
        let mut retiring = self.table.quarantine.begin();
        let result = self.merge_all(range, bbm, hardware, &mut changes, &mut retiring);
        if !retiring.is_empty() {
            self.forget();
        }
        self.finish(result, changes, retiring.finish(), hardware)
    }

    fn merge_all<I: Invalidate>(
        &self,
        range: IovaRange,
        bbm: BreakBeforeMake,
        hardware: &I,
        changes: &mut Changes,
        retiring: &mut Retiring<'_>,
    ) -> Result<(), CutError> {
        let table = self.table;
        for size in table
            .sizes
            .iter()
            .filter(|&size| Some(size) != table.sizes.smallest())
        {
            let mut next = Some(range.start().get());
            // From entry to entry, so that neither holes nor large leaves cost a step a block.
            while let Some((at, live)) = next
                .filter(|&at| at <= range.last().get())
                .and_then(|at| Some((at, table.next_live(at, range.last().get())?)))
            {
                if live.leaf.size >= size {
                    next = live.last().checked_add(1);
                    continue;
                }
                let Some(start) = first_multiple(at.max(live.start), size) else {
                    break;
                };
                let last = start | size.offset_mask();
                if last > range.last().get() {
                    break;
                }
                if start > live.last() {
                    next = Some(start);
                    continue;
                }
                self.merge_one(start, size, bbm, hardware, changes, retiring)?;
                next = last.checked_add(1);
            }
        }
        Ok(())
    }

    /// Merges what translates the `size` bytes at `start`, if that can be one entry.
    fn merge_one<I: Invalidate>(
        &self,
        start: u64,
        size: PageSize,
        bbm: BreakBeforeMake,
        hardware: &I,
        changes: &mut Changes,
        retiring: &mut Retiring<'_>,
    ) -> Result<(), CutError> {
        let table = self.table;
        // T6: no leaf takes the place of a former root.
        if start == 0 && size > table.largest_at_roots() {
            return Ok(());
        }
        let Some(live) = table.mergeable(start, size) else {
            return Ok(());
        };
        let level = F::level_of(size);
        let slot = table.descend(start, level);
        let (items, _) = slot.span(start, live.last());
        let table_count: usize = items
            .iter()
            .filter_map(|item| table.child(item.load(Ordering::Acquire), level))
            .map(|child| table.count_tables(child, Level(level.0 - 1)))
            .sum();
        let swap = bbm.swap::<F>(start, size)?;
        retiring.reserve(table_count).map_err(|why| match why {
            NoRoom::Limit => CutError::QuarantineFull {
                limit: table.quarantine.limit(),
            },
            NoRoom::Memory => OutOfMemory { size: F::GRANULE }.into(),
        })?;
        for old_size in table.sizes.up_to(size).without(size).iter() {
            changes.add_leaf(live.range(), old_size);
        }
        if table_count == 0 {
            return self.regroup(live, items, size, swap, hardware);
        }
        table.replace_tables(items, live, swap, hardware, changes, retiring)
    }
}

/// Returns the first multiple of `size` at or above `iova`.
fn first_multiple(iova: u64, size: PageSize) -> Option<u64> {
    iova.checked_add(size.offset_mask())
        .map(|at| at & !size.offset_mask())
}

impl<F: Format, M: TableMemory> Table<F, M> {
    /// Returns the one entry that could stand for the `size` bytes at `start`, if several smaller
    /// ones translate all of them to consecutive addresses with the same rights.
    fn mergeable(&self, start: u64, size: PageSize) -> Option<Live> {
        let last = start | size.offset_mask();
        let first = self.next_live(start, start)?;
        if first.leaf.size >= size || !size.divides(first.oa().get()) {
            return None;
        }
        let range = IovaRange::new(Iova::new(start), Iova::new(last))?;
        let mut expected = start;
        let whole = self.try_each_item(range, |level, word, iova, _| {
            let distance = iova - start;
            let follows = iova == expected
                && matches!(self.format.decode(word, level), Ok(Entry::Leaf(leaf))
                    if leaf.prot == first.leaf.prot
                        && leaf.oa.get() | iova & leaf.span.offset_mask()
                            == first.oa().get() + distance);
            expected = iova.wrapping_add(1 << F::item_lg2(level));
            if follows {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        });
        if whole.is_break() || expected != last.wrapping_add(1) {
            return None;
        }
        let mut leaf = first.leaf;
        leaf.size = size;
        Some(Live {
            start,
            level: F::level_of(size),
            leaf,
        })
    }

    /// Replaces the tables in `items`, and leaves between them, by one entry.
    fn replace_tables<I: Invalidate>(
        &self,
        items: &[AtomicU64],
        live: Live,
        swap: Swap,
        hardware: &I,
        changes: &mut Changes,
        retiring: &mut Retiring<'_>,
    ) -> Result<(), CutError> {
        let rule = self.format.dirty_rule();
        let level = live.level;
        let below = Level(level.0 - 1);
        let mut old = Vec::new();
        old.try_reserve_exact(items.len())
            .map_err(|_| OutOfMemory { size: F::GRANULE })?;
        old.extend(items.iter().map(|item| item.load(Ordering::Acquire)));
        // The old tables stay readable in the quarantine, and hardware writes through them until it is
        // flushed.
        let old_dirty = || {
            rule.is_some_and(|rule| {
                old.iter().any(|&word| match self.child(word, level) {
                    Some(child) => self.tree_is_dirty(child, below),
                    None => rule.is_dirty(word),
                })
            })
        };
        let write = |mark: u64, dirty: bool| {
            for (index, item) in items.iter().enumerate() {
                let prot = live.leaf.prot;
                let word = self
                    .format
                    .leaf_item(live.oa(), live.leaf.size, prot, index);
                let word = match rule {
                    Some(rule) if dirty => rule.soil(word),
                    Some(rule) => rule.clean(word),
                    None => word,
                };
                item.store(word | mark, Ordering::Relaxed);
            }
            flush_items(&self.memory, items);
        };
        match swap {
            Swap::Direct => write(0, old_dirty()),
            Swap::Mark => write(F::BLOCK_MARK, old_dirty()),
            Swap::Break => {
                clear_items(items);
                flush_items(&self.memory, items);
            }
        }
        for (index, &word) in old.iter().enumerate() {
            if let Some(oa) = self.child_oa(word, level) {
                let start = live.start + ((index as u64) << F::item_lg2(level));
                self.retire_tree(self.node_at(oa), oa, below, start, changes, retiring);
            }
        }
        self.flush_changes(changes, hardware)?;
        // Nothing walks the old tables any more, so their dirty state is final.
        match (swap, rule) {
            (Swap::Break, _) => write(0, old_dirty()),
            (_, Some(rule)) if old_dirty() => {
                for item in items {
                    soil_item(item, rule);
                }
                flush_items(&self.memory, items);
            }
            _ => {}
        }
        if swap == Swap::Mark {
            for item in items {
                item.fetch_and(!F::BLOCK_MARK, Ordering::Relaxed);
            }
            flush_items(&self.memory, items);
            changes.add_leaf(live.range(), live.leaf.size);
        }
        Ok(())
    }

    /// Returns whether a leaf of a tree is dirty.
    fn tree_is_dirty(&self, node: Node<'_, F>, level: Level) -> bool {
        let Some(rule) = self.format.dirty_rule() else {
            return false;
        };
        node.items().iter().any(|item| {
            let word = item.load(Ordering::Relaxed);
            match level
                .below()
                .and_then(|below| Some((self.child(word, level)?, below)))
            {
                Some((child, below)) => self.tree_is_dirty(child, below),
                None => rule.is_dirty(word),
            }
        })
    }
}
