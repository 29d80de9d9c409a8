//! Whom a unit serves that firmware's description of the machine does not name.

use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::device::DeviceAddress;
use crate::firmware::{Behind, Description, Identity, InstanceIndex, PciPath, Position};
use crate::topology::{self, PciAddress, PciTree};

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
        let place = Place {
            tree: &self.tree,
            address,
        };
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

/// Where a function is, seen from a path. Where firmware names a physical function, it means the virtual
/// ones, too (section 8.3.1).
#[derive(Debug)]
struct Place<'a> {
    tree: &'a PciTree,
    address: PciAddress,
}

impl Place<'_> {
    fn position(&self, path: &PciPath) -> topology::Position {
        let mut address = self.address;
        let function = self.tree.get(address);
        if let Some(physical) = function.and_then(|function| function.physical) {
            address.requester = physical;
        }
        let steps = path.steps.iter().map(|step| (step.device, step.function));
        self.tree
            .position(address, path.segment, path.start_bus, steps)
    }
}

impl Position for Place<'_> {
    fn is_at(&self, path: &PciPath) -> bool {
        self.position(path) == topology::Position::At
    }

    fn is_below(&self, path: &PciPath) -> bool {
        self.position(path) != topology::Position::Elsewhere
    }
}
