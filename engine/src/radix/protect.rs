//! Changing the rights of live translations.

use iopt_formats::{DirtyRule, Entry, Format, Iova, IovaRange, Level, Oa, PageSize, Prot};

use crate::invalidation::{Changes, Gather, Kind};
use crate::mem::TableMemory;
use crate::radix::node::flush_items;
use crate::radix::{Mapper, ProtectError, Table, UnmapPolicy};
use crate::reclaim::Operation;
use crate::sync::atomic::{AtomicU64, Ordering, fence};

/// What a change of rights leaves to do.
#[derive(Debug)]
#[must_use = "the hardware may still use the old rights until the gather is synced"]
pub struct Protected {
    /// What the hardware has to be told.
    pub gather: Gather,
    /// Whether a page was dirty whose new entry cannot say so: the format records writes only in
    /// entries that allow them.
    pub was_dirty: bool,
}

/// Replaces a live leaf item by `new`, carrying on the dirty state that hardware may set up to
/// this very moment. Returns whether a dirty state was lost.
pub(super) fn replace_item(item: &AtomicU64, new: u64, rule: Option<DirtyRule>) -> bool {
    let Some(rule) = rule else {
        item.store(new, Ordering::Relaxed);
        return false;
    };
    let carry = |old: u64| {
        if rule.is_dirty(old) {
            rule.soil(new)
        } else {
            rule.clean(new)
        }
    };
    let mut old = item.load(Ordering::Relaxed);
    loop {
        let word = carry(old);
        match item.compare_exchange_weak(old, word, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => return rule.is_dirty(old) && !rule.is_dirty(word),
            Err(now) => old = now,
        }
    }
}

impl<F: Format, M: TableMemory> Mapper<'_, F, M> {
    /// Gives whole `range` the rights and memory type of `prot`.
    ///
    /// The range must be mapped without holes and consist of whole entries; they keep their sizes,
    /// addresses and dirty state. Until the sync, devices may use the old rights or the new ones.
    ///
    /// # Errors
    ///
    /// [`ProtectError`]; nothing changed then.
    pub fn protect(&mut self, range: IovaRange, prot: Prot) -> Result<Protected, ProtectError> {
        self.protect_with(range, prot, |_| {})
    }

    /// As [`protect`](Self::protect), and calls `lost` with each entry that was dirty and cannot say so any
    /// more.
    ///
    /// # Errors
    ///
    /// As for [`protect`](Self::protect); `lost` was not called then.
    pub fn protect_with(
        &mut self,
        range: IovaRange,
        prot: Prot,
        mut lost: impl FnMut(IovaRange),
    ) -> Result<Protected, ProtectError> {
        let table = self.table;
        self.check_range(range)?;
        let Some(effective) = table.format.effective(prot) else {
            return Err(ProtectError::Prot { prot });
        };
        let start = range.start().get();
        let mut changes = Changes::none(Kind::Altered);
        let mut was_dirty = false;
        if let Some(last) = self.survey(range, UnmapPolicy::Exact)? {
            if F::BREAK_BEFORE_MAKE {
                self.check_memory(start, last, effective)?;
            }
            table.each_stretch(start, last, |level, items, size, iova, stretch_last| {
                for (index, item) in items.iter().enumerate() {
                    let start = iova + ((index as u64) << F::item_lg2(level));
                    if table.protect_item(item, level, size, start, prot) {
                        was_dirty = true;
                        let mask = size.offset_mask();
                        let entry =
                            IovaRange::new(Iova::new(start & !mask), Iova::new(start | mask));
                        lost(entry.expect("an entry does not wrap"));
                    }
                }
                flush_items(&table.memory, items);
                let stretch = IovaRange::new(Iova::new(iova), Iova::new(stretch_last))
                    .expect("a stretch holds at least one item");
                changes.add_leaf(stretch, size);
            });
            fence(Ordering::Release);
        }
        Ok(Protected {
            gather: Gather::new(changes, table.id, Operation::NONE),
            was_dirty,
        })
    }

    /// Checks that no entry would change its memory type, which the architecture forbids live.
    fn check_memory(&self, start: u64, last: u64, effective: Prot) -> Result<(), ProtectError> {
        let mut refused = None;
        self.table
            .each_stretch(start, last, |level, items, _, iova, _| {
                for (index, item) in items.iter().enumerate() {
                    let word = item.load(Ordering::Relaxed);
                    if let Ok(Entry::Leaf(leaf)) = self.table.format.decode(word, level)
                        && leaf.prot.memory() != effective.memory()
                    {
                        let iova = iova + ((index as u64) << F::item_lg2(level));
                        refused.get_or_insert(iova);
                    }
                }
            });
        refused.map_or(Ok(()), |iova| {
            Err(ProtectError::Memory {
                iova: Iova::new(iova),
            })
        })
    }
}

impl<F: Format, M: TableMemory> Table<F, M> {
    /// Gives the item at `iova`, one of an entry of `size`, the rights of `prot`; returns whether
    /// its dirty state was lost.
    fn protect_item(
        &self,
        item: &AtomicU64,
        level: Level,
        size: PageSize,
        iova: u64,
        prot: Prot,
    ) -> bool {
        let word = item.load(Ordering::Relaxed);
        let Ok(Entry::Leaf(leaf)) = self.format.decode(word, level) else {
            return false;
        };
        let entry_oa = Oa::new(leaf.oa.get() & !size.offset_mask());
        let index = (iova & size.offset_mask()) >> F::item_lg2(level);
        let new = self.format.leaf_item(entry_oa, size, prot, index as usize);
        replace_item(item, new, self.format.dirty_rule())
    }
}
