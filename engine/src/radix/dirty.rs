//! Which pages devices wrote to.

use core::slice;

use iopt_formats::{DirtyRule, Format, Iova, IovaRange, Level, PageSize};

use crate::invalidation::{Changes, Gather, Kind};
use crate::mem::TableMemory;
use crate::radix::node::flush_items;
use crate::radix::{DirtyError, Mapper, Table};
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
        let mut open = None;
        self.each_dirty_entry(range, rule, |dirty| {
            let part = dirty.entry.intersection(range);
            if let Some(part) = part {
                extend(&mut open, part, &mut each);
            }
        });
        open.into_iter().for_each(each);
        Ok(())
    }

    /// Calls `each` with every dirty entry that translates a part of `range`, in rising order.
    ///
    /// Nearly all items are clean, and one comparison says so; nothing is decoded but what is dirty.
    fn each_dirty_entry(&self, range: IovaRange, rule: DirtyRule, mut each: impl FnMut(Dirty<'_>)) {
        // Hardware marks any item of a group, perhaps one outside of the range.
        let (start, last) = (range.start().get(), range.last().get());
        let first = self
            .next_live(start, start)
            .map_or(start, |live| live.start);
        let highest = self.next_live(last, last).map_or(last, |live| live.last());
        let mut next = Some((first.min(start), highest.max(last)));
        let mut skip_to = first;
        while let Some((at, last)) = next.and_then(|(at, last)| self.decoded_part(at, last)) {
            let slot = self.descend(at, Level::LEAF);
            let level = slot.level;
            let (items, span_last) = slot.span(at, last);
            let item_lg2 = F::item_lg2(level);
            let base = at >> item_lg2 << item_lg2;
            let mut seen_last = span_last;
            for (index, item) in items.iter().enumerate() {
                let word = item.load(Ordering::Acquire);
                let iova = base + ((index as u64) << item_lg2);
                if level != Level::LEAF {
                    // The first one as the walk met it: by now it may be a table, cut out of a leaf
                    // that must not be missed.
                    let word = if index == 0 { slot.word } else { word };
                    if self.child(word, level).is_some() {
                        seen_last = iova - 1;
                        break;
                    }
                }
                if !rule.is_dirty(word) || word & F::PRESENT == 0 || iova < skip_to {
                    continue;
                }
                let size = self.leaf_size(word, level);
                let mask = size.offset_mask();
                let (start, last) = (iova & !mask, iova | mask);
                let entry = IovaRange::new(Iova::new(start), Iova::new(last));
                each(Dirty {
                    entry: entry.expect("an entry does not wrap"),
                    level,
                    size,
                    item,
                });
                let Some(above) = last.checked_add(1) else {
                    return;
                };
                skip_to = above;
            }
            next = Self::after(seen_last, highest.max(range.last().get()));
        }
    }
}

/// An entry that was met dirty.
struct Dirty<'a> {
    entry: IovaRange,
    level: Level,
    size: PageSize,
    /// The item that says so.
    item: &'a AtomicU64,
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
        let mut changes = Changes::none(Kind::Altered);
        table.each_dirty_entry(range, rule, |dirty| {
            let Dirty {
                entry, level, size, ..
            } = dirty;
            let was_dirty = if size.lg2() == F::item_lg2(level) {
                let word = clean_item(dirty.item, rule);
                flush_items(&table.memory, slice::from_ref(dirty.item));
                rule.is_dirty(word)
            } else {
                table.take_group(rule, level, entry)
            };
            if was_dirty {
                changes.add_leaf(entry, size);
                let part = entry.intersection(range);
                if let Some(part) = part {
                    extend(&mut open, part, &mut each);
                }
            }
        });
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
    /// Marks all items of an entry clean; returns whether one was dirty.
    fn take_group(&self, rule: DirtyRule, level: Level, entry: IovaRange) -> bool {
        let slot = self.descend(entry.start().get(), level);
        if slot.level != level {
            return false;
        }
        let (items, _) = slot.span(entry.start().get(), entry.last().get());
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
