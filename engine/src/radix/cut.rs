//! Cutting large entries into smaller ones while devices use them.

use core::ops::ControlFlow;

use iopt_formats::{
    DirtyRule, Entry, Format, Iova, IovaRange, Leaf, Level, Oa, PageSize, PageSizes, Prot,
};

use crate::invalidation::{Changes, Flushed, Gather, Invalidate, Kind};
use crate::mem::{OutOfMemory, TableMemory};
use crate::radix::node::{Node, flush_items};
use crate::radix::protect::replace_item;
use crate::radix::supply::Supply;
use crate::radix::{CutError, Mapper, Table};
use crate::reclaim::Operation;
use crate::sync::atomic::{AtomicU64, Ordering, fence};

/// What the instance allows when a valid entry changes its size. Formats that know no such rule
/// ([`Format::BREAK_BEFORE_MAKE`] is false) are always changed hitless.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum BreakBeforeMake {
    /// The entry must be made invalid and flushed before the new one is written (ARM `BBML` 0).
    Required(FaultWindow),
    /// A marked block may change its size (ARM `BBML` 1): the mark, nT, keeps it out of caches
    /// that could hold both sizes.
    Marked,
    /// One store, then a flush (ARM `BBML` 2).
    Hitless,
}

/// Whether devices may meet an unmapped entry for a moment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FaultWindow {
    /// No: refuse instead.
    Refuse,
    /// Yes: accesses between the invalidation and the new entry fault.
    Allow,
}

/// How one live entry changes.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(super) enum Swap {
    Break,
    Mark,
    Direct,
}

impl BreakBeforeMake {
    /// Returns how an entry of `size` at `iova` changes.
    pub(super) fn swap<F: Format>(self, iova: u64, size: PageSize) -> Result<Swap, CutError> {
        match self {
            _ if !F::BREAK_BEFORE_MAKE => Ok(Swap::Direct),
            Self::Hitless => Ok(Swap::Direct),
            Self::Marked if F::BLOCK_MARK != 0 => Ok(Swap::Mark),
            Self::Required(FaultWindow::Allow) => Ok(Swap::Break),
            Self::Required(FaultWindow::Refuse) | Self::Marked => Err(CutError::NeedsFaultWindow {
                iova: Iova::new(iova),
                size,
            }),
        }
    }
}

/// A live entry.
#[derive(Clone, Copy)]
pub(super) struct Live {
    pub(super) start: u64,
    pub(super) level: Level,
    pub(super) leaf: Leaf,
}

impl Live {
    pub(super) fn last(&self) -> u64 {
        self.start | self.leaf.size.offset_mask()
    }

    pub(super) fn range(&self) -> IovaRange {
        IovaRange::new(Iova::new(self.start), Iova::new(self.last()))
            .expect("an entry does not wrap")
    }

    /// Returns the output address of the entry's first byte.
    pub(super) fn oa(&self) -> Oa {
        Oa::new(self.leaf.oa.get() & !self.leaf.size.offset_mask())
    }
}

impl<F: Format, M: TableMemory> Mapper<'_, F, M> {
    /// Cuts every entry larger than `size` that translates a part of `range` into entries of at
    /// most `size`. Translations, rights and dirty state stay; devices see no gap unless `bbm`
    /// allows a fault window.
    ///
    /// Entries reaching out of the range are cut whole; they must lie inside the claim.
    ///
    /// # Errors
    ///
    /// [`CutError`]; entries below the one that failed are cut, and the hardware was told of them.
    /// Translations are never lost, but for an entry that hardware failed to flush inside its fault
    /// window.
    pub fn cut<I: Invalidate>(
        &mut self,
        range: IovaRange,
        size: PageSize,
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
        if table.sizes.up_to(size).is_empty() {
            return Err(CutError::NoSize { size });
        }
        let mut changes = Changes::none(Kind::Altered);
        let result = self.cut_all(range, size, bbm, hardware, &mut changes);
        self.finish(result, changes, Operation::NONE, hardware)
    }

    fn cut_all<I: Invalidate>(
        &self,
        range: IovaRange,
        size: PageSize,
        bbm: BreakBeforeMake,
        hardware: &I,
        changes: &mut Changes,
    ) -> Result<(), CutError> {
        let mut next = Some(range.start().get());
        while let Some(at) = next.filter(|&at| at <= range.last().get()) {
            let Some(live) = self.table.next_live(at, range.last().get()) else {
                break;
            };
            if live.leaf.size <= size {
                next = live.last().checked_add(1);
                continue;
            }
            if !self.claims(live.start, live.last()) {
                return Err(CutError::OutsideClaim {
                    range: live.range(),
                    claim: self.range(),
                });
            }
            // Then look at the same address again: the pieces may still be too large.
            self.cut_entry(live, size, bbm, hardware, changes)?;
            next = Some(at.max(live.start));
        }
        Ok(())
    }

    /// Tells the hardware of what was changed, also if that stopped half way: it must not keep
    /// entries of sizes that the next gather does not know of.
    pub(super) fn finish<I: Invalidate>(
        &self,
        result: Result<(), CutError>,
        changes: Changes,
        retired: Operation,
        hardware: &I,
    ) -> Result<Flushed, CutError> {
        fence(Ordering::Release);
        let flushed = Gather::new(changes, self.table.id, retired).sync(hardware)?;
        match result {
            Ok(()) => Ok(flushed),
            Err(error) => {
                self.table.quarantine.settle(retired);
                Err(error)
            }
        }
    }

    /// Cuts one entry once: into smaller groups or items of its own level, or into tables. The
    /// pieces may still be larger than `size`.
    fn cut_entry<I: Invalidate>(
        &self,
        live: Live,
        size: PageSize,
        bbm: BreakBeforeMake,
        hardware: &I,
        changes: &mut Changes,
    ) -> Result<(), CutError> {
        let table = self.table;
        let allowed = table.sizes.up_to(live.leaf.size).without(live.leaf.size);
        let item_lg2 = F::item_lg2(live.level);
        let swap = bbm.swap::<F>(live.start, live.leaf.size)?;
        let slot = table.descend(live.start, live.level);
        let (items, _) = slot.span(live.start, live.last());
        // As large as allowed, so that what lies outside of the range stays large.
        let same_level = |limit: PageSizes| limit.largest().filter(|size| size.lg2() >= item_lg2);
        let piece = same_level(allowed.up_to(size)).or(same_level(allowed));
        if let Some(piece) = piece {
            changes.add_leaf(live.range(), live.leaf.size);
            return self.regroup(live, items, piece, swap, hardware);
        }
        // Items of a group that are no size of their own become tables one after the other, which
        // only a format without a rule about it, or a window, allows.
        if items.len() > 1 && swap == Swap::Mark {
            let iova = Iova::new(live.start);
            return Err(CutError::NeedsFaultWindow {
                iova,
                size: live.leaf.size,
            });
        }
        let below = Level(live.level.0 - 1);
        let mut supply = Supply::empty(&table.format, &table.memory);
        supply.add(items.len() * Table::<F, M>::subtree_count(below, allowed))?;
        changes.add_leaf(live.range(), live.leaf.size);
        table.split_items(items, live, allowed, swap, &mut supply, hardware)
    }

    /// Rewrites the items of a group as entries of `piece`, of the same level.
    pub(super) fn regroup<I: Invalidate>(
        &self,
        live: Live,
        items: &[AtomicU64],
        piece: PageSize,
        swap: Swap,
        hardware: &I,
    ) -> Result<(), CutError> {
        let table = self.table;
        let rule = table.format.dirty_rule();
        let (mut dirty, old) = (false, live);
        if swap == Swap::Break {
            for item in items {
                let word = item.swap(0, Ordering::Relaxed);
                dirty |= rule.is_some_and(|rule| rule.is_dirty(word));
            }
            flush_items(&table.memory, items);
            self.flush_entry(&old, hardware)?;
        } else {
            dirty = items
                .iter()
                .any(|item| rule.is_some_and(|rule| rule.is_dirty(item.load(Ordering::Relaxed))));
        }
        let per_piece = 1 << (piece.lg2() - F::item_lg2(live.level));
        for (index, item) in items.iter().enumerate() {
            let oa = Oa::new(live.oa().get() + (index / per_piece) as u64 * piece.bytes());
            let word = table
                .format
                .leaf_item(oa, piece, live.leaf.prot, index % per_piece);
            match rule {
                Some(rule) if swap == Swap::Break || dirty => {
                    let word = if dirty {
                        rule.soil(word)
                    } else {
                        rule.clean(word)
                    };
                    item.store(word, Ordering::Relaxed);
                }
                _ => {
                    replace_item(item, word, rule);
                }
            }
        }
        // Hardware may have marked one item of the old group dirty while the others were already
        // rewritten; the group's state belongs to all of its pieces.
        if let Some(rule) = rule.filter(|_| !dirty && swap != Swap::Break)
            && items
                .iter()
                .any(|item| rule.is_dirty(item.load(Ordering::Relaxed)))
        {
            for item in items {
                soil_item(item, rule);
            }
        }
        flush_items(&table.memory, items);
        Ok(())
    }

    /// Waits until hardware holds nothing of an entry that is being changed.
    pub(super) fn flush_entry<I: Invalidate>(
        &self,
        live: &Live,
        hardware: &I,
    ) -> Result<(), CutError> {
        self.table.flush_live(live, hardware)
    }
}

/// Marks a leaf item dirty whatever hardware does meanwhile.
pub(super) fn soil_item(item: &AtomicU64, rule: DirtyRule) {
    if item.load(Ordering::Relaxed) & rule.tracked != rule.tracked {
        return;
    }
    if rule.dirty == 0 {
        item.fetch_and(!rule.mask, Ordering::Relaxed);
    } else {
        item.fetch_or(rule.mask, Ordering::Relaxed);
    }
}

impl<F: Format, M: TableMemory> Table<F, M> {
    /// Returns the first entry that translates a part of `iova..=last`.
    pub(super) fn next_live(&self, iova: u64, last: u64) -> Option<Live> {
        let range = IovaRange::new(Iova::new(iova), Iova::new(last))?;
        let mut found = None;
        let _ = self.try_each_item(range, |level, word, iova, _| {
            let Ok(Entry::Leaf(leaf)) = self.format.decode(word, level) else {
                return ControlFlow::Continue(());
            };
            found = Some(Live {
                start: iova & !leaf.size.offset_mask(),
                level,
                leaf,
            });
            ControlFlow::Break(())
        });
        found
    }

    /// Waits until hardware holds nothing of `changes`.
    pub(super) fn flush_changes<I: Invalidate>(
        &self,
        changes: &Changes,
        hardware: &I,
    ) -> Result<(), CutError> {
        fence(Ordering::Release);
        Gather::new(*changes, self.id, Operation::NONE).sync(hardware)?;
        Ok(())
    }

    /// Waits until hardware holds nothing of `live`.
    pub(super) fn flush_live<I: Invalidate>(
        &self,
        live: &Live,
        hardware: &I,
    ) -> Result<(), CutError> {
        let mut changes = Changes::none(Kind::Altered);
        changes.add_leaf(live.range(), live.leaf.size);
        self.flush_changes(&changes, hardware)
    }

    /// Returns the number of tables that one item above `level` becomes, cut to the largest pages
    /// of `allowed`.
    fn subtree_count(level: Level, allowed: PageSizes) -> usize {
        match level.below() {
            Some(below) if Self::largest_of(level, allowed).is_none() => {
                1 + (Self::subtree_count(below, allowed) << F::item_count_lg2())
            }
            _ => 1,
        }
    }

    /// Returns the largest page of `allowed` that is made of items of `level`.
    fn largest_of(level: Level, allowed: PageSizes) -> Option<PageSize> {
        let span = PageSize::from_lg2(F::item_lg2(level) + F::item_count_lg2() - 1);
        let largest = allowed.up_to(span).largest()?;
        (F::level_of(largest) == level).then_some(largest)
    }

    /// Replaces the leaf that `items` make by tables whose leaves are the largest of `allowed`.
    fn split_items<I: Invalidate>(
        &self,
        items: &[AtomicU64],
        live: Live,
        allowed: PageSizes,
        swap: Swap,
        supply: &mut Supply<'_, F, M>,
        hardware: &I,
    ) -> Result<(), CutError> {
        let rule = self.format.dirty_rule();
        let is_dirty = |word: u64| rule.is_some_and(|rule| rule.is_dirty(word));
        let mut dirty = items
            .iter()
            .any(|item| is_dirty(item.load(Ordering::Relaxed)));
        match swap {
            Swap::Direct => {}
            Swap::Mark => {
                for item in items {
                    item.fetch_or(F::BLOCK_MARK, Ordering::Relaxed);
                }
                flush_items(&self.memory, items);
                self.flush_live(&live, hardware)?;
            }
            Swap::Break => {
                for item in items {
                    dirty |= is_dirty(item.swap(0, Ordering::Relaxed));
                }
                flush_items(&self.memory, items);
                self.flush_live(&live, hardware)?;
            }
        }
        let item_len = PageSize::from_lg2(F::item_lg2(live.level)).bytes();
        let below = Level(live.level.0 - 1);
        let linked = |item: &AtomicU64| self.child(item.load(Ordering::Acquire), live.level);
        for (index, item) in items.iter().enumerate() {
            let oa = Oa::new(live.oa().get() + index as u64 * item_len);
            let page = self.build(below, oa, live.leaf.prot, allowed, dirty, supply)?;
            let link = self.format.encode_table(page, live.level);
            // A write through the old entry up to this very moment counts for all pieces.
            let late = is_dirty(item.swap(link, Ordering::AcqRel)) && !dirty;
            flush_items(&self.memory, core::slice::from_ref(item));
            if late {
                dirty = true;
                items[..=index]
                    .iter()
                    .filter_map(linked)
                    .for_each(|child| self.soil_tree(child, below));
            }
        }
        Ok(())
    }

    /// Makes an unlinked table of `level` that translates like a leaf with these attributes.
    fn build(
        &self,
        level: Level,
        oa: Oa,
        prot: Prot,
        allowed: PageSizes,
        dirty: bool,
        supply: &mut Supply<'_, F, M>,
    ) -> Result<Oa, OutOfMemory> {
        let page = supply.take().ok_or(OutOfMemory { size: F::GRANULE })?;
        let items = self.node_at(page).items();
        let item_len = PageSize::from_lg2(F::item_lg2(level)).bytes();
        let piece = Self::largest_of(level, allowed);
        let rule = self.format.dirty_rule();
        for (index, item) in items.iter().enumerate() {
            let item_oa = oa.get() + index as u64 * item_len;
            let word = match (piece, level.below()) {
                (Some(piece), _) => {
                    let entry_oa = Oa::new(item_oa & !piece.offset_mask());
                    let index = (item_oa & piece.offset_mask()) / item_len;
                    let word = self.format.leaf_item(entry_oa, piece, prot, index as usize);
                    match rule {
                        Some(rule) if dirty => rule.soil(word),
                        Some(rule) => rule.clean(word),
                        None => word,
                    }
                }
                (None, Some(below)) => {
                    let child =
                        self.build(below, Oa::new(item_oa), prot, allowed, dirty, supply)?;
                    self.format.encode_table(child, level)
                }
                (None, None) => return Err(OutOfMemory { size: F::GRANULE }),
            };
            item.store(word, Ordering::Relaxed);
        }
        flush_items(&self.memory, items);
        Ok(page)
    }

    /// Marks every leaf of a tree dirty.
    fn soil_tree(&self, node: Node<'_, F>, level: Level) {
        let Some(rule) = self.format.dirty_rule() else {
            return;
        };
        for item in node.items() {
            let word = item.load(Ordering::Acquire);
            match level
                .below()
                .and_then(|below| Some((self.child(word, level)?, below)))
            {
                Some((child, below)) => self.soil_tree(child, below),
                None => soil_item(item, rule),
            }
        }
    }
}
