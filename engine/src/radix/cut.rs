//! Cutting large entries into smaller ones while devices use them.

use core::ops::ControlFlow;

use iopt_formats::{DirtyRule, Entry, Format, Iova, IovaRange, Leaf, Level, Oa, PageSize};

use crate::invalidation::{Changes, Flushed, Gather, Invalidate, RetiredSpan};
use crate::mem::TableMemory;
use crate::radix::node::{Supply, flush_items};
use crate::radix::protect::replace_item;
use crate::radix::{CutError, Mapper, Slot, Table};
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
    /// [`CutError`]; it says what is done by then. Translations are never lost, but for an entry
    /// that hardware failed to flush inside its fault window.
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
        let mut changes = Changes::NONE;
        let mut next = Some(range.start().get());
        while let Some(at) = next {
            let Some(live) = table.next_live(at, range.last().get()) else {
                break;
            };
            if live.leaf.size <= size {
                next = live.last().checked_add(1);
            } else {
                if !self.claims(live.start, live.last()) {
                    return Err(CutError::OutsideClaim {
                        range: live.range(),
                        claim: self.range(),
                    });
                }
                // Look at the same address again: the pieces may still be too large.
                self.cut_entry(live, size, bbm, hardware)?;
                changes.add_leaf(live.range(), live.leaf.size);
                next = Some(at.max(live.start));
            }
            next = next.filter(|&next| next <= range.last().get());
        }
        fence(Ordering::Release);
        Ok(Gather::new(changes, table.id, RetiredSpan::NONE).sync(hardware)?)
    }

    /// Cuts one entry: into smaller groups or items of its own level, or into a table.
    fn cut_entry<I: Invalidate>(
        &self,
        live: Live,
        size: PageSize,
        bbm: BreakBeforeMake,
        hardware: &I,
    ) -> Result<(), CutError> {
        let table = self.table;
        let smaller = table
            .sizes
            .up_to(size)
            .largest()
            .ok_or(CutError::NoSize { size })?;
        let swap = bbm.swap::<F>(live.start, live.leaf.size)?;
        let slot = table.descend(live.start, live.level);
        let (items, _) = slot.span(live.start, live.last());
        let item_lg2 = F::item_lg2(live.level);
        if live.leaf.size.lg2() > item_lg2 {
            let same_level = table
                .sizes
                .up_to(size)
                .largest()
                .filter(|s| s.lg2() >= item_lg2);
            // An item that is no size of its own is a step on the way to a table.
            let piece = same_level.unwrap_or(PageSize::from_lg2(item_lg2));
            return self.regroup(live, items, piece, swap, hardware);
        }
        // Below this item: a table of the largest pieces that fit in it.
        let below = Level(live.level.0 - 1);
        let piece = if F::level_of(smaller) == below {
            smaller
        } else {
            // A step down at a time; the pieces are cut again.
            table
                .sizes
                .up_to(live.leaf.size)
                .without(live.leaf.size)
                .largest()
                .filter(|s| F::level_of(*s) == below)
                .unwrap_or(PageSize::from_lg2(F::item_lg2(below)))
        };
        let mut supply = Supply::<F, M>::empty(&table.memory);
        supply.add(1)?;
        let page = supply
            .take()
            .ok_or(crate::mem::OutOfMemory { size: F::GRANULE })?;
        table
            .split_item(&items[0], live, page, piece, swap, hardware)
            .inspect_err(|_| {
                supply.put_back(page);
            })?;
        Ok(())
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

    /// Waits until hardware holds nothing of `live`.
    pub(super) fn flush_live<I: Invalidate>(
        &self,
        live: &Live,
        hardware: &I,
    ) -> Result<(), CutError> {
        fence(Ordering::Release);
        let mut changes = Changes::NONE;
        changes.add_leaf(live.range(), live.leaf.size);
        Gather::new(changes, self.id, RetiredSpan::NONE).sync(hardware)?;
        Ok(())
    }

    /// Replaces the leaf in `item` by a table at `page` whose leaves are of size `piece`.
    fn split_item<I: Invalidate>(
        &self,
        item: &AtomicU64,
        live: Live,
        page: Oa,
        piece: PageSize,
        swap: Swap,
        hardware: &I,
    ) -> Result<(), CutError> {
        let rule = self.format.dirty_rule();
        match swap {
            Swap::Direct => {}
            Swap::Mark => {
                item.fetch_or(F::BLOCK_MARK, Ordering::Relaxed);
                flush_items(&self.memory, core::slice::from_ref(item));
                self.flush_live(&live, hardware)?;
            }
            Swap::Break => {
                let word = item.swap(0, Ordering::Relaxed);
                flush_items(&self.memory, core::slice::from_ref(item));
                self.flush_live(&live, hardware)?;
                self.write_pieces(
                    page,
                    live,
                    piece,
                    rule.is_some_and(|rule| rule.is_dirty(word)),
                );
                item.store(
                    self.format.encode_table(page, live.level),
                    Ordering::Release,
                );
                self.finish_link(item);
                return Ok(());
            }
        }
        let mut old = item.load(Ordering::Relaxed);
        loop {
            self.write_pieces(
                page,
                live,
                piece,
                rule.is_some_and(|rule| rule.is_dirty(old)),
            );
            let link = self.format.encode_table(page, live.level);
            // Fails only if hardware marked the block dirty meanwhile.
            match item.compare_exchange(old, link, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => old = now,
            }
        }
        self.finish_link(item);
        Ok(())
    }

    /// Counts a table that was just linked, and shows it to walkers that do not snoop.
    fn finish_link(&self, item: &AtomicU64) {
        self.page_count.fetch_add(1, Ordering::Relaxed);
        flush_items(&self.memory, core::slice::from_ref(item));
    }

    /// Writes leaves of `piece` for the whole of `live` to the unlinked table at `page`.
    fn write_pieces(&self, page: Oa, live: Live, piece: PageSize, dirty: bool) {
        let below = Level(live.level.0 - 1);
        let slot = Slot {
            node: self.node_at(page),
            level: below,
            word: 0,
        };
        let (items, _) = slot.span(live.start, live.last());
        let per_piece = 1 << (piece.lg2() - F::item_lg2(below));
        let rule = self.format.dirty_rule();
        for (index, item) in items.iter().enumerate() {
            let oa = Oa::new(live.oa().get() + (index / per_piece) as u64 * piece.bytes());
            let word = self
                .format
                .leaf_item(oa, piece, live.leaf.prot, index % per_piece);
            let word = match rule {
                Some(rule) if dirty => rule.soil(word),
                Some(rule) => rule.clean(word),
                None => word,
            };
            item.store(word, Ordering::Relaxed);
        }
        flush_items(&self.memory, items);
    }
}
