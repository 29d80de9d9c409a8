//! Tables that hold nothing: finding them, unlinking them, freeing them.

use alloc::vec::Vec;

use iopt_formats::{Format, Iova, IovaRange, Level, Oa, PageSize, Window};

use crate::invalidation::{Changes, Flushed, Gather, Kind, Operation};
use crate::mem::{OutOfMemory, TableMemory};
use crate::radix::Table;
use crate::radix::node::{Node, flush_items};
use crate::sync::atomic::Ordering;

/// Unlinked tables that hardware may still walk, with the operation that unlinked each.
#[derive(Debug, Default)]
pub(super) struct Limbo {
    /// Number of the last operation that unlinked.
    last: u64,
    pages: Vec<(Unlinked, Oa)>,
}

/// What is known of an unlinked table.
#[derive(Clone, Copy, Debug)]
enum Unlinked {
    /// The operation of this number unlinked it; its sync is not known to be done.
    By(Operation),
    /// No hardware walks it any more.
    Flushed,
}

impl<F: Format, M: TableMemory> Table<F, M> {
    /// Makes room for `count` pages in the limbo, so that retiring them needs no memory.
    pub(super) fn reserve_limbo(&self, count: usize) -> bool {
        self.limbo.lock().pages.try_reserve(count).is_ok()
    }

    /// As [`reserve_limbo`](Self::reserve_limbo), for operations that can do without: false if so
    /// many pages wait already that a caller must be late with [`reclaim`](Self::reclaim).
    pub(super) fn reserve_short_limbo(&self, count: usize) -> bool {
        /// 16 MiB of 4 KiB tables.
        const PAGE_LIMIT: usize = 4096;
        let mut limbo = self.limbo.lock();
        limbo.pages.len() + count <= PAGE_LIMIT && limbo.pages.try_reserve(count).is_ok()
    }

    /// Puts the unlinked tree at `node`, of `level` and translating from `iova` on, in the limbo.
    pub(super) fn retire_tree(
        &self,
        node: Node<'_, F>,
        oa: Oa,
        level: Level,
        iova: u64,
        changes: &mut Changes,
        retired: &mut Operation,
    ) {
        if let Some(below) = level.below() {
            for (index, item) in node.items().iter().enumerate() {
                let word = item.load(Ordering::Acquire);
                if let Some(child_oa) = self.child_oa(word, level) {
                    let start = iova + ((index as u64) << F::item_lg2(level));
                    let child = self.node_at(child_oa);
                    self.retire_tree(child, child_oa, below, start, changes, retired);
                }
            }
        }
        let span = PageSize::from_lg2(F::item_lg2(level) + F::item_count_lg2());
        let range = IovaRange::with_len(Iova::new(iova), span.bytes())
            .expect("a table's span is aligned, so it does not wrap");
        changes.add_table(range, Level(level.0 + 1));
        self.retire(oa, retired);
    }

    /// Puts one unlinked page in the limbo, under the number of the operation that `retired` belongs
    /// to, which gets one with its first page.
    pub(super) fn retire(&self, oa: Oa, retired: &mut Operation) {
        let mut limbo = self.limbo.lock();
        if *retired == Operation::NONE {
            limbo.last += 1;
            *retired = Operation(limbo.last);
        }
        limbo.pages.push((Unlinked::By(*retired), oa));
    }

    /// Notes that no hardware walks the pages of an operation any more.
    pub(super) fn settle_operation(&self, retired: Operation) {
        for (unlinked, _) in &mut self.limbo.lock().pages {
            if matches!(*unlinked, Unlinked::By(operation) if operation == retired) {
                *unlinked = Unlinked::Flushed;
            }
        }
    }

    /// Takes note that hardware walks none of the tables that `flushed` covers, without freeing them:
    /// the next [`reclaim`](Self::reclaim) does, whatever it is called with. For callers that
    /// cannot have `&mut self` now. Does nothing if the proof is of another table.
    pub fn settle(&self, flushed: &Flushed) {
        if flushed.table() == self.id {
            self.settle_operation(flushed.retired());
        }
    }

    /// Returns the first address that a tree translates, or `None` if it is empty.
    pub(super) fn first_leaf(&self, node: Node<'_, F>, level: Level, iova: u64) -> Option<u64> {
        node.items().iter().enumerate().find_map(|(index, item)| {
            let word = item.load(Ordering::Acquire);
            let start = iova + ((index as u64) << F::item_lg2(level));
            match level
                .below()
                .and_then(|below| Some((self.child(word, level)?, below)))
            {
                Some((child, below)) => self.first_leaf(child, below, start),
                None => (word != 0).then_some(start),
            }
        })
    }

    /// Returns the number of tables of a tree, its root included.
    pub(super) fn count_tables(&self, node: Node<'_, F>, level: Level) -> usize {
        let Some(below) = level.below() else { return 1 };
        let children = node.items().iter().filter_map(|item| {
            let child = self.child(item.load(Ordering::Acquire), level)?;
            Some(self.count_tables(child, below))
        });
        1 + children.sum::<usize>()
    }

    /// Unlinks the empty tables whose whole span lies inside `range`.
    ///
    /// They are freed by [`reclaim`](Self::reclaim), once the result is synced. Undoes
    /// [`Mapper::reserve`](crate::radix::Mapper::reserve).
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`] if the list of unlinked tables cannot grow; nothing changed then.
    pub fn compact(&mut self, range: IovaRange) -> Result<Gather, OutOfMemory> {
        let mut changes = Changes::none(Kind::Removed);
        let mut retired = Operation::NONE;
        if !self.reserve_limbo(self.table_count()) {
            return Err(OutOfMemory { size: F::GRANULE });
        }
        let (root, top) = self.root_node();
        let bias = self.geometry.bias();
        // Indexes follow the address bits, so the first item of the root translates address 0, or
        // the address that the bias moves there.
        let base = match self.geometry.window {
            Window::Upper => 0_u64.wrapping_sub(bias),
            Window::Lower | Window::SignExtended => 0,
        };
        self.compact_table(root, top, base, range, &mut changes, &mut retired);
        Ok(Gather::new(changes, self.id, retired))
    }

    /// Compacts below `node`, whose first item translates from `base` on; returns whether it is
    /// empty then.
    fn compact_table(
        &self,
        node: Node<'_, F>,
        level: Level,
        base: u64,
        range: IovaRange,
        changes: &mut Changes,
        retired: &mut Operation,
    ) -> bool {
        let item_lg2 = F::item_lg2(level);
        let mut is_empty = true;
        for (index, item) in node.items().iter().enumerate() {
            let word = item.load(Ordering::Relaxed);
            if word == 0 {
                continue;
            }
            let start = self.sign_extend(base.wrapping_add((index as u64) << item_lg2));
            let span = IovaRange::with_len(Iova::new(start), 1 << item_lg2)
                .expect("an item's span is aligned, so it does not wrap");
            let child = level
                .below()
                .and_then(|below| Some((self.child_oa(word, level)?, below)));
            let Some((child_oa, below)) = child.filter(|_| range.overlaps(span)) else {
                is_empty = false;
                continue;
            };
            let child = self.node_at(child_oa);
            let child_empty = self.compact_table(child, below, start, range, changes, retired);
            if child_empty && range.contains(span) {
                item.store(0, Ordering::Release);
                flush_items(&self.memory, core::slice::from_ref(item));
                changes.add_table(span, level);
                self.retire(child_oa, retired);
            } else {
                is_empty = false;
            }
        }
        is_empty
    }

    /// Returns the canonical form of an address of the decoded bits.
    fn sign_extend(&self, iova: u64) -> u64 {
        match self.geometry.window {
            Window::SignExtended => {
                let unused = 64 - u32::from(self.geometry.va_bits);
                ((iova << unused).cast_signed() >> unused).cast_unsigned()
            }
            Window::Lower | Window::Upper => iova,
        }
    }

    /// Frees the unlinked tables that `flushed`, or an earlier proof given to
    /// [`settle`](Self::settle), says that no hardware walks any more.
    ///
    /// Does nothing if it is of another table. `&mut self` is the proof that no reader of this
    /// program is inside one of them.
    #[expect(unsafe_code, reason = "frees table pages")]
    pub fn reclaim(&mut self, flushed: &Flushed) {
        if flushed.table() != self.id {
            return;
        }
        self.settle(flushed);
        let Self {
            limbo,
            memory,
            page_count,
            ..
        } = self;
        limbo.get_mut().pages.retain(|&(unlinked, oa)| {
            if matches!(unlinked, Unlinked::By(_)) {
                return true;
            }
            // SAFETY: the page was linked in this tree with this size and is in the limbo, so no
            // item points to it (T1) and this is its one free; `flushed` says that no hardware
            // walks it, and `&mut self` that no node refers to it (T2).
            unsafe { memory.free(oa, F::GRANULE) };
            page_count.fetch_sub(1, Ordering::Relaxed);
            false
        });
    }

    /// Frees the tables below `oa`, of `level`, and then the page itself.
    #[expect(unsafe_code, reason = "frees table pages")]
    fn free_tree(&self, oa: Oa, level: Level, page: PageSize, node: Node<'_, F>) {
        if let Some(below) = level.below() {
            for item in node.items() {
                let word = item.load(Ordering::Relaxed);
                if let Some(child) = self.child_oa(word, level) {
                    self.free_tree(child, below, F::GRANULE, self.node_at(child));
                }
            }
        }
        // SAFETY: only `drop` calls this, with `&mut self`: T1 makes this the one way to reach the
        // page, allocated with this size, and no borrow of the tree is left.
        unsafe { self.memory.free(oa, page) };
    }
}

impl<F: Format, M: TableMemory> Drop for Table<F, M> {
    #[expect(unsafe_code, reason = "frees table pages")]
    fn drop(&mut self) {
        let root = self.top.load();
        let (node, level) = self.root_node();
        self.free_tree(root.oa, level, Self::root_page(&self.format, level), node);
        let Self { limbo, memory, .. } = self;
        for (_, oa) in limbo.get_mut().pages.drain(..) {
            // SAFETY: a page in the limbo is in no tree (T1) and was allocated with this size;
            // whoever drops the table took it out of the device contexts.
            unsafe { memory.free(oa, F::GRANULE) };
        }
    }
}
