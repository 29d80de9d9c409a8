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
}

/// The parts of an invalidation, each of which needs those before to be complete: its commands stand behind
/// a sync.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Phase {
    /// What the IOMMU caches itself.
    Iotlb,
    /// What it combined from two stages, and would combine again from the first of them.
    CombinedEntries,
    /// What devices cache, and would ask the IOMMU for again.
    DeviceTlb,
}
