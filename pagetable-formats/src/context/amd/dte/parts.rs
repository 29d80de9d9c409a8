//! What a device table entry says, piece by piece.
//!
//! Source: document 48882, section 2.2.2.1 "Device Table Entry Format".

use crate::amd::V1;
use crate::context::amd::Gcr3Table;
use crate::walk::Root;
use crate::{Level, Oa, Rights};

use super::{DteError, HOST_ROOT, INTERRUPT_ROOT};

/// What memory accesses go through.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Translation {
    /// No access succeeds.
    Blocked,
    /// Addresses stay as they are.
    PassThrough {
        /// Accesses that succeed.
        rights: Rights,
    },
    /// Version 1 tables.
    Host(HostTables),
    /// Version 2 tables, alone or on top of version 1 tables.
    Guest(GuestTables),
}

/// Version 1 tables of a device.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct HostTables {
    format: V1,
    root: Root,
    tracking: Tracking,
    limit: Rights,
}

impl HostTables {
    /// Describes the tables with `root`, whose level is what `Mode` says. The entry limits nothing.
    ///
    /// # Errors
    ///
    /// [`DteError::HostRootLevel`] for a level above 5; [`DteError::Pointer`] unless the address is
    /// aligned to 4 KiB and below 2^52.
    pub fn new(root: Root, tracking: Tracking) -> Result<Self, DteError> {
        check_pointer(root.oa, HOST_ROOT.mask())?;
        let level = root.level;
        let error = DteError::HostRootLevel { level };
        if level > Level(5) {
            return Err(error);
        }
        let levels = level.0 + 1;
        let format = V1::fixed(levels, (12 + 9 * levels).min(64)).map_err(|_| error)?;
        let format = match tracking {
            Tracking::AccessedAndDirty => format.with_dirty(),
            Tracking::None | Tracking::Accessed => format,
        };
        Ok(Self {
            format,
            root,
            tracking,
            limit: Rights::ALL,
        })
    }

    /// Returns these tables with `limit` as what the entry leaves to the device. Only the rights to
    /// read and to write can be taken away.
    #[must_use]
    pub const fn with_limit(self, limit: Rights) -> Self {
        Self {
            limit: expressible(limit),
            ..self
        }
    }

    /// Returns their format.
    pub const fn format(self) -> V1 {
        self.format
    }

    /// Returns their root.
    pub const fn root(self) -> Root {
        self.root
    }

    /// Returns which flags hardware sets in them.
    pub const fn tracking(self) -> Tracking {
        self.tracking
    }

    /// Returns the rights that the entry leaves to the device, to intersect with what a walk gives.
    pub const fn limit(self) -> Rights {
        self.limit
    }
}

/// Version 2 tables of a device.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct GuestTables {
    gcr3: Gcr3Table,
    serves_requests_without_pasid: bool,
    host: Option<HostTables>,
    limit: Rights,
}

impl GuestTables {
    /// Describes the tables that `gcr3` leads to, for requests with a PASID, without host tables below
    /// them. The entry limits nothing.
    pub const fn new(gcr3: Gcr3Table) -> Self {
        Self {
            gcr3,
            serves_requests_without_pasid: false,
            host: None,
            limit: Rights::ALL,
        }
    }

    /// Returns these tables with requests without a PASID using PASID 0 (`GIoV`).
    #[must_use]
    pub const fn with_requests_without_pasid(self) -> Self {
        Self {
            serves_requests_without_pasid: true,
            ..self
        }
    }

    /// Returns these tables on top of `host`, which translates what they yield and their own
    /// addresses. Both limits apply.
    #[must_use]
    pub const fn with_host(self, host: HostTables) -> Self {
        let limit = self.limit.intersection(host.limit);
        Self {
            host: Some(host),
            ..self
        }
        .with_limit(limit)
    }

    /// Returns these tables with `limit` as what the entry leaves to the device. Only the rights to
    /// read and to write can be taken away.
    #[must_use]
    pub const fn with_limit(self, limit: Rights) -> Self {
        let host = match self.host {
            Some(host) => Some(host.with_limit(limit)),
            None => None,
        };
        Self {
            host,
            limit: expressible(limit),
            ..self
        }
    }

    /// Returns the table that leads from a PASID to page tables.
    pub const fn gcr3(self) -> Gcr3Table {
        self.gcr3
    }

    /// Returns whether requests without a PASID use PASID 0 (`GIoV`); else they skip these tables.
    pub const fn serves_requests_without_pasid(self) -> bool {
        self.serves_requests_without_pasid
    }

    /// Returns the tables that translate what these tables yield, and their own addresses.
    pub const fn host(self) -> Option<HostTables> {
        self.host
    }

    /// Returns the rights that the entry leaves to the device, to intersect with what a walk gives.
    pub const fn limit(self) -> Rights {
        self.limit
    }
}

/// Flags that hardware sets in version 1 tables (HAD).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Tracking {
    /// None.
    None,
    /// A.
    Accessed,
    /// A and D.
    AccessedAndDirty,
}

/// What port IO goes through (`IoCtl`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PortIo {
    /// It is aborted.
    Aborted,
    /// It stays as it is.
    Forwarded,
    /// Its addresses are translated as memory addresses.
    Translated,
}

/// What accesses to the system management range go through (`SysMgt`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SystemManagement {
    /// They are aborted.
    Aborted,
    /// Writes stay as they are; reads are aborted.
    Forwarded,
    /// Legacy interrupt messages stay as they are; all else is aborted.
    InterruptsForwarded,
    /// They are translated as other accesses.
    Translated,
}

/// What fixed and arbitrated interrupts go through (IV and `IntCtl`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Interrupts {
    /// They are aborted.
    Aborted,
    /// They stay as they are.
    Forwarded,
    /// A table remaps them.
    Remapped(InterruptTable),
}

/// Interrupt remapping table of a device.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct InterruptTable {
    root: Oa,
    count_lg2: u8,
}

impl InterruptTable {
    /// Describes the table of 2^`count_lg2` entries at `root`.
    ///
    /// # Errors
    ///
    /// [`DteError::InterruptTableLength`] for more than 2^11 entries; [`DteError::Pointer`] unless
    /// `root` is aligned to 64 bytes and below 2^52.
    pub fn new(root: Oa, count_lg2: u8) -> Result<Self, DteError> {
        check_pointer(root, INTERRUPT_ROOT.mask())?;
        if count_lg2 > 11 {
            return Err(DteError::InterruptTableLength { count_lg2 });
        }
        Ok(Self { root, count_lg2 })
    }

    /// Returns where it lies.
    pub const fn root(self) -> Oa {
        self.root
    }

    /// Returns the base-2 logarithm of the number of entries, up to 11.
    pub const fn count_lg2(self) -> u8 {
        self.count_lg2
    }
}

/// Returns what an entry can express of `limit`: IR and IW deny reads and writes, and nothing denies
/// more.
const fn expressible(limit: Rights) -> Rights {
    limit.union(Rights::USER).union(Rights::EXECUTE)
}

/// Refuses an address that the field `mask` cannot hold.
fn check_pointer(oa: Oa, mask: u64) -> Result<(), DteError> {
    if oa.get() & !mask == 0 {
        return Ok(());
    }
    let alignment = 1 << mask.trailing_zeros();
    Err(DteError::Pointer { oa, alignment })
}
