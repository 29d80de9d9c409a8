//! From what changed to the commands that make the hardware forget it.
//!
//! A [`Planner`] knows one hardware instance: its architecture and what it can do. A tag names one place
//! where translations of a domain are cached, the IOTLB under an ASID or the device TLB of one stream,
//! say. Plans are pure functions, take no lock and allocate nothing.

pub mod amd;
pub mod riscv;
pub mod smmuv3;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod vtd;

use core::fmt::Debug;

use iopt_formats::{Level, PageSize};

use crate::invalidation::Changes;

/// Turns changes into the commands of one hardware instance.
pub trait Planner {
    /// One entry of the instance's command queue.
    type Command: Copy;

    /// One place where translations of a domain are cached. The order of tags is that of their commands.
    type Tag: Copy + Debug + Ord;

    /// Calls `emit` with each command that makes the place named `tag` forget `changes`, in order; with none
    /// if it cannot hold anything of them.
    fn plan(&self, tag: &Self::Tag, changes: &Changes, emit: impl FnMut(Self::Command));

    /// Returns when in an invalidation the commands of `tag` have their turn.
    fn phase(tag: &Self::Tag) -> Phase;

    /// Returns whether a command can be given again after it failed because a device did not answer: no device has
    /// to answer it, and to carry it out twice is the same as once. The failure of another one's device may be met by
    /// it; its own device's is final.
    fn can_repeat(command: &Self::Command) -> bool;
}

/// The parts of an invalidation, each of which needs those before to be complete: its commands stand behind
/// a sync.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Phase {
    /// What the IOMMU caches itself.
    Iotlb,
    /// What it read of contexts at addresses that it translated, and would read again.
    Contexts,
    /// What it combined from two stages, and would combine again from the first of them.
    CombinedEntries,
    /// What devices cache, and would ask the IOMMU for again.
    DeviceTlb,
}

/// Returns the base-2 logarithm of the distance of addresses that meet every entry that went, in tables of
/// `2^granule_lg2` bytes.
///
/// A contiguous group may be cached as the items that it consists of, so each of them is told.
fn step_lg2(granule_lg2: u8, changes: &Changes) -> u8 {
    let smallest = changes.leaf_sizes().smallest();
    let leaf = smallest.map(|size| level_of(granule_lg2, size));
    // If tables went that nobody named, they were leaf tables at worst.
    let table = (!changes.has_lost_only_leaves()).then(|| {
        let level = (1..=Level::MAX.0)
            .map(Level)
            .find(|&level| changes.has_table(level));
        level.unwrap_or(Level(1))
    });
    let level = [leaf, table]
        .into_iter()
        .flatten()
        .min_by_key(|level| level.0);
    item_lg2(granule_lg2, level.unwrap_or(Level::LEAF))
}

/// Returns the level of leaves of `size`, those of contiguous groups included.
fn level_of(granule_lg2: u8, size: PageSize) -> Level {
    Level(size.lg2().saturating_sub(granule_lg2) / (granule_lg2 - 3))
}

/// Returns the base-2 logarithm of the bytes that an item of `level` translates, which is the whole space
/// for levels that no table has.
fn item_lg2(granule_lg2: u8, level: Level) -> u8 {
    (granule_lg2 + (granule_lg2 - 3) * level.0.min(Level::MAX.0)).min(63)
}
