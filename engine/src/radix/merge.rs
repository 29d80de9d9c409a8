//! Merging small entries into larger ones while devices use them.

use alloc::vec::Vec;
use core::ops::ControlFlow;

use iopt_formats::{Entry, Format, Iova, IovaRange, Level, PageSize};

use crate::invalidation::{Changes, Flushed, Gather, Invalidate, RetiredSpan};
use crate::mem::{OutOfMemory, TableMemory};
use crate::radix::cut::{Live, Swap, soil_item};
use crate::radix::node::{Node, flush_items};
use crate::radix::{BreakBeforeMake, CutError, Mapper, Table};
use crate::sync::atomic::{AtomicU64, Ordering, fence};

impl<F: Format, M: TableMemory> Mapper<'_, F, M> {
    /// Merges entries inside `range` that continue each other, with equal rights, into the largest
    /// entries that fit. A merged entry is dirty if one of its parts was.
    ///
    /// Tables that are not needed any more are unlinked; pass the result to [`Table::reclaim`].
    ///
    /// # Errors
    ///
    /// [`CutError`]; what was merged before stays merged. Translations are never lost, but for
    /// entries that hardware failed to flush inside their fault window.
    pub fn merge<I: Invalidate>(
        &mut self,
        range: IovaRange,
        bbm: BreakBeforeMake,
        hardware: &I,
    ) -> Result<Flushed, CutError> {
        let table = self.table;
        if !self.claims(range.start().get(), range.last().get()) {
            return Err(CutError::OutsideClaim {
                range,
                claim: self.range(),
            });
        }
        let mut changes = Changes::NONE;
        let mut retired = RetiredSpan::NONE;
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
                retired = retired.hull(self.merge_one(start, size, bbm, hardware, &mut changes)?);
                next = last.checked_add(1);
            }
        }
        fence(Ordering::Release);
        if retired != RetiredSpan::NONE {
            self.forget();
        }
        Ok(Gather::new(changes, table.id, retired).sync(hardware)?)
    }

    /// Merges what translates the `size` bytes at `start`, if that can be one entry.
    fn merge_one<I: Invalidate>(
        &self,
        start: u64,
        size: PageSize,
        bbm: BreakBeforeMake,
        hardware: &I,
        changes: &mut Changes,
    ) -> Result<RetiredSpan, CutError> {
        let table = self.table;
        let Some(live) = table.mergeable(start, size) else {
            return Ok(RetiredSpan::NONE);
        };
        let old_sizes = table.sizes.up_to(size).without(size);
        let span = live.range();
        let level = F::level_of(size);
        let slot = table.descend(start, level);
        let (items, _) = slot.span(start, live.last());
        let has_tables = items
            .iter()
            .any(|item| table.child(item.load(Ordering::Acquire), level).is_some());
        let swap = bbm.swap::<F>(start, size)?;
        let done = if has_tables {
            if !table.reserve_limbo(items.len()) {
                return Err(OutOfMemory { size: F::GRANULE }.into());
            }
            table.replace_tables(items, live, swap, hardware, changes)?
        } else {
            self.regroup(live, items, size, swap, hardware)?;
            RetiredSpan::NONE
        };
        for size in old_sizes.iter() {
            changes.add_leaf(span, size);
        }
        Ok(done)
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
    ) -> Result<RetiredSpan, CutError> {
        let rule = self.format.dirty_rule();
        let level = live.level;
        let old: Vec<u64> = {
            let mut words = Vec::new();
            words
                .try_reserve_exact(items.len())
                .map_err(|_| OutOfMemory { size: F::GRANULE })?;
            words.extend(items.iter().map(|item| item.load(Ordering::Acquire)));
            words
        };
        let old_dirty = || {
            rule.is_some_and(|rule| {
                old.iter().any(|&word| match self.child(word, level) {
                    Some(child) => self.tree_is_dirty(child, Level(level.0 - 1)),
                    None => rule.is_dirty(word),
                })
            })
        };
        let write = |mark: u64, dirty: bool| {
            for (index, item) in items.iter().enumerate() {
                let word = self
                    .format
                    .leaf_item(live.oa(), live.leaf.size, live.leaf.prot, index);
                let word = match rule {
                    Some(rule) if dirty => rule.soil(word),
                    Some(rule) => rule.clean(word),
                    None => word,
                };
                item.store(word | mark, Ordering::Relaxed);
            }
            flush_items(&self.memory, items);
        };
        let mut tables = Changes::NONE;
        let mut retired = RetiredSpan::NONE;
        let flush = |tables: &Changes| {
            fence(Ordering::Release);
            let mut all = *tables;
            for size in self.sizes.up_to(live.leaf.size).iter() {
                all.add_leaf(live.range(), size);
            }
            Gather::new(all, self.id, RetiredSpan::NONE).sync(hardware)
        };
        tables.add_table(live.range(), level);
        match swap {
            Swap::Direct => write(0, old_dirty()),
            Swap::Mark => write(F::BLOCK_MARK, old_dirty()),
            Swap::Break => crate::radix::unmap::clear_items(items),
        }
        flush(&tables)?;
        // No walk uses the old entries any more, so their dirty state is final.
        match (swap, rule) {
            (Swap::Break, _) => write(0, old_dirty()),
            (_, Some(rule)) if old_dirty() => items.iter().for_each(|item| soil_item(item, rule)),
            _ => {}
        }
        if swap == Swap::Mark {
            for item in items {
                item.fetch_and(!F::BLOCK_MARK, Ordering::Relaxed);
            }
            flush_items(&self.memory, items);
            flush(&Changes::NONE)?;
        }
        for (index, &word) in old.iter().enumerate() {
            if let Some(oa) = self.child_oa(word, level) {
                let start = live.start + ((index as u64) << F::item_lg2(level));
                let below = Level(level.0 - 1);
                self.retire_tree(self.node_at(oa), oa, below, start, changes, &mut retired);
            }
        }
        Ok(retired)
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
