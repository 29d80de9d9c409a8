//! Which pages devices wrote to.

use core::ops::ControlFlow;

use iopt_formats::{DirtyRule, Format, Iova, IovaRange, Level, PageSize};

use crate::invalidation::{Changes, Gather, Kind};
use crate::mem::TableMemory;
use crate::radix::node::flush_items;
use crate::radix::{DirtyError, Mapper, Slot, Table};
use crate::reclaim::Operation;
use crate::sync::atomic::{AtomicU64, Ordering, fence};

/// Marks a leaf item clean without losing what hardware writes meanwhile; returns what it held.
fn clean_item(item: &AtomicU64, rule: DirtyRule) -> u64 {
    if rule.dirty == 0 {
        item.fetch_or(rule.mask, Ordering::Relaxed)
    } else {
        item.fetch_and(!rule.mask, Ordering::Relaxed)
    }
}

impl<F: Format, M: TableMemory> Table<F, M> {
    /// Calls `each` with the parts of `range` that devices wrote to since they were mapped or last
    /// taken, in rising order. An entry is reported whole, cut to the range.
    ///
    /// Needs no claim and runs beside maps, unmaps and compaction of any thread.
    ///
    /// # Errors
    ///
    /// [`DirtyError::NotTracked`] if the format is configured without.
    pub fn dirty(&self, range: IovaRange, each: impl FnMut(IovaRange)) -> Result<(), DirtyError> {
        self.reader().dirty(range, each)
    }

    /// As [`dirty`](Self::dirty), for callers that T7 allows to walk.
    pub(super) fn each_dirty(
        &self,
        range: IovaRange,
        mut each: impl FnMut(IovaRange),
    ) -> Result<(), DirtyError> {
        let rule = self.format.dirty_rule().ok_or(DirtyError::NotTracked)?;
        let mut open: Option<IovaRange> = None;
        let mut skip_to = Some(range.start().get());
        let flow = self.try_each_item(range, |level, word, iova, last| {
            // The other items of an entry that was looked at with its first one.
            if skip_to.is_none_or(|next| iova < next) {
                return ControlFlow::Continue(());
            }
            let entry_last = iova | self.leaf_size(word, level).offset_mask();
            if rule.is_dirty(word) || self.group_is_dirty(rule, word, level, iova) {
                let part = IovaRange::new(Iova::new(iova), Iova::new(entry_last.min(last)))
                    .expect("the item starts inside the range");
                extend(&mut open, part, &mut each);
            }
            skip_to = entry_last.checked_add(1);
            ControlFlow::Continue(())
        });
        debug_assert!(flow.is_continue(), "the closure never breaks");
        open.into_iter().for_each(each);
        Ok(())
    }

    /// Returns whether any item of the group that `word` belongs to is dirty: hardware marks one
    /// of them, whichever it used.
    fn group_is_dirty(&self, rule: DirtyRule, word: u64, level: Level, iova: u64) -> bool {
        let size = self.leaf_size(word, level);
        if size.lg2() <= F::item_lg2(level) {
            return false;
        }
        let start = iova & !size.offset_mask();
        let slot = self.descend(start, level);
        if slot.level != level {
            return false;
        }
        let (items, _) = Slot { ..slot }.span(start, start | size.offset_mask());
        items
            .iter()
            .any(|item| rule.is_dirty(item.load(Ordering::Relaxed)))
    }
}

/// Joins `next` to the open range, or reports that one and opens another.
fn extend(open: &mut Option<IovaRange>, next: IovaRange, each: &mut impl FnMut(IovaRange)) {
    let joined = open.filter(|open| open.last().checked_add(1) == Some(next.start()));
    let joined = joined.and_then(|open| IovaRange::new(open.start(), next.last()));
    if let (None, Some(done)) = (joined, *open) {
        each(done);
    }
    *open = joined.or(Some(next));
}

impl<F: Format, M: TableMemory> Mapper<'_, F, M> {
    /// As [`Table::dirty`], and marks what it reports clean. Entries are taken whole, also where
    /// they reach out of `range` but not out of the claim; what is reported is cut to the range.
    ///
    /// Writes that devices make through cached translations before the sync of the result may be
    /// lost; later ones mark the pages dirty again. So copy the pages after the sync.
    ///
    /// # Errors
    ///
    /// [`DirtyError`]; nothing changed then.
    #[doc(alias = "read_and_clear_dirty")]
    pub fn take_dirty(
        &mut self,
        range: IovaRange,
        mut each: impl FnMut(IovaRange),
    ) -> Result<Gather, DirtyError> {
        let table = self.table;
        let rule = self.check_dirty(range)?;
        let mut open = None;
        let mut changes = Changes::none(Kind::Removed);
        let mut skip_to = Some(range.start().get());
        let flow = table.try_each_item(range, |level, word, iova, last| {
            let size = table.leaf_size(word, level);
            let entry_last = iova | size.offset_mask();
            // Items of a group that was taken with its first item inside the range.
            if skip_to.is_none_or(|next| iova < next) {
                return ControlFlow::Continue(());
            }
            let start = iova & !size.offset_mask();
            if table.take_entry(rule, level, start, size) {
                let entry = IovaRange::new(Iova::new(start), Iova::new(entry_last))
                    .expect("an entry does not wrap");
                changes.add_leaf(entry, size);
                let part = IovaRange::new(Iova::new(iova), Iova::new(entry_last.min(last)))
                    .expect("the item starts inside the range");
                extend(&mut open, part, &mut each);
            }
            skip_to = entry_last.checked_add(1);
            ControlFlow::Continue(())
        });
        debug_assert!(flow.is_continue(), "the closure never breaks");
        fence(Ordering::Release);
        open.into_iter().for_each(each);
        Ok(Gather::new(changes, table.id, Operation::NONE))
    }

    /// Checks that the dirty state of `range` can be taken; returns how it is recorded.
    pub(super) fn check_dirty(&self, range: IovaRange) -> Result<DirtyRule, DirtyError> {
        let table = self.table;
        let rule = table.format.dirty_rule().ok_or(DirtyError::NotTracked)?;
        if !self.claims(range.start().get(), range.last().get()) {
            return Err(DirtyError::OutsideClaim {
                range,
                claim: self.range(),
            });
        }
        // Only the entries at the edges can reach out of the claim.
        for edge in [range.start().get(), range.last().get()] {
            if let Some(live) = table.next_live(edge, edge)
                && !self.claims(live.start, live.last())
            {
                return Err(DirtyError::OutsideClaim {
                    range: live.range(),
                    claim: self.range(),
                });
            }
        }
        Ok(rule)
    }
}

impl<F: Format, M: TableMemory> Table<F, M> {
    /// Marks the entry of `size` at `start` clean; returns whether it was dirty.
    fn take_entry(&self, rule: DirtyRule, level: Level, start: u64, size: PageSize) -> bool {
        let slot = self.descend(start, level);
        if slot.level != level {
            return false;
        }
        let (items, _) = slot.span(start, start | size.offset_mask());
        if !items
            .iter()
            .any(|item| rule.is_dirty(item.load(Ordering::Relaxed)))
        {
            return false;
        }
        let mut was_dirty = false;
        for item in items {
            let word = item.load(Ordering::Relaxed);
            if rule.is_dirty(word) {
                was_dirty |= rule.is_dirty(clean_item(item, rule));
            }
        }
        flush_items(&self.memory, items);
        was_dirty
    }
}
