//! The DMA Remapping table of Intel systems.
//!
//! Intel VT-d specification, revision 4.1, chapter 8. All scopes are kept, those of interrupt
//! controllers and timers too, which matter to interrupt remapping only.

mod describe;
#[cfg(test)]
mod tests;

use alloc::string::String;
use alloc::vec::Vec;

use crate::firmware::PathStep;
use crate::firmware::acpi::error::{AcpiError, Fault};
use crate::firmware::acpi::table::{Part, Signature};

/// The signature.
pub const SIGNATURE: Signature = Signature(*b"DMAR");

/// The table.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Table {
    /// The revision.
    pub revision: u8,
    /// How many bits a host address that DMA can reach has, at least 12.
    pub address_bits: u16,
    /// Bit 0: interrupts can be remapped, bit 1: x2APIC is not wanted, bit 2: DMA protection is wanted.
    pub flags: u8,
    /// The structures, in their order.
    pub structures: Vec<Structure>,
}

/// A structure.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Structure {
    /// Where it is in the table.
    pub offset: usize,
    /// What it describes.
    pub kind: StructureKind,
}

/// What a structure describes.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum StructureKind {
    /// A remapping unit (DRHD, section 8.3).
    Unit(Unit),
    /// Memory that devices use already (RMRR, section 8.4).
    ReservedMemory {
        /// The segment.
        segment: u16,
        /// The first byte.
        base: u64,
        /// The last byte.
        limit: u64,
        /// Who uses it.
        scopes: Vec<Scope>,
    },
    /// Root ports that support ATS (ATSR, section 8.5).
    RootPorts {
        /// The segment.
        segment: u16,
        /// Whether all of the segment do.
        is_all: bool,
        /// Which.
        scopes: Vec<Scope>,
    },
    /// What a unit is close to (RHSA, section 8.6).
    Affinity {
        /// The address of the unit's registers.
        base: u64,
        /// The proximity domain.
        proximity: u32,
    },
    /// A device of the namespace (ANDD, section 8.7).
    NamespaceDevice {
        /// Its number, which scopes name.
        number: u8,
        /// Its path in the namespace.
        name: String,
    },
    /// Devices inside the package with a TLB of their own (SATC, section 8.8).
    DeviceTlbs {
        /// The segment.
        segment: u16,
        /// Whether they work only if it is in use.
        is_required: bool,
        /// Which.
        scopes: Vec<Scope>,
    },
    /// Properties of devices inside the package (SIDP, section 8.9), in the flags of their scopes.
    Properties {
        /// The segment.
        segment: u16,
        /// Which.
        scopes: Vec<Scope>,
    },
    /// A structure that this code does not know.
    Unknown(
        /// Its type.
        u16,
    ),
}

/// A remapping unit.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Unit {
    /// The segment.
    pub segment: u16,
    /// The address of its registers.
    pub base: u64,
    /// How many bytes of them.
    pub len: u64,
    /// Whether all PCI functions of the segment are behind it that are behind no other
    /// (`INCLUDE_PCI_ALL`).
    pub is_rest: bool,
    /// Who is behind it.
    pub scopes: Vec<Scope>,
}

/// A device scope (section 8.3.1).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Scope {
    /// Where it is in the table.
    pub offset: usize,
    /// What kind of device.
    pub kind: ScopeKind,
    /// Its properties, in [`StructureKind::Properties`]; reserved elsewhere.
    pub flags: u8,
    /// The number of an interrupt controller, a timer or a device of the namespace.
    pub enumeration: u8,
    /// The bus where the path starts.
    pub start_bus: u8,
    /// At least one step.
    pub path: Vec<PathStep>,
}

/// What kind of device a scope is about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum ScopeKind {
    /// A PCI function.
    Endpoint,
    /// A PCI bridge and all below.
    SubHierarchy,
    /// An I/O APIC.
    IoApic,
    /// A high precision event timer.
    Hpet,
    /// A device of the namespace.
    Namespace,
    /// One that this code does not know.
    Unknown(
        /// Its type.
        u8,
    ),
}

impl Table {
    /// Parses the table.
    ///
    /// # Errors
    ///
    /// Says which structure is wrong, and why.
    pub fn parse(bytes: &[u8]) -> Result<Self, AcpiError> {
        let (table, revision) = Part::open(SIGNATURE, bytes)?;
        table.need(48, "the table")?;
        let width = table.u8(36, "the host address width")?;
        let address_bits = u16::from(width) + 1;
        if address_bits < 12 {
            let value = width.into();
            return Err(table.error(36, "the host address width", Fault::Value { value }));
        }
        let mut rest = table.rest(48);
        let mut structures = Vec::new();
        while rest.len() != 0 {
            rest.need(4, "a structure")?;
            let len = rest.u16(2, "the length of a structure")?;
            let structure = rest.split(len.into(), 4, "a structure")?;
            structures.push(Structure {
                offset: structure.offset(),
                kind: StructureKind::parse(&structure)?,
            });
        }
        Ok(Self {
            revision,
            address_bits,
            flags: table.u8(37, "the flags")?,
            structures,
        })
    }
}

impl StructureKind {
    fn parse(structure: &Part<'_>) -> Result<Self, AcpiError> {
        let segment = || structure.u16(6, "the segment");
        let is_flagged = || Ok(structure.u8(4, "the flags")? & 1 != 0);
        let base = || structure.u64(8, "the base address");
        Ok(match structure.u16(0, "the type of a structure")? {
            0 => Self::Unit(Unit {
                segment: segment()?,
                base: match base()? {
                    0 => {
                        return Err(structure.error(
                            8,
                            "the base address",
                            Fault::Value { value: 0 },
                        ));
                    }
                    base => base,
                },
                len: 0x1000 << (structure.u8(5, "the size")? & 15),
                is_rest: is_flagged()?,
                scopes: Scope::all(&structure.rest(16))?,
            }),
            1 => {
                structure.need(24, "a reserved memory region")?;
                Self::ReservedMemory {
                    segment: segment()?,
                    base: base()?,
                    limit: structure.u64(16, "the limit")?,
                    scopes: Scope::all(&structure.rest(24))?,
                }
            }
            2 => Self::RootPorts {
                segment: segment()?,
                is_all: is_flagged()?,
                scopes: Scope::all(&structure.rest(8))?,
            },
            3 => Self::Affinity {
                base: base()?,
                proximity: structure.u32(16, "the proximity domain")?,
            },
            4 => Self::NamespaceDevice {
                number: structure.u8(7, "the number of a device")?,
                name: structure.text(8, "the name of a device")?,
            },
            5 => Self::DeviceTlbs {
                segment: segment()?,
                is_required: is_flagged()?,
                scopes: Scope::all(&structure.rest(8))?,
            },
            6 => Self::Properties {
                segment: segment()?,
                scopes: Scope::all(&structure.rest(8))?,
            },
            kind => Self::Unknown(kind),
        })
    }
}

impl Scope {
    fn all(scopes: &Part<'_>) -> Result<Vec<Self>, AcpiError> {
        let mut rest = *scopes;
        let mut all = Vec::new();
        while rest.len() != 0 {
            let len = rest.u8(1, "the length of a device scope")?;
            let scope = rest.split(len.into(), 8, "a device scope")?;
            all.push(Self::parse(&scope)?);
        }
        Ok(all)
    }

    fn parse(scope: &Part<'_>) -> Result<Self, AcpiError> {
        let kind = match scope.u8(0, "the type of a device scope")? {
            1 => ScopeKind::Endpoint,
            2 => ScopeKind::SubHierarchy,
            3 => ScopeKind::IoApic,
            4 => ScopeKind::Hpet,
            5 => ScopeKind::Namespace,
            kind => ScopeKind::Unknown(kind),
        };
        let len = scope.len();
        if !len.is_multiple_of(2) {
            return Err(scope.error(1, "a device scope", Fault::Length { len }));
        }
        let mut path = Vec::with_capacity(len / 2);
        let mut rest = scope.rest(6);
        while rest.len() != 0 {
            let step = PathStep {
                device: rest.u8(0, "a device")?,
                function: rest.u8(1, "a function")?,
            };
            let wrong = |at, what, value: u8| {
                let value = value.into();
                rest.error(at, what, Fault::Value { value })
            };
            if step.device > 31 {
                return Err(wrong(0, "a device", step.device));
            }
            if step.function > 7 {
                return Err(wrong(1, "a function", step.function));
            }
            path.push(step);
            rest = rest.rest(2);
        }
        Ok(Self {
            offset: scope.offset(),
            kind,
            flags: scope.u8(2, "the flags of a device scope")?,
            enumeration: scope.u8(4, "the enumeration ID")?,
            start_bus: scope.u8(5, "the start bus")?,
            path,
        })
    }
}
