//! What can be attached to a device behind RISC-V IOMMUs.

use alloc::boxed::Box;
use alloc::sync::Arc;

use iopt_formats::command::Narrow;
use iopt_formats::context::riscv::{FirstStage, FirstStageTables, SecondStage};
use iopt_formats::riscv::{Paging, Stage as PagingStage, Sv, Svx4};
use iopt_formats::walk::Root;
use iopt_formats::{Format as _, Oa, PageSize};

use crate::device::NewDomainError;
use crate::device::context::HardwareDomain;
use crate::device::riscv::features::{FIRST_STAGES, SECOND_STAGES};
use crate::device::riscv::{CommandDevice, Features, GuestFirst, Riscv};
use crate::invalidation::plan::riscv::{Riscv as Planner, Tag};
use crate::invalidation::{InvalidationSet, SetError};
use crate::mem::TableMemory;
use crate::radix::{MapSide, Table, TableConfig, TableError};

/// A domain for devices behind RISC-V IOMMUs: nothing passes, all passes, or tables translate.
pub type RiscvDomain<M, D> = HardwareDomain<Riscv<M, D>>;

/// How hardware is led to the tables of a domain.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stage {
    /// By the `iosatp` of a device context, or the `fsc` of a process context, with a PSCID: tables of the engine or,
    /// at a PASID, of a process.
    First {
        /// The format of the tables.
        format: Sv,
        /// Their root.
        root: Root,
        /// Whether IOMMUs are told of maps.
        map_side: MapSide,
    },
    /// By the `iohgatp` of a device context, with a GSCID.
    Second {
        /// The format of the tables.
        format: Svx4,
        /// Their root.
        root: Root,
        /// Whether IOMMUs are told of maps.
        map_side: MapSide,
    },
    /// By a device context with what a guest says of its own first stage, and the `iohgatp` of its parent.
    Nested {
        /// What the guest says.
        first: GuestFirst,
        /// The format of the parent's tables.
        format: Svx4,
        /// Their root.
        root: Root,
        /// Whether IOMMUs are told of maps.
        map_side: MapSide,
    },
}

/// The narrowest physical addresses that tables have.
const LEAST_OA_BITS: u8 = 32;

impl Stage {
    /// Returns how hardware is led to tables of a process with so many levels; `None` if it cannot be.
    ///
    /// How wide addresses are in them nobody says, but that one of the root: where the CPU has wider ones than an
    /// IOMMU, requests fault. Nor is an IOMMU told of pages that come, so those that need that do not fit.
    pub(super) fn of_process(levels: u8, root: Oa) -> Option<Self> {
        let format = match levels {
            3 => Sv::sv39(),
            4 => Sv::sv48(),
            5 => Sv::sv57(),
            _ => return None,
        };
        let root_bits = (u64::BITS - root.get().leading_zeros()) as u8;
        let format = format.with_oa_bits(root_bits.max(LEAST_OA_BITS)).ok()?;
        let is_aligned = PageSize::KIB_4.divides(root.get());
        is_aligned.then_some(Self::First {
            format,
            root: Root {
                oa: root,
                level: format.geometry().top,
            },
            map_side: MapSide::Silent,
        })
    }

    /// Returns whether a guest's process directory leads to it.
    pub(super) const fn has_guest_directory(&self) -> bool {
        match self {
            Self::Nested { first, .. } => matches!(first.first, FirstStage::Directory(_)),
            _ => false,
        }
    }

    /// Returns the first-stage tables, if they are the host's.
    pub(super) const fn first(self) -> Option<FirstStageTables> {
        match self {
            Self::First { format, root, .. } => Some(FirstStageTables::Sv { format, root }),
            Self::Second { .. } | Self::Nested { .. } => None,
        }
    }

    /// Returns what a guest says, if it is a guest's.
    pub(super) const fn guest(self) -> Option<GuestFirst> {
        match self {
            Self::Nested { first, .. } => Some(first),
            Self::First { .. } | Self::Second { .. } => None,
        }
    }

    /// Returns the second stage, under a GSCID.
    pub(super) const fn second(self, gscid: u16) -> Option<SecondStage> {
        match self {
            Self::First { .. } => None,
            Self::Second { format, root, .. } | Self::Nested { format, root, .. } => {
                Some(SecondStage::Svx4 {
                    format,
                    root,
                    gscid,
                })
            }
        }
    }

    /// Returns whether an IOMMU with `features`, which is told as `planner` has it, can walk the tables.
    pub(super) fn fits(&self, features: &Features, planner: Planner) -> bool {
        let (Self::First { map_side, .. }
        | Self::Second { map_side, .. }
        | Self::Nested { map_side, .. }) = self;
        let is_told = *map_side == MapSide::Announced || !planner.needs_map_invalidation;
        is_told && features.fits(self)
    }

    /// Returns where the IOMMU has its translations under a domain's ID: those of single stages.
    pub(super) fn tag(self, id: u32) -> Tag {
        match self {
            Self::First { .. } => Tag::FirstStage {
                gscid: None,
                pscid: Narrow::new(id).unwrap_or(Narrow::MAX),
            },
            // GSCIDs have 16 bits.
            Self::Second { .. } | Self::Nested { .. } => Tag::SecondStage { gscid: id as u16 },
        }
    }

    /// Returns where it has what a guest's first stages take part in. All domains of a guest have that place: what
    /// one left there may be met when the next is attached, so it goes with the GSCID.
    pub(super) const fn combined(self, gscid: u16) -> Option<Tag> {
        match self {
            Self::Nested { .. } => Some(Tag::Combined { gscid }),
            Self::First { .. } | Self::Second { .. } => None,
        }
    }
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
}

impl From<DomainError> for NewDomainError {
    fn from(error: DomainError) -> Self {
        match error {
            DomainError::Set(_) | DomainError::Table(TableError::OutOfMemory(_)) => Self::Exhausted,
            error @ DomainError::Table(_) => Self::Other(Box::new(error)),
        }
    }
}

impl<M: TableMemory + 'static, D: CommandDevice> RiscvDomain<M, D> {
    /// Creates a domain whose tables are those of a first stage, with devices that need their memory pinned. IOMMUs
    /// that cache what is not valid need to be told of maps.
    ///
    /// # Errors
    ///
    /// [`DomainError`].
    pub fn first_stage(format: Sv, memory: Arc<M>, map_side: MapSide) -> Result<Self, DomainError> {
        let set = Arc::new(InvalidationSet::new()?);
        let config = TableConfig::new().with_map_side(map_side);
        let table = Table::with_config(format, memory, config)?;
        let stage = Stage::First {
            format,
            root: table.root(),
            map_side,
        };
        Ok(Self::paging(table, set, stage))
    }

    /// Creates a domain whose tables are those of a second stage. IOMMUs that cache what is not valid need to be told
    /// of maps.
    ///
    /// # Errors
    ///
    /// [`DomainError`].
    pub fn second_stage(
        format: Svx4,
        memory: Arc<M>,
        map_side: MapSide,
    ) -> Result<Self, DomainError> {
        let set = Arc::new(InvalidationSet::new()?);
        let config = TableConfig::new().with_map_side(map_side);
        let table = Table::with_config(format, memory, config)?;
        let stage = Stage::Second {
            format,
            root: table.root(),
            map_side,
        };
        Ok(Self::paging(table, set, stage))
    }
}

/// Makes a domain whose tables hardware with all of `features` can walk, and that is told of maps, or not.
pub(super) fn translate<M: TableMemory + 'static, D: CommandDevice>(
    memory: &Arc<M>,
    features: &[&Features],
    map_side: MapSide,
) -> Result<RiscvDomain<M, D>, NewDomainError> {
    let memory = Arc::clone(memory);
    if let Some(format) = common(FIRST_STAGES, features, Features::fits_first) {
        return Ok(RiscvDomain::first_stage(format, memory, map_side)?);
    }
    let format = common(SECOND_STAGES, features, Features::fits_second);
    let format = format.ok_or(NewDomainError::Unsupported)?;
    Ok(RiscvDomain::second_stage(format, memory, map_side)?)
}

/// Returns the first of some formats that hardware with all of `features` can walk, with all that it can have there.
pub(super) fn common<S: PagingStage>(
    formats: [Paging<S>; 3],
    features: &[&Features],
    fits: fn(&Features, &Paging<S>) -> bool,
) -> Option<Paging<S>> {
    let widths = features.iter().map(|it| it.registers.physical_bits());
    // Items hold no wider addresses.
    let oa_bits = widths.min()?.min(56);
    let formats = formats.into_iter().filter_map(|format| {
        let format = format.with_svnapot().with_oa_bits(oa_bits).ok()?;
        Some([format.with_svpbmt(), format])
    });
    let mut formats = formats.flatten();
    formats.find(|format| features.iter().all(|features| fits(features, format)))
}
