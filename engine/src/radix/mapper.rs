//! The handle that changes a claimed range, and its fast paths.
//!
//! Real traffic is mostly single pages in the last few leaf tables of a domain, and short runs of
//! them. Those cases are straight lines here: no loop but the walk, no second pass, everything
//! unusual behind one call that does not return to them.

#![expect(unsafe_code, reason = "plain reads of items that the claim covers")]

use core::fmt;

use iopt_formats::walk::Root;
use iopt_formats::{Format, Iova, IovaRange, Level, Oa, PageSize, PageSizes, Prot};

use crate::invalidation::{Changes, Gather, Kind, MapSync, RetiredSpan};
use crate::mem::TableMemory;
use crate::radix::fill::{is_clear, store_items};
use crate::radix::job::{is_linear, usable_sizes};
use crate::radix::map::Piece;
use crate::radix::node::{Inner, Node, flush_items};
use crate::radix::unmap::{clear_items, is_plain};
use crate::radix::{MapError, MapSide, Table, Translation, UnmapError, UnmapPolicy, Unmapped};
use crate::sync::atomic::{AtomicU64, Ordering, fence};

/// Tables of level 1 that a mapper remembers.
const RECENT_COUNT: usize = 4;

/// A table of level 1 used lately, the one above leaf tables; `tag` is its IOVA over its span.
///
/// One load from the leaf table: nearly all operations of a domain fall into a few of these spans,
/// 1 GiB each with 4 KiB pages, so the walk above them is seldom needed.
struct Recent<'t, F> {
    tag: u64,
    table: Option<Inner<'t, F>>,
}

impl<F> Recent<'_, F> {
    /// No address has this tag.
    const NONE: Self = Self {
        tag: u64::MAX,
        table: None,
    };
}

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
    root: Node<'t, F>,
    top: Level,
    reach: u64,
    recent: [Recent<'t, F>; RECENT_COUNT],
    /// The table of level 2 used last.
    upper: Recent<'t, F>,
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
            recent: [const { Recent::NONE }; RECENT_COUNT],
            upper: Recent::NONE,
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

    /// Translates `iova`; see [`Table::lookup`].
    #[inline]
    pub fn lookup(&self, iova: Iova) -> Option<Translation<'t, F>> {
        self.table.lookup(iova)
    }

    /// Returns the leaf table of `iova`, which is claimed, if its path is linked under the root
    /// that was announced.
    #[inline]
    fn leaf_table(&mut self, iova: u64) -> Option<Inner<'t, F>> {
        let tag = iova >> F::item_lg2(Level(2));
        let recent = &self.recent[tag as usize % RECENT_COUNT];
        let above = if recent.tag == tag {
            recent.table
        } else {
            self.walk(iova)
        };
        let table = self.table;
        let word = above?.item(iova, Level(1)).load(Ordering::Acquire);
        match table.format.exact_child(word, Level(1)) {
            Some(oa) => Inner::new(table.node_at(oa)),
            None => self.walk_unusual(iova),
        }
    }

    /// As [`leaf_table`](Self::leaf_table), only where no walk is needed: for callers that hand
    /// over to another function otherwise, and so need no stack frame.
    #[inline]
    fn recent_leaf_table(&self, iova: u64) -> Option<Inner<'t, F>> {
        let tag = iova >> F::item_lg2(Level(2));
        let recent = &self.recent[tag as usize % RECENT_COUNT];
        let above = recent.table.filter(|_| recent.tag == tag)?;
        let word = above.item(iova, Level(1)).load(Ordering::Acquire);
        let oa = self.table.format.exact_child(word, Level(1))?;
        Inner::new(self.table.node_at(oa))
    }

    /// Returns the table of level 1 on the path of `iova`, as [`leaf_table`](Self::leaf_table).
    #[inline]
    fn table_above(&mut self, iova: u64) -> Option<Inner<'t, F>> {
        let tag = iova >> F::item_lg2(Level(2));
        let recent = &self.recent[tag as usize % RECENT_COUNT];
        if recent.tag == tag {
            recent.table
        } else {
            self.walk(iova)
        }
    }

    /// Returns the item of level `bottom` on the path of `iova`, above the leaf tables.
    #[inline]
    fn large_item(&mut self, iova: u64, bottom: Level) -> Option<&'t AtomicU64> {
        match bottom.0 {
            1 => Some(self.table_above(iova)?.item(iova, bottom)),
            2 => Some(self.upper_table(iova)?.item(iova, bottom)),
            _ if iova > self.reach => None,
            _ => {
                let node = self
                    .table
                    .table_above_leaf(self.root, self.top, bottom, iova)?;
                Some(node.item(iova, bottom))
            }
        }
    }

    /// Returns the table of level 2 on the path of `iova`, and remembers it.
    #[inline]
    fn upper_table(&mut self, iova: u64) -> Option<Inner<'t, F>> {
        let tag = iova.checked_shr(F::item_lg2(Level(3)).into()).unwrap_or(0);
        if self.upper.tag != tag || self.upper.table.is_none() {
            if iova > self.reach {
                return None;
            }
            let table = self
                .table
                .table_above_leaf(self.root, self.top, Level(2), iova)?;
            let table = Some(Inner::new(table)?);
            self.upper = Recent { tag, table };
        }
        self.upper.table
    }

    /// Returns the table of level 1 on the path of `iova`, and remembers it.
    #[inline(never)]
    fn walk(&mut self, iova: u64) -> Option<Inner<'t, F>> {
        if iova > self.reach {
            return None;
        }
        let table = self
            .table
            .table_above_leaf(self.root, self.top, Level(1), iova)?;
        let table = Inner::new(table)?;
        let tag = iova >> F::item_lg2(Level(2));
        self.recent[tag as usize % RECENT_COUNT] = Recent {
            tag,
            table: Some(table),
        };
        Some(table)
    }

    /// Returns the leaf table of `iova` below a link that hardware or software has marked.
    #[inline(never)]
    fn walk_unusual(&self, iova: u64) -> Option<Inner<'t, F>> {
        Inner::new(
            self.table
                .table_above_leaf(self.root, self.top, Level::LEAF, iova)?,
        )
    }

    /// Takes note of the root that the next sync tells hardware of; returns it if it is new.
    pub(super) fn announce_root(&mut self) -> Option<Root> {
        let root = self.table.root();
        let is_new = root.level > self.top || self.reach == 0;
        if !is_new {
            return None;
        }
        self.root = self.table.node_at_root(root.oa, root.level);
        self.top = root.level;
        self.reach = self.table.fast_reach(root.level);
        Some(root)
    }

    /// Returns whether `start..=last` is claimed.
    #[inline]
    pub(super) const fn claims(&self, start: u64, last: u64) -> bool {
        self.start <= start && last <= self.last
    }

    /// Maps `range` to the output addresses from `oa` on, with the largest pages that fit.
    ///
    /// Devices may use the range once the result is synced. Rights that the format cannot express
    /// are widened as [`Format::effective`] says.
    ///
    /// # Errors
    ///
    /// [`MapError`]; then nothing of the range is mapped that was not before.
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
                    Ordering::Release,
                );
                flush_items(&self.table.memory, core::slice::from_ref(item));
                return Ok(MapSync::none(self.table.id));
            }
        }
        self.map_run(range, oa, prot)
    }

    /// Maps what is not one ordinary page: a run of pages inside one leaf table in one pass,
    /// everything else in general.
    #[inline(never)]
    fn map_run(&mut self, range: IovaRange, oa: Oa, prot: Prot) -> Result<MapSync, MapError> {
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
            if !unsafe { is_clear(items) } {
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
            && self.is_clear(range)
    }

    /// Forgets where it walked, because tables were unlinked.
    pub(super) fn forget(&mut self) {
        self.recent = [const { Recent::NONE }; RECENT_COUNT];
        self.upper = Recent::NONE;
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
        item.store(attributes | table.format.encode_oa(oa), Ordering::Release);
        flush_items(&table.memory, core::slice::from_ref(item));
        true
    }

    /// Clears the single-item leaf above level 0 that translates exactly `iova..=last` and returns
    /// its size, or does nothing.
    fn unmap_block(&mut self, iova: u64, last: u64) -> Option<PageSize> {
        let len = (last - iova)
            .checked_add(1)
            .filter(|len| len.is_power_of_two())?;
        let size = PageSize::from_lg2(len.trailing_zeros() as u8);
        let level = F::level_of(size);
        if size.lg2() != F::item_lg2(level) || !size.divides(iova) || level > self.top {
            return None;
        }
        let item = self.large_item(iova, level)?;
        let word = item.load(Ordering::Relaxed);
        let is_leaf = word & F::PRESENT != 0
            && word & F::GROUPED == 0
            && self.table.child_oa(word, level).is_none();
        if !is_leaf {
            return None;
        }
        item.store(0, Ordering::Release);
        flush_items(&self.table.memory, core::slice::from_ref(item));
        Some(size)
    }

    /// Removes the translations of `range`.
    ///
    /// Whatever was mapped by one call or by many, one unmap may remove all of it. The range is
    /// safe to use for something else only once the gather is synced.
    ///
    /// # Errors
    ///
    /// [`UnmapError`]; nothing changed then. See [`UnmapPolicy`] for what is refused.
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
                item.store(0, Ordering::Release);
                flush_items(&self.table.memory, core::slice::from_ref(item));
                return Ok(self.removed(range, F::GRANULE));
            }
        }
        self.unmap_run(range, policy)
    }

    /// Unmaps what is not one ordinary page.
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
    #[inline]
    fn unmap_pages(&mut self, iova: u64, last: u64) -> bool {
        let mut at = iova;
        loop {
            let Some(table) = self.leaf_table(at) else {
                return false;
            };
            let (items, span_last) = table.span(at, last);
            // SAFETY: T3: the caller checked that the range is claimed, and `&mut self` keeps
            // other uses of the claim away.
            if !unsafe { is_plain::<F>(items) } {
                return false;
            }
            if span_last == last {
                if at == iova {
                    clear_items(items);
                    fence(Ordering::Release);
                    flush_items(&self.table.memory, items);
                    return true;
                }
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
            gather: Gather::new(changes, self.table.id, RetiredSpan::NONE),
            bytes: range.len_minus_one().saturating_add(1),
        }
    }
}

impl<F: Format, M: TableMemory> fmt::Debug for Mapper<'_, F, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapper")
            .field("range", &self.range())
            .finish_non_exhaustive()
    }
}
