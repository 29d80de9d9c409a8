//! From the registers of an IOMMU to the table that a device uses.
//!
//! One module an architecture, each with the raw `Registers`, `resolve` for one device (and PASID),
//! and `devices` for all device ids that have an entry.

use std::error::Error;
use std::fmt;

use crate::word::exceeds;
use crate::{Fault, Memory, MemoryAttributes, Setup, Table, Translation};

pub mod amd;
pub mod riscv;
pub mod smmu;
pub mod vtd;

/// What happens to the requests of a device.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Binding {
    /// All are refused.
    Blocked,
    /// All go out untranslated.
    PassThrough {
        /// Reads are allowed.
        read: bool,
        /// Writes are allowed.
        write: bool,
    },
    /// One stage of translation.
    Table(Table),
    /// Two stages. The addresses in the first stage's tables, its root included, are inputs of the
    /// second.
    Nested {
        /// First stage: VA to IPA.
        first: Table,
        /// Second stage: IPA to PA.
        second: Table,
    },
}

impl Binding {
    const OPEN: Self = Self::PassThrough {
        read: true,
        write: true,
    };

    /// Translates `iova` through all stages.
    ///
    /// Of two stages the rights are intersected, the entry is the smaller one of both, and dirty,
    /// attributes, level and word are those of the second. Untranslated requests get pages of
    /// 4 KiB.
    ///
    /// # Errors
    ///
    /// Says which stage refused, and where.
    pub fn walk<M: Memory + ?Sized>(
        &self,
        memory: &M,
        iova: u64,
    ) -> Result<Translation, BindingFault> {
        match self {
            Self::Blocked => Err(BindingFault::Blocked),
            Self::PassThrough { read, write } => Ok(untranslated(iova, *read, *write)),
            Self::Table(table) => table.walk(memory, iova).map_err(BindingFault::First),
            Self::Nested { first, second } => {
                let through = Through { second, memory };
                let outer = first
                    .walk(&through, iova)
                    .map_err(|fault| through.explain(fault))?;
                let inner = through.walk(outer.oa)?;
                Ok(Translation {
                    page_len: outer.page_len.min(inner.page_len),
                    item_len: outer.item_len.min(inner.item_len),
                    read: outer.read && inner.read,
                    write: outer.write && inner.write,
                    execute: outer.execute && inner.execute,
                    user: outer.user && inner.user,
                    accessed: outer.accessed && inner.accessed,
                    ..inner
                })
            }
        }
    }

    /// Returns the binding with `first` in front of the stage that is there.
    fn nest(self, first: Table) -> Self {
        match self {
            Self::Table(second) => Self::Nested { first, second },
            Self::Blocked => Self::Blocked,
            Self::PassThrough { .. } | Self::Nested { .. } => Self::Table(first),
        }
    }

    /// Checks the tables' settings.
    fn check(self) -> Result<Self, ContextFault> {
        let tables = match &self {
            Self::Blocked | Self::PassThrough { .. } => [None, None],
            Self::Table(table) => [Some(table), None],
            Self::Nested { first, second } => [Some(first), Some(second)],
        };
        tables
            .into_iter()
            .flatten()
            .try_for_each(Table::check)
            .map_err(ContextFault::Setup)?;
        Ok(self)
    }
}

fn untranslated(iova: u64, read: bool, write: bool) -> Translation {
    Translation {
        oa: iova,
        page_len: 0x1000,
        item_len: 0x1000,
        read,
        write,
        execute: read,
        user: true,
        dirty: false,
        accessed: true,
        memory: MemoryAttributes::Unstated,
        level: 0,
        word: 0,
    }
}

/// Memory as the first stage sees it: behind the second.
///
/// ```
/// use iopt_reference::context::Through;
/// use iopt_reference::{Memory, PageMap, Table, riscv};
///
/// let mut memory = PageMap::new();
/// memory.write64(0x4000, 1 << 28 | 0xdf); // level 2, entry 0: 1 GiB page at 0x4000_0000
/// memory.write64(0x4000_0040, 7);
/// let second = Table::Riscv(riscv::Config::new(riscv::Stage::G, 0x4000, 3));
/// assert_eq!(Through { second: &second, memory: &memory }.read64(0x40), Some(7));
/// ```
#[derive(Debug)]
pub struct Through<'a, M: ?Sized> {
    /// The second stage.
    pub second: &'a Table,
    /// Memory by output addresses of the second stage.
    pub memory: &'a M,
}

impl<M: Memory + ?Sized> Through<'_, M> {
    fn walk(&self, ipa: u64) -> Result<Translation, BindingFault> {
        self.second
            .walk(self.memory, ipa)
            .map_err(|fault| BindingFault::Second { ipa, fault })
    }

    /// Turns "no memory" of the first stage into the second stage's reason, if it has one.
    fn explain(&self, fault: Fault) -> BindingFault {
        match fault {
            Fault::MissingMemory { address } => match self.walk(address) {
                Err(reason) => reason,
                Ok(_) => BindingFault::First(fault),
            },
            _ => BindingFault::First(fault),
        }
    }
}

impl<M: Memory + ?Sized> Memory for Through<'_, M> {
    fn read64(&self, address: u64) -> Option<u64> {
        let translation = self
            .walk(address)
            .ok()
            .filter(|translation| translation.read)?;
        self.memory.read64(translation.oa)
    }
}

/// Why a request of a bound device is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum BindingFault {
    /// The device is blocked.
    Blocked,
    /// The first stage, or the only one, faults.
    First(Fault),
    /// The second stage faults on `ipa`, an output or a table address of the first.
    Second {
        /// Input of the second stage.
        ipa: u64,
        /// Its fault.
        fault: Fault,
    },
}

impl fmt::Display for BindingFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blocked => f.write_str("the device is blocked"),
            Self::First(fault) => fault.fmt(f),
            Self::Second { ipa, fault } => write!(f, "second stage, ipa {ipa:#x}: {fault}"),
        }
    }
}

impl Error for BindingFault {}

/// A device id with an entry.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Device {
    /// `StreamID`, requester id, device id.
    pub id: u32,
    /// Where its requests without PASID go.
    pub binding: Result<Binding, ContextFault>,
}

/// Why no table was found for a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ContextFault {
    /// There is no memory where an entry should be.
    MissingMemory {
        /// Address of the word.
        address: u64,
    },
    /// No table covers the device id.
    DeviceId {
        /// The device id.
        device_id: u32,
    },
    /// An entry on the way is not valid.
    NotValid {
        /// Address of the entry.
        address: u64,
    },
    /// An entry is valid and has a value that the manual forbids.
    Illegal {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// The request has a PASID that the entries do not allow or cover, or lacks one.
    Pasid {
        /// The PASID of the request.
        pasid: Option<u32>,
    },
    /// A legal choice that these walkers do not know.
    Unsupported {
        /// Name of the field.
        field: &'static str,
    },
    /// An entry lies behind the second stage, which faults there.
    Second {
        /// Input of the second stage.
        ipa: u64,
        /// Its fault.
        fault: Fault,
    },
    /// The entry describes a table that cannot be.
    Setup(Setup),
    /// More entries than allowed.
    Limit {
        /// The limit.
        limit: u64,
    },
}

impl fmt::Display for ContextFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MissingMemory { address } => write!(f, "no memory at {address:#x}"),
            Self::DeviceId { device_id } => write!(f, "no table covers device id {device_id:#x}"),
            Self::NotValid { address } => write!(f, "the entry at {address:#x} is not valid"),
            Self::Illegal { field, value } => write!(f, "{field} = {value:#x} is not legal"),
            Self::Pasid { pasid: Some(pasid) } => write!(f, "PASID {pasid:#x} is not allowed"),
            Self::Pasid { pasid: None } => f.write_str("requests without PASID are not allowed"),
            Self::Unsupported { field } => write!(f, "{field} is not supported"),
            Self::Second { ipa, fault } => write!(f, "second stage, ipa {ipa:#x}: {fault}"),
            Self::Setup(setup) => setup.fmt(f),
            Self::Limit { limit } => write!(f, "more than {limit} entries"),
        }
    }
}

impl Error for ContextFault {}

/// Reads `N` words that belong together.
fn read<M: Memory + ?Sized, const N: usize>(
    memory: &M,
    address: u64,
) -> Result<[u64; N], ContextFault> {
    let mut words = [0; N];
    for (index, word) in (0..).zip(&mut words) {
        let address = address + 8 * index;
        *word = memory
            .read64(address)
            .ok_or(ContextFault::MissingMemory { address })?;
    }
    Ok(words)
}

/// Counts entries up to a limit.
struct Budget {
    limit: u64,
    used: u64,
}

impl Budget {
    const fn new(limit: u64) -> Self {
        Self { limit, used: 0 }
    }

    fn spend(&mut self) -> Result<(), ContextFault> {
        self.used += 1;
        if self.used > self.limit {
            Err(ContextFault::Limit { limit: self.limit })
        } else {
            Ok(())
        }
    }
}

/// Refuses PASIDs of more than 20 bits, which no request can carry.
fn check_pasid(pasid: Option<u32>) -> Result<(), ContextFault> {
    if pasid.is_some_and(|pasid| exceeds(u64::from(pasid), 20)) {
        return Err(ContextFault::Pasid { pasid });
    }
    Ok(())
}
