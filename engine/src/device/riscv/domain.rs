//! What can be attached to a device behind RISC-V IOMMUs.

use alloc::boxed::Box;
use alloc::sync::Arc;

use iopt_formats::command::Narrow;
use iopt_formats::context::riscv::{FirstStageTables, SecondStage};
use iopt_formats::riscv::{Paging, Stage as PagingStage, Sv, Svx4};
use iopt_formats::walk::Root;

use crate::device::NewDomainError;
use crate::device::context::HardwareDomain;
use crate::device::riscv::features::{FIRST_STAGES, SECOND_STAGES};
use crate::device::riscv::{CommandDevice, Features, Riscv};
use crate::invalidation::plan::riscv::Tag;
use crate::invalidation::{InvalidationSet, SetError};
use crate::mem::TableMemory;
use crate::radix::{Table, TableError};

/// A domain for devices behind RISC-V IOMMUs: nothing passes, all passes, or tables translate.
pub type RiscvDomain<M, D> = HardwareDomain<Riscv<M, D>>;

/// How hardware is led to the tables of a domain.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stage {
    /// By the `iosatp` of a device context, or the `fsc` of a process context, with a PSCID.
    First {
        /// The format of the tables.
        format: Sv,
        /// Their root.
        root: Root,
    },
    /// By the `iohgatp` of a device context, with a GSCID.
    Second {
        /// The format of the tables.
        format: Svx4,
        /// Their root.
        root: Root,
    },
}

impl Stage {
    /// Returns the first-stage tables.
    pub(super) const fn first(self) -> Option<FirstStageTables> {
        match self {
            Self::First { format, root } => Some(FirstStageTables::Sv { format, root }),
            Self::Second { .. } => None,
        }
    }

    /// Returns the second stage, under a GSCID.
    pub(super) const fn second(self, gscid: u16) -> Option<SecondStage> {
        match self {
            Self::First { .. } => None,
            Self::Second { format, root } => Some(SecondStage::Svx4 {
                format,
                root,
                gscid,
            }),
        }
    }

    /// Returns where the IOMMU has its translations under a domain's ID.
    pub(super) fn tag(self, id: u32) -> Tag {
        match self {
            Self::First { .. } => Tag::FirstStage {
                gscid: None,
                pscid: Narrow::new(id).unwrap_or(Narrow::MAX),
            },
            // GSCIDs have 16 bits.
            Self::Second { .. } => Tag::SecondStage { gscid: id as u16 },
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
            DomainError::Set(_) => Self::Exhausted,
            error @ DomainError::Table(_) => Self::Other(Box::new(error)),
        }
    }
}

impl<M: TableMemory + 'static, D: CommandDevice> RiscvDomain<M, D> {
    /// Creates a domain whose tables are those of a first stage, with devices that need their memory pinned.
    ///
    /// # Errors
    ///
    /// [`DomainError`].
    pub fn first_stage(format: Sv, memory: Arc<M>) -> Result<Self, DomainError> {
        let set = Arc::new(InvalidationSet::new()?);
        let table = Table::new(format, memory)?;
        let root = table.root();
        Ok(Self::paging(table, set, Stage::First { format, root }))
    }

    /// Creates a domain whose tables are those of a second stage.
    ///
    /// # Errors
    ///
    /// [`DomainError`].
    pub fn second_stage(format: Svx4, memory: Arc<M>) -> Result<Self, DomainError> {
        let set = Arc::new(InvalidationSet::new()?);
        let table = Table::new(format, memory)?;
        let root = table.root();
        Ok(Self::paging(table, set, Stage::Second { format, root }))
    }
}

/// Makes a domain whose tables hardware with all of `features` can walk.
pub(super) fn translate<M: TableMemory + 'static, D: CommandDevice>(
    memory: &Arc<M>,
    features: &[&Features],
) -> Result<RiscvDomain<M, D>, NewDomainError> {
    let memory = Arc::clone(memory);
    if let Some(format) = common(FIRST_STAGES, features, Features::fits_first) {
        return Ok(RiscvDomain::first_stage(format, memory)?);
    }
    let format = common(SECOND_STAGES, features, Features::fits_second);
    let format = format.ok_or(NewDomainError::Unsupported)?;
    Ok(RiscvDomain::second_stage(format, memory)?)
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
