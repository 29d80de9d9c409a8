//! What a TLB invalidation by address reaches (IHI 0070, section 4.4.1).

use crate::armv8::Granule;
use crate::command::{CommandError, Narrow, attempt, check_zero};
use crate::{Bits, Iova, Level, bit};

pub(super) const NUM: Bits<16, 12> = Bits;
pub(super) const SCALE: Bits<25, 20> = Bits;
pub(super) const LEAF: u64 = bit(0);
pub(super) const TTL: Bits<9, 8> = Bits;
pub(super) const TG: Bits<11, 10> = Bits;

/// The largest SCALE that every implementation of ranges has.
const NARROW_SCALE: u8 = 31;
/// The largest SCALE that means anything.
const MAX_SCALE: u8 = 39;

/// What a TLB invalidation by address drops.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Target {
    /// The first address, a VA or an IPA; bits below 12 are dropped, of an IPA those above 55, too.
    ///
    /// With a level its bits below the size of a leaf of that level, else those below the granule, must
    /// be zero where there is a range: what is dropped is unpredictable otherwise.
    pub address: Iova,
    /// What is dropped from the address on; `None` is whatever contains the address, of any granule.
    pub range: Option<Range>,
    /// Only leaves are dropped (Leaf), and no pointers to tables.
    pub is_leaf: bool,
}

impl Target {
    /// Returns the target of whatever contains `address`, the only one without range invalidation.
    pub const fn single(address: Iova, is_leaf: bool) -> Self {
        Self {
            address,
            range: None,
            is_leaf,
        }
    }

    /// Returns the bits of word 0.
    pub(super) const fn word0(self) -> u64 {
        match self.range {
            Some(range) => NUM.put(range.num.field()) | SCALE.put(range.scale as u64),
            None => 0,
        }
    }

    /// Returns the bits of word 1, with the address bits `address_mask`.
    pub(super) const fn word1(self, address_mask: u64) -> u64 {
        let leaf = if self.is_leaf { LEAF } else { 0 };
        let hint = match self.range {
            Some(range) => TG.put(tg(range.granule)) | TTL.put(ttl(range.level)),
            None => 0,
        };
        self.address.get() & address_mask | leaf | hint
    }

    /// Decodes what stands in `words`, with the address bits `address_mask`.
    pub(super) const fn decode(words: [u64; 2], address_mask: u64) -> Result<Self, CommandError> {
        let (num, scale) = (NUM.get(words[0]), SCALE.get(words[0]));
        let level = TTL.get(words[1]);
        let range = match TG.get(words[1]) {
            0 => {
                // Reserved without a granule.
                attempt!(check_zero("NUM", num));
                attempt!(check_zero("SCALE", scale));
                attempt!(check_zero("TTL", level));
                None
            }
            tg => Some(attempt!(Range::new(
                granule(tg),
                Narrow::from_field(num),
                scale as u8,
                leaf_level(level),
            ))),
        };
        Ok(Self {
            address: Iova::new(words[1] & address_mask),
            range,
            is_leaf: words[1] & LEAF != 0,
        })
    }
}

/// A number of granules, and what is known of the entries there: NUM, SCALE, TG and TTL.
///
/// Needs `SMMU_IDR3.RIL`. Only entries of tables with the granule are dropped.
///
/// ```
/// use iopt_formats::armv8::Granule;
/// use iopt_formats::command::Narrow;
/// use iopt_formats::command::smmuv3::Range;
/// use iopt_formats::Level;
///
/// let range = Range::new(Granule::Kib4, Narrow::<5>::MAX, 4, Some(Level::LEAF))?;
/// assert_eq!(range.len(), 512 * 0x1000);
/// // A granule without a range or a level is reserved.
/// assert!(Range::new(Granule::Kib4, Narrow::MIN, 0, None).is_err());
/// # Ok::<(), iopt_formats::command::CommandError>(())
/// ```
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Range {
    granule: Granule,
    num: Narrow<5>,
    scale: u8,
    level: Option<Level>,
}

impl Range {
    /// Returns the range of `(num + 1) * 2^scale` granules.
    ///
    /// A `level` is a promise that all leaves to be dropped are of it, those of contiguous groups included:
    /// others may stay. Level 0 is TTL 3, level 2 is TTL 1.
    ///
    /// # Errors
    ///
    /// [`CommandError::ReservedValue`] for a `scale` above 39, for a `level` above 2, and for one granule
    /// without a level, which is reserved: one address without a granule says it all.
    pub const fn new(
        granule: Granule,
        num: Narrow<5>,
        scale: u8,
        level: Option<Level>,
    ) -> Result<Self, CommandError> {
        if scale > MAX_SCALE {
            return Err(CommandError::ReservedValue {
                field: "SCALE",
                value: scale as u64,
            });
        }
        match level {
            Some(level) if level.0 > 2 => Err(CommandError::ReservedValue {
                field: "TTL",
                value: level.0 as u64,
            }),
            None if num.get() == 0 && scale == 0 => Err(CommandError::ReservedValue {
                field: "TG",
                value: tg(granule),
            }),
            _ => Ok(Self {
                granule,
                num,
                scale,
                level,
            }),
        }
    }

    /// Returns the granule of the tables whose entries are dropped.
    pub const fn granule(self) -> Granule {
        self.granule
    }

    /// Returns NUM, which is one less than the factor.
    pub const fn num(self) -> Narrow<5> {
        self.num
    }

    /// Returns SCALE, 0 to 39.
    pub const fn scale(self) -> u8 {
        self.scale
    }

    /// Returns the level of the leaves to be dropped, or `None` if leaves of every level are.
    pub const fn level(self) -> Option<Level> {
        self.level
    }

    /// Returns the number of bytes. A range that passes the last byte of the address space ends there.
    #[expect(clippy::len_without_is_empty, reason = "a range is never empty")]
    pub const fn len(self) -> u64 {
        // At most 2^5 * 2^39 granules of 2^16 bytes.
        (self.num.field() + 1) << (self.scale + self.granule.lg2())
    }

    /// Refuses what only implementations with `SMMU_IDR5.DS` have.
    pub(super) const fn check_narrow(self) -> Result<(), CommandError> {
        if self.scale > NARROW_SCALE {
            return Err(CommandError::ReservedValue {
                field: "SCALE",
                value: self.scale as u64,
            });
        }
        match (self.granule, ttl(self.level)) {
            (Granule::Kib16, value @ 1) => Err(CommandError::ReservedValue {
                field: "TTL",
                value,
            }),
            _ => Ok(()),
        }
    }
}

/// Encodes a granule as TG.
pub(super) const fn tg(granule: Granule) -> u64 {
    match granule {
        Granule::Kib4 => 1,
        Granule::Kib16 => 2,
        Granule::Kib64 => 3,
    }
}

/// Decodes a TG that is not 0.
const fn granule(tg: u64) -> Granule {
    match tg {
        1 => Granule::Kib4,
        2 => Granule::Kib16,
        _ => Granule::Kib64,
    }
}

/// Encodes a level as TTL, which counts from the root.
const fn ttl(level: Option<Level>) -> u64 {
    match level {
        Some(level) => 3 - level.0 as u64,
        None => 0,
    }
}

const fn leaf_level(ttl: u64) -> Option<Level> {
    match ttl {
        0 => None,
        ttl => Some(Level(3 - ttl as u8)),
    }
}
