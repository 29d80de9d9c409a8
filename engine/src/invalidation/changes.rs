//! What an operation changed, as far as hardware caches care.

use core::hint::black_box;

use iopt_formats::{Iova, IovaRange, Level, PageSize, PageSizes};

use crate::sync::unmodelled::{AtomicU64, Ordering};

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
#[repr(u8)]
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
    start: u64,
    last: u64,
    /// The sizes of leaves, which no format has below 4 KiB, and in the bits that leaves free the
    /// levels and the kind: three words are copied without a stall where five are not.
    what: u64,
}

/// Bits of `what` for the levels, from bit 0 on.
const LEVELS: u64 = 0x3f;
/// Where the kind stands in `what`.
const KIND_AT: u32 = 6;
const KIND: u64 = 3 << KIND_AT;

impl Changes {
    /// Returns no changes, of a kind.
    #[inline]
    pub(crate) const fn none(kind: Kind) -> Self {
        Self {
            start: u64::MAX,
            last: 0,
            what: (kind as u64) << KIND_AT,
        }
    }

    /// Returns changes of which everything may be part.
    pub const fn everything() -> Self {
        Self {
            start: 0,
            last: u64::MAX,
            what: !KIND | (Kind::Removed as u64) << KIND_AT,
        }
    }

    /// Returns the changes of one range of leaves of `sizes`.
    #[inline]
    pub(crate) const fn leaves(range: IovaRange, sizes: PageSizes, kind: Kind) -> Self {
        Self {
            start: range.start().get(),
            last: range.last().get(),
            what: sizes.bits() & !(LEVELS | KIND) | (kind as u64) << KIND_AT,
        }
    }

    /// Returns a copy made word by word: one wide load over words that were stored just before
    /// waits until they have left the store buffer, longer than an unmap takes.
    #[inline]
    pub(crate) fn copied(&self) -> Self {
        Self {
            start: self.start,
            last: black_box(self.last),
            what: self.what,
        }
    }

    /// Returns these changes as another kind.
    pub(crate) const fn with_kind(self, kind: Kind) -> Self {
        Self {
            what: self.what & !KIND | (kind as u64) << KIND_AT,
            ..self
        }
    }

    /// Returns the range that holds every change, or `None` if nothing changed.
    pub const fn range(&self) -> Option<IovaRange> {
        IovaRange::new(Iova::new(self.start), Iova::new(self.last))
    }

    /// Returns the sizes of the leaves that changed, contiguous groups as one.
    pub const fn leaf_sizes(&self) -> PageSizes {
        PageSizes::from_bits(self.what & !(LEVELS | KIND))
    }

    /// Returns whether a table that an item of a `level` pointed to was unlinked: walk caches of
    /// that level hold pointers to it.
    pub const fn has_table(&self, level: Level) -> bool {
        level.0 <= Level::MAX.0 && self.what >> level.0 & 1 != 0
    }

    /// Returns whether only leaves changed.
    pub const fn is_leaf_only(&self) -> bool {
        self.what & LEVELS == 0
    }

    /// Returns why the hardware has to be told.
    pub const fn kind(&self) -> Kind {
        match (self.what & KIND) >> KIND_AT {
            0 => Kind::Removed,
            1 => Kind::Added,
            _ => Kind::Replaced,
        }
    }

    pub(crate) fn add_leaf(&mut self, range: IovaRange, size: PageSize) {
        self.add_range(range);
        self.what |= size.bytes();
    }

    pub(crate) fn add_table(&mut self, range: IovaRange, level: Level) {
        self.add_range(range);
        self.what |= 1 << level.0 & LEVELS;
    }

    fn add_range(&mut self, range: IovaRange) {
        self.start = self.start.min(range.start().get());
        self.last = self.last.max(range.last().get());
    }

    /// Adds what `other` says, which is of the same kind or of none.
    pub(crate) fn absorb(&mut self, other: &Self) {
        if let Some(range) = other.range() {
            self.add_range(range);
            self.what |= other.what & !KIND;
        }
    }
}
