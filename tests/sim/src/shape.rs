//! How large the items are that a walk passes.

use iopt_reference::Table;
use iopt_reference::arm::{Granule, Half, Stage};

use crate::contexts::bits;
use crate::memory::Read;

/// Sizes of the items of one walk, as base-2 logarithms.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    /// The translation granule.
    pub(crate) granule_lg2: u32,
    /// The item of each read.
    pub(crate) items: Vec<u32>,
}

impl Shape {
    /// Tells the sizes of the items that a walk of `table` for `iova` has read.
    pub(crate) fn new(table: &Table, iova: u64, reads: &[Read]) -> Self {
        let descending = |levels: u8| {
            let count = reads.len() as u32;
            (0..count)
                .map(|index| 12 + 9 * u32::from(levels).saturating_sub(index + 1))
                .collect()
        };
        let (granule_lg2, items) = match table {
            Table::Arm(config) => {
                let half = match (&config.lower, &config.upper) {
                    (None, Some(upper)) => upper,
                    (Some(_), Some(upper)) if iova >> 63 == 1 => upper,
                    (Some(lower), _) => lower,
                    (None, None) => return Self::none(),
                };
                let granule = granule_lg2(half);
                let stride = granule - 3;
                // Levels below the first one.
                let below = match config.stage {
                    Stage::One => u32::from(half.ia_bits).saturating_sub(1 + granule) / stride,
                    Stage::Two { start_level } => {
                        3u32.saturating_add_signed(-i32::from(start_level))
                    }
                    Stage::Mali => 3,
                };
                let item = |index| granule + stride * below.saturating_sub(index);
                (granule, (0..reads.len() as u32).map(item).collect())
            }
            Table::VtdSecond(config) => (12, descending(config.levels)),
            Table::LongMode(config) => (12, descending(config.levels)),
            Table::Riscv(config) => (12, descending(config.levels)),
            Table::AmdV1(config) => {
                // Levels may be skipped: each item names the level of the next.
                let mut level = u64::from(config.mode);
                let item = |read: &Read| {
                    let lg2 = 12 + 9 * (level as u32).saturating_sub(1);
                    level = bits(read.word, 11, 9);
                    lg2
                };
                (12, reads.iter().map(item).collect())
            }
        };
        Self { granule_lg2, items }
    }

    const fn none() -> Self {
        Self {
            granule_lg2: 12,
            items: Vec::new(),
        }
    }
}

fn granule_lg2(half: &Half) -> u32 {
    match half.granule {
        Granule::K4 => 12,
        Granule::K16 => 14,
        Granule::K64 => 16,
    }
}

/// Returns whether a leaf belongs to all address spaces of its domain: ARM stage 1 `nG` (bit 11), RISC-V
/// first stage `G` (bit 5).
pub(crate) fn is_global(table: &Table, word: u64) -> bool {
    match table {
        Table::Arm(config) => config.stage == Stage::One && word >> 11 & 1 == 0,
        Table::Riscv(config) => {
            config.stage == iopt_reference::riscv::Stage::First && word >> 5 & 1 == 1
        }
        _ => false,
    }
}
