//! Whom a unit serves that firmware's description of the machine does not name.

use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::device::DeviceAddress;
use crate::firmware::{Behind, Description, Identity, InstanceIndex, Place};
use crate::topology::{PciAddress, PciTree};

/// What the DMAR table says of one unit, for one that is registered as
/// [anonymous](crate::device::Identity::Anonymous).
///
/// Such units are asked in the order of their numbers, and the first one that knows a device has it. Only
/// PCI functions are known.
#[derive(Clone, Debug)]
pub struct Scope {
    /// What the table says.
    pub description: Arc<Description>,
    /// Which of its instances the unit is.
    pub instance: InstanceIndex,
    /// Where functions are, and under which IDs their requests arrive.
    pub tree: Arc<PciTree>,
}

impl Scope {
    /// Returns under which IDs the unit sees a device, in rising order; none if it sees nothing of it.
    pub fn ids(&self, device: DeviceAddress) -> Vec<u32> {
        let DeviceAddress::Pci(address) = device else {
            return Vec::new();
        };
        let place = Place::new(&self.tree, address);
        let requesters = self.tree.requesters(address).unwrap_or_default();
        let mut ids: Vec<_> = requesters
            .into_iter()
            .filter_map(|requester| {
                let segment = address.segment;
                let seen = self
                    .description
                    .requester(PciAddress { segment, requester }, &place);
                match seen {
                    Behind::Instance(seen) if seen.instance == self.instance => {
                        match seen.identity {
                            Identity::Number(id) => Some(id),
                            Identity::Cells(_) => None,
                        }
                    }
                    _ => None,
                }
            })
            .collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}
