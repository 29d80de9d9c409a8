//! What an IOMMU was asked to do.

use std::collections::BTreeMap;

/// Counts since the IOMMU was made.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Statistics {
    /// Commands consumed, by their name in the manual.
    pub commands: BTreeMap<&'static str, u64>,
    /// Syncs completed.
    pub syncs: u64,
    /// Walks that began at the root.
    pub walks: u64,
    /// Requests that the IOTLB could answer.
    pub iotlb_hits: u64,
    /// Requests that a device TLB could answer.
    pub device_tlb_hits: u64,
    /// Commands that dropped pointers to tables, or may have.
    pub table_invalidations: u64,
}

impl Statistics {
    /// Returns how many commands were consumed, syncs among them.
    pub fn command_count(&self) -> u64 {
        self.commands.values().sum()
    }
}
