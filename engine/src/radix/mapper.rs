//! The handle that changes a claimed range, and its fast paths.
//!
//! Real traffic is mostly single pages in the last few leaf tables of a domain, and short runs of
//! them. Those cases are straight lines here: no loop but the walk, no second pass, everything
//! unusual behind one call that does not return to them.

#![expect(unsafe_code, reason = "plain reads of items that the claim covers")]

use core::fmt;

use iopt_formats::{Format, Iova, IovaRange, Level, Oa, PageSize, PageSizes, Prot};

use crate::invalidation::{Changes, Gather, Kind, MapSync};
use crate::mem::TableMemory;
use crate::radix::fill::{is_clear, store_items};
use crate::radix::job::{is_linear, usable_sizes};
use crate::radix::map::Piece;
use crate::radix::node::{Inner, Node, flush_items};
use crate::radix::position::Position;
use crate::radix::unmap::{clear_items, is_plain};
use crate::radix::{
    MapError, MapSide, Table, TablePolicy, Translation, UnmapError, UnmapPolicy, Unmapped,
};
use crate::reclaim::Operation;
use crate::sync::atomic::{AtomicU64, Ordering, fence};

/// Changes the translations of one claimed range.
///
/// It borrows the claim, so nobody else can change the range meanwhile, and takes no lock. It
/// remembers where it walked last (T4), so keep it for many operations.
pub struct Mapper<'t, F: Format, M: TableMemory> {
    pub(super) table: &'t Table<F, M>,
    pub(super) start: u64,
    pub(super) last: u64,
    /// The root that hardware was told of, as far as this mapper knows, its level, and the last
    /// address that it reaches. A newer root leads to the same tables (T6).
    pub(super) root: Node<'t, F>,
    pub(super) top: Level,
    pub(super) reach: u64,
    pub(super) table_policy: TablePolicy,
    pub(super) position: Position<'t, F>,
}

impl<'t, F: Format, M: TableMemory> Mapper<'t, F, M> {
    /// Creates a mapper of `range`, whose claim the caller holds for `'t`.
    pub(super) fn new(table: &'t Table<F, M>, range: IovaRange) -> Self {
        let (root, top) = table.root_node();
        Self {
            table,
            start: range.start().get(),
            last: range.last().get(),
            root,
            top,
            reach: if top > table.geometry.top {
                0
            } else {
                table.fast_reach(top)
            },
            table_policy: table.policy,
            position: Position::NOWHERE,
        }
    }

    /// Returns the claimed range.
    pub fn range(&self) -> IovaRange {
        IovaRange::new(Iova::new(self.start), Iova::new(self.last))
            .expect("the bounds are those of a claim")
    }

    /// Returns the table.
    pub const fn table(&self) -> &'t Table<F, M> {
        self.table
    }

    /// Sets what this mapper does with tables that an unmap covers wholly; it starts with what the
    /// table was configured with.
    pub fn set_table_policy(&mut self, table_policy: TablePolicy) {
        self.table_policy = table_policy;
    }

    /// Translates `iova`; see [`Table::lookup`]. Inside the claim no epoch is needed (T7).
    #[inline]
    pub fn lookup(&self, iova: Iova) -> Option<Translation<'t, F>> {
        if self.claims(iova.get(), iova.get()) {
            self.table.translate(iova)
        } else {
            self.table.lookup(iova)
        }
    }

    /// Returns whether `start..=last` is claimed.
    #[inline]
    pub(super) const fn claims(&self, start: u64, last: u64) -> bool {
        self.start <= start && last <= self.last
    }

    /// Maps `range` to the output addresses from `oa` on, with the largest pages that fit.
    ///
    /// Devices may use the range once the result is synced. Rights that the format cannot express
    /// are widened as [`Format::effective`] says. Where an empty table stands in the way of a larger
    /// leaf, the leaf takes its place; formats with [`Format::BREAK_BEFORE_MAKE`] use the table, and
    /// smaller pages, until [`compact`](Self::compact) unlinks it or [`merge`](Self::merge) is asked for.
    ///
    /// # Errors
    ///
    /// [`MapError`]; then nothing of the range is mapped that was not before.
    #[doc(alias = "iommu_map")]
    #[doc(alias = "map_pages")]
    #[inline]
    pub fn map(&mut self, range: IovaRange, oa: Oa, prot: Prot) -> Result<MapSync, MapError> {
        let (iova, last) = (range.start().get(), range.last().get());
        let page_mask = F::GRANULE.offset_mask();
        let attributes = self.table.attributes[0][prot.index()];
        if last.wrapping_sub(iova) == page_mask
            && (iova | oa.get()) & page_mask == 0
            && self.claims(iova, last)
            && oa.get() <= self.table.oa_last
            && attributes != 0
            && let Some(node) = self.recent_leaf_table(iova)
        {
            let item = node.item(iova, Level::LEAF);
            if item.load(Ordering::Relaxed) == 0 {
                // T3: the claim covers the page, so nobody else stores to the item.
                item.store(
                    attributes | self.table.format.encode_oa(oa),
                    Ordering::Relaxed,
                );
                fence(Ordering::Release);
                flush_items(&self.table.memory, core::slice::from_ref(item));
                return Ok(MapSync::none(self.table.id));
            }
        }
        if range.len_minus_one() < block_mask::<F>() {
            self.map_short(range, oa, prot)
        } else {
            self.map_large(range, oa, prot)
        }
    }

    /// Maps one block whose table is at hand, or hands over.
    #[inline(never)]
    fn map_large(&mut self, range: IovaRange, oa: Oa, prot: Prot) -> Result<MapSync, MapError> {
        let (iova, last) = (range.start().get(), range.last().get());
        let table = self.table;
        if let Some((size, level)) = block_of::<F>(iova, last)
            && size.divides(oa.get())
            && oa.get() <= table.oa_last
            && self.claims(iova, last)
            && let Some(by_prot) = table.attributes.get(usize::from(level.0))
            && by_prot[prot.index()] != 0
            && let Some(item) = self.recent_large_item(iova, level)
            && item.load(Ordering::Relaxed) == 0
        {
            let word = by_prot[prot.index()] | table.format.encode_oa(oa);
            item.store(word, Ordering::Relaxed);
            fence(Ordering::Release);
            flush_items(&table.memory, core::slice::from_ref(item));
            return Ok(MapSync::none(table.id));
        }
        self.map_short(range, oa, prot)
    }

    /// Maps a run of pages inside a leaf table that is at hand, or hands over. Calls nothing else,
    /// so that it needs little of the stack.
    #[inline(never)]
    fn map_short(&mut self, range: IovaRange, oa: Oa, prot: Prot) -> Result<MapSync, MapError> {
        let (iova, last) = (range.start().get(), range.last().get());
        let table = self.table;
        let attributes = table.attributes[0][prot.index()];
        if attributes != 0
            && is_in_one_leaf_table::<F>(iova, last)
            && self.is_run_of_pages(Piece { range, oa })
            && let Some(item) = self.recent_large_item(iova, Level(1))
        {
            let word = item.load(Ordering::Acquire);
            let leaf_table = table.format.exact_child(word, Level(1));
            let Some(leaf_table) = leaf_table.and_then(|oa| Inner::new(table.node_at(oa))) else {
                return self.map_new_table(item, range, oa, prot);
            };
            let (items, _) = leaf_table.span(iova, last);
            // SAFETY: T3: the range is claimed, and `&mut self` keeps other uses of the claim
            // away.
            if unsafe { is_clear(&table.format, items) } {
                let step = table.format.encode_oa(Oa::new(F::GRANULE.bytes()));
                store_items(items, attributes | table.format.encode_oa(oa), step);
                fence(Ordering::Release);
                flush_items(&table.memory, items);
                return Ok(MapSync::none(table.id));
            }
        }
        self.map_run(range, oa, prot)
    }

    /// Maps runs of pages and single blocks whose tables are there; everything else in general.
    #[inline(never)]
    pub(super) fn map_run(
        &mut self,
        range: IovaRange,
        oa: Oa,
        prot: Prot,
    ) -> Result<MapSync, MapError> {
        let (iova, last) = (range.start().get(), range.last().get());
        let len_minus_one = range.len_minus_one();
        let table = self.table;
        let aligned = table
            .smallest
            .divides(iova | oa.get() | last.wrapping_add(1));
        let fits = oa.get() <= table.oa_last && len_minus_one <= table.oa_last - oa.get();
        if aligned && fits && self.claims(iova, last) && table.map_side == MapSide::Silent {
            let usable = usable_sizes(table.sizes, iova, oa.get(), len_minus_one);
            if usable.bits() == F::GRANULE.bytes() && is_linear::<F>(oa, len_minus_one) {
                let attributes = table.attributes[0][prot.index()];
                let piece = Piece { range, oa };
                if attributes != 0 && self.map_pages(piece, attributes) {
                    return Ok(MapSync::none(table.id));
                }
            } else if let Some(size) = usable.largest()
                && size.offset_mask() == len_minus_one
                && size.divides(iova)
                && F::item_count(size) == 1
                && self.map_block(iova, oa, prot, size)
            {
                return Ok(MapSync::none(table.id));
            }
        }
        self.map_general(range, oa, prot)
    }

    /// Maps a run of pages whose tables are all there, or does nothing and returns false.
    fn map_pages(&mut self, piece: Piece, attributes: u64) -> bool {
        if !self.is_clear(piece.range) {
            return false;
        }
        self.store_pages(piece, attributes);
        fence(Ordering::Release);
        true
    }

    /// Returns whether the tables of `range`, claimed and aligned to pages, are there and empty.
    fn is_clear(&mut self, range: IovaRange) -> bool {
        let (mut at, last) = (range.start().get(), range.last().get());
        loop {
            let Some(table) = self.leaf_table(at) else {
                return false;
            };
            let (items, span_last) = table.span(at, last);
            // SAFETY: T3: callers checked that the range is claimed, and `&mut self` keeps other
            // uses of the claim away.
            if !unsafe { is_clear(&self.table.format, items) } {
                return false;
            }
            if span_last == last {
                return true;
            }
            at = span_last + 1;
        }
    }

    /// Stores the leaves of a run of pages whose tables are all there.
    pub(super) fn store_pages(&mut self, piece: Piece, attributes: u64) {
        let table = self.table;
        let step = table.format.encode_oa(Oa::new(F::GRANULE.bytes()));
        let mut word = attributes | table.format.encode_oa(piece.oa);
        let (mut at, last) = (piece.range.start().get(), piece.range.last().get());
        while let Some(leaf_table) = self.leaf_table(at) {
            let (items, span_last) = leaf_table.span(at, last);
            store_items(items, word, step);
            flush_items(&table.memory, items);
            if span_last == last {
                break;
            }
            at = span_last + 1;
            word = word.wrapping_add(step.wrapping_mul(items.len() as u64));
        }
    }

    /// Returns whether `piece` is made of single pages and can be stored at once.
    pub(super) fn is_quick(&mut self, piece: Piece) -> bool {
        self.is_run_of_pages(piece) && self.is_clear(piece.range)
    }

    /// Returns whether `piece` is claimed, aligned, inside the output width, and made of single
    /// pages whose words follow each other.
    #[inline]
    fn is_run_of_pages(&self, piece: Piece) -> bool {
        let Piece { range, oa } = piece;
        let (iova, last) = (range.start().get(), range.last().get());
        let len_minus_one = range.len_minus_one();
        let table = self.table;
        F::GRANULE.divides(iova | oa.get() | last.wrapping_add(1))
            && self.claims(iova, last)
            && oa.get() <= table.oa_last
            && len_minus_one <= table.oa_last - oa.get()
            && usable_sizes(table.sizes, iova, oa.get(), len_minus_one).bits() == F::GRANULE.bytes()
            && is_linear::<F>(oa, len_minus_one)
    }

    /// Clears a run of pages whose tables are all there.
    fn clear_pages(&mut self, iova: u64, last: u64) {
        let mut at = iova;
        while let Some(node) = self.leaf_table(at) {
            let (items, span_last) = node.span(at, last);
            clear_items(items);
            flush_items(&self.table.memory, items);
            if span_last == last {
                break;
            }
            at = span_last + 1;
        }
        fence(Ordering::Release);
    }

    /// Maps one single-item leaf above level 0 whose path is there, or does nothing and returns
    /// false.
    fn map_block(&mut self, iova: u64, oa: Oa, prot: Prot, size: PageSize) -> bool {
        let table = self.table;
        let level = F::level_of(size);
        let Some(&attributes) = table
            .attributes
            .get(usize::from(level.0))
            .map(|by_prot| &by_prot[prot.index()])
        else {
            return false;
        };
        let Some(item) = self.large_item(iova, level).filter(|_| attributes != 0) else {
            return false;
        };
        if item.load(Ordering::Relaxed) != 0 {
            return false;
        }
        item.store(attributes | table.format.encode_oa(oa), Ordering::Relaxed);
        fence(Ordering::Release);
        flush_items(&table.memory, core::slice::from_ref(item));
        true
    }

    /// Clears the single-item leaf above level 0 that translates exactly `iova..=last` and returns
    /// its size, or does nothing.
    fn unmap_block(&mut self, iova: u64, last: u64) -> Option<PageSize> {
        let (size, level) = block_of::<F>(iova, last)?;
        if level > self.top {
            return None;
        }
        let item = self.large_item(iova, level)?;
        self.take_block(item, level).then_some(size)
    }

    /// Clears `item` of a table of `level` if it is a leaf of its own.
    #[inline]
    fn take_block(&self, item: &AtomicU64, level: Level) -> bool {
        let word = item.load(Ordering::Relaxed);
        let is_leaf = word & F::PRESENT != 0
            && word & F::GROUPED == 0
            && self.table.child_oa(word, level).is_none();
        if is_leaf {
            item.store(0, Ordering::Relaxed);
            fence(Ordering::Release);
            flush_items(&self.table.memory, core::slice::from_ref(item));
        }
        is_leaf
    }

    /// Removes the translations of `range`.
    ///
    /// Whatever was mapped by one call or by many, one unmap may remove all of it. The range is
    /// safe to use for something else only once the gather is synced.
    ///
    /// # Errors
    ///
    /// [`UnmapError`]; nothing changed then. See [`UnmapPolicy`] for what is refused.
    #[doc(alias = "iommu_unmap")]
    #[doc(alias = "unmap_pages")]
    #[inline]
    pub fn unmap(&mut self, range: IovaRange, policy: UnmapPolicy) -> Result<Unmapped, UnmapError> {
        let (iova, last) = (range.start().get(), range.last().get());
        let page_mask = F::GRANULE.offset_mask();
        if last.wrapping_sub(iova) == page_mask
            && iova & page_mask == 0
            && self.claims(iova, last)
            && let Some(node) = self.recent_leaf_table(iova)
        {
            let item = node.item(iova, Level::LEAF);
            let word = item.load(Ordering::Relaxed);
            if word & F::PRESENT != 0 && word & F::GROUPED == 0 {
                item.store(0, Ordering::Relaxed);
                fence(Ordering::Release);
                flush_items(&self.table.memory, core::slice::from_ref(item));
                return Ok(self.removed(range, F::GRANULE));
            }
        }
        if range.len_minus_one() < block_mask::<F>() {
            self.unmap_short(range, policy)
        } else {
            self.unmap_large(range, policy)
        }
    }

    /// Unmaps one block whose table is at hand, or hands over.
    #[inline(never)]
    fn unmap_large(
        &mut self,
        range: IovaRange,
        policy: UnmapPolicy,
    ) -> Result<Unmapped, UnmapError> {
        let (iova, last) = (range.start().get(), range.last().get());
        if let Some((size, level)) = block_of::<F>(iova, last)
            && self.claims(iova, last)
            && let Some(item) = self.recent_large_item(iova, level)
            && self.take_block(item, level)
        {
            return Ok(self.removed(range, size));
        }
        if self.table_policy == TablePolicy::Detach {
            if let Some(unmapped) = self.detach_leaf_tables(range, policy) {
                return Ok(unmapped);
            }
            return self.unmap_general(range, policy);
        }
        self.unmap_short(range, policy)
    }

    /// Unmaps a run of pages inside a leaf table that is at hand, or hands over. Calls nothing
    /// else, so that it needs little of the stack.
    #[inline(never)]
    fn unmap_short(
        &mut self,
        range: IovaRange,
        policy: UnmapPolicy,
    ) -> Result<Unmapped, UnmapError> {
        let (iova, last) = (range.start().get(), range.last().get());
        if is_in_one_leaf_table::<F>(iova, last)
            && F::GRANULE.divides(iova | last.wrapping_add(1))
            && self.claims(iova, last)
            && let Some(leaf_table) = self.recent_leaf_table(iova)
        {
            let (items, _) = leaf_table.span(iova, last);
            // SAFETY: T3: the range is claimed, and `&mut self` keeps other uses of the claim
            // away.
            if unsafe { is_plain(&self.table.format, items) } {
                clear_items(items);
                fence(Ordering::Release);
                flush_items(&self.table.memory, items);
                return Ok(self.removed(range, F::GRANULE));
            }
        }
        self.unmap_run(range, policy)
    }

    /// Unmaps runs of pages and single blocks; everything else in general.
    #[inline(never)]
    fn unmap_run(&mut self, range: IovaRange, policy: UnmapPolicy) -> Result<Unmapped, UnmapError> {
        let (iova, last) = (range.start().get(), range.last().get());
        if F::GRANULE.divides(iova | last.wrapping_add(1)) && self.claims(iova, last) {
            if last - iova >= PageSize::from_lg2(F::item_lg2(Level(1))).offset_mask()
                && let Some(size) = self.unmap_block(iova, last)
            {
                return Ok(self.removed(range, size));
            }
            if self.unmap_pages(iova, last) {
                return Ok(self.removed(range, F::GRANULE));
            }
        }
        self.unmap_general(range, policy)
    }

    /// Unmaps a run of ordinary pages, or does nothing and returns false.
    fn unmap_pages(&mut self, iova: u64, last: u64) -> bool {
        let mut at = iova;
        loop {
            let Some(table) = self.leaf_table(at) else {
                return false;
            };
            let (items, span_last) = table.span(at, last);
            // SAFETY: T3: the caller checked that the range is claimed, and `&mut self` keeps
            // other uses of the claim away.
            if !unsafe { is_plain(&self.table.format, items) } {
                return false;
            }
            if span_last == last {
                break;
            }
            at = span_last + 1;
        }
        self.clear_pages(iova, last);
        true
    }

    /// Returns what removing whole `range`, made of leaves of `size`, leaves to do.
    #[inline]
    fn removed(&self, range: IovaRange, size: PageSize) -> Unmapped {
        let changes = Changes::leaves(range, PageSizes::EMPTY.with(size), Kind::Removed);
        Unmapped {
            gather: Gather::new(changes, self.table.id, Operation::NONE),
            bytes: range.len_minus_one().saturating_add(1),
        }
    }
}

/// Returns the offset mask of the smallest block, an item of level 1.
#[inline]
fn block_mask<F: Format>() -> u64 {
    PageSize::from_lg2(F::item_lg2(Level(1))).offset_mask()
}

/// Returns size and level of the one item above level 0 that translates exactly `iova..=last`.
#[inline]
fn block_of<F: Format>(iova: u64, last: u64) -> Option<(PageSize, Level)> {
    let offset_mask = last - iova;
    let size = PageSize::from_lg2(offset_mask.trailing_ones().min(63) as u8);
    let level = F::level_of(size);
    let is_item = size.offset_mask() == offset_mask
        && size.lg2() == F::item_lg2(level)
        && level > Level::LEAF
        && size.divides(iova);
    is_item.then_some((size, level))
}

/// Returns whether one leaf table translates `iova..=last`.
#[inline]
fn is_in_one_leaf_table<F: Format>(iova: u64, last: u64) -> bool {
    (iova ^ last) >> F::item_lg2(Level(1)) == 0
}

impl<F: Format, M: TableMemory> fmt::Debug for Mapper<'_, F, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapper")
            .field("range", &self.range())
            .finish_non_exhaustive()
    }
}
