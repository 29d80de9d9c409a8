//! Checking and filling the tables of one mapping.

#![expect(unsafe_code, reason = "plain reads of items that the claim covers")]

use iopt_formats::{Format, Iova, Level, Oa, PageSize, PageSizes, Prot};

use crate::invalidation::Changes;
use crate::mem::{OutOfMemory, TableMemory};
use crate::radix::job::{Chunk, Job};
use crate::radix::node::{Node, flush_items, summarize};
use crate::radix::supply::{Supply, TABLE_LIMIT};
use crate::radix::{MapError, Slot, Table};
use crate::reclaim::Retiring;
use crate::sync::atomic::{AtomicU64, Ordering};

/// Returns whether all `items` are empty.
///
/// # Safety
///
/// As for [`summarize`].
#[inline]
pub(super) unsafe fn is_clear<F: Format>(format: &F, items: &[AtomicU64]) -> bool {
    // SAFETY: the caller's contract is the same.
    unsafe { summarize(format, items) }.any == 0
}

/// Stores `word`, `word + step`, .. to `items`.
#[expect(
    clippy::inline_always,
    reason = "the step is a constant for most callers, and out of line the loop takes a third longer"
)]
#[inline(always)]
pub(super) fn store_items(items: &[AtomicU64], mut word: u64, step: u64) {
    let (groups, rest) = items.as_chunks::<8>();
    for group in groups {
        for item in group {
            item.store(word, Ordering::Relaxed);
            word = word.wrapping_add(step);
        }
    }
    for item in rest {
        item.store(word, Ordering::Relaxed);
        word = word.wrapping_add(step);
    }
}

/// What filling some mappings needs.
pub(super) struct Need {
    pub(super) table_count: usize,
    /// Empty tables that larger leaves may replace.
    pub(super) replaced_count: usize,
    /// Level of the root that reaches the mappings.
    top: Level,
    /// The table last counted as missing at each level, by its IOVA over its span.
    counted: [Option<u64>; 6],
}

/// What a fill may use and what it did.
pub(super) struct Filling<'s, 't, F: Format, M: TableMemory> {
    pub(super) supply: &'s mut Supply<'t, F, M>,
    /// Where replaced tables go; `None` if none may be.
    pub(super) retiring: Option<Retiring<'t>>,
    pub(super) changes: Changes,
}

/// Why a path to a table is not there.
#[derive(Clone, Copy)]
pub(super) enum Missing {
    /// The item in a table of this level is empty.
    At(Level),
    /// The item in a table of this level is a leaf.
    Leaf,
}

impl Need {
    /// Needs nothing yet, for mappings up to `last`.
    pub(super) fn up_to<F: Format, M: TableMemory>(table: &Table<F, M>, last: u64) -> Self {
        Self {
            table_count: 0,
            replaced_count: 0,
            top: table.top_for(last),
            counted: [None; 6],
        }
    }

    /// Returns the level of the root that reaches the mappings.
    pub(super) const fn top(&self) -> Level {
        self.top
    }

    /// Counts the tables of levels `bottom..` below an empty item, once each.
    pub(super) fn count<F: Format>(
        &mut self,
        iova: u64,
        missing: Missing,
        bottom: Level,
    ) -> Result<(), OutOfMemory> {
        let Missing::At(level) = missing else {
            return Ok(());
        };
        for level in bottom.0..level.0 {
            let span_lg2 = u32::from(F::item_lg2(Level(level)) + F::item_count_lg2());
            let tag = iova.checked_shr(span_lg2).unwrap_or(0);
            let counted = &mut self.counted[usize::from(level)];
            if *counted != Some(tag) {
                *counted = Some(tag);
                self.table_count += 1;
            }
        }
        if self.table_count > TABLE_LIMIT {
            return Err(OutOfMemory { size: F::GRANULE });
        }
        Ok(())
    }
}

impl<F: Format, M: TableMemory> Table<F, M> {
    /// Returns the table of level `bottom` on the path of `iova`, under a root that will have
    /// level `top`.
    pub(super) fn find_table(
        &self,
        iova: u64,
        bottom: Level,
        top: Level,
    ) -> Result<Node<'_, F>, Missing> {
        if !self.reaches(iova) {
            return Err(Missing::At(top));
        }
        let Slot { node, level, word } = self.descend(iova, bottom);
        if level == bottom {
            return Ok(node);
        }
        Err(if word == 0 {
            Missing::At(level)
        } else {
            Missing::Leaf
        })
    }

    /// Stores the leaves of a chunk to `items`.
    fn store_chunk(&self, items: &[AtomicU64], chunk: Chunk, prot: Prot) {
        let first = self.format.leaf_attributes(prot, chunk.size)
            | self.format.encode_oa(Oa::new(chunk.oa));
        let entry_step = self.format.encode_oa(Oa::new(chunk.size.bytes()));
        let item_count = F::item_count(chunk.size);
        if item_count == 1 {
            store_items(items, first, entry_step);
        } else {
            let item_step = self.format.item_step(chunk.size);
            let mut word = first;
            for entry in items.chunks(item_count) {
                store_items(entry, word, item_step);
                word = word.wrapping_add(entry_step);
            }
        }
        flush_items(&self.memory, items);
    }

    /// Checks that nothing of `job` is mapped and counts what filling it needs.
    pub(super) fn check(&self, job: Job, need: &mut Need) -> Result<(), MapError> {
        job.try_for_each::<F, MapError>(|chunk| {
            let level = F::level_of(chunk.size);
            let node = match self.find_table(chunk.iova, level, need.top) {
                Ok(node) => node,
                Err(Missing::Leaf) => {
                    return Err(MapError::Occupied {
                        iova: Iova::new(chunk.iova),
                    });
                }
                Err(missing) => {
                    return Ok(need.count::<F>(chunk.iova, missing, level)?);
                }
            };
            let slot = Slot {
                node,
                level,
                word: 0,
            };
            let (items, _) = slot.span(chunk.iova, chunk.last);
            // SAFETY: T3: the mapper that checks holds the claim over the whole job.
            if unsafe { is_clear(&self.format, items) } {
                return Ok(());
            }
            let item_count = F::item_count(chunk.size);
            for (index, entry) in items.chunks(item_count).enumerate() {
                let iova = chunk.iova + index as u64 * chunk.size.bytes();
                self.check_entry(job, chunk.size, iova, entry, need)?;
            }
            Ok(())
        })
    }

    /// Checks the items that one leaf of `size` at `iova` would take.
    fn check_entry(
        &self,
        job: Job,
        size: PageSize,
        iova: u64,
        items: &[AtomicU64],
        need: &mut Need,
    ) -> Result<(), MapError> {
        let level = F::level_of(size);
        let mut has_table = false;
        for (index, item) in items.iter().enumerate() {
            let word = item.load(Ordering::Acquire);
            let item_iova = iova + ((index as u64) << F::item_lg2(level));
            match self.child(word, level) {
                Some(child) => {
                    has_table = true;
                    let below = Level(level.0 - 1);
                    if let Some(mapped) = self.first_leaf(child, below, item_iova) {
                        return Err(MapError::Occupied {
                            iova: Iova::new(mapped),
                        });
                    }
                    need.replaced_count += self.count_tables(child, below);
                }
                None if word != 0 => {
                    return Err(MapError::Occupied {
                        iova: Iova::new(item_iova),
                    });
                }
                None => {}
            }
        }
        if has_table {
            // Also where replacing is allowed: the fill falls back to this if it cannot retire.
            // A table stands there because a smaller size exists.
            let sizes = Self::below(job.sizes, size);
            self.check(job.part(iova, iova + size.offset_mask(), sizes), need)?;
        }
        Ok(())
    }

    /// Returns the sizes of `sizes` that are smaller than `size`.
    fn below(sizes: PageSizes, size: PageSize) -> PageSizes {
        sizes.up_to(size).without(size)
    }

    /// Fills the items of `job`, which [`check`](Self::check) allowed, linking tables from the
    /// supply.
    pub(super) fn fill(
        &self,
        job: Job,
        filling: &mut Filling<'_, '_, F, M>,
    ) -> Result<(), MapError> {
        job.try_for_each::<F, MapError>(|chunk| {
            let level = F::level_of(chunk.size);
            let (node, is_new) = self.link_path(chunk.iova, level, filling.supply)?;
            let slot = Slot {
                node,
                level,
                word: 0,
            };
            let (items, _) = slot.span(chunk.iova, chunk.last);
            // SAFETY: T3: the mapper that fills holds the claim over the whole job.
            if is_new || unsafe { is_clear(&self.format, items) } {
                self.store_chunk(items, chunk, job.prot);
                return Ok(());
            }
            // Empty tables stand in the way of some entries.
            let item_count = F::item_count(chunk.size);
            for (index, items) in items.chunks(item_count).enumerate() {
                let distance = index as u64 * chunk.size.bytes();
                let iova = chunk.iova + distance;
                let last = iova + chunk.size.offset_mask();
                let oa = chunk.oa + distance;
                let sizes = Self::below(job.sizes, chunk.size);
                // SAFETY: as above.
                if !unsafe { is_clear(&self.format, items) } {
                    if F::BREAK_BEFORE_MAKE || filling.retiring.is_none() {
                        self.fill(job.part(iova, last, sizes), filling)?;
                        continue;
                    }
                    self.unlink_empty(items, iova, level, filling);
                }
                let entry = Chunk {
                    iova,
                    last,
                    oa,
                    ..chunk
                };
                self.store_chunk(items, entry, job.prot);
            }
            Ok(())
        })
    }

    /// Unlinks the empty tables that `items`, of a table of `level` and translating from `iova` on,
    /// point to.
    fn unlink_empty(
        &self,
        items: &[AtomicU64],
        iova: u64,
        level: Level,
        filling: &mut Filling<'_, '_, F, M>,
    ) {
        for (index, item) in items.iter().enumerate() {
            let word = item.load(Ordering::Acquire);
            let Some(oa) = self.child_oa(word, level) else {
                continue;
            };
            item.store(0, Ordering::Release);
            let start = iova + ((index as u64) << F::item_lg2(level));
            let Filling {
                changes, retiring, ..
            } = filling;
            if let Some(retiring) = retiring {
                let below = Level(level.0 - 1);
                self.retire_tree(self.node_at(oa), oa, below, start, changes, retiring);
            }
        }
        flush_items(&self.memory, items);
    }

    /// Walks to the table of level `bottom` on the path of `iova`, linking what is missing; says
    /// whether that table is new, and so still empty where the caller has the claim.
    pub(super) fn link_path(
        &self,
        iova: u64,
        bottom: Level,
        supply: &mut Supply<'_, F, M>,
    ) -> Result<(Node<'_, F>, bool), MapError> {
        let (mut node, mut level) = self.root_node();
        let mut is_new = false;
        while level > bottom {
            let item = node.item(iova, level);
            let word = item.load(Ordering::Acquire);
            node = match self.child(word, level) {
                Some(child) => {
                    self.publish(item, word);
                    is_new = false;
                    child
                }
                None if word == 0 => {
                    is_new = true;
                    self.link(item, level, supply)?
                }
                None => {
                    return Err(MapError::Occupied {
                        iova: Iova::new(iova),
                    });
                }
            };
            level = Level(level.0 - 1);
        }
        Ok((node, is_new))
    }

    /// Links a new table to an empty item of a table of `level`; if somebody else did, uses theirs.
    fn link(
        &self,
        item: &AtomicU64,
        level: Level,
        supply: &mut Supply<'_, F, M>,
    ) -> Result<Node<'_, F>, MapError> {
        if supply.is_empty() {
            // Only if a table that was counted as there went away meanwhile, which T4 rules out.
            supply.add(1)?;
        }
        let page = supply.take().ok_or(OutOfMemory { size: F::GRANULE })?;
        let pending = if M::SNOOPED { 0 } else { F::PENDING };
        let word = self.format.encode_table(page, level) | pending;
        match item.compare_exchange(0, word, Ordering::Release, Ordering::Acquire) {
            Ok(_) => {
                self.publish(item, word);
                Ok(self.node_at(page))
            }
            Err(winner) => {
                supply.put_back(page);
                self.publish(item, winner);
                self.child(winner, level)
                    .ok_or(OutOfMemory { size: F::GRANULE }.into())
            }
        }
    }

    /// Makes sure that walkers that do not snoop see the link `word` in `item`.
    #[inline]
    pub(super) fn publish(&self, item: &AtomicU64, word: u64) {
        if !M::SNOOPED && word & F::PENDING != 0 {
            flush_items(&self.memory, core::slice::from_ref(item));
            item.fetch_and(!F::PENDING, Ordering::Release);
        }
    }

    /// Calls `each` with one address in the span of each table of level `bottom` that
    /// `iova..=last` needs.
    pub(super) fn each_table<E>(
        iova: u64,
        last: u64,
        bottom: Level,
        mut each: impl FnMut(u64) -> Result<(), E>,
    ) -> Result<(), E> {
        let span = PageSize::from_lg2(F::item_lg2(bottom) + F::item_count_lg2());
        let mut at = iova;
        loop {
            each(at)?;
            let span_last = at | span.offset_mask();
            if span_last >= last {
                return Ok(());
            }
            at = span_last + 1;
        }
    }
}
