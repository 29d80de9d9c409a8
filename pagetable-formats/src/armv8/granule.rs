//! Translation granules and the sizes they give (DDI 0487, D8.2.8 to D8.2.10, D8.7.1).

use crate::{Level, PageSize, PageSizes};

/// A translation granule.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Granule {
    /// 4 KiB.
    Kib4,
    /// 16 KiB.
    Kib16,
    /// 64 KiB.
    Kib64,
}

impl Granule {
    /// Returns the base-2 logarithm of the size in bytes.
    pub const fn lg2(self) -> u8 {
        match self {
            Self::Kib4 => 12,
            Self::Kib16 => 14,
            Self::Kib64 => 16,
        }
    }

    /// Returns the granule of `2^lg2` bytes.
    pub(super) const fn from_lg2(lg2: u8) -> Self {
        match lg2 {
            12 => Self::Kib4,
            14 => Self::Kib16,
            _ => Self::Kib64,
        }
    }

    /// Returns the encoding in `TG0` and `S2TG`.
    pub const fn tg0(self) -> u8 {
        match self {
            Self::Kib4 => 0,
            Self::Kib64 => 1,
            Self::Kib16 => 2,
        }
    }

    /// Decodes `TG0` or `S2TG`; 3 is reserved.
    pub const fn from_tg0(tg: u8) -> Option<Self> {
        match tg {
            0 => Some(Self::Kib4),
            1 => Some(Self::Kib64),
            2 => Some(Self::Kib16),
            _ => None,
        }
    }

    /// Returns the encoding in `TG1`.
    pub const fn tg1(self) -> u8 {
        match self {
            Self::Kib16 => 1,
            Self::Kib4 => 2,
            Self::Kib64 => 3,
        }
    }

    /// Decodes `TG1`; 0 is reserved.
    pub const fn from_tg1(tg: u8) -> Option<Self> {
        match tg {
            1 => Some(Self::Kib16),
            2 => Some(Self::Kib4),
            3 => Some(Self::Kib64),
            _ => None,
        }
    }
}

/// Returns the base-2 logarithm of the bytes that an item of `level` translates.
pub(super) const fn item_lg2(granule: u8, level: Level) -> u8 {
    granule + (granule - 3) * level.0
}

/// Returns the level of the smallest root that decodes `va_bits` without concatenation.
pub(super) const fn natural_top(granule: u8, va_bits: u8) -> Level {
    Level((va_bits - granule).div_ceil(granule - 3) - 1)
}

/// Returns whether an item of `level` may be a leaf; `wide` is LPA or LPA2 (table D8-52).
pub(super) const fn has_leaves(granule: u8, level: Level, wide: bool) -> bool {
    let highest = if granule == 12 { 2 } else { 1 };
    level.0 <= highest + wide as u8
}

/// Returns the base-2 logarithm of the items that one contiguous group of `level` has; 0 where the
/// Contiguous bit is reserved, as in the blocks that only LPA and LPA2 have (table D8-104).
pub(super) const fn group_lg2(granule: u8, level: Level) -> u8 {
    match (granule, level.0) {
        (12, 0..=2) => 4,
        (14, 0) => 7,
        (14 | 16, 1) | (16, 0) => 5,
        _ => 0,
    }
}

/// Returns every leaf size of a table whose root is of level `top`.
///
/// A size as large as the whole table is left out: a group there would not fit the root.
pub(super) const fn leaf_sizes(
    granule: u8,
    top: Level,
    va_bits: u8,
    oa_bits: u8,
    wide: bool,
) -> PageSizes {
    let mut sizes = PageSizes::EMPTY;
    let mut level = Level::LEAF;
    while level.0 <= top.0 && has_leaves(granule, level, wide) {
        let item = item_lg2(granule, level);
        if item < va_bits && item <= oa_bits {
            sizes = sizes.with(PageSize::from_lg2(item));
        }
        let group = item + group_lg2(granule, level);
        if group < va_bits && group <= oa_bits {
            sizes = sizes.with(PageSize::from_lg2(group));
        }
        level = Level(level.0 + 1);
    }
    sizes
}
