//! Taking over a tree that another program has built, while hardware walks it.
//!
//! The words are checked as if anybody had written them, before the table believes one. What the
//! checks establish of the invariants of [`radix`](crate::radix):
//!
//! | invariant | established by |
//! |---|---|
//! | T1 (tree) | every page is adopted before it is looked into, and a page can be adopted once: so none is linked twice, here or in a table that was adopted before, and there are no loops; every item is empty, a pointer or a leaf, exactly as the format encodes it |
//! | T2 (alive) | an adopted page is this table's alone until it is freed (M4) |
//! | T3 (one writer) | the claims of the new table are its own, and no other program writes any more (M4) |
//! | T4, T7 | nothing: they are about mappers and readers, of which there are none yet |
//! | T5 (zeroed) | every item of a linked page is checked, so that what is not mapped is 0 |
//! | T6 (growth) | the first items of a root that has grown lead to a table of each former root's level |
//!
//! Besides the address, hardware may have changed the accessed and dirty bits of an item; no other
//! bit may differ from what the encoder makes.

#![expect(
    unsafe_code,
    reason = "looks into pages that it adopted, gives them back when it refuses, and takes a table apart"
)]

use alloc::vec::Vec;
use core::mem::{self, ManuallyDrop};
use core::ptr;

use iopt_formats::walk::Root;
use iopt_formats::{
    Entry, Format, Geometry, Iova, Leaf, Level, Oa, PageSize, Reserved, TableEntry,
};

use crate::mem::{Adoptable, PageError, TableMemory};
use crate::radix::node::Node;
use crate::radix::{Table, TableConfig, TableError};
use crate::sync::atomic::{AtomicU64, Ordering};

/// Why a tree is not taken over. Nothing was changed, and its pages belong to nobody, as before.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AdoptError {
    /// Not even an empty table could be made.
    #[error(transparent)]
    Table(#[from] TableError),
    /// No root of this format has that level.
    #[error(
        "a root of level {level} is not possible: the format has roots of {lowest} to {highest}"
    )]
    RootLevel {
        /// The level.
        level: Level,
        /// That of a new table.
        lowest: Level,
        /// That to which it may grow.
        highest: Level,
    },
    /// The root's page cannot be adopted, or is none.
    #[error("the root: {0}")]
    Root(#[source] ItemFault),
    /// An item is not as this format's encoder makes it.
    #[error("the item {word:#018x} at level {level} for iova {iova}: {fault}")]
    Item {
        /// The first address that the item stands for.
        iova: Iova,
        /// Level of the table that holds it.
        level: Level,
        /// The raw item.
        word: u64,
        /// What is wrong with it.
        fault: ItemFault,
    },
}

/// What is wrong with an item of a tree that is to be taken over.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ItemFault {
    /// Hardware faults on it.
    #[error(transparent)]
    Reserved(#[from] Reserved),
    /// It translates nothing but is not 0.
    #[error("it is empty but not zero")]
    Residue,
    /// It has bits that this format's encoder does not set, or lacks some that it sets: another
    /// format, or another configuration of it.
    #[error("no item of this configuration of the format looks like this")]
    Foreign,
    /// The pointer is marked as not written back: its author was stopped in the middle of an
    /// operation.
    #[error("the pointer was not written back to memory")]
    Pending,
    /// The pointer leads to a level other than the next one.
    #[error("the pointer skips to a table of level {0}")]
    Skips(Level),
    /// The page of the table that it points to cannot be adopted.
    #[error(transparent)]
    Page(#[from] PageError),
    /// The page of the table holds a word that is not 0 behind the items: the one of that index.
    /// Hardware may read it.
    #[error("word {0} of the table's page, behind its items, is not zero")]
    Behind(usize),
    /// Its address does not fit the configured width.
    #[error("the address {0} is too wide")]
    OaWidth(Oa),
    /// This configuration of the format has no leaves of that size here.
    #[error("there are no leaves of {0} here")]
    Size(PageSize),
    /// It is one of several items that make one entry, and they do not agree.
    #[error("the items of its group do not make one entry")]
    Group,
    /// The root has grown, so a former root must be linked here, and is not.
    #[error("it does not lead to the root from before the table grew")]
    FormerRoot,
    /// Its table cannot be noted: the list of the tree's pages cannot grow.
    #[error("no memory is left for the list of the tree's pages")]
    OutOfMemory,
}

impl<F: Format, M: Adoptable> Table<F, M> {
    /// Takes over the tree below `root`, which another program has built in `memory` with the same
    /// `format`, configuration included. Nothing is written; hardware may go on walking.
    ///
    /// The tree is believed in nothing: each of its items is looked at once, and it is refused whole
    /// if one is not as this format's encoder makes it. Pages that the former owner had unlinked are
    /// no part of it; the memory frees them with all others that nobody adopts.
    ///
    /// The table has an [`id`](Self::id) of its own and takes claims as `config` says. What the former
    /// owner had not yet told the hardware, nobody knows any more.
    ///
    /// # Errors
    ///
    /// [`AdoptError`] says where the tree breaks which rule.
    pub fn adopt(
        format: F,
        memory: M,
        config: TableConfig,
        root: Root,
    ) -> Result<Self, AdoptError> {
        let shape = Self::shape_of(&format)?;
        let pages = Survey::new(&format, &memory, shape.geometry).finish(root)?;
        // The table owns them from here on (T2).
        drop(pages);
        Ok(Self::assemble(format, memory, config, shape, root))
    }
}

impl<F: Format, M: TableMemory> Table<F, M> {
    /// Gives the tree up without freeing it, for another program that
    /// [adopts](Self::adopt) it, and returns its root.
    ///
    /// Sync and [reclaim](Self::reclaim) what is still gathered before: tables that wait for it are
    /// lost to this program, and the heir frees them as soon as it frees the rest of the memory.
    #[must_use = "the tree is lost without its root"]
    pub fn hand_over(self) -> Root {
        let table = ManuallyDrop::new(self);
        let root = table.root();
        // SAFETY: `table` is neither dropped nor used any more, so the field has one owner.
        drop(unsafe { ptr::read(&raw const table.registry) });
        // SAFETY: as above. It knows addresses of pages and frees none by itself.
        drop(unsafe { ptr::read(&raw const table.quarantine) });
        // SAFETY: as above. All other fields are plain data.
        drop(unsafe { ptr::read(&raw const table.memory) });
        root
    }
}

/// A tree being checked. Gives its pages back when it is dropped.
struct Survey<'m, F: Format, M: Adoptable> {
    format: &'m F,
    memory: &'m M,
    geometry: Geometry,
    /// The pages adopted so far.
    pages: Vec<(Oa, PageSize)>,
}

impl<'m, F: Format, M: Adoptable> Survey<'m, F, M> {
    const fn new(format: &'m F, memory: &'m M, geometry: Geometry) -> Self {
        Self {
            format,
            memory,
            geometry,
            pages: Vec::new(),
        }
    }

    /// Checks the whole tree and returns its pages, which are adopted.
    fn finish(mut self, root: Root) -> Result<Vec<(Oa, PageSize)>, AdoptError> {
        let (lowest, highest) = (self.geometry.top, self.geometry.max_top);
        if !(lowest..=highest).contains(&root.level) {
            return Err(AdoptError::RootLevel {
                level: root.level,
                lowest,
                highest,
            });
        }
        let size = Table::<F, M>::root_page(self.format, root.level);
        let count = 1 << self.format.root_count_lg2(root.level);
        let items = self.adopt_page(root.oa, size, count);
        let items = items.map_err(AdoptError::Root)?;
        self.check_table(items, root.level, 0)?;
        Ok(mem::take(&mut self.pages))
    }

    /// Adopts the page of a table and returns its items.
    fn adopt_page(
        &mut self,
        oa: Oa,
        size: PageSize,
        count: usize,
    ) -> Result<&'m [AtomicU64], ItemFault> {
        let reserved = self.pages.try_reserve(1);
        reserved.map_err(|_| ItemFault::OutOfMemory)?;
        self.memory.adopt_page(oa, size)?;
        self.pages.push((oa, size));
        // SAFETY: M4: the page is ours, of this size, and nobody but hardware, which stores whole
        // words, writes to it. It is given back, or becomes a table's, only when `self` goes.
        let page = unsafe { Node::<F>::root(self.memory, oa, size.bytes() / 8 - 1) };
        let (items, behind) = page.items().split_at(count.min(page.count()));
        let mut behind = behind.iter().map(|word| word.load(Ordering::Acquire));
        match behind.position(|word| word != 0) {
            Some(index) => Err(ItemFault::Behind(items.len() + index)),
            None => Ok(items),
        }
    }

    /// Checks the items of a table of `level` that stands for addresses from `first` on, and all
    /// below. Levels fall, so it ends; each page is looked into once, so it takes no longer than
    /// there is memory.
    fn check_table(
        &mut self,
        items: &[AtomicU64],
        level: Level,
        first: u64,
    ) -> Result<(), AdoptError> {
        let mut index = 0;
        while let Some(item) = items.get(index) {
            let word = item.load(Ordering::Acquire);
            let at = first | (index as u64) << F::item_lg2(level);
            let checked = self.check_item(items, index, word, level, at);
            let checked = checked.map_err(|fault| AdoptError::Item {
                iova: self.iova(at),
                level,
                word,
                fault,
            })?;
            match checked {
                Checked::Items(count) => index += count,
                Checked::Table(items) => {
                    let below = Level(level.0.saturating_sub(1));
                    self.check_table(items, below, at)?;
                    index += 1;
                }
            }
        }
        Ok(())
    }

    /// Checks an item, together with those that make one entry with it, and adopts the page that it
    /// points to. `at` is what its place says of the address.
    fn check_item(
        &mut self,
        items: &[AtomicU64],
        index: usize,
        word: u64,
        level: Level,
        at: u64,
    ) -> Result<Checked<'m>, ItemFault> {
        let entry = self.format.decode(word, level)?;
        // T6: the old root is the first item of the new one for good.
        let is_former_root = at == 0 && level > self.geometry.top;
        match entry {
            Entry::Table(table) => self.check_pointer(word, table, level).map(Checked::Table),
            _ if is_former_root => Err(ItemFault::FormerRoot),
            Entry::Empty if word == 0 => Ok(Checked::Items(1)),
            Entry::Empty => Err(ItemFault::Residue),
            Entry::Leaf(leaf) => {
                let count = self.check_entry(&items[index..], index, leaf, level)?;
                Ok(Checked::Items(count))
            }
        }
    }

    /// Checks a pointer and adopts the page that it leads to.
    fn check_pointer(
        &mut self,
        word: u64,
        table: TableEntry,
        level: Level,
    ) -> Result<&'m [AtomicU64], ItemFault> {
        let format = self.format;
        if word & F::PENDING != 0 {
            return Err(ItemFault::Pending);
        }
        if level.below() != Some(table.level) {
            return Err(ItemFault::Skips(table.level));
        }
        self.check_width(table.oa, F::GRANULE)?;
        let exact = format.encode_table(table.oa, level);
        // Hardware marks pointers as used by a bit below the address, which `child` looks past and
        // `exact_child` refuses; any other bit could be taken for a part of the address.
        let is_exact = word == exact;
        let is_marked = || {
            (word ^ exact) & !F::GRANULE.offset_mask() == 0
                && format.exact_child(word, level).is_none()
                && format.decode(exact, level) == Ok(Entry::Table(table))
        };
        if format.child(word, level) != Some(table.oa) || !(is_exact || is_marked()) {
            return Err(ItemFault::Foreign);
        }
        self.adopt_page(table.oa, F::GRANULE, 1 << F::item_count_lg2())
    }

    /// Checks the entry that starts with the first of `items`, which is number `index` of its table
    /// and decodes to `leaf`, and returns the number of its items.
    fn check_entry(
        &self,
        items: &[AtomicU64],
        index: usize,
        leaf: Leaf,
        level: Level,
    ) -> Result<usize, ItemFault> {
        let size = leaf.size;
        if !self.format.sizes().contains(size) || F::level_of(size) != level {
            return Err(ItemFault::Size(size));
        }
        let count = F::item_count(size);
        let items = items.get(..count).ok_or(ItemFault::Group)?;
        if !index.is_multiple_of(count) {
            return Err(ItemFault::Group);
        }
        if !size.divides(leaf.oa.get()) {
            return Err(ItemFault::Group);
        }
        self.check_width(leaf.oa, size)?;
        for (part, item) in items.iter().enumerate() {
            let word = item.load(Ordering::Acquire);
            let exact = self.format.leaf_item(leaf.oa, size, leaf.prot, part);
            if word != exact && !self.is_marked_leaf(word, exact, level) {
                return Err(if part == 0 {
                    ItemFault::Foreign
                } else {
                    ItemFault::Group
                });
            }
        }
        Ok(count)
    }

    /// Returns whether a leaf differs from `exact` only in what hardware writes, or by the mark that
    /// a cut leaves when the hardware did not answer.
    fn is_marked_leaf(&self, word: u64, exact: u64, level: Level) -> bool {
        let Ok(Entry::Leaf(plain)) = self.format.decode(exact, level) else {
            return false;
        };
        let mark = if level == Level::LEAF {
            0
        } else {
            F::BLOCK_MARK
        };
        let changed = (word ^ exact) & !mark;
        let bits = (0..u64::BITS).map(|bit| 1_u64 << bit);
        bits.filter(|bit| changed & bit != 0).all(|bit| {
            let Ok(Entry::Leaf(leaf)) = self.format.decode(exact ^ bit, level) else {
                return false;
            };
            let (accessed, dirty) = (plain.accessed, plain.dirty);
            let is_flag = (leaf.accessed, leaf.dirty) != (accessed, dirty);
            let is_used = leaf.accessed || !self.format.faults_unaccessed();
            is_flag
                && is_used
                && Leaf {
                    accessed,
                    dirty,
                    ..leaf
                } == plain
        })
    }

    /// Checks that no byte of `size` from `oa` on passes the configured width.
    fn check_width(&self, oa: Oa, size: PageSize) -> Result<(), ItemFault> {
        if (oa.get() | size.offset_mask()) >> self.format.oa_bits() == 0 {
            Ok(())
        } else {
            Err(ItemFault::OaWidth(oa))
        }
    }

    /// Returns the address that the indices on a path make up.
    fn iova(&self, at: u64) -> Iova {
        let bias = self.geometry.bias();
        let biased = at.wrapping_add(bias) & self.geometry.va_mask();
        Iova::new(biased.wrapping_sub(bias))
    }
}

/// What was checked.
enum Checked<'m> {
    /// This many items, which need no further look.
    Items(usize),
    /// A pointer to a table with these items.
    Table(&'m [AtomicU64]),
}

impl<F: Format, M: Adoptable> Drop for Survey<'_, F, M> {
    fn drop(&mut self) {
        for &(oa, size) in &self.pages {
            // SAFETY: adopted with this size by `adopt_page`; the references to it end with `self`.
            unsafe { self.memory.disown_page(oa, size) };
        }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
#[cfg(all(feature = "std", target_os = "linux", not(miri)))]
mod tests;
