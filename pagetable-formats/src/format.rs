//! The contract between a format and everything that reads or writes tables.

use core::fmt;

use crate::{Field, Iova, Oa, PageSize, PageSizes, Prot, Rights};

/// A level of the radix tree.
///
/// Level 0 holds only leaves and the number grows towards the root, whatever numbering the
/// hardware's specification uses; [`Format::arch_level`] gives that one.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Level(pub u8);

impl Level {
    /// The level of the smallest pages.
    pub const LEAF: Self = Self(0);
    /// No format has a level above this one.
    pub const MAX: Self = Self(5);

    /// Returns the level below, or `None` for level 0.
    pub const fn below(self) -> Option<Self> {
        match self.0.checked_sub(1) {
            Some(below) => Some(Self(below)),
            None => None,
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Which part of the 64-bit space a table translates.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Window {
    /// `0 ..= 2^va_bits - 1`.
    Lower,
    /// The `2^va_bits` bytes at the top of the space (`TTBR1`).
    Upper,
    /// Addresses whose bits from `va_bits - 1` up are all equal: a lower and an upper part.
    SignExtended,
}

/// The shape of a table.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Geometry {
    /// Input address bits that the table decodes, up to 64.
    pub va_bits: u8,
    /// Which addresses those bits stand for.
    pub window: Window,
    /// Level of the root of a new table.
    pub top: Level,
    /// Level to which the root may grow; equal to `top` where it cannot.
    pub max_top: Level,
}

impl Geometry {
    /// Returns the constant that, added to an address modulo 2^64, moves the window to
    /// `0 ..= va_mask`.
    pub const fn bias(self) -> u64 {
        match self.window {
            Window::Lower => 0,
            Window::Upper => self.va_mask().wrapping_add(1),
            Window::SignExtended => (self.va_mask() >> 1).wrapping_add(1),
        }
    }

    /// Returns the mask of the decoded address bits.
    pub const fn va_mask(self) -> u64 {
        u64::MAX >> (64 - self.va_bits)
    }

    /// Returns whether the table decodes `iova`.
    pub const fn contains(self, iova: Iova) -> bool {
        iova.get().wrapping_add(self.bias()) <= self.va_mask()
    }
}

/// The meaning of one item.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Entry {
    /// Translates nothing; the walk faults.
    Empty,
    /// Points to a table.
    Table(TableEntry),
    /// Translates to an output address.
    Leaf(Leaf),
}

/// A pointer to a table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TableEntry {
    /// Where the table lies.
    pub oa: Oa,
    /// Level of that table; lower than the level of the item, by more than one where a format
    /// can skip levels (AMD).
    pub level: Level,
    /// Rights that the whole subtree can grant at most.
    pub limit: Rights,
}

/// A translation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Leaf {
    /// First output byte of the `span` that this item belongs to.
    pub oa: Oa,
    /// Aligned IOVA bytes that `oa` covers: the item for formats where each item of a contiguous
    /// group carries its own address (ARM), else the whole entry.
    pub span: PageSize,
    /// Size of the whole entry, all items of a contiguous group together.
    pub size: PageSize,
    /// Rights and memory type that the entry grants.
    pub prot: Prot,
    /// Whether the accessed flag is set; `true` where the format has none.
    pub accessed: bool,
    /// Whether the entry says that it was written to; meaningful only if the table tracks it.
    pub dirty: bool,
}

/// How a format records that a page was written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct DirtyRule {
    /// Bits that are set in an entry whose writes hardware records.
    pub tracked: u64,
    /// The bits that change.
    pub mask: u64,
    /// Value of the bits in `mask` when the page is dirty: all of them or none.
    pub dirty: u64,
}

impl DirtyRule {
    /// Returns whether the leaf `word` is dirty.
    #[inline]
    pub const fn is_dirty(self, word: u64) -> bool {
        word & self.tracked == self.tracked && word & self.mask == self.dirty
    }

    /// Returns `word` marked clean, if hardware records its writes.
    #[must_use]
    pub const fn clean(self, word: u64) -> u64 {
        if word & self.tracked == self.tracked {
            word & !self.mask | self.mask & !self.dirty
        } else {
            word
        }
    }

    /// Returns `word` marked dirty, if hardware records its writes.
    #[must_use]
    pub const fn soil(self, word: u64) -> u64 {
        if word & self.tracked == self.tracked {
            word & !self.mask | self.dirty
        } else {
            word
        }
    }
}

/// An item that the specification reserves: hardware faults on it and the walk must stop.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("reserved encoding {word:#018x} at level {level}: {reason}")]
pub struct Reserved {
    /// The raw item.
    pub word: u64,
    /// Level of the table it stands in.
    pub level: Level,
    /// Which rule it breaks.
    pub reason: &'static str,
}

/// A configuration that a format cannot have.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// No table decodes this many input address bits.
    #[error("an input address of {bits} bits is not possible: {rule}")]
    VaBits {
        /// The rejected width.
        bits: u8,
        /// What would be accepted.
        rule: &'static str,
    },
    /// No entry encodes this many output address bits.
    #[error("an output address of {bits} bits is not possible: {rule}")]
    OaBits {
        /// The rejected width.
        bits: u8,
        /// What would be accepted.
        rule: &'static str,
    },
    /// The table cannot have this many levels.
    #[error("{levels} levels are not possible: {rule}")]
    Levels {
        /// The rejected number of levels.
        levels: u8,
        /// What would be accepted.
        rule: &'static str,
    },
    /// None of the allowed page sizes exists in this format.
    #[error("no page size of this format is allowed")]
    Sizes,
    /// The format has no such option, or it excludes another one.
    #[error("{option} is not possible here: {rule}")]
    Option {
        /// The rejected option.
        option: &'static str,
        /// Why.
        rule: &'static str,
    },
}

pub(crate) mod sealed {
    #![expect(unnameable_types, reason = "that is what seals a trait")]

    /// Keeps [`Format`](super::Format) to this crate: engines turn the addresses that a format
    /// decodes into references, so memory safety rests on the laws below.
    pub trait Sealed {}
}

/// An IO page-table format. The formats of this crate are all there are; the trait is sealed because
/// engines trust its laws with memory safety.
///
/// Implementors hold the run-time configuration of one table. A *leaf* of size `s` consists of
/// `2^(s - item size)` items; item `i` of it holds
/// `leaf_attributes(prot, s) | encode_oa(oa) + i * item_step(s)`. The laws, for every
/// configuration, level, size, aligned address and right:
///
/// - **F1** (zero is empty): `decode(0, level)` is [`Entry::Empty`], and so is every word without
///   a [`PRESENT`](Self::PRESENT) bit.
/// - **F2** (leaves round-trip): each item of a leaf decodes to its size, its output address and
///   `effective(prot)`.
/// - **F3** (tables round-trip): `encode_table` decodes to the address and the level below, with
///   no limit on rights, and [`child`](Self::child) agrees; `child` of a leaf is `None`.
/// - **F4** (sizes): a size of [`sizes`](Self::sizes) is at least an item of its level and less
///   than a whole table of that level.
/// - **F5** (rights): `effective(prot)` contains the read, write and user rights of `prot`, is
///   its own `effective`, and is `None` exactly where `leaf_attributes` is 0. A format that does
///   not control execution drops that right; one that does keeps it.
/// - **F6** (marks): a leaf of one item has a `PRESENT` bit and no [`GROUPED`](Self::GROUPED)
///   bit; each item of a larger leaf has a `GROUPED` bit.
/// - **F7** (dirty): [`DirtyRule::clean`] and [`DirtyRule::soil`] of a leaf change the decoded
///   `dirty` and nothing else; a leaf whose writes are recorded is encoded as the format's
///   hardware never needs an extra write for, and a read-only leaf stays clean.
/// - **F8** (linear addresses): inside an aligned window of `2^OA_LINEAR_LG2` bytes,
///   `encode_oa(a + d) = encode_oa(a) + encode_oa(d)`; its bits and those of the attributes are
///   disjoint, and [`decode_oa`](Self::decode_oa) inverts it for single-item leaves of level 0.
/// - **F9** (pending bit): [`PENDING`](Self::PENDING) changes nothing that `decode` and
///   `child` say of a table entry, but [`exact_child`](Self::exact_child) refuses it, as it
///   refuses empty items and leaves.
/// - **F10** (total): `decode` and [`fields`](Self::fields) accept every word at every level.
/// - **F11** (fields): the fields of a word do not overlap.
///
/// [`conformance`](crate::conformance) checks them.
pub trait Format: sealed::Sealed + Copy + fmt::Debug + Eq + Send + Sync + 'static {
    /// The smallest page, which one level-0 item translates; also the size of a table below the
    /// root.
    const GRANULE: PageSize;

    /// An item with none of these bits translates nothing; every item our encoder makes has one.
    const PRESENT: u64;

    /// Bits that mark a leaf item as one of several that make one entry.
    const GROUPED: u64;

    /// Software bit of a table entry that says "not written back to memory yet"; 0 where the
    /// format has no bit that hardware ignores, so that it cannot serve walkers that do not snoop.
    const PENDING: u64;

    /// Base-2 logarithm of the window in which [`encode_oa`](Self::encode_oa) is linear.
    const OA_LINEAR_LG2: u8 = 64;

    /// Whether the architecture demands that a valid entry is made invalid, and the caches
    /// invalidated, before another size or address takes its place.
    const BREAK_BEFORE_MAKE: bool = false;

    /// Bit of a leaf above level 0 that keeps it out of caches which could hold it together with
    /// other sizes, so that its size may change while it is valid (ARM nT); 0 where there is none.
    const BLOCK_MARK: u64 = 0;

    /// Returns the shape of the table.
    fn geometry(&self) -> Geometry;

    /// Returns the width of an output address, in bits.
    fn oa_bits(&self) -> u8;

    /// Returns every size that a leaf may have, contiguous groups included.
    fn sizes(&self) -> PageSizes;

    /// Returns what an entry made for `prot` grants: `prot` or, where the format cannot express
    /// it, the least that contains it. `None` if no entry can be made, as for no rights at all.
    fn effective(&self, prot: Prot) -> Option<Prot>;

    /// Returns the bits of a leaf of `size` besides its address, or 0 if `prot` cannot be mapped.
    ///
    /// `size` is one of [`sizes`](Self::sizes).
    fn leaf_attributes(&self, prot: Prot, size: PageSize) -> u64;

    /// Places `oa`, below `2^oa_bits` and aligned to the leaf's size, in a leaf word.
    fn encode_oa(&self, oa: Oa) -> u64;

    /// Extracts the address from a level-0 leaf word without [`GROUPED`](Self::GROUPED) bits.
    fn decode_oa(&self, word: u64) -> Oa;

    /// Returns the difference between neighbouring items of one leaf of `size`: 0 where all items
    /// are identical.
    fn item_step(&self, size: PageSize) -> u64;

    /// Encodes, for a table of `level`, a pointer to the table of the level below at `oa`.
    fn encode_table(&self, oa: Oa, level: Level) -> u64;

    /// Returns where the table lies that the item `word` of a `level` above 0 points to, or
    /// `None` if it is no pointer. For words of our own encoder only.
    fn child(&self, word: u64, level: Level) -> Option<Oa>;

    /// As [`child`](Self::child), in as few instructions as possible, for fast paths that turn to
    /// `child` when it fails: `None` for empty items, leaves and pending tables, and wherever a
    /// pointer is not of the ordinary kind.
    #[inline]
    fn exact_child(&self, word: u64, level: Level) -> Option<Oa> {
        if word & Self::PENDING == 0 {
            self.child(word, level)
        } else {
            None
        }
    }

    /// Decodes any item of a table of `level`, whoever wrote it.
    ///
    /// # Errors
    ///
    /// [`Reserved`] where the specification lets hardware fault on the pattern.
    fn decode(&self, word: u64, level: Level) -> Result<Entry, Reserved>;

    /// Returns how dirty pages are recorded, or `None` if this table does not track them.
    fn dirty_rule(&self) -> Option<DirtyRule>;

    /// Returns whether a leaf without its accessed flag faults.
    fn faults_unaccessed(&self) -> bool {
        false
    }

    /// Returns the number that the architecture's specification gives to `level`.
    fn arch_level(&self, level: Level) -> i8;

    /// Returns the named fields of an item of `level`, as its kind has them.
    fn fields(&self, word: u64, level: Level) -> &'static [Field];

    /// Returns the base-2 logarithm of the number of items in a table below the root.
    #[inline]
    fn item_count_lg2() -> u8 {
        Self::GRANULE.lg2() - 3
    }

    /// Returns the base-2 logarithm of the bytes that one item of `level` translates.
    #[inline]
    fn item_lg2(level: Level) -> u8 {
        Self::GRANULE.lg2() + Self::item_count_lg2() * level.0
    }

    /// Returns the level whose items a leaf of `size` is made of.
    #[inline]
    fn level_of(size: PageSize) -> Level {
        Level(size.lg2().saturating_sub(Self::GRANULE.lg2()) / Self::item_count_lg2())
    }

    /// Returns the number of items that make a leaf of `size`.
    #[inline]
    fn item_count(size: PageSize) -> usize {
        1 << (size.lg2() - Self::item_lg2(Self::level_of(size)))
    }

    /// Returns the base-2 logarithm of the number of items in a root of level `top`.
    ///
    /// A root holds all remaining address bits: fewer than a table has, or more where tables are
    /// concatenated.
    #[inline]
    fn root_count_lg2(&self, top: Level) -> u8 {
        let geometry = self.geometry();
        let remaining = geometry.va_bits.saturating_sub(Self::item_lg2(top));
        if top < geometry.max_top {
            remaining.min(Self::item_count_lg2())
        } else {
            remaining
        }
    }

    /// Returns the index that `iova` selects in a table of `level` below the root.
    #[inline]
    fn index(iova: Iova, level: Level) -> usize {
        (iova.get() >> Self::item_lg2(level)) as usize & ((1 << Self::item_count_lg2()) - 1)
    }

    /// Returns the index that `iova` selects in a root of level `top`.
    #[inline]
    fn root_index(&self, iova: Iova, top: Level) -> usize {
        (iova.get() >> Self::item_lg2(top)) as usize & ((1 << self.root_count_lg2(top)) - 1)
    }

    /// Returns word `i` of a leaf: a convenience over the three parts.
    fn leaf_item(&self, oa: Oa, size: PageSize, prot: Prot, i: usize) -> u64 {
        (self.leaf_attributes(prot, size) | self.encode_oa(oa))
            .wrapping_add(self.item_step(size).wrapping_mul(i as u64))
    }
}
