//! Names of devices, whichever bus they are on.

use core::fmt;

use crate::firmware::{Itself, NodeIndex};
use crate::topology::PciAddress;

/// A device of a machine.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum DeviceAddress {
    /// A PCI function.
    Pci(PciAddress),
    /// A device that firmware names.
    Node(NodeIndex),
    /// What sits on the bus of a named device: an object behind a Freescale management complex, a
    /// device on a CDX bus.
    Input {
        /// The root container or controller.
        node: NodeIndex,
        /// Its ID on that bus: the ICID, or the requester ID.
        id: u32,
    },
}

impl From<PciAddress> for DeviceAddress {
    fn from(address: PciAddress) -> Self {
        Self::Pci(address)
    }
}

impl From<Itself> for DeviceAddress {
    fn from(itself: Itself) -> Self {
        match itself {
            Itself::Function(address) => Self::Pci(address),
            Itself::Node(node) => Self::Node(node),
        }
    }
}

impl fmt::Display for DeviceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pci(address) => address.fmt(f),
            Self::Node(NodeIndex(node)) => write!(f, "node {node}"),
            Self::Input {
                node: NodeIndex(node),
                id,
            } => write!(f, "input {id:#x} of node {node}"),
        }
    }
}
