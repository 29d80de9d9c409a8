//! One IO page table of any format.
//!
//! [`Table`] owns the tree; [`Mapper`] changes a claimed range of it; looking up, dumping and
//! reading dirty state need no claim and run beside the mappers of any thread: a [`Reader`] holds
//! an epoch for a batch of them.
//!
//! # Invariants
//!
//! - **T1** (tree): every item of a linked table is empty, a leaf, or points to one page of the
//!   tree's memory that no other item points to and that has `2^item_count_lg2` items. The root is
//!   a page with as many items as its level needs.
//! - **T2** (alive): a page that was ever linked is freed when the tree is dropped, or after it was
//!   unlinked and stayed in the quarantine until a [`Flushed`](crate::invalidation::Flushed) covers it
//!   and every reader that may have seen it has left.
//! - **T3** (one writer): leaves inside a range are stored to only by the holder of a claim over
//!   that range. An item that spans more than a claim changes only from empty to a table, by
//!   compare-exchange.
//! - **T4** (no vanishing path): a table is unlinked only under a claim over its whole span. A
//!   mapper may therefore keep pointers to the tables on the paths of its range.
//! - **T5** (zeroed): a page is all zeroes when it is linked, but for leaves that the claim of who
//!   links it covers.
//! - **T6** (growth): the root only ever moves up, and the old root stays linked as the first item
//!   of the new one for good: device contexts may point to it until the growth is synced.
//! - **T7** (who walks): every walk of this program runs inside a reader's epoch; or towards an
//!   address of a claim that is held, where T4 keeps the path; or under `&mut Table`.
//!
//! # Memory order
//!
//! A table is linked with `Release` after its items are zero, and every walk loads items with
//! `Acquire`, so whoever sees a link sees the zeroes. Leaves carry no pointer that this program
//! follows, so their order among themselves does not matter; a `Release` fence ends each operation,
//! so that a device started afterwards finds them.
//!
//! # Walkers that do not snoop
//!
//! A table over [`NonSnooped`](crate::mem::NonSnooped) memory writes each cache line back that it
//! changed, once per operation and line. A new table is written back before it is linked. The link
//! itself carries a software bit, *pending*, until its line is written back too: a mapper that comes
//! across a pending link writes the line back itself before it relies on it, so none waits for
//! another.

mod adopt;
mod compact;
mod cut;
mod detach;
mod dirty;
mod error;
mod fill;
mod grow;
mod job;
mod map;
mod mapper;
mod merge;
mod new_table;
mod node;
#[cfg(feature = "parallel")]
mod parallel;
mod position;
mod protect;
mod read;
mod split;
mod supply;
mod unmap;

#[cfg(loom)]
#[cfg(test)]
pub(crate) mod models;
#[cfg(not(loom))]
#[cfg(test)]
mod tests;

use core::fmt;

use iopt_formats::walk::Root;
use iopt_formats::{
    ConfigError, Format, Geometry, IovaRange, Level, Oa, PageSize, PageSizes, Prot, Window,
};

use crate::claim::{Claim, ClaimError, Registry};
use crate::invalidation::TableId;
use crate::mem::{LARGEST, OutOfMemory, SMALLEST, TableMemory};
use crate::radix::grow::Top;
use crate::radix::node::{Node, flush_items};
use crate::reclaim::Quarantine;
use crate::sync::atomic::Ordering;
use crate::sync::epoch;

pub use crate::radix::adopt::{AdoptError, ItemFault};
pub use crate::radix::cut::{BreakBeforeMake, FaultWindow};
pub use crate::radix::error::{
    CompactError, CutError, DirtyError, MapError, MapperError, ProtectError, TableError, UnmapError,
};
pub use crate::radix::mapper::Mapper;
pub use crate::radix::protect::Protected;
pub use crate::radix::read::{Reader, Run, Translation};
pub use crate::radix::unmap::{Removed, UnmapPolicy, Unmapped};

/// What the hardware must be told after a map that replaced nothing.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum MapSide {
    /// Nothing: misses are not cached.
    #[default]
    Silent,
    /// The range: the hardware may cache that it was empty (VT-d caching mode, AMD `NpCache`), or
    /// reads through a write buffer that must be flushed.
    Announced,
}

/// What an unmap does with the tables that it covers wholly.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum TablePolicy {
    /// Clears their items and keeps them: real traffic fills them again at once, and an
    /// invalidation of leaves is all that the hardware needs.
    #[default]
    Keep,
    /// Unlinks them instead of clearing them, as far as the quarantine has room: large ranges go
    /// faster and give their tables back, but walk caches have to be invalidated, too.
    Detach,
}

/// How a table is set up besides its format.
#[derive(Clone, Debug)]
pub struct TableConfig {
    registry: Registry,
    map_side: MapSide,
    table_policy: TablePolicy,
    quarantine_len: u64,
}

impl Default for TableConfig {
    fn default() -> Self {
        Self {
            registry: Registry::new(),
            map_side: MapSide::default(),
            table_policy: TablePolicy::default(),
            quarantine_len: QUARANTINE_LEN,
        }
    }
}

/// Bytes of tables that may wait to be freed, unless configured.
const QUARANTINE_LEN: u64 = 64 << 20;

impl TableConfig {
    /// Creates the default: claims of its own, silent maps, tables that stay.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes claims from `registry`, so that several tables change under the same ones.
    #[must_use]
    pub fn with_registry(self, registry: Registry) -> Self {
        Self { registry, ..self }
    }

    /// Sets what mappers do with tables that an unmap covers wholly.
    #[must_use]
    pub fn with_table_policy(self, table_policy: TablePolicy) -> Self {
        Self {
            table_policy,
            ..self
        }
    }

    /// Sets how many bytes of unlinked tables may wait for the hardware and for readers at one
    /// time: 64 MiB unless set. Where it is full, tables are kept instead of being unlinked.
    #[must_use]
    pub fn with_quarantine_limit(self, bytes: u64) -> Self {
        Self {
            quarantine_len: bytes,
            ..self
        }
    }

    /// Sets what hardware must be told after a map.
    #[must_use]
    pub fn with_map_side(self, map_side: MapSide) -> Self {
        Self { map_side, ..self }
    }
}

/// Levels whose leaves of one item have their attributes ready: pages and the two block sizes that
/// most formats have.
const QUICK_LEVELS: usize = 3;

/// One IO page table of format `F` in memory `M`.
///
/// Dropping it frees its pages at once; take it out of every device context before.
#[doc(alias = "io_pgtable")]
pub struct Table<F: Format, M: TableMemory> {
    format: F,
    geometry: Geometry,
    /// [`Geometry::bias`].
    bias: u64,
    /// For a root of each level: the last address that it reaches after the bias, and the number
    /// of its items less one.
    spans: [RootSpan; Level::MAX.0 as usize + 1],
    sizes: PageSizes,
    smallest: PageSize,
    /// Last output address that fits the width.
    oa_last: u64,
    /// Attribute bits of leaves of one item, by level and [`Prot::index`]; 0 where they cannot be
    /// mapped, or not without a word to the hardware.
    attributes: [[u64; Prot::COUNT]; QUICK_LEVELS],
    map_side: MapSide,
    id: TableId,
    registry: Registry,
    policy: TablePolicy,
    quarantine: Quarantine,
    top: Top,
    memory: M,
}

impl<F: Format, M: TableMemory> Table<F, M> {
    /// Creates a table that translates nothing.
    ///
    /// # Errors
    ///
    /// [`TableError`] if no page is left for the root, or the memory's walkers do not snoop and
    /// the format cannot serve such.
    pub fn new(format: F, memory: M) -> Result<Self, TableError> {
        Self::with_config(format, memory, TableConfig::default())
    }

    /// As [`new`](Self::new), with a configuration.
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new).
    pub fn with_config(format: F, memory: M, config: TableConfig) -> Result<Self, TableError> {
        let shape = Self::shape_of(&format)?;
        let level = shape.geometry.top;
        let oa = alloc_page(&memory, &format, Self::root_page(&format, level))?;
        let table = Self::assemble(format, memory, config, shape, Root { oa, level });
        table.flush_root(oa, level);
        Ok(table)
    }

    /// Returns what tables of `format` look like, if this memory can hold such.
    fn shape_of(format: &F) -> Result<Shape, TableError> {
        if !M::SNOOPED && F::PENDING == 0 {
            return Err(TableError::NotSnooped);
        }
        let smallest = format.sizes().smallest().ok_or(ConfigError::Sizes)?;
        let mut geometry = format.geometry();
        // The smallest leaves stand in the first root, or below.
        geometry.top = geometry.top.max(F::level_of(smallest));
        Ok(Shape { geometry, smallest })
    }

    /// Makes a table of a tree whose pages become its own.
    fn assemble(format: F, memory: M, config: TableConfig, shape: Shape, root: Root) -> Self {
        let Shape { geometry, smallest } = shape;
        let sizes = format.sizes();
        let mut attributes = [[0; Prot::COUNT]; QUICK_LEVELS];
        for (level, attributes) in attributes.iter_mut().enumerate() {
            let size = PageSize::from_lg2(F::item_lg2(Level(level as u8)).min(63));
            if sizes.contains(size) && config.map_side == MapSide::Silent {
                for prot in Prot::all() {
                    attributes[prot.index()] = format.leaf_attributes(prot, size);
                }
            }
        }
        let quarantine_limit = config.quarantine_len / F::GRANULE.bytes();
        let quarantine_limit = usize::try_from(quarantine_limit).unwrap_or(usize::MAX);
        Self {
            format,
            geometry,
            bias: geometry.bias(),
            spans: RootSpan::of_levels(&format),
            sizes,
            smallest,
            oa_last: u64::MAX >> (64 - format.oa_bits()),
            attributes,
            map_side: config.map_side,
            id: TableId::next(),
            registry: config.registry,
            policy: config.table_policy,
            quarantine: Quarantine::new(quarantine_limit),
            top: Top::new(root),
            memory,
        }
    }

    /// Returns the page that a root of level `top` takes.
    fn root_page(format: &F, top: Level) -> PageSize {
        PageSize::from_lg2((format.root_count_lg2(top) + 3).clamp(SMALLEST.lg2(), LARGEST.lg2()))
    }

    /// Returns the format.
    pub const fn format(&self) -> &F {
        &self.format
    }

    /// Returns the memory of the table pages.
    pub const fn memory(&self) -> &M {
        &self.memory
    }

    /// Returns the registry that the table's claims come from.
    pub const fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Returns what tells this table apart from others.
    pub const fn id(&self) -> TableId {
        self.id
    }

    /// Returns the root that device contexts point to.
    pub fn root(&self) -> Root {
        self.top.load()
    }

    /// Returns the number of table pages in use: linked ones with the root, and unlinked ones that
    /// wait for [`reclaim`](Self::reclaim). Walks the tree; exact while no thread changes it.
    pub fn table_count(&self) -> usize {
        let _pin = epoch::pin();
        let (root, level) = self.root_node();
        self.count_tables(root, level) + self.quarantine.held_count()
    }

    /// Returns how many of them are unlinked and wait, those included that running operations made
    /// room for; at most what [`TableConfig::with_quarantine_limit`] allows.
    pub fn quarantined_count(&self) -> usize {
        self.quarantine.held_count()
    }

    /// Claims `range` from the table's registry.
    ///
    /// # Errors
    ///
    /// [`ClaimError`] if a part of it is claimed.
    pub fn claim(&self, range: IovaRange) -> Result<Claim, ClaimError> {
        self.registry.claim(range)
    }

    /// Returns a handle that changes the claimed range.
    ///
    /// # Errors
    ///
    /// [`MapperError`] if the claim is of another registry or reaches out of what the table
    /// decodes.
    pub fn mapper<'t>(&'t self, claim: &'t mut Claim) -> Result<Mapper<'t, F, M>, MapperError> {
        let range = claim.range();
        if !self.registry.issued(claim) {
            return Err(MapperError::ForeignClaim { range });
        }
        if !self.decodes(range) {
            return Err(MapperError::OutsideWindow { range });
        }
        Ok(Mapper::new(self, range))
    }

    /// As [`mapper`](Self::mapper), for a part of a claim that the caller holds for `'t`, where no other
    /// mapper of that claim overlaps it. Whoever calls this answers for that (T3).
    pub(crate) fn mapper_of_part(&self, range: IovaRange) -> Result<Mapper<'_, F, M>, MapperError> {
        if !self.decodes(range) {
            return Err(MapperError::OutsideWindow { range });
        }
        Ok(Mapper::new(self, range))
    }

    /// Returns whether `range` lies in one part of what the table can decode.
    fn decodes(&self, range: IovaRange) -> bool {
        let geometry = self.geometry;
        let biased = |iova: u64| iova.wrapping_add(geometry.bias());
        geometry.contains(range.start())
            && geometry.contains(range.last())
            // A range over the hole of a sign-extended space starts in the part that is higher
            // after the bias.
            && biased(range.start().get()) <= biased(range.last().get())
    }

    /// Returns the current root and its level.
    #[inline]
    fn root_node(&self) -> (Node<'_, F>, Level) {
        let Root { oa, level } = self.top.load();
        (self.node_at_root(oa, level), level)
    }

    #[expect(unsafe_code, reason = "turns the root's address into a reference")]
    #[inline]
    fn node_at_root(&self, oa: Oa, level: Level) -> Node<'_, F> {
        // SAFETY: T1: `oa` is, or by T6 was, the root of that level, a page with that many items;
        // by T2 it lives as long as the borrow of `self`.
        unsafe { Node::root(&self.memory, oa, self.span(level).mask) }
    }

    /// Writes a new root back, its whole page: hardware may index more items than the format uses.
    #[expect(unsafe_code, reason = "turns the root's address into a reference")]
    fn flush_root(&self, oa: Oa, level: Level) {
        let item_count = Self::root_page(&self.format, level).bytes() / 8;
        // SAFETY: the page was allocated with this size and lives as long as the borrow of `self`.
        let page: Node<'_, F> = unsafe { Node::root(&self.memory, oa, item_count - 1) };
        flush_items(&self.memory, page.items());
    }

    /// Returns the table that `oa`, read from a linked item of this tree, points to.
    #[expect(unsafe_code, reason = "turns the address in an item into a reference")]
    #[inline]
    fn node_at(&self, oa: Oa) -> Node<'_, F> {
        // SAFETY: callers pass what `child` made of a linked item, so by T1 it is a page with the
        // usual number of items, and by T2 it lives as long as the borrow of `self`.
        unsafe { Node::child(&self.memory, oa) }
    }

    /// Returns the address of the table that the item `word` of a table of `level` points to, if
    /// it does.
    #[inline]
    fn child_oa(&self, word: u64, level: Level) -> Option<Oa> {
        if level == Level::LEAF {
            None
        } else {
            self.format.child(word, level)
        }
    }

    /// Returns the table that the item `word` of a table of `level` points to, if it does.
    #[inline]
    fn child(&self, word: u64, level: Level) -> Option<Node<'_, F>> {
        self.child_oa(word, level).map(|oa| self.node_at(oa))
    }

    /// Returns what a root of `level` spans.
    #[inline]
    fn span(&self, level: Level) -> &RootSpan {
        &self.spans[usize::from(level.0.min(Level::MAX.0))]
    }

    /// Walks towards `iova` down to a table of level `bottom`, or until an item stops the walk.
    #[inline]
    fn descend(&self, iova: u64, bottom: Level) -> Slot<'_, F> {
        let (mut node, mut level) = self.root_node();
        loop {
            let item = node.item(iova, level);
            let word = item.load(Ordering::Acquire);
            let below = level.below().filter(|_| level > bottom);
            let next = below.and_then(|below| Some((self.child(word, level)?, below)));
            match next {
                Some(child) => (node, level) = child,
                None => return Slot { node, level, word },
            }
        }
    }

    /// Returns an own leaf word's size.
    fn leaf_size(&self, word: u64, level: Level) -> PageSize {
        match self.format.decode(word, level) {
            Ok(iopt_formats::Entry::Leaf(leaf)) => leaf.size,
            // Unreachable for words of our encoder (F2); the item's size keeps the walk moving.
            _ => PageSize::from_lg2(F::item_lg2(level)),
        }
    }

    /// Allocates a root of `level`.
    fn alloc_root(&self, level: Level) -> Result<Oa, OutOfMemory> {
        alloc_page(
            &self.memory,
            &self.format,
            Self::root_page(&self.format, level),
        )
    }
}

impl<F: Format, M: TableMemory> Table<F, M> {
    /// Walks from `node`, of `level`, to the table of level `bottom` on the path of `iova`, if
    /// hardware can see all of it.
    #[inline]
    fn table_above_leaf<'t>(
        &'t self,
        node: Node<'t, F>,
        level: Level,
        bottom: Level,
        iova: u64,
    ) -> Option<Node<'t, F>> {
        let (mut node, mut level) = (node, level);
        while level > bottom {
            let word = node.item(iova, level).load(Ordering::Acquire);
            if !M::SNOOPED && word & F::PENDING != 0 {
                return None;
            }
            node = self.child(word, level)?;
            level = level.below()?;
        }
        (level == bottom).then_some(node)
    }
}

/// Allocates a page for a table, at an address that the format's entries can hold: T1 needs that a
/// pointer leads back to its page.
#[expect(unsafe_code, reason = "frees a page that is of no use")]
fn alloc_page<F: Format, M: TableMemory>(
    memory: &M,
    format: &F,
    size: PageSize,
) -> Result<Oa, OutOfMemory> {
    let page = memory.alloc(size)?;
    if (page.get() | size.offset_mask()) >> format.oa_bits() == 0 {
        return Ok(page);
    }
    // SAFETY: the page was allocated just now with this size and nobody else knows it.
    unsafe { memory.free(page, size) };
    Err(OutOfMemory { size })
}

/// What all tables of a format's configuration have in common.
#[derive(Clone, Copy)]
struct Shape {
    geometry: Geometry,
    smallest: PageSize,
}

/// What a root of some level spans.
#[derive(Clone, Copy, Default)]
struct RootSpan {
    /// Last address that it decodes, after the bias.
    reach: u64,
    /// Number of items less one.
    mask: u64,
    /// What turns an index after the bias into one before: the halves of a sign-extended root lie
    /// the other way round.
    flip: u64,
}

impl RootSpan {
    /// Returns the spans for the levels that a root of `format` can have.
    fn of_levels<F: Format>(format: &F) -> [Self; Level::MAX.0 as usize + 1] {
        let geometry = format.geometry();
        let mut spans = [Self::default(); Level::MAX.0 as usize + 1];
        for level in geometry.top.0..=geometry.max_top.0.min(Level::MAX.0) {
            let level = Level(level);
            let count_lg2 = format.root_count_lg2(level);
            let reach_lg2 = u32::from(F::item_lg2(level) + count_lg2);
            // Only tables without a bias grow, so that the reach counts from 0.
            let reach = geometry.va_mask().min(u64::MAX >> (64 - reach_lg2.min(64)));
            let mask = (1 << count_lg2) - 1;
            let flip = match geometry.window {
                Window::SignExtended => (mask >> 1) + 1,
                Window::Lower | Window::Upper => 0,
            };
            spans[usize::from(level.0)] = Self { reach, mask, flip };
        }
        spans
    }
}

/// Where a walk stopped.
struct Slot<'t, F> {
    node: Node<'t, F>,
    level: Level,
    /// What the item held.
    word: u64,
}

impl<'t, F: Format> Slot<'t, F> {
    /// Returns the items from `iova` on that translate nothing behind `last`, and the last address
    /// that they translate, or `last` if that is lower.
    fn span(&self, iova: u64, last: u64) -> (&'t [crate::sync::atomic::AtomicU64], u64) {
        let item_lg2 = F::item_lg2(self.level);
        let index = self.node.index(iova, self.level);
        let wanted = ((last >> item_lg2) - (iova >> item_lg2)).saturating_add(1);
        let left = self.node.count() - index;
        let count = wanted.min(left as u64) as usize;
        let first = iova >> item_lg2 << item_lg2;
        let span_last = first.wrapping_add(((count as u64) << item_lg2).wrapping_sub(1));
        (
            &self.node.items()[index..index + count],
            span_last.min(last),
        )
    }
}

impl<F: Format, M: TableMemory> fmt::Debug for Table<F, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table")
            .field("format", &self.format)
            .field("root", &self.root())
            .finish_non_exhaustive()
    }
}
