//! Levels, index widths and the root address (DDI 0487, D8.2.2 to D8.2.4).

use super::{Config, Granule, Half, Stage};
use crate::Setup;
use crate::word::exceeds;

/// Returns the bytes of an input address space of `bits` bits, which is below 64.
pub(super) fn span(bits: u8) -> u64 {
    1u64.checked_shl(u32::from(bits)).unwrap_or(u64::MAX)
}

/// Shape of the tables below one base.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    pub(super) root: u64,
    /// Level of the initial lookup.
    pub(super) start: i8,
    /// Address bits that the initial lookup resolves, those of concatenated tables included.
    start_bits: u32,
    granule_bits: u32,
}

impl Geometry {
    pub(super) fn new(config: &Config, half: &Half) -> Result<Self, Setup> {
        check_combination(config, half)?;
        let ia_bits = half.ia_bits;
        let granule_bits = half.granule.lg2();
        let stride = granule_bits - 3;
        if !input_sizes(config, half).contains(&ia_bits) {
            return Err(Setup::InputBits { ia_bits });
        }
        let start = match config.stage {
            // 3 - (IAsize - 1 - granule) / stride, which is -1 to 3 for the sizes let through.
            Stage::One => 3 - ((u32::from(ia_bits) - 1 - granule_bits) / stride) as i8,
            Stage::Two { start_level } => start_level,
            Stage::Mali => 0,
        };
        let is_52_bit = config.ds && half.granule != Granule::K64;
        let lowest = match half.granule {
            Granule::K4 if is_52_bit => -1,
            Granule::K4 => 0,
            Granule::K16 if is_52_bit || config.stage == Stage::One => 0,
            Granule::K16 | Granule::K64 => 1,
        };
        if !(lowest..=3).contains(&start) {
            return Err(Setup::Levels { levels: start });
        }
        let mut geometry = Self {
            root: half.root,
            start,
            start_bits: stride,
            granule_bits,
        };
        if config.stage != Stage::Mali {
            // Stage 2 concatenates up to 16 tables, four more bits.
            let most = stride + if config.stage == Stage::One { 0 } else { 4 };
            geometry.start_bits = u32::from(ia_bits)
                .checked_sub(geometry.item_bits(start))
                .filter(|bits| (1..=most).contains(bits))
                .ok_or(Setup::InputBits { ia_bits })?;
        }
        // A root is aligned to its size, and to 64 bytes when output addresses have 52 bits.
        let least = if config.oa_bits == 52 { 6 } else { 0 };
        let alignment = (geometry.start_bits + 3).max(least);
        geometry.root &= u64::MAX << alignment;
        if exceeds(half.root, u32::from(config.oa_bits)) {
            return Err(Setup::Root { root: half.root });
        }
        Ok(geometry)
    }

    /// Base-2 logarithm of the bytes that one descriptor of `level` translates.
    pub(super) fn item_bits(&self, level: i8) -> u32 {
        self.granule_bits
            + (self.granule_bits - 3) * u32::from(3i8.saturating_sub(level).unsigned_abs())
    }

    /// Address bits that a lookup at `level` resolves.
    pub(super) fn index_bits(&self, level: i8) -> u32 {
        if level == self.start {
            self.start_bits
        } else {
            self.granule_bits - 3
        }
    }

    /// Descriptor of `iova` in a table of `level`.
    pub(super) fn index(&self, iova: u64, level: i8) -> u64 {
        iova >> self.item_bits(level) & ((1 << self.index_bits(level)) - 1)
    }
}

/// Input address sizes by D8.2.3, with the small sizes of `FEAT_TTST`.
fn input_sizes(config: &Config, half: &Half) -> std::ops::RangeInclusive<u8> {
    match (config.aarch32, config.stage) {
        (true, Stage::Two { .. }) => 25..=40,
        (true, _) => 25..=32,
        (false, Stage::Mali) => 13..=48,
        (false, _) if half.granule == Granule::K64 => 17..=52,
        (false, _) if config.ds => 16..=52,
        (false, _) => 16..=48,
    }
}

fn check_combination(config: &Config, half: &Half) -> Result<(), Setup> {
    let has_4k_only = config.aarch32 || config.stage == Stage::Mali;
    let is_legal = !(has_4k_only && (config.ds || config.lpa || half.granule != Granule::K4)
        || config.aarch32 && config.stage == Stage::Mali
        || config.upper.is_some() && config.stage != Stage::One);
    if !is_legal {
        return Err(Setup::Combination);
    }
    let most = if config.aarch32 {
        40
    } else if config.stage == Stage::Mali {
        48
    } else {
        52
    };
    if (32..=most).contains(&config.oa_bits) {
        Ok(())
    } else {
        Err(Setup::OutputBits {
            oa_bits: config.oa_bits,
        })
    }
}
