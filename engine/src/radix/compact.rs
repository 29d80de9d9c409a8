//! Tables that hold nothing: finding them, unlinking them, freeing them.

use iopt_formats::{Format, Iova, IovaRange, Level, Oa, PageSize, Window};

use crate::invalidation::{Changes, Flushed, Gather, Kind};
use crate::mem::TableMemory;
use crate::radix::node::{Node, flush_items};
use crate::radix::{CompactError, Mapper, Table};
use crate::reclaim::{NoRoom, Retiring};
use crate::sync::atomic::Ordering;

impl<F: Format, M: TableMemory> Mapper<'_, F, M> {
    /// Unlinks the empty tables whose whole span lies inside `range`, as many as the quarantine
    /// has room for. Undoes [`reserve`](Self::reserve).
    ///
    /// Runs beside everything that other threads do. The tables are freed by
    /// [`Table::reclaim`], once the result is synced and the readers that were about have left; if
    /// the quarantine was full, another call unlinks what is left then.
    ///
    /// # Errors
    ///
    /// [`CompactError`]; nothing changed then.
    pub fn compact(&mut self, range: IovaRange) -> Result<Gather, CompactError> {
        if !self.claims(range.start().get(), range.last().get()) {
            return Err(CompactError::OutsideClaim {
                range,
                claim: self.range(),
            });
        }
        let table = self.table;
        let mut retiring = table.quarantine.begin();
        let mut changes = Changes::none(Kind::Altered);
        let done = table.compact_range(range, &mut changes, &mut retiring);
        match done {
            Err(NoRoom::Memory) if retiring.is_empty() => {
                return Err(CompactError::OutOfMemory);
            }
            Ok(()) | Err(_) => {}
        }
        if !retiring.is_empty() {
            self.forget();
        }
        Ok(Gather::new(changes, table.id, retiring.finish()))
    }
}

impl<F: Format, M: TableMemory> Table<F, M> {
    /// Adds the unlinked tree at `node`, of `level` and translating from `iova` on, to what an
    /// operation retires. Room was made for its tables.
    pub(super) fn retire_tree(
        &self,
        node: Node<'_, F>,
        oa: Oa,
        level: Level,
        iova: u64,
        changes: &mut Changes,
        retiring: &mut Retiring<'_>,
    ) {
        if let Some(below) = level.below() {
            for (index, item) in node.items().iter().enumerate() {
                let word = item.load(Ordering::Acquire);
                if let Some(child_oa) = self.child_oa(word, level) {
                    let start = iova + ((index as u64) << F::item_lg2(level));
                    let child = self.node_at(child_oa);
                    self.retire_tree(child, child_oa, below, start, changes, retiring);
                }
            }
        }
        let span = PageSize::from_lg2(F::item_lg2(level) + F::item_count_lg2());
        let range = IovaRange::with_len(Iova::new(iova), span.bytes())
            .expect("a table's span is aligned, so it does not wrap");
        changes.add_table(range, Level(level.0 + 1));
        retiring.push(oa);
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

    /// Unlinks the empty tables whose whole span lies inside `range`, which the caller has
    /// claimed, until there is no room for more.
    pub(super) fn compact_range(
        &self,
        range: IovaRange,
        changes: &mut Changes,
        retiring: &mut Retiring<'_>,
    ) -> Result<(), NoRoom> {
        let (root, top) = self.root_node();
        let bias = self.geometry.bias();
        // Indexes follow the address bits, so the first item of the root translates address 0, or
        // the address that the bias moves there.
        let base = match self.geometry.window {
            Window::Upper => 0_u64.wrapping_sub(bias),
            Window::Lower | Window::SignExtended => 0,
        };
        self.compact_table(root, top, base, range, changes, retiring)?;
        Ok(())
    }

    /// Compacts below `node`, whose first item translates from `base` on; returns whether it is
    /// empty then.
    ///
    /// Only tables that translate a part of `range` are entered: by T4 the caller's claim keeps
    /// them linked.
    fn compact_table(
        &self,
        node: Node<'_, F>,
        level: Level,
        base: u64,
        range: IovaRange,
        changes: &mut Changes,
        retiring: &mut Retiring<'_>,
    ) -> Result<bool, NoRoom> {
        let item_lg2 = F::item_lg2(level);
        let mut is_empty = true;
        for (index, item) in node.items().iter().enumerate() {
            let word = item.load(Ordering::Acquire);
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
            let child_empty = self.compact_table(child, below, start, range, changes, retiring)?;
            if child_empty && range.contains(span) && !self.was_root(start, below) {
                retiring.reserve(1)?;
                item.store(0, Ordering::Release);
                flush_items(&self.memory, core::slice::from_ref(item));
                changes.add_table(span, level);
                retiring.push(child_oa);
            } else {
                is_empty = false;
            }
        }
        Ok(is_empty)
    }

    /// Returns whether a table of `level` that translates from `start` on is a former root, which
    /// stays (T6).
    fn was_root(&self, start: u64, level: Level) -> bool {
        start == 0 && level >= self.geometry.top
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

    /// Frees the unlinked tables that no hardware walks any more, as `flushed` or earlier proofs
    /// say, and no reader is inside. What readers still keep goes with a later call.
    ///
    /// Never waits. Does nothing if the proof is of another table. Without the feature `std` it
    /// takes note of the proof only, and [`trim`](Self::trim) frees.
    pub fn reclaim(&self, flushed: &Flushed) {
        if flushed.table() != self.id {
            return;
        }
        self.quarantine.settle(flushed.retired());
        self.quarantine
            .collect(|page| free_page::<F, M>(&self.memory, page));
    }

    /// Frees every unlinked table that no hardware walks any more: `&mut self` shows that no
    /// reader is left.
    pub fn trim(&mut self) {
        let Self {
            quarantine, memory, ..
        } = self;
        quarantine.collect_exclusively(|page| free_page::<F, M>(memory, page));
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

/// Frees a page that the quarantine gave out.
#[expect(unsafe_code, reason = "frees table pages")]
fn free_page<F: Format, M: TableMemory>(memory: &M, page: Oa) {
    // SAFETY: the page was linked in this tree with this size. R1: no item points to it any more,
    // and this is its one free; R2 and R3: neither hardware nor a reader of this program is inside.
    unsafe { memory.free(page, F::GRANULE) };
}

impl<F: Format, M: TableMemory> Drop for Table<F, M> {
    fn drop(&mut self) {
        let root = self.top.load();
        let (node, level) = self.root_node();
        self.free_tree(root.oa, level, Self::root_page(&self.format, level), node);
        let Self {
            quarantine, memory, ..
        } = self;
        // Whoever drops the table took it out of the device contexts, which stands for R2.
        quarantine.drain(|page| free_page::<F, M>(memory, page));
    }
}
