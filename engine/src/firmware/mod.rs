//! What firmware says about IOMMUs: one description, whichever tables it comes from.
//!
//! A [`Description`] says which IOMMU instances there are, which instance sees the requests of which
//! device under which ID, which IOVA devices need as they are or must not use, and how far they can
//! reach. It is read once and never changes; nothing here looks at a device.
//!
//! # Rules
//!
//! Who a sentence is about is a [`Subject`]: requesters of a PCI segment, one PCI function found by its
//! path through bridges, a device that firmware names, or the inputs of another bus. Of an instance's
//! sentences the first one that fits a requester counts ([`Description::rules`] keeps the order that the
//! specification of the table demands), and [`Subject::Rest`] fits only who fits none of any instance of
//! the segment. A device that no sentence fits is behind no IOMMU; a sentence without an instance says the
//! same, and counts only for whom no sentence with one fits. A named device has all IDs that sentences
//! give it.
//!
//! A sentence that cannot be read is a [`Flaw`], kept beside the others.

pub mod acpi;
pub mod device_tree;
pub mod fdt;
mod flaw;
mod place;
mod resolve;

pub use crate::firmware::device_tree::DeviceTreeError;
pub use crate::firmware::flaw::{Flaw, Problem, Topic};
pub use crate::firmware::place::Place;
pub use crate::firmware::resolve::{Behind, Identity, Position, Seen, Who};

use alloc::string::String;
use alloc::vec::Vec;

use iopt_formats::{IovaRange, Prot};

use crate::topology::{PciAddress, RequesterId};

/// The widest PASID, in bits (PCI Express Base Specification, 6.20).
pub(crate) const MAX_PASID_BITS: u8 = 20;

/// All that firmware says.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Description {
    /// IOMMU instances, in the order of their tables.
    pub instances: Vec<Instance>,
    /// Devices that firmware names, with what is below them on buses other than PCI.
    pub nodes: Vec<Node>,
    /// PCI host bridges.
    pub hosts: Vec<Host>,
    /// Which instance sees whom, under which ID.
    pub rules: Vec<Rule>,
    /// Which IOVA are not free for use.
    pub regions: Vec<Region>,
    /// How far devices reach, at most one for each subject.
    pub reaches: Vec<Reach>,
    /// Whether devices' requests snoop the processor's caches, where the table says so.
    pub coherence: Vec<Coherence>,
    /// Who may use device TLBs.
    pub ats: Vec<Ats>,
    /// How wide PASIDs of devices are that have any, where the table says so.
    pub pasids: Vec<PasidWidth>,
    /// Which device cannot work before which instance: an order of binding and of power, nothing else.
    pub suppliers: Vec<Supplier>,
    /// What could not be read.
    pub flaws: Vec<Flaw>,
}

/// An instance: its place in [`Description::instances`].
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct InstanceIndex(pub usize);

/// A named device: its place in [`Description::nodes`].
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct NodeIndex(pub usize);

/// What programs an instance.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
pub enum Architecture {
    /// Arm SMMU before version 3.
    Smmu,
    /// Arm SMMU version 3.
    Smmuv3,
    /// Intel VT-d.
    Vtd,
    /// AMD IOMMU.
    Amd,
    /// RISC-V IOMMU.
    Riscv,
    /// virtio-iommu.
    Virtio,
    /// Another one, which a device tree's `compatible` names.
    Other,
}

/// Where the registers of an instance are.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Location {
    /// At a physical address.
    Memory {
        /// The first one.
        base: u64,
        /// How many bytes, where the table says so.
        len: Option<u64>,
    },
    /// In a PCI function.
    Pci(PciAddress),
    /// The table does not say: it has none of its own, as a hypervisor's interface.
    Unstated,
}

/// An IOMMU instance.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Instance {
    /// What programs it.
    pub architecture: Architecture,
    /// Where its registers are.
    pub location: Location,
    /// What firmware calls it: a path in a device tree, or the kind and place of an ACPI structure.
    pub name: String,
    /// Whether it may be used: a device tree can say that it may not, and who is behind it then has no
    /// IOMMU.
    pub is_enabled: bool,
    /// Whether its walks snoop the processor's caches, where the table says so.
    pub is_coherent: Option<bool>,
    /// The device that it is besides, although its registers are not there or do not tell: what it must
    /// not be asked to translate.
    pub itself: Option<Itself>,
    /// Which bits of an ID it passes over, where the ID itself does not say which: `stream-match-mask` of an
    /// Arm SMMU before version 3, 0 for others.
    pub match_mask: u16,
}

/// The device that an IOMMU is.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Itself {
    /// A PCI function.
    Function(PciAddress),
    /// A device that firmware names.
    Node(NodeIndex),
}

impl Instance {
    /// Returns the device that it is, as far as that can be anybody's: a PCI function, with its registers
    /// or without, or a device that firmware names.
    pub const fn device(&self) -> Option<Itself> {
        match self.location {
            Location::Pci(address) => Some(Itself::Function(address)),
            Location::Memory { .. } | Location::Unstated => self.itself,
        }
    }

    /// Returns the PCI function that it is, with its registers or without.
    pub const fn pci_function(&self) -> Option<PciAddress> {
        match self.device() {
            Some(Itself::Function(address)) => Some(address),
            Some(Itself::Node(_)) | None => None,
        }
    }
}

/// A device that firmware names.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Node {
    /// Its path in a device tree, or its name in the ACPI namespace; where the table has none, what it
    /// knows the device by: `HID:UID`, `memory at ADDRESS`.
    pub name: String,
    /// The bus that it sits on.
    pub bus: Bus,
}

/// A bus, as far as it decides what goes into an ID map.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
pub enum Bus {
    /// Nothing: firmware gives the IDs themselves.
    Platform,
    /// Nothing, as for [`Platform`](Self::Platform): Arm's own peripherals.
    Amba,
    /// The ICID, mapped at the root container of a Freescale management complex.
    FslMc,
    /// The requester ID, mapped at the controller of a CDX bus.
    Cdx,
}

/// A PCI host bridge.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Host {
    /// What firmware calls it.
    pub name: String,
    /// The segment of all below it.
    pub segment: u16,
    /// The first and the last bus.
    pub buses: (u8, u8),
    /// Where its configuration space is in memory, if the table says so: the address of bus 0's, as
    /// the PCI Firmware Specification's ECAM has it.
    pub ecam: Option<u64>,
}

/// One step from a bus to the bus below: device and function of a bridge, or of what is looked for.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PathStep {
    /// The device, less than 32.
    pub device: u8,
    /// The function, less than 8.
    pub function: u8,
}

/// A PCI function by its path: bridges may be given other bus numbers than firmware gave.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PciPath {
    /// The segment.
    pub segment: u16,
    /// The bus where the path starts.
    pub start_bus: u8,
    /// At least one step.
    pub steps: Vec<PathStep>,
}

/// Whom a sentence is about.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Subject {
    /// Requesters of a segment whose ID, under the mask, is between two bounds, which count too.
    Requesters {
        /// The segment.
        segment: u16,
        /// Which bits of the ID count.
        mask: u16,
        /// The lower bound.
        first: RequesterId,
        /// The upper bound.
        last: RequesterId,
    },
    /// The function at the end of a path.
    Function(PciPath),
    /// All below the bridge at the end of a path, and the bridge.
    Below(PciPath),
    /// All root ports of a segment, and all below them: not what is part of the root complex.
    BelowRootPorts {
        /// The segment.
        segment: u16,
    },
    /// All requesters of a segment that no other rule fits.
    Rest {
        /// The segment.
        segment: u16,
    },
    /// A named device.
    Node(NodeIndex),
    /// What sits on the bus of a named device, by the bus's own IDs: those which, under the mask, are
    /// between two bounds, which count too.
    Inputs {
        /// The device: a root container or a controller.
        node: NodeIndex,
        /// Which bits of the ID count.
        mask: u32,
        /// The lowest ID.
        first: u32,
        /// The highest ID.
        last: u32,
    },
    /// Whoever an instance sees under one of these IDs.
    Streams {
        /// The instance.
        instance: InstanceIndex,
        /// The lowest ID.
        first: u32,
        /// The highest ID.
        last: u32,
    },
}

/// The ID under which an instance sees a request.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Output {
    /// The one that went in, under the subject's mask, less the lower bound, plus this.
    Offset(u32),
    /// Always the same one: another function's requester ID, or the one input of a named device.
    Fixed(u32),
    /// Two of them: what [`Offset`](Self::Offset) says, and always another one, under which a bridge may
    /// pass requests on.
    Both {
        /// What is added to the input.
        offset: u32,
        /// The other one.
        alias: u32,
    },
    /// As a device tree gives it, in the instance's own cells.
    Cells(Vec<u32>),
}

/// One sentence of the ID map.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rule {
    /// Who.
    pub subject: Subject,
    /// Which instance sees it; none if it is behind no IOMMU.
    pub instance: Option<InstanceIndex>,
    /// Under which ID.
    pub output: Output,
    /// What the table wants to pass unremapped, in the bits of an AMD device table entry's
    /// settings (IVHD, "data setting"); 0 for other tables.
    pub amd_settings: u8,
}

/// Why IOVA are not free.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum RegionKind {
    /// The device uses the memory there, at any time: to be mapped to itself with these rights before
    /// translation begins.
    Direct {
        /// The rights.
        prot: Prot,
        /// Whether it ends when a driver takes the device over, as with a display's buffer.
        is_relaxable: bool,
    },
    /// The device uses the memory there; firmware asks for a mapping to another address.
    Mapped {
        /// The first output address.
        oa: u64,
        /// The rights.
        prot: Prot,
    },
    /// Nothing may be mapped there.
    Reserved,
    /// Writes there are interrupts, and are not translated.
    Msi,
}

/// IOVA that are not free for use.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Region {
    /// For whom; `None` is everyone.
    pub subject: Option<Subject>,
    /// Which.
    pub range: IovaRange,
    /// Why.
    pub kind: RegionKind,
}

/// A part of a bus's addresses, and where it leads without an IOMMU.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct DmaRange {
    /// The addresses of the bus.
    pub range: IovaRange,
    /// The processor's address of the first one.
    pub cpu: u64,
}

/// How far a device reaches.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Reach {
    /// Who.
    pub subject: Subject,
    /// How many bits of an address it has, if the table says so.
    pub address_bits: Option<u8>,
    /// Which addresses of its bus lead to memory; empty if the table does not say.
    pub ranges: Vec<DmaRange>,
}

/// Whether a device's requests snoop the processor's caches.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Coherence {
    /// Who.
    pub subject: Subject,
    /// Whether they do.
    pub is_coherent: bool,
}

/// Who may use a device TLB.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ats {
    /// Who: all functions at or below it.
    pub subject: Subject,
    /// Whether the device must not work without it (SATC's requirement).
    pub is_required: bool,
}

/// How wide the PASIDs of a device are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PasidWidth {
    /// Who.
    pub subject: Subject,
    /// How many bits they have, 1 to 20.
    pub bits: u8,
}

/// A device cannot work before an instance does. A PCI host needs all instances of its map, and so do all of its
/// functions, also those behind only one of them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Supplier {
    /// The device.
    pub consumer: Subject,
    /// The instance.
    pub instance: InstanceIndex,
}
