//! What an operation changed, as far as hardware caches care.

use iopt_formats::{Iova, IovaRange, Level, PageSize, PageSizes};

use crate::sync::atomic::{AtomicU64, Ordering};

/// Tells tables apart, so that what was flushed for one is not taken for another.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct TableId(u64);

impl TableId {
    /// Returns an id that no other table of this process has.
    pub(crate) fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// Why the hardware has to be told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
#[repr(u32)]
pub enum Kind {
    /// Translations went away, lost rights, or had their dirty state cleared.
    Removed,
    /// Translations came where the hardware may have cached that there was none, or the write
    /// buffer in front of it must be flushed. Hardware with neither need not be told.
    Added,
    /// Translations came in the place of empty tables, which every walk cache must forget before
    /// they are freed.
    Replaced,
}

/// What an operation changed.
///
/// The range covers everything that changed, and may cover more; the levels say which kinds of
/// entries were among it, so that commands can be narrowed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Changes {
    pub(crate) start: u64,
    pub(crate) last: u64,
    pub(crate) leaf_sizes: PageSizes,
    /// One bit a level; as wide as the fields around it, so that a copy of the whole is not held up
    /// by a narrow store.
    pub(crate) table_levels: u32,
    pub(crate) kind: Kind,
}

impl Changes {
    pub(crate) const NONE: Self = Self {
        start: u64::MAX,
        last: 0,
        leaf_sizes: PageSizes::EMPTY,
        table_levels: 0,
        kind: Kind::Removed,
    };

    /// Returns the changes of one range of leaves of `sizes`.
    #[inline]
    pub(crate) const fn leaves(range: IovaRange, sizes: PageSizes, kind: Kind) -> Self {
        let (start, last) = (range.start().get(), range.last().get());
        Self {
            start,
            last,
            leaf_sizes: sizes,
            table_levels: 0,
            kind,
        }
    }

    /// Returns the range that holds every change, or `None` if nothing changed.
    pub const fn range(&self) -> Option<IovaRange> {
        IovaRange::new(Iova::new(self.start), Iova::new(self.last))
    }

    /// Returns the sizes of the leaves that changed, contiguous groups as one.
    pub const fn leaf_sizes(&self) -> PageSizes {
        self.leaf_sizes
    }

    /// Returns whether a table that an item of a `level` pointed to was unlinked: walk caches of
    /// that level hold pointers to it.
    pub const fn has_table(&self, level: Level) -> bool {
        self.table_levels >> level.0 & 1 != 0
    }

    /// Returns whether only leaves changed.
    pub const fn is_leaf_only(&self) -> bool {
        self.table_levels == 0
    }

    /// Returns why the hardware has to be told.
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    pub(crate) fn add_leaf(&mut self, range: IovaRange, size: PageSize) {
        self.add_range(range);
        self.leaf_sizes = self.leaf_sizes.with(size);
    }

    pub(crate) fn add_table(&mut self, range: IovaRange, level: Level) {
        self.add_range(range);
        self.table_levels |= 1 << level.0;
    }

    fn add_range(&mut self, range: IovaRange) {
        self.start = self.start.min(range.start().get());
        self.last = self.last.max(range.last().get());
    }

    /// Adds what `other` says, which is of the same kind or of none.
    pub(crate) fn absorb(&mut self, other: &Self) {
        if let Some(range) = other.range() {
            self.add_range(range);
            self.leaf_sizes = self.leaf_sizes.union(other.leaf_sizes);
            self.table_levels |= other.table_levels;
        }
    }
}

/// Numbers the operation that retired tables, per table; 0 for one that retired none.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Operation(pub(crate) u64);

impl Operation {
    pub(crate) const NONE: Self = Self(0);
}
