//! Plans for AMD-Vi IOMMUs.
//!
//! Source: *AMD I/O Virtualization Technology (IOMMU) Specification*, document 48882, revision 3.10,
//! sections 2.4.2 "`INVALIDATE_DEVTAB_ENTRY`", 2.4.3 "`INVALIDATE_IOMMU_PAGES`" and 2.4.4
//! "`INVALIDATE_IOTLB_PAGES`".
//!
//! An invalidation names one block. It drops what overlaps the block and is no larger than it: an entry
//! that is larger stays, although it translates addresses of the block. So the block is never smaller than
//! what was removed.

use iopt_formats::command::amd::Command;
use iopt_formats::command::{Pasid, Span};
use iopt_formats::{IovaRange, Level};

use crate::invalidation::plan::{Phase, Planner};
use crate::invalidation::{Changes, Kind};

/// Blocks above this order, 2^51 bytes, are not told from all addresses.
const MAX_ORDER: u8 = 39;
/// Address bits of the page, and of each level above it, in both formats.
const PAGE_LG2: u8 = 12;
const LEVEL_LG2: u8 = 9;

/// What of one IOMMU decides how it is told.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Amd {
    /// Whether it caches that nothing is mapped (`NpCache` of the capability header), as emulated ones do.
    pub has_absent_entries: bool,
}

/// How a device is told.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Device {
    /// The device.
    pub device_id: u16,
    /// ID of the device, or of its physical function, whose queue the invalidation is counted for.
    pub queue_id: u16,
    /// How many invalidations the queue takes at once, as the device announces: 1 to 32.
    pub max_pending: u8,
}

/// One place where an IOMMU, or a device behind it, caches translations.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Tag {
    /// The IOMMU's caches.
    Iotlb {
        /// The domain.
        domain_id: u16,
        /// The address space in guest tables (version 2); `None` for host tables (version 1). Requests
        /// without a PASID that use guest tables have 0.
        pasid: Option<Pasid>,
    },
    /// What the IOMMU read of a device's guest CR3 table at addresses of a guest, which host tables translate. Stands
    /// beside the [`Combined`](Self::Combined) of the device's domain ID.
    GuestCr3 {
        /// The device.
        device_id: u16,
    },
    /// The IOMMU's caches, for entries that combine a guest's tables with the host tables. Every domain ID of such
    /// a nesting needs its own tag, beside the [`Iotlb`](Self::Iotlb) of what the host tables translate alone.
    Combined {
        /// The domain.
        domain_id: u16,
    },
    /// What a device caches of the addresses that changed.
    Ats {
        /// The device.
        device: Device,
        /// PASID of its requests, if they have one.
        pasid: Option<Pasid>,
    },
    /// What a device caches, all of it: its addresses are a guest's, and those that changed are not.
    AtsFull {
        /// The device.
        device: Device,
        /// PASID of its requests, if they have one.
        pasid: Option<Pasid>,
    },
}

impl Amd {
    /// Takes the features from the first word of the capability block in configuration space.
    pub const fn from_capability_header(header: u32) -> Self {
        const NP_CACHE: u32 = 26;
        Self {
            has_absent_entries: header >> NP_CACHE & 1 != 0,
        }
    }
}

impl Planner for Amd {
    type Command = Command;
    type Tag = Tag;

    fn plan(&self, tag: &Tag, changes: &Changes, mut emit: impl FnMut(Command)) {
        let Some(range) = changes.range() else {
            return;
        };
        let is_added = changes.kind() == Kind::Added;
        // What was absent may have been an item of any level.
        let has_tables = !changes.has_lost_only_leaves();
        match *tag {
            Tag::Iotlb { domain_id, pasid } if !is_added || self.has_absent_entries => {
                emit(Command::InvalidatePages {
                    domain_id,
                    pasid,
                    has_tables,
                    span: block(range, changes),
                });
            }
            // No invalidation of translations reaches what is known by device (2.4.2).
            Tag::GuestCr3 { device_id } if !is_added || self.has_absent_entries => {
                emit(Command::InvalidateDeviceTableEntry { device_id });
            }
            // Addresses of the host tables are not those that nested translations are found by, and their PASIDs are
            // the guest's to choose: all of the domain.
            Tag::Combined { domain_id } if !is_added || self.has_absent_entries => {
                emit(Command::InvalidatePages {
                    domain_id,
                    pasid: None,
                    has_tables: true,
                    span: Span::ALL,
                });
            }
            // A device does not cache that nothing is mapped.
            Tag::Ats { device, pasid } if !is_added => {
                emit(device_tlb(device, pasid, block(range, changes)));
            }
            Tag::AtsFull { device, pasid } if !is_added => {
                emit(device_tlb(device, pasid, Span::ALL));
            }
            _ => {}
        }
    }

    fn phase(tag: &Tag) -> Phase {
        match tag {
            Tag::Iotlb { .. } => Phase::Iotlb,
            // An old entry that is still there would make combined ones again.
            Tag::GuestCr3 { .. } => Phase::Contexts,
            Tag::Combined { .. } => Phase::CombinedEntries,
            Tag::Ats { .. } | Tag::AtsFull { .. } => Phase::DeviceTlb,
        }
    }

    fn can_repeat(command: &Command) -> bool {
        !matches!(
            command,
            Command::InvalidateIotlbPages { .. } | Command::CompletePageRequest { .. }
        )
    }
}

pub(crate) const fn device_tlb(device: Device, pasid: Option<Pasid>, span: Span) -> Command {
    Command::InvalidateIotlbPages {
        device_id: device.device_id,
        max_pending: device.max_pending,
        queue_id: device.queue_id,
        pasid,
        span,
    }
}

/// Returns the smallest block that holds `range` and is no smaller than any entry that changed.
fn block(range: IovaRange, changes: &Changes) -> Span {
    let leaf = changes.leaf_sizes().largest();
    let leaf_order = leaf.map_or(0, |size| size.lg2().saturating_sub(PAGE_LG2));
    let table = (1..=Level::MAX.0)
        .rev()
        .find(|&level| changes.has_table(Level(level)));
    let table_order = table.map_or(0, |level| level * LEVEL_LG2);
    let span = Span::covering(range).at_least(leaf_order.max(table_order));
    if span.order() > MAX_ORDER {
        Span::ALL
    } else {
        span
    }
}

#[cfg(test)]
mod tests;
