//! Filling the tables of one mapping: in one hopeful pass, or checked first.

use iopt_formats::{Format, Iova, Level, Oa, PageSize, PageSizes, Prot};

use crate::invalidation::{Changes, RetiredSpan};
use crate::mem::{OutOfMemory, TableMemory};
use crate::radix::job::{Chunk, Job};
use crate::radix::node::{Node, Supply, flush_items};
use crate::radix::unmap::clear_items;
use crate::radix::{MapError, Slot, Table};
use crate::sync::atomic::{AtomicU64, Ordering};

/// Items in a cache line.
const LINE_ITEMS: usize = crate::mem::LINE_LEN / 8;

/// Stores `word`, `word + step`, .. to `items` as long as they are empty, and returns how many it
/// stored. One pass over each cache line: the loads and the stores of a line stay together.
#[inline]
pub(super) fn fill_items(items: &[AtomicU64], mut word: u64, step: u64) -> usize {
    let (lines, rest) = items.as_chunks::<LINE_ITEMS>();
    for (index, line) in lines.iter().enumerate() {
        if line
            .iter()
            .fold(0, |seen, item| seen | item.load(Ordering::Relaxed))
            != 0
        {
            return index * LINE_ITEMS;
        }
        for item in line {
            item.store(word, Ordering::Relaxed);
            word = word.wrapping_add(step);
        }
    }
    for (index, item) in rest.iter().enumerate() {
        if item.load(Ordering::Relaxed) != 0 {
            return lines.len() * LINE_ITEMS + index;
        }
        item.store(word, Ordering::Relaxed);
        word = word.wrapping_add(step);
    }
    items.len()
}

/// What a careful map needs.
#[derive(Default)]
pub(super) struct Need {
    pub(super) table_count: usize,
    /// Empty tables that larger leaves replace.
    pub(super) replaced_count: usize,
    /// The table last counted as missing at each level, by its IOVA over its span.
    counted: [Option<u64>; 6],
}

/// What a careful map may use and what it did.
pub(super) struct Careful<'s, 't, F: Format, M: TableMemory> {
    pub(super) supply: &'s mut Supply<'t, F, M>,
    pub(super) may_replace: bool,
    pub(super) changes: Changes,
    pub(super) retired: RetiredSpan,
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
    /// Counts the tables of levels `bottom..` below an empty item, once each.
    pub(super) fn count<F: Format>(&mut self, iova: u64, missing: Missing, bottom: Level) {
        let Missing::At(level) = missing else { return };
        for level in bottom.0..level.0 {
            let span_lg2 = u32::from(F::item_lg2(Level(level)) + F::item_count_lg2());
            let tag = iova.checked_shr(span_lg2).unwrap_or(0);
            let counted = &mut self.counted[usize::from(level)];
            if *counted != Some(tag) {
                *counted = Some(tag);
                self.table_count += 1;
            }
        }
    }
}

impl<F: Format, M: TableMemory> Table<F, M> {
    /// Returns the table of level `bottom` on the path of `iova`.
    pub(super) fn find_table(&self, iova: u64, bottom: Level) -> Result<Node<'_, F>, Missing> {
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

    /// Fills the items of `job` in one pass. On an obstacle, returns the first address that was
    /// not filled.
    pub(super) fn fill(&self, job: Job) -> Result<(), u64> {
        job.try_for_each::<F, u64>(|chunk| {
            let level = F::level_of(chunk.size);
            let node = self.find_published(chunk.iova, level).ok_or(chunk.iova)?;
            let filled = self.fill_chunk(node, chunk, job.prot);
            let wanted = (chunk.last - chunk.iova) >> F::item_lg2(level);
            if filled as u64 > wanted {
                Ok(())
            } else {
                Err(chunk.iova + ((filled as u64) << F::item_lg2(level)))
            }
        })
    }

    /// As [`find_table`](Self::find_table), if hardware that does not snoop can see the path.
    fn find_published(&self, iova: u64, bottom: Level) -> Option<Node<'_, F>> {
        let (root, top) = self.root_node();
        self.table_above_leaf(root, top, bottom, iova)
    }

    /// Fills the items of a chunk up to the first that is not empty; returns their number.
    fn fill_chunk(&self, node: Node<'_, F>, chunk: Chunk, prot: Prot) -> usize {
        let level = F::level_of(chunk.size);
        let slot = Slot {
            node,
            level,
            word: 0,
        };
        let (items, _) = slot.span(chunk.iova, chunk.last);
        let first = self.format.leaf_attributes(prot, chunk.size)
            | self.format.encode_oa(Oa::new(chunk.oa));
        let entry_step = self.format.encode_oa(Oa::new(chunk.size.bytes()));
        let item_count = F::item_count(chunk.size);
        let mut filled = 0;
        if item_count == 1 {
            filled = fill_items(items, first, entry_step);
        } else {
            let item_step = self.format.item_step(chunk.size);
            let mut word = first;
            for entry in items.chunks(item_count) {
                let done = fill_items(entry, word, item_step);
                filled += done;
                if done < entry.len() {
                    break;
                }
                word = word.wrapping_add(entry_step);
            }
        }
        flush_items(&self.memory, &items[..filled]);
        filled
    }

    /// Clears what [`fill`](Self::fill) filled below `end`.
    pub(super) fn unfill(&self, job: Job, end: u64) {
        let done = job.try_for_each::<F, ()>(|chunk| {
            if chunk.iova >= end {
                return Err(());
            }
            let level = F::level_of(chunk.size);
            if let Ok(node) = self.find_table(chunk.iova, level) {
                let slot = Slot {
                    node,
                    level,
                    word: 0,
                };
                let (items, _) = slot.span(chunk.iova, chunk.last.min(end - 1));
                clear_items(items);
                flush_items(&self.memory, items);
            }
            Ok(())
        });
        // `Err` only says that the end was met.
        let _ = done;
    }

    /// Checks that nothing of `job` is mapped and counts what filling it needs.
    pub(super) fn check(&self, job: Job, need: &mut Need) -> Result<(), MapError> {
        job.try_for_each::<F, MapError>(|chunk| {
            let level = F::level_of(chunk.size);
            let node = match self.find_table(chunk.iova, level) {
                Ok(node) => node,
                Err(Missing::Leaf) => {
                    return Err(MapError::Occupied {
                        iova: Iova::new(chunk.iova),
                    });
                }
                Err(missing) => {
                    need.count::<F>(chunk.iova, missing, level);
                    return Ok(());
                }
            };
            let slot = Slot {
                node,
                level,
                word: 0,
            };
            let (items, _) = slot.span(chunk.iova, chunk.last);
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
        // Also where replacing is allowed: it falls back to this if the limbo cannot grow.
        if has_table {
            let smaller = job.part(
                iova,
                iova + size.offset_mask(),
                Self::below(job.sizes, size),
            );
            if smaller.sizes.is_empty() {
                return Err(MapError::Occupied {
                    iova: Iova::new(iova),
                });
            }
            self.check(smaller, need)?;
        }
        Ok(())
    }

    /// Returns the sizes of `sizes` that are smaller than `size`.
    fn below(sizes: PageSizes, size: PageSize) -> PageSizes {
        sizes.up_to(size).without(size)
    }

    /// Fills the items of `job`, which [`check`](Self::check) allowed, linking tables from the
    /// supply.
    pub(super) fn fill_checked(
        &self,
        job: Job,
        careful: &mut Careful<'_, '_, F, M>,
    ) -> Result<(), MapError> {
        job.try_for_each::<F, MapError>(|chunk| {
            let level = F::level_of(chunk.size);
            let node = self.link_path(chunk.iova, level, careful.supply)?;
            let slot = Slot {
                node,
                level,
                word: 0,
            };
            let item_count = F::item_count(chunk.size);
            let mut rest = chunk;
            loop {
                let filled = self.fill_chunk(node, rest, job.prot);
                let (items, _) = slot.span(rest.iova, rest.last);
                if filled == items.len() {
                    return Ok(());
                }
                // The entry at the obstacle: empty tables are in its way.
                let entry = filled / item_count;
                let iova = rest.iova + entry as u64 * chunk.size.bytes();
                let oa = rest.oa + entry as u64 * chunk.size.bytes();
                let entry_items = &items[entry * item_count..(entry + 1) * item_count];
                clear_items(&items[entry * item_count..filled]);
                let entry_chunk = Chunk {
                    iova,
                    last: iova + chunk.size.offset_mask(),
                    oa,
                    ..chunk
                };
                if F::BREAK_BEFORE_MAKE || !careful.may_replace {
                    let sizes = Self::below(job.sizes, chunk.size);
                    self.fill_checked(job.part(iova, entry_chunk.last, sizes), careful)?;
                } else {
                    self.unlink_empty(entry_items, iova, level, careful);
                    self.fill_chunk(node, entry_chunk, job.prot);
                }
                if entry_chunk.last == rest.last {
                    return Ok(());
                }
                rest.oa = oa + chunk.size.bytes();
                rest.iova = entry_chunk.last + 1;
            }
        })
    }

    /// Unlinks the empty tables that `items`, of a table of `level` and translating from `iova` on,
    /// point to.
    fn unlink_empty(
        &self,
        items: &[AtomicU64],
        iova: u64,
        level: Level,
        careful: &mut Careful<'_, '_, F, M>,
    ) {
        for (index, item) in items.iter().enumerate() {
            let word = item.load(Ordering::Acquire);
            let Some(oa) = self.child_oa(word, level) else {
                continue;
            };
            item.store(0, Ordering::Release);
            let start = iova + ((index as u64) << F::item_lg2(level));
            let Careful {
                changes, retired, ..
            } = careful;
            self.retire_tree(
                self.node_at(oa),
                oa,
                Level(level.0 - 1),
                start,
                changes,
                retired,
            );
        }
        flush_items(&self.memory, items);
    }

    /// Walks to the table of level `bottom` on the path of `iova`, linking what is missing.
    pub(super) fn link_path(
        &self,
        iova: u64,
        bottom: Level,
        supply: &mut Supply<'_, F, M>,
    ) -> Result<Node<'_, F>, MapError> {
        let (mut node, mut level) = self.root_node();
        while level > bottom {
            let item = node.item(iova, level);
            let word = item.load(Ordering::Acquire);
            node = match self.child(word, level) {
                Some(child) => {
                    self.publish(item, word);
                    child
                }
                None if word == 0 => self.link(item, level, supply)?,
                None => {
                    return Err(MapError::Occupied {
                        iova: Iova::new(iova),
                    });
                }
            };
            level = Level(level.0 - 1);
        }
        Ok(node)
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
                self.page_count.fetch_add(1, Ordering::Relaxed);
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

    /// Calls `each` with one address in the span of each leaf table of `iova..=last`.
    pub(super) fn each_leaf_table<E>(
        iova: u64,
        last: u64,
        mut each: impl FnMut(u64) -> Result<(), E>,
    ) -> Result<(), E> {
        let span = PageSize::from_lg2(F::item_lg2(Level(1)));
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
