//! Removing translations.
//!
//! An unmap looks first and then clears, so that a refusal leaves no trace.

#![expect(unsafe_code, reason = "plain reads of items that the claim covers")]

use iopt_formats::{Format, Iova, IovaRange, Level, Oa, PageSize, Prot};

use crate::invalidation::{Changes, Gather, Kind};
use crate::mem::TableMemory;
use crate::radix::node::{Summary, flush_items, summarize};
use crate::radix::read::Joiner;
use crate::radix::{Mapper, Run, Table, TablePolicy, UnmapError};
use crate::reclaim::Operation;
use crate::sync::atomic::{AtomicU64, Ordering, fence};

/// What an unmap does about holes and about entries that reach out of its range.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum UnmapPolicy {
    /// The range must be mapped without holes and consist of whole entries; else nothing happens.
    #[default]
    Exact,
    /// As Linux does: stops at the first hole and says how far it came, and removes an entry that
    /// the range ends in whole. The start must not lie inside an entry, and an entry that reaches out
    /// of the claim refuses everything.
    WholeEntries,
    /// Removes whatever the range holds, which may be nothing. An entry that reaches out of the
    /// range at either end refuses everything. Where [`TablePolicy::Detach`] unlinks a leaf table,
    /// nobody looks at what it held, and the gather asks for every leaf size that it could have held.
    Sparse,
}

/// What an unmap removed.
#[derive(Debug)]
#[must_use = "the hardware may still use the range until the gather is synced"]
pub struct Unmapped {
    /// What the hardware has to be told.
    pub gather: Gather,
    /// Bytes from the start of the range on that translate nothing any more: those in front of the
    /// first hole, whole entries, under [`UnmapPolicy::WholeEntries`], else all. `u64::MAX` stands
    /// for the whole 64-bit space.
    pub bytes: u64,
}

/// A run of removed translations, as [`Mapper::unmap_with`] reports them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Removed {
    /// The IOVA, translating to consecutive output addresses with the same rights.
    pub range: IovaRange,
    /// The first output address.
    pub oa: Oa,
    /// What the entries granted.
    pub prot: Prot,
    /// Whether the table said that a device wrote to it; `false` without dirty tracking. Writes
    /// through stale translations come after this and before the sync.
    pub dirty: bool,
}

/// Returns whether all `items` of a leaf table are single pages.
///
/// # Safety
///
/// As for [`summarize`].
#[inline]
pub(super) unsafe fn is_plain<F: Format>(format: &F, items: &[AtomicU64]) -> bool {
    // SAFETY: the caller's contract is the same.
    let Summary { any, all } = unsafe { summarize(format, items) };
    // One bit common to all decides it nearly always; formats whose entries are present by one of
    // several bits need a second look.
    any & F::GROUPED == 0 && (all & F::PRESENT != 0 || items.iter().all(is_single::<F>))
}

/// Returns whether all `items` of one table are the same but for the bits of `address` and for being
/// dirty.
///
/// # Safety
///
/// As for [`summarize`].
unsafe fn are_alike<F: Format>(format: &F, items: &[AtomicU64], address: u64) -> bool {
    // SAFETY: the caller's contract is the same.
    let Summary { any, all } = unsafe { summarize(format, items) };
    let dirty = format.dirty_rule().map_or(0, |rule| rule.mask);
    (any ^ all) & !(address | dirty) == 0
}

/// Returns whether an item of a leaf table is a page of its own.
fn is_single<F: Format>(item: &AtomicU64) -> bool {
    let word = item.load(Ordering::Relaxed);
    word & F::PRESENT != 0 && word & F::GROUPED == 0
}

/// Clears `items`.
#[inline]
pub(super) fn clear_items(items: &[AtomicU64]) {
    let (lines, rest) = items.as_chunks::<8>();
    for line in lines {
        for item in line {
            item.store(0, Ordering::Relaxed);
        }
    }
    for item in rest {
        item.store(0, Ordering::Relaxed);
    }
}

impl<F: Format, M: TableMemory> Mapper<'_, F, M> {
    /// Unmaps any range; see [`unmap`](Self::unmap).
    #[cold]
    #[inline(never)]
    pub(super) fn unmap_general(
        &mut self,
        range: IovaRange,
        policy: UnmapPolicy,
    ) -> Result<Unmapped, UnmapError> {
        self.remove(range, policy, |_, items, _| clear_items(items))
    }

    /// As [`unmap`](Self::unmap), and reports what was removed: maximal runs in rising order, each
    /// with its output address, rights and dirty state, so that a caller can unpin without a walk
    /// of its own.
    ///
    /// `removed` runs inside the operation; the pages may be reused only after the sync.
    ///
    /// # Errors
    ///
    /// As for [`unmap`](Self::unmap); `removed` was not called then.
    pub fn unmap_with(
        &mut self,
        range: IovaRange,
        policy: UnmapPolicy,
        mut removed: impl FnMut(Removed),
    ) -> Result<Unmapped, UnmapError> {
        let mut joiner = Joiner::default();
        let mut report = |(run, dirty): (Run, bool)| {
            removed(Removed {
                range: run.range,
                oa: run.oa,
                prot: run.prot,
                dirty,
            });
        };
        let table = self.table;
        let rule = table.format.dirty_rule();
        let done = self.remove(range, policy, |level, items, iova| {
            let item_lg2 = F::item_lg2(level);
            let is_group = table
                .leaf_size(items[0].load(Ordering::Relaxed), level)
                .lg2()
                > item_lg2;
            // Hardware marks one item of a group for all of it, so the group goes first. A page
            // may become dirty up to the very swap.
            let mut group_dirty = false;
            let mut first = 0;
            for (index, item) in items.iter().enumerate() {
                let word = item.swap(0, Ordering::Relaxed);
                let dirty = rule.is_some_and(|rule| rule.is_dirty(word));
                if is_group {
                    group_dirty |= dirty;
                    first = if index == 0 { word } else { first };
                } else if let Some(run) =
                    table.item_run(word, level, iova + ((index as u64) << item_lg2))
                {
                    joiner.push(run, dirty).into_iter().for_each(&mut report);
                }
            }
            if let Some(run) = table.entry_run(first, level, iova).filter(|_| is_group) {
                joiner
                    .push(run, group_dirty)
                    .into_iter()
                    .for_each(&mut report);
            }
        })?;
        joiner.finish().into_iter().for_each(&mut report);
        Ok(done)
    }

    /// Surveys `range`, then calls `clear` with level, items and first address of each stretch of
    /// entries of one size.
    fn remove(
        &mut self,
        range: IovaRange,
        policy: UnmapPolicy,
        mut clear: impl FnMut(Level, &[AtomicU64], u64),
    ) -> Result<Unmapped, UnmapError> {
        let table = self.table;
        let start = range.start().get();
        self.check_range(range)?;
        let mut changes = Changes::none(Kind::Removed);
        let surveyed_last = self.survey(range, policy)?;
        if let Some(last) = surveyed_last {
            table.each_stretch(start, last, |level, items, size, iova, stretch_last| {
                clear(level, items, iova);
                flush_items(&table.memory, items);
                let stretch = IovaRange::new(Iova::new(iova), Iova::new(stretch_last))
                    .expect("a stretch holds at least one item");
                changes.add_leaf(stretch, size);
            });
            fence(Ordering::Release);
        }
        let mut retired = Operation::NONE;
        if let Some(last) = surveyed_last.filter(|_| self.table_policy == TablePolicy::Detach) {
            let cleared = IovaRange::new(range.start(), Iova::new(last))
                .expect("a survey comes to the start at least");
            let mut retiring = table.quarantine.begin();
            // Tables that find no room stay.
            let _ = table.compact_range(cleared, &mut changes, &mut retiring);
            if !retiring.is_empty() {
                self.forget();
            }
            retired = retiring.finish();
        }
        Ok(Unmapped {
            gather: Gather::new(changes, table.id, retired),
            bytes: surveyed_last.map_or(0, |last| (last - start).saturating_add(1)),
        })
    }

    /// Checks the alignment and the claim of a range to change.
    pub(super) fn check_range(&self, range: IovaRange) -> Result<(), UnmapError> {
        let (start, last) = (range.start().get(), range.last().get());
        let page = self.table.smallest;
        if !page.divides(start | last.wrapping_add(1)) {
            return Err(UnmapError::Unaligned { range, page });
        }
        if !self.claims(start, last) {
            return Err(UnmapError::OutsideClaim {
                range,
                claim: self.range(),
            });
        }
        Ok(())
    }

    /// Returns the last address that an operation on whole entries of `range` changes, or `None`
    /// if it changes nothing.
    pub(super) fn survey(
        &self,
        range: IovaRange,
        policy: UnmapPolicy,
    ) -> Result<Option<u64>, UnmapError> {
        let table = self.table;
        let (start, last) = (range.start().get(), range.last().get());
        let mut at = start;
        let mut found = None;
        loop {
            let Some(entry) = table.next_entries(at, last) else {
                match policy {
                    UnmapPolicy::Exact => {
                        return Err(UnmapError::Hole {
                            iova: Iova::new(at),
                        });
                    }
                    UnmapPolicy::WholeEntries => return Ok(found),
                    UnmapPolicy::Sparse => {}
                }
                let hole_last = table.hole_last(at, last);
                if hole_last == last {
                    return Ok(Some(last));
                }
                at = hole_last + 1;
                continue;
            };
            if at & entry.size.offset_mask() != 0 {
                return Err(UnmapError::Splits {
                    iova: Iova::new(at),
                    size: entry.size,
                });
            }
            if entry.last > last {
                let (iova, size) = (Iova::new(at), entry.size);
                if policy != UnmapPolicy::WholeEntries {
                    return Err(UnmapError::Splits { iova, size });
                }
                if entry.last > self.last {
                    let range = IovaRange::new(iova, Iova::new(entry.last))
                        .expect("an entry does not wrap");
                    return Err(UnmapError::OutsideClaim {
                        range,
                        claim: self.range(),
                    });
                }
            }
            found = Some(entry.last);
            if entry.last >= last {
                return Ok(found);
            }
            at = entry.last + 1;
        }
    }
}

/// Whole entries of one size, from an address on.
pub(super) struct Entries {
    pub(super) size: PageSize,
    /// Last address of the last of them.
    pub(super) last: u64,
}

impl<F: Format, M: TableMemory> Table<F, M> {
    /// Returns the entry that translates `iova`, together with the entries of one item behind it that
    /// are of the same size, in the same table, and end by `last`; or `None` for a hole.
    pub(super) fn next_entries(&self, iova: u64, last: u64) -> Option<Entries> {
        if !self.reaches(iova) {
            return None;
        }
        let slot = self.descend(iova, Level::LEAF);
        if slot.word & F::PRESENT == 0 {
            return None;
        }
        if slot.level == Level::LEAF && slot.word & F::GROUPED == 0 {
            let (items, span_last) = slot.span(iova, last);
            // SAFETY: T3: only a mapper that holds the claim over `iova..=last` looks for whole
            // entries.
            let plain = if unsafe { is_plain(&self.format, items) } {
                items.len()
            } else {
                items.iter().take_while(|item| is_single::<F>(item)).count()
            };
            let plain_last =
                iova.wrapping_add(((plain as u64) << F::GRANULE.lg2()).wrapping_sub(1));
            return Some(Entries {
                size: F::GRANULE,
                last: plain_last.min(span_last),
            });
        }
        let size = self.leaf_size(slot.word, slot.level);
        let entry_last = iova | size.offset_mask();
        if entry_last >= last || slot.word & F::GROUPED != 0 {
            return Some(Entries {
                size,
                last: entry_last,
            });
        }
        // Leaves of the same kind behind it that end by `last`.
        let whole_last = (last.wrapping_add(1) & !size.offset_mask()).wrapping_sub(1);
        let (items, span_last) = slot.span(iova, whole_last);
        let address = self
            .format
            .encode_oa(Oa::new(self.oa_last & !size.offset_mask()));
        // SAFETY: T3, as above.
        if unsafe { are_alike(&self.format, items, address) } {
            return Some(Entries {
                size,
                last: span_last,
            });
        }
        let is_leaf = |item: &&AtomicU64| {
            is_single::<F>(item)
                && self
                    .child_oa(item.load(Ordering::Relaxed), slot.level)
                    .is_none()
        };
        let more_count = items.iter().skip(1).take_while(is_leaf).count() as u64;
        Some(Entries {
            size,
            last: entry_last + (more_count << size.lg2()),
        })
    }

    /// Returns the last address of the hole around `iova`, as far as one table shows, up to `last`.
    fn hole_last(&self, iova: u64, last: u64) -> u64 {
        if !self.reaches(iova) {
            return last;
        }
        let slot = self.descend(iova, Level::LEAF);
        let (items, span_last) = slot.span(iova, last);
        let is_empty = |item: &&AtomicU64| item.load(Ordering::Relaxed) & F::PRESENT == 0;
        let empty_count = items.iter().take_while(is_empty).count();
        if empty_count == items.len() {
            return span_last;
        }
        let item_lg2 = F::item_lg2(slot.level);
        let first = iova >> item_lg2 << item_lg2;
        // The item of `iova` itself is empty: nobody else changes what the claim covers.
        first + (((empty_count.max(1) as u64) << item_lg2) - 1)
    }

    /// Returns whether the current root decodes `iova`.
    #[inline]
    pub(super) fn reaches(&self, iova: u64) -> bool {
        iova.wrapping_add(self.bias) <= self.span(self.top.load().level).reach
    }

    /// Calls `each` with level, items, entry size, first and last address of the stretches that are
    /// mapped of `start..=last`, which consists of whole entries and holes.
    pub(super) fn each_stretch(
        &self,
        start: u64,
        last: u64,
        mut each: impl FnMut(Level, &[AtomicU64], PageSize, u64, u64),
    ) {
        let mut at = start;
        loop {
            let done_last = if let Some(entries) = self.next_entries(at, last) {
                let stretch_last = entries.last.min(last);
                let slot = self.descend(at, Level::LEAF);
                let (items, _) = slot.span(at, stretch_last);
                each(slot.level, items, entries.size, at, stretch_last);
                stretch_last
            } else {
                self.hole_last(at, last)
            };
            if done_last == last {
                return;
            }
            at = done_last + 1;
        }
    }
}
