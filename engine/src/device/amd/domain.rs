//! What can be attached to a device behind IOMMUs.

use alloc::boxed::Box;
use alloc::sync::Arc;

use iopt_formats::amd::V1;
use iopt_formats::context::amd::{
    Dte, DteError, Gcr3Entry, Gcr3Error, GuestTables, HostTables, Tracking,
};
use iopt_formats::x86_64::AmdV2;
use iopt_formats::{Format as _, Oa};

use crate::device::NewDomainError;
use crate::device::amd::{AmdVi, CommandDevice, Features};
use crate::device::context::{HardwareDomain, Set};
use crate::invalidation::SetError;
use crate::invalidation::plan::amd::Amd as Planner;
use crate::mem::TableMemory;
use crate::radix::{MapSide, Table, TableConfig, TableError};

/// A domain for devices behind AMD's IOMMUs.
pub type AmdDomain<M, D> = HardwareDomain<AmdVi<M, D>>;

/// How hardware is led to the tables.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stage {
    /// By the device's entry, to version 1 tables.
    Host {
        /// The tables.
        tables: HostTables,
        /// Bits of the addresses that they yield.
        oa_bits: u8,
        /// Whether IOMMUs are told of maps.
        map_side: MapSide,
    },
    /// By an entry of the device's guest CR3 table, to version 2 tables: of the engine or, at a PASID, of a process.
    Guest {
        /// The entry.
        entry: Gcr3Entry,
        /// The levels of the tables: 4 or 5.
        paging_levels: u8,
        /// Bits of the addresses that they yield.
        oa_bits: u8,
        /// Whether IOMMUs are told of maps.
        map_side: MapSide,
    },
    /// By the device's entry, to version 2 tables of a guest and from there to version 1 tables, or to those alone.
    Nested {
        /// The guest's, if it has any: without a host, and at addresses that `tables` translate.
        guest: Option<GuestTables>,
        /// The parent's.
        tables: HostTables,
        /// Bits of the addresses that these yield.
        oa_bits: u8,
        /// Whether IOMMUs are told of maps.
        map_side: MapSide,
    },
}

/// Why there is no such domain.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DomainError {
    /// No table.
    #[error(transparent)]
    Table(#[from] TableError),
    /// No set.
    #[error(transparent)]
    Set(#[from] SetError),
    /// A device's entry cannot lead to it.
    #[error(transparent)]
    Entry(#[from] DteError),
    /// An entry of a guest CR3 table cannot lead to it.
    #[error(transparent)]
    Gcr3(#[from] Gcr3Error),
    /// The root of its tables would move.
    #[error("devices cannot follow tables whose root grows; the number of levels must be fixed")]
    Growing,
}

impl From<DomainError> for NewDomainError {
    fn from(error: DomainError) -> Self {
        match error {
            DomainError::Set(_) | DomainError::Table(TableError::OutOfMemory(_)) => Self::Exhausted,
            error => Self::Other(Box::new(error)),
        }
    }
}

impl<M: TableMemory + 'static, D: CommandDevice> AmdDomain<M, D> {
    /// Creates a domain whose tables are of version 1, with devices that need their memory pinned. It is for
    /// requests without a PASID. IOMMUs that cache absent entries (`NpCache`) need to be told of maps.
    ///
    /// # Errors
    ///
    /// [`DomainError`]; [`DomainError::Growing`] unless the format's number of levels is
    /// [fixed](V1::fixed).
    pub fn host<T: TableMemory + 'static>(
        format: V1,
        memory: Arc<T>,
        map_side: MapSide,
    ) -> Result<Self, DomainError> {
        let geometry = format.geometry();
        if geometry.top != geometry.max_top {
            return Err(DomainError::Growing);
        }
        let set = Arc::new(Set::<AmdVi<M, D>>::new()?);
        let config = TableConfig::new().with_map_side(map_side);
        let table = Table::with_config(format, memory, config)?;
        let tracking = if format == format.with_dirty() {
            Tracking::AccessedAndDirty
        } else {
            Tracking::None
        };
        let stage = Stage::Host {
            tables: HostTables::new(table.root(), tracking)?,
            oa_bits: format.oa_bits(),
            map_side,
        };
        Ok(Self::paging(table, set, stage))
    }

    /// Creates a domain whose tables are of version 2, with devices that need their memory pinned. IOMMUs that
    /// cache absent entries (`NpCache`) need to be told of maps.
    ///
    /// # Errors
    ///
    /// [`DomainError`].
    pub fn guest<T: TableMemory + 'static>(
        format: AmdV2,
        memory: Arc<T>,
        map_side: MapSide,
    ) -> Result<Self, DomainError> {
        let set = Arc::new(Set::<AmdVi<M, D>>::new()?);
        let config = TableConfig::new().with_map_side(map_side);
        let table = Table::with_config(format, memory, config)?;
        let stage = Stage::Guest {
            entry: Gcr3Entry::new(table.root().oa)?,
            paging_levels: format.levels(),
            oa_bits: format.oa_bits(),
            map_side,
        };
        Ok(Self::paging(table, set, stage))
    }
}

/// The narrowest physical addresses that an IOMMU has.
const LEAST_OA_BITS: u8 = 32;

impl Stage {
    /// Returns how hardware is led to tables of a process with so many levels; `None` if it cannot be.
    ///
    /// How wide addresses are in them nobody says, but that one of the root: where the CPU has wider ones than an
    /// IOMMU, requests fault. Nor is an IOMMU told of pages that come, so those that need that do not fit.
    pub(super) fn of_process(levels: u8, root: Oa) -> Option<Self> {
        let root_bits = (u64::BITS - root.get().leading_zeros()) as u8;
        let entry = Gcr3Entry::new(root).ok()?;
        (4..=5).contains(&levels).then_some(Self::Guest {
            entry,
            paging_levels: levels,
            oa_bits: root_bits.max(LEAST_OA_BITS),
            map_side: MapSide::Silent,
        })
    }

    /// Returns the device's entry under a domain ID; `None` if that leads to a guest CR3 table of the device.
    pub(super) fn entry(&self, domain_id: u16) -> Option<Dte> {
        let entry = match *self {
            Self::Host { tables, .. }
            | Self::Nested {
                guest: None,
                tables,
                ..
            } => Dte::host(tables),
            Self::Nested {
                guest: Some(guest),
                tables,
                ..
            } => Dte::guest(guest.with_host(tables)),
            Self::Guest { .. } => return None,
        };
        Some(entry.with_domain_id(domain_id))
    }

    /// Returns whether it is a guest's.
    pub(super) const fn is_nested(&self) -> bool {
        matches!(self, Self::Nested { .. })
    }

    /// Returns whether a guest's CR3 table leads to it.
    pub(super) const fn has_guest_gcr3(&self) -> bool {
        matches!(self, Self::Nested { guest: Some(_), .. })
    }

    /// Returns whether an IOMMU with `features`, which is told as `planner` has it, can walk the tables.
    pub(super) fn fits(&self, features: &Features, planner: Planner) -> bool {
        let (can_walk, oa_bits, map_side) = match *self {
            Self::Host {
                tables,
                oa_bits,
                map_side,
            }
            | Self::Nested {
                tables,
                oa_bits,
                map_side,
                ..
            } => {
                let can_walk = tables.root().level.0 < features.host_levels
                    && (tables.tracking() == Tracking::None || features.has_dirty);
                (can_walk, oa_bits, map_side)
            }
            Self::Guest {
                paging_levels,
                oa_bits,
                map_side,
                ..
            } => {
                let can_walk =
                    features.has_guest_tables() && paging_levels <= features.guest_levels;
                (can_walk, oa_bits, map_side)
            }
        };
        let is_told = map_side == MapSide::Announced || !planner.has_absent_entries;
        can_walk && is_told && oa_bits <= features.oa_bits
    }
}
