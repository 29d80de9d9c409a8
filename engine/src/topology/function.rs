//! A PCI function, as far as it decides what can reach what.

use alloc::vec::Vec;

use crate::topology::{Acs, PciAddress, RequesterId};

/// What a function is, by the Device/Port Type of its PCI Express capability (PCI Express Base
/// Specification 7.5.3.2) and, where it has none, by its header.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
pub enum FunctionKind {
    /// A root port: it leads from the root complex to a link.
    RootPort,
    /// The upstream port of a switch.
    UpstreamPort,
    /// A downstream port of a switch.
    DownstreamPort,
    /// A bridge from PCI Express to PCI or PCI-X.
    PciePciBridge,
    /// A reverse bridge: from PCI or PCI-X to PCI Express.
    PciPcieBridge,
    /// A bridge without a PCI Express capability.
    ConventionalBridge,
    /// An endpoint, a legacy one too, below a port.
    Endpoint,
    /// An endpoint that is part of the root complex.
    RootComplexEndpoint,
    /// A root complex event collector.
    EventCollector,
    /// Another function without a PCI Express capability.
    Conventional,
}

impl FunctionKind {
    /// Returns `true` if there may be a bus below.
    pub const fn is_bridge(self) -> bool {
        matches!(
            self,
            Self::RootPort
                | Self::UpstreamPort
                | Self::DownstreamPort
                | Self::PciePciBridge
                | Self::PciPcieBridge
                | Self::ConventionalBridge
        )
    }

    /// Returns `true` for a port from which a link leads downstream.
    pub(crate) const fn is_downstream(self) -> bool {
        matches!(self, Self::RootPort | Self::DownstreamPort)
    }

    /// Returns `true` for a bridge with a conventional bus on a side: it may take what comes from below
    /// as its own.
    pub(crate) const fn takes_requests(self) -> bool {
        matches!(
            self,
            Self::PciePciBridge | Self::PciPcieBridge | Self::ConventionalBridge
        )
    }
}

/// The buses below a bridge.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct BusRange {
    /// The bus right below.
    pub secondary: u8,
    /// The last bus that the bridge passes requests on to.
    pub subordinate: u8,
}

/// A PCI function, as its configuration space and the lists of quirks say.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Function {
    /// Which.
    pub address: PciAddress,
    /// What.
    pub kind: FunctionKind,
    /// Bit 7 of its header type: its device has more functions. [`Rule::Linux`](super::Rule::Linux) alone
    /// looks at it; [`Rule::Reachability`](super::Rule::Reachability) counts functions.
    pub is_multifunction: bool,
    /// The buses below, of a bridge that was given any.
    pub buses: Option<BusRange>,
    /// Its ACS capability; `None` if it has none, or nobody knows, which counts as none.
    pub acs: Option<Acs>,
    /// Of an SR-IOV virtual function: its physical function, in the same segment.
    pub physical: Option<RequesterId>,
    /// Further requester IDs of the segment that it uses, which only a list of quirks knows: functions that
    /// forget to put their own function number into some requests, for instance.
    pub aliases: Vec<RequesterId>,
    /// Whether a list of quirks knows that nothing leaves it sideways, although no ACS says so. Of a bridge
    /// with a conventional bus it says nothing about what is below.
    pub is_isolated: bool,
}

impl Function {
    /// Creates one without buses, ACS and quirks, alone in its device.
    pub const fn new(address: PciAddress, kind: FunctionKind) -> Self {
        Self {
            address,
            kind,
            is_multifunction: false,
            buses: None,
            acs: None,
            physical: None,
            aliases: Vec::new(),
            is_isolated: false,
        }
    }
}
