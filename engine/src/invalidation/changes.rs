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
    /// Translations went away: there are none in the range.
    Removed,
    /// Translations came where the hardware may have cached that there was none, or the write
    /// buffer in front of it must be flushed. Hardware with neither need not be told.
    Added,
    /// Translations came in the place of empty tables, which every walk cache must forget before
    /// they are freed.
    Replaced,
    /// Translations lost rights or had their dirty state cleared, others took their place that say the same, or
    /// empty tables went. What the range holds may be mapped still.
    Altered,
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
/// The bit of `what` that says that not all of the range was part of what changed.
const SCATTERED: u64 = 1 << 8;
/// Bits of `what` for the sizes of leaves.
const SIZES: u64 = !(LEVELS | KIND | SCATTERED);

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
            what: LEVELS | SIZES | (Kind::Removed as u64) << KIND_AT,
        }
    }

    /// Returns changes of `range` of which any entry of tables that are not the engine's may be part.
    #[cfg(feature = "std")]
    pub(crate) const fn any_in(range: IovaRange) -> Self {
        Self {
            start: range.start().get(),
            last: range.last().get(),
            ..Self::everything()
        }
    }

    /// Returns the changes of one range of leaves of `sizes`.
    #[inline]
    pub(crate) const fn leaves(range: IovaRange, sizes: PageSizes, kind: Kind) -> Self {
        Self {
            start: range.start().get(),
            last: range.last().get(),
            what: sizes.bits() & SIZES | (kind as u64) << KIND_AT,
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
        PageSizes::from_bits(self.what & SIZES)
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

    /// Returns whether leaves went away or were altered. Tables that went without a leaf were empty: nothing was
    /// translated through them.
    pub const fn has_lost_leaves(&self) -> bool {
        self.is_loss() && !self.leaf_sizes().is_empty()
    }

    /// Returns whether only leaves went away or were altered, so that entries which point to tables may stay
    /// cached.
    pub const fn has_lost_only_leaves(&self) -> bool {
        self.is_loss() && self.is_leaf_only()
    }

    const fn is_loss(&self) -> bool {
        matches!(self.kind(), Kind::Removed | Kind::Altered)
    }

    /// Returns whether everything in `range` was removed.
    pub(super) const fn has_removed(&self, range: IovaRange) -> bool {
        matches!(self.kind(), Kind::Removed) && self.what & SCATTERED == 0 && self.spans(range)
    }

    /// Returns whether `range` lies inside the range that holds every change.
    pub(super) const fn spans(&self, range: IovaRange) -> bool {
        self.start <= range.start().get() && range.last().get() <= self.last
    }

    /// Returns why the hardware has to be told.
    pub const fn kind(&self) -> Kind {
        match (self.what & KIND) >> KIND_AT {
            0 => Kind::Removed,
            1 => Kind::Added,
            2 => Kind::Replaced,
            _ => Kind::Altered,
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

    /// Adds what `other` says, another part of the same operation.
    pub(crate) fn absorb(&mut self, other: &Self) {
        debug_assert!(self.kind() == other.kind(), "one operation is of one kind");
        if let Some(range) = other.range() {
            self.add_range(range);
            self.what |= other.what & !KIND;
        }
    }

    /// Adds what `other` says, another operation, if one list of commands can tell of both; returns whether it
    /// can.
    pub(super) fn join(&mut self, other: &Self) -> bool {
        let Some(range) = other.range() else {
            return true;
        };
        let Some(own) = self.range() else {
            *self = *other;
            return true;
        };
        let kind = match (self.kind(), other.kind()) {
            (one, other) if one == other => one,
            (Kind::Removed, Kind::Altered) | (Kind::Altered, Kind::Removed) => Kind::Altered,
            _ => return false,
        };
        let is_whole = |changes: &Self| changes.what & SCATTERED == 0;
        let is_exact = is_whole(self) && is_whole(other) && touch(own, range)
            || is_whole(self) && self.spans(range)
            || is_whole(other) && other.spans(own);
        self.add_range(range);
        // Of other kinds nobody asks it.
        let is_told = kind == Kind::Removed && !is_exact;
        let scattered = if is_told { SCATTERED } else { 0 };
        self.what = (self.what | other.what) & (LEVELS | SIZES) | scattered;
        *self = self.with_kind(kind);
        true
    }
}

/// Returns whether no address lies between two ranges.
fn touch(one: IovaRange, other: IovaRange) -> bool {
    let reaches = |low: IovaRange, high: IovaRange| {
        let end = low.last().checked_add(1);
        end.is_none_or(|end| high.start() <= end)
    };
    reaches(one, other) && reaches(other, one)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn changes(first: u64, last: u64, kind: Kind) -> Changes {
        let range = IovaRange::new(Iova::new(first << 12), Iova::new(last << 12 | 0xfff));
        Changes::leaves(
            range.expect("first is not above last"),
            PageSizes::EMPTY.with(PageSize::KIB_4),
            kind,
        )
    }

    fn pages(first: u64, last: u64) -> IovaRange {
        let all = changes(first, last, Kind::Removed);
        all.range().expect("it is not empty")
    }

    #[test]
    fn a_hole_between_what_was_joined_is_known_until_something_fills_it() {
        let mut all = Changes::none(Kind::Removed);
        for (first, last, is_whole) in [
            (4, 5, true),
            (6, 7, true),
            (2, 4, true),
            (9, 9, false),
            // It fills the hole, but nobody knows that this was the only one.
            (8, 8, false),
            (3, 3, false),
            (1, 9, true),
            (0, 0, true),
            (u64::MAX >> 12, u64::MAX >> 12, false),
            (0, u64::MAX >> 12, true),
        ] {
            assert!(all.join(&changes(first, last, Kind::Removed)));
            let hull = all.range().expect("it is not empty");
            assert_eq!(all.has_removed(hull), is_whole, "{first}");
            assert_eq!(all.has_removed(pages(first, last)), is_whole, "{first}");
            assert!(all.spans(pages(first, last)));
        }
    }

    #[test]
    fn only_what_was_removed_is_gone() {
        for kind in [Kind::Removed, Kind::Added, Kind::Replaced, Kind::Altered] {
            let all = changes(1, 4, kind);
            assert_eq!(all.kind(), kind);
            assert_eq!(all.has_removed(pages(2, 3)), kind == Kind::Removed);
            assert!(!all.has_removed(pages(0, 3)) && !all.has_removed(pages(4, 5)));
        }
        assert!(Changes::everything().has_removed(pages(0, u64::MAX >> 12)));
        let mut both = changes(1, 4, Kind::Removed);
        assert!(both.join(&changes(2, 2, Kind::Altered)));
        assert!(!both.has_removed(pages(3, 3)), "page 2 may be mapped");
        assert!(both.has_lost_leaves());
    }

    #[test]
    fn what_needs_other_commands_is_not_joined() {
        for kind in [Kind::Removed, Kind::Added, Kind::Replaced, Kind::Altered] {
            for other in [Kind::Added, Kind::Replaced] {
                let before = changes(1, 4, kind);
                let mut all = before;
                assert_eq!(all.join(&changes(5, 5, other)), kind == other);
                if kind != other {
                    assert_eq!(all, before);
                }
            }
            // Nothing is of no kind.
            let mut all = Changes::none(Kind::Added);
            assert!(all.join(&changes(1, 4, kind)));
            assert_eq!(all, changes(1, 4, kind));
            assert!(all.join(&Changes::none(Kind::Added)));
            assert_eq!(all, changes(1, 4, kind));
        }
    }
}
