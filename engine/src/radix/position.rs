//! Where a mapper walked last.
//!
//! Nearly all operations of a domain fall into a few spans of a level-1 table, 1 GiB each with
//! 4 KiB pages. A mapper keeps the tables of the last ones, which T4 allows, and so is one load away
//! from a leaf table.

use iopt_formats::walk::Root;
use iopt_formats::{Format, Level};

use crate::mem::TableMemory;
use crate::radix::Mapper;
use crate::radix::node::Inner;
use crate::sync::atomic::{AtomicU64, Ordering};

/// Tables of level 1 that a mapper remembers.
const RECENT_COUNT: usize = 4;

/// A table used lately; `tag` is its IOVA over its span.
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

/// The tables that a mapper remembers.
pub(super) struct Position<'t, F> {
    /// Of level 1, the one above leaf tables.
    lower: [Recent<'t, F>; RECENT_COUNT],
    /// Of level 2.
    upper: Recent<'t, F>,
}

impl<F> Position<'_, F> {
    /// Remembers nothing.
    pub(super) const NOWHERE: Self = Self {
        lower: [const { Recent::NONE }; RECENT_COUNT],
        upper: Recent::NONE,
    };
}

impl<'t, F: Format, M: TableMemory> Mapper<'t, F, M> {
    /// Returns the leaf table of `iova`, which is claimed, if its path is linked under the root
    /// that was announced.
    #[inline]
    pub(super) fn leaf_table(&mut self, iova: u64) -> Option<Inner<'t, F>> {
        let tag = iova >> F::item_lg2(Level(2));
        let recent = &self.position.lower[tag as usize % RECENT_COUNT];
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
    pub(super) fn recent_leaf_table(&self, iova: u64) -> Option<Inner<'t, F>> {
        let tag = iova >> F::item_lg2(Level(2));
        let recent = &self.position.lower[tag as usize % RECENT_COUNT];
        let above = recent.table.filter(|_| recent.tag == tag)?;
        let word = above.item(iova, Level(1)).load(Ordering::Acquire);
        let oa = self.table.format.exact_child(word, Level(1))?;
        Inner::new(self.table.node_at(oa))
    }

    /// Returns the table of level 1 on the path of `iova`, as [`leaf_table`](Self::leaf_table).
    #[inline]
    fn table_above(&mut self, iova: u64) -> Option<Inner<'t, F>> {
        let tag = iova >> F::item_lg2(Level(2));
        let recent = &self.position.lower[tag as usize % RECENT_COUNT];
        if recent.tag == tag {
            recent.table
        } else {
            self.walk(iova)
        }
    }

    /// Returns the item of level `bottom` on the path of `iova`, above the leaf tables.
    #[inline]
    pub(super) fn large_item(&mut self, iova: u64, bottom: Level) -> Option<&'t AtomicU64> {
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

    /// As [`large_item`](Self::large_item), only where no walk is needed.
    #[inline]
    pub(super) fn recent_large_item(&self, iova: u64, bottom: Level) -> Option<&'t AtomicU64> {
        let recent = if bottom == Level(1) {
            let tag = iova >> F::item_lg2(Level(2));
            Some(&self.position.lower[tag as usize % RECENT_COUNT])
                .filter(|recent| recent.tag == tag)
        } else {
            let tag = iova.checked_shr(F::item_lg2(Level(3)).into()).unwrap_or(0);
            Some(&self.position.upper).filter(|upper| bottom == Level(2) && upper.tag == tag)
        };
        Some(recent?.table?.item(iova, bottom))
    }

    /// Returns the table of level 2 on the path of `iova`, and remembers it.
    #[inline]
    fn upper_table(&mut self, iova: u64) -> Option<Inner<'t, F>> {
        let tag = iova.checked_shr(F::item_lg2(Level(3)).into()).unwrap_or(0);
        if self.position.upper.tag != tag || self.position.upper.table.is_none() {
            if iova > self.reach {
                return None;
            }
            let table = self
                .table
                .table_above_leaf(self.root, self.top, Level(2), iova)?;
            let table = Some(Inner::new(table)?);
            self.position.upper = Recent { tag, table };
        }
        self.position.upper.table
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
        self.position.lower[tag as usize % RECENT_COUNT] = Recent {
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

    /// Forgets where it walked, because tables were unlinked.
    pub(super) fn forget(&mut self) {
        self.position = Position::NOWHERE;
    }
}
